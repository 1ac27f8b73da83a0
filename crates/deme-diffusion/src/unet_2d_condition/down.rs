//! A block on the way down: `DownBlock2D` and `CrossAttnDownBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::config::{ConditionDownBlockType, UNet2DConditionConfig};
use super::transformer_2d::Transformer2DModel;
use crate::unet::channel_projection::BlockProjection;
use crate::unet::down::downsample_geometry;
use crate::unet::resnet::{Downsample2D, ResnetBlock2D};

/// Residual blocks, a transformer behind each (none in a plain `DownBlock2D`), and a downsampler except in the
/// last block.
#[derive(Module, Debug)]
pub struct CrossAttnDownBlock2D {
    /// `layers_per_block` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// As many, or none in a plain `DownBlock2D`.
    pub attentions: Vec<Transformer2DModel>,
    /// One, or none in the last block.
    pub downsamplers: Vec<Downsample2D>,
}

impl CrossAttnDownBlock2D {
    pub(super) fn new(i: usize, config: &UNet2DConditionConfig, init: &mut Init) -> Self {
        let resnets: Vec<_> = config
            .down_resnet_channels(i)
            .into_iter()
            .map(|channels| ResnetBlock2D::new(channels, &config.resnet_shape(1.0), init))
            .collect();
        let transformer = config.transformer_shape(i);
        let attentions = match config.down_block_types[i] {
            ConditionDownBlockType::DownBlock2D => Vec::new(),
            ConditionDownBlockType::CrossAttnDownBlock2D => {
                resnets.iter().map(|_| Transformer2DModel::new(&transformer, init)).collect()
            }
        };
        let last = i + 1 == config.blocks();
        let geometry = downsample_geometry(config.downsample_padding);
        let channels = config.block_out_channels[i];
        let downsamplers =
            if last { Vec::new() } else { vec![Downsample2D::new(channels, geometry, init)] };
        Self { resnets, attentions, downsamplers }
    }

    /// Residual blocks with a transformer behind them, then the downsampler.
    pub(super) fn layers(&self) -> usize {
        self.resnets.len() + self.downsamplers.len()
    }

    /// Runs layer `i`: returns the hidden state and appends it, before it is projected, to the skip connections.
    ///
    /// # Shapes
    /// x: `[B, C_in, H, W]`; temb_silu: `[B, time_embed_dim]`; hidden_states: `[B, L, width]`; returns `[B, C, H, W]`, or
    /// `[B, C, H/2, W/2]` from the downsampler.
    pub(super) fn layer(
        &self,
        i: usize,
        x: Tensor<4>,
        temb_silu: &Tensor<2>,
        hidden_states: &Tensor<3>,
        projection: &BlockProjection,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        let is_last = i + 1 == self.layers();
        let behind_convolution = projection.behind_convolution(is_last);
        let x = match self.resnets.get(i) {
            Some(resnet) => {
                let x = resnet.forward(x, Some(temb_silu), behind_convolution);
                match self.attentions.get(i) {
                    Some(attention) => attention.forward(x, hidden_states),
                    None => x,
                }
            }
            None => self.downsamplers[i - self.resnets.len()].forward(x, behind_convolution),
        };
        skips.push(x.clone());
        if is_last { projection.on_hidden_state(x) } else { x }
    }
}
