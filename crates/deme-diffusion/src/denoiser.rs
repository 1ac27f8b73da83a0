//! What a sampler needs of a network: one call, noisy images and timesteps in, raw output out.
//!
//! Not here: what the output means ([`PredictionType`](crate::prediction::PredictionType)).

use burn::tensor::Tensor;

/// A network that looks at noisy images and their timesteps.
pub trait Denoiser {
    /// The network's raw output (eps, x_0 or v, as it was trained) for `x_t` at timesteps `t`.
    ///
    /// # Shapes
    /// x_t: `[B, C, H, W]`; t: one per image, in `0..num_train_timesteps`; returns `[B, C, H, W]`.
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4>;
}

impl<D: Denoiser + ?Sized> Denoiser for &D {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        (**self).predict(x_t, t)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for Box<D> {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        (**self).predict(x_t, t)
    }
}

/// A function as a denoiser: closed-form models.
#[derive(Debug, Clone, Copy)]
pub struct DenoiserFn<F>(pub F);

impl<F: Fn(Tensor<4>, &[usize]) -> Tensor<4>> Denoiser for DenoiserFn<F> {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        (self.0)(x_t, t)
    }
}
