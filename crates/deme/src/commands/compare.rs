//! `deme compare`: measurements side by side, if they were made alike.

use std::path::Path;

use deme_eval::{Measurement, Pair, pair};
use serde_json::Value;

use crate::cli::CompareArguments;
use crate::diagnostics::Problem;

/// Prints pairs of measurements; refuses those that were made differently unless forced.
pub fn run(arguments: &CompareArguments) -> Result<(), Problem> {
    let pairs = pair(&measurements(&arguments.a)?, &measurements(&arguments.b)?)?;
    let unlike: Vec<String> = pairs
        .iter()
        .filter(|pair| !pair.unlike.is_empty())
        .map(|pair| format!("{}: {}", pair.a.protocol.metric, pair.unlike.join("; ")))
        .collect();
    if !unlike.is_empty() && !arguments.force {
        return Err(Problem::Usage {
            message: format!("the numbers were made differently: {}", unlike.join("; ")),
            help: "measure both in the same way, or add --force to see them side by side all the same"
                .into(),
        });
    }
    let mut text = String::new();
    for pair in &pairs {
        text += &lines(pair);
    }
    super::print(&text)
}

/// `metric  a  b  difference`, and what is to be known of it.
fn lines(pair: &Pair) -> String {
    let number = |measurement: &Measurement| match measurement.std_error {
        Some(error) => format!("{:.4} ± {error:.4}", measurement.value),
        None => format!("{:.4}", measurement.value),
    };
    let Pair { a, b, unlike, notes } = pair;
    let mut text = format!("{}\n", a.protocol.metric);
    text += &format!("  a           {}  ({})\n", number(a), a.protocol.model);
    text += &format!("  b           {}  ({})\n", number(b), b.protocol.model);
    text += &format!("  difference  {:+.4}\n", b.value - a.value);
    unlike.iter().for_each(|field| text += &format!("  WARNING     {field}\n"));
    let notes = notes.iter().chain(&a.notes).chain(&b.notes);
    notes.for_each(|note| text += &format!("  note        {note}\n"));
    text
}

/// What `--json` printed, or the rows of a run's `metrics.json`.
fn measurements(path: &Path) -> Result<Vec<Measurement>, Problem> {
    let text = std::fs::read_to_string(path).map_err(|error| Problem::read(path, error))?;
    let refused = |reason: String| Problem::Usage {
        message: format!("{} holds no measurements: {reason}", path.display()),
        help: "give what `deme fid --json` or `deme clip-score --json` printed, or a run's metrics.json"
            .into(),
    };
    let json: Value = serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
    let found = match (json.get("measurements"), json.get("rows")) {
        (Some(measurements), _) => measurements.clone(),
        (None, Some(Value::Array(rows))) => rows.iter().flat_map(of_row).collect(),
        _ => return Err(refused("it has neither `measurements` nor `rows`".to_owned())),
    };
    serde_json::from_value(found).map_err(|error| refused(error.to_string()))
}

/// The measurements of a row of a report, in which the model's name and hash are one field.
fn of_row(row: &Value) -> Vec<Value> {
    let mut protocol = row["protocol"].clone();
    let model = protocol["model"].take();
    protocol["model"] = model["name"].clone();
    protocol["model_hash"] = model["hash"].clone();
    let metrics = row["metrics"].as_array().into_iter().flatten();
    metrics
        .map(|metric| {
            let mut protocol = protocol.clone();
            protocol["metric"] = metric["name"].clone();
            serde_json::json!({
                "value": metric["value"],
                "std_error": metric["spread"],
                "protocol": protocol,
            })
        })
        .collect()
}
