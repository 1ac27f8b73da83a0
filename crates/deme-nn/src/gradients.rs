//! Gradients by parameter name.

use crate::parameters::{Path, host, visit_parameters};
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
        Self::of_reached(loss, model).0.or_zeros(model)
    }

    /// As [`of`](Self::of), of those parameters alone that the loss reaches; and what is left of the backward
    /// pass, where the gradients of the computation's other leaves are found.
    pub fn of_reached<M: Module>(loss: &Tensor<1>, model: &M) -> (Self, burn::tensor::Gradients) {
        struct Collect {
            path: Path,
            all: burn::tensor::Gradients,
            by_name: BTreeMap<String, (Vec<usize>, Tensor<1>)>,
        }
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.enter(name);
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.exit();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val();
                if let Some(grad) = tensor.grad_remove(&mut self.all) {
                    let entry = (tensor.dims().to_vec(), grad.flatten(0, D - 1));
                    self.by_name.insert(self.path.name(), entry);
                }
            }
        }
        let mut collect =
            Collect { path: Path::default(), all: loss.backward(), by_name: BTreeMap::new() };
        model.visit(&mut collect);
        (Self { by_name: collect.by_name }, collect.all)
    }

    /// With zeros for the parameters of `model` that have no gradient here.
    pub fn or_zeros<M: Module>(mut self, model: &M) -> Self {
        visit_parameters(model, &mut |name: &str, shape: &[usize], tensor: Tensor<1>| {
            if !self.by_name.contains_key(name) {
                let zeros = tensor.without_autodiff().zeros_like();
                self.by_name.insert(name.to_owned(), (shape.to_vec(), zeros));
            }
        });
        self
    }

    /// Together with the gradients of other parameters of the same model.
    ///
    /// # Panics
    /// When a parameter is in both: whether its gradients add up is not known here (see [`plus`](Self::plus)).
    pub fn joined(mut self, others: Self) -> Self {
        for (name, entry) in others.by_name {
            let found = self.by_name.insert(name.clone(), entry);
            assert!(found.is_none(), "{name} has a gradient on both sides");
        }
        self
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
    use crate::parameters::map_parameters;
    use crate::{Init, Linear};
    use burn::tensor::{Device, TensorData};

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

    #[test]
    fn what_the_loss_reaches_is_told_from_what_it_does_not() {
        let device = Device::flex();
        let model = Linear::new(3, 1, true, &mut Init::new(0, &device));
        let live = with_gradients(&model);
        let x = Tensor::<2>::from_floats([[1.0, 2.0, 3.0]], &device).autodiff().require_grad();
        let loss = (x.clone() * live.weight.val()).sum();
        let (reached, mut rest) = Gradients::of_reached(&loss, &live);
        assert_eq!(host(reached.get("weight").unwrap().clone()), [1.0, 2.0, 3.0]);
        assert!(reached.get("bias").is_none());
        let of_x = x.grad_remove(&mut rest).unwrap();
        assert_eq!(host(of_x.flatten(0, 1)), host(model.weight.val().flatten(0, 1)));

        let (bias, _) = Gradients::of_reached(&live.bias.as_ref().unwrap().val().sum(), &live);
        let joined = reached.clone().joined(bias).or_zeros(&model);
        assert_eq!(host(joined.get("bias").unwrap().clone()), [1.0]);
        let filled = reached.or_zeros(&model);
        assert_eq!(host(filled.get("weight").unwrap().clone()), [1.0, 2.0, 3.0]);
        assert_eq!(host(filled.get("bias").unwrap().clone()), [0.0]);
    }

    #[test]
    #[should_panic(expected = "bias has a gradient on both sides")]
    fn gradients_of_one_parameter_are_not_joined() {
        let model = Linear::new(1, 1, true, &mut Init::new(0, &Device::flex()));
        let zeros = Gradients::default().or_zeros(&model);
        let _ = zeros.clone().joined(zeros);
    }

    /// A model of a gigabyte may be made differentiable once per layer.
    #[test]
    fn a_differentiable_copy_shares_the_memory() {
        let values = vec![1f32; 6];
        let address = values.as_ptr();
        let mut model = Linear::new(3, 2, true, &mut Init::new(0, &Device::flex()));
        let weight = Tensor::from_data(TensorData::new(values, [2, 3]), &Device::flex());
        model.weight = Param::from_tensor(weight);
        let live = with_gradients(&model);
        // The only owner now: nothing is copied on the way to the host.
        drop(model);
        let weight = live.weight.into_value().without_autodiff().into_data();
        assert_eq!(weight.as_slice::<f32>().unwrap().as_ptr(), address);
    }
}
