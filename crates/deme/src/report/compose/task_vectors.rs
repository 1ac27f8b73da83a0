//! How large the task vectors are, and how far they agree.

use deme_merge::TaskVectorStatistics;

use super::super::Report;
use super::super::document::{Block, CaptionedFigure, Cell, Column, Section, Table};
use super::super::number_format::significant;
use super::super::task_vector_figures::{box_plots, cosine_matrix, groups_in_order};

/// Lengths, angles and box plots.
pub(super) fn task_vectors(report: &Report) -> Section {
    let blocks = report.task_vectors.as_ref().map(|found| blocks(report, found));
    Section { id: "task-vectors", heading: "Task vectors", blocks: blocks.unwrap_or_default() }
}

fn blocks(report: &Report, found: &TaskVectorStatistics) -> Vec<Block> {
    let labels: Vec<String> = report
        .ranges
        .iter()
        .enumerate()
        .map(|(expert, (low, high))| format!("expert {} ({low}..{high})", expert + 1))
        .collect();
    let mut blocks = vec![
        Block::Paragraph(
            "A task vector is an expert's parameters minus the pretrained ones. Their lengths \
             (Euclidean norms), by part of the network and of the whole:"
                .to_string(),
        ),
        Block::Table(length_table(found, &labels)),
    ];
    let whole =
        cosine_matrix("task-vector-cosines".to_string(), "whole task vectors", &found.whole);
    if let Some(figure) = whole {
        let mut caption = "Cosines of the angles between task vectors: 1 is the same direction, 0 \
                           nothing in common; negative ones pull against each other."
            .to_string();
        if found.whole.cosines.iter().flatten().any(Option::is_none) {
            caption.push_str(" A dash: a task vector of length 0 has no direction.");
        }
        blocks.push(Block::Figures(vec![CaptionedFigure { figure, caption }]));
        let parts: Vec<CaptionedFigure> = groups_in_order(found)
            .into_iter()
            .enumerate()
            .filter_map(|(place, group)| {
                let name = format!("task-vector-cosines-part-{}", place + 1);
                let figure = cosine_matrix(name, group, &found.groups[group])?;
                Some(CaptionedFigure { figure, caption: String::new() })
            })
            .collect();
        blocks.push(Block::FoldOut {
            summary: "Cosines in each part of the network".to_string(),
            blocks: vec![Block::Figures(parts)],
        });
    }
    if let Some(figure) = box_plots("task-vector-layers".to_string(), found, &labels) {
        let caption =
            "How the numbers of each task vector are distributed in each layer: the middle \
                       half (box), the median (line across) and all but the outermost 5 % on each \
                       side (thin line). All experts share one axis; the longest lines end at its \
                       frame. Norms and biases are left out."
                .to_string();
        blocks.push(Block::Figures(vec![CaptionedFigure { figure, caption }]));
    }
    blocks
}

fn length_table(found: &TaskVectorStatistics, labels: &[String]) -> Table {
    let groups = groups_in_order(found);
    let mut columns = vec![Column::text("task vector")];
    columns.extend(groups.iter().map(|group| Column::number(*group)));
    columns.push(Column::number("whole"));
    let row = |(expert, label): (usize, &String)| {
        let mut cells = vec![Cell::new(label)];
        let similarities = groups.iter().map(|group| &found.groups[*group]);
        for similarity in similarities.chain([&found.whole]) {
            cells.push(Cell::new(significant(similarity.norms[expert], 3)));
        }
        cells
    };
    Table { columns, rows: labels.iter().enumerate().map(row).collect() }
}
