//! The rows' numbers. Rows that were measured differently stand in tables of their own.

use super::super::document::{Block, CaptionedFigure, Cell, Column, Section, Table, Tone};
use super::super::escape::slug;
use super::super::figures;
use super::super::number_format::{count, fixed, signed, trimmed, weights};
use super::super::prompt_fit::{PromptFit, prompt_fit};
use super::super::protocol::{ProtocolGroup, protocol_groups};
use super::super::verdict::{
    SPREADS_TO_COUNT, Standing, decimals_of, difference, standing_in_words, with_spread,
};
use super::super::{RealDistance, Report, Row, RowKind};
use super::metric_names;

/// The rows' numbers: one table and one drawing per metric and way of measuring.
pub(super) fn results(report: &Report) -> Section {
    let mut blocks = Vec::new();
    let groups = protocol_groups(&report.rows);
    for (place, group) in groups.iter().enumerate() {
        if !group.differs_in.is_empty() {
            blocks.push(Block::Subheading("Measured differently".to_string()));
            blocks.push(Block::Paragraph(differences_in_words(group)));
        }
        let metrics = metric_names(&group.rows);
        for metric in &metrics {
            if metrics.len() > 1 {
                blocks.push(Block::Subheading(heading(metric, group)));
            }
            blocks.push(Block::Table(metric_table(report, metric, group)));
            let name = format!("values-{}-{}", place + 1, slug(metric));
            if let Some(figure) = figures::measured_values(name, metric, &group.rows) {
                let guide = if group.rows.iter().any(|row| row.kind == RowKind::Before) {
                    " The dashed line is the model before finetuning."
                } else {
                    ""
                };
                blocks.push(Block::Figures(vec![CaptionedFigure {
                    figure,
                    caption: format!("{metric} of each model; merged models in colour.{guide}"),
                }]));
            }
        }
        blocks.extend(own_and_shuffled(report, group));
    }
    if let Some(RealDistance { metric, pictures, distance }) = &report.real_distance {
        let decimals = decimals_of(&report.rows, metric);
        blocks.push(Block::Paragraph(format!(
            "For comparison: {} of the training pictures themselves have {metric} {}, which is what a \
             model would score that gave its training pictures back. Differences between models \
             near that value are beyond this judge.",
            count(*pictures as u64),
            fixed(*distance, decimals)
        )));
    }
    if !blocks.is_empty() {
        blocks.push(Block::Remark(table_footnote(report)));
    }
    Section { id: "results", heading: "Results", blocks }
}

/// `clip_score_tiny_clip, higher is better`
fn heading(metric: &str, group: &ProtocolGroup<'_>) -> String {
    let lower_is_better =
        group.rows.iter().any(|row| row.metric(metric).is_some_and(|m| m.lower_is_better));
    format!("{metric}, {} is better", if lower_is_better { "lower" } else { "higher" })
}

/// The CLIP score with own prompts beside that with prompts of others, and what it says of all models.
fn own_and_shuffled(report: &Report, group: &ProtocolGroup<'_>) -> Vec<Block> {
    let scored: Vec<(&Row, PromptFit<'_>)> =
        group.rows.iter().filter_map(|row| Some((*row, prompt_fit(row)?))).collect();
    let Some((_, first)) = scored.first() else { return Vec::new() };
    let decimals = decimals_of(&report.rows, &first.own.name);
    let columns = vec![
        Column::text("model"),
        Column::number("own prompts"),
        Column::number("shuffled prompts"),
        Column::number("own above shuffled"),
    ];
    let rows = scored.iter().map(|(row, fit)| {
        vec![
            Cell::new(&row.label),
            Cell::new(with_spread(fit.own, decimals)),
            Cell::new(fixed(fit.shuffled, decimals)),
            Cell::new(signed(fit.difference.amount, decimals))
                .note(fit.standing_in_words())
                .tone(tone_of(fit.difference.standing)),
        ]
    });
    vec![
        Block::Subheading("Do the pictures follow their prompts?".to_string()),
        Block::Paragraph(format!(
            "{} of the same pictures with the prompts they were drawn from, and with the prompts of other \
             pictures. A model that does not read its prompts scores the same with both. {}",
            first.own.name,
            all_in_words(&scored)
        )),
        Block::Table(Table { columns, rows: rows.collect() }),
        Block::Remark(format!(
            "A difference is clear when it exceeds {} combined spreads; the score with shuffled prompts is \
             taken to have the spread of the other.",
            trimmed(SPREADS_TO_COUNT, 1)
        )),
    ]
}

/// `Own prompts clearly above: before, joint; within noise: expert 1.`
fn all_in_words(scored: &[(&Row, PromptFit<'_>)]) -> String {
    let mut by_standing: Vec<(&str, Vec<&str>)> = Vec::new();
    for (row, fit) in scored {
        let words = fit.standing_in_words();
        match by_standing.iter_mut().find(|(known, _)| *known == words) {
            Some((_, labels)) => labels.push(&row.label),
            None => by_standing.push((words, vec![&row.label])),
        }
    }
    if let [("clearly above", labels)] = by_standing.as_slice()
        && labels.len() > 1
    {
        return format!(
            "All {} models score their own prompts clearly above shuffled ones.",
            labels.len()
        );
    }
    // The groups in the order of the models, but what is clearly above first.
    by_standing.sort_by_key(|(words, _)| *words != "clearly above");
    let parts: Vec<String> = by_standing
        .iter()
        .map(|(words, labels)| format!("{words}: {}", labels.join(", ")))
        .collect();
    format!("Own prompts against shuffled ones, {}.", parts.join("; "))
}

fn differences_in_words(group: &ProtocolGroup<'_>) -> String {
    let fields: Vec<String> = group
        .differs_in
        .iter()
        .map(|d| format!("{} ({} here, {} above)", d.field, d.second, d.first))
        .collect();
    format!(
        "These numbers cannot be compared with those above: they differ in {}.",
        fields.join(", ")
    )
}

fn table_footnote(report: &Report) -> String {
    let spread = if report.spread_meaning.is_empty() {
        "No spread was measured, so small differences mean nothing.".to_string()
    } else {
        format!(
            "± is {}. A difference is called better or worse only when it exceeds {} combined \
             spreads, sqrt(a² + b²).",
            report.spread_meaning,
            trimmed(SPREADS_TO_COUNT, 1)
        )
    };
    format!(
        "{spread} The best value is set in bold. Iterations are those of all finetuning that \
         went into a model."
    )
}

fn metric_table(report: &Report, metric: &str, group: &ProtocolGroup<'_>) -> Table {
    let decimals = decimals_of(&report.rows, metric);
    let measured: Vec<_> =
        group.rows.iter().filter_map(|row| Some((*row, row.metric(metric)?))).collect();
    let lower_is_better = measured.iter().any(|(_, m)| m.lower_is_better);
    let best = measured.iter().map(|(_, m)| m.value).reduce(if lower_is_better {
        f64::min
    } else {
        f64::max
    });
    let of_kind = |kind: RowKind| measured.iter().find(|(row, _)| row.kind == kind).copied();
    let references: Vec<_> = [("before", RowKind::Before), ("joint", RowKind::Joint)]
        .into_iter()
        .filter_map(|(name, kind)| Some((name, of_kind(kind)?)))
        .collect();
    let with_weights = group.rows.iter().any(|row| row.weights.is_some());

    let arrow = if lower_is_better { "↓" } else { "↑" };
    let mut columns = vec![Column::text("model"), Column::number(format!("{metric} {arrow}"))];
    columns.extend(references.iter().map(|(name, _)| Column::number(format!("against {name}"))));
    columns.push(Column::number("iterations"));
    if with_weights {
        columns.push(Column::text("weights"));
    }
    let rows = measured
        .iter()
        .map(|(row, value)| {
            let tone = if measured.len() > 1 && Some(value.value) == best {
                Tone::Best
            } else {
                Tone::Plain
            };
            let mut cells =
                vec![Cell::new(&row.label), Cell::new(with_spread(value, decimals)).tone(tone)];
            for (_, (reference_row, reference)) in &references {
                cells.push(if reference_row.id == row.id {
                    Cell::new("–").tone(Tone::Faint)
                } else {
                    let found = difference(value, reference);
                    Cell::new(signed(found.amount, decimals))
                        .note(standing_in_words(found.standing))
                        .tone(tone_of(found.standing))
                });
            }
            cells.push(Cell::new(count(row.iterations)));
            if with_weights {
                let text = row.weights.as_deref().map(weights).unwrap_or_default();
                cells.push(Cell::new(text));
            }
            cells
        })
        .collect();
    Table { columns, rows }
}

fn tone_of(standing: Standing) -> Tone {
    match standing {
        Standing::Better => Tone::Better,
        Standing::Worse => Tone::Worse,
        Standing::WithinSpread | Standing::SpreadUnknown | Standing::Same => Tone::Faint,
    }
}
