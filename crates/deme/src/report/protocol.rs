//! How numbers were made, compared field by field: numbers that were made differently are
//! not put in one table.

use serde_json::Value;

use super::{Row, RowKind};

/// The one field of a protocol in which rows of a table may differ.
const MODEL_FIELD: &str = "model";

/// Rows whose numbers may stand in one table.
pub(super) struct ProtocolGroup<'a> {
    /// In the report's order.
    pub(super) rows: Vec<&'a Row>,
    /// (field, value in the first group, value in this group); empty for the first group.
    pub(super) differs_in: Vec<FieldDifference>,
}

/// One field in which two protocols differ. Absent fields read "absent".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldDifference {
    pub(super) field: String,
    pub(super) first: String,
    pub(super) second: String,
}

/// The rows by protocol. The first group is that of the model before finetuning (else of the
/// first row); the others follow in the order of their first rows.
pub(super) fn protocol_groups(rows: &[Row]) -> Vec<ProtocolGroup<'_>> {
    let Some(reference) = rows.iter().find(|r| r.kind == RowKind::Before).or(rows.first()) else {
        return Vec::new();
    };
    let mut groups = vec![ProtocolGroup { rows: Vec::new(), differs_in: Vec::new() }];
    for row in rows {
        let differs_in = differing_fields(&reference.protocol, &row.protocol);
        match groups.iter_mut().find(|group| group.differs_in == differs_in) {
            Some(group) => group.rows.push(row),
            None => groups.push(ProtocolGroup { rows: vec![row], differs_in }),
        }
    }
    groups
}

/// The fields, in dotted names, in which two protocols differ, the model aside.
pub(super) fn differing_fields(first: &Value, second: &Value) -> Vec<FieldDifference> {
    let mut fields_of_first = Vec::new();
    let mut fields_of_second = Vec::new();
    flatten("", first, &mut fields_of_first);
    flatten("", second, &mut fields_of_second);
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in fields_of_first.iter().chain(&fields_of_second) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let value_of = |fields: &[(String, String)], name: &str| {
        fields
            .iter()
            .find(|(field, _)| field == name)
            .map_or_else(|| "absent".to_string(), |(_, value)| value.clone())
    };
    names
        .into_iter()
        .filter(|name| *name != MODEL_FIELD && !name.starts_with("model."))
        .filter_map(|name| {
            let (first, second) =
                (value_of(&fields_of_first, name), value_of(&fields_of_second, name));
            (first != second).then(|| FieldDifference { field: name.clone(), first, second })
        })
        .collect()
}

/// The leaves of a JSON value under dotted names. Lists are leaves.
fn flatten(prefix: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, inner, fields);
            }
        }
        Value::String(text) => fields.push((name_of(prefix), text.clone())),
        leaf => fields.push((name_of(prefix), leaf.to_string())),
    }
}

fn name_of(prefix: &str) -> String {
    if prefix.is_empty() { "protocol" } else { prefix }.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::test_report::report_of;
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_model_may_differ() {
        let a =
            json!({"model": {"hash": "a"}, "sampler": {"kind": "ddim", "steps": 20}, "ema": true});
        let b =
            json!({"ema": true, "sampler": {"steps": 50, "kind": "ddim"}, "model": {"hash": "b"}});
        assert_eq!(differing_fields(&a, &a), []);
        let difference = FieldDifference {
            field: "sampler.steps".to_string(),
            first: "20".to_string(),
            second: "50".to_string(),
        };
        assert_eq!(differing_fields(&a, &b), [difference]);
        assert_eq!(differing_fields(&a, &Value::Null)[0].second, "absent");
    }

    #[test]
    fn rows_made_differently_form_their_own_group() {
        let mut report = report_of(2);
        report.rows[0].protocol = json!({"steps": 50});
        report.rows[1].kind = RowKind::Before;
        report.rows[0].kind = RowKind::Other;
        let groups = protocol_groups(&report.rows);
        assert_eq!(groups.len(), 2);
        assert!(groups[0].differs_in.is_empty());
        assert_eq!(groups[0].rows.len(), report.rows.len() - 1);
        assert_eq!(groups[1].rows[0].id, report.rows[0].id);
        assert!(groups[1].differs_in.iter().any(|d| d.field == "steps"));
    }

    #[test]
    fn no_rows_no_groups() {
        assert!(protocol_groups(&[]).is_empty());
    }
}
