//! Drawings of task vectors: their sizes layer by layer, and the angles between them.   (Ma et al. 2024,
//! the box plots of task vectors)

use deme_merge::TaskVectorStatistics;
use deme_merge::task_vector_statistics::{Similarity, TensorStatistics};

use super::number_format::fixed;
use super::svg::{Axes, Figure, Scale, quantile};

/// In which order the parts of a UNet are shown; others follow by name.
const BLOCKS: [&str; 4] = ["down", "mid", "up", "rest"];

/// The groups of tensors, in the order of [`BLOCKS`].
pub(super) fn groups_in_order(statistics: &TaskVectorStatistics) -> Vec<&str> {
    let mut groups: Vec<&str> = statistics.groups.keys().map(String::as_str).collect();
    groups.sort_by_key(|group| rank(group));
    groups
}

fn rank(group: &str) -> usize {
    BLOCKS.iter().position(|block| *block == group).unwrap_or(BLOCKS.len())
}

/// The weights of convolutions and linear layers, group by group. Norms and biases are few numbers, and of
/// another size.
fn layers(statistics: &TaskVectorStatistics) -> Vec<&TensorStatistics> {
    let is_layer = |name: &str| name.ends_with(".weight") && !name.contains("norm");
    let mut layers: Vec<&TensorStatistics> =
        statistics.tensors.iter().filter(|tensor| is_layer(&tensor.name)).collect();
    // Stable: names keep their order within a group.
    layers.sort_by_key(|tensor| (rank(&tensor.group), &tensor.group));
    layers
}

/// A strip per expert with one box plot per layer; all strips have the same axis.
pub(super) fn box_plots(
    name: String,
    statistics: &TaskVectorStatistics,
    labels: &[String],
) -> Option<Figure> {
    const STRIP: f64 = 62.0;
    const GAP: f64 = 20.0;
    let layers = layers(statistics);
    if layers.is_empty() {
        return None;
    }
    let experts = layers.iter().flat_map(|layer| &layer.experts);
    let ends: Vec<f64> = experts.map(|d| d.quantile_95.abs().max(d.quantile_5.abs())).collect();
    let reach = quantile(&ends, 0.98);
    // All zero: an axis all the same.
    let reach = if reach > 0.0 { reach * 1.05 } else { 1.0 };
    let (left, top, width) = (62.0, 36.0, 490.0);
    let height = labels.len() as f64 * (STRIP + GAP);
    let alt = format!(
        "box plots of {} layers of {} task vectors, between {} and {}",
        layers.len(),
        labels.len(),
        super::number_format::significant(-reach, 2),
        super::number_format::significant(reach, 2)
    );
    let mut figure = Figure::new(name, alt, left + width + 8.0, top + height + 7.0);
    let slot = width / layers.len() as f64;
    let x_of = |place: f64| left + place * slot;

    for (place, label) in labels.iter().enumerate() {
        let axes = Axes {
            left,
            top: top + place as f64 * (STRIP + GAP),
            width,
            height: STRIP,
            x: Scale::linear(0.0, layers.len() as f64),
            y: Scale::linear(-reach, reach),
        };
        for (value, label) in axes.y.ticks(4) {
            let y = axes.y_at(value);
            figure.line((left, y), (axes.right(), y), "rule");
            figure.text(left - 6.0, y + 3.5, "tick end", &label);
        }
        let (mut whiskers, mut boxes, mut medians) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, tensor) in layers.iter().enumerate() {
            let d = &tensor.experts[place];
            let x = x_of(layer as f64 + 0.5);
            let half = (slot * 0.32).min(7.0);
            let [low, high] = [d.quantile_5, d.quantile_95].map(|value| axes.y_at(value));
            let [lower, upper] = [d.lower_quartile, d.upper_quartile].map(|q| axes.y_at(q));
            let median = axes.y_at(d.median);
            whiskers.push(vec![(x, low), (x, high)]);
            let (from, to) = (x - half, x + half);
            boxes.push(vec![(from, lower), (to, lower), (to, upper), (from, upper)]);
            medians.push(vec![(from, median), (to, median)]);
        }
        figure.paths(&whiskers, "whisker", 0.0);
        figure.paths(&boxes, "box", 1.0);
        figure.paths(&medians, "median", 0.0);
        figure.text_on_map(left + 4.0, axes.top - 4.0, "start strong", label);
    }

    let mut first = 0;
    while first < layers.len() {
        let group = &layers[first].group;
        let count = layers[first..].iter().take_while(|tensor| tensor.group == *group).count();
        let (from, to) = (x_of(first as f64), x_of((first + count) as f64));
        figure.line((from, 2.0), (from, top + height - GAP), "axis");
        // A narrow last group has its name left of the edge.
        let (x, class) = match first + count == layers.len() && to - from < 30.0 {
            true => (to, "name end"),
            false => ((from + to) / 2.0, "name middle"),
        };
        figure.text(x, 12.0, class, group);
        first += count;
    }
    let title = "weights of convolutions and linear layers, by name within each part";
    figure.text(left + width / 2.0, top + height, "tick middle", title);
    Some(figure)
}

/// The cosines between all task vectors; none for a single one.
pub(super) fn cosine_matrix(name: String, title: &str, similarity: &Similarity) -> Option<Figure> {
    let experts = similarity.cosines.len();
    if experts < 2 {
        return None;
    }
    let side = (240.0 / experts as f64).clamp(40.0, 52.0);
    let (left, top) = (58.0, 42.0);
    let size = side * experts as f64;
    let alt = format!("cosines between the task vectors of {experts} experts ({title})");
    let mut figure = Figure::new(name, alt, (left + size + 6.0).max(200.0), top + size + 6.0);
    figure.text(0.0, 13.0, "name start", title);
    for (i, row) in similarity.cosines.iter().enumerate() {
        let middle = (i as f64 + 0.5) * side;
        figure.text(left + middle, top - 7.0, "tick middle", &(i + 1).to_string());
        figure.text(left - 7.0, top + middle + 3.5, "tick end", &format!("expert {}", i + 1));
        for (j, cosine) in row.iter().enumerate() {
            let corner = (left + j as f64 * side, top + i as f64 * side);
            let shade = cosine.unwrap_or_default().abs() * 0.85;
            let class = if cosine.is_some_and(|c| c < 0.0) { "heat-second" } else { "heat" };
            figure.rectangle(corner, (side, side), class, shade);
            let class = if shade > 0.55 { "middle on-dark" } else { "middle" };
            let text = cosine.map_or_else(|| "–".to_string(), |cosine| fixed(cosine, 2));
            figure.text(corner.0 + side / 2.0, corner.1 + side / 2.0 + 4.0, class, &text);
        }
    }
    Some(figure)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::test_report::report_of;
    use super::*;

    fn statistics(experts: usize) -> TaskVectorStatistics {
        report_of(experts).task_vectors.unwrap()
    }

    fn labels(experts: usize) -> Vec<String> {
        (1..=experts).map(|expert| format!("expert {expert}")).collect()
    }

    /// The pieces of every path of a class, one list per strip.
    fn paths<'a>(figure: &'a str, class: &str) -> Vec<Vec<&'a str>> {
        let marked = format!("<path class=\"{class}\"");
        let outline =
            |rest: &'a str| rest.split("d=\"M").nth(1).unwrap().split('"').next().unwrap();
        figure.split(&marked).skip(1).map(|rest| outline(rest).split('M').collect()).collect()
    }

    #[test]
    fn layers_go_down_mid_up_rest_without_norms_and_biases() {
        let statistics = statistics(2);
        let shown = layers(&statistics);
        let mut groups: Vec<&str> = shown.iter().map(|tensor| tensor.group.as_str()).collect();
        groups.dedup();
        assert_eq!(groups, BLOCKS);
        assert_eq!(shown.len(), 12 + 5 + 18 + 3);
        assert!(shown.iter().all(|t| !t.name.contains("norm") && !t.name.ends_with("bias")));
        assert_eq!(groups_in_order(&statistics), BLOCKS);
    }

    #[test]
    fn each_expert_has_a_box_per_layer_at_its_quantiles() {
        let statistics = statistics(3);
        let figure = box_plots("a".into(), &statistics, &labels(3)).unwrap().inline();
        for class in ["whisker", "box", "median"] {
            let counts: Vec<usize> = paths(&figure, class).iter().map(Vec::len).collect();
            assert_eq!(counts, [38; 3], "{class}");
        }
        assert_eq!(figure.matches(">−0.01</text>").count(), 3, "each axis has numbers: {figure}");
        let shown = layers(&statistics);
        let experts = shown.iter().flat_map(|layer| &layer.experts);
        let ends: Vec<f64> = experts.map(|d| d.quantile_95.abs().max(d.quantile_5.abs())).collect();
        let reach = quantile(&ends, 0.98) * 1.05;
        // The third strip's axis has its zero at 36 + 2 * 82 + 31.
        let y = |value: f64| 231.0 - value / reach * 31.0;
        let d = &shown[5].experts[2];
        let numbers: Vec<f64> = paths(&figure, "box")[2][5]
            .split(['L', ' '])
            .map(|number| number.parse().unwrap())
            .collect();
        let expected = [y(d.lower_quartile), y(d.upper_quartile)];
        for (found, expected) in [numbers[1], numbers[5]].iter().zip(expected) {
            assert!((found - expected).abs() < 0.06, "{numbers:?} {expected}");
        }
    }

    #[test]
    fn task_vectors_of_zeros_can_be_drawn() {
        let mut statistics = statistics(2);
        for d in statistics.tensors.iter_mut().flat_map(|tensor| &mut tensor.experts) {
            (d.quantile_5, d.lower_quartile, d.median) = (0.0, 0.0, 0.0);
            (d.upper_quartile, d.quantile_95) = (0.0, 0.0);
        }
        let figure = box_plots("a".into(), &statistics, &labels(2)).unwrap().inline();
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
        statistics.tensors.retain(|tensor| tensor.name.contains("norm"));
        assert!(box_plots("a".into(), &statistics, &labels(2)).is_none());
    }

    #[test]
    fn every_cosine_stands_in_its_cell() {
        let mut similarity = statistics(4).whole;
        similarity.cosines[1][2] = None;
        let figure = cosine_matrix("a".into(), "whole", &similarity).unwrap().inline();
        let cells = figure.matches("<rect class=\"heat").count();
        assert_eq!(cells, 16);
        assert_eq!(figure.matches(">1.00</text>").count(), 4);
        assert_eq!(figure.matches(">–</text>").count(), 1);
        // The corners 0.62 - 3 * 0.34.
        assert_eq!(figure.matches(">−0.40</text>").count(), 2);
        let negative = "<rect class=\"heat-second\"";
        let values = similarity.cosines.iter().flatten().flatten();
        assert_eq!(figure.matches(negative).count(), values.filter(|c| **c < 0.0).count());
        assert!(cosine_matrix("a".into(), "whole", &statistics(1).whole).is_none());
    }
}
