//! The objective over the plane of two task vectors.   (Ma et al. 2024, the loss landscape figure)
//!
//! A point of the plane is theta + a tau_i + b tau_j: (0, 0) is the pretrained model, (1, 0) and (0, 1) are
//! the two experts. In terms of merging weights that is `weights[i] = a`, `weights[j] = b`, so a landscape
//! is a search over listed weights, with the same log. Figures are drawn elsewhere.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use crate::weight_search::{
    Objective, PointsConfig, Reference, SearchConfig, SearchError, SearchEvent, SearchTask,
    check_count, check_values, check_weights, search_weights,
};

/// Which plane, and which of its points: all pairs of the coefficients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandscapeConfig {
    /// The two experts whose task vectors span the plane, counted from zero.
    pub experts: [usize; 2],
    /// The coefficients of the first one's task vector.
    pub first: Vec<f64>,
    /// The coefficients of the second one's task vector.
    pub second: Vec<f64>,
    /// One weight per expert for a plane that does not go through theta; those of the two experts are
    /// not used. All 0 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Vec<f64>>,
    /// A larger landscape is refused before the first evaluation.
    #[serde(default = "default_max_evaluations")]
    pub max_evaluations: u64,
}

fn default_max_evaluations() -> u64 {
    1000
}

/// The objective over a plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Landscape {
    /// The two experts whose task vectors span the plane, counted from zero.
    pub experts: [usize; 2],
    /// The coefficients of the first one's task vector.
    pub first: Vec<f64>,
    /// The coefficients of the second one's task vector.
    pub second: Vec<f64>,
    /// `values[a][b]` is the objective at `first[a]` and `second[b]`.
    pub values: Vec<Vec<f64>>,
    /// The points to compare with, where they were asked for. Those of other experts, and uniform
    /// weights for more than two, lie outside of the plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

impl LandscapeConfig {
    /// The plane through theta with `count` evenly spaced coefficients from `low` to `high`, both
    /// included, for either task vector.
    pub fn even(experts: [usize; 2], [low, high]: [f64; 2], count: usize) -> Self {
        let intervals = count.saturating_sub(1).max(1) as f64;
        let at = |place: usize| {
            let share = place as f64 / intervals;
            low * (1.0 - share) + high * share
        };
        let coefficients: Vec<f64> = (0..count).map(at).collect();
        Self {
            experts,
            first: coefficients.clone(),
            second: coefficients,
            others: None,
            max_evaluations: default_max_evaluations(),
        }
    }

    /// How many points there are.
    pub fn size(&self) -> u128 {
        self.first.len() as u128 * self.second.len() as u128
    }

    /// Checks the settings before anything is evaluated.
    ///
    /// # Errors
    /// Those of [`SearchError`] that concern the settings.
    pub fn check<E: Debug + Display>(&self, num_experts: usize) -> Result<(), SearchError<E>> {
        if num_experts == 0 {
            return Err(SearchError::NoExperts);
        }
        let [i, j] = self.experts;
        let outside = self.experts.into_iter().find(|&expert| expert >= num_experts);
        if let Some(expert) = outside.or((i == j).then_some(j)) {
            return Err(SearchError::Setting {
                setting: "experts",
                expected: "two different experts, counted from zero",
                found: expert as f64,
            });
        }
        check_values(i, &self.first)?;
        check_values(j, &self.second)?;
        check_count("others", self.others.as_ref().map(Vec::len), num_experts)?;
        check_weights(self.others.as_deref().unwrap_or(&[]))?;
        if self.size() > u128::from(self.max_evaluations) {
            let max_evaluations = self.max_evaluations;
            return Err(SearchError::TooLarge { size: self.size(), max_evaluations });
        }
        Ok(())
    }

    /// The weights of all points, those of a first coefficient after each other; with groups of
    /// parameters the same weights for each group.
    pub fn points(&self, num_experts: usize, num_groups: usize) -> Vec<Vec<f64>> {
        let [i, j] = self.experts;
        let mut weights = self.others.clone().unwrap_or_else(|| vec![0.0; num_experts]);
        let mut points = Vec::new();
        for &a in &self.first {
            for &b in &self.second {
                (weights[i], weights[j]) = (a, b);
                points.push(weights.repeat(num_groups));
            }
        }
        points
    }
}

/// Evaluates all points of the plane. The log is continued as in [`search_weights`]; other points of the
/// same objective, a finer grid or another plane, go on with what it holds.
///
/// # Errors
/// [`SearchError`]. Evaluations that were made stay in the log.
pub fn landscape<O: Objective>(
    config: &LandscapeConfig,
    task: &SearchTask<'_>,
    objective: O,
    observe: impl FnMut(SearchEvent<'_>),
) -> Result<Landscape, SearchError<O::Error>> {
    config.check(task.num_experts)?;
    let points = config.points(task.num_experts, task.num_groups);
    let listed =
        SearchConfig::Points(PointsConfig { points, max_evaluations: config.max_evaluations });
    let found = search_weights(&listed, task, objective, observe)?;
    let values: Vec<f64> = found.evaluations.iter().map(|evaluation| evaluation.value).collect();
    Ok(Landscape {
        experts: config.experts,
        first: config.first.clone(),
        second: config.second.clone(),
        values: values.chunks(config.second.len()).map(<[f64]>::to_vec).collect(),
        references: found.references,
    })
}
