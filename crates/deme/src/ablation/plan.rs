//! An ablation plan: which parts are taken out, put in or exchanged, and what is measured.
//!
//! The fields are those of AblationBench (arXiv 2507.08038). A plan is words; what they mean for a recipe is
//! decided in `part_matching` and `variants`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AblationError;
use super::forms;
use super::shipped_plans::{self, SHIPPED_PLANS};
use crate::diagnostics::{Problem, nearest};

/// A plan.
#[derive(Debug, Clone, PartialEq)]
pub struct AblationPlan {
    /// What its file is called, without the ending; a TOML plan may say otherwise.
    pub name: String,
    /// Where it was read from.
    pub source: String,
    /// The ablations, in the plan's order.
    pub entries: Vec<PlanEntry>,
}

/// One ablation of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// Its name; unique in the plan.
    pub name: String,
    /// The ablated part, in the plan's words.
    pub part: String,
    /// What is done to it.
    pub action: Action,
    /// What it is exchanged for, or what is put in: texts, numbers, lists of numbers, tables.
    pub replacement: Vec<Value>,
    /// What is measured, in the plan's words; everything that the run gives when empty.
    pub metrics: Vec<String>,
    /// Why.
    pub reason: Option<String>,
}

/// What is done to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Put in what the recipe lacks.
    Add,
    /// Take out what the recipe has.
    Remove,
    /// Exchange it.
    Replace,
}

impl Action {
    /// The action of that name, in capitals or not.
    pub fn of_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_uppercase().as_str() {
            "ADD" => Some(Self::Add),
            "REMOVE" => Some(Self::Remove),
            "REPLACE" => Some(Self::Replace),
            _ => None,
        }
    }

    /// `ADD`, `REMOVE` or `REPLACE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Remove => "REMOVE",
            Self::Replace => "REPLACE",
        }
    }
}

/// How a plan is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlanForm {
    /// Our own: `[[ablation]]` tables
    Toml,
    /// AblationBench's predictions: one JSON object a line
    Jsonl,
    /// AblationBench's plan for people: a heading and a list for each ablation
    Markdown,
}

impl AblationPlan {
    /// Reads a plan: a file, or the name of a shipped plan. Behind a file that holds the plans of several
    /// papers, `#ID` says which.
    ///
    /// # Errors
    /// [`Problem::Read`], and the errors of a plan's form.
    pub fn load(name: &str) -> Result<Self, Problem> {
        if let Some((file, text)) = shipped_plans::find(name)
            && !Path::new(name).exists()
        {
            return Ok(Self::read(file, text, None)?);
        }
        let (path, id) = match name.rsplit_once('#') {
            Some((path, id)) if !Path::new(name).exists() => (path, Some(id)),
            _ => (name, None),
        };
        if !Path::new(path).exists() {
            let names = SHIPPED_PLANS.iter().map(|(file, _)| shipped_plans::name_of(file));
            return Err(AblationError::NoSuchPlan {
                name: name.to_owned(),
                help: match nearest(name, names.clone()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!(
                        "name a file, or one of the shipped plans: {}",
                        names.collect::<Vec<_>>().join(", ")
                    ),
                },
            }
            .into());
        }
        let text = std::fs::read_to_string(path).map_err(|e| Problem::read(Path::new(path), e))?;
        Ok(Self::read(path, &text, id)?)
    }

    /// Reads a plan's text; the ending of `source` says which form it has.
    ///
    /// # Errors
    /// Those of the form, and [`AblationError::EmptyPlan`], [`AblationError::SameName`].
    pub fn read(source: &str, text: &str, id: Option<&str>) -> Result<Self, AblationError> {
        let path = Path::new(source);
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut plan = Self {
            name: stem.unwrap_or_else(|| source.to_owned()),
            source: source.to_owned(),
            entries: Vec::new(),
        };
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("toml") => {
                let (name, entries) = forms::toml::read(source, text)?;
                plan.name = name.unwrap_or(plan.name);
                plan.entries = entries;
            }
            Some("jsonl") => plan.entries = forms::json::read_lines(source, text)?,
            Some("json") => plan.entries = forms::json::read_plans(source, text, id)?,
            Some("md" | "markdown") => plan.entries = forms::markdown::read(source, text)?,
            _ => return Err(AblationError::UnknownForm { source_name: source.to_owned() }),
        }
        plan.check_names()?;
        Ok(plan)
    }

    /// The plan in a form.
    pub fn write(&self, form: PlanForm) -> String {
        match form {
            PlanForm::Toml => forms::toml::write(self),
            PlanForm::Jsonl => forms::json::write(self),
            PlanForm::Markdown => forms::markdown::write(self),
        }
    }

    fn check_names(&self) -> Result<(), AblationError> {
        if self.entries.is_empty() {
            return Err(AblationError::EmptyPlan { source_name: self.source.clone() });
        }
        for (place, entry) in self.entries.iter().enumerate() {
            if self.entries[..place].iter().any(|earlier| earlier.name == entry.name) {
                return Err(AblationError::SameName { name: entry.name.clone() });
            }
        }
        Ok(())
    }
}

/// A replacement as a plan writes it: texts as they are, everything else as JSON.
pub fn words_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn plan() -> AblationPlan {
        let entry = |name: &str, action, replacement: Vec<Value>, reason: Option<&str>| PlanEntry {
            name: name.to_owned(),
            part: format!("the part of {name}"),
            action,
            replacement,
            metrics: vec!["FID".to_owned(), "CLIP Score".to_owned()],
            reason: reason.map(str::to_owned),
        };
        AblationPlan {
            name: "mine".to_owned(),
            source: "mine.toml".to_owned(),
            entries: vec![
                entry(
                    "one",
                    Action::Replace,
                    vec![json!("w_i = 1/N"), json!("*grid*")],
                    Some("a < b"),
                ),
                entry("two", Action::Remove, vec![], None),
                entry("three", Action::Add, vec![json!("[0.1, 0.2]")], None),
            ],
        }
    }

    #[test]
    fn every_form_gives_back_what_was_written() {
        for (form, name) in [
            (PlanForm::Toml, "mine.toml"),
            (PlanForm::Jsonl, "mine.jsonl"),
            (PlanForm::Markdown, "mine.md"),
        ] {
            let text = plan().write(form);
            let mut again = AblationPlan::read(name, &text, None).unwrap();
            again.source = "mine.toml".to_owned();
            let mut expected = plan();
            if form == PlanForm::Jsonl {
                // AblationBench's objects have no field for it.
                expected.entries[0].reason = None;
            }
            assert_eq!(again, expected, "{text}");
        }
    }

    #[test]
    fn an_unknown_ending_is_refused() {
        let refused = AblationPlan::read("plan.yaml", "", None);
        assert!(matches!(refused, Err(AblationError::UnknownForm { .. })));
    }

    #[test]
    fn a_plan_without_entries_is_refused() {
        for name in ["a.toml", "a.jsonl", "a.md"] {
            let refused = AblationPlan::read(name, "", None);
            assert!(matches!(refused, Err(AblationError::EmptyPlan { .. })), "{name}");
        }
    }

    #[test]
    fn two_entries_of_one_name_are_refused() {
        let mut plan = plan();
        plan.entries[1].name = "one".to_owned();
        let refused = AblationPlan::read("a.jsonl", &plan.write(PlanForm::Jsonl), None);
        assert!(matches!(refused, Err(AblationError::SameName { name }) if name == "one"));
    }

    #[test]
    fn a_name_that_is_nothing_is_refused_and_the_nearest_offered() {
        let Err(Problem::Ablation(AblationError::NoSuchPlan { help, .. })) =
            AblationPlan::load("merging-wieghts")
        else {
            panic!("found")
        };
        assert_eq!(help, "did you mean `merging-weights`?");
    }
}
