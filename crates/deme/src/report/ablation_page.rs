//! The results of an ablation as a page: `ablation.html`, `ablation.md` with its drawings in `figures/`.
//! What the numbers say was decided in `ablation::results`; here it is only put into words.

use std::fs;
use std::path::Path;

use super::ablation_figures::{differences, means, over_numbers};
use super::document::{Block, CaptionedFigure, Cell, Column, Document, Section, Table, Tone};
use super::escape::slug;
use super::number_format::{column_decimals, fixed, signed};
use super::protocol::differing_fields;
use super::{ReportError, html, markdown, write};
use crate::ablation::metric_names::Metric;
use crate::ablation::results::{
    AblationResults, AblationRow, AblationTable, Difference, Standing, Summary,
};
use crate::ablation::variants::VariantKind;

/// With more seeds than this, a table does not show the numbers of each.
const MOST_SEEDS_SHOWN: usize = 5;

/// Writes the page and the Markdown.
///
/// # Errors
/// [`ReportError::Unwritable`].
pub fn write_ablation_page(results: &AblationResults, folder: &Path) -> Result<(), ReportError> {
    let document = compose(results);
    let figures = folder.join(markdown::FIGURES_FOLDER);
    fs::create_dir_all(&figures)
        .map_err(|source| ReportError::Unwritable { path: figures.clone(), source })?;
    for (name, bytes) in document.files() {
        write(&figures.join(name), &bytes)?;
    }
    write(&folder.join("ablation.md"), markdown::render(&document).as_bytes())?;
    write(&folder.join("ablation.html"), html::render(&document).as_bytes())
}

fn compose(results: &AblationResults) -> Document {
    let sentences: Vec<String> = results.ablations.iter().map(sentence).collect();
    let mut tables = Vec::new();
    for (place, table) in results.ablations.iter().enumerate() {
        tables.extend(table_blocks(place, table, results));
    }
    let sections = vec![
        Section { id: "results", heading: "Results", blocks: tables },
        Section { id: "variants", heading: "What the variants are", blocks: variants(results) },
        Section { id: "made", heading: "How the numbers were made", blocks: how_made(results) },
    ];
    let seeds: Vec<String> = results.seeds.iter().map(u64::to_string).collect();
    let seed_word = if seeds.len() == 1 { "seed" } else { "seeds" };
    Document {
        title: format!("Ablations of {}: {}", results.recipe, results.plan),
        subtitle: format!("{} {seed_word} ({})", seeds.len(), seeds.join(", ")),
        verdict: sentences.join(" "),
        remarks: results.notes.clone(),
        sections,
    }
}

/// What one ablation found, by its first metric.
pub fn sentence(table: &AblationTable) -> String {
    let Some(metric) = table.metrics.first() else { return String::new() };
    let decimals = decimals_of(table, &metric.name);
    let of_standing = |wanted: &[Standing]| -> Vec<String> {
        let rows = table.rows.iter().filter_map(|row| {
            let found = row.summary.get(&metric.name)?.difference.as_ref()?;
            let words = format!("{} ({})", row.label, signed(found.mean, decimals));
            wanted.contains(&found.standing).then_some(words)
        });
        rows.collect()
    };
    let clauses = [
        ("better than the recipe", of_standing(&[Standing::Better])),
        ("worse", of_standing(&[Standing::Worse])),
        ("within noise of it", of_standing(&[Standing::WithinNoise])),
        ("equal to it", of_standing(&[Standing::Same])),
        ("not to be judged, without a spread", of_standing(&[Standing::Unknown])),
    ];
    let mut parts: Vec<String> = clauses
        .into_iter()
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(words, rows)| format!("{words}: {}", rows.join(", ")))
        .collect();
    let failed: Vec<&str> = table
        .rows
        .iter()
        .filter(|row| !row.failures.is_empty())
        .map(|row| row.label.as_str())
        .collect();
    if !failed.is_empty() {
        parts.push(format!("failed: {}", failed.join(", ")));
    }
    if parts.is_empty() {
        parts.push("nothing was measured yet".to_owned());
    }
    format!("{}, by {}: {}.", table.name, metric_title(metric), parts.join("; "))
}

/// `fd_tiny_clip (for FID; lower is better)`
fn metric_title(metric: &Metric) -> String {
    let direction = if metric.lower_is_better { "lower is better" } else { "higher is better" };
    match metric.stands_for.as_slice() {
        [] => format!("{} ({direction})", metric.name),
        asked => format!("{} (for {}; {direction})", metric.name, asked.join(" and ")),
    }
}

/// The decimals of a metric in a table.
pub(super) fn decimals_of(table: &AblationTable, metric: &str) -> usize {
    let summaries = table.rows.iter().filter_map(|row| row.summary.get(metric).map(|s| (row, s)));
    let values: Vec<(f64, Option<f64>)> = summaries
        .map(|(row, summary)| {
            (summary.mean, summary.deviation.or(spread_over_pictures(row, metric)))
        })
        .collect();
    column_decimals(&values)
}

/// The spread over resampled pictures of a row that has one seed.
pub(super) fn spread_over_pictures(row: &AblationRow, metric: &str) -> Option<f64> {
    let numbers: Vec<_> = row.measured.get(metric)?.iter().flatten().collect();
    match numbers.as_slice() {
        [only] => only.spread,
        _ => None,
    }
}

fn table_blocks(place: usize, table: &AblationTable, results: &AblationResults) -> Vec<Block> {
    let mut blocks = vec![
        Block::Subheading(table.name.clone()),
        Block::Paragraph(format!(
            "{} {}.{}",
            action_in_words(table),
            table.part_title,
            table.reason.as_ref().map(|reason| format!(" {reason}")).unwrap_or_default()
        )),
    ];
    for metric in &table.metrics {
        blocks.push(Block::Table(metric_table(table, metric, results)));
        let name = |what: &str| format!("ablation-{}-{}-{what}", place + 1, slug(&metric.name));
        let title = metric_title(metric);
        let drawn = [
            (
                means(name("means"), table, metric),
                format!("{title}, {}", meaning_of_spread(results)),
            ),
            (
                differences(name("differences"), table, metric),
                "Difference to the recipe as it is, paired by seed, with its 95% interval."
                    .to_owned(),
            ),
            (
                over_numbers(name("numbers"), table, metric),
                format!("{} over {}.", metric.name, table.part_title),
            ),
        ];
        let figures = drawn
            .into_iter()
            .filter_map(|(figure, caption)| Some(CaptionedFigure { figure: figure?, caption }));
        blocks.push(Block::Figures(figures.collect()));
    }
    blocks.extend(remarks(table).into_iter().map(Block::Remark));
    blocks
}

fn action_in_words(table: &AblationTable) -> &'static str {
    use crate::ablation::plan::Action;
    match table.action {
        Action::Add => "Added:",
        Action::Remove => "Removed:",
        Action::Replace => "Exchanged:",
    }
}

fn meaning_of_spread(results: &AblationResults) -> &'static str {
    match results.seeds.len() {
        1 => "with one standard deviation over resampled pictures.",
        _ => "means over seeds with their 95% intervals.",
    }
}

fn metric_table(table: &AblationTable, metric: &Metric, results: &AblationResults) -> Table {
    let decimals = decimals_of(table, &metric.name);
    let arrow = if metric.lower_is_better { "↓" } else { "↑" };
    let several = results.seeds.len() > 1;
    let mut columns = vec![
        Column::text("variant"),
        Column::number(format!("{} {arrow}", metric.name)),
        Column::number("against the recipe"),
    ];
    if several {
        columns.push(Column::number("95% interval"));
    }
    let shown =
        if several && results.seeds.len() <= MOST_SEEDS_SHOWN { results.seeds.len() } else { 0 };
    columns
        .extend(results.seeds[..shown].iter().map(|seed| Column::number(format!("seed {seed}"))));

    let means = |row: &AblationRow| row.summary.get(&metric.name).map(|summary| summary.mean);
    let best = table.rows.iter().filter_map(means).reduce(match metric.lower_is_better {
        true => f64::min,
        false => f64::max,
    });
    let rows = table.rows.iter().map(|row| {
        let summary = row.summary.get(&metric.name);
        let mut cells =
            vec![Cell::new(&row.label), mean_cell(row, metric, summary, best, decimals)];
        let difference = summary.and_then(|summary| summary.difference.as_ref());
        cells.push(difference_cell(row, difference, decimals));
        if several {
            let interval = difference.and_then(|difference| difference.interval);
            cells.push(match interval {
                Some([low, high]) => {
                    Cell::new(format!("{} to {}", signed(low, decimals), signed(high, decimals)))
                }
                None => Cell::new("–").tone(Tone::Faint),
            });
        }
        let numbers = row.measured.get(&metric.name);
        cells.extend((0..shown).map(|seed| {
            match numbers.and_then(|numbers| numbers.get(seed).copied().flatten()) {
                Some(measured) => Cell::new(fixed(measured.value, decimals)),
                None => Cell::new("–").tone(Tone::Faint),
            }
        }));
        cells
    });
    Table { columns, rows: rows.collect() }
}

fn mean_cell(
    row: &AblationRow,
    metric: &Metric,
    summary: Option<&Summary>,
    best: Option<f64>,
    decimals: usize,
) -> Cell {
    let Some(summary) = summary else {
        let text = if row.failures.is_empty() { "–" } else { "failed" };
        return Cell::new(text).tone(Tone::Worse);
    };
    let spread = summary.deviation.or(spread_over_pictures(row, &metric.name));
    let mut text = fixed(summary.mean, decimals);
    if let Some(spread) = spread {
        text += &format!(" ± {}", fixed(spread, decimals));
    }
    let tone = if Some(summary.mean) == best { Tone::Best } else { Tone::Plain };
    let cell = Cell::new(text).tone(tone);
    match row.failures.is_empty() {
        true => cell,
        false => cell.note(format!("{} seeds, others failed", summary.seeds)),
    }
}

fn difference_cell(row: &AblationRow, difference: Option<&Difference>, decimals: usize) -> Cell {
    let Some(difference) = difference else {
        let text = if row.kind == VariantKind::Base { "the recipe" } else { "–" };
        return Cell::new(text).tone(Tone::Faint);
    };
    let (words, tone) = match difference.standing {
        Standing::Better => ("better", Tone::Better),
        Standing::Worse => ("worse", Tone::Worse),
        Standing::WithinNoise => ("within noise", Tone::Faint),
        Standing::Same => ("the same", Tone::Faint),
        Standing::Unknown => ("no spread", Tone::Faint),
    };
    Cell::new(signed(difference.mean, decimals)).note(words).tone(tone)
}

/// What a table's reader must know of single rows.
fn remarks(table: &AblationTable) -> Vec<String> {
    let mut remarks = Vec::new();
    for row in &table.rows {
        for failure in &row.failures {
            remarks.push(format!(
                "{} failed at seed {}: {}.",
                row.label, failure.seed, failure.reason
            ));
        }
        let fields = differing_fields(&table.base().protocol, &row.protocol);
        if !row.protocol.is_null() && !table.base().protocol.is_null() && !fields.is_empty() {
            let fields: Vec<String> = fields
                .iter()
                .map(|f| format!("{} {} (the recipe: {})", f.field, f.second, f.first))
                .collect();
            remarks.push(format!("{} was measured with {}.", row.label, fields.join(", ")));
        }
    }
    remarks.extend(table.metrics.iter().flat_map(|metric| {
        metric
            .stands_for
            .iter()
            .map(|asked| format!("{} stands for {asked} here, and is another number.", metric.name))
    }));
    remarks
}

/// Each variant's overrides, and how the plan's words were read.
fn variants(results: &AblationResults) -> Vec<Block> {
    let mut blocks = Vec::new();
    for table in &results.ablations {
        blocks.push(Block::Subheading(table.name.clone()));
        blocks.push(Block::Paragraph(format!(
            "{} of “{}”, read as the part {}.",
            table.action.name(),
            table.asked_part,
            table.part
        )));
        let columns = ["variant", "asked for as", "row", "settings", "remark"];
        let rows = table.rows.iter().map(|row| {
            let asked: Vec<String> = row.asked.iter().map(|asked| format!("“{asked}”")).collect();
            let note = row.note.clone().unwrap_or_default();
            vec![
                Cell::new(&row.label),
                Cell::new(asked.join(", ")),
                Cell::new(row.run_row.id()),
                Cell::new(row.overrides.join("; ")),
                Cell::new(note),
            ]
        });
        blocks.push(Block::Table(Table {
            columns: columns.map(Column::text).into(),
            rows: rows.collect(),
        }));
    }
    blocks
}

fn how_made(results: &AblationResults) -> Vec<Block> {
    let base = results.ablations.first().map(AblationTable::base);
    let mut blocks = vec![Block::Paragraph(
        "A variant is the recipe with the settings above; the number is that of one row of its run. \
         ± is one standard deviation, over seeds where there are several and over resampled pictures \
         where there is one. The best mean is set in bold."
            .to_owned(),
    )];
    if let Some(fields) = base.and_then(|base| base.protocol.as_object()) {
        let pairs = fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (key.replace('_', " "), text)
        });
        blocks.push(Block::Pairs(pairs.collect()));
    }
    blocks.push(Block::FoldOut {
        summary: "The recipe, every default written out".to_owned(),
        blocks: vec![Block::Code { text: results.recipe_toml.clone(), language: "toml" }],
    });
    blocks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ablation::results::SCHEMA_VERSION;
    use crate::ablation::results::tests::{row, table};

    fn results(rows: Vec<AblationRow>, seeds: Vec<u64>) -> AblationResults {
        AblationResults {
            schema_version: SCHEMA_VERSION,
            plan: "p".into(),
            recipe: "r".into(),
            recipe_toml: "name = \"r\"".into(),
            seeds,
            notes: vec!["a note".into()],
            ablations: vec![table(rows)],
        }
    }

    fn three() -> Vec<AblationRow> {
        vec![
            row("the recipe", VariantKind::Base, &[Some(10.0), Some(20.0), Some(30.0)], None),
            row("better", VariantKind::Asked, &[Some(9.0), Some(19.1), Some(28.9)], None),
            row("noisy", VariantKind::Asked, &[Some(0.0), Some(30.0), Some(31.0)], None),
        ]
    }

    #[test]
    fn the_page_says_which_differences_are_within_noise() {
        let mut rows = three();
        rows[1].number = Some(2.0);
        rows[2].number = Some(4.0);
        rows[0].number = Some(8.0);
        let results = results(rows, vec![0, 1, 2]);
        let document = compose(&results);
        assert_eq!(
            document.verdict,
            "Weights, by fd (lower is better): better than the recipe: better (\u{2212}1.0); \
             within noise of it: noisy (+0.3)."
        );
        for text in [html::render(&document), markdown::render(&document)] {
            for word in ["within noise", "95% interval", "seed 2", "a note", "ablation-1-fd-means"]
            {
                // The page holds its drawings, Markdown names them.
                let in_page = word.starts_with("ablation-") && text.starts_with("<!doctype");
                assert!(text.contains(word) || in_page, "{word}: {text}");
            }
            assert!(!text.contains("NaN"));
        }
        let names: Vec<String> = document.files().into_iter().map(|(name, _)| name).collect();
        let expected =
            ["means", "differences", "numbers"].map(|w| format!("ablation-1-fd-{w}.svg"));
        assert_eq!(names, expected);
    }

    #[test]
    fn one_seed_has_no_interval_and_failures_are_told() {
        let mut rows = vec![
            row("the recipe", VariantKind::Base, &[Some(1.0)], Some(0.1)),
            row("fails", VariantKind::Asked, &[None], None),
            row("other", VariantKind::Asked, &[Some(0.5)], Some(0.1)),
        ];
        rows[1]
            .failures
            .push(crate::ablation::results::Failure { seed: 0, reason: "it diverged".into() });
        let document = compose(&results(rows, vec![0]));
        assert!(document.verdict.contains("better than the recipe: other"), "{}", document.verdict);
        assert!(document.verdict.contains("failed: fails"));
        let text = markdown::render(&document);
        assert!(text.contains("fails failed at seed 0: it diverged."), "{text}");
        assert!(!text.contains("95% interval |"), "{text}");
    }

    #[test]
    fn other_ways_of_measuring_are_named() {
        let mut rows = three();
        rows[0].protocol = serde_json::json!({ "steps": 20 });
        rows[1].protocol = serde_json::json!({ "steps": 50 });
        let text = markdown::render(&compose(&results(rows, vec![0, 1, 2])));
        assert!(text.contains("better was measured with steps 50 (the recipe: 20)."), "{text}");
    }
}
