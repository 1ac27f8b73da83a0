//! From the bytes of a file to RGB, by PIL's rules for `convert("RGB")`.
//!
//! Alpha is dropped, not composited; a palette is looked up; grey is copied to the three channels;
//! of an animation the first frame is taken; the orientation in a photo's EXIF data is applied (as
//! the `datasets` library does on reading). A departure: 16-bit grey is scaled to 8 bits by its high
//! byte, as 16-bit RGB is, where PIL clips everything above 255 to white.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::error::PictureError;
use crate::picture::Picture;

/// The most pixels a picture may have: 2^27, some 134 million.
pub const MAX_PIXELS: u64 = 1 << 27;

/// The most memory a decoder may take: 16 bytes for each of [`MAX_PIXELS`].
const MAX_DECODER_BYTES: u64 = 16 * MAX_PIXELS;

/// Reads and decodes a picture file.
///
/// # Errors  [`PictureError`]
pub fn read_picture(path: &Path) -> Result<Picture, PictureError> {
    decode_picture(path.display().to_string(), &fs::read(path)?)
}

/// Decodes a PNG, JPEG, WebP or BMP file, whatever its name says.
///
/// # Errors
/// [`PictureError`]; a picture of more than [`MAX_PIXELS`] is refused from its header, before
/// memory is taken for it.
pub fn decode_picture(name: impl Into<String>, bytes: &[u8]) -> Result<Picture, PictureError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    match reader.format() {
        None => return Err(PictureError::UnknownFormat),
        Some(image::ImageFormat::Jpeg) => check_jpeg_is_whole(bytes)?,
        Some(_) => {}
    }
    // Our own limit is on pixels; this one only stops decoders from taking far more than those need.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(PictureError::TooManyPixels { width, height, limit: MAX_PIXELS });
    }
    // A picture whose EXIF data cannot be read is shown as it is stored, as viewers do.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    Ok(Picture {
        name: name.into(),
        width: decoded.width(),
        height: decoded.height(),
        pixels: rgb_bytes(decoded),
    })
}

fn damaged(error: image::ImageError) -> PictureError {
    match error {
        image::ImageError::Limits(_) => PictureError::TooMuchMemory { limit: MAX_DECODER_BYTES },
        other => PictureError::Damaged { reason: other.to_string() },
    }
}

fn rgb_bytes(decoded: DynamicImage) -> Vec<u8> {
    let high_byte = |value: u16| (value >> 8) as u8;
    match decoded {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageRgba8(rgba) => {
            let mut pixels = Vec::with_capacity(rgba.len() / 4 * 3);
            for pixel in rgba.pixels() {
                pixels.extend_from_slice(&pixel.0[..3]);
            }
            pixels
        }
        DynamicImage::ImageLuma8(grey) => grey.pixels().flat_map(|pixel| [pixel.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => {
            grey.pixels().flat_map(|pixel| [pixel.0[0]; 3]).collect()
        }
        DynamicImage::ImageLuma16(grey) => {
            grey.pixels().flat_map(|pixel| [high_byte(pixel.0[0]); 3]).collect()
        }
        DynamicImage::ImageLumaA16(grey) => {
            grey.pixels().flat_map(|pixel| [high_byte(pixel.0[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(rgb) => rgb.into_raw().into_iter().map(high_byte).collect(),
        DynamicImage::ImageRgba16(rgba) => rgba
            .pixels()
            .flat_map(|pixel| [pixel.0[0], pixel.0[1], pixel.0[2]].map(high_byte))
            .collect(),
        // No other layout comes out of the four formats read here.
        other => other.to_rgb8().into_raw(),
    }
}

/// Refuses a JPEG that ends before its end-of-image marker: the decoder would paint what is missing
/// grey and say nothing.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), PictureError> {
    const START_OF_SCAN: u8 = 0xDA;
    const END_OF_IMAGE: [u8; 2] = [0xFF, 0xD9];
    let truncated = || PictureError::Damaged {
        reason: "the JPEG data ends before the end-of-image marker".to_owned(),
    };
    // Segments before the scan carry their length, so a thumbnail inside one is stepped over.
    let mut position = 2;
    loop {
        let header = bytes.get(position..position + 4).ok_or_else(truncated)?;
        if header[0] != 0xFF {
            // Not a marker: the decoder will say what is wrong, or cope.
            return Ok(());
        }
        if header[1] == 0xFF {
            position += 1;
            continue;
        }
        position += 2 + usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[1] == START_OF_SCAN {
            break;
        }
    }
    let scan = bytes.get(position..).ok_or_else(truncated)?;
    if scan.windows(2).any(|pair| pair == END_OF_IMAGE) { Ok(()) } else { Err(truncated()) }
}
