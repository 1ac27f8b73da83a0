//! A whole CLIP: both towers, the preparation of pictures, the tokenizer.

use crate::config::is_clip_config;
use crate::{CaptionTokenizer, ClipError, ClipModel, ClipPreprocessor, open_clip};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use std::path::Path;

/// Pictures and captions are embedded this many at a time. Not on the CPU, where an embedding depends on
/// nothing beside it, the last batch is filled up with copies of its first entry, so that an embedding
/// does not depend on how many are asked for.
pub const EMBEDDING_BATCH: usize = 64;

/// Entries of a batch that go through the layers together on the CPU.
const EMBEDDING_PART: usize = 16;

/// Everything between a picture or a caption and its embedding.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The two towers.
    pub model: ClipModel,
    /// The pictures' mean, deviation and size.
    pub preprocessor: ClipPreprocessor,
    /// The captions' tokenizer, where there is one.
    pub tokenizer: Option<CaptionTokenizer>,
}

/// The weights of a Hugging Face folder, for one that holds open_clip's, too.
const HUGGING_FACE_WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

impl Clip {
    /// Reads any CLIP that is known here:
    ///
    /// - a Hugging Face folder (`config.json` of a CLIP and weights), as [`Clip::load`];
    /// - an open_clip folder (`open_clip_config.json` and weights). Of a folder that is both, Hugging
    ///   Face's part is read;
    /// - a file of weights in open_clip's layout (or a folder with nothing but one), with the name of its
    ///   `architecture`, one of [`crate::open_clip_architectures`]: tensors do not tell the activation.
    ///   Only OpenAI's own state dicts do without, which are known by the numbers beside the weights.
    ///   Pictures are then prepared by open_clip's defaults (shorter side, bicubic, OpenAI's mean).
    ///
    /// open_clip's weights come with the vocabulary that CLIP was published with.
    ///
    /// # Errors
    /// [`ClipError`] names the file, setting or tensor that is wrong or not supported;
    /// [`ClipError::NoArchitecture`] lists the names to choose from, and those that fit;
    /// [`ClipError::ArchitectureGiven`] for a name beside a config.
    pub fn open(
        source: &Path,
        architecture: Option<&str>,
        device: &Device,
    ) -> Result<Self, ClipError> {
        let config = source.join("config.json");
        let has = |name: &str| source.join(name).is_file();
        let is_open_clip = has(open_clip::CONFIG_FILE);
        // A config of another kind goes the same way where there is nothing else, for its error.
        let is_hugging_face = config.is_file()
            && (!is_open_clip
                || is_clip_config(&config) && HUGGING_FACE_WEIGHTS.into_iter().any(has));
        if (is_hugging_face || is_open_clip) && architecture.is_some() {
            return Err(ClipError::ArchitectureGiven { path: source.to_owned() });
        }
        if is_hugging_face {
            Self::load(source, device)
        } else if is_open_clip {
            open_clip::load_folder(source, device)
        } else {
            open_clip::load_file(source, architecture, device)
        }
    }

    /// Reads a Hugging Face folder with `config.json`, weights, `preprocessor_config.json` or
    /// `processor_config.json` (without them: OpenAI's mean and deviation) and `tokenizer.json` or
    /// `vocab.json` and `merges.txt` (without them captions are refused).
    ///
    /// # Errors
    /// [`ClipError`] names the file or tensor that is wrong.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, ClipError> {
        let model = ClipModel::load(folder, device)?;
        let size = model.config().vision_config.image_size;
        let preprocessor =
            ClipPreprocessor::load(folder)?.unwrap_or_else(|| ClipPreprocessor::openai(size));
        if preprocessor.size != size {
            let expected = format!("the image tower takes {size}");
            return Err(ClipError::config("crop_size", preprocessor.size, &expected));
        }
        let context_length = model.config().text_config.max_position_embeddings;
        let tokenizer = CaptionTokenizer::load_folder(folder, context_length)?;
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
        self.in_batches("picture", images_unit, |batch, _| {
            self.model.image_embeds(self.pixels(batch)?)
        })
    }

    /// The image tower's output before the projection into the shared space.
    ///
    /// # Errors
    /// [`ClipError::ImageShape`], [`ClipError::NonFiniteEmbedding`].
    pub fn image_pooled(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, ClipError> {
        self.in_batches("picture", images_unit, |batch, _| {
            self.model.image_pooled(self.pixels(batch)?)
        })
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
        let (rows, truncated) = self.caption_embeds(captions)?;
        Ok((rows, truncated.into_iter().filter(|&truncated| truncated).count()))
    }

    /// As [`Clip::text_embeds`], but which captions were cut.
    ///
    /// # Errors
    /// As [`Clip::text_embeds`].
    pub fn caption_embeds<S: AsRef<str>>(
        &self,
        captions: &[S],
    ) -> Result<(Vec<Vec<f32>>, Vec<bool>), ClipError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(ClipError::NoTokenizer)?;
        let encoded = tokenizer.encode(captions)?;
        // Captions of one length are embedded together: on the CPU rows end with their longest text.
        let mut order: Vec<usize> = (0..encoded.ids.len()).collect();
        order.sort_by_key(|&i| self.model.text_model.text_len(&encoded.ids[i..=i]));
        let sorted: Vec<&[u32]> = order.iter().map(|&i| encoded.ids[i].as_slice()).collect();
        let sorted = self.in_batches("caption", &sorted, |batch, whole| {
            let len = match whole {
                true => batch[0].len(),
                false => self.model.text_model.text_len(batch),
            };
            let ids: Vec<Vec<u32>> = batch.iter().map(|row| row[..len].to_vec()).collect();
            self.model.text_embeds(&ids)
        });
        let sorted = sorted.map_err(|error| in_order(error, &order))?;
        let mut rows = vec![Vec::new(); sorted.len()];
        for (index, row) in order.into_iter().zip(sorted) {
            rows[index] = row;
        }
        Ok((rows, encoded.truncated))
    }

    fn device(&self) -> Device {
        self.model.logit_scale.val().device()
    }

    /// Rows of `embed`. Its second argument says whether batches must be of equal shape.
    ///
    /// On the CPU a row is the same alone and in any company, and parts of a batch run side by side, as
    /// its layers have stretches that use one core. Elsewhere batches are equal.
    fn in_batches<T: Copy + Sync>(
        &self,
        what: &'static str,
        inputs: &[T],
        embed: impl Fn(&[T], bool) -> Result<Tensor<2>, ClipError> + Sync,
    ) -> Result<Vec<Vec<f32>>, ClipError> {
        let on_cpu = deme_kernels::on_cpu(&self.model.logit_scale.val());
        let mut rows = Vec::with_capacity(inputs.len());
        for (number, batch) in inputs.chunks(EMBEDDING_BATCH).enumerate() {
            let start = number * EMBEDDING_BATCH;
            if on_cpu {
                let parts: Vec<Vec<Vec<f32>>> = batch
                    .par_chunks(EMBEDDING_PART)
                    .enumerate()
                    .map(|(part, inputs)| {
                        let start = start + part * EMBEDDING_PART;
                        embed(inputs, false).map(into_rows).map_err(|error| shifted(error, start))
                    })
                    .collect::<Result<_, _>>()?;
                rows.extend(parts.into_iter().flatten());
            } else {
                // The padding repeats the first entry, so an error's index is right as it is.
                let mut padded = batch.to_vec();
                padded.resize(EMBEDDING_BATCH, batch[0]);
                let embeds = embed(&padded, true).map_err(|error| shifted(error, start))?;
                rows.extend(into_rows(embeds).into_iter().take(batch.len()));
            }
        }
        match rows.iter().position(|row| row.iter().any(|value| !value.is_finite())) {
            Some(index) => Err(ClipError::NonFiniteEmbedding { what, index }),
            None => Ok(rows),
        }
    }
}

fn into_rows(embeds: Tensor<2>) -> Vec<Vec<f32>> {
    let [_, width] = embeds.dims();
    let values = embeds.into_data().try_into_vec::<f32>().expect("embeddings are f32");
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// The same error with the position before the list was put into `order`.
fn in_order(error: ClipError, order: &[usize]) -> ClipError {
    match error {
        ClipError::TokenOutOfRange { row, position, id, vocab_size } => {
            ClipError::TokenOutOfRange { row: order[row], position, id, vocab_size }
        }
        ClipError::NonFiniteEmbedding { what, index } => {
            ClipError::NonFiniteEmbedding { what, index: order[index] }
        }
        other => other,
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
