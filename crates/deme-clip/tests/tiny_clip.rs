//! A tiny CLIP learns, resumes to the same bytes after a crash, and refuses what it cannot learn.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use deme_clip::{
    CaptionedImages, Clip, ClipError, TinyClip, TinyClipConfig, TinyClipProgress, train_tiny_clip,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const COLOURS: [(&str, [f32; 3]); 4] = [
    ("red", [0.9, 0.1, 0.1]),
    ("green", [0.1, 0.8, 0.2]),
    ("blue", [0.1, 0.2, 0.9]),
    ("yellow", [0.9, 0.9, 0.1]),
];
const PLACES: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];

/// One coloured square in one corner of a grey picture; every colour and place, over and over.
fn squares(size: usize, count: usize) -> (Vec<Vec<f32>>, Vec<String>) {
    let pictures = (0..count).map(|i| {
        let (name, colour) = COLOURS[i % 4];
        let place = i / 4 % 4;
        let half = size / 2;
        let (top, left) = (place / 2 * half, place % 2 * half);
        let grey = 0.3 + (i / 16 % 10) as f32 * 0.04;
        let mut image = vec![grey; 3 * size * size];
        for (channel, value) in colour.iter().enumerate() {
            for row in top..top + half {
                for column in left..left + half {
                    image[(channel * size + row) * size + column] = *value;
                }
            }
        }
        (image, format!("a {name} square at the {}", PLACES[place]))
    });
    pictures.unzip()
}

fn small() -> TinyClipConfig {
    TinyClipConfig {
        hidden_size: 32,
        num_hidden_layers: 1,
        projection_dim: 16,
        steps: 24,
        batch_size: 12,
        warmup_steps: 4,
        learning_rate: 3e-3,
        checkpoint_every: 5,
        shift_pixels: 1,
        ..TinyClipConfig::default()
    }
}

fn train(
    config: &TinyClipConfig,
    count: usize,
    seed: u64,
    state_dir: Option<&Path>,
    observer: &mut dyn FnMut(TinyClipProgress),
) -> Result<TinyClip, ClipError> {
    let (images, captions) = squares(8, count);
    let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let data = CaptionedImages { size: 8, images_unit: &images, captions: &captions };
    train_tiny_clip(config, data, seed, state_dir, &Device::flex(), observer)
}

#[test]
fn it_learns_colours_and_places() {
    let config = TinyClipConfig { steps: 400, ..small() };
    let mut steps = Vec::new();
    let trained = train(&config, 160, 1, None, &mut |progress| steps.push(progress.step)).unwrap();
    assert_eq!(steps, (1..=400).collect::<Vec<_>>());
    let report = &trained.report;
    assert_eq!((report.distinct_captions, report.truncated_captions), (16, 0));
    assert_eq!(report.train_pictures, 144);
    let held_out = report.held_out.unwrap();
    assert_eq!(held_out.pictures, 16);
    // Chance is 1/16 or less.
    assert!(held_out.image_to_text > 0.8, "{report:?}");
    assert!(held_out.text_to_image > 0.8, "{report:?}");
    assert!(trained.clip.model.logit_scale_ln() <= 100f32.ln());

    // The folder is whole: it gives the same embeddings after a round trip.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip");
    trained.clip.save(&path).unwrap();
    let loaded = Clip::load(&path, &Device::flex()).unwrap();
    let (images, captions) = squares(8, 3);
    let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    assert_eq!(loaded.image_embeds(&images).unwrap(), trained.clip.image_embeds(&images).unwrap());
    assert_eq!(
        loaded.text_embeds(&captions).unwrap(),
        trained.clip.text_embeds(&captions).unwrap()
    );
    assert_eq!(loaded.model.weights_hash(), trained.clip.model.weights_hash());
}

#[test]
fn a_crashed_training_resumes_to_the_same_bytes() {
    let undisturbed = train(&small(), 64, 7, None, &mut |_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for crash_at in [3, 11, 20] {
        let crash = catch_unwind(AssertUnwindSafe(|| {
            train(&small(), 64, 7, Some(folder.path()), &mut |progress| {
                assert!(progress.step != crash_at, "crash");
            })
        }));
        assert!(crash.is_err());
    }
    let mut steps = Vec::new();
    let resumed =
        train(&small(), 64, 7, Some(folder.path()), &mut |progress| steps.push(progress.step));
    let resumed = resumed.unwrap();
    assert_eq!(steps, [21, 22, 23, 24]);
    assert_eq!(resumed.clip.model.weights_hash(), undisturbed.clip.model.weights_hash());
    assert_eq!(resumed.report, undisturbed.report);
    // A finished training is not done again.
    let again = train(&small(), 64, 7, Some(folder.path()), &mut |_| panic!("no step")).unwrap();
    assert_eq!(again.report, undisturbed.report);
}

#[test]
fn another_seed_gives_another_model_and_its_checkpoint_is_not_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let a = train(&small(), 64, 7, Some(folder.path()), &mut |_| {}).unwrap();
    let error = train(&small(), 64, 8, Some(folder.path()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ClipError::OtherTraining { .. }));
    let b = train(&small(), 64, 8, None, &mut |_| {}).unwrap();
    assert_ne!(a.clip.model.weights_hash(), b.clip.model.weights_hash());
    let path = folder.path().join("tiny_clip_state.safetensors");
    let mut state = deme_merge::StateDict::load(&path).unwrap();
    state.set_metadata("losses", "none");
    state.save(&path).unwrap();
    let error = train(&small(), 64, 7, Some(folder.path()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ClipError::DamagedCheckpoint { .. }));
}

#[test]
fn what_cannot_be_learned_is_refused_before_the_first_step() {
    let refused = |config: &TinyClipConfig, count: usize| {
        train(config, count, 0, None, &mut |_| panic!("no step")).unwrap_err()
    };
    let few = refused(&small(), 12);
    assert!(matches!(few, ClipError::TrainingSet { .. }), "{few}");
    let same = refused(&small(), 1);
    assert!(same.to_string().contains("2 different captions"), "{same}");
    type Change = fn(&mut TinyClipConfig);
    let changes: [(&str, Change); 9] = [
        ("steps", |c| c.steps = 0),
        ("checkpoint_every", |c| c.checkpoint_every = 0),
        ("patch_size", |c| c.patch_size = 3),
        ("batch_size", |c| c.batch_size = 1),
        ("warmup_steps", |c| c.warmup_steps = 99),
        ("held_out", |c| c.held_out = 1.0),
        ("learning_rate", |c| c.learning_rate = f64::NAN),
        ("shift_pixels", |c| c.shift_pixels = 8),
        ("max_vocab", |c| c.max_vocab = 4),
    ];
    for (name, change) in changes {
        let mut config = small();
        change(&mut config);
        let error = refused(&config, 64);
        assert!(matches!(error, ClipError::Config { field, .. } if field == name), "{error}");
    }
}

#[test]
fn pictures_and_captions_must_pair_up() {
    let (images, captions) = squares(8, 64);
    let mut images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let train = |images: &[&[f32]]| {
        let data = CaptionedImages { size: 8, images_unit: images, captions: &captions };
        train_tiny_clip(&small(), data, 0, None, &Device::flex(), &mut |_| {}).unwrap_err()
    };
    assert!(train(&images[1..]).to_string().contains("63 pictures but 64 captions"));
    let broken = vec![f32::NAN; 192];
    images[5] = &broken;
    assert!(train(&images).to_string().contains("picture 5 holds the value NaN"));
    images[5] = &broken[1..];
    assert!(matches!(train(&images), ClipError::ImageShape { index: 5, .. }));
}

#[test]
fn a_diverging_training_says_so() {
    let config = TinyClipConfig { learning_rate: 1e30, warmup_steps: 0, ..small() };
    let error = train(&config, 64, 0, None, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ClipError::NonFiniteLoss { .. }), "{error}");
}
