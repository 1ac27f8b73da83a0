//! `scheduler_config.json`, as diffusers writes and reads it.
//!
//! DDPM and DDIM share the schedule's fields, so a folder saved with one can be sampled with the
//! other ([`SchedulerConfig::as_class`], diffusers' `from_config`). A field whose value asks for
//! something not implemented is refused by name, never dropped.
//! Not here: what the fields do (`noise_schedule`, `prediction`, `sampler`).

use crate::noise_schedule::{BetaSchedule, NoiseSchedule, NoiseScheduleConfig, ScheduleError};
use crate::prediction::PredictionType;
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
}

/// Which of the T training timesteps a sampler with fewer steps visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSpacing {
    /// Multiples of `T / steps` (integer division), plus `steps_offset`.
    #[default]
    Leading,
    /// From T - 1 downwards in strides of `T / steps`.
    Trailing,
    /// Evenly from T - 1 to 0, both included.
    Linspace,
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
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
    /// Whether the predicted x_0 is clamped to `[-clip_sample_range, clip_sample_range]` in each step.
    pub clip_sample: bool,
    /// See `clip_sample`.
    pub clip_sample_range: f64,
    /// DDIM: whether the abar behind the last step is 1; otherwise it is `abar_0`.
    pub set_alpha_to_one: bool,
    /// Added to every timestep of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Which timesteps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// DDPM: variance of a step.
    pub variance_type: VarianceType,
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
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            set_alpha_to_one: true,
            steps_offset: 0,
            timestep_spacing: TimestepSpacing::Leading,
            variance_type: VarianceType::FixedSmall,
        }
    }
}

/// A field of diffusers that is refused unless it has a value that switches it off.
struct OnlyAt {
    key: &'static str,
    values: &'static [Value],
}

const NOT_IMPLEMENTED: &[OnlyAt] = &[
    OnlyAt { key: "trained_betas", values: &[Value::Null] },
    OnlyAt { key: "thresholding", values: &[Value::Bool(false), Value::Null] },
    OnlyAt { key: "rescale_betas_zero_snr", values: &[Value::Bool(false), Value::Null] },
    OnlyAt { key: "timestep_values", values: &[Value::Null] },
];

/// Keys without effect here: versions, the tensor library of diffusers 0.1, settings of thresholding
/// (which itself is refused).
const HARMLESS: &[&str] =
    &["_diffusers_version", "tensor_format", "dynamic_thresholding_ratio", "sample_max_value"];

/// diffusers before 0.10: whether the model predicts eps (or else x_0).
const PREDICT_EPSILON: &str = "predict_epsilon";

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`. Absent fields have diffusers' defaults.
    ///
    /// # Errors
    /// [`SchedulerConfigError::Json`] for text that is no JSON object;
    /// [`SchedulerConfigError::UnknownClass`] for a class other than DDPM and DDIM;
    /// [`SchedulerConfigError::NotImplemented`] for a field whose value is not implemented;
    /// [`SchedulerConfigError::UnknownKey`] for a field of no known diffusers version;
    /// [`SchedulerConfigError::Value`] for a value of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, SchedulerConfigError> {
        let mut fields: Map<String, Value> =
            serde_json::from_str(text).map_err(SchedulerConfigError::Json)?;
        let class = match fields.shift_remove("_class_name") {
            None => SchedulerClass::default(),
            Some(name) => serde_json::from_value(name.clone())
                .map_err(|_| SchedulerConfigError::UnknownClass { found: plain(&name) })?,
        };
        for OnlyAt { key, values } in NOT_IMPLEMENTED {
            if let Some(found) = fields.shift_remove(*key)
                && !values.contains(&found)
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
        for (key, value) in fields {
            config.set(&key, value)?;
        }
        Ok(config)
    }

    /// The text of a `scheduler_config.json` that diffusers loads.
    ///
    /// It holds the fields of the class, and a field of another class only where it is not at its
    /// default, so that [`from_json`](Self::from_json) gives back this very configuration.
    pub fn to_json(&self) -> String {
        let default = Self::default();
        let mut fields = Map::new();
        fields.insert("_class_name".to_owned(), json!(self.class));
        fields.insert("_diffusers_version".to_owned(), json!(WRITTEN_DIFFUSERS_VERSION));
        let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
        put("num_train_timesteps", json!(self.num_train_timesteps));
        put("beta_start", json!(self.beta_start));
        put("beta_end", json!(self.beta_end));
        put("beta_schedule", json!(self.beta_schedule));
        put("trained_betas", Value::Null);
        put("clip_sample", json!(self.clip_sample));
        put("clip_sample_range", json!(self.clip_sample_range));
        put("prediction_type", json!(self.prediction_type));
        put("steps_offset", json!(self.steps_offset));
        put("timestep_spacing", json!(self.timestep_spacing));
        put("thresholding", json!(false));
        put("dynamic_thresholding_ratio", json!(0.995));
        put("sample_max_value", json!(1.0));
        put("rescale_betas_zero_snr", json!(false));
        if self.class == SchedulerClass::Ddim || self.set_alpha_to_one != default.set_alpha_to_one {
            put("set_alpha_to_one", json!(self.set_alpha_to_one));
        }
        if self.class == SchedulerClass::Ddpm || self.variance_type != default.variance_type {
            put("variance_type", json!(self.variance_type));
        }
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

    /// The part that determines the noise schedule.
    pub fn noise_schedule_config(&self) -> NoiseScheduleConfig {
        NoiseScheduleConfig {
            num_train_timesteps: self.num_train_timesteps,
            beta_schedule: self.beta_schedule,
            beta_start: self.beta_start,
            beta_end: self.beta_end,
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
            "variance_type" => read_name(key, value, &mut self.variance_type),
            _ => {
                Err(SchedulerConfigError::UnknownKey { key: key.to_owned(), value: plain(&value) })
            }
        }
    }
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
        "scheduler class {found} is not implemented; DDPMScheduler and DDIMScheduler are \
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
                "trained_betas" | "timestep_values" => "null",
                _ => "false",
            },
        }
    }

    fn value(key: &str, found: &Value) -> Self {
        Self::Value {
            key: key.to_owned(),
            found: plain(found),
            expected: match key {
                "num_train_timesteps" | "steps_offset" => "a whole number, 0 or more",
                "beta_start" | "beta_end" | "clip_sample_range" => "a number",
                "clip_sample" | "set_alpha_to_one" | PREDICT_EPSILON => "true or false",
                _ => "a name",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
            prediction_type: PredictionType::VPrediction,
            clip_sample: false,
            clip_sample_range: 2.0,
            set_alpha_to_one: false,
            steps_offset: 1,
            timestep_spacing: TimestepSpacing::Trailing,
            variance_type: VarianceType::FixedLarge,
        };
        for class in [SchedulerClass::Ddim, SchedulerClass::Ddpm] {
            let config = config.as_class(class);
            assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
        }
        let default = SchedulerConfig::default();
        assert_eq!(SchedulerConfig::from_json(&default.to_json()).unwrap(), default);
    }

    #[test]
    fn a_ddpm_file_has_only_the_fields_of_its_class() {
        let text = SchedulerConfig::default().to_json();
        assert!(text.contains(r#""_class_name": "DDPMScheduler""#));
        assert!(text.contains(r#""variance_type": "fixed_small""#));
        assert!(!text.contains("set_alpha_to_one"));
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
        assert!(ddim.set_alpha_to_one);
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
        let error = SchedulerConfig::from_json(r#"{"_class_name": "KarrasVeScheduler"}"#);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("KarrasVeScheduler") && message.contains("DDIMScheduler"));
    }

    #[test]
    fn settings_not_implemented_are_named() {
        for (key, value) in [
            ("thresholding", json!(true)),
            ("rescale_betas_zero_snr", json!(true)),
            ("trained_betas", json!([0.1, 0.2])),
            ("timestep_values", json!([1, 2])),
            ("beta_schedule", json!("sigmoid")),
            ("prediction_type", json!("flow")),
            ("variance_type", json!("learned_range")),
            ("timestep_spacing", json!("karras")),
        ] {
            let text = json!({ key: value }).to_string();
            match SchedulerConfig::from_json(&text).unwrap_err() {
                SchedulerConfigError::NotImplemented { key: found, .. } => assert_eq!(found, key),
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
        ] {
            let text = json!({ key: value }).to_string();
            match SchedulerConfig::from_json(&text).unwrap_err() {
                SchedulerConfigError::Value { key: found, .. } => assert_eq!(found, key),
                error => panic!("{key}: {error}"),
            }
        }
    }
}
