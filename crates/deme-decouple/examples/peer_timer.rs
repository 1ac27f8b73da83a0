//! Times kernels, forward passes, training steps and sampling one at a time, so that another program can be
//! timed in between: the Rust half of `tools/compare_pytorch.py`.
//!
//! It answers each line of standard input with one line. `model FOLDER BATCH SIDE` opens a diffusers folder;
//! `predict IN OUT` runs it on raw f32 images; every other command does one piece of work and answers with its
//! seconds: `forward`, `train`, `deme`, `sample STEPS`, or `kernel NAME SIZES.. forward|backward REPEATS`.
//! `memory train` and `memory deme` take a few steps, keeping nothing that training does not need, and answer
//! with the peak of resident memory in bytes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use deme_decouple::{EmaConfig, FinetuneConfig, Finetuner, MicroBatch};
use deme_diffusion::{
    Denoiser, LoadedModel, NoiseSchedule, NoiseScheduleConfig, PredictionType, SamplerConfig,
    UNet2DModel, load_pipeline, sample,
};
use deme_kernels::{
    Activation, AdamWStep, ConvGeometry, GroupNormParameters, GroupNormSettings, ParameterState,
};
use deme_nn::Init;

/// The allocator of the command `deme`.
#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

fn main() {
    deme_kernels::keep_freed_memory();
    let mut opened: Option<Opened> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["model", folder, batch, side] => {
                opened = Some(Opened::new(folder, batch.parse().unwrap(), side.parse().unwrap()));
                println!("opened");
            }
            ["memory", what] => {
                let opened = opened.take().expect("`model` first");
                println!("{}", opened.memory_of_steps(*what == "deme"));
            }
            // On the worker threads, where networks call the kernels.
            ["kernel", name, rest @ ..] => {
                println!("{}", rayon::scope(|_| kernel_seconds(name, rest)));
            }
            command => println!("{}", opened.as_mut().expect("`model` first").run(command)),
        }
    }
}

/// The processor; a GPU when built with `--features vulkan`. Kernels are timed on the processor only: a GPU
/// answers before it is done.
fn device() -> Device {
    #[cfg(feature = "vulkan")]
    return Device::vulkan(Default::default());
    #[cfg(not(feature = "vulkan"))]
    Device::flex()
}

/// A network and what is timed on it.
struct Opened {
    model: LoadedModel,
    train: Option<Finetuner>,
    deme: Option<Finetuner>,
    batch: usize,
    side: usize,
}

impl Opened {
    fn new(folder: &str, batch: usize, side: usize) -> Self {
        let model = load_pipeline(folder, &device()).unwrap();
        Self { model, train: None, deme: None, batch, side }
    }

    fn images(&self, seed: u64) -> Tensor<4> {
        let shape = [self.batch, self.model.unet.config().in_channels, self.side, self.side];
        Init::new(seed, &device()).normal::<4>(shape, 1.0)
    }

    fn micro_batch(&self) -> MicroBatch {
        let t = (0..self.batch).map(|i| i * 1000 / self.batch).collect();
        MicroBatch { x_0: self.images(0), eps: self.images(1), t, condition: () }
    }

    /// Peak memory of a few steps that begin with this model.
    fn memory_of_steps(self, deme: bool) -> u64 {
        let micro_batch = self.micro_batch();
        let mut finetuner = finetuner(self.model.unet, deme);
        for _ in 0..4 {
            finetuner.step([micro_batch.clone()]).unwrap();
        }
        peak_memory()
    }

    fn run(&mut self, command: &[&str]) -> f64 {
        let MicroBatch { x_0, eps, t, condition } = self.micro_batch();
        match command {
            ["predict", from, to] => {
                let values: Vec<f32> = std::fs::read(from)
                    .unwrap()
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                    .collect();
                let data = burn::tensor::TensorData::new(values, x_0.dims());
                let y = self.model.unet.predict(Tensor::from_data(data, &device()), &t);
                let bytes =
                    y.into_data().iter::<f32>().flat_map(f32::to_le_bytes).collect::<Vec<_>>();
                std::fs::write(to, bytes).unwrap();
                0.0
            }
            ["forward"] => seconds(|| {
                self.model.unet.predict(x_0, &t).into_data();
            }),
            ["train"] => {
                let mut finetuner =
                    self.train.take().unwrap_or_else(|| finetuner(self.model.unet.clone(), false));
                let seconds = seconds(|| {
                    finetuner.step([MicroBatch { x_0, eps, t, condition }]).unwrap();
                });
                self.train = Some(finetuner);
                seconds
            }
            ["deme"] => {
                let mut finetuner =
                    self.deme.take().unwrap_or_else(|| finetuner(self.model.unet.clone(), true));
                let seconds = seconds(|| {
                    finetuner.step([MicroBatch { x_0, eps, t, condition }]).unwrap();
                });
                self.deme = Some(finetuner);
                seconds
            }
            ["sample", steps] => {
                let config = SamplerConfig { steps: steps.parse().unwrap(), ..Default::default() };
                let seeds: Vec<u64> = (0..self.batch as u64).collect();
                let [_, c, h, w] = x_0.dims();
                let LoadedModel { unet, scheduler, .. } = &self.model;
                let scheduler = scheduler.as_ref().unwrap();
                let (device, batch) = (device(), self.batch);
                seconds(|| {
                    sample(
                        unet,
                        scheduler,
                        &config,
                        [c, h, w],
                        &seeds,
                        batch,
                        &device,
                        &mut |_| {},
                    )
                    .unwrap();
                })
            }
            other => panic!("no such command: {other:?}"),
        }
    }
}

/// The finetuner of the whole DeMe step, or of a plain training step.
fn finetuner(unet: UNet2DModel, deme: bool) -> Finetuner {
    let plain = FinetuneConfig {
        consistency_weight: 0.0,
        max_grad_norm: 0.0,
        ema: EmaConfig { enabled: false, ..EmaConfig::default() },
        ..FinetuneConfig::default()
    };
    let config = if deme { FinetuneConfig::default() } else { plain };
    let schedule = NoiseSchedule::new(&NoiseScheduleConfig::default()).unwrap();
    let teacher = deme.then(|| unet.clone());
    Finetuner::new(&config, unet, teacher.as_ref(), &schedule, PredictionType::Epsilon)
}

/// Mean seconds of one call of a kernel.
fn kernel_seconds(name: &str, rest: &[&str]) -> f64 {
    let [sizes @ .., direction, repeats] = rest else { panic!("sizes, direction, repeats") };
    let sizes: Vec<usize> = sizes.iter().map(|size| size.parse().unwrap()).collect();
    let backward = *direction == "backward";
    let repeats: usize = repeats.parse().unwrap();
    let mut init = Init::new(7, &Device::flex());
    match (name, sizes.as_slice()) {
        ("conv2d", &[b, c_in, side, c_out, kernel, stride]) => {
            let geometry = match stride {
                1 => ConvGeometry::same(kernel),
                _ => ConvGeometry { stride, padding_begin: 0, padding_end: 1 },
            };
            let x = init.normal::<4>([b, c_in, side, side], 1.0);
            let weight = init.normal::<4>([c_out, c_in, kernel, kernel], 0.02);
            let bias = init.normal::<1>([c_out], 1.0);
            repeated(repeats, || {
                let (x, weight, bias) = tracked(backward, (&x, &weight, &bias));
                finish(backward, deme_kernels::conv2d(x, weight, Some(bias), geometry));
            })
        }
        ("group_norm_silu", &[b, c, side, groups]) => {
            let x = init.normal::<4>([b, c, side, side], 1.0);
            let (weight, bias) = (init.normal::<1>([c], 1.0), init.normal::<1>([c], 1.0));
            let settings = GroupNormSettings { groups, eps: 1e-5, activation: Activation::Silu };
            repeated(repeats, || {
                let (x, weight, bias) = tracked(backward, (&x, &weight, &bias));
                let norm = GroupNormParameters { weight, bias, settings };
                finish(backward, deme_kernels::group_norm(x, norm));
            })
        }
        ("attention", &[b, heads, l, d]) => {
            let [q, k, v] = [(); 3].map(|()| init.normal::<4>([b, heads, l, d], 1.0));
            repeated(repeats, || {
                let (q, k, v) = tracked(backward, (&q, &k, &v));
                let scale = 1.0 / (d as f64).sqrt();
                finish(backward, deme_kernels::attention(q, k, v, scale, false));
            })
        }
        ("linear", &[rows, d_in, d_out]) => {
            let x = init.normal::<2>([rows, d_in], 1.0);
            let weight = init.normal::<2>([d_out, d_in], 0.02);
            let bias = init.normal::<1>([d_out], 1.0);
            repeated(repeats, || {
                let (x, weight, bias) = tracked(backward, (&x, &weight, &bias));
                finish(backward, deme_kernels::linear(x, weight, Some(bias)));
            })
        }
        ("adamw" | "adamw+ema", &[n]) => {
            let [theta, grad, m, average] = [(); 4].map(|()| init.normal::<1>([n], 0.01));
            let average = (name == "adamw+ema").then_some(average);
            let mut state = ParameterState { theta, m, v: grad.clone().square(), average };
            let step = AdamWStep {
                learning_rate: 5e-5,
                beta1: 0.95,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 1e-6,
                step: 3,
                grad_scale: 1.0,
                average_decay: 0.999,
            };
            let start = Instant::now();
            for _ in 0..repeats {
                let mut stepped = deme_kernels::adamw_steps(vec![(state, grad.clone())], &step);
                state = stepped.remove(0);
            }
            start.elapsed().as_secs_f64() / repeats as f64
        }
        ("norm", &[n]) => {
            let grad = init.normal::<1>([n], 0.01);
            repeated(repeats, || {
                black_box(deme_kernels::squared_norm(vec![grad.clone()]));
            })
        }
        (name, sizes) => panic!("no such kernel: {name} {sizes:?}"),
    }
}

/// Three inputs, with gradients when the backward pass is timed.
fn tracked<const A: usize, const B: usize, const C: usize>(
    backward: bool,
    (a, b, c): (&Tensor<A>, &Tensor<B>, &Tensor<C>),
) -> (Tensor<A>, Tensor<B>, Tensor<C>) {
    let (a, b, c) = (a.clone(), b.clone(), c.clone());
    if !backward {
        return (a, b, c);
    }
    (a.autodiff().require_grad(), b.autodiff().require_grad(), c.autodiff().require_grad())
}

fn finish<const D: usize>(backward: bool, y: Tensor<D>) {
    if backward {
        // From a gradient of ones.
        black_box(y.backward());
    } else {
        black_box(y);
    }
}

fn repeated(repeats: usize, mut work: impl FnMut()) -> f64 {
    seconds(|| (0..repeats).for_each(|_| work())) / repeats as f64
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Peak resident memory of this process, where the system tells (Linux); 0 elsewhere.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kb| kb << 10)
}
