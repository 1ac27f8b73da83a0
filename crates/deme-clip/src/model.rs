//! CLIP's two towers and their shared space, under Hugging Face's names and folder layout.

use crate::ClipError;
use crate::config::ClipConfig;
use crate::text_tower::ClipTextTransformer;
use crate::vision_tower::ClipVisionTransformer;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use deme_merge::{StateDict, StoredTensor};
use deme_nn::{Init, Linear, load_state_dict, to_state_dict};
use std::path::Path;

const LOGIT_SCALE: &str = "logit_scale";

/// Counters that old checkpoints store beside the weights.
const BUFFERS: [&str; 2] =
    ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];

/// Hugging Face's `CLIPModel`.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// The text tower.
    pub text_model: ClipTextTransformer,
    /// The image tower.
    pub vision_model: ClipVisionTransformer,
    /// Image tower to shared space, no bias.
    pub visual_projection: Linear,
    /// Text tower to shared space, no bias.
    pub text_projection: Linear,
    /// Logarithm of the inverse temperature, `[1]` (a scalar in files).
    pub logit_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: ClipConfig,
}

impl ClipModel {
    /// Random weights as transformers initialises them.
    ///
    /// # Errors
    /// [`ClipError::Config`].
    pub fn new(config: &ClipConfig, init: &mut Init) -> Result<Self, ClipError> {
        config.check()?;
        let d = config.projection_dim;
        let projection = |width: usize, init: &mut Init| Linear {
            weight: Param::from_tensor(init.normal([d, width], (width as f32).powf(-0.5))),
            bias: None,
        };
        Ok(Self {
            text_model: ClipTextTransformer::new(&config.text_config, init),
            vision_model: ClipVisionTransformer::new(&config.vision_config, init),
            visual_projection: projection(config.vision_config.hidden_size, init),
            text_projection: projection(config.text_config.hidden_size, init),
            logit_scale: Param::from_tensor(
                init.constant([1], config.logit_scale_init_value as f32),
            ),
            config: config.clone(),
        })
    }

    /// Reads a folder with `config.json` and the weights.
    ///
    /// # Errors
    /// [`ClipError`] says which file or tensor is missing, damaged, unused or of another shape.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ClipError> {
        let config = ClipConfig::load(folder)?;
        let mut state = StateDict::load(folder)?;
        BUFFERS.iter().for_each(|buffer| drop(state.remove(buffer)));
        Self::from_state_dict(&config, &state, folder, device)
    }

    /// The network of these weights, which were read from `path`.
    pub(crate) fn from_state_dict(
        config: &ClipConfig,
        state: &StateDict,
        path: &Path,
        device: &Device,
    ) -> Result<Self, ClipError> {
        state.check_finite()?;
        let model = Self::new(config, &mut Init::zeros(device))?;
        load_state_dict(model, state)
            .map_err(|error| ClipError::Weights { path: path.to_owned(), source: Box::new(error) })
    }

    /// Writes `config.json` and `model.safetensors` into an existing folder, as transformers'
    /// `CLIPModel.from_pretrained` reads them.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::State`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        self.config.save(folder)?;
        Ok(self.to_state_dict().save(&folder.join("model.safetensors"))?)
    }

    /// All weights under Hugging Face's names.
    pub fn to_state_dict(&self) -> StateDict {
        let mut state = to_state_dict(self);
        let scale = self.logit_scale_ln();
        state.insert(LOGIT_SCALE.to_owned(), StoredTensor::from_f32(vec![], vec![scale]));
        state
    }

    /// A hash, in hex, of all weights.
    pub fn weights_hash(&self) -> String {
        self.to_state_dict().content_hash()
    }

    /// The shape of both towers.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The image tower's output before the projection, `[B, vision width]`.
    ///
    /// `pixels`: `[B, channels, size, size]`, normalised as the preprocessor says.
    ///
    /// # Errors
    /// [`ClipError::PixelShape`].
    pub fn image_pooled(&self, pixels: Tensor<4>) -> Result<Tensor<2>, ClipError> {
        self.vision_model.pooled_output(pixels)
    }

    /// Pictures in the shared space, `[B, d]`, not normalised.
    ///
    /// `pixels`: `[B, channels, size, size]`, normalised as the preprocessor says.
    ///
    /// # Errors
    /// [`ClipError::PixelShape`].
    pub fn image_embeds(&self, pixels: Tensor<4>) -> Result<Tensor<2>, ClipError> {
        Ok(self.visual_projection.forward(self.image_pooled(pixels)?))
    }

    /// Texts in the shared space, `[B, d]`, not normalised, from B rows of equally many ids.
    ///
    /// # Errors
    /// [`ClipError::TokenCount`], [`ClipError::TokenOutOfRange`].
    pub fn text_embeds(&self, ids: &[Vec<u32>]) -> Result<Tensor<2>, ClipError> {
        Ok(self.text_projection.forward(self.text_model.pooled_output(ids)?))
    }

    /// The logarithm of the inverse temperature that multiplies cosines in training.
    pub fn logit_scale_ln(&self) -> f32 {
        self.logit_scale.val().into_scalar::<f32>()
    }
}

/// Every row divided by its Euclidean length: `[B, d]` to the same.
pub fn normalise(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).sqrt();
    x / length
}
