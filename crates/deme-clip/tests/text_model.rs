//! The text tower alone against transformers' `CLIPTextModel`, and its folder in and out.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor};
use deme_clip::{ClipError, ClipTextConfig, ClipTextModel};
use deme_merge::{StateDict, StoredTensor};
use deme_nn::{Init, to_state_dict};
use std::fs;
use std::path::PathBuf;

fn root() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default.into(), PathBuf::from)
}

fn load(folder: &std::path::Path) -> ClipTextModel {
    ClipTextModel::load(folder, &Device::flex()).unwrap()
}

fn ids(io: &StateDict) -> Vec<Vec<u32>> {
    let stored = io.get("input_ids").unwrap();
    let ids: Vec<u32> = stored.to_i64().unwrap().into_iter().map(|id| id as u32).collect();
    ids.chunks(stored.shape()[1]).map(<[u32]>::to_vec).collect()
}

fn assert_close(found: Tensor<3>, expected: &StoredTensor, what: &str) {
    assert_eq!(found.dims().as_slice(), expected.shape(), "{what}");
    let found = found.into_data().try_into_vec::<f32>().unwrap();
    let pairs = found.iter().zip(expected.to_f32().unwrap());
    let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-4, "{what}: off by {off}");
}

#[test]
fn the_text_encoder_of_the_tiny_stable_diffusion_agrees() {
    let folder = root().join("sd_tiny");
    let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
    let model = load(&folder.join("text_encoder"));
    let states = model.hidden_states(&ids(&io), 0).unwrap();
    assert_close(states, io.get("text_hidden").unwrap(), "text_hidden");
}

#[test]
fn earlier_layers_agree_with_either_activation() {
    for activation in ["quick_gelu", "gelu"] {
        let folder = root().join("sd_more").join(format!("text_encoder_{activation}"));
        if std::env::var_os("DEME_FIXTURES").is_some() && !folder.is_dir() {
            eprintln!("skipped: {} is not there", folder.display());
            continue;
        }
        let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
        let model = ClipTextModel::from_state_dict(
            &ClipTextModel::load_config(&folder).unwrap(),
            StateDict::load(&folder.join("model.safetensors")).unwrap(),
            &Device::flex(),
        );
        let model = model.unwrap();
        for skipped in 0..=model.config().num_hidden_layers {
            let states = model.hidden_states(&ids(&io), skipped).unwrap();
            let expected = io.get(&format!("skip_{skipped}")).unwrap();
            assert_close(states, expected, &format!("{activation}, {skipped} skipped"));
        }
    }
}

fn config() -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: 20,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 6,
        ..ClipTextConfig::default()
    }
}

fn saved() -> (ClipTextModel, tempfile::TempDir) {
    let model = ClipTextModel::new(&config(), &mut Init::new(1, &Device::flex())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    (model, folder)
}

#[test]
fn saved_and_loaded_is_the_same_and_names_may_lack_their_prefix() {
    let (model, folder) = saved();
    let hash = to_state_dict(&model).content_hash();
    let loaded = load(folder.path());
    assert_eq!(to_state_dict(&loaded).content_hash(), hash);
    assert_eq!(loaded.config(), model.config());

    let file = folder.path().join("model.safetensors");
    let state = StateDict::load(&file).unwrap();
    assert!(state.names().all(|name| name.starts_with("text_model.")));
    let bare = state.iter().map(|(name, tensor)| (name[11..].to_owned(), tensor.clone()));
    let bare: StateDict = bare.collect();
    bare.save(&file).unwrap();
    assert_eq!(to_state_dict(&load(folder.path())).content_hash(), hash);
}

#[test]
fn the_position_counter_of_old_files_is_left_out_and_half_precision_is_read() {
    let (model, folder) = saved();
    let file = folder.path().join("model.safetensors");
    let state = StateDict::load(&file).unwrap();
    let half = |tensor: &StoredTensor| {
        let (shape, values) = (tensor.shape().to_vec(), tensor.to_f32().unwrap());
        StoredTensor::from_f32_as(deme_merge::Dtype::F16, shape, &values).unwrap()
    };
    let mut halved: StateDict =
        state.iter().map(|(name, tensor)| (name.to_owned(), half(tensor))).collect();
    let counter = StoredTensor::new(deme_merge::Dtype::I64, vec![1, 6], vec![0; 48]).unwrap();
    halved.insert("text_model.embeddings.position_ids".to_owned(), counter);
    fs::remove_file(&file).unwrap();
    halved.save(&folder.path().join("model.fp16.safetensors")).unwrap();
    let loaded = load(folder.path()).hidden_states(&[vec![3, 4, 5]], 0).unwrap();
    let states = model.hidden_states(&[vec![3, 4, 5]], 0).unwrap();
    let off = (loaded - states).abs().max().into_scalar::<f32>();
    assert!(off > 0.0 && off < 1e-2, "{off}");
}

#[test]
fn more_layers_than_there_are_cannot_be_skipped() {
    let (model, _folder) = saved();
    let error = model.hidden_states(&[vec![1]], 3).unwrap_err();
    assert!(matches!(error, ClipError::SkippedLayers { skipped: 3, layers: 2 }));
}

#[test]
fn wrong_folders_are_refused() {
    let (_, folder) = saved();
    let path = folder.path().join("config.json");
    let load = || ClipTextModel::load(folder.path(), &Device::flex()).unwrap_err();
    let text = fs::read_to_string(&path).unwrap();

    fs::write(&path, text.replace("clip_text_model", "t5")).unwrap();
    assert!(matches!(load(), ClipError::NotClipText { found, .. } if found == "t5"));
    fs::write(&path, "{").unwrap();
    assert!(matches!(load(), ClipError::Json { .. }));
    fs::write(&path, text.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 3"))
        .unwrap();
    assert!(matches!(load(), ClipError::Config { .. }));
    fs::write(&path, text.replace("\"hidden_size\": 8", "\"hidden_size\": 16")).unwrap();
    assert!(matches!(load(), ClipError::Weights { path, .. } if path == folder.path()));
    fs::remove_file(&path).unwrap();
    assert!(matches!(load(), ClipError::Io { .. }));
}
