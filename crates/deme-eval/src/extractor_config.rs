//! Which extractor a recipe or a command names, and opening it.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use deme_clip::Clip;
use serde::{Deserialize, Serialize};

use crate::{
    ClipExtractor, Dinov2, Dinov2Extractor, EvalError, FeatureExtractor, ImageFeatures, Inception,
    InceptionBlock, InceptionExtractor, InceptionProtocol, frechet_metric,
};

/// An extractor and where its weights are. `weights` is a path, or whatever else the caller can turn into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExtractorConfig {
    /// Inception-v3 as pytorch-fid builds it; the distance on its last block is the FID.
    Inception {
        /// pytorch-fid's `.pth` file, or the same tensors as safetensors; without it, the file where torch
        /// keeps it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weights: Option<String>,
        /// Where in the network features are taken.
        #[serde(default)]
        block: InceptionBlock,
        /// How pictures come to the network.
        #[serde(default)]
        protocol: InceptionProtocol,
    },
    /// DINOv2's class token (Stein et al. 2023).
    Dinov2 {
        /// A `Dinov2Model` folder or one of Meta's `.pth` files.
        weights: String,
    },
    /// A CLIP's image tower.
    Clip {
        /// A Hugging Face folder, or open_clip's weights.
        weights: String,
        /// open_clip's name of the architecture, where a single file does not tell it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        architecture: Option<String>,
        /// Which of the image's vectors.
        #[serde(default)]
        features: ImageFeatures,
    },
}

impl ExtractorConfig {
    /// As the configuration names them; `None` for Inception's where torch keeps them.
    pub fn weights(&self) -> Option<&str> {
        match self {
            Self::Inception { weights, .. } => weights.as_deref(),
            Self::Dinov2 { weights } | Self::Clip { weights, .. } => Some(weights),
        }
    }

    /// Name of the Fréchet distance on its features.
    pub fn frechet_metric(&self) -> String {
        frechet_metric(match self {
            Self::Inception { block, protocol: InceptionProtocol::PytorchFid, .. } => block.name(),
            Self::Inception { block, protocol: InceptionProtocol::CleanFid, .. } => {
                block.clean_name()
            }
            Self::Dinov2 { .. } => "dinov2",
            Self::Clip { features, .. } => clip_name(*features),
        })
    }

    /// Loads the extractor; `weights` is where its weights really lie.
    ///
    /// # Errors
    /// [`EvalError`] names the file or tensor that is wrong.
    pub fn open(
        &self,
        weights: &Path,
        device: &Device,
    ) -> Result<Box<dyn FeatureExtractor>, EvalError> {
        Ok(match self {
            Self::Inception { block, protocol, .. } => {
                let network = Inception::load(weights, device)?;
                Box::new(InceptionExtractor::new(network, *block, *protocol))
            }
            Self::Dinov2 { .. } => Box::new(Dinov2Extractor::new(Dinov2::load(weights, device)?)),
            Self::Clip { architecture, features, .. } => {
                let clip = Clip::open(weights, architecture.as_deref(), device)?;
                Box::new(ClipExtractor::new(clip_name(*features), clip, *features))
            }
        })
    }
}

fn clip_name(features: ImageFeatures) -> &'static str {
    match features {
        ImageFeatures::Projected => "clip",
        ImageFeatures::Pooled => "clip_pooled",
    }
}

/// pytorch-fid's weights where torch keeps what it has downloaded: `hub/checkpoints` in `TORCH_HOME`, else in the
/// folder `torch` of `XDG_CACHE_HOME`, else of `~/.cache`. The file need not be there.
pub fn torch_inception_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = set("TORCH_HOME").map(PathBuf::from).or_else(|| {
        let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(Path::new(&set("HOME")?).join(".cache")));
        Some(cache?.join("torch"))
    })?;
    Some(home.join("hub/checkpoints").join(INCEPTION_FILE))
}

/// The file of pytorch-fid's release.
pub const INCEPTION_FILE: &str = "pt_inception-2015-12-05-6726825d.pth";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(json: &str) -> ExtractorConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn distances_are_named_before_anything_is_loaded() {
        for (json, name) in [
            (r#"{"kind": "inception"}"#, "fid"),
            (r#"{"kind": "inception", "protocol": "clean-fid"}"#, "clean_fid"),
            (r#"{"kind": "inception", "block": "pool1"}"#, "fd_inception_pool1"),
            (r#"{"kind": "dinov2", "weights": "w"}"#, "fd_dinov2"),
            (r#"{"kind": "clip", "weights": "w"}"#, "fd_clip"),
            (r#"{"kind": "clip", "weights": "w", "features": "pooled"}"#, "fd_clip_pooled"),
        ] {
            assert_eq!(config(json).frechet_metric(), name, "{json}");
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        for json in
            [r#"{"kind": "vgg"}"#, r#"{"kind": "dinov2"}"#, r#"{"kind": "inception", "x": 1}"#]
        {
            assert!(serde_json::from_str::<ExtractorConfig>(json).is_err(), "{json}");
        }
    }
}
