//! `deme merge`: every method from the command line, folders, and parameters that do not belong.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use deme_merge::{METHODS, MergeInputs, MergeMethod, StateDict, StoredTensor};
use support::{deme, fail_with, files, succeed};

fn model(value: f32) -> StateDict {
    let names = ["conv_in.bias", "down_blocks.0.attentions.0.query.weight", "mid_block.fc.weight"];
    let tensor = |name: &str| match name.ends_with("bias") {
        true => StoredTensor::from_f32(vec![2], vec![value, 1.0]),
        false => StoredTensor::from_f32(vec![2, 2], vec![value, 1.0, -1.0, value * value]),
    };
    names.iter().map(|name| (name.to_string(), tensor(name))).collect()
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, value) in [("base", 0.0), ("a", 1.0), ("b", 3.0)] {
            model(value).save(&place.path(&format!("{name}.safetensors"))).unwrap();
        }
        let like = model(2.0);
        let fisher = like.iter().map(|(name, stored)| {
            let squares = stored.to_f32().unwrap().into_iter().map(|x| x * x).collect();
            (name.to_owned(), StoredTensor::from_f32(stored.shape().to_vec(), squares))
        });
        fisher.collect::<StateDict>().save(&place.path("fisher.safetensors")).unwrap();
        let gram = StoredTensor::from_f32(vec![2, 2], vec![2.0, 1.0, 1.0, 2.0]);
        let grams: StateDict = [("mid_block.fc.weight".to_string(), gram)].into_iter().collect();
        grams.save(&place.path("gram.safetensors")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `deme merge` of base, a and b.
    fn merge(&self, arguments: &[&str]) -> Command {
        let mut command = deme();
        command.current_dir(self.0.path()).args(["merge", "--base", "base.safetensors"]);
        command.args(["--expert", "a.safetensors", "--expert", "b.safetensors"]);
        command.args(["--out", "out.safetensors"]).args(arguments);
        command
    }
}

#[test]
fn every_method_does_what_the_library_does() {
    let place = Place::new();
    std::fs::write(place.path("groups.toml"), "down = [1.0, 0.5]\n\"rest\" = [0.0, 0.25]\n")
        .unwrap();
    std::fs::write(place.path("groups.json"), r#"{"down": [1.0, 0.5], "rest": [0.0, 0.25]}"#)
        .unwrap();
    let groups = [("down".to_string(), vec![1.0, 0.5]), ("rest".to_string(), vec![0.0, 0.25])];
    let by_group =
        MergeMethod::LinearByGroup { groups: groups.into(), weights: Some(vec![0.1, 0.2]) };
    let fisher = ["--fisher", "fisher.safetensors"].repeat(2);
    let gram = ["--gram", "gram.safetensors"].repeat(2);
    let half = vec![0.5; 2];
    let linear = MergeMethod::Linear { weights: vec![0.5, -1.0] };
    let cases: Vec<(Vec<&str>, MergeMethod)> = vec![
        (vec![], MergeMethod::Uniform),
        (vec!["--weights", "0.5,-1"], linear.clone()),
        (vec!["--method", "linear", "--weights", "0.5,-1"], linear),
        (vec!["--group-weights", "groups.toml", "--weights", "0.1,0.2"], by_group.clone()),
        (vec!["--group-weights", "groups.json", "--weights", "0.1,0.2"], by_group),
        (vec!["--method", "ties"], MergeMethod::Ties { density: 0.2, scale: 1.0 }),
        (
            vec!["--method", "ties", "--density", "0.7", "--scale", "0.5"],
            MergeMethod::Ties { density: 0.7, scale: 0.5 },
        ),
        (
            vec!["--method", "dare", "--drop", "0.5", "--seed", "9"],
            MergeMethod::Dare { weights: half, drop: 0.5, seed: 9 },
        ),
        (vec!["--method", "slerp", "--t", "0.25"], MergeMethod::Slerp { t: 0.25 }),
        ([&["--method", "fisher"][..], &fisher].concat(), MergeMethod::Fisher),
        (
            [&["--method", "regmean", "--alpha", "0.5"][..], &gram].concat(),
            MergeMethod::RegMean { alpha: 0.5 },
        ),
    ];
    let load = |name: &str| StateDict::load(&place.path(name)).unwrap();
    for (arguments, method) in cases {
        succeed(&mut place.merge(&arguments));
        let statistics = match method {
            MergeMethod::Fisher => vec![load("fisher.safetensors"); 2],
            MergeMethod::RegMean { .. } => vec![load("gram.safetensors"); 2],
            _ => vec![],
        };
        let (theta_pre, experts) = (model(0.0), [model(1.0), model(3.0)]);
        let inputs =
            MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &statistics };
        let (expected, found) = (inputs.merge(&method).unwrap(), load("out.safetensors"));
        assert_eq!(found.content_hash(), expected.content_hash(), "{arguments:?}");
        assert_eq!(found.metadata()["merge.method"], expected.metadata()["merge.method"]);
        std::fs::remove_file(place.path("out.safetensors")).unwrap();
    }
}

#[test]
fn parameters_that_do_not_belong_are_refused_with_the_method_that_has_them() {
    let place = Place::new();
    let refused = |arguments: &[&str], words: &[&str]| {
        let said = fail_with(&mut place.merge(arguments), 2);
        words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in: {said}"));
        assert!(!place.path("out.safetensors").exists());
    };
    for (flag, value, owner) in [
        ("--density", "0.5", "ties"),
        ("--scale", "0.5", "ties"),
        ("--drop", "0.5", "dare"),
        ("--seed", "1", "dare"),
        ("--t", "0.5", "slerp"),
        ("--fisher", "fisher.safetensors", "fisher"),
        ("--gram", "gram.safetensors", "regmean"),
        ("--alpha", "0.5", "regmean"),
        ("--group-weights", "groups.toml", "linear"),
        ("--weights", "1,1", "linear or dare"),
    ] {
        refused(&["--method", "uniform", flag, value], &["`uniform`", flag, owner]);
    }
    refused(&["--method", "tise"], &["no method `tise`", "did you mean `ties`?"]);
    refused(&["--method", "fisher"], &["0 --fisher files for 2 experts"]);
    refused(&["--method", "dare", "--drop", "1"], &["drop is 1", "less than 1"]);
    refused(&["--group-weights", "no.toml"], &["no.toml"]);
    refused(&["--max-shard-size", "1GB"], &["only folders", "--max-shard-size"]);
    std::fs::write(place.path("bad.toml"), "down = 3").unwrap();
    refused(&["--group-weights", "bad.toml"], &["bad.toml", "no table of group weights"]);
}

#[test]
fn the_methods_are_listed() {
    let output = succeed(deme().args(["merge", "--list-methods"]));
    let text = String::from_utf8(output.stdout).unwrap();
    for row in METHODS {
        assert!(text.contains(row.name) && text.contains(row.paper), "{}", row.name);
        row.parameters.iter().for_each(|name| assert!(text.contains(&format!("--{name}"))));
    }
}

/// A UNet of another class than ours, in a pipeline with other parts; attention under the names of old
/// diffusers versions in the base and of today's in an expert.
#[test]
fn a_pipeline_is_merged_without_a_network() {
    let place = Place::new();
    let pipeline = |name: &str, unet: &StateDict| {
        let folder = place.path(name);
        for (file, text) in [
            ("unet/config.json", r#"{"_class_name": "UNet2DConditionModel"}"#),
            ("model_index.json", "{}"),
            ("vae/diffusion_pytorch_model.safetensors", "a VAE"),
        ] {
            std::fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            std::fs::write(folder.join(file), text).unwrap();
        }
        unet.save(&folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
        folder
    };
    let mut renamed = model(4.0);
    let query = renamed.remove("down_blocks.0.attentions.0.query.weight").unwrap();
    renamed.insert("down_blocks.0.attentions.0.to_q.weight".into(), query);
    let (base, expert) = (pipeline("base", &model(2.0)), pipeline("expert", &renamed));
    let out = place.path("merged");
    let mut command = deme();
    command.arg("merge").arg("--base").arg(&base).arg("--expert").arg(&expert);
    succeed(command.args(["--weights", "1", "--max-shard-size", "20B", "--out"]).arg(&out));
    let merged = StateDict::load(&out.join("unet")).unwrap();
    assert_eq!(merged.content_hash(), renamed.content_hash());
    let name = |path: &Path| path.to_string_lossy().into_owned();
    let found: Vec<String> = files(&out).iter().map(|path| name(path)).collect();
    assert!(found.contains(&"unet/diffusion_pytorch_model-00003-of-00003.safetensors".to_string()));
    for file in ["unet/config.json", "model_index.json", "vae/diffusion_pytorch_model.safetensors"]
    {
        assert_eq!(std::fs::read(out.join(file)).unwrap(), std::fs::read(base.join(file)).unwrap());
    }
}
