//! The layers of convolutional feature extractors, forward only: convolution with ReLU, pooling,
//! joining along the channels.
//!
//! Batch norm of a trained network is a factor and a sum per channel: the caller multiplies them into
//! the weight and the bias.
//!
//! On the CPU the maps between two of these layers lie in memory as pixels of channels: ordinary tensors
//! `[B, C, H, W]`, but with the strides of `[B, H, W, C]`. The first layer takes the picture's planes; any
//! other operation may follow, at the cost of a copy where it needs the usual order.
//!
//! Not here: layers that are trained (`conv2d`, `group_norm`), networks.

use crate::cpu;
use crate::cpu::buffer::SharedOutput;
use crate::cpu::channels_last::{ConvLayer, ConvSizes, Maps, Pooling, Target};
use crate::extension::{from_cpu, into_cpu, on_plain_cpu};
use crate::flex::{channels_last, entries, filled, planes_of_pixels, tensor};
use crate::plain;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    if on_plain_cpu(&x) {
        ConvRelu::new(weight, bias, stride, padding).forward(x)
    } else {
        plain::conv2d_relu(x, weight, bias, stride, padding)
    }
}

/// [`conv2d_relu`] with a weight that was prepared once.
#[derive(Debug, Clone)]
pub struct ConvRelu {
    weight: Weight,
}

#[derive(Debug, Clone)]
enum Weight {
    Prepared(Arc<ConvLayer>),
    Plain(Box<PlainConv>),
}

#[derive(Debug, Clone)]
struct PlainConv {
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
}

impl ConvRelu {
    /// Prepares a layer. weight: `[C_out, C_in, kh, kw]`; bias: `[C_out]`.
    ///
    /// On the CPU the algorithm is chosen here, by the layer's sizes and
    /// [`crate::set_conv_algorithm`].
    pub fn new(
        weight: Tensor<4>,
        bias: Tensor<1>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Self {
        let [c_out, c_in, kh, kw] = weight.dims();
        assert_eq!(bias.dims(), [c_out], "entries of the bias");
        if !(on_plain_cpu(&weight) && on_plain_cpu(&bias)) {
            let plain = PlainConv { weight, bias, stride, padding };
            return Self { weight: Weight::Plain(Box::new(plain)) };
        }
        let sizes = ConvSizes { c_in, c_out, window: Window { kernel: [kh, kw], stride, padding } };
        let values = |x| crate::flex::contiguous(x);
        let (weight, bias) = (values(on_cpu_tensor(weight)), values(on_cpu_tensor(bias)));
        let fast = cpu::conv::WINOGRAD.load(Ordering::Relaxed);
        let layer = ConvLayer::new(sizes, entries(&weight), entries(&bias), fast);
        Self { weight: Weight::Prepared(Arc::new(layer)) }
    }

    /// `relu(conv(x, weight) + bias)`: `[B, C_in, H, W]` to `[B, C_out, H', W']`.
    ///
    /// # Panics
    /// When `x` is not on the device and of the kind (float type, autodiff) that the weight was of.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.weight {
            Weight::Prepared(layer) => {
                let (x, maps) = pixels(x);
                let out = layer.output(maps);
                // SAFETY: `forward` writes all channels of all pixels.
                let y = unsafe {
                    filled(out.len(), |y| {
                        let y = SharedOutput::uninit(y);
                        let target = Target { out: y, stride: out.channels, first: 0 };
                        layer.forward(entries(&x), maps, target);
                    })
                };
                from_pixels(y, out)
            }
            Weight::Plain(layer) => {
                let PlainConv { weight, bias, stride, padding } = PlainConv::clone(layer);
                plain::conv2d_relu(x, weight, bias, stride, padding)
            }
        }
    }
}

/// Maps of one size joined along the channels, of which layers write theirs in place.
#[derive(Debug)]
pub struct ChannelConcat {
    channels: usize,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    None,
    /// Pixels of all channels, of which the first `done` are written.
    Kernels {
        maps: Maps,
        values: Vec<MaybeUninit<f32>>,
        done: usize,
    },
    Plain(Vec<Tensor<4>>),
}

impl ChannelConcat {
    /// Nothing yet; all parts together will have `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { channels, parts: Parts::None }
    }

    /// Adds what `layer` makes of `x`.
    pub fn conv(self, layer: &ConvRelu, x: Tensor<4>) -> Self {
        match &layer.weight {
            Weight::Prepared(layer) => {
                let (x, maps) = pixels(x);
                // SAFETY: `forward` writes all channels of all pixels.
                unsafe { self.add(layer.output(maps), |y| layer.forward(entries(&x), maps, y)) }
            }
            Weight::Plain(_) => self.add_plain(layer.forward(x)),
        }
    }

    /// Adds [`max_pool2d`] of `x`.
    pub fn max_pool2d(self, x: Tensor<4>, window: Window) -> Self {
        if !on_plain_cpu(&x) {
            return self.add_plain(plain::max_pool2d(x, window));
        }
        let (x, maps) = pixels(x);
        let out = pooled(maps, window);
        let pooling = Pooling::Max;
        // SAFETY: `pool` writes all channels of all pixels.
        unsafe {
            self.add(out, |y| cpu::channels_last::pool(pooling, window, entries(&x), maps, out, y))
        }
    }

    /// Adds `x` as it is.
    pub fn map(self, x: Tensor<4>) -> Self {
        if !on_plain_cpu(&x) {
            return self.add_plain(x);
        }
        let (x, maps) = pixels(x);
        // SAFETY: `copy` writes all channels of all pixels.
        unsafe { self.add(maps, |y| cpu::channels_last::copy(entries(&x), maps, y)) }
    }

    /// The parts in the order they were added: `[B, channels, H, W]`.
    ///
    /// # Panics
    /// When there are more or fewer channels than were announced, or maps of different sizes.
    pub fn finish(self) -> Tensor<4> {
        let (x, channels) = match self.parts {
            Parts::None => panic!("a joined map of no parts"),
            Parts::Plain(parts) => {
                let x = Tensor::cat(parts, 1);
                let channels = x.dims()[1];
                (x, channels)
            }
            Parts::Kernels { maps, values, done } => {
                assert_eq!(done, self.channels, "channels of the parts");
                // SAFETY: the parts have written all channels of all pixels; a MaybeUninit<f32> has
                // the layout of an f32.
                let values = unsafe {
                    let mut values = std::mem::ManuallyDrop::new(values);
                    let (len, capacity) = (values.len(), values.capacity());
                    Vec::from_raw_parts(values.as_mut_ptr().cast::<f32>(), len, capacity)
                };
                (from_pixels(values, maps), done)
            }
        };
        assert_eq!(channels, self.channels, "channels of the parts");
        x
    }

    fn add_plain(self, x: Tensor<4>) -> Self {
        let parts = match self.parts {
            Parts::None => vec![x],
            Parts::Plain(mut parts) => {
                parts.push(x);
                parts
            }
            Parts::Kernels { .. } => panic!("parts on different devices"),
        };
        Self { parts: Parts::Plain(parts), ..self }
    }

    /// Adds `maps` that `write` writes.
    ///
    /// # Safety
    /// `write` must write all channels of all pixels.
    unsafe fn add(self, maps: Maps, write: impl FnOnce(Target<'_>)) -> Self {
        let Self { channels, parts } = self;
        let (all, mut values, done) = match parts {
            Parts::None => {
                let all = Maps { channels, ..maps };
                let mut values = Vec::with_capacity(all.len());
                // SAFETY: an uninitialised MaybeUninit is a valid one.
                unsafe { values.set_len(all.len()) };
                (all, values, 0)
            }
            Parts::Kernels { maps, values, done } => (maps, values, done),
            Parts::Plain(_) => panic!("parts on different devices"),
        };
        assert_eq!(Maps { channels, ..maps }, all, "sizes of the joined maps");
        assert!(done + maps.channels <= channels, "more than the {channels} channels announced");
        let out = SharedOutput::uninit(&mut values);
        write(Target { out, stride: channels, first: done });
        let done = done + maps.channels;
        Self { channels, parts: Parts::Kernels { maps: all, values, done } }
    }
}

/// The largest value of each window; padding counts as minus infinity, and is at most half the window.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C, H', W']`.
pub fn max_pool2d(x: Tensor<4>, window: Window) -> Tensor<4> {
    if on_plain_cpu(&x) { pool(x, window, Pooling::Max) } else { plain::max_pool2d(x, window) }
}

/// The mean of each window; padding is at most half the window.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C, H', W']`.
pub fn avg_pool2d(x: Tensor<4>, window: Window, over: AverageOver) -> Tensor<4> {
    if on_plain_cpu(&x) {
        pool(x, window, Pooling::Average(over))
    } else {
        plain::avg_pool2d(x, window, over)
    }
}

/// The mean of each channel over the map.
///
/// # Shapes
/// `[B, C, H, W]` to `[B, C]`.
pub fn global_avg_pool2d(x: Tensor<4>) -> Tensor<2> {
    if !on_plain_cpu(&x) {
        return plain::global_avg_pool2d(x);
    }
    let [h, w] = [x.dims()[2], x.dims()[3]];
    let window = Window { kernel: [h, w], stride: [1, 1], padding: [0, 0] };
    let x = pool(x, window, Pooling::Average(AverageOver::Map));
    let [b, c, ..] = x.dims();
    x.reshape([b, c])
}

fn pool(x: Tensor<4>, window: Window, pooling: Pooling) -> Tensor<4> {
    let (x, maps) = pixels(x);
    let out = pooled(maps, window);
    // SAFETY: `pool` writes all channels of all pixels.
    let y = unsafe {
        filled(out.len(), |y| {
            let y = Target { out: SharedOutput::uninit(y), stride: out.channels, first: 0 };
            cpu::channels_last::pool(pooling, window, entries(&x), maps, out, y);
        })
    };
    from_pixels(y, out)
}

fn pooled(maps: Maps, window: Window) -> Maps {
    let out = window.output_size([maps.h, maps.w]);
    let [h, w] = out.unwrap_or_else(|| panic!("{window:?} on {}x{}", maps.h, maps.w));
    Maps { h, w, ..maps }
}

fn on_cpu_tensor<const D: usize>(x: Tensor<D>) -> FlexTensor {
    into_cpu(x).expect("`on_plain_cpu` was asked before")
}

/// A tensor as pixels of channels; as it is when a layer of this module has made it.
fn pixels(x: Tensor<4>) -> (FlexTensor, Maps) {
    assert!(on_plain_cpu(&x), "a layer prepared for f32 on the CPU without autodiff");
    let [images, channels, h, w] = x.dims();
    (channels_last(on_cpu_tensor(x)), Maps { images, channels, h, w })
}

fn from_pixels(values: Vec<f32>, maps: Maps) -> Tensor<4> {
    let Maps { images, channels, h, w } = maps;
    from_cpu(planes_of_pixels(tensor(values, [images, h, w, channels])))
}
