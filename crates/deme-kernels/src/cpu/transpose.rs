//! Between planes (`[channel][pixel]`, as tensors are stored) and pixels (`[pixel][channel]`, as
//! the products want them).

use super::simd::{InstructionSet, instruction_set};

/// Copies `channels` planes of `pixels` entries each, plane c from `src[c * plane]` on, so that
/// pixel p's channels stand at `dst[places(p)..]`.
pub(crate) fn planes_to_pixels(
    src: &[f32],
    plane: usize,
    channels: usize,
    pixels: usize,
    dst: &mut [f32],
    places: impl Fn(usize) -> usize,
) {
    if channels == 0 || pixels == 0 {
        return;
    }
    assert!((channels - 1) * plane + pixels <= src.len());
    let blocks = if wide() { channels / 8 } else { 0 };
    let mut start = 0;
    while start < pixels {
        let n = 8.min(pixels - start);
        let mut to = [0; 8];
        for (i, to) in to.iter_mut().enumerate().take(n) {
            *to = places(start + i);
            assert!(*to + channels <= dst.len());
        }
        let mut c = 0;
        if n == 8 && blocks > 0 {
            let (src, dst) = (src.as_ptr(), dst.as_mut_ptr());
            // SAFETY: the source rows of all blocks have 8 entries (start + 8 <= pixels), the
            // destinations at least `channels`, by the checks above.
            unsafe {
                let (mut rows, mut columns) = ([src; 8], [dst; 8]);
                for i in 0..8 {
                    rows[i] = src.add(i * plane + start);
                    columns[i] = dst.add(to[i]);
                }
                transpose_blocks(&rows, 8 * plane, &columns, 8, blocks);
            }
            c = 8 * blocks;
        }
        for c in c..channels {
            let row = &src[c * plane + start..][..n];
            for (value, to) in row.iter().zip(to) {
                dst[to + c] = *value;
            }
        }
        start += n;
    }
}

/// The reverse: pixel p's channels, from `src[places(p)]` on, go to `dst + c * plane + p`.
///
/// # Safety
/// `dst` must be valid for writes of `pixels` entries at every `c * plane`, `c < channels`, and no
/// other thread may touch them meanwhile.
pub(crate) unsafe fn pixels_to_planes(
    src: &[f32],
    places: impl Fn(usize) -> usize,
    channels: usize,
    pixels: usize,
    dst: *mut f32,
    plane: usize,
) {
    let blocks = if wide() { channels / 8 } else { 0 };
    let mut start = 0;
    while start < pixels {
        let n = 8.min(pixels - start);
        let mut from = [0; 8];
        for (i, from) in from.iter_mut().enumerate().take(n) {
            *from = places(start + i);
            assert!(*from + channels <= src.len());
        }
        let mut c = 0;
        if n == 8 && blocks > 0 {
            // SAFETY: sources by the check above, destinations by the caller's promise.
            unsafe {
                let (mut rows, mut columns) = ([src.as_ptr(); 8], [dst; 8]);
                for i in 0..8 {
                    rows[i] = src.as_ptr().add(from[i]);
                    columns[i] = dst.add(i * plane + start);
                }
                transpose_blocks(&rows, 8, &columns, 8 * plane, blocks);
            }
            c = 8 * blocks;
        }
        for c in c..channels {
            for (i, from) in from.iter().enumerate().take(n) {
                // SAFETY: the caller's promise.
                unsafe { *dst.add(c * plane + start + i) = src[from + c] };
            }
        }
        start += n;
    }
}

/// Whether [`transpose_blocks`] may be called.
fn wide() -> bool {
    instruction_set() != InstructionSet::Portable
}

/// Transposes `blocks` blocks of 8x8, each `from_step` and `to_step` behind the one before.
///
/// # Safety
/// Eight entries of every block must be readable and writable at each pointer, and AVX2 available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_blocks(
    from: &[*const f32; 8],
    from_step: usize,
    to: &[*mut f32; 8],
    to_step: usize,
    blocks: usize,
) {
    use std::arch::x86_64::*;
    for block in 0..blocks {
        let (a, b) = (block * from_step, block * to_step);
        // SAFETY: the caller's promise.
        unsafe {
            let r: [__m256; 8] = [
                _mm256_loadu_ps(from[0].add(a)),
                _mm256_loadu_ps(from[1].add(a)),
                _mm256_loadu_ps(from[2].add(a)),
                _mm256_loadu_ps(from[3].add(a)),
                _mm256_loadu_ps(from[4].add(a)),
                _mm256_loadu_ps(from[5].add(a)),
                _mm256_loadu_ps(from[6].add(a)),
                _mm256_loadu_ps(from[7].add(a)),
            ];
            let (a0, a1) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
            let (a2, a3) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
            let (a4, a5) = (_mm256_unpacklo_ps(r[4], r[5]), _mm256_unpackhi_ps(r[4], r[5]));
            let (a6, a7) = (_mm256_unpacklo_ps(r[6], r[7]), _mm256_unpackhi_ps(r[6], r[7]));
            let b0 = _mm256_shuffle_ps::<0x44>(a0, a2);
            let b1 = _mm256_shuffle_ps::<0xee>(a0, a2);
            let b2 = _mm256_shuffle_ps::<0x44>(a1, a3);
            let b3 = _mm256_shuffle_ps::<0xee>(a1, a3);
            let b4 = _mm256_shuffle_ps::<0x44>(a4, a6);
            let b5 = _mm256_shuffle_ps::<0xee>(a4, a6);
            let b6 = _mm256_shuffle_ps::<0x44>(a5, a7);
            let b7 = _mm256_shuffle_ps::<0xee>(a5, a7);
            _mm256_storeu_ps(to[0].add(b), _mm256_permute2f128_ps::<0x20>(b0, b4));
            _mm256_storeu_ps(to[1].add(b), _mm256_permute2f128_ps::<0x20>(b1, b5));
            _mm256_storeu_ps(to[2].add(b), _mm256_permute2f128_ps::<0x20>(b2, b6));
            _mm256_storeu_ps(to[3].add(b), _mm256_permute2f128_ps::<0x20>(b3, b7));
            _mm256_storeu_ps(to[4].add(b), _mm256_permute2f128_ps::<0x31>(b0, b4));
            _mm256_storeu_ps(to[5].add(b), _mm256_permute2f128_ps::<0x31>(b1, b5));
            _mm256_storeu_ps(to[6].add(b), _mm256_permute2f128_ps::<0x31>(b2, b6));
            _mm256_storeu_ps(to[7].add(b), _mm256_permute2f128_ps::<0x31>(b3, b7));
        }
    }
}

/// The same with NEON.
///
/// # Safety
/// Eight entries of every block must be readable and writable at each pointer, and NEON available.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn transpose_blocks(
    from: &[*const f32; 8],
    from_step: usize,
    to: &[*mut f32; 8],
    to_step: usize,
    blocks: usize,
) {
    use std::arch::aarch64::*;
    for block in 0..blocks {
        // The four quarters of a block.
        for (i, j) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            let (a, b) = (block * from_step + j, block * to_step + i);
            // SAFETY: the caller's promise.
            unsafe {
                let r0 = vld1q_f32(from[i].add(a));
                let r1 = vld1q_f32(from[i + 1].add(a));
                let r2 = vld1q_f32(from[i + 2].add(a));
                let r3 = vld1q_f32(from[i + 3].add(a));
                // Pairs of rows, taken as the halves of the columns from here on.
                let a0 = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));
                let a1 = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
                let a2 = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
                let a3 = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
                vst1q_f32(to[j].add(b), vreinterpretq_f32_f64(vtrn1q_f64(a0, a2)));
                vst1q_f32(to[j + 1].add(b), vreinterpretq_f32_f64(vtrn1q_f64(a1, a3)));
                vst1q_f32(to[j + 2].add(b), vreinterpretq_f32_f64(vtrn2q_f64(a0, a2)));
                vst1q_f32(to[j + 3].add(b), vreinterpretq_f32_f64(vtrn2q_f64(a1, a3)));
            }
        }
    }
}

/// The same in plain Rust.
///
/// # Safety
/// Eight entries of every block must be readable and writable at each pointer.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn transpose_blocks(
    from: &[*const f32; 8],
    from_step: usize,
    to: &[*mut f32; 8],
    to_step: usize,
    blocks: usize,
) {
    for block in 0..blocks {
        for (j, to) in to.iter().enumerate() {
            for (i, from) in from.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { *to.add(block * to_step + i) = *from.add(block * from_step + j) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for channels in [1usize, 3, 8, 11, 24] {
            for pixels in [1usize, 7, 8, 9, 33] {
                let plane = pixels + 2;
                let src: Vec<f32> = (0..channels * plane).map(|i| i as f32).collect();
                let mut mid = vec![-1.0; pixels * (channels + 1)];
                let place = |p| (pixels - 1 - p) * (channels + 1);
                planes_to_pixels(&src, plane, channels, pixels, &mut mid, place);
                for p in 0..pixels {
                    for c in 0..channels {
                        assert_eq!(mid[place(p) + c], src[c * plane + p]);
                    }
                }
                let mut back = src.clone();
                back.iter_mut().for_each(|x| *x += 0.5);
                // SAFETY: `back` has the shape of `src`.
                unsafe {
                    pixels_to_planes(&mid, place, channels, pixels, back.as_mut_ptr(), plane);
                }
                for c in 0..channels {
                    assert_eq!(back[c * plane..][..pixels], src[c * plane..][..pixels]);
                }
            }
        }
    }
}
