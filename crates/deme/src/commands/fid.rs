//! `deme fid`: distances between two sets of pictures.

use std::collections::BTreeMap;

use deme_eval::{
    FeatureExtractor, FeatureStats, Measurement, Protocol, SOFTWARE, StatsStamp, frechet_distance,
};
use serde_json::json;

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
