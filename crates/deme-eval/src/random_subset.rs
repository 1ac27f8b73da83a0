//! Random subsets of pictures, each decided by a seed and its number.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `size` of the positions `0..count` without repetition, in random order (Fisher and Yates).
///
/// # Panics
/// When more are wanted than there are.
pub(crate) fn random_subset(count: usize, size: usize, seed: u64, stream: u64) -> Vec<usize> {
    assert!(size <= count, "{size} of {count} pictures");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut positions: Vec<usize> = (0..count).collect();
    for i in 0..size {
        let j = rng.random_range(i..count);
        positions.swap(i, j);
    }
    positions.truncate(size);
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_drawn_twice_and_everything_alike_often() {
        let mut times = [0; 10];
        for stream in 0..2000 {
            let mut drawn = random_subset(10, 4, 1, stream);
            drawn.iter().for_each(|&i| times[i] += 1);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 4);
        }
        // 800 each; five standard deviations of a binomial are 110.
        assert!(times.iter().all(|&times: &i32| (times - 800).abs() < 110), "{times:?}");
    }

    #[test]
    fn the_seed_and_the_number_decide() {
        let a = random_subset(50, 20, 1, 0);
        assert_eq!(a, random_subset(50, 20, 1, 0));
        assert_ne!(a, random_subset(50, 20, 2, 0));
        assert_ne!(a, random_subset(50, 20, 1, 1));
    }
}
