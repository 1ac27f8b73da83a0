//! The UNet against reference numbers, and diffusers folders in and out.
#![allow(clippy::unwrap_used)]

mod batches;
mod checkpoints;
mod config;
mod fixtures;
mod gradient_checkpointing;
mod projection;
mod reference;

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::{UNet2DConfig, UNet2DModel};
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

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

/// Largest absolute difference; NaN counts as infinite.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}

/// A config of every kind of block, small enough for a test.
fn small_config() -> UNet2DConfig {
    UNet2DConfig::from_json(
        r#"{"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 4,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "attention_head_dim": 4,
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "in_channels": 1, "out_channels": 2}"#,
    )
    .unwrap()
}

fn model(config: &UNet2DConfig, seed: u64) -> UNet2DModel {
    UNet2DModel::new(config, &mut Init::new(seed, &device())).unwrap()
}

/// Images that fit the config, and timesteps.
fn batch(config: &UNet2DConfig, side: usize, seed: u64) -> (Tensor<4>, Vec<usize>) {
    let x = Init::new(seed, &device()).normal([2, config.in_channels, side, side], 1.0);
    (x, vec![7, 950])
}
