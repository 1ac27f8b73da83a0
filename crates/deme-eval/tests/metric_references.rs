//! Metrics over features against other programs' numbers: whatever `metrics` says of `fid`'s features.
#![allow(clippy::unwrap_used)]

use deme_eval::{
    FeatureSet, InceptionScoreConfig, NeighbourConfig, SubsetPair, cmmd, fit_fd_infinity,
    frechet_distance, inception_score, kernel_distance_on, neighbour_metrics,
};
use deme_merge::StateDict;
use serde_json::Value;
use std::path::PathBuf;

/// The expected numbers, and the features they are of. Another set of reference numbers may lack them.
fn expected() -> Option<(Value, StateDict)> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let other = std::env::var_os("DEME_FIXTURES");
    let folder = other.clone().map_or(default.into(), PathBuf::from);
    if other.is_some() && !folder.join("metrics").exists() {
        eprintln!("skipped: {} has no folder `metrics`", folder.display());
        return None;
    }
    let expected = std::fs::read(folder.join("metrics/expected.json")).unwrap();
    let features = StateDict::load(&folder.join("fid/features.safetensors")).unwrap();
    Some((serde_json::from_slice(&expected).unwrap(), features))
}

/// A tensor's values as an extractor would give them, and the entries of a feature.
fn values(features: &StateDict, name: &Value) -> (Vec<f32>, usize) {
    let tensor = features.get(name.as_str().unwrap()).unwrap();
    let (values, rest) = tensor.bytes().as_chunks::<8>();
    assert!(rest.is_empty());
    let values = values.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect();
    (values, tensor.shape()[1])
}

fn assert_close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    let close = (found - expected).abs() <= 1e-9 * expected.abs().max(1.0);
    assert!(close, "{what}: {found} and {expected}");
}

fn positions(list: &Value) -> Vec<usize> {
    list.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as usize).collect()
}

#[test]
fn kid_is_that_of_torchmetrics_and_clean_fid() {
    let Some((expected, features)) = expected() else { return };
    let (generated, dim) = values(&features, &expected["generated"]);
    let (reference, _) = values(&features, &expected["reference"]);
    let generated = FeatureSet::of_flat(&generated, dim).unwrap();
    let reference = FeatureSet::of_flat(&reference, dim).unwrap();
    let cases = expected["kid"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let pair = |subset: &Value| SubsetPair {
            generated: positions(&subset["generated"]),
            reference: positions(&subset["reference"]),
        };
        let subsets: Vec<SubsetPair> =
            case["subsets"].as_array().unwrap().iter().map(pair).collect();
        let found = kernel_distance_on(&generated, &reference, &subsets).unwrap();
        for (found, expected) in found.of_subsets.iter().zip(case["of_subsets"].as_array().unwrap())
        {
            assert_close(*found, expected, "kid of a subset");
        }
        assert_close(found.mean, &case["mean"], "kid");
        assert_close(found.std, &case["std"], "kid's deviation");
    }
}

#[test]
fn precision_recall_density_and_coverage_are_those_of_all_distances() {
    let Some((expected, features)) = expected() else { return };
    let cases = expected["neighbours"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (generated, dim) = values(&features, &case["generated"]);
        let (real, _) = values(&features, &case["real"]);
        let config = NeighbourConfig {
            precision_recall_k: case["k"].as_u64().unwrap() as usize,
            density_coverage_k: case["density_k"].as_u64().unwrap() as usize,
        };
        let generated = FeatureSet::of_flat(&generated, dim).unwrap();
        let real = FeatureSet::of_flat(&real, dim).unwrap();
        let found = neighbour_metrics(&generated, &real, &config).unwrap();
        assert_close(found.precision, &case["precision"], "precision");
        assert_close(found.recall, &case["recall"], "recall");
        assert_close(found.density, &case["density"], "density");
        assert_close(found.coverage, &case["coverage"], "coverage");
    }
}

#[test]
fn inception_scores_are_those_of_torch() {
    let Some((expected, features)) = expected() else { return };
    let cases = expected["inception_score"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (logits, classes) = values(&features, &case["logits"]);
        let logits = FeatureSet::of_flat(&logits, classes).unwrap();
        let splits = case["splits"].as_u64().unwrap() as usize;
        let config = InceptionScoreConfig { splits, shuffle_seed: None };
        let found = inception_score(&logits, &config).unwrap();
        for (found, expected) in found.of_splits.iter().zip(case["of_splits"].as_array().unwrap()) {
            assert_close(*found, expected, "score of a split");
        }
        assert_close(found.mean, &case["mean"], "inception score");
        assert_close(found.std, &case["std"], "its deviation");
    }
}

#[test]
fn the_distance_at_infinity_is_scipys_line() {
    let Some((expected, features)) = expected() else { return };
    let (generated, dim) = values(&features, &expected["generated"]);
    let (reference, _) = values(&features, &expected["reference"]);
    let generated = FeatureSet::of_flat(&generated, dim).unwrap();
    let reference = FeatureSet::of_flat(&reference, dim).unwrap().stats().unwrap();
    let case = &expected["fd_infinity"];
    let sizes = positions(&case["sizes"]);
    let mut points = Vec::new();
    for (&size, expected) in sizes.iter().zip(case["distances"].as_array().unwrap()) {
        let first: Vec<usize> = (0..size).collect();
        let stats = generated.select(&first).stats().unwrap();
        let distance = frechet_distance(&stats, &reference).unwrap().distance;
        assert_close(distance, expected, "distance");
        points.push((size as u64, distance));
    }
    let found = fit_fd_infinity(points).unwrap();
    assert_close(found.value, &case["value"], "value");
    assert_close(found.slope, &case["slope"], "slope");
    assert_close(found.std_error, &case["std_error"], "error");
    assert_close(found.interval[0], &case["interval"][0], "interval");
    assert_close(found.interval[1], &case["interval"][1], "interval");
}

#[test]
fn cmmd_is_the_mean_over_all_pairs() {
    let Some((expected, features)) = expected() else { return };
    let (reference, dim) = values(&features, &expected["reference"]);
    let reference = FeatureSet::of_flat(&reference, dim).unwrap();
    let few = Value::from("few");
    for (name, case) in [(&expected["generated"], "cmmd"), (&few, "cmmd_few")] {
        let (generated, _) = values(&features, name);
        let generated = FeatureSet::of_flat(&generated, dim).unwrap();
        let found = cmmd(&generated, &reference).unwrap();
        // Embeddings are normalised in f32 here.
        let expected = expected[case].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-6 * expected, "{found} and {expected}");
    }
}
