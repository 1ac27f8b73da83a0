//! A quadratic fitted to the evaluations, whose minimum is evaluated next: for the smooth basin that the
//! loss over merging weights is.   (Conn, Scheinberg and Vicente 2009, "Introduction to Derivative-Free
//! Optimization"; first points after Powell 2002, UOBYQA)
//!
//! The model is trusted within a distance of the best weights only. Where it keeps its promise the
//! distance grows, where it does not it shrinks. With more than about sixteen weights the first points
//! alone are too many: `gradient` is then the search to use.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Evaluation, Search, Stop};
use super::quadratic_fit::{Quadratic, Shape, scaled};
use super::region::Region;
use super::{SearchError, check_length};
use crate::linear_algebra::{Eigen, Matrix, dot, norm, product, symmetric_eigen};

/// First `(N + 1)(N + 2) / 2` points around the start, for N weights, which fix a quadratic; then the
/// minimum of the quadratic fitted to all points so far, within a trust region around the best. Ends
/// before the budget is spent when the region is smaller than `smallest_radius`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuadraticModelConfig {
    /// Where to start; `1 / experts` for each expert when not given.
    #[serde(default)]
    pub start: Option<Vec<f64>>,
    /// How far the first points lie from the start along each axis, and the model's region at first, in
    /// weights.
    #[serde(default = "default_radius")]
    pub radius: f64,
    /// The end, as a radius.
    #[serde(default = "default_smallest_radius")]
    pub smallest_radius: f64,
    /// The lowest and the highest weight of an expert; none when not given.
    #[serde(default)]
    pub bounds: Option<[f64; 2]>,
    /// The most evaluations.
    pub max_evaluations: u64,
}

fn default_radius() -> f64 {
    0.2
}

fn default_smallest_radius() -> f64 {
    1e-3
}

/// A region never grows beyond this many times the first.
const LARGEST_GROWTH: f64 = 16.0;

impl QuadraticModelConfig {
    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        check_length("radius", self.radius)?;
        check_length("smallest_radius", self.smallest_radius)?;
        let region = Region::new(self.bounds)?;
        region.start(self.start.as_deref(), &vec![0.0; num_weights]).map(|_| ())
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let region = Region::new(self.bounds)?;
        let start = region.start(self.start.as_deref(), &search.uniform_weights())?;
        // Within bounds there is always room for a step of half their distance.
        let first_radius = self.radius.min((region.high - region.low) / 2.0);
        evaluate_around(search, &start, first_radius, &region)?;

        let mut radius = first_radius;
        while radius >= self.smallest_radius {
            let best = search.best().expect("the start is evaluated").clone();
            let model = fitted(search.evaluations(), &best, radius);
            let step = lowest_step(&model, &best.weights, radius, &region);
            let length = norm(&step);
            let promised = -model.change(&step);
            // Nothing to gain that the values could show.
            if !promised.is_finite() || promised <= 4.0 * f64::EPSILON * best.value.abs() {
                radius /= 2.0;
                continue;
            }
            let next = moved(&best.weights, &step, &region);
            let gained = best.value - search.value_at(&next)?;
            let kept = gained / promised;
            if kept >= 0.7 && length > 0.9 * radius {
                radius = (2.0 * radius).min(LARGEST_GROWTH * first_radius);
            } else if kept >= 0.1 {
                // A step that ends well inside does not need the whole region.
                if length < radius / 2.0 {
                    radius /= 2.0;
                }
            } else if !self.fill_in(search, radius, &region)? {
                radius = length.clamp(radius / 8.0, radius / 2.0);
            }
        }
        Ok(())
    }

    /// Evaluates a point in the direction in which the points near the best say least; false when they
    /// surround it well. A model that failed may have failed for want of those.
    fn fill_in<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
        radius: f64,
        region: &Region,
    ) -> Result<bool, Stop<E>> {
        let best = search.best().expect("the start is evaluated").clone();
        let n = best.weights.len();
        let mut spread: Matrix = vec![vec![0.0; n]; n];
        for near in search.evaluations() {
            let pairs = near.weights.iter().zip(&best.weights);
            let offset: Vec<f64> = pairs.map(|(near, best)| (near - best) / radius).collect();
            if norm(&offset) <= 2.0 {
                for (row, x) in spread.iter_mut().zip(&offset) {
                    row.iter_mut().zip(&offset).for_each(|(entry, y)| *entry += x * y);
                }
            }
        }
        let eigen = symmetric_eigen(&spread);
        if eigen.values[0] > 0.1 {
            return Ok(false);
        }
        let model = fitted(search.evaluations(), &best, radius);
        let steps = [radius, -radius].map(|length| scaled(&eigen.vectors[0], length));
        let steps = steps.map(|step| (model.change(&step), moved(&best.weights, &step, region)));
        let [(one, there), (other, opposite)] = steps;
        let before = search.done();
        search.value_at(if one <= other { &there } else { &opposite })?;
        Ok(search.done() > before)
    }
}

/// The points that fix a quadratic: two on every axis, one in every plane of two axes, on the lower side
/// of both.
fn evaluate_around<E: Debug + Display>(
    search: &mut Search<'_, E>,
    start: &[f64],
    radius: f64,
    region: &Region,
) -> Result<(), Stop<E>> {
    search.value_at(start)?;
    let at = |offsets: &[(usize, f64)]| {
        let mut weights = start.to_vec();
        for &(axis, offset) in offsets {
            weights[axis] = (weights[axis] + offset).clamp(region.low, region.high);
        }
        weights
    };
    let mut lower = Vec::new();
    for (axis, &weight) in start.iter().enumerate() {
        // Where a bound is too near for a point on either side, both lie on the other.
        let (first, second) = match (region.high - weight >= radius, weight - region.low >= radius)
        {
            (true, true) => (radius, -radius),
            (true, false) => (radius, radius / 2.0),
            (false, _) => (-radius, -radius / 2.0),
        };
        let values =
            (search.value_at(&at(&[(axis, first)]))?, search.value_at(&at(&[(axis, second)]))?);
        lower.push(if values.0 <= values.1 { first } else { second });
    }
    for j in 0..start.len() {
        for i in 0..j {
            search.value_at(&at(&[(i, lower[i]), (j, lower[j])]))?;
        }
    }
    Ok(())
}

/// The quadratic around the best weights.
fn fitted(evaluations: &[Evaluation], centre: &Evaluation, radius: f64) -> Quadratic {
    let step = |evaluation: &Evaluation| -> Vec<f64> {
        let pairs = evaluation.weights.iter().zip(&centre.weights);
        pairs.map(|(weight, centre)| weight - centre).collect()
    };
    let steps: Vec<Vec<f64>> = evaluations.iter().map(step).collect();
    let values: Vec<f64> = evaluations.iter().map(|evaluation| evaluation.value).collect();
    Quadratic::fitted(&steps, &values, radius, Shape::Full)
}

/// The step to the lowest point within the radius and the bounds. Exact without bounds; with bounds,
/// weights whose step leads outside are held at the bound and the rest is solved again.
fn lowest_step(model: &Quadratic, centre: &[f64], radius: f64, region: &Region) -> Vec<f64> {
    let n = centre.len();
    let mut held: Vec<Option<f64>> = vec![None; n];
    loop {
        let mut step: Vec<f64> = held.iter().map(|held| held.unwrap_or(0.0)).collect();
        let free: Vec<usize> = (0..n).filter(|&i| held[i].is_none()).collect();
        let room = (radius * radius - dot(&step, &step)).max(0.0).sqrt();
        if free.is_empty() || room == 0.0 {
            return step;
        }
        let slope = product(&model.hessian, &step);
        let gradient: Vec<f64> = free.iter().map(|&i| model.gradient[i] + slope[i]).collect();
        let hessian: Matrix =
            free.iter().map(|&i| free.iter().map(|&j| model.hessian[i][j]).collect()).collect();
        for (&i, s) in free.iter().zip(lowest_in_ball(&gradient, &hessian, room)) {
            step[i] = s;
        }
        let mut inside = true;
        for i in free {
            if !region.holds(centre[i] + step[i]) {
                let bound = (centre[i] + step[i]).clamp(region.low, region.high);
                held[i] = Some(bound - centre[i]);
                inside = false;
            }
        }
        if inside {
            return step;
        }
    }
}

/// The step of at most the given length that makes `gradient s + s hessian s / 2` lowest, whatever the
/// signs of the eigenvalues: `(hessian + shift) s = -gradient` with the smallest shift that makes the
/// matrix positive and the step short enough.   (Moré and Sorensen 1983)
fn lowest_in_ball(gradient: &[f64], hessian: &Matrix, radius: f64) -> Vec<f64> {
    let eigen = symmetric_eigen(hessian);
    let slopes = eigen.coordinates(gradient);
    let lowest = eigen.values[0];
    let size = eigen.values.iter().fold(0.0f64, |size, value| size.max(value.abs()));
    let step = |shift: f64| -> Vec<f64> {
        let steps = slopes
            .iter()
            .zip(&eigen.values)
            .map(|(&slope, value)| if slope == 0.0 { 0.0 } else { -slope / (value + shift) });
        steps.collect()
    };
    if lowest > 1e-12 * size {
        let newton = step(0.0);
        if norm(&newton) <= radius {
            return eigen.combination(&newton);
        }
    }
    // The length falls from the pole at -lowest on; beyond `high` it is short enough.
    let mut low = (-lowest).max(0.0);
    let mut high = low + norm(&slopes) / radius + 1e-12 * size;
    let barely = step(low + 1e-12 * size);
    if norm(&barely) < radius {
        return eigen.combination(&lengthened(barely, radius, &eigen));
    }
    for _ in 0..200 {
        let middle = low + (high - low) / 2.0;
        if norm(&step(middle)) > radius {
            low = middle;
        } else {
            high = middle;
        }
    }
    eigen.combination(&step(high))
}

/// The hard case: no shift makes the step long enough, as the gradient has no part along the direction
/// of the lowest eigenvalue. Going that way, to either side, fills the radius. In the eigenvectors'
/// coordinates.
fn lengthened(mut step: Vec<f64>, radius: f64, eigen: &Eigen) -> Vec<f64> {
    if eigen.values[0] < 0.0 {
        let rest = (radius * radius - dot(&step, &step)).max(0.0);
        step[0] += if step[0] < 0.0 { -rest.sqrt() } else { rest.sqrt() };
        let length = norm(&step);
        step = scaled(&step, radius / length);
    }
    step
}

fn moved(weights: &[f64], step: &[f64], region: &Region) -> Vec<f64> {
    let there: Vec<f64> = weights.iter().zip(step).map(|(w, s)| w + s).collect();
    region.nearest(&there)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(gradient: &[f64], hessian: &Matrix, step: &[f64]) -> f64 {
        dot(gradient, step) + dot(step, &product(hessian, step)) / 2.0
    }

    fn vector(length: usize) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(-1.0f64..1.0, length)
    }

    proptest! {
        /// No point of the ball is lower, whatever the signs of the eigenvalues, and in the hard case,
        /// where the gradient has no part along the lowest eigenvector.
        #[test]
        fn the_step_is_the_lowest_of_the_ball(
            entries in prop::collection::vec(vector(4), 4),
            mut gradient in vector(4),
            others in prop::collection::vec(vector(4), 50),
            radius in 0.05f64..3.0,
            hard: bool,
        ) {
            let hessian: Matrix =
                (0..4).map(|i| (0..4).map(|j| entries[i][j] + entries[j][i]).collect()).collect();
            if hard {
                let lowest = &symmetric_eigen(&hessian).vectors[0];
                let along = dot(&gradient, lowest);
                gradient.iter_mut().zip(lowest).for_each(|(g, v)| *g -= along * v);
            }
            let step = lowest_in_ball(&gradient, &hessian, radius);
            prop_assert!(norm(&step) <= radius * (1.0 + 1e-9));
            let found = value(&gradient, &hessian, &step);
            for other in others {
                let length = norm(&other).max(1e-3);
                for length in [other.iter().map(|x| x.abs()).fold(0.0, f64::max) * radius, radius]
                    .map(|wanted| wanted / length)
                {
                    let there = value(&gradient, &hessian, &scaled(&other, length));
                    prop_assert!(found <= there + 1e-7, "{found} {there}");
                }
            }
        }

        #[test]
        fn a_fit_of_a_quadratic_is_that_quadratic(
            entries in prop::collection::vec(vector(3), 3),
            gradient in vector(3),
            centre in vector(3),
            radius in 0.01f64..2.0,
        ) {
            let hessian: Matrix =
                (0..3).map(|i| (0..3).map(|j| entries[i][j] + entries[j][i]).collect()).collect();
            let mut steps = vec![vec![0.0; 3]];
            for i in 0..3 {
                for (j, length) in (0..=i).flat_map(|j| [(j, 0.4), (j, -0.3)]) {
                    let mut step = vec![0.0; 3];
                    step[i] += 0.2;
                    step[j] += length;
                    steps.push(step);
                }
            }
            let evaluations: Vec<Evaluation> = steps
                .iter()
                .map(|step| Evaluation {
                    weights: step.iter().zip(&centre).map(|(s, c)| s + c).collect(),
                    value: 0.7 + value(&gradient, &hessian, step),
                    gradient: None,
                    seconds: None,
                })
                .collect();
            let found = fitted(&evaluations, &evaluations[0], radius);
            prop_assert!((found.value - 0.7).abs() < 1e-9);
            for (found, expected) in found.gradient.iter().zip(&gradient) {
                prop_assert!((found - expected).abs() < 1e-7);
            }
            for (found, expected) in found.hessian.iter().flatten().zip(hessian.iter().flatten()) {
                prop_assert!((found - expected).abs() < 1e-6);
            }
        }
    }
}
