//! What `deme sample` draws from: a model of pictures alone, or one that draws what a text says.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use deme_diffusion::checkpoint::resolve;
use deme_diffusion::hub::ModelKind;
use deme_diffusion::{
    Guided, PipelineFolder, SampleProgress, SamplerConfig, SamplerKind, SchedulerConfig,
    TextToImageFolder, TextToImagePipeline, UNet2DModel, load_pipeline, sample, sample_latents,
};
use deme_eval::SamplingStamp;
use deme_nn::to_state_dict;
use sha2::{Digest, Sha256};

use super::prompts::Prompts;
use crate::cli::SampleArguments;
use crate::diagnostics::Problem;
use crate::feature_sets::hex;

/// A model, and all that is the same for each of its pictures.
pub struct Model {
    network: Network,
    path: PathBuf,
    scheduler: SchedulerConfig,
    sampler: SamplerConfig,
    /// Height and width, where they were asked for or a text is drawn.
    size: Option<[usize; 2]>,
    /// `[C, H, W]` of what the network works on.
    sampled_shape: [usize; 3],
    /// `[C, H, W]` of the pictures.
    pub picture_shape: [usize; 3],
    device: Device,
}

#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum Network {
    /// Draws what it was trained on.
    Unconditional(Box<UNet2DModel>),
    /// Draws what prompts say.
    TextToImage {
        pipeline: Box<TextToImagePipeline>,
        prompts: Prompts,
        /// Hidden states of the negative prompt, `[1, L, width]`.
        negative: Option<Tensor<3>>,
    },
}

impl Model {
    /// Loads a model. With prompts it must be a text-to-image model, without it must not.
    ///
    /// # Errors
    /// [`Problem::Usage`] for a model of the other kind and for sizes it cannot draw; whatever is wrong with its
    /// files, the prompts and the sampler.
    pub fn open(
        arguments: &SampleArguments,
        prompts: Option<Prompts>,
        device: &Device,
    ) -> Result<Self, Problem> {
        let name = &arguments.model;
        let kind = match prompts {
            Some(_) => ModelKind::TextToImage,
            None => ModelKind::Diffusion,
        };
        let path = resolve(name, kind)?;
        let model = match prompts {
            None if path.is_file() || TextToImageFolder::is_at(&path) => {
                let what = match path.is_file() {
                    true => "a single file, which only a text-to-image model can be",
                    false => "a text-to-image model",
                };
                return Err(Problem::Usage {
                    message: format!("{name} is {what}, and there is no prompt"),
                    help: "give --prompt TEXT or --prompts FILE; --prompt \"\" draws without a condition"
                        .into(),
                });
            }
            Some(_) if is_unconditional(&path) => {
                return Err(Problem::Usage {
                    message: format!("{name} is no text-to-image model: its UNet looks at no text"),
                    help:
                        "leave out the prompt, or give a text-to-image model, as Stable Diffusion 1"
                            .into(),
                });
            }
            None => Self::unconditional(arguments, path, device)?,
            Some(prompts) => Self::text_to_image(arguments, prompts, path, device)?,
        };
        model.sampler.method(&model.scheduler)?;
        Ok(model)
    }

    fn unconditional(
        arguments: &SampleArguments,
        path: PathBuf,
        device: &Device,
    ) -> Result<Self, Problem> {
        let loaded = load_pipeline(&arguments.model, device)?;
        let config = loaded.unet.config();
        let trained = config.sample_size.map(|size| size.height_width());
        let [height, width] = wanted_size(arguments, trained)?;
        let shape = [config.in_channels, height, width];
        let multiple = 1 << (config.block_out_channels.len() - 1);
        check_size(arguments, [height, width], multiple, config.check_image_shape(shape).is_ok())?;
        let chosen = arguments.height.is_some() || arguments.width.is_some();
        Ok(Self {
            path,
            scheduler: loaded.scheduler.unwrap_or_default(),
            sampler: sampler(arguments, SamplerKind::Ddim),
            size: chosen.then_some([height, width]),
            sampled_shape: shape,
            picture_shape: [picture_channels(arguments, config.out_channels)?, height, width],
            device: device.clone(),
            network: Network::Unconditional(Box::new(loaded.unet)),
        })
    }

    fn text_to_image(
        arguments: &SampleArguments,
        prompts: Prompts,
        path: PathBuf,
        device: &Device,
    ) -> Result<Self, Problem> {
        let pipeline = TextToImagePipeline::load(&arguments.model, device)?;
        let (unet, vae) = (pipeline.unet.config(), pipeline.vae.as_ref().map(|vae| vae.config()));
        let factor = vae.map_or(1, |vae| vae.downscaling());
        let trained = pipeline.latent_shape().map(|[_, h, w]| [h * factor, w * factor]);
        let [height, width] = wanted_size(arguments, trained)?;
        let sampled_shape = [unet.in_channels, height / factor, width / factor];
        let multiple = factor << (unet.block_out_channels.len() - 1);
        let whole = height % factor == 0 && width % factor == 0;
        let fits = whole && unet.check_image_shape(sampled_shape).is_ok();
        check_size(arguments, [height, width], multiple, fits)?;
        let channels = vae.map_or(unet.out_channels, |vae| vae.out_channels);
        let channels = picture_channels(arguments, channels)?;
        // Too many skipped layers are found here, before the first picture.
        prompts.states(&pipeline, 0..1)?;
        Ok(Self {
            path,
            scheduler: pipeline.scheduler.clone(),
            sampler: sampler(arguments, pipeline.scheduler.class.sampler()),
            size: Some([height, width]),
            sampled_shape,
            picture_shape: [channels, height, width],
            device: device.clone(),
            network: Network::TextToImage {
                negative: prompts.negative_states(&pipeline)?,
                pipeline: Box::new(pipeline),
                prompts,
            },
        })
    }

    /// What a user should know before the first picture is drawn.
    ///
    /// # Errors
    /// As [`Prompts::warnings`].
    pub fn warnings(&self) -> Result<Vec<String>, Problem> {
        match &self.network {
            Network::Unconditional(_) => Ok(Vec::new()),
            Network::TextToImage { pipeline, prompts, .. } => {
                Ok(prompts.warnings(&pipeline.tokenizer)?)
            }
        }
    }

    /// Whether its pictures are of prompts.
    pub fn draws_prompts(&self) -> bool {
        matches!(self.network, Network::TextToImage { .. })
    }

    /// The prompt of picture `position`, where there are prompts.
    pub fn prompt(&self, position: usize) -> Option<&str> {
        match &self.network {
            Network::Unconditional(_) => None,
            Network::TextToImage { prompts, .. } => Some(prompts.of_picture(position)),
        }
    }

    /// Calls of the network for one picture.
    ///
    /// # Errors
    /// As [`SamplerConfig::model_calls`].
    pub fn calls_per_picture(&self) -> Result<usize, Problem> {
        Ok(self.sampler.model_calls(&self.scheduler)?)
    }

    /// Draws the pictures at `positions`, one per seed, as one batch. Each depends on its seed and its prompt alone.
    ///
    /// # Shapes
    /// Per seed the values of `picture_shape`, in `[-1, 1]`.
    ///
    /// # Errors
    /// As [`sample_latents`] and [`Prompts::states`].
    pub fn draw(
        &self,
        positions: Range<usize>,
        seeds: &[u64],
        observer: &mut dyn FnMut(SampleProgress),
    ) -> Result<Vec<Vec<f32>>, Problem> {
        let Self { scheduler, sampler, device, sampled_shape: shape, .. } = self;
        let batch = seeds.len();
        match &self.network {
            Network::Unconditional(unet) => {
                Ok(sample(&**unet, scheduler, sampler, *shape, seeds, batch, device, observer)?)
            }
            Network::TextToImage { pipeline, prompts, negative } => {
                let states = prompts.states(pipeline, positions)?;
                let guided =
                    Guided::new(&pipeline.unet, prompts.guidance, states, negative.clone())?;
                let mut denoiser = |_: Range<usize>| &guided;
                let latents = sample_latents(
                    &mut denoiser,
                    scheduler,
                    sampler,
                    *shape,
                    seeds,
                    batch,
                    device,
                    observer,
                )?;
                let [c, h, w] = *shape;
                let latents = TensorData::new(latents.concat(), [batch, c, h, w]);
                let images = pipeline.images(Tensor::from_data(latents, device));
                let values = images.into_data().try_into_vec::<f32>().expect("networks give f32");
                Ok(values.chunks(values.len() / batch).map(<[f32]>::to_vec).collect())
            }
        }
    }

    /// From what and how `count` pictures are drawn.
    pub fn stamp(&self, first_seed: u64, count: usize) -> SamplingStamp {
        let (model_hash, prompts) = match &self.network {
            Network::Unconditional(unet) => (to_state_dict(&**unet).content_hash(), None),
            Network::TextToImage { pipeline, prompts, .. } => {
                (pipeline_hash(pipeline), Some(prompts))
            }
        };
        let given = |value: f64| (value != 0.0).then_some(value);
        SamplingStamp {
            model: self.path.display().to_string(),
            model_hash,
            sampler: self.sampler.kind.name().to_owned(),
            steps: self.sampler.steps,
            eta: self.sampler.eta,
            guidance: prompts.map(|prompts| prompts.guidance.scale),
            guidance_rescale: prompts.and_then(|prompts| given(prompts.guidance.rescale)),
            prompts_hash: prompts.map(Prompts::hash),
            clip_skip: prompts.map(|prompts| prompts.clip_skip).filter(|&skipped| skipped > 0),
            size: self.size,
            first_seed,
            count: count as u64,
        }
    }
}

/// Whether a folder's UNet is known to look at no text.
fn is_unconditional(path: &Path) -> bool {
    PipelineFolder::open(path).and_then(|folder| folder.unet_config()).is_ok()
}

/// All three networks have a say in a picture.
fn pipeline_hash(pipeline: &TextToImagePipeline) -> String {
    let hashes = [
        to_state_dict(&pipeline.unet).content_hash(),
        pipeline.vae.as_ref().map_or_else(String::new, |vae| to_state_dict(vae).content_hash()),
        to_state_dict(&pipeline.text_encoder).content_hash(),
    ];
    hex(&Sha256::digest(hashes.join("\n")))
}

fn sampler(arguments: &SampleArguments, default: SamplerKind) -> SamplerConfig {
    SamplerConfig {
        kind: arguments.sampler.map_or(default, |name| name.kind()),
        steps: arguments.steps,
        eta: arguments.eta,
        ..SamplerConfig::default()
    }
}

/// Height and width that were asked for, else those of training.
fn wanted_size(
    arguments: &SampleArguments,
    trained: Option<[usize; 2]>,
) -> Result<[usize; 2], Problem> {
    let height = arguments.height.or(trained.map(|[height, _]| height));
    match (height, arguments.width.or(trained.map(|[_, width]| width))) {
        (Some(height), Some(width)) => Ok([height, width]),
        _ => Err(Problem::Usage {
            message: format!("{} does not say how large its pictures are", arguments.model),
            help: "give --height and --width, or set `sample_size` in its config.json".into(),
        }),
    }
}

fn check_size(
    arguments: &SampleArguments,
    [height, width]: [usize; 2],
    multiple: usize,
    fits: bool,
) -> Result<(), Problem> {
    if fits {
        return Ok(());
    }
    let below = |side: usize| (side / multiple).max(1) * multiple;
    Err(Problem::Usage {
        message: format!(
            "{} draws no pictures of height {height} and width {width}: both must be multiples of {multiple}",
            arguments.model
        ),
        help: format!("give --height {} --width {}", below(height), below(width)),
    })
}

fn picture_channels(arguments: &SampleArguments, channels: usize) -> Result<usize, Problem> {
    match channels {
        1 | 3 => Ok(channels),
        _ => Err(Problem::Usage {
            message: format!("{} gives {channels} channels, not pictures", arguments.model),
            help: "pictures have 3 channels or 1".into(),
        }),
    }
}
