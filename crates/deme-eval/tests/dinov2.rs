//! DINOv2 against transformers' `Dinov2Model`: whatever `dinov2_tiny` holds.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use deme_data::Picture;
use deme_eval::{
    Dinov2, Dinov2Config, Dinov2Extractor, EvalError, FeatureExtractor, PositionInterpolation,
};
use deme_merge::{StateDict, StoredTensor};
use std::path::{Path, PathBuf};

/// The folder, or `None` where another set of reference numbers has none.
fn fixtures() -> Option<PathBuf> {
    let other = std::env::var_os("DEME_FIXTURES").map(PathBuf::from);
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"));
    let is_other = other.is_some();
    let folder = other.unwrap_or_else(own).join("dinov2_tiny");
    if is_other && !folder.exists() {
        eprintln!("skipped: there is no {}", folder.display());
        return None;
    }
    Some(folder)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn pictures(io: &StateDict) -> Vec<Picture> {
    let tensors = io.iter().filter(|(key, _)| key.starts_with("picture."));
    let picture = |(key, tensor): (&str, &StoredTensor)| {
        let [height, width, 3] = tensor.shape()[..] else { panic!("{key}: {:?}", tensor.shape()) };
        Picture::new(key, width as u32, height as u32, tensor.bytes().to_vec()).unwrap()
    };
    tensors.map(picture).collect()
}

fn features(extractor: &Dinov2Extractor, pictures: &[Picture]) -> Vec<Vec<f32>> {
    let prepared: Vec<Vec<f32>> = pictures.iter().map(|p| extractor.prepare(p)).collect();
    let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
    extractor.features(&prepared).unwrap()
}

/// A copy under other names. Tensors of one name are joined along their first dimension, in the order
/// in which `name` is asked.
fn renamed(state: &StateDict, order: &[&str], name: impl Fn(&str) -> String) -> StateDict {
    let mut copy = StateDict::new();
    let mut names: Vec<&str> = state.names().collect();
    names.sort_by_key(|name| order.iter().position(|part| name.contains(part)));
    for old in names {
        let (tensor, new) = (state.get(old).unwrap(), name(old));
        let joined = match copy.get(&new) {
            None => tensor.clone(),
            Some(first) => {
                let mut shape = first.shape().to_vec();
                shape[0] += tensor.shape()[0];
                let values = [first.to_f32().unwrap(), tensor.to_f32().unwrap()].concat();
                StoredTensor::from_f32(shape, values)
            }
        };
        copy.insert(new, joined);
    }
    copy
}

/// Meta's names of transformers' tensors.
fn with_metas_names(state: &StateDict) -> StateDict {
    let table = [
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.mask_token", "mask_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer", "blocks"),
        ("attention.attention.query", "attn.qkv"),
        ("attention.attention.key", "attn.qkv"),
        ("attention.attention.value", "attn.qkv"),
        ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("mlp.weights_in", "mlp.w12"),
        ("mlp.weights_out", "mlp.w3"),
        ("layernorm", "norm"),
    ];
    let name = |old: &str| table.iter().fold(old.to_owned(), |name, (a, b)| name.replace(a, b));
    renamed(state, &["query", "key", "value"], name)
}

/// The names in memory of transformers 5, which split what the gate and its partner share.
fn with_names_of_transformers_5(state: &StateDict) -> StateDict {
    let table = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("mlp.weights_out", "mlp.down_proj"),
    ];
    let name = |old: &str| table.iter().fold(old.to_owned(), |name, (a, b)| name.replace(a, b));
    let mut copy = renamed(state, &[], name);
    let joined: Vec<String> =
        copy.names().filter(|name| name.contains("weights_in")).map(str::to_owned).collect();
    for name in joined {
        let tensor = copy.remove(&name).unwrap();
        let mut shape = tensor.shape().to_vec();
        shape[0] /= 2;
        let values = tensor.to_f32().unwrap();
        let halves = values.chunks(values.len() / 2);
        for (half, part) in halves.zip(["gate_proj", "up_proj"]) {
            let half = StoredTensor::from_f32(shape.clone(), half.to_vec());
            copy.insert(name.replace("weights_in", part), half);
        }
    }
    copy
}

#[test]
fn features_are_transformers() {
    let Some(folder) = fixtures() else { return };
    let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
    let pictures = pictures(&io);
    assert!(!pictures.is_empty());
    let mut compared = 0;
    for (key, expected) in io.iter().filter(|(key, _)| !key.starts_with("picture.")) {
        let (model, what) = key.split_once('.').unwrap();
        let folder = folder.join(model);
        let dinov2 = match what {
            "features" => Dinov2::load(&folder, &Device::flex()).unwrap(),
            "features_offset" => Dinov2::from_state_dict(
                &StateDict::load(&folder).unwrap(),
                Some(&Dinov2Config::load(&folder).unwrap()),
                PositionInterpolation::OffsetScale,
                &folder,
                &Device::flex(),
            )
            .unwrap(),
            other => panic!("{key}: {other}"),
        };
        let extractor = Dinov2Extractor::new(dinov2);
        let found = features(&extractor, &pictures);
        assert_eq!([found.len(), extractor.dim()].as_slice(), expected.shape(), "{key}");
        let difference = largest_difference(&found.concat(), &expected.to_f32().unwrap());
        eprintln!("{key}: off by {difference:e}");
        assert!(difference < 1e-3, "{key}: off by {difference}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn all_names_give_the_same_features() {
    let Some(folder) = fixtures() else { return };
    let pictures = pictures(&StateDict::load(&folder.join("io.safetensors")).unwrap());
    for model in ["mlp", "swiglu"] {
        let folder = folder.join(model);
        let config = Dinov2Config::load(&folder).unwrap();
        let state = StateDict::load(&folder).unwrap();
        let features_of = |state: &StateDict| {
            let dinov2 = Dinov2::from_state_dict(
                state,
                Some(&config),
                PositionInterpolation::Size,
                &folder,
                &Device::flex(),
            );
            features(&Dinov2Extractor::new(dinov2.unwrap()), &pictures)
        };
        let expected = features_of(&state);
        let (meta, new) = (with_metas_names(&state), with_names_of_transformers_5(&state));
        assert!(meta.get("blocks.0.attn.qkv.weight").is_some());
        assert!(new.get("encoder.layer.0.attention.q_proj.weight").is_some());
        assert!(meta.names().chain(new.names()).all(|name| !name.contains("query")));
        assert_eq!(features_of(&meta), expected);
        assert_eq!(features_of(&new), expected);
    }
}

/// Weights of a width that heads of 64 fit into, under transformers' names.
fn made_on_the_spot(layers: usize, width: usize) -> StateDict {
    let mut shapes = vec![
        ("embeddings.cls_token".to_owned(), vec![1, 1, width]),
        ("embeddings.mask_token".to_owned(), vec![1, width]),
        ("embeddings.position_embeddings".to_owned(), vec![1, 257, width]),
        ("embeddings.patch_embeddings.projection.weight".to_owned(), vec![width, 3, 14, 14]),
        ("embeddings.patch_embeddings.projection.bias".to_owned(), vec![width]),
        ("layernorm.weight".to_owned(), vec![width]),
        ("layernorm.bias".to_owned(), vec![width]),
    ];
    for layer in 0..layers {
        let mut linear = |name: &str, d_in: usize, d_out: usize| {
            let name = format!("encoder.layer.{layer}.{name}");
            shapes.push((format!("{name}.weight"), vec![d_out, d_in]));
            shapes.push((format!("{name}.bias"), vec![d_out]));
        };
        for part in ["query", "key", "value"] {
            linear(&format!("attention.attention.{part}"), width, width);
        }
        linear("attention.output.dense", width, width);
        linear("mlp.fc1", width, 2 * width);
        linear("mlp.fc2", 2 * width, width);
        for part in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"] {
            shapes.push((format!("encoder.layer.{layer}.{part}"), vec![width]));
        }
        for scale in ["layer_scale1.lambda1", "layer_scale2.lambda1"] {
            shapes.push((format!("encoder.layer.{layer}.{scale}"), vec![width]));
        }
    }
    let mut state = 1u32;
    let mut next = |scale: f32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let fan_in: usize = shape.iter().skip(1).product();
        let scale = (3.0 / fan_in as f32).sqrt();
        let values = (0..shape.iter().product()).map(|_| next(scale)).collect();
        (name, StoredTensor::from_f32(shape, values))
    };
    shapes.into_iter().map(tensor).collect()
}

fn noise(seed: u32) -> Picture {
    let byte = |i: u32| ((i + 7919 * seed).wrapping_mul(2_654_435_761) >> 24) as u8;
    Picture::new("noise", 30, 22, (0..3 * 30 * 22).map(byte).collect()).unwrap()
}

/// A folder with a config and these weights.
fn written(state: &StateDict, config: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    state.save(&folder.path().join("model.safetensors")).unwrap();
    folder
}

fn config(layers: usize, width: usize) -> serde_json::Value {
    serde_json::json!({
        "model_type": "dinov2", "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": width / 64, "mlp_ratio": 2, "image_size": 224, "patch_size": 14,
        "drop_path_rate": 0.0,
    })
}

#[test]
fn metas_file_needs_no_config() {
    let state = made_on_the_spot(2, 128);
    let folder = written(&state, &config(2, 128));
    let meta = with_metas_names(&state);
    let file = folder.path().join("dinov2_vitx14_pretrain.safetensors");
    meta.save(&file).unwrap();
    let device = Device::flex();
    let (of_folder, of_file) =
        (Dinov2::load(folder.path(), &device).unwrap(), Dinov2::load(&file, &device).unwrap());
    assert_eq!(of_file.config(), of_folder.config());
    assert_eq!((of_file.config().num_attention_heads, of_file.config().grid), (2, 16));
    // The file's positions would be interpolated otherwise, were there anything to interpolate.
    assert_ne!(of_file.weights_hash(), of_folder.weights_hash());
    assert_eq!(of_file.weights_hash().len(), 64);
    let pictures = [noise(0), noise(1)];
    let found = features(&Dinov2Extractor::new(of_file), &pictures);
    assert_eq!(found, features(&Dinov2Extractor::new(of_folder), &pictures));
    assert!(largest_difference(&found[0], &found[1]) > 0.01);
}

#[test]
fn a_feature_does_not_depend_on_the_batch_or_the_threads() {
    let state = made_on_the_spot(3, 192);
    let folder = written(&state, &config(3, 192));
    let extractor = Dinov2Extractor::new(Dinov2::load(folder.path(), &Device::flex()).unwrap());
    let prepared: Vec<Vec<f32>> = (0..7).map(|seed| extractor.prepare(&noise(seed))).collect();
    let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
    let on_threads = |threads: usize, batch: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let batches = prepared.chunks(batch);
        pool.install(|| batches.flat_map(|b| extractor.features(b).unwrap()).collect::<Vec<_>>())
    };
    let expected = on_threads(1, 1);
    for (threads, batch) in [(1, 7), (2, 2), (3, 7)] {
        assert!(on_threads(threads, batch) == expected, "{threads} threads, batches of {batch}");
    }
}

#[test]
fn the_extractor_is_named_after_the_size() {
    let folder = written(&made_on_the_spot(1, 64), &config(1, 64));
    let dinov2 = Dinov2::load(folder.path(), &Device::flex()).unwrap();
    let extractor = Dinov2Extractor::new(dinov2);
    assert_eq!((extractor.name(), extractor.dim()), ("dinov2_64x1", 64));
    assert_eq!(extractor.image_shape(), [3, 224, 224]);
    assert_eq!(extractor.frechet_metric(), "fd_dinov2_64x1");
    let shape = extractor.dinov2().config();
    for (width, layers, name) in [
        (384, 12, "dinov2_vits14"),
        (768, 12, "dinov2_vitb14"),
        (1024, 24, "dinov2_vitl14"),
        (1536, 40, "dinov2_vitg14"),
    ] {
        let config =
            Dinov2Config { hidden_size: width, num_hidden_layers: layers, ..shape.clone() };
        assert_eq!(config.name(), name);
    }
    let error = extractor.features(&[&[0.0; 12]]).unwrap_err();
    assert!(matches!(error, EvalError::ImageShape { index: 0, found: 12, .. }), "{error}");
}

#[test]
fn registers_are_refused_by_name() {
    let mut json = config(1, 64);
    json["model_type"] = "dinov2_with_registers".into();
    let folder = written(&made_on_the_spot(1, 64), &json);
    let error = Dinov2::load(folder.path(), &Device::flex()).unwrap_err();
    assert!(matches!(error, EvalError::Registers { .. }), "{error}");
    assert!(error.to_string().contains("registers"));
    let mut meta = with_metas_names(&made_on_the_spot(1, 64));
    let registers = StoredTensor::from_f32(vec![1, 4, 64], vec![0.0; 256]);
    meta.insert("register_tokens".to_owned(), registers);
    let file = folder.path().join("reg4.safetensors");
    meta.save(&file).unwrap();
    let error = Dinov2::load(&file, &Device::flex()).unwrap_err();
    assert!(matches!(&error, EvalError::Registers { path } if *path == file), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_listed() {
    let mut state = made_on_the_spot(2, 64);
    state.remove("encoder.layer.1.layer_scale2.lambda1");
    state.insert("classifier.bias".to_owned(), StoredTensor::from_f32(vec![1], vec![0.0]));
    let positions = StoredTensor::from_f32(vec![1, 50, 64], vec![0.0; 50 * 64]);
    state.insert("embeddings.position_embeddings".to_owned(), positions);
    let folder = written(&state, &config(2, 64));
    let error = Dinov2::load(folder.path(), &Device::flex()).unwrap_err();
    let EvalError::Weights { missing, unused, wrong_shape, .. } = error else { panic!("{error}") };
    assert_eq!(missing, ["encoder.layer.1.layer_scale2.lambda1"]);
    assert_eq!(unused, ["classifier.bias"]);
    assert_eq!(
        wrong_shape,
        ["embeddings.position_embeddings: expected [1, 257, 64], found [1, 50, 64]"]
    );

    // Without a config, the sizes that the shapes say must fit together too.
    let file = folder.path().join("x.safetensors");
    let mut meta = with_metas_names(&made_on_the_spot(1, 64));
    meta.insert("pos_embed".to_owned(), StoredTensor::from_f32(vec![1, 60, 64], vec![0.0; 3840]));
    meta.save(&file).unwrap();
    let error = Dinov2::load(&file, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("pos_embed: expected [1, 50, 64], found [1, 60, 64]"), "{error}");

    let other = [("unet.weight".to_owned(), StoredTensor::from_f32(vec![1], vec![0.0]))];
    other.into_iter().collect::<StateDict>().save(&file).unwrap();
    let error = Dinov2::load(&file, &Device::flex()).unwrap_err();
    let EvalError::Weights { missing, .. } = error else { panic!("{error}") };
    assert!(missing.contains(&"cls_token".to_owned()), "{missing:?}");
}

#[test]
fn configs_of_other_networks_are_refused() {
    let refused = |change: fn(&mut serde_json::Value)| {
        let mut json = config(1, 64);
        change(&mut json);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        match Dinov2Config::load(folder.path()).unwrap_err() {
            EvalError::Config { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(|c| c["model_type"] = "vit".into()), "model_type");
    assert_eq!(refused(|c| c["hidden_act"] = "relu".into()), "hidden_act");
    assert_eq!(refused(|c| c["num_channels"] = 1.into()), "num_channels");
    assert_eq!(refused(|c| c["qkv_bias"] = false.into()), "qkv_bias");
    assert_eq!(refused(|c| c["hidden_size"] = 0.into()), "hidden_size");
    assert_eq!(refused(|c| c["num_attention_heads"] = 5.into()), "num_attention_heads");
    assert_eq!(refused(|c| c["patch_size"] = 15.into()), "patch_size");
    assert_eq!(refused(|c| c["layer_norm_eps"] = 0.0.into()), "layer_norm_eps");

    let folder = tempfile::tempdir().unwrap();
    let missing = Dinov2Config::load(folder.path()).unwrap_err();
    assert!(matches!(&missing, EvalError::Io { path, .. } if path.ends_with("config.json")));
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"model_type": "dinov2", "patch_size": "x"}"#,
    )
    .unwrap();
    let damaged = Dinov2Config::load(Path::new(folder.path())).unwrap_err();
    assert!(matches!(damaged, EvalError::Json { .. }), "{damaged}");
}
