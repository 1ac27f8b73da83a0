//! Captions and pictures as a text-to-image network sees them, made once: the stage `encodings`.
//!
//! It leaves the hidden states of every different caption and of the empty text, and, where the model has an
//! autoencoder, one latent of every picture, in files of a fixed number of items. A file is complete or not there,
//! so an interrupted stage goes on behind the last one. The stage's key knows the contents of all pictures and
//! captions and of the encoders: another picture, caption or encoder is another stage.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::{Clip, ClipTextModel, EMBEDDING_BATCH};
use deme_data::PreparedImages;
use deme_decouple::TrainingImages;
use deme_diffusion::{AutoencoderKl, PromptTokenizer, TextToImageFolder, standard_normal};
use deme_merge::{Dtype, StateDict, StoredTensor};
use serde::{Deserialize, Serialize};

use super::{Context, Plan};
use crate::diagnostics::Problem;
use crate::progress::{Progress, Voice, say};
use crate::run_dir::{read_json, seed_for, write_json};

/// Items of a file.
const PART: usize = 512;
/// Pictures encoded at once.
const ENCODED_AT_ONCE: usize = 8;
/// The tensor in each file.
const ITEMS: &str = "items";

/// What stands around a text-to-image network, and is not trained.
pub struct Encoders {
    /// Token ids to hidden states.
    pub text_encoder: ClipTextModel,
    /// Captions to token ids.
    pub tokenizer: PromptTokenizer,
    /// Pictures to latents and back; none for a model of pixels.
    pub vae: Option<AutoencoderKl>,
}

impl Encoders {
    /// Those of the given pretrained model, or the text tower of the run's CLIP.
    pub fn load(context: &Context<'_>, plan: &Plan) -> Result<Self, Problem> {
        let device = &context.device;
        if context.recipe.pretrained.from == "scratch" {
            let clip = plan.clip.as_ref().expect("a text encoder from scratch is a trained CLIP");
            let folder = clip.folder().join("clip");
            let text_encoder = ClipTextModel::of_clip(&Clip::load(&folder, device)?.model);
            let context_length = text_encoder.config().max_position_embeddings;
            let tokenizer = PromptTokenizer::load(&folder, context_length)?;
            return Ok(Self { text_encoder, tokenizer, vae: None });
        }
        let folder = TextToImageFolder::open(&plan.pretrained.folder().join("model"))?;
        let text_encoder = folder.text_encoder(device)?;
        let tokenizer = folder.tokenizer(text_encoder.config().max_position_embeddings)?;
        Ok(Self { vae: folder.vae(device)?, tokenizer, text_encoder })
    }
}

/// What is known of the stage's files.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// For each picture, the number of its caption's hidden states; 0 is the empty text.
    captions: Vec<usize>,
    /// `[L, width]` of hidden states.
    text: Vec<usize>,
    /// `[C, h, w]` of latents, where there are any.
    latents: Option<Vec<usize>>,
    /// Different captions that were too long and lost their last words.
    truncated: usize,
}

const INDEX: &str = "encodings.json";

/// Encodes all captions, and all pictures where the model works on latents.
pub fn encode(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let encoders = Encoders::load(context, plan)?;
    let examples = context.data().examples();
    let captions = examples.iter().map(|example| example.caption.as_deref().unwrap_or_default());
    let mut number: BTreeMap<&str, usize> = BTreeMap::from([("", 0)]);
    let mut different = vec![""];
    let captions: Vec<usize> = captions
        .map(|caption| {
            *number.entry(caption).or_insert_with(|| {
                different.push(caption);
                different.len() - 1
            })
        })
        .collect();
    let skipped = context.recipe.pretrained.skipped_layers;
    let encoded = encoders.tokenizer.encode(&different)?;
    let too_long: Vec<&str> = encoded
        .truncated
        .iter()
        .zip(&different)
        .filter_map(|(&cut, &caption)| cut.then_some(caption))
        .collect();
    if let (Some(first), Voice::Normal) = (too_long.first(), context.voice) {
        say(&format!(
            "{} captions are longer than the {} tokens the text encoder reads and lose their last words, \
             such as “{first}”",
            too_long.len(),
            encoders.tokenizer.context_length()
        ));
    }

    let total = different.len() + if encoders.vae.is_some() { examples.len() } else { 0 };
    let mut progress = Progress::start(context.voice, "encoding", total as u64);
    let text = write_parts(&folder.join("text"), different.len(), &mut |items| {
        let mut values = Vec::new();
        let mut shape = Vec::new();
        for from in items.clone().step_by(EMBEDDING_BATCH) {
            let to = (from + EMBEDDING_BATCH).min(items.end);
            let hidden = encoders.text_encoder.hidden_states(&encoded.ids[from..to], skipped)?;
            shape = hidden.dims()[1..].to_vec();
            values.extend(hidden.into_data().try_into_vec::<f32>().expect("states are f32"));
            progress.at(to as u64, "captions");
        }
        Ok((shape, values))
    })?;
    let latents = match &encoders.vae {
        None => None,
        Some(vae) => Some(write_parts(&folder.join("latents"), examples.len(), &mut |items| {
            let mut values = Vec::new();
            let mut shape = Vec::new();
            for from in items.clone().step_by(ENCODED_AT_ONCE) {
                let to = (from + ENCODED_AT_ONCE).min(items.end);
                let latents = latents(context, vae, from..to)?;
                shape = latents.dims()[1..].to_vec();
                values.extend(latents.into_data().try_into_vec::<f32>().expect("latents are f32"));
                progress.at((different.len() + to) as u64, "pictures");
            }
            Ok((shape, values))
        })?),
    };
    progress.finish(&format!("{} captions", different.len() - 1));
    let index = Index { captions, text, latents, truncated: too_long.len() };
    write_json(&folder.join(INDEX), &index)
}

/// One scaled latent of each picture, drawn from the autoencoder's distribution with noise that depends on the
/// run's seed and the picture's number.
fn latents(
    context: &Context<'_>,
    vae: &AutoencoderKl,
    pictures: Range<usize>,
) -> Result<Tensor<4>, Problem> {
    let side = context.recipe.preparation.resolution as usize;
    let prepared = context.data().prepared(pictures.clone(), &context.recipe.preparation)?;
    let pixels: Vec<f32> = prepared.iter().flat_map(deme_data::Picture::to_signed).collect();
    let data = TensorData::new(pixels, [prepared.len(), 3, side, side]);
    let distribution = vae.encode(Tensor::from_data(data, &context.device));
    let shape = distribution.mean.dims();
    let seed = seed_for(context.recipe.seed, "latents");
    let of_one = shape[1..].iter().product();
    let noise: Vec<f32> =
        pictures.flat_map(|picture| standard_normal(seed, picture as u64, of_one)).collect();
    let noise = Tensor::from_data(TensorData::new(noise, shape), &context.device);
    Ok(vae.scaled(distribution.sample(noise)))
}

/// Gives the items of a range: the shape of one, and the values of all.
type Encode<'a> = dyn FnMut(Range<usize>) -> Result<(Vec<usize>, Vec<f32>), Problem> + 'a;

/// Writes `count` items, [`PART`] a file, those that are there already left out; returns the shape of an item.
fn write_parts(folder: &Path, count: usize, items: &mut Encode<'_>) -> Result<Vec<usize>, Problem> {
    std::fs::create_dir_all(folder).map_err(|e| Problem::write(folder, e))?;
    let mut shape_of_one = Vec::new();
    for from in (0..count).step_by(PART) {
        let path = part_path(folder, from);
        if path.is_file() {
            shape_of_one = read_part(&path)?.shape()[1..].to_vec();
            continue;
        }
        let range = from..(from + PART).min(count);
        let (shape, values) = items(range.clone())?;
        let mut state = StateDict::new();
        let whole = [&[range.len()], shape.as_slice()].concat();
        state.insert(ITEMS.into(), StoredTensor::from_f32(whole, values));
        state.save(&path)?;
        shape_of_one = shape;
    }
    Ok(shape_of_one)
}

fn part_path(folder: &Path, from: usize) -> PathBuf {
    folder.join(format!("{:06}.safetensors", from / PART))
}

fn read_part(path: &Path) -> Result<StoredTensor, Problem> {
    let broken =
        |reason: &str| Problem::BrokenArtefact { path: path.to_owned(), reason: reason.to_owned() };
    let mut state = StateDict::load(path)?;
    let items = state.remove(ITEMS).ok_or_else(|| broken("it holds no tensor `items`"))?;
    if items.dtype() != Dtype::F32 || items.shape().len() < 2 {
        return Err(broken("`items` is no list of f32 arrays"));
    }
    Ok(items)
}

/// The items of one kind, mapped from their files.
#[derive(Debug)]
struct Items {
    shape: Vec<usize>,
    parts: Vec<StoredTensor>,
}

impl Items {
    fn open(folder: &Path, shape: Vec<usize>, count: usize) -> Result<Self, Problem> {
        let mut parts = Vec::new();
        for from in (0..count).step_by(PART) {
            let path = part_path(folder, from);
            let part = read_part(&path)?;
            if part.shape() != [&[PART.min(count - from)], shape.as_slice()].concat() {
                let reason = format!("`items` has the shape {:?}", part.shape());
                return Err(Problem::BrokenArtefact { path, reason });
            }
            parts.push(part);
        }
        Ok(Self { shape, parts })
    }

    /// The values of item `index`.
    fn item(&self, index: usize) -> impl Iterator<Item = f32> + '_ {
        let bytes = 4 * self.shape.iter().product::<usize>();
        let of_part = self.parts[index / PART].bytes();
        let item = &of_part[(index % PART) * bytes..][..bytes];
        item.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
    }
}

/// What the stage left.
#[derive(Debug)]
pub struct Encodings {
    captions: Vec<usize>,
    text: Items,
    latents: Option<Items>,
}

impl Encodings {
    /// Opens the finished stage's files; values are read as they are asked for.
    pub fn open(plan: &Plan) -> Result<Self, Problem> {
        let folder = plan.encodings.as_ref().expect("text to image has encodings").folder();
        let index: Index = read_json(&folder.join(INDEX))?;
        let different = index.captions.iter().max().map_or(1, |last| last + 1);
        let pictures = index.captions.len();
        let latents =
            index.latents.map(|shape| Items::open(&folder.join("latents"), shape, pictures));
        Ok(Self {
            text: Items::open(&folder.join("text"), index.text, different)?,
            latents: latents.transpose()?,
            captions: index.captions,
        })
    }

    /// The hidden states of the pictures' captions, or of the empty text; `[B, L, width]`.
    pub fn hidden_states(&self, pictures: &[Option<usize>], device: &Device) -> Tensor<3> {
        let number = |picture: &Option<usize>| picture.map_or(0, |picture| self.captions[picture]);
        let values: Vec<f32> =
            pictures.iter().map(number).flat_map(|number| self.text.item(number)).collect();
        let [length, width] = self.text.shape[..] else { unreachable!("states are [L, width]") };
        Tensor::from_data(TensorData::new(values, [pictures.len(), length, width]), device)
    }

    /// `[C, h, w]` of the latents, where the model works on latents.
    pub fn latent_shape(&self) -> Option<[usize; 3]> {
        let shape = &self.latents.as_ref()?.shape;
        Some(shape.as_slice().try_into().expect("latents are [C, h, w]"))
    }
}

/// One part of the pictures, each under its caption.
pub struct CaptionedPart<'a> {
    encodings: &'a Encodings,
    /// Where the model works on pixels.
    images: Option<&'a PreparedImages>,
    resolution: usize,
    indices: &'a [usize],
    fingerprint: String,
}

impl<'a> CaptionedPart<'a> {
    /// The pictures at `indices`.
    pub fn new(
        context: &'a Context<'_>,
        plan: &Plan,
        encodings: &'a Encodings,
        indices: &'a [usize],
    ) -> Result<Self, Problem> {
        let images = match encodings.latents {
            Some(_) => None,
            None => Some(context.prepared()?),
        };
        let stage = plan.encodings.as_ref().expect("text to image has encodings");
        Ok(Self {
            encodings,
            images,
            resolution: context.recipe.preparation.resolution as usize,
            indices,
            fingerprint: stage.key.to_string(),
        })
    }
}

impl TrainingImages<Tensor<3>> for CaptionedPart<'_> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn image_shape(&self) -> [usize; 3] {
        self.encodings.latent_shape().unwrap_or([3, self.resolution, self.resolution])
    }

    fn image_signed(&self, index: usize) -> Vec<f32> {
        let picture = self.indices[index];
        match (&self.encodings.latents, self.images) {
            (Some(latents), _) => latents.item(picture).collect(),
            (None, Some(images)) => images.image_signed(picture),
            (None, None) => unreachable!("without latents there are pixels"),
        }
    }

    fn condition(&self, pictures: &[Option<usize>], device: &Device) -> Tensor<3> {
        let pictures: Vec<Option<usize>> =
            pictures.iter().map(|picture| picture.map(|index| self.indices[index])).collect();
        self.encodings.hidden_states(&pictures, device)
    }

    fn can_be_mirrored(&self) -> bool {
        self.images.is_some()
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}
