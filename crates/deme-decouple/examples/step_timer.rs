//! Times forward passes and training steps one at a time, so that another program can be timed in between.
//!
//! `step_timer MODEL BATCH SIDE`, with MODEL a diffusers folder. For each line on standard input, `forward`
//! or `train`, it does one and prints its seconds. `tools/compare_pytorch.py` alternates it with PyTorch.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::BufRead;
use std::time::Instant;

use burn::tensor::Device;
use deme_decouple::{FinetuneConfig, Finetuner, MicroBatch};
use deme_diffusion::{Denoiser, NoiseSchedule, NoiseScheduleConfig, PredictionType, load_pipeline};
use deme_nn::Init;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, side] = arguments.as_slice() else {
        eprintln!("usage: step_timer MODEL BATCH SIDE");
        std::process::exit(2);
    };
    let (batch, side): (usize, usize) = (batch.parse().unwrap(), side.parse().unwrap());
    let device = Device::flex();
    let unet = load_pipeline(model, &device).unwrap().unet;
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap();
    let config = FinetuneConfig { consistency_weight: 0.0, ..FinetuneConfig::default() };
    let prediction = PredictionType::Epsilon;
    let mut finetuner = Finetuner::new(&config, unet.clone(), None, &schedule, prediction);
    let images = |seed| {
        let shape = [batch, unet.config().in_channels, side, side];
        Init::new(seed, &device).normal::<4>(shape, 1.0)
    };
    let t: Vec<usize> = (0..batch).map(|i| i * 1000 / batch).collect();
    for line in std::io::stdin().lock().lines() {
        let (x_0, eps) = (images(0), images(1));
        let start = Instant::now();
        match line.unwrap().as_str() {
            "forward" => {
                unet.predict(x_0, &t).into_data();
            }
            "train" => {
                finetuner.step([MicroBatch { x_0, eps, t: t.clone() }]).unwrap();
            }
            other => panic!("neither `forward` nor `train`: {other}"),
        }
        println!("{}", start.elapsed().as_secs_f64());
    }
}
