//! Convolutions by their definition: a product whose rows are windows of pixels.

use super::super::buffer::Scratch;
use super::super::product::{Product, Rows, Run, Start, WHOLE, panel_width, split};
use super::{ConvSizes, Maps, Target};
use rayon::prelude::*;
use std::ops::Range;

/// # Safety
/// As for [`super::ConvLayer::forward`], which has checked the sizes.
pub(super) unsafe fn forward(
    s: &ConvSizes,
    x: &[f32],
    maps: Maps,
    out: Maps,
    weight: &[f32],
    bias: &[f32],
    y: Target<'_>,
) {
    let window = s.window;
    // SAFETY: the caller's promise.
    unsafe {
        if (window.kernel, window.stride, window.padding) == ([1, 1], [1, 1], [0, 0]) {
            pointwise(s, x, out, weight, bias, y);
        } else {
            by_windows(s, x, maps, out, weight, bias, y);
        }
    }
}

/// Rows of a part: few enough that they and their results stay in the second-level cache, many enough
/// that reading all weights once per part is repaid.
const ROWS: usize = 48;

/// Every row is a pixel.
///
/// # Safety
/// As for [`forward`].
unsafe fn pointwise(
    s: &ConvSizes,
    x: &[f32],
    out: Maps,
    weight: &[f32],
    bias: &[f32],
    y: Target<'_>,
) {
    let pixels = out.pixels();
    let product = Product {
        a: x,
        rows: Rows::Every { stride: s.c_in, count: pixels },
        a_step: 1,
        b: weight,
        b_panel: s.c_in * panel_width(),
        b_step: panel_width(),
        runs: WHOLE,
        run_len: s.c_in,
        columns: s.c_out,
        start: Start::Columns(bias),
        relu: true,
    };
    let parts = parts(pixels);
    (0..parts).into_par_iter().for_each(|part| {
        let pixels = split(pixels, parts, part);
        let to = y.pixels(pixels.clone(), s.c_out);
        // SAFETY: the caller's promise; parts have their own pixels.
        unsafe { product.write_rows(to, y.stride, pixels) };
    });
}

/// Into how many parts to cut `rows`, so that all threads are busy.
fn parts(rows: usize) -> usize {
    let parts = rows.div_ceil(ROWS);
    let threads = rayon::current_num_threads();
    if parts >= 4 * threads { parts } else { (2 * threads).min(rows.div_ceil(12)).max(parts) }
}

/// Every row is a window, each kernel row of it one run of the input.
///
/// # Safety
/// As for [`forward`].
unsafe fn by_windows(
    s: &ConvSizes,
    x: &[f32],
    maps: Maps,
    out: Maps,
    weight: &[f32],
    bias: &[f32],
    y: Target<'_>,
) {
    let ([kh, kw], [down, across]) = (s.window.kernel, s.window.stride);
    let per_image = parts(out.pixels()).div_ceil(maps.images.max(1)).clamp(1, out.h.max(1));
    (0..maps.images * per_image).into_par_iter().for_each(|task| {
        let (image, rows) = (task / per_image, split(out.h, per_image, task % per_image));
        let image_x = &x[image * maps.len() / maps.images..][..maps.len() / maps.images];
        let first_pixel = (image * out.h + rows.start) * out.w;
        let pixels = rows.len() * out.w;
        let bordered;
        let (input, width, first) = if s.window.padding == [0, 0] {
            (image_x, maps.w, rows.start * down)
        } else {
            bordered = with_border(s, image_x, maps, &rows);
            (&*bordered, maps.w + 2 * s.window.padding[1], 0)
        };
        let pixel = |row: usize, column: usize| (row * width + column) * s.c_in;
        let offsets: Vec<usize> =
            (0..pixels).map(|p| pixel(first + p / out.w * down, p % out.w * across)).collect();
        let runs: Vec<Run> = (0..kh)
            .map(|ky| Run { a: pixel(ky, 0), b: ky * kw * s.c_in * panel_width() })
            .collect();
        let product = Product {
            a: input,
            rows: Rows::At(&offsets),
            a_step: 1,
            b: weight,
            b_panel: kh * kw * s.c_in * panel_width(),
            b_step: panel_width(),
            runs: &runs,
            run_len: kw * s.c_in,
            columns: s.c_out,
            start: Start::Columns(bias),
            relu: true,
        };
        let to = y.pixels(first_pixel..first_pixel + pixels, s.c_out);
        // SAFETY: the caller's promise; tasks have their own pixels.
        unsafe { product.write_rows(to, y.stride, 0..pixels) };
    });
}

/// The rows of an image that the output rows read, with zeros for the padding.
fn with_border(s: &ConvSizes, image: &[f32], maps: Maps, rows: &Range<usize>) -> Scratch {
    let [top, left] = s.window.padding;
    let width = (maps.w + 2 * left) * s.c_in;
    let first = rows.start * s.window.stride[0];
    let height = (rows.len().max(1) - 1) * s.window.stride[0] + s.window.kernel[0];
    let mut bordered = Scratch::new(height * width);
    for (i, to) in bordered.chunks_exact_mut(width.max(1)).enumerate() {
        match (first + i).checked_sub(top).filter(|row| *row < maps.h) {
            Some(row) => {
                let (before, rest) = to.split_at_mut(left * s.c_in);
                let (inside, behind) = rest.split_at_mut(maps.w * s.c_in);
                before.fill(0.0);
                inside.copy_from_slice(&image[row * maps.w * s.c_in..][..maps.w * s.c_in]);
                behind.fill(0.0);
            }
            None => to.fill(0.0),
        }
    }
    bordered
}
