//! Timesteps and their ranges: the split of `[0, T)` that gives each expert its part.
//!
//! DeMe (Ma et al. 2025, arXiv 2410.06664), section 3.1: range i of N is `[(i-1) T/N, i T/N)`.
//! Not here: which timestep a training batch draws, which steps a sampler visits.

use serde::{Deserialize, Serialize};

/// A half-open range `[low, high)` of training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestepRange {
    /// First timestep of the range.
    pub low: usize,
    /// First timestep behind the range.
    pub high: usize,
}

impl TimestepRange {
    /// All timesteps, `[0, num_train_timesteps)`.
    pub fn full(num_train_timesteps: usize) -> Self {
        Self { low: 0, high: num_train_timesteps }
    }

    /// Splits `[0, T)` into `n` contiguous ranges, the i-th (from one) being `[(i-1)T/n, iT/n)`.
    ///
    /// Where `n` does not divide T the bounds are fractions; an integer t is in the range if
    /// `(i-1)T/n <= t < iT/n`, so the stored bounds are the fractions rounded up, and
    /// [`range_index`] names the same range for every t.
    ///
    /// # Errors
    /// [`TimestepError::NoRanges`] for `n = 0`, [`TimestepError::MoreRangesThanTimesteps`] for `n > T`.
    pub fn split(num_train_timesteps: usize, n: usize) -> Result<Vec<Self>, TimestepError> {
        if n == 0 {
            return Err(TimestepError::NoRanges);
        }
        if n > num_train_timesteps {
            return Err(TimestepError::MoreRangesThanTimesteps { ranges: n, num_train_timesteps });
        }
        let bound = |i: usize| (i * num_train_timesteps).div_ceil(n);
        Ok((0..n).map(|i| Self { low: bound(i), high: bound(i + 1) }).collect())
    }

    /// Whether `low <= t < high`.
    pub fn contains(&self, t: usize) -> bool {
        (self.low..self.high).contains(&t)
    }

    /// Number of timesteps in the range.
    pub fn len(&self) -> usize {
        self.high.saturating_sub(self.low)
    }

    /// Whether the range holds no timestep.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for TimestepRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {})", self.low, self.high)
    }
}

/// Index, counted from zero, of the range of [`TimestepRange::split`] that holds `t`:
/// `floor(t n / T)`.
pub fn range_index(t: usize, n: usize, num_train_timesteps: usize) -> usize {
    t * n / num_train_timesteps
}

/// Why `[0, T)` cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimestepError {
    /// Zero ranges.
    #[error("the timesteps cannot be split into 0 ranges; use 1 for one range that holds them all")]
    NoRanges,
    /// Some ranges would be empty.
    #[error(
        "{num_train_timesteps} timesteps cannot be split into {ranges} ranges: some would be empty; \
         use at most {num_train_timesteps} ranges"
    )]
    MoreRangesThanTimesteps {
        /// Number of ranges asked for.
        ranges: usize,
        /// Number of training timesteps.
        num_train_timesteps: usize,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_papers_four_ranges() {
        let bounds: Vec<_> =
            TimestepRange::split(1000, 4).unwrap().iter().map(|r| (r.low, r.high)).collect();
        assert_eq!(bounds, [(0, 250), (250, 500), (500, 750), (750, 1000)]);
    }

    #[test]
    fn fractional_bounds_are_rounded_up() {
        let ranges = TimestepRange::split(10, 3).unwrap();
        assert_eq!(
            ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["[0, 4)", "[4, 7)", "[7, 10)"]
        );
    }

    #[test]
    fn no_ranges_is_an_error() {
        assert_eq!(TimestepRange::split(10, 0), Err(TimestepError::NoRanges));
    }

    #[test]
    fn more_ranges_than_timesteps_is_an_error() {
        let error = TimestepRange::split(3, 4).unwrap_err();
        assert_eq!(
            error,
            TimestepError::MoreRangesThanTimesteps { ranges: 4, num_train_timesteps: 3 }
        );
        assert!(error.to_string().contains("at most 3"));
    }

    proptest! {
        #[test]
        fn ranges_cover_every_timestep_once(
            (total, n) in (1_usize..1200).prop_flat_map(|total| (Just(total), 1..=total))
        ) {
            let ranges = TimestepRange::split(total, n).unwrap();
            prop_assert_eq!(ranges.len(), n);
            prop_assert_eq!(ranges[0].low, 0);
            prop_assert_eq!(ranges[n - 1].high, total);
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[0].high, pair[1].low);
            }
            prop_assert!(ranges.iter().all(|range| !range.is_empty()));
            for t in 0..total {
                prop_assert!(ranges[range_index(t, n, total)].contains(t));
            }
        }
    }
}
