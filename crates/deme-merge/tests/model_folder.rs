//! Model folders: the weights are merged, everything else is copied byte for byte.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use deme_merge::{MergeError, MergeInputs, MergeMethod, StateDict, StoredTensor, WeightFiles};

fn model(value: f32) -> StateDict {
    let tensor = |len: usize| StoredTensor::from_f32(vec![len], vec![value; len]);
    [("a".to_string(), tensor(4)), ("b".to_string(), tensor(6)), ("c".to_string(), tensor(2))]
        .into_iter()
        .collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A pipeline whose UNet's weights are called `weights`.
fn pipeline(folder: &Path, weights: &str) -> PathBuf {
    let model_folder = folder.join("pipeline");
    for (file, bytes) in [
        ("model_index.json", &b"{\"unet\": [\"diffusers\"] }"[..]),
        ("vae/diffusion_pytorch_model.safetensors", &[0, 159, 146, 150]),
        ("text_encoder/model.fp16.safetensors", &[1, 2, 3]),
        ("tokenizer/merges.txt", b"a b\n"),
        ("unet/config.json", b"{\"sample_size\": 8}\n"),
        ("unet/diffusion_pytorch_model.onnx", b"another form of the same weights"),
    ] {
        write(&model_folder.join(file), bytes);
    }
    model(1.0).save(&model_folder.join("unet").join(weights)).unwrap();
    model_folder
}

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn merge(model_folder: &Path, out: &Path, max_shard_bytes: u64) -> Result<(), MergeError> {
    let part = model_folder.join("unet");
    let theta_pre = StateDict::load(&part).unwrap();
    let experts = [model(2.0), model(5.0)];
    let inputs = MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &[] };
    inputs.merge_to_model_folder(&MergeMethod::Uniform, model_folder, &part, out, max_shard_bytes)
}

const UNTOUCHED: [&str; 5] = [
    "model_index.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "unet/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

#[test]
fn the_weights_are_merged_and_all_else_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    let (from, out) = (pipeline(folder.path(), weights), folder.path().join("new/merged"));
    let before: Vec<Vec<u8>> =
        files(&from).iter().map(|file| fs::read(from.join(file)).unwrap()).collect();
    merge(&from, &out, 1 << 30).unwrap();

    let mut expected: Vec<String> = UNTOUCHED.map(String::from).to_vec();
    expected.push(format!("unet/{weights}"));
    expected.sort();
    assert_eq!(files(&out), expected);
    for file in UNTOUCHED {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(from.join(file)).unwrap(), "{file}");
    }
    let merged = StateDict::load(&out.join("unet")).unwrap();
    assert_eq!(merged.content_hash(), model(3.5).content_hash());
    assert_eq!(files(folder.path().join("new").as_path()).len(), expected.len());
    let after: Vec<Vec<u8>> =
        files(&from).iter().map(|file| fs::read(from.join(file)).unwrap()).collect();
    assert_eq!(before, after);
}

#[test]
fn a_variant_keeps_its_name_in_one_file_and_in_shards() {
    let folder = tempfile::tempdir().unwrap();
    let from = pipeline(folder.path(), "diffusion_pytorch_model.fp16.safetensors");
    let (single, sharded) = (folder.path().join("single"), folder.path().join("sharded"));
    merge(&from, &single, 1 << 30).unwrap();
    merge(&from, &sharded, 32).unwrap();
    let weights = |out: &Path| -> Vec<String> {
        let unet = files(&out.join("unet"));
        unet.into_iter().filter(|name| name.starts_with("diffusion")).collect()
    };
    assert_eq!(weights(&single), ["diffusion_pytorch_model.fp16.safetensors"]);
    assert_eq!(
        weights(&sharded),
        [
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ]
    );
    for out in [single, sharded.clone()] {
        let merged = StateDict::load(&out.join("unet")).unwrap();
        assert_eq!(merged.content_hash(), model(3.5).content_hash());
    }
    // What is sharded merges again, under the same names.
    let again = folder.path().join("again");
    merge(&sharded, &again, 32).unwrap();
    assert_eq!(weights(&again), weights(&sharded));
}

#[test]
fn names_of_pickles_become_names_of_safetensors() {
    for (weights, stem) in
        [("pytorch_model.bin", "model"), ("diffusion_pytorch_model.bin", "diffusion_pytorch_model")]
    {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(weights), b"");
        assert_eq!(WeightFiles::of_folder(folder.path()).unwrap(), WeightFiles::new(stem));
    }
}

#[test]
fn a_merge_that_fails_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let from = pipeline(folder.path(), "diffusion_pytorch_model.safetensors");
    let nan = StoredTensor::from_f32(vec![4], vec![f32::NAN; 4]);
    let mut broken = model(1.0);
    broken.insert("a".into(), nan);
    let theta_pre = StateDict::load(&from.join("unet")).unwrap();
    let inputs = MergeInputs { theta_pre: &theta_pre, experts: &[broken], statistics: &[] };
    let (part, out) = (from.join("unet"), folder.path().join("merged"));
    let error =
        inputs.merge_to_model_folder(&MergeMethod::Uniform, &from, &part, &out, 30).unwrap_err();
    assert!(matches!(error, MergeError::NonFinite { .. }), "{error}");
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["pipeline"]);
}

#[test]
fn a_folder_that_is_there_is_refused_and_a_killed_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let from = pipeline(folder.path(), "diffusion_pytorch_model.safetensors");
    let out = folder.path().join("merged");
    write(&folder.path().join(".merged.merge.deme.tmp/unet/half"), b"of a killed merge");
    merge(&from, &out, 1 << 30).unwrap();
    assert!(!out.join("unet/half").exists());
    let error = merge(&from, &out, 1 << 30).unwrap_err();
    assert!(error.to_string().contains("merged"), "{error}");
    assert!(matches!(error, MergeError::StateDict(_)), "{error}");
}
