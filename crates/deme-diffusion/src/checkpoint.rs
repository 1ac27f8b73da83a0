//! Diffusers folders in and out.
//!
//! Reads what `save_pretrained` writes, of a pipeline (`unet/`, `scheduler/`) or of a UNet alone (flat), with
//! weights as safetensors, shards or PyTorch pickles; writes what `diffusers.DDPMPipeline.from_pretrained` and
//! `DDIMPipeline.from_pretrained` load. Not here: the formats of weight files (`deme-merge`).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use deme_clip::ClipError;
use deme_merge::{StateDict, StateDictError, write_atomically};
use deme_nn::{Init, LoadError};
use serde_json::json;

use crate::hub::{Hub, HubError, HubModel, ModelKind};
use crate::model_config::{DIFFUSERS_VERSION, ModelConfigError};
use crate::scheduler_config::{SchedulerConfig, SchedulerConfigError};
use crate::unet::{ProjectionPlacement, UNet2DConfig, UNet2DModel};

const MODEL_INDEX: &str = "model_index.json";
const UNET: &str = "unet";
const UNET_CONFIG: &str = "config.json";
const UNET_WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const SCHEDULER: &str = "scheduler";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";

/// A pipeline read from a folder.
#[derive(Debug)]
pub struct LoadedModel {
    /// The noise predictor.
    pub unet: UNet2DModel,
    /// The noise schedule and sampler settings, when the folder has them; a folder of a UNet alone has not.
    pub scheduler: Option<SchedulerConfig>,
    /// Where it was read from; for a model of the hub, the folder in the cache.
    pub folder: PathBuf,
}

/// Loads a model from a local folder, or from the Hugging Face hub as `hub:owner/name[@revision]`.
///
/// # Errors
/// [`CheckpointError`]; weights that do not fit the config are listed in full.
pub fn load_pipeline(source: &str, device: &Device) -> Result<LoadedModel, CheckpointError> {
    let files = PipelineFolder::open(&resolve(source, ModelKind::Diffusion)?)?;
    Ok(LoadedModel {
        unet: files.unet(device)?,
        scheduler: files.scheduler()?,
        folder: files.folder,
    })
}

/// The local folder of a source: the path itself, or the cached snapshot of `hub:owner/name[@revision]`, which
/// is fetched if it is not there.
///
/// # Errors
/// [`CheckpointError::Hub`]. A local path is not looked at.
pub fn resolve(source: &str, kind: ModelKind) -> Result<PathBuf, CheckpointError> {
    match HubModel::parse(source) {
        Some(model) => Ok(Hub::from_env().folder_of(&model?, kind)?),
        None => Ok(PathBuf::from(source)),
    }
}

/// The files of a pipeline folder; nothing is read until it is asked for.
#[derive(Debug, Clone)]
pub struct PipelineFolder {
    folder: PathBuf,
    unet: PathBuf,
    scheduler: Option<PathBuf>,
}

impl PipelineFolder {
    /// Finds the parts: `unet/config.json` or `config.json`, and `scheduler/scheduler_config.json` or
    /// `scheduler_config.json`.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`], [`CheckpointError::NotAFolder`] and [`CheckpointError::NoUNet`].
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let folder = folder.to_owned();
        if !folder.exists() {
            return Err(CheckpointError::NotFound { path: folder });
        }
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder { path: folder });
        }
        let unet = [folder.join(UNET), folder.clone()]
            .into_iter()
            .find(|candidate| candidate.join(UNET_CONFIG).is_file())
            .ok_or_else(|| CheckpointError::NoUNet { folder: folder.clone() })?;
        let scheduler = [folder.join(SCHEDULER), folder.clone()]
            .map(|candidate| candidate.join(SCHEDULER_CONFIG))
            .into_iter()
            .find(|candidate| candidate.is_file());
        Ok(Self { folder, unet, scheduler })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder with the UNet's `config.json` and weights.
    pub fn unet_folder(&self) -> &Path {
        &self.unet
    }

    /// The UNet's configuration.
    ///
    /// # Errors
    /// [`CheckpointError::UNetConfig`], also for the config of another class.
    pub fn unet_config(&self) -> Result<UNet2DConfig, CheckpointError> {
        let path = self.unet.join(UNET_CONFIG);
        UNet2DConfig::from_json(&read_text(&path)?)
            .map_err(|source| CheckpointError::UNetConfig { path, source })
    }

    /// The scheduler's configuration, when there is one.
    ///
    /// # Errors
    /// [`CheckpointError::SchedulerConfig`].
    pub fn scheduler(&self) -> Result<Option<SchedulerConfig>, CheckpointError> {
        let Some(path) = self.scheduler.clone() else { return Ok(None) };
        match SchedulerConfig::from_json(&read_text(&path)?) {
            Ok(config) => Ok(Some(config)),
            Err(source) => Err(CheckpointError::SchedulerConfig { path, source }),
        }
    }

    /// The UNet's weights under today's names; no network is built. Attention weights under the names of old
    /// diffusers versions (`query`, `key`, `value`, `proj_attn`) are renamed as diffusers does.
    ///
    /// # Errors
    /// [`CheckpointError::Weights`], also for a tensor with a NaN or an infinity.
    pub fn weights(&self) -> Result<StateDict, CheckpointError> {
        let state = self.unread_weights()?;
        let refused = |source| CheckpointError::Weights { folder: self.unet.clone(), source };
        state.check_finite().map_err(refused)?;
        Ok(state)
    }

    /// As [`Self::weights`], but no number is looked at: of mapped files nothing is read but the headers.
    ///
    /// # Errors
    /// [`CheckpointError::Weights`].
    pub fn unread_weights(&self) -> Result<StateDict, CheckpointError> {
        let refused = |source| CheckpointError::Weights { folder: self.unet.clone(), source };
        let mut state = StateDict::load(&self.unet).map_err(refused)?;
        rename_deprecated_attention(&mut state).map_err(refused)?;
        Ok(state)
    }

    /// The UNet with its weights.
    ///
    /// # Errors
    /// As [`Self::unet_config`] and [`Self::weights`], and [`CheckpointError::Fit`] with all that is missing,
    /// unused or of another shape.
    pub fn unet(&self, device: &Device) -> Result<UNet2DModel, CheckpointError> {
        let config = self.unet_config()?;
        let state = self.weights()?;
        let model = UNet2DModel::new(&config, &mut Init::zeros(device)).map_err(|source| {
            CheckpointError::UNetConfig { path: self.unet.join(UNET_CONFIG), source }
        })?;
        deme_nn::load_state_dict(model, &state).map_err(|source| CheckpointError::Fit {
            folder: self.unet.clone(),
            source: Box::new(source),
        })
    }
}

/// Writes a folder that diffusers loads: `model_index.json`, `unet/`, `scheduler/`; weights in f32.
///
/// The folder appears complete or not at all. An earlier folder of ours at the same place is replaced; any
/// other that is not empty is refused. Folded projections are folded, so the architecture is exactly the plain
/// one. Projections on hidden states are kept as `projection.0 ..`, noted in `config.json` as
/// `"channel_projection": "block"`, and read back by [`load_pipeline`]; diffusers would leave them out, so
/// such a folder is ours alone.
///
/// # Errors
/// [`CheckpointError::Occupied`], [`CheckpointError::Io`], [`CheckpointError::Weights`].
pub fn save_pipeline(
    folder: &Path,
    unet: &UNet2DModel,
    scheduler: &SchedulerConfig,
) -> Result<(), CheckpointError> {
    let exported = match unet.config().channel_projection {
        ProjectionPlacement::Folded => {
            &unet.clone().fold_projection().expect("this placement can be folded")
        }
        ProjectionPlacement::None | ProjectionPlacement::Block => unet,
    };
    let state = deme_nn::to_state_dict(exported);
    save_pipeline_weights(folder, exported.config(), &state, scheduler)
}

/// As [`save_pipeline`], for weights that never were a network (merged ones). Names and shapes must be those of
/// `config`; dtypes are kept.
///
/// # Errors
/// As [`save_pipeline`].
pub fn save_pipeline_weights(
    folder: &Path,
    config: &UNet2DConfig,
    weights: &StateDict,
    scheduler: &SchedulerConfig,
) -> Result<(), CheckpointError> {
    let refused = |source| CheckpointError::Weights { folder: folder.join(UNET), source };
    weights.check_finite().map_err(refused)?;
    let model_index = json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler.class],
        "unet": ["diffusers", "UNet2DModel"],
    });
    let mut model_index =
        serde_json::to_string_pretty(&model_index).expect("a JSON value can always be written");
    model_index.push('\n');
    let ours = [
        ("", vec![MODEL_INDEX, UNET, SCHEDULER]),
        (UNET, vec![UNET_CONFIG, UNET_WEIGHTS]),
        (SCHEDULER, vec![SCHEDULER_CONFIG]),
    ];
    replace_folder(folder, &ours, |folder| {
        create_folder(&folder.join(UNET))?;
        create_folder(&folder.join(SCHEDULER))?;
        write_text(&folder.join(MODEL_INDEX), &model_index)?;
        write_text(&folder.join(SCHEDULER).join(SCHEDULER_CONFIG), &scheduler.to_json())?;
        write_text(&folder.join(UNET).join(UNET_CONFIG), &config.to_json())?;
        weights.save(&folder.join(UNET).join(UNET_WEIGHTS)).map_err(refused)
    })
}

/// Old and present names of the attention's linear layers.
const ATTENTION_NAMES: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// Renames the attention's layers, and drops the trailing dimensions of weights that were stored as 1x1
/// convolutions.
pub(crate) fn rename_deprecated_attention(state: &mut StateDict) -> Result<(), StateDictError> {
    let old_names: Vec<String> = state.names().map(str::to_owned).collect();
    for old_name in old_names {
        let Some((path, kind)) = old_name.rsplit_once('.') else { continue };
        let Some((attention, layer)) = path.rsplit_once('.') else { continue };
        let in_attention = attention.rsplit('.').nth(1) == Some("attentions");
        let Some((_, name)) = ATTENTION_NAMES.iter().find(|(old, _)| in_attention && *old == layer)
        else {
            continue;
        };
        let name = format!("{attention}.{name}.{kind}");
        if state.get(&name).is_some() {
            continue; // both names: the old one is then listed as unused
        }
        let tensor = state.remove(&old_name).expect("the name was just listed");
        let tensor = match *tensor.shape() {
            [d_out, d_in, 1] | [d_out, d_in, 1, 1] => tensor.reshaped(vec![d_out, d_in])?,
            _ => tensor,
        };
        state.insert(name, tensor);
    }
    Ok(())
}

/// Writes a folder under a temporary name beside `folder`, then renames it into place.
///
/// `ours` lists what such a folder may hold: each of its folders with the names in it. The temporary names are
/// fixed, so what a killed writer left is removed by the next one.
pub(crate) fn replace_folder(
    folder: &Path,
    ours: &[(&str, Vec<&str>)],
    write: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { path, source }
    };
    let Some(name) = folder.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no folder name");
        return Err(io(folder)(source));
    };
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if let Some(found) = foreign_entry(folder, ours).map_err(io(folder))? {
        return Err(CheckpointError::Occupied { folder: folder.to_owned(), found });
    }
    create_folder(parent)?;
    let beside = |kind: &str| parent.join(format!(".{}.{kind}.deme.tmp", name.to_string_lossy()));
    let (new, old) = (beside("new"), beside("old"));
    remove_folder(&new).map_err(io(&new))?;
    create_folder(&new)?;
    if let Err(error) = write(&new) {
        // The first error is the one worth telling.
        let _ = remove_folder(&new);
        return Err(error);
    }
    if folder.exists() {
        remove_folder(&old).map_err(io(&old))?;
        fs::rename(folder, &old).map_err(io(folder))?;
    }
    fs::rename(&new, folder).map_err(io(folder))?;
    // Only Unix lets one sync a folder.
    #[cfg(unix)]
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(io(parent))?;
    remove_folder(&old).map_err(io(&old))
}

/// Something at `folder` that is not in the list, and so must not be removed.
fn foreign_entry(folder: &Path, ours: &[(&str, Vec<&str>)]) -> io::Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    if !folder.is_dir() {
        return Ok(Some(folder.to_owned()));
    }
    for (inside, names) in ours {
        let folder = folder.join(inside);
        if !folder.exists() {
            continue;
        }
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        entries.sort();
        let is_ours =
            |path: &PathBuf| names.iter().any(|name| path.file_name() == Some(name.as_ref()));
        if let Some(foreign) = entries.into_iter().find(|path| !is_ours(path)) {
            return Ok(Some(foreign));
        }
    }
    Ok(None)
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn create_folder(folder: &Path) -> Result<(), CheckpointError> {
    fs::create_dir_all(folder)
        .map_err(|source| CheckpointError::Io { path: folder.to_owned(), source })
}

pub(crate) fn read_text(path: &Path) -> Result<String, CheckpointError> {
    fs::read_to_string(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), CheckpointError> {
    write_atomically(path, |file| file.write_all(text.as_bytes()))
        .map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

/// ` in FOLDER`, for errors.
fn in_folder(folder: &Option<PathBuf>) -> String {
    folder.as_ref().map_or_else(String::new, |folder| format!(" in {}", folder.display()))
}

/// Why a model folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing stands at the path.
    #[error(
        "there is no model at {path}: check the path, or write hub:owner/name for one on the Hugging Face hub"
    )]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A file where a folder is needed.
    #[error(
        "{path} is a file; give the folder that holds config.json and the weights, as save_pretrained writes it"
    )]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder without a UNet's config.
    #[error("{folder} holds no UNet: neither unet/config.json nor config.json is there")]
    NoUNet {
        /// The folder.
        folder: PathBuf,
    },
    /// A UNet's config that describes no network we can build.
    #[error("{path}: {source}")]
    UNetConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelConfigError,
    },
    /// An autoencoder's config that describes no network we can build.
    #[error("{path}: {source}")]
    VaeConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelConfigError,
    },
    /// A text encoder that cannot be read, written or used.
    #[error("text encoder{}: {source}", in_folder(folder))]
    TextEncoder {
        /// The folder or file, while one is read or written.
        folder: Option<PathBuf>,
        /// What is wrong with it.
        source: Box<ClipError>,
    },
    /// A tokenizer that cannot be read, written or used.
    #[error("tokenizer{}: {source}", in_folder(folder))]
    Tokenizer {
        /// The folder, while one is read or written.
        folder: Option<PathBuf>,
        /// What is wrong with it.
        source: Box<ClipError>,
    },
    /// A tokenizer's folder whose files do not make one.
    #[error("the tokenizer in {folder} cannot be used: {reason}")]
    TokenizerFiles {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// A text-to-image pipeline without one of its parts.
    #[error(
        "{folder} has no {part}: {file} is not there. Stable Diffusion 1 as diffusers saves it has \
         model_index.json and the folders unet, vae, text_encoder, tokenizer and scheduler: download the whole \
         repository, or write the folder again with save_pretrained"
    )]
    MissingPart {
        /// The pipeline's folder.
        folder: PathBuf,
        /// The part.
        part: &'static str,
        /// The file or folder that was looked for.
        file: String,
    },
    /// Parts that are whole, but of different models.
    #[error(
        "the parts of {path} are not of one model: {reason}. Take all of them from the same repository"
    )]
    PartsDiffer {
        /// The pipeline's folder or file.
        path: PathBuf,
        /// Which parts, and how they differ.
        reason: String,
    },
    /// A `model_index.json` of another pipeline.
    #[error("{path}: {reason}")]
    ModelIndex {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A single file of another model than Stable Diffusion 1.
    #[error(
        "{path} is no Stable Diffusion 1 in the original layout: {reason}. Give such a file, or the folder that \
         diffusers' save_pretrained writes"
    )]
    SingleFile {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// A scheduler's config that cannot be used.
    #[error("{path}: {source}")]
    SchedulerConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SchedulerConfigError,
    },
    /// Weights that cannot be read or written, or hold a NaN.
    #[error("the weights in {folder}: {source}")]
    Weights {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with them.
        source: StateDictError,
    },
    /// Weights of another network than the config's.
    #[error("the weights in {folder} are not those of its config.json; {source}")]
    Fit {
        /// The folder.
        folder: PathBuf,
        /// All differences.
        source: Box<LoadError>,
    },
    /// A folder that holds something else than an earlier model of ours.
    #[error(
        "{folder} is not overwritten, because {found} was not written with a model; choose another folder"
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
        /// What was found.
        found: PathBuf,
    },
    /// The operating system refused (no permission, full disk, ...).
    #[error("{path}: {source}")]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A model of the hub that could not be had.
    #[error(transparent)]
    Hub(#[from] HubError),
}
