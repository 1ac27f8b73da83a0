//! Attention kernels against the plain path in f64.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::{Int, Tensor};
use deme_kernels::{attention, plain};
use proptest::prelude::*;
use support::{assert_close, bits, f64, largest, on_threads, tensor};

type Attention = fn(Tensor<4>, Tensor<4>, Tensor<4>, f64, bool) -> Tensor<4>;

/// Output and the gradients of q, k, v of sum(y g).
fn run(f: Attention, [q, k, v, g]: [Tensor<4>; 4], scale: f64, causal: bool) -> [Tensor<4>; 4] {
    let [q, k, v] = [q, k, v].map(|t| t.autodiff().require_grad());
    let y = f(q.clone(), k.clone(), v.clone(), scale, causal);
    let grads = (y.clone() * g.autodiff()).sum().backward();
    let [dq, dk, dv] = [q, k, v].map(|t| t.grad(&grads).unwrap());
    [y.inner(), dq, dk, dv]
}

fn inputs(seed: u64, [b, h, queries, keys, d]: [usize; 5]) -> [Tensor<4>; 4] {
    [
        tensor(seed, [b, h, queries, d]),
        tensor(seed + 1, [b, h, keys, d]),
        tensor(seed + 2, [b, h, keys, d]),
        tensor(seed + 3, [b, h, queries, d]),
    ]
}

fn check(inputs: [Tensor<4>; 4], scale: f64, causal: bool) {
    let found = run(attention, inputs.clone(), scale, causal);
    let expected = run(plain::attention, inputs.map(f64), scale, causal);
    for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
        let scale = largest(&expected).max(1.0);
        assert_close(f64(found), expected, 1e-5, scale, ["y", "dq", "dk", "dv"][i]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn follows_the_plain_path(
        seed in 0u64..1000, b in 1usize..3, h in 1usize..4, queries in 1usize..70,
        keys in 1usize..70, d in 1usize..40, scale in 0.05f64..1.0, causal: bool,
    ) {
        let keys = if causal { queries } else { keys };
        check(inputs(seed, [b, h, queries, keys, d]), scale, causal);
    }
}

#[test]
fn follows_the_plain_path_over_several_blocks() {
    check(inputs(1, [1, 1, 256, 256, 64]), 0.125, false);
    check(inputs(2, [2, 2, 130, 130, 16]), 0.25, true);
    // More keys than are held at once.
    check(inputs(3, [1, 2, 60, 1100, 24]), 0.5, false);
    check(inputs(4, [1, 1, 600, 600, 8]), 1.0, true);
}

#[test]
fn the_largest_score_may_come_late() {
    // Each key's score is larger than all before it, by far from one block of keys to the next.
    let [q, k, v, _] = inputs(5, [1, 1, 3, 1100, 4]);
    let rising =
        Tensor::<1, Int>::arange(0..1100, &support::device()).float().reshape([1, 1, 1100, 1]);
    let (q, k) = (q.abs() + 0.1, k * 0.0 + rising * 0.05);
    let expected = plain::attention(f64(q.clone()), f64(k.clone()), f64(v.clone()), 1.0, false);
    assert_close(f64(attention(q, k, v, 1.0, false)), expected, 1e-4, 1.0, "y");
}

#[test]
fn reads_heads_split_off_the_last_dimension() {
    let heads = |seed| tensor::<3>(seed, [2, 20, 24]).reshape([2, 20, 3, 8]).swap_dims(1, 2);
    check([heads(3), heads(4), heads(5), heads(6)], 0.3, false);
}

#[test]
fn heads_split_off_the_last_dimension_give_the_same_bits_and_are_put_back_without_a_copy() {
    let apart = inputs(12, [2, 3, 50, 33, 8]);
    let [q, k, v, _] = apart.clone();
    let expected = bits(attention(q, k, v, 0.3, false));
    // The same values, stored as `[B, L, heads, d]`.
    let together = |x: Tensor<4>| {
        let stored = x.swap_dims(1, 2).into_data();
        Tensor::<4>::from_data(stored, &support::device()).swap_dims(1, 2)
    };
    let [q, k, v, _] = apart.clone().map(together);
    assert!(bits(attention(q.clone(), k.clone(), v.clone(), 0.3, false)) == expected);
    // Some of them only.
    let [q_apart, k_apart, v_apart, _] = apart;
    assert!(bits(attention(q_apart, k, v_apart.clone(), 0.3, false)) == expected);
    assert!(bits(attention(q, k_apart, v_apart, 0.3, false)) == expected);
    // A part of a larger tensor.
    let wide = tensor::<4>(13, [2, 20, 3, 24]);
    let parts = [0, 8, 16].map(|start| wide.clone().narrow(3, start, 8).swap_dims(1, 2));
    let copies = parts.clone().map(|x| Tensor::from_data(x.into_data(), &support::device()));
    let run = |[q, k, v]: [Tensor<4>; 3]| bits(attention(q, k, v, 0.3, false));
    assert!(run(parts) == run(copies));
}

#[test]
fn channels_before_positions_give_the_same_bits() {
    let all = inputs(11, [2, 3, 40, 40, 24]);
    let expected = run(attention, all.clone(), 0.3, false).map(bits);
    // The same values, stored as `[B, heads, d, L]`.
    let lies_swapped = |x: Tensor<4>| {
        // Through the host, which is always row-major.
        let stored = x.swap_dims(2, 3).into_data();
        Tensor::<4>::from_data(stored, &support::device()).swap_dims(2, 3)
    };
    let found = run(attention, all.map(lies_swapped), 0.3, false).map(bits);
    assert!(found == expected);
}

#[test]
fn large_scores_stay_finite() {
    let [q, k, v, g] = inputs(7, [1, 2, 20, 20, 8]);
    check([q * 30.0, k, v, g], 1.0, false);
}

#[test]
fn a_value_that_is_not_a_number_is_not_hidden() {
    let [q, k, v, _] = inputs(8, [1, 1, 4, 4, 4]);
    let y = attention(q * f32::NAN, k, v, 1.0, false);
    assert!(y.into_data().iter::<f32>().all(f32::is_nan));
    // Among many keys, in the first ones and in the last.
    for at in [3, 1000] {
        let [q, k, v, _] = inputs(8, [1, 1, 4, 1100, 4]);
        let nan = k.clone().narrow(2, at, 1) * f32::NAN;
        let k =
            Tensor::cat(vec![k.clone().narrow(2, 0, at), nan, k.narrow(2, at + 1, 1099 - at)], 2);
        let y = attention(q, k, v, 1.0, false);
        assert!(y.into_data().iter::<f32>().all(f32::is_nan), "key {at}");
    }
}

#[test]
fn threads_and_batch_do_not_change_a_bit() {
    let all = inputs(9, [3, 2, 70, 70, 16]);
    let on = |threads| {
        let inputs = all.clone();
        on_threads(threads, || run(attention, inputs, 0.25, true).map(bits))
    };
    let one = on(1);
    assert!(one == on(2) && one == on(7));
    for i in 0..3 {
        let [q, k, v, _] = all.clone().map(|t| t.narrow(0, i, 1));
        let alone = bits(attention(q, k, v, 0.25, true));
        assert!(alone[..] == one[0][i * alone.len()..(i + 1) * alone.len()]);
    }
}

#[test]
fn gradients_are_the_slopes() {
    let all = inputs(10, [1, 2, 9, 9, 5]);
    let [_, dq, dk, dv] = run(attention, all.clone(), 0.4, true);
    let direction = tensor(20, [1, 2, 9, 5]);
    for (which, grad) in [dq, dk, dv].into_iter().enumerate() {
        let slope = (grad * direction.clone()).sum().into_scalar::<f64>();
        let loss = |h: f64| {
            let mut moved = all.clone().map(f64);
            moved[which] = moved[which].clone() + f64(direction.clone()) * h;
            let [q, k, v, g] = moved;
            (plain::attention(q, k, v, 0.4, true) * g).sum().into_scalar::<f64>()
        };
        let expected = (loss(1e-4) - loss(-1e-4)) / 2e-4;
        assert!((slope - expected).abs() < 1e-4 * expected.abs().max(1.0), "{slope} {expected}");
    }
}
