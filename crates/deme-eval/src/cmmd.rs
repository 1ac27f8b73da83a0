//! CMMD (Jayasumana et al. 2024): a squared maximum mean discrepancy with a Gaussian kernel on CLIP's
//! normalised image embeddings. No tensor engine.
//!
//! As the authors compute it: sigma = 10, the mean over all pairs, each picture with itself among them,
//! times 1000. Their extractor is CLIP ViT-L/14 at 336 pixels.

use crate::pairwise::{ProductTile, Tiles, for_each_tile_row};
use crate::{EvalError, FeatureSet};

/// Width of the kernel.
const SIGMA: f64 = 10.0;

/// The authors' unit: a thousandth.
const SCALE: f64 = 1000.0;

/// `1000 (E k(x, x') + E k(y, y') - 2 E k(x, y))`, k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), 0 or more.
///
/// Embeddings are normalised here.
///
/// # Errors
/// [`EvalError::Dimensions`]; [`EvalError::NoDirection`] for an embedding of length zero.
pub fn cmmd(generated: &FeatureSet<'_>, reference: &FeatureSet<'_>) -> Result<f64, EvalError> {
    generated.same_dim(reference)?;
    let (x, y) = (normalised(generated)?, normalised(reference)?);
    let dim = generated.dim();
    let (x, y) = (FeatureSet::of_flat(&x, dim)?, FeatureSet::of_flat(&y, dim)?);
    let value = mean_kernel(&x, &x) + mean_kernel(&y, &y) - 2.0 * mean_kernel(&x, &y);
    Ok(SCALE * value.max(0.0))
}

fn normalised(set: &FeatureSet<'_>) -> Result<Vec<f32>, EvalError> {
    let mut flat = Vec::with_capacity(set.len() * set.dim());
    for index in 0..set.len() {
        let row = set.row(index);
        let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            return Err(EvalError::NoDirection { what: "picture", index, length });
        }
        flat.extend(row.iter().map(|&x| (f64::from(x) / length) as f32));
    }
    Ok(flat)
}

fn mean_kernel(x: &FeatureSet<'_>, y: &FeatureSet<'_>) -> f64 {
    let of_tile = |tile: &ProductTile<'_>| -> f64 {
        let column = |c: usize| -> f64 {
            let distances = (0..tile.rows.len()).map(|r| tile.squared_distance(r, c));
            // Less 1, which cancels in the end: the differences are a millionth of the kernel.
            distances.map(|distance| (-distance / (2.0 * SIGMA * SIGMA)).exp_m1()).sum()
        };
        (0..tile.columns.len()).map(column).sum()
    };
    let mut sum = 0.0;
    for_each_tile_row(x, y, Tiles::All, of_tile, |_, row| {
        row.into_iter().for_each(|(_, tile)| sum += tile);
    });
    sum / (x.len() * y.len()) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn two_directions_give_the_kernel_in_closed_form() {
        // One picture a side, orthogonal: 1000 (1 + 1 - 2 exp(-2 / 200)).
        let (x, y) = ([3.0f32, 0.0], [0.0f32, 0.5]);
        let (x, y) = (FeatureSet::of_flat(&x, 2).unwrap(), FeatureSet::of_flat(&y, 2).unwrap());
        let expected = 2000.0 * (1.0 - (-0.01f64).exp());
        assert!((cmmd(&x, &y).unwrap() - expected).abs() < 1e-9);
        assert_eq!(cmmd(&x, &x).unwrap(), 0.0);
    }

    #[test]
    fn it_is_the_mean_over_all_pairs() {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count * 4).map(|k| ((k * k + seed * k) % 17) as f32 - 5.5).collect()
        };
        let (x, y) = (values(300, 3), values(280, 5));
        let (x, y) = (FeatureSet::of_flat(&x, 4).unwrap(), FeatureSet::of_flat(&y, 4).unwrap());
        let mean = |a: &FeatureSet<'_>, b: &FeatureSet<'_>| {
            let mut sum = 0.0;
            for i in 0..a.len() {
                for j in 0..b.len() {
                    let unit = |row: &[f32]| -> Vec<f64> {
                        let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
                        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                        row.iter().map(|x| x / length).collect()
                    };
                    let (a, b) = (unit(a.row(i)), unit(b.row(j)));
                    let distance: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
                    sum += (-distance / 200.0).exp();
                }
            }
            sum / (a.len() * b.len()) as f64
        };
        let expected = 1000.0 * (mean(&x, &x) + mean(&y, &y) - 2.0 * mean(&x, &y));
        let found = cmmd(&x, &y).unwrap();
        assert!((found - expected).abs() < 1e-6 && found > 1e-3, "{found} and {expected}");
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cmmd(&x, &y).unwrap())
        };
        assert_eq!((of(1), of(3)), (found, found));
    }

    #[test]
    fn embeddings_without_direction_and_of_other_lengths_are_refused() {
        let (x, y, z) = ([1.0f32, 0.0], [0.0f32, 0.0], [1.0f32; 3]);
        let (x, y) = (FeatureSet::of_flat(&x, 2).unwrap(), FeatureSet::of_flat(&y, 2).unwrap());
        let error = cmmd(&x, &y).unwrap_err();
        assert!(matches!(error, EvalError::NoDirection { what: "picture", index: 0, .. }));
        let z = FeatureSet::of_flat(&z, 3).unwrap();
        assert!(matches!(cmmd(&x, &z), Err(EvalError::Dimensions { left: 2, right: 3 })));
    }
}
