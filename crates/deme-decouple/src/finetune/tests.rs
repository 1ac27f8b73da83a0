//! The loop on tiny models: interrupted runs, refusals, the result's architecture.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use deme_nn::{map_parameters, parameter_shapes};

use super::*;
use crate::ema::EmaConfig;
use crate::test_models::{
    CaptionedPictures, Pictures, in_turn, schedule, tiny_conditional_unet, tiny_config, tiny_unet,
};
use crate::train_state::remove_train_state;

/// A task's inputs, owned.
struct Inputs {
    start: UNet2DModel,
    teacher: UNet2DModel,
    schedule: NoiseSchedule,
    data: Pictures,
    range: TimestepRange,
    with_teacher: bool,
}

impl Inputs {
    fn new() -> Self {
        let device = Device::flex();
        Self {
            start: tiny_unet(1, &device),
            teacher: tiny_unet(1, &device),
            schedule: schedule(),
            data: Pictures::new(5, 8),
            range: TimestepRange { low: 250, high: 500 },
            with_teacher: true,
        }
    }

    fn task(&self) -> FinetuneTask<'_> {
        FinetuneTask {
            start: &self.start,
            teacher: self.with_teacher.then_some(&self.teacher),
            schedule: &self.schedule,
            prediction: PredictionType::Epsilon,
            range: self.range,
            data: &self.data,
            order: &in_turn,
            seed: 9,
        }
    }
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Content of the result: names, shapes, bytes; and the losses.
fn content(result: &Finetuned) -> (String, String) {
    let losses = serde_json::to_string(&result.loss_log).unwrap();
    (to_state_dict(&result.model).content_hash(), losses)
}

fn undisturbed(config: &FinetuneConfig, inputs: &Inputs) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    content(&finetune(config, &inputs.task(), folder.path(), &mut go_on).unwrap())
}

/// Runs and is killed (by a panic in the observer, so that nothing is written or cleaned up) at each event
/// that `kill` picks by its number; then runs to the end.
fn killed_and_resumed(
    config: &FinetuneConfig,
    inputs: &Inputs,
    kill: impl Fn(usize) -> bool,
) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut events = 0;
    for _ in 0..100 {
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            finetune(config, &inputs.task(), folder.path(), &mut |_| {
                events += 1;
                if kill(events) {
                    // Leaves a half-written file behind, as a kill in the middle of a write does.
                    let name = format!(".train_state.safetensors.{events}-0.deme.tmp");
                    std::fs::write(folder.path().join(name), b"half").unwrap();
                    std::panic::resume_unwind(Box::new("killed"));
                }
                ControlFlow::Continue(())
            })
        }));
        if let Ok(result) = attempt {
            let result = content(&result.unwrap());
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "only the last checkpoint stays");
            return result;
        }
    }
    panic!("the run never ended");
}

fn variants() -> Vec<(String, FinetuneConfig)> {
    use ProjectionPlacement::{Block, Folded, None};
    let mut variants = Vec::new();
    for (projection, ema, teacher, accumulation) in [
        (None, true, true, 1),
        (Block, true, false, 2),
        (Folded, false, true, 2),
        (Folded, true, true, 2),
        (None, false, false, 1),
    ] {
        let config = FinetuneConfig {
            projection,
            ema: EmaConfig { enabled: ema, ..Default::default() },
            consistency_weight: if teacher { 1.0 } else { 0.0 },
            gradient_accumulation: accumulation,
            horizontal_flip: true,
            learning_rate: 1e-3,
            ..tiny_config()
        };
        variants.push((format!("{projection:?} ema {ema} teacher {teacher}"), config));
    }
    variants
}

#[test]
fn killed_at_any_moment_and_resumed_it_ends_in_the_same_bytes() {
    let inputs = Inputs::new();
    for (name, config) in variants() {
        let expected = undisturbed(&config, &inputs);
        let every_third = killed_and_resumed(&config, &inputs, |event| event % 3 == 0);
        assert_eq!(every_third, expected, "{name}");
        let sparse = FinetuneConfig { checkpoint_every: 2, ..config };
        let once = killed_and_resumed(&sparse, &inputs, |event| event == 4);
        assert_eq!(once, expected, "{name}");
    }
}

#[test]
fn breaking_saves_and_the_same_call_goes_on() {
    let inputs = Inputs::new();
    let config = FinetuneConfig { checkpoint_every: 1000, ..tiny_config() };
    let expected = undisturbed(&config, &inputs);
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for stop_at in [1, 3] {
        let stopped = finetune(&config, &inputs.task(), folder.path(), &mut |event| match event {
            Event::Iteration { iteration, .. } if iteration == stop_at => ControlFlow::Break(()),
            event => go_on(event),
        });
        let error = stopped.unwrap_err();
        assert!(matches!(error, FinetuneError::Interrupted { iteration } if iteration == stop_at));
    }
    let result = finetune(&config, &inputs.task(), folder.path(), &mut |event| {
        seen.push(event);
        ControlFlow::Continue(())
    });
    assert_eq!(content(&result.unwrap()), expected);
    assert_eq!(seen[0], Event::Resumed { iteration: 3 });
    assert_eq!(seen.last(), Some(&Event::CheckpointSaved { iteration: 4 }));

    // Finished: the same call computes nothing and gives the same.
    let mut iterations = 0;
    let again = finetune(&config, &inputs.task(), folder.path(), &mut |event| {
        iterations += usize::from(matches!(event, Event::Iteration { .. }));
        ControlFlow::Continue(())
    });
    assert_eq!(content(&again.unwrap()), expected);
    assert_eq!(iterations, 0);
}

#[test]
fn another_seed_range_or_setting_gives_another_model() {
    let inputs = Inputs::new();
    let config = tiny_config();
    let expected = undisturbed(&config, &inputs);
    assert_eq!(undisturbed(&config, &inputs), expected);
    let other_range = Inputs { range: TimestepRange { low: 500, high: 750 }, ..Inputs::new() };
    assert_ne!(undisturbed(&config, &other_range), expected);
    let weighted = FinetuneConfig {
        loss_weighting: crate::LossWeighting::P2 { k: 1.0, gamma: 1.0 },
        ..config.clone()
    };
    assert_ne!(undisturbed(&weighted, &inputs), expected);
    let flipped = FinetuneConfig { horizontal_flip: true, ..config };
    assert_ne!(undisturbed(&flipped, &inputs), expected);
}

#[test]
fn folded_and_plain_experts_have_the_architecture_they_started_from() {
    let inputs = Inputs::new();
    for (projection, same) in [
        (ProjectionPlacement::None, true),
        (ProjectionPlacement::Folded, true),
        (ProjectionPlacement::Block, false),
    ] {
        let config = FinetuneConfig { projection, ..tiny_config() };
        let folder = tempfile::tempdir().unwrap();
        let result = finetune(&config, &inputs.task(), folder.path(), &mut go_on).unwrap();
        let shapes = parameter_shapes(&result.model);
        assert_eq!(shapes == parameter_shapes(&inputs.start), same, "{projection:?}");
        assert_eq!(result.loss_log.points.len(), 2);
        assert_eq!(result.loss_log.points[1].iteration, config.iterations);
    }
}

#[test]
fn neither_start_nor_teacher_is_touched() {
    let inputs = Inputs::new();
    let hashes =
        || [&inputs.start, &inputs.teacher].map(|model| to_state_dict(model).content_hash());
    let before = hashes();
    undisturbed(&tiny_config(), &inputs);
    assert_eq!(hashes(), before);
}

/// Runs in an empty folder and returns the error, which must come before any iteration.
fn refusal(config: &FinetuneConfig, inputs: &Inputs) -> FinetuneError {
    let folder = tempfile::tempdir().unwrap();
    finetune(config, &inputs.task(), folder.path(), &mut |event| panic!("{event:?}")).unwrap_err()
}

#[test]
fn what_cannot_work_is_refused_before_any_work() {
    let config = tiny_config();
    let impossible = FinetuneConfig { batch_size: 0, ..tiny_config() };
    let error = refusal(&impossible, &Inputs::new());
    assert!(matches!(error, FinetuneError::Config(_)), "{error}");

    for range in [TimestepRange { low: 5, high: 5 }, TimestepRange { low: 900, high: 1001 }] {
        let error = refusal(&config, &Inputs { range, ..Inputs::new() });
        assert!(matches!(error, FinetuneError::Range { .. }), "{error}");
        assert!(error.to_string().contains("[0, 1000)"), "{error}");
    }

    let error = refusal(&config, &Inputs { with_teacher: false, ..Inputs::new() });
    assert!(matches!(error, FinetuneError::NoTeacher { .. }), "{error}");

    let error = refusal(&config, &Inputs { data: Pictures::new(0, 8), ..Inputs::new() });
    assert!(matches!(error, FinetuneError::Data(DataError::Empty)), "{error}");

    let error = refusal(&config, &Inputs { data: Pictures::new(5, 7), ..Inputs::new() });
    assert!(matches!(error, FinetuneError::Data(DataError::ImageShape(_))), "{error}");
    assert!(error.to_string().contains("[3, 7, 7]"), "{error}");
}

#[test]
fn models_that_cannot_be_finetuned_are_refused() {
    let config = tiny_config();
    let device = Device::flex();
    let broken = || {
        map_parameters(tiny_unet(1, &device), &mut |name, tensor| {
            if name == "conv_out.bias" { tensor * f32::NAN } else { tensor }
        })
    };
    for inputs in
        [Inputs { start: broken(), ..Inputs::new() }, Inputs { teacher: broken(), ..Inputs::new() }]
    {
        let error = refusal(&config, &inputs);
        assert!(matches!(error, FinetuneError::BrokenModel { .. }), "{error}");
        assert!(error.to_string().contains("conv_out.bias"), "{error}");
    }

    let with_variance = {
        let mut unet = crate::test_models::tiny_unet_config();
        unet.out_channels = 6;
        UNet2DModel::new(&unet, &mut deme_nn::Init::new(0, &device)).unwrap()
    };
    let error = refusal(&config, &Inputs { start: with_variance.clone(), ..Inputs::new() });
    assert!(matches!(error, FinetuneError::OutputChannels { .. }), "{error}");
    let error = refusal(&config, &Inputs { teacher: with_variance, ..Inputs::new() });
    assert!(matches!(error, FinetuneError::TeacherChannels { .. }), "{error}");

    let projected = tiny_unet(1, &device).with_projection(ProjectionPlacement::Block).unwrap();
    let error = refusal(&config, &Inputs { start: projected, ..Inputs::new() });
    assert!(matches!(error, FinetuneError::Projection(_)), "{error}");
}

#[test]
fn a_state_of_another_run_is_refused_by_name_and_can_be_removed() {
    let inputs = Inputs::new();
    let folder = tempfile::tempdir().unwrap();
    let config = tiny_config();
    finetune(&config, &inputs.task(), folder.path(), &mut go_on).unwrap();

    let slower = FinetuneConfig { learning_rate: 1e-6, ..config.clone() };
    let error = finetune(&slower, &inputs.task(), folder.path(), &mut go_on).unwrap_err();
    assert!(matches!(error, FinetuneError::State(TrainStateError::MadeDifferently { .. })));
    assert!(error.to_string().contains("config.learning_rate"), "{error}");

    let mut other_schedule = Inputs::new();
    let noisier = deme_diffusion::NoiseScheduleConfig { beta_end: 0.03, ..Default::default() };
    other_schedule.schedule = NoiseSchedule::new(&noisier).unwrap();
    let error = finetune(&config, &other_schedule.task(), folder.path(), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("noise_schedule"), "{error}");

    let mut other_data = Inputs::new();
    other_data.data.fingerprint = "others".into();
    let error = finetune(&config, &other_data.task(), folder.path(), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("pictures"), "{error}");

    // How often checkpoints are written is nobody's business.
    let rarer = FinetuneConfig { checkpoint_every: 77, ..config };
    finetune(&rarer, &inputs.task(), folder.path(), &mut go_on).unwrap();

    remove_train_state(folder.path()).unwrap();
    finetune(&slower, &inputs.task(), folder.path(), &mut go_on).unwrap();
}

#[test]
fn a_checkpoint_whose_tensors_do_not_fit_is_refused() {
    let inputs = Inputs::new();
    let spoilt = |spoil: fn(&mut TrainState)| {
        let folder = tempfile::tempdir().unwrap();
        let config = tiny_config();
        finetune(&config, &inputs.task(), folder.path(), &mut go_on).unwrap();
        let made_with = check(&config, &inputs.task()).unwrap();
        let mut state = TrainState::load(folder.path(), &made_with).unwrap().unwrap();
        spoil(&mut state);
        state.save(folder.path()).unwrap();
        finetune(&config, &inputs.task(), folder.path(), &mut go_on).unwrap_err()
    };
    let error = spoilt(|state| state.ema = None);
    assert!(matches!(error, FinetuneError::Load(_)), "{error}");
    let error = spoilt(|state| {
        let bias = state.student.remove("conv_in.bias").unwrap();
        state.student.insert("conv_in.offset".into(), bias);
    });
    assert!(matches!(error, FinetuneError::Load(_)), "{error}");
    assert!(error.to_string().contains("conv_in.bias"), "{error}");
    let error = spoilt(|state| {
        let moment = state.optimizer.remove("first_moment.conv_in.bias").unwrap();
        state.optimizer.insert("third_moment.conv_in.bias".into(), moment);
    });
    assert!(matches!(error, FinetuneError::Optimizer(_)), "{error}");
}

#[test]
fn a_loss_that_explodes_names_its_iteration_and_keeps_the_last_checkpoint() {
    let inputs = Inputs::new();
    let folder = tempfile::tempdir().unwrap();
    let wild = FinetuneConfig { learning_rate: 1e30, iterations: 20, ..tiny_config() };
    let error = finetune(&wild, &inputs.task(), folder.path(), &mut go_on).unwrap_err();
    let known = matches!(error, FinetuneError::Step(_) | FinetuneError::State(_));
    assert!(known, "{error}");
    let made_with = check(&wild, &inputs.task()).unwrap();
    let kept = TrainState::load(folder.path(), &made_with).unwrap().unwrap();
    assert!((1..20).contains(&kept.iteration), "{}", kept.iteration);
}

/// Finetunes the conditional UNet; killed after the second iteration when `killed`, and run again.
fn text_to_image(config: &FinetuneConfig, killed: bool) -> Result<StateDict, FinetuneError> {
    let device = Device::flex();
    let (start, schedule) = (tiny_conditional_unet(1, &device), schedule());
    let data = CaptionedPictures(Pictures::new(5, 8));
    let task = FinetuneTask {
        start: &start,
        teacher: Some(&start),
        schedule: &schedule,
        prediction: PredictionType::Epsilon,
        range: TimestepRange { low: 250, high: 500 },
        data: &data,
        order: &in_turn,
        seed: 9,
    };
    let folder = tempfile::tempdir().unwrap();
    let run = |kill: bool| {
        finetune(config, &task, folder.path(), &mut |event| match event {
            Event::Iteration { iteration: 2, .. } if kill => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    if killed {
        assert!(matches!(run(true), Err(FinetuneError::Interrupted { iteration: 2 })));
    }
    Ok(to_state_dict(&run(false)?.model))
}

#[test]
fn a_conditional_model_learns_with_every_technique_and_resumes_to_the_same_bytes() {
    for projection in [ProjectionPlacement::Folded, ProjectionPlacement::Block] {
        let config = FinetuneConfig { projection, caption_dropout: 0.3, ..tiny_config() };
        let whole = text_to_image(&config, false).unwrap();
        assert_eq!(text_to_image(&config, true).unwrap().content_hash(), whole.content_hash());
        let has_matrices = whole.iter().any(|(name, _)| name.starts_with("projection."));
        assert_eq!(has_matrices, projection == ProjectionPlacement::Block);
        // The captions reach the weights: without them it learns something else.
        let without = FinetuneConfig { caption_dropout: 1.0, ..config };
        assert_ne!(text_to_image(&without, false).unwrap().content_hash(), whole.content_hash());
    }
}

#[test]
fn latents_cannot_be_mirrored() {
    let config = FinetuneConfig { horizontal_flip: true, ..tiny_config() };
    let error = text_to_image(&config, false).unwrap_err();
    assert!(error.to_string().contains("horizontal_flip"), "{error}");
}
