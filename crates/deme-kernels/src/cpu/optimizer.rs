//! The optimiser's arithmetic: one pass over memory, in place.

use super::simd::{MulAdd, multiversioned};
use crate::{AdamWStep, ParameterState};
use rayon::prelude::*;

/// Entries handed to a thread at once; also the blocks of the sum of squares.
const CHUNK: usize = 1 << 14;

/// The scalars of a step, rounded to f32 as the tensor operations round them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalars {
    grad_scale: f32,
    keep: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    rate: f32,
    average_keep: f32,
    average_take: f32,
}

impl From<&AdamWStep> for Scalars {
    fn from(step: &AdamWStep) -> Self {
        let [correction1, correction2] = step.bias_corrections();
        Self {
            grad_scale: step.grad_scale as f32,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            beta1: step.beta1 as f32,
            one_minus_beta1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            one_minus_beta2: (1.0 - step.beta2) as f32,
            root_correction2: correction2.sqrt() as f32,
            eps: step.eps as f32,
            rate: (step.learning_rate / correction1) as f32,
            average_keep: step.average_decay as f32,
            average_take: (1.0 - step.average_decay) as f32,
        }
    }
}

impl Scalars {
    /// The new theta of one entry, whose moments are changed. Every operation is rounded as in the
    /// plain path: no fused multiply-add.
    #[inline(always)]
    fn entry(&self, theta: f32, grad: f32, m: &mut f32, v: &mut f32) -> f32 {
        let grad = grad * self.grad_scale;
        *m = *m * self.beta1 + grad * self.one_minus_beta1;
        *v = *v * self.beta2 + grad * grad * self.one_minus_beta2;
        let denominator = v.sqrt() / self.root_correction2 + self.eps;
        theta * self.keep - (*m / denominator) * self.rate
    }
}

/// One AdamW step of every parameter with its gradient, and one of its average, in place.
///
/// The chunks of all parameters go to the threads together: a network has hundreds of parameters,
/// most of them too small to be worth a parallel loop of their own.
pub(crate) fn adamw<'a>(
    step: &AdamWStep,
    parameters: impl Iterator<Item = (ParameterState<&'a mut [f32]>, &'a [f32])>,
) {
    let mut chunks = Vec::new();
    for (ParameterState { theta, m, v, average }, grad) in parameters {
        assert_eq!([theta.len(), m.len(), v.len()], [grad.len(); 3]);
        assert!(average.as_ref().is_none_or(|average| average.len() == grad.len()));
        let mut averages = average.map(|average| average.chunks_mut(CHUNK));
        let moments = m.chunks_mut(CHUNK).zip(v.chunks_mut(CHUNK));
        let parts = theta.chunks_mut(CHUNK).zip(moments).zip(grad.chunks(CHUNK));
        chunks.extend(parts.map(|((theta, (m, v)), grad)| {
            let average = averages.as_mut().and_then(Iterator::next);
            (ParameterState { theta, m, v, average }, grad)
        }));
    }
    let s = Scalars::from(step);
    chunks.into_par_iter().for_each(
        |(ParameterState { theta, m, v, average }, grad)| match average {
            None => adamw_chunk(s, theta, grad, m, v),
            Some(average) => averaged_chunk(s, theta, grad, m, v, average),
        },
    );
}

multiversioned! {
    fn adamw_chunk(s: Scalars, theta: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) = adamw_chunk_with
}

#[inline(always)]
fn adamw_chunk_with<F: MulAdd>(
    s: Scalars,
    theta: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    for (((theta, grad), m), v) in theta.iter_mut().zip(grad).zip(m).zip(v) {
        *theta = s.entry(*theta, *grad, m, v);
    }
}

multiversioned! {
    fn averaged_chunk(
        s: Scalars,
        theta: &mut [f32],
        grad: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        average: &mut [f32],
    ) = averaged_chunk_with
}

#[inline(always)]
fn averaged_chunk_with<F: MulAdd>(
    s: Scalars,
    theta: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    average: &mut [f32],
) {
    let entries = theta.iter_mut().zip(grad).zip(m).zip(v).zip(average);
    for ((((theta, grad), m), v), average) in entries {
        *theta = s.entry(*theta, *grad, m, v);
        *average = *average * s.average_keep + *theta * s.average_take;
    }
}

/// Sum of squares in f64: blocks of one size, added in their order, then the tensors in theirs.
pub(crate) fn squared_norm(tensors: &[&[f32]]) -> f64 {
    let blocks: Vec<&[f32]> = tensors.iter().flat_map(|x| x.chunks(CHUNK)).collect();
    let squares: Vec<f64> = blocks.into_par_iter().map(square_sum).collect();
    let mut squares = squares.into_iter();
    let of_tensor = |x: &&[f32]| squares.by_ref().take(x.len().div_ceil(CHUNK)).sum::<f64>();
    tensors.iter().map(of_tensor).sum()
}

multiversioned! {
    fn square_sum(x: &[f32]) -> f64 = square_sum_with
}

#[inline(always)]
fn square_sum_with<F: MulAdd>(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for x in chunks {
        for i in 0..16 {
            lanes[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lanes[i] += f64::from(*x) * f64::from(*x);
    }
    lanes.iter().sum()
}
