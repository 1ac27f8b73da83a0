//! `deme ablate`, carried out: what it shares, what it leaves, and that killing or failing loses nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{deme, fail_with, files, run_tiny, succeed, tiny_recipe};
use serde_json::Value;

fn ablate(plan: &str, recipe: &Path, out: &Path, arguments: &[&str]) -> Command {
    let mut command = deme();
    command.arg("ablate").arg(plan).arg("--recipe").arg(recipe).arg("--out").arg(out);
    command.args(arguments);
    command
}

fn results(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("ablation.json")).unwrap()).unwrap()
}

fn labels(table: &Value) -> Vec<String> {
    let rows = table["rows"].as_array().unwrap();
    rows.iter().map(|row| row["label"].as_str().unwrap().to_owned()).collect()
}

fn stages(out: &Path) -> Vec<String> {
    let folders = std::fs::read_dir(out.join("stages")).unwrap();
    folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The value of a row's metric at the first seed.
fn value(row: &Value) -> f64 {
    row["measured"]["fd_tiny_clip"][0]["value"].as_f64().unwrap()
}

#[test]
fn an_outside_plan_becomes_rows_of_one_run_whose_experts_are_trained_once() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let bind = ["--bind", "FID=fd_tiny_clip", "--bind", "CLIP Score=none"];
    let plan = |more: &[&str]| {
        let mut command = ablate("merging-weights.md", &recipe, &out, &bind);
        command.args(more);
        command
    };

    let said = String::from_utf8(succeed(&mut plan(&["--dry-run"])).stdout).unwrap();
    for word in [
        "REPLACE weights: how the merging weights w_i are found",
        "read from “Uniform weights (w_i = 1/N)”",
        "read from “Grid search optimized weights (as in paper)”",
        "the recipe as it is: no row of its own",
        "measured by fd_tiny_clip, standing for FID",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let line = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>()
    };
    assert_eq!(line("expert "), [4, 2, 0], "{said}");
    // Pretraining and two experts, for each of two rows or once.
    assert_eq!(line("training iterations"), [2 * 48, 48, 48], "{said}");
    assert!(!out.exists(), "a dry run writes nothing");

    succeed(&mut plan(&["--quiet"]));
    let found = results(&out);
    let table = &found["ablations"][0];
    assert_eq!(labels(table), ["the recipe: grid search", "uniform 1/N"]);
    assert_eq!(table["rows"][0]["asked"][0], "Grid search optimized weights (as in paper)");
    assert_eq!(table["metrics"][0]["stands_for"][0], "FID");
    let notes = found["notes"].to_string();
    assert!(notes.contains("fd_tiny_clip stands for FID") && notes.contains("One seed"), "{notes}");
    let stages = stages(&out);
    let experts = stages.iter().filter(|name| name.starts_with("expert-"));
    assert_eq!(experts.count(), 2, "{stages:?}");
    let unneeded = ["joint", "samples-expert", "landscape", "range-losses", "samples-ensemble"];
    assert!(!stages.iter().any(|name| unneeded.iter().any(|start| name.starts_with(start))));
    for file in ["ablation.md", "ablation.csv", "ablation.html"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let text = std::fs::read_to_string(out.join("ablation.md")).unwrap();
    assert!(text.contains("stands for FID here") && text.contains("figures/ablation-1"), "{text}");

    // The numbers are those of the whole run, which finds its stages done.
    let run = succeed(&mut run_tiny(&recipe, &out, &[]));
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!said.contains("expert 1 ") && said.contains("joint"), "{said}");
    let metrics = std::fs::read(out.join("metrics.json")).unwrap();
    let metrics: Value = serde_json::from_slice(&metrics).unwrap();
    let of_run = |id: &str| {
        let rows = metrics["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["id"] == id).unwrap();
        row["metrics"][0]["value"].as_f64().unwrap()
    };
    assert_eq!(value(&table["rows"][0]), of_run("merged"));
    assert_eq!(value(&table["rows"][1]), of_run("uniform"));

    // And again: nothing but the same files.
    let before = std::fs::read(out.join("ablation.json")).unwrap();
    succeed(&mut plan(&["--quiet"]));
    assert!(std::fs::read(out.join("ablation.json")).unwrap() == before);
}

/// The files of an ablation's results, with their bytes.
fn written(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let of_results = |path: &PathBuf| !path.starts_with("stages") && path.as_os_str() != ".lock";
    let read = |path: PathBuf| {
        let bytes = std::fs::read(out.join(&path)).unwrap();
        (path, bytes)
    };
    files(out).into_iter().filter(of_results).map(read).collect()
}

#[test]
fn ranges_over_two_seeds_killed_and_resumed_give_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    // A whole grid of eight experts would be too large.
    let search = "merge.search={ strategy = \"coordinate_grid\", values = [0.0, 1.0], rounds = 1 }";
    let arguments = ["--metrics", "FD", "--seeds", "2", "--quiet", "--set", search];
    let undisturbed = folder.path().join("undisturbed");
    let start = Instant::now();
    succeed(&mut ablate("timestep-ranges", &recipe, &undisturbed, &arguments));
    let duration = start.elapsed();

    let found = results(&undisturbed);
    let table = &found["ablations"][0];
    let expected = [
        "the recipe: N = 2",
        "N = 4",
        "N = 8",
        "N = 1: joint finetuning without DeMe",
        "before finetuning",
    ];
    assert_eq!(labels(table), expected);
    assert_eq!(table["rows"][0]["asked"][0], "2");
    assert_eq!(found["seeds"], serde_json::json!([0, 1]));
    for row in table["rows"].as_array().unwrap() {
        let summary = &row["summary"]["fd_tiny_clip"];
        assert_eq!(summary["seeds"], 2);
        let difference = &summary["difference"];
        assert_eq!(difference.is_null(), row["kind"] == "base");
        if row["kind"] != "base" {
            let measured = &row["measured"]["fd_tiny_clip"];
            let base = &table["rows"][0]["measured"]["fd_tiny_clip"];
            let pair = |seed: usize| {
                measured[seed]["value"].as_f64().unwrap() - base[seed]["value"].as_f64().unwrap()
            };
            let (a, b) = (pair(0), pair(1));
            assert!((difference["mean"].as_f64().unwrap() - (a + b) / 2.0).abs() < 1e-12);
            // t_{0.975, 1} = 12.7062, s / sqrt(2) = |a - b| / 2.
            let half = 12.7062 * (a - b).abs() / 2.0;
            let high = difference["interval"][1].as_f64().unwrap();
            assert!((high - (a + b) / 2.0 - half).abs() < 1e-4 * half.max(1e-9), "{difference}");
        }
    }
    // The same total of iterations: 2 x 12.
    assert_eq!(table["rows"][2]["overrides"][1], "decouple.finetune.iterations=3");
    // Other seeds have other models and other samples.
    let seeds = &table["rows"][4]["measured"]["fd_tiny_clip"];
    assert_ne!(seeds[0]["value"], seeds[1]["value"]);
    let csv = std::fs::read_to_string(undisturbed.join("ablation.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + 5, "{csv}");
    assert!(undisturbed.join("figures/ablation-1-fd-tiny-clip-numbers.svg").is_file());

    let expected = written(&undisturbed);
    let mut killed = 0;
    for share in [0.15, 0.5, 0.8] {
        let out = folder.path().join(format!("killed-{share}"));
        let mut child = ablate("timestep-ranges", &recipe, &out, &arguments).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(duration.as_secs_f64() * share));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        succeed(&mut ablate("timestep-ranges", &recipe, &out, &arguments));
        let found = written(&out);
        let names = |files: &[(PathBuf, Vec<u8>)]| {
            files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&found), names(&expected));
        for ((path, found), (_, expected)) in found.iter().zip(&expected) {
            assert!(found == expected, "{} differs, killed at {share}", path.display());
        }
    }
    assert!(killed >= 1, "every run had ended before it was killed");
}

#[test]
fn a_variant_that_fails_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let plan = folder.path().join("rates.toml");
    let text = "[[ablation]]\nname = \"Rates\"\npart = \"learning rate\"\naction = \"REPLACE\"\n\
                replacement = [1e30, \"half\"]\n";
    std::fs::write(&plan, text).unwrap();
    let wild = ["--set", "decouple.finetune.max_grad_norm=0"];
    let mut command = ablate(plan.to_str().unwrap(), &recipe, &out, &wild);
    let said = fail_with(&mut command, 1);
    assert!(said.contains("1 of 3 measurements failed"), "{said}");

    let found = results(&out);
    let rows = found["ablations"][0]["rows"].as_array().unwrap();
    let reason = rows[1]["failures"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("not finite"), "{reason}");
    assert!(rows[1]["measured"]["fd_tiny_clip"][0].is_null());
    assert!(value(&rows[0]).is_finite() && value(&rows[2]).is_finite());
    let text = std::fs::read_to_string(out.join("ablation.md")).unwrap();
    assert!(text.contains("failed at seed 0") && text.contains("not finite"), "{text}");
}

#[test]
fn a_shared_run_folder_keeps_the_results_of_each_plan_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, run) = (tiny_recipe(folder.path()), folder.path().join("run"));
    for plan in ["merging-weights", "projection"] {
        let mut command = deme();
        command.arg("ablate").arg(plan).arg("--recipe").arg(&recipe).arg("--run").arg(&run);
        succeed(command.arg("--quiet"));
        assert!(run.join("ablations").join(plan).join("ablation.json").is_file(), "{plan}");
    }
    // One pretrained model for both; the experts of three placements.
    let stages = stages(&run);
    assert_eq!(stages.iter().filter(|name| name.starts_with("pretrained-")).count(), 1);
    assert_eq!(stages.iter().filter(|name| name.starts_with("expert-1-")).count(), 3);
}
