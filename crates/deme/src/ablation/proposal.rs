//! The next plan: parts of a recipe that nothing has ablated yet, the most telling ones first.
//!
//! How much a part tells is a guess written into the table of parts, moved by what earlier runs measured. The
//! reason of each entry says on which numbers it rests.

use std::path::Path;

use serde_json::{Value, json};

use super::AblationError;
use super::evidence::{Evidence, RowFacts, RunFacts};
use super::metric_names::Metric;
use super::parts::{PARTS, Part};
use super::plan::{AblationPlan, Action, PlanEntry};
use super::results::{AblationTable, Standing};
use super::setting::{RunRow, Setting, total_iterations};
use crate::recipe::Recipe;

/// A difference within so many combined spreads is none.
const SPREADS_TO_COUNT: f64 = 2.0;

/// What is known of one part.
pub struct PartEvidence {
    /// The part.
    pub part: &'static Part,
    /// The most seeds of an ablation of it; 0 where there is none.
    pub seeds: usize,
    /// What was found, a sentence each.
    pub found: Vec<String>,
}

/// Every part with what is known of it, for this recipe.
pub fn known_of_parts(recipe: &Recipe, evidence: &Evidence) -> Vec<PartEvidence> {
    PARTS
        .iter()
        .map(|part| {
            let mut known = PartEvidence { part, seeds: 0, found: Vec::new() };
            for (path, _, table) in evidence.of_part(&recipe.name, part.id) {
                known.seeds = known.seeds.max(seeds_of(table));
                known.found.push(format!("{} ({})", found_in(table), path.display()));
            }
            known
        })
        .collect()
}

/// The seeds at which a table has a number besides the recipe's.
fn seeds_of(table: &AblationTable) -> usize {
    let differences = table.rows.iter().flat_map(|row| row.summary.values());
    let seeds = differences.filter_map(|summary| Some(summary.difference.as_ref()?.seeds));
    seeds.max().unwrap_or(0)
}

/// `fd: uniform 1/N +0.12, within noise; clip_score: uniform 1/N -0.30, worse`
fn found_in(table: &AblationTable) -> String {
    let metrics: Vec<String> = table.metrics.iter().map(|metric| found_by(table, metric)).collect();
    if metrics.is_empty() { "nothing".to_owned() } else { metrics.join("; ") }
}

fn found_by(table: &AblationTable, metric: &Metric) -> String {
    let rows = table.rows.iter().filter_map(|row| {
        let found = row.summary.get(&metric.name)?.difference.as_ref()?;
        let words = match found.standing {
            Standing::Better => "better",
            Standing::Worse => "worse",
            Standing::WithinNoise => "within noise",
            Standing::Same => "the same",
            Standing::Unknown => "of unknown spread",
        };
        Some(format!("{} {:+.3}, {words}", row.label, found.mean))
    });
    let rows: Vec<String> = rows.collect();
    match rows.as_slice() {
        [] => format!("{}: nothing measured", metric.name),
        rows => format!("{}: {}", metric.name, rows.join("; ")),
    }
}

/// A plan of at most `most` ablations.
///
/// # Errors
/// [`AblationError::NothingToPropose`].
pub fn propose(
    recipe: &Recipe,
    recipe_path: Option<&Path>,
    overrides: &[String],
    evidence: &Evidence,
    metrics: &[String],
    most: usize,
) -> Result<AblationPlan, AblationError> {
    let run = evidence.run_of(&recipe.name);
    let mut scored: Vec<(f64, PlanEntry)> = Vec::new();
    for known in known_of_parts(recipe, evidence) {
        let part = known.part;
        let (weight, tells) = part.tells;
        if weight == 0 || known.seeds >= 2 {
            continue;
        }
        let candidates = Candidates::of(part, recipe, recipe_path, overrides);
        if candidates.texts.is_empty() {
            continue;
        }
        let (moved, hint) = run.and_then(|run| hint(part.id, run)).unwrap_or_default();
        // One seed is a beginning, not evidence.
        let score = (f64::from(weight) + moved) * if known.seeds == 1 { 0.5 } else { 1.0 };
        let mut reasons = vec![match known.found.first() {
            None => "Nothing has ablated it yet.".to_owned(),
            Some(found) => format!("Ablated at one seed only: {found}."),
        }];
        reasons.extend(hint);
        reasons.push(format!("It tells {tells}."));
        reasons.push(candidates.cost_in_words());
        let is_absent = part.switch.as_ref().is_some_and(|switch| !(switch.is_on)(recipe));
        let entry = PlanEntry {
            name: capitalised(part.title),
            part: part.id.to_owned(),
            action: if is_absent { Action::Add } else { Action::Replace },
            replacement: candidates.texts.into_iter().map(Into::into).collect(),
            metrics: metrics.to_vec(),
            reason: Some(reasons.join(" ")),
        };
        scored.push((score, entry));
    }
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let entries: Vec<PlanEntry> = scored.into_iter().take(most).map(|(_, entry)| entry).collect();
    if entries.is_empty() {
        return Err(AblationError::NothingToPropose);
    }
    let name = format!("{}-next", recipe.name);
    Ok(AblationPlan { source: format!("{name}.toml"), name, entries })
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

/// What a part can be exchanged for in this recipe.
struct Candidates {
    texts: Vec<String>,
    /// Finetuning and pretraining beyond the recipe's own.
    iterations: u64,
    images: u64,
}

impl Candidates {
    fn of(part: &Part, recipe: &Recipe, path: Option<&Path>, overrides: &[String]) -> Self {
        let mut found = Self { texts: Vec::new(), iterations: 0, images: 0 };
        for text in part.worth {
            let Ok(setting) = (part.read)(recipe, text) else { continue };
            let Some(variant) = variant(&setting, path, overrides) else { continue };
            let is_the_recipe = setting.row.is_none_or(|row| row == RunRow::Merged)
                && variant.to_toml() == recipe.to_toml();
            if is_the_recipe {
                continue;
            }
            found.texts.push((*text).to_owned());
            found.images += recipe.sampling.images as u64;
            found.iterations += new_iterations(recipe, &variant);
        }
        found
    }

    fn cost_in_words(&self) -> String {
        let images = self.images;
        match self.iterations {
            0 => format!(
                "It costs {images} images at each seed, and no training beyond the recipe's."
            ),
            n => format!("It costs {n} training iterations and {images} images at each seed."),
        }
    }
}

/// The variant's recipe, if there is one.
fn variant(setting: &Setting, path: Option<&Path>, overrides: &[String]) -> Option<Recipe> {
    let all: Vec<String> = overrides.iter().chain(&setting.overrides).cloned().collect();
    Recipe::load(path, &all).ok()
}

/// Iterations of the variant's training that the recipe does not have.
fn new_iterations(recipe: &Recipe, variant: &Recipe) -> u64 {
    let differs = |section: &dyn Fn(&Recipe) -> Value| section(recipe) != section(variant);
    let pretraining = variant.pretrained.training.as_ref().map_or(0, |t| t.iterations);
    if differs(&|recipe| json!(recipe.pretrained)) {
        pretraining + total_iterations(variant)
    } else if differs(&|recipe| json!(recipe.decouple)) {
        total_iterations(variant)
    } else {
        0
    }
}

/// Two rows of a run, compared.
struct Compared {
    words: String,
    /// The first is better.
    is_better: bool,
    /// The difference exceeds what the spreads explain.
    counts: bool,
}

fn compare(run: &RunFacts, a: &str, b: &str) -> Option<Compared> {
    let (first, second) = (run.row(a)?, run.row(b)?);
    let shown = |row: &RowFacts| match row.spread {
        Some(spread) => format!("{} {:.2} ± {spread:.2}", row.id, row.value),
        None => format!("{} {:.2}", row.id, row.value),
    };
    let difference = first.value - second.value;
    let noise = first.spread.zip(second.spread).map(|(a, b)| SPREADS_TO_COUNT * a.hypot(b));
    let counts = noise.is_some_and(|noise| difference.abs() > noise);
    let within = match noise {
        Some(noise) if counts => format!("more than two combined spreads ({noise:.2})"),
        Some(noise) => format!("within two combined spreads ({noise:.2})"),
        None => "with no spread measured".to_owned(),
    };
    let words = format!(
        "{} measured {} against {} in {}: a difference of {difference:+.2}, {within}, from one seed.",
        run.source.display(),
        shown(first),
        shown(second),
        run.metric
    );
    let is_better = if run.lower_is_better { difference < 0.0 } else { difference > 0.0 };
    Some(Compared { words, is_better, counts })
}

/// How far a run's numbers move the guess about a part, and the sentences that say so.
fn hint(part: &str, run: &RunFacts) -> Option<(f64, Vec<String>)> {
    let hint = |moved: f64, compared: Compared, then: &str| {
        Some((moved, vec![compared.words, then.to_owned()]))
    };
    match part {
        "weights" => {
            let found = compare(run, "merged", "uniform")?;
            match (found.counts, found.is_better) {
                (true, true) => {
                    hint(1.0, found, "Seeds will tell whether the search earns that always.")
                }
                (true, false) => {
                    hint(2.0, found, "The search made it worse: it fits its own pictures.")
                }
                (false, _) => hint(1.0, found, "Only repetitions can tell the two apart."),
            }
        }
        "ranges" => {
            let found = compare(run, "merged", "joint")?;
            match (found.counts, found.is_better) {
                (true, true) => hint(0.0, found, "Another N may give more."),
                (_, false) => {
                    hint(2.0, found, "Ranges do not pay at this N: N is the first suspect.")
                }
                (false, true) => hint(1.0, found, "Whether ranges pay at all is open."),
            }
        }
        "finetuning" => {
            let found = compare(run, "merged", "before")?;
            let moved = if found.counts { 0.0 } else { 1.5 };
            hint(moved, found, "The claim of the method is this difference.")
        }
        "merging" => {
            let found = compare(run, "merged", "ensemble")?;
            let moved = if found.counts { 1.0 } else { 0.0 };
            hint(moved, found, "The paper's merged model beats its ensemble.")
        }
        "consistency_loss" => {
            let weights = run.row("merged")?.weights.as_ref()?;
            let largest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = weights.iter().sum();
            let shown: Vec<String> = weights.iter().map(|w| format!("{w:.2}")).collect();
            let told = format!(
                "In {} the merging weights are {} (sum {sum:.2}).",
                run.source.display(),
                shown.join(", ")
            );
            (largest > 1.0).then(|| {
                let then = "Weights above 1 stretch the task vectors, as if the consistency loss had held \
                            the experts back.";
                (2.0, vec![told, then.to_owned()])
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::bindings::Bindings;
    use super::super::plan::PlanForm;
    use super::super::results::tests::{row, table, table_of_two, with_score};
    use super::super::results::{AblationResults, SCHEMA_VERSION};
    use super::super::variants::{VariantKind, ablations_of};
    use super::*;

    fn given() -> Vec<String> {
        vec!["fd_tiny_clip".to_owned()]
    }

    fn plan(evidence: &Evidence, most: usize) -> Result<AblationPlan, AblationError> {
        propose(&Recipe::load(None, &[]).unwrap(), None, &[], evidence, &given(), most)
    }

    fn run(values: &[(&str, f64)], weights: Option<Vec<f64>>) -> RunFacts {
        let rows = values.iter().map(|(id, value)| RowFacts {
            id: (*id).to_owned(),
            value: *value,
            spread: Some(0.1),
            weights: weights.clone().filter(|_| *id == "merged"),
        });
        RunFacts {
            source: "runs/shapes/metrics.json".into(),
            recipe: "shapes".to_owned(),
            metric: "fd_tiny_clip".to_owned(),
            lower_is_better: true,
            rows: rows.collect(),
        }
    }

    /// Results for a part at so many seeds.
    fn ablated(part: &str, seeds: usize) -> (std::path::PathBuf, AblationResults) {
        let values = |value: f64| -> Vec<Option<f64>> {
            (0..seeds).map(|k| Some(value + k as f64)).collect()
        };
        let base = row("the recipe", VariantKind::Base, &values(1.0), Some(0.1));
        let other = row("other", VariantKind::Asked, &values(1.05), Some(0.1));
        let mut table = table(vec![base, other]);
        table.part = part.to_owned();
        let results = AblationResults {
            schema_version: SCHEMA_VERSION,
            plan: "p".into(),
            recipe: "shapes".into(),
            recipe_toml: String::new(),
            seeds: (0..seeds as u64).collect(),
            notes: Vec::new(),
            ablations: vec![table],
        };
        (format!("runs/{part}/ablation.json").into(), results)
    }

    #[test]
    fn a_plan_of_what_has_no_evidence_can_be_carried_out_in_every_form() {
        let plan = plan(&Evidence::default(), 20).unwrap();
        assert!(plan.entries.len() >= 15, "{}", plan.entries.len());
        assert_eq!(plan.entries[0].part, "weights");
        let recipe = Recipe::load(None, &[]).unwrap();
        for (form, file) in
            [(PlanForm::Toml, "a.toml"), (PlanForm::Jsonl, "a.jsonl"), (PlanForm::Markdown, "a.md")]
        {
            let again = AblationPlan::read(file, &plan.write(form), None).unwrap();
            let found = ablations_of(&again, &recipe, &given(), &Bindings::default()).unwrap();
            for (ablation, entry) in found.iter().zip(&plan.entries) {
                assert_eq!(ablation.part, entry.part);
            }
        }
        // What the recipe lacks is added.
        let groups = plan.entries.iter().find(|entry| entry.part == "groups").unwrap();
        assert_eq!(groups.action, Action::Add);
        // What the recipe has is no candidate.
        let ranges = plan.entries.iter().find(|entry| entry.part == "ranges").unwrap();
        assert_eq!(ranges.replacement, ["2", "8"]);
        let reason = ranges.reason.as_deref().unwrap();
        assert!(reason.contains("It costs 2800 training iterations and 768 images"), "{reason}");
    }

    #[test]
    fn parts_with_evidence_are_left_out_and_one_seed_is_half_of_it() {
        let evidence =
            Evidence { ablations: vec![ablated("weights", 3), ablated("ranges", 1)], runs: vec![] };
        let plan = plan(&evidence, 20).unwrap();
        assert!(plan.entries.iter().all(|entry| entry.part != "weights"));
        let ranges = plan.entries.iter().find(|entry| entry.part == "ranges").unwrap();
        let reason = ranges.reason.as_deref().unwrap();
        assert!(
            reason.starts_with("Ablated at one seed only: fd: other +0.050, within noise"),
            "{reason}"
        );
        assert_ne!(plan.entries[0].part, "ranges");
        let known = known_of_parts(&Recipe::load(None, &[]).unwrap(), &evidence);
        let weights = known.iter().find(|known| known.part.id == "weights").unwrap();
        assert_eq!((weights.seeds, weights.found.len()), (3, 1));
    }

    #[test]
    fn every_metric_of_an_earlier_ablation_is_told() {
        let (path, mut results) = ablated("ranges", 1);
        let rows = results.ablations.remove(0).rows;
        let rows = rows.into_iter().zip([25.0, 26.0]);
        let rows = rows.map(|(row, score)| with_score(row, &[Some(score)], Some(0.1))).collect();
        results.ablations = vec![table_of_two(rows)];
        results.ablations[0].part = "ranges".to_owned();
        let evidence = Evidence { ablations: vec![(path, results)], runs: vec![] };
        let known = known_of_parts(&Recipe::load(None, &[]).unwrap(), &evidence);
        let ranges = known.iter().find(|known| known.part.id == "ranges").unwrap();
        let told = "fd: other +0.050, within noise; clip_score: other +1.000, better (";
        assert!(ranges.found[0].starts_with(told), "{:?}", ranges.found);
    }

    #[test]
    fn the_numbers_of_a_run_move_the_order_and_are_named() {
        let values = [("merged", 4.0), ("joint", 3.0), ("uniform", 4.1), ("before", 5.0)];
        let evidence =
            Evidence { ablations: vec![], runs: vec![run(&values, Some(vec![0.0, 2.0]))] };
        let plan = plan(&evidence, 4).unwrap();
        let parts: Vec<&str> = plan.entries.iter().map(|entry| entry.part.as_str()).collect();
        assert_eq!(parts[..3], ["weights", "ranges", "consistency_loss"]);
        let reason = |place: usize| plan.entries[place].reason.clone().unwrap();
        assert!(
            reason(0).contains("merged 4.00 ± 0.10 against uniform 4.10 ± 0.10"),
            "{}",
            reason(0)
        );
        assert!(reason(0).contains("within two combined spreads (0.28)"), "{}", reason(0));
        assert!(reason(1).contains("Ranges do not pay"), "{}", reason(1));
        assert!(
            reason(2).contains("the merging weights are 0.00, 2.00 (sum 2.00)"),
            "{}",
            reason(2)
        );
    }

    #[test]
    fn with_evidence_for_everything_there_is_nothing_to_propose() {
        let ablations = PARTS.iter().map(|part| ablated(part.id, 2)).collect();
        let refused = plan(&Evidence { ablations, runs: vec![] }, 4);
        assert!(matches!(refused, Err(AblationError::NothingToPropose)));
    }
}
