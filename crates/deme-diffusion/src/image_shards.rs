//! A batch in parts that run at the same time.
//!
//! The layers of a small network are too short to be shared between cores; the images of a batch are
//! independent. The parts follow from the number of images alone, never from the number of threads: sums
//! over them have one order on every machine.

use std::ops::Range;

use burn::tensor::Tensor;

/// Images of the smallest part worth its own pass over the weights.
const LEAST_IMAGES: usize = 8;
/// Each part has gradients of its own, which is what this bounds.
const MOST_SHARDS: usize = 4;

/// How to cut the batch `x` (`[B, C, H, W]`) along B: consecutive ranges of nearly equal length that cover
/// it. One range where the device is not a CPU, and for fewer than 16 images.
pub fn image_shards(x: &Tensor<4>) -> Vec<Range<usize>> {
    let images = x.dims()[0];
    let count = match deme_kernels::on_cpu(x) {
        true => (images / LEAST_IMAGES).clamp(1, MOST_SHARDS),
        false => 1,
    };
    (0..count).map(|i| i * images / count..(i + 1) * images / count).collect()
}

/// The images of one range.
pub fn shard(x: &Tensor<4>, range: &Range<usize>) -> Tensor<4> {
    x.clone().narrow(0, range.start, range.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn shards_cover_the_batch_once_and_none_is_small() {
        for images in 1..=70 {
            let shards = image_shards(&Tensor::zeros([images, 1, 1, 1], &Device::flex()));
            assert_eq!(
                shards.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                (0..images).collect::<Vec<_>>()
            );
            assert_eq!(shards.len(), [1, 1, 2, 3, 4][(images / 8).min(4)]);
            assert!(shards.len() == 1 || shards.iter().all(|s| s.len() >= LEAST_IMAGES));
        }
    }
}
