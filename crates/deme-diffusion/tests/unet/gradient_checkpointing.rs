//! Gradients of recomputed layers are those of kept ones.

use super::{batch, device, distance, model, small_config, values};
use burn::module::Param;
use burn::tensor::Tensor;
use deme_diffusion::{NoisePredictor, ProjectionPlacement, UNet2DConfig, UNet2DModel};
use deme_nn::{Gradients, Init, map_parameters, parameter_shapes, with_gradients};

/// A model none of whose parameters is special: no bias is zero, no matrix the identity.
fn shaken(config: &UNet2DConfig, placement: ProjectionPlacement) -> UNet2DModel {
    let unet = model(config, 3).with_projection(placement).unwrap();
    let mut init = Init::new(4, &device());
    map_parameters(unet, &mut |_, parameter| {
        let [entries] = parameter.dims();
        parameter + init.normal([entries], 0.1)
    })
}

/// Asserts the same gradients with and without checkpointing, and that the loss sees the same output.
fn assert_same(unet: &UNet2DModel, side: usize) {
    let (x, t) = batch(unet.config(), side, 5);
    let kept = values(unet.forward(x.clone(), &t));
    let weights = Init::new(6, &device()).normal([2, 2, side, side], 1.0);
    let loss = |output: Tensor<4>| (output.clone() * weights.clone() + output.square()).mean();

    let live = with_gradients(unet);
    let expected = Gradients::of(&loss(live.output(x.clone(), &t, ())), &live);
    let mut seen = Vec::new();
    let found = unet.checkpointed_gradients(x, &t, (), |output| {
        seen = values(output.clone().without_autodiff());
        loss(output)
    });
    assert_eq!(seen, kept, "the output");

    let norm = expected.norm() as f32;
    for parameter in parameter_shapes(unet) {
        let name = &parameter.name;
        let of = |gradients: &Gradients| values(gradients.get(name).unwrap().clone());
        let (expected, found) = (of(&expected), of(&found));
        let largest = expected.iter().fold(0f32, |max, g| max.max(g.abs()));
        let learns = largest > 1e-5 * norm;
        // Attention does not change with what all its scores have in common.
        assert!(learns || name.ends_with("to_k.bias"), "{name} learns");
        let off = distance(&expected, &found);
        assert!(off <= 2e-5 * largest + 1e-8 * norm, "{name}: off by {off} of {largest}");
    }
}

#[test]
fn gradients_are_the_same_in_every_placement() {
    use ProjectionPlacement::{Block, Folded, None};
    for placement in [None, Block, Folded] {
        assert_same(&shaken(&small_config(), placement), 8);
    }
}

#[test]
fn gradients_are_the_same_in_other_architectures() {
    let json = |text: &str| {
        let mut config = serde_json::to_value(small_config()).unwrap();
        let changes: serde_json::Value = serde_json::from_str(text).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        UNet2DConfig::from_json(&config.to_string()).unwrap()
    };
    for changes in [
        r#"{"layers_per_block": 2, "add_attention": false, "center_input_sample": true}"#,
        r#"{"mid_block_type": null, "resnet_time_scale_shift": "scale_shift"}"#,
        r#"{"block_out_channels": [4, 4, 8], "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"]}"#,
        r#"{"block_out_channels": [4], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}"#,
    ] {
        assert_same(&shaken(&json(changes), ProjectionPlacement::Block), 8);
    }
}

#[test]
fn a_parameter_that_no_layer_reads_gets_zeros() {
    let mut unet = shaken(&small_config(), ProjectionPlacement::Block);
    let unread = Tensor::ones([3, 3], &device());
    unet.projection.push(Param::from_tensor(unread));
    let (x, t) = batch(unet.config(), 8, 5);
    let gradients = unet.checkpointed_gradients(x, &t, (), |output| output.square().mean());
    let of = |name: &str| values(gradients.get(name).unwrap().clone());
    assert_eq!(of("projection.5"), [0.0; 9]);
    assert!(of("projection.4").iter().any(|g| *g != 0.0));
}

#[test]
#[should_panic(expected = "one timestep per image")]
fn another_number_of_timesteps_is_refused() {
    let (x, _) = batch(&small_config(), 8, 5);
    let unet = model(&small_config(), 0);
    let _ = unet.checkpointed_gradients(x, &[7], (), |output| output.mean());
}
