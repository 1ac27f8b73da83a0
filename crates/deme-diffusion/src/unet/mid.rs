//! The block at the lowest resolution: `UNetMidBlock2D`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::attention::{Attention, AttentionShape};
use super::channel_projection::BlockProjection;
use super::resnet::{ResnetBlock2D, ResnetShape};

/// Residual block, attention (unless `add_attention` is false), residual block.
#[derive(Module, Debug)]
pub struct UNetMidBlock2D {
    /// One, or none.
    pub attentions: Vec<Attention>,
    /// Two.
    pub resnets: Vec<ResnetBlock2D>,
}

impl UNetMidBlock2D {
    pub(crate) fn new(
        channels: usize,
        resnet: &ResnetShape,
        attention: Option<&AttentionShape>,
        init: &mut Init,
    ) -> Self {
        let resnets = [(); 2].map(|()| ResnetBlock2D::new((channels, channels), resnet, init));
        let attentions = attention.map(|attention| Attention::new(attention, init));
        Self { attentions: attentions.into_iter().collect(), resnets: resnets.into() }
    }

    /// # Shapes
    /// x: `[B, C, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C, H, W]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: &BlockProjection,
    ) -> Tensor<4> {
        let mut x = self.resnets[0].forward(x, temb_silu, None);
        for attention in &self.attentions {
            x = attention.forward(x);
        }
        let behind_convolution = projection.behind_convolution(true);
        let x = self.resnets[1].forward(x, temb_silu, behind_convolution);
        projection.on_hidden_state(x)
    }
}
