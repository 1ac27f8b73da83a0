//! Where a search may go, and where it starts.

use std::fmt::{Debug, Display};

use super::{SearchError, check_count, check_weights};

/// The weights a search may try: all, or those with every weight in one interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Region {
    /// # Errors
    /// [`SearchError::Bounds`] unless both ends are finite and the first is the lower one.
    pub(super) fn new<E: Debug + Display>(
        bounds: Option<[f64; 2]>,
    ) -> Result<Self, SearchError<E>> {
        match bounds {
            None => Ok(Self { low: f64::NEG_INFINITY, high: f64::INFINITY }),
            Some([low, high]) if low.is_finite() && high.is_finite() && low < high => {
                Ok(Self { low, high })
            }
            Some([low, high]) => Err(SearchError::Bounds { low, high }),
        }
    }

    /// A start inside. The one that is given must be there, a uniform one is moved to the nearest point.
    ///
    /// # Errors
    /// [`SearchError::ExpertCount`], [`SearchError::NonFiniteWeight`] and
    /// [`SearchError::StartOutsideBounds`] for the given start.
    pub(super) fn start<E: Debug + Display>(
        &self,
        given: Option<&[f64]>,
        uniform: &[f64],
    ) -> Result<Vec<f64>, SearchError<E>> {
        let Some(given) = given else { return Ok(self.nearest(uniform)) };
        check_count("start", Some(given.len()), uniform.len())?;
        check_weights(given)?;
        match given.iter().position(|weight| !self.holds(*weight)) {
            None => Ok(given.to_vec()),
            Some(expert) => Err(SearchError::StartOutsideBounds {
                expert,
                found: given[expert],
                low: self.low,
                high: self.high,
            }),
        }
    }

    pub(super) fn holds(&self, weight: f64) -> bool {
        (self.low..=self.high).contains(&weight)
    }

    /// The point of the region with the smallest distance.
    pub(super) fn nearest(&self, weights: &[f64]) -> Vec<f64> {
        weights.iter().map(|weight| weight.clamp(self.low, self.high)).collect()
    }
}
