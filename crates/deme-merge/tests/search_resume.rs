//! A search that was interrupted goes on where it stopped: nothing is evaluated twice, the end is the same.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use deme_merge::weight_search::{
    Reference, ReferenceKind, SearchEvent, SearchStage, TwoStageConfig, search_in_two_stages,
};
use deme_merge::{SearchConfig, SearchTask, search_weights};
use proptest::prelude::*;
use serde_json::json;
use support::{Basin, Once, config, every_strategy, without_seconds};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn every_prefix_of_a_log_leads_to_the_same_end(
        seed in 1u64..1000,
        experts in 1usize..5,
        reference_points: bool,
    ) {
        let basin = Basin::like_a_loss(seed, experts);
        let folder = tempfile::tempdir().unwrap();
        for (number, config) in every_strategy(40).into_iter().enumerate() {
            let log = folder.path().join(format!("whole-{number}.jsonl"));
            let task = SearchTask { reference_points, ..SearchTask::new(experts, "basin", &log) };
            let whole = search_weights(&config, &task, Once::new(&basin), |_| {}).unwrap();
            let text = fs::read_to_string(&log).unwrap();
            let lines: Vec<&str> = text.split_inclusive('\n').collect();

            for kept in 0..=lines.len() {
                let cut = folder.path().join(format!("cut-{number}-{kept}.jsonl"));
                // With a part of the next line, as a crash may leave it.
                let torn = lines.get(kept).map_or("", |line| &line[..line.len() / 2]);
                fs::write(&cut, lines[..kept].concat() + torn).unwrap();
                let task = SearchTask { log_path: &cut, ..task };
                let objective = Once::new(&basin);
                let asked = objective.asked.clone();
                let resumed = search_weights(&config, &task, objective, |_| {}).unwrap();
                prop_assert_eq!(&resumed, &whole);
                prop_assert_eq!(asked.borrow().len(), lines.len() - kept.max(1));
                let continued = fs::read_to_string(&cut).unwrap();
                prop_assert!(continued.starts_with(&lines[..kept].concat()));
                prop_assert_eq!(without_seconds(&continued), without_seconds(&text));
            }
        }
    }
}

#[test]
fn a_raised_budget_goes_on_with_the_log() {
    let basin = Basin::like_a_loss(1, 3);
    for long in every_strategy(30) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("search.jsonl");
        let task = SearchTask::new(3, "basin", &log);
        let mut short = serde_json::to_value(&long).unwrap();
        short["max_evaluations"] = json!(8);
        search_weights(&config(short), &task, Once::new(&basin), |_| {}).unwrap();
        let objective = Once::new(&basin);
        let asked = objective.asked.clone();
        let mut logged_at_start = None;
        let observe = |event: SearchEvent<'_>| {
            if let SearchEvent::Starts { logged, evaluations } = event {
                logged_at_start = Some((logged, evaluations));
            }
        };
        let found = search_weights(&long, &task, objective, observe).unwrap();
        assert_eq!(logged_at_start, Some((8, 30)));
        assert_eq!(asked.borrow().len(), found.evaluations.len() - 8);
    }
}

#[test]
fn reference_points_cost_no_budget_and_change_nothing() {
    let basin = Basin::like_a_loss(2, 3);
    for config in every_strategy(20) {
        let folder = tempfile::tempdir().unwrap();
        let (plain_log, log) = (folder.path().join("plain.jsonl"), folder.path().join("log.jsonl"));
        let plain = SearchTask::new(3, "basin", &plain_log);
        let plain = search_weights(&config, &plain, Once::new(&basin), |_| {}).unwrap();
        assert!(plain.references.is_empty());

        let task = SearchTask { reference_points: true, ..SearchTask::new(3, "basin", &log) };
        let mut told = 0;
        let observe = |event: SearchEvent<'_>| {
            told += usize::from(matches!(event, SearchEvent::Reference(_)));
        };
        let objective = Once::new(&basin);
        let asked = objective.asked.clone();
        let found = search_weights(&config, &task, objective, observe).unwrap();
        assert_eq!(found.evaluations, plain.evaluations);
        assert_eq!((found.best_weights, found.best_value), (plain.best_weights, plain.best_value));
        let expected = [
            (ReferenceKind::Uniform, vec![1.0 / 3.0; 3]),
            (ReferenceKind::Expert(0), vec![1.0, 0.0, 0.0]),
            (ReferenceKind::Expert(1), vec![0.0, 1.0, 0.0]),
            (ReferenceKind::Expert(2), vec![0.0, 0.0, 1.0]),
            (ReferenceKind::Pretrained, vec![0.0; 3]),
        ];
        let expected = expected.map(|(kind, weights)| {
            let value = basin.value(&weights);
            Reference { kind, weights, value }
        });
        assert_eq!(found.references, expected);
        assert_eq!(told, 5);
        let lines = fs::read_to_string(&log).unwrap().lines().count();
        assert_eq!(lines - 1, asked.borrow().len());
        assert!(asked.borrow().len() <= 5 + found.evaluations.len());
    }
}

fn two_stages(candidates: usize) -> TwoStageConfig {
    let propose = config(json!({"strategy": "quadratic_model", "max_evaluations": 40}));
    TwoStageConfig { propose, candidates, separation: 0.05 }
}

#[test]
fn two_stages_resume_at_every_line_of_either_log() {
    let (cheap, dear) = (Basin::like_a_loss(1, 3), Basin::like_a_loss(2, 3));
    let folder = tempfile::tempdir().unwrap();
    let paths = ["cheap", "dear"].map(|name| folder.path().join(format!("{name}.jsonl")));
    let run = || {
        let [propose, decide] = [(&paths[0], "cheap"), (&paths[1], "dear")]
            .map(|(path, o)| SearchTask::new(3, o, path));
        let objectives = [Once::new(&cheap), Once::new(&dear)];
        let asked = objectives.each_ref().map(|objective| objective.asked.clone());
        let [cheap, dear] = objectives;
        let config = two_stages(4);
        let found = search_in_two_stages(&config, &propose, &decide, cheap, dear, |_, _| {});
        (found.unwrap(), asked.map(|asked| asked.borrow().len()))
    };
    let (whole, _) = run();
    let texts = paths.each_ref().map(|path| fs::read_to_string(path).unwrap());
    let lines = texts.each_ref().map(|text| text.split_inclusive('\n').collect::<Vec<&str>>());
    for cut in [0, 1] {
        for kept in 1..=lines[cut].len() {
            fs::write(&paths[cut], lines[cut][..kept].concat()).unwrap();
            if cut == 0 {
                // The dear objective has not been reached yet.
                fs::remove_file(&paths[1]).unwrap();
            }
            let (found, asked) = run();
            assert_eq!(found, whole);
            let missing = [
                if cut == 0 { lines[0].len() - kept } else { 0 },
                if cut == 0 { lines[1].len() - 1 } else { lines[1].len() - kept },
            ];
            assert_eq!(asked, missing);
            let continued = paths.each_ref().map(|path| fs::read_to_string(path).unwrap());
            assert_eq!(
                continued.map(|t| without_seconds(&t)),
                texts.clone().map(|t| without_seconds(&t))
            );
        }
    }
}

#[test]
fn more_candidates_go_on_with_the_dear_log() {
    let (cheap, dear) = (Basin::like_a_loss(1, 3), Basin::like_a_loss(2, 3));
    let folder = tempfile::tempdir().unwrap();
    let [cheap_log, dear_log] = ["cheap", "dear"].map(|name| folder.path().join(name));
    let run = |candidates| {
        let (propose, decide) =
            (SearchTask::new(3, "cheap", &cheap_log), SearchTask::new(3, "dear", &dear_log));
        let objective = Once::new(&dear);
        let asked = objective.asked.clone();
        let mut stages = Vec::new();
        let found = search_in_two_stages(
            &two_stages(candidates),
            &propose,
            &decide,
            Once::new(&cheap),
            objective,
            |stage, event| {
                if matches!(event, SearchEvent::Starts { .. }) {
                    stages.push(stage);
                }
            },
        );
        assert_eq!(stages, [SearchStage::Propose, SearchStage::Decide]);
        let asked = asked.borrow().len();
        (found.unwrap(), asked)
    };
    let (few, asked) = run(2);
    assert_eq!(asked, few.decisions.len());
    let (more, asked) = run(6);
    assert_eq!(asked, more.decisions.len() - few.decisions.len());
    assert_eq!(more.decisions.len(), few.decisions.len() + 4);
}

#[test]
fn a_search_with_other_settings_refuses_the_log() {
    let basin = Basin::like_a_loss(1, 2);
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({"strategy": "cma_es", "max_evaluations": 10, "bounds": [-1.0, 2.0]});
    let log = folder.path().join("search.jsonl");
    let task = SearchTask::new(2, "basin", &log);
    search_weights(&config(settings.clone()), &task, Once::new(&basin), |_| {}).unwrap();
    let refused = |config: SearchConfig, task: SearchTask<'_>| {
        let error = search_weights(&config, &task, Once::new(&basin), |_| {}).unwrap_err();
        assert!(matches!(error, deme_merge::SearchError::OtherSettings { .. }), "{error}");
    };
    for (key, value) in [
        ("seed", json!(1)),
        ("step", json!(0.3)),
        ("population", json!(9)),
        ("bounds", json!([-1.0, 3.0])),
        ("smallest_step", json!(0.1)),
        ("start", json!([0.0, 0.0])),
        ("surrogate", json!(false)),
    ] {
        let mut other = settings.clone();
        other[key] = value;
        refused(config(other), task);
    }
    let settings = config(settings);
    refused(settings.clone(), SearchTask { objective: "another", ..task });
    refused(settings.clone(), SearchTask { num_groups: 2, ..task });
    refused(settings, SearchTask { num_experts: 3, ..task });
}
