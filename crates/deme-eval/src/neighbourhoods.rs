//! Precision and recall (Kynkäänniemi et al. 2019) and density and coverage (Naeem et al. 2020): how
//! many generated pictures lie near real ones, and how many real ones are reached. No tensor engine.
//!
//! Near means within the distance to the k-th nearest neighbour of a picture among its own side. All
//! four numbers come from one pass over the distances, tile by tile.

use crate::pairwise::{ProductTile, Tiles, for_each_tile_row};
use crate::{EvalError, FeatureSet};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Whose k-th neighbour bounds a neighbourhood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeighbourConfig {
    /// k of precision and recall; 3 in Kynkäänniemi et al. 2019.
    pub precision_recall_k: usize,
    /// k of density and coverage; 5 in Naeem et al. 2020.
    pub density_coverage_k: usize,
}

impl Default for NeighbourConfig {
    fn default() -> Self {
        Self { precision_recall_k: 3, density_coverage_k: 5 }
    }
}

/// Fidelity and diversity of generated pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NeighbourMetrics {
    /// Share of generated pictures in the neighbourhood of some real one, in [0, 1].
    pub precision: f64,
    /// Share of real pictures in the neighbourhood of some generated one, in [0, 1].
    pub recall: f64,
    /// Mean number of real neighbourhoods a generated picture lies in, over k. About 1 for equal
    /// distributions; it can be larger.
    pub density: f64,
    /// Share of real pictures with a generated one in their neighbourhood, in [0, 1].
    pub coverage: f64,
}

/// Precision, recall, density and coverage.
///
/// A neighbourhood of precision and recall holds its border (Kynkäänniemi et al. 2019, eq. 1); one of
/// density and coverage does not, as in the authors' code. A picture is no neighbour of itself.
///
/// # Errors
/// [`EvalError::Dimensions`]; [`EvalError::Neighbours`] when a side has no k-th neighbour or a k is 0.
pub fn neighbour_metrics(
    generated: &FeatureSet<'_>,
    real: &FeatureSet<'_>,
    config: &NeighbourConfig,
) -> Result<NeighbourMetrics, EvalError> {
    generated.same_dim(real)?;
    let (k, density_k) = (config.precision_recall_k, config.density_coverage_k);
    let furthest = k.max(density_k);
    for (side, k) in [(generated, k), (real, furthest)] {
        if k >= side.len() || config.precision_recall_k.min(density_k) == 0 {
            return Err(EvalError::Neighbours { k, count: side.len() });
        }
    }
    let real_nearest = nearest(real, furthest);
    let radius = |k: usize| real_nearest.iter().map(|near| near[k - 1]).collect::<Vec<f64>>();
    let (real_radius, wide_radius) = (radius(k), radius(density_k));
    let generated_radius: Vec<f64> = nearest(generated, k).iter().map(|near| near[k - 1]).collect();

    let of_tile = |tile: &ProductTile<'_>| {
        let (rows, columns) = (tile.rows.clone(), tile.columns.clone());
        let mut reached = Reached::new(rows.len(), columns.len());
        for (c, j) in columns.enumerate() {
            for (r, i) in rows.clone().enumerate() {
                let distance = tile.squared_distance(r, c);
                reached.near_real[c] |= distance <= real_radius[i];
                reached.near_generated[r] |= distance <= generated_radius[j];
                reached.balls += u64::from(distance < wide_radius[i]);
                reached.covered[r] |= distance < wide_radius[i];
            }
        }
        reached
    };
    let mut near_real = vec![false; generated.len()];
    let (mut balls, mut near_generated, mut covered) = (0, 0, 0);
    for_each_tile_row(real, generated, Tiles::All, of_tile, |rows, row| {
        let mut whole = Reached::new(rows.len(), 0);
        for (columns, tile) in row {
            join(&mut near_real[columns], &tile.near_real);
            join(&mut whole.near_generated, &tile.near_generated);
            join(&mut whole.covered, &tile.covered);
            balls += tile.balls;
        }
        near_generated += count(&whole.near_generated);
        covered += count(&whole.covered);
    });
    let (fakes, reals) = (generated.len() as f64, real.len() as f64);
    Ok(NeighbourMetrics {
        precision: count(&near_real) as f64 / fakes,
        recall: near_generated as f64 / reals,
        density: balls as f64 / (density_k as f64 * fakes),
        coverage: covered as f64 / reals,
    })
}

/// What the pairs of a tile say: rows are real pictures, columns generated ones.
struct Reached {
    near_real: Vec<bool>,
    near_generated: Vec<bool>,
    covered: Vec<bool>,
    balls: u64,
}

impl Reached {
    fn new(rows: usize, columns: usize) -> Self {
        let near_real = vec![false; columns];
        Self { near_real, near_generated: vec![false; rows], covered: vec![false; rows], balls: 0 }
    }
}

fn join(into: &mut [bool], from: &[bool]) {
    into.iter_mut().zip(from).for_each(|(into, from)| *into |= from);
}

fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|flag| **flag).count()
}

/// For each picture the squared distances to its k nearest others, rising.
fn nearest(set: &FeatureSet<'_>, k: usize) -> Vec<Vec<f64>> {
    let of_tile = |tile: &ProductTile<'_>| {
        let (rows, columns) = (tile.rows.clone(), tile.columns.clone());
        let mut of_rows = vec![Nearest::new(k); rows.len()];
        let mut of_columns = vec![Nearest::new(k); columns.len()];
        for (c, j) in columns.enumerate() {
            for (r, i) in rows.clone().enumerate() {
                // The mirror image of a pair belongs to the same tile or to none.
                if i < j {
                    let distance = tile.squared_distance(r, c);
                    of_rows[r].take(distance);
                    of_columns[c].take(distance);
                }
            }
        }
        (of_rows, of_columns)
    };
    let mut all = vec![Nearest::new(k); set.len()];
    let mut join = |range: Range<usize>, found: Vec<Nearest>| {
        for (into, from) in all[range].iter_mut().zip(found) {
            from.distances.iter().for_each(|&distance| into.take(distance));
        }
    };
    for_each_tile_row(set, set, Tiles::Upper, of_tile, |rows, row| {
        for (columns, (of_rows, of_columns)) in row {
            join(rows.clone(), of_rows);
            join(columns, of_columns);
        }
    });
    all.into_iter().map(|nearest| nearest.distances).collect()
}

/// The k smallest distances so far, rising; which are kept does not depend on the order they come in.
#[derive(Debug, Clone)]
struct Nearest {
    k: usize,
    distances: Vec<f64>,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self { k, distances: Vec::with_capacity(k + 1) }
    }

    fn take(&mut self, distance: f64) {
        let full = self.distances.len() == self.k;
        if full && self.distances.last().is_some_and(|&last| distance >= last) {
            return;
        }
        let at = self.distances.partition_point(|&nearer| nearer <= distance);
        self.distances.insert(at, distance);
        self.distances.truncate(self.k);
    }
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

    fn metrics(x: &[f32], y: &[f32], dim: usize, config: &NeighbourConfig) -> NeighbourMetrics {
        let x = FeatureSet::of_flat(x, dim).unwrap();
        neighbour_metrics(&x, &FeatureSet::of_flat(y, dim).unwrap(), config).unwrap()
    }

    /// The definitions, with all distances in memory.
    fn naive(x: &FeatureSet<'_>, y: &FeatureSet<'_>, config: &NeighbourConfig) -> NeighbourMetrics {
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
        };
        let radii = |set: &FeatureSet<'_>, k: usize| -> Vec<f64> {
            let radius = |i: usize| {
                let others = (0..set.len()).filter(|&j| j != i);
                let mut all: Vec<f64> = others.map(|j| distance(set.row(i), set.row(j))).collect();
                all.sort_by(f64::total_cmp);
                all[k - 1]
            };
            (0..set.len()).map(radius).collect()
        };
        let k = config.density_coverage_k;
        let (of_real, of_generated) =
            (radii(y, config.precision_recall_k), radii(x, config.precision_recall_k));
        let wide = radii(y, k);
        let (n, m) = (y.len(), x.len());
        let d = |i: usize, j: usize| distance(y.row(i), x.row(j));
        let share = |hits: usize, all: usize| hits as f64 / all as f64;
        let precise = (0..m).filter(|&j| (0..n).any(|i| d(i, j) <= of_real[i])).count();
        let recalled = (0..n).filter(|&i| (0..m).any(|j| d(i, j) <= of_generated[j])).count();
        let balls: usize = (0..m).map(|j| (0..n).filter(|&i| d(i, j) < wide[i]).count()).sum();
        let covered = (0..n).filter(|&i| (0..m).any(|j| d(i, j) < wide[i])).count();
        NeighbourMetrics {
            precision: share(precise, m),
            recall: share(recalled, n),
            density: share(balls, k * m),
            coverage: share(covered, n),
        }
    }

    #[test]
    fn tiles_give_the_definition() {
        let (x, y) = (random(300, 4, 0.4, 1), random(520, 4, 0.0, 2));
        let (x, y) = (FeatureSet::of_flat(&x, 4).unwrap(), FeatureSet::of_flat(&y, 4).unwrap());
        let other = NeighbourConfig { precision_recall_k: 7, density_coverage_k: 2 };
        for config in [NeighbourConfig::default(), other] {
            let found = neighbour_metrics(&x, &y, &config).unwrap();
            assert_eq!(found, naive(&x, &y, &config));
            assert!(found.precision < 1.0 && found.recall < 1.0 && found.coverage < 1.0);
        }
    }

    #[test]
    fn a_set_against_itself_is_precise_and_covered_and_far_sets_are_neither() {
        let x = random(300, 3, 0.0, 5);
        let same = metrics(&x, &x, 3, &NeighbourConfig::default());
        assert_eq!((same.precision, same.recall, same.coverage), (1.0, 1.0, 1.0));
        // Each picture, and its 4 neighbours nearer than the fifth.
        assert_eq!(same.density, 1.0);
        let far = metrics(&x, &random(200, 3, 50.0, 6), 3, &NeighbourConfig::default());
        let zero = NeighbourMetrics { precision: 0.0, recall: 0.0, density: 0.0, coverage: 0.0 };
        assert_eq!(far, zero);
    }

    #[test]
    fn points_on_a_line_by_hand() {
        // Real 0, 1, 3, 7 with k = 1: radii 1, 1, 2, 4. Generated 2, 8, 20: radii 6, 6, 12.
        let config = NeighbourConfig { precision_recall_k: 1, density_coverage_k: 1 };
        let found = metrics(&[2.0, 8.0, 20.0], &[0.0, 1.0, 3.0, 7.0], 1, &config);
        // 2 is within reach of 1 (on its border) and 3, 8 of 7, 20 of none.
        assert_eq!(found.precision, 2.0 / 3.0);
        assert_eq!(found.recall, 1.0);
        // Without borders: 2 in the ball of 3, 8 in that of 7.
        assert_eq!(found.density, 2.0 / 3.0);
        assert_eq!(found.coverage, 0.5);
    }

    #[test]
    fn copies_of_one_picture_are_at_distance_zero() {
        // Six copies of each of 50 real pictures: their radii are 0, and only copies lie within.
        let pictures = random(50, 40, 0.3, 7);
        let real: Vec<f32> = (0..6).flat_map(|_| pictures.clone()).collect();
        let found = metrics(&pictures, &real, 40, &NeighbourConfig::default());
        assert_eq!((found.precision, found.density, found.coverage), (1.0, 0.0, 0.0));
        let others = metrics(&random(50, 40, 0.3, 8), &real, 40, &NeighbourConfig::default());
        assert_eq!(others.precision, 0.0);
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, y) = (random(700, 6, 0.1, 1), random(600, 6, 0.0, 2));
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| metrics(&x, &y, 6, &NeighbourConfig::default()))
        };
        assert_eq!(of(1), of(2));
        assert_eq!(of(1), of(3));
    }

    #[test]
    fn sides_without_enough_neighbours_are_refused() {
        let (x, y) = (random(3, 2, 0.0, 1), random(9, 2, 0.0, 2));
        let (x, y) = (FeatureSet::of_flat(&x, 2).unwrap(), FeatureSet::of_flat(&y, 2).unwrap());
        let config = NeighbourConfig::default();
        let error = neighbour_metrics(&x, &y, &config).unwrap_err();
        assert!(matches!(error, EvalError::Neighbours { k: 3, count: 3 }));
        let error = neighbour_metrics(&y, &x, &config).unwrap_err();
        assert!(matches!(error, EvalError::Neighbours { k: 5, count: 3 }));
        let zero = NeighbourConfig { precision_recall_k: 0, ..config };
        assert!(neighbour_metrics(&y, &y, &zero).is_err());
        let wide = random(9, 1, 0.0, 1);
        let wide = FeatureSet::of_flat(&wide, 1).unwrap();
        let error = neighbour_metrics(&wide, &y, &NeighbourConfig::default()).unwrap_err();
        assert!(matches!(error, EvalError::Dimensions { left: 1, right: 2 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whole_numbers_with_ties_give_the_definition(
            x in prop::collection::vec(0u8..5, 12..40),
            y in prop::collection::vec(0u8..5, 12..40),
        ) {
            // Small whole numbers: equal distances and equal pictures are frequent, and exact.
            let flat = |v: &[u8]| -> Vec<f32> {
                v[..v.len() / 2 * 2].iter().map(|&x| f32::from(x)).collect()
            };
            let (x, y) = (flat(&x), flat(&y));
            let (x, y) = (FeatureSet::of_flat(&x, 2).unwrap(), FeatureSet::of_flat(&y, 2).unwrap());
            let config = NeighbourConfig::default();
            prop_assert_eq!(neighbour_metrics(&x, &y, &config).unwrap(), naive(&x, &y, &config));
        }
    }
}
