//! The whole pipeline, once through: what it leaves, that a second run does nothing, and that other
//! settings are resumed or done anew as they must.
#![allow(clippy::unwrap_used)]

mod support;

use support::{files, run_tiny, succeed, tiny_recipe};

#[test]
fn a_run_leaves_a_model_a_report_and_numbers_and_is_not_done_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));

    let plan = succeed(run_tiny(&recipe, &out, &[]).arg("--dry-run"));
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(
        plan.contains("[decouple.finetune]") && plan.contains("training iterations  72"),
        "{plan}"
    );
    // data, CLIP, pretrained, 2 experts, joint, search, task vectors, uniform, merged; samples and metrics
    // of 7 rows; the real pictures, losses per range.
    assert_eq!(
        plan.lines().filter(|line| line.ends_with("  to do")).count(),
        10 + 2 * 7 + 2,
        "{plan}"
    );
    assert!(!out.exists(), "a dry run writes nothing");

    succeed(&mut run_tiny(&recipe, &out, &[]));
    for name in
        ["report.md", "report.html", "metrics.json", "recipe.toml", "merged/model_index.json"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
    let metrics = std::fs::read_to_string(out.join("metrics.json")).unwrap();
    for row in ["before", "joint", "expert-1", "expert-2", "ensemble", "uniform", "merged"] {
        assert!(metrics.contains(&format!("\"{row}\"")), "no row {row} in {metrics}");
    }
    assert!(metrics.contains("fd_tiny_clip") && !metrics.contains("\"fid\""));
    let leftovers =
        files(&out).into_iter().filter(|path| path.to_string_lossy().contains("partial"));
    assert_eq!(leftovers.count(), 0);

    let before = support::results(&out);
    let second = succeed(&mut run_tiny(&recipe, &out, &[]));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("nothing to do"), "{said}");
    assert!(support::results(&out) == before, "a second run changed something");

    // Only what depends on the number of images is done again.
    let third = succeed(&mut run_tiny(&recipe, &out, &["sampling.images=14"]));
    let said = String::from_utf8_lossy(&third.stderr).into_owned();
    assert!(!said.contains("expert 1  ") && said.contains("sampling joint"), "{said}");
}

#[test]
fn every_projection_gives_a_merged_model_and_folded_the_pretrained_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let mut configs = Vec::new();
    for placement in ["none", "block", "folded"] {
        let projection = format!("decouple.finetune.projection={placement}");
        let fixed = "merge.weights=[0.5, 0.4]";
        succeed(&mut run_tiny(&recipe, &out, &[&projection, fixed, "joint.enabled=false"]));
        let config = std::fs::read_to_string(out.join("merged/unet/config.json")).unwrap();
        configs.push(config);
    }
    assert_eq!(configs[0], configs[2]);
    assert!(
        configs[1].contains("channel_projection") && !configs[2].contains("channel_projection")
    );
}

#[test]
fn a_finished_model_is_the_next_runs_pretrained_one() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    let fixed = "merge.weights=[1.0, 1.0]";
    succeed(&mut run_tiny(&recipe, &out, &[fixed, "joint.enabled=false"]));
    let text = support::TINY_RECIPE;
    let (head, rest) = text.split_once("[pretrained]").unwrap();
    let (_, tail) = rest.split_once("[decouple]").unwrap();
    let given = format!("{head}[pretrained]\nfrom = {:?}\n\n[decouple]{tail}", out.join("merged"));
    let recipe = folder.path().join("given.toml");
    std::fs::write(&recipe, given).unwrap();
    let next = folder.path().join("next");
    succeed(&mut run_tiny(&recipe, &next, &[]));
    assert!(next.join("merged/unet/diffusion_pytorch_model.safetensors").is_file());
}

#[test]
fn the_distance_of_a_folder_to_itself_is_zero() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    succeed(&mut run_tiny(&recipe, &out, &["merge.weights=[1.0, 1.0]", "joint.enabled=false"]));
    let (pictures, grid) = (folder.path().join("pictures"), folder.path().join("grid.png"));
    let mut sample = support::deme();
    sample.arg("sample").arg("--model").arg(out.join("merged")).arg("--out").arg(&pictures);
    succeed(sample.args(["--num", "9", "--steps", "2", "--grid"]).arg(&grid));
    // Nine pictures, and how they were drawn.
    assert_eq!(files(&pictures).len(), 10);
    assert_eq!(deme_data::read_picture(&grid).unwrap().width, 3 * 8 + 4 * 2);
    let stages = std::fs::read_dir(out.join("stages")).unwrap().map(|entry| entry.unwrap().path());
    let clip = stages.into_iter().find(|path| path.to_string_lossy().contains("clip-")).unwrap();
    let mut fd = support::deme();
    fd.arg("fd").arg(&pictures).arg(&pictures).args(["--extractor", "clip", "--weights"]);
    let said = succeed(fd.arg(clip.join("clip")).arg("--json"));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let found = &said["measurements"][0];
    assert!(found["value"].as_f64().unwrap().abs() < 1e-6, "{said}");
    assert_eq!(found["protocol"]["image_count"], 9);
    assert_eq!(found["protocol"]["sampler"], "ddim");
}

#[test]
fn pictures_do_not_depend_on_the_batch_size() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
    succeed(&mut run_tiny(&recipe, &out, &["merge.weights=[1.0, 1.0]", "joint.enabled=false"]));
    let draw = |batch_size: &str| {
        let to = folder.path().join(format!("pictures-{batch_size}"));
        let mut command = support::deme();
        command.arg("sample").arg("--model").arg(out.join("merged")).arg("--out").arg(&to);
        command.args(["--num", "16", "--steps", "3", "--batch-size", batch_size]);
        succeed(&mut command);
        (0..16)
            .map(|seed| {
                let picture = deme_data::read_picture(&to.join(format!("{seed}.png"))).unwrap();
                picture.pixels
            })
            .collect::<Vec<_>>()
    };
    let (one, five, sixteen) = (draw("1"), draw("5"), draw("16"));
    for other in [&five, &sixteen] {
        for (a, b) in one.iter().flatten().zip(other.iter().flatten()) {
            assert!(a.abs_diff(*b) <= 1);
        }
    }
    assert!(one.windows(2).all(|pair| pair[0] != pair[1]), "every seed has its own picture");
}
