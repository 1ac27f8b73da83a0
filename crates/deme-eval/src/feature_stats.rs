//! Mean and covariance of features, in f64, and their `.npz` files. No tensor engine.
//!
//! Features are taken in blocks of fixed size by picture index; each block is reduced by itself and
//! merged into the whole (Chan, Golub and LeVeque 1983, eq. 2.1). How features are handed over, and
//! on how many threads the sums run, does not change a bit.

use crate::npz;
use crate::tiles::for_each_tile;
use crate::{EvalError, StatsStamp};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use std::path::Path;

/// Pictures per block.
const BLOCK: usize = 256;

/// Which statistics of an `.npz` file. Those of Inception's spatial features (sFID) stand beside the
/// usual ones in the reference batches of Dhariwal and Nichol (2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsArrays {
    /// `mu` and `sigma`.
    Pooled,
    /// `mu_s` and `sigma_s`.
    Spatial,
}

impl StatsArrays {
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Pooled => ("mu", "sigma"),
            Self::Spatial => ("mu_s", "sigma_s"),
        }
    }
}

/// Mean and covariance of the features of a set of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureStats {
    mu: Vec<f64>,
    sigma: Vec<f64>,
    count: Option<u64>,
    stamp: Option<StatsStamp>,
}

impl FeatureStats {
    /// From a mean of d entries and a covariance of d x d entries, row major.
    ///
    /// `count` is the number of pictures, where it is known.
    ///
    /// # Errors
    /// [`EvalError::Dimensions`] when `sigma` is not d x d, [`EvalError::NonFiniteStats`],
    /// [`EvalError::NotSymmetric`].
    pub fn new(mu: Vec<f64>, sigma: Vec<f64>, count: Option<u64>) -> Result<Self, EvalError> {
        let dim = mu.len();
        if sigma.len() != dim * dim {
            return Err(EvalError::Dimensions { left: dim, right: sigma.len().isqrt() });
        }
        for (array, values) in [("mu", &mu), ("sigma", &sigma)] {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(EvalError::NonFiniteStats { array, index, value: values[index] });
            }
        }
        let largest = sigma.iter().fold(0f64, |most, value| most.max(value.abs()));
        for row in 0..dim {
            for column in row + 1..dim {
                let (upper, lower) = (sigma[row * dim + column], sigma[column * dim + row]);
                // np.cov and f32 files are symmetric up to rounding only.
                if (upper - lower).abs() > 1e-5 * largest {
                    return Err(EvalError::NotSymmetric { row, column, upper, lower });
                }
            }
        }
        Ok(Self { mu, sigma, count, stamp: None })
    }

    /// Of a list of features.
    ///
    /// # Errors
    /// As [`FeatureAccumulator::push`] and [`FeatureAccumulator::finish`].
    pub fn of<T: Copy + Into<f64>, R: AsRef<[T]>>(features: &[R]) -> Result<Self, EvalError> {
        let dim = features.first().map_or(0, |row| row.as_ref().len());
        let mut accumulator = FeatureAccumulator::new(dim);
        for row in features {
            accumulator.push(row.as_ref())?;
        }
        accumulator.finish()
    }

    /// Reads the arrays `mu` and `sigma` of an `.npz` file (pytorch-fid's), or `mu_s` and `sigma_s`
    /// where only these are there, and `count` and the stamp where we wrote them.
    ///
    /// # Errors
    /// [`EvalError::Io`], [`EvalError::Npz`], [`EvalError::MissingArray`],
    /// [`EvalError::PicturesNotStatistics`], [`EvalError::ArrayType`], [`EvalError::ArrayShape`],
    /// [`EvalError::ArrayLength`], [`EvalError::Stamp`], and as [`FeatureStats::new`].
    pub fn load_npz(path: &Path) -> Result<Self, EvalError> {
        let spatial_only =
            !npz::holds(path, StatsArrays::Pooled)? && npz::holds(path, StatsArrays::Spatial)?;
        let arrays = if spatial_only { StatsArrays::Spatial } else { StatsArrays::Pooled };
        Self::load_npz_arrays(path, arrays)
    }

    /// Reads these arrays of an `.npz` file.
    ///
    /// # Errors
    /// As [`FeatureStats::load_npz`].
    pub fn load_npz_arrays(path: &Path, arrays: StatsArrays) -> Result<Self, EvalError> {
        let stored = npz::read_stats(path, arrays)?;
        let stats = Self::new(stored.mu, stored.sigma, stored.count)?;
        Ok(Self { stamp: stored.stamp, ..stats })
    }

    /// Writes `mu`, `sigma` (float64) and, where they are known, `count` and the stamp, stored,
    /// atomically.
    ///
    /// # Errors
    /// [`EvalError::Io`].
    pub fn save_npz(&self, path: &Path) -> Result<(), EvalError> {
        npz::write_stats(path, &self.mu, &self.sigma, self.count, self.stamp.as_ref())
    }

    /// The same statistics with a note of how they were made.
    ///
    /// # Errors
    /// [`EvalError::StampCount`] when the stamp names another number of pictures.
    pub fn with_stamp(self, stamp: StatsStamp) -> Result<Self, EvalError> {
        match self.count {
            Some(count) if count != stamp.count => {
                Err(EvalError::StampCount { stamp: stamp.count, count })
            }
            _ => Ok(Self { count: Some(stamp.count), stamp: Some(stamp), ..self }),
        }
    }

    /// How they were made, where it is known.
    pub fn stamp(&self) -> Option<&StatsStamp> {
        self.stamp.as_ref()
    }

    /// Whether a distance to `other` means anything.
    ///
    /// # Errors
    /// [`EvalError::UnlikeExtractors`] when both are stamped and by different extractors,
    /// [`EvalError::Dimensions`].
    pub fn comparable_with(&self, other: &Self) -> Result<(), EvalError> {
        if let (Some(stamp), Some(others)) = (&self.stamp, &other.stamp) {
            stamp.same_extractor(others)?;
        }
        if self.dim() == other.dim() {
            Ok(())
        } else {
            Err(EvalError::Dimensions { left: self.dim(), right: other.dim() })
        }
    }

    /// Number of dimensions d.
    pub fn dim(&self) -> usize {
        self.mu.len()
    }

    /// The mean, `[d]`.
    pub fn mu(&self) -> &[f64] {
        &self.mu
    }

    /// The covariance with the divisor `count - 1`, `[d, d]` row major.
    pub fn sigma(&self) -> &[f64] {
        &self.sigma
    }

    /// Number of pictures, where it is known.
    pub fn count(&self) -> Option<u64> {
        self.count
    }
}

/// Takes features one picture after the other.
#[derive(Debug, Clone)]
pub struct FeatureAccumulator {
    dim: usize,
    /// The features of the block that is not full yet, row by row.
    block: Vec<f64>,
    /// Pictures in finished blocks.
    count: u64,
    mean: Vec<f64>,
    /// Sum of the outer products of deviations, `[d, d]`; only entries with row >= column are used.
    scatter: Mat<f64>,
}

impl FeatureAccumulator {
    /// For features of `dim` entries.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            block: Vec::with_capacity((BLOCK + 1) * dim),
            count: 0,
            mean: vec![0.0; dim],
            scatter: Mat::zeros(dim, dim),
        }
    }

    /// Number of pictures so far.
    pub fn count(&self) -> u64 {
        let rows = self.block.len().checked_div(self.dim).unwrap_or(0);
        self.count + rows as u64
    }

    /// Takes the next picture's feature.
    ///
    /// # Errors
    /// [`EvalError::FeatureLength`], [`EvalError::NonFiniteFeature`].
    pub fn push<T: Copy + Into<f64>>(&mut self, feature: &[T]) -> Result<(), EvalError> {
        let index = self.count();
        if feature.len() != self.dim || self.dim == 0 {
            let (found, expected) = (feature.len(), self.dim);
            return Err(EvalError::FeatureLength { index, found, expected });
        }
        let start = self.block.len();
        self.block.extend(feature.iter().map(|&value| value.into()));
        if let Some(&value) = self.block[start..].iter().find(|value| !value.is_finite()) {
            self.block.truncate(start);
            return Err(EvalError::NonFiniteFeature { index, value });
        }
        if self.block.len() == BLOCK * self.dim {
            self.merge_block();
        }
        Ok(())
    }

    /// Mean and covariance of all pictures.
    ///
    /// # Errors
    /// [`EvalError::TooFew`] with fewer than two.
    pub fn finish(mut self) -> Result<FeatureStats, EvalError> {
        self.merge_block();
        if self.count < 2 {
            return Err(EvalError::TooFew { count: self.count });
        }
        let divisor = (self.count - 1) as f64;
        let (dim, scatter) = (self.dim, self.scatter);
        let mut sigma = Vec::with_capacity(dim * dim);
        for row in 0..dim {
            sigma.extend(
                (0..dim).map(|column| scatter[(row.max(column), row.min(column))] / divisor),
            );
        }
        FeatureStats::new(self.mean, sigma, Some(self.count))
    }

    /// n = n_A + n_B, delta = mean_B - mean_A, mean = mean_A + delta n_B / n,
    /// S = S_A + S_B + delta delta^T n_A n_B / n.   (Chan et al. 1983, eq. 2.1, for vectors)
    fn merge_block(&mut self) {
        let dim = self.dim;
        let rows = self.block.len().checked_div(dim).unwrap_or(0);
        if rows == 0 {
            return;
        }
        let mut mean = vec![0.0; dim];
        for row in self.block.chunks(dim) {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= rows as f64);
        for row in self.block.chunks_mut(dim) {
            row.iter_mut().zip(&mean).for_each(|(value, mean)| *value -= mean);
        }
        let (before, added) = (self.count as f64, rows as f64);
        let total = before + added;
        let delta: Vec<f64> = mean.iter().zip(&self.mean).map(|(b, a)| b - a).collect();
        // As one deviation more, the step between the means is added by the same product.
        let weight = (before * added / total).sqrt();
        self.block.extend(delta.iter().map(|delta| delta * weight));
        let deviations = MatRef::from_row_major_slice(&self.block, rows + 1, dim);
        // Each entry is summed by one thread, in the order of the pictures.
        for_each_tile(self.scatter.as_mut(), |rows, columns, tile| {
            if rows.end > columns.start {
                let left = deviations.subcols(rows.start, rows.len()).transpose();
                let right = deviations.subcols(columns.start, columns.len());
                matmul(tile, Accum::Add, left, right, 1.0, Par::Seq);
            }
        });
        self.mean.iter_mut().zip(&delta).for_each(|(mean, delta)| *mean += delta * added / total);
        self.count += rows as u64;
        self.block.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats_stamp::stamp_of;
    use proptest::prelude::*;

    /// Two passes, as the textbook has it.
    fn naive(rows: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let (n, dim) = (rows.len() as f64, rows[0].len());
        let mean: Vec<f64> =
            (0..dim).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / n).collect();
        let cov = |i: usize, j: usize| {
            let products = rows.iter().map(|row| (row[i] - mean[i]) * (row[j] - mean[j]));
            products.sum::<f64>() / (n - 1.0)
        };
        let sigma = (0..dim * dim).map(|k| cov(k / dim, k % dim)).collect();
        (mean, sigma)
    }

    fn rows(max: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
        (1usize..5).prop_flat_map(move |dim| {
            prop::collection::vec(prop::collection::vec(-10.0..10.0f64, dim), 2..max)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn blocks_give_the_two_pass_result(rows in rows(3 * BLOCK)) {
            let stats = FeatureStats::of(&rows).unwrap();
            let (mu, sigma) = naive(&rows);
            for (found, expected) in stats.mu().iter().zip(&mu).chain(stats.sigma().iter().zip(&sigma)) {
                prop_assert!((found - expected).abs() < 1e-10);
            }
            prop_assert_eq!(stats.count(), Some(rows.len() as u64));
        }

        #[test]
        fn the_number_of_threads_changes_no_bit(rows in rows(2 * BLOCK)) {
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let many = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let a = alone.install(|| FeatureStats::of(&rows).unwrap());
            let b = many.install(|| FeatureStats::of(&rows).unwrap());
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn a_large_offset_loses_nothing() {
        let rows: Vec<Vec<f64>> = (0..1000).map(|i| vec![1e9 + f64::from(i % 2)]).collect();
        let stats = FeatureStats::of(&rows).unwrap();
        assert!((stats.sigma()[0] - 0.25 * 1000.0 / 999.0).abs() < 1e-9);
    }

    #[test]
    fn wide_features_are_summed_alike_on_any_number_of_threads() {
        // More than one tile and more than one block.
        let entry = |i: usize, j: usize| (((i * 37 + j * 11) * (i + j + 1)) % 1009) as f64;
        let rows: Vec<Vec<f64>> =
            (0..2 * BLOCK + 9).map(|i| (0..600).map(|j| entry(i, j)).collect()).collect();
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| FeatureStats::of(&rows).unwrap())
        };
        let one = of(1);
        assert_eq!(one, of(2));
        assert_eq!(one, of(3));
        let (mu, sigma) = naive(&rows);
        for (found, expected) in one.mu().iter().zip(&mu).chain(one.sigma().iter().zip(&sigma)) {
            assert!((found - expected).abs() < 1e-12 * 1009.0 * 1009.0);
        }
    }

    #[test]
    fn a_stamp_for_another_number_of_pictures_is_refused() {
        let stats = FeatureStats::of(&[[1.0], [2.0], [4.0]]).unwrap();
        assert_eq!(stats.stamp(), None);
        let stamp = stamp_of("inception", 3);
        assert_eq!(stats.clone().with_stamp(stamp.clone()).unwrap().stamp(), Some(&stamp));
        let error = stats.with_stamp(stamp_of("inception", 4)).unwrap_err();
        assert!(matches!(error, EvalError::StampCount { stamp: 4, count: 3 }));
    }

    #[test]
    fn features_of_another_length_or_not_finite_are_refused() {
        let mut accumulator = FeatureAccumulator::new(2);
        accumulator.push(&[1.0f32, 2.0]).unwrap();
        let error = accumulator.push(&[1.0f32]).unwrap_err();
        assert!(matches!(error, EvalError::FeatureLength { index: 1, found: 1, expected: 2 }));
        let error = accumulator.push(&[1.0, f64::INFINITY]).unwrap_err();
        assert!(matches!(error, EvalError::NonFiniteFeature { index: 1, .. }));
        assert_eq!(accumulator.count(), 1);
        assert!(matches!(accumulator.finish().unwrap_err(), EvalError::TooFew { count: 1 }));
    }

    #[test]
    fn impossible_statistics_are_refused() {
        let error = FeatureStats::new(vec![0.0; 2], vec![0.0; 3], None).unwrap_err();
        assert!(matches!(error, EvalError::Dimensions { left: 2, .. }));
        let error = FeatureStats::new(vec![0.0], vec![f64::NAN], None).unwrap_err();
        assert!(matches!(error, EvalError::NonFiniteStats { array: "sigma", index: 0, .. }));
        let error = FeatureStats::new(vec![0.0; 2], vec![1.0, 0.5, 0.4, 1.0], None).unwrap_err();
        assert!(matches!(error, EvalError::NotSymmetric { row: 0, column: 1, .. }));
    }
}
