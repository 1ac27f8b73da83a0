//! The optimiser's fused passes against the plain path.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{AdamWStep, adamw_step, ema_step, plain, squared_norm};
use support::{assert_close, bits, f64, largest, on_threads, tensor, values};

const STEP: AdamWStep = AdamWStep {
    learning_rate: 1e-3,
    beta1: 0.95,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 1e-2,
    step: 3,
    grad_scale: 0.7,
};

fn state(len: usize) -> [Tensor<1>; 4] {
    let [theta, grad, m, v] = [1, 2, 3, 4].map(|seed| tensor(seed, [len]));
    [theta, grad, m, v.square()]
}

#[test]
fn adamw_follows_the_plain_path() {
    for len in [1, 15, 100, 40_000] {
        let [theta, grad, m, v] = state(len);
        let (t, a, b) = adamw_step(theta.clone(), grad.clone(), m.clone(), v.clone(), &STEP);
        let expected = plain::adamw_step(f64(theta), f64(grad), f64(m), f64(v), &STEP);
        assert_close(f64(t), expected.0.clone(), 3e-7, largest(&expected.0), "theta");
        assert_close(f64(a), expected.1.clone(), 3e-7, largest(&expected.1), "m");
        assert_close(f64(b), expected.2.clone(), 3e-7, largest(&expected.2), "v");
    }
}

#[test]
fn shared_tensors_keep_their_values() {
    let all = state(1000);
    let before = all.clone().map(values);
    let [theta, grad, m, v] = all.clone();
    let _ = adamw_step(theta.clone(), grad, m, v, &STEP);
    let _ = ema_step(theta.clone(), all[1].clone(), 0.5);
    assert_eq!(before, all.map(values));
}

#[test]
fn a_part_of_a_tensor_is_stepped_alone() {
    let [theta, grad, m, v] = state(100);
    let part = |t: &Tensor<1>| t.clone().narrow(0, 20, 30);
    let (t, ..) = adamw_step(part(&theta), part(&grad), part(&m), part(&v), &STEP);
    let (whole, ..) = adamw_step(theta, grad, m, v, &STEP);
    assert_eq!(bits(t), bits(whole.narrow(0, 20, 30)));
}

#[test]
fn the_average_follows_the_plain_path() {
    let [theta, other, ..] = state(30_000);
    let found = ema_step(theta.clone(), other.clone(), 0.999);
    assert_close(f64(found), plain::ema_step(f64(theta), f64(other), 0.999), 2e-7, 4.0, "ema");
}

#[test]
fn the_norm_is_summed_in_f64_whatever_the_threads() {
    let x = tensor::<1>(5, [100_003]) * 1e3;
    let expected: f64 = values(x.clone()).iter().map(|x| x * x).sum();
    let norms = [1, 2, 6].map(|threads| on_threads(threads, || squared_norm(x.clone())));
    assert!((norms[0] / expected - 1.0).abs() < 1e-12, "{} {expected}", norms[0]);
    assert!(norms.iter().all(|n| n.to_bits() == norms[0].to_bits()));
}
