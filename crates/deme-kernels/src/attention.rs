//! Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

use crate::extension::{KernelOps, on_cpu};
use crate::plain;
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// `softmax(q k^T * scale) v`, per head. With `causal`, position i sees positions up to i.
///
/// # Shapes
/// q: `[B, heads, L_q, d]`; k, v: `[B, heads, L_k, d]`; returns `[B, heads, L_q, d]`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f64, causal: bool) -> Tensor<4> {
    if !on_cpu(&q) {
        return plain::attention(q, k, v, scale, causal);
    }
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(Dispatch::attention(q, k, v, scale, causal))
}
