//! `deme run`: the whole job of a recipe.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::cli::RunArguments;
use crate::diagnostics::Problem;
use crate::progress::{Voice, say};
use crate::recipe::{Objective, Recipe};
use crate::run_dir::{RunDir, write_bytes};
use crate::stages::{self, Context, Plan};

/// Runs every stage that is not finished, or says what it would do.
pub fn run(arguments: &RunArguments) -> Result<(), Problem> {
    let recipe = Recipe::load(arguments.recipe.as_deref(), &arguments.overrides)?;
    let root = match &arguments.out {
        Some(out) => out.clone(),
        None => PathBuf::from("runs").join(&recipe.name),
    };
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    let context = Context::open(&recipe, super::device(arguments.device), voice)?;
    if arguments.dry_run {
        let plan = Plan::new(&context, &root)?;
        return super::print(&describe(&recipe, &plan, &root));
    }
    let run = RunDir::open(&root)?;
    let plan = Plan::new(&context, run.root())?;
    write_bytes(&root.join("recipe.toml"), recipe.to_toml().as_bytes())?;
    let outcome = stages::run(&context, &plan, run.root())?;
    if voice == Voice::Normal {
        if outcome.worked.is_empty() {
            say(&format!("nothing to do: all {} stages are finished", outcome.cached.len()));
        }
        say(&format!("merged model  {}", root.join("merged").display()));
        say(&format!("report        {}", root.join("report.html").display()));
    }
    Ok(())
}

/// The resolved recipe, the stages, and what they cost.
fn describe(recipe: &Recipe, plan: &Plan, root: &Path) -> String {
    let mut text = recipe.to_toml();
    let _ = writeln!(text, "\n# Stages, in {}", root.display());
    for stage in plan.stages() {
        let state = match (stage.is_done(), stage.is_started()) {
            (true, _) => "finished",
            (false, true) => "to be resumed",
            (false, false) => "to do",
        };
        let _ = writeln!(text, "# {:<24} {}  {state}", stage.name, stage.key.short());
    }
    let cost = Cost::of(recipe, plan);
    let _ = writeln!(text, "\n# Cost from nothing");
    let _ = writeln!(text, "# training iterations  {}", cost.iterations);
    let _ = writeln!(text, "# generated images     {}", cost.images);
    let _ = writeln!(text, "# network evaluations  {} (of one image)", cost.evaluations);
    let _ = writeln!(text, "# disk                 about {} MB", cost.bytes.div_ceil(1_000_000));
    text
}

/// What a recipe costs when nothing is finished.
#[derive(Debug, PartialEq)]
struct Cost {
    iterations: u64,
    images: u64,
    evaluations: u64,
    bytes: u64,
}

impl Cost {
    fn of(recipe: &Recipe, plan: &Plan) -> Self {
        let finetune = &recipe.decouple.finetune;
        let experts = plan.experts.len() as u64;
        let joint = if recipe.joint.enabled { experts } else { 0 };
        let pretraining = recipe.pretrained.training.as_ref().map_or(0, |t| t.iterations);
        let iterations = pretraining + finetune.iterations * (experts + joint);
        let sampled = (plan.rows.len() * recipe.sampling.images) as u64;
        let candidates = match recipe.merge.weights {
            Some(_) => 0,
            None => u64::try_from(recipe.merge.search.size(plan.experts.len())).unwrap_or(u64::MAX),
        };
        let steps = recipe.sampling.sampler.steps as u64;
        let (searched, loss_evaluations) = match &recipe.merge.objective {
            Objective::Frechet { images, .. } => (candidates.saturating_mul(*images as u64), 0),
            Objective::Loss { images } => (0, candidates.saturating_mul(*images as u64)),
        };
        let pixels = u64::from(recipe.preparation.resolution).pow(2) * 3;
        let models = 3 + experts + u64::from(recipe.joint.enabled);
        Self {
            iterations,
            images: sampled + searched,
            evaluations: (sampled + searched) * steps + loss_evaluations,
            bytes: models * plan.parameters * 4 + sampled * pixels,
        }
    }
}
