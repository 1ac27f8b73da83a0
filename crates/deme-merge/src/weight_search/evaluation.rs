//! A search under way: every evaluation is cached by its weights, logged, counted and told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::log::SearchLog;
use super::objective::Objective;
use super::{Reference, ReferenceKind, SearchError, SearchEvent, SearchProgress, SearchTask};

/// Weights and what the objective said about them. Equal are two that say the same, however long they took.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// One weight per expert.
    pub weights: Vec<f64>,
    /// The objective there; lower is better.
    pub value: f64,
    /// Its derivative by each weight, where the search uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient: Option<Vec<f64>>,
    /// How long the objective took, in seconds; none in logs of versions that did not measure it. From
    /// the log when an earlier run or a reference point has evaluated these weights. No strategy sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

impl PartialEq for Evaluation {
    fn eq(&self, other: &Self) -> bool {
        let Self { weights, value, gradient, seconds: _ } = self;
        (weights, value, gradient) == (&other.weights, &other.value, &other.gradient)
    }
}

/// Why a strategy ends before it is done.
pub(super) enum Stop<E: Debug + Display> {
    /// It asked for more evaluations than it may have. Not an error: what was found counts.
    BudgetSpent,
    /// Something is wrong.
    Failed(SearchError<E>),
}

impl<E: Debug + Display> From<SearchError<E>> for Stop<E> {
    fn from(error: SearchError<E>) -> Self {
        Self::Failed(error)
    }
}

/// A search under way.
pub(super) struct Search<'a, E: Debug + Display> {
    num_experts: usize,
    num_weights: usize,
    with_gradient: bool,
    budget: u64,
    log: SearchLog,
    /// All evaluations by their weights: those of earlier runs, which are in the log, and of this one.
    known: BTreeMap<Vec<u64>, Known>,
    /// The weights the strategy has asked for, in order, and as keys.
    evaluations: Vec<Evaluation>,
    asked: BTreeSet<Vec<u64>>,
    /// Index of the best evaluation.
    best: usize,
    references: Vec<Reference>,
    objective: &'a mut dyn Objective<Error = E>,
    observe: &'a mut dyn FnMut(SearchEvent<'_>),
}

struct Known {
    value: f64,
    gradient: Option<Vec<f64>>,
    seconds: Option<f64>,
    from_log: bool,
}

impl Known {
    fn of(evaluation: Evaluation, from_log: bool) -> Self {
        let Evaluation { value, gradient, seconds, .. } = evaluation;
        Self { value, gradient, seconds, from_log }
    }
}

impl<'a, E: Debug + Display> Search<'a, E> {
    pub(super) fn new(
        task: &SearchTask<'_>,
        budget: u64,
        with_gradient: bool,
        (log, logged): (SearchLog, Vec<Evaluation>),
        objective: &'a mut dyn Objective<Error = E>,
        observe: &'a mut dyn FnMut(SearchEvent<'_>),
    ) -> Self {
        let known = |e: Evaluation| (key(&e.weights), Known::of(e, true));
        Self {
            num_experts: task.num_experts,
            num_weights: task.num_weights(),
            with_gradient,
            budget,
            log,
            known: logged.into_iter().map(known).collect(),
            evaluations: Vec::new(),
            asked: BTreeSet::new(),
            best: 0,
            references: Vec::new(),
            objective,
            observe,
        }
    }

    /// How many weights there are.
    pub(super) fn num_weights(&self) -> usize {
        self.num_weights
    }

    /// How many evaluations the strategy has had.
    pub(super) fn done(&self) -> usize {
        self.evaluations.len()
    }

    /// `1 / experts` for each.
    pub(super) fn uniform_weights(&self) -> Vec<f64> {
        vec![1.0 / self.num_experts as f64; self.num_weights]
    }

    /// All the strategy has evaluated, in order.
    pub(super) fn evaluations(&self) -> &[Evaluation] {
        &self.evaluations
    }

    /// The best of them, the first of several; none before the first.
    pub(super) fn best(&self) -> Option<&Evaluation> {
        self.evaluations.get(self.best)
    }

    /// The evaluations in order, the index of the best, and the reference points.
    pub(super) fn into_parts(self) -> (Vec<Evaluation>, usize, Vec<Reference>) {
        (self.evaluations, self.best, self.references)
    }

    /// Says how long the search can be, and how much of it an earlier run has left in the log.
    pub(super) fn announce(&mut self) {
        let starts =
            SearchEvent::Starts { evaluations: self.budget, logged: self.known.len() as u64 };
        (self.observe)(starts);
    }

    /// The objective at a point to compare with, outside of the budget.
    pub(super) fn evaluate_reference(
        &mut self,
        kind: ReferenceKind,
        weights: Vec<f64>,
    ) -> Result<(), SearchError<E>> {
        let value = self.evaluate(&weights)?.value;
        self.references.push(Reference { kind, weights, value });
        (self.observe)(SearchEvent::Reference(self.references.last().expect("just pushed")));
        Ok(())
    }

    /// The objective, evaluated unless this or an earlier run has already done so.
    pub(super) fn value_at(&mut self, weights: &[f64]) -> Result<f64, Stop<E>> {
        // The two zeros are the same weight.
        let weights: Vec<f64> = weights.iter().map(|weight| weight + 0.0).collect();
        let key = key(&weights);
        if self.asked.contains(&key) {
            return Ok(self.known[&key].value);
        }
        if self.evaluations.len() as u64 == self.budget {
            return Err(Stop::BudgetSpent);
        }
        let known = self.evaluate(&weights)?;
        let (value, seconds, from_log) = (known.value, known.seconds, known.from_log);
        let gradient = known.gradient.clone();
        self.asked.insert(key);
        self.evaluations.push(Evaluation { weights, value, gradient, seconds });
        let last = self.evaluations.len() - 1;
        // Strictly better: of equals the first one stays.
        if value < self.evaluations[self.best].value {
            self.best = last;
        }
        (self.observe)(SearchEvent::Evaluated(SearchProgress {
            done: self.evaluations.len() as u64,
            total: self.budget,
            evaluation: &self.evaluations[last],
            best: &self.evaluations[self.best],
            from_log,
        }));
        Ok(value)
    }

    /// The objective and its gradient; only for a search with gradients.
    pub(super) fn value_and_gradient_at(
        &mut self,
        weights: &[f64],
    ) -> Result<(f64, Vec<f64>), Stop<E>> {
        let value = self.value_at(weights)?;
        let gradient = self.known[&key(weights)].gradient.clone();
        Ok((value, gradient.expect("a search with gradients evaluates and reads no point without")))
    }

    /// What is known at `weights`, evaluated and logged before if need be.
    fn evaluate(&mut self, weights: &[f64]) -> Result<&Known, SearchError<E>> {
        let key = key(weights);
        if !self.known.contains_key(&key) {
            let failed = |error| SearchError::Objective { weights: weights.to_vec(), error };
            let start = Instant::now();
            let (value, gradient) = if self.with_gradient {
                let both = self.objective.value_and_gradient(weights);
                let (value, gradient) = both.ok_or(SearchError::NoGradient)?.map_err(failed)?;
                (value, Some(gradient))
            } else {
                (self.objective.value(weights).map_err(failed)?, None)
            };
            let seconds = Some(start.elapsed().as_secs_f64());
            if !value.is_finite() {
                return Err(SearchError::NonFiniteObjective { weights: weights.to_vec(), value });
            }
            if let Some(gradient) = &gradient {
                check_gradient(weights, gradient)?;
            }
            let evaluation = Evaluation { weights: weights.to_vec(), value, gradient, seconds };
            self.log.append(&evaluation)?;
            self.known.insert(key.clone(), Known::of(evaluation, false));
        }
        Ok(&self.known[&key])
    }
}

fn check_gradient<E: Debug + Display>(
    weights: &[f64],
    gradient: &[f64],
) -> Result<(), SearchError<E>> {
    let expected = weights.len();
    if gradient.len() != expected {
        return Err(SearchError::GradientLength { expected, found: gradient.len() });
    }
    match gradient.iter().position(|derivative| !derivative.is_finite()) {
        None => Ok(()),
        Some(expert) => Err(SearchError::NonFiniteGradient {
            weights: weights.to_vec(),
            expert,
            found: gradient[expert],
        }),
    }
}

/// Weights as a key: f64 has no total order of its own. The two zeros have the same.
fn key(weights: &[f64]) -> Vec<u64> {
    weights.iter().map(|weight| (weight + 0.0).to_bits()).collect()
}
