//! Closed forms, determinism, and every error of the loop.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::denoiser::{Denoiser, DenoiserFn};
use crate::noise::standard_normal;
use crate::noise_schedule::{BetaSchedule, NoiseSchedule};
use crate::prediction::PredictionType;
use crate::scheduler_config::{FinalSigmasType, VarianceType};
use burn::tensor::{Device, TensorData};
use std::cell::RefCell;

fn run(
    denoiser: &dyn Denoiser,
    scheduler: &SchedulerConfig,
    config: &SamplerConfig,
    shape: [usize; 3],
    seeds: &[u64],
    batch_size: usize,
) -> Result<Vec<Vec<f32>>, SampleError> {
    let device = Device::default();
    sample(denoiser, scheduler, config, shape, seeds, batch_size, &device, &mut |_| {})
}

/// A model that must not be asked.
fn never() -> DenoiserFn<impl Fn(Tensor<4>, &[usize]) -> Tensor<4>> {
    DenoiserFn(|_: Tensor<4>, _: &[usize]| -> Tensor<4> { panic!("refused before work") })
}

fn refusal(scheduler: SchedulerConfig, config: SamplerConfig) -> SampleError {
    run(&never(), &scheduler, &config, [1, 2, 2], &[0], 1).unwrap_err()
}

// ---- Closed form: data N(mu, s^2), whose exact denoiser is known. ----

const MU: f64 = 0.1;
const S: f64 = 0.2;

const ALL_PREDICTIONS: [PredictionType; 3] =
    [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];

/// The exact output for data N(MU, S^2): `E[eps | x_t] = n (x_t - s_t MU) / (abar S^2 + 1 - abar)`,
/// turned into what `kind` predicts.
fn gaussian_denoiser(
    schedule: NoiseSchedule,
    kind: PredictionType,
) -> DenoiserFn<impl Fn(Tensor<4>, &[usize]) -> Tensor<4>> {
    DenoiserFn(move |x_t: Tensor<4>, t: &[usize]| {
        let abar = schedule.alpha_cumprod(t[0]).unwrap();
        let variance = abar * S * S + 1.0 - abar;
        let eps = (x_t.clone() - abar.sqrt() * MU) * ((1.0 - abar).sqrt() / variance);
        let x_0 = (x_t - abar.sqrt() * MU) * (abar.sqrt() * S * S / variance) + MU;
        let rates = schedule.rates(t, &eps.device()).unwrap();
        kind.target(x_0, eps, &rates)
    })
}

fn mean_and_std(images: &[Vec<f32>]) -> (f64, f64) {
    let values: Vec<f64> = images.iter().flatten().map(|&x| f64::from(x)).collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

/// Mean and deviation of 16384 sampled pixels, beside those of the noise they started from.
fn gaussian_run(
    kind: PredictionType,
    scheduler: &SchedulerConfig,
    config: &SamplerConfig,
) -> ((f64, f64), (f64, f64)) {
    let scheduler = SchedulerConfig { prediction_type: kind, ..scheduler.clone() };
    let denoiser = gaussian_denoiser(scheduler.noise_schedule().unwrap(), kind);
    let seeds: Vec<u64> = (0..4).collect();
    let images = run(&denoiser, &scheduler, config, [1, 64, 64], &seeds, 4).unwrap();
    let noise: Vec<Vec<f32>> = seeds.iter().map(|&seed| standard_normal(seed, 0, 4096)).collect();
    (mean_and_std(&images), mean_and_std(&noise))
}

#[test]
fn ddim_carries_noise_to_the_gaussian_it_was_trained_on() {
    let scheduler = SchedulerConfig { clip_sample: false, ..Default::default() };
    for kind in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
        let config = SamplerConfig { steps: 1000, ..Default::default() };
        let ((mean, std), (mean_noise, std_noise)) = gaussian_run(kind, &scheduler, &config);
        // The flow is affine: it maps a standard normal value z to MU + S z.
        assert!((mean - (MU + S * mean_noise)).abs() < 0.002, "{kind:?}: mean {mean}");
        assert!((std - S * std_noise).abs() < 0.01 * S, "{kind:?}: std {std}");
    }
}

#[test]
fn the_other_flows_carry_noise_there_too() {
    for skip_prk_steps in [false, true] {
        let scheduler = SchedulerConfig { skip_prk_steps, ..Default::default() };
        for (kind, predictions) in [
            (SamplerKind::Pndm, &[PredictionType::Epsilon, PredictionType::VPrediction][..]),
            (SamplerKind::DpmSolver, &ALL_PREDICTIONS),
            (SamplerKind::Euler, &ALL_PREDICTIONS),
        ] {
            for &prediction in predictions {
                let config = SamplerConfig { kind, steps: 500, ..Default::default() };
                let ((mean, std), (mean_noise, std_noise)) =
                    gaussian_run(prediction, &scheduler, &config);
                let off = (mean - (MU + S * mean_noise)).abs();
                assert!(off < 0.003, "{kind} {prediction:?}: mean {mean}");
                // Euler's method is of first order.
                let tolerance = if kind == SamplerKind::Euler { 0.02 } else { 0.01 };
                let off = (std - S * std_noise).abs();
                assert!(off < tolerance * S, "{kind} {prediction:?}: std {std}");
            }
        }
    }
}

#[test]
fn more_steps_come_closer() {
    let scheduler =
        SchedulerConfig { clip_sample: false, skip_prk_steps: true, ..Default::default() };
    for kind in SamplerKind::ALL {
        let error = |steps| {
            let config = SamplerConfig { kind, steps, ..Default::default() };
            let ((_, std), (_, std_noise)) =
                gaussian_run(PredictionType::Epsilon, &scheduler, &config);
            // A flow's only noise is the start noise.
            let noisy = matches!(kind, SamplerKind::Ddpm | SamplerKind::EulerAncestral);
            (std - S * if noisy { 1.0 } else { std_noise }).abs()
        };
        let errors = [10, 50, 250].map(error);
        assert!(errors.windows(2).all(|pair| pair[0] > 2.0 * pair[1]), "{kind:?}: {errors:?}");
    }
    let error = |kind, steps| {
        let config = SamplerConfig { kind, steps, ..Default::default() };
        let ((_, std), (_, std_noise)) = gaussian_run(PredictionType::Epsilon, &scheduler, &config);
        (std - S * std_noise).abs()
    };
    // What the higher order is for.
    for kind in [SamplerKind::DpmSolver, SamplerKind::Pndm] {
        assert!(error(kind, 250) < 0.25 * error(SamplerKind::Ddim, 250), "{kind}");
    }
}

#[test]
fn noisy_methods_give_the_gaussian_too() {
    let scheduler = SchedulerConfig { clip_sample: false, ..Default::default() };
    for config in [
        SamplerConfig { kind: SamplerKind::Ddpm, steps: 1000, ..Default::default() },
        SamplerConfig { steps: 1000, eta: 1.0, ..Default::default() },
        SamplerConfig { steps: 1000, eta: 0.5, ..Default::default() },
        SamplerConfig { kind: SamplerKind::EulerAncestral, steps: 1000, ..Default::default() },
        SamplerConfig {
            kind: SamplerKind::DpmSolver,
            steps: 500,
            algorithm_type: Some(SolverAlgorithm::Sde),
            ..Default::default()
        },
    ] {
        let ((mean, std), _) = gaussian_run(PredictionType::Epsilon, &scheduler, &config);
        // 16384 values: the mean is known to S / 128, the deviation to S / 181; four times that,
        // and two per cent because a thousand steps are not infinitely many.
        assert!((mean - MU).abs() < 4.0 * S / 128.0, "{config:?}: mean {mean}");
        assert!((std / S - 1.0).abs() < 4.0 / 181.0 + 0.02, "{config:?}: std {std}");
    }
}

#[test]
fn the_larger_variance_gives_a_wider_result() {
    let small = SchedulerConfig { clip_sample: false, ..Default::default() };
    let large = SchedulerConfig { variance_type: VarianceType::FixedLarge, ..small.clone() };
    let config = SamplerConfig { kind: SamplerKind::Ddpm, steps: 100, ..Default::default() };
    let std = |scheduler| gaussian_run(PredictionType::Epsilon, scheduler, &config).0.1;
    assert!(std(&large) > 1.02 * std(&small));
    let log = SchedulerConfig { variance_type: VarianceType::FixedSmallLog, ..small.clone() };
    assert_eq!(std(&log), std(&small));
}

#[test]
fn ddim_with_eta_one_is_ddpm_where_nothing_is_clamped() {
    let scheduler = SchedulerConfig { clip_sample: false, ..Default::default() };
    let denoiser = gaussian_denoiser(scheduler.noise_schedule().unwrap(), PredictionType::Epsilon);
    let of = |kind, eta| {
        let config = SamplerConfig { kind, eta, steps: 100, ..Default::default() };
        run(&denoiser, &scheduler, &config, [1, 4, 4], &[5], 1).unwrap().remove(0)
    };
    let (ddim, ddpm) = (of(SamplerKind::Ddim, 1.0), of(SamplerKind::Ddpm, 0.0));
    for (a, b) in ddim.iter().zip(&ddpm) {
        assert!((a - b).abs() < 1e-4, "{a} != {b}");
    }
}

// ---- The loop. ----

/// Some nonlinear model whose output for an image depends on that image alone.
fn sine() -> DenoiserFn<impl Fn(Tensor<4>, &[usize]) -> Tensor<4>> {
    DenoiserFn(|x_t: Tensor<4>, t: &[usize]| (x_t * 1.3 + t[0] as f64 * 0.001).sin())
}

/// Every sampler, with and without what noise it can add.
fn every_sampler() -> Vec<SamplerConfig> {
    let mut configs: Vec<SamplerConfig> =
        SamplerKind::ALL.map(|kind| SamplerConfig { kind, steps: 7, ..Default::default() }).into();
    configs.push(SamplerConfig { steps: 7, eta: 1.0, ..Default::default() });
    configs.push(SamplerConfig {
        kind: SamplerKind::DpmSolver,
        steps: 7,
        algorithm_type: Some(SolverAlgorithm::Sde),
        solver_order: Some(2),
        ..Default::default()
    });
    configs
}

#[test]
fn a_picture_depends_on_its_seed_alone_to_the_last_bit() {
    let scheduler = SchedulerConfig::default();
    for config in every_sampler() {
        let seeds: Vec<u64> = (0..11).collect();
        let all = run(&sine(), &scheduler, &config, [2, 3, 3], &seeds, 16).unwrap();
        for batch_size in [1, 4, 11] {
            let again = run(&sine(), &scheduler, &config, [2, 3, 3], &seeds, batch_size).unwrap();
            assert_eq!(all, again, "{config:?} in batches of {batch_size}");
        }
        let one = run(&sine(), &scheduler, &config, [2, 3, 3], &[6], 3).unwrap();
        assert_eq!(one[0], all[6], "{config:?}");
        assert_ne!(all[0], all[1], "{config:?}");
        assert!(all.iter().flatten().all(|value| (-1.0..=1.0).contains(value)));
    }
}

#[test]
fn thresholds_are_of_one_image_each() {
    let scheduler = SchedulerConfig {
        thresholding: Some(DynamicThresholding { ratio: 0.7, max: 2.0 }),
        ..Default::default()
    };
    for kind in [SamplerKind::Ddim, SamplerKind::Ddpm, SamplerKind::DpmSolver] {
        let config = SamplerConfig { kind, steps: 5, ..Default::default() };
        let seeds = [0, 1, 2, 3, 4];
        let all = run(&sine(), &scheduler, &config, [2, 3, 3], &seeds, 5).unwrap();
        assert_eq!(all, run(&sine(), &scheduler, &config, [2, 3, 3], &seeds, 2).unwrap());
    }
}

#[test]
fn latents_are_not_clamped_and_each_batch_has_its_denoiser() {
    let (scheduler, config) = (
        SchedulerConfig { clip_sample: false, ..Default::default() },
        SamplerConfig { steps: 3, ..Default::default() },
    );
    let asked = RefCell::new(Vec::new());
    // The model of a batch that begins with seed i moves everything to i + 10.
    let mut denoiser_of = |seeds: std::ops::Range<usize>| {
        asked.borrow_mut().push(seeds.clone());
        let schedule = scheduler.noise_schedule().unwrap();
        DenoiserFn(move |x_t: Tensor<4>, t: &[usize]| {
            let rates = schedule.rates(t, &x_t.device()).unwrap();
            let x_0 = x_t.zeros_like() + (seeds.start + 10) as f64;
            PredictionType::Sample.eps(x_t, x_0, &rates)
        })
    };
    let (device, seeds) = (Device::default(), [5, 6, 7]);
    let latents = sample_latents(
        &mut denoiser_of,
        &scheduler,
        &config,
        [1, 2, 2],
        &seeds,
        2,
        &device,
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(*asked.borrow(), [0..2, 2..3]);
    for (latent, expected) in latents.iter().zip([10.0, 10.0, 12.0]) {
        assert!(latent.iter().all(|value| (value - expected).abs() < 1e-4), "{latent:?}");
    }
}

#[test]
fn euler_asks_between_timesteps_and_shows_images_scaled_down() {
    struct Between(RefCell<Vec<f64>>);
    impl Denoiser for Between {
        fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
            let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
            self.predict_between(x_t, &t)
        }

        fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
            self.0.borrow_mut().push(t[0]);
            let largest = x_t.clone().abs().max().into_scalar::<f32>();
            assert!(largest < 5.0, "shown {largest}");
            x_t
        }
    }
    for kind in [SamplerKind::Euler, SamplerKind::EulerAncestral] {
        let model = Between(RefCell::default());
        let config = SamplerConfig { kind, steps: 3, ..Default::default() };
        run(&model, &SchedulerConfig::default(), &config, [1, 4, 4], &[0], 1).unwrap();
        assert_eq!(*model.0.borrow(), [999.0, 499.5, 0.0]);
    }
}

#[test]
fn one_timestep_per_image_and_a_report_per_step() {
    let asked = RefCell::new(Vec::new());
    let denoiser = DenoiserFn(|x_t: Tensor<4>, t: &[usize]| {
        assert_eq!(x_t.dims(), [t.len(), 1, 2, 2]);
        asked.borrow_mut().push(t.to_vec());
        x_t
    });
    let mut reports = Vec::new();
    let (scheduler, config) =
        (SchedulerConfig::default(), SamplerConfig { steps: 2, ..Default::default() });
    let device = Device::default();
    let images =
        sample(&denoiser, &scheduler, &config, [1, 2, 2], &[1, 2, 3], 2, &device, &mut |p| {
            reports.push((p.images_done, p.images_total, p.step, p.steps))
        });
    assert_eq!(images.unwrap().len(), 3);
    assert_eq!(*asked.borrow(), [vec![500, 500], vec![0, 0], vec![500], vec![0]]);
    assert_eq!(reports, [(0, 3, 1, 2), (2, 3, 2, 2), (2, 3, 1, 2), (3, 3, 2, 2)]);
}

#[test]
fn no_seeds_give_no_pictures() {
    let (scheduler, config) = (SchedulerConfig::default(), SamplerConfig::default());
    assert!(run(&never(), &scheduler, &config, [1, 2, 2], &[], 4).unwrap().is_empty());
}

#[test]
fn the_samplers_spacing_goes_before_the_schedulers() {
    let config = SamplerConfig {
        steps: 2,
        timestep_spacing: Some(TimestepSpacing::Trailing),
        ..Default::default()
    };
    let method = config.method(&SchedulerConfig::default()).unwrap();
    assert_eq!(method.timesteps(), [999.0, 499.0]);
}

#[test]
fn settings_in_text() {
    let parse = serde_json::from_str::<SamplerConfig>;
    let config = parse(r#"{"kind": "ddpm", "steps": 3, "timestep_spacing": "linspace"}"#).unwrap();
    assert_eq!(
        config,
        SamplerConfig {
            kind: SamplerKind::Ddpm,
            steps: 3,
            timestep_spacing: Some(TimestepSpacing::Linspace),
            ..Default::default()
        }
    );
    let text = serde_json::to_string(&SamplerConfig::default()).unwrap();
    assert_eq!(text, r#"{"kind":"ddim","steps":50,"eta":0.0}"#);
    assert!(parse(r#"{"step": 3}"#).is_err());
    let text = r#"{"kind":"dpm-solver++","steps":20,"eta":0.0,"use_karras_sigmas":true,"algorithm_type":"sde-dpmsolver++","solver_order":1}"#;
    assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
}

#[test]
fn names_of_samplers() {
    let names = ["ddim", "ddpm", "pndm", "dpm-solver++", "euler", "euler-ancestral"];
    for (kind, name) in SamplerKind::ALL.into_iter().zip(names) {
        assert_eq!((kind.name(), kind.to_string().as_str()), (name, name));
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
        assert_eq!(kind.class().sampler(), kind);
    }
}

#[test]
fn calls_of_the_model_are_those_of_the_table() {
    let plms = SchedulerConfig { skip_prk_steps: true, ..Default::default() };
    let runge_kutta = SchedulerConfig::default();
    let calls = |kind, scheduler: &SchedulerConfig, steps| {
        let config = SamplerConfig { kind, steps, ..Default::default() };
        let asked = RefCell::new(0);
        let denoiser = DenoiserFn(|x_t: Tensor<4>, _: &[usize]| {
            *asked.borrow_mut() += 1;
            x_t * 0.5
        });
        run(&denoiser, scheduler, &config, [1, 2, 2], &[0], 1).unwrap();
        assert_eq!(config.model_calls(scheduler).unwrap(), asked.take());
        config.model_calls(scheduler).unwrap()
    };
    for kind in SamplerKind::ALL {
        let expected = if kind == SamplerKind::Pndm { 10 + 1 } else { 10 };
        assert_eq!(calls(kind, &plms, 10), expected, "{kind}");
        assert_eq!(calls(kind, &plms, 1), 1, "{kind}");
    }
    assert_eq!(calls(SamplerKind::Pndm, &runge_kutta, 10), 10 + 9);
}

#[test]
fn the_samplers_settings_go_before_the_schedulers() {
    let scheduler = SchedulerConfig::default();
    let timesteps =
        |config: &SamplerConfig| config.method(&scheduler).unwrap().timesteps().to_vec();
    let plain = SamplerConfig { kind: SamplerKind::Euler, steps: 5, ..Default::default() };
    let karras = SamplerConfig { use_karras_sigmas: Some(true), ..plain.clone() };
    assert_ne!(timesteps(&plain), timesteps(&karras));

    let of = |algorithm_type, solver_order| {
        let config = SamplerConfig {
            kind: SamplerKind::DpmSolver,
            steps: 6,
            algorithm_type,
            solver_order,
            ..Default::default()
        };
        run(&sine(), &scheduler, &config, [1, 2, 2], &[3], 1).unwrap()
    };
    let second = of(None, None);
    assert_eq!(of(Some(SolverAlgorithm::Ode), Some(2)), second);
    assert_ne!(of(None, Some(1)), second);
    assert_ne!(of(Some(SolverAlgorithm::Sde), None), second);
}

// ---- Errors, each before the model is asked unless the model is the cause. ----

#[test]
fn zero_steps_are_an_error() {
    let config = SamplerConfig { steps: 0, ..Default::default() };
    assert!(matches!(refusal(Default::default(), config), SampleError::NoSteps));
}

#[test]
fn more_steps_than_timesteps_are_an_error() {
    let config = SamplerConfig { steps: 1001, ..Default::default() };
    let error = refusal(Default::default(), config);
    assert!(matches!(error, SampleError::MoreStepsThanTimesteps { steps: 1001, .. }));
}

#[test]
fn an_offset_beyond_the_schedule_is_an_error() {
    let scheduler = SchedulerConfig { steps_offset: 600, ..Default::default() };
    let config = SamplerConfig { steps: 2, ..Default::default() };
    let error = refusal(scheduler, config);
    assert!(matches!(error, SampleError::OffsetBeyondSchedule { timestep: 1100, .. }));
}

#[test]
fn an_impossible_eta_is_an_error() {
    for eta in [-0.1, 1.1, f64::NAN] {
        let config = SamplerConfig { eta, ..Default::default() };
        let error = refusal(Default::default(), config);
        assert!(matches!(error, SampleError::EtaOutOfRange { .. }), "{error}");
    }
}

#[test]
fn an_eta_without_ddim_is_an_error() {
    let config = SamplerConfig { kind: SamplerKind::Ddpm, eta: 0.5, ..Default::default() };
    let error = refusal(Default::default(), config);
    assert!(matches!(error, SampleError::EtaWithoutDdim { eta: 0.5 }));
}

#[test]
fn a_setting_the_sampler_does_not_have_is_an_error() {
    let plain = SamplerConfig::default();
    for (config, name) in [
        (SamplerConfig { use_karras_sigmas: Some(false), ..plain.clone() }, "use_karras_sigmas"),
        (
            SamplerConfig {
                kind: SamplerKind::Euler,
                algorithm_type: Some(SolverAlgorithm::Sde),
                ..plain.clone()
            },
            "algorithm_type",
        ),
        (SamplerConfig { kind: SamplerKind::Pndm, solver_order: Some(2), ..plain }, "solver_order"),
    ] {
        let error = refusal(Default::default(), config);
        assert!(error.to_string().contains("dpm-solver++"), "{error}");
        let SampleError::SettingWithoutMeaning { setting, .. } = error else { panic!("{error}") };
        assert_eq!(setting, name);
    }
}

#[test]
fn too_few_steps_for_the_runge_kutta_method_are_an_error() {
    let config = SamplerConfig { kind: SamplerKind::Pndm, steps: 3, ..Default::default() };
    let error = refusal(Default::default(), config);
    assert!(matches!(error, SampleError::TooFewSteps { steps: 3, least: 4 }));
}

#[test]
fn an_order_the_solver_does_not_have_is_an_error() {
    let config =
        SamplerConfig { kind: SamplerKind::DpmSolver, solver_order: Some(4), ..Default::default() };
    assert!(matches!(refusal(Default::default(), config), SampleError::SolverOrder { order: 4 }));
}

#[test]
fn two_steps_at_one_noise_level_are_an_error() {
    let scheduler = SchedulerConfig {
        timestep_spacing: Some(TimestepSpacing::Leading),
        final_sigmas_type: FinalSigmasType::SigmaMin,
        ..Default::default()
    };
    // 1000 div 1001 is 0.
    let config = SamplerConfig { kind: SamplerKind::DpmSolver, steps: 1000, ..Default::default() };
    let error = refusal(scheduler, config);
    assert!(matches!(error, SampleError::NoiseNotFalling { steps: 1000, step: 1 }));
}

#[test]
fn a_prediction_the_sampler_cannot_use_is_an_error() {
    let scheduler =
        SchedulerConfig { prediction_type: PredictionType::Sample, ..Default::default() };
    let config = SamplerConfig { kind: SamplerKind::Pndm, ..Default::default() };
    let error = refusal(scheduler, config);
    assert!(error.to_string().contains("predicts sample"), "{error}");
    assert!(matches!(error, SampleError::UnsupportedPrediction { .. }));
}

#[test]
fn a_schedule_without_signal_at_its_end_is_an_error_where_it_is_unknown() {
    let scheduler = SchedulerConfig { rescale_betas_zero_snr: true, ..Default::default() };
    let config = SamplerConfig { kind: SamplerKind::Pndm, ..Default::default() };
    let error = refusal(scheduler, config);
    assert!(matches!(error, SampleError::NoZeroSnr { sampler: SamplerKind::Pndm }));
}

#[test]
fn eps_without_signal_is_an_error() {
    let scheduler = SchedulerConfig {
        rescale_betas_zero_snr: true,
        timestep_spacing: Some(TimestepSpacing::Trailing),
        ..Default::default()
    };
    for kind in [SamplerKind::Ddim, SamplerKind::Ddpm] {
        let config = SamplerConfig { kind, ..Default::default() };
        let error = refusal(scheduler.clone(), config.clone());
        assert!(matches!(error, SampleError::NoSignalForEps { timestep: 999 }));
        let v =
            SchedulerConfig { prediction_type: PredictionType::VPrediction, ..scheduler.clone() };
        assert!(config.method(&v).is_ok());
    }
}

#[test]
fn thresholds_no_image_can_have_are_an_error() {
    for (ratio, max) in [(1.1, 1.0), (f64::NAN, 1.0), (0.5, 0.0)] {
        let thresholding = Some(DynamicThresholding { ratio, max });
        let scheduler = SchedulerConfig { thresholding, ..Default::default() };
        for kind in [SamplerKind::Ddim, SamplerKind::Ddpm, SamplerKind::DpmSolver] {
            let error = refusal(scheduler.clone(), SamplerConfig { kind, ..Default::default() });
            assert!(matches!(error, SampleError::Thresholding { .. }), "{error}");
        }
    }
}

#[test]
fn an_empty_clamping_range_is_an_error() {
    for range in [0.0, -1.0, f64::NAN] {
        let scheduler = SchedulerConfig { clip_sample_range: range, ..Default::default() };
        for kind in [SamplerKind::Ddim, SamplerKind::Ddpm] {
            let error = refusal(scheduler.clone(), SamplerConfig { kind, ..Default::default() });
            assert!(matches!(error, SampleError::ClipRange { .. }), "{error}");
        }
    }
}

#[test]
fn an_impossible_schedule_is_an_error() {
    let scheduler = SchedulerConfig { beta_start: 2.0, ..Default::default() };
    let error = refusal(scheduler, SamplerConfig::default());
    assert!(matches!(error, SampleError::Schedule(ScheduleError::BetaOutOfRange { .. })));
}

#[test]
fn a_batch_of_none_is_an_error() {
    let (scheduler, config) = (SchedulerConfig::default(), SamplerConfig::default());
    let error = run(&never(), &scheduler, &config, [1, 2, 2], &[1], 0).unwrap_err();
    assert!(matches!(error, SampleError::EmptyBatch));
}

#[test]
fn an_image_without_pixels_is_an_error() {
    let (scheduler, config) = (SchedulerConfig::default(), SamplerConfig::default());
    let error = run(&never(), &scheduler, &config, [3, 0, 2], &[1], 1).unwrap_err();
    assert!(matches!(error, SampleError::EmptyImage { image_shape: [3, 0, 2] }));
}

#[test]
fn an_output_of_another_shape_is_an_error() {
    let twice = DenoiserFn(|x_t: Tensor<4>, _: &[usize]| Tensor::cat(vec![x_t.clone(), x_t], 1));
    let (scheduler, config) = (SchedulerConfig::default(), SamplerConfig::default());
    match run(&twice, &scheduler, &config, [3, 2, 2], &[1], 1).unwrap_err() {
        SampleError::OutputShape { expected, found } => {
            assert_eq!((expected, found), ([1, 3, 2, 2], [1, 6, 2, 2]));
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_model_that_breaks_names_step_and_seed() {
    for broken in [f32::NAN, f32::INFINITY] {
        let denoiser = DenoiserFn(move |x_t: Tensor<4>, t: &[usize]| {
            let mut values = vec![0.0; t.len()];
            if t[0] == 400 {
                values[1] = broken;
            }
            let data = TensorData::new(values, [t.len(), 1, 1, 1]);
            x_t.clone() + Tensor::from_data(data, &x_t.device())
        });
        let config = SamplerConfig { steps: 5, ..Default::default() };
        let scheduler = SchedulerConfig::default();
        let error = run(&denoiser, &scheduler, &config, [1, 2, 2], &[8, 9, 10], 3).unwrap_err();
        let SampleError::NotFinite { tensor, seed, step, timestep } = error else {
            panic!("{error}");
        };
        assert_eq!((tensor, seed, step, timestep), ("model output", 9, 2, 400.0));
    }
}

#[test]
fn steps_that_overflow_are_an_error() {
    // 1e38 is finite, but x_0 = (x_t - n eps) / s is not.
    let denoiser = DenoiserFn(|x_t: Tensor<4>, _: &[usize]| x_t * 0.0 + 1e38);
    let scheduler = SchedulerConfig {
        clip_sample: false,
        beta_schedule: BetaSchedule::SquaredcosCapV2,
        timestep_spacing: Some(TimestepSpacing::Trailing),
        ..Default::default()
    };
    let config = SamplerConfig { steps: 1, ..Default::default() };
    let error = run(&denoiser, &scheduler, &config, [1, 2, 2], &[3], 1).unwrap_err();
    assert!(matches!(error, SampleError::NotFinite { tensor: "image", seed: 3, step: 0, .. }));
}
