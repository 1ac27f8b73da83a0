//! One step of AdamW and of the moving average, over one flat parameter.

use crate::extension::{from_cpu, into_cpu, on_plain_cpu};
use crate::{flex, plain};
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

impl AdamWStep {
    /// `1 - beta^step` of both moments.
    pub(crate) fn bias_corrections(&self) -> [f64; 2] {
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        [1.0 - self.beta1.powi(power), 1.0 - self.beta2.powi(power)]
    }
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
    if [&theta, &grad, &m, &v].into_iter().all(on_plain_cpu) {
        let cpu = [theta, grad, m, v].map(|x| into_cpu(x).expect("checked above"));
        let [theta, grad, m, v] = cpu;
        let [theta, m, v] = flex::adamw_step([theta, m, v], grad, step).map(from_cpu);
        return (theta, m, v);
    }
    plain::adamw_step(theta, grad, m, v, step)
}

/// `ema <- decay * ema + (1 - decay) * theta`.
///
/// # Shapes
/// Both `[P]`, flat, without autodiff.
pub fn ema_step(ema: Tensor<1>, theta: Tensor<1>, decay: f64) -> Tensor<1> {
    if [&ema, &theta].into_iter().all(on_plain_cpu) {
        let [ema, theta] = [ema, theta].map(|x| into_cpu(x).expect("checked above"));
        return from_cpu(flex::ema_step(ema, theta, decay));
    }
    plain::ema_step(ema, theta, decay)
}

/// Sum of squares of all entries, in f64.
pub fn squared_norm(x: Tensor<1>) -> f64 {
    if on_plain_cpu(&x) {
        return flex::squared_norm(into_cpu(x).expect("checked above"));
    }
    plain::squared_norm(x)
}
