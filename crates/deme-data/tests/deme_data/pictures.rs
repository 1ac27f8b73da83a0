//! Pictures out: from a model's values to grids and files.

use deme_data::{DataError, Picture, grid, read_picture, write_png};
use proptest::prelude::*;

#[test]
fn signed_values_become_bytes_as_in_diffusers() {
    // Halves are rounded to even: -1 + 2 * 0.5 / 255 is half a step above black.
    let values = [-1.5, -1.0, 0.0, 1.0, 3.0, 0.5, -1.0 / 255.0, 1.0 / 255.0, 0.2];
    let picture = Picture::from_signed("a", &values, 3, 1).unwrap();
    // [3, 1, 3] becomes pixels: the first of each channel, the second, the third.
    assert_eq!(picture.pixels, [0, 255, 127, 0, 255, 128, 128, 191, 153]);
}

proptest! {
    #[test]
    fn bytes_survive_the_way_to_signed_values_and_back(
        width in 1u32..6,
        height in 1u32..6,
        bytes in proptest::collection::vec(any::<u8>(), 108),
    ) {
        let len = 3 * (width * height) as usize;
        let picture = Picture::new("a", width, height, bytes[..len].to_vec()).unwrap();
        let signed = picture.to_signed();
        prop_assert!(signed.iter().all(|value| (-1.0..=1.0).contains(value)));
        prop_assert_eq!(&Picture::from_signed("a", &signed, width, height).unwrap(), &picture);
    }
}

#[test]
fn channels_come_first_in_signed_values() {
    let picture = Picture::new("a", 2, 1, vec![255, 0, 0, 0, 255, 0]).unwrap();
    assert_eq!(picture.to_signed(), [1.0, -1.0, -1.0, 1.0, -1.0, -1.0]);
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = Picture::from_signed("seed 3", &[0.0, value, 0.0], 1, 1).unwrap_err();
        assert!(
            matches!(&error, DataError::NonFinitePixel { name, index: 1, .. } if name == "seed 3"),
            "{error}"
        );
    }
}

#[test]
fn the_number_of_values_must_fit() {
    for error in [
        Picture::from_signed("a", &[0.0; 5], 2, 1).unwrap_err(),
        Picture::new("a", 2, 1, vec![0; 5]).unwrap_err(),
    ] {
        assert!(
            matches!(error, DataError::WrongPixelCount { expected: 6, found: 5, .. }),
            "{error}"
        );
    }
}

#[test]
fn a_grid_has_padding_around_and_between() {
    let pictures: Vec<Picture> =
        (1..=3u8).map(|value| Picture::filled("a", 2, 1, [value; 3])).collect();
    let sheet = grid(&pictures, 2, 1, [9; 3]).unwrap();
    assert_eq!((sheet.width, sheet.height), (7, 5));
    let red: Vec<u8> = sheet.pixels.iter().copied().step_by(3).collect();
    #[rustfmt::skip]
    assert_eq!(red, [
        9, 9, 9, 9, 9, 9, 9,
        9, 1, 1, 9, 2, 2, 9,
        9, 9, 9, 9, 9, 9, 9,
        9, 3, 3, 9, 9, 9, 9,
        9, 9, 9, 9, 9, 9, 9,
    ]);
}

#[test]
fn impossible_grids_are_refused() {
    let small = Picture::filled("small", 1, 1, [0; 3]);
    let large = Picture::filled("large", 2, 1, [0; 3]);
    for (pictures, columns, padding, expected) in [
        (vec![], 1, 0, "no pictures"),
        (vec![small.clone()], 0, 0, "no columns"),
        (vec![small.clone(), large], 2, 0, "large is 2x1"),
        (vec![small.clone(), small], 2, u32::MAX, "pixels"),
    ] {
        let error = grid(&pictures, columns, padding, [0; 3]).unwrap_err();
        assert!(
            matches!(&error, DataError::BadGrid { reason } if reason.contains(expected)),
            "{error}"
        );
    }
}

#[test]
fn a_written_png_reads_back_and_nothing_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    std::fs::write(&path, "an older file").unwrap();
    let picture = Picture::new("a", 2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
    write_png(&path, &picture).unwrap();
    assert_eq!(read_picture(&path).unwrap().pixels, picture.pixels);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn writing_to_a_missing_folder_fails() {
    let picture = Picture::filled("a", 1, 1, [0; 3]);
    let error = write_png("/nowhere/at/all/a.png".as_ref(), &picture).unwrap_err();
    assert!(
        matches!(&error, DataError::Io { action: "write", path, .. } if path.ends_with("a.png")),
        "{error}"
    );
}

#[test]
fn a_picture_without_pixels_cannot_be_encoded() {
    let error = Picture::filled("a", 0, 4, [0; 3]).to_png().unwrap_err();
    assert!(matches!(error, DataError::Encode { .. }), "{error}");
}
