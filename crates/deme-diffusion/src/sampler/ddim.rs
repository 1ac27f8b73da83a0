//! Denoising diffusion implicit models (Song, Meng and Ermon 2021, arXiv 2010.02502).

use super::{SampleError, SamplingMethod, X0Limit, enough_signal, sampling_timesteps};
use crate::noise_schedule::Rates;
use crate::prediction::PredictionType;
use crate::scheduler_config::{SchedulerClass, SchedulerConfig};
use burn::tensor::Tensor;

/// The numbers of one DDIM step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimStep {
    /// abar at the step's timestep.
    pub alpha_cumprod: f64,
    /// abar where the step leads.
    pub alpha_cumprod_prev: f64,
    /// Deviation of the step's noise, eq. 16 times eta.
    pub std_dev: f64,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
    /// What is done to the predicted x_0.
    pub limit: X0Limit,
}

impl DdimStep {
    /// A step between two values of abar with eta in [0, 1].
    pub fn new(
        alpha_cumprod: f64,
        alpha_cumprod_prev: f64,
        eta: f64,
        prediction_type: PredictionType,
        limit: X0Limit,
    ) -> Self {
        let variance = (1.0 - alpha_cumprod_prev) / (1.0 - alpha_cumprod)
            * (1.0 - alpha_cumprod / alpha_cumprod_prev);
        Self {
            alpha_cumprod,
            alpha_cumprod_prev,
            std_dev: eta * variance.max(0.0).sqrt(),
            prediction_type,
            limit,
        }
    }
}

/// One step (eq. 12): `x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - sigma^2) eps + sigma z`.
///
/// x_0 is the limited prediction; eps is the model's own, not the one the limited x_0 would give.
/// `noise` gives z and is called only where sigma > 0.
///
/// # Shapes
/// x_t, model_output, noise: `[B, C, H, W]`; returns `[B, C, H, W]`.
pub fn ddim_step(
    x_t: Tensor<4>,
    model_output: Tensor<4>,
    step: &DdimStep,
    noise: impl FnOnce() -> Tensor<4>,
) -> Tensor<4> {
    let rates = Rates::of(&[step.alpha_cumprod], &x_t.device());
    let kind = step.prediction_type;
    let eps = kind.eps(x_t.clone(), model_output.clone(), &rates);
    let x_0 = step.limit.apply(kind.x0(x_t, model_output, &rates));
    let sigma = step.std_dev;
    // With eta <= 1 the radicand is only ever negative by rounding.
    let direction = (1.0 - step.alpha_cumprod_prev - sigma * sigma).max(0.0).sqrt();
    let x_prev = x_0 * step.alpha_cumprod_prev.sqrt() + eps * direction;
    if sigma > 0.0 { x_prev + noise() * sigma } else { x_prev }
}

/// DDIM over a whole schedule.
///
/// Each step leads from t to `t - T div steps` whatever the spacing, as in diffusers; below zero
/// abar is 1, or `abar_0` where `set_alpha_to_one` is off.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<f64>,
    steps: Vec<DdimStep>,
}

impl Ddim {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// [`SampleError::EtaOutOfRange`] unless `0 <= eta <= 1`; those of [`sampling_timesteps`], of the
    /// schedule, of [`X0Limit::new`], and [`SampleError::NoSignalForEps`].
    pub fn new(scheduler: &SchedulerConfig, steps: usize, eta: f64) -> Result<Self, SampleError> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(SampleError::EtaOutOfRange { eta });
        }
        let scheduler = &scheduler.as_class(SchedulerClass::Ddim);
        let schedule = scheduler.noise_schedule()?;
        let timesteps = sampling_timesteps(scheduler, steps)?;
        enough_signal(&schedule, &timesteps, scheduler.prediction_type)?;
        let limit = X0Limit::new(scheduler)?;
        let stride = scheduler.num_train_timesteps / steps;
        let behind_the_last =
            if scheduler.ends_without_noise() { 1.0 } else { schedule.alphas_cumprod()[0] };
        let step = |&t: &usize| {
            let prev = match t.checked_sub(stride) {
                Some(prev) => schedule.alpha_cumprod(prev)?,
                None => behind_the_last,
            };
            let abar = schedule.alpha_cumprod(t)?;
            Ok(DdimStep::new(abar, prev, eta, scheduler.prediction_type, limit))
        };
        let steps = timesteps.iter().map(step).collect::<Result<_, SampleError>>()?;
        Ok(Self { timesteps: timesteps.into_iter().map(|t| t as f64).collect(), steps })
    }
}

impl SamplingMethod for Ddim {
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
        ddim_step(x_t, model_output, &self.steps[index], noise)
    }
}
