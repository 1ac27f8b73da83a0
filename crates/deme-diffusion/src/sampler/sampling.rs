//! The loop around a sampling method: batches of images, each from its own seed.
//!
//! Not here: the methods themselves.

use super::{SampleError, SamplerConfig, SamplingMethod};
use crate::denoiser::Denoiser;
use crate::noise::standard_normal;
use crate::scheduler_config::SchedulerConfig;
use burn::tensor::{Device, Tensor, TensorData};
use std::ops::Range;

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
    let images = sample_latents(
        &mut |_| denoiser,
        scheduler,
        config,
        image_shape,
        seeds,
        batch_size,
        device,
        observer,
    )?;
    Ok(images
        .into_iter()
        .map(|image| image.into_iter().map(|value| value.clamp(-1.0, 1.0)).collect())
        .collect())
}

/// As [`sample`], for latents, which have no range to stay in, and with a denoiser for each batch: its argument
/// says which of the seeds the batch is of. So each image can have its own prompt
/// ([`Conditioned`](crate::Conditioned), [`Guided`](crate::Guided)), whose hidden states need be in memory for
/// one batch only.
///
/// Latent i depends on `seeds[i]` and its own prompt alone.
///
/// # Shapes
/// latent_shape: `[C, H, W]`; returns per seed C * H * W values, on the scale the model was trained on.
///
/// # Errors
/// As [`sample`].
#[expect(clippy::too_many_arguments, reason = "a model, a way and a place, each its own idea")]
pub fn sample_latents<D: Denoiser>(
    denoiser_of: &mut dyn FnMut(Range<usize>) -> D,
    scheduler: &SchedulerConfig,
    config: &SamplerConfig,
    latent_shape: [usize; 3],
    seeds: &[u64],
    batch_size: usize,
    device: &Device,
    observer: &mut dyn FnMut(SampleProgress),
) -> Result<Vec<Vec<f32>>, SampleError> {
    if batch_size == 0 {
        return Err(SampleError::EmptyBatch);
    }
    if latent_shape.contains(&0) {
        return Err(SampleError::EmptyImage { image_shape: latent_shape });
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
        // What a method remembers is of one batch.
        let mut method = config.method(scheduler)?;
        let batch = sample_batch(
            &denoiser_of(done..done + seeds_of_batch.len()),
            method.as_mut(),
            latent_shape,
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
    let mut x_t = batch_noise(seeds, 0, image_shape, device) * method.init_noise_sigma();
    for (index, &t) in timesteps.iter().enumerate() {
        let shown = method.scale_model_input(index, x_t.clone());
        let model_output = match t.fract() == 0.0 {
            true => denoiser.predict(shown, &vec![t as usize; seeds.len()]),
            false => denoiser.predict_between(shown, &vec![t; seeds.len()]),
        };
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
    finite_images(x_t, "image", place(steps - 1))
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
    timestep: f64,
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
