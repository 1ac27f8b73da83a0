//! A batch in parts.

use deme_diffusion::Denoiser;

use super::{device, model, small_config, values};

#[test]
fn an_image_gives_the_same_bytes_alone_and_in_a_batch_that_runs_in_parts() {
    let model = model(&small_config(), 3);
    let x = deme_nn::Init::new(4, &device()).normal([37, 1, 8, 8], 1.0);
    let t: Vec<usize> = (0..37).map(|i| i * 27).collect();
    let together = values(model.predict(x.clone(), &t));
    assert_eq!(together, values(model.forward(x.clone(), &t)));
    let alone = |i: usize| values::<4>(model.forward(x.clone().narrow(0, i, 1), &t[i..=i]));
    assert_eq!(together, (0..37).flat_map(alone).collect::<Vec<f32>>());
}
