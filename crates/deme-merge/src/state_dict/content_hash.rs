//! What a model is known by: XXH3 (128 bits) over bytes, names, dtypes and shapes.
//!
//! Each tensor has a hash of its own, and the model's is the hash of these in the order of the names. So
//! tensors can be hashed side by side, and while they are read for something else. The hash tells models
//! apart and finds damage; it is no protection against somebody who wants two models to look the same.
//! SHA-256 would be, but hashing five models by it takes longer than merging them.

use xxhash_rust::xxh3::Xxh3;

use super::{Dtype, StoredTensor};

/// The hash of one tensor.
pub(crate) type TensorHash = u128;

/// Takes the bytes of one tensor, from first to last. What the tensor is comes behind them.
#[derive(Default)]
pub(crate) struct TensorHasher(Xxh3);

impl TensorHasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(mut self, name: &str, dtype: Dtype, shape: &[usize]) -> TensorHash {
        for &size in shape {
            self.0.update(&(size as u64).to_le_bytes());
        }
        self.0.update(&(shape.len() as u64).to_le_bytes());
        let dtype = dtype.to_string();
        for text in [&dtype, name] {
            self.0.update(text.as_bytes());
            self.0.update(&(text.len() as u64).to_le_bytes());
        }
        self.0.digest128()
    }
}

/// The hash of a tensor that is read at once.
pub(crate) fn tensor_hash(name: &str, tensor: &StoredTensor) -> TensorHash {
    let mut hasher = TensorHasher::default();
    hasher.update(tensor.bytes());
    hasher.finish(name, tensor.dtype(), tensor.shape())
}

/// The hash of a model, in hex (32 digits), from those of its tensors in the order of their names.
pub(crate) fn model_hash(tensors: &[TensorHash]) -> String {
    let mut hasher = Xxh3::new();
    hasher.update(&(tensors.len() as u64).to_le_bytes());
    for tensor in tensors {
        hasher.update(&tensor.to_le_bytes());
    }
    format!("{:032x}", hasher.digest128())
}
