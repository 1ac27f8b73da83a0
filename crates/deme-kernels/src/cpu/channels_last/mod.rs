//! The layers of feature extractors on maps stored as pixels of channels,
//! `[image][row][column][channel]`, forward only.
//!
//! So stored, a 1x1 convolution is one matrix product over the pixels of all images, vectors run along
//! the channels in every layer, and a layer writes its channels in place into a joined map.

mod axis;
mod conv;
mod direct;
mod minimal_filter;
mod pool;

use super::buffer::SharedOutput;

pub(crate) use conv::{ConvLayer, ConvSizes};
pub(crate) use pool::{Pooling, pool};

/// Sizes of maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Maps {
    pub images: usize,
    pub channels: usize,
    pub h: usize,
    pub w: usize,
}

impl Maps {
    pub(crate) fn pixels(&self) -> usize {
        self.images * self.h * self.w
    }

    pub(crate) fn len(&self) -> usize {
        self.pixels() * self.channels
    }
}

/// Where a layer writes: its channel c of pixel p goes to `p * stride + first + c`.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub out: SharedOutput<'a>,
    pub stride: usize,
    pub first: usize,
}

impl<'a> Target<'a> {
    /// The channels of some pixels, at once checked to lie inside.
    fn pixels(&self, pixels: std::ops::Range<usize>, channels: usize) -> SharedOutput<'a> {
        if pixels.is_empty() || channels == 0 {
            return self.out.range(0..0);
        }
        let start = pixels.start * self.stride + self.first;
        self.out.range(start..(pixels.end - 1) * self.stride + self.first + channels)
    }
}

/// Copies maps to their place among joined ones.
///
/// # Safety
/// Nobody else may touch these channels of `y` meanwhile. On return all of them are written.
pub(crate) unsafe fn copy(x: &[f32], maps: Maps, y: Target<'_>) {
    assert_eq!(x.len(), maps.len());
    let channels = maps.channels;
    for (pixel, x) in x.chunks_exact(channels.max(1)).enumerate() {
        let to = y.pixels(pixel..pixel + 1, channels).pointer(0..channels);
        // SAFETY: in bounds by `pixels`; the caller's promise.
        unsafe { to.copy_from_nonoverlapping(x.as_ptr(), channels) };
    }
}
