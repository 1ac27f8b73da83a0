//! The channel projection: identity changes nothing, folding changes nothing.

use super::{batch, device, distance, model, small_config, values};
use deme_diffusion::{ProjectionError, ProjectionPlacement, UNet2DModel};
use deme_nn::{Gradients, Init, map_parameters, parameter_shapes, with_gradients};
use proptest::prelude::*;

/// The model with its matrices drawn around the identity.
fn with_random_matrices(unet: UNet2DModel, seed: u64) -> UNet2DModel {
    let mut init = Init::new(seed, &device());
    map_parameters(unet, &mut |name, parameter| {
        if !name.starts_with("projection.") {
            return parameter;
        }
        let [entries] = parameter.dims();
        parameter + init.normal([entries], 0.3)
    })
}

#[test]
fn identity_matrices_change_nothing_at_all() {
    let config = small_config();
    let unet = model(&config, 3);
    let (x, t) = batch(&config, 8, 4);
    let before = values(unet.forward(x.clone(), &t));
    for placement in [ProjectionPlacement::Block, ProjectionPlacement::Folded] {
        let projected = unet.clone().with_projection(placement).unwrap();
        assert_eq!(values(projected.forward(x.clone(), &t)), before, "{placement:?}");
    }
}

#[test]
fn there_is_one_matrix_per_block_in_the_order_down_mid_up() {
    let unet = model(&small_config(), 0).with_projection(ProjectionPlacement::Block).unwrap();
    let shapes = parameter_shapes(&unet);
    let found: Vec<_> = shapes
        .iter()
        .filter(|parameter| parameter.name.starts_with("projection."))
        .map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice()))
        .collect();
    let expected = [
        ("projection.0", [4, 4].as_slice()),
        ("projection.1", &[8, 8]),
        ("projection.2", &[8, 8]),
        ("projection.3", &[8, 8]),
        ("projection.4", &[4, 4]),
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_matrix_acts_and_learns() {
    let config = small_config();
    let (x, t) = batch(&config, 8, 4);
    for placement in [ProjectionPlacement::Block, ProjectionPlacement::Folded] {
        let unet = model(&config, 3).with_projection(placement).unwrap();
        let before = values(unet.forward(x.clone(), &t));
        let live = with_gradients(&unet);
        let gradients = Gradients::of(&live.forward(x.clone(), &t).square().mean(), &live);
        for i in 0..unet.projection.len() {
            let name = format!("projection.{i}");
            let gradient = values(gradients.get(&name).unwrap().clone());
            assert!(gradient.iter().any(|g| *g != 0.0), "{placement:?}: {name} learns");
            // Not a multiple of the identity: the output's norm would undo that.
            let changed = map_parameters(unet.clone(), &mut |found, parameter| {
                if found != name {
                    return parameter;
                }
                let [entries] = parameter.dims();
                parameter + Init::new(9, &device()).normal([entries], 0.5)
            });
            let after = values(changed.forward(x.clone(), &t));
            assert!(distance(&before, &after) > 1e-4, "{placement:?}: {name} acts");
        }
    }
}

#[test]
fn folding_gives_the_plain_architecture() {
    let config = small_config();
    let unet = model(&config, 3).with_projection(ProjectionPlacement::Folded).unwrap();
    let folded = unet.fold_projection().unwrap();
    assert_eq!(parameter_shapes(&folded), parameter_shapes(&model(&config, 0)));
    assert_eq!(folded.config(), &config);
}

#[test]
fn the_reference_placement_cannot_be_folded() {
    let unet = model(&small_config(), 0).with_projection(ProjectionPlacement::Block).unwrap();
    assert_eq!(unet.fold_projection().unwrap_err(), ProjectionError::NotFoldable);
}

#[test]
fn matrices_stay_where_they_are() {
    let unet = model(&small_config(), 0).with_projection(ProjectionPlacement::Folded).unwrap();
    let unet = with_random_matrices(unet, 1);
    let matrix = |unet: &UNet2DModel| values(unet.projection[0].val());
    let kept = unet.clone().with_projection(ProjectionPlacement::Folded).unwrap();
    assert_eq!(matrix(&kept), matrix(&unet));
    let (found, wanted) = (ProjectionPlacement::Folded, ProjectionPlacement::Block);
    let error = unet.with_projection(wanted).unwrap_err();
    assert_eq!(error, ProjectionError::AlreadyPlaced { found, wanted });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn folding_changes_nothing(
        seed in 0u64..1000,
        mid in any::<bool>(),
        attention in any::<bool>(),
        layers in 1usize..3,
    ) {
        let mut config = small_config();
        config.mid_block_type = config.mid_block_type.filter(|_| mid);
        config.add_attention = attention;
        config.layers_per_block = layers;
        let unet = model(&config, seed).with_projection(ProjectionPlacement::Folded).unwrap();
        let unet = with_random_matrices(unet, seed + 1);
        let (x, t) = batch(&config, 4, seed + 2);
        let before = values(unet.forward(x.clone(), &t));
        let plain = values(model(&config, seed).forward(x.clone(), &t));
        let after = values(unet.fold_projection().unwrap().forward(x, &t));
        prop_assert!(distance(&before, &plain) > 1e-4, "the matrices act");
        let largest = before.iter().fold(1f32, |max, y| max.max(y.abs()));
        prop_assert!(distance(&before, &after) <= 1e-5 * largest);
    }
}
