//! The noise schedule: betas, their cumulative products, and the forward process.
//!
//! Ho et al. 2020 (arXiv 2006.11239), section 2: `abar_t = prod_{s<=t} (1 - beta_s)` and
//! `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`. Everything is computed in f64.
//! Not here: the way back (`sampler`), what the network predicts (`prediction`).

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How beta grows with t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BetaSchedule {
    /// Evenly spaced from `beta_start` to `beta_end` (Ho et al. 2020).
    #[default]
    #[serde(rename = "linear")]
    Linear,
    /// The square roots are evenly spaced (Rombach et al. 2022, the latent diffusion models).
    #[serde(rename = "scaled_linear")]
    ScaledLinear,
    /// `abar(s) = cos^2((s + 0.008) / 1.008 * pi / 2)` on `s` in `[0, 1]`, each beta at most 0.999
    /// (Nichol and Dhariwal 2021, eq. 17); `beta_start` and `beta_end` are not used.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// What determines a [`NoiseSchedule`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoiseScheduleConfig {
    /// T, the number of steps of the forward process.
    pub num_train_timesteps: usize,
    /// How beta grows.
    pub beta_schedule: BetaSchedule,
    /// Beta at t = 0.
    pub beta_start: f64,
    /// Beta at t = T - 1.
    pub beta_end: f64,
    /// Whether abar is shifted and scaled so that the last timestep holds no signal at all (Lin et al.
    /// 2024, arXiv 2305.08891, algorithm 1). Such a model predicts v or x_0: at the last timestep eps says
    /// nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rescale_betas_zero_snr: bool,
}

impl Default for NoiseScheduleConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_schedule: BetaSchedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            rescale_betas_zero_snr: false,
        }
    }
}

/// Betas and their cumulative products, one per timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// Computes the schedule.
    ///
    /// # Errors
    /// [`ScheduleError::NoTimesteps`] for T = 0; [`ScheduleError::BetaOutOfRange`] unless
    /// `0 < beta_start <= beta_end < 1`; [`ScheduleError::NothingToRescale`] when a schedule of a single
    /// timestep is to end without signal.
    pub fn new(config: &NoiseScheduleConfig) -> Result<Self, ScheduleError> {
        let &NoiseScheduleConfig {
            num_train_timesteps,
            beta_schedule,
            beta_start,
            beta_end,
            rescale_betas_zero_snr,
        } = config;
        if num_train_timesteps == 0 {
            return Err(ScheduleError::NoTimesteps);
        }
        if !(0.0 < beta_start && beta_start <= beta_end && beta_end < 1.0) {
            return Err(ScheduleError::BetaOutOfRange { beta_start, beta_end });
        }
        let betas = match beta_schedule {
            BetaSchedule::Linear => linspace(beta_start, beta_end, num_train_timesteps),
            BetaSchedule::ScaledLinear => {
                let mut roots = linspace(beta_start.sqrt(), beta_end.sqrt(), num_train_timesteps);
                roots.iter_mut().for_each(|root| *root *= *root);
                roots
            }
            BetaSchedule::SquaredcosCapV2 => squaredcos_betas(num_train_timesteps),
        };
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let schedule = Self { betas, alphas_cumprod };
        match rescale_betas_zero_snr {
            true if num_train_timesteps == 1 => Err(ScheduleError::NothingToRescale),
            true => Ok(schedule.with_zero_terminal_snr()),
            false => Ok(schedule),
        }
    }

    /// `sqrt(abar)` shifted to end at 0 and scaled to begin where it began (Lin et al. 2024, algorithm 1).
    fn with_zero_terminal_snr(self) -> Self {
        let roots: Vec<f64> = self.alphas_cumprod.iter().map(|abar| abar.sqrt()).collect();
        let (first, last) = (roots[0], roots[roots.len() - 1]);
        let scale = first / (first - last);
        let alphas_cumprod: Vec<f64> =
            roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
        let before = std::iter::once(1.0).chain(alphas_cumprod.iter().copied());
        let betas = alphas_cumprod.iter().zip(before).map(|(abar, before)| 1.0 - abar / before);
        Self { betas: betas.collect(), alphas_cumprod }
    }

    /// T, the number of timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.betas.len()
    }

    /// `beta_t`, one per timestep, in (0, 1); the last is 1 where the schedule ends without signal.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// `abar_t = prod_{s<=t} (1 - beta_s)`, one per timestep, in (0, 1), falling; the last is 0 where the
    /// schedule ends without signal.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// `abar_t`.
    ///
    /// # Errors
    /// [`ScheduleError::TimestepOutOfRange`] when t >= T.
    pub fn alpha_cumprod(&self, t: usize) -> Result<f64, ScheduleError> {
        self.alphas_cumprod.get(t).copied().ok_or(ScheduleError::TimestepOutOfRange {
            timestep: t,
            num_train_timesteps: self.num_train_timesteps(),
        })
    }

    /// Signal-to-noise ratio `abar_t / (1 - abar_t)` (Kingma et al. 2021, eq. 2).
    ///
    /// # Errors
    /// [`ScheduleError::TimestepOutOfRange`] when t >= T.
    pub fn snr(&self, t: usize) -> Result<f64, ScheduleError> {
        let abar = self.alpha_cumprod(t)?;
        Ok(abar / (1.0 - abar))
    }

    /// `sqrt(abar_t)` and `sqrt(1 - abar_t)` of each image's timestep, each `[B, 1, 1, 1]`.
    ///
    /// # Errors
    /// [`ScheduleError::TimestepOutOfRange`] when some t >= T.
    pub fn rates(&self, t: &[usize], device: &Device) -> Result<Rates, ScheduleError> {
        let abars: Vec<f64> = t.iter().map(|&t| self.alpha_cumprod(t)).collect::<Result<_, _>>()?;
        Ok(Rates::of(&abars, device))
    }

    /// Adds noise at step `t`: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.   (Ho et al. 2020, eq. 4)
    ///
    /// # Shapes
    /// x_0, eps: `[B, C, H, W]`, x_0 in [-1, 1]; t: B integers in 0..T; returns `[B, C, H, W]`.
    ///
    /// # Errors
    /// [`ScheduleError::TimestepOutOfRange`] when some t >= T; [`ScheduleError::ShapeMismatch`] when
    /// x_0 and eps differ in shape; [`ScheduleError::TimestepCount`] when there is not one t per image.
    pub fn add_noise(
        &self,
        x_0: Tensor<4>,
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<Tensor<4>, ScheduleError> {
        if x_0.dims() != eps.dims() {
            return Err(ScheduleError::ShapeMismatch { x_0: x_0.dims(), eps: eps.dims() });
        }
        if x_0.dims()[0] != t.len() {
            return Err(ScheduleError::TimestepCount { images: x_0.dims()[0], timesteps: t.len() });
        }
        let rates = self.rates(t, &x_0.device())?;
        Ok(rates.signal * x_0 + rates.noise * eps)
    }
}

/// How much of a noisy image is signal and how much is noise, per image; signal^2 + noise^2 = 1.
#[derive(Debug, Clone)]
pub struct Rates {
    /// `sqrt(abar_t)`, `[B, 1, 1, 1]` (or `[1, 1, 1, 1]` for a whole batch at one timestep).
    pub signal: Tensor<4>,
    /// `sqrt(1 - abar_t)`, of the same shape.
    pub noise: Tensor<4>,
}

impl Rates {
    /// The rates of `abar_t`, one per image.
    pub fn of(alphas_cumprod: &[f64], device: &Device) -> Self {
        let column = |value: fn(f64) -> f64| {
            let values: Vec<f32> = alphas_cumprod.iter().map(|&a| value(a) as f32).collect();
            let shape = [values.len(), 1, 1, 1];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self { signal: column(f64::sqrt), noise: column(|abar| (1.0 - abar).sqrt()) }
    }
}

/// `count` evenly spaced values, both ends included.
fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    let intervals = count.saturating_sub(1).max(1) as f64;
    (0..count).map(|i| start + (end - start) * i as f64 / intervals).collect()
}

/// Betas whose cumulative product follows the squared cosine, each at most 0.999.
fn squaredcos_betas(count: usize) -> Vec<f64> {
    const MAX_BETA: f64 = 0.999;
    let abar = |s: f64| ((s + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    (0..count)
        .map(|t| {
            let (from, to) = (t as f64 / count as f64, (t + 1) as f64 / count as f64);
            (1.0 - abar(to) / abar(from)).min(MAX_BETA)
        })
        .collect()
}

/// Why a schedule cannot be made or used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// T = 0.
    #[error("num_train_timesteps is 0; a noise schedule needs at least 1 (usually 1000)")]
    NoTimesteps,
    /// Betas outside (0, 1) or falling.
    #[error(
        "beta_start = {beta_start} and beta_end = {beta_end} give no noise schedule: \
         0 < beta_start <= beta_end < 1 is needed (usually 0.0001 and 0.02)"
    )]
    BetaOutOfRange {
        /// First beta.
        beta_start: f64,
        /// Last beta.
        beta_end: f64,
    },
    /// One timestep, which cannot be the first and hold no signal.
    #[error(
        "num_train_timesteps = 1 leaves nothing to rescale; rescale_betas_zero_snr needs at least 2 \
         timesteps (usually 1000)"
    )]
    NothingToRescale,
    /// A timestep the schedule does not have.
    #[error(
        "timestep {timestep} lies outside the schedule's 0..{num_train_timesteps}; \
         was the model trained with another num_train_timesteps?"
    )]
    TimestepOutOfRange {
        /// The timestep.
        timestep: usize,
        /// T.
        num_train_timesteps: usize,
    },
    /// Images and noise of different shapes.
    #[error("images of shape {x_0:?} cannot take noise of shape {eps:?}; both must be the same")]
    ShapeMismatch {
        /// Shape of the images.
        x_0: [usize; 4],
        /// Shape of the noise.
        eps: [usize; 4],
    },
    /// Not one timestep per image.
    #[error("{images} images came with {timesteps} timesteps; each image needs one")]
    TimestepCount {
        /// Number of images.
        images: usize,
        /// Number of timesteps.
        timesteps: usize,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn schedule(beta_schedule: BetaSchedule) -> NoiseSchedule {
        NoiseSchedule::new(&NoiseScheduleConfig { beta_schedule, ..Default::default() }).unwrap()
    }

    fn image(values: &[f32]) -> Tensor<4> {
        let data = TensorData::new(values.to_vec(), [values.len(), 1, 1, 1]);
        Tensor::from_data(data, &Device::default())
    }

    #[test]
    fn linear_ends_are_the_configured_betas() {
        let schedule = schedule(BetaSchedule::Linear);
        assert_eq!(schedule.betas()[0], 1e-4);
        assert!((schedule.betas()[999] - 0.02).abs() < 1e-15);
        assert_eq!(schedule.alphas_cumprod()[0], 1.0 - 1e-4);
    }

    #[test]
    fn the_cosine_schedule_caps_its_last_beta() {
        let schedule = schedule(BetaSchedule::SquaredcosCapV2);
        assert_eq!(schedule.betas()[999], 0.999);
        assert!(schedule.betas()[998] < 0.999);
    }

    #[test]
    fn every_schedule_destroys_the_signal_monotonically() {
        for kind in
            [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2]
        {
            let schedule = schedule(kind);
            for t in 1..1000 {
                assert!(schedule.alphas_cumprod()[t] < schedule.alphas_cumprod()[t - 1]);
                assert!(schedule.snr(t).unwrap() < schedule.snr(t - 1).unwrap());
            }
            assert!(schedule.alphas_cumprod()[999] < 0.01 && schedule.alphas_cumprod()[999] > 0.0);
        }
    }

    #[test]
    fn snr_is_signal_over_noise() {
        let schedule = schedule(BetaSchedule::Linear);
        let abar = schedule.alphas_cumprod()[500];
        assert_eq!(schedule.snr(500), Ok(abar / (1.0 - abar)));
    }

    #[test]
    fn a_schedule_of_one_step_exists() {
        let config = NoiseScheduleConfig { num_train_timesteps: 1, ..Default::default() };
        assert_eq!(NoiseSchedule::new(&config).unwrap().betas(), [1e-4]);
    }

    #[test]
    fn a_rescaled_schedule_ends_without_signal_and_begins_as_before() {
        for kind in [BetaSchedule::Linear, BetaSchedule::ScaledLinear] {
            let plain = schedule(kind);
            let rescaled = NoiseSchedule::new(&NoiseScheduleConfig {
                beta_schedule: kind,
                rescale_betas_zero_snr: true,
                ..Default::default()
            })
            .unwrap();
            assert_eq!(rescaled.alphas_cumprod()[999], 0.0);
            assert_eq!(rescaled.betas()[999], 1.0);
            assert_eq!(rescaled.snr(999), Ok(0.0));
            assert!((rescaled.alphas_cumprod()[0] - plain.alphas_cumprod()[0]).abs() < 1e-15);
            let product = rescaled.betas()[..700].iter().map(|beta| 1.0 - beta).product::<f64>();
            assert!((product - rescaled.alphas_cumprod()[699]).abs() < 1e-12);
            for t in 1..1000 {
                assert!(rescaled.alphas_cumprod()[t] < rescaled.alphas_cumprod()[t - 1]);
                assert!(rescaled.alphas_cumprod()[t] < plain.alphas_cumprod()[t]);
            }
        }
    }

    #[test]
    fn one_timestep_without_signal_is_an_error() {
        let config = NoiseScheduleConfig {
            num_train_timesteps: 1,
            rescale_betas_zero_snr: true,
            ..Default::default()
        };
        assert_eq!(NoiseSchedule::new(&config), Err(ScheduleError::NothingToRescale));
    }

    #[test]
    fn zero_timesteps_are_an_error() {
        let config = NoiseScheduleConfig { num_train_timesteps: 0, ..Default::default() };
        assert_eq!(NoiseSchedule::new(&config), Err(ScheduleError::NoTimesteps));
    }

    #[test]
    fn betas_outside_the_unit_interval_are_an_error() {
        for (beta_start, beta_end) in [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (f64::NAN, 0.1)] {
            let config = NoiseScheduleConfig { beta_start, beta_end, ..Default::default() };
            let error = NoiseSchedule::new(&config).unwrap_err();
            assert!(matches!(error, ScheduleError::BetaOutOfRange { .. }));
        }
    }

    #[test]
    fn a_timestep_behind_the_end_is_an_error() {
        let schedule = schedule(BetaSchedule::Linear);
        let error = ScheduleError::TimestepOutOfRange { timestep: 1000, num_train_timesteps: 1000 };
        assert_eq!(schedule.snr(1000), Err(error.clone()));
        let found = schedule.add_noise(image(&[0.0, 0.0]), image(&[0.0, 0.0]), &[3, 1000]);
        assert_eq!(found.unwrap_err(), error);
    }

    #[test]
    fn images_and_noise_of_different_shapes_are_an_error() {
        let found = schedule(BetaSchedule::Linear).add_noise(
            image(&[0.0, 0.0]),
            image(&[0.0, 0.0, 0.0]),
            &[1, 2],
        );
        let (x_0, eps) = ([2, 1, 1, 1], [3, 1, 1, 1]);
        assert_eq!(found.unwrap_err(), ScheduleError::ShapeMismatch { x_0, eps });
    }

    #[test]
    fn a_missing_timestep_is_an_error() {
        let found =
            schedule(BetaSchedule::Linear).add_noise(image(&[0.0, 0.0]), image(&[0.0, 0.0]), &[1]);
        let error = ScheduleError::TimestepCount { images: 2, timesteps: 1 };
        assert_eq!(found.unwrap_err(), error);
    }

    #[test]
    fn unknown_keys_and_schedules_are_refused() {
        let parse = serde_json::from_str::<NoiseScheduleConfig>;
        assert!(parse(r#"{"beta_schedule": "squaredcos_cap_v2"}"#).is_ok());
        assert!(parse(r#"{"beta_schedule": "sigmoid"}"#).is_err());
        assert!(parse(r#"{"beta_begin": 0.1}"#).is_err());
    }

    proptest! {
        #[test]
        fn noise_at_the_ends(x_0 in -1.0_f32..1.0, eps in -3.0_f32..3.0) {
            let schedule = schedule(BetaSchedule::Linear);
            let noisy = schedule
                .add_noise(image(&[x_0, x_0]), image(&[eps, eps]), &[0, 999])
                .unwrap();
            let noisy = noisy.into_data().try_into_vec::<f32>().unwrap();
            // abar_0 = 0.9999: one per cent of noise; abar_999 = 4e-5: 0.6 per cent of signal.
            prop_assert!((noisy[0] - (0.9999_f32.sqrt() * x_0 + 0.01 * eps)).abs() < 1e-5);
            prop_assert!((noisy[1] - eps).abs() < 0.0064 * x_0.abs() + 2.1e-5 * eps.abs() + 1e-6);
        }
    }
}
