//! How a number was made, and which numbers may stand in one table.

use crate::EvalError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Everything that changes a measurement besides the model.
///
/// What is not known, such as the sampler of a folder of pictures from elsewhere, is `None` here and the
/// word `unknown` in JSON. Unknown is not alike anything known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// What was computed: `fd_tiny_clip`, `clip_score_tiny_clip`, `fid`, ...; see [`crate::METRICS`].
    pub metric: String,
    /// Name of the feature extractor.
    pub extractor: String,
    /// SHA-256 of its weights, in hex.
    pub extractor_hash: String,
    /// How pictures came to the extractor's size.
    pub resizing: String,
    /// What the pictures were when they were read: `png`, `jpeg`, or `memory` when they never were files.
    #[serde(with = "unknown", default)]
    pub image_format: Option<String>,
    /// The same of the reference's pictures, or `statistics` when only a file of statistics was at hand;
    /// none for scores without a reference.
    #[serde(default)]
    pub reference_format: Option<String>,
    /// Pictures measured.
    pub image_count: u64,
    /// Pictures they are compared with; none for scores without a reference.
    pub reference_count: Option<u64>,
    /// Hash of the reference pictures or statistics.
    pub reference_hash: Option<String>,
    /// Sampler that made the pictures (`ddim`, `ddpm`, ...).
    #[serde(with = "unknown")]
    pub sampler: Option<String>,
    /// Its steps.
    #[serde(with = "unknown")]
    pub steps: Option<usize>,
    /// Its eta: 0 is deterministic.
    #[serde(with = "unknown")]
    pub eta: Option<f64>,
    /// Weight of classifier-free guidance; none where it was not used, and where sampling is unknown.
    pub guidance: Option<f64>,
    /// Seed of the first picture; picture i has seed `first_seed + i`.
    #[serde(with = "unknown")]
    pub first_seed: Option<u64>,
    /// Whether the model's averaged weights were used.
    #[serde(with = "unknown")]
    pub ema: Option<bool>,
    /// Program and version that measured, as [`SOFTWARE`]. A difference is told, not refused.
    #[serde(with = "unknown", default)]
    pub software: Option<String>,
    /// The model that was measured, for people. Not part of the protocol proper.
    pub model: String,
    /// Hash of its weights. Not part of the protocol proper.
    pub model_hash: Option<String>,
}

/// This program and its version.
pub const SOFTWARE: &str = concat!("deme ", env!("CARGO_PKG_VERSION"));

/// The fields that say which model was measured, and by what; they do not make numbers unlike.
const IDENTITY: [&str; 3] = ["model", "model_hash", "software"];

const UNKNOWN: &str = "unknown";

/// Writes `None` as the word `unknown`.
mod unknown {
    use super::UNKNOWN;
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_str(UNKNOWN),
        }
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == UNKNOWN => Ok(None),
            value => serde_json::from_value(value).map(Some).map_err(D::Error::custom),
        }
    }
}

impl Protocol {
    /// Names of all fields that differ, those of the model's identity among them.
    pub fn differs(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let unlike = left.iter().filter(|(field, value)| right.get(*field) != Some(value));
        unlike.map(|(field, _)| field.clone()).collect()
    }

    /// The fields that differ although only the model may, each with both values.
    pub fn unlike(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let fields = self.differs(other).into_iter();
        fields
            .filter(|field| !IDENTITY.contains(&field.as_str()))
            .map(|field| format!("{field} is {} and {}", left[&field], right[&field]))
            .collect()
    }

    /// What a reader of two comparable numbers should know: what is unknown of both, and that they were
    /// measured by two versions of the program.
    pub fn comparison_notes(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let unknown = |fields: &Map<String, Value>, field: &str| fields[field] == UNKNOWN;
        let of_both: Vec<&str> = left
            .keys()
            .map(String::as_str)
            .filter(|field| unknown(&left, field) && unknown(&right, field))
            .filter(|field| !IDENTITY.contains(field))
            .collect();
        let mut notes = Vec::new();
        if !of_both.is_empty() {
            let fields = of_both.join(", ");
            notes.push(format!("unknown of both, and perhaps different: {fields}"));
        }
        if self.software != other.software {
            let (left, right) = (&left["software"], &right["software"]);
            notes.push(format!("measured by {left} and {right}"));
        }
        notes
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
pub(crate) fn measurement(model: &str, value: f64) -> Measurement {
    let protocol = Protocol {
        metric: "fd_tiny_clip".to_owned(),
        extractor: "tiny_clip".to_owned(),
        extractor_hash: "00ff".to_owned(),
        resizing: "none".to_owned(),
        image_format: Some("memory".to_owned()),
        reference_format: Some("png".to_owned()),
        image_count: 512,
        reference_count: Some(1000),
        reference_hash: Some("aa".to_owned()),
        sampler: Some("ddim".to_owned()),
        steps: Some(50),
        eta: Some(0.0),
        guidance: None,
        first_seed: Some(0),
        ema: Some(true),
        software: Some(SOFTWARE.to_owned()),
        model: model.to_owned(),
        model_hash: Some(format!("hash of {model}")),
    };
    Measurement { value, std_error: None, notes: Vec::new(), protocol }
}

/// The measurement of a folder of pictures that somebody else made.
#[cfg(test)]
pub(crate) fn measurement_from_elsewhere(model: &str, value: f64) -> Measurement {
    let known = measurement(model, value);
    let protocol = Protocol {
        image_format: Some("jpeg".to_owned()),
        sampler: None,
        steps: None,
        eta: None,
        first_seed: None,
        ema: None,
        ..known.protocol
    };
    Measurement { protocol, ..known }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn differs_names_every_field() {
        let a = measurement("before", 1.0).protocol;
        assert!(a.differs(&a).is_empty());
        let b = Protocol {
            steps: Some(20),
            guidance: Some(7.5),
            model: "merged".to_owned(),
            ..a.clone()
        };
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

    #[test]
    fn what_is_unknown_is_said_and_read_again() {
        let a = measurement_from_elsewhere("theirs", 1.0);
        let json = serde_json::to_value(&a).unwrap();
        assert_eq!(json["protocol"]["sampler"], "unknown");
        assert_eq!(json["protocol"]["steps"], "unknown");
        assert_eq!(serde_json::from_value::<Measurement>(json.clone()).unwrap(), a);
        let mut wrong = json;
        wrong["protocol"]["steps"] = "many".into();
        assert!(serde_json::from_value::<Measurement>(wrong).is_err());
    }

    #[test]
    fn measurements_of_earlier_versions_are_read() {
        let mut json = serde_json::to_value(measurement("before", 1.0)).unwrap();
        let protocol = json["protocol"].as_object_mut().unwrap();
        ["image_format", "reference_format", "software"].map(|field| protocol.remove(field));
        let read = serde_json::from_value::<Measurement>(json).unwrap().protocol;
        assert_eq!((read.image_format, read.reference_format, read.software), (None, None, None));
        assert_eq!(read.steps, Some(50));
    }

    #[test]
    fn unknown_is_not_alike_anything_known_and_alike_itself_with_a_note() {
        let known = measurement("ours", 1.0).protocol;
        let unknown = measurement_from_elsewhere("theirs", 1.0).protocol;
        let fields = known.unlike(&unknown);
        assert!(fields.contains(&"sampler is \"ddim\" and \"unknown\"".to_owned()), "{fields:?}");
        assert!(fields.contains(&"ema is true and \"unknown\"".to_owned()), "{fields:?}");
        assert!(unknown.unlike(&unknown).is_empty());
        let notes = unknown.comparison_notes(&unknown);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("sampler, steps, eta, first_seed, ema"), "{notes:?}");
        assert!(known.comparison_notes(&known).is_empty());
    }

    #[test]
    fn another_version_is_told_but_not_refused() {
        let a = measurement("before", 1.0).protocol;
        let b = Protocol { software: Some("deme 9.9.9".to_owned()), ..a.clone() };
        assert!(a.unlike(&b).is_empty());
        assert!(a.comparison_notes(&b)[0].contains("deme 9.9.9"));
    }
}
