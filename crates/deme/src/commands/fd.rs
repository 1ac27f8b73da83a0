//! `deme fd`: the Fréchet distance between two folders of pictures, on a CLIP's image features.

use std::path::Path;

use burn::tensor::Device;
use deme_clip::{Clip, EMBEDDING_BATCH};
use deme_data::{DataConfig, DataSet, Interpolation, Preparation};
use deme_eval::{ClipExtractor, FeatureExtractor, FeatureStats, ImageFeatures, frechet_distance};
use serde_json::json;

use crate::cli::FdArguments;
use crate::diagnostics::Problem;

/// Prints the distance and how it was made.
pub fn run(arguments: &FdArguments) -> Result<(), Problem> {
    let device = super::device(arguments.device);
    let extractor = extractor(&arguments.extractor, &device)?;
    let a = stats(&extractor, &arguments.a)?;
    let b = stats(&extractor, &arguments.b)?;
    let distance = frechet_distance(&a, &b)?;
    let counts = [a.count().unwrap_or(0), b.count().unwrap_or(0)];
    let text = if arguments.json {
        let value = json!({
            "metric": extractor.frechet_metric(),
            "value": distance.distance,
            "counts": counts,
            "extractor_hash": extractor.weights_hash(),
            "resizing": RESIZING,
            "notes": distance.notes(),
        });
        serde_json::to_string_pretty(&value).expect("plain data") + "\n"
    } else {
        let mut text = format!("{}  {:.6}\n", extractor.frechet_metric(), distance.distance);
        text += &format!("pictures   {} and {}\n", counts[0], counts[1]);
        text += &format!("extractor  {}\n", extractor.weights_hash());
        text += &format!("resizing   {RESIZING}\n");
        distance.notes().iter().for_each(|note| text += &format!("note       {note}\n"));
        text
    };
    super::print(&text)
}

const RESIZING: &str = "shorter side to the extractor's size by antialiased bicubic, centre crop";

/// A CLIP folder; a distance on it is called after the folder, so that numbers of two are not confused.
fn extractor(folder: &Path, device: &Device) -> Result<ClipExtractor, Problem> {
    let clip = Clip::load(folder, device)?;
    Ok(ClipExtractor::new("clip", clip, ImageFeatures::Pooled))
}

fn stats(extractor: &ClipExtractor, folder: &Path) -> Result<FeatureStats, Problem> {
    let config =
        DataConfig::Imagefolder { path: folder.to_owned(), caption_field: "text".to_owned() };
    let [_, side, _] = extractor.image_shape();
    let mut preparation = Preparation::new(side as u32);
    preparation.interpolation = Interpolation::Bicubic;
    let pictures = DataSet::open(&config)?.load(&preparation)?;
    let mut features = Vec::with_capacity(pictures.len());
    let all: Vec<usize> = (0..pictures.len()).collect();
    for batch in all.chunks(EMBEDDING_BATCH) {
        let images: Vec<Vec<f32>> = batch
            .iter()
            .map(|&i| pictures.image_signed(i).into_iter().map(|x| x * 0.5 + 0.5).collect())
            .collect();
        let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
        features.extend(extractor.features(&images)?);
    }
    Ok(FeatureStats::of(&features)?)
}
