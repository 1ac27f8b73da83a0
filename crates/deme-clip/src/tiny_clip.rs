//! Training of a small CLIP on captioned pictures (Radford et al. 2021, figure 3).
//!
//! Batch and learning rate are functions of the step alone, so a checkpoint is weights, moments and
//! the step: a training that was killed and started again ends in the same bytes.

use crate::contrastive_loss::{MAX_LOGIT_SCALE, contrastive_loss};
use crate::model::normalise;
use crate::{
    CaptionTokenizer, Clip, ClipConfig, ClipError, ClipModel, ClipPreprocessor, ClipTextConfig,
    ClipVisionConfig, EncodedCaptions, HiddenAct, RetrievalAccuracy,
};
use burn::tensor::Device;
use deme_merge::StateDict;
use deme_nn::{
    AdamW, AdamWConfig, Gradients, Init, load_state_dict, map_parameters, to_state_dict,
    with_gradients,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Shape and training of a tiny CLIP. The defaults suit 16x16 to 32x32 pictures; with 32x32, patches
/// of 8 are as fast as patches of 4 with 16x16.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinyClipConfig {
    /// Side of a patch in pixels; divides the pictures' side.
    pub patch_size: usize,
    /// Width of both towers.
    pub hidden_size: usize,
    /// Layers of each tower.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides the width.
    pub num_attention_heads: usize,
    /// Width of the shared space.
    pub projection_dim: usize,
    /// Most entries of the vocabulary, at least 5.
    pub max_vocab: usize,
    /// Most ids per caption, start and end among them; shorter when all captions are.
    pub max_context_length: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Pictures per step.
    pub batch_size: usize,
    /// Learning rate after the warm-up; it then falls to zero as a cosine.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// Share of the pictures that training never sees, in [0, 1); at most `max_held_out` of them.
    pub held_out: f64,
    /// See `held_out`.
    pub max_held_out: usize,
    /// Pictures are moved by up to this many pixels in both directions, edges repeated. 0: off.
    pub shift_pixels: usize,
    /// Half of the pictures are mirrored. Off by default: captions may say left and right.
    pub flip: bool,
    /// Steps between checkpoints.
    pub checkpoint_every: usize,
}

impl Default for TinyClipConfig {
    fn default() -> Self {
        Self {
            patch_size: 4,
            hidden_size: 64,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            projection_dim: 64,
            max_vocab: 1024,
            max_context_length: 24,
            steps: 300,
            batch_size: 64,
            learning_rate: 1e-3,
            warmup_steps: 30,
            adamw: AdamWConfig { betas: [0.9, 0.98], weight_decay: 0.01, eps: 1e-6 },
            held_out: 0.1,
            max_held_out: 256,
            shift_pixels: 0,
            flip: false,
            checkpoint_every: 100,
        }
    }
}

impl TinyClipConfig {
    /// Learning rate of a 0-based step.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = (self.steps - self.warmup_steps).max(1) as f64;
        let done = (step - self.warmup_steps) as f64 / rest;
        self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }

    /// The shape of the network for pictures of `image_size` and a tokenizer.
    fn clip_config(&self, image_size: usize, tokenizer: &CaptionTokenizer) -> ClipConfig {
        let [start, end, pad] = tokenizer.special_ids();
        ClipConfig {
            text_config: ClipTextConfig {
                vocab_size: tokenizer.vocab_size(),
                hidden_size: self.hidden_size,
                intermediate_size: 4 * self.hidden_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: self.num_attention_heads,
                max_position_embeddings: tokenizer.context_length(),
                hidden_act: HiddenAct::QuickGelu,
                layer_norm_eps: 1e-5,
                pad_token_id: Some(pad),
                bos_token_id: Some(start),
                eos_token_id: end,
            },
            vision_config: ClipVisionConfig {
                hidden_size: self.hidden_size,
                intermediate_size: 4 * self.hidden_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: self.num_attention_heads,
                num_channels: 3,
                image_size,
                patch_size: self.patch_size,
                hidden_act: HiddenAct::QuickGelu,
                layer_norm_eps: 1e-5,
            },
            projection_dim: self.projection_dim,
            ..ClipConfig::default()
        }
    }

    fn check(&self, image_size: usize) -> Result<(), ClipError> {
        let at_least_one = [
            ("steps", self.steps),
            ("checkpoint_every", self.checkpoint_every),
            ("patch_size", self.patch_size),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(ClipError::config(field, value, "it must be at least 1"));
            }
        }
        if self.batch_size < 2 {
            let expected = "contrast needs at least 2";
            return Err(ClipError::config("batch_size", self.batch_size, expected));
        }
        if self.warmup_steps > self.steps {
            let expected = format!("it must be at most steps = {}", self.steps);
            return Err(ClipError::config("warmup_steps", self.warmup_steps, &expected));
        }
        if !image_size.is_multiple_of(self.patch_size) {
            let expected = format!("it must divide the pictures' side {image_size}");
            return Err(ClipError::config("patch_size", self.patch_size, &expected));
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(ClipError::config("held_out", self.held_out, "it must be in [0, 1)"));
        }
        if self.learning_rate.is_nan() || self.learning_rate <= 0.0 {
            let expected = "it must be positive";
            return Err(ClipError::config("learning_rate", self.learning_rate, expected));
        }
        if self.shift_pixels >= image_size {
            let expected = format!("it must be below the pictures' side {image_size}");
            return Err(ClipError::config("shift_pixels", self.shift_pixels, &expected));
        }
        Ok(())
    }
}

/// Square pictures with a caption each.
#[derive(Debug, Clone, Copy)]
pub struct CaptionedImages<'a> {
    /// Side of every picture.
    pub size: usize,
    /// CHW, three channels, values in [0, 1].
    pub images_unit: &'a [&'a [f32]],
    /// One per picture.
    pub captions: &'a [String],
}

/// One step of training, for an observer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TinyClipProgress {
    /// Steps done, this one among them.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Loss of this step's batch; `ln(batch_size)` is chance.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyClipReport {
    /// Pictures trained on.
    pub train_pictures: usize,
    /// Different captions among all pictures.
    pub distinct_captions: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Captions that lost their last words.
    pub truncated_captions: usize,
    /// Mean loss of the last (at most 20) steps before the end; `ln(batch_size)` is chance.
    pub final_loss: f64,
    /// Retrieval among the held-out pictures; none were held out when there is no value.
    pub held_out: Option<RetrievalAccuracy>,
}

/// A trained CLIP and how well it learned.
#[derive(Debug, Clone)]
pub struct TinyClip {
    /// The model, its preparation and tokenizer.
    pub clip: Clip,
    /// How well it learned.
    pub report: TinyClipReport,
}

/// Trains a CLIP from random weights.
///
/// With `state_dir` (an existing folder), a checkpoint `tiny_clip_state.safetensors` is kept there,
/// and a training that finds its own checkpoint goes on from it. `observer` hears of every step.
///
/// # Errors
/// [`ClipError::TrainingSet`] and [`ClipError::Config`] before anything is trained,
/// [`ClipError::OtherTraining`] for a checkpoint of another config, seed or data,
/// [`ClipError::NonFiniteLoss`] when training diverges.
pub fn train_tiny_clip(
    config: &TinyClipConfig,
    data: CaptionedImages<'_>,
    seed: u64,
    state_dir: Option<&Path>,
    device: &Device,
    observer: &mut dyn FnMut(TinyClipProgress),
) -> Result<TinyClip, ClipError> {
    config.check(data.size)?;
    check_data(&data)?;
    let tokenizer = tokenizer_for(config, data.captions)?;
    let encoded = tokenizer.encode(data.captions)?;
    let clip_config = config.clip_config(data.size, &tokenizer);
    let model = ClipModel::new(&clip_config, &mut Init::new(seed, device))?;
    let preprocessor = ClipPreprocessor::signed(data.size);
    let mut clip = Clip { model, preprocessor, tokenizer: Some(tokenizer) };

    let labels = caption_labels(data.captions);
    let (train, held_out) = split(config, data.images_unit.len(), seed)?;
    let checkpoint = state_dir.map(|folder| Checkpoint {
        path: folder.join("tiny_clip_state.safetensors"),
        fingerprint: fingerprint(config, &data, seed),
    });
    let mut state = TrainState { optimizer: AdamW::new(config.adamw), losses: Vec::new(), step: 0 };
    if let Some(checkpoint) = &checkpoint
        && checkpoint.path.exists()
    {
        (clip.model, state) = checkpoint.load(clip.model, config, device)?;
    }

    while state.step < config.steps {
        let step = state.step;
        let learning_rate = config.learning_rate_at(step);
        let batch = batch_of_step(config, &train, &labels, seed, step);
        let (gradients, loss) = batch_gradients(&clip, &data, &encoded, &labels, &batch)?;
        if !loss.is_finite() {
            return Err(ClipError::NonFiniteLoss { step, loss, learning_rate });
        }
        let model = state.optimizer.step(clip.model, gradients, learning_rate, 1.0);
        clip.model = clamp_logit_scale(model);
        state.losses.push(loss);
        state.step += 1;
        if let Some(checkpoint) = &checkpoint
            && (state.step.is_multiple_of(config.checkpoint_every) || state.step == config.steps)
        {
            checkpoint.save(&clip.model, &state)?;
        }
        observer(TinyClipProgress { step: state.step, steps: config.steps, loss, learning_rate });
    }

    let report = TinyClipReport {
        train_pictures: train.len(),
        distinct_captions: labels.iter().collect::<BTreeSet<_>>().len(),
        vocab_size: clip_config.text_config.vocab_size,
        truncated_captions: encoded.truncated_count(),
        final_loss: mean_of_last(&state.losses, 20),
        held_out: held_out_retrieval(&clip, &data, &held_out)?,
    };
    Ok(TinyClip { clip, report })
}

fn check_data(data: &CaptionedImages<'_>) -> Result<(), ClipError> {
    let refuse = |reason: String| Err(ClipError::TrainingSet { reason });
    let (images, captions) = (data.images_unit.len(), data.captions.len());
    if images != captions {
        return refuse(format!("there are {images} pictures but {captions} captions"));
    }
    let expected = 3 * data.size * data.size;
    for (index, image) in data.images_unit.iter().enumerate() {
        if image.len() != expected {
            let (found, channels, size) = (image.len(), 3, data.size);
            return Err(ClipError::ImageShape { index, found, expected, channels, size });
        }
        if let Some(value) = image.iter().find(|value| !value.is_finite()) {
            return refuse(format!("picture {index} holds the value {value}"));
        }
    }
    let distinct = data.captions.iter().collect::<BTreeSet<_>>().len();
    if distinct < 2 {
        return refuse(format!(
            "contrast needs at least 2 different captions, found {distinct} in {captions} pictures"
        ));
    }
    Ok(())
}

/// Rows as long as the longest caption needs, at most the configured length.
fn tokenizer_for(
    config: &TinyClipConfig,
    captions: &[String],
) -> Result<CaptionTokenizer, ClipError> {
    let most = config.max_context_length;
    let longest = CaptionTokenizer::train_words(captions, config.max_vocab, most)?;
    let [_, end, _] = longest.special_ids();
    let lengths = longest.encode(captions)?.ids;
    let used = lengths.iter().filter_map(|row| row.iter().position(|&id| id == end));
    let context_length = used.max().map_or(most, |end| end + 1).max(3);
    CaptionTokenizer::train_words(captions, config.max_vocab, context_length)
}

/// Equal captions get equal numbers, counted by first appearance.
fn caption_labels(captions: &[String]) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    captions
        .iter()
        .map(|caption| {
            let next = numbers.len();
            *numbers.entry(caption.as_str()).or_insert(next)
        })
        .collect()
}

/// Indices of the pictures to train on and of those held out, each sorted.
fn split(
    config: &TinyClipConfig,
    count: usize,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>), ClipError> {
    let held_out = ((count as f64 * config.held_out) as usize).min(config.max_held_out);
    let mut order: Vec<usize> = (0..count).collect();
    let mut rng = stream(seed, SPLIT_STREAM);
    for i in 0..held_out {
        order.swap(i, rng.random_range(i..count));
    }
    let mut train = order.split_off(held_out);
    if train.len() < config.batch_size {
        let (found, needed) = (train.len(), config.batch_size);
        let reason = format!("{found} pictures are left to train on, a batch needs {needed}");
        return Err(ClipError::TrainingSet { reason });
    }
    train.sort_unstable();
    order.sort_unstable();
    Ok((train, order))
}

/// A picture of a batch and how it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drawn {
    index: usize,
    shift: [i64; 2],
    mirrored: bool,
}

/// Pictures drawn without repetition, with distinct captions as far as a few tries find them.
fn batch_of_step(
    config: &TinyClipConfig,
    train: &[usize],
    labels: &[usize],
    seed: u64,
    step: usize,
) -> Vec<Drawn> {
    let mut rng = stream(seed, step as u64);
    let (mut used, mut seen, mut later) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut batch = Vec::with_capacity(config.batch_size);
    for _ in 0..8 * config.batch_size {
        if batch.len() == config.batch_size {
            break;
        }
        let index = train[rng.random_range(0..train.len())];
        if used.insert(index) {
            if seen.insert(labels[index]) {
                batch.push(index);
            } else {
                later.push(index);
            }
        }
    }
    batch.extend(later);
    let rest = train.iter().copied().filter(|index| !used.contains(index));
    batch.extend(rest);
    batch.truncate(config.batch_size);
    let most = config.shift_pixels as i64;
    let drawn = batch.into_iter().map(|index| Drawn {
        index,
        shift: [rng.random_range(-most..=most), rng.random_range(-most..=most)],
        mirrored: config.flip && rng.random::<bool>(),
    });
    drawn.collect()
}

const SPLIT_STREAM: u64 = u64::MAX;

fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

fn batch_gradients(
    clip: &Clip,
    data: &CaptionedImages<'_>,
    encoded: &EncodedCaptions,
    labels: &[usize],
    batch: &[Drawn],
) -> Result<(Gradients, f64), ClipError> {
    let images: Vec<Vec<f32>> = batch
        .iter()
        .map(|drawn| augmented(data.images_unit[drawn.index], data.size, drawn))
        .collect();
    let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let ids: Vec<Vec<u32>> = batch.iter().map(|drawn| encoded.ids[drawn.index].clone()).collect();
    let same: Vec<usize> = batch.iter().map(|drawn| labels[drawn.index]).collect();

    let model = with_gradients(&clip.model);
    let image = normalise(model.image_embeds(clip.pixels(&images)?)?);
    let text = normalise(model.text_embeds(&ids)?);
    let loss = contrastive_loss(image, text, model.logit_scale.val(), &same);
    let gradients = Gradients::of(&loss, &model);
    Ok((gradients, f64::from(loss.into_scalar::<f32>())))
}

/// The picture moved and mirrored; pixels that come in repeat the edge.
fn augmented(image: &[f32], size: usize, drawn: &Drawn) -> Vec<f32> {
    let last = size as i64 - 1;
    let [down, right] = drawn.shift;
    let mut out = Vec::with_capacity(image.len());
    for plane in image.chunks(size * size) {
        for row in 0..size as i64 {
            for column in 0..size as i64 {
                let column = if drawn.mirrored { last - column } else { column };
                let from_row = (row - down).clamp(0, last) as usize;
                let from_column = (column - right).clamp(0, last) as usize;
                out.push(plane[from_row * size + from_column]);
            }
        }
    }
    out
}

fn clamp_logit_scale(model: ClipModel) -> ClipModel {
    map_parameters(model, &mut |name, tensor| {
        if name == "logit_scale" { tensor.clamp_max(MAX_LOGIT_SCALE) } else { tensor }
    })
}

fn held_out_retrieval(
    clip: &Clip,
    data: &CaptionedImages<'_>,
    held_out: &[usize],
) -> Result<Option<RetrievalAccuracy>, ClipError> {
    if held_out.is_empty() {
        return Ok(None);
    }
    let images: Vec<&[f32]> = held_out.iter().map(|&i| data.images_unit[i]).collect();
    let captions: Vec<&str> = held_out.iter().map(|&i| data.captions[i].as_str()).collect();
    let (texts, _) = clip.text_embeds(&captions)?;
    Ok(Some(RetrievalAccuracy::of(&clip.image_embeds(&images)?, &texts, &captions)))
}

fn mean_of_last(losses: &[f64], count: usize) -> f64 {
    let last = &losses[losses.len().saturating_sub(count)..];
    last.iter().sum::<f64>() / last.len() as f64
}

/// What changes between steps, besides the weights.
struct TrainState {
    optimizer: AdamW,
    /// Of all steps so far.
    losses: Vec<f64>,
    step: usize,
}

/// The file a training can go on from.
struct Checkpoint {
    path: PathBuf,
    fingerprint: String,
}

const MODEL_PREFIX: &str = "model.";
const OPTIMIZER_PREFIX: &str = "optimizer.";

impl Checkpoint {
    fn save(&self, model: &ClipModel, state: &TrainState) -> Result<(), ClipError> {
        let optimizer = state.optimizer.to_state_dict();
        let mut all = StateDict::default();
        for (name, tensor) in to_state_dict(model).iter() {
            all.insert(format!("{MODEL_PREFIX}{name}"), tensor.clone());
        }
        for (name, tensor) in optimizer.iter() {
            all.insert(format!("{OPTIMIZER_PREFIX}{name}"), tensor.clone());
        }
        let losses = serde_json::to_string(&state.losses).expect("finite numbers make valid JSON");
        all.set_metadata("losses", losses);
        all.set_metadata("fingerprint", self.fingerprint.clone());
        Ok(all.save(&self.path)?)
    }

    fn load(
        &self,
        model: ClipModel,
        config: &TinyClipConfig,
        device: &Device,
    ) -> Result<(ClipModel, TrainState), ClipError> {
        let damaged = |reason: &str| ClipError::DamagedCheckpoint {
            path: self.path.clone(),
            reason: reason.to_owned(),
        };
        let all = StateDict::load(&self.path)?;
        if all.metadata().get("fingerprint") != Some(&self.fingerprint) {
            return Err(ClipError::OtherTraining { path: self.path.clone() });
        }
        let losses: Vec<f64> = all
            .metadata()
            .get("losses")
            .and_then(|losses| serde_json::from_str(losses).ok())
            .ok_or_else(|| damaged("it has no losses"))?;
        let (mut weights, mut moments) = (StateDict::default(), StateDict::default());
        for (name, tensor) in all.iter() {
            if let Some(name) = name.strip_prefix(MODEL_PREFIX) {
                weights.insert(name.to_owned(), tensor.clone());
            } else if let Some(name) = name.strip_prefix(OPTIMIZER_PREFIX) {
                moments.insert(name.to_owned(), tensor.clone());
            } else {
                return Err(damaged(&format!("`{name}` is neither a weight nor a moment")));
            }
        }
        let step = losses.len();
        moments.set_metadata("steps", step.to_string());
        let optimizer = AdamW::from_state_dict(config.adamw, &moments, device)?;
        let model = load_state_dict(model, &weights).map_err(|error| ClipError::Weights {
            path: self.path.clone(),
            source: Box::new(error),
        })?;
        Ok((model, TrainState { optimizer, losses, step }))
    }
}

/// A hash of all that decides what training gives.
fn fingerprint(config: &TinyClipConfig, data: &CaptionedImages<'_>, seed: u64) -> String {
    // How often a checkpoint is written changes nothing.
    let config = TinyClipConfig { checkpoint_every: 1, ..config.clone() };
    let config = serde_json::to_vec(&config).expect("finite numbers make valid JSON");
    let mut hash = Sha256::new();
    hash.update((config.len() as u64).to_le_bytes());
    hash.update(&config);
    hash.update(seed.to_le_bytes());
    hash.update((data.size as u64).to_le_bytes());
    for (image, caption) in data.images_unit.iter().zip(data.captions) {
        hash.update((caption.len() as u64).to_le_bytes());
        hash.update(caption.as_bytes());
        let bytes: Vec<u8> = image.iter().flat_map(|value| value.to_le_bytes()).collect();
        hash.update(&bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
