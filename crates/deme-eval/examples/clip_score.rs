//! The CLIP score of every picture of a folder with its caption, as JSON.
//!
//! ```console
//! $ cargo run --release -p deme-eval --example clip_score -- MODEL IMAGES CAPTIONS [ARCHITECTURE]
//! ```
//! MODEL is a Hugging Face folder, an open_clip folder, or a file of open_clip's weights with the name of
//! its architecture.

use burn::tensor::Device;
use deme_clip::Clip;
use deme_data::{pair_captions, picture_files};
use deme_eval::score_pairs;
use serde_json::json;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, images, captions, architecture @ ..] = arguments.as_slice() else {
        return Err("usage: clip_score MODEL IMAGES CAPTIONS [ARCHITECTURE]".into());
    };
    let start = Instant::now();
    let architecture = architecture.first().map(String::as_str);
    let clip = Clip::open(Path::new(model), architecture, &Device::flex())?;
    let load_secs = start.elapsed().as_secs_f64();
    let images = Path::new(images);
    let pairs = pair_captions(&picture_files(images)?, Path::new(captions))?;
    let start = Instant::now();
    let scores = score_pairs(&clip, &pairs, &mut |_| {})?;
    let score_secs = start.elapsed().as_secs_f64();
    let rows = pairs.iter().zip(&scores.pairs).map(|((path, caption), score)| {
        let file = path.strip_prefix(images).unwrap_or(path);
        json!({ "file": file, "caption": caption, "score": score })
    });
    let result = json!({
        "value": scores.score.mean,
        "std_error": scores.score.std_error,
        "truncated": scores.truncated,
        "preparation": clip.preprocessor.description(),
        "load_secs": load_secs,
        "score_secs": score_secs,
        "pairs": rows.collect::<Vec<_>>(),
    });
    println!("{result:#}");
    Ok(())
}
