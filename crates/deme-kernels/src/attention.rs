//! Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

use burn::tensor::{Bool, Tensor, activation};

/// `softmax(q k^T * scale) v`, per head. With `causal`, position i sees positions up to i.
///
/// # Shapes
/// q: `[B, heads, L_q, d]`; k, v: `[B, heads, L_k, d]`; returns `[B, heads, L_q, d]`.
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    scale: f64,
    causal: bool,
) -> Tensor<4> {
    let [_, _, l_q, _] = q.dims();
    let [_, _, l_k, _] = k.dims();
    let mut scores = (q * scale).matmul(k.swap_dims(2, 3));
    if causal {
        let future = Tensor::<2, Bool>::tril_mask([l_q, l_k], 0, &scores.device());
        scores = scores.mask_fill(future.reshape([1, 1, l_q, l_k]), f32::NEG_INFINITY);
    }
    activation::softmax(scores, 3).matmul(v)
}
