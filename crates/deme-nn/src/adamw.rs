//! AdamW (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW` computes it.

use crate::parameters::{host, map_parameters};
use crate::Gradients;
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
    #[error("the optimiser state has no step count; delete the checkpoint to start that stage anew")]
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
