//! Merges experts into one model: `theta_m = theta + sum_i w_i (theta_i - theta)` and its relatives.
//!
//! First everything is checked, then each tensor is read once per pass, straight from the mapped files:
//! only the merged model is held in memory. Arithmetic is f32 whatever the stored dtype, experts are added
//! in their order, and results are rounded to the nearest, ties to even. What the methods are is said in
//! `merge_method`; merging the same models hundreds of times is the matter of `merge_plan`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rayon::prelude::*;
use safetensors::Dtype;

use crate::merge_error::{MergeError, ModelRole, TensorMismatch};
use crate::merge_method::{MergeMethod, f32_weights};
use crate::state_dict::{StateDict, StoredTensor};
use crate::ties::Ties;

/// Merges `experts`, all finetuned from `theta_pre`.
///
/// Floating-point tensors (f32, f16, bf16) are merged; all others must be equal in every model and are
/// copied. The metadata of the result says how it was made: `merge.method`, `merge.weights` (where the
/// method has some), and the content hashes `merge.theta_pre` and `merge.experts`.
///
/// # Errors
/// [`MergeError::Mismatch`] lists every missing, extra or differently shaped or typed tensor of every
/// expert; the other variants say what is wrong with the settings or the numbers.
pub fn merge(
    theta_pre: &StateDict,
    experts: &[StateDict],
    method: &MergeMethod,
) -> Result<StateDict, MergeError> {
    method.check(experts.len())?;
    check_same_tensors(theta_pre, experts)?;

    let combination = match *method {
        MergeMethod::Ties { density, scale } => {
            check_all_finite(theta_pre, experts)?;
            let ties = Ties::prepare(theta_pre, experts, density, scale as f32)?;
            Combination::Ties(ties)
        }
        MergeMethod::Linear { .. } | MergeMethod::Uniform => {
            let weights = method.weights(experts.len()).expect("the linear methods have weights");
            Combination::Linear(f32_weights(&weights, experts.len())?)
        }
    };

    let tensors: Vec<(&str, &StoredTensor)> = theta_pre.iter().collect();
    // Errors are looked at in the order of the names, whichever thread was first.
    let results: Vec<Result<StoredTensor, MergeError>> = tensors
        .par_iter()
        .map(|&(name, stored)| merge_tensor(name, stored, experts, &combination))
        .collect();
    let mut merged = StateDict::new();
    for ((name, _), result) in tensors.into_iter().zip(results) {
        merged.insert(name.to_owned(), result?);
    }
    record_provenance(&mut merged, theta_pre, experts, method);
    Ok(merged)
}

/// A method with all it must know before the first tensor is merged.
enum Combination {
    Linear(Vec<f32>),
    Ties(Ties),
}

/// True for the dtypes that are merged; tensors of others are constants of the architecture.
pub(crate) fn is_mergeable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Checks that all models hold the same tensors, and that those which cannot be merged are equal.
///
/// # Errors
/// [`MergeError::Mismatch`] with every difference.
pub fn check_same_tensors(theta_pre: &StateDict, experts: &[StateDict]) -> Result<(), MergeError> {
    let mut mismatches = Vec::new();
    for (expert, theta_i) in experts.iter().enumerate() {
        let names: BTreeSet<&str> = theta_pre.names().chain(theta_i.names()).collect();
        for name in names {
            mismatches.extend(mismatch(expert, name, theta_pre.get(name), theta_i.get(name)));
        }
    }
    if mismatches.is_empty() {
        return Ok(());
    }
    Err(MergeError::Mismatch { mismatches })
}

fn mismatch(
    expert: usize,
    name: &str,
    expected: Option<&StoredTensor>,
    found: Option<&StoredTensor>,
) -> Option<TensorMismatch> {
    let name = name.to_owned();
    let (expected, found) = match (expected, found) {
        (Some(expected), Some(found)) => (expected, found),
        (_, None) => return Some(TensorMismatch::Missing { expert, name }),
        (None, _) => return Some(TensorMismatch::Extra { expert, name }),
    };
    if expected.shape() != found.shape() {
        return Some(TensorMismatch::Shape {
            expert,
            name,
            expected: expected.shape().to_vec(),
            found: found.shape().to_vec(),
        });
    }
    if expected.dtype() != found.dtype() {
        return Some(TensorMismatch::Dtype {
            expert,
            name,
            expected: expected.dtype(),
            found: found.dtype(),
        });
    }
    let dtype = expected.dtype();
    let changed = !is_mergeable(dtype) && expected.bytes() != found.bytes();
    changed.then_some(TensorMismatch::Constant { expert, name, dtype })
}

/// The same tensor of every expert as f32.
pub(crate) fn expert_values<'a>(
    name: &str,
    experts: &'a [StateDict],
) -> Result<Vec<Cow<'a, [f32]>>, MergeError> {
    let values = |expert: &'a StateDict| {
        let stored = expert.get(name).expect("check_same_tensors found it in every expert");
        Ok(stored.f32_values()?)
    };
    experts.iter().map(values).collect()
}

/// `theta + sum_i w_i (theta_i - theta)`; a weight of 0 leaves even the sign of a zero alone.
pub(crate) fn linear(theta: &[f32], experts: &[Cow<'_, [f32]>], weights: &[f32]) -> Vec<f32> {
    let mut merged = theta.to_vec();
    for (theta_i, &weight) in experts.iter().zip(weights) {
        if weight != 0.0 {
            for ((m, &t), &t_i) in merged.iter_mut().zip(theta).zip(theta_i.iter()) {
                *m += weight * (t_i - t);
            }
        }
    }
    merged
}

/// The first NaN or infinity of some values, as an error that names its place.
pub(crate) fn check_finite(values: &[f32], model: ModelRole, name: &str) -> Result<(), MergeError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(MergeError::NonFinite {
            model,
            name: name.to_owned(),
            index,
            value: values[index].into(),
        }),
    }
}

fn check_stored_finite(
    stored: &StoredTensor,
    model: ModelRole,
    name: &str,
) -> Result<(), MergeError> {
    match stored.first_non_finite() {
        None => Ok(()),
        Some((index, value)) => {
            Err(MergeError::NonFinite { model, name: name.to_owned(), index, value })
        }
    }
}

/// TIES looks at all numbers before it merges the first tensor, so they are checked before that.
fn check_all_finite(theta_pre: &StateDict, experts: &[StateDict]) -> Result<(), MergeError> {
    let roles = (0..).map(ModelRole::Expert);
    let models = std::iter::once((ModelRole::Pretrained, theta_pre)).chain(roles.zip(experts));
    for (model, state_dict) in models {
        let tensors: Vec<(&str, &StoredTensor)> = state_dict.iter().collect();
        let failed = tensors
            .par_iter()
            .find_map_first(|(name, stored)| check_stored_finite(stored, model, name).err());
        failed.map_or(Ok(()), Err)?;
    }
    Ok(())
}

fn merge_tensor(
    name: &str,
    stored: &StoredTensor,
    experts: &[StateDict],
    combination: &Combination,
) -> Result<StoredTensor, MergeError> {
    if !is_mergeable(stored.dtype()) {
        check_stored_finite(stored, ModelRole::Pretrained, name)?;
        return Ok(stored.clone());
    }
    let theta = stored.f32_values()?;
    let theta_i = expert_values(name, experts)?;
    check_finite(&theta, ModelRole::Pretrained, name)?;
    for (expert, values) in theta_i.iter().enumerate() {
        check_finite(values, ModelRole::Expert(expert), name)?;
    }
    let values = match combination {
        Combination::Linear(weights) => linear(&theta, &theta_i, weights),
        Combination::Ties(ties) => ties.combine(&theta, &theta_i),
    };
    let merged = StoredTensor::from_f32_as(stored.dtype(), stored.shape().to_vec(), &values)?;
    // After rounding: what overflows f16 is found here.
    check_stored_finite(&merged, ModelRole::Merged, name)?;
    Ok(merged)
}

fn record_provenance(
    merged: &mut StateDict,
    theta_pre: &StateDict,
    experts: &[StateDict],
    method: &MergeMethod,
) {
    let json = |value: serde_json::Result<String>| value.expect("numbers and text make valid JSON");
    let expert_hashes: Vec<String> = experts.iter().map(StateDict::content_hash).collect();
    merged.set_metadata("merge.method", json(serde_json::to_string(method)));
    if let Some(weights) = method.weights(experts.len()) {
        merged.set_metadata("merge.weights", json(serde_json::to_string(&weights)));
    }
    merged.set_metadata("merge.theta_pre", theta_pre.content_hash());
    merged.set_metadata("merge.experts", json(serde_json::to_string(&expert_hashes)));
}
