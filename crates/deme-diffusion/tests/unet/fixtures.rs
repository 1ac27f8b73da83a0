//! Outputs and gradients of diffusers' network on the same weights.

use super::reference::cases;
use super::{device, distance, tensor, values};
use deme_diffusion::ProjectionPlacement;
use deme_diffusion::checkpoint::load_pipeline;
use deme_merge::StateDict;
use deme_nn::{Gradients, load_state_dict, to_state_dict, with_gradients};

const OUTPUT_TOLERANCE: f32 = 1e-4;
const GRADIENT_TOLERANCE: f32 = 1e-3;

#[test]
fn outputs_agree() {
    for case in cases() {
        let unet = load_pipeline(case.folder.to_str().unwrap(), &device()).unwrap().unet;
        let output = unet.forward(tensor(case.io.get("sample").unwrap()), &case.timesteps());
        let expected = case.io.get("output").unwrap();
        assert_eq!(output.dims(), expected.shape());
        let off = distance(&values(output), &expected.to_f32().unwrap());
        assert!(off <= OUTPUT_TOLERANCE, "{}: off by {off}", case.name());
    }
}

#[test]
fn gradients_agree_by_name() {
    for case in cases() {
        let reference = case.read("grads.safetensors");
        let unet = load_pipeline(case.folder.to_str().unwrap(), &device()).unwrap().unet;
        let live = with_gradients(&unet);
        let output = live.forward(tensor(case.io.get("sample").unwrap()), &case.timesteps());
        let noise = tensor::<4>(reference.get("__noise").unwrap());
        let loss = (output - noise).square().mean();
        let gradients = Gradients::of(&loss, &live).to_state_dict();

        let expected_loss = reference.get("__loss").unwrap().to_f32().unwrap();
        let off = distance(&values(loss), &expected_loss);
        assert!(off <= OUTPUT_TOLERANCE, "{}: loss off by {off}", case.name());

        let names = |name: &&str| !name.starts_with("__");
        let expected_names: Vec<&str> = reference.names().filter(names).collect();
        assert_eq!(gradients.names().collect::<Vec<_>>(), expected_names);
        // Some gradients are zero but for rounding: that of a key's bias (the softmax does not see it), and
        // that of a shift right before a norm with one channel per group.
        let all = expected_names.iter().map(|name| largest(&reference, name));
        let rounding = 1e-6 * all.fold(0.0, f32::max);
        for name in expected_names {
            let (found, expected) = (gradients.get(name).unwrap(), reference.get(name).unwrap());
            assert_eq!(found.shape(), expected.shape(), "{}: {name}", case.name());
            let off = distance(&found.to_f32().unwrap(), &expected.to_f32().unwrap());
            let largest = largest(&reference, name);
            let agrees = off <= GRADIENT_TOLERANCE * largest;
            let both_zero = largest <= rounding && off <= rounding;
            assert!(agrees || both_zero, "{}: {name} off by {off} of {largest}", case.name());
        }
    }
}

/// The largest entry by magnitude.
fn largest(state: &StateDict, name: &str) -> f32 {
    let entries = state.get(name).unwrap().to_f32().unwrap();
    entries.iter().fold(0.0, |max, entry| max.max(entry.abs()))
}

#[test]
fn projected_outputs_agree() {
    let mut projected = 0;
    for case in cases() {
        if !case.folder.join("projected.safetensors").is_file() {
            continue;
        }
        projected += 1;
        let reference = case.read("projected.safetensors");
        let unet = load_pipeline(case.folder.to_str().unwrap(), &device()).unwrap().unet;
        let unet = unet.with_projection(ProjectionPlacement::Block).unwrap();
        let mut state = to_state_dict(&unet);
        for (name, matrix) in reference.iter().filter(|(name, _)| name.starts_with("projection.")) {
            assert!(state.insert(name.to_owned(), matrix.clone()).is_some(), "{name} is ours too");
        }
        let unet = load_state_dict(unet, &state).unwrap();
        let output = unet.forward(tensor(case.io.get("sample").unwrap()), &case.timesteps());
        let expected = reference.get("output").unwrap().to_f32().unwrap();
        let off = distance(&values(output), &expected);
        assert!(off <= OUTPUT_TOLERANCE, "{}: off by {off}", case.name());
    }
    assert!(projected > 0, "there is a reference for the projection");
}
