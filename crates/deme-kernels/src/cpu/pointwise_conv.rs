//! 1x1 convolutions: matrix products on the planes as they are stored.
//!
//! The input's channels may lie in two tensors, the second's behind the first's: the layer behind a
//! skip connection then needs no concatenated copy.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{ConvShape, pack_rows_into};
use super::product::{Product, Rows, Run, Start, WHOLE, panel_width};
use super::transpose::planes_to_pixels;
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one call: the parts of x are `[images, c_in[i], area]`, y is `[images, c_out, area]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PointwiseShape {
    pub images: usize,
    pub c_in: [usize; 2],
    pub c_out: usize,
    pub area: usize,
}

impl PointwiseShape {
    /// That of a convolution of one tensor.
    pub(crate) fn of(s: &ConvShape) -> Self {
        Self { images: s.images, c_in: [s.c_in, 0], c_out: s.c_out, area: s.h * s.w }
    }

    /// Channels of x.
    pub(crate) fn depth(&self) -> usize {
        self.c_in.iter().sum()
    }

    fn check(&self, x: [usize; 2], weight: usize, y: usize) {
        assert_eq!(x, self.c_in.map(|c| self.images * c * self.area));
        assert_eq!([weight, y], [self.c_out * self.depth(), self.images * self.c_out * self.area]);
    }
}

/// y = W x + bias, image by image.
///
/// # Safety
/// Nobody else may touch `y` meanwhile. On return all of it is written.
pub(crate) unsafe fn forward(
    s: &PointwiseShape,
    x: [&[f32]; 2],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    s.check(x.map(<[f32]>::len), weight.len(), y.len());
    assert_eq!(bias.len(), s.c_out);
    let rows = Rows::Every { stride: s.depth(), count: s.c_out };
    // SAFETY: the caller's promise.
    unsafe { per_image(s, x, s.c_in, (weight, rows, 1), Start::Rows(bias), [(y, s.c_out)]) }
}

/// dx = W^T dy, image by image, to the parts of x.
///
/// # Safety
/// Nobody else may touch `dx` meanwhile. On return all of it is written.
pub(crate) unsafe fn input_gradient(
    s: &PointwiseShape,
    weight: &[f32],
    dy: &[f32],
    dx: [SharedOutput<'_>; 2],
) {
    s.check(dx.map(|dx| dx.len()), weight.len(), dy.len());
    let rows = Rows::Every { stride: 1, count: s.depth() };
    let out = [(dx[0], s.c_in[0]), (dx[1], s.c_in[1])];
    let matrix = (weight, rows, s.depth());
    // SAFETY: the caller's promise.
    unsafe { per_image(s, [dy, &[]], [s.c_out, 0], matrix, Start::Zero, out) }
}

/// out = matrix * planes, image by image; the rows of the matrix (its entries, rows and the step
/// along a row) go to the outputs one after the other, as many as each has channels.
///
/// # Safety
/// Nobody else may touch the outputs meanwhile.
unsafe fn per_image<const N: usize>(
    s: &PointwiseShape,
    planes: [&[f32]; 2],
    depths: [usize; 2],
    (matrix, rows, a_step): (&[f32], Rows<'_>, usize),
    start: Start<'_>,
    outputs: [(SharedOutput<'_>, usize); N],
) {
    let (area, width) = (s.area, panel_width());
    let depth = depths[0] + depths[1];
    // A few panels at a time: side by side, since rows a whole plane apart would crowd one cache
    // set, and no more than the second-level cache holds.
    let columns = ((64 << 10) / depth.max(1)).clamp(width, 8 * width) / width * width;
    let blocks = area.div_ceil(columns);
    (0..s.images * blocks).into_par_iter().for_each(|task| {
        let (image, first) = (task / blocks, task % blocks * columns);
        let columns = columns.min(area - first);
        let mut packed = Scratch::new(columns.div_ceil(width) * depth * width);
        let mut done = 0;
        for (planes, depth_of_part) in planes.into_iter().zip(depths) {
            if depth_of_part > 0 {
                let from = &planes[image * depth_of_part * area + first..];
                pack_rows_into(from, area, depth_of_part, columns, depth, done, &mut packed);
            }
            done += depth_of_part;
        }
        let product = Product {
            a: matrix,
            rows,
            a_step,
            b: &packed,
            b_panel: depth * width,
            b_step: width,
            runs: WHOLE,
            run_len: depth,
            columns,
            start,
            relu: false,
        };
        let mut row = 0;
        for (out, channels) in outputs {
            if channels == 0 {
                continue;
            }
            // The product writes its row i at i * area, and the output begins with row `row`.
            let begin = image * channels * area + first;
            let out = out.range(begin..begin + (channels - 1) * area + columns);
            // SAFETY: the caller's promise; images and columns are disjoint.
            unsafe { product.write_rows(out, area, row..row + channels) };
            row += channels;
        }
    });
}

/// dW = sum over images of dy x^T.
pub(crate) fn weight_gradient(s: &PointwiseShape, x: [&[f32]; 2], dy: &[f32], dweight: &mut [f32]) {
    s.check(x.map(<[f32]>::len), dweight.len(), dy.len());
    let (area, width) = (s.area, panel_width());
    let panels = s.depth().div_ceil(width);
    // Some images, or some pixels of one image, at a time, so that their copy stays small.
    let pixels_at_once = ((4 << 20) / (panels * width).max(1)).max(1);
    let images_at_once = (pixels_at_once / area.max(1)).max(1);
    let pixels_at_once = pixels_at_once.min(area.max(1));
    let mut start = Start::Zero;
    for first_image in (0..s.images).step_by(images_at_once) {
        let images = images_at_once.min(s.images - first_image);
        for first in (0..area).step_by(pixels_at_once) {
            let pixels = first..area.min(first + pixels_at_once);
            add_weight_gradient(
                s,
                x,
                dy,
                first_image..first_image + images,
                pixels,
                start,
                dweight,
            );
            start = Start::Existing;
        }
    }
    if matches!(start, Start::Zero) {
        dweight.fill(0.0);
    }
}

/// What some pixels of some images contribute to dW.
fn add_weight_gradient(
    s: &PointwiseShape,
    x: [&[f32]; 2],
    dy: &[f32],
    images: Range<usize>,
    pixels: Range<usize>,
    start: Start<'_>,
    dweight: &mut [f32],
) {
    let (area, width, n) = (s.area, panel_width(), images.len());
    // x as `[panel of channels][image][pixel][channel]`.
    let panel_len = n * pixels.len() * width;
    let panels = s.depth().div_ceil(width);
    let mut packed = Scratch::new(panels * panel_len);
    let out = SharedOutput::new(&mut packed);
    (0..panels * n).into_par_iter().for_each(|task| {
        let (panel, image) = (task / n, images.start + task % n);
        let place = task * pixels.len() * width;
        let to = out.pointer(place..place + pixels.len() * width);
        // SAFETY: in bounds by `pointer`; every task has its own image of a panel.
        let to = unsafe { std::slice::from_raw_parts_mut(to, pixels.len() * width) };
        let mut begin = 0;
        for (x, channels) in x.into_iter().zip(s.c_in) {
            // The part's channels in this panel.
            let within = |c: usize| c.clamp(begin, begin + channels);
            let (first, last) = (within(panel * width), within((panel + 1) * width));
            if first < last {
                let from = &x[(image * channels + first - begin) * area + pixels.start..];
                let lane = first - panel * width;
                planes_to_pixels(from, area, last - first, pixels.len(), to, |p| p * width + lane);
            }
            begin += channels;
        }
    });
    let run = |i: usize| Run {
        a: (images.start + i) * s.c_out * area + pixels.start,
        b: i * pixels.len() * width,
    };
    let runs: Vec<Run> = (0..n).map(run).collect();
    let product = Product {
        a: dy,
        rows: Rows::Every { stride: area, count: s.c_out },
        a_step: 1,
        b: &packed,
        b_panel: panel_len,
        b_step: width,
        runs: &runs,
        run_len: pixels.len(),
        columns: s.depth(),
        start,
        relu: false,
    };
    // SAFETY: `dweight` is borrowed mutably.
    unsafe { product.write_parallel(SharedOutput::new(dweight), s.depth()) };
}
