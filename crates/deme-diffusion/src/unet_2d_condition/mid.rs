//! The block at the lowest resolution: `UNetMidBlock2DCrossAttn`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::Init;

use super::config::UNet2DConditionConfig;
use super::transformer_2d::Transformer2DModel;
use crate::unet::channel_projection::BlockProjection;
use crate::unet::resnet::ResnetBlock2D;

/// Residual block, transformer, residual block.
#[derive(Module, Debug)]
pub struct UNetMidBlock2DCrossAttn {
    /// One.
    pub attentions: Vec<Transformer2DModel>,
    /// Two.
    pub resnets: Vec<ResnetBlock2D>,
}

impl UNetMidBlock2DCrossAttn {
    pub(super) fn new(config: &UNet2DConditionConfig, init: &mut Init) -> Self {
        let transformer = config.transformer_shape(config.blocks() - 1);
        let channels = (transformer.channels, transformer.channels);
        let resnet = config.resnet_shape(config.mid_block_scale_factor);
        let resnets = [(); 2].map(|()| ResnetBlock2D::new(channels, &resnet, init));
        let attentions = vec![Transformer2DModel::new(&transformer, init)];
        Self { attentions, resnets: resnets.into() }
    }

    /// Residual blocks with a transformer behind the first.
    pub(super) fn layers(&self) -> usize {
        self.resnets.len()
    }

    /// Runs layer `i`.
    ///
    /// # Shapes
    /// x: `[B, C, H, W]`; temb_silu: `[B, time_embed_dim]`; hidden_states: `[B, L, width]`; returns `[B, C, H, W]`.
    pub(super) fn layer(
        &self,
        i: usize,
        x: Tensor<4>,
        temb_silu: &Tensor<2>,
        hidden_states: &Tensor<3>,
        projection: &BlockProjection,
    ) -> Tensor<4> {
        let is_last = i + 1 == self.layers();
        let x = self.resnets[i].forward(x, Some(temb_silu), projection.behind_convolution(is_last));
        let x = match self.attentions.get(i) {
            Some(attention) => attention.forward(x, hidden_states),
            None => x,
        };
        if is_last { projection.on_hidden_state(x) } else { x }
    }
}
