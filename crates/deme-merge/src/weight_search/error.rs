//! Why a search could not be made or finished.

use std::fmt::{Debug, Display};
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a search could not be made or finished. `E` is the objective's own error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SearchError<E: Debug + Display> {
    /// There is nothing to search for.
    #[error("a search needs at least one expert")]
    NoExperts,
    /// No values for a weight.
    #[error("there are no values to try for expert {expert}: list some in `values`")]
    NoValues {
        /// The expert, counted from zero.
        expert: usize,
    },
    /// No points to evaluate.
    #[error("there are no weights to try: list some in `points`")]
    NoPoints,
    /// `values` and `values_per_expert` both given.
    #[error("both `values` and `values_per_expert` are given: keep one of them")]
    TwoValueLists,
    /// A NaN or an infinity among the values, the points or in the start.
    #[error("{found} is listed for expert {expert}: weights to try must be finite")]
    NonFiniteWeight {
        /// The expert, counted from zero.
        expert: usize,
        /// The value.
        found: f64,
    },
    /// A value listed twice, which would evaluate the same weights twice.
    #[error("{value} is listed twice for expert {expert}: list every value once")]
    RepeatedValue {
        /// The expert, counted from zero.
        expert: usize,
        /// The value.
        value: f64,
    },
    /// Lists, points or a start for another number of experts.
    #[error("`{setting}` is given for {found} experts, but there are {expected}")]
    ExpertCount {
        /// The setting.
        setting: &'static str,
        /// The number of experts (with groups of parameters, the number of weights).
        expected: usize,
        /// The number of entries.
        found: usize,
    },
    /// Bounds that hold no interval.
    #[error("the bounds are [{low}, {high}]: give two finite numbers, the lower one first")]
    Bounds {
        /// The first number.
        low: f64,
        /// The second number.
        high: f64,
    },
    /// A start that the bounds exclude.
    #[error(
        "the search starts with {found} for expert {expert}, outside of the bounds [{low}, {high}]"
    )]
    StartOutsideBounds {
        /// The expert, counted from zero.
        expert: usize,
        /// Its weight in the start.
        found: f64,
        /// The lowest weight.
        low: f64,
        /// The highest weight.
        high: f64,
    },
    /// A setting outside of its range.
    #[error("`{setting}` is {found}, expected {expected}")]
    Setting {
        /// Its name in the configuration.
        setting: &'static str,
        /// The allowed range.
        expected: &'static str,
        /// The given value.
        found: f64,
    },
    /// A budget of nothing.
    #[error("max_evaluations = 0 leaves nothing to search with: give at least 1")]
    NoBudget,
    /// The search would take too many evaluations.
    #[error(
        "this search needs {size} evaluations, more than max_evaluations = {max_evaluations}; list fewer \
         values, set max_evaluations = {size}, or instead of a `grid` use a `coordinate_grid`, \
         `quadratic_model` or `cma_es`"
    )]
    TooLarge {
        /// The number of evaluations (saturating).
        size: u128,
        /// The limit.
        max_evaluations: u64,
    },
    /// A search by gradients for an objective that has none.
    #[error(
        "this objective has no gradient: use `quadratic_model` or `cma_es` instead of `gradient`"
    )]
    NoGradient,
    /// Not one derivative per weight.
    #[error("the gradient of {expected} weights has {expected} numbers, found {found}")]
    GradientLength {
        /// The number of weights.
        expected: usize,
        /// The number of derivatives.
        found: usize,
    },
    /// A NaN or an infinity among the derivatives.
    #[error(
        "the derivative by the weight of expert {expert} is {found} at the weights {weights:?}"
    )]
    NonFiniteGradient {
        /// The weights.
        weights: Vec<f64>,
        /// The expert, counted from zero.
        expert: usize,
        /// NaN or an infinity.
        found: f64,
    },
    /// The objective gave a NaN or an infinity.
    #[error(
        "the objective is {value} at the weights {weights:?}: the merged model is not usable there"
    )]
    NonFiniteObjective {
        /// The weights.
        weights: Vec<f64>,
        /// NaN or an infinity.
        value: f64,
    },
    /// The objective failed. Evaluations made before are in the log.
    #[error("the objective failed at the weights {weights:?}: {error}")]
    Objective {
        /// The weights.
        weights: Vec<f64>,
        /// Its own error.
        error: E,
    },
    /// The log was made with other settings.
    #[error(
        "{path} is the log of a search with other settings; go on with those, or remove it to start over"
    )]
    OtherSettings {
        /// The log.
        path: PathBuf,
        /// The hash of the settings now.
        expected: String,
        /// The hash in the log.
        found: String,
    },
    /// A line of the log, not the last one, cannot be read.
    #[error(
        "line {line} of the search log {path} is damaged ({reason}); remove the log to start over"
    )]
    DamagedLog {
        /// The log.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The log cannot be read or written.
    #[error("{path}: {source}")]
    LogIo {
        /// The log.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}
