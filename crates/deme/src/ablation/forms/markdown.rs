//! AblationBench's plan for people: `### name`, then a list of `**Ablated Part**`, `**Action**`,
//! `**Replacement**` (with a list of its own) and `**Metrics**`. Other text is let pass; between a heading and
//! its list it is the reason.

use serde_json::Value;

use super::{Draft, names_in};
use crate::ablation::plan::words_of;
use crate::ablation::{AblationError, AblationPlan, PlanEntry};

/// The entries. A heading without such a list is none.
///
/// # Errors
/// [`AblationError::MissingField`], [`AblationError::UnknownAction`].
pub fn read(source: &str, text: &str) -> Result<Vec<PlanEntry>, AblationError> {
    let mut entries = Vec::new();
    let mut open: Option<Section> = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(heading) = heading(line) {
            let next = heading.map(|name| Section::new(index + 1, name));
            close(std::mem::replace(&mut open, next), source, &mut entries)?;
        } else if let Some(section) = &mut open {
            section.take(line);
        }
    }
    close(open, source, &mut entries)?;
    Ok(entries)
}

fn close(
    section: Option<Section>,
    source: &str,
    entries: &mut Vec<PlanEntry>,
) -> Result<(), AblationError> {
    if let Some(Section { line, mut draft, prose, has_list: true, .. }) = section {
        let name = draft.name.as_deref().unwrap_or_default();
        let place = format!("{source}, line {line} (“{name}”)");
        draft.reason = Some(prose.join(" "));
        entries.push(draft.finish(&place)?);
    }
    Ok(())
}

/// The name of a third-level heading; `Some(None)` for a heading of another level, which ends an entry.
fn heading(line: &str) -> Option<Option<String>> {
    let rest = line.trim_start_matches('#');
    let level = line.len() - rest.len();
    let is_heading = level > 0 && (rest.is_empty() || rest.starts_with(' '));
    is_heading.then(|| (level == 3).then(|| unescaped(rest.trim())))
}

/// A heading and what stands below it.
struct Section {
    /// The heading's line, counted from 1.
    line: usize,
    draft: Draft,
    prose: Vec<String>,
    has_list: bool,
    /// The field that nested list items belong to.
    open_field: Option<Field>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Part,
    Action,
    Replacement,
    Metrics,
}

impl Section {
    fn new(line: usize, name: String) -> Self {
        let draft = Draft { name: Some(name), ..Draft::default() };
        Self { line, draft, prose: Vec::new(), has_list: false, open_field: None }
    }

    fn take(&mut self, line: &str) {
        let Some(item) = list_item(line) else {
            let text = unescaped(line.trim());
            if !self.has_list && !text.is_empty() && !text.starts_with('<') {
                self.prose.push(text);
            }
            return;
        };
        match field_of(item) {
            Some((field, rest)) => {
                self.has_list = true;
                self.open_field = Some(field);
                if !rest.is_empty() {
                    self.fill(field, rest);
                }
            }
            // A field that a planner adds of its own.
            None if item.starts_with("**") => self.open_field = None,
            None => {
                if let Some(field) = self.open_field {
                    self.fill(field, unescaped(item));
                }
            }
        }
    }

    fn fill(&mut self, field: Field, text: String) {
        match field {
            Field::Part => self.draft.part = Some(text),
            Field::Action => self.draft.action = Some(text),
            Field::Replacement => self.draft.replacement.push(Value::String(text)),
            Field::Metrics => self.draft.metrics.extend(names_in(&text)),
        }
    }
}

/// What follows the dash or star of a list item.
fn list_item(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line.strip_prefix('-').or_else(|| line.strip_prefix("* "))?;
    (rest.starts_with(' ') || line.starts_with('*')).then(|| rest.trim())
}

/// `**Name**: text` of a known name.
fn field_of(item: &str) -> Option<(Field, String)> {
    let (name, rest) = item.strip_prefix("**")?.split_once("**")?;
    let field = match name.trim_end_matches(':').trim().to_lowercase().as_str() {
        "ablated part" => Field::Part,
        "action" => Field::Action,
        "replacement" | "replacements" => Field::Replacement,
        "metrics" | "metric" => Field::Metrics,
        _ => return None,
    };
    Some((field, unescaped(rest.trim_start().trim_start_matches(':').trim())))
}

/// `w\_i` as `w_i`.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escapes =
            character == '\\' && characters.peek().is_some_and(char::is_ascii_punctuation);
        if !escapes {
            plain.push(character);
        } else if let Some(escaped) = characters.next() {
            plain.push(escaped);
        }
    }
    plain
}

/// The plan as Markdown.
pub fn write(plan: &AblationPlan) -> String {
    let mut text = format!("# {}\n", plan.name);
    for entry in &plan.entries {
        text += &format!("\n### {}\n", entry.name);
        if let Some(reason) = &entry.reason {
            text += &format!("\n{reason}\n\n");
        }
        text += &format!("- **Ablated Part**: {}\n", entry.part);
        text += &format!("- **Action**: {}\n", entry.action.name());
        if !entry.replacement.is_empty() {
            text += "- **Replacement**:\n";
            entry
                .replacement
                .iter()
                .for_each(|value| text += &format!("  - {}\n", words_of(value)));
        }
        if !entry.metrics.is_empty() {
            text += &format!("- **Metrics**: {}\n", entry.metrics.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ablation::plan::Action;
    use serde_json::json;

    #[test]
    fn a_plan_amid_other_text_is_found() {
        let text = "# A planner's answer\n\nSome reasoning.\n\n### Discussion\nWords without a list.\n\n\
                    ### Ablation 1: the weights\n- **Ablated Part**: The weights (w\\_i).\n\
                    - **Action**: replace\n- **Rationale**: none\n  - not a replacement\n\
                    - **Replacement**: \n  - Uniform\n  * Grid search\n- **Metrics**: FID, CLIP Score\n\n</div>\n\
                    ## Another chapter\n- a list\n";
        let entries = read("a.md", text).unwrap();
        assert_eq!(entries.len(), 1);
        let entry = &entries[0];
        assert_eq!(
            (entry.name.as_str(), entry.action),
            ("Ablation 1: the weights", Action::Replace)
        );
        assert_eq!(entry.part, "The weights (w_i).");
        assert_eq!(entry.replacement, [json!("Uniform"), json!("Grid search")]);
        assert_eq!(entry.metrics, ["FID", "CLIP Score"]);
    }

    #[test]
    fn a_missing_field_is_named_with_its_line() {
        let text = "\n### A\n- **Ablated Part**: ema\n";
        let Err(AblationError::MissingField { place, field }) = read("a.md", text) else {
            panic!("accepted")
        };
        assert_eq!((place.as_str(), field), ("a.md, line 2 (“A”)", "action"));
    }
}
