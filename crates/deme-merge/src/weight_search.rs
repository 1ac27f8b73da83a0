//! Finds merging weights by trying them: the grid search of Ma et al. 2024 (section 3.3).
//!
//! The search knows nothing of models: a closure says how good weights are, lower is better. Every
//! evaluation is written to a log before the next one starts, so that an interrupted search goes on where
//! it stopped. What is merged for an evaluation is the matter of `merge_plan`.

mod log;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use log::SearchLog;

/// Which weights are tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum SearchConfig {
    /// All combinations. (The paper's search.)
    Grid(GridConfig),
    /// One expert's weight after the other, where all combinations are too many.
    CoordinateGrid(CoordinateGridConfig),
}

/// Tries every combination of the values: `values^experts` evaluations. The first weight varies slowest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridConfig {
    /// The values each expert's weight takes.
    #[serde(default)]
    pub values: Vec<f64>,
    /// Values of their own for each expert, in the order of the experts, instead of `values`.
    #[serde(default)]
    pub values_per_expert: Option<Vec<Vec<f64>>>,
    /// A larger grid is refused before the first evaluation.
    #[serde(default = "default_max_evaluations")]
    pub max_evaluations: u64,
}

/// Starts somewhere, and in each round gives every expert in turn the best of the values while the others
/// keep their weights. Stops early after a round that changed nothing. At most
/// `1 + rounds * experts * values` evaluations; finds a minimum along the axes, not always the grid's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinateGridConfig {
    /// The values each expert's weight takes.
    pub values: Vec<f64>,
    /// How often every expert has its turn.
    pub rounds: usize,
    /// Where to start; `1 / experts` for each expert when not given.
    #[serde(default)]
    pub start: Option<Vec<f64>>,
    /// A longer search is refused before the first evaluation.
    #[serde(default = "default_max_evaluations")]
    pub max_evaluations: u64,
}

fn default_max_evaluations() -> u64 {
    1000
}

/// Weights and what the objective said about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// One weight per expert.
    pub weights: Vec<f64>,
    /// The objective there; lower is better.
    pub value: f64,
}

/// What the observer is told after each evaluation, those read from the log included.
#[derive(Clone, Copy, Debug)]
pub struct SearchProgress<'a> {
    /// How many evaluations are done, this one included.
    pub done: u64,
    /// How many there will be; for a coordinate search the most there can be.
    pub total: u64,
    /// The evaluation.
    pub evaluation: &'a Evaluation,
    /// The best so far.
    pub best: &'a Evaluation,
    /// True when the value was read from the log of an earlier run.
    pub from_log: bool,
}

/// The outcome of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchResult {
    /// The weights with the lowest value; the first of several.
    pub best_weights: Vec<f64>,
    /// The objective there.
    pub best_value: f64,
    /// All evaluations, in order.
    pub evaluations: Vec<Evaluation>,
}

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
    /// `values` and `values_per_expert` both given.
    #[error("both `values` and `values_per_expert` are given: keep one of them")]
    TwoValueLists,
    /// A NaN or an infinity among the values or in the start.
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
    /// Lists or a start for another number of experts.
    #[error("`{setting}` is given for {found} experts, but there are {expected}")]
    ExpertCount {
        /// The setting.
        setting: &'static str,
        /// The number of experts.
        expected: usize,
        /// The number of entries.
        found: usize,
    },
    /// The search would take too many evaluations.
    #[error(
        "this search needs {size} evaluations, more than max_evaluations = {max_evaluations}; list fewer \
         values, set max_evaluations = {size}, or instead of a `grid` use a `coordinate_grid`"
    )]
    TooLarge {
        /// The number of evaluations (saturating).
        size: u128,
        /// The limit.
        max_evaluations: u64,
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

impl SearchConfig {
    /// How many evaluations the search needs (at most, for a coordinate search), saturating.
    pub fn size(&self, num_experts: usize) -> u128 {
        match self {
            Self::Grid(grid) => (0..num_experts)
                .map(|expert| grid.values_of(expert).len() as u128)
                .fold(1, u128::saturating_mul),
            Self::CoordinateGrid(grid) => (grid.rounds as u128)
                .saturating_mul(num_experts as u128)
                .saturating_mul(grid.values.len() as u128)
                .saturating_add(1),
        }
    }

    /// Checks the settings before anything is evaluated.
    ///
    /// # Errors
    /// Those of [`SearchError`] that concern the settings.
    pub fn check<E: Debug + Display>(&self, num_experts: usize) -> Result<(), SearchError<E>> {
        if num_experts == 0 {
            return Err(SearchError::NoExperts);
        }
        let check_count = |setting, found| match found {
            Some(found) if found != num_experts => {
                Err(SearchError::ExpertCount { setting, expected: num_experts, found })
            }
            _ => Ok(()),
        };
        let max_evaluations = match self {
            Self::Grid(grid) => {
                let lists = grid.values_per_expert.as_ref().map(Vec::len);
                check_count("values_per_expert", lists)?;
                if lists.is_some() && !grid.values.is_empty() {
                    return Err(SearchError::TwoValueLists);
                }
                for expert in 0..num_experts {
                    check_values(expert, grid.values_of(expert))?;
                }
                grid.max_evaluations
            }
            Self::CoordinateGrid(grid) => {
                check_count("start", grid.start.as_ref().map(Vec::len))?;
                check_values(0, &grid.values)?;
                for (expert, &weight) in grid.start.iter().flatten().enumerate() {
                    check_weight(expert, weight)?;
                }
                grid.max_evaluations
            }
        };
        let size = self.size(num_experts);
        if size > u128::from(max_evaluations) {
            return Err(SearchError::TooLarge { size, max_evaluations });
        }
        Ok(())
    }
}

impl GridConfig {
    /// The values to try for one expert; empty when none are given.
    fn values_of(&self, expert: usize) -> &[f64] {
        match &self.values_per_expert {
            Some(lists) => lists.get(expert).map_or(&[], Vec::as_slice),
            None => &self.values,
        }
    }
}

fn check_weight<E: Debug + Display>(expert: usize, found: f64) -> Result<(), SearchError<E>> {
    match found.is_finite() {
        true => Ok(()),
        false => Err(SearchError::NonFiniteWeight { expert, found }),
    }
}

fn check_values<E: Debug + Display>(expert: usize, values: &[f64]) -> Result<(), SearchError<E>> {
    if values.is_empty() {
        return Err(SearchError::NoValues { expert });
    }
    for (index, &value) in values.iter().enumerate() {
        check_weight(expert, value)?;
        if values[..index].contains(&value) {
            return Err(SearchError::RepeatedValue { expert, value });
        }
    }
    Ok(())
}

/// Evaluates weights as `config` says and returns the best.
///
/// `objective` describes what `evaluate` computes: everything besides the weights that its values depend
/// on (hashes of the models, seeds, sample counts). It and the settings are hashed into the first line of
/// `log_path`; a log with another hash is refused, an equal one is continued: what it holds is not
/// evaluated again. A last line that was cut off by a crash is dropped. `max_evaluations` is not part of
/// the hash, it can be raised at any time.
///
/// # Errors
/// [`SearchError`]. Evaluations that were made stay in the log.
pub fn search_weights<E: Debug + Display>(
    config: &SearchConfig,
    num_experts: usize,
    objective: &str,
    log_path: &Path,
    mut evaluate: impl FnMut(&[f64]) -> Result<f64, E>,
    mut observe: impl FnMut(SearchProgress<'_>),
) -> Result<SearchResult, SearchError<E>> {
    config.check(num_experts)?;
    let (log, known) = SearchLog::open(log_path, config, num_experts, objective)?;
    let total = u64::try_from(config.size(num_experts))
        .expect("check refuses sizes above max_evaluations, a u64");
    let mut search = Search {
        log,
        known: known.into_iter().map(|e| (bits(&e.weights), e.value)).collect(),
        evaluations: Vec::new(),
        seen: BTreeMap::new(),
        best: 0,
        total,
        evaluate: &mut evaluate,
        observe: &mut observe,
    };
    match config {
        SearchConfig::Grid(grid) => search.grid(grid, num_experts)?,
        SearchConfig::CoordinateGrid(grid) => search.coordinate_grid(grid, num_experts)?,
    }
    let best = search.evaluations[search.best].clone();
    Ok(SearchResult {
        best_weights: best.weights,
        best_value: best.value,
        evaluations: search.evaluations,
    })
}

/// A search under way.
struct Search<'a, E> {
    log: SearchLog,
    /// What the log of an earlier run holds.
    known: BTreeMap<Vec<u64>, f64>,
    evaluations: Vec<Evaluation>,
    /// Values of all weights this run has come to.
    seen: BTreeMap<Vec<u64>, f64>,
    /// Index of the best evaluation.
    best: usize,
    total: u64,
    evaluate: &'a mut dyn FnMut(&[f64]) -> Result<f64, E>,
    observe: &'a mut dyn FnMut(SearchProgress<'_>),
}

impl<E: Debug + Display> Search<'_, E> {
    fn grid(&mut self, grid: &GridConfig, num_experts: usize) -> Result<(), SearchError<E>> {
        let values: Vec<&[f64]> = (0..num_experts).map(|i| grid.values_of(i)).collect();
        for number in 0..self.total {
            // The number's digits choose the values; the last expert has the lowest digit.
            let mut rest = number;
            let mut weights = vec![0.0; num_experts];
            for (weight, values) in weights.iter_mut().zip(&values).rev() {
                let base = values.len() as u64;
                *weight = values[(rest % base) as usize];
                rest /= base;
            }
            self.value_at(&weights)?;
        }
        Ok(())
    }

    fn coordinate_grid(
        &mut self,
        grid: &CoordinateGridConfig,
        num_experts: usize,
    ) -> Result<(), SearchError<E>> {
        let uniform = || vec![1.0 / num_experts as f64; num_experts];
        let mut weights = grid.start.clone().unwrap_or_else(uniform);
        let mut best = self.value_at(&weights)?;
        for _ in 0..grid.rounds {
            let before = weights.clone();
            for expert in 0..num_experts {
                let mut candidate = weights.clone();
                for &value in &grid.values {
                    candidate[expert] = value;
                    let objective = self.value_at(&candidate)?;
                    if objective < best {
                        best = objective;
                        weights[expert] = value;
                    }
                }
            }
            if weights == before {
                break;
            }
        }
        Ok(())
    }

    /// The objective, evaluated unless this or an earlier run has already done so.
    fn value_at(&mut self, weights: &[f64]) -> Result<f64, SearchError<E>> {
        let key = bits(weights);
        if let Some(&value) = self.seen.get(&key) {
            return Ok(value);
        }
        let logged = self.known.get(&key).copied();
        let value = match logged {
            Some(value) => value,
            None => (self.evaluate)(weights)
                .map_err(|error| SearchError::Objective { weights: weights.to_vec(), error })?,
        };
        let evaluation = Evaluation { weights: weights.to_vec(), value };
        if !value.is_finite() {
            return Err(SearchError::NonFiniteObjective { weights: evaluation.weights, value });
        }
        if logged.is_none() {
            self.log.append(&evaluation)?;
        }
        self.seen.insert(key, value);
        self.evaluations.push(evaluation);
        let last = self.evaluations.len() - 1;
        // Strictly better: of equals the first one stays.
        if value < self.evaluations[self.best].value {
            self.best = last;
        }
        (self.observe)(SearchProgress {
            done: self.evaluations.len() as u64,
            total: self.total,
            evaluation: &self.evaluations[last],
            best: &self.evaluations[self.best],
            from_log: logged.is_some(),
        });
        Ok(value)
    }
}

/// Weights as a key: f64 has no total order of its own.
fn bits(weights: &[f64]) -> Vec<u64> {
    weights.iter().map(|weight| weight.to_bits()).collect()
}
