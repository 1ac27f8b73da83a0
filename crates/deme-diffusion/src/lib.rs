//! Function space: schedules, samplers, the UNet, diffusers checkpoints.
//!
//! Values of images are in `[-1, 1]` (`image_signed`) everywhere here.

pub mod denoiser;
pub mod unet;

pub use denoiser::{Denoiser, DenoiserFn};
pub use unet::{ProjectionError, ProjectionPlacement, UNet2DConfig, UNet2DModel, UNetConfigError};
