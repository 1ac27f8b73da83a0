//! The experts before they are merged: each timestep goes to the expert of its range.
//!
//! DeMe (Ma et al. 2025), tables 1 and 2, "before merge".
//! Not here: how the experts are trained or merged.

use crate::denoiser::{ConditionalDenoiser, Denoiser};
use crate::timestep::{TimestepError, TimestepRange, range_index};
use burn::tensor::Tensor;

/// N experts as one denoiser: at timestep t the expert of the range that holds t.
#[derive(Debug, Clone)]
pub struct RangeEnsemble<D> {
    experts: Vec<D>,
    num_train_timesteps: usize,
}

impl<D> RangeEnsemble<D> {
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
        self.by_expert(x_t, t, t, |expert, x_t, t, _| expert.predict(x_t, t))
    }

    /// The range that holds t also holds the whole timestep below it, which therefore says whose turn it is.
    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        self.by_expert(x_t, t, &whole(t), |expert, x_t, t, _| expert.predict_between(x_t, t))
    }
}

impl<D: ConditionalDenoiser> ConditionalDenoiser for RangeEnsemble<D> {
    /// As without a condition; each image takes its own sequence along.
    ///
    /// # Panics
    /// When some t >= T, or when there is not one t per image.
    fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
        self.by_expert(x_t, t, t, |expert, x_t, t, images| {
            expert.predict(x_t, t, rows(&condition, images))
        })
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
        self.by_expert(x_t, t, &whole(t), |expert, x_t, t, images| {
            expert.predict_between(x_t, t, rows(&condition, images))
        })
    }
}

/// The whole timesteps at or below `t`.
fn whole(t: &[f64]) -> Vec<usize> {
    t.iter().map(|t| t.floor() as usize).collect()
}

/// The sequences of some images of the batch, or of all.
fn rows(condition: &Tensor<3>, images: Option<&[usize]>) -> Tensor<3> {
    match images {
        None => condition.clone(),
        Some(images) => {
            let row = |&i: &usize| condition.clone().narrow(0, i, 1);
            Tensor::cat(images.iter().map(row).collect(), 0)
        }
    }
}

impl<D> RangeEnsemble<D> {
    /// `predict` by every expert on the images of its timesteps, which `whole` decides. Its last argument says
    /// which images of the batch these are, when they are not all.
    fn by_expert<T: Copy>(
        &self,
        x_t: Tensor<4>,
        t: &[T],
        whole: &[usize],
        predict: impl Fn(&D, Tensor<4>, &[T], Option<&[usize]>) -> Tensor<4>,
    ) -> Tensor<4> {
        assert_eq!(x_t.dims()[0], t.len(), "each image has one timestep");
        let n = self.experts.len();
        let chosen: Vec<usize> = whole
            .iter()
            .map(|&t| {
                assert!(t < self.num_train_timesteps, "a timestep lies in 0..num_train_timesteps");
                range_index(t, n, self.num_train_timesteps)
            })
            .collect();
        if let Some(&first) = chosen.first()
            && chosen.iter().all(|&expert| expert == first)
        {
            return predict(&self.experts[first], x_t, t, None);
        }
        let image = |batch: &Tensor<4>, i: usize| batch.clone().narrow(0, i, 1);
        let mut outputs: Vec<Option<Tensor<4>>> = vec![None; t.len()];
        for (index, expert) in self.experts.iter().enumerate() {
            let mine: Vec<usize> = (0..t.len()).filter(|&i| chosen[i] == index).collect();
            if mine.is_empty() {
                continue;
            }
            let images = mine.iter().map(|&i| image(&x_t, i)).collect();
            let times: Vec<T> = mine.iter().map(|&i| t[i]).collect();
            let output = predict(expert, Tensor::cat(images, 0), &times, Some(&mine));
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
            let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
            self.predict_between(x_t, &t)
        }

        fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
            let times: Vec<f32> = t.iter().map(|&t| t as f32).collect();
            let shape = [times.len(), 1, 1, 1];
            let times = Tensor::from_data(TensorData::new(times, shape), &x_t.device());
            x_t + times + self.0 as f32 * 100.0
        }
    }

    /// The same, and what it is conditioned on.
    #[derive(Debug)]
    struct ConditionalExpert(usize);

    impl ConditionalDenoiser for ConditionalExpert {
        fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
            let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
            self.predict_between(x_t, &t, condition)
        }

        fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
            let images = condition.dims()[0];
            Expert(self.0).predict_between(x_t, t) + condition.reshape([images, 1, 1, 1])
        }
    }

    fn images(t: &[usize]) -> Tensor<4> {
        let values: Vec<f32> = (0..t.len()).map(|i| i as f32 * 1000.0).collect();
        let data = TensorData::new(values, [t.len(), 1, 1, 1]);
        Tensor::from_data(data, &Device::default())
    }

    fn predict(t: &[usize]) -> Vec<f32> {
        let ensemble = RangeEnsemble::new((0..4).map(Expert).collect(), 20).unwrap();
        let output = ensemble.predict(images(t), t);
        output.into_data().try_into_vec::<f32>().unwrap()
    }

    /// Image i is conditioned on `i + 1` times 10000.
    fn predict_conditioned(t: &[usize]) -> Vec<f32> {
        let ensemble = RangeEnsemble::new((0..4).map(ConditionalExpert).collect(), 20).unwrap();
        let condition: Vec<f32> = (0..t.len()).map(|i| (i + 1) as f32 * 10000.0).collect();
        let condition = TensorData::new(condition, [t.len(), 1, 1]);
        let condition = Tensor::from_data(condition, &Device::default());
        let output = ensemble.predict(images(t), t, condition);
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
    fn between_two_timesteps_the_lower_one_says_which_expert() {
        let ensemble = RangeEnsemble::new((0..4).map(Expert).collect(), 20).unwrap();
        let output = ensemble.predict_between(images(&[4, 5]), &[4.75, 5.5]);
        let output = output.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(output, [4.75, 1105.5]);

        let ensemble = RangeEnsemble::new((0..4).map(ConditionalExpert).collect(), 20).unwrap();
        let condition = TensorData::new(vec![10000.0, 20000.0], [2, 1, 1]);
        let condition = Tensor::from_data(condition, &Device::default());
        let output = ensemble.predict_between(images(&[4, 5]), &[4.75, 5.5], condition);
        let output = output.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(output, [10004.75, 21105.5]);
    }

    #[test]
    fn each_image_takes_its_condition_along() {
        assert_eq!(predict_conditioned(&[19, 0, 12]), [10319.0, 21000.0, 32212.0]);
        assert_eq!(predict_conditioned(&[10, 11]), [10210.0, 21211.0]);
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
