//! A state dict in several files: `weight_map` of an index says which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::folder::weights_in;
use super::{StateDict, StateDictError, StoredTensor};
use crate::atomic_file::write_atomically;

/// `x.index.json`, or `x.index.fp16.json` as diffusers names the index of a variant.
pub(super) fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".index.")
}

/// The index file. It also has a `metadata` object, whose total size we do not need.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn load(path: &Path) -> Result<StateDict, StateDictError> {
    let invalid = |reason: String| StateDictError::ShardIndex { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|source| StateDictError::read(path, source))?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut names_by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        // A shard lies beside its index. Anything else is a mistake or an attack.
        let mut components = Path::new(shard).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            return Err(invalid(format!(
                "tensor `{name}` is said to lie in `{shard}`, which is not a plain file name"
            )));
        }
        if is_index(shard) {
            return Err(invalid(format!(
                "shard `{shard}` is itself an index, expected a file of tensors"
            )));
        }
        names_by_shard.entry(shard).or_default().insert(name);
    }

    let mut state_dict = StateDict::new();
    let mut problems = Vec::new();
    for (shard, names) in names_by_shard {
        let shard_path = folder.join(shard);
        if !shard_path.is_file() {
            problems.push(format!("shard {shard} is missing"));
            continue;
        }
        let part = StateDict::load(&shard_path)?;
        for name in &names {
            if part.get(name).is_none() {
                problems.push(format!("`{name}` is not in {shard}"));
            }
        }
        for (key, value) in part.metadata {
            state_dict.metadata.entry(key).or_insert(value);
        }
        state_dict.skipped.extend(part.skipped);
        for (name, tensor) in part.tensors {
            if names.contains(name.as_str()) {
                state_dict.insert(name, tensor);
            } else {
                problems
                    .push(format!("{shard} holds `{name}`, which the index does not place there"));
            }
        }
    }
    if problems.is_empty() {
        return Ok(state_dict);
    }
    Err(StateDictError::ShardMismatch { index: path.to_owned(), problems })
}

/// What the weight files of a folder are called: `stem` and the variant, as diffusers spells them.
///
/// Without a variant `stem.safetensors`, `stem-00001-of-00002.safetensors`, `stem.safetensors.index.json`;
/// with one `stem.fp16.safetensors`, `stem.fp16-00001-of-00002.safetensors`,
/// `stem.safetensors.index.fp16.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    stem: String,
    variant: Option<String>,
}

impl WeightFiles {
    /// The files of this stem, such as `diffusion_pytorch_model`, without a variant.
    pub fn new(stem: impl Into<String>) -> Self {
        Self { stem: stem.into(), variant: None }
    }

    /// The names under which safetensors take the place of the weights that [`StateDict::load`] reads from
    /// this folder: of `x.fp16.bin`, or of its index, it is `x` with the variant `fp16`.
    ///
    /// # Errors
    /// [`StateDictError::EmptyFolder`] and [`StateDictError::AmbiguousFolder`].
    pub fn of_folder(folder: &Path) -> Result<Self, StateDictError> {
        let file = weights_in(folder)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let (stem, rest) = name.split_once('.').unwrap_or((&name, ""));
        let known = ["safetensors", "bin", "index", "json"];
        let variant = rest.split('.').find(|part| !known.contains(part)).map(String::from);
        // transformers calls its pickles otherwise than its safetensors.
        let stem = if stem == "pytorch_model" { "model" } else { stem };
        Ok(Self { stem: stem.to_owned(), variant })
    }

    pub(super) fn single(&self) -> String {
        format!("{}.safetensors", self.with_variant())
    }

    pub(super) fn shard(&self, number: usize, count: usize) -> String {
        format!("{}-{:05}-of-{count:05}.safetensors", self.with_variant(), number + 1)
    }

    fn index(&self) -> String {
        match &self.variant {
            None => format!("{}.safetensors.index.json", self.stem),
            Some(variant) => format!("{}.safetensors.index.{variant}.json", self.stem),
        }
    }

    fn with_variant(&self) -> String {
        match &self.variant {
            None => self.stem.clone(),
            Some(variant) => format!("{}.{variant}", self.stem),
        }
    }

    /// Whether a file of that name belongs to these weights.
    fn contain(&self, name: &str) -> bool {
        name == self.index()
            || name
                .strip_prefix(&self.with_variant())
                .is_some_and(|rest| rest == ".safetensors" || is_shard_number(rest))
    }
}

/// Writes the index of the written shards (unless it is a single file), and removes what an earlier save
/// left. `shard_of` says which of the files holds a tensor.
pub(super) fn finish_folder(
    folder: &Path,
    files: &WeightFiles,
    mut written: Vec<PathBuf>,
    shard_of: &[((&str, &StoredTensor), usize)],
) -> Result<PathBuf, StateDictError> {
    if written.len() > 1 {
        let total_size: u64 = shard_of.iter().map(|((_, t), _)| t.bytes().len() as u64).sum();
        let weight_map: BTreeMap<&str, String> = shard_of
            .iter()
            .map(|&((name, _), shard)| (name, files.shard(shard, written.len())))
            .collect();
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        let path = folder.join(files.index());
        // Last: an index never names a shard that is not there yet.
        write_atomically(&path, |writer| {
            serde_json::to_writer_pretty(&mut *writer, &index)?;
            writer.write_all(b"\n")
        })
        .map_err(|source| StateDictError::write(&path, source))?;
        written.push(path);
    }
    remove_others(folder, files, &written)?;
    Ok(written.pop().expect("there is at least one file"))
}

/// Fills shard after shard in the order of the names.
/// Without tensors there is one empty shard.
pub(super) fn split<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a StoredTensor)>,
    max_shard_bytes: u64,
) -> Vec<Vec<(&'a str, &'a StoredTensor)>> {
    let mut shards = Vec::new();
    let mut shard = Vec::new();
    let mut shard_bytes = 0;
    for (name, tensor) in tensors {
        let bytes = tensor.bytes().len() as u64;
        if !shard.is_empty() && shard_bytes + bytes > max_shard_bytes {
            shards.push(std::mem::take(&mut shard));
            shard_bytes = 0;
        }
        shard.push((name, tensor));
        shard_bytes += bytes;
    }
    if !shard.is_empty() || shards.is_empty() {
        shards.push(shard);
    }
    shards
}

/// Removes what an earlier save under the same names left: a second model in the folder.
fn remove_others(
    folder: &Path,
    files: &WeightFiles,
    written: &[PathBuf],
) -> Result<(), StateDictError> {
    let entries = fs::read_dir(folder).map_err(|source| StateDictError::read(folder, source))?;
    for entry in entries {
        let path = entry.map_err(|source| StateDictError::read(folder, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if files.contain(&name) && !written.contains(&path) {
            fs::remove_file(&path).map_err(|source| StateDictError::write(&path, source))?;
        }
    }
    Ok(())
}

/// `-00001-of-00002.safetensors`
fn is_shard_number(rest: &str) -> bool {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.strip_prefix('-')
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(index, count)| number(index) && number(count))
}
