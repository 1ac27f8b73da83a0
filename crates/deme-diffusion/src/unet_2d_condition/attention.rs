//! Attention of a transformer block: pixels look at each other, or at the text.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::{Init, Linear};

/// Multi-head attention (Vaswani et al. 2017, section 3.2.2) from a sequence to a context: itself, or the
/// text's hidden states. diffusers' `Attention` without a norm, without a residual and without biases but the
/// output's.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// Queries, of the sequence.
    pub to_q: Linear,
    /// Keys, of the context.
    pub to_k: Linear,
    /// Values, of the context.
    pub to_v: Linear,
    /// One linear map; a list because diffusers names it `to_out.0`.
    pub to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
}

impl CrossAttention {
    /// `heads` divides `width`.
    pub(super) fn new(width: usize, context_dim: usize, heads: usize, init: &mut Init) -> Self {
        Self {
            to_q: Linear::new(width, width, false, init),
            to_k: Linear::new(context_dim, width, false, init),
            to_v: Linear::new(context_dim, width, false, init),
            to_out: vec![Linear::new(width, width, true, init)],
            heads,
        }
    }

    /// # Shapes
    /// x: `[B, N, width]`; context: `[B, L, context width]`; returns `[B, N, width]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let [b, n, width] = x.dims();
        let d = width / self.heads;
        let q = self.split(self.to_q.forward(x));
        let k = self.split(self.to_k.forward(context.clone()));
        let v = self.split(self.to_v.forward(context));
        let y = deme_kernels::attention(q, k, v, (d as f64).powf(-0.5), false);
        self.to_out[0].forward(y.swap_dims(1, 2).reshape([b, n, width]))
    }

    /// `[B, N, width]` to `[B, heads, N, d]`.
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [b, n, width] = x.dims();
        x.reshape([b, n, self.heads, width / self.heads]).swap_dims(1, 2)
    }
}
