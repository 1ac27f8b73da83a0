//! How features were made, kept beside them: in an `.npz` of statistics and in a feature file. No
//! tensor engine.

use crate::EvalError;
use serde::{Deserialize, Serialize};

/// What decides features besides the pictures, and which pictures they are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsStamp {
    /// Name of the feature extractor, such as `inception` or `dinov2`.
    pub extractor: String,
    /// Hash of everything that decides its features, in hex.
    pub extractor_hash: String,
    /// How pictures came to its size.
    pub resizing: String,
    /// What the pictures were when they were read: `png`, `jpeg`, `memory`, ..
    pub image_format: String,
    /// Number of pictures.
    pub count: u64,
    /// Hash of the pictures, or of everything they were drawn from.
    pub reference_hash: String,
    /// How the pictures were drawn, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingStamp>,
}

/// How pictures were drawn from a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingStamp {
    /// The model, for people.
    pub model: String,
    /// Hash of its weights.
    pub model_hash: String,
    /// Sampler (`ddim`, `ddpm`, ...).
    pub sampler: String,
    /// Its steps.
    pub steps: usize,
    /// Its eta: 0 is deterministic.
    pub eta: f64,
    /// Weight of classifier-free guidance, where it was used.
    pub guidance: Option<f64>,
    /// How far the guided output was brought back to the deviation of the conditional one, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_rescale: Option<f64>,
    /// Hash of the prompts in their order and of the negative prompt, where pictures are of prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_hash: Option<String>,
    /// Layers of the text encoder that were left out, where there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// Height and width in pixels, where they were chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<[usize; 2]>,
    /// Seed of the first picture; picture i has seed `first_seed + i`.
    pub first_seed: u64,
    /// Number of pictures.
    pub count: u64,
}

impl StatsStamp {
    /// Whether the features of both can be compared at all.
    ///
    /// # Errors
    /// [`EvalError::UnlikeExtractors`] when they are of two extractors.
    pub fn same_extractor(&self, other: &Self) -> Result<(), EvalError> {
        if self.extractor == other.extractor && self.extractor_hash == other.extractor_hash {
            return Ok(());
        }
        let name = |stamp: &Self| format!("{} ({})", stamp.extractor, stamp.extractor_hash);
        Err(EvalError::UnlikeExtractors { left: name(self), right: name(other) })
    }

    /// What a reader of a number made from both should know: in what else they differ.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = [
            ("resized", &self.resizing, &other.resizing),
            ("stored as", &self.image_format, &other.image_format),
        ];
        let unlike = pairs.into_iter().filter(|(_, left, right)| left != right);
        let note = |(how, left, right): (&str, &String, &String)| {
            format!("one side's pictures were {how} `{left}`, the other's `{right}`")
        };
        unlike.map(note).collect()
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }
}

#[cfg(test)]
pub(crate) fn stamp_of(extractor: &str, count: u64) -> StatsStamp {
    StatsStamp {
        extractor: extractor.to_owned(),
        extractor_hash: format!("hash of {extractor}"),
        resizing: "bilinear to 299".to_owned(),
        image_format: "png".to_owned(),
        count,
        reference_hash: "00ff".to_owned(),
        sampling: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_extractor_is_named() {
        let (a, b) = (stamp_of("inception", 3), stamp_of("dinov2", 3));
        assert!(a.same_extractor(&a).is_ok());
        let error = a.same_extractor(&b).unwrap_err();
        assert!(matches!(error, EvalError::UnlikeExtractors { .. }));
        let text = error.to_string();
        assert!(text.contains("inception") && text.contains("dinov2"), "{text}");
        let retrained = StatsStamp { extractor_hash: "other".to_owned(), ..a.clone() };
        assert!(a.same_extractor(&retrained).is_err());
    }

    #[test]
    fn how_pictures_were_drawn_is_read_from_files_without_prompts_too() {
        let before = r#"{"model":"m","model_hash":"h","sampler":"ddim","steps":50,"eta":0.0,"guidance":null,
            "first_seed":0,"count":7}"#;
        let stamp: SamplingStamp = serde_json::from_str(before).unwrap();
        assert_eq!((stamp.prompts_hash.as_ref(), stamp.size), (None, None));
        // And written as ever, so that hashes of it stay what they were.
        let compact: String = before.split_whitespace().collect();
        assert_eq!(serde_json::to_string(&stamp).unwrap(), compact);
    }

    #[test]
    fn other_formats_and_resizing_are_told() {
        let a = stamp_of("inception", 3);
        assert!(a.differences(&StatsStamp { count: 9, ..a.clone() }).is_empty());
        let b = StatsStamp { image_format: "jpeg".to_owned(), ..a.clone() };
        let notes = a.differences(&b);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("`png`") && notes[0].contains("`jpeg`"));
    }
}
