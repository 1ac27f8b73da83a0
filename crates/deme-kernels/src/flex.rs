//! The kernels on Burn's CPU tensors: from tensors to slices and back.

use crate::cpu::buffer::SharedOutput;
use crate::cpu::conv::{self, ConvShape};
use crate::cpu::group_norm::{self, GroupNormShape};
use crate::extension::CpuKernels;
use crate::{Activation, ConvGeometry};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Bytes, DType, Flex, Shape, TensorMetadata};
use std::mem::MaybeUninit;

/// The same tensor with its entries in row-major order.
pub(crate) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() {
        return x;
    }
    x.to_contiguous()
}

/// The entries of a tensor made by [`contiguous`].
pub(crate) fn entries(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("f32, and made contiguous before")
}

/// A tensor owning `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    let layout = Layout::contiguous(shape.into());
    assert_eq!(layout.num_elements(), values.len());
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// A vector of `len` values written by `fill`, without zeroing it first.
///
/// # Safety
/// `fill` must write every entry of its slice.
pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and the caller's `fill` wrote every entry.
    unsafe { values.set_len(len) };
    values
}

fn group_norm_shape(x: &FlexTensor, groups: usize) -> GroupNormShape {
    let shape = x.shape();
    let (images, channels) = (shape[0], shape[1]);
    assert!(
        groups > 0 && channels.is_multiple_of(groups),
        "{channels} channels do not divide into {groups} groups"
    );
    let area = shape[2..].iter().product();
    GroupNormShape { images, channels, area, groups }
}

fn conv_shape(x: &FlexTensor, weight: &FlexTensor, geometry: ConvGeometry) -> ConvShape {
    let (x, weight) = (x.shape(), weight.shape());
    let (h, w, kernel) = (x[2], x[3], weight[2]);
    assert_eq!(weight[3], kernel, "a square kernel");
    assert_eq!(x[1], weight[1], "channels of the input, and those of the weight {weight:?}");
    let out = |length| {
        let out = geometry.output_len(length, kernel);
        out.unwrap_or_else(|| panic!("a {kernel}x{kernel} kernel on {h}x{w}, {geometry:?}"))
    };
    ConvShape {
        images: x[0],
        c_in: x[1],
        c_out: weight[0],
        h,
        w,
        kernel,
        stride: geometry.stride,
        padding_begin: geometry.padding_begin,
        h_out: out(h),
        w_out: out(w),
    }
}

impl CpuKernels for Flex {
    fn group_norm_forward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        groups: usize,
        eps: f64,
        activation: Activation,
    ) -> (FlexTensor, FlexTensor) {
        let shape = group_norm_shape(&x, groups);
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let silu = activation == Activation::Silu;
        let mut stats = vec![[0.0f32; 2]; shape.images * groups];
        let (w, b) = (entries(&weight), entries(&bias));
        let x_entries = entries(&x);
        // SAFETY: `forward` writes one y for every x.
        let y = unsafe {
            filled(x_entries.len(), |y| {
                group_norm::forward(shape, x_entries, w, b, eps, silu, y, &mut stats);
            })
        };
        let stats = tensor(stats.into_flattened(), [shape.images, groups, 2]);
        (tensor(y, x.shape()), stats)
    }

    fn group_norm_backward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        stats: FlexTensor,
        groups: usize,
        activation: Activation,
        dy: FlexTensor,
    ) -> [FlexTensor; 3] {
        let shape = group_norm_shape(&x, groups);
        let [x, weight, bias, dy] = [x, weight, bias, dy].map(contiguous);
        let silu = activation == Activation::Silu;
        let (stats, _) = entries(&stats).as_chunks::<2>();
        let (w, b, dy) = (entries(&weight), entries(&bias), entries(&dy));
        let x_entries = entries(&x);
        let mut grads = [Vec::new(), Vec::new()];
        // SAFETY: `backward` writes one dx for every x.
        let dx = unsafe {
            filled(x_entries.len(), |dx| {
                grads = group_norm::backward(shape, x_entries, w, b, stats, silu, dy, dx);
            })
        };
        let [dweight, dbias] = grads.map(|grad| tensor(grad, [shape.channels]));
        [tensor(dx, x.shape()), dweight, dbias]
    }

    fn conv2d_forward(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        geometry: ConvGeometry,
    ) -> FlexTensor {
        let s = conv_shape(&x, &weight, geometry);
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let (x, weight, bias) = (entries(&x), entries(&weight), entries(&bias));
        // SAFETY: `forward` writes all of y, which nobody else knows yet.
        let y = unsafe {
            filled(s.y_len(), |y| conv::forward(&s, x, weight, bias, SharedOutput::uninit(y)))
        };
        tensor(y, [s.images, s.c_out, s.h_out, s.w_out])
    }

    fn conv2d_backward(
        x: FlexTensor,
        weight: FlexTensor,
        geometry: ConvGeometry,
        dy: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let s = conv_shape(&x, &weight, geometry);
        let [x_shape, weight_shape] = [x.shape(), weight.shape()];
        let [x, weight, dy] = [x, weight, dy].map(contiguous);
        let (x, weight, dy) = (entries(&x), entries(&weight), entries(&dy));
        let dx = wanted[0].then(|| {
            // SAFETY: `input_gradient` writes all of dx, which nobody else knows yet.
            let dx = unsafe {
                filled(s.x_len(), |dx| {
                    conv::input_gradient(&s, weight, dy, SharedOutput::uninit(dx));
                })
            };
            tensor(dx, x_shape)
        });
        let dweight = wanted[1].then(|| tensor(conv::weight_gradient(&s, x, dy), weight_shape));
        let dbias = wanted[2].then(|| {
            let dbias = conv::bias_gradient(s.images, s.c_out, s.h_out * s.w_out, dy);
            tensor(dbias, [s.c_out])
        });
        [dx, dweight, dbias]
    }
}
