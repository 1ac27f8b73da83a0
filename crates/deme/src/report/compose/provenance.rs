//! How every number was made and how far to trust it; the command, machine and recipe.

use super::super::document::{Block, Cell, Column, Section, Table, Tone};
use super::super::number_format::{count, duration};
use super::super::prompt_fit::is_clip_score;
use super::super::{EvaluationCounts, Report, Row};
use super::metric_names;

/// How every number was made, and how far to trust it.
pub(super) fn how_made(report: &Report) -> Section {
    let mut pairs = vec![(
        "data".to_string(),
        format!(
            "{}; {} pictures for training, {} for the weight search, {} for this report",
            report.data.description,
            count(report.data.pictures_train as u64),
            count(report.data.pictures_search as u64),
            count(report.data.pictures_report as u64)
        ),
    )];
    pairs.extend(report.protocol.iter().cloned());
    let mut cautions = cautions(report);
    cautions.extend(report.notes.iter().cloned());
    let mut blocks = vec![Block::Pairs(pairs)];
    if !cautions.is_empty() {
        blocks.push(Block::Subheading("How far to trust it".to_string()));
        blocks.push(Block::List(cautions));
    }
    Section { id: "protocol", heading: "How the numbers were made", blocks }
}

fn cautions(report: &Report) -> Vec<String> {
    let mut cautions = Vec::new();
    let rows: Vec<&Row> = report.rows.iter().collect();
    let names = metric_names(&rows);
    let distances: Vec<&String> = names.iter().filter(|name| name.starts_with("fd_")).collect();
    if let (Some(counts), false) = (&report.counts, distances.is_empty()) {
        cautions.extend(counts_cautions(counts));
    }
    if names.iter().any(|name| name == "fd_tiny_clip") {
        cautions.push(
            "fd_tiny_clip is not FID. It is a Fréchet distance on the features of a small CLIP \
             that this run trained on its own captions, not of Inception-v3. It ranks the models \
             of one run; it means nothing beside a published FID, nor beside another run whose \
             extractor has another hash."
                .to_string(),
        );
    }
    for name in names.iter().filter(|name| is_clip_score(name)) {
        cautions.push(format!(
            "{name} is the mean of 100 max(cosine, 0) of pictures and their prompts in one CLIP. It \
             compares with scores of the same CLIP (by its hash) on the same prompts only; a CLIP that \
             the run trained itself gives no number to set beside published ones. It says whether \
             pictures show what was asked for, not whether they look real."
        ));
    }
    if !report.spread_meaning.is_empty() {
        cautions.push(
            "The spread says how much a number depends on the pictures drawn. It does not say \
             how much the models would differ had they been trained again from other seeds."
                .to_string(),
        );
    }
    cautions
}

/// What the counts mean for a Fréchet distance.
fn counts_cautions(counts: &EvaluationCounts) -> Vec<String> {
    let EvaluationCounts { generated, reference, feature_dim } = *counts;
    let mut cautions = vec![format!(
        "Each distance compares {} generated with {} real pictures, on {} features. From finite \
         counts a Fréchet distance comes out too large, the more so the fewer pictures there are \
         per feature: two halves of the same data have a distance above zero. Only numbers of \
         equal counts can be compared.",
        count(generated as u64),
        count(reference as u64),
        count(feature_dim as u64)
    )];
    let fewest = generated.min(reference);
    if fewest <= feature_dim {
        cautions.push(format!(
            "With {} pictures and {} features the covariance is not of full rank: small \
             differences are not to be trusted.",
            count(fewest as u64),
            count(feature_dim as u64)
        ));
    }
    cautions
}

/// The command, the machine, the timings and the recipe.
pub(super) fn run(report: &Report) -> Section {
    let mut pairs = vec![
        ("command".to_string(), report.command.clone()),
        ("machine".to_string(), report.hardware.clone()),
    ];
    let versions: Vec<String> =
        report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if !versions.is_empty() {
        pairs.push(("versions".to_string(), versions.join(", ")));
    }
    let mut blocks = vec![Block::Pairs(pairs)];
    if !report.stages.is_empty() {
        blocks.push(Block::Table(timings(report)));
    }
    blocks.push(Block::FoldOut {
        summary: "The recipe, every default written out".to_string(),
        blocks: vec![Block::Code { text: report.recipe_toml.clone(), language: "toml" }],
    });
    Section { id: "run", heading: "The run", blocks }
}

fn timings(report: &Report) -> Table {
    let mut rows: Vec<Vec<Cell>> = report
        .stages
        .iter()
        .map(|stage| {
            let time = Cell::new(duration(stage.seconds));
            let time =
                if stage.cached { time.tone(Tone::Faint).note("finished earlier") } else { time };
            vec![Cell::new(&stage.name), time]
        })
        .collect();
    let all: f64 = report.stages.iter().map(|stage| stage.seconds).sum();
    rows.push(vec![Cell::new("all").tone(Tone::Best), Cell::new(duration(all)).tone(Tone::Best)]);
    Table { columns: vec![Column::text("stage"), Column::number("time")], rows }
}
