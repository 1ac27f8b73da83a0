//! The methods beyond linear and TIES: by hand, by their properties, and every refusal.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use deme_merge::{
    Dtype, METHODS, MergeError, MergeInputs, MergeMethod, ModelRole, StateDict, StoredTensor,
    TensorMismatch, merge,
};
use proptest::prelude::*;

fn dict(tensors: &[(&str, &[usize], &[f32])]) -> StateDict {
    let tensor = |(name, shape, values): &(&str, &[usize], &[f32])| {
        ((*name).to_owned(), StoredTensor::from_f32(shape.to_vec(), values.to_vec()))
    };
    tensors.iter().map(tensor).collect()
}

fn point(values: &[f32]) -> StateDict {
    dict(&[("w", &[values.len()], values)])
}

fn values(model: &StateDict, name: &str) -> Vec<f32> {
    model.get(name).unwrap().to_f32().unwrap()
}

fn with_statistics(
    theta_pre: &StateDict,
    experts: &[StateDict],
    statistics: &[StateDict],
    method: &MergeMethod,
) -> Result<StateDict, MergeError> {
    MergeInputs { theta_pre, experts, statistics }.merge(method)
}

fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5, "{found} is not {expected}");
    }
}

// --- weights per group ---

fn unet(value: f32) -> StateDict {
    let names =
        ["conv_in.bias", "down_blocks.0.a", "down_blocks.1.a", "mid_block.a", "up_blocks.0.a"];
    names
        .iter()
        .map(|name| (name.to_string(), StoredTensor::from_f32(vec![1], vec![value])))
        .collect()
}

fn by_group(groups: &[(&str, f64)], others: Option<f64>) -> Result<StateDict, MergeError> {
    let groups: BTreeMap<String, Vec<f64>> =
        groups.iter().map(|(group, weight)| (group.to_string(), vec![*weight])).collect();
    let weights = others.map(|weight| vec![weight]);
    merge(&unet(0.0), &[unet(1.0)], &MergeMethod::LinearByGroup { groups, weights })
}

#[test]
fn a_tensor_takes_the_weights_of_its_block_then_of_its_part_then_the_others() {
    let merged =
        by_group(&[("down", 2.0), ("down_blocks.1", 3.0), ("rest", 4.0)], Some(5.0)).unwrap();
    let found: Vec<f32> = unet(0.0).names().map(|name| values(&merged, name)[0]).collect();
    assert_eq!(found, [4.0, 2.0, 3.0, 5.0, 5.0]);
    assert!(merged.metadata()["merge.method"].contains(r#""down_blocks.1":[3.0]"#));
}

#[test]
fn groups_without_weights_or_tensors_are_refused() {
    match by_group(&[("down", 1.0), ("mid_block", 1.0)], None).unwrap_err() {
        MergeError::MissingGroups { groups } => assert_eq!(groups, ["rest", "up_blocks.0"]),
        other => panic!("{other}"),
    }
    match by_group(&[("up", 1.0), ("up_blocks.7", 1.0)], Some(1.0)).unwrap_err() {
        MergeError::UnknownGroups { unknown, known } => {
            assert_eq!(unknown, ["up_blocks.7"]);
            assert!(known.contains(&"down_blocks.1".to_string()) && known.contains(&"up".into()));
        }
        other => panic!("{other}"),
    }
    let error = by_group(&[("up", f64::NAN)], Some(1.0)).unwrap_err();
    assert!(matches!(error, MergeError::Group { .. }), "{error}");
}

// --- DARE ---

#[test]
fn dare_drops_its_part_and_keeps_the_mean() {
    let entries = 100_000;
    let (theta, expert) = (point(&vec![1.0; entries]), point(&vec![2.0; entries]));
    let dare = |drop, seed| {
        let method = MergeMethod::Dare { weights: vec![0.5], drop, seed };
        values(&merge(&theta, std::slice::from_ref(&expert), &method).unwrap(), "w")
    };
    for drop in [0.9, 0.25] {
        let merged = dare(drop, 0);
        let kept = merged.iter().filter(|&&m| m != 1.0).count() as f64;
        let spread = (entries as f64 * drop * (1.0 - drop)).sqrt();
        assert!((kept - entries as f64 * (1.0 - drop)).abs() < 5.0 * spread, "{kept} of {entries}");
        let moved = 1.0 + (0.5 / (1.0 - drop)) as f32;
        assert!(merged.iter().all(|&m| m == 1.0 || m == moved));
    }
    assert_eq!(dare(0.5, 1), dare(0.5, 1));
    assert_ne!(dare(0.5, 1), dare(0.5, 2));
    assert_eq!(dare(0.0, 1), vec![1.5; entries]);
}

#[test]
fn masks_differ_between_experts_and_tensors_but_not_with_what_else_there_is() {
    let model = |value: f32, names: &[&str]| -> StateDict {
        let tensor = || StoredTensor::from_f32(vec![64], vec![value; 64]);
        names.iter().map(|name| (name.to_string(), tensor())).collect()
    };
    let method =
        |weights: [f64; 2]| MergeMethod::Dare { weights: weights.into(), drop: 0.5, seed: 0 };
    let both = |names: &[&str], weights| {
        let experts = [model(1.0, names), model(1.0, names)];
        merge(&model(0.0, names), &experts, &method(weights)).unwrap()
    };
    let first = both(&["a", "b"], [1.0, 0.0]);
    assert_ne!(values(&first, "a"), values(&first, "b"));
    assert_ne!(values(&first, "a"), values(&both(&["a", "b"], [0.0, 1.0]), "a"));
    assert_eq!(values(&first, "b"), values(&both(&["b"], [1.0, 0.0]), "b"));
}

// --- SLERP ---

fn slerp(a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
    let experts = [point(a), point(b)];
    let theta = point(&vec![9.0; a.len()]);
    values(&merge(&theta, &experts, &MergeMethod::Slerp { t }).unwrap(), "w")
}

#[test]
fn slerp_goes_along_the_circle_and_linearly_between_nearly_parallel_tensors() {
    let half = 0.5f32.sqrt();
    assert_near(&slerp(&[1.0, 0.0], &[0.0, 1.0], 0.5), &[half, half]);
    assert_near(&slerp(&[2.0, 0.0], &[0.0, 2.0], 0.5), &[2.0 * half, 2.0 * half]);
    let third = std::f32::consts::FRAC_PI_2 / 3.0;
    assert_near(&slerp(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0), &[third.cos(), third.sin()]);
    assert_eq!(slerp(&[1.0, 0.01], &[3.0, 0.0], 0.25), [1.5, 0.0075]);
    assert_eq!(slerp(&[1.0, 2.0], &[-1.0, -2.0], 0.25), [0.5, 1.0]);
    assert_eq!(slerp(&[0.0, 0.0], &[4.0, 8.0], 0.25), [1.0, 2.0]);
    for t in [0.0, 1.0] {
        let ends = [[0.3, -0.2], [0.1, 0.9]];
        assert_near(&slerp(&ends[0], &ends[1], t), &ends[t as usize]);
    }
}

#[test]
fn each_tensor_has_its_own_angle() {
    let a = dict(&[("u", &[2], &[1.0, 0.0]), ("v", &[2], &[1.0, 1.0])]);
    let b = dict(&[("u", &[2], &[0.0, 1.0]), ("v", &[2], &[3.0, 3.0])]);
    let merged = merge(&a, &[a.clone(), b], &MergeMethod::Slerp { t: 0.5 }).unwrap();
    assert_near(&values(&merged, "u"), &[0.5f32.sqrt(); 2]);
    assert_eq!(values(&merged, "v"), [2.0, 2.0]);
}

// --- Fisher ---

#[test]
fn fisher_weights_each_entry_and_takes_the_mean_where_nothing_is_known() {
    let theta = point(&[10.0; 4]);
    let experts = [point(&[1.0, 1.0, 1.0, 1.0]), point(&[5.0, 5.0, 5.0, 5.0])];
    // The last pair is so small that its sum in f32 would lose half of it.
    let fisher = [point(&[3.0, 0.0, 0.0, 3e-45]), point(&[1.0, 2.0, 0.0, 1e-45])];
    let merged = with_statistics(&theta, &experts, &fisher, &MergeMethod::Fisher).unwrap();
    let merged = values(&merged, "w");
    assert_near(&merged[..3], &[2.0, 5.0, 3.0]);
    assert!((merged[3] - 2.333).abs() < 0.01, "{}", merged[3]); // 2 : 1 in steps of 1.4e-45
}

#[test]
fn fisher_information_that_is_none_is_refused() {
    let (theta, experts) = (point(&[0.0; 2]), [point(&[1.0; 2]), point(&[2.0; 2])]);
    let refused = |second: &[f32]| {
        let fisher = [point(&[1.0; 2]), point(second)];
        with_statistics(&theta, &experts, &fisher, &MergeMethod::Fisher).unwrap_err()
    };
    match refused(&[1.0, -0.5]) {
        MergeError::NegativeFisher { expert: 1, name, index: 1, value } => {
            assert_eq!((name.as_str(), value), ("w", -0.5));
        }
        other => panic!("{other}"),
    }
    match refused(&[f32::NAN, 1.0]) {
        MergeError::NonFinite { model: ModelRole::Statistics(1), index: 0, .. } => {}
        other => panic!("{other}"),
    }
}

// --- RegMean ---

/// `X^T X` of rows of inputs.
fn gram(rows: &[[f32; 2]]) -> [f32; 4] {
    let entry = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum();
    [entry(0, 0), entry(0, 1), entry(1, 0), entry(1, 1)]
}

fn regmean(grams: [[f32; 4]; 2], alpha: f64) -> Result<StateDict, MergeError> {
    let model =
        |w: &[f32], bias: f32| dict(&[("fc.weight", &[1, 2], w), ("fc.bias", &[1], &[bias])]);
    let experts = [model(&[1.0, 2.0], 1.0), model(&[3.0, -1.0], 2.0)];
    let grams = grams.map(|gram| dict(&[("fc.weight", &[2, 2], &gram)]));
    with_statistics(&model(&[0.0, 0.0], 0.0), &experts, &grams, &MergeMethod::RegMean { alpha })
}

#[test]
fn regmean_solves_the_least_squares_and_averages_the_rest() {
    let grams = [gram(&[[1.0, 0.5], [0.0, 2.0]]), gram(&[[2.0, 1.0], [1.0, -1.0]])];
    for alpha in [1.0, 0.9, 0.0] {
        let merged = regmean(grams, alpha).unwrap();
        assert_eq!(values(&merged, "fc.bias"), [1.5]);
        // By Cramer's rule: W (G_1 + G_2) = W_1 G_1 + W_2 G_2.
        let [g, h] = grams.map(|g| {
            let off = alpha as f32;
            [g[0], off * g[1], off * g[2], g[3]]
        });
        let right = [
            1.0 * g[0] + 2.0 * g[2] + 3.0 * h[0] - h[2],
            1.0 * g[1] + 2.0 * g[3] + 3.0 * h[1] - h[3],
        ];
        let s = [g[0] + h[0], g[1] + h[1], g[2] + h[2], g[3] + h[3]];
        let det = s[0] * s[3] - s[1] * s[2];
        let expected =
            [(right[0] * s[3] - right[1] * s[2]) / det, (right[1] * s[0] - right[0] * s[1]) / det];
        assert_near(&values(&merged, "fc.weight"), &expected);
    }
}

#[test]
fn inputs_that_never_occurred_take_the_mean() {
    let merged = regmean([[4.0, 0.0, 0.0, 0.0], [12.0, 0.0, 0.0, 0.0]], 0.9).unwrap();
    assert_near(&values(&merged, "fc.weight"), &[2.5, 0.5]);
    let merged = regmean([[0.0; 4]; 2], 0.9).unwrap();
    assert_near(&values(&merged, "fc.weight"), &[2.0, 0.5]);
}

#[test]
fn matrices_that_are_no_gram_matrices_are_refused() {
    let error = regmean([[1.0, 5.0, 5.0, 1.0], [1.0, 0.0, 0.0, 1.0]], 1.0).unwrap_err();
    assert!(matches!(&error, MergeError::NotGram { name } if name == "fc.weight"), "{error}");
    let error = regmean([[1.0, 0.0, 0.0, f32::INFINITY], [0.0; 4]], 1.0).unwrap_err();
    let MergeError::NonFinite { model: ModelRole::Statistics(0), index: 3, .. } = error else {
        panic!("{error}");
    };
}

/// Thirty inputs: the blocks of eight, and what is left of them, of every inner product.
#[test]
fn regmean_of_equal_experts_gives_the_expert() {
    let n = 30;
    let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
    let w: Vec<f32> = (0..2 * n).map(number).collect();
    let x: Vec<f32> = (0..40 * n).map(|i| number(i * i + 3)).collect();
    let entry = |k: usize| (0..40).map(|row| x[row * n + k / n] * x[row * n + k % n]).sum();
    let gram: Vec<f32> = (0..n * n).map(entry).collect();
    let expert = dict(&[("w", &[2, n], &w)]);
    let grams = vec![dict(&[("w", &[n, n], &gram)]); 3];
    let experts = vec![expert.clone(); 3];
    let method = MergeMethod::RegMean { alpha: 0.9 };
    let merged = with_statistics(&expert, &experts, &grams, &method).unwrap();
    assert_near(&values(&merged, "w"), &w);
}

// --- statistics that do not fit ---

#[test]
fn statistics_must_be_there_exactly_where_they_are_used() {
    let (theta, experts) = (point(&[0.0]), [point(&[1.0]), point(&[2.0])]);
    let one = [point(&[1.0])];
    for (method, statistics, expected) in [
        (MergeMethod::Fisher, &[][..], (2, 0)),
        (MergeMethod::Fisher, &one[..], (2, 1)),
        (MergeMethod::RegMean { alpha: 1.0 }, &[][..], (2, 0)),
        (MergeMethod::Uniform, &one[..], (0, 1)),
    ] {
        match with_statistics(&theta, &experts, statistics, &method).unwrap_err() {
            MergeError::StatisticsCount { method: name, expected: e, found } => {
                assert_eq!((name, (e, found)), (method.name(), expected));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn every_difference_of_the_statistics_is_listed_at_once() {
    let theta = dict(&[("a", &[2], &[0.0; 2]), ("b", &[2], &[0.0; 2]), ("l", &[1, 2], &[0.0; 2])]);
    let experts = [theta.clone(), theta.clone()];
    let mut odd = dict(&[("a", &[1], &[0.0]), ("z", &[1], &[0.0])]);
    let ids = StoredTensor::new(Dtype::I64, vec![1, 2], vec![0; 16]).unwrap();
    odd.insert("l".into(), ids);
    let listed = |statistics: &[StateDict], method: &MergeMethod| match with_statistics(
        &theta, &experts, statistics, method,
    )
    .unwrap_err()
    {
        MergeError::StatisticsMismatch { mismatches, .. } => mismatches,
        other => panic!("{other}"),
    };
    assert_eq!(
        listed(&[theta.clone(), odd], &MergeMethod::Fisher),
        [
            TensorMismatch::Shape {
                expert: 1,
                name: "a".into(),
                expected: vec![2],
                found: vec![1]
            },
            TensorMismatch::Missing { expert: 1, name: "b".into() },
            TensorMismatch::Dtype {
                expert: 1,
                name: "l".into(),
                expected: Dtype::F32,
                found: Dtype::I64
            },
            TensorMismatch::Extra { expert: 1, name: "z".into() },
        ]
    );
    let grams = [
        dict(&[("a", &[2, 2], &[0.0; 4]), ("l", &[2, 2], &[0.0; 4])]),
        dict(&[("a", &[2, 2], &[0.0; 4])]),
    ];
    assert_eq!(
        listed(&grams, &MergeMethod::RegMean { alpha: 1.0 }),
        [
            TensorMismatch::Extra { expert: 0, name: "a".into() },
            TensorMismatch::Extra { expert: 1, name: "a".into() },
            TensorMismatch::Missing { expert: 1, name: "l".into() },
        ]
    );
}

// --- the table, and what holds for all ---

#[test]
fn every_row_of_the_table_says_what_where_from_and_is_alone() {
    for (number, row) in METHODS.iter().enumerate() {
        assert!(METHODS[..number].iter().all(|other| other.name != row.name), "{}", row.name);
        assert!(!row.formula.is_empty() && row.paper.contains(", "), "{}", row.name);
    }
}

fn experts() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1usize..60, 2usize..5).prop_flat_map(|(entries, models)| {
        prop::collection::vec(prop::collection::vec(-4f32..4.0, entries), models)
    })
}

proptest! {
    #[test]
    fn equal_experts_merge_to_themselves(models in experts(), count in 1usize..4) {
        let theta = point(&models[0]);
        let experts = vec![point(&models[1]); count];
        let fisher = vec![point(&models[1].iter().map(|x| x * x).collect::<Vec<_>>()); count];
        let linear = MergeMethod::Linear { weights: vec![1.0 / count as f64; count] };
        for (method, statistics) in [
            (linear, &[][..]),
            (MergeMethod::Uniform, &[]),
            (MergeMethod::Ties { density: 1.0, scale: 1.0 }, &[]),
            (MergeMethod::Dare { weights: vec![1.0 / count as f64; count], drop: 0.0, seed: 1 }, &[]),
            (MergeMethod::Fisher, &fisher),
            (MergeMethod::RegMean { alpha: 0.9 }, &vec![StateDict::new(); count]),
        ] {
            let merged = with_statistics(&theta, &experts, statistics, &method).unwrap();
            for (found, expected) in values(&merged, "w").iter().zip(&models[1]) {
                prop_assert!((found - expected).abs() <= 4e-6, "{method:?}: {found}, {expected}");
            }
        }
        let two = vec![experts[0].clone(); 2];
        let merged = merge(&theta, &two, &MergeMethod::Slerp { t: 0.3 }).unwrap();
        for (found, expected) in values(&merged, "w").iter().zip(&models[1]) {
            prop_assert!((found - expected).abs() <= 1e-6);
        }
    }

    /// `merge(a w + b v) - theta = a (merge(w) - theta) + b (merge(v) - theta)`
    #[test]
    fn the_linear_merge_is_linear_in_its_weights(
        models in experts(),
        (a, b) in (-2f64..2.0, -2f64..2.0),
        seed in 0u64..100,
    ) {
        let theta = point(&models[0]);
        let experts: Vec<StateDict> = models[1..].iter().map(|values| point(values)).collect();
        let weights = |shift: u64| -> Vec<f64> {
            (0..experts.len() as u64).map(|i| ((seed + shift + 7 * i) % 13) as f64 / 6.0 - 1.0).collect()
        };
        let (w, v) = (weights(0), weights(5));
        let mixed = w.iter().zip(&v).map(|(w, v)| a * w + b * v).collect();
        let at = |weights: Vec<f64>| {
            values(&merge(&theta, &experts, &MergeMethod::Linear { weights }).unwrap(), "w")
        };
        let (mixed, at_w, at_v) = (at(mixed), at(w), at(v));
        for (index, &theta) in models[0].iter().enumerate() {
            let expected = f64::from(theta)
                + a * f64::from(at_w[index] - theta)
                + b * f64::from(at_v[index] - theta);
            prop_assert!((f64::from(mixed[index]) - expected).abs() < 1e-4);
        }
    }
}
