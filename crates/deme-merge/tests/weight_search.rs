//! Searching weights: the right ones are tried, none twice, and an interrupted search goes on.
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;
use std::fs;
use std::path::Path;

use deme_merge::weight_search::{CoordinateGridConfig, GridConfig, SearchEvent, WithGradient};
use deme_merge::{SearchConfig, SearchError, SearchResult, SearchTask, search_weights};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::without_seconds;

fn grid(values: &[f64]) -> SearchConfig {
    SearchConfig::Grid(GridConfig {
        values: values.to_vec(),
        values_per_expert: None,
        max_evaluations: 1000,
        force: false,
    })
}

fn coordinates(values: &[f64], rounds: usize) -> SearchConfig {
    SearchConfig::CoordinateGrid(CoordinateGridConfig {
        values: values.to_vec(),
        rounds,
        start: None,
        max_evaluations: 1000,
    })
}

/// A bowl with its lowest point at (0.2, 0.7, 0.2, 0.7, ...).
fn bowl(weights: &[f64]) -> f64 {
    let squares = weights.iter().enumerate().map(|(i, w)| (w - [0.2, 0.7][i % 2]).powi(2));
    squares.sum()
}

fn search(config: &SearchConfig, experts: usize, log: &Path) -> SearchResult {
    let evaluate = |weights: &[f64]| Ok::<_, Infallible>(bowl(weights));
    search_weights(config, &SearchTask::new(experts, "bowl", log), evaluate, |_| {}).unwrap()
}

fn refuse(config: &SearchConfig, experts: usize) -> SearchError<Infallible> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let evaluate = |_: &[f64]| -> Result<f64, Infallible> { panic!("must not be evaluated") };
    let error =
        search_weights(config, &SearchTask::new(experts, "", &log), evaluate, |_| {}).unwrap_err();
    assert!(!log.exists(), "a refused search must leave no log");
    error
}

#[test]
fn a_grid_tries_every_combination_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let result = search(&grid(&[0.0, 0.5]), 2, &folder.path().join("search.jsonl"));
    let tried: Vec<&[f64]> = result.evaluations.iter().map(|e| &e.weights[..]).collect();
    assert_eq!(tried, [[0.0, 0.0], [0.0, 0.5], [0.5, 0.0], [0.5, 0.5]]);
    assert_eq!(result.best_weights, [0.0, 0.5]);
    assert_eq!(result.best_value, bowl(&[0.0, 0.5]));
}

#[test]
fn experts_may_have_values_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = SearchConfig::Grid(GridConfig {
        values: vec![],
        values_per_expert: Some(vec![vec![0.0, 0.2], vec![0.6, 0.7, 0.8]]),
        max_evaluations: 6,
        force: false,
    });
    let result = search(&config, 2, &folder.path().join("search.jsonl"));
    assert_eq!(result.evaluations.len(), 6);
    assert_eq!(result.best_weights, [0.2, 0.7]);
}

#[test]
fn a_coordinate_search_finds_the_bottom_of_a_bowl_with_few_evaluations() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f64> = (0..=10).map(|i| f64::from(i) / 10.0).collect();
    let result = search(&coordinates(&values, 5), 6, &folder.path().join("search.jsonl"));
    assert_eq!(result.best_weights, [0.2, 0.7, 0.2, 0.7, 0.2, 0.7]);
    assert!(result.evaluations.len() <= 1 + 2 * 6 * 11);
    let mut tried: Vec<String> =
        result.evaluations.iter().map(|e| format!("{:?}", e.weights)).collect();
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), result.evaluations.len(), "none is tried twice");
}

#[test]
fn of_equal_values_the_first_wins() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let constant = |_: &[f64]| Ok::<_, Infallible>(1.0);
    let result =
        search_weights(&grid(&[0.3, 0.1]), &SearchTask::new(2, "", &log), constant, |_| {})
            .unwrap();
    assert_eq!(result.best_weights, [0.3, 0.3]);
}

#[test]
fn an_interrupted_search_goes_on_and_ends_the_same() {
    for config in [grid(&[0.0, 0.2, 0.7]), coordinates(&[0.0, 0.2, 0.7], 3)] {
        let folder = tempfile::tempdir().unwrap();
        let undisturbed = folder.path().join("undisturbed.jsonl");
        let expected = search(&config, 3, &undisturbed);

        let log = folder.path().join("search.jsonl");
        for survives in 0..expected.evaluations.len() {
            let mut left = survives;
            let mut made = 0;
            let dying = |weights: &[f64]| {
                made += 1;
                if left == 0 {
                    return Err("killed");
                }
                left -= 1;
                Ok(bowl(weights))
            };
            fs::remove_file(&log).unwrap_or_default();
            let error = search_weights(&config, &SearchTask::new(3, "bowl", &log), dying, |_| {})
                .unwrap_err();
            assert!(matches!(error, SearchError::Objective { error: "killed", .. }), "{error}");
            assert_eq!(made, survives + 1);

            let mut made = 0;
            let mut from_log = 0;
            let counting = |weights: &[f64]| {
                made += 1;
                Ok::<_, Infallible>(bowl(weights))
            };
            let observe = |event: SearchEvent<'_>| {
                let SearchEvent::Evaluated(progress) = event else { return };
                from_log += usize::from(progress.from_log);
                assert!(progress.done <= progress.total);
                assert!(progress.best.value <= progress.evaluation.value);
            };
            let resumed =
                search_weights(&config, &SearchTask::new(3, "bowl", &log), counting, observe)
                    .unwrap();
            assert_eq!(resumed, expected);
            assert_eq!(made, expected.evaluations.len() - survives);
            assert_eq!(from_log, survives);
            let [found, expected] =
                [&log, &undisturbed].map(|log| fs::read_to_string(log).unwrap());
            assert_eq!(without_seconds(&found), without_seconds(&expected));
        }
    }
}

/// The log cut at any byte, and with rubbish at the end, is continued to the same end.
#[test]
fn a_torn_log_loses_only_its_last_line() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let config = grid(&[0.0, 0.5]);
    let expected = search(&config, 2, &log);
    let whole = fs::read(&log).unwrap();
    let whole_text = without_seconds(&String::from_utf8(whole.clone()).unwrap());
    let mut torn: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
    torn.push([&whole[..], b"\0\0\0\0\n"].concat());
    for text in torn {
        fs::write(&log, &text).unwrap();
        assert_eq!(search(&config, 2, &log), expected);
        assert_eq!(without_seconds(&fs::read_to_string(&log).unwrap()), whole_text);
    }
}

#[test]
fn a_log_with_other_settings_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let config = grid(&[0.0, 0.5]);
    search(&config, 2, &log);
    let before = fs::read(&log).unwrap();
    let evaluate = |_: &[f64]| Ok::<_, Infallible>(0.0);
    for (config, experts, objective) in [
        (grid(&[0.0, 0.6]), 2, "bowl"),
        (grid(&[0.0, 0.5]), 3, "bowl"),
        (grid(&[0.0, 0.5]), 2, "plane"),
        (coordinates(&[0.0, 0.5], 1), 2, "bowl"),
    ] {
        let error =
            search_weights(&config, &SearchTask::new(experts, objective, &log), evaluate, |_| {})
                .unwrap_err();
        assert!(matches!(error, SearchError::OtherSettings { .. }), "{error}");
        assert_eq!(fs::read(&log).unwrap(), before);
    }
    // The limit may change.
    let SearchConfig::Grid(mut raised) = config else { unreachable!() };
    raised.max_evaluations = 5000;
    search(&SearchConfig::Grid(raised), 2, &log);
}

/// The log says how long each evaluation took; a continued search takes what it says, a log from before
/// that was measured is read too.
#[test]
fn durations_come_from_the_log_and_are_no_part_of_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let config = grid(&[0.0, 0.5]);
    let slow = |weights: &[f64]| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok::<_, Infallible>(bowl(weights))
    };
    let task = SearchTask { reference_points: true, ..SearchTask::new(2, "bowl", &log) };
    let measured = search_weights(&config, &task, slow, |_| {}).unwrap();
    let seconds = |found: &SearchResult| -> Vec<Option<f64>> {
        found.evaluations.iter().map(|evaluation| evaluation.seconds).collect()
    };
    assert!(seconds(&measured).iter().all(|s| s.unwrap() >= 0.02), "{measured:?}");

    let never = |_: &[f64]| -> Result<f64, Infallible> { panic!("all is in the log") };
    let read = search_weights(&config, &task, never, |_| {}).unwrap();
    assert_eq!(seconds(&read), seconds(&measured));
    let text = serde_json::to_string(&measured).unwrap();
    assert_eq!(seconds(&serde_json::from_str(&text).unwrap()), seconds(&measured));

    let old = without_seconds(&fs::read_to_string(&log).unwrap());
    assert!(!old.contains("seconds"));
    fs::write(&log, &old).unwrap();
    let read = search_weights(&config, &task, never, |_| {}).unwrap();
    assert_eq!(seconds(&read), [None; 4]);
    assert_eq!(read, measured, "equal whatever the durations");
    assert_eq!(fs::read_to_string(&log).unwrap(), old);

    let damaged =
        old.replacen("}\n", ",\"seconds\":-1.0}\n", 2).replacen(",\"seconds\":-1.0", "", 1);
    fs::write(&log, damaged).unwrap();
    match search_weights(&config, &task, never, |_| {}).unwrap_err() {
        SearchError::DamagedLog { line: 2, reason, .. } => assert!(reason.contains("-1 seconds")),
        other => panic!("{other}"),
    }
}

#[test]
fn a_log_damaged_in_the_middle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    search(&grid(&[0.0, 0.5]), 2, &log);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for broken in [0, 2] {
        let mut lines = lines.clone();
        lines[broken] = "{";
        fs::write(&log, lines.join("\n") + "\n").unwrap();
        let evaluate = |_: &[f64]| Ok::<_, Infallible>(0.0);
        match search_weights(
            &grid(&[0.0, 0.5]),
            &SearchTask::new(2, "bowl", &log),
            evaluate,
            |_| {},
        )
        .unwrap_err()
        {
            SearchError::DamagedLog { line, .. } => assert_eq!(line, broken + 1),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_log_that_cannot_be_written_is_an_error() {
    let evaluate = |_: &[f64]| Ok::<_, Infallible>(0.0);
    let log = Path::new("/nowhere/search.jsonl");
    let error =
        search_weights(&grid(&[0.0]), &SearchTask::new(1, "", log), evaluate, |_| {}).unwrap_err();
    assert!(matches!(error, SearchError::LogIo { .. }), "{error}");
}

#[test]
fn an_objective_that_is_not_finite_names_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let evaluate =
        |weights: &[f64]| Ok::<_, Infallible>(if weights[0] > 0.0 { f64::NAN } else { 1.0 });
    match search_weights(&grid(&[0.0, 0.5]), &SearchTask::new(1, "", &log), evaluate, |_| {})
        .unwrap_err()
    {
        SearchError::NonFiniteObjective { weights, value } => {
            assert_eq!(weights, [0.5]);
            assert!(value.is_nan());
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_grid_that_is_too_large_says_its_size_and_the_way_out() {
    let mut values: Vec<f64> = (0..11).map(f64::from).collect();
    let error = refuse(&grid(&values), 4);
    assert!(
        matches!(error, SearchError::TooLarge { size: 14641, max_evaluations: 1000 }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("14641 evaluations") && text.contains("max_evaluations = 14641"),
        "{text}"
    );
    // Sizes beyond any integer are still refused, not wrapped around.
    values.extend((11..256).map(f64::from));
    assert!(matches!(refuse(&grid(&values), 64), SearchError::TooLarge { .. }));
    assert!(matches!(refuse(&coordinates(&values, usize::MAX), 64), SearchError::TooLarge { .. }));
}

#[test]
fn settings_without_sense_are_refused() {
    assert!(matches!(refuse(&grid(&[0.0]), 0), SearchError::NoExperts));
    assert!(matches!(refuse(&grid(&[]), 2), SearchError::NoValues { expert: 0 }));
    assert!(matches!(
        refuse(&grid(&[0.0, f64::NAN]), 2),
        SearchError::NonFiniteWeight { expert: 0, .. }
    ));
    assert!(matches!(
        refuse(&grid(&[0.5, 0.1, 0.5]), 2),
        SearchError::RepeatedValue { expert: 0, value: 0.5 }
    ));
    let per_expert = SearchConfig::Grid(GridConfig {
        values: vec![],
        values_per_expert: Some(vec![vec![0.0]]),
        max_evaluations: 10,
        force: false,
    });
    assert!(matches!(
        refuse(&per_expert, 2),
        SearchError::ExpertCount { setting: "values_per_expert", expected: 2, found: 1 }
    ));
    let both = SearchConfig::Grid(GridConfig {
        values: vec![0.0],
        values_per_expert: Some(vec![vec![0.0]]),
        max_evaluations: 10,
        force: false,
    });
    assert!(matches!(refuse(&both, 1), SearchError::TwoValueLists));
    let start = SearchConfig::CoordinateGrid(CoordinateGridConfig {
        values: vec![0.0],
        rounds: 1,
        start: Some(vec![0.0, f64::INFINITY]),
        max_evaluations: 10,
    });
    assert!(matches!(refuse(&start, 2), SearchError::NonFiniteWeight { expert: 1, .. }));
    assert!(matches!(
        refuse(&start, 3),
        SearchError::ExpertCount { setting: "start", expected: 3, found: 2 }
    ));
}

fn parsed(settings: Value) -> SearchConfig {
    serde_json::from_value(settings).unwrap()
}

/// The settings of each search that starts somewhere, with one of them changed.
fn with_each_start(key: &str, value: Value) -> Vec<SearchConfig> {
    let changed = |strategy| {
        let mut settings = json!({"strategy": strategy, "max_evaluations": 10});
        settings[key] = value.clone();
        parsed(settings)
    };
    ["cma_es", "quadratic_model", "gradient"].map(changed).to_vec()
}

#[test]
fn bounds_and_starts_without_sense_are_refused() {
    for bounds in [json!([1.0, 0.0]), json!([0.5, 0.5])] {
        let mut configs = with_each_start("bounds", bounds.clone());
        configs.push(parsed(json!({"strategy": "random", "bounds": bounds, "max_evaluations": 1})));
        for config in configs {
            assert!(matches!(refuse(&config, 2), SearchError::Bounds { .. }), "{config:?}");
        }
    }
    let endless = deme_merge::weight_search::RandomConfig {
        bounds: [0.0, f64::INFINITY],
        seed: 0,
        max_evaluations: 1,
    };
    assert!(matches!(refuse(&SearchConfig::Random(endless), 2), SearchError::Bounds { .. }));
    for config in with_each_start("start", json!([0.0, 0.1, 0.2])) {
        assert!(matches!(
            refuse(&config, 2),
            SearchError::ExpertCount { setting: "start", expected: 2, found: 3 }
        ));
    }
    for config in with_each_start("start", json!([0.5, 2.5])) {
        let mut settings = serde_json::to_value(&config).unwrap();
        settings["bounds"] = json!([0.0, 2.0]);
        match refuse(&parsed(settings), 2) {
            SearchError::StartOutsideBounds { expert, found, low, high } => {
                assert_eq!((expert, found, low, high), (1, 2.5, 0.0, 2.0));
            }
            other => panic!("{other}"),
        }
    }
    for mut config in with_each_start("start", json!([0.5, 0.5])) {
        let nan = Some(vec![0.5, f64::NAN]);
        match &mut config {
            SearchConfig::CmaEs(cma_es) => cma_es.start = nan,
            SearchConfig::QuadraticModel(model) => model.start = nan,
            SearchConfig::Gradient(gradient) => gradient.start = nan,
            _ => unreachable!(),
        }
        assert!(matches!(refuse(&config, 2), SearchError::NonFiniteWeight { expert: 1, .. }));
    }
}

#[test]
fn lengths_must_be_above_zero_and_a_population_be_one() {
    for (strategy, setting) in [
        ("cma_es", "step"),
        ("cma_es", "smallest_step"),
        ("quadratic_model", "radius"),
        ("quadratic_model", "smallest_radius"),
        ("gradient", "first_step"),
        ("gradient", "smallest_step"),
        ("cma_es", "population"),
    ] {
        let mut settings = json!({"strategy": strategy, "max_evaluations": 10});
        settings[setting] = json!(0);
        match refuse(&parsed(settings), 2) {
            SearchError::Setting { setting: found, .. } => assert_eq!(found, setting),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_budget_of_nothing_is_refused() {
    let mut configs = with_each_start("max_evaluations", json!(0));
    let points = json!([[0.0]]);
    configs.extend([
        parsed(json!({"strategy": "grid", "values": [0.0], "max_evaluations": 0})),
        parsed(json!({"strategy": "random", "bounds": [0.0, 1.0], "max_evaluations": 0})),
        parsed(json!({"strategy": "points", "points": points, "max_evaluations": 0})),
    ]);
    for config in configs {
        assert!(matches!(refuse(&config, 1), SearchError::NoBudget), "{config:?}");
    }
}

#[test]
fn a_forced_grid_may_be_larger_than_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let forced = |force: bool| {
        parsed(json!({
            "strategy": "grid", "values": [0.0, 0.5, 1.0], "max_evaluations": 8, "force": force,
        }))
    };
    assert!(matches!(refuse(&forced(false), 2), SearchError::TooLarge { size: 9, .. }));
    let log = folder.path().join("search.jsonl");
    let mut announced = None;
    let observe = |event: SearchEvent<'_>| {
        if let SearchEvent::Starts { evaluations, logged } = event {
            announced = Some((evaluations, logged));
        }
    };
    let evaluate = |weights: &[f64]| Ok::<_, Infallible>(bowl(weights));
    let task = SearchTask::new(2, "bowl", &log);
    let found = search_weights(&forced(true), &task, evaluate, observe).unwrap();
    assert_eq!(found.evaluations.len(), 9);
    assert_eq!(announced, Some((9, 0)));
    // Not even by force, beyond what can be counted.
    assert!(matches!(refuse(&forced(true), 64), SearchError::TooLarge { .. }));
}

#[test]
fn listed_points_are_evaluated_in_order_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let config = |points: Value| parsed(json!({"strategy": "points", "points": points}));
    let points = config(json!([[0.5, 0.5], [0.2, 0.7], [0.5, 0.5], [0.0, -0.0], [-0.0, 0.0]]));
    let found = search(&points, 2, &log);
    let tried: Vec<&[f64]> = found.evaluations.iter().map(|e| &e.weights[..]).collect();
    assert_eq!(tried, [[0.5, 0.5], [0.2, 0.7], [0.0, 0.0]]);
    assert_eq!(found.best_weights, [0.2, 0.7]);
    // Another list reads the same log.
    let others = config(json!([[0.9, 0.9], [0.5, 0.5]]));
    assert_eq!(search(&others, 2, &log).evaluations[1], found.evaluations[0]);

    assert!(matches!(refuse(&config(json!([])), 2), SearchError::NoPoints));
    assert!(matches!(
        refuse(&config(json!([[0.0, 0.0], [0.0]])), 2),
        SearchError::ExpertCount { setting: "points", expected: 2, found: 1 }
    ));
}

#[test]
fn a_search_by_gradients_needs_good_ones() {
    let config = parsed(json!({"strategy": "gradient", "max_evaluations": 10}));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let task = SearchTask::new(2, "bowl", &log);
    let without = |weights: &[f64]| Ok::<_, Infallible>(bowl(weights));
    let error = search_weights(&config, &task, without, |_| {}).unwrap_err();
    assert!(matches!(error, SearchError::NoGradient), "{error}");

    let with = |gradient: &'static [f64]| {
        let objective = WithGradient(move |weights: &[f64]| Ok((bowl(weights), gradient.to_vec())));
        search_weights::<WithGradient<_>>(&config, &task, objective, |_| {})
    };
    let error: SearchError<Infallible> = with(&[1.0]).unwrap_err();
    assert!(matches!(error, SearchError::GradientLength { expected: 2, found: 1 }), "{error}");
    match with(&[0.0, f64::NAN]).unwrap_err() {
        SearchError::NonFiniteGradient { weights, expert: 1, .. } => {
            assert_eq!(weights, [0.5, 0.5]);
        }
        other => panic!("{other}"),
    }
    let failing = WithGradient(|_: &[f64]| Err::<(f64, Vec<f64>), _>("broken"));
    let error = search_weights(&config, &task, failing, |_| {}).unwrap_err();
    assert!(matches!(error, SearchError::Objective { error: "broken", .. }), "{error}");

    // None of these left an evaluation; the log then keeps the gradients.
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1);
    let bowl_with_gradient = WithGradient(|weights: &[f64]| {
        let slopes = [2.0 * (weights[0] - 0.2), 2.0 * (weights[1] - 0.7)];
        Ok::<_, Infallible>((bowl(weights), slopes.to_vec()))
    });
    let found = search_weights(&config, &task, bowl_with_gradient, |_| {}).unwrap();
    assert!(found.best_value < 1e-8);
    let text = fs::read_to_string(&log).unwrap();
    assert!(
        text.lines().nth(1).unwrap().contains(r#""gradient":[0.6,-0.3999999999999999],"#),
        "{text}"
    );
}

#[test]
fn a_log_whose_numbers_do_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let gradient = parsed(json!({"strategy": "gradient", "max_evaluations": 1}));
    for (config, line) in [
        (grid(&[0.0, 0.5]), r#"{"weights":[0.0],"value":1.0}"#),
        (grid(&[0.0, 0.5]), r#"{"weights":[0.0,0.0],"value":1.0,"gradient":[0.0,0.0]}"#),
        (gradient, r#"{"weights":[0.5,0.5],"value":1.0}"#),
    ] {
        fs::remove_file(&log).unwrap_or_default();
        let task = SearchTask::new(2, "bowl", &log);
        let flat = || WithGradient(|_: &[f64]| Ok::<_, Infallible>((1.0, vec![0.0, 0.0])));
        search_weights(&config, &task, flat(), |_| {}).unwrap();
        let settings = fs::read_to_string(&log).unwrap().lines().next().unwrap().to_owned();
        fs::write(&log, format!("{settings}\n{line}\n")).unwrap();
        let error = search_weights(&config, &task, flat(), |_| {}).unwrap_err();
        assert!(matches!(error, SearchError::DamagedLog { line: 2, .. }), "{error}");
    }
}

#[test]
fn configurations_are_read_and_unknown_keys_refused() {
    let parse = |text: &str| serde_json::from_str::<SearchConfig>(text);
    assert_eq!(parse(r#"{"strategy": "grid", "values": [0.0, 0.5]}"#).unwrap(), grid(&[0.0, 0.5]));
    assert_eq!(
        parse(r#"{"strategy": "coordinate_grid", "values": [0.5], "rounds": 2}"#).unwrap(),
        coordinates(&[0.5], 2)
    );
    for text in [
        r#"{"values": [0.0]}"#,
        r#"{"strategy": "random", "values": [0.0]}"#,
        r#"{"strategy": "grid", "values": [0.0], "rounds": 2}"#,
        r#"{"strategy": "grid", "values": [0.0], "maximum": 2}"#,
        r#"{"strategy": "coordinate_grid", "values": [0.5]}"#,
        r#"{"strategy": "random", "bounds": [0.0, 1.0]}"#,
        r#"{"strategy": "random", "bounds": [0.0], "max_evaluations": 5}"#,
        r#"{"strategy": "cma_es", "max_evaluations": 5, "sigma": 0.1}"#,
        r#"{"strategy": "cma_es"}"#,
        r#"{"strategy": "quadratic_model", "max_evaluations": 5, "seed": 1}"#,
        r#"{"strategy": "gradient", "max_evaluations": 5, "radius": 1}"#,
        r#"{"strategy": "points", "points": [[0.5]], "values": [0.5]}"#,
        r#"{"strategy": "points"}"#,
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_best_is_the_lowest_of_the_whole_grid(
        values in prop::collection::btree_set(-20i32..20, 1..4),
        experts in 1usize..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f64> = values.into_iter().map(|v| f64::from(v) / 10.0).collect();
        let result = search(&grid(&values), experts, &folder.path().join("search.jsonl"));
        prop_assert_eq!(result.evaluations.len(), values.len().pow(experts as u32));
        let lowest = result.evaluations.iter().map(|e| e.value).fold(f64::INFINITY, f64::min);
        prop_assert_eq!(result.best_value, lowest);
        prop_assert_eq!(bowl(&result.best_weights), lowest);
    }
}
