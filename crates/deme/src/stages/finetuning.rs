//! The stages that train: pretraining from scratch, the experts, the joint baseline.
//!
//! Each leaves `model/` (a diffusers folder) and `losses.json`.

use std::ops::ControlFlow;
use std::path::Path;

use deme_data::{EpochOrder, PreparedImages};
use deme_decouple::{Event, FinetuneConfig, FinetuneTask, TrainingImages, finetune};
use deme_diffusion::{SchedulerConfig, TimestepRange, UNet2DModel, save_pipeline};
use deme_nn::Init;

use crate::diagnostics::Problem;
use crate::progress::Progress;
use crate::run_dir::{resume_folder, seed_for, write_json};

use super::evaluate::load;
use super::plan::given_pretrained;
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

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// The pretrained model: given, or trained from scratch.
pub fn pretrained(context: &Context<'_>, folder: &Path) -> Result<(), Problem> {
    if let Some((unet, scheduler)) = given_pretrained(context)? {
        return Ok(save_pipeline(&folder.join("model"), &unet, &scheduler)?);
    }
    let section = &context.recipe.pretrained;
    let unet = section.unet.as_ref().expect("a recipe from scratch has a network");
    let training = section.training.as_ref().expect("a recipe from scratch has a training");
    let seed = seed_for(context.recipe.seed, "pretraining");
    let start = UNet2DModel::new(unet, &mut Init::new(seed, &context.device))?;
    let scheduler = section.scheduler.clone().unwrap_or_default();
    let whole = TimestepRange { low: 0, high: scheduler.num_train_timesteps };
    let training = Training { name: "pretraining", config: training, range: whole, seed };
    train(context, training, &start, None, &scheduler, folder)
}

/// One expert, on its own range.
pub fn expert(
    context: &Context<'_>,
    plan: &Plan,
    index: usize,
    folder: &Path,
) -> Result<(), Problem> {
    let model = load(context, &plan.pretrained.folder().join("model"))?;
    let training = Training {
        name: &format!("expert {}", index + 1),
        config: &context.recipe.decouple.finetune,
        range: plan.ranges[index],
        seed: seed_for(context.recipe.seed, &format!("expert {index}")),
    };
    train(context, training, &model, Some(&model), &plan.scheduler, folder)
}

/// The joint baseline: the whole range, the total number of iterations.
pub fn joint(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let model = load(context, &plan.pretrained.folder().join("model"))?;
    let training = Training {
        name: "joint",
        config: &context.recipe.joint_finetune(),
        range: TimestepRange { low: 0, high: plan.scheduler.num_train_timesteps },
        seed: seed_for(context.recipe.seed, "joint"),
    };
    train(context, training, &model, None, &plan.scheduler, folder)
}

/// What distinguishes one training from another.
struct Training<'a> {
    name: &'a str,
    config: &'a FinetuneConfig,
    range: TimestepRange,
    seed: u64,
}

fn train(
    context: &Context<'_>,
    training: Training<'_>,
    start: &UNet2DModel,
    teacher: Option<&UNet2DModel>,
    scheduler: &SchedulerConfig,
    folder: &Path,
) -> Result<(), Problem> {
    let Training { name, config, range, seed } = training;
    let data = Part::new(context, &context.split().train)?;
    let order = EpochOrder::new(data.len(), seed);
    let task = FinetuneTask {
        start,
        teacher,
        schedule: &scheduler.noise_schedule()?,
        prediction: scheduler.prediction_type,
        range,
        data: &data,
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
    save_pipeline(&folder.join("model"), &finetuned.model, scheduler)?;
    write_json(&folder.join("losses.json"), &finetuned.loss_log)?;
    progress.finish(&format!("loss {last:.4}"));
    Ok(())
}
