//! The same models merged with many weights: what a weight search and a loss landscape need.
//!
//! Everything is checked and converted once: theta and the task vectors lie in memory as f32, N + 1 times
//! the size of the model. Each set of weights then costs one pass over them. The result is, bit for bit,
//! what `merge` would store. To merge once, use `merge`: it needs memory for one model only.

use std::collections::BTreeSet;

use rayon::prelude::*;
use safetensors::Dtype;

use crate::merge_error::{MergeError, ModelRole};
use crate::merge_method::{MergeMethod, f32_weights};
use crate::parameter_groups::ParameterGroups;
use crate::same_tensors::{check_finite, check_same_tensors, expert_values, is_mergeable};
use crate::state_dict::{StateDict, StoredTensor};

/// A name, a shape and row-major values.
pub type MergedTensor = (String, Vec<usize>, Vec<f32>);

/// theta and all task vectors, ready to be merged with any weights.
///
/// Weights are one per expert, or one per group of tensors and expert: `weights[group * num_experts +
/// expert]`, the groups in the order of [`MergePlan::groups`].
pub struct MergePlan {
    num_experts: usize,
    groups: Vec<String>,
    tensors: Vec<PlannedTensor>,
    constants: StateDict,
}

struct PlannedTensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    /// Its place in the plan's groups.
    group: usize,
    theta: Vec<f32>,
    taus: Vec<Vec<f32>>,
}

impl MergePlan {
    /// Checks the models and computes the task vectors; one weight per expert.
    ///
    /// # Errors
    /// As [`merge`](crate::merge::merge): no experts, different tensors, NaN or infinite numbers.
    pub fn new(theta_pre: &StateDict, experts: &[StateDict]) -> Result<Self, MergeError> {
        Self::with_groups(theta_pre, experts, ParameterGroups::One)
    }

    /// The same with weights of their own for groups of tensors.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_groups(
        theta_pre: &StateDict,
        experts: &[StateDict],
        parameter_groups: ParameterGroups,
    ) -> Result<Self, MergeError> {
        if experts.is_empty() {
            return Err(MergeError::NoExperts);
        }
        check_same_tensors(theta_pre, experts)?;

        let (mergeable, constants): (Vec<_>, Vec<_>) =
            theta_pre.iter().partition(|(_, stored)| is_mergeable(stored.dtype()));
        let of = |name: &&str| parameter_groups.of(name).to_owned();
        let groups: BTreeSet<String> = mergeable.iter().map(|(name, _)| of(name)).collect();
        let groups: Vec<String> = groups.into_iter().collect();
        let group = |name: &str| {
            let place =
                groups.binary_search_by(|group| group.as_str().cmp(parameter_groups.of(name)));
            place.expect("every tensor's group is listed")
        };
        let tensors = mergeable
            .into_par_iter()
            .map(|(name, stored)| PlannedTensor::new(name, stored, experts, group(name)))
            .collect::<Vec<_>>()
            .into_iter()
            .collect::<Result<_, _>>()?;
        Ok(Self {
            num_experts: experts.len(),
            groups,
            tensors,
            constants: constants
                .into_iter()
                .map(|(name, stored)| (name.to_owned(), stored.clone()))
                .collect(),
        })
    }

    /// How many models are merged.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The names of the groups with weights of their own, sorted; one where there are none.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// How many weights [`Self::at`] takes.
    pub fn num_weights(&self) -> usize {
        self.groups.len() * self.num_experts
    }

    /// The method that merges as [`Self::at`] does with these weights.
    ///
    /// # Errors
    /// [`MergeError::WeightCount`], [`MergeError::NonFiniteWeight`].
    pub fn method(&self, weights: &[f64]) -> Result<MergeMethod, MergeError> {
        f32_weights(weights, self.num_weights())?;
        if self.groups.len() == 1 {
            return Ok(MergeMethod::Linear { weights: weights.to_vec() });
        }
        let of_groups = weights.chunks(self.num_experts).map(<[f64]>::to_vec);
        let groups = self.groups.iter().cloned().zip(of_groups).collect();
        Ok(MergeMethod::LinearByGroup { groups, weights: None })
    }

    /// The derivative of a function of the merged model by each weight, `<gradient, tau_i>` over the tensors
    /// of each group, from its gradient by each parameter. Sums are f64 and have one order.
    ///
    /// # Errors
    /// [`MergeError::NoGradient`] when a tensor has none of its size.
    pub fn weight_gradient(&self, gradient: &StateDict) -> Result<Vec<f64>, MergeError> {
        let products: Vec<Result<Vec<f64>, MergeError>> =
            self.tensors.par_iter().map(|tensor| tensor.products(gradient)).collect();
        let mut sums = vec![0.0; self.num_weights()];
        for (tensor, products) in self.tensors.iter().zip(products) {
            let sums = &mut sums[tensor.group * self.num_experts..][..self.num_experts];
            sums.iter_mut().zip(products?).for_each(|(sum, product)| *sum += product);
        }
        Ok(sums)
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
        let weights = f32_weights(weights, self.num_weights())?;
        if !self.owns_buffers(merged) {
            *merged = self.buffers();
        }
        let results: Vec<Result<(), MergeError>> = self
            .tensors
            .par_iter()
            .zip(merged.par_iter_mut())
            .map(|(tensor, (name, _, values))| {
                let weights = &weights[tensor.group * self.num_experts..][..self.num_experts];
                tensor.merge_into(weights, values);
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
    fn new(
        name: &str,
        stored: &StoredTensor,
        experts: &[StateDict],
        group: usize,
    ) -> Result<Self, MergeError> {
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
            group,
            theta,
            taus,
        })
    }

    /// `<gradient, tau_i>` over this tensor, for each expert.
    fn products(&self, gradient: &StateDict) -> Result<Vec<f64>, MergeError> {
        let Some(of_tensor) = gradient.get(&self.name) else {
            return Err(MergeError::NoGradient { name: self.name.clone() });
        };
        let gradient = of_tensor.f32_values()?;
        if gradient.len() != self.theta.len() {
            return Err(MergeError::NoGradient { name: self.name.clone() });
        }
        let product = |tau: &Vec<f32>| {
            let terms = gradient.iter().zip(tau);
            terms.map(|(g, tau)| f64::from(*g) * f64::from(*tau)).sum()
        };
        Ok(self.taus.iter().map(product).collect())
    }

    /// The arithmetic of `merge::linear`, in blocks that stay in the cache.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::merge::merge;

    fn model(values: [[f32; 2]; 3]) -> StateDict {
        let names = ["conv_in.weight", "down_blocks.0.w", "up_blocks.1.w"];
        let stored = |values: [f32; 2]| StoredTensor::from_f32(vec![2], values.to_vec());
        names.into_iter().zip(values).map(|(name, v)| (name.to_owned(), stored(v))).collect()
    }

    fn models() -> (StateDict, [StateDict; 2]) {
        let theta = model([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        let first = model([[2.0, 2.0], [3.0, 5.0], [7.0, 6.0]]);
        let second = model([[1.0, 0.0], [2.0, 4.0], [5.0, 9.0]]);
        (theta, [first, second])
    }

    #[test]
    fn groups_have_weights_of_their_own() {
        let (theta, experts) = models();
        let plan = MergePlan::with_groups(&theta, &experts, ParameterGroups::Parts).unwrap();
        assert_eq!(plan.groups(), ["down", "rest", "up"]);
        assert_eq!(plan.num_weights(), 6);
        let weights = [1.0, 2.0, 0.5, 0.0, 0.0, -1.0];
        let merged = plan.at(&weights).unwrap();
        let values: Vec<&[f32]> = merged.iter().map(|(_, _, values)| values.as_slice()).collect();
        // conv_in has the weights (0.5, 0), down (1, 2), up (0, -1).
        assert_eq!(values, [[1.5, 2.0], [1.0, 5.0], [5.0, 3.0]]);
        let method = plan.method(&weights).unwrap();
        let stored = merge(&theta, &experts, &method).unwrap();
        for (name, _, values) in &merged {
            assert_eq!(stored.get(name).unwrap().to_f32().unwrap(), *values, "{name}");
        }
        assert!(matches!(plan.at(&weights[..2]), Err(MergeError::WeightCount { .. })));
        let one = MergePlan::new(&theta, &experts).unwrap();
        assert_eq!(
            one.method(&[1.0, 2.0]).unwrap(),
            MergeMethod::Linear { weights: vec![1.0, 2.0] }
        );
    }

    #[test]
    fn the_gradient_by_weights_is_the_product_with_the_task_vectors() {
        let (theta, experts) = models();
        let gradient = model([[1.0, 10.0], [100.0, 1000.0], [0.5, 0.25]]);
        let plan = MergePlan::new(&theta, &experts).unwrap();
        // tau_1 = (1, 0), (0, 1), (2, 0); tau_2 = (0, -2), (-1, 0), (0, 3).
        assert_eq!(plan.weight_gradient(&gradient).unwrap(), [1002.0, -119.25]);
        let plan = MergePlan::with_groups(&theta, &experts, ParameterGroups::Blocks).unwrap();
        assert_eq!(plan.groups(), ["down_blocks.0", "rest", "up_blocks.1"]);
        let by_group = plan.weight_gradient(&gradient).unwrap();
        assert_eq!(by_group, [1000.0, -100.0, 1.0, -20.0, 1.0, 0.75]);
    }

    #[test]
    fn a_gradient_that_misses_a_tensor_is_refused() {
        let (theta, experts) = models();
        let plan = MergePlan::new(&theta, &experts).unwrap();
        let gradient: StateDict =
            [("conv_in.weight".to_owned(), StoredTensor::from_f32(vec![2], vec![0.0; 2]))]
                .into_iter()
                .collect();
        let error = plan.weight_gradient(&gradient).unwrap_err();
        assert!(matches!(&error, MergeError::NoGradient { name } if name == "down_blocks.0.w"));
    }
}
