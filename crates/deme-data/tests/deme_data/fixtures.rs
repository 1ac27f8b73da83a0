//! The reference pictures: what PIL and torchvision make of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use deme_data::{Interpolation, Picture, Preparation, prepare_square, read_picture};

const TOLERANCE: f32 = 2.0 / 255.0;

fn folder() -> PathBuf {
    std::env::var_os("DEME_FIXTURES")
        .map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")),
            PathBuf::from,
        )
        .join("images")
}

/// All expected tensors by key: shape and values.
fn expected() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(key, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F32, "{key}");
            let values = view
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            (key.to_owned(), (view.shape().to_vec(), values))
        })
        .collect()
}

/// `train32.name` gives `(32, name)`.
fn parse<'a>(key: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (resolution, name) = key.strip_prefix(prefix)?.split_once('.')?;
    Some((resolution.parse().ok()?, name))
}

fn picture(stem: &str) -> Picture {
    let path = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_stem().unwrap() == stem && path.extension().unwrap() != "safetensors"
        })
        .unwrap_or_else(|| panic!("no picture {stem} in {}", folder().display()));
    read_picture(&path).unwrap()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn training_preparation_is_torchvisions() {
    let mut compared = 0;
    for (key, (shape, values)) in expected() {
        let Some((resolution, stem)) = parse(&key, "train") else {
            continue;
        };
        let side = resolution as usize;
        assert_eq!(shape, [3, side, side], "{key}");
        let prepared = Preparation::new(resolution).prepare(&picture(stem));
        let difference = largest_difference(&prepared.to_signed(), &values);
        assert!(difference <= TOLERANCE, "{key}: off by {difference}");
        compared += 1;
    }
    assert!(compared > 0, "no key begins with `train`");
}

#[test]
fn bicubic_preparation_is_clips() {
    const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
    let mut compared = 0;
    for (key, (shape, values)) in expected() {
        let Some((resolution, rest)) = parse(&key, "clip") else {
            continue;
        };
        let (stem, every) = match rest.split_once("_every_") {
            Some((stem, every)) => {
                let step = every.trim_end_matches("_pixel");
                let step = step.trim_end_matches(|letter: char| letter.is_alphabetic());
                (stem, step.parse().unwrap())
            }
            None => (rest, 1),
        };
        let prepared = prepare_square(&picture(stem), resolution, Interpolation::Bicubic);
        let side = resolution as usize;
        let kept: Vec<usize> = (0..side).step_by(every).collect();
        assert_eq!(shape, [3, kept.len(), kept.len()], "{key}");
        let mut found = Vec::new();
        for channel in 0..3 {
            for &row in &kept {
                for &column in &kept {
                    let byte = prepared.pixels[3 * (row * side + column) + channel];
                    found.push((f32::from(byte) / 255.0 - MEAN[channel]) / DEVIATION[channel]);
                }
            }
        }
        let difference = largest_difference(&found, &values);
        assert!(difference <= TOLERANCE, "{key}: off by {difference}");
        compared += 1;
    }
    assert!(compared > 0, "no key begins with `clip`");
}
