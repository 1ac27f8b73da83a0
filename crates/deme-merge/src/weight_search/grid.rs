//! The grid: all combinations of values. (The paper's search.)

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Search, Stop};
use super::{SearchError, check_count, check_values, default_max_evaluations};

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
    /// Search the whole grid even if it is larger than `max_evaluations`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl GridConfig {
    /// The number of combinations, saturating.
    pub(super) fn size(&self, num_weights: usize) -> u128 {
        let lengths = (0..num_weights).map(|expert| self.values_of(expert).len() as u128);
        lengths.fold(1, u128::saturating_mul)
    }

    /// The most evaluations there may be.
    pub(super) fn limit(&self) -> u64 {
        if self.force { u64::MAX } else { self.max_evaluations }
    }

    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        let lists = self.values_per_expert.as_ref().map(Vec::len);
        check_count("values_per_expert", lists, num_weights)?;
        if lists.is_some() && !self.values.is_empty() {
            return Err(SearchError::TwoValueLists);
        }
        (0..num_weights).try_for_each(|expert| check_values(expert, self.values_of(expert)))
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let num_weights = search.num_weights();
        let values: Vec<&[f64]> = (0..num_weights).map(|i| self.values_of(i)).collect();
        for number in 0..self.size(num_weights) {
            // The number's digits choose the values; the last expert has the lowest digit.
            let mut rest = number;
            let mut weights = vec![0.0; num_weights];
            for (weight, values) in weights.iter_mut().zip(&values).rev() {
                let base = values.len() as u128;
                *weight = values[(rest % base) as usize];
                rest /= base;
            }
            search.value_at(&weights)?;
        }
        Ok(())
    }

    /// The values to try for one expert; empty when none are given.
    fn values_of(&self, expert: usize) -> &[f64] {
        match &self.values_per_expert {
            Some(lists) => lists.get(expert).map_or(&[], Vec::as_slice),
            None => &self.values,
        }
    }
}
