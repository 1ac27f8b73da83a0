//! diffusers' `StableDiffusionPipeline` folder: `model_index.json` and a folder per part.
//!
//! `safety_checker`, `feature_extractor` and `image_encoder` are not loaded, and written as null. A `vae` that is
//! null in the index makes a pipeline of pixels. Also here: a folder of the UNet alone.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use deme_clip::ClipTextModel;
use deme_merge::{StateDict, StateDictError};
use deme_nn::Init;
use serde_json::{Map, Value, json};

use super::{PromptTokenizer, TextToImagePipeline};
use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::checkpoint::{
    CheckpointError, PipelineFolder, create_folder, read_text, rename_deprecated_attention,
    replace_folder, write_text,
};
use crate::model_config::DIFFUSERS_VERSION;
use crate::scheduler_config::SchedulerConfig;
use crate::unet::ProjectionPlacement;
use crate::unet_2d_condition::{UNet2DConditionConfig, UNet2DConditionModel};

pub(crate) const MODEL_INDEX: &str = "model_index.json";
const PIPELINE_CLASS: &str = "StableDiffusionPipeline";
const CONFIG: &str = "config.json";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
const DIFFUSERS_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const TRANSFORMERS_WEIGHTS: &str = "model.safetensors";

/// A part that is loaded.
struct Part {
    name: &'static str,
    /// The file that says it is there; `None` where several can.
    file: Option<&'static str>,
    /// Classes that can be loaded; empty where the part's own file says more.
    classes: &'static [&'static str],
}

const UNET: Part = Part { name: "unet", file: Some(CONFIG), classes: &["UNet2DConditionModel"] };
const VAE: Part = Part { name: "vae", file: Some(CONFIG), classes: &["AutoencoderKL"] };
const TEXT_ENCODER: Part =
    Part { name: "text_encoder", file: Some(CONFIG), classes: &["CLIPTextModel"] };
const TOKENIZER: Part =
    Part { name: "tokenizer", file: None, classes: &["CLIPTokenizer", "CLIPTokenizerFast"] };
const SCHEDULER: Part = Part { name: "scheduler", file: Some(SCHEDULER_CONFIG), classes: &[] };
const PARTS: [Part; 5] = [UNET, VAE, TEXT_ENCODER, TOKENIZER, SCHEDULER];

/// Parts that are not loaded: they judge or describe pictures, and make none.
const NOT_LOADED: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];
/// Entries of `model_index.json` that are no part.
const SETTINGS: [&str; 1] = ["requires_safety_checker"];

/// The files of a pipeline folder. All parts are known to be there; none is read until it is asked for.
#[derive(Debug, Clone)]
pub struct TextToImageFolder {
    folder: PathBuf,
    has_vae: bool,
}

impl TextToImageFolder {
    /// Whether a folder's `model_index.json` says it is a pipeline of this kind; false for anything unreadable.
    pub fn is_at(folder: &Path) -> bool {
        let text = std::fs::read_to_string(folder.join(MODEL_INDEX)).unwrap_or_default();
        let index: Value = serde_json::from_str(&text).unwrap_or_default();
        index["_class_name"] == PIPELINE_CLASS
    }

    /// Looks at `model_index.json` and whether all parts are there. Only `vae` may be null in the index, and then
    /// need not be there.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`], [`CheckpointError::NotAFolder`], [`CheckpointError::MissingPart`] for a
    /// part (or the index itself) that is not there, [`CheckpointError::ModelIndex`] for one of another class.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let folder = folder.to_owned();
        if !folder.exists() {
            return Err(CheckpointError::NotFound { path: folder });
        }
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder { path: folder });
        }
        let path = folder.join(MODEL_INDEX);
        let missing = |part: &'static str, file: &str| CheckpointError::MissingPart {
            folder: folder.clone(),
            part,
            file: file.to_owned(),
        };
        if !path.is_file() {
            return Err(missing("model index", MODEL_INDEX));
        }
        let has_vae = check_index(&read_text(&path)?)
            .map_err(|reason| CheckpointError::ModelIndex { path, reason })?;
        for Part { name, file, .. } in PARTS {
            if name == VAE.name && !has_vae {
                continue;
            }
            let (there, file) = match file {
                Some(file) => (folder.join(name).join(file).is_file(), format!("{name}/{file}")),
                None => (folder.join(name).is_dir(), format!("{name}/")),
            };
            if !there {
                return Err(missing(name, &file));
            }
        }
        Ok(Self { folder, has_vae })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder with the UNet's `config.json` and weights.
    pub fn unet_folder(&self) -> PathBuf {
        self.part(&UNET)
    }

    /// The UNet's configuration.
    ///
    /// # Errors
    /// [`CheckpointError::UNetConfig`], [`CheckpointError::Io`].
    pub fn unet_config(&self) -> Result<UNet2DConditionConfig, CheckpointError> {
        unet_config_in(&self.unet_folder())
    }

    /// The UNet's weights, all finite; no network is built.
    ///
    /// # Errors
    /// [`CheckpointError::Weights`].
    pub fn unet_weights(&self) -> Result<StateDict, CheckpointError> {
        weights_in(&self.unet_folder())
    }

    /// The UNet.
    ///
    /// # Errors
    /// As [`Self::unet_config`] and [`Self::unet_weights`], and [`CheckpointError::Fit`] with all that is
    /// missing, unused or of another shape.
    pub fn unet(&self, device: &Device) -> Result<UNet2DConditionModel, CheckpointError> {
        unet_in(&self.unet_folder(), device)
    }

    /// The autoencoder, or `None` for a pipeline of pixels. Attention weights under the names of old diffusers versions (`query`, `key`, `value`,
    /// `proj_attn`) are renamed as diffusers does.
    ///
    /// # Errors
    /// [`CheckpointError::VaeConfig`], [`CheckpointError::Weights`], [`CheckpointError::Fit`],
    /// [`CheckpointError::Io`].
    pub fn vae(&self, device: &Device) -> Result<Option<AutoencoderKl>, CheckpointError> {
        if !self.has_vae {
            return Ok(None);
        }
        let folder = self.part(&VAE);
        let path = folder.join(CONFIG);
        let config = AutoencoderKlConfig::from_json(&read_text(&path)?);
        let model = config.and_then(|config| AutoencoderKl::new(&config, &mut Init::zeros(device)));
        let model = model.map_err(|source| CheckpointError::VaeConfig { path, source })?;
        filled_from(&folder, model).map(Some)
    }

    /// The text encoder.
    ///
    /// # Errors
    /// [`CheckpointError::TextEncoder`].
    pub fn text_encoder(&self, device: &Device) -> Result<ClipTextModel, CheckpointError> {
        let folder = self.part(&TEXT_ENCODER);
        ClipTextModel::load(&folder, device).map_err(|source| CheckpointError::TextEncoder {
            folder: Some(folder),
            source: Box::new(source),
        })
    }

    /// The tokenizer; its rows get `context_length` ids, which the text encoder's config says.
    ///
    /// # Errors
    /// As [`PromptTokenizer::load`].
    pub fn tokenizer(&self, context_length: usize) -> Result<PromptTokenizer, CheckpointError> {
        PromptTokenizer::load(&self.part(&TOKENIZER), context_length)
    }

    /// The scheduler's configuration.
    ///
    /// # Errors
    /// [`CheckpointError::SchedulerConfig`], [`CheckpointError::Io`].
    pub fn scheduler(&self) -> Result<SchedulerConfig, CheckpointError> {
        let path = self.part(&SCHEDULER).join(SCHEDULER_CONFIG);
        SchedulerConfig::from_json(&read_text(&path)?)
            .map_err(|source| CheckpointError::SchedulerConfig { path, source })
    }

    fn part(&self, part: &Part) -> PathBuf {
        self.folder.join(part.name)
    }
}

/// The UNet of a folder that [`save_conditional_unet`] wrote, or diffusers' `save_pretrained`: in `unet/`, or in
/// the folder itself. Of a whole pipeline nothing else is looked at.
///
/// # Errors
/// [`CheckpointError::NotFound`], [`CheckpointError::NotAFolder`], [`CheckpointError::NoUNet`]; else as
/// [`TextToImageFolder::unet`].
pub fn load_conditional_unet(
    folder: &Path,
    device: &Device,
) -> Result<UNet2DConditionModel, CheckpointError> {
    unet_in(PipelineFolder::open(folder)?.unet_folder(), device)
}

/// Writes a UNet alone, as `unet/config.json` and `unet/diffusion_pytorch_model.safetensors`: what
/// `UNet2DConditionModel.from_pretrained(folder, subfolder="unet")` loads in diffusers; weights in f32.
///
/// The folder appears complete or not at all, and replaces one of its kind. Folded projections are folded; those
/// on hidden states are kept as `projection.0 ..` and read back by [`load_conditional_unet`], but diffusers would
/// leave them out.
///
/// # Errors
/// [`CheckpointError::Occupied`] when something else is there, a whole pipeline too; [`CheckpointError::Io`],
/// [`CheckpointError::Weights`].
pub fn save_conditional_unet(
    folder: &Path,
    unet: &UNet2DConditionModel,
) -> Result<(), CheckpointError> {
    let unet = &exported(unet);
    let weights = deme_nn::to_state_dict(unet);
    let ours = [("", vec![UNET.name]), (UNET.name, vec![CONFIG, DIFFUSERS_WEIGHTS])];
    weights.check_finite().map_err(weights_error(folder, &UNET))?;
    replace_folder(folder, &ours, |new| {
        create_folder(&new.join(UNET.name))?;
        write_unet(folder, new, unet.config(), &weights)
    })
}

/// The architecture that is written: without projections that can be folded.
pub(super) fn exported(unet: &UNet2DConditionModel) -> UNet2DConditionModel {
    match unet.config().channel_projection {
        ProjectionPlacement::Folded => {
            unet.clone().fold_projection().expect("this placement can be folded")
        }
        ProjectionPlacement::None | ProjectionPlacement::Block => unet.clone(),
    }
}

/// Writes the UNet's files into `new`, which is to become `folder`.
fn write_unet(
    folder: &Path,
    new: &Path,
    config: &UNet2DConditionConfig,
    weights: &StateDict,
) -> Result<(), CheckpointError> {
    let new = new.join(UNET.name);
    write_text(&new.join(CONFIG), &config.to_json())?;
    weights.save(&new.join(DIFFUSERS_WEIGHTS)).map_err(weights_error(folder, &UNET))
}

fn unet_config_in(folder: &Path) -> Result<UNet2DConditionConfig, CheckpointError> {
    let path = folder.join(CONFIG);
    UNet2DConditionConfig::from_json(&read_text(&path)?)
        .map_err(|source| CheckpointError::UNetConfig { path, source })
}

fn unet_in(folder: &Path, device: &Device) -> Result<UNet2DConditionModel, CheckpointError> {
    let config = unet_config_in(folder)?;
    let model = UNet2DConditionModel::new(&config, &mut Init::zeros(device));
    let path = folder.join(CONFIG);
    filled_from(folder, model.map_err(|source| CheckpointError::UNetConfig { path, source })?)
}

/// The weights in a part's folder, all finite.
fn weights_in(folder: &Path) -> Result<StateDict, CheckpointError> {
    let refused = |source| CheckpointError::Weights { folder: folder.to_owned(), source };
    let mut state = StateDict::load(folder).map_err(refused)?;
    rename_deprecated_attention(&mut state).map_err(refused)?;
    state.check_finite().map_err(refused)?;
    Ok(state)
}

/// A network with the weights in a part's folder.
fn filled_from<M: burn::module::Module>(folder: &Path, model: M) -> Result<M, CheckpointError> {
    let state = weights_in(folder)?;
    deme_nn::load_state_dict(model, &state).map_err(|source| CheckpointError::Fit {
        folder: folder.to_owned(),
        source: Box::new(source),
    })
}

fn weights_error(folder: &Path, part: &Part) -> impl Fn(StateDictError) -> CheckpointError {
    let folder = folder.join(part.name);
    move |source| CheckpointError::Weights { folder: folder.clone(), source }
}

/// Checks the classes that `model_index.json` names. Returns whether there is an autoencoder: there is none when
/// its entry is null.
fn check_index(text: &str) -> Result<bool, String> {
    let index: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("(none)");
    if class != PIPELINE_CLASS {
        return Err(format!(
            "it describes a `{class}`; only a `{PIPELINE_CLASS}` (Stable Diffusion 1) can be loaded"
        ));
    }
    let mut has_vae = true;
    for (name, entry) in &index {
        let skipped = name.starts_with('_') || SETTINGS.contains(&name.as_str());
        if skipped || NOT_LOADED.contains(&name.as_str()) {
            continue;
        }
        let class = entry.get(1).and_then(Value::as_str);
        let Some(part) = PARTS.iter().find(|part| part.name == name) else {
            if class.is_none() {
                continue; // null: this pipeline does not have that part
            }
            return Err(format!(
                "it has a part `{name}` ({entry}), which Stable Diffusion 1 has not"
            ));
        };
        if name == VAE.name && (entry.is_null() || *entry == json!([null, null])) {
            has_vae = false;
            continue;
        }
        let class = class.unwrap_or("null");
        if !part.classes.is_empty() && !part.classes.contains(&class) {
            let classes = part.classes.join(" or ");
            return Err(format!("its `{name}` is a `{class}`; only {classes} can be loaded"));
        }
    }
    Ok(has_vae)
}

/// Writes a folder that diffusers loads (see [`TextToImagePipeline::save`]).
pub(super) fn save(
    folder: &Path,
    pipeline: &TextToImagePipeline,
    unet_config: &UNet2DConditionConfig,
    unet_weights: &StateDict,
) -> Result<(), CheckpointError> {
    unet_weights.check_finite().map_err(weights_error(folder, &UNET))?;
    let null = json!([null, null]);
    let mut index = Map::new();
    index.insert("_class_name".into(), PIPELINE_CLASS.into());
    index.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
    for name in NOT_LOADED {
        index.insert(name.into(), null.clone());
    }
    index.insert("requires_safety_checker".into(), false.into());
    index.insert("scheduler".into(), json!(["diffusers", pipeline.scheduler.class]));
    index.insert("text_encoder".into(), json!(["transformers", "CLIPTextModel"]));
    index.insert("tokenizer".into(), json!(["transformers", "CLIPTokenizer"]));
    index.insert("unet".into(), json!(["diffusers", "UNet2DConditionModel"]));
    let vae = pipeline.vae.as_ref().map_or(null, |_| json!(["diffusers", "AutoencoderKL"]));
    index.insert("vae".into(), vae);
    let index = format!("{:#}\n", Value::Object(index));

    let names = PARTS.map(|part| part.name);
    let top: Vec<&str> = [MODEL_INDEX].into_iter().chain(names).collect();
    let with_config = |weights| vec![CONFIG, weights];
    let ours = [
        ("", top),
        (UNET.name, with_config(DIFFUSERS_WEIGHTS)),
        (VAE.name, with_config(DIFFUSERS_WEIGHTS)),
        (TEXT_ENCODER.name, with_config(TRANSFORMERS_WEIGHTS)),
        (TOKENIZER.name, super::prompt_tokenizer::FILES.to_vec()),
        (SCHEDULER.name, vec![SCHEDULER_CONFIG]),
    ];
    replace_folder(folder, &ours, |new| {
        let in_part = |part: &Part, file: &str| new.join(part.name).join(file);
        for name in names {
            if name != VAE.name || pipeline.vae.is_some() {
                create_folder(&new.join(name))?;
            }
        }
        write_text(&new.join(MODEL_INDEX), &index)?;
        write_text(&in_part(&SCHEDULER, SCHEDULER_CONFIG), &pipeline.scheduler.to_json())?;
        pipeline.tokenizer.save(&new.join(TOKENIZER.name))?;
        let text_encoder = new.join(TEXT_ENCODER.name);
        pipeline.text_encoder.save(&text_encoder).map_err(|source| {
            CheckpointError::TextEncoder {
                folder: Some(text_encoder.clone()),
                source: Box::new(source),
            }
        })?;
        if let Some(vae) = &pipeline.vae {
            write_text(&in_part(&VAE, CONFIG), &vae.config().to_json())?;
            deme_nn::to_state_dict(vae)
                .save(&in_part(&VAE, DIFFUSERS_WEIGHTS))
                .map_err(weights_error(folder, &VAE))?;
        }
        write_unet(folder, new, unet_config, unet_weights)
    })
}
