//! Parameter space: state dicts, task vectors, merging, weight search. No tensor engine.
//!
//! A model is here a point in parameter space: named tensors ([`StateDict`]). Finetuning moves the point,
//! the displacement is a [task vector](task_vector::TaskVector), and merging adds weighted displacements
//! to the pretrained point. What crosses the wall to the networks is a safetensors file, nothing else.

#[cfg(target_endian = "big")]
compile_error!("tensor bytes are little endian in every checkpoint format and are used in place");

pub mod atomic_file;
mod dare;
mod fisher;
mod group_weights;
pub mod landscape;
mod linear_algebra;
pub mod merge;
mod merge_error;
pub mod merge_inputs;
pub mod merge_method;
pub mod merge_plan;
mod model_folder;
mod parameter_groups;
mod random_draws;
mod regmean;
pub mod same_tensors;
mod slerp;
pub mod state_dict;
pub mod task_vector;
pub mod task_vector_statistics;
mod ties;
pub mod weight_search;

pub use atomic_file::write_atomically;
pub use landscape::{Landscape, LandscapeConfig, landscape};
pub use merge::merge;
pub use merge_error::{MergeError, ModelRole, TensorMismatch};
pub use merge_inputs::MergeInputs;
pub use merge_method::{METHODS, MergeMethod, MethodRow};
pub use merge_plan::{MergePlan, MergedTensor};
pub use parameter_groups::ParameterGroups;
pub use state_dict::{Dtype, StateDict, StateDictError, StoredTensor, WeightFiles};
pub use task_vector::TaskVector;
pub use task_vector_statistics::{TaskVectorStatistics, task_vector_statistics};
pub use weight_search::{SearchConfig, SearchError, SearchResult, SearchTask, search_weights};
