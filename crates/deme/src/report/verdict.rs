//! What the numbers say about Decouple-then-Merge, in words that are never kinder than they.
//!
//! The model that is judged is chosen by what it is (searched weights before fixed before
//! uniform), not by how it scored: taking the best of several on the report's own pictures
//! would flatter it.

use super::number_format::{column_decimals, count, fixed, signed};
use super::prompt_fit::prompt_fit;
use super::protocol::differing_fields;
use super::{MetricValue, Report, Row, RowKind};

/// A difference counts when it exceeds this many combined spreads.
pub(super) const SPREADS_TO_COUNT: f64 = 2.0;

/// How a number stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// In the good direction by more than the spread explains.
    Better,
    /// In the bad direction by more than the spread explains.
    Worse,
    /// The spread alone could explain it.
    WithinSpread,
    /// They differ, but a spread is missing.
    SpreadUnknown,
    /// Equal in every digit.
    Same,
}

/// `a - b`, judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Difference {
    pub(super) amount: f64,
    pub(super) standing: Standing,
}

/// Compares `a` with `b`: the spreads are combined as independent ones,
/// `sqrt(s_a^2 + s_b^2)`, which is on the safe side for rows that share their seeds.
pub(super) fn difference(a: &MetricValue, b: &MetricValue) -> Difference {
    let amount = a.value - b.value;
    let standing = match (a.spread, b.spread) {
        _ if amount == 0.0 => Standing::Same,
        (Some(s_a), Some(s_b)) if amount.abs() <= SPREADS_TO_COUNT * s_a.hypot(s_b) => {
            Standing::WithinSpread
        }
        (Some(_), Some(_)) if (amount < 0.0) == a.lower_is_better => Standing::Better,
        (Some(_), Some(_)) => Standing::Worse,
        _ => Standing::SpreadUnknown,
    };
    Difference { amount, standing }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// One sentence: the merged model against the pretrained and the jointly finetuned one.
    pub sentence: String,
    /// What else a reader must not miss, a sentence or two each.
    pub remarks: Vec<String>,
}

/// Reads the verdict off the rows.
pub fn verdict(report: &Report) -> Verdict {
    let Some(merged) = merged_row(&report.rows) else {
        return Verdict {
            sentence: "No merged model was measured, so these numbers say nothing about \
                       Decouple-then-Merge."
                .to_string(),
            remarks: Vec::new(),
        };
    };
    let Some(metric) = merged.metrics.first() else {
        return Verdict {
            sentence: "The merged model was made but not measured.".to_string(),
            remarks: Vec::new(),
        };
    };
    let sentence = sentence(&report.rows, merged, metric);
    let mut remarks = Vec::new();
    for further in merged.metrics.iter().skip(1) {
        remarks.push(further_metric_remark(&report.rows, merged, further));
    }
    for metric in &merged.metrics {
        remarks.extend(winner_remark(&report.rows, merged, metric));
    }
    if let Some(fit) = prompt_fit(merged) {
        remarks.push(fit.sentence(decimals_of(&report.rows, &fit.own.name)));
    }
    remarks.extend(weights_remarks(report, merged));
    Verdict { sentence, remarks }
}

/// The row that stands for Decouple-then-Merge.
pub(super) fn merged_row(rows: &[Row]) -> Option<&Row> {
    [RowKind::Searched, RowKind::Fixed, RowKind::Uniform]
        .into_iter()
        .find_map(|kind| row_of(rows, kind))
}

/// The first row of a kind.
pub(super) fn row_of(rows: &[Row], kind: RowKind) -> Option<&Row> {
    rows.iter().find(|row| row.kind == kind)
}

/// A comparison in words, or why there is none.
enum Clause {
    Compared(Standing, String),
    Gap(String),
}

fn sentence(rows: &[Row], merged: &Row, metric: &MetricValue) -> String {
    let clauses = [
        clause(rows, merged, metric, RowKind::Before),
        clause(rows, merged, metric, RowKind::Joint),
    ];
    let decimals = decimals_of(rows, &metric.name);
    let direction = if metric.lower_is_better { "lower is better" } else { "higher is better" };
    let mut text = format!(
        "The merged model ({}) reaches {} {} ({direction})",
        weights_in_words(merged.kind),
        metric.name,
        with_spread(metric, decimals),
    );
    let compared: Vec<_> = clauses
        .iter()
        .filter_map(|clause| match clause {
            Clause::Compared(standing, words) => Some((*standing, words)),
            Clause::Gap(_) => None,
        })
        .collect();
    match compared.as_slice() {
        [(_, only)] => text.push_str(&format!(": {only}")),
        [(first, before), (second, joint)] => {
            let link = if first == second { "and" } else { "but" };
            text.push_str(&format!(": {before}, {link} {joint}"));
        }
        _ => {}
    }
    for clause in &clauses {
        if let Clause::Gap(words) = clause {
            text.push_str(&format!("; {words}"));
        }
    }
    text.push('.');
    text
}

/// The merged model against the row of `kind`.
fn clause(rows: &[Row], merged: &Row, metric: &MetricValue, kind: RowKind) -> Clause {
    let name = match kind {
        RowKind::Joint => "joint finetuning",
        _ => "the model before finetuning",
    };
    let Some(other) = row_of(rows, kind) else {
        return Clause::Gap(format!("{name} was not measured, so there is no comparison with it"));
    };
    let Some(value) = other.metric(&metric.name) else {
        return Clause::Gap(format!("{} was not measured for {name}", metric.name));
    };
    let fields = differing_fields(&other.protocol, &merged.protocol);
    if !fields.is_empty() {
        let names: Vec<&str> = fields.iter().map(|f| f.field.as_str()).collect();
        return Clause::Gap(format!(
            "{name} was measured differently ({}) and cannot be compared",
            names.join(", ")
        ));
    }
    let name =
        if kind == RowKind::Joint { joint_in_words(other, merged) } else { name.to_string() };
    let decimals = decimals_of(rows, &metric.name);
    let Difference { amount, standing } = difference(metric, value);
    let shown = with_spread(value, decimals);
    let by = fixed(amount.abs(), decimals);
    let words = match standing {
        Standing::Better => format!("better than {name} ({shown}) by {by}"),
        Standing::Worse => format!("worse than {name} ({shown}) by {by}"),
        Standing::WithinSpread => format!(
            "not distinguishable from {name} ({shown}; the difference of {by} is within the spread)"
        ),
        Standing::Same => format!("exactly the value of {name}"),
        Standing::SpreadUnknown => format!(
            "{} than {name} ({shown}) by {by}, with no spread measured to judge that by",
            if amount < 0.0 { "lower" } else { "higher" }
        ),
    };
    Clause::Compared(standing, words)
}

fn joint_in_words(joint: &Row, merged: &Row) -> String {
    if joint.iterations == merged.iterations {
        format!("joint finetuning for the same {} iterations", count(joint.iterations))
    } else {
        format!(
            "joint finetuning for {} iterations (the experts took {} together)",
            count(joint.iterations),
            count(merged.iterations)
        )
    }
}

fn weights_in_words(kind: RowKind) -> &'static str {
    match kind {
        RowKind::Searched => "searched weights",
        RowKind::Fixed => "weights from the recipe",
        _ => "uniform weights 1/N",
    }
}

/// Which row wins by one metric, among those of the merged model's protocol, and which ones the spread cannot
/// tell from it. None where there is nothing to win against.
fn winner_remark(rows: &[Row], merged: &Row, metric: &MetricValue) -> Option<String> {
    let comparable: Vec<(&Row, &MetricValue)> = rows
        .iter()
        .filter_map(|row| {
            let value = row.metric(&metric.name)?;
            let same = differing_fields(&merged.protocol, &row.protocol).is_empty();
            same.then_some((row, value))
        })
        .collect();
    let (best, value) = comparable.iter().copied().reduce(|best, next| {
        let ahead = if metric.lower_is_better {
            next.1.value < best.1.value
        } else {
            next.1.value > best.1.value
        };
        if ahead { next } else { best }
    })?;
    let others = || comparable.iter().filter(|(row, _)| row.id != best.id);
    others().next()?;
    let of_standing = |wanted: &[Standing]| -> Vec<String> {
        let rows =
            others().filter(|(_, other)| wanted.contains(&difference(value, other).standing));
        rows.map(|(row, _)| format!("\"{}\"", row.label)).collect()
    };
    let tied = of_standing(&[Standing::WithinSpread, Standing::Same]);
    let unknown = of_standing(&[Standing::SpreadUnknown]);
    let direction = if metric.lower_is_better { "lower" } else { "higher" };
    let best = format!("\"{}\"", best.label);
    let value = with_spread(value, decimals_of(rows, &metric.name));
    let found = if !tied.is_empty() {
        format!(
            "no model wins alone: {best} has {value}, and within the spread of that {} {}",
            if tied.len() == 1 { "is" } else { "are" },
            tied.join(", ")
        )
    } else if !unknown.is_empty() {
        format!("{best} has the best value, {value}, with no spread to judge its lead by")
    } else {
        format!("{best} wins with {value}, ahead of all others by more than the spread")
    };
    Some(format!("By {} ({direction} is better) {found}.", metric.name))
}

/// The comparison on a metric that is not the first.
fn further_metric_remark(rows: &[Row], merged: &Row, metric: &MetricValue) -> String {
    let decimals = decimals_of(rows, &metric.name);
    let direction = if metric.lower_is_better { "lower" } else { "higher" };
    let mut parts = Vec::new();
    for (kind, name) in [(RowKind::Before, "before"), (RowKind::Joint, "joint")] {
        let Some(other) = row_of(rows, kind) else {
            continue;
        };
        let Some(value) = other.metric(&metric.name) else {
            continue;
        };
        if !differing_fields(&other.protocol, &merged.protocol).is_empty() {
            continue;
        }
        let found = difference(metric, value);
        parts.push(format!(
            "{} against {name} ({})",
            signed(found.amount, decimals),
            standing_in_words(found.standing)
        ));
    }
    let value = with_spread(metric, decimals);
    if parts.is_empty() {
        return format!("{} ({direction} is better): {value}.", metric.name);
    }
    format!("{} ({direction} is better): {value}, {}.", metric.name, parts.join(" and "))
}

/// A standing in a word or two.
pub(super) fn standing_in_words(standing: Standing) -> &'static str {
    match standing {
        Standing::Better => "better",
        Standing::Worse => "worse",
        Standing::WithinSpread => "within spread",
        Standing::SpreadUnknown => "spread unknown",
        Standing::Same => "same",
    }
}

fn weights_remarks(report: &Report, merged: &Row) -> Vec<String> {
    let mut remarks = Vec::new();
    if report.ranges.len() == 1 {
        remarks.push(
            "There is one timestep range only: the expert is plain finetuning, and merging \
             scales its step away from the pretrained model."
                .to_string(),
        );
    }
    let Some(weights) = &merged.weights else {
        return remarks;
    };
    if weights.iter().all(|w| *w == 0.0) {
        remarks.push(
            "All merging weights are zero: the merged model is the pretrained model.".to_string(),
        );
    }
    let Some(search) = report.search.as_ref().filter(|_| merged.kind == RowKind::Searched) else {
        return remarks;
    };
    let edges: Vec<String> = (0..search.best_weights.len())
        .filter(|&axis| lies_on_edge(&search.log, axis, search.best_weights[axis]))
        .map(|axis| (axis + 1).to_string())
        .collect();
    if !edges.is_empty() {
        let experts = if edges.len() == 1 { "expert" } else { "experts" };
        remarks.push(format!(
            "The best weight of {experts} {} lies at the edge of the searched values; \
             a wider search may find better weights.",
            edges.join(", ")
        ));
    }
    remarks
}

/// Whether `best` is the smallest or largest value tried along `axis`, zero aside: weights
/// below zero are rarely meant to be tried.
fn lies_on_edge(log: &[(Vec<f64>, f64)], axis: usize, best: f64) -> bool {
    let tried = || log.iter().filter_map(move |(w, _)| w.get(axis).copied());
    let smallest = tried().fold(f64::INFINITY, f64::min);
    let largest = tried().fold(f64::NEG_INFINITY, f64::max);
    smallest < largest && (best == largest || (best == smallest && best != 0.0))
}

/// The decimals with which a metric is written everywhere in the report.
pub(super) fn decimals_of(rows: &[Row], metric: &str) -> usize {
    let values: Vec<(f64, Option<f64>)> = rows
        .iter()
        .filter_map(|row| row.metric(metric))
        .map(|metric| (metric.value, metric.spread))
        .collect();
    column_decimals(&values)
}

/// `12.34 ± 0.21`
pub(super) fn with_spread(metric: &MetricValue, decimals: usize) -> String {
    match metric.spread {
        Some(spread) => format!("{} ± {}", fixed(metric.value, decimals), fixed(spread, decimals)),
        None => fixed(metric.value, decimals),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::report_of;
    use super::*;
    use serde_json::json;

    /// A report whose rows of three kinds have the given first metric.
    fn report_with(before: f64, joint: f64, merged: f64, spread: Option<f64>) -> Report {
        let mut report = report_of(4);
        report
            .rows
            .retain(|row| matches!(row.kind, RowKind::Before | RowKind::Joint | RowKind::Searched));
        for row in &mut report.rows {
            row.metrics.truncate(1);
            row.metrics[0].spread = spread;
            row.metrics[0].value = match row.kind {
                RowKind::Before => before,
                RowKind::Joint => joint,
                _ => merged,
            };
        }
        report
    }

    fn sentence_of(report: &Report) -> String {
        verdict(report).sentence
    }

    #[test]
    fn better_than_both_is_said_with_both_differences() {
        let text = sentence_of(&report_with(20.0, 15.0, 10.0, Some(0.5)));
        assert_eq!(
            text,
            "The merged model (searched weights) reaches fd_tiny_clip 10.00 ± 0.50 (lower is \
             better): better than the model before finetuning (20.00 ± 0.50) by 10.00, and better \
             than joint finetuning for the same 1600 iterations (15.00 ± 0.50) by 5.00."
        );
    }

    #[test]
    fn worse_is_said_plainly_and_the_better_row_is_named() {
        let report = report_with(20.0, 10.0, 15.0, Some(0.5));
        let found = verdict(&report);
        assert!(found.sentence.contains("better than the model before finetuning"));
        assert!(found.sentence.contains(", but worse than joint finetuning"));
        assert_eq!(
            found.remarks[0],
            "By fd_tiny_clip (lower is better) \"joint\" wins with 10.00 ± 0.50, ahead of all others \
             by more than the spread."
        );
    }

    #[test]
    fn a_difference_within_the_spread_is_no_win() {
        let text = sentence_of(&report_with(10.2, 10.1, 10.0, Some(0.5)));
        assert_eq!(text.matches("not distinguishable from").count(), 2, "{text}");
        assert!(!text.contains("better than"), "{text}");
        // Just beyond twice the combined spread it counts.
        let noise = SPREADS_TO_COUNT * 0.5_f64.hypot(0.5);
        let text = sentence_of(&report_with(10.0 + noise * 1.01, 10.1, 10.0, Some(0.5)));
        assert!(text.contains("better than the model before"), "{text}");
        let text = sentence_of(&report_with(10.0 + noise * 0.99, 10.1, 10.0, Some(0.5)));
        assert!(!text.contains("better than"), "{text}");
    }

    #[test]
    fn each_metric_has_its_own_winner_and_ties_are_none() {
        let mut report = report_with(20.0, 15.0, 10.0, Some(0.5));
        for (row, score) in report.rows.iter_mut().zip([24.0, 27.0, 26.9]) {
            row.metrics.push(MetricValue {
                name: "clip_score_tiny_clip".into(),
                value: score,
                spread: Some(0.1),
                lower_is_better: false,
            });
        }
        let remarks = verdict(&report).remarks;
        assert_eq!(
            remarks,
            [
                "clip_score_tiny_clip (higher is better): 26.90 ± 0.10, +2.90 against before (better) \
                 and \u{2212}0.10 against joint (within spread).",
                "By fd_tiny_clip (lower is better) \"searched\" wins with 10.00 ± 0.50, ahead of all \
                 others by more than the spread.",
                "By clip_score_tiny_clip (higher is better) no model wins alone: \"joint\" has 27.00 ± \
                 0.10, and within the spread of that is \"searched\".",
            ]
        );
        // Clearly ahead, the other one wins by the second metric.
        report.rows[1].metrics[1].value = 28.0;
        let remarks = verdict(&report).remarks;
        assert!(remarks[2].contains("\"joint\" wins with 28.00 ± 0.10"), "{}", remarks[2]);
        report.rows[0].metrics[1].spread = None;
        report.rows[2].metrics[1].spread = None;
        let remarks = verdict(&report).remarks;
        assert!(remarks[2].contains("28.00 ± 0.10, with no spread to judge"), "{}", remarks[2]);
        // What was measured differently takes no part.
        report.rows[1].protocol = json!({"steps": 999});
        let remarks = verdict(&report).remarks.join(" ");
        assert!(!remarks.contains("\"joint\""), "{remarks}");
        report.rows.truncate(0);
        assert!(verdict(&report).remarks.is_empty());
    }

    #[test]
    fn whether_pictures_follow_their_prompts_is_said_of_the_merged_model() {
        let mut report = report_of(2);
        assert!(!verdict(&report).remarks.iter().any(|remark| remark.contains("prompts")));
        let merged = report.rows.last_mut().unwrap();
        merged.shuffled_clip_score = Some(merged.metrics[1].value - 3.0);
        let remarks = verdict(&report).remarks.join(" ");
        assert!(
            remarks.contains("clearly above, so the pictures follow their prompts."),
            "{remarks}"
        );
    }

    #[test]
    fn without_a_spread_only_the_direction_is_said() {
        let text = sentence_of(&report_with(20.0, 8.0, 10.0, None));
        assert!(
            text.contains(
                "lower than the model before finetuning (20.00) by 10.00, with no spread"
            ),
            "{text}"
        );
        assert!(text.contains("higher than joint finetuning"), "{text}");
        assert!(!text.contains("better than"), "{text}");
    }

    #[test]
    fn higher_is_better_turns_the_words_around() {
        let mut report = report_with(20.0, 8.0, 10.0, Some(0.1));
        for row in &mut report.rows {
            row.metrics[0].lower_is_better = false;
        }
        let text = sentence_of(&report);
        assert!(text.contains("worse than the model before finetuning"), "{text}");
        assert!(text.contains("better than joint finetuning"), "{text}");
    }

    #[test]
    fn a_missing_joint_row_is_admitted() {
        let mut report = report_with(20.0, 15.0, 10.0, Some(0.5));
        report.rows.retain(|row| row.kind != RowKind::Joint);
        let text = sentence_of(&report);
        assert!(text.contains("better than the model before finetuning"));
        assert!(
            text.ends_with(
                "; joint finetuning was not measured, so there is no comparison with it."
            )
        );
    }

    #[test]
    fn joint_finetuning_for_longer_is_told() {
        let mut report = report_with(20.0, 15.0, 10.0, Some(0.5));
        report.rows[1].iterations = 20_000;
        let text = sentence_of(&report);
        assert!(
            text.contains("for 20\u{202f}000 iterations (the experts took 1600 together)"),
            "{text}"
        );
    }

    #[test]
    fn numbers_made_differently_are_not_compared() {
        let mut report = report_with(20.0, 15.0, 10.0, Some(0.5));
        report.rows[0].protocol = json!({"steps": 999});
        let text = sentence_of(&report);
        assert!(text.contains("the model before finetuning was measured differently ("), "{text}");
        assert!(text.contains("steps"), "{text}");
        assert!(!text.contains("better than the model before"), "{text}");
    }

    #[test]
    fn no_merged_model_no_claim() {
        let mut report = report_with(20.0, 15.0, 10.0, Some(0.5));
        report.rows.retain(|row| row.kind != RowKind::Searched);
        assert!(sentence_of(&report).starts_with("No merged model was measured"));
        report.rows.clear();
        assert!(sentence_of(&report).starts_with("No merged model was measured"));
    }

    #[test]
    fn searched_weights_are_judged_even_when_uniform_scored_better() {
        let mut report = report_of(2);
        for row in &mut report.rows {
            row.metrics[0].value = if row.kind == RowKind::Uniform { 1.0 } else { 5.0 };
        }
        assert!(sentence_of(&report).contains("searched weights"));
    }

    #[test]
    fn zero_weights_one_range_and_the_edge_are_remarked() {
        let mut report = report_of(1);
        for row in &mut report.rows {
            if row.kind == RowKind::Searched {
                row.weights = Some(vec![0.0]);
            }
        }
        let remarks = verdict(&report).remarks.join(" ");
        assert!(remarks.contains("one timestep range only"), "{remarks}");
        assert!(remarks.contains("All merging weights are zero"), "{remarks}");

        let log = vec![(vec![0.0], 1.0), (vec![0.5], 2.0), (vec![1.0], 3.0)];
        assert!(!lies_on_edge(&log, 0, 0.0));
        assert!(!lies_on_edge(&log, 0, 0.5));
        assert!(lies_on_edge(&log, 0, 1.0));
        assert!(!lies_on_edge(&log[..1], 0, 0.0));
    }
}
