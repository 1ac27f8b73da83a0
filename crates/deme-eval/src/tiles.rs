//! Sharing a large matrix between threads in tiles of fixed size, so that each entry is computed in
//! the same way on any number of them. No tensor engine.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile; those at the edges are smaller.
const TILE: usize = 256;

/// Calls `task` for every tile with its rows, its columns and the tile itself, on all threads.
pub(crate) fn for_each_tile(
    matrix: MatMut<'_, f64>,
    task: impl Fn(Range<usize>, Range<usize>, MatMut<'_, f64>) + Sync,
) {
    let mut tiles = Vec::new();
    let mut right = matrix;
    let mut column = 0;
    while right.ncols() > 0 {
        let width = TILE.min(right.ncols());
        let (mut below, rest) = right.split_at_col_mut(width);
        let mut row = 0;
        while below.nrows() > 0 {
            let height = TILE.min(below.nrows());
            let (tile, rest) = below.split_at_row_mut(height);
            tiles.push((row..row + height, column..column + width, tile));
            (below, row) = (rest, row + height);
        }
        (right, column) = (rest, column + width);
    }
    tiles.into_par_iter().for_each(|(rows, columns, tile)| task(rows, columns, tile));
}

/// `left * right`.
pub(crate) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    for_each_tile(out.as_mut(), |rows, columns, tile| {
        let left = left.subrows(rows.start, rows.len());
        let right = right.subcols(columns.start, columns.len());
        matmul(tile, Accum::Replace, left, right, 1.0, Par::Seq);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_in_one_tile() {
        let mut seen = Mat::zeros(2 * TILE + 3, TILE + 1);
        for_each_tile(seen.as_mut(), |rows, columns, mut tile| {
            for (j, column) in columns.enumerate() {
                for (i, row) in rows.clone().enumerate() {
                    tile[(i, j)] += (1000 * row + column) as f64;
                }
            }
        });
        assert_eq!(seen, Mat::from_fn(2 * TILE + 3, TILE + 1, |i, j| (1000 * i + j) as f64));
    }

    #[test]
    fn products_are_sums_over_the_inner_index() {
        let left = Mat::from_fn(300, 5, |i, k| (i + 2 * k) as f64);
        let right = Mat::from_fn(5, 270, |k, j| (3 * k) as f64 - j as f64);
        let expected = Mat::from_fn(300, 270, |i, j| {
            (0..5).map(|k| left[(i, k)] * right[(k, j)]).sum::<f64>()
        });
        assert_eq!(product(left.as_ref(), right.as_ref()), expected);
    }
}
