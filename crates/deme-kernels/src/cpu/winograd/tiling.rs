//! The tiles of a map: where they lie, and their transforms into the products' operands.

use super::super::buffer::{Scratch, SharedOutput};
use super::super::conv::{padded, spread};
use super::super::product::panel_width;
use super::super::transpose::planes_to_pixels;
use super::Size;
use super::tiles::{gradient_tiles, input_tiles};
use std::ops::Range;

/// Where the transforms put channel c of tile t at point p:
/// `p * point + t * tile + c / block_len * block + c % block_len`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub point: usize,
    pub tile: usize,
    pub block: usize,
    pub block_len: usize,
}

impl Layout {
    /// `[point][tile][channel]`.
    pub(super) fn rows(tiles: usize, channels: usize) -> Self {
        Self { point: spread(tiles * channels), tile: channels, block: 0, block_len: channels }
    }

    /// `[point][panel][tile][column]`: sums over tiles read a panel's memory in one stream.
    pub(super) fn panels(tiles: usize, channels: usize) -> Self {
        let width = panel_width();
        let panels = channels.div_ceil(width);
        let block = tiles * width;
        Self { point: spread(panels * block), tile: width, block, block_len: width }
    }

    /// Offset of channel c within its tile's.
    #[inline(always)]
    pub(super) fn channel(&self, c: usize) -> usize {
        c / self.block_len * self.block + c % self.block_len
    }
}

/// The tiles that cover a map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub size: Size,
    pub map: [usize; 2],
    pub down: usize,
    pub across: usize,
}

/// Consecutive tile rows of one image, and the position of their first tile in the task.
pub(super) struct Part {
    pub image: usize,
    pub rows: Range<usize>,
    pub first_tile: usize,
}

impl Tiling {
    pub(super) fn new(size: Size, map: [usize; 2]) -> Self {
        let [down, across] = map.map(|n| n.div_ceil(size.out()));
        Self { size, map, down, across }
    }

    /// Cuts a range of tile rows, counted over all images, at the images' ends.
    pub(super) fn images_of(self, rows: Range<usize>) -> impl Iterator<Item = Part> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            if next >= rows.end {
                return None;
            }
            let image = next / self.down;
            let end = rows.end.min((image + 1) * self.down);
            let part = Part {
                image,
                rows: next - image * self.down..end - image * self.down,
                first_tile: (next - rows.start) * self.across,
            };
            next = end;
            Some(part)
        })
    }

    /// The map rows that the tile rows write.
    pub(super) fn output_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let out = self.size.out();
        rows.start * out..(rows.end * out).min(self.map[0])
    }

    /// The map rows that the tile rows read.
    fn input_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let out = self.size.out();
        (rows.start * out).saturating_sub(1)..(rows.end * out + 1).min(self.map[0])
    }

    /// For every tile its inputs' places among the pixels of `input_rows`; outside the map the
    /// place behind the last pixel, which holds zeros.
    fn input_places(&self, rows: &Range<usize>, stride: usize) -> Vec<usize> {
        let range = self.input_rows(rows);
        self.places(rows, self.size.input(), 1, &range, stride)
    }

    /// For every tile its outputs' places among the pixels of `output_rows`; outside the map the
    /// place behind the last pixel.
    pub(super) fn output_places(&self, rows: &Range<usize>, stride: usize) -> Vec<usize> {
        let range = self.output_rows(rows);
        self.places(rows, self.size.out(), 0, &range, stride)
    }

    fn places(
        &self,
        rows: &Range<usize>,
        side: usize,
        before: usize,
        range: &Range<usize>,
        stride: usize,
    ) -> Vec<usize> {
        let (out, [h, w]) = (self.size.out(), self.map);
        let nowhere = range.len() * w * stride;
        let mut places = Vec::with_capacity(rows.len() * self.across * side * side);
        for row in rows.clone() {
            for column in 0..self.across {
                for i in row * out..row * out + side {
                    for j in column * out..column * out + side {
                        // Positions one further than the map's, where `before` is 1.
                        let inside = i >= before && i < h + before && j >= before && j < w + before;
                        places.push(if inside {
                            ((i - before - range.start) * w + j - before) * stride
                        } else {
                            nowhere
                        });
                    }
                }
            }
        }
        places
    }
}

/// Which transform of a map's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// B^T d B.
    Input,
    /// A dY A^T.
    OutputGradient,
}

impl Tiling {
    /// Transforms some tile rows, counted over all images of `x`, into `to`, the first of their tiles
    /// at position `first_tile`.
    ///
    /// # Safety
    /// No other thread may touch these tiles in `to` meanwhile.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn transform(
        &self,
        operand: Operand,
        x: &[f32],
        channels: usize,
        rows: Range<usize>,
        to: SharedOutput<'_>,
        layout: Layout,
        first_tile: usize,
    ) {
        let image_len = channels * self.map[0] * self.map[1];
        let stride = padded(channels);
        for part in self.images_of(rows) {
            let image = &x[part.image * image_len..][..image_len];
            let range = match operand {
                Operand::Input => self.input_rows(&part.rows),
                Operand::OutputGradient => self.output_rows(&part.rows),
            };
            let places = match operand {
                Operand::Input => self.input_places(&part.rows, stride),
                Operand::OutputGradient => self.output_places(&part.rows, stride),
            };
            let pixels = self.pixels_of(&range, image, channels, stride);
            let first_tile = first_tile + part.first_tile;
            let tiles = first_tile + part.rows.len() * self.across;
            let last = layout.channel(channels.next_multiple_of(16) - 16) + 16;
            let end = (self.size.points() - 1) * layout.point + (tiles - 1) * layout.tile + last;
            let to = to.pointer(first_tile * layout.tile..end);
            // SAFETY: the places lie within `pixels`, each followed by `stride` entries; `to` is in
            // bounds by `pointer`.
            unsafe {
                match operand {
                    Operand::Input => {
                        input_tiles(self.size, &pixels, &places, channels, to, layout)
                    }
                    Operand::OutputGradient => {
                        gradient_tiles(self.size, &pixels, &places, channels, to, layout);
                    }
                }
            }
        }
    }

    /// Some rows of an image as `[pixel][stride]`, and a pixel of zeros behind them.
    fn pixels_of(
        &self,
        range: &Range<usize>,
        image: &[f32],
        channels: usize,
        stride: usize,
    ) -> Scratch {
        let [h, w] = self.map;
        let pixels = range.len() * w;
        let mut input = Scratch::new((pixels + 1) * stride);
        input[pixels * stride..].fill(0.0);
        let rows = &image[range.start * w..];
        planes_to_pixels(rows, h * w, channels, pixels, &mut input, |p| p * stride);
        input
    }
}
