//! `deme clip-score`: how well pictures fit their captions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deme_clip::Clip;
use deme_data::{pair_captions, picture_files};
use deme_eval::{Measurement, PairScores, Protocol, SOFTWARE, score_pairs};
use serde_json::json;

use crate::cli::ClipScoreArguments;
use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::{format_of, text_of};
use crate::progress::{Progress, Voice};

/// Prints the mean score, its standard error and how it was made.
pub fn run(arguments: &ClipScoreArguments) -> Result<(), Problem> {
    let files = picture_files(&arguments.images)?;
    let pairs = pair_captions(&files, &arguments.captions)?;
    let weights = extractors::resolve(&arguments.model)?;
    let device = super::device(arguments.device);
    let clip = Clip::open(&weights, arguments.architecture.as_deref(), &device)?;
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    let mut progress = Progress::start(voice, "CLIP score", pairs.len() as u64);
    let found = score_pairs(&clip, &pairs, &mut |done| progress.at(done as u64, ""))?;
    progress.finish(&format!("{} pairs", pairs.len()));

    let measurement = measurement(arguments, &clip, &pairs, &found);
    let scored = pairs.iter().zip(&found.pairs);
    let name = |file: &Path| {
        file.strip_prefix(&arguments.images).unwrap_or(file).display().to_string()
    };
    if arguments.json {
        let mut value = json!({
            "measurements": [measurement],
            "value": measurement.value,
            "std_error": measurement.std_error,
            "truncated": found.truncated,
        });
        if arguments.per_pair {
            let listed = scored.map(|((file, caption), score)| {
                json!({ "file": name(file), "caption": caption, "score": score })
            });
            value["pairs"] = listed.collect();
        }
        return super::print(&(serde_json::to_string_pretty(&value).expect("plain data") + "\n"));
    }
    let mut text = text_of(&measurement);
    if arguments.per_pair {
        for ((file, caption), score) in scored {
            text += &format!("{score:8.4}  {}  {caption}\n", name(file));
        }
    }
    super::print(&text)
}

fn measurement(
    arguments: &ClipScoreArguments,
    clip: &Clip,
    pairs: &[(PathBuf, String)],
    found: &PairScores,
) -> Measurement {
    let mut notes = Vec::new();
    if found.truncated > 0 {
        notes.push(format!(
            "{} of {} captions are longer than the {} tokens the CLIP reads and lost their last words",
            found.truncated,
            pairs.len(),
            clip.model.config().text_config.max_position_embeddings
        ));
    }
    let files = pairs.iter().map(|(file, _)| file.as_path());
    let protocol = Protocol {
        metric: "clip_score".to_owned(),
        settings: BTreeMap::new(),
        extractor: Some("clip".to_owned()),
        extractor_hash: Some(clip.model.weights_hash()),
        resizing: Some(clip.preprocessor.description()),
        image_format: Some(format_of(files)),
        image_count: Some(pairs.len() as u64),
        reference_format: None,
        reference_count: None,
        reference_hash: None,
        sampler: None,
        steps: None,
        eta: None,
        guidance: None,
        first_seed: None,
        ema: None,
        software: SOFTWARE.to_owned(),
        model: arguments.images.display().to_string(),
        model_hash: None,
    };
    Measurement { value: found.score.mean, std_error: found.score.std_error, notes, protocol }
}
