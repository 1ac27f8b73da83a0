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

/// Tiles up to which the work is shared out by columns.
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
        if images * tiling.down * tiling.across <= FEW_TILES {
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
    /// With few tiles most of the memory is the weights: each panel of columns transforms its own
    /// and uses them at once, while they are in the cache.
    ///
    /// # Safety
    /// As for [`convolve`].
    unsafe fn by_columns(&self) {
        let (tiling, depth, width) = (&self.tiling, self.weights.depth(), panel_width());
        let rows = self.images * tiling.down;
        let layout = Layout::rows(rows * tiling.across, padded(depth));
        let mut v = Scratch::new(tiling.size.points() * layout.point);
        let v_out = SharedOutput::new(&mut v);
        let parts = rows.min(4 * rayon::current_num_threads());
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(rows, parts, part);
            let first = rows.start * tiling.across;
            // SAFETY: every part has its own tiles.
            unsafe { tiling.transform(Operand::Input, self.x, depth, rows, v_out, layout, first) };
        });
        let columns = self.weights.columns();
        (0..columns.div_ceil(width)).into_par_iter().for_each(|panel| {
            let point = spread(depth * width);
            let mut u = Scratch::new(tiling.size.points() * point);
            let columns = panel * width..columns.min((panel + 1) * width);
            // SAFETY: `u` is this task's own and holds all k at every point; the caller's promise,
            // and every task has its own columns.
            unsafe {
                self.weights.transform(tiling.size, panel, 0..depth, u.as_mut_ptr(), point);
                self.multiply(&v, layout, 0..rows, columns, &u, point);
            }
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
        let parts = row_parts(tiling, rows, padded(depth) + padded(columns));
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(rows, parts, part);
            let layout = Layout::rows(rows.len() * tiling.across, padded(depth));
            let mut v = Scratch::new(tiling.size.points() * layout.point);
            let v_out = SharedOutput::new(&mut v);
            // SAFETY: `v` is this task's own; the caller's promise, and every task has its own rows.
            unsafe {
                let input = Operand::Input;
                tiling.transform(input, self.x, depth, rows.clone(), v_out, layout, 0);
                self.multiply(&v, layout, rows, 0..columns, &u, u_point);
            }
        });
    }

    /// A^T [V U] A + bias of the tile rows in `v` and some columns, whose transformed weights stand
    /// in `u` as `[point][panel][k][column]`, points `u_point` apart.
    ///
    /// # Safety
    /// Nobody else may touch that part of y meanwhile.
    unsafe fn multiply(
        &self,
        v: &[f32],
        layout: Layout,
        rows: Range<usize>,
        columns: Range<usize>,
        u: &[f32],
        u_point: usize,
    ) {
        let Self { tiling, weights, .. } = self;
        let (size, width) = (tiling.size, panel_width());
        let tiles = rows.len() * tiling.across;
        let depth = weights.depth();
        let mp = columns.len().next_multiple_of(16);
        let m_point = spread(tiles * mp);
        let mut m = Scratch::new(size.points() * m_point);
        for (point, m) in m.chunks_exact_mut(m_point).enumerate() {
            let product = Product {
                a: &v[point * layout.point..][..layout.point],
                rows: Rows::Every { stride: layout.tile, count: tiles },
                a_step: 1,
                b: &u[point * u_point..][..u_point],
                b_panel: depth * width,
                b_step: width,
                runs: WHOLE,
                run_len: depth,
                columns: columns.len(),
                start: Start::Zero,
                relu: false,
            };
            product.write(m, mp);
        }
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
            unsafe { output_tiles(size, &m, m_point, first_tile, mp, &places, &offset, &mut out) };
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

/// Into how many parts to cut `rows` rows of tiles.
fn row_parts(tiling: &Tiling, rows: usize, channels: usize) -> usize {
    // A part's transformed input and output should stay in the second-level cache; but the weights
    // are read once per part, which fewer than a dozen tiles do not repay.
    const CACHE: usize = 700 << 10;
    let tiles = (CACHE / (4 * tiling.size.points() * channels)).clamp(12, 48);
    let threads = rayon::current_num_threads();
    let parts = (rows * tiling.across).div_ceil(tiles).clamp(1, rows.max(1));
    if parts >= 4 * threads { parts } else { parts.next_multiple_of(threads).min(rows.max(1)) }
}
