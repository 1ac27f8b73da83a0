//! The two-dimensional transforms of whole rows of tiles, 16 or more channels at a time.

use super::super::vector::{Vector, vectorised};
use super::transform::{Four, Transform, Two};
use super::{Layout, Size};

vectorised! {
    pub(super) unsafe fn input_tiles(size: Size, src: &[f32], places: &[usize], channels: usize, to: *mut f32, layout: Layout) = input_tiles_with
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
    pub(super) unsafe fn gradient_tiles(size: Size, src: &[f32], places: &[usize], channels: usize, to: *mut f32, layout: Layout) = gradient_tiles_with
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
/// `m` is `[tiles][columns]` at every multiple of `point`, with `columns` a multiple of 16, `offset` has `columns`
/// entries, and every place is followed by `columns` entries of `out`.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn output_tiles(
    size: Size,
    m: &[f32],
    point: usize,
    first: usize,
    columns: usize,
    places: &[usize],
    offset: &[f32],
    out: &mut [f32],
) {
    assert!(m.len() >= size.points() * point && offset.len() >= columns);
    let last = first + places.len() / (size.out() * size.out());
    assert!(last * columns <= point);
    assert!(places.iter().all(|place| place + columns <= out.len()));
    let from = &m[first * columns..];
    // SAFETY: the checks above and the caller's promise.
    unsafe { output_block(size, from, point, columns, places, offset, out.as_mut_ptr()) }
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
    pub(super) unsafe fn weight_tiles(size: Size, taps: &[f32], width: usize, to: *mut f32, point: usize) = weight_tiles_with
}

/// G g G^T of as many kernels as `taps` holds, `[k][tap][column]`, to `[point][k][column]`.
///
/// # Safety
/// `width`, the columns, is 16 or 32, and `to` valid for all k at every multiple of `point`.
#[inline(always)]
unsafe fn weight_tiles_with<V: Vector>(
    size: Size,
    taps: &[f32],
    width: usize,
    to: *mut f32,
    point: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => weight_tiles_by::<V, Two>(taps, width, to, point),
            Size::Four => weight_tiles_by::<V, Four>(taps, width, to, point),
        }
    }
}

#[inline(always)]
unsafe fn weight_tiles_by<V: Vector, T: Transform>(
    taps: &[f32],
    width: usize,
    to: *mut f32,
    point: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for (k, taps) in taps.chunks_exact(9 * width).enumerate() {
            for c in (0..width).step_by(V::LANES) {
                let mut half = [[zero; 3]; 6];
                for j in 0..3 {
                    let mut g = [zero; 3];
                    for i in 0..3 {
                        g[i] = V::load(taps.as_ptr().add((i * 3 + j) * width + c));
                    }
                    let g = T::weight(g);
                    for i in 0..T::IN {
                        half[i][j] = g[i];
                    }
                }
                for i in 0..T::IN {
                    let row = T::weight(half[i]);
                    for j in 0..T::IN {
                        row[j].store(to.add((i * T::IN + j) * point + k * width + c));
                    }
                }
            }
        }
    }
}

vectorised! {
    pub(super) unsafe fn weight_gradient_tiles(size: Size, du: &[f32], point: usize, row: usize, taps: &mut [f32]) = weight_gradient_tiles_with
}

/// G^T u G of as many kernels as `taps` has room for, `[k][tap][16 columns]`.
///
/// # Safety
/// `du` holds 16 columns at `k * row` behind every multiple of `point`.
#[inline(always)]
unsafe fn weight_gradient_tiles_with<V: Vector>(
    size: Size,
    du: &[f32],
    point: usize,
    row: usize,
    taps: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            Size::Two => weight_gradient_tiles_by::<V, Two>(du, point, row, taps),
            Size::Four => weight_gradient_tiles_by::<V, Four>(du, point, row, taps),
        }
    }
}

#[inline(always)]
unsafe fn weight_gradient_tiles_by<V: Vector, T: Transform>(
    du: &[f32],
    point: usize,
    row: usize,
    taps: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::splat(0.0);
        for (k, taps) in taps.chunks_exact_mut(9 * 16).enumerate() {
            for c in (0..16).step_by(V::LANES) {
                let from = du.as_ptr().add(k * row + c);
                let mut half = [[zero; 6]; 3];
                for j in 0..T::IN {
                    let mut u = [zero; 6];
                    for i in 0..T::IN {
                        u[i] = V::load(from.add((i * T::IN + j) * point));
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
}
