//! Noise that belongs to an image: image i depends on seed i alone.
//!
//! Each (seed, stream) names its own sequence of ChaCha8, so a picture is the same whatever batch,
//! thread or device it is made in. Stream 0 is the image's start noise, stream k + 1 the noise of
//! sampling step k.
//! Not here: the random draws of training.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// The first `count` standard normal values of stream `stream` of `seed`.
pub fn standard_normal(seed: u64, stream: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    (0..count).map(|_| rng.sample(StandardNormal)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_same_name_gives_the_same_noise_and_a_longer_draw_extends_it() {
        let long = standard_normal(7, 3, 100);
        assert_eq!(standard_normal(7, 3, 40), long[..40]);
    }

    #[test]
    fn seeds_and_streams_are_all_different() {
        let noises: Vec<_> = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .map(|(seed, stream)| standard_normal(seed, stream, 8))
            .into();
        for (i, a) in noises.iter().enumerate() {
            for b in &noises[i + 1..] {
                assert!(a.iter().zip(b).all(|(a, b)| a != b));
            }
        }
    }

    #[test]
    fn mean_zero_variance_one_and_streams_uncorrelated() {
        let count = 40_000;
        let (a, b) = (standard_normal(1, 0, count), standard_normal(1, 1, count));
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / count as f64;
        let of = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (a, b) = (of(&a), of(&b));
        assert!(mean(&mut a.iter().copied()).abs() < 0.02);
        assert!((mean(&mut a.iter().map(|a| a * a)) - 1.0).abs() < 0.03);
        assert!(mean(&mut a.iter().zip(&b).map(|(a, b)| a * b)).abs() < 0.02);
    }
}
