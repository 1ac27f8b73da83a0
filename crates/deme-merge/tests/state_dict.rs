//! Safetensors files, shards and folders: exact round trips, equal bytes, and every refusal.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use deme_merge::{Dtype, StateDict, StateDictError, StoredTensor};
use proptest::prelude::*;

fn small() -> StateDict {
    let mut state_dict: StateDict = [
        ("b.weight", StoredTensor::from_f32(vec![2, 2], vec![1.0, -2.0, 0.5, 3.0])),
        ("a.half", StoredTensor::from_f32_as(Dtype::F16, vec![3], &[1.0, 2.0, 0.25]).unwrap()),
        ("c.ids", StoredTensor::new(Dtype::I64, vec![1], 7i64.to_le_bytes().to_vec()).unwrap()),
    ]
    .map(|(name, tensor)| (name.to_string(), tensor))
    .into_iter()
    .collect();
    state_dict.set_metadata("made_by", "a test");
    state_dict
}

#[test]
fn saving_and_loading_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) =
        (folder.path().join("1.safetensors"), folder.path().join("2.safetensors"));
    small().save(&first).unwrap();
    let loaded = StateDict::load(&first).unwrap();
    loaded.save(&second).unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    assert_eq!(loaded.metadata()["made_by"], "a test");
    assert_eq!(loaded.metadata()["format"], "pt");
    assert_eq!(loaded.get("c.ids").unwrap().to_i64().unwrap(), [7]);
    assert_eq!(loaded.get("a.half").unwrap().to_f32().unwrap(), [1.0, 2.0, 0.25]);
    assert_eq!(loaded.num_parameters(), 8);
    // A mapped file may be saved over itself: the old bytes stay until they are dropped.
    loaded.save(&first).unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
}

#[test]
fn tensors_are_aligned_and_the_header_is_sorted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    small().save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    assert_eq!(
        header.trim_end(),
        r#"{"__metadata__":{"format":"pt","made_by":"a test"},"c.ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"b.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},"a.half":{"dtype":"F16","shape":[3],"data_offsets":[24,30]}}"#
    );
}

#[test]
fn an_empty_state_dict_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    StateDict::new().save(&path).unwrap();
    assert!(StateDict::load(&path).unwrap().is_empty());
    let main = StateDict::new().save_sharded(folder.path(), "model", 8).unwrap();
    assert!(StateDict::load(&main).unwrap().is_empty());
}

#[test]
fn the_content_hash_sees_names_dtypes_shapes_and_bytes_only() {
    let base = small();
    let mut other = base.clone();
    other.set_metadata("made_by", "somebody else");
    assert_eq!(base.content_hash(), other.content_hash());

    let mut hashes = vec![base.content_hash()];
    let mut renamed = base.clone();
    let tensor = renamed.remove("b.weight").unwrap();
    renamed.insert("b.bias".into(), tensor.clone());
    hashes.push(renamed.content_hash());
    for changed in [
        StoredTensor::new(Dtype::F32, vec![4], tensor.bytes().to_vec()).unwrap(),
        StoredTensor::new(Dtype::I32, vec![2, 2], tensor.bytes().to_vec()).unwrap(),
        StoredTensor::from_f32(vec![2, 2], vec![1.0, -2.0, 0.5, 3.5]),
    ] {
        let mut state_dict = base.clone();
        state_dict.insert("b.weight".into(), changed);
        hashes.push(state_dict.content_hash());
    }
    let mut distinct = hashes.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), hashes.len());
}

#[test]
fn shards_and_their_index_hold_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let stem = "diffusion_pytorch_model";
    let index = small().save_sharded(folder.path(), stem, 16).unwrap();
    assert_eq!(index.file_name().unwrap(), "diffusion_pytorch_model.safetensors.index.json");
    // a.half (6 bytes) | b.weight (16) | c.ids (8)
    assert!(folder.path().join("diffusion_pytorch_model-00003-of-00003.safetensors").is_file());
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    assert_eq!(text["metadata"]["total_size"], 30);
    assert_eq!(
        text["weight_map"]["b.weight"],
        "diffusion_pytorch_model-00002-of-00003.safetensors"
    );

    for path in [index.as_path(), folder.path()] {
        let loaded = StateDict::load(path).unwrap();
        assert_eq!(loaded.content_hash(), small().content_hash());
        assert_eq!(loaded.metadata()["made_by"], "a test");
    }

    // Saved again in one piece, the old shards are gone: the folder still holds one model.
    let single = small().save_sharded(folder.path(), stem, 1 << 20).unwrap();
    assert_eq!(single.file_name().unwrap(), "diffusion_pytorch_model.safetensors");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(StateDict::load(folder.path()).unwrap().content_hash(), small().content_hash());
}

#[test]
fn shards_that_disagree_with_their_index_are_all_listed() {
    let folder = tempfile::tempdir().unwrap();
    let index = small().save_sharded(folder.path(), "model", 1).unwrap();
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("\"a.half\"", "\"a.other\"")).unwrap();
    fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    match StateDict::load(&index).unwrap_err() {
        StateDictError::ShardMismatch { problems, .. } => assert_eq!(
            problems,
            [
                "`a.other` is not in model-00001-of-00003.safetensors",
                "model-00001-of-00003.safetensors holds `a.half`, which the index does not place there",
                "shard model-00002-of-00003.safetensors is missing",
            ]
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn an_index_that_is_none_or_leaves_its_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for (text, reason) in [
        ("{", "EOF"),
        ("{}", "weight_map"),
        (
            r#"{"weight_map": {"a": "../b.safetensors"}}"#,
            "`../b.safetensors`, which is not a plain",
        ),
        (r#"{"weight_map": {"a": "/b.safetensors"}}"#, "not a plain file name"),
        (r#"{"weight_map": {"a": "."}}"#, "not a plain file name"),
        (r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#, "itself an index"),
    ] {
        fs::write(&index, text).unwrap();
        let error = StateDict::load(&index).unwrap_err();
        assert!(matches!(error, StateDictError::ShardIndex { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_folder_gives_its_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, value: f32| {
        let tensor = StoredTensor::from_f32(vec![1], vec![value]);
        let state_dict: StateDict = [("w".to_string(), tensor)].into_iter().collect();
        let path = folder.path().join("made.safetensors");
        state_dict.save(&path).unwrap();
        fs::rename(path, folder.path().join(name)).unwrap();
    };
    let value = || StateDict::load(folder.path()).unwrap().get("w").unwrap().to_f32().unwrap()[0];

    match StateDict::load(folder.path()).unwrap_err() {
        StateDictError::EmptyFolder { tried, .. } => {
            assert!(tried.contains(&"model.safetensors".to_string()));
        }
        other => panic!("{other}"),
    }
    save("model.fp16.safetensors", 1.0);
    assert_eq!(value(), 1.0);
    save("model.safetensors", 2.0);
    assert_eq!(value(), 2.0);
    fs::write(folder.path().join("pytorch_model.bin"), b"not read").unwrap();
    assert_eq!(value(), 2.0);
    save("diffusion_pytorch_model.safetensors", 3.0);
    match StateDict::load(folder.path()).unwrap_err() {
        StateDictError::AmbiguousFolder { found, .. } => {
            assert_eq!(found, ["diffusion_pytorch_model.safetensors", "model.safetensors"]);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_missing_path_and_a_full_disk_are_told_apart() {
    let missing = Path::new("/nowhere/model.safetensors");
    let error = StateDict::load(missing).unwrap_err();
    assert!(matches!(&error, StateDictError::NotFound { path } if path == missing), "{error:?}");
    let error = small().save(missing).unwrap_err();
    assert!(matches!(&error, StateDictError::Io { path, .. } if path == missing), "{error:?}");
}

#[test]
fn damaged_safetensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    small().save(&path).unwrap();
    let good = fs::read(&path).unwrap();
    let mut longer = good.clone();
    longer.push(0);
    let mut huge_header = good.clone();
    huge_header[7] = 0xff;
    for bytes in [&longer[..], &huge_header, &good[..good.len() - 1], b""] {
        fs::write(&path, bytes).unwrap();
        let error = StateDict::load(&path).unwrap_err();
        assert!(matches!(error, StateDictError::Safetensors { .. }), "{error:?}");
    }
}

#[test]
fn the_reserved_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut state_dict = small();
    state_dict.insert("__metadata__".into(), StoredTensor::from_f32(vec![], vec![0.0]));
    let error = state_dict.save(&folder.path().join("x.safetensors")).unwrap_err();
    assert!(matches!(error, StateDictError::ReservedName), "{error:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn bytes_must_fit_dtype_and_shape() {
    match StoredTensor::new(Dtype::F32, vec![2, 3], vec![0; 20]).unwrap_err() {
        StateDictError::ByteCount { expected, found, .. } => {
            assert_eq!((expected, found), (24, 20))
        }
        other => panic!("{other}"),
    }
    let overflow = StoredTensor::new(Dtype::F32, vec![usize::MAX, usize::MAX, 9], vec![0; 20]);
    assert!(matches!(overflow, Err(StateDictError::ByteCount { .. })));
}

#[test]
fn conversions_that_would_lie_are_refused() {
    let ids = StoredTensor::new(Dtype::I64, vec![1], vec![0; 8]).unwrap();
    assert!(matches!(ids.to_f32(), Err(StateDictError::Dtype { found: Dtype::I64, .. })));
    let weight = StoredTensor::from_f32(vec![1], vec![1.0]);
    assert!(matches!(weight.to_i64(), Err(StateDictError::Dtype { found: Dtype::F32, .. })));
    let target = StoredTensor::from_f32_as(Dtype::I8, vec![1], &[1.0]);
    assert!(matches!(target, Err(StateDictError::Dtype { found: Dtype::I8, .. })));
}

#[test]
fn the_first_non_finite_number_is_named() {
    let mut state_dict = small();
    state_dict.check_finite().unwrap();
    state_dict.insert("z".into(), StoredTensor::from_f32(vec![1], vec![f32::NAN]));
    let half = StoredTensor::from_f32_as(Dtype::F16, vec![3], &[0.0, 1.0, f32::NEG_INFINITY]);
    state_dict.insert("y".into(), half.unwrap());
    match state_dict.check_finite().unwrap_err() {
        StateDictError::NonFinite { name, index, value } => {
            assert_eq!((name.as_str(), index, value), ("y", 2, f64::NEG_INFINITY));
        }
        other => panic!("{other}"),
    }
}

fn any_tensor() -> impl Strategy<Value = StoredTensor> {
    let dtype = prop::sample::select(vec![
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F64,
        Dtype::I64,
        Dtype::U8,
        Dtype::BOOL,
    ]);
    (dtype, prop::collection::vec(0usize..4, 0..4)).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        prop::collection::vec(any::<u8>(), bytes)
            .prop_map(move |bytes| StoredTensor::new(dtype, shape.clone(), bytes).unwrap())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_state_dict_survives_saving_whole_and_sharded(
        tensors in prop::collection::btree_map("[a-zé\"\\\\. ]{0,6}", any_tensor(), 0..6),
        max_shard_bytes in 0u64..64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let state_dict: StateDict = tensors.into_iter().collect();
        let path = folder.path().join("whole.safetensors");
        state_dict.save(&path).unwrap();
        let loaded = StateDict::load(&path).unwrap();
        prop_assert_eq!(loaded.content_hash(), state_dict.content_hash());
        let again = folder.path().join("again.safetensors");
        loaded.save(&again).unwrap();
        prop_assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());

        let main = state_dict.save_sharded(folder.path(), "model", max_shard_bytes).unwrap();
        prop_assert_eq!(StateDict::load(&main).unwrap().content_hash(), state_dict.content_hash());
    }
}
