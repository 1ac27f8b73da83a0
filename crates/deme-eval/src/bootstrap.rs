//! How far a Fréchet distance would move with other generated pictures: the bootstrap (Efron 1979).
//!
//! Pictures are drawn from the generated ones with replacement. The standard deviation of the
//! distances is the spread; their mean is not used, because resampling raises the distance itself.

use faer::Mat;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::singular_values::{singular_values, upper_factor};
use crate::tiles::product;
use crate::{EvalError, FeatureStats, FrechetReference};

/// Standard deviation of the distance between `reference` and `draws` resamplings of `features`.
///
/// The draws depend on `seed` alone. The reference is factored once. With no more pictures than
/// dimensions each draw works on matrices as large as there are pictures, else on covariances.
///
/// # Errors
/// As [`crate::frechet_distance`] and [`FeatureStats::of`]; [`EvalError::TooFew`] for fewer than two
/// draws.
pub fn bootstrap_spread(
    features: &[Vec<f32>],
    reference: &FeatureStats,
    draws: u64,
    seed: u64,
) -> Result<f64, EvalError> {
    if draws < 2 {
        return Err(EvalError::TooFew { count: draws });
    }
    let all = FeatureStats::of(features)?;
    all.comparable_with(reference)?;
    let reference = FrechetReference::new(reference)?;
    let few = (features.len() <= all.dim()).then(|| FewPictures::new(features, &all, &reference));
    let distance = |draw: u64| {
        let times = times_drawn(features.len(), seed, draw);
        match &few {
            Some(few) => few.distance(&times),
            None => distance_of_resampled(features, &times, &reference),
        }
    };
    let results: Vec<_> = (0..draws).into_par_iter().map(distance).collect();
    let distances: Vec<f64> = results.into_iter().collect::<Result<_, _>>()?;
    let mean = distances.iter().sum::<f64>() / draws as f64;
    let squares = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>();
    Ok((squares / (draws - 1) as f64).sqrt())
}

/// How often each of `count` pictures is drawn in so many draws with replacement.
fn times_drawn(count: usize, seed: u64, draw: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(draw);
    let mut times = vec![0; count];
    (0..count).for_each(|_| times[rng.random_range(0..count)] += 1);
    times
}

fn distance_of_resampled(
    features: &[Vec<f32>],
    times: &[u32],
    reference: &FrechetReference<'_>,
) -> Result<f64, EvalError> {
    let repeated = features.iter().zip(times);
    let resampled: Vec<&[f32]> = repeated
        .flat_map(|(feature, &times)| std::iter::repeat_n(feature.as_slice(), times as usize))
        .collect();
    Ok(reference.distance_to(&FeatureStats::of(&resampled)?)?.distance)
}

/// Distances of resampled pictures that are no more than the feature's dimensions.
///
/// With X the centred features of n pictures and F F^T the reference's covariance, the covariance of
/// a resampling is Z^T Z with Z = diag(w)^(1/2) (X - 1 m^T) / (n - 1)^(1/2), w the times each picture
/// was drawn and m the mean. The trace of the root is the sum of the singular values of Z F; so
/// Y = X F is all that is needed, or L of Y = L Q, which is n x n.
struct FewPictures {
    /// X, `[n, d]`.
    centred: Mat<f64>,
    /// L or Y, n rows.
    factored: Mat<f64>,
    /// Mean of all features less the reference's.
    offset: Vec<f64>,
    reference_trace: f64,
}

impl FewPictures {
    fn new(features: &[Vec<f32>], all: &FeatureStats, reference: &FrechetReference<'_>) -> Self {
        let (mu, stats) = (all.mu(), reference.stats());
        let (count, dim) = (features.len(), all.dim());
        let centred = Mat::from_fn(count, dim, |i, j| f64::from(features[i][j]) - mu[j]);
        let projected = reference.factor().times_rows(centred.as_ref());
        let factored = if projected.ncols() > count {
            let upper = upper_factor(projected.transpose().to_owned());
            upper.transpose().to_owned()
        } else {
            projected
        };
        let offset = mu.iter().zip(stats.mu()).map(|(a, b)| a - b).collect();
        let reference_trace = (0..dim).map(|i| stats.sigma()[i * dim + i]).sum();
        Self { centred, factored, offset, reference_trace }
    }

    fn distance(&self, times: &[u32]) -> Result<f64, EvalError> {
        let (count, dim) = (self.centred.nrows(), self.offset.len());
        let drawn: Vec<usize> = (0..count).filter(|&i| times[i] > 0).collect();
        let divisor = (count - 1) as f64;
        let weights = Mat::from_fn(1, count, |_, i| f64::from(times[i]) / count as f64);
        let mean = product(weights.as_ref(), self.centred.as_ref());
        let deviation = |i: usize, j: usize| self.centred[(i, j)] - mean[(0, j)];
        let squares = |i: usize| (0..dim).map(|j| deviation(i, j).powi(2)).sum::<f64>();
        let trace = drawn.iter().map(|&i| f64::from(times[i]) * squares(i)).sum::<f64>() / divisor;
        let mean_term: f64 = (0..dim).map(|j| (self.offset[j] + mean[(0, j)]).powi(2)).sum();
        let projected_mean = product(weights.as_ref(), self.factored.as_ref());
        let scaled = Mat::from_fn(drawn.len(), self.factored.ncols(), |row, j| {
            let i = drawn[row];
            let scale = (f64::from(times[i]) / divisor).sqrt();
            scale * (self.factored[(i, j)] - projected_mean[(0, j)])
        });
        let roots = singular_values(scaled).map_err(|_| EvalError::NoConvergence { dim })?;
        let covariance_term = trace + self.reference_trace - 2.0 * roots.iter().sum::<f64>();
        Ok(mean_term + covariance_term.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::frechet_distance;

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
    fn few_pictures_give_the_distances_of_their_covariances() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut features = |count: usize, dim: usize| -> Vec<Vec<f32>> {
            (0..count).map(|_| (0..dim).map(|_| rng.random_range(-1.0..3.0)).collect()).collect()
        };
        // A full reference, one of lower rank than there are pictures, one in between.
        for (count, dim, others) in [(20, 50, 120), (20, 50, 9), (50, 50, 60), (2, 3, 40)] {
            let features = features(count, dim);
            let reference: Vec<Vec<f32>> = self::normal_features(others, 8)
                .iter()
                .enumerate()
                .map(|(i, pair)| {
                    (0..dim).map(|j| pair[j % 2] * ((i * 7 + j * j) % 11) as f32).collect()
                })
                .collect();
            let reference = FeatureStats::of(&reference).unwrap();
            let reference = FrechetReference::new(&reference).unwrap();
            let few =
                FewPictures::new(&features, &FeatureStats::of(&features).unwrap(), &reference);
            for draw in 0..4 {
                let times = times_drawn(count, 3, draw);
                assert_eq!(times.iter().sum::<u32>() as usize, count);
                let found = few.distance(&times).unwrap();
                let expected = distance_of_resampled(&features, &times, &reference).unwrap();
                assert!((found - expected).abs() < 1e-9 * expected, "{found} and {expected}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let features = normal_features(40, 2);
        let reference = FeatureStats::of(&normal_features(50, 3)).unwrap();
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bootstrap_spread(&features, &reference, 9, 4).unwrap())
        };
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn one_draw_has_no_spread() {
        let reference = FeatureStats::new(vec![0.0], vec![1.0], None).unwrap();
        let refused = bootstrap_spread(&[vec![0.0], vec![1.0]], &reference, 1, 0);
        assert!(matches!(refused, Err(EvalError::TooFew { count: 1 })));
    }
}
