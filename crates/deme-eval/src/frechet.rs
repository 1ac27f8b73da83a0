//! The Fréchet distance between two Gaussians (Dowson and Landau 1982), on feature statistics
//! (Heusel et al. 2017, eq. 6). No tensor engine.
//!
//! Only with Inception-v3's features is this "FID"; the caller names it after its extractor.

use crate::{EvalError, FeatureStats};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// A Fréchet distance and its two parts.
#[derive(Debug, Clone, PartialEq)]
pub struct FrechetDistance {
    /// The distance (a squared length), 0 or more.
    pub distance: f64,
    /// `||mu_a - mu_b||^2`.
    pub mean_term: f64,
    /// `tr(S_a + S_b - 2 (S_a S_b)^(1/2))`.
    pub covariance_term: f64,
    notes: Vec<String>,
}

impl FrechetDistance {
    /// What a reader of the number should know: that pictures are fewer than feature dimensions.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// `||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`.   (Heusel et al. 2017, eq. 6)
///
/// The trace of the root is the sum of the roots of the eigenvalues of `S_a^(1/2) S_b S_a^(1/2)`,
/// which is symmetric, so singular covariances need no regularisation. The result does not depend on
/// the number of threads.
///
/// # Errors
/// [`EvalError::Dimensions`], [`EvalError::NotPositive`], [`EvalError::NoConvergence`].
pub fn frechet_distance(a: &FeatureStats, b: &FeatureStats) -> Result<FrechetDistance, EvalError> {
    let dim = a.dim();
    if dim != b.dim() {
        return Err(EvalError::Dimensions { left: dim, right: b.dim() });
    }
    let mean_term: f64 = a.mu().iter().zip(b.mu()).map(|(a, b)| (a - b) * (a - b)).sum();
    let (trace_a, trace_b) = (trace(a), trace(b));
    let covariance_term = (trace_a + trace_b - 2.0 * trace_of_root(a, b)?).max(0.0);
    let notes = [a, b].iter().filter_map(|stats| note(stats)).collect();
    let distance = mean_term + covariance_term;
    Ok(FrechetDistance { distance, mean_term, covariance_term, notes })
}

fn trace(stats: &FeatureStats) -> f64 {
    let dim = stats.dim();
    (0..dim).map(|i| stats.sigma()[i * dim + i]).sum()
}

/// `tr (S_a S_b)^(1/2)`.
fn trace_of_root(a: &FeatureStats, b: &FeatureStats) -> Result<f64, EvalError> {
    let dim = a.dim();
    let (values, vectors) = eigen(symmetric(a).as_ref())?;
    // S_b is checked too: with a negative eigenvalue the product below could still look harmless.
    let (_, _) = eigen(symmetric(b).as_ref())?;
    // With S_a = U D U^T, S_a^(1/2) S_b S_a^(1/2) has the eigenvalues of D^(1/2) U^T S_b U D^(1/2).
    let root = Mat::from_fn(dim, dim, |i, j| vectors[(i, j)] * values[j].sqrt());
    let half = product(symmetric(b).as_ref(), root.as_ref());
    let full = product(root.transpose(), half.as_ref());
    let full = Mat::from_fn(dim, dim, |i, j| 0.5 * (full[(i, j)] + full[(j, i)]));
    let (values, _) = eigen(full.as_ref())?;
    Ok(values.iter().map(|value| value.sqrt()).sum())
}

fn symmetric(stats: &FeatureStats) -> Mat<f64> {
    let (dim, sigma) = (stats.dim(), stats.sigma());
    Mat::from_fn(dim, dim, |i, j| 0.5 * (sigma[i * dim + j] + sigma[j * dim + i]))
}

fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut out, Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// Eigenvalues, those below zero by rounding set to zero, and eigenvectors as columns.
fn eigen(matrix: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>), EvalError> {
    let dim = matrix.nrows();
    let mut vectors = Mat::zeros(dim, dim);
    let mut values = Diag::zeros(dim);
    let parameters = Default::default();
    let scratch =
        self_adjoint_evd_scratch::<f64>(dim, ComputeEigenvectors::Yes, Par::Seq, parameters);
    // One thread: the result must not depend on how many there are.
    self_adjoint_evd(
        matrix,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        parameters,
    )
    .map_err(|_| EvalError::NoConvergence { dim })?;
    let mut values: Vec<f64> = values.column_vector().iter().copied().collect();
    let largest = values.iter().fold(0f64, |most, value| most.max(*value));
    let size = values.iter().fold(0f64, |most, value| most.max(value.abs()));
    for value in &mut values {
        if *value < -ROUNDING * size {
            return Err(EvalError::NotPositive { eigenvalue: *value, largest });
        }
        *value = value.max(0.0);
    }
    Ok((values, vectors))
}

/// Negative eigenvalues up to this share of the largest are rounding (of float32 files).
const ROUNDING: f64 = 1e-5;

fn note(stats: &FeatureStats) -> Option<String> {
    let (count, dim) = (stats.count()?, stats.dim());
    (count <= dim as u64).then(|| {
        format!(
            "{count} pictures for {dim} feature dimensions: the covariance is singular and the \
             distance is biased; compare only numbers made from equally many pictures"
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn stats(mu: &[f64], sigma: &[f64]) -> FeatureStats {
        FeatureStats::new(mu.to_vec(), sigma.to_vec(), None).unwrap()
    }

    fn diagonal(entries: &[f64]) -> Vec<f64> {
        let dim = entries.len();
        (0..dim * dim).map(|k| if k / dim == k % dim { entries[k / dim] } else { 0.0 }).collect()
    }

    #[test]
    fn equal_covariances_leave_the_distance_of_the_means() {
        let sigma = [2.0, 0.5, 0.1, 0.5, 1.0, 0.3, 0.1, 0.3, 0.7];
        let a = stats(&[1.0, 2.0, 3.0], &sigma);
        let b = stats(&[0.0, 4.0, 3.5], &sigma);
        let distance = frechet_distance(&a, &b).unwrap();
        assert!((distance.distance - 5.25).abs() < 1e-12);
        assert_eq!(distance.mean_term, 5.25);
        assert!(frechet_distance(&a, &a).unwrap().distance < 1e-12);
    }

    #[test]
    fn diagonal_covariances_give_the_sum_of_squared_differences_of_deviations() {
        let a = stats(&[0.0; 3], &diagonal(&[4.0, 1.0, 0.0]));
        let b = stats(&[0.0; 3], &diagonal(&[9.0, 0.0, 25.0]));
        // (2 - 3)^2 + (1 - 0)^2 + (0 - 5)^2
        assert!((frechet_distance(&a, &b).unwrap().distance - 27.0).abs() < 1e-9);
    }

    #[test]
    fn a_rotation_of_both_changes_nothing() {
        // diag(4, 1) against diag(1, 9) turned by 45 degrees: (2 - 1)^2 + (1 - 3)^2
        let a = stats(&[0.0; 2], &[2.5, 1.5, 1.5, 2.5]);
        let b = stats(&[0.0; 2], &[5.0, -4.0, -4.0, 5.0]);
        assert!((frechet_distance(&a, &b).unwrap().distance - 5.0).abs() < 1e-12);
    }

    #[test]
    fn too_few_pictures_are_noted() {
        let few = FeatureStats::new(vec![0.0; 3], diagonal(&[1.0; 3]), Some(3)).unwrap();
        let many = FeatureStats::new(vec![0.0; 3], diagonal(&[1.0; 3]), Some(4)).unwrap();
        assert_eq!(frechet_distance(&few, &many).unwrap().notes().len(), 1);
        assert!(frechet_distance(&many, &many).unwrap().notes().is_empty());
    }

    #[test]
    fn unlike_dimensions_and_negative_eigenvalues_are_refused() {
        let a = stats(&[0.0; 2], &diagonal(&[1.0, 1.0]));
        let b = stats(&[0.0; 3], &diagonal(&[1.0; 3]));
        let error = frechet_distance(&a, &b).unwrap_err();
        assert!(matches!(error, EvalError::Dimensions { left: 2, right: 3 }));
        let negative = stats(&[0.0; 2], &diagonal(&[1.0, -0.5]));
        for (a, b) in [(&a, &negative), (&negative, &a)] {
            let error = frechet_distance(a, b).unwrap_err();
            assert!(
                matches!(error, EvalError::NotPositive { eigenvalue, .. } if eigenvalue == -0.5)
            );
        }
    }

    fn pair() -> impl Strategy<Value = [Vec<Vec<f64>>; 2]> {
        (1usize..6, 2usize..9, 2usize..9).prop_flat_map(|(dim, n, m)| {
            let rows = |n| prop::collection::vec(prop::collection::vec(-3.0..3.0f64, dim), n);
            (rows(n), rows(m)).prop_map(|(a, b)| [a, b])
        })
    }

    proptest! {
        #[test]
        fn it_is_symmetric_and_not_negative([a, b] in pair()) {
            let (a, b) = (FeatureStats::of(&a).unwrap(), FeatureStats::of(&b).unwrap());
            let there = frechet_distance(&a, &b).unwrap().distance;
            let back = frechet_distance(&b, &a).unwrap().distance;
            prop_assert!(there >= 0.0);
            prop_assert!((there - back).abs() < 1e-6 * there.max(1.0));
        }

        #[test]
        fn a_shift_of_both_changes_nothing([a, b] in pair(), shift in -5.0..5.0f64) {
            let distance = |a: &[Vec<f64>], b: &[Vec<f64>]| {
                let (a, b) = (FeatureStats::of(a).unwrap(), FeatureStats::of(b).unwrap());
                frechet_distance(&a, &b).unwrap().distance
            };
            let shifted = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
                rows.iter().map(|row| row.iter().map(|x| x + shift).collect()).collect()
            };
            let (plain, moved) = (distance(&a, &b), distance(&shifted(&a), &shifted(&b)));
            prop_assert!((plain - moved).abs() < 1e-6 * plain.max(1.0));
        }
    }
}
