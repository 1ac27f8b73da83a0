//! Which timesteps an expert is trained on (Ma et al. 2025, "probabilistic sampling").
//!
//! With probability `1 - p` from the expert's own range, with probability `p` from all of `[0, T)`, so that
//! an expert does not forget the rest. This is not a sampler of images.

use deme_diffusion::TimestepRange;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::finetune_config::ImpossibleValue;

/// How timesteps are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimestepSampling {
    /// Probability p in `[0, 1]` of drawing from all of `[0, T)` instead of the expert's range.
    pub probability: f64,
    /// What one decision between the two holds for.
    pub granularity: Granularity,
    /// Draw half of a batch and mirror it: `t` is joined by `low + high - 1 - t`.
    pub antithetic: bool,
}

impl Default for TimestepSampling {
    fn default() -> Self {
        Self { probability: 0.3, granularity: Granularity::Batch, antithetic: true }
    }
}

impl TimestepSampling {
    /// Checks the values.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the key.
    pub fn validate(&self) -> Result<(), ImpossibleValue> {
        ImpossibleValue::unless(
            (0.0..=1.0).contains(&self.probability),
            "timestep_sampling.probability",
            self.probability,
            "a probability from 0 to 1",
        )
    }
}

/// What one decision between the expert's range and all timesteps holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// A whole (micro-)batch, as the reference does it.
    Batch,
    /// Each sample by itself (with its mirror image, where there is one).
    Sample,
}

/// Draws the timesteps of batches.
#[derive(Debug, Clone, Copy)]
pub struct TimestepSampler {
    config: TimestepSampling,
    range: TimestepRange,
    all: TimestepRange,
}

impl TimestepSampler {
    /// Draws from `range`, and with the configured probability from `[0, num_train_timesteps)`.
    pub fn new(config: TimestepSampling, range: TimestepRange, num_train_timesteps: usize) -> Self {
        Self { config, range, all: TimestepRange::full(num_train_timesteps) }
    }

    /// `batch_size` timesteps.
    ///
    /// Antithetic batches hold the `ceil(batch_size / 2)` drawn timesteps first, then the mirror images of
    /// the first of them; in an odd batch the last drawn one has none.
    pub fn draw(&self, batch_size: usize, rng: &mut impl Rng) -> Vec<usize> {
        let drawn = if self.config.antithetic { batch_size.div_ceil(2) } else { batch_size };
        let mut range = self.range_of_one_decision(rng);
        let mut timesteps = Vec::with_capacity(batch_size);
        let mut mirrored = Vec::with_capacity(drawn);
        for i in 0..drawn {
            if i > 0 && self.config.granularity == Granularity::Sample {
                range = self.range_of_one_decision(rng);
            }
            let t = range.low + below(range.len(), rng);
            timesteps.push(t);
            mirrored.push(range.low + range.high - 1 - t);
        }
        timesteps.extend(&mirrored[..batch_size - drawn]);
        timesteps
    }

    fn range_of_one_decision(&self, rng: &mut impl Rng) -> TimestepRange {
        if unit(rng) < self.config.probability { self.all } else { self.range }
    }
}

// Written out, not taken from a distributions library, so that a run is the same run after an upgrade.

/// Uniform in `0..bound`: the high word of a 128-bit product.
pub(crate) fn below(bound: usize, rng: &mut impl Rng) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// Uniform in `[0, 1)`.
pub(crate) fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const T: usize = 1000;

    fn sampler(probability: f64, granularity: Granularity, antithetic: bool) -> TimestepSampler {
        let config = TimestepSampling { probability, granularity, antithetic };
        TimestepSampler::new(config, TimestepRange { low: 250, high: 500 }, T)
    }

    fn any_granularity() -> impl Strategy<Value = Granularity> {
        prop_oneof![Just(Granularity::Batch), Just(Granularity::Sample)]
    }

    proptest! {
        #[test]
        fn batches_have_the_size_asked_for_and_lie_in_range(
            probability in 0.0..=1.0, granularity in any_granularity(), antithetic: bool,
            batch_size in 1usize..40, seed: u64, low in 0usize..999, width in 1usize..1000,
        ) {
            let range = TimestepRange { low, high: (low + width).min(T) };
            let config = TimestepSampling { probability, granularity, antithetic };
            let sampler = TimestepSampler::new(config, range, T);
            let t = sampler.draw(batch_size, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(t.len(), batch_size);
            prop_assert!(t.iter().all(|&t| t < T));
            if probability == 0.0 {
                prop_assert!(t.iter().all(|&t| range.contains(t)));
            }
            prop_assert_eq!(&t, &sampler.draw(batch_size, &mut ChaCha8Rng::seed_from_u64(seed)));
        }

        #[test]
        fn own_range_only_without_probability(seed: u64, granularity in any_granularity()) {
            let t = sampler(0.0, granularity, true).draw(9, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert!(t.iter().all(|t| (250..500).contains(t)));
        }

        #[test]
        fn the_second_half_mirrors_the_first(
            batch_size in 1usize..40, seed: u64, granularity in any_granularity(),
        ) {
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let t = sampler(0.0, granularity, true).draw(batch_size, rng);
            let drawn = batch_size.div_ceil(2);
            for (t, mirrored) in t[..batch_size - drawn].iter().zip(&t[drawn..]) {
                prop_assert_eq!(t + mirrored, 250 + 500 - 1);
            }
            let all = sampler(1.0, granularity, true).draw(batch_size, rng);
            for (t, mirrored) in all[..batch_size - drawn].iter().zip(&all[drawn..]) {
                prop_assert_eq!(t + mirrored, T - 1);
            }
        }
    }

    /// Share of timesteps in the own range: (1 - p) + p * 250 / 1000, within five deviations.
    fn share_in_own_range(granularity: Granularity, antithetic: bool) -> f64 {
        let rng = &mut ChaCha8Rng::seed_from_u64(7);
        let sampler = sampler(0.3, granularity, antithetic);
        let t: Vec<usize> = (0..5000).flat_map(|_| sampler.draw(4, rng)).collect();
        t.iter().filter(|t| (250..500).contains(*t)).count() as f64 / t.len() as f64
    }

    #[test]
    fn the_own_range_gets_its_share() {
        let expected = 0.7 + 0.3 * 0.25;
        for granularity in [Granularity::Batch, Granularity::Sample] {
            for antithetic in [false, true] {
                let share = share_in_own_range(granularity, antithetic);
                assert!((share - expected).abs() < 0.03, "{granularity:?} {antithetic}: {share}");
            }
        }
    }

    #[test]
    fn a_batch_is_all_inside_or_drawn_from_everywhere_but_samples_decide_alone() {
        // 16 draws from everywhere are all inside with probability 4^-16, so the share of batches that
        // leave the range is p per batch and 1 - (1 - 0.75 p)^16 per sample.
        let leaving = |granularity| {
            let rng = &mut ChaCha8Rng::seed_from_u64(3);
            let sampler = sampler(0.3, granularity, false);
            let leaves = |_: &i32| sampler.draw(16, rng).iter().any(|t| !(250..500).contains(t));
            (0..2000).filter(leaves).count() as f64 / 2000.0
        };
        assert!((leaving(Granularity::Batch) - 0.3).abs() < 0.05);
        assert!((leaving(Granularity::Sample) - (1.0 - 0.775f64.powi(16))).abs() < 0.05);
    }

    #[test]
    fn draws_are_uniform_over_the_range() {
        // Chi-square over 25 equal bins; 99.99% of draws stay below 60 at 24 degrees of freedom.
        for antithetic in [false, true] {
            let rng = &mut ChaCha8Rng::seed_from_u64(11);
            let sampler = sampler(0.0, Granularity::Batch, antithetic);
            let mut counts = [0f64; 25];
            for _ in 0..2500 {
                // Mirror images are not independent: count the drawn half alone.
                let drawn = if antithetic { 4 } else { 8 };
                for t in &sampler.draw(8, rng)[..drawn] {
                    counts[(t - 250) / 10] += 1.0;
                }
            }
            let expected = counts.iter().sum::<f64>() / 25.0;
            let chi_square: f64 =
                counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
            assert!(chi_square < 60.0, "{chi_square}");
        }
    }

    #[test]
    fn a_probability_beyond_one_is_refused_by_name() {
        for probability in [1.5, -0.1, f64::NAN] {
            let config = TimestepSampling { probability, ..Default::default() };
            let error = config.validate().unwrap_err();
            assert_eq!(error.key, "timestep_sampling.probability");
        }
    }
}
