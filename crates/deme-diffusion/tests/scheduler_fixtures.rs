//! Schedules and samplers against diffusers' numbers (`fixtures/schedulers`).
//!
//! The keys of the file say which settings to compute with; see `fixtures/README.md`.

#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::sampler::{Ddpm, ddpm_mean};
use deme_diffusion::{
    BetaSchedule, SamplerConfig, SamplerKind, SamplingMethod, SchedulerClass, SchedulerConfig,
    TimestepSpacing,
};
use deme_merge::StateDict;
use std::collections::BTreeSet;
use std::path::PathBuf;

const TOLERANCE: f32 = 1e-4;

/// Keys of methods that are not implemented.
const LATER: &[&str] = &["pndm_", "dpmsolverpp2m_", "euler_"];

struct Fixture(StateDict);

impl Fixture {
    fn load() -> Self {
        let folder = std::env::var_os("DEME_FIXTURES").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")),
            PathBuf::from,
        );
        let path = folder.join("schedulers/trajectories.safetensors");
        Self(StateDict::load(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn shape(&self, key: &str) -> Vec<usize> {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing")).shape().to_vec()
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is missing")).to_f32().unwrap()
    }

    fn timesteps(&self, key: &str) -> Vec<usize> {
        let tensor = self.0.get(key).unwrap_or_else(|| panic!("{key} is missing"));
        match tensor.to_i64() {
            Ok(whole) => whole.iter().map(|&t| usize::try_from(t).unwrap()).collect(),
            Err(_) => tensor.to_f32().unwrap().iter().map(|&t| whole_timestep(t)).collect(),
        }
    }

    fn image(&self, key: &str) -> Tensor<4> {
        let shape: [usize; 4] = self.shape(key).try_into().unwrap();
        Tensor::from_data(TensorData::new(self.values(key), shape), &Device::default())
    }

    /// Names that end with `suffix`, without it; keys of methods that come later are left out.
    fn names(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let names: Vec<String> = self
            .0
            .names()
            .filter(|key| !LATER.iter().any(|later| key.starts_with(later)))
            .filter(|key| key.starts_with(prefix))
            .filter_map(|key| key.strip_suffix(suffix))
            .map(str::to_owned)
            .collect();
        assert!(!names.is_empty(), "the fixture holds no {prefix}*{suffix}");
        names
    }
}

fn whole_timestep(t: f32) -> usize {
    assert!(t >= 0.0 && t.fract() == 0.0, "{t} is no timestep");
    t as usize
}

fn host(tensor: Tensor<4>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{name}: number of values");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= TOLERANCE, "{name}[{i}]: {found}, expected {expected}");
    }
}

/// The model behind all trajectories.
fn model(x: Tensor<4>, t: usize) -> Tensor<4> {
    x * 0.3 + (0.001 * t as f64 - 0.2)
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
    let kind = match words.remove(0) {
        "ddim" => SamplerKind::Ddim,
        "ddpm" => SamplerKind::Ddpm,
        method => panic!("{name}: unknown method {method}"),
    };
    let mut scheduler = SchedulerConfig::default().as_class(SchedulerClass::Ddim);
    if words.contains(&"sd") {
        scheduler = SchedulerConfig {
            steps_offset: 1,
            set_alpha_to_one: false,
            clip_sample: false,
            ..scaled_linear()
        };
    }
    for word in words {
        match word {
            "sd" => {}
            "clip" => scheduler.clip_sample = true,
            "leading" => scheduler.timestep_spacing = TimestepSpacing::Leading,
            "trailing" => scheduler.timestep_spacing = TimestepSpacing::Trailing,
            "linspace" => scheduler.timestep_spacing = TimestepSpacing::Linspace,
            word => match word.strip_prefix("offset") {
                Some(offset) => scheduler.steps_offset = offset.parse().unwrap(),
                None => panic!("{name}: unknown setting {word}"),
            },
        }
    }
    (scheduler, SamplerConfig { kind, steps, ..Default::default() })
}

#[test]
fn every_key_is_known() {
    let known = ["x0", "noise", "add_noise", "add_noise_timesteps"];
    let unknown: BTreeSet<String> = Fixture::load()
        .0
        .names()
        .filter(|key| {
            let trajectory = key.starts_with("ddim_")
                && (key.ends_with(".timesteps") || key.ends_with(".trajectory"));
            let ddpm =
                key.starts_with("ddpm_") && (key.ends_with(".mean") || key.ends_with(".std"));
            !(known.contains(key)
                || key.ends_with("_alphas_cumprod")
                || trajectory
                || ddpm
                || LATER.iter().any(|later| key.starts_with(later)))
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
    let timesteps = fixture.timesteps("add_noise_timesteps");
    let schedule = SchedulerConfig::default().noise_schedule().unwrap();
    let noisy =
        schedule.add_noise(fixture.image("x0"), fixture.image("noise"), &timesteps).unwrap();
    assert_close("add_noise", &host(noisy), &fixture.values("add_noise"));
}

#[test]
fn trajectories() {
    let fixture = Fixture::load();
    for name in fixture.names("ddim_", ".trajectory") {
        let (scheduler, config) = settings(&name);
        let mut method = config.method(&scheduler).unwrap();
        let timesteps = method.timesteps().to_vec();
        let expected = fixture.timesteps(&format!("{name}.timesteps"));
        assert_eq!(timesteps, expected, "{name}: timesteps");

        let trajectory = fixture.values(&format!("{name}.trajectory"));
        let mut x = fixture.image("x0");
        let rows: Vec<&[f32]> = trajectory.chunks(x.shape().num_elements()).collect();
        assert_eq!(rows.len(), timesteps.len(), "{name}: one row after each step");
        for (index, (&t, row)) in timesteps.iter().zip(rows).enumerate() {
            let output = model(x.clone(), t);
            x = method.step(index, x, output, &mut || panic!("{name} adds no noise"));
            assert_close(&format!("{name} after step {index}"), &host(x.clone()), row);
        }
    }
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
        let index = ddpm.timesteps().iter().position(|&visited| visited == t).unwrap();
        let step = ddpm.steps()[index];

        let x_t = fixture.image("x0");
        let mean = ddpm_mean(x_t.clone(), model(x_t, t), &step);
        assert_close(&name, &host(mean), &fixture.values(&format!("{name}.mean")));
        let std = fixture.values(&format!("{name}.std"));
        assert_close(&format!("{name}.std"), &[step.std_dev as f32], &std);
    }
}
