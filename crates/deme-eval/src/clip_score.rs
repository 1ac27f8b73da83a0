//! The CLIP score (Hessel et al. 2021, with the weight 100 that DeMe's paper uses).
//!
//! Each pair's score is clamped at zero, as in the paper's eq. 1 (whose weight is 2.5). torchmetrics'
//! `CLIPScore` clamps their mean instead, which differs as soon as one cosine is negative; it also cuts
//! the end token off captions that are too long, where here the last words go. Not here: CLIP itself.

use crate::{EvalError, prepare_for_clip};
use deme_clip::{Clip, EMBEDDING_BATCH};
use deme_data::read_picture;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

impl ClipScore {
    /// Mean and standard error of the scores of pairs.
    ///
    /// # Errors
    /// [`EvalError::TooFew`] without any.
    pub fn of(scores: &[f64]) -> Result<Self, EvalError> {
        if scores.is_empty() {
            return Err(EvalError::TooFew { count: 0 });
        }
        let count = scores.len();
        let mean = scores.iter().sum::<f64>() / count as f64;
        let squares: f64 = scores.iter().map(|score| (score - mean) * (score - mean)).sum();
        let std_error =
            (count > 1).then(|| (squares / (count - 1) as f64).sqrt() / (count as f64).sqrt());
        Ok(Self { mean, std_error, count })
    }
}

/// Scores of pictures in files and their captions.
#[derive(Debug, Clone, PartialEq)]
pub struct PairScores {
    /// Mean and standard error.
    pub score: ClipScore,
    /// Of each pair, in [0, 100].
    pub pairs: Vec<f64>,
    /// Pairs whose caption was too long for the text tower and lost its last words.
    pub truncated: usize,
}

/// The score of every picture file with its caption.
///
/// Pictures are prepared as the CLIP's own library does. A caption or a picture that comes again (the
/// same path behind itself) is embedded once. `observer` hears how many pairs are done.
///
/// # Errors
/// [`EvalError::Picture`] names the file; [`EvalError::Clip`] when the CLIP has no tokenizer or gives
/// something not finite; otherwise as [`clip_score`].
pub fn score_pairs(
    clip: &Clip,
    pairs: &[(PathBuf, String)],
    observer: &mut dyn FnMut(usize),
) -> Result<PairScores, EvalError> {
    let captions: Vec<&str> = pairs.iter().map(|(_, caption)| caption.as_str()).collect();
    let mut distinct: BTreeMap<&str, usize> = captions.iter().map(|&text| (text, 0)).collect();
    for (position, index) in distinct.values_mut().enumerate() {
        *index = position;
    }
    let (texts, too_long) = clip.caption_embeds(&distinct.keys().collect::<Vec<_>>())?;
    let truncated = captions.iter().filter(|text| too_long[distinct[*text]]).count();

    let mut scores = Vec::with_capacity(pairs.len());
    for batch in pairs.chunks(EMBEDDING_BATCH) {
        let mut paths: Vec<&PathBuf> = batch.iter().map(|(path, _)| path).collect();
        paths.dedup();
        let prepared: Vec<Vec<f32>> =
            paths.par_iter().map(|path| prepared(clip, path)).collect::<Result<_, _>>()?;
        let prepared: Vec<&[f32]> = prepared.iter().map(Vec::as_slice).collect();
        let images = clip.image_embeds(&prepared)?;
        let mut index = 0;
        for (path, caption) in batch {
            index += usize::from(path != paths[index]);
            let score = pair_score(scores.len(), &images[index], &texts[distinct[&**caption]])?;
            scores.push(score);
        }
        observer(scores.len());
    }
    Ok(PairScores { score: ClipScore::of(&scores)?, pairs: scores, truncated })
}

fn prepared(clip: &Clip, path: &Path) -> Result<Vec<f32>, EvalError> {
    let picture = read_picture(path)
        .map_err(|source| EvalError::Picture { path: path.to_owned(), source })?;
    Ok(prepare_for_clip(&clip.preprocessor, &picture))
}

/// `100 max(cos(image_i, text_i), 0)`, averaged over the pairs.
///
/// The embeddings may have any length but zero.
///
/// # Errors
/// [`EvalError::Pairs`] when there are not equally many, [`EvalError::TooFew`] without any,
/// [`EvalError::FeatureLength`], [`EvalError::NoDirection`].
pub fn clip_score(images: &[Vec<f32>], texts: &[Vec<f32>]) -> Result<ClipScore, EvalError> {
    ClipScore::of(&clip_scores(images, texts)?)
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
    pairs.map(|(index, (image, text))| pair_score(index, image, text)).collect()
}

/// The score of the pair number `index`.
fn pair_score(index: usize, image: &[f32], text: &[f32]) -> Result<f64, EvalError> {
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
