//! The transformer both towers share: layer norm first, then attention or MLP, then the sum.
//!
//! Names are transformers' (`self_attn.q_proj`, `layer_norm1`, `mlp.fc1`, ...).

use crate::config::HiddenAct;
use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use deme_nn::{Init, LayerNorm, Linear};

/// Width, depth and details of one tower's encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderShape {
    pub width: usize,
    pub mlp_width: usize,
    pub layers: usize,
    pub heads: usize,
    pub activation: HiddenAct,
    pub eps: f64,
}

/// Multi-head self-attention with one linear map each for queries, keys, values and the output.
#[derive(Module, Debug)]
pub struct ClipAttention {
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Queries.
    pub q_proj: Linear,
    /// The heads' outputs to the width.
    pub out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

impl ClipAttention {
    fn new(shape: &EncoderShape, init: &mut Init) -> Self {
        let EncoderShape { width, layers, heads, .. } = *shape;
        let out_std = (width as f32).powf(-0.5);
        let in_std = out_std * (2.0 * layers as f32).powf(-0.5);
        Self {
            k_proj: linear(width, width, in_std, init),
            v_proj: linear(width, width, in_std, init),
            q_proj: linear(width, width, in_std, init),
            out_proj: linear(width, width, out_std, init),
            heads,
        }
    }

    /// `[B, L, width]` to the same. With `causal`, position i sees positions up to i.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        let [b, l, width] = x.dims();
        let d = width / self.heads;
        let heads = |y: Tensor<3>| y.reshape([b, l, self.heads, d]).swap_dims(1, 2);
        let q = heads(self.q_proj.forward(x.clone()));
        let k = heads(self.k_proj.forward(x.clone()));
        let v = heads(self.v_proj.forward(x));
        let y = deme_kernels::attention(q, k, v, (d as f64).powf(-0.5), causal);
        self.out_proj.forward(y.swap_dims(1, 2).reshape([b, l, width]))
    }
}

/// Two linear maps with a non-linearity between.
#[derive(Module, Debug)]
pub struct ClipMlp {
    /// Width to MLP width.
    pub fc1: Linear,
    /// MLP width to width.
    pub fc2: Linear,
    #[module(skip)]
    activation: HiddenAct,
}

impl ClipMlp {
    fn new(shape: &EncoderShape, init: &mut Init) -> Self {
        let EncoderShape { width, mlp_width, layers, activation, .. } = *shape;
        let fc1_std = (2.0 * width as f32).powf(-0.5);
        let fc2_std = (width as f32).powf(-0.5) * (2.0 * layers as f32).powf(-0.5);
        Self {
            fc1: linear(width, mlp_width, fc1_std, init),
            fc2: linear(mlp_width, width, fc2_std, init),
            activation,
        }
    }

    /// `[B, L, width]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.fc1.forward(x);
        let x = match self.activation {
            HiddenAct::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
            HiddenAct::Gelu => activation::gelu(x),
        };
        self.fc2.forward(x)
    }
}

/// One pre-norm layer.
#[derive(Module, Debug)]
pub struct ClipEncoderLayer {
    /// Attention between the positions.
    pub self_attn: ClipAttention,
    /// Before the attention.
    pub layer_norm1: LayerNorm,
    /// On each position alone.
    pub mlp: ClipMlp,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
}

impl ClipEncoderLayer {
    /// `[B, L, width]` to the same.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x), causal);
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

/// The layers of one tower.
#[derive(Module, Debug)]
pub struct ClipEncoder {
    /// From the input to the output.
    pub layers: Vec<ClipEncoderLayer>,
}

impl ClipEncoder {
    pub(crate) fn new(shape: &EncoderShape, init: &mut Init) -> Self {
        let layers = (0..shape.layers).map(|_| ClipEncoderLayer {
            self_attn: ClipAttention::new(shape, init),
            layer_norm1: LayerNorm::new(shape.width, shape.eps, init),
            mlp: ClipMlp::new(shape, init),
            layer_norm2: LayerNorm::new(shape.width, shape.eps, init),
        });
        Self { layers: layers.collect() }
    }

    /// `[B, L, width]` to the same.
    pub fn forward(&self, x: Tensor<3>, causal: bool) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| layer.forward(x, causal))
    }
}

/// Normal weights, zero bias: transformers' initialisation of CLIP.
fn linear(d_in: usize, d_out: usize, std: f32, init: &mut Init) -> Linear {
    Linear {
        weight: Param::from_tensor(init.normal([d_out, d_in], std)),
        bias: Some(Param::from_tensor(init.constant([d_out], 0.0))),
    }
}
