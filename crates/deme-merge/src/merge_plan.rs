//! The same models merged with many weights: what a weight search and a loss landscape need.
//!
//! Everything is checked and converted once: theta and the task vectors lie in memory as f32, N + 1 times
//! the size of the model. Each set of weights then costs one pass over them. The result is, bit for bit,
//! what `merge` would store. To merge once, use `merge`: it needs memory for one model only.

use rayon::prelude::*;
use safetensors::Dtype;

use crate::merge_error::{MergeError, ModelRole};
use crate::merge_method::f32_weights;
use crate::same_tensors::{check_finite, check_same_tensors, expert_values, is_mergeable};
use crate::state_dict::{StateDict, StoredTensor};

/// A name, a shape and row-major values.
pub type MergedTensor = (String, Vec<usize>, Vec<f32>);

/// theta and all task vectors, ready to be merged with any weights.
pub struct MergePlan {
    num_experts: usize,
    tensors: Vec<PlannedTensor>,
    constants: StateDict,
}

struct PlannedTensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    theta: Vec<f32>,
    taus: Vec<Vec<f32>>,
}

impl MergePlan {
    /// Checks the models and computes the task vectors.
    ///
    /// # Errors
    /// As [`merge`](crate::merge::merge): no experts, different tensors, NaN or infinite numbers.
    pub fn new(theta_pre: &StateDict, experts: &[StateDict]) -> Result<Self, MergeError> {
        if experts.is_empty() {
            return Err(MergeError::NoExperts);
        }
        check_same_tensors(theta_pre, experts)?;

        let (mergeable, constants): (Vec<_>, Vec<_>) =
            theta_pre.iter().partition(|(_, stored)| is_mergeable(stored.dtype()));
        let tensors = mergeable
            .into_par_iter()
            .map(|(name, stored)| PlannedTensor::new(name, stored, experts))
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<_, _>>()?;
        Ok(Self {
            num_experts: experts.len(),
            tensors,
            constants: constants
                .into_iter()
                .map(|(name, stored)| (name.to_owned(), stored.clone()))
                .collect(),
        })
    }

    /// How many weights [`Self::at`] takes.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The tensors that are the same in every model because they are not floating point.
    pub fn constants(&self) -> &StateDict {
        &self.constants
    }

    /// `theta + sum_i w_i tau_i`, sorted by name, without the [constants](Self::constants).
    ///
    /// Values of f16 and bf16 tensors are rounded as they would be stored, so that a search measures
    /// the model that is saved in the end.
    ///
    /// # Errors
    /// [`MergeError::WeightCount`], [`MergeError::NonFiniteWeight`], and [`MergeError::NonFinite`] when
    /// the weights are so large that the result overflows.
    pub fn at(&self, weights: &[f64]) -> Result<Vec<MergedTensor>, MergeError> {
        let mut merged = Vec::new();
        self.at_into(weights, &mut merged)?;
        Ok(merged)
    }

    /// As [`Self::at`], into buffers of an earlier call, which are used again.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn at_into(
        &self,
        weights: &[f64],
        merged: &mut Vec<MergedTensor>,
    ) -> Result<(), MergeError> {
        let weights = f32_weights(weights, self.num_experts)?;
        if !self.owns_buffers(merged) {
            *merged = self.buffers();
        }
        let results: Vec<Result<(), MergeError>> = self
            .tensors
            .par_iter()
            .zip(merged.par_iter_mut())
            .map(|(tensor, (name, _, values))| {
                tensor.merge_into(&weights, values);
                check_finite(values, ModelRole::Merged, name)
            })
            .collect();
        results.into_iter().collect()
    }

    /// As [`Self::at`], as a state dict of the stored dtypes with the constants.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn state_dict_at(&self, weights: &[f64]) -> Result<StateDict, MergeError> {
        let mut state_dict = self.constants.clone();
        for (tensor, (name, shape, values)) in self.tensors.iter().zip(self.at(weights)?) {
            let stored = StoredTensor::from_f32_as(tensor.dtype, shape, &values)?;
            state_dict.insert(name, stored);
        }
        Ok(state_dict)
    }

    fn owns_buffers(&self, merged: &[MergedTensor]) -> bool {
        merged.len() == self.tensors.len()
            && self.tensors.iter().zip(merged).all(|(tensor, (name, shape, values))| {
                tensor.name == *name && tensor.shape == *shape && tensor.theta.len() == values.len()
            })
    }

    fn buffers(&self) -> Vec<MergedTensor> {
        let buffer = |tensor: &PlannedTensor| {
            let values = vec![0.0; tensor.theta.len()];
            (tensor.name.clone(), tensor.shape.clone(), values)
        };
        self.tensors.iter().map(buffer).collect()
    }
}

impl PlannedTensor {
    fn new(name: &str, stored: &StoredTensor, experts: &[StateDict]) -> Result<Self, MergeError> {
        let theta = stored.f32_values()?.into_owned();
        check_finite(&theta, ModelRole::Pretrained, name)?;
        let mut taus = Vec::with_capacity(experts.len());
        for (expert, theta_i) in expert_values(name, experts)?.into_iter().enumerate() {
            check_finite(&theta_i, ModelRole::Expert(expert), name)?;
            taus.push(theta_i.iter().zip(&theta).map(|(t_i, t)| t_i - t).collect());
        }
        Ok(Self {
            name: name.to_owned(),
            shape: stored.shape().to_vec(),
            dtype: stored.dtype(),
            theta,
            taus,
        })
    }

    /// The arithmetic of `merge`, in blocks that stay in the cache.
    fn merge_into(&self, weights: &[f32], values: &mut [f32]) {
        const BLOCK: usize = 4096;
        for (block, values) in values.chunks_mut(BLOCK).enumerate() {
            let range = block * BLOCK..block * BLOCK + values.len();
            values.copy_from_slice(&self.theta[range.clone()]);
            for (tau, &weight) in self.taus.iter().zip(weights) {
                if weight != 0.0 {
                    for (m, &tau) in values.iter_mut().zip(&tau[range.clone()]) {
                        *m += weight * tau;
                    }
                }
            }
            match self.dtype {
                Dtype::F16 => round(values, |x| half::f16::from_f32(x).to_f32()),
                Dtype::BF16 => round(values, |x| half::bf16::from_f32(x).to_f32()),
                _ => {}
            }
        }
    }
}

fn round(values: &mut [f32], rounded: impl Fn(f32) -> f32) {
    for value in values {
        *value = rounded(*value);
    }
}
