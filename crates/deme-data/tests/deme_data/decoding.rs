//! From files of every kind to RGB.

use deme_data::{MAX_PIXELS, PictureError, decode_picture, read_picture};
use image::{
    DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbaImage,
};

use crate::files::{encode, gradient, one_colour, png, png_claiming};

fn pixels(bytes: &[u8]) -> Vec<u8> {
    decode_picture("picture", bytes).unwrap().pixels
}

#[test]
fn lossless_formats_keep_every_pixel() {
    let picture = gradient(13, 9);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let decoded = decode_picture("picture", &encode(picture.clone(), format)).unwrap();
        assert_eq!((decoded.width, decoded.height), (13, 9), "{format:?}");
        assert_eq!(&decoded.pixels, picture.as_raw(), "{format:?}");
    }
}

#[test]
fn jpeg_is_close() {
    let decoded = pixels(&encode(one_colour(16, 16, [200, 40, 90]), ImageFormat::Jpeg));
    for pixel in decoded.chunks_exact(3) {
        for (found, expected) in pixel.iter().zip([200u8, 40, 90]) {
            assert!(found.abs_diff(expected) <= 4, "{pixel:?}");
        }
    }
}

#[test]
fn alpha_is_dropped_not_composited() {
    let transparent = RgbaImage::from_pixel(2, 1, image::Rgba([10, 20, 30, 0]));
    assert_eq!(pixels(&png(transparent)), [10, 20, 30, 10, 20, 30]);
    let grey = GrayAlphaImage::from_pixel(1, 1, LumaA([77, 3]));
    assert_eq!(pixels(&png(grey)), [77; 3]);
}

#[test]
fn grey_fills_three_channels() {
    assert_eq!(pixels(&png(GrayImage::from_pixel(1, 1, Luma([99])))), [99; 3]);
}

#[test]
fn of_sixteen_bits_the_high_byte_is_kept() {
    let grey = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(1, 1, Luma([0x12FF])));
    assert_eq!(pixels(&png(grey)), [0x12; 3]);
    let rgb = ImageBuffer::from_pixel(1, 1, Rgb([0xFFFF_u16, 0x0100, 0x00FF]));
    assert_eq!(pixels(&png(DynamicImage::ImageRgb16(rgb))), [0xFF, 1, 0]);
}

#[test]
fn a_photo_is_turned_upright() {
    // Left red, right blue; orientation 6 says: turn by 90 degrees clockwise to look at it.
    let mut picture = one_colour(32, 16, [250, 0, 0]);
    for (x, _, pixel) in picture.enumerate_pixels_mut() {
        if x >= 16 {
            *pixel = Rgb([0, 0, 250]);
        }
    }
    let mut exif =
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    let jpeg = with_app1(&encode(picture, ImageFormat::Jpeg), &mut exif);
    let decoded = decode_picture("photo", &jpeg).unwrap();
    assert_eq!((decoded.width, decoded.height), (16, 32));
    let (top, bottom) = (&decoded.pixels[..3], &decoded.pixels[3 * 16 * 31..][..3]);
    assert!(top[0] > 200 && bottom[2] > 200, "{top:?} {bottom:?}");
}

/// Puts an APP1 segment behind the start-of-image marker.
fn with_app1(jpeg: &[u8], content: &mut Vec<u8>) -> Vec<u8> {
    let mut bytes = jpeg[..2].to_vec();
    bytes.extend([0xFF, 0xE1]);
    bytes.extend((content.len() as u16 + 2).to_be_bytes());
    bytes.append(content);
    bytes.extend(&jpeg[2..]);
    bytes
}

#[test]
fn of_an_animation_the_first_frame_is_taken() {
    let animation = animated_webp(&[[255, 0, 0], [0, 0, 255]]);
    // Within one step: the decoder blends the frame over an empty canvas.
    let decoded = pixels(&animation);
    assert_eq!(decoded.len(), 3 * 16);
    for pixel in decoded.chunks_exact(3) {
        assert!(pixel[0] >= 254 && pixel[1] <= 1 && pixel[2] <= 1, "{pixel:?}");
    }
}

/// An animated WebP of 4x4 frames, put together by the container's specification.
fn animated_webp(colours: &[[u8; 3]]) -> Vec<u8> {
    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut bytes = name.to_vec();
        bytes.extend((content.len() as u32).to_le_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    }
    let size_less_one = [3, 0, 0, 3, 0, 0];
    let mut content = b"WEBP".to_vec();
    content.extend(chunk(b"VP8X", &[&[2, 0, 0, 0][..], &size_less_one].concat()));
    content.extend(chunk(b"ANIM", &[0; 6]));
    for &colour in colours {
        let still = encode(one_colour(4, 4, colour), ImageFormat::WebP);
        let frame = [&[0; 6][..], &size_less_one, &[100, 0, 0, 0], &still[12..]].concat();
        content.extend(chunk(b"ANMF", &frame));
    }
    chunk(b"RIFF", &content)
}

#[test]
fn truncated_files_are_damaged() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp] {
        let whole = encode(gradient(40, 40), format);
        for kept in [whole.len() / 4, whole.len() / 2, whole.len() * 9 / 10] {
            let error = decode_picture("picture", &whole[..kept]).unwrap_err();
            assert!(
                matches!(error, PictureError::Damaged { .. }),
                "{format:?} cut to {kept} of {} bytes: {error}",
                whole.len()
            );
        }
    }
}

#[test]
fn the_end_of_a_thumbnail_is_not_the_end_of_the_photo() {
    let jpeg = encode(gradient(40, 40), ImageFormat::Jpeg);
    let jpeg = with_app1(&jpeg, &mut vec![0xFF, 0xD9, 0, 0]);
    assert_eq!(decode_picture("photo", &jpeg).unwrap().width, 40);
    let error = decode_picture("photo", &jpeg[..jpeg.len() - 20]).unwrap_err();
    assert!(matches!(error, PictureError::Damaged { .. }), "{error}");
}

#[test]
fn a_flipped_bit_in_a_png_is_damage() {
    let mut bytes = png(gradient(40, 40));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let error = decode_picture("picture", &bytes).unwrap_err();
    assert!(matches!(error, PictureError::Damaged { .. }), "{error}");
}

#[test]
fn absurd_sizes_are_refused_from_the_header() {
    for (width, height) in [(100_000, 100_000), (2, (MAX_PIXELS / 2) as u32 + 1)] {
        let error = decode_picture("picture", &png_claiming(width, height)).unwrap_err();
        assert!(
            matches!(error, PictureError::TooManyPixels { width: w, height: h, .. }
                if (w, h) == (width, height)),
            "{error}"
        );
    }
}

#[test]
fn absurd_rows_are_refused_from_the_header() {
    let error = decode_picture("picture", &png_claiming(1 << 30, 1)).unwrap_err();
    assert!(matches!(error, PictureError::TooMuchMemory { .. }), "{error}");
}

#[test]
fn other_files_are_no_pictures() {
    for bytes in [&b"GIF89a-not-supported-here"[..], b"", b"some text"] {
        let error = decode_picture("picture", bytes).unwrap_err();
        assert!(
            matches!(error, PictureError::UnknownFormat | PictureError::Damaged { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_missing_file_is_unreadable() {
    let error = read_picture("/nowhere/a.png".as_ref()).unwrap_err();
    assert!(matches!(error, PictureError::Unreadable(_)), "{error}");
}
