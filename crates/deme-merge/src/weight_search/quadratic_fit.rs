//! A quadratic fitted to evaluations by weighted least squares. Where to go with it is the matter of
//! `quadratic_model` and `cma_es`.

use crate::linear_algebra::{Matrix, dot, least_squares, norm, product};

/// Which second derivatives are fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Those by one weight: `2 N + 1` coefficients for N weights.
    Diagonal,
    /// All: `(N + 1)(N + 2) / 2` coefficients.
    Full,
}

impl Shape {
    /// How many points fix a quadratic.
    pub(super) fn coefficients(self, num_weights: usize) -> usize {
        match self {
            Self::Diagonal => 2 * num_weights + 1,
            Self::Full => (num_weights + 1) * (num_weights + 2) / 2,
        }
    }
}

/// `value + gradient s + s hessian s / 2` for a step `s` from a centre.
pub(super) struct Quadratic {
    pub(super) value: f64,
    pub(super) gradient: Vec<f64>,
    pub(super) hessian: Matrix,
}

impl Quadratic {
    /// Fits the values at `steps` from the centre, of which there must be at least as many as
    /// coefficients. What a quadratic leaves out of a smooth function grows with the third power of the
    /// distance, so a point counts the less the farther it lies beyond `radius`.
    pub(super) fn fitted(steps: &[Vec<f64>], values: &[f64], radius: f64, shape: Shape) -> Self {
        let n = steps[0].len();
        let pairs: Vec<(usize, usize)> = match shape {
            Shape::Diagonal => (0..n).map(|i| (i, i)).collect(),
            Shape::Full => (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))).collect(),
        };
        let mut rows = Vec::with_capacity(steps.len());
        let mut right = Vec::with_capacity(steps.len());
        for (step, value) in steps.iter().zip(values) {
            // In units of the radius, so that all coefficients are of one size.
            let step = scaled(step, 1.0 / radius);
            let mut row = vec![1.0];
            row.extend(&step);
            row.extend(pairs.iter().map(|&(i, j)| {
                let product = step[i] * step[j];
                if i == j { product / 2.0 } else { product }
            }));
            let trust = 1.0 / (1.0 + norm(&step).powi(3));
            rows.push(scaled(&row, trust));
            right.push(trust * (value - values[0]));
        }
        let coefficients = least_squares(rows, right);
        let mut hessian = vec![vec![0.0; n]; n];
        for (&(i, j), second) in pairs.iter().zip(&coefficients[n + 1..]) {
            hessian[i][j] = second / (radius * radius);
            hessian[j][i] = hessian[i][j];
        }
        Self {
            value: values[0] + coefficients[0],
            gradient: scaled(&coefficients[1..=n], 1.0 / radius),
            hessian,
        }
    }

    /// The value at the end of a step.
    pub(super) fn at(&self, step: &[f64]) -> f64 {
        self.value + self.change(step)
    }

    /// The change of the value by a step.
    pub(super) fn change(&self, step: &[f64]) -> f64 {
        dot(&self.gradient, step) + dot(step, &product(&self.hessian, step)) / 2.0
    }
}

pub(super) fn scaled(vector: &[f64], factor: f64) -> Vec<f64> {
    vector.iter().map(|x| factor * x).collect()
}
