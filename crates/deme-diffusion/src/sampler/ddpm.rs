//! Denoising diffusion probabilistic models, ancestral sampling (Ho et al. 2020, arXiv 2006.11239).

use super::{SampleError, SamplingMethod, X0Limit, enough_signal, sampling_timesteps};
use crate::noise_schedule::Rates;
use crate::prediction::PredictionType;
use crate::scheduler_config::{SchedulerClass, SchedulerConfig, VarianceType};
use burn::tensor::Tensor;

/// The numbers of one DDPM step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdpmStep {
    /// abar at the step's timestep.
    pub alpha_cumprod: f64,
    /// abar where the step leads.
    pub alpha_cumprod_prev: f64,
    /// Deviation of the step's noise.
    pub std_dev: f64,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
    /// What is done to the predicted x_0.
    pub limit: X0Limit,
}

impl DdpmStep {
    /// A step between two values of abar. The beta of a step over several timesteps is
    /// `1 - abar_t / abar_prev`.
    pub fn new(
        alpha_cumprod: f64,
        alpha_cumprod_prev: f64,
        variance_type: VarianceType,
        prediction_type: PredictionType,
        limit: X0Limit,
    ) -> Self {
        let beta = 1.0 - alpha_cumprod / alpha_cumprod_prev;
        let variance = match variance_type {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog => {
                (1.0 - alpha_cumprod_prev) / (1.0 - alpha_cumprod) * beta
            }
            VarianceType::FixedLarge => beta,
        };
        Self {
            alpha_cumprod,
            alpha_cumprod_prev,
            std_dev: variance.max(0.0).sqrt(),
            prediction_type,
            limit,
        }
    }
}

/// Mean of x_prev given x_t and the predicted x_0 (eq. 7):
/// `sqrt(abar_prev) beta / (1 - abar_t) x_0 + sqrt(alpha) (1 - abar_prev) / (1 - abar_t) x_t`.
///
/// # Shapes
/// x_t, model_output: `[B, C, H, W]`; returns `[B, C, H, W]`.
pub fn ddpm_mean(x_t: Tensor<4>, model_output: Tensor<4>, step: &DdpmStep) -> Tensor<4> {
    let rates = Rates::of(&[step.alpha_cumprod], &x_t.device());
    let x_0 = step.limit.apply(step.prediction_type.x0(x_t.clone(), model_output, &rates));
    let alpha = step.alpha_cumprod / step.alpha_cumprod_prev;
    let of_x_0 = step.alpha_cumprod_prev.sqrt() * (1.0 - alpha) / (1.0 - step.alpha_cumprod);
    let of_x_t = alpha.sqrt() * (1.0 - step.alpha_cumprod_prev) / (1.0 - step.alpha_cumprod);
    x_0 * of_x_0 + x_t * of_x_t
}

/// One step (Ho et al. 2020, algorithm 2): the mean plus `std_dev` times the noise, which is called
/// only where `std_dev > 0`.
pub fn ddpm_step(
    x_t: Tensor<4>,
    model_output: Tensor<4>,
    step: &DdpmStep,
    noise: impl FnOnce() -> Tensor<4>,
) -> Tensor<4> {
    let mean = ddpm_mean(x_t, model_output, step);
    if step.std_dev > 0.0 { mean + noise() * step.std_dev } else { mean }
}

/// DDPM over a whole schedule: each step leads to the next visited timestep, the last to x_0.
#[derive(Debug, Clone)]
pub struct Ddpm {
    timesteps: Vec<f64>,
    steps: Vec<DdpmStep>,
}

impl Ddpm {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// Those of [`sampling_timesteps`], of the schedule, of [`X0Limit::new`], and
    /// [`SampleError::NoSignalForEps`].
    pub fn new(scheduler: &SchedulerConfig, steps: usize) -> Result<Self, SampleError> {
        let scheduler = &scheduler.as_class(SchedulerClass::Ddpm);
        let schedule = scheduler.noise_schedule()?;
        let timesteps = sampling_timesteps(scheduler, steps)?;
        enough_signal(&schedule, &timesteps, scheduler.prediction_type)?;
        let limit = X0Limit::new(scheduler)?;
        let step = |(index, &t): (usize, &usize)| {
            let prev = match timesteps.get(index + 1) {
                Some(&prev) => schedule.alpha_cumprod(prev)?,
                None => 1.0,
            };
            let mut step = DdpmStep::new(
                schedule.alpha_cumprod(t)?,
                prev,
                scheduler.variance_type,
                scheduler.prediction_type,
                limit,
            );
            // As in diffusers, t = 0 takes no noise; a last step at t > 0 does with fixed_large.
            if t == 0 {
                step.std_dev = 0.0;
            }
            Ok(step)
        };
        let steps = timesteps.iter().enumerate().map(step).collect::<Result<_, SampleError>>()?;
        Ok(Self { timesteps: timesteps.into_iter().map(|t| t as f64).collect(), steps })
    }

    /// The numbers of each step, in the order of the timesteps.
    pub fn steps(&self) -> &[DdpmStep] {
        &self.steps
    }
}

impl SamplingMethod for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        x_t: Tensor<4>,
        model_output: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        ddpm_step(x_t, model_output, &self.steps[index], noise)
    }
}
