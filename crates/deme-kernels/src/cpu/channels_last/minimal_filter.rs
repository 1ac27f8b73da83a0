//! Convolutions by minimal filtering along one axis or both: each tile of outputs takes a
//! product per point in place of one per tap and output.
//!
//! 3x3 takes 36 products for 16 outputs in place of 144, 5x5 36 for 4 in place of 100, 1x7 9 for 3 in
//! place of 21, 1x3 6 for 4 in place of 12, 3x3 of stride 2 49 for 9 in place of 81.

use super::super::buffer::{Aligned, Scratch, SharedOutput};
use super::super::conv::spread;
use super::super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::super::vector::{Vector, vectorised};
use super::axis::{Axis, Halving, MOST, Nine, One, Six, weight_factors};
use super::{ConvSizes, Maps, Target};
use crate::Window;
use rayon::prelude::*;
use std::ops::Range;

/// Which axes are filtered, by the kernel's rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    ThreeByThree,
    ThreeByThreeHalving,
    FiveByFive,
    OneByThree,
    ThreeByOne,
    OneByFive,
    FiveByOne,
    OneBySeven,
    SevenByOne,
}

/// Calls a function that is generic over a vector and two axes with those of a filter.
macro_rules! with_axes {
    ($filter:expr, $function:ident::<$v:ty>($($arg:expr),* $(,)?)) => {
        match $filter {
            Filter::ThreeByThree => $function::<$v, Six<4>, Six<4>>($($arg),*),
            Filter::ThreeByThreeHalving => $function::<$v, Halving, Halving>($($arg),*),
            Filter::FiveByFive => $function::<$v, Six<2>, Six<2>>($($arg),*),
            Filter::OneByThree => $function::<$v, One, Six<4>>($($arg),*),
            Filter::ThreeByOne => $function::<$v, Six<4>, One>($($arg),*),
            Filter::OneByFive => $function::<$v, One, Six<2>>($($arg),*),
            Filter::FiveByOne => $function::<$v, Six<2>, One>($($arg),*),
            Filter::OneBySeven => $function::<$v, One, Nine>($($arg),*),
            Filter::SevenByOne => $function::<$v, Nine, One>($($arg),*),
        }
    };
}

impl Filter {
    /// That of a window, if there is one.
    pub(super) fn of(window: &Window) -> Option<Self> {
        if (window.kernel, window.stride) == ([3, 3], [2, 2]) {
            return Some(Self::ThreeByThreeHalving);
        }
        if window.stride != [1, 1] {
            return None;
        }
        match window.kernel {
            [3, 3] => Some(Self::ThreeByThree),
            [5, 5] => Some(Self::FiveByFive),
            [1, 3] => Some(Self::OneByThree),
            [3, 1] => Some(Self::ThreeByOne),
            [1, 5] => Some(Self::OneByFive),
            [5, 1] => Some(Self::FiveByOne),
            [1, 7] => Some(Self::OneBySeven),
            [7, 1] => Some(Self::SevenByOne),
            _ => None,
        }
    }

    /// Products along the rows' axis and the columns' axis.
    fn points(self) -> [usize; 2] {
        match self {
            Self::ThreeByThree | Self::FiveByFive => [6, 6],
            Self::ThreeByThreeHalving => [7, 7],
            Self::OneByThree | Self::OneByFive => [1, 6],
            Self::ThreeByOne | Self::FiveByOne => [6, 1],
            Self::OneBySeven => [1, 9],
            Self::SevenByOne => [9, 1],
        }
    }

    /// Rows and columns of outputs of one tile.
    fn tile(self) -> [usize; 2] {
        match self {
            Self::ThreeByThree => [4, 4],
            Self::ThreeByThreeHalving => [3, 3],
            Self::FiveByFive => [2, 2],
            Self::OneByThree => [1, 4],
            Self::ThreeByOne => [4, 1],
            Self::OneByFive => [1, 2],
            Self::FiveByOne => [2, 1],
            Self::OneBySeven => [1, 3],
            Self::SevenByOne => [3, 1],
        }
    }

    /// The transformed weight, `[point][panel][k][column]`, in f64 up to the last rounding.
    pub(super) fn weights(self, s: &ConvSizes, weight: &[f32]) -> Aligned {
        let (points, [kh, kw]) = (self.points(), s.window.kernel);
        let width = panel_width();
        let panels = s.c_out.div_ceil(width);
        let distance = point_distance(s);
        let mut packed = Aligned::zeros(points[0] * points[1] * distance);
        let out = SharedOutput::new(&mut packed);
        let (tall, wide) = (weight_factors(points[0], kh), weight_factors(points[1], kw));
        (0..panels * s.c_in).into_par_iter().with_min_len(16).for_each(|task| {
            let (panel, k) = (task / s.c_in, task % s.c_in);
            let columns = width.min(s.c_out - panel * width);
            let mut taps = [[0.0f64; WIDEST]; 25];
            for column in 0..columns {
                let kernel = (panel * width + column) * s.c_in + k;
                let kernel = &weight[kernel * kh * kw..][..kh * kw];
                for (tap, value) in taps.iter_mut().zip(kernel) {
                    tap[column] = f64::from(*value);
                }
            }
            for i in 0..points[0] {
                // G g along the rows, for each column of the kernel.
                let mut half = [[0.0f64; WIDEST]; 7];
                for (kx, half) in half.iter_mut().enumerate().take(kw) {
                    for ky in 0..kh {
                        add_multiple(half, tall[i * kh + ky], &taps[ky * kw + kx]);
                    }
                }
                for j in 0..points[1] {
                    let mut sums = [0.0f64; WIDEST];
                    for kx in 0..kw {
                        add_multiple(&mut sums, wide[j * kw + kx], &half[kx]);
                    }
                    let start = (i * points[1] + j) * distance + task * width;
                    let to = out.pointer(start..start + width);
                    for (column, sum) in sums.iter().enumerate().take(width) {
                        // SAFETY: in bounds by `pointer`; every task has its own panel and k.
                        unsafe { *to.add(column) = *sum as f32 };
                    }
                }
            }
        });
        packed
    }

    /// relu(conv(x) + bias), `weight` by [`Filter::weights`].
    ///
    /// # Safety
    /// As for [`super::ConvLayer::forward`], which has checked the sizes.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn convolve(
        self,
        s: &ConvSizes,
        x: &[f32],
        maps: Maps,
        out: Maps,
        weight: &[f32],
        bias: &[f32],
        y: Target<'_>,
    ) {
        let [tall, wide] = self.tile();
        let (down, across) = (out.h.div_ceil(tall), out.w.div_ceil(wide));
        let grid = Grid { filter: self, maps, out, padding: s.window.padding, down, across };
        let tiles = out.images * down * across;
        let points = self.points()[0] * self.points()[1];
        let (at_once, columns_at_once) = block_sizes(points, s);
        let parts = tiles.div_ceil(at_once);
        let threads = rayon::current_num_threads();
        let parts = if parts >= 4 * threads { parts } else { parts.next_multiple_of(threads) };
        let depth = s.c_in.next_multiple_of(16);
        let zeros = Scratch::zeros(depth);
        (0..parts).into_par_iter().for_each(|part| {
            let tiles = split(tiles, parts, part);
            if tiles.is_empty() {
                return;
            }
            let point = spread(tiles.len() * depth);
            let mut v = Scratch::new(points * point);
            // SAFETY: `v` holds `depth` channels of every tile at every point, `zeros` as many zeros;
            // the tiles' inputs lie inside x.
            unsafe { input_tiles(&grid, x, &zeros, tiles.clone(), v.as_mut_ptr(), point, depth) };
            let m_columns = columns_at_once.min(s.c_out.next_multiple_of(16));
            let m_point = spread(tiles.len() * m_columns);
            let mut m = Scratch::new(points * m_point);
            for first in (0..s.c_out).step_by(columns_at_once) {
                let columns = columns_at_once.min(s.c_out - first);
                let panel = first / panel_width() * s.c_in * panel_width();
                for (i, m) in m.chunks_exact_mut(m_point).enumerate() {
                    let product = Product {
                        a: &v[i * point..][..point],
                        rows: Rows::Every { stride: depth, count: tiles.len() },
                        a_step: 1,
                        b: &weight[i * point_distance(s) + panel..],
                        b_panel: s.c_in * panel_width(),
                        b_step: panel_width(),
                        runs: WHOLE,
                        run_len: s.c_in,
                        columns,
                        start: Start::Zero,
                        relu: false,
                    };
                    product.write(m, m_columns);
                }
                let products = Products {
                    values: &m,
                    point: m_point,
                    tile: m_columns,
                    columns,
                    bias: &bias[first..],
                };
                let y = Target { first: y.first + first, ..y };
                // SAFETY: `m` holds these columns of every tile at every point; the caller's promise,
                // and parts have their own tiles.
                unsafe { output_tiles(&grid, &products, tiles.clone(), y) };
            }
        });
    }
}

/// Columns of the widest panel.
const WIDEST: usize = 32;

fn add_multiple(to: &mut [f64; WIDEST], factor: f64, x: &[f64; WIDEST]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += factor * x;
    }
}

/// Distance of the points in a transformed weight.
fn point_distance(s: &ConvSizes) -> usize {
    spread(s.c_out.div_ceil(panel_width()) * s.c_in * panel_width())
}

/// Tiles and columns that are taken at once.
fn block_sizes(points: usize, s: &ConvSizes) -> (usize, usize) {
    // The transformed inputs of the tiles, and the products before their transform, should stay in
    // the second-level cache; but the weights are read once for all of the tiles, which a few do not
    // repay, least of all where the weights come from memory.
    const CACHE: usize = 64 << 10;
    const FEW_WEIGHTS: usize = 1 << 20;
    let fewest = if points * s.c_in * s.c_out <= FEW_WEIGHTS { 24 } else { 48 };
    let tiles = (CACHE / (points * s.c_in.next_multiple_of(16))).clamp(fewest, 48);
    let width = panel_width();
    let columns = (CACHE / (points * tiles) / width * width).max(4 * width);
    (tiles, columns)
}

/// The tiles of a convolution's outputs.
struct Grid {
    filter: Filter,
    maps: Maps,
    out: Maps,
    padding: [usize; 2],
    down: usize,
    across: usize,
}

impl Grid {
    /// Image, row and column of the first output of a tile.
    #[inline(always)]
    fn place(&self, tile: usize, [tall, wide]: [usize; 2]) -> (usize, usize, usize) {
        let (row, column) = (tile / self.across, tile % self.across);
        (row / self.down, row % self.down * tall, column * wide)
    }
}

vectorised! {
    unsafe fn input_tiles(grid: &Grid, x: &[f32], zeros: &[f32], tiles: Range<usize>, to: *mut f32, point: usize, depth: usize) = input_tiles_with
}

/// # Safety
/// `to` must be valid for `depth` channels, those of the map rounded up to a multiple of 16, of every
/// tile at every point.
#[inline(always)]
unsafe fn input_tiles_with<V: Vector>(
    grid: &Grid,
    x: &[f32],
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    point: usize,
    depth: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        with_axes!(grid.filter, input_tiles_by::<V>(grid, x, zeros, tiles, to, point, depth));
    }
}

#[inline(always)]
unsafe fn input_tiles_by<V: Vector, R: Axis, C: Axis>(
    grid: &Grid,
    x: &[f32],
    zeros: &[f32],
    tiles: Range<usize>,
    to: *mut f32,
    point: usize,
    depth: usize,
) {
    let Maps { channels, h, w, .. } = grid.maps;
    assert!(x.len() >= grid.maps.len() && zeros.len() >= channels);
    for (i, tile) in tiles.enumerate() {
        let (image, row, column) = grid.place(tile, [R::OUT, C::OUT]);
        let mut places = [zeros.as_ptr(); 49];
        let (row, column) = (row * R::STRIDE, column * C::STRIDE);
        for i in 0..R::IN {
            let Some(row) = (row + i).checked_sub(grid.padding[0]).filter(|row| *row < h) else {
                continue;
            };
            for j in 0..C::IN {
                let column = (column + j).checked_sub(grid.padding[1]).filter(|c| *c < w);
                if let Some(column) = column {
                    let pixel = (image * h + row) * w + column;
                    places[i * C::IN + j] = x.as_ptr().wrapping_add(pixel * channels);
                }
            }
        }
        // SAFETY (whole block): every place is followed by the channels of a pixel, or by as many
        // zeros; the caller's promise about `to`.
        unsafe {
            let to = to.add(i * depth);
            let whole = channels / V::LANES * V::LANES;
            for c in (0..whole).step_by(V::LANES) {
                input_tile::<V, R, C, false>(&places, c, 0, to.add(c), point);
            }
            if whole < channels {
                let rest = channels - whole;
                input_tile::<V, R, C, true>(&places, whole, rest, to.add(whole), point);
            }
        }
    }
}

/// A register of channels, the first `rest` of them when `TAIL`.
#[inline(always)]
unsafe fn load<V: Vector, const TAIL: bool>(from: *const f32, rest: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if TAIL { V::load_first(from, rest) } else { V::load(from) } }
}

/// B^T d B of one tile and register of channels.
#[inline(always)]
unsafe fn input_tile<V: Vector, R: Axis, C: Axis, const TAIL: bool>(
    places: &[*const f32; 49],
    c: usize,
    rest: usize,
    to: *mut f32,
    point: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let mut d = [zero; MOST];
        if R::IN == 1 || C::IN == 1 {
            for i in 0..R::IN * C::IN {
                d[i] = load::<V, TAIL>(places[i].add(c), rest);
            }
            let v = if R::IN == 1 { C::input(d) } else { R::input(d) };
            for i in 0..R::IN * C::IN {
                v[i].store(to.add(i * point));
            }
        } else {
            // Down the columns first.
            let mut half = [[zero; MOST]; 7];
            for j in 0..C::IN {
                for i in 0..R::IN {
                    d[i] = load::<V, TAIL>(places[i * C::IN + j].add(c), rest);
                }
                let v = R::input(d);
                for i in 0..R::IN {
                    half[i][j] = v[i];
                }
            }
            for i in 0..R::IN {
                let v = C::input(half[i]);
                for j in 0..C::IN {
                    v[j].store(to.add((i * C::IN + j) * point));
                }
            }
        }
    }
}

/// What the sums of some tiles and columns have given, `[tile][column]` at every multiple of `point`.
struct Products<'a> {
    values: &'a [f32],
    point: usize,
    /// Distance of the tiles.
    tile: usize,
    columns: usize,
    bias: &'a [f32],
}

/// relu(A^T m A + bias) of the tiles.
///
/// # Safety
/// Nobody else may touch these columns of the tiles' outputs meanwhile.
unsafe fn output_tiles(grid: &Grid, m: &Products<'_>, tiles: Range<usize>, y: Target<'_>) {
    let [points_tall, points_wide] = grid.filter.points();
    assert!(m.values.len() >= points_tall * points_wide * m.point);
    assert!(m.point >= tiles.len() * m.tile && m.bias.len() >= m.columns);
    assert!(m.columns.next_multiple_of(16) <= m.tile);
    let to = y.pixels(0..grid.out.pixels(), m.columns).pointer(0..0);
    // SAFETY: the checks above and the caller's promise.
    unsafe { output_block(grid, m, tiles, to, y.stride) };
}

vectorised! {
    unsafe fn output_block(grid: &Grid, m: &Products<'_>, tiles: Range<usize>, to: *mut f32, stride: usize) = output_block_with
}

/// # Safety
/// As for [`output_tiles`], which has checked the lengths.
#[inline(always)]
unsafe fn output_block_with<V: Vector>(
    grid: &Grid,
    m: &Products<'_>,
    tiles: Range<usize>,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        with_axes!(grid.filter, output_tiles_by::<V>(grid, m, tiles, to, stride));
    }
}

#[inline(always)]
unsafe fn output_tiles_by<V: Vector, R: Axis, C: Axis>(
    grid: &Grid,
    m: &Products<'_>,
    tiles: Range<usize>,
    to: *mut f32,
    stride: usize,
) {
    let Products { point, columns, bias, .. } = *m;
    let Maps { h, w, .. } = grid.out;
    for (i, tile) in tiles.enumerate() {
        let (image, row, column) = grid.place(tile, [R::OUT, C::OUT]);
        let inside = [R::OUT.min(h - row), C::OUT.min(w - column)];
        // SAFETY (whole block): the caller's promise; only outputs inside the map are written.
        unsafe {
            let to = to.add(((image * h + row) * w + column) * stride);
            let m = m.values.as_ptr().add(i * m.tile);
            let whole = columns / V::LANES * V::LANES;
            for c in (0..whole).step_by(V::LANES) {
                let bias = V::load(bias.as_ptr().add(c));
                let place = OutputPlace { to: to.add(c), row: w * stride, stride, inside, rest: 0 };
                output_tile::<V, R, C, false>(m.add(c), point, bias, place);
            }
            if whole < columns {
                let rest = columns - whole;
                let bias = V::load_first(bias.as_ptr().add(whole), rest);
                let to = to.add(whole);
                let place = OutputPlace { to, row: w * stride, stride, inside, rest };
                output_tile::<V, R, C, true>(m.add(whole), point, bias, place);
            }
        }
    }
}

/// Where the outputs of a tile go.
#[derive(Clone, Copy)]
struct OutputPlace {
    to: *mut f32,
    /// Distance of rows, and of pixels.
    row: usize,
    stride: usize,
    /// Rows and columns that lie inside the map.
    inside: [usize; 2],
    /// Entries of a partial register.
    rest: usize,
}

/// relu(A^T m A + bias) of one tile and register of columns.
#[inline(always)]
unsafe fn output_tile<V: Vector, R: Axis, C: Axis, const TAIL: bool>(
    m: *const f32,
    point: usize,
    bias: V,
    place: OutputPlace,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        let mut products = [zero; MOST];
        if R::IN == 1 || C::IN == 1 {
            for i in 0..R::IN * C::IN {
                products[i] = V::load(m.add(i * point));
            }
            let y = if R::IN == 1 { C::output(products) } else { R::output(products) };
            let step = if R::IN == 1 { place.stride } else { place.row };
            for i in 0..R::OUT * C::OUT {
                if i < place.inside[if R::IN == 1 { 1 } else { 0 }] {
                    let to = place.to.add(i * step);
                    store::<V, TAIL>(zero.max(y[i].add(bias)), to, place.rest);
                }
            }
        } else {
            let mut half = [[zero; MOST]; 4];
            for j in 0..C::IN {
                for i in 0..R::IN {
                    products[i] = V::load(m.add((i * C::IN + j) * point));
                }
                let y = R::output(products);
                for i in 0..R::OUT {
                    half[i][j] = y[i];
                }
            }
            for i in 0..R::OUT {
                if i < place.inside[0] {
                    let y = C::output(half[i]);
                    for j in 0..C::OUT {
                        if j < place.inside[1] {
                            let to = place.to.add(i * place.row + j * place.stride);
                            store::<V, TAIL>(zero.max(y[j].add(bias)), to, place.rest);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store<V: Vector, const TAIL: bool>(x: V, to: *mut f32, rest: usize) {
    // SAFETY: the caller's promise.
    unsafe { if TAIL { x.store_first(to, rest) } else { x.store(to) } }
}
