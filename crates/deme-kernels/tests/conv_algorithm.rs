//! The choice between fast and exact convolutions. It is the process's, so it has a test binary of its own.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{ConvAlgorithm, ConvGeometry, conv2d, plain, set_conv_algorithm};
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
}
