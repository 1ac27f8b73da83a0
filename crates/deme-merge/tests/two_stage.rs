//! The loss proposes, the distance decides.
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;

use deme_merge::weight_search::{
    DecisionKind, ReferenceKind, TwoStageConfig, TwoStageResult, search_in_two_stages,
};
use deme_merge::{SearchError, SearchTask};
use serde_json::json;
use support::Basin;

fn settings(candidates: usize, separation: f64) -> TwoStageConfig {
    serde_json::from_value(json!({
        "propose": {"strategy": "cma_es", "max_evaluations": 60},
        "candidates": candidates,
        "separation": separation,
    }))
    .unwrap()
}

fn run(
    config: &TwoStageConfig,
    cheap: impl Fn(&[f64]) -> f64,
    dear: impl Fn(&[f64]) -> f64,
) -> Result<TwoStageResult, SearchError<Infallible>> {
    let folder = tempfile::tempdir().unwrap();
    let logs = ["cheap", "dear"].map(|name| folder.path().join(name));
    let propose = SearchTask::new(2, "cheap", &logs[0]);
    let decide = SearchTask { reference_points: true, ..SearchTask::new(2, "dear", &logs[1]) };
    search_in_two_stages(
        config,
        &propose,
        &decide,
        |weights: &[f64]| Ok(cheap(weights)),
        |weights: &[f64]| Ok(dear(weights)),
        |_, _| {},
    )
}

#[test]
fn the_best_candidates_are_decided_by_the_dear_objective() {
    let cheap = Basin::quadratic(1, 2, 4.0);
    // Lies a little beside the cheap one.
    let target: Vec<f64> = cheap.minimum.iter().map(|m| m + 0.12).collect();
    let dear =
        |weights: &[f64]| weights.iter().zip(&target).map(|(w, t)| (w - t).powi(2)).sum::<f64>();
    let found = run(&settings(4, 0.1), |w| cheap.value(w), dear).unwrap();

    let kinds: Vec<DecisionKind> = found.decisions.iter().map(|decision| decision.kind).collect();
    let mut expected: Vec<DecisionKind> = (0..4).map(DecisionKind::Candidate).collect();
    let references = [ReferenceKind::Uniform, ReferenceKind::Expert(0), ReferenceKind::Expert(1)];
    expected.extend(references.map(DecisionKind::Reference));
    assert_eq!(kinds, expected);

    let candidates = &found.decisions[..4];
    assert_eq!(candidates[0].weights, found.proposed.best_weights);
    assert!(candidates.is_sorted_by(|a, b| a.proposed_value <= b.proposed_value));
    for (place, a) in candidates.iter().enumerate() {
        for b in &candidates[..place] {
            let distance = (a.weights[0] - b.weights[0]).hypot(a.weights[1] - b.weights[1]);
            assert!(distance >= 0.1, "{a:?} {b:?}");
        }
    }
    for decision in &found.decisions {
        assert_eq!(decision.proposed_value, cheap.value(&decision.weights));
        assert_eq!(decision.value, dear(&decision.weights));
        assert!(found.best_value <= decision.value);
    }
    assert_eq!(found.best_value, dear(&found.best_weights));
    assert_ne!(found.best_weights, found.proposed.best_weights, "the dear objective decided");
    // Pretrained is told, but does not compete.
    assert_eq!(found.decided.references[3].kind, ReferenceKind::Pretrained);
    assert_eq!(found.decided.evaluations.len(), found.decisions.len());
}

#[test]
fn a_single_expert_wins_where_the_cheap_objective_misleads() {
    let cheap = Basin::quadratic(1, 2, 4.0);
    let dear = |weights: &[f64]| (weights[0] - 1.0).powi(2) + weights[1].powi(2);
    let found = run(&settings(3, 0.05), |w| cheap.value(w), dear).unwrap();
    assert_eq!(found.best_weights, [1.0, 0.0]);
    assert_eq!(found.best_value, 0.0);
}

/// Uniform weights that are a candidate are evaluated and listed once.
#[test]
fn a_candidate_that_is_a_reference_point_is_listed_once() {
    let bowl = |weights: &[f64]| weights.iter().map(|w| (w - 0.5).powi(2)).sum::<f64>();
    let found = run(&settings(1, 0.0), bowl, bowl).unwrap();
    assert_eq!(found.decisions[0].weights, [0.5, 0.5]);
    assert_eq!(found.decisions.len(), 3);
    assert_eq!(found.decisions[1].kind, DecisionKind::Reference(ReferenceKind::Expert(0)));
}

#[test]
fn settings_without_sense_are_refused() {
    let value = |_: &[f64]| -> f64 { panic!("must not be evaluated") };
    let refuse = |config: TwoStageConfig| run(&config, value, value).unwrap_err();
    let setting = |error: SearchError<Infallible>| match error {
        SearchError::Setting { setting, .. } => setting,
        other => panic!("{other}"),
    };
    assert_eq!(setting(refuse(settings(0, 0.1))), "candidates");
    assert_eq!(setting(refuse(settings(2, -0.1))), "separation");
    let mut broken = settings(2, 0.1);
    broken.propose = support::config(json!({"strategy": "cma_es", "max_evaluations": 0}));
    assert!(matches!(refuse(broken), SearchError::NoBudget));
    let unknown = json!({"propose": {"strategy": "grid", "values": [0.0]}, "best": 3});
    assert!(serde_json::from_value::<TwoStageConfig>(unknown).is_err());
}
