//! Coordinate descent on a grid: one expert's weight after the other, where all combinations are too many.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Search, Stop};
use super::{SearchError, check_count, check_values, check_weights, default_max_evaluations};

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

impl CoordinateGridConfig {
    /// The most evaluations there can be, saturating.
    pub(super) fn size(&self, num_weights: usize) -> u128 {
        (self.rounds as u128)
            .saturating_mul(num_weights as u128)
            .saturating_mul(self.values.len() as u128)
            .saturating_add(1)
    }

    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        check_count("start", self.start.as_ref().map(Vec::len), num_weights)?;
        check_values(0, &self.values)?;
        check_weights(self.start.as_deref().unwrap_or(&[]))
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let mut weights = self.start.clone().unwrap_or_else(|| search.uniform_weights());
        let mut best = search.value_at(&weights)?;
        for _ in 0..self.rounds {
            let before = weights.clone();
            for expert in 0..weights.len() {
                let mut candidate = weights.clone();
                for &value in &self.values {
                    candidate[expert] = value;
                    let objective = search.value_at(&candidate)?;
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
}
