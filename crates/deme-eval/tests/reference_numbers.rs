//! Fréchet distances against pytorch-fid's in f64: whatever `fid` holds.
#![allow(clippy::unwrap_used)]

use deme_eval::{FeatureStats, frechet_distance};
use deme_merge::{Dtype, StateDict};
use std::path::PathBuf;

fn folder() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default.into(), PathBuf::from).join("fid")
}

fn stats(features: &StateDict, name: &str) -> FeatureStats {
    let tensor = features.get(name).unwrap_or_else(|| panic!("features `{name}`"));
    assert_eq!(tensor.dtype(), Dtype::F64);
    let (values, rest) = tensor.bytes().as_chunks::<8>();
    assert!(rest.is_empty());
    let values: Vec<f64> = values.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    let rows: Vec<&[f64]> = values.chunks(tensor.shape()[1]).collect();
    FeatureStats::of(&rows).unwrap()
}

#[test]
fn distances_are_those_of_pytorch_fid() {
    let features = StateDict::load(&folder().join("features.safetensors")).unwrap();
    let expected = std::fs::read(folder().join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let mut compared = 0;
    for (key, value) in expected.as_object().unwrap() {
        let Some(names) = key.strip_prefix("fid_") else { continue };
        let (left, right) = names.split_once('_').unwrap();
        let (a, b) = (stats(&features, left), stats(&features, right));
        let found = frechet_distance(&a, &b).unwrap().distance;
        let value = value.as_f64().unwrap();
        let singular = [&a, &b].iter().any(|s| s.count().unwrap() <= s.dim() as u64);
        let tolerance = if singular { 1e-4 } else { 1e-6 };
        assert!((found - value).abs() <= tolerance * value.max(1.0), "{key}: {found} and {value}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn npz_files_hold_the_statistics_of_the_features() {
    let features = StateDict::load(&folder().join("features.safetensors")).unwrap();
    let mut compared = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(name) = name.strip_prefix("stats_").and_then(|n| n.strip_suffix(".npz")) else {
            continue;
        };
        let own = stats(&features, name.strip_suffix("_compressed").unwrap_or(name));
        let read = FeatureStats::load_npz(&path).unwrap();
        let own_values = own.mu().iter().chain(own.sigma());
        for (own, read) in own_values.zip(read.mu().iter().chain(read.sigma())) {
            assert!((own - read).abs() < 1e-9 * own.abs().max(1.0));
        }
        assert_eq!(own.sigma().len(), read.sigma().len());
        compared += 1;
    }
    assert!(compared > 0);
}
