//! The Fréchet distance of infinitely many pictures (Chong and Forsyth 2020): the distance is biased by
//! an amount that falls like 1/N, so a line through distances at several N is followed to 1/N = 0. No
//! tensor engine.

use crate::random_subset::random_subset;
use crate::{EvalError, FeatureSet, FeatureStats, FrechetReference};
use serde::{Deserialize, Serialize};

/// At which numbers of pictures the distance is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FdInfinityConfig {
    /// Numbers of pictures, evenly spaced from the smallest to all; the authors take 15.
    pub points: usize,
    /// The smallest number of pictures; the authors take 5000.
    pub min_count: usize,
    /// Decides the pictures of each point.
    pub seed: u64,
}

impl Default for FdInfinityConfig {
    fn default() -> Self {
        Self { points: 15, min_count: 5000, seed: 0 }
    }
}

/// A Fréchet distance followed to infinitely many pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct FdInfinity {
    /// The line's value at 1/N = 0. It can be below 0.
    pub value: f64,
    /// Standard error of that value by the points' distance from the line; it does not see that the
    /// points share pictures.
    pub std_error: f64,
    /// 95 % interval, by Student's t with two degrees of freedom fewer than points.
    pub interval: [f64; 2],
    /// The line's slope in 1/N.
    pub slope: f64,
    /// Number of pictures and distance of each point.
    pub points: Vec<(u64, f64)>,
}

/// Distances of random subsets of `generated` to `reference`, and the line through them.
///
/// # Errors
/// As [`crate::frechet_distance`] and [`fit_fd_infinity`]; [`EvalError::Points`] when there are not
/// more pictures than `min_count`, or `min_count` is below 2.
pub fn fd_infinity(
    generated: &FeatureSet<'_>,
    reference: &FeatureStats,
    config: &FdInfinityConfig,
) -> Result<FdInfinity, EvalError> {
    let (count, least) = (generated.len(), config.min_count);
    if least < 2 || count <= least || config.points < 3 {
        return Err(EvalError::Points { points: config.points, least, count });
    }
    let reference = FrechetReference::new(reference)?;
    let mut points = Vec::with_capacity(config.points);
    for point in 0..config.points {
        // NumPy's linspace, cut to whole numbers.
        let size = least + point * (count - least) / (config.points - 1);
        let subset = generated.select(&random_subset(count, size, config.seed, point as u64));
        points.push((size as u64, reference.distance_to(&subset.stats()?)?.distance));
    }
    fit_fd_infinity(points)
}

/// Least squares through `(N, distance)`: distance = value + slope / N.   (Chong and Forsyth 2020, eq. 8)
///
/// # Errors
/// [`EvalError::Points`] for fewer than 3 points or points at one N only.
pub fn fit_fd_infinity(points: Vec<(u64, f64)>) -> Result<FdInfinity, EvalError> {
    let count = points.len();
    let n = count as f64;
    let x = |point: &(u64, f64)| 1.0 / point.0 as f64;
    let mean_x = points.iter().map(x).sum::<f64>() / n;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / n;
    let spread: f64 = points.iter().map(|point| (x(point) - mean_x).powi(2)).sum();
    let least = points.iter().map(|point| point.0).min().unwrap_or(0) as usize;
    if count < 3 || spread == 0.0 || least == 0 {
        return Err(EvalError::Points { points: count, least, count: least });
    }
    let slope = points.iter().map(|p| (x(p) - mean_x) * (p.1 - mean_y)).sum::<f64>() / spread;
    let value = mean_y - slope * mean_x;
    let residuals: f64 = points.iter().map(|p| (p.1 - value - slope * x(p)).powi(2)).sum();
    let variance = residuals / (n - 2.0);
    let std_error = (variance * (1.0 / n + mean_x * mean_x / spread)).sqrt();
    let reach = student_97_5(count - 2) * std_error;
    Ok(FdInfinity { value, std_error, interval: [value - reach, value + reach], slope, points })
}

/// The 97.5 % quantile of Student's t.
///
/// By bisection on the distribution function, which for whole degrees of freedom is a finite sum
/// (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
fn student_97_5(degrees: usize) -> f64 {
    let (mut low, mut high) = (0.0, 20.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if two_sided(middle, degrees) < 0.95 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Probability of |T| < t.
fn two_sided(t: f64, degrees: usize) -> f64 {
    let theta = (t / (degrees as f64).sqrt()).atan();
    let (sine, cosine) = theta.sin_cos();
    // cos^2 + (2/3) cos^4 + .. or 1 + (1/2) cos^2 + .., each term from the one before.
    let odd = degrees % 2;
    let (mut term, mut sum) = (if odd == 1 { cosine } else { 1.0 }, 0.0);
    for k in 0..degrees / 2 {
        sum += term;
        let step = (2 * k + 1 + odd) as f64;
        term *= cosine * cosine * step / (step + 1.0);
    }
    if odd == 1 { 2.0 / std::f64::consts::PI * (theta + sine * sum) } else { sine * sum }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn a_straight_line_is_found_exactly() {
        let points = [100, 150, 300, 1000].map(|n| (n, 2.0 + 50.0 / n as f64));
        let line = fit_fd_infinity(points.to_vec()).unwrap();
        assert!((line.value - 2.0).abs() < 1e-12 && (line.slope - 50.0).abs() < 1e-9);
        assert!(line.std_error < 1e-12);
        assert_eq!(line.points, points);
    }

    #[test]
    fn the_error_of_the_intercept_is_the_textbooks() {
        // x = 1, 1/2, 1/4 and y = 3, 2, 1.9: by hand, slope and residuals in exact fractions.
        let line = fit_fd_infinity(vec![(1, 3.0), (2, 2.0), (4, 1.9)]).unwrap();
        let (mean_x, mean_y) = (7.0 / 12.0, 2.3);
        let spread = (5.0f64 / 12.0).powi(2) + (1.0f64 / 12.0).powi(2) + (4.0f64 / 12.0).powi(2);
        let slope = (5.0 / 12.0 * 0.7 + 1.0 / 12.0 * 0.3 + 4.0 / 12.0 * 0.4) / spread;
        let value = mean_y - slope * mean_x;
        let residuals = [(1.0, 3.0), (0.5, 2.0), (0.25, 1.9)].map(|(x, y)| y - value - slope * x);
        let variance: f64 = residuals.iter().map(|r| r * r).sum();
        let error = (variance * (1.0 / 3.0 + mean_x * mean_x / spread)).sqrt();
        assert!((line.value - value).abs() < 1e-12 && (line.slope - slope).abs() < 1e-12);
        assert!((line.std_error - error).abs() < 1e-12);
        // One degree of freedom: t = 12.706.
        assert!((line.interval[1] - value - 12.7062 * error).abs() < 1e-3 * error);
        assert!((line.interval[0] + line.interval[1] - 2.0 * value).abs() < 1e-12);
    }

    #[test]
    fn students_quantiles_are_those_of_the_tables() {
        let table = [(1, 12.706), (2, 4.303), (3, 3.182), (13, 2.160), (30, 2.042), (120, 1.980)];
        for (degrees, expected) in table {
            let found = student_97_5(degrees);
            assert!((found - expected).abs() < 6e-4, "{degrees}: {found}");
        }
    }

    #[test]
    fn it_removes_most_of_the_bias() {
        // Equal distributions in 12 dimensions: the distance is 0 and every estimate above it.
        let features = |count: usize, seed: u64| -> Vec<f32> {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            (0..count * 12).map(|_| rng.random_range(-1.0..1.0)).collect()
        };
        let reference = features(40_000, 1);
        let reference = FeatureSet::of_flat(&reference, 12).unwrap().stats().unwrap();
        let config = FdInfinityConfig { min_count: 300, ..FdInfinityConfig::default() };
        let (mut at_infinity, mut of_all) = (0.0, 0.0);
        for seed in 2..8 {
            let generated = features(3000, seed);
            let generated = FeatureSet::of_flat(&generated, 12).unwrap();
            let found = fd_infinity(&generated, &reference, &config).unwrap();
            let sizes: Vec<u64> = found.points.iter().map(|point| point.0).collect();
            assert_eq!((sizes.len(), sizes[0], sizes[1], sizes[14]), (15, 300, 492, 3000));
            assert!(found.slope > 0.0);
            assert_eq!(found, fd_infinity(&generated, &reference, &config).unwrap());
            at_infinity += found.value / 6.0;
            of_all += found.points[14].1 / 6.0;
        }
        assert!(of_all > 0.0 && at_infinity.abs() < of_all / 3.0, "{at_infinity} and {of_all}");
    }

    #[test]
    fn too_few_pictures_and_points_are_refused() {
        let features = [0.0f32, 1.0, 3.0, 5.0, 2.0];
        let set = FeatureSet::of_flat(&features, 1).unwrap();
        let stats = set.stats().unwrap();
        let config = FdInfinityConfig::default();
        let error = fd_infinity(&set, &stats, &config).unwrap_err();
        assert!(matches!(error, EvalError::Points { points: 15, least: 5000, count: 5 }));
        for (points, min_count) in [(2, 3), (15, 1), (15, 5)] {
            let config = FdInfinityConfig { points, min_count, seed: 0 };
            assert!(fd_infinity(&set, &stats, &config).is_err());
        }
        let same_place = fit_fd_infinity(vec![(5, 1.0); 4]).unwrap_err();
        assert!(matches!(same_place, EvalError::Points { points: 4, .. }));
        assert!(fit_fd_infinity(vec![]).is_err());
    }
}
