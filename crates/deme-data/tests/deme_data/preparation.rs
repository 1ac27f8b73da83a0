//! Resizing and cropping, by hand and by algebra.

use deme_data::{
    DataConfig, DataError, DataSet, Interpolation, Picture, Preparation, prepare_square,
    resize_rgb, resize_shorter_side,
};
use proptest::prelude::*;

const FILTERS: [Interpolation; 3] =
    [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos];

fn row(values: &[u8]) -> Picture {
    let pixels = values.iter().flat_map(|&value| [value; 3]).collect();
    Picture::new("row", values.len() as u32, 1, pixels).unwrap()
}

fn red(picture: &Picture) -> Vec<u8> {
    picture.pixels.iter().copied().step_by(3).collect()
}

fn noise(width: u32, height: u32) -> Picture {
    let pixels = (0..3 * width * height)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    Picture::new("noise", width, height, pixels).unwrap()
}

#[test]
fn bilinear_by_hand() {
    // Enlarging: weights 3/4 and 1/4. Shrinking by two: a triangle over four pixels, cut at the
    // border, so 3, 3 and 1 of 7 parts.
    let wider = resize_rgb(&row(&[0, 255]), 4, 1, Interpolation::Bilinear);
    assert_eq!(red(&wider), [0, 64, 191, 255]);
    let narrower = resize_rgb(&row(&[0, 0, 255, 255]), 2, 1, Interpolation::Bilinear);
    assert_eq!(red(&narrower), [36, 219]);
}

#[test]
fn the_crop_begins_where_torchvision_begins_it() {
    // Python's round: halves go to the even number.
    for (width, start) in [(2, 0), (3, 0), (4, 1), (5, 2), (6, 2), (7, 2), (9, 4)] {
        let picture = noise(width, 2);
        let cropped = prepare_square(&picture, 2, Interpolation::Bilinear);
        let first = 3 * start;
        assert_eq!(cropped.pixels[..6], picture.pixels[first..first + 6], "{width}");
    }
}

#[test]
fn the_longer_side_is_rounded_down() {
    let resized = resize_shorter_side(&noise(90, 119), 32, Interpolation::Bilinear);
    assert_eq!((resized.width, resized.height), (32, 42));
    let resized = resize_shorter_side(&noise(20, 12), 32, Interpolation::Bicubic);
    assert_eq!((resized.width, resized.height), (53, 32));
}

#[test]
fn very_long_pictures_take_no_more_memory_than_is_kept() {
    // The whole resized picture would have 8 * 2,400,000 pixels.
    let prepared = prepare_square(&noise(300_000, 1), 8, Interpolation::Bicubic);
    assert_eq!(prepared.pixels.len(), 8 * 8 * 3);
}

#[test]
fn without_cropping_the_proportions_go() {
    let preparation = Preparation { center_crop: false, ..Preparation::new(4) };
    let picture = noise(9, 5);
    assert_eq!(preparation.prepare(&picture), resize_rgb(&picture, 4, 4, Interpolation::Bilinear));
}

proptest! {
    #[test]
    fn one_colour_stays_that_colour(
        from in (1u32..40, 1u32..40),
        to in (1u32..40, 1u32..40),
        colour: [u8; 3],
        filter in 0usize..3,
    ) {
        let resized = resize_rgb(
            &Picture::filled("a", from.0, from.1, colour),
            to.0,
            to.1,
            FILTERS[filter],
        );
        prop_assert_eq!(resized, Picture::filled("a", to.0, to.1, colour));
    }

    #[test]
    fn the_same_size_changes_nothing(width in 1u32..30, height in 1u32..30, filter in 0usize..3) {
        let picture = noise(width, height);
        prop_assert_eq!(&resize_rgb(&picture, width, height, FILTERS[filter]), &picture);
    }

    #[test]
    fn cropping_first_or_last_is_the_same(
        width in 1u32..60,
        height in 1u32..60,
        size in 1u32..20,
        filter in 0usize..3,
    ) {
        let picture = noise(width, height);
        let whole = resize_shorter_side(&picture, size, FILTERS[filter]);
        let cropped = prepare_square(&picture, size, FILTERS[filter]);
        // Cropping a picture whose shorter side has that size already resizes nothing.
        prop_assert_eq!(prepare_square(&whole, size, FILTERS[filter]), cropped);
    }
}

#[test]
fn impossible_resolutions_are_refused() {
    let data = DataSet::open(&DataConfig::Shapes { count: 1, seed: 0 }).unwrap();
    for resolution in [0, Preparation::MAX_RESOLUTION + 1] {
        let error = data.load(&Preparation::new(resolution)).unwrap_err();
        assert!(
            matches!(error, DataError::BadResolution { resolution: r, .. } if r == resolution),
            "{error}"
        );
    }
}

#[test]
fn a_preparation_is_read_from_a_recipe() {
    let read = serde_json::from_str::<Preparation>;
    assert_eq!(read(r#"{"resolution": 16}"#).unwrap(), Preparation::new(16));
    let other = read(r#"{"resolution": 8, "interpolation": "lanczos"}"#);
    assert_eq!(
        other.unwrap(),
        Preparation { interpolation: Interpolation::Lanczos, ..Preparation::new(8) }
    );
    assert!(read(r#"{"resolution": 8, "center_cropp": true}"#).is_err());
}

#[test]
fn data_sets_are_read_from_a_recipe() {
    for (text, expected) in [
        (
            r#"{"kind": "imagefolder", "path": "a"}"#,
            DataConfig::Imagefolder { path: "a".into(), caption_field: "text".to_owned() },
        ),
        (
            r#"{"kind": "cifar10", "path": "a", "split": "test"}"#,
            DataConfig::Cifar10 { path: "a".into(), split: deme_data::Cifar10Split::Test },
        ),
        (
            r#"{"kind": "parquet", "path": "a", "caption_column": "text"}"#,
            DataConfig::Parquet {
                path: "a".into(),
                image_column: "image".to_owned(),
                caption_column: Some("text".to_owned()),
            },
        ),
        (r#"{"kind": "shapes", "count": 5}"#, DataConfig::Shapes { count: 5, seed: 0 }),
    ] {
        let config: DataConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config, expected);
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<DataConfig>(&again).unwrap(), expected);
        let unknown = text.replace("}", ", \"sede\": 1}");
        let error = serde_json::from_str::<DataConfig>(&unknown).unwrap_err();
        assert!(error.to_string().contains("sede"), "{error}");
    }
}

#[test]
fn prepared_images_give_batches_parts_and_mirrors() {
    let data = DataSet::open(&DataConfig::Shapes { count: 5, seed: 2 }).unwrap();
    let images = data.load(&Preparation::new(8)).unwrap();
    assert_eq!((images.len(), images.is_empty()), (5, false));
    let batch = images.batch_signed(&[3, 1]);
    assert_eq!(batch.len(), 2 * 3 * 64);
    assert_eq!(batch[..192], images.image_signed(3));
    assert_eq!(batch[192..], images.image_signed(1));
    assert_eq!(images.image_signed(4), images.picture(4).to_signed());
    let part = images.select(&[4, 0]);
    assert_eq!(part.names, ["shapes/4", "shapes/0"]);
    assert_eq!(part.captions[0], images.captions[4]);
    assert_eq!(part.image_bytes(1), images.image_bytes(0));
    let flipped = images.batch_signed_flipped(&[3, 1], &[true, false]);
    assert_eq!(flipped[192..], batch[192..]);
    for (mirrored, plain) in flipped[..192].chunks(8).zip(batch[..192].chunks(8)) {
        assert!(mirrored.iter().eq(plain.iter().rev()));
    }
}
