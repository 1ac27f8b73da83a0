//! The diffusion loss of models on held-out pictures: a cheap, deterministic objective.
//!
//! Pictures, noise and timesteps are drawn once; every model then sees the same ones, so that differences
//! between models are not drowned by the draws. Timesteps are stratified over `[0, T)`. This is the plain
//! loss on the model's own target, without consistency or weighting.

use burn::tensor::{Tensor, TensorData};
use deme_diffusion::image_shards::{image_shards, shard};
use deme_diffusion::{
    Condition, NoisePredictor, NoiseSchedule, PredictionType, TimestepRange, standard_normal,
};
use deme_nn::{Gradients, with_gradients};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::diffusion_loss::diffusion_loss;
use crate::finetune_config::ImpossibleValue;
use crate::timestep_sampler::unit;
use crate::training_images::{DataError, TrainingImages, check_images};

/// How a [`LossProbe`] samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossProbeConfig {
    /// Noisy images, one timestep each.
    pub samples: usize,
    /// Images per forward pass.
    pub batch_size: usize,
    /// Seed of noise and timesteps.
    pub seed: u64,
}

impl Default for LossProbeConfig {
    fn default() -> Self {
        Self { samples: 256, batch_size: 32, seed: 0 }
    }
}

impl LossProbeConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the key.
    pub fn validate(&self) -> Result<(), ImpossibleValue> {
        ImpossibleValue::unless(self.samples > 0, "samples", self.samples, "at least 1")?;
        ImpossibleValue::unless(self.batch_size > 0, "batch_size", self.batch_size, "at least 1")
    }
}

/// Noisy images with their timesteps and targets, ready for any number of models.
#[derive(Debug, Clone)]
pub struct LossProbe<C = ()> {
    batches: Vec<ProbeBatch<C>>,
}

#[derive(Debug, Clone)]
struct ProbeBatch<C> {
    x_t: Tensor<4>,
    target: Tensor<4>,
    t: Vec<usize>,
    condition: C,
}

/// Why there is no probe.
#[derive(Debug, thiserror::Error)]
pub enum LossProbeError {
    /// An impossible setting.
    #[error(transparent)]
    Config(#[from] ImpossibleValue),
    /// The pictures do not fit the model.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl<C: Condition> LossProbe<C> {
    /// Prepares `config.samples` noisy images for models like `model`.
    ///
    /// Sample j of M has a timestep drawn from the j-th of M equal parts of `[0, T)`, picture number j (in
    /// turn, when there are fewer pictures) and noise from stream j + 1 of the seed.
    ///
    /// # Errors
    /// [`LossProbeError`] for impossible settings, no pictures, or pictures the model does not take.
    pub fn new<N: NoisePredictor<Condition = C>>(
        config: &LossProbeConfig,
        data: &dyn TrainingImages<C>,
        model: &N,
        schedule: &NoiseSchedule,
        prediction: PredictionType,
    ) -> Result<Self, LossProbeError> {
        config.validate()?;
        check_images(data, model)?;
        let timesteps =
            stratified_timesteps(config.samples, schedule.num_train_timesteps(), config.seed);
        let [c, h, w] = data.image_shape();
        let device = model.device();
        let tensor = |values: Vec<f32>, count| {
            Tensor::<4>::from_data(TensorData::new(values, [count, c, h, w]), &device)
        };
        let samples: Vec<usize> = (0..config.samples).collect();
        let batches = samples.chunks(config.batch_size).map(|samples| {
            let t: Vec<usize> = samples.iter().map(|&j| timesteps[j]).collect();
            let image = |&j: &usize| data.image_signed(j % data.len());
            let pictures: Vec<_> = samples.iter().map(|&j| Some(j % data.len())).collect();
            let condition = data.condition(&pictures, &device);
            let noise = |&j: &usize| standard_normal(config.seed, j as u64 + 1, c * h * w);
            let x_0 = tensor(samples.iter().flat_map(image).collect(), t.len());
            let eps = tensor(samples.iter().flat_map(noise).collect(), t.len());
            let inside = "timesteps are drawn inside the schedule";
            let rates = schedule.rates(&t, &device).expect(inside);
            let x_t = schedule.add_noise(x_0.clone(), eps.clone(), &t).expect(inside);
            ProbeBatch { x_t, target: prediction.target(x_0, eps, &rates), t, condition }
        });
        Ok(Self { batches: batches.collect() })
    }

    /// Mean squared error of each sample's prediction, with its timestep; timesteps ascend. Not finite where
    /// the model's output is not.
    pub fn sample_losses<N: NoisePredictor<Condition = C>>(&self, model: &N) -> Vec<(usize, f64)> {
        self.sample_losses_of(|x_t, t, condition| model.inference(x_t, t, condition))
    }

    /// As [`Self::sample_losses`], of any function from noisy images, timesteps and condition to an output.
    fn sample_losses_of(
        &self,
        output: impl Fn(Tensor<4>, &[usize], C) -> Tensor<4>,
    ) -> Vec<(usize, f64)> {
        let mut losses = Vec::new();
        for ProbeBatch { x_t, target, t, condition } in &self.batches {
            let squares = (output(x_t.clone(), t, condition.clone()) - target.clone()).square();
            let means = squares.flatten::<2>(1, 3).mean_dim(1).into_data();
            let means = means.try_into_vec::<f32>().expect("losses are f32");
            losses.extend(t.iter().copied().zip(means.into_iter().map(f64::from)));
        }
        losses
    }

    /// The mean over all samples.
    pub fn loss<N: NoisePredictor<Condition = C>>(&self, model: &N) -> f64 {
        mean_loss(&self.sample_losses(model))
    }

    /// [`Self::loss`] and its gradient for every parameter, by one backward pass for each batch. The loss
    /// differs from [`Self::loss`] by rounding alone.
    pub fn loss_and_gradient<N: NoisePredictor<Condition = C>>(
        &self,
        model: &N,
    ) -> (f64, Gradients) {
        let samples: usize = self.batches.iter().map(|batch| batch.t.len()).sum();
        let mut sum: Option<(f64, Gradients)> = None;
        for ProbeBatch { x_t, target, t, condition } in &self.batches {
            let parts = image_shards(x_t).into_par_iter().map(|range| {
                let live = with_gradients(model);
                let condition = condition.part(&range);
                let prediction = live.output(shard(x_t, &range), &t[range.clone()], condition);
                let share = range.len() as f64 / samples as f64;
                let loss = diffusion_loss(prediction, shard(target, &range), None) * share;
                let gradients = Gradients::of(&loss, &live);
                (loss.inner().into_scalar::<f64>(), gradients)
            });
            // On the worker threads even when it is one part, as in training.
            let parts: Vec<(f64, Gradients)> = rayon::scope(|_| parts.collect());
            sum = sum
                .into_iter()
                .chain(parts)
                .reduce(|(loss, gradients), (more, part)| (loss + more, gradients.plus(part)));
        }
        sum.expect("a probe has at least one sample")
    }

    /// The mean over the samples of each range; none for a range that holds no sample.
    pub fn loss_per_range<N: NoisePredictor<Condition = C>>(
        &self,
        model: &N,
        ranges: &[TimestepRange],
    ) -> Vec<Option<f64>> {
        let losses = self.sample_losses(model);
        let in_range = |range: &TimestepRange| {
            mean(losses.iter().filter(|(t, _)| range.contains(*t)).map(|(_, loss)| *loss))
        };
        ranges.iter().map(in_range).collect()
    }
}

/// One timestep from each of `count` equal parts of `[0, num_train_timesteps)`, ascending.
pub(crate) fn stratified_timesteps(
    count: usize,
    num_train_timesteps: usize,
    seed: u64,
) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let width = num_train_timesteps as f64 / count as f64;
    (0..count)
        .map(|j| {
            let t = ((j as f64 + unit(&mut rng)) * width) as usize;
            t.min(num_train_timesteps - 1)
        })
        .collect()
}

fn mean_loss(losses: &[(usize, f64)]) -> f64 {
    mean(losses.iter().map(|(_, loss)| *loss)).expect("a probe has at least one sample")
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::test_models::{Pictures, schedule, tiny_unet};
    use burn::tensor::Device;
    use deme_nn::map_parameters;
    use proptest::prelude::*;

    fn probe(config: LossProbeConfig) -> LossProbe {
        let model = tiny_unet(1, &Device::flex());
        let data = Pictures::new(5, 8);
        LossProbe::new(&config, &data, &model, &schedule(), PredictionType::Epsilon).unwrap()
    }

    #[test]
    fn predicting_nothing_costs_the_noises_variance() {
        let probe = probe(LossProbeConfig { samples: 64, ..Default::default() });
        let loss = mean_loss(&probe.sample_losses_of(|x, _, ()| x.zeros_like()));
        // 64 * 192 squared standard normals: deviation sqrt(2 / 12288).
        assert!((loss - 1.0).abs() < 0.06, "{loss}");
    }

    #[test]
    fn the_loss_is_the_same_every_time_and_hardly_depends_on_the_batch_size() {
        let model = tiny_unet(3, &Device::flex());
        let config = LossProbeConfig { samples: 10, batch_size: 10, seed: 4 };
        let probe_of = |batch_size| probe(LossProbeConfig { batch_size, ..config });
        let loss = probe_of(10).loss(&model);
        assert_eq!(probe_of(10).loss(&model), loss);
        assert!((probe_of(3).loss(&model) - loss).abs() < 1e-5 * loss);
        assert_ne!(probe(LossProbeConfig { seed: 5, ..config }).loss(&model), loss);
        assert_ne!(probe_of(10).loss(&tiny_unet(4, &Device::flex())), loss);
    }

    #[test]
    fn the_gradient_is_the_losss_slope() {
        let model = tiny_unet(3, &Device::flex());
        let probe = probe(LossProbeConfig { samples: 20, batch_size: 17, seed: 4 });
        let (loss, gradients) = probe.loss_and_gradient(&model);
        assert!((loss - probe.loss(&model)).abs() < 1e-6 * loss, "{loss}");
        // Along the gradient itself the slope is its squared norm.
        let norm = gradients.norm();
        let along = |h: f64| {
            let moved = map_parameters(model.clone(), &mut |name, tensor| {
                tensor + gradients.get(name).unwrap().clone() * (h / norm)
            });
            probe.loss(&moved)
        };
        let slope = (along(1e-2) - along(-1e-2)) / 2e-2;
        assert!((slope - norm).abs() < 1e-2 * norm, "{slope} {norm}");
    }

    #[test]
    fn the_loss_is_the_mean_over_its_ranges() {
        let model = tiny_unet(3, &Device::flex());
        let probe = probe(LossProbeConfig { samples: 16, ..Default::default() });
        let ranges = TimestepRange::split(1000, 4).unwrap();
        let losses: Vec<f64> =
            probe.loss_per_range(&model, &ranges).into_iter().map(Option::unwrap).collect();
        assert!((losses.iter().sum::<f64>() / 4.0 - probe.loss(&model)).abs() < 1e-12);
        let empty = TimestepRange { low: 0, high: 0 };
        assert_eq!(probe.loss_per_range(&model, &[empty]), [None]);
    }

    proptest! {
        #[test]
        fn timesteps_are_stratified(count in 1usize..300, total in 1usize..1200, seed: u64) {
            let t = stratified_timesteps(count, total, seed);
            prop_assert_eq!(t.len(), count);
            for (j, t) in t.iter().enumerate() {
                let (low, high) = (j * total / count, ((j + 1) * total).div_ceil(count));
                prop_assert!((low..high).contains(t), "{} not in {}..{}", t, low, high);
            }
        }
    }

    #[test]
    fn impossible_settings_and_pictures_are_refused() {
        let model = tiny_unet(1, &Device::flex());
        let error = |config: LossProbeConfig, data: Pictures| {
            LossProbe::new(&config, &data, &model, &schedule(), PredictionType::Epsilon)
                .unwrap_err()
        };
        let config = LossProbeConfig::default();
        for impossible in
            [LossProbeConfig { samples: 0, ..config }, LossProbeConfig { batch_size: 0, ..config }]
        {
            let error = error(impossible, Pictures::new(5, 8));
            assert!(matches!(error, LossProbeError::Config(_)), "{error}");
        }
        let error = error(config, Pictures::new(0, 8));
        assert!(matches!(error, LossProbeError::Data(DataError::Empty)), "{error}");
    }
}
