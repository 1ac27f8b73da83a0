//! A convolution with its weight prepared, and which algorithm computes it.

use super::super::buffer::Aligned;
use super::super::product::panel_width;
use super::minimal_filter::Filter;
use super::{Maps, Target, direct};
use crate::Window;
use rayon::prelude::*;

/// Sizes of a weight, `[c_out, c_in, kh, kw]`, and how its window moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvSizes {
    pub c_in: usize,
    pub c_out: usize,
    pub window: Window,
}

impl ConvSizes {
    pub(super) fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }
}

/// A convolution whose weight stands as its algorithm reads it.
#[derive(Debug)]
pub(crate) struct ConvLayer {
    sizes: ConvSizes,
    algorithm: Algorithm,
    /// `[point][panel][k][column]`; one point unless by minimal filtering.
    weight: Aligned,
    /// As many entries as the panels have columns.
    bias: Aligned,
}

#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Direct,
    MinimalFilter(Filter),
}

impl ConvLayer {
    /// Prepares `weight`. `fast` allows minimal filtering; the choice depends on the layer alone.
    pub(crate) fn new(sizes: ConvSizes, weight: &[f32], bias: &[f32], fast: bool) -> Self {
        assert_eq!(weight.len(), sizes.c_in * sizes.c_out * sizes.taps());
        assert_eq!(bias.len(), sizes.c_out);
        let enough = sizes.c_in.min(sizes.c_out) >= 12;
        let filter = (fast && enough).then(|| Filter::of(&sizes.window)).flatten();
        let (algorithm, weight) = match filter {
            Some(filter) => (Algorithm::MinimalFilter(filter), filter.weights(&sizes, weight)),
            None => (Algorithm::Direct, packed(&sizes, weight)),
        };
        let mut padded = Aligned::zeros(bias.len().next_multiple_of(panel_width()));
        padded[..bias.len()].copy_from_slice(bias);
        Self { sizes, algorithm, weight, bias: padded }
    }

    /// Sizes of what it makes of `x`; panics unless it can be applied.
    pub(crate) fn output(&self, x: Maps) -> Maps {
        let ConvSizes { c_in, c_out, window } = self.sizes;
        assert_eq!(x.channels, c_in, "channels of the input, and those of the weight");
        let out = window.output_size([x.h, x.w]);
        let [h, w] = out.unwrap_or_else(|| panic!("{window:?} on {}x{}", x.h, x.w));
        Maps { images: x.images, channels: c_out, h, w }
    }

    /// relu(conv(x) + bias).
    ///
    /// # Safety
    /// Nobody else may touch these channels of `y` meanwhile. On return all of them are written.
    pub(crate) unsafe fn forward(&self, x: &[f32], maps: Maps, y: Target<'_>) {
        assert_eq!(x.len(), maps.len());
        let out = self.output(maps);
        y.pixels(0..out.pixels(), out.channels);
        let (weight, bias) = (&self.weight, &self.bias);
        // SAFETY: the caller's promise.
        unsafe {
            match self.algorithm {
                Algorithm::Direct => direct::forward(&self.sizes, x, maps, out, weight, bias, y),
                Algorithm::MinimalFilter(filter) => {
                    filter.convolve(&self.sizes, x, maps, out, weight, bias, y);
                }
            }
        }
    }
}

/// The weight as `[panel][tap][c_in][column]`.
fn packed(s: &ConvSizes, weight: &[f32]) -> Aligned {
    let (taps, width) = (s.taps(), panel_width());
    let depth = taps * s.c_in;
    let mut packed = Aligned::zeros(s.c_out.div_ceil(width) * depth * width);
    if depth > 0 {
        packed.par_chunks_mut(depth * width).enumerate().for_each(|(panel, packed)| {
            for column in 0..width.min(s.c_out - panel * width) {
                let kernels = &weight[(panel * width + column) * depth..][..depth];
                for (i, value) in kernels.iter().enumerate() {
                    let (ci, tap) = (i / taps, i % taps);
                    packed[(tap * s.c_in + ci) * width + column] = *value;
                }
            }
        });
    }
    packed
}
