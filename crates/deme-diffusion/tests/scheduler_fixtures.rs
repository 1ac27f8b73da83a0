//! Schedules and samplers against diffusers' numbers (`fixtures/schedulers`, `fixtures/schedulers_more`).
//!
//! In the first folder the keys of the file say which settings to compute with, in the second a list of cases
//! holds each scheduler's configuration; see `fixtures/README.md`.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::sampler::{Ddpm, ddpm_mean};
use deme_diffusion::{
    BetaSchedule, SamplerConfig, SamplerKind, SamplingMethod, SchedulerConfig, TimestepSpacing,
};
use deme_merge::StateDict;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

const TOLERANCE: f32 = 1e-4;

/// Methods whose whole trajectories are there, as the keys begin.
const METHODS: &[(&str, SamplerKind)] = &[
    ("ddim", SamplerKind::Ddim),
    ("pndm", SamplerKind::Pndm),
    ("dpmsolverpp2m", SamplerKind::DpmSolver),
    ("euler", SamplerKind::Euler),
];

struct Fixture(StateDict);

impl Fixture {
    fn load() -> Self {
        Self::of(&folder().join("schedulers"))
    }

    fn of(folder: &std::path::Path) -> Self {
        let path = folder.join("trajectories.safetensors");
        Self(StateDict::load(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn shape(&self, key: &str) -> Vec<usize> {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing")).shape().to_vec()
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing")).to_f32().unwrap()
    }

    fn timesteps(&self, key: &str) -> Vec<f64> {
        let tensor = self.0.get(key).unwrap_or_else(|| panic!("{key} is missing"));
        match tensor.to_i64() {
            Ok(whole) => whole.iter().map(|&t| t as f64).collect(),
            Err(_) => tensor.to_f32().unwrap().iter().map(|&t| f64::from(t)).collect(),
        }
    }

    fn whole_timesteps(&self, key: &str) -> Vec<usize> {
        self.timesteps(key).into_iter().map(whole_timestep).collect()
    }

    fn image(&self, key: &str) -> Tensor<4> {
        let shape: [usize; 4] = self.shape(key).try_into().unwrap();
        Tensor::from_data(TensorData::new(self.values(key), shape), &Device::default())
    }

    /// Names that begin with `prefix` and end with `suffix`, without the suffix.
    fn names(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let names: Vec<String> = self
            .0
            .names()
            .filter(|key| key.starts_with(prefix))
            .filter_map(|key| key.strip_suffix(suffix))
            .map(str::to_owned)
            .collect();
        assert!(!names.is_empty(), "the fixture holds no {prefix}*{suffix}");
        names
    }
}

fn folder() -> PathBuf {
    std::env::var_os("DEME_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")),
        PathBuf::from,
    )
}

fn whole_timestep(t: f64) -> usize {
    assert!(t >= 0.0 && t.fract() == 0.0, "{t} is no timestep");
    t as usize
}

fn host(tensor: Tensor<4>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_within(name, found, expected, TOLERANCE);
}

fn assert_within(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}: number of values");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance, "{name}[{i}]: {found}, expected {expected}");
    }
}

/// Whole timesteps agree. Between them diffusers finds its place by noise levels in f32, which are good
/// for some thousandths of a timestep.
fn assert_timesteps(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}: number of timesteps");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = match expected.fract() == 0.0 {
            true => (found - expected).abs() < 1e-6,
            false => (found - expected).abs() < 0.01,
        };
        assert!(close, "{name}: timestep {index} is {found}, expected {expected}");
    }
}

/// The model behind all trajectories.
fn model(x: Tensor<4>, t: f64) -> Tensor<4> {
    x * 0.3 + (0.001 * t - 0.2)
}

fn scaled_linear() -> SchedulerConfig {
    SchedulerConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        beta_start: 0.00085,
        beta_end: 0.012,
        ..Default::default()
    }
}

/// The settings in a trajectory's name, `ddim_sd_leading_offset1_10`: method, then settings, then steps.
fn settings(name: &str) -> (SchedulerConfig, SamplerConfig) {
    let mut words: Vec<&str> = name.split('_').collect();
    let steps = words.pop().unwrap().parse().unwrap_or_else(|_| panic!("{name}: steps"));
    let method = words.remove(0);
    let Some(&(_, kind)) = METHODS.iter().find(|(key, _)| *key == method) else {
        panic!("{name}: unknown method {method}");
    };
    let mut scheduler = match kind {
        SamplerKind::DpmSolver | SamplerKind::Euler => scaled_linear(),
        _ => SchedulerConfig::default(),
    }
    .as_class(kind.class());
    if words.contains(&"sd") {
        scheduler = SchedulerConfig {
            steps_offset: 1,
            set_alpha_to_one: Some(false),
            clip_sample: false,
            skip_prk_steps: true,
            ..scaled_linear().as_class(kind.class())
        };
    }
    for word in words {
        match word {
            "sd" => {}
            "clip" => scheduler.clip_sample = true,
            "karras" => scheduler.use_karras_sigmas = true,
            "leading" => scheduler.timestep_spacing = Some(TimestepSpacing::Leading),
            "trailing" => scheduler.timestep_spacing = Some(TimestepSpacing::Trailing),
            "linspace" => scheduler.timestep_spacing = Some(TimestepSpacing::Linspace),
            word => match word.strip_prefix("offset") {
                Some(offset) => scheduler.steps_offset = offset.parse().unwrap(),
                None => panic!("{name}: unknown setting {word}"),
            },
        }
    }
    (scheduler, SamplerConfig { kind, steps, ..Default::default() })
}

/// Runs the sampler on the model of the fixtures, from `fixture`'s `x0` times the initial sigma, and compares
/// its times and all its steps with `{name}.timesteps` and `{name}.trajectory`.
fn follow(
    fixture: &Fixture,
    name: &str,
    method: &mut dyn SamplingMethod,
    noise: &mut dyn FnMut() -> Tensor<4>,
    tolerance: impl Fn(&[f32]) -> f32,
) {
    let timesteps = method.timesteps().to_vec();
    assert_timesteps(name, &timesteps, &fixture.timesteps(&format!("{name}.timesteps")));
    let trajectory = fixture.values(&format!("{name}.trajectory"));
    let mut x = fixture.image("x0") * method.init_noise_sigma();
    let rows: Vec<&[f32]> = trajectory.chunks(x.shape().num_elements()).collect();
    assert_eq!(rows.len(), timesteps.len(), "{name}: one row after each step");
    for (index, (&t, row)) in timesteps.iter().zip(rows).enumerate() {
        let output = model(method.scale_model_input(index, x.clone()), t);
        x = method.step(index, x, output, noise);
        let place = format!("{name} after step {index}");
        assert_within(&place, &host(x.clone()), row, tolerance(row));
    }
}

#[test]
fn every_key_is_known() {
    let known = ["x0", "noise", "add_noise", "add_noise_timesteps"];
    let unknown: BTreeSet<String> = Fixture::load()
        .0
        .names()
        .filter(|key| {
            let trajectory =
                METHODS.iter().any(|(method, _)| key.split('_').next() == Some(method))
                    && (key.ends_with(".timesteps") || key.ends_with(".trajectory"));
            let ddpm =
                key.starts_with("ddpm_") && (key.ends_with(".mean") || key.ends_with(".std"));
            !(known.contains(key) || key.ends_with("_alphas_cumprod") || trajectory || ddpm)
        })
        .map(str::to_owned)
        .collect();
    assert!(unknown.is_empty(), "keys no test looks at: {unknown:?}");
}

#[test]
fn alphas_cumprod() {
    let fixture = Fixture::load();
    for name in fixture.names("", "_alphas_cumprod") {
        let expected = fixture.values(&format!("{name}_alphas_cumprod"));
        let scheduler = match name.as_str() {
            "linear" => SchedulerConfig::default(),
            "scaled_linear" => scaled_linear(),
            "cosine" | "squaredcos_cap_v2" => SchedulerConfig {
                beta_schedule: BetaSchedule::SquaredcosCapV2,
                ..Default::default()
            },
            name => panic!("unknown schedule {name}"),
        };
        let scheduler = SchedulerConfig { num_train_timesteps: expected.len(), ..scheduler };
        let schedule = scheduler.noise_schedule().unwrap();
        let found: Vec<f32> = schedule.alphas_cumprod().iter().map(|&a| a as f32).collect();
        assert_close(&name, &found, &expected);
    }
}

#[test]
fn add_noise() {
    let fixture = Fixture::load();
    let timesteps = fixture.whole_timesteps("add_noise_timesteps");
    let schedule = SchedulerConfig::default().noise_schedule().unwrap();
    let noisy =
        schedule.add_noise(fixture.image("x0"), fixture.image("noise"), &timesteps).unwrap();
    assert_close("add_noise", &host(noisy), &fixture.values("add_noise"));
}

#[test]
fn trajectories() {
    let fixture = Fixture::load();
    for &(key, _) in METHODS {
        for name in fixture.names(&format!("{key}_"), ".trajectory") {
            let (scheduler, config) = settings(&name);
            let mut method = config.method(&scheduler).unwrap();
            let no_noise = &mut || panic!("{name} adds no noise");
            follow(&fixture, &name, method.as_mut(), no_noise, |_| TOLERANCE);
        }
    }
}

/// A trajectory of `schedulers_more`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    sampler: SamplerKind,
    steps: usize,
    eta: f64,
    /// Text of a `scheduler_config.json`, of the sampler's own class or of another.
    scheduler_config: String,
}

#[test]
fn trajectories_under_many_settings() {
    let folder = folder().join("schedulers_more");
    if std::env::var_os("DEME_FIXTURES").is_some() && !folder.exists() {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    let fixture = Fixture::of(&folder);
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    let mut kinds = BTreeSet::new();
    for Case { name, sampler, steps, eta, scheduler_config } in cases {
        let scheduler = SchedulerConfig::from_json(&scheduler_config)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = SamplerConfig { kind: sampler, steps, eta, ..Default::default() };
        let mut method = config.method(&scheduler).unwrap_or_else(|e| panic!("{name}: {e}"));
        let sigma = fixture.values(&format!("{name}.init_noise_sigma"))[0];
        let found = method.init_noise_sigma() as f32;
        assert!((found - sigma).abs() <= 1e-4 * sigma, "{name}: {found}, expected {sigma}");

        let key = format!("{name}.noise");
        let drawn = fixture.0.get(&key).map(|_| fixture.values(&key)).unwrap_or_default();
        let shape = fixture.image("x0").dims();
        let mut rows = drawn.chunks(shape.iter().product());
        let mut noise = || {
            let row = rows.next().unwrap_or_else(|| panic!("{name}: no noise left"));
            Tensor::from_data(TensorData::new(row.to_vec(), shape), &Device::default())
        };
        // The model makes some of these images large: diffusers' own f32 is no better than this.
        let tolerance =
            |row: &[f32]| TOLERANCE * row.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
        follow(&fixture, &name, method.as_mut(), &mut noise, tolerance);
        kinds.insert(sampler.name());
    }
    assert_eq!(kinds.len(), SamplerKind::ALL.len(), "every sampler has its cases: {kinds:?}");
}

#[test]
fn ddpm_means_and_deviations() {
    let fixture = Fixture::load();
    for name in fixture.names("ddpm_", ".mean") {
        let (variance, t) = name.strip_prefix("ddpm_").unwrap().split_once('.').unwrap();
        let t: usize = t.parse().unwrap();
        let scheduler = SchedulerConfig {
            variance_type: serde_json::from_value(variance.into()).unwrap(),
            ..Default::default()
        };
        let ddpm = Ddpm::new(&scheduler, scheduler.num_train_timesteps).unwrap();
        let index = ddpm.timesteps().iter().position(|&visited| visited == t as f64).unwrap();
        let step = ddpm.steps()[index];

        let x_t = fixture.image("x0");
        let mean = ddpm_mean(x_t.clone(), model(x_t, t as f64), &step);
        assert_close(&name, &host(mean), &fixture.values(&format!("{name}.mean")));
        let std = fixture.values(&format!("{name}.std"));
        assert_close(&format!("{name}.std"), &[step.std_dev as f32], &std);
    }
}
