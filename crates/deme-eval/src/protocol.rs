//! How a number was made, and which numbers may stand in one table.

use crate::EvalError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Everything that changes a measurement besides the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// What was computed: `fd_tiny_clip`, `clip_score_tiny_clip`, `fid`, ...
    pub metric: String,
    /// Name of the feature extractor.
    pub extractor: String,
    /// SHA-256 of its weights, in hex.
    pub extractor_hash: String,
    /// How pictures came to the extractor's size.
    pub resizing: String,
    /// Pictures measured.
    pub image_count: u64,
    /// Pictures they are compared with; none for scores without a reference.
    pub reference_count: Option<u64>,
    /// Hash of the reference pictures or statistics.
    pub reference_hash: Option<String>,
    /// Sampler that made the pictures (`ddim`, `ddpm`, ...).
    pub sampler: String,
    /// Its steps.
    pub steps: usize,
    /// Its eta: 0 is deterministic.
    pub eta: f64,
    /// Weight of classifier-free guidance, where it was used.
    pub guidance: Option<f64>,
    /// Seed of the first picture; picture i has seed `first_seed + i`.
    pub first_seed: u64,
    /// Whether the model's averaged weights were used.
    pub ema: bool,
    /// The model that was measured, for people. Not part of the protocol proper.
    pub model: String,
    /// Hash of its weights. Not part of the protocol proper.
    pub model_hash: Option<String>,
}

/// The fields that say which model was measured.
const IDENTITY: [&str; 2] = ["model", "model_hash"];

impl Protocol {
    /// Names of all fields that differ, those of the model's identity among them.
    pub fn differs(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let unlike = left.iter().filter(|(field, value)| right.get(*field) != Some(value));
        unlike.map(|(field, _)| field.clone()).collect()
    }

    /// The fields that differ although only the model may, each with both values.
    fn unlike(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let fields = self.differs(other).into_iter();
        fields
            .filter(|field| !IDENTITY.contains(&field.as_str()))
            .map(|field| format!("{field} is {} and {}", left[&field], right[&field]))
            .collect()
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a struct of numbers and strings is a JSON object"),
        }
    }
}

/// A number and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The number.
    pub value: f64,
    /// Its standard error, where it is known.
    pub std_error: Option<f64>,
    /// What a reader should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How it was made.
    pub protocol: Protocol,
}

/// Measurements that may be compared: one column per metric, one row per model.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasurementTable {
    /// Metrics in the order of their first measurement.
    pub metrics: Vec<String>,
    /// Models in the order of their first measurement.
    pub models: Vec<String>,
    cells: BTreeMap<(String, String), Measurement>,
}

impl MeasurementTable {
    /// Puts measurements into one table; of two for the same model and metric the later one counts.
    ///
    /// # Errors
    /// [`EvalError::UnlikeProtocols`] when two measurements of one metric differ in anything but the
    /// model.
    pub fn new(measurements: Vec<Measurement>) -> Result<Self, EvalError> {
        let mut table = Self { metrics: Vec::new(), models: Vec::new(), cells: BTreeMap::new() };
        let mut first_of: BTreeMap<String, Protocol> = BTreeMap::new();
        for measurement in measurements {
            let protocol = &measurement.protocol;
            let (model, metric) = (protocol.model.clone(), protocol.metric.clone());
            if let Some(first) = first_of.get(&metric) {
                let fields = first.unlike(protocol);
                if !fields.is_empty() {
                    let (first, other) = (first.model.clone(), model);
                    return Err(EvalError::UnlikeProtocols { first, other, fields });
                }
            } else {
                first_of.insert(metric.clone(), protocol.clone());
                table.metrics.push(metric.clone());
            }
            if !table.models.contains(&model) {
                table.models.push(model.clone());
            }
            table.cells.insert((model, metric), measurement);
        }
        Ok(table)
    }

    /// The measurement of a model, where there is one.
    pub fn get(&self, model: &str, metric: &str) -> Option<&Measurement> {
        self.cells.get(&(model.to_owned(), metric.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn measurement(model: &str, value: f64) -> Measurement {
        let protocol = Protocol {
            metric: "fd_tiny_clip".to_owned(),
            extractor: "tiny_clip".to_owned(),
            extractor_hash: "00ff".to_owned(),
            resizing: "none".to_owned(),
            image_count: 512,
            reference_count: Some(1000),
            reference_hash: Some("aa".to_owned()),
            sampler: "ddim".to_owned(),
            steps: 50,
            eta: 0.0,
            guidance: None,
            first_seed: 0,
            ema: true,
            model: model.to_owned(),
            model_hash: Some(format!("hash of {model}")),
        };
        Measurement { value, std_error: None, notes: Vec::new(), protocol }
    }

    #[test]
    fn differs_names_every_field() {
        let a = measurement("before", 1.0).protocol;
        assert!(a.differs(&a).is_empty());
        let b =
            Protocol { steps: 20, guidance: Some(7.5), model: "merged".to_owned(), ..a.clone() };
        assert_eq!(a.differs(&b), ["steps", "guidance", "model"]);
    }

    #[test]
    fn only_the_model_may_differ_within_a_table() {
        let (a, mut b) = (measurement("before", 2.0), measurement("merged", 1.0));
        let table = MeasurementTable::new(vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(table.models, ["before", "merged"]);
        assert_eq!(table.get("merged", "fd_tiny_clip").unwrap().value, 1.0);
        assert_eq!(table.get("joint", "fd_tiny_clip"), None);
        b.protocol.image_count = 256;
        let error = MeasurementTable::new(vec![a, b]).unwrap_err();
        let EvalError::UnlikeProtocols { first, other, fields } = error else { panic!() };
        assert_eq!((first.as_str(), other.as_str()), ("before", "merged"));
        assert_eq!(fields, ["image_count is 512 and 256"]);
    }

    #[test]
    fn other_metrics_are_other_columns() {
        let (a, mut b) = (measurement("before", 2.0), measurement("before", 30.0));
        b.protocol.metric = "clip_score_tiny_clip".to_owned();
        b.protocol.reference_count = None;
        let table = MeasurementTable::new(vec![a, b]).unwrap();
        assert_eq!(table.metrics, ["fd_tiny_clip", "clip_score_tiny_clip"]);
        assert_eq!(table.models.len(), 1);
    }

    #[test]
    fn a_measurement_survives_json_and_unknown_keys_are_refused() {
        let a = measurement("before", 0.1 + 0.2);
        let mut json = serde_json::to_value(&a).unwrap();
        assert_eq!(serde_json::from_value::<Measurement>(json.clone()).unwrap(), a);
        json["protocol"]["colour"] = "red".into();
        assert!(serde_json::from_value::<Measurement>(json).is_err());
    }
}
