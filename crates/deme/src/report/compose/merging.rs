//! The timestep ranges, the merging weights, and how the weights were found.

use deme_merge::weight_search::ReferenceKind;

use super::super::document::{Block, CaptionedFigure, Cell, Column, Section, Table, Tone};
use super::super::figures::{self, Effort};
use super::super::number_format::{count, significant, weights};
use super::super::verdict::merged_row;
use super::super::{Report, Row, SearchSummary};

/// The ranges, the weights, and how the weights were found.
pub(super) fn merging(report: &Report) -> Section {
    let mut blocks = Vec::new();
    if !report.ranges.is_empty() {
        blocks.push(Block::Table(weights_table(report)));
    }
    match &report.search {
        Some(search) => blocks.extend(search_blocks(search)),
        None if merged_row(&report.rows).is_some() => {
            blocks.push(Block::Paragraph("The weights were not searched for.".to_string()))
        }
        None => {}
    }
    Section { id: "merging", heading: "Ranges and merging weights", blocks }
}

fn weights_table(report: &Report) -> Table {
    let merged: Vec<(&Row, &Vec<f64>)> =
        report.rows.iter().filter_map(|row| Some((row, row.weights.as_ref()?))).collect();
    let mut columns = vec![Column::text("expert"), Column::number("timesteps")];
    columns.extend(merged.iter().map(|(row, _)| Column::number(&row.label)));
    let mut rows: Vec<Vec<Cell>> = report
        .ranges
        .iter()
        .enumerate()
        .map(|(expert, (low, high))| {
            let mut cells = vec![
                Cell::new(format!("expert {}", expert + 1)),
                Cell::new(format!("{low}..{high}")),
            ];
            let of_expert = merged.iter().map(|(_, w)| Cell::new(weights(&w[expert..=expert])));
            cells.extend(of_expert);
            cells
        })
        .collect();
    if report.ranges.len() > 1 && !merged.is_empty() {
        let mut sums = vec![Cell::new("sum").tone(Tone::Faint), Cell::new("")];
        sums.extend(
            merged.iter().map(|(_, w)| Cell::new(weights(&[w.iter().sum()])).tone(Tone::Faint)),
        );
        rows.push(sums);
    }
    Table { columns, rows }
}

fn search_blocks(search: &SearchSummary) -> Vec<Block> {
    if search.log.is_empty() {
        return vec![Block::Paragraph(
            "The search for merging weights measured nothing.".to_string(),
        )];
    }
    let mut measured = format!("{} evaluations", count(search.evaluations as u64));
    if search.evaluations < search.budget {
        measured.push_str(&format!(" of at most {}", count(search.budget as u64)));
    }
    let mut blocks = vec![Block::Paragraph(format!(
        "The weights come from a search (strategy: {}) with {measured}, scored by {} ({} is better) \
         on {}. The best value was {}{}. As the best of many it is a lucky draw in part; the \
         numbers under Results are the fair ones.",
        search.strategy,
        search.objective,
        if search.lower_is_better { "lower" } else { "higher" },
        search.scored_on,
        significant(search.best_value, 4),
        match search.groups.len() {
            1 => format!(", at ({})", weights(&search.best_weights)),
            _ => String::new(),
        }
    ))];
    let grouped = search.groups.len() > 1;
    if grouped {
        blocks.push(Block::Table(group_table(search)));
    }
    if !search.decisions.is_empty() {
        blocks.push(Block::Paragraph(
            "Its best points, uniform weights and each expert alone were then drawn from, and the \
             distance of the drawn images to the search's pictures decided."
                .to_string(),
        ));
        blocks.push(Block::Table(decision_table(search)));
    }

    if !search.references.is_empty() {
        blocks.push(Block::Table(reference_table(search)));
        blocks.push(Block::Remark(
            "These values come from the search's own pictures, not those of the report: they can be \
             compared with each other, not with the numbers under Results. The best one found was \
             picked for its value, the others were not."
                .to_string(),
        ));
    }

    let mut drawn = Vec::new();
    let mut remark = "Each dot is one point of the search; dots at the upper or lower frame lie \
                      beyond it."
        .to_string();
    for (name, effort) in
        [("search-best-so-far", Effort::Evaluations), ("search-best-in-time", Effort::Time)]
    {
        if let Some(figure) = figures::best_so_far(name.to_string(), search, effort) {
            drawn.push(CaptionedFigure { figure, caption: String::new() });
        }
    }
    if !drawn.is_empty() && !search.references.is_empty() {
        remark.push_str(
            " Horizontal lines are the points to compare with; an arrow at a name says that its line \
             lies beyond the frame.",
        );
    }
    if grouped {
        // Too many weights for a figure each.
    } else if let Some(figure) = figures::heat_map("search-heat-map".to_string(), search) {
        drawn.push(CaptionedFigure { figure, caption: String::new() });
        remark.push_str(
            " In the map the stronger colour is the better value, and the outlined cell was \
             chosen; (0, 0) is the pretrained model.",
        );
    } else {
        remark.push_str(if figures::has_slices(search) {
            " Along each weight the line joins the points that share the other weights with the \
             chosen one (ring); the dashed upright line is 1/N."
        } else {
            " Along each weight the ring is the chosen point; the dashed upright line is 1/N."
        });
        let slices = (0..search.best_weights.len()).filter_map(|expert| {
            let figure = figures::slice(format!("search-expert-{}", expert + 1), search, expert)?;
            let caption = String::new();
            Some(CaptionedFigure { figure, caption })
        });
        drawn.extend(slices);
    }
    if !drawn.is_empty() {
        blocks.push(Block::Figures(drawn));
        blocks.push(Block::Remark(remark));
    }
    blocks.push(Block::FoldOut {
        summary: "The best points of the search".to_string(),
        blocks: vec![Block::Table(best_points(search))],
    });
    blocks
}

/// The best weights of each group of tensors.
fn group_table(search: &SearchSummary) -> Table {
    let experts = search.best_weights.len() / search.groups.len();
    let mut columns = vec![Column::text("tensors")];
    columns.extend((1..=experts).map(|expert| Column::number(format!("expert {expert}"))));
    let of_groups = search.groups.iter().zip(search.best_weights.chunks(experts));
    let rows = of_groups.map(|(group, of_group)| {
        let cells = of_group.iter().map(|weight| Cell::new(weights(&[*weight])));
        std::iter::once(Cell::new(group)).chain(cells).collect()
    });
    Table { rows: rows.collect(), columns }
}

/// What the second number decided between.
fn decision_table(search: &SearchSummary) -> Table {
    let best = search.decisions.iter().map(|row| row.decided).fold(f64::INFINITY, f64::min);
    let rows = search.decisions.iter().map(|row| {
        let tone = if row.decided == best { Tone::Best } else { Tone::Plain };
        vec![
            Cell::new(&row.name),
            Cell::new(weights(&row.weights)),
            Cell::new(significant(row.proposed, 5)),
            Cell::new(significant(row.decided, 4)).tone(tone),
        ]
    });
    Table {
        rows: rows.collect(),
        columns: vec![
            Column::text("point"),
            Column::text("weights"),
            Column::number(&search.objective),
            Column::number("distance"),
        ],
    }
}

/// The best point found beside those to compare with.
pub(super) fn reference_table(search: &SearchSummary) -> Table {
    let of_kind = |kind| search.references.iter().find(|reference| reference.kind == kind);
    let mut points = vec![("best found".to_string(), &search.best_weights, search.best_value)];
    if let Some(uniform) = of_kind(ReferenceKind::Uniform) {
        points.push(("uniform 1/N".to_string(), &uniform.weights, uniform.value));
    }
    if let Some(expert) = figures::best_expert(search) {
        let name = format!("best single expert ({})", figures::reference_name(expert.kind));
        points.push((name, &expert.weights, expert.value));
    }
    if let Some(pretrained) = of_kind(ReferenceKind::Pretrained) {
        points.push(("pretrained".to_string(), &pretrained.weights, pretrained.value));
    }
    let beaten = |value: f64| points.iter().any(|(_, _, v)| figures::better(search, *v, value));
    let rows = points
        .iter()
        .map(|(name, point, value)| {
            let tone = if beaten(*value) { Tone::Plain } else { Tone::Best };
            let behind = match significant(value - search.best_value, 3) {
                text if *value > search.best_value => format!("+{text}"),
                text => text,
            };
            vec![
                Cell::new(name),
                Cell::new(weights(point)),
                Cell::new(significant(*value, 5)).tone(tone),
                Cell::new(behind).tone(Tone::Faint),
            ]
        })
        .collect();
    Table {
        columns: vec![
            Column::text("point"),
            Column::text("weights"),
            Column::number(&search.objective),
            Column::number("against the best found"),
        ],
        rows,
    }
}

fn best_points(search: &SearchSummary) -> Table {
    const SHOWN: usize = 10;
    let mut points: Vec<&(Vec<f64>, f64)> = search.log.iter().collect();
    // Stable: among equals the one measured first leads.
    points.sort_by(
        |a, b| {
            if search.lower_is_better { a.1.total_cmp(&b.1) } else { b.1.total_cmp(&a.1) }
        },
    );
    Table {
        columns: vec![
            Column::number("rank"),
            Column::text("weights"),
            Column::number(&search.objective),
            Column::number("behind the best"),
        ],
        rows: points
            .iter()
            .take(SHOWN)
            .enumerate()
            .map(|(place, (point, value))| {
                vec![
                    Cell::new((place + 1).to_string()),
                    Cell::new(weights(point)),
                    Cell::new(significant(*value, 5)),
                    Cell::new(significant((value - points[0].1).abs(), 3)).tone(Tone::Faint),
                ]
            })
            .collect(),
    }
}
