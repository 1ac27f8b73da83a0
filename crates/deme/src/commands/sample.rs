//! `deme sample`: pictures from a model.

use deme_data::{Picture, grid, write_png};
use deme_diffusion::{SamplerConfig, SamplerKind, load_pipeline, sample};

use crate::cli::{SampleArguments, SamplerName};
use crate::diagnostics::Problem;
use crate::progress::{Progress, Voice};

/// Space between the pictures of the grid, in pixels.
const GRID_PADDING: u32 = 2;

/// Writes `<seed>.png` for every seed, and all in one picture when asked.
pub fn run(arguments: &SampleArguments) -> Result<(), Problem> {
    let SampleArguments { model, num, seed, batch_size, out, .. } = arguments;
    let sampler = SamplerConfig {
        kind: match arguments.sampler {
            SamplerName::Ddim => SamplerKind::Ddim,
            SamplerName::Ddpm => SamplerKind::Ddpm,
        },
        steps: arguments.steps,
        eta: arguments.eta,
        ..SamplerConfig::default()
    };
    if *num == 0 {
        return Err(Problem::Usage {
            message: "--num 0 asks for no picture".into(),
            help: "ask for at least 1".into(),
        });
    }
    let device = super::device(arguments.device);
    let loaded = load_pipeline(model, &device)?;
    let config = loaded.unet.config();
    let Some([height, width]) = config.sample_size.map(|size| size.height_width()) else {
        return Err(Problem::Usage {
            message: format!("{model} does not say how large its pictures are"),
            help: "set `sample_size` in its config.json".into(),
        });
    };
    if config.out_channels != 3 && config.out_channels != 1 {
        return Err(Problem::Usage {
            message: format!("{model} gives {} channels, not pictures", config.out_channels),
            help: "pictures have 3 channels or 1".into(),
        });
    }
    let voice = if arguments.quiet { Voice::Quiet } else { Voice::Normal };
    let mut progress = Progress::start(voice, "sampling", (*num * arguments.steps) as u64);
    let seeds: Vec<u64> = (0..*num as u64).map(|i| seed.wrapping_add(i)).collect();
    let shape = [config.out_channels, height, width];
    let (mut step, scheduler) = (0, loaded.scheduler.clone().unwrap_or_default());
    let observe = &mut |at: deme_diffusion::SampleProgress| {
        step += (num - at.images_done).min(*batch_size).max(1) as u64;
        progress.at(step.min((*num * arguments.steps) as u64), "");
    };
    let images =
        sample(&loaded.unet, &scheduler, &sampler, shape, &seeds, *batch_size, &device, observe)?;
    std::fs::create_dir_all(out).map_err(|e| Problem::write(out, e))?;
    let mut pictures = Vec::new();
    for (seed, image) in seeds.iter().zip(&images) {
        let rgb = if shape[0] == 1 { image.repeat(3) } else { image.clone() };
        let picture = Picture::from_signed(seed.to_string(), &rgb, width as u32, height as u32)?;
        write_png(&out.join(format!("{seed}.png")), &picture)?;
        pictures.push(picture);
    }
    if let Some(path) = &arguments.grid {
        let columns = (*num as f64).sqrt().ceil() as usize;
        write_png(path, &grid(&pictures, columns, GRID_PADDING, [255; 3])?)?;
    }
    progress.finish(&format!("{num} pictures in {}", out.display()));
    Ok(())
}
