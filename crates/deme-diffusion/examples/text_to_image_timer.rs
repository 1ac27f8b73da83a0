//! Writes and runs Stable Diffusion's networks one call at a time, so that another program can be compared and
//! timed in between: the Rust half of `tools/compare_stable_diffusion.py`.
//!
//! It answers each line of standard input with one line:
//! - `make FOLDER` writes a folder of Stable Diffusion 1.4's exact shapes with random weights;
//! - `open FOLDER` loads one;
//! - `unet LATENTS STATES OUT` runs the UNet once on raw f32 files of `[B, 4, 64, 64]` latents and `[B, 77, 768]`
//!   states, at the timesteps `i 1000 / B`, and answers with its seconds;
//! - `decode LATENTS OUT` decodes `[1, 4, 64, 64]` latents and answers with the seconds;
//! - `encode IMAGE OUT` writes mean and log-variance of a `[1, 3, 512, 512]` image and answers with the seconds;
//! - `text OUT PROMPT` writes the hidden states of a prompt and answers with the seconds;
//! - `image LATENTS STEPS OUT PROMPT` makes a picture of a prompt at guidance 7.5 with the folder's scheduler, from
//!   `[1, 4, 64, 64]` noise to `[1, 3, 512, 512]` values in `[-1, 1]`, and answers with the seconds;
//! - `memory` answers with the peak of resident memory in bytes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::ClipTextModel;
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    AutoencoderKl, ConditionalDenoiser, Denoiser, GuidanceConfig, Guided, PromptTokenizer,
    SamplerConfig, SamplerKind, SchedulerConfig, TextToImagePipeline, UNet2DConditionModel,
};
use deme_nn::{Init, map_parameters};

/// The allocator of the command `deme`.
#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

fn main() {
    deme_kernels::keep_freed_memory();
    let mut opened: Option<TextToImagePipeline> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["make", folder] => {
                made().save(Path::new(folder)).unwrap();
                println!("made");
            }
            ["open", folder] => {
                // Two of them would not fit everywhere.
                drop(opened.take());
                opened = Some(TextToImagePipeline::load(folder, &Device::flex()).unwrap());
                println!("opened");
            }
            ["memory"] => println!("{}", peak_memory()),
            command => println!("{}", run(opened.as_ref().expect("`open` first"), command)),
        }
    }
}

/// `scheduler_config.json` as published.
const SCHEDULER: &str = r#"{
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
    "trained_betas": null, "clip_sample": false
}"#;

/// Stable Diffusion 1.4 with random weights.
fn made() -> TextToImagePipeline {
    let configs = SingleFileConfigs::default();
    let mut init = Init::new(14, &Device::flex());
    let unet = UNet2DConditionModel::new(&configs.unet, &mut init).unwrap();
    let vae = AutoencoderKl::new(&configs.vae, &mut init).unwrap();
    let text_encoder = ClipTextModel::new(&configs.text_encoder, &mut init).unwrap();
    TextToImagePipeline {
        unet: livelier(unet, &mut init),
        vae: Some(livelier(vae, &mut init)),
        text_encoder: livelier(text_encoder, &mut init),
        tokenizer: PromptTokenizer::published(77).unwrap(),
        scheduler: SchedulerConfig::from_json(SCHEDULER).unwrap(),
    }
}

/// Initial weights, changed so that every layer can be seen in the outputs: attention looks at something (at
/// first all scores are nearly equal), norms scale and shift, and outputs are of order 1.
fn livelier<M: Module>(model: M, init: &mut Init) -> M {
    map_parameters(model, &mut |name, values| {
        let asks = [".to_q.weight", ".to_k.weight", ".q_proj.weight", ".k_proj.weight"];
        let of_norm = name.rsplit('.').nth(1).is_some_and(|layer| layer.contains("norm"));
        if name.starts_with("conv_out.") || asks.iter().any(|end| name.ends_with(end)) {
            values * 3.0
        } else if of_norm {
            let spread = init.uniform(values.dims(), 0.3);
            values + spread
        } else {
            values
        }
    })
}

fn run(pipeline: &TextToImagePipeline, command: &[&str]) -> f64 {
    let vae = || pipeline.vae.as_ref().expect("Stable Diffusion has an autoencoder");
    let start = Instant::now();
    match command {
        ["unet", latents, states, to] => {
            let (x_t, states) = (read(latents, [0, 4, 64, 64]), read(states, [0, 77, 768]));
            let batch = x_t.dims()[0];
            let t: Vec<usize> = (0..batch).map(|i| i * 1000 / batch).collect();
            write(to, &[pipeline.unet.predict(x_t, &t, states)]);
        }
        ["decode", latents, to] => write(to, &[vae().decode(read(latents, [0, 4, 64, 64]))]),
        ["encode", image, to] => {
            let latents = vae().encode(read(image, [0, 3, 512, 512]));
            write(to, &[latents.mean, latents.log_variance]);
        }
        ["text", to, prompt @ ..] => {
            let encoded = pipeline.encode_prompts(&[prompt.join(" ")], 0).unwrap();
            write(to, &[encoded.hidden_states]);
        }
        ["image", latents, steps, to, prompt @ ..] => {
            let noise = read(latents, [0, 4, 64, 64]);
            write(to, &[image(pipeline, noise, steps.parse().unwrap(), &prompt.join(" "))]);
        }
        command => panic!("unknown command {command:?}"),
    }
    start.elapsed().as_secs_f64()
}

/// `[1, 3, 512, 512]` of `[1, 4, 64, 64]` noise.
fn image(
    pipeline: &TextToImagePipeline,
    noise: Tensor<4>,
    steps: usize,
    prompt: &str,
) -> Tensor<4> {
    let encoded = pipeline.encode_prompts(&[prompt, ""], 0).unwrap().hidden_states;
    let [prompt, empty] = [0, 1].map(|row| encoded.clone().narrow(0, row, 1));
    let guided =
        Guided::new(&pipeline.unet, GuidanceConfig::default(), prompt, Some(empty)).unwrap();
    let sampler = SamplerConfig { kind: SamplerKind::Pndm, steps, ..SamplerConfig::default() };
    let mut method = sampler.method(&pipeline.scheduler).unwrap();
    let mut x_t = noise;
    for (index, t) in method.timesteps().to_vec().into_iter().enumerate() {
        let eps = guided.predict(x_t.clone(), &[t as usize]);
        x_t = method.step(index, x_t, eps, &mut || panic!("PNDM takes no noise"));
    }
    pipeline.images(x_t)
}

/// Raw f32 values; the first dimension is what is left.
fn read<const D: usize>(path: &str, mut shape: [usize; D]) -> Tensor<D> {
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    shape[0] = values.len() / shape[1..].iter().product::<usize>();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn write<const D: usize>(path: &str, tensors: &[Tensor<D>]) {
    let values = tensors.iter().flat_map(|tensor| {
        let values = tensor.clone().into_data().try_into_vec::<f32>().unwrap();
        values.into_iter().flat_map(f32::to_le_bytes)
    });
    std::fs::write(path, values.collect::<Vec<u8>>()).unwrap();
}

/// Bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
