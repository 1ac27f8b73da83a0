//! Which part a plan's words mean.
//!
//! Texts are compared as sets of plain words: lower case, no plurals, one spelling. A text names a part when it
//! holds all words of one of the part's phrases. Of two parts that a text names, the one wins that is an aspect
//! of the other (the objective of the search for merging weights), or whose phrase holds the other's. Anything
//! else is no decision, and is left to the user.

use std::collections::BTreeSet;

use super::AblationError;
use super::parts::{NOT_HERE, PARTS, Part, part};

/// How many parts a message offers.
const OFFERED: usize = 4;

/// The part that the words of the entry `entry` mean.
///
/// # Errors
/// [`AblationError::UnknownPart`], [`AblationError::AmbiguousPart`], [`AblationError::NotHere`].
pub fn part_of(entry: &str, text: &str) -> Result<&'static Part, AblationError> {
    let text = text.trim();
    if let Some(named) = exact(text) {
        return Ok(named);
    }
    let words: BTreeSet<String> = plain_words(text).into_iter().collect();
    match decide(&words, |part| part.phrases) {
        Decision::One(part) => return Ok(part),
        Decision::Several(parts) => {
            return Err(AblationError::AmbiguousPart {
                entry: entry.to_owned(),
                text: text.to_owned(),
                parts: listed(&parts),
            });
        }
        Decision::None => {}
    }
    for (phrases, reason) in NOT_HERE {
        if phrases.iter().any(|phrase| holds(&words, phrase)) {
            return Err(AblationError::NotHere {
                entry: entry.to_owned(),
                text: text.to_owned(),
                reason: (*reason).to_owned(),
            });
        }
    }
    match decide(&words, |part| part.weak_phrases) {
        Decision::One(part) => Ok(part),
        Decision::Several(parts) => Err(AblationError::AmbiguousPart {
            entry: entry.to_owned(),
            text: text.to_owned(),
            parts: listed(&parts),
        }),
        Decision::None => Err(AblationError::UnknownPart {
            entry: entry.to_owned(),
            text: text.to_owned(),
            nearest: listed(&nearest_parts(text, &words)),
        }),
    }
}

/// The part that is called exactly so.
pub fn exact(text: &str) -> Option<&'static Part> {
    let id = text.trim().to_lowercase().replace([' ', '-'], "_");
    part(&id).or_else(|| PARTS.iter().find(|part| part.title.eq_ignore_ascii_case(text.trim())))
}

enum Decision {
    None,
    One(&'static Part),
    Several(Vec<&'static Part>),
}

fn decide(words: &BTreeSet<String>, phrases: fn(&Part) -> &'static [&'static str]) -> Decision {
    let mut named: Vec<(&'static Part, BTreeSet<String>)> = Vec::new();
    for part in PARTS {
        let held = phrases(part).iter().filter(|phrase| holds(words, phrase));
        let longest = held.max_by_key(|phrase| words_of_phrase(phrase).len());
        if let Some(phrase) = longest {
            named.push((part, words_of_phrase(phrase).into_iter().collect()));
        }
    }
    let beaten = |(loser, phrase): &(&'static Part, BTreeSet<String>)| {
        named.iter().any(|(winner, longer)| {
            winner.aspect_of.contains(&loser.id)
                || (longer.len() > phrase.len() && longer.is_superset(phrase))
        })
    };
    let left: Vec<&'static Part> =
        named.iter().filter(|candidate| !beaten(candidate)).map(|(part, _)| *part).collect();
    match left.as_slice() {
        [] => Decision::None,
        [one] => Decision::One(one),
        _ => Decision::Several(left),
    }
}

fn holds(words: &BTreeSet<String>, phrase: &str) -> bool {
    words_of_phrase(phrase).iter().all(|word| words.contains(word))
}

/// Words at least so alike count as misspelt.
const MISSPELT: f64 = 0.9;

/// The parts that share most with the text: whole words, misspelt ones too, or else letters.
fn nearest_parts(text: &str, words: &BTreeSet<String>) -> Vec<&'static Part> {
    let own_words = |part: &Part| -> BTreeSet<String> {
        let all = part.phrases.iter().chain(part.weak_phrases).copied();
        all.chain([part.id, part.title]).flat_map(plain_words).collect()
    };
    let lower = text.to_lowercase();
    let mut scored: Vec<(f64, &'static Part)> = PARTS
        .iter()
        .map(|part| {
            let own = own_words(part);
            let shared = words
                .iter()
                .filter(|word| word.len() > 3)
                .filter(|word| own.iter().any(|own| strsim::jaro_winkler(own, word) >= MISSPELT));
            let likeness = strsim::jaro_winkler(&lower, part.id)
                .max(strsim::jaro_winkler(&lower, &part.title.to_lowercase()));
            (shared.count() as f64 + likeness, part)
        })
        .collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().take(OFFERED).map(|(_, part)| part).collect()
}

/// `weights (how the merging weights w_i are found)`, one a line.
fn listed(parts: &[&'static Part]) -> String {
    let lines = parts.iter().map(|part| format!("{} ({})", part.id, part.title));
    lines.collect::<Vec<_>>().join("\n")
}

/// The words of a phrase of the tables, which are plain as they stand.
pub fn words_of_phrase(phrase: &str) -> Vec<String> {
    phrase.split_whitespace().map(str::to_owned).collect()
}

/// A text's words in lower case, without plurals, in one spelling.
pub fn plain_words(text: &str) -> Vec<String> {
    let spaced: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !matches!(c, '{' | '}' | '$' | '\\'))
        .map(|c| if c.is_alphanumeric() || c == '_' { c } else { ' ' })
        .collect();
    let mut words: Vec<String> = Vec::new();
    for word in spaced.split_whitespace() {
        // "fine-tuning", "pre-trained", "time steps" are one word.
        match words.last().map(String::as_str) {
            Some("fine") if word.starts_with("tun") => {
                words.pop();
                words.push("finetuning".to_owned());
            }
            Some("pre") if word.starts_with("train") => {
                words.pop();
                words.push(one_spelling(&format!("pre{word}")));
            }
            Some("time") if word.starts_with("step") => {
                words.pop();
                words.push("timestep".to_owned());
            }
            _ => words.push(one_spelling(word)),
        }
    }
    words
}

fn one_spelling(word: &str) -> String {
    let singular = singular(word);
    match singular.as_str() {
        "merge" | "merged" | "merger" => "merging",
        "decoupled" | "decoupling" => "decouple",
        "finetune" | "finetuned" => "finetuning",
        "pretrain" => "pretraining",
        "drawn" | "drawing" => "draw",
        "sampled" => "sample",
        "initialization" | "initialize" | "initialise" | "init" => "initialisation",
        "regularisation" | "regularizer" => "regularization",
        "probabilistically" | "stochastic" => "probabilistic",
        "ensembling" | "ensembled" => "ensemble",
        "weighted" => "weighting",
        "flipping" => "flip",
        "clip" => "clipping",
        "project" | "projected" => "projection",
        other => other,
    }
    .to_owned()
}

fn singular(word: &str) -> String {
    let stem = |cut: usize, ending: &str| format!("{}{ending}", &word[..word.len() - cut]);
    match word {
        _ if word.len() <= 3 || word.ends_with("ss") || word.ends_with("us") => word.to_owned(),
        _ if word.ends_with("ies") && word.len() > 4 => stem(3, "y"),
        _ if ["sses", "ches", "shes", "xes"].iter().any(|end| word.ends_with(end)) => stem(2, ""),
        _ if word.ends_with('s') => stem(1, ""),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id_of(text: &str) -> String {
        match part_of("entry", text) {
            Ok(part) => part.id.to_owned(),
            Err(error) => format!("{error}"),
        }
    }

    #[test]
    fn the_words_of_outside_planners_are_understood() {
        for (text, id) in [
            ("The method for determining the merging weights (w_i) for task vectors.", "weights"),
            ("The number of non-overlapping timestep ranges (N) used for decoupling.", "ranges"),
            ("Merging weights $w_{i}$", "weights"),
            ("grid search for the task-vector coefficients", "weights"),
            ("Number of experts", "ranges"),
            ("Timestep ranges", "ranges"),
            ("Decoupled training over timestep ranges", "ranges"),
            ("Channel-wise projection layers", "projection"),
            ("Learnable projection matrices initialized to identity", "projection"),
            ("Consistency loss weight", "consistency_loss"),
            ("Consistency loss between pretrained and finetuned models", "consistency_loss"),
            ("The probabilistic sampling strategy (p)", "probability"),
            ("Probability of sampling timesteps outside of the range", "probability"),
            ("Probabilistic sampling decided per sample", "draws"),
            ("antithetic timestep sampling", "antithetic"),
            ("Model merging", "merging"),
            ("Merging the fine-tuned models into a single one (vs. an ensemble)", "merging"),
            ("The objective of the search for merging weights", "objective"),
            ("Layer-wise merging weights", "groups"),
            ("Exponential moving average (EMA) of the expert weights", "ema"),
            ("Min-SNR loss weighting", "loss_weighting"),
            ("Number of fine-tuning iterations per expert", "iterations"),
            ("Learning rate", "learning_rate"),
            ("learning-rate schedule", "lr_schedule"),
            ("Number of sampling steps", "steps"),
            ("Number of sampling timesteps", "steps"),
            ("The sampler (DDIM)", "sampler"),
            ("Initialization of the experts", "pretrained"),
            ("The pre-trained model", "pretrained"),
            ("pre-training iterations", "pretraining"),
            ("Combination of techniques", "techniques"),
            ("consistency-loss", "consistency_loss"),
            ("fine-tuning", "finetuning"),
            ("Classifier-free guidance (CFG)", "guidance"),
            ("The guidance scale of the sampler", "guidance"),
            ("guidance weight w", "guidance"),
            ("CFG scale", "guidance"),
            ("Caption dropout", "caption_dropout"),
            ("Dropping captions for classifier-free guidance", "caption_dropout"),
            ("unconditional training with null prompts", "caption_dropout"),
        ] {
            assert_eq!(id_of(text), id, "{text}");
        }
    }

    #[test]
    fn every_part_is_found_by_its_id_and_its_title() {
        for part in PARTS {
            assert_eq!(part_of("entry", part.id).unwrap().id, part.id);
            assert_eq!(part_of("entry", part.title).unwrap().id, part.id);
        }
    }

    #[test]
    fn a_text_that_names_no_part_offers_the_nearest() {
        let Err(AblationError::UnknownPart { nearest, .. }) =
            part_of("entry", "the flavour of the learning curve")
        else {
            panic!("understood")
        };
        assert!(nearest.contains("learning_rate (") && nearest.lines().count() == 4, "{nearest}");
        let Err(AblationError::UnknownPart { nearest, .. }) = part_of("entry", "projecton") else {
            panic!("understood")
        };
        assert!(nearest.starts_with("projection"), "{nearest}");
    }

    #[test]
    fn a_text_that_names_two_parts_lists_them() {
        let text = "the consistency loss and the channel projection";
        let Err(AblationError::AmbiguousPart { parts, .. }) = part_of("entry", text) else {
            panic!("decided")
        };
        assert_eq!(parts.lines().count(), 2, "{parts}");
        assert!(parts.contains("consistency_loss (") && parts.contains("projection ("), "{parts}");
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_reason() {
        for (text, word) in [
            ("Non-uniform partition of the timesteps", "equal length"),
            ("TIES merging instead of linear merging", "deme merge"),
            ("the optimizer", "AdamW"),
            ("the dataset", "pictures"),
            ("the prompts", "same captions"),
            ("the text encoder", "text encoder"),
        ] {
            let Err(AblationError::NotHere { reason, .. }) = part_of("entry", text) else {
                panic!("{text}: {}", id_of(text))
            };
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }
}
