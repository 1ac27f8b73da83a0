//! Which training timesteps a sampler visits (Lin et al. 2024, arXiv 2305.08891, table 2).
//!
//! Rounded exactly as diffusers rounds them, halves to even. One departure: for some numbers of steps
//! (61 of 1000, for one) a rounding error gives diffusers one trailing timestep too many, -1; here there are
//! always as many as steps.

use super::SampleError;
use crate::scheduler_config::{SchedulerConfig, TimestepSpacing};

/// The visited timesteps of DDIM, DDPM and PNDM, from high to low.
///
/// `leading`: `i (T div steps) + steps_offset`; `trailing`: `round(T - i T / steps) - 1`;
/// `linspace`: `round(i (T - 1) / (steps - 1))`.
///
/// # Errors
/// [`SampleError::NoSteps`], [`SampleError::MoreStepsThanTimesteps`], and
/// [`SampleError::OffsetBeyondSchedule`] when `steps_offset` pushes a timestep to T or further.
pub fn sampling_timesteps(
    scheduler: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<usize>, SampleError> {
    let timesteps = unrounded_timesteps(scheduler, steps)?;
    Ok(timesteps.into_iter().map(|t| t.round_ties_even() as usize).collect())
}

/// The times at which Euler's methods ask the model, from high to low: those of [`sampling_timesteps`],
/// but `linspace` is not rounded.
///
/// # Errors
/// Those of [`sampling_timesteps`].
pub fn unrounded_timesteps(
    scheduler: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<f64>, SampleError> {
    let total = scheduler.num_train_timesteps;
    check_steps(scheduler, steps)?;
    let timesteps: Vec<f64> = match scheduler.spacing() {
        TimestepSpacing::Leading => {
            let stride = total / steps;
            (0..steps).rev().map(|i| (i * stride + scheduler.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(total, total as f64 / steps as f64).collect(),
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (steps - 1).max(1) as f64;
            // As in NumPy, the end is exact.
            let last = (total - 1) as f64;
            (0..steps).rev().map(|i| (i as f64 * stride).min(last)).collect()
        }
    };
    inside(timesteps, scheduler, steps)
}

/// The visited timesteps of DPM-Solver++, from high to low. They leave room for the step to no noise at all:
/// `leading` and `linspace` place one timestep more than there are steps, and leave out the last.
///
/// `end` is T, or less where the noisiest timesteps are clipped away.
///
/// # Errors
/// Those of [`sampling_timesteps`].
pub fn solver_timesteps(
    scheduler: &SchedulerConfig,
    steps: usize,
    end: usize,
) -> Result<Vec<f64>, SampleError> {
    check_steps(scheduler, steps)?;
    let timesteps: Vec<f64> = match scheduler.spacing() {
        TimestepSpacing::Leading => {
            let stride = end / (steps + 1);
            (1..=steps).rev().map(|i| (i * stride + scheduler.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            trailing(end, scheduler.num_train_timesteps as f64 / steps as f64).collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (end - 1) as f64 / steps as f64;
            (1..=steps).rev().map(|i| (i as f64 * stride).round_ties_even()).collect()
        }
    };
    inside(timesteps, scheduler, steps)
}

/// From `end - 1` downwards as long as there is something left.
fn trailing(end: usize, stride: f64) -> impl Iterator<Item = f64> {
    let end = end as f64;
    // Less what a division rounds up by: a stride that goes into `end` evenly leaves nothing.
    let count = (end / stride - 1e-9).ceil() as usize;
    // NumPy's arange steps by the difference of its first two values, which is not quite the stride; it
    // decides where halves go.
    let step = (end - stride) - end;
    (0..count).map(move |i| (end + i as f64 * step).round_ties_even() - 1.0)
}

fn check_steps(scheduler: &SchedulerConfig, steps: usize) -> Result<(), SampleError> {
    let total = scheduler.num_train_timesteps;
    if steps == 0 {
        return Err(SampleError::NoSteps);
    }
    if total == 0 {
        return Err(SampleError::Schedule(crate::noise_schedule::ScheduleError::NoTimesteps));
    }
    if steps > total {
        return Err(SampleError::MoreStepsThanTimesteps { steps, num_train_timesteps: total });
    }
    Ok(())
}

fn inside(
    timesteps: Vec<f64>,
    scheduler: &SchedulerConfig,
    steps: usize,
) -> Result<Vec<f64>, SampleError> {
    let total = scheduler.num_train_timesteps;
    match timesteps.first() {
        Some(&timestep) if timestep >= total as f64 => Err(SampleError::OffsetBeyondSchedule {
            steps_offset: scheduler.steps_offset,
            steps,
            timestep: timestep as usize,
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
        sampling_timesteps(&scheduler(timestep_spacing, num_train_timesteps), steps).unwrap()
    }

    fn scheduler(spacing: TimestepSpacing, num_train_timesteps: usize) -> SchedulerConfig {
        let timestep_spacing = Some(spacing);
        SchedulerConfig { timestep_spacing, num_train_timesteps, ..Default::default() }
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
        // A half that is not quite one in NumPy: 937.5.
        assert_eq!(timesteps(Trailing, 1000, 48)[3], 936);
        assert_eq!(timesteps(Trailing, 1000, 61).len(), 61);
    }

    #[test]
    fn euler_asks_between_timesteps() {
        let linspace = scheduler(TimestepSpacing::Linspace, 1000);
        assert_eq!(unrounded_timesteps(&linspace, 3).unwrap(), [999.0, 499.5, 0.0]);
    }

    #[test]
    fn the_solver_leaves_out_the_last_of_one_timestep_more() {
        let of = |spacing, end| solver_timesteps(&scheduler(spacing, 1000), 4, end).unwrap();
        assert_eq!(of(TimestepSpacing::Linspace, 1000), [999.0, 749.0, 500.0, 250.0]);
        assert_eq!(of(TimestepSpacing::Leading, 1000), [800.0, 600.0, 400.0, 200.0]);
        assert_eq!(of(TimestepSpacing::Trailing, 1000), [999.0, 749.0, 499.0, 249.0]);
        // Clipped: a stride of T / steps reaches the end sooner.
        assert_eq!(of(TimestepSpacing::Linspace, 801), [800.0, 600.0, 400.0, 200.0]);
        assert_eq!(of(TimestepSpacing::Trailing, 701), [700.0, 450.0, 200.0]);
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
                let unrounded = unrounded_timesteps(&scheduler(spacing, total), steps).unwrap();
                prop_assert_eq!(unrounded.len(), steps);
                prop_assert!(unrounded.iter().all(|&t| (0.0..=(total - 1) as f64).contains(&t)));
                let timesteps = timesteps(spacing, total, steps);
                prop_assert_eq!(timesteps.len(), steps);
                prop_assert!(timesteps[0] < total);
                prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            }
        }
    }
}
