//! Finetuning against the reference's numbers, step by step, from the folder `DEME_FIXTURES` names.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use deme_decouple::{FinetuneConfig, Finetuner, MicroBatch, StepReport};
use deme_diffusion::{
    NoiseSchedule, NoiseScheduleConfig, PredictionType, ProjectionPlacement, UNet2DConfig,
    UNet2DModel, standard_normal,
};
use deme_merge::{StateDict, StoredTensor};
use deme_nn::{Init, load_state_dict, to_state_dict};

const TOLERANCE: f64 = 1e-4;
const ROUNDING_MARGIN: f64 = 4.0;

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

/// The reference's batches, one per step.
fn micro_batches(device: &Device) -> Vec<MicroBatch> {
    let batches = StateDict::load(&fixtures().join("finetune/batches.safetensors")).unwrap();
    let [images, noise, timesteps] =
        ["images", "noise", "timesteps"].map(|name| batches.get(name).unwrap());
    let [steps, batch_size] = images.shape()[..2] else { panic!("images are [steps, B, C, H, W]") };
    let timesteps = timesteps.to_i64().unwrap();
    let batches = (0..steps).map(|step| MicroBatch {
        x_0: at_step(images, step, device),
        eps: at_step(noise, step, device),
        t: timesteps[step * batch_size..][..batch_size].iter().map(|&t| t as usize).collect(),
        condition: (),
    });
    batches.collect()
}

/// Takes one step per batch, as the reference did.
fn train(batches: Vec<MicroBatch>, device: &Device) -> (Finetuner, Vec<StepReport>) {
    let model = pretrained(device);
    let config = FinetuneConfig {
        iterations: batches.len() as u64,
        learning_rate: 1e-3,
        projection: ProjectionPlacement::None,
        ..Default::default()
    };
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap();
    let prediction = PredictionType::Epsilon;
    let mut finetuner = Finetuner::new(&config, model.clone(), Some(&model), &schedule, prediction);
    let reports = batches.into_iter().map(|batch| finetuner.step([batch]).unwrap()).collect();
    (finetuner, reports)
}

/// The same training on pictures whose pixels are off by one unit in the last place, up or down.
fn train_rounded_otherwise(seed: u64, device: &Device) -> Finetuner {
    let mut batches = micro_batches(device);
    for (step, batch) in batches.iter_mut().enumerate() {
        let shape = batch.x_0.dims();
        let signs = standard_normal(seed, step as u64, shape.iter().product());
        let factors = signs.into_iter().map(|s| 1.0 + f32::EPSILON.copysign(s)).collect::<Vec<_>>();
        let factors = Tensor::from_data(TensorData::new(factors, shape), device);
        batch.x_0 = batch.x_0.clone() * factors;
    }
    train(batches, device).0
}

fn values(state: &StateDict, name: &str) -> Vec<f32> {
    state.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
}

/// Compares every parameter with `{prefix}{name}`.
///
/// AdamW divides each entry's gradient by its own size, so where the gradient is nothing but rounding (a
/// bias on the attention's keys, which softmax ignores; an entry whose sum happens to cancel) a step goes
/// by up to the learning rate into a direction that no two programs agree on. How far rounding carries
/// each entry is measured on `others`, trained on pictures that differ in the last bit; that much, with a
/// margin, is allowed on top of the tolerance, and it may be noticeable for one entry in a thousand only.
fn assert_parameters(
    model: &UNet2DModel,
    others: &[&UNet2DModel],
    expected: &StateDict,
    prefix: &str,
) {
    let found = to_state_dict(model);
    let others: Vec<StateDict> = others.iter().map(|model| to_state_dict(*model)).collect();
    let names = expected.names().filter_map(|name| name.strip_prefix(prefix));
    assert_eq!(names.collect::<Vec<_>>(), found.names().collect::<Vec<_>>());
    assert!(!found.is_empty());

    let mut undetermined = 0;
    for name in found.names() {
        let full_name = format!("{prefix}{name}");
        let (found, expected) = (values(&found, name), values(expected, &full_name));
        let others: Vec<Vec<f32>> = others.iter().map(|other| values(other, name)).collect();
        assert_eq!(found.len(), expected.len(), "{full_name}");
        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let by_rounding = others.iter().map(|other| f64::from((other[i] - found).abs()));
            let allowed = TOLERANCE + ROUNDING_MARGIN * by_rounding.fold(0.0, f64::max);
            undetermined += usize::from(allowed > 2.0 * TOLERANCE);
            let difference = f64::from((found - expected).abs());
            assert!(
                difference < allowed,
                "{full_name}[{i}]: {found} is not {expected} (off by {difference:e}, allowed {allowed:e})"
            );
        }
    }
    let share = undetermined as f64 / found.num_parameters() as f64;
    assert!(share < 1e-3, "{share} of the entries are decided by rounding");
}

#[test]
fn one_experts_finetuning_step_by_step() {
    let device = Device::flex();
    let expected = StateDict::load(&fixtures().join("finetune/expected.safetensors")).unwrap();
    let batches = micro_batches(&device);
    assert!(!batches.is_empty());
    let (finetuner, reports) = train(batches, &device);

    for name in ["diffusion_loss", "consistency_loss", "grad_norm", "ema_decay"] {
        let expected = values(&expected, name);
        assert_eq!(expected.len(), reports.len(), "{name}");
        for (step, (report, expected)) in reports.iter().zip(expected).enumerate() {
            let found = match name {
                "diffusion_loss" => report.diffusion_loss,
                "consistency_loss" => report.consistency_loss.unwrap(),
                "grad_norm" => report.grad_norm,
                _ => report.ema_decay.unwrap(),
            };
            let difference = (found - f64::from(expected)).abs();
            assert!(difference < TOLERANCE, "step {step}, {name}: {found} is not {expected}");
        }
    }

    let others = [1, 2, 3].map(|seed| train_rounded_otherwise(seed, &device));
    let students = others.each_ref().map(|other| other.student());
    assert_parameters(finetuner.student(), &students, &expected, "student.");
    let averages = others.each_ref().map(|other| other.ema().unwrap().model());
    assert_parameters(finetuner.ema().unwrap().model(), &averages, &expected, "ema.");
}
