//! 2-D convolution and the linear map, with PyTorch's weight layouts.

use crate::cpu;
use crate::extension::{KernelOps, on_cpu};
use crate::plain;
use burn::backend::Dispatch;
use burn::tensor::Tensor;
use std::sync::atomic::Ordering;

/// Stride and zero padding of a square-kernel convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Stride in both directions.
    pub stride: usize,
    /// Zero rows above and zero columns to the left.
    pub padding_begin: usize,
    /// Zero rows below and zero columns to the right.
    pub padding_end: usize,
}

impl ConvGeometry {
    /// Stride 1 and the padding that keeps the size for an odd `kernel`.
    pub fn same(kernel: usize) -> Self {
        Self { stride: 1, padding_begin: kernel / 2, padding_end: kernel / 2 }
    }

    /// Output length for an input length, or `None` when the padded input is smaller than the
    /// kernel.
    pub fn output_len(&self, input: usize, kernel: usize) -> Option<usize> {
        (input + self.padding_begin + self.padding_end)
            .checked_sub(kernel)
            .map(|room| room / self.stride + 1)
    }
}

/// How 3x3 convolutions of stride 1 are computed on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvAlgorithm {
    /// By Winograd's minimal filtering where that takes less work: relative error (rms)
    /// of one layer below 5e-6.
    Fast,
    /// By the definition: relative error (rms) of one layer below 1e-6; slower.
    Exact,
}

/// Chooses the algorithm for this process from now on; at first it is [`ConvAlgorithm::Fast`].
pub fn set_conv_algorithm(algorithm: ConvAlgorithm) {
    cpu::conv::WINOGRAD.store(algorithm == ConvAlgorithm::Fast, Ordering::Relaxed);
}

/// Cross-correlation with zero padding, as `torch.nn.functional.conv2d`.
///
/// # Shapes
/// x: `[B, C_in, H, W]`; weight: `[C_out, C_in, k, k]`; bias: `[C_out]`; returns `[B, C_out, H', W']`.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    geometry: ConvGeometry,
) -> Tensor<4> {
    if !on_cpu(&x) {
        return plain::conv2d(x, weight, bias, geometry);
    }
    let bias = bias.unwrap_or_else(|| no_bias(&x, weight.dims()[0]));
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::conv2d(x, weight, bias, geometry))
}

/// The 1x1 convolution of two tensors joined along the channels, without a tensor for both.
///
/// # Shapes
/// x: `[B, C_1, H, W]` and `[B, C_2, H, W]`; weight: `[C_out, C_1 + C_2, 1, 1]`; bias: `[C_out]`;
/// returns `[B, C_out, H, W]`.
pub fn pointwise_conv_of_two(
    x: [Tensor<4>; 2],
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
) -> Tensor<4> {
    if !x.iter().all(on_cpu) {
        return plain::pointwise_conv_of_two(x, weight, bias);
    }
    let bias = bias.unwrap_or_else(|| no_bias(&x[0], weight.dims()[0]));
    let [x, more] = x.map(Tensor::into_dispatch);
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::pointwise_conv_of_two(x, more, weight, bias))
}

/// `y = x W^T + b`, as `torch.nn.functional.linear`.
///
/// # Shapes
/// x: `[.., d_in]`; weight: `[d_out, d_in]`; bias: `[d_out]`; returns `[.., d_out]`.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    if !on_cpu(&x) {
        return plain::linear(x, weight, bias);
    }
    let bias = bias.unwrap_or_else(|| no_bias(&x, weight.dims()[0]));
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::linear(x, weight, bias))
}

/// The bias of a layer that has none.
pub(crate) fn no_bias<const D: usize>(x: &Tensor<D>, len: usize) -> Tensor<1> {
    Tensor::zeros([len], &x.device()).without_autodiff()
}
