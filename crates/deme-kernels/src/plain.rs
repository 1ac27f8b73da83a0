//! The same operations written with ordinary tensor operations.
//!
//! This path serves every device that has no kernel of its own and every float type but f32, and
//! is what the kernels are tested against. It is differentiable through Burn's own operations.

use crate::{
    Activation, AdamWStep, AverageOver, ConvGeometry, GroupNormInput, GroupNormParameters,
    GroupNormSettings, ParameterState, Window,
};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions, PadMode};
use burn::tensor::{Bool, Tensor, activation, module};

/// [`crate::conv2d`] by Burn's convolution.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    geometry: ConvGeometry,
) -> Tensor<4> {
    let ConvGeometry { stride, padding_begin, padding_end } = geometry;
    // Burn's own asymmetric padding is not differentiable everywhere: pad first in that case.
    let (x, padding) = if padding_begin == padding_end {
        (x, padding_begin)
    } else {
        let padding = (padding_begin, padding_end, padding_begin, padding_end);
        (x.pad(padding, PadMode::Constant(0.0)), 0)
    };
    let options = ConvOptions::new([stride, stride], [padding, padding], [1, 1], 1);
    module::conv2d(x, weight, bias, options)
}

/// [`crate::linear`] by Burn's matrix product.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    module::linear(x, weight.transpose(), bias)
}

/// [`crate::group_norm`] by reductions and elementwise operations.
pub fn group_norm(x: impl Into<GroupNormInput>, norm: GroupNormParameters) -> Tensor<4> {
    let GroupNormParameters { weight, bias, settings } = norm;
    let GroupNormSettings { groups, eps, activation } = settings;
    let x = x.into().into_tensor();
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

/// [`crate::group_norm_conv2d`] by one after the other.
pub fn group_norm_conv2d(
    x: impl Into<GroupNormInput>,
    norm: GroupNormParameters,
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
    geometry: ConvGeometry,
) -> Tensor<4> {
    conv2d(group_norm(x, norm), weight, bias, geometry)
}

/// [`crate::pointwise_conv_of_two`] by a concatenation before it.
pub fn pointwise_conv_of_two(
    x: [Tensor<4>; 2],
    weight: Tensor<4>,
    bias: Option<Tensor<1>>,
) -> Tensor<4> {
    conv2d(Tensor::cat(x.to_vec(), 1), weight, bias, ConvGeometry::same(1))
}

/// [`crate::conv2d_relu`] by Burn's convolution.
pub fn conv2d_relu(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    let options = ConvOptions::new(stride, padding, [1, 1], 1);
    activation::relu(module::conv2d(x, weight, Some(bias), options))
}

/// [`crate::max_pool2d`] by Burn's.
pub fn max_pool2d(x: Tensor<4>, window: Window) -> Tensor<4> {
    let Window { kernel, stride, padding } = window;
    module::max_pool2d(x, MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding))
}

/// [`crate::avg_pool2d`] by Burn's.
pub fn avg_pool2d(x: Tensor<4>, window: Window, over: AverageOver) -> Tensor<4> {
    let Window { kernel, stride, padding } = window;
    let options = AvgPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
    module::avg_pool2d(x, options.with_count_include_pad(over == AverageOver::Window))
}

/// [`crate::global_avg_pool2d`] by a reduction.
pub fn global_avg_pool2d(x: Tensor<4>) -> Tensor<2> {
    let [b, c, h, w] = x.dims();
    x.reshape([b, c, h * w]).mean_dim(2).reshape([b, c])
}

/// [`crate::attention`] by two batched products and a softmax.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, scale: f64, causal: bool) -> Tensor<4> {
    let [_, _, l_q, _] = q.dims();
    let [_, _, l_k, _] = k.dims();
    let mut scores = (q * scale).matmul(k.swap_dims(2, 3));
    if causal {
        let future = Tensor::<2, Bool>::tril_mask([l_q, l_k], 0, &scores.device());
        scores = scores.mask_fill(future.reshape([1, 1, l_q, l_k]), f32::NEG_INFINITY);
    }
    activation::softmax(scores, 3).matmul(v)
}

/// [`crate::geglu`] by Burn's own GELU.
pub fn geglu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let inner = x.dims()[D - 1] / 2;
    let gate = activation::gelu(x.clone().narrow(D - 1, inner, inner));
    x.narrow(D - 1, 0, inner) * gate
}

/// [`crate::adamw_steps`] by elementwise operations.
pub fn adamw_steps(
    parameters: Vec<(ParameterState, Tensor<1>)>,
    step: &AdamWStep,
) -> Vec<ParameterState> {
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, grad_scale, .. } = *step;
    let [correction1, correction2] = step.bias_corrections();
    let decay = step.average_decay;
    let stepped = parameters.into_iter().map(|(state, grad)| {
        let ParameterState { theta, m, v, average } = state;
        let grad = grad * grad_scale;
        let theta = theta * (1.0 - learning_rate * weight_decay);
        let m = m * beta1 + grad.clone() * (1.0 - beta1);
        let v = v * beta2 + grad.square() * (1.0 - beta2);
        let denominator = v.clone().sqrt() / correction2.sqrt() + eps;
        let theta = theta - (m.clone() / denominator) * (learning_rate / correction1);
        let average = average.map(|average| average * decay + theta.clone() * (1.0 - decay));
        ParameterState { theta, m, v, average }
    });
    stepped.collect()
}

/// [`crate::squared_norm`] by reductions.
pub fn squared_norm(tensors: Vec<Tensor<1>>) -> f64 {
    tensors.into_iter().map(|x| x.square().sum().into_scalar::<f64>()).sum()
}
