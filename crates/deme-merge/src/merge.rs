//! Merges experts into one model: `theta_m = theta + sum_i w_i (theta_i - theta)` and its relatives.
//!
//! First everything is checked, then all models are read once, side by side and block by block, straight
//! from the mapped files (TIES reads them three times before). Arithmetic is f32 whatever the stored dtype,
//! experts are added in their order, and results are rounded to the nearest, ties to even. The result goes
//! to memory or, as it is made, to the disk; the numbers are the same. What the methods are is said in
//! `merge_method`; merging the same models hundreds of times is the matter of `merge_plan`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::dare::Dare;
use crate::fisher::merge_fisher;
use crate::group_weights::GroupWeights;
use crate::merge_error::{MergeError, ModelRole};
use crate::merge_inputs::{Block, MergeInputs, TensorSet};
use crate::merge_method::{MergeMethod, f32_weights};
use crate::regmean::{grams_of, merge_layer};
use crate::same_tensors::{
    check_block_finite, check_models_finite, check_same_tensors, check_statistics, is_mergeable,
};
use crate::slerp::Slerp;
use crate::state_dict::{
    StateDict, StateDictWriter, StoredTensor, TensorHash, TensorHasher, WeightFiles, encode_f32,
    model_hash, tensor_hash,
};
use crate::ties::Ties;

/// Merges `experts`, all finetuned from `theta_pre`, by a method that needs no statistics.
///
/// # Errors
/// As [`MergeInputs::merge`].
pub fn merge(
    theta_pre: &StateDict,
    experts: &[StateDict],
    method: &MergeMethod,
) -> Result<StateDict, MergeError> {
    MergeInputs { theta_pre, experts, statistics: &[] }.merge(method)
}

impl<'a> MergeInputs<'a> {
    /// Merges in memory.
    ///
    /// Floating-point tensors (f32, f16, bf16) are merged; all others must be equal in every model and are
    /// copied. The metadata of the result says how it was made: `merge.method`, `merge.weights` (where the
    /// method has some), and the content hashes `merge.theta_pre`, `merge.experts` and, where there are
    /// some, `merge.statistics`.
    ///
    /// # Errors
    /// [`MergeError::Mismatch`] lists every missing, extra or differently shaped or typed tensor of every
    /// expert; the other variants say what is wrong with the settings or the numbers.
    pub fn merge(&self, method: &MergeMethod) -> Result<StateDict, MergeError> {
        let combination = self.prepare(method)?;
        let room = |(name, stored): (&'a str, &StoredTensor)| {
            (name, Mutex::new(Vec::with_capacity(stored.bytes().len())))
        };
        let tensors: BTreeMap<&str, Mutex<Vec<u8>>> = self.theta_pre.iter().map(room).collect();
        let hashes = self.merge_tensors(&combination, |name, _, bytes| {
            let mut tensor = tensors[name].lock().unwrap_or_else(PoisonError::into_inner);
            tensor.extend_from_slice(bytes); // blocks come in their order
            Ok(())
        })?;
        let mut merged = StateDict::new();
        for ((name, bytes), (_, stored)) in tensors.into_iter().zip(self.theta_pre.iter()) {
            let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
            let tensor = StoredTensor::new(stored.dtype(), stored.shape().to_vec(), bytes)?;
            merged.insert(name.to_owned(), tensor);
        }
        for (key, value) in provenance(method, self, &hashes) {
            merged.set_metadata(key, value);
        }
        Ok(merged)
    }

    /// Merges into one safetensors file, which appears complete or not at all. Memory for a few blocks of
    /// tensors is all it takes, whatever the size of the models (but for `regmean`).
    ///
    /// # Errors
    /// As [`Self::merge`], and [`MergeError::StateDict`] when the file cannot be written.
    pub fn merge_to_file(&self, method: &MergeMethod, path: &Path) -> Result<(), MergeError> {
        let combination = self.prepare(method)?;
        let metadata = provenance(method, self, &ModelHashes::unknown(self));
        let writer = StateDictWriter::to_file(path, self.theta_pre.iter(), &metadata)?;
        self.merge_to(method, &combination, writer).map(drop)
    }

    /// As [`Self::merge_to_file`], into a folder: a single file, or shards of at most so many tensor bytes
    /// and their index. Returns the file to load.
    ///
    /// # Errors
    /// As [`Self::merge_to_file`].
    pub fn merge_to_folder(
        &self,
        method: &MergeMethod,
        folder: &Path,
        files: &WeightFiles,
        max_shard_bytes: u64,
    ) -> Result<PathBuf, MergeError> {
        let combination = self.prepare(method)?;
        let metadata = provenance(method, self, &ModelHashes::unknown(self));
        let tensors = self.theta_pre.iter();
        let writer =
            StateDictWriter::to_folder(folder, files, max_shard_bytes, tensors, &metadata)?;
        self.merge_to(method, &combination, writer)
    }

    fn merge_to(
        &self,
        method: &MergeMethod,
        combination: &Combination<'a>,
        writer: StateDictWriter<'_>,
    ) -> Result<PathBuf, MergeError> {
        let hashes = self.merge_tensors(combination, |name, offset, bytes| {
            Ok(writer.write(name, offset, bytes)?)
        })?;
        Ok(writer.finish(&provenance(method, self, &hashes))?)
    }

    /// Checks everything but the numbers, and finds out what must be known before the first tensor.
    fn prepare(&self, method: &MergeMethod) -> Result<Combination<'a>, MergeError> {
        let count = self.experts.len();
        method.check(count)?;
        check_same_tensors(self.theta_pre, self.experts)?;
        check_statistics(self, method)?;
        Ok(match *method {
            MergeMethod::Linear { ref weights } => {
                Combination::Linear(f32_weights(weights, count)?)
            }
            MergeMethod::LinearByGroup { ref groups, ref weights } => {
                let names = self.theta_pre.names();
                let weights = GroupWeights::new(groups, weights.as_deref(), count, names)?;
                Combination::LinearByGroup(weights)
            }
            MergeMethod::Uniform => {
                Combination::Linear(f32_weights(&vec![1.0 / count as f64; count], count)?)
            }
            MergeMethod::Ties { density, scale } => {
                Combination::Ties(Ties::prepare(self, density, scale as f32)?)
            }
            MergeMethod::Dare { ref weights, drop, seed } => {
                Combination::Dare { weights: weights.clone(), drop, seed }
            }
            MergeMethod::Slerp { t } => Combination::Slerp { t },
            MergeMethod::Fisher => Combination::Fisher(self.statistics),
            MergeMethod::RegMean { alpha } => {
                let mean = f32_weights(&vec![1.0 / count as f64; count], count)?;
                Combination::RegMean { grams: self.statistics, alpha, mean }
            }
        })
    }

    /// Merges every tensor; `emit` takes its name, a position and the bytes there, from any thread, but
    /// those of one tensor from the first to the last.
    fn merge_tensors(
        &self,
        combination: &Combination<'a>,
        emit: impl Fn(&str, u64, &[u8]) -> Result<(), MergeError> + Sync,
    ) -> Result<ModelHashes, MergeError> {
        let workers = self.for_each_tensor(Worker::default, |worker, number, tensor| {
            let hashes = if is_mergeable(tensor.theta.dtype()) {
                worker.merge_tensor(tensor, combination, &emit)?
            } else {
                copy_tensor(tensor, &emit)?
            };
            worker.hashes.push((number, hashes));
            Ok(())
        })?;
        let mut hashes: Vec<(usize, TensorHashes)> =
            workers.into_iter().flat_map(|worker| worker.hashes).collect();
        hashes.sort_by_key(|(number, _)| *number);
        Ok(ModelHashes::new(self, hashes.into_iter().map(|(_, hashes)| hashes).collect()))
    }
}

/// A method with all it must know before the first tensor is merged.
enum Combination<'a> {
    Linear(Vec<f32>),
    LinearByGroup(GroupWeights),
    Ties(Ties),
    Dare { weights: Vec<f64>, drop: f64, seed: u64 },
    Slerp { t: f64 },
    Fisher(&'a [StateDict]),
    RegMean { grams: &'a [StateDict], alpha: f64, mean: Vec<f32> },
}

/// A method with all it must know before the first entry of a tensor is merged.
enum TensorRule<'a> {
    Linear(&'a [f32]),
    Ties(&'a Ties),
    Dare(Dare),
    Slerp(Slerp),
    Fisher,
    /// All values are known already.
    Known(Vec<f32>),
}

impl TensorRule<'_> {
    fn merge(
        &self,
        tensor: &TensorSet<'_>,
        block: &Block<'_>,
        merged: &mut [f32],
    ) -> Result<(), MergeError> {
        match self {
            Self::Linear(weights) => linear(block, weights, merged),
            Self::Ties(ties) => ties.merge(block, merged),
            Self::Dare(dare) => dare.merge(block, merged),
            Self::Slerp(slerp) => slerp.merge(block, merged),
            Self::Fisher => merge_fisher(tensor, block, merged)?,
            Self::Known(values) => merged.copy_from_slice(&values[block.entries.clone()]),
        }
        Ok(())
    }
}

/// `theta + sum_i w_i (theta_i - theta)`; a weight of 0 leaves even the sign of a zero alone.
fn linear(block: &Block<'_>, weights: &[f32], merged: &mut [f32]) {
    merged.copy_from_slice(block.theta);
    for (theta_i, &weight) in block.experts.iter().zip(weights) {
        if weight != 0.0 {
            for ((m, &t), &t_i) in merged.iter_mut().zip(block.theta).zip(*theta_i) {
                *m += weight * (t_i - t);
            }
        }
    }
}

/// What a thread uses again for each tensor, and the hashes of the tensors it merged, by their number.
#[derive(Default)]
struct Worker {
    inputs: Vec<Vec<f32>>,
    merged: Vec<f32>,
    bytes: Vec<u8>,
    hashes: Vec<(usize, TensorHashes)>,
}

/// The hashes of a tensor of theta, of the experts, and of their statistics where it has some.
type TensorHashes = Vec<TensorHash>;

impl Worker {
    fn merge_tensor(
        &mut self,
        tensor: &TensorSet<'_>,
        combination: &Combination<'_>,
        emit: impl Fn(&str, u64, &[u8]) -> Result<(), MergeError>,
    ) -> Result<TensorHashes, MergeError> {
        let Self { inputs, merged, bytes, .. } = self;
        let name = tensor.name;
        let mut of_all = Vec::new();
        let mut gram_hashes = Vec::new();
        let rule = match combination {
            Combination::Linear(weights) => TensorRule::Linear(weights),
            Combination::LinearByGroup(weights) => TensorRule::Linear(weights.of(name)),
            Combination::Ties(ties) => TensorRule::Ties(ties),
            Combination::Dare { weights, drop, seed } => {
                TensorRule::Dare(Dare::new(weights, *drop, *seed, name))
            }
            Combination::Slerp { t } => TensorRule::Slerp(Slerp::new(tensor, *t, inputs)?),
            Combination::Fisher(statistics) => {
                let fisher = statistics.iter().map(|statistics| {
                    statistics.get(name).expect("check_statistics found it for every expert")
                });
                of_all = fisher.collect();
                TensorRule::Fisher
            }
            Combination::RegMean { grams, alpha, mean } => match &grams_of(name, grams)[..] {
                [] => TensorRule::Linear(mean),
                grams => {
                    let (values, hashes) = merge_layer(tensor, grams, *alpha)?;
                    gram_hashes = hashes;
                    TensorRule::Known(values)
                }
            },
        };
        let tensor = &TensorSet { statistics: of_all, experts: tensor.experts.clone(), ..*tensor };

        let dtype = tensor.theta.dtype();
        let mut hashers: Vec<TensorHasher> =
            tensor.models().map(|_| TensorHasher::default()).collect();
        let mut offset = 0;
        tensor.for_each_block(inputs, |block| {
            check_models_finite(tensor, block.entries.clone())?;
            for (hasher, (_, stored)) in hashers.iter_mut().zip(tensor.models()) {
                hasher.update(stored.byte_block(block.entries.clone()));
            }
            merged.resize(block.entries.len(), 0.0);
            rule.merge(tensor, block, merged)?;
            let bytes = encode_f32(dtype, merged, bytes)?;
            // After rounding: what overflows f16 is found here.
            check_block_finite(dtype, bytes, block.entries.start, ModelRole::Merged, name)?;
            emit(name, offset, bytes)?;
            offset += bytes.len() as u64;
            Ok(())
        })?;
        let hash = |(hasher, (_, stored)): (TensorHasher, (_, &StoredTensor))| {
            hasher.finish(name, stored.dtype(), stored.shape())
        };
        Ok(hashers.into_iter().zip(tensor.models()).map(hash).chain(gram_hashes).collect())
    }
}

/// A tensor that is the same in all models.
fn copy_tensor(
    tensor: &TensorSet<'_>,
    emit: impl Fn(&str, u64, &[u8]) -> Result<(), MergeError>,
) -> Result<TensorHashes, MergeError> {
    let TensorSet { name, theta, experts, .. } = tensor;
    check_block_finite(theta.dtype(), theta.bytes(), 0, ModelRole::Pretrained, name)?;
    emit(name, 0, theta.bytes())?;
    Ok(vec![tensor_hash(name, theta); 1 + experts.len()])
}

/// The content hashes of the models of a merge.
struct ModelHashes {
    theta_pre: String,
    experts: Vec<String>,
    statistics: Vec<String>,
}

impl ModelHashes {
    fn new(inputs: &MergeInputs<'_>, tensors: Vec<TensorHashes>) -> Self {
        // A tensor without statistics ends before them.
        let model = |number: usize| {
            let hashes = tensors.iter().filter_map(|hashes| hashes.get(number).copied());
            model_hash(&hashes.collect::<Vec<_>>())
        };
        let experts = inputs.experts.len();
        Self {
            theta_pre: model(0),
            experts: (1..=experts).map(model).collect(),
            statistics: (1 + experts..=experts + inputs.statistics.len()).map(model).collect(),
        }
    }

    /// Zeros, as long as the hashes will be.
    fn unknown(inputs: &MergeInputs<'_>) -> Self {
        let zeros = || model_hash(&[]).replace(|_| true, "0");
        Self {
            theta_pre: zeros(),
            experts: inputs.experts.iter().map(|_| zeros()).collect(),
            statistics: inputs.statistics.iter().map(|_| zeros()).collect(),
        }
    }
}

/// The metadata that says how a model was made.
fn provenance(
    method: &MergeMethod,
    inputs: &MergeInputs<'_>,
    hashes: &ModelHashes,
) -> BTreeMap<String, String> {
    let json = |value: serde_json::Result<String>| value.expect("numbers and text make valid JSON");
    let mut metadata = BTreeMap::new();
    let mut set = |key: &str, value| metadata.insert(format!("merge.{key}"), value);
    set("method", json(serde_json::to_string(method)));
    if let Some(weights) = method.weights(inputs.experts.len()) {
        set("weights", json(serde_json::to_string(&weights)));
    }
    set("theta_pre", hashes.theta_pre.clone());
    set("experts", json(serde_json::to_string(&hashes.experts)));
    if !hashes.statistics.is_empty() {
        set("statistics", json(serde_json::to_string(&hashes.statistics)));
    }
    metadata
}
