//! TIES merging: trim, elect sign, disjoint mean.   (Yadav et al. 2023, algorithm 1)
//!
//! Two things must be known about *all* tensors before the first can be merged: how large an entry of
//! each task vector must be to stay, and which sign most entries elect. Both come from passes over the
//! files; no task vector is ever held in memory.

use crate::merge_error::MergeError;
use crate::merge_inputs::{Block, MergeInputs};
use crate::same_tensors::{check_models_finite, is_mergeable};

/// Magnitudes are counted by half of their bits at a time.
const BUCKETS: usize = 1 << 16;

/// What must be known about all tensors.
pub(crate) struct Ties {
    /// Per expert: entries of its task vector of at least this magnitude stay.
    thresholds: Vec<f32>,
    /// True when more entries elect plus than minus: the sign of entries whose sum is 0.
    majority_is_positive: bool,
    scale: f32,
}

impl Ties {
    /// Reads all models three times. Their names and shapes must be equal.
    ///
    /// The threshold of an expert is the magnitude of the `kept`-th largest entry of its task vector. The
    /// bits of a non-negative f32 are ordered like its value: counting them by their upper half finds the
    /// upper half of the answer, counting those by their lower half the rest. Then the signs are counted.
    pub(crate) fn prepare(
        inputs: &MergeInputs<'_>,
        density: f64,
        scale: f32,
    ) -> Result<Self, MergeError> {
        let mergeable = inputs.theta_pre.iter().filter(|(_, stored)| is_mergeable(stored.dtype()));
        let entries: usize = mergeable.map(|(_, stored)| stored.numel()).sum();
        // The tolerance keeps 0.07 * 100 = 7.000000000000001 from becoming 8.
        let kept = (entries as f64 * density - 1e-9).ceil() as usize;
        let experts = inputs.experts.len();
        if kept == 0 {
            // There are no entries at all.
            let thresholds = vec![f32::INFINITY; experts];
            return Ok(Self { thresholds, majority_is_positive: false, scale });
        }

        let by_upper = count_magnitudes(inputs, |_, bits| Some(bits >> 16))?;
        let upper: Vec<(u32, usize)> =
            by_upper.iter().map(|counts| bucket_of(counts, kept)).collect();
        let by_lower = count_magnitudes(inputs, |expert, bits| {
            (bits >> 16 == upper[expert].0).then_some(bits & 0xffff)
        })?;
        let threshold = |(counts, &(upper, above)): (&Vec<usize>, &(u32, usize))| {
            let (lower, _) = bucket_of(counts, kept - above);
            f32::from_bits(upper << 16 | lower)
        };
        let thresholds = by_lower.iter().zip(&upper).map(threshold).collect();
        let mut ties = Self { thresholds, majority_is_positive: false, scale };

        let elected = for_each_block(inputs, || 0, |sum, block| *sum += ties.sum_of_signs(block))?;
        ties.majority_is_positive = elected.iter().sum::<i64>() > 0;
        Ok(ties)
    }

    /// `theta + scale tau`
    pub(crate) fn merge(&self, block: &Block<'_>, merged: &mut [f32]) {
        let mut trimmed = vec![0.0; block.experts.len()];
        for (index, (m, &theta)) in merged.iter_mut().zip(block.theta).enumerate() {
            let sum = self.trim(index, theta, block.experts, &mut trimmed);
            let positive = sum > 0.0 || (sum == 0.0 && self.majority_is_positive);
            let (mut total, mut count) = (0.0, 0u32);
            for &tau in &trimmed {
                if (positive && tau > 0.0) || (!positive && tau < 0.0) {
                    total += tau;
                    count += 1;
                }
            }
            *m = match count {
                0 => theta,
                _ => theta + self.scale * (total / count as f32),
            };
        }
    }

    /// Fills in the trimmed task vectors at one entry and returns their sum.
    fn trim(&self, index: usize, theta: f32, experts: &[&[f32]], trimmed: &mut [f32]) -> f32 {
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

    fn sum_of_signs(&self, block: &Block<'_>) -> i64 {
        let mut trimmed = vec![0.0; block.experts.len()];
        let sign = |(index, &theta)| {
            let sum = self.trim(index, theta, block.experts, &mut trimmed);
            i64::from(sum > 0.0) - i64::from(sum < 0.0)
        };
        block.theta.iter().enumerate().map(sign).sum()
    }
}

/// Of each expert, how many entries of its task vector fall into each bucket. `bucket` takes the expert and
/// the bits of the magnitude.
fn count_magnitudes(
    inputs: &MergeInputs<'_>,
    bucket: impl Fn(usize, u32) -> Option<u32> + Sync,
) -> Result<Vec<Vec<usize>>, MergeError> {
    let zeros = || vec![vec![0usize; BUCKETS]; inputs.experts.len()];
    let parts = for_each_block(inputs, zeros, |counts, block| {
        for (expert, (counts, theta_i)) in counts.iter_mut().zip(block.experts).enumerate() {
            for (&t, &t_i) in block.theta.iter().zip(*theta_i) {
                if let Some(bucket) = bucket(expert, (t_i - t).abs().to_bits()) {
                    counts[bucket as usize] += 1;
                }
            }
        }
    })?;
    let mut total = zeros();
    for part in &parts {
        for (total, count) in total.iter_mut().flatten().zip(part.iter().flatten()) {
            *total += count;
        }
    }
    Ok(total)
}

/// Does `work` for every block of every tensor that is merged. Each thread has a state of its own.
fn for_each_block<S: Send>(
    inputs: &MergeInputs<'_>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &Block<'_>) + Sync,
) -> Result<Vec<S>, MergeError> {
    let own = || (state(), Vec::new());
    let states = inputs.for_each_tensor(own, |(state, buffers), _, tensor| {
        if !is_mergeable(tensor.theta.dtype()) {
            return Ok(());
        }
        tensor.for_each_block(buffers, |block| {
            check_models_finite(tensor, block.entries.clone())?;
            work(state, block);
            Ok(())
        })
    })?;
    Ok(states.into_iter().map(|(state, _)| state).collect())
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
    use crate::state_dict::{StateDict, StoredTensor};
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
            let (theta_pre, experts) = (point(vec![0.0; taus.len()]), [point(taus.clone())]);
            let inputs =
                MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &[] };
            // Half an entry less than `kept`: rounding must not decide how many stay.
            let density = (kept as f64 - 0.5) / taus.len() as f64;
            let found = Ties::prepare(&inputs, density, 1.0);

            let mut magnitudes: Vec<f32> = taus.iter().map(|tau| tau.abs()).collect();
            magnitudes.sort_by(f32::total_cmp);
            prop_assert_eq!(found.ok().map(|ties| ties.thresholds), Some(vec![magnitudes[taus.len() - kept]]));
        }
    }
}
