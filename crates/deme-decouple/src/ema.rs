//! The exponential moving average of a model's weights, with warm-up: the expert that is merged.

use replace_with::replace_with_or_abort_and_return;
use serde::{Deserialize, Serialize};

use crate::finetune_config::ImpossibleValue;

/// How fast the average follows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// Off: the result of finetuning is the student itself.
    pub enabled: bool,
    /// The decay is never above this; in `[0, 1)`.
    pub max_decay: f64,
    /// Steps per unit of the warm-up, above 0.
    pub inv_gamma: f64,
    /// Exponent of the warm-up, above 0.
    pub power: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { enabled: true, max_decay: 0.9999, inv_gamma: 1.0, power: 0.75 }
    }
}

impl EmaConfig {
    /// The decay of update number `update`, counted from 0:
    /// `min(max_decay, 1 - (1 + update / inv_gamma)^-power)`.
    ///
    /// Update 0 has decay 0: the average starts as the weights after the first optimiser step.
    pub fn decay(&self, update: u64) -> f64 {
        let warm_up = 1.0 - (1.0 + update as f64 / self.inv_gamma).powf(-self.power);
        warm_up.min(self.max_decay)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the key.
    pub fn validate(&self) -> Result<(), ImpossibleValue> {
        ImpossibleValue::unless(
            (0.0..1.0).contains(&self.max_decay),
            "ema.max_decay",
            self.max_decay,
            "a number from 0 to below 1",
        )?;
        for (key, value) in [("ema.inv_gamma", self.inv_gamma), ("ema.power", self.power)] {
            let possible = value.is_finite() && value > 0.0;
            ImpossibleValue::unless(possible, key, value, "a finite number above 0")?;
        }
        Ok(())
    }
}

/// A model's moving average.
#[derive(Debug, Clone)]
pub struct Ema<M> {
    config: EmaConfig,
    model: M,
    updates: u64,
}

impl<M> Ema<M> {
    /// Starts at `model`.
    pub fn new(config: EmaConfig, model: M) -> Self {
        Self::resume(config, model, 0)
    }

    /// Goes on from an average that has seen `updates` updates.
    pub fn resume(config: EmaConfig, model: M, updates: u64) -> Self {
        Self { config, model, updates }
    }

    /// One update. `update(average, decay)` moves the average towards the model and returns it last,
    /// after what else it made: the optimiser changes model and average in one pass. Returns that, and
    /// the decay.
    pub fn update<R>(&mut self, update: impl FnOnce(M, f64) -> (R, M)) -> (R, f64) {
        let decay = self.config.decay(self.updates);
        // Moved out and in again: an average that nobody shares is changed in place.
        let made =
            replace_with_or_abort_and_return(&mut self.model, |average| update(average, decay));
        self.updates += 1;
        (made, decay)
    }

    /// The average.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// How many updates it has seen.
    pub fn updates(&self) -> u64 {
        self.updates
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_decay_warms_up_from_zero_to_its_maximum() {
        let config = EmaConfig::default();
        assert_eq!(config.decay(0), 0.0);
        assert!((config.decay(1) - (1.0 - 2f64.powf(-0.75))).abs() < 1e-12);
        assert_eq!(config.decay(1_000_000_000), 0.9999);
        assert_eq!(EmaConfig { max_decay: 0.5, ..config }.decay(1000), 0.5);
        let slow = EmaConfig { inv_gamma: 10.0, ..config };
        assert_eq!(slow.decay(10), config.decay(1));
    }

    #[test]
    fn the_average_is_the_weighted_sum_of_what_it_saw() {
        let mut ema = Ema::new(EmaConfig::default(), 100.0);
        let mut update = |model: f64| {
            ema.update(|average, decay| (model, decay * average + (1.0 - decay) * model))
        };
        assert_eq!(update(7.0), (7.0, 0.0), "the first update forgets the start");
        let (made, decay) = update(11.0);
        assert_eq!((made, decay), (11.0, EmaConfig::default().decay(1)));
        assert_eq!((*ema.model(), ema.updates()), (decay * 7.0 + (1.0 - decay) * 11.0, 2));
    }

    #[test]
    fn impossible_constants_are_refused_by_name() {
        let config = EmaConfig::default();
        let key = |config: EmaConfig| config.validate().unwrap_err().key;
        assert_eq!(key(EmaConfig { max_decay: 1.0, ..config }), "ema.max_decay");
        assert_eq!(key(EmaConfig { inv_gamma: 0.0, ..config }), "ema.inv_gamma");
        assert_eq!(key(EmaConfig { power: f64::NAN, ..config }), "ema.power");
        config.validate().unwrap();
    }
}
