//! What the network predicts, and the way from one target to the others.
//!
//! With `x_t = s x_0 + n eps`, `s = sqrt(abar_t)`, `n = sqrt(1 - abar_t)` and
//! `v = s eps - n x_0` (Salimans and Ho 2022, appendix D), any two of x_t, x_0, eps, v give the rest.
//! Not here: the schedule that gives s and n ([`NoiseSchedule::rates`](crate::NoiseSchedule::rates)).

use crate::noise_schedule::Rates;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What the network's output stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PredictionType {
    /// The noise eps (Ho et al. 2020).
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean image x_0.
    #[serde(rename = "sample")]
    Sample,
    /// `v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0` (Salimans and Ho 2022).
    #[serde(rename = "v_prediction")]
    VPrediction,
}

impl PredictionType {
    /// What the network should output for `x_0` with noise `eps`. All `[B, C, H, W]`.
    pub fn target(self, x_0: Tensor<4>, eps: Tensor<4>, rates: &Rates) -> Tensor<4> {
        match self {
            Self::Epsilon => eps,
            Self::Sample => x_0,
            Self::VPrediction => v_from_x0_and_eps(x_0, eps, rates),
        }
    }

    /// The clean image the output stands for. All `[B, C, H, W]`.
    pub fn x0(self, x_t: Tensor<4>, output: Tensor<4>, rates: &Rates) -> Tensor<4> {
        match self {
            Self::Epsilon => x0_from_eps(x_t, output, rates),
            Self::Sample => output,
            Self::VPrediction => x0_from_v(x_t, output, rates),
        }
    }

    /// The noise the output stands for. All `[B, C, H, W]`.
    pub fn eps(self, x_t: Tensor<4>, output: Tensor<4>, rates: &Rates) -> Tensor<4> {
        match self {
            Self::Epsilon => output,
            Self::Sample => eps_from_x0(x_t, output, rates),
            Self::VPrediction => eps_from_v(x_t, output, rates),
        }
    }
}

/// `x_0 = (x_t - n eps) / s`.
pub fn x0_from_eps(x_t: Tensor<4>, eps: Tensor<4>, rates: &Rates) -> Tensor<4> {
    (x_t - rates.noise.clone() * eps) / rates.signal.clone()
}

/// `eps = (x_t - s x_0) / n`.
pub fn eps_from_x0(x_t: Tensor<4>, x_0: Tensor<4>, rates: &Rates) -> Tensor<4> {
    (x_t - rates.signal.clone() * x_0) / rates.noise.clone()
}

/// `x_0 = s x_t - n v`.
pub fn x0_from_v(x_t: Tensor<4>, v: Tensor<4>, rates: &Rates) -> Tensor<4> {
    rates.signal.clone() * x_t - rates.noise.clone() * v
}

/// `eps = s v + n x_t`.
pub fn eps_from_v(x_t: Tensor<4>, v: Tensor<4>, rates: &Rates) -> Tensor<4> {
    rates.signal.clone() * v + rates.noise.clone() * x_t
}

/// `v = s eps - n x_0`.
pub fn v_from_x0_and_eps(x_0: Tensor<4>, eps: Tensor<4>, rates: &Rates) -> Tensor<4> {
    rates.signal.clone() * eps - rates.noise.clone() * x_0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    fn image(value: f32) -> Tensor<4> {
        Tensor::from_data(TensorData::new(vec![value], [1, 1, 1, 1]), &Device::default())
    }

    fn value(tensor: Tensor<4>) -> f32 {
        tensor.into_data().try_into_vec::<f32>().unwrap()[0]
    }

    const ALL: [PredictionType; 3] =
        [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction];

    proptest! {
        #[test]
        fn x0_and_eps_invert_each_other(x_t in -3.0_f32..3.0, eps in -3.0_f32..3.0, abar in 0.01..0.99) {
            let rates = Rates::of(&[abar], &Device::default());
            let x_0 = x0_from_eps(image(x_t), image(eps), &rates);
            let back = value(eps_from_x0(image(x_t), x_0, &rates));
            prop_assert!((back - eps).abs() < 2e-4, "{back} != {eps}");
        }

        #[test]
        fn every_target_gives_back_image_and_noise(
            x_0 in -1.0_f32..1.0, eps in -3.0_f32..3.0, abar in 0.01..0.99
        ) {
            let rates = Rates::of(&[abar], &Device::default());
            let x_t = rates.signal.clone() * image(x_0) + rates.noise.clone() * image(eps);
            for kind in ALL {
                let output = kind.target(image(x_0), image(eps), &rates);
                let found = value(kind.x0(x_t.clone(), output.clone(), &rates));
                prop_assert!((found - x_0).abs() < 2e-4, "{kind:?}: {found} != {x_0}");
                let found = value(kind.eps(x_t.clone(), output, &rates));
                prop_assert!((found - eps).abs() < 2e-4, "{kind:?}: {found} != {eps}");
            }
        }
    }

    #[test]
    fn v_by_hand() {
        let rates = Rates::of(&[0.36], &Device::default());
        let v = value(v_from_x0_and_eps(image(0.5), image(2.0), &rates));
        assert!((v - (0.6 * 2.0 - 0.8 * 0.5)).abs() < 1e-6);
    }

    #[test]
    fn diffusers_names() {
        for (kind, name) in ALL.into_iter().zip(["epsilon", "sample", "v_prediction"]) {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
    }
}
