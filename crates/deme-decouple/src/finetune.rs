//! Finetuning from start to end: the loop (Ma et al. 2025, section 3).
//!
//! One expert starts from the pretrained model and sees mostly its own timestep range. The joint baseline is
//! the same with the full range; training from scratch has in addition random weights and no teacher.
//! Interrupted at any moment and called again, it goes on from its last checkpoint to the same bytes.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use deme_diffusion::{
    NoisePredictor, NoiseSchedule, PredictionType, ProjectionError, ProjectionPlacement,
    TimestepRange, UNet2DModel,
};
use deme_merge::{Dtype, StateDict, StateDictError, StoredTensor};
use deme_nn::{AdamW, LoadError, OptimizerStateError, load_state_dict, to_state_dict};
use serde_json::{Value, json};

use crate::ema::Ema;
use crate::finetune_config::{FinetuneConfig, ImpossibleValue};
use crate::finetuner::{Finetuner, StepError, StepReport};
use crate::loss_log::LossLog;
use crate::micro_batch::{MicroBatch, MicroBatches};
use crate::timestep_sampler::TimestepSampler;
use crate::train_state::{TrainState, TrainStateError};
use crate::training_images::{DataError, TrainingImages, check_images};

/// What is finetuned on what.
pub struct FinetuneTask<'a, N: NoisePredictor = UNet2DModel> {
    /// theta, where finetuning starts.
    pub start: &'a N,
    /// The frozen model of the consistency loss, normally `start`; unused when its weight is 0.
    pub teacher: Option<&'a N>,
    /// The noise schedule of the pretrained model.
    pub schedule: &'a NoiseSchedule,
    /// What the model predicts.
    pub prediction: PredictionType,
    /// The expert's timesteps.
    pub range: TimestepRange,
    /// The pictures.
    pub data: &'a dyn TrainingImages<N::Condition>,
    /// The indices of so many pictures from an absolute position on: a pure function of both.
    pub order: &'a (dyn Fn(u64, usize) -> Vec<usize> + Sync),
    /// Seed of timesteps, flips, dropped captions and noise.
    pub seed: u64,
}

/// What [`finetune()`] tells its observer. Breaking ends the run, with a checkpoint after an iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// A checkpoint was found; the run goes on from it.
    Resumed {
        /// Iterations it has done.
        iteration: u64,
    },
    /// An iteration is done.
    Iteration {
        /// Iterations done.
        iteration: u64,
        /// Iterations in all.
        iterations: u64,
        /// What it measured.
        report: StepReport,
    },
    /// A checkpoint is on the disk.
    CheckpointSaved {
        /// Iterations it holds.
        iteration: u64,
    },
}

/// The result of [`finetune()`].
#[derive(Debug, Clone)]
pub struct Finetuned<N = UNet2DModel> {
    /// theta_i: the moving average (without one, the last weights), with `folded` projections folded, so of
    /// the architecture it started from. `block` projections are still in it.
    pub model: N,
    /// The course of the losses.
    pub loss_log: LossLog,
}

/// Why finetuning gave no model.
#[derive(Debug, thiserror::Error)]
pub enum FinetuneError {
    /// An impossible setting.
    #[error(transparent)]
    Config(#[from] ImpossibleValue),
    /// The weights it should start from, or the teacher's, are not finite.
    #[error("the {role} model cannot be finetuned: {source}")]
    BrokenModel {
        /// `start` or `teacher`.
        role: &'static str,
        /// The tensor.
        source: StateDictError,
    },
    /// The model's output is not an image like its input.
    #[error(
        "the model takes {in_channels} channels and gives {out_channels}; models that also predict their \
         variance cannot be finetuned here"
    )]
    OutputChannels {
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
    },
    /// The teacher is another architecture.
    #[error(
        "the teacher takes {teacher:?} channels in and out, the model {model:?}; a teacher predicts the \
         same thing as its student"
    )]
    TeacherChannels {
        /// The model's input and output channels.
        model: [usize; 2],
        /// The teacher's.
        teacher: [usize; 2],
    },
    /// A consistency loss needs a teacher.
    #[error(
        "`consistency_weight` is {weight}, but there is no pretrained model to be consistent with; set \
         `consistency_weight` = 0 to train from scratch"
    )]
    NoTeacher {
        /// The weight.
        weight: f64,
    },
    /// The expert's range is empty or leaves the schedule.
    #[error(
        "the timestep range {range} must be a part of [0, {num_train_timesteps}) and not empty"
    )]
    Range {
        /// The range.
        range: TimestepRange,
        /// T.
        num_train_timesteps: usize,
    },
    /// The pictures do not fit.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The channel projections do not fit.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A checkpoint could not be written, read or used.
    #[error(transparent)]
    State(#[from] TrainStateError),
    /// A checkpoint's weights do not fit the model.
    #[error("the checkpoint in the run's folder does not fit; remove it to train anew: {0}")]
    Load(#[from] LoadError),
    /// A checkpoint's optimiser state cannot be used.
    #[error(transparent)]
    Optimizer(#[from] OptimizerStateError),
    /// The observer ended the run.
    #[error("interrupted after iteration {iteration}; run the same again to go on")]
    Interrupted {
        /// Iterations done.
        iteration: u64,
    },
}

/// Finetunes one model.
///
/// `state_dir` belongs to this run alone: it holds the checkpoint, from which the same call goes on. After
/// success the checkpoint still stands there, so that a caller killed before it stored the result loses
/// nothing; [`remove_train_state`](crate::remove_train_state) removes it. Two calls must not use the same
/// folder at once.
///
/// # Errors
/// [`FinetuneError`]: impossible settings and inputs before any work is done, losses that are not finite,
/// a full disk, or the observer's wish.
pub fn finetune<N: NoisePredictor>(
    config: &FinetuneConfig,
    task: &FinetuneTask<N>,
    state_dir: &Path,
    observer: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Finetuned<N>, FinetuneError> {
    let made_with = check(config, task)?;
    let device = task.start.device();
    let micro_batches = MicroBatches {
        data: task.data,
        order: task.order,
        timesteps: TimestepSampler::new(
            config.timestep_sampling,
            task.range,
            task.schedule.num_train_timesteps(),
        ),
        batch_size: config.batch_size,
        horizontal_flip: config.horizontal_flip,
        caption_dropout: config.caption_dropout,
        seed: task.seed,
    };
    let student = task.start.clone().with_projection(config.projection)?;
    let mut run = Finetuner::new(config, student, task.teacher, task.schedule, task.prediction);
    let mut log = LossLog::default();

    if let Some(state) = TrainState::load(state_dir, &made_with)? {
        (run, log) = resume(run, config, state, &device)?;
        let iteration = run.iteration();
        if observer(Event::Resumed { iteration }).is_break() {
            return Err(FinetuneError::Interrupted { iteration });
        }
    }

    let prepared = |iteration: u64| -> Vec<MicroBatch<N::Condition>> {
        let first = iteration * config.gradient_accumulation;
        let numbers = first..first + config.gradient_accumulation;
        numbers.map(|k| micro_batches.at(k, &device)).collect()
    };
    let mut current = prepared(run.iteration());
    while run.iteration() < config.iterations {
        // The next step's pictures and noise are made while this one computes.
        let next = run.iteration() + 1;
        let (report, following) = rayon::join(|| run.step(current), || prepared(next));
        let report = report?;
        current = following;

        let iteration = run.iteration();
        log.add(iteration, &report, config.log_every);
        let finished = iteration == config.iterations;
        if finished {
            log.close(iteration);
        }
        let iterations = config.iterations;
        let interrupted = observer(Event::Iteration { iteration, iterations, report }).is_break();
        if finished || interrupted || iteration.is_multiple_of(config.checkpoint_every) {
            state_of(&run, &log, &made_with).save(state_dir)?;
            let unwanted = observer(Event::CheckpointSaved { iteration }).is_break();
            if (interrupted || unwanted) && !finished {
                return Err(FinetuneError::Interrupted { iteration });
            }
        }
    }

    let model = run.result().clone();
    let model = match config.projection {
        ProjectionPlacement::Folded => model.fold_projection()?,
        ProjectionPlacement::None | ProjectionPlacement::Block => model,
    };
    Ok(Finetuned { model, loss_log: log })
}

/// Refuses what cannot work, and returns all that the result depends on.
fn check<N: NoisePredictor>(
    config: &FinetuneConfig,
    task: &FinetuneTask<N>,
) -> Result<Value, FinetuneError> {
    config.validate()?;
    let &FinetuneTask { start, schedule, range, .. } = task;
    let num_train_timesteps = schedule.num_train_timesteps();
    if range.is_empty() || range.high > num_train_timesteps {
        return Err(FinetuneError::Range { range, num_train_timesteps });
    }
    let [in_channels, out_channels] = start.channels();
    if in_channels != out_channels {
        return Err(FinetuneError::OutputChannels { in_channels, out_channels });
    }
    check_images(task.data, start)?;
    if config.horizontal_flip && !task.data.can_be_mirrored() {
        return Err(DataError::Mirrored.into());
    }
    let weight = config.consistency_weight;
    let teacher = match task.teacher {
        _ if weight == 0.0 => None,
        None => return Err(FinetuneError::NoTeacher { weight }),
        Some(teacher) if teacher.channels() != start.channels() => {
            let (model, teacher) = (start.channels(), teacher.channels());
            return Err(FinetuneError::TeacherChannels { model, teacher });
        }
        Some(teacher) => Some(identity(teacher, "teacher")?),
    };

    let mut settings = serde_json::to_value(config).expect("settings are plain data");
    if let Value::Object(keys) = &mut settings {
        keys.remove("checkpoint_every");
    }
    Ok(json!({
        "config": settings,
        "start": identity(start, "start")?,
        "teacher": teacher,
        "noise_schedule": hash_of(schedule.betas()),
        "prediction": task.prediction,
        "range": range,
        "pictures": task.data.fingerprint(),
        "seed": task.seed,
    }))
}

/// What tells a model from others; its weights must be finite.
fn identity<N: NoisePredictor>(model: &N, role: &'static str) -> Result<Value, FinetuneError> {
    let weights = to_state_dict(model);
    weights.check_finite().map_err(|source| FinetuneError::BrokenModel { role, source })?;
    Ok(json!({ "architecture": model.architecture(), "weights": weights.content_hash() }))
}

fn hash_of(values: &[f64]) -> String {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = StoredTensor::new(Dtype::F64, vec![values.len()], bytes);
    let tensor = tensor.expect("eight bytes for each value");
    StateDict::from_iter([("values".to_owned(), tensor)]).content_hash()
}

fn state_of<N: NoisePredictor>(run: &Finetuner<N>, log: &LossLog, made_with: &Value) -> TrainState {
    TrainState {
        iteration: run.iteration,
        student: to_state_dict(&run.student),
        ema: run.ema.as_ref().map(|ema| to_state_dict(ema.model())),
        optimizer: run.optimizer.to_state_dict(),
        log: log.clone(),
        made_with: made_with.clone(),
    }
}

/// Puts a checkpoint into a run that has just begun.
fn resume<N: NoisePredictor>(
    mut run: Finetuner<N>,
    config: &FinetuneConfig,
    state: TrainState,
    device: &Device,
) -> Result<(Finetuner<N>, LossLog), FinetuneError> {
    if let Some(ema) = run.ema.take() {
        // Without an average in the file the load lists every parameter as missing.
        let average = load_state_dict(ema.model().clone(), &state.ema.unwrap_or_default())?;
        run.ema = Some(Ema::resume(config.ema, average, state.iteration));
    }
    run.student = load_state_dict(run.student, &state.student)?;
    run.optimizer = AdamW::from_state_dict(config.optimizer, &state.optimizer, device)?;
    run.iteration = state.iteration;
    Ok((run, state.log))
}

#[cfg(test)]
mod tests;
