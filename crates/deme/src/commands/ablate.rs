//! `deme ablate`: a plan of ablations, from its words to a table.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::ablation::description::describe;
use crate::ablation::execution::{Planned, Request, Understood};
use crate::ablation::parts::PARTS;
use crate::ablation::results::{AblationResults, AblationRow, csv};
use crate::ablation::shipped_plans::{SHIPPED_PLANS, name_of};
use crate::ablation::{AblationError, AblationPlan};
use crate::cli::AblateArguments;
use crate::diagnostics::Problem;
use crate::progress::{Voice, say};
use crate::report::ablation_page::write_ablation_page;
use crate::run_dir::{RunDir, write_bytes, write_json};

/// Runs every variant that is not finished, or says what it would do.
pub fn run(arguments: &AblateArguments) -> Result<(), Problem> {
    if arguments.list_parts {
        return super::print(&list_parts());
    }
    if arguments.list_plans {
        return super::print(&list_plans()?);
    }
    let understood = Understood::read(&Request {
        plan: arguments.plan.as_deref().expect("required without a list"),
        recipe: arguments.recipe.as_deref(),
        overrides: &arguments.overrides,
        metrics: &arguments.metrics,
        bindings: &arguments.bindings,
        seeds: arguments.seeds,
    })?;
    let (root, out) = folders(arguments, &understood);
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    let device = super::device(arguments.device);
    // All variants are planned before there is a folder.
    let planned = Planned::new(&understood, &root, device, voice)?;
    if arguments.dry_run {
        return super::print(&describe(&planned, &root, &out));
    }
    let _run = RunDir::open(&root)?;
    std::fs::create_dir_all(&out).map_err(|e| Problem::write(&out, e))?;
    let results = planned.run(|results| write(results, &out))?;
    if voice == Voice::Normal {
        say(&format!("results  {}", out.join("ablation.html").display()));
    }
    report_failures(&results)
}

/// The folder of the stages, and that of the results.
fn folders(arguments: &AblateArguments, understood: &Understood) -> (PathBuf, PathBuf) {
    let own = || PathBuf::from("runs").join(&understood.recipe.name);
    let root = arguments.run.clone().or_else(|| arguments.out.clone()).unwrap_or_else(own);
    let out = arguments.out.clone();
    let out = out.unwrap_or_else(|| root.join("ablations").join(&understood.plan.name));
    (root, out)
}

fn write(results: &AblationResults, out: &Path) -> Result<(), Problem> {
    write_json(&out.join("ablation.json"), results)?;
    write_bytes(&out.join("ablation.csv"), csv(results).as_bytes())?;
    Ok(write_ablation_page(results, out)?)
}

fn report_failures(results: &AblationResults) -> Result<(), Problem> {
    let rows: Vec<_> = results.ablations.iter().flat_map(|table| &table.rows).collect();
    // A row may have failed by several metrics at one seed.
    let failed_seeds = |row: &AblationRow| {
        row.failures.iter().map(|failure| failure.seed).collect::<BTreeSet<u64>>().len()
    };
    let failed = rows.iter().map(|row| failed_seeds(row)).sum();
    if failed == 0 {
        return Ok(());
    }
    Err(AblationError::VariantsFailed { failed, total: rows.len() * results.seeds.len() }.into())
}

fn list_parts() -> String {
    let mut text = String::new();
    for part in PARTS {
        let _ = writeln!(text, "{}: {}", part.id, part.title);
        let _ = writeln!(text, "  sets      {}", part.keys);
        let _ = writeln!(text, "  REPLACE   {}", part.reads);
        if let Some(switch) = &part.switch {
            let _ = writeln!(text, "  ADD       {}", switch.add_means);
            let _ = writeln!(text, "  REMOVE    {}", switch.remove_means);
        }
        let _ = writeln!(text);
    }
    text
}

fn list_plans() -> Result<String, Problem> {
    let mut text = String::new();
    for (file, content) in SHIPPED_PLANS {
        let plan = AblationPlan::read(file, content, None)?;
        let names: Vec<&str> = plan.entries.iter().map(|entry| entry.part.as_str()).collect();
        let _ = writeln!(text, "{:<22}{}", name_of(file), names.join(", "));
    }
    Ok(text)
}
