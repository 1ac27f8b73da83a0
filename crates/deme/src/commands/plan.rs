//! `deme plan`: which parts of a recipe have no evidence yet, and a plan for the most telling ones.

use std::path::Path;

use crate::ablation::bindings::Bindings;
use crate::ablation::evidence::Evidence;
use crate::ablation::language_model::{Endpoint, plan_in};
use crate::ablation::proposal::{known_of_parts, propose};
use crate::ablation::question::{INSTRUCTIONS, question};
use crate::ablation::variants::ablations_of;
use crate::ablation::{AblationError, AblationPlan};
use crate::cli::PlanArguments;
use crate::diagnostics::Problem;
use crate::progress::say;
use crate::recipe::Recipe;
use crate::run_dir::write_bytes;
use crate::stages::metric_names;

/// Writes a plan.
pub fn run(arguments: &PlanArguments) -> Result<(), Problem> {
    let recipe = Recipe::load(arguments.recipe.as_deref(), &arguments.overrides)?;
    let evidence = read_evidence(arguments, &recipe)?;
    if !arguments.quiet {
        tell(&recipe, &evidence);
    }
    let metrics = metric_names(&recipe);
    let plan = match (&arguments.llm, &arguments.model) {
        (Some(url), Some(model)) => asked(arguments, &recipe, &evidence, &metrics, url, model)?,
        _ => propose(
            &recipe,
            arguments.recipe.as_deref(),
            &arguments.overrides,
            &evidence,
            &metrics,
            arguments.most,
        )?,
    };
    if !arguments.quiet {
        for entry in &plan.entries {
            say(&format!(
                "{}: {}",
                entry.name,
                entry.reason.as_deref().unwrap_or("no reason given")
            ));
        }
    }
    let text = plan.write(arguments.format);
    match &arguments.out {
        Some(path) => write_bytes(path, text.as_bytes()),
        None => super::print(&text),
    }
}

/// What lies in the folder of results; by default the run's, where there is one.
fn read_evidence(arguments: &PlanArguments, recipe: &Recipe) -> Result<Evidence, Problem> {
    match &arguments.results {
        Some(folder) => Evidence::read(folder),
        None => {
            let folder = Path::new("runs").join(&recipe.name);
            if folder.is_dir() { Evidence::read(&folder) } else { Ok(Evidence::default()) }
        }
    }
}

/// What is known, on standard error.
fn tell(recipe: &Recipe, evidence: &Evidence) {
    let runs = evidence.runs.iter().filter(|run| run.recipe == recipe.name).count();
    let known = known_of_parts(recipe, evidence);
    let ablations: usize = known.iter().map(|known| known.found.len()).sum();
    say(&format!("evidence for {}: {ablations} ablations, {runs} runs", recipe.name));
    for known in known.iter().filter(|known| !known.found.is_empty()) {
        let seeds =
            if known.seeds == 1 { "1 seed".to_owned() } else { format!("{} seeds", known.seeds) };
        say(&format!("  {} ({seeds}): {}", known.part.id, known.found.join("; ")));
    }
    let unknown: Vec<&str> =
        known.iter().filter(|known| known.found.is_empty()).map(|known| known.part.id).collect();
    say(&format!("without evidence: {}", unknown.join(", ")));
}

/// A language model's plan, checked against the parts and the recipe.
fn asked(
    arguments: &PlanArguments,
    recipe: &Recipe,
    evidence: &Evidence,
    metrics: &[String],
    url: &str,
    model: &str,
) -> Result<AblationPlan, Problem> {
    let key_variable = arguments.llm_key_env.as_str();
    let endpoint = Endpoint { url, model, key: std::env::var(key_variable).ok(), key_variable };
    let mut length = 0;
    let answer = endpoint.ask(
        INSTRUCTIONS,
        &question(recipe, evidence, metrics, arguments.most),
        &mut |piece| length += piece.len(),
    )?;
    if !arguments.quiet {
        say(&format!("{model} answered with {length} bytes"));
    }
    let refused = |reason: String| AblationError::AnswerIsNoPlan { reason, answer: answer.clone() };
    let name = format!("{}-{}", recipe.name, model.replace(['/', ':'], "-"));
    let plan = plan_in(&name, &answer).map_err(|error| refused(error.to_string()))?;
    let ablations = ablations_of(&plan, recipe, metrics, &Bindings::default())
        .map_err(|error| refused(error.to_string()))?;
    for variant in ablations.iter().flat_map(|ablation| &ablation.variants) {
        let all: Vec<String> =
            arguments.overrides.iter().chain(&variant.overrides).cloned().collect();
        Recipe::load(arguments.recipe.as_deref(), &all)
            .map_err(|problem| refused(format!("variant “{}”: {problem}", variant.label)))?;
    }
    Ok(AblationPlan { name, ..plan })
}
