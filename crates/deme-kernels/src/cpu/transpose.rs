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
    let mut start = 0;
    while start < pixels {
        let n = 8.min(pixels - start);
        let mut to = [0; 8];
        for (i, to) in to.iter_mut().enumerate().take(n) {
            *to = places(start + i);
            assert!(*to + channels <= dst.len());
        }
        let mut c = 0;
        if n == 8 && wide() {
            while c + 8 <= channels {
                let from = std::array::from_fn(|i| src[(c + i) * plane + start..].as_ptr());
                let to = to.map(|to| dst[to + c..].as_mut_ptr());
                // SAFETY: the eight source rows have 8 entries (start + 8 <= pixels), the eight
                // destinations at least 8 (c + 8 <= channels), by the checks above.
                unsafe { transpose_8x8(from, to) };
                c += 8;
            }
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
    let mut start = 0;
    while start < pixels {
        let n = 8.min(pixels - start);
        let mut from = [0; 8];
        for (i, from) in from.iter_mut().enumerate().take(n) {
            *from = places(start + i);
            assert!(*from + channels <= src.len());
        }
        let mut c = 0;
        if n == 8 && wide() {
            while c + 8 <= channels {
                let rows = from.map(|from| src[from + c..].as_ptr());
                // SAFETY: sources by the check above, destinations by the caller's promise.
                unsafe {
                    let to = std::array::from_fn(|i| dst.add((c + i) * plane + start));
                    transpose_8x8(rows, to);
                }
                c += 8;
            }
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

/// Whether [`transpose_8x8`] may be called.
fn wide() -> bool {
    instruction_set() != InstructionSet::Portable
}

/// # Safety
/// Eight entries must be readable and writable at each pointer, and AVX2 available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8x8(from: [*const f32; 8], to: [*mut f32; 8]) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let r: [__m256; 8] = [
            _mm256_loadu_ps(from[0]),
            _mm256_loadu_ps(from[1]),
            _mm256_loadu_ps(from[2]),
            _mm256_loadu_ps(from[3]),
            _mm256_loadu_ps(from[4]),
            _mm256_loadu_ps(from[5]),
            _mm256_loadu_ps(from[6]),
            _mm256_loadu_ps(from[7]),
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
        _mm256_storeu_ps(to[0], _mm256_permute2f128_ps::<0x20>(b0, b4));
        _mm256_storeu_ps(to[1], _mm256_permute2f128_ps::<0x20>(b1, b5));
        _mm256_storeu_ps(to[2], _mm256_permute2f128_ps::<0x20>(b2, b6));
        _mm256_storeu_ps(to[3], _mm256_permute2f128_ps::<0x20>(b3, b7));
        _mm256_storeu_ps(to[4], _mm256_permute2f128_ps::<0x31>(b0, b4));
        _mm256_storeu_ps(to[5], _mm256_permute2f128_ps::<0x31>(b1, b5));
        _mm256_storeu_ps(to[6], _mm256_permute2f128_ps::<0x31>(b2, b6));
        _mm256_storeu_ps(to[7], _mm256_permute2f128_ps::<0x31>(b3, b7));
    }
}

/// # Safety
/// Eight entries must be readable and writable at each pointer, and NEON available.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn transpose_8x8(from: [*const f32; 8], to: [*mut f32; 8]) {
    // SAFETY: the caller's promise; the four quarters cover all eight entries.
    unsafe {
        for i in [0, 4] {
            for j in [0, 4] {
                transpose_4x4(
                    std::array::from_fn(|k| from[i + k].add(j)),
                    std::array::from_fn(|k| to[j + k].add(i)),
                );
            }
        }
    }
}

/// # Safety
/// Four entries must be readable and writable at each pointer, and NEON available.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn transpose_4x4(from: [*const f32; 4], to: [*mut f32; 4]) {
    use std::arch::aarch64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let r0 = vld1q_f32(from[0]);
        let r1 = vld1q_f32(from[1]);
        let r2 = vld1q_f32(from[2]);
        let r3 = vld1q_f32(from[3]);
        // Pairs of rows, taken as the halves of the columns from here on.
        let a0 = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));
        let a1 = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
        let a2 = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
        let a3 = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
        vst1q_f32(to[0], vreinterpretq_f32_f64(vtrn1q_f64(a0, a2)));
        vst1q_f32(to[1], vreinterpretq_f32_f64(vtrn1q_f64(a1, a3)));
        vst1q_f32(to[2], vreinterpretq_f32_f64(vtrn2q_f64(a0, a2)));
        vst1q_f32(to[3], vreinterpretq_f32_f64(vtrn2q_f64(a1, a3)));
    }
}

/// # Safety
/// Eight entries must be readable and writable at each pointer.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn transpose_8x8(from: [*const f32; 8], to: [*mut f32; 8]) {
    for (j, to) in to.iter().enumerate() {
        for (i, from) in from.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = *from.add(j) };
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
