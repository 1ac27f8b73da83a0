//! Convolutions by their definition, for any kernel, stride and padding.
//!
//! The input is copied once to `[pixel][channel]` with its zero border, so that every kernel row
//! is one run of the product: no im2col buffer is made.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{ConvShape, packed_panels, parts_per_item, spread};
use super::product::{Product, Rows, Run, Start, WHOLE, panel_width, split};
use super::transpose::{pixels_to_planes, planes_to_pixels};
use rayon::prelude::*;
use std::ops::Range;

/// Channels up to which a vector of pixels is used better than a vector of channels.
const FEW_CHANNELS: usize = 8;

/// # Safety
/// As for [`super::conv::forward`].
pub(crate) unsafe fn forward(
    s: &ConvShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    if s.c_out <= FEW_CHANNELS && s.stride == 1 {
        // SAFETY: the caller's promise.
        return unsafe { forward_to_few(s, x, weight, bias, y) };
    }
    if s.c_in <= FEW_CHANNELS && s.w_out >= 8 {
        // SAFETY: the caller's promise.
        return unsafe { forward_from_few(s, x, weight, bias, y) };
    }
    let (taps, k) = (s.taps(), s.kernel);
    // `[panel][tap][c_in][column]`
    let places: Vec<usize> =
        (0..s.c_in * taps).map(|p| ((p % taps) * s.c_in + p / taps) * panel_width()).collect();
    let packed = packed_panels(taps * s.c_in, s.c_out, |first, used, packed| {
        let kernels = &weight[first * s.c_in * taps..];
        let len = s.c_in * taps;
        planes_to_pixels(kernels, len, used, len, packed, |p| places[p]);
    });
    let parts = row_parts(s, s.h_out, s.stride * s.w * s.c_in + s.w_out * s.c_out);
    (0..s.images * parts).into_par_iter().for_each(|task| {
        let (image, rows) = (task / parts, split(s.h_out, parts, task % parts));
        if rows.is_empty() {
            return;
        }
        let border = Border::of_input(s, &rows);
        let x = &x[image * s.c_in * s.h * s.w..][..s.c_in * s.h * s.w];
        let input = border.pixels(x, s.c_in, s.h, s.w);
        let pixel = |y: usize, x: usize| (y * border.width + x) * s.c_in;
        let offsets: Vec<usize> = (0..rows.len() * s.w_out)
            .map(|p| pixel(p / s.w_out * s.stride, p % s.w_out * s.stride))
            .collect();
        let panel = taps * s.c_in * panel_width();
        let runs: Vec<Run> =
            (0..k).map(|ky| Run { a: pixel(ky, 0), b: ky * k * s.c_in * panel_width() }).collect();
        let product = Product {
            a: &input,
            rows: Rows::At(&offsets),
            a_step: 1,
            b: &packed,
            b_panel: panel,
            b_step: panel_width(),
            runs: &runs,
            run_len: k * s.c_in,
            columns: s.c_out,
            start: Start::Columns(bias),
            relu: false,
        };
        let mut out = Scratch::new(offsets.len() * s.c_out);
        product.write(&mut out, s.c_out);
        let area = s.h_out * s.w_out;
        let first = image * s.c_out * area + rows.start * s.w_out;
        let end = first + (s.c_out - 1) * area + offsets.len();
        // SAFETY: in bounds by `pointer`; the caller's promise, and parts are disjoint.
        unsafe {
            let to = y.pointer(first..end);
            pixels_to_planes(&out, |p| p * s.c_out, s.c_out, offsets.len(), to, area);
        }
    });
}

/// Stride 1 to a few channels: the vector runs along the pixels of the bordered planes, row ends
/// included; what is computed there is dropped.
///
/// # Safety
/// As for [`super::conv::forward`].
unsafe fn forward_to_few(
    s: &ConvShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    let (taps, k) = (s.taps(), s.kernel);
    let parts = parts_per_item(s.images, s.h_out.div_ceil(4));
    (0..s.images * parts).into_par_iter().for_each(|task| {
        let (image, rows) = (task / parts, split(s.h_out, parts, task % parts));
        if rows.is_empty() {
            return;
        }
        let border = Border::of_input(s, &rows);
        let x = &x[image * s.c_in * s.h * s.w..][..s.c_in * s.h * s.w];
        let plane = border.height * border.width;
        let planes = border.planes(x, s.c_in, s.h, s.w);
        let runs: Vec<Run> =
            (0..taps).map(|tap| Run { a: tap, b: tap / k * border.width + tap % k }).collect();
        let columns = (rows.len() - 1) * border.width + s.w_out;
        let product = Product {
            a: weight,
            rows: Rows::Every { stride: s.c_in * taps, count: s.c_out },
            a_step: taps,
            b: &planes,
            b_panel: panel_width(),
            b_step: plane,
            runs: &runs,
            run_len: s.c_in,
            columns,
            start: Start::Rows(bias),
            relu: false,
        };
        let mut out = Scratch::new(s.c_out * columns);
        product.write(&mut out, columns);
        for c in 0..s.c_out {
            for (i, row) in rows.clone().enumerate() {
                let from = &out[c * columns + i * border.width..][..s.w_out];
                let first = ((image * s.c_out + c) * s.h_out + row) * s.w_out;
                let to = y.pointer(first..first + s.w_out);
                // SAFETY: in bounds by `pointer`; the caller's promise, and rows are disjoint.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), s.w_out) };
            }
        }
    });
}

/// From a few channels: the vector runs along the pixels of the output rows, whose inputs are
/// gathered a few registers at a time (im2col, never larger than the nearest cache).
///
/// # Safety
/// As for [`super::conv::forward`].
unsafe fn forward_from_few(
    s: &ConvShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    let (taps, k, width) = (s.taps(), s.kernel, panel_width());
    let depth = s.c_in * taps;
    // Output rows that fill about eight panels.
    let group = (8 * width).div_ceil(s.w_out).min(s.h_out);
    let groups = s.h_out.div_ceil(group);
    let parts = parts_per_item(s.images, groups);
    (0..s.images * parts).into_par_iter().for_each(|task| {
        let (image, groups) = (task / parts, split(groups, parts, task % parts));
        if groups.is_empty() {
            return;
        }
        let rows = groups.start * group..s.h_out.min(groups.end * group);
        let border = Border::of_input(s, &rows);
        let x = &x[image * s.c_in * s.h * s.w..][..s.c_in * s.h * s.w];
        let planes = border.planes(x, s.c_in, s.h, s.w);
        let plane = border.height * border.width;
        let mut columns = Scratch::new((group * s.w_out).div_ceil(width) * depth * width);
        for first in rows.clone().step_by(group) {
            let last = rows.end.min(first + group);
            for i in 0..depth {
                let (ci, tap) = (i / taps, i % taps);
                for row in first..last {
                    let from = (row - rows.start) * s.stride + tap / k;
                    let from = &planes[ci * plane + from * border.width + tap % k..];
                    let mut column = 0;
                    while column < s.w_out {
                        // As far as the row and the panel go.
                        let p = (row - first) * s.w_out + column;
                        let n = (width - p % width).min(s.w_out - column);
                        let to = &mut columns[(p / width * depth + i) * width + p % width..][..n];
                        if s.stride == 1 {
                            to.copy_from_slice(&from[column..column + n]);
                        } else {
                            for (j, to) in to.iter_mut().enumerate() {
                                *to = from[(column + j) * s.stride];
                            }
                        }
                        column += n;
                    }
                }
            }
            let product = Product {
                a: weight,
                rows: Rows::Every { stride: depth, count: s.c_out },
                a_step: 1,
                b: &columns,
                b_panel: depth * width,
                b_step: width,
                runs: WHOLE,
                run_len: depth,
                columns: (last - first) * s.w_out,
                start: Start::Rows(bias),
                relu: false,
            };
            let area = s.h_out * s.w_out;
            let start = image * s.c_out * area + first * s.w_out;
            let out = y.range(start..start + (s.c_out - 1) * area + (last - first) * s.w_out);
            // SAFETY: the caller's promise; rows are disjoint.
            unsafe { product.write_part(out, area, 0..s.c_out, 0..product.panels()) };
        }
    });
}

/// Into how many parts to cut the `rows` of an image, of `row_len` floats each, so that a part stays
/// in the second-level cache and all threads are busy.
fn row_parts(s: &ConvShape, rows: usize, row_len: usize) -> usize {
    const CACHE: usize = 96 << 10;
    let parts = (rows * row_len).div_ceil(CACHE).min(rows.div_ceil(4));
    parts.max(parts_per_item(s.images, (rows * s.w_out).div_ceil(24).min(rows))).max(1)
}

/// Rows `first..first + height` of an image that has `top` zero rows above it and `left` zero
/// columns before it, `width` columns in all. Rows are counted from the border's first.
#[derive(Debug, Clone, Copy)]
struct Border {
    first: usize,
    height: usize,
    width: usize,
    top: usize,
    left: usize,
}

impl Border {
    /// What the output rows `rows` read.
    fn of_input(s: &ConvShape, rows: &Range<usize>) -> Self {
        Self {
            first: rows.start * s.stride,
            height: (rows.len() - 1) * s.stride + s.kernel,
            width: ((s.w_out - 1) * s.stride + s.kernel).max(s.padding_begin + s.w),
            top: s.padding_begin,
            left: s.padding_begin,
        }
    }

    /// The rows that hold rows of an image of height `h`.
    fn inside(&self, h: usize) -> Range<usize> {
        let end = (self.first + self.height).min(self.top + h);
        self.first.max(self.top).min(end)..end
    }

    /// The bordered image as `[pixel][channel]`.
    fn pixels(&self, planes: &[f32], channels: usize, h: usize, w: usize) -> Scratch {
        let mut pixels = Scratch::new(self.height * self.width * channels);
        self.pixels_into(planes, channels, [h, w], channels, &mut pixels);
        pixels
    }

    /// The same into `pixels`, `stride` apart.
    fn pixels_into(
        &self,
        planes: &[f32],
        channels: usize,
        [h, w]: [usize; 2],
        stride: usize,
        pixels: &mut [f32],
    ) {
        let inside = self.inside(h);
        for (i, pixels) in pixels.chunks_exact_mut(self.width * stride).enumerate() {
            let row = self.first + i;
            if !inside.contains(&row) {
                pixels.fill(0.0);
                continue;
            }
            pixels[..self.left * stride].fill(0.0);
            pixels[(self.left + w) * stride..].fill(0.0);
            let from = &planes[(row - self.top) * w..];
            planes_to_pixels(from, h * w, channels, w, pixels, |p| (self.left + p) * stride);
        }
    }

    /// The bordered image as `[channel][pixel]`.
    fn planes(&self, planes: &[f32], channels: usize, h: usize, w: usize) -> Scratch {
        let plane = self.height * self.width;
        let mut bordered = Scratch::new(channels * plane);
        bordered.fill(0.0);
        for c in 0..channels {
            for row in self.inside(h) {
                let from = &planes[(c * h + row - self.top) * w..][..w];
                let start = c * plane + (row - self.first) * self.width + self.left;
                bordered[start..start + w].copy_from_slice(from);
            }
        }
        bordered
    }
}

/// # Safety
/// As for [`super::conv::input_gradient`].
pub(crate) unsafe fn input_gradient(
    s: &ConvShape,
    weight: &[f32],
    dy: &[f32],
    dx: SharedOutput<'_>,
) {
    let (taps, k) = (s.taps(), s.kernel);
    if s.stride == 1 && s.padding_begin < k {
        // The convolution of dy with the kernel turned by half a turn, from the output's channels
        // to the input's.
        let mut rotated = Scratch::new(weight.len());
        for (co, kernels) in weight.chunks_exact(s.c_in * taps).enumerate() {
            for (ci, kernel) in kernels.chunks_exact(taps).enumerate() {
                let to = &mut rotated[(ci * s.c_out + co) * taps..][..taps];
                to.iter_mut().zip(kernel.iter().rev()).for_each(|(to, from)| *to = *from);
            }
        }
        let turned = ConvShape {
            c_in: s.c_out,
            c_out: s.c_in,
            h: s.h_out,
            w: s.w_out,
            padding_begin: k - 1 - s.padding_begin,
            h_out: s.h,
            w_out: s.w,
            ..*s
        };
        let no_bias = vec![0.0; s.c_in];
        // SAFETY: the caller's promise.
        return unsafe { forward(&turned, dy, &rotated, &no_bias, dx) };
    }
    // `[panel][tap][c_out][column]`
    let packed = packed_panels(taps * s.c_out, s.c_in, |first, used, packed| {
        for co in 0..s.c_out {
            let kernels = &weight[(co * s.c_in + first) * taps..];
            planes_to_pixels(kernels, taps, used, taps, packed, |tap| {
                (tap * s.c_out + co) * panel_width()
            });
        }
    });
    let parts = row_parts(s, s.h, s.w * (s.c_in + s.c_out));
    (0..s.images * parts).into_par_iter().for_each(|task| {
        let (image, rows) = (task / parts, split(s.h, parts, task % parts));
        if rows.is_empty() {
            return;
        }
        // x row i meets y row (i + begin - ky) / stride, for the taps ky that divide evenly.
        let meets = |i: usize| (i + s.padding_begin) / s.stride;
        let border = Border {
            first: meets(rows.start),
            height: meets(rows.end - 1) - meets(rows.start) + k,
            width: meets(s.w - 1) + k,
            top: k - 1,
            left: k - 1,
        };
        let dy = &dy[image * s.c_out * s.h_out * s.w_out..][..s.c_out * s.h_out * s.w_out];
        // Columns of y beyond those that x meets would not fit the bordered width.
        let width = Border { width: border.width.max(border.left + s.w_out), ..border };
        let border = width;
        let input = border.pixels(dy, s.c_out, s.h_out, s.w_out);
        let pixels = rows.len() * s.w;
        let mut out = Scratch::new(pixels * s.c_in);
        let mut places = vec![0; pixels];
        let mut done = 0;
        for phase in 0..s.stride * s.stride {
            let (phase_y, phase_x) = (phase / s.stride, phase % s.stride);
            let mut offsets = Vec::new();
            for p in 0..pixels {
                let (i, j) = (rows.start + p / s.w, p % s.w);
                let here = ((i + s.padding_begin) % s.stride, (j + s.padding_begin) % s.stride);
                if here == (phase_y, phase_x) {
                    places[p] = (done + offsets.len()) * s.c_in;
                    let row = meets(i) - border.first;
                    offsets.push((row * border.width + meets(j)) * s.c_out);
                }
            }
            let mut runs = Vec::new();
            for ky in (phase_y..k).step_by(s.stride) {
                for kx in (phase_x..k).step_by(s.stride) {
                    let row = k - 1 - ky / s.stride;
                    let column = k - 1 - kx / s.stride;
                    runs.push(Run {
                        a: (row * border.width + column) * s.c_out,
                        b: (ky * k + kx) * s.c_out * panel_width(),
                    });
                }
            }
            let product = Product {
                a: &input,
                rows: Rows::At(&offsets),
                a_step: 1,
                b: &packed,
                b_panel: taps * s.c_out * panel_width(),
                b_step: panel_width(),
                runs: &runs,
                run_len: s.c_out,
                columns: s.c_in,
                start: Start::Zero,
                relu: false,
            };
            product.write(&mut out[done * s.c_in..], s.c_in);
            done += offsets.len();
        }
        let area = s.h * s.w;
        let first = image * s.c_in * area + rows.start * s.w;
        let end = first + (s.c_in - 1) * area + pixels;
        // SAFETY: in bounds by `pointer`; the caller's promise, and parts are disjoint.
        unsafe {
            let to = dx.pointer(first..end);
            pixels_to_planes(&out, |p| places[p], s.c_in, pixels, to, area);
        }
    });
}

/// dW[tap] = sum over images and pixels of x shifted by the tap, times dy.
pub(crate) fn weight_gradient(s: &ConvShape, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let border = Border::of_input(s, &(0..s.h_out));
    let (bordered, area) = (border.height * border.width, s.h_out * s.w_out);
    let (taps, k) = (s.taps(), s.kernel);
    let (xp, yp) = (spread(s.c_in), spread(s.c_out));
    // Images in turn, so that their copies stay within a few tens of megabytes.
    let per_image = bordered * xp + area * yp;
    let at_once = ((8 << 20) / per_image.max(1)).clamp(1, s.images.max(1));
    let mut inputs = Scratch::new(at_once * bordered * xp);
    let mut outputs = Scratch::new(at_once * area * yp);
    // With few output channels the vector runs along the input channels, tap by tap.
    let few = s.c_out <= FEW_CHANNELS && s.c_in > s.c_out;
    let mut sums = Scratch::new(s.weight_len());
    let mut start = 0;
    while start < s.images {
        let n = at_once.min(s.images - start);
        let x_len = s.c_in * s.h * s.w;
        let work = x[start * x_len..]
            .par_chunks(x_len)
            .zip(dy[start * s.c_out * area..].par_chunks(s.c_out * area))
            .zip(inputs.par_chunks_mut(bordered * xp))
            .zip(outputs.par_chunks_mut(area * yp));
        work.take(n).for_each(|(((x, dy), input), output)| {
            border.pixels_into(x, s.c_in, [s.h, s.w], xp, input);
            planes_to_pixels(dy, area, s.c_out, area, output, |p| p * yp);
        });
        // One run per image row.
        let runs = |swap: bool, tap: usize| -> Vec<Run> {
            let shift = (tap / k * border.width + tap % k) * xp;
            let run = |i: usize| {
                let (image, row) = (i / s.h_out, i % s.h_out);
                let input = (image * bordered + row * s.stride * border.width) * xp + shift;
                let output = (image * area + row * s.w_out) * yp;
                if swap { Run { a: output, b: input } } else { Run { a: input, b: output } }
            };
            (0..n * s.h_out).map(run).collect()
        };
        let begin = if start == 0 { Start::Zero } else { Start::Existing };
        if few {
            let per_tap = s.c_out * s.c_in;
            sums.par_chunks_mut(per_tap).enumerate().for_each(|(tap, sums)| {
                let product = Product {
                    a: &outputs,
                    rows: Rows::Every { stride: 1, count: s.c_out },
                    a_step: yp,
                    b: &inputs,
                    b_panel: panel_width(),
                    b_step: s.stride * xp,
                    runs: &runs(true, tap),
                    run_len: s.w_out,
                    columns: s.c_in,
                    start: begin,
                    relu: false,
                };
                product.write(sums, s.c_in);
            });
        } else {
            let offset = |i: usize| {
                let (tap, ci) = (i / s.c_in, i % s.c_in);
                (tap / k * border.width + tap % k) * xp + ci
            };
            let offsets: Vec<usize> = (0..taps * s.c_in).map(offset).collect();
            let product = Product {
                a: &inputs,
                rows: Rows::At(&offsets),
                a_step: s.stride * xp,
                b: &outputs,
                b_panel: panel_width(),
                b_step: yp,
                runs: &runs(false, 0),
                run_len: s.w_out,
                columns: s.c_out,
                start: begin,
                relu: false,
            };
            // SAFETY: `sums` is borrowed mutably.
            unsafe { product.write_parallel(SharedOutput::new(&mut sums), s.c_out) };
        }
        start += n;
    }
    if s.images == 0 {
        sums.fill(0.0);
    }
    dweight.par_chunks_mut(s.c_in * taps).enumerate().for_each(|(co, dweight)| {
        for (i, to) in dweight.iter_mut().enumerate() {
            let (ci, tap) = (i / taps, i % taps);
            *to = if few {
                sums[(tap * s.c_out + co) * s.c_in + ci]
            } else {
                sums[(tap * s.c_in + ci) * s.c_out + co]
            };
        }
    });
}
