//! How pictures become the image tower's pixels: resizing, cropping, mean and deviation.
//!
//! Read from `preprocessor_config.json` or `processor_config.json` of a Hugging Face folder, or from
//! open_clip's `preprocess_cfg`. This says what is to be done; resizing itself is not here.

use crate::ClipError;
use crate::config::write_json;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Size, filter, mean and deviation of the pictures CLIP takes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPreprocessor {
    /// Mean per channel, of values in [0, 1].
    pub image_mean: [f32; 3],
    /// Deviation per channel, positive.
    pub image_std: [f32; 3],
    /// How a picture gets `size` x `size` pixels.
    pub resize: ClipResize,
    /// With which filter.
    pub filter: ClipFilter,
    /// Side of the pixels in the end.
    pub size: usize,
}

/// How a picture of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipResize {
    /// Its shorter side is resized to `shorter_side`, then its middle is kept.
    ShorterSide {
        /// At least the final size.
        shorter_side: usize,
        /// Where the middle begins when the margins cannot be equal.
        rounding: CropRounding,
    },
    /// Both sides are resized to the final size, whatever that does to the proportions.
    Squash,
}

/// Where a centred window begins in `margin` spare pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CropRounding {
    /// At `margin / 2` rounded down: transformers.
    Down,
    /// At `margin / 2`, halves rounded to even: torchvision, which open_clip uses. Differs from `Down`
    /// by one pixel for margins of 3, 7, 11, ...
    HalfToEven,
}

impl CropRounding {
    /// The first pixel that is kept.
    pub fn start(self, margin: usize) -> usize {
        match self {
            Self::HalfToEven if margin % 4 == 3 => margin / 2 + 1,
            _ => margin / 2,
        }
    }
}

/// PIL's resizing filters, antialiased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipFilter {
    /// A windowed sinc of radius 3.
    Lanczos,
    /// A triangle of radius 1.
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl ClipFilter {
    /// PIL's number of it.
    fn pil_number(self) -> u64 {
        match self {
            Self::Lanczos => 1,
            Self::Bilinear => 2,
            Self::Bicubic => 3,
        }
    }

    fn from_pil_number(number: u64) -> Option<Self> {
        [Self::Lanczos, Self::Bilinear, Self::Bicubic]
            .into_iter()
            .find(|f| f.pil_number() == number)
    }
}

/// OpenAI's mean and deviation of the pictures CLIP was trained on.
const OPENAI_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const OPENAI_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The files of a Hugging Face folder that may hold the settings, by preference. Newer versions of
/// transformers write the second, with the settings under `image_processor`.
const FILES: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

impl ClipPreprocessor {
    /// OpenAI's mean and deviation, bicubic, as transformers prepares pictures of `size`.
    pub fn openai(size: usize) -> Self {
        let rounding = CropRounding::Down;
        Self {
            image_mean: OPENAI_MEAN,
            image_std: OPENAI_STD,
            resize: ClipResize::ShorterSide { shorter_side: size, rounding },
            filter: ClipFilter::Bicubic,
            size,
        }
    }

    /// [0, 1] to [-1, 1], for square pictures of `size` that are never resized.
    pub fn signed(size: usize) -> Self {
        Self { image_mean: [0.5; 3], image_std: [0.5; 3], ..Self::openai(size) }
    }

    /// Reads the settings of a Hugging Face folder, old (`"size": 224`) or new
    /// (`"size": {"shortest_edge": 224}`); none without a file for them.
    ///
    /// # Errors
    /// [`ClipError::Io`]; [`ClipError::Json`] for settings that mean something else than is done here.
    pub fn load(folder: &Path) -> Result<Option<Self>, ClipError> {
        for file in FILES {
            let path = folder.join(file);
            if !path.exists() {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|source| ClipError::io(&path, source))?;
            let mut json: Value = serde_json::from_slice(&bytes).map_err(|error| {
                ClipError::Json { path: path.clone(), reason: error.to_string() }
            })?;
            if file == FILES[1] {
                // Without it these are a processor's other settings.
                let Some(nested) = json.get("image_processor") else { continue };
                json = nested.clone();
            }
            return Self::from_hugging_face(&Settings { path, json }).map(Some);
        }
        Ok(None)
    }

    fn from_hugging_face(settings: &Settings) -> Result<Self, ClipError> {
        for (flag, meaning) in FLAGS {
            if settings.json[flag] == Value::Bool(false) {
                let reason = format!("{flag} is false, but pictures are always {meaning}");
                return Err(settings.refuse(reason));
            }
        }
        if let Some(factor) = settings.json["rescale_factor"].as_f64()
            && (factor * 255.0 - 1.0).abs() > 1e-6
        {
            let reason = format!("rescale_factor is {factor}, but bytes are always divided by 255");
            return Err(settings.refuse(reason));
        }
        let crop = settings.json["do_center_crop"] != Value::Bool(false);
        let given = &settings.json["size"];
        // `height` and `width` are the size itself; anything else is the shorter side.
        let squash = !given["height"].is_null() || !given["width"].is_null();
        let resized = settings.size("size", &["shortest_edge", "height", "width"])?;
        let size = if crop { settings.size("crop_size", &["height", "width"])? } else { resized };
        let resize = match squash {
            true if resized == size => ClipResize::Squash,
            false if resized >= size && crop => {
                let rounding = CropRounding::Down;
                ClipResize::ShorterSide { shorter_side: resized, rounding }
            }
            _ => {
                let crop = &settings.json["crop_size"];
                let reason =
                    format!("size {given} and crop_size {crop} make no square of one size");
                return Err(settings.refuse(reason));
            }
        };
        let number = settings.json["resample"].as_u64().unwrap_or(3);
        let filter = ClipFilter::from_pil_number(number).ok_or_else(|| {
            settings.refuse(format!(
                "resample is {number}, known are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)"
            ))
        })?;
        Ok(Self {
            image_mean: settings.triple("image_mean")?,
            image_std: settings.deviations("image_std")?,
            resize,
            filter,
            size,
        })
    }

    /// open_clip's `preprocess_cfg` for a tower of `size`, which is what its own `size` gives way to.
    ///
    /// # Errors
    /// [`ClipError::Json`]; [`ClipError::Unsupported`] for a `resize_mode` or a `mode` that is not known.
    pub(crate) fn from_open_clip(
        path: &Path,
        json: &Value,
        size: usize,
    ) -> Result<Self, ClipError> {
        const KNOWN: [&str; 7] =
            ["size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"];
        let settings = Settings { path: path.to_owned(), json: json.clone() };
        let mut fields = json.as_object().into_iter().flatten();
        if let Some((field, value)) = fields.find(|(field, _)| !KNOWN.contains(&field.as_str())) {
            return Err(ClipError::unsupported(path, &format!("preprocess_cfg.{field}"), value));
        }
        let text = |field: &str, default: &'static str| match &json[field] {
            Value::Null => Ok(default.to_owned()),
            Value::String(text) => Ok(text.clone()),
            other => Err(ClipError::unsupported(path, &format!("preprocess_cfg.{field}"), other)),
        };
        if text("mode", "RGB")? != "RGB" {
            return Err(ClipError::unsupported(path, "preprocess_cfg.mode", &json["mode"]));
        }
        let resize = match text("resize_mode", "shortest")?.as_str() {
            "shortest" => {
                let rounding = CropRounding::HalfToEven;
                ClipResize::ShorterSide { shorter_side: size, rounding }
            }
            "squash" => ClipResize::Squash,
            // "longest" fills the rest with a colour; no published weights ask for it.
            _ => {
                let field = "preprocess_cfg.resize_mode";
                return Err(ClipError::unsupported(path, field, &json["resize_mode"]));
            }
        };
        let filter = match text("interpolation", "bicubic")?.as_str() {
            // A random choice in training is bicubic afterwards.
            "bicubic" | "random" => ClipFilter::Bicubic,
            "bilinear" => ClipFilter::Bilinear,
            _ => {
                let field = "preprocess_cfg.interpolation";
                return Err(ClipError::unsupported(path, field, &json["interpolation"]));
            }
        };
        let or = |field: &str, default| match json[field] {
            Value::Null => Ok(default),
            _ if field == "std" => settings.deviations(field),
            _ => settings.triple(field),
        };
        let (image_mean, image_std) = (or("mean", OPENAI_MEAN)?, or("std", OPENAI_STD)?);
        Ok(Self { image_mean, image_std, resize, filter, size })
    }

    /// Writes `preprocessor_config.json` into a folder, as transformers' `CLIPImageProcessor` reads
    /// it. (It crops by [`CropRounding::Down`], whatever the weights were made for.)
    ///
    /// # Errors
    /// [`ClipError::Io`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        let size = match self.resize {
            ClipResize::ShorterSide { shorter_side, .. } => {
                json!({ "shortest_edge": shorter_side })
            }
            ClipResize::Squash => json!({ "height": self.size, "width": self.size }),
        };
        let mut json = json!({
            "crop_size": { "height": self.size, "width": self.size },
            "do_center_crop": true,
            "image_mean": self.image_mean.map(exact),
            "image_processor_type": "CLIPImageProcessor",
            "image_std": self.image_std.map(exact),
            "resample": self.filter.pil_number(),
            "rescale_factor": 1.0 / 255.0,
            "size": size,
        });
        for (flag, _) in FLAGS {
            json[flag] = true.into();
        }
        write_json(&folder.join(FILES[0]), &json)
    }

    /// `(x - mean) / std` per channel of a CHW picture in [0, 1] with three channels.
    pub fn normalise(&self, image_unit: &[f32]) -> Vec<f32> {
        let plane = (image_unit.len() / 3).max(1);
        let channels = image_unit.chunks(plane).zip(self.image_mean.iter().zip(&self.image_std));
        channels
            .flat_map(|(values, (mean, std))| values.iter().map(move |value| (value - mean) / std))
            .collect()
    }

    /// The preparation in words, for a protocol.
    pub fn description(&self) -> String {
        let filter = match self.filter {
            ClipFilter::Lanczos => "Lanczos",
            ClipFilter::Bilinear => "bilinear",
            ClipFilter::Bicubic => "bicubic",
        };
        let size = "the extractor's size";
        match self.resize {
            ClipResize::Squash => format!("both sides to {size} by antialiased {filter}"),
            ClipResize::ShorterSide { shorter_side, rounding } => {
                let (shorter, crop) = match shorter_side == self.size {
                    true => (size.to_owned(), String::new()),
                    false => (format!("{shorter_side} pixels"), format!(" to {size}")),
                };
                let rounding = match rounding {
                    CropRounding::Down => "",
                    CropRounding::HalfToEven => " as torchvision's",
                };
                format!(
                    "shorter side to {shorter} by antialiased {filter}, centre crop{crop}{rounding}"
                )
            }
        }
    }
}

const FLAGS: [(&str, &str); 3] = [
    ("do_normalize", "normalised"),
    ("do_rescale", "rescaled to [0, 1]"),
    ("do_resize", "resized"),
];

/// The fields of a file, and its name for errors.
struct Settings {
    path: PathBuf,
    json: Value,
}

impl Settings {
    fn refuse(&self, reason: String) -> ClipError {
        ClipError::Json { path: self.path.clone(), reason }
    }

    /// A number, or the one number that the keys which are there have in common.
    fn size(&self, field: &str, keys: &[&str]) -> Result<usize, ClipError> {
        let value = &self.json[field];
        let mut found: Vec<Option<u64>> = keys
            .iter()
            .map(|key| &value[*key])
            .filter(|value| !value.is_null())
            .map(Value::as_u64)
            .chain(value.as_u64().map(Some))
            .collect();
        found.dedup();
        match found[..] {
            [Some(size @ 1..)] => Ok(size as usize),
            _ => Err(self.refuse(format!("{field} is {value}, expected one size in pixels"))),
        }
    }

    /// Three numbers, or one for all channels.
    fn triple(&self, field: &str) -> Result<[f32; 3], ClipError> {
        let value = &self.json[field];
        if let Some(number) = value.as_f64() {
            return Ok([number as f32; 3]);
        }
        let numbers = value.as_array().map(|values| {
            values.iter().filter_map(Value::as_f64).map(|v| v as f32).collect::<Vec<f32>>()
        });
        numbers
            .and_then(|numbers| <[f32; 3]>::try_from(numbers).ok())
            .ok_or_else(|| self.refuse(format!("{field} is {value}, expected three numbers")))
    }

    fn deviations(&self, field: &str) -> Result<[f32; 3], ClipError> {
        let deviations = self.triple(field)?;
        if deviations.iter().all(|&std| std > 0.0) {
            return Ok(deviations);
        }
        Err(self.refuse(format!("{field} is {deviations:?}, expected positive numbers")))
    }
}

/// The shortest decimal number that reads back as the same f32.
fn exact(value: f32) -> f64 {
    value.to_string().parse().expect("a printed number is a number")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn loaded_from(file: &str, json: Value) -> Result<ClipPreprocessor, ClipError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), json.to_string()).unwrap();
        ClipPreprocessor::load(folder.path()).map(Option::unwrap)
    }

    fn loaded(json: Value) -> Result<ClipPreprocessor, ClipError> {
        loaded_from(FILES[0], json)
    }

    fn good() -> Value {
        json!({"size": 8, "crop_size": 8, "image_mean": [0, 0.5, 1], "image_std": [1, 1, 2]})
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        assert!(ClipPreprocessor::load(folder.path()).unwrap().is_none());
        let squash =
            ClipPreprocessor { resize: ClipResize::Squash, ..ClipPreprocessor::openai(336) };
        let lanczos =
            ClipPreprocessor { filter: ClipFilter::Lanczos, ..ClipPreprocessor::openai(5) };
        let others = [ClipPreprocessor::openai(224), ClipPreprocessor::signed(16)];
        for preprocessor in others.into_iter().chain([squash, lanczos]) {
            preprocessor.save(folder.path()).unwrap();
            assert_eq!(ClipPreprocessor::load(folder.path()).unwrap().unwrap(), preprocessor);
        }
    }

    #[test]
    fn sizes_are_read_from_all_forms_of_the_file() {
        let with = |size: Value, crop: Value| {
            let mut json = good();
            (json["size"], json["crop_size"]) = (size, crop);
            loaded(json).unwrap()
        };
        let rounding = CropRounding::Down;
        let old = with(json!(224), json!(200));
        assert_eq!(old.resize, ClipResize::ShorterSide { shorter_side: 224, rounding });
        assert_eq!((old.size, old.filter), (200, ClipFilter::Bicubic));
        assert_eq!(old.normalise(&[0.5, 0.5, 0.0]), [0.5, 0.0, -0.5]);
        let new = with(json!({"shortest_edge": 224}), json!({"height": 200, "width": 200}));
        assert_eq!(new, old);
        let square = json!({"height": 224, "width": 224});
        let squash = with(square.clone(), square);
        assert_eq!((squash.resize, squash.size), (ClipResize::Squash, 224));
        let mut json = good();
        json["do_center_crop"] = false.into();
        json["size"] = json!({"height": 9, "width": 9});
        assert_eq!(loaded(json).unwrap().size, 9);
        let nested = json!({"image_processor": good(), "processor_class": "CLIPProcessor"});
        assert_eq!(loaded_from(FILES[1], nested).unwrap(), loaded(good()).unwrap());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        loaded(good()).unwrap();
        let changes: [(&str, Value); 12] = [
            ("do_normalize", json!(false)),
            ("do_resize", json!(false)),
            ("do_center_crop", json!(false)),
            ("rescale_factor", json!(1)),
            ("size", json!(0)),
            ("size", json!(7)),
            ("size", json!({"height": 8, "width": 9})),
            ("crop_size", json!("8")),
            ("resample", json!(0)),
            ("image_mean", json!([1, 2])),
            ("image_std", json!([1, 0, 1])),
            ("image_std", json!("1")),
        ];
        for (field, value) in changes {
            let mut json = good();
            json[field] = value;
            let error = loaded(json).unwrap_err();
            let word = if field == "do_center_crop" { "crop_size" } else { field };
            let named = matches!(&error, ClipError::Json { reason, .. } if reason.contains(word));
            assert!(named, "{error}");
        }
        assert!(matches!(loaded_from(FILES[0], json!("")), Err(ClipError::Json { .. })));
    }

    #[test]
    fn open_clips_settings_have_its_defaults() {
        let path = Path::new("open_clip_config.json");
        let read = |json: Value| ClipPreprocessor::from_open_clip(path, &json, 32);
        let plain = read(json!({})).unwrap();
        let rounding = CropRounding::HalfToEven;
        assert_eq!(plain.resize, ClipResize::ShorterSide { shorter_side: 32, rounding });
        let openai = ClipPreprocessor::openai(32);
        assert_eq!(plain, ClipPreprocessor { resize: plain.resize, ..openai });
        let other = json!({"size": [224, 224], "mode": "RGB", "mean": 0.5, "std": [1, 2, 3],
            "interpolation": "bilinear", "resize_mode": "squash", "fill_color": 0});
        let other = read(other).unwrap();
        assert_eq!((other.resize, other.filter), (ClipResize::Squash, ClipFilter::Bilinear));
        assert_eq!((other.image_mean, other.image_std), ([0.5; 3], [1.0, 2.0, 3.0]));
        let refused = [
            ("resize_mode", json!("longest")),
            ("interpolation", json!("nearest")),
            ("mode", json!("L")),
            ("mode", json!(3)),
            ("sharpness", json!(1)),
        ];
        for (field, value) in refused {
            let mut json = json!({});
            json[field] = value;
            let error = read(json).unwrap_err();
            let named =
                matches!(&error, ClipError::Unsupported { field: f, .. } if f.ends_with(field));
            assert!(named, "{error}");
        }
        assert!(matches!(read(json!({"std": [0, 1, 1]})), Err(ClipError::Json { .. })));
    }

    #[test]
    fn a_description_tells_preparations_apart() {
        let openai = ClipPreprocessor::openai(224);
        let plain = "shorter side to the extractor's size by antialiased bicubic, centre crop";
        assert_eq!(openai.description(), plain);
        let with = |resize| ClipPreprocessor { resize, ..openai.clone() }.description();
        let torchvision =
            ClipResize::ShorterSide { shorter_side: 224, rounding: CropRounding::HalfToEven };
        let larger = ClipResize::ShorterSide { shorter_side: 256, rounding: CropRounding::Down };
        let all = [plain.to_owned(), with(torchvision), with(larger), with(ClipResize::Squash)];
        let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }

    #[test]
    fn the_middle_begins_where_each_library_puts_it() {
        let starts = |rounding: CropRounding| [0, 1, 2, 3, 4, 5, 7].map(|m| rounding.start(m));
        assert_eq!(starts(CropRounding::Down), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(starts(CropRounding::HalfToEven), [0, 0, 1, 2, 2, 2, 4]);
    }
}
