//! The experts before they are merged: each timestep goes to the expert of its range.
//!
//! DeMe (Ma et al. 2025), tables 1 and 2, "before merge".
//! Not here: how the experts are trained or merged.

use crate::denoiser::Denoiser;
use crate::timestep::{TimestepError, TimestepRange, range_index};
use burn::tensor::Tensor;

/// N experts as one denoiser: at timestep t the expert of the range that holds t.
#[derive(Debug, Clone)]
pub struct RangeEnsemble<D> {
    experts: Vec<D>,
    num_train_timesteps: usize,
}

impl<D: Denoiser> RangeEnsemble<D> {
    /// An ensemble of `experts`, in the order of their ranges ([`TimestepRange::split`]).
    ///
    /// # Errors
    /// [`TimestepError`] when there is no expert, or more experts than timesteps.
    pub fn new(experts: Vec<D>, num_train_timesteps: usize) -> Result<Self, TimestepError> {
        TimestepRange::split(num_train_timesteps, experts.len())?;
        Ok(Self { experts, num_train_timesteps })
    }

    /// The experts, in the order of their ranges.
    pub fn experts(&self) -> &[D] {
        &self.experts
    }
}

impl<D: Denoiser> Denoiser for RangeEnsemble<D> {
    /// Each image goes to the expert of its timestep; images of one expert run as one batch.
    ///
    /// # Panics
    /// When some t >= T, or when there is not one t per image.
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        assert_eq!(x_t.dims()[0], t.len(), "each image has one timestep");
        let n = self.experts.len();
        let chosen: Vec<usize> = t
            .iter()
            .map(|&t| {
                assert!(t < self.num_train_timesteps, "a timestep lies in 0..num_train_timesteps");
                range_index(t, n, self.num_train_timesteps)
            })
            .collect();
        if let Some(&first) = chosen.first()
            && chosen.iter().all(|&expert| expert == first)
        {
            return self.experts[first].predict(x_t, t);
        }
        let image = |batch: &Tensor<4>, i: usize| batch.clone().narrow(0, i, 1);
        let mut outputs: Vec<Option<Tensor<4>>> = vec![None; t.len()];
        for (index, expert) in self.experts.iter().enumerate() {
            let mine: Vec<usize> = (0..t.len()).filter(|&i| chosen[i] == index).collect();
            if mine.is_empty() {
                continue;
            }
            let images = mine.iter().map(|&i| image(&x_t, i)).collect();
            let times: Vec<usize> = mine.iter().map(|&i| t[i]).collect();
            let output = expert.predict(Tensor::cat(images, 0), &times);
            for (row, &i) in mine.iter().enumerate() {
                outputs[i] = Some(image(&output, row));
            }
        }
        let outputs = outputs
            .into_iter()
            .map(|output| output.expect("every image was given to one expert"))
            .collect();
        Tensor::cat(outputs, 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// Adds 100 times its index and the image's timestep.
    #[derive(Debug)]
    struct Expert(usize);

    impl Denoiser for Expert {
        fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
            let times: Vec<f32> = t.iter().map(|&t| t as f32).collect();
            let shape = [times.len(), 1, 1, 1];
            let times = Tensor::from_data(TensorData::new(times, shape), &x_t.device());
            x_t + times + self.0 as f32 * 100.0
        }
    }

    fn predict(t: &[usize]) -> Vec<f32> {
        let ensemble = RangeEnsemble::new((0..4).map(Expert).collect(), 20).unwrap();
        let values: Vec<f32> = (0..t.len()).map(|i| i as f32 * 1000.0).collect();
        let data = TensorData::new(values, [t.len(), 1, 1, 1]);
        let output = ensemble.predict(Tensor::from_data(data, &Device::default()), t);
        output.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn each_image_goes_to_the_expert_of_its_timestep() {
        assert_eq!(predict(&[19, 0, 4, 5, 12, 1]), [319.0, 1000.0, 2004.0, 3105.0, 4212.0, 5001.0]);
    }

    #[test]
    fn a_batch_at_one_timestep() {
        assert_eq!(predict(&[10, 10]), [210.0, 1210.0]);
    }

    #[test]
    fn no_experts_are_an_error() {
        let error = RangeEnsemble::<Expert>::new(Vec::new(), 20).unwrap_err();
        assert_eq!(error, TimestepError::NoRanges);
    }

    #[test]
    fn more_experts_than_timesteps_are_an_error() {
        let error = RangeEnsemble::new((0..4).map(Expert).collect(), 3).map(|_| ());
        assert!(matches!(error, Err(TimestepError::MoreRangesThanTimesteps { ranges: 4, .. })));
    }

    #[test]
    #[should_panic(expected = "lies in 0..num_train_timesteps")]
    fn a_timestep_behind_the_end_is_our_bug() {
        predict(&[20]);
    }
}
