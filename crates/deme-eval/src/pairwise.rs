//! Products of every feature of one set with every feature of another, a tile at a time: N x N values
//! are never in memory together. No tensor engine.

use crate::FeatureSet;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Pictures of each side in a tile.
pub(crate) const TILE: usize = 256;

/// Share of the squared lengths below which their difference is rounding. Features are f32: what differs
/// at all differs by more, unless only in its smallest entries.
const CANCELLED: f64 = 1e-13;

/// Which tiles are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tiles {
    /// All pairs.
    All,
    /// Of a set with itself, those that hold pairs i <= j: what lies below is the mirror image.
    Upper,
}

/// Scalar products of the pictures `rows` of x with the pictures `columns` of y, and the squares of
/// their lengths.
pub(crate) struct ProductTile<'t> {
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    products: Mat<f64>,
    row_squares: &'t [f64],
    column_squares: Vec<f64>,
}

impl ProductTile<'_> {
    /// Scalar product, both counted from the tile's corner.
    pub(crate) fn product(&self, row: usize, column: usize) -> f64 {
        self.products[(row, column)]
    }

    /// Squared distance, both counted from the tile's corner. Of equal features it is exactly 0.
    pub(crate) fn squared_distance(&self, row: usize, column: usize) -> f64 {
        let squares = self.row_squares[row] + self.column_squares[column];
        let distance = squares - 2.0 * self.products[(row, column)];
        if distance > CANCELLED * squares { distance } else { 0.0 }
    }
}

/// Takes tiles row by row: each row's tiles are reduced by `map` on all threads, and the results are
/// given to `take` from left to right. So what `take` gathers has one order on any number of threads.
pub(crate) fn for_each_tile_row<R: Send>(
    x: &FeatureSet<'_>,
    y: &FeatureSet<'_>,
    tiles: Tiles,
    map: impl Fn(&ProductTile<'_>) -> R + Sync,
    mut take: impl FnMut(Range<usize>, Vec<(Range<usize>, R)>),
) {
    for start in (0..x.len()).step_by(TILE) {
        let rows = start..(start + TILE).min(x.len());
        let left = x.columns(rows.clone());
        let row_squares = squared_lengths(&left);
        let first = if tiles == Tiles::Upper { start } else { 0 };
        let starts: Vec<usize> = (first..y.len()).step_by(TILE).collect();
        let reduced = starts.into_par_iter().map(|start| {
            let columns = start..(start + TILE).min(y.len());
            let right = y.columns(columns.clone());
            let mut products = Mat::zeros(rows.len(), columns.len());
            matmul(&mut products, Accum::Replace, left.transpose(), &right, 1.0, Par::Seq);
            let tile = ProductTile {
                rows: rows.clone(),
                columns: columns.clone(),
                products,
                row_squares: &row_squares,
                column_squares: squared_lengths(&right),
            };
            (columns, map(&tile))
        });
        let reduced: Vec<_> = reduced.collect();
        take(rows, reduced);
    }
}

fn squared_lengths(columns: &Mat<f64>) -> Vec<f64> {
    columns.col_iter().map(|column| column.iter().map(|x| x * x).sum()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count * 3).map(|k| ((k * k + 7 * k) % 23) as f32).collect()
    }

    #[test]
    fn every_pair_is_visited_once() {
        let (x, y) = (values(2 * TILE + 5), values(TILE + 1));
        let (x, y) = (FeatureSet::of_flat(&x, 3).unwrap(), FeatureSet::of_flat(&y, 3).unwrap());
        let mut seen = vec![0; x.len() * y.len()];
        let map = |tile: &ProductTile<'_>| {
            let mut right = true;
            for (r, i) in tile.rows.clone().enumerate() {
                for (c, j) in tile.columns.clone().enumerate() {
                    let pairs = x.row(i).iter().zip(y.row(j));
                    let (mut product, mut distance) = (0.0, 0.0);
                    for (&a, &b) in pairs {
                        product += f64::from(a) * f64::from(b);
                        distance += f64::from(a - b).powi(2);
                    }
                    right &= tile.product(r, c) == product;
                    right &= tile.squared_distance(r, c) == distance;
                }
            }
            right
        };
        for_each_tile_row(&x, &y, Tiles::All, map, |rows, tiles| {
            for (columns, right) in tiles {
                assert!(right);
                for i in rows.clone() {
                    columns.clone().for_each(|j| seen[i * y.len() + j] += 1);
                }
            }
        });
        assert!(seen.iter().all(|&times| times == 1));
    }

    #[test]
    fn equal_features_are_at_distance_zero_and_others_are_not() {
        // Entries whose squares are not exact, in sums that are taken in different orders.
        let x: Vec<f32> = (0..30 * 900).map(|k| (k as f32 * 0.7).sin() * 3.3).collect();
        let x = FeatureSet::of_flat(&x, 900).unwrap();
        let right = |tile: &ProductTile<'_>| {
            let pairs = (0..30).flat_map(|r| (0..30).map(move |c| (r, c)));
            pairs.into_iter().all(|(r, c)| (tile.squared_distance(r, c) == 0.0) == (r == c))
        };
        for_each_tile_row(&x, &x, Tiles::All, right, |_, tiles| assert!(tiles[0].1));
    }

    #[test]
    fn the_upper_tiles_hold_every_pair_once_with_i_up_to_j() {
        let x = values(2 * TILE + 5);
        let x = FeatureSet::of_flat(&x, 3).unwrap();
        let mut seen = vec![0; x.len() * x.len()];
        for_each_tile_row(
            &x,
            &x,
            Tiles::Upper,
            |_| (),
            |rows, tiles| {
                for (columns, ()) in tiles {
                    for i in rows.clone() {
                        columns.clone().for_each(|j| seen[i * x.len() + j] += 1);
                    }
                }
            },
        );
        for i in 0..x.len() {
            assert!((i..x.len()).all(|j| seen[i * x.len() + j] == 1));
        }
    }
}
