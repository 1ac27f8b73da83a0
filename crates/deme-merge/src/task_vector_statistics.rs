//! How large task vectors are, layer by layer, and how far they agree.   (Ma et al. 2024, the box plots of
//! task vectors; cosines as in Ilharco et al. 2022)
//!
//! One tensor of all models is looked at after the other, so large models need no memory beyond the mapped
//! files. Numbers only, figures are drawn elsewhere.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::merge_error::{MergeError, ModelRole};
use crate::parameter_groups::ParameterGroups;
use crate::same_tensors::{check_finite, check_same_tensors, expert_values, is_mergeable};
use crate::state_dict::{StateDict, StoredTensor};

/// What [`task_vector_statistics`] finds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskVectorStatistics {
    /// Every floating-point tensor that has elements, by name.
    pub tensors: Vec<TensorStatistics>,
    /// The whole task vectors.
    pub whole: Similarity,
    /// The parts of them that lie in each group of tensors, by the groups' names.
    pub groups: BTreeMap<String, Similarity>,
}

/// One tensor of all task vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorStatistics {
    /// Its name.
    pub name: String,
    /// The group it belongs to.
    pub group: String,
    /// How many numbers it holds.
    pub elements: usize,
    /// The distribution of the numbers of tau_i, for each expert.
    pub experts: Vec<Distribution>,
}

/// A distribution of numbers, for a box plot. Quantiles between two numbers are interpolated linearly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// The lowest number.
    pub minimum: f64,
    /// 5% lie below.
    pub quantile_5: f64,
    /// 25% lie below.
    pub lower_quartile: f64,
    /// Half lie below.
    pub median: f64,
    /// 75% lie below.
    pub upper_quartile: f64,
    /// 95% lie below.
    pub quantile_95: f64,
    /// The highest number.
    pub maximum: f64,
    /// The root of the mean square.
    pub root_mean_square: f64,
}

/// Lengths and angles of task vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Similarity {
    /// The Euclidean norm of each expert's task vector.
    pub norms: Vec<f64>,
    /// `cosines[i][j]` is the cosine of the angle between tau_i and tau_j, in [-1, 1]; none when one of
    /// them is zero.
    pub cosines: Vec<Vec<Option<f64>>>,
}

/// The statistics of `tau_i = theta_i - theta` for all experts.
///
/// # Errors
/// As [`merge`](crate::merge::merge): no experts, different tensors, NaN or infinite numbers.
pub fn task_vector_statistics(
    theta_pre: &StateDict,
    experts: &[StateDict],
    parameter_groups: ParameterGroups,
) -> Result<TaskVectorStatistics, MergeError> {
    if experts.is_empty() {
        return Err(MergeError::NoExperts);
    }
    check_same_tensors(theta_pre, experts)?;
    let mut tensors = Vec::new();
    let mut whole = Products::new(experts.len());
    let mut groups: BTreeMap<String, Products> = BTreeMap::new();
    for (name, stored) in theta_pre.iter() {
        let elements: usize = stored.shape().iter().product();
        if elements == 0 || !is_mergeable(stored.dtype()) {
            continue;
        }
        let mut taus = task_vectors_of(name, stored, experts)?;
        let group = parameter_groups.of(name).to_owned();
        let products = Products::of(&taus);
        whole.add(&products);
        groups.entry(group.clone()).or_insert_with(|| Products::new(experts.len())).add(&products);
        let experts = taus.par_iter_mut().map(|tau| Distribution::of(tau)).collect();
        tensors.push(TensorStatistics { name: name.to_owned(), group, elements, experts });
    }
    let groups = groups.into_iter().map(|(name, products)| (name, products.similarity()));
    Ok(TaskVectorStatistics { tensors, whole: whole.similarity(), groups: groups.collect() })
}

/// One tensor of every task vector.
fn task_vectors_of(
    name: &str,
    stored: &StoredTensor,
    experts: &[StateDict],
) -> Result<Vec<Vec<f32>>, MergeError> {
    let theta = stored.f32_values()?;
    check_finite(&theta, ModelRole::Pretrained, name)?;
    let theta_i = expert_values(name, experts)?;
    let taus: Vec<Result<Vec<f32>, MergeError>> = theta_i
        .par_iter()
        .enumerate()
        .map(|(expert, theta_i)| {
            check_finite(theta_i, ModelRole::Expert(expert), name)?;
            let tau: Vec<f32> = theta_i.iter().zip(theta.iter()).map(|(t_i, t)| t_i - t).collect();
            check_finite(&tau, ModelRole::Expert(expert), name)?;
            Ok(tau)
        })
        .collect();
    taus.into_iter().collect()
}

impl Distribution {
    /// Reorders the numbers, of which there must be some.
    fn of(numbers: &mut [f32]) -> Self {
        let squares: f64 = numbers.iter().map(|&x| f64::from(x).powi(2)).sum();
        let mut at = |share: f64| quantile(numbers, share);
        Self {
            minimum: at(0.0),
            quantile_5: at(0.05),
            lower_quartile: at(0.25),
            median: at(0.5),
            upper_quartile: at(0.75),
            quantile_95: at(0.95),
            maximum: at(1.0),
            root_mean_square: (squares / numbers.len() as f64).sqrt(),
        }
    }
}

fn quantile(numbers: &mut [f32], share: f64) -> f64 {
    let place = share * (numbers.len() - 1) as f64;
    let (_, &mut below, rest) =
        numbers.select_nth_unstable_by(place.floor() as usize, f32::total_cmp);
    let above = rest.iter().copied().min_by(f32::total_cmp).unwrap_or(below);
    let (below, above) = (f64::from(below), f64::from(above));
    below + (above - below) * place.fract()
}

/// All inner products of the task vectors.
struct Products(Vec<Vec<f64>>);

impl Products {
    fn new(experts: usize) -> Self {
        Self(vec![vec![0.0; experts]; experts])
    }

    fn of(taus: &[Vec<f32>]) -> Self {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        let row = |a: &Vec<f32>| taus.iter().map(|b| dot(a, b)).collect();
        Self(taus.par_iter().map(row).collect())
    }

    fn add(&mut self, other: &Self) {
        for (row, other) in self.0.iter_mut().zip(&other.0) {
            row.iter_mut().zip(other).for_each(|(sum, product)| *sum += product);
        }
    }

    fn similarity(&self) -> Similarity {
        let norms: Vec<f64> = (0..self.0.len()).map(|i| self.0[i][i].sqrt()).collect();
        let cosine = |i: usize, j: usize| {
            let lengths = norms[i] * norms[j];
            // A vector's angle with itself is not left to rounding.
            let cosine = if i == j { 1.0 } else { (self.0[i][j] / lengths).clamp(-1.0, 1.0) };
            (lengths > 0.0).then_some(cosine)
        };
        let row = |i: usize| (0..norms.len()).map(|j| cosine(i, j)).collect();
        Similarity { cosines: (0..norms.len()).map(row).collect(), norms }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn model(tensors: &[(&str, &[f32])]) -> StateDict {
        let stored = |values: &[f32]| StoredTensor::from_f32(vec![values.len()], values.to_vec());
        tensors.iter().map(|(name, values)| ((*name).to_owned(), stored(values))).collect()
    }

    #[test]
    fn quantiles_lengths_and_angles_are_those_of_the_definition() {
        let theta = model(&[
            ("conv_in.weight", &[1.0]),
            ("down_blocks.0.w", &[0.0; 5]),
            ("up_blocks.0.w", &[1.0, 1.0]),
        ]);
        let experts = [
            model(&[
                ("conv_in.weight", &[1.0]),
                ("down_blocks.0.w", &[3.0, -1.0, 0.0, 1.0, 2.0]),
                ("up_blocks.0.w", &[4.0, 5.0]),
            ]),
            model(&[
                ("conv_in.weight", &[1.0]),
                ("down_blocks.0.w", &[3.0, -1.0, 0.0, 1.0, 2.0]),
                ("up_blocks.0.w", &[5.0, -2.0]),
            ]),
        ];
        let found = task_vector_statistics(&theta, &experts, ParameterGroups::Parts).unwrap();

        let names: Vec<&str> = found.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["conv_in.weight", "down_blocks.0.w", "up_blocks.0.w"]);
        let down = &found.tensors[1];
        assert_eq!((down.group.as_str(), down.elements), ("down", 5));
        let box_plot = down.experts[0];
        assert_eq!((box_plot.minimum, box_plot.maximum), (-1.0, 3.0));
        assert_eq!((box_plot.lower_quartile, box_plot.upper_quartile), (0.0, 2.0));
        assert_eq!(box_plot.median, 1.0);
        assert!(
            (box_plot.quantile_5 + 0.8).abs() < 1e-12 && (box_plot.quantile_95 - 2.8).abs() < 1e-12
        );
        assert_eq!(box_plot.root_mean_square, 3f64.sqrt());

        // (3, 4) and (4, -3) are orthogonal, and equal below.
        assert_eq!(found.groups["up"].norms, [5.0, 5.0]);
        assert_eq!(found.groups["up"].cosines, [[Some(1.0), Some(0.0)], [Some(0.0), Some(1.0)]]);
        assert!((found.groups["down"].cosines[0][1].unwrap() - 1.0).abs() < 1e-12);
        assert!((found.whole.cosines[0][1].unwrap() - 15.0 / 40.0).abs() < 1e-12);
        assert_eq!(found.groups["rest"].cosines, [[None, None], [None, None]]);
        assert!(!found.groups.contains_key("mid"));
    }

    #[test]
    fn the_whole_agrees_with_task_vectors() {
        use crate::TaskVector;
        let theta = model(&[("mid_block.w", &[0.1, 0.2, 0.3]), ("up_blocks.w", &[1.0, 2.0])]);
        let experts = [
            model(&[("mid_block.w", &[0.5, -0.2, 0.3]), ("up_blocks.w", &[1.5, 2.0])]),
            model(&[("mid_block.w", &[0.1, 0.9, 0.7]), ("up_blocks.w", &[0.0, 2.25])]),
        ];
        let found = task_vector_statistics(&theta, &experts, ParameterGroups::Parts).unwrap();
        let taus = experts.each_ref().map(|e| TaskVector::between(&theta, e).unwrap());
        assert!((found.whole.norms[1] - taus[1].norm()).abs() < 1e-12);
        let cosine = taus[0].cosine_similarity(&taus[1]).unwrap().unwrap();
        assert!((found.whole.cosines[1][0].unwrap() - cosine).abs() < 1e-12);
    }

    #[test]
    fn models_that_do_not_fit_are_refused() {
        let theta = model(&[("w", &[0.0])]);
        let refuse = |experts: &[StateDict]| {
            task_vector_statistics(&theta, experts, ParameterGroups::Parts).unwrap_err()
        };
        assert!(matches!(refuse(&[]), MergeError::NoExperts));
        let other = model(&[("v", &[0.0])]);
        assert!(matches!(refuse(&[theta.clone(), other]), MergeError::Mismatch { .. }));
        let broken = model(&[("w", &[f32::NAN])]);
        assert!(matches!(
            refuse(&[theta.clone(), broken]),
            MergeError::NonFinite { model: ModelRole::Expert(1), .. }
        ));
    }

    #[test]
    fn numbers_survive_json() {
        let theta = model(&[("w", &[0.0, 0.0])]);
        let experts = [model(&[("w", &[0.1, -0.7])]), theta.clone()];
        let found = task_vector_statistics(&theta, &experts, ParameterGroups::Parts).unwrap();
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<TaskVectorStatistics>(&text).unwrap(), found);
    }
}
