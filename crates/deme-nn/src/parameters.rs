//! A network's parameters by name: listing, mapping, state dicts in and out.
//!
//! Names are the struct fields joined by dots, as `torch.nn.Module.state_dict` gives them.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use deme_merge::{StateDict, StateDictError, StoredTensor};
use std::collections::BTreeMap;

/// Name and shape of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterShape {
    /// Dotted name.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
}

/// Receives every parameter, flattened.
pub trait Parameters {
    /// Called once for each parameter, in the order of the struct fields.
    fn parameter(&mut self, name: &str, shape: &[usize], tensor: Tensor<1>);
}

impl<F: FnMut(&str, &[usize], Tensor<1>)> Parameters for F {
    fn parameter(&mut self, name: &str, shape: &[usize], tensor: Tensor<1>) {
        self(name, shape, tensor)
    }
}

/// Calls `visitor(name, shape, flat tensor)` for each parameter, in field order.
pub fn visit_parameters<M: Module>(model: &M, visitor: &mut impl Parameters) {
    struct Visit<'a, P> {
        path: Path,
        visitor: &'a mut P,
    }
    impl<P: Parameters> ModuleVisitor for Visit<'_, P> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let shape = tensor.dims();
            self.visitor.parameter(&self.path.name(), &shape, tensor.flatten(0, D - 1));
        }
    }
    model.visit(&mut Visit { path: Path::default(), visitor });
}

/// Replaces every parameter by `map(name, flat tensor)`, which must keep the number of entries.
pub fn map_parameters<M: Module>(
    model: M,
    map: &mut impl FnMut(&str, Tensor<1>) -> Tensor<1>,
) -> M {
    let (hollow, parameters) = take_parameters(model);
    hollow.fill(parameters.into_iter().map(|(name, tensor)| map(&name, tensor)))
}

/// Takes every parameter out, with its name, flat, in field order. A tensor that nothing but the
/// model held is then nowhere else, so it can be changed in place.
pub(crate) fn take_parameters<M: Module>(model: M) -> (Hollow<M>, Vec<(String, Tensor<1>)>) {
    #[derive(Default)]
    struct Take {
        path: Path,
        taken: Vec<(String, Tensor<1>)>,
    }
    impl ModuleMapper for Take {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, tensor, _) = param.consume();
            let (device, shape) = (tensor.device(), tensor.shape());
            self.taken.push((self.path.name(), tensor.flatten(0, D - 1)));
            // Only its shape is asked for until `Hollow::fill` replaces it.
            let nothing = |_: &Device, _| unreachable!("this parameter was taken out");
            Param::uninitialized(id, nothing, device, false, shape)
        }
    }
    let mut take = Take::default();
    let hollow = Hollow(model.map(&mut take));
    (hollow, take.taken)
}

/// A model whose parameters were taken out by [`take_parameters`].
pub(crate) struct Hollow<M>(M);

impl<M: Module> Hollow<M> {
    /// The model with these parameters: flat, in field order, of as many entries as before.
    pub(crate) fn fill(self, parameters: impl IntoIterator<Item = Tensor<1>>) -> M {
        struct Fill<I>(I);
        impl<I: Iterator<Item = Tensor<1>>> ModuleMapper for Fill<I> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let tensor = self.0.next().expect("as many tensors as parameters");
                Param::initialized(param.id, tensor.reshape(param.lazy_shape()))
            }
        }
        let mut fill = Fill(parameters.into_iter());
        let model = self.0.map(&mut fill);
        assert!(fill.0.next().is_none(), "more tensors than parameters");
        model
    }
}

/// Every parameter's name and shape, in field order.
pub fn parameter_shapes<M: Module>(model: &M) -> Vec<ParameterShape> {
    let mut shapes = Vec::new();
    visit_parameters(model, &mut |name: &str, shape: &[usize], _: Tensor<1>| {
        shapes.push(ParameterShape { name: name.to_owned(), shape: shape.to_vec() });
    });
    shapes
}

/// Copies all parameters to the host as f32.
pub fn to_state_dict<M: Module>(model: &M) -> StateDict {
    let mut state = StateDict::default();
    visit_parameters(model, &mut |name: &str, shape: &[usize], tensor: Tensor<1>| {
        state.insert(name.to_owned(), StoredTensor::from_f32(shape.to_vec(), host(tensor)));
    });
    state
}

/// Puts a state dict's values into a model of the same names and shapes.
///
/// A scalar (shape `[]`) fits a parameter of shape `[1]`. Tensor by tensor, and the pages of mapped files are
/// given back: it takes the memory of the model and of one tensor.
///
/// # Errors
/// [`LoadError::Mismatch`] lists all that is missing, unused or of another shape;
/// [`LoadError::State`] when a tensor has no floating-point values.
pub fn load_state_dict<M: Module>(model: M, state: &StateDict) -> Result<M, LoadError> {
    let expected = parameter_shapes(&model);
    let mut unused: BTreeMap<&str, ()> = state.names().map(|name| (name, ())).collect();
    let mut missing = Vec::new();
    let mut wrong_shape = Vec::new();
    let mut applied = 0;
    for ParameterShape { name, shape } in &expected {
        let Some(stored) = state.get(name) else {
            missing.push(name.clone());
            continue;
        };
        unused.remove(name.as_str());
        let scalar = stored.shape().is_empty() && shape == &[1];
        if stored.shape() != shape && !scalar {
            let (expected, found) = (shape.clone(), stored.shape().to_vec());
            wrong_shape.push(WrongShape { name: name.clone(), expected, found });
            continue;
        }
        applied += 1;
    }
    if !(missing.is_empty() && unused.is_empty() && wrong_shape.is_empty()) {
        return Err(LoadError::Mismatch {
            applied,
            missing,
            unused: unused.into_keys().map(str::to_owned).collect(),
            wrong_shape,
        });
    }
    let mut unreadable = None;
    let model = map_parameters(model, &mut |name, tensor| {
        let stored = state.get(name).expect("every name was just found");
        let values = stored.to_f32();
        stored.release_pages();
        match values {
            Ok(values) => {
                let len = values.len();
                Tensor::from_data(TensorData::new(values, [len]), &tensor.device())
            }
            Err(error) => {
                unreadable.get_or_insert(error);
                tensor
            }
        }
    });
    match unreadable {
        None => Ok(model),
        Some(error) => Err(error.into()),
    }
}

/// The model with these values, row-major by dotted name, which are moved into it.
///
/// # Panics
/// When a parameter has no values or not as many as it has entries.
pub fn with_values<M: Module>(model: M, mut values: BTreeMap<String, Vec<f32>>) -> M {
    map_parameters(model, &mut |name, tensor| {
        let values = values.remove(name).unwrap_or_else(|| panic!("{name} has no values"));
        let len = values.len();
        Tensor::from_data(TensorData::new(values, [len]), &tensor.device())
    })
}

/// Why a state dict does not fit a model.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Names or shapes differ.
    #[error("{}", describe(*applied, missing, unused, wrong_shape))]
    Mismatch {
        /// Number of tensors that fit.
        applied: usize,
        /// Parameters the model has and the file lacks.
        missing: Vec<String>,
        /// Tensors the file has and the model lacks.
        unused: Vec<String>,
        /// Tensors of another shape.
        wrong_shape: Vec<WrongShape>,
    },
    /// A tensor could not be read.
    #[error(transparent)]
    State(#[from] StateDictError),
}

/// One tensor whose shape differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// Dotted name.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

fn describe(
    applied: usize,
    missing: &[String],
    unused: &[String],
    wrong_shape: &[WrongShape],
) -> String {
    let mut text = format!("the checkpoint does not fit the model: {applied} tensors fit");
    let list = |text: &mut String, what: &str, names: Vec<String>| {
        if !names.is_empty() {
            text.push_str(&format!("\n  {} {what}:", names.len()));
            names.iter().for_each(|name| text.push_str(&format!("\n    {name}")));
        }
    };
    list(&mut text, "missing in the checkpoint", missing.to_vec());
    list(&mut text, "in the checkpoint but not in the model", unused.to_vec());
    let shapes = wrong_shape
        .iter()
        .map(|w| format!("{}: expected {:?}, found {:?}", w.name, w.expected, w.found));
    list(&mut text, "of another shape", shapes.collect());
    text
}

/// A flat tensor's values on the host.
pub(crate) fn host(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("parameters are f32")
}

/// The dotted name of the place a traversal has reached.
#[derive(Default)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }
    pub(crate) fn name(&self) -> String {
        self.0.join(".")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Init, Linear};

    #[derive(Module, Debug)]
    struct Net {
        to_out: Vec<Linear>,
        scale: Param<Tensor<1>>,
    }

    fn net(seed: u64) -> Net {
        let mut init = Init::new(seed, &Device::flex());
        let to_out = vec![Linear::new(2, 3, true, &mut init), Linear::new(3, 1, false, &mut init)];
        Net { to_out, scale: Param::from_tensor(init.constant([1], 2.0)) }
    }

    #[test]
    fn names_are_field_paths_and_a_round_trip_is_exact() {
        let names: Vec<String> = parameter_shapes(&net(0)).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["to_out.0.weight", "to_out.0.bias", "to_out.1.weight", "scale"]);
        let state = to_state_dict(&net(0));
        let loaded = load_state_dict(net(1), &state).unwrap();
        assert_eq!(to_state_dict(&loaded).content_hash(), state.content_hash());
        assert_ne!(to_state_dict(&net(1)).content_hash(), state.content_hash());
    }

    #[test]
    fn a_scalar_fits_a_parameter_of_one_entry() {
        let mut state = to_state_dict(&net(0));
        state.insert("scale".into(), StoredTensor::from_f32(vec![], vec![7.0]));
        let loaded = load_state_dict(net(0), &state).unwrap();
        assert_eq!(host(loaded.scale.val()), [7.0]);
    }

    #[test]
    fn all_that_does_not_fit_is_listed_at_once() {
        let mut state = to_state_dict(&net(0));
        state.remove("to_out.0.bias");
        state.insert("extra".into(), StoredTensor::from_f32(vec![1], vec![0.0]));
        state.insert("to_out.1.weight".into(), StoredTensor::from_f32(vec![3], vec![0.0; 3]));
        let error = load_state_dict(net(0), &state).unwrap_err();
        let text = error.to_string();
        let LoadError::Mismatch { applied, missing, unused, wrong_shape } = error else {
            panic!("another error")
        };
        assert_eq!(
            (applied, missing, unused),
            (2, vec!["to_out.0.bias".into()], vec!["extra".into()])
        );
        assert_eq!(wrong_shape[0].expected, [1, 3]);
        assert!(text.contains("to_out.1.weight: expected [1, 3], found [3]"), "{text}");
    }

    #[test]
    fn a_tensor_without_floating_point_values_is_refused() {
        let mut state = to_state_dict(&net(0));
        let ints = StoredTensor::new(deme_merge::Dtype::I64, vec![1], vec![0; 8]).unwrap();
        state.insert("scale".into(), ints);
        assert!(matches!(load_state_dict(net(0), &state), Err(LoadError::State(_))));
    }
}
