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
use crate::ablation::statistics::student_factor;
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
    let sentences: Vec<String> = results.ablations.iter().flat_map(sentences).collect();
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

/// What one ablation found, a sentence for each metric.
fn sentences(table: &AblationTable) -> Vec<String> {
    let mut sentences: Vec<String> =
        table.metrics.iter().map(|metric| sentence(table, metric)).collect();
    let failed: Vec<&str> = table
        .rows
        .iter()
        .filter(|row| !row.failures.is_empty())
        .map(|row| row.label.as_str())
        .collect();
    if !failed.is_empty() {
        sentences.push(format!("{}, failed: {}.", table.name, failed.join(", ")));
    }
    sentences
}

/// What one ablation found by one metric.
fn sentence(table: &AblationTable, metric: &Metric) -> String {
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
    if table.metrics.len() > 1 {
        blocks.push(Block::Table(overview(table)));
    }
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

/// `fd ↓`
fn metric_head(metric: &Metric) -> String {
    format!("{} {}", metric.name, if metric.lower_is_better { "↓" } else { "↑" })
}

/// All metrics side by side.
fn overview(table: &AblationTable) -> Table {
    let mut columns = vec![Column::text("variant")];
    for metric in &table.metrics {
        columns.push(Column::number(metric_head(metric)));
        columns.push(Column::number("against the recipe"));
    }
    let rows = table.rows.iter().map(|row| {
        let mut cells = vec![Cell::new(&row.label)];
        for metric in &table.metrics {
            let decimals = decimals_of(table, &metric.name);
            let summary = row.summary.get(&metric.name);
            let difference = summary.and_then(|summary| summary.difference.as_ref());
            cells.push(mean_cell(row, metric, summary, best_mean(table, metric), decimals));
            cells.push(difference_cell(row, difference, decimals));
        }
        cells
    });
    Table { columns, rows: rows.collect() }
}

/// The best mean of a metric.
fn best_mean(table: &AblationTable, metric: &Metric) -> Option<f64> {
    let means = |row: &AblationRow| row.summary.get(&metric.name).map(|summary| summary.mean);
    table.rows.iter().filter_map(means).reduce(match metric.lower_is_better {
        true => f64::min,
        false => f64::max,
    })
}

fn metric_table(table: &AblationTable, metric: &Metric, results: &AblationResults) -> Table {
    let decimals = decimals_of(table, &metric.name);
    let several = results.seeds.len() > 1;
    let mut columns = vec![
        Column::text("variant"),
        Column::number(metric_head(metric)),
        Column::number("against the recipe"),
    ];
    if several {
        columns.push(Column::number("95% interval"));
    }
    let shown =
        if several && results.seeds.len() <= MOST_SEEDS_SHOWN { results.seeds.len() } else { 0 };
    columns
        .extend(results.seeds[..shown].iter().map(|seed| Column::number(format!("seed {seed}"))));

    let best = best_mean(table, metric);
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
    // Another metric's failure is none of this one's.
    let is_whole = row.measured[&metric.name].iter().all(Option::is_some);
    match row.failures.is_empty() || is_whole {
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
        remarks.extend(disagreement(table, row));
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

/// Says so when a variant wins by one metric and loses by another.
fn disagreement(table: &AblationTable, row: &AblationRow) -> Option<String> {
    let by = |standing: Standing| -> Vec<&str> {
        let metrics = table.metrics.iter().filter(|metric| {
            let summary = row.summary.get(&metric.name);
            let difference = summary.and_then(|summary| summary.difference.as_ref());
            difference.is_some_and(|difference| difference.standing == standing)
        });
        metrics.map(|metric| metric.name.as_str()).collect()
    };
    let (better, worse) = (by(Standing::Better), by(Standing::Worse));
    (!better.is_empty() && !worse.is_empty()).then(|| {
        format!(
            "The metrics disagree about {}: better by {}, worse by {}.",
            row.label,
            better.join(" and "),
            worse.join(" and ")
        )
    })
}

/// What counts as a difference, in words.
fn meaning_of_noise(results: &AblationResults) -> String {
    match student_factor(results.seeds.len()) {
        Some(factor) => format!(
            "A difference is that of the two numbers of each seed, averaged over the seeds. It is noise unless \
             its 95% interval lies on one side of 0. The interval is Student's: with {} seeds it reaches {} \
             standard errors to each side. Each metric is judged by its own numbers.",
            results.seeds.len(),
            fixed(factor, 2)
        ),
        None => "A difference is noise unless it exceeds two combined spreads over pictures, sqrt(a² + b²). That \
                 is noise of the pictures alone: how much another training would change it, one seed cannot \
                 tell. Each metric is judged by its own spread."
            .to_owned(),
    }
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
         ± is one standard deviation, over seeds where there are several and over pictures where there is \
         one. The best mean is set in bold."
            .to_owned(),
    )];
    blocks.push(Block::Paragraph(meaning_of_noise(results)));
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
    use crate::ablation::results::Failure;
    use crate::ablation::results::SCHEMA_VERSION;
    use crate::ablation::results::tests::{row, table, table_of_two, with_score};

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

    /// [`three`] with scores: the better one falls behind, the noisy one pulls ahead.
    fn two_metrics() -> AblationResults {
        let scores = [[25.0, 26.0, 27.0], [24.0, 24.9, 26.1], [27.0, 28.1, 28.9]];
        let rows = three().into_iter().zip(scores);
        let rows = rows.map(|(row, scores)| with_score(row, &scores.map(Some), None)).collect();
        AblationResults {
            ablations: vec![table_of_two(rows)],
            ..results(vec![three().remove(0)], vec![0, 1, 2])
        }
    }

    #[test]
    fn each_metric_is_talked_about_tabled_and_drawn() {
        let results = two_metrics();
        let document = compose(&results);
        assert_eq!(
            document.verdict,
            "Weights, by fd (lower is better): better than the recipe: better (\u{2212}1.0); within noise of \
             it: noisy (+0.3). Weights, by clip_score (higher is better): better than the recipe: noisy \
             (+2.00); worse: better (\u{2212}1.00)."
        );
        let names: Vec<String> = document.files().into_iter().map(|(name, _)| name).collect();
        let expected = ["fd-means", "fd-differences", "clip-score-means", "clip-score-differences"];
        assert_eq!(names, expected.map(|name| format!("ablation-1-{name}.svg")));
        let text = markdown::render(&document);
        let head = "| variant | fd ↓ | against the recipe | clip_score ↑ | against the recipe |";
        assert!(text.contains(head), "{text}");
        let told = "The metrics disagree about better: better by fd, worse by clip_score.";
        assert!(text.contains(told), "{text}");
        assert!(!text.contains("disagree about noisy"), "{text}");
        assert!(text.contains("with 3 seeds it reaches 4.30 standard errors"), "{text}");
        // Each metric has its best in bold, in the overview and in its own table.
        assert_eq!(
            text.matches("**20.3 ± ").count() + text.matches("**19.0 ± ").count(),
            2,
            "{text}"
        );
        assert_eq!(text.matches("**28.00 ± ").count(), 2, "{text}");
        let page = html::render(&document);
        for direction in ["difference in fd, better on the left", "clip_score, better on the right"]
        {
            assert!(page.contains(direction), "{direction}");
        }
    }

    #[test]
    fn a_metric_that_failed_does_not_spoil_the_other() {
        let mut results = two_metrics();
        let mut rows = results.ablations.remove(0).rows;
        rows[1] = with_score(rows[1].clone(), &[Some(24.0), None, Some(26.1)], None);
        rows[2] = with_score(rows[2].clone(), &[None; 3], None);
        for (row, seeds) in [(1, 1..2), (2, 0..3)] {
            let reason = "the run did not measure clip_score";
            let failures = seeds.map(|seed| Failure { seed, reason: reason.into() });
            rows[row].failures = failures.collect();
        }
        results.ablations = vec![table_of_two(rows)];
        let document = compose(&results);
        assert!(
            document.verdict.ends_with("Weights, failed: better, noisy."),
            "{}",
            document.verdict
        );
        let text = markdown::render(&document);
        let line =
            |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        // Two columns of the distance, two of the score.
        let better = line("| better |");
        assert_eq!(better.matches("others failed").count(), 1, "{better}");
        assert!(better.contains("(2 seeds, others failed)"), "{better}");
        let noisy = line("| noisy |");
        assert_eq!(
            (noisy.matches("failed").count(), noisy.matches("within noise").count()),
            (1, 1),
            "{noisy}"
        );
        assert!(
            document.verdict.contains("within noise of it: noisy (+0.3)"),
            "{}",
            document.verdict
        );
    }

    #[test]
    fn one_seed_is_judged_by_the_spread_over_pictures_and_says_so() {
        let rows = vec![
            row("the recipe", VariantKind::Base, &[Some(1.0)], Some(0.1)),
            row("other", VariantKind::Asked, &[Some(0.5)], Some(0.1)),
        ];
        let text = markdown::render(&compose(&results(rows, vec![0])));
        assert!(text.contains("two combined spreads over pictures"), "{text}");
        assert!(!text.contains("Student's"), "{text}");
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
