//! Loss weightings by signal-to-noise ratio, the single-model baselines DeMe is compared with.
//!
//! Each is defined by its own paper on its own prediction target. They are brought to one footing here:
//! a weight `w_x0(t)` on the squared error of the predicted x_0. Given x_t, the three targets are linear in
//! each other, `x_t = a x_0 + s eps` and `v = a eps - s x_0` with `a^2 = abar_t`, `s^2 = 1 - abar_t` and
//! `SNR = a^2 / s^2`, so their errors are proportional:
//!
//! ```text
//! x_0 - x_0^ = -(s / a) (eps - eps^)   =>   |x_0 error|^2 = |eps error|^2 / SNR
//! x_0 - x_0^ = -s (v - v^)             =>   |x_0 error|^2 = |v error|^2 / (SNR + 1)
//! ```
//!
//! Hence one loss is written `w_x0 |x_0 error|^2 = w_eps |eps error|^2 = w_v |v error|^2` with
//!
//! ```text
//! w_eps = w_x0 / SNR,    w_v = w_x0 / (SNR + 1)
//! ```
//!
//! The consistency loss is never weighted.

use deme_diffusion::PredictionType;
use serde::{Deserialize, Serialize};

use crate::finetune_config::ImpossibleValue;

/// The weight of a timestep's diffusion loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", from = "Written")]
pub enum LossWeighting {
    /// Weight 1 on the model's own target, whichever that is (Ho et al. 2020, eq. 14, for eps).
    #[default]
    Uniform,
    /// `w_x0 = SNR + 1`, which is weight 1 on v (Salimans and Ho 2022, section 4).
    /// On eps: `w_eps = (SNR + 1) / SNR = 1 / abar_t`.
    SnrPlusOne,
    /// `w_x0 = max(SNR, 1)` (Salimans and Ho 2022, section 4). On eps: `w_eps = max(1, 1 / SNR)`.
    TruncatedSnr,
    /// `w_x0 = min(SNR, gamma)` (Hang et al. 2023, section 3.4). On eps: `w_eps = min(1, gamma / SNR)`.
    MinSnrGamma {
        /// Where the weight is cut; the paper's value is 5, the default.
        gamma: f64,
    },
    /// `w_eps = 1 / (k + SNR)^gamma` (Choi et al. 2022, eq. 8: their lambda_t is what makes the bound's
    /// terms the unweighted eps loss, so the factor beside it is the weight on eps).
    /// On x_0: `w_x0 = SNR / (k + SNR)^gamma`.
    P2 {
        /// Keeps the weight finite where SNR is 0; the paper's value is 1, the default.
        k: f64,
        /// Strength; the paper's values are 0.5 and 1, the default.
        gamma: f64,
    },
}

impl LossWeighting {
    /// The weight on the squared error of `prediction`'s target at a signal-to-noise ratio.
    ///
    /// It is infinite where a weighting asks for it: `SnrPlusOne` and `TruncatedSnr` on eps at SNR 0.
    pub fn weight(&self, prediction: PredictionType, snr: f64) -> f64 {
        // Simplified by hand for each target: SNR may be huge (t = 0) or 0 (t = T - 1).
        let by_x0_weight = |w_x0: f64| match prediction {
            PredictionType::Epsilon => w_x0 / snr,
            PredictionType::Sample => w_x0,
            PredictionType::VPrediction => w_x0 / (snr + 1.0),
        };
        match *self {
            Self::Uniform => 1.0,
            Self::SnrPlusOne => by_x0_weight(snr + 1.0),
            Self::TruncatedSnr => by_x0_weight(snr.max(1.0)),
            Self::MinSnrGamma { gamma } => match prediction {
                PredictionType::Epsilon if snr <= gamma => 1.0,
                _ => by_x0_weight(snr.min(gamma)),
            },
            Self::P2 { k, gamma } => {
                let w_eps = (k + snr).powf(-gamma);
                match prediction {
                    PredictionType::Epsilon => w_eps,
                    PredictionType::Sample => snr * w_eps,
                    PredictionType::VPrediction => snr / (snr + 1.0) * w_eps,
                }
            }
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`ImpossibleValue`] names the key.
    pub fn validate(&self) -> Result<(), ImpossibleValue> {
        let positive = |key, value: f64| {
            let possible = value.is_finite() && value > 0.0;
            ImpossibleValue::unless(possible, key, value, "a finite number above 0")
        };
        match *self {
            Self::Uniform | Self::SnrPlusOne | Self::TruncatedSnr => Ok(()),
            Self::MinSnrGamma { gamma } => positive("loss_weighting.gamma", gamma),
            Self::P2 { k, gamma } => {
                positive("loss_weighting.k", k)?;
                positive("loss_weighting.gamma", gamma)
            }
        }
    }
}

/// [`LossWeighting`] as it is written: serde refuses unknown keys only beside variants with fields.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    Uniform {},
    SnrPlusOne {},
    TruncatedSnr {},
    MinSnrGamma {
        #[serde(default = "five")]
        gamma: f64,
    },
    P2 {
        #[serde(default = "one")]
        k: f64,
        #[serde(default = "one")]
        gamma: f64,
    },
}

impl From<Written> for LossWeighting {
    fn from(written: Written) -> Self {
        match written {
            Written::Uniform {} => Self::Uniform,
            Written::SnrPlusOne {} => Self::SnrPlusOne,
            Written::TruncatedSnr {} => Self::TruncatedSnr,
            Written::MinSnrGamma { gamma } => Self::MinSnrGamma { gamma },
            Written::P2 { k, gamma } => Self::P2 { k, gamma },
        }
    }
}

fn one() -> f64 {
    1.0
}

fn five() -> f64 {
    5.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const ALL: [LossWeighting; 4] = [
        LossWeighting::SnrPlusOne,
        LossWeighting::TruncatedSnr,
        LossWeighting::MinSnrGamma { gamma: 5.0 },
        LossWeighting::P2 { k: 1.0, gamma: 1.0 },
    ];

    fn eps(weighting: LossWeighting, snr: f64) -> f64 {
        weighting.weight(PredictionType::Epsilon, snr)
    }

    #[test]
    fn eps_weights_have_their_closed_forms() {
        assert_eq!(eps(LossWeighting::Uniform, 3.0), 1.0);
        assert_eq!(eps(LossWeighting::SnrPlusOne, 0.25), 5.0);
        assert_eq!(eps(LossWeighting::TruncatedSnr, 0.25), 4.0);
        assert_eq!(eps(LossWeighting::TruncatedSnr, 4.0), 1.0);
        assert_eq!(eps(LossWeighting::MinSnrGamma { gamma: 5.0 }, 20.0), 0.25);
        assert_eq!(eps(LossWeighting::MinSnrGamma { gamma: 5.0 }, 2.0), 1.0);
        assert_eq!(eps(LossWeighting::P2 { k: 1.0, gamma: 1.0 }, 3.0), 0.25);
        assert_eq!(eps(LossWeighting::P2 { k: 1.0, gamma: 0.5 }, 3.0), 0.5);
    }

    #[test]
    fn snr_plus_one_is_the_plain_loss_on_v() {
        for snr in [1e-6, 0.3, 7.0, 1e4] {
            let w_v = LossWeighting::SnrPlusOne.weight(PredictionType::VPrediction, snr);
            assert!((w_v - 1.0).abs() < 1e-12);
        }
    }

    proptest! {
        /// The same loss, computed on eps, x_0 and v of a random prediction, is the same number.
        #[test]
        fn weights_are_one_loss_on_every_target(
            abar in 0.001f64..0.999, x0 in -1.0f64..1.0, noise in -3.0f64..3.0, guess in -3.0f64..3.0,
        ) {
            let (a, s, snr) = (abar.sqrt(), (1.0 - abar).sqrt(), abar / (1.0 - abar));
            let x_t = a * x0 + s * noise;
            let x0_guess = (x_t - s * guess) / a;
            let v = |eps: f64, x0: f64| a * eps - s * x0;
            let errors = [
                (PredictionType::Epsilon, noise - guess),
                (PredictionType::Sample, x0 - x0_guess),
                (PredictionType::VPrediction, v(noise, x0) - v(guess, x0_guess)),
            ];
            for weighting in ALL {
                let losses =
                    errors.map(|(target, error)| weighting.weight(target, snr) * error.powi(2));
                for loss in losses {
                    prop_assert!((loss - losses[0]).abs() <= 1e-7 * losses[0].abs().max(1e-6));
                }
            }
        }
    }

    #[test]
    fn weightings_stay_finite_without_signal_where_their_papers_allow_it() {
        assert_eq!(eps(LossWeighting::MinSnrGamma { gamma: 5.0 }, 0.0), 1.0);
        assert_eq!(eps(LossWeighting::P2 { k: 1.0, gamma: 1.0 }, 0.0), 1.0);
        assert!(eps(LossWeighting::SnrPlusOne, 0.0).is_infinite());
        assert!(eps(LossWeighting::TruncatedSnr, 0.0).is_infinite());
    }

    #[test]
    fn recipes_name_the_kind_and_unknown_keys_are_refused() {
        let read = |text: &str| serde_json::from_str::<LossWeighting>(text);
        let min_snr = read(r#"{"kind": "min_snr_gamma"}"#).unwrap();
        assert_eq!(min_snr, LossWeighting::MinSnrGamma { gamma: 5.0 });
        assert_eq!(read(r#"{"kind": "uniform"}"#).unwrap(), LossWeighting::Uniform);
        for weighting in [LossWeighting::Uniform, ALL[0], ALL[1], ALL[2], ALL[3]] {
            assert_eq!(read(&serde_json::to_string(&weighting).unwrap()).unwrap(), weighting);
        }
        assert!(read(r#"{"kind": "p2", "delta": 1.0}"#).is_err());
        assert!(read(r#"{"kind": "uniform", "gamma": 1.0}"#).is_err());
        assert!(read(r#"{"kind": "snr"}"#).is_err());
    }

    #[test]
    fn impossible_constants_are_refused_by_name() {
        let key = |weighting: LossWeighting| weighting.validate().unwrap_err().key;
        assert_eq!(key(LossWeighting::MinSnrGamma { gamma: 0.0 }), "loss_weighting.gamma");
        assert_eq!(key(LossWeighting::P2 { k: -1.0, gamma: 1.0 }), "loss_weighting.k");
        assert_eq!(key(LossWeighting::P2 { k: 1.0, gamma: f64::NAN }), "loss_weighting.gamma");
        ALL.iter().for_each(|weighting| weighting.validate().unwrap());
    }
}
