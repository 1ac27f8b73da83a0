//! Euler's method over sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn and second order).
//!
//! The image here is `x = x_t / sqrt(abar_t) = x_0 + sigma eps`. It starts at the largest sigma, and the model,
//! which knows x_t, is shown `x / sqrt(sigma^2 + 1)`.

use super::sigmas::{SigmaTable, falling, karras_sigmas};
use super::{SampleError, SamplingMethod, unrounded_timesteps};
use crate::noise_schedule::Rates;
use crate::prediction::PredictionType;
use crate::scheduler_config::{FinalSigmasType, SchedulerClass, SchedulerConfig, TimestepSpacing};
use burn::tensor::Tensor;

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EulerStep {
    /// The noise level of x.
    pub sigma: f64,
    /// The noise level the step leads to.
    pub sigma_next: f64,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
}

/// One step: `d = (x - x_0) / sigma` (eq. 3), `x + d (sigma_next - sigma)`.
///
/// # Shapes
/// x (not scaled down), model_output: `[B, C, H, W]`; returns `[B, C, H, W]`.
pub fn euler_step(x: Tensor<4>, model_output: Tensor<4>, step: &EulerStep) -> Tensor<4> {
    let slope = slope(x.clone(), model_output, step.sigma, step.prediction_type);
    x + slope * (step.sigma_next - step.sigma)
}

/// `dx/dsigma = (x - x_0) / sigma`, which is eps.
pub(super) fn slope(
    x: Tensor<4>,
    model_output: Tensor<4>,
    sigma: f64,
    prediction_type: PredictionType,
) -> Tensor<4> {
    let root = (sigma * sigma + 1.0).sqrt();
    let rates = Rates::of(&[1.0 / (sigma * sigma + 1.0)], &x.device());
    match prediction_type {
        PredictionType::Epsilon => model_output,
        PredictionType::Sample => (x - model_output) / sigma,
        PredictionType::VPrediction => prediction_type.eps(x / root, model_output, &rates),
    }
}

/// Times and noise levels of Euler's methods.
#[derive(Debug, Clone)]
pub(super) struct EulerLevels {
    pub(super) timesteps: Vec<f64>,
    /// One more than timesteps, falling.
    pub(super) sigmas: Vec<f64>,
    /// Deviation of the noise the first step starts from.
    pub(super) init_noise_sigma: f64,
}

impl EulerLevels {
    /// # Errors
    /// [`SampleError::NoiseNotFalling`]; those of [`unrounded_timesteps`] and of the schedule.
    pub(super) fn new(
        scheduler: &SchedulerConfig,
        steps: usize,
        use_karras_sigmas: bool,
        last: FinalSigmasType,
    ) -> Result<Self, SampleError> {
        let table = SigmaTable::new(scheduler)?;
        let mut timesteps = unrounded_timesteps(scheduler, steps)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
        if use_karras_sigmas {
            sigmas = karras_sigmas(sigmas[0], sigmas[steps - 1], steps);
            timesteps = sigmas.iter().map(|&sigma| table.time_of(sigma)).collect();
        }
        sigmas.push(table.last(last));
        falling(&sigmas)?;
        // Noise alone has this deviation, an image of deviation 1 under noise the other.
        let init_noise_sigma = match scheduler.spacing() {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => sigmas[0],
            TimestepSpacing::Leading => (sigmas[0] * sigmas[0] + 1.0).sqrt(),
        };
        Ok(Self { timesteps, sigmas, init_noise_sigma })
    }

    /// What the model is shown at step `index`.
    pub(super) fn scale_model_input(&self, index: usize, x: Tensor<4>) -> Tensor<4> {
        x / (self.sigmas[index] * self.sigmas[index] + 1.0).sqrt()
    }
}

/// Euler's method over a whole schedule: as many calls of the model as steps, no noise added.
///
/// The predicted x_0 is never clamped.
#[derive(Debug, Clone)]
pub struct Euler {
    levels: EulerLevels,
    prediction_type: PredictionType,
}

impl Euler {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// Those of [`unrounded_timesteps`] and of the schedule.
    pub fn new(scheduler: &SchedulerConfig, steps: usize) -> Result<Self, SampleError> {
        let scheduler = &scheduler.as_class(SchedulerClass::Euler);
        let levels = EulerLevels::new(
            scheduler,
            steps,
            scheduler.use_karras_sigmas,
            scheduler.final_sigmas_type,
        )?;
        Ok(Self { levels, prediction_type: scheduler.prediction_type })
    }
}

impl SamplingMethod for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.levels.init_noise_sigma
    }

    fn scale_model_input(&self, index: usize, x: Tensor<4>) -> Tensor<4> {
        self.levels.scale_model_input(index, x)
    }

    fn step(
        &mut self,
        index: usize,
        x: Tensor<4>,
        model_output: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let step = EulerStep {
            sigma: self.levels.sigmas[index],
            sigma_next: self.levels.sigmas[index + 1],
            prediction_type: self.prediction_type,
        };
        euler_step(x, model_output, &step)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn all_predictions_of_one_image_lead_to_the_same_place() {
        let device = Device::default();
        let full = |value: f64| Tensor::<4>::full([1, 1, 1, 1], value, &device);
        let (x_0, eps, sigma) = (0.4, -0.8, 3.0);
        let abar: f64 = 1.0 / (1.0 + sigma * sigma);
        let v = abar.sqrt() * eps - (1.0 - abar).sqrt() * x_0;
        for (prediction_type, output) in [
            (PredictionType::Epsilon, eps),
            (PredictionType::Sample, x_0),
            (PredictionType::VPrediction, v),
        ] {
            let step = EulerStep { sigma, sigma_next: 1.5, prediction_type };
            let x = euler_step(full(x_0 + sigma * eps), full(output), &step);
            let off = f64::from(x.into_scalar::<f32>()) - (x_0 + 1.5 * eps);
            assert!(off.abs() < 1e-6, "{prediction_type:?}: {off}");
        }
    }

    #[test]
    fn the_start_is_as_noisy_as_diffusers_has_it() {
        let sigma = |spacing| {
            let timestep_spacing = Some(spacing);
            let scheduler = SchedulerConfig { timestep_spacing, ..Default::default() };
            let euler = Euler::new(&scheduler, 10).unwrap();
            (euler.init_noise_sigma(), euler.levels.sigmas[0])
        };
        let (start, first) = sigma(TimestepSpacing::Trailing);
        assert_eq!(start, first);
        let (start, first) = sigma(TimestepSpacing::Leading);
        assert_eq!(start, (first * first + 1.0).sqrt());
    }
}
