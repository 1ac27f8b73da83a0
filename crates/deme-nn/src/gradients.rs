//! Gradients by parameter name.

use crate::parameters::host;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use deme_merge::{StateDict, StoredTensor};
use std::collections::BTreeMap;

/// A differentiable copy of a plain model; it shares the parameters' memory.
pub fn with_gradients<M: Module>(model: &M) -> M {
    struct Track;
    impl ModuleMapper for Track {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, _) = param.consume();
            Param::initialized(id, tensor.autodiff().require_grad())
        }
    }
    model.clone().map(&mut Track)
}

/// The gradient of a loss for every parameter, flat, by dotted name.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
}

impl Gradients {
    /// Back-propagates `loss` and takes the gradients of `model`'s parameters, where `model` is the
    /// differentiable copy that computed `loss`. A parameter the loss does not reach gets zeros.
    pub fn of<M: Module>(loss: &Tensor<1>, model: &M) -> Self {
        struct Collect {
            path: Vec<String>,
            all: burn::tensor::Gradients,
            by_name: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
        }
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val();
                let shape = tensor.dims();
                let grad = tensor
                    .grad_remove(&mut self.all)
                    .unwrap_or_else(|| tensor.without_autodiff().zeros_like());
                let entry = (shape.to_vec(), grad.flatten(0, D - 1));
                self.by_name.insert(self.path.join("."), entry);
            }
        }
        let mut collect =
            Collect { path: Vec::new(), all: loss.backward(), by_name: BTreeMap::new() };
        model.visit(&mut collect);
        Self { by_name: collect.by_name }
    }

    /// Adds another set of the same parameters (gradient accumulation).
    pub fn plus(self, other: Self) -> Self {
        let pairs = self.by_name.into_iter().zip(other.by_name);
        let by_name = pairs.map(|((name, (shape, a)), (other_name, (_, b)))| {
            assert_eq!(name, other_name, "gradients of the same model");
            (name, (shape, a + b))
        });
        Self { by_name: by_name.collect() }
    }

    /// Multiplies all by `factor`.
    pub fn scale(self, factor: f64) -> Self {
        let scaled = self.by_name.into_iter().map(|(name, (shape, g))| (name, (shape, g * factor)));
        Self { by_name: scaled.collect() }
    }

    /// Euclidean norm over all parameters together.
    pub fn norm(&self) -> f64 {
        let gradients = self.by_name.values().map(|(_, g)| g.clone());
        deme_kernels::squared_norm(gradients.collect()).sqrt()
    }

    /// The gradient of one parameter, flat.
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.by_name.get(name).map(|(_, grad)| grad)
    }

    /// Takes the gradient of one parameter out, flat.
    pub(crate) fn take(&mut self, name: &str) -> Option<Tensor<1>> {
        self.by_name.remove(name).map(|(_, grad)| grad)
    }

    /// Copies all to the host.
    pub fn to_state_dict(&self) -> StateDict {
        let mut state = StateDict::default();
        for (name, (shape, grad)) in &self.by_name {
            let values = host(grad.clone());
            state.insert(name.clone(), StoredTensor::from_f32(shape.clone(), values));
        }
        state
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::parameters::{map_parameters, visit_parameters};
    use crate::{Init, Linear};
    use burn::tensor::Device;

    #[test]
    fn gradient_of_a_linear_layer_is_the_input() {
        let device = Device::flex();
        let model = Linear::new(3, 1, true, &mut Init::new(0, &device));
        let live = with_gradients(&model);
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0]], &device);
        let gradients = Gradients::of(&live.forward(x).sum(), &live);
        assert_eq!(host(gradients.get("weight").unwrap().clone()), [1.0, 2.0, 3.0]);
        assert_eq!(host(gradients.get("bias").unwrap().clone()), [1.0]);
        assert!((gradients.norm() - 15f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn the_plain_model_is_untouched_and_unreached_parameters_get_zeros() {
        let device = Device::flex();
        let model = Linear::new(2, 2, true, &mut Init::new(0, &device));
        let live = with_gradients(&model);
        let gradients = Gradients::of(&live.weight.val().sum(), &live);
        assert_eq!(host(gradients.get("bias").unwrap().clone()), [0.0, 0.0]);
        let mut names = Vec::new();
        visit_parameters(&model, &mut |name: &str, _: &[usize], tensor: Tensor<1>| {
            assert!(!tensor.is_autodiff());
            names.push(name.to_owned());
        });
        assert_eq!(names, ["weight", "bias"]);
        let doubled = map_parameters(model, &mut |_, t| t * 2.0);
        assert_eq!(doubled.weight.val().dims(), [2, 2]);
    }
}
