//! Layer norm (Ba et al. 2016, arXiv 1607.06450, eq. 4): each row by its own mean and deviation.

use super::simd::{MulAdd, multiversioned};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Entries that are worth a task.
const TASK: usize = 1 << 14;
/// Sums that run side by side, so that they become vectors; they are added up in one order.
const LANES: usize = 32;

/// `y = (x - mean) / sqrt(variance + eps) weight + bias` for rows as long as `weight`. On return all of y is written.
pub(crate) fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [MaybeUninit<f32>],
) {
    let width = weight.len();
    assert!(x.len() == y.len() && bias.len() == width);
    if y.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(width));
    let entries = TASK.div_ceil(width) * width;
    y.par_chunks_mut(entries)
        .zip(x.par_chunks(entries))
        .for_each(|(y, x)| normalise_rows(x, weight, bias, eps, y));
}

multiversioned! {
    fn normalise_rows(
        x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [MaybeUninit<f32>]
    ) = normalise_rows_with
}

#[inline(always)]
fn normalise_rows_with<F: MulAdd>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [MaybeUninit<f32>],
) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = sum(x, |x, sum| sum + x) / width as f32;
        let squares = sum(x, |x, sum| F::mul_add(x - mean, x - mean, sum));
        let inverse = 1.0 / (squares / width as f32 + eps).sqrt();
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            y.write(F::mul_add((x - mean) * inverse, *weight, *bias));
        }
    }
}

/// A sum over a row, `add(entry, sum so far)` at a time.
#[inline(always)]
fn sum(row: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let whole = row.chunks_exact(LANES);
    let rest = whole.remainder();
    for entries in whole {
        for lane in 0..LANES {
            sums[lane] = add(entries[lane], sums[lane]);
        }
    }
    let rest = rest.iter().fold(0.0, |sum, &entry| add(entry, sum));
    sums.into_iter().sum::<f32>() + rest
}
