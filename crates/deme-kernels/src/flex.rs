//! The kernels on Burn's CPU tensors: from tensors to slices and back.

use crate::Activation;
use crate::cpu::group_norm::{self, GroupNormShape};
use crate::extension::CpuKernels;
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
}
