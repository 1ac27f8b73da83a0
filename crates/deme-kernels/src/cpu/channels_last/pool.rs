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
    let Row { pooling, window, maps, out, stride } = *task;
    let inside = |axis: usize, i: usize, n: usize| {
        let first = i * window.stride[axis];
        let begin = first.saturating_sub(window.padding[axis]).min(n);
        begin..(first + window.kernel[axis]).saturating_sub(window.padding[axis]).clamp(begin, n)
    };
    let rows = inside(0, row, maps.h);
    let row_len = maps.w * maps.channels;
    for column in 0..out.w {
        let columns = inside(1, column, maps.w);
        let count = match pooling {
            Pooling::Average(AverageOver::Window) => window.kernel[0] * window.kernel[1],
            _ => rows.len() * columns.len(),
        };
        let factor = 1.0 / count as f32;
        let first = (rows.start * maps.w + columns.start) * maps.channels;
        // SAFETY (whole loop): the window lies inside the image, the channel below `channels`.
        unsafe {
            let from = x.as_ptr().wrapping_add(first);
            let to = to.add(column * stride);
            let mut c = 0;
            while c < maps.channels {
                let n = maps.channels - c;
                let mut result = match pooling {
                    Pooling::Max => V::splat(f32::NEG_INFINITY),
                    Pooling::Average(_) => V::splat(0.0),
                };
                for i in 0..rows.len() {
                    for j in 0..columns.len() {
                        let at = from.add(i * row_len + j * maps.channels + c);
                        let x = if n >= V::LANES { V::load(at) } else { V::load_first(at, n) };
                        result = match pooling {
                            Pooling::Max => result.max(x),
                            Pooling::Average(_) => result.add(x),
                        };
                    }
                }
                if let Pooling::Average(_) = pooling {
                    result = result.mul(V::splat(factor));
                }
                if n >= V::LANES {
                    result.store(to.add(c));
                } else {
                    result.store_first(to.add(c), n);
                }
                c += V::LANES;
            }
        }
    }
}
