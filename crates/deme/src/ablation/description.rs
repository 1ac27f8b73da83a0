//! What an ablation would do: its variants, what they share, what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::execution::{Cell, Planned};
use super::variants::{Variant, VariantKind};
use crate::commands::run::Cost;
use crate::run_dir::StageSlot;

/// The text of `--dry-run`.
pub fn describe(planned: &Planned<'_>, root: &Path, out: &Path) -> String {
    let understood = planned.understood;
    let mut text = String::new();
    let seeds: Vec<String> = understood.seeds.iter().map(u64::to_string).collect();
    let _ = writeln!(text, "plan      {} ({})", understood.plan.name, understood.plan.source);
    let _ = writeln!(text, "recipe    {}", understood.recipe.name);
    let _ = writeln!(text, "seeds     {}", seeds.join(", "));
    let _ = writeln!(text, "stages    {}", root.display());
    let _ = writeln!(text, "results   {}", out.display());
    for (ablation, cells) in understood.ablations.iter().zip(&planned.cells) {
        let part = ablation.part();
        let _ = writeln!(text, "\n{}", ablation.name);
        let _ = writeln!(text, "  {} {}: {}", ablation.action.name(), part.id, part.title);
        if ablation.asked_part != part.id {
            let _ = writeln!(text, "  read from “{}”", ablation.asked_part);
        }
        for metric in &ablation.metrics {
            let stands_for = match metric.stands_for.as_slice() {
                [] => String::new(),
                asked => format!(", standing for {}", asked.join(" and ")),
            };
            let direction = if metric.lower_is_better { "lower" } else { "higher" };
            let _ =
                writeln!(text, "  measured by {}{stands_for} ({direction} is better)", metric.name);
        }
        for (variant, of_seeds) in ablation.variants.iter().zip(cells) {
            let is_base = of_seeds.iter().zip(&cells[0]).all(|(a, b)| same_measurement(a, b));
            describe_variant(&mut text, variant, is_base);
        }
    }
    describe_stages(&mut text, planned);
    text
}

fn same_measurement(a: &Cell, b: &Cell) -> bool {
    a.row().metrics.key == b.row().metrics.key
}

fn describe_variant(text: &mut String, variant: &Variant, is_base: bool) {
    let _ = writeln!(text, "  - {:<44} row {}", variant.label, variant.row.id());
    let mut remark = |words: String| {
        let _ = writeln!(text, "      {words}");
    };
    if let Some(asked) = &variant.asked {
        remark(format!("read from “{asked}”"));
    }
    if is_base && variant.kind != VariantKind::Base {
        remark("the recipe as it is: no row of its own".to_owned());
        return;
    }
    if let Some(note) = &variant.note {
        remark(note.clone());
    }
    variant.overrides.iter().for_each(|entry| remark(format!("--set {entry}")));
}

/// What some stages cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct StageCost {
    iterations: u64,
    images: u64,
    evaluations: u64,
}

impl StageCost {
    fn of(cell: &Cell, stage: &StageSlot) -> Self {
        let (recipe, plan) = (&cell.run.recipe, &cell.run.plan);
        let is = |other: &StageSlot| other.key == stage.key;
        let training = |iterations: u64| Self { iterations, ..Self::default() };
        let sampling = &recipe.sampling;
        if is(&plan.pretrained) {
            training(recipe.pretrained.training.as_ref().map_or(0, |t| t.iterations))
        } else if plan.experts.iter().any(is) {
            training(recipe.decouple.finetune.iterations)
        } else if plan.joint.as_ref().is_some_and(is) {
            training(recipe.joint_finetune().iterations)
        } else if plan.search.as_ref().is_some_and(is) {
            let (images, evaluations) = Cost::of_search(recipe, plan);
            Self { iterations: 0, images, evaluations }
        } else if plan.rows.iter().any(|row| is(&row.samples)) {
            let images = sampling.images as u64;
            Self {
                iterations: 0,
                images,
                evaluations: images * sampling.sampler.steps as u64 * Cost::passes(recipe),
            }
        } else {
            Self::default()
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            iterations: self.iterations.saturating_add(other.iterations),
            images: self.images.saturating_add(other.images),
            evaluations: self.evaluations.saturating_add(other.evaluations),
        }
    }
}

/// The stages of one kind: `expert-1` and `expert-2` are `expert`.
#[derive(Default)]
struct Kind {
    keys: BTreeSet<String>,
    asked: usize,
    finished: usize,
}

fn describe_stages(text: &mut String, planned: &Planned<'_>) {
    let mut kinds: Vec<String> = Vec::new();
    let mut by_kind: BTreeMap<String, Kind> = BTreeMap::new();
    let mut measurements = BTreeSet::new();
    let [mut alone, mut shared, mut left] = [StageCost::default(); 3];
    for cell in planned.cells.iter().flatten().flatten() {
        if !measurements.insert(cell.row().metrics.key.to_string()) {
            continue;
        }
        for stage in cell.run.plan.stages_of_row(cell.row()) {
            let name = stage.name.split('-').next().unwrap_or_default().to_owned();
            if !kinds.contains(&name) {
                kinds.push(name.clone());
            }
            let kind = by_kind.entry(name).or_default();
            let cost = StageCost::of(cell, stage);
            kind.asked += 1;
            alone = alone.and(cost);
            if kind.keys.insert(stage.key.to_string()) {
                shared = shared.and(cost);
                kind.finished += usize::from(stage.is_done());
                left = left.and(if stage.is_done() { StageCost::default() } else { cost });
            }
        }
    }
    let _ =
        writeln!(text, "\n{:<14}{:>10}{:>12}{:>10}", "stages", "needed", "different", "finished");
    for name in &kinds {
        let Kind { keys, asked, finished } = &by_kind[name];
        let _ = writeln!(text, "{name:<14}{asked:>10}{:>12}{finished:>10}", keys.len());
    }
    let _ =
        writeln!(text, "\n{:<24}{:>14}{:>14}{:>14}", "cost", "each alone", "shared", "left to do");
    for (name, part) in [
        ("training iterations", (|cost| cost.iterations) as fn(StageCost) -> u64),
        ("generated images", |cost| cost.images),
        ("network evaluations", |cost| cost.evaluations),
    ] {
        let (alone, shared, left) = (part(alone), part(shared), part(left));
        let _ = writeln!(text, "{name:<24}{alone:>14}{shared:>14}{left:>14}");
    }
}
