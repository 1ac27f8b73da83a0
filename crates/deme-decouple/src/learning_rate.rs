//! The learning rate over a run: constant, cosine or linear, each with a linear warm-up.

use serde::{Deserialize, Serialize};

use crate::finetune_config::ImpossibleValue;

/// How the learning rate moves from its full value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrSchedule {
    /// The course after the warm-up.
    pub kind: LrScheduleKind,
    /// Iterations over which the rate rises to its full value; 0 for none.
    pub warmup_iterations: u64,
}

/// The course after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduleKind {
    /// The full rate to the end.
    Constant,
    /// Half a cosine from the full rate to 0 (Loshchilov and Hutter 2017, eq. 5, without restarts).
    Cosine,
    /// A straight line from the full rate to 0.
    Linear,
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self { kind: LrScheduleKind::Constant, warmup_iterations: 0 }
    }
}

impl LrSchedule {
    /// What the full rate is multiplied by in iteration `iteration` (from 0) of `iterations`; in `[0, 1]`.
    ///
    /// With W warm-up iterations, iteration n < W gets `(n + 1) / W`: unlike diffusers' schedules, which
    /// start at `n / W`, no iteration is spent on a rate of 0.
    pub fn factor(&self, iteration: u64, iterations: u64) -> f64 {
        let warmup = self.warmup_iterations;
        if iteration < warmup {
            return (iteration + 1) as f64 / warmup as f64;
        }
        let rest = iterations.saturating_sub(warmup).max(1);
        let progress = ((iteration - warmup) as f64 / rest as f64).min(1.0);
        match self.kind {
            LrScheduleKind::Constant => 1.0,
            LrScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            LrScheduleKind::Linear => 1.0 - progress,
        }
    }

    /// Checks the values for a run of `iterations`.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the key.
    pub fn validate(&self, iterations: u64) -> Result<(), ImpossibleValue> {
        ImpossibleValue::unless(
            self.warmup_iterations == 0 || self.warmup_iterations < iterations,
            "lr_schedule.warmup_iterations",
            self.warmup_iterations,
            "fewer iterations than `iterations`",
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn schedule(kind: LrScheduleKind, warmup_iterations: u64) -> LrSchedule {
        LrSchedule { kind, warmup_iterations }
    }

    #[test]
    fn warm_up_rises_in_equal_steps_to_the_full_rate() {
        for kind in [LrScheduleKind::Constant, LrScheduleKind::Cosine, LrScheduleKind::Linear] {
            let factors: Vec<f64> = (0..5).map(|n| schedule(kind, 4).factor(n, 100)).collect();
            assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0]);
        }
    }

    #[test]
    fn courses_have_their_closed_forms() {
        assert_eq!(schedule(LrScheduleKind::Constant, 0).factor(99, 100), 1.0);
        assert_eq!(schedule(LrScheduleKind::Linear, 0).factor(25, 100), 0.75);
        assert_eq!(schedule(LrScheduleKind::Linear, 20).factor(60, 100), 0.5);
        let cosine = schedule(LrScheduleKind::Cosine, 0);
        assert!((cosine.factor(50, 100) - 0.5).abs() < 1e-12);
        assert!((cosine.factor(25, 100) - (0.5 + 0.125f64.sqrt())).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn factors_lie_in_zero_one_and_never_rise_after_the_warm_up(
            iterations in 1u64..500, warmup in 0u64..500,
        ) {
            for kind in [LrScheduleKind::Constant, LrScheduleKind::Cosine, LrScheduleKind::Linear] {
                let schedule = schedule(kind, warmup.min(iterations - 1));
                let factors: Vec<f64> =
                    (0..iterations).map(|n| schedule.factor(n, iterations)).collect();
                prop_assert!(factors.iter().all(|f| (0.0..=1.0).contains(f) && *f > 0.0));
                let after = &factors[schedule.warmup_iterations as usize..];
                prop_assert!(after.windows(2).all(|pair| pair[1] <= pair[0]));
            }
        }
    }

    #[test]
    fn a_warm_up_that_never_ends_is_refused_by_name() {
        let error = schedule(LrScheduleKind::Constant, 10).validate(10).unwrap_err();
        assert_eq!(error.key, "lr_schedule.warmup_iterations");
        schedule(LrScheduleKind::Constant, 9).validate(10).unwrap();
        schedule(LrScheduleKind::Constant, 0).validate(1).unwrap();
    }
}
