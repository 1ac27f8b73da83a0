//! Which file of a `save_pretrained` folder holds the weights.

use std::path::{Path, PathBuf};

use super::StateDictError;

/// File names by preference. The first group with a file in the folder must have exactly one.
const GROUPS: [&[&str]; 4] = [
    &[
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "model.safetensors",
        "model.safetensors.index.json",
    ],
    &[
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.bin.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ],
    &[
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
        "model.fp16.safetensors",
        "model.safetensors.index.fp16.json",
        "model.fp16.safetensors.index.json",
    ],
    &[
        "diffusion_pytorch_model.fp16.bin",
        "diffusion_pytorch_model.bin.index.fp16.json",
        "diffusion_pytorch_model.fp16.bin.index.json",
        "pytorch_model.fp16.bin",
        "pytorch_model.bin.index.fp16.json",
        "pytorch_model.fp16.bin.index.json",
    ],
];

pub(super) fn weights_in(folder: &Path) -> Result<PathBuf, StateDictError> {
    for group in GROUPS {
        let found: Vec<&str> =
            group.iter().copied().filter(|name| folder.join(name).is_file()).collect();
        match found[..] {
            [] => {}
            [name] => return Ok(folder.join(name)),
            _ => {
                return Err(StateDictError::AmbiguousFolder {
                    folder: folder.to_owned(),
                    found: found.into_iter().map(String::from).collect(),
                });
            }
        }
    }
    Err(StateDictError::EmptyFolder {
        folder: folder.to_owned(),
        tried: GROUPS.concat().into_iter().map(String::from).collect(),
    })
}
