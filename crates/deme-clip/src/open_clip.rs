//! Weights in open_clip's layout (Ilharco et al. 2021; OpenAI's own code has the same names): a file, or
//! a folder with `open_clip_config.json`.
//!
//! What is read is open_clip's plain ViT beside its plain text transformer. Anything else (ResNets, timm
//! towers, other pooling, layer scale, ...) is refused by its name. Not here: Hugging Face's layout, into
//! which the weights are brought.

mod architecture;
mod config;
mod weights;

pub use architecture::open_clip_architectures;

use crate::{CaptionCleaning, CaptionTokenizer, Clip, ClipError, ClipModel, ClipPreprocessor};
use architecture::WeightShapes;
use burn::tensor::Device;
use config::OpenClipConfig;
use std::path::{Path, PathBuf};

/// The file that makes a folder one of open_clip's.
pub(crate) const CONFIG_FILE: &str = "open_clip_config.json";

/// What open_clip itself calls the weights of a folder, by its preference.
const WEIGHT_FILES: [&str; 8] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
];

/// Endings that weights have.
const ENDINGS: [&str; 4] = ["safetensors", "bin", "pth", "pt"];

/// Reads a folder with [`CONFIG_FILE`].
pub(crate) fn load_folder(folder: &Path, device: &Device) -> Result<Clip, ClipError> {
    let config = OpenClipConfig::load(&folder.join(CONFIG_FILE))?;
    let path = weights_in(folder)?;
    let weights = weights::load(&path)?;
    clip(&path, config, weights, device)
}

/// Reads a file (or the one in a folder that says nothing about it) as a named architecture. Without a
/// name, only OpenAI's own weights are known by what else is in their files.
pub(crate) fn load_file(
    path: &Path,
    architecture: Option<&str>,
    device: &Device,
) -> Result<Clip, ClipError> {
    let path = if path.is_dir() { weights_in(path)? } else { path.to_owned() };
    let weights = weights::load(&path)?;
    let shapes = WeightShapes::of(&path, &weights.state)?;
    let config = match architecture {
        Some(name) => {
            let config = architecture::named(name)?;
            if WeightShapes::expected(&config) != shapes {
                return Err(ClipError::OtherArchitecture {
                    path,
                    name: name.to_owned(),
                    found: shapes.to_string(),
                    fitting: shapes.fitting(),
                });
            }
            config
        }
        None if weights.from_openai => shapes.openai_config(&path)?,
        None => {
            let (found, fitting) = (shapes.to_string(), shapes.fitting());
            let known = open_clip_architectures();
            return Err(ClipError::NoArchitecture { path, found, fitting, known });
        }
    };
    let size = config.vision_config.image_size;
    let preprocessor = ClipPreprocessor::from_open_clip(&path, &serde_json::json!({}), size)?;
    clip(&path, OpenClipConfig { clip: config, preprocessor }, weights, device)
}

fn clip(
    path: &Path,
    config: OpenClipConfig,
    weights: weights::Weights,
    device: &Device,
) -> Result<Clip, ClipError> {
    let OpenClipConfig { clip: config, preprocessor } = config;
    let state = weights::to_hugging_face(path, weights.state)?;
    let model = ClipModel::from_state_dict(&config, &state, path, device)?;
    let context_length = config.text_config.max_position_embeddings;
    let tokenizer = CaptionTokenizer::published(CaptionCleaning::OpenClip, context_length)?;
    Ok(Clip { model, preprocessor, tokenizer: Some(tokenizer) })
}

fn weights_in(folder: &Path) -> Result<PathBuf, ClipError> {
    let preferred = WEIGHT_FILES.iter().map(|name| folder.join(name));
    if let Some(path) = preferred.into_iter().find(|path| path.is_file()) {
        return Ok(path);
    }
    let entries = std::fs::read_dir(folder).map_err(|source| ClipError::io(folder, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| ClipError::io(folder, source))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => {
            let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
            let found = found.iter().filter_map(name).collect();
            Err(ClipError::NoWeights { folder: folder.to_owned(), found })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folders_weights_are_the_preferred_file_or_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let found = || weights_in(folder.path()).map(|path| path.file_name().unwrap().to_owned());
        let add = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        let none = found().unwrap_err();
        assert!(matches!(&none, ClipError::NoWeights { found, .. } if found.is_empty()));
        add("README.md");
        add("mine.pt");
        assert_eq!(found().unwrap(), "mine.pt");
        add("other.bin");
        let two = found().unwrap_err();
        let expected = ["mine.pt".to_owned(), "other.bin".to_owned()];
        assert!(matches!(&two, ClipError::NoWeights { found, .. } if *found == expected));
        add("model.safetensors");
        add("open_clip_pytorch_model.bin");
        assert_eq!(found().unwrap(), "open_clip_pytorch_model.bin");
        assert!(matches!(weights_in(Path::new("/nowhere")), Err(ClipError::Io { .. })));
    }
}
