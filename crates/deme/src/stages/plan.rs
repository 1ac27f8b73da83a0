//! The stages of a run and their keys.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deme_diffusion::{
    SchedulerConfig, TextToImagePipeline, TimestepRange, UNet2DConditionModel, UNet2DModel,
    load_pipeline,
};
use deme_merge::LandscapeConfig;
use deme_nn::{Init, to_state_dict};
use serde_json::json;

use crate::diagnostics::Problem;
use crate::extractors;
use crate::recipe::{PretrainedSection, Task};
use crate::report::RowKind;
use crate::run_dir::{StageSlot, seed_for};

use super::Context;
use super::network::Network;

/// Every stage of a run.
pub struct Plan {
    /// The pictures' description.
    pub data: StageSlot,
    /// The CLIP that judges, where the run trains it.
    pub clip: Option<StageSlot>,
    /// The pretrained model.
    pub pretrained: StageSlot,
    /// Captions and latents as a text-to-image network sees them.
    pub encodings: Option<StageSlot>,
    /// One expert per range.
    pub experts: Vec<StageSlot>,
    /// The joint baseline.
    pub joint: Option<StageSlot>,
    /// The search for merging weights, unless they are given.
    pub search: Option<StageSlot>,
    /// How many groups of tensors have weights of their own.
    pub num_groups: usize,
    /// The loss over a plane of two task vectors.
    pub landscape: Option<(StageSlot, LandscapeConfig)>,
    /// Lengths and angles of the task vectors.
    pub task_vectors: StageSlot,
    /// The experts merged with equal weights.
    pub uniform: StageSlot,
    /// The experts merged with the found or given weights.
    pub merged: StageSlot,
    /// The rows of the report.
    pub rows: Vec<RowPlan>,
    /// What the training pictures themselves score.
    pub real_distance: StageSlot,
    /// Held-out losses per range.
    pub range_losses: StageSlot,
    /// What the models do.
    pub task: Task,
    /// The experts' ranges.
    pub ranges: Vec<TimestepRange>,
    /// The noise schedule and prediction type.
    pub scheduler: SchedulerConfig,
    /// Parameters of the network.
    pub parameters: u64,
}

/// One row of the report: a model, its samples, their metrics.
pub struct RowPlan {
    /// Short name, as in `expert-2`.
    pub id: String,
    /// Name in tables.
    pub label: String,
    /// What the model is.
    pub kind: RowKind,
    /// The folder of the model, or of each expert of the ensemble.
    pub models: Vec<PathBuf>,
    /// Iterations of finetuning behind it.
    pub iterations: u64,
    /// Its samples.
    pub samples: StageSlot,
    /// Their metrics.
    pub metrics: StageSlot,
}

impl Plan {
    /// Plans a recipe's run in the folder `root`, which need not exist.
    ///
    /// # Errors
    /// Whatever is wrong with the recipe, the data or the pretrained model.
    pub fn new(context: &Context<'_>, root: &Path) -> Result<Self, Problem> {
        let recipe = context.recipe;
        let (seed, decouple) = (recipe.seed, &recipe.decouple);
        let slot = |name: &str, part: &serde_json::Value, inputs: &[&StageSlot]| {
            let inputs: Vec<_> = inputs.iter().map(|slot| &slot.key).collect();
            StageSlot::new(root, name, part, &inputs)
        };
        let Pretrained { part: pretrained_part, scheduler, parameters, num_groups } =
            Pretrained::of(context)?;
        let ranges = recipe.ranges(scheduler.num_train_timesteps)?;
        if recipe.merge.weights.is_none() {
            recipe.check_search(num_groups)?;
        }
        recipe.sampling.sampler.method(&scheduler)?;
        recipe.search_sampler().method(&scheduler)?;

        let data_part = json!({
            "content": context.content_hash()?,
            "preparation": recipe.preparation,
            "split": recipe.split,
        });
        let data = slot("data", &data_part, &[]);
        let clip = recipe.trains_clip().then(|| {
            let part =
                json!({ "config": recipe.evaluation.tiny_clip, "seed": seed_for(seed, "clip") });
            slot("clip", &part, &[&data])
        });
        // What lies at its weights' path decides an extractor's features, not the path.
        let extractor = match &recipe.evaluation.extractor {
            Some(config) => {
                let mut part = json!(config);
                part["weights"] =
                    json!(extractors::content_hash(&extractors::weights_path(config)?)?);
                part
            }
            None => json!(null),
        };
        let clip_score = match &recipe.evaluation.clip_score {
            Some(config) => {
                let weights = extractors::content_hash(&extractors::resolve(&config.weights)?)?;
                json!({ "weights": weights, "architecture": config.architecture })
            }
            None => json!(null),
        };
        let scratch = recipe.pretrained.from == "scratch";
        let encodings_part = json!({
            "skipped_layers": recipe.pretrained.skipped_layers,
            "seed": seed_for(seed, "latents"),
        });
        let text_to_image = recipe.is_text_to_image();
        let (pretrained, encodings) = match (text_to_image, scratch) {
            (false, _) => (slot("pretrained", &pretrained_part, &[&data]), None),
            (true, true) => {
                let clip = clip.as_ref().expect("text encoders from scratch are trained");
                let encodings = slot("encodings", &encodings_part, &[&data, clip]);
                let inputs = [&data, clip, &encodings];
                (slot("pretrained", &pretrained_part, &inputs), Some(encodings))
            }
            (true, false) => {
                let pretrained = slot("pretrained", &pretrained_part, &[]);
                let encodings = slot("encodings", &encodings_part, &[&data, &pretrained]);
                (pretrained, Some(encodings))
            }
        };
        let mut training_inputs = vec![&data, &pretrained];
        training_inputs.extend(&encodings);
        let experts: Vec<StageSlot> = ranges
            .iter()
            .enumerate()
            .map(|(index, range)| {
                let part = json!({
                    "finetune": decouple.finetune,
                    "range": [range.low, range.high],
                    "seed": seed_for(seed, &format!("expert {index}")),
                });
                slot(&format!("expert-{}", index + 1), &part, &training_inputs)
            })
            .collect();
        let joint = recipe.joint.enabled.then(|| {
            let part = json!({
                "finetune": recipe.joint_finetune(),
                "seed": seed_for(seed, "joint"),
            });
            slot("joint", &part, &training_inputs)
        });

        let judge: Vec<&StageSlot> = clip.iter().collect();
        let mut merge_inputs = vec![&pretrained];
        merge_inputs.extend(&experts);
        let search = recipe.merge.weights.is_none().then(|| {
            let mut inputs = vec![&data];
            inputs.extend(&encodings);
            inputs.extend(&merge_inputs);
            let mut part = json!({
                "groups": recipe.merge.groups,
                "objective": recipe.merge.objective,
                "search": recipe.merge.search,
                "seed": seed_for(seed, "search"),
            });
            if recipe.merge.objective.drawing().is_some() {
                inputs.extend(&judge);
                part["sampler"] = json!(recipe.sampling.sampler);
                part["extractor"] = extractor.clone();
                if text_to_image {
                    part["guidance"] = json!(recipe.guidance());
                }
            }
            slot("search", &part, &inputs)
        });
        let landscape = recipe.merge.landscape.as_ref().and_then(|section| {
            let config = section.config(ranges.len())?;
            let mut inputs = vec![&data];
            inputs.extend(&encodings);
            inputs.extend(&merge_inputs);
            let seed = seed_for(seed, "search");
            let part = json!({ "plane": config, "images": section.images, "seed": seed });
            Some((slot("landscape", &part, &inputs), config))
        });
        let task_vectors = slot("task-vectors", &json!({}), &merge_inputs);
        let uniform = slot("uniform", &json!({}), &merge_inputs);
        let merged = {
            let mut inputs = merge_inputs.clone();
            inputs.extend(&search);
            slot("merged", &json!({ "weights": recipe.merge.weights }), &inputs)
        };

        let row =
            |id: &str, label: String, kind: RowKind, models: &[&StageSlot], iterations: u64| {
                let sampling = &recipe.sampling;
                let mut samples_part = json!({
                    "sampler": sampling.sampler,
                    "images": sampling.images,
                    "first_seed": sampling.first_seed,
                    "resolution": recipe.preparation.resolution,
                });
                let mut inputs = models.to_vec();
                let mut metrics_part = json!({ "extractor": extractor });
                if let Some(encodings) = &encodings {
                    inputs.extend([&data, &pretrained, encodings]);
                    samples_part["guidance"] = json!(recipe.guidance());
                    metrics_part["clip_score"] = clip_score.clone();
                }
                let samples = slot(&format!("samples-{id}"), &samples_part, &inputs);
                let mut inputs = vec![&samples, &data];
                inputs.extend(&judge);
                let metrics = slot(&format!("metrics-{id}"), &metrics_part, &inputs);
                RowPlan {
                    id: id.to_owned(),
                    label,
                    kind,
                    models: models.iter().map(|slot| slot.folder().join("model")).collect(),
                    iterations,
                    samples,
                    metrics,
                }
            };
        let per_range = decouple.finetune.iterations;
        let total = per_range * ranges.len() as u64;
        let mut rows = vec![row("before", "before".into(), RowKind::Before, &[&pretrained], 0)];
        if let Some(joint) = &joint {
            rows.push(row("joint", "joint finetuning".into(), RowKind::Joint, &[joint], total));
        }
        for (index, (expert, range)) in experts.iter().zip(&ranges).enumerate() {
            let number = index + 1;
            let label = format!("expert {number} ({}..{})", range.low, range.high);
            let id = format!("expert-{number}");
            rows.push(row(&id, label, RowKind::Expert, &[expert], per_range));
        }
        let all: Vec<&StageSlot> = experts.iter().collect();
        rows.push(row("ensemble", "ensemble by range".into(), RowKind::Ensemble, &all, total));
        rows.push(row(
            "uniform",
            "merged, uniform 1/N".into(),
            RowKind::Uniform,
            &[&uniform],
            total,
        ));
        let (label, kind) = match search {
            Some(_) => ("merged, searched", RowKind::Searched),
            None => ("merged, given weights", RowKind::Fixed),
        };
        rows.push(row("merged", label.into(), kind, &[&merged], total));

        let real_distance = {
            let mut inputs = vec![&data];
            inputs.extend(&judge);
            let part = json!({ "images": recipe.sampling.images, "extractor": extractor });
            slot("real-distance", &part, &inputs)
        };
        let range_losses = {
            let mut inputs = vec![&data, &pretrained, &uniform, &merged];
            inputs.extend(&encodings);
            inputs.extend(&experts);
            inputs.extend(&joint);
            let part = json!({
                "images": recipe.evaluation.loss_images,
                "seed": seed_for(seed, "range losses"),
            });
            slot("range-losses", &part, &inputs)
        };
        Ok(Self {
            data,
            clip,
            pretrained,
            encodings,
            experts,
            joint,
            search,
            num_groups,
            landscape,
            task_vectors,
            uniform,
            merged,
            rows,
            real_distance,
            range_losses,
            task: recipe.pretrained.task,
            ranges,
            scheduler,
            parameters,
        })
    }

    /// Whether the pretrained model is made of the encodings, and not the other way round.
    pub fn pretrains(&self) -> bool {
        let pretrained = self.pretrained.key.to_string();
        let inputs = self.encodings.as_ref().map(StageSlot::inputs);
        !inputs.is_some_and(|inputs| inputs.iter().any(|key| key.to_string() == pretrained))
    }

    /// All stages, in the order in which they run.
    pub fn stages(&self) -> Vec<&StageSlot> {
        let mut stages = vec![&self.data];
        stages.extend(&self.clip);
        if self.pretrains() {
            stages.extend(&self.encodings);
            stages.push(&self.pretrained);
        } else {
            stages.push(&self.pretrained);
            stages.extend(&self.encodings);
        }
        stages.extend(&self.experts);
        stages.extend(&self.joint);
        stages.extend(&self.search);
        stages.extend(self.landscape.iter().map(|(slot, _)| slot));
        stages.push(&self.task_vectors);
        stages.extend([&self.uniform, &self.merged]);
        stages.extend(self.rows.iter().map(|row| &row.samples));
        stages.extend(self.rows.iter().map(|row| &row.metrics));
        stages.extend([&self.real_distance, &self.range_losses]);
        stages
    }
}

/// A given pretrained model.
pub enum Given {
    /// A UNet and its schedule.
    Unconditional(Box<UNet2DModel>, SchedulerConfig),
    /// A whole pipeline.
    TextToImage(Box<TextToImagePipeline>),
}

/// Loads the given pretrained model; `None` when it is to be trained.
pub fn given_pretrained(context: &Context<'_>) -> Result<Option<Given>, Problem> {
    let PretrainedSection { from, scheduler, task, .. } = &context.recipe.pretrained;
    if from == "scratch" {
        return Ok(None);
    }
    if *task == Task::TextToImage {
        let pipeline = TextToImagePipeline::load(from, &context.device)?;
        return Ok(Some(Given::TextToImage(Box::new(pipeline))));
    }
    let model = load_pipeline(from, &context.device)?;
    let scheduler =
        model.scheduler.or_else(|| scheduler.clone()).ok_or_else(|| Problem::Impossible {
            message: format!("{from} names no noise schedule"),
            help: "add its scheduler_config.json, or a table [pretrained.scheduler] to the recipe"
                .into(),
        })?;
    Ok(Some(Given::Unconditional(Box::new(model.unet), scheduler)))
}

/// Its ids tell vocabularies apart.
const PROBE_TEXT: &str = "A photograph of two astronauts, riding a (blue) horse; 24mm & f/1.8!";

/// What is known of the pretrained model before any work.
struct Pretrained {
    /// The recipe part of its stage.
    part: serde_json::Value,
    scheduler: SchedulerConfig,
    parameters: u64,
    num_groups: usize,
}

impl Pretrained {
    fn of(context: &Context<'_>) -> Result<Self, Problem> {
        let section = &context.recipe.pretrained;
        let side = context.recipe.preparation.resolution as usize;
        let pixels = [3, side, side];
        let (part, network, scheduler, shape) = match given_pretrained(context)? {
            Some(Given::Unconditional(unet, scheduler)) => {
                let hash = to_state_dict(&*unet).content_hash();
                let part =
                    json!({ "weights": hash, "unet": unet.config(), "scheduler": scheduler });
                (part, Network::Unconditional(*unet), scheduler, pixels)
            }
            Some(Given::TextToImage(pipeline)) => {
                let TextToImagePipeline { unet, vae, text_encoder, tokenizer, scheduler } =
                    *pipeline;
                let part = json!({
                    "weights": to_state_dict(&unet).content_hash(),
                    "unet": unet.config(),
                    "vae": vae.as_ref().map(|vae| to_state_dict(vae).content_hash()),
                    "vae_config": vae.as_ref().map(|vae| vae.config()),
                    "text_encoder": to_state_dict(&text_encoder).content_hash(),
                    "text_encoder_config": text_encoder.config(),
                    "tokenizer": tokenizer.encode(&[PROBE_TEXT])?.ids,
                    "scheduler": scheduler,
                });
                let layers = text_encoder.config().num_hidden_layers;
                context.recipe.check_skipped_layers(layers)?;
                if vae.is_some() && context.recipe.decouple.finetune.horizontal_flip {
                    return Err(Problem::Impossible {
                        message: "decouple.finetune.horizontal_flip = true: the model works on latents, which \
                                  cannot be mirrored"
                            .into(),
                        help: "remove the key, or put mirrored pictures into the data".into(),
                    });
                }
                let shape = match &vae {
                    None => pixels,
                    Some(vae) => vae.config().latent_shape(pixels)?,
                };
                (part, Network::TextToImage(unet), scheduler, shape)
            }
            None => {
                let scheduler = section.scheduler.clone().unwrap_or_default();
                let seed = seed_for(context.recipe.seed, "pretraining");
                let init = &mut Init::new(seed, &context.device);
                let mut part = json!({
                    "unet": section.unet,
                    "scheduler": scheduler,
                    "training": section.training,
                    "seed": seed,
                });
                let network = match (&section.unet, &section.conditional_unet) {
                    (Some(unet), _) => Network::Unconditional(UNet2DModel::new(unet, init)?),
                    (None, Some(unet)) => {
                        part["unet"] = json!(unet);
                        Network::TextToImage(UNet2DConditionModel::new(unet, init)?)
                    }
                    (None, None) => unreachable!("a recipe from scratch has a network"),
                };
                (part, network, scheduler, pixels)
            }
        };
        check_image_shape(&network, side, shape)?;
        let shapes = network.parameter_shapes();
        let parameters = shapes.iter().map(|p| p.shape.iter().product::<usize>() as u64).sum();
        let groups = context.recipe.merge.groups;
        let groups: BTreeSet<&str> = shapes.iter().map(|p| groups.of(&p.name)).collect();
        Ok(Self { part, scheduler, parameters, num_groups: groups.len() })
    }
}

/// The pictures or their latents must pass through the network, and come out as such.
fn check_image_shape(network: &Network, side: usize, shape: [usize; 3]) -> Result<(), Problem> {
    let (fits, out_channels) = match network {
        Network::Unconditional(unet) => {
            (unet.config().check_image_shape(shape), unet.config().out_channels)
        }
        Network::TextToImage(unet) => {
            (unet.config().check_image_shape(shape), unet.config().out_channels)
        }
    };
    fits.map_err(|error| Problem::Impossible {
        message: format!("preparation.resolution = {side}: {error}"),
        help: "choose another resolution or another network".into(),
    })?;
    let channels = shape[0];
    if out_channels != channels {
        return Err(Problem::Impossible {
            message: format!(
                "the network gives {out_channels} channels, what it is trained on has {channels}"
            ),
            help: format!("use a network with out_channels = {channels}"),
        });
    }
    Ok(())
}
