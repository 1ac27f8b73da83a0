//! What plans call a metric, and what a run calls it.

use serde::{Deserialize, Serialize};

use super::AblationError;
use super::bindings::Bindings;
use super::part_matching::plain_words;

/// A metric of an ablation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// The run's name for it.
    pub name: String,
    /// What the plan asked for, where that is something else and the user let this stand for it.
    pub stands_for: Vec<String>,
    /// Which direction is good.
    pub lower_is_better: bool,
}

/// Names that people use, and the run's name of the same number. The distances come in several, by what
/// they take features with.
const NAMES: &[(&str, &[&str])] = &[
    ("fid", &["fid", "fid score", "fréchet inception distance", "frechet inception distance"]),
    ("clip_score", &["clip score", "clip_score", "clipscore", "clip scores", "clip similarity"]),
    ("fd_dinov2", &["fd dinov2", "fd_dinov2", "dinov2 fd", "fd dino", "fdd"]),
    ("kid", &["kid", "kernel inception distance"]),
    ("fd_tiny_clip", &["fd tiny clip", "fd_tiny_clip"]),
    ("fd_clip", &["fd clip", "fd_clip", "clip fd", "clip fid"]),
];

/// The metrics that an ablation asks for, in the run's names and in its order; all that the run gives when it
/// asks for none. `given` is what the run gives, its first metric first.
///
/// # Errors
/// [`AblationError::NoSuchMetric`], [`AblationError::NoMetric`].
pub fn metrics_of(
    entry: &str,
    asked: &[String],
    given: &[String],
    bindings: &Bindings,
) -> Result<Vec<Metric>, AblationError> {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut take = |name: &str, stands_for: Option<&str>| {
        let place = metrics.iter().position(|metric| metric.name == name).unwrap_or_else(|| {
            metrics.push(Metric {
                name: name.to_owned(),
                stands_for: Vec::new(),
                lower_is_better: is_lower_better(name),
            });
            metrics.len() - 1
        });
        metrics[place].stands_for.extend(stands_for.map(str::to_owned));
    };
    if asked.is_empty() {
        given.iter().for_each(|name| take(name, None));
    }
    for text in asked {
        let bound = bindings.meaning(text);
        if bound == Some("none") {
            continue;
        }
        let found = given_name(bound.unwrap_or(text), given);
        let name = found.ok_or_else(|| AblationError::NoSuchMetric {
            metric: bound.unwrap_or(text).to_owned(),
            given: given.join(", "),
            first: given.first().cloned().unwrap_or_default(),
        })?;
        let same_name = given_name(text, given).as_deref() == Some(name.as_str());
        take(&name, bound.filter(|_| !same_name).map(|_| text.as_str()));
    }
    if metrics.is_empty() {
        return Err(AblationError::NoMetric { entry: entry.to_owned() });
    }
    Ok(metrics)
}

/// The run's name of what a text calls, if the run gives it.
fn given_name(text: &str, given: &[String]) -> Option<String> {
    let plain = text.trim().to_lowercase();
    if let Some(name) = given.iter().find(|name| **name == plain) {
        return Some(name.clone());
    }
    let words = plain_words(text).join(" ");
    if matches!(words.as_str(), "fd" | "frechet distance" | "fréchet distance") {
        // The distance of this run, whatever it takes features with.
        return given.iter().find(|name| name.starts_with("fd_") || *name == "fid").cloned();
    }
    let (name, _) = NAMES.iter().find(|(_, names)| {
        names.iter().any(|known| *known == plain || plain_words(known).join(" ") == words)
    })?;
    given.iter().find(|given| given == name).cloned()
}

/// Scores rise with quality, distances and losses fall.
fn is_lower_better(name: &str) -> bool {
    !name.contains("score") && !name.contains("precision") && !name.contains("recall")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn metrics(
        asked: &[&str],
        given: &[&str],
        bind: &[&str],
    ) -> Result<Vec<Metric>, AblationError> {
        let own = |texts: &[&str]| texts.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>();
        metrics_of("entry", &own(asked), &own(given), &Bindings::read(&own(bind)).unwrap())
    }

    fn names(asked: &[&str], given: &[&str], bind: &[&str]) -> Vec<String> {
        metrics(asked, given, bind).unwrap().into_iter().map(|metric| metric.name).collect()
    }

    #[test]
    fn the_names_people_use_are_known() {
        let all = ["fd_tiny_clip", "fid", "clip_score"];
        assert_eq!(names(&["FID", "CLIP Score"], &all, &[]), ["fid", "clip_score"]);
        assert_eq!(
            names(&["Fréchet Inception Distance", "CLIPScore"], &all, &[]),
            ["fid", "clip_score"]
        );
        assert_eq!(names(&["Fréchet distance"], &["fd_tiny_clip"], &[]), ["fd_tiny_clip"]);
        assert_eq!(names(&[], &all, &[]), all);
        let directions: Vec<bool> =
            metrics(&[], &all, &[]).unwrap().iter().map(|m| m.lower_is_better).collect();
        assert_eq!(directions, [true, true, false]);
    }

    #[test]
    fn what_the_run_does_not_give_is_refused() {
        for asked in ["FID", "beauty"] {
            let Err(AblationError::NoSuchMetric { metric, given, .. }) =
                metrics(&[asked], &["fd_tiny_clip"], &[])
            else {
                panic!("{asked} accepted")
            };
            assert_eq!((metric.as_str(), given.as_str()), (asked, "fd_tiny_clip"));
        }
    }

    #[test]
    fn another_metric_stands_for_it_when_the_user_says_so() {
        let found = metrics(
            &["FID", "CLIP Score", "fd_tiny_clip"],
            &["fd_tiny_clip"],
            &["FID=fd_tiny_clip", "CLIP Score=none"],
        );
        let found = found.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].stands_for, ["FID"]);
    }

    #[test]
    fn something_must_be_left_to_measure() {
        let found = metrics(&["FID"], &["fd_tiny_clip"], &["FID=none"]);
        assert!(matches!(found, Err(AblationError::NoMetric { .. })));
    }
}
