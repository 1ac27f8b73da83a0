//! `deme merge`: experts and their pretrained model into one model.

use std::path::Path;

use burn::tensor::Device;
use deme_diffusion::{load_pipeline, save_pipeline};
use deme_merge::{MergeMethod, StateDict, merge};
use deme_nn::{load_state_dict, to_state_dict};

use crate::cli::MergeArguments;
use crate::diagnostics::Problem;

/// Merges files of tensors, or diffusers folders.
pub fn run(arguments: &MergeArguments) -> Result<(), Problem> {
    let MergeArguments { base, experts, weights, out } = arguments;
    let method = match weights {
        Some(weights) => MergeMethod::Linear { weights: weights.clone() },
        None => MergeMethod::Uniform,
    };
    if let Some(weights) = weights
        && weights.len() != experts.len()
    {
        return Err(Problem::Usage {
            message: format!("{} weights for {} experts", weights.len(), experts.len()),
            help: "give --weights one number per --expert, in the same order".into(),
        });
    }
    if out.exists() {
        return Err(Problem::Usage {
            message: format!("{} is there already", out.display()),
            help: "choose another --out, or remove it first".into(),
        });
    }
    if base.is_dir() {
        merge_folders(base, experts, &method, out)?;
    } else {
        merge_files(base, experts, &method, out)?;
    }
    super::print(&format!("{}\n", out.display()))
}

fn merge_files(
    base: &Path,
    experts: &[std::path::PathBuf],
    method: &MergeMethod,
    out: &Path,
) -> Result<(), Problem> {
    let theta_pre = StateDict::load(base)?;
    let experts = experts.iter().map(|path| StateDict::load(path));
    let experts: Vec<StateDict> = experts.collect::<Result<_, _>>()?;
    Ok(merge(&theta_pre, &experts, method)?.save(out)?)
}

fn merge_folders(
    base: &Path,
    experts: &[std::path::PathBuf],
    method: &MergeMethod,
    out: &Path,
) -> Result<(), Problem> {
    let device = Device::flex();
    let load = |path: &Path| load_pipeline(&path.to_string_lossy(), &device);
    let pretrained = load(base)?;
    let mut states = Vec::new();
    for path in experts {
        states.push(to_state_dict(&load(path)?.unet));
    }
    let merged = merge(&to_state_dict(&pretrained.unet), &states, method)?;
    let unet = load_state_dict(pretrained.unet, &merged)
        .expect("a merged state dict has the base's names and shapes");
    Ok(save_pipeline(out, &unet, &pretrained.scheduler.unwrap_or_default())?)
}
