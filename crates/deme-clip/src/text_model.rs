//! CLIP's text tower alone, under Hugging Face's names and folder layout: `CLIPTextModel`, the text encoder of
//! Stable Diffusion 1 and 2.
//!
//! Not here: the tower itself (`text_tower`), tokens.

use crate::ClipError;
use crate::config::{ClipConfig, ClipTextConfig, write_json};
use crate::model::ClipModel;
use crate::text_tower::ClipTextTransformer;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use deme_merge::StateDict;
use deme_nn::{Init, load_state_dict, to_state_dict};
use serde_json::{Value, json};
use std::path::Path;

/// What transformers up to version 4 puts before every name; version 5 writes the names without it and
/// reads both.
const PREFIX: &str = "text_model.";

/// A counter that old checkpoints store beside the weights.
const POSITION_IDS: &str = "text_model.embeddings.position_ids";

/// Hugging Face's `CLIPTextModel`.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    /// The tower.
    pub text_model: ClipTextTransformer,
    #[module(skip)]
    config: ClipTextConfig,
}

impl ClipTextModel {
    /// Random weights as transformers initialises them.
    ///
    /// # Errors
    /// [`ClipError::Config`].
    pub fn new(config: &ClipTextConfig, init: &mut Init) -> Result<Self, ClipError> {
        ClipConfig { text_config: config.clone(), ..ClipConfig::default() }.check()?;
        Ok(Self { text_model: ClipTextTransformer::new(config, init), config: config.clone() })
    }

    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Json`], [`ClipError::NotClipText`].
    pub fn load_config(folder: &Path) -> Result<ClipTextConfig, ClipError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|source| ClipError::io(&path, source))?;
        let json_error = |error: serde_json::Error| ClipError::Json {
            path: path.clone(),
            reason: error.to_string(),
        };
        let json: Value = serde_json::from_slice(&bytes).map_err(json_error)?;
        let found = json["model_type"].as_str().unwrap_or("(none)");
        if found != "clip_text_model" {
            return Err(ClipError::NotClipText { path, found: found.to_owned() });
        }
        serde_json::from_value(json).map_err(json_error)
    }

    /// Reads a folder with `config.json` and the weights, in any format and precision [`StateDict::load`]
    /// knows.
    ///
    /// # Errors
    /// [`ClipError`] says which file or tensor is missing, damaged, unused or of another shape.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ClipError> {
        let config = Self::load_config(folder)?;
        let state = StateDict::load(folder)?;
        Self::from_state_dict(&config, state, device).map_err(|error| match error {
            ClipError::Weights { source, .. } => {
                ClipError::Weights { path: folder.to_owned(), source }
            }
            other => other,
        })
    }

    /// The model with these weights, named with or without the prefix `text_model.`.
    ///
    /// # Errors
    /// [`ClipError::Config`]; [`ClipError::State`] for a NaN or an infinity; [`ClipError::Weights`] with all
    /// that is missing, unused or of another shape.
    pub fn from_state_dict(
        config: &ClipTextConfig,
        state: StateDict,
        device: &Device,
    ) -> Result<Self, ClipError> {
        let has_prefix = state.names().any(|name| name.starts_with(PREFIX));
        let prefix = if has_prefix { "" } else { PREFIX };
        let tensors =
            state.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()));
        let mut prefixed: StateDict = tensors.collect();
        prefixed.remove(POSITION_IDS);
        prefixed.check_finite()?;
        let model = Self::new(config, &mut Init::zeros(device))?;
        load_state_dict(model, &prefixed)
            .map_err(|error| ClipError::Weights { path: "".into(), source: Box::new(error) })
    }

    /// The text tower of a whole CLIP.
    pub fn of_clip(clip: &ClipModel) -> Self {
        Self { text_model: clip.text_model.clone(), config: clip.config().text_config.clone() }
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder, as transformers'
    /// `CLIPTextModel.from_pretrained` reads them.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::State`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        let mut json = json!({
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "dtype": "float32",
        });
        let own = serde_json::to_value(&self.config).expect("numbers and names make valid JSON");
        if let (Value::Object(json), Value::Object(own)) = (&mut json, own) {
            json.extend(own);
        }
        write_json(&folder.join("config.json"), &json)?;
        Ok(to_state_dict(self).save(&folder.join("model.safetensors"))?)
    }

    /// The configuration.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The hidden states a diffusion model is prompted with: before the last `skipped_layers` layers (0 for
    /// none, as Stable Diffusion was trained), after the final layer norm.
    ///
    /// # Shapes
    /// ids: B rows of L; returns `[B, L, hidden_size]`.
    ///
    /// # Errors
    /// [`ClipError::TokenCount`], [`ClipError::TokenOutOfRange`], [`ClipError::SkippedLayers`].
    pub fn hidden_states(
        &self,
        ids: &[Vec<u32>],
        skipped_layers: usize,
    ) -> Result<Tensor<3>, ClipError> {
        self.text_model.hidden_state_before(ids, skipped_layers)
    }
}
