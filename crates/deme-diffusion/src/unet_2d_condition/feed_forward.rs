//! The gated feed-forward part of a transformer block.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_nn::{Init, Linear};

/// How much wider a feed-forward layer is inside.
const MULTIPLE: usize = 4;

/// `linear(geglu(x))`. diffusers' list `net` holds the gate, a dropout without parameters (so that the names
/// are `net.0` and `net.2`), and the linear map.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// The gate, the dropout, the linear map back to the width.
    pub net: (Geglu, Dropout, Linear),
}

impl FeedForward {
    pub(super) fn new(width: usize, init: &mut Init) -> Self {
        let inner = MULTIPLE * width;
        let gate = Geglu { proj: Linear::new(width, 2 * inner, true, init) };
        Self { net: (gate, Dropout { probability: 0.0 }, Linear::new(inner, width, true, init)) }
    }

    /// # Shapes
    /// `[B, N, width]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let (gate, _, linear) = &self.net;
        linear.forward(gate.forward(x))
    }
}

/// `a * gelu(b)` where `[a, b] = proj(x)`   (Shazeer 2020, arXiv 2002.05202, eq. 6), with the exact normal
/// distribution function.
#[derive(Module, Debug)]
pub struct Geglu {
    /// From the width to twice the inner width: first a, then b.
    pub proj: Linear,
}

impl Geglu {
    /// # Shapes
    /// `[B, N, width]` to `[B, N, inner]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        deme_kernels::geglu(self.proj.forward(x))
    }
}

/// A place in a list that has no parameters; it does nothing (see
/// [`UNet2DConditionConfig::dropout`](super::UNet2DConditionConfig)).
#[derive(Module, Debug)]
pub struct Dropout {
    #[module(skip)]
    probability: f64,
}
