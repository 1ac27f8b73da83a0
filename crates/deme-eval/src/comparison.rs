//! Two sets of measurements, side by side, metric by metric.

use crate::metrics::metric_row;
use crate::{Direction, EvalError, Measurement};
use serde::Serialize;

/// Two models' measurements of the same metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The metrics both have, in the order of the first.
    pub metrics: Vec<ComparedMetric>,
    /// Metrics that only the first has.
    pub only_first: Vec<String>,
    /// Metrics that only the second has.
    pub only_second: Vec<String>,
}

/// Two measurements of one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedMetric {
    /// The metric.
    pub metric: String,
    /// Which numbers are good, where the table of metrics knows.
    pub direction: Option<Direction>,
    /// The first measurement.
    pub first: Measurement,
    /// The second one.
    pub second: Measurement,
    /// Second less first.
    pub difference: f64,
    /// The root of the sum of both squared standard errors, where both are known.
    pub combined_std_error: Option<f64>,
    /// Which side is better, when the difference is more than two combined standard errors, or when these
    /// are unknown and the numbers differ.
    pub better: Option<Side>,
    /// What a reader should know; with unlike measurements each field that differs, with both values.
    pub warnings: Vec<String>,
}

/// One of two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

/// Pairs measurements by metric.
///
/// # Errors
/// [`EvalError::UnlikeProtocols`] naming every field, of every metric, in which two of a pair differ,
/// the model aside; [`EvalError::SeveralOfMetric`] when a side has a metric more than once, as of
/// several models; [`EvalError::NothingInCommon`].
pub fn compare(first: &[Measurement], second: &[Measurement]) -> Result<Comparison, EvalError> {
    let comparison = compare_anyway(first, second)?;
    let unlike = |pair: &ComparedMetric| -> Vec<String> {
        let fields = pair.first.protocol.unlike(&pair.second.protocol).into_iter();
        fields.map(|field| format!("{}: {field}", pair.metric)).collect()
    };
    let fields: Vec<String> = comparison.metrics.iter().flat_map(unlike).collect();
    match comparison.metrics.iter().find(|pair| !unlike(pair).is_empty()) {
        None => Ok(comparison),
        Some(pair) => Err(EvalError::UnlikeProtocols {
            first: pair.first.protocol.model.clone(),
            other: pair.second.protocol.model.clone(),
            fields,
        }),
    }
}

/// As [`compare`], but what was measured differently stands side by side with warnings.
///
/// # Errors
/// [`EvalError::SeveralOfMetric`], [`EvalError::NothingInCommon`].
pub fn compare_anyway(
    first: &[Measurement],
    second: &[Measurement],
) -> Result<Comparison, EvalError> {
    for side in [first, second] {
        for (index, measurement) in side.iter().enumerate() {
            let metric = &measurement.protocol.metric;
            if let Some(other) = find(&side[..index], metric) {
                return Err(EvalError::SeveralOfMetric {
                    metric: metric.clone(),
                    first: other.protocol.model.clone(),
                    other: measurement.protocol.model.clone(),
                });
            }
        }
    }
    let only = |side: &[Measurement], other: &[Measurement]| -> Vec<String> {
        let metrics = side.iter().map(|measurement| measurement.protocol.metric.clone());
        metrics.filter(|metric| find(other, metric).is_none()).collect()
    };
    let pairs = first.iter().filter_map(|a| Some((a, find(second, &a.protocol.metric)?)));
    let metrics: Vec<ComparedMetric> = pairs.map(|(a, b)| ComparedMetric::of(a, b)).collect();
    if metrics.is_empty() {
        return Err(EvalError::NothingInCommon {
            first: only(first, second),
            second: only(second, first),
        });
    }
    let (only_first, only_second) = (only(first, second), only(second, first));
    Ok(Comparison { metrics, only_first, only_second })
}

fn find<'m>(side: &'m [Measurement], metric: &str) -> Option<&'m Measurement> {
    side.iter().find(|measurement| measurement.protocol.metric == metric)
}

impl ComparedMetric {
    fn of(first: &Measurement, second: &Measurement) -> Self {
        let (left, right) = (&first.protocol, &second.protocol);
        let direction = metric_row(&left.metric).map(|row| row.direction);
        let errors = first.std_error.zip(second.std_error);
        let combined_std_error = errors.map(|(a, b)| a.hypot(b));
        let difference = second.value - first.value;
        let clear = match combined_std_error {
            Some(error) => difference.abs() > 2.0 * error,
            None => difference != 0.0,
        };
        let unlike = left.unlike(right);
        // Numbers that were made differently say nothing about which side is better.
        let better = direction.filter(|_| clear && unlike.is_empty()).map(|direction| {
            if direction.better(second.value, first.value) { Side::Second } else { Side::First }
        });
        let mut warnings = unlike;
        warnings.extend(left.comparison_notes(right));
        Self {
            metric: left.metric.clone(),
            direction,
            first: first.clone(),
            second: second.clone(),
            difference,
            combined_std_error,
            better,
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::protocol::{measurement, measurement_from_elsewhere};

    fn of_metric(metric: &str, model: &str, value: f64, std_error: Option<f64>) -> Measurement {
        let mut measurement = measurement(model, value);
        measurement.protocol.metric = metric.to_owned();
        Measurement { std_error, ..measurement }
    }

    #[test]
    fn metrics_are_paired_and_the_better_side_follows_their_direction() {
        let a = [
            of_metric("fid", "before", 5.0, Some(0.3)),
            of_metric("recall", "before", 0.4, None),
            of_metric("kid", "before", 0.1, None),
        ];
        let b = [
            of_metric("recall", "merged", 0.5, None),
            of_metric("fid", "merged", 4.0, Some(0.4)),
            of_metric("coverage", "merged", 0.2, None),
        ];
        let comparison = compare(&a, &b).unwrap();
        assert_eq!(
            (&comparison.only_first[..], &comparison.only_second[..]),
            (&["kid".to_owned()][..], &["coverage".to_owned()][..])
        );
        let [fid, recall] = &comparison.metrics[..] else { panic!() };
        assert_eq!((fid.metric.as_str(), fid.difference), ("fid", -1.0));
        // Within two combined standard errors, 2 * 0.5, nothing is better.
        assert_eq!((fid.combined_std_error, fid.better), (Some(0.5), None));
        assert_eq!(recall.better, Some(Side::Second));
        assert_eq!(recall.direction, Some(Direction::Higher));
        let b = [of_metric("fid", "merged", 3.9, Some(0.4))];
        let clear = compare(&a[..1], &b).unwrap();
        assert_eq!(clear.metrics[0].better, Some(Side::Second));
        let back = compare(&b, &a[..1]).unwrap();
        assert_eq!((back.metrics[0].better, back.metrics[0].difference), (Some(Side::First), 1.1));
    }

    #[test]
    fn unlike_measurements_are_refused_field_by_field_and_shown_by_force() {
        let a = [of_metric("fid", "before", 5.0, None), of_metric("kid", "before", 1.0, None)];
        let mut b = [of_metric("fid", "merged", 4.0, None), of_metric("kid", "merged", 0.5, None)];
        b[0].protocol.image_count = 256;
        b[0].protocol.resizing = "other".to_owned();
        b[1].protocol.steps = Some(20);
        let error = compare(&a, &b).unwrap_err();
        let EvalError::UnlikeProtocols { fields, .. } = error else { panic!("{error}") };
        assert_eq!(
            fields,
            [
                "fid: resizing is \"none\" and \"other\"",
                "fid: image_count is 512 and 256",
                "kid: steps is 50 and 20",
            ]
        );
        let forced = compare_anyway(&a, &b).unwrap();
        assert_eq!(forced.metrics[0].warnings.len(), 2);
        assert_eq!((forced.metrics[0].difference, forced.metrics[0].better), (-1.0, None));
    }

    #[test]
    fn two_unknowns_are_compared_with_a_note_and_one_is_refused() {
        let (a, b) = (measurement_from_elsewhere("a", 2.0), measurement_from_elsewhere("b", 1.0));
        let comparison = compare(std::slice::from_ref(&a), &[b]).unwrap();
        assert_eq!(comparison.metrics[0].warnings.len(), 1);
        assert_eq!(comparison.metrics[0].better, Some(Side::Second));
        let known = measurement("ours", 1.0);
        assert!(matches!(compare(&[a], &[known]), Err(EvalError::UnlikeProtocols { .. })));
    }

    #[test]
    fn several_models_and_nothing_in_common_are_refused() {
        let (a, b) = (measurement("before", 2.0), measurement("merged", 1.0));
        let error = compare(&[a.clone(), b.clone()], std::slice::from_ref(&a)).unwrap_err();
        let EvalError::SeveralOfMetric { metric, first, other } = error else { panic!("{error}") };
        assert_eq!([&metric[..], &first, &other], ["fd_tiny_clip", "before", "merged"]);
        let kid = of_metric("kid", "before", 1.0, None);
        let error = compare(&[a], &[kid]).unwrap_err();
        let EvalError::NothingInCommon { first, second } = error else { panic!("{error}") };
        assert_eq!(
            (&first[..], &second[..]),
            (&["fd_tiny_clip".to_owned()][..], &["kid".to_owned()][..])
        );
        assert!(matches!(compare(&[], &[b]), Err(EvalError::NothingInCommon { .. })));
    }
}
