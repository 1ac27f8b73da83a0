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

#[test]
fn a_time_between_two_timesteps_is_embedded_as_it_is() {
    let model = model(&small_config(), 3);
    let x = deme_nn::Init::new(4, &device()).normal([1, 1, 8, 8], 1.0);
    let at = |t: f64| values(model.predict_between(x.clone(), &[t]));
    let [low, middle, high] = [20.0, 20.5, 21.0].map(at);
    assert_eq!(low, values(model.predict(x.clone(), &[20])));
    assert_eq!(high, values(model.predict(x.clone(), &[21])));
    let off =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    // Half a timestep apart from both, about half as far as they are from each other.
    for end in [&low, &high] {
        let part = off(&middle, end) / off(&low, &high);
        assert!((0.4..0.6).contains(&part), "{part}");
    }
}
