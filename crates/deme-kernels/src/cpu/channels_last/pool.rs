//! Pooling: each window's largest value or mean.

use super::super::vector::{Vector, vectorised};
use super::{Maps, Target};
use crate::{AverageOver, Window};
use rayon::prelude::*;

/// What becomes of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    Max,
    Average(AverageOver),
}

/// Pools `x`, `maps`, to maps of the same channels.
///
/// # Safety
/// Nobody else may touch these channels of `y` meanwhile. On return all of them are written.
pub(crate) unsafe fn pool(
    pooling: Pooling,
    window: Window,
    x: &[f32],
    maps: Maps,
    out: Maps,
    y: Target<'_>,
) {
    assert_eq!(x.len(), maps.len());
    assert!(window.padding.iter().zip(window.kernel).all(|(p, k)| 2 * p <= k), "{window:?}");
    assert_eq!(window.output_size([maps.h, maps.w]), Some([out.h, out.w]));
    (0..out.images * out.h).into_par_iter().with_min_len(4).for_each(|row| {
        let (image, row) = (row / out.h, row % out.h);
        let image_x = &x[image * maps.len() / maps.images..][..maps.len() / maps.images];
        let first = (image * out.h + row) * out.w;
        let to = y.pixels(first..first + out.w, maps.channels).pointer(0..0);
        let task = Row { pooling, window, maps, out, stride: y.stride };
        // SAFETY: the row lies inside `y` by `pixels`; the caller's promise, and rows are disjoint.
        unsafe { pool_row(&task, image_x, row, to) };
    });
}

/// What the rows of a pooling have in common.
struct Row {
    pooling: Pooling,
    window: Window,
    maps: Maps,
    out: Maps,
    stride: usize,
}

vectorised! {
    unsafe fn pool_row(task: &Row, x: &[f32], row: usize, to: *mut f32) = pool_row_with
}

/// # Safety
/// `to` must be valid for the channels of every pixel of the row, `stride` apart.
#[inline(always)]
unsafe fn pool_row_with<V: Vector>(task: &Row, x: &[f32], row: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match task.pooling {
            Pooling::Max => pool_row_by::<V, true>(task, x, row, to),
            Pooling::Average(_) => pool_row_by::<V, false>(task, x, row, to),
        }
    }
}

#[inline(always)]
unsafe fn pool_row_by<V: Vector, const MAX: bool>(task: &Row, x: &[f32], row: usize, to: *mut f32) {
    let Row { pooling, window, maps, out, stride } = *task;
    let channels = maps.channels;
    // The rows or columns of the map that a window covers.
    let inside = |axis: usize, i: usize, n: usize| {
        let first = i * window.stride[axis];
        let begin = first.saturating_sub(window.padding[axis]).min(n);
        begin..(first + window.kernel[axis]).saturating_sub(window.padding[axis]).clamp(begin, n)
    };
    let rows = inside(0, row, maps.h);
    for column in 0..out.w {
        let columns = inside(1, column, maps.w);
        let count = match pooling {
            Pooling::Average(AverageOver::Window) => window.kernel[0] * window.kernel[1],
            _ => rows.len() * columns.len(),
        };
        let part = Part {
            from: x.as_ptr().wrapping_add((rows.start * maps.w + columns.start) * channels),
            size: [rows.len(), columns.len()],
            steps: [maps.w * channels, channels],
            factor: 1.0 / count as f32,
        };
        // SAFETY (whole block): the window lies inside the image, the channels below `channels`; the
        // caller's promise about `to`.
        unsafe {
            let to = to.add(column * stride);
            let mut c = 0;
            while c + 4 * V::LANES <= channels {
                reduce::<V, 4, MAX, false>(part.at(c), 0, to.add(c));
                c += 4 * V::LANES;
            }
            while c + V::LANES <= channels {
                reduce::<V, 1, MAX, false>(part.at(c), 0, to.add(c));
                c += V::LANES;
            }
            if c < channels {
                reduce::<V, 1, MAX, true>(part.at(c), channels - c, to.add(c));
            }
        }
    }
}

/// The part of a window that lies inside the map, from one channel on.
#[derive(Clone, Copy)]
struct Part {
    from: *const f32,
    /// Rows and columns.
    size: [usize; 2],
    /// Distance of the rows and columns.
    steps: [usize; 2],
    /// What the sum is multiplied with.
    factor: f32,
}

impl Part {
    fn at(self, channel: usize) -> Self {
        Self { from: self.from.wrapping_add(channel), ..self }
    }
}

/// The largest value, or the sum times the factor, of N registers of channels side by side, so that their
/// chains of operations overlap; of the first `rest` channels of one register when `TAIL`.
#[inline(always)]
unsafe fn reduce<V: Vector, const N: usize, const MAX: bool, const TAIL: bool>(
    part: Part,
    rest: usize,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut result = [V::splat(if MAX { f32::NEG_INFINITY } else { 0.0 }); N];
        for i in 0..part.size[0] {
            for j in 0..part.size[1] {
                let at = part.from.add(i * part.steps[0] + j * part.steps[1]);
                for n in 0..N {
                    let at = at.add(n * V::LANES);
                    let x = if TAIL { V::load_first(at, rest) } else { V::load(at) };
                    result[n] = if MAX { result[n].max(x) } else { result[n].add(x) };
                }
            }
        }
        for n in 0..N {
            let mut result = result[n];
            if !MAX {
                result = result.mul(V::splat(part.factor));
            }
            if TAIL {
                result.store_first(to, rest);
            } else {
                result.store(to.add(n * V::LANES));
            }
        }
    }
}
