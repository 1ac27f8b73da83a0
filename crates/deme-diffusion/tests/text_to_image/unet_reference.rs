//! Outputs and gradients of diffusers' `UNet2DConditionModel` on the same weights.

use super::fixtures::{read, sd_more, sd_tiny};
use super::{assert_close, device, distance, integers, tensor, values};
use deme_diffusion::{UNet2DConditionConfig, UNet2DConditionModel};
use deme_merge::StateDict;
use deme_nn::{Gradients, Init, load_state_dict, with_gradients};
use std::path::Path;

fn unet(folder: &Path) -> UNet2DConditionModel {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = UNet2DConditionConfig::from_json(&text).unwrap();
    let model = UNet2DConditionModel::new(&config, &mut Init::new(0, &device())).unwrap();
    load_state_dict(model, &StateDict::load(folder).unwrap()).unwrap()
}

#[test]
fn the_output_of_the_tiny_stable_diffusion_agrees() {
    let io = read(&sd_tiny(), "io.safetensors");
    let of = |name: &str| io.get(name).unwrap();
    let unet = unet(&sd_tiny().join("unet"));
    let (x, hidden_states) = (tensor(of("latents")), tensor(of("text_hidden")));
    let output = unet.forward(x, &integers(of("timesteps")), hidden_states);
    assert_close(output, of("unet_output"), 1e-4, "unet_output");
}

/// Linear projections, numbers of heads, of layers and of transformer blocks per block, scale and shift, ...
#[test]
fn outputs_of_other_configurations_agree() {
    for name in ["unet_linear", "unet_uneven"] {
        let Some(folder) = sd_more(name) else { continue };
        let io = read(&folder, "io.safetensors");
        let of = |name: &str| io.get(name).unwrap();
        let (x, hidden_states) = (tensor(of("sample")), tensor(of("hidden_states")));
        let output = unet(&folder).forward(x, &integers(of("timesteps")), hidden_states);
        assert_close(output, of("output"), 1e-4, name);
    }
}

#[test]
fn gradients_agree_by_name() {
    let Some(folder) = sd_more("unet_linear") else { return };
    let io = read(&folder, "io.safetensors");
    let reference = read(&folder, "grads.safetensors");
    let live = with_gradients(&unet(&folder));
    let output = live.forward(
        tensor(io.get("sample").unwrap()),
        &integers(io.get("timesteps").unwrap()),
        tensor(io.get("hidden_states").unwrap()),
    );
    let loss = (output - tensor::<4>(reference.get("__noise").unwrap())).square().mean();
    let gradients = Gradients::of(&loss, &live).to_state_dict();
    let expected_loss = reference.get("__loss").unwrap().to_f32().unwrap();
    assert!(distance(&values(loss), &expected_loss) <= 1e-4);

    let expected_names: Vec<&str> =
        reference.names().filter(|name| !name.starts_with("__")).collect();
    assert_eq!(gradients.names().collect::<Vec<_>>(), expected_names);
    let largest = |name: &str| {
        let entries = reference.get(name).unwrap().to_f32().unwrap();
        entries.iter().fold(0f32, |max, entry| max.max(entry.abs()))
    };
    for name in expected_names {
        let (found, expected) = (gradients.get(name).unwrap(), reference.get(name).unwrap());
        assert_eq!(found.shape(), expected.shape(), "{name}");
        let off = distance(&found.to_f32().unwrap(), &expected.to_f32().unwrap());
        assert!(off <= 1e-3 * largest(name), "{name} off by {off} of {}", largest(name));
    }
}
