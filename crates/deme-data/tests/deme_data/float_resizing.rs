//! Resizing without rounding, against PIL's and torch's numbers: whatever `resizing` holds.

use std::path::PathBuf;

use deme_data::{Interpolation, Picture, interpolate_bilinear, resize_channels, resize_rgb};
use safetensors::SafeTensors;

/// The file, or `None` where another set of reference numbers has none.
fn reference() -> Option<Vec<u8>> {
    let other = std::env::var_os("DEME_FIXTURES").map(PathBuf::from);
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"));
    let is_other = other.is_some();
    let folder = other.unwrap_or_else(own).join("resizing");
    if is_other && !folder.exists() {
        eprintln!("skipped: there is no {}", folder.display());
        return None;
    }
    Some(std::fs::read(folder.join("resizing.safetensors")).unwrap())
}

fn picture(tensors: &SafeTensors<'_>, name: &str) -> Picture {
    let view = tensors.tensor(&format!("{name}.picture")).unwrap();
    let [height, width, 3] = view.shape()[..] else { panic!("{name}: {:?}", view.shape()) };
    Picture::new(name, width as u32, height as u32, view.data().to_vec()).unwrap()
}

fn unit_planes(picture: &Picture) -> Vec<f32> {
    let channel = |c: usize| picture.pixels.iter().skip(c).step_by(3);
    (0..3).flat_map(|c| channel(c).map(|&byte| f32::from(byte) / 255.0)).collect()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn floats_are_pils_and_torchs() {
    let Some(bytes) = reference() else { return };
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = [0; 2];
    for (key, view) in tensors.iter() {
        let (name, what) = key.split_once('.').unwrap();
        let [library, filter, _] = what.split('_').collect::<Vec<_>>()[..] else { continue };
        let picture = picture(&tensors, name);
        let [3, height, width] = view.shape()[..] else { panic!("{key}: {:?}", view.shape()) };
        let (values, _) = view.data().as_chunks::<4>();
        let expected: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let (found, tolerance) = if library == "pil" {
            let filter = match filter {
                "bilinear" => Interpolation::Bilinear,
                "bicubic" => Interpolation::Bicubic,
                "lanczos" => Interpolation::Lanczos,
                other => panic!("{key}: filter {other}"),
            };
            (resize_channels(&picture, width as u32, height as u32, filter), 255e-6)
        } else {
            let size = [picture.height as usize, picture.width as usize];
            (interpolate_bilinear(&unit_planes(&picture), size, [height, width]), 1e-6)
        };
        let difference = largest_difference(&found, &expected);
        assert!(difference <= tolerance, "{key}: off by {difference}");
        compared[usize::from(library == "pil")] += 1;
    }
    assert!(compared.iter().all(|&count| count > 0), "{compared:?}");
}

#[test]
fn without_rounding_is_near_the_rounded_one() {
    let pixels = (0..3 * 23 * 14u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8);
    let picture = Picture::new("noise", 23, 14, pixels.collect()).unwrap();
    for filter in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos] {
        let rounded = unit_planes(&resize_rgb(&picture, 9, 31, filter));
        let exact = resize_channels(&picture, 9, 31, filter);
        let exact: Vec<f32> = exact.iter().map(|value| value.clamp(0.0, 255.0) / 255.0).collect();
        // Each of the two passes rounds by up to half a byte, and the second one sharpens.
        assert!(largest_difference(&exact, &rounded) <= 1.5 / 255.0);
        assert!(exact.iter().any(|value| (value * 255.0).fract() > 0.1));
    }
}

#[test]
fn bilinear_by_hand() {
    // Without antialiasing, shrinking by four takes the two pixels around each centre.
    let row = [0.0, 1.0, 0.5, 0.0, 8.0, 4.0, 2.0, 0.0];
    assert_eq!(interpolate_bilinear(&row, [1, 8], [1, 2]), [0.75, 3.0]);
    // Enlarging: weights 3/4 and 1/4, the border repeated; every plane by itself.
    let planes = [0.0, 4.0, 1.0, 1.0];
    let expected = [0.0, 1.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0];
    assert_eq!(interpolate_bilinear(&planes, [1, 2], [1, 4]), expected);
    assert_eq!(interpolate_bilinear(&row, [2, 4], [2, 4]), row);
}
