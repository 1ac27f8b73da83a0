//! The stages that judge: the data's description, the CLIP, samples of every row, their metrics.

use std::collections::BTreeMap;
use std::path::Path;

use deme_clip::{CaptionedImages, Clip, EMBEDDING_BATCH, train_tiny_clip};
use deme_data::{Picture, PreparedImages, grid, write_png};
use deme_decouple::{LossProbe, LossProbeConfig};
use deme_diffusion::{
    Denoiser, RangeEnsemble, SamplerConfig, SchedulerConfig, UNet2DModel, load_pipeline, sample,
};
use deme_eval::{
    ClipExtractor, FeatureExtractor, FeatureStats, Measurement, Protocol, SOFTWARE,
    bootstrap_spread, frechet_distance, frechet_metric, stream_features,
};
use deme_merge::{Dtype, StateDict, StoredTensor};
use serde::{Deserialize, Serialize};

use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::IN_MEMORY;
use crate::progress::Progress;
use crate::report::RealDistance;
use crate::run_dir::{resume_folder, seed_for, write_json};

use super::finetuning::Part;
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
    let images = context.prepared()?;
    let split = context.split();
    write_grid(&folder.join("grid.png"), images, &split.report)?;
    let captions = split.report.iter().filter_map(|&index| images.captions[index].clone());
    let facts = DataFacts {
        pictures: images.len(),
        parts: [split.train.len(), split.search.len(), split.report.len()],
        captions: images.captions.iter().all(Option::is_some),
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

/// A row's pictures: `images.safetensors` with `images`, U8 [N, H, W, 3], and `grid.png`.
pub fn samples(
    context: &Context<'_>,
    plan: &Plan,
    row: &RowPlan,
    folder: &Path,
) -> Result<(), Problem> {
    let sampling = &context.recipe.sampling;
    let models = row.models.iter().map(|path| load(context, path));
    let mut models: Vec<UNet2DModel> = models.collect::<Result<_, _>>()?;
    let ensemble;
    let denoiser: &dyn Denoiser = match models.as_slice() {
        [model] => model,
        _ => {
            let experts = std::mem::take(&mut models);
            ensemble = RangeEnsemble::new(experts, plan.scheduler.num_train_timesteps)
                .expect("there is one expert per range");
            &ensemble
        }
    };
    let drawing = Drawing {
        denoiser,
        scheduler: &plan.scheduler,
        sampler: &sampling.sampler,
        first_seed: sampling.first_seed,
        images: sampling.images,
    };
    let total = sampling.images as u64;
    let mut progress = Progress::start(context.voice, &format!("sampling {}", row.id), total);
    let pictures = drawing.draw_resumably(context, &resume_folder(folder)?, &mut progress)?;
    progress.finish(&format!("{} images", sampling.images));
    let shown: Vec<usize> = (0..pictures.len()).collect();
    write_grid(&folder.join("grid.png"), &pictures, &shown)?;
    save_pictures(&folder.join("images.safetensors"), &pictures)
}

/// Pictures to be drawn from a model.
pub struct Drawing<'a> {
    /// The model.
    pub denoiser: &'a dyn Denoiser,
    /// Its schedule.
    pub scheduler: &'a SchedulerConfig,
    /// The sampler.
    pub sampler: &'a SamplerConfig,
    /// Image i comes from seed `first_seed + i`.
    pub first_seed: u64,
    /// How many.
    pub images: usize,
}

impl Drawing<'_> {
    /// Draws all images.
    pub fn draw(&self, context: &Context<'_>) -> Result<PreparedImages, Problem> {
        self.draw_part(context, 0, self.images)
    }

    /// Draws images `from..to`.
    fn draw_part(
        &self,
        context: &Context<'_>,
        from: usize,
        to: usize,
    ) -> Result<PreparedImages, Problem> {
        let resolution = context.recipe.preparation.resolution;
        let side = resolution as usize;
        let seeds = (from..to).map(|i| self.first_seed.wrapping_add(i as u64));
        let drawn = sample(
            self.denoiser,
            self.scheduler,
            self.sampler,
            [3, side, side],
            &seeds.collect::<Vec<u64>>(),
            context.recipe.sampling.batch_size,
            &context.device,
            &mut |_| {},
        )?;
        let names: Vec<String> = (from..to).map(|i| i.to_string()).collect();
        let mut images = Vec::new();
        for (name, image) in names.iter().zip(&drawn) {
            images.extend(Picture::from_signed(name, image, resolution, resolution)?.pixels);
        }
        Ok(PreparedImages { resolution, images, captions: vec![None; names.len()], names })
    }

    /// Draws all images, keeping each finished batch in `resume`.
    fn draw_resumably(
        &self,
        context: &Context<'_>,
        resume: &Path,
        progress: &mut Progress,
    ) -> Result<PreparedImages, Problem> {
        let resolution = context.recipe.preparation.resolution;
        let batch_size = context.recipe.sampling.batch_size;
        let mut images = Vec::new();
        for from in (0..self.images).step_by(batch_size) {
            let to = (from + batch_size).min(self.images);
            let part = resume.join(format!("images-{from}-{to}.safetensors"));
            if !part.is_file() {
                save_pictures(&part, &self.draw_part(context, from, to)?)?;
            }
            images.extend(load_pictures(&part)?.images);
            progress.at(to as u64, "");
        }
        let names: Vec<String> = (0..self.images).map(|i| i.to_string()).collect();
        Ok(PreparedImages { resolution, images, captions: vec![None; names.len()], names })
    }
}

/// How often the generated images are resampled for the spread.
pub const BOOTSTRAP_DRAWS: u64 = 50;

/// A row's numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct RowMetrics {
    /// Entries of a feature.
    pub feature_dim: usize,
    /// The numbers and how each was made.
    pub measurements: Vec<Measurement>,
}

/// A row's Fréchet distance to the report's pictures, with the spread over resampled images.
pub fn metrics(
    context: &Context<'_>,
    plan: &Plan,
    row: &RowPlan,
    folder: &Path,
) -> Result<(), Problem> {
    let progress = Progress::start(context.voice, &format!("metrics {}", row.id), 0);
    let extractor = judge(context, plan)?;
    let generated = load_pictures(&row.samples.folder().join("images.safetensors"))?;
    let all: Vec<usize> = (0..generated.len()).collect();
    let generated = features(&*extractor, &generated, &all)?;
    let real = features(&*extractor, context.prepared()?, &context.split().report)?;
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
            guidance: None,
            first_seed: Some(sampling.first_seed),
            ema: Some(context.recipe.decouple.finetune.ema.enabled),
            software: SOFTWARE.to_owned(),
            model: row.id.clone(),
            model_hash: Some(row.samples.key.to_string()),
        },
    };
    progress.finish(&format!("{} {:.4}", frechet_metric(extractor.name()), measurement.value));
    let metrics = RowMetrics { feature_dim: extractor.dim(), measurements: vec![measurement] };
    write_json(&folder.join("metrics.json"), &metrics)
}

/// The distance of training pictures, as many as are generated where there are so many, to the report's:
/// what a model would score that gave its training pictures back. `real_distance.json`.
pub fn real_distance(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let progress = Progress::start(context.voice, "real pictures", 0);
    let extractor = judge(context, plan)?;
    let (train, pictures) = (&context.split().train, context.prepared()?);
    let train = &train[..train.len().min(context.recipe.sampling.images)];
    let stats = |indices: &[usize]| -> Result<FeatureStats, Problem> {
        Ok(FeatureStats::of(&features(&*extractor, pictures, indices)?)?)
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

/// The features of the pictures at `indices`.
pub fn features(
    extractor: &dyn FeatureExtractor,
    pictures: &PreparedImages,
    indices: &[usize],
) -> Result<Vec<Vec<f32>>, Problem> {
    let mut features = Vec::with_capacity(indices.len());
    let read = |position: usize| Ok::<_, Problem>(pictures.picture(indices[position]));
    stream_features(extractor, indices.len(), EMBEDDING_BATCH, &read, &mut |_, found| {
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
    let probe = loss_probe(context, plan, &context.split().report, images, seed)?;
    let mut table: Vec<(String, Vec<f64>)> = Vec::new();
    for (done, row) in single.iter().enumerate() {
        let model = load(context, &row.models[0])?;
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

/// A probe of the loss on the pictures at `indices`.
pub fn loss_probe(
    context: &Context<'_>,
    plan: &Plan,
    indices: &[usize],
    samples: usize,
    seed: u64,
) -> Result<LossProbe, Problem> {
    let config = LossProbeConfig { samples, seed, ..LossProbeConfig::default() };
    let data = Part::new(context, indices)?;
    let model = load(context, &plan.pretrained.folder().join("model"))?;
    let schedule = plan.scheduler.noise_schedule()?;
    Ok(LossProbe::new(&config, &data, &model, &schedule, plan.scheduler.prediction_type)?)
}

/// Loads a model an earlier stage left.
pub fn load(context: &Context<'_>, folder: &Path) -> Result<UNet2DModel, Problem> {
    Ok(load_pipeline(&folder.to_string_lossy(), &context.device)?.unet)
}

/// A grid of the first pictures.
fn write_grid(path: &Path, pictures: &PreparedImages, indices: &[usize]) -> Result<(), Problem> {
    let shown = indices.iter().take(GRID_SIDE * GRID_SIDE).map(|&i| pictures.picture(i));
    let shown: Vec<Picture> = shown.collect();
    let sheet = grid(&shown, GRID_SIDE, 1, [255; 3])?;
    Ok(write_png(path, &sheet)?)
}

/// `images`, U8 [N, H, W, 3].
fn save_pictures(path: &Path, pictures: &PreparedImages) -> Result<(), Problem> {
    let side = pictures.resolution as usize;
    let shape = vec![pictures.len(), side, side, 3];
    let mut state = StateDict::default();
    state.insert("images".into(), StoredTensor::new(Dtype::U8, shape, pictures.images.clone())?);
    Ok(state.save(path)?)
}

/// Reads what [`save_pictures`] wrote.
fn load_pictures(path: &Path) -> Result<PreparedImages, Problem> {
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
