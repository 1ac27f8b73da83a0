//! What plans call a metric, and what a run calls it.

use deme_eval::{Direction, metric_row};
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
/// they take features with. A CLIP score is one of whatever CLIP the run scores with: the name promises no
/// particular one, as FID does.
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
    let exact = given.iter().find(|given| given == name);
    let by_any_clip = || given.iter().find(|given| *name == "clip_score" && is_clip_score(given));
    exact.or_else(by_any_clip).cloned()
}

/// Whether this is a CLIP score, of whatever CLIP.
pub fn is_clip_score(metric: &str) -> bool {
    metric_row(metric).is_some_and(|row| row.name == "clip_score")
}

/// As the table of metrics has it; what it does not know is a distance or a loss.
fn is_lower_better(name: &str) -> bool {
    metric_row(name).is_none_or(|row| row.direction == Direction::Lower)
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
    fn both_metrics_of_a_run_with_prompts_are_found_by_the_names_of_plans() {
        for (given, asked) in [
            (["fid", "clip_score"], ["FID", "CLIP Score"]),
            (["fid", "clip_score_tiny_clip"], ["FID", "CLIPScore"]),
            (["fd_tiny_clip", "clip_score_tiny_clip"], ["Fréchet distance", "CLIP score"]),
            (["fd_dinov2", "clip_score_tiny_clip"], ["FDD", "clip_score_tiny_clip"]),
        ] {
            let found = metrics(&asked, &given, &[]).unwrap();
            let names: Vec<&str> = found.iter().map(|metric| metric.name.as_str()).collect();
            assert_eq!(names, given);
            let lower: Vec<bool> = found.iter().map(|metric| metric.lower_is_better).collect();
            assert_eq!(lower, [true, false]);
        }
        // Of two, the plain name means the plain one.
        let two = ["clip_score_tiny_clip", "clip_score"];
        assert_eq!(names(&["CLIP Score"], &two, &[]), ["clip_score"]);
        // FID is Inception's, whatever else there is.
        let given = ["fd_tiny_clip", "clip_score_tiny_clip"];
        let refused = metrics(&["FID", "CLIP Score"], &given, &[]);
        let Err(AblationError::NoSuchMetric { metric, given, .. }) = refused else {
            panic!("accepted")
        };
        assert_eq!(
            (metric.as_str(), given.as_str()),
            ("FID", "fd_tiny_clip, clip_score_tiny_clip")
        );
        // Without prompts there is no score.
        let refused = metrics(&["CLIP Score"], &["fid"], &[]);
        assert!(matches!(refused, Err(AblationError::NoSuchMetric { .. })));
        let shares = metrics(&[], &["coverage", "density", "kid"], &[]).unwrap();
        let lower: Vec<bool> = shares.iter().map(|metric| metric.lower_is_better).collect();
        assert_eq!(lower, [false, false, true]);
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
