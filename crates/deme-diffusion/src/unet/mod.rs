//! The noise predictor of the DDPM models: diffusers' `UNet2DModel`.
//!
//! Struct and field names are diffusers', so a checkpoint's key `down_blocks.0.resnets.1.conv1.weight` is read
//! off the code. Not here: reading and writing checkpoints, schedules, sampling.

pub(crate) mod attention;
pub(crate) mod channel_projection;
pub(crate) mod config;
pub(crate) mod down;
pub(crate) mod mid;
pub(crate) mod resnet;
mod time_embedding;
mod up;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, GroupNorm, Init};
use rayon::prelude::*;

use crate::denoiser::Denoiser;
use crate::gradient_checkpointing::{Segment, Segmented, segments_of};
use crate::image_shards::{image_shards, shard};
use attention::AttentionShape;
use channel_projection::{BlockProjection, folded, identities, last_conv};

pub use attention::Attention;
pub use channel_projection::{ProjectionError, ProjectionPlacement};
pub use config::{
    DownBlockType, MidBlockType, SampleSize, TimeScaleShift, UNet2DConfig, UNetConfigError,
    UpBlockType,
};
pub use down::DownBlock2D;
pub use mid::UNetMidBlock2D;
pub use resnet::{Downsample2D, ResnetBlock2D, Upsample2D};
pub use time_embedding::{TimestepEmbedding, sinusoidal_embedding};
pub use up::UpBlock2D;

/// The UNet. Parameter names are diffusers', plus `projection.0 ..` for the channel projection's matrices.
#[derive(Module, Debug)]
pub struct UNet2DModel {
    /// 3x3, from the image's channels to `block_out_channels[0]`.
    pub conv_in: Conv2d,
    /// The time embedding.
    pub time_embedding: TimestepEmbedding,
    /// From the full resolution down.
    pub down_blocks: Vec<DownBlock2D>,
    /// At the lowest resolution.
    pub mid_block: Option<UNetMidBlock2D>,
    /// From the lowest resolution up.
    pub up_blocks: Vec<UpBlock2D>,
    /// Norm before the output.
    pub conv_norm_out: GroupNorm,
    /// 3x3, to the output's channels.
    pub conv_out: Conv2d,
    /// `[C, C]` per down block, mid block and up block; empty without channel projection.
    pub projection: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    config: UNet2DConfig,
}

impl UNet2DModel {
    /// A network with PyTorch's default initialisation. Projection matrices are the identity.
    ///
    /// # Errors
    /// Whatever [`UNet2DConfig::check`] refuses.
    pub fn new(config: &UNet2DConfig, init: &mut Init) -> Result<Self, UNetConfigError> {
        config.check()?;
        let first = config.block_out_channels[0];
        let blocks = config.block_out_channels.len();
        let same = ConvGeometry::same(3);
        let model = Self {
            conv_in: Conv2d::new(config.in_channels, first, 3, same, init),
            time_embedding: TimestepEmbedding::new(first, config.time_embed_dim(), init),
            down_blocks: (0..blocks).map(|i| DownBlock2D::new(i, config, init)).collect(),
            mid_block: config.mid_block_type.map(|_| mid_block(config, init)),
            up_blocks: (0..blocks).map(|i| UpBlock2D::new(i, config, init)).collect(),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first, config.norm_eps, init),
            conv_out: Conv2d::new(first, config.out_channels, 3, same, init),
            projection: Vec::new(),
            config: UNet2DConfig {
                channel_projection: ProjectionPlacement::None,
                ..config.clone()
            },
        };
        Ok(model
            .with_projection(config.channel_projection)
            .expect("a model without projections takes any"))
    }

    /// The configuration, with the present placement of the channel projection.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.conv_in.weight.val().device()
    }

    /// Adds identity matrices at `placement`, which changes no output. A model that has matrices there already
    /// keeps them.
    ///
    /// # Errors
    /// [`ProjectionError::AlreadyPlaced`] when the model's matrices act elsewhere.
    pub fn with_projection(
        mut self,
        placement: ProjectionPlacement,
    ) -> Result<Self, ProjectionError> {
        let found = self.config.channel_projection;
        if found == placement {
            return Ok(self);
        }
        if !found.is_none() {
            return Err(ProjectionError::AlreadyPlaced { found, wanted: placement });
        }
        let device = self.device();
        let down = self.config.block_out_channels.iter().copied();
        let mid = self.mid_block.as_ref().map(|_| self.config.mid_channels());
        let up = down.clone().rev();
        self.projection = identities(down.chain(mid).chain(up), &device);
        self.config.channel_projection = placement;
        Ok(self)
    }

    /// Folds the matrices into the convolutions they follow: `W (K x + b) = (W K) x + W b`. The result has the
    /// architecture of the model without projections and gives the same outputs; a model without
    /// projections comes back unchanged.
    ///
    /// # Errors
    /// [`ProjectionError::NotFoldable`] for [`ProjectionPlacement::Block`].
    pub fn fold_projection(mut self) -> Result<Self, ProjectionError> {
        match self.config.channel_projection {
            ProjectionPlacement::None => return Ok(self),
            ProjectionPlacement::Block => return Err(ProjectionError::NotFoldable),
            ProjectionPlacement::Folded => {}
        }
        let down = self.down_blocks.iter_mut().map(|block| {
            let downsampler = block.downsamplers.last_mut().map(|sampler| &mut sampler.conv);
            last_conv(downsampler, &mut block.resnets)
        });
        let mid = self.mid_block.iter_mut().map(|block| last_conv(None, &mut block.resnets));
        let up = self.up_blocks.iter_mut().map(|block| {
            let upsampler = block.upsamplers.last_mut().map(|sampler| &mut sampler.conv);
            last_conv(upsampler, &mut block.resnets)
        });
        for (conv, matrix) in down.chain(mid).chain(up).zip(std::mem::take(&mut self.projection)) {
            *conv = folded(conv, matrix.val());
        }
        self.config.channel_projection = ProjectionPlacement::None;
        Ok(self)
    }

    /// The raw output for noisy images `x` at timesteps `t`, one per image.
    ///
    /// # Shapes
    /// x: `[B, in_channels, H, W]`, H and W multiples of `2^(blocks - 1)`
    /// (see [`UNet2DConfig::check_image_shape`]); t: B; returns `[B, out_channels, H, W]`.
    ///
    /// # Panics
    /// When x has another shape or t another length.
    pub fn forward(&self, x: Tensor<4>, t: &[usize]) -> Tensor<4> {
        let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
        self.forward_between(x, &t)
    }

    /// As [`forward`](Self::forward), at timesteps that may lie between two of training.
    pub fn forward_between(&self, x: Tensor<4>, t: &[f64]) -> Tensor<4> {
        self.run(x, t, &())
    }
}

impl Segmented for UNet2DModel {
    type Condition = ();

    fn segments(&self) -> Vec<Segment> {
        let down = self.down_blocks.iter().map(|block| block.layers());
        let mid = self.mid_block.as_ref().map(|block| block.layers());
        segments_of(down, mid, self.up_blocks.iter().map(|block| block.layers()))
    }

    fn first(&self, x: Tensor<4>, t: &[f64], (): &()) -> (Tensor<4>, Tensor<2>) {
        let [b, c, h, w] = x.dims();
        assert_eq!(t.len(), b, "one timestep per image");
        if let Err(error) = self.config.check_image_shape([c, h, w]) {
            panic!("{error}");
        }
        let x = if self.config.center_input_sample { x * 2.0 - 1.0 } else { x };

        let sinusoidal = sinusoidal_embedding(
            t,
            self.config.block_out_channels[0],
            self.config.flip_sin_to_cos,
            self.config.freq_shift,
            &x.device(),
        );
        let temb_silu = self.time_embedding.forward_silu(sinusoidal);
        (self.conv_in.forward(x), temb_silu)
    }

    fn segment(
        &self,
        segment: Segment,
        x: Tensor<4>,
        temb_silu: &Tensor<2>,
        (): &(),
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        let temb_silu = Some(temb_silu);
        // Matrices stand in the order down, mid, up.
        let projection = |number| {
            BlockProjection::new(self.config.channel_projection, self.projection.get(number))
        };
        let (down, mid) = (self.down_blocks.len(), self.mid_block.iter().len());
        match segment {
            Segment::Down { block: i, layer } => {
                let block = &self.down_blocks[i];
                block.layer(layer, x, temb_silu, &projection(i), skips)
            }
            Segment::Mid { layer } => {
                let block =
                    self.mid_block.as_ref().expect("`segments` names blocks that are there");
                block.layer(layer, x, temb_silu, &projection(down))
            }
            Segment::Up { block: i, layer } => {
                let block = &self.up_blocks[i];
                block.layer(layer, x, temb_silu, &projection(down + mid + i), skips)
            }
        }
    }

    fn last(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward_normalised(&self.conv_norm_out, x)
    }
}

impl Denoiser for UNet2DModel {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
        self.predict_between(x_t, &t)
    }

    /// The parts of a batch run at the same time (see [`image_shards`]).
    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        let shards = image_shards(&x_t);
        if shards.len() == 1 {
            // On a worker thread: from outside, each layer would wait for one to wake up.
            return rayon::scope(|_| self.forward_between(x_t, t));
        }
        let outputs = shards.into_par_iter().map(|range| {
            let x_t = shard(&x_t, &range);
            self.forward_between(x_t, &t[range])
        });
        Tensor::cat(outputs.collect(), 0)
    }
}

fn mid_block(config: &UNet2DConfig, init: &mut Init) -> UNetMidBlock2D {
    let channels = config.mid_channels();
    let output_scale_factor = config.mid_block_scale_factor;
    let attention = AttentionShape {
        channels,
        head_dim: config.attention_head_dim,
        norm_groups: config.mid_attention_groups(),
        norm_eps: config.norm_eps,
        output_scale_factor,
    };
    let attention = config.add_attention.then_some(&attention);
    UNetMidBlock2D::new(channels, &config.resnet_shape(output_scale_factor), attention, init)
}
