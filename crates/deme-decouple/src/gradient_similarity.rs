//! Do timesteps agree on where the weights should go? (Ma et al. 2025, their motivation.)
//!
//! The cosine similarity of the loss gradients of every two parts of `[0, T)`: near 1 where two denoising
//! tasks pull the same way, around or below 0 where they conflict.

use burn::tensor::{Tensor, TensorData};
use deme_diffusion::{
    NoisePredictor, NoiseSchedule, PredictionType, TimestepError, TimestepRange, standard_normal,
};
use deme_nn::{Gradients, with_gradients};
use serde::{Deserialize, Serialize};

use crate::diffusion_loss::diffusion_loss;
use crate::finetune_config::ImpossibleValue;
use crate::loss_probe::stratified_timesteps;
use crate::training_images::{DataError, TrainingImages, check_images};

/// How gradients are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientSimilarityConfig {
    /// Equal parts of `[0, T)`.
    pub bins: usize,
    /// Backward passes per part.
    pub batches: usize,
    /// Images per backward pass.
    pub batch_size: usize,
    /// Seed of noise and timesteps.
    pub seed: u64,
}

impl Default for GradientSimilarityConfig {
    fn default() -> Self {
        Self { bins: 10, batches: 4, batch_size: 16, seed: 0 }
    }
}

/// Why there are no gradients to compare.
#[derive(Debug, thiserror::Error)]
pub enum GradientSimilarityError {
    /// An impossible setting.
    #[error(transparent)]
    Config(#[from] ImpossibleValue),
    /// More parts than timesteps.
    #[error(transparent)]
    Bins(#[from] TimestepError),
    /// The pictures do not fit the model.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A gradient is zero or not finite, so it has no direction.
    #[error("the gradient over timesteps {range} has norm {norm}: it points nowhere")]
    NoDirection {
        /// The part of `[0, T)`.
        range: TimestepRange,
        /// The norm.
        norm: f64,
    },
}

/// Entry `[i][j]` is the cosine of the mean gradients of parts i and j of `[0, T)`; symmetric, 1 on the
/// diagonal. Every part sees the same pictures and the same noise.
///
/// # Errors
/// [`GradientSimilarityError`].
pub fn gradient_cosines<N: NoisePredictor>(
    config: &GradientSimilarityConfig,
    model: &N,
    schedule: &NoiseSchedule,
    prediction: PredictionType,
    data: &dyn TrainingImages<N::Condition>,
) -> Result<Vec<Vec<f64>>, GradientSimilarityError> {
    let &GradientSimilarityConfig { bins, batches, batch_size, .. } = config;
    for (key, count) in [("bins", bins), ("batches", batches), ("batch_size", batch_size)] {
        ImpossibleValue::unless(count > 0, key, count, "at least 1")?;
    }
    check_images(data, model)?;
    let ranges = TimestepRange::split(schedule.num_train_timesteps(), bins)?;
    let mut directions = Vec::with_capacity(bins);
    for &range in &ranges {
        let gradient = mean_gradient(config, model, schedule, prediction, data, range);
        let norm = dot(&gradient, &gradient).sqrt();
        if !(norm.is_finite() && norm > 0.0) {
            return Err(GradientSimilarityError::NoDirection { range, norm });
        }
        directions.push((gradient, norm));
    }
    let cosine = |(a, norm_a): &(Vec<f32>, f64), (b, norm_b): &(Vec<f32>, f64)| {
        dot(a, b) / (norm_a * norm_b)
    };
    Ok(directions.iter().map(|a| directions.iter().map(|b| cosine(a, b)).collect()).collect())
}

/// The mean gradient over one part, all parameters in the order of their names.
fn mean_gradient<N: NoisePredictor>(
    config: &GradientSimilarityConfig,
    model: &N,
    schedule: &NoiseSchedule,
    prediction: PredictionType,
    data: &dyn TrainingImages<N::Condition>,
    range: TimestepRange,
) -> Vec<f32> {
    let [c, h, w] = data.image_shape();
    let device = model.device();
    let batch_size = config.batch_size;
    let shape = [batch_size, c, h, w];
    let tensor = |values| Tensor::<4>::from_data(TensorData::new(values, shape), &device);
    let timesteps = stratified_timesteps(batch_size * config.batches, range.len(), config.seed);

    let mut sum: Option<Gradients> = None;
    for batch in 0..config.batches {
        let samples = batch * batch_size..(batch + 1) * batch_size;
        let t: Vec<usize> = timesteps[samples.clone()].iter().map(|t| range.low + t).collect();
        let pictures: Vec<_> = samples.map(|j| Some(j % data.len())).collect();
        let condition = data.condition(&pictures, &device);
        let x_0 = pictures.iter().flatten().flat_map(|&j| data.image_signed(j)).collect();
        let x_0 = tensor(x_0);
        let eps = tensor(standard_normal(config.seed, batch as u64 + 1, shape.iter().product()));
        let inside = "timesteps are drawn inside the schedule";
        let x_t = schedule.add_noise(x_0.clone(), eps.clone(), &t).expect(inside);
        let target = prediction.target(x_0, eps, &schedule.rates(&t, &device).expect(inside));
        let live = with_gradients(model);
        let loss = diffusion_loss(live.output(x_t, &t, condition), target, None);
        let gradients = Gradients::of(&loss, &live);
        sum = Some(match sum {
            None => gradients,
            Some(sum) => sum.plus(gradients),
        });
    }
    // The mean is the sum over a count, and the count does not turn the direction.
    let sum = sum.expect("at least one batch").to_state_dict();
    let values = sum.iter().map(|(_, tensor)| tensor.to_f32().expect("gradients are f32"));
    values.flatten().collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::test_models::{Pictures, schedule, tiny_unet};
    use burn::tensor::Device;
    use deme_diffusion::UNet2DModel;
    use deme_nn::map_parameters;

    const CONFIG: GradientSimilarityConfig =
        GradientSimilarityConfig { bins: 4, batches: 2, batch_size: 4, seed: 1 };

    fn cosines(
        config: GradientSimilarityConfig,
        model: &UNet2DModel,
        data: &Pictures,
    ) -> Result<Vec<Vec<f64>>, GradientSimilarityError> {
        gradient_cosines(&config, model, &schedule(), PredictionType::Epsilon, data)
    }

    #[test]
    fn cosines_are_symmetric_with_a_diagonal_of_ones() {
        let model = tiny_unet(1, &Device::flex());
        let cosines = cosines(CONFIG, &model, &Pictures::new(5, 8)).unwrap();
        assert_eq!(cosines.len(), 4);
        for (i, row) in cosines.iter().enumerate() {
            assert!((row[i] - 1.0).abs() < 1e-9);
            for (j, cosine) in row.iter().enumerate() {
                assert!((cosine - cosines[j][i]).abs() < 1e-12);
                assert!(cosine.abs() <= 1.0 + 1e-9);
            }
        }
        assert!(cosines[0][3] < cosines[2][3], "neighbours agree more: {cosines:?}");
    }

    #[test]
    fn impossible_requests_are_errors() {
        let model = tiny_unet(1, &Device::flex());
        let data = Pictures::new(5, 8);
        let error = |config| cosines(config, &model, &data).unwrap_err();
        let zero = GradientSimilarityConfig { batches: 0, ..CONFIG };
        assert!(matches!(error(zero), GradientSimilarityError::Config(_)));
        let many = GradientSimilarityConfig { bins: 1001, ..CONFIG };
        assert!(matches!(error(many), GradientSimilarityError::Bins(_)));
        let none = cosines(CONFIG, &model, &Pictures::new(0, 8)).unwrap_err();
        assert!(matches!(none, GradientSimilarityError::Data(DataError::Empty)));
        let broken = map_parameters(model, &mut |_, tensor| tensor * f32::NAN);
        let nowhere = cosines(CONFIG, &broken, &data).unwrap_err();
        assert!(matches!(nowhere, GradientSimilarityError::NoDirection { .. }));
    }
}
