//! Time and memory of one gradient, with gradient checkpointing and without:
//!
//! ```text
//! gradient_memory ddpm-cifar10|latents BATCH kept|checkpointed
//! ```
//!
//! `ddpm-cifar10` is the network of google/ddpm-cifar10-32 on images of 32 x 32, `latents` a Stable Diffusion 1.4 of
//! a fifth of the channels on latents of 64 x 64 and texts of 77 tokens; weights are random. The parts of a batch run
//! at the same time, as in finetuning. It answers with the fastest of three repetitions and the peak of resident
//! memory, of which a process has only one: each measurement needs its own.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Instant;

use burn::tensor::{Device, Tensor};
use deme_diffusion::image_shards::image_shards;
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    Condition, NoisePredictor, UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig,
    UNet2DModel,
};
use deme_nn::{Gradients, Init, with_gradients};
use rayon::prelude::*;

/// The allocator of the command `deme`.
#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

const DDPM_CIFAR10: &str = r#"{
    "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "attention_head_dim": null,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "norm_eps": 1e-6, "sample_size": 32}"#;

fn main() {
    deme_kernels::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [network, batch, how] = arguments.as_slice() else {
        panic!("gradient_memory ddpm-cifar10|latents BATCH kept|checkpointed");
    };
    let batch: usize = batch.parse().unwrap();
    let checkpointed = match how.as_str() {
        "kept" => false,
        "checkpointed" => true,
        other => panic!("neither kept nor checkpointed: {other}"),
    };
    let mut init = Init::new(0, &Device::flex());
    match network.as_str() {
        "ddpm-cifar10" => {
            let config = UNet2DConfig::from_json(DDPM_CIFAR10).unwrap();
            let unet = UNet2DModel::new(&config, &mut init).unwrap();
            measure(&unet, &mut init, [batch, 3, 32, 32], (), checkpointed);
        }
        "latents" => {
            let config = UNet2DConditionConfig {
                block_out_channels: vec![64, 128, 256, 256],
                ..SingleFileConfigs::default().unet
            };
            let unet = UNet2DConditionModel::new(&config, &mut init).unwrap();
            let states = init.normal([batch, 77, 768], 1.0);
            measure(&unet, &mut init, [batch, 4, 64, 64], states, checkpointed);
        }
        other => panic!("neither ddpm-cifar10 nor latents: {other}"),
    }
}

fn measure<N: NoisePredictor>(
    model: &N,
    init: &mut Init,
    shape: [usize; 4],
    condition: N::Condition,
    checkpointed: bool,
) {
    let (x_t, eps) = (init.normal(shape, 1.0), init.normal(shape, 1.0));
    let t: Vec<usize> = (0..shape[0]).map(|i| i * 1000 / shape[0]).collect();
    let before = peak_memory();
    let mut fastest = f64::INFINITY;
    let mut norm = 0.0;
    for _ in 0..3 {
        let start = Instant::now();
        norm = gradients(model, &x_t, &eps, &t, &condition, checkpointed).norm();
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    let peak = peak_memory();
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{fastest:.2} s; peak {} MiB, {} MiB of them before; gradient norm {norm:.7e}",
        mib(peak),
        mib(before)
    );
}

/// The gradient of the mean squared error.
fn gradients<N: NoisePredictor>(
    model: &N,
    x_t: &Tensor<4>,
    eps: &Tensor<4>,
    t: &[usize],
    condition: &N::Condition,
    checkpointed: bool,
) -> Gradients {
    let parts = image_shards(x_t).into_par_iter().map(|images| {
        let part = |x: &Tensor<4>| x.clone().narrow(0, images.start, images.len());
        let (x_t, eps, condition) = (part(x_t), part(eps), condition.part(&images));
        let share = images.len() as f64 / t.len() as f64;
        let loss = |output: Tensor<4>| (output - eps).square().mean() * share;
        let t = &t[images];
        if checkpointed {
            return model.checkpointed_gradients(x_t, t, condition, loss);
        }
        let live = with_gradients(model);
        Gradients::of(&loss(live.output(x_t, t, condition)), &live)
    });
    let parts: Vec<Gradients> = rayon::scope(|_| parts.collect());
    parts.into_iter().reduce(Gradients::plus).unwrap()
}

/// Bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
