//! Small models and pictures for the tests of this crate.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::{
    NoiseSchedule, NoiseScheduleConfig, UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig,
    UNet2DModel, standard_normal,
};
use deme_nn::Init;

use crate::finetune_config::FinetuneConfig;
use crate::training_images::TrainingImages;

pub(crate) const CHANNELS: usize = 3;
pub(crate) const SIZE: usize = 8;

/// Two blocks of 8 and 16 channels, attention in the lower one.
pub(crate) fn tiny_unet_config() -> UNet2DConfig {
    let text = r#"{
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": null,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]
    }"#;
    serde_json::from_str(text).unwrap()
}

pub(crate) fn tiny_unet(seed: u64, device: &Device) -> UNet2DModel {
    UNet2DModel::new(&tiny_unet_config(), &mut Init::new(seed, device)).unwrap()
}

/// Two blocks of 8 and 16 channels under captions of two tokens of width 4.
pub(crate) fn tiny_conditional_unet(seed: u64, device: &Device) -> UNet2DConditionModel {
    let text = r#"{
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2,
        "cross_attention_dim": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]
    }"#;
    let config: UNet2DConditionConfig = serde_json::from_str(text).unwrap();
    UNet2DConditionModel::new(&config, &mut Init::new(seed, device)).unwrap()
}

/// Every technique on, at the size of a test.
pub(crate) fn tiny_config() -> FinetuneConfig {
    FinetuneConfig {
        iterations: 4,
        batch_size: 2,
        gradient_accumulation: 1,
        checkpoint_every: 1,
        log_every: 3,
        ..Default::default()
    }
}

pub(crate) fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap()
}

/// `count` pictures of noise, `[count, 3, 8, 8]`.
pub(crate) fn images(count: usize, seed: u64, device: &Device) -> Tensor<4> {
    let values = standard_normal(seed, 0, count * CHANNELS * SIZE * SIZE);
    Tensor::from_data(TensorData::new(values, [count, CHANNELS, SIZE, SIZE]), device)
}

/// Pictures of clamped noise.
pub(crate) struct Pictures {
    pub count: usize,
    pub size: usize,
    pub fingerprint: String,
}

impl Pictures {
    pub(crate) fn new(count: usize, size: usize) -> Self {
        Self { count, size, fingerprint: format!("{count} pictures of {size}") }
    }
}

impl TrainingImages for Pictures {
    fn len(&self) -> usize {
        self.count
    }

    fn image_shape(&self) -> [usize; 3] {
        [CHANNELS, self.size, self.size]
    }

    fn image_signed(&self, index: usize) -> Vec<f32> {
        assert!(index < self.count);
        let values = standard_normal(77, index as u64, CHANNELS * self.size * self.size);
        values.into_iter().map(|x| (x * 0.5).clamp(-1.0, 1.0)).collect()
    }

    fn condition(&self, _: &[Option<usize>], _: &Device) {}

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// The same, each under a caption's hidden states of its own; zeros without the caption.
pub(crate) struct CaptionedPictures(pub Pictures);

impl TrainingImages<Tensor<3>> for CaptionedPictures {
    fn len(&self) -> usize {
        self.0.count
    }

    fn image_shape(&self) -> [usize; 3] {
        self.0.image_shape()
    }

    fn image_signed(&self, index: usize) -> Vec<f32> {
        self.0.image_signed(index)
    }

    fn condition(&self, pictures: &[Option<usize>], device: &Device) -> Tensor<3> {
        let of = |picture: &Option<usize>| match picture {
            Some(index) => standard_normal(78, *index as u64, 8),
            None => vec![0.0; 8],
        };
        let values: Vec<f32> = pictures.iter().flat_map(of).collect();
        Tensor::from_data(TensorData::new(values, [pictures.len(), 2, 4]), device)
    }

    fn can_be_mirrored(&self) -> bool {
        false
    }

    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }
}

/// Five pictures in turn.
pub(crate) fn in_turn(start: u64, count: usize) -> Vec<usize> {
    (0..count as u64).map(|i| ((start + i) % 5) as usize).collect()
}
