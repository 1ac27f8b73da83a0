//! A point in parameter space: tensors by name, as checkpoints hold them.
//!
//! Reads safetensors (memory-mapped), PyTorch's pickles (without executing them), their sharded forms and
//! the folders `save_pretrained` writes; writes safetensors. Names, dtypes and bytes are kept exactly as
//! they are stored. This is not a network: nothing here knows what a tensor is for.

mod content_hash;
mod error;
mod folder;
mod pickle;
mod safetensors_file;
mod sharded;
mod stored_tensor;
mod torch_file;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub(crate) use content_hash::{TensorHash, TensorHasher, model_hash, tensor_hash};
pub use error::StateDictError;
pub use safetensors::Dtype;
pub use sharded::WeightFiles;
pub use stored_tensor::StoredTensor;
pub(crate) use stored_tensor::{encode_f32, first_non_finite_of};
pub(crate) use writer::StateDictWriter;

/// Named tensors in the order of their names, and the free-form metadata of a safetensors header.
#[derive(Clone, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, StoredTensor>,
    metadata: BTreeMap<String, String>,
    skipped: Vec<String>,
}

impl StateDict {
    /// A state dict without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a checkpoint: a file or a folder.
    ///
    /// - `*.safetensors` is memory-mapped: the tensors are read when they are used. Do not overwrite such
    ///   a file in place while it is in use; replacing it by a rename (as everything here does) is fine.
    /// - `*.safetensors.index.json` and `*.bin.index.json` name the shards beside them.
    /// - any other file must be a PyTorch pickle (`.bin`, `.pt`, `.pth`, `.ckpt`; zip or legacy format).
    ///   It is read without executing anything: only the few functions that rebuild tensors are known.
    ///   A dictionary under the key `state_dict` is unwrapped; entries that are not tensors are skipped
    ///   and listed by [`Self::skipped_entries`].
    /// - a folder must hold one of `diffusion_pytorch_model` or `model` / `pytorch_model` as
    ///   `.safetensors`, `.bin` or their index. Like diffusers, safetensors are preferred to pickles and
    ///   full precision to the `fp16` variant.
    ///
    /// # Errors
    /// [`StateDictError`] says what is missing, damaged or refused.
    pub fn load(path: &Path) -> Result<Self, StateDictError> {
        let metadata =
            std::fs::metadata(path).map_err(|source| StateDictError::read(path, source))?;
        if metadata.is_dir() {
            return Self::load(&folder::weights_in(path)?);
        }
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".safetensors") {
            safetensors_file::load(path)
        } else if sharded::is_index(&name) {
            sharded::load(path)
        } else {
            torch_file::load(path)
        }
    }

    /// Writes one safetensors file, atomically.
    ///
    /// Tensors are sorted by the size of their dtype and by name (so that every tensor is aligned), the
    /// header is sorted too: the same state dict always gives the same bytes. The metadata entry
    /// `format` is always `pt`, without which transformers refuses the file.
    ///
    /// # Errors
    /// [`StateDictError::Io`] when the disk is full or the folder missing, and
    /// [`StateDictError::ReservedName`] for a tensor called `__metadata__`.
    pub fn save(&self, path: &Path) -> Result<(), StateDictError> {
        self.write(StateDictWriter::to_file(path, self.iter(), &self.metadata)?).map(drop)
    }

    /// Writes `stem-00001-of-0000N.safetensors` and `stem.safetensors.index.json` into `folder`, as
    /// diffusers (`diffusion_pytorch_model`) and transformers (`model`) do; one `stem.safetensors` when
    /// everything fits. `max_shard_bytes` counts tensor bytes; a larger tensor gets a shard of its own.
    ///
    /// Files of the same stem from an earlier save are removed at the end, so that the folder holds one
    /// model. Returns the file to load: the index, or the single file.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_sharded(
        &self,
        folder: &Path,
        stem: &str,
        max_shard_bytes: u64,
    ) -> Result<PathBuf, StateDictError> {
        let files = WeightFiles::new(stem);
        let (tensors, metadata) = (self.iter(), &self.metadata);
        self.write(StateDictWriter::to_folder(folder, &files, max_shard_bytes, tensors, metadata)?)
    }

    fn write(&self, writer: StateDictWriter<'_>) -> Result<PathBuf, StateDictError> {
        for (name, tensor) in self.iter() {
            writer.write(name, 0, tensor.bytes())?;
        }
        writer.finish(&self.metadata)
    }

    /// The free-form metadata of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Sets one metadata entry.
    pub fn set_metadata(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.metadata.insert(key.into(), value.into());
    }

    /// What a pickle held besides tensors, as `key: kind`. Empty for every other format.
    pub fn skipped_entries(&self) -> &[String] {
        &self.skipped
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Adds or replaces a tensor; returns the one that had the name before.
    pub fn insert(&mut self, name: String, tensor: StoredTensor) -> Option<StoredTensor> {
        self.tensors.insert(name, tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<StoredTensor> {
        self.tensors.remove(name)
    }

    /// Names and tensors in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True without tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// How many numbers all tensors hold together.
    pub fn num_parameters(&self) -> usize {
        self.tensors.values().map(StoredTensor::numel).sum()
    }

    /// How many bytes all tensors hold together.
    pub fn num_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes().len() as u64).sum()
    }

    /// XXH3 (128 bits), in hex, of names, dtypes, shapes and bytes in the order of the names; not of the
    /// metadata.
    pub fn content_hash(&self) -> String {
        let hash = |(name, tensor): (&String, &StoredTensor)| tensor_hash(name, tensor);
        model_hash(&self.tensors.par_iter().map(hash).collect::<Vec<_>>())
    }

    /// Checks that no floating-point tensor holds a NaN or an infinity. Of a mapped file no more than one tensor per
    /// thread is in memory meanwhile, and none afterwards ([`StoredTensor::release_pages`]).
    ///
    /// # Errors
    /// [`StateDictError::NonFinite`] names the first one, in the order of the names.
    pub fn check_finite(&self) -> Result<(), StateDictError> {
        self.tensors
            .par_iter()
            .find_map_first(|(name, tensor)| {
                let found = tensor.first_non_finite();
                tensor.release_pages();
                let (index, value) = found?;
                Some(StateDictError::NonFinite { name: name.clone(), index, value })
            })
            .map_or(Ok(()), Err)
    }
}

impl fmt::Debug for StateDict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDict")
            .field("tensors", &self.tensors)
            .field("metadata", &self.metadata)
            .finish()
    }
}

impl FromIterator<(String, StoredTensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, StoredTensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect(), ..Self::default() }
    }
}
