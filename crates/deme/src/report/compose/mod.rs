//! What a report says, top to bottom; the longer sections have files of their own.

mod landscapes;
mod merging;
mod provenance;
mod results;
mod samples;
mod task_vectors;

use super::document::{Block, CaptionedFigure, Cell, Column, Document, Section, Table, Tone};
use super::escape::slug;
use super::figures;
use super::number_format::{signed, significant};
use super::verdict::verdict;
use super::{RangeLosses, Report, ReportError, Row};

/// Lays the report out.
///
/// # Errors
/// Pictures that cannot be read, or that do not belong to their prompts.
pub(super) fn compose(report: &Report) -> Result<Document, ReportError> {
    let found = verdict(report);
    let sections = [
        results::results(report),
        samples::samples(report)?,
        merging::merging(report),
        landscapes::landscapes(report),
        task_vectors::task_vectors(report),
        loss_per_range(report),
        training(report),
        provenance::how_made(report),
        provenance::run(report),
    ];
    Ok(Document {
        title: report.title.clone(),
        subtitle: subtitle(report),
        verdict: found.sentence,
        remarks: found.remarks,
        sections: sections.into_iter().filter(|section| !section.blocks.is_empty()).collect(),
    })
}

fn subtitle(report: &Report) -> String {
    let ranges = match report.ranges.len() {
        1 => "one timestep range".to_string(),
        n => format!("{n} timestep ranges"),
    };
    format!("Decouple-then-Merge with {ranges}, {0} × {0} pixels", report.data.resolution)
}

fn loss_per_range(report: &Report) -> Section {
    let blocks = match &report.range_losses {
        Some(losses) if !losses.rows.is_empty() && !report.ranges.is_empty() => vec![
            Block::Paragraph(format!(
                "Diffusion loss on held-out pictures within each timestep range ({}), with its \
                 change against the first row. Lower is better. It shows which range each model \
                 has learnt; it is no measure of the pictures.",
                losses.description
            )),
            Block::Table(range_loss_table(&report.ranges, losses)),
        ],
        _ => Vec::new(),
    };
    Section { id: "ranges", heading: "Held-out loss per timestep range", blocks }
}

fn range_loss_table(ranges: &[(usize, usize)], losses: &RangeLosses) -> Table {
    let best: Vec<f64> = (0..ranges.len())
        .map(|range| {
            let column = losses.rows.iter().map(|row| row.losses[range]);
            column.fold(f64::INFINITY, f64::min)
        })
        .collect();
    let mut columns = vec![Column::text("model")];
    columns.extend(ranges.iter().map(|(low, high)| Column::number(format!("{low}..{high}"))));
    let first = &losses.rows[0].losses;
    let rows = losses
        .rows
        .iter()
        .enumerate()
        .map(|(place, row)| {
            let mut cells = vec![Cell::new(&row.label)];
            cells.extend(row.losses.iter().enumerate().map(|(range, loss)| {
                let tone = if *loss == best[range] { Tone::Best } else { Tone::Plain };
                let cell = Cell::new(significant(*loss, 4)).tone(tone);
                if place == 0 || first[range] == 0.0 {
                    return cell;
                }
                let percent = (loss / first[range] - 1.0) * 100.0;
                cell.note(format!("{} %", signed(percent, 1)))
            }));
            cells
        })
        .collect();
    Table { columns, rows }
}

fn training(report: &Report) -> Section {
    let drawn: Vec<CaptionedFigure> = report
        .loss_curves
        .iter()
        .enumerate()
        .filter_map(|(place, curve)| {
            let name = format!("loss-{}-{}", place + 1, slug(&curve.label));
            Some(CaptionedFigure {
                figure: figures::loss_curve(name, curve)?,
                caption: String::new(),
            })
        })
        .collect();
    let mut blocks = Vec::new();
    if !drawn.is_empty() {
        let with_consistency = report
            .loss_curves
            .iter()
            .flat_map(|curve| &curve.points)
            .any(|point| point.consistency.is_some());
        let losses = if with_consistency {
            " The diffusion loss is the distance to what the model learns to predict, the \
             consistency loss that to the pretrained model's prediction."
        } else {
            ""
        };
        blocks.push(Block::Paragraph(format!(
            "Training losses, smoothed (strong) over what was measured (faint).{losses} Each \
             drawing has its own axis: ranges of timesteps differ in their losses by nature."
        )));
        blocks.push(Block::Figures(drawn));
    }
    Section { id: "training", heading: "Training", blocks }
}

/// The metrics of some rows, in the order in which they first appear.
fn metric_names(rows: &[&Row]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for metric in rows.iter().flat_map(|row| &row.metrics) {
        if !names.contains(&metric.name) {
            names.push(metric.name.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::{report_of, with_prompts};
    use super::super::{html, markdown};
    use super::*;
    use serde_json::json;

    fn both(report: &Report) -> [String; 2] {
        let document = compose(report).unwrap();
        [html::render(&document), markdown::render(&document)]
    }

    fn result_tables(report: &Report) -> Vec<Table> {
        results::results(report)
            .blocks
            .into_iter()
            .filter_map(|block| match block {
                Block::Table(table) => Some(table),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn numbers_made_differently_get_their_own_table_that_names_the_difference() {
        let mut report = report_of(4);
        let together = result_tables(&report);
        assert_eq!(together.len(), 2, "one per metric");
        assert_eq!(together[0].rows.len(), report.rows.len());

        let odd = report.rows.last_mut().unwrap();
        odd.protocol["sampler"]["steps"] = json!(50);
        let split = result_tables(&report);
        assert_eq!(split.len(), 4);
        assert_eq!(split[0].rows.len(), report.rows.len() - 1);
        assert_eq!(split[2].rows.len(), 1);
        assert!(split[2].columns.iter().all(|c| !c.title.contains("against")));
        for text in both(&report) {
            assert!(text.contains("they differ in sampler.steps (50 here, 20 above)"));
        }
    }

    #[test]
    fn the_best_value_and_only_it_is_marked() {
        let report = report_of(4);
        let table = &result_tables(&report)[0];
        let best: Vec<&str> = table
            .rows
            .iter()
            .filter(|row| row[1].tone == Tone::Best)
            .map(|row| row[0].text.as_str())
            .collect();
        assert_eq!(best, ["searched"]);
        let score = &result_tables(&report)[1];
        let best = score.rows.iter().filter(|row| row[1].tone == Tone::Best);
        assert_eq!(best.map(|row| row[0].text.as_str()).collect::<Vec<_>>(), ["searched"]);
    }

    #[test]
    fn each_metric_has_its_own_heading_table_and_drawing() {
        let texts = both(&report_of(4));
        for text in &texts {
            assert!(text.contains("clip_score_tiny_clip, higher is better"), "{text}");
            assert!(text.contains("fd_tiny_clip, lower is better"), "{text}");
        }
        for file in ["values-1-fd-tiny-clip.svg", "values-1-clip-score-tiny-clip.svg"] {
            assert!(texts[1].contains(file), "{file}");
        }
        // One metric needs no heading.
        let mut report = report_of(4);
        report.rows.iter_mut().for_each(|row| row.metrics.truncate(1));
        assert!(!both(&report)[1].contains("lower is better\n"));
    }

    #[test]
    fn higher_scores_are_called_better() {
        let tables = result_tables(&report_of(4));
        let searched = tables[1].rows.iter().find(|row| row[0].text == "searched").unwrap();
        assert_eq!(searched[2].text, "+1.14");
        assert_eq!(searched[2].note.as_deref(), Some("better"));
        let worst = tables[1].rows.iter().find(|row| row[0].text.starts_with("expert 4")).unwrap();
        assert_eq!(worst[2].note.as_deref(), Some("worse"));
    }

    #[test]
    fn own_prompts_stand_beside_shuffled_ones() {
        let mut report = with_prompts(report_of(2));
        let table = &result_tables(&report)[2];
        assert_eq!(table.rows.len(), report.rows.len());
        let before: Vec<&str> = table.rows[0].iter().map(|cell| cell.text.as_str()).collect();
        assert_eq!(before, ["before", "25.31 ± 0.22", "21.31", "+4.00"]);
        assert_eq!(table.rows[0][3].note.as_deref(), Some("clearly above"));
        for text in both(&report) {
            assert!(text.contains("All 7 models score their own prompts clearly above"), "{text}");
        }
        report.rows[0].shuffled_clip_score = Some(25.0);
        report.rows[1].shuffled_clip_score = None;
        for text in both(&report) {
            assert!(text.contains("clearly above: "), "{text}");
            assert!(text.contains("within noise: before."), "{text}");
        }
        for text in both(&report_of(2)) {
            assert!(!text.contains("shuffled"), "{text}");
        }
    }

    #[test]
    fn differences_within_the_spread_say_so() {
        let report = report_of(4);
        let table = &result_tables(&report)[0];
        let uniform = table.rows.iter().find(|row| row[0].text == "uniform 1/N").unwrap();
        assert_eq!(uniform[2].note.as_deref(), Some("better"));
        assert_eq!(uniform[3].note.as_deref(), Some("within spread"));
        assert_eq!(uniform[3].tone, Tone::Faint);
    }

    #[test]
    fn an_empty_search_is_said_and_a_missing_one_too() {
        let mut report = report_of(2);
        report.search.as_mut().unwrap().log.clear();
        for text in both(&report) {
            assert!(text.contains("measured nothing"));
        }
        report.search = None;
        for text in both(&report) {
            assert!(text.contains("The weights were not searched for."));
        }
    }

    #[test]
    fn one_range_reads_as_one_range() {
        for text in both(&report_of(1)) {
            assert!(text.contains("one timestep range"));
            assert!(!text.contains("NaN"));
        }
    }

    #[test]
    fn a_search_is_told_by_strategy_and_counts() {
        let mut report = report_of(3);
        for text in both(&report) {
            assert!(text.contains("a search (strategy: grid) with 64 evaluations, scored"));
        }
        let search = report.search.as_mut().unwrap();
        search.budget = 100_000;
        search.strategy = "CMA-ES".into();
        for text in both(&report) {
            let told = "(strategy: CMA-ES) with 64 evaluations of at most 100\u{202f}000";
            assert!(text.contains(told), "{text}");
            assert!(!text.contains("grid search") && !text.contains("of the grid"), "{text}");
        }
    }

    #[test]
    fn points_to_compare_with_stand_beside_the_search() {
        let mut report = report_of(3);
        let search = report.search.as_ref().unwrap();
        let table = merging::reference_table(search);
        let names: Vec<&str> = table.rows.iter().map(|row| row[0].text.as_str()).collect();
        let expected = ["best found", "uniform 1/N", "best single expert (expert 2)", "pretrained"];
        assert_eq!(names, expected);
        let values: Vec<&str> = table.rows.iter().map(|row| row[2].text.as_str()).collect();
        let measured = [search.best_value, search.references[0].value];
        assert_eq!(values[..2], measured.map(|value| significant(value, 5)));
        assert_eq!(values[2], significant(search.references[2].value, 5));
        assert_eq!(values[3], significant(search.references[4].value, 5));
        assert_eq!(table.rows[0][2].tone, Tone::Best);
        for text in both(&report) {
            assert!(text.contains("not those of the report"), "{text}");
        }
        report.search.as_mut().unwrap().references.clear();
        for text in both(&report) {
            assert!(!text.contains("not those of the report"), "{text}");
        }
    }

    #[test]
    fn a_search_without_slices_does_not_speak_of_them() {
        let mut report = report_of(3);
        assert!(both(&report)[1].contains("the line joins the points"));
        let search = report.search.as_mut().unwrap();
        for (place, (point, _)) in search.log.iter_mut().enumerate() {
            point.iter_mut().for_each(|weight| *weight += place as f64 * 1e-3);
        }
        let text = &both(&report)[1];
        assert!(!text.contains("the line joins the points"), "{text}");
        assert!(text.contains("ring"), "{text}");
    }

    #[test]
    fn landscapes_say_where_the_merged_model_is() {
        let mut report = report_of(2);
        for text in both(&report) {
            assert!(text.contains("Landscape of the weights"));
            assert!(text.contains("The best measured point is (0.25, 0.25) with 11.3"), "{text}");
            assert!(!text.contains("outside of the plane"), "{text}");
        }
        report = report_of(3);
        for text in both(&report) {
            assert!(text.contains("outside of the plane"), "{text}");
        }
        report.landscapes[0].others = Some(vec![0.0, 0.0, 0.5]);
        for text in both(&report) {
            assert!(text.contains("The other weights are 0.5 for expert 3"), "{text}");
        }
        report.landscapes[0].landscape.second.truncate(1);
        for row in &mut report.landscapes[0].landscape.values {
            row.truncate(1);
        }
        for text in both(&report) {
            assert!(text.contains("less than two weights in a direction"), "{text}");
        }
        report.landscapes.clear();
        for text in both(&report) {
            assert!(!text.contains("Landscape"), "{text}");
        }
    }

    #[test]
    fn task_vectors_get_a_section_where_they_were_measured() {
        let mut report = report_of(3);
        let statistics = report.task_vectors.as_mut().unwrap();
        statistics.whole.cosines[0][1] = None;
        for text in both(&report) {
            assert!(text.contains("A dash: a task vector of length 0"), "{text}");
            assert!(text.contains("task-vector-layers") || text.contains("box plots of"));
        }
        let alone = report_of(1);
        for text in both(&alone) {
            assert!(text.contains("Task vectors") && !text.contains("Cosines"), "{text}");
        }
        report.task_vectors = None;
        for text in both(&report) {
            assert!(!text.contains("Task vectors"), "{text}");
        }
    }

    #[test]
    fn too_few_pictures_for_the_features_are_told() {
        let mut report = report_of(2);
        assert!(!both(&report)[1].contains("not of full rank"));
        report.counts.as_mut().unwrap().feature_dim = 1024;
        assert!(both(&report)[1].contains("not of full rank"));
        assert!(both(&report)[1].contains("is not FID"));
    }

    #[test]
    fn hostile_labels_stay_text_everywhere() {
        let mut report = report_of(2);
        let hostile = "</style><script>alert(1)</script>|`*";
        report.title = hostile.into();
        report.command = hostile.into();
        report.recipe_toml = format!("```\n{hostile}");
        report.hardware = hostile.into();
        report.data.description = hostile.into();
        report.notes = vec![hostile.into()];
        report.spread_meaning = hostile.into();
        for row in &mut report.rows {
            row.label = hostile.into();
        }
        for curve in &mut report.loss_curves {
            curve.label = hostile.into();
        }
        let search = report.search.as_mut().unwrap();
        search.objective = hostile.into();
        search.scored_on = hostile.into();
        search.strategy = hostile.into();
        report.landscapes[0].objective = hostile.into();
        report.landscapes[0].scored_on = hostile.into();
        report.task_vectors.as_mut().unwrap().tensors[0].group = hostile.into();
        for row in &mut report.range_losses.as_mut().unwrap().rows {
            row.label = hostile.into();
        }
        let [html, markdown] = both(&report);
        assert!(!html.contains("<script"));
        // Within the fenced recipe it may stand, nowhere else.
        let (text, recipe) = markdown.split_once("````toml").unwrap();
        assert!(!text.contains("<script") && recipe.contains("<script"));
    }
}
