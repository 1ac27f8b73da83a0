//! Group normalisation with the activation that follows it, forward and backward.
//!
//! Wu and He 2018, eq. 1 to 7. The work is split by (image, group): one group of one image is
//! contiguous in memory and normally stays in the nearest cache between the passes.

use super::simd::{LANES, MulAdd, fold, lane_sum, multiversioned, sigmoid};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Sizes of one call: x is `[images, channels, area]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormShape {
    pub images: usize,
    pub channels: usize,
    pub area: usize,
    pub groups: usize,
}

impl GroupNormShape {
    fn channels_per_group(&self) -> usize {
        self.channels / self.groups
    }

    fn group_len(&self) -> usize {
        self.channels_per_group() * self.area
    }

    fn len(&self) -> usize {
        self.images * self.channels * self.area
    }
}

/// Fills `y` with the normalised, scaled and activated x, and `stats` with (mean, 1 / deviation)
/// of every (image, group).
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward(
    shape: GroupNormShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    silu: bool,
    y: &mut [MaybeUninit<f32>],
    stats: &mut [[f32; 2]],
) {
    assert_eq!([x.len(), y.len()], [shape.len(); 2]);
    assert_eq!(stats.len(), shape.images * shape.groups);
    if x.is_empty() {
        return;
    }
    let channels = shape.channels_per_group();
    let work = x
        .par_chunks(shape.group_len())
        .zip(y.par_chunks_mut(shape.group_len()))
        .zip(stats)
        .enumerate();
    work.with_min_len(min_groups(shape)).for_each(|(i, ((x, y), stats))| {
        let first = i % shape.groups * channels;
        let weight = &weight[first..first + channels];
        let bias = &bias[first..first + channels];
        *stats = normalise_group(x, weight, bias, eps, silu, y);
    });
}

/// Fills `dx` with the gradient of x and returns those of weight and bias.
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    shape: GroupNormShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    stats: &[[f32; 2]],
    silu: bool,
    dy: &[f32],
    dx: &mut [MaybeUninit<f32>],
) -> [Vec<f32>; 2] {
    assert_eq!([x.len(), dy.len(), dx.len()], [shape.len(); 3]);
    assert_eq!(stats.len(), shape.images * shape.groups);
    let channels = shape.channels_per_group();
    // (sum of dz x_hat, sum of dz) of every (image, channel); added over images afterwards, in
    // the images' order.
    let mut sums = vec![[0.0f32; 2]; shape.images * shape.channels];
    if !x.is_empty() {
        let work = x
            .par_chunks(shape.group_len())
            .zip(dy.par_chunks(shape.group_len()))
            .zip(dx.par_chunks_mut(shape.group_len()))
            .zip(sums.par_chunks_mut(channels))
            .enumerate();
        work.with_min_len(min_groups(shape)).for_each(|(i, (((x, dy), dx), sums))| {
            let first = i % shape.groups * channels;
            let weight = &weight[first..first + channels];
            let bias = &bias[first..first + channels];
            differentiate_group(x, weight, bias, stats[i], silu, dy, dx, sums);
        });
    }
    let mut grads = [vec![0.0; shape.channels], vec![0.0; shape.channels]];
    for image in sums.chunks(shape.channels.max(1)) {
        for (c, [dweight, dbias]) in image.iter().enumerate() {
            grads[0][c] += dweight;
            grads[1][c] += dbias;
        }
    }
    grads
}

/// Groups per task, so that a task is worth handing to another thread.
fn min_groups(shape: GroupNormShape) -> usize {
    (4096 / shape.group_len().max(1)).max(1)
}

multiversioned! {
    fn normalise_group(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, silu: bool, y: &mut [MaybeUninit<f32>]) -> [f32; 2] = normalise_group_with
}

#[inline(always)]
fn normalise_group_with<F: MulAdd>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    silu: bool,
    y: &mut [MaybeUninit<f32>],
) -> [f32; 2] {
    let (mean, variance) = moments::<F>(x);
    let mean = mean as f32;
    let inverse_deviation = (1.0 / (variance + eps).sqrt()) as f32;
    let area = x.len() / weight.len();
    for (c, (x, y)) in x.chunks_exact(area).zip(y.chunks_exact_mut(area)).enumerate() {
        let (slope, bias) = (weight[c] * inverse_deviation, bias[c]);
        if silu {
            for (x, y) in x.iter().zip(y) {
                let z = F::mul_add(x - mean, slope, bias);
                y.write(z * sigmoid::<F>(z));
            }
        } else {
            for (x, y) in x.iter().zip(y) {
                y.write(F::mul_add(x - mean, slope, bias));
            }
        }
    }
    [mean, inverse_deviation]
}

/// Mean and biased variance: exact two-pass moments of cache-sized blocks, merged in f64
/// (Chan et al. 1983, eq. 2.1).
#[inline(always)]
fn moments<F: MulAdd>(x: &[f32]) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0f64, 0.0f64, 0.0f64);
    for block in x.chunks(4096) {
        let n = block.len() as f64;
        let block_mean = lane_sum(block, block, |sum, x, _| sum + x) / block.len() as f32;
        // The rounding of the block's mean is taken out again by the sum of deviations.
        let mut deviation = [0.0f32; LANES];
        let mut square = [0.0f32; LANES];
        let (lanes, rest) = block.as_chunks::<LANES>();
        for x in lanes {
            for i in 0..LANES {
                let d = x[i] - block_mean;
                deviation[i] += d;
                square[i] = F::mul_add(d, d, square[i]);
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let d = x - block_mean;
            deviation[i] += d;
            square[i] = F::mul_add(d, d, square[i]);
        }
        let shift = f64::from(fold(deviation)) / n;
        let block_squares = f64::from(fold(square)) - n * shift * shift;
        let delta = f64::from(block_mean) + shift - mean;
        let total = count + n;
        mean += delta * n / total;
        squares += block_squares + delta * delta * count * n / total;
        count = total;
    }
    (mean, squares / count)
}

multiversioned! {
    #[allow(clippy::too_many_arguments)]
    fn differentiate_group(x: &[f32], weight: &[f32], bias: &[f32], stats: [f32; 2], silu: bool, dy: &[f32], dx: &mut [MaybeUninit<f32>], sums: &mut [[f32; 2]]) = differentiate_group_with
}

/// With z = weight x_hat + bias, dz = dy activation'(z) and g = weight dz:
/// dx = (g - mean(g) - x_hat mean(g x_hat)) / deviation.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn differentiate_group_with<F: MulAdd>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    [mean, inverse_deviation]: [f32; 2],
    silu: bool,
    dy: &[f32],
    dx: &mut [MaybeUninit<f32>],
    sums: &mut [[f32; 2]],
) {
    let area = x.len() / weight.len();
    // First pass: dz into dx, and its sums per channel.
    for c in 0..weight.len() {
        let range = c * area..(c + 1) * area;
        let (x, dy, dx) = (&x[range.clone()], &dy[range.clone()], &mut dx[range]);
        let (weight, bias) = (weight[c], bias[c]);
        let mut dweight = [0.0f32; LANES];
        let mut dbias = [0.0f32; LANES];
        let mut start = 0;
        while start < area {
            let n = LANES.min(area - start);
            let block = start..start + n;
            let mut step = |i: usize, x: f32, dy: f32, dx: &mut MaybeUninit<f32>| {
                let x_hat = (x - mean) * inverse_deviation;
                let dz = if silu {
                    let z = F::mul_add(weight, x_hat, bias);
                    let s = sigmoid::<F>(z);
                    dy * s * F::mul_add(z, 1.0 - s, 1.0)
                } else {
                    dy
                };
                dx.write(dz);
                dweight[i] = F::mul_add(dz, x_hat, dweight[i]);
                dbias[i] += dz;
            };
            let (x, dy, dx) = (&x[block.clone()], &dy[block.clone()], &mut dx[block]);
            if n == LANES {
                for i in 0..LANES {
                    step(i, x[i], dy[i], &mut dx[i]);
                }
            } else {
                for i in 0..n {
                    step(i, x[i], dy[i], &mut dx[i]);
                }
            }
            start += n;
        }
        sums[c] = [fold(dweight), fold(dbias)];
    }
    let (mut mean_g, mut mean_gx) = (0.0f64, 0.0f64);
    for (weight, [dweight, dbias]) in weight.iter().zip(sums.iter()) {
        mean_g += f64::from(*weight) * f64::from(*dbias);
        mean_gx += f64::from(*weight) * f64::from(*dweight);
    }
    let mean_g = (mean_g / x.len() as f64) as f32;
    let mean_gx = (mean_gx / x.len() as f64) as f32;
    // SAFETY: the first pass has written every entry: its channels cover x, and dx is as long.
    let dx = unsafe { dx.assume_init_mut() };
    let channels = x.chunks_exact(area).zip(dx.chunks_exact_mut(area));
    for (weight, (x, dx)) in weight.iter().zip(channels) {
        for (x, dx) in x.iter().zip(dx) {
            let x_hat = (x - mean) * inverse_deviation;
            let centred = F::mul_add(-x_hat, mean_gx, F::mul_add(*weight, *dx, -mean_g));
            *dx = centred * inverse_deviation;
        }
    }
}
