//! Features of a CLIP do not depend on how pictures are batched.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use deme_clip::{Clip, ClipConfig, ClipModel, ClipPreprocessor};
use deme_eval::{
    ClipExtractor, EvalError, FeatureExtractor, ImageFeatures, feature_stats, frechet_metric,
};
use deme_nn::Init;

fn clip() -> Clip {
    let mut config = ClipConfig { projection_dim: 6, ..ClipConfig::default() };
    config.text_config.vocab_size = 10;
    config.text_config.hidden_size = 8;
    config.text_config.num_hidden_layers = 1;
    config.vision_config.hidden_size = 12;
    config.vision_config.intermediate_size = 24;
    config.vision_config.num_attention_heads = 3;
    config.vision_config.num_hidden_layers = 2;
    config.vision_config.image_size = 8;
    config.vision_config.patch_size = 4;
    let model = ClipModel::new(&config, &mut Init::new(3, &Device::flex())).unwrap();
    Clip { model, preprocessor: ClipPreprocessor::signed(8), tokenizer: None }
}

fn pictures(count: usize) -> Vec<Vec<f32>> {
    let value = |i: usize, j: usize| ((i * 31 + j * 7) % 101) as f32 / 100.0;
    (0..count).map(|i| (0..3 * 8 * 8).map(|j| value(i, j)).collect()).collect()
}

#[test]
fn statistics_do_not_depend_on_the_batch_size() {
    let extractor = ClipExtractor::tiny(clip());
    let pictures = pictures(150);
    let mut done = Vec::new();
    let all = feature_stats(&extractor, &pictures, 150, &mut |n| done.push(n)).unwrap();
    assert_eq!(done, [150]);
    assert_eq!(all.dim(), extractor.dim());
    for batch_size in [1, 7, 64] {
        let again = feature_stats(&extractor, &pictures, batch_size, &mut |_| {}).unwrap();
        let differences = all.mu().iter().zip(again.mu()).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f64::max) < 1e-6);
    }
    assert_eq!(all, feature_stats(&extractor, &pictures, 64, &mut |_| {}).unwrap());
}

#[test]
fn the_metric_is_named_after_the_extractor() {
    let tiny = ClipExtractor::tiny(clip());
    assert_eq!(frechet_metric(tiny.name()), "fd_tiny_clip");
    assert_eq!((tiny.dim(), tiny.image_shape()), (12, [3, 8, 8]));
    let projected = ClipExtractor::new("other", clip(), ImageFeatures::Projected);
    assert_eq!((projected.dim(), frechet_metric(projected.name()).as_str()), (6, "fd_other"));
    assert_eq!(projected.weights_hash(), tiny.weights_hash());
    assert_eq!(projected.features(&[&pictures(1)[0]]).unwrap()[0].len(), 6);
}

#[test]
fn pictures_of_another_size_are_named() {
    let extractor = ClipExtractor::tiny(clip());
    let mut pictures = pictures(70);
    pictures[66].pop();
    let error = feature_stats(&extractor, &pictures, 70, &mut |_| {}).unwrap_err();
    assert!(matches!(error, EvalError::Clip(_)));
    assert!(error.to_string().contains("picture 66"), "{error}");
    let error = ClipExtractor::tiny(clip()).clip().text_embeds(&["a"]).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"));
}
