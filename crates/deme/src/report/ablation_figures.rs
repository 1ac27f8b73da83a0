//! The drawings of an ablation: means as bars, differences with intervals, a metric over a number.

use super::ablation_page::{decimals_of, spread_over_pictures};
use super::figures::{WIDTH, shortened};
use super::number_format::{fixed, signed};
use super::svg::{Axes, Figure, Scale};
use crate::ablation::metric_names::Metric;
use crate::ablation::results::{AblationRow, AblationTable, Standing};
use crate::ablation::variants::VariantKind;

/// Room of one row.
const LINE: f64 = 22.0;
const LABEL: usize = 26;

/// A row's mean with what stands on either side of it: half of its interval, or for one seed its spread.
struct Mean<'a> {
    row: &'a AblationRow,
    value: f64,
    reach: Option<f64>,
}

fn means_of<'a>(table: &'a AblationTable, metric: &Metric) -> Vec<Mean<'a>> {
    let rows = table.rows.iter().filter_map(|row| {
        let summary = row.summary.get(&metric.name)?;
        let reach = summary.half_width.or(spread_over_pictures(row, &metric.name));
        Some(Mean { row, value: summary.mean, reach })
    });
    rows.collect()
}

/// The frame of a drawing with one line per row.
fn lines(name: String, alt: String, rows: usize, x: Scale, title: &str) -> (Figure, Axes) {
    let height = rows as f64 * LINE;
    let axes = Axes { left: 160.0, top: 8.0, width: 220.0, height, x, y: Scale::linear(0.0, 1.0) };
    let mut figure = Figure::new(name, alt, 460.0, height + 46.0);
    for (value, label) in axes.x.ticks(4) {
        let x = axes.x_at(value);
        figure.line((x, axes.top), (x, axes.bottom()), "rule");
        figure.text(x, axes.bottom() + 16.0, "tick middle", &label);
    }
    let middle = axes.left + axes.width / 2.0;
    figure.text(middle, axes.bottom() + 31.0, "tick middle", title);
    (figure, axes)
}

/// Bars from 0 with intervals; the recipe's stronger. None below two rows.
pub(super) fn means(name: String, table: &AblationTable, metric: &Metric) -> Option<Figure> {
    let means = means_of(table, metric);
    if means.len() < 2 {
        return None;
    }
    let ends = |sign: f64| means.iter().map(move |m| m.value + sign * m.reach.unwrap_or_default());
    let low = ends(-1.0).fold(0.0, f64::min);
    // An interval from two seeds can be wide beyond any use: it ends at the frame.
    let largest = means.iter().map(|m| m.value.abs()).fold(0.0, f64::max);
    let high = ends(1.0).fold(0.0, f64::max).min(2.0 * largest);
    let scale = Scale::linear(low.max(-2.0 * largest), high);
    let alt = format!("mean {} of each variant, with intervals", metric.name);
    let (mut figure, axes) = lines(name, alt, means.len(), scale, &metric.name);
    let decimals = decimals_of(table, &metric.name);
    let zero = axes.x_at(0.0);
    for (place, Mean { row, value, reach }) in means.iter().enumerate() {
        let y = axes.top + (place as f64 + 0.5) * LINE;
        let is_base = row.kind == VariantKind::Base;
        let x = axes.x_at(*value);
        let (opacity, text) = if is_base { (0.75, "end strong") } else { (0.4, "end") };
        let size = ((x - zero).abs(), LINE - 9.0);
        figure.rectangle((zero.min(x), y - size.1 / 2.0), size, "box", opacity);
        if let Some(reach) = reach {
            let (from, to) = (axes.x_at(value - reach), axes.x_at(value + reach));
            figure.line((from, y), (to, y), "whisker");
        }
        figure.text(axes.left - 10.0, y + 4.0, text, &shortened(&row.label, LABEL));
        figure.text(axes.right() + 8.0, y + 4.0, "tick start", &fixed(*value, decimals));
    }
    figure.line((zero, axes.top), (zero, axes.bottom()), "axis");
    Some(figure)
}

/// Differences to the recipe with their intervals; in colour where they count. None without intervals.
pub(super) fn differences(name: String, table: &AblationTable, metric: &Metric) -> Option<Figure> {
    let rows: Vec<_> = table
        .rows
        .iter()
        .filter_map(|row| Some((row, row.summary.get(&metric.name)?.difference.as_ref()?)))
        .collect();
    let intervals: Vec<[f64; 2]> = rows.iter().filter_map(|(_, found)| found.interval).collect();
    if intervals.is_empty() {
        return None;
    }
    let low = intervals.iter().map(|[low, _]| *low).fold(0.0, f64::min);
    let high = intervals.iter().map(|[_, high]| *high).fold(0.0, f64::max);
    let air = (high - low) * 0.06;
    let scale = Scale::linear(low - air, high + air);
    let direction =
        if metric.lower_is_better { "better on the left" } else { "better on the right" };
    let title = format!("difference in {}, {direction}", metric.name);
    let alt = format!("differences in {} to the recipe, with 95% intervals", metric.name);
    let (mut figure, axes) = lines(name, alt, rows.len(), scale, &title);
    let decimals = decimals_of(table, &metric.name);
    let zero = axes.x_at(0.0);
    figure.line((zero, axes.top), (zero, axes.bottom()), "guide");
    for (place, (row, found)) in rows.iter().enumerate() {
        let y = axes.top + (place as f64 + 0.5) * LINE;
        let counts = matches!(found.standing, Standing::Better | Standing::Worse);
        let (dot, whisker) = if counts { ("merged", "whisker-merged") } else { ("row", "whisker") };
        if let Some([low, high]) = found.interval {
            figure.line((axes.x_at(low), y), (axes.x_at(high), y), whisker);
        }
        figure.dot((axes.x_at(found.mean), y), 3.6, dot);
        figure.text(axes.left - 10.0, y + 4.0, "end", &shortened(&row.label, LABEL));
        figure.text(axes.right() + 8.0, y + 4.0, "tick start", &signed(found.mean, decimals));
    }
    Some(figure)
}

/// The metric over the part's number, with intervals; rows to compare with stand beside the line. None below
/// three numbers.
pub(super) fn over_numbers(name: String, table: &AblationTable, metric: &Metric) -> Option<Figure> {
    let means = means_of(table, metric);
    let mut placed: Vec<(f64, &Mean<'_>)> =
        means.iter().filter_map(|mean| Some((mean.row.number?, mean))).collect();
    placed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let numbers: Vec<f64> = placed.iter().map(|(number, _)| *number).collect();
    let mut different = numbers.clone();
    different.dedup();
    if different.len() < 3 {
        return None;
    }
    let ends =
        |sign: f64| placed.iter().map(move |(_, m)| m.value + sign * m.reach.unwrap_or_default());
    let values = || placed.iter().map(|(_, mean)| mean.value);
    let lowest = values().fold(f64::INFINITY, f64::min);
    let highest = values().fold(f64::NEG_INFINITY, f64::max);
    // Intervals stretch the axis to at most three times what the means take.
    let room = (highest - lowest).max(highest.abs() * 0.05);
    let low = ends(-1.0).fold(f64::INFINITY, f64::min).max(lowest - room);
    let high = ends(1.0).fold(f64::NEG_INFINITY, f64::max).min(highest + room);
    let axes = Axes {
        left: 52.0,
        top: 30.0,
        width: WIDTH - 70.0,
        height: 160.0,
        x: Scale::around(numbers[0], numbers[numbers.len() - 1]),
        y: Scale::around(low, high),
    };
    let alt = format!("{} over {}", metric.name, table.part_title);
    let mut figure = Figure::new(name, alt, WIDTH, 230.0);
    figure.text(0.0, 13.0, "name start", &metric.name);
    axes.draw(&mut figure, &shortened(&table.part_title, 48));
    let is_on_line = |row: &AblationRow| row.kind != VariantKind::Reference;
    let line: Vec<(f64, f64)> = placed
        .iter()
        .filter(|(_, mean)| is_on_line(mean.row))
        .map(|(number, mean)| axes.at(*number, mean.value))
        .collect();
    figure.path(&line, "first");
    for (number, mean) in &placed {
        let x = axes.x_at(*number);
        let on_line = is_on_line(mean.row);
        if let Some(reach) = mean.reach {
            let (from, to) = (axes.y_at(mean.value - reach), axes.y_at(mean.value + reach));
            figure.line((x, from), (x, to), if on_line { "whisker-merged" } else { "whisker" });
        }
        let class = match mean.row.kind {
            VariantKind::Base => "best",
            VariantKind::Asked => "merged",
            VariantKind::Reference => "row",
        };
        figure.dot((x, axes.y_at(mean.value)), 4.0, class);
    }
    figure.text(WIDTH - 18.0, 13.0, "tick end", "ringed: the recipe");
    Some(figure)
}
