//! Encoding and decoding in overlapping tiles, as diffusers' `enable_vae_tiling`: less memory for large images.
//!
//! It is **not exact**: norms and attention see a tile, not the image, and the seams are blended.

use burn::tensor::{Tensor, TensorData};

/// How far neighbouring tiles overlap, as a share of a tile.
const OVERLAP: f64 = 0.25;

/// `map` on tiles of `tile_in`, each giving a tile of `tile_out` in the same proportion, blended linearly where
/// they overlap.
///
/// # Shapes
/// x: `[B, C, H, W]`; tile_in, tile_out: sides of a square tile.
pub(super) fn in_tiles(
    x: Tensor<4>,
    tile_in: usize,
    tile_out: usize,
    map: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    let stride = share(tile_in, 1.0 - OVERLAP).max(1);
    let blended = share(tile_out, OVERLAP);
    let kept = tile_out - blended;
    let mut rows: Vec<Tensor<4>> = Vec::new();
    // Tiles after blending: a tile is blended with what its neighbours became, not with what they were.
    let mut above: Vec<Tensor<4>> = Vec::new();
    for top in (0..h).step_by(stride) {
        let mut row: Vec<Tensor<4>> = Vec::new();
        for left in (0..w).step_by(stride) {
            let tile = x.clone().narrow(2, top, tile_in.min(h - top)).narrow(
                3,
                left,
                tile_in.min(w - left),
            );
            let mut tile = map(tile);
            if let Some(above) = above.get(row.len()) {
                tile = blend(above.clone(), tile, 2, blended);
            }
            if let Some(before) = row.last() {
                tile = blend(before.clone(), tile, 3, blended);
            }
            row.push(tile);
        }
        let kept_of = |tile: &Tensor<4>| {
            let [_, _, h, w] = tile.dims();
            tile.clone().narrow(2, 0, kept.min(h)).narrow(3, 0, kept.min(w))
        };
        rows.push(Tensor::cat(row.iter().map(kept_of).collect(), 3));
        above = row;
    }
    Tensor::cat(rows, 2)
}

/// A share of a tile in whole pixels, rounded downwards.
fn share(tile: usize, share: f64) -> usize {
    (tile as f64 * share) as usize
}

/// `after` with its first rows or columns going over linearly from the last ones of `before`: entry i of n is
/// `(1 - i / n) before + i / n after`.
fn blend(before: Tensor<4>, after: Tensor<4>, dim: usize, extent: usize) -> Tensor<4> {
    let (len_before, len_after) = (before.dims()[dim], after.dims()[dim]);
    let n = extent.min(len_before).min(len_after);
    if n == 0 {
        return after;
    }
    let weights: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
    let mut shape = [1; 4];
    shape[dim] = n;
    let weights = Tensor::from_data(TensorData::new(weights, shape), &after.device());
    let first = after.clone().narrow(dim, 0, n);
    let seam = before.narrow(dim, len_before - n, n) * (1.0 - weights.clone()) + first * weights;
    match len_after - n {
        0 => seam,
        rest => Tensor::cat(vec![seam, after.narrow(dim, n, rest)], dim),
    }
}
