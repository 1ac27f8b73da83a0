//! The kernel inception distance (Bińkowski et al. 2018, section 4): an unbiased squared maximum mean
//! discrepancy with a cubic polynomial kernel. No tensor engine.
//!
//! Like torch-fidelity's and clean-fid's, it is the mean over random subsets of equal size of both
//! sides; torch-fidelity's default is 100 subsets of 1000, and so is ours. Differences: the subsets are
//! drawn by this crate's generator, so two programs agree up to the spread of subsets only; sums are
//! f64 where theirs are f32; fewer pictures than a subset takes give smaller subsets, as in clean-fid,
//! and a note, where torch-fidelity refuses them.

use crate::pairwise::{ProductTile, Tiles, for_each_tile_row};
use crate::random_subset::random_subset;
use crate::{EvalError, FeatureSet};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How many subsets of which size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KidConfig {
    /// Number of subsets.
    pub subsets: usize,
    /// Pictures of each side in a subset.
    pub subset_size: usize,
    /// Decides the subsets.
    pub seed: u64,
}

impl Default for KidConfig {
    fn default() -> Self {
        Self { subsets: 100, subset_size: 1000, seed: 0 }
    }
}

/// A kernel inception distance.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelDistance {
    /// Mean over the subsets. It estimates without bias, so it can be below 0.
    pub mean: f64,
    /// Standard deviation over the subsets (divisor: their number, as in torch-fidelity). 0 when there
    /// is only one.
    pub std: f64,
    /// The distance on each subset.
    pub of_subsets: Vec<f64>,
    /// Pictures of each side in a subset.
    pub subset_size: usize,
    notes: Vec<String>,
}

impl KernelDistance {
    /// What a reader of the number should know.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// Pictures of both sides, by position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsetPair {
    /// Of the generated pictures.
    pub generated: Vec<usize>,
    /// Of the reference.
    pub reference: Vec<usize>,
}

/// The distance between two sets of features, on random subsets.
///
/// # Errors
/// [`EvalError::Dimensions`]; [`EvalError::TooFew`] for sides or subsets of less than 2 pictures or for
/// no subsets.
pub fn kernel_distance(
    generated: &FeatureSet<'_>,
    reference: &FeatureSet<'_>,
    config: &KidConfig,
) -> Result<KernelDistance, EvalError> {
    let fewest = generated.len().min(reference.len());
    let size = config.subset_size.min(fewest);
    let draw = |count: usize, side: u64, subset: usize| {
        random_subset(count, size, config.seed, 2 * subset as u64 + side)
    };
    // Where a subset is everything there is, one is all there are.
    let everything = generated.len() == size && reference.len() == size;
    let subsets = if everything { config.subsets.min(1) } else { config.subsets };
    let pairs: Vec<SubsetPair> = (0..subsets)
        .map(|subset| SubsetPair {
            generated: draw(generated.len(), 0, subset),
            reference: draw(reference.len(), 1, subset),
        })
        .collect();
    let mut distance = kernel_distance_on(generated, reference, &pairs)?;
    if size < config.subset_size {
        let wanted = config.subset_size;
        distance.notes.push(format!(
            "subsets of {size} pictures instead of {wanted}: there are only {fewest}"
        ));
    }
    Ok(distance)
}

/// The distance on given subsets.
///
/// # Errors
/// As [`kernel_distance`].
///
/// # Panics
/// When a position is none of its set.
pub fn kernel_distance_on(
    generated: &FeatureSet<'_>,
    reference: &FeatureSet<'_>,
    subsets: &[SubsetPair],
) -> Result<KernelDistance, EvalError> {
    generated.same_dim(reference)?;
    let sizes = subsets.iter().flat_map(|pair| [pair.generated.len(), pair.reference.len()]);
    let smallest = sizes.min().unwrap_or(0);
    if smallest < 2 {
        return Err(EvalError::TooFew { count: smallest as u64 });
    }
    let members = |side: fn(&SubsetPair) -> &Vec<usize>| -> Vec<&[usize]> {
        subsets.iter().map(|pair| side(pair).as_slice()).collect()
    };
    let (xs, ys) = (members(|pair| &pair.generated), members(|pair| &pair.reference));
    let within_x = kernel_sums(generated, generated, &xs, &xs, Pairs::Unlike);
    let within_y = kernel_sums(reference, reference, &ys, &ys, Pairs::Unlike);
    let between = kernel_sums(generated, reference, &xs, &ys, Pairs::All);
    let of_subsets: Vec<f64> = (0..subsets.len())
        .map(|s| {
            let (m, n) = (xs[s].len() as f64, ys[s].len() as f64);
            within_x[s] / (m * (m - 1.0)) + within_y[s] / (n * (n - 1.0))
                - 2.0 * between[s] / (m * n)
        })
        .collect();
    let count = of_subsets.len() as f64;
    let mean = of_subsets.iter().sum::<f64>() / count;
    let std = (of_subsets.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count).sqrt();
    Ok(KernelDistance { mean, std, of_subsets, subset_size: smallest, notes: Vec::new() })
}

/// `(x . y / d + 1)^3`.   (Bińkowski et al. 2018, eq. 4)
fn kernel(product: f64, dim: usize) -> f64 {
    (product / dim as f64 + 1.0).powi(3)
}

/// Which pairs a sum runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// Of two sides: all.
    All,
    /// Of one side with itself: i != j.
    Unlike,
}

/// For each subset the sum of the kernel over its pairs.
///
/// All pairs of both sides are computed once, unless the subsets together have fewer.
fn kernel_sums(
    x: &FeatureSet<'_>,
    y: &FeatureSet<'_>,
    xs: &[&[usize]],
    ys: &[&[usize]],
    pairs: Pairs,
) -> Vec<f64> {
    let pairs_of_subsets: usize = xs.iter().zip(ys).map(|(x, y)| x.len() * y.len()).sum();
    if x.len() * y.len() <= pairs_of_subsets {
        return sums_by_tiles(x, y, xs, ys, pairs);
    }
    let of_subset = |(xs, ys): (&&[usize], &&[usize])| {
        let (x, y) = (x.select(xs), y.select(ys));
        let (xs, ys): (Vec<usize>, Vec<usize>) = ((0..x.len()).collect(), (0..y.len()).collect());
        sums_by_tiles(&x, &y, &[&xs], &[&ys], pairs)[0]
    };
    xs.par_iter().zip(ys).map(of_subset).collect()
}

fn sums_by_tiles(
    x: &FeatureSet<'_>,
    y: &FeatureSet<'_>,
    xs: &[&[usize]],
    ys: &[&[usize]],
    pairs: Pairs,
) -> Vec<f64> {
    let sorted = |positions: &&[usize]| {
        let mut positions = positions.to_vec();
        positions.sort_unstable();
        positions
    };
    let xs: Vec<Vec<usize>> = xs.iter().map(sorted).collect();
    let ys: Vec<Vec<usize>> = ys.iter().map(sorted).collect();
    let dim = x.dim();
    let of_tile = |tile: &ProductTile<'_>| -> Vec<f64> {
        let height = tile.rows.len();
        let kernels: Vec<f64> = (0..height * tile.columns.len())
            .map(|k| kernel(tile.product(k % height, k / height), dim))
            .collect();
        let sums = xs.iter().zip(&ys).map(|(rows, columns)| {
            let rows = within(rows, &tile.rows);
            let columns = within(columns, &tile.columns);
            let column_sum = |&column: &usize| -> f64 {
                let entries = &kernels[(column - tile.columns.start) * height..][..height];
                let end = match pairs {
                    Pairs::All => rows.len(),
                    // i < j here; the mirror image follows at the end.
                    Pairs::Unlike => rows.partition_point(|&row| row < column),
                };
                rows[..end].iter().map(|&row| entries[row - tile.rows.start]).sum()
            };
            columns.iter().map(column_sum).sum::<f64>()
        });
        sums.collect()
    };
    let (tiles, times) = match pairs {
        Pairs::All => (Tiles::All, 1.0),
        Pairs::Unlike => (Tiles::Upper, 2.0),
    };
    let mut totals = vec![0.0; xs.len()];
    for_each_tile_row(x, y, tiles, of_tile, |_, row| {
        for (_, sums) in row {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    });
    totals.iter().map(|total| times * total).collect()
}

/// Those of rising positions that lie in a range.
fn within<'p>(positions: &'p [usize], range: &std::ops::Range<usize>) -> &'p [usize] {
    let from = positions.partition_point(|&position| position < range.start);
    let to = positions.partition_point(|&position| position < range.end);
    &positions[from..to]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(count: usize, dim: usize, shift: f32, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count * dim).map(|_| rng.random_range(-1.0..1.0f32) + shift).collect()
    }

    /// The definition, pair by pair.
    fn naive(x: &FeatureSet<'_>, y: &FeatureSet<'_>, pair: &SubsetPair) -> f64 {
        let k = |a: &[f32], b: &[f32]| {
            let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            (dot / a.len() as f64 + 1.0).powi(3)
        };
        let within = |set: &FeatureSet<'_>, members: &[usize]| {
            let mut sum = 0.0;
            for (a, &i) in members.iter().enumerate() {
                for (b, &j) in members.iter().enumerate() {
                    sum += if a == b { 0.0 } else { k(set.row(i), set.row(j)) };
                }
            }
            sum / (members.len() * (members.len() - 1)) as f64
        };
        let mut between = 0.0;
        for &i in &pair.generated {
            pair.reference.iter().for_each(|&j| between += k(x.row(i), y.row(j)));
        }
        let pairs = (pair.generated.len() * pair.reference.len()) as f64;
        within(x, &pair.generated) + within(y, &pair.reference) - 2.0 * between / pairs
    }

    #[test]
    fn both_ways_of_summing_give_the_definition() {
        let (x, y) = (random(600, 5, 0.1, 1), random(530, 5, 0.0, 2));
        let (x, y) = (FeatureSet::of_flat(&x, 5).unwrap(), FeatureSet::of_flat(&y, 5).unwrap());
        let subset = |size: usize, s: u64| SubsetPair {
            generated: random_subset(600, size, 9, 2 * s),
            reference: random_subset(530, size, 9, 2 * s + 1),
        };
        // Two small subsets are computed by themselves, five large ones from all pairs.
        for (size, count) in [(40, 2), (400, 5)] {
            let subsets: Vec<SubsetPair> = (0..count).map(|s| subset(size, s)).collect();
            let found = kernel_distance_on(&x, &y, &subsets).unwrap();
            for (found, pair) in found.of_subsets.iter().zip(&subsets) {
                let expected = naive(&x, &y, pair);
                assert!((found - expected).abs() < 1e-12, "{found} and {expected}");
            }
        }
    }

    #[test]
    fn points_give_the_kernel_in_closed_form() {
        // One dimension: k(x, y) = (xy + 1)^3. Sides {0, 1} and {1, 2}.
        let (x, y) = ([0.0f32, 1.0], [1.0f32, 2.0]);
        let (x, y) = (FeatureSet::of_flat(&x, 1).unwrap(), FeatureSet::of_flat(&y, 1).unwrap());
        let found = kernel_distance(&x, &y, &KidConfig::default()).unwrap();
        // k(0,1) + k(1,2) - 2 (k(0,1) + k(0,2) + k(1,1) + k(1,2)) / 4 = 1 + 27 - (1 + 1 + 8 + 27) / 2
        assert_eq!((found.mean, found.std, found.subset_size), (9.5, 0.0, 2));
        assert_eq!(found.of_subsets.len(), 1);
        assert_eq!(found.notes().len(), 1);
        // A set against itself: k(0,1) - (k(0,0) + 2 k(0,1) + k(1,1)) / 2, twice one within one between.
        let same = kernel_distance(&x, &x, &KidConfig::default()).unwrap();
        assert_eq!(same.mean, 2.0 - (1.0 + 2.0 + 8.0) / 2.0);
    }

    #[test]
    fn it_is_about_zero_for_one_distribution_and_rises_with_a_shift() {
        let config = KidConfig { subsets: 20, subset_size: 100, seed: 3 };
        let y = random(400, 8, 0.0, 7);
        let y = FeatureSet::of_flat(&y, 8).unwrap();
        let of_shift = |shift| {
            let x = random(500, 8, shift, 8);
            kernel_distance(&FeatureSet::of_flat(&x, 8).unwrap(), &y, &config).unwrap()
        };
        let (same, near, far) = (of_shift(0.0), of_shift(0.3), of_shift(0.6));
        assert!(same.mean.abs() < 3.0 * same.std && same.std > 0.0, "{same:?}");
        assert!(same.mean < near.mean && near.mean < far.mean);
        assert!(same.notes().is_empty());
        let other_seed = KidConfig { seed: 4, ..config };
        let x = random(500, 8, 0.3, 8);
        let x = FeatureSet::of_flat(&x, 8).unwrap();
        assert_ne!(kernel_distance(&x, &y, &other_seed).unwrap(), near);
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, y) = (random(700, 6, 0.1, 1), random(600, 6, 0.0, 2));
        let (x, y) = (FeatureSet::of_flat(&x, 6).unwrap(), FeatureSet::of_flat(&y, 6).unwrap());
        for config in [KidConfig { subsets: 3, subset_size: 50, seed: 0 }, KidConfig::default()] {
            let of = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| kernel_distance(&x, &y, &config).unwrap())
            };
            assert_eq!(of(1), of(2));
            assert_eq!(of(1), of(3));
        }
    }

    #[test]
    fn too_few_pictures_subsets_and_other_dimensions_are_refused() {
        let (one, two, wide) = ([0.0f32], [0.0f32, 1.0], [0.0f32; 4]);
        let one = FeatureSet::of_flat(&one, 1).unwrap();
        let two = FeatureSet::of_flat(&two, 1).unwrap();
        let wide = FeatureSet::of_flat(&wide, 2).unwrap();
        let config = KidConfig::default();
        let error = kernel_distance(&one, &two, &config).unwrap_err();
        assert!(matches!(error, EvalError::TooFew { count: 1 }));
        let none = KidConfig { subsets: 0, ..config.clone() };
        let error = kernel_distance(&two, &two, &none).unwrap_err();
        assert!(matches!(error, EvalError::TooFew { count: 0 }));
        let error = kernel_distance(&wide, &two, &config).unwrap_err();
        assert!(matches!(error, EvalError::Dimensions { left: 2, right: 1 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_is_symmetric(seed in 0u64..1000, m in 2usize..30, dim in 1usize..5) {
            let (x, y) = (random(m, dim, 0.2, seed), random(m, dim, 0.0, seed + 1));
            let x = FeatureSet::of_flat(&x, dim).unwrap();
            let y = FeatureSet::of_flat(&y, dim).unwrap();
            let config = KidConfig::default();
            let there = kernel_distance(&x, &y, &config).unwrap().mean;
            let back = kernel_distance(&y, &x, &config).unwrap().mean;
            prop_assert!((there - back).abs() < 1e-12);
        }
    }
}
