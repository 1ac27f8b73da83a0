//! open_clip's tensor names and layouts, brought into Hugging Face's.
//!
//! | open_clip | Hugging Face |
//! |---|---|
//! | `visual.conv1.weight` | `vision_model.embeddings.patch_embedding.weight` |
//! | `visual.transformer.resblocks.N.attn.in_proj_weight` | rows of `...layers.N.self_attn.{q,k,v}_proj.weight` |
//! | `...mlp.c_fc`, `...mlp.c_proj`, `...ln_1`, `...ln_2` | `...mlp.fc1`, `...mlp.fc2`, `...layer_norm1`, `...layer_norm2` |
//! | `visual.proj`, `text_projection` (`[width, d]`) | `visual_projection.weight`, `text_projection.weight` (`[d, width]`) |
//!
//! A `CustomTextCLIP` has its text tower under `text.`, a distributed training everything under `module.`.

use crate::ClipError;
use deme_merge::{StateDict, StateDictError, StoredTensor};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Weights under the names of open_clip's plain `CLIP`.
pub(super) struct Weights {
    pub(super) state: StateDict,
    /// Whether the file has what only OpenAI's own have.
    pub(super) from_openai: bool,
}

/// Numbers that OpenAI stores beside the weights.
const OPENAI_EXTRAS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// Parts of tensor names that belong to what is not read, and what it is.
const FOREIGN: [(&str, &str); 13] = [
    ("visual.trunk.", "a timm image tower"),
    ("visual.head.", "a timm image tower"),
    ("visual.layer1.", "a ResNet image tower"),
    ("visual.attnpool.", "a ResNet image tower"),
    ("visual.attn_pool", "attentional pooling (CoCa)"),
    ("text_decoder.", "a text decoder (CoCa)"),
    ("cls_emb", "a class token in the text tower (CoCa)"),
    ("transformer.embeddings.", "a Hugging Face text tower"),
    ("transformer.encoder.", "a Hugging Face text tower"),
    ("text_projection.bias", "a text projection with a bias (SigLIP)"),
    (".ls_1.", "layer scale"),
    ("text_model.", "Hugging Face's layout: give its folder, with config.json"),
    ("image_encoder.", "MobileCLIP"),
];

/// Reads a file and takes wrappers off its names.
pub(super) fn load(path: &Path) -> Result<Weights, ClipError> {
    let state = StateDict::load(path).map_err(|error| match error {
        StateDictError::Torch { .. } | StateDictError::RefusedGlobal { .. }
            if is_torch_script(path) =>
        {
            ClipError::TorchScript { path: path.to_owned() }
        }
        other => other.into(),
    })?;
    let wrapped = !state.is_empty() && state.names().all(|name| name.starts_with("module."));
    let from_openai = OPENAI_EXTRAS.iter().all(|extra| state.get(extra).is_some());
    let mut plain = StateDict::new();
    for (name, tensor) in state.iter() {
        let name = if wrapped { &name["module.".len()..] } else { name };
        let name = name.strip_prefix("text.").unwrap_or(name);
        if let Some((_, what)) = FOREIGN.iter().find(|(part, _)| name.contains(part)) {
            let (path, tensor) = (path.to_owned(), name.to_owned());
            return Err(ClipError::ForeignWeights { path, tensor, what });
        }
        // The bias of SigLIP's loss moves all cosines' logits alike: no embedding depends on it.
        if !OPENAI_EXTRAS.contains(&name) && name != "logit_bias" {
            plain.insert(name.to_owned(), tensor.clone());
        }
    }
    Ok(Weights { state: plain, from_openai })
}

/// Whether an archive lists what only `torch.jit.save` puts into one. Its list stands at the end.
fn is_torch_script(path: &Path) -> bool {
    const LONGEST_LIST: u64 = 1 << 20;
    let end = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LONGEST_LIST)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let name = b"/constants.pkl";
    end().is_ok_and(|end| end.windows(name.len()).any(|window| window == name))
}

/// The same weights under Hugging Face's names. A name that is not known stays, for the error that lists
/// what does not fit.
pub(super) fn to_hugging_face(path: &Path, state: StateDict) -> Result<StateDict, ClipError> {
    let mut out = StateDict::new();
    for (name, tensor) in state.iter() {
        let damaged = |source: StateDictError| ClipError::from(source);
        match name {
            "visual.proj" => {
                out.insert("visual_projection.weight".to_owned(), transposed(path, name, tensor)?);
            }
            "text_projection" => {
                out.insert("text_projection.weight".to_owned(), transposed(path, name, tensor)?);
            }
            _ => match in_projection(name) {
                Some((layer, kind)) => {
                    let parts = thirds(path, name, tensor)?;
                    for (part, projection) in parts.into_iter().zip(["q", "k", "v"]) {
                        let part = part.map_err(damaged)?;
                        out.insert(format!("{layer}.self_attn.{projection}_proj.{kind}"), part);
                    }
                }
                None => {
                    out.insert(renamed(name).unwrap_or_else(|| name.to_owned()), tensor.clone());
                }
            },
        }
    }
    Ok(out)
}

/// Hugging Face's name of a tensor that is stored as it is there.
fn renamed(name: &str) -> Option<String> {
    let whole = match name {
        "visual.class_embedding" => "vision_model.embeddings.class_embedding",
        "visual.conv1.weight" => "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding" => "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight" => "text_model.embeddings.token_embedding.weight",
        "positional_embedding" => "text_model.embeddings.position_embedding.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let norms = [
        ("visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("visual.ln_post.", "vision_model.post_layernorm."),
        ("ln_final.", "text_model.final_layer_norm."),
    ];
    if let Some((norm, kind)) =
        norms.iter().find_map(|(from, to)| Some((to, name.strip_prefix(from)?)))
    {
        return Some(format!("{norm}{kind}"));
    }
    let (layer, rest) = layer(name)?;
    let (part, kind) = rest.rsplit_once('.')?;
    let part = match part {
        "ln_1" => "layer_norm1",
        "ln_2" => "layer_norm2",
        "attn.out_proj" => "self_attn.out_proj",
        "mlp.c_fc" => "mlp.fc1",
        "mlp.c_proj" => "mlp.fc2",
        _ => return None,
    };
    Some(format!("{layer}.{part}.{kind}"))
}

/// Hugging Face's name of the layer, and `weight` or `bias`, of a tensor for queries, keys and values.
fn in_projection(name: &str) -> Option<(String, &str)> {
    let (layer, rest) = layer(name)?;
    Some((layer, rest.strip_prefix("attn.in_proj_")?))
}

/// Hugging Face's name of a tensor's layer, and the rest of its own.
fn layer(name: &str) -> Option<(String, &str)> {
    let (tower, rest) = match name.strip_prefix("visual.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", name),
    };
    let (number, rest) = rest.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    Some((format!("{tower}.encoder.layers.{number}"), rest))
}

/// The three equal parts of a tensor along its first dimension.
fn thirds(
    path: &Path,
    name: &str,
    tensor: &StoredTensor,
) -> Result<[Result<StoredTensor, StateDictError>; 3], ClipError> {
    let mut shape = tensor.shape().to_vec();
    if shape.first().is_none_or(|rows| rows % 3 != 0) {
        return Err(other_shape(path, name, tensor));
    }
    shape[0] /= 3;
    let third = tensor.bytes().len() / 3;
    Ok([0, 1, 2].map(|part| {
        let bytes = tensor.bytes()[part * third..(part + 1) * third].to_vec();
        StoredTensor::new(tensor.dtype(), shape.clone(), bytes)
    }))
}

/// `[rows, columns]` to `[columns, rows]`, as f32.
fn transposed(path: &Path, name: &str, tensor: &StoredTensor) -> Result<StoredTensor, ClipError> {
    let &[rows, columns] = tensor.shape() else { return Err(other_shape(path, name, tensor)) };
    let values = tensor.to_f32()?;
    let columns_first = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c)));
    let values = columns_first.map(|(r, c)| values[r * columns + c]).collect();
    Ok(StoredTensor::from_f32(vec![columns, rows], values))
}

fn other_shape(path: &Path, name: &str, tensor: &StoredTensor) -> ClipError {
    let found = Some(tensor.shape().to_vec());
    ClipError::NotOpenClip { path: path.to_owned(), tensor: name.to_owned(), found }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deme_merge::Dtype;

    fn tensor(shape: &[usize]) -> StoredTensor {
        let values = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        StoredTensor::from_f32(shape.to_vec(), values)
    }

    fn written(tensors: &[(&str, StoredTensor)]) -> tempfile::NamedTempFile {
        let state: StateDict =
            tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        state.save(file.path()).unwrap();
        file
    }

    #[test]
    fn names_and_layouts_become_hugging_faces() {
        let path = Path::new("x");
        let file = written(&[
            ("module.visual.transformer.resblocks.3.attn.in_proj_weight", tensor(&[6, 2])),
            ("module.visual.transformer.resblocks.3.attn.out_proj.bias", tensor(&[2])),
            ("module.visual.proj", tensor(&[2, 3])),
            ("module.visual.ln_pre.weight", tensor(&[2])),
            ("module.text.transformer.resblocks.0.mlp.c_fc.bias", tensor(&[2])),
            ("module.text.text_projection.weight", tensor(&[1, 2])),
            ("module.text.positional_embedding", tensor(&[1, 2])),
            ("module.text.ln_final.bias", tensor(&[2])),
            ("module.logit_scale", tensor(&[])),
            ("module.logit_bias", tensor(&[])),
            ("module.something", tensor(&[])),
        ]);
        let weights = load(file.path()).unwrap();
        assert!(!weights.from_openai);
        let state = to_hugging_face(path, weights.state).unwrap();
        let names: Vec<&str> = state.names().collect();
        let layer = "vision_model.encoder.layers.3.self_attn";
        let expected = [
            "logit_scale".to_owned(),
            "something".to_owned(),
            "text_model.embeddings.position_embedding.weight".to_owned(),
            "text_model.encoder.layers.0.mlp.fc1.bias".to_owned(),
            "text_model.final_layer_norm.bias".to_owned(),
            "text_projection.weight".to_owned(),
            format!("{layer}.k_proj.weight"),
            format!("{layer}.out_proj.bias"),
            format!("{layer}.q_proj.weight"),
            format!("{layer}.v_proj.weight"),
            "vision_model.pre_layrnorm.weight".to_owned(),
            "visual_projection.weight".to_owned(),
        ];
        assert_eq!(names, expected);
        let values = |name: &str| state.get(name).unwrap().to_f32().unwrap();
        assert_eq!(values(&format!("{layer}.k_proj.weight")), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(values("visual_projection.weight"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(state.get("visual_projection.weight").unwrap().shape(), [3, 2]);
    }

    #[test]
    fn openais_files_are_known_by_what_else_is_in_them() {
        let number = StoredTensor::new(Dtype::I64, vec![], vec![1; 8]).unwrap();
        let extras = OPENAI_EXTRAS.map(|name| (name, number.clone()));
        let weights = load(written(&extras).path()).unwrap();
        assert!(weights.from_openai && weights.state.is_empty());
        assert!(!load(written(&extras[..2]).path()).unwrap().from_openai);
    }

    #[test]
    fn an_archive_of_a_program_is_told_from_a_damaged_one() {
        let refused = |member: &str| {
            let file = tempfile::Builder::new().suffix(".pt").tempfile().unwrap();
            std::fs::write(file.path(), format!("PK\u{3}\u{4}ViT-B-32/{member}")).unwrap();
            load(file.path()).err().unwrap()
        };
        let error = refused("constants.pkl");
        assert!(matches!(error, ClipError::TorchScript { .. }), "{error}");
        assert!(error.to_string().contains("state_dict()"), "{error}");
        assert!(matches!(refused("data.pkl"), ClipError::State(_)));
    }

    #[test]
    fn what_belongs_to_other_models_is_refused_by_its_name() {
        let names = [
            "visual.trunk.blocks.0.attn.qkv.weight",
            "visual.layer1.0.conv1.weight",
            "visual.attn_pool.query",
            "text.transformer.embeddings.word_embeddings.weight",
            "visual.transformer.resblocks.0.ls_1.gamma",
            "text.text_projection.bias",
            "text_model.embeddings.token_embedding.weight",
        ];
        for name in names {
            let error = load(written(&[(name, tensor(&[1]))]).path()).err().unwrap();
            let ClipError::ForeignWeights { tensor, .. } = &error else { panic!("{error}") };
            assert!(name.ends_with(tensor.as_str()), "{error}");
        }
    }

    #[test]
    fn shapes_that_cannot_be_brought_over_are_refused() {
        let refused = |name: &str, shape: &[usize]| {
            let state = StateDict::from_iter([(name.to_owned(), tensor(shape))]);
            let error = to_hugging_face(Path::new("x"), state).err().unwrap();
            assert!(matches!(&error, ClipError::NotOpenClip { tensor, .. } if tensor == name));
        };
        refused("transformer.resblocks.0.attn.in_proj_bias", &[4]);
        refused("visual.proj", &[4]);
    }
}
