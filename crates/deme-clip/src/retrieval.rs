//! How often the right caption (picture) is the nearest one to a picture (caption).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Top-1 retrieval among pictures that training never saw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalAccuracy {
    /// Pictures asked about.
    pub pictures: usize,
    /// Different captions among them: the candidates.
    pub captions: usize,
    /// Share of pictures whose nearest caption is their own.
    pub image_to_text: f64,
    /// Share of captions whose nearest picture carries that caption.
    pub text_to_image: f64,
}

impl RetrievalAccuracy {
    /// From the embeddings of pictures and of their captions, row by row, in any length.
    ///
    /// Pictures with the same caption share one candidate. Ties go to the earlier row.
    pub fn of<S: AsRef<str>>(images: &[Vec<f32>], texts: &[Vec<f32>], captions: &[S]) -> Self {
        let mut labels = BTreeMap::new();
        let mut candidates = Vec::new();
        let label_of: Vec<usize> = captions
            .iter()
            .zip(texts)
            .map(|(caption, text)| {
                *labels.entry(caption.as_ref()).or_insert_with(|| {
                    candidates.push(text);
                    candidates.len() - 1
                })
            })
            .collect();
        let right = images.iter().zip(&label_of).filter(|(image, label)| {
            nearest(image, candidates.iter().map(|text| text.as_slice())) == Some(**label)
        });
        let image_to_text = share(right.count(), images.len());
        let right = candidates.iter().enumerate().filter(|(label, text)| {
            let found = nearest(text, images.iter().map(Vec::as_slice));
            found.is_some_and(|image| label_of[image] == *label)
        });
        let text_to_image = share(right.count(), candidates.len());
        let (pictures, captions) = (images.len(), candidates.len());
        Self { pictures, captions, image_to_text, text_to_image }
    }
}

impl fmt::Display for RetrievalAccuracy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0}% of {} pictures find their caption, {:.0}% of {} captions their picture",
            100.0 * self.image_to_text,
            self.pictures,
            100.0 * self.text_to_image,
            self.captions
        )
    }
}

/// Position of the candidate with the largest cosine.
fn nearest<'a>(query: &[f32], candidates: impl Iterator<Item = &'a [f32]>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, candidate) in candidates.enumerate() {
        let cosine = dot(query, candidate) / dot(candidate, candidate).sqrt();
        if best.is_none_or(|(_, most)| cosine > most) {
            best = Some((index, cosine));
        }
    }
    best.map(|(index, _)| index)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_the_same_caption_share_a_candidate() {
        let images = [vec![1.0, 0.0], vec![2.0, 0.1], vec![0.0, 3.0], vec![1.0, 0.0]];
        let texts = [vec![5.0, 0.0], vec![5.0, 0.0], vec![0.0, 0.1], vec![0.0, 0.1]];
        let accuracy = RetrievalAccuracy::of(&images, &texts, &["a", "a", "b", "b"]);
        assert_eq!((accuracy.pictures, accuracy.captions), (4, 2));
        assert_eq!(accuracy.image_to_text, 0.75);
        assert_eq!(accuracy.text_to_image, 1.0);
        let text = "75% of 4 pictures find their caption, 100% of 2 captions their picture";
        assert_eq!(accuracy.to_string(), text);
    }

    #[test]
    fn the_length_of_a_vector_does_not_matter() {
        let images = [vec![1.0, 0.2], vec![0.2, 1.0]];
        let texts = [vec![0.1, 0.0], vec![0.0, 100.0]];
        let accuracy = RetrievalAccuracy::of(&images, &texts, &["a", "b"]);
        assert_eq!((accuracy.image_to_text, accuracy.text_to_image), (1.0, 1.0));
    }
}
