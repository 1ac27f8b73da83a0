//! Self-attention over the pixels of a feature map.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::{GroupNorm, Init, Linear};

use super::resnet::divided;

/// Group norm, multi-head self-attention over the H W positions, a linear map, and the residual; divided by
/// the output scale factor.
#[derive(Module, Debug)]
pub struct Attention {
    /// Norm of the input; absent in the mid block under scale and shift.
    pub group_norm: Option<GroupNorm>,
    /// Queries.
    pub to_q: Linear,
    /// Keys.
    pub to_k: Linear,
    /// Values.
    pub to_v: Linear,
    /// One linear map; a list because diffusers names it `to_out.0`.
    pub to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    output_scale_factor: f64,
}

/// What an [`Attention`] is built from.
pub(super) struct AttentionShape {
    pub channels: usize,
    /// `None`: one head of all channels.
    pub head_dim: Option<usize>,
    /// `None`: no norm.
    pub norm_groups: Option<usize>,
    pub norm_eps: f64,
    pub output_scale_factor: f64,
}

impl Attention {
    pub(super) fn new(shape: &AttentionShape, init: &mut Init) -> Self {
        let channels = shape.channels;
        let head_dim = shape.head_dim.unwrap_or(channels);
        let heads = channels / head_dim;
        let inner = heads * head_dim;
        Self {
            group_norm: shape
                .norm_groups
                .map(|groups| GroupNorm::new(groups, channels, shape.norm_eps, init)),
            to_q: Linear::new(channels, inner, true, init),
            to_k: Linear::new(channels, inner, true, init),
            to_v: Linear::new(channels, inner, true, init),
            to_out: vec![Linear::new(inner, channels, true, init)],
            heads,
            output_scale_factor: shape.output_scale_factor,
        }
    }

    /// # Shapes
    /// `[B, C, H, W]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let normed = match &self.group_norm {
            Some(group_norm) => group_norm.forward(x.clone()),
            None => x.clone(),
        };
        // [B, H W, C]
        let tokens = normed.reshape([b, c, h * w]).swap_dims(1, 2);
        let [_, inner] = self.to_out[0].weight.dims();
        let head_dim = inner / self.heads;
        // [B, heads, H W, d]
        let split = |y: Tensor<3>| y.reshape([b, h * w, self.heads, head_dim]).swap_dims(1, 2);
        let q = split(self.to_q.forward(tokens.clone()));
        let k = split(self.to_k.forward(tokens.clone()));
        let v = split(self.to_v.forward(tokens));
        let y = deme_kernels::attention(q, k, v, 1.0 / (head_dim as f64).sqrt(), false);
        let y = self.to_out[0].forward(y.swap_dims(1, 2).reshape([b, h * w, inner]));
        let y = y.swap_dims(1, 2).reshape([b, c, h, w]);
        divided(x + y, self.output_scale_factor)
    }
}
