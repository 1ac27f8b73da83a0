//! Descent by gradients: BFGS steps within bounds, for an objective that knows its derivatives.
//! (Nocedal and Wright 2006, "Numerical Optimization", algorithm 6.1 with the damped update of 18.3;
//! bounds by projection, Bertsekas 1982)
//!
//! One evaluation gives a value and all derivatives, so the number of evaluations hardly depends on the
//! number of weights: the search for weights per expert and group of parameters.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Search, Stop};
use super::region::Region;
use super::{SearchError, check_length};
use crate::linear_algebra::{Matrix, distance, dot, identity, norm, product, solve_positive};

/// Quasi-Newton steps with a line search. A value with its gradient is one evaluation. Ends before the
/// budget is spent when a step is shorter than `smallest_step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradientConfig {
    /// Where to start; `1 / experts` for each expert when not given.
    #[serde(default)]
    pub start: Option<Vec<f64>>,
    /// The length of the first step, Euclidean, in weights: later ones follow from the gradients.
    #[serde(default = "default_first_step")]
    pub first_step: f64,
    /// The lowest and the highest weight of an expert; none when not given.
    #[serde(default)]
    pub bounds: Option<[f64; 2]>,
    /// The end, as a length of a step.
    #[serde(default = "default_smallest_step")]
    pub smallest_step: f64,
    /// The most evaluations.
    pub max_evaluations: u64,
}

fn default_first_step() -> f64 {
    0.1
}

fn default_smallest_step() -> f64 {
    1e-4
}

/// The part of the promised decrease that a step must bring (Armijo).
const SUFFICIENT: f64 = 1e-4;

impl GradientConfig {
    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        check_length("first_step", self.first_step)?;
        check_length("smallest_step", self.smallest_step)?;
        let region = Region::new(self.bounds)?;
        region.start(self.start.as_deref(), &vec![0.0; num_weights]).map(|_| ())
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let region = Region::new(self.bounds)?;
        let start = region.start(self.start.as_deref(), &search.uniform_weights())?;
        let (value, gradient) = search.value_and_gradient_at(&start)?;
        let mut at = Point { weights: start, value, gradient };
        let mut curvature = Curvature::new(&at, self.first_step);
        loop {
            let Some(direction) = curvature.descent(&at, &region) else { return Ok(()) };
            let Some(next) = self.line_search(search, &at, &direction, &region)? else {
                if curvature.learned {
                    // What was learned may be wrong here: once more along the gradient.
                    curvature = Curvature::new(&at, self.first_step);
                    continue;
                }
                return Ok(());
            };
            curvature.learn(&at, &next);
            let step = distance(&at.weights, &next.weights);
            at = next;
            if step < self.smallest_step {
                return Ok(());
            }
        }
    }

    /// The first point along the direction, bent along the bounds, that is low enough; none when only
    /// steps shorter than the smallest are left.
    fn line_search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
        at: &Point,
        direction: &[f64],
        region: &Region,
    ) -> Result<Option<Point>, Stop<E>> {
        let mut scale = 1.0;
        loop {
            let along = at.weights.iter().zip(direction).map(|(w, d)| w + scale * d);
            let weights = region.nearest(&along.collect::<Vec<f64>>());
            let step: Vec<f64> =
                weights.iter().zip(&at.weights).map(|(to, from)| to - from).collect();
            let length = norm(&step);
            let slope = dot(&at.gradient, &step);
            if length == 0.0 || slope >= 0.0 {
                return Ok(None);
            }
            let (value, gradient) = search.value_and_gradient_at(&weights)?;
            if value <= at.value + SUFFICIENT * slope {
                return Ok(Some(Point { weights, value, gradient }));
            }
            if length < self.smallest_step {
                return Ok(None);
            }
            let end_slope = dot(&gradient, &step);
            scale *= cubic_minimum(at.value, slope, value, end_slope).clamp(0.1, 0.5);
        }
    }
}

/// Where in 0..1 the cubic with these values and slopes at both ends is lowest.
/// (Nocedal and Wright, equation 3.59)
fn cubic_minimum(value_0: f64, slope_0: f64, value_1: f64, slope_1: f64) -> f64 {
    let d1 = slope_0 + slope_1 - 3.0 * (value_1 - value_0);
    let d2 = (d1 * d1 - slope_0 * slope_1).max(0.0).sqrt();
    let place = 1.0 - (slope_1 + d2 - d1) / (slope_1 - slope_0 + 2.0 * d2);
    if place.is_finite() { place } else { 0.5 }
}

struct Point {
    weights: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// What is known about the second derivatives: a positive definite matrix.
struct Curvature {
    matrix: Matrix,
    learned: bool,
}

impl Curvature {
    /// Equal in all directions, such that the first step has the given length.
    fn new(at: &Point, first_step: f64) -> Self {
        let scale = (norm(&at.gradient) / first_step).max(f64::MIN_POSITIVE);
        Self { matrix: scaled_identity(at.weights.len(), scale), learned: false }
    }

    /// The Newton step of the weights that are free; those at a bound with the slope leading outside
    /// stay. None at a point where nothing leads down.
    fn descent(&self, at: &Point, region: &Region) -> Option<Vec<f64>> {
        let held = |i: usize| {
            (at.weights[i] <= region.low && at.gradient[i] > 0.0)
                || (at.weights[i] >= region.high && at.gradient[i] < 0.0)
        };
        let free: Vec<usize> = (0..at.weights.len()).filter(|&i| !held(i)).collect();
        let slopes: Vec<f64> = free.iter().map(|&i| -at.gradient[i]).collect();
        if norm(&slopes) == 0.0 {
            return None;
        }
        let matrix: Matrix =
            free.iter().map(|&i| free.iter().map(|&j| self.matrix[i][j]).collect()).collect();
        let mut direction = vec![0.0; at.weights.len()];
        for (place, step) in free.into_iter().zip(solve_positive(&matrix, &slopes)?) {
            direction[place] = step;
        }
        Some(direction)
    }

    /// The damped BFGS update.   (Nocedal and Wright, procedure 18.2)
    fn learn(&mut self, from: &Point, to: &Point) {
        let difference =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let step = difference(&to.weights, &from.weights);
        let change = difference(&to.gradient, &from.gradient);
        let along = dot(&step, &change);
        if !self.learned && along > 0.0 {
            // The first change says how curved the objective is.   (equation 6.20)
            self.matrix = scaled_identity(step.len(), dot(&change, &change) / along);
        }
        let image = product(&self.matrix, &step);
        let modelled = dot(&step, &image);
        let damping = match along >= 0.2 * modelled {
            true => 1.0,
            false => 0.8 * modelled / (modelled - along),
        };
        let change: Vec<f64> =
            change.iter().zip(&image).map(|(y, b)| damping * y + (1.0 - damping) * b).collect();
        let along = dot(&step, &change);
        for (i, row) in self.matrix.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry += change[i] * change[j] / along - image[i] * image[j] / modelled;
            }
        }
        self.learned = true;
    }
}

fn scaled_identity(n: usize, scale: f64) -> Matrix {
    let mut matrix = identity(n);
    for (i, row) in matrix.iter_mut().enumerate() {
        row[i] = scale;
    }
    matrix
}
