//! `deme fid`: the Fréchet distance between two sets of pictures, and what else tells them apart.

use std::collections::BTreeMap;

use deme_eval::{
    FdInfinityConfig, FeatureExtractor, FeatureSet, FeatureStats, InceptionScoreConfig, KidConfig,
    METRICS, Measurement, Needs, NeighbourConfig, Protocol, SOFTWARE, StatsStamp, cmmd,
    fd_infinity, frechet_distance, frechet_metric, inception_score, kernel_distance,
    neighbour_metrics,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cli::FidArguments;
use crate::diagnostics::{Problem, nearest};
use crate::extractors;
use crate::feature_sets::{FeatureSource, Measured, Reading, hex, text_of};
use crate::progress::Voice;

/// Prints each metric and how it was made.
pub fn run(arguments: &FidArguments) -> Result<(), Problem> {
    if arguments.list_metrics {
        return super::print(&list());
    }
    // Everything that can be wrong is found before a picture is looked at.
    let wanted = wanted(&arguments.metrics)?;
    let config = extractors::of_arguments(&arguments.extractor)?;
    let a = arguments.a.as_deref().expect("the command line asks for it");
    let a = FeatureSource::open(a)?;
    let b = arguments.b.as_deref().map(FeatureSource::open).transpose()?;
    check_needs(&wanted, &a, b.as_ref())?;
    if let (Some(one), Some(other)) = (a.stamp(), b.as_ref().and_then(FeatureSource::stamp)) {
        one.same_extractor(other)?;
    }
    let device = super::device(arguments.device);
    let scored = wanted.contains(&"inception_score");
    let needed =
        scored || a.needs_extractor() || b.as_ref().is_some_and(FeatureSource::needs_extractor);
    let extractor = needed.then(|| extractors::open(&config, &device)).transpose()?;
    let extractor = extractor.as_deref();
    if let Some(extractor) = extractor {
        for stamp in [a.stamp(), b.as_ref().and_then(FeatureSource::stamp)].into_iter().flatten() {
            stamp.same_extractor(&stamp_of(extractor))?;
        }
    }

    let reading = Reading {
        num_images: arguments.num_images,
        batch_size: arguments.batch_size,
        skip_broken: arguments.skip_broken,
        voice: if arguments.quiet || arguments.json { Voice::Quiet } else { Voice::Normal },
    };
    let keep = wanted.iter().any(|name| needs(name) != Needs::Statistics);
    let a = a.measure(extractor, &reading, keep || arguments.save_features.is_some())?;
    if let Some(path) = &arguments.save_stats {
        a.stats.save_npz(path)?;
    }
    if let Some(path) = &arguments.save_features {
        a.save_features(path)?;
    }
    let Some(b) = b else { return Ok(()) };
    let b = b.measure(extractor, &reading, keep)?;
    let measurements = measure(&wanted, &a, &b, extractor, arguments.seed)?;
    if arguments.json {
        let value = json!({ "measurements": measurements });
        return super::print(&(serde_json::to_string_pretty(&value).expect("plain data") + "\n"));
    }
    super::print(&measurements.iter().map(text_of).collect::<String>())
}

/// Precision, recall, density and coverage at once.
const PRDC: [&str; 4] = ["precision", "recall", "density", "coverage"];

/// The names of metrics of the table that can be asked for here, without doubles.
fn wanted(names: &[String]) -> Result<Vec<&'static str>, Problem> {
    let known = || METRICS.iter().map(|row| row.name).filter(|name| *name != "clip_score");
    let mut wanted: Vec<&'static str> = Vec::new();
    for name in names {
        let found: Vec<&'static str> = match name.as_str() {
            "fid" | "fd_dinov2" => vec!["fd"],
            "prdc" => PRDC.to_vec(),
            name => known().filter(|known| *known == name).collect(),
        };
        if found.is_empty() {
            let names: Vec<&str> = known().chain(["prdc"]).collect();
            return Err(Problem::Usage {
                message: format!("`{name}` is no metric of this command"),
                help: match (name.as_str(), nearest(name, names.iter().copied())) {
                    ("clip_score", _) => "deme clip-score measures that".into(),
                    (_, Some(near)) => format!("did you mean `{near}`?"),
                    (_, None) => format!("known are {}", names.join(", ")),
                },
            });
        }
        let new = found.into_iter().filter(|name| !wanted.contains(name)).collect::<Vec<_>>();
        wanted.extend(new);
    }
    Ok(wanted)
}

fn needs(name: &str) -> Needs {
    let row = METRICS.iter().find(|row| row.name == name);
    row.expect("only names of the table are wanted").needs
}

/// Refuses a metric that needs the features of a side of which only statistics are known.
fn check_needs(
    wanted: &[&str],
    a: &FeatureSource,
    b: Option<&FeatureSource>,
) -> Result<(), Problem> {
    for name in wanted {
        let lacking = match needs(name) {
            Needs::Statistics => None,
            Needs::FeaturesAndStatistics | Needs::Logits => a.statistics_alone(),
            _ => a.statistics_alone().or(b.and_then(FeatureSource::statistics_alone)),
        };
        if let Some(path) = lacking {
            return Err(Problem::Usage {
                message: format!(
                    "{name} needs the features of single pictures, and {} holds statistics only",
                    path.display()
                ),
                help: "give the pictures, or features saved with --save-features".into(),
            });
        }
    }
    Ok(())
}

/// What an extractor says of itself.
fn stamp_of(extractor: &dyn FeatureExtractor) -> StatsStamp {
    StatsStamp {
        extractor: extractor.name().to_owned(),
        extractor_hash: extractor.weights_hash().to_owned(),
        resizing: extractor.resizing().to_owned(),
        image_format: String::new(),
        count: 0,
        reference_hash: String::new(),
        sampling: None,
    }
}

/// Each wanted metric, in the order in which they are wanted.
fn measure(
    wanted: &[&'static str],
    a: &Measured,
    b: &Measured,
    extractor: Option<&dyn FeatureExtractor>,
    seed: u64,
) -> Result<Vec<Measurement>, Problem> {
    let mut notes: Vec<String> = a.note().into_iter().chain(b.note()).collect();
    match (a.stats.stamp(), b.stats.stamp()) {
        (Some(a), Some(b)) => notes.extend(a.differences(b)),
        (None, None) => {
            notes.push("neither side says which extractor made its statistics".to_owned());
        }
        (None, _) => notes.push(of_unknown_origin(a)),
        (_, None) => notes.push(of_unknown_origin(b)),
    }
    let (features, reference) = (a.features()?, b.features()?);
    let both = || {
        let kept = "features are kept where a metric needs them";
        (features.as_ref().expect(kept), reference.as_ref().expect(kept))
    };
    let mut neighbours = None;
    let mut measurements = Vec::new();
    for name in wanted {
        let mut found = Found { value: 0.0, std_error: None, notes: Vec::new(), settings: vec![] };
        match *name {
            "fd" => {
                let distance = frechet_distance(&a.stats, &b.stats)?;
                found.value = distance.distance;
                found.notes = distance.notes();
            }
            "fd_infinity" => {
                let set = features.as_ref().expect("features are kept where a metric needs them");
                let config = infinity_config(set, seed);
                let line = fd_infinity(set, &b.stats, &config)?;
                (found.value, found.std_error) = (line.value, Some(line.std_error));
                found.settings = vec![
                    ("points", json!(config.points)),
                    ("min_count", json!(config.min_count)),
                    ("seed", json!(seed)),
                ];
                let [low, high] = line.interval;
                found.notes = vec![format!("95 % interval {low:.4} to {high:.4}")];
            }
            "kid" => {
                let (set, reference) = both();
                let config = KidConfig { seed, ..KidConfig::default() };
                let distance = kernel_distance(set, reference, &config)?;
                (found.value, found.std_error) = (distance.mean, Some(distance.std));
                found.notes = distance.notes();
                found.notes.push("± is the standard deviation over the subsets".to_owned());
                found.settings = vec![
                    ("subsets", json!(distance.of_subsets.len())),
                    ("subset_size", json!(distance.subset_size)),
                    ("seed", json!(seed)),
                ];
            }
            "cmmd" => {
                let (set, reference) = both();
                found.value = cmmd(set, reference)?;
            }
            "inception_score" => {
                let (set, _) = both();
                let rows: Vec<Vec<f32>> = (0..set.len()).map(|i| set.row(i).to_vec()).collect();
                let logits = extractor.and_then(|extractor| extractor.class_logits(&rows));
                let logits = logits.ok_or_else(|| Problem::Usage {
                    message: "inception_score needs class logits, which these features do not give"
                        .into(),
                    help: "use --extractor inception with --dims 2048".into(),
                })??;
                let config = InceptionScoreConfig::default();
                let score = inception_score(&FeatureSet::of_rows(&logits)?, &config)?;
                (found.value, found.std_error) = (score.mean, Some(score.std));
                found.notes = vec!["± is the standard deviation over the splits".to_owned()];
                found.settings = vec![("splits", json!(config.splits))];
            }
            name => {
                let config = NeighbourConfig::default();
                let (set, reference) = both();
                let numbers = match neighbours {
                    Some(numbers) => numbers,
                    None => *neighbours.insert(neighbour_metrics(set, reference, &config)?),
                };
                let (value, k) = match name {
                    "precision" => (numbers.precision, config.precision_recall_k),
                    "recall" => (numbers.recall, config.precision_recall_k),
                    "density" => (numbers.density, config.density_coverage_k),
                    _ => (numbers.coverage, config.density_coverage_k),
                };
                found.value = value;
                found.settings = vec![("k", json!(k))];
            }
        }
        for note in &notes {
            if !found.notes.contains(note) {
                found.notes.push(note.clone());
            }
        }
        measurements.push(found.into_measurement(name, a, b));
    }
    Ok(measurements)
}

fn of_unknown_origin(side: &Measured) -> String {
    format!("{} does not say which extractor made its statistics", side.path.display())
}

/// The authors' points from 5,000 pictures on; from a tenth where there are not that many.
fn infinity_config(set: &FeatureSet<'_>, seed: u64) -> FdInfinityConfig {
    let config = FdInfinityConfig { seed, ..FdInfinityConfig::default() };
    let min_count = config.min_count.min((set.len() / 10).max(2));
    FdInfinityConfig { min_count, ..config }
}

/// A number before it is known how it was made.
struct Found {
    value: f64,
    std_error: Option<f64>,
    notes: Vec<String>,
    settings: Vec<(&'static str, Value)>,
}

impl Found {
    fn into_measurement(self, name: &str, a: &Measured, b: &Measured) -> Measurement {
        let settings = self.settings.into_iter().map(|(key, value)| (key.to_owned(), value));
        Measurement {
            value: self.value,
            std_error: self.std_error,
            notes: self.notes,
            protocol: protocol(name, settings.collect(), a, b),
        }
    }
}

/// How a number about two sets was made.
fn protocol(name: &str, settings: BTreeMap<String, Value>, a: &Measured, b: &Measured) -> Protocol {
    let (measured, reference) = (a.stats.stamp(), b.stats.stamp());
    let stamp = measured.or(reference);
    let of = |field: fn(&StatsStamp) -> &String| stamp.map(|stamp| field(stamp).clone());
    let extractor = of(|stamp| &stamp.extractor);
    let sampling = measured.and_then(|stamp| stamp.sampling.as_ref());
    Protocol {
        metric: match (name, extractor.as_deref()) {
            ("fd", Some(extractor)) => frechet_metric(extractor),
            // The paper's own extractor goes without saying.
            (name, Some("inception_pool3") | None) => name.to_owned(),
            (name, Some(extractor)) => format!("{name}_{extractor}"),
        },
        settings,
        extractor,
        extractor_hash: of(|stamp| &stamp.extractor_hash),
        resizing: of(|stamp| &stamp.resizing),
        image_format: measured.map(|stamp| stamp.image_format.clone()),
        image_count: a.stats.count(),
        reference_format: reference.map(|stamp| stamp.image_format.clone()),
        reference_count: b.stats.count(),
        reference_hash: Some(
            reference.map_or_else(|| contents_hash(&b.stats), |stamp| stamp.reference_hash.clone()),
        ),
        sampler: sampling.map(|sampling| sampling.sampler.clone()),
        steps: sampling.map(|sampling| sampling.steps),
        eta: sampling.map(|sampling| sampling.eta),
        guidance: sampling.and_then(|sampling| sampling.guidance),
        first_seed: sampling.map(|sampling| sampling.first_seed),
        ema: None,
        software: SOFTWARE.to_owned(),
        model: sampling
            .map_or_else(|| a.path.display().to_string(), |sampling| sampling.model.clone()),
        model_hash: sampling
            .map(|sampling| sampling.model_hash.clone())
            .or_else(|| measured.map(|stamp| stamp.reference_hash.clone())),
    }
}

/// SHA-256, in hex, of a mean and a covariance that do not say which pictures they are of.
fn contents_hash(stats: &FeatureStats) -> String {
    let mut hasher = Sha256::new();
    for value in stats.mu().iter().chain(stats.sigma()) {
        hasher.update(value.to_le_bytes());
    }
    hex(&hasher.finalize())
}

/// The table of metrics.
fn list() -> String {
    let mut text = String::new();
    for row in METRICS.iter().filter(|row| row.name != "clip_score") {
        text += &format!("{}\n  {}\n  {}\n", row.name, row.paper, row.unit);
    }
    text + "prdc\n  precision, recall, density and coverage at once\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn wanted_of(names: &[&str]) -> Result<Vec<&'static str>, Problem> {
        wanted(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn metrics_are_asked_for_by_their_names_or_the_fields() {
        assert_eq!(wanted_of(&["fid", "kid"]).unwrap(), ["fd", "kid"]);
        assert_eq!(
            wanted_of(&["recall", "prdc", "fd", "fd_dinov2"]).unwrap(),
            ["recall", "precision", "density", "coverage", "fd"]
        );
    }

    #[test]
    fn every_metric_that_is_listed_can_be_asked_for() {
        for row in METRICS.iter().filter(|row| row.name != "clip_score") {
            assert_eq!(wanted_of(&[row.name]).unwrap().len(), 1, "{}", row.name);
            assert!(list().contains(row.paper));
        }
    }

    #[test]
    fn an_unknown_metric_is_refused_with_the_nearest() {
        for (wrong, way_out) in [("kids", "`kid`"), ("clip_score", "deme clip-score")] {
            let Err(Problem::Usage { help, .. }) = wanted_of(&[wrong]) else { panic!("{wrong}") };
            assert!(help.contains(way_out), "{help}");
        }
    }
}
