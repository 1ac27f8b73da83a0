//! The weights' side of the transform, forward and for the input gradient.

use super::super::buffer::{Scratch, SharedOutput};
use super::super::conv::spread;
use super::super::product::{panel_width, split};
use super::super::transpose::planes_to_pixels;
use super::Size;
use super::tiles::weight_tiles;
use rayon::prelude::*;
use std::ops::Range;

/// The weight of a convolution, `[c_out, c_in, 3, 3]`, and in which sense it is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub values: &'a [f32],
    pub c_in: usize,
    pub c_out: usize,
    /// The convolution of the input gradient: from the output's channels to the input's, with the
    /// kernel turned by half a turn.
    pub rotated: bool,
}

impl Weights<'_> {
    /// Channels of what is convolved.
    pub(super) fn depth(&self) -> usize {
        if self.rotated { self.c_out } else { self.c_in }
    }

    /// Channels of the result.
    pub(super) fn columns(&self) -> usize {
        if self.rotated { self.c_in } else { self.c_out }
    }

    /// G g G^T of one panel of columns and some of the depth, to `[point][k][column]`.
    ///
    /// # Safety
    /// `to` must be valid for the k asked for at every multiple of `point`.
    pub(super) unsafe fn transform(
        &self,
        size: Size,
        panel: usize,
        ks: Range<usize>,
        to: *mut f32,
        point: usize,
    ) {
        let width = panel_width();
        let first = panel * width;
        let used = width.min(self.columns() - first);
        // A few k at a time, so that their taps stay in the nearest cache.
        const AT_ONCE: usize = 8;
        let mut taps = [0.0f32; AT_ONCE * 9 * 32];
        let mut k = ks.start;
        while k < ks.end {
            let n = AT_ONCE.min(ks.end - k);
            let taps = &mut taps[..n * 9 * width];
            if self.rotated {
                for i in 0..n {
                    let kernels = &self.values[((k + i) * self.c_in + first) * 9..];
                    planes_to_pixels(kernels, 9, used, 9, taps, |t| (i * 9 + 8 - t) * width);
                }
            } else {
                let kernels = &self.values[(first * self.c_in + k) * 9..];
                planes_to_pixels(kernels, self.c_in * 9, used, n * 9, taps, |p| p * width);
            }
            // SAFETY: the caller's promise.
            unsafe { weight_tiles(size, taps, width, to.add((k - ks.start) * width), point) };
            k += n;
        }
    }

    /// G g G^T of all, as `[point][panel][k][column]`, and the distance of the points.
    pub(super) fn transform_all(&self, size: Size) -> (Scratch, usize) {
        let (depth, width) = (self.depth(), panel_width());
        let panels = self.columns().div_ceil(width);
        let point = spread(panels * depth * width);
        let mut u = Scratch::new(size.points() * point);
        let out = SharedOutput::new(&mut u);
        let parts = depth.div_ceil(64);
        (0..panels * parts).into_par_iter().for_each(|task| {
            let (panel, ks) = (task / parts, split(depth, parts, task % parts));
            let start = (panel * depth + ks.start) * width;
            let end = (size.points() - 1) * point + start + ks.len() * width;
            let to = out.pointer(start..end);
            // SAFETY: in bounds by `pointer`; every task has its own panel and k.
            unsafe { self.transform(size, panel, ks, to, point) };
        });
        (u, point)
    }
}
