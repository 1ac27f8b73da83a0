//! Writes and runs Stable Diffusion's networks one call at a time, so that another program can be compared and
//! timed in between: the Rust half of `tools/compare_text_to_image.py`.
//!
//! It answers each line of standard input with one line:
//! - `make FOLDER` writes a folder of Stable Diffusion 1.4's exact shapes with random weights;
//! - `open FOLDER` loads one;
//! - `unet LATENTS STATES OUT` runs the UNet once on raw f32 files of `[B, 4, 64, 64]` latents and `[B, 77, 768]`
//!   states, at the timesteps `i 1000 / B`, and answers with its seconds;
//! - `decode LATENTS OUT` decodes `[1, 4, 64, 64]` latents and answers with the seconds;
//! - `encode IMAGE OUT` writes mean and log-variance of a `[1, 3, 512, 512]` image and answers with the seconds;
//! - `text OUT PROMPT` writes the hidden states of a prompt and answers with the seconds;
//! - `memory` answers with the peak of resident memory in bytes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use deme_clip::ClipTextModel;
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    AutoencoderKl, ConditionalDenoiser, PromptTokenizer, TextToImagePipeline, UNet2DConditionModel,
};
use deme_nn::Init;

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

/// Stable Diffusion 1.4 with random weights. PyTorch's initialisation lets the signal die out on the way; norms
/// keep it alive, so outputs are of order 1 but for the last convolution's scale.
fn made() -> TextToImagePipeline {
    let configs = SingleFileConfigs::default();
    let mut init = Init::new(14, &Device::flex());
    let mut unet = UNet2DConditionModel::new(&configs.unet, &mut init).unwrap();
    let weight = unet.conv_out.weight.val();
    unet.conv_out.weight = Param::from_tensor(weight * 3.0);
    TextToImagePipeline {
        unet,
        vae: Some(AutoencoderKl::new(&configs.vae, &mut init).unwrap()),
        text_encoder: ClipTextModel::new(&configs.text_encoder, &mut init).unwrap(),
        tokenizer: PromptTokenizer::published(77).unwrap(),
        scheduler: configs.scheduler,
    }
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
        command => panic!("unknown command {command:?}"),
    }
    start.elapsed().as_secs_f64()
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
