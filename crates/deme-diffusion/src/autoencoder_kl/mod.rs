//! The autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`, images to latents and back.
//!
//! Kingma and Welling 2014 (arXiv 1312.6114) for the distribution of the latents, Rombach et al. 2022 (arXiv
//! 2112.10752, section 3.1) for the network. Struct and field names are diffusers'. Images are in `[-1, 1]`. The
//! diffusion model works on **scaled latents**: latents times [`AutoencoderKlConfig::scaling_factor`].
//!
//! Images go through one at a time, which changes no bit and keeps the memory that of one image; attention in
//! the mid block never holds the scores of all pairs of pixels (`deme_kernels::attention`).
//! Not here: its training.

mod config;
mod decoder;
mod encoder;
mod tiling;

use burn::module::Module;
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, Init};

use crate::model_config::ModelConfigError;
use crate::unet::UNetMidBlock2D;
use crate::unet::attention::AttentionShape;
use tiling::in_tiles;

pub use config::{AutoencoderKlConfig, DecoderBlockType, EncoderBlockType};
pub use decoder::{Decoder, UpDecoderBlock2D};
pub use encoder::{DownEncoderBlock2D, Encoder};

/// Images to latents and back. Parameter names are diffusers'.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    /// Images to twice the latents' channels.
    pub encoder: Encoder,
    /// Latents to images.
    pub decoder: Decoder,
    /// 1x1, behind the encoder.
    pub quant_conv: Option<Conv2d>,
    /// 1x1, before the decoder.
    pub post_quant_conv: Option<Conv2d>,
    #[module(skip)]
    config: AutoencoderKlConfig,
}

/// The latents of images: independent normal distributions.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// `[B, latent_channels, h, w]`.
    pub mean: Tensor<4>,
    /// The logarithm of the variance, in [-30, 20]; `[B, latent_channels, h, w]`.
    pub log_variance: Tensor<4>,
}

impl LatentDistribution {
    /// `mean + exp(log_variance / 2) noise`.   (Kingma and Welling 2014, section 2.4)
    ///
    /// # Shapes
    /// noise: standard normal, as the mean; returns the same.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * noise
    }
}

impl AutoencoderKl {
    /// A network with PyTorch's default initialisation.
    ///
    /// # Errors
    /// Whatever [`AutoencoderKlConfig::check`] refuses.
    pub fn new(config: &AutoencoderKlConfig, init: &mut Init) -> Result<Self, ModelConfigError> {
        config.check()?;
        let latents = config.latent_channels;
        let pointwise = |channels: usize, init: &mut Init| {
            Conv2d::new(channels, channels, 1, ConvGeometry::same(1), init)
        };
        Ok(Self {
            encoder: Encoder::new(config, init),
            decoder: Decoder::new(config, init),
            quant_conv: config.use_quant_conv.then(|| pointwise(2 * latents, init)),
            post_quant_conv: config.use_post_quant_conv.then(|| pointwise(latents, init)),
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The distribution of the images' latents, not scaled.
    ///
    /// # Shapes
    /// images: `[B, in_channels, H, W]` in `[-1, 1]`, H and W multiples of
    /// [`AutoencoderKlConfig::downscaling`]; the latents are `[B, latent_channels, H / f, W / f]`.
    ///
    /// # Panics
    /// When images have another shape (see [`AutoencoderKlConfig::latent_shape`]).
    pub fn encode(&self, images: Tensor<4>) -> LatentDistribution {
        self.check_images(&images);
        self.distribution(one_by_one(images, |image| self.moments(image)))
    }

    /// Images of latents that are not scaled. Nothing is clamped.
    ///
    /// # Shapes
    /// latents: `[B, latent_channels, h, w]`; returns `[B, out_channels, f h, f w]`, about in `[-1, 1]`.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        one_by_one(latents, |latents| self.decode_at_once(latents))
    }

    /// As [`Self::encode`], in tiles of the training size ([`AutoencoderKlConfig::sample_size`]) that overlap
    /// by a quarter, as diffusers' `enable_vae_tiling`. Not exact; an image no larger than a tile is.
    pub fn tiled_encode(&self, images: Tensor<4>) -> LatentDistribution {
        self.check_images(&images);
        let (side, latent_side) = self.tile_sides();
        self.distribution(one_by_one(images, |image| {
            if fits(&image, side) {
                return self.moments(image);
            }
            in_tiles(image, side, latent_side, |tile| self.moments(tile))
        }))
    }

    /// As [`Self::decode`], in tiles of the training size that overlap by a quarter, as diffusers'
    /// `enable_vae_tiling`. Not exact; latents no larger than a tile are.
    pub fn tiled_decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let (side, latent_side) = self.tile_sides();
        one_by_one(latents, |latents| {
            if fits(&latents, latent_side) {
                return self.decode_at_once(latents);
            }
            in_tiles(latents, latent_side, side, |tile| self.decode_at_once(tile))
        })
    }

    /// What a diffusion model works on: `scaling_factor latents`.
    pub fn scaled(&self, latents: Tensor<4>) -> Tensor<4> {
        latents * self.config.scaling_factor
    }

    /// The reverse of [`Self::scaled`].
    pub fn unscaled(&self, scaled_latents: Tensor<4>) -> Tensor<4> {
        scaled_latents / self.config.scaling_factor
    }

    /// Mean and log-variance, joined along the channels.
    fn moments(&self, image: Tensor<4>) -> Tensor<4> {
        let moments = self.encoder.forward(image);
        match &self.quant_conv {
            Some(quant_conv) => quant_conv.forward(moments),
            None => moments,
        }
    }

    fn distribution(&self, moments: Tensor<4>) -> LatentDistribution {
        let channels = self.config.latent_channels;
        LatentDistribution {
            mean: moments.clone().narrow(1, 0, channels),
            log_variance: moments.narrow(1, channels, channels).clamp(-30.0, 20.0),
        }
    }

    fn decode_at_once(&self, latents: Tensor<4>) -> Tensor<4> {
        let latents = match &self.post_quant_conv {
            Some(post_quant_conv) => post_quant_conv.forward(latents),
            None => latents,
        };
        self.decoder.forward(latents)
    }

    fn check_images(&self, images: &Tensor<4>) {
        let [_, c, h, w] = images.dims();
        if let Err(error) = self.config.latent_shape([c, h, w]) {
            panic!("{error}");
        }
    }

    /// Sides of a tile in pixels and in latents, as diffusers takes them: of the smaller side.
    fn tile_sides(&self) -> (usize, usize) {
        let side = self.config.sample_size.height_width()[0];
        (side, (side / self.config.downscaling()).max(1))
    }
}

fn fits(x: &Tensor<4>, side: usize) -> bool {
    let [_, _, h, w] = x.dims();
    h <= side && w <= side
}

/// `map` on each image of the batch alone.
fn one_by_one(batch: Tensor<4>, map: impl Fn(Tensor<4>) -> Tensor<4> + Send + Sync) -> Tensor<4> {
    let images = batch.dims()[0];
    // On a worker thread: from outside, each layer would wait for one to wake up.
    let mapped = rayon::scope(|_| {
        (0..images).map(|i| map(batch.clone().narrow(0, i, 1))).collect::<Vec<_>>()
    });
    Tensor::cat(mapped, 0)
}

fn mid_block(config: &AutoencoderKlConfig, init: &mut Init) -> UNetMidBlock2D {
    let resnet = config.resnet_shape();
    let channels = config.mid_channels();
    let attention = AttentionShape {
        channels,
        head_dim: None,
        norm_groups: Some(resnet.norm_groups),
        norm_eps: resnet.norm_eps,
        output_scale_factor: 1.0,
    };
    let attention = config.mid_block_add_attention.then_some(&attention);
    UNetMidBlock2D::new(channels, &resnet, attention, init)
}
