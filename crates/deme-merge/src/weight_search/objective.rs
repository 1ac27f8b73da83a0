//! What a search makes small: a function of the merging weights, with or without its gradient.

use std::fmt::{Debug, Display};

/// A number that says how good weights are; lower is better. Equal weights must give equal numbers.
///
/// Every closure `|weights: &[f64]| -> Result<f64, E>` is one; [`WithGradient`] makes one of a closure
/// that computes the gradient too.
pub trait Objective {
    /// Why it could not be computed.
    type Error: Debug + Display;

    /// The number at `weights`, one weight per expert (and group of parameters).
    ///
    /// # Errors
    /// Its own.
    fn value(&mut self, weights: &[f64]) -> Result<f64, Self::Error>;

    /// The number and its derivative by each weight, in the order of the weights; none for an objective
    /// that has no derivatives, which is what an objective is unless it says otherwise.
    fn value_and_gradient(&mut self, weights: &[f64]) -> Option<ValueAndGradient<Self::Error>> {
        let _ = weights;
        None
    }
}

/// An objective at some weights and its derivative by each weight.
pub type ValueAndGradient<E> = Result<(f64, Vec<f64>), E>;

impl<F, E> Objective for F
where
    F: FnMut(&[f64]) -> Result<f64, E>,
    E: Debug + Display,
{
    type Error = E;

    fn value(&mut self, weights: &[f64]) -> Result<f64, E> {
        self(weights)
    }
}

/// An objective that comes with its gradient: a closure
/// `|weights: &[f64]| -> Result<(f64, Vec<f64>), E>`.
pub struct WithGradient<F>(pub F);

impl<F, E> Objective for WithGradient<F>
where
    F: FnMut(&[f64]) -> ValueAndGradient<E>,
    E: Debug + Display,
{
    type Error = E;

    fn value(&mut self, weights: &[f64]) -> Result<f64, E> {
        self.0(weights).map(|(value, _)| value)
    }

    fn value_and_gradient(&mut self, weights: &[f64]) -> Option<ValueAndGradient<E>> {
        Some(self.0(weights))
    }
}
