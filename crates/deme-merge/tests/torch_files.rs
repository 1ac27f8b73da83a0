//! PyTorch's own files, written by `data/make.py`: read exactly, or refused by name.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use deme_merge::{StateDict, StateDictError};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn assert_same_tensors(found: &StateDict, expected: &StateDict) {
    let names: Vec<&str> = found.names().collect();
    assert_eq!(names, expected.names().collect::<Vec<_>>());
    for (name, tensor) in expected.iter() {
        assert_eq!(found.get(name).unwrap(), tensor, "{name}");
    }
}

#[test]
fn every_format_gives_the_tensors_that_were_saved() {
    let expected = StateDict::load(&data("expected.safetensors")).unwrap();
    for file in
        ["zip.pth", "legacy.pth", "zip_protocol4.pth", "legacy_protocol4.pth", "nested.ckpt"]
    {
        let found = StateDict::load(&data(file)).unwrap();
        assert_same_tensors(&found, &expected);
        assert_eq!(found.content_hash(), expected.content_hash(), "{file}");
    }
}

#[test]
fn a_modules_state_dict_with_its_metadata_attribute_is_read() {
    let expected = StateDict::load(&data("module.safetensors")).unwrap();
    assert_same_tensors(&StateDict::load(&data("module.bin")).unwrap(), &expected);
}

#[test]
fn entries_that_are_no_tensors_are_listed() {
    let nested = StateDict::load(&data("nested.ckpt")).unwrap();
    assert_eq!(nested.skipped_entries(), ["epoch: int", "lr: float", "args: dict"]);
    assert!(StateDict::load(&data("zip.pth")).unwrap().skipped_entries().is_empty());
}

#[test]
fn programs_in_a_pickle_are_refused_by_name() {
    for (file, name) in [
        // os.system calls itself by the name of the module it really lies in.
        ("attack_zip.pth", "posix.system"),
        ("attack_legacy.pth", "posix.system"),
        ("refused_module.pth", "torch.nn.modules.container.Sequential"),
    ] {
        let error = StateDict::load(&data(file)).unwrap_err();
        match &error {
            StateDictError::RefusedGlobal { global, .. } => assert_eq!(global, name),
            other => panic!("{file}: {other}"),
        }
        assert!(error.to_string().contains("torch.save(model.state_dict(), path)"));
    }
}

#[test]
fn what_is_no_state_dict_says_why() {
    for (file, reason) in [
        ("no_tensors.pth", "holds no tensor, only epoch: int"),
        ("list.pth", "holds a list, expected a dictionary"),
        ("plain.pkl", "a plain pickle"),
        ("no_pickle.pth", "without data.pkl"),
        ("deflated.pth", "is compressed"),
        ("big_endian.pth", "big-endian"),
        ("missing_storage.pth", "lies in storage 0, which is missing"),
        ("short_storage.pth", "reaches beyond its storage 0 of 8 bytes"),
    ] {
        let error = StateDict::load(&data(file)).unwrap_err();
        assert!(matches!(error, StateDictError::Torch { .. }), "{file}: {error:?}");
        assert!(error.to_string().contains(reason), "{file}: {error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

/// Cut at any place, a file is refused, and nothing panics.
#[test]
fn truncated_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["zip.pth", "legacy.pth", "expected.safetensors"] {
        let bytes = fs::read(data(file)).unwrap();
        let cut_path = folder.path().join(file);
        for length in (0..bytes.len()).step_by(3) {
            fs::write(&cut_path, &bytes[..length]).unwrap();
            assert!(StateDict::load(&cut_path).is_err(), "{file} cut to {length} bytes was read");
        }
    }
}

/// With some byte changed, a file is read or refused, and nothing panics or runs away.
#[test]
fn damaged_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["zip.pth", "legacy.pth", "expected.safetensors"] {
        let bytes = fs::read(data(file)).unwrap();
        let damaged_path = folder.path().join(file);
        for position in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0xff;
            fs::write(&damaged_path, &damaged).unwrap();
            if let Ok(state_dict) = StateDict::load(&damaged_path) {
                assert_eq!(state_dict.content_hash().len(), 32);
            }
        }
    }
}

/// A pickle of a legacy file whose object is `program`.
fn legacy_file(folder: &Path, program: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    bytes.extend(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.");
    bytes.extend(b"\x80\x02M\xe9\x03.");
    bytes.extend(b"\x80\x02}.");
    bytes.extend(program);
    bytes.extend(b"\x80\x02].");
    let path = folder.join("program.pth");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_way_to_name_a_function_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let programs: [&[u8]; 3] = [
        b"\x80\x02cos\nsystem\nU\x02ls\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.",
        b"(S'ls'\nios\nsystem\n.",
    ];
    for program in programs {
        match StateDict::load(&legacy_file(folder.path(), program)).unwrap_err() {
            StateDictError::RefusedGlobal { global, .. } => assert_eq!(global, "os.system"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn hostile_nesting_and_cycles_are_survived() {
    let folder = tempfile::tempdir().unwrap();
    let mut deep = b"\x80\x02}U\x01aN".to_vec();
    deep.extend(std::iter::repeat_n(0x85, 1_000_000)); // a tuple of a tuple of ...
    deep.extend(b"s.");
    let error = StateDict::load(&legacy_file(folder.path(), &deep)).unwrap_err();
    assert!(error.to_string().contains("only a: tuple"), "{error}");

    let cycle = b"\x80\x02}U\x01a]q\x00h\x00as.";
    let error = StateDict::load(&legacy_file(folder.path(), cycle)).unwrap_err();
    assert!(error.to_string().contains("only a: list"), "{error}");
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("readme.txt");
    fs::write(&path, "hello").unwrap();
    let error = StateDict::load(&path).unwrap_err();
    assert!(matches!(error, StateDictError::UnknownFormat { .. }), "{error:?}");
}
