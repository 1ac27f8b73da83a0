//! Two objectives, one cheap and one dear: the first proposes weights, the second decides.
//!
//! A search by the loss costs seconds, one by the distance of generated images hours; but the loss only
//! stands for what is meant. So the loss is searched, and the distance evaluated at its best few points,
//! at uniform weights and at each expert alone, which a bad proposal must not beat.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::{
    Evaluation, Objective, PointsConfig, ReferenceKind, SearchConfig, SearchError, SearchEvent,
    SearchResult, SearchTask, check_length, search_weights,
};
use crate::linear_algebra::distance;

/// A search by the cheap objective, and how much of it the dear one sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwoStageConfig {
    /// The search by the cheap objective.
    pub propose: SearchConfig,
    /// How many of its best points the dear objective sees.
    #[serde(default = "default_candidates")]
    pub candidates: usize,
    /// Of two points nearer to each other than this (Euclidean, in weights) only the better one is a
    /// candidate: a search ends with many points that are all but the same.
    #[serde(default = "default_separation")]
    pub separation: f64,
}

fn default_candidates() -> usize {
    5
}

fn default_separation() -> f64 {
    0.05
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchStage {
    /// The search by the cheap objective.
    Propose,
    /// The evaluation of its candidates by the dear one.
    Decide,
}

/// Where weights that the dear objective saw come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// The cheap search; 0 is its best point.
    Candidate(usize),
    /// A point to compare with.
    Reference(ReferenceKind),
}

/// Weights that the dear objective saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Where they come from: the first place, when from several.
    pub kind: DecisionKind,
    /// The weights.
    pub weights: Vec<f64>,
    /// The cheap objective there.
    pub proposed_value: f64,
    /// The dear objective there.
    pub value: f64,
}

/// The outcome of both stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TwoStageResult {
    /// The weights with the lowest value of the dear objective; the first of several.
    pub best_weights: Vec<f64>,
    /// The dear objective there.
    pub best_value: f64,
    /// All weights the dear objective saw: candidates, the best first, then uniform weights and each
    /// expert alone.
    pub decisions: Vec<Decision>,
    /// The search by the cheap objective, with reference points.
    pub proposed: SearchResult,
    /// The evaluations by the dear objective.
    pub decided: SearchResult,
}

impl TwoStageConfig {
    /// A search by the cheap objective, with the defaults of the rest.
    pub fn proposing(propose: SearchConfig) -> Self {
        Self { propose, candidates: default_candidates(), separation: default_separation() }
    }

    /// Checks the settings before anything is evaluated.
    ///
    /// # Errors
    /// Those of [`SearchError`] that concern the settings.
    pub fn check<E: Debug + Display>(&self, num_weights: usize) -> Result<(), SearchError<E>> {
        check_length("candidates", self.candidates as f64)?;
        if !(self.separation.is_finite() && self.separation >= 0.0) {
            return Err(SearchError::Setting {
                setting: "separation",
                expected: "0 or more",
                found: self.separation,
            });
        }
        self.propose.check(num_weights)
    }

    /// The best points of a search, the best first, none near a better one.
    fn chosen<'a>(&self, evaluations: &'a [Evaluation]) -> Vec<&'a Evaluation> {
        let mut sorted: Vec<&Evaluation> = evaluations.iter().collect();
        sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
        let mut chosen: Vec<&Evaluation> = Vec::new();
        for point in sorted {
            let near =
                |better: &&Evaluation| distance(&better.weights, &point.weights) < self.separation;
            if chosen.len() < self.candidates && !chosen.iter().any(near) {
                chosen.push(point);
            }
        }
        chosen
    }
}

/// Searches by the cheap objective, then lets the dear one decide between the best points found, uniform
/// weights and each expert alone.
///
/// `propose` and `decide` differ in their logs and descriptions of the objective. Each log is continued
/// as in [`search_weights`]; more candidates, or other ones, go on with what the dear log holds. The cheap
/// objective is evaluated at the reference points in any case, the dear one at those of `decide` if it
/// asks for them (pretrained is then one more evaluation, and does not compete).
///
/// # Errors
/// [`SearchError`]. Evaluations that were made stay in the logs.
///
/// # Panics
/// When the two tasks are not about the same experts and groups.
pub fn search_in_two_stages<E: Debug + Display>(
    config: &TwoStageConfig,
    propose: &SearchTask<'_>,
    decide: &SearchTask<'_>,
    cheap: impl Objective<Error = E>,
    dear: impl Objective<Error = E>,
    mut observe: impl FnMut(SearchStage, SearchEvent<'_>),
) -> Result<TwoStageResult, SearchError<E>> {
    assert_eq!(
        (propose.num_experts, propose.num_groups),
        (decide.num_experts, decide.num_groups),
        "both stages are about the same weights"
    );
    config.check(propose.num_weights())?;
    let propose = SearchTask { reference_points: true, ..*propose };
    let proposed = search_weights(&config.propose, &propose, cheap, |event| {
        observe(SearchStage::Propose, event);
    })?;

    let mut seen: Vec<(DecisionKind, Vec<f64>, f64)> = Vec::new();
    for (rank, point) in config.chosen(&proposed.evaluations).into_iter().enumerate() {
        seen.push((DecisionKind::Candidate(rank), point.weights.clone(), point.value));
    }
    for reference in &proposed.references {
        let known = seen.iter().any(|(_, weights, _)| *weights == reference.weights);
        if reference.kind != ReferenceKind::Pretrained && !known {
            let kind = DecisionKind::Reference(reference.kind);
            seen.push((kind, reference.weights.clone(), reference.value));
        }
    }
    let points = seen.iter().map(|(_, weights, _)| weights.clone()).collect();
    let listed = SearchConfig::Points(PointsConfig { points, max_evaluations: u64::MAX });
    let decided =
        search_weights(&listed, decide, dear, |event| observe(SearchStage::Decide, event))?;
    let decisions = seen.into_iter().zip(&decided.evaluations).map(|(seen, evaluation)| {
        let (kind, weights, proposed_value) = seen;
        Decision { kind, weights, proposed_value, value: evaluation.value }
    });
    Ok(TwoStageResult {
        best_weights: decided.best_weights.clone(),
        best_value: decided.best_value,
        decisions: decisions.collect(),
        proposed,
        decided,
    })
}
