//! A state dict in several files: `weight_map` of an index says which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::{StateDict, StateDictError, StoredTensor, safetensors_file};
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

pub(super) fn save(
    state_dict: &StateDict,
    folder: &Path,
    stem: &str,
    max_shard_bytes: u64,
) -> Result<PathBuf, StateDictError> {
    let shards = split(state_dict, max_shard_bytes);
    let index_path = folder.join(format!("{stem}.safetensors.index.json"));

    let (written, main) = if shards.len() <= 1 {
        let path = folder.join(format!("{stem}.safetensors"));
        state_dict.save(&path)?;
        (vec![path.clone()], path)
    } else {
        let mut written = Vec::new();
        let mut weight_map = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let file = format!("{stem}-{:05}-of-{:05}.safetensors", number + 1, shards.len());
            let path = folder.join(&file);
            safetensors_file::save(&path, shard, &state_dict.metadata)?;
            weight_map.extend(shard.iter().map(|(name, _)| (*name, file.clone())));
            written.push(path);
        }
        let index = json!({
            "metadata": { "total_size": state_dict.num_bytes() },
            "weight_map": weight_map,
        });
        // Last: an index never names a shard that is not there yet.
        write_atomically(&index_path, |writer| {
            serde_json::to_writer_pretty(&mut *writer, &index)?;
            writer.write_all(b"\n")
        })
        .map_err(|source| StateDictError::write(&index_path, source))?;
        written.push(index_path.clone());
        (written, index_path)
    };
    remove_others_of_stem(folder, stem, &written)?;
    Ok(main)
}

/// Fills shard after shard in the order of the names.
fn split(state_dict: &StateDict, max_shard_bytes: u64) -> Vec<Vec<(&str, &StoredTensor)>> {
    let mut shards = Vec::new();
    let mut shard = Vec::new();
    let mut shard_bytes = 0;
    for (name, tensor) in state_dict.iter() {
        let bytes = tensor.bytes().len() as u64;
        if !shard.is_empty() && shard_bytes + bytes > max_shard_bytes {
            shards.push(std::mem::take(&mut shard));
            shard_bytes = 0;
        }
        shard.push((name, tensor));
        shard_bytes += bytes;
    }
    if !shard.is_empty() {
        shards.push(shard);
    }
    shards
}

/// Removes what an earlier save under the same stem left: a second model in the folder.
fn remove_others_of_stem(
    folder: &Path,
    stem: &str,
    written: &[PathBuf],
) -> Result<(), StateDictError> {
    let entries = fs::read_dir(folder).map_err(|source| StateDictError::read(folder, source))?;
    for entry in entries {
        let path = entry.map_err(|source| StateDictError::read(folder, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let ours = name.strip_prefix(stem).is_some_and(|rest| {
            rest == ".safetensors" || rest == ".safetensors.index.json" || is_shard_number(rest)
        });
        if ours && !written.contains(&path) {
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
