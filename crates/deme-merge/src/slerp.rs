//! SLERP: from one expert to another along the great circle between them.   (Shoemake 1985)
//!
//! As mergekit does it: each tensor by itself, flattened to one vector; between the models themselves, not
//! between their task vectors. Experts that were finetuned from one model usually are nearly parallel, and
//! then this is linear interpolation.

use crate::merge_error::MergeError;
use crate::merge_inputs::{Block, TensorSet};
use crate::same_tensors::check_models_finite;

/// Vectors whose angle has a cosine beyond this are interpolated linearly (mergekit's choice).
const NEARLY_PARALLEL: f64 = 0.9995;
/// A shorter vector has no direction (mergekit's choice).
const SHORTEST: f64 = 1e-8;

/// The factors of the two experts, for one tensor.
pub(crate) struct Slerp {
    factors: [f32; 2],
}

impl Slerp {
    /// `sin((1 - t) omega) / sin(omega)` and `sin(t omega) / sin(omega)`, with omega the angle between the
    /// tensors, from their norms and inner product in f64; `1 - t` and `t` where they are nearly parallel
    /// (or opposite), or one of them is zero, in which case mergekit would call them orthogonal.
    pub(crate) fn new(
        tensor: &TensorSet<'_>,
        t: f64,
        buffers: &mut Vec<Vec<f32>>,
    ) -> Result<Self, MergeError> {
        let [mut aa, mut ab, mut bb] = [0.0; 3];
        tensor.for_each_block(buffers, |block| {
            check_models_finite(tensor, block.entries.clone())?;
            let [a, b] = [block.experts[0], block.experts[1]];
            aa += dot(a, a);
            ab += dot(a, b);
            bb += dot(b, b);
            Ok(())
        })?;
        let (norm_a, norm_b) = (aa.sqrt(), bb.sqrt());
        let cosine = ab / (norm_a * norm_b);
        let linear = norm_a <= SHORTEST || norm_b <= SHORTEST || cosine.abs() > NEARLY_PARALLEL;
        let factors = if linear {
            [1.0 - t, t]
        } else {
            let omega = cosine.acos();
            [((1.0 - t) * omega).sin() / omega.sin(), (t * omega).sin() / omega.sin()]
        };
        Ok(Self { factors: factors.map(|factor| factor as f32) })
    }

    pub(crate) fn merge(&self, block: &Block<'_>, merged: &mut [f32]) {
        let [f_a, f_b] = self.factors;
        for ((m, &a), &b) in merged.iter_mut().zip(block.experts[0]).zip(block.experts[1]) {
            *m = f_a * a + f_b * b;
        }
    }
}

/// The inner product in f64: eight sums side by side, always in the same order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(&x, &y)| f64::from(x) * f64::from(y));
    sums.into_iter().chain(rest).sum()
}
