//! The towers against transformers' `CLIPModel`: whatever `clip_tiny` holds.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::{ClipModel, normalise};
use deme_merge::StateDict;
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default.into(), PathBuf::from)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn rows(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

#[test]
fn embeddings_and_score_are_transformers() {
    let folder = fixtures().join("clip_tiny");
    let device = Device::flex();
    let model = ClipModel::load(&folder, &device).unwrap();
    let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
    let tensor = |name: &str| io.get(name).unwrap();

    let pixels = tensor("pixel_values");
    let shape: [usize; 4] = pixels.shape().try_into().unwrap();
    assert!(shape[0] > 0);
    let data = TensorData::new(pixels.to_f32().unwrap(), shape);
    let image = normalise(model.image_embeds(Tensor::from_data(data, &device)).unwrap());
    let expected = tensor("image_embeds");
    assert_eq!(image.dims().as_slice(), expected.shape());
    let image = rows(image);
    assert!(largest_difference(&image, &expected.to_f32().unwrap()) < 1e-3);

    let ids = tensor("input_ids");
    let len = ids.shape()[1];
    let ids: Vec<u32> = ids.to_i64().unwrap().into_iter().map(|id| id as u32).collect();
    let ids: Vec<Vec<u32>> = ids.chunks(len).map(<[u32]>::to_vec).collect();
    let text = normalise(model.text_embeds(&ids).unwrap());
    let expected = tensor("text_embeds");
    assert_eq!(text.dims().as_slice(), expected.shape());
    let width = expected.shape()[1];
    let text = rows(text);
    assert!(largest_difference(&text, &expected.to_f32().unwrap()) < 1e-3);

    let scores: Vec<f32> = image
        .chunks(width)
        .zip(text.chunks(width))
        .map(|(image, text)| {
            let cosine: f32 = image.iter().zip(text).map(|(a, b)| a * b).sum();
            100.0 * cosine.max(0.0)
        })
        .collect();
    assert!(largest_difference(&scores, &tensor("clip_score").to_f32().unwrap()) < 1e-3);
}

#[test]
fn a_saved_folder_loads_to_the_same_weights_and_names() {
    let folder = fixtures().join("clip_tiny");
    let model = ClipModel::load(&folder, &Device::flex()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    model.save(copy.path()).unwrap();
    let original = StateDict::load(&folder.join("model.safetensors")).unwrap();
    let saved = StateDict::load(&copy.path().join("model.safetensors")).unwrap();
    assert_eq!(saved.content_hash(), original.content_hash());
    let again = ClipModel::load(copy.path(), &Device::flex()).unwrap();
    assert_eq!(again.config(), model.config());
    assert_eq!(again.weights_hash(), model.weights_hash());
}

#[test]
fn a_folder_with_other_tensors_is_refused_with_all_names() {
    let folder = fixtures().join("clip_tiny");
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), copy.path().join("config.json")).unwrap();
    let mut state = StateDict::load(&folder).unwrap();
    let tensor = state.remove("text_projection.weight").unwrap();
    state.insert("text_projection.kernel".to_owned(), tensor);
    state.save(&copy.path().join("model.safetensors")).unwrap();
    let error = ClipModel::load(copy.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("text_projection.weight") && error.contains("text_projection.kernel"));
}

#[test]
fn inputs_of_other_shapes_are_refused() {
    let device = Device::flex();
    let model = ClipModel::load(&fixtures().join("clip_tiny"), &device).unwrap();
    let size = model.config().vision_config.image_size;
    let error = model.image_embeds(Tensor::zeros([1, 3, size, size + 1], &device)).unwrap_err();
    assert!(error.to_string().contains(&format!("[1, 3, {size}, {}]", size + 1)));
    let vocab = model.config().text_config.vocab_size as u32;
    let error = model.text_embeds(&[vec![0, vocab]]).unwrap_err();
    assert!(error.to_string().contains(&vocab.to_string()));
}
