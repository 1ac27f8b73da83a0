//! The optimiser's fused pass against the plain path.
#![allow(clippy::unwrap_used)]

mod support;

use burn::tensor::Tensor;
use deme_kernels::{AdamWStep, ParameterState, adamw_steps, plain, squared_norm};
use support::{assert_close, bits, f64, largest, on_threads, tensor, values};

const STEP: AdamWStep = AdamWStep {
    learning_rate: 1e-3,
    beta1: 0.95,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 1e-2,
    step: 3,
    grad_scale: 0.7,
    average_decay: 0.9,
};

/// Entries that the kernel takes as one piece.
const CHUNK: usize = 1 << 14;

/// Small tensors between large ones, and all lengths about one chunk and two.
const LENGTHS: [usize; 11] =
    [1, 15, CHUNK - 1, CHUNK, 3, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 40_000, 100];

type Parameters = Vec<(ParameterState, Tensor<1>)>;

/// A parameter with or without an average, and a gradient.
fn parameter(seed: u64, len: usize, averaged: bool) -> (ParameterState, Tensor<1>) {
    let [theta, m, v, grad, average] = [0, 1, 2, 3, 4].map(|i| tensor(10 * seed + i, [len]));
    let average = averaged.then_some(average);
    (ParameterState { theta, m, v: v.square(), average }, grad)
}

/// One parameter of every length, all with an average, or none, or one in two.
fn parameters(averaged: impl Fn(usize) -> bool) -> Parameters {
    let lengths = LENGTHS.into_iter().enumerate();
    lengths.map(|(i, len)| parameter(i as u64, len, averaged(i))).collect()
}

fn all(state: ParameterState) -> impl Iterator<Item = Tensor<1>> {
    [state.theta, state.m, state.v].into_iter().chain(state.average)
}

fn all_bits(states: Vec<ParameterState>) -> Vec<Vec<u32>> {
    states.into_iter().flat_map(all).map(bits).collect()
}

#[test]
fn a_step_follows_the_plain_path() {
    let start = parameters(|_| true);
    let f64_start = start.iter().cloned().map(|(state, grad)| {
        let [theta, m, v] = [state.theta, state.m, state.v].map(f64);
        (ParameterState { theta, m, v, average: state.average.map(f64) }, f64(grad))
    });
    let expected = plain::adamw_steps(f64_start.collect(), &STEP);
    for (found, expected) in adamw_steps(start, &STEP).into_iter().zip(expected) {
        for (found, expected) in all(found).zip(all(expected)) {
            assert_close(f64(found), expected.clone(), 3e-7, largest(&expected), "a part");
        }
    }
}

#[test]
fn a_step_rounds_as_the_separate_operations_do() {
    for averaged in [|_| false, |_| true, |i| i % 2 == 0] {
        let start = parameters(averaged);
        let expected = plain::adamw_steps(start.clone(), &STEP);
        assert_eq!(all_bits(adamw_steps(start, &STEP)), all_bits(expected));
    }
}

#[test]
fn the_average_is_that_of_the_new_values_and_changes_nothing_else() {
    let with = adamw_steps(parameters(|_| true), &STEP);
    let without = adamw_steps(parameters(|_| false), &STEP);
    let before = parameters(|_| true);
    for ((with, without), (before, _)) in with.into_iter().zip(without).zip(before) {
        let (keep, take) = (STEP.average_decay, 1.0 - STEP.average_decay);
        let average = before.average.unwrap() * keep + without.theta.clone() * take;
        assert_eq!(bits(with.average.unwrap()), bits(average));
        assert_eq!(bits(with.theta), bits(without.theta));
        assert_eq!([bits(with.m), bits(with.v)], [bits(without.m), bits(without.v)]);
    }
}

#[test]
fn parameters_together_step_as_each_alone_whatever_the_threads() {
    let start = parameters(|i| i % 3 != 0);
    let alone = start.iter().cloned().flat_map(|parameter| adamw_steps(vec![parameter], &STEP));
    let alone = all_bits(alone.collect());
    for threads in [1, 2, 6] {
        let together = on_threads(threads, || adamw_steps(start.clone(), &STEP));
        assert_eq!(all_bits(together), alone, "{threads} threads");
    }
}

#[test]
fn shared_tensors_keep_their_values() {
    let start = parameters(|_| true);
    let read = |start: &Parameters| -> Vec<Vec<f64>> {
        let tensors = start.iter().cloned().flat_map(|(state, grad)| all(state).chain([grad]));
        tensors.map(values).collect()
    };
    let before = read(&start);
    let _ = adamw_steps(start.clone(), &STEP);
    assert_eq!(before, read(&start));

    // An average that begins as the parameter itself, in the same memory.
    let (state, grad) = parameter(1, 1000, false);
    let average = Some(state.theta.clone());
    let found = adamw_steps(vec![(ParameterState { average, ..state.clone() }, grad)], &STEP);
    let (theta, average) = (found[0].theta.clone(), found[0].average.clone().unwrap());
    let expected = state.theta * STEP.average_decay + theta * (1.0 - STEP.average_decay);
    assert_eq!(bits(average), bits(expected));
}

#[test]
fn a_part_of_a_tensor_is_stepped_alone() {
    let part = |x: &Tensor<1>| x.clone().narrow(0, 20, 30);
    let (state, grad) = parameter(1, 100, true);
    let parts = ParameterState {
        theta: part(&state.theta),
        m: part(&state.m),
        v: part(&state.v),
        average: state.average.as_ref().map(part),
    };
    let found = adamw_steps(vec![(parts, part(&grad))], &STEP).remove(0);
    let whole = adamw_steps(vec![(state, grad)], &STEP).remove(0);
    for (found, whole) in all(found).zip(all(whole)) {
        assert_eq!(bits(found), bits(part(&whole)));
    }
}

#[test]
fn no_parameters_and_parameters_without_entries_are_no_work() {
    assert_eq!(adamw_steps(Vec::new(), &STEP).len(), 0);
    assert_eq!(squared_norm(Vec::new()), 0.0);
    let found = adamw_steps(vec![parameter(1, 0, true), parameter(2, 5, true)], &STEP);
    let alone = adamw_steps(vec![parameter(2, 5, true)], &STEP);
    assert_eq!(found[0].theta.dims(), [0]);
    assert_eq!(all_bits(found[1..].to_vec()), all_bits(alone));
    assert_eq!(squared_norm(vec![tensor(1, [0]), tensor(2, [0])]), 0.0);
}

#[test]
fn the_norm_is_summed_in_f64_whatever_the_threads() {
    let lengths = LENGTHS.into_iter().chain([100_003]).enumerate();
    let tensors: Vec<Tensor<1>> =
        lengths.map(|(i, len)| tensor::<1>(i as u64, [len]) * 1e3).collect();
    let squares = tensors.iter().cloned().flat_map(values).map(|x| x * x);
    let expected: f64 = squares.sum();
    let norms = [1, 2, 6].map(|threads| on_threads(threads, || squared_norm(tensors.clone())));
    assert!((norms[0] / expected - 1.0).abs() < 1e-12, "{} {expected}", norms[0]);
    assert!(norms.iter().all(|n| n.to_bits() == norms[0].to_bits()));

    // Each tensor has its own sum, whatever is summed beside it.
    let alone: f64 = tensors.into_iter().map(|x| squared_norm(vec![x])).sum();
    assert_eq!(alone.to_bits(), norms[0].to_bits());
}
