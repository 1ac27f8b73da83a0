//! Why models cannot be merged.

use std::fmt;

use safetensors::Dtype;
use thiserror::Error;

use crate::state_dict::StateDictError;

/// Why models could not be merged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there is no expert to merge: give at least one finetuned model")]
    NoExperts,
    /// The models do not hold the same tensors. Nothing is skipped: every difference is listed.
    #[error(
        "the models do not hold the same tensors: {}; merge only models finetuned from the same \
         pretrained model (fold channel projections first)",
        join(mismatches)
    )]
    Mismatch {
        /// Every difference, by expert and name.
        mismatches: Vec<TensorMismatch>,
    },
    /// Not one weight per expert.
    #[error("{expected} experts need {expected} weights, found {found}")]
    WeightCount {
        /// The number of experts.
        expected: usize,
        /// The number of weights.
        found: usize,
    },
    /// A weight that is no number that f32 can hold.
    #[error("the weight of expert {expert} is {weight}: weights must be finite (and within f32)")]
    NonFiniteWeight {
        /// The expert, counted from zero.
        expert: usize,
        /// Its weight.
        weight: f64,
    },
    /// A setting outside of its range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// Its name in the configuration.
        setting: &'static str,
        /// The allowed range.
        expected: &'static str,
        /// The given value.
        found: f64,
    },
    /// A method that takes another number of experts.
    #[error("{method} merges exactly {expected} experts, found {found}")]
    ExpertCount {
        /// The method's name.
        method: &'static str,
        /// The number it takes.
        expected: usize,
        /// The number given.
        found: usize,
    },
    /// Weights of a group of tensors that cannot be used.
    #[error("the weights of the group `{group}`: {source}")]
    Group {
        /// The group.
        group: String,
        /// What is wrong with them.
        source: Box<MergeError>,
    },
    /// Weights for groups that no tensor belongs to.
    #[error("no tensor belongs to {}: the model's groups are {}", quoted(unknown), quoted(known))]
    UnknownGroups {
        /// The names given.
        unknown: Vec<String>,
        /// The groups of the model.
        known: Vec<String>,
    },
    /// Groups of tensors without weights.
    #[error(
        "no weights for {}: give them, or weights for all tensors that belong to no given group",
        quoted(groups)
    )]
    MissingGroups {
        /// The groups.
        groups: Vec<String>,
    },
    /// Not one set of statistics per expert, or some for a method that uses none.
    #[error("{method} needs statistics of {expected} experts, found those of {found}")]
    StatisticsCount {
        /// The method's name.
        method: &'static str,
        /// The number it needs.
        expected: usize,
        /// The number given.
        found: usize,
    },
    /// Statistics that do not fit the models. Nothing is skipped: every difference is listed.
    #[error("the statistics for {method} do not fit the models: {}", join(mismatches))]
    StatisticsMismatch {
        /// The method's name.
        method: &'static str,
        /// Every difference, by expert and name. The expert stands for its statistics.
        mismatches: Vec<TensorMismatch>,
    },
    /// Fisher information below zero.
    #[error(
        "the Fisher information of tensor `{name}` of expert {expert} is {value} at position {index}: a \
         mean of squares cannot be negative"
    )]
    NegativeFisher {
        /// The expert, counted from zero.
        expert: usize,
        /// The tensor.
        name: String,
        /// Position in the flattened tensor.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Gram matrices that are none.
    #[error(
        "the sum of the Gram matrices of `{name}` is not positive definite: a Gram matrix is X^T X of a \
         layer's inputs X"
    )]
    NotGram {
        /// The weight of the linear layer.
        name: String,
    },
    /// A gradient that misses a tensor, or has it with another number of entries.
    #[error("there is no gradient of the size of tensor `{name}`")]
    NoGradient {
        /// The tensor.
        name: String,
    },
    /// A model that holds a NaN or an infinity.
    #[error(
        "tensor `{name}` of {model} holds {value} at position {index}: that model is not usable"
    )]
    NonFinite {
        /// Which model.
        model: ModelRole,
        /// The tensor.
        name: String,
        /// Position in the flattened tensor.
        index: usize,
        /// NaN or an infinity.
        value: f64,
    },
    /// A tensor that could not be read.
    #[error(transparent)]
    StateDict(#[from] StateDictError),
}

/// Which of the models of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRole {
    /// theta, the pretrained model.
    Pretrained,
    /// theta_i, a finetuned model, counted from zero.
    Expert(usize),
    /// What is known about an expert, counted from zero.
    Statistics(usize),
    /// theta_m. Finite inputs give infinities here when they leave the range of the stored dtype.
    Merged,
}

impl fmt::Display for ModelRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pretrained => write!(f, "the pretrained model"),
            Self::Expert(expert) => write!(f, "expert {expert}"),
            Self::Statistics(expert) => write!(f, "the statistics of expert {expert}"),
            Self::Merged => write!(f, "the merged model"),
        }
    }
}

/// One difference between the pretrained model and an expert (counted from zero).
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorMismatch {
    /// The expert lacks a tensor.
    #[error("expert {expert} lacks `{name}`")]
    Missing {
        /// The expert.
        expert: usize,
        /// The tensor.
        name: String,
    },
    /// The expert holds a tensor that the pretrained model lacks.
    #[error("expert {expert} holds `{name}`, the pretrained model does not")]
    Extra {
        /// The expert.
        expert: usize,
        /// The tensor.
        name: String,
    },
    /// The shapes differ.
    #[error("`{name}` of expert {expert} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The expert.
        expert: usize,
        /// The tensor.
        name: String,
        /// Its shape in the pretrained model.
        expected: Vec<usize>,
        /// Its shape in the expert.
        found: Vec<usize>,
    },
    /// The dtypes differ.
    #[error("`{name}` of expert {expert} is {found}, expected {expected}")]
    Dtype {
        /// The expert.
        expert: usize,
        /// The tensor.
        name: String,
        /// Its dtype in the pretrained model.
        expected: Dtype,
        /// Its dtype in the expert.
        found: Dtype,
    },
    /// A tensor that is not floating point and therefore must not change, but does.
    #[error("`{name}` of expert {expert} differs, but {dtype} tensors cannot be merged")]
    Constant {
        /// The expert.
        expert: usize,
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
    },
}

fn join(mismatches: &[TensorMismatch]) -> String {
    let texts: Vec<String> = mismatches.iter().map(TensorMismatch::to_string).collect();
    texts.join("; ")
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}
