//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensorError};
use thiserror::Error;

/// Why a state dict could not be read, written or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateDictError {
    /// Nothing stands at the path.
    #[error("there is no checkpoint at {path}: check the path")]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The operating system refused (no permission, full disk, ...).
    #[error("{path}: {source}")]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is neither safetensors nor a PyTorch pickle.
    #[error(
        "{path} is no checkpoint: it is neither safetensors (by its name), nor a shard index, nor a \
         PyTorch file (by its first bytes)"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A safetensors file that is damaged.
    #[error(
        "{path} is damaged and cannot be read as safetensors ({source}): download or write it again"
    )]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the format's own check found.
        source: SafeTensorError,
    },
    /// A folder without weights.
    #[error("{folder} holds no weights; looked for {}", tried.join(", "))]
    EmptyFolder {
        /// The folder.
        folder: PathBuf,
        /// The file names that were looked for.
        tried: Vec<String>,
    },
    /// A folder with more than one model.
    #[error(
        "{folder} holds more than one model: {}; name the file itself instead of the folder",
        found.join(", ")
    )]
    AmbiguousFolder {
        /// The folder.
        folder: PathBuf,
        /// The candidates.
        found: Vec<String>,
    },
    /// A shard index that is no valid index.
    #[error("{path} is no valid shard index: {reason}")]
    ShardIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An index and its shards disagree.
    #[error(
        "{index} and its shards disagree: {}; download the whole folder again",
        problems.join("; ")
    )]
    ShardMismatch {
        /// The index file.
        index: PathBuf,
        /// Every disagreement.
        problems: Vec<String>,
    },
    /// A PyTorch file that is damaged or uses something we cannot read.
    #[error("{path} cannot be read as a PyTorch file: {reason}")]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pickle that refers to something else than tensors.
    #[error(
        "{path} refers to `{global}`, which is not needed to store tensors; pickles can run any program, \
         so this file is refused. Save its tensors alone: torch.save(model.state_dict(), path)"
    )]
    RefusedGlobal {
        /// The file.
        path: PathBuf,
        /// The module and name it refers to.
        global: String,
    },
    /// The tensor name that the safetensors header needs for itself.
    #[error("a tensor cannot be called `__metadata__`: safetensors uses that name; rename it")]
    ReservedName,
    /// Bytes that do not fit dtype and shape.
    #[error("a {dtype} tensor of shape {shape:?} needs {expected} bytes, found {found}")]
    ByteCount {
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// The bytes that dtype and shape need.
        expected: u128,
        /// The bytes that were given.
        found: usize,
    },
    /// A conversion that the dtype does not allow.
    #[error("cannot read a {found} tensor as {wanted}; convertible are {convertible}")]
    Dtype {
        /// The tensor's dtype.
        found: Dtype,
        /// What was asked for.
        wanted: &'static str,
        /// The dtypes that can be converted to it.
        convertible: &'static str,
    },
    /// A NaN or an infinity.
    #[error("tensor `{name}` holds {value} at position {index}: the checkpoint is not usable")]
    NonFinite {
        /// The tensor.
        name: String,
        /// Position in the flattened tensor.
        index: usize,
        /// NaN or an infinity.
        value: f64,
    },
}

impl StateDictError {
    /// An error while reading `path`.
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { path, source },
        }
    }

    /// An error while writing `path`.
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
