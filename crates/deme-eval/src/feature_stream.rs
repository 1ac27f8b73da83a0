//! Pictures to features as a stream: while the network looks at one batch, the next ones are read,
//! decoded and brought to its size. Memory holds a few batches, however many pictures there are.
//!
//! Not here: where pictures come from, and what becomes of their features.

use std::sync::mpsc::sync_channel;

use deme_data::Picture;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{EvalError, FeatureExtractor};

/// Batches that wait for the network, at most.
const BATCHES_AHEAD: usize = 1;

/// A picture's feature.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureFeature {
    /// Of [`FeatureExtractor::dim`] entries.
    pub feature: Vec<f32>,
    /// SHA-256 of the picture's width, height and pixels.
    pub pixels_hash: [u8; 32],
}

/// Calls `sink(i, feature)` for the pictures 0..count, in order. `read(i)` is called from several threads.
///
/// A picture that cannot be read reaches the sink as the error it is; an error that the sink returns ends the
/// stream. The features do not depend on `batch_size` or on the number of threads.
///
/// # Errors
/// What the sink returns; as [`FeatureExtractor::features`].
pub fn stream_features<E: From<EvalError> + Send>(
    extractor: &dyn FeatureExtractor,
    count: usize,
    batch_size: usize,
    read: &(dyn Fn(usize) -> Result<Picture, E> + Sync),
    sink: &mut dyn FnMut(usize, Result<PictureFeature, E>) -> Result<(), E>,
) -> Result<(), E> {
    let batch_size = batch_size.max(1);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(BATCHES_AHEAD);
        scope.spawn(move || {
            for start in (0..count).step_by(batch_size) {
                let batch = start..(start + batch_size).min(count);
                let prepared: Vec<Result<Prepared, E>> =
                    batch.into_par_iter().map(|i| Ok(Prepared::of(extractor, &read(i)?))).collect();
                // Nobody listens any more once the sink has refused something.
                if sender.send((start, prepared)).is_err() {
                    return;
                }
            }
        });
        for (start, prepared) in receiver {
            let images: Vec<&[f32]> =
                prepared.iter().flatten().map(|picture| picture.image_unit.as_slice()).collect();
            let mut features = extractor.features(&images)?.into_iter();
            for (offset, picture) in prepared.into_iter().enumerate() {
                let with_feature = picture.map(|Prepared { pixels_hash, .. }| PictureFeature {
                    feature: features.next().expect("there is one feature per picture"),
                    pixels_hash,
                });
                sink(start + offset, with_feature)?;
            }
        }
        Ok(())
    })
}

/// A picture at the extractor's size.
struct Prepared {
    image_unit: Vec<f32>,
    pixels_hash: [u8; 32],
}

impl Prepared {
    fn of(extractor: &dyn FeatureExtractor, picture: &Picture) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(picture.width.to_le_bytes());
        hasher.update(picture.height.to_le_bytes());
        hasher.update(&picture.pixels);
        Self { image_unit: extractor.prepare(picture), pixels_hash: hasher.finalize().into() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The feature is the picture's mean, and the size of the batch it must not depend on is checked elsewhere.
    struct Mean;

    impl FeatureExtractor for Mean {
        fn name(&self) -> &str {
            "mean"
        }

        fn weights_hash(&self) -> &str {
            ""
        }

        fn dim(&self) -> usize {
            1
        }

        fn image_shape(&self) -> [usize; 3] {
            [3, 1, 1]
        }

        fn resizing(&self) -> &str {
            "none"
        }

        fn prepare(&self, picture: &Picture) -> Vec<f32> {
            picture.pixels.iter().map(|&byte| f32::from(byte)).collect()
        }

        fn features(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, EvalError> {
            let mean = |image: &&[f32]| image.iter().sum::<f32>() / image.len() as f32;
            Ok(images_unit.iter().map(|image| vec![mean(image)]).collect())
        }
    }

    #[derive(Debug, PartialEq)]
    enum Failure {
        Eval(String),
        Broken(usize),
        Enough,
    }

    impl From<EvalError> for Failure {
        fn from(error: EvalError) -> Self {
            Self::Eval(error.to_string())
        }
    }

    fn picture(index: usize) -> Result<Picture, Failure> {
        if index % 5 == 3 {
            return Err(Failure::Broken(index));
        }
        Ok(Picture::filled("", 1, 1, [index as u8; 3]))
    }

    #[test]
    fn every_picture_arrives_in_order_and_broken_ones_as_errors() {
        for batch_size in [0, 1, 4, 100] {
            let mut seen = Vec::new();
            let outcome = stream_features(&Mean, 11, batch_size, &picture, &mut |index, found| {
                seen.push((index, found.map(|found| found.feature[0])));
                Ok(())
            });
            outcome.unwrap();
            let expected: Vec<_> = (0..11)
                .map(|i| (i, if i % 5 == 3 { Err(Failure::Broken(i)) } else { Ok(i as f32) }))
                .collect();
            assert_eq!(seen, expected, "{batch_size}");
        }
    }

    #[test]
    fn the_sink_can_end_the_stream() {
        let mut seen = 0;
        let outcome = stream_features(&Mean, 1_000_000, 2, &picture, &mut |_, _| {
            seen += 1;
            if seen == 7 { Err(Failure::Enough) } else { Ok(()) }
        });
        assert_eq!((outcome, seen), (Err(Failure::Enough), 7));
    }

    #[test]
    fn the_hash_is_of_size_and_pixels() {
        let hash = |picture: Picture| {
            let mut found = None;
            let read = |_| Ok::<_, Failure>(picture.clone());
            stream_features(&Mean, 1, 1, &read, &mut |_, feature| {
                found = Some(feature?.pixels_hash);
                Ok(())
            })
            .unwrap();
            found.unwrap()
        };
        let wide = hash(Picture::filled("", 2, 1, [1, 2, 3]));
        assert_eq!(wide, hash(Picture::filled("another name", 2, 1, [1, 2, 3])));
        assert_ne!(wide, hash(Picture::filled("", 1, 2, [1, 2, 3])));
        assert_ne!(wide, hash(Picture::filled("", 2, 1, [1, 2, 4])));
    }
}
