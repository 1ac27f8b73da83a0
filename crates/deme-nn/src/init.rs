//! Seeded initialisation with PyTorch's default distributions.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Draws initial parameters, one layer after the other, from one seed.
#[derive(Debug)]
pub struct Init {
    rng: ChaCha8Rng,
    device: Device,
}

impl Init {
    /// Starts the stream of `seed`; parameters are placed on `device`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), device: device.clone() }
    }

    /// Where the parameters are placed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| (self.rng.random::<f32>() * 2.0 - 1.0) * bound)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// Normal with mean 0 and deviation `std`.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| self.rng.sample::<f32, _>(StandardNormal) * std)
            .collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// All entries `value`.
    pub fn constant<const D: usize>(&mut self, shape: [usize; D], value: f32) -> Tensor<D> {
        let values = vec![value; shape.iter().product()];
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::host;

    #[test]
    fn draws_depend_on_the_seed_alone_and_have_the_right_spread() {
        let device = Device::flex();
        let draw = |seed| host(Init::new(seed, &device).normal([4000], 2.0));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let deviation = (draw(1).iter().map(|x| x * x).sum::<f32>() / 4000.0).sqrt();
        assert!((deviation - 2.0).abs() < 0.1, "{deviation}");
        let uniform = host(Init::new(1, &device).uniform([4000], 0.5));
        assert!(uniform.iter().all(|x| x.abs() <= 0.5) && uniform.iter().any(|x| x.abs() > 0.49));
    }
}
