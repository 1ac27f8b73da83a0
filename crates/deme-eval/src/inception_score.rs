//! The inception score (Salimans et al. 2016, section 4): how sure a classifier is of each picture, and
//! how many classes it finds among all. No tensor engine.
//!
//! The formula is torch-fidelity's, from logits in f64. Its pictures are shuffled before they are
//! split; the original's are not, and neither are ours unless a seed is given.

use crate::random_subset::random_subset;
use crate::{EvalError, FeatureSet};
use serde::{Deserialize, Serialize};

/// How the pictures are split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InceptionScoreConfig {
    /// Parts that are scored by themselves.
    pub splits: usize,
    /// Shuffles the pictures first; pictures sorted by class need it.
    pub shuffle_seed: Option<u64>,
}

impl Default for InceptionScoreConfig {
    fn default() -> Self {
        Self { splits: 10, shuffle_seed: None }
    }
}

/// An inception score.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    /// Mean over the splits, between 1 and the number of classes.
    pub mean: f64,
    /// Standard deviation over the splits (divisor: their number).
    pub std: f64,
    /// The score of each split.
    pub of_splits: Vec<f64>,
}

/// `exp(E_x KL(p(y|x) || p(y)))`, p = softmax of the logits, over each split; split s of S holds the
/// pictures `s N / S .. (s + 1) N / S`.
///
/// # Errors
/// [`EvalError::Splits`] when there are fewer pictures than splits, or no splits.
pub fn inception_score(
    logits: &FeatureSet<'_>,
    config: &InceptionScoreConfig,
) -> Result<InceptionScore, EvalError> {
    let (count, splits) = (logits.len(), config.splits);
    if splits == 0 || count < splits {
        return Err(EvalError::Splits { splits, count });
    }
    let order = match config.shuffle_seed {
        Some(seed) => random_subset(count, count, seed, 0),
        None => (0..count).collect(),
    };
    let part = |split: usize| &order[split * count / splits..(split + 1) * count / splits];
    let of_splits: Vec<f64> = (0..splits).map(|split| score(logits, part(split))).collect();
    let mean = of_splits.iter().sum::<f64>() / splits as f64;
    let squares: f64 = of_splits.iter().map(|score| (score - mean).powi(2)).sum();
    Ok(InceptionScore { mean, std: (squares / splits as f64).sqrt(), of_splits })
}

fn score(logits: &FeatureSet<'_>, pictures: &[usize]) -> f64 {
    let count = pictures.len() as f64;
    let mut marginal = vec![0.0; logits.dim()];
    // sum_y p log p of all pictures; the rest of the divergence needs p(y) alone.
    let mut negative_entropy = 0.0;
    for &picture in pictures {
        let log_p = log_softmax(logits.row(picture));
        for (sum, log_p) in marginal.iter_mut().zip(log_p) {
            let p = log_p.exp();
            *sum += p / count;
            negative_entropy += p * log_p;
        }
    }
    // A class that no picture can be of has p log p = 0.
    let marginal = marginal.iter().filter(|p| **p > 0.0);
    let cross: f64 = marginal.map(|p| p * p.ln()).sum();
    (negative_entropy / count - cross).exp()
}

fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    let shift = largest + sum.ln();
    logits.iter().map(move |&logit| f64::from(logit) - shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn scored(logits: &[f32], classes: usize, config: &InceptionScoreConfig) -> InceptionScore {
        inception_score(&FeatureSet::of_flat(logits, classes).unwrap(), config).unwrap()
    }

    #[test]
    fn sure_and_even_classes_give_their_number_and_no_idea_gives_one() {
        // Classes in turn, sure of each: 5. All alike, however sure: 1.
        let sure: Vec<f32> =
            (0..100 * 5).map(|k| if k % 5 == k / 5 % 5 { 200.0 } else { 0.0 }).collect();
        let score = scored(&sure, 5, &InceptionScoreConfig::default());
        assert!((score.mean - 5.0).abs() < 1e-12 && score.std < 1e-12);
        assert_eq!(score.of_splits.len(), 10);
        let alike: Vec<f32> = (0..100 * 5).map(|k| [3.0, 1.0, 0.0, -2.0, 0.5][k % 5]).collect();
        let score = scored(&alike, 5, &InceptionScoreConfig::default());
        assert!((score.mean - 1.0).abs() < 1e-12);
    }

    #[test]
    fn two_pictures_by_hand() {
        // p = (3/4, 1/4) and (1/4, 3/4): p(y) = 1/2, KL = 3/4 ln(3/2) + 1/4 ln(1/2).
        let logits = [3f32.ln(), 0.0, 0.0, 3f32.ln()];
        let config = InceptionScoreConfig { splits: 1, shuffle_seed: None };
        let expected = (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln()).exp();
        assert!((scored(&logits, 2, &config).mean - expected).abs() < 1e-6);
    }

    #[test]
    fn sorted_pictures_score_by_their_split_until_they_are_shuffled() {
        // Ten classes, one split each: within a split there is one class.
        let sorted: Vec<f32> =
            (0..100 * 10).map(|k| if k % 10 == k / 100 { 200.0 } else { 0.0 }).collect();
        let score = scored(&sorted, 10, &InceptionScoreConfig::default());
        assert!((score.mean - 1.0).abs() < 1e-12);
        let shuffled = InceptionScoreConfig { shuffle_seed: Some(1), ..Default::default() };
        assert!(scored(&sorted, 10, &shuffled).mean > 4.0);
    }

    #[test]
    fn fewer_pictures_than_splits_are_refused() {
        let logits = [0.0f32; 18];
        let nine = FeatureSet::of_flat(&logits, 2).unwrap();
        let error = inception_score(&nine, &InceptionScoreConfig::default()).unwrap_err();
        assert!(matches!(error, EvalError::Splits { splits: 10, count: 9 }));
        let none = InceptionScoreConfig { splits: 0, shuffle_seed: None };
        let error = inception_score(&nine, &none).unwrap_err();
        assert!(matches!(error, EvalError::Splits { splits: 0, count: 9 }));
    }

    proptest! {
        #[test]
        fn it_lies_between_one_and_the_number_of_classes(
            logits in prop::collection::vec(-30.0..30.0f32, 4 * 12),
            shift in -50.0..50.0f32,
        ) {
            let config = InceptionScoreConfig { splits: 2, shuffle_seed: None };
            let score = scored(&logits, 4, &config);
            prop_assert!(score.of_splits.iter().all(|s| (1.0 - 1e-12..=4.0 + 1e-12).contains(s)));
            // The same constant on all logits of a picture changes nothing but rounding.
            let moved: Vec<f32> = logits.iter().map(|x| x + shift).collect();
            prop_assert!((scored(&moved, 4, &config).mean - score.mean).abs() < 1e-3);
        }
    }
}
