//! Merging: the reference numbers, the algebra, and every refusal.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use deme_merge::{
    Dtype, MergeError, MergeMethod, MergePlan, ModelRole, StateDict, StoredTensor, TaskVector,
    TensorMismatch, merge,
};
use half::f16;
use proptest::prelude::*;

// --- reference numbers ---

fn fixtures() -> PathBuf {
    std::env::var_os("DEME_FIXTURES")
        .map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")),
            PathBuf::from,
        )
        .join("merge")
}

fn base_and_experts() -> (StateDict, Vec<StateDict>) {
    let folder = fixtures();
    let base = StateDict::load(&folder.join("base.safetensors")).unwrap();
    let experts: Vec<StateDict> = (0..)
        .map(|i| folder.join(format!("expert{i}.safetensors")))
        .take_while(|path| path.exists())
        .map(|path| StateDict::load(&path).unwrap())
        .collect();
    assert!(!experts.is_empty(), "no experts in {}", folder.display());
    (base, experts)
}

/// The method that a reference file's name tells.
fn method_of(stem: &str) -> Option<MergeMethod> {
    let number = |text: &str| text.parse::<f64>().unwrap();
    if stem == "uniform" {
        return Some(MergeMethod::Uniform);
    }
    if let Some(weights) = stem.strip_prefix("weighted_") {
        let weights = weights.split('_').map(number).collect();
        return Some(MergeMethod::Linear { weights });
    }
    let density = number(stem.strip_prefix("ties_mean_top")?);
    Some(MergeMethod::Ties { density, scale: 1.0 })
}

/// Position of an f16 on the number line, counted in representable numbers.
fn f16_rank(x: f16) -> i32 {
    let magnitude = i32::from(x.to_bits() & 0x7fff);
    if x.is_sign_negative() { -magnitude } else { magnitude }
}

fn assert_close(found: &StateDict, expected: &StateDict, what: &str) {
    assert!(found.names().eq(expected.names()), "{what}: names differ");
    for (name, expected) in expected.iter() {
        let found = found.get(name).unwrap();
        assert_eq!(found.dtype(), expected.dtype(), "{what}: {name}");
        assert_eq!(found.shape(), expected.shape(), "{what}: {name}");
        if !matches!(expected.dtype(), Dtype::F32 | Dtype::F16) {
            assert_eq!(found, expected, "{what}: {name}");
            continue;
        }
        let pairs = found.to_f32().unwrap().into_iter().zip(expected.to_f32().unwrap());
        for (index, (found, expected_value)) in pairs.enumerate() {
            let close = match expected.dtype() {
                Dtype::F16 => {
                    let ranks = [found, expected_value].map(|x| f16_rank(f16::from_f32(x)));
                    ranks[0].abs_diff(ranks[1]) <= 1
                }
                _ => (found - expected_value).abs() <= 1e-6,
            };
            assert!(close, "{what}: {name}[{index}] is {found}, expected {expected_value}");
        }
    }
}

#[test]
fn reference_merges_come_out() {
    let (base, experts) = base_and_experts();
    let mut checked = Vec::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let Some(stem) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".safetensors")
        else {
            continue;
        };
        if let Some(method) = method_of(stem) {
            let expected = StateDict::load(&path).unwrap();
            assert_close(&merge(&base, &experts, &method).unwrap(), &expected, stem);
            checked.push(method.name());
        }
    }
    assert!(!checked.is_empty(), "no reference merges in {}", fixtures().display());
}

#[test]
fn a_merge_says_how_it_was_made() {
    let (base, experts) = base_and_experts();
    let merged = merge(&base, &experts, &MergeMethod::Uniform).unwrap();
    let metadata = merged.metadata();
    assert_eq!(metadata["merge.method"], r#"{"method":"uniform"}"#);
    assert_eq!(metadata["merge.theta_pre"], base.content_hash());
    let weights: Vec<f64> = serde_json::from_str(&metadata["merge.weights"]).unwrap();
    assert_eq!(weights, vec![1.0 / experts.len() as f64; experts.len()]);
    let hashes: Vec<String> = serde_json::from_str(&metadata["merge.experts"]).unwrap();
    assert_eq!(hashes, experts.iter().map(StateDict::content_hash).collect::<Vec<_>>());
}

// --- by hand ---

fn point(values: &[f32]) -> StateDict {
    let tensor = StoredTensor::from_f32(vec![values.len()], values.to_vec());
    [("w".to_string(), tensor)].into_iter().collect()
}

fn values(point: &StateDict) -> Vec<f32> {
    point.get("w").unwrap().to_f32().unwrap()
}

/// Entry 0: both agree. 1: they disagree, the larger wins. 2: one is trimmed. 3: all are trimmed.
/// 4: they cancel, so the majority's sign decides.
#[test]
fn ties_by_hand() {
    let theta = point(&[10.0, 10.0, 10.0, 10.0, 10.0, 10.0]);
    let experts =
        [point(&[14.0, 6.0, 13.0, 10.1, 15.0, 10.2]), point(&[12.0, 13.0, 10.1, 10.2, 5.0, 10.1])];
    // Of 6 entries 4 stay: expert 0 keeps 4, -4, 3, 5; expert 1 keeps 2, 3, -5 and its 0.2.
    let ties = |scale| {
        let method = MergeMethod::Ties { density: 4.0 / 6.0, scale };
        values(&merge(&theta, &experts, &method).unwrap())
    };
    let expected = [13.0, 6.0, 13.0, 10.2, 15.0, 10.0];
    for (found, expected) in ties(1.0).into_iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
    assert_eq!(ties(2.0)[0], 16.0);
    assert_eq!(ties(0.0), values(&theta));
}

#[test]
fn ties_with_everything_kept_and_one_expert_gives_the_expert() {
    let (theta, expert) = (point(&[1.0, 2.0, 0.0]), point(&[1.5, 1.0, 0.0]));
    let method = MergeMethod::Ties { density: 1.0, scale: 1.0 };
    let merged = merge(&theta, std::slice::from_ref(&expert), &method).unwrap();
    assert_eq!(values(&merged), values(&expert));
}

#[test]
fn halves_are_computed_in_f32_and_rounded_once_to_even() {
    // 2048 is where f16 has steps of 2: 1/4 of +6 and of +6 is 2051 in f32, halfway between two f16.
    for (dtype, start, step, expected) in
        [(Dtype::F16, 2048.0, 6.0, 2052.0), (Dtype::BF16, 256.0, 6.0, 260.0)]
    {
        let point = |x: f32| -> StateDict {
            let tensor = StoredTensor::from_f32_as(dtype, vec![1], &[x]).unwrap();
            [("w".to_string(), tensor)].into_iter().collect()
        };
        let experts = [point(start + step), point(start + step)];
        let weights = vec![0.25, 0.25];
        let merged = merge(&point(start), &experts, &MergeMethod::Linear { weights }).unwrap();
        assert_eq!(merged.get("w").unwrap().dtype(), dtype);
        assert_eq!(values(&merged), [expected]);
    }
}

#[test]
fn tensors_that_are_not_floating_point_are_copied() {
    let ids = StoredTensor::new(Dtype::I64, vec![1], 7i64.to_le_bytes().to_vec()).unwrap();
    let mut theta = point(&[1.0]);
    theta.insert("ids".into(), ids.clone());
    let mut expert = point(&[2.0]);
    expert.insert("ids".into(), ids.clone());
    let experts = [expert];
    let merged = merge(&theta, &experts, &MergeMethod::Uniform).unwrap();
    assert_eq!(merged.get("ids"), Some(&ids));
    let plan = MergePlan::new(&theta, &experts).unwrap();
    assert_eq!(plan.constants().get("ids"), Some(&ids));
    assert_eq!(plan.at(&[1.0]).unwrap(), [("w".to_string(), vec![1], vec![2.0])]);
    assert_eq!(plan.state_dict_at(&[1.0]).unwrap().content_hash(), merged.content_hash());
}

// --- refusals ---

#[test]
fn every_difference_between_the_models_is_listed_at_once() {
    let scalar = |value: f32| StoredTensor::from_f32(vec![], vec![value]);
    let id = |value: u8| StoredTensor::new(Dtype::U8, vec![1], vec![value]).unwrap();
    let dict = |tensors: Vec<(&str, StoredTensor)>| -> StateDict {
        tensors.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect()
    };
    let theta =
        dict(vec![("a", scalar(0.0)), ("b", scalar(0.0)), ("c", scalar(0.0)), ("id", id(1))]);
    let half = StoredTensor::from_f32_as(Dtype::F16, vec![], &[0.0]).unwrap();
    let experts = [
        dict(vec![
            ("b", half),
            ("c", StoredTensor::from_f32(vec![1], vec![0.0])),
            ("id", id(2)),
            ("z", scalar(0.0)),
        ]),
        theta.clone(),
        dict(vec![("a", scalar(0.0)), ("b", scalar(0.0)), ("c", scalar(0.0))]),
    ];
    let expected = [
        TensorMismatch::Missing { expert: 0, name: "a".into() },
        TensorMismatch::Dtype {
            expert: 0,
            name: "b".into(),
            expected: Dtype::F32,
            found: Dtype::F16,
        },
        TensorMismatch::Shape { expert: 0, name: "c".into(), expected: vec![], found: vec![1] },
        TensorMismatch::Constant { expert: 0, name: "id".into(), dtype: Dtype::U8 },
        TensorMismatch::Extra { expert: 0, name: "z".into() },
        TensorMismatch::Missing { expert: 2, name: "id".into() },
    ];
    let plan_error = MergePlan::new(&theta, &experts).err().unwrap();
    for error in [merge(&theta, &experts, &MergeMethod::Uniform).unwrap_err(), plan_error] {
        let text = error.to_string();
        match error {
            MergeError::Mismatch { mismatches } => {
                assert_eq!(mismatches, expected);
                assert!(mismatches.iter().all(|m| text.contains(&m.to_string())), "{text}");
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    let good = point(&[0.0, 1.0]);
    let bad = point(&[0.0, f32::NAN]);
    let ties = MergeMethod::Ties { density: 0.5, scale: 1.0 };
    // A weight of 0 does not hide a broken expert.
    let linear = MergeMethod::Linear { weights: vec![1.0, 0.0] };
    for method in [MergeMethod::Uniform, linear, ties] {
        for (theta, experts, role) in [
            (&bad, [good.clone(), good.clone()], ModelRole::Pretrained),
            (&good, [good.clone(), bad.clone()], ModelRole::Expert(1)),
        ] {
            let plan_error = MergePlan::new(theta, &experts).err().unwrap();
            for error in [merge(theta, &experts, &method).unwrap_err(), plan_error] {
                match error {
                    MergeError::NonFinite { model, name, index, value } => {
                        assert_eq!((model, name.as_str(), index), (role, "w", 1));
                        assert!(value.is_nan());
                    }
                    other => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn a_result_beyond_the_stored_dtype_is_an_error() {
    let half = |x: f32| -> StateDict {
        let tensor = StoredTensor::from_f32_as(Dtype::F16, vec![1], &[x]).unwrap();
        [("w".to_string(), tensor)].into_iter().collect()
    };
    let (theta, experts) = (half(0.0), [half(60000.0)]);
    let method = MergeMethod::Linear { weights: vec![2.0] };
    let plan = MergePlan::new(&theta, &experts).unwrap();
    for error in [merge(&theta, &experts, &method).unwrap_err(), plan.at(&[2.0]).unwrap_err()] {
        assert!(matches!(error, MergeError::NonFinite { model: ModelRole::Merged, .. }), "{error}");
    }
}

#[test]
fn wrong_weights_are_refused() {
    let (theta, experts) = (point(&[0.0]), [point(&[1.0]), point(&[2.0])]);
    let plan = MergePlan::new(&theta, &experts).unwrap();
    let merge_with = |weights: &[f64]| {
        let method = MergeMethod::Linear { weights: weights.to_vec() };
        merge(&theta, &experts, &method).unwrap_err()
    };
    for error in [merge_with(&[1.0]), plan.at(&[1.0]).unwrap_err()] {
        assert!(matches!(error, MergeError::WeightCount { expected: 2, found: 1 }), "{error}");
    }
    for error in [merge_with(&[1.0, f64::NAN]), plan.at(&[1.0, f64::NAN]).unwrap_err()] {
        assert!(matches!(error, MergeError::NonFiniteWeight { expert: 1, .. }), "{error}");
    }
    assert!(matches!(merge(&theta, &[], &MergeMethod::Uniform), Err(MergeError::NoExperts)));
    assert!(matches!(MergePlan::new(&theta, &[]), Err(MergeError::NoExperts)));
}

// --- algebra ---

fn models() -> impl Strategy<Value = (StateDict, Vec<StateDict>, Vec<f64>)> {
    (1usize..5, 1usize..20).prop_flat_map(|(experts, entries)| {
        let tensor = || prop::collection::vec(-4f32..4.0, entries);
        let model = move || {
            (tensor(), tensor(), tensor()).prop_map(move |(a, b, c)| -> StateDict {
                let shape = || vec![a.len()];
                [
                    ("a".to_string(), StoredTensor::from_f32(shape(), a.clone())),
                    ("b".to_string(), StoredTensor::from_f32_as(Dtype::F16, shape(), &b).unwrap()),
                    ("c".to_string(), StoredTensor::from_f32_as(Dtype::BF16, shape(), &c).unwrap()),
                ]
                .into_iter()
                .collect()
            })
        };
        (
            model(),
            prop::collection::vec(model(), experts),
            prop::collection::vec(-2f64..2.0, experts),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn zero_weights_give_theta_exactly((theta, experts, _) in models()) {
        let weights = vec![0.0; experts.len()];
        let merged = merge(&theta, &experts, &MergeMethod::Linear { weights }).unwrap();
        prop_assert_eq!(merged.content_hash(), theta.content_hash());
    }

    /// theta + (theta_i - theta) rounds twice, each time by at most half a step of the larger operand.
    #[test]
    fn one_expert_with_weight_one_gives_the_expert((theta, experts, _) in models()) {
        let expert = experts[..1].to_vec();
        let merged = merge(&theta, &expert, &MergeMethod::Linear { weights: vec![1.0] }).unwrap();
        let get = |point: &StateDict| point.get("a").unwrap().to_f32().unwrap();
        for ((m, t), e) in get(&merged).into_iter().zip(get(&theta)).zip(get(&expert[0])) {
            let largest = t.abs().max(e.abs());
            let step = f32::from_bits(largest.to_bits() + 1) - largest;
            prop_assert!((m - e).abs() <= step * 1.5, "{} is not {}", m, e);
            // A finetuned weight within a factor of two comes out exactly (Sterbenz).
            if e / t >= 0.5 && e / t <= 2.0 {
                prop_assert_eq!(m, e);
            }
        }
    }

    #[test]
    fn the_order_of_the_experts_changes_rounding_only((theta, experts, weights) in models()) {
        let merged = merge(&theta, &experts, &MergeMethod::Linear { weights: weights.clone() }).unwrap();
        let reversed: Vec<StateDict> = experts.iter().rev().cloned().collect();
        let weights = weights.into_iter().rev().collect();
        let other = merge(&theta, &reversed, &MergeMethod::Linear { weights }).unwrap();
        for ((_, m), (_, o)) in merged.iter().zip(other.iter()) {
            let tolerance = match m.dtype() {
                Dtype::F32 => 1e-4,
                Dtype::F16 => 64.0 / 1024.0,
                _ => 64.0 / 128.0,
            };
            for (m, o) in m.to_f32().unwrap().into_iter().zip(o.to_f32().unwrap()) {
                prop_assert!((m - o).abs() <= tolerance, "{} and {}", m, o);
            }
        }
    }

    #[test]
    fn a_plan_gives_the_bits_of_a_merge((theta, experts, weights) in models()) {
        let plan = MergePlan::new(&theta, &experts).unwrap();
        let mut buffers = plan.at(&vec![1.0; experts.len()]).unwrap();
        plan.at_into(&weights, &mut buffers).unwrap();
        prop_assert_eq!(&buffers, &plan.at(&weights).unwrap());
        let planned = plan.state_dict_at(&weights).unwrap();
        let merged = merge(&theta, &experts, &MergeMethod::Linear { weights }).unwrap();
        prop_assert_eq!(planned.content_hash(), merged.content_hash());
        for (name, _, values) in &buffers {
            let stored = merged.get(name).unwrap().to_f32().unwrap();
            prop_assert!(stored.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn a_task_vector_is_the_linear_merge_of_one((theta, experts, weights) in models()) {
        let tau = TaskVector::between(&theta, &experts[0]).unwrap();
        let moved = tau.applied_to(&theta, weights[0]).unwrap();
        let method = MergeMethod::Linear { weights: vec![weights[0]] };
        let merged = merge(&theta, &experts[..1], &method).unwrap();
        prop_assert_eq!(moved.content_hash(), merged.content_hash());
    }

    #[test]
    fn ties_of_equal_experts_is_ties_of_one((theta, experts, _) in models(), density in 0.01f64..1.0) {
        let method = MergeMethod::Ties { density, scale: 1.0 };
        let one = merge(&theta, &experts[..1], &method).unwrap();
        let four = vec![experts[0].clone(); 4]; // sums of 2 and 4 equal numbers are exact
        prop_assert_eq!(merge(&theta, &four, &method).unwrap().content_hash(), one.content_hash());
    }
}
