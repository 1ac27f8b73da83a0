//! The channel projection in the conditional UNet, and gradients against finite differences.

use super::{batch, device, distance, model, small_config, values};
use burn::tensor::Tensor;
use deme_diffusion::{NoisePredictor, ProjectionError, ProjectionPlacement, UNet2DConditionModel};
use deme_nn::{Gradients, Init, map_parameters, parameter_shapes, with_gradients};

const PLACEMENTS: [ProjectionPlacement; 2] =
    [ProjectionPlacement::Block, ProjectionPlacement::Folded];

/// The model with some of its parameters changed at random.
fn shaken(
    unet: UNet2DConditionModel,
    seed: u64,
    std: f32,
    which: impl Fn(&str) -> bool,
) -> UNet2DConditionModel {
    let mut init = Init::new(seed, &device());
    map_parameters(unet, &mut |name, parameter| match which(name) {
        true => {
            let [entries] = parameter.dims();
            parameter + init.normal([entries], std)
        }
        false => parameter,
    })
}

fn is_matrix(name: &str) -> bool {
    name.starts_with("projection.")
}

#[test]
fn identity_matrices_change_nothing_at_all() {
    let config = small_config();
    let unet = model(&config, 3);
    let (x, t, states) = batch(&config, 8, 4);
    let before = values(unet.forward(x.clone(), &t, states.clone()));
    for placement in PLACEMENTS {
        let projected = unet.clone().with_projection(placement).unwrap();
        assert_eq!(projected.config().channel_projection, placement);
        let after = values(projected.forward(x.clone(), &t, states.clone()));
        assert_eq!(after, before, "{placement:?}");
    }
}

#[test]
fn there_is_one_matrix_per_block_in_the_order_down_mid_up() {
    let unet = model(&small_config(), 0).with_projection(ProjectionPlacement::Block).unwrap();
    let shapes = parameter_shapes(&unet);
    let found: Vec<_> = shapes
        .iter()
        .filter(|parameter| is_matrix(&parameter.name))
        .map(|parameter| (parameter.name.as_str(), parameter.shape[0]))
        .collect();
    let names = ["projection.0", "projection.1", "projection.2", "projection.3", "projection.4"];
    assert_eq!(found, names.into_iter().zip([4, 8, 8, 8, 4]).collect::<Vec<_>>());
}

/// Behind the block `block` acts on what leaves it, after its transformer; `folded` behind a convolution inside:
/// with matrices other than the identity these are two different functions.
#[test]
fn the_placements_differ_and_folding_changes_nothing() {
    for (seed, without_mid) in [(1, false), (2, true)] {
        let mut config = small_config();
        if without_mid {
            config.mid_block_type = None;
        }
        let (x, t, states) = batch(&config, 4, seed + 2);
        let output =
            |unet: &UNet2DConditionModel| values(unet.forward(x.clone(), &t, states.clone()));
        let plain = output(&model(&config, seed));
        let [block, folded] = PLACEMENTS.map(|placement| {
            let unet = model(&config, seed).with_projection(placement).unwrap();
            shaken(unet, seed + 1, 0.3, is_matrix)
        });
        assert!(distance(&output(&block), &plain) > 1e-3);
        assert!(distance(&output(&folded), &plain) > 1e-3);
        assert!(distance(&output(&folded), &output(&block)) > 1e-3);

        let before = output(&folded);
        let exported = folded.fold_projection().unwrap();
        assert_eq!(parameter_shapes(&exported), parameter_shapes(&model(&config, 0)));
        assert_eq!(exported.config(), &config);
        let largest = before.iter().fold(1f32, |max, y| max.max(y.abs()));
        assert!(distance(&output(&exported), &before) <= 1e-5 * largest);
    }
}

#[test]
fn the_reference_placement_cannot_be_folded_and_matrices_stay_where_they_are() {
    let unet = model(&small_config(), 0).with_projection(ProjectionPlacement::Block).unwrap();
    let (found, wanted) = (ProjectionPlacement::Block, ProjectionPlacement::Folded);
    let error = unet.clone().with_projection(wanted).unwrap_err();
    assert_eq!(error, ProjectionError::AlreadyPlaced { found, wanted });
    assert_eq!(unet.fold_projection().unwrap_err(), ProjectionError::NotFoldable);
}

/// For every parameter tensor the slope of the loss along a random direction, by central differences.
#[test]
fn gradients_agree_with_finite_differences_in_both_placements() {
    let config = small_config();
    let (x, t, states) = batch(&config, 4, 5);
    let weights = Init::new(6, &device()).normal([2, 2, 4, 4], 1.0);
    // Against a fixed random weighting, so that the loss is of order 1 and no gradient vanishes by symmetry.
    let loss = |unet: &UNet2DConditionModel| -> Tensor<1> {
        (unet.output(x.clone(), &t, states.clone()) * weights.clone()).sum()
    };
    for placement in PLACEMENTS {
        let unet = shaken(model(&config, 3), 7, 0.1, |_| true).with_projection(placement).unwrap();
        let unet = shaken(unet, 8, 0.1, is_matrix);
        let live = with_gradients(&unet);
        let gradients = Gradients::of(&loss(&live), &live);
        let mut largest_slope = 0f64;
        for (number, parameter) in parameter_shapes(&unet).into_iter().enumerate() {
            let name = &parameter.name;
            let entries = parameter.shape.iter().product();
            let direction = Init::new(100 + number as u64, &device()).normal([entries], 1.0);
            let length = f64::from(values(direction.clone().square().sum())[0]).sqrt();
            let direction: Tensor<1> = direction / length;
            let gradient = gradients.get(name).unwrap().clone();
            let slope = f64::from(values((gradient * direction.clone()).sum())[0]);
            let at = |step: f64| {
                let moved =
                    map_parameters(unet.clone(), &mut |found, tensor| match found == name {
                        true => tensor + direction.clone() * step,
                        false => tensor,
                    });
                f64::from(values(loss(&moved))[0])
            };
            // Of fourth order: norms of a few pixels bend the loss.
            let step = 5e-3;
            let difference =
                (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
            // f32 losses near 10 leave about 1e-3 of noise in the quotient.
            let off = (slope - difference).abs();
            assert!(off < 0.01 * slope.abs() + 5e-3, "{placement:?} {name}: {slope} {difference}");
            largest_slope = largest_slope.max(slope.abs());
        }
        assert!(largest_slope > 1.0, "the loss depends on the parameters");
        for i in 0..unet.projection.len() {
            let gradient = values(gradients.get(&format!("projection.{i}")).unwrap().clone());
            assert!(gradient.iter().any(|g| g.abs() > 1e-3), "{placement:?}: matrix {i} learns");
        }
    }
}
