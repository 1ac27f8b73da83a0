//! What a sampler needs of a network: one call, noisy images and timesteps in, raw output out.
//!
//! A sampler, a [`RangeEnsemble`](crate::range_ensemble::RangeEnsemble) and a loss know [`Denoiser`] alone. A
//! network that also looks at a text is a [`ConditionalDenoiser`]; with the text's hidden states bound in
//! ([`Conditioned`]) it is a [`Denoiser`] like any other, so nothing behind it has to know of texts.
//!
//! Not here: what the output means ([`PredictionType`](crate::prediction::PredictionType)), and how two
//! conditions are played off against each other (guidance).

use burn::tensor::Tensor;

/// A network that looks at noisy images and their timesteps.
pub trait Denoiser {
    /// The network's raw output (eps, x_0 or v, as it was trained) for `x_t` at timesteps `t`.
    ///
    /// # Shapes
    /// x_t: `[B, C, H, W]`; t: one per image, in `0..num_train_timesteps`; returns `[B, C, H, W]`.
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4>;

    /// As [`predict`](Self::predict), at timesteps that may lie between two of training: Euler's methods ask
    /// there. Networks that embed a time take it as it is; this default, for those that know only the
    /// timesteps of training, rounds to the nearest.
    ///
    /// # Shapes
    /// x_t: `[B, C, H, W]`; t: one per image, in `[0, num_train_timesteps - 1]`; returns `[B, C, H, W]`.
    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        self.predict(x_t, &nearest_timesteps(t))
    }
}

/// Half-way timesteps go to the even one.
fn nearest_timesteps(t: &[f64]) -> Vec<usize> {
    t.iter().map(|t| t.round_ties_even() as usize).collect()
}

impl<D: Denoiser + ?Sized> Denoiser for &D {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        (**self).predict(x_t, t)
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        (**self).predict_between(x_t, t)
    }
}

impl<D: Denoiser + ?Sized> Denoiser for Box<D> {
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        (**self).predict(x_t, t)
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        (**self).predict_between(x_t, t)
    }
}

/// A network that looks at noisy images, their timesteps and, for each image, the hidden states of a text.
pub trait ConditionalDenoiser {
    /// The network's raw output (eps, x_0 or v, as it was trained) for `x_t` at timesteps `t`.
    ///
    /// # Shapes
    /// x_t: `[B, C, H, W]`; t: one per image, in `0..num_train_timesteps`; condition: `[B, L, width]`, one
    /// sequence per image; returns `[B, C, H, W]`.
    fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4>;

    /// As [`predict`](Self::predict), at timesteps that may lie between two of training, as
    /// [`Denoiser::predict_between`] has it.
    fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
        self.predict(x_t, &nearest_timesteps(t), condition)
    }
}

impl<D: ConditionalDenoiser + ?Sized> ConditionalDenoiser for &D {
    fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        (**self).predict(x_t, t, condition)
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
        (**self).predict_between(x_t, t, condition)
    }
}

impl<D: ConditionalDenoiser + ?Sized> ConditionalDenoiser for Box<D> {
    fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        (**self).predict(x_t, t, condition)
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
        (**self).predict_between(x_t, t, condition)
    }
}

/// A conditional denoiser with its condition bound in.
#[derive(Debug, Clone)]
pub struct Conditioned<D> {
    /// The network.
    pub denoiser: D,
    /// `[B, L, width]`: one sequence per image; or `[1, L, width]`, the same for every image.
    pub hidden_states: Tensor<3>,
}

impl<D> Conditioned<D> {
    /// One sequence per image, `[images, L, width]`.
    ///
    /// # Panics
    /// When there are neither one sequence nor as many as images.
    fn per_image(&self, images: usize) -> Tensor<3> {
        let [sequences, length, width] = self.hidden_states.dims();
        assert!(
            sequences == images || sequences == 1,
            "{images} images need 1 or {images} sequences of hidden states, not {sequences}"
        );
        self.hidden_states.clone().expand([images, length, width])
    }
}

impl<D: ConditionalDenoiser> Denoiser for Conditioned<D> {
    /// # Panics
    /// When there are neither one sequence nor as many as images.
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        let condition = self.per_image(x_t.dims()[0]);
        self.denoiser.predict(x_t, t, condition)
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        let condition = self.per_image(x_t.dims()[0]);
        self.denoiser.predict_between(x_t, t, condition)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::Device;

    /// Adds the sum of each image's hidden states.
    struct AddsItsCondition;

    impl ConditionalDenoiser for AddsItsCondition {
        fn predict(&self, x_t: Tensor<4>, _: &[usize], condition: Tensor<3>) -> Tensor<4> {
            let images = condition.dims()[0];
            x_t + condition.sum_dim(2).sum_dim(1).reshape([images, 1, 1, 1])
        }
    }

    fn predict(hidden_states: Tensor<3>) -> Vec<f32> {
        let bound = Conditioned { denoiser: &AddsItsCondition, hidden_states };
        let x_t = Tensor::zeros([2, 1, 1, 1], &Device::flex());
        bound.predict(x_t, &[0, 0]).into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn each_image_gets_its_own_sequence_or_all_get_the_same() {
        let device = Device::flex();
        let two = Tensor::from_floats([[[1.0, 2.0]], [[3.0, 4.0]]], &device);
        assert_eq!(predict(two), [3.0, 7.0]);
        assert_eq!(predict(Tensor::from_floats([[[1.0, 2.0], [0.5, 0.5]]], &device)), [4.0, 4.0]);
    }

    #[test]
    fn without_a_time_of_its_own_a_denoiser_takes_the_nearest_timestep() {
        let shows_t = DenoiserFn(|x_t: Tensor<4>, t: &[usize]| x_t + t[0] as f64);
        let boxed: Box<dyn Denoiser> = Box::new(&shows_t);
        for (t, nearest) in [(3.0, 3.0), (3.4, 3.0), (3.5, 4.0), (4.5, 4.0), (0.2, 0.0)] {
            let x_t = Tensor::zeros([1, 1, 1, 1], &Device::flex());
            let found = boxed.predict_between(x_t, &[t]).into_data().try_into_vec::<f32>();
            assert_eq!(found.unwrap(), [nearest]);
        }
    }

    #[test]
    #[should_panic(expected = "need 1 or 2 sequences")]
    fn another_number_of_sequences_is_our_bug() {
        predict(Tensor::zeros([3, 1, 2], &Device::flex()));
    }
}
