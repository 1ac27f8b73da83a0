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

/// Largest magnitude.
pub fn largest<const D: usize>(x: &Tensor<D>) -> f64 {
    values(x.clone()).iter().fold(0.0, |a, b| a.max(b.abs()))
}

/// Checks that no entry differs by more than `within` times `scale`. The scale is the size of the
/// terms that were added up, so that a sum that happens to cancel asks for no more than f32 has.
pub fn assert_close<const D: usize>(
    found: Tensor<D>,
    expected: Tensor<D>,
    within: f64,
    scale: f64,
    what: &str,
) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    assert!(found.iter().chain(&expected).all(|x| x.is_finite()), "{what}");
    let pairs = found.iter().zip(&expected);
    let worst = pairs.fold(0.0f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= within * scale, "{what}: off by {worst:e}, allowed {within:e} of {scale}");
}

/// Runs `work` on a pool of `threads` threads.
pub fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}
