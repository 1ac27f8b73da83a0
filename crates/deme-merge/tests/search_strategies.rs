//! Every strategy finds the minimum of a basin, with few evaluations, within its budget and bounds.
#![allow(clippy::unwrap_used)]

mod support;

use std::convert::Infallible;

use deme_merge::weight_search::{Objective, WithGradient};
use deme_merge::{SearchConfig, SearchResult, SearchTask, search_weights};
use serde_json::json;
use support::{Basin, Once, config, every_strategy};

fn search(config: &SearchConfig, experts: usize, objective: impl Objective) -> SearchResult {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    search_weights(config, &SearchTask::new(experts, "basin", &log), objective, |_| {}).unwrap()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_gradients_of_the_basins_are_their_derivatives() {
    for basin in [Basin::quadratic(1, 3, 10.0), Basin::like_a_loss(2, 3)] {
        let weights = [0.9, -0.2, 0.4];
        let (_, gradient) = basin.value_and_gradient(&weights);
        for (place, derivative) in gradient.into_iter().enumerate() {
            let at = |offset: f64| {
                let mut moved = weights;
                moved[place] += offset;
                basin.value(&moved)
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((difference - derivative).abs() < 1e-8, "{difference} {derivative}");
        }
        assert_eq!(basin.value(&basin.minimum), basin.floor);
    }
}

/// Evaluations for 2, 4 and 8 weights, and how near to the minimum (in weights) they lead.
#[test]
fn rotated_quadratics_are_solved() {
    for (strategy, budgets, nearness) in [
        ("quadratic_model", [12, 30, 80], 1e-6),
        ("gradient", [15, 20, 30], 1e-3),
        ("cma_es", [100, 150, 260], 5e-3),
    ] {
        for (dimensions, budget) in [2, 4, 8].into_iter().zip(budgets) {
            for seed in 1..=3 {
                let basin = Basin::quadratic(seed, dimensions, 10.0);
                let settings = json!({"strategy": strategy, "max_evaluations": budget});
                let found = search(&config(settings), dimensions, Once::new(&basin));
                let error = furthest(&found.best_weights, &basin.minimum);
                assert!(error < nearness, "{strategy} of {dimensions}, seed {seed}: {error}");
                assert_eq!(found.best_value, basin.value(&found.best_weights));
            }
        }
    }
}

/// 65 evaluations do at least as well as the 1296 of a grid.
#[test]
fn few_evaluations_beat_the_grid_in_a_basin_like_a_loss() {
    let values = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
    let grid = json!({"strategy": "grid", "values": values, "max_evaluations": 1296});
    for seed in 1..=3 {
        let basin = Basin::like_a_loss(seed, 4);
        let grid = search(&config(grid.clone()), 4, |weights: &[f64]| {
            Ok::<_, Infallible>(basin.value(weights))
        });
        assert_eq!(grid.evaluations.len(), 1296);
        for settings in [
            json!({"strategy": "quadratic_model", "max_evaluations": 65}),
            json!({"strategy": "gradient", "max_evaluations": 65}),
            json!({"strategy": "cma_es", "max_evaluations": 65, "seed": 1}),
            json!({"strategy": "cma_es", "max_evaluations": 65, "seed": 2}),
            json!({"strategy": "cma_es", "max_evaluations": 65, "seed": 3}),
        ] {
            let found = search(&config(settings.clone()), 4, Once::new(&basin));
            assert!(found.evaluations.len() <= 65);
            assert!(found.best_value <= grid.best_value, "{settings}, basin {seed}");
        }
    }
}

#[test]
fn coordinate_descent_and_random_search_come_near() {
    let basin = Basin::quadratic(2, 4, 3.0);
    let values: Vec<f64> = (0..=20).map(|i| f64::from(i) / 20.0).collect();
    let coordinates = json!({"strategy": "coordinate_grid", "values": values, "rounds": 10});
    let found = search(&config(coordinates), 4, Once::new(&basin));
    assert!(furthest(&found.best_weights, &basin.minimum) < 0.05, "{:?}", found.best_weights);

    let random = json!({"strategy": "random", "bounds": [0.0, 1.0], "max_evaluations": 2000});
    let found = search(&config(random), 4, Once::new(&basin));
    assert!(furthest(&found.best_weights, &basin.minimum) < 0.2, "{:?}", found.best_weights);
    let (low, high) = found
        .evaluations
        .iter()
        .flat_map(|e| &e.weights)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &weight| {
            (low.min(weight), high.max(weight))
        });
    assert!((0.0..0.01).contains(&low) && (0.99..=1.0).contains(&high), "{low} {high}");
}

#[test]
fn many_weights_are_no_matter_with_a_gradient() {
    let basin = Basin::like_a_loss(5, 64);
    let settings = json!({"strategy": "gradient", "max_evaluations": 60});
    let found = search(&config(settings), 64, Once::new(&basin));
    assert!(found.best_value - basin.floor < 1e-7, "{}", found.best_value - basin.floor);
}

/// Adaptation does not hang on smoothness: a ripple as high as the basin's last tenth.
#[test]
fn a_rough_objective_does_not_lead_cma_es_astray() {
    for surrogate in [true, false] {
        for seed in 1..=3 {
            let basin = Basin::quadratic(seed, 3, 5.0);
            let rough = |weights: &[f64]| {
                let ripple: f64 = weights.iter().map(|w| (150.0 * w).sin()).sum();
                Ok::<_, Infallible>(basin.value(weights) + 2e-5 * ripple)
            };
            let settings = json!({
                "strategy": "cma_es", "max_evaluations": 250, "seed": seed, "surrogate": surrogate,
            });
            let found = search(&config(settings), 3, rough);
            let error = furthest(&found.best_weights, &basin.minimum);
            assert!(error < 0.15, "{surrogate} {seed}: {error}");
        }
    }
}

/// Where the start is a saddle the model has no minimum, and its slope along the way down is zero.
#[test]
fn a_quadratic_model_leaves_a_saddle() {
    let valleys = |weights: &[f64]| {
        let (x, y) = (weights[0] - 0.5, weights[1] - 0.5);
        Ok::<_, Infallible>((x * x - 0.09).powi(2) + y * y)
    };
    let settings = json!({"strategy": "quadratic_model", "max_evaluations": 60});
    let found = search(&config(settings), 2, valleys);
    let (x, y) = (found.best_weights[0] - 0.5, found.best_weights[1] - 0.5);
    assert!((x.abs() - 0.3).abs() < 1e-2 && y.abs() < 1e-2, "{x} {y}");
}

/// The lowest point within the bounds, with every weight held by another kind of bound or none.
#[test]
fn bounds_are_kept_and_their_lowest_point_is_found() {
    let objective = |weights: &[f64]| {
        let offsets = [weights[0] - 1.5, weights[1] - 0.3, weights[2] + 0.4];
        let squares: f64 = offsets.iter().zip([1.0, 4.0, 2.0]).map(|(o, c)| c * o * o).sum();
        let mixed = 0.5 * offsets[0] * offsets[1];
        let gradient = vec![
            2.0 * offsets[0] + 0.5 * offsets[1],
            8.0 * offsets[1] + 0.5 * offsets[0],
            4.0 * offsets[2],
        ];
        Ok::<_, Infallible>((squares + mixed, gradient))
    };
    // At the bounds: the first weight 1, the last 0, and 8 (w - 0.3) = 0.25 between.
    let lowest = [1.0, 0.33125, 0.0];
    for (strategy, budget, nearness) in
        [("quadratic_model", 40, 1e-6), ("gradient", 30, 1e-3), ("cma_es", 400, 1e-2)]
    {
        let settings =
            json!({"strategy": strategy, "bounds": [0.0, 1.0], "max_evaluations": budget});
        let found = search(&config(settings), 3, WithGradient(objective));
        let error = furthest(&found.best_weights, &lowest);
        assert!(error < nearness, "{strategy}: {:?}", found.best_weights);
        for evaluation in &found.evaluations {
            assert!(evaluation.weights.iter().all(|w| (0.0..=1.0).contains(w)), "{evaluation:?}");
        }
    }
}

#[test]
fn a_start_in_a_corner_has_room_for_a_model() {
    let basin = Basin::quadratic(3, 3, 4.0);
    let settings = json!({
        "strategy": "quadratic_model", "bounds": [0.0, 1.0], "start": [0.0, 1.0, 0.95],
        "max_evaluations": 40,
    });
    let found = search(&config(settings), 3, Once::new(&basin));
    assert_eq!(found.evaluations[0].weights, [0.0, 1.0, 0.95]);
    assert!(furthest(&found.best_weights, &basin.minimum) < 1e-6);
}

#[test]
fn a_budget_is_spent_exactly_and_cuts_a_longer_search_short() {
    let basin = Basin::like_a_loss(1, 3);
    for whole in every_strategy(400) {
        let all = search(&whole, 3, Once::new(&basin)).evaluations;
        for budget in [1, 2, 5, 7, 10, all.len() - 1, all.len()] {
            let mut settings = serde_json::to_value(&whole).unwrap();
            settings["max_evaluations"] = json!(budget);
            let objective = Once::new(&basin);
            let asked = objective.asked.clone();
            let found = search(&config(settings), 3, objective);
            assert_eq!(asked.borrow().len(), budget);
            assert_eq!(found.evaluations, all[..budget]);
        }
    }
}

#[test]
fn equal_settings_search_equally_and_other_seeds_do_not() {
    let basin = Basin::like_a_loss(1, 3);
    for config in every_strategy(40) {
        let once = search(&config, 3, Once::new(&basin));
        assert_eq!(once, search(&config, 3, Once::new(&basin)));
    }
    for strategy in ["random", "cma_es"] {
        let with_seed = |seed: u64| {
            let settings = json!({
                "strategy": strategy, "bounds": [0.0, 1.0], "seed": seed, "max_evaluations": 10,
            });
            search(&config(settings), 3, Once::new(&basin)).evaluations
        };
        assert_ne!(with_seed(1)[9], with_seed(2)[9]);
    }
}

/// A constant objective gives no direction: every search ends, and the first weights stay the best.
#[test]
fn a_flat_objective_ends_every_search() {
    for config in every_strategy(300) {
        let flat =
            WithGradient(|weights: &[f64]| Ok::<_, Infallible>((1.0, vec![0.0; weights.len()])));
        let found = search(&config, 2, flat);
        assert_eq!(found.best_weights, found.evaluations[0].weights);
    }
}

/// Numbers whose squares overflow end no search with anything but an evaluated point.
#[test]
fn huge_values_break_nothing() {
    let basin = Basin::quadratic(1, 2, 5.0);
    for config in every_strategy(60) {
        let huge = WithGradient(|weights: &[f64]| {
            let (value, gradient) = basin.value_and_gradient(weights);
            let gradient = gradient.iter().map(|g| g * 1e200).collect();
            Ok::<_, Infallible>((value * 1e200, gradient))
        });
        let found = search(&config, 2, huge);
        assert!(found.evaluations.iter().all(|e| e.weights.iter().all(|w| w.is_finite())));
        assert!(found.evaluations.iter().all(|e| e.value >= found.best_value));
    }
}

/// Parameters in groups: the uniform start is 1 / experts in each.
#[test]
fn groups_of_parameters_have_weights_of_their_own() {
    let basin = Basin::quadratic(4, 6, 5.0);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("search.jsonl");
    let task =
        SearchTask { num_groups: 3, reference_points: true, ..SearchTask::new(2, "basin", &log) };
    let settings = config(json!({"strategy": "gradient", "max_evaluations": 60}));
    let found = search_weights(&settings, &task, Once::new(&basin), |_| {}).unwrap();
    assert_eq!(found.evaluations[0].weights, [0.5; 6]);
    assert_eq!(found.references[1].weights, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    assert!(furthest(&found.best_weights, &basin.minimum) < 1e-3);
}
