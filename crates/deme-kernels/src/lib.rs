//! The operations the networks spend their time in, each in one place.
//!
//! Every function takes and returns ordinary Burn tensors, with gradients. f32 tensors on the CPU
//! go to kernels of our own (`cpu`), as one Burn backend extension with its own backward passes;
//! every other device and float type takes the [`plain`] path. The layers of feature extractors
//! ([`ConvRelu`], pooling) have kernels for the forward pass only; with autodiff they too are plain.
//!
//! A result does not depend on the number of threads, and an image's output is the same alone and
//! in a batch.
//!
//! Not here: layers with parameters (`deme-nn`), networks, losses.

mod allocator;
mod attention;
mod conv;
mod cpu;
mod extension;
mod feature_layers;
mod flex;
mod norm;
mod optimizer_step;
pub mod plain;
mod tokens;

pub use allocator::{Allocator, keep_freed_memory};
pub use attention::attention;
pub use conv::{
    ConvAlgorithm, ConvGeometry, conv2d, linear, pointwise_conv_of_two, set_conv_algorithm,
};
pub use extension::on_cpu;
pub use feature_layers::{
    AverageOver, ChannelConcat, ConvRelu, Window, avg_pool2d, conv2d_relu, global_avg_pool2d,
    max_pool2d,
};
pub use norm::{
    Activation, GroupNormInput, GroupNormParameters, GroupNormSettings, group_norm,
    group_norm_conv2d, layer_norm,
};
pub use optimizer_step::{AdamWStep, ParameterState, adamw_steps, squared_norm};
pub use tokens::{geglu, planes_from_tokens, tokens_from_planes};
