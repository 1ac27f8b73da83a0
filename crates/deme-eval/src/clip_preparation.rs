//! Pictures brought to the size a CLIP takes, as its own library does it.
//!
//! What is to be done stands in `deme_clip::ClipPreprocessor`, how a picture is resized in `deme-data`.

use crate::extractor::image_unit;
use deme_clip::{ClipFilter, ClipPreprocessor, ClipResize, CropRounding};
use deme_data::{Interpolation, Picture, prepare_square, resize_rgb, resize_shorter_side};

/// A picture of any size as CHW values in [0, 1] of the CLIP's size.
///
/// # Panics
/// When the picture has no pixels.
pub fn prepare_for_clip(preprocessor: &ClipPreprocessor, picture: &Picture) -> Vec<f32> {
    let size = preprocessor.size as u32;
    let filter = match preprocessor.filter {
        ClipFilter::Lanczos => Interpolation::Lanczos,
        ClipFilter::Bilinear => Interpolation::Bilinear,
        ClipFilter::Bicubic => Interpolation::Bicubic,
    };
    image_unit(&match preprocessor.resize {
        ClipResize::Squash => resize_rgb(picture, size, size, filter),
        ClipResize::ShorterSide { shorter_side, rounding: CropRounding::HalfToEven }
            if shorter_side == preprocessor.size =>
        {
            prepare_square(picture, size, filter)
        }
        ClipResize::ShorterSide { shorter_side, rounding } => {
            let resized = resize_shorter_side(picture, shorter_side as u32, filter);
            middle(&resized, preprocessor.size, rounding)
        }
    })
}

/// The middle `size` x `size` of a picture that is at least that large.
fn middle(picture: &Picture, size: usize, rounding: CropRounding) -> Picture {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (left, top) = (rounding.start(width - size), rounding.start(height - size));
    let rows = picture.pixels.chunks_exact(3 * width).skip(top).take(size);
    let pixels = rows.flat_map(|row| &row[3 * left..3 * (left + size)]).copied().collect();
    Picture { name: picture.name.clone(), width: size as u32, height: size as u32, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose red says the column and whose green the row.
    fn places(width: u32, height: u32) -> Picture {
        let mut picture = Picture::filled("places", width, height, [0; 3]);
        for (i, pixel) in picture.pixels.chunks_exact_mut(3).enumerate() {
            pixel[0] = (i as u32 % width) as u8;
            pixel[1] = (i as u32 / width) as u8;
        }
        picture
    }

    /// First column and row that are kept of a picture that is only cut.
    fn corner(picture: &Picture, size: usize, rounding: CropRounding) -> [usize; 2] {
        let shorter_side = picture.width.min(picture.height) as usize;
        let resize = ClipResize::ShorterSide { shorter_side, rounding };
        let preprocessor = ClipPreprocessor { resize, ..ClipPreprocessor::openai(size) };
        let image_unit = prepare_for_clip(&preprocessor, picture);
        assert_eq!(image_unit.len(), 3 * size * size);
        [0, size * size].map(|at| (image_unit[at] * 255.0).round() as usize)
    }

    #[test]
    fn the_middle_is_cut_where_the_library_cuts_it() {
        let wide = places(11, 8);
        assert_eq!(corner(&wide, 8, CropRounding::Down), [1, 0]);
        assert_eq!(corner(&wide, 8, CropRounding::HalfToEven), [2, 0]);
        // A square smaller than the shorter side.
        assert_eq!(corner(&wide, 4, CropRounding::Down), [3, 2]);
        assert_eq!(corner(&places(8, 13), 5, CropRounding::HalfToEven), [2, 4]);
    }

    #[test]
    fn squashing_keeps_the_borders() {
        let resize = ClipResize::Squash;
        let preprocessor = ClipPreprocessor { resize, ..ClipPreprocessor::openai(8) };
        let squashed = prepare_for_clip(&preprocessor, &places(16, 8));
        assert_eq!(squashed.len(), 3 * 64);
        assert!(squashed[0] < 1.5 / 255.0 && squashed[7] > 13.5 / 255.0);
        let filter = ClipFilter::Bilinear;
        let other = prepare_for_clip(&ClipPreprocessor { filter, ..preprocessor }, &places(16, 8));
        assert_ne!(other, squashed);
    }
}
