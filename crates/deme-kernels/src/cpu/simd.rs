//! Which vector instructions this machine has, and functions compiled once for each.
//!
//! One binary serves every machine: the choice is made at run time.

use std::sync::OnceLock;

/// The instruction sets the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// 16 lanes, fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 8 lanes in two registers of 4, fused multiply-add.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Whatever the compiler may assume of the target.
    Portable,
}

/// The best instruction set of this machine, or a lesser one named by the environment variable
/// `DEME_INSTRUCTION_SET` (`avx2` or `portable`), which is how the tests reach all of them.
pub(crate) fn instruction_set() -> InstructionSet {
    static DETECTED: OnceLock<InstructionSet> = OnceLock::new();
    *DETECTED.get_or_init(|| {
        let limit = std::env::var("DEME_INSTRUCTION_SET").unwrap_or_default();
        if limit == "portable" {
            return InstructionSet::Portable;
        }
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2
                && limit != "avx2"
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                return InstructionSet::Avx512;
            }
            if avx2 {
                return InstructionSet::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return InstructionSet::Neon;
        }
        InstructionSet::Portable
    })
}

/// `a * b + c`, rounded once where the machine does that in one instruction.
pub(crate) trait MulAdd {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding, by hardware.
pub(crate) struct Fused;
/// Two roundings.
#[cfg(any(test, not(target_arch = "aarch64")))]
pub(crate) struct Separate;

impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

#[cfg(any(test, not(target_arch = "aarch64")))]
impl MulAdd for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// What the portable version of a kernel multiplies with: 64-bit ARM always fuses.
#[cfg(target_arch = "aarch64")]
pub(crate) type Baseline = Fused;
/// What the portable version of a kernel multiplies with.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Baseline = Separate;

/// Defines a function that runs `body::<F: MulAdd>`, an `#[inline(always)]` generic function,
/// compiled for the best instruction set found at run time.
macro_rules! multiversioned {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::cpu::simd::Fused>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::cpu::simd::Fused>($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::cpu::simd::Fused>($($arg),*)
            }
            match $crate::cpu::simd::instruction_set() {
                // SAFETY: `instruction_set` found these features on this machine.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::InstructionSet::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::InstructionSet::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::simd::InstructionSet::Neon => unsafe { neon($($arg),*) },
                $crate::cpu::simd::InstructionSet::Portable => {
                    $body::<$crate::cpu::simd::Baseline>($($arg),*)
                }
            }
        }
    };
}
pub(crate) use multiversioned;

/// Lanes of the sums below: wide enough for every instruction set, and the same on all of them,
/// so that a sum's order does not depend on the machine.
pub(crate) const LANES: usize = 32;

/// Sum of `term(x, y)` over two equally long slices, in one fixed order.
#[inline(always)]
pub(crate) fn lane_sum<F: Fn(f32, f32, f32) -> f32>(x: &[f32], y: &[f32], accumulate: F) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] = accumulate(lanes[i], x[i], y[i]);
        }
    }
    for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[i] = accumulate(lanes[i], *x, *y);
    }
    fold(lanes)
}

/// Sum of the lanes by halving.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `e^x` within 2 units in the last place; saturates beyond [-87.3, 88] and keeps NaN.
///
/// Range reduction by ln 2 and a polynomial of degree 6 on the rest (Cephes' coefficients),
/// branch-free so that loops over it become vector code.
#[inline(always)]
pub(crate) fn exp<F: MulAdd>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = x.clamp(-87.3, 88.0);
    let shifted = F::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = F::mul_add(n, -0.693_359_4, x);
    let r = F::mul_add(n, 2.121_944_4e-4, r);
    let p = F::mul_add(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = F::mul_add(p, r, 8.333_452e-3);
    let p = F::mul_add(p, r, 4.166_579_6e-2);
    let p = F::mul_add(p, r, 1.666_666_5e-1);
    let p = F::mul_add(p, r, 5e-1);
    let e = F::mul_add(p, r * r, r) + 1.0;
    // The integer n stands in the low bits of `shifted`; moved to the exponent it is 2^n.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    e * power
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<F: MulAdd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<F>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_exp<F: MulAdd>() {
        for i in -8700..=8800 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp::<F>(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) is off by {error:e} of its value");
        }
        assert!(exp::<F>(f32::NAN).is_nan());
        assert!(exp::<F>(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn exp_follows_f64() {
        check_exp::<Fused>();
        check_exp::<Separate>();
    }

    #[test]
    fn lane_sum_takes_every_entry_once() {
        for n in [0usize, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let ones = vec![1.0; n];
            let sum = lane_sum(&x, &ones, |s, x, y| s + x * y);
            assert_eq!(sum, (n * n.saturating_sub(1) / 2) as f32);
        }
    }
}
