//! open_clip's weights against open_clip: whatever `open_clip_tiny` holds, in all the forms it comes in.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::{CaptionCleaning, Clip, ClipError, normalise};
use deme_merge::{Dtype, StateDict, StoredTensor};
use std::path::{Path, PathBuf};

/// The folder of the fixture; none when another set of fixtures lacks it.
fn folder() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let set = std::env::var_os("DEME_FIXTURES");
    let folder = set.clone().map_or(default.into(), PathBuf::from).join("open_clip_tiny");
    if set.is_some() && !folder.exists() {
        eprintln!("skipped: these fixtures have no open_clip_tiny");
        return None;
    }
    Some(folder)
}

fn open(source: &Path, architecture: Option<&str>) -> Result<Clip, ClipError> {
    Clip::open(source, architecture, &Device::flex())
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn rows(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn embeds_as_open_clip(clip: &Clip, io: &StateDict) {
    let tensor = |name: &str| io.get(name).unwrap();
    let pixels = tensor("pixel_values");
    let shape: [usize; 4] = pixels.shape().try_into().unwrap();
    let data = TensorData::new(pixels.to_f32().unwrap(), shape);
    let image = clip.model.image_embeds(Tensor::from_data(data, &Device::flex())).unwrap();
    let image = rows(normalise(image));
    assert!(largest_difference(&image, &tensor("image_embeds").to_f32().unwrap()) < 1e-4);

    let ids = tensor("input_ids");
    let len = ids.shape()[1];
    let ids: Vec<u32> = ids.to_i64().unwrap().into_iter().map(|id| id as u32).collect();
    let ids: Vec<Vec<u32>> = ids.chunks(len).map(<[u32]>::to_vec).collect();
    let text = rows(normalise(clip.model.text_embeds(&ids).unwrap()));
    assert!(largest_difference(&text, &tensor("text_embeds").to_f32().unwrap()) < 1e-4);
}

#[test]
fn a_folder_embeds_as_open_clip_does() {
    let Some(folder) = folder() else { return };
    let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
    let clip = open(&folder, None).unwrap();
    embeds_as_open_clip(&clip, &io);
    assert_eq!(clip.tokenizer.as_ref().unwrap().cleaning(), CaptionCleaning::OpenClip);

    // The same in the names of a distributed training of a `CustomTextCLIP`.
    let copy = tempfile::tempdir().unwrap();
    let config = "open_clip_config.json";
    std::fs::copy(folder.join(config), copy.path().join(config)).unwrap();
    let state = StateDict::load(&folder.join("open_clip_model.safetensors")).unwrap();
    let renamed = |name: &str| match name.starts_with("visual.") || name == "logit_scale" {
        true => format!("module.{name}"),
        false => format!("module.text.{name}"),
    };
    let custom: StateDict = state.iter().map(|(name, t)| (renamed(name), t.clone())).collect();
    custom.save(&copy.path().join("epoch_3.safetensors")).unwrap();
    let again = open(copy.path(), None).unwrap();
    embeds_as_open_clip(&again, &io);
    assert_eq!(again.model.weights_hash(), clip.model.weights_hash());

    // In Hugging Face's layout it is the same network.
    let saved = tempfile::tempdir().unwrap();
    clip.model.save(saved.path()).unwrap();
    embeds_as_open_clip(&open(saved.path(), None).unwrap(), &io);
}

#[test]
fn a_name_beside_a_config_is_refused() {
    let Some(folder) = folder() else { return };
    let error = open(&folder, Some("ViT-B-32")).unwrap_err();
    assert!(matches!(error, ClipError::ArchitectureGiven { .. }), "{error}");
}

#[test]
fn a_file_alone_needs_a_name_that_fits() {
    let Some(folder) = folder() else { return };
    let file = folder.join("open_clip_model.safetensors");
    let error = open(&file, None).unwrap_err();
    let ClipError::NoArchitecture { fitting, .. } = &error else { panic!("{error}") };
    assert!(fitting.is_empty());
    let text = error.to_string();
    assert!(text.contains("ViT-B-32-quickgelu") && text.contains("width 40"), "{text}");
    let error = open(&file, Some("ViT-L-14")).unwrap_err();
    assert!(matches!(&error, ClipError::OtherArchitecture { name, .. } if name == "ViT-L-14"));
    let error = open(&file, Some("RN50")).unwrap_err();
    assert!(matches!(error, ClipError::UnknownArchitecture { .. }));
}

/// Tensors of the shapes of `ViT-B-32`, all zero.
fn base_32() -> StateDict {
    let mut state = StateDict::new();
    let mut add = |name: &str, shape: &[usize]| {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        let tensor = StoredTensor::new(Dtype::F16, shape.to_vec(), bytes).unwrap();
        state.insert(name.to_owned(), tensor);
    };
    for (tower, width) in [("visual.", 768), ("", 512)] {
        for layer in 0..12 {
            let block = |part: &str| format!("{tower}transformer.resblocks.{layer}.{part}");
            for (part, out, into) in [
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ] {
                add(&block(&format!("{part}weight")), &[out, into]);
                add(&block(&format!("{part}bias")), &[out]);
            }
            for norm in ["ln_1", "ln_2"] {
                add(&block(&format!("{norm}.weight")), &[width]);
                add(&block(&format!("{norm}.bias")), &[width]);
            }
        }
    }
    for (norm, width) in [("visual.ln_pre", 768), ("visual.ln_post", 768), ("ln_final", 512)] {
        add(&format!("{norm}.weight"), &[width]);
        add(&format!("{norm}.bias"), &[width]);
    }
    add("visual.class_embedding", &[768]);
    add("visual.positional_embedding", &[50, 768]);
    add("visual.conv1.weight", &[768, 3, 32, 32]);
    add("visual.proj", &[768, 512]);
    add("token_embedding.weight", &[49_408, 512]);
    add("positional_embedding", &[77, 512]);
    add("text_projection", &[512, 512]);
    add("logit_scale", &[]);
    state
}

#[test]
fn weights_of_known_shapes_are_read_by_name_or_because_they_are_openais() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let mut state = base_32();
    state.save(&file).unwrap();
    let error = open(folder.path(), None).unwrap_err();
    let ClipError::NoArchitecture { fitting, .. } = &error else { panic!("{error}") };
    assert_eq!(fitting, &["ViT-B-32", "ViT-B-32-quickgelu"]);
    let error = open(&file, Some("ViT-B-16")).unwrap_err();
    assert!(error.to_string().contains("ViT-B-32-quickgelu"), "{error}");
    let activation = |clip: Clip| clip.model.config().vision_config.hidden_act;
    let named = open(&file, Some("ViT-B-32-quickgelu")).unwrap();
    let quick = activation(named.clone());
    assert_eq!(named.tokenizer.as_ref().unwrap().context_length(), 77);
    assert_ne!(activation(open(&file, Some("ViT-B-32")).unwrap()), quick);

    for extra in ["input_resolution", "context_length", "vocab_size"] {
        let number = StoredTensor::new(Dtype::I64, vec![], vec![0; 8]).unwrap();
        state.insert(extra.to_owned(), number);
    }
    state.save(&file).unwrap();
    let openai = open(&file, None).unwrap();
    assert_eq!(openai.model.config(), named.model.config());
    assert_eq!(activation(openai), quick);

    state.insert("visual.ln_extra.weight".to_owned(), state.get("logit_scale").unwrap().clone());
    state.remove("ln_final.bias");
    state.save(&file).unwrap();
    let text = open(&file, None).unwrap_err().to_string();
    assert!(text.contains("visual.ln_extra.weight") && text.contains("final_layer_norm.bias"));
}

#[test]
fn what_is_not_there_is_named() {
    let error = open(Path::new("/nowhere/clip.pt"), Some("ViT-B-32")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/clip.pt"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), None).unwrap_err();
    assert!(matches!(error, ClipError::NoWeights { .. }), "{error}");
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
    let error = open(folder.path(), None).unwrap_err();
    assert!(matches!(error, ClipError::NotClip { .. }), "{error}");
}
