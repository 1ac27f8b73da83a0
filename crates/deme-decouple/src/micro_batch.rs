//! What each micro-step of a run sees: pictures, noise and timesteps, from the seed and its number alone.
//!
//! Nothing here has a state. Micro-step k takes the pictures at the absolute positions
//! `k B .. (k + 1) B` of the data order, its timesteps and flips from stream `2 k` of the seed's
//! generator, its dropped captions from the same stream behind them, and its noise from stream `2 k + 1`. An interrupted run therefore goes on with nothing but k.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::image_shards::shard;
use deme_diffusion::{Condition, standard_normal};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::timestep_sampler::{TimestepSampler, unit};
use crate::training_images::TrainingImages;

/// One forward and backward pass worth of input.
#[derive(Debug, Clone)]
pub struct MicroBatch<C = ()> {
    /// Pixels in `[-1, 1]` or scaled latents, `[B, C, H, W]`.
    pub x_0: Tensor<4>,
    /// Standard normal, `[B, C, H, W]`.
    pub eps: Tensor<4>,
    /// One timestep per image.
    pub t: Vec<usize>,
    /// What the images are predicted under.
    pub condition: C,
}

impl<C: Condition> MicroBatch<C> {
    /// The images of one range.
    pub fn part(&self, range: &Range<usize>) -> Self {
        Self {
            x_0: shard(&self.x_0, range),
            eps: shard(&self.eps, range),
            t: self.t[range.clone()].to_vec(),
            condition: self.condition.part(range),
        }
    }
}

/// The endless sequence of a run's micro-batches.
pub struct MicroBatches<'a, C = ()> {
    /// The pictures.
    pub data: &'a dyn TrainingImages<C>,
    /// The indices of so many pictures from an absolute position of the data order on.
    pub order: &'a (dyn Fn(u64, usize) -> Vec<usize> + Sync),
    /// Draws the timesteps.
    pub timesteps: TimestepSampler,
    /// Pictures per micro-batch.
    pub batch_size: usize,
    /// Mirror each picture with probability 1/2.
    pub horizontal_flip: bool,
    /// Leave a picture's caption out with this probability.
    pub caption_dropout: f64,
    /// Seed of timesteps, flips, dropped captions and noise.
    pub seed: u64,
}

impl<C> MicroBatches<'_, C> {
    /// Micro-batch number `k`, from 0.
    pub fn at(&self, k: u64, device: &Device) -> MicroBatch<C> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(2 * k);
        let t = self.timesteps.draw(self.batch_size, &mut rng);

        let [c, h, w] = self.data.image_shape();
        let mut pixels = Vec::with_capacity(self.batch_size * c * h * w);
        let pictures = (self.order)(k * self.batch_size as u64, self.batch_size);
        for &index in &pictures {
            let mut image = self.data.image_signed(index);
            if self.horizontal_flip && unit(&mut rng) < 0.5 {
                image.chunks_mut(w).for_each(<[f32]>::reverse);
            }
            pixels.extend(image);
        }
        let captioned = |index| (unit(&mut rng) >= self.caption_dropout).then_some(index);
        let captioned: Vec<Option<usize>> = pictures.into_iter().map(captioned).collect();
        let condition = self.data.condition(&captioned, device);
        let eps = standard_normal(self.seed, 2 * k + 1, pixels.len());

        let shape = [self.batch_size, c, h, w];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        MicroBatch { x_0: tensor(pixels), eps: tensor(eps), t, condition }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::test_models::{CaptionedPictures, Pictures, in_turn};
    use crate::timestep_sampler::TimestepSampling;
    use deme_diffusion::TimestepRange;

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn micro_batches(data: &Pictures, horizontal_flip: bool, seed: u64) -> MicroBatches<'_> {
        let range = TimestepRange { low: 0, high: 500 };
        let timesteps = TimestepSampler::new(TimestepSampling::default(), range, 1000);
        MicroBatches {
            data,
            order: &in_turn,
            timesteps,
            batch_size: 3,
            horizontal_flip,
            caption_dropout: 0.0,
            seed,
        }
    }

    #[test]
    fn a_micro_batch_depends_on_seed_and_number_alone() {
        let (data, device) = (Pictures::new(5, 8), Device::flex());
        let content = |seed, k| {
            let MicroBatch { x_0, eps, t, .. } = micro_batches(&data, true, seed).at(k, &device);
            (values(x_0), values(eps), t)
        };
        let ahead = content(1, 7);
        for k in [0, 6, 8] {
            assert_ne!(content(1, k).1, ahead.1);
        }
        assert_eq!(content(1, 7), ahead);
        assert_ne!(content(2, 7).1, ahead.1);
        assert_ne!(content(2, 7).2, ahead.2);
    }

    #[test]
    fn pictures_come_from_the_absolute_position() {
        let (data, device) = (Pictures::new(5, 8), Device::flex());
        let batch = micro_batches(&data, false, 0).at(3, &device);
        // Positions 9, 10, 11 of five pictures in turn.
        let expected: Vec<f32> = [4, 0, 1].into_iter().flat_map(|i| data.image_signed(i)).collect();
        assert_eq!(values(batch.x_0), expected);
        assert_eq!(batch.t.len(), 3);
    }

    #[test]
    fn about_half_of_the_pictures_are_flipped_left_to_right() {
        let (data, device) = (Pictures::new(1, 8), Device::flex());
        let the_first = |_, count| vec![0; count];
        let batches = MicroBatches { order: &the_first, ..micro_batches(&data, true, 0) };
        let original = data.image_signed(0);
        let mut mirrored = original.clone();
        mirrored.chunks_mut(8).for_each(<[f32]>::reverse);
        let mut flipped = 0;
        for k in 0..100 {
            let batch = values(batches.at(k, &device).x_0);
            for image in batch.chunks(original.len()) {
                assert!(image == original || image == mirrored);
                flipped += usize::from(image == mirrored);
            }
        }
        assert!((110..190).contains(&flipped), "{flipped} of 300");
    }

    #[test]
    fn captions_are_left_out_as_often_as_asked_and_nothing_else_changes() {
        let (data, device) = (CaptionedPictures(Pictures::new(5, 8)), Device::flex());
        let batches = |caption_dropout| MicroBatches {
            data: &data,
            order: &in_turn,
            timesteps: TimestepSampler::new(
                TimestepSampling::default(),
                TimestepRange { low: 0, high: 500 },
                1000,
            ),
            batch_size: 3,
            horizontal_flip: true,
            caption_dropout,
            seed: 3,
        };
        let left_out = |caption_dropout| -> usize {
            let of_batch = |k| {
                let MicroBatch { x_0, eps, t, condition } = batches(caption_dropout).at(k, &device);
                let all = batches(0.0).at(k, &device);
                assert_eq!(
                    (values(x_0), values(eps), t),
                    (values(all.x_0), values(all.eps), all.t)
                );
                let captions = all.condition.into_data().try_into_vec::<f32>().unwrap();
                let found = condition.into_data().try_into_vec::<f32>().unwrap();
                let width = captions.len() / 3;
                let rows = found.chunks(width).zip(captions.chunks(width));
                rows.filter(|(found, caption)| {
                    let dropped = found.iter().all(|&x| x == 0.0);
                    assert!(dropped || found == caption);
                    dropped
                })
                .count()
            };
            (0..100).map(of_batch).sum()
        };
        assert_eq!((left_out(0.0), left_out(1.0)), (0, 300));
        let some = left_out(0.2);
        assert!((35..=85).contains(&some), "{some} of 300");
    }
}
