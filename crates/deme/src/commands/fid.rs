//! `deme fid`: distances between two sets of pictures.

use std::collections::BTreeMap;

use deme_eval::{FeatureStats, Measurement, Protocol, SOFTWARE, StatsStamp, frechet_distance};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cli::FidArguments;
use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::{FeatureSet, FeatureSource, Reading, text_of};
use crate::progress::Voice;

/// Prints each metric and how it was made.
pub fn run(arguments: &FidArguments) -> Result<(), Problem> {
    // Everything that can be wrong is found before a picture is looked at.
    let config = extractors::of_arguments(&arguments.extractor)?;
    let a = FeatureSource::open(&arguments.a)?;
    let b = arguments.b.as_deref().map(FeatureSource::open).transpose()?;
    let device = super::device(arguments.device);
    let needed = a.needs_extractor() || b.as_ref().is_some_and(FeatureSource::needs_extractor);
    let extractor = needed.then(|| extractors::open(&config, &device)).transpose()?;
    let extractor = extractor.as_deref();
    let reading = Reading {
        num_images: arguments.num_images,
        batch_size: arguments.batch_size,
        skip_broken: arguments.skip_broken,
        voice: if arguments.quiet || arguments.json { Voice::Quiet } else { Voice::Normal },
    };
    let a = a.measure(extractor, &reading, false)?;
    if let Some(path) = &arguments.save_stats {
        a.stats.save_npz(path)?;
    }
    let Some(b) = b else { return Ok(()) };
    let b = b.measure(extractor, &reading, false)?;

    let distance = frechet_distance(&a.stats, &b.stats)?;
    let measurement = Measurement {
        value: distance.distance,
        std_error: None,
        notes: distance.notes().into_iter().chain(a.notes()).chain(b.notes()).collect(),
        protocol: protocol(extractor.map_or("fd".to_owned(), |e| e.frechet_metric()), &a, &b),
    };
    if arguments.json {
        let value = json!({ "measurements": [measurement] });
        return super::print(&(serde_json::to_string_pretty(&value).expect("plain data") + "\n"));
    }
    super::print(&text_of(&measurement))
}

/// How a distance between two sets was made.
fn protocol(metric: String, a: &FeatureSet, b: &FeatureSet) -> Protocol {
    let (measured, reference) = (a.stats.stamp(), b.stats.stamp());
    let stamp = measured.or(reference);
    let of = |field: fn(&StatsStamp) -> &String| stamp.map(|stamp| field(stamp).clone());
    Protocol {
        metric,
        settings: BTreeMap::new(),
        extractor: of(|stamp| &stamp.extractor),
        extractor_hash: of(|stamp| &stamp.extractor_hash),
        resizing: of(|stamp| &stamp.resizing),
        image_format: measured.map(|stamp| stamp.image_format.clone()),
        image_count: a.stats.count(),
        reference_format: reference.map(|stamp| stamp.image_format.clone()),
        reference_count: b.stats.count(),
        reference_hash: Some(
            reference.map_or_else(|| contents_hash(&b.stats), |stamp| stamp.reference_hash.clone()),
        ),
        sampler: None,
        steps: None,
        eta: None,
        guidance: None,
        first_seed: None,
        ema: None,
        software: SOFTWARE.to_owned(),
        model: a.path.display().to_string(),
        model_hash: measured.map(|stamp| stamp.reference_hash.clone()),
    }
}

/// SHA-256, in hex, of a mean and a covariance that do not say which pictures they are of.
fn contents_hash(stats: &FeatureStats) -> String {
    let mut hasher = Sha256::new();
    for value in stats.mu().iter().chain(stats.sigma()) {
        hasher.update(value.to_le_bytes());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
