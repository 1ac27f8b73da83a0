//! `open_clip_config.json`: open_clip's `model_cfg` and `preprocess_cfg`.
//!
//! Every field either is known to change nothing at inference, or must have the one value that is
//! computed here; a field of another name is refused too, since open_clip itself knows no more.

use super::architecture::LARGEST_ID;
use crate::config::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};
use crate::{ClipError, ClipPreprocessor};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What such a file describes.
#[derive(Debug)]
pub(super) struct OpenClipConfig {
    pub(super) clip: ClipConfig,
    pub(super) preprocessor: ClipPreprocessor,
}

impl OpenClipConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::Json`], [`ClipError::Config`]; [`ClipError::Unsupported`] names
    /// the field that asks for something else.
    pub(super) fn load(path: &Path) -> Result<Self, ClipError> {
        let bytes = std::fs::read(path).map_err(|source| ClipError::io(path, source))?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|error| ClipError::Json {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let mut model = Fields::new(path, "model_cfg", &json["model_cfg"])?;
        let act = match model.flag("quick_gelu")? {
            true => HiddenAct::QuickGelu,
            false => HiddenAct::Gelu,
        };
        let embed_dim = model.size("embed_dim", None)?;
        let vision_config =
            vision(Fields::new(path, "vision_cfg", model.take("vision_cfg"))?, act)?;
        let text_config = text(Fields::new(path, "text_cfg", model.take("text_cfg"))?, act)?;
        // Where the text tower lies, what the logits are scaled by, and the type in training.
        model.any(&[
            "custom_text",
            "init_logit_scale",
            "init_logit_bias",
            "nonscalar_logit_scale",
            "cast_dtype",
            "output_dict",
        ]);
        model.finish()?;
        let clip = ClipConfig {
            text_config,
            vision_config,
            projection_dim: embed_dim,
            ..ClipConfig::default()
        };
        clip.check()?;
        let preprocess = &json["preprocess_cfg"];
        let size = clip.vision_config.image_size;
        let preprocessor = ClipPreprocessor::from_open_clip(path, preprocess, size)?;
        Ok(Self { clip, preprocessor })
    }
}

fn vision(mut fields: Fields<'_>, hidden_act: HiddenAct) -> Result<ClipVisionConfig, ClipError> {
    fields.must_be_unset("timm_model_name")?;
    let width = fields.size("width", Some(768))?;
    let head_width = fields.size("head_width", Some(64))?;
    let mlp_ratio = fields.number("mlp_ratio", 4.0)?;
    let config = ClipVisionConfig {
        hidden_size: width,
        intermediate_size: (width as f64 * mlp_ratio) as usize,
        num_hidden_layers: fields.size("layers", Some(12))?,
        num_attention_heads: width / head_width,
        num_channels: 3,
        image_size: fields.size("image_size", Some(224))?,
        patch_size: fields.size("patch_size", Some(16))?,
        hidden_act,
        layer_norm_eps: fields.norm_eps()?,
    };
    fields.must_be("pool_type", "tok")?;
    for switch in ["attentional_pool", "no_ln_pre"] {
        fields.must_be_off(switch)?;
    }
    fields.block()?;
    // Patches are dropped in training alone, both kinds of positions are stored, and the norm of the
    // class token is the same before and after it is taken. The rest is about what is not there.
    fields.any(&[
        "patch_dropout",
        "pos_embed_type",
        "final_ln_after_pool",
        "output_tokens",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "timm_drop",
        "timm_drop_path",
    ]);
    fields.finish()?;
    Ok(config)
}

fn text(mut fields: Fields<'_>, hidden_act: HiddenAct) -> Result<ClipTextConfig, ClipError> {
    for name in ["hf_model_name", "hf_tokenizer_name", "tokenizer_mode"] {
        fields.must_be_unset(name)?;
    }
    let width = fields.size("width", Some(512))?;
    let mlp_ratio = fields.number("mlp_ratio", 4.0)?;
    let config = ClipTextConfig {
        vocab_size: fields.size("vocab_size", Some(49_408))?,
        hidden_size: width,
        intermediate_size: (width as f64 * mlp_ratio) as usize,
        num_hidden_layers: fields.size("layers", Some(12))?,
        num_attention_heads: fields.size("heads", Some(8))?,
        max_position_embeddings: fields.size("context_length", Some(77))?,
        hidden_act,
        layer_norm_eps: fields.norm_eps()?,
        eos_token_id: LARGEST_ID,
        ..ClipTextConfig::default()
    };
    fields.must_be("pool_type", "argmax")?;
    fields.must_be("proj_type", "linear")?;
    for switch in ["embed_cls", "no_causal_mask", "proj_bias"] {
        fields.must_be_off(switch)?;
    }
    let tokenizer = fields.take("tokenizer_kwargs");
    for (name, value) in tokenizer.as_object().into_iter().flatten() {
        // The default cleaning of captions, written out.
        if name != "clean" || value != "lower" {
            return Err(fields.refuse(&format!("tokenizer_kwargs.{name}"), value));
        }
    }
    fields.block()?;
    // Not looked at with `argmax`, and not by the text tower.
    fields.any(&[
        "pad_id",
        "eos_id",
        "final_ln_after_pool",
        "output_tokens",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
    ]);
    fields.finish()?;
    Ok(config)
}

/// The fields of an object, of which each is taken once.
struct Fields<'a> {
    path: PathBuf,
    object: &'static str,
    left: Map<String, Value>,
    json: &'a Value,
}

static NOTHING: Value = Value::Null;

impl<'a> Fields<'a> {
    fn new(path: &Path, object: &'static str, json: &'a Value) -> Result<Self, ClipError> {
        let path = path.to_owned();
        let Some(left) = json.as_object().cloned() else {
            let reason = format!("{object} is {json}, expected an object");
            return Err(ClipError::Json { path, reason });
        };
        Ok(Self { path, object, left, json })
    }

    fn refuse(&self, field: &str, value: &Value) -> ClipError {
        ClipError::unsupported(&self.path, &format!("{}.{field}", self.object), value)
    }

    /// The value of a field, null without it.
    fn take(&mut self, field: &str) -> &'a Value {
        self.left.remove(field);
        self.json.get(field).unwrap_or(&NOTHING)
    }

    /// A positive whole number, or two equal ones.
    fn size(&mut self, field: &str, default: Option<usize>) -> Result<usize, ClipError> {
        let value = self.take(field);
        let number = match (value, value.as_array().map(Vec::as_slice)) {
            (Value::Null, _) => return default.ok_or_else(|| self.refuse(field, value)),
            (_, Some([first, second])) if first == second => first,
            _ => value,
        };
        match number.as_u64() {
            Some(size @ 1..) => Ok(size as usize),
            _ => Err(self.refuse(field, value)),
        }
    }

    fn number(&mut self, field: &str, default: f64) -> Result<f64, ClipError> {
        match self.take(field) {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.refuse(field, value)),
        }
    }

    fn flag(&mut self, field: &str) -> Result<bool, ClipError> {
        match self.take(field) {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| self.refuse(field, value)),
        }
    }

    /// `eps` of the layer norms.
    fn norm_eps(&mut self) -> Result<f64, ClipError> {
        let arguments = self.take("norm_kwargs");
        for (name, value) in arguments.as_object().into_iter().flatten() {
            if name != "eps" || !value.is_number() {
                return Err(self.refuse(&format!("norm_kwargs.{name}"), value));
            }
        }
        Ok(arguments["eps"].as_f64().unwrap_or(1e-5))
    }

    /// The settings of a block, all of which have to be off.
    fn block(&mut self) -> Result<(), ClipError> {
        for field in ["ls_init_value", "act_kwargs"] {
            self.must_be_unset(field)?;
        }
        let switches = [
            "qk_norm",
            "scaled_cosine_attn",
            "scale_heads",
            "scale_attn_inner",
            "scale_attn",
            "scale_fc",
        ];
        for switch in switches {
            self.must_be_off(switch)?;
        }
        // With everything off, both kinds of block compute the same.
        self.any(&["block_type"]);
        Ok(())
    }

    fn must_be(&mut self, field: &str, wanted: &str) -> Result<(), ClipError> {
        match self.take(field) {
            Value::Null => Ok(()),
            value if value == wanted => Ok(()),
            value => Err(self.refuse(field, value)),
        }
    }

    fn must_be_off(&mut self, field: &str) -> Result<(), ClipError> {
        match self.take(field) {
            Value::Null | Value::Bool(false) => Ok(()),
            value => Err(self.refuse(field, value)),
        }
    }

    fn must_be_unset(&mut self, field: &str) -> Result<(), ClipError> {
        let value = self.take(field);
        let empty = value.is_null()
            || value == ""
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        if empty { Ok(()) } else { Err(self.refuse(field, value)) }
    }

    /// Fields that change nothing here.
    fn any(&mut self, fields: &[&str]) {
        for field in fields {
            self.take(field);
        }
    }

    fn finish(self) -> Result<(), ClipError> {
        match self.left.iter().next() {
            Some((field, value)) => Err(self.refuse(field, value)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ClipResize;
    use serde_json::json;

    fn loaded(json: &Value) -> Result<OpenClipConfig, ClipError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        OpenClipConfig::load(file.path())
    }

    /// open_clip's own file for ViT-g-14.
    fn giant() -> Value {
        json!({
            "model_cfg": {
                "embed_dim": 1024,
                "vision_cfg": {"image_size": 224, "layers": 40, "width": 1408, "head_width": 88,
                    "mlp_ratio": 4.3637, "patch_size": 14},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16,
                    "layers": 24}
            },
            "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073],
                "std": [0.26862954, 0.26130258, 0.27577711]}
        })
    }

    #[test]
    fn a_giant_is_what_its_name_says() {
        let config = loaded(&giant()).unwrap();
        assert_eq!(config.clip, super::super::architecture::named("ViT-g-14").unwrap());
        let mut quick = giant();
        quick["model_cfg"]["quick_gelu"] = true.into();
        quick["preprocess_cfg"]["resize_mode"] = "squash".into();
        let quick = loaded(&quick).unwrap();
        assert_eq!(quick.clip, super::super::architecture::named("ViT-g-14-quickgelu").unwrap());
        assert_eq!(quick.preprocessor.resize, ClipResize::Squash);
    }

    #[test]
    fn settings_that_change_nothing_are_passed_over() {
        let mut json = giant();
        json["model_cfg"]["custom_text"] = true.into();
        let vision = &mut json["model_cfg"]["vision_cfg"];
        vision["image_size"] = json!([224, 224]);
        vision["pool_type"] = "tok".into();
        vision["timm_model_name"] = Value::Null;
        vision["patch_dropout"] = 0.5.into();
        vision["norm_kwargs"] = json!({"eps": 1e-6});
        json["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = json!({"clean": "lower"});
        let config = loaded(&json).unwrap().clip;
        assert_eq!(config.vision_config.layer_norm_eps, 1e-6);
        assert_eq!(config.text_config.layer_norm_eps, 1e-5);
    }

    #[test]
    fn everything_else_is_refused_by_its_name() {
        let changes: [(&str, &str, Value); 20] = [
            ("vision_cfg", "timm_model_name", json!("vit_base")),
            ("vision_cfg", "pool_type", json!("avg")),
            ("vision_cfg", "attentional_pool", json!(true)),
            ("vision_cfg", "no_ln_pre", json!(true)),
            ("vision_cfg", "layers", json!([3, 4, 6, 3])),
            ("vision_cfg", "image_size", json!([224, 112])),
            ("vision_cfg", "ls_init_value", json!(1e-5)),
            ("vision_cfg", "qk_norm", json!(true)),
            ("vision_cfg", "act_kwargs", json!({"approximate": "tanh"})),
            ("vision_cfg", "norm_kwargs", json!({"bias": false})),
            ("vision_cfg", "mlp_ratio", json!("4")),
            ("vision_cfg", "newest", json!(1)),
            ("text_cfg", "hf_model_name", json!("roberta-base")),
            ("text_cfg", "hf_tokenizer_name", json!("bert")),
            ("text_cfg", "pool_type", json!("last")),
            ("text_cfg", "no_causal_mask", json!(true)),
            ("text_cfg", "embed_cls", json!(true)),
            ("text_cfg", "proj_bias", json!(true)),
            ("text_cfg", "proj_type", json!("none")),
            ("text_cfg", "tokenizer_kwargs", json!({"clean": "canonicalize"})),
        ];
        for (object, name, value) in changes {
            let mut json = giant();
            json["model_cfg"][object][name] = value;
            let error = loaded(&json).unwrap_err();
            let expected = format!("{object}.{name}");
            let ClipError::Unsupported { field, .. } = &error else { panic!("{error}") };
            assert!(field.starts_with(&expected), "{error}");
        }
        let mut json = giant();
        json["model_cfg"]["multimodal_cfg"] = json!({});
        let error = loaded(&json).unwrap_err();
        assert!(error.to_string().contains("model_cfg.multimodal_cfg"), "{error}");
        let mut json = giant();
        json["model_cfg"]["quick_gelu"] = json!("yes");
        assert!(matches!(loaded(&json), Err(ClipError::Unsupported { .. })));
    }

    #[test]
    fn what_is_no_config_is_refused() {
        assert!(matches!(loaded(&json!({})), Err(ClipError::Json { .. })));
        assert!(matches!(loaded(&json!("")), Err(ClipError::Json { .. })));
        let mut json = giant();
        json["model_cfg"]["vision_cfg"]["head_width"] = 2000.into();
        assert!(matches!(loaded(&json), Err(ClipError::Config { .. })));
        let error = OpenClipConfig::load(Path::new("/nowhere")).unwrap_err();
        assert!(matches!(error, ClipError::Io { .. }));
    }
}
