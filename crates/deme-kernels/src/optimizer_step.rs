//! One step of AdamW and of the moving average, over one flat parameter.

use burn::tensor::Tensor;

/// The scalars of one AdamW step (Loshchilov and Hutter 2019, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// 1-based number of this step, for the bias corrections `1 - beta^step`.
    pub step: u64,
    /// Multiplies the gradient first (norm clipping).
    pub grad_scale: f64,
}

/// Returns `(theta, m, v)` after one AdamW step; every operation in PyTorch's order.
///
/// # Shapes
/// All `[P]`, flat, without autodiff.
pub fn adamw_step(
    theta: Tensor<1>,
    grad: Tensor<1>,
    m: Tensor<1>,
    v: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, grad_scale } = *step;
    let power = i32::try_from(step).unwrap_or(i32::MAX);
    let correction1 = 1.0 - beta1.powi(power);
    let correction2 = 1.0 - beta2.powi(power);
    let grad = grad * grad_scale;
    let theta = theta * (1.0 - learning_rate * weight_decay);
    let m = m * beta1 + grad.clone() * (1.0 - beta1);
    let v = v * beta2 + grad.square() * (1.0 - beta2);
    let denominator = v.clone().sqrt() / correction2.sqrt() + eps;
    let theta = theta - (m.clone() / denominator) * (learning_rate / correction1);
    (theta, m, v)
}

/// `ema <- decay * ema + (1 - decay) * theta`.
///
/// # Shapes
/// Both `[P]`, flat, without autodiff.
pub fn ema_step(ema: Tensor<1>, theta: Tensor<1>, decay: f64) -> Tensor<1> {
    ema * decay + theta * (1.0 - decay)
}

/// Sum of squares of all entries, in f64.
pub fn squared_norm(x: Tensor<1>) -> f64 {
    f64::from(x.square().sum().into_scalar::<f32>())
}
