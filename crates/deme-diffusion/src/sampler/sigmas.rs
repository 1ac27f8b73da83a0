//! Noise levels sigma as the samplers over sigma know them: `sigma_t = sqrt((1 - abar_t) / abar_t)`, the
//! deviation of the noise on an image that is not scaled down.
//!
//! Karras et al. 2022, arXiv 2206.00364; with `x = x_t / sqrt(abar_t)`, `x = x_0 + sigma eps`.
//! Not here: which timesteps are visited (`spacing`).

use super::SampleError;
use crate::scheduler_config::{FinalSigmasType, SchedulerConfig};

/// diffusers' abar of the last timestep where the schedule ends without signal: sigma stays finite.
const LEAST_ALPHA_CUMPROD: f64 = 1.0 / (1_u64 << 24) as f64;

/// rho of Karras et al. 2022, eq. 5.
const RHO: f64 = 7.0;

/// Sigma of every training timestep, and the way back from a sigma to a time.
#[derive(Debug, Clone)]
pub(super) struct SigmaTable {
    sigmas: Vec<f64>,
}

impl SigmaTable {
    pub(super) fn new(scheduler: &SchedulerConfig) -> Result<Self, SampleError> {
        let schedule = scheduler.noise_schedule()?;
        let sigma = |&abar: &f64| {
            let abar = if abar > 0.0 { abar } else { LEAST_ALPHA_CUMPROD };
            ((1.0 - abar) / abar).sqrt()
        };
        Ok(Self { sigmas: schedule.alphas_cumprod().iter().map(sigma).collect() })
    }

    /// One per training timestep, rising.
    pub(super) fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Between two timesteps sigma is interpolated linearly. t lies in `[0, T - 1]`.
    pub(super) fn at(&self, t: f64) -> f64 {
        let (below, above) = (t.floor() as usize, t.ceil() as usize);
        self.sigmas[below] + (self.sigmas[above] - self.sigmas[below]) * t.fract()
    }

    /// The time at which sigma is reached, by linear interpolation of its logarithm; at the ends of the
    /// table it stays there.
    pub(super) fn time_of(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let reached = self.sigmas.partition_point(|sigma| sigma.ln() <= log_sigma);
        let below = reached.saturating_sub(1).min(self.sigmas.len().saturating_sub(2));
        let Some(above) = self.sigmas.get(below + 1) else { return 0.0 };
        let (low, high) = (self.sigmas[below].ln(), above.ln());
        below as f64 + ((log_sigma - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// Where the last step leads.
    pub(super) fn last(&self, kind: FinalSigmasType) -> f64 {
        match kind {
            FinalSigmasType::Zero => 0.0,
            FinalSigmasType::SigmaMin => self.sigmas[0],
        }
    }
}

/// Noise levels from `max` down to `min`, evenly spaced in `sigma^(1/rho)` (Karras et al. 2022, eq. 5).
/// A single one is `max`.
pub(super) fn karras_sigmas(max: f64, min: f64, steps: usize) -> Vec<f64> {
    let (max_root, min_root) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    let last = (steps - 1).max(1) as f64;
    (0..steps).map(|i| (max_root + i as f64 / last * (min_root - max_root)).powf(RHO)).collect()
}

/// That the noise falls from step to step; the last may keep it.
///
/// # Errors
/// [`SampleError::NoiseNotFalling`].
pub(super) fn falling(sigmas: &[f64]) -> Result<(), SampleError> {
    let steps = sigmas.len() - 1;
    match (1..steps).find(|&i| sigmas[i] >= sigmas[i - 1]) {
        None => Ok(()),
        Some(step) => Err(SampleError::NoiseNotFalling { steps, step }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn table() -> SigmaTable {
        SigmaTable::new(&SchedulerConfig::default()).unwrap()
    }

    #[test]
    fn karras_levels_by_hand() {
        let sigmas = karras_sigmas(128.0, 1.0, 3);
        // 128^(1/7) = 2, so the middle one is 1.5^7.
        for (found, expected) in sigmas.iter().zip([128.0, 1.5_f64.powi(7), 1.0]) {
            assert!((found - expected).abs() < 1e-12 * expected, "{found} != {expected}");
        }
        assert!((karras_sigmas(128.0, 1.0, 1)[0] - 128.0).abs() < 1e-12);
    }

    #[test]
    fn without_signal_sigma_stays_finite() {
        let scheduler = SchedulerConfig { rescale_betas_zero_snr: true, ..Default::default() };
        let table = SigmaTable::new(&scheduler).unwrap();
        assert!((table.sigmas()[999] - 4096.0).abs() < 1e-3);
    }

    #[test]
    fn a_table_of_one_timestep() {
        let scheduler = SchedulerConfig { num_train_timesteps: 1, ..Default::default() };
        let table = SigmaTable::new(&scheduler).unwrap();
        assert_eq!((table.time_of(3.0), table.at(0.0)), (0.0, table.sigmas()[0]));
    }

    #[test]
    fn levels_that_do_not_fall_are_an_error() {
        assert!(falling(&[3.0, 2.0, 2.0]).is_ok());
        assert!(falling(&[3.0, 0.0]).is_ok());
        let error = falling(&[3.0, 3.0, 0.0]).unwrap_err();
        assert!(matches!(error, SampleError::NoiseNotFalling { steps: 2, step: 1 }));
    }

    proptest! {
        #[test]
        fn a_sigma_has_its_time(t in 0.0_f64..999.0) {
            let table = table();
            let (below, above) = (table.sigmas()[t as usize].ln(), table.sigmas()[t as usize + 1].ln());
            let sigma = (below + (above - below) * t.fract()).exp();
            prop_assert!((table.time_of(sigma) - t).abs() < 1e-6);
        }

        #[test]
        fn beyond_the_ends_time_stands_still(factor in 1.0_f64..10.0) {
            let table = table();
            prop_assert_eq!(table.time_of(table.sigmas()[999] * factor), 999.0);
            prop_assert_eq!(table.time_of(table.sigmas()[0] / factor), 0.0);
        }
    }
}
