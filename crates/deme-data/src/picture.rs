//! A picture: 8-bit RGB, made from a model's output, laid out in grids and written as PNG.
//!
//! Reading pictures is `picture_decoding`, resizing them `image_preparation`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::Path;

use crate::error::{DataError, io_error};

/// An RGB picture of 8 bits per channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// What messages call it: a relative path, `seed 7`, ...
    pub name: String,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[height, width, 3]`, row by row from the top, red first.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture of its bytes.
    ///
    /// # Shapes  pixels: [height, width, 3]
    /// # Errors  [`DataError::WrongPixelCount`]
    pub fn new(
        name: impl Into<String>,
        width: u32,
        height: u32,
        pixels: Vec<u8>,
    ) -> Result<Self, DataError> {
        let name = name.into();
        check_pixel_count(&name, width, height, pixels.len())?;
        Ok(Self { name, width, height, pixels })
    }

    /// A picture of one colour.
    pub fn filled(name: impl Into<String>, width: u32, height: u32, colour: [u8; 3]) -> Self {
        Self {
            name: name.into(),
            width,
            height,
            pixels: colour.repeat(width as usize * height as usize),
        }
    }

    /// The picture a diffusion model means by values in [-1, 1], as diffusers' `numpy_to_pil` does:
    /// `round(255 clamp(x / 2 + 0.5, 0, 1))`, halves rounded to even.
    ///
    /// # Shapes  image_signed: [3, height, width]
    /// # Errors  [`DataError::WrongPixelCount`]; [`DataError::NonFinitePixel`] for NaN and infinity
    pub fn from_signed(
        name: impl Into<String>,
        image_signed: &[f32],
        width: u32,
        height: u32,
    ) -> Result<Self, DataError> {
        let name = name.into();
        check_pixel_count(&name, width, height, image_signed.len())?;
        if let Some(index) = image_signed.iter().position(|value| !value.is_finite()) {
            return Err(DataError::NonFinitePixel { name, index, value: image_signed[index] });
        }
        let plane = width as usize * height as usize;
        let mut pixels = vec![0; 3 * plane];
        for (channel, values) in image_signed.chunks_exact(plane.max(1)).enumerate() {
            for (position, value) in values.iter().enumerate() {
                let unit = (value / 2.0 + 0.5).clamp(0.0, 1.0);
                pixels[3 * position + channel] = (unit * 255.0).round_ties_even() as u8;
            }
        }
        Ok(Self { name, width, height, pixels })
    }

    /// The picture as values in [-1, 1]: `(x / 255 - 0.5) / 0.5`, torchvision's `ToTensor` and
    /// `Normalize(0.5, 0.5)`.
    ///
    /// # Shapes  returns [3, height, width]
    pub fn to_signed(&self) -> Vec<f32> {
        let mut image_signed = vec![0.0; self.pixels.len()];
        write_signed(&self.pixels, self.width as usize, false, &mut image_signed);
        image_signed
    }

    /// The PNG file of this picture, as bytes (for reports that embed their pictures).
    ///
    /// # Errors  [`DataError::Encode`] for a picture without pixels
    pub fn to_png(&self) -> Result<Vec<u8>, DataError> {
        let encode_error = |reason: String| DataError::Encode { name: self.name.clone(), reason };
        check_pixel_count(&self.name, self.width, self.height, self.pixels.len())?;
        if self.pixels.is_empty() {
            return Err(encode_error("it has no pixels".to_owned()));
        }
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(
            &mut bytes,
            &self.pixels,
            self.width,
            self.height,
            image::ExtendedColorType::Rgb8,
            image::ImageFormat::Png,
        )
        .map_err(|error| encode_error(error.to_string()))?;
        Ok(bytes.into_inner())
    }
}

/// Writes a picture as PNG: to a temporary name in the same folder, synced, then renamed, so that a
/// file of that name is always whole.
///
/// # Errors  [`DataError::Io`], [`DataError::Encode`]
pub fn write_png(path: &Path, picture: &Picture) -> Result<(), DataError> {
    let bytes = picture.to_png()?;
    let mut temporary_name = OsString::from(".");
    temporary_name.push(path.file_name().unwrap_or_default());
    temporary_name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary_name);
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The half-written file is of no use; that it may not exist is no second error.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(io_error("write", path))
}

/// Lays pictures of one size out in rows, `padding` pixels of `background` between and around them.
///
/// # Errors  [`DataError::BadGrid`] without pictures or columns, or with unequal sizes
pub fn grid(
    pictures: &[Picture],
    columns: usize,
    padding: u32,
    background: [u8; 3],
) -> Result<Picture, DataError> {
    let bad_grid = |reason: String| Err(DataError::BadGrid { reason });
    let Some(first) = pictures.first() else {
        return bad_grid("there are no pictures".to_owned());
    };
    if columns == 0 {
        return bad_grid("it would have no columns".to_owned());
    }
    for picture in pictures {
        if (picture.width, picture.height) != (first.width, first.height) {
            return bad_grid(format!(
                "{} is {}x{}, {} is {}x{}",
                first.name, first.width, first.height, picture.name, picture.width, picture.height
            ));
        }
        check_pixel_count(&picture.name, picture.width, picture.height, picture.pixels.len())?;
    }
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let extent = |size: u32, count: usize| {
        (u64::from(size) + u64::from(padding)) * count as u64 + u64::from(padding)
    };
    let (grid_width, grid_height) = (extent(first.width, columns), extent(first.height, rows));
    let (Ok(width), Ok(height)) = (u32::try_from(grid_width), u32::try_from(grid_height)) else {
        return bad_grid(format!("it would be {grid_width}x{grid_height} pixels"));
    };
    let mut whole = Picture::filled("grid", width, height, background);
    let row_bytes = 3 * first.width as usize;
    for (index, picture) in pictures.iter().enumerate() {
        let left = extent(first.width, index % columns) as usize;
        let top = extent(first.height, index / columns) as usize;
        for (row, source) in picture.pixels.chunks_exact(row_bytes.max(1)).enumerate() {
            let start = 3 * ((top + row) * width as usize + left);
            whole.pixels[start..start + row_bytes].copy_from_slice(source);
        }
    }
    Ok(whole)
}

/// Writes `[H, W, 3]` bytes as `[3, H, W]` values in [-1, 1], mirrored left to right when `flip`.
pub(crate) fn write_signed(pixels: &[u8], width: usize, flip: bool, image_signed: &mut [f32]) {
    let plane = pixels.len() / 3;
    for (position, pixel) in pixels.chunks_exact(3).enumerate() {
        let target = if flip {
            let (row, column) = (position / width, position % width);
            row * width + (width - 1 - column)
        } else {
            position
        };
        for (channel, &byte) in pixel.iter().enumerate() {
            image_signed[channel * plane + target] = (f32::from(byte) / 255.0 - 0.5) / 0.5;
        }
    }
}

fn check_pixel_count(name: &str, width: u32, height: u32, found: usize) -> Result<(), DataError> {
    let expected = 3 * width as usize * height as usize;
    if found != expected {
        return Err(DataError::WrongPixelCount {
            name: name.to_owned(),
            width,
            height,
            expected,
            found,
        });
    }
    Ok(())
}
