//! Finds merging weights by trying them.   (Ma et al. 2024, section 3.3: by grid search)
//!
//! Each way of searching is a file here. The paper's grid is one; as the paper also finds that the loss
//! over merging weights is a smooth basin, others fit that basin and need far fewer evaluations:
//!
//! | strategy | tries | needs |
//! |---|---|---|
//! | `grid` | all combinations of values | `values^N` evaluations |
//! | `coordinate_grid` | one weight after the other | a basin whose axes are about those of the weights |
//! | `random` | weights drawn within bounds | nothing |
//! | `cma_es` | a cloud that learns the basin's shape | nothing; stands roughness |
//! | `quadratic_model` | the minimum of a fitted quadratic | `(N + 1)(N + 2) / 2` evaluations to begin with |
//! | `gradient` | quasi-Newton steps | a gradient |
//! | `points` | listed weights | |
//!
//! A search knows nothing of models: an [`Objective`] says how good weights are, lower is better. What is
//! merged for an evaluation is the matter of `merge_plan`.
//!
//! Every evaluation is written to a log before the next one starts. A strategy decides by the values it
//! has seen and by its seed alone, so an interrupted search goes on by repeating its decisions: what the
//! log holds is not evaluated again.

mod cma_es;
mod coordinate_grid;
mod error;
mod evaluation;
mod gradient;
mod grid;
mod log;
mod objective;
mod points;
mod quadratic_fit;
mod quadratic_model;
mod random;
mod region;
mod two_stage;

use std::fmt::{Debug, Display};
use std::path::Path;

use serde::{Deserialize, Serialize};

use evaluation::{Search, Stop};
use log::SearchLog;

pub use cma_es::CmaEsConfig;
pub use coordinate_grid::CoordinateGridConfig;
pub use error::SearchError;
pub use evaluation::Evaluation;
pub use gradient::GradientConfig;
pub use grid::GridConfig;
pub use objective::{Objective, ValueAndGradient, WithGradient};
pub use points::PointsConfig;
pub use quadratic_model::QuadraticModelConfig;
pub use random::RandomConfig;
pub use two_stage::{
    Decision, DecisionKind, SearchStage, TwoStageConfig, TwoStageResult, search_in_two_stages,
};

/// Which weights are tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
pub enum SearchConfig {
    /// All combinations. (The paper's search.)
    Grid(GridConfig),
    /// One expert's weight after the other, where all combinations are too many.
    CoordinateGrid(CoordinateGridConfig),
    /// Drawn within bounds.
    Random(RandomConfig),
    /// Drawn from a normal distribution that adapts to the objective.
    CmaEs(CmaEsConfig),
    /// The minimum of a fitted quadratic, again and again.
    QuadraticModel(QuadraticModelConfig),
    /// Quasi-Newton steps, for an objective with a gradient.
    Gradient(GradientConfig),
    /// Those listed.
    Points(PointsConfig),
}

fn default_max_evaluations() -> u64 {
    1000
}

/// What is searched, besides how.
#[derive(Clone, Copy, Debug)]
pub struct SearchTask<'a> {
    /// How many experts are merged.
    pub num_experts: usize,
    /// How many groups of parameters have weights of their own: 1 for one weight per expert. Weights lie
    /// group by group, `weights[group * num_experts + expert]`.
    pub num_groups: usize,
    /// What the objective computes: everything besides the weights that its values depend on (hashes of
    /// the models, seeds, sample counts).
    pub objective: &'a str,
    /// The log.
    pub log_path: &'a Path,
    /// Also evaluate the points that results are compared with ([`ReferenceKind`]).
    pub reference_points: bool,
}

impl<'a> SearchTask<'a> {
    /// One weight per expert, no reference points.
    pub fn new(num_experts: usize, objective: &'a str, log_path: &'a Path) -> Self {
        Self { num_experts, num_groups: 1, objective, log_path, reference_points: false }
    }

    /// How many weights there are.
    pub fn num_weights(&self) -> usize {
        self.num_experts * self.num_groups
    }

    /// The points to compare with: uniform, each expert alone, pretrained.
    pub(crate) fn references(&self) -> Vec<(ReferenceKind, Vec<f64>)> {
        let weights = |weight: &dyn Fn(usize) -> f64| {
            (0..self.num_weights()).map(|place| weight(place % self.num_experts)).collect()
        };
        let alone = |only| move |expert| if expert == only { 1.0 } else { 0.0 };
        let uniform = weights(&|_| 1.0 / self.num_experts as f64);
        let mut references = vec![(ReferenceKind::Uniform, uniform)];
        for only in 0..self.num_experts {
            references.push((ReferenceKind::Expert(only), weights(&alone(only))));
        }
        references.push((ReferenceKind::Pretrained, weights(&|_| 0.0)));
        references
    }
}

/// A point that results are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceKind {
    /// `1 / experts` for each.
    Uniform,
    /// One expert alone, counted from zero: its weight 1, the others 0.
    Expert(usize),
    /// All weights 0: the pretrained model.
    Pretrained,
}

/// The objective at a reference point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Which point.
    pub kind: ReferenceKind,
    /// Its weights.
    pub weights: Vec<f64>,
    /// The objective there.
    pub value: f64,
}

/// What the observer is told.
#[derive(Clone, Copy, Debug)]
pub enum SearchEvent<'a> {
    /// Nothing is evaluated yet.
    Starts {
        /// How many evaluations there will be, for other searches than a grid the most there can be;
        /// reference points not counted.
        evaluations: u64,
        /// How many an earlier run has left in the log.
        logged: u64,
    },
    /// A reference point was evaluated or read from the log.
    Reference(&'a Reference),
    /// The search evaluated a point or read it from the log.
    Evaluated(SearchProgress<'a>),
}

/// Where a search stands after an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct SearchProgress<'a> {
    /// How many evaluations are done, this one included, reference points not.
    pub done: u64,
    /// How many there will be; for other searches than a grid the most there can be.
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
    /// The weights with the lowest value; the first of several. Reference points do not compete, so that
    /// what the search finds can be compared with them.
    pub best_weights: Vec<f64>,
    /// The objective there.
    pub best_value: f64,
    /// All evaluations of the search, in order.
    pub evaluations: Vec<Evaluation>,
    /// The points to compare with, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

impl SearchConfig {
    /// How many evaluations the search needs (for other searches than a grid the most it can have),
    /// saturating. `num_weights` is the number of experts, times that of groups with weights of their own.
    pub fn size(&self, num_weights: usize) -> u128 {
        match self {
            Self::Grid(grid) => grid.size(num_weights),
            Self::CoordinateGrid(grid) => grid.size(num_weights),
            Self::Points(points) => points.points.len() as u128,
            Self::Random(_) | Self::CmaEs(_) | Self::QuadraticModel(_) | Self::Gradient(_) => {
                u128::from(self.max_evaluations())
            }
        }
    }

    /// The most evaluations there may be; [`u64::MAX`] for a forced grid.
    pub fn max_evaluations(&self) -> u64 {
        match self {
            Self::Grid(grid) => grid.limit(),
            Self::CoordinateGrid(grid) => grid.max_evaluations,
            Self::Random(random) => random.max_evaluations,
            Self::CmaEs(cma_es) => cma_es.max_evaluations,
            Self::QuadraticModel(model) => model.max_evaluations,
            Self::Gradient(gradient) => gradient.max_evaluations,
            Self::Points(points) => points.max_evaluations,
        }
    }

    /// True for a search that needs [`Objective::value_and_gradient`].
    pub fn needs_gradient(&self) -> bool {
        matches!(self, Self::Gradient(_))
    }

    /// Checks the settings before anything is evaluated.
    ///
    /// # Errors
    /// Those of [`SearchError`] that concern the settings.
    pub fn check<E: Debug + Display>(&self, num_weights: usize) -> Result<(), SearchError<E>> {
        if num_weights == 0 {
            return Err(SearchError::NoExperts);
        }
        let max_evaluations = self.max_evaluations();
        if max_evaluations == 0 {
            return Err(SearchError::NoBudget);
        }
        match self {
            Self::Grid(grid) => grid.check(num_weights)?,
            Self::CoordinateGrid(grid) => grid.check(num_weights)?,
            Self::Random(random) => random.check()?,
            Self::CmaEs(cma_es) => cma_es.check(num_weights)?,
            Self::QuadraticModel(model) => model.check(num_weights)?,
            Self::Gradient(gradient) => gradient.check(num_weights)?,
            Self::Points(points) => points.check(num_weights)?,
        }
        let size = self.size(num_weights);
        if size > u128::from(max_evaluations) {
            return Err(SearchError::TooLarge { size, max_evaluations });
        }
        Ok(())
    }

    /// The settings that decide which weights are tried after which values. A limit does not: it only
    /// says where to end. Nor does a list.
    fn deciding(&self) -> Self {
        let mut config = self.clone();
        match &mut config {
            Self::Grid(grid) => (grid.max_evaluations, grid.force) = (0, false),
            Self::CoordinateGrid(grid) => grid.max_evaluations = 0,
            Self::Random(random) => random.max_evaluations = 0,
            Self::CmaEs(cma_es) => cma_es.max_evaluations = 0,
            Self::QuadraticModel(model) => model.max_evaluations = 0,
            Self::Gradient(gradient) => gradient.max_evaluations = 0,
            Self::Points(points) => {
                points.max_evaluations = 0;
                points.points.clear();
            }
        }
        config
    }

    fn search<E: Debug + Display>(&self, search: &mut Search<'_, E>) -> Result<(), Stop<E>> {
        match self {
            Self::Grid(grid) => grid.search(search),
            Self::CoordinateGrid(grid) => grid.search(search),
            Self::Random(random) => random.search(search),
            Self::CmaEs(cma_es) => cma_es.search(search),
            Self::QuadraticModel(model) => model.search(search),
            Self::Gradient(gradient) => gradient.search(search),
            Self::Points(points) => points.search(search),
        }
    }
}

/// Evaluates weights as `config` says and returns the best.
///
/// The settings, `task.objective` and the number of experts and groups are hashed into the first line of
/// the log; a log with another hash is refused, an equal one is continued: what it holds is not evaluated
/// again. A last line that was cut off by a crash is dropped. `max_evaluations` is not part of the hash,
/// it can be raised at any time; nor are the points of [`PointsConfig`].
///
/// The budget counts the weights the strategy asks for. Reference points come first and outside of it:
/// the search goes the same way with and without them, and does not evaluate them again.
///
/// # Errors
/// [`SearchError`]. Evaluations that were made stay in the log.
pub fn search_weights<O: Objective>(
    config: &SearchConfig,
    task: &SearchTask<'_>,
    mut objective: O,
    mut observe: impl FnMut(SearchEvent<'_>),
) -> Result<SearchResult, SearchError<O::Error>> {
    config.check(task.num_weights())?;
    let log = SearchLog::open(config, task)?;
    let size = u64::try_from(config.size(task.num_weights()))
        .expect("check refuses sizes above max_evaluations, a u64");
    let gradient = config.needs_gradient();
    let mut search = Search::new(task, size, gradient, log, &mut objective, &mut observe);
    search.announce();
    if task.reference_points {
        for (kind, weights) in task.references() {
            search.evaluate_reference(kind, weights)?;
        }
    }
    match config.search(&mut search) {
        Ok(()) | Err(Stop::BudgetSpent) => {}
        Err(Stop::Failed(error)) => return Err(error),
    }
    let (evaluations, best, references) = search.into_parts();
    Ok(SearchResult {
        best_weights: evaluations[best].weights.clone(),
        best_value: evaluations[best].value,
        evaluations,
        references,
    })
}

pub(crate) fn check_count<E: Debug + Display>(
    setting: &'static str,
    found: Option<usize>,
    expected: usize,
) -> Result<(), SearchError<E>> {
    match found {
        Some(found) if found != expected => {
            Err(SearchError::ExpertCount { setting, expected, found })
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_weights<E: Debug + Display>(weights: &[f64]) -> Result<(), SearchError<E>> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(expert) => Err(SearchError::NonFiniteWeight { expert, found: weights[expert] }),
    }
}

pub(crate) fn check_values<E: Debug + Display>(
    expert: usize,
    values: &[f64],
) -> Result<(), SearchError<E>> {
    if values.is_empty() {
        return Err(SearchError::NoValues { expert });
    }
    for (index, &value) in values.iter().enumerate() {
        if !value.is_finite() {
            return Err(SearchError::NonFiniteWeight { expert, found: value });
        }
        if values[..index].contains(&value) {
            return Err(SearchError::RepeatedValue { expert, value });
        }
    }
    Ok(())
}

/// A setting that is a length: above zero.
fn check_length<E: Debug + Display>(
    setting: &'static str,
    found: f64,
) -> Result<(), SearchError<E>> {
    match found.is_finite() && found > 0.0 {
        true => Ok(()),
        false => Err(SearchError::Setting { setting, expected: "a number above 0", found }),
    }
}
