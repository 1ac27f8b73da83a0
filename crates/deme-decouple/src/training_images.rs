//! What finetuning asks of its pictures (or latents) and of what they are conditioned on. Reading and encoding
//! them is not done here.

use burn::tensor::Device;
use deme_diffusion::{ModelConfigError, NoisePredictor};

/// Prepared pictures by index, each under a condition `C` (`()` for models that see no text); read from another
/// thread while a step computes.
pub trait TrainingImages<C = ()>: Sync {
    /// How many pictures there are.
    fn len(&self) -> usize;

    /// True without pictures.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[C, H, W]` of every picture.
    fn image_shape(&self) -> [usize; 3];

    /// Picture `index` (below [`len`](Self::len)) as `C * H * W` values: pixels in `[-1, 1]`, or scaled latents.
    fn image_signed(&self, index: usize) -> Vec<f32>;

    /// What a batch of pictures is predicted under. `None` stands for a picture whose caption is left out.
    fn condition(&self, pictures: &[Option<usize>], device: &Device) -> C;

    /// Whether a picture read from right to left is the mirrored picture; not so for latents.
    fn can_be_mirrored(&self) -> bool {
        true
    }

    /// Tells these pictures from others, so that an interrupted run does not go on with other data:
    /// a hash of their content, or of what they were made from.
    fn fingerprint(&self) -> String;
}

/// Why pictures cannot train (or measure) a model.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No pictures.
    #[error("there are no pictures; check the path of the data and how much is held out")]
    Empty,
    /// Pictures of a shape the model does not take.
    #[error("the pictures cannot be prepared like this for the model: {0}")]
    ImageShape(#[from] ModelConfigError),
    /// Latents cannot be mirrored.
    #[error(
        "`horizontal_flip` mirrors pixels, but these pictures are latents; set `horizontal_flip` = false, or put \
         mirrored pictures into the data"
    )]
    Mirrored,
}

/// Checks that there are pictures and that a model takes them.
pub(crate) fn check_images<N: NoisePredictor>(
    data: &dyn TrainingImages<N::Condition>,
    model: &N,
) -> Result<(), DataError> {
    if data.is_empty() {
        return Err(DataError::Empty);
    }
    Ok(model.check_image_shape(data.image_shape())?)
}
