//! AdamW (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW` computes it.

use crate::Gradients;
use crate::parameters::{host, take_parameters};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use deme_kernels::{AdamWStep, ParameterState};
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
        gradients: Gradients,
        learning_rate: f64,
        grad_scale: f64,
    ) -> M {
        self.step_all(model, None, gradients, learning_rate, grad_scale).0
    }

    /// [`AdamW::step`], and in the same pass over memory the update of the model's moving average,
    /// `average <- decay * average + (1 - decay) * model`. Returns the model and the average, which
    /// must have the same parameters.
    pub fn step_with_average<M: Module>(
        &mut self,
        model: M,
        average: M,
        decay: f64,
        gradients: Gradients,
        learning_rate: f64,
        grad_scale: f64,
    ) -> (M, M) {
        let average = Some((average, decay));
        let (model, average) = self.step_all(model, average, gradients, learning_rate, grad_scale);
        (model, average.expect("an average comes back where one went in"))
    }

    fn step_all<M: Module>(
        &mut self,
        model: M,
        average: Option<(M, f64)>,
        mut gradients: Gradients,
        learning_rate: f64,
        grad_scale: f64,
    ) -> (M, Option<M>) {
        self.steps += 1;
        let (average, decay) = average.unzip();
        let step = AdamWStep {
            learning_rate,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            step: self.steps,
            grad_scale,
            average_decay: decay.unwrap_or_default(),
        };
        let (model, thetas) = take_parameters(model);
        let (average, averages) = average.map(take_parameters).unzip();
        let mut averages = averages.map(Vec::into_iter);

        let (mut names, mut parameters) = (Vec::new(), Vec::new());
        for (name, theta) in thetas {
            let grad = gradients.take(&name).expect("gradients of the same model");
            let [m, v] = self
                .moments
                .remove(&name)
                .unwrap_or_else(|| [theta.zeros_like(), theta.zeros_like()]);
            let average = averages.as_mut().map(|averages| {
                let next = averages.next().filter(|(of, _)| *of == name);
                next.expect("the average of a model has its parameters").1
            });
            parameters.push((ParameterState { theta, m, v, average }, grad));
            names.push(name);
        }

        let (mut thetas, mut averages) = (Vec::new(), Vec::new());
        let stepped = deme_kernels::adamw_steps(parameters, &step);
        for (name, ParameterState { theta, m, v, average }) in names.into_iter().zip(stepped) {
            self.moments.insert(name, [m, v]);
            thetas.push(theta);
            averages.extend(average);
        }
        (model.fill(thetas), average.map(|average| average.fill(averages)))
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
    use crate::{Init, Linear, to_state_dict, visit_parameters, with_gradients};
    use burn::backend::DispatchTensorKind;

    fn model() -> Linear {
        model_of(5)
    }

    fn model_of(seed: u64) -> Linear {
        Linear::new(3, 2, true, &mut Init::new(seed, &Device::flex()))
    }

    /// Where the values of a model lie.
    fn addresses(model: &Linear) -> Vec<usize> {
        let mut addresses = Vec::new();
        visit_parameters(model, &mut |_: &str, _: &[usize], tensor: Tensor<1>| {
            let DispatchTensorKind::Flex(tensor) = tensor.into_dispatch().kind else {
                panic!("a plain model on the CPU")
            };
            addresses.push(tensor.float().bytes().as_ptr().addr());
        });
        addresses
    }

    fn values(model: &Linear) -> Vec<f32> {
        to_state_dict(model).iter().flat_map(|(_, x)| x.to_f32().unwrap()).collect()
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
    fn a_step_with_an_average_is_the_step_and_the_average_in_place() {
        let [mut adamw, mut twin] = [(); 2].map(|()| AdamW::new(AdamWConfig::default()));
        let (mut net, mut average) = (model(), model_of(6));
        let at = [addresses(&net), addresses(&average)];
        for _ in 0..2 {
            let expected = twin.step(net.clone(), gradients(&net), 1e-2, 0.5);
            let averages = values(&average).into_iter().zip(values(&expected));
            let averages: Vec<f32> =
                averages.map(|(average, theta)| average * 0.75 + theta * 0.25).collect();
            let grads = gradients(&net);
            (net, average) = adamw.step_with_average(net, average, 0.75, grads, 1e-2, 0.5);
            assert_eq!(values(&net), values(&expected));
            assert_eq!(values(&average), averages);
        }
        assert_eq!([addresses(&net), addresses(&average)], at);
        assert_eq!(adamw.to_state_dict().content_hash(), twin.to_state_dict().content_hash());
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
