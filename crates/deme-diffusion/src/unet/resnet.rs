//! The residual block, and the convolutions that halve and double the resolution.

use burn::module::Module;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Tensor, activation, module};
use deme_kernels::{ConvGeometry, GroupNormInput};
use deme_nn::{Conv2d, GroupNorm, Init, Linear};

use super::TimeScaleShift;
use super::channel_projection::projected;

/// What a [`ResnetBlock2D`] is built from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetShape {
    pub norm_groups: usize,
    pub norm_eps: f64,
    /// Width of the time embedding; `None`: no time enters.
    pub time_embed_dim: Option<usize>,
    pub time_scale_shift: TimeScaleShift,
    pub output_scale_factor: f64,
}

/// `h = conv1(silu(norm1(x)))`, the time enters, `(shortcut(x) + conv2(silu(norm2(h)))) / scale`.
#[derive(Module, Debug)]
pub struct ResnetBlock2D {
    /// Norm of the input.
    pub norm1: GroupNorm,
    /// 3x3, to the output's channels.
    pub conv1: Conv2d,
    /// From the time embedding to a shift, or a scale and a shift, per channel; absent in an autoencoder.
    pub time_emb_proj: Option<Linear>,
    /// Norm of the hidden state.
    pub norm2: GroupNorm,
    /// 3x3.
    pub conv2: Conv2d,
    /// 1x1, where the number of channels changes.
    pub conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    time_scale_shift: TimeScaleShift,
    #[module(skip)]
    output_scale_factor: f64,
}

impl ResnetBlock2D {
    pub(crate) fn new((c_in, c_out): (usize, usize), shape: &ResnetShape, init: &mut Init) -> Self {
        let (groups, eps) = (shape.norm_groups, shape.norm_eps);
        let time_channels = match shape.time_scale_shift {
            TimeScaleShift::Default => c_out,
            TimeScaleShift::ScaleShift => 2 * c_out,
        };
        Self {
            norm1: GroupNorm::new(groups, c_in, eps, init),
            conv1: Conv2d::new(c_in, c_out, 3, ConvGeometry::same(3), init),
            time_emb_proj: shape
                .time_embed_dim
                .map(|width| Linear::new(width, time_channels, true, init)),
            norm2: GroupNorm::new(groups, c_out, eps, init),
            conv2: Conv2d::new(c_out, c_out, 3, ConvGeometry::same(3), init),
            conv_shortcut: (c_in != c_out)
                .then(|| Conv2d::new(c_in, c_out, 1, ConvGeometry::same(1), init)),
            time_scale_shift: shape.time_scale_shift,
            output_scale_factor: shape.output_scale_factor,
        }
    }

    /// With a `projection` (`[C_out, C_out]`), it acts right behind `conv2`, before the residual is added.
    ///
    /// # Shapes
    /// x: `[B, C_in, H, W]`; temb_silu: `[B, time_embed_dim]`; returns `[B, C_out, H, W]`.
    ///
    /// # Panics
    /// When there is a time embedding and no layer for it, or the other way round.
    pub fn forward(
        &self,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: Option<Tensor<2>>,
    ) -> Tensor<4> {
        let h = self.conv1.forward_normalised(&self.norm1, x.clone());
        let x = match &self.conv_shortcut {
            Some(conv_shortcut) => conv_shortcut.forward(x),
            None => x,
        };
        self.behind_conv1(h, x, temb_silu, projection)
    }

    /// The same on two tensors joined along the channels: the hidden state and a skip connection.
    ///
    /// # Shapes
    /// x: `[B, C_1, H, W]` and `[B, C_2, H, W]` with C_1 + C_2 = C_in.
    pub fn forward_of_two(
        &self,
        x: [Tensor<4>; 2],
        temb_silu: Option<&Tensor<2>>,
        projection: Option<Tensor<2>>,
    ) -> Tensor<4> {
        let h = self.conv1.forward_normalised(&self.norm1, GroupNormInput::of_two(x.clone()));
        let x = match &self.conv_shortcut {
            Some(conv_shortcut) => conv_shortcut.forward_pointwise_of_two(x),
            None => Tensor::cat(x.to_vec(), 1),
        };
        self.behind_conv1(h, x, temb_silu, projection)
    }

    /// From the first convolution's output `h` and the residual `x`.
    fn behind_conv1(
        &self,
        h: Tensor<4>,
        x: Tensor<4>,
        temb_silu: Option<&Tensor<2>>,
        projection: Option<Tensor<2>>,
    ) -> Tensor<4> {
        let conv2 = projected(&self.conv2, projection);
        let time = match (&self.time_emb_proj, temb_silu) {
            (Some(time_emb_proj), Some(temb_silu)) => {
                Some(time_emb_proj.forward(temb_silu.clone()))
            }
            (None, None) => None,
            _ => panic!("a time embedding and a layer for it come together"),
        };
        let h = match (time, self.time_scale_shift) {
            (None, _) => conv2.forward_normalised(&self.norm2, h),
            (Some(time), TimeScaleShift::Default) => {
                conv2.forward_normalised(&self.norm2, GroupNormInput::shifted(h, time))
            }
            (Some(time), TimeScaleShift::ScaleShift) => {
                let [b, channels] = time.dims();
                let time = time.reshape([b, channels, 1, 1]);
                let c = channels / 2;
                let (scale, shift) = (time.clone().narrow(1, 0, c), time.narrow(1, c, c));
                conv2.forward(activation::silu(self.norm2.forward(h) * (scale + 1.0) + shift))
            }
        };
        divided(x + h, self.output_scale_factor)
    }
}

/// Halves height and width by a 3x3 convolution of stride 2.
#[derive(Module, Debug)]
pub struct Downsample2D {
    /// 3x3, stride 2.
    pub conv: Conv2d,
}

impl Downsample2D {
    pub(crate) fn new(channels: usize, geometry: ConvGeometry, init: &mut Init) -> Self {
        Self { conv: Conv2d::new(channels, channels, 3, geometry, init) }
    }

    /// With a `projection` (`[C, C]`), it acts right behind the convolution.
    ///
    /// # Shapes
    /// `[B, C, H, W]` to `[B, C, H/2, W/2]`.
    pub fn forward(&self, x: Tensor<4>, projection: Option<Tensor<2>>) -> Tensor<4> {
        projected(&self.conv, projection).forward(x)
    }
}

/// Doubles height and width by repeating pixels, then a 3x3 convolution.
#[derive(Module, Debug)]
pub struct Upsample2D {
    /// 3x3.
    pub conv: Conv2d,
}

impl Upsample2D {
    pub(crate) fn new(channels: usize, init: &mut Init) -> Self {
        Self { conv: Conv2d::new(channels, channels, 3, ConvGeometry::same(3), init) }
    }

    /// With a `projection` (`[C, C]`), it acts right behind the convolution.
    ///
    /// # Shapes
    /// `[B, C, H, W]` to `[B, C, 2H, 2W]`.
    pub fn forward(&self, x: Tensor<4>, projection: Option<Tensor<2>>) -> Tensor<4> {
        let nearest =
            InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
        projected(&self.conv, projection).forward(module::interpolate(x, nearest))
    }
}

/// `x / divisor`, without a pass over memory for the usual divisor 1.
pub(crate) fn divided(x: Tensor<4>, divisor: f64) -> Tensor<4> {
    if divisor == 1.0 { x } else { x / divisor }
}
