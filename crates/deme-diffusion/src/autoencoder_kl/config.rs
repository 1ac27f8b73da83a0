//! The autoencoder's shape, field by field as diffusers' `config.json` holds it.
//!
//! Not here: how a `config.json` is read (`model_config`).

use serde::{Deserialize, Serialize};

use crate::model_config::{ModelConfigError, Network, Off, OnlyAt};
use crate::unet::config::{ResnetChannels, down_resnet_channels};
use crate::unet::resnet::ResnetShape;
use crate::unet::{SampleSize, TimeScaleShift};

const NULL: &[Off] = &[Off::Null];

const NETWORK: Network = Network {
    name: "VAE",
    class: "AutoencoderKL",
    off: &[OnlyAt("latents_mean", NULL), OnlyAt("latents_std", NULL), OnlyAt("shift_factor", NULL)],
};

/// Added to the variance in every group norm of an autoencoder.
pub(super) const NORM_EPS: f64 = 1e-6;

/// Configuration of an [`AutoencoderKl`](super::AutoencoderKl); fields and defaults are those of diffusers'
/// `AutoencoderKL`. Its fields that are not here may only stand at the value that switches them off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the decoded image.
    pub out_channels: usize,
    /// The encoder's blocks, from the full resolution down.
    pub down_block_types: Vec<EncoderBlockType>,
    /// The decoder's blocks, from the lowest resolution up; as many as the encoder's.
    pub up_block_types: Vec<DecoderBlockType>,
    /// Channels of each block of the encoder.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per block of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Only `silu`, also called `swish`.
    pub act_fn: String,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Height and width in pixels of the images it was trained on, and of a tile
    /// (see [`AutoencoderKl::tiled_decode`](super::AutoencoderKl::tiled_decode)).
    pub sample_size: SampleSize,
    /// What latents are multiplied by, so that their variance is about 1.
    pub scaling_factor: f64,
    /// Run in f32 even in a half-precision pipeline. It always runs in f32 here, so both values mean the same.
    pub force_upcast: bool,
    /// A 1x1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention in both mid blocks.
    pub mid_block_add_attention: bool,
}

/// A block of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncoderBlockType {
    /// Residual blocks.
    DownEncoderBlock2D,
}

/// A block of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecoderBlockType {
    /// Residual blocks.
    UpDecoderBlock2D,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize::Square(32),
            scaling_factor: 0.18215,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// The autoencoder of Stable Diffusion 1 (and 2): 84 million parameters, an eighth of the resolution.
    pub fn stable_diffusion_1() -> Self {
        Self {
            down_block_types: vec![EncoderBlockType::DownEncoderBlock2D; 4],
            up_block_types: vec![DecoderBlockType::UpDecoderBlock2D; 4],
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            sample_size: SampleSize::Square(512),
            ..Self::default()
        }
    }

    /// Reads `config.json`. Fields that are absent (configs of old diffusers versions) have diffusers'
    /// defaults; keys that begin with `_` are notes and are skipped.
    ///
    /// # Errors
    /// [`ModelConfigError`] for text that is no JSON object, another class, an unknown field, a field that is
    /// not implemented and not off, and everything [`Self::check`] refuses.
    pub fn from_json(text: &str) -> Result<Self, ModelConfigError> {
        let config: Self = NETWORK.read(text)?;
        config.check()?;
        Ok(config)
    }

    /// `config.json` as diffusers writes it.
    pub fn to_json(&self) -> String {
        NETWORK.write(self)
    }

    /// Checks that the fields fit together and stay within what is implemented.
    ///
    /// # Errors
    /// [`ModelConfigError::Unsupported`] or [`ModelConfigError::Invalid`], naming the field.
    pub fn check(&self) -> Result<(), ModelConfigError> {
        NETWORK.only("act_fn", &self.act_fn.to_lowercase(), &["silu", "swish"])?;
        let blocks = self.block_out_channels.len();
        if blocks == 0 {
            let reason = "is empty; give at least one block".to_owned();
            return Err(NETWORK.invalid("block_out_channels", reason));
        }
        for (field, found) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if found != blocks {
                let reason = format!(
                    "has {found} entries, but block_out_channels has {blocks}; give one per block"
                );
                return Err(NETWORK.invalid(field, reason));
            }
        }
        NETWORK.nonzero([
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("layers_per_block", self.layers_per_block),
            ("norm_num_groups", self.norm_num_groups),
            ("block_out_channels", self.block_out_channels.iter().copied().min().unwrap_or(0)),
            ("sample_size", self.sample_size.least()),
        ])?;
        if !(self.scaling_factor > 0.0 && self.scaling_factor.is_finite()) {
            let reason = format!("is {}; it must be above 0", self.scaling_factor);
            return Err(NETWORK.invalid("scaling_factor", reason));
        }
        let channels = self.block_out_channels.iter().copied();
        NETWORK.groups("norm_num_groups", self.norm_num_groups, channels)
    }

    /// How many pixels along each side one latent stands for.
    pub fn downscaling(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// `[C, H, W]` of the latents of an image of that shape.
    ///
    /// # Errors
    /// [`ModelConfigError::ImageShape`] for other channels, and for a height or width that is not a multiple of
    /// [`Self::downscaling`].
    pub fn latent_shape(&self, [c, h, w]: [usize; 3]) -> Result<[usize; 3], ModelConfigError> {
        let (channels, factor) = (self.in_channels, self.downscaling());
        let reason = if c != channels {
            format!("the autoencoder takes {channels} channels")
        } else if h == 0 || w == 0 || h % factor != 0 || w % factor != 0 {
            format!("height and width must be multiples of {factor}")
        } else {
            return Ok([self.latent_channels, h / factor, w / factor]);
        };
        Err(ModelConfigError::ImageShape { found: [c, h, w], reason })
    }

    pub(super) fn mid_channels(&self) -> usize {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }

    pub(super) fn resnet_shape(&self) -> ResnetShape {
        ResnetShape {
            norm_groups: self.norm_num_groups,
            norm_eps: NORM_EPS,
            time_embed_dim: None,
            time_scale_shift: TimeScaleShift::Default,
            output_scale_factor: 1.0,
        }
    }

    /// The residual blocks of the encoder's block `i`.
    pub(super) fn encoder_channels(&self, i: usize) -> ResnetChannels {
        down_resnet_channels(&self.block_out_channels, self.layers_per_block, i)
    }

    /// The residual blocks of the decoder's block `i`, counted from the lowest resolution.
    pub(super) fn decoder_channels(&self, i: usize) -> ResnetChannels {
        let reversed: Vec<usize> = self.block_out_channels.iter().rev().copied().collect();
        down_resnet_channels(&reversed, self.layers_per_block + 1, i)
    }
}
