//! The block at the lowest resolution: `UNetMidBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::UNet2DConfig;
use super::attention::{Attention, AttentionShape};
use super::channel_projection::BlockProjection;
use super::resnet::ResnetBlock2D;

/// Residual block, attention (unless `add_attention` is false), residual block.
#[derive(Module, Debug)]
pub struct UNetMidBlock2D {
    /// One, or none.
    pub attentions: Vec<Attention>,
    /// Two.
    pub resnets: Vec<ResnetBlock2D>,
}

impl UNetMidBlock2D {
    pub(super) fn new(config: &UNet2DConfig, init: &mut Init) -> Self {
        let channels = config.mid_channels();
        let output_scale_factor = config.mid_block_scale_factor;
        let attention = AttentionShape {
            channels,
            head_dim: config.attention_head_dim,
            norm_groups: config.mid_attention_groups(),
            norm_eps: config.norm_eps,
            output_scale_factor,
        };
        let mut resnet =
            || ResnetBlock2D::new((channels, channels), output_scale_factor, config, init);
        let resnets = vec![resnet(), resnet()];
        let attentions =
            if config.add_attention { vec![Attention::new(&attention, init)] } else { Vec::new() };
        Self { attentions, resnets }
    }

    /// # Shapes
    /// x: `[B, C, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C, H, W]`.
    pub(super) fn forward(
        &self,
        x: Tensor<4>,
        temb_silu: &Tensor<2>,
        projection: &BlockProjection,
    ) -> Tensor<4> {
        let mut x = self.resnets[0].forward(x, temb_silu.clone(), None);
        for attention in &self.attentions {
            x = attention.forward(x);
        }
        let behind_convolution = projection.behind_convolution(true);
        let x = self.resnets[1].forward(x, temb_silu.clone(), behind_convolution);
        projection.on_hidden_state(x)
    }
}
