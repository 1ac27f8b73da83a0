//! Our own form of a plan: TOML, a table `[[ablation]]` for each entry.

use miette::NamedSource;
use serde::Deserialize;
use serde_json::Value;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};

use super::Draft;
use crate::ablation::{AblationError, AblationPlan, PlanEntry};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    name: Option<String>,
    #[serde(default)]
    ablation: Vec<EntryTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryTable {
    name: Option<String>,
    #[serde(alias = "ablated_part")]
    part: Option<String>,
    action: Option<String>,
    #[serde(default)]
    replacement: Vec<Value>,
    #[serde(default)]
    metrics: Vec<String>,
    reason: Option<String>,
}

/// The plan's name, where it says one, and its entries.
///
/// # Errors
/// [`AblationError::Toml`], [`AblationError::MissingField`], [`AblationError::UnknownAction`].
pub fn read(source: &str, text: &str) -> Result<(Option<String>, Vec<PlanEntry>), AblationError> {
    let file: PlanFile = ::toml::from_str(text).map_err(|error| AblationError::Toml {
        message: error.message().to_owned(),
        source_code: NamedSource::new(source, text.to_owned()).with_language("toml"),
        span: error.span().map(|span| (span.start, span.len()).into()),
    })?;
    let entries = file.ablation.into_iter().enumerate().map(|(place, table)| {
        let EntryTable { name, part, action, replacement, metrics, reason } = table;
        let draft = Draft { name, part, action, replacement, metrics, reason };
        draft.finish(&format!("{source}, ablation {}", place + 1))
    });
    Ok((file.name, entries.collect::<Result<_, _>>()?))
}

/// The plan as TOML.
pub fn write(plan: &AblationPlan) -> String {
    let mut document = DocumentMut::new();
    document["name"] = value(&plan.name);
    let mut tables = ArrayOfTables::new();
    for entry in &plan.entries {
        let mut table = Table::new();
        table["name"] = value(&entry.name);
        table["part"] = value(&entry.part);
        table["action"] = value(entry.action.name());
        if !entry.replacement.is_empty() {
            table["replacement"] =
                value(entry.replacement.iter().map(toml_value).collect::<Array>());
        }
        if !entry.metrics.is_empty() {
            table["metrics"] = value(entry.metrics.iter().collect::<Array>());
        }
        if let Some(reason) = &entry.reason {
            table["reason"] = value(reason);
        }
        tables.push(table);
    }
    document["ablation"] = Item::ArrayOfTables(tables);
    document.to_string()
}

/// A replacement as TOML, which has no null.
fn toml_value(replacement: &Value) -> toml_edit::Value {
    match replacement {
        Value::Null => "none".into(),
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(float)) => float.into(),
            (None, None) => number.to_string().into(),
        },
        Value::String(text) => text.into(),
        Value::Array(values) => values.iter().map(toml_value).collect::<Array>().into(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, field)| (key.as_str(), toml_value(field)));
            fields.collect::<InlineTable>().into()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_lists_and_tables_are_replacements_too() {
        let text = "[[ablation]]\nname = \"a\"\npart = \"ranges\"\naction = \"replace\"\n\
                    replacement = [2, 0.5, \"x\", [0.1, 0.2], { ranges = 1 }]\n";
        let (name, entries) = read("a.toml", text).unwrap();
        assert_eq!(name, None);
        let expected = [json!(2), json!(0.5), json!("x"), json!([0.1, 0.2]), json!({"ranges": 1})];
        assert_eq!(entries[0].replacement, expected);
    }

    #[test]
    fn a_wrong_key_and_broken_toml_are_shown_where_they_stand() {
        for (text, word) in [("[[ablation]]\nnmae = \"a\"\n", "nmae"), ("name = = 3", "")] {
            let Err(AblationError::Toml { message, span, .. }) = read("a.toml", text) else {
                panic!("accepted")
            };
            assert!(message.contains(word) && span.is_some(), "{message}");
        }
    }

    #[test]
    fn an_entry_needs_a_name_a_part_and_a_known_action() {
        let read_entry = |text: &str| read("a.toml", &format!("[[ablation]]\n{text}"));
        let missing = read_entry("name = \"a\"\naction = \"ADD\"");
        assert!(matches!(missing, Err(AblationError::MissingField { field: "ablated part", .. })));
        let wrong = read_entry("name = \"a\"\npart = \"ema\"\naction = \"CHANGE\"");
        assert!(
            matches!(wrong, Err(AblationError::UnknownAction { found, .. }) if found == "CHANGE")
        );
    }
}
