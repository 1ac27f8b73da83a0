//! What finetuning asks of its pictures. Reading them is not done here.

use deme_diffusion::{UNet2DModel, UNetConfigError};

/// Prepared pictures by index; read from another thread while a step computes.
pub trait TrainingImages: Sync {
    /// How many pictures there are.
    fn len(&self) -> usize;

    /// True without pictures.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[C, H, W]` of every picture.
    fn image_shape(&self) -> [usize; 3];

    /// Picture `index` (below [`len`](Self::len)) as `C * H * W` values in `[-1, 1]`.
    fn image_signed(&self, index: usize) -> Vec<f32>;

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
    ImageShape(#[from] UNetConfigError),
}

/// Checks that there are pictures and that a model takes them.
pub(crate) fn check_images(
    data: &dyn TrainingImages,
    model: &UNet2DModel,
) -> Result<(), DataError> {
    if data.is_empty() {
        return Err(DataError::Empty);
    }
    Ok(model.config().check_image_shape(data.image_shape())?)
}
