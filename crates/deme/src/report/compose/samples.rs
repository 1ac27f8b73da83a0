//! What the models draw: picture by picture for the same prompt, and in grids from the same seeds.

use std::path::Path;

use super::super::document::{Block, Picture, PictureTable, Section};
use super::super::escape::slug;
use super::super::grid_tiles::SampleGrid;
use super::super::number_format::fixed;
use super::super::picture_file::PictureFile;
use super::super::verdict::decimals_of;
use super::super::{Report, ReportError, Row, RowKind};

/// The order of the models in this section; the experts stand apart.
const ORDER: [RowKind; 7] = [
    RowKind::Before,
    RowKind::Joint,
    RowKind::Ensemble,
    RowKind::Uniform,
    RowKind::Fixed,
    RowKind::Searched,
    RowKind::Other,
];
/// Prompts whose pictures stand side by side.
const MOST_PROMPTS: usize = 6;

/// The same seeds through every model, beside real pictures.
pub(super) fn samples(report: &Report) -> Result<Section, ReportError> {
    let mut blocks = by_prompt(report)?;
    let mut shown = Vec::new();
    if let Some(path) = &report.reference_grid_png {
        let caption = "from the data, not generated".to_string();
        shown.push(picture("samples-real", "real pictures", caption, path)?);
    }
    for row in in_order(report) {
        shown.extend(row_picture(report, row)?);
    }
    let mut experts = Vec::new();
    for row in report.rows.iter().filter(|row| row.kind == RowKind::Expert) {
        experts.extend(row_picture(report, row)?);
    }
    if !shown.is_empty() {
        blocks.push(Block::Paragraph(
            "Every model starts from the same noise: the picture at one place of a grid comes \
             from one seed in all of them. The first seeds are shown, none were picked."
                .to_string(),
        ));
        blocks.push(Block::Pictures(shown));
    }
    if !experts.is_empty() {
        let summary = match experts.len() {
            1 => "The expert alone, used for all timesteps".to_string(),
            n => format!("The {n} experts, each used alone for all timesteps"),
        };
        blocks.push(Block::FoldOut { summary, blocks: vec![Block::Pictures(experts)] });
    }
    Ok(Section { id: "samples", heading: "Samples", blocks })
}

fn in_order(report: &Report) -> impl Iterator<Item = &Row> {
    ORDER.into_iter().flat_map(|kind| report.rows.iter().filter(move |row| row.kind == kind))
}

/// A line of pictures per prompt, and the list of all prompts; nothing where nothing was asked for.
fn by_prompt(report: &Report) -> Result<Vec<Block>, ReportError> {
    let prompted = in_order(report).filter(|row| !row.prompts.is_empty());
    let prompted: Vec<(&Row, &Path)> =
        prompted.filter_map(|row| Some((row, row.grid_png.as_deref()?))).collect();
    let Some((first, _)) = prompted.first() else { return Ok(Vec::new()) };
    let prompts = &first.prompts;
    let (alike, unlike): (Vec<_>, Vec<_>) =
        prompted.iter().partition(|(row, _)| row.prompts == *prompts);

    let mut grids = Vec::new();
    for (row, path) in &alike {
        grids.push((*row, SampleGrid::read(path, report.data.resolution, prompts.len())?));
    }
    let places = different_prompts(prompts);
    let line = |place: &usize| {
        let pictures = grids.iter().map(|(row, grid)| Picture {
            name: format!("prompt-{}-{}", place + 1, row_name(report, row)),
            label: format!("{}: {}", row.label, prompts[*place]),
            caption: String::new(),
            file: grid.picture(*place),
        });
        (shown_prompt(&prompts[*place]), pictures.collect())
    };
    let mut blocks = vec![
        Block::Paragraph(format!(
            "What each model draws for the same prompt from the same noise. These are the first {} \
             different prompts of the grids below, none were picked.",
            places.len()
        )),
        Block::PictureTable(PictureTable {
            front: "prompt".to_string(),
            columns: alike.iter().map(|(row, _)| row.label.clone()).collect(),
            rows: places.iter().map(line).collect(),
        }),
    ];
    if !unlike.is_empty() {
        let labels: Vec<String> =
            unlike.iter().map(|(row, _)| format!("\"{}\"", row.label)).collect();
        blocks.push(Block::Remark(format!("Drawn for other prompts: {}.", labels.join(", "))));
    }
    let columns = grids[0].1.columns;
    let listed = prompts.iter().enumerate().map(|(place, prompt)| {
        let position = format!("line {}, picture {}", place / columns + 1, place % columns + 1);
        (position, shown_prompt(prompt))
    });
    blocks.push(Block::FoldOut {
        summary: format!("The prompts of all {} pictures of a grid", prompts.len()),
        blocks: vec![Block::Pairs(listed.collect())],
    });
    Ok(blocks)
}

/// The places of the first prompts that are not there before.
fn different_prompts(prompts: &[String]) -> Vec<usize> {
    let is_new = |place: &usize| !prompts[..*place].contains(&prompts[*place]);
    (0..prompts.len()).filter(is_new).take(MOST_PROMPTS).collect()
}

fn shown_prompt(prompt: &str) -> String {
    if prompt.trim().is_empty() { "(the empty prompt)".to_string() } else { prompt.to_string() }
}

/// The row in a file's name. The place keeps names apart whose ids differ only in signs.
fn row_name(report: &Report, row: &Row) -> String {
    let place = report.rows.iter().position(|other| other.id == row.id);
    format!("{}-{}", place.unwrap_or_default() + 1, slug(&row.id))
}

fn row_picture(report: &Report, row: &Row) -> Result<Option<Picture>, ReportError> {
    let Some(path) = &row.grid_png else {
        return Ok(None);
    };
    let values = row.metrics.iter().map(|metric| {
        let decimals = decimals_of(&report.rows, &metric.name);
        format!("{} {}", metric.name, fixed(metric.value, decimals))
    });
    let caption = values.collect::<Vec<_>>().join(", ");
    let name = format!("samples-{}", row_name(report, row));
    picture(&name, &row.label, caption, path).map(Some)
}

fn picture(name: &str, label: &str, caption: String, path: &Path) -> Result<Picture, ReportError> {
    Ok(Picture {
        name: name.to_string(),
        label: label.to_string(),
        caption,
        file: PictureFile::read(path)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::test_report::{report_of, with_pictures, with_prompts};
    use super::super::super::{html, markdown};
    use super::super::compose;
    use super::*;

    fn table_of(report: &Report) -> PictureTable {
        let blocks = samples(report).unwrap().blocks;
        let table = blocks.into_iter().find_map(|block| match block {
            Block::PictureTable(table) => Some(table),
            _ => None,
        });
        table.unwrap()
    }

    #[test]
    fn a_line_shows_what_each_model_draws_for_one_prompt() {
        let folder = tempfile::tempdir().unwrap();
        let report = with_prompts(with_pictures(report_of(3), folder.path()));
        let table = table_of(&report);
        assert_eq!(table.columns, ["before", "joint", "ensemble", "uniform 1/N", "searched"]);
        let prompts: Vec<&str> = table.rows.iter().map(|(prompt, _)| prompt.as_str()).collect();
        assert_eq!(prompts.len(), MOST_PROMPTS);
        assert_eq!(prompts[1], "a green circle on white");
        assert_eq!(prompts[5], "a green square on white");
        // The picture under "joint" is that place of joint's grid.
        let joint = &report.rows[1];
        let grid = SampleGrid::read(joint.grid_png.as_deref().unwrap(), 16, 16).unwrap();
        let shown = &table.rows[5].1[1];
        assert_eq!(shown.file.bytes, grid.picture(5).bytes);
        assert_ne!(shown.file.bytes, grid.picture(4).bytes);
        assert_eq!(shown.label, "joint: a green square on white");
        let names: Vec<&String> = table.rows.iter().flat_map(|(_, p)| p).map(|p| &p.name).collect();
        for (place, name) in names.iter().enumerate() {
            assert!(!names[..place].contains(name), "{name}");
        }
    }

    #[test]
    fn prompts_that_come_again_are_shown_once_and_all_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = with_prompts(with_pictures(report_of(1), folder.path()));
        for row in &mut report.rows {
            row.prompts = vec!["a red circle".into(); 16];
            row.prompts[9] = "  ".into();
        }
        let table = table_of(&report);
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.rows[1].0, "(the empty prompt)");
        let text = markdown::render(&compose(&report).unwrap());
        assert!(text.contains("the first 2 different prompts"), "{text}");
        assert!(text.contains("- **line 3, picture 2**: (the empty prompt)"), "{text}");
    }

    #[test]
    fn models_with_other_prompts_do_not_stand_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = with_prompts(with_pictures(report_of(2), folder.path()));
        report.rows[1].prompts[0] = "something else".into();
        assert!(!table_of(&report).columns.contains(&"joint".to_string()));
        let text = markdown::render(&compose(&report).unwrap());
        assert!(text.contains("Drawn for other prompts: \"joint\"."), "{text}");
    }

    #[test]
    fn without_prompts_there_are_grids_alone() {
        let folder = tempfile::tempdir().unwrap();
        let report = with_pictures(report_of(2), folder.path());
        let blocks = samples(&report).unwrap().blocks;
        assert!(!blocks.iter().any(|block| matches!(block, Block::PictureTable(_))));
        let text = markdown::render(&compose(&report).unwrap());
        assert!(
            !text.contains("for the same prompt") && !text.contains("prompts of all"),
            "{text}"
        );
    }

    #[test]
    fn hostile_prompts_stay_text() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = with_prompts(with_pictures(report_of(2), folder.path()));
        let hostile = "\"><script>alert('1')</script>|`*\n\n# $x$ ![a](b)\u{0}";
        for row in &mut report.rows {
            row.prompts[0] = hostile.into();
            row.prompts[1] = "| a | b |".into();
        }
        let document = compose(&report).unwrap();
        let page = html::render(&document);
        assert!(!page.contains("<script") && !page.contains('\0'));
        assert!(page.contains("&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)"), "{page}");
        let text = markdown::render(&document);
        assert!(!text.contains("<script") && !text.contains("\n# $"));
        let cell = "| \">&lt;script>alert('1')&lt;/script>\\|\\`\\*  \\# \\$x\\$ !\\[a\\](b)\u{fffd} | <img src=";
        assert!(text.contains(cell), "{text}");
        assert!(text.contains("| \\| a \\| b \\| | <img src="), "{text}");
    }
}
