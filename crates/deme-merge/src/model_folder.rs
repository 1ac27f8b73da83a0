//! Merged weights in a folder like the pretrained model's, as diffusers reads it.
//!
//! Only the weights of one part of a pipeline are merged. Everything else (the configurations, and in a
//! whole pipeline the other parts) is copied byte for byte. What the files mean is of no matter here.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::merge_error::MergeError;
use crate::merge_inputs::MergeInputs;
use crate::merge_method::MergeMethod;
use crate::state_dict::{StateDictError, WeightFiles};

/// The endings of weight files, of any framework.
const WEIGHT_ENDINGS: [&str; 9] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".pb"];

impl MergeInputs<'_> {
    /// Merges into a new folder `out` that is `model` but for the weights in `part`, which is `model` itself
    /// or a folder inside it. All weight files of `part` (shards, indices, other variants) are replaced by
    /// the merged ones, in shards of at most so many tensor bytes, under the name of the variant that
    /// [`StateDict::load`](crate::StateDict::load) reads from `part`.
    ///
    /// The folder appears complete or not at all.
    ///
    /// # Errors
    /// As [`Self::merge_to_folder`], and [`MergeError::StateDict`] when a file cannot be copied or `out` is
    /// there already.
    pub fn merge_to_model_folder(
        &self,
        method: &MergeMethod,
        model: &Path,
        part: &Path,
        out: &Path,
        max_shard_bytes: u64,
    ) -> Result<(), MergeError> {
        let files = WeightFiles::of_folder(part)?;
        let inside = part.strip_prefix(model).expect("the part lies in the model's folder");
        let partial = PartialFolder::create(out)?;
        let target = partial.path.join(inside);
        fs::create_dir_all(&target).map_err(|source| StateDictError::write(&target, source))?;
        self.merge_to_folder(method, &target, &files, max_shard_bytes)?;
        copy_folder(model, &partial.path, &|path| {
            path.parent() == Some(part) && is_weight_file(path)
        })?;
        Ok(partial.commit()?)
    }
}

fn is_weight_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_index = name.ends_with(".json") && name.contains(".index.");
    is_index || WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Copies all files but those left out. Links are followed, as the hub's cache consists of them.
fn copy_folder(
    from: &Path,
    to: &Path,
    left_out: &dyn Fn(&Path) -> bool,
) -> Result<(), StateDictError> {
    fs::create_dir_all(to).map_err(|source| StateDictError::write(to, source))?;
    let entries = fs::read_dir(from).map_err(|source| StateDictError::read(from, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| StateDictError::read(from, source))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &target, left_out)?;
        } else if !left_out(&path) {
            fs::copy(&path, &target)
                .and_then(|_| File::open(&target)?.sync_all())
                .map_err(|source| StateDictError::write(&target, source))?;
        }
    }
    Ok(())
}

/// A folder under a temporary name. Dropped without [`Self::commit`] it is removed.
struct PartialFolder {
    path: PathBuf,
    out: PathBuf,
}

impl PartialFolder {
    /// The temporary name is fixed, so what a killed merge left is removed by the next one.
    fn create(out: &Path) -> Result<Self, StateDictError> {
        let refused = |kind: io::ErrorKind| StateDictError::write(out, kind.into());
        let name = out.file_name().ok_or_else(|| refused(io::ErrorKind::InvalidInput))?;
        if out.exists() {
            return Err(refused(io::ErrorKind::AlreadyExists));
        }
        let path = out.with_file_name(format!(".{}.merge.deme.tmp", name.to_string_lossy()));
        let io = |source| StateDictError::write(&path, source);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io)?;
        }
        fs::create_dir_all(&path).map_err(io)?;
        Ok(Self { path, out: out.to_owned() })
    }

    fn commit(self) -> Result<(), StateDictError> {
        fs::rename(&self.path, &self.out).map_err(|source| StateDictError::write(&self.out, source))
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        // After a commit there is nothing of that name. The first error is the one worth telling.
        let _ = fs::remove_dir_all(&self.path);
    }
}
