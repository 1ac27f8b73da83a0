//! The linear map against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{linear, plain};
use proptest::prelude::*;
use support::{assert_close, bits, f64, largest, on_threads, tensor};

type Linear = fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>;
type Inputs = (Tensor<3>, Tensor<2>, Tensor<1>, Tensor<3>);

fn inputs(seed: u64, [b, l, d_in, d_out]: [usize; 4]) -> Inputs {
    let (x, weight) = (tensor(seed, [b, l, d_in]), tensor(seed + 1, [d_out, d_in]));
    (x, weight, tensor(seed + 2, [d_out]), tensor(seed + 3, [b, l, d_out]))
}

/// Output and gradients of sum(y g).
fn run(f: Linear, (x, weight, bias, g): Inputs) -> (Tensor<3>, Tensor<3>, Tensor<2>, Tensor<1>) {
    let x = x.autodiff().require_grad();
    let weight = weight.autodiff().require_grad();
    let bias = bias.autodiff().require_grad();
    let y = f(x.clone(), weight.clone(), Some(bias.clone()));
    let grads = (y.clone() * g.autodiff()).sum().backward();
    let (dx, dweight) = (x.grad(&grads).unwrap(), weight.grad(&grads).unwrap());
    (y.inner(), dx, dweight, bias.grad(&grads).unwrap())
}

fn check((x, weight, bias, g): Inputs) {
    let found = run(linear, (x.clone(), weight.clone(), bias.clone(), g.clone()));
    let (x, weight, bias, g) = (f64(x), f64(weight), f64(bias), f64(g));
    let sizes = run(
        plain::linear,
        (x.clone().abs(), weight.clone().abs(), bias.clone().abs(), g.clone().abs()),
    );
    let expected = run(plain::linear, (x, weight, bias, g));
    assert_close(f64(found.0), expected.0, 1e-6, largest(&sizes.0), "y");
    assert_close(f64(found.1), expected.1, 1e-6, largest(&sizes.1), "dx");
    assert_close(f64(found.2), expected.2, 1e-6, largest(&sizes.2), "dweight");
    assert_close(f64(found.3), expected.3, 1e-6, largest(&sizes.3), "dbias");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn follows_the_plain_path(
        seed in 0u64..1000, b in 1usize..4, l in 1usize..20, d_in in 1usize..90, d_out in 1usize..90,
    ) {
        check(inputs(seed, [b, l, d_in, d_out]));
    }
}

#[test]
fn reads_permuted_tensors() {
    let (_, _, bias, g) = inputs(1, [2, 30, 24, 40]);
    let x = tensor(5, [2, 24, 30]).swap_dims(1, 2);
    check((x, tensor(6, [24, 40]).transpose(), bias, g));
}

#[test]
fn no_bias_is_a_bias_of_zero() {
    let (x, weight, bias, _) = inputs(2, [2, 5, 8, 12]);
    let with = linear(x.clone(), weight.clone(), Some(bias * 0.0));
    assert_eq!(bits(linear(x, weight, None)), bits(with));
}

#[test]
fn threads_and_batch_do_not_change_a_bit() {
    let all = inputs(3, [4, 33, 130, 150]);
    let on = |threads| {
        let inputs = all.clone();
        on_threads(threads, || {
            let (y, dx, dweight, dbias) = run(linear, inputs);
            [bits(y), bits(dx), bits(dweight), bits(dbias)]
        })
    };
    let one = on(1);
    assert!(one == on(2) && one == on(5));
    for i in 0..4 {
        let x = all.0.clone().narrow(0, i, 1);
        let alone = bits(linear(x, all.1.clone(), Some(all.2.clone())));
        assert!(alone[..] == one[0][i * alone.len()..(i + 1) * alone.len()]);
    }
}
