//! The optimiser's arithmetic: one pass over memory, in place.

use super::simd::{MulAdd, multiversioned};
use crate::AdamWStep;
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
        }
    }
}

/// One AdamW step in place.
pub(crate) fn adamw(
    step: &AdamWStep,
    theta: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    assert_eq!([theta.len(), m.len(), v.len()], [grad.len(); 3]);
    let scalars = Scalars::from(step);
    theta
        .par_chunks_mut(CHUNK)
        .zip(grad.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .for_each(|(((theta, grad), m), v)| adamw_chunk(scalars, theta, grad, m, v));
}

multiversioned! {
    fn adamw_chunk(s: Scalars, theta: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) = adamw_chunk_with
}

/// Every operation is rounded as in the plain path: no fused multiply-add.
#[inline(always)]
fn adamw_chunk_with<F: MulAdd>(
    s: Scalars,
    theta: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    for (((theta, grad), m), v) in theta.iter_mut().zip(grad).zip(m).zip(v) {
        let grad = grad * s.grad_scale;
        *m = *m * s.beta1 + grad * s.one_minus_beta1;
        *v = *v * s.beta2 + grad * grad * s.one_minus_beta2;
        let denominator = v.sqrt() / s.root_correction2 + s.eps;
        *theta = *theta * s.keep - (*m / denominator) * s.rate;
    }
}

/// ema <- decay ema + (1 - decay) theta, in place.
pub(crate) fn ema(ema: &mut [f32], theta: &[f32], decay: f64) {
    assert_eq!(ema.len(), theta.len());
    let (keep, take) = (decay as f32, (1.0 - decay) as f32);
    let chunks = ema.par_chunks_mut(CHUNK).zip(theta.par_chunks(CHUNK));
    chunks.for_each(|(ema, theta)| ema_chunk(ema, theta, keep, take));
}

multiversioned! {
    fn ema_chunk(ema: &mut [f32], theta: &[f32], keep: f32, take: f32) = ema_chunk_with
}

#[inline(always)]
fn ema_chunk_with<F: MulAdd>(ema: &mut [f32], theta: &[f32], keep: f32, take: f32) {
    for (ema, theta) in ema.iter_mut().zip(theta) {
        *ema = *ema * keep + theta * take;
    }
}

/// Sum of squares in f64: blocks of one size, added in their order.
pub(crate) fn squared_norm(x: &[f32]) -> f64 {
    let blocks: Vec<f64> = x.par_chunks(CHUNK).map(square_sum).collect();
    blocks.iter().sum()
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
