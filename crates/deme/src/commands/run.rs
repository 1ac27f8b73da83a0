//! `deme run`: the whole job of a recipe.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::cli::RunArguments;
use crate::diagnostics::{Problem, nearest};
use crate::progress::{Voice, say};
use crate::recipe::{Recipe, SearchObjective};
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
    // What is wrong is found before there is a folder.
    let plan = Plan::new(&context, &root)?;
    if arguments.dry_run {
        return super::print(&describe(&recipe, &plan, &root));
    }
    let until = arguments.until.as_deref();
    check_stage(&plan, until)?;
    let run = RunDir::open(&root)?;
    write_bytes(&root.join("recipe.toml"), recipe.to_toml().as_bytes())?;
    let outcome = stages::run(&context, &plan, run.root(), until)?;
    if voice == Voice::Normal && until.is_none() {
        if outcome.worked.is_empty() {
            say(&format!("nothing to do: all {} stages are finished", outcome.cached.len()));
        }
        say(&format!("merged model  {}", root.join("merged").display()));
        say(&format!("report        {}", root.join("report.html").display()));
    }
    Ok(())
}

/// A stage to stop behind must be one of the plan's.
fn check_stage(plan: &Plan, until: Option<&str>) -> Result<(), Problem> {
    let Some(until) = until else { return Ok(()) };
    let names: Vec<&str> = plan.stages().into_iter().map(|stage| stage.name.as_str()).collect();
    if names.contains(&until) {
        return Ok(());
    }
    Err(Problem::Usage {
        message: format!("--until {until}: this recipe has no such stage"),
        help: match nearest(until, names.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("its stages are {}", names.join(", ")),
        },
    })
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
pub struct Cost {
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
        let steps = recipe.sampling.sampler.steps as u64 * Self::passes(recipe);
        let (searched, search_evaluations) = Self::of_search(recipe, plan);
        let landscape = match (&recipe.merge.landscape, &plan.landscape) {
            (Some(section), Some((_, plane))) => plane.size() as u64 * section.images as u64,
            _ => 0,
        };
        let pixels = u64::from(recipe.preparation.resolution).pow(2) * 3;
        let models = 3 + experts + u64::from(recipe.joint.enabled);
        Self {
            iterations,
            images: sampled + searched,
            evaluations: (sampled * steps + landscape).saturating_add(search_evaluations),
            bytes: models * plan.parameters * 4 + sampled * pixels,
        }
    }

    /// Evaluations of the network for one image and step of the sampler.
    pub fn passes(recipe: &Recipe) -> u64 {
        if recipe.is_text_to_image() { recipe.guidance().passes() } else { 1 }
    }

    /// Images that the search draws, and evaluations of the network in all of it. A backward pass counts
    /// as two more.
    pub fn of_search(recipe: &Recipe, plan: &Plan) -> (u64, u64) {
        if recipe.merge.weights.is_some() {
            return (0, 0);
        }
        let (search, experts) = (&recipe.merge.search, plan.experts.len());
        let tried = search.size(experts * plan.num_groups);
        // Uniform weights, each expert and the pretrained model are evaluated too.
        let tried = u64::try_from(tried).unwrap_or(u64::MAX).saturating_add(experts as u64 + 2);
        let passes = if search.needs_gradient() { 3 } else { 1 };
        let by_loss = |images: usize| tried.saturating_mul(passes * images as u64);
        let drawn = |points: u64, images: usize| points.saturating_mul(images as u64);
        let steps = recipe.search_sampler().steps as u64 * Self::passes(recipe);
        match recipe.merge.objective {
            SearchObjective::Loss { images } => (0, by_loss(images)),
            SearchObjective::Frechet { images, .. } => {
                let images = drawn(tried, images);
                (images, images.saturating_mul(steps))
            }
            SearchObjective::LossThenFrechet { loss_images, images, candidates, .. } => {
                let images = drawn((candidates + experts + 1) as u64, images);
                let by_distance = images.saturating_mul(steps);
                (images, by_loss(loss_images).saturating_add(by_distance))
            }
        }
    }
}
