//! Merges files of tensors with given weights, without the command:
//! `merge_files OUT BASE WEIGHT=EXPERT ..`, as in `merge_files merged.safetensors base.safetensors 0.5=a.safetensors 0.5=b.safetensors`.

use std::error::Error;
use std::path::Path;

use deme_merge::{MergeInputs, MergeMethod, StateDict};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, base, experts @ ..] = &arguments[..] else {
        return Err("usage: merge_files OUT BASE WEIGHT=EXPERT ..".into());
    };
    let mut weights = Vec::new();
    let mut models = Vec::new();
    for expert in experts {
        let (weight, path) = expert.split_once('=').ok_or("an expert is WEIGHT=PATH")?;
        weights.push(weight.parse()?);
        models.push(StateDict::load(Path::new(path))?);
    }
    let theta_pre = StateDict::load(Path::new(base))?;
    let inputs = MergeInputs { theta_pre: &theta_pre, experts: &models, statistics: &[] };
    inputs.merge_to_file(&MergeMethod::Linear { weights }, Path::new(out))?;
    Ok(())
}
