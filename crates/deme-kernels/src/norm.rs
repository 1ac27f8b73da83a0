//! Group and layer normalisation.

use crate::extension::{KernelOps, on_cpu};
use crate::plain;
use burn::backend::Dispatch;
use burn::tensor::{Tensor, module};

/// What follows a normalisation in the same pass over memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Group normalisation (Wu and He 2018, eq. 1 to 7) with biased variance, then `activation`.
///
/// # Shapes
/// x: `[B, C, H, W]`, C divisible by `groups`; weight, bias: `[C]`; returns `[B, C, H, W]`.
pub fn group_norm(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    if !on_cpu(&x) {
        return plain::group_norm(x, weight, bias, groups, eps, activation);
    }
    let (more, shift) = (no_channels(&x), no_shift(&x));
    kernel([x, more], shift, [weight, bias], groups, eps, activation)
}

/// [`group_norm`] of `x + shift`, without a tensor for the sum.
///
/// # Shapes
/// x: `[B, C, H, W]`; shift: `[B, C]`; returns `[B, C, H, W]`.
pub fn group_norm_shifted(
    x: Tensor<4>,
    shift: Tensor<2>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    if !on_cpu(&x) {
        return plain::group_norm_shifted(x, shift, weight, bias, groups, eps, activation);
    }
    let more = no_channels(&x);
    kernel([x, more], shift, [weight, bias], groups, eps, activation)
}

/// [`group_norm`] of two tensors joined along the channels, without a tensor for both.
///
/// # Shapes
/// x: `[B, C_1, H, W]` and `[B, C_2, H, W]`; weight, bias: `[C_1 + C_2]`; returns
/// `[B, C_1 + C_2, H, W]`.
pub fn group_norm_of_two(
    x: [Tensor<4>; 2],
    weight: Tensor<1>,
    bias: Tensor<1>,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    if !x.iter().all(on_cpu) {
        return plain::group_norm_of_two(x, weight, bias, groups, eps, activation);
    }
    let shift = no_shift(&x[0]);
    kernel(x, shift, [weight, bias], groups, eps, activation)
}

fn kernel(
    [x, more]: [Tensor<4>; 2],
    shift: Tensor<2>,
    [weight, bias]: [Tensor<1>; 2],
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Tensor<4> {
    let (x, more, shift) = (x.into_dispatch(), more.into_dispatch(), shift.into_dispatch());
    let (weight, bias) = (weight.into_dispatch(), bias.into_dispatch());
    let y = Dispatch::group_norm(x, more, shift, weight, bias, groups, eps, activation);
    Tensor::from_dispatch(y)
}

/// A second part without channels.
fn no_channels(x: &Tensor<4>) -> Tensor<4> {
    let [b, _, h, w] = x.dims();
    Tensor::zeros([b, 0, h, w], &x.device()).without_autodiff()
}

/// A shift that is not there.
fn no_shift(x: &Tensor<4>) -> Tensor<2> {
    Tensor::zeros([0, 0], &x.device()).without_autodiff()
}

/// Layer normalisation over the last dimension (Ba et al. 2016, eq. 4).
///
/// # Shapes
/// x: `[.., d]`; weight, bias: `[d]`; returns `[.., d]`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    module::layer_norm(x, weight, Some(bias), eps)
}
