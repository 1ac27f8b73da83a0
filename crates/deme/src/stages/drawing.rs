//! Pictures drawn from a run's models, of noise alone or of captions.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use deme_data::{Picture, PreparedImages};
use deme_diffusion::{
    AutoencoderKl, ConditionalDenoiser, Denoiser, Guided, RangeEnsemble, SamplerConfig,
    SchedulerConfig, TextToImageFolder, UNet2DConditionModel, UNet2DModel, sample, sample_latents,
};

use super::encodings::Encodings;
use super::evaluate::{load_pictures, save_pictures};
use super::network::Network;
use super::{Context, Plan};
use crate::diagnostics::Problem;
use crate::progress::Progress;

/// What the captions' pictures are drawn with.
pub struct Prompts {
    encodings: Encodings,
    /// Image i is drawn for the caption of picture `pictures[i % pictures.len()]`.
    pictures: Vec<usize>,
    /// Latents to pictures, where the model works on latents.
    vae: Option<AutoencoderKl>,
}

impl Prompts {
    /// The captions of the pictures at `indices`; none for a model that sees no captions.
    pub fn of(
        context: &Context<'_>,
        plan: &Plan,
        indices: &[usize],
    ) -> Result<Option<Self>, Problem> {
        if !context.recipe.is_text_to_image() {
            return Ok(None);
        }
        let encodings = Encodings::open(plan)?;
        let vae = match encodings.latent_shape() {
            None => None,
            Some(_) => TextToImageFolder::open(&plan.pretrained.folder().join("model"))?
                .vae(&context.device)?,
        };
        Ok(Some(Self { encodings, pictures: indices.to_vec(), vae }))
    }

    /// The picture whose caption image `image` is drawn for.
    fn picture(&self, image: usize) -> usize {
        self.pictures[image % self.pictures.len()]
    }

    /// The captions of the first `count` images.
    pub fn captions(&self, context: &Context<'_>, count: usize) -> Vec<String> {
        let caption = |image| context.data().example(self.picture(image)).caption.clone();
        (0..count).map(|image| caption(image).unwrap_or_default()).collect()
    }
}

/// One model, or the experts before they are merged.
pub enum Source {
    /// Of noise alone.
    Unconditional(Box<dyn Denoiser>),
    /// Of captions.
    TextToImage(Box<dyn ConditionalDenoiser>),
}

impl Source {
    /// One model, or one expert per range.
    pub fn of(plan: &Plan, networks: Vec<Network>) -> Self {
        let (mut unconditional, mut conditional): (Vec<UNet2DModel>, Vec<UNet2DConditionModel>) =
            (Vec::new(), Vec::new());
        for network in networks {
            match network {
                Network::Unconditional(unet) => unconditional.push(unet),
                Network::TextToImage(unet) => conditional.push(unet),
            }
        }
        let total = plan.scheduler.num_train_timesteps;
        let fits = "there is one expert per range";
        match (unconditional.len(), conditional.len()) {
            (1, 0) => Self::Unconditional(Box::new(unconditional.remove(0))),
            (0, 1) => Self::TextToImage(Box::new(conditional.remove(0))),
            (_, 0) => {
                Self::Unconditional(Box::new(RangeEnsemble::new(unconditional, total).expect(fits)))
            }
            _ => Self::TextToImage(Box::new(RangeEnsemble::new(conditional, total).expect(fits))),
        }
    }
}

/// Pictures to be drawn from a model.
pub struct Drawing<'a> {
    /// The model.
    pub source: Source,
    /// What it is shown, for text to image.
    pub prompts: Option<&'a Prompts>,
    /// Its schedule.
    pub scheduler: &'a SchedulerConfig,
    /// The sampler.
    pub sampler: &'a SamplerConfig,
    /// Image i comes from seed `first_seed + i`.
    pub first_seed: u64,
    /// How many.
    pub images: usize,
}

impl Drawing<'_> {
    /// Draws all images.
    pub fn draw(&self, context: &Context<'_>) -> Result<PreparedImages, Problem> {
        self.draw_part(context, 0, self.images)
    }

    /// Draws images `from..to`.
    fn draw_part(
        &self,
        context: &Context<'_>,
        from: usize,
        to: usize,
    ) -> Result<PreparedImages, Problem> {
        let resolution = context.recipe.preparation.resolution;
        let seeds = (from..to).map(|i| self.first_seed.wrapping_add(i as u64));
        let drawn = self.values(context, from, &seeds.collect::<Vec<u64>>())?;
        let names: Vec<String> = (from..to).map(|i| i.to_string()).collect();
        let mut images = Vec::new();
        for (name, image) in names.iter().zip(&drawn) {
            images.extend(Picture::from_signed(name, image, resolution, resolution)?.pixels);
        }
        Ok(PreparedImages { resolution, images, captions: vec![None; names.len()], names })
    }

    /// The pixels of each image, in `[-1, 1]`; `first` is the number of the first.
    fn values(
        &self,
        context: &Context<'_>,
        first: usize,
        seeds: &[u64],
    ) -> Result<Vec<Vec<f32>>, Problem> {
        let side = context.recipe.preparation.resolution as usize;
        let (batch_size, device) = (context.recipe.sampling.batch_size, &context.device);
        let pixels = [3, side, side];
        let (unet, prompts) = match (&self.source, self.prompts) {
            (Source::TextToImage(unet), Some(prompts)) => (&**unet, prompts),
            (Source::Unconditional(denoiser), None) => {
                return Ok(sample(
                    &**denoiser,
                    self.scheduler,
                    self.sampler,
                    pixels,
                    seeds,
                    batch_size,
                    device,
                    &mut |_| {},
                )?);
            }
            _ => unreachable!("prompts belong to text to image"),
        };
        let guidance = context.recipe.guidance();
        let empty = prompts.encodings.hidden_states(&[None], device);
        let mut guided = |images: std::ops::Range<usize>| {
            let pictures: Vec<Option<usize>> =
                images.map(|image| Some(prompts.picture(first + image))).collect();
            let hidden = prompts.encodings.hidden_states(&pictures, device);
            Guided::new(unet, guidance, hidden, Some(empty.clone()))
                .expect("the recipe's guidance is checked, and all texts have one length")
        };
        let shape = prompts.encodings.latent_shape().unwrap_or(pixels);
        let latents = sample_latents(
            &mut guided,
            self.scheduler,
            self.sampler,
            shape,
            seeds,
            batch_size,
            device,
            &mut |_| {},
        )?;
        let [c, h, w] = shape;
        let image = |latent: Vec<f32>| match &prompts.vae {
            None => latent.into_iter().map(|value| value.clamp(-1.0, 1.0)).collect(),
            Some(vae) => {
                let latent = Tensor::from_data(TensorData::new(latent, [1, c, h, w]), device);
                let image = vae.decode(vae.unscaled(latent)).clamp(-1.0, 1.0);
                image.into_data().try_into_vec::<f32>().expect("images are f32")
            }
        };
        Ok(latents.into_iter().map(image).collect())
    }

    /// Draws all images, keeping each finished batch in `resume`.
    pub fn draw_resumably(
        &self,
        context: &Context<'_>,
        resume: &Path,
        progress: &mut Progress,
    ) -> Result<PreparedImages, Problem> {
        let resolution = context.recipe.preparation.resolution;
        let batch_size = context.recipe.sampling.batch_size;
        let mut images = Vec::new();
        for from in (0..self.images).step_by(batch_size) {
            let to = (from + batch_size).min(self.images);
            let part = resume.join(format!("images-{from}-{to}.safetensors"));
            if !part.is_file() {
                save_pictures(&part, &self.draw_part(context, from, to)?)?;
            }
            images.extend(load_pictures(&part)?.images);
            progress.at(to as u64, "");
        }
        let names: Vec<String> = (0..self.images).map(|i| i.to_string()).collect();
        Ok(PreparedImages { resolution, images, captions: vec![None; names.len()], names })
    }
}
