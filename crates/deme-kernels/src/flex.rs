//! The kernels on Burn's CPU tensors: from tensors to slices and back.

use crate::cpu::attention::{self, AttentionShape, HeadRows, Places};
use crate::cpu::buffer::SharedOutput;
use crate::cpu::conv::{self, ConvShape};
use crate::cpu::group_norm::{self, GroupNormShape};
use crate::cpu::linear::{self, LinearShape};
use crate::cpu::optimizer;
use crate::cpu::pointwise_conv::{self, PointwiseShape};
use crate::cpu::transpose::planes_to_pixels;
use crate::extension::CpuKernels;
use crate::{Activation, AdamWStep, ConvGeometry, GroupNormSettings, ParameterState};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Bytes, DType, Flex, Shape, TensorMetadata};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The same tensor with its entries in row-major order.
pub(crate) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() {
        return x;
    }
    match swapped(&x) {
        Some(swapped) => tensor(transposed(&swapped), x.shape()),
        None => rows_in_order(&x).unwrap_or_else(|| x.to_contiguous()),
    }
}

/// A copy in row-major order of a tensor whose last dimension is, row by row on all threads.
fn rows_in_order(x: &FlexTensor) -> Option<FlexTensor> {
    let (shape, strides) = (x.shape(), x.layout().strides());
    let (row, leading) = (*shape.last()?, shape.num_dims() - 1);
    let forward = strides.iter().all(|&stride| stride >= 0);
    if strides[leading] != 1 || row < SHORTEST_ROW || !forward || x.dtype() != DType::F32 {
        return None;
    }
    let values = x.storage::<f32>();
    let row_at = |number: usize| {
        let (mut rest, mut start) = (number, x.layout().start_offset());
        for dim in (0..leading).rev() {
            start += rest % shape[dim] * strides[dim] as usize;
            rest /= shape[dim];
        }
        &values[start..start + row]
    };
    let rows: usize = shape[..leading].iter().product();
    // SAFETY: every row of the result is written, and they cover it.
    let copied = unsafe {
        filled(rows * row, |to| {
            to.par_chunks_mut(row).with_min_len(ROWS_PER_TASK).enumerate().for_each(|(i, to)| {
                to.write_copy_of_slice(row_at(i));
            });
        })
    };
    Some(tensor(copied, shape))
}

/// Rows that are worth copying one by one.
const SHORTEST_ROW: usize = 8;
/// Rows that are worth a task.
const ROWS_PER_TASK: usize = 256;

/// A tensor whose last two dimensions are swapped in memory, seen as it lies there.
fn swapped(x: &FlexTensor) -> Option<FlexTensor> {
    let dims = x.shape().num_dims();
    let swapped = (dims >= 2).then(|| x.transpose(dims - 2, dims - 1))?;
    swapped.as_slice::<f32>().is_some().then_some(swapped)
}

/// A tensor `[B, C, H, W]` as `[B, H, W, C]` in row-major order.
pub(crate) fn channels_last(x: FlexTensor) -> FlexTensor {
    let pixels = x.permute(&[0, 2, 3, 1]);
    if pixels.as_slice::<f32>().is_some() {
        return pixels;
    }
    let shape = pixels.shape();
    let (area, channels) = (shape[1] * shape[2], shape[3]);
    let x = contiguous(x);
    let mut to = vec![0.0; shape.num_elements()];
    let image = (area * channels).max(1);
    to.par_chunks_mut(image).zip(entries(&x).par_chunks(image)).for_each(|(to, x)| {
        planes_to_pixels(x, area, channels, area, to, |pixel| pixel * channels);
    });
    tensor(to, shape)
}

/// The reverse of [`channels_last`], without moving an entry.
pub(crate) fn planes_of_pixels(x: FlexTensor) -> FlexTensor {
    x.permute(&[0, 3, 1, 2])
}

/// The entries of a contiguous tensor with the last two dimensions swapped.
pub(crate) fn transposed(x: &FlexTensor) -> Vec<f32> {
    let shape = x.shape();
    let dims = shape.num_dims();
    let (rows, columns) = (shape[dims - 2], shape[dims - 1]);
    let x = entries(x);
    let mut to = vec![0.0; x.len()];
    let matrix = (rows * columns).max(1);
    to.par_chunks_mut(matrix).zip(x.par_chunks(matrix)).for_each(|(to, x)| {
        planes_to_pixels(x, columns, rows, columns, to, |column| column * rows);
    });
    to
}

/// The same tensor with the last two dimensions swapped in memory, where `like` has them so: what
/// follows then undoes the swap without a copy.
fn stored_like(like: &FlexTensor, x: FlexTensor) -> FlexTensor {
    if like.as_slice::<f32>().is_some() || swapped(like).is_none() {
        return x;
    }
    let mut shape = x.shape();
    let dims = shape.num_dims();
    shape.swap(dims - 2, dims - 1);
    tensor(transposed(&x), shape).transpose(dims - 2, dims - 1)
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

/// The same for two vectors that are written together.
///
/// # Safety
/// As for [`filled`], of both.
unsafe fn filled_two(lens: [usize; 2], fill: impl FnOnce([SharedOutput<'_>; 2])) -> [Vec<f32>; 2] {
    let mut second = Vec::new();
    // SAFETY: the caller's promise.
    let first = unsafe {
        filled(lens[0], |first| {
            second = filled(lens[1], |second| fill([first, second].map(SharedOutput::uninit)));
        })
    };
    [first, second]
}

fn group_norm_shape(x: &[FlexTensor; 2], groups: usize) -> GroupNormShape {
    let [shape, more] = x.each_ref().map(|x| x.shape());
    assert_eq!([shape[0], shape[2], shape[3]], [more[0], more[2], more[3]], "images and maps");
    let (images, channels) = (shape[0], shape[1] + more[1]);
    assert!(
        groups > 0 && channels.is_multiple_of(groups),
        "{channels} channels do not divide into {groups} groups"
    );
    let area = shape[2..].iter().product();
    GroupNormShape { images, channels, area, groups }
}

/// The kernel's view of contiguous parameters.
fn affine<'a>(
    weight: &'a FlexTensor,
    bias: &'a FlexTensor,
    settings: GroupNormSettings,
) -> group_norm::Affine<'a> {
    let silu = settings.activation == Activation::Silu;
    group_norm::Affine { weight: entries(weight), bias: entries(bias), silu }
}

/// The kernel's view of contiguous tensors.
fn group_norm_input<'a>(x: &'a [FlexTensor; 2], shift: &'a FlexTensor) -> group_norm::Input<'a> {
    group_norm::Input {
        parts: x.each_ref().map(entries),
        channels: x.each_ref().map(|x| x.shape()[1]),
        shift: Some(entries(shift)).filter(|shift| !shift.is_empty()),
    }
}

fn pointwise_shape(x: &[FlexTensor; 2], weight: &FlexTensor) -> PointwiseShape {
    let [shape, more] = x.each_ref().map(|x| x.shape());
    assert_eq!([shape[0], shape[2], shape[3]], [more[0], more[2], more[3]], "images and maps");
    let c_in = [shape[1], more[1]];
    let weight = weight.shape();
    let expected = [c_in[0] + c_in[1], 1, 1];
    assert_eq!(weight[1..], expected, "channels and kernel of the weight {weight:?}");
    PointwiseShape { images: shape[0], c_in, c_out: weight[0], area: shape[2..].iter().product() }
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

fn linear_shape(x: &FlexTensor, weight: &FlexTensor) -> LinearShape {
    let (x, weight) = (x.shape(), weight.shape());
    let (leading, d_in) = (&x[..x.num_dims() - 1], x[x.num_dims() - 1]);
    assert_eq!(d_in, weight[1], "features of the input, and those of the weight {weight:?}");
    LinearShape { rows: leading.iter().product(), d_in, d_out: weight[0] }
}

fn attention_shape(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    scale: f64,
    causal: bool,
) -> AttentionShape {
    let (q, k, v) = (q.shape(), k.shape(), v.shape());
    assert_eq!(q[..2], k[..2], "images and heads of queries and keys");
    assert_eq!(k[..3], v[..3], "images, heads and length of keys and values");
    assert_eq!(q[3], k[3], "width of queries and keys");
    AttentionShape {
        heads: q[0] * q[1],
        heads_per_image: q[1],
        queries: q[2],
        keys: k[2],
        d: q[3],
        d_v: v[3],
        scale: scale as f32,
        causal,
    }
}

/// Whether `[B, heads, L, d]` is stored as `[B, L, heads, d]`: split off the last dimension of a linear map's
/// output.
fn heads_together(x: &FlexTensor) -> bool {
    let swapped = x.transpose(1, 2);
    // One head, or one row, is stored the same either way.
    x.as_slice::<f32>().is_none() && swapped.as_slice::<f32>().is_some()
}

/// The rows of a tensor that is contiguous or [`heads_together`].
fn head_rows(x: &FlexTensor) -> HeadRows<'_> {
    let shape = x.shape();
    let (heads, rows, d) = (shape[1], shape[2], shape[3]);
    match x.as_slice::<f32>() {
        Some(values) => HeadRows { values, places: Places::apart(heads, rows, d) },
        None => {
            let start = x.layout().start_offset();
            let values = &x.storage::<f32>()[start..start + shape.num_elements()];
            HeadRows { values, places: Places::together(heads, rows, d) }
        }
    }
}

/// A tensor whose entries can be changed in place: itself when nobody shares it, else a copy.
fn owned(x: FlexTensor) -> FlexTensor {
    let whole = x.layout().start_offset() == 0
        && x.as_slice::<f32>().is_some_and(|entries| size_of_val(entries) == x.bytes().len());
    if whole && x.is_unique() {
        return x;
    }
    let x = contiguous(x);
    tensor(entries(&x).to_vec(), x.shape())
}

/// [`crate::adamw_steps`]: in place where the tensors are not shared.
pub(crate) fn adamw_steps(
    parameters: Vec<(ParameterState<FlexTensor>, FlexTensor)>,
    step: &AdamWStep,
) -> Vec<ParameterState<FlexTensor>> {
    let parameters =
        parameters.into_iter().map(|(state, grad)| (state.map(owned), contiguous(grad)));
    let (mut states, grads): (Vec<_>, Vec<_>) = parameters.unzip();
    let slices = states.iter_mut().map(|state| state.as_mut().map(FlexTensor::storage_mut));
    optimizer::adamw(step, slices.zip(grads.iter().map(entries)));
    states
}

/// [`crate::squared_norm`].
pub(crate) fn squared_norm(tensors: Vec<FlexTensor>) -> f64 {
    let tensors: Vec<FlexTensor> = tensors.into_iter().map(contiguous).collect();
    optimizer::squared_norm(&tensors.iter().map(entries).collect::<Vec<_>>())
}

impl CpuKernels for Flex {
    fn group_norm_forward(
        x: [FlexTensor; 2],
        shift: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        settings: GroupNormSettings,
    ) -> (FlexTensor, FlexTensor) {
        let shape = group_norm_shape(&x, settings.groups);
        let x = x.map(contiguous);
        let [shift, weight, bias] = [shift, weight, bias].map(contiguous);
        let mut stats = vec![[0.0f32; 2]; shape.images * shape.groups];
        let (input, affine) = (group_norm_input(&x, &shift), affine(&weight, &bias, settings));
        // SAFETY: `forward` writes one y for every x.
        let y = unsafe {
            filled(shape.len(), |y| {
                group_norm::forward(shape, &input, affine, settings.eps, y, &mut stats);
            })
        };
        let stats = tensor(stats.into_flattened(), [shape.images, shape.groups, 2]);
        let mut y_shape = x[0].shape();
        y_shape[1] = shape.channels;
        (tensor(y, y_shape), stats)
    }

    fn group_norm_forward_again(
        x: [FlexTensor; 2],
        shift: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        stats: FlexTensor,
        settings: GroupNormSettings,
    ) -> FlexTensor {
        let shape = group_norm_shape(&x, settings.groups);
        let x = x.map(contiguous);
        let [shift, weight, bias] = [shift, weight, bias].map(contiguous);
        let (stats, _) = entries(&stats).as_chunks::<2>();
        let (input, affine) = (group_norm_input(&x, &shift), affine(&weight, &bias, settings));
        // SAFETY: `forward_again` writes one y for every x.
        let y = unsafe {
            filled(shape.len(), |y| group_norm::forward_again(shape, &input, affine, stats, y))
        };
        let mut y_shape = x[0].shape();
        y_shape[1] = shape.channels;
        tensor(y, y_shape)
    }

    fn group_norm_backward(
        x: [FlexTensor; 2],
        shift: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        stats: FlexTensor,
        settings: GroupNormSettings,
        dy: FlexTensor,
    ) -> [FlexTensor; 5] {
        let shape = group_norm_shape(&x, settings.groups);
        let x = x.map(contiguous);
        let [shift, weight, bias, dy] = [shift, weight, bias, dy].map(contiguous);
        let (stats, _) = entries(&stats).as_chunks::<2>();
        let (input, affine) = (group_norm_input(&x, &shift), affine(&weight, &bias, settings));
        let dy = entries(&dy);
        let mut grads = None;
        // SAFETY: `backward` writes one dx for every x of both parts.
        let dx = unsafe {
            filled_two(input.parts.map(<[f32]>::len), |dx| {
                grads = Some(group_norm::backward(shape, &input, affine, stats, dy, dx));
            })
        };
        let grads = grads.expect("`filled_two` calls its function");
        let [dx, dmore] = dx;
        [
            tensor(dx, x[0].shape()),
            tensor(dmore, x[1].shape()),
            tensor(grads.shift, shift.shape()),
            tensor(grads.weight, [shape.channels]),
            tensor(grads.bias, [shape.channels]),
        ]
    }

    fn pointwise_conv_of_two_forward(
        x: [FlexTensor; 2],
        weight: FlexTensor,
        bias: FlexTensor,
    ) -> FlexTensor {
        let s = pointwise_shape(&x, &weight);
        let mut y_shape = x[0].shape();
        y_shape[1] = s.c_out;
        let x = x.map(contiguous);
        let [weight, bias] = [weight, bias].map(contiguous);
        let parts = x.each_ref().map(entries);
        let (weight, bias) = (entries(&weight), entries(&bias));
        // SAFETY: `forward` writes all of y, which nobody else knows yet.
        let y = unsafe {
            filled(s.images * s.c_out * s.area, |y| {
                pointwise_conv::forward(&s, parts, weight, bias, SharedOutput::uninit(y));
            })
        };
        tensor(y, y_shape)
    }

    fn pointwise_conv_of_two_backward(
        x: [FlexTensor; 2],
        weight: FlexTensor,
        dy: FlexTensor,
    ) -> [FlexTensor; 4] {
        let s = pointwise_shape(&x, &weight);
        let x = x.map(contiguous);
        let weight_shape = weight.shape();
        let [weight, dy] = [weight, dy].map(contiguous);
        let parts = x.each_ref().map(entries);
        let (weight, dy) = (entries(&weight), entries(&dy));
        // SAFETY: `input_gradient` writes all of both gradients, which nobody else knows yet.
        let [dx, dmore] = unsafe {
            filled_two(parts.map(<[f32]>::len), |dx| {
                pointwise_conv::input_gradient(&s, weight, dy, dx);
            })
        };
        let mut dweight = vec![0.0; weight.len()];
        pointwise_conv::weight_gradient(&s, parts, dy, &mut dweight);
        let dbias = conv::bias_gradient(s.images, s.c_out, s.area, dy);
        [
            tensor(dx, x[0].shape()),
            tensor(dmore, x[1].shape()),
            tensor(dweight, weight_shape),
            tensor(dbias, [s.c_out]),
        ]
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

    fn linear_forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        let s = linear_shape(&x, &weight);
        let mut shape = x.shape();
        let last = shape.num_dims() - 1;
        shape[last] = s.d_out;
        let [x, weight, bias] = [x, weight, bias].map(contiguous);
        let (x, weight, bias) = (entries(&x), entries(&weight), entries(&bias));
        // SAFETY: `forward` writes all of y, which nobody else knows yet.
        let y = unsafe {
            filled(s.rows * s.d_out, |y| {
                linear::forward(&s, x, weight, bias, SharedOutput::uninit(y));
            })
        };
        tensor(y, shape)
    }

    fn linear_backward(
        x: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        wanted: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let s = linear_shape(&x, &weight);
        let x_shape = x.shape();
        let [x, weight, dy] = [x, weight, dy].map(contiguous);
        let (x, weight, dy) = (entries(&x), entries(&weight), entries(&dy));
        let dx = wanted[0].then(|| {
            // SAFETY: `input_gradient` writes all of dx, which nobody else knows yet.
            let dx = unsafe {
                filled(x.len(), |dx| {
                    linear::input_gradient(&s, weight, dy, SharedOutput::uninit(dx));
                })
            };
            tensor(dx, x_shape)
        });
        let dweight =
            wanted[1].then(|| tensor(linear::weight_gradient(&s, x, dy), [s.d_out, s.d_in]));
        let dbias = wanted[2].then(|| tensor(linear::bias_gradient(&s, dy), [s.d_out]));
        [dx, dweight, dbias]
    }

    fn attention_forward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        scale: f64,
        causal: bool,
    ) -> FlexTensor {
        let s = attention_shape(&q, &k, &v, scale, causal);
        let mut shape = q.shape();
        shape[3] = s.d_v;
        let like = q.clone();
        let together = heads_together(&q);
        let inputs = [q, k, v].map(|x| if heads_together(&x) { x } else { contiguous(x) });
        let [q, k, v] = inputs.each_ref().map(head_rows);
        let heads = s.heads_per_image;
        let places = match together {
            true => Places::together(heads, s.queries, s.d_v),
            false => Places::apart(heads, s.queries, s.d_v),
        };
        // SAFETY: `forward` writes all of y, which nobody else knows yet.
        let y = unsafe {
            filled(s.heads * s.queries * s.d_v, |y| {
                attention::forward(&s, q, k, v, SharedOutput::uninit(y), places);
            })
        };
        if together {
            return tensor(y, [shape[0], shape[2], heads, s.d_v]).transpose(1, 2);
        }
        stored_like(&like, tensor(y, shape))
    }

    fn attention_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        scale: f64,
        causal: bool,
        dy: FlexTensor,
    ) -> [FlexTensor; 3] {
        let s = attention_shape(&q, &k, &v, scale, causal);
        let shapes = [q.shape(), k.shape(), v.shape()];
        let like = q.clone();
        let [q, k, v, dy] = [q, k, v, dy].map(contiguous);
        let (q, k, v, dy) = (entries(&q), entries(&k), entries(&v), entries(&dy));
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        // SAFETY: `backward` writes all of the three outputs, which nobody else knows yet.
        let dq = unsafe {
            filled(q.len(), |dq| {
                dk = filled(k.len(), |dk| {
                    dv = filled(v.len(), |dv| {
                        let outputs = [dq, dk, dv].map(SharedOutput::uninit);
                        attention::backward(&s, q, k, v, dy, outputs);
                    });
                });
            })
        };
        let [q_shape, k_shape, v_shape] = shapes;
        [(dq, q_shape), (dk, k_shape), (dv, v_shape)]
            .map(|(grad, shape)| stored_like(&like, tensor(grad, shape)))
    }
}
