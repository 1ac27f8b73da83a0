//! What a language model is asked: the recipe, the parts that can be ablated, what is known, the form of a plan.

use std::fmt::Write;

use super::evidence::Evidence;
use super::parts::PARTS;
use super::proposal::known_of_parts;
use crate::recipe::Recipe;

/// What the model is told to be and to write.
pub const INSTRUCTIONS: &str = "You plan ablation experiments for Decouple-then-Merge, a method that finetunes \
copies of a pretrained diffusion model on their own ranges of timesteps and merges them by \
theta + sum_i w_i (theta_i - theta). Answer with a plan only: one JSON object a line, without any other text, \
each with the fields \"name\" (unique), \"ablated_part\" (the id of a part from the list you are given), \
\"action\" (ADD what the recipe lacks, REMOVE what it has, or REPLACE), \"replacement\" (for ADD and REPLACE: a \
list of values as the part reads them; leave it out for REMOVE), \"metrics\" (a list of the names you are given) \
and \"reason\" (one or two sentences that name the numbers they rest on). Put the most telling ablation first. Do \
not repeat what already has evidence from two seeds or more.";

/// The question about one recipe.
pub fn question(recipe: &Recipe, evidence: &Evidence, metrics: &[String], most: usize) -> String {
    let mut text = format!("Plan at most {most} ablations of this recipe.\n\n## Recipe\n\n");
    let _ = writeln!(text, "{}", recipe.to_toml());
    let _ = writeln!(text, "## Metrics\n\n{}\n", metrics.join(", "));
    let _ = writeln!(text, "## Parts\n");
    for part in PARTS {
        let _ = write!(text, "- {}: {}. Read as: {}.", part.id, part.title, part.reads);
        let _ = write!(text, " The recipe has: {}.", (part.current)(recipe).text);
        match &part.switch {
            Some(switch) if (switch.is_on)(recipe) => {
                let _ = writeln!(text, " REMOVE leaves {}.", switch.remove_means);
            }
            Some(switch) => {
                let _ = writeln!(text, " ADD puts in {}.", switch.add_means);
            }
            None => {
                let _ = writeln!(text, " REPLACE only.");
            }
        }
    }
    let _ = writeln!(text, "\n## What is known\n");
    for known in known_of_parts(recipe, evidence) {
        for found in &known.found {
            let _ = writeln!(text, "- {}, {} seeds: {found}", known.part.id, known.seeds);
        }
    }
    if let Some(run) = evidence.run_of(&recipe.name) {
        let _ = writeln!(text, "- one run, {}:", run.metric);
        for row in &run.rows {
            let spread = row.spread.map(|spread| format!(" ± {spread:.3}")).unwrap_or_default();
            let weights =
                row.weights.as_ref().map(|w| format!(", weights {w:?}")).unwrap_or_default();
            let _ = writeln!(text, "  - {} {:.3}{spread}{weights}", row.id, row.value);
        }
    }
    if evidence.ablations.is_empty() && evidence.run_of(&recipe.name).is_none() {
        let _ = writeln!(text, "- nothing");
    }
    text
}
