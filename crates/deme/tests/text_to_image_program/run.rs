//! `deme run` on captions: from scratch on pixels, and a given model on latents.

use std::path::Path;

use crate::support::{
    deme, fail_with, files, run_tiny, small_clip, succeed, tiny_recipe, tiny_text_to_image_model,
    tiny_text_to_image_recipe,
};
use burn::tensor::Device;
use deme_diffusion::{ProjectionPlacement, TextToImagePipeline, load_conditional_unet};
use deme_nn::to_state_dict;
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The file of that name in the one stage whose folder begins so.
fn in_stage(out: &Path, stage: &str, file: &str) -> std::path::PathBuf {
    let prefix = format!("stages/{stage}-");
    let mut found = files(out)
        .into_iter()
        .filter(|path| path.to_string_lossy().starts_with(&prefix) && path.ends_with(file));
    let path = out.join(found.next().unwrap_or_else(|| panic!("no {file} in {stage}")));
    assert_eq!(found.next(), None, "{file} in {stage}");
    path
}

fn load(folder: &Path) -> TextToImagePipeline {
    TextToImagePipeline::load(folder.to_str().unwrap(), &Device::flex()).unwrap()
}

/// A captioned folder of pictures.
fn captioned_pictures(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let mut lines = String::new();
    for index in 0..count {
        let name = format!("{index:02}.png");
        let colour = [(index * 20) as u8, 90, 255 - (index * 20) as u8];
        let picture = deme_data::Picture::filled(&name, 10, 9, colour);
        deme_data::write_png(&folder.join(&name), &picture).unwrap();
        lines += &format!("{{\"file_name\": \"{name}\", \"text\": \"colour number {index}\"}}\n");
    }
    std::fs::write(folder.join("metadata.jsonl"), lines).unwrap();
}

#[test]
fn a_model_from_scratch_learns_captions_and_is_measured_by_both_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_text_to_image_recipe(folder.path());
    let out = folder.path().join("out");
    let overrides = ["decouple.finetune.caption_dropout=0.2", "sampling.guidance={scale=2.0}"];
    succeed(&mut run_tiny(&recipe, &out, &overrides));

    let metrics = json(&in_stage(&out, "metrics-merged", "metrics.json"));
    let names: Vec<&str> = metrics["measurements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            assert_eq!(m["protocol"]["guidance"], 2.0);
            m["protocol"]["metric"].as_str().unwrap()
        })
        .collect();
    assert_eq!(names, ["fd_tiny_clip", "clip_score"]);
    let shuffled = metrics["shuffled_clip_score"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&shuffled), "{shuffled}");
    let prompts = json(&in_stage(&out, "samples-merged", "prompts.json"));
    let prompts = prompts.as_array().unwrap();
    assert_eq!(prompts.len(), 12);
    // Every model is shown the same captions.
    assert_eq!(
        json(&in_stage(&out, "samples-before", "prompts.json")).as_array().unwrap(),
        prompts
    );

    // The result is a whole pipeline whose text encoder is the run's CLIP; an expert has another UNet than before.
    let merged = load(&out.join("merged"));
    assert!(merged.vae.is_none());
    let pretrained = in_stage(&out, "pretrained", "model/model_index.json");
    let pretrained = load(pretrained.parent().unwrap());
    assert_eq!(
        to_state_dict(&merged.text_encoder).content_hash(),
        to_state_dict(&pretrained.text_encoder).content_hash()
    );
    assert_eq!(merged.unet.config(), pretrained.unet.config());
    let expert = in_stage(&out, "expert-1", "unet/config.json");
    let expert = load_conditional_unet(expert.parent().unwrap(), &Device::flex()).unwrap();
    assert_eq!(expert.config(), pretrained.unet.config());
    let weights = |unet| to_state_dict(unet).content_hash();
    assert_ne!(weights(&expert), weights(&pretrained.unet));

    // A second run has nothing to do; another guidance draws and measures again and trains nothing.
    let said = |overrides: &[&str]| {
        let output = succeed(&mut run_tiny(&recipe, &out, overrides));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&overrides).contains("nothing to do"));
    let unguided =
        said(&[overrides[0], "sampling.guidance={scale=1.0}", "merge.weights=[0.5, 0.5]"]);
    assert!(
        unguided.contains("sampling merged") && !unguided.contains("pretraining"),
        "{unguided}"
    );
    assert!(!unguided.contains("expert 1:"), "{unguided}");
}

#[test]
fn a_given_model_is_finetuned_on_latents_and_keeps_its_other_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (model, pictures) = (folder.path().join("model"), folder.path().join("pictures"));
    tiny_text_to_image_model(&model);
    captioned_pictures(&pictures, 20);
    let recipe = tiny_recipe(folder.path());
    let out = folder.path().join("out");
    let model_override = format!("pretrained.from={:?}", model.to_str().unwrap());
    let data = format!("data={{kind=\"imagefolder\", path={:?}}}", pictures.to_str().unwrap());
    let overrides = [
        model_override.as_str(),
        data.as_str(),
        "pretrained.task=\"text-to-image\"",
        "pretrained.unet=",
        "pretrained.training=",
        "pretrained.scheduler=",
        "split={search=3, report=3}",
        "decouple.finetune.caption_dropout=0.2",
        "decouple.finetune.projection=\"block\"",
        "sampling.images=4",
        "sampling.sampler={kind=\"euler\", steps=3}",
        "merge.objective={kind=\"loss\", images=8}",
    ];
    succeed(&mut run_tiny(&recipe, &out, &overrides));
    let (before, merged) = (load(&model), load(&out.join("merged")));
    let vae = |pipeline: &TextToImagePipeline| {
        to_state_dict(pipeline.vae.as_ref().unwrap()).content_hash()
    };
    assert_eq!(vae(&merged), vae(&before));
    assert_eq!(
        to_state_dict(&merged.text_encoder).content_hash(),
        to_state_dict(&before.text_encoder).content_hash()
    );
    assert_eq!(merged.unet.config().channel_projection, ProjectionPlacement::Block);
    let encodings = json(&in_stage(&out, "encodings", "encodings.json"));
    assert_eq!(encodings["latents"], serde_json::json!([4, 4, 4]));
    assert_eq!(encodings["text"], serde_json::json!([8, 6]));
    // An expert is a UNet alone.
    let expert = in_stage(&out, "expert-1", "unet/config.json");
    assert!(!expert.parent().unwrap().parent().unwrap().join("vae").exists());

    // Another caption: encoded and finetuned again. The pretrained model is the same.
    let captions = pictures.join("metadata.jsonl");
    let text = std::fs::read_to_string(&captions).unwrap();
    std::fs::write(&captions, text.replace("colour number 0\"", "another colour\"")).unwrap();
    let output = succeed(&mut run_tiny(&recipe, &out, &overrides));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("encoding") && said.contains("expert 1"), "{said}");
    let stages = std::fs::read_dir(out.join("stages")).unwrap();
    let names: Vec<String> =
        stages.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let count = |stage: &str| names.iter().filter(|name| name.starts_with(stage)).count();
    assert_eq!((count("encodings-"), count("pretrained-")), (2, 1), "{names:?}");

    // Mirrored latents are no latents of mirrored pictures.
    let mut mirrored = run_tiny(&recipe, &out, &overrides);
    mirrored.args(["--set", "decouple.finetune.horizontal_flip=true"]);
    assert!(fail_with(&mut mirrored, 2).contains("cannot be mirrored"));
}

#[test]
fn a_killed_encoding_goes_on_behind_its_last_file() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_text_to_image_recipe(folder.path());
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let run = |out: &Path| {
        let mut command = run_tiny(&recipe, out, &[]);
        command.args(["--until", "encodings"]);
        succeed(&mut command);
    };
    run(&whole);
    run(&killed);
    // As if it had been killed after its only file, before its index.
    let index = in_stage(&killed, "encodings", "encodings.json");
    let stage = index.parent().unwrap();
    std::fs::remove_file(&index).unwrap();
    std::fs::remove_file(stage.join("provenance.json")).unwrap();
    let partial = stage.with_extension("partial");
    std::fs::rename(stage, &partial).unwrap();
    let text = partial.join("text/000000.safetensors");
    let written = std::fs::metadata(&text).unwrap().modified().unwrap();
    run(&killed);
    let text = stage.join("text/000000.safetensors");
    assert_eq!(std::fs::metadata(&text).unwrap().modified().unwrap(), written);
    let read = |out: &Path| std::fs::read(in_stage(out, "encodings", "encodings.json")).unwrap();
    assert_eq!(read(&killed), read(&whole));
}

#[test]
fn what_cannot_be_is_refused_before_work() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, text) = (tiny_recipe(folder.path()), tiny_text_to_image_recipe(folder.path()));
    let out = folder.path().join("out");
    let refused = |recipe: &Path, overrides: &[&str]| {
        let message = fail_with(&mut run_tiny(recipe, &out, overrides), 2);
        assert!(!out.exists(), "{message}");
        message
    };
    let cases = [
        (&plain, "decouple.finetune.caption_dropout=0.1", "caption_dropout means nothing"),
        (&plain, "sampling.guidance={scale=2.0}", "sampling.guidance means nothing"),
        (&plain, "pretrained.task=\"text-to-image\"", "pretrained.unet is not the network"),
        (&text, "pretrained.task=\"unconditional\"", "pretrained.conditional_unet is not"),
        (&text, "decouple.finetune.caption_dropout=1.5", "a number from 0 to 1"),
        (&text, "sampling.guidance={scale=nan}", "guidance scale NaN"),
        (&text, "sampling.guidance={scale=2.0, rescale=2.0}", "guidance rescale 2"),
        (&text, "evaluation.tiny_clip.hidden_size=32", "looks at texts of width 16"),
        (&text, "pretrained.skipped_layers=1", "pretrained.skipped_layers = 1"),
        (&text, "pretrained.conditional_unet.sample_size=\"large\"", "sample_size"),
    ];
    for (recipe, entry, expected) in cases {
        let message = refused(recipe, &[entry]);
        assert!(message.contains(expected), "{entry}: {message}");
    }
    // Pictures without captions.
    let pictures = folder.path().join("pictures");
    captioned_pictures(&pictures, 12);
    std::fs::remove_file(pictures.join("metadata.jsonl")).unwrap();
    let data = format!("data={{kind=\"imagefolder\", path={:?}}}", pictures.to_str().unwrap());
    let message = refused(&text, &[&data]);
    assert!(message.contains("no captions, and text to image is learnt"), "{message}");
    // A folder that is no text-to-image model.
    let from = format!("pretrained.from={:?}", pictures.to_str().unwrap());
    let message = refused(&text, &[&from, "pretrained.conditional_unet=", "pretrained.training="]);
    assert!(message.contains("model_index.json"), "{message}");
    let mut help = deme();
    assert!(
        String::from_utf8(succeed(help.args(["run", "--help"])).stdout).unwrap().contains("--set")
    );
}

#[test]
fn the_papers_recipe_for_stable_diffusion_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let (model, pictures) = (folder.path().join("model"), folder.path().join("pictures"));
    tiny_text_to_image_model(&model);
    captioned_pictures(&pictures, 20);
    let clip = folder.path().join("clip");
    small_clip(1).save(&clip).unwrap();
    // A dry run hashes the judge's weights and does not open them.
    let weights = folder.path().join("inception.pth");
    std::fs::write(&weights, "weights").unwrap();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/sd14.toml");
    let out = folder.path().join("out");
    let overrides = [
        format!("pretrained.from={model:?}"),
        format!("data.path={pictures:?}"),
        "preparation.resolution=8".to_owned(),
        "split={search=3, report=3}".to_owned(),
        format!("evaluation.extractor.weights={weights:?}"),
        format!("evaluation.clip_score={{weights={clip:?}}}"),
    ];
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let output = succeed(run_tiny(&recipe, &out, &overrides).arg("--dry-run"));
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "# encodings",
        "# expert-4",
        "# samples-merged",
        // Four experts and the joint baseline.
        "# training iterations  160000",
        // Nine rows, and what decides the search.
        "# generated images     94500",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert!(!said.contains("# clip "), "no CLIP is trained: {said}");
    assert!(!out.exists());
}
