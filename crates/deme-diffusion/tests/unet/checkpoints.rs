//! Diffusers folders in and out.

use super::reference::cases;
use super::{batch, device, model, small_config, tensor, values};
use deme_diffusion::checkpoint::{
    CheckpointError, PipelineFolder, load_pipeline, resolve, save_pipeline, save_pipeline_weights,
};
use deme_diffusion::hub::{HubError, ModelKind};
use deme_diffusion::scheduler_config::{SchedulerClass, SchedulerConfig};
use deme_diffusion::{PredictionType, ProjectionPlacement, UNet2DConfig, UNet2DModel};
use deme_merge::{StateDict, StateDictError, StoredTensor};
use deme_nn::{LoadError, parameter_shapes, to_state_dict};
use std::fs;
use std::path::Path;

fn load(folder: &Path) -> Result<deme_diffusion::checkpoint::LoadedModel, CheckpointError> {
    load_pipeline(folder.to_str().unwrap(), &device())
}

fn hash(unet: &UNet2DModel) -> String {
    to_state_dict(unet).content_hash()
}

fn saved(folder: &Path) -> UNet2DModel {
    let unet = model(&small_config(), 1);
    save_pipeline(folder, &unet, &SchedulerConfig::default()).unwrap();
    unet
}

/// Writes a flat folder of a config and weights.
fn flat(folder: &Path, config: &UNet2DConfig, state: &StateDict) {
    fs::write(folder.join("config.json"), config.to_json()).unwrap();
    state.save(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_is_loaded_exactly() {
    let folder = tempfile::tempdir().unwrap();
    for (i, case) in cases().into_iter().enumerate() {
        let loaded = load(&case.folder).unwrap();
        assert!(loaded.scheduler.is_none(), "these folders hold a UNet alone");
        let scheduler = SchedulerConfig {
            class: SchedulerClass::Ddim,
            prediction_type: PredictionType::VPrediction,
            ..SchedulerConfig::default()
        };
        let copy = folder.path().join("runs").join(i.to_string());
        save_pipeline(&copy, &loaded.unet, &scheduler).unwrap();
        let again = load(&copy).unwrap();
        assert_eq!(again.scheduler.unwrap(), scheduler);
        assert_eq!(again.unet.config(), loaded.unet.config());
        assert_eq!(hash(&again.unet), hash(&loaded.unet));
        let x = tensor(case.io.get("sample").unwrap());
        let outputs = |unet: &UNet2DModel| values(unet.forward(x.clone(), &case.timesteps()));
        assert_eq!(outputs(&again.unet), outputs(&loaded.unet));
    }
}

#[test]
fn the_folder_has_the_layout_of_a_pipeline() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    saved(&folder);
    assert_eq!(entries(parent.path()), ["model"], "nothing temporary is left");
    assert_eq!(entries(&folder), ["model_index.json", "scheduler", "unet"]);
    assert_eq!(
        entries(&folder.join("unet")),
        ["config.json", "diffusion_pytorch_model.safetensors"]
    );
    assert_eq!(entries(&folder.join("scheduler")), ["scheduler_config.json"]);
    let index = fs::read_to_string(folder.join("model_index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["_class_name"], "DDPMPipeline");
    assert_eq!(index["unet"], serde_json::json!(["diffusers", "UNet2DModel"]));
    assert_eq!(index["scheduler"], serde_json::json!(["diffusers", "DDPMScheduler"]));
}

#[test]
fn the_unet_folder_alone_and_a_flat_folder_load_too() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let unet = saved(&folder);
    assert_eq!(hash(&load(&folder.join("unet")).unwrap().unet), hash(&unet));
    let from = folder.join("scheduler").join("scheduler_config.json");
    fs::copy(from, folder.join("unet").join("scheduler_config.json")).unwrap();
    assert!(load(&folder.join("unet")).unwrap().scheduler.is_some());
}

#[test]
fn sharded_weights_load() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let unet = saved(&folder);
    let state = to_state_dict(&unet);
    let weights = folder.join("unet");
    fs::remove_file(weights.join("diffusion_pytorch_model.safetensors")).unwrap();
    state.save_sharded(&weights, "diffusion_pytorch_model", state.num_bytes() / 3).unwrap();
    assert!(entries(&weights).len() > 3, "there is more than one shard");
    assert_eq!(hash(&load(&folder).unwrap().unet), hash(&unet));
}

#[test]
fn attention_under_its_old_names_loads() {
    let folder = tempfile::tempdir().unwrap();
    let unet = model(&small_config(), 1);
    let mut old = StateDict::new();
    for (name, stored) in to_state_dict(&unet).iter() {
        let old_name =
            [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
                .iter()
                .fold(name.to_owned(), |name, (new, old)| name.replace(new, old));
        // As 1x1 convolutions, which some old checkpoints hold.
        let convolution = old_name != name && name.ends_with(".weight");
        let trailing: &[usize] = if convolution { &[1, 1] } else { &[] };
        let shape = [stored.shape(), trailing].concat();
        old.insert(old_name, StoredTensor::from_f32(shape, stored.to_f32().unwrap()));
    }
    assert!(old.names().any(|name| name.ends_with("attentions.0.proj_attn.weight")));
    flat(folder.path(), unet.config(), &old);
    assert_eq!(hash(&load(folder.path()).unwrap().unet), hash(&unet));
}

#[test]
fn block_projections_are_kept_and_noted() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let unet = model(&small_config(), 1).with_projection(ProjectionPlacement::Block).unwrap();
    save_pipeline(&folder, &unet, &SchedulerConfig::default()).unwrap();
    let text = fs::read_to_string(folder.join("unet").join("config.json")).unwrap();
    assert!(text.contains(r#""channel_projection": "block""#), "{text}");
    let again = load(&folder).unwrap().unet;
    assert_eq!(again.config().channel_projection, ProjectionPlacement::Block);
    assert_eq!(hash(&again), hash(&unet));
}

#[test]
fn folded_projections_vanish_on_saving() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let config = small_config();
    let unet = model(&config, 1).with_projection(ProjectionPlacement::Folded).unwrap();
    let unet = deme_nn::map_parameters(unet, &mut |name, parameter| {
        if name.starts_with("projection.") { parameter * 1.5 } else { parameter }
    });
    save_pipeline(&folder, &unet, &SchedulerConfig::default()).unwrap();
    let again = load(&folder).unwrap().unet;
    assert_eq!(parameter_shapes(&again), parameter_shapes(&model(&config, 0)));
    let (x, t) = batch(&config, 8, 2);
    let (before, after) = (values(unet.forward(x.clone(), &t)), values(again.forward(x, &t)));
    assert!(super::distance(&before, &after) < 1e-5);
}

#[test]
fn merged_weights_are_saved_without_a_network() {
    let parent = tempfile::tempdir().unwrap();
    let (first, second) = (parent.path().join("first"), parent.path().join("second"));
    let unet = saved(&first);
    let files = PipelineFolder::open(&first).unwrap();
    let (config, weights) = (files.unet_config().unwrap(), files.weights().unwrap());
    let scheduler = files.scheduler().unwrap().unwrap();
    save_pipeline_weights(&second, &config, &weights, &scheduler).unwrap();
    assert_eq!(hash(&load(&second).unwrap().unet), hash(&unet));
}

#[test]
fn an_earlier_model_is_replaced_and_anything_else_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    saved(&folder);
    let other = model(&small_config(), 2);
    save_pipeline(&folder, &other, &SchedulerConfig::default()).unwrap();
    assert_eq!(hash(&load(&folder).unwrap().unet), hash(&other));
    assert_eq!(entries(parent.path()), ["model"]);

    let notes = folder.join("unet").join("notes.txt");
    fs::write(&notes, "mine").unwrap();
    let error = save_pipeline(&folder, &other, &SchedulerConfig::default()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Occupied { found, .. } if *found == notes),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    assert_eq!(hash(&load(&folder).unwrap().unet), hash(&other));
}

#[test]
fn what_a_killed_writer_left_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let left = parent.path().join(".model.new.deme.tmp");
    fs::create_dir_all(left.join("unet")).unwrap();
    fs::write(left.join("unet").join("half"), "half").unwrap();
    let unet = saved(&parent.path().join("model"));
    assert_eq!(entries(parent.path()), ["model"]);
    assert_eq!(hash(&load(&parent.path().join("model")).unwrap().unet), hash(&unet));
}

#[test]
fn a_place_that_cannot_be_written_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    let unet = model(&small_config(), 1);
    let error = save_pipeline(&file.join("model"), &unet, &SchedulerConfig::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    let error = save_pipeline(&file, &unet, &SchedulerConfig::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Occupied { .. }), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_missing_folder_is_an_error() {
    let error = load(Path::new("no/such/folder")).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::NotFound { path } if path == Path::new("no/such/folder"))
    );
}

#[test]
fn a_file_is_no_folder() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    assert!(
        matches!(load(&file).unwrap_err(), CheckpointError::NotAFolder { path } if path == file)
    );
}

#[test]
fn a_folder_without_a_unet_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NoUNet { folder: f } if f == folder.path()));
}

#[test]
fn a_folder_without_weights_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), small_config().to_json()).unwrap();
    let error = load(folder.path()).unwrap_err();
    let source = |error: &CheckpointError| {
        matches!(error, CheckpointError::Weights { source: StateDictError::EmptyFolder { .. }, .. })
    };
    assert!(source(&error), "{error}");
}

#[test]
fn a_config_of_another_network_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    fs::write(&config, r#"{"_class_name": "AutoencoderKL"}"#).unwrap();
    let error = load(folder.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::UNetConfig { path, .. } if *path == config));
    assert!(error.to_string().contains("AutoencoderKL"), "{error}");
}

#[test]
fn a_scheduler_config_that_cannot_be_used_is_an_error_that_names_the_file() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    saved(&folder);
    let config = folder.join("scheduler").join("scheduler_config.json");
    fs::write(&config, r#"{"_class_name": "KarrasVeScheduler"}"#).unwrap();
    let error = load(&folder).unwrap_err();
    assert!(matches!(&error, CheckpointError::SchedulerConfig { path, .. } if *path == config));
    assert!(error.to_string().contains("KarrasVeScheduler"), "{error}");
}

#[test]
fn weights_that_do_not_fit_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let unet = model(&small_config(), 1);
    let mut state = to_state_dict(&unet);
    let all = state.len();
    state.remove("conv_in.bias").unwrap();
    state.insert("extra.weight".into(), StoredTensor::from_f32(vec![1], vec![0.0]));
    state.insert("conv_out.bias".into(), StoredTensor::from_f32(vec![3], vec![0.0; 3]));
    flat(folder.path(), unet.config(), &state);
    let error = load(folder.path()).unwrap_err();
    let CheckpointError::Fit { source, .. } = &error else { panic!("{error}") };
    let LoadError::Mismatch { applied, missing, unused, wrong_shape } = &**source else {
        panic!("{error}")
    };
    assert_eq!(*applied, all - 2);
    assert_eq!(
        (missing.as_slice(), unused.as_slice()),
        (&["conv_in.bias".to_owned()][..], &["extra.weight".to_owned()][..])
    );
    assert_eq!(
        (wrong_shape[0].name.as_str(), wrong_shape[0].found.as_slice()),
        ("conv_out.bias", &[3][..])
    );
    let text = error.to_string();
    for name in ["conv_in.bias", "extra.weight", "conv_out.bias"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn nan_weights_are_refused_by_name_in_and_out() {
    let folder = tempfile::tempdir().unwrap();
    let unet = model(&small_config(), 1);
    let mut state = to_state_dict(&unet);
    state.insert("conv_out.bias".into(), StoredTensor::from_f32(vec![2], vec![0.0, f32::NAN]));
    flat(folder.path(), unet.config(), &state);
    let copy = folder.path().join("copy");
    let errors = [
        load(folder.path()).unwrap_err(),
        save_pipeline_weights(&copy, unet.config(), &state, &SchedulerConfig::default())
            .unwrap_err(),
    ];
    for error in errors {
        let names = matches!(&error, CheckpointError::Weights {
            source: StateDictError::NonFinite { name, index: 1, .. }, .. } if name == "conv_out.bias");
        assert!(names, "{error}");
    }
    assert!(!copy.exists());
}

#[test]
fn sources_are_paths_or_models_of_the_hub() {
    assert_eq!(resolve("some/folder", ModelKind::Diffusion).unwrap(), Path::new("some/folder"));
    let error = resolve("hub:nobody", ModelKind::Encoder).unwrap_err();
    assert!(matches!(error, CheckpointError::Hub(HubError::Name { .. })), "{error}");
}
