//! The arithmetic of the kernels on plain `f32` slices: no tensors, no autodiff.
//!
//! Every sum has one order, whatever the number of threads, and every image's result is the same
//! alone or in a batch. Threads are rayon's, the caller's pool.

// Indices are rows, points and lanes of the equations, often of several arrays at once.
#![allow(clippy::needless_range_loop)]

pub(crate) mod attention;
pub(crate) mod buffer;
pub(crate) mod channels_last;
pub(crate) mod conv;
pub(crate) mod direct_conv;
pub(crate) mod gelu;
pub(crate) mod group_norm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod optimizer;
pub(crate) mod pointwise_conv;
pub(crate) mod product;
pub(crate) mod simd;
pub(crate) mod transpose;
pub(crate) mod vector;
pub(crate) mod winograd;
