//! Which training timesteps a sampler visits (Lin et al. 2024, arXiv 2305.08891, table 2).

use super::SampleError;
use crate::scheduler_config::{SchedulerConfig, TimestepSpacing};

/// The visited timesteps, from high to low, exactly as diffusers rounds them.
///
/// `leading`: `i (T div steps) + steps_offset`; `trailing`: `round(T - i T / steps) - 1`;
/// `linspace`: `round(i (T - 1) / (steps - 1))`; halves are rounded to even.
///
/// # Errors
/// [`SampleError::NoSteps`], [`SampleError::MoreStepsThanTimesteps`], and
/// [`SampleError::OffsetBeyondSchedule`] when `steps_offset` pushes a timestep to T or further.
pub fn sampling_timesteps(
    scheduler: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<usize>, SampleError> {
    let total = scheduler.num_train_timesteps;
    if steps == 0 {
        return Err(SampleError::NoSteps);
    }
    if steps > total {
        return Err(SampleError::MoreStepsThanTimesteps { steps, num_train_timesteps: total });
    }
    let timesteps: Vec<usize> = match scheduler.timestep_spacing {
        TimestepSpacing::Leading => {
            (0..steps).rev().map(|i| i * (total / steps) + scheduler.steps_offset).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = total as f64 / steps as f64;
            (0..steps)
                .map(|i| (total as f64 - i as f64 * stride).round_ties_even() as usize - 1)
                .collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (steps - 1).max(1) as f64;
            (0..steps).rev().map(|i| (i as f64 * stride).round_ties_even() as usize).collect()
        }
    };
    match timesteps.first() {
        Some(&timestep) if timestep >= total => Err(SampleError::OffsetBeyondSchedule {
            steps_offset: scheduler.steps_offset,
            steps,
            timestep,
            num_train_timesteps: total,
        }),
        _ => Ok(timesteps),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn timesteps(
        timestep_spacing: TimestepSpacing,
        num_train_timesteps: usize,
        steps: usize,
    ) -> Vec<usize> {
        let scheduler =
            SchedulerConfig { timestep_spacing, num_train_timesteps, ..Default::default() };
        sampling_timesteps(&scheduler, steps).unwrap()
    }

    #[test]
    fn the_three_spacings() {
        use TimestepSpacing::{Leading, Linspace, Trailing};
        assert_eq!(timesteps(Leading, 1000, 4), [750, 500, 250, 0]);
        assert_eq!(timesteps(Trailing, 1000, 4), [999, 749, 499, 249]);
        assert_eq!(timesteps(Linspace, 1000, 4), [999, 666, 333, 0]);
        // 62.5 and 187.5 round to even.
        assert_eq!(timesteps(Trailing, 1000, 16)[13..], [187, 124, 61]);
        assert_eq!(timesteps(Linspace, 1000, 1), [0]);
    }

    #[test]
    fn zero_steps_are_an_error() {
        let error = sampling_timesteps(&SchedulerConfig::default(), 0).unwrap_err();
        assert!(matches!(error, SampleError::NoSteps));
    }

    #[test]
    fn more_steps_than_timesteps_are_an_error() {
        let error = sampling_timesteps(&SchedulerConfig::default(), 1001).unwrap_err();
        assert!(matches!(
            error,
            SampleError::MoreStepsThanTimesteps { steps: 1001, num_train_timesteps: 1000 }
        ));
    }

    #[test]
    fn an_offset_beyond_the_schedule_is_an_error() {
        let scheduler = SchedulerConfig { steps_offset: 1, ..Default::default() };
        assert_eq!(sampling_timesteps(&scheduler, 10).unwrap()[0], 901);
        let error = sampling_timesteps(&scheduler, 1000).unwrap_err();
        assert!(matches!(error, SampleError::OffsetBeyondSchedule { timestep: 1000, .. }));
    }

    proptest! {
        #[test]
        fn timesteps_fall_and_stay_inside(
            (total, steps) in (1_usize..1100).prop_flat_map(|total| (Just(total), 1..=total))
        ) {
            for spacing in
                [TimestepSpacing::Leading, TimestepSpacing::Trailing, TimestepSpacing::Linspace]
            {
                let timesteps = timesteps(spacing, total, steps);
                prop_assert_eq!(timesteps.len(), steps);
                prop_assert!(timesteps[0] < total);
                prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            }
        }
    }
}
