//! Group and layer normalisation.

use crate::conv::no_bias;
use crate::cpu::layer_norm;
use crate::extension::{KernelOps, from_cpu, into_cpu, on_cpu, on_plain_cpu};
use crate::flex::{contiguous, entries, filled, tensor};
use crate::{ConvGeometry, plain};
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

/// What a group norm normalises; a plain tensor `[B, C, H, W]` becomes one by `into`.
#[derive(Debug, Clone)]
pub struct GroupNormInput {
    x: Tensor<4>,
    more: Option<Tensor<4>>,
    shift: Option<Tensor<2>>,
}

impl GroupNormInput {
    /// `x + shift`, without a tensor for the sum. x: `[B, C, H, W]`; shift: `[B, C]`.
    pub fn shifted(x: Tensor<4>, shift: Tensor<2>) -> Self {
        Self { x, more: None, shift: Some(shift) }
    }

    /// Two tensors joined along the channels, without a tensor for both: `[B, C_1, H, W]` and
    /// `[B, C_2, H, W]` count as `[B, C_1 + C_2, H, W]`.
    pub fn of_two([x, more]: [Tensor<4>; 2]) -> Self {
        Self { x, more: Some(more), shift: None }
    }

    /// The tensor it stands for.
    pub(crate) fn into_tensor(self) -> Tensor<4> {
        let Self { x, more, shift } = self;
        let x = match more {
            Some(more) => Tensor::cat(vec![x, more], 1),
            None => x,
        };
        match shift {
            Some(shift) => {
                let [b, c] = shift.dims();
                x + shift.reshape([b, c, 1, 1])
            }
            None => x,
        }
    }

    fn on_cpu(&self) -> bool {
        on_cpu(&self.x) && self.more.as_ref().is_none_or(on_cpu)
    }

    /// x, its second part and the shift, the last two without entries where there are none.
    fn into_parts(self) -> (Tensor<4>, Tensor<4>, Tensor<2>) {
        let Self { x, more, shift } = self;
        let [b, _, h, w] = x.dims();
        let device = x.device();
        let none = || Tensor::zeros([b, 0, h, w], &device).without_autodiff();
        let no_shift = || Tensor::zeros([0, 0], &device).without_autodiff();
        (x, more.unwrap_or_else(none), shift.unwrap_or_else(no_shift))
    }
}

impl From<Tensor<4>> for GroupNormInput {
    fn from(x: Tensor<4>) -> Self {
        Self { x, more: None, shift: None }
    }
}

/// A group norm's parameters and settings.
#[derive(Debug, Clone)]
pub struct GroupNormParameters {
    /// `[C]`.
    pub weight: Tensor<1>,
    /// `[C]`.
    pub bias: Tensor<1>,
    /// The rest.
    pub settings: GroupNormSettings,
}

/// A group norm's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNormSettings {
    /// Into how many the channels divide.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// What follows.
    pub activation: Activation,
}

/// Group normalisation (Wu and He 2018, eq. 1 to 7) with biased variance, then the activation.
///
/// # Shapes
/// x: `[B, C, H, W]`, C divisible by the number of groups; returns `[B, C, H, W]`.
pub fn group_norm(x: impl Into<GroupNormInput>, norm: GroupNormParameters) -> Tensor<4> {
    let x = x.into();
    if !x.on_cpu() {
        return plain::group_norm(x, norm);
    }
    let (x, more, shift) = x.into_parts();
    let (x, more, shift) = (x.into_dispatch(), more.into_dispatch(), shift.into_dispatch());
    let (weight, bias) = (norm.weight.into_dispatch(), norm.bias.into_dispatch());
    Tensor::from_dispatch(Dispatch::group_norm(x, more, shift, weight, bias, norm.settings))
}

/// [`crate::conv2d`] of [`group_norm`]. For the backward pass the input is kept, not the normalised tensor
/// between the two: it is computed once more.
///
/// # Shapes
/// x: `[B, C_in, H, W]`; weight: `[C_out, C_in, k, k]`; bias: `[C_out]`; returns `[B, C_out, H', W']`.
pub fn group_norm_conv2d(
    x: impl Into<GroupNormInput>,
    norm: GroupNormParameters,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    geometry: ConvGeometry,
) -> Tensor<4> {
    let x = x.into();
    if !x.on_cpu() {
        return plain::group_norm_conv2d(x, norm, weight, bias, geometry);
    }
    let bias = bias.unwrap_or_else(|| no_bias(&x.x, weight.dims()[0]));
    let (x, more, shift) = x.into_parts();
    let (x, more, shift) = (x.into_dispatch(), more.into_dispatch(), shift.into_dispatch());
    let (norm_weight, norm_bias) = (norm.weight.into_dispatch(), norm.bias.into_dispatch());
    let (weight, bias, settings) = (weight.into_dispatch(), bias.into_dispatch(), norm.settings);
    Tensor::from_dispatch(Dispatch::group_norm_conv2d(
        x,
        more,
        shift,
        norm_weight,
        norm_bias,
        settings,
        weight,
        bias,
        geometry,
    ))
}

/// Layer normalisation over the last dimension (Ba et al. 2016, eq. 4). With autodiff Burn's own.
///
/// # Shapes
/// x: `[.., d]`; weight, bias: `[d]`; returns `[.., d]`.
///
/// # Panics
/// When the lengths differ.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    if !(on_plain_cpu(&x) && on_plain_cpu(&weight) && on_plain_cpu(&bias)) {
        return module::layer_norm(x, weight, Some(bias), eps);
    }
    let shape = x.dims();
    let asked = "`on_plain_cpu` was asked before";
    let x = contiguous(into_cpu(x).expect(asked));
    let [weight, bias] = [weight, bias].map(|x| contiguous(into_cpu(x).expect(asked)));
    let (weight, bias) = (entries(&weight), entries(&bias));
    assert!(weight.len() == shape[D - 1] && bias.len() == weight.len(), "one weight per feature");
    let len = shape.iter().product();
    // SAFETY: `layer_norm` writes all of y.
    let y = unsafe {
        filled(len, |y| layer_norm::layer_norm(entries(&x), weight, bias, eps as f32, y))
    };
    from_cpu(tensor(y, shape))
}
