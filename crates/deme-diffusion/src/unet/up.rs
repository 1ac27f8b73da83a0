//! A block on the way up: `UpBlock2D` and `AttnUpBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::attention::{Attention, AttentionShape};
use super::channel_projection::BlockProjection;
use super::resnet::{ResnetBlock2D, Upsample2D};
use super::{UNet2DConfig, UpBlockType};

/// Residual blocks, each on the hidden state and one skip connection, attention behind each in an
/// `AttnUpBlock2D`, and an upsampler except in the last block.
#[derive(Module, Debug)]
pub struct UpBlock2D {
    /// `layers_per_block + 1` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// As many, or none in a plain `UpBlock2D`.
    pub attentions: Vec<Attention>,
    /// One, or none in the last block.
    pub upsamplers: Vec<Upsample2D>,
}

impl UpBlock2D {
    pub(super) fn new(i: usize, config: &UNet2DConfig, init: &mut Init) -> Self {
        let resnet_channels = config.up_resnet_channels(i);
        let channels = config.block_out_channels[config.block_out_channels.len() - 1 - i];
        let resnets: Vec<_> = resnet_channels
            .into_iter()
            .map(|channels| ResnetBlock2D::new(channels, &config.resnet_shape(1.0), init))
            .collect();
        let attention = AttentionShape {
            channels,
            head_dim: config.attention_head_dim,
            norm_groups: Some(config.norm_num_groups),
            norm_eps: config.norm_eps,
            output_scale_factor: 1.0,
        };
        let attentions = match config.up_block_types[i] {
            UpBlockType::UpBlock2D => Vec::new(),
            UpBlockType::AttnUpBlock2D => {
                resnets.iter().map(|_| Attention::new(&attention, init)).collect()
            }
        };
        let last = i + 1 == config.block_out_channels.len();
        let upsamplers = if last { Vec::new() } else { vec![Upsample2D::new(channels, init)] };
        Self { resnets, attentions, upsamplers }
    }

    /// Residual blocks with attention behind them, then the upsampler.
    pub(super) fn layers(&self) -> usize {
        self.resnets.len() + self.upsamplers.len()
    }

    /// Runs layer `i`. A residual block takes its skip connection off the end of `skips`, the latest first.
    ///
    /// # Shapes
    /// x: `[B, C_before, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C, H, W]`, or
    /// `[B, C, 2H, 2W]` from the upsampler.
    pub(super) fn layer(
        &self,
        i: usize,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: &BlockProjection,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        let is_last = i + 1 == self.layers();
        let behind_convolution = projection.behind_convolution(is_last);
        let x = match self.resnets.get(i) {
            Some(resnet) => {
                let skip =
                    skips.pop().expect("the way down leaves one skip per residual block here");
                let x = resnet.forward_of_two([x, skip], temb_silu, behind_convolution);
                match self.attentions.get(i) {
                    Some(attention) => attention.forward(x),
                    None => x,
                }
            }
            None => self.upsamplers[i - self.resnets.len()].forward(x, behind_convolution),
        };
        if is_last { projection.on_hidden_state(x) } else { x }
    }
}
