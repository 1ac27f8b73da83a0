//! A whole CLIP folder: both towers, the preparation of pictures, the tokenizer.

use crate::{CaptionTokenizer, ClipError, ClipModel, ClipPreprocessor};
use burn::tensor::{Device, Tensor, TensorData};
use std::path::Path;

/// Pictures and captions are embedded in batches of exactly this many (the last one filled up with
/// copies of its first entry), so that an embedding does not depend on how many are asked for.
pub const EMBEDDING_BATCH: usize = 64;

/// Everything between a picture or a caption and its embedding.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The two towers.
    pub model: ClipModel,
    /// The pictures' mean, deviation and size.
    pub preprocessor: ClipPreprocessor,
    /// The captions' tokenizer, where the folder has one.
    pub tokenizer: Option<CaptionTokenizer>,
}

impl Clip {
    /// Reads a folder with `config.json`, weights, `preprocessor_config.json` (without it: OpenAI's
    /// mean and deviation) and `tokenizer.json` (without it captions are refused).
    ///
    /// # Errors
    /// [`ClipError`] names the file or tensor that is wrong.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ClipError> {
        let model = ClipModel::load(folder, device)?;
        let preprocessor = if folder.join("preprocessor_config.json").exists() {
            ClipPreprocessor::load(folder)?
        } else {
            ClipPreprocessor::openai(model.config().vision_config.image_size)
        };
        let path = folder.join("tokenizer.json");
        let context_length = model.config().text_config.max_position_embeddings;
        let tokenizer =
            path.exists().then(|| CaptionTokenizer::load(&path, context_length)).transpose()?;
        Ok(Self { model, preprocessor, tokenizer })
    }

    /// Writes the folder (made if need be) so that transformers' `CLIPModel.from_pretrained` loads
    /// it. The weights come last.
    ///
    /// # Errors
    /// [`ClipError::Io`], [`ClipError::State`].
    pub fn save(&self, folder: &Path) -> Result<(), ClipError> {
        std::fs::create_dir_all(folder).map_err(|source| ClipError::io(folder, source))?;
        self.preprocessor.save(folder)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join("tokenizer.json"))?;
        }
        self.model.save(folder)
    }

    /// Side of the pictures the image tower takes.
    pub fn image_size(&self) -> usize {
        self.model.config().vision_config.image_size
    }

    /// CHW pictures in [0, 1] of the tower's size as pixels `[B, 3, size, size]`.
    ///
    /// # Errors
    /// [`ClipError::ImageShape`].
    pub fn pixels(&self, images_unit: &[&[f32]]) -> Result<Tensor<4>, ClipError> {
        let vision = &self.model.config().vision_config;
        let (channels, size) = (vision.num_channels, vision.image_size);
        let expected = channels * size * size;
        let mut values = Vec::with_capacity(images_unit.len() * expected);
        for (index, image) in images_unit.iter().enumerate() {
            if image.len() != expected || channels != 3 {
                let found = image.len();
                return Err(ClipError::ImageShape { index, found, expected, channels, size });
            }
            values.extend(self.preprocessor.normalise(image));
        }
        let shape = [images_unit.len(), channels, size, size];
        Ok(Tensor::from_data(TensorData::new(values, shape), &self.device()))
    }

    /// Pictures (CHW in [0, 1], of the tower's size) in the shared space, not normalised.
    ///
    /// # Errors
    /// [`ClipError::ImageShape`], [`ClipError::NonFiniteEmbedding`].
    pub fn image_embeds(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, ClipError> {
        in_batches("picture", images_unit, |batch| self.model.image_embeds(self.pixels(batch)?))
    }

    /// The image tower's output before the projection into the shared space.
    ///
    /// # Errors
    /// [`ClipError::ImageShape`], [`ClipError::NonFiniteEmbedding`].
    pub fn image_pooled(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, ClipError> {
        in_batches("picture", images_unit, |batch| self.model.image_pooled(self.pixels(batch)?))
    }

    /// Captions in the shared space, not normalised, and how many captions were cut.
    ///
    /// # Errors
    /// [`ClipError::NoTokenizer`], [`ClipError::Tokenizer`], [`ClipError::TokenOutOfRange`],
    /// [`ClipError::NonFiniteEmbedding`].
    pub fn text_embeds<S: AsRef<str>>(
        &self,
        captions: &[S],
    ) -> Result<(Vec<Vec<f32>>, usize), ClipError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(ClipError::NoTokenizer)?;
        let encoded = tokenizer.encode(captions)?;
        let rows = in_batches("caption", &encoded.ids, |batch| self.model.text_embeds(batch))?;
        Ok((rows, encoded.truncated))
    }

    fn device(&self) -> Device {
        self.model.logit_scale.val().device()
    }
}

/// Rows of `embed`, computed in equal batches.
fn in_batches<T: Clone>(
    what: &'static str,
    inputs: &[T],
    embed: impl Fn(&[T]) -> Result<Tensor<2>, ClipError>,
) -> Result<Vec<Vec<f32>>, ClipError> {
    let mut rows = Vec::with_capacity(inputs.len());
    for (number, chunk) in inputs.chunks(EMBEDDING_BATCH).enumerate() {
        let mut batch = chunk.to_vec();
        batch.resize(EMBEDDING_BATCH, chunk[0].clone());
        // The padding repeats the first entry, so an error's index is right as it is, plus the start.
        let embeds = embed(&batch).map_err(|error| shifted(error, number * EMBEDDING_BATCH))?;
        let [_, width] = embeds.dims();
        let values = embeds.into_data().try_into_vec::<f32>().expect("embeddings are f32");
        rows.extend(values.chunks(width).take(chunk.len()).map(<[f32]>::to_vec));
    }
    match rows.iter().position(|row| row.iter().any(|value| !value.is_finite())) {
        Some(index) => Err(ClipError::NonFiniteEmbedding { what, index }),
        None => Ok(rows),
    }
}

/// The same error counted from the start of the list instead of the start of the batch.
fn shifted(error: ClipError, start: usize) -> ClipError {
    match error {
        ClipError::ImageShape { index, found, expected, channels, size } => {
            ClipError::ImageShape { index: index + start, found, expected, channels, size }
        }
        ClipError::TokenOutOfRange { row, position, id, vocab_size } => {
            ClipError::TokenOutOfRange { row: row + start, position, id, vocab_size }
        }
        other => other,
    }
}
