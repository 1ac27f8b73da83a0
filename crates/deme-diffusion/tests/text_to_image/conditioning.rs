//! The condition: bound in, per image, in parts.

use super::{batch, device, distance, model, small_config, values};
use burn::tensor::Tensor;
use deme_diffusion::{Condition, ConditionalDenoiser, Conditioned, Denoiser, RangeEnsemble};
use deme_nn::Init;

#[test]
fn the_hidden_states_matter_and_each_image_sees_its_own() {
    let config = small_config();
    let unet = model(&config, 1);
    let (x, t, states) = batch(&config, 4, 2);
    let together = values(unet.predict(x.clone(), &t, states.clone()));
    let swapped = values(unet.predict(x.clone(), &t, states.clone().flip([0])));
    assert!(distance(&together, &swapped) > 1e-4);
    let alone = |i: usize| {
        let x = x.clone().narrow(0, i, 1);
        values(unet.predict(x, &t[i..=i], states.part(&(i..i + 1))))
    };
    assert_eq!(together, (0..2).flat_map(alone).collect::<Vec<f32>>());
}

#[test]
fn a_large_batch_in_parts_gives_the_same_bytes() {
    let config = small_config();
    let unet = model(&config, 3);
    let mut init = Init::new(4, &device());
    let (x, states) = (init.normal([19, 1, 8, 8], 1.0), init.normal([19, 3, 6], 1.0));
    let t: Vec<usize> = (0..19).map(|i| i * 50).collect();
    let together = values(unet.predict(x.clone(), &t, states.clone()));
    assert_eq!(together, values(unet.forward(x, &t, states)));
}

#[test]
fn a_bound_condition_makes_a_denoiser_of_a_unet_and_of_an_ensemble() {
    let config = small_config();
    let (x, _, states) = batch(&config, 4, 2);
    let experts = [5, 6].map(|seed| model(&config, seed));
    let t = [100, 900];
    let one = |expert: usize, i: usize| {
        let (x, states) = (x.clone().narrow(0, i, 1), states.part(&(i..i + 1)));
        values(experts[expert].forward(x, &t[i..=i], states))
    };
    let ensemble = RangeEnsemble::new(experts.to_vec(), 1000).unwrap();
    let bound = Conditioned { denoiser: &ensemble, hidden_states: states.clone() };
    let denoiser: &dyn Denoiser = &bound;
    assert_eq!(values(denoiser.predict(x.clone(), &t)), [one(0, 0), one(1, 1)].concat());

    // One prompt for all images.
    let bound = Conditioned { denoiser: &experts[0], hidden_states: states.part(&(0..1)) };
    let repeated = Tensor::cat(vec![states.part(&(0..1)); 2], 0);
    let expected = values(experts[0].forward(x.clone(), &t, repeated));
    assert_eq!(values(bound.predict(x.clone(), &t)), expected);
}

#[test]
fn a_time_between_two_timesteps_is_taken_as_it_is() {
    let config = small_config();
    let unet = model(&config, 1);
    let (x, _, states) = batch(&config, 4, 2);
    let at = |t: f64| values(unet.predict_between(x.clone(), &[t, t], states.clone()));
    assert_eq!(at(500.0), values(unet.predict(x.clone(), &[500, 500], states.clone())));
    let [before, between, after] = [500.0, 500.5, 501.0].map(at);
    assert!(distance(&before, &between) > 0.0 && distance(&between, &after) > 0.0);
}

#[test]
#[should_panic(expected = "one sequence of hidden states per image")]
fn a_sequence_per_image_is_required() {
    let config = small_config();
    let (x, t, states) = batch(&config, 4, 0);
    model(&config, 0).forward(x, &t, states.part(&(0..1)));
}
