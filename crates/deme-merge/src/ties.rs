//! TIES merging: trim, elect sign, disjoint mean.   (Yadav et al. 2023, algorithm 1)
//!
//! Two things must be known about *all* tensors before the first can be merged: how large an entry of
//! each task vector must be to stay, and which sign most entries elect. Both come from passes over the
//! files; no task vector is ever held in memory.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::merge::{expert_values, is_mergeable};
use crate::merge_error::MergeError;
use crate::state_dict::{StateDict, StoredTensor};

/// What must be known about all tensors.
pub(crate) struct Ties {
    /// Per expert: entries of its task vector of at least this magnitude stay.
    thresholds: Vec<f32>,
    /// True when more entries elect plus than minus: the sign of entries whose sum is 0.
    majority_is_positive: bool,
    scale: f32,
}

impl Ties {
    /// Reads all tensors. They must be checked: equal names and shapes, finite.
    pub(crate) fn prepare(
        theta_pre: &StateDict,
        experts: &[StateDict],
        density: f64,
        scale: f32,
    ) -> Result<Self, MergeError> {
        let tensors: Vec<(&str, &StoredTensor)> =
            theta_pre.iter().filter(|(_, stored)| is_mergeable(stored.dtype())).collect();
        let entries: usize = tensors.iter().map(|(_, stored)| stored.numel()).sum();
        // The tolerance keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
        let kept = (entries as f64 * density - 1e-9).ceil() as usize;

        let thresholds = experts
            .par_iter()
            .map(|expert| threshold(&tensors, expert, kept))
            .collect::<Result<Vec<f32>, MergeError>>()?;
        let mut ties = Self { thresholds, majority_is_positive: false, scale };
        let elected = tensors
            .par_iter()
            .map(|(name, stored)| {
                let theta = stored.f32_values()?;
                let theta_i = expert_values(name, experts)?;
                Ok(ties.sum_of_signs(&theta, &theta_i))
            })
            .collect::<Result<Vec<i64>, MergeError>>()?;
        ties.majority_is_positive = elected.iter().sum::<i64>() > 0;
        Ok(ties)
    }

    /// `theta + scale tau` for one tensor.
    pub(crate) fn combine(&self, theta: &[f32], experts: &[Cow<'_, [f32]>]) -> Vec<f32> {
        let mut trimmed = vec![0.0; experts.len()];
        let merge_entry = |(index, &theta): (usize, &f32)| {
            let sum = self.trim(index, theta, experts, &mut trimmed);
            let positive = sum > 0.0 || (sum == 0.0 && self.majority_is_positive);
            let (mut total, mut count) = (0.0, 0u32);
            for &tau in &trimmed {
                if (positive && tau > 0.0) || (!positive && tau < 0.0) {
                    total += tau;
                    count += 1;
                }
            }
            match count {
                0 => theta,
                _ => theta + self.scale * (total / count as f32),
            }
        };
        theta.iter().enumerate().map(merge_entry).collect()
    }

    /// Fills in the trimmed task vectors at one entry and returns their sum.
    fn trim(
        &self,
        index: usize,
        theta: f32,
        experts: &[Cow<'_, [f32]>],
        trimmed: &mut [f32],
    ) -> f32 {
        let mut sum = 0.0;
        for ((trimmed, theta_i), &threshold) in
            trimmed.iter_mut().zip(experts).zip(&self.thresholds)
        {
            let tau = theta_i[index] - theta;
            *trimmed = if tau.abs() >= threshold { tau } else { 0.0 };
            sum += *trimmed;
        }
        sum
    }

    fn sum_of_signs(&self, theta: &[f32], experts: &[Cow<'_, [f32]>]) -> i64 {
        let mut trimmed = vec![0.0; experts.len()];
        let sign = |(index, &theta)| {
            let sum = self.trim(index, theta, experts, &mut trimmed);
            i64::from(sum > 0.0) - i64::from(sum < 0.0)
        };
        theta.iter().enumerate().map(sign).sum()
    }
}

/// The magnitude of the `kept`-th largest entry of a task vector over all its tensors.
///
/// The bits of a non-negative f32 are ordered like its value. Counting them by their upper half finds the
/// upper half of the answer, counting those by their lower half the rest.
fn threshold(
    tensors: &[(&str, &StoredTensor)],
    expert: &StateDict,
    kept: usize,
) -> Result<f32, MergeError> {
    if kept == 0 {
        return Ok(f32::INFINITY); // there are no entries at all
    }
    let mut by_upper = vec![0usize; 1 << 16];
    for_each_magnitude(tensors, expert, |bits| by_upper[(bits >> 16) as usize] += 1)?;
    let (upper, above) = bucket_of(&by_upper, kept);

    let mut by_lower = vec![0usize; 1 << 16];
    for_each_magnitude(tensors, expert, |bits| {
        if bits >> 16 == upper {
            by_lower[(bits & 0xffff) as usize] += 1;
        }
    })?;
    let (lower, _) = bucket_of(&by_lower, kept - above);
    Ok(f32::from_bits(upper << 16 | lower))
}

fn for_each_magnitude(
    tensors: &[(&str, &StoredTensor)],
    expert: &StateDict,
    mut visit: impl FnMut(u32),
) -> Result<(), MergeError> {
    for (name, stored) in tensors {
        let theta = stored.f32_values()?;
        let theta_i = expert_values(name, std::slice::from_ref(expert))?;
        for (&t, &t_i) in theta.iter().zip(theta_i[0].iter()) {
            visit((t_i - t).abs().to_bits());
        }
    }
    Ok(())
}

/// Which bucket holds the `rank`-th largest (from 1), and how many lie in larger buckets.
fn bucket_of(counts: &[usize], rank: usize) -> (u32, usize) {
    let mut above = 0;
    for (bucket, &count) in counts.iter().enumerate().rev() {
        if above + count >= rank {
            return (bucket as u32, above);
        }
        above += count;
    }
    (0, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_threshold_is_the_kth_largest_magnitude(
            taus in prop::collection::vec(-1e3f32..1e3, 1..200),
            part in 0.0f64..1.0,
        ) {
            let kept = 1 + (part * (taus.len() - 1) as f64) as usize;
            let point = |values: Vec<f32>| -> StateDict {
                let half = values.len() / 2;
                let tensor = |v: &[f32]| StoredTensor::from_f32(vec![v.len()], v.to_vec());
                [
                    ("a".to_string(), tensor(&values[..half])),
                    ("b".to_string(), tensor(&values[half..])),
                ]
                .into_iter()
                .collect()
            };
            let theta_pre = point(vec![0.0; taus.len()]);
            let tensors: Vec<_> = theta_pre.iter().collect();
            let found = threshold(&tensors, &point(taus.clone()), kept);

            let mut magnitudes: Vec<f32> = taus.iter().map(|tau| tau.abs()).collect();
            magnitudes.sort_by(f32::total_cmp);
            prop_assert_eq!(found.ok(), Some(magnitudes[taus.len() - kept]));
        }
    }
}
