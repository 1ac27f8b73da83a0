//! Plans that are wrong, each in its way: one clear message, exit code 2, and no work.

use std::path::PathBuf;

use crate::support::{deme, fail_with, tiny_recipe};

struct Place {
    folder: tempfile::TempDir,
    recipe: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = tiny_recipe(folder.path());
        Self { folder, recipe }
    }

    /// Writes a plan and expects its refusal, in which all of these words stand.
    fn refuses(&self, file: &str, plan: &str, arguments: &[&str], words: &[&str]) {
        let path = self.folder.path().join(file);
        std::fs::write(&path, plan).unwrap();
        self.refuses_name(path.to_str().unwrap(), arguments, words);
    }

    fn refuses_name(&self, plan: &str, arguments: &[&str], words: &[&str]) {
        let out = self.folder.path().join("out");
        let mut command = deme();
        command.arg("ablate").arg(plan).arg("--recipe").arg(&self.recipe).arg("--out").arg(&out);
        let said = fail_with(command.args(arguments), 2);
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        assert!(!out.exists(), "work was begun");
    }

    /// A plan of one entry.
    fn refuses_entry(&self, fields: &str, arguments: &[&str], words: &[&str]) {
        self.refuses(
            "plan.toml",
            &format!("[[ablation]]\nname = \"A\"\n{fields}"),
            arguments,
            words,
        );
    }
}

const LINE: &str =
    r#"{"name": "A", "ablated_part": "ema", "action": "REMOVE", "metrics": ["fd_tiny_clip"]}"#;

#[test]
fn files_that_are_no_plans() {
    let place = Place::new();
    place.refuses_name("merging-wieghts", &[], &["no plan merging-wieghts", "`merging-weights`"]);
    place.refuses("plan.yaml", "", &[], &["no plan by its name", ".jsonl"]);
    place.refuses("plan.toml", "", &[], &["holds no ablation", "[[ablation]]"]);
    place.refuses("plan.md", "# A plan\n\nwords\n", &[], &["holds no ablation"]);
    let broken = format!("{LINE}\n{}\n{{\"name\": \n", LINE.replace("\"A\"", "\"B\""));
    place.refuses("plan.jsonl", &broken, &[], &["plan.jsonl, line 3", "no JSON object"]);
    place.refuses("plan.toml", "[[ablation]]\nnmae = \"A\"\n", &[], &["the plan is wrong", "nmae"]);
    let plans = format!("{{\"a\": {{\"predictions\": {LINE:?}}}, \"b\": {{}}}}");
    place.refuses("plans.json", &plans, &[], &["the plans of a, b", "plans.json#a"]);
    place.refuses(
        "plan.jsonl",
        &format!("{LINE}\n{LINE}\n"),
        &[],
        &["two ablations are called “A”"],
    );
    let no_action = LINE.replace("\"action\": \"REMOVE\", ", "");
    place.refuses("plan.jsonl", &no_action, &[], &["line 1: there is no action"]);
    let modify = LINE.replace("REMOVE", "MODIFY");
    place.refuses("plan.jsonl", &modify, &[], &["MODIFY is no action", "ADD, REMOVE and REPLACE"]);
}

#[test]
fn parts_that_mean_nothing_or_too_much() {
    let place = Place::new();
    let remove = |part: &str| format!("part = {part:?}\naction = \"REMOVE\"\n");
    place.refuses_entry(
        &remove("the flavour of the projektion"),
        &[],
        &["no part of the recipe is", "projection (the channel-wise", "--bind"],
    );
    place.refuses_entry(
        &remove("the consistency loss and the channel projection"),
        &[],
        &["more than one part", "consistency_loss (", "projection ("],
    );
    place.refuses_entry(&remove("TIES merging"), &[], &["cannot be ablated here", "deme merge"]);
    let bind = ["--bind", "ema=projecton"];
    place.refuses_entry(&remove("ema"), &bind, &["projecton is no part", "projection ("]);
    place.refuses_entry(&remove("ema"), &["--bind", "ema"], &["has no `=`"]);
    place.refuses_entry(&remove("ema"), &["--bind", "emma=ema"], &["the plan does not say that"]);
}

#[test]
fn actions_that_do_not_fit_the_recipe() {
    let place = Place::new();
    let entry = |part: &str, action: &str| format!("part = {part:?}\naction = {action:?}\n");
    place.refuses_entry(
        &entry("consistency loss", "ADD"),
        &[],
        &["has consistency_loss already: weight 1", "REMOVE"],
    );
    place.refuses_entry(
        &entry("loss weighting", "REMOVE"),
        &[],
        &["the recipe has no loss_weighting", "ADD"],
    );
    place.refuses_entry(
        &entry("learning rate", "REMOVE"),
        &[],
        &["only be REPLACEd", "as in 5e-5"],
    );
    place.refuses_entry(
        &entry("ranges", "REPLACE"),
        &[],
        &["REPLACE needs a replacement", "N = 4"],
    );
    let with = format!("{}replacement = [\"off\"]\n", entry("ema", "REMOVE"));
    place.refuses_entry(&with, &[], &["REMOVE has no replacement, but there is “off”"]);
}

#[test]
fn replacements_that_cannot_be() {
    let place = Place::new();
    let replace = |part: &str, replacement: &str| {
        format!("part = {part:?}\naction = \"REPLACE\"\nreplacement = {replacement}\n")
    };
    place.refuses_entry(&replace("ranges", "[\"many\"]"), &[], &["“many” is no ranges", "as in 4"]);
    place.refuses_entry(
        &replace("weights", "[\"0.1, 0.2, 0.3\"]"),
        &[],
        &["3 weights for 2 experts"],
    );
    place.refuses_entry(
        &replace("weights", "[\"uniform\", \"equal weights\"]"),
        &[],
        &["“uniform” and “equal weights” are the same"],
    );
    // The tiny recipe has 100 timesteps.
    place.refuses_entry(
        &replace("ranges", "[2, 101]"),
        &[],
        &["variant “N = 101”", "decouple.ranges = 101", "between 1 and 100"],
    );
    place.refuses_entry(
        &replace("probability", "[1.5]"),
        &[],
        &["variant “p = 1.5”", "from 0 to 1"],
    );
    place.refuses_entry(
        &replace("weights", "[\"gradient search\"]"),
        &[],
        &["variant “gradient search”", "has no gradient here", "search by the loss"],
    );
    place.refuses_entry(
        &replace("ranges", "[4]"),
        &["--set", "merge.weights=[0.5, 0.5]"],
        &["merging weights for its 2 experts", "--set merge.weights="],
    );
    place.refuses_entry(&replace("ranges", "[2]"), &[], &["no replacement differs", "N = 2"]);
    place.refuses_entry(
        &replace("techniques", "[{ merging = \"ensemble\", weights = \"uniform\" }]"),
        &[],
        &["asks for two models at once"],
    );
    // The tiny recipe searches a whole grid, which grows with the experts.
    place.refuses_entry(
        &replace("ranges", "[8]"),
        &[],
        &["variant “N = 8”", "needs 6561 evaluations", "`coordinate_grid`"],
    );
    // What is wrong with the recipe itself is no variant's fault.
    place.refuses_entry(
        &replace("ranges", "[4]"),
        &["--set", "decouple.rnages=2"],
        &["the recipe is wrong", "did you mean `ranges`?"],
    );
}

#[test]
fn metrics_that_cannot_be_had() {
    let place = Place::new();
    place.refuses_name(
        "merging-weights.md",
        &[],
        &[
            "FID cannot be measured",
            "gives fd_tiny_clip",
            "--metrics fd_tiny_clip",
            "--bind \"FID=none\"",
        ],
    );
    let bind_one = ["--bind", "FID=fd_tiny_clip"];
    place.refuses_name("merging-weights.md", &bind_one, &["CLIP Score cannot be measured"]);
    let bind_none = ["--bind", "FID=none", "--bind", "CLIP Score=none"];
    place.refuses_name("merging-weights.md", &bind_none, &["nothing is left to measure"]);
    place.refuses_name("merging-weights", &["--metrics", "beauty"], &["beauty cannot be measured"]);
}
