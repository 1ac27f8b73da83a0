//! A transformer on the pixels of a feature map: diffusers' `Transformer2DModel` and `BasicTransformerBlock`.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Device, Tensor};
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, GroupNorm, Init, LayerNorm, Linear};

use super::attention::CrossAttention;
use super::config::TransformerShape;
use super::feed_forward::FeedForward;

/// Added to the variance in the group norm before a transformer, whatever the UNet's own is.
const GROUP_NORM_EPS: f64 = 1e-6;
/// Added to the variance in layer norms.
const LAYER_NORM_EPS: f64 = 1e-5;

/// Group norm, a map per pixel, transformer blocks over the H W pixels, a map per pixel, and the residual
/// (Rombach et al. 2022, arXiv 2112.10752, appendix E.2.1).
#[derive(Module, Debug)]
pub struct Transformer2DModel {
    /// Norm of the input.
    pub norm: GroupNorm,
    /// Into the transformer.
    pub proj_in: PixelMap,
    /// The transformer.
    pub transformer_blocks: Vec<BasicTransformerBlock>,
    /// Out of the transformer.
    pub proj_out: PixelMap,
}

impl Transformer2DModel {
    pub(super) fn new(shape: &TransformerShape, init: &mut Init) -> Self {
        let channels = shape.channels;
        let norm = GroupNorm::new(shape.norm_groups, channels, GROUP_NORM_EPS, init);
        let proj_in = PixelMap::new(channels, shape.linear_projection, init);
        let blocks = (0..shape.layers).map(|_| BasicTransformerBlock::new(shape, init)).collect();
        let proj_out = PixelMap::new(channels, shape.linear_projection, init);
        Self { norm, proj_in, transformer_blocks: blocks, proj_out }
    }

    /// # Shapes
    /// x: `[B, C, H, W]`; hidden_states: `[B, L, context width]`; returns `[B, C, H, W]`.
    pub fn forward(&self, x: Tensor<4>, hidden_states: &Tensor<3>) -> Tensor<4> {
        let [_, _, h, w] = x.dims();
        // [B, H W, C]
        let y = deme_kernels::tokens_from_planes(self.norm.forward(x.clone()));
        let mut y = self.proj_in.forward(y);
        for block in &self.transformer_blocks {
            y = block.forward(y, hidden_states);
        }
        x + deme_kernels::planes_from_tokens(self.proj_out.forward(y), [h, w])
    }
}

/// Self-attention, attention to the text, feed-forward: each behind a layer norm, with a residual around both.
#[derive(Module, Debug)]
pub struct BasicTransformerBlock {
    /// Before the self-attention.
    pub norm1: LayerNorm,
    /// Pixels to pixels.
    pub attn1: CrossAttention,
    /// Before the attention to the text.
    pub norm2: LayerNorm,
    /// Pixels to the text.
    pub attn2: CrossAttention,
    /// Before the feed-forward part.
    pub norm3: LayerNorm,
    /// On each pixel alone.
    pub ff: FeedForward,
}

impl BasicTransformerBlock {
    fn new(shape: &TransformerShape, init: &mut Init) -> Self {
        let (width, heads) = (shape.channels, shape.heads);
        let norm = |init: &mut Init| LayerNorm::new(width, LAYER_NORM_EPS, init);
        Self {
            norm1: norm(init),
            attn1: CrossAttention::new(width, width, heads, init),
            norm2: norm(init),
            attn2: CrossAttention::new(width, shape.context_dim, heads, init),
            norm3: norm(init),
            ff: FeedForward::new(width, init),
        }
    }

    /// # Shapes
    /// x: `[B, N, width]`; hidden_states: `[B, L, context width]`; returns `[B, N, width]`.
    pub fn forward(&self, x: Tensor<3>, hidden_states: &Tensor<3>) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let x = x + self.attn1.forward(normed.clone(), normed);
        let x = x.clone() + self.attn2.forward(self.norm2.forward(x), hidden_states.clone());
        x.clone() + self.ff.forward(self.norm3.forward(x))
    }
}

/// A linear map of each pixel's channels, stored as a 1x1 convolution (`[C, C, 1, 1]`) or as a linear layer
/// (`[C, C]`). Its parameters are `weight` and `bias` either way.
#[derive(Debug, Clone)]
pub enum PixelMap {
    /// Stored as a convolution.
    Conv(Conv2d),
    /// Stored as a linear layer.
    Linear(Linear),
}

impl PixelMap {
    fn new(channels: usize, linear: bool, init: &mut Init) -> Self {
        match linear {
            true => Self::Linear(Linear::new(channels, channels, true, init)),
            false => Self::Conv(Conv2d::new(channels, channels, 1, ConvGeometry::same(1), init)),
        }
    }

    /// # Shapes
    /// `[B, N, C]` to the same, N pixels.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Conv(conv) => {
                let [c_out, c_in, ..] = conv.weight.dims();
                let weight = conv.weight.val().reshape([c_out, c_in]);
                let bias = conv.bias.as_ref().map(|bias| bias.val());
                deme_kernels::linear(x, weight, bias)
            }
            Self::Linear(linear) => linear.forward(x),
        }
    }
}

/// Calls the same on whichever it is.
macro_rules! either {
    ($self:expr, $map:ident => $call:expr) => {
        match $self {
            Self::Conv($map) => Self::Conv($call),
            Self::Linear($map) => Self::Linear($call),
        }
    };
}

// Written out because a derived module would put the variant into the parameters' names.
impl Module for PixelMap {
    fn collect_devices(&self, devices: Devices) -> Devices {
        match self {
            Self::Conv(map) => map.collect_devices(devices),
            Self::Linear(map) => map.collect_devices(devices),
        }
    }

    fn fork(self, device: &Device) -> Self {
        either!(self, map => map.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        either!(self, map => map.to_device(device))
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::Conv(map) => map.visit(visitor),
            Self::Linear(map) => map.visit(visitor),
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        either!(self, map => map.map(mapper))
    }

    fn materialize(self) -> Self {
        either!(self, map => map.materialize())
    }

    fn valid(&self) -> Self {
        either!(self, map => map.valid())
    }

    fn train(self) -> Self {
        either!(self, map => map.train())
    }
}

impl ModuleDisplayDefault for PixelMap {
    fn content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Conv(map) => content.add("conv", map).optional(),
            Self::Linear(map) => content.add("linear", map).optional(),
        }
    }
}

impl ModuleDisplay for PixelMap {}
