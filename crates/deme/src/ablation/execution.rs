//! An ablation that is carried out: variants and seeds to planned runs, runs to numbers.
//!
//! All variants work in one run folder. A stage's key says what it computes, so what variants have in common
//! (data, the judge, the pretrained model, experts, searches) is there once, whoever comes first; and only the
//! stages that the compared rows need are done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::tensor::Device;
use deme_eval::Measurement;
use serde_json::Value;

use super::AblationError;
use super::bindings::Bindings;
use super::metric_names::is_clip_score;
use super::parts::part;
use super::plan::AblationPlan;
use super::results::{
    AblationResults, AblationRow, AblationTable, Failure, Measured, SCHEMA_VERSION,
};
use super::variants::{Ablation, Variant, VariantKind, ablations_of};
use crate::diagnostics::Problem;
use crate::progress::{Voice, say};
use crate::recipe::Recipe;
use crate::stages::{Context, Plan, RowPlan, metric_names, run_row};

/// What is asked for.
pub struct Request<'a> {
    /// A plan's file, or the name of a shipped one.
    pub plan: &'a str,
    /// The recipe; the embedded one when there is none.
    pub recipe: Option<&'a Path>,
    /// Overrides of the recipe, for all variants.
    pub overrides: &'a [String],
    /// Metrics in place of the plan's; the plan's when empty.
    pub metrics: &'a [String],
    /// What the plan's words mean.
    pub bindings: &'a [String],
    /// How many seeds, from the recipe's on.
    pub seeds: u64,
}

/// A plan that is understood, with the recipe it changes.
pub struct Understood {
    /// The plan.
    pub plan: AblationPlan,
    /// The recipe as it is.
    pub recipe: Recipe,
    /// The plan's entries.
    pub ablations: Vec<Ablation>,
    /// The recipe's seed of each repetition.
    pub seeds: Vec<u64>,
    recipe_path: Option<PathBuf>,
    overrides: Vec<String>,
}

impl Understood {
    /// Reads plan and recipe.
    ///
    /// # Errors
    /// Whatever is wrong with either.
    pub fn read(request: &Request<'_>) -> Result<Self, Problem> {
        let recipe = Recipe::load(request.recipe, request.overrides)?;
        let mut plan = AblationPlan::load(request.plan)?;
        if !request.metrics.is_empty() {
            plan.entries.iter_mut().for_each(|entry| entry.metrics = request.metrics.to_vec());
        }
        let bindings = Bindings::read(request.bindings)?;
        let ablations = ablations_of(&plan, &recipe, &metric_names(&recipe), &bindings)?;
        bindings.check_used()?;
        Ok(Self {
            seeds: (0..request.seeds).map(|k| recipe.seed.wrapping_add(k)).collect(),
            plan,
            recipe,
            ablations,
            recipe_path: request.recipe.map(Path::to_owned),
            overrides: request.overrides.to_vec(),
        })
    }

    /// The recipe of a variant at one of the seeds. A repetition has the same pictures and parts of them, and
    /// other seeds for everything else: also its samples are other ones, so that the spread over repetitions
    /// is that of the whole.
    fn recipe_of(&self, variant: &Variant, repetition: usize) -> Result<Recipe, Problem> {
        let mut overrides = self.overrides.clone();
        overrides.extend(variant.overrides.iter().cloned());
        if repetition > 0 {
            let sampling = &self.recipe.sampling;
            let shift = (repetition * sampling.images) as u64;
            let first_seed = sampling.first_seed.wrapping_add(shift);
            overrides.push(format!("seed={}", self.seeds[repetition]));
            overrides.push(format!("sampling.first_seed={first_seed}"));
        }
        Recipe::load(self.recipe_path.as_deref(), &overrides)
    }
}

/// A variant's run at one seed.
pub struct PlannedRun {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its stages.
    pub plan: Plan,
}

/// A variant at one seed.
#[derive(Clone)]
pub struct Cell {
    /// The run, which others may share.
    pub run: Rc<PlannedRun>,
    /// The name of the row that is measured.
    pub row: String,
}

impl Cell {
    /// The row that is measured.
    pub fn row(&self) -> &RowPlan {
        self.run.plan.row(&self.row).expect("a cell is made with a row of its plan")
    }

    /// What the measurement is known by: equal for equal models and ways of measuring.
    fn key(&self) -> String {
        self.row().metrics.key.to_string()
    }
}

/// Every run planned, nothing done.
pub struct Planned<'a> {
    /// What was understood.
    pub understood: &'a Understood,
    /// By ablation, variant and seed.
    pub cells: Vec<Vec<Vec<Cell>>>,
    context: Context<'a>,
}

impl<'a> Planned<'a> {
    /// Plans all runs in the folder `root`, which need not exist.
    ///
    /// # Errors
    /// [`AblationError::ImpossibleVariant`] for the first variant that cannot be carried out,
    /// [`AblationError::NothingChanges`], and what is wrong with the recipe itself.
    pub fn new(
        understood: &'a Understood,
        root: &Path,
        device: Device,
        voice: Voice,
    ) -> Result<Self, Problem> {
        let context = Context::open(&understood.recipe, device, voice)?;
        let mut runs: BTreeMap<(usize, Vec<String>), Rc<PlannedRun>> = BTreeMap::new();
        let mut cells = Vec::new();
        for ablation in &understood.ablations {
            let mut of_variants = Vec::new();
            for variant in &ablation.variants {
                let mut of_seeds = Vec::new();
                for repetition in 0..understood.seeds.len() {
                    let key = (repetition, variant.overrides.clone());
                    let run = match runs.get(&key) {
                        Some(run) => Rc::clone(run),
                        None => {
                            let planned =
                                planned_run(understood, variant, repetition, &context, root);
                            let run = Rc::new(planned.map_err(|p| blame(ablation, variant, p))?);
                            runs.insert(key, Rc::clone(&run));
                            run
                        }
                    };
                    of_seeds.push(Cell { run, row: variant.row.id() });
                }
                of_variants.push(of_seeds);
            }
            check_difference(ablation, &of_variants, understood)?;
            cells.push(of_variants);
        }
        Ok(Self { understood, cells, context })
    }

    /// Runs what is not finished, seed by seed, and calls `after_seed` with what is known behind each.
    /// Variants that fail are left behind.
    ///
    /// # Errors
    /// What no variant can go on after, such as a full disk; and those of `after_seed`.
    pub fn run(
        &self,
        mut after_seed: impl FnMut(&AblationResults) -> Result<(), Problem>,
    ) -> Result<AblationResults, Problem> {
        let mut known: BTreeMap<String, Result<Vec<Measurement>, String>> = BTreeMap::new();
        let voice = self.context.voice;
        let mut results = self.results(&known);
        for (repetition, seed) in self.understood.seeds.iter().enumerate() {
            for (ablation, cells) in self.understood.ablations.iter().zip(&self.cells) {
                for (variant, cells) in ablation.variants.iter().zip(cells) {
                    let cell = &cells[repetition];
                    if known.contains_key(&cell.key()) {
                        continue;
                    }
                    if voice == Voice::Normal {
                        say(&format!("--- seed {seed}  {}: {}", ablation.name, variant.label));
                    }
                    let context = self.context.with_recipe(&cell.run.recipe);
                    let outcome = match run_row(&context, &cell.run.plan, cell.row()) {
                        Err(problem) if ends_everything(&problem) => return Err(problem),
                        Err(problem) => {
                            if voice == Voice::Normal {
                                say(&format!("failed: {problem}"));
                            }
                            Err(problem.to_string())
                        }
                        Ok(measurements) => Ok(measurements),
                    };
                    known.insert(cell.key(), outcome);
                }
            }
            results = self.results(&known);
            after_seed(&results)?;
        }
        Ok(results)
    }

    /// What the numbers known so far say.
    fn results(
        &self,
        known: &BTreeMap<String, Result<Vec<Measurement>, String>>,
    ) -> AblationResults {
        let Understood { plan, recipe, ablations, seeds, .. } = self.understood;
        let tables = ablations.iter().zip(&self.cells).map(|(ablation, cells)| {
            let part = part(ablation.part).expect("an ablation has a part of the table");
            let mut rows: Vec<AblationRow> = Vec::new();
            for (variant, of_seeds) in ablation.variants.iter().zip(cells) {
                if variant.kind == VariantKind::Asked && same_runs(of_seeds, &cells[0]) {
                    // The plan asks for what the recipe has.
                    rows[0].asked.extend(variant.asked.clone());
                } else {
                    rows.push(self.row(ablation, variant, of_seeds, known));
                }
            }
            let mut table = AblationTable {
                name: ablation.name.clone(),
                part: ablation.part.to_owned(),
                part_title: part.title.to_owned(),
                asked_part: ablation.asked_part.clone(),
                action: ablation.action,
                reason: ablation.reason.clone(),
                metrics: ablation.metrics.clone(),
                rows,
            };
            table.summarise();
            table
        });
        AblationResults {
            schema_version: SCHEMA_VERSION,
            plan: plan.name.clone(),
            recipe: recipe.name.clone(),
            recipe_toml: recipe.to_toml(),
            seeds: seeds.clone(),
            notes: notes(self.understood),
            ablations: tables.collect(),
        }
    }

    fn row(
        &self,
        ablation: &Ablation,
        variant: &Variant,
        cells: &[Cell],
        known: &BTreeMap<String, Result<Vec<Measurement>, String>>,
    ) -> AblationRow {
        let mut measured: BTreeMap<String, Vec<Option<Measured>>> = BTreeMap::new();
        let mut failures = Vec::new();
        let mut protocol = Value::Null;
        for (cell, seed) in cells.iter().zip(&self.understood.seeds) {
            let outcome = known.get(&cell.key());
            let mut fail = |reason: String| failures.push(Failure { seed: *seed, reason });
            let measurements = match outcome {
                Some(Ok(measurements)) => measurements.as_slice(),
                Some(Err(reason)) => {
                    fail(reason.clone());
                    &[]
                }
                None => &[],
            };
            for metric in &ablation.metrics {
                let found = measurements.iter().find(|m| m.protocol.metric == metric.name);
                if found.is_none() && !measurements.is_empty() {
                    fail(format!("the run did not measure {}", metric.name));
                }
                let found = found.filter(|found| {
                    let is_number = found.value.is_finite();
                    if !is_number {
                        fail(format!("{} is {}", metric.name, found.value));
                    }
                    is_number
                });
                if let (Some(found), Value::Null) = (found, &protocol) {
                    protocol = protocol_without_model(found);
                }
                let number = found.map(|m| Measured { value: m.value, spread: m.std_error });
                measured.entry(metric.name.clone()).or_default().push(number);
            }
        }
        AblationRow {
            label: variant.label.clone(),
            kind: variant.kind,
            asked: variant.asked.iter().cloned().collect(),
            note: variant.note.clone(),
            overrides: variant.overrides.clone(),
            run_row: variant.row,
            number: variant.number,
            measured,
            failures,
            summary: BTreeMap::new(),
            protocol,
        }
    }
}

fn planned_run(
    understood: &Understood,
    variant: &Variant,
    repetition: usize,
    context: &Context<'_>,
    root: &Path,
) -> Result<PlannedRun, Problem> {
    let recipe = understood.recipe_of(variant, repetition)?;
    let plan = Plan::new(&context.with_recipe(&recipe), root)?;
    if plan.row(&variant.row.id()).is_none() {
        return Err(Problem::Impossible {
            message: format!("its run has no row {}", variant.row.id()),
            help: "deme run --dry-run shows the rows of a recipe".to_owned(),
        });
    }
    Ok(PlannedRun { recipe, plan })
}

/// A variant's problem is named by its variant; the recipe's own is not.
fn blame(ablation: &Ablation, variant: &Variant, problem: Problem) -> Problem {
    if variant.kind == VariantKind::Base || problem.exit_code() != 2 {
        return problem;
    }
    let help = miette::Diagnostic::help(&problem).map(|help| help.to_string());
    AblationError::ImpossibleVariant {
        entry: ablation.name.clone(),
        variant: variant.label.clone(),
        problem: Box::new(problem),
        help,
    }
    .into()
}

fn same_runs(a: &[Cell], b: &[Cell]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.key() == b.key())
}

fn check_difference(
    ablation: &Ablation,
    cells: &[Vec<Cell>],
    understood: &Understood,
) -> Result<(), AblationError> {
    let asked = ablation.variants.iter().zip(cells);
    let mut asked = asked.filter(|(variant, _)| variant.kind == VariantKind::Asked);
    if asked.all(|(_, of_seeds)| same_runs(of_seeds, &cells[0])) {
        return Err(AblationError::NothingChanges {
            entry: ablation.name.clone(),
            current: (ablation.part().current)(&understood.recipe).text,
        });
    }
    Ok(())
}

/// Nothing else would succeed either, or what was done would not be kept.
fn ends_everything(problem: &Problem) -> bool {
    problem.is_out_of_room()
        || matches!(problem, Problem::Write { .. } | Problem::RunDirBusy { .. })
}

fn protocol_without_model(measurement: &Measurement) -> Value {
    let mut protocol = serde_json::to_value(&measurement.protocol).expect("plain data");
    if let Some(fields) = protocol.as_object_mut() {
        fields.remove("model");
        fields.remove("model_hash");
    }
    protocol
}

fn notes(understood: &Understood) -> Vec<String> {
    let mut notes = Vec::new();
    for ablation in &understood.ablations {
        for metric in &ablation.metrics {
            for asked in &metric.stands_for {
                let note = format!(
                    "{} stands for {asked}, which this recipe does not give. It is another number and \
                     cannot be compared with published ones.",
                    metric.name
                );
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
    }
    notes.push(match understood.seeds.len() {
        1 => "One seed: there is no interval over seeds. A difference counts when it exceeds two combined \
              spreads over resampled pictures, which says nothing of another training."
            .to_owned(),
        n => format!(
            "{n} seeds. Intervals are 95% of Student's t over seeds; differences are paired by seed. They \
             are not corrected for the number of comparisons: of twenty, about one is outside by chance."
        ),
    });
    let mut scores: Vec<&str> = Vec::new();
    for metric in understood.ablations.iter().flat_map(|ablation| &ablation.metrics) {
        if is_clip_score(&metric.name) && !scores.contains(&metric.name.as_str()) {
            scores.push(&metric.name);
        }
    }
    for score in scores {
        notes.push(format!(
            "{score} says whether pictures show what their prompts ask for, the distance whether they look \
             like real ones. Each is judged by itself: a variant can win by one and lose by the other."
        ));
    }
    notes.push(
        "All variants of a seed have the same pictures, parts of them, pretrained model and seeds of their \
         samples. Stages that variants share were computed once."
            .to_owned(),
    );
    if understood.recipe.evaluation.extractor.is_none() {
        notes.push(
            "The judge, tiny_clip, is a small CLIP that is trained anew at each seed. Means over seeds are \
             therefore rough, differences within a seed have one judge, and no number of it can be compared \
             with published ones."
                .to_owned(),
        );
    }
    notes
}
