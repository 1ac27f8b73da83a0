//! Parts a data set: what trains, what weights are searched with, what the report compares with.
//!
//! The three never share a picture, so that neither the search nor the report is flattered by
//! pictures the model, or the search, has seen.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::random_draws::RandomDraws;

/// How much goes to which part; the rest trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitConfig {
    /// The reference pictures of the search for merging weights.
    pub search: Share,
    /// The reference pictures of the final report.
    pub report: Share,
    /// Which pictures go where.
    pub seed: u64,
}

impl Default for SplitConfig {
    /// A tenth to the search, a tenth to the report.
    fn default() -> Self {
        Self { search: Share::Fraction(0.1), report: Share::Fraction(0.1), seed: 0 }
    }
}

/// A part's size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a count such as 256 or a fraction such as 0.1")]
pub enum Share {
    /// So many pictures.
    Count(usize),
    /// This fraction of all pictures, rounded down; between 0 and 1.
    Fraction(f64),
}

/// One of the three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitPart {
    /// The pictures that train.
    Train,
    /// The reference of the weight search.
    Search,
    /// The reference of the report.
    Report,
}

impl fmt::Display for SplitPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Search => "search",
            Self::Report => "report",
        })
    }
}

/// The parted indices: disjoint, each ascending, together `0..n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The pictures that train.
    pub train: Vec<usize>,
    /// The reference of the weight search.
    pub search: Vec<usize>,
    /// The reference of the report.
    pub report: Vec<usize>,
}

/// Parts `0..n` at random from the seed. The report's part depends on neither the search's share nor
/// anything but `n`, its own share and the seed, so searches of different sizes stay comparable.
///
/// # Errors
/// [`DataError::BadShare`] for a fraction outside (0, 1); [`DataError::EmptyPart`] when a part would
/// have no picture.
pub fn split(n: usize, config: &SplitConfig) -> Result<Split, DataError> {
    let search_len = config.search.of(n, SplitPart::Search)?;
    let report_len = config.report.of(n, SplitPart::Report)?;
    let train_len = n.saturating_sub(search_len.saturating_add(report_len));
    for (part, len) in [
        (SplitPart::Train, train_len),
        (SplitPart::Search, search_len),
        (SplitPart::Report, report_len),
    ] {
        if len == 0 {
            return Err(DataError::EmptyPart {
                part,
                total: n,
                train: train_len,
                search: search_len,
                report: report_len,
            });
        }
    }
    let order = RandomDraws::new(config.seed, 0).permutation(n);
    let sorted = |indices: &[usize]| {
        let mut indices = indices.to_vec();
        indices.sort_unstable();
        indices
    };
    Ok(Split {
        report: sorted(&order[..report_len]),
        search: sorted(&order[report_len..report_len + search_len]),
        train: sorted(&order[report_len + search_len..]),
    })
}

impl Share {
    fn of(self, n: usize, part: SplitPart) -> Result<usize, DataError> {
        match self {
            Self::Count(count) => Ok(count),
            Self::Fraction(fraction) if fraction > 0.0 && fraction < 1.0 => {
                Ok((n as f64 * fraction) as usize)
            }
            Self::Fraction(share) => Err(DataError::BadShare { part, share }),
        }
    }
}
