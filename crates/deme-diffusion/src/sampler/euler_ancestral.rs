//! Euler's method with noise added in each step: ancestral sampling over sigma, as k-diffusion introduced it
//! (Karras et al. 2022, arXiv 2206.00364, section 4, for noise in the solver; Song et al. 2021, arXiv
//! 2011.13456, section 4.3, for the ancestral step).

use super::euler::{EulerLevels, slope};
use super::{SampleError, SamplingMethod};
use crate::prediction::PredictionType;
use crate::scheduler_config::{FinalSigmasType, SchedulerClass, SchedulerConfig};
use burn::tensor::Tensor;

/// The numbers of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EulerAncestralStep {
    /// The noise level of x.
    pub sigma: f64,
    /// The noise level the slope leads to.
    pub sigma_down: f64,
    /// Deviation of the noise that then brings it up to the next level.
    pub sigma_up: f64,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
}

impl EulerAncestralStep {
    /// A step between two noise levels: `sigma_up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2`, the
    /// posterior's variance, and `sigma_down^2 + sigma_up^2 = sigma_next^2`.
    pub fn new(sigma: f64, sigma_next: f64, prediction_type: PredictionType) -> Self {
        let [from, to] = [sigma * sigma, sigma_next * sigma_next];
        let up = to * (from - to) / from;
        Self { sigma, sigma_down: (to - up).sqrt(), sigma_up: up.sqrt(), prediction_type }
    }
}

/// One step: `x + d (sigma_down - sigma) + sigma_up z` with the slope `d = (x - x_0) / sigma`. `noise` gives
/// z and is called only where `sigma_up > 0`.
///
/// # Shapes
/// x (not scaled down), model_output, noise: `[B, C, H, W]`; returns `[B, C, H, W]`.
pub fn euler_ancestral_step(
    x: Tensor<4>,
    model_output: Tensor<4>,
    step: &EulerAncestralStep,
    noise: impl FnOnce() -> Tensor<4>,
) -> Tensor<4> {
    let slope = slope(x.clone(), model_output, step.sigma, step.prediction_type);
    let x = x + slope * (step.sigma_down - step.sigma);
    if step.sigma_up > 0.0 { x + noise() * step.sigma_up } else { x }
}

/// Ancestral Euler over a whole schedule: as many calls of the model as steps; noise in all steps but the last.
///
/// The predicted x_0 is never clamped. A departure from diffusers: models that predict x_0 are taken.
#[derive(Debug, Clone)]
pub struct EulerAncestral {
    levels: EulerLevels,
    steps: Vec<EulerAncestralStep>,
}

impl EulerAncestral {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// Those of [`unrounded_timesteps`](super::unrounded_timesteps) and of the schedule.
    pub fn new(scheduler: &SchedulerConfig, steps: usize) -> Result<Self, SampleError> {
        let scheduler = &scheduler.as_class(SchedulerClass::EulerAncestral);
        let levels = EulerLevels::new(scheduler, steps, false, FinalSigmasType::Zero)?;
        let step =
            |pair: &[f64]| EulerAncestralStep::new(pair[0], pair[1], scheduler.prediction_type);
        Ok(Self { steps: levels.sigmas.windows(2).map(step).collect(), levels })
    }
}

impl SamplingMethod for EulerAncestral {
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
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        euler_ancestral_step(x, model_output, &self.steps[index], noise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slope_and_noise_lead_to_the_next_level_together() {
        let step = EulerAncestralStep::new(3.0, 2.0, PredictionType::Epsilon);
        // 4 (9 - 4) / 9
        assert!((step.sigma_up.powi(2) - 20.0 / 9.0).abs() < 1e-12);
        assert!((step.sigma_up.powi(2) + step.sigma_down.powi(2) - 4.0).abs() < 1e-12);
        let last = EulerAncestralStep::new(3.0, 0.0, PredictionType::Epsilon);
        assert_eq!((last.sigma_down, last.sigma_up), (0.0, 0.0));
    }
}
