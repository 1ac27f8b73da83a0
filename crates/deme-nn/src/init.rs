//! Seeded initialisation with PyTorch's default distributions.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Draws initial parameters, one layer after the other, from one seed.
#[derive(Debug)]
pub struct Init {
    /// None: nothing is drawn, all entries are zero.
    rng: Option<ChaCha8Rng>,
    device: Device,
}

impl Init {
    /// Starts the stream of `seed`; parameters are placed on `device`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { rng: Some(ChaCha8Rng::seed_from_u64(seed)), device: device.clone() }
    }

    /// Zeros instead of draws, for a network whose weights are read right after: drawing those of a
    /// large one takes longer than reading them.
    pub fn zeros(device: &Device) -> Self {
        Self { rng: None, device: device.clone() }
    }

    /// Where the parameters are placed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Tensor<D> {
        self.drawn(shape, |rng| (rng.random::<f32>() * 2.0 - 1.0) * bound)
    }

    /// Normal with mean 0 and deviation `std`.
    pub fn normal<const D: usize>(&mut self, shape: [usize; D], std: f32) -> Tensor<D> {
        self.drawn(shape, |rng| rng.sample::<f32, _>(StandardNormal) * std)
    }

    fn drawn<const D: usize>(
        &mut self,
        shape: [usize; D],
        draw: impl Fn(&mut ChaCha8Rng) -> f32,
    ) -> Tensor<D> {
        let len = shape.iter().product();
        let values = match &mut self.rng {
            Some(rng) => (0..len).map(|_| draw(rng)).collect(),
            None => vec![0.0; len],
        };
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

    #[test]
    fn without_draws_all_but_constants_is_zero() {
        let mut init = Init::zeros(&Device::flex());
        assert_eq!(host(init.normal([3], 2.0)), [0.0; 3]);
        assert_eq!(host(init.uniform([3], 2.0)), [0.0; 3]);
        assert_eq!(host(init.constant([3], 2.0)), [2.0; 3]);
    }
}
