//! A displacement in parameter space: `tau = theta_i - theta`.   (Ilharco et al. 2022)
//!
//! A task vector is not a model: it can be scaled, added to others, measured, and added to a point, but
//! never run. Hence a type of its own beside `StateDict`.

use std::collections::BTreeMap;

use crate::merge_error::{MergeError, ModelRole};
use crate::same_tensors::{check_finite, check_same_tensors, is_mergeable};
use crate::state_dict::{StateDict, StoredTensor};

/// What finetuning changed, in f32, for every floating-point tensor (f32, f16, bf16) of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskVector {
    tensors: BTreeMap<String, Displacement>,
}

#[derive(Clone, Debug, PartialEq)]
struct Displacement {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl TaskVector {
    /// `theta_i - theta_pre`.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] when the models do not hold the same tensors, [`MergeError::NonFinite`]
    /// when one holds a NaN or an infinity.
    pub fn between(theta_pre: &StateDict, theta_i: &StateDict) -> Result<Self, MergeError> {
        check_same_tensors(theta_pre, std::slice::from_ref(theta_i))?;
        let mut tensors = BTreeMap::new();
        for ((name, from), (_, to)) in theta_pre.iter().zip(theta_i.iter()) {
            if is_mergeable(from.dtype()) {
                let (theta, theta_i) = (from.f32_values()?, to.f32_values()?);
                check_finite(&theta, ModelRole::Pretrained, name)?;
                check_finite(&theta_i, ModelRole::Expert(0), name)?;
                let displacement = Displacement {
                    shape: from.shape().to_vec(),
                    values: theta_i.iter().zip(theta.iter()).map(|(t_i, t)| t_i - t).collect(),
                };
                tensors.insert(name.to_owned(), displacement);
            }
        }
        Ok(Self { tensors })
    }

    /// `self + scale * other`, in place.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] when the two are not displacements of the same tensors.
    pub fn add_scaled(&mut self, other: &Self, scale: f64) -> Result<(), MergeError> {
        self.check_same_space(other)?;
        for (mine, theirs) in self.tensors.values_mut().zip(other.tensors.values()) {
            for (x, &y) in mine.values.iter_mut().zip(&theirs.values) {
                *x += scale as f32 * y;
            }
        }
        Ok(())
    }

    /// The point `theta_pre + scale * self`, in the dtypes of `theta_pre`.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] when `theta_pre` holds other tensors, [`MergeError::NonFinite`] when the
    /// result leaves the range of a dtype.
    pub fn applied_to(&self, theta_pre: &StateDict, scale: f64) -> Result<StateDict, MergeError> {
        let mut space = BTreeMap::new();
        for (name, stored) in theta_pre.iter().filter(|(_, s)| is_mergeable(s.dtype())) {
            space.insert(name, stored.shape());
        }
        check_spaces(&space, &self.space())?;
        let mut point = theta_pre.clone();
        for (name, tau) in &self.tensors {
            let stored = &theta_pre.get(name).expect("check_spaces found it");
            let mut values = stored.to_f32()?;
            if scale != 0.0 {
                for (theta, &tau) in values.iter_mut().zip(&tau.values) {
                    *theta += scale as f32 * tau;
                }
            }
            let moved = StoredTensor::from_f32_as(stored.dtype(), tau.shape.clone(), &values)?;
            check_finite(&moved.f32_values()?, ModelRole::Merged, name)?;
            point.insert(name.clone(), moved);
        }
        Ok(point)
    }

    /// The inner product over all tensors, in f64.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] when the two are not displacements of the same tensors.
    pub fn dot(&self, other: &Self) -> Result<f64, MergeError> {
        self.check_same_space(other)?;
        let pairs = self.tensors.values().zip(other.tensors.values());
        Ok(pairs.map(|(a, b)| dot(&a.values, &b.values)).sum())
    }

    /// The Euclidean norm over all tensors, in f64.
    pub fn norm(&self) -> f64 {
        let squares = self.tensors.values().map(|t| dot(&t.values, &t.values));
        squares.sum::<f64>().sqrt()
    }

    /// The cosine of the angle between two displacements, in [-1, 1]; none when one of them is zero.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] when the two are not displacements of the same tensors.
    pub fn cosine_similarity(&self, other: &Self) -> Result<Option<f64>, MergeError> {
        let dot = self.dot(other)?;
        let norms = self.norm() * other.norm();
        Ok((norms > 0.0).then(|| (dot / norms).clamp(-1.0, 1.0)))
    }

    /// Name, shape and row-major values of every tensor, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.tensors.iter().map(|(name, tau)| (name.as_str(), &tau.shape[..], &tau.values[..]))
    }

    fn space(&self) -> BTreeMap<&str, &[usize]> {
        self.iter().map(|(name, shape, _)| (name, shape)).collect()
    }

    fn check_same_space(&self, other: &Self) -> Result<(), MergeError> {
        check_spaces(&self.space(), &other.space())
    }
}

/// Names and shapes must agree.
fn check_spaces(
    expected: &BTreeMap<&str, &[usize]>,
    found: &BTreeMap<&str, &[usize]>,
) -> Result<(), MergeError> {
    if expected == found {
        return Ok(());
    }
    // Said in the words of two models that hold these tensors.
    let point = |space: &BTreeMap<&str, &[usize]>| -> StateDict {
        let zeros = |(&name, &shape): (&&str, &&[usize])| {
            let zeros = vec![0.0; shape.iter().product()];
            (name.to_owned(), StoredTensor::from_f32(shape.to_vec(), zeros))
        };
        space.iter().map(zeros).collect()
    };
    check_same_tensors(&point(expected), &[point(found)])
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn point(values: &[f32]) -> StateDict {
        let tensor = StoredTensor::from_f32(vec![values.len()], values.to_vec());
        [("w".to_string(), tensor)].into_iter().collect()
    }

    #[test]
    fn a_displacement_leads_from_one_point_to_the_other() {
        let (theta, theta_i) = (point(&[1.0, 2.0]), point(&[4.0, -2.0]));
        let tau = TaskVector::between(&theta, &theta_i).unwrap();
        assert_eq!(tau.norm(), 5.0);
        let end = tau.applied_to(&theta, 1.0).unwrap();
        assert_eq!(end.content_hash(), theta_i.content_hash());
        let start = tau.applied_to(&theta, 0.0).unwrap();
        assert_eq!(start.content_hash(), theta.content_hash());
    }

    #[test]
    fn displacements_add_and_have_angles() {
        let origin = point(&[0.0, 0.0]);
        let mut x = TaskVector::between(&origin, &point(&[2.0, 0.0])).unwrap();
        let y = TaskVector::between(&origin, &point(&[0.0, 1.0])).unwrap();
        assert_eq!(x.cosine_similarity(&y).unwrap(), Some(0.0));
        assert_eq!(x.cosine_similarity(&x).unwrap(), Some(1.0));
        x.add_scaled(&y, -2.0).unwrap();
        assert_eq!(x, TaskVector::between(&origin, &point(&[2.0, -2.0])).unwrap());
        let zero = TaskVector::between(&origin, &origin).unwrap();
        assert_eq!(zero.cosine_similarity(&y).unwrap(), None);
    }

    #[test]
    fn displacements_of_different_models_do_not_mix() {
        let mut short = TaskVector::between(&point(&[0.0]), &point(&[1.0])).unwrap();
        let long = TaskVector::between(&point(&[0.0, 0.0]), &point(&[1.0, 1.0])).unwrap();
        for error in [
            short.add_scaled(&long, 1.0).unwrap_err(),
            short.dot(&long).unwrap_err(),
            long.applied_to(&point(&[0.0]), 1.0).unwrap_err(),
            TaskVector::between(&point(&[0.0]), &StateDict::new()).unwrap_err(),
        ] {
            assert!(matches!(error, MergeError::Mismatch { .. }), "{error}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        let error = TaskVector::between(&point(&[0.0]), &point(&[f32::NAN])).unwrap_err();
        assert!(matches!(error, MergeError::NonFinite { .. }), "{error}");
        let tau = TaskVector::between(&point(&[0.0]), &point(&[1.0])).unwrap();
        let error = tau.applied_to(&point(&[0.0]), 1e300).unwrap_err();
        assert!(matches!(error, MergeError::NonFinite { .. }), "{error}");
    }
}
