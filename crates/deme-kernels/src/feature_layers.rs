//! The layers of convolutional feature extractors, forward only: convolution with ReLU, pooling,
//! joining along the channels.
//!
//! Batch norm of a trained network is a factor and a sum per channel: the caller multiplies them into
//! the weight and the bias.
//!
//! Not here: layers that are trained (`conv2d`, `group_norm`), networks.

use crate::plain;
use burn::tensor::Tensor;

/// The window that a convolution or a pooling moves over a map: `[rows, columns]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Size of the window.
    pub kernel: [usize; 2],
    /// Distance of neighbouring windows.
    pub stride: [usize; 2],
    /// Rows above and below the map, columns before and behind it, that the windows may cover.
    pub padding: [usize; 2],
}

impl Window {
    /// Windows of `kernel` x `kernel`.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2] }
    }

    /// Height and width of the result on a map of `[height, width]`, or `None` when the padded map is
    /// smaller than the window.
    pub fn output_size(&self, map: [usize; 2]) -> Option<[usize; 2]> {
        let mut out = [0; 2];
        for (i, out) in out.iter_mut().enumerate() {
            let room = (map[i] + 2 * self.padding[i]).checked_sub(self.kernel[i])?;
            *out = room / self.stride[i] + 1;
        }
        Some(out)
    }
}

/// What an average divides by where its window covers padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AverageOver {
    /// The entries of the map in the window (torch's `count_include_pad=False`).
    Map,
    /// All of the window (`count_include_pad=True`).
    Window,
}

/// `relu(conv(x, weight) + bias)` with zero padding. Of a layer that is used again [`ConvRelu`]
/// keeps the prepared weight.
///
/// # Shapes
/// x: `[B, C_in, H, W]`; weight: `[C_out, C_in, kh, kw]`; bias: `[C_out]`; returns
/// `[B, C_out, H', W']`.
pub fn conv2d_relu(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
) -> Tensor<4> {
    plain::conv2d_relu(x, weight, bias, stride, padding)
}

/// [`conv2d_relu`] with a weight that was prepared once.
#[derive(Debug, Clone)]
pub struct ConvRelu {
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
}

impl ConvRelu {
    /// Prepares a layer. weight: `[C_out, C_in, kh, kw]`; bias: `[C_out]`.
    pub fn new(
        weight: Tensor<4>,
        bias: Tensor<1>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Self {
        Self { weight, bias, stride, padding }
    }

    /// `relu(conv(x, weight) + bias)`: `[B, C_in, H, W]` to `[B, C_out, H', W']`, on the device that
    /// the weight was on.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        conv2d_relu(x, self.weight.clone(), self.bias.clone(), self.stride, self.padding)
    }
}

/// Maps of one size joined along the channels, of which convolutions write theirs in place.
#[derive(Debug, Clone, Default)]
pub struct ChannelConcat {
    parts: Vec<Tensor<4>>,
}

impl ChannelConcat {
    /// Nothing yet; all parts together will have `channels` channels.
    pub fn new(channels: usize) -> Self {
        let _ = channels;
        Self::default()
    }

    /// Adds what `layer` makes of `x`.
    pub fn conv(self, layer: &ConvRelu, x: Tensor<4>) -> Self {
        let y = layer.forward(x);
        self.map(y)
    }

    /// Adds `x` as it is.
    pub fn map(mut self, x: Tensor<4>) -> Self {
        self.parts.push(x);
        self
    }

    /// The parts in the order they were added: `[B, channels, H, W]`.
    pub fn finish(self) -> Tensor<4> {
        Tensor::cat(self.parts, 1)
    }
}

/// The largest value of each window; padding counts as minus infinity.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C, H', W']`.
pub fn max_pool2d(x: Tensor<4>, window: Window) -> Tensor<4> {
    plain::max_pool2d(x, window)
}

/// The mean of each window.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C, H', W']`.
pub fn avg_pool2d(x: Tensor<4>, window: Window, over: AverageOver) -> Tensor<4> {
    plain::avg_pool2d(x, window, over)
}

/// The mean of each channel over the map.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C]`.
pub fn global_avg_pool2d(x: Tensor<4>) -> Tensor<2> {
    plain::global_avg_pool2d(x)
}
