//! What a model is known by: BLAKE3 over names, dtypes, shapes and bytes.
//!
//! Each tensor has a hash of its own, and the model's is the hash of these in the order of the names. So
//! tensors can be hashed side by side, and while they are read for something else. BLAKE3 because merging
//! reads five models at the speed of memory: it takes half the time of SHA-256 and is as hard to fool.

use super::Dtype;

/// The hash of one tensor, fed with its bytes from first to last.
pub(crate) struct TensorHasher(blake3::Hasher);

/// The hash of one tensor.
pub(crate) type TensorHash = [u8; 32];

impl TensorHasher {
    pub(crate) fn new(name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(dtype.to_string().as_bytes());
        hasher.update(&(shape.len() as u64).to_le_bytes());
        for &size in shape {
            hasher.update(&(size as u64).to_le_bytes());
        }
        Self(hasher)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> TensorHash {
        self.0.finalize().into()
    }
}

/// The hash of a model, in hex (64 digits), from those of its tensors in the order of their names.
pub(crate) fn model_hash(tensors: &[TensorHash]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(tensors.len() as u64).to_le_bytes());
    for tensor in tensors {
        hasher.update(tensor);
    }
    hasher.finalize().to_string()
}
