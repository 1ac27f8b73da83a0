//! The denoising loss of one batch (Ho et al. 2020, eq. 14), optionally weighted by timestep.

use burn::tensor::{Tensor, TensorData};
use deme_diffusion::{NoiseSchedule, PredictionType, ScheduleError};

use crate::loss_weighting::LossWeighting;

/// `mean(w(t) (target - prediction)^2)`, the mean over all elements of the batch.
///
/// # Shapes
/// prediction, target: `[B, C, H, W]`; weights: `[B, 1, 1, 1]`, or none for weight 1; returns `[1]`.
pub fn diffusion_loss(
    prediction: Tensor<4>,
    target: Tensor<4>,
    weights: Option<Tensor<4>>,
) -> Tensor<1> {
    let squares = (prediction - target).square();
    match weights {
        None => squares.mean(),
        Some(weights) => (squares * weights).mean(),
    }
}

/// The weights of a batch's timesteps, `[B, 1, 1, 1]`; none for [`LossWeighting::Uniform`].
///
/// # Errors
/// [`ScheduleError::TimestepOutOfRange`] when some t lies outside the schedule.
pub fn batch_weights(
    weighting: LossWeighting,
    prediction: PredictionType,
    schedule: &NoiseSchedule,
    t: &[usize],
    device: &burn::tensor::Device,
) -> Result<Option<Tensor<4>>, ScheduleError> {
    if weighting == LossWeighting::Uniform {
        return Ok(None);
    }
    let weight = |&t: &usize| Ok(weighting.weight(prediction, schedule.snr(t)?) as f32);
    let weights = t.iter().map(weight).collect::<Result<Vec<f32>, ScheduleError>>()?;
    let data = TensorData::new(weights, [t.len(), 1, 1, 1]);
    Ok(Some(Tensor::from_data(data, device)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::Device;
    use deme_diffusion::NoiseScheduleConfig;

    fn column(values: &[f32]) -> Tensor<4> {
        let data = TensorData::new(values.to_vec(), [values.len(), 1, 1, 1]);
        Tensor::from_data(data, &Device::flex())
    }

    #[test]
    fn the_loss_is_a_mean_over_all_elements() {
        let (prediction, target) = (column(&[1.0, 2.0]), column(&[0.0, 5.0]));
        let plain = diffusion_loss(prediction.clone(), target.clone(), None);
        assert_eq!(plain.into_scalar::<f32>(), 5.0);
        let weighted = diffusion_loss(prediction, target, Some(column(&[2.0, 0.0])));
        assert_eq!(weighted.into_scalar::<f32>(), 1.0);
    }

    #[test]
    fn weights_follow_the_timesteps() {
        let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap();
        let device = Device::flex();
        let weights = |weighting, t: &[usize]| {
            batch_weights(weighting, PredictionType::Epsilon, &schedule, t, &device)
        };
        assert!(weights(LossWeighting::Uniform, &[3]).unwrap().is_none());
        let found = weights(LossWeighting::P2 { k: 1.0, gamma: 1.0 }, &[0, 999]).unwrap().unwrap();
        let found = found.into_data().try_into_vec::<f32>().unwrap();
        // 1 / (1 + SNR) = 1 - abar
        for (found, t) in found.iter().zip([0, 999]) {
            assert!((f64::from(*found) - (1.0 - schedule.alphas_cumprod()[t])).abs() < 1e-6);
        }
        assert!(weights(LossWeighting::SnrPlusOne, &[1000]).is_err());
    }
}
