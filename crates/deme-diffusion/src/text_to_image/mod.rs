//! Stable Diffusion 1 as one thing: text encoder, tokenizer, UNet, autoencoder and schedule, in and out.
//!
//! Reads diffusers' `StableDiffusionPipeline` folder ([`TextToImageFolder`]) and the single file of the original
//! code ([`single_file`]), writes the folder. Not here: sampling, guidance.

mod folder;
mod prompt_tokenizer;
pub mod single_file;

use std::path::Path;

use burn::tensor::{Device, Tensor};
use deme_clip::ClipTextModel;
use deme_merge::StateDict;

use crate::autoencoder_kl::AutoencoderKl;
use crate::checkpoint::{CheckpointError, resolve};
use crate::hub::ModelKind;
use crate::scheduler_config::SchedulerConfig;
use crate::unet_2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};

pub use folder::{TextToImageFolder, load_conditional_unet, save_conditional_unet};
pub use prompt_tokenizer::PromptTokenizer;
pub use single_file::SingleFileConfigs;

/// All parts of a text-to-image model, of latents (Stable Diffusion) or of pixels.
#[derive(Debug, Clone)]
pub struct TextToImagePipeline {
    /// Predicts the noise in scaled latents, or in images where there is no autoencoder, given a text's hidden
    /// states.
    pub unet: UNet2DConditionModel,
    /// Images to latents and back; `None` for a model of pixels.
    ///
    /// diffusers' own `StableDiffusionPipeline` cannot do without one. Of a folder without it, diffusers and
    /// transformers load UNet, text encoder, tokenizer and scheduler part by part.
    pub vae: Option<AutoencoderKl>,
    /// Token ids to hidden states.
    pub text_encoder: ClipTextModel,
    /// Prompts to token ids.
    pub tokenizer: PromptTokenizer,
    /// The noise schedule and sampler settings.
    pub scheduler: SchedulerConfig,
}

/// Prompts as the UNet sees them.
#[derive(Debug, Clone)]
pub struct EncodedPrompts {
    /// One sequence per prompt, `[B, L, width]`.
    pub hidden_states: Tensor<3>,
    /// For each prompt, whether it was too long and lost its last words.
    pub truncated: Vec<bool>,
}

impl TextToImagePipeline {
    /// Loads a pipeline from a local folder, from a single file (`.safetensors`, `.ckpt`) of Stable Diffusion 1,
    /// or from the Hugging Face hub as `hub:owner/name[@revision]`.
    ///
    /// # Errors
    /// [`CheckpointError`] names the part that is missing or wrong, where it was looked for, and what to do.
    pub fn load(source: &str, device: &Device) -> Result<Self, CheckpointError> {
        let path = resolve(source, ModelKind::TextToImage)?;
        if path.is_file() {
            return single_file::load(&path, &SingleFileConfigs::default(), device);
        }
        let folder = TextToImageFolder::open(&path)?;
        let text_encoder = folder.text_encoder(device)?;
        let pipeline = Self {
            unet: folder.unet(device)?,
            vae: folder.vae(device)?,
            tokenizer: folder.tokenizer(text_encoder.config().max_position_embeddings)?,
            text_encoder,
            scheduler: folder.scheduler()?,
        };
        match pipeline.misfit() {
            Some(reason) => Err(CheckpointError::PartsDiffer { path, reason }),
            None => Ok(pipeline),
        }
    }

    /// What one part gives and the next does not take.
    fn misfit(&self) -> Option<String> {
        let unet = self.unet.config();
        let width = self.text_encoder.config().hidden_size;
        if let Some(taken) = unet.cross_attention_dim.values().iter().find(|&&d| d != width) {
            return Some(format!(
                "the UNet looks at hidden states of width {taken} (cross_attention_dim), and the text encoder's \
                 are of width {width} (hidden_size)"
            ));
        }
        let latents = self.vae.as_ref()?.config().latent_channels;
        (unet.out_channels != latents).then(|| {
            format!(
                "the UNet gives {} channels (out_channels), and the autoencoder's latents have {latents} \
                 (latent_channels)",
                unet.out_channels
            )
        })
    }

    /// Writes a folder that `diffusers.StableDiffusionPipeline.from_pretrained` loads; weights in f32, no safety
    /// checker. Without an autoencoder its entry in `model_index.json` is null, and diffusers loads only the
    /// parts.
    ///
    /// The folder appears complete or not at all. An earlier folder of ours at the same place is replaced; any
    /// other that is not empty is refused. Folded projections are folded; those on hidden states are kept as
    /// `projection.0 ..` and read back by [`Self::load`], but diffusers would leave them out.
    ///
    /// # Errors
    /// [`CheckpointError::Occupied`], [`CheckpointError::Io`], [`CheckpointError::Weights`],
    /// [`CheckpointError::TextEncoder`], [`CheckpointError::Tokenizer`].
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let unet = folder::exported(&self.unet);
        self.save_with_unet(folder, unet.config(), &deme_nn::to_state_dict(&unet))
    }

    /// As [`Self::save`], with another UNet's weights (merged ones, which never were a network). Names and
    /// shapes must be those of `config`; dtypes are kept.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_with_unet(
        &self,
        folder: &Path,
        config: &UNet2DConditionConfig,
        weights: &StateDict,
    ) -> Result<(), CheckpointError> {
        folder::save(folder, self, config, weights)
    }

    /// What the UNet is conditioned on: the hidden states of one text per prompt, before the last
    /// `skipped_layers` layers of the text encoder (`clip_skip`; 0 is what Stable Diffusion was trained with).
    /// The empty prompt is what it was trained on as "no condition".
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] for a prompt the tokenizer refuses, [`CheckpointError::TextEncoder`].
    pub fn encode_prompts<S: AsRef<str>>(
        &self,
        prompts: &[S],
        skipped_layers: usize,
    ) -> Result<EncodedPrompts, CheckpointError> {
        let encoded = self.tokenizer.encode(prompts)?;
        let hidden_states = self.text_encoder.hidden_states(&encoded.ids, skipped_layers);
        let hidden_states = hidden_states.map_err(|source| CheckpointError::TextEncoder {
            folder: None,
            source: Box::new(source),
        })?;
        Ok(EncodedPrompts { hidden_states, truncated: encoded.truncated })
    }

    /// `[C, H, W]` of the scaled latents that decode to the images the model was trained on (of those images
    /// themselves, where there is no autoencoder), when the UNet's config says so.
    pub fn latent_shape(&self) -> Option<[usize; 3]> {
        self.unet.config().image_shape()
    }

    /// Images of scaled latents, clamped to `[-1, 1]`. Without an autoencoder the latents are the images, and
    /// only clamped.
    ///
    /// # Shapes
    /// `[B, latent_channels, h, w]` to `[B, 3, f h, f w]`; without an autoencoder `[B, C, h, w]` to the same.
    pub fn images(&self, scaled_latents: Tensor<4>) -> Tensor<4> {
        let images = match &self.vae {
            Some(vae) => vae.decode(vae.unscaled(scaled_latents)),
            None => scaled_latents,
        };
        images.clamp(-1.0, 1.0)
    }
}
