//! The noise predictor of Stable Diffusion: diffusers' `UNet2DConditionModel`.
//!
//! Struct and field names are diffusers', so a checkpoint's key
//! `down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight` is read off the code. Residual blocks, the
//! convolutions that halve and double the resolution, the time embedding and the channel projection are those
//! of [`unet`](crate::unet). Not here: the text encoder, guidance, latents to pictures.

mod attention;
mod config;
mod down;
mod feed_forward;
mod mid;
mod transformer_2d;
mod up;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, GroupNorm, Init};
use rayon::prelude::*;

use crate::denoiser::ConditionalDenoiser;
use crate::gradient_checkpointing::{Segment, Segmented, segments_of};
use crate::image_shards::{image_shards, shard};
use crate::model_config::ModelConfigError;
use crate::unet::channel_projection::{BlockProjection, folded, identities, last_conv};
use crate::unet::{ProjectionError, ProjectionPlacement, TimestepEmbedding, sinusoidal_embedding};

pub use attention::CrossAttention;
pub use config::{
    ConditionDownBlockType, ConditionMidBlockType, ConditionUpBlockType, PerBlock,
    UNet2DConditionConfig,
};
pub use down::CrossAttnDownBlock2D;
pub use feed_forward::{Dropout, FeedForward, Geglu};
pub use mid::UNetMidBlock2DCrossAttn;
pub use transformer_2d::{BasicTransformerBlock, PixelMap, Transformer2DModel};
pub use up::CrossAttnUpBlock2D;

/// The UNet under a condition. Parameter names are diffusers', plus `projection.0 ..` for the channel
/// projection's matrices.
#[derive(Module, Debug)]
pub struct UNet2DConditionModel {
    /// 3x3, from the latents' channels to `block_out_channels[0]`.
    pub conv_in: Conv2d,
    /// The time embedding.
    pub time_embedding: TimestepEmbedding,
    /// From the full resolution down.
    pub down_blocks: Vec<CrossAttnDownBlock2D>,
    /// At the lowest resolution.
    pub mid_block: Option<UNetMidBlock2DCrossAttn>,
    /// From the lowest resolution up.
    pub up_blocks: Vec<CrossAttnUpBlock2D>,
    /// Norm before the output.
    pub conv_norm_out: GroupNorm,
    /// 3x3, to the output's channels.
    pub conv_out: Conv2d,
    /// `[C, C]` per down block, mid block and up block; empty without channel projection.
    pub projection: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    config: UNet2DConditionConfig,
}

impl UNet2DConditionModel {
    /// A network with PyTorch's default initialisation. Projection matrices are the identity.
    ///
    /// # Errors
    /// Whatever [`UNet2DConditionConfig::check`] refuses.
    pub fn new(config: &UNet2DConditionConfig, init: &mut Init) -> Result<Self, ModelConfigError> {
        config.check()?;
        let first = config.block_out_channels[0];
        let blocks = config.block_out_channels.len();
        let same = ConvGeometry::same(3);
        let model = Self {
            conv_in: Conv2d::new(config.in_channels, first, 3, same, init),
            time_embedding: TimestepEmbedding::new(first, config.time_embed_dim(), init),
            down_blocks: (0..blocks).map(|i| CrossAttnDownBlock2D::new(i, config, init)).collect(),
            mid_block: config.mid_block_type.map(|_| UNetMidBlock2DCrossAttn::new(config, init)),
            up_blocks: (0..blocks).map(|i| CrossAttnUpBlock2D::new(i, config, init)).collect(),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first, config.norm_eps, init),
            conv_out: Conv2d::new(first, config.out_channels, 3, same, init),
            projection: Vec::new(),
            config: UNet2DConditionConfig {
                channel_projection: ProjectionPlacement::None,
                ..config.clone()
            },
        };
        Ok(model
            .with_projection(config.channel_projection)
            .expect("a model without projections takes any"))
    }

    /// The configuration, with the present placement of the channel projection.
    pub fn config(&self) -> &UNet2DConditionConfig {
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
        let down = self.config.block_out_channels.iter().copied();
        let mid = self.mid_block.as_ref().and_then(|_| down.clone().last());
        self.projection = identities(down.clone().chain(mid).chain(down.rev()), &self.device());
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

    /// The raw output for noisy latents `x` at timesteps `t`, one per image, given the hidden states of a text
    /// per image.
    ///
    /// # Shapes
    /// x: `[B, in_channels, H, W]`, H and W multiples of `2^(blocks - 1)`
    /// (see [`UNet2DConditionConfig::check_image_shape`]); t: B; hidden_states: `[B, L, cross_attention_dim]`
    /// for any L; returns `[B, out_channels, H, W]`.
    ///
    /// # Panics
    /// When x or hidden_states has another shape or t another length.
    pub fn forward(&self, x: Tensor<4>, t: &[usize], hidden_states: Tensor<3>) -> Tensor<4> {
        self.forward_between(x, &as_times(t), hidden_states)
    }

    /// As [`forward`](Self::forward), at timesteps that may lie between two of training.
    pub fn forward_between(&self, x: Tensor<4>, t: &[f64], hidden_states: Tensor<3>) -> Tensor<4> {
        self.run(x, t, &hidden_states)
    }
}

impl Segmented for UNet2DConditionModel {
    type Condition = Tensor<3>;

    fn segments(&self) -> Vec<Segment> {
        let down = self.down_blocks.iter().map(|block| block.layers());
        let mid = self.mid_block.as_ref().map(|block| block.layers());
        segments_of(down, mid, self.up_blocks.iter().map(|block| block.layers()))
    }

    fn first(&self, x: Tensor<4>, t: &[f64], hidden_states: &Tensor<3>) -> (Tensor<4>, Tensor<2>) {
        let [b, c, h, w] = x.dims();
        assert_eq!(t.len(), b, "one timestep per image");
        assert_eq!(hidden_states.dims()[0], b, "one sequence of hidden states per image");
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
        hidden_states: &Tensor<3>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        // Matrices stand in the order down, mid, up.
        let projection = |number| {
            BlockProjection::new(self.config.channel_projection, self.projection.get(number))
        };
        let (down, mid) = (self.down_blocks.len(), self.mid_block.iter().len());
        match segment {
            Segment::Down { block: i, layer } => {
                let block = &self.down_blocks[i];
                block.layer(layer, x, temb_silu, hidden_states, &projection(i), skips)
            }
            Segment::Mid { layer } => {
                let block =
                    self.mid_block.as_ref().expect("`segments` names blocks that are there");
                block.layer(layer, x, temb_silu, hidden_states, &projection(down))
            }
            Segment::Up { block: i, layer } => {
                let block = &self.up_blocks[i];
                block.layer(layer, x, temb_silu, hidden_states, &projection(down + mid + i), skips)
            }
        }
    }

    fn last(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv_out.forward_normalised(&self.conv_norm_out, x)
    }
}

impl ConditionalDenoiser for UNet2DConditionModel {
    fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        self.predict_between(x_t, &as_times(t), condition)
    }

    /// The parts of a batch run at the same time (see [`image_shards`]).
    fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
        let shards = image_shards(&x_t);
        if shards.len() == 1 {
            // On a worker thread: from outside, each layer would wait for one to wake up.
            return rayon::scope(|_| self.forward_between(x_t, t, condition));
        }
        let outputs = shards.into_par_iter().map(|range| {
            let x_t = shard(&x_t, &range);
            let condition = condition.clone().narrow(0, range.start, range.len());
            self.forward_between(x_t, &t[range], condition)
        });
        Tensor::cat(outputs.collect(), 0)
    }
}

fn as_times(t: &[usize]) -> Vec<f64> {
    t.iter().map(|&t| t as f64).collect()
}
