//! The Fréchet distance between two Gaussians (Dowson and Landau 1982), on feature statistics
//! (Heusel et al. 2017, eq. 6). No tensor engine.
//!
//! Only with Inception-v3's features is this "FID"; the caller names it after its extractor.

use crate::covariance_factor::CovarianceFactor;
use crate::singular_values::singular_values;
use crate::{EvalError, FeatureStats};
use std::cmp::Ordering;

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
    /// What a reader of the number should know: that pictures are fewer than feature dimensions, that
    /// the two sides were prepared differently.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// `||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`.   (Heusel et al. 2017, eq. 6)
///
/// With `S_a = F F^T` and `S_b = G G^T` the trace of the root is the sum of the singular values of
/// `F^T G`. No root is taken, nothing is regularised, and singular covariances only make the factors
/// narrower. The result depends neither on the order of the two nor on the number of threads.
///
/// # Errors
/// As [`FeatureStats::comparable_with`]; [`EvalError::NotPositive`], [`EvalError::NoConvergence`].
pub fn frechet_distance(a: &FeatureStats, b: &FeatureStats) -> Result<FrechetDistance, EvalError> {
    a.comparable_with(b)?;
    let (left, right) = rayon::join(|| FrechetReference::new(a), || FrechetReference::new(b));
    distance_of_factored(&left?, &right?)
}

/// Statistics whose covariance has been factored once, to compare many others with them.
#[derive(Debug, Clone)]
pub struct FrechetReference<'a> {
    stats: &'a FeatureStats,
    factor: CovarianceFactor,
}

impl<'a> FrechetReference<'a> {
    /// Factors the covariance.
    ///
    /// # Errors
    /// [`EvalError::NotPositive`], [`EvalError::NoConvergence`].
    pub fn new(stats: &'a FeatureStats) -> Result<Self, EvalError> {
        Ok(Self { stats, factor: CovarianceFactor::of(stats)? })
    }

    /// [`frechet_distance`] to `other`, bit for bit.
    ///
    /// # Errors
    /// As [`frechet_distance`].
    pub fn distance_to(&self, other: &FeatureStats) -> Result<FrechetDistance, EvalError> {
        other.comparable_with(self.stats)?;
        distance_of_factored(&FrechetReference::new(other)?, self)
    }

    /// The statistics themselves.
    pub fn stats(&self) -> &'a FeatureStats {
        self.stats
    }

    pub(crate) fn factor(&self) -> &CovarianceFactor {
        &self.factor
    }
}

fn distance_of_factored(
    a: &FrechetReference<'_>,
    b: &FrechetReference<'_>,
) -> Result<FrechetDistance, EvalError> {
    let mean_term: f64 =
        a.stats.mu().iter().zip(b.stats.mu()).map(|(a, b)| (a - b) * (a - b)).sum();
    // One order for both, so that the distance there is the distance back to the last bit.
    let (first, second) = if fixed_order(a.stats, b.stats).is_le() { (a, b) } else { (b, a) };
    let roots = singular_values(first.factor.transpose_times(&second.factor))
        .map_err(|_| EvalError::NoConvergence { dim: a.stats.dim() })?;
    let trace_of_root: f64 = roots.iter().sum();
    let traces = trace(a.stats) + trace(b.stats);
    let covariance_term = (traces - 2.0 * trace_of_root).max(0.0);
    let mut notes: Vec<String> = [a, b].iter().filter_map(|side| note(side.stats)).collect();
    if let (Some(stamp), Some(other)) = (a.stats.stamp(), b.stats.stamp()) {
        notes.extend(stamp.differences(other));
    }
    let distance = mean_term + covariance_term;
    Ok(FrechetDistance { distance, mean_term, covariance_term, notes })
}

/// Some order of covariances; which one does not matter.
fn fixed_order(a: &FeatureStats, b: &FeatureStats) -> Ordering {
    let entries = || a.sigma().iter().zip(b.sigma()).map(|(a, b)| a.total_cmp(b));
    trace(a)
        .total_cmp(&trace(b))
        .then_with(|| entries().find(|o| o.is_ne()).unwrap_or(Ordering::Equal))
}

fn trace(stats: &FeatureStats) -> f64 {
    let dim = stats.dim();
    (0..dim).map(|i| stats.sigma()[i * dim + i]).sum()
}

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
    use crate::StatsStamp;
    use crate::stats_stamp::stamp_of;
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

    #[test]
    fn statistics_of_two_extractors_are_refused_by_name() {
        let stamped = |extractor, dim: usize| {
            let plain = FeatureStats::new(vec![0.0; dim], diagonal(&vec![1.0; dim]), Some(9));
            plain.unwrap().with_stamp(stamp_of(extractor, 9)).unwrap()
        };
        let (a, b) = (stamped("inception", 2), stamped("dinov2", 3));
        let error = frechet_distance(&a, &b).unwrap_err();
        assert!(matches!(error, EvalError::UnlikeExtractors { .. }));
        let error = FrechetReference::new(&a).unwrap().distance_to(&b).unwrap_err();
        assert!(matches!(error, EvalError::UnlikeExtractors { .. }));
        let same = frechet_distance(&a, &stats(&[0.0; 2], &diagonal(&[1.0, 1.0]))).unwrap();
        assert!(same.distance < 1e-12);
        let other_format =
            StatsStamp { image_format: "jpeg".to_owned(), ..stamp_of("inception", 9) };
        let c = stats(&[0.0; 2], &diagonal(&[1.0, 1.0])).with_stamp(other_format).unwrap();
        assert_eq!(frechet_distance(&a, &c).unwrap().notes().len(), 1);
    }

    #[test]
    fn a_factored_reference_gives_the_same_bits_on_any_number_of_threads() {
        let features = |seed: usize, count: usize| -> Vec<Vec<f64>> {
            let entry =
                |i: usize, j: usize| (((i * 37 + j * 11 + seed) * (i + j + 1)) % 101) as f64;
            (0..count).map(|i| (0..300).map(|j| entry(i, j)).collect()).collect()
        };
        let (a, b) = (
            FeatureStats::of(&features(1, 400)).unwrap(),
            FeatureStats::of(&features(5, 90)).unwrap(),
        );
        let distance = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| frechet_distance(&a, &b).unwrap())
        };
        let one = distance(1);
        assert_eq!(one, distance(2));
        assert_eq!(one, distance(3));
        assert_eq!(one.distance, frechet_distance(&b, &a).unwrap().distance);
        assert_eq!(one, FrechetReference::new(&b).unwrap().distance_to(&a).unwrap());
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
            prop_assert_eq!(there, back);
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
