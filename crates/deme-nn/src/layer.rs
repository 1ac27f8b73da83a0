//! The layers, with PyTorch's names (`weight`, `bias`) and layouts.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use deme_kernels::{
    Activation, ConvGeometry, GroupNormInput, GroupNormParameters, GroupNormSettings,
};

use crate::Init;

/// `torch.nn.Linear`: weight `[d_out, d_in]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Entries uniform in `±1/sqrt(d_in)`, PyTorch's default.
    pub fn new(d_in: usize, d_out: usize, bias: bool, init: &mut Init) -> Self {
        let bound = 1.0 / (d_in as f32).sqrt();
        Self {
            weight: Param::from_tensor(init.uniform([d_out, d_in], bound)),
            bias: bias.then(|| Param::from_tensor(init.uniform([d_out], bound))),
        }
    }

    /// `[.., d_in]` to `[.., d_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        deme_kernels::linear(x, self.weight.val(), self.bias.as_ref().map(|b| b.val()))
    }
}

/// `torch.nn.Conv2d` with a square kernel: weight `[C_out, C_in, k, k]`.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[C_out, C_in, k, k]`.
    pub weight: Param<Tensor<4>>,
    /// `[C_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    geometry: Geometry,
}

/// [`ConvGeometry`] in a form a Burn module may hold.
#[derive(Debug, Clone, Copy)]
struct Geometry(ConvGeometry);

impl Conv2d {
    /// Entries uniform in `±1/sqrt(C_in k^2)`, PyTorch's default.
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        geometry: ConvGeometry,
        init: &mut Init,
    ) -> Self {
        let bound = 1.0 / ((c_in * kernel * kernel) as f32).sqrt();
        Self {
            weight: Param::from_tensor(init.uniform([c_out, c_in, kernel, kernel], bound)),
            bias: Some(Param::from_tensor(init.uniform([c_out], bound))),
            geometry: Geometry(geometry),
        }
    }

    /// The same without a bias.
    pub fn without_bias(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        geometry: ConvGeometry,
        init: &mut Init,
    ) -> Self {
        let bound = 1.0 / ((c_in * kernel * kernel) as f32).sqrt();
        Self {
            weight: Param::from_tensor(init.uniform([c_out, c_in, kernel, kernel], bound)),
            bias: None,
            geometry: Geometry(geometry),
        }
    }

    /// `[B, C_in, H, W]` to `[B, C_out, H', W']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|b| b.val());
        deme_kernels::conv2d(x, self.weight.val(), bias, self.geometry.0)
    }

    /// Behind a group norm and SiLU, which keep no tensor of their own for the backward pass.
    pub fn forward_normalised(&self, norm: &GroupNorm, x: impl Into<GroupNormInput>) -> Tensor<4> {
        let norm = norm.parameters(Activation::Silu);
        let bias = self.bias.as_ref().map(|b| b.val());
        deme_kernels::group_norm_conv2d(x, norm, self.weight.val(), bias, self.geometry.0)
    }

    /// A 1x1 convolution of stride 1 on two tensors joined along the channels.
    pub fn forward_pointwise_of_two(&self, x: [Tensor<4>; 2]) -> Tensor<4> {
        let bias = self.bias.as_ref().map(|b| b.val());
        deme_kernels::pointwise_conv_of_two(x, self.weight.val(), bias)
    }
}

/// `torch.nn.GroupNorm`, affine.
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[C]`.
    pub weight: Param<Tensor<1>>,
    /// `[C]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    eps: f64,
}

impl GroupNorm {
    /// Weight 1, bias 0. `channels` must be divisible by `groups`.
    pub fn new(groups: usize, channels: usize, eps: f64, init: &mut Init) -> Self {
        Self {
            weight: Param::from_tensor(init.constant([channels], 1.0)),
            bias: Param::from_tensor(init.constant([channels], 0.0)),
            groups,
            eps,
        }
    }

    /// Normalises `[B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        deme_kernels::group_norm(x, self.parameters(Activation::None))
    }

    fn parameters(&self, activation: Activation) -> GroupNormParameters {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let settings = GroupNormSettings { groups: self.groups, eps: self.eps, activation };
        GroupNormParameters { weight, bias, settings }
    }
}

/// `torch.nn.LayerNorm` over the last dimension, affine.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[d]`.
    pub weight: Param<Tensor<1>>,
    /// `[d]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(width: usize, eps: f64, init: &mut Init) -> Self {
        Self {
            weight: Param::from_tensor(init.constant([width], 1.0)),
            bias: Param::from_tensor(init.constant([width], 0.0)),
            eps,
        }
    }

    /// Normalises `[.., d]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        deme_kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// `torch.nn.Embedding`: weight `[entries, width]`.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[entries, width]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Normal entries with deviation `std` (PyTorch's default is 1).
    pub fn new(entries: usize, width: usize, std: f32, init: &mut Init) -> Self {
        Self { weight: Param::from_tensor(init.normal([entries, width], std)) }
    }

    /// Indices `[B, L]` in `0..entries` to `[B, L, width]`.
    pub fn forward(&self, indices: Tensor<2, Int>) -> Tensor<3> {
        burn::tensor::module::embedding(self.weight.val(), indices)
    }
}
