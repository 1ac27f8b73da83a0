//! `preprocessor_config.json`: how pictures become the image tower's pixels.
//!
//! Resizing itself is not here: pictures arrive at the tower's size.

use crate::ClipError;
use crate::config::write_json;
use serde_json::{Value, json};
use std::path::Path;

/// Mean, deviation and size of the pictures CLIP takes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPreprocessor {
    /// Mean per channel, of values in [0, 1].
    pub image_mean: [f32; 3],
    /// Deviation per channel, positive.
    pub image_std: [f32; 3],
    /// The shorter side is resized to this many pixels.
    pub shortest_edge: usize,
    /// The centre of this many pixels in both directions is kept.
    pub crop_size: usize,
    /// PIL's number of the resizing filter (3 = bicubic).
    pub resample: u64,
}

impl ClipPreprocessor {
    /// OpenAI's mean and deviation, bicubic, for square pictures of `size`.
    pub fn openai(size: usize) -> Self {
        Self {
            image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            shortest_edge: size,
            crop_size: size,
            resample: 3,
        }
    }

    /// [0, 1] to [-1, 1], for square pictures of `size` that are never resized.
    pub fn signed(size: usize) -> Self {
        Self { image_mean: [0.5; 3], image_std: [0.5; 3], ..Self::openai(size) }
    }

    /// Reads `preprocessor_config.json` of a folder, old (`"size": 224`) or new
    /// (`"size": {"shortest_edge": 224}`).
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Json`].
    pub fn load(folder: &Path) -> Result<Self, ClipError> {
        let path = folder.join("preprocessor_config.json");
        let bytes = std::fs::read(&path).map_err(|source| ClipError::io(&path, source))?;
        let refuse = |reason: String| ClipError::Json { path: path.clone(), reason };
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        for (flag, meaning) in FLAGS {
            if json[flag] == Value::Bool(false) {
                return Err(refuse(format!("{flag} is false, but pictures are always {meaning}")));
            }
        }
        let size = |field: &str, keys: [&str; 2]| {
            let value = &json[field];
            let found = value.as_u64().or_else(|| keys.iter().find_map(|key| value[key].as_u64()));
            match found {
                Some(size @ 1..) => Ok(size as usize),
                _ => Err(refuse(format!("{field} is {value}, expected a size in pixels"))),
            }
        };
        let triple = |field: &str| {
            let values = json[field].as_array().map(|values| {
                values.iter().filter_map(Value::as_f64).map(|v| v as f32).collect::<Vec<f32>>()
            });
            values.and_then(|values| <[f32; 3]>::try_from(values).ok()).ok_or_else(|| {
                refuse(format!("{field} is {}, expected three numbers", json[field]))
            })
        };
        let image_std = triple("image_std")?;
        if image_std.iter().any(|&std| std <= 0.0) {
            return Err(refuse(format!("image_std is {image_std:?}, expected positive numbers")));
        }
        Ok(Self {
            image_mean: triple("image_mean")?,
            image_std,
            shortest_edge: size("size", ["shortest_edge", "height"])?,
            crop_size: size("crop_size", ["height", "width"])?,
            resample: json["resample"].as_u64().unwrap_or(3),
        })
    }

    /// Writes `preprocessor_config.json` into a folder, as transformers' `CLIPImageProcessor` reads
    /// it.
    ///
    /// # Errors
    /// [`ClipError::Io`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        let mut json = json!({
            "crop_size": { "height": self.crop_size, "width": self.crop_size },
            "image_mean": self.image_mean.map(exact),
            "image_processor_type": "CLIPImageProcessor",
            "image_std": self.image_std.map(exact),
            "resample": self.resample,
            "rescale_factor": 1.0 / 255.0,
            "size": { "shortest_edge": self.shortest_edge },
        });
        for (flag, _) in FLAGS {
            json[flag] = true.into();
        }
        write_json(&folder.join("preprocessor_config.json"), &json)
    }

    /// `(x - mean) / std` per channel of a CHW picture in [0, 1] with three channels.
    pub fn normalise(&self, image_unit: &[f32]) -> Vec<f32> {
        let plane = (image_unit.len() / 3).max(1);
        let channels = image_unit.chunks(plane).zip(self.image_mean.iter().zip(&self.image_std));
        channels
            .flat_map(|(values, (mean, std))| values.iter().map(move |value| (value - mean) / std))
            .collect()
    }
}

const FLAGS: [(&str, &str); 4] = [
    ("do_center_crop", "cropped"),
    ("do_normalize", "normalised"),
    ("do_rescale", "rescaled to [0, 1]"),
    ("do_resize", "resized"),
];

/// The shortest decimal number that reads back as the same f32.
fn exact(value: f32) -> f64 {
    value.to_string().parse().expect("a printed number is a number")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn loaded(json: Value) -> Result<ClipPreprocessor, ClipError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), json.to_string()).unwrap();
        ClipPreprocessor::load(folder.path())
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        for preprocessor in [ClipPreprocessor::openai(224), ClipPreprocessor::signed(16)] {
            preprocessor.save(folder.path()).unwrap();
            assert_eq!(ClipPreprocessor::load(folder.path()).unwrap(), preprocessor);
        }
    }

    #[test]
    fn old_files_hold_plain_sizes() {
        let json = json!({"size": 224, "crop_size": 200, "image_mean": [0, 0.5, 1], "image_std": [1, 1, 2]});
        let preprocessor = loaded(json).unwrap();
        assert_eq!((preprocessor.shortest_edge, preprocessor.crop_size), (224, 200));
        assert_eq!(preprocessor.image_mean, [0.0, 0.5, 1.0]);
        assert_eq!(preprocessor.normalise(&[0.5, 0.5, 0.0]), [0.5, 0.0, -0.5]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let good =
            json!({"size": 8, "crop_size": 8, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]});
        loaded(good.clone()).unwrap();
        let changes: [(&str, Value); 5] = [
            ("do_normalize", json!(false)),
            ("size", json!(0)),
            ("crop_size", json!("8")),
            ("image_mean", json!([1, 2])),
            ("image_std", json!([1, 0, 1])),
        ];
        for (field, value) in changes {
            let mut json = good.clone();
            json[field] = value;
            let error = loaded(json).unwrap_err();
            assert!(matches!(&error, ClipError::Json { reason, .. } if reason.contains(field)));
        }
    }
}
