//! Self-attention over the pixels of a feature map.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
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
pub(crate) struct AttentionShape {
    pub channels: usize,
    /// `None`: one head of all channels.
    pub head_dim: Option<usize>,
    /// `None`: no norm.
    pub norm_groups: Option<usize>,
    pub norm_eps: f64,
    pub output_scale_factor: f64,
}

impl Attention {
    pub(crate) fn new(shape: &AttentionShape, init: &mut Init) -> Self {
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
        let [b, _, h, w] = x.dims();
        let normed = match &self.group_norm {
            Some(group_norm) => group_norm.forward(x.clone()),
            None => x.clone(),
        };
        let [_, inner] = self.to_out[0].weight.dims();
        let head_dim = inner / self.heads;
        // [B, heads, H W, d]
        let split = |y: Tensor<4>| y.reshape([b, self.heads, head_dim, h * w]).swap_dims(2, 3);
        let q = split(per_pixel(&self.to_q, normed.clone()));
        let k = split(per_pixel(&self.to_k, normed.clone()));
        let v = split(per_pixel(&self.to_v, normed));
        let y = deme_kernels::attention(q, k, v, 1.0 / (head_dim as f64).sqrt(), false);
        let y = y.swap_dims(2, 3).reshape([b, inner, h, w]);
        divided(x + per_pixel(&self.to_out[0], y), self.output_scale_factor)
    }
}

/// A linear map of each pixel's channels: a 1x1 convolution, which takes the planes as they lie.
fn per_pixel(linear: &Linear, x: Tensor<4>) -> Tensor<4> {
    let [d_out, d_in] = linear.weight.dims();
    let weight = linear.weight.val().reshape([d_out, d_in, 1, 1]);
    let bias = linear.bias.as_ref().map(|bias| bias.val());
    deme_kernels::conv2d(x, weight, bias, ConvGeometry::same(1))
}
