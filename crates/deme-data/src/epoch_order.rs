//! The order in which training sees its pictures: shuffled without replacement, epoch by epoch.
//!
//! A batch is a pure function of its absolute position, the number of pictures drawn before it, so
//! an interrupted run goes on with nothing but that number.

use crate::random_draws::RandomDraws;

/// The endless sequence of picture indices of a training run: one permutation of `0..len` after the
/// other, each from the seed and the number of its epoch alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochOrder {
    len: usize,
    seed: u64,
}

impl EpochOrder {
    /// The order of `len` pictures.
    ///
    /// # Panics
    /// When `len` is zero.
    pub fn new(len: usize, seed: u64) -> Self {
        assert!(len > 0, "an epoch of no pictures has no order");
        Self { len, seed }
    }

    /// The order of one epoch: a permutation of `0..len`.
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        RandomDraws::new(self.seed, epoch).permutation(self.len)
    }

    /// The indices at the absolute positions `start_position..start_position + batch_size`; a batch
    /// may begin in one epoch and end in the next. Takes time in proportion to `len`.
    pub fn batch(&self, start_position: u64, batch_size: usize) -> Vec<usize> {
        let len = self.len as u64;
        let mut indices = Vec::with_capacity(batch_size);
        let mut position = start_position;
        while indices.len() < batch_size {
            let start = (position % len) as usize;
            let taken = (batch_size - indices.len()).min(self.len - start);
            let epoch = self.epoch(position / len);
            indices.extend_from_slice(&epoch[start..start + taken]);
            position += taken as u64;
        }
        indices
    }
}
