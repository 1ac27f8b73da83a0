//! From a plan's words to variants of a recipe.
//!
//! A variant is a list of overrides of the recipe, and the row of the run that gives its number. Nothing is
//! trained or planned here.

use serde_json::Value;

use super::AblationError;
use super::bindings::Bindings;
use super::metric_names::{Metric, metrics_of};
use super::part_matching::{exact, part_of};
use super::parts::{Part, part};
use super::plan::{AblationPlan, Action, PlanEntry, words_of};
use super::setting::{Reading, RunRow, Setting, Unread};
use crate::recipe::Recipe;

/// A plan's entry that is understood.
#[derive(Debug, Clone)]
pub struct Ablation {
    /// The entry's name.
    pub name: String,
    /// The plan's words for the part.
    pub asked_part: String,
    /// The part's id.
    pub part: &'static str,
    /// What is done to it.
    pub action: Action,
    /// Why.
    pub reason: Option<String>,
    /// What is compared: the recipe as it is first.
    pub variants: Vec<Variant>,
    /// What is measured.
    pub metrics: Vec<Metric>,
}

impl Ablation {
    /// The part.
    pub fn part(&self) -> &'static Part {
        part(self.part).expect("an ablation is made with a part of the table")
    }
}

/// One row of an ablation.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// How tables call it.
    pub label: String,
    /// The plan's words for it; none for rows that are always there.
    pub asked: Option<String>,
    /// Why it is there.
    pub kind: VariantKind,
    /// Entries as of `--set`, behind those of the recipe.
    pub overrides: Vec<String>,
    /// The row of the run that is measured.
    pub row: RunRow,
    /// Its place on an axis, where it has one.
    pub number: Option<f64>,
    /// What was decided in reading it.
    pub note: Option<String>,
}

/// Why a variant is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VariantKind {
    /// The recipe as it is.
    Base,
    /// The plan asks for it.
    Asked,
    /// To compare with.
    Reference,
}

impl Variant {
    fn of(setting: Setting, kind: VariantKind, asked: Option<String>) -> Self {
        let Setting { label, overrides, row, number, note } = setting;
        Self { label, asked, kind, overrides, row: row.unwrap_or(RunRow::Merged), number, note }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.row == other.row && self.overrides == other.overrides
    }
}

/// What a plan means for a recipe that gives these metrics.
///
/// # Errors
/// Those of [`AblationError`] that concern words.
pub fn ablations_of(
    plan: &AblationPlan,
    recipe: &Recipe,
    given_metrics: &[String],
    bindings: &Bindings,
) -> Result<Vec<Ablation>, AblationError> {
    let ablation = |entry: &PlanEntry| {
        let part = match bindings.meaning(&entry.part) {
            Some(word) => exact(word).ok_or_else(|| bind_to_nothing(&entry.part, word))?,
            None => part_of(&entry.name, &entry.part)?,
        };
        let reader = Reader { entry, recipe, bindings };
        Ok(Ablation {
            name: entry.name.clone(),
            asked_part: entry.part.clone(),
            part: part.id,
            action: entry.action,
            reason: entry.reason.clone(),
            variants: reader.variants(part)?,
            metrics: metrics_of(&entry.name, &entry.metrics, given_metrics, bindings)?,
        })
    };
    plan.entries.iter().map(ablation).collect()
}

fn bind_to_nothing(text: &str, word: &str) -> AblationError {
    let nearest = match part_of("", word) {
        Ok(part) => format!("{} ({})", part.id, part.title),
        Err(AblationError::UnknownPart { nearest, .. }) => nearest,
        Err(AblationError::AmbiguousPart { parts, .. }) => parts,
        Err(_) => "none; --list-parts shows all".to_owned(),
    };
    AblationError::BindToNothing { text: text.to_owned(), word: word.to_owned(), nearest }
}

/// Reads one entry.
struct Reader<'a> {
    entry: &'a PlanEntry,
    recipe: &'a Recipe,
    bindings: &'a Bindings,
}

impl Reader<'_> {
    fn name(&self) -> String {
        self.entry.name.clone()
    }

    /// The recipe as it is, what the entry asks for, and what the part is compared with.
    fn variants(&self, part: &'static Part) -> Result<Vec<Variant>, AblationError> {
        let current = (part.current)(self.recipe);
        let mut variants = vec![Variant {
            label: format!("the recipe: {}", current.text),
            asked: None,
            kind: VariantKind::Base,
            overrides: Vec::new(),
            row: RunRow::Merged,
            number: current.number,
            note: None,
        }];
        for (text, setting) in self.settings(part)? {
            let variant = Variant::of(setting, VariantKind::Asked, text);
            let is_asked = |other: &&Variant| other.kind == VariantKind::Asked;
            if let Some(same) = variants.iter().filter(is_asked).find(|v| v.is_same(&variant)) {
                let words = |v: &Variant| v.asked.clone().unwrap_or_else(|| v.label.clone());
                return Err(AblationError::SameTwice {
                    entry: self.name(),
                    first: words(same),
                    second: words(&variant),
                });
            }
            variants.push(variant);
        }
        if part.id == "ranges" {
            let removed = part.switch.as_ref().expect("ranges can be removed").remove;
            for setting in [removed(self.recipe), super::part_readings::before()] {
                let reference = Variant::of(setting, VariantKind::Reference, None);
                if !variants.iter().any(|variant| variant.is_same(&reference)) {
                    variants.push(reference);
                }
            }
        }
        Ok(variants)
    }

    /// What the action and its replacements stand for, with the plan's words.
    fn settings(
        &self,
        part: &'static Part,
    ) -> Result<Vec<(Option<String>, Setting)>, AblationError> {
        let entry = self.entry;
        let current = || (part.current)(self.recipe).text;
        let only_replaced = || AblationError::NoSuchAction {
            entry: self.name(),
            part: part.id,
            title: part.title,
            reads: part.reads,
        };
        let empty = || AblationError::EmptyReplacement {
            entry: self.name(),
            action: entry.action.name(),
            part: part.id,
            reads: part.reads,
        };
        match entry.action {
            Action::Remove => {
                if let Some(first) = entry.replacement.first() {
                    let text = words_of(first);
                    return Err(AblationError::ReplacementForRemove { entry: self.name(), text });
                }
                let switch = part.switch.as_ref().ok_or_else(only_replaced)?;
                if !(switch.is_on)(self.recipe) {
                    return Err(AblationError::AlreadyAbsent {
                        entry: self.name(),
                        part: part.id,
                        current: current(),
                    });
                }
                Ok(vec![(None, (switch.remove)(self.recipe))])
            }
            Action::Add => {
                let switch = part.switch.as_ref().ok_or_else(only_replaced)?;
                if (switch.is_on)(self.recipe) {
                    return Err(AblationError::AlreadyPresent {
                        entry: self.name(),
                        part: part.id,
                        current: current(),
                    });
                }
                if !entry.replacement.is_empty() {
                    return self.replacements(part);
                }
                let text = switch.add.ok_or_else(empty)?;
                let setting = self.read(part, text)?;
                Ok(vec![(None, setting)])
            }
            Action::Replace if entry.replacement.is_empty() => Err(empty()),
            Action::Replace => self.replacements(part),
        }
    }

    fn replacements(
        &self,
        part: &'static Part,
    ) -> Result<Vec<(Option<String>, Setting)>, AblationError> {
        let values = &self.entry.replacement;
        let all_numbers = |values: &[Value]| values.iter().all(Value::is_number);
        if part.takes_number_lists && values.len() > 1 && all_numbers(values) {
            let text = values.iter().map(words_of).collect::<Vec<_>>().join(", ");
            return Ok(vec![(Some(text.clone()), self.read(part, &text)?)]);
        }
        if let [Value::String(text)] = values.as_slice()
            && let Some(split) = self.split(part, text)
        {
            return Ok(split);
        }
        let mut settings = Vec::new();
        for value in values {
            match value {
                Value::Object(fields) => settings.extend(self.combination(part, fields)?),
                Value::Array(numbers) if part.takes_number_lists && all_numbers(numbers) => {
                    let text = numbers.iter().map(words_of).collect::<Vec<_>>().join(", ");
                    settings.push((Some(text.clone()), self.read(part, &text)?));
                }
                other => {
                    let text = words_of(other);
                    settings.push((Some(text.clone()), self.read(part, &text)?));
                }
            }
        }
        Ok(settings)
    }

    /// A single text that makes sense only as a list: `2, 4, 8` or `[2, 4, 8]`.
    fn split(&self, part: &'static Part, text: &str) -> Option<Vec<(Option<String>, Setting)>> {
        if self.read(part, text).is_ok() {
            return None;
        }
        let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
        let texts: Vec<&str> = inside.split([',', ';', '\n']).map(str::trim).collect();
        let read = |text: &&str| {
            let text = text.trim_matches(['"', '\'']);
            Some((Some(text.to_owned()), self.read(part, text).ok()?))
        };
        if texts.len() < 2 { None } else { texts.iter().map(read).collect() }
    }

    /// A table of parts: one variant with all of them; or of one part with a list, a variant each. `label`
    /// is the variant's name.
    fn combination(
        &self,
        own: &'static Part,
        fields: &serde_json::Map<String, Value>,
    ) -> Result<Vec<(Option<String>, Setting)>, AblationError> {
        let label = fields.get("label").and_then(Value::as_str);
        let named: Vec<(&String, &Value)> =
            fields.iter().filter(|(key, _)| *key != "label").collect();
        let part_called = |key: &str| -> Result<&'static Part, AblationError> {
            let meaning = self.bindings.meaning(key).unwrap_or(key);
            match (part_of(&self.entry.name, meaning), named.len()) {
                (Ok(part), _) => Ok(part),
                // The key is the part's own name in the plan's notation: {"N": [2, 4, 8]}.
                (Err(_), 1) => Ok(own),
                (Err(error), _) => Err(error),
            }
        };
        if let [(key, Value::Array(values))] = named.as_slice() {
            let part = part_called(key)?;
            if !part.takes_number_lists || !values.iter().all(Value::is_number) {
                let each = values.iter().map(|value| {
                    let text = words_of(value);
                    Ok((Some(text.clone()), self.read(part, &text)?))
                });
                return each.collect();
            }
        }
        let words = Value::Object(fields.clone()).to_string();
        if named.is_empty() {
            return Err(self.unreadable(own, &words, None));
        }
        let mut whole = Setting::default();
        for (key, value) in &named {
            let part = part_called(key)?;
            let text = match value {
                Value::Array(values) => values.iter().map(words_of).collect::<Vec<_>>().join(", "),
                other => words_of(other),
            };
            let setting = self.read(part, &text)?;
            whole = whole.and(setting).ok_or_else(|| AblationError::TwoRows {
                entry: self.name(),
                text: label.unwrap_or(&words).to_owned(),
            })?;
        }
        if let Some(label) = label {
            whole.label = label.to_owned();
        }
        Ok(vec![(Some(label.map_or(words, str::to_owned)), whole)])
    }

    fn read(&self, part: &'static Part, text: &str) -> Result<Setting, AblationError> {
        let meaning = self.bindings.meaning(text).unwrap_or(text);
        let text_of_bool = match meaning {
            "true" => "on",
            "false" | "null" => "off",
            other => other,
        };
        let reading: Reading = (part.read)(self.recipe, text_of_bool);
        reading.map_err(|unread| match unread {
            Unread::NoSense => self.unreadable(part, text, None),
            Unread::Because(reason) => self.unreadable(part, text, Some(reason)),
        })
    }

    fn unreadable(&self, part: &'static Part, text: &str, reason: Option<String>) -> AblationError {
        AblationError::UnreadableReplacement {
            entry: self.name(),
            part: part.id,
            text: text.to_owned(),
            reason,
            reads: part.reads,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn shapes(overrides: &[&str]) -> Recipe {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::load(None, &overrides).unwrap()
    }

    fn ablation(
        part: &str,
        action: Action,
        replacement: Value,
        overrides: &[&str],
        bind: &[&str],
    ) -> Result<Ablation, AblationError> {
        let replacement = match replacement {
            Value::Null => vec![],
            Value::Array(values) => values,
            one => vec![one],
        };
        let entry = PlanEntry {
            name: "entry".to_owned(),
            part: part.to_owned(),
            action,
            replacement,
            metrics: vec![],
            reason: None,
        };
        let plan =
            AblationPlan { name: "p".to_owned(), source: "p".to_owned(), entries: vec![entry] };
        let bind: Vec<String> = bind.iter().map(|s| (*s).to_owned()).collect();
        let bindings = Bindings::read(&bind).unwrap();
        let mut ablations =
            ablations_of(&plan, &shapes(overrides), &["fd_tiny_clip".to_owned()], &bindings)?;
        bindings.check_used()?;
        Ok(ablations.remove(0))
    }

    fn labels(ablation: &Ablation) -> Vec<&str> {
        ablation.variants.iter().map(|variant| variant.label.as_str()).collect()
    }

    #[test]
    fn ranges_have_the_recipe_joint_finetuning_and_the_pretrained_model_beside_them() {
        let found = ablation("ranges", Action::Replace, json!([2, 8]), &[], &[]).unwrap();
        let expected = [
            "the recipe: N = 4",
            "N = 2",
            "N = 8",
            "N = 1: joint finetuning without DeMe",
            "before finetuning",
        ];
        assert_eq!(labels(&found), expected);
        assert_eq!(found.variants[4].row, RunRow::Before);
        let removed = ablation("ranges", Action::Remove, json!(null), &[], &[]).unwrap();
        assert_eq!(labels(&removed).len(), 3);
        assert_eq!(removed.variants[1].kind, VariantKind::Asked);
    }

    #[test]
    fn add_and_remove_know_what_is_there() {
        let off = ["decouple.finetune.consistency_weight=0"];
        let added = ablation("consistency loss", Action::Add, json!(null), &off, &[]).unwrap();
        assert_eq!(added.variants[1].overrides, ["decouple.finetune.consistency_weight=1"]);
        let added = ablation("consistency loss", Action::Add, json!([0.5, 2]), &off, &[]).unwrap();
        assert_eq!(added.variants.len(), 3);
        let present = ablation("consistency loss", Action::Add, json!(null), &[], &[]);
        assert!(matches!(present, Err(AblationError::AlreadyPresent { .. })));
        let absent = ablation("consistency loss", Action::Remove, json!(null), &off, &[]);
        assert!(matches!(absent, Err(AblationError::AlreadyAbsent { .. })));
        let both = ablation("consistency loss", Action::Remove, json!(["2"]), &[], &[]);
        assert!(matches!(both, Err(AblationError::ReplacementForRemove { .. })));
        for action in [Action::Add, Action::Remove] {
            let always = ablation("learning rate", action, json!(null), &[], &[]);
            assert!(matches!(always, Err(AblationError::NoSuchAction { .. })));
        }
        for (part, action) in [("ranges", Action::Replace), ("loss weighting", Action::Add)] {
            let empty = ablation(part, action, json!(null), &[], &[]);
            assert!(matches!(empty, Err(AblationError::EmptyReplacement { .. })), "{part}");
        }
    }

    #[test]
    fn lists_objects_and_texts_are_replacements() {
        let count = |part, replacement| {
            let asked = |v: &&Variant| v.kind == VariantKind::Asked;
            let found = ablation(part, Action::Replace, replacement, &[], &[]).unwrap();
            found.variants.iter().filter(asked).count()
        };
        assert_eq!(count("ranges", json!({ "N": [2, 8] })), 2);
        assert_eq!(count("ranges", json!("2, 8, 16")), 3);
        assert_eq!(count("ranges", json!("[2, 8]")), 2);
        assert_eq!(count("ranges", json!({ "number of ranges": 8 })), 1);
        assert_eq!(count("weights", json!([0.1, 0.1, 0.2, 0.5])), 1);
        assert_eq!(count("weights", json!([[0.1, 0.1, 0.2, 0.5], "uniform"])), 2);
        assert_eq!(count("weights", json!("0.1, 0.1, 0.2, 0.5")), 1);
        assert_eq!(count("antithetic", json!([true, false])), 2);
    }

    #[test]
    fn a_table_of_parts_is_one_variant() {
        let table = json!([{ "label": "plain", "ranges": 1, "projection": "none" }]);
        let found = ablation("techniques", Action::Replace, table, &[], &[]).unwrap();
        let plain = &found.variants[1];
        assert_eq!((plain.label.as_str(), plain.row), ("plain", RunRow::Expert(0)));
        let last = plain.overrides.last().map(String::as_str);
        assert_eq!(last, Some("decouple.finetune.projection=none"));
        let two = json!([{ "merging": "ensemble", "weights": "uniform" }]);
        let refused = ablation("techniques", Action::Replace, two, &[], &[]);
        assert!(matches!(refused, Err(AblationError::TwoRows { .. })));
        for table in [json!([{}]), json!(["all of them"])] {
            let refused = ablation("techniques", Action::Replace, table, &[], &[]);
            assert!(matches!(refused, Err(AblationError::UnreadableReplacement { .. })));
        }
        let unknown = json!([{ "ranges": 1, "flavour": "none" }]);
        let refused = ablation("techniques", Action::Replace, unknown, &[], &[]);
        assert!(matches!(refused, Err(AblationError::UnknownPart { .. })));
    }

    #[test]
    fn the_same_replacement_twice_is_refused() {
        let twice = ablation("weights", Action::Replace, json!(["uniform", "w_i = 1/N"]), &[], &[]);
        let Err(AblationError::SameTwice { first, second, .. }) = twice else { panic!("accepted") };
        assert_eq!((first.as_str(), second.as_str()), ("uniform", "w_i = 1/N"));
    }

    #[test]
    fn bindings_settle_parts_and_replacements() {
        let bind = ["the magic=projection", "as it should be=block"];
        let replacement = json!(["as it should be"]);
        let found = ablation("The magic", Action::Replace, replacement, &[], &bind).unwrap();
        assert_eq!((found.part, found.variants[1].label.as_str()), ("projection", "block"));
        let to_nothing =
            ablation("the magic", Action::Remove, json!(null), &[], &["the magic=projecton"]);
        let Err(AblationError::BindToNothing { nearest, .. }) = to_nothing else { panic!("bound") };
        assert!(nearest.starts_with("projection"), "{nearest}");
        let unused = ablation("ema", Action::Remove, json!(null), &[], &["the magic=projection"]);
        assert!(matches!(unused, Err(AblationError::UnusedBind { .. })));
    }

    #[test]
    fn every_shipped_plan_is_understood() {
        for (file, text) in super::super::shipped_plans::SHIPPED_PLANS {
            let plan = AblationPlan::read(file, text, None).unwrap();
            let given = ["fid".to_owned(), "clip_score".to_owned()];
            let found = ablations_of(&plan, &shapes(&[]), &given, &Bindings::default());
            let found = found.unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(found[0].variants.len() >= 3, "{file}");
        }
    }
}
