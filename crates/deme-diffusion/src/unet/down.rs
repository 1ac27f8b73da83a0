//! A block on the way down: `DownBlock2D` and `AttnDownBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
use deme_nn::Init;

use super::attention::{Attention, AttentionShape};
use super::channel_projection::BlockProjection;
use super::resnet::{Downsample2D, ResnetBlock2D};
use super::{DownBlockType, UNet2DConfig};

/// Residual blocks, attention behind each in an `AttnDownBlock2D`, and a downsampler except in the last block.
#[derive(Module, Debug)]
pub struct DownBlock2D {
    /// `layers_per_block` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// As many, or none in a plain `DownBlock2D`.
    pub attentions: Vec<Attention>,
    /// One, or none in the last block.
    pub downsamplers: Vec<Downsample2D>,
}

impl DownBlock2D {
    pub(super) fn new(i: usize, config: &UNet2DConfig, init: &mut Init) -> Self {
        let resnets: Vec<_> = config
            .down_resnet_channels(i)
            .into_iter()
            .map(|channels| ResnetBlock2D::new(channels, &config.resnet_shape(1.0), init))
            .collect();
        let channels = config.block_out_channels[i];
        let attention = AttentionShape {
            channels,
            head_dim: config.attention_head_dim,
            norm_groups: Some(config.norm_num_groups),
            norm_eps: config.norm_eps,
            output_scale_factor: 1.0,
        };
        let attentions = match config.down_block_types[i] {
            DownBlockType::DownBlock2D => Vec::new(),
            DownBlockType::AttnDownBlock2D => {
                resnets.iter().map(|_| Attention::new(&attention, init)).collect()
            }
        };
        let last = i + 1 == config.block_out_channels.len();
        let geometry = downsample_geometry(config.downsample_padding);
        let downsamplers =
            if last { Vec::new() } else { vec![Downsample2D::new(channels, geometry, init)] };
        Self { resnets, attentions, downsamplers }
    }

    /// Residual blocks with attention behind them, then the downsampler.
    pub(super) fn layers(&self) -> usize {
        self.resnets.len() + self.downsamplers.len()
    }

    /// Runs layer `i`: returns the hidden state and appends it, before it is projected, to the skip connections.
    ///
    /// # Shapes
    /// x: `[B, C_in, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C, H, W]`, or
    /// `[B, C, H/2, W/2]` from the downsampler.
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
                let x = resnet.forward(x, temb_silu, behind_convolution);
                match self.attentions.get(i) {
                    Some(attention) => attention.forward(x),
                    None => x,
                }
            }
            None => self.downsamplers[i - self.resnets.len()].forward(x, behind_convolution),
        };
        skips.push(x.clone());
        if is_last { projection.on_hidden_state(x) } else { x }
    }
}

/// diffusers' padding of the downsampling convolution: 0 stands for one row below and one column to the right.
pub(crate) fn downsample_geometry(padding: usize) -> ConvGeometry {
    let (padding_begin, padding_end) = if padding == 0 { (0, 1) } else { (padding, padding) };
    ConvGeometry { stride: 2, padding_begin, padding_end }
}
