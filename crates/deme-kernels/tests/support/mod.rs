//! Seeded tensors, and the comparison of a kernel with the plain path in f64.
#![allow(dead_code, clippy::unwrap_used)]

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

pub fn device() -> Device {
    Device::flex()
}

/// Standard normal values.
pub fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| StandardNormal.sample(&mut rng)).collect()
}

pub fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let values = normal(seed, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &device())
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

pub fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    x.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// The same values as an f64 tensor.
pub fn f64<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(DType::F64)
}

/// Largest difference over the largest expected magnitude.
pub fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().chain(expected).all(|x| x.is_finite()));
    let scale = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs())) / scale
}

pub fn assert_close<const D: usize>(
    found: Tensor<D>,
    expected: Tensor<D>,
    within: f64,
    what: &str,
) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let error = relative_error(&values(found), &values(expected));
    assert!(error <= within, "{what}: off by {error:e}, allowed {within:e}");
}

/// Runs `work` on a pool of `threads` threads.
pub fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}
