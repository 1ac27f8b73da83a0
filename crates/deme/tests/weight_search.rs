//! The search for merging weights within a run: objectives, groups of tensors, stopping and resuming.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{fail_with, run_tiny, succeed, tiny_recipe, without_seconds};

/// The folder of a finished or unfinished stage.
fn stage(run: &Path, name: &str) -> PathBuf {
    let stages = std::fs::read_dir(run.join("stages")).unwrap();
    let mut folders: Vec<PathBuf> = stages.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(name));
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.remove(0)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The lines of a search's log that are evaluations: all but the first.
fn evaluations(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().skip(1).filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn the_loss_proposes_by_its_gradient_and_the_distance_decides_with_weights_per_part() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let overrides = [
        "merge.groups=parts",
        "merge.objective={ kind = \"loss-then-frechet\", loss_images = 16, images = 4, steps = 2, candidates = 2 }",
        "merge.search={ strategy = \"gradient\", max_evaluations = 4 }",
        "merge.landscape={ points = 2, images = 16 }",
        "joint.enabled=false",
    ];
    succeed(&mut run_tiny(&recipe, &out, &overrides));

    let search = stage(&out, "search-");
    let found = json(&search.join("search.json"));
    assert_eq!(found["weights"]["groups"], serde_json::json!(["down", "mid", "rest", "up"]));
    let weights = found["weights"]["weights"].as_array().unwrap();
    assert!(weights.len() == 4 && weights.iter().all(|group| group.as_array().unwrap().len() == 2));
    // Two candidates, uniform weights and both experts; the decision is the best of them.
    let decisions = found["decisions"].as_array().unwrap();
    assert!((3..=5).contains(&decisions.len()), "{decisions:?}");
    let value = |decision: &Value| decision["value"].as_f64().unwrap();
    let best = decisions.iter().map(value).fold(f64::INFINITY, f64::min);
    assert_eq!(found["value"].as_f64().unwrap(), best);
    let proposed = evaluations(&search.join("search.jsonl"));
    let gradients = proposed.iter().filter(|line| line["gradient"].is_array());
    assert!(gradients.count() >= 4, "{proposed:?}");

    let landscape = json(&stage(&out, "landscape-").join("landscape.json"));
    assert_eq!(landscape["values"].as_array().unwrap().len(), 2);
    let task_vectors = json(&stage(&out, "task-vectors-").join("task_vectors.json"));
    let cosine = task_vectors["whole"]["cosines"][0][0].as_f64().unwrap();
    assert!((cosine - 1.0).abs() < 1e-6);
    let merged = json(&stage(&out, "merged-").join("weights.json"));
    assert_eq!(merged, found["weights"]);
}

#[test]
fn a_search_killed_in_the_middle_repeats_no_evaluation_and_ends_at_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let overrides = [
        "merge.objective={ kind = \"loss\", images = 64 }",
        "merge.search={ strategy = \"cma_es\", max_evaluations = 40, seed = 3 }",
    ];
    let until_search = |out: &Path| {
        let mut command = run_tiny(&recipe, out, &overrides);
        command.args(["--until", "search", "--quiet"]);
        command
    };
    let undisturbed = folder.path().join("undisturbed");
    succeed(&mut until_search(&undisturbed));
    let expected = stage(&undisturbed, "search-");

    let out = folder.path().join("killed");
    let mut child = until_search(&out).spawn().unwrap();
    let started = Instant::now();
    let log = loop {
        assert!(started.elapsed() < Duration::from_secs(300), "the search did not begin");
        let stages = out.join("stages");
        let names = std::fs::read_dir(&stages).into_iter().flatten().flatten();
        let mut logs = names.map(|entry| entry.path().join("search.jsonl"));
        if let Some(log) = logs.find(|log| evaluations(log).len() >= 10) {
            break log;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let before = evaluations(&log);
    succeed(&mut until_search(&out));

    let found = stage(&out, "search-");
    let after = evaluations(&found.join("search.jsonl"));
    let weights = |lines: &[Value]| -> Vec<String> {
        lines.iter().map(|line| line["weights"].to_string()).collect()
    };
    assert_eq!(weights(&after)[..before.len()], weights(&before));
    let mut unique = weights(&after);
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), after.len(), "an evaluation was repeated");
    assert_eq!(weights(&after), weights(&evaluations(&expected.join("search.jsonl"))));
    let result =
        |folder: &Path| without_seconds(&std::fs::read(folder.join("search.json")).unwrap());
    assert!(result(&found) == result(&expected));
}

#[test]
fn a_run_stops_behind_the_stage_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    succeed(run_tiny(&recipe, &out, &[]).args(["--until", "pretrained"]));
    stage(&out, "pretrained-");
    assert!(!out.join("report.html").exists());
    let names = std::fs::read_dir(out.join("stages")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("expert-")));
    let nowhere = folder.path().join("nowhere");
    let said = fail_with(run_tiny(&recipe, &nowhere, &[]).args(["--until", "serch"]), 2);
    assert!(!nowhere.exists());
    assert!(said.contains("--until serch") && said.contains("did you mean `search`?"), "{said}");
}
