//! `deme inspect`: what a model folder or a file of tensors holds.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use deme_merge::StateDict;

use crate::cli::InspectArguments;
use crate::diagnostics::Problem;

/// Prints the configuration, the metadata, and every tensor's name, type and shape.
pub fn run(arguments: &InspectArguments) -> Result<(), Problem> {
    let path = &arguments.path;
    if !path.exists() {
        return Err(Problem::read(path, std::io::ErrorKind::NotFound.into()));
    }
    let folder = weights_folder(path);
    let mut text = String::new();
    if folder.is_dir() {
        for name in ["model_index.json", "config.json"] {
            for place in [path.join(name), folder.join(name)] {
                if let Ok(config) = std::fs::read_to_string(&place) {
                    let _ = writeln!(text, "{}\n{}\n", place.display(), config.trim());
                    break;
                }
            }
        }
    }
    let state = StateDict::load(&folder)?;
    for (key, value) in state.metadata() {
        let _ = writeln!(text, "{key}: {value}");
    }
    let width = state.names().map(str::len).max().unwrap_or(0);
    let mut bytes = 0;
    for (name, tensor) in state.iter() {
        bytes += tensor.bytes().len();
        let dtype = format!("{:?}", tensor.dtype());
        let _ = writeln!(text, "{name:<width$}  {dtype:<5} {:?}", tensor.shape());
    }
    let _ = writeln!(
        text,
        "\n{} tensors, {} parameters, {} bytes\nxxh3 of the contents: {}",
        state.len(),
        state.num_parameters(),
        bytes,
        state.content_hash()
    );
    super::print(&text)
}

/// A diffusers pipeline keeps its UNet's weights in `unet/`.
fn weights_folder(path: &Path) -> PathBuf {
    let unet = path.join("unet");
    if unet.is_dir() { unet } else { path.to_owned() }
}
