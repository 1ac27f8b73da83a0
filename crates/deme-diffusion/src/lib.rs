//! Function space: schedules, samplers, the UNets, the autoencoder, diffusers checkpoints.
//!
//! Values of images are in `[-1, 1]` everywhere here.

pub mod autoencoder_kl;
pub mod checkpoint;
pub mod denoiser;
mod gradient_checkpointing;
pub mod guidance;
pub mod hub;
pub mod image_shards;
mod model_config;
pub mod noise;
pub mod noise_predictor;
pub mod noise_schedule;
pub mod prediction;
pub mod range_ensemble;
pub mod sampler;
pub mod scheduler_config;
pub mod text_to_image;
pub mod timestep;
pub mod unet;
pub mod unet_2d_condition;

pub use autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig, LatentDistribution};
pub use checkpoint::{
    CheckpointError, LoadedModel, PipelineFolder, load_pipeline, save_pipeline,
    save_pipeline_weights,
};
pub use denoiser::{ConditionalDenoiser, Conditioned, Denoiser, DenoiserFn};
pub use guidance::{GuidanceConfig, GuidanceError, Guided};
pub use model_config::ModelConfigError;
pub use noise::standard_normal;
pub use noise_predictor::{Condition, NoisePredictor};
pub use noise_schedule::{BetaSchedule, NoiseSchedule, NoiseScheduleConfig, Rates, ScheduleError};
pub use prediction::PredictionType;
pub use range_ensemble::RangeEnsemble;
pub use sampler::{
    DpmSolverConfig, DynamicThresholding, SampleError, SampleProgress, SamplerConfig, SamplerKind,
    SamplingMethod, SolverAlgorithm, SolverType, sample, sample_latents,
};
pub use scheduler_config::{
    FinalSigmasType, SchedulerClass, SchedulerConfig, SchedulerConfigError, TimestepSpacing,
    VarianceType,
};
pub use text_to_image::{
    EncodedPrompts, PromptTokenizer, TextToImageFolder, TextToImagePipeline, load_conditional_unet,
    save_conditional_unet,
};
pub use timestep::{TimestepError, TimestepRange, range_index};
pub use unet::{ProjectionError, ProjectionPlacement, UNet2DConfig, UNet2DModel, UNetConfigError};
pub use unet_2d_condition::{PerBlock, UNet2DConditionConfig, UNet2DConditionModel};
