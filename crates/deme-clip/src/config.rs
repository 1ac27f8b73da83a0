//! `config.json` of a Hugging Face `CLIPModel` folder, in and out.
//!
//! Fields and defaults are transformers' (`CLIPConfig`, `CLIPTextConfig`, `CLIPVisionConfig`). Files
//! in circulation carry dozens of generic fields that do not change what CLIP computes, so unknown
//! fields are ignored here; they are another program's.

use crate::ClipError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Shape of a CLIP: two towers and the space they share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// The text tower.
    pub text_config: ClipTextConfig,
    /// The image tower.
    pub vision_config: ClipVisionConfig,
    /// Width of the shared space.
    pub projection_dim: usize,
    /// Initial logarithm of the inverse temperature.
    pub logit_scale_init_value: f64,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            text_config: ClipTextConfig::default(),
            vision_config: ClipVisionConfig::default(),
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
        }
    }
}

/// Shape of the text tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Entries of the token embedding.
    pub vocab_size: usize,
    /// Width of the tower.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides the width.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: HiddenAct,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Start token.
    pub bos_token_id: Option<u32>,
    /// End token; 2 means "the largest id of the row" (transformers' rule for old files).
    pub eos_token_id: u32,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            pad_token_id: Some(1),
            bos_token_id: Some(49406),
            eos_token_id: 49407,
        }
    }
}

/// Shape of the image tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width of the tower.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides the width.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Side of a picture in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Non-linearity of the MLP.
    pub hidden_act: HiddenAct,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// Non-linearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * Phi(x)` with the exact normal distribution function.
    Gelu,
}

impl ClipConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Json`], [`ClipError::NotClip`], and [`ClipError::Config`] as
    /// [`ClipConfig::check`].
    pub fn load(folder: &Path) -> Result<Self, ClipError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|source| ClipError::io(&path, source))?;
        let json_error = |error: serde_json::Error| ClipError::Json {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut json: Value = serde_json::from_slice(&bytes).map_err(json_error)?;
        let found = json["model_type"].as_str().unwrap_or("(none)");
        if found != "clip" {
            return Err(ClipError::NotClip { path, found: found.to_owned() });
        }
        // Old files repeat a tower's fields in `*_config_dict`, which transformers lets win.
        for tower in ["text_config", "vision_config"] {
            let Value::Object(overrides) = json[format!("{tower}_dict")].take() else { continue };
            if !json[tower].is_object() {
                json[tower] = json!({});
            }
            for (key, value) in overrides {
                json[tower][key] = value;
            }
        }
        for tower in ["text_config", "vision_config"] {
            if json[tower].is_null() {
                json[tower] = json!({});
            }
        }
        let config: Self = serde_json::from_value(json).map_err(json_error)?;
        config.check()?;
        Ok(config)
    }

    /// Writes `config.json` into a folder, as transformers reads it.
    ///
    /// # Errors
    /// [`ClipError::Io`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        let mut json =
            json!({ "architectures": ["CLIPModel"], "model_type": "clip", "dtype": "float32" });
        let own = serde_json::to_value(self).expect("numbers and names always make valid JSON");
        if let (Value::Object(json), Value::Object(own)) = (&mut json, own) {
            json.extend(own);
        }
        json["text_config"]["model_type"] = "clip_text_model".into();
        json["vision_config"]["model_type"] = "clip_vision_model".into();
        // transformers keeps the shared width in both towers too.
        json["text_config"]["projection_dim"] = self.projection_dim.into();
        json["vision_config"]["projection_dim"] = self.projection_dim.into();
        write_json(&folder.join("config.json"), &json)
    }

    /// Checks that a network can be built.
    ///
    /// # Errors
    /// [`ClipError::Config`] names the first impossible field.
    pub fn check(&self) -> Result<(), ClipError> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let sizes = [
            ("projection_dim", self.projection_dim),
            ("text_config.vocab_size", text.vocab_size),
            ("text_config.hidden_size", text.hidden_size),
            ("text_config.intermediate_size", text.intermediate_size),
            ("text_config.num_attention_heads", text.num_attention_heads),
            ("text_config.max_position_embeddings", text.max_position_embeddings),
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads),
            ("vision_config.num_channels", vision.num_channels),
            ("vision_config.image_size", vision.image_size),
            ("vision_config.patch_size", vision.patch_size),
        ];
        for (field, size) in sizes {
            if size == 0 {
                return Err(ClipError::config(field, size, "it must be at least 1"));
            }
        }
        let heads = [
            ("text_config.num_attention_heads", text.num_attention_heads, text.hidden_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads, vision.hidden_size),
        ];
        for (field, heads, width) in heads {
            if width % heads != 0 {
                let expected = format!("it must divide hidden_size {width}");
                return Err(ClipError::config(field, heads, &expected));
            }
        }
        if vision.patch_size > vision.image_size {
            let expected = format!("it must be at most image_size {}", vision.image_size);
            return Err(ClipError::config(
                "vision_config.patch_size",
                vision.patch_size,
                &expected,
            ));
        }
        let eps = [
            ("text_config.layer_norm_eps", text.layer_norm_eps),
            ("vision_config.layer_norm_eps", vision.layer_norm_eps),
        ];
        for (field, eps) in eps {
            if !(eps.is_finite() && eps > 0.0) {
                return Err(ClipError::config(field, eps, "it must be positive"));
            }
        }
        Ok(())
    }
}

/// Whether a file can be read and says it is a CLIP's.
pub(crate) fn is_clip_config(path: &Path) -> bool {
    let json = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    json.is_some_and(|json: Value| json["model_type"] == "clip")
}

/// Writes pretty JSON with a final newline, atomically.
pub(crate) fn write_json(path: &Path, json: &Value) -> Result<(), ClipError> {
    deme_merge::write_atomically(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, json)?;
        writer.write_all(b"\n")
    })
    .map_err(|source| ClipError::io(path, source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        folder
    }

    #[test]
    fn saved_and_loaded_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = ClipConfig { projection_dim: 12, ..ClipConfig::default() };
        config.vision_config.hidden_act = HiddenAct::Gelu;
        config.text_config.pad_token_id = None;
        config.save(folder.path()).unwrap();
        assert_eq!(ClipConfig::load(folder.path()).unwrap(), config);
    }

    #[test]
    fn fields_that_are_not_there_have_transformers_defaults() {
        let folder = written(r#"{"model_type": "clip", "text_config": null, "num_beams": 1}"#);
        assert_eq!(ClipConfig::load(folder.path()).unwrap(), ClipConfig::default());
    }

    #[test]
    fn a_giant_has_heads_of_88_and_the_old_rule_for_the_end_of_a_text() {
        // What transformers' conversion of ViT-g-14 writes, defaults left out.
        let folder = written(
            r#"{"model_type": "clip", "projection_dim": 1024,
                "text_config": {"bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
                    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                    "num_hidden_layers": 24, "projection_dim": 1024},
                "vision_config": {"hidden_act": "gelu", "hidden_size": 1408, "patch_size": 14,
                    "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 40,
                    "projection_dim": 1024}}"#,
        );
        let config = ClipConfig::load(folder.path()).unwrap();
        let vision = &config.vision_config;
        assert_eq!(vision.hidden_size / vision.num_attention_heads, 88);
        assert_eq!(config.text_config.hidden_act, HiddenAct::Gelu);
        assert_eq!(config.text_config.eos_token_id, 2);
    }

    #[test]
    fn the_old_dict_fields_win() {
        let folder = written(
            r#"{"model_type": "clip", "text_config_dict": {"hidden_size": 64},
                "text_config": {"hidden_size": 32, "vocab_size": 7}, "vision_config_dict": null}"#,
        );
        let config = ClipConfig::load(folder.path()).unwrap();
        assert_eq!(config.text_config.hidden_size, 64);
        assert_eq!(config.text_config.vocab_size, 7);
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = ClipConfig::load(folder.path()).unwrap_err();
        assert!(matches!(&error, ClipError::Io { path, .. } if path.ends_with("config.json")));
    }

    #[test]
    fn another_model_type_is_refused() {
        let folder = written(r#"{"model_type": "bert"}"#);
        let error = ClipConfig::load(folder.path()).unwrap_err();
        assert!(matches!(error, ClipError::NotClip { found, .. } if found == "bert"));
    }

    #[test]
    fn an_unknown_activation_is_refused() {
        let folder = written(r#"{"model_type": "clip", "text_config": {"hidden_act": "tanh"}}"#);
        let error = ClipConfig::load(folder.path()).unwrap_err();
        assert!(matches!(&error, ClipError::Json { reason, .. } if reason.contains("tanh")));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let refused = |change: fn(&mut ClipConfig)| {
            let mut config = ClipConfig::default();
            change(&mut config);
            match config.check().unwrap_err() {
                ClipError::Config { field, .. } => field,
                other => panic!("{other}"),
            }
        };
        assert_eq!(refused(|c| c.projection_dim = 0), "projection_dim");
        let heads = refused(|c| c.text_config.num_attention_heads = 7);
        assert_eq!(heads, "text_config.num_attention_heads");
        assert_eq!(refused(|c| c.vision_config.patch_size = 225), "vision_config.patch_size");
        let eps = refused(|c| c.vision_config.layer_norm_eps = f64::NAN);
        assert_eq!(eps, "vision_config.layer_norm_eps");
    }
}
