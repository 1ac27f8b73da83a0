//! The objective over a plane of two task vectors.
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::fs;

use deme_merge::{Landscape, LandscapeConfig, SearchError, SearchTask, landscape};
use support::{Basin, Once};

#[test]
fn the_plane_goes_through_the_pretrained_model_and_two_experts() {
    let basin = Basin::like_a_loss(1, 3);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("landscape.jsonl");
    let task = SearchTask { reference_points: true, ..SearchTask::new(3, "basin", &log) };
    let mut config = LandscapeConfig::even([2, 0], [-0.5, 1.5], 5);
    assert_eq!(config.first, [-0.5, 0.0, 0.5, 1.0, 1.5]);
    config.second.pop();
    assert_eq!(config.size(), 20);
    let found = landscape(&config, &task, Once::new(&basin), |_| {}).unwrap();

    for (a, row) in found.first.iter().zip(&found.values) {
        assert_eq!(row.len(), 4);
        for (b, &value) in found.second.iter().zip(row) {
            assert_eq!(value, basin.value(&[*b, 0.0, *a]));
        }
    }
    assert_eq!(found.values[1][1], found.references[4].value, "(0, 0) is pretrained");
    assert_eq!(found.values[3][1], found.references[3].value, "(1, 0) is the third expert");
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Landscape>(&text).unwrap(), found);
}

#[test]
fn a_plane_may_lie_beside_the_pretrained_model() {
    let basin = Basin::like_a_loss(1, 6);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("landscape.jsonl");
    let task = SearchTask { num_groups: 2, ..SearchTask::new(3, "basin", &log) };
    let mut config = LandscapeConfig::even([0, 2], [0.0, 1.0], 2);
    config.others = Some(vec![9.0, 0.25, 9.0]);
    let found = landscape(&config, &task, Once::new(&basin), |_| {}).unwrap();
    assert_eq!(found.values[0][1], basin.value(&[0.0, 0.25, 1.0, 0.0, 0.25, 1.0]));
}

#[test]
fn an_interrupted_or_finer_landscape_goes_on_with_its_log() {
    let basin = Basin::like_a_loss(3, 2);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("landscape.jsonl");
    let run = |config: &LandscapeConfig| {
        let objective = Once::new(&basin);
        let asked = objective.asked.clone();
        let found = landscape(config, &SearchTask::new(2, "basin", &log), objective, |_| {});
        (found.unwrap(), asked.take().len())
    };
    let coarse = LandscapeConfig::even([0, 1], [0.0, 1.0], 3);
    let (whole, asked) = run(&coarse);
    assert_eq!(asked, 9);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for kept in 1..=lines.len() {
        fs::write(&log, lines[..kept].concat()).unwrap();
        assert_eq!(run(&coarse), (whole.clone(), lines.len() - kept));
    }
    let (_, asked) = run(&LandscapeConfig::even([0, 1], [0.0, 1.0], 5));
    assert_eq!(asked, 25 - 9);
}

#[test]
fn settings_without_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("landscape.jsonl");
    let refuse = |config: LandscapeConfig, experts| {
        let value = |_: &[f64]| -> Result<f64, Infallible> { panic!("must not be evaluated") };
        landscape(&config, &SearchTask::new(experts, "", &log), value, |_| {}).unwrap_err()
    };
    let plane = |experts| LandscapeConfig::even(experts, [0.0, 1.0], 3);
    for (experts, count) in [([0, 2], 2), ([1, 1], 2)] {
        let error = refuse(plane(experts), count);
        assert!(matches!(error, SearchError::Setting { setting: "experts", .. }), "{error}");
    }
    assert!(matches!(refuse(plane([0, 1]), 0), SearchError::NoExperts));
    let empty = LandscapeConfig { second: vec![], ..plane([0, 1]) };
    assert!(matches!(refuse(empty, 2), SearchError::NoValues { expert: 1 }));
    let twice = LandscapeConfig { first: vec![0.0, 0.0], ..plane([0, 1]) };
    assert!(matches!(refuse(twice, 2), SearchError::RepeatedValue { expert: 0, .. }));
    let others = LandscapeConfig { others: Some(vec![0.0]), ..plane([0, 1]) };
    assert!(matches!(refuse(others, 2), SearchError::ExpertCount { setting: "others", .. }));
    let others = LandscapeConfig { others: Some(vec![0.0, f64::NAN]), ..plane([0, 1]) };
    assert!(matches!(refuse(others, 2), SearchError::NonFiniteWeight { expert: 1, .. }));
    let large = LandscapeConfig { max_evaluations: 8, ..plane([0, 1]) };
    assert!(matches!(refuse(large, 2), SearchError::TooLarge { size: 9, max_evaluations: 8 }));
}
