//! Single rows of a run: the stages that one row's numbers need, and no others.
//!
//! Ablations ask for a row of each of many recipes. What recipes have in common has the same keys, so in one
//! folder it is done once.

use std::collections::BTreeSet;

use deme_eval::{ExtractorConfig, Measurement};

use super::evaluate::{CLIP_SCORE, RowMetrics};
use super::{Context, Plan, RowPlan, stages};
use crate::diagnostics::Problem;
use crate::recipe::Recipe;
use crate::run_dir::{StageSlot, read_json};

/// The names of the metrics that a recipe's rows are measured by, the first one first.
pub fn metric_names(recipe: &Recipe) -> Vec<String> {
    // As `evaluate::judge` names them.
    let extractor = recipe.evaluation.extractor.as_ref();
    let mut names =
        vec![extractor.map_or("fd_tiny_clip".to_owned(), ExtractorConfig::frechet_metric)];
    // As `evaluate::score_clip` decides.
    let has_clip = recipe.evaluation.clip_score.is_some() || recipe.trains_clip();
    if recipe.is_text_to_image() && has_clip {
        names.push(CLIP_SCORE.to_owned());
    }
    names
}

impl Plan {
    /// The row of that name.
    pub fn row(&self, id: &str) -> Option<&RowPlan> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The stages that a row's numbers need, in the order in which they run.
    pub fn stages_of_row(&self, row: &RowPlan) -> Vec<&StageSlot> {
        let mut needed = BTreeSet::from([row.metrics.key.to_string()]);
        let mut stages = self.stages();
        // Inputs stand before what they are the inputs of.
        for stage in stages.iter().rev() {
            if needed.contains(&stage.key.to_string()) {
                needed.extend(stage.inputs().iter().map(ToString::to_string));
            }
        }
        stages.retain(|stage| needed.contains(&stage.key.to_string()));
        stages
    }
}

/// Runs the stages that a row's numbers need and that are not finished, and gives the numbers.
///
/// # Errors
/// Those of the stages.
pub fn run_row(
    context: &Context<'_>,
    plan: &Plan,
    row: &RowPlan,
) -> Result<Vec<Measurement>, Problem> {
    let needed: BTreeSet<String> =
        plan.stages_of_row(row).into_iter().map(|stage| stage.key.to_string()).collect();
    for (slot, work) in stages(context, plan) {
        if needed.contains(&slot.key.to_string()) {
            slot.run(work)?;
        }
    }
    measurements(row)
}

/// A finished row's numbers.
///
/// # Errors
/// When they are not there, or not readable.
pub fn measurements(row: &RowPlan) -> Result<Vec<Measurement>, Problem> {
    let metrics: RowMetrics = read_json(&row.metrics.folder().join("metrics.json"))?;
    Ok(metrics.measurements)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::progress::Voice;
    use burn::tensor::Device;

    fn names_of_row(id: &str) -> Vec<String> {
        let recipe = Recipe::load(None, &["data.count=2048".to_owned()]).unwrap();
        let context = Context::open(&recipe, Device::flex(), Voice::Quiet).unwrap();
        let plan = Plan::new(&context, "nowhere".as_ref()).unwrap();
        let stages = plan.stages_of_row(plan.row(id).unwrap());
        stages.into_iter().map(|stage| stage.name.clone()).collect()
    }

    #[test]
    fn a_row_needs_what_its_model_is_made_of() {
        let before = ["data", "clip", "pretrained", "samples-before", "metrics-before"];
        assert_eq!(names_of_row("before"), before);
        let uniform = names_of_row("uniform");
        assert!(
            uniform.contains(&"expert-4".to_owned()) && !uniform.contains(&"search".to_owned())
        );
        assert!(!uniform.contains(&"joint".to_owned()));
        let merged = names_of_row("merged");
        assert!(merged.contains(&"search".to_owned()) && !merged.contains(&"uniform".to_owned()));
        assert!(!merged.contains(&"samples-expert-1".to_owned()));
    }
}
