//! The features of a set of pictures, as metrics take them. No tensor engine.

use crate::{EvalError, FeatureAccumulator, FeatureStats};
use faer::Mat;
use std::ops::Range;

/// N features of d finite entries, borrowed: rows of their own, or one block of memory.
#[derive(Debug, Clone)]
pub struct FeatureSet<'a> {
    rows: Vec<&'a [f32]>,
    dim: usize,
}

impl<'a> FeatureSet<'a> {
    /// Of a feature per picture, as an extractor gives them.
    ///
    /// # Errors
    /// [`EvalError::FeatureLength`], [`EvalError::NonFiniteFeature`]; [`EvalError::TooFew`] without any.
    pub fn of_rows<R: AsRef<[f32]>>(rows: &'a [R]) -> Result<Self, EvalError> {
        Self::of(rows.iter().map(AsRef::as_ref).collect())
    }

    /// Of `[N, d]` values, row by row.
    ///
    /// # Errors
    /// As [`FeatureSet::of_rows`].
    pub fn of_flat(values: &'a [f32], dim: usize) -> Result<Self, EvalError> {
        Self::of(values.chunks(dim.max(1)).collect())
    }

    /// Of several blocks of `[n, d]` values, one behind the other.
    pub(crate) fn of_blocks(
        blocks: impl Iterator<Item = (&'a [f32], usize)>,
    ) -> Result<Self, EvalError> {
        Self::of(blocks.flat_map(|(values, dim)| values.chunks(dim.max(1))).collect())
    }

    fn of(rows: Vec<&'a [f32]>) -> Result<Self, EvalError> {
        let Some(first) = rows.first() else { return Err(EvalError::TooFew { count: 0 }) };
        let dim = first.len();
        for (index, row) in rows.iter().enumerate() {
            let index = index as u64;
            if row.len() != dim || dim == 0 {
                return Err(EvalError::FeatureLength { index, found: row.len(), expected: dim });
            }
            if let Some(&value) = row.iter().find(|value| !value.is_finite()) {
                return Err(EvalError::NonFiniteFeature { index, value: value.into() });
            }
        }
        Ok(Self { rows, dim })
    }

    /// Features at these positions, in this order.
    ///
    /// # Panics
    /// When a position is none of this set.
    pub fn select(&self, positions: &[usize]) -> Self {
        Self { rows: positions.iter().map(|&i| self.rows[i]).collect(), dim: self.dim }
    }

    /// Number of pictures N, one at least.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Never: a set has a picture.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Entries of a feature d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The feature of picture i, `[d]`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        self.rows[i]
    }

    /// Mean and covariance.
    ///
    /// # Errors
    /// [`EvalError::TooFew`] of a single picture.
    pub fn stats(&self) -> Result<FeatureStats, EvalError> {
        let mut accumulator = FeatureAccumulator::new(self.dim);
        self.rows.iter().try_for_each(|row| accumulator.push(row))?;
        accumulator.finish()
    }

    /// Refuses features of another length.
    pub(crate) fn same_dim(&self, other: &FeatureSet<'_>) -> Result<(), EvalError> {
        if self.dim == other.dim {
            Ok(())
        } else {
            Err(EvalError::Dimensions { left: self.dim, right: other.dim })
        }
    }

    /// Some features as columns, `[d, n]`, in f64.
    pub(crate) fn columns(&self, range: Range<usize>) -> Mat<f64> {
        let mut columns = Mat::zeros(self.dim, range.len());
        for (column, row) in columns.col_iter_mut().zip(&self.rows[range]) {
            column.iter_mut().zip(*row).for_each(|(entry, &value)| *entry = value.into());
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_and_flat_values_are_the_same_set() {
        let flat = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = [vec![1.0f32, 2.0], vec![3.0, 4.0], vec![5.0, 6.0]];
        let (a, b) = (FeatureSet::of_flat(&flat, 2).unwrap(), FeatureSet::of_rows(&rows).unwrap());
        assert_eq!((a.len(), a.dim(), a.is_empty()), (3, 2, false));
        assert!((0..3).all(|i| a.row(i) == b.row(i)));
        assert_eq!(a.stats().unwrap(), FeatureStats::of(&rows).unwrap());
        assert_eq!(b.select(&[2, 0]).row(0), [5.0, 6.0]);
        assert_eq!(a.columns(1..3)[(1, 0)], 4.0);
    }

    #[test]
    fn empty_ragged_and_not_finite_sets_are_refused() {
        let none: [Vec<f32>; 0] = [];
        assert!(matches!(FeatureSet::of_rows(&none), Err(EvalError::TooFew { count: 0 })));
        let ragged = FeatureSet::of_flat(&[1.0, 2.0, 3.0], 2).unwrap_err();
        assert!(matches!(ragged, EvalError::FeatureLength { index: 1, found: 1, expected: 2 }));
        let no_entries = FeatureSet::of_rows(&[vec![]]).unwrap_err();
        assert!(matches!(no_entries, EvalError::FeatureLength { .. }));
        let infinite = FeatureSet::of_flat(&[1.0, f32::INFINITY], 1).unwrap_err();
        assert!(matches!(infinite, EvalError::NonFiniteFeature { index: 1, .. }));
        let (a, b) = ([0.0f32; 4], [0.0f32; 6]);
        let (a, b) = (FeatureSet::of_flat(&a, 2).unwrap(), FeatureSet::of_flat(&b, 3).unwrap());
        assert!(matches!(a.same_dim(&b), Err(EvalError::Dimensions { left: 2, right: 3 })));
    }
}
