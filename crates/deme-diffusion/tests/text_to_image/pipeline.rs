//! Pipeline folders in and out.

use super::{device, distance, model, small_config, values};
use burn::tensor::Tensor;
use deme_clip::{ClipError, ClipTextConfig, ClipTextModel};
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    AutoencoderKl, AutoencoderKlConfig, CheckpointError, PerBlock, ProjectionPlacement,
    PromptTokenizer, SchedulerConfig, TextToImageFolder, TextToImagePipeline,
    UNet2DConditionConfig, UNet2DConditionModel, load_conditional_unet, save_conditional_unet,
};
use deme_merge::{Dtype, StateDict, StateDictError, StoredTensor};
use deme_nn::{Init, map_parameters, to_state_dict};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A Stable Diffusion with everything but the vocabulary tiny.
pub fn tiny_configs() -> SingleFileConfigs {
    SingleFileConfigs {
        unet: UNet2DConditionConfig { in_channels: 4, out_channels: 4, ..small_config() },
        vae: AutoencoderKlConfig::from_json(
            r#"{"block_out_channels": [4, 8], "norm_num_groups": 2, "sample_size": 8,
                "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
                "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#,
        )
        .unwrap(),
        text_encoder: ClipTextConfig {
            hidden_size: 6,
            intermediate_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 8,
            ..ClipTextConfig::default()
        },
        ..SingleFileConfigs::default()
    }
}

pub fn tiny_pipeline(seed: u64) -> TextToImagePipeline {
    let configs = tiny_configs();
    let mut init = Init::new(seed, &device());
    TextToImagePipeline {
        unet: model(&configs.unet, seed),
        vae: Some(AutoencoderKl::new(&configs.vae, &mut init).unwrap()),
        text_encoder: ClipTextModel::new(&configs.text_encoder, &mut init).unwrap(),
        tokenizer: PromptTokenizer::published(8).unwrap(),
        scheduler: configs.scheduler,
    }
}

pub fn vae(pipeline: &TextToImagePipeline) -> &AutoencoderKl {
    pipeline.vae.as_ref().unwrap()
}

/// Hashes of the three networks' weights.
pub fn hashes(pipeline: &TextToImagePipeline) -> [String; 3] {
    [
        to_state_dict(&pipeline.unet).content_hash(),
        to_state_dict(vae(pipeline)).content_hash(),
        to_state_dict(&pipeline.text_encoder).content_hash(),
    ]
}

fn load(folder: &Path) -> Result<TextToImagePipeline, CheckpointError> {
    TextToImagePipeline::load(folder.to_str().unwrap(), &device())
}

fn saved() -> (TextToImagePipeline, tempfile::TempDir, PathBuf) {
    let (pipeline, parent) = (tiny_pipeline(1), tempfile::tempdir().unwrap());
    let folder = parent.path().join("model");
    pipeline.save(&folder).unwrap();
    (pipeline, parent, folder)
}

/// Changes a JSON file.
fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn as_f16(state: &StateDict) -> StateDict {
    let half = |tensor: &StoredTensor| {
        let values = tensor.to_f32().unwrap();
        StoredTensor::from_f32_as(Dtype::F16, tensor.shape().to_vec(), &values).unwrap()
    };
    state.iter().map(|(name, tensor)| (name.to_owned(), half(tensor))).collect()
}

#[test]
fn saved_and_loaded_is_the_same() {
    let (pipeline, _parent, folder) = saved();
    let loaded = load(&folder).unwrap();
    assert_eq!(hashes(&loaded), hashes(&pipeline));
    assert_eq!(loaded.unet.config(), pipeline.unet.config());
    assert_eq!(vae(&loaded).config(), vae(&pipeline).config());
    assert_eq!(loaded.text_encoder.config(), pipeline.text_encoder.config());
    assert_eq!(loaded.scheduler, pipeline.scheduler);
    let prompts = ["a red circle", "", "one two three four five six seven eight nine"];
    let encode = |pipeline: &TextToImagePipeline| pipeline.tokenizer.encode(&prompts).unwrap();
    assert_eq!(encode(&loaded), encode(&pipeline));
    assert_eq!(loaded.latent_shape(), Some([4, 4, 4]));
    assert!(TextToImageFolder::is_at(&folder));
    assert!(!TextToImageFolder::is_at(&folder.join("unet")));

    // Read from files and written again: the same files.
    let again = folder.with_file_name("again");
    loaded.save(&again).unwrap();
    for file in ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"] {
        let read = |folder: &Path| fs::read(folder.join("tokenizer").join(file)).unwrap();
        assert_eq!(read(&again), read(&folder), "{file}");
    }
}

#[test]
fn the_index_names_every_part_and_null_for_what_is_not_there() {
    let (_, _parent, folder) = saved();
    let text = fs::read_to_string(folder.join("model_index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(index["_class_name"], "StableDiffusionPipeline");
    for (part, entry) in [
        ("unet", json!(["diffusers", "UNet2DConditionModel"])),
        ("vae", json!(["diffusers", "AutoencoderKL"])),
        ("text_encoder", json!(["transformers", "CLIPTextModel"])),
        ("tokenizer", json!(["transformers", "CLIPTokenizer"])),
        ("scheduler", json!(["diffusers", "DDIMScheduler"])),
        ("safety_checker", json!([null, null])),
        ("feature_extractor", json!([null, null])),
        ("requires_safety_checker", json!(false)),
    ] {
        assert_eq!(index[part], entry, "{part}");
    }
}

#[test]
fn a_safety_checker_and_parts_that_are_null_are_left_alone() {
    let (pipeline, _parent, folder) = saved();
    edit(folder.join("model_index.json"), |index| {
        index["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
        index["feature_extractor"] = json!(["transformers", "CLIPFeatureExtractor"]);
        index["image_encoder"] = json!([null, null]);
        index["controlnet"] = Value::Null;
        index["requires_safety_checker"] = true.into();
    });
    fs::create_dir(folder.join("safety_checker")).unwrap();
    assert_eq!(hashes(&load(&folder).unwrap()), hashes(&pipeline));
}

#[test]
fn half_precision_variants_are_read() {
    let (pipeline, _parent, folder) = saved();
    for (part, stem) in [
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ] {
        let path = folder.join(part).join(format!("{stem}.safetensors"));
        let state = StateDict::load(&path).unwrap();
        as_f16(&state).save(&path.with_file_name(format!("{stem}.fp16.safetensors"))).unwrap();
        drop(state);
        fs::remove_file(path).unwrap();
    }
    let loaded = load(&folder).unwrap();
    let weight = |pipeline: &TextToImagePipeline| {
        [
            values(pipeline.unet.conv_in.weight.val()),
            values(vae(pipeline).decoder.conv_in.weight.val()),
            values(pipeline.text_encoder.text_model.embeddings.position_embedding.weight.val()),
        ]
    };
    for (found, expected) in weight(&loaded).iter().zip(weight(&pipeline)) {
        let off = distance(found, &expected);
        assert!(off > 0.0 && off < 1e-3, "{off}");
    }
}

#[test]
fn attention_under_the_names_of_old_versions_is_read() {
    let (pipeline, _parent, folder) = saved();
    let path = folder.join("vae/diffusion_pytorch_model.safetensors");
    let old = StateDict::load(&path).unwrap();
    let mut renamed = 0;
    let old: StateDict = old
        .iter()
        .map(|(name, tensor)| {
            let mut old = name.to_owned();
            for (to, from) in
                [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
            {
                old = old.replace(to, from);
            }
            renamed += usize::from(old != name);
            (old, StoredTensor::from_f32(tensor.shape().to_vec(), tensor.to_f32().unwrap()))
        })
        .collect();
    assert_eq!(renamed, 16);
    old.save(&path).unwrap();
    assert_eq!(hashes(&load(&folder).unwrap()), hashes(&pipeline));
}

#[test]
fn projections_on_hidden_states_are_kept_and_folded_ones_folded() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("model");
    let mut init = Init::new(5, &device());
    for placement in [ProjectionPlacement::Block, ProjectionPlacement::Folded] {
        let mut pipeline = tiny_pipeline(2);
        let unet = pipeline.unet.with_projection(placement).unwrap();
        pipeline.unet = map_parameters(unet, &mut |name, tensor| {
            let [entries] = tensor.dims();
            match name.starts_with("projection.") {
                true => tensor + init.normal([entries], 0.3),
                false => tensor,
            }
        });
        pipeline.save(&folder).unwrap();
        let loaded = load(&folder).unwrap();
        let placed = loaded.unet.config().channel_projection;
        match placement {
            ProjectionPlacement::Folded => assert_eq!(placed, ProjectionPlacement::None),
            _ => assert_eq!(placed, placement),
        }
        let mut init = Init::new(6, &device());
        let (x, states) = (init.normal([1, 4, 4, 4], 1.0), init.normal([1, 8, 6], 1.0));
        let output = |pipeline: &TextToImagePipeline| {
            values(pipeline.unet.forward(x.clone(), &[3], states.clone()))
        };
        assert!(distance(&output(&loaded), &output(&pipeline)) < 1e-5);
    }
}

#[test]
fn merged_weights_are_written_as_they_are() {
    let (pipeline, _parent, folder) = saved();
    let merged = as_f16(&to_state_dict(&tiny_pipeline(7).unet));
    pipeline.save_with_unet(&folder, pipeline.unet.config(), &merged).unwrap();
    let found = StateDict::load(&folder.join("unet")).unwrap();
    assert_eq!(found.content_hash(), merged.content_hash());
    let [_, vae, text_encoder] = hashes(&load(&folder).unwrap());
    assert_eq!([&vae, &text_encoder], [&hashes(&pipeline)[1], &hashes(&pipeline)[2]]);

    let mut broken = merged;
    broken.insert("nan".into(), StoredTensor::from_f32(vec![1], vec![f32::NAN]));
    let error = pipeline.save_with_unet(&folder, pipeline.unet.config(), &broken).unwrap_err();
    assert!(matches!(
        &error,
        CheckpointError::Weights { source: StateDictError::NonFinite { .. }, .. }
    ));
    assert!(load(&folder).is_ok(), "what was there before is there still");
}

#[test]
fn a_missing_part_is_named_with_its_file_and_what_to_do() {
    for (part, file) in [
        ("model index", "model_index.json"),
        ("unet", "unet/config.json"),
        ("vae", "vae/config.json"),
        ("text_encoder", "text_encoder/config.json"),
        ("scheduler", "scheduler/scheduler_config.json"),
        ("tokenizer", "tokenizer/"),
    ] {
        let (_, _parent, folder) = saved();
        let path = folder.join(file);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        let error = load(&folder).unwrap_err();
        let CheckpointError::MissingPart { folder: found, part: named, file: missing } = &error
        else {
            panic!("{part}: {error}");
        };
        assert_eq!((found, *named, missing.as_str()), (&folder, part, file));
        assert!(error.to_string().contains("download"), "{error}");
    }
}

#[test]
fn an_index_of_another_pipeline_is_refused() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 5] = [
        (|i| i["_class_name"] = "StableDiffusionXLPipeline".into(), "StableDiffusionXLPipeline"),
        (|i| i["unet"][1] = "UNet2DModel".into(), "UNet2DModel"),
        (|i| i["unet"] = json!([null, null]), "`unet` is a `null`"),
        (|i| i["text_encoder"][1] = "T5EncoderModel".into(), "T5EncoderModel"),
        (|i| i["text_encoder_2"] = json!(["transformers", "CLIPTextModel"]), "text_encoder_2"),
    ];
    for (change, named) in changes {
        let (_, _parent, folder) = saved();
        edit(folder.join("model_index.json"), change);
        let error = load(&folder).unwrap_err();
        assert!(matches!(&error, CheckpointError::ModelIndex { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let (_, _parent, folder) = saved();
    fs::write(folder.join("model_index.json"), "[").unwrap();
    assert!(matches!(load(&folder), Err(CheckpointError::ModelIndex { .. })));
}

#[test]
fn a_wrong_part_is_an_error_that_names_it() {
    let error = |change: &dyn Fn(&Path)| {
        let (_, _parent, folder) = saved();
        change(&folder);
        load(&folder).unwrap_err()
    };
    let found =
        error(&|f| edit(f.join("unet/config.json"), |c| c["attention_type"] = "gated".into()));
    assert!(
        matches!(&found, CheckpointError::UNetConfig { path, .. } if path.ends_with("unet/config.json"))
    );
    let found = error(&|f| edit(f.join("vae/config.json"), |c| c["shift_factor"] = 1.0.into()));
    assert!(
        matches!(&found, CheckpointError::VaeConfig { path, .. } if path.ends_with("vae/config.json"))
    );
    let found = error(&|f| {
        edit(f.join("scheduler/scheduler_config.json"), |c| c["_class_name"] = 1.into())
    });
    assert!(matches!(found, CheckpointError::SchedulerConfig { .. }));
    let found =
        error(&|f| edit(f.join("text_encoder/config.json"), |c| c["model_type"] = "t5".into()));
    assert!(matches!(&found, CheckpointError::TextEncoder { folder: Some(folder), source }
        if folder.ends_with("text_encoder") && matches!(**source, ClipError::NotClipText { .. })));
    let found =
        error(&|f| fs::remove_file(f.join("vae/diffusion_pytorch_model.safetensors")).unwrap());
    assert!(
        matches!(&found, CheckpointError::Weights { folder, source: StateDictError::EmptyFolder { .. } }
        if folder.ends_with("vae"))
    );
    let found =
        error(&|f| edit(f.join("unet/config.json"), |c| c["cross_attention_dim"] = 7.into()));
    assert!(matches!(&found, CheckpointError::Fit { folder, .. } if folder.ends_with("unet")));
    assert!(found.to_string().contains("attn2.to_k.weight"), "{found}");

    let found = error(&|f| {
        for file in ["tokenizer.json", "vocab.json", "merges.txt"] {
            fs::remove_file(f.join("tokenizer").join(file)).unwrap();
        }
    });
    assert!(
        matches!(&found, CheckpointError::TokenizerFiles { reason, .. } if reason.contains("merges.txt"))
    );
    let found = error(&|f| {
        edit(f.join("tokenizer/tokenizer_config.json"), |c| c["pad_token"] = "<no>".into())
    });
    assert!(
        matches!(&found, CheckpointError::TokenizerFiles { reason, .. } if reason.contains("`<no>`"))
    );
    let found = error(&|f| fs::write(f.join("tokenizer/tokenizer.json"), "{}").unwrap());
    assert!(
        matches!(&found, CheckpointError::Tokenizer { folder: Some(folder), .. } if folder.ends_with("tokenizer"))
    );
}

#[test]
fn parts_of_different_models_are_refused() {
    let three = UNet2DConditionConfig { in_channels: 3, out_channels: 3, ..small_config() };
    let wider = UNet2DConditionConfig {
        cross_attention_dim: PerBlock::All(7),
        in_channels: 4,
        out_channels: 4,
        ..small_config()
    };
    for (unet, words) in [
        (three, ["gives 3 channels", "latents have 4"]),
        (wider, ["width 7 (cross_attention_dim)", "width 6 (hidden_size)"]),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        let mixed = TextToImagePipeline { unet: model(&unet, 1), ..tiny_pipeline(1) };
        mixed.save(&folder).unwrap();
        let error = load(&folder).unwrap_err();
        assert!(matches!(&error, CheckpointError::PartsDiffer { path, .. } if *path == folder));
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error}"));
    }
}

#[test]
fn nothing_and_a_file_of_nothing_are_refused() {
    let error = load(Path::new("no/such/model")).unwrap_err();
    assert!(matches!(error, CheckpointError::NotFound { .. }));
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = TextToImageFolder::open(file.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NotAFolder { .. }));
}

#[test]
fn a_folder_with_something_of_somebody_else_is_not_overwritten() {
    let (pipeline, _parent, folder) = saved();
    pipeline.save(&folder).unwrap();
    let notes = folder.join("vae/notes.txt");
    fs::write(&notes, "mine").unwrap();
    let error = pipeline.save(&folder).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Occupied { found, .. } if *found == notes),
        "{error}"
    );
    assert_eq!(fs::read_to_string(notes).unwrap(), "mine");
}

#[test]
fn prompts_are_padded_with_the_end_token_or_with_what_the_folder_says() {
    let (pipeline, _parent, folder) = saved();
    let [start, end] = [49406, 49407];
    let ids = |tokenizer: &PromptTokenizer| tokenizer.encode(&["!"]).unwrap().ids;
    let exclamation = ids(&pipeline.tokenizer)[0][1];
    assert_eq!(ids(&pipeline.tokenizer), [[start, exclamation, end, end, end, end, end, end]]);
    assert_eq!(pipeline.tokenizer.pad(), end);

    // As Stable Diffusion 2 has it.
    edit(folder.join("tokenizer/tokenizer_config.json"), |config| {
        config["pad_token"] = json!({"content": "!", "lstrip": false});
    });
    let loaded = PromptTokenizer::load(&folder.join("tokenizer"), 8).unwrap();
    assert_eq!(
        (loaded.pad(), ids(&loaded)),
        (0, vec![vec![start, exclamation, end, 0, 0, 0, 0, 0]])
    );
    assert_eq!((loaded.context_length(), loaded.vocab_size()), (8, 49408));

    // The older of the two files says it too.
    edit(folder.join("tokenizer/tokenizer_config.json"), |config| {
        config["pad_token"] = Value::Null
    });
    fs::write(folder.join("tokenizer/special_tokens_map.json"), r#"{"pad_token": "!"}"#).unwrap();
    assert_eq!(PromptTokenizer::load(&folder.join("tokenizer"), 8).unwrap().pad(), 0);
}

#[test]
fn prompts_become_hidden_states_of_the_layer_asked_for() {
    let pipeline = tiny_pipeline(1);
    let prompts = ["a red circle", "one two three four five six seven eight nine"];
    let encoded = pipeline.encode_prompts(&prompts, 0).unwrap();
    assert_eq!(encoded.hidden_states.dims(), [2, 8, 6]);
    assert_eq!(encoded.truncated, [false, true]);
    let earlier = pipeline.encode_prompts(&prompts, 1).unwrap().hidden_states;
    assert!(distance(&values(earlier), &values(encoded.hidden_states)) > 1e-3);
    let error = pipeline.encode_prompts(&prompts, 3).unwrap_err();
    assert!(matches!(
        error,
        CheckpointError::TextEncoder { folder: None, source }
        if matches!(*source, ClipError::SkippedLayers { .. })
    ));
}

#[test]
fn images_are_decoded_from_scaled_latents_and_clamped() {
    let pipeline = tiny_pipeline(1);
    let latents: Tensor<4> = Init::new(3, &device()).normal([2, 4, 3, 2], 0.2);
    let images = pipeline.images(latents.clone());
    assert_eq!(images.dims(), [2, 3, 6, 4]);
    let unclamped = vae(&pipeline).decode(latents / vae(&pipeline).config().scaling_factor);
    assert!(distance(&values(images), &values(unclamped.clamp(-1.0, 1.0))) < 1e-6);
    let large = values(pipeline.images(Tensor::full([1, 4, 2, 2], 1e3, &device())));
    assert!(large.iter().all(|value| value.abs() <= 1.0));
}

/// Three channels in and out.
fn pipeline_of_pixels(seed: u64) -> TextToImagePipeline {
    let unet = UNet2DConditionConfig { in_channels: 3, out_channels: 3, ..small_config() };
    TextToImagePipeline { unet: model(&unet, seed), vae: None, ..tiny_pipeline(seed) }
}

#[test]
fn a_pipeline_without_an_autoencoder_makes_pixels() {
    let (pipeline, parent) = (pipeline_of_pixels(1), tempfile::tempdir().unwrap());
    let folder = parent.path().join("model");
    // In the place of one with an autoencoder.
    tiny_pipeline(2).save(&folder).unwrap();
    pipeline.save(&folder).unwrap();
    assert!(!folder.join("vae").exists());
    let text = fs::read_to_string(folder.join("model_index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(index["vae"], json!([null, null]));

    let loaded = load(&folder).unwrap();
    assert!(loaded.vae.is_none());
    let of = |pipeline: &TextToImagePipeline| {
        [
            to_state_dict(&pipeline.unet).content_hash(),
            to_state_dict(&pipeline.text_encoder).content_hash(),
        ]
    };
    assert_eq!(of(&loaded), of(&pipeline));
    assert_eq!(loaded.latent_shape(), Some([3, 4, 4]));
    let pixels = Tensor::<4>::from_floats([[[[0.3, -0.9], [1.5, -7.0]]]], &device());
    assert_eq!(values(loaded.images(pixels)), [0.3, -0.9, 1.0, -1.0]);

    // What other programs write for "none".
    edit(folder.join("model_index.json"), |index| index["vae"] = Value::Null);
    assert!(load(&folder).unwrap().vae.is_none());
    // A promised autoencoder that is not there is still an error.
    edit(folder.join("model_index.json"), |index| {
        index["vae"] = json!(["diffusers", "AutoencoderKL"])
    });
    let error = load(&folder).unwrap_err();
    assert!(matches!(&error, CheckpointError::MissingPart { part: "vae", .. }), "{error}");
}

#[test]
fn a_unet_alone_is_saved_and_loaded_with_its_projections() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("expert");
    let mut init = Init::new(5, &device());
    for placement in
        [ProjectionPlacement::Block, ProjectionPlacement::Folded, ProjectionPlacement::None]
    {
        let unet = tiny_pipeline(2).unet.with_projection(placement).unwrap();
        let unet = map_parameters(unet, &mut |name, tensor| {
            let [entries] = tensor.dims();
            match name.starts_with("projection.") {
                true => tensor + init.normal([entries], 0.3),
                false => tensor,
            }
        });
        save_conditional_unet(&folder, &unet).unwrap();
        let mut files: Vec<_> = fs::read_dir(folder.join("unet"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["config.json", "diffusion_pytorch_model.safetensors"]);
        let loaded = load_conditional_unet(&folder, &device()).unwrap();
        let kept = match placement {
            ProjectionPlacement::Folded => ProjectionPlacement::None,
            kept => kept,
        };
        assert_eq!(loaded.config().channel_projection, kept);
        let mut init = Init::new(6, &device());
        let (x, states) = (init.normal([1, 4, 4, 4], 1.0), init.normal([1, 8, 6], 1.0));
        let output =
            |unet: &UNet2DConditionModel| values(unet.forward(x.clone(), &[3], states.clone()));
        assert!(distance(&output(&loaded), &output(&unet)) < 1e-5);
    }
    // The folder of the UNet itself does too, and that of a whole pipeline.
    assert!(load_conditional_unet(&folder.join("unet"), &device()).is_ok());
    let (pipeline, _parent, whole) = saved();
    let found = load_conditional_unet(&whole, &device()).unwrap();
    assert_eq!(to_state_dict(&found).content_hash(), hashes(&pipeline)[0]);
}

#[test]
fn a_unet_alone_that_is_not_there_or_would_bury_a_pipeline_is_an_error() {
    let (pipeline, parent, whole) = saved();
    let error = save_conditional_unet(&whole, &pipeline.unet).unwrap_err();
    assert!(matches!(&error, CheckpointError::Occupied { .. }), "{error}");
    assert_eq!(hashes(&load(&whole).unwrap()), hashes(&pipeline));

    let at = |folder: &Path| load_conditional_unet(folder, &device()).map(|_| ()).unwrap_err();
    assert!(matches!(at(&parent.path().join("none")), CheckpointError::NotFound { .. }));
    assert!(matches!(at(parent.path()), CheckpointError::NoUNet { .. }));
    edit(whole.join("unet/config.json"), |config| config["cross_attention_dim"] = 7.into());
    assert!(matches!(at(&whole), CheckpointError::Fit { .. }));

    let mut broken = pipeline.unet;
    broken.conv_in.weight = broken.conv_in.weight.map(|weight| weight.mul_scalar(f32::INFINITY));
    let error = save_conditional_unet(&parent.path().join("nan"), &broken).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::Weights { folder, .. } if folder.ends_with("nan/unet"))
    );
    assert!(!parent.path().join("nan").exists());
}

#[test]
fn the_schedule_of_a_folder_is_its_own() {
    let (_, _parent, folder) = saved();
    edit(folder.join("scheduler/scheduler_config.json"), |config| {
        config["steps_offset"] = 0.into()
    });
    let files = TextToImageFolder::open(&folder).unwrap();
    let expected = SchedulerConfig { steps_offset: 0, ..tiny_configs().scheduler };
    assert_eq!(files.scheduler().unwrap(), expected);
    assert_eq!(files.unet_config().unwrap(), tiny_configs().unet);
    assert_eq!(files.unet_weights().unwrap().content_hash(), hashes(&tiny_pipeline(1))[0]);
    assert_eq!((files.folder(), files.unet_folder()), (folder.as_path(), folder.join("unet")));
}
