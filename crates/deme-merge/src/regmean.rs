//! RegMean: the linear layer whose outputs are nearest to those of the experts.   (Jin et al. 2023, eq. 2)
//!
//! For a layer `y = W x` with W `[out, in]` and Gram matrices `G_i = X_i^T X_i` of the experts' inputs,
//! `W_m = (sum_i W_i G_i) (sum_i G_i)^-1` minimises `sum_i |X_i W_m^T - X_i W_i^T|^2`. All other tensors are
//! averaged. In f64; for a layer with n inputs it takes two n x n matrices in memory and about n^3 / 3 +
//! out n^2 (N + 2) multiplications.

use rayon::prelude::*;

use crate::merge_error::{MergeError, ModelRole};
use crate::merge_inputs::TensorSet;
use crate::same_tensors::{check_finite, check_models_finite};
use crate::state_dict::{StateDict, StoredTensor, TensorHash, tensor_hash};

/// What is added to the diagonal, as a part of its mean: inputs that never occurred take the experts' mean,
/// and the equations have one solution even where there were fewer inputs than columns.
const RIDGE: f64 = 1e-6;

/// The Gram matrices of one layer, when there are some.
pub(crate) fn grams_of<'a>(name: &str, statistics: &'a [StateDict]) -> Vec<&'a StoredTensor> {
    statistics.iter().filter_map(|statistics| statistics.get(name)).collect()
}

/// The merged weight of one layer, row major, and the hashes of its Gram matrices.
pub(crate) fn merge_layer(
    tensor: &TensorSet<'_>,
    grams: &[&StoredTensor],
    alpha: f64,
) -> Result<(Vec<f32>, Vec<TensorHash>), MergeError> {
    let name = tensor.name;
    check_models_finite(tensor, 0..tensor.theta.numel())?;
    let d_in = tensor.theta.shape()[1];
    let rows = tensor.theta.shape()[0];
    let mut sum = vec![0.0; d_in * d_in];
    let mut products = vec![0.0; rows * d_in];
    let mut hashes = Vec::new();
    let mut values = Vec::with_capacity(grams.len());
    for (expert, gram) in grams.iter().enumerate() {
        let gram = gram.f32_values()?;
        check_finite(&gram, ModelRole::Statistics(expert), name)?;
        values.push(gram);
    }
    let ridge = ridge(values.iter().map(|gram| &gram[..]), d_in);
    for ((gram, stored), theta_i) in values.iter().zip(grams).zip(&tensor.experts) {
        let gram = shrunk(gram, d_in, alpha, ridge);
        sum.par_iter_mut().zip(&gram).for_each(|(sum, g)| *sum += g);
        let weight = theta_i.f32_values()?;
        // A row of W_i G_i: G_i's rows times the row's entries, added from the first to the last.
        products.par_chunks_mut(d_in.max(1)).zip(weight.par_chunks(d_in.max(1))).for_each(
            |(product, weight)| {
                for (&w, gram) in weight.iter().zip(gram.chunks(d_in)) {
                    add_scaled(product, f64::from(w), gram);
                }
            },
        );
        hashes.push(tensor_hash(name, stored));
        tensor.files.note_read(stored, 0..stored.numel());
    }
    if !cholesky(&mut sum, d_in) {
        return Err(MergeError::NotGram { name: name.to_owned() });
    }
    products.par_chunks_mut(d_in.max(1)).for_each(|row| solve(&sum, row));
    Ok((products.into_iter().map(|value| value as f32).collect(), hashes))
}

/// The part of each Gram matrix that is added to its diagonal.
fn ridge<'a>(grams: impl Iterator<Item = &'a [f32]>, d_in: usize) -> f64 {
    let (mut trace, mut count) = (0.0, 0);
    for gram in grams {
        trace += gram.iter().step_by(d_in + 1).map(|&g| f64::from(g)).sum::<f64>();
        count += d_in;
    }
    match trace > 0.0 {
        true => RIDGE * trace / count as f64,
        false => 1.0,
    }
}

/// `alpha G + (1 - alpha) diag(G) + ridge I`   (section 3.3: entries off the diagonal are decreased)
fn shrunk(gram: &[f32], d_in: usize, alpha: f64, ridge: f64) -> Vec<f64> {
    let mut shrunk: Vec<f64> = gram.iter().map(|&g| alpha * f64::from(g)).collect();
    for (value, &g) in shrunk.iter_mut().step_by(d_in + 1).zip(gram.iter().step_by(d_in + 1)) {
        *value = f64::from(g) + ridge;
    }
    shrunk
}

/// Replaces the lower triangle of a symmetric matrix by L with `L L^T = A`; false when A is not positive
/// definite.
fn cholesky(a: &mut [f64], n: usize) -> bool {
    for column in 0..n {
        let (above, below) = a.split_at_mut((column + 1) * n);
        let pivot_row = &mut above[column * n..];
        let pivot = pivot_row[column] - dot(&pivot_row[..column], &pivot_row[..column]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let pivot = pivot.sqrt();
        pivot_row[column] = pivot;
        let pivot_row = &pivot_row[..column];
        below.par_chunks_mut(n).for_each(|row| {
            row[column] = (row[column] - dot(&row[..column], pivot_row)) / pivot;
        });
    }
    true
}

/// Replaces b by x with `L L^T x = b`.
fn solve(l: &[f64], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        b[i] = (b[i] - dot(&l[i * n..i * n + i], &b[..i])) / l[i * n + i];
    }
    for i in (0..n).rev() {
        b[i] /= l[i * n + i];
        let x = b[i];
        add_scaled(&mut b[..i], -x, &l[i * n..i * n + i]);
    }
}

fn add_scaled(sum: &mut [f64], scale: f64, values: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += scale * value;
    }
}

/// Eight sums side by side, always in the same order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    sums.into_iter().chain(rest_a.iter().zip(rest_b).map(|(x, y)| x * y)).sum()
}
