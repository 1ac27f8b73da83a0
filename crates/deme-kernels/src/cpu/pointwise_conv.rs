//! 1x1 convolutions: matrix products on the planes as they are stored.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{ConvShape, pack_rows, parts_per_item, spread};
use super::product::{Product, Rows, Run, Start, WHOLE, panel_width, split};
use super::transpose::planes_to_pixels;
use rayon::prelude::*;

/// # Safety
/// As for [`super::conv::forward`].
pub(crate) unsafe fn forward(
    s: &ConvShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    let rows = Rows::Every { stride: s.c_in, count: s.c_out };
    // SAFETY: the caller's promise.
    unsafe { per_image(s, weight, rows, 1, s.c_in, x, Start::Rows(bias), y) }
}

/// # Safety
/// As for [`super::conv::input_gradient`].
pub(crate) unsafe fn input_gradient(
    s: &ConvShape,
    weight: &[f32],
    dy: &[f32],
    dx: SharedOutput<'_>,
) {
    let rows = Rows::Every { stride: 1, count: s.c_in };
    // SAFETY: the caller's promise.
    unsafe { per_image(s, weight, rows, s.c_in, s.c_out, dy, Start::Zero, dx) }
}

/// out[image] = matrix * planes[image].
///
/// # Safety
/// Nobody else may touch `out` meanwhile.
#[allow(clippy::too_many_arguments)]
unsafe fn per_image(
    s: &ConvShape,
    matrix: &[f32],
    rows: Rows<'_>,
    a_step: usize,
    depth: usize,
    planes: &[f32],
    start: Start<'_>,
    out: SharedOutput<'_>,
) {
    let area = s.h * s.w;
    let count = rows.len();
    let parts = parts_per_item(s.images, count.div_ceil(24));
    (0..s.images * parts).into_par_iter().for_each(|task| {
        let (image, part) = (task / parts, task % parts);
        // Panels next to each other: rows a whole plane apart would crowd one cache set.
        let packed = pack_rows(&planes[image * depth * area..], area, depth, area);
        let product = Product {
            a: matrix,
            rows,
            a_step,
            b: &packed,
            b_panel: depth * panel_width(),
            b_step: panel_width(),
            runs: WHOLE,
            run_len: depth,
            columns: area,
            start,
        };
        let first = image * count * area;
        let image = out.range(first..first + count * area);
        // SAFETY: the caller's promise; images and row parts are disjoint.
        unsafe { product.write_part(image, area, split(count, parts, part), 0..product.panels()) };
    });
}

/// dW = sum over images of dy x^T.
pub(crate) fn weight_gradient(s: &ConvShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let area = s.h * s.w;
    let cp = spread(s.c_in);
    let mut pixels = Scratch::new(s.images * area * cp);
    if s.images * area > 0 && s.c_in > 0 {
        let images = pixels.par_chunks_mut(area * cp).zip(x.par_chunks(s.c_in * area));
        images.for_each(|(pixels, x)| {
            planes_to_pixels(x, area, s.c_in, area, pixels, |p| p * cp);
        });
    }
    let run = |n| Run { a: n * s.c_out * area, b: n * area * cp };
    let runs: Vec<Run> = (0..s.images).map(run).collect();
    let product = Product {
        a: dy,
        rows: Rows::Every { stride: area, count: s.c_out },
        a_step: 1,
        b: &pixels,
        b_panel: panel_width(),
        b_step: cp,
        runs: &runs,
        run_len: area,
        columns: s.c_in,
        start: Start::Zero,
    };
    // SAFETY: `dweight` is borrowed mutably.
    unsafe { product.write_parallel(SharedOutput::new(dweight), s.c_in) };
}
