//! A data set: pictures in a fixed order, each with a name and perhaps a caption.
//!
//! Opening checks what can be checked before work starts and knows names and captions; loading
//! decodes and prepares every picture. What lies behind it (a folder, Parquet files, tars, CIFAR-10,
//! drawn shapes) nobody else needs to know.

use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cifar10::{Cifar10, Cifar10Split};
use crate::error::{BrokenPicture, DataError, PictureError};
use crate::image_preparation::Preparation;
use crate::imagefolder::Imagefolder;
use crate::parquet_pictures::ParquetPictures;
use crate::picture::{Picture, write_signed};
use crate::picture_decoding::decode_picture;
use crate::shapes::{DRAWN_RESOLUTION, Shapes};
use crate::webdataset::Webdataset;

/// Which data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DataConfig {
    /// A folder of PNG, JPEG, WebP and BMP files, with its subfolders, ordered by relative path.
    /// Captions come from `metadata.jsonl` in it, one line
    /// `{"file_name": "a.png", "text": "a red circle"}` per picture; without that file there are none.
    Imagefolder {
        /// The folder.
        path: PathBuf,
        /// The field of `metadata.jsonl` that holds the caption.
        #[serde(default = "default_caption_field")]
        caption_field: String,
    },
    /// CIFAR-10 with the class names as captions: the folder of its binary version
    /// (`data_batch_1.bin`, ...) or of its Parquet files.
    Cifar10 {
        /// The folder.
        path: PathBuf,
        /// Which of its two parts.
        #[serde(default)]
        split: Cifar10Split,
    },
    /// A Parquet file with embedded pictures, or a folder of such files ordered by name.
    Parquet {
        /// The file or folder.
        path: PathBuf,
        /// The column of the pictures' files: bytes, or a struct with a field `bytes`.
        #[serde(default = "default_image_column")]
        image_column: String,
        /// The column of the captions, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caption_column: Option<String>,
    },
    /// A tar of webdataset's form, or a folder of such tars ordered by name: `a.jpg` (or `.png`, `.webp`,
    /// `.bmp`) and its caption in `a.txt`, or in a field of `a.json`. Within a tar the pictures are ordered
    /// by key (`a`). Nothing is unpacked.
    Webdataset {
        /// The tar or folder.
        path: PathBuf,
        /// The field of the `.json` files that holds the caption; absent, captions come from `.txt` files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caption_field: Option<String>,
    },
    /// Coloured shapes on plain backgrounds with a caption each, drawn, not read.
    Shapes {
        /// How many pictures.
        count: usize,
        /// Picture i depends on this seed and i alone.
        #[serde(default)]
        seed: u64,
    },
}

fn default_caption_field() -> String {
    "text".to_owned()
}

fn default_image_column() -> String {
    "image".to_owned()
}

/// One entry of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The path relative to the folder, or file and row, or tar and entry, or `shapes/7`.
    pub name: String,
    /// What the picture shows, where the data set says so.
    pub caption: Option<String>,
}

/// An opened data set.
#[derive(Debug)]
pub struct DataSet {
    source: Source,
    examples: Vec<Example>,
}

#[derive(Debug)]
enum Source {
    Imagefolder(Imagefolder),
    Cifar10(Cifar10),
    Parquet(ParquetPictures),
    Webdataset(Webdataset),
    Shapes(Shapes),
}

/// A picture as its source stores it.
pub(crate) enum StoredPicture {
    /// The bytes of a picture file.
    Encoded(Vec<u8>),
    /// Pixels.
    Decoded(Picture),
    /// A file that could not be read.
    Unreadable(std::io::Error),
}

/// Pictures are read, decoded and prepared this many at a time.
const CHUNK: usize = 256;

/// How many broken pictures an error lists.
const LISTED_BROKEN_PICTURES: usize = 8;

impl DataSet {
    /// Opens a data set: finds its pictures, reads and checks its captions. No picture is decoded.
    ///
    /// # Errors
    /// [`DataError`]: whatever can be known to be wrong without decoding.
    pub fn open(config: &DataConfig) -> Result<Self, DataError> {
        let (source, examples) = match config {
            DataConfig::Imagefolder { path, caption_field } => {
                let (folder, examples) = Imagefolder::open(path, caption_field)?;
                (Source::Imagefolder(folder), examples)
            }
            DataConfig::Cifar10 { path, split } => {
                let (cifar10, examples) = Cifar10::open(path, *split)?;
                (Source::Cifar10(cifar10), examples)
            }
            DataConfig::Parquet { path, image_column, caption_column } => {
                let (parquet, examples) =
                    ParquetPictures::open(path, image_column, caption_column.as_deref())?;
                (Source::Parquet(parquet), examples)
            }
            DataConfig::Webdataset { path, caption_field } => {
                let (tars, examples) = Webdataset::open(path, caption_field.as_deref())?;
                (Source::Webdataset(tars), examples)
            }
            DataConfig::Shapes { count, seed } => {
                let (shapes, examples) = Shapes::open(*count, *seed)?;
                (Source::Shapes(shapes), examples)
            }
        };
        Ok(Self { source, examples })
    }

    /// How many pictures there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// The name and caption of picture `index`.
    ///
    /// # Panics
    /// When `index` is not less than [`DataSet::len`].
    pub fn example(&self, index: usize) -> &Example {
        &self.examples[index]
    }

    /// All names and captions, in order.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// True when every picture has a caption.
    pub fn has_captions(&self) -> bool {
        self.examples.iter().all(|example| example.caption.is_some())
    }

    /// SHA-256, in hexadecimal, over the stored bytes and the captions of all pictures in order:
    /// equal hashes mean equal data, whatever the folder is called. Drawn shapes are hashed by their
    /// captions and by some of the pictures, so that another way of drawing is another hash.
    ///
    /// # Errors
    /// Those of reading the pictures; nothing is decoded.
    pub fn content_hash(&self) -> Result<String, DataError> {
        let mut hasher = Sha256::new();
        hasher.update(b"deme-data 1\n");
        if let Source::Shapes(shapes) = &self.source {
            hasher.update(shapes.drawing_hash());
            for example in &self.examples {
                update_with_caption(&mut hasher, example);
            }
            return Ok(hexadecimal(&hasher.finalize()));
        }
        let mut broken = BrokenPictures::new(self.len());
        for chunk in self.chunks() {
            let stored = self.read(chunk.clone(), DRAWN_RESOLUTION)?;
            let hashes: Vec<Result<_, PictureError>> = stored
                .into_par_iter()
                .map(|picture| match picture {
                    StoredPicture::Encoded(bytes) => Ok(Sha256::digest(bytes)),
                    StoredPicture::Decoded(picture) => {
                        let mut hasher = Sha256::new();
                        hasher.update(picture.width.to_le_bytes());
                        hasher.update(picture.height.to_le_bytes());
                        hasher.update(picture.pixels);
                        Ok(hasher.finalize())
                    }
                    StoredPicture::Unreadable(error) => Err(error.into()),
                })
                .collect();
            for (example, hash) in self.examples[chunk].iter().zip(hashes) {
                match hash {
                    Ok(hash) => hasher.update(hash),
                    Err(error) => broken.push(example, error),
                }
                update_with_caption(&mut hasher, example);
            }
        }
        broken.into_result()?;
        Ok(hexadecimal(&hasher.finalize()))
    }

    /// Picture `index` as it is stored, not resized; shapes are drawn at 64x64.
    ///
    /// # Panics
    /// When `index` is not less than [`DataSet::len`].
    ///
    /// # Errors
    /// Those of reading, and [`DataError::BrokenPictures`].
    pub fn picture(&self, index: usize) -> Result<Picture, DataError> {
        let example = &self.examples[index];
        let mut broken = BrokenPictures::new(1);
        for stored in self.read(index..index + 1, DRAWN_RESOLUTION)? {
            match stored.decode(&example.name) {
                Ok(picture) => return Ok(picture),
                Err(error) => broken.push(example, error),
            }
        }
        broken.into_result()?;
        Err(DataError::Empty { what: example.name.clone() })
    }

    /// Some pictures, prepared, in parallel.
    ///
    /// # Panics
    /// When the range ends behind [`DataSet::len`].
    ///
    /// # Errors
    /// As [`DataSet::load`].
    pub fn prepared(
        &self,
        indices: Range<usize>,
        preparation: &Preparation,
    ) -> Result<Vec<Picture>, DataError> {
        preparation.validate()?;
        let mut broken = BrokenPictures::new(indices.len());
        let pictures = self.prepared_among(indices, preparation, &mut broken)?;
        broken.into_result()?;
        Ok(pictures)
    }

    /// Those of some pictures that are not broken, prepared.
    fn prepared_among(
        &self,
        indices: Range<usize>,
        preparation: &Preparation,
        broken: &mut BrokenPictures,
    ) -> Result<Vec<Picture>, DataError> {
        let stored = self.read(indices.clone(), preparation.resolution)?;
        let examples = &self.examples[indices];
        let prepared: Vec<Result<Picture, PictureError>> = stored
            .into_par_iter()
            .zip(examples)
            .map(|(stored, example)| Ok(preparation.prepare(&stored.decode(&example.name)?)))
            .collect();
        let mut pictures = Vec::with_capacity(prepared.len());
        for (example, picture) in examples.iter().zip(prepared) {
            match picture {
                Ok(picture) => pictures.push(picture),
                Err(error) => broken.push(example, error),
            }
        }
        Ok(pictures)
    }

    /// Decodes and prepares all pictures, in parallel; the result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// [`DataError::BadResolution`]; those of reading; [`DataError::BrokenPictures`] after all
    /// pictures were tried.
    pub fn load(&self, preparation: &Preparation) -> Result<PreparedImages, DataError> {
        self.load_observed(preparation, &mut |_| {})
    }

    /// [`DataSet::load`], telling `observer` from time to time how many pictures are done.
    ///
    /// # Errors
    /// As [`DataSet::load`].
    pub fn load_observed(
        &self,
        preparation: &Preparation,
        observer: &mut dyn FnMut(usize),
    ) -> Result<PreparedImages, DataError> {
        preparation.validate()?;
        let picture_bytes = 3 * (preparation.resolution as usize).pow(2);
        let mut images = Vec::with_capacity(picture_bytes * self.len());
        let mut broken = BrokenPictures::new(self.len());
        for chunk in self.chunks() {
            for picture in self.prepared_among(chunk.clone(), preparation, &mut broken)? {
                images.extend_from_slice(&picture.pixels);
            }
            observer(chunk.end);
        }
        broken.into_result()?;
        Ok(PreparedImages {
            resolution: preparation.resolution,
            images,
            captions: self.examples.iter().map(|e| e.caption.clone()).collect(),
            names: self.examples.iter().map(|e| e.name.clone()).collect(),
        })
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let len = self.len();
        (0..len).step_by(CHUNK).map(move |start| start..(start + CHUNK).min(len))
    }

    /// Reads pictures as they are stored; shapes are drawn at `resolution`.
    fn read(
        &self,
        indices: Range<usize>,
        resolution: u32,
    ) -> Result<Vec<StoredPicture>, DataError> {
        match &self.source {
            Source::Imagefolder(folder) => Ok(folder.read(indices)),
            Source::Cifar10(cifar10) => cifar10.read(indices),
            Source::Parquet(parquet) => parquet.read(indices),
            Source::Webdataset(tars) => tars.read(indices),
            Source::Shapes(shapes) => Ok(shapes.read(indices, resolution)),
        }
    }
}

impl StoredPicture {
    fn decode(self, name: &str) -> Result<Picture, PictureError> {
        match self {
            Self::Encoded(bytes) => decode_picture(name, &bytes),
            Self::Decoded(picture) => Ok(picture),
            Self::Unreadable(error) => Err(error.into()),
        }
    }
}

/// Collects what is broken, in order, so that one error can tell all of it.
struct BrokenPictures {
    total: usize,
    count: usize,
    listed: Vec<BrokenPicture>,
}

impl BrokenPictures {
    fn new(total: usize) -> Self {
        Self { total, count: 0, listed: Vec::new() }
    }

    fn push(&mut self, example: &Example, source: PictureError) {
        self.count += 1;
        if self.listed.len() < LISTED_BROKEN_PICTURES {
            self.listed.push(BrokenPicture { name: example.name.clone(), source });
        }
    }

    fn into_result(self) -> Result<(), DataError> {
        if self.count == 0 {
            return Ok(());
        }
        Err(DataError::BrokenPictures { count: self.count, total: self.total, broken: self.listed })
    }
}

fn update_with_caption(hasher: &mut Sha256, example: &Example) {
    match &example.caption {
        // The length keeps two captions from running into each other.
        Some(caption) => {
            hasher.update([1]);
            hasher.update((caption.len() as u64).to_le_bytes());
            hasher.update(caption);
        }
        None => hasher.update([0]),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All pictures of a data set at one size, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedImages {
    /// Width and height of every picture, in pixels.
    pub resolution: u32,
    /// `[N, resolution, resolution, 3]`, 8 bits per channel.
    pub images: Vec<u8>,
    /// One for each picture.
    pub captions: Vec<Option<String>>,
    /// One for each picture.
    pub names: Vec<String>,
}

impl PreparedImages {
    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True without pictures.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The bytes of picture `index`: `[resolution, resolution, 3]`.
    ///
    /// # Panics
    /// When there is no picture `index`.
    pub fn image_bytes(&self, index: usize) -> &[u8] {
        let size = self.image_len();
        &self.images[index * size..(index + 1) * size]
    }

    /// Picture `index` as values in [-1, 1]: `(x / 255 - 0.5) / 0.5`.
    ///
    /// # Shapes  returns [3, resolution, resolution]
    /// # Panics
    /// When there is no picture `index`.
    pub fn image_signed(&self, index: usize) -> Vec<f32> {
        self.batch_signed(&[index])
    }

    /// Several pictures as values in [-1, 1].
    ///
    /// # Shapes  returns [B, 3, resolution, resolution]
    /// # Panics
    /// When one of the pictures does not exist.
    pub fn batch_signed(&self, indices: &[usize]) -> Vec<f32> {
        self.batch_signed_flipped(indices, &vec![false; indices.len()])
    }

    /// Several pictures as values in [-1, 1], mirrored left to right where `flips` says so.
    ///
    /// # Shapes  flips: `[B]`; returns `[B, 3, resolution, resolution]`
    /// # Panics
    /// When one of the pictures does not exist, or `flips` has another length.
    pub fn batch_signed_flipped(&self, indices: &[usize], flips: &[bool]) -> Vec<f32> {
        assert_eq!(indices.len(), flips.len(), "one flip per picture");
        let mut batch = vec![0.0; indices.len() * self.image_len()];
        let targets = batch.chunks_exact_mut(self.image_len());
        for ((&index, &flip), target) in indices.iter().zip(flips).zip(targets) {
            write_signed(self.image_bytes(index), self.resolution as usize, flip, target);
        }
        batch
    }

    /// Picture `index` with its name.
    ///
    /// # Panics
    /// When there is no picture `index`.
    pub fn picture(&self, index: usize) -> Picture {
        Picture {
            name: self.names[index].clone(),
            width: self.resolution,
            height: self.resolution,
            pixels: self.image_bytes(index).to_vec(),
        }
    }

    /// The pictures of `indices`, in that order: one part of a split.
    ///
    /// # Panics
    /// When one of the pictures does not exist.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            resolution: self.resolution,
            images: indices.iter().flat_map(|&index| self.image_bytes(index)).copied().collect(),
            captions: indices.iter().map(|&i| self.captions[i].clone()).collect(),
            names: indices.iter().map(|&i| self.names[i].clone()).collect(),
        }
    }

    fn image_len(&self) -> usize {
        3 * (self.resolution as usize).pow(2)
    }
}
