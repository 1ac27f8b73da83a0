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

    /// Residual blocks with attention behind the first.
    pub(crate) fn layers(&self) -> usize {
        self.resnets.len()
    }

    /// Runs layer `i`.
    ///
    /// # Shapes
    /// x: `[B, C, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C, H, W]`.
    pub(crate) fn layer(
        &self,
        i: usize,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: &BlockProjection,
    ) -> Tensor<4> {
        let is_last = i + 1 == self.layers();
        let x = self.resnets[i].forward(x, temb_silu, projection.behind_convolution(is_last));
        let x = match self.attentions.get(i) {
            Some(attention) => attention.forward(x),
            None => x,
        };
        if is_last { projection.on_hidden_state(x) } else { x }
    }

    /// All layers.
    ///
    /// # Shapes
    /// As [`layer`](Self::layer).
    pub(crate) fn forward(
        &self,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: &BlockProjection,
    ) -> Tensor<4> {
        (0..self.layers()).fold(x, |x, i| self.layer(i, x, temb_silu, projection))
    }
}
