//! Group and layer normalisation.

use burn::tensor::{Tensor, activation, module};

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
    let [b, c, h, w] = x.dims();
    let x = x.reshape([b, groups, c / groups * h * w]);
    let mean = x.clone().mean_dim(2);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dim(2);
    let y = (centred / (variance + eps).sqrt()).reshape([b, c, h, w]);
    let y = y * weight.reshape([1, c, 1, 1]) + bias.reshape([1, c, 1, 1]);
    match activation {
        Activation::None => y,
        Activation::Silu => activation::silu(y),
    }
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
