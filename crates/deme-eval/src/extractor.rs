//! Pictures to features.

use crate::{EvalError, FeatureAccumulator, FeatureStats, prepare_for_clip};
use deme_clip::Clip;
use deme_data::Picture;
use serde::{Deserialize, Serialize};

/// Turns pictures into feature vectors, each picture by itself.
pub trait FeatureExtractor: Sync {
    /// Name for protocols and metrics, such as `tiny_clip`.
    fn name(&self) -> &str;

    /// SHA-256, in hex, of everything that decides the features.
    fn weights_hash(&self) -> &str;

    /// Entries of a feature.
    fn dim(&self) -> usize;

    /// Channels, height and width of the pictures it takes.
    fn image_shape(&self) -> [usize; 3];

    /// How [`FeatureExtractor::prepare`] brings pictures to that size, in words for a protocol.
    fn resizing(&self) -> &str;

    /// A picture of any size as [`FeatureExtractor::features`] takes it: CHW in [0, 1].
    fn prepare(&self, picture: &Picture) -> Vec<f32>;

    /// One feature per picture. Pictures are CHW in [0, 1].
    ///
    /// # Errors
    /// [`EvalError`] when a picture has another shape or a feature is not finite.
    fn features(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, EvalError>;

    /// Class logits of the features, for the Inception score; `None` when these features have none.
    fn class_logits(&self, features: &[Vec<f32>]) -> Option<Result<Vec<Vec<f32>>, EvalError>> {
        let _ = features;
        None
    }
}

/// Name of the Fréchet distance on the features of an extractor of this name: `fid` and `clean_fid` on the
/// features these are defined on, `fd_dinov2` on a DINOv2 of any size.
pub fn frechet_metric(extractor: &str) -> String {
    match extractor {
        "inception_pool3" => "fid".to_owned(),
        "clean_inception_pool3" => "clean_fid".to_owned(),
        other if other.starts_with("dinov2") => "fd_dinov2".to_owned(),
        other => format!("fd_{other}"),
    }
}

/// Mean and covariance of the features of pictures (CHW in [0, 1]), taken `batch_size` at a time.
///
/// `observer` hears how many pictures are done.
///
/// # Errors
/// As [`FeatureExtractor::features`] and [`FeatureAccumulator::finish`].
pub fn feature_stats<I: AsRef<[f32]>>(
    extractor: &dyn FeatureExtractor,
    images_unit: impl IntoIterator<Item = I>,
    batch_size: usize,
    observer: &mut dyn FnMut(u64),
) -> Result<FeatureStats, EvalError> {
    let mut accumulator = FeatureAccumulator::new(extractor.dim());
    let mut images = images_unit.into_iter();
    loop {
        let batch: Vec<I> = images.by_ref().take(batch_size.max(1)).collect();
        if batch.is_empty() {
            return accumulator.finish();
        }
        let batch: Vec<&[f32]> = batch.iter().map(AsRef::as_ref).collect();
        for feature in extractor.features(&batch)? {
            accumulator.push(&feature)?;
        }
        observer(accumulator.count());
    }
}

/// Which of CLIP's image vectors is the feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFeatures {
    /// The image tower's output before the projection.
    Pooled,
    /// The picture in the shared space, not normalised.
    #[default]
    Projected,
}

/// A CLIP's image tower as extractor. Its Fréchet distance is `fd_<name>`, never `fid`.
#[derive(Debug, Clone)]
pub struct ClipExtractor {
    clip: Clip,
    name: String,
    hash: String,
    layer: ImageFeatures,
    resizing: String,
}

impl ClipExtractor {
    /// The run's own small CLIP: `tiny_clip`, features before the projection.
    pub fn tiny(clip: Clip) -> Self {
        Self::new("tiny_clip", clip, ImageFeatures::Pooled)
    }

    /// Any CLIP under a name of its own.
    pub fn new(name: impl Into<String>, clip: Clip, layer: ImageFeatures) -> Self {
        let hash = clip.model.weights_hash();
        let resizing = clip.preprocessor.description();
        Self { clip, name: name.into(), hash, layer, resizing }
    }

    /// The CLIP itself, for its score.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }
}

impl FeatureExtractor for ClipExtractor {
    fn name(&self) -> &str {
        &self.name
    }

    fn weights_hash(&self) -> &str {
        &self.hash
    }

    fn dim(&self) -> usize {
        let config = self.clip.model.config();
        match self.layer {
            ImageFeatures::Pooled => config.vision_config.hidden_size,
            ImageFeatures::Projected => config.projection_dim,
        }
    }

    fn image_shape(&self) -> [usize; 3] {
        [3, self.clip.image_size(), self.clip.image_size()]
    }

    fn resizing(&self) -> &str {
        &self.resizing
    }

    fn prepare(&self, picture: &Picture) -> Vec<f32> {
        prepare_for_clip(&self.clip.preprocessor, picture)
    }

    fn features(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        Ok(match self.layer {
            ImageFeatures::Pooled => self.clip.image_pooled(images_unit)?,
            ImageFeatures::Projected => self.clip.image_embeds(images_unit)?,
        })
    }
}

/// A picture as CHW values in [0, 1]: torchvision's `ToTensor`.
pub(crate) fn image_unit(picture: &Picture) -> Vec<f32> {
    let channel = |c: usize| picture.pixels.iter().skip(c).step_by(3);
    (0..3).flat_map(|c| channel(c).map(|&byte| f32::from(byte) / 255.0)).collect()
}
