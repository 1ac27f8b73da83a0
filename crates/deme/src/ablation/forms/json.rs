//! AblationBench's predictions: one JSON object a line, alone (`.jsonl`) or as the text of a paper's
//! `predictions` in a file of several papers (`plans.json`).

use serde_json::{Map, Value, json};

use super::{Draft, names_in};
use crate::ablation::{AblationError, AblationPlan, PlanEntry};

/// The entries of a text with one object a line. Empty lines are nothing.
///
/// # Errors
/// [`AblationError::Json`] with the line, [`AblationError::MissingField`], [`AblationError::UnknownAction`].
pub fn read_lines(source: &str, text: &str) -> Result<Vec<PlanEntry>, AblationError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let place = format!("{source}, line {}", index + 1);
            let value: Value = serde_json::from_str(line).map_err(|error| AblationError::Json {
                place: place.clone(),
                reason: error.to_string(),
            })?;
            entry(&place, value)
        })
        .collect()
}

/// The entries of a file of plans by paper: `{"ID": {"predictions": "one object a line"}}`. A list of
/// objects, or a single one, is a plan without papers.
///
/// # Errors
/// As [`read_lines`]; [`AblationError::WhichPaper`] when there are several papers and `id` names none of them.
pub fn read_plans(
    source: &str,
    text: &str,
    id: Option<&str>,
) -> Result<Vec<PlanEntry>, AblationError> {
    let broken = |reason: String| AblationError::Json { place: source.to_owned(), reason };
    let value: Value = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    let of_list = |place: &str, values: Vec<Value>| {
        let entries = values.into_iter().enumerate();
        entries
            .map(|(index, value)| entry(&format!("{place}, object {}", index + 1), value))
            .collect()
    };
    match value {
        Value::Array(values) => of_list(source, values),
        Value::Object(fields) if fields.contains_key("ablated_part") => {
            Ok(vec![entry(source, Value::Object(fields))?])
        }
        Value::Object(papers) => {
            let known: Vec<String> = papers.keys().cloned().collect();
            let chosen = match (id, known.as_slice()) {
                (Some(id), _) if papers.contains_key(id) => id.to_owned(),
                (None, [only]) => only.clone(),
                _ => {
                    return Err(AblationError::WhichPaper {
                        source_name: source.to_owned(),
                        found: id.map(str::to_owned),
                        known,
                    });
                }
            };
            let place = format!("{source}, {chosen}");
            match papers[&chosen].get("predictions") {
                Some(Value::String(lines)) => read_lines(&place, lines),
                Some(Value::Array(values)) => of_list(&place, values.clone()),
                _ => Err(AblationError::MissingField { place, field: "predictions" }),
            }
        }
        _ => Err(broken("it holds no plans by paper".to_owned())),
    }
}

/// Fields that a planner adds of its own are let pass; a `reason` is kept.
fn entry(place: &str, value: Value) -> Result<PlanEntry, AblationError> {
    let Value::Object(mut fields) = value else {
        let reason = "it is no object".to_owned();
        return Err(AblationError::Json { place: place.to_owned(), reason });
    };
    let mut text = |field: &str| match fields.remove(field) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (name, part, action) = (text("name"), text("ablated_part"), text("action"));
    let reason = text("reason");
    let replacement = match fields.remove("replacement") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    let metrics = match fields.remove("metrics") {
        Some(Value::String(names)) => names_in(&names),
        Some(Value::Array(names)) => {
            names.iter().filter_map(|name| Some(name.as_str()?.trim().to_owned())).collect()
        }
        _ => Vec::new(),
    };
    Draft { name, part, action, replacement, metrics, reason }.finish(place)
}

/// The plan, one object a line. AblationBench's objects have no reason.
pub fn write(plan: &AblationPlan) -> String {
    let line = |entry: &PlanEntry| {
        let mut fields = Map::new();
        fields.insert("name".into(), json!(entry.name));
        fields.insert("ablated_part".into(), json!(entry.part));
        fields.insert("action".into(), json!(entry.action));
        if !entry.replacement.is_empty() {
            fields.insert("replacement".into(), json!(entry.replacement));
        }
        fields.insert("metrics".into(), json!(entry.metrics));
        format!("{}\n", Value::Object(fields))
    };
    plan.entries.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LINE: &str =
        r#"{"name": "A", "ablated_part": "ema", "action": "REMOVE", "metrics": ["FID"]}"#;

    #[test]
    fn a_replacement_may_be_a_list_an_object_null_or_missing() {
        for (written, expected) in [
            ("[2, \"4\"]", vec![json!(2), json!("4")]),
            ("{\"N\": [2, 4]}", vec![json!({"N": [2, 4]})]),
            ("null", vec![]),
        ] {
            let line =
                LINE.replace("\"metrics\"", &format!("\"replacement\": {written}, \"metrics\""));
            assert_eq!(read_lines("a", &line).unwrap()[0].replacement, expected);
        }
        assert!(read_lines("a", LINE).unwrap()[0].replacement.is_empty());
    }

    #[test]
    fn broken_json_is_named_by_its_line() {
        for broken in ["{\"name\": ", "[1]"] {
            let text = format!("{LINE}\n\n{broken}\n");
            let Err(AblationError::Json { place, .. }) = read_lines("a.jsonl", &text) else {
                panic!("accepted")
            };
            assert_eq!(place, "a.jsonl, line 3");
        }
    }

    #[test]
    fn the_plans_of_several_papers_need_an_id() {
        let paper = json!({ "predictions": LINE });
        let one = json!({ "deme": paper }).to_string();
        assert_eq!(read_plans("plans.json", &one, None).unwrap()[0].name, "A");
        let two = json!({ "deme": paper, "other": paper }).to_string();
        assert_eq!(read_plans("plans.json", &two, Some("deme")).unwrap().len(), 1);
        for id in [None, Some("third")] {
            let refused = read_plans("plans.json", &two, id);
            assert!(matches!(refused, Err(AblationError::WhichPaper { .. })), "{id:?}");
        }
        let broken = json!({ "deme": { "predictions": "{\n" } }).to_string();
        let Err(AblationError::Json { place, .. }) = read_plans("plans.json", &broken, None) else {
            panic!("accepted")
        };
        assert_eq!(place, "plans.json, deme, line 1");
        let empty = read_plans("plans.json", "{\"deme\": {}}", None);
        assert!(matches!(empty, Err(AblationError::MissingField { field: "predictions", .. })));
    }
}
