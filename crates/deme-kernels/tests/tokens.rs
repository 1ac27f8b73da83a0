//! Pixels as tokens, the gate, and layer norm without autodiff, against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use burn::tensor::module;
use deme_kernels::{geglu, layer_norm, plain, planes_from_tokens, tokens_from_planes};
use support::{assert_close, bits, f64, largest, on_threads, tensor};

#[test]
fn the_gate_follows_the_plain_path() {
    for (seed, shape) in [(1, [1, 1, 2]), (2, [2, 3, 34]), (3, [3, 70, 640]), (4, [0, 3, 8])] {
        let x: Tensor<3> = tensor(seed, shape) * 3.0;
        let scale = largest(&x).powi(2).max(1.0);
        assert_close(f64(geglu(x.clone())), plain::geglu(f64(x)), 3e-7, scale, "y");
    }
}

#[test]
fn the_gate_has_the_gradient_of_the_plain_path() {
    let (x, g) = (tensor::<2>(5, [4, 12]), tensor::<2>(6, [4, 6]));
    let gradient = |f: fn(Tensor<2>) -> Tensor<2>, x: Tensor<2>, g: Tensor<2>| {
        let x = x.autodiff().require_grad();
        let grads = (f(x.clone()) * g.autodiff()).sum().backward();
        x.grad(&grads).unwrap()
    };
    let found = gradient(geglu, x.clone(), g.clone());
    assert_close(f64(found), gradient(plain::geglu, f64(x), f64(g)), 1e-5, 1.0, "dx");
}

#[test]
#[should_panic(expected = "5 features do not halve")]
fn an_odd_number_of_features_is_our_bug() {
    geglu(tensor::<2>(1, [2, 5]));
}

#[test]
fn planes_become_tokens_and_tokens_planes() {
    let x = tensor::<4>(7, [2, 5, 3, 4]);
    let tokens = tokens_from_planes(x.clone());
    assert_eq!(tokens.dims(), [2, 12, 5]);
    assert_eq!(bits(tokens.clone()), bits(x.clone().reshape([2, 5, 12]).swap_dims(1, 2)));
    assert_eq!(bits(planes_from_tokens(tokens, [3, 4])), bits(x.clone()));
    // A tensor that does not lie in order.
    let flipped = x.swap_dims(2, 3);
    let expected = flipped.clone().reshape([2, 5, 12]).swap_dims(1, 2);
    assert_eq!(bits(tokens_from_planes(flipped)), bits(expected));
}

#[test]
fn tokens_are_differentiable() {
    let (x, g) = (tensor::<4>(8, [2, 3, 2, 2]), tensor::<4>(9, [2, 3, 2, 2]));
    let x = x.autodiff().require_grad();
    let there_and_back = planes_from_tokens(tokens_from_planes(x.clone()), [2, 2]);
    let grads = (there_and_back * g.clone().autodiff()).sum().backward();
    assert_eq!(bits(x.grad(&grads).unwrap()), bits(g));
}

#[test]
fn threads_do_not_change_a_bit() {
    let x = tensor::<3>(10, [3, 100, 256]);
    let on = |threads| on_threads(threads, || bits(geglu(x.clone())));
    assert!(on(1) == on(3));
}

#[test]
fn layer_norm_follows_f64_far_from_zero_too() {
    for (seed, shape, offset) in
        [(1, [1, 1, 1], 0.0), (2, [2, 3, 45], 5.0), (3, [2, 70, 320], -30.0)]
    {
        let x: Tensor<3> = tensor(seed, shape) + offset;
        let width = shape[2];
        let (weight, bias) = (tensor::<1>(8, [width]) + 1.0, tensor::<1>(9, [width]));
        let expected =
            module::layer_norm(f64(x.clone()), f64(weight.clone()), Some(f64(bias.clone())), 1e-5);
        let scale = largest(&weight).max(1.0) * 4.0;
        let found = layer_norm(x, weight, bias, 1e-5);
        assert_close(f64(found), expected, 5e-6, scale, "y");
    }
}

#[test]
fn layer_norm_is_the_same_on_any_number_of_threads() {
    let x = tensor::<3>(4, [3, 300, 96]);
    let (weight, bias) = (tensor::<1>(5, [96]), tensor::<1>(6, [96]));
    let found = |threads| {
        let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
        bits(on_threads(threads, move || layer_norm(x, weight, bias, 1e-5)))
    };
    assert_eq!(found(1), found(3));
}
