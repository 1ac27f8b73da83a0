//! Convolution kernels against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{ConvGeometry, conv2d, plain, pointwise_conv_of_two};
use proptest::prelude::*;
use support::{assert_close, bits, f64, largest, on_threads, tensor};

type Conv = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, ConvGeometry) -> Tensor<4>;

#[derive(Clone)]
struct Inputs {
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    g: Tensor<4>,
    geometry: ConvGeometry,
}

impl Inputs {
    fn new(seed: u64, x: [usize; 4], c_out: usize, kernel: usize, geometry: ConvGeometry) -> Self {
        let [b, c, h, w] = x;
        let out = |n| geometry.output_len(n, kernel).unwrap();
        Self {
            x: tensor(seed, x),
            weight: tensor(seed + 1, [c_out, c, kernel, kernel]),
            bias: tensor(seed + 2, [c_out]),
            g: tensor(seed + 3, [b, c_out, out(h), out(w)]),
            geometry,
        }
    }

    /// The magnitudes: what a convolution of them gives is the sum of its terms' magnitudes.
    fn magnitudes(&self) -> Self {
        let Self { x, weight, bias, g, geometry } = self.clone();
        Self { x: x.abs(), weight: weight.abs(), bias: bias.abs(), g: g.abs(), geometry }
    }

    fn in_f64(&self) -> Self {
        Self {
            x: f64(self.x.clone()),
            weight: f64(self.weight.clone()),
            bias: f64(self.bias.clone()),
            g: f64(self.g.clone()),
            ..self.clone()
        }
    }
}

struct Results {
    y: Tensor<4>,
    dx: Tensor<4>,
    dweight: Tensor<4>,
    dbias: Tensor<1>,
}

/// Output and gradients of sum(y g).
fn run(conv: Conv, inputs: &Inputs) -> Results {
    let Inputs { x, weight, bias, g, geometry } = inputs.clone();
    let [x, weight] = [x, weight].map(|t| t.autodiff().require_grad());
    let bias = bias.autodiff().require_grad();
    let y = conv(x.clone(), weight.clone(), Some(bias.clone()), geometry);
    let grads = (y.clone() * g.autodiff()).sum().backward();
    Results {
        y: y.inner(),
        dx: x.grad(&grads).unwrap(),
        dweight: weight.grad(&grads).unwrap(),
        dbias: bias.grad(&grads).unwrap(),
    }
}

fn check(inputs: &Inputs) {
    let found = run(conv2d, inputs);
    let expected = run(plain::conv2d, &inputs.in_f64());
    let sizes = run(plain::conv2d, &inputs.in_f64().magnitudes());
    assert_close(f64(found.y), expected.y, 1e-5, largest(&sizes.y), "y");
    assert_close(f64(found.dx), expected.dx, 1e-5, largest(&sizes.dx), "dx");
    assert_close(f64(found.dweight), expected.dweight, 1e-5, largest(&sizes.dweight), "dweight");
    assert_close(f64(found.dbias), expected.dbias, 1e-6, largest(&sizes.dbias), "dbias");
}

fn geometry(stride: usize, padding_begin: usize, padding_end: usize) -> ConvGeometry {
    ConvGeometry { stride, padding_begin, padding_end }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn any_kernel_stride_and_padding(
        seed in 0u64..1000, b in 1usize..4, c_in in 1usize..20, c_out in 1usize..20,
        h in 1usize..12, w in 1usize..12, half in 0usize..3, stride in 1usize..4,
        begin in 0usize..3, end in 0usize..3,
    ) {
        let (kernel, geometry) = (2 * half + 1, geometry(stride, begin, end));
        if geometry.output_len(h.min(w), kernel).is_some() {
            check(&Inputs::new(seed, [b, c_in, h, w], c_out, kernel, geometry));
        }
    }

    #[test]
    fn three_by_three_of_the_same_size(
        seed in 0u64..1000, b in 1usize..4, c_in in 10usize..70, c_out in 10usize..70,
        h in 1usize..19, w in 1usize..19,
    ) {
        check(&Inputs::new(seed, [b, c_in, h, w], c_out, 3, ConvGeometry::same(3)));
    }

    #[test]
    fn one_by_one(
        seed in 0u64..1000, b in 1usize..4, c_in in 1usize..50, c_out in 1usize..50,
        h in 1usize..10, w in 1usize..10,
    ) {
        check(&Inputs::new(seed, [b, c_in, h, w], c_out, 1, ConvGeometry::same(1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn one_by_one_of_two_tensors_is_that_of_all_their_channels(
        seed in 0u64..1000, b in 1usize..4, first in 1usize..40, second in 1usize..40,
        c_out in 1usize..40, h in 1usize..10, w in 1usize..10,
    ) {
        let i = Inputs::new(seed, [b, first + second, h, w], c_out, 1, ConvGeometry::same(1));
        type OfTwo = fn([Tensor<4>; 2], Tensor<4>, Option<Tensor<1>>) -> Tensor<4>;
        let run_of_two = |conv: OfTwo, i: &Inputs| {
            let parts = [i.x.clone().narrow(1, 0, first), i.x.clone().narrow(1, first, second)];
            let parts = parts.map(|x| x.autodiff().require_grad());
            let weight = i.weight.clone().autodiff().require_grad();
            let bias = i.bias.clone().autodiff().require_grad();
            let y = conv(parts.clone(), weight.clone(), Some(bias.clone()));
            let grads = (y.clone() * i.g.clone().autodiff()).sum().backward();
            let dx = parts.map(|x| x.grad(&grads).unwrap());
            Results {
                y: y.inner(),
                dx: Tensor::cat(dx.to_vec(), 1),
                dweight: weight.grad(&grads).unwrap(),
                dbias: bias.grad(&grads).unwrap(),
            }
        };
        let found = run_of_two(pointwise_conv_of_two, &i);
        let one = run(conv2d, &i);
        // The same arithmetic, so the same bits.
        prop_assert!(bits(found.y) == bits(one.y) && bits(found.dx) == bits(one.dx));
        prop_assert!(bits(found.dweight) == bits(one.dweight));
        prop_assert!(bits(found.dbias) == bits(one.dbias));
        let plain = run_of_two(plain::pointwise_conv_of_two, &i.in_f64());
        let expected = run(plain::conv2d, &i.in_f64());
        assert_close(plain.dx, expected.dx, 1e-12, 1.0, "plain dx");
    }
}

#[test]
fn first_and_last_layers_of_a_network() {
    check(&Inputs::new(1, [3, 3, 16, 16], 32, 3, ConvGeometry::same(3)));
    check(&Inputs::new(2, [3, 32, 16, 16], 3, 3, ConvGeometry::same(3)));
    check(&Inputs::new(3, [2, 24, 16, 16], 24, 3, geometry(2, 0, 1)));
    check(&Inputs::new(4, [2, 24, 17, 15], 40, 3, geometry(2, 1, 1)));
    check(&Inputs::new(5, [2, 4, 19, 21], 40, 3, geometry(2, 0, 1)));
    check(&Inputs::new(6, [1, 1, 5, 40], 20, 3, ConvGeometry::same(3)));
}

#[test]
fn larger_maps_and_batches() {
    check(&Inputs::new(5, [1, 16, 64, 48], 16, 3, ConvGeometry::same(3)));
    check(&Inputs::new(6, [33, 32, 4, 4], 48, 3, ConvGeometry::same(3)));
    check(&Inputs::new(7, [2, 270, 8, 8], 136, 3, ConvGeometry::same(3)));
    check(&Inputs::new(8, [2, 140, 24, 24], 150, 3, ConvGeometry::same(3)));
}

#[test]
fn no_bias_is_a_bias_of_zero() {
    let i = Inputs::new(7, [2, 16, 8, 8], 16, 3, ConvGeometry::same(3));
    let without = conv2d(i.x.clone(), i.weight.clone(), None, i.geometry);
    let with = conv2d(i.x, i.weight, Some(i.bias * 0.0), i.geometry);
    assert_eq!(bits(without), bits(with));
}

#[test]
fn reads_permuted_tensors() {
    let mut inputs = Inputs::new(8, [2, 16, 6, 7], 20, 3, ConvGeometry::same(3));
    inputs.x = tensor(9, [6, 7, 2, 16]).permute([2, 3, 0, 1]);
    inputs.weight = tensor(10, [16, 20, 3, 3]).swap_dims(0, 1);
    inputs.g = tensor(11, [2, 20, 7, 6]).swap_dims(2, 3);
    check(&inputs);
}

fn cases() -> Vec<Inputs> {
    vec![
        Inputs::new(20, [5, 32, 16, 16], 32, 3, ConvGeometry::same(3)),
        Inputs::new(21, [5, 40, 4, 4], 24, 3, ConvGeometry::same(3)),
        Inputs::new(22, [5, 32, 6, 6], 64, 3, ConvGeometry::same(3)),
        Inputs::new(23, [5, 3, 9, 9], 32, 3, ConvGeometry::same(3)),
        Inputs::new(24, [5, 32, 9, 9], 3, 3, ConvGeometry::same(3)),
        Inputs::new(25, [5, 32, 8, 8], 48, 3, geometry(2, 0, 1)),
        Inputs::new(26, [5, 32, 8, 8], 48, 1, ConvGeometry::same(1)),
        Inputs::new(27, [5, 12, 8, 8], 12, 5, geometry(1, 2, 2)),
        // Depth in parts; several panels of columns at once.
        Inputs::new(28, [2, 270, 8, 8], 136, 3, ConvGeometry::same(3)),
        Inputs::new(29, [2, 140, 24, 24], 150, 3, ConvGeometry::same(3)),
    ]
}

#[test]
fn threads_do_not_change_a_bit() {
    for inputs in cases() {
        let all = |threads| {
            on_threads(threads, || {
                let r = run(conv2d, &inputs);
                [bits(r.y), bits(r.dx), bits(r.dweight), bits(r.dbias)]
            })
        };
        let (one, two, five) = (all(1), all(2), all(5));
        assert!(one == two && one == five, "{:?}", inputs.weight.dims());
    }
}

#[test]
fn an_image_is_the_same_alone_and_in_a_batch() {
    for i in cases() {
        let forward = |x| conv2d(x, i.weight.clone(), Some(i.bias.clone()), i.geometry);
        let batch = forward(i.x.clone());
        for n in 0..i.x.dims()[0] {
            let alone = forward(i.x.clone().narrow(0, n, 1));
            let same = bits(alone) == bits(batch.clone().narrow(0, n, 1));
            assert!(same, "image {n} of {:?}", i.weight.dims());
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    for (seed, c, kernel, geometry) in [
        (30, 16, 3, ConvGeometry::same(3)),
        (31, 5, 3, geometry(2, 0, 1)),
        (32, 4, 1, ConvGeometry::same(1)),
    ] {
        let inputs = Inputs::new(seed, [2, c, 6, 6], c, kernel, geometry);
        let grads = run(conv2d, &inputs);
        let direction = tensor(seed + 5, inputs.weight.dims());
        let slope = (grads.dweight * direction.clone()).sum().into_scalar::<f64>();
        let loss = |h: f64| {
            let i = inputs.in_f64();
            let weight = i.weight + f64(direction.clone()) * h;
            let y = plain::conv2d(i.x, weight, Some(i.bias), i.geometry);
            (y * i.g).sum().into_scalar::<f64>()
        };
        let expected = (loss(1e-3) - loss(-1e-3)) / 2e-3;
        assert!((slope - expected).abs() < 1e-4 * expected.abs().max(10.0), "{slope} {expected}");
    }
}

#[test]
fn an_untracked_input_needs_no_gradient() {
    let i = Inputs::new(40, [2, 3, 8, 8], 16, 3, ConvGeometry::same(3));
    let weight = i.weight.clone().autodiff().require_grad();
    let y = conv2d(i.x.clone(), weight.clone(), Some(i.bias.clone()), i.geometry);
    let grads = (y * i.g.clone().autodiff()).sum().backward();
    let expected = run(plain::conv2d, &i.in_f64());
    let scale = largest(&expected.dweight);
    assert_close(f64(weight.grad(&grads).unwrap()), expected.dweight, 1e-5, scale, "dweight");
}

#[test]
fn large_planes_are_summed_in_parts() {
    // One image of more pixels than are packed at once, and two that are packed in turn.
    check(&Inputs::new(60, [1, 5, 620, 610], 2, 1, ConvGeometry::same(1)));
    check(&Inputs::new(61, [2, 5, 450, 451], 2, 1, ConvGeometry::same(1)));
}
