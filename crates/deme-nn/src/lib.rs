//! Layers under PyTorch's parameter names and layouts, and what every network of ours needs:
//! seeded initialisation, state dicts in and out, gradients by name, AdamW.
//!
//! A model is a plain Burn `Module` without autodiff. A training step makes a differentiable copy
//! ([`with_gradients`]), runs it, collects [`Gradients`] by parameter name, drops the copy, and
//! lets [`AdamW`] update the plain model.
//!
//! Not here: any particular network, any loss, any schedule.

mod adamw;
mod gradients;
mod init;
mod layer;
mod parameters;

pub use adamw::{AdamW, AdamWConfig, OptimizerStateError};
pub use gradients::{Gradients, with_gradients};
pub use init::Init;
pub use layer::{Conv2d, Embedding, GroupNorm, LayerNorm, Linear};
pub use parameters::{
    LoadError, ParameterShape, Parameters, load_state_dict, map_parameters, parameter_shapes,
    to_state_dict, visit_parameters, with_values,
};
