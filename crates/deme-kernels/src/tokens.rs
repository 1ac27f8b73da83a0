//! Pixels as a transformer's tokens: there and back, and the gate of its feed-forward part.
//!
//! Not here: attention, linear maps, layer norm.

use crate::cpu::gelu;
use crate::extension::{from_cpu, into_cpu, on_plain_cpu};
use crate::flex::{contiguous, entries, filled, tensor, transposed};
use crate::plain;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

/// `a * gelu(b)`, where a is the first half of the last dimension and b the second (Shazeer 2020, arXiv
/// 2002.05202, eq. 6), with the exact normal distribution function.
///
/// # Shapes
/// `[.., 2 n]` to `[.., n]`.
///
/// # Panics
/// When the last dimension is odd.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let mut shape = x.dims();
    let width = shape[D - 1];
    assert!(width.is_multiple_of(2), "{width} features do not halve");
    if !on_plain_cpu(&x) {
        return plain::geglu(x);
    }
    shape[D - 1] = width / 2;
    let x = contiguous(on_cpu_tensor(x));
    let len = shape.iter().product();
    // SAFETY: `geglu` writes one y for every pair.
    let y = unsafe { filled(len, |y| gelu::geglu(entries(&x), width / 2, y)) };
    from_cpu(tensor(y, shape))
}

/// Each pixel's channels as one token.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, H W, C]`.
pub fn tokens_from_planes(x: Tensor<4>) -> Tensor<3> {
    let [b, c, h, w] = x.dims();
    let x = x.reshape([b, c, h * w]);
    swapped(x)
}

/// The reverse of [`tokens_from_planes`].
///
/// # Shapes
/// `[B, h w, C]` to `[B, C, h, w]`.
pub fn planes_from_tokens(x: Tensor<3>, [h, w]: [usize; 2]) -> Tensor<4> {
    let [b, _, c] = x.dims();
    swapped(x).reshape([b, c, h, w])
}

/// The last two dimensions swapped in memory.
fn swapped(x: Tensor<3>) -> Tensor<3> {
    if !on_plain_cpu(&x) {
        return x.swap_dims(1, 2);
    }
    let [b, rows, columns] = x.dims();
    let x = contiguous(on_cpu_tensor(x));
    from_cpu(tensor(transposed(&x), [b, columns, rows]))
}

fn on_cpu_tensor<const D: usize>(x: Tensor<D>) -> FlexTensor {
    into_cpu(x).expect("`on_plain_cpu` was asked before")
}
