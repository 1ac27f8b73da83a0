//! `metrics.json`: rows, protocol and search for machines, every digit kept.

use std::collections::BTreeMap;

use deme_merge::TaskVectorStatistics;
use deme_merge::task_vector_statistics::Similarity;
use deme_merge::weight_search::Reference;
use serde::Serialize;

use super::verdict::verdict;
use super::{
    DecisionRow, EvaluationCounts, LandscapePlane, MetricValue, RangeLosses, RealDistance, Report,
    RowKind, SearchSummary,
};

/// Raised when a field of the file changes its meaning or disappears.
const SCHEMA_VERSION: u32 = 2;

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
    search: Option<MetricsSearch<'a>>,
    landscapes: &'a [LandscapePlane],
    task_vectors: Option<MetricsTaskVectors<'a>>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    shuffled_clip_score: Option<f64>,
    protocol: &'a serde_json::Value,
}

/// A search without its durations.
#[derive(Serialize)]
struct MetricsSearch<'a> {
    objective: &'a str,
    lower_is_better: bool,
    strategy: &'a str,
    evaluations: usize,
    budget: usize,
    groups: &'a [String],
    best_weights: &'a [f64],
    best_value: f64,
    references: &'a [Reference],
    decisions: &'a [DecisionRow],
    log: &'a [(Vec<f64>, f64)],
    scored_on: &'a str,
}

/// Lengths and cosines; the distributions of single tensors are in the stage's own file.
#[derive(Serialize)]
struct MetricsTaskVectors<'a> {
    whole: &'a Similarity,
    groups: &'a BTreeMap<String, Similarity>,
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
                shuffled_clip_score: row.shuffled_clip_score,
                protocol: &row.protocol,
            })
            .collect(),
        search: report.search.as_ref().map(search_of),
        landscapes: &report.landscapes,
        task_vectors: report.task_vectors.as_ref().map(task_vectors_of),
        range_losses: &report.range_losses,
        recipe: &report.recipe_toml,
    };
    let mut text = serde_json::to_string_pretty(&metrics)
        .expect("plain structs of finite numbers and text always serialise");
    text.push('\n');
    text
}

fn search_of(search: &SearchSummary) -> MetricsSearch<'_> {
    MetricsSearch {
        objective: &search.objective,
        lower_is_better: search.lower_is_better,
        strategy: &search.strategy,
        evaluations: search.evaluations,
        budget: search.budget,
        groups: &search.groups,
        best_weights: &search.best_weights,
        best_value: search.best_value,
        references: &search.references,
        decisions: &search.decisions,
        log: &search.log,
        scored_on: &search.scored_on,
    }
}

fn task_vectors_of(statistics: &TaskVectorStatistics) -> MetricsTaskVectors<'_> {
    MetricsTaskVectors { whole: &statistics.whole, groups: &statistics.groups }
}

fn entries(pairs: &[(String, String)]) -> Vec<Entry<'_>> {
    pairs.iter().map(|(name, value)| Entry { name, value }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::{report_of, with_prompts};
    use super::*;

    #[test]
    fn machines_find_every_row_with_its_protocol() {
        let report = report_of(4);
        let json: serde_json::Value = serde_json::from_str(&render(&report)).unwrap();
        assert_eq!(json["schema_version"], 2);
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), report.rows.len());
        for (row, original) in rows.iter().zip(&report.rows) {
            assert_eq!(row["metrics"][0]["value"], original.metrics[0].value);
            assert_eq!(row["protocol"], original.protocol);
            assert!(row.get("shuffled_clip_score").is_none(), "absent where it was not measured");
        }
        let prompted = with_prompts(report.clone());
        let again: serde_json::Value = serde_json::from_str(&render(&prompted)).unwrap();
        assert_eq!(
            again["rows"][1]["shuffled_clip_score"].as_f64(),
            prompted.rows[1].shuffled_clip_score
        );
        assert_eq!(json["rows"][0]["kind"], "before");
        let search = report.search.as_ref().unwrap();
        assert_eq!(json["search"]["log"].as_array().unwrap().len(), search.log.len());
        assert_eq!(json["search"]["references"][4]["kind"]["expert"], 3);
        assert_eq!(json["search"]["references"][0]["value"], search.references[0].value);
        let plane = &report.landscapes[0].landscape;
        assert_eq!(json["landscapes"][0]["landscape"]["values"][1][2], plane.values[1][2]);
        let statistics = report.task_vectors.as_ref().unwrap();
        let cosine = statistics.whole.cosines[0][1].unwrap();
        assert_eq!(json["task_vectors"]["whole"]["cosines"][0][1], cosine);
        assert_eq!(
            json["task_vectors"]["groups"]["mid"]["norms"][3],
            statistics.groups["mid"].norms[3]
        );
    }

    #[test]
    fn durations_are_no_part_of_the_file() {
        let mut report = report_of(2);
        let before = render(&report);
        report.search.as_mut().unwrap().seconds.iter_mut().for_each(|seconds| *seconds *= 2.0);
        assert_eq!(render(&report), before);
    }
}
