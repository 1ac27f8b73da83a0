//! 3x3 convolutions of stride 1 by Winograd's minimal filtering (Lavin and Gray 2016):
//! Y = A^T [(G g G^T) * (B^T d B)] A on tiles of 2x2 or 4x4 outputs.
//!
//! A tile of 4x4 needs 36 products in place of 144, of 2x2 16 in place of 36. Vectors run along
//! the channels in every step, so that small maps use them as well as large ones.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{ConvShape, padded};
use super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::transpose::{pixels_to_planes, planes_to_pixels};
use super::vector::{Vector, vectorised};
use rayon::prelude::*;
use std::ops::Range;

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

/// The one-dimensional transforms; each acts on the first `input()` or `out()` entries.
trait Transform {
    const OUT: usize;
    const IN: usize;
    /// B^T d
    unsafe fn input<V: Vector>(d: [V; 6]) -> [V; 6];
    /// A^T m
    unsafe fn output<V: Vector>(m: [V; 6]) -> [V; 4];
    /// G g
    unsafe fn weight<V: Vector>(g: [V; 3]) -> [V; 6];
    /// A y
    unsafe fn output_adjoint<V: Vector>(y: [V; 4]) -> [V; 6];
    /// G^T u
    unsafe fn weight_adjoint<V: Vector>(u: [V; 6]) -> [V; 3];
}

/// Interpolation points 0, 1, -1, infinity.
struct Two;
/// Interpolation points 0, 1, -1, 2, -2, infinity.
struct Four;

// SAFETY of both: the trait functions of `Vector` are called with registers only; the callers run
// where the instruction set of V is enabled.
impl Transform for Two {
    const OUT: usize = 2;
    const IN: usize = 4;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, z, _]: [V; 6]) -> [V; 6] {
        unsafe { [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3), z, z] }
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, z, _]: [V; 6]) -> [V; 4] {
        unsafe { [m0.add(m1.add(m2)), m1.sub(m2).sub(m3), z, z] }
    }
    #[inline(always)]
    unsafe fn weight<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        unsafe {
            let half = V::splat(0.5);
            let (even, odd) = (g0.add(g2).mul(half), g1.mul(half));
            [g0, even.add(odd), even.sub(odd), g2, g0, g0]
        }
    }
    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1, z, _]: [V; 4]) -> [V; 6] {
        unsafe { [y0, y0.add(y1), y0.sub(y1), V::splat(0.0).sub(y1), z, z] }
    }
    #[inline(always)]
    unsafe fn weight_adjoint<V: Vector>([u0, u1, u2, u3, ..]: [V; 6]) -> [V; 3] {
        unsafe {
            let half = V::splat(0.5);
            let even = u1.add(u2).mul(half);
            [u0.add(even), u1.sub(u2).mul(half), even.add(u3)]
        }
    }
}

impl Transform for Four {
    const OUT: usize = 4;
    const IN: usize = 6;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        unsafe {
            let (two, four) = (V::splat(2.0), V::splat(4.0));
            let (minus_four, minus_five) = (V::splat(-4.0), V::splat(-5.0));
            let a = minus_four.mul_add(d2, d4); // d4 - 4 d2
            let b = minus_four.mul_add(d1, d3); // d3 - 4 d1
            let c = d4.sub(d2);
            let d = two.mul(d3.sub(d1));
            [
                four.mul_add(d0, minus_five.mul_add(d2, d4)),
                a.add(b),
                a.sub(b),
                c.add(d),
                c.sub(d),
                four.mul_add(d1, minus_five.mul_add(d3, d5)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        unsafe {
            let (a, b) = (m1.add(m2), m1.sub(m2));
            let (c, d) = (m3.add(m4), m3.sub(m4));
            [
                m0.add(a).add(c),
                V::splat(2.0).mul_add(d, b),
                V::splat(4.0).mul_add(c, a),
                V::splat(8.0).mul_add(d, b).add(m5),
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        unsafe {
            let sixth = V::splat(-1.0 / 6.0);
            let (even, odd) = (g0.add(g2).mul(sixth), g1.mul(sixth));
            // (g0 + 4 g2) / 24 and 2 g1 / 24
            let far = V::splat(4.0).mul_add(g2, g0).mul(V::splat(1.0 / 24.0));
            let far_odd = g1.mul(V::splat(1.0 / 12.0));
            [
                g0.mul(V::splat(0.25)),
                even.add(odd),
                even.sub(odd),
                far.add(far_odd),
                far.sub(far_odd),
                g2,
            ]
        }
    }
    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        unsafe {
            let (even, odd) = (y0.add(y2), y1.add(y3));
            let far = V::splat(4.0).mul_add(y2, y0);
            let far_odd = V::splat(4.0).mul_add(y3, y1);
            let far_odd = far_odd.add(far_odd);
            [y0, even.add(odd), even.sub(odd), far.add(far_odd), far.sub(far_odd), y3]
        }
    }
    #[inline(always)]
    unsafe fn weight_adjoint<V: Vector>([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        unsafe {
            let sixth = V::splat(-1.0 / 6.0);
            let (even, odd) = (u1.add(u2).mul(sixth), u1.sub(u2).mul(sixth));
            let far = u3.add(u4).mul(V::splat(1.0 / 24.0));
            let far_odd = u3.sub(u4);
            [
                V::splat(0.25).mul_add(u0, even.add(far)),
                V::splat(1.0 / 12.0).mul_add(far_odd, odd),
                V::splat(4.0).mul_add(far, even).add(u5),
            ]
        }
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
    let point = panels * depth * width;
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
        let mut v = Scratch::new(size.points() * tiles * cp);
        for part in tiling.images_of(rows.clone()) {
            let image = &x[part.image * c_in * area..][..c_in * area];
            let v = SharedOutput::new(&mut v);
            // SAFETY: `v` is this task's own.
            unsafe { transform_input(&tiling, &part, image, c_in, v, Layout::rows(tiles, cp)) };
        }
        let mp = columns.len().next_multiple_of(16);
        let mut m = Scratch::new(size.points() * tiles * mp);
        let depth = c_in * width;
        for (point, m) in m.chunks_exact_mut(tiles * mp).enumerate() {
            let product = Product {
                a: &v[point * tiles * cp..][..tiles * cp],
                rows: Rows::Every { stride: cp, count: tiles },
                a_step: 1,
                b: &u[(point * panels + panel_range.start) * depth..][..panel_range.len() * depth],
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
            unsafe { output_tiles(size, &m, tiles, first_tile, mp, &places, &offset, &mut out) };
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
        Self { point: tiles * channels, tile: channels, block: 0, block_len: channels }
    }

    /// `[point][panel][tile][column]`: sums over tiles read a panel's memory in one stream.
    fn panels(tiles: usize, channels: usize) -> Self {
        let width = panel_width();
        let panels = channels.div_ceil(width);
        let block = tiles * width;
        Self { point: panels * block, tile: width, block, block_len: width }
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
    let mut du = Scratch::new(points * s.c_in * kp);
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
            let first = point * s.c_in * kp;
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
            let from = &du[first..(points - 1) * s.c_in * kp + first + 16];
            // SAFETY: `from` holds 16 entries (kp is padded to 16) at every point.
            unsafe { weight_gradient_tile(size, from, s.c_in * kp, &mut taps) };
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

vectorised! {
    unsafe fn input_tiles(size: Size, src: &[f32], places: &[usize], channels: usize, to: *mut f32, layout: Layout) = input_tiles_with
}

/// # Safety
/// Every place is followed by `channels`, rounded up to a multiple of 16, entries of `src`; `to` is
/// valid for those of every tile in the layout.
#[inline(always)]
unsafe fn input_tiles_with<V: Vector>(
    size: Size,
    src: &[f32],
    places: &[usize],
    channels: usize,
    to: *mut f32,
    layout: Layout,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => input_tiles_by::<V, Two>(src, places, channels, to, layout),
            Size::Four => input_tiles_by::<V, Four>(src, places, channels, to, layout),
        }
    }
}

#[inline(always)]
unsafe fn input_tiles_by<V: Vector, T: Transform>(
    src: &[f32],
    places: &[usize],
    channels: usize,
    to: *mut f32,
    layout: Layout,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for (tile, places) in places.chunks_exact(T::IN * T::IN).enumerate() {
            for c in (0..channels).step_by(V::LANES) {
                // B^T d: down the columns first.
                let mut half = [[zero; 6]; 6];
                for j in 0..T::IN {
                    let mut d = [zero; 6];
                    for i in 0..T::IN {
                        d[i] = V::load(src.as_ptr().add(places[i * T::IN + j] + c));
                    }
                    let d = T::input(d);
                    for i in 0..T::IN {
                        half[i][j] = d[i];
                    }
                }
                let to = to.add(tile * layout.tile + layout.channel(c));
                for i in 0..T::IN {
                    let row = T::input(half[i]);
                    for j in 0..T::IN {
                        row[j].store(to.add((i * T::IN + j) * layout.point));
                    }
                }
            }
        }
    }
}

vectorised! {
    unsafe fn gradient_tiles(size: Size, src: &[f32], places: &[usize], channels: usize, to: *mut f32, layout: Layout) = gradient_tiles_with
}

/// # Safety
/// As for [`input_tiles_with`].
#[inline(always)]
unsafe fn gradient_tiles_with<V: Vector>(
    size: Size,
    src: &[f32],
    places: &[usize],
    channels: usize,
    to: *mut f32,
    layout: Layout,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => gradient_tiles_by::<V, Two>(src, places, channels, to, layout),
            Size::Four => gradient_tiles_by::<V, Four>(src, places, channels, to, layout),
        }
    }
}

#[inline(always)]
unsafe fn gradient_tiles_by<V: Vector, T: Transform>(
    src: &[f32],
    places: &[usize],
    channels: usize,
    to: *mut f32,
    layout: Layout,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for (tile, places) in places.chunks_exact(T::OUT * T::OUT).enumerate() {
            for c in (0..channels).step_by(V::LANES) {
                let mut half = [[zero; 4]; 6];
                for j in 0..T::OUT {
                    let mut y = [zero; 4];
                    for i in 0..T::OUT {
                        y[i] = V::load(src.as_ptr().add(places[i * T::OUT + j] + c));
                    }
                    let y = T::output_adjoint(y);
                    for i in 0..T::IN {
                        half[i][j] = y[i];
                    }
                }
                let to = to.add(tile * layout.tile + layout.channel(c));
                for i in 0..T::IN {
                    let row = T::output_adjoint(half[i]);
                    for j in 0..T::IN {
                        row[j].store(to.add((i * T::IN + j) * layout.point));
                    }
                }
            }
        }
    }
}

/// A^T m A + offset of the tiles from `first` on, written to their places in `out`.
///
/// # Safety
/// `m` is `[point][tiles][columns]` with `columns` a multiple of 16, `offset` has `columns`
/// entries, and every place is followed by `columns` entries of `out`.
#[allow(clippy::too_many_arguments)]
unsafe fn output_tiles(
    size: Size,
    m: &[f32],
    tiles: usize,
    first: usize,
    columns: usize,
    places: &[usize],
    offset: &[f32],
    out: &mut [f32],
) {
    assert!(m.len() >= size.points() * tiles * columns && offset.len() >= columns);
    assert!(places.iter().all(|place| place + columns <= out.len()));
    let from = &m[first * columns..];
    // SAFETY: the checks above and the caller's promise.
    unsafe { output_block(size, from, tiles * columns, columns, places, offset, out.as_mut_ptr()) }
}

vectorised! {
    unsafe fn output_block(size: Size, m: &[f32], point: usize, columns: usize, places: &[usize], offset: &[f32], out: *mut f32) = output_block_with
}

/// # Safety
/// As for [`output_tiles`].
#[inline(always)]
unsafe fn output_block_with<V: Vector>(
    size: Size,
    m: &[f32],
    point: usize,
    columns: usize,
    places: &[usize],
    offset: &[f32],
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => output_block_by::<V, Two>(m, point, columns, places, offset, out),
            Size::Four => output_block_by::<V, Four>(m, point, columns, places, offset, out),
        }
    }
}

#[inline(always)]
unsafe fn output_block_by<V: Vector, T: Transform>(
    m: &[f32],
    point: usize,
    columns: usize,
    places: &[usize],
    offset: &[f32],
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for (tile, places) in places.chunks_exact(T::OUT * T::OUT).enumerate() {
            for c in (0..columns).step_by(V::LANES) {
                let m = m.as_ptr().add(tile * columns + c);
                let mut half = [[zero; 6]; 4];
                for j in 0..T::IN {
                    let mut column = [zero; 6];
                    for i in 0..T::IN {
                        column[i] = V::load(m.add((i * T::IN + j) * point));
                    }
                    let column = T::output(column);
                    for i in 0..T::OUT {
                        half[i][j] = column[i];
                    }
                }
                let offset = V::load(offset.as_ptr().add(c));
                for i in 0..T::OUT {
                    let row = T::output(half[i]);
                    for j in 0..T::OUT {
                        row[j].add(offset).store(out.add(places[i * T::OUT + j] + c));
                    }
                }
            }
        }
    }
}

vectorised! {
    unsafe fn weight_tile(size: Size, taps: &[f32; 9 * 32], width: usize, to: *mut f32, point: usize) = weight_tile_with
}

/// # Safety
/// `width` is 16 or 32, and `to` valid for that many entries at every multiple of `point`.
#[inline(always)]
unsafe fn weight_tile_with<V: Vector>(
    size: Size,
    taps: &[f32; 9 * 32],
    width: usize,
    to: *mut f32,
    point: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => weight_tile_by::<V, Two>(taps, width, to, point),
            Size::Four => weight_tile_by::<V, Four>(taps, width, to, point),
        }
    }
}

#[inline(always)]
unsafe fn weight_tile_by<V: Vector, T: Transform>(
    taps: &[f32; 9 * 32],
    width: usize,
    to: *mut f32,
    point: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for c in (0..width).step_by(V::LANES) {
            let mut half = [[zero; 3]; 6];
            for j in 0..3 {
                let mut g = [zero; 3];
                for i in 0..3 {
                    g[i] = V::load(taps.as_ptr().add((i * 3 + j) * 32 + c));
                }
                let g = T::weight(g);
                for i in 0..T::IN {
                    half[i][j] = g[i];
                }
            }
            for i in 0..T::IN {
                let row = T::weight(half[i]);
                for j in 0..T::IN {
                    row[j].store(to.add((i * T::IN + j) * point + c));
                }
            }
        }
    }
}

vectorised! {
    unsafe fn weight_gradient_tile(size: Size, du: &[f32], point: usize, taps: &mut [f32; 9 * 16]) = weight_gradient_tile_with
}

/// # Safety
/// `du` holds 16 entries at every multiple of `point`.
#[inline(always)]
unsafe fn weight_gradient_tile_with<V: Vector>(
    size: Size,
    du: &[f32],
    point: usize,
    taps: &mut [f32; 9 * 16],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => weight_gradient_tile_by::<V, Two>(du, point, taps),
            Size::Four => weight_gradient_tile_by::<V, Four>(du, point, taps),
        }
    }
}

#[inline(always)]
unsafe fn weight_gradient_tile_by<V: Vector, T: Transform>(
    du: &[f32],
    point: usize,
    taps: &mut [f32; 9 * 16],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for c in (0..16).step_by(V::LANES) {
            let mut half = [[zero; 6]; 3];
            for j in 0..T::IN {
                let mut u = [zero; 6];
                for i in 0..T::IN {
                    u[i] = V::load(du.as_ptr().add((i * T::IN + j) * point + c));
                }
                let u = T::weight_adjoint(u);
                for i in 0..3 {
                    half[i][j] = u[i];
                }
            }
            for i in 0..3 {
                let row = T::weight_adjoint(half[i]);
                for j in 0..3 {
                    row[j].store(taps.as_mut_ptr().add((i * 3 + j) * 16 + c));
                }
            }
        }
    }
}
