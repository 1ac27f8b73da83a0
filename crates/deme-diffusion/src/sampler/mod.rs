//! From noise to pictures: the sampling methods and the loop around them.
//!
//! A method is a pure function on tensors ([`ddim_step`], [`ddpm_step`]); [`SamplingMethod`] holds its
//! numbers for a whole schedule; [`sample`] runs batches of images.
//! Not here: text guidance, the network.

mod ddim;
mod ddpm;
mod spacing;

pub use ddim::{Ddim, DdimStep, ddim_step};
pub use ddpm::{Ddpm, DdpmStep, ddpm_mean, ddpm_step};
pub use spacing::sampling_timesteps;

use crate::denoiser::Denoiser;
use crate::noise::standard_normal;
use crate::noise_schedule::ScheduleError;
use crate::scheduler_config::{SchedulerConfig, TimestepSpacing};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Which sampling method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerKind {
    /// DDIM (Song et al. 2021); deterministic for eta 0.
    #[default]
    Ddim,
    /// DDPM (Ho et al. 2020).
    Ddpm,
}

/// How pictures are sampled. Defaults: DDIM, 50 steps, eta 0, the model's own spacing.
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
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { kind: SamplerKind::Ddim, steps: 50, eta: 0.0, timestep_spacing: None }
    }
}

impl SamplerConfig {
    /// Prepares the method for one batch.
    ///
    /// Nothing is sampled yet: call this early to have impossible settings refused before work.
    ///
    /// # Errors
    /// [`SampleError::NoSteps`], [`SampleError::MoreStepsThanTimesteps`],
    /// [`SampleError::OffsetBeyondSchedule`], [`SampleError::EtaOutOfRange`],
    /// [`SampleError::EtaWithoutDdim`], [`SampleError::ClipRange`], [`SampleError::Schedule`].
    pub fn method(
        &self,
        scheduler: &SchedulerConfig,
    ) -> Result<Box<dyn SamplingMethod>, SampleError> {
        let scheduler = SchedulerConfig {
            timestep_spacing: self.timestep_spacing.unwrap_or(scheduler.timestep_spacing),
            ..scheduler.clone()
        };
        if self.kind != SamplerKind::Ddim && self.eta != 0.0 {
            return Err(SampleError::EtaWithoutDdim { eta: self.eta });
        }
        Ok(match self.kind {
            SamplerKind::Ddim => Box::new(Ddim::new(&scheduler, self.steps, self.eta)?),
            SamplerKind::Ddpm => Box::new(Ddpm::new(&scheduler, self.steps)?),
        })
    }
}

/// A sampling method prepared for one schedule; it may remember earlier steps of its batch.
pub trait SamplingMethod {
    /// The timestep at which the model is asked, step by step.
    fn timesteps(&self) -> &[usize];

    /// From x_t and the model's output at `timesteps()[index]` to the next x. `noise` gives
    /// standard normal values and is called only where the step adds noise.
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

/// How far [`sample`] has come; reported after each step of each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleProgress {
    /// Images that are finished.
    pub images_done: usize,
    /// Images asked for.
    pub images_total: usize,
    /// Steps the current batch has made, from 1.
    pub step: usize,
    /// Steps of each batch.
    pub steps: usize,
}

/// Samples one picture per seed, batch after batch. Picture i depends on `seeds[i]` alone.
///
/// # Shapes
/// image_shape: `[C, H, W]`; returns per seed C * H * W values, clamped to [-1, 1].
///
/// # Errors
/// Impossible settings are refused before the first step: those of [`SamplerConfig::method`],
/// [`SampleError::EmptyBatch`], [`SampleError::EmptyImage`]. During sampling:
/// [`SampleError::OutputShape`], and [`SampleError::NotFinite`] when the model gives NaN or infinity.
#[expect(clippy::too_many_arguments, reason = "a model, a way and a place, each its own idea")]
pub fn sample(
    denoiser: &dyn Denoiser,
    scheduler: &SchedulerConfig,
    config: &SamplerConfig,
    image_shape: [usize; 3],
    seeds: &[u64],
    batch_size: usize,
    device: &Device,
    observer: &mut dyn FnMut(SampleProgress),
) -> Result<Vec<Vec<f32>>, SampleError> {
    if batch_size == 0 {
        return Err(SampleError::EmptyBatch);
    }
    if image_shape.contains(&0) {
        return Err(SampleError::EmptyImage { image_shape });
    }
    config.method(scheduler)?;
    let mut images = Vec::with_capacity(seeds.len());
    for seeds_of_batch in seeds.chunks(batch_size) {
        let done = images.len();
        let mut report = |step: usize, steps: usize| {
            let finished = if step == steps { seeds_of_batch.len() } else { 0 };
            observer(SampleProgress {
                images_done: done + finished,
                images_total: seeds.len(),
                step,
                steps,
            });
        };
        let mut method = config.method(scheduler)?;
        let batch = sample_batch(
            denoiser,
            method.as_mut(),
            image_shape,
            seeds_of_batch,
            device,
            &mut report,
        )?;
        images.extend(batch);
    }
    Ok(images)
}

/// All steps of one batch.
fn sample_batch(
    denoiser: &dyn Denoiser,
    method: &mut dyn SamplingMethod,
    image_shape: [usize; 3],
    seeds: &[u64],
    device: &Device,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<f32>>, SampleError> {
    let timesteps = method.timesteps().to_vec();
    let steps = timesteps.len();
    let place = |step: usize| Place { seeds, step, timestep: timesteps[step] };
    let mut x_t = batch_noise(seeds, 0, image_shape, device);
    for (index, &t) in timesteps.iter().enumerate() {
        let model_output = denoiser.predict(x_t.clone(), &vec![t; seeds.len()]);
        if model_output.dims() != x_t.dims() {
            return Err(SampleError::OutputShape {
                expected: x_t.dims(),
                found: model_output.dims(),
            });
        }
        // Clamping would hide an infinity, so the model's own output is looked at.
        finite_images(model_output.clone(), "model output", place(index))?;
        let mut noise = || batch_noise(seeds, index as u64 + 1, image_shape, device);
        x_t = method.step(index, x_t, model_output, &mut noise);
        report(index + 1, steps);
    }
    let images = finite_images(x_t, "image", place(steps - 1))?;
    Ok(images
        .into_iter()
        .map(|image| image.into_iter().map(|value| value.clamp(-1.0, 1.0)).collect())
        .collect())
}

/// One stream of noise of each seed, `[B, C, H, W]`.
fn batch_noise(seeds: &[u64], stream: u64, image_shape: [usize; 3], device: &Device) -> Tensor<4> {
    let [c, h, w] = image_shape;
    let values: Vec<f32> =
        seeds.iter().flat_map(|&seed| standard_normal(seed, stream, c * h * w)).collect();
    Tensor::from_data(TensorData::new(values, [seeds.len(), c, h, w]), device)
}

/// Where in a run a tensor was looked at.
struct Place<'a> {
    seeds: &'a [u64],
    step: usize,
    timestep: usize,
}

/// The values of each image, all of which must be finite.
fn finite_images(
    batch: Tensor<4>,
    tensor: &'static str,
    place: Place,
) -> Result<Vec<Vec<f32>>, SampleError> {
    let [_, c, h, w] = batch.dims();
    let values = batch.into_data().try_into_vec::<f32>().expect("images are f32 tensors");
    let images: Vec<Vec<f32>> = values.chunks(c * h * w).map(<[f32]>::to_vec).collect();
    match images.iter().position(|image| !image.iter().all(|value| value.is_finite())) {
        None => Ok(images),
        Some(index) => Err(SampleError::NotFinite {
            tensor,
            seed: place.seeds[index],
            step: place.step,
            timestep: place.timestep,
        }),
    }
}

/// The clamping range of the predicted x_0, if it is clamped.
fn clamp_range(scheduler: &SchedulerConfig) -> Result<Option<f64>, SampleError> {
    let range = scheduler.clip_sample_range;
    if !scheduler.clip_sample {
        return Ok(None);
    }
    if !(range > 0.0 && range.is_finite()) {
        return Err(SampleError::ClipRange { range });
    }
    Ok(Some(range))
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
        timestep: usize,
    },
}

#[cfg(test)]
mod tests;
