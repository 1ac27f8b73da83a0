//! Kernel against plain path, forward alone and with backward: `cargo bench -p deme-kernels`.
//!
//! The sizes are those of small diffusion networks in training, of ddpm-cifar10-32, and of Inception-v3
//! (forward only).
#![allow(missing_docs, clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use deme_kernels::{
    Activation, AdamWStep, AverageOver, ConvGeometry, ConvRelu, GroupNormInput,
    GroupNormParameters, GroupNormSettings, ParameterState, Window, max_pool2d, plain,
};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use std::time::Duration;

fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| StandardNormal.sample(&mut rng)).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Times `f` on the inputs as they are, and with the backward pass to all of them.
fn both<const D: usize>(
    c: &mut Criterion,
    name: &str,
    id: &str,
    inputs: (Tensor<D>, Vec<Tensor<1>>),
    f: impl Fn(Tensor<D>, Vec<Tensor<1>>) -> Tensor<D>,
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(800));
    group.bench_function(BenchmarkId::new("forward", id), |b| {
        b.iter(|| f(inputs.0.clone(), inputs.1.clone()));
    });
    group.bench_function(BenchmarkId::new("with backward", id), |b| {
        b.iter(|| {
            let x = inputs.0.clone().autodiff().require_grad();
            let rest = inputs.1.iter().map(|t| t.clone().autodiff().require_grad()).collect();
            let y = f(x, rest);
            let g = y.clone().detach();
            (y * g).sum().backward()
        });
    });
    group.finish();
}

fn convolutions(c: &mut Criterion) {
    let sizes = [
        // batch, in, out, side, kernel, stride
        [16, 32, 32, 32, 3, 1],
        [16, 64, 64, 16, 3, 1],
        [32, 64, 64, 8, 3, 1],
        [32, 128, 128, 4, 3, 1],
        [8, 128, 128, 32, 3, 1],
        [8, 256, 256, 16, 3, 1],
        [8, 256, 256, 8, 3, 1],
        [16, 3, 32, 32, 3, 1],
        [16, 32, 3, 32, 3, 1],
        [16, 64, 64, 16, 3, 2],
        [16, 64, 128, 16, 1, 1],
    ];
    for [b, c_in, c_out, side, kernel, stride] in sizes {
        let geometry = match stride {
            1 => ConvGeometry::same(kernel),
            _ => ConvGeometry { stride, padding_begin: 0, padding_end: 1 },
        };
        let x = tensor(1, [b, c_in, side, side]);
        let shape = [c_out, c_in, kernel, kernel];
        let weight = tensor(2, [c_out * c_in * kernel * kernel]);
        let rest = vec![weight, tensor(3, [c_out])];
        let id = format!("{kernel}x{kernel}/{stride} {b}x{c_in}->{c_out} at {side}");
        let parts = |mut rest: Vec<Tensor<1>>| {
            let bias = rest.pop();
            (rest.remove(0).reshape(shape), bias)
        };
        both(c, "conv2d kernel", &id, (x.clone(), rest.clone()), |x, rest| {
            let (weight, bias) = parts(rest);
            deme_kernels::conv2d(x, weight, bias, geometry)
        });
        both(c, "conv2d plain", &id, (x, rest), |x, rest| {
            let (weight, bias) = parts(rest);
            plain::conv2d(x, weight, bias, geometry)
        });
    }
}

fn group_norms(c: &mut Criterion) {
    for [b, channels, side, groups] in [[16, 64, 16, 8], [8, 128, 32, 32], [32, 128, 4, 32]] {
        let x = tensor(1, [b, channels, side, side]);
        let rest = vec![tensor(2, [channels]), tensor(3, [channels])];
        let id = format!("{b}x{channels} at {side}, {groups} groups");
        type Norm = fn(GroupNormInput, GroupNormParameters) -> Tensor<4>;
        let settings = GroupNormSettings { groups, eps: 1e-5, activation: Activation::Silu };
        let norms: [(&str, Norm); 2] = [
            ("group_norm kernel", deme_kernels::group_norm),
            ("group_norm plain", plain::group_norm),
        ];
        for (name, norm) in norms {
            both(c, name, &id, (x.clone(), rest.clone()), |x, mut rest| {
                let (bias, weight) = (rest.pop().unwrap(), rest.pop().unwrap());
                norm(x.into(), GroupNormParameters { weight, bias, settings })
            });
        }
    }
}

/// What stands behind a skip connection and behind the time embedding: joined tensors, a shift, and the
/// convolution that a norm belongs to.
fn joined(c: &mut Criterion) {
    for [b, c_1, c_2, side] in [[16, 64, 32, 16], [8, 256, 128, 16]] {
        let (channels, c_out, groups) = (c_1 + c_2, c_1, 32);
        let x = tensor(1, [b, channels, side, side]);
        let id = format!("{b}x({c_1}+{c_2})->{c_out} at {side}");
        let parts = |x: Tensor<4>| [x.clone().narrow(1, 0, c_1), x.narrow(1, c_1, c_2)];
        let settings = GroupNormSettings { groups, eps: 1e-5, activation: Activation::Silu };
        let norm = |rest: &mut Vec<Tensor<1>>| {
            let (bias, weight) = (rest.pop().unwrap(), rest.pop().unwrap());
            GroupNormParameters { weight, bias, settings }
        };

        type Pointwise = fn([Tensor<4>; 2], Tensor<4>, Option<Tensor<1>>) -> Tensor<4>;
        let pointwise: [(&str, Pointwise); 2] = [
            ("pointwise_conv_of_two kernel", deme_kernels::pointwise_conv_of_two),
            ("pointwise_conv_of_two plain", plain::pointwise_conv_of_two),
        ];
        for (name, conv) in pointwise {
            let rest = vec![tensor(2, [c_out * channels]), tensor(3, [c_out])];
            both(c, name, &id, (x.clone(), rest), |x, mut rest| {
                let bias = rest.pop();
                conv(parts(x), rest.remove(0).reshape([c_out, channels, 1, 1]), bias)
            });
        }

        type Norm = fn(GroupNormInput, GroupNormParameters) -> Tensor<4>;
        let norms: [(&str, Norm); 2] = [
            ("group_norm of two kernel", deme_kernels::group_norm),
            ("group_norm of two plain", plain::group_norm),
        ];
        for (name, group_norm) in norms {
            let rest = vec![tensor(2, [channels]), tensor(3, [channels])];
            both(c, name, &id, (x.clone(), rest), |x, mut rest| {
                group_norm(GroupNormInput::of_two(parts(x)), norm(&mut rest))
            });
        }

        type NormedConv = fn(
            GroupNormInput,
            GroupNormParameters,
            Tensor<4>,
            Option<Tensor<1>>,
            ConvGeometry,
        ) -> Tensor<4>;
        let convs: [(&str, NormedConv); 2] = [
            ("shifted group_norm_conv2d kernel", deme_kernels::group_norm_conv2d),
            ("shifted group_norm_conv2d plain", plain::group_norm_conv2d),
        ];
        for (name, conv) in convs {
            let kernel = tensor(2, [c_out * channels * 9]);
            let shift = tensor(4, [b * channels]);
            let rest = vec![
                kernel,
                tensor(3, [c_out]),
                shift,
                tensor(5, [channels]),
                tensor(6, [channels]),
            ];
            both(c, name, &id, (x.clone(), rest), |x, mut rest| {
                let norm = norm(&mut rest);
                let shift = rest.pop().unwrap().reshape([b, channels]);
                let bias = rest.pop();
                let weight = rest.remove(0).reshape([c_out, channels, 3, 3]);
                let x = GroupNormInput::shifted(x, shift);
                conv(x, norm, weight, bias, ConvGeometry::same(3))
            });
        }
    }
}

fn attentions(c: &mut Criterion) {
    for [b, heads, l, d] in [[16, 1, 256, 64], [16, 8, 64, 8], [8, 1, 256, 256]] {
        let shape = [b, heads, l, d];
        let n = b * heads * l * d;
        let x = tensor(1, shape);
        let rest = vec![tensor(2, [n]), tensor(3, [n])];
        let id = format!("{b}x{heads}, {l} of {d}");
        type Attention = fn(Tensor<4>, Tensor<4>, Tensor<4>, f64, bool) -> Tensor<4>;
        let both_paths: [(&str, Attention); 2] =
            [("attention kernel", deme_kernels::attention), ("attention plain", plain::attention)];
        for (name, attention) in both_paths {
            both(c, name, &id, (x.clone(), rest.clone()), |q, mut rest| {
                let v = rest.pop().unwrap().reshape(shape);
                attention(q, rest.pop().unwrap().reshape(shape), v, 0.125, false)
            });
        }
    }
}

fn linears(c: &mut Criterion) {
    for [rows, d_in, d_out] in [[16, 128, 512], [4096, 64, 64], [16, 512, 512]] {
        let x = tensor(1, [rows, d_in]);
        let rest = vec![tensor(2, [d_out * d_in]), tensor(3, [d_out])];
        let id = format!("{rows}x{d_in}->{d_out}");
        type Linear = fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>) -> Tensor<2>;
        let both_paths: [(&str, Linear); 2] =
            [("linear kernel", deme_kernels::linear::<2>), ("linear plain", plain::linear::<2>)];
        for (name, linear) in both_paths {
            both(c, name, &id, (x.clone(), rest.clone()), |x, mut rest| {
                let bias = rest.pop();
                linear(x, rest.pop().unwrap().reshape([d_out, d_in]), bias)
            });
        }
    }
}

/// Layers of Inception-v3. The kernels read and write maps as they lie between two of its layers.
fn feature_layers(c: &mut Criterion) {
    const BATCH: usize = 4;
    let mut group = c.benchmark_group("feature layers");
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(800));
    let between_layers = |x: &Tensor<4>| max_pool2d(x.clone(), Window::square(1, 1, 0));
    let convs = [
        // in, side, out, kernel, stride, padding
        (3, 299, 32, [3, 3], 2, [0, 0]),
        (32, 149, 32, [3, 3], 1, [0, 0]),
        (32, 147, 64, [3, 3], 1, [1, 1]),
        (64, 73, 80, [1, 1], 1, [0, 0]),
        (80, 73, 192, [3, 3], 1, [0, 0]),
        (288, 35, 64, [1, 1], 1, [0, 0]),
        (48, 35, 64, [5, 5], 1, [2, 2]),
        (64, 35, 96, [3, 3], 1, [1, 1]),
        (96, 35, 96, [3, 3], 1, [1, 1]),
        (288, 35, 384, [3, 3], 2, [0, 0]),
        (768, 17, 192, [1, 1], 1, [0, 0]),
        (128, 17, 128, [1, 7], 1, [0, 3]),
        (192, 17, 192, [7, 1], 1, [3, 0]),
        (192, 17, 320, [3, 3], 2, [0, 0]),
        (2048, 8, 448, [1, 1], 1, [0, 0]),
        (384, 8, 384, [1, 3], 1, [0, 1]),
        (448, 8, 384, [3, 3], 1, [1, 1]),
    ];
    for (c_in, side, c_out, kernel, stride, padding) in convs {
        let x = tensor(1, [BATCH, c_in, side, side]).clamp_min(0.0);
        let weight = tensor(2, [c_out, c_in, kernel[0], kernel[1]]);
        let bias = tensor(3, [c_out]);
        let [kh, kw] = kernel;
        let id = format!("{kh}x{kw}/{stride} {BATCH}x{c_in}->{c_out} at {side}");
        let stride = [stride; 2];
        let layer = ConvRelu::new(weight.clone(), bias.clone(), stride, padding);
        let pixels = between_layers(&x);
        group.bench_function(BenchmarkId::new("conv2d_relu kernel", &id), |b| {
            b.iter(|| layer.forward(pixels.clone()));
        });
        group.bench_function(BenchmarkId::new("conv2d_relu plain", &id), |b| {
            b.iter(|| {
                let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
                plain::conv2d_relu(x, weight, bias, stride, padding)
            });
        });
    }
    for (channels, side) in [(64, 147), (768, 17)] {
        let x = tensor(1, [BATCH, channels, side, side]);
        let pixels = between_layers(&x);
        let id = format!("{BATCH}x{channels} at {side}");
        let (halving, same) = (Window::square(3, 2, 0), Window::square(3, 1, 1));
        type Max = fn(Tensor<4>, Window) -> Tensor<4>;
        type Average = fn(Tensor<4>, Window, AverageOver) -> Tensor<4>;
        let paths: [(&str, &Tensor<4>, Max, Average); 2] = [
            ("kernel", &pixels, max_pool2d, deme_kernels::avg_pool2d),
            ("plain", &x, plain::max_pool2d, plain::avg_pool2d),
        ];
        for (path, x, max, average) in paths {
            group.bench_function(BenchmarkId::new(format!("max_pool2d {path}"), &id), |b| {
                b.iter(|| max(x.clone(), halving));
            });
            group.bench_function(BenchmarkId::new(format!("avg_pool2d {path}"), &id), |b| {
                b.iter(|| average(x.clone(), same, AverageOver::Map));
            });
        }
    }
    group.finish();
}

fn optimizer(c: &mut Criterion) {
    let step = AdamWStep {
        learning_rate: 1e-4,
        beta1: 0.95,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 1e-6,
        step: 3,
        grad_scale: 0.7,
        average_decay: 0.999,
    };
    // Parameters of these lengths; most of a network's are small.
    let lists = [("1M", vec![1 << 20]), ("256 of 4k", vec![1 << 12; 256])];
    type Parameters = Vec<(ParameterState, Tensor<1>)>;
    type Step = fn(Parameters, &AdamWStep) -> Vec<ParameterState>;
    type Norm = fn(Vec<Tensor<1>>) -> f64;
    let paths: [(&str, Step, Norm); 2] = [
        ("kernel", deme_kernels::adamw_steps, deme_kernels::squared_norm),
        ("plain", plain::adamw_steps, plain::squared_norm),
    ];
    let mut group = c.benchmark_group("optimizer");
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(800));
    for (id, lengths) in lists {
        let parameters = |averaged: bool| -> Parameters {
            let parameter = |len: &usize| {
                let [theta, grad, m, v, average] = [1, 2, 3, 4, 5].map(|seed| tensor(seed, [*len]));
                let average = averaged.then_some(average);
                (ParameterState { theta, m, v: v.square(), average }, grad)
            };
            lengths.iter().map(parameter).collect()
        };
        for (path, adamw, norm) in paths {
            for (name, averaged) in [("adamw", false), ("adamw+ema", true)] {
                // Each step takes the tensors of the one before, so it can work in place.
                let (mut states, grads): (Vec<_>, Vec<_>) =
                    parameters(averaged).into_iter().unzip();
                group.bench_function(format!("{name} {id} {path}"), |b| {
                    b.iter(|| {
                        let states_now = std::mem::take(&mut states).into_iter();
                        states = adamw(states_now.zip(grads.iter().cloned()).collect(), &step);
                    });
                });
            }
            let grads: Vec<Tensor<1>> = parameters(false).into_iter().map(|(_, g)| g).collect();
            group.bench_function(format!("squared_norm {id} {path}"), |b| {
                b.iter(|| norm(grads.clone()));
            });
        }
    }
    group.finish();
}

criterion_group!(
    benches,
    convolutions,
    group_norms,
    joined,
    attentions,
    linears,
    feature_layers,
    optimizer
);
criterion_main!(benches);
