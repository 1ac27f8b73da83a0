//! The choice between fast and exact convolutions. It is the process's, so it has a test binary of its own.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{ConvAlgorithm, ConvGeometry, ConvRelu, conv2d, plain, set_conv_algorithm};
use support::{f64, tensor, values};

/// Root of the mean squared error over that of the values.
fn relative_error(found: Tensor<4>, expected: &[f64]) -> f64 {
    let square = |sum: f64, x: f64| sum + x * x;
    let errors = values(found).into_iter().zip(expected).map(|(a, b)| a - b);
    (errors.fold(0.0, square) / expected.iter().copied().fold(0.0, square)).sqrt()
}

#[test]
fn exact_convolutions_are_exacter() {
    let (x, weight) = (tensor(1, [2, 128, 32, 32]), tensor(2, [128, 128, 3, 3]));
    let same = ConvGeometry::same(3);
    let expected = values(plain::conv2d(f64(x.clone()), f64(weight.clone()), None, same));
    let error_with = |algorithm| {
        set_conv_algorithm(algorithm);
        relative_error(conv2d(x.clone(), weight.clone(), None, same), &expected)
    };
    let exact = error_with(ConvAlgorithm::Exact);
    let fast = error_with(ConvAlgorithm::Fast);
    assert!(exact < 1e-6 && exact < 0.5 * fast && fast < 5e-6, "exact {exact:e}, fast {fast:e}");

    // A prepared layer keeps the choice it was made with.
    let (x, bias) = (tensor::<4>(3, [1, 192, 17, 17]).clamp_min(0.0), tensor(4, [192]));
    let weight = tensor(5, [192, 192, 1, 7]);
    let (stride, padding) = ([1, 1], [0, 3]);
    let expected = (f64(x.clone()), f64(weight.clone()), f64(bias.clone()));
    let expected = plain::conv2d_relu(expected.0, expected.1, expected.2, stride, padding);
    let layer_with = |algorithm| {
        set_conv_algorithm(algorithm);
        ConvRelu::new(weight.clone(), bias.clone(), stride, padding)
    };
    let exact = layer_with(ConvAlgorithm::Exact);
    let fast = layer_with(ConvAlgorithm::Fast);
    let error_of =
        |layer: ConvRelu| relative_error(layer.forward(x.clone()), &values(expected.clone()));
    let (exact, fast) = (error_of(exact), error_of(fast));
    assert!(exact < 1e-6 && exact < 0.5 * fast && fast < 5e-6, "exact {exact:e}, fast {fast:e}");
}
