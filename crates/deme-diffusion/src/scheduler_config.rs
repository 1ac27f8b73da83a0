//! `scheduler_config.json`, as diffusers writes and reads it.
//!
//! The classes share the schedule's fields, so a folder saved with one can be sampled with another
//! ([`SchedulerConfig::as_class`], diffusers' `from_config`): a field the file names goes over, and a field
//! it does not name is at the default of the class in force. A field whose value asks for something not
//! implemented is refused by name, never dropped.
//! Not here: what the fields do (`noise_schedule`, `prediction`, `sampler`).

use crate::noise_schedule::{BetaSchedule, NoiseSchedule, NoiseScheduleConfig, ScheduleError};
use crate::prediction::PredictionType;
use crate::sampler::{DpmSolverConfig, DynamicThresholding, SamplerKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// diffusers' class of the saved scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SchedulerClass {
    /// Ancestral sampling (Ho et al. 2020).
    #[default]
    #[serde(rename = "DDPMScheduler")]
    Ddpm,
    /// Denoising diffusion implicit models (Song et al. 2021).
    #[serde(rename = "DDIMScheduler")]
    Ddim,
    /// Pseudo numerical methods (Liu et al. 2022).
    #[serde(rename = "PNDMScheduler")]
    Pndm,
    /// DPM-Solver++ (Lu et al. 2022).
    #[serde(rename = "DPMSolverMultistepScheduler")]
    DpmSolver,
    /// Euler's method over sigma (Karras et al. 2022).
    #[serde(rename = "EulerDiscreteScheduler")]
    Euler,
    /// Euler's method with noise added in each step.
    #[serde(rename = "EulerAncestralDiscreteScheduler")]
    EulerAncestral,
}

impl SchedulerClass {
    /// The sampler the class stands for.
    pub fn sampler(self) -> SamplerKind {
        match self {
            Self::Ddpm => SamplerKind::Ddpm,
            Self::Ddim => SamplerKind::Ddim,
            Self::Pndm => SamplerKind::Pndm,
            Self::DpmSolver => SamplerKind::DpmSolver,
            Self::Euler => SamplerKind::Euler,
            Self::EulerAncestral => SamplerKind::EulerAncestral,
        }
    }
}

/// Which of the T training timesteps a sampler with fewer steps visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSpacing {
    /// Multiples of `T / steps` (integer division), plus `steps_offset`.
    Leading,
    /// From T - 1 downwards in strides of `T / steps`.
    Trailing,
    /// Evenly from T - 1 to 0, both included.
    Linspace,
}

/// Where a sampler over noise levels ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// Without noise.
    #[default]
    Zero,
    /// At the noise level of timestep 0.
    SigmaMin,
}

/// Variance of a DDPM step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The posterior's, `(1 - abar_prev) / (1 - abar_t) beta_t`.
    #[default]
    FixedSmall,
    /// The same, computed by way of its logarithm.
    FixedSmallLog,
    /// `beta_t`.
    FixedLarge,
}

/// diffusers' scheduler configuration. Defaults: DDPM, linear betas, 1000 steps.
///
/// Of a class in force it holds the class's fields; the others wait for the sampler that knows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Class the folder was saved with.
    pub class: SchedulerClass,
    /// T, the number of steps of the forward process.
    pub num_train_timesteps: usize,
    /// How beta grows.
    pub beta_schedule: BetaSchedule,
    /// Beta at t = 0.
    pub beta_start: f64,
    /// Beta at t = T - 1.
    pub beta_end: f64,
    /// Whether the schedule is rescaled to end without signal; see [`NoiseScheduleConfig`].
    #[serde(skip_serializing_if = "is_default")]
    pub rescale_betas_zero_snr: bool,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
    /// DDPM, DDIM: whether the predicted x_0 is clamped to `[-clip_sample_range, clip_sample_range]` in
    /// each step.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// DDPM, DDIM, DPM-Solver++: how the predicted x_0 is thresholded in each step (diffusers'
    /// `thresholding`); goes before `clip_sample`.
    #[serde(skip_serializing_if = "is_default")]
    pub thresholding: Option<DynamicThresholding>,
    /// DDIM, PNDM: whether the abar behind the last step is 1; otherwise it is `abar_0`. Absent, true for
    /// DDIM and false for PNDM.
    #[serde(skip_serializing_if = "is_default")]
    pub set_alpha_to_one: Option<bool>,
    /// Added to every timestep of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Which timesteps are visited. Absent, leading for DDPM, DDIM and PNDM, and linspace for the others.
    #[serde(skip_serializing_if = "is_default")]
    pub timestep_spacing: Option<TimestepSpacing>,
    /// DDPM: variance of a step.
    pub variance_type: VarianceType,
    /// PNDM: whether the first three steps go without the Runge-Kutta method.
    #[serde(skip_serializing_if = "is_default")]
    pub skip_prk_steps: bool,
    /// DPM-Solver++, Euler: noise levels spaced as Karras et al. 2022 space them, eq. 5 with rho = 7.
    #[serde(skip_serializing_if = "is_default")]
    pub use_karras_sigmas: bool,
    /// DPM-Solver++, Euler: where the last step leads.
    #[serde(skip_serializing_if = "is_default")]
    pub final_sigmas_type: FinalSigmasType,
    /// DPM-Solver++: the solver's own settings.
    #[serde(skip_serializing_if = "is_default")]
    pub dpm_solver: DpmSolverConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        let schedule = NoiseScheduleConfig::default();
        Self {
            class: SchedulerClass::Ddpm,
            num_train_timesteps: schedule.num_train_timesteps,
            beta_schedule: schedule.beta_schedule,
            beta_start: schedule.beta_start,
            beta_end: schedule.beta_end,
            rescale_betas_zero_snr: schedule.rescale_betas_zero_snr,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            thresholding: None,
            set_alpha_to_one: None,
            steps_offset: 0,
            timestep_spacing: None,
            variance_type: VarianceType::FixedSmall,
            skip_prk_steps: false,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmasType::Zero,
            dpm_solver: DpmSolverConfig::default(),
        }
    }
}

/// A field of diffusers that is refused unless it has a value that switches it off.
struct OnlyAt {
    key: &'static str,
    /// As JSON text.
    values: &'static [&'static str],
}

const NOT_IMPLEMENTED: &[OnlyAt] = &[
    OnlyAt { key: "trained_betas", values: &["null"] },
    OnlyAt { key: "timestep_values", values: &["null"] },
    OnlyAt { key: "use_exponential_sigmas", values: &["false", "null"] },
    OnlyAt { key: "use_beta_sigmas", values: &["false", "null"] },
    OnlyAt { key: "use_lu_lambdas", values: &["false", "null"] },
    OnlyAt { key: "use_flow_sigmas", values: &["false", "null"] },
    OnlyAt { key: "use_dynamic_shifting", values: &["false", "null"] },
    OnlyAt { key: "shift_terminal", values: &["null"] },
    OnlyAt { key: "interpolation_type", values: &["\"linear\""] },
    OnlyAt { key: "timestep_type", values: &["\"discrete\""] },
    OnlyAt { key: "sigma_min", values: &["null"] },
    OnlyAt { key: "sigma_max", values: &["null"] },
];

/// Keys without effect here: versions, the tensor library of diffusers 0.1, settings of flow sigmas (which
/// themselves are refused), and what classes not implemented leave behind in a file that was saved again as
/// one that is.
const HARMLESS: &[&str] = &[
    "_diffusers_version",
    "_use_default_values",
    "tensor_format",
    "flow_shift",
    "time_shift_type",
    "predict_x0",
    "solver_p",
    "disable_corrector",
    "noise_sampler_seed",
];

/// diffusers before 0.10: whether the model predicts eps (or else x_0).
const PREDICT_EPSILON: &str = "predict_epsilon";

/// Python writes it without quotes, which is no JSON.
const MINUS_INFINITY: &str = "-Infinity";

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`. Absent fields have diffusers' defaults.
    ///
    /// # Errors
    /// [`SchedulerConfigError::Json`] for text that is no JSON object;
    /// [`SchedulerConfigError::UnknownClass`] for a class that is not implemented;
    /// [`SchedulerConfigError::NotImplemented`] for a field whose value is not implemented;
    /// [`SchedulerConfigError::UnknownKey`] for a field of no known diffusers version;
    /// [`SchedulerConfigError::Value`] for a value of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, SchedulerConfigError> {
        let mut fields: Map<String, Value> =
            serde_json::from_str(&quote_infinities(text)).map_err(SchedulerConfigError::Json)?;
        let class = match fields.shift_remove("_class_name") {
            None => SchedulerClass::default(),
            Some(name) => serde_json::from_value(name.clone())
                .map_err(|_| SchedulerConfigError::UnknownClass { found: plain(&name) })?,
        };
        for OnlyAt { key, values } in NOT_IMPLEMENTED {
            if let Some(found) = fields.shift_remove(*key)
                && !values.contains(&found.to_string().as_str())
            {
                return Err(SchedulerConfigError::not_implemented(key, &found));
            }
        }
        for key in HARMLESS {
            fields.shift_remove(*key);
        }
        match fields.shift_remove(PREDICT_EPSILON) {
            None | Some(Value::Bool(true) | Value::Null) => {}
            Some(Value::Bool(false)) => {
                fields.entry("prediction_type").or_insert(json!("sample"));
            }
            Some(found) => return Err(SchedulerConfigError::value(PREDICT_EPSILON, &found)),
        }
        let mut config = Self { class, ..Self::default() };
        config.thresholding = take_thresholding(&mut fields)?;
        for (key, value) in fields {
            config.set(&key, value)?;
        }
        Ok(config)
    }

    /// The text of a `scheduler_config.json` that diffusers loads.
    ///
    /// It holds the fields of the class, and a field of another class only where it is not at its
    /// default, so that [`from_json`](Self::from_json) gives back this very configuration. Fields whose
    /// default is the class's matter stay out of the file when they are absent here.
    pub fn to_json(&self) -> String {
        use SchedulerClass::{Ddim, Ddpm, DpmSolver, Euler, EulerAncestral, Pndm};
        let default = Self::default();
        let mut fields = Map::new();
        fields.insert("_class_name".to_owned(), json!(self.class));
        fields.insert("_diffusers_version".to_owned(), json!(WRITTEN_DIFFUSERS_VERSION));
        let every = &[Ddpm, Ddim, Pndm, DpmSolver, Euler, EulerAncestral][..];
        let mut put = |owners: &[SchedulerClass], key: &str, value: Value, unset: Value| {
            if owners.contains(&self.class) || value != unset {
                fields.insert(key.to_owned(), value);
            }
        };
        put(every, "num_train_timesteps", json!(self.num_train_timesteps), Value::Null);
        put(every, "beta_start", json!(self.beta_start), Value::Null);
        put(every, "beta_end", json!(self.beta_end), Value::Null);
        put(every, "beta_schedule", json!(self.beta_schedule), Value::Null);
        put(every, "trained_betas", Value::Null, Value::Null);
        let clamping = &[Ddpm, Ddim][..];
        put(clamping, "clip_sample", json!(self.clip_sample), json!(default.clip_sample));
        let range = (self.clip_sample_range, default.clip_sample_range);
        put(clamping, "clip_sample_range", json!(range.0), json!(range.1));
        put(every, "prediction_type", json!(self.prediction_type), Value::Null);
        put(every, "steps_offset", json!(self.steps_offset), Value::Null);
        put(&[], "timestep_spacing", json!(self.timestep_spacing), Value::Null);
        let thresholding = &[Ddpm, Ddim, DpmSolver][..];
        let (found, off) = (self.thresholding.unwrap_or_default(), DynamicThresholding::default());
        put(thresholding, "thresholding", json!(self.thresholding.is_some()), json!(false));
        put(thresholding, "dynamic_thresholding_ratio", json!(found.ratio), json!(off.ratio));
        put(thresholding, "sample_max_value", json!(found.max), json!(off.max));
        let rescaling = &[Ddpm, Ddim, DpmSolver, Euler, EulerAncestral][..];
        let rescale = json!(self.rescale_betas_zero_snr);
        put(rescaling, "rescale_betas_zero_snr", rescale, json!(false));
        put(&[], "set_alpha_to_one", json!(self.set_alpha_to_one), Value::Null);
        put(&[Ddpm], "variance_type", json!(self.variance_type), json!(default.variance_type));
        put(&[Pndm], "skip_prk_steps", json!(self.skip_prk_steps), json!(false));
        let over_sigmas = &[DpmSolver, Euler][..];
        put(over_sigmas, "use_karras_sigmas", json!(self.use_karras_sigmas), json!(false));
        let last = json!(self.final_sigmas_type);
        put(over_sigmas, "final_sigmas_type", last, json!(default.final_sigmas_type));
        let (solver, unset) = (&self.dpm_solver, &default.dpm_solver);
        let of_solver = &[DpmSolver][..];
        let algorithm = (json!(solver.algorithm_type), json!(unset.algorithm_type));
        put(of_solver, "algorithm_type", algorithm.0, algorithm.1);
        put(of_solver, "solver_order", json!(solver.solver_order), json!(unset.solver_order));
        put(of_solver, "solver_type", json!(solver.solver_type), json!(unset.solver_type));
        put(of_solver, "lower_order_final", json!(solver.lower_order_final), json!(true));
        put(of_solver, "euler_at_final", json!(solver.euler_at_final), json!(false));
        put(&[], "lambda_min_clipped", json!(solver.lambda_min_clipped), Value::Null);
        let mut text = serde_json::to_string_pretty(&Value::Object(fields))
            .expect("a map of numbers, strings and booleans is JSON");
        text.push('\n');
        text
    }

    /// The same settings under another class, as diffusers' `from_config` does it: shared fields
    /// keep their values, the others are at their defaults unless the file named them.
    pub fn as_class(&self, class: SchedulerClass) -> Self {
        Self { class, ..self.clone() }
    }

    /// Which timesteps the class visits.
    pub fn spacing(&self) -> TimestepSpacing {
        use SchedulerClass::{Ddim, Ddpm, DpmSolver, Euler, EulerAncestral, Pndm};
        self.timestep_spacing.unwrap_or(match self.class {
            Ddpm | Ddim | Pndm => TimestepSpacing::Leading,
            DpmSolver | Euler | EulerAncestral => TimestepSpacing::Linspace,
        })
    }

    /// Whether the abar behind the class's last step is 1, or else `abar_0`.
    pub fn ends_without_noise(&self) -> bool {
        self.set_alpha_to_one.unwrap_or(self.class != SchedulerClass::Pndm)
    }

    /// The part that determines the noise schedule.
    pub fn noise_schedule_config(&self) -> NoiseScheduleConfig {
        NoiseScheduleConfig {
            num_train_timesteps: self.num_train_timesteps,
            beta_schedule: self.beta_schedule,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            rescale_betas_zero_snr: self.rescale_betas_zero_snr,
        }
    }

    /// The noise schedule.
    ///
    /// # Errors
    /// Those of [`NoiseSchedule::new`].
    pub fn noise_schedule(&self) -> Result<NoiseSchedule, ScheduleError> {
        NoiseSchedule::new(&self.noise_schedule_config())
    }

    fn set(&mut self, key: &str, value: Value) -> Result<(), SchedulerConfigError> {
        fn read<T: serde::de::DeserializeOwned>(
            key: &str,
            value: Value,
            target: &mut T,
        ) -> Result<(), SchedulerConfigError> {
            *target = serde_json::from_value(value.clone())
                .map_err(|_| SchedulerConfigError::value(key, &value))?;
            Ok(())
        }
        /// Null stands for the default.
        fn read_optional<T: serde::de::DeserializeOwned>(
            key: &str,
            value: Value,
            target: &mut T,
        ) -> Result<(), SchedulerConfigError> {
            if value.is_null() { Ok(()) } else { read(key, value, target) }
        }
        /// The field names one of several variants: another name is a variant not implemented.
        fn read_name<T: serde::de::DeserializeOwned>(
            key: &str,
            value: Value,
            target: &mut T,
        ) -> Result<(), SchedulerConfigError> {
            match read(key, value.clone(), target) {
                Err(_) if value.is_string() => {
                    Err(SchedulerConfigError::not_implemented(key, &value))
                }
                result => result,
            }
        }
        match key {
            "num_train_timesteps" => read(key, value, &mut self.num_train_timesteps),
            "beta_start" => read(key, value, &mut self.beta_start),
            "beta_end" => read(key, value, &mut self.beta_end),
            "beta_schedule" => read_name(key, value, &mut self.beta_schedule),
            "prediction_type" => read_name(key, value, &mut self.prediction_type),
            "clip_sample" => read(key, value, &mut self.clip_sample),
            "clip_sample_range" => read(key, value, &mut self.clip_sample_range),
            "set_alpha_to_one" => read(key, value, &mut self.set_alpha_to_one),
            "steps_offset" => read(key, value, &mut self.steps_offset),
            "timestep_spacing" => read_name(key, value, &mut self.timestep_spacing),
            // Null in files of DPM-Solver++, where it says that the model predicts no variance.
            "variance_type" if value.is_null() => Ok(()),
            "variance_type" => read_name(key, value, &mut self.variance_type),
            "rescale_betas_zero_snr" => read_optional(key, value, &mut self.rescale_betas_zero_snr),
            "skip_prk_steps" => read(key, value, &mut self.skip_prk_steps),
            "use_karras_sigmas" => read_optional(key, value, &mut self.use_karras_sigmas),
            "final_sigmas_type" => read_name(key, value, &mut self.final_sigmas_type),
            "algorithm_type" => read_name(key, value, &mut self.dpm_solver.algorithm_type),
            "solver_order" => read(key, value, &mut self.dpm_solver.solver_order),
            "solver_type" => read_name(key, value, &mut self.dpm_solver.solver_type),
            "lower_order_final" => read(key, value, &mut self.dpm_solver.lower_order_final),
            "euler_at_final" => read(key, value, &mut self.dpm_solver.euler_at_final),
            "lambda_min_clipped" if value == MINUS_INFINITY => Ok(()),
            "lambda_min_clipped" => read(key, value, &mut self.dpm_solver.lambda_min_clipped),
            _ => {
                Err(SchedulerConfigError::UnknownKey { key: key.to_owned(), value: plain(&value) })
            }
        }
    }
}

/// Takes diffusers' three fields of thresholding out of `fields`.
fn take_thresholding(
    fields: &mut Map<String, Value>,
) -> Result<Option<DynamicThresholding>, SchedulerConfigError> {
    let mut numbers = DynamicThresholding::default();
    for (key, number) in
        [("dynamic_thresholding_ratio", &mut numbers.ratio), ("sample_max_value", &mut numbers.max)]
    {
        if let Some(value) = fields.shift_remove(key) {
            *number = value.as_f64().ok_or_else(|| SchedulerConfigError::value(key, &value))?;
        }
    }
    match fields.shift_remove("thresholding") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(numbers)),
        Some(found) => Err(SchedulerConfigError::value("thresholding", &found)),
    }
}

/// Puts quotes around Python's `-Infinity`, `Infinity` and `NaN`, except inside strings.
fn quote_infinities(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let (mut in_string, mut rest) = (false, text);
    while let Some(next) = rest.chars().next() {
        let number = [MINUS_INFINITY, "Infinity", "NaN"].into_iter().find(|n| rest.starts_with(n));
        let taken = match number {
            Some(number) if !in_string => {
                quoted.extend(['"'].into_iter().chain(number.chars()).chain(['"']));
                number.len()
            }
            // A character behind a backslash is never the end of a string.
            _ if in_string && next == '\\' => {
                rest.chars().take(2).for_each(|c| quoted.push(c));
                rest.chars().take(2).map(char::len_utf8).sum()
            }
            _ => {
                in_string ^= next == '"';
                quoted.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    quoted
}

/// The version of diffusers whose fields [`SchedulerConfig::to_json`] writes.
const WRITTEN_DIFFUSERS_VERSION: &str = "0.42.1";

/// A JSON value as a message shows it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Why a `scheduler_config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerConfigError {
    /// Not a JSON object.
    #[error("the scheduler configuration is no JSON object: {0}")]
    Json(#[source] serde_json::Error),
    /// A class that is not implemented.
    #[error(
        "scheduler class {found} is not implemented; DDPMScheduler, DDIMScheduler, PNDMScheduler, \
         DPMSolverMultistepScheduler, EulerDiscreteScheduler and EulerAncestralDiscreteScheduler are \
         (they share the schedule's fields: changing _class_name may be all that is needed)"
    )]
    UnknownClass {
        /// `_class_name` of the file.
        found: String,
    },
    /// A known field with a value that is not implemented.
    #[error("scheduler setting {key} = {found} is not implemented; supported: {supported}")]
    NotImplemented {
        /// The field.
        key: String,
        /// Its value.
        found: String,
        /// The values that are.
        supported: &'static str,
    },
    /// A field of no known diffusers version.
    #[error(
        "unknown scheduler setting {key} = {value}; it may change what the model computes, so it is \
         not ignored: remove it from the file if it has no effect"
    )]
    UnknownKey {
        /// The field.
        key: String,
        /// Its value.
        value: String,
    },
    /// A value of the wrong kind.
    #[error("scheduler setting {key} cannot be {found}; expected {expected}")]
    Value {
        /// The field.
        key: String,
        /// Its value.
        found: String,
        /// What kind of value belongs there.
        expected: &'static str,
    },
}

impl SchedulerConfigError {
    fn not_implemented(key: &str, found: &Value) -> Self {
        Self::NotImplemented {
            key: key.to_owned(),
            found: plain(found),
            supported: match key {
                "beta_schedule" => "linear, scaled_linear, squaredcos_cap_v2",
                "prediction_type" => "epsilon, sample, v_prediction",
                "timestep_spacing" => "leading, trailing, linspace",
                "variance_type" => "fixed_small, fixed_small_log, fixed_large",
                "final_sigmas_type" => "zero, sigma_min",
                "algorithm_type" => "dpmsolver++, sde-dpmsolver++",
                "solver_type" => "midpoint, heun",
                "interpolation_type" => "linear",
                "timestep_type" => "discrete",
                "trained_betas" | "timestep_values" | "shift_terminal" | "sigma_min"
                | "sigma_max" => "null",
                _ => "false",
            },
        }
    }

    fn value(key: &str, found: &Value) -> Self {
        Self::Value {
            key: key.to_owned(),
            found: plain(found),
            expected: match key {
                "num_train_timesteps" | "steps_offset" | "solver_order" => {
                    "a whole number, 0 or more"
                }
                "beta_start"
                | "beta_end"
                | "clip_sample_range"
                | "dynamic_thresholding_ratio"
                | "sample_max_value"
                | "lambda_min_clipped" => "a number",
                "beta_schedule" | "prediction_type" | "timestep_spacing" | "variance_type"
                | "final_sigmas_type" | "algorithm_type" | "solver_type" => "a name",
                _ => "true or false",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sampler::{SolverAlgorithm, SolverType};

    #[test]
    fn the_first_published_checkpoints() {
        let text = r#"{"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1",
            "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": true,
            "num_train_timesteps": 1000, "tensor_format": "pt", "timestep_values": null,
            "trained_betas": null, "variance_type": "fixed_large"}"#;
        let expected =
            SchedulerConfig { variance_type: VarianceType::FixedLarge, ..Default::default() };
        assert_eq!(SchedulerConfig::from_json(text).unwrap(), expected);
    }

    #[test]
    fn written_and_read_back() {
        let config = SchedulerConfig {
            class: SchedulerClass::Ddim,
            num_train_timesteps: 400,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            rescale_betas_zero_snr: true,
            prediction_type: PredictionType::VPrediction,
            clip_sample: false,
            clip_sample_range: 2.0,
            thresholding: Some(DynamicThresholding { ratio: 0.9, max: 3.0 }),
            set_alpha_to_one: Some(false),
            steps_offset: 1,
            timestep_spacing: Some(TimestepSpacing::Trailing),
            variance_type: VarianceType::FixedLarge,
            skip_prk_steps: true,
            use_karras_sigmas: true,
            final_sigmas_type: FinalSigmasType::SigmaMin,
            dpm_solver: DpmSolverConfig {
                algorithm_type: SolverAlgorithm::Sde,
                solver_order: 1,
                solver_type: SolverType::Heun,
                lower_order_final: false,
                euler_at_final: true,
                lambda_min_clipped: Some(-5.1),
            },
        };
        for kind in SamplerKind::ALL {
            for config in [config.clone(), SchedulerConfig::default()] {
                let config = config.as_class(kind.class());
                let text = config.to_json();
                assert_eq!(SchedulerConfig::from_json(&text).unwrap(), config, "{text}");
            }
        }
    }

    #[test]
    fn a_ddpm_file_has_only_the_fields_of_its_class() {
        let text = SchedulerConfig::default().to_json();
        assert!(text.contains(r#""_class_name": "DDPMScheduler""#));
        assert!(text.contains(r#""variance_type": "fixed_small""#));
        for foreign in ["set_alpha_to_one", "skip_prk_steps", "solver_order", "use_karras_sigmas"] {
            assert!(!text.contains(foreign), "{text}");
        }
    }

    #[test]
    fn the_file_of_stable_diffusion_1() {
        let text = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
            "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;
        let expected = SchedulerConfig {
            class: SchedulerClass::Pndm,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            set_alpha_to_one: Some(false),
            skip_prk_steps: true,
            steps_offset: 1,
            clip_sample: false,
            ..Default::default()
        };
        assert_eq!(SchedulerConfig::from_json(text).unwrap(), expected);
    }

    #[test]
    fn a_file_of_the_solver_as_python_writes_it() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
            "algorithm_type": "sde-dpmsolver++", "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "dynamic_thresholding_ratio": 0.995, "euler_at_final": false,
            "final_sigmas_type": "zero", "flow_shift": 1.0, "lambda_min_clipped": -Infinity,
            "lower_order_final": true, "num_train_timesteps": 1000, "prediction_type": "epsilon",
            "rescale_betas_zero_snr": false, "sample_max_value": 1.0, "solver_order": 2,
            "solver_type": "midpoint", "steps_offset": 0, "thresholding": false,
            "time_shift_type": "exponential", "timestep_spacing": "linspace", "trained_betas": null,
            "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
            "use_flow_sigmas": false, "use_karras_sigmas": true, "use_lu_lambdas": false,
            "variance_type": null}"#;
        let expected = SchedulerConfig {
            class: SchedulerClass::DpmSolver,
            beta_schedule: BetaSchedule::ScaledLinear,
            beta_start: 0.00085,
            beta_end: 0.012,
            timestep_spacing: Some(TimestepSpacing::Linspace),
            use_karras_sigmas: true,
            dpm_solver: DpmSolverConfig {
                algorithm_type: SolverAlgorithm::Sde,
                ..Default::default()
            },
            ..Default::default()
        };
        assert_eq!(SchedulerConfig::from_json(text).unwrap(), expected);
        let clipped = text.replace("-Infinity", "-5.1");
        let found = SchedulerConfig::from_json(&clipped).unwrap().dpm_solver.lambda_min_clipped;
        assert_eq!(found, Some(-5.1));
    }

    #[test]
    fn infinities_inside_strings_stay_what_they_are() {
        assert_eq!(quote_infinities(r#"{"a": -Infinity}"#), r#"{"a": "-Infinity"}"#);
        let text = r#"{"\\\"Infinity": "NaN \" NaN", "b": NaN}"#;
        assert_eq!(quote_infinities(text), r#"{"\\\"Infinity": "NaN \" NaN", "b": "NaN"}"#);
    }

    #[test]
    fn what_a_file_leaves_open_is_the_class_s_matter() {
        let config = SchedulerConfig::default();
        let of = |kind: SamplerKind| {
            let config = config.as_class(kind.class());
            (config.spacing(), config.ends_without_noise())
        };
        assert_eq!(of(SamplerKind::Ddim), (TimestepSpacing::Leading, true));
        assert_eq!(of(SamplerKind::Pndm), (TimestepSpacing::Leading, false));
        for kind in [SamplerKind::DpmSolver, SamplerKind::Euler, SamplerKind::EulerAncestral] {
            assert_eq!(of(kind).0, TimestepSpacing::Linspace);
            assert_eq!(kind.class().sampler(), kind);
        }
        let named = SchedulerConfig::from_json(r#"{"timestep_spacing": "leading"}"#).unwrap();
        let solver = named.as_class(SchedulerClass::DpmSolver);
        assert_eq!(solver.spacing(), TimestepSpacing::Leading);
    }

    #[test]
    fn a_recipe_holds_only_what_is_not_at_its_default() {
        let text = serde_json::to_string(&SchedulerConfig::default()).unwrap();
        for later in ["dpm_solver", "use_karras_sigmas", "skip_prk_steps", "thresholding"] {
            assert!(!text.contains(later), "{text}");
        }
        let config = SchedulerConfig {
            use_karras_sigmas: true,
            dpm_solver: DpmSolverConfig { solver_order: 3, ..Default::default() },
            ..Default::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<SchedulerConfig>(&text).unwrap(), config);
        assert!(serde_json::from_str::<SchedulerConfig>(r#"{"solver_order": 3}"#).is_err());
    }

    #[test]
    fn a_ddpm_folder_becomes_a_ddim_scheduler() {
        let ddpm = SchedulerConfig {
            beta_end: 0.01,
            variance_type: VarianceType::FixedLarge,
            ..Default::default()
        };
        let ddim = ddpm.as_class(SchedulerClass::Ddim);
        assert_eq!(ddim.beta_end, 0.01);
        assert!(ddim.ends_without_noise());
        assert_eq!(ddim.as_class(SchedulerClass::Ddpm), ddpm);
    }

    #[test]
    fn before_prediction_types_there_was_predict_epsilon() {
        let read = |text| SchedulerConfig::from_json(text).unwrap().prediction_type;
        assert_eq!(read(r#"{"predict_epsilon": true}"#), PredictionType::Epsilon);
        assert_eq!(read(r#"{"predict_epsilon": false}"#), PredictionType::Sample);
    }

    #[test]
    fn text_that_is_no_object_is_an_error() {
        for text in ["", "[1]", "{"] {
            let error = SchedulerConfig::from_json(text).unwrap_err();
            assert!(matches!(error, SchedulerConfigError::Json(_)), "{error}");
        }
    }

    #[test]
    fn another_class_is_an_error() {
        for class in ["LMSDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"] {
            let error = SchedulerConfig::from_json(&json!({ "_class_name": class }).to_string());
            let message = error.unwrap_err().to_string();
            assert!(message.contains(class), "{message}");
            for kind in SamplerKind::ALL {
                let there = json!(kind.class());
                assert!(message.contains(there.as_str().unwrap()), "{message}");
            }
        }
    }

    #[test]
    fn settings_not_implemented_are_named() {
        for (key, value) in [
            ("algorithm_type", json!("dpmsolver")),
            ("solver_type", json!("bh2")),
            ("final_sigmas_type", json!("one")),
            ("use_exponential_sigmas", json!(true)),
            ("use_beta_sigmas", json!(true)),
            ("use_lu_lambdas", json!(true)),
            ("use_flow_sigmas", json!(true)),
            ("use_dynamic_shifting", json!(true)),
            ("shift_terminal", json!(0.1)),
            ("interpolation_type", json!("log_linear")),
            ("timestep_type", json!("continuous")),
            ("sigma_min", json!(0.1)),
            ("sigma_max", json!(80.0)),
            ("trained_betas", json!([0.1, 0.2])),
            ("timestep_values", json!([1, 2])),
            ("beta_schedule", json!("sigmoid")),
            ("prediction_type", json!("flow")),
            ("variance_type", json!("learned_range")),
            ("timestep_spacing", json!("karras")),
        ] {
            let text = json!({ key: value }).to_string();
            match SchedulerConfig::from_json(&text).unwrap_err() {
                SchedulerConfigError::NotImplemented { key: name, found, .. } => {
                    assert_eq!((name.as_str(), found), (key, plain(&value)));
                }
                error => panic!("{key}: {error}"),
            }
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = SchedulerConfig::from_json(r#"{"beta_sart": 0.1}"#).unwrap_err();
        assert!(
            matches!(&error, SchedulerConfigError::UnknownKey { key, .. } if key == "beta_sart")
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_an_error() {
        for (key, value) in [
            ("beta_end", json!("much")),
            ("num_train_timesteps", json!(-1)),
            ("clip_sample", json!(1)),
            ("variance_type", json!(1)),
            ("predict_epsilon", json!("yes")),
            ("thresholding", json!("no")),
            ("sample_max_value", json!("much")),
            ("lambda_min_clipped", json!("little")),
            ("solver_order", json!(-2)),
            ("use_karras_sigmas", json!("yes")),
        ] {
            let text = json!({ key: value }).to_string();
            match SchedulerConfig::from_json(&text).unwrap_err() {
                SchedulerConfigError::Value { key: found, .. } => assert_eq!(found, key),
                error => panic!("{key}: {error}"),
            }
        }
    }
}
