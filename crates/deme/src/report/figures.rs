//! The drawings of a report: measured values, loss curves, the search for weights.

use deme_merge::weight_search::{Reference, ReferenceKind};

use super::number_format::{significant, trimmed, weights};
use super::svg::{Axes, Figure, Scale, quantile};
use super::verdict::{decimals_of, with_spread};
use super::{LossCurve, Row, RowKind, SearchSummary};

/// Losses are drawn at no more places than this; each then stands for several iterations.
const MOST_PLACES: usize = 220;
/// Points of a search drawn singly; more are thinned out evenly.
const MOST_DOTS: usize = 700;

pub(super) const WIDTH: f64 = 360.0;

/// The rows' values on one axis, with their spreads and a guide at the value before finetuning.
pub(super) fn measured_values(name: String, metric: &str, rows: &[&Row]) -> Option<Figure> {
    let measured: Vec<_> =
        rows.iter().filter_map(|row| Some((*row, row.metric(metric)?))).collect();
    if measured.len() < 2 {
        return None;
    }
    let ends = |sign: f64| {
        measured.iter().map(move |(_, m)| m.value + sign * m.spread.unwrap_or_default())
    };
    let low = ends(-1.0).fold(f64::INFINITY, f64::min);
    let high = ends(1.0).fold(f64::NEG_INFINITY, f64::max);

    const LINE: f64 = 21.0;
    let height = measured.len() as f64 * LINE;
    let axes = Axes {
        left: 128.0,
        top: 8.0,
        width: 236.0,
        height,
        x: Scale::around(low, high),
        y: Scale::linear(0.0, 1.0),
    };
    let alt = format!("{metric} of each model, with spreads");
    let mut figure = Figure::new(name, alt, 440.0, height + 46.0);
    for (value, label) in axes.x.ticks(4) {
        let x = axes.x_at(value);
        figure.line((x, axes.top), (x, axes.bottom()), "rule");
        figure.text(x, axes.bottom() + 16.0, "tick middle", &label);
    }
    let title = format!("{metric}{}", if axes.x.logarithmic { ", log scale" } else { "" });
    let middle = axes.left + axes.width / 2.0;
    figure.text(middle, axes.bottom() + 31.0, "tick middle", &title);
    if let Some((_, before)) = measured.iter().find(|(row, _)| row.kind == RowKind::Before) {
        let x = axes.x_at(before.value);
        figure.line((x, axes.top), (x, axes.bottom()), "guide");
    }
    let decimals = decimals_of(&rows.iter().map(|r| (*r).clone()).collect::<Vec<_>>(), metric);
    for (place, (row, metric)) in measured.iter().enumerate() {
        let y = axes.top + (place as f64 + 0.5) * LINE;
        let merged = matches!(row.kind, RowKind::Searched | RowKind::Uniform | RowKind::Fixed);
        let (dot, whisker, text) = if merged {
            ("merged", "whisker-merged", "end strong")
        } else {
            ("row", "whisker", "end")
        };
        if let Some(spread) = metric.spread {
            let from = axes.x_at(metric.value - spread);
            let to = axes.x_at(metric.value + spread);
            figure.line((from, y), (to, y), whisker);
        }
        figure.dot((axes.x_at(metric.value), y), 3.6, dot);
        figure.text(axes.left - 10.0, y + 4.0, text, &shortened(&row.label, 20));
        let value = with_spread(metric, decimals);
        figure.text(axes.right() + 8.0, y + 4.0, "tick start", &value);
    }
    Some(figure)
}

/// One model's training losses: smoothed in front, what was measured faintly behind.
pub(super) fn loss_curve(name: String, curve: &LossCurve) -> Option<Figure> {
    let diffusion: Vec<(f64, f64)> =
        curve.points.iter().map(|point| (point.iteration as f64, point.diffusion)).collect();
    let consistency: Vec<(f64, f64)> = curve
        .points
        .iter()
        .filter_map(|point| Some((point.iteration as f64, point.consistency?)))
        .collect();
    let first = diffusion.first()?.0;
    let last = diffusion.last()?.0;
    let (diffusion, consistency) = (Thinned::of(&diffusion), Thinned::of(&consistency));

    // A few extreme values must not press the curve flat; they are drawn at the frame.
    let drawn: Vec<f64> = [&diffusion, &consistency]
        .into_iter()
        .flat_map(|series| series.means.iter().map(|(_, loss)| *loss))
        .filter(|loss| *loss > 0.0)
        .collect();
    let axes = Axes {
        left: 48.0,
        top: 30.0,
        width: WIDTH - 58.0,
        height: 160.0,
        x: Scale::linear(first, last),
        y: Scale::around(quantile(&drawn, 0.015), quantile(&drawn, 0.995)),
    };
    let alt = format!("training loss of {}", curve.label);
    let mut figure = Figure::new(name, alt, WIDTH, 230.0);
    figure.text(0.0, 13.0, "name start", &shortened(&curve.label, 30));
    axes.draw(&mut figure, "iteration");
    key(&mut figure, !consistency.means.is_empty());
    diffusion.draw(&mut figure, &axes, ["first-band", "first-raw", "first"]);
    consistency.draw(&mut figure, &axes, ["second-band", "second-raw", "second"]);
    Some(figure)
}

/// Which colour is which loss, at the top right.
fn key(figure: &mut Figure, with_consistency: bool) {
    if with_consistency {
        figure.text(WIDTH - 84.0, 13.0, "key-first end", "diffusion");
        figure.text(WIDTH - 10.0, 13.0, "key-second end", "consistency");
    } else {
        figure.text(WIDTH - 10.0, 13.0, "key-first end", "diffusion");
    }
}

/// A series at no more than [`MOST_PLACES`] places.
struct Thinned {
    /// The mean at each place.
    means: Vec<(f64, f64)>,
    /// The smallest and the largest value at each place; empty when each place is one value.
    extremes: Vec<(f64, f64, f64)>,
    /// The means, averaged over their neighbours.
    smoothed: Vec<(f64, f64)>,
}

impl Thinned {
    fn of(points: &[(f64, f64)]) -> Self {
        let per_place = points.len().div_ceil(MOST_PLACES).max(1);
        let mut means = Vec::new();
        let mut extremes = Vec::new();
        for place in points.chunks(per_place) {
            let count = place.len() as f64;
            let x = place.iter().map(|(x, _)| x).sum::<f64>() / count;
            let mean = place.iter().map(|(_, y)| y).sum::<f64>() / count;
            means.push((x, mean));
            if per_place > 1 {
                let low = place.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
                let high = place.iter().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max);
                extremes.push((x, low, high));
            }
        }
        let smoothed = smoothed(&means, (means.len() / 16).max(2));
        Self { means, extremes, smoothed }
    }

    fn draw(&self, figure: &mut Figure, axes: &Axes, [band, raw, smooth]: [&str; 3]) {
        let upper = self.extremes.iter().map(|(x, _, high)| axes.at(*x, *high));
        let lower = self.extremes.iter().rev().map(|(x, low, _)| axes.at(*x, *low));
        figure.path(&upper.chain(lower).collect::<Vec<_>>(), band);
        figure.path(&axes.all(&self.means), raw);
        figure.path(&axes.all(&self.smoothed), smooth);
    }
}

/// At each point the value of the straight line that fits its neighbours best, `reach` on
/// each side as far as there are any. Unlike a mean it does not lag at the ends.
fn smoothed(points: &[(f64, f64)], reach: usize) -> Vec<(f64, f64)> {
    (0..points.len())
        .map(|place| {
            let window =
                &points[place.saturating_sub(reach)..(place + reach + 1).min(points.len())];
            let count = window.len() as f64;
            let x_mean = window.iter().map(|(x, _)| x).sum::<f64>() / count;
            let y_mean = window.iter().map(|(_, y)| y).sum::<f64>() / count;
            let spread: f64 = window.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
            let product: f64 = window.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
            let slope = if spread > 0.0 { product / spread } else { 0.0 };
            let x = points[place].0;
            (x, y_mean + slope * (x - x_mean))
        })
        .collect()
}

/// What a search is drawn against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// The number of points that were measured.
    Evaluations,
    /// How long they took together.
    Time,
}

/// How the best value so far fell (or rose), with the points to compare with as levels. None where there
/// is nothing to see: less than two evaluations, or unknown durations.
pub(super) fn best_so_far(name: String, search: &SearchSummary, effort: Effort) -> Option<Figure> {
    if search.log.len() < 2 {
        return None;
    }
    let (title, places) = match effort {
        Effort::Evaluations => ("evaluation", (1..=search.log.len()).map(|k| k as f64).collect()),
        Effort::Time => elapsed(&search.seconds)?,
    };
    let last = *places.last()?;
    let mut best = search.log[0].1;
    let mut steps = vec![(places[0], best)];
    for (x, (_, value)) in places.iter().zip(&search.log) {
        if better(search, *value, best) {
            steps.push((*x, best));
            steps.push((*x, *value));
            best = *value;
        }
    }
    steps.push((last, best));

    let levels_room = if search.references.is_empty() { 0.0 } else { 58.0 };
    let axes = Axes {
        left: 48.0,
        top: 30.0,
        width: WIDTH - 58.0 - levels_room,
        height: 160.0,
        x: Scale::linear(if effort == Effort::Time { 0.0 } else { 1.0 }, last),
        y: progress_scale(search),
    };
    let alt = format!(
        "the search's best value so far over its {}: from {} to {}",
        if effort == Effort::Time { title } else { "evaluations" },
        significant(search.log[0].1, 4),
        significant(best, 4)
    );
    let mut figure = Figure::new(name, alt, WIDTH, 230.0);
    figure.text(0.0, 13.0, "name start", &shortened(&search.objective, 30));
    figure.text(WIDTH - 10.0, 13.0, "key-first end", "best so far");
    axes.draw(&mut figure, title);
    draw_levels(&mut figure, &axes, search);
    for place in thinned(search.log.len()) {
        figure.dot(axes.at(places[place], search.log[place].1), 1.8, "tried");
    }
    figure.path(&axes.all(&steps), "first");
    Some(figure)
}

/// The time after each evaluation, in a unit that suits the whole. None when it is not known.
fn elapsed(seconds: &[f64]) -> Option<(&'static str, Vec<f64>)> {
    let total: f64 = seconds.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let (unit, length) = match total {
        t if t < 1000.0 => ("seconds", 1.0),
        t if t < 6.0 * 3600.0 => ("minutes", 60.0),
        _ => ("hours", 3600.0),
    };
    let mut sum = 0.0;
    let after = seconds.iter().map(|seconds| {
        sum += seconds / length;
        sum
    });
    Some((unit, after.collect()))
}

/// How a point to compare with is called.
pub(super) fn reference_name(kind: ReferenceKind) -> String {
    match kind {
        ReferenceKind::Uniform => "uniform".to_string(),
        ReferenceKind::Expert(expert) => format!("expert {}", expert + 1),
        ReferenceKind::Pretrained => "pretrained".to_string(),
    }
}

/// The best of the experts alone.
pub(super) fn best_expert(search: &SearchSummary) -> Option<&Reference> {
    let experts = search.references.iter().filter(|r| matches!(r.kind, ReferenceKind::Expert(_)));
    experts.reduce(|best, other| if better(search, other.value, best.value) { other } else { best })
}

/// Shows what the search measured, uniform weights and the best expert. Other points to compare with
/// stretch the axis to at most three times that; farther ones stay outside.
fn progress_scale(search: &SearchSummary) -> Scale {
    let (mut low, mut high) = value_range(search);
    let uniform = search.references.iter().find(|r| r.kind == ReferenceKind::Uniform);
    for reference in uniform.into_iter().chain(best_expert(search)) {
        (low, high) = (low.min(reference.value), high.max(reference.value));
    }
    let reach = high - low;
    let near = (low - reach)..=(high + reach);
    for reference in search.references.iter().filter(|r| near.contains(&r.value)) {
        (low, high) = (low.min(reference.value), high.max(reference.value));
    }
    Scale::around(low, high)
}

/// A level for each point to compare with, its name at the right; an arrow at names of levels beyond the
/// frame.
fn draw_levels(figure: &mut Figure, axes: &Axes, search: &SearchSummary) {
    const LINE: f64 = 11.5;
    let mut levels: Vec<&Reference> = search.references.iter().collect();
    // More names than lines: the experts but the best go without.
    if levels.len() as f64 * LINE > axes.height + LINE {
        let best = best_expert(search).map(|reference| reference.kind);
        levels.retain(|r| !matches!(r.kind, ReferenceKind::Expert(_)) || Some(r.kind) == best);
    }
    levels.sort_by(|a, b| b.value.total_cmp(&a.value));
    let mut names: Vec<f64> = levels.iter().map(|reference| axes.y_at(reference.value)).collect();
    for place in 1..names.len() {
        names[place] = names[place].max(names[place - 1] + LINE);
    }
    let mut below = axes.bottom() + LINE;
    for name in names.iter_mut().rev() {
        *name = name.min(below - LINE);
        below = *name;
    }
    for (reference, name_y) in levels.iter().zip(names) {
        let y = axes.y_at(reference.value);
        let mut name = reference_name(reference.kind);
        if reference.value > axes.y.high {
            name.push_str(" ↑");
        } else if reference.value < axes.y.low {
            name.push_str(" ↓");
        } else {
            let uniform = reference.kind == ReferenceKind::Uniform;
            let class = if uniform { "guide-strong" } else { "guide" };
            figure.line((axes.left, y), (axes.right(), y), class);
        }
        figure.line((axes.right(), y), (axes.right() + 5.0, name_y), "rule");
        figure.text(axes.right() + 7.0, name_y + 3.5, "tick start", &name);
    }
}

/// The value at every point of a two-dimensional grid; none when the points form no grid.
pub(super) fn heat_map(name: String, search: &SearchSummary) -> Option<Figure> {
    if search.best_weights.len() != 2 {
        return None;
    }
    let columns = tried_values(search, 0);
    let rows = tried_values(search, 1);
    let cells = columns.len() * rows.len();
    if columns.len() < 2 || rows.len() < 2 || cells > 2 * search.log.len() || cells > 1600 {
        return None;
    }
    let side = (270.0 / columns.len().max(rows.len()) as f64).min(48.0);
    let (left, top) = (44.0, 24.0);
    let (width, height) = (side * columns.len() as f64, side * rows.len() as f64);
    let alt = "the search's value over the two weights".to_string();
    let mut figure = Figure::new(name, alt, WIDTH.max(left + width + 10.0), top + height + 42.0);
    figure.text(0.0, 13.0, "name start", &shortened(&search.objective, 30));

    let values: Vec<f64> = search.log.iter().map(|(_, value)| *value).collect();
    // The worst fifth shares the palest shade, so that the basin keeps its shades.
    let palest = quantile(&values, if search.lower_is_better { 0.8 } else { 0.2 });
    let range = (palest - search.best_value).abs().max(f64::MIN_POSITIVE);
    let corner_of = |column: usize, row: usize| {
        (left + column as f64 * side, top + (rows.len() - 1 - row) as f64 * side)
    };
    let place_of = |values: &[f64], value: f64| values.iter().position(|v| *v == value);
    for (point, value) in &search.log {
        let (Some(column), Some(row)) = (place_of(&columns, point[0]), place_of(&rows, point[1]))
        else {
            continue;
        };
        let distance = ((value - search.best_value).abs() / range).min(1.0);
        let shade = 0.06 + 0.86 * (1.0 - distance);
        let corner = corner_of(column, row);
        figure.rectangle(corner, (side, side), "heat", shade);
        if side >= 30.0 {
            let class = if shade > 0.62 { "middle on-dark" } else { "middle" };
            let text = significant(*value, 3);
            figure.text(corner.0 + side / 2.0, corner.1 + side / 2.0 + 4.0, class, &text);
        }
    }
    if let (Some(column), Some(row)) =
        (place_of(&columns, search.best_weights[0]), place_of(&rows, search.best_weights[1]))
    {
        figure.rectangle(corner_of(column, row), (side, side), "heat-best", 0.0);
    }
    let labelled = |count: usize| (0..count).step_by(count.div_ceil(9));
    for column in labelled(columns.len()) {
        let x = left + (column as f64 + 0.5) * side;
        let label = trimmed(columns[column], 3);
        figure.text(x, top + height + 15.0, "tick middle", &label);
    }
    for row in labelled(rows.len()) {
        let y = corner_of(0, row).1 + side / 2.0 + 3.5;
        figure.text(left - 6.0, y, "tick end", &trimmed(rows[row], 3));
    }
    figure.text(left + width / 2.0, top + height + 32.0, "tick middle", "weight of expert 1");
    figure.text_upwards(9.0, top + height / 2.0, "tick middle", "weight of expert 2");
    Some(figure)
}

/// The value along one weight: all tried points, and those that share the other weights with
/// the best point joined by a line.
pub(super) fn slice(name: String, search: &SearchSummary, expert: usize) -> Option<Figure> {
    let tried = tried_values(search, expert);
    let (low, high) = (*tried.first()?, *tried.last()?);
    if low == high {
        return None;
    }
    let mut along: Vec<(f64, f64)> = search
        .log
        .iter()
        .filter(|(point, _)| {
            let others = (0..point.len()).filter(|axis| *axis != expert);
            others.into_iter().all(|axis| point[axis] == search.best_weights[axis])
        })
        .map(|(point, value)| (point[expert], *value))
        .collect();
    along.sort_by(|a, b| a.0.total_cmp(&b.0));

    let air = (high - low) * 0.05;
    let axes = Axes {
        left: 48.0,
        top: 30.0,
        width: WIDTH - 58.0,
        height: 130.0,
        x: Scale::linear(low - air, high + air),
        y: value_scale(search),
    };
    let alt = format!("the search's value along the weight of expert {}", expert + 1);
    let mut figure = Figure::new(name, alt, WIDTH, 200.0);
    let title = format!("expert {}", expert + 1);
    figure.text(0.0, 13.0, "name start", &title);
    let best = format!("best {}", weights(&search.best_weights[expert..=expert]));
    figure.text(WIDTH - 10.0, 13.0, "key-second end", &best);
    axes.draw(&mut figure, "weight");
    let uniform = 1.0 / search.best_weights.len() as f64;
    if (low..=high).contains(&uniform) {
        let x = axes.x_at(uniform);
        figure.line((x, axes.top), (x, axes.bottom()), "guide");
    }
    for place in thinned(search.log.len()) {
        let (point, value) = &search.log[place];
        figure.dot(axes.at(point[expert], *value), 1.8, "tried");
    }
    figure.path(&axes.all(&along), "first");
    for (weight, value) in &along {
        figure.dot(axes.at(*weight, *value), 2.6, "onslice");
    }
    let best = axes.at(search.best_weights[expert], search.best_value);
    figure.dot(best, 4.2, "best");
    Some(figure)
}

/// Whether `a` is a better value than `b`.
pub(super) fn better(search: &SearchSummary, a: f64, b: f64) -> bool {
    if search.lower_is_better { a < b } else { a > b }
}

/// The values tried for one weight, sorted, each once.
fn tried_values(search: &SearchSummary, expert: usize) -> Vec<f64> {
    let mut values: Vec<f64> = search.log.iter().map(|(point, _)| point[expert]).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

/// An axis for the searched value on which the good points can be told apart; the worst
/// tenth may lie at the frame.
fn value_scale(search: &SearchSummary) -> Scale {
    let (low, high) = value_range(search);
    Scale::around(low, high)
}

fn value_range(search: &SearchSummary) -> (f64, f64) {
    let values: Vec<f64> = search.log.iter().map(|(_, value)| *value).collect();
    let (low, high) = if search.lower_is_better { (0.0, 0.9) } else { (0.1, 1.0) };
    (quantile(&values, low), quantile(&values, high))
}

/// Whether some measured point differs from the chosen one in one weight alone, as those of grids do.
pub(super) fn has_slices(search: &SearchSummary) -> bool {
    let differing =
        |point: &[f64]| point.iter().zip(&search.best_weights).filter(|(a, b)| a != b).count();
    search.best_weights.len() > 1 && search.log.iter().any(|(point, _)| differing(point) == 1)
}

/// At most [`MOST_DOTS`] places of `count`, evenly spaced.
fn thinned(count: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(count.div_ceil(MOST_DOTS).max(1))
}

/// At most `most` characters, an ellipsis in place of the rest.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    let kept: String = text.chars().take(most - 1).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::LossPoint;
    use super::super::test_report::report_of;
    use super::*;

    fn search_of(experts: usize) -> SearchSummary {
        report_of(experts).search.unwrap()
    }

    /// The numbers of the one path or line of a class.
    fn corners(figure: &str, class: &str) -> Vec<f64> {
        let marked = format!("class=\"{class}\" d=\"M");
        let path = figure.split(&marked).nth(1).unwrap().split('"').next().unwrap();
        path.split(['L', ' ']).map(|number| number.parse().unwrap()).collect()
    }

    #[test]
    fn the_best_so_far_falls_where_a_better_point_was_measured() {
        let mut search = search_of(2);
        let values = [5.0, 7.0, 3.0, 4.0, 2.0];
        search.references.clear();
        search.log = values.iter().map(|value| (vec![0.0, 0.0], *value)).collect();
        search.seconds = vec![10.0, 20.0, 30.0, 20.0, 20.0];
        for (effort, shares) in [
            (Effort::Evaluations, [0.0, 0.5, 0.5, 1.0, 1.0, 1.0]),
            (Effort::Time, [0.1, 0.6, 0.6, 1.0, 1.0, 1.0]),
        ] {
            let figure = best_so_far("a".into(), &search, effort).unwrap().inline();
            let found = corners(&figure, "first");
            let scale = progress_scale(&search);
            let bests = [5.0, 5.0, 3.0, 3.0, 2.0, 2.0];
            assert_eq!(found.len(), 12);
            for (place, (share, best)) in shares.iter().zip(bests).enumerate() {
                let (x, y) = (48.0 + share * 302.0, 30.0 + (1.0 - scale.place(best)) * 160.0);
                assert!((found[2 * place] - x).abs() < 0.06, "{effort:?} {place}: {found:?}");
                assert!((found[2 * place + 1] - y).abs() < 0.06, "{effort:?} {place}: {found:?}");
            }
            assert!(figure.contains("from 5.000 to 2.000"), "{figure}");
        }
        search.lower_is_better = false;
        let figure = best_so_far("a".into(), &search, Effort::Evaluations).unwrap().inline();
        assert!(figure.contains("from 5.000 to 7.000"), "{figure}");
        search.seconds.clear();
        assert!(best_so_far("a".into(), &search, Effort::Time).is_none());
        search.log.truncate(1);
        assert!(best_so_far("a".into(), &search, Effort::Evaluations).is_none());
    }

    #[test]
    fn times_get_a_unit_that_suits() {
        assert_eq!(elapsed(&[1.0, 2.0]), Some(("seconds", vec![1.0, 3.0])));
        assert_eq!(elapsed(&[600.0, 1200.0]), Some(("minutes", vec![10.0, 30.0])));
        assert_eq!(elapsed(&[36_000.0]), Some(("hours", vec![10.0])));
        assert_eq!(elapsed(&[]), None);
    }

    #[test]
    fn levels_stand_at_their_values_and_far_ones_get_an_arrow() {
        let mut search = search_of(3);
        search.references[1].value = 1e6;
        let figure = best_so_far("a".into(), &search, Effort::Evaluations).unwrap().inline();
        for name in ["uniform", "expert 1 ↑", "expert 2", "expert 3", "pretrained"] {
            assert!(figure.contains(&format!(">{name}</text>")), "{name}: {figure}");
        }
        let scale = progress_scale(&search);
        let y = 30.0 + (1.0 - scale.place(search.references[0].value)) * 160.0;
        let line = format!("class=\"guide-strong\" x1=\"48.0\" y1=\"{y:.1}\"");
        assert!(figure.contains(&line), "{line}: {figure}");

        // More names than fit: of the experts only the best keeps its own.
        let mut many = search_of(8);
        let expert = many.references[1].clone();
        for more in 8..20 {
            many.references.push(Reference { kind: ReferenceKind::Expert(more), ..expert.clone() });
        }
        let figure = best_so_far("a".into(), &many, Effort::Evaluations).unwrap().inline();
        assert_eq!(figure.matches(">expert ").count(), 1);
        assert!(figure.contains(">expert 8</text>"), "the best one: {figure}");
    }

    #[test]
    fn two_experts_get_a_heat_map_and_others_do_not() {
        let search = search_of(2);
        let figure = heat_map("a".into(), &search).unwrap().inline();
        assert_eq!(figure.matches("class=\"heat\"").count(), search.log.len());
        assert_eq!(figure.matches("class=\"heat-best\"").count(), 1);
        for experts in [1, 3, 4] {
            assert!(heat_map("a".into(), &search_of(experts)).is_none());
        }
    }

    #[test]
    fn scattered_points_form_no_heat_map() {
        let mut search = search_of(2);
        for (place, (point, _)) in search.log.iter_mut().enumerate() {
            point[0] += place as f64 * 1e-3;
        }
        assert!(heat_map("a".into(), &search).is_none());
        assert!(slice("a".into(), &search, 0).is_some());
    }

    #[test]
    fn a_slice_joins_the_points_that_differ_in_one_weight() {
        for experts in [1, 3] {
            let search = search_of(experts);
            for expert in 0..experts {
                let figure = slice("a".into(), &search, expert).unwrap().inline();
                let tried = tried_values(&search, expert).len();
                assert_eq!(figure.matches("class=\"onslice\"").count(), tried);
            }
        }
    }

    #[test]
    fn an_empty_search_and_an_empty_curve_draw_nothing() {
        let mut search = search_of(2);
        search.log.clear();
        assert!(best_so_far("a".into(), &search, Effort::Evaluations).is_none());
        assert!(heat_map("a".into(), &search).is_none());
        assert!(slice("a".into(), &search, 0).is_none());
        let curve = LossCurve { label: "joint".into(), points: Vec::new() };
        assert!(loss_curve("a".into(), &curve).is_none());
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_extremes() {
        let points: Vec<(f64, f64)> =
            (0..100_000).map(|i| (f64::from(i), if i == 77_777 { 9.0 } else { 1.0 })).collect();
        let thinned = Thinned::of(&points);
        assert!(thinned.means.len() <= MOST_PLACES);
        let highest = thinned.extremes.iter().map(|(_, _, high)| *high);
        assert_eq!(highest.fold(0.0, f64::max), 9.0);
    }

    #[test]
    fn smoothing_keeps_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i), f64::from(i))).collect();
        for ((_, y), (_, smooth)) in line.iter().zip(smoothed(&line, 5)) {
            assert!((y - smooth).abs() < 1e-12);
        }
    }

    #[test]
    fn zero_losses_do_not_break_a_logarithmic_axis() {
        let points = (0..50)
            .map(|i| LossPoint {
                iteration: i,
                diffusion: 1.0 / (1.0 + i as f64),
                consistency: Some(i as f64 * 1e-4),
            })
            .collect();
        let curve = LossCurve { label: "expert 1".into(), points };
        let figure = loss_curve("a".into(), &curve).unwrap().inline();
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
        assert!(figure.contains("consistency"));
    }
}
