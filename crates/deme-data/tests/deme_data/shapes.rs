//! Drawn pictures.

use deme_data::{
    DataConfig, DataError, DataSet, Picture, Preparation, ShapesScene, shapes_picture,
};

fn open(count: usize, seed: u64) -> DataSet {
    DataSet::open(&DataConfig::Shapes { count, seed }).unwrap()
}

#[test]
fn no_shapes_are_no_data_set() {
    let error = DataSet::open(&DataConfig::Shapes { count: 0, seed: 0 }).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn captions_stay_the_same_between_versions() {
    let captions: Vec<String> = (0..8).map(|index| ShapesScene::new(1, index).caption()).collect();
    assert_eq!(
        captions,
        [
            "a large cyan square on beige",
            "a small cyan circle below a large green square on black",
            "a yellow triangle below a small cyan triangle on black",
            "a small orange square on grey",
            "a green cross below a cyan circle on grey",
            "a yellow square on beige",
            "a small blue cross below a small cyan cross on grey",
            "a purple ring left of a small red square on beige",
        ]
    );
    assert_eq!(
        ShapesScene::new(1, 12).caption(),
        "a small blue square above an orange square on grey"
    );
}

#[test]
fn a_picture_depends_on_its_seed_and_number_only() {
    let (few, many) = (open(10, 3), open(500, 3));
    assert_eq!(few.examples(), &many.examples()[..10]);
    let few = few.load(&Preparation::new(16)).unwrap();
    let many = many.load(&Preparation::new(16)).unwrap();
    assert_eq!(few.images, many.images[..few.images.len()]);
    assert_eq!(many.image_bytes(300), shapes_picture(3, 300, 16).pixels.as_slice());
    assert_ne!(shapes_picture(3, 0, 16).pixels, shapes_picture(4, 0, 16).pixels);
    assert!(open(10, 3).has_captions());
}

#[test]
fn the_content_hash_tells_count_and_seed() {
    let hash = |count, seed| open(count, seed).content_hash().unwrap();
    assert_eq!(hash(20, 1), hash(20, 1));
    assert_ne!(hash(20, 1), hash(21, 1));
    assert_ne!(hash(20, 1), hash(20, 2));
}

#[test]
fn every_resolution_shows_the_same_scene() {
    for index in 0..20 {
        let scene = ShapesScene::new(5, index);
        let fine = scene.draw("fine", 64);
        let coarse = scene.draw("coarse", 16);
        for (position, pixel) in coarse.pixels.chunks_exact(3).enumerate() {
            let (row, column) = (position / 16, position % 16);
            for (channel, &value) in pixel.iter().enumerate() {
                let sum: u32 = (0..16)
                    .map(|part| {
                        let (y, x) = (4 * row + part / 4, 4 * column + part % 4);
                        u32::from(fine.pixels[3 * (64 * y + x) + channel])
                    })
                    .sum();
                let difference = f64::from(value) - f64::from(sum) / 16.0;
                assert!(difference.abs() <= 16.0, "{index}: {row}, {column}");
            }
        }
    }
}

/// The words of a caption must be true of its picture: the relation between the two shapes is
/// checked by where the pixels of their colours lie.
#[test]
fn captions_tell_the_truth_about_places() {
    let mut checked = 0;
    for index in 0..300 {
        let scene = ShapesScene::new(9, index);
        let caption = scene.caption();
        let Some((relation, axis, sign)) = [
            (" left of ", 0, 1.0),
            (" right of ", 0, -1.0),
            (" above ", 1, 1.0),
            (" below ", 1, -1.0),
        ]
        .into_iter()
        .find(|(words, ..)| caption.contains(words)) else {
            continue;
        };
        let (first, second) = caption.split_once(relation).unwrap();
        let picture = scene.draw("", 48);
        let first = place(&picture, colour(first));
        let second = place(&picture, colour(second));
        let distance = sign * (second[axis] - first[axis]);
        assert!(distance >= 0.25 * 48.0, "{caption}: {first:?} {second:?}");
        checked += 1;
    }
    assert!(checked > 100);
}

fn colour(words: &str) -> [u8; 3] {
    [
        ("red", [220, 40, 40]),
        ("orange", [245, 135, 20]),
        ("yellow", [250, 215, 30]),
        ("green", [40, 165, 65]),
        ("cyan", [30, 195, 210]),
        ("blue", [40, 85, 220]),
        ("purple", [130, 55, 190]),
        ("pink", [250, 130, 185]),
    ]
    .into_iter()
    .find(|(word, _)| words.split(' ').any(|found| found == *word))
    .unwrap()
    .1
}

/// The mean column and row of the pixels of one colour.
fn place(picture: &Picture, colour: [u8; 3]) -> [f64; 2] {
    let positions: Vec<usize> = picture
        .pixels
        .chunks_exact(3)
        .enumerate()
        .filter(|(_, pixel)| *pixel == colour)
        .map(|(position, _)| position)
        .collect();
    assert!(positions.len() >= 20, "{colour:?}: {}", positions.len());
    let width = picture.width as usize;
    let mean = |values: Vec<usize>| values.iter().sum::<usize>() as f64 / values.len() as f64;
    [
        mean(positions.iter().map(|position| position % width).collect()),
        mean(positions.iter().map(|position| position / width).collect()),
    ]
}
