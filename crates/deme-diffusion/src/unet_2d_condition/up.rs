//! A block on the way up: `UpBlock2D` and `CrossAttnUpBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::config::{ConditionUpBlockType, UNet2DConditionConfig};
use super::transformer_2d::Transformer2DModel;
use crate::unet::channel_projection::BlockProjection;
use crate::unet::resnet::{ResnetBlock2D, Upsample2D};

/// Residual blocks, each on the hidden state and one skip connection, a transformer behind each (none in a
/// plain `UpBlock2D`), and an upsampler except in the last block.
#[derive(Module, Debug)]
pub struct CrossAttnUpBlock2D {
    /// `layers_per_block + 1` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// As many, or none in a plain `UpBlock2D`.
    pub attentions: Vec<Transformer2DModel>,
    /// One, or none in the last block.
    pub upsamplers: Vec<Upsample2D>,
}

impl CrossAttnUpBlock2D {
    pub(super) fn new(i: usize, config: &UNet2DConditionConfig, init: &mut Init) -> Self {
        let resnets: Vec<_> = config
            .up_resnet_channels(i)
            .into_iter()
            .map(|channels| ResnetBlock2D::new(channels, &config.resnet_shape(1.0), init))
            .collect();
        let transformer = config.transformer_shape(config.blocks() - 1 - i);
        let attentions = match config.up_block_types[i] {
            ConditionUpBlockType::UpBlock2D => Vec::new(),
            ConditionUpBlockType::CrossAttnUpBlock2D => {
                resnets.iter().map(|_| Transformer2DModel::new(&transformer, init)).collect()
            }
        };
        let last = i + 1 == config.blocks();
        let upsamplers =
            if last { Vec::new() } else { vec![Upsample2D::new(transformer.channels, init)] };
        Self { resnets, attentions, upsamplers }
    }

    /// Residual blocks with a transformer behind them, then the upsampler.
    pub(super) fn layers(&self) -> usize {
        self.resnets.len() + self.upsamplers.len()
    }

    /// Runs layer `i`. A residual block takes its skip connection off the end of `skips`, the latest first.
    ///
    /// # Shapes
    /// x: `[B, C_before, H, W]`; temb_silu: `[B, time_embed_dim]`; hidden_states: `[B, L, width]`; returns `[B, C, H, W]`, or
    /// `[B, C, 2H, 2W]` from the upsampler.
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
                let skip =
                    skips.pop().expect("the way down leaves one skip per residual block here");
                let x = resnet.forward_of_two([x, skip], Some(temb_silu), behind_convolution);
                match self.attentions.get(i) {
                    Some(attention) => attention.forward(x, hidden_states),
                    None => x,
                }
            }
            None => self.upsamplers[i - self.resnets.len()].forward(x, behind_convolution),
        };
        if is_last { projection.on_hidden_state(x) } else { x }
    }
}
