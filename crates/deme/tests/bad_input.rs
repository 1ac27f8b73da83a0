//! Wrong input: a message that names the thing and the way out, the right exit code, nothing lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use deme_merge::{StateDict, StoredTensor};
use support::{deme, fail_with, run_tiny, succeed, tiny_recipe};

struct Place {
    folder: tempfile::TempDir,
    recipe: PathBuf,
    out: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (recipe, out) = (tiny_recipe(folder.path()), folder.path().join("run"));
        Self { folder, recipe, out }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Fails with these overrides before any work, and says all of these words.
    fn refuses(&self, overrides: &[&str], words: &[&str]) {
        let said = fail_with(&mut run_tiny(&self.recipe, &self.out, overrides), 2);
        words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in: {said}"));
        let stages = self.out.join("stages");
        assert!(!stages.exists() || support::files(&stages).is_empty(), "work was begun");
    }

    /// A folder of captioned pictures, for changing.
    fn pictures(&self, metadata: &str) -> String {
        let folder = self.path("pictures");
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..8 {
            let picture = deme_data::shapes_picture(0, i, 8);
            deme_data::write_png(&folder.join(format!("{i}.png")), &picture).unwrap();
        }
        std::fs::write(folder.join("metadata.jsonl"), metadata).unwrap();
        format!("data={{kind=\"imagefolder\", path={folder:?}}}")
    }
}

fn captions(files: impl IntoIterator<Item = String>) -> String {
    files
        .into_iter()
        .map(|file| format!("{{\"file_name\": {file:?}, \"text\": \"a shape\"}}\n"))
        .collect()
}

#[test]
fn unknown_keys_and_impossible_values() {
    let place = Place::new();
    place.refuses(
        &["decouple.finetune.itertions=3"],
        &["unknown field", "did you mean `iterations`?"],
    );
    place.refuses(&["decouple.ranges=0"], &["decouple.ranges = 0"]);
    place.refuses(&["decouple.ranges=101"], &["decouple.ranges = 101", "between 1 and 100"]);
    place.refuses(&["decouple.finetune.learning_rate=-1"], &["learning_rate"]);
    place.refuses(&["preparation.resolution=7"], &["preparation.resolution = 7", "multiples of 2"]);
    place.refuses(&["sampling.sampler.steps=101"], &["101", "100"]);
    place.refuses(&["split.search=64"], &["search"]);
    place.refuses(&["nonsense"], &["has no `=`"]);
}

#[test]
fn a_recipe_that_is_no_toml_is_shown_where_it_breaks() {
    let place = Place::new();
    std::fs::write(&place.recipe, "name = \"x\"\nseed = = 3\n").unwrap();
    place.refuses(&[], &["the recipe is wrong", "seed = = 3"]);
    let missing = fail_with(deme().args(["run", "no/such/recipe.toml"]), 2);
    assert!(missing.contains("no/such/recipe.toml"), "{missing}");
}

#[test]
fn wrong_pictures_and_captions() {
    let place = Place::new();
    place.refuses(&["data={kind=\"imagefolder\", path=\"/no/such/folder\"}"], &["/no/such/folder"]);

    let all = || (0..8).map(|i| format!("{i}.png"));
    let not_there = place.pictures(&captions(all().chain(["9.png".into()])));
    place.refuses(&[&not_there], &["9.png", "line 9"]);
    let outside = place.pictures(&captions(all().chain(["../tiny.toml".into()])));
    place.refuses(&[&outside], &["../tiny.toml", "line 9"]);
    let broken_line = place.pictures(&format!("{}{{\"file_name\": \n", captions(all())));
    place.refuses(&[&broken_line], &["line 9"]);
}

#[test]
fn a_truncated_picture_is_named() {
    let place = Place::new();
    let data = place.pictures(&captions((0..8).map(|i| format!("{i}.png"))));
    let picture = place.path("pictures/3.png");
    let bytes = std::fs::read(&picture).unwrap();
    std::fs::write(&picture, &bytes[..bytes.len() / 2]).unwrap();
    let split = ["split.search=2", "split.report=2", data.as_str()];
    let said = fail_with(&mut run_tiny(&place.recipe, &place.out, &split), 2);
    assert!(said.contains("3.png"), "{said}");
}

#[test]
fn a_second_process_in_the_same_folder_is_refused() {
    let place = Place::new();
    std::fs::create_dir_all(&place.out).unwrap();
    let mut first = run_tiny(&place.recipe, &place.out, &["pretrained.training.iterations=100000"])
        .arg("--quiet")
        .spawn()
        .unwrap();
    while !place.out.join("recipe.toml").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first run ended early");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = fail_with(&mut run_tiny(&place.recipe, &place.out, &[]), 1);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(said.contains("another run is at work") && said.contains("--out"), "{said}");
}

#[test]
fn a_diverging_run_says_so_and_keeps_what_was_finished() {
    let place = Place::new();
    let wild = ["decouple.finetune.learning_rate=1e30", "decouple.finetune.max_grad_norm=0"];
    let said = fail_with(&mut run_tiny(&place.recipe, &place.out, &wild), 1);
    assert!(said.contains("not finite") && said.contains("learning_rate"), "{said}");
    let stages: Vec<String> = std::fs::read_dir(place.out.join("stages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(
        stages.iter().any(|s| s.starts_with("pretrained-") && !s.contains("partial")),
        "{stages:?}"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_what_was_finished_stays() {
    let place = Place::new();
    // Files may not grow beyond 16 KiB: as on a full disk, writing fails in the middle.
    let command = format!(
        "trap '' XFSZ; ulimit -f 16; exec {} run {} --out {}",
        env!("CARGO_BIN_EXE_deme"),
        place.recipe.display(),
        place.out.display()
    );
    let said = fail_with(std::process::Command::new("bash").args(["-c", &command]), 1);
    assert!(
        said.contains("run the same command again") && said.contains("File too large"),
        "{said}"
    );
    succeed(&mut run_tiny(&place.recipe, &place.out, &[]));
}

/// A small trained model to be spoilt.
fn model(place: &Place) -> PathBuf {
    let few = ["merge.weights=[1.0, 1.0]", "joint.enabled=false"];
    succeed(&mut run_tiny(&place.recipe, &place.out, &few));
    place.out.join("merged")
}

fn copy_folder(from: &Path, to: &Path) {
    for file in support::files(from) {
        std::fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

#[test]
fn spoilt_checkpoints_are_refused_with_every_tensor_named() {
    let place = Place::new();
    let good = model(&place);
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let spoil = |name: &str, change: &dyn Fn(&mut StateDict)| {
        let folder = place.path(name);
        copy_folder(&good, &folder);
        let mut state = StateDict::load(&good.join(weights)).unwrap();
        change(&mut state);
        state.save(&folder.join(weights)).unwrap();
        folder
    };
    let sample = |model: &Path| {
        let mut command = deme();
        command.args(["sample", "--num", "1", "--steps", "1", "--out"]).arg(place.path("pictures"));
        fail_with(command.arg("--model").arg(model), 2)
    };
    let missing = spoil("missing", &|state| {
        state.remove("conv_in.bias");
        state.remove("conv_out.bias");
    });
    let said = sample(&missing);
    assert!(said.contains("conv_in.bias") && said.contains("conv_out.bias"), "{said}");

    let extra = spoil("extra", &|state| {
        state.insert("surplus".into(), StoredTensor::from_f32(vec![1], vec![0.0]));
    });
    assert!(sample(&extra).contains("surplus"));

    let wrong_shape = spoil("shape", &|state| {
        state.insert("conv_in.bias".into(), StoredTensor::from_f32(vec![3], vec![0.0; 3]));
    });
    let said = sample(&wrong_shape);
    assert!(said.contains("conv_in.bias") && said.contains("[3]"), "{said}");

    let nan = spoil("nan", &|state| {
        let len = state.get("conv_in.bias").unwrap().numel();
        state.insert("conv_in.bias".into(), StoredTensor::from_f32(vec![len], vec![f32::NAN; len]));
    });
    let said = sample(&nan);
    assert!(said.contains("conv_in.bias") && said.contains("NaN"), "{said}");

    // Merging refuses the same, and writes nothing.
    let merge = |expert: &Path, weights: &str| {
        let mut command = deme();
        command.args(["merge", "--weights", weights, "--base"]).arg(&good);
        command.arg("--expert").arg(expert).arg("--out").arg(place.path("merged"));
        let said = fail_with(&mut command, 2);
        assert!(!place.path("merged").exists());
        said
    };
    assert!(merge(&missing, "0.5").contains("conv_in.bias"));
    assert!(merge(&good, "0.5,0.5").contains("2 weights for 1 experts"));
}

#[test]
fn predict_checks_its_input() {
    let place = Place::new();
    let good = model(&place);
    let predict = |state: &StateDict| {
        let input = place.path("in.safetensors");
        state.save(&input).unwrap();
        let mut command = deme();
        command.arg("predict").arg("--model").arg(&good).arg("--input").arg(&input);
        fail_with(command.arg("--out").arg(place.path("out.safetensors")), 2)
    };
    let times = |t: &[i64]| {
        let bytes = t.iter().flat_map(|t| t.to_le_bytes()).collect();
        StoredTensor::new(deme_merge::Dtype::I64, vec![t.len()], bytes).unwrap()
    };
    let zeros =
        |shape: &[usize]| StoredTensor::from_f32(shape.to_vec(), vec![0.0; shape.iter().product()]);
    let mut state = StateDict::default();
    assert!(predict(&state).contains("sample"));
    state.insert("sample".into(), zeros(&[1, 3, 8, 8]));
    assert!(predict(&state).contains("timesteps"));
    state.insert("timesteps".into(), times(&[100]));
    assert!(predict(&state).contains("timestep 100 is outside 0..100"));
    state.insert("timesteps".into(), times(&[1, 2]));
    assert!(predict(&state).contains("one timestep per sample"));
    state.insert("timesteps".into(), times(&[1]));
    state.insert("sample".into(), zeros(&[1, 3, 7, 8]));
    assert!(predict(&state).contains("multiples of 2"));
}
