//! open_clip's named architectures, and which of them a file's shapes fit.
//!
//! Shapes tell neither the number of heads nor the activation: `ViT-B-32` and `ViT-B-32-quickgelu` have
//! the same tensors. So a file needs a name.

use crate::ClipError;
use crate::config::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};
use deme_merge::StateDict;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// What tells two architectures of plain towers apart.
struct Architecture {
    name: &'static str,
    embed_dim: usize,
    image_size: usize,
    patch_size: usize,
    vision: Tower,
    text: Tower,
}

struct Tower {
    width: usize,
    layers: usize,
    heads: usize,
    mlp_width: usize,
}

const fn tower(width: usize, layers: usize, heads: usize, mlp_width: usize) -> Tower {
    Tower { width, layers, heads, mlp_width }
}

/// open_clip's model configs of these names. Each also exists with [`QUICK_GELU`] behind its name.
#[rustfmt::skip]
const ARCHITECTURES: [Architecture; 11] = [
    Architecture { name: "ViT-B-32", embed_dim: 512, image_size: 224, patch_size: 32, vision: tower(768, 12, 12, 3072), text: tower(512, 12, 8, 2048) },
    Architecture { name: "ViT-B-32-256", embed_dim: 512, image_size: 256, patch_size: 32, vision: tower(768, 12, 12, 3072), text: tower(512, 12, 8, 2048) },
    Architecture { name: "ViT-B-16", embed_dim: 512, image_size: 224, patch_size: 16, vision: tower(768, 12, 12, 3072), text: tower(512, 12, 8, 2048) },
    Architecture { name: "ViT-B-16-plus-240", embed_dim: 640, image_size: 240, patch_size: 16, vision: tower(896, 12, 14, 3584), text: tower(640, 12, 10, 2560) },
    Architecture { name: "ViT-L-14", embed_dim: 768, image_size: 224, patch_size: 14, vision: tower(1024, 24, 16, 4096), text: tower(768, 12, 12, 3072) },
    Architecture { name: "ViT-L-14-280", embed_dim: 768, image_size: 280, patch_size: 14, vision: tower(1024, 24, 16, 4096), text: tower(768, 12, 12, 3072) },
    Architecture { name: "ViT-L-14-336", embed_dim: 768, image_size: 336, patch_size: 14, vision: tower(1024, 24, 16, 4096), text: tower(768, 12, 12, 3072) },
    Architecture { name: "ViT-H-14", embed_dim: 1024, image_size: 224, patch_size: 14, vision: tower(1280, 32, 16, 5120), text: tower(1024, 24, 16, 4096) },
    Architecture { name: "ViT-H-14-378", embed_dim: 1024, image_size: 378, patch_size: 14, vision: tower(1280, 32, 16, 5120), text: tower(1024, 24, 16, 4096) },
    Architecture { name: "ViT-g-14", embed_dim: 1024, image_size: 224, patch_size: 14, vision: tower(1408, 40, 16, 6144), text: tower(1024, 24, 16, 4096) },
    Architecture { name: "ViT-bigG-14", embed_dim: 1280, image_size: 224, patch_size: 14, vision: tower(1664, 48, 16, 8192), text: tower(1280, 32, 20, 5120) },
];

/// Behind the name of an architecture whose activation is `x sigmoid(1.702 x)`, as in OpenAI's weights.
const QUICK_GELU: &str = "-quickgelu";

/// All names that weights without a config can be read as.
pub fn open_clip_architectures() -> Vec<String> {
    let names = ARCHITECTURES.iter().map(|architecture| architecture.name);
    names.flat_map(|name| [name.to_owned(), format!("{name}{QUICK_GELU}")]).collect()
}

/// The config of an architecture by its name; `ViT-B/32` is `ViT-B-32`, as in open_clip.
pub(super) fn named(name: &str) -> Result<ClipConfig, ClipError> {
    let found = name.replace('/', "-");
    let (base, activation) = match found.strip_suffix(QUICK_GELU) {
        Some(base) => (base, HiddenAct::QuickGelu),
        None => (&*found, HiddenAct::Gelu),
    };
    let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == base);
    let architecture = architecture.ok_or_else(|| ClipError::UnknownArchitecture {
        name: name.to_owned(),
        known: open_clip_architectures(),
    })?;
    Ok(architecture.config(activation))
}

impl Architecture {
    fn config(&self, hidden_act: HiddenAct) -> ClipConfig {
        let (vision, text) = (&self.vision, &self.text);
        ClipConfig {
            text_config: ClipTextConfig {
                hidden_size: text.width,
                intermediate_size: text.mlp_width,
                num_hidden_layers: text.layers,
                num_attention_heads: text.heads,
                hidden_act,
                eos_token_id: LARGEST_ID,
                ..ClipTextConfig::default()
            },
            vision_config: ClipVisionConfig {
                hidden_size: vision.width,
                intermediate_size: vision.mlp_width,
                num_hidden_layers: vision.layers,
                num_attention_heads: vision.heads,
                image_size: self.image_size,
                patch_size: self.patch_size,
                hidden_act,
                ..ClipVisionConfig::default()
            },
            projection_dim: self.embed_dim,
            ..ClipConfig::default()
        }
    }
}

/// The end of a text is its largest id: open_clip's `argmax` pooling, under the number transformers has
/// for it.
pub(super) const LARGEST_ID: u32 = 2;

/// All that a file's shapes say about its architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WeightShapes {
    embed_dim: usize,
    patch_size: usize,
    /// Patches and the class token.
    image_positions: usize,
    vision: TowerShapes,
    text: TowerShapes,
    vocab_size: usize,
    context_length: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TowerShapes {
    width: usize,
    layers: usize,
    mlp_width: usize,
}

impl WeightShapes {
    /// Of weights under open_clip's names.
    ///
    /// # Errors
    /// [`ClipError::NotOpenClip`] names the first tensor that is missing or of another rank.
    pub(super) fn of(path: &Path, state: &StateDict) -> Result<Self, ClipError> {
        let size = |name: &str, rank: usize, axis: usize| {
            let shape = state.get(name).map(|tensor| tensor.shape());
            match shape {
                Some(shape) if shape.len() == rank => Ok(shape[axis]),
                _ => Err(ClipError::NotOpenClip {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                    found: shape.map(<[usize]>::to_vec),
                }),
            }
        };
        let tower = |width: (&str, usize, usize), blocks: &str| -> Result<TowerShapes, ClipError> {
            let numbers =
                state.names().filter_map(|name| name.strip_prefix(blocks)?.split('.').next());
            Ok(TowerShapes {
                width: size(width.0, width.1, width.2)?,
                layers: numbers.collect::<BTreeSet<_>>().len(),
                mlp_width: size(&format!("{blocks}0.mlp.c_fc.weight"), 2, 0)?,
            })
        };
        Ok(Self {
            patch_size: size("visual.conv1.weight", 4, 3)?,
            image_positions: size("visual.positional_embedding", 2, 0)?,
            embed_dim: size("visual.proj", 2, 1)?,
            vision: tower(("visual.conv1.weight", 4, 0), "visual.transformer.resblocks.")?,
            text: tower(("token_embedding.weight", 2, 1), "transformer.resblocks.")?,
            vocab_size: size("token_embedding.weight", 2, 0)?,
            context_length: size("positional_embedding", 2, 0)?,
        })
    }

    /// Of the weights that a config asks for.
    pub(super) fn expected(config: &ClipConfig) -> Self {
        let (vision, text) = (&config.vision_config, &config.text_config);
        let tower = |width, layers, mlp_width| TowerShapes { width, layers, mlp_width };
        Self {
            embed_dim: config.projection_dim,
            patch_size: vision.patch_size,
            image_positions: (vision.image_size / vision.patch_size).pow(2) + 1,
            vision: tower(vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size),
            text: tower(text.hidden_size, text.num_hidden_layers, text.intermediate_size),
            vocab_size: text.vocab_size,
            context_length: text.max_position_embeddings,
        }
    }

    /// Names of the architectures with these shapes.
    pub(super) fn fitting(&self) -> Vec<String> {
        let fits = |name: &String| named(name).is_ok_and(|config| Self::expected(&config) == *self);
        open_clip_architectures().into_iter().filter(fits).collect()
    }

    /// The config of OpenAI's own weights: heads of 64 in both towers, their activation.
    ///
    /// # Errors
    /// [`ClipError::NotOpenClip`] when the positions make no square.
    pub(super) fn openai_config(&self, path: &Path) -> Result<ClipConfig, ClipError> {
        let patches = self.image_positions.saturating_sub(1);
        let side = patches.isqrt();
        if side * side != patches {
            return Err(ClipError::NotOpenClip {
                path: path.to_owned(),
                tensor: "visual.positional_embedding".to_owned(),
                found: Some(vec![self.image_positions, self.vision.width]),
            });
        }
        let tower = |shapes: &TowerShapes| {
            tower(shapes.width, shapes.layers, (shapes.width / 64).max(1), shapes.mlp_width)
        };
        let architecture = Architecture {
            name: "OpenAI",
            embed_dim: self.embed_dim,
            image_size: side * self.patch_size,
            patch_size: self.patch_size,
            vision: tower(&self.vision),
            text: tower(&self.text),
        };
        let mut config = architecture.config(HiddenAct::QuickGelu);
        config.text_config.vocab_size = self.vocab_size;
        config.text_config.max_position_embeddings = self.context_length;
        Ok(config)
    }
}

impl fmt::Display for WeightShapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { embed_dim, patch_size, image_positions, vision, text, .. } = self;
        write!(
            f,
            "image tower of width {} with {} layers (MLP {}), patches of {patch_size}, \
             {image_positions} positions; text tower of width {} with {} layers (MLP {}), vocabulary \
             {}, {} positions; shared space of {embed_dim}",
            vision.width,
            vision.layers,
            vision.mlp_width,
            text.width,
            text.layers,
            text.mlp_width,
            self.vocab_size,
            self.context_length,
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deme_merge::{Dtype, StoredTensor};

    /// Parameters of both towers, the projections and the logit scale.
    fn parameters(config: &ClipConfig) -> usize {
        let layers = |width: usize, mlp: usize, layers: usize| {
            let attention = 4 * (width * width + width);
            layers * (attention + 2 * width * mlp + mlp + width + 4 * width)
        };
        let (v, t) = (&config.vision_config, &config.text_config);
        let vision = v.hidden_size
            * (3 * v.patch_size.pow(2) + (v.image_size / v.patch_size).pow(2))
            + 2 * v.hidden_size
            + 4 * v.hidden_size
            + layers(v.hidden_size, v.intermediate_size, v.num_hidden_layers);
        let text = t.hidden_size * (t.vocab_size + t.max_position_embeddings + 2)
            + layers(t.hidden_size, t.intermediate_size, t.num_hidden_layers);
        vision + text + config.projection_dim * (v.hidden_size + t.hidden_size) + 1
    }

    #[test]
    fn architectures_have_open_clips_sizes_and_heads() {
        // Counted by torch on open_clip's models.
        let expected = [
            ("ViT-B-32", 151_277_313, 64),
            ("ViT-B-32-256", 151_288_833, 64),
            ("ViT-B-16", 149_620_737, 64),
            ("ViT-B-16-plus-240", 208_377_345, 64),
            ("ViT-L-14", 427_616_513, 64),
            ("ViT-L-14-280", 427_763_969, 64),
            ("ViT-L-14-336", 427_944_193, 64),
            ("ViT-H-14", 986_109_441, 80),
            ("ViT-H-14-378", 986_714_881, 80),
            ("ViT-g-14", 1_366_678_273, 88),
            ("ViT-bigG-14", 2_539_567_105, 104),
        ];
        assert_eq!(expected.len(), ARCHITECTURES.len());
        for (name, count, head_width) in expected {
            let config = named(name).unwrap();
            config.check().unwrap();
            assert_eq!(parameters(&config), count, "{name}");
            let vision = &config.vision_config;
            assert_eq!(vision.hidden_size / vision.num_attention_heads, head_width, "{name}");
            let text = &config.text_config;
            assert_eq!(text.hidden_size / text.num_attention_heads, 64, "{name}");
        }
        for name in open_clip_architectures() {
            named(&name).unwrap().check().unwrap();
        }
    }

    #[test]
    fn the_suffix_decides_the_activation() {
        let activation = |name| named(name).unwrap().vision_config.hidden_act;
        assert_eq!(activation("ViT-L-14-336-quickgelu"), HiddenAct::QuickGelu);
        assert_eq!(activation("ViT-L/14-336"), HiddenAct::Gelu);
        let error = named("ViT-Q-7").unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ClipError::UnknownArchitecture { .. }));
        assert!(text.contains("ViT-Q-7") && text.contains("ViT-bigG-14"), "{text}");
    }

    fn shapes(image_positions: usize) -> WeightShapes {
        let tower = TowerShapes { width: 128, layers: 1, mlp_width: 512 };
        WeightShapes {
            embed_dim: 8,
            patch_size: 4,
            image_positions,
            vision: tower.clone(),
            text: tower,
            vocab_size: 49_408,
            context_length: 77,
        }
    }

    #[test]
    fn openais_weights_have_heads_of_64_and_square_pictures() {
        let config = shapes(10).openai_config(Path::new("x.pt")).unwrap();
        assert_eq!(config.vision_config.image_size, 12);
        assert_eq!(config.vision_config.num_attention_heads, 2);
        assert_eq!(config.text_config.hidden_act, HiddenAct::QuickGelu);
        assert_eq!(WeightShapes::expected(&config), shapes(10));
        let error = shapes(11).openai_config(Path::new("x.pt")).unwrap_err();
        assert!(matches!(error, ClipError::NotOpenClip { found: Some(_), .. }));
    }

    #[test]
    fn other_weights_are_refused_by_the_first_tensor_that_is_missing() {
        let mut state = StateDict::new();
        let error = WeightShapes::of(Path::new("x.pt"), &state).unwrap_err();
        let ClipError::NotOpenClip { tensor, found: None, .. } = &error else { panic!("{error}") };
        let tensor = tensor.clone();
        let scalar = StoredTensor::new(Dtype::F32, vec![], vec![0; 4]).unwrap();
        state.insert(tensor.clone(), scalar);
        let error = WeightShapes::of(Path::new("x.pt"), &state).unwrap_err();
        assert!(error.to_string().contains(&tensor), "{error}");
    }
}
