//! Which algorithm computes a convolution, and the parts all of them share.

use super::buffer::{Scratch, SharedOutput};
use super::pointwise_conv::PointwiseShape;
use super::product::panel_width;
use super::simd::{MulAdd, lane_sum, multiversioned};
use super::{direct_conv, pointwise_conv, winograd};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sizes of one call: x is `[images, c_in, h, w]`, y `[images, c_out, h_out, w_out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvShape {
    pub images: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub h: usize,
    pub w: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding_begin: usize,
    pub h_out: usize,
    pub w_out: usize,
}

impl ConvShape {
    pub(crate) fn x_len(&self) -> usize {
        self.images * self.c_in * self.h * self.w
    }

    pub(crate) fn y_len(&self) -> usize {
        self.images * self.c_out * self.h_out * self.w_out
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    pub(crate) fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.taps()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Pointwise,
    Winograd(winograd::Size),
    Direct,
}

/// Whether [`winograd`] may be chosen; see [`crate::set_conv_algorithm`].
pub(crate) static WINOGRAD: AtomicBool = AtomicBool::new(true);

/// The choice depends on one image's sizes only, never on the batch: an image's result is the same
/// alone and in a batch.
fn algorithm(s: &ConvShape) -> Algorithm {
    let keeps_size = s.stride == 1 && (s.h_out, s.w_out) == (s.h, s.w);
    match s.kernel {
        1 if keeps_size && s.padding_begin == 0 => Algorithm::Pointwise,
        3 if keeps_size
            && s.padding_begin == 1
            && s.c_in.min(s.c_out) >= 12
            && WINOGRAD.load(Ordering::Relaxed) =>
        {
            // Multiply-adds per pair of channels, and the transforms' cost in the same unit: those
            // of the data per channel, those of the weights over a batch of nominal size.
            const NOMINAL_BATCH: usize = 16;
            let cost = |size: winograd::Size, data: usize, weights: usize| {
                let tiles = s.h.div_ceil(size.out()) * s.w.div_ceil(size.out());
                tiles * size.points() * s.c_in * s.c_out
                    + tiles * data * (s.c_in + s.c_out)
                    + weights * s.c_in * s.c_out / NOMINAL_BATCH
            };
            let direct = s.h * s.w * 9 * s.c_in * s.c_out;
            let four = cost(winograd::Size::Four, 160, 350);
            let two = cost(winograd::Size::Two, 60, 150);
            if direct <= four.min(two) {
                Algorithm::Direct
            } else if four < two {
                Algorithm::Winograd(winograd::Size::Four)
            } else {
                Algorithm::Winograd(winograd::Size::Two)
            }
        }
        _ => Algorithm::Direct,
    }
}

/// y = conv(x, weight) + bias.
///
/// # Safety
/// Nobody else may touch `y` meanwhile. On return all of it is written.
pub(crate) unsafe fn forward(
    s: &ConvShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    check(s, x.len(), weight.len(), y.len());
    assert_eq!(bias.len(), s.c_out);
    // SAFETY: the caller's promise.
    unsafe {
        match algorithm(s) {
            Algorithm::Pointwise => {
                let one = PointwiseShape::of(s);
                pointwise_conv::forward(&one, [x, &[]], weight, bias, y);
            }
            Algorithm::Winograd(size) => {
                let weights = winograd_weights(s, weight, false);
                winograd::convolve(size, s.images, [s.h, s.w], x, &weights, Some(bias), y);
            }
            Algorithm::Direct => direct_conv::forward(s, x, weight, bias, y),
        }
    }
}

/// The gradient of x, from that of y.
///
/// # Safety
/// Nobody else may touch `dx` meanwhile. On return all of it is written.
pub(crate) unsafe fn input_gradient(
    s: &ConvShape,
    weight: &[f32],
    dy: &[f32],
    dx: SharedOutput<'_>,
) {
    check(s, dx.len(), weight.len(), dy.len());
    // SAFETY: the caller's promise.
    unsafe {
        match algorithm(s) {
            Algorithm::Pointwise => {
                let none = SharedOutput::new(&mut []);
                pointwise_conv::input_gradient(&PointwiseShape::of(s), weight, dy, [dx, none]);
            }
            Algorithm::Winograd(size) => {
                let weights = winograd_weights(s, weight, true);
                winograd::convolve(size, s.images, [s.h, s.w], dy, &weights, None, dx);
            }
            Algorithm::Direct => direct_conv::input_gradient(s, weight, dy, dx),
        }
    }
}

fn winograd_weights<'a>(s: &ConvShape, values: &'a [f32], rotated: bool) -> winograd::Weights<'a> {
    winograd::Weights { values, c_in: s.c_in, c_out: s.c_out, rotated }
}

/// The gradient of the weight, from that of y.
pub(crate) fn weight_gradient(s: &ConvShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    check(s, x.len(), s.weight_len(), dy.len());
    let mut dweight = vec![0.0; s.weight_len()];
    match algorithm(s) {
        Algorithm::Pointwise => {
            pointwise_conv::weight_gradient(&PointwiseShape::of(s), [x, &[]], dy, &mut dweight);
        }
        Algorithm::Winograd(size) => winograd::weight_gradient(size, s, x, dy, &mut dweight),
        Algorithm::Direct => direct_conv::weight_gradient(s, x, dy, &mut dweight),
    }
    dweight
}

/// The gradient of the bias: dy summed over images and pixels.
pub(crate) fn bias_gradient(images: usize, channels: usize, area: usize, dy: &[f32]) -> Vec<f32> {
    assert_eq!(dy.len(), images * channels * area);
    let mut dbias = vec![0.0; channels];
    dbias.par_iter_mut().enumerate().with_min_len(8).for_each(|(c, dbias)| {
        let planes = (0..images).map(|n| &dy[(n * channels + c) * area..][..area]);
        *dbias = planes.map(|plane| f64::from(plane_sum(plane))).sum::<f64>() as f32;
    });
    dbias
}

multiversioned! {
    fn plane_sum(plane: &[f32]) -> f32 = plane_sum_with
}

#[inline(always)]
fn plane_sum_with<F: MulAdd>(plane: &[f32]) -> f32 {
    lane_sum(plane, plane, |sum, x, _| sum + x)
}

fn check(s: &ConvShape, x: usize, weight: usize, y: usize) {
    assert_eq!([x, weight, y], [s.x_len(), s.weight_len(), s.y_len()], "{s:?}");
}

/// Channels rounded up to whole registers, off the strides that crowd one cache set.
pub(crate) fn padded(channels: usize) -> usize {
    let padded = channels.next_multiple_of(16);
    if padded.is_multiple_of(256) { padded + 16 } else { padded }
}

/// A distance of at least `len` between streams that are read or written side by side: an odd
/// number of cache lines, so that they do not meet in one cache set.
pub(crate) fn spread(len: usize) -> usize {
    (len.div_ceil(16) | 1) * 16
}

/// `[panel][k][column]`, each panel written by `pack(first column, columns, panel)`; behind the last
/// column stand zeros.
pub(crate) fn packed_panels(
    depth: usize,
    columns: usize,
    pack: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Scratch {
    let width = panel_width();
    let mut packed = Scratch::new(columns.div_ceil(width) * depth * width);
    if depth > 0 {
        let panels = packed.par_chunks_mut(depth * width).enumerate();
        // Small panels are not worth another thread.
        panels.with_min_len((16384 / (depth * width)).max(1)).for_each(|(panel, packed)| {
            let first = panel * width;
            let used = width.min(columns - first);
            if used < width {
                packed.fill(0.0);
            }
            pack(first, used, packed);
        });
    }
    packed
}

/// `[panel][k][column]` from rows of `columns` entries, `stride` apart.
pub(crate) fn pack_rows(src: &[f32], stride: usize, depth: usize, columns: usize) -> Scratch {
    let mut packed = Scratch::new(columns.div_ceil(panel_width()) * depth * panel_width());
    pack_rows_into(src, stride, depth, columns, depth, 0, &mut packed);
    packed
}

/// The same for some of the `depth` rows of the panels, from row `first` on.
pub(crate) fn pack_rows_into(
    src: &[f32],
    stride: usize,
    rows: usize,
    columns: usize,
    depth: usize,
    first: usize,
    packed: &mut [f32],
) {
    let width = panel_width();
    // Row by row: the source is read in its own order.
    for k in 0..rows {
        let from = &src[k * stride..][..columns];
        let to = &mut packed[(first + k) * width..];
        let (whole, rest) = from.as_chunks::<16>();
        // Panels are one or two times as wide.
        let place = |column: usize| column / width * depth * width + column % width;
        for (i, from) in whole.iter().enumerate() {
            let to = to[place(i * 16)..].first_chunk_mut().expect("a panel holds whole chunks");
            *to = *from;
        }
        if !rest.is_empty() {
            to[place(whole.len() * 16)..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Into how many parts to cut each of `items` pieces of work so that all threads are busy.
pub(crate) fn parts_per_item(items: usize, most: usize) -> usize {
    let wanted = 2 * rayon::current_num_threads();
    wanted.div_ceil(items.max(1)).clamp(1, most.max(1))
}
