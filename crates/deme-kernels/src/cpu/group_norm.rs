//! Group normalisation with the activation that follows it, forward and backward.
//!
//! Wu and He 2018, eq. 1 to 7. The work is split by (image, group): one group of one image is
//! contiguous in memory and normally stays in the nearest cache between the passes.

use super::buffer::{Scratch, SharedOutput};
use super::conv::plane_sum;
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

    pub(crate) fn len(&self) -> usize {
        self.images * self.channels * self.area
    }
}

/// What is normalised: x, `[images, channels, area]`, whose channels may lie in two tensors, the
/// second's behind the first's; and a shift per image and channel that is added to it, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub parts: [&'a [f32]; 2],
    pub channels: [usize; 2],
    pub shift: Option<&'a [f32]>,
}

/// One group of one image: the same piece of the first part and of the second.
type Pieces = [std::ops::Range<usize>; 2];

impl Input<'_> {
    fn check(&self, shape: GroupNormShape) {
        let GroupNormShape { images, channels, area, .. } = shape;
        assert_eq!(self.channels.iter().sum::<usize>(), channels);
        assert_eq!(self.parts.map(<[f32]>::len), self.channels.map(|c| images * c * area));
        assert!(self.shift.is_none_or(|shift| shift.len() == images * channels));
    }

    /// Where group `i` (counted over all images) lies in the two parts.
    fn pieces(&self, shape: GroupNormShape, i: usize) -> Pieces {
        let (image, group) = (i / shape.groups, i % shape.groups);
        let first = group * shape.channels_per_group();
        let channels = first..first + shape.channels_per_group();
        let begins = [0, self.channels[0]];
        std::array::from_fn(|part| {
            let within = |c: usize| c.saturating_sub(begins[part]).min(self.channels[part]);
            let place = |c: usize| (image * self.channels[part] + within(c)) * shape.area;
            place(channels.start)..place(channels.end)
        })
    }

    /// The group's values as one piece, when they lie so and nothing is added.
    fn whole(&self, pieces: &Pieces) -> Option<&[f32]> {
        if self.shift.is_some() {
            return None;
        }
        match pieces.each_ref().map(|piece| piece.is_empty()) {
            [false, true] => Some(&self.parts[0][pieces[0].clone()]),
            [true, false] => Some(&self.parts[1][pieces[1].clone()]),
            _ => None,
        }
    }

    /// Writes the group's values, with the shift, one behind the other.
    fn gather(
        &self,
        shape: GroupNormShape,
        i: usize,
        pieces: &Pieces,
        to: &mut [MaybeUninit<f32>],
    ) {
        let (first, second) = to.split_at_mut(pieces[0].len());
        first.write_copy_of_slice(&self.parts[0][pieces[0].clone()]);
        second.write_copy_of_slice(&self.parts[1][pieces[1].clone()]);
        if let Some(shift) = self.shift {
            let shift = &shift[i * shape.channels_per_group()..];
            for (to, shift) in to.chunks_exact_mut(shape.area).zip(shift) {
                for to in to {
                    // SAFETY: both halves have been written above.
                    let value = unsafe { to.assume_init() };
                    to.write(value + shift);
                }
            }
        }
    }

    /// Calls `work` with the values of group `i`, the shift added.
    fn with_group<R>(&self, shape: GroupNormShape, i: usize, work: impl FnOnce(&[f32]) -> R) -> R {
        let pieces = self.pieces(shape, i);
        if let Some(x) = self.whole(&pieces) {
            return work(x);
        }
        let mut group = Scratch::new(shape.group_len());
        self.gather(shape, i, &pieces, group.uninit());
        work(&group)
    }
}

/// Weight and bias, `[channels]`, and whether SiLU follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub silu: bool,
}

impl Affine<'_> {
    /// That of group `i` (counted over all images).
    fn of_group(&self, shape: GroupNormShape, i: usize) -> Self {
        let first = i % shape.groups * shape.channels_per_group();
        let channels = first..first + shape.channels_per_group();
        Self { weight: &self.weight[channels.clone()], bias: &self.bias[channels], ..*self }
    }
}

/// Fills `y` with the normalised, scaled and activated x, and `stats` with (mean, 1 / deviation)
/// of every (image, group).
pub(crate) fn forward(
    shape: GroupNormShape,
    x: &Input<'_>,
    affine: Affine<'_>,
    eps: f64,
    y: &mut [MaybeUninit<f32>],
    stats: &mut [[f32; 2]],
) {
    x.check(shape);
    assert_eq!(y.len(), shape.len());
    assert_eq!(stats.len(), shape.images * shape.groups);
    if y.is_empty() {
        return;
    }
    let work = y.par_chunks_mut(shape.group_len()).zip(stats).enumerate();
    work.with_min_len(min_groups(shape)).for_each(|(i, (y, stats))| {
        let affine = affine.of_group(shape, i);
        *stats = x.with_group(shape, i, |x| {
            let stats = statistics(x, eps);
            apply(x, affine, stats, y);
            stats
        });
    });
}

/// The y of [`forward`] once more, from the statistics it gave.
pub(crate) fn forward_again(
    shape: GroupNormShape,
    x: &Input<'_>,
    affine: Affine<'_>,
    stats: &[[f32; 2]],
    y: &mut [MaybeUninit<f32>],
) {
    x.check(shape);
    assert_eq!(y.len(), shape.len());
    assert_eq!(stats.len(), shape.images * shape.groups);
    if y.is_empty() {
        return;
    }
    let work = y.par_chunks_mut(shape.group_len()).zip(stats).enumerate();
    work.with_min_len(min_groups(shape)).for_each(|(i, (y, stats))| {
        x.with_group(shape, i, |x| apply(x, affine.of_group(shape, i), *stats, y));
    });
}

/// The gradients that [`backward`] gives besides those of x.
pub(crate) struct Gradients {
    /// Per image and channel; empty unless the input has a shift.
    pub shift: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// Fills `dx` with the gradients of the two parts of x and returns the others.
pub(crate) fn backward(
    shape: GroupNormShape,
    x: &Input<'_>,
    affine: Affine<'_>,
    stats: &[[f32; 2]],
    dy: &[f32],
    dx: [SharedOutput<'_>; 2],
) -> Gradients {
    x.check(shape);
    assert_eq!(dy.len(), shape.len());
    assert_eq!(dx.map(|dx| dx.len()), x.parts.map(<[f32]>::len));
    assert_eq!(stats.len(), shape.images * shape.groups);
    let channels = shape.channels_per_group();
    // (sum of dz x_hat, sum of dz) of every (image, channel); added over images afterwards, in
    // the images' order.
    let mut sums = vec![[0.0f32; 2]; shape.images * shape.channels];
    let mut dshift = vec![0.0; if x.shift.is_some() { sums.len() } else { 0 }];
    if !dy.is_empty() {
        let dshift_out = SharedOutput::new(&mut dshift);
        let work = dy.par_chunks(shape.group_len()).zip(sums.par_chunks_mut(channels)).enumerate();
        work.with_min_len(min_groups(shape)).for_each(|(i, (dy, sums))| {
            let affine = affine.of_group(shape, i);
            let pieces = x.pieces(shape, i);
            if let Some(x) = x.whole(&pieces) {
                let part = usize::from(pieces[0].is_empty());
                let to = dx[part].pointer(pieces[part].clone());
                // SAFETY: in bounds by `pointer`; every group has its own piece.
                let dx = unsafe { std::slice::from_raw_parts_mut(to.cast(), dy.len()) };
                return differentiate_group(x, affine, stats[i], dy, dx, sums);
            }
            let (mut group, mut dgroup) = (Scratch::new(dy.len()), Scratch::new(dy.len()));
            x.gather(shape, i, &pieces, group.uninit());
            differentiate_group(&group, affine, stats[i], dy, dgroup.uninit(), sums);
            let (in_first, in_second) = dgroup.split_at(pieces[0].len());
            for (from, (dx, piece)) in [in_first, in_second].into_iter().zip(dx.iter().zip(pieces))
            {
                let to = dx.pointer(piece);
                // SAFETY: in bounds by `pointer`; every group has its own pieces.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
            }
            if x.shift.is_some() {
                let to = dshift_out.pointer(i * channels..(i + 1) * channels);
                for (c, dx) in dgroup.chunks_exact(shape.area).enumerate() {
                    // SAFETY: in bounds by `pointer`; every group has its own channels.
                    unsafe { *to.add(c) = plane_sum(dx) };
                }
            }
        });
    }
    let (mut dweight, mut dbias) = (vec![0.0; shape.channels], vec![0.0; shape.channels]);
    for image in sums.chunks(shape.channels.max(1)) {
        for (c, [weight, bias]) in image.iter().enumerate() {
            dweight[c] += weight;
            dbias[c] += bias;
        }
    }
    Gradients { shift: dshift, weight: dweight, bias: dbias }
}

/// Groups per task, so that a task is worth handing to another thread.
fn min_groups(shape: GroupNormShape) -> usize {
    (4096 / shape.group_len().max(1)).max(1)
}

multiversioned! {
    fn statistics(x: &[f32], eps: f64) -> [f32; 2] = statistics_with
}

/// (mean, 1 / deviation).
#[inline(always)]
fn statistics_with<F: MulAdd>(x: &[f32], eps: f64) -> [f32; 2] {
    let (mean, variance) = moments::<F>(x);
    [mean as f32, (1.0 / (variance + eps).sqrt()) as f32]
}

multiversioned! {
    fn apply(x: &[f32], affine: Affine<'_>, stats: [f32; 2], y: &mut [MaybeUninit<f32>]) = apply_with
}

/// Normalises, scales and activates one group.
#[inline(always)]
fn apply_with<F: MulAdd>(
    x: &[f32],
    Affine { weight, bias, silu }: Affine<'_>,
    [mean, inverse_deviation]: [f32; 2],
    y: &mut [MaybeUninit<f32>],
) {
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
    fn differentiate_group(x: &[f32], affine: Affine<'_>, stats: [f32; 2], dy: &[f32], dx: &mut [MaybeUninit<f32>], sums: &mut [[f32; 2]]) = differentiate_group_with
}

/// With z = weight x_hat + bias, dz = dy activation'(z) and g = weight dz:
/// dx = (g - mean(g) - x_hat mean(g x_hat)) / deviation.
#[inline(always)]
fn differentiate_group_with<F: MulAdd>(
    x: &[f32],
    Affine { weight, bias, silu }: Affine<'_>,
    [mean, inverse_deviation]: [f32; 2],
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
