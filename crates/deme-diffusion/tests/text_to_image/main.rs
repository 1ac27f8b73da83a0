//! The networks of Stable Diffusion against reference numbers, and their folders in and out.
#![allow(clippy::unwrap_used)]

mod conditioning;
mod fixtures;
mod gradient_checkpointing;
mod guided_image;
mod pipeline;
mod single_file;
mod unet_config;
mod unet_projection;
mod unet_reference;
mod vae;

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::{UNet2DConditionConfig, UNet2DConditionModel};
use deme_merge::StoredTensor;
use deme_nn::Init;

fn device() -> Device {
    Device::flex()
}

/// A stored tensor on the device.
fn tensor<const D: usize>(stored: &StoredTensor) -> Tensor<D> {
    let data = TensorData::new(stored.to_f32().unwrap(), stored.shape().to_vec());
    Tensor::from_data(data, &device())
}

fn integers(stored: &StoredTensor) -> Vec<usize> {
    stored.to_i64().unwrap().into_iter().map(|t| usize::try_from(t).unwrap()).collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

/// Largest absolute difference; NaN counts as infinite.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}

/// Asserts shape and values.
fn assert_close<const D: usize>(
    found: Tensor<D>,
    expected: &StoredTensor,
    within: f32,
    what: &str,
) {
    assert_eq!(found.dims().as_slice(), expected.shape(), "{what}");
    let off = distance(&values(found), &expected.to_f32().unwrap());
    assert!(off <= within, "{what}: off by {off}");
}

/// A config of every kind of block, small enough for a test.
fn small_config() -> UNet2DConditionConfig {
    UNet2DConditionConfig::from_json(
        r#"{"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "in_channels": 1, "out_channels": 2,
            "cross_attention_dim": 6}"#,
    )
    .unwrap()
}

fn model(config: &UNet2DConditionConfig, seed: u64) -> UNet2DConditionModel {
    UNet2DConditionModel::new(config, &mut Init::new(seed, &device())).unwrap()
}

/// Latents that fit the config, timesteps, and hidden states of five tokens.
fn batch(
    config: &UNet2DConditionConfig,
    side: usize,
    seed: u64,
) -> (Tensor<4>, Vec<usize>, Tensor<3>) {
    let mut init = Init::new(seed, &device());
    let x = init.normal([2, config.in_channels, side, side], 1.0);
    let hidden_states = init.normal([2, 5, config.cross_attention_dim.at(0)], 1.0);
    (x, vec![7, 950], hidden_states)
}
