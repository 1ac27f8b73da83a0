//! Inception-v3 against pytorch-fid's: whatever `inception` holds.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_data::{Picture, interpolate_bilinear};
use deme_eval::{
    EvalError, FeatureExtractor, Inception, InceptionBlock, InceptionExtractor, InceptionProtocol,
    LogitBias,
};
use deme_merge::{StateDict, StoredTensor};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const SIZE: usize = Inception::IMAGE_SIZE;

fn folder() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default.into(), PathBuf::from).join("inception")
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Entries of tensor `id`: `(u - 0.5) * 2 * sqrt(6 / fan_in)`, u in [0, 1).
fn formula(id: u64, count: usize, fan_in: usize) -> Vec<f32> {
    let seed = json("formula.json")["seed"].as_u64().unwrap();
    let first = (id + 1 + 1000 * seed) << 32;
    let scale = 2.0 * (6.0 / fan_in as f64).sqrt();
    let entry = |j: u64| {
        let u = (splitmix64(first.wrapping_add(j)) >> 11) as f64 / (1u64 << 53) as f64;
        ((u - 0.5) * scale) as f32
    };
    (0..count as u64).into_par_iter().map(entry).collect()
}

/// The network's weights by the formula of `tensors.json`.
fn formula_weights() -> StateDict {
    let tensors = json("tensors.json");
    let tensors: Vec<&serde_json::Value> = tensors.as_array().unwrap().iter().collect();
    let made = tensors.par_iter().map(|tensor| {
        let (id, name) = (tensor[0].as_u64().unwrap(), tensor[1].as_str().unwrap());
        let shape: Vec<usize> =
            tensor[2].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let count = shape.iter().product();
        let values = match name.rsplit_once('.').unwrap() {
            (layer, "weight" | "running_var") if layer.ends_with(".bn") => vec![1.0; count],
            (_, "bias" | "running_mean") => vec![0.0; count],
            _ => formula(id, count, shape[1..].iter().product()),
        };
        (name.to_owned(), StoredTensor::from_f32(shape, values))
    });
    made.collect::<Vec<_>>().into_iter().collect()
}

fn inception() -> &'static Inception {
    static INCEPTION: OnceLock<Inception> = OnceLock::new();
    INCEPTION.get_or_init(|| load(&formula_weights()).unwrap())
}

fn load(state: &StateDict) -> Result<Inception, EvalError> {
    Inception::from_state_dict(state, Path::new("inception.pth"), &Device::flex())
}

/// The pictures of a tensor `[B, 3, H, W]`, and `[H, W]`.
fn images(tensor: &StoredTensor) -> (Vec<Vec<f32>>, [usize; 2]) {
    let [_, 3, height, width] = tensor.shape()[..] else { panic!("{:?}", tensor.shape()) };
    let values = tensor.to_f32().unwrap();
    (values.chunks(3 * height * width).map(<[f32]>::to_vec).collect(), [height, width])
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn features_are_pytorch_fids() {
    let io = StateDict::load(&folder().join("io.safetensors")).unwrap();
    // Pictures by the name that stands behind `of_` in a key; the others belong to `images_<side>`.
    let image_299 = formula(9000, 3 * SIZE * SIZE, 6);
    let image_299: Vec<f32> = image_299.iter().map(|value| value / 2.0 + 0.5).collect();
    let mut resized = Vec::new();
    let mut compared = 0;
    for (key, tensor) in io.iter().filter(|(key, _)| key.starts_with("image")) {
        let (images, [height, width]) = images(tensor);
        if let Some(side) = key.strip_prefix("image_").and_then(|rest| rest.strip_suffix("_corner"))
        {
            assert_eq!(side, "299", "only one picture is given by its formula");
            for (c, row) in (0..3).flat_map(|c| (0..height).map(move |row| (c, row))) {
                let found = &image_299[(c * SIZE + row) * SIZE..][..width];
                let expected = &images[0][(c * height + row) * width..][..width];
                assert!(largest_difference(found, expected) < 1e-6, "{key}");
            }
            compared += 1;
        } else {
            assert!(resized.is_empty(), "{key}: a second set of pictures");
            let to_size =
                |image: &Vec<f32>| interpolate_bilinear(image, [height, width], [SIZE, SIZE]);
            resized = images.iter().map(to_size).collect::<Vec<_>>();
        }
    }
    assert!(!resized.is_empty());
    for (key, expected) in io.iter().filter(|(key, _)| !key.starts_with("image")) {
        let [count, dim] = expected.shape()[..] else { panic!("{key}: {:?}", expected.shape()) };
        let block = InceptionBlock::ALL.into_iter().find(|block| block.dim() == dim);
        let block = block.unwrap_or_else(|| panic!("{key}: no block has {dim} channels"));
        let pictures: Vec<&[f32]> = match key.split_once("_of_") {
            Some((_, "299")) => vec![&image_299],
            Some(_) => panic!("{key}: of what?"),
            None => resized.iter().map(Vec::as_slice).collect(),
        };
        assert_eq!(pictures.len(), count, "{key}");
        let extractor =
            InceptionExtractor::new(inception().clone(), block, InceptionProtocol::PytorchFid);
        let found = extractor.features(&pictures).unwrap().concat();
        let expected = expected.to_f32().unwrap();
        let difference = largest_difference(&found, &expected);
        let largest = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
        eprintln!("{key}: off by {difference:e} of up to {largest}");
        assert!(difference < 1e-3, "{key}: off by {difference}");
        compared += 1;
    }
    assert!(compared > 1, "{compared}");
}

#[test]
fn a_feature_does_not_depend_on_the_batch_or_the_threads() {
    let extractor = InceptionExtractor::pool3(inception().clone(), InceptionProtocol::CleanFid);
    let pictures: Vec<Vec<f32>> = (0..19).map(|i| image_of(i, 24).0).collect();
    let pictures: Vec<&[f32]> = pictures.iter().map(Vec::as_slice).collect();
    let on_threads = |threads: usize, batch: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let batches = pictures.chunks(batch);
        pool.install(|| batches.flat_map(|b| extractor.features(b).unwrap()).collect::<Vec<_>>())
    };
    let expected = on_threads(1, 1);
    for (threads, batch) in [(1, 19), (2, 3), (3, 19)] {
        assert!(on_threads(threads, batch) == expected, "{threads} threads, batches of {batch}");
    }
    // They are features of different pictures.
    assert!(expected[1..].iter().all(|feature| *feature != expected[0]));
}

/// A noisy picture, prepared for the clean protocol, and itself.
fn image_of(seed: u32, side: u32) -> (Vec<f32>, Picture) {
    let byte = |i: u32| ((i + 7919 * seed).wrapping_mul(2_654_435_761) >> 24) as u8;
    let pixels = (0..3 * side * side).map(byte).collect();
    let picture = Picture::new("noise", side, side, pixels).unwrap();
    let extractor = InceptionExtractor::pool3(inception().clone(), InceptionProtocol::CleanFid);
    (extractor.prepare(&picture), picture)
}

#[test]
fn the_protocols_prepare_differently_and_are_named() {
    let (clean, picture) = image_of(3, 40);
    let clean_fid = InceptionExtractor::pool3(inception().clone(), InceptionProtocol::CleanFid);
    let fid = InceptionExtractor::pool3(inception().clone(), InceptionProtocol::PytorchFid);
    let bilinear = fid.prepare(&picture);
    for values in [&clean, &bilinear] {
        assert_eq!(values.len(), 3 * SIZE * SIZE);
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
    }
    // Bicubic overshoots on noise, and is cut off.
    assert!(clean.contains(&0.0) && clean.contains(&1.0));
    assert!(largest_difference(&clean, &bilinear) > 0.1);
    // The same values go to the network as 2 x - 1 and (255 x - 128) / 128.
    let features =
        |extractor: &InceptionExtractor| extractor.features(&[&clean]).unwrap().remove(0);
    let by_hand = |signed: Vec<f32>| {
        let data = TensorData::new(signed, [1, 3, SIZE, SIZE]);
        let x = Tensor::from_data(data, &Device::flex());
        let y = inception().forward(x, InceptionBlock::Pool3);
        y.into_data().try_into_vec::<f32>().unwrap()
    };
    assert_eq!(features(&fid), by_hand(clean.iter().map(|x| 2.0 * x - 1.0).collect()));
    let scaled = clean.iter().map(|x| (255.0 * x - 128.0) / 128.0).collect();
    assert_eq!(features(&clean_fid), by_hand(scaled));

    assert_eq!(
        (fid.name(), fid.dim(), fid.image_shape()),
        ("inception_pool3", 2048, [3, 299, 299])
    );
    assert_eq!(
        (fid.frechet_metric(), clean_fid.frechet_metric()),
        ("fid".into(), "clean_fid".into())
    );
    assert_ne!(fid.resizing(), clean_fid.resizing());
    assert_eq!(fid.weights_hash(), clean_fid.weights_hash());
    let other = InceptionExtractor::new(
        inception().clone(),
        InceptionBlock::PreAux,
        InceptionProtocol::CleanFid,
    );
    assert_eq!((other.dim(), other.frechet_metric()), (768, "clean_fd_inception_preaux".into()));
}

#[test]
fn logits_are_a_linear_map_of_the_features() {
    let mut state = formula_weights();
    let bias: Vec<f32> = (0..Inception::CLASSES).map(|i| i as f32 / 100.0).collect();
    let stored = StoredTensor::from_f32(vec![Inception::CLASSES], bias.clone());
    state.insert("fc.bias".to_owned(), stored);
    let with_bias = load(&state).unwrap();
    let features: Vec<Vec<f32>> = (0..3).map(|i| formula(8000 + i, 2048, 6)).collect();
    let weight = state.get("fc.weight").unwrap().to_f32().unwrap();
    for (left_out, bias) in [(LogitBias::Added, Some(&bias)), (LogitBias::LeftOut, None)] {
        let logits = with_bias.logits(&features, left_out).unwrap();
        assert_eq!(logits.len(), 3);
        for (feature, logits) in features.iter().zip(&logits) {
            assert_eq!(logits.len(), Inception::CLASSES);
            for (class, row) in weight.chunks(2048).enumerate() {
                let sum: f64 =
                    row.iter().zip(feature).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let expected = sum + bias.map_or(0.0, |bias| f64::from(bias[class]));
                assert!((f64::from(logits[class]) - expected).abs() < 1e-4, "class {class}");
            }
        }
    }
    assert!(inception().logits::<Vec<f32>>(&[], LogitBias::Added).unwrap().is_empty());
    let error = inception().logits(&[vec![0.0; 768]], LogitBias::Added).unwrap_err();
    assert!(matches!(error, EvalError::FeatureLength { index: 0, found: 768, expected: 2048 }));
}

#[test]
fn batch_norms_are_multiplied_into_the_convolutions() {
    // Twice as much behind the first layer; half, over a deviation of 4, behind the second. Nothing is
    // added anywhere, so features are a quarter of what they were.
    let pictures = images(&StoredTensor::from_f32(vec![1, 3, SIZE, SIZE], image_of(5, 30).0)).0;
    let mut state = formula_weights();
    let set = |state: &mut StateDict, name: &str, value: f32| {
        let count = state.get(name).unwrap().numel();
        let values = StoredTensor::from_f32(vec![count], vec![value; count]);
        state.insert(name.to_owned(), values);
    };
    set(&mut state, "Conv2d_1a_3x3.bn.weight", 2.0);
    set(&mut state, "Conv2d_2a_3x3.bn.weight", 0.5);
    set(&mut state, "Conv2d_2a_3x3.bn.running_var", 16.0);
    let scaled = load(&state).unwrap();
    let features = |inception: &Inception| {
        let extractor = InceptionExtractor::new(
            inception.clone(),
            InceptionBlock::Pool1,
            InceptionProtocol::PytorchFid,
        );
        extractor.features(&[&pictures[0]]).unwrap().remove(0)
    };
    // One of the deviations contains eps = 0.001.
    let factor = 2.0 * 0.5 * (1.001f32 / 16.001).sqrt();
    let expected: Vec<f32> = features(inception()).iter().map(|value| value * factor).collect();
    assert!(expected.iter().any(|value| *value > 0.01));
    assert!(largest_difference(&features(&scaled), &expected) < 1e-5);
    // A mean and a bias that cancel each other change nothing.
    let deviation = 1.001f32.sqrt();
    set(&mut state, "Conv2d_2b_3x3.bn.running_mean", 0.3);
    set(&mut state, "Conv2d_2b_3x3.bn.bias", 0.3 / deviation);
    assert!(largest_difference(&features(&load(&state).unwrap()), &expected) < 1e-5);
    set(&mut state, "Conv2d_2b_3x3.bn.bias", 0.0);
    assert!(largest_difference(&features(&load(&state).unwrap()), &expected) > 1e-2);
}

#[test]
fn weights_of_another_network_are_listed() {
    let mut state = formula_weights();
    // torchvision's own Inception: 1000 classes and an auxiliary classifier.
    let fc = StoredTensor::from_f32(vec![1000, 2048], vec![0.0; 1000 * 2048]);
    state.insert("fc.weight".to_owned(), fc);
    state.insert("AuxLogits.fc.bias".to_owned(), StoredTensor::from_f32(vec![1], vec![0.0]));
    state.remove("Mixed_7c.branch3x3_2b.bn.running_var");
    let error = load(&state).unwrap_err();
    let text = error.to_string();
    let EvalError::Weights { path, applied, missing, unused, wrong_shape, .. } = error else {
        panic!("{text}")
    };
    assert_eq!((path, applied), (PathBuf::from("inception.pth"), state.len() - 2));
    assert_eq!(missing, ["Mixed_7c.branch3x3_2b.bn.running_var"]);
    assert_eq!(unused, ["AuxLogits.fc.bias"]);
    assert_eq!(wrong_shape, ["fc.weight: expected [1008, 2048], found [1000, 2048]"]);
    assert!(text.contains("inception.pth does not fit FID's Inception-v3"), "{text}");
}

#[test]
fn files_are_read_and_counters_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inception.safetensors");
    let mut state = formula_weights();
    let counter = StoredTensor::new(deme_merge::Dtype::I64, vec![], vec![1; 8]).unwrap();
    state.insert("Mixed_5b.branch1x1.bn.num_batches_tracked".to_owned(), counter);
    state.save(&path).unwrap();
    let loaded = Inception::load(&path, &Device::flex()).unwrap();
    assert_eq!(loaded.weights_hash(), inception().weights_hash());
    assert_eq!(loaded.weights_hash().len(), 64);
    let missing = Inception::load(&folder.path().join("no.pth"), &Device::flex()).unwrap_err();
    assert!(matches!(missing, EvalError::State(_)) && missing.to_string().contains("no.pth"));

    let nan = StoredTensor::from_f32(vec![32], vec![f32::NAN; 32]);
    state.insert("Conv2d_1a_3x3.bn.bias".to_owned(), nan);
    let error = load(&state).unwrap_err();
    assert!(error.to_string().contains("Conv2d_1a_3x3.bn.bias"), "{error}");
}

#[test]
fn pictures_that_were_not_prepared_are_named() {
    let extractor = InceptionExtractor::pool3(inception().clone(), InceptionProtocol::PytorchFid);
    let (good, bad) = (vec![0.5; 3 * SIZE * SIZE], vec![0.5; 3 * 32 * 32]);
    let error = extractor.features(&[&good, &bad]).unwrap_err();
    assert!(matches!(error, EvalError::ImageShape { index: 1, found: 3072, .. }), "{error}");
    let mut bad = good.clone();
    bad[0] = f32::NAN;
    let error = extractor.features(&[&good, &bad]).unwrap_err();
    assert!(matches!(error, EvalError::NonFiniteImage { index: 1, .. }), "{error}");
}
