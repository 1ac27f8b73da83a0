//! The network of a run, unconditional or under captions, as one thing.
//!
//! What differs between the two (conditions) is dealt with where they are trained and drawn from.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use deme_decouple::{LossProbe, LossProbeConfig};
use deme_diffusion::text_to_image::{load_conditional_unet, save_conditional_unet};
use deme_diffusion::{
    ProjectionError, ProjectionPlacement, SchedulerConfig, TimestepRange, UNet2DConditionModel,
    UNet2DModel, load_pipeline, save_pipeline,
};
use deme_merge::StateDict;
use deme_nn::{
    Gradients, LoadError, ParameterShape, load_state_dict, parameter_shapes, to_state_dict,
    with_values,
};

use super::encodings::{CaptionedPart, Encodings};
use super::finetuning::Part;
use super::{Context, Plan};
use crate::diagnostics::Problem;
use crate::recipe::Task;

/// A network that predicts noise.
#[derive(Debug, Clone)]
pub enum Network {
    /// Of noisy pictures alone.
    Unconditional(UNet2DModel),
    /// Of noisy pictures or latents, and texts.
    TextToImage(UNet2DConditionModel),
}

/// The same expression for either network.
macro_rules! either {
    ($network:expr, $unet:ident => $value:expr) => {
        match $network {
            Network::Unconditional($unet) => $value,
            Network::TextToImage($unet) => $value,
        }
    };
}

impl Network {
    /// Reads what [`Self::save`] wrote, or a whole pipeline.
    pub fn load(task: Task, folder: &Path, device: &Device) -> Result<Self, Problem> {
        Ok(match task {
            Task::Unconditional => {
                Self::Unconditional(load_pipeline(&folder.to_string_lossy(), device)?.unet)
            }
            Task::TextToImage => Self::TextToImage(load_conditional_unet(folder, device)?),
        })
    }

    /// Writes a diffusers folder: of a text-to-image model the UNet alone.
    pub fn save(&self, folder: &Path, scheduler: &SchedulerConfig) -> Result<(), Problem> {
        match self {
            Self::Unconditional(unet) => save_pipeline(folder, unet, scheduler)?,
            Self::TextToImage(unet) => save_conditional_unet(folder, unet)?,
        }
        Ok(())
    }

    /// All parameters.
    pub fn state_dict(&self) -> StateDict {
        either!(self, unet => to_state_dict(unet))
    }

    /// Names and shapes of all parameters.
    pub fn parameter_shapes(&self) -> Vec<ParameterShape> {
        either!(self, unet => parameter_shapes(unet))
    }

    /// The same network with other weights.
    pub fn with_state_dict(self, state: &StateDict) -> Result<Self, LoadError> {
        Ok(match self {
            Self::Unconditional(unet) => Self::Unconditional(load_state_dict(unet, state)?),
            Self::TextToImage(unet) => Self::TextToImage(load_state_dict(unet, state)?),
        })
    }

    /// The same network with other values of all parameters.
    pub fn with_values(self, values: BTreeMap<String, Vec<f32>>) -> Self {
        match self {
            Self::Unconditional(unet) => Self::Unconditional(with_values(unet, values)),
            Self::TextToImage(unet) => Self::TextToImage(with_values(unet, values)),
        }
    }

    /// Where its channel projections act.
    pub fn projection_placement(&self) -> ProjectionPlacement {
        either!(self, unet => unet.config().channel_projection)
    }

    /// The same network with channel projections at `placement`.
    pub fn with_projection(self, placement: ProjectionPlacement) -> Result<Self, ProjectionError> {
        Ok(match self {
            Self::Unconditional(unet) => Self::Unconditional(unet.with_projection(placement)?),
            Self::TextToImage(unet) => Self::TextToImage(unet.with_projection(placement)?),
        })
    }
}

/// The held-out loss of the networks of one task.
pub enum Probe {
    /// Under no condition.
    Unconditional(LossProbe),
    /// Under the pictures' captions.
    TextToImage(LossProbe<Tensor<3>>),
}

impl Probe {
    /// On the pictures at `indices`.
    pub fn new(
        context: &Context<'_>,
        plan: &Plan,
        indices: &[usize],
        config: &LossProbeConfig,
    ) -> Result<Self, Problem> {
        let folder = plan.pretrained.folder().join("model");
        let schedule = plan.scheduler.noise_schedule()?;
        let prediction = plan.scheduler.prediction_type;
        Ok(match Network::load(plan.task, &folder, &context.device)? {
            Network::Unconditional(unet) => {
                let data = Part::new(context, indices)?;
                Self::Unconditional(LossProbe::new(config, &data, &unet, &schedule, prediction)?)
            }
            Network::TextToImage(unet) => {
                let encodings = Encodings::open(plan)?;
                let data = CaptionedPart::new(context, plan, &encodings, indices)?;
                Self::TextToImage(LossProbe::new(config, &data, &unet, &schedule, prediction)?)
            }
        })
    }

    /// The mean loss of a network of this task.
    pub fn loss(&self, network: &Network) -> f64 {
        match (self, network) {
            (Self::Unconditional(probe), Network::Unconditional(unet)) => probe.loss(unet),
            (Self::TextToImage(probe), Network::TextToImage(unet)) => probe.loss(unet),
            _ => unreachable!("{OF_ONE_TASK}"),
        }
    }

    /// The same and its gradient.
    pub fn loss_and_gradient(&self, network: &Network) -> (f64, Gradients) {
        match (self, network) {
            (Self::Unconditional(probe), Network::Unconditional(unet)) => {
                probe.loss_and_gradient(unet)
            }
            (Self::TextToImage(probe), Network::TextToImage(unet)) => probe.loss_and_gradient(unet),
            _ => unreachable!("{OF_ONE_TASK}"),
        }
    }

    /// The mean loss in each range; none for a range that holds no sample.
    pub fn loss_per_range(&self, network: &Network, ranges: &[TimestepRange]) -> Vec<Option<f64>> {
        match (self, network) {
            (Self::Unconditional(probe), Network::Unconditional(unet)) => {
                probe.loss_per_range(unet, ranges)
            }
            (Self::TextToImage(probe), Network::TextToImage(unet)) => {
                probe.loss_per_range(unet, ranges)
            }
            _ => unreachable!("{OF_ONE_TASK}"),
        }
    }
}

const OF_ONE_TASK: &str = "all networks of a run have one task";
