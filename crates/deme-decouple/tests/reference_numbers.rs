//! Finetuning against the reference's numbers, step by step, from the folder `DEME_FIXTURES` names.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use deme_decouple::{FinetuneConfig, Finetuner, MicroBatch};
use deme_diffusion::{
    NoiseSchedule, NoiseScheduleConfig, PredictionType, ProjectionPlacement, UNet2DConfig,
    UNet2DModel,
};
use deme_merge::{StateDict, StoredTensor};
use deme_nn::{Init, load_state_dict, to_state_dict};

const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or_else(|| default.into(), PathBuf::from)
}

fn pretrained(device: &Device) -> UNet2DModel {
    let folder = fixtures().join("finetune/pretrained");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = UNet2DConfig::from_json(&config).unwrap();
    let model = UNet2DModel::new(&config, &mut Init::new(0, device)).unwrap();
    load_state_dict(model, &StateDict::load(&folder).unwrap()).unwrap()
}

/// Entry `step` of a tensor whose first dimension counts steps.
fn at_step(tensor: &StoredTensor, step: usize, device: &Device) -> Tensor<4> {
    let [_, b, c, h, w] = tensor.shape().try_into().unwrap();
    let len = b * c * h * w;
    let values = tensor.to_f32().unwrap()[step * len..][..len].to_vec();
    Tensor::from_data(TensorData::new(values, [b, c, h, w]), device)
}

fn assert_parameters(model: &UNet2DModel, expected: &StateDict, prefix: &str) {
    let found = to_state_dict(model);
    let names = expected.names().filter_map(|name| name.strip_prefix(prefix));
    assert_eq!(names.collect::<Vec<_>>(), found.names().collect::<Vec<_>>());
    let mut largest = 0f64;
    for (name, found) in found.iter() {
        let expected = expected.get(&format!("{prefix}{name}")).unwrap();
        assert_eq!(found.shape(), expected.shape(), "{prefix}{name}");
        for (found, expected) in found.to_f32().unwrap().iter().zip(expected.to_f32().unwrap()) {
            let difference = f64::from((found - expected).abs());
            assert!(difference < TOLERANCE, "{prefix}{name}: {found} is not {expected}");
            largest = largest.max(difference);
        }
    }
    assert!(!found.is_empty());
    println!("{prefix}: largest difference {largest:e}");
}

#[test]
fn one_experts_finetuning_step_by_step() {
    let device = Device::flex();
    let folder = fixtures().join("finetune");
    let batches = StateDict::load(&folder.join("batches.safetensors")).unwrap();
    let expected = StateDict::load(&folder.join("expected.safetensors")).unwrap();
    let batch = |name: &str| batches.get(name).unwrap();
    let steps = batch("images").shape()[0];
    let timesteps = batch("timesteps").to_i64().unwrap();
    let batch_size = batch("images").shape()[1];
    assert!(steps > 0);

    let model = pretrained(&device);
    let config = FinetuneConfig {
        iterations: steps as u64,
        learning_rate: 1e-3,
        projection: ProjectionPlacement::None,
        ..Default::default()
    };
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap();
    let prediction = PredictionType::Epsilon;
    let mut finetuner = Finetuner::new(&config, model.clone(), Some(&model), &schedule, prediction);

    for step in 0..steps {
        let t = &timesteps[step * batch_size..][..batch_size];
        let report = finetuner
            .step([MicroBatch {
                x_0: at_step(batch("images"), step, &device),
                eps: at_step(batch("noise"), step, &device),
                t: t.iter().map(|&t| t as usize).collect(),
            }])
            .unwrap();
        let found = [
            ("diffusion_loss", report.diffusion_loss),
            ("consistency_loss", report.consistency_loss.unwrap()),
            ("grad_norm", report.grad_norm),
            ("ema_decay", report.ema_decay.unwrap()),
        ];
        for (name, found) in found {
            let expected = f64::from(expected.get(name).unwrap().to_f32().unwrap()[step]);
            let difference = (found - expected).abs();
            assert!(difference < TOLERANCE, "step {step}, {name}: {found} is not {expected}");
        }
    }
    assert_parameters(finetuner.student(), &expected, "student.");
    assert_parameters(finetuner.ema().unwrap().model(), &expected, "ema.");
}
