//! Listed weights and no others: the candidates of a second stage, the points of a landscape.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Search, Stop};
use super::{SearchError, check_count, check_weights, default_max_evaluations};

/// Evaluates the listed weights, in order; weights listed twice once. The log goes on with another list,
/// what it holds is not evaluated again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointsConfig {
    /// One weight per expert each.
    pub points: Vec<Vec<f64>>,
    /// A longer list is refused before the first evaluation.
    #[serde(default = "default_max_evaluations")]
    pub max_evaluations: u64,
}

impl PointsConfig {
    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        if self.points.is_empty() {
            return Err(SearchError::NoPoints);
        }
        self.points.iter().try_for_each(|point| {
            check_count("points", Some(point.len()), num_weights)?;
            check_weights(point)
        })
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        self.points.iter().try_for_each(|point| search.value_at(point).map(|_| ()))
    }
}
