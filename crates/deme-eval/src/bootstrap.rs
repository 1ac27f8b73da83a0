//! How far a Fréchet distance would move with other generated pictures: the bootstrap (Efron 1979).
//!
//! Pictures are drawn from the generated ones with replacement. The standard deviation of the
//! distances is the spread; their mean is not used, because resampling raises the distance itself.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{EvalError, FeatureStats, frechet_distance};

/// Standard deviation of the distance between `reference` and `draws` resamplings of `features`.
///
/// The draws depend on `seed` alone.
///
/// # Errors
/// As [`frechet_distance`]; [`EvalError::TooFew`] for fewer than two draws.
pub fn bootstrap_spread(
    features: &[Vec<f32>],
    reference: &FeatureStats,
    draws: u64,
    seed: u64,
) -> Result<f64, EvalError> {
    if draws < 2 {
        return Err(EvalError::TooFew { count: draws });
    }
    let distance = |draw: u64| -> Result<f64, EvalError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(draw);
        let resampled = features.iter().map(|_| &features[rng.random_range(0..features.len())]);
        let resampled: Vec<&[f32]> = resampled.map(Vec::as_slice).collect();
        Ok(frechet_distance(&FeatureStats::of(&resampled)?, reference)?.distance)
    };
    let results: Vec<_> = (0..draws).into_par_iter().map(distance).collect();
    let distances: Vec<f64> = results.into_iter().collect::<Result<_, _>>()?;
    let mean = distances.iter().sum::<f64>() / draws as f64;
    let squares = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>();
    Ok((squares / (draws - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn normal_features(count: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let uniform_sum =
            |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        (0..count).map(|_| vec![uniform_sum(&mut rng), uniform_sum(&mut rng)]).collect()
    }

    #[test]
    fn the_spread_shrinks_with_more_pictures_and_is_close_to_that_over_fresh_ones() {
        let reference = FeatureStats::new(vec![0.5, 0.0], vec![1.0, 0.0, 0.0, 1.0], None).unwrap();
        let fresh: Vec<f64> = (100..160)
            .map(|seed| FeatureStats::of(&normal_features(200, seed)).unwrap())
            .map(|stats| frechet_distance(&stats, &reference).unwrap().distance)
            .collect();
        let mean = fresh.iter().sum::<f64>() / 60.0;
        let deviation = (fresh.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 59.0).sqrt();
        let few = bootstrap_spread(&normal_features(200, 1), &reference, 60, 0).unwrap();
        let many = bootstrap_spread(&normal_features(3200, 1), &reference, 60, 0).unwrap();
        assert!(few / deviation > 0.6 && few / deviation < 1.6, "{few} against {deviation}");
        assert!(many < few / 2.5, "{many} against {few}");
    }

    #[test]
    fn one_draw_has_no_spread() {
        let reference = FeatureStats::new(vec![0.0], vec![1.0], None).unwrap();
        let refused = bootstrap_spread(&[vec![0.0], vec![1.0]], &reference, 1, 0);
        assert!(matches!(refused, Err(EvalError::TooFew { count: 1 })));
    }
}
