//! The exponential moving average of a model's weights, with warm-up: the expert that is merged.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::{map_parameters, visit_parameters};
use replace_with::replace_with_or_abort;
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

impl<M: Module> Ema<M> {
    /// Starts at `model`.
    pub fn new(config: EmaConfig, model: M) -> Self {
        Self::resume(config, model, 0)
    }

    /// Goes on from an average that has seen `updates` updates.
    pub fn resume(config: EmaConfig, model: M, updates: u64) -> Self {
        Self { config, model, updates }
    }

    /// Moves the average towards `model`, which has the same parameters; returns the decay used.
    pub fn update(&mut self, model: &M) -> f64 {
        let decay = self.config.decay(self.updates);
        let mut thetas = BTreeMap::new();
        visit_parameters(model, &mut |name: &str, _: &[usize], theta: Tensor<1>| {
            thetas.insert(name.to_owned(), theta);
        });
        // Moved out and in again: an average that nobody shares is changed in place.
        replace_with_or_abort(&mut self.model, |average| {
            map_parameters(average, &mut |name, ema| {
                let theta = thetas.remove(name).expect("the average of a model has its parameters");
                deme_kernels::ema_step(ema, theta, decay)
            })
        });
        self.updates += 1;
        decay
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
    use burn::tensor::Device;
    use deme_nn::{Init, Linear, to_state_dict};

    fn weights(model: &Linear) -> Vec<f32> {
        to_state_dict(model).get("weight").unwrap().to_f32().unwrap()
    }

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
        let device = Device::flex();
        let init = &mut Init::new(1, &device);
        let models = [(); 3].map(|()| Linear::new(2, 2, false, init));
        let mut ema = Ema::new(EmaConfig::default(), models[0].clone());
        let decays = [1, 2].map(|i: usize| ema.update(&models[i]));
        assert_eq!(decays[0], 0.0, "the first update forgets the start");
        let d = decays[1] as f32;
        let expected: Vec<f32> = weights(&models[1])
            .iter()
            .zip(weights(&models[2]))
            .map(|(first, second)| d * first + (1.0 - d) * second)
            .collect();
        for (found, expected) in weights(ema.model()).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6);
        }
        assert_eq!(ema.updates(), 2);
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
