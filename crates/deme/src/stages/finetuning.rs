//! The stages that train: pretraining from scratch, the experts, the joint baseline.
//!
//! Each leaves `model/` and `losses.json`. `model/` is a diffusers folder; of a text-to-image run the pretrained
//! model has the whole pipeline, the others the UNet alone.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use deme_data::{EpochOrder, PreparedImages};
use deme_decouple::{
    Event, FinetuneConfig, FinetuneTask, Finetuned, LossLog, TrainingImages, finetune,
};
use deme_diffusion::{
    NoisePredictor, TextToImagePipeline, TimestepRange, UNet2DConditionModel, UNet2DModel,
    save_pipeline,
};
use deme_nn::Init;

use crate::diagnostics::Problem;
use crate::progress::Progress;
use crate::run_dir::{resume_folder, seed_for, write_json};

use super::encodings::{CaptionedPart, Encoders, Encodings};
use super::network::Network;
use super::plan::{Given, given_pretrained};
use super::{Context, Plan};

/// One part of the pictures.
pub struct Part<'a> {
    images: &'a PreparedImages,
    indices: &'a [usize],
    fingerprint: String,
}

impl<'a> Part<'a> {
    /// The pictures at `indices`.
    pub fn new(context: &'a Context<'_>, indices: &'a [usize]) -> Result<Self, Problem> {
        Ok(Self { images: context.prepared()?, indices, fingerprint: context.content_hash()? })
    }
}

impl TrainingImages for Part<'_> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn image_shape(&self) -> [usize; 3] {
        let side = self.images.resolution as usize;
        [3, side, side]
    }

    fn image_signed(&self, index: usize) -> Vec<f32> {
        self.images.image_signed(self.indices[index])
    }

    fn condition(&self, _: &[Option<usize>], _: &Device) {}

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// The pretrained model: given, or trained from scratch.
pub fn pretrained(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let target = folder.join("model");
    match given_pretrained(context)? {
        Some(Given::Unconditional(unet, scheduler)) => {
            return Ok(save_pipeline(&target, &unet, &scheduler)?);
        }
        Some(Given::TextToImage(pipeline)) => return Ok(pipeline.save(&target)?),
        None => {}
    }
    let section = &context.recipe.pretrained;
    let config = section.training.as_ref().expect("a recipe from scratch has a training");
    let seed = seed_for(context.recipe.seed, "pretraining");
    let init = &mut Init::new(seed, &context.device);
    let network = match (&section.unet, &section.conditional_unet) {
        (Some(unet), _) => Network::Unconditional(UNet2DModel::new(unet, init)?),
        (None, Some(unet)) => Network::TextToImage(UNet2DConditionModel::new(unet, init)?),
        (None, None) => unreachable!("a recipe from scratch has a network"),
    };
    let whole = TimestepRange { low: 0, high: plan.scheduler.num_train_timesteps };
    let training = Training { name: "pretraining", config, range: whole, seed };
    let (trained, losses) = train(context, plan, training, &network, false, folder)?;
    match trained {
        Network::Unconditional(unet) => save_pipeline(&target, &unet, &plan.scheduler)?,
        Network::TextToImage(unet) => {
            let Encoders { text_encoder, tokenizer, vae } = Encoders::load(context, plan)?;
            let scheduler = plan.scheduler.clone();
            TextToImagePipeline { unet, vae, text_encoder, tokenizer, scheduler }.save(&target)?;
        }
    }
    write_json(&folder.join("losses.json"), &losses)
}

/// One expert, on its own range.
pub fn expert(
    context: &Context<'_>,
    plan: &Plan,
    index: usize,
    folder: &Path,
) -> Result<(), Problem> {
    let training = Training {
        name: &format!("expert {}", index + 1),
        config: &context.recipe.decouple.finetune,
        range: plan.ranges[index],
        seed: seed_for(context.recipe.seed, &format!("expert {index}")),
    };
    finetune_pretrained(context, plan, training, true, folder)
}

/// The joint baseline: the whole range, the total number of iterations.
pub fn joint(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let training = Training {
        name: "joint",
        config: &context.recipe.joint_finetune(),
        range: TimestepRange { low: 0, high: plan.scheduler.num_train_timesteps },
        seed: seed_for(context.recipe.seed, "joint"),
    };
    finetune_pretrained(context, plan, training, false, folder)
}

/// What distinguishes one training from another.
struct Training<'a> {
    name: &'a str,
    config: &'a FinetuneConfig,
    range: TimestepRange,
    seed: u64,
}

fn finetune_pretrained(
    context: &Context<'_>,
    plan: &Plan,
    training: Training<'_>,
    has_teacher: bool,
    folder: &Path,
) -> Result<(), Problem> {
    let pretrained = plan.pretrained.folder().join("model");
    let start = Network::load(plan.task, &pretrained, &context.device)?;
    let (finetuned, losses) = train(context, plan, training, &start, has_teacher, folder)?;
    finetuned.save(&folder.join("model"), &plan.scheduler)?;
    write_json(&folder.join("losses.json"), &losses)
}

/// Trains a network on the training pictures; the network it starts from is the teacher, where there is one.
fn train(
    context: &Context<'_>,
    plan: &Plan,
    training: Training<'_>,
    start: &Network,
    has_teacher: bool,
    folder: &Path,
) -> Result<(Network, LossLog), Problem> {
    let pictures = &context.split().train;
    match start {
        Network::Unconditional(start) => {
            let data = Part::new(context, pictures)?;
            let trained = train_on(context, plan, training, start, has_teacher, &data, folder)?;
            Ok((Network::Unconditional(trained.model), trained.loss_log))
        }
        Network::TextToImage(start) => {
            let encodings = Encodings::open(plan)?;
            let data = CaptionedPart::new(context, plan, &encodings, pictures)?;
            let trained = train_on(context, plan, training, start, has_teacher, &data, folder)?;
            Ok((Network::TextToImage(trained.model), trained.loss_log))
        }
    }
}

fn train_on<N: NoisePredictor>(
    context: &Context<'_>,
    plan: &Plan,
    training: Training<'_>,
    start: &N,
    has_teacher: bool,
    data: &dyn TrainingImages<N::Condition>,
    folder: &Path,
) -> Result<Finetuned<N>, Problem> {
    let Training { name, config, range, seed } = training;
    let order = EpochOrder::new(data.len(), seed);
    let task = FinetuneTask {
        start,
        teacher: has_teacher.then_some(start),
        schedule: &plan.scheduler.noise_schedule()?,
        prediction: plan.scheduler.prediction_type,
        range,
        data,
        order: &|position, count| order.batch(position, count),
        seed,
    };
    let mut progress = Progress::start(context.voice, name, config.iterations);
    let mut last = f64::NAN;
    let finetuned = finetune(config, &task, &resume_folder(folder)?, &mut |event| {
        if let Event::Iteration { iteration, report, .. } = event {
            // A moving average: single losses jump.
            let loss = report.diffusion_loss;
            last = if last.is_nan() { loss } else { 0.98 * last + 0.02 * loss };
            progress.at(iteration, &format!("loss {last:.4}"));
        }
        ControlFlow::Continue(())
    })?;
    progress.finish(&format!("loss {last:.4}"));
    Ok(finetuned)
}
