//! From picture files and captions to scores, and preparation as the libraries do it.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use deme_clip::{
    CaptionCleaning, CaptionTokenizer, Clip, ClipConfig, ClipError, ClipFilter, ClipModel,
    ClipPreprocessor, ClipResize, CropRounding,
};
use deme_data::{Picture, PictureError, write_png};
use deme_eval::{EvalError, clip_scores, prepare_for_clip, score_pairs};
use deme_merge::StateDict;
use deme_nn::Init;
use std::path::{Path, PathBuf};

/// A small CLIP with the published vocabulary.
fn clip() -> Clip {
    let mut config = ClipConfig { projection_dim: 8, ..ClipConfig::default() };
    config.text_config.hidden_size = 16;
    config.text_config.intermediate_size = 32;
    config.text_config.num_attention_heads = 2;
    config.text_config.num_hidden_layers = 2;
    config.vision_config.hidden_size = 24;
    config.vision_config.intermediate_size = 52;
    config.vision_config.num_attention_heads = 2;
    config.vision_config.num_hidden_layers = 2;
    config.vision_config.image_size = 16;
    config.vision_config.patch_size = 4;
    let model = ClipModel::new(&config, &mut Init::new(4, &Device::flex())).unwrap();
    let tokenizer = CaptionTokenizer::published(CaptionCleaning::HuggingFace, 77).unwrap();
    Clip { model, preprocessor: ClipPreprocessor::openai(16), tokenizer: Some(tokenizer) }
}

fn picture(number: usize) -> Picture {
    let (width, height) = (16 + number as u32 % 7, 19);
    let mut picture = Picture::filled(number.to_string(), width, height, [0; 3]);
    for (i, byte) in picture.pixels.iter_mut().enumerate() {
        *byte = ((i * 31 + number * 77) % 256) as u8;
    }
    picture
}

/// Pictures in files, with captions of all lengths.
fn pairs(folder: &Path, count: usize) -> Vec<(PathBuf, String)> {
    let pair = |number: usize| {
        let path = folder.join(format!("{number:03}.png"));
        write_png(&path, &picture(number)).unwrap();
        (path, format!("{}dog number {number}", "very ".repeat(number * 5 % 83)))
    };
    (0..count).map(pair).collect()
}

#[test]
fn scores_do_not_depend_on_company_order_or_threads() {
    let clip = clip();
    let folder = tempfile::tempdir().unwrap();
    let pairs = pairs(folder.path(), 70);
    let mut done = Vec::new();
    let scores = score_pairs(&clip, &pairs, &mut |n| done.push(n)).unwrap();
    assert_eq!((scores.pairs.len(), scores.score.count, done.last()), (70, 70, Some(&70)));
    assert!(scores.pairs.iter().any(|&score| score > 0.0), "all scores are clamped");
    let long = pairs.iter().filter(|(_, caption)| caption.split(' ').count() > 75).count();
    assert!(long > 0 && scores.truncated >= long, "{} {long}", scores.truncated);

    for i in [0, 13, 16, 69] {
        let alone = score_pairs(&clip, &pairs[i..=i], &mut |_| {}).unwrap();
        assert_eq!(alone.pairs, scores.pairs[i..=i]);
        assert_eq!(alone.score.std_error, None);
    }
    let reversed: Vec<_> = pairs.iter().rev().cloned().collect();
    let mut again = score_pairs(&clip, &reversed, &mut |_| {}).unwrap().pairs;
    again.reverse();
    assert_eq!(again, scores.pairs);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| score_pairs(&clip, &pairs, &mut |_| {}).unwrap());
        assert_eq!(again, scores);
    }

    // By hand, without any file.
    let images: Vec<Vec<f32>> =
        (0..70).map(|i| prepare_for_clip(&clip.preprocessor, &picture(i))).collect();
    let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let captions: Vec<&String> = pairs.iter().map(|(_, caption)| caption).collect();
    let (texts, truncated) = clip.text_embeds(&captions).unwrap();
    assert_eq!(truncated, scores.truncated);
    let by_hand = clip_scores(&clip.image_embeds(&images).unwrap(), &texts).unwrap();
    assert_eq!(by_hand, scores.pairs);
}

#[test]
fn a_picture_with_several_captions_counts_with_each() {
    let clip = clip();
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = pairs(folder.path(), 3);
    let once = score_pairs(&clip, &pairs, &mut |_| {}).unwrap().pairs;
    pairs.insert(1, (pairs[0].0.clone(), pairs[2].1.clone()));
    pairs.insert(0, pairs[3].clone());
    let scores = score_pairs(&clip, &pairs, &mut |_| {}).unwrap().pairs;
    assert_eq!([scores[0], scores[1], scores[3], scores[4]], [once[2], once[0], once[1], once[2]]);
    assert_ne!(scores[2], once[0]);
}

#[test]
fn what_cannot_be_scored_is_named() {
    let clip = clip();
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = pairs(folder.path(), 2);
    let error = score_pairs(&clip, &[], &mut |_| {}).unwrap_err();
    assert!(matches!(error, EvalError::TooFew { count: 0 }));
    pairs[1].0 = folder.path().join("missing.png");
    let error = score_pairs(&clip, &pairs, &mut |_| {}).unwrap_err();
    let is_unreadable = matches!(
        &error,
        EvalError::Picture { path, source: PictureError::Unreadable(_) } if *path == pairs[1].0
    );
    assert!(is_unreadable, "{error}");
    let mute = Clip { tokenizer: None, ..clip };
    let error = score_pairs(&mute, &pairs, &mut |_| {}).unwrap_err();
    let no_tokenizer =
        matches!(&error, EvalError::Clip(error) if matches!(**error, ClipError::NoTokenizer));
    assert!(no_tokenizer, "{error}");
}

#[test]
fn pictures_are_prepared_as_the_libraries_do() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let set = std::env::var_os("DEME_FIXTURES");
    let folder = set.clone().map_or(default.into(), PathBuf::from).join("open_clip_tiny");
    if set.is_some() && !folder.exists() {
        eprintln!("skipped: these fixtures have no open_clip_tiny");
        return;
    }
    let io = StateDict::load(&folder.join("io.safetensors")).unwrap();
    let clip = Clip::open(&folder, None, &Device::flex()).unwrap();
    let own = clip.preprocessor;
    let size = own.size;
    let rounding = CropRounding::HalfToEven;
    assert_eq!(own.resize, ClipResize::ShorterSide { shorter_side: size, rounding });
    let (resize, filter) = (ClipResize::Squash, ClipFilter::Bilinear);
    let squash = ClipPreprocessor { resize, filter, ..own.clone() };
    let hugging_face = ClipPreprocessor::openai(size);
    let cases = [("pixel_values", own), ("squashed", squash), ("hugging_face", hugging_face)];
    for (name, preprocessor) in cases {
        let expected = io.get(name).unwrap().to_f32().unwrap();
        let mut found = Vec::new();
        for number in 0.. {
            let Some(stored) = io.get(&format!("picture.{number}")) else { break };
            let (height, width) = (stored.shape()[0] as u32, stored.shape()[1] as u32);
            let picture = Picture::new("fixture", width, height, stored.bytes().to_vec()).unwrap();
            found.extend(preprocessor.normalise(&prepare_for_clip(&preprocessor, &picture)));
        }
        assert_eq!(found.len(), expected.len(), "{name}");
        let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, f32::max);
        assert!(largest < 1e-5, "{name}: {largest}");
    }
}
