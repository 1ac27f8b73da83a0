//! 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2016):
//! Y = A^T [(G g G^T) * (B^T d B)] A on tiles of 2x2 or 4x4 outputs.
//!
//! A tile of 4x4 needs 36 products in place of 144, of 2x2 16 in place of 36. Vectors run along
//! the channels in every step, so that small maps use them as well as large ones.

mod tiles;
mod transform;

use super::buffer::{Scratch, SharedOutput};
use super::conv::{ConvShape, padded, spread};
use super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::transpose::{pixels_to_planes, planes_to_pixels};
use rayon::prelude::*;
use std::ops::Range;
use tiles::{gradient_tiles, input_tiles, output_tiles, weight_gradient_tile, weight_tile};

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

/// G g G^T of every pair of channels, as `[point][panel][k][column]`.
///
/// Forward the columns are the weight's output channels. `rotated` gives the convolution of the
/// input gradient: the columns are the input channels and the kernel is turned by half a turn.
pub(crate) fn transform_weights(
    size: Size,
    weight: &[f32],
    c_in: usize,
    c_out: usize,
    rotated: bool,
) -> Scratch {
    assert_eq!(weight.len(), c_in * c_out * 9);
    let (depth, columns) = if rotated { (c_out, c_in) } else { (c_in, c_out) };
    let (k_stride, column_stride) = if rotated { (c_in * 9, 9) } else { (9, c_in * 9) };
    let width = panel_width();
    let panels = columns.div_ceil(width);
    let point = spread(panels * depth * width);
    let mut u = Scratch::new(size.points() * point);
    let out = SharedOutput::new(&mut u);
    let parts = depth.div_ceil(16);
    (0..panels * parts).into_par_iter().for_each(|task| {
        let (panel, ks) = (task / parts, split(depth, parts, task % parts));
        let first = panel * width;
        let used = width.min(columns - first);
        // Taps of one k for all columns of the panel: `[tap][column]`.
        let mut taps = [0.0f32; 9 * 32];
        for k in ks {
            for j in 0..used {
                let g = &weight[k * k_stride + (first + j) * column_stride..][..9];
                for (t, g) in g.iter().enumerate() {
                    let t = if rotated { 8 - t } else { t };
                    taps[t * 32 + j] = *g;
                }
            }
            let start = (panel * depth + k) * width;
            let to = out.pointer(start..(size.points() - 1) * point + start + width);
            // SAFETY: in bounds by `pointer`; every task has its own panel and k.
            unsafe { weight_tile(size, &taps, width, to, point) };
        }
    });
    u
}

/// conv(x) of `channels` = [in, out] with transformed weights `u`; x and y have the same `map`.
///
/// # Safety
/// Nobody else may touch `y` meanwhile. On return all of it is written.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn convolve(
    size: Size,
    images: usize,
    map: [usize; 2],
    channels: [usize; 2],
    x: &[f32],
    u: &[f32],
    bias: Option<&[f32]>,
    y: SharedOutput<'_>,
) {
    let [c_in, c_out] = channels;
    let tiling = Tiling::new(size, map);
    let (area, cp, width) = (map[0] * map[1], padded(c_in), panel_width());
    let panels = c_out.div_ceil(width);
    let rows = images * tiling.down;
    let plan = Plan::new(&tiling, rows, panels, cp + padded(c_out));
    (0..plan.row_parts * plan.panel_parts).into_par_iter().for_each(|task| {
        let rows = split(rows, plan.row_parts, task / plan.panel_parts);
        let panel_range = split(panels, plan.panel_parts, task % plan.panel_parts);
        let columns = panel_range.start * width..(panel_range.end * width).min(c_out);
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let tiles = rows.len() * tiling.across;
        let v_layout = Layout::rows(tiles, cp);
        let mut v = Scratch::new(size.points() * v_layout.point);
        for part in tiling.images_of(rows.clone()) {
            let image = &x[part.image * c_in * area..][..c_in * area];
            let v = SharedOutput::new(&mut v);
            // SAFETY: `v` is this task's own.
            unsafe { transform_input(&tiling, &part, image, c_in, v, v_layout) };
        }
        let mp = columns.len().next_multiple_of(16);
        let m_point = spread(tiles * mp);
        let mut m = Scratch::new(size.points() * m_point);
        let depth = c_in * width;
        let u_point = spread(panels * depth);
        for (point, m) in m.chunks_exact_mut(m_point).enumerate() {
            let product = Product {
                a: &v[point * v_layout.point..][..v_layout.point],
                rows: Rows::Every { stride: cp, count: tiles },
                a_step: 1,
                b: &u[point * u_point + panel_range.start * depth..][..panel_range.len() * depth],
                b_panel: depth,
                b_step: width,
                runs: WHOLE,
                run_len: c_in,
                columns: columns.len(),
                start: Start::Zero,
            };
            product.write(m, mp);
        }
        let mut offset = vec![0.0; mp];
        if let Some(bias) = bias {
            offset[..columns.len()].copy_from_slice(&bias[columns.clone()]);
        }
        for part in tiling.images_of(rows) {
            let range = tiling.output_rows(&part.rows);
            let pixels = range.len() * map[1];
            let mut out = Scratch::new((pixels + 1) * mp);
            let places = tiling.output_places(&part.rows, mp);
            let first_tile = part.first_tile;
            // SAFETY: the slices have the lengths that `output_tiles` asks for.
            unsafe { output_tiles(size, &m, m_point, first_tile, mp, &places, &offset, &mut out) };
            let first = (part.image * c_out + columns.start) * area + range.start * map[1];
            let end = first + (columns.len() - 1) * area + pixels;
            // SAFETY: in bounds by `pointer`; the caller's promise, and tasks are disjoint.
            unsafe {
                let to = y.pointer(first..end);
                pixels_to_planes(&out, |p| p * mp, columns.len(), pixels, to, area);
            }
        }
    });
}

/// Where the transforms put channel c of tile t at point p:
/// `p * point + t * tile + c / block_len * block + c % block_len`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    point: usize,
    tile: usize,
    block: usize,
    block_len: usize,
}

impl Layout {
    /// `[point][tile][channel]`.
    fn rows(tiles: usize, channels: usize) -> Self {
        Self { point: spread(tiles * channels), tile: channels, block: 0, block_len: channels }
    }

    /// `[point][panel][tile][column]`: sums over tiles read a panel's memory in one stream.
    fn panels(tiles: usize, channels: usize) -> Self {
        let width = panel_width();
        let panels = channels.div_ceil(width);
        let block = tiles * width;
        Self { point: spread(panels * block), tile: width, block, block_len: width }
    }

    /// Offset of channel c within its tile's.
    #[inline(always)]
    fn channel(&self, c: usize) -> usize {
        c / self.block_len * self.block + c % self.block_len
    }
}

/// dW = G^T [sum over tiles of (B^T d B) * (A dY A^T)] G.
pub(crate) fn weight_gradient(
    size: Size,
    s: &ConvShape,
    x: &[f32],
    dy: &[f32],
    dweight: &mut [f32],
) {
    let map = [s.h, s.w];
    let tiling = Tiling::new(size, map);
    let (area, points) = (s.h * s.w, size.points());
    let kp = padded(s.c_out);
    let per_image = tiling.down * tiling.across;
    // Images in turn, so that the transformed copies stay within a few tens of megabytes.
    let at_once =
        ((8 << 20) / (points * per_image * (padded(s.c_in) + kp)).max(1)).clamp(1, s.images.max(1));
    let tiles = at_once * per_image;
    let v_layout = Layout::panels(tiles, s.c_in);
    let z_layout = Layout::panels(tiles, s.c_out);
    let mut v = Scratch::new(points * v_layout.point);
    let mut z = Scratch::new(points * z_layout.point);
    let channels: Vec<usize> = (0..s.c_in).map(|c| v_layout.channel(c)).collect();
    let du_point = spread(s.c_in * kp);
    let mut du = Scratch::new(points * du_point);
    if s.images == 0 {
        du.fill(0.0);
    }
    let mut start = 0;
    while start < s.images {
        let n = at_once.min(s.images - start);
        let (v_out, z_out) = (SharedOutput::new(&mut v), SharedOutput::new(&mut z));
        let rows = n * tiling.down;
        let parts = rows.min(4 * rayon::current_num_threads());
        (0..parts).into_par_iter().for_each(|part| {
            let rows = split(rows, parts, part);
            for part in tiling.images_of(rows.clone()) {
                let part =
                    Part { first_tile: rows.start * tiling.across + part.first_tile, ..part };
                let image = start + part.image;
                let x = &x[image * s.c_in * area..][..s.c_in * area];
                let dy = &dy[image * s.c_out * area..][..s.c_out * area];
                // SAFETY: every part has its own tiles.
                unsafe {
                    transform_input(&tiling, &part, x, s.c_in, v_out, v_layout);
                    transform_output_gradient(&tiling, &part, dy, s.c_out, z_out, z_layout);
                }
            }
        });
        let parts = (2 * rayon::current_num_threads()).div_ceil(points).min(s.c_in.div_ceil(12));
        let du_out = SharedOutput::new(&mut du);
        (0..points * parts).into_par_iter().for_each(|task| {
            let (point, part) = (task / parts, task % parts);
            let product = Product {
                a: &v[point * v_layout.point..][..v_layout.point],
                rows: Rows::At(&channels),
                a_step: v_layout.tile,
                b: &z[point * z_layout.point..][..z_layout.point],
                b_panel: z_layout.block,
                b_step: z_layout.tile,
                runs: WHOLE,
                run_len: n * per_image,
                columns: s.c_out,
                start: if start == 0 { Start::Zero } else { Start::Existing },
            };
            let first = point * du_point;
            let to = du_out.range(first..first + s.c_in * kp);
            let rows = split(s.c_in, parts, part);
            // SAFETY: every task has its own rows of its own point.
            unsafe { product.write_part(to, kp, rows, 0..product.panels()) };
        });
        start += n;
    }
    let out = SharedOutput::new(dweight);
    (0..s.c_out.div_ceil(16)).into_par_iter().for_each(|block| {
        let columns = block * 16..s.c_out.min(block * 16 + 16);
        let mut taps = [0.0f32; 9 * 16];
        for ci in 0..s.c_in {
            let first = ci * kp + columns.start;
            let from = &du[first..(points - 1) * du_point + first + 16];
            // SAFETY: `from` holds 16 entries (kp is padded to 16) at every point.
            unsafe { weight_gradient_tile(size, from, du_point, &mut taps) };
            for (j, co) in columns.clone().enumerate() {
                let first = (co * s.c_in + ci) * 9;
                let to = out.pointer(first..first + 9);
                for t in 0..9 {
                    // SAFETY: in bounds by `pointer`; every block has its own output channels.
                    unsafe { *to.add(t) = taps[t * 16 + j] };
                }
            }
        }
    });
}

/// How the work of one convolution is cut: parts of tile rows times parts of the columns.
struct Plan {
    row_parts: usize,
    panel_parts: usize,
}

impl Plan {
    fn new(tiling: &Tiling, rows: usize, panels: usize, channels: usize) -> Self {
        // A part's transformed input and output should stay in the second-level cache; but the
        // weights are read once per part, which fewer than a dozen tiles do not repay.
        const CACHE: usize = 700 << 10;
        let tiles = (CACHE / (4 * tiling.size.points() * channels)).clamp(12, 48);
        let threads = rayon::current_num_threads();
        let row_parts = (rows * tiling.across).div_ceil(tiles).clamp(1, rows.max(1));
        if row_parts >= 4 * threads {
            return Self { row_parts, panel_parts: 1 };
        }
        // Few parts: as many as there are threads, first by columns when tiles are scarce.
        let even = row_parts.next_multiple_of(threads).min(rows.max(1));
        if even * 8 <= rows * tiling.across {
            return Self { row_parts: even, panel_parts: threads.div_ceil(even).min(panels) };
        }
        Self { row_parts, panel_parts: threads.div_ceil(row_parts).min(panels) }
    }
}

/// The tiles that cover a map.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    size: Size,
    map: [usize; 2],
    down: usize,
    across: usize,
}

/// Consecutive tile rows of one image, and the position of their first tile in the task.
struct Part {
    image: usize,
    rows: Range<usize>,
    first_tile: usize,
}

impl Tiling {
    fn new(size: Size, map: [usize; 2]) -> Self {
        let [down, across] = map.map(|n| n.div_ceil(size.out()));
        Self { size, map, down, across }
    }

    /// Cuts a range of tile rows, counted over all images, at the images' ends.
    fn images_of(self, rows: Range<usize>) -> impl Iterator<Item = Part> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            if next >= rows.end {
                return None;
            }
            let image = next / self.down;
            let end = rows.end.min((image + 1) * self.down);
            let part = Part {
                image,
                rows: next - image * self.down..end - image * self.down,
                first_tile: (next - rows.start) * self.across,
            };
            next = end;
            Some(part)
        })
    }

    /// The map rows that the tile rows write.
    fn output_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let out = self.size.out();
        rows.start * out..(rows.end * out).min(self.map[0])
    }

    /// The map rows that the tile rows read.
    fn input_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let out = self.size.out();
        (rows.start * out).saturating_sub(1)..(rows.end * out + 1).min(self.map[0])
    }

    /// For every tile its inputs' places among the pixels of `input_rows`; outside the map the
    /// place behind the last pixel, which holds zeros.
    fn input_places(&self, rows: &Range<usize>, stride: usize) -> Vec<usize> {
        let range = self.input_rows(rows);
        self.places(rows, self.size.input(), 1, &range, stride)
    }

    /// For every tile its outputs' places among the pixels of `output_rows`; outside the map the
    /// place behind the last pixel.
    fn output_places(&self, rows: &Range<usize>, stride: usize) -> Vec<usize> {
        let range = self.output_rows(rows);
        self.places(rows, self.size.out(), 0, &range, stride)
    }

    fn places(
        &self,
        rows: &Range<usize>,
        side: usize,
        before: usize,
        range: &Range<usize>,
        stride: usize,
    ) -> Vec<usize> {
        let (out, [h, w]) = (self.size.out(), self.map);
        let nowhere = range.len() * w * stride;
        let mut places = Vec::with_capacity(rows.len() * self.across * side * side);
        for row in rows.clone() {
            for column in 0..self.across {
                for i in row * out..row * out + side {
                    for j in column * out..column * out + side {
                        // Positions one further than the map's, where `before` is 1.
                        let inside = i >= before && i < h + before && j >= before && j < w + before;
                        places.push(if inside {
                            ((i - before - range.start) * w + j - before) * stride
                        } else {
                            nowhere
                        });
                    }
                }
            }
        }
        places
    }
}

/// B^T d B of the part's tiles into `v`.
///
/// # Safety
/// No other thread may touch the part's tiles in `v` meanwhile.
unsafe fn transform_input(
    tiling: &Tiling,
    part: &Part,
    image: &[f32],
    channels: usize,
    v: SharedOutput<'_>,
    layout: Layout,
) {
    let cp = padded(channels);
    let range = tiling.input_rows(&part.rows);
    let places = tiling.input_places(&part.rows, cp);
    let input = pixels_of(tiling, &range, image, channels, cp);
    let to = tiles_of(tiling, part, channels, v, layout);
    // SAFETY: places lie within `input`, each followed by cp entries; `to` by `tiles_of`.
    unsafe { input_tiles(tiling.size, &input, &places, channels, to, layout) }
}

/// A dY A^T of the part's tiles into `z`.
///
/// # Safety
/// No other thread may touch the part's tiles in `z` meanwhile.
unsafe fn transform_output_gradient(
    tiling: &Tiling,
    part: &Part,
    image: &[f32],
    channels: usize,
    z: SharedOutput<'_>,
    layout: Layout,
) {
    let kp = padded(channels);
    let range = tiling.output_rows(&part.rows);
    let places = tiling.output_places(&part.rows, kp);
    let input = pixels_of(tiling, &range, image, channels, kp);
    let to = tiles_of(tiling, part, channels, z, layout);
    // SAFETY: as in `transform_input`.
    unsafe { gradient_tiles(tiling.size, &input, &places, channels, to, layout) }
}

/// Some rows of an image as `[pixel][stride]`, and a pixel of zeros behind them.
fn pixels_of(
    tiling: &Tiling,
    range: &Range<usize>,
    image: &[f32],
    channels: usize,
    stride: usize,
) -> Scratch {
    let [h, w] = tiling.map;
    let pixels = range.len() * w;
    let mut input = Scratch::new((pixels + 1) * stride);
    input[pixels * stride..].fill(0.0);
    let rows = &image[range.start * w..];
    planes_to_pixels(rows, h * w, channels, pixels, &mut input, |p| p * stride);
    input
}

/// Checks that the part's tiles fit and returns where the first begins.
fn tiles_of(
    tiling: &Tiling,
    part: &Part,
    channels: usize,
    out: SharedOutput<'_>,
    layout: Layout,
) -> *mut f32 {
    let tiles = part.first_tile + part.rows.len() * tiling.across;
    let last = layout.channel(channels.next_multiple_of(16) - 16) + 16;
    let end = (tiling.size.points() - 1) * layout.point + (tiles - 1) * layout.tile + last;
    out.pointer(part.first_tile * layout.tile..end)
}
