//! One step of AdamW and of the moving average, over all parameters together.

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
    /// Decay of the moving averages, for the parameters that have one.
    pub average_decay: f64,
}

impl AdamWStep {
    /// `1 - beta^step` of both moments.
    pub(crate) fn bias_corrections(&self) -> [f64; 2] {
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        [1.0 - self.beta1.powi(power), 1.0 - self.beta2.powi(power)]
    }
}

/// One parameter in training and what is kept of it from step to step.
///
/// # Shapes
/// All `[P]`, flat, without autodiff.
#[derive(Debug, Clone)]
pub struct ParameterState<T = Tensor<1>> {
    /// The parameter.
    pub theta: T,
    /// First moment of its gradient.
    pub m: T,
    /// Second moment.
    pub v: T,
    /// Its moving average, where there is one.
    pub average: Option<T>,
}

impl<T> ParameterState<T> {
    /// Every part by `f`.
    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> ParameterState<U> {
        let Self { theta, m, v, average } = self;
        ParameterState { theta: f(theta), m: f(m), v: f(v), average: average.map(f) }
    }

    /// The parts, to be changed.
    pub(crate) fn as_mut(&mut self) -> ParameterState<&mut T> {
        let Self { theta, m, v, average } = self;
        ParameterState { theta, m, v, average: average.as_mut() }
    }

    /// The parts, to be read.
    fn parts(&self) -> impl Iterator<Item = &T> {
        [&self.theta, &self.m, &self.v].into_iter().chain(&self.average)
    }
}

/// Every parameter after one AdamW step with its gradient, and after that, where it has a moving
/// average, `average <- decay * average + (1 - decay) * theta`; every operation in PyTorch's order.
///
/// On the CPU all of it is one pass over memory, in place where a tensor is not shared.
///
/// # Shapes
/// The gradients are flat like the parameters, `[P]` each, without autodiff.
pub fn adamw_steps(
    parameters: Vec<(ParameterState, Tensor<1>)>,
    step: &AdamWStep,
) -> Vec<ParameterState> {
    let on_cpu =
        |(state, grad): &(ParameterState, Tensor<1>)| state.parts().chain([grad]).all(on_plain_cpu);
    if parameters.iter().all(on_cpu) {
        let cpu = |x| into_cpu(x).expect("checked above");
        let parameters = parameters.into_iter().map(|(state, grad)| (state.map(cpu), cpu(grad)));
        let states = flex::adamw_steps(parameters.collect(), step);
        return states.into_iter().map(|state| state.map(from_cpu)).collect();
    }
    plain::adamw_steps(parameters, step)
}

/// Sum of squares of all entries of all tensors, in f64: of each tensor, and of those sums.
pub fn squared_norm(tensors: Vec<Tensor<1>>) -> f64 {
    if tensors.iter().all(on_plain_cpu) {
        let cpu = tensors.into_iter().map(|x| into_cpu(x).expect("checked above"));
        return flex::squared_norm(cpu.collect());
    }
    plain::squared_norm(tensors)
}
