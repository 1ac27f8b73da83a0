//! Channel-wise projection `P(F) = W F`: a learnable C x C matrix on the channels, at first the identity
//! (DeMe, Ma et al. 2025, section 3.2).
//!
//! One matrix per down block, mid block and up block, in that order. In the reference's placement the matrices
//! stay in the model; in the folded one they vanish into a convolution when training ends.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use deme_kernels::ConvGeometry;
use deme_nn::Conv2d;
use serde::{Deserialize, Serialize};

use super::resnet::ResnetBlock2D;

/// Where the matrices act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionPlacement {
    /// Nowhere: there are none.
    #[default]
    None,
    /// On the hidden state that leaves each block, as the reference has it; the skip connections carry the
    /// unprojected tensor. No plain UNet computes the same.
    Block,
    /// Right behind the last convolution of each block: the downsampler's or upsampler's where there is one,
    /// else the last residual block's `conv2`, before the residual is added. `W (K x + b)` folds into that
    /// convolution exactly, so the exported model has the pretrained architecture.
    Folded,
}

impl ProjectionPlacement {
    /// True without matrices.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Why a model's projection cannot be placed or folded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProjectionError {
    /// The model's matrices act elsewhere.
    #[error(
        "the model already has channel projections placed as {found:?}, so they cannot be placed as \
         {wanted:?}; fold them first, or start from the model without them"
    )]
    AlreadyPlaced {
        /// Where they act.
        found: ProjectionPlacement,
        /// Where they were wanted.
        wanted: ProjectionPlacement,
    },
    /// The reference's placement has no convolution to fold into.
    #[error(
        "channel projections on the hidden state between blocks cannot be folded: the skip connections see \
         the tensor before them; use the placement `folded`"
    )]
    NotFoldable,
}

/// What one block does with its matrix.
#[derive(Debug, Clone)]
pub(crate) enum BlockProjection {
    None,
    Block(Tensor<2>),
    Folded(Tensor<2>),
}

impl BlockProjection {
    pub(crate) fn new(placement: ProjectionPlacement, matrix: Option<&Param<Tensor<2>>>) -> Self {
        match (placement, matrix) {
            (ProjectionPlacement::Block, Some(matrix)) => Self::Block(matrix.val()),
            (ProjectionPlacement::Folded, Some(matrix)) => Self::Folded(matrix.val()),
            _ => Self::None,
        }
    }

    /// The matrix that acts right behind a convolution, if that is the block's last one.
    pub(crate) fn behind_convolution(&self, is_last: bool) -> Option<Tensor<2>> {
        match self {
            Self::Folded(matrix) if is_last => Some(matrix.clone()),
            _ => None,
        }
    }

    /// Projects the hidden state that leaves the block, `[B, C, H, W]`.
    pub(crate) fn on_hidden_state(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Block(matrix) => project(x, matrix.clone()),
            _ => x,
        }
    }
}

/// `W F` on the channels.
///
/// # Shapes
/// x: `[B, C, H, W]`; matrix: `[C, C]`; returns `[B, C, H, W]`.
fn project(x: Tensor<4>, matrix: Tensor<2>) -> Tensor<4> {
    let [c_out, c_in] = matrix.dims();
    deme_kernels::conv2d(x, matrix.reshape([c_out, c_in, 1, 1]), None, ConvGeometry::same(1))
}

/// The convolution with the projection behind it, `W (K x + b)`, as one: training and the folded model round
/// alike.
pub(crate) fn projected(conv: &Conv2d, projection: Option<Tensor<2>>) -> Conv2d {
    match projection {
        Some(matrix) => folded(conv, matrix),
        None => conv.clone(),
    }
}

/// Identity matrices for blocks that end in so many channels each.
pub(crate) fn identities(
    channels: impl IntoIterator<Item = usize>,
    device: &Device,
) -> Vec<Param<Tensor<2>>> {
    let matrix = |channels| Param::from_tensor(Tensor::eye(channels, device));
    channels.into_iter().map(matrix).collect()
}

/// The convolution that ends a block: that of the down- or upsampler where there is one, else the last
/// residual block's second.
pub(crate) fn last_conv<'a>(
    resampler: Option<&'a mut Conv2d>,
    resnets: &'a mut [ResnetBlock2D],
) -> &'a mut Conv2d {
    resampler.unwrap_or_else(|| {
        let last = resnets.last_mut().expect("every block has a residual block");
        &mut last.conv2
    })
}

/// The convolution with weight `W K` and bias `W b`. Gradients reach W, K and b.
pub(crate) fn folded(conv: &Conv2d, matrix: Tensor<2>) -> Conv2d {
    let mut folded = conv.clone();
    let [c_out, c_in, k_h, k_w] = conv.weight.dims();
    let kernel = conv.weight.val().reshape([c_out, c_in * k_h * k_w]);
    let weight = matrix.clone().matmul(kernel).reshape([c_out, c_in, k_h, k_w]);
    folded.weight = Param::initialized(conv.weight.id, weight);
    folded.bias = conv.bias.as_ref().map(|bias| {
        let column = bias.val().reshape([c_out, 1]);
        Param::initialized(bias.id, matrix.matmul(column).reshape([c_out]))
    });
    folded
}
