//! `deme sample`: pictures from a model, as files, or straight into the statistics of their features.

use deme_data::{Picture, grid, write_png};
use deme_diffusion::checkpoint::resolve;
use deme_diffusion::hub::ModelKind;
use deme_diffusion::{LoadedModel, SamplerConfig, load_pipeline, sample};
use deme_eval::{FeaturePart, SamplingStamp, names_hash, stream_features, write_feature_file};
use deme_nn::to_state_dict;

use crate::cli::SampleArguments;
use crate::diagnostics::Problem;
use crate::extractors;
use crate::feature_sets::{Collector, SAMPLES_FILE};
use crate::progress::{Progress, Voice};
use crate::run_dir::write_json;

/// Space between the pictures of the grid, in pixels.
const GRID_PADDING: u32 = 2;

/// Writes `<seed>.png` for every seed, all in one picture when asked, and the features' statistics when asked.
pub fn run(arguments: &SampleArguments) -> Result<(), Problem> {
    let SampleArguments { model, num, batch_size, out, .. } = arguments;
    if *num == 0 {
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
    let loaded = load_pipeline(model, &device)?;
    let shape = picture_shape(model, &loaded)?;
    let sampler = SamplerConfig {
        kind: arguments.sampler.kind(),
        steps: arguments.steps,
        eta: arguments.eta,
        ..SamplerConfig::default()
    };
    let stamp = SamplingStamp {
        model: resolve(model, ModelKind::Diffusion)?.display().to_string(),
        model_hash: to_state_dict(&loaded.unet).content_hash(),
        sampler: sampler.kind.name().to_owned(),
        steps: sampler.steps,
        eta: sampler.eta,
        guidance: None,
        first_seed: arguments.seed,
        count: *num as u64,
    };

    let positions = arguments.part.map_or(0..*num, |part| part.range(*num));
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    let mut progress =
        Progress::start(voice, "sampling", (positions.len() * arguments.steps) as u64);
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(|e| Problem::write(out, e))?;
    }
    let scheduler = loaded.scheduler.clone().unwrap_or_default();
    let mut collector = extractor
        .as_deref()
        .map(|extractor| Collector::new(extractor, arguments.save_features.is_some()));
    let (mut shown, mut names) = (Vec::new(), Vec::new());
    for start in positions.clone().step_by((*batch_size).max(1)) {
        let end = (start + batch_size).min(positions.end);
        let seeds: Vec<u64> = (start..end).map(|i| arguments.seed.wrapping_add(i as u64)).collect();
        let done = (start - positions.start) * arguments.steps;
        let (mut step, batch) = (0, seeds.len());
        let observe = &mut |_: deme_diffusion::SampleProgress| {
            step += batch;
            progress.at((done + step.min(batch * arguments.steps)) as u64, "");
        };
        let images =
            sample(&loaded.unet, &scheduler, &sampler, shape, &seeds, batch, &device, observe)?;
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
    if let (Some(out), None) = (out, arguments.part) {
        write_json(&out.join(SAMPLES_FILE), &stamp)?;
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

/// Channels, height and width of a model's pictures.
fn picture_shape(name: &str, model: &LoadedModel) -> Result<[usize; 3], Problem> {
    let config = model.unet.config();
    let Some([height, width]) = config.sample_size.map(|size| size.height_width()) else {
        return Err(Problem::Usage {
            message: format!("{name} does not say how large its pictures are"),
            help: "set `sample_size` in its config.json".into(),
        });
    };
    if config.out_channels != 3 && config.out_channels != 1 {
        return Err(Problem::Usage {
            message: format!("{name} gives {} channels, not pictures", config.out_channels),
            help: "pictures have 3 channels or 1".into(),
        });
    }
    Ok([config.out_channels, height, width])
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
