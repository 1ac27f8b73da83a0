//! What a replacement becomes: settings of the recipe, and the row of the run that gives the number.

use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// A row of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunRow {
    /// The pretrained model.
    Before,
    /// Finetuned on all timesteps, without DeMe.
    Joint,
    /// One expert alone, counted from zero.
    Expert(usize),
    /// Each expert at its own timesteps.
    Ensemble,
    /// Merged with 1/N.
    Uniform,
    /// Merged with the weights that were searched or given.
    Merged,
}

impl RunRow {
    /// The row's name in the run.
    pub fn id(self) -> String {
        match self {
            Self::Before => "before".to_owned(),
            Self::Joint => "joint".to_owned(),
            Self::Expert(index) => format!("expert-{}", index + 1),
            Self::Ensemble => "ensemble".to_owned(),
            Self::Uniform => "uniform".to_owned(),
            Self::Merged => "merged".to_owned(),
        }
    }
}

/// The settings that a replacement stands for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Setting {
    /// How tables call it.
    pub label: String,
    /// Entries as of `--set`.
    pub overrides: Vec<String>,
    /// The row that gives the number; the merged model's when none is named.
    pub row: Option<RunRow>,
    /// Its place on an axis, where it has one.
    pub number: Option<f64>,
    /// What was decided in reading it.
    pub note: Option<String>,
}

impl Setting {
    /// Settings of the recipe.
    pub fn new(label: impl Into<String>, overrides: impl IntoIterator<Item = String>) -> Self {
        let overrides = overrides.into_iter().collect();
        Self { label: label.into(), overrides, ..Self::default() }
    }

    /// A number of the recipe.
    pub fn number(label: impl Into<String>, key: &str, number: f64) -> Self {
        let setting = Self::new(label, [format!("{key}={}", written(number))]);
        Self { number: Some(number), ..setting }
    }

    /// Another row of the run, nothing else.
    pub fn row(label: impl Into<String>, row: RunRow) -> Self {
        Self { label: label.into(), row: Some(row), ..Self::default() }
    }

    /// With a note.
    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// Both settings at once; none when each asks for another row.
    pub fn and(mut self, other: Self) -> Option<Self> {
        if let (Some(a), Some(b)) = (self.row, other.row)
            && a != b
        {
            return None;
        }
        self.label = match self.label.is_empty() {
            true => other.label,
            false => format!("{}, {}", self.label, other.label),
        };
        self.overrides.extend(other.overrides);
        self.row = self.row.or(other.row);
        self.number = None;
        self.note = match (self.note, other.note) {
            (Some(a), Some(b)) => Some(format!("{a}; {b}")),
            (a, b) => a.or(b),
        };
        Some(self)
    }
}

/// What a recipe has of a part.
#[derive(Debug, Clone, PartialEq)]
pub struct Current {
    /// In words.
    pub text: String,
    /// Its place on an axis, where it has one.
    pub number: Option<f64>,
}

impl Current {
    /// What has no place on an axis.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: None }
    }

    /// What has one.
    pub fn number(text: impl Into<String>, number: f64) -> Self {
        Self { text: text.into(), number: Some(number) }
    }
}

/// Why a replacement cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub enum Unread {
    /// It says nothing that the part knows.
    NoSense,
    /// It is understood, but cannot be.
    Because(String),
}

/// A replacement as settings.
pub type Reading = Result<Setting, Unread>;

/// A number as TOML and labels write it: whole ones without a point, very large and small ones with an exponent.
pub fn written(number: f64) -> String {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => format!("{}", number as i64),
        false => format!("{number:?}"),
    }
}

/// The recipe's total of finetuning iterations.
pub fn total_iterations(recipe: &Recipe) -> u64 {
    recipe.decouple.finetune.iterations * recipe.decouple.ranges as u64
}
