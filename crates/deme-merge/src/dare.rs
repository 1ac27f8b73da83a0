//! DARE: drop and rescale.   (Yu et al. 2024, eq. 2)
//!
//! `tau_i` becomes `m_i tau_i / (1 - p)` with `m_i` 0 with probability p at each entry and 1 otherwise, so
//! that its mean stays what it was; what is left is merged linearly.

use xxhash_rust::xxh3::xxh3_64;

use crate::merge_inputs::Block;

/// The masks of one tensor. Whether an entry stays is a pure function of seed, expert, the tensor's name
/// and the entry's position, and so depends on nothing else: not on threads, other tensors or other experts.
pub(crate) struct Dare {
    /// Per expert.
    keys: Vec<u64>,
    /// `w_i / (1 - p)`.
    weights: Vec<f32>,
    /// `p` as a part of 2^53.
    dropped: u64,
}

impl Dare {
    pub(crate) fn new(weights: &[f64], drop: f64, seed: u64, name: &str) -> Self {
        Self {
            keys: (0..weights.len()).map(|expert| key(seed, expert as u64, name)).collect(),
            weights: weights.iter().map(|weight| (weight / (1.0 - drop)) as f32).collect(),
            dropped: (drop * (1u64 << 53) as f64) as u64,
        }
    }

    /// `theta + sum_i w_i m_i tau_i / (1 - p)`
    pub(crate) fn merge(&self, block: &Block<'_>, merged: &mut [f32]) {
        merged.copy_from_slice(block.theta);
        for ((theta_i, &key), &weight) in block.experts.iter().zip(&self.keys).zip(&self.weights) {
            if weight == 0.0 {
                continue;
            }
            for (((entry, m), &t), &t_i) in
                (block.entries.start as u64..).zip(&mut *merged).zip(block.theta).zip(*theta_i)
            {
                if mixed(key, entry) >> 11 >= self.dropped {
                    *m += weight * (t_i - t);
                }
            }
        }
    }
}

fn key(seed: u64, expert: u64, name: &str) -> u64 {
    xxh3_64(&[&seed.to_le_bytes(), &expert.to_le_bytes(), name.as_bytes()].concat())
}

/// The `entry`-th number of SplitMix64 from `key`.   (Steele et al. 2014)
fn mixed(key: u64, entry: u64) -> u64 {
    let mut z = key.wrapping_add(entry.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vigna's reference implementation from the state 1234567.
    #[test]
    fn the_generator_is_splitmix64() {
        let numbers: Vec<u64> = (0..3).map(|entry| mixed(1_234_567, entry)).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
