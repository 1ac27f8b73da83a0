//! Tensors of a checkpoint by name, on their way into a network, with an account of what fits.
//!
//! For networks that are only ever run: what is read is rearranged for speed (norms multiplied into
//! convolutions, projections joined), so it is no longer found in the network under its name.

use crate::EvalError;
use deme_merge::{StateDict, StoredTensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Hands out tensors by name. A tensor that is missing or misshapen comes out as zeros, so that one
/// reading finds all that is wrong; [`NamedWeights::finish`] then fails.
pub(crate) struct NamedWeights<'a> {
    state: &'a StateDict,
    taken: BTreeMap<String, &'a StoredTensor>,
    missing: Vec<String>,
    wrong_shape: Vec<String>,
}

impl<'a> NamedWeights<'a> {
    pub(crate) fn new(state: &'a StateDict) -> Self {
        let (missing, wrong_shape) = (Vec::new(), Vec::new());
        Self { state, taken: BTreeMap::new(), missing, wrong_shape }
    }

    /// The values of a tensor of this shape, row-major.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let zeros = || vec![0.0; shape.iter().product()];
        let Some(tensor) = self.state.get(name) else {
            self.missing.push(name.to_owned());
            return zeros();
        };
        self.taken.insert(name.to_owned(), tensor);
        let found = tensor.shape();
        if found != shape {
            self.wrong_shape.push(format!("{name}: expected {shape:?}, found {found:?}"));
            return zeros();
        }
        tensor.to_f32().unwrap_or_else(|error| {
            self.wrong_shape.push(format!("{name}: {error}"));
            zeros()
        })
    }

    /// SHA-256, in hex, of all tensors that were handed out (names, dtypes, shapes, bytes).
    ///
    /// # Errors
    /// [`EvalError::Weights`] when anything did not fit `network`, or the checkpoint at `path` holds
    /// a tensor that was not asked for and is not `needless` either.
    pub(crate) fn finish(
        self,
        path: &Path,
        network: &'static str,
        needless: impl Fn(&str) -> bool,
    ) -> Result<String, EvalError> {
        let unused: Vec<String> = self
            .state
            .names()
            .filter(|name| !self.taken.contains_key(*name) && !needless(name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && self.wrong_shape.is_empty() && unused.is_empty() {
            return Ok(sha256(&self.taken));
        }
        Err(EvalError::Weights {
            path: path.into(),
            network,
            applied: self.taken.len() - self.wrong_shape.len(),
            missing: self.missing,
            unused,
            wrong_shape: self.wrong_shape,
        })
    }
}

/// Each tensor has a hash of its own, so that they are computed side by side.
fn sha256(tensors: &BTreeMap<String, &StoredTensor>) -> String {
    let tensors: Vec<(&String, &StoredTensor)> = tensors.iter().map(|(k, t)| (k, *t)).collect();
    let hashes: Vec<_> = tensors.par_iter().map(|(_, t)| Sha256::digest(t.bytes())).collect();
    let mut whole = Sha256::new();
    for ((name, tensor), hash) in tensors.iter().zip(hashes) {
        whole.update(format!("{name} {} {:?}\n", tensor.dtype(), tensor.shape()));
        whole.update(hash);
    }
    whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use deme_merge::Dtype;

    fn state() -> StateDict {
        let tensor = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            StoredTensor::from_f32(shape.to_vec(), (0..count).map(|i| i as f32).collect())
        };
        let mut state = StateDict::new();
        state.insert("a".to_owned(), tensor(&[2, 3]));
        state.insert("b".to_owned(), tensor(&[4]));
        state.insert(
            "counter".to_owned(),
            StoredTensor::new(Dtype::I64, vec![], vec![0; 8]).unwrap(),
        );
        state
    }

    fn hash(state: &StateDict) -> String {
        let mut weights = NamedWeights::new(state);
        assert_eq!(weights.take("a", &[2, 3]), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        weights.take("b", &[4]);
        weights.finish(Path::new("x.pth"), "a test", |name| name == "counter").unwrap()
    }

    #[test]
    fn the_hash_is_that_of_the_tensors_that_were_used() {
        let mut other = state();
        other.remove("counter");
        assert_eq!(hash(&state()), hash(&other));
        assert_eq!(hash(&state()).len(), 64);
        other.insert("b".to_owned(), StoredTensor::from_f32(vec![4], vec![0.0; 4]));
        assert_ne!(hash(&state()), hash(&other));
    }

    #[test]
    fn all_that_does_not_fit_is_listed_at_once() {
        let state = state();
        let mut weights = NamedWeights::new(&state);
        assert_eq!(weights.take("a", &[3, 2]), [0.0; 6]);
        assert_eq!(weights.take("counter", &[]), [0.0]);
        assert_eq!(weights.take("c", &[1]), [0.0]);
        let error = weights.finish(Path::new("x.pth"), "a test", |_| false).unwrap_err();
        let text = error.to_string();
        let EvalError::Weights { applied, missing, unused, wrong_shape, .. } = error else {
            panic!("{text}")
        };
        assert_eq!((applied, missing, unused), (0, vec!["c".to_owned()], vec!["b".to_owned()]));
        assert_eq!(wrong_shape[0], "a: expected [3, 2], found [2, 3]");
        assert!(wrong_shape[1].contains("I64"), "{}", wrong_shape[1]);
        assert!(text.contains("x.pth does not fit a test") && text.contains("\n    c"), "{text}");
    }
}
