//! 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2016):
//! Y = A^T [(G g G^T) * (B^T d B)] A on tiles of 2x2 or 4x4 outputs.
//!
//! A tile of 4x4 needs 36 products in place of 144, of 2x2 16 in place of 36. Vectors run along
//! the channels in every step, so that small maps use them as well as large ones.

mod tiles;
mod tiling;
pub(super) mod transform;
mod weight_gradient;
mod weights;

use super::buffer::{Scratch, SharedOutput};
use super::conv::{padded, spread};
use super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::transpose::pixels_to_planes;
use rayon::prelude::*;
use std::ops::Range;
use tiles::output_tiles;
use tiling::{Layout, Operand, Tiling};

pub(crate) use weight_gradient::weight_gradient;
pub(crate) use weights::Weights;

/// Outputs of one tile in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// F(2x2, 3x3): error near that of the definition.
    Two,
    /// F(4x4, 3x3): relative error of a few 1e-6 (rms).
    Four,
}

impl Size {
    pub(crate) fn out(self) -> usize {
        match self {
            Size::Two => 2,
            Size::Four => 4,
        }
    }

    fn input(self) -> usize {
        self.out() + 2
    }

    /// Products per tile and pair of channels.
    pub(crate) fn points(self) -> usize {
        self.input() * self.input()
    }
}

/// Tiles up to which the work is always shared out by columns.
const FEW_TILES: usize = 96;

/// conv(x) by `weights`; x and y have the same `map`.
///
/// # Safety
/// Nobody else may touch `y` meanwhile. On return all of it is written.
pub(crate) unsafe fn convolve(
    size: Size,
    images: usize,
    map: [usize; 2],
    x: &[f32],
    weights: &Weights<'_>,
    bias: Option<&[f32]>,
    y: SharedOutput<'_>,
) {
    assert_eq!(weights.values.len(), weights.c_in * weights.c_out * 9);
    let tiling = Tiling::new(size, map);
    let convolution = Convolution { tiling, images, weights, x, bias, y };
    // SAFETY: the caller's promise.
    unsafe {
        if by_columns(size, images * tiling.down * tiling.across, weights) {
            convolution.by_columns();
        } else {
            convolution.by_rows();
        }
    }
}

/// One call of [`convolve`].
struct Convolution<'a> {
    tiling: Tiling,
    images: usize,
    weights: &'a Weights<'a>,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    y: SharedOutput<'a>,
}

impl Convolution<'_> {
    /// With few tiles most of the memory is the weights: each group of panels of columns transforms its own, part
    /// of the depth after part, and uses them at once, while they are in the cache.
    ///
    /// # Safety
    /// As for [`convolve`].
    unsafe fn by_columns(&self) {
        let (tiling, depth, width) = (&self.tiling, self.weights.depth(), panel_width());
        let points = tiling.size.points();
        let rows = self.images * tiling.down;
        let tiles = rows * tiling.across;
        let layout = Layout::rows(tiles, padded(depth));
        let mut v = Scratch::new(points * layout.point);
        let v_out = SharedOutput::new(&mut v);
        let parts = rows.min(4 * rayon::current_num_threads());
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(rows, parts, part);
            let first = rows.start * tiling.across;
            // SAFETY: every part has its own tiles.
            unsafe { tiling.transform(Operand::Input, self.x, depth, rows, v_out, layout, first) };
        });
        let columns = self.weights.columns();
        let panels = columns.div_ceil(width);
        let group = panels_at_once(tiles, panels);
        (0..panels.div_ceil(group)).into_par_iter().for_each(|task| {
            let panels = task * group..panels.min((task + 1) * group);
            let columns = panels.start * width..columns.min(panels.end * width);
            let u_point = spread(panels.len() * DEPTH_AT_ONCE.min(depth) * width);
            let mut u = Scratch::new(points * u_point);
            let mut m = Products::room(tiling.size, tiles, columns.len());
            for start in (0..depth).step_by(DEPTH_AT_ONCE) {
                let ks = start..depth.min(start + DEPTH_AT_ONCE);
                for (i, panel) in panels.clone().enumerate() {
                    let to = u[i * ks.len() * width..].as_mut_ptr();
                    // SAFETY: `u` has room for these k of all the group's panels at every point.
                    unsafe { self.weights.transform(tiling.size, panel, ks.clone(), to, u_point) };
                }
                m.add(&v, layout, ks, &u, u_point);
            }
            // SAFETY: the caller's promise, and every task has its own columns.
            unsafe { self.write(&m, 0..rows, columns) };
        });
    }

    /// With many tiles each task takes some rows of them through all steps; the weights are
    /// transformed once before.
    ///
    /// # Safety
    /// As for [`convolve`].
    unsafe fn by_rows(&self) {
        let (tiling, depth) = (&self.tiling, self.weights.depth());
        let columns = self.weights.columns();
        let (u, u_point) = self.weights.transform_all(tiling.size);
        let rows = self.images * tiling.down;
        let parts = row_parts(tiling, rows, depth, columns);
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(rows, parts, part);
            let layout = Layout::rows(rows.len() * tiling.across, padded(depth));
            let mut v = Scratch::new(tiling.size.points() * layout.point);
            let v_out = SharedOutput::new(&mut v);
            let mut m = Products::room(tiling.size, rows.len() * tiling.across, columns);
            // SAFETY: `v` is this task's own; the caller's promise, and every task has its own rows.
            unsafe {
                let input = Operand::Input;
                tiling.transform(input, self.x, depth, rows.clone(), v_out, layout, 0);
                m.add(&v, layout, 0..depth, &u, u_point);
                self.write(&m, rows, 0..columns);
            }
        });
    }

    /// A^T m A + bias of some tile rows and columns.
    ///
    /// # Safety
    /// Nobody else may touch that part of y meanwhile.
    unsafe fn write(&self, m: &Products, rows: Range<usize>, columns: Range<usize>) {
        let Self { tiling, weights, .. } = self;
        let (size, mp) = (tiling.size, m.tile);
        let mut offset = vec![0.0; mp];
        if let Some(bias) = self.bias {
            offset[..columns.len()].copy_from_slice(&bias[columns.clone()]);
        }
        let [h, w] = tiling.map;
        for part in tiling.images_of(rows) {
            let range = tiling.output_rows(&part.rows);
            let pixels = range.len() * w;
            let mut out = Scratch::new((pixels + 1) * mp);
            let places = tiling.output_places(&part.rows, mp);
            let first_tile = part.first_tile;
            // SAFETY: the slices have the lengths that `output_tiles` asks for.
            unsafe {
                output_tiles(size, &m.sums, m.point, first_tile, mp, &places, &offset, &mut out)
            };
            let plane = part.image * weights.columns() + columns.start;
            let first = plane * h * w + range.start * w;
            let end = first + (columns.len() - 1) * h * w + pixels;
            // SAFETY: in bounds by `pointer`; the caller's promise.
            unsafe {
                let to = self.y.pointer(first..end);
                pixels_to_planes(&out, |p| p * mp, columns.len(), pixels, to, h * w);
            }
        }
    }
}

/// V U of some tiles and columns, `[point][tile][column]`.
struct Products {
    sums: Scratch,
    points: usize,
    tiles: usize,
    columns: usize,
    /// Distance of two points.
    point: usize,
    /// Distance of two tiles: the columns in whole registers.
    tile: usize,
}

impl Products {
    /// Room for the sums, which begin with the first [`Self::add`].
    fn room(size: Size, tiles: usize, columns: usize) -> Self {
        let (points, tile) = (size.points(), columns.next_multiple_of(16));
        let point = spread(tiles * tile);
        Self { sums: Scratch::new(points * point), points, tiles, columns, point, tile }
    }

    /// Adds the terms `ks`, the next ones: of the tiles in `v`, and of transformed weights in `u` as
    /// `[point][panel][k][column]`, points `u_point` apart, which hold these k only.
    fn add(&mut self, v: &[f32], layout: Layout, ks: Range<usize>, u: &[f32], u_point: usize) {
        let width = panel_width();
        let sums = self.sums.chunks_exact_mut(self.point).take(self.points);
        for (point, sums) in sums.enumerate() {
            let product = Product {
                a: &v[point * layout.point..][..layout.point][ks.start..],
                rows: Rows::Every { stride: layout.tile, count: self.tiles },
                a_step: 1,
                b: &u[point * u_point..][..u_point],
                b_panel: ks.len() * width,
                b_step: width,
                runs: WHOLE,
                run_len: ks.len(),
                columns: self.columns,
                start: if ks.start == 0 { Start::Zero } else { Start::Existing },
                relu: false,
            };
            product.write(sums, self.tile);
        }
    }
}

/// Terms of the depth whose weights are transformed at once.
const DEPTH_AT_ONCE: usize = 128;

/// Panels of columns of one task: the more tiles there are, the more their rereading costs.
fn panels_at_once(tiles: usize, panels: usize) -> usize {
    let most = panels / (2 * rayon::current_num_threads());
    (tiles / 16).clamp(1, 4).min(most.max(1))
}

/// Whether the work is shared out by columns. Rows would read all transformed weights once per part: with weights
/// beyond the cache columns are better up to many tiles.
fn by_columns(size: Size, tiles: usize, weights: &Weights<'_>) -> bool {
    const CACHE: usize = 16 << 20;
    let bytes = 4 * size.points() * weights.depth() * weights.columns();
    tiles <= FEW_TILES || bytes > CACHE && tiles <= 2 * weights.columns()
}

/// Into how many parts to cut `rows` rows of tiles.
fn row_parts(tiling: &Tiling, rows: usize, depth: usize, columns: usize) -> usize {
    // A part's transformed input and output should stay in the second-level cache; but the weights
    // are read once per part, which must be worth it: for a dozen tiles, or until the part itself is as large.
    const CACHE: usize = 700 << 10;
    const MOST: usize = 48;
    let channels = padded(depth) + padded(columns);
    let least = (depth * columns / (2 * channels)).clamp(12, MOST);
    let tiles = (CACHE / (4 * tiling.size.points() * channels)).clamp(least, MOST);
    let threads = rayon::current_num_threads();
    let parts = (rows * tiling.across).div_ceil(tiles).clamp(1, rows.max(1));
    if parts >= 4 * threads { parts } else { parts.next_multiple_of(threads).min(rows.max(1)) }
}
