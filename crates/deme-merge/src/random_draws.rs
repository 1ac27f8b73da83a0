//! Random draws that depend on a seed and a stream number only.
//!
//! Kept here, not taken from a distributions library, so that a search repeats its decisions after an
//! upgrade: that is how an interrupted one goes on.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// One stream of random numbers: stream `stream` of the generator seeded with `seed`.
pub(crate) struct RandomDraws(ChaCha8Rng);

impl RandomDraws {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self(generator)
    }

    /// A uniform number in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform number in `[low, high]`; the ends differ from their neighbours by rounding only.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = self.unit();
        (low * (1.0 - unit) + high * unit).clamp(low, high)
    }

    /// A standard normal number (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut draws = RandomDraws::new(1, 0);
        let numbers: Vec<f64> = (0..100_000).map(|_| draws.normal()).collect();
        let moment = |power| numbers.iter().map(|x: &f64| x.powi(power)).sum::<f64>() / 1e5;
        for (power, expected, nearness) in
            [(1, 0.0, 0.02), (2, 1.0, 0.03), (3, 0.0, 0.1), (4, 3.0, 0.2)]
        {
            assert!((moment(power) - expected).abs() < nearness, "{power}: {}", moment(power));
        }
    }

    #[test]
    fn streams_and_seeds_differ_and_repeat() {
        let first = |seed, stream| RandomDraws::new(seed, stream).between(-2.0, 3.0);
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 0), first(1, 1));
        assert!((-2.0..=3.0).contains(&first(1, 0)));
    }
}
