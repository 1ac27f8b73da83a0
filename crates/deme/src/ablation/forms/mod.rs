//! The forms a plan is written in, a file each: text to entries and back.

pub mod json;
pub mod markdown;
pub mod toml;

use super::plan::Action;
use super::{AblationError, PlanEntry};

/// What a form has read of an entry; nothing is required yet.
#[derive(Debug, Default)]
struct Draft {
    name: Option<String>,
    part: Option<String>,
    action: Option<String>,
    replacement: Vec<serde_json::Value>,
    metrics: Vec<String>,
    reason: Option<String>,
}

impl Draft {
    /// The entry, if all that an entry needs is there. `place` says where it stands, as in `line 3`.
    fn finish(self, place: &str) -> Result<PlanEntry, AblationError> {
        let missing = |field| AblationError::MissingField { place: place.to_owned(), field };
        let filled = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let name = filled(self.name).ok_or_else(|| missing("name"))?;
        let part = filled(self.part).ok_or_else(|| missing("ablated part"))?;
        let action = filled(self.action).ok_or_else(|| missing("action"))?;
        Ok(PlanEntry {
            action: Action::of_name(&action).ok_or_else(|| AblationError::UnknownAction {
                entry: name.clone(),
                found: action.trim().to_owned(),
            })?,
            name: name.trim().to_owned(),
            part: part.trim().to_owned(),
            replacement: self.replacement,
            metrics: self.metrics,
            reason: filled(self.reason),
        })
    }
}

/// `FID, CLIP Score` as names.
fn names_in(text: &str) -> Vec<String> {
    let names = text.split([',', ';']).map(str::trim).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}
