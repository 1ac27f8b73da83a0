//! Whether models can be merged: the same tensors, finite numbers.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use safetensors::Dtype;

use crate::merge_error::{MergeError, ModelRole, TensorMismatch};
use crate::merge_inputs::{MergeInputs, TensorSet};
use crate::merge_method::{MergeMethod, Statistics};
use crate::state_dict::{StateDict, StoredTensor, first_non_finite_of};

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

/// Checks that there are statistics of every expert where the method needs some, for the tensors it needs
/// them of, and none where it does not.
///
/// # Errors
/// [`MergeError::StatisticsCount`], and [`MergeError::StatisticsMismatch`] with every difference.
pub(crate) fn check_statistics(
    inputs: &MergeInputs<'_>,
    method: &MergeMethod,
) -> Result<(), MergeError> {
    let kind = method.statistics();
    let expected = if kind.is_some() { inputs.experts.len() } else { 0 };
    let found = inputs.statistics.len();
    if found != expected {
        return Err(MergeError::StatisticsCount { method: method.name(), expected, found });
    }
    let mut mismatches = Vec::new();
    for (expert, statistics) in inputs.statistics.iter().enumerate() {
        let of_any: BTreeSet<&str> = match kind {
            // A matrix may be given for any linear layer, but then for all experts.
            Some(Statistics::Gram) => inputs.statistics.iter().flat_map(StateDict::names).collect(),
            _ => mergeable_names(inputs.theta_pre).chain(statistics.names()).collect(),
        };
        for name in of_any {
            let expected_shape =
                inputs.theta_pre.get(name).and_then(|stored| expected_shape(kind?, stored));
            mismatches.extend(statistics_mismatch(
                expert,
                name,
                expected_shape,
                statistics.get(name),
            ));
        }
    }
    if mismatches.is_empty() {
        return Ok(());
    }
    Err(MergeError::StatisticsMismatch { method: method.name(), mismatches })
}

fn mergeable_names(state_dict: &StateDict) -> impl Iterator<Item = &str> {
    state_dict.iter().filter(|(_, stored)| is_mergeable(stored.dtype())).map(|(name, _)| name)
}

/// The shape of what is known about a tensor; none where nothing can be known about it.
fn expected_shape(kind: Statistics, stored: &StoredTensor) -> Option<Vec<usize>> {
    match (kind, stored.shape()) {
        _ if !is_mergeable(stored.dtype()) => None,
        (Statistics::Fisher, shape) => Some(shape.to_vec()),
        (Statistics::Gram, &[_, d_in]) => Some(vec![d_in, d_in]),
        (Statistics::Gram, _) => None,
    }
}

fn statistics_mismatch(
    expert: usize,
    name: &str,
    expected: Option<Vec<usize>>,
    found: Option<&StoredTensor>,
) -> Option<TensorMismatch> {
    let name = name.to_owned();
    match (expected, found) {
        (None, None) => None,
        (None, Some(_)) => Some(TensorMismatch::Extra { expert, name }),
        (Some(_), None) => Some(TensorMismatch::Missing { expert, name }),
        (Some(expected), Some(found)) if expected != found.shape() => {
            let found = found.shape().to_vec();
            Some(TensorMismatch::Shape { expert, name, expected, found })
        }
        (Some(_), Some(found)) if !is_mergeable(found.dtype()) => {
            Some(TensorMismatch::Dtype { expert, name, expected: Dtype::F32, found: found.dtype() })
        }
        _ => None,
    }
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

/// The first NaN or infinity of some values, as an error that names its place.
pub(crate) fn check_finite(values: &[f32], model: ModelRole, name: &str) -> Result<(), MergeError> {
    check_block_finite(Dtype::F32, bytemuck::cast_slice(values), 0, model, name)
}

/// The first NaN or infinity of an entry range's bytes, as an error that names its place in the tensor.
pub(crate) fn check_block_finite(
    dtype: Dtype,
    bytes: &[u8],
    first_entry: usize,
    model: ModelRole,
    name: &str,
) -> Result<(), MergeError> {
    match first_non_finite_of(dtype, bytes) {
        None => Ok(()),
        Some((index, value)) => Err(MergeError::NonFinite {
            model,
            name: name.to_owned(),
            index: first_entry + index,
            value,
        }),
    }
}

/// Checks some entries of every model of a tensor, and their statistics.
pub(crate) fn check_models_finite(
    tensor: &TensorSet<'_>,
    entries: Range<usize>,
) -> Result<(), MergeError> {
    for (model, stored) in tensor.models() {
        let bytes = stored.byte_block(entries.clone());
        check_block_finite(stored.dtype(), bytes, entries.start, model, tensor.name)?;
    }
    Ok(())
}
