//! Ablations: from a plan to a table with intervals.
//!
//! A plan (`plan`, in one of the `forms`) names parts of the method in words. `part_matching` finds the part in
//! the table of all parts (`parts`), whose rows read what is exchanged for it (`part_readings`). So an entry
//! becomes variants (`variants`): lists of overrides of the recipe, and the row of the run that gives the number.
//! `execution` runs them in one folder and `results` says what the numbers say. `evidence` and `proposal` go the
//! other way: from results to the next plan.

pub mod bindings;
pub mod description;
mod error;
pub mod evidence;
pub mod execution;
mod forms;
pub mod language_model;
pub mod metric_names;
mod numbers_in_text;
mod part_matching;
mod part_readings;
pub mod parts;
pub mod plan;
pub mod proposal;
pub mod question;
pub mod results;
pub mod setting;
pub mod shipped_plans;
pub mod statistics;
pub mod variants;

pub use error::AblationError;
pub use plan::{AblationPlan, PlanEntry, PlanForm};
