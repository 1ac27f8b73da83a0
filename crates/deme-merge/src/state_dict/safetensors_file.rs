//! One safetensors file: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! Reading maps the file. The header for writing is made here, because the format's own writer does not fix
//! the order of the metadata and equal state dicts must give equal bytes; `writer` writes the rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

use super::{StateDict, StateDictError, StoredTensor};

const METADATA_KEY: &str = "__metadata__";

/// Maps a whole file. The map outlives the file's name, so a replaced file does no harm.
pub(super) fn map_file(path: &Path) -> Result<Arc<Mmap>, StateDictError> {
    let file = File::open(path).map_err(|source| StateDictError::read(path, source))?;
    // SAFETY: the map is only read. Somebody shortening the file in place while it is mapped would end the
    // process; `StateDict::load` documents that, and everything we write is renamed into place.
    let map = unsafe { Mmap::map(&file) };
    map.map(Arc::new).map_err(|source| StateDictError::read(path, source))
}

pub(super) fn load(path: &Path) -> Result<StateDict, StateDictError> {
    let file = map_file(path)?;
    let damaged = |source| StateDictError::Safetensors { path: path.to_owned(), source };
    let (header_length, header) = SafeTensors::read_metadata(&file).map_err(damaged)?;
    let data_start = 8 + header_length;

    let mut state_dict = StateDict::new();
    for (name, info) in header.tensors() {
        let (begin, end) = info.data_offsets;
        let tensor = StoredTensor::mapped(
            info.dtype,
            info.shape.clone(),
            Arc::clone(&file),
            data_start + begin..data_start + end,
        )?;
        state_dict.insert(name, tensor);
    }
    if let Some(metadata) = header.metadata() {
        state_dict.metadata = metadata.clone().into_iter().collect();
    }
    Ok(state_dict)
}

/// Everything before the tensors' bytes: eight bytes of length, and the JSON. The tensors must be sorted as
/// they lie in the file.
pub(super) fn header(
    tensors: &[(&str, &StoredTensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, StateDictError> {
    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "pt".into());

    let mut header = Map::new();
    header.insert(METADATA_KEY.into(), json!(metadata));
    let mut offset = 0;
    for (name, tensor) in tensors {
        if *name == METADATA_KEY {
            return Err(StateDictError::ReservedName);
        }
        let end = offset + tensor.bytes().len();
        let info = json!({
            "dtype": tensor.dtype(),
            "shape": tensor.shape(),
            "data_offsets": [offset, end],
        });
        header.insert((*name).into(), info);
        offset = end;
    }

    let mut bytes = vec![0; 8];
    serde_json::to_writer(&mut bytes, &Value::Object(header))
        .expect("strings and numbers always make valid JSON");
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let length = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}
