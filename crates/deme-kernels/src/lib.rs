//! The operations the networks spend their time in, each in one place.
//!
//! Every function takes and returns ordinary Burn tensors and has a plain-tensor path that works
//! on any device, with gradients.
//!
//! Not here: layers with parameters (`deme-nn`), networks, losses.

mod attention;
mod conv;
mod cpu;
mod extension;
mod flex;
mod norm;
mod optimizer_step;
pub mod plain;

pub use attention::attention;
pub use conv::{ConvGeometry, conv2d, linear};
pub use norm::{Activation, group_norm, layer_norm};
pub use optimizer_step::{AdamWStep, adamw_step, ema_step, squared_norm};
