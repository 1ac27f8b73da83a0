//! Decouple: finetuning a pretrained diffusion model mostly on one timestep range.
//!
//! (Decouple-then-Merge, Ma et al. 2025, section 3.) N copies of a model, each finetuned by [`finetune()`]
//! on its own [`TimestepRange`](deme_diffusion::TimestepRange), are the experts that are later merged. The
//! techniques are one file each: the [timesteps drawn](timestep_sampler), the [consistency
//! loss](mod@consistency_loss), the [loss weightings](loss_weighting) it is compared with, the [moving
//! average](ema) that is the result. Training from scratch is the same loop with the full range and no
//! teacher.
//!
//! Not here: the network and its channel projections (`deme-diffusion`), merging (`deme-merge`), reading
//! pictures (`deme-data`).

pub mod consistency_loss;
pub mod diffusion_loss;
pub mod ema;
pub mod finetune;
pub mod finetune_config;
pub mod finetuner;
pub mod gradient_similarity;
pub mod learning_rate;
pub mod loss_log;
pub mod loss_probe;
pub mod loss_weighting;
pub mod micro_batch;
pub mod timestep_sampler;
pub mod train_state;
pub mod training_images;

#[cfg(test)]
mod test_models;

pub use ema::{Ema, EmaConfig};
pub use finetune::{Event, FinetuneError, FinetuneTask, Finetuned, finetune};
pub use finetune_config::{FinetuneConfig, ImpossibleValue};
pub use finetuner::{Finetuner, StepError, StepReport};
pub use gradient_similarity::{
    GradientSimilarityConfig, GradientSimilarityError, gradient_cosines,
};
pub use learning_rate::{LrSchedule, LrScheduleKind};
pub use loss_log::{LossLog, LossPoint};
pub use loss_probe::{LossProbe, LossProbeConfig, LossProbeError};
pub use loss_weighting::LossWeighting;
pub use micro_batch::{MicroBatch, MicroBatches};
pub use timestep_sampler::{Granularity, TimestepSampler, TimestepSampling};
pub use train_state::{TrainStateError, remove_train_state};
pub use training_images::{DataError, TrainingImages};
