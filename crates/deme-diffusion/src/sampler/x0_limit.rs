//! What is done to the predicted x_0 before a step uses it: nothing, clamping, or dynamic thresholding.
//!
//! For models of pixels: latents have no range to stay in.

use super::SampleError;
use crate::scheduler_config::SchedulerConfig;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamicThresholding {
    /// Which quantile of the absolute pixel values becomes the threshold, in [0, 1].
    pub ratio: f64,
    /// The largest threshold.
    pub max: f64,
}

impl Default for DynamicThresholding {
    fn default() -> Self {
        Self { ratio: 0.995, max: 1.0 }
    }
}

/// What is done to the predicted x_0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum X0Limit {
    /// Nothing.
    #[default]
    None,
    /// Clamped to `[-range, range]`.
    Clamp {
        /// Above 0.
        range: f64,
    },
    /// Clamped to `[-s, s]` and divided by s, where s is a quantile of each image's absolute values.
    Dynamic(DynamicThresholding),
}

impl X0Limit {
    /// What the scheduler's `thresholding` and, behind it, `clip_sample` ask for.
    ///
    /// # Errors
    /// [`SampleError::ClipRange`], and those of [`Self::thresholding`].
    pub fn new(scheduler: &SchedulerConfig) -> Result<Self, SampleError> {
        let range = scheduler.clip_sample_range;
        match Self::thresholding(scheduler)? {
            Self::None if !scheduler.clip_sample => Ok(Self::None),
            Self::None if range > 0.0 && range.is_finite() => Ok(Self::Clamp { range }),
            Self::None => Err(SampleError::ClipRange { range }),
            limit => Ok(limit),
        }
    }

    /// What the scheduler's `thresholding` asks for: for samplers without `clip_sample`.
    ///
    /// # Errors
    /// [`SampleError::Thresholding`] unless `0 <= ratio <= 1` and `max > 0`.
    pub fn thresholding(scheduler: &SchedulerConfig) -> Result<Self, SampleError> {
        match scheduler.thresholding {
            None => Ok(Self::None),
            Some(DynamicThresholding { ratio, max })
                if !((0.0..=1.0).contains(&ratio) && max > 0.0 && max.is_finite()) =>
            {
                Err(SampleError::Thresholding { ratio, max })
            }
            Some(thresholding) => Ok(Self::Dynamic(thresholding)),
        }
    }

    /// The limited x_0.
    ///
    /// # Shapes
    /// `[B, C, H, W]`, as is the result; each image is limited by itself.
    pub fn apply(self, x_0: Tensor<4>) -> Tensor<4> {
        match self {
            Self::None => x_0,
            Self::Clamp { range } => x_0.clamp(-range, range),
            Self::Dynamic(thresholding) => threshold(x_0, thresholding),
        }
    }
}

/// The quantile lies between two values where no value is at it, as in torch.quantile.
fn threshold(x_0: Tensor<4>, DynamicThresholding { ratio, max }: DynamicThresholding) -> Tensor<4> {
    let [b, c, h, w] = x_0.dims();
    let count = c * h * w;
    let sorted = x_0.clone().reshape([b, count]).abs().sort(1);
    let rank = ratio * (count - 1) as f64;
    let below = sorted.clone().narrow(1, rank.floor() as usize, 1);
    let above = sorted.narrow(1, rank.ceil() as usize, 1);
    let quantile = below.clone() + (above - below) * rank.fract();
    let s = quantile.clamp_min(1.0).clamp_max(max).reshape([b, 1, 1, 1]).expand([b, c, h, w]);
    x_0.min_pair(s.clone()).max_pair(-s.clone()) / s
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn apply(limit: X0Limit, images: usize, values: &[f32]) -> Vec<f32> {
        let data = TensorData::new(values.to_vec(), [images, 1, 1, values.len() / images]);
        let x_0 = Tensor::from_data(data, &Device::default());
        limit.apply(x_0).into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn thresholds_by_hand() {
        // Absolute values 0, 1, 2, 3, 4: the quantile 0.7 lies at rank 2.8.
        let dynamic = |max| X0Limit::Dynamic(DynamicThresholding { ratio: 0.7, max });
        let values = [4.0, -3.0, 2.0, -1.0, 0.0];
        let expected: Vec<f32> = [2.8, -2.8, 2.0, -1.0, 0.0].map(|x: f32| x / 2.8).into();
        for (found, expected) in apply(dynamic(9.0), 1, &values).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} != {expected}");
        }
        assert_eq!(apply(dynamic(2.0), 1, &values), [1.0, -1.0, 1.0, -0.5, 0.0]);
        // Below 1 nothing is stretched.
        assert_eq!(apply(dynamic(9.0), 1, &[0.5, -0.2]), [0.5, -0.2]);
    }

    #[test]
    fn each_image_has_its_own_threshold() {
        let limit = X0Limit::Dynamic(DynamicThresholding { ratio: 1.0, max: 100.0 });
        assert_eq!(apply(limit, 2, &[2.0, 1.0, 10.0, 5.0]), [1.0, 0.5, 1.0, 0.5]);
    }

    #[test]
    fn thresholding_goes_before_clamping() {
        let scheduler = SchedulerConfig {
            clip_sample: true,
            thresholding: Some(DynamicThresholding::default()),
            ..Default::default()
        };
        let limit = X0Limit::new(&scheduler).unwrap();
        assert_eq!(limit, X0Limit::Dynamic(DynamicThresholding::default()));
        let scheduler = SchedulerConfig { thresholding: None, ..scheduler };
        assert_eq!(X0Limit::new(&scheduler).unwrap(), X0Limit::Clamp { range: 1.0 });
        assert_eq!(X0Limit::thresholding(&scheduler).unwrap(), X0Limit::None);
    }
}
