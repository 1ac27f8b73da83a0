//! One vector register, for code that cannot be left to the compiler's vectoriser.

use super::simd::{Baseline, MulAdd};

/// A register of `LANES` floats.
///
/// # Safety
/// All functions may be called only where the instruction set of the type is available, and the
/// pointers must be valid for as many floats as are read or written.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `n < LANES` lanes; the others are zero.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_first(self, to: *mut f32, n: usize);
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The larger of both in each lane, NaN where either is.
    unsafe fn max(self, other: Self) -> Self;
}

/// Lanes in plain Rust; the compiler maps them to what the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Vector for Portable {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 8 floats.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: the caller's pointer is valid for n floats.
            *lane = unsafe { *from.add(i) };
        }
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for 8 floats.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for (i, lane) in self.0.iter().enumerate().take(n) {
            // SAFETY: the caller's pointer is valid for n floats.
            unsafe { *to.add(i) = *lane };
        }
    }
    #[inline(always)]
    unsafe fn mul_add(mut self, b: Self, c: Self) -> Self {
        for i in 0..8 {
            self.0[i] = Baseline::mul_add(self.0[i], b.0[i], c.0[i]);
        }
        self
    }
    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] += other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn sub(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] -= other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] *= other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn max(mut self, other: Self) -> Self {
        for i in 0..8 {
            if !(self.0[i].is_nan() || self.0[i] > other.0[i]) {
                self.0[i] = other.0[i];
            }
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// Lanes set in a mask of the first n: read 8 integers from position 8 - n.
    static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    // SAFETY of both implementations: the trait's contract gives the instruction set and the
    // pointers' validity, which is all that these intrinsics ask for.
    impl Vector for __m256 {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            debug_assert!(n <= 8);
            unsafe {
                let mask = _mm256_loadu_si256(FIRST.as_ptr().add(8 - n).cast());
                _mm256_maskload_ps(from, mask)
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, n: usize) {
            debug_assert!(n <= 8);
            unsafe {
                let mask = _mm256_loadu_si256(FIRST.as_ptr().add(8 - n).cast());
                _mm256_maskstore_ps(to, mask, self);
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, b, c) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm256_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { _mm256_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { _mm256_mul_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // The instruction gives `other` where either is NaN.
            unsafe {
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(self, self);
                _mm256_blendv_ps(_mm256_max_ps(self, other), self, nan)
            }
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            debug_assert!(n < 16);
            unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, n: usize) {
            debug_assert!(n < 16);
            unsafe { _mm512_mask_storeu_ps(to, (1u16 << n) - 1, self) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, b, c) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { _mm512_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { _mm512_mul_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // The instruction gives `other` where either is NaN.
            unsafe {
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self, self);
                _mm512_mask_mov_ps(_mm512_max_ps(self, other), nan, self)
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Vector;
    use std::arch::aarch64::*;

    /// Two registers of 4 as one of 8: the panels of the product keep the width they have with
    /// AVX2, and its 12 sums of 8 take 24 of the 32 registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(float32x4_t, float32x4_t);

    // SAFETY (whole module): the trait's contract gives the instruction set and the pointers'
    // validity, which is all that these intrinsics ask for.

    /// The first `n < 4` lanes, touching no entry beyond them; the others are zero.
    #[inline(always)]
    unsafe fn load_first_of_four(from: *const f32, n: usize) -> float32x4_t {
        debug_assert!(n < 4);
        unsafe {
            let zero = vdupq_n_f32(0.0);
            match n {
                0 => zero,
                1 => vld1q_lane_f32::<0>(from, zero),
                2 => vcombine_f32(vld1_f32(from), vdup_n_f32(0.0)),
                _ => {
                    let two = vcombine_f32(vld1_f32(from), vdup_n_f32(0.0));
                    vld1q_lane_f32::<2>(from.add(2), two)
                }
            }
        }
    }

    /// Writes the first `n < 4` lanes and nothing else.
    #[inline(always)]
    unsafe fn store_first_of_four(x: float32x4_t, to: *mut f32, n: usize) {
        debug_assert!(n < 4);
        unsafe {
            match n {
                0 => {}
                1 => vst1q_lane_f32::<0>(to, x),
                2 => vst1_f32(to, vget_low_f32(x)),
                _ => {
                    vst1_f32(to, vget_low_f32(x));
                    vst1q_lane_f32::<2>(to.add(2), x);
                }
            }
        }
    }

    impl Vector for Neon {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { Self(vdupq_n_f32(x), vdupq_n_f32(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            debug_assert!(n < 8);
            unsafe {
                if n < 4 {
                    Self(load_first_of_four(from, n), vdupq_n_f32(0.0))
                } else {
                    Self(vld1q_f32(from), load_first_of_four(from.add(4), n - 4))
                }
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                vst1q_f32(to, self.0);
                vst1q_f32(to.add(4), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, n: usize) {
            debug_assert!(n < 8);
            unsafe {
                if n < 4 {
                    store_first_of_four(self.0, to, n);
                } else {
                    vst1q_f32(to, self.0);
                    store_first_of_four(self.1, to.add(4), n - 4);
                }
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Self(vsubq_f32(self.0, other.0), vsubq_f32(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            unsafe { Self(vmulq_f32(self.0, other.0), vmulq_f32(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            unsafe { Self(vmaxq_f32(self.0, other.0), vmaxq_f32(self.1, other.1)) }
        }
    }
}

/// Defines an unsafe function that runs `body::<V: Vector>`, an `#[inline(always)]` generic
/// function, with the widest register of this machine.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visible:vis unsafe fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $visible unsafe fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the caller's promises; the features are enabled here.
                unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<std::arch::x86_64::__m256>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon($($arg: $ty),*) {
                // SAFETY: the caller's promises; the feature is enabled here.
                unsafe { $body::<$crate::cpu::vector::Neon>($($arg),*) }
            }
            // SAFETY: the caller's promises; `instruction_set` found the features.
            unsafe {
                match $crate::cpu::simd::instruction_set() {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::simd::InstructionSet::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::simd::InstructionSet::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::cpu::simd::InstructionSet::Neon => neon($($arg),*),
                    $crate::cpu::simd::InstructionSet::Portable => {
                        $body::<$crate::cpu::vector::Portable>($($arg),*)
                    }
                }
            }
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        unsafe fn check() = check_with
    }

    #[inline(always)]
    unsafe fn check_with<V: Vector>() {
        let x: Vec<f32> = (0..V::LANES).map(|i| i as f32 + 1.5).collect();
        // SAFETY: `x` and `to` hold `LANES` entries, the parts below n.
        unsafe {
            let read = |v: V| {
                let mut to = vec![f32::NAN; V::LANES];
                v.store(to.as_mut_ptr());
                to
            };
            let whole = V::load(x.as_ptr());
            assert_eq!(read(whole), x);
            assert_eq!(read(V::splat(2.5)), vec![2.5; V::LANES]);
            let each = |f: fn(f32) -> f32| x.iter().map(|&x| f(x)).collect::<Vec<_>>();
            let two = V::splat(2.0);
            assert_eq!(read(two.mul_add(whole, V::splat(0.5))), each(|x| 2.0 * x + 0.5));
            assert_eq!(read(whole.add(two)), each(|x| x + 2.0));
            assert_eq!(read(whole.sub(two)), each(|x| x - 2.0));
            assert_eq!(read(whole.mul(two)), each(|x| x * 2.0));
            let (four, nan) = (V::splat(4.0), V::splat(f32::NAN));
            assert_eq!(read(whole.max(four)), each(|x| x.max(4.0)));
            assert_eq!(read(four.max(whole)), each(|x| x.max(4.0)));
            assert!(read(nan.max(whole)).iter().all(|x| x.is_nan()));
            assert!(read(whole.max(nan)).iter().all(|x| x.is_nan()));
            for n in 0..V::LANES {
                let part = x[..n].to_vec();
                let found = read(V::load_first(part.as_ptr(), n));
                assert_eq!(found[..n], part);
                assert_eq!(found[n..], vec![0.0; V::LANES - n]);
                let mut to = vec![-1.0; V::LANES];
                whole.store_first(to.as_mut_ptr(), n);
                assert_eq!(to[..n], part);
                assert_eq!(to[n..], vec![-1.0; V::LANES - n]);
            }
        }
    }

    #[test]
    fn every_lane_is_read_computed_and_written_once() {
        // SAFETY: `check_with` passes valid pointers.
        unsafe { check() }
    }
}
