//! The layers of feature extractors against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{DType, Tensor};
use deme_kernels::{
    AverageOver, ChannelConcat, ConvRelu, Window, avg_pool2d, conv2d_relu, global_avg_pool2d,
    max_pool2d, plain,
};
use proptest::prelude::*;
use support::{assert_close, bits, f64, on_threads, tensor, values};

#[derive(Debug, Clone)]
struct Conv {
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: [usize; 2],
    padding: [usize; 2],
}

impl Conv {
    /// What a trained network's layer sees: no negative inputs.
    fn new(
        seed: u64,
        x: [usize; 4],
        c_out: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: [usize; 2],
    ) -> Self {
        Self {
            x: tensor::<4>(seed, x).clamp_min(0.0),
            weight: tensor(seed + 1, [c_out, x[1], kernel[0], kernel[1]]),
            bias: tensor(seed + 2, [c_out]),
            stride: [stride; 2],
            padding,
        }
    }

    fn prepared(&self) -> ConvRelu {
        ConvRelu::new(self.weight.clone(), self.bias.clone(), self.stride, self.padding)
    }

    fn expected(&self) -> Tensor<4> {
        let Self { x, weight, bias, stride, padding } = self.clone();
        plain::conv2d_relu(f64(x), f64(weight), f64(bias), stride, padding)
    }
}

/// Root of the mean squared error over that of the values.
fn relative_error(found: Tensor<4>, expected: Tensor<4>) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    assert!(found.iter().all(|x| x.is_finite()));
    let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    (errors / expected.iter().map(|x| x * x).sum::<f64>()).sqrt()
}

fn check(conv: &Conv) {
    let error = relative_error(conv.prepared().forward(conv.x.clone()), conv.expected());
    let sizes = (conv.x.dims(), conv.weight.dims(), conv.stride, conv.padding);
    assert!(error < 5e-6, "{sizes:?}: relative error {error:e}");
}

/// One of every kind of layer of Inception-v3, and of other networks.
fn layers() -> Vec<Conv> {
    vec![
        Conv::new(1, [2, 3, 31, 31], 32, [3, 3], 2, [0, 0]),
        Conv::new(2, [2, 32, 15, 15], 32, [3, 3], 1, [0, 0]),
        Conv::new(3, [2, 32, 13, 13], 64, [3, 3], 1, [1, 1]),
        Conv::new(4, [2, 64, 13, 13], 80, [1, 1], 1, [0, 0]),
        Conv::new(5, [2, 80, 13, 11], 192, [3, 3], 1, [0, 0]),
        Conv::new(6, [2, 288, 9, 9], 48, [1, 1], 1, [0, 0]),
        Conv::new(7, [2, 48, 9, 9], 64, [5, 5], 1, [2, 2]),
        Conv::new(8, [2, 288, 9, 9], 384, [3, 3], 2, [0, 0]),
        Conv::new(9, [2, 768, 5, 5], 160, [1, 1], 1, [0, 0]),
        Conv::new(10, [2, 160, 17, 17], 160, [1, 7], 1, [0, 3]),
        Conv::new(11, [2, 160, 17, 17], 192, [7, 1], 1, [3, 0]),
        Conv::new(12, [2, 2048, 3, 3], 320, [1, 1], 1, [0, 0]),
        Conv::new(13, [2, 384, 8, 8], 384, [1, 3], 1, [0, 1]),
        Conv::new(14, [2, 384, 8, 8], 384, [3, 1], 1, [1, 0]),
        Conv::new(15, [3, 448, 8, 8], 384, [3, 3], 1, [1, 1]),
        Conv::new(16, [2, 3, 23, 21], 64, [7, 7], 2, [3, 3]),
        Conv::new(17, [2, 64, 7, 7], 128, [1, 1], 2, [0, 0]),
        Conv::new(18, [2, 20, 9, 9], 28, [1, 5], 1, [0, 2]),
        Conv::new(19, [2, 20, 9, 9], 28, [5, 1], 1, [2, 0]),
        Conv::new(20, [2, 24, 9, 10], 28, [3, 3], 2, [1, 1]),
    ]
}

#[test]
fn the_layers_of_a_network() {
    layers().iter().for_each(check);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn any_window(
        seed in 0u64..1000, b in 1usize..4, c_in in 1usize..40, c_out in 1usize..40,
        h in 1usize..12, w in 1usize..12, kh in 1usize..6, kw in 1usize..6,
        stride in 1usize..4, top in 0usize..3, left in 0usize..3,
    ) {
        let window = Window { kernel: [kh, kw], stride: [stride; 2], padding: [top, left] };
        if window.output_size([h, w]).is_some() {
            let conv = Conv::new(seed, [b, c_in, h, w], c_out, [kh, kw], stride, [top, left]);
            let found = conv.prepared().forward(conv.x.clone());
            // Sums that cancel are small beside the terms that make their error.
            let Conv { x, weight, bias, .. } = conv.clone();
            let sizes = Conv { x: x.abs(), weight: weight.abs(), bias: bias.abs(), ..conv.clone() };
            let size = values(sizes.expected()).into_iter().fold(0.0, f64::max);
            assert_close(f64(found), conv.expected(), 2e-6, size, "y");
        }
    }

    #[test]
    fn filtered_kernels(
        seed in 0u64..1000, b in 1usize..4, c_in in 10usize..50, c_out in 10usize..50,
        h in 5usize..20, w in 5usize..20, kind in 0usize..9, padding in 0usize..4,
    ) {
        let kernels = [[3, 3], [5, 5], [1, 3], [3, 1], [1, 5], [5, 1], [1, 7], [7, 1], [3, 3]];
        let (kernel, stride) = (kernels[kind], if kind == 8 { 2 } else { 1 });
        let padding = [padding.min(kernel[0] / 2), padding.min(kernel[1] / 2)];
        let window = Window { kernel, stride: [stride; 2], padding };
        if window.output_size([h, w]).is_some() {
            check(&Conv::new(seed, [b, c_in, h, w], c_out, kernel, stride, padding));
        }
    }

    #[test]
    fn any_pooling(
        seed in 0u64..1000, b in 1usize..3, c in 1usize..40, h in 1usize..12, w in 1usize..12,
        kh in 1usize..5, kw in 1usize..5, stride in 1usize..4, padding in 0usize..3,
    ) {
        let padding = [padding.min(kh / 2), padding.min(kw / 2)];
        let window = Window { kernel: [kh, kw], stride: [stride; 2], padding };
        if window.output_size([h, w]).is_some() {
            let x = tensor(seed, [b, c, h, w]);
            // The maxima are entries of x.
            let found = f64(max_pool2d(x.clone(), window));
            assert_close(found, plain::max_pool2d(f64(x.clone()), window), 0.0, 1.0, "max");
            for over in [AverageOver::Map, AverageOver::Window] {
                let found = avg_pool2d(x.clone(), window, over);
                let expected = plain::avg_pool2d(f64(x.clone()), window, over);
                assert_close(f64(found), expected, 1e-6, 1.0, "average");
            }
        }
    }
}

#[test]
fn a_global_average_is_the_mean() {
    let x = tensor(1, [3, 37, 8, 7]);
    let expected = plain::global_avg_pool2d(f64(x.clone()));
    assert_close(f64(global_avg_pool2d(x)), expected, 1e-6, 1.0, "mean");
}

#[test]
fn the_unprepared_layer_is_the_prepared_one() {
    let conv = Conv::new(30, [2, 24, 9, 9], 40, [3, 3], 1, [1, 1]);
    let Conv { x, weight, bias, stride, padding } = conv.clone();
    let found = conv2d_relu(x.clone(), weight, bias, stride, padding);
    assert_eq!(bits(found), bits(conv.prepared().forward(x)));
}

#[test]
fn a_chain_of_layers() {
    let conv = Conv::new(40, [2, 12, 13, 13], 40, [3, 3], 1, [1, 1]);
    let next = Conv::new(41, [1, 40, 1, 1], 20, [1, 1], 1, [0, 0]);
    let window = Window::square(3, 2, 0);
    let y = max_pool2d(conv.prepared().forward(conv.x.clone()), window);
    let y = next.prepared().forward(y);
    let x = plain::max_pool2d(conv.expected(), window);
    let (weight, bias) = (f64(next.weight), f64(next.bias));
    let expected = plain::conv2d_relu(x, weight, bias, [1, 1], [0, 0]);
    assert!(relative_error(y, expected) < 5e-6);
}

#[test]
fn joined_parts_are_the_parts_joined() {
    let x = tensor::<4>(50, [3, 24, 9, 9]).clamp_min(0.0);
    let conv = |seed, c_out, kernel: usize| {
        let padding = [kernel / 2; 2];
        ConvRelu::new(
            tensor(seed, [c_out, 24, kernel, kernel]),
            tensor(seed + 1, [c_out]),
            [1, 1],
            padding,
        )
    };
    let (one, three, five) = (conv(51, 20, 1), conv(53, 28, 3), conv(55, 5, 5));
    let window = Window::square(3, 1, 1);
    let pooled = avg_pool2d(x.clone(), window, AverageOver::Map);
    let joined = ChannelConcat::new(20 + 24 + 28 + 24 + 5)
        .conv(&one, x.clone())
        .map(pooled.clone())
        .conv(&three, x.clone())
        .max_pool2d(x.clone(), window)
        .conv(&five, x.clone())
        .finish();
    let parts = vec![
        one.forward(x.clone()),
        pooled,
        three.forward(x.clone()),
        max_pool2d(x.clone(), window),
        five.forward(x),
    ];
    assert_eq!(bits(joined), bits(Tensor::cat(parts, 1)));
}

#[test]
fn other_float_types_take_the_plain_path() {
    let conv = Conv::new(60, [2, 24, 9, 9], 20, [3, 3], 1, [1, 1]);
    let Conv { x, weight, bias, stride, padding } = conv.clone();
    let layer = ConvRelu::new(f64(weight.clone()), f64(bias.clone()), stride, padding);
    let y = layer.forward(f64(x.clone()));
    assert_eq!(y.dtype(), DType::F64);
    assert_close(y.clone(), conv.expected(), 0.0, 1.0, "f64");
    let window = Window::square(3, 1, 1);
    let joined = ChannelConcat::new(20 + 24 + 24)
        .conv(&layer, f64(x.clone()))
        .max_pool2d(f64(x.clone()), window)
        .map(f64(x.clone()))
        .finish();
    let pooled = plain::max_pool2d(f64(x.clone()), window);
    let expected = Tensor::cat(vec![y, pooled, f64(x.clone())], 1);
    assert_close(joined, expected, 0.0, 1.0, "joined");
    let unprepared = conv2d_relu(f64(x), f64(weight), f64(bias), stride, padding);
    assert_close(unprepared, conv.expected(), 0.0, 1.0, "unprepared");
}

#[test]
fn an_input_with_autodiff_takes_the_plain_path() {
    let Conv { x, weight, bias, stride, padding } =
        Conv::new(70, [1, 16, 6, 6], 16, [3, 3], 1, [1, 1]);
    let tracked = x.clone().autodiff().require_grad();
    let y = conv2d_relu(
        tracked.clone(),
        weight.clone().autodiff(),
        bias.clone().autodiff(),
        stride,
        padding,
    );
    let grads = y.clone().sum().backward();
    assert!(tracked.grad(&grads).is_some());
    let expected = plain::conv2d_relu(x, weight, bias, stride, padding);
    assert_eq!(bits(y.inner()), bits(expected));
}

#[test]
fn reads_permuted_tensors() {
    let mut conv = Conv::new(80, [2, 24, 9, 7], 20, [3, 3], 1, [1, 1]);
    conv.x = tensor(83, [9, 7, 2, 24]).permute([2, 3, 0, 1]);
    conv.weight = tensor(84, [24, 20, 3, 3]).swap_dims(0, 1);
    check(&conv);
}

#[test]
fn threads_do_not_change_a_bit() {
    for conv in layers() {
        // The weight's preparation included.
        let all = |threads| on_threads(threads, || bits(conv.prepared().forward(conv.x.clone())));
        let (one, two, five) = (all(1), all(2), all(5));
        assert!(one == two && one == five, "{:?}", conv.weight.dims());
    }
}

#[test]
fn an_image_is_the_same_alone_and_in_a_batch() {
    for conv in layers() {
        let layer = conv.prepared();
        // Enough images for several parts, the first ones once more among others.
        let x = Tensor::cat(vec![conv.x.clone(), tensor(90, conv.x.dims()), conv.x.clone()], 0);
        let batch = layer.forward(x.clone());
        for n in 0..x.dims()[0] {
            let alone = layer.forward(x.clone().narrow(0, n, 1));
            let same = bits(alone) == bits(batch.clone().narrow(0, n, 1));
            assert!(same, "image {n} of {:?}", conv.weight.dims());
        }
    }
}

#[test]
fn nan_is_kept() {
    let mut conv = Conv::new(100, [1, 16, 6, 6], 16, [1, 1], 1, [0, 0]);
    let nan = Tensor::full([1, 16, 1, 1], f32::NAN, &support::device());
    conv.x = conv.x.slice_assign([0..1, 0..16, 2..3, 3..4], nan);
    let is_nan = |x: Tensor<4>| values(x).iter().filter(|x| x.is_nan()).count();
    assert_eq!(is_nan(conv.prepared().forward(conv.x.clone())), 16);
    let window = Window::square(3, 1, 1);
    assert_eq!(is_nan(max_pool2d(conv.x.clone(), window)), 9 * 16);
    assert_eq!(is_nan(avg_pool2d(conv.x, window, AverageOver::Map)), 9 * 16);
}

#[test]
fn no_images_give_no_outputs() {
    let conv = Conv::new(110, [0, 16, 6, 6], 16, [3, 3], 1, [1, 1]);
    assert_eq!(conv.prepared().forward(conv.x.clone()).dims(), [0, 16, 6, 6]);
    assert_eq!(max_pool2d(conv.x, Window::square(3, 2, 0)).dims(), [0, 16, 2, 2]);
}

#[test]
#[should_panic(expected = "channels of the input")]
fn refuses_an_input_of_other_channels() {
    let conv = Conv::new(120, [1, 16, 6, 6], 16, [3, 3], 1, [1, 1]);
    conv.prepared().forward(tensor(1, [1, 17, 6, 6]));
}

#[test]
#[should_panic(expected = "prepared for f32 on the CPU without autodiff")]
fn a_prepared_layer_refuses_autodiff() {
    let conv = Conv::new(121, [1, 16, 6, 6], 16, [3, 3], 1, [1, 1]);
    conv.prepared().forward(conv.x.autodiff());
}

#[test]
#[should_panic(expected = "channels of the parts")]
fn refuses_to_join_fewer_channels_than_announced() {
    ChannelConcat::new(17).map(tensor(1, [1, 16, 6, 6])).finish();
}

#[test]
#[should_panic(expected = "more than the 17 channels announced")]
fn refuses_to_join_more_channels_than_announced() {
    let x = tensor(1, [1, 16, 6, 6]);
    let _ = ChannelConcat::new(17).map(x.clone()).map(x);
}

#[test]
#[should_panic(expected = "sizes of the joined maps")]
fn refuses_to_join_maps_of_different_sizes() {
    let _ = ChannelConcat::new(32).map(tensor(1, [1, 16, 6, 6])).map(tensor(1, [1, 16, 5, 6]));
}
