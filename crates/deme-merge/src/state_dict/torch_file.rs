//! What `torch.save` writes: a pickle that describes tensors, and the storages they are views of.
//!
//! Since PyTorch 1.6 a zip archive (`<name>/data.pkl`, `<name>/data/<key>`), before that five pickles and
//! the storages in one stream. In both the storages lie uncompressed, so that contiguous tensors are
//! used where they lie in the mapped file; only strided ones are copied.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Id, Pickle, PickleError, PickleValue, TensorRef};
use super::safetensors_file::map_file;
use super::{StateDict, StateDictError, StoredTensor};

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const PICKLE_PROTOCOL_OPCODE: u8 = 0x80;
/// The first pickle of a legacy file.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;
/// A tensor may repeat its storage (`expand`), but only so far: a few bytes must not fill the memory.
const LARGEST_EXPANDED: usize = 1 << 26;

pub(super) fn load(path: &Path) -> Result<StateDict, StateDictError> {
    let file = map_file(path)?;
    let read = if file.starts_with(ZIP_MAGIC) {
        read_zip(&file)
    } else if file.first() == Some(&PICKLE_PROTOCOL_OPCODE) {
        read_legacy(&file)
    } else {
        return Err(StateDictError::UnknownFormat { path: path.to_owned() });
    };
    read.and_then(|(pickle, storages)| state_dict(&pickle, &file, &storages)).map_err(|error| {
        match error {
            PickleError::Refused(global) => {
                StateDictError::RefusedGlobal { path: path.to_owned(), global }
            }
            PickleError::Damaged(reason) => StateDictError::Torch { path: path.to_owned(), reason },
        }
    })
}

/// Where each storage lies in the file.
type Storages = BTreeMap<String, Range<usize>>;

fn damaged<T>(reason: impl Into<String>) -> Result<T, PickleError> {
    Err(PickleError::Damaged(reason.into()))
}

// --- the zip format ---

fn read_zip(file: &[u8]) -> Result<(Pickle, Storages), PickleError> {
    let broken = |error: zip::result::ZipError| {
        PickleError::Damaged(format!("its zip archive is damaged ({error})"))
    };
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(broken)?;
    let mut members: BTreeMap<String, Range<usize>> = BTreeMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index(index).map_err(broken)?;
        let name = member.name().map_err(broken)?.into_owned();
        if member.compression() != CompressionMethod::Stored {
            return damaged(format!(
                "its member {name} is compressed, which torch.save never does; save it again"
            ));
        }
        let range = member.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(member.size()).ok()?)?;
            (end <= file.len()).then_some(start..end)
        });
        let Some(range) = range else {
            return damaged(format!("its member {name} reaches beyond the end of the file"));
        };
        members.insert(name, range);
    }

    let Some(prefix) = members
        .keys()
        .find_map(|name| name.strip_suffix("data.pkl").filter(|p| p.matches('/').count() <= 1))
        .map(String::from)
    else {
        return damaged("it is a zip archive without data.pkl");
    };
    if let Some(range) = members.get(&format!("{prefix}byteorder"))
        && &file[range.clone()] != b"little"
    {
        return damaged("it was written on a big-endian machine");
    }
    let pickle = pickle::read(&file[members[&format!("{prefix}data.pkl")].clone()])?;
    let storages = members
        .into_iter()
        .filter_map(|(name, range)| {
            let key = name.strip_prefix(&prefix)?.strip_prefix("data/")?;
            Some((key.to_owned(), range))
        })
        .collect();
    Ok((pickle, storages))
}

// --- the legacy format ---

/// Five pickles: a magic number, a protocol version, facts about the machine, the object, the keys of its
/// storages. Then each storage: its number of elements in eight bytes, and the elements.
fn read_legacy(file: &[u8]) -> Result<(Pickle, Storages), PickleError> {
    let mut position = 0;
    let mut next = || {
        let pickle = pickle::read(&file[position..])?;
        position += pickle.length;
        Ok(pickle)
    };
    let integer = |pickle: &Pickle| match pickle.values[pickle.root] {
        PickleValue::Int(number) => Some(number),
        _ => None,
    };
    let first = next()?;
    if integer(&first) != Some(LEGACY_MAGIC) {
        return damaged(
            "it is a plain pickle, not one that torch.save wrote; save it with torch.save",
        );
    }
    if integer(&next()?) != Some(LEGACY_PROTOCOL) {
        return damaged("its version of the legacy format is unknown");
    }
    next()?;
    let object = next()?;
    let keys = next()?;

    let mut sizes: BTreeMap<&str, (Dtype, usize)> = BTreeMap::new();
    for value in &object.values {
        if let PickleValue::Storage(storage) = value {
            let size = (storage.dtype, storage.numel);
            if *sizes.entry(&storage.key).or_insert(size) != size {
                return damaged(format!("storage {} is described in two ways", storage.key));
            }
        }
    }
    let PickleValue::List(key_ids) = &keys.values[keys.root] else {
        return damaged("it does not list the keys of its storages");
    };
    let mut storages = Storages::new();
    for &id in key_ids {
        let PickleValue::Text(key) = &keys.values[id] else {
            return damaged("the key of a storage is no text");
        };
        let Some(&(dtype, numel)) = sizes.get(key.as_str()) else {
            return damaged(format!("it holds a storage {key} that no tensor uses"));
        };
        let short = || PickleError::Damaged(format!("it ends before the end of storage {key}"));
        let header = file.get(position..).and_then(|rest| rest.first_chunk::<8>());
        let stored = u64::from_le_bytes(*header.ok_or_else(short)?);
        if stored != numel as u64 {
            return damaged(format!("storage {key} should have {numel} elements, found {stored}"));
        }
        let start = position + 8;
        let end = numel
            .checked_mul(dtype.bitsize() / 8)
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|&end| end <= file.len())
            .ok_or_else(short)?;
        storages.insert(key.clone(), start..end);
        position = end;
    }
    Ok((object, storages))
}

// --- from the pickle to tensors ---

fn state_dict(
    pickle: &Pickle,
    file: &Arc<Mmap>,
    storages: &Storages,
) -> Result<StateDict, PickleError> {
    let mut state_dict = StateDict::new();
    let PickleValue::Dict(mut entries) = pickle.values[pickle.root].clone() else {
        let kind = pickle.values[pickle.root].kind();
        return damaged(format!("it holds a {kind}, expected a dictionary of tensors"));
    };
    let inner = entries.iter().rev().find_map(|&(key, value)| {
        match (&pickle.values[key], &pickle.values[value]) {
            (PickleValue::Text(key), PickleValue::Dict(inner)) if key == "state_dict" => {
                Some((value, inner.clone()))
            }
            _ => None,
        }
    });
    if let Some((unwrapped, inner)) = inner {
        for &(key, value) in entries.iter().filter(|(_, value)| *value != unwrapped) {
            state_dict.skipped.push(describe(pickle, key, value));
        }
        entries = inner;
    }

    for (key, value) in entries {
        match (&pickle.values[key], &pickle.values[value]) {
            (PickleValue::Text(name), PickleValue::Tensor(tensor)) => {
                let tensor = view(name, tensor, file, storages)?;
                state_dict.insert(name.clone(), tensor);
            }
            _ => state_dict.skipped.push(describe(pickle, key, value)),
        }
    }
    if state_dict.is_empty() && !state_dict.skipped.is_empty() {
        return damaged(format!(
            "it holds no tensor, only {}; save the model's state_dict() itself, or under the key \
             `state_dict`",
            state_dict.skipped.join(", ")
        ));
    }
    Ok(state_dict)
}

fn describe(pickle: &Pickle, key: Id, value: Id) -> String {
    let key = match &pickle.values[key] {
        PickleValue::Text(key) => key.clone(),
        PickleValue::Int(key) => key.to_string(),
        other => format!("<{}>", other.kind()),
    };
    format!("{key}: {}", pickle.values[value].kind())
}

/// The tensor as a row-major one: in place when it lies so in the file, copied otherwise.
fn view(
    name: &str,
    tensor: &TensorRef,
    file: &Arc<Mmap>,
    storages: &Storages,
) -> Result<StoredTensor, PickleError> {
    let TensorRef { storage, shape, stride, .. } = tensor;
    let Some(range) = storages.get(&storage.key) else {
        return damaged(format!(
            "tensor `{name}` lies in storage {}, which is missing",
            storage.key
        ));
    };
    let item = storage.dtype.bitsize() / 8;
    let beyond = || {
        PickleError::Damaged(format!(
            "tensor `{name}` of shape {shape:?} reaches beyond its storage {} of {} bytes",
            storage.key,
            range.len()
        ))
    };
    let numel = shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .ok_or_else(beyond)?;
    let first = tensor.offset.checked_add(storage.view_offset).ok_or_else(beyond)?;

    let stored = if numel == 0 {
        StoredTensor::new(storage.dtype, shape.clone(), Vec::new())
    } else {
        let last = shape.iter().zip(stride).try_fold(first, |last, (&size, &stride)| {
            last.checked_add(stride.checked_mul(size - 1)?)
        });
        let end = last
            .and_then(|last| last.checked_add(1)?.checked_mul(item))
            .filter(|&end| end <= range.len())
            .ok_or_else(beyond)?;
        if is_row_major(shape, stride) {
            let range = range.start + first * item..range.start + end;
            StoredTensor::mapped(storage.dtype, shape.clone(), Arc::clone(file), range)
        } else if numel > (range.len() / item).max(LARGEST_EXPANDED) {
            return damaged(format!(
                "tensor `{name}` of shape {shape:?} repeats a storage of {} bytes; call .contiguous() \
                 before saving",
                range.len()
            ));
        } else {
            let bytes = gather(&file[range.clone()], item, first, shape, stride);
            StoredTensor::new(storage.dtype, shape.clone(), bytes)
        }
    };
    stored.or_else(|error| damaged(format!("tensor `{name}`: {error}")))
}

/// The stride of a dimension of size 1 means nothing.
fn is_row_major(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}

/// Copies the elements in row-major order. All of them must lie in the storage.
fn gather(storage: &[u8], item: usize, first: usize, shape: &[usize], stride: &[usize]) -> Vec<u8> {
    let numel: usize = shape.iter().product();
    let mut bytes = Vec::with_capacity(numel * item);
    let mut index = vec![0; shape.len()];
    let mut position = first;
    for _ in 0..numel {
        bytes.extend_from_slice(&storage[position * item..(position + 1) * item]);
        // The next index: the last dimension runs fastest.
        for dim in (0..shape.len()).rev() {
            index[dim] += 1;
            position += stride[dim];
            if index[dim] < shape[dim] {
                break;
            }
            position -= stride[dim] * shape[dim];
            index[dim] = 0;
        }
    }
    bytes
}
