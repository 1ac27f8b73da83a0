//! A covariance S as F F^T, with as many columns in F as S has rank. No tensor engine.
//!
//! Cholesky's factorisation with pivots (Higham 2002, section 10.3) finds F of any covariance in
//! exact double precision and tells its rank. What it cannot factor, covariances that were rounded to
//! float32 and matrices that are no covariances, goes through the eigenvalues, which say how negative
//! the matrix is.

use crate::tiles::{for_each_tile, product};
use crate::{EvalError, FeatureStats};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt_pivoting::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// Negative eigenvalues up to this share of the largest are rounding (of float32 files).
const ROUNDING: f64 = 1e-5;

/// What Cholesky's factor may leave of a matrix, in units of d eps times its largest diagonal entry,
/// the size at which its pivots end.
const REMAINDER: f64 = 4.0;

/// F with S = F F^T.
#[derive(Debug, Clone)]
pub(crate) struct CovarianceFactor {
    /// d x r. Row i belongs to dimension `order[i]`.
    rows: Mat<f64>,
    order: Vec<usize>,
    /// Whether entries above the diagonal of `rows` are zero.
    triangular: bool,
}

impl CovarianceFactor {
    /// Of the covariance of `stats`, on one thread.
    ///
    /// # Errors
    /// [`EvalError::NotPositive`], [`EvalError::NoConvergence`].
    pub(crate) fn of(stats: &FeatureStats) -> Result<Self, EvalError> {
        let (dim, sigma) = (stats.dim(), stats.sigma());
        let matrix = Mat::from_fn(dim, dim, |i, j| 0.5 * (sigma[i * dim + j] + sigma[j * dim + i]));
        Self::by_cholesky(&matrix).map_or_else(|| Self::by_eigenvalues(matrix.as_ref()), Ok)
    }

    /// Columns of F.
    pub(crate) fn rank(&self) -> usize {
        self.rows.ncols()
    }

    /// `F^T G`, r x r' for the factor G of another covariance.
    pub(crate) fn transpose_times(&self, other: &Self) -> Mat<f64> {
        let dim = self.rows.nrows();
        let mut row_of = vec![0; dim];
        other.order.iter().enumerate().for_each(|(row, &dimension)| row_of[dimension] = row);
        let right = Mat::from_fn(dim, other.rank(), |i, j| other.rows[(row_of[self.order[i]], j)]);
        let mut out = Mat::zeros(self.rank(), other.rank());
        for_each_tile(out.as_mut(), |rows, columns, tile| {
            let first = if self.triangular { rows.start } else { 0 };
            let left = self.rows.as_ref().submatrix(first, rows.start, dim - first, rows.len());
            let right = right.as_ref().submatrix(first, columns.start, dim - first, columns.len());
            matmul(tile, Accum::Replace, left.transpose(), right, 1.0, Par::Seq);
        });
        out
    }

    /// `X F`, n x r for n rows of d entries.
    pub(crate) fn times_rows(&self, x: MatRef<'_, f64>) -> Mat<f64> {
        let sorted = Mat::from_fn(x.nrows(), x.ncols(), |i, j| x[(i, self.order[j])]);
        product(sorted.as_ref(), self.rows.as_ref())
    }

    /// `None` when F F^T is not the matrix up to rounding in double precision.
    fn by_cholesky(matrix: &Mat<f64>) -> Option<Self> {
        let dim = matrix.nrows();
        let largest = (0..dim).fold(0f64, |most, i| most.max(matrix[(i, i)]));
        if largest == 0.0 {
            let zero = (0..dim).all(|j| (0..dim).all(|i| matrix[(i, j)] == 0.0));
            let (rows, order) = (Mat::zeros(dim, 0), (0..dim).collect());
            return zero.then_some(Self { rows, order, triangular: true });
        }
        let mut factor = matrix.clone();
        let (mut order, mut inverse) = (vec![0usize; dim], vec![0usize; dim]);
        let parameters = Default::default();
        let scratch = cholesky_in_place_scratch::<usize, f64>(dim, Par::Seq, parameters);
        let mut memory = MemBuffer::new(scratch);
        let rank = cholesky_in_place(
            factor.as_mut(),
            &mut order,
            &mut inverse,
            Par::Seq,
            MemStack::new(&mut memory),
            parameters,
        );
        let rank = rank.ok()?.0.rank;
        let rows = Mat::from_fn(dim, rank, |i, j| if i >= j { factor[(i, j)] } else { 0.0 });
        // Behind the last pivot nothing must be left: a negative pivot ends the factorisation like a
        // zero one.
        let last = rows.as_ref().subrows(rank, dim - rank);
        let found = product(last, last.transpose());
        let allowed = REMAINDER * dim as f64 * f64::EPSILON * largest;
        let complete = (rank..dim).all(|j| {
            (rank..dim).all(|i| {
                (matrix[(order[i], order[j])] - found[(i - rank, j - rank)]).abs() <= allowed
            })
        });
        complete.then_some(Self { rows, order, triangular: true })
    }

    /// U D^(1/2) of S = U D U^T, eigenvalues below zero by rounding set to zero.
    fn by_eigenvalues(matrix: MatRef<'_, f64>) -> Result<Self, EvalError> {
        let dim = matrix.nrows();
        let mut vectors = Mat::zeros(dim, dim);
        let mut values = Diag::zeros(dim);
        let parameters = Default::default();
        let scratch =
            self_adjoint_evd_scratch::<f64>(dim, ComputeEigenvectors::Yes, Par::Seq, parameters);
        // One thread: the library's result depends on how many there are.
        self_adjoint_evd(
            matrix,
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            parameters,
        )
        .map_err(|_| EvalError::NoConvergence { dim })?;
        let values = values.column_vector();
        let largest = values.iter().fold(0f64, |most, value| most.max(*value));
        let size = values.iter().fold(0f64, |most, value| most.max(value.abs()));
        // They come in rising order.
        if let Some(&eigenvalue) = values.iter().find(|value| **value < -ROUNDING * size) {
            return Err(EvalError::NotPositive { eigenvalue, largest });
        }
        let rows = Mat::from_fn(dim, dim, |i, j| vectors[(i, j)] * values[j].max(0.0).sqrt());
        Ok(Self { rows, order: (0..dim).collect(), triangular: false })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn stats(dim: usize, entry: impl Fn(usize, usize) -> f64) -> FeatureStats {
        let sigma = (0..dim * dim).map(|k| entry(k / dim, k % dim)).collect();
        FeatureStats::new(vec![0.0; dim], sigma, None).unwrap()
    }

    /// F F^T in the order of the dimensions.
    fn rebuilt(factor: &CovarianceFactor) -> Mat<f64> {
        let dim = factor.rows.nrows();
        let product = product(factor.rows.as_ref(), factor.rows.transpose());
        let mut out = Mat::zeros(dim, dim);
        for i in 0..dim {
            for j in 0..dim {
                out[(factor.order[i], factor.order[j])] = product[(i, j)];
            }
        }
        out
    }

    fn rows(rank: usize, dim: usize, seed: u32) -> Mat<f64> {
        Mat::from_fn(rank, dim, |i, j| f64::from((i * 31 + j * 17 + i * j) as u32 % (97 + seed)))
    }

    #[test]
    fn the_rank_is_found_and_the_product_is_the_covariance() {
        for (rank, dim) in [(9, 9), (3, 9), (1, 5), (150, 300), (300, 300)] {
            let x = rows(rank, dim, 0);
            let s = x.transpose() * &x;
            let factor = CovarianceFactor::of(&stats(dim, |i, j| s[(i, j)])).unwrap();
            assert!(factor.triangular && factor.rank() <= rank, "{} of {rank}", factor.rank());
            let difference = rebuilt(&factor) - &s;
            assert!(difference.norm_max() < 1e-12 * s.norm_max());
        }
    }

    #[test]
    fn products_with_factors_follow_the_dimensions() {
        let (x, y) = (rows(4, 6, 0), rows(5, 6, 3));
        let (s, t) = (x.transpose() * &x, y.transpose() * &y);
        let f = CovarianceFactor::of(&stats(6, |i, j| s[(i, j)])).unwrap();
        let g = CovarianceFactor::of(&stats(6, |i, j| t[(i, j)])).unwrap();
        // tr F^T G G^T F = tr S T, and the rows of X F have the products X S X^T.
        let product = f.transpose_times(&g);
        let expected: f64 =
            (0..6).map(|i| (0..6).map(|j| s[(i, j)] * t[(j, i)]).sum::<f64>()).sum();
        assert!((product.squared_norm_l2() - expected).abs() < 1e-9 * expected);
        let projected = g.times_rows(x.as_ref());
        let found = &projected * projected.transpose();
        let expected = &x * &t * x.transpose();
        assert!((found - &expected).norm_max() < 1e-9 * expected.norm_max());
    }

    #[test]
    fn a_covariance_rounded_to_f32_is_factored_by_its_eigenvalues() {
        let x = rows(20, 60, 1);
        let s = x.transpose() * &x;
        let rounded = stats(60, |i, j| f64::from(s[(i, j)] as f32));
        let factor = CovarianceFactor::of(&rounded).unwrap();
        assert!((rebuilt(&factor) - &s).norm_max() < 1e-6 * s.norm_max());
    }

    #[test]
    fn nothing_but_zeros_has_rank_zero() {
        let factor = CovarianceFactor::of(&stats(4, |_, _| 0.0)).unwrap();
        assert_eq!((factor.rank(), rebuilt(&factor)), (0, Mat::zeros(4, 4)));
    }

    #[test]
    fn negative_matrices_are_refused_wherever_the_negative_part_hides() {
        let hollow = stats(2, |i, j| if i == j { 0.0 } else { 1.0 });
        let behind = stats(2, |i, j| if i == j { 1.0 } else { 2.0 });
        let diagonal = stats(3, |i, j| if i == j { [-0.5, 4.0, 1.0][i] } else { 0.0 });
        for (matrix, lowest) in [(hollow, -1.0), (behind, -1.0), (diagonal, -0.5)] {
            let error = CovarianceFactor::of(&matrix).unwrap_err();
            let EvalError::NotPositive { eigenvalue, .. } = error else { panic!("{error}") };
            assert!((eigenvalue - lowest).abs() < 1e-12);
        }
    }

    proptest! {
        #[test]
        fn random_covariances_of_any_rank_are_rebuilt(
            x in (1usize..8, 1usize..8).prop_flat_map(|(n, d)| {
                prop::collection::vec(prop::collection::vec(-3.0..3.0f64, d), n)
            })
        ) {
            let x = Mat::from_fn(x.len(), x[0].len(), |i, j| x[i][j]);
            let s = x.transpose() * &x;
            let factor = CovarianceFactor::of(&stats(x.ncols(), |i, j| s[(i, j)])).unwrap();
            prop_assert!((rebuilt(&factor) - &s).norm_max() <= 1e-12 * s.norm_max().max(1e-300));
        }
    }
}
