//! Gradients of recomputed layers are those of kept ones, under a text.

use super::{batch, device, distance, model, small_config, values};
use burn::tensor::Tensor;
use deme_diffusion::{NoisePredictor, ProjectionPlacement};
use deme_nn::{Gradients, Init, map_parameters, parameter_shapes, with_gradients};

#[test]
fn gradients_are_the_same_in_every_placement() {
    use ProjectionPlacement::{Block, Folded, None};
    for (placement, with_mid) in [(None, true), (Block, true), (Folded, true), (Block, false)] {
        let mut config = small_config();
        config.mid_block_type = config.mid_block_type.filter(|_| with_mid);
        let mut init = Init::new(4, &device());
        let unet = model(&config, 3).with_projection(placement).unwrap();
        let unet = map_parameters(unet, &mut |_, parameter| {
            let [entries] = parameter.dims();
            parameter + init.normal([entries], 0.1)
        });
        let (x, t, states) = batch(&config, 8, 5);
        let weights = Init::new(6, &device()).normal([2, 2, 8, 8], 1.0);
        let loss = |output: Tensor<4>| (output.clone() * weights.clone() + output.square()).mean();

        let live = with_gradients(&unet);
        let output = live.output(x.clone(), &t, states.clone());
        let expected = Gradients::of(&loss(output), &live);
        let mut seen = Vec::new();
        let found = unet.checkpointed_gradients(x.clone(), &t, states.clone(), |output| {
            seen = values(output.clone().without_autodiff());
            loss(output)
        });
        assert_eq!(seen, values(unet.forward(x, &t, states)), "the output");

        let norm = expected.norm() as f32;
        for parameter in parameter_shapes(&unet) {
            let name = &parameter.name;
            let of = |gradients: &Gradients| values(gradients.get(name).unwrap().clone());
            let (expected, found) = (of(&expected), of(&found));
            let largest = expected.iter().fold(0f32, |max, g| max.max(g.abs()));
            let learns = largest > 1e-5 * norm;
            // Attention does not change with what all its scores have in common.
            assert!(learns || name.ends_with("to_k.bias"), "{placement:?}: {name} learns");
            let off = distance(&expected, &found);
            assert!(
                off <= 2e-5 * largest + 1e-8 * norm,
                "{placement:?}: {name}: off by {off} of {largest}"
            );
        }
    }
}
