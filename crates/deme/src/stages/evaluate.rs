//! The stages that judge: the data's description, the CLIP, samples of every row, their metrics.

use std::collections::BTreeMap;
use std::path::Path;

use deme_clip::{CaptionedImages, Clip, EMBEDDING_BATCH, train_tiny_clip};
use deme_data::{Picture, PreparedImages, grid, write_png};
use deme_decouple::LossProbeConfig;
use deme_eval::{
    ClipExtractor, ClipScore, FeatureExtractor, FeatureStats, Measurement, Protocol, SOFTWARE,
    bootstrap_spread, clip_scores, frechet_distance, frechet_metric, prepare_for_clip,
    stream_features,
};
use deme_merge::{Dtype, StateDict, StoredTensor};
use serde::{Deserialize, Serialize};

use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::IN_MEMORY;
use crate::progress::Progress;
use crate::recipe::ClipScoreConfig;
use crate::report::RealDistance;
use crate::run_dir::{read_json, resume_folder, seed_for, write_json};

use super::drawing::{Drawing, Prompts, Source};
use super::network::{Network, Probe};
use super::{Context, Plan, RowPlan};

/// Pictures of a grid in the report, square.
const GRID_SIDE: usize = 6;

/// What the report says of the data.
#[derive(Debug, Serialize, Deserialize)]
pub struct DataFacts {
    /// Pictures in all.
    pub pictures: usize,
    /// Pictures that train, guide the search, judge.
    pub parts: [usize; 3],
    /// Whether every picture has a caption.
    pub captions: bool,
    /// A few captions.
    pub examples: Vec<String>,
}

/// Counts, example captions, and a grid of real pictures of the report's part.
pub fn describe_data(context: &Context<'_>, folder: &Path) -> Result<(), Problem> {
    let (data, split) = (context.data(), context.split());
    let shown = split.report.iter().take(GRID_SIDE * GRID_SIDE);
    write_grid(
        &folder.join("grid.png"),
        &shown.map(|&index| context.reader()(index)).collect::<Result<Vec<_>, _>>()?,
    )?;
    let captions = split.report.iter().filter_map(|&index| data.example(index).caption.clone());
    let facts = DataFacts {
        pictures: data.len(),
        parts: [split.train.len(), split.search.len(), split.report.len()],
        captions: data.has_captions(),
        examples: captions.take(5).collect(),
    };
    write_json(&folder.join("data.json"), &facts)
}

/// A CLIP of the training pictures and their captions, in `clip/`.
pub fn train_clip(context: &Context<'_>, folder: &Path) -> Result<(), Problem> {
    let images = context.prepared()?;
    let train = &context.split().train;
    let pixels: Vec<Vec<f32>> =
        train.iter().map(|&i| unit_from_signed(images.image_signed(i))).collect();
    let pixels: Vec<&[f32]> = pixels.iter().map(Vec::as_slice).collect();
    let captions = train.iter().map(|&i| images.captions[i].clone().unwrap_or_default());
    let captions: Vec<String> = captions.collect();
    let data = CaptionedImages {
        size: images.resolution as usize,
        images_unit: &pixels,
        captions: &captions,
    };
    let config = &context.recipe.evaluation.tiny_clip;
    let resume = resume_folder(folder)?;
    let mut progress = Progress::start(context.voice, "CLIP", config.steps as u64);
    let seed = seed_for(context.recipe.seed, "clip");
    let trained = train_tiny_clip(config, data, seed, Some(&resume), &context.device, &mut |at| {
        progress.at(at.step as u64, &format!("loss {:.3}", at.loss));
    })?;
    trained.clip.save(&folder.join("clip"))?;
    progress.finish(&match &trained.report.held_out {
        Some(accuracy) => format!("held-out retrieval {accuracy}"),
        None => String::new(),
    });
    write_json(&folder.join("clip_report.json"), &trained.report)
}

/// A row's pictures: `images.safetensors` with `images`, U8 [N, H, W, 3], `grid.png`, and of text to image
/// `prompts.json`, the caption each is drawn for.
pub fn samples(
    context: &Context<'_>,
    plan: &Plan,
    row: &RowPlan,
    folder: &Path,
) -> Result<(), Problem> {
    let sampling = &context.recipe.sampling;
    let models = row.models.iter().map(|path| Network::load(plan.task, path, &context.device));
    let prompts = Prompts::of(context, plan, &context.split().report)?;
    let drawing = Drawing {
        source: Source::of(plan, models.collect::<Result<_, _>>()?),
        prompts: prompts.as_ref(),
        scheduler: &plan.scheduler,
        sampler: &sampling.sampler,
        first_seed: sampling.first_seed,
        images: sampling.images,
    };
    let total = sampling.images as u64;
    let mut progress = Progress::start(context.voice, &format!("sampling {}", row.id), total);
    let pictures = drawing.draw_resumably(context, &resume_folder(folder)?, &mut progress)?;
    progress.finish(&format!("{} images", sampling.images));
    let shown = 0..pictures.len().min(GRID_SIDE * GRID_SIDE);
    let shown: Vec<Picture> = shown.map(|index| pictures.picture(index)).collect();
    write_grid(&folder.join("grid.png"), &shown)?;
    if let Some(prompts) = &prompts {
        write_json(&folder.join(PROMPTS_FILE), &prompts.captions(context, pictures.len()))?;
    }
    save_pictures(&folder.join("images.safetensors"), &pictures)
}

/// The captions of a row's pictures, in the folder of its samples.
pub const PROMPTS_FILE: &str = "prompts.json";

/// How often the generated images are resampled for the spread.
pub const BOOTSTRAP_DRAWS: u64 = 50;

/// A row's numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct RowMetrics {
    /// Entries of a feature.
    pub feature_dim: usize,
    /// The numbers and how each was made.
    pub measurements: Vec<Measurement>,
    /// The mean CLIP score of the pictures with the different captions of other pictures, where there is a CLIP
    /// score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffled_clip_score: Option<f64>,
}

/// A row's Fréchet distance to the report's pictures, with the spread over resampled images; for text to image also
/// its CLIP score.
pub fn metrics(
    context: &Context<'_>,
    plan: &Plan,
    row: &RowPlan,
    folder: &Path,
) -> Result<(), Problem> {
    let progress = Progress::start(context.voice, &format!("metrics {}", row.id), 0);
    let extractor = judge(context, plan)?;
    let pictures = load_pictures(&row.samples.folder().join("images.safetensors"))?;
    let generated = features_of(&*extractor, &pictures)?;
    let real = features(context, &*extractor, &context.split().report)?;
    let reference = FeatureStats::of(&real)?;
    let distance = frechet_distance(&FeatureStats::of(&generated)?, &reference)?;
    let seed = seed_for(context.recipe.seed, "bootstrap");
    let spread = bootstrap_spread(&generated, &reference, BOOTSTRAP_DRAWS, seed)?;
    let sampling = &context.recipe.sampling;
    let measurement = Measurement {
        value: distance.distance,
        std_error: Some(spread),
        notes: distance.notes(),
        protocol: Protocol {
            metric: frechet_metric(extractor.name()),
            settings: BTreeMap::new(),
            extractor: Some(extractor.name().to_owned()),
            extractor_hash: Some(extractor.weights_hash().to_owned()),
            resizing: Some(extractor.resizing().to_owned()),
            image_format: Some(IN_MEMORY.to_owned()),
            image_count: Some(generated.len() as u64),
            reference_format: Some(IN_MEMORY.to_owned()),
            reference_count: Some(real.len() as u64),
            reference_hash: Some(plan.data.key.to_string()),
            sampler: Some(sampling.sampler.kind.name().to_owned()),
            steps: Some(sampling.sampler.steps),
            eta: Some(sampling.sampler.eta),
            guidance: context.recipe.is_text_to_image().then(|| context.recipe.guidance().scale),
            first_seed: Some(sampling.first_seed),
            ema: Some(context.recipe.decouple.finetune.ema.enabled),
            software: SOFTWARE.to_owned(),
            model: row.id.clone(),
            model_hash: Some(row.samples.key.to_string()),
        },
    };
    let mut said = format!("{} {:.4}", frechet_metric(extractor.name()), measurement.value);
    let mut metrics = RowMetrics {
        feature_dim: extractor.dim(),
        measurements: vec![measurement],
        shuffled_clip_score: None,
    };
    if let Some(clip) = score_clip(context, plan)? {
        let prompts: Vec<String> = read_json(&row.samples.folder().join(PROMPTS_FILE))?;
        let found = scores_with_prompts(&clip, &pictures, &prompts)?;
        said += &format!(", CLIP score {:.2}", found.own.mean);
        let alike = &metrics.measurements[0].protocol;
        let protocol = Protocol {
            metric: CLIP_SCORE.to_owned(),
            extractor: Some("clip".to_owned()),
            extractor_hash: Some(clip.model.weights_hash()),
            resizing: Some(clip.preprocessor.description()),
            reference_format: None,
            reference_count: None,
            reference_hash: None,
            ..alike.clone()
        };
        metrics.measurements.push(Measurement {
            value: found.own.mean,
            std_error: found.own.std_error,
            notes: Vec::new(),
            protocol,
        });
        metrics.shuffled_clip_score = found.shuffled;
    }
    progress.finish(&said);
    write_json(&folder.join("metrics.json"), &metrics)
}

/// The metric's name in `metrics.json`.
pub const CLIP_SCORE: &str = "clip_score";

/// The CLIP of the CLIP score: the recipe's, or the one the run trained; none where pictures have no captions of
/// their own.
fn score_clip(context: &Context<'_>, plan: &Plan) -> Result<Option<Clip>, Problem> {
    if !context.recipe.is_text_to_image() {
        return Ok(None);
    }
    match (&context.recipe.evaluation.clip_score, &plan.clip) {
        (Some(ClipScoreConfig { weights, architecture }), _) => {
            let path = extractors::resolve(weights)?;
            Ok(Some(Clip::open(&path, architecture.as_deref(), &context.device)?))
        }
        (None, Some(slot)) => Ok(Some(Clip::load(&slot.folder().join("clip"), &context.device)?)),
        (None, None) => Ok(None),
    }
}

/// CLIP scores of pictures with prompts.
struct PromptScores {
    /// Each picture with its own prompt.
    own: ClipScore,
    /// Mean over each picture with all other prompts whose words are different; none where all are the same.
    shuffled: Option<f64>,
}

fn scores_with_prompts(
    clip: &Clip,
    pictures: &PreparedImages,
    prompts: &[String],
) -> Result<PromptScores, Problem> {
    let mut different: Vec<&str> = prompts.iter().map(String::as_str).collect();
    different.sort_unstable();
    different.dedup();
    let (texts, _) = clip.caption_embeds(&different)?;
    let mut images = Vec::with_capacity(pictures.len());
    for from in (0..pictures.len()).step_by(EMBEDDING_BATCH) {
        let batch = from..(from + EMBEDDING_BATCH).min(pictures.len());
        let prepared: Vec<Vec<f32>> = batch
            .map(|index| prepare_for_clip(&clip.preprocessor, &pictures.picture(index)))
            .collect();
        let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
        images.extend(clip.image_embeds(&prepared)?);
    }
    let mut own = Vec::with_capacity(images.len());
    let mut others = (0.0, 0u64);
    for (image, prompt) in images.into_iter().zip(prompts) {
        let scores = clip_scores(&vec![image; texts.len()], &texts)?;
        let mine = different.binary_search(&prompt.as_str()).expect("the prompt is among them");
        own.push(scores[mine]);
        others.0 += scores.iter().sum::<f64>() - scores[mine];
        others.1 += scores.len() as u64 - 1;
    }
    let shuffled = (others.1 > 0).then(|| others.0 / others.1 as f64);
    Ok(PromptScores { own: ClipScore::of(&own)?, shuffled })
}

/// The distance of training pictures, as many as are generated where there are so many, to the report's:
/// what a model would score that gave its training pictures back. `real_distance.json`.
pub fn real_distance(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let progress = Progress::start(context.voice, "real pictures", 0);
    let extractor = judge(context, plan)?;
    let train = &context.split().train;
    let train = &train[..train.len().min(context.recipe.sampling.images)];
    let stats = |indices: &[usize]| -> Result<FeatureStats, Problem> {
        Ok(FeatureStats::of(&features(context, &*extractor, indices)?)?)
    };
    let distance = frechet_distance(&stats(train)?, &stats(&context.split().report)?)?.distance;
    progress.finish(&format!("{} {distance:.4}", frechet_metric(extractor.name())));
    let found =
        RealDistance { metric: frechet_metric(extractor.name()), pictures: train.len(), distance };
    write_json(&folder.join("real_distance.json"), &found)
}

/// The extractor that judges: the recipe's, or the run's own CLIP as `tiny_clip`.
pub fn judge(context: &Context<'_>, plan: &Plan) -> Result<Box<dyn FeatureExtractor>, Problem> {
    match (&context.recipe.evaluation.extractor, &plan.clip) {
        (Some(config), _) => extractors::open(config, &context.device),
        (None, Some(slot)) => {
            let clip = Clip::load(&slot.folder().join("clip"), &context.device)?;
            Ok(Box::new(ClipExtractor::tiny(clip)))
        }
        (None, None) => unreachable!("a run trains a CLIP when no extractor is given"),
    }
}

/// The features of the run's pictures at `indices`.
pub fn features(
    context: &Context<'_>,
    extractor: &dyn FeatureExtractor,
    indices: &[usize],
) -> Result<Vec<Vec<f32>>, Problem> {
    let picture = context.reader();
    collect_features(extractor, indices.len(), &|position| picture(indices[position]))
}

/// The features of generated pictures.
pub fn features_of(
    extractor: &dyn FeatureExtractor,
    pictures: &PreparedImages,
) -> Result<Vec<Vec<f32>>, Problem> {
    collect_features(extractor, pictures.len(), &|index| Ok(pictures.picture(index)))
}

fn collect_features(
    extractor: &dyn FeatureExtractor,
    count: usize,
    read: &(dyn Fn(usize) -> Result<Picture, Problem> + Sync),
) -> Result<Vec<Vec<f32>>, Problem> {
    let mut features = Vec::with_capacity(count);
    stream_features(extractor, count, EMBEDDING_BATCH, &read, &mut |_, found| {
        features.push(found?.feature);
        Ok(())
    })?;
    Ok(features)
}

/// [-1, 1] to [0, 1].
fn unit_from_signed(image_signed: Vec<f32>) -> Vec<f32> {
    image_signed.into_iter().map(|x| x * 0.5 + 0.5).collect()
}

/// Each model's loss in each range, on the report's pictures: `range_losses.json`.
pub fn range_losses(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let seed = seed_for(context.recipe.seed, "range losses");
    let images = context.recipe.evaluation.loss_images;
    let single: Vec<&RowPlan> = plan.rows.iter().filter(|row| row.models.len() == 1).collect();
    let mut progress = Progress::start(context.voice, "losses per range", single.len() as u64);
    let config = LossProbeConfig { samples: images, seed, ..LossProbeConfig::default() };
    let probe = Probe::new(context, plan, &context.split().report, &config)?;
    let mut table: Vec<(String, Vec<f64>)> = Vec::new();
    for (done, row) in single.iter().enumerate() {
        let model = Network::load(plan.task, &row.models[0], &context.device)?;
        let losses = probe.loss_per_range(&model, &plan.ranges);
        let losses: Option<Vec<f64>> = losses.into_iter().collect();
        let losses = losses.ok_or_else(|| Problem::Impossible {
            message: format!(
                "evaluation.loss_images = {images} leaves a timestep range without one"
            ),
            help: format!("take at least {} images", plan.ranges.len()),
        })?;
        table.push((row.label.clone(), losses));
        progress.at(done as u64 + 1, "");
    }
    progress.finish("");
    write_json(&folder.join("range_losses.json"), &table)
}

fn write_grid(path: &Path, shown: &[Picture]) -> Result<(), Problem> {
    let sheet = grid(shown, GRID_SIDE, 1, [255; 3])?;
    Ok(write_png(path, &sheet)?)
}

/// `images`, U8 [N, H, W, 3].
pub fn save_pictures(path: &Path, pictures: &PreparedImages) -> Result<(), Problem> {
    let side = pictures.resolution as usize;
    let shape = vec![pictures.len(), side, side, 3];
    let mut state = StateDict::default();
    state.insert("images".into(), StoredTensor::new(Dtype::U8, shape, pictures.images.clone())?);
    Ok(state.save(path)?)
}

/// Reads what [`save_pictures`] wrote.
pub fn load_pictures(path: &Path) -> Result<PreparedImages, Problem> {
    let state = StateDict::load(path)?;
    let broken =
        |reason: &str| Problem::BrokenArtefact { path: path.to_owned(), reason: reason.to_owned() };
    let images = state.get("images").ok_or_else(|| broken("it holds no tensor `images`"))?;
    let &[count, height, width, 3] = images.shape() else {
        return Err(broken("`images` is not [N, H, W, 3]"));
    };
    if height != width || images.dtype() != Dtype::U8 {
        return Err(broken("`images` holds no square 8-bit pictures"));
    }
    Ok(PreparedImages {
        resolution: height as u32,
        images: images.bytes().to_vec(),
        captions: vec![None; count],
        names: (0..count).map(|i| i.to_string()).collect(),
    })
}
