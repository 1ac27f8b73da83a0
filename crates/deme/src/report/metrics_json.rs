//! `metrics.json`: rows, protocol and search for machines, every digit kept.

use serde::Serialize;

use super::verdict::verdict;
use super::{
    EvaluationCounts, MetricValue, RangeLosses, RealDistance, Report, RowKind, SearchSummary,
};

/// Raised when a field of the file changes its meaning or disappears.
const SCHEMA_VERSION: u32 = 1;

#[derive(Serialize)]
struct Metrics<'a> {
    schema_version: u32,
    title: &'a str,
    verdict: String,
    remarks: Vec<String>,
    command: &'a str,
    hardware: &'a str,
    versions: Vec<Entry<'a>>,
    protocol: Vec<Entry<'a>>,
    counts: &'a Option<EvaluationCounts>,
    real_distance: &'a Option<RealDistance>,
    spread_meaning: &'a str,
    ranges: &'a [(usize, usize)],
    rows: Vec<MetricsRow<'a>>,
    search: &'a Option<SearchSummary>,
    range_losses: &'a Option<RangeLosses>,
    recipe: &'a str,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct MetricsRow<'a> {
    id: &'a str,
    label: &'a str,
    kind: RowKind,
    weights: &'a Option<Vec<f64>>,
    iterations: u64,
    metrics: &'a [MetricValue],
    protocol: &'a serde_json::Value,
}

/// The file's text. Timings and paths are left out, so that equal results give equal bytes.
pub(super) fn render(report: &Report) -> String {
    let found = verdict(report);
    let metrics = Metrics {
        schema_version: SCHEMA_VERSION,
        title: &report.title,
        verdict: found.sentence,
        remarks: found.remarks,
        command: &report.command,
        hardware: &report.hardware,
        versions: entries(&report.versions),
        protocol: entries(&report.protocol),
        counts: &report.counts,
        real_distance: &report.real_distance,
        spread_meaning: &report.spread_meaning,
        ranges: &report.ranges,
        rows: report
            .rows
            .iter()
            .map(|row| MetricsRow {
                id: &row.id,
                label: &row.label,
                kind: row.kind,
                weights: &row.weights,
                iterations: row.iterations,
                metrics: &row.metrics,
                protocol: &row.protocol,
            })
            .collect(),
        search: &report.search,
        range_losses: &report.range_losses,
        recipe: &report.recipe_toml,
    };
    let mut text = serde_json::to_string_pretty(&metrics)
        .expect("plain structs of finite numbers and text always serialise");
    text.push('\n');
    text
}

fn entries(pairs: &[(String, String)]) -> Vec<Entry<'_>> {
    pairs.iter().map(|(name, value)| Entry { name, value }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::report_of;
    use super::*;

    #[test]
    fn machines_find_every_row_with_its_protocol() {
        let report = report_of(4);
        let json: serde_json::Value = serde_json::from_str(&render(&report)).unwrap();
        assert_eq!(json["schema_version"], 1);
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), report.rows.len());
        for (row, original) in rows.iter().zip(&report.rows) {
            assert_eq!(row["metrics"][0]["value"], original.metrics[0].value);
            assert_eq!(row["protocol"], original.protocol);
        }
        assert_eq!(json["rows"][0]["kind"], "before");
        assert_eq!(
            json["search"]["log"].as_array().unwrap().len(),
            report.search.unwrap().log.len()
        );
    }
}
