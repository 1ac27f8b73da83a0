//! `deme sample`: pictures from a model, as files, or straight into the statistics of their features.

mod model;
mod prompts;

use std::ops::Range;

use deme_data::{Picture, grid, write_png};
use deme_diffusion::SampleError;
use deme_eval::{FeaturePart, SamplingStamp, names_hash, stream_features, write_feature_file};
use serde_json::json;

use self::model::Model;
use self::prompts::Prompts;
use crate::cli::{Part, SampleArguments};
use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::{Collector, SAMPLES_FILE};
use crate::progress::{Progress, Voice, say};
use crate::run_dir::{write_bytes, write_json};

/// Space between the pictures of the grid, in pixels.
const GRID_PADDING: u32 = 2;

/// Pictures without prompts, when nothing else is said.
const DEFAULT_COUNT: usize = 16;

/// As many pictures at once as have the pixels of 16 of 256x256, from 1 to 16.
fn default_batch_size([_, height, width]: [usize; 3]) -> usize {
    (16 * 256 * 256 / (height * width).max(1)).clamp(1, 16)
}

/// Writes `<seed>.png` for every seed, all in one picture when asked, and the features' statistics when asked.
pub fn run(arguments: &SampleArguments) -> Result<(), Problem> {
    let SampleArguments { batch_size, out, .. } = arguments;
    if *batch_size == Some(0) {
        return Err(SampleError::EmptyBatch.into());
    }
    let prompts = Prompts::of_arguments(&arguments.text)?;
    let by_default = prompts.as_ref().map_or(DEFAULT_COUNT, Prompts::count);
    let num = arguments.num.unwrap_or(by_default);
    if num == 0 {
        return Err(Problem::Usage {
            message: "--num 0 asks for no picture".into(),
            help: "ask for at least 1".into(),
        });
    }
    let device = super::device(arguments.device);
    let measures = arguments.save_stats.is_some() || arguments.save_features.is_some();
    // Before the first picture is drawn, everything that can be wrong is found.
    let extractor = measures
        .then(|| extractors::open(&extractors::of_arguments(&arguments.extractor)?, &device))
        .transpose()?;
    let model = Model::open(arguments, prompts, &device)?;
    let shape = model.picture_shape;
    let batch_size = batch_size.unwrap_or_else(|| default_batch_size(shape));
    let stamp = model.stamp(arguments.seed, num);
    let seed_of = |position: usize| arguments.seed.wrapping_add(position as u64);

    let positions = arguments.part.map_or(0..num, |part| part.range(num));
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    for warning in model.warnings()? {
        if voice == Voice::Normal {
            say(&format!("warning: {warning}"));
        }
    }
    let calls = model.calls_per_picture()?;
    let mut progress = Progress::start(voice, "sampling", (positions.len() * calls) as u64);
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(|e| Problem::write(out, e))?;
    }
    let mut collector = extractor
        .as_deref()
        .map(|extractor| Collector::new(extractor, arguments.save_features.is_some()));
    let (mut shown, mut names) = (Vec::new(), Vec::new());
    for start in positions.clone().step_by(batch_size) {
        let end = (start + batch_size).min(positions.end);
        let seeds: Vec<u64> = (start..end).map(seed_of).collect();
        let done = (start - positions.start) * calls;
        let (mut step, batch) = (0, seeds.len());
        let images = model.draw(start..end, &seeds, &mut |_| {
            step += batch;
            progress.at((done + step.min(batch * calls)) as u64, "");
        })?;
        let pictures: Vec<Picture> = seeds
            .iter()
            .zip(&images)
            .map(|(seed, image)| picture(&seed.to_string(), image, shape))
            .collect::<Result<_, _>>()?;
        if let Some(out) = out {
            for picture in &pictures {
                write_png(&out.join(format!("{}.png", picture.name)), picture)?;
            }
        }
        if let (Some(extractor), Some(collector)) = (&extractor, &mut collector) {
            let read = |i: usize| Ok::<_, Problem>(pictures[i].clone());
            stream_features(&**extractor, pictures.len(), batch, &read, &mut |_, found| {
                Ok(collector.push(found?)?)
            })?;
            names.extend(pictures.iter().map(|picture| picture.name.clone()));
        }
        if arguments.grid.is_some() {
            shown.extend(pictures);
        }
    }
    if let Some(path) = &arguments.grid {
        let columns = (shown.len() as f64).sqrt().ceil() as usize;
        write_png(path, &grid(&shown, columns, GRID_PADDING, [255; 3])?)?;
    }
    if let Some(out) = out {
        if model.draws_prompts() {
            let captions = captions(&model, positions.clone(), &seed_of);
            write_bytes(&out.join(captions_file(arguments.part)), captions.as_bytes())?;
        }
        if arguments.part.is_none() {
            write_json(&out.join(SAMPLES_FILE), &stamp)?;
        }
    }
    if let Some(collector) = collector {
        save(arguments, collector, stamp, positions.start, &names)?;
    }
    let count = positions.len();
    progress.finish(&match out {
        Some(out) => format!("{count} pictures in {}", out.display()),
        None => format!("{count} pictures measured"),
    });
    Ok(())
}

/// Where it stands which picture is of which prompt. Parts each write a file of their own: one behind the other
/// they are the whole.
fn captions_file(part: Option<Part>) -> String {
    match part {
        None => "metadata.jsonl".to_owned(),
        Some(Part { number, of }) => format!("metadata-{number}-of-{of}.jsonl"),
    }
}

/// Which picture is of which prompt, as `deme clip-score` and data sets of pictures read it.
fn captions(model: &Model, positions: Range<usize>, seed_of: &dyn Fn(usize) -> u64) -> String {
    let line = |position: usize| {
        let (seed, prompt) = (seed_of(position), model.prompt(position));
        json!({ "file_name": format!("{seed}.png"), "text": prompt, "seed": seed }).to_string()
    };
    positions.map(|position| line(position) + "\n").collect()
}

fn picture(
    name: &str,
    image: &[f32],
    [channels, height, width]: [usize; 3],
) -> Result<Picture, Problem> {
    let rgb = if channels == 1 { image.repeat(3) } else { image.to_vec() };
    Ok(Picture::from_signed(name, &rgb, width as u32, height as u32)?)
}

/// Writes features and statistics. The whole set is known by the model and seeds it was drawn from, so that
/// every part of it says the same.
fn save(
    arguments: &SampleArguments,
    collector: Collector<'_>,
    stamp: SamplingStamp,
    first: usize,
    names: &[String],
) -> Result<(), Problem> {
    let whole = collector.stamp_of_drawn(&stamp);
    if let Some(path) = &arguments.save_features {
        let part = FeaturePart {
            stamp: whole.clone(),
            first_index: first as u64,
            count: names.len() as u64,
            names_hash: names_hash(names),
        };
        let rows = collector.rows().iter().map(|row| Ok(row.clone()));
        write_feature_file(path, &part, collector.dim(), rows)?;
    }
    if let Some(path) = &arguments.save_stats {
        collector.finish_with(whole)?.save_npz(path)?;
    }
    Ok(())
}
