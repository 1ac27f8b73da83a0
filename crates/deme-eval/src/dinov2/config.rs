//! The sizes of a DINOv2, from `config.json` or from the tensors themselves.

use super::Dinov2;
use super::names::Names;
use crate::EvalError;
use deme_merge::StateDict;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The sizes of a DINOv2.
#[derive(Debug, Clone, PartialEq)]
pub struct Dinov2Config {
    /// Entries of a token's state.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of the attention; divides the width.
    pub num_attention_heads: usize,
    /// Width inside the MLP; with SwiGLU, of each of its two parts.
    pub mlp_width: usize,
    /// Whether the MLP is a SwiGLU (ViT-g), otherwise GELU between two linear maps.
    pub swiglu: bool,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches along a side of the pictures it was trained on.
    pub grid: usize,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
}

/// The fields of transformers' `Dinov2Config` that a feature depends on, with its defaults. Files
/// carry many others, of backbones and of the training, so unknown fields are ignored here.
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: f64,
    hidden_act: String,
    layer_norm_eps: f64,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
    qkv_bias: bool,
    use_swiglu_ffn: bool,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            num_channels: 3,
            qkv_bias: true,
            use_swiglu_ffn: false,
        }
    }
}

impl Dinov2Config {
    /// Every published DINOv2 has heads of this width.
    const HEAD_WIDTH: usize = 64;

    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`EvalError::Io`], [`EvalError::Json`], [`EvalError::Registers`], [`EvalError::Config`].
    pub fn load(folder: &Path) -> Result<Self, EvalError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|source| EvalError::io(&path, source))?;
        let refuse = |error: serde_json::Error| EvalError::Json {
            path: path.clone(),
            reason: error.to_string(),
        };
        let json: Value = serde_json::from_slice(&bytes).map_err(refuse)?;
        match json["model_type"].as_str() {
            Some("dinov2") => {}
            Some("dinov2_with_registers") => return Err(EvalError::Registers { path }),
            found => {
                let found = found.unwrap_or("(none)");
                return Err(EvalError::config(&path, "model_type", found, "dinov2"));
            }
        }
        let file: ConfigFile = serde_json::from_value(json).map_err(refuse)?;
        let fixed = [
            ("hidden_act", file.hidden_act.clone(), "gelu"),
            ("num_channels", file.num_channels.to_string(), "3"),
            ("qkv_bias", file.qkv_bias.to_string(), "true"),
        ];
        for (field, found, expected) in fixed {
            if found != expected {
                return Err(EvalError::config(&path, field, found, expected));
            }
        }
        let mlp_width = (file.hidden_size as f64 * file.mlp_ratio) as usize;
        let mlp_width = if file.use_swiglu_ffn {
            // transformers' rule: as many parameters as an MLP has, in three matrices instead of two.
            (mlp_width * 2 / 3).next_multiple_of(8)
        } else {
            mlp_width
        };
        let config = Self {
            hidden_size: file.hidden_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            mlp_width,
            swiglu: file.use_swiglu_ffn,
            patch_size: file.patch_size,
            grid: file.image_size.checked_div(file.patch_size).unwrap_or(0),
            layer_norm_eps: file.layer_norm_eps,
        };
        config.check(&path)?;
        Ok(config)
    }

    /// The sizes that the tensors' shapes say, with heads of 64 and an epsilon of 1e-6, as every
    /// published DINOv2 has them.
    pub(super) fn of_shapes(
        state: &StateDict,
        names: &Names,
        path: &Path,
    ) -> Result<Self, EvalError> {
        let first = |part: &str| format!("{}.0.{part}.weight", names.blocks);
        let swiglu = state.get(&first(names.swiglu_in[0])).is_some();
        let mlp_out = first(if swiglu { names.swiglu_out } else { "mlp.fc2" });
        let patch = format!("{}.weight", names.patch);
        let all = [names.class_token, names.positions, patch.as_str(), mlp_out.as_str()];
        let shapes = all.map(|name| state.get(name).map(|tensor| tensor.shape()));
        let [
            Some([1, 1, width]),
            Some([1, positions, _]),
            Some([_, _, size, _]),
            Some([_, mlp_width]),
        ] = shapes
        else {
            // Whatever is wrong, without these there is no network to compare the rest with.
            let found = all.iter().zip(shapes);
            return Err(EvalError::Weights {
                path: path.into(),
                network: "DINOv2's vision transformer",
                applied: 0,
                missing: found
                    .clone()
                    .filter(|(_, shape)| shape.is_none())
                    .map(|(name, _)| (*name).to_owned())
                    .collect(),
                unused: Vec::new(),
                wrong_shape: found
                    .filter_map(|(name, shape)| Some(format!("{name}: found {:?}", shape?)))
                    .collect(),
            });
        };
        let number = |name: &str| {
            let rest = name.strip_prefix(names.blocks)?.strip_prefix('.')?;
            rest.split_once('.')?.0.parse::<usize>().ok()
        };
        Ok(Self {
            hidden_size: *width,
            num_hidden_layers: state.names().filter_map(number).max().map_or(0, |last| last + 1),
            num_attention_heads: width / Self::HEAD_WIDTH,
            mlp_width: *mlp_width,
            swiglu,
            patch_size: *size,
            grid: positions.saturating_sub(1).isqrt(),
            layer_norm_eps: 1e-6,
        })
    }

    /// Checks that a network for pictures of 224 x 224 can be built.
    ///
    /// # Errors
    /// [`EvalError::Config`] names the first impossible field.
    pub(super) fn check(&self, path: &Path) -> Result<(), EvalError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("mlp_width", self.mlp_width),
            ("patch_size", self.patch_size),
            ("grid", self.grid),
        ];
        for (field, size) in sizes {
            // The largest published one is 1536 wide; more than this is a damaged file.
            if !(1..=1 << 16).contains(&size) {
                return Err(EvalError::config(path, field, size, "1 to 65536"));
            }
        }
        let size = Dinov2::IMAGE_SIZE;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format!("a divisor of hidden_size {}", self.hidden_size);
            let heads = self.num_attention_heads;
            return Err(EvalError::config(path, "num_attention_heads", heads, expected));
        }
        if !size.is_multiple_of(self.patch_size) {
            let expected = format!("a divisor of {size}");
            return Err(EvalError::config(path, "patch_size", self.patch_size, expected));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            let eps = self.layer_norm_eps;
            return Err(EvalError::config(path, "layer_norm_eps", eps, "a positive number"));
        }
        Ok(())
    }

    /// The name of its features: `dinov2_vitl14` of ViT-L/14, and so on; of a size that was never
    /// published, `dinov2_<width>x<blocks>`.
    pub fn name(&self) -> String {
        let known = match (self.hidden_size, self.num_hidden_layers, self.patch_size) {
            (384, 12, 14) => "dinov2_vits14",
            (768, 12, 14) => "dinov2_vitb14",
            (1024, 24, 14) => "dinov2_vitl14",
            (1536, 40, 14) => "dinov2_vitg14",
            (width, blocks, _) => return format!("dinov2_{width}x{blocks}"),
        };
        known.to_owned()
    }
}
