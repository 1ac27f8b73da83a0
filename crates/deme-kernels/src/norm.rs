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
    let (x, weight, bias) = (x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::group_norm(x, weight, bias, groups, eps, activation))
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
