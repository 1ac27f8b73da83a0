//! Fisher-weighted averaging: `theta_m = sum_i F_i theta_i / sum_i F_i`.   (Matena & Raffel 2022, eq. 3)
//!
//! `F_i` is the diagonal of expert i's Fisher information, one number per entry. Where it is zero for all
//! experts nothing is known, and the entry becomes their mean.

use crate::merge_error::MergeError;
use crate::merge_inputs::{Block, TensorSet};

/// As `theta + sum_i F_i tau_i / sum_i F_i`, which is the same. At each entry the F_i are divided by the
/// largest of them first, so that tiny ones neither vanish nor need a floor, which the paper sets to 1e-6.
pub(crate) fn merge_fisher(
    tensor: &TensorSet<'_>,
    block: &Block<'_>,
    merged: &mut [f32],
) -> Result<(), MergeError> {
    for (index, (m, &theta)) in merged.iter_mut().zip(block.theta).enumerate() {
        let mut largest = 0.0f32;
        for (expert, fisher) in block.statistics.iter().enumerate() {
            let value = fisher[index];
            if value < 0.0 {
                return Err(MergeError::NegativeFisher {
                    expert,
                    name: tensor.name.to_owned(),
                    index: block.entries.start + index,
                    value,
                });
            }
            largest = largest.max(value);
        }
        let (mut total, mut sum) = (0.0, 0.0);
        for (fisher, theta_i) in block.statistics.iter().zip(block.experts) {
            let part = if largest > 0.0 { fisher[index] / largest } else { 1.0 };
            total += part * (theta_i[index] - theta);
            sum += part;
        }
        *m = theta + total / sum;
    }
    Ok(())
}
