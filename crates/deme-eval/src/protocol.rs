//! How a number was made, and which numbers may stand in one table or beside each other.

use crate::EvalError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Everything that changes a measurement besides the model. What nobody said is `None`: it is unlike anything
/// that is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// What was computed: `fid`, `fd_tiny_clip`, `clip_score`, ...
    pub metric: String,
    /// The metric's own settings, such as the number and size of its subsets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Value>,
    /// Name of the feature extractor; `None` for statistics that do not say.
    pub extractor: Option<String>,
    /// SHA-256 of its weights, in hex.
    pub extractor_hash: Option<String>,
    /// How pictures came to the extractor's size.
    pub resizing: Option<String>,
    /// What the measured pictures were when they were read: `png`, `jpeg`, `memory`, ...
    pub image_format: Option<String>,
    /// Pictures measured.
    pub image_count: Option<u64>,
    /// What the reference pictures were when they were read; none for scores without a reference.
    pub reference_format: Option<String>,
    /// Pictures they are compared with.
    pub reference_count: Option<u64>,
    /// Hash of the reference pictures or statistics.
    pub reference_hash: Option<String>,
    /// Sampler that made the pictures (`ddim`, `ddpm`, ...).
    pub sampler: Option<String>,
    /// Its steps.
    pub steps: Option<usize>,
    /// Its eta: 0 is deterministic.
    pub eta: Option<f64>,
    /// Weight of classifier-free guidance, where it was used.
    pub guidance: Option<f64>,
    /// Seed of the first picture; picture i has seed `first_seed + i`.
    pub first_seed: Option<u64>,
    /// Whether the model's averaged weights were used.
    pub ema: Option<bool>,
    /// The program that measured. Not part of the protocol proper.
    pub software: String,
    /// The model or pictures that were measured, for people. Not part of the protocol proper.
    pub model: String,
    /// Hash of its weights, or of the pictures. Not part of the protocol proper.
    pub model_hash: Option<String>,
}

/// The fields that say what was measured, and by which build.
const IDENTITY: [&str; 3] = ["model", "model_hash", "software"];

/// The program's name and version, for [`Protocol::software`].
pub const SOFTWARE: &str = concat!("deme ", env!("CARGO_PKG_VERSION"));

impl Protocol {
    /// Names of all fields that differ, those of the identity among them.
    pub fn differs(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
        let mut seen = Vec::new();
        names.retain(|name| {
            let new = !seen.contains(name);
            seen.push(*name);
            new
        });
        names.into_iter().filter(|name| left.get(*name) != right.get(*name)).cloned().collect()
    }

    /// The fields that differ although only the identity may, each with both values.
    pub fn unlike(&self, other: &Self) -> Vec<String> {
        let (left, right) = (self.fields(), other.fields());
        let said = |value: Option<&Value>| match value {
            None | Some(Value::Null) => "unknown".to_owned(),
            Some(value) => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        };
        let fields = self.differs(other).into_iter();
        fields
            .filter(|field| !IDENTITY.contains(&field.as_str()))
            .map(|field| format!("{field} is {} and {}", said(left.get(&field)), said(right.get(&field))))
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

/// Two measurements of one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Of the first set.
    pub a: Measurement,
    /// Of the second set.
    pub b: Measurement,
    /// The fields in which they were made differently, each with both values.
    pub unlike: Vec<String>,
    /// What a reader should know although nothing is unlike.
    pub notes: Vec<String>,
}

/// Pairs the measurements of two sets by metric: the only two of it, or else those of models of one name.
/// Measurements without a partner are left out.
///
/// # Errors
/// [`EvalError::NothingInCommon`] when there is no pair.
pub fn pair(a: &[Measurement], b: &[Measurement]) -> Result<Vec<Pair>, EvalError> {
    let of_metric = |set: &[Measurement], metric: &str| -> Vec<Measurement> {
        set.iter().filter(|found| found.protocol.metric == metric).cloned().collect()
    };
    let mut metrics: Vec<&str> = Vec::new();
    for measurement in a {
        let metric = measurement.protocol.metric.as_str();
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    let mut pairs = Vec::new();
    for metric in metrics {
        let (left, right) = (of_metric(a, metric), of_metric(b, metric));
        match (left.as_slice(), right.as_slice()) {
            ([only], [other]) => pairs.push(Pair::of(only, other)),
            _ => {
                for one in &left {
                    let same = |other: &&Measurement| other.protocol.model == one.protocol.model;
                    pairs.extend(right.iter().find(same).map(|other| Pair::of(one, other)));
                }
            }
        }
    }
    if pairs.is_empty() {
        let names = |set: &[Measurement]| {
            let names = set.iter().map(|m| format!("{} of {}", m.protocol.metric, m.protocol.model));
            names.collect::<Vec<_>>().join(", ")
        };
        return Err(EvalError::NothingInCommon { left: names(a), right: names(b) });
    }
    Ok(pairs)
}

impl Pair {
    fn of(a: &Measurement, b: &Measurement) -> Self {
        let mut notes = Vec::new();
        if a.protocol.sampler.is_none() && b.protocol.sampler.is_none() {
            notes.push(
                "how the pictures were drawn (sampler, steps, seeds) is not known of either side"
                    .to_owned(),
            );
        }
        Self { a: a.clone(), b: b.clone(), unlike: a.protocol.unlike(&b.protocol), notes }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn measurement(model: &str, value: f64) -> Measurement {
        let protocol = Protocol {
            metric: "fd_tiny_clip".to_owned(),
            settings: BTreeMap::new(),
            extractor: Some("tiny_clip".to_owned()),
            extractor_hash: Some("00ff".to_owned()),
            resizing: Some("none".to_owned()),
            image_format: Some("memory".to_owned()),
            image_count: Some(512),
            reference_format: Some("png".to_owned()),
            reference_count: Some(1000),
            reference_hash: Some("aa".to_owned()),
            sampler: Some("ddim".to_owned()),
            steps: Some(50),
            eta: Some(0.0),
            guidance: None,
            first_seed: Some(0),
            ema: Some(true),
            software: SOFTWARE.to_owned(),
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
            Protocol { steps: Some(20), guidance: Some(7.5), model: "merged".to_owned(), ..a.clone() };
        assert_eq!(a.differs(&b), ["steps", "guidance", "model"]);
    }

    #[test]
    fn only_the_model_may_differ_within_a_table() {
        let (a, mut b) = (measurement("before", 2.0), measurement("merged", 1.0));
        let table = MeasurementTable::new(vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(table.models, ["before", "merged"]);
        assert_eq!(table.get("merged", "fd_tiny_clip").unwrap().value, 1.0);
        assert_eq!(table.get("joint", "fd_tiny_clip"), None);
        b.protocol.image_count = Some(256);
        let error = MeasurementTable::new(vec![a, b]).unwrap_err();
        let EvalError::UnlikeProtocols { first, other, fields } = error else { panic!() };
        assert_eq!((first.as_str(), other.as_str()), ("before", "merged"));
        assert_eq!(fields, ["image_count is 512 and 256"]);
    }

    #[test]
    fn what_one_side_does_not_say_is_unlike_what_the_other_says() {
        let a = measurement("before", 1.0).protocol;
        let mut settings = BTreeMap::new();
        settings.insert("subsets".to_owned(), Value::from(100));
        let b = Protocol { sampler: None, settings, software: "other 9".to_owned(), ..a.clone() };
        assert_eq!(
            a.unlike(&b),
            ["sampler is ddim and unknown", "settings is unknown and {\"subsets\":100}"]
        );
        assert!(b.unlike(&b).is_empty());
    }

    #[test]
    fn two_single_measurements_are_paired_whatever_the_models_are_called() {
        let (a, mut b) = (measurement("before", 2.0), measurement("merged", 1.0));
        let pairs = pair(std::slice::from_ref(&a), std::slice::from_ref(&b)).unwrap();
        assert_eq!((pairs[0].a.value, pairs[0].b.value), (2.0, 1.0));
        assert!(pairs[0].unlike.is_empty() && pairs[0].notes.is_empty());
        b.protocol.reference_hash = Some("bb".to_owned());
        let pairs = pair(std::slice::from_ref(&a), &[b]).unwrap();
        assert_eq!(pairs[0].unlike, ["reference_hash is aa and bb"]);
    }

    #[test]
    fn several_are_paired_by_the_models_names() {
        let a = [measurement("before", 2.0), measurement("merged", 1.0)];
        let b = [measurement("merged", 0.5), measurement("joint", 3.0), measurement("before", 4.0)];
        let values: Vec<_> =
            pair(&a, &b).unwrap().iter().map(|pair| (pair.a.value, pair.b.value)).collect();
        assert_eq!(values, [(2.0, 4.0), (1.0, 0.5)]);
        let error = pair(&a[..1], &b[..2]).unwrap_err();
        assert!(matches!(error, EvalError::NothingInCommon { .. }), "{error}");
    }

    #[test]
    fn two_sides_of_unknown_origin_are_comparable_with_a_note() {
        let mut a = measurement("a", 1.0);
        a.protocol.sampler = None;
        let pairs = pair(std::slice::from_ref(&a), std::slice::from_ref(&a)).unwrap();
        assert!(pairs[0].unlike.is_empty());
        assert!(pairs[0].notes[0].contains("sampler"));
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
