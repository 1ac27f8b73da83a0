//! The ways to merge: a table of methods with their papers and formulas.
//!
//! A method is a row here and says *what* is computed; `merge` computes it. How good weights are found is
//! the matter of `weight_search`.

use serde::{Deserialize, Serialize};

use crate::merge_error::MergeError;

/// How N experts and the pretrained model become one model. `tau_i = theta_i - theta` throughout.
///
/// In a configuration: `{ method = "linear", weights = [0.1, 0.1, 0.2, 0.5] }`,
/// `{ method = "uniform" }`, `{ method = "ties", density = 0.2, scale = 1.0 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", from = "MergeMethodConfig")]
pub enum MergeMethod {
    /// `theta_m = theta + sum_i w_i tau_i`.   (Ma et al. 2024, eq. 8; Ilharco et al. 2022, task arithmetic)
    Linear {
        /// `w_i`, one per expert. They need not sum to 1 and may be negative.
        weights: Vec<f64>,
    },
    /// The linear method with `w_i = 1 / N`: the mean of the experts.   (Wortsman et al. 2022, model soups)
    Uniform,
    /// TIES: trim, elect sign, merge.   (Yadav et al. 2023, algorithm 1)
    ///
    /// 1. Trim: of each task vector, over all its tensors together, only the largest entries by magnitude
    ///    stay; the others become 0.
    /// 2. Elect: each entry gets the sign of its sum over the experts; where the sum is 0, the sign that
    ///    most of the other entries have (negative when both are equally frequent).
    /// 3. Merge: `tau` is at each entry the mean of the trimmed entries that have the elected sign and are
    ///    not 0; `theta_m = theta + scale tau`.
    Ties {
        /// The part of the entries that stays, in (0, 1]. `ceil(density * entries)` of them stay, and
        /// those as large as the smallest of these.
        density: f64,
        /// The factor of the merged task vector (lambda in the paper).
        scale: f64,
    },
}

/// The same table, spelled so that serde refuses unknown keys in each row.
#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
enum MergeMethodConfig {
    Linear {
        weights: Vec<f64>,
    },
    Uniform {},
    Ties {
        #[serde(default = "default_density")]
        density: f64,
        #[serde(default = "default_scale")]
        scale: f64,
    },
}

/// The paper's choice without tuning: top 20%.
fn default_density() -> f64 {
    0.2
}

fn default_scale() -> f64 {
    1.0
}

impl From<MergeMethodConfig> for MergeMethod {
    fn from(config: MergeMethodConfig) -> Self {
        match config {
            MergeMethodConfig::Linear { weights } => Self::Linear { weights },
            MergeMethodConfig::Uniform {} => Self::Uniform,
            MergeMethodConfig::Ties { density, scale } => Self::Ties { density, scale },
        }
    }
}

impl MergeMethod {
    /// The name in configurations and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Uniform => "uniform",
            Self::Ties { .. } => "ties",
        }
    }

    /// Where the method comes from.
    pub fn paper(&self) -> &'static str {
        match self {
            Self::Linear { .. } => {
                "Ma et al., Decouple-Then-Merge: Finetune Diffusion Models as Multi-Task Learning, \
                 arXiv 2410.06664"
            }
            Self::Uniform => {
                "Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves \
                 accuracy without increasing inference time, arXiv 2203.05482"
            }
            Self::Ties { .. } => {
                "Yadav et al., TIES-Merging: Resolving Interference When Merging Models, arXiv 2306.01708"
            }
        }
    }

    /// The weight of each task vector where the method is linear in them.
    pub fn weights(&self, num_experts: usize) -> Option<Vec<f64>> {
        match self {
            Self::Linear { weights } => Some(weights.clone()),
            Self::Uniform => Some(vec![1.0 / num_experts as f64; num_experts]),
            Self::Ties { .. } => None,
        }
    }

    /// Checks the settings before any tensor is read.
    ///
    /// # Errors
    /// [`MergeError::NoExperts`], [`MergeError::WeightCount`], [`MergeError::NonFiniteWeight`],
    /// [`MergeError::Setting`].
    pub fn check(&self, num_experts: usize) -> Result<(), MergeError> {
        if num_experts == 0 {
            return Err(MergeError::NoExperts);
        }
        match *self {
            Self::Linear { ref weights } => f32_weights(weights, num_experts).map(drop),
            Self::Uniform => Ok(()),
            Self::Ties { density, .. } if !(density > 0.0 && density <= 1.0) => {
                Err(MergeError::Setting {
                    setting: "density",
                    expected: "more than 0 and at most 1",
                    found: density,
                })
            }
            Self::Ties { scale, .. } if !(scale as f32).is_finite() => Err(MergeError::Setting {
                setting: "scale",
                expected: "a finite number (within f32)",
                found: scale,
            }),
            Self::Ties { .. } => Ok(()),
        }
    }
}

/// One finite f32 weight per expert.
pub(crate) fn f32_weights(weights: &[f64], num_experts: usize) -> Result<Vec<f32>, MergeError> {
    if weights.len() != num_experts {
        return Err(MergeError::WeightCount { expected: num_experts, found: weights.len() });
    }
    let check = |(expert, &weight): (usize, &f64)| {
        let rounded = weight as f32;
        if rounded.is_finite() {
            Ok(rounded)
        } else {
            Err(MergeError::NonFiniteWeight { expert, weight })
        }
    };
    weights.iter().enumerate().map(check).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<MergeMethod, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_configuration_reads_back_as_written() {
        for method in [
            MergeMethod::Linear { weights: vec![0.1, -2.0] },
            MergeMethod::Uniform,
            MergeMethod::Ties { density: 0.7, scale: 0.5 },
        ] {
            let text = serde_json::to_string(&method).unwrap();
            assert!(text.contains(method.name()), "{text}");
            assert_eq!(parse(&text).unwrap(), method);
        }
        assert_eq!(
            parse(r#"{"method": "ties"}"#).unwrap(),
            MergeMethod::Ties { density: 0.2, scale: 1.0 }
        );
    }

    #[test]
    fn unknown_methods_and_keys_are_refused() {
        for text in [
            r#"{"method": "slerp"}"#,
            r#"{"method": "uniform", "weights": [1]}"#,
            r#"{"method": "linear", "weights": [1], "scale": 1}"#,
            r#"{"method": "linear"}"#,
            r#"{"method": "ties", "top": 0.2}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn settings_outside_of_their_range_are_refused() {
        let linear = |weights: &[f64]| MergeMethod::Linear { weights: weights.to_vec() };
        assert!(matches!(MergeMethod::Uniform.check(0), Err(MergeError::NoExperts)));
        assert!(matches!(
            linear(&[1.0]).check(2),
            Err(MergeError::WeightCount { expected: 2, found: 1 })
        ));
        for weight in [f64::NAN, f64::INFINITY, 1e300] {
            let error = linear(&[1.0, weight]).check(2).unwrap_err();
            assert!(matches!(error, MergeError::NonFiniteWeight { expert: 1, .. }), "{error}");
        }
        for (density, scale, expected) in [
            (0.0, 1.0, "density"),
            (1.1, 1.0, "density"),
            (f64::NAN, 1.0, "density"),
            (1.0, f64::INFINITY, "scale"),
        ] {
            match (MergeMethod::Ties { density, scale }).check(2).unwrap_err() {
                MergeError::Setting { setting, .. } => assert_eq!(setting, expected),
                other => panic!("{other}"),
            }
        }
    }
}
