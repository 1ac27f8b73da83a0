//! AdamW (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW` computes it.

use crate::Gradients;
use crate::parameters::{host, map_parameters};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use deme_kernels::AdamWStep;
use deme_merge::{StateDict, StateDictError, StoredTensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Constants of AdamW; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first and second moment, in [0, 1).
    pub betas: [f64; 2],
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { betas: [0.95, 0.999], weight_decay: 1e-6, eps: 1e-8 }
    }
}

/// The optimiser and its two moments per parameter.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
}

impl AdamW {
    /// Moments start at zero.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step on a plain model; the gradients are first multiplied by `grad_scale` (1, or the
    /// factor of norm clipping). The gradients must be those of the same model.
    pub fn step<M: Module>(
        &mut self,
        model: M,
        mut gradients: Gradients,
        learning_rate: f64,
        grad_scale: f64,
    ) -> M {
        self.steps += 1;
        let step = AdamWStep {
            learning_rate,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            step: self.steps,
            grad_scale,
        };
        map_parameters(model, &mut |name, theta| {
            let grad = gradients.take(name).expect("gradients of the same model");
            let [m, v] = self
                .moments
                .remove(name)
                .unwrap_or_else(|| [theta.zeros_like(), theta.zeros_like()]);
            let (theta, m, v) = deme_kernels::adamw_step(theta, grad, m, v, &step);
            self.moments.insert(name.to_owned(), [m, v]);
            theta
        })
    }

    /// The moments as `first_moment.<name>` and `second_moment.<name>` (flat), and the step count
    /// in the metadata.
    pub fn to_state_dict(&self) -> StateDict {
        let mut state = StateDict::default();
        for (name, moments) in &self.moments {
            for (kind, moment) in MOMENTS.iter().zip(moments) {
                let values = host(moment.clone());
                let tensor = StoredTensor::from_f32(vec![values.len()], values);
                state.insert(format!("{kind}.{name}"), tensor);
            }
        }
        state.set_metadata("steps", self.steps.to_string());
        state
    }

    /// Resumes from [`AdamW::to_state_dict`].
    ///
    /// # Errors
    /// [`OptimizerStateError`] when the state has no step count or an unpaired moment.
    pub fn from_state_dict(
        config: AdamWConfig,
        state: &StateDict,
        device: &Device,
    ) -> Result<Self, OptimizerStateError> {
        let steps = state.metadata().get("steps").and_then(|s| s.parse().ok());
        let steps = steps.ok_or(OptimizerStateError::NoStepCount)?;
        let mut moments = BTreeMap::new();
        let read = |name: &str| -> Result<Tensor<1>, OptimizerStateError> {
            let stored = state
                .get(name)
                .ok_or_else(|| OptimizerStateError::Missing { name: name.to_owned() })?;
            let values = stored.to_f32()?;
            let len = values.len();
            Ok(Tensor::from_data(TensorData::new(values, [len]), device))
        };
        for full in state.names() {
            let Some((kind, name)) = full.split_once('.') else {
                return Err(OptimizerStateError::Unknown { name: full.to_owned() });
            };
            if !MOMENTS.contains(&kind) {
                return Err(OptimizerStateError::Unknown { name: full.to_owned() });
            }
            if !moments.contains_key(name) {
                let pair = [
                    read(&format!("{}.{name}", MOMENTS[0]))?,
                    read(&format!("{}.{name}", MOMENTS[1]))?,
                ];
                moments.insert(name.to_owned(), pair);
            }
        }
        Ok(Self { config, steps, moments })
    }
}

const MOMENTS: [&str; 2] = ["first_moment", "second_moment"];

/// Why an optimiser cannot resume.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerStateError {
    /// The metadata hold no number `steps`.
    #[error(
        "the optimiser state has no step count; delete the checkpoint to start that stage anew"
    )]
    NoStepCount,
    /// One of a parameter's two moments is not there.
    #[error("the optimiser state lacks `{name}`; delete the checkpoint to start that stage anew")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor that is no moment.
    #[error("the optimiser state holds `{name}`, which is no moment of AdamW")]
    Unknown {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor could not be read.
    #[error(transparent)]
    State(#[from] StateDictError),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Init, Linear, to_state_dict, with_gradients};

    fn model() -> Linear {
        Linear::new(3, 2, true, &mut Init::new(5, &Device::flex()))
    }

    fn gradients(model: &Linear) -> Gradients {
        let live = with_gradients(model);
        let x = Tensor::<2>::from_floats([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], &Device::flex());
        Gradients::of(&live.forward(x).square().sum(), &live)
    }

    #[test]
    fn three_steps_equal_the_formula_in_f64() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let (mut net, mut adamw) = (model(), AdamW::new(config));
        let mut theta: Vec<f64> = to_state_dict(&net)
            .get("weight")
            .unwrap()
            .to_f32()
            .unwrap()
            .iter()
            .map(|&x| x.into())
            .collect();
        let (mut m, mut v) = (vec![0.0; theta.len()], vec![0.0; theta.len()]);
        for step in 1..=3 {
            let grads = gradients(&net);
            let g = host(grads.get("weight").unwrap().clone());
            net = adamw.step(net, grads, 1e-2, 0.5);
            for i in 0..theta.len() {
                let g = f64::from(g[i]) * 0.5;
                m[i] = 0.95 * m[i] + 0.05 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) =
                    (m[i] / (1.0 - 0.95f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
                theta[i] = theta[i] * (1.0 - 1e-2 * 0.1) - 1e-2 * mh / (vh.sqrt() + 1e-8);
            }
        }
        let found = to_state_dict(&net).get("weight").unwrap().to_f32().unwrap();
        for (found, expected) in found.iter().zip(&theta) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn a_resumed_optimiser_goes_on_bit_for_bit() {
        let config = AdamWConfig::default();
        let (mut net, mut adamw) = (model(), AdamW::new(config));
        net = adamw.step(net.clone(), gradients(&net), 1e-2, 1.0);
        let saved = adamw.to_state_dict();
        let mut resumed = AdamW::from_state_dict(config, &saved, &Device::flex()).unwrap();
        let a = adamw.step(net.clone(), gradients(&net), 1e-2, 1.0);
        let b = resumed.step(net.clone(), gradients(&net), 1e-2, 1.0);
        assert_eq!(resumed.steps(), 2);
        assert_eq!(to_state_dict(&a).content_hash(), to_state_dict(&b).content_hash());
    }

    #[test]
    fn incomplete_states_are_refused() {
        let device = Device::flex();
        let load =
            |state: &StateDict| AdamW::from_state_dict(AdamWConfig::default(), state, &device);
        assert!(matches!(load(&StateDict::default()), Err(OptimizerStateError::NoStepCount)));
        let mut adamw = AdamW::new(AdamWConfig::default());
        let net = model();
        adamw.step(net.clone(), gradients(&net), 1e-2, 1.0);
        let mut state = adamw.to_state_dict();
        state.remove("second_moment.bias");
        assert!(matches!(load(&state), Err(OptimizerStateError::Missing { .. })));
        let mut state = adamw.to_state_dict();
        state.insert("third_moment.bias".into(), StoredTensor::from_f32(vec![1], vec![0.0]));
        assert!(matches!(load(&state), Err(OptimizerStateError::Unknown { .. })));
        let mut state = adamw.to_state_dict();
        let ints = StoredTensor::new(deme_merge::Dtype::I64, vec![1], vec![0; 8]).unwrap();
        state.insert("first_moment.bias".into(), ints);
        assert!(matches!(load(&state), Err(OptimizerStateError::State(_))));
    }
}
