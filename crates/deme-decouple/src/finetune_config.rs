//! The settings of finetuning, and which values are impossible.

use deme_diffusion::ProjectionPlacement;
use deme_nn::AdamWConfig;
use serde::{Deserialize, Serialize};

use crate::ema::EmaConfig;
use crate::learning_rate::LrSchedule;
use crate::loss_weighting::LossWeighting;
use crate::timestep_sampler::TimestepSampling;

/// How one expert is finetuned.
///
/// Defaults are the reference's for LSUN-Church, but for the placement of the channel projection: `folded`
/// leaves the expert the pretrained architecture, which merging and export need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Optimiser steps.
    pub iterations: u64,
    /// Pictures per micro-step.
    pub batch_size: usize,
    /// Micro-steps whose mean gradient makes one optimiser step.
    pub gradient_accumulation: u64,
    /// Full learning rate.
    pub learning_rate: f64,
    /// Warm-up and course of the learning rate.
    pub lr_schedule: LrSchedule,
    /// The optimiser's constants.
    pub optimizer: AdamWConfig,
    /// Longer gradients are scaled down to this norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Moving average of the weights.
    pub ema: EmaConfig,
    /// Weight of the consistency loss; 0 turns it off, and no teacher is evaluated.
    pub consistency_weight: f64,
    /// Which timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
    /// Where the learnable channel projections stand.
    pub projection: ProjectionPlacement,
    /// Weight of each timestep's diffusion loss.
    pub loss_weighting: LossWeighting,
    /// Mirror each picture left to right with probability 1/2.
    pub horizontal_flip: bool,
    /// Leave each caption out with this probability, which classifier-free guidance needs; only for models that
    /// see captions.
    pub caption_dropout: f64,
    /// Keep no activations for the backward pass but those between the blocks of the network: less memory, and
    /// about a third more time.
    pub gradient_checkpointing: bool,
    /// Iterations between checkpoints. Changes nothing in the result.
    pub checkpoint_every: u64,
    /// Iterations that make one point of the loss curve.
    pub log_every: u64,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            iterations: 20_000,
            batch_size: 16,
            gradient_accumulation: 4,
            learning_rate: 5e-5,
            lr_schedule: LrSchedule::default(),
            optimizer: AdamWConfig::default(),
            max_grad_norm: 1.0,
            ema: EmaConfig::default(),
            consistency_weight: 1.0,
            timestep_sampling: TimestepSampling::default(),
            projection: ProjectionPlacement::Folded,
            loss_weighting: LossWeighting::Uniform,
            horizontal_flip: false,
            caption_dropout: 0.0,
            gradient_checkpointing: false,
            checkpoint_every: 1000,
            log_every: 50,
        }
    }
}

impl FinetuneConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the first key whose value cannot be.
    pub fn validate(&self) -> Result<(), ImpossibleValue> {
        let counts = [
            ("iterations", self.iterations),
            ("batch_size", self.batch_size as u64),
            ("gradient_accumulation", self.gradient_accumulation),
            ("checkpoint_every", self.checkpoint_every),
            ("log_every", self.log_every),
        ];
        for (key, count) in counts {
            ImpossibleValue::unless(count > 0, key, count, "at least 1")?;
        }
        let [beta1, beta2] = self.optimizer.betas;
        let unit = 0.0..1.0;
        let below_one = "a number from 0 to below 1";
        ImpossibleValue::unless(unit.contains(&beta1), "optimizer.betas[0]", beta1, below_one)?;
        ImpossibleValue::unless(unit.contains(&beta2), "optimizer.betas[1]", beta2, below_one)?;
        let positive =
            [("learning_rate", self.learning_rate), ("optimizer.eps", self.optimizer.eps)];
        for (key, value) in positive {
            let possible = value.is_finite() && value > 0.0;
            ImpossibleValue::unless(possible, key, value, "a finite number above 0")?;
        }
        let not_negative = [
            ("optimizer.weight_decay", self.optimizer.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("consistency_weight", self.consistency_weight),
        ];
        for (key, value) in not_negative {
            let possible = value.is_finite() && value >= 0.0;
            ImpossibleValue::unless(possible, key, value, "a finite number, 0 or more")?;
        }
        ImpossibleValue::unless(
            (0.0..=1.0).contains(&self.caption_dropout),
            "caption_dropout",
            self.caption_dropout,
            "a number from 0 to 1",
        )?;
        self.lr_schedule.validate(self.iterations)?;
        self.ema.validate()?;
        self.timestep_sampling.validate()?;
        self.loss_weighting.validate()
    }

    /// Learning rate of iteration `iteration`, from 0.
    pub fn learning_rate_at(&self, iteration: u64) -> f64 {
        self.learning_rate * self.lr_schedule.factor(iteration, self.iterations)
    }
}

/// A setting whose value cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{key}` = {found} is impossible; it must be {wanted}")]
pub struct ImpossibleValue {
    /// The key, with the tables it lies in.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What is possible.
    pub wanted: &'static str,
}

impl ImpossibleValue {
    pub(crate) fn unless(
        possible: bool,
        key: &'static str,
        found: impl std::fmt::Display,
        wanted: &'static str,
    ) -> Result<(), Self> {
        if possible {
            return Ok(());
        }
        Err(Self { key, found: found.to_string(), wanted })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(change: impl FnOnce(&mut FinetuneConfig)) -> &'static str {
        let mut config = FinetuneConfig::default();
        change(&mut config);
        config.validate().unwrap_err().key
    }

    #[test]
    fn the_default_is_possible_and_survives_json() {
        let config = FinetuneConfig::default();
        config.validate().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<FinetuneConfig>(&text).unwrap(), config);
        assert_eq!(serde_json::from_str::<FinetuneConfig>("{}").unwrap(), config);
    }

    #[test]
    fn unknown_keys_are_refused_everywhere() {
        for text in [
            r#"{"iteration": 1}"#,
            r#"{"ema": {"decay": 0.9}}"#,
            r#"{"lr_schedule": {"warmup": 1}}"#,
            r#"{"timestep_sampling": {"p": 0.1}}"#,
            r#"{"optimizer": {"lr": 0.1}}"#,
        ] {
            let error = serde_json::from_str::<FinetuneConfig>(text).unwrap_err();
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        assert_eq!(key(|c| c.iterations = 0), "iterations");
        assert_eq!(key(|c| c.batch_size = 0), "batch_size");
        assert_eq!(key(|c| c.gradient_accumulation = 0), "gradient_accumulation");
        assert_eq!(key(|c| c.checkpoint_every = 0), "checkpoint_every");
        assert_eq!(key(|c| c.log_every = 0), "log_every");
        assert_eq!(key(|c| c.learning_rate = f64::NAN), "learning_rate");
        assert_eq!(key(|c| c.learning_rate = -1.0), "learning_rate");
        assert_eq!(key(|c| c.optimizer.betas[0] = 1.0), "optimizer.betas[0]");
        assert_eq!(key(|c| c.optimizer.betas[1] = -0.1), "optimizer.betas[1]");
        assert_eq!(key(|c| c.optimizer.eps = 0.0), "optimizer.eps");
        assert_eq!(key(|c| c.optimizer.weight_decay = -1.0), "optimizer.weight_decay");
        assert_eq!(key(|c| c.max_grad_norm = f64::INFINITY), "max_grad_norm");
        assert_eq!(key(|c| c.consistency_weight = -1.0), "consistency_weight");
        assert_eq!(
            key(|c| c.lr_schedule.warmup_iterations = 20_000),
            "lr_schedule.warmup_iterations"
        );
        assert_eq!(key(|c| c.ema.max_decay = 1.0), "ema.max_decay");
        let error = FinetuneConfig { batch_size: 0, ..Default::default() }.validate().unwrap_err();
        assert_eq!(error.to_string(), "`batch_size` = 0 is impossible; it must be at least 1");
    }
}
