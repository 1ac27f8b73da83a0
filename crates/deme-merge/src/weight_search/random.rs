//! Random search: weights drawn uniformly within bounds. What a search that learns from its evaluations
//! has to beat.   (Bergstra and Bengio 2012)

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::SearchError;
use super::evaluation::{Search, Stop};
use super::region::Region;
use crate::random_draws::RandomDraws;

/// Draws `max_evaluations` weights, each expert's uniformly in the bounds. A larger budget begins with
/// the draws of a smaller one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomConfig {
    /// The lowest and the highest weight of an expert.
    pub bounds: [f64; 2],
    /// Other seeds draw other weights.
    #[serde(default)]
    pub seed: u64,
    /// How many weights are drawn.
    pub max_evaluations: u64,
}

impl RandomConfig {
    pub(super) fn check<E: Debug + Display>(&self) -> Result<(), SearchError<E>> {
        Region::new(Some(self.bounds)).map(|_| ())
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let [low, high] = self.bounds;
        let mut draws = RandomDraws::new(self.seed, 0);
        for _ in 0..self.max_evaluations {
            let weights: Vec<f64> =
                (0..search.num_weights()).map(|_| draws.between(low, high)).collect();
            search.value_at(&weights)?;
        }
        Ok(())
    }
}
