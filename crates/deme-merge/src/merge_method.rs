//! The ways to merge: a table of methods with their papers, formulas and parameters.
//!
//! A method is a row here and says *what* is computed; `merge` computes it. How good weights are found is
//! the matter of `weight_search`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::group_weights;
use crate::merge_error::MergeError;

/// A row of the table of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodRow {
    /// The name in configurations and reports.
    pub name: &'static str,
    /// What is computed.
    pub formula: &'static str,
    /// Where the method comes from.
    pub paper: &'static str,
    /// The names of its parameters.
    pub parameters: &'static [&'static str],
}

/// All methods.
pub const METHODS: [MethodRow; 7] = [
    MethodRow {
        name: "linear",
        formula: "theta + sum_i w_i tau_i, with weights for all tensors or per group of them",
        paper: "Ma et al., Decouple-Then-Merge: Finetune Diffusion Models as Multi-Task Learning, \
                arXiv 2410.06664",
        parameters: &["weights", "group-weights"],
    },
    MethodRow {
        name: "uniform",
        formula: "the mean of the experts",
        paper: "Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves \
                accuracy without increasing inference time, arXiv 2203.05482",
        parameters: &[],
    },
    MethodRow {
        name: "ties",
        formula: "theta + scale times the mean of those large entries of the task vectors that agree in sign",
        paper: "Yadav et al., TIES-Merging: Resolving Interference When Merging Models, arXiv 2306.01708",
        parameters: &["density", "scale"],
    },
    MethodRow {
        name: "dare",
        formula: "theta + sum_i w_i m_i tau_i / (1 - drop), with random masks m_i",
        paper: "Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as \
                a Free Lunch, arXiv 2311.03099",
        parameters: &["weights", "drop", "seed"],
    },
    MethodRow {
        name: "slerp",
        formula: "each tensor of exactly two experts, along the great circle between them",
        paper: "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; as in mergekit, \
                arXiv 2403.13257",
        parameters: &["t"],
    },
    MethodRow {
        name: "fisher",
        formula: "sum_i F_i theta_i / sum_i F_i, with the diagonal of each expert's Fisher information",
        paper: "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832",
        parameters: &["fisher"],
    },
    MethodRow {
        name: "regmean",
        formula: "(sum_i W_i G_i) (sum_i G_i)^-1 for linear layers with Gram matrices G_i, else the mean",
        paper: "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, \
                arXiv 2212.09849",
        parameters: &["gram", "alpha"],
    },
];

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
    /// The linear method with weights of their own for parts of the UNet.
    ///
    /// A group is `down`, `mid` or `up`, a block such as `down_blocks.0`, `mid_block` or `up_blocks.2`, or
    /// `rest`: all tensors outside of the blocks. A tensor takes the weights of its block, or else of its
    /// part, or else those for all others.
    LinearByGroup {
        /// `w_i`, one per expert, by group.
        groups: BTreeMap<String, Vec<f64>>,
        /// `w_i` of tensors that belong to none of the groups. Without them every tensor must belong to one.
        weights: Option<Vec<f64>>,
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
    /// DARE: drop entries of the task vectors, rescale the others.   (Yu et al. 2024, eq. 2)
    ///
    /// `theta_m = theta + sum_i w_i m_i tau_i / (1 - drop)`, `m_i` being 0 with probability `drop` at each
    /// entry and 1 otherwise: a pure function of seed, expert, the tensor's name and the entry's position.
    Dare {
        /// `w_i`, one per expert.
        weights: Vec<f64>,
        /// The part of the entries that is dropped, in [0, 1).
        drop: f64,
        /// What the masks are drawn from.
        seed: u64,
    },
    /// SLERP between two experts: `theta_m = (sin((1 - t) omega) theta_1 + sin(t omega) theta_2) / sin omega`.
    /// (Shoemake 1985)
    ///
    /// As mergekit does it: each tensor by itself as one vector, `omega` the angle between the experts' two;
    /// between the models, not their task vectors: theta has no influence. Where |cos omega| > 0.9995, as
    /// between experts finetuned from one model it usually is, and where a tensor is zero, linear
    /// interpolation.
    Slerp {
        /// From 0, the first expert, to 1, the second.
        t: f64,
    },
    /// `theta_m = sum_i F_i theta_i / sum_i F_i` at each entry.   (Matena & Raffel 2022, eq. 3)
    ///
    /// The statistics are the diagonals F_i of the experts' Fisher information: not negative, a tensor for
    /// each tensor that is merged. Where all F_i are 0, the mean of the experts.
    Fisher,
    /// RegMean: `W_m = (sum_i W_i G_i) (sum_i G_i)^-1`, the least squares fit to the outputs of the experts'
    /// linear layers.   (Jin et al. 2023, eq. 2)
    ///
    /// The statistics are the Gram matrices `G_i = X_i^T X_i` `[in, in]` of the inputs of linear layers
    /// `W_i` `[out, in]`, under the name of the weight. Tensors without them are averaged. A millionth of
    /// the diagonal's mean is added to the diagonal of each G_i, so that inputs which never occurred take
    /// the mean too.
    #[serde(rename = "regmean")]
    RegMean {
        /// The factor of the entries of G_i off its diagonal, in [0, 1].
        alpha: f64,
    },
}

/// The same table, spelled so that serde refuses unknown keys in each row.
#[derive(Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
enum MergeMethodConfig {
    Linear {
        weights: Vec<f64>,
    },
    LinearByGroup {
        groups: BTreeMap<String, Vec<f64>>,
        weights: Option<Vec<f64>>,
    },
    Uniform {},
    Ties {
        #[serde(default = "default_density")]
        density: f64,
        #[serde(default = "default_scale")]
        scale: f64,
    },
    Dare {
        weights: Vec<f64>,
        #[serde(default = "default_drop")]
        drop: f64,
        #[serde(default)]
        seed: u64,
    },
    Slerp {
        #[serde(default = "default_t")]
        t: f64,
    },
    Fisher {},
    #[serde(rename = "regmean")]
    RegMean {
        #[serde(default = "default_alpha")]
        alpha: f64,
    },
}

fn default_density() -> f64 {
    MergeMethod::DEFAULT_DENSITY
}

fn default_scale() -> f64 {
    MergeMethod::DEFAULT_SCALE
}

fn default_drop() -> f64 {
    MergeMethod::DEFAULT_DROP
}

fn default_t() -> f64 {
    MergeMethod::DEFAULT_T
}

fn default_alpha() -> f64 {
    MergeMethod::DEFAULT_ALPHA
}

impl From<MergeMethodConfig> for MergeMethod {
    fn from(config: MergeMethodConfig) -> Self {
        match config {
            MergeMethodConfig::Linear { weights } => Self::Linear { weights },
            MergeMethodConfig::LinearByGroup { groups, weights } => {
                Self::LinearByGroup { groups, weights }
            }
            MergeMethodConfig::Uniform {} => Self::Uniform,
            MergeMethodConfig::Ties { density, scale } => Self::Ties { density, scale },
            MergeMethodConfig::Dare { weights, drop, seed } => Self::Dare { weights, drop, seed },
            MergeMethodConfig::Slerp { t } => Self::Slerp { t },
            MergeMethodConfig::Fisher {} => Self::Fisher,
            MergeMethodConfig::RegMean { alpha } => Self::RegMean { alpha },
        }
    }
}

/// What a method must know about each expert besides its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistics {
    Fisher,
    Gram,
}

impl MergeMethod {
    /// Of TIES, the paper's choice without tuning: top 20%.
    pub const DEFAULT_DENSITY: f64 = 0.2;
    /// Of TIES.
    pub const DEFAULT_SCALE: f64 = 1.0;
    /// Of DARE: nine of ten entries, which the paper finds to cost nothing.
    pub const DEFAULT_DROP: f64 = 0.9;
    /// Of SLERP: halfway.
    pub const DEFAULT_T: f64 = 0.5;
    /// Of RegMean, the paper's choice.
    pub const DEFAULT_ALPHA: f64 = 0.9;

    /// The method's row in the table.
    pub fn row(&self) -> &'static MethodRow {
        let name = match self {
            Self::Linear { .. } | Self::LinearByGroup { .. } => "linear",
            Self::Uniform => "uniform",
            Self::Ties { .. } => "ties",
            Self::Dare { .. } => "dare",
            Self::Slerp { .. } => "slerp",
            Self::Fisher => "fisher",
            Self::RegMean { .. } => "regmean",
        };
        METHODS.iter().find(|row| row.name == name).expect("every method has a row")
    }

    /// The name in configurations and reports.
    pub fn name(&self) -> &'static str {
        self.row().name
    }

    /// Where the method comes from.
    pub fn paper(&self) -> &'static str {
        self.row().paper
    }

    /// The weight of each task vector where the method is linear in them and all tensors have the same.
    pub fn weights(&self, num_experts: usize) -> Option<Vec<f64>> {
        match self {
            Self::Linear { weights } | Self::Dare { weights, .. } => Some(weights.clone()),
            Self::Uniform => Some(vec![1.0 / num_experts as f64; num_experts]),
            _ => None,
        }
    }

    pub(crate) fn statistics(&self) -> Option<Statistics> {
        match self {
            Self::Fisher => Some(Statistics::Fisher),
            Self::RegMean { .. } => Some(Statistics::Gram),
            _ => None,
        }
    }

    /// Checks the settings before any tensor is read.
    ///
    /// # Errors
    /// [`MergeError::NoExperts`], [`MergeError::ExpertCount`], [`MergeError::WeightCount`],
    /// [`MergeError::NonFiniteWeight`], [`MergeError::Group`], [`MergeError::Setting`].
    pub fn check(&self, num_experts: usize) -> Result<(), MergeError> {
        if num_experts == 0 {
            return Err(MergeError::NoExperts);
        }
        let setting = |valid: bool, setting, expected, found| match valid {
            true => Ok(()),
            false => Err(MergeError::Setting { setting, expected, found }),
        };
        match *self {
            Self::Linear { ref weights } => f32_weights(weights, num_experts).map(drop),
            Self::LinearByGroup { ref groups, ref weights } => {
                group_weights::checked(groups, num_experts)?;
                weights.iter().try_for_each(|all| f32_weights(all, num_experts).map(drop))
            }
            Self::Uniform | Self::Fisher => Ok(()),
            Self::Ties { density, scale } => {
                let valid = density > 0.0 && density <= 1.0;
                setting(valid, "density", "more than 0 and at most 1", density)?;
                let valid = (scale as f32).is_finite();
                setting(valid, "scale", "a finite number (within f32)", scale)
            }
            Self::Dare { ref weights, drop: dropped, .. } => {
                f32_weights(weights, num_experts)?;
                let valid = (0.0..1.0).contains(&dropped);
                setting(valid, "drop", "at least 0 and less than 1", dropped)
            }
            Self::Slerp { .. } if num_experts != 2 => Err(MergeError::ExpertCount {
                method: self.name(),
                expected: 2,
                found: num_experts,
            }),
            Self::Slerp { t } => setting((0.0..=1.0).contains(&t), "t", "between 0 and 1", t),
            Self::RegMean { alpha } => {
                setting((0.0..=1.0).contains(&alpha), "alpha", "between 0 and 1", alpha)
            }
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
            MergeMethod::LinearByGroup {
                groups: [("down".to_string(), vec![1.0]), ("up_blocks.2".to_string(), vec![0.5])]
                    .into(),
                weights: Some(vec![0.1]),
            },
            MergeMethod::LinearByGroup { groups: BTreeMap::new(), weights: None },
            MergeMethod::Dare { weights: vec![1.0], drop: 0.5, seed: 7 },
            MergeMethod::Slerp { t: 0.25 },
            MergeMethod::Fisher,
            MergeMethod::RegMean { alpha: 1.0 },
        ] {
            let text = serde_json::to_string(&method).unwrap();
            assert!(text.contains(method.name()), "{text}");
            assert_eq!(parse(&text).unwrap(), method);
        }
        assert_eq!(
            parse(r#"{"method": "dare", "weights": [1]}"#).unwrap(),
            MergeMethod::Dare { weights: vec![1.0], drop: 0.9, seed: 0 }
        );
        assert_eq!(parse(r#"{"method": "slerp"}"#).unwrap(), MergeMethod::Slerp { t: 0.5 });
        assert_eq!(parse(r#"{"method": "regmean"}"#).unwrap(), MergeMethod::RegMean { alpha: 0.9 });
        assert_eq!(
            parse(r#"{"method": "ties"}"#).unwrap(),
            MergeMethod::Ties { density: 0.2, scale: 1.0 }
        );
    }

    #[test]
    fn unknown_methods_and_keys_are_refused() {
        for text in [
            r#"{"method": "mean"}"#,
            r#"{"method": "fisher", "floor": 1}"#,
            r#"{"method": "linear_by_group"}"#,
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
        let ties = |density, scale| MergeMethod::Ties { density, scale };
        let dare = |drop| MergeMethod::Dare { weights: vec![0.5; 2], drop, seed: 0 };
        for (method, expected) in [
            (ties(0.0, 1.0), "density"),
            (ties(1.1, 1.0), "density"),
            (ties(f64::NAN, 1.0), "density"),
            (ties(1.0, f64::INFINITY), "scale"),
            (dare(1.0), "drop"),
            (dare(-0.1), "drop"),
            (dare(f64::NAN), "drop"),
            (MergeMethod::Slerp { t: 1.1 }, "t"),
            (MergeMethod::RegMean { alpha: -0.1 }, "alpha"),
        ] {
            match method.check(2).unwrap_err() {
                MergeError::Setting { setting, .. } => assert_eq!(setting, expected),
                other => panic!("{other}"),
            }
        }
        assert!(matches!(
            MergeMethod::Slerp { t: 0.5 }.check(3),
            Err(MergeError::ExpertCount { method: "slerp", expected: 2, found: 3 })
        ));
        let groups = [("up".to_string(), vec![1.0])].into();
        match (MergeMethod::LinearByGroup { groups, weights: None }).check(2).unwrap_err() {
            MergeError::Group { group, source } => {
                assert_eq!(group, "up");
                assert!(matches!(*source, MergeError::WeightCount { expected: 2, found: 1 }));
            }
            other => panic!("{other}"),
        }
    }
}
