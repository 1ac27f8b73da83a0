//! What each micro-step of a run sees: pictures, noise and timesteps, from the seed and its number alone.
//!
//! Nothing here has a state. Micro-step k takes the pictures at the absolute positions
//! `k B .. (k + 1) B` of the data order, its timesteps and flips from stream `2 k` of the seed's
//! generator, and its noise from stream `2 k + 1`. An interrupted run therefore goes on with nothing but k.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::image_shards::shard;
use deme_diffusion::standard_normal;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::timestep_sampler::{TimestepSampler, unit};
use crate::training_images::TrainingImages;

/// One forward and backward pass worth of input.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// `[B, C, H, W]` in `[-1, 1]`.
    pub x_0: Tensor<4>,
    /// Standard normal, `[B, C, H, W]`.
    pub eps: Tensor<4>,
    /// One timestep per image.
    pub t: Vec<usize>,
}

impl MicroBatch {
    /// The images of one range.
    pub fn part(&self, range: &Range<usize>) -> Self {
        Self {
            x_0: shard(&self.x_0, range),
            eps: shard(&self.eps, range),
            t: self.t[range.clone()].to_vec(),
        }
    }
}

/// The endless sequence of a run's micro-batches.
#[derive(Clone, Copy)]
pub struct MicroBatches<'a> {
    /// The pictures.
    pub data: &'a dyn TrainingImages,
    /// The indices of so many pictures from an absolute position of the data order on.
    pub order: &'a (dyn Fn(u64, usize) -> Vec<usize> + Sync),
    /// Draws the timesteps.
    pub timesteps: TimestepSampler,
    /// Pictures per micro-batch.
    pub batch_size: usize,
    /// Mirror each picture with probability 1/2.
    pub horizontal_flip: bool,
    /// Seed of timesteps, flips and noise.
    pub seed: u64,
}

impl MicroBatches<'_> {
    /// Micro-batch number `k`, from 0.
    pub fn at(&self, k: u64, device: &Device) -> MicroBatch {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(2 * k);
        let t = self.timesteps.draw(self.batch_size, &mut rng);

        let [c, h, w] = self.data.image_shape();
        let mut pixels = Vec::with_capacity(self.batch_size * c * h * w);
        for index in (self.order)(k * self.batch_size as u64, self.batch_size) {
            let mut image = self.data.image_signed(index);
            if self.horizontal_flip && unit(&mut rng) < 0.5 {
                image.chunks_mut(w).for_each(<[f32]>::reverse);
            }
            pixels.extend(image);
        }
        let eps = standard_normal(self.seed, 2 * k + 1, pixels.len());

        let shape = [self.batch_size, c, h, w];
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        MicroBatch { x_0: tensor(pixels), eps: tensor(eps), t }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::test_models::{Pictures, in_turn};
    use crate::timestep_sampler::TimestepSampling;
    use deme_diffusion::TimestepRange;

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    fn micro_batches(data: &Pictures, horizontal_flip: bool, seed: u64) -> MicroBatches<'_> {
        let range = TimestepRange { low: 0, high: 500 };
        let timesteps = TimestepSampler::new(TimestepSampling::default(), range, 1000);
        MicroBatches { data, order: &in_turn, timesteps, batch_size: 3, horizontal_flip, seed }
    }

    #[test]
    fn a_micro_batch_depends_on_seed_and_number_alone() {
        let (data, device) = (Pictures::new(5, 8), Device::flex());
        let content = |seed, k| {
            let MicroBatch { x_0, eps, t } = micro_batches(&data, true, seed).at(k, &device);
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
}
