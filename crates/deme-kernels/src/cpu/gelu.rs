//! The Gaussian error linear unit (Hendrycks and Gimpel 2016) as a gate.

use super::simd::{MulAdd, multiversioned};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Entries that are worth a task.
const TASK: usize = 1 << 14;

/// `y = a gelu(b)` for rows of `inner` entries a and as many b. On return all of y is written.
pub(crate) fn geglu(x: &[f32], inner: usize, y: &mut [MaybeUninit<f32>]) {
    assert_eq!(x.len(), 2 * y.len());
    if y.is_empty() {
        return;
    }
    assert!(y.len().is_multiple_of(inner));
    let rows = TASK.div_ceil(inner);
    y.par_chunks_mut(rows * inner)
        .zip(x.par_chunks(rows * 2 * inner))
        .for_each(|(y, x)| geglu_rows(x, inner, y));
}

multiversioned! {
    fn geglu_rows(x: &[f32], inner: usize, y: &mut [MaybeUninit<f32>]) = geglu_rows_with
}

#[inline(always)]
fn geglu_rows_with<F: MulAdd>(x: &[f32], inner: usize, y: &mut [MaybeUninit<f32>]) {
    for (x, y) in x.chunks_exact(2 * inner).zip(y.chunks_exact_mut(inner)) {
        let (a, b) = x.split_at(inner);
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            y.write(a * gelu::<F>(*b));
        }
    }
}

/// `x Phi(x)`, Phi the normal distribution function.
#[inline(always)]
fn gelu<F: MulAdd>(x: f32) -> f32 {
    let half = 0.5 * x;
    F::mul_add(half, erf::<F>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// The error function within 5e-7, branch-free so that loops over it become vector code; NaN stays.
///
/// An odd rational function of degree 13 over 8, as of where it is 1 in f32 (beyond 4).
#[inline(always)]
fn erf<F: MulAdd>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = F::mul_add(s, -2.726_142e-10, 2.770_681_4e-8);
    let p = F::mul_add(p, s, -2.101_024e-6);
    let p = F::mul_add(p, s, -5.692_506e-5);
    let p = F::mul_add(p, s, -7.349_906e-4);
    let p = F::mul_add(p, s, -2.954_6e-3);
    let p = F::mul_add(p, s, -1.609_603_3e-2);
    let q = F::mul_add(s, -1.456_607_2e-5, -2.133_740_5e-4);
    let q = F::mul_add(q, s, -1.682_827e-3);
    let q = F::mul_add(q, s, -7.373_329e-3);
    let q = F::mul_add(q, s, -1.426_473_9e-2);
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Fused, Separate};

    /// The error function in f64, by its series around 0.
    fn erf_f64(x: f64) -> f64 {
        let (mut sum, mut term) = (0.0, x);
        for n in 0..200 {
            sum += term / f64::from(2 * n + 1);
            term *= -x * x / f64::from(n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn check<F: MulAdd>() {
        for i in -500..=500 {
            let x = i as f32 * 0.01;
            let error = (f64::from(erf::<F>(x)) - erf_f64(x.into())).abs();
            assert!(error < 5e-7, "erf({x}) is off by {error:e}");
            let expected = f64::from(x) * 0.5 * (1.0 + erf_f64(f64::from(x) / 2f64.sqrt()));
            let error = (f64::from(gelu::<F>(x)) - expected).abs();
            assert!(error < 1e-6 * f64::from(x.abs()).max(1.0), "gelu({x}) is off by {error:e}");
        }
        assert!(erf::<F>(f32::NAN).is_nan() && gelu::<F>(f32::NAN).is_nan());
        assert!((gelu::<F>(100.0) - 100.0).abs() < 1e-4);
        assert!(gelu::<F>(-100.0).abs() < 1e-4);
    }

    #[test]
    fn the_error_function_and_the_unit_follow_f64() {
        check::<Fused>();
        check::<Separate>();
    }
}
