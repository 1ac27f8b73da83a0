//! From noise to pictures: the sampling methods and the loop around them.
//!
//! A method is a pure function on tensors ([`ddim_step`], [`dpm_solver_step`], ...); a [`SamplingMethod`] holds
//! its numbers for a whole schedule and, where it needs them, the last outputs of its batch; [`sample`] and
//! [`sample_latents`] run batches of images. All numbers are computed in f64 and are those of diffusers' classes.
//!
//! | sampler | diffusers' class | source | calls of the model per image, for n steps | noise in the steps |
//! |---|---|---|---|---|
//! | `ddim` | `DDIMScheduler` | Song et al. 2021, eq. 12 | n | eta > 0 |
//! | `ddpm` | `DDPMScheduler` | Ho et al. 2020, eq. 7 | n | yes |
//! | `pndm` | `PNDMScheduler` | Liu et al. 2022, eq. 11 to 13 | n + 9; n + 1 with `skip_prk_steps` (n if n = 1) | no |
//! | `dpm-solver++` | `DPMSolverMultistepScheduler` | Lu et al. 2022, algorithm 2 | n | `sde-dpmsolver++` |
//! | `euler` | `EulerDiscreteScheduler` | Karras et al. 2022, algorithm 1 | n | no |
//! | `euler-ancestral` | `EulerAncestralDiscreteScheduler` | k-diffusion | n | yes |
//!
//! Under guidance each call is of two images instead of one ([`Guided`](crate::Guided)). Trailing spacing of
//! a clipped DPM-Solver++ (`lambda_min_clipped`) makes less steps.
//!
//! Not here: text guidance, the network.

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod pndm;
mod sampling;
mod sigmas;
mod spacing;
mod x0_limit;

pub use ddim::{Ddim, DdimStep, ddim_step};
pub use ddpm::{Ddpm, DdpmStep, ddpm_mean, ddpm_step};
pub use dpm_solver::{
    DpmSolver, DpmSolverConfig, DpmSolverStep, SolverAlgorithm, SolverType, dpm_solver_step,
};
pub use euler::{Euler, EulerStep, euler_step};
pub use euler_ancestral::{EulerAncestral, EulerAncestralStep, euler_ancestral_step};
pub use pndm::{Pndm, PndmTransfer, pndm_transfer};
pub use sampling::{SampleProgress, sample, sample_latents};
pub use spacing::{sampling_timesteps, solver_timesteps, unrounded_timesteps};
pub use x0_limit::{DynamicThresholding, X0Limit};

use crate::noise_schedule::{NoiseSchedule, ScheduleError};
use crate::prediction::PredictionType;
use crate::scheduler_config::{SchedulerClass, SchedulerConfig, TimestepSpacing};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which sampling method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// DDIM (Song et al. 2021); deterministic for eta 0.
    #[default]
    Ddim,
    /// DDPM (Ho et al. 2020).
    Ddpm,
    /// PNDM (Liu et al. 2022); PLMS with the scheduler's `skip_prk_steps`.
    Pndm,
    /// DPM-Solver++ (Lu et al. 2022); of second order unless told otherwise.
    #[serde(rename = "dpm-solver++")]
    DpmSolver,
    /// Euler's method over sigma (Karras et al. 2022).
    Euler,
    /// Euler's method with noise added in each step.
    EulerAncestral,
}

impl SamplerKind {
    /// All of them, in the order of the module's table.
    pub const ALL: [Self; 6] =
        [Self::Ddim, Self::Ddpm, Self::Pndm, Self::DpmSolver, Self::Euler, Self::EulerAncestral];

    /// The name in recipes, which is also the field's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Pndm => "pndm",
            Self::DpmSolver => "dpm-solver++",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
        }
    }

    /// diffusers' class of the sampler.
    pub fn class(self) -> SchedulerClass {
        match self {
            Self::Ddim => SchedulerClass::Ddim,
            Self::Ddpm => SchedulerClass::Ddpm,
            Self::Pndm => SchedulerClass::Pndm,
            Self::DpmSolver => SchedulerClass::DpmSolver,
            Self::Euler => SchedulerClass::Euler,
            Self::EulerAncestral => SchedulerClass::EulerAncestral,
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How pictures are sampled. Defaults: DDIM, 50 steps, eta 0, everything else as the model's scheduler says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// The method.
    pub kind: SamplerKind,
    /// Number of steps, in 1..=T.
    pub steps: usize,
    /// DDIM's eta in [0, 1]: 0 adds no noise, 1 as much as DDPM. Must be 0 for other methods.
    pub eta: f64,
    /// Which timesteps are visited; absent, what the model's scheduler says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// DPM-Solver++ and Euler: whether noise levels are spaced as Karras et al. 2022 space them; absent, what
    /// the model's scheduler says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// DPM-Solver++: which equation is solved; absent, what the model's scheduler says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm_type: Option<SolverAlgorithm>,
    /// DPM-Solver++: the solver's order; absent, what the model's scheduler says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_order: Option<usize>,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            kind: SamplerKind::Ddim,
            steps: 50,
            eta: 0.0,
            timestep_spacing: None,
            use_karras_sigmas: None,
            algorithm_type: None,
            solver_order: None,
        }
    }
}

impl SamplerConfig {
    /// Prepares the method for one batch.
    ///
    /// The scheduler may be of any class: the method takes the schedule and what else it knows from it, and
    /// the defaults of its own class for what the scheduler leaves open, as diffusers' `from_config` does.
    /// Nothing is sampled yet: call this early to have impossible settings refused before work.
    ///
    /// # Errors
    /// [`SampleError`]: all of its variants but those of a batch.
    pub fn method(
        &self,
        scheduler: &SchedulerConfig,
    ) -> Result<Box<dyn SamplingMethod>, SampleError> {
        self.check_meaning()?;
        let mut scheduler = SchedulerConfig {
            timestep_spacing: self.timestep_spacing.or(scheduler.timestep_spacing),
            use_karras_sigmas: self.use_karras_sigmas.unwrap_or(scheduler.use_karras_sigmas),
            ..scheduler.as_class(self.kind.class())
        };
        let solver = &mut scheduler.dpm_solver;
        solver.algorithm_type = self.algorithm_type.unwrap_or(solver.algorithm_type);
        solver.solver_order = self.solver_order.unwrap_or(solver.solver_order);
        Ok(match self.kind {
            SamplerKind::Ddim => Box::new(Ddim::new(&scheduler, self.steps, self.eta)?),
            SamplerKind::Ddpm => Box::new(Ddpm::new(&scheduler, self.steps)?),
            SamplerKind::Pndm => Box::new(Pndm::new(&scheduler, self.steps)?),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(&scheduler, self.steps)?),
            SamplerKind::Euler => Box::new(Euler::new(&scheduler, self.steps)?),
            SamplerKind::EulerAncestral => Box::new(EulerAncestral::new(&scheduler, self.steps)?),
        })
    }

    /// How often the model is called per image; what a progress bar counts to. See the module's table.
    ///
    /// # Errors
    /// Those of [`Self::method`].
    pub fn model_calls(&self, scheduler: &SchedulerConfig) -> Result<usize, SampleError> {
        Ok(self.method(scheduler)?.timesteps().len())
    }

    /// That no setting was given which the method does not have.
    fn check_meaning(&self) -> Result<(), SampleError> {
        use SamplerKind::{Ddim, DpmSolver, Euler};
        let sampler = self.kind;
        if sampler != Ddim && self.eta != 0.0 {
            return Err(SampleError::EtaWithoutDdim { eta: self.eta });
        }
        let given: [(&'static str, bool, &'static [SamplerKind]); 3] = [
            ("use_karras_sigmas", self.use_karras_sigmas.is_some(), &[DpmSolver, Euler]),
            ("algorithm_type", self.algorithm_type.is_some(), &[DpmSolver]),
            ("solver_order", self.solver_order.is_some(), &[DpmSolver]),
        ];
        match given.into_iter().find(|(_, given, takers)| *given && !takers.contains(&sampler)) {
            None => Ok(()),
            Some((setting, _, takers)) => {
                Err(SampleError::SettingWithoutMeaning { setting, sampler, takers })
            }
        }
    }
}

/// A sampling method prepared for one schedule; it may remember earlier steps of its batch.
pub trait SamplingMethod {
    /// The time at which the model is asked, step by step, in `[0, T - 1]`. Only Euler's methods ask between
    /// two timesteps.
    fn timesteps(&self) -> &[f64];

    /// Deviation of the noise the first step starts from.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// What the model is shown at step `index` instead of x. `[B, C, H, W]`, as is the result.
    fn scale_model_input(&self, _index: usize, x: Tensor<4>) -> Tensor<4> {
        x
    }

    /// From x and the model's output at `timesteps()[index]` to the next x; each index once, in order. `noise`
    /// gives standard normal values and is called only where the step adds noise.
    ///
    /// # Shapes
    /// x_t, model_output, noise: `[B, C, H, W]`; returns `[B, C, H, W]`.
    fn step(
        &mut self,
        index: usize,
        x_t: Tensor<4>,
        model_output: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4>;
}

/// That eps can be had where it is divided by the signal.
fn enough_signal(
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    prediction_type: PredictionType,
) -> Result<(), SampleError> {
    let no_signal = |&&t: &&usize| schedule.alphas_cumprod().get(t) == Some(&0.0);
    match timesteps.iter().find(no_signal) {
        Some(&timestep) if prediction_type == PredictionType::Epsilon => {
            Err(SampleError::NoSignalForEps { timestep })
        }
        _ => Ok(()),
    }
}

/// Why nothing can be sampled.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Zero steps.
    #[error("the sampler has 0 steps; use at least 1 (50 is usual for DDIM)")]
    NoSteps,
    /// More steps than the schedule has timesteps.
    #[error(
        "the sampler has {steps} steps but the model was trained with {num_train_timesteps} timesteps; \
         use at most {num_train_timesteps} steps"
    )]
    MoreStepsThanTimesteps {
        /// Steps asked for.
        steps: usize,
        /// T.
        num_train_timesteps: usize,
    },
    /// `steps_offset` leads out of the schedule.
    #[error(
        "steps_offset = {steps_offset} with {steps} steps asks the model at timestep {timestep}, but it \
         was trained with {num_train_timesteps}; use fewer steps or trailing spacing"
    )]
    OffsetBeyondSchedule {
        /// The scheduler's offset.
        steps_offset: usize,
        /// Steps asked for.
        steps: usize,
        /// The first timestep.
        timestep: usize,
        /// T.
        num_train_timesteps: usize,
    },
    /// Eta outside [0, 1].
    #[error("eta = {eta} is impossible; DDIM's eta lies in [0, 1] (0 is deterministic)")]
    EtaOutOfRange {
        /// The value.
        eta: f64,
    },
    /// Eta for a method that has none.
    #[error("eta = {eta} has no meaning for this sampler; only ddim has an eta, leave it at 0")]
    EtaWithoutDdim {
        /// The value.
        eta: f64,
    },
    /// A setting the sampler does not have.
    #[error(
        "{setting} has no meaning for {sampler}; leave it out or choose {}",
        takers.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ")
    )]
    SettingWithoutMeaning {
        /// The setting.
        setting: &'static str,
        /// The sampler.
        sampler: SamplerKind,
        /// Those that have it.
        takers: &'static [SamplerKind],
    },
    /// Too few steps to begin with the Runge-Kutta method.
    #[error(
        "pndm with {steps} steps has none left after the Runge-Kutta method; use at least {least} \
         steps, or set skip_prk_steps in the scheduler"
    )]
    TooFewSteps {
        /// Steps asked for.
        steps: usize,
        /// The fewest that do.
        least: usize,
    },
    /// An order the solver does not have.
    #[error(
        "dpm-solver++ has no solver_order {order}; use 1, 2 or 3, and with sde-dpmsolver++ 1 or 2 \
         (2 is usual)"
    )]
    SolverOrder {
        /// The order asked for.
        order: usize,
    },
    /// Two steps at one noise level.
    #[error(
        "with {steps} steps, step {step} is as noisy as the one before it: there are too few timesteps \
         for so many steps; use fewer"
    )]
    NoiseNotFalling {
        /// Steps asked for.
        steps: usize,
        /// The step, from 0.
        step: usize,
    },
    /// What the model predicts is nothing the sampler can use.
    #[error(
        "{sampler} cannot sample a model that predicts {}; use ddim, dpm-solver++ or euler",
        prediction_name(*prediction_type)
    )]
    UnsupportedPrediction {
        /// The sampler.
        sampler: SamplerKind,
        /// What the model predicts.
        prediction_type: PredictionType,
    },
    /// A schedule without signal at its end, which the sampler does not know.
    #[error(
        "{sampler} does not know rescale_betas_zero_snr, with which the model was trained; use another \
         sampler"
    )]
    NoZeroSnr {
        /// The sampler.
        sampler: SamplerKind,
    },
    /// An x_0 from eps where there is no signal.
    #[error(
        "at timestep {timestep} the schedule holds no signal (rescale_betas_zero_snr), so a model that \
         predicts epsilon says nothing there; the scheduler's prediction_type is probably v_prediction"
    )]
    NoSignalForEps {
        /// The timestep.
        timestep: usize,
    },
    /// Thresholds no image can have.
    #[error(
        "dynamic_thresholding_ratio = {ratio} and sample_max_value = {max} give no threshold; the ratio \
         lies in [0, 1] (usually 0.995), the largest value is above 0"
    )]
    Thresholding {
        /// The quantile.
        ratio: f64,
        /// The largest threshold.
        max: f64,
    },
    /// The range x_0 is clamped to is empty.
    #[error("clip_sample_range = {range} leaves no image; it must be above 0 (usually 1)")]
    ClipRange {
        /// The value.
        range: f64,
    },
    /// Batches of zero images.
    #[error("the batch size is 0; use at least 1")]
    EmptyBatch,
    /// Images without pixels.
    #[error("images of shape {image_shape:?} (channels, height, width) have no pixels")]
    EmptyImage {
        /// Channels, height, width.
        image_shape: [usize; 3],
    },
    /// The schedule cannot be made.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The model's output has another shape than its input.
    #[error(
        "the model turns images of shape {expected:?} into {found:?}; a sampler needs the same shape \
         (models that also predict a variance are not supported)"
    )]
    OutputShape {
        /// Shape of the noisy images.
        expected: [usize; 4],
        /// Shape of the output.
        found: [usize; 4],
    },
    /// NaN or infinity.
    #[error(
        "the {tensor} of seed {seed} is not finite at sampling step {step} (timestep {timestep}); \
         the model's weights are probably broken: inspect them"
    )]
    NotFinite {
        /// Which tensor.
        tensor: &'static str,
        /// Seed of the image.
        seed: u64,
        /// Step, from 0.
        step: usize,
        /// Timestep of that step.
        timestep: f64,
    },
}

/// The name in a scheduler's configuration.
fn prediction_name(prediction_type: PredictionType) -> &'static str {
    match prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::Sample => "sample",
        PredictionType::VPrediction => "v_prediction",
    }
}

#[cfg(test)]
mod tests;
