//! dW = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G.

use super::super::buffer::{Scratch, SharedOutput};
use super::super::conv::{ConvShape, padded, spread};
use super::super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::super::transpose::pixels_to_planes;
use super::Size;
use super::tiles::weight_gradient_tiles;
use super::tiling::{Layout, Operand, Tiling};
use rayon::prelude::*;

/// Input channels of one task.
const ROWS: usize = 24;
/// Panels of output channels of one task: what it sums at all points stays in its cache.
const PANELS: usize = 4;

/// The gradient of the weight, `[c_out, c_in, 3, 3]`.
pub(crate) fn weight_gradient(
    size: Size,
    s: &ConvShape,
    x: &[f32],
    dy: &[f32],
    dweight: &mut [f32],
) {
    let tiling = Tiling::new(size, [s.h, s.w]);
    let points = size.points();
    // Rows of tiles in turn, so that the transformed copies stay within a few tens of megabytes.
    let rows = s.images * tiling.down;
    let floats = points * tiling.across * (padded(s.c_in) + padded(s.c_out));
    let at_once = ((8 << 20) / floats.max(1)).clamp(1, rows.max(1));
    let v_layout = Layout::panels(at_once * tiling.across, s.c_in);
    let z_layout = Layout::panels(at_once * tiling.across, s.c_out);
    let mut v = Scratch::new(points * v_layout.point);
    let mut z = Scratch::new(points * z_layout.point);
    if rows == 0 {
        dweight.fill(0.0);
    }
    let mut more = Vec::new();
    for start in (0..rows).step_by(at_once) {
        let n = at_once.min(rows - start);
        let (v_out, z_out) = (SharedOutput::new(&mut v), SharedOutput::new(&mut z));
        let parts = n.min(4 * rayon::current_num_threads());
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(n, parts, part);
            let first = rows.start * tiling.across;
            let rows = start + rows.start..start + rows.end;
            // SAFETY: every part has its own tiles.
            unsafe {
                let input = Operand::Input;
                tiling.transform(input, x, s.c_in, rows.clone(), v_out, v_layout, first);
                let gradient = Operand::OutputGradient;
                tiling.transform(gradient, dy, s.c_out, rows, z_out, z_layout, first);
            }
        });
        let tiles = n * tiling.across;
        let operands = Operands { size, v: &v, v_layout, z: &z, z_layout, tiles };
        if start == 0 {
            operands.multiply(s, dweight);
        } else {
            more.resize(dweight.len(), 0.0);
            operands.multiply(s, &mut more);
            dweight.par_iter_mut().zip(&more).for_each(|(sum, more)| *sum += more);
        }
    }
}

/// The transformed input and output gradient of some rows of tiles.
struct Operands<'a> {
    size: Size,
    v: &'a [f32],
    v_layout: Layout,
    z: &'a [f32],
    z_layout: Layout,
    tiles: usize,
}

impl Operands<'_> {
    /// Their contribution to dW, written to all of `dweight`.
    fn multiply(&self, s: &ConvShape, dweight: &mut [f32]) {
        let Self { size, v_layout, z_layout, .. } = *self;
        let channels: Vec<usize> = (0..s.c_in).map(|c| v_layout.channel(c)).collect();
        let out = SharedOutput::new(dweight);
        let row_parts = s.c_in.div_ceil(ROWS);
        let columns_of_task = PANELS * panel_width();
        let column_parts = s.c_out.div_ceil(columns_of_task);
        (0..row_parts * column_parts).into_par_iter().for_each(|task| {
            let rows = split(s.c_in, row_parts, task / column_parts);
            let first = task % column_parts * columns_of_task;
            let columns = columns_of_task.min(s.c_out - first);
            let row = columns.next_multiple_of(16);
            let point_len = spread(rows.len() * row);
            let mut du = Scratch::new(size.points() * point_len);
            for (point, du) in du.chunks_exact_mut(point_len).enumerate() {
                let z = &self.z[point * z_layout.point..][..z_layout.point];
                let product = Product {
                    a: &self.v[point * v_layout.point..][..v_layout.point],
                    rows: Rows::At(&channels[rows.clone()]),
                    a_step: v_layout.tile,
                    b: &z[z_layout.channel(first)..],
                    b_panel: z_layout.block,
                    b_step: z_layout.tile,
                    runs: WHOLE,
                    run_len: self.tiles,
                    columns,
                    start: Start::Zero,
                    relu: false,
                };
                product.write(du, row);
            }
            let mut taps = Scratch::new(rows.len() * 9 * 16);
            for block in (0..columns).step_by(16) {
                // SAFETY: every row of `du` has 16 columns from `block` on.
                unsafe {
                    weight_gradient_tiles(size, &du[block..], point_len, row, &mut taps);
                }
                let used = 16.min(columns - block);
                let start = ((first + block) * s.c_in + rows.start) * 9;
                let taps_len = rows.len() * 9;
                let end = start + (used - 1) * s.c_in * 9 + taps_len;
                // SAFETY: in bounds by `pointer`; every task has its own pairs of channels.
                unsafe {
                    let to = out.pointer(start..end);
                    pixels_to_planes(&taps, |p| p * 16, used, taps_len, to, s.c_in * 9);
                }
            }
        });
    }
}
