//! The CLIP score (Hessel et al. 2021, with the weight 100 that DeMe's paper uses).

use crate::EvalError;

/// Mean CLIP score of pictures and their captions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipScore {
    /// Mean of `100 max(cos, 0)`, in [0, 100].
    pub mean: f64,
    /// Standard error of the mean; none for a single pair.
    pub std_error: Option<f64>,
    /// Number of pairs.
    pub count: usize,
}

/// `100 max(cos(image_i, text_i), 0)`, averaged over the pairs.
///
/// The embeddings may have any length but zero.
///
/// # Errors
/// [`EvalError::Pairs`] when there are not equally many, [`EvalError::TooFew`] without any,
/// [`EvalError::FeatureLength`], [`EvalError::NoDirection`].
pub fn clip_score(images: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<ClipScore, EvalError> {
    let scores = clip_scores(images, texts)?;
    if scores.is_empty() {
        return Err(EvalError::TooFew { count: 0 });
    }
    let count = scores.len();
    let mean = scores.iter().sum::<f64>() / count as f64;
    let squares: f64 = scores.iter().map(|score| (score - mean) * (score - mean)).sum();
    let std_error =
        (count > 1).then(|| (squares / (count - 1) as f64).sqrt() / (count as f64).sqrt());
    Ok(ClipScore { mean, std_error, count })
}

/// The score of each pair.
///
/// # Errors
/// As [`clip_score`].
pub fn clip_scores(images: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<Vec<f64>, EvalError> {
    if images.len() != texts.len() {
        return Err(EvalError::Pairs { images: images.len(), texts: texts.len() });
    }
    let pairs = images.iter().zip(texts).enumerate();
    let scores = pairs.map(|(index, (image, text))| {
        if image.len() != text.len() {
            let (found, expected) = (text.len(), image.len());
            return Err(EvalError::FeatureLength { index: index as u64, found, expected });
        }
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let length = |what, x: &[f32]| {
            let length = dot(x, x).sqrt();
            if length.is_finite() && length > 0.0 {
                Ok(length)
            } else {
                Err(EvalError::NoDirection { what, index, length })
            }
        };
        let cosine = dot(image, text) / (length("picture", image)? * length("caption", text)?);
        Ok(100.0 * cosine.max(0.0))
    });
    scores.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cosines_are_clamped_at_zero_and_averaged() {
        let images = [vec![1.0, 0.0], vec![0.0, 2.0], vec![1.0, 1.0]];
        let texts = [vec![3.0, 0.0], vec![0.0, -1.0], vec![0.0, 1.0]];
        let score = clip_score(&images, &texts).unwrap();
        let diagonal = 100.0 * 0.5f64.sqrt();
        assert!((score.mean - (100.0 + diagonal) / 3.0).abs() < 1e-9);
        let deviations = [100.0, 0.0, diagonal].map(|x| (x - score.mean).powi(2));
        let expected = (deviations.iter().sum::<f64>() / 2.0 / 3.0).sqrt();
        assert!((score.std_error.unwrap() - expected).abs() < 1e-9);
        assert_eq!(clip_score(&images[..1], &texts[..1]).unwrap().std_error, None);
    }

    #[test]
    fn pairs_that_do_not_fit_are_refused() {
        let one = vec![1.0f32, 0.0];
        let error = clip_score(std::slice::from_ref(&one), &[]).unwrap_err();
        assert!(matches!(error, EvalError::Pairs { images: 1, texts: 0 }));
        assert!(matches!(clip_score(&[], &[]).unwrap_err(), EvalError::TooFew { count: 0 }));
        let error = clip_score(std::slice::from_ref(&one), &[vec![1.0]]).unwrap_err();
        assert!(matches!(error, EvalError::FeatureLength { found: 1, expected: 2, .. }));
        let error = clip_score(&[one], &[vec![0.0, 0.0]]).unwrap_err();
        assert!(matches!(error, EvalError::NoDirection { what: "caption", index: 0, .. }));
    }
}
