//! Runs and times extractors, so that another program can be compared with: the Rust half of
//! `tools/compare_extractors.py`.
//!
//! `extractor_timer inception|dinov2 WEIGHTS` answers each line of standard input with one line: `seconds IN COUNT`
//! takes the features of the COUNT pictures in the file IN (raw f32, in [0, 1], prepared) and answers with the
//! seconds that took, `features IN COUNT OUT` writes them (raw f32).
#![allow(missing_docs)]

use burn::tensor::Device;
use deme_eval::{
    Dinov2, Dinov2Extractor, FeatureExtractor, Inception, InceptionExtractor, InceptionProtocol,
};
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

/// The allocator of the command `deme`.
#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

fn main() -> Result<(), Box<dyn Error>> {
    deme_kernels::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, weights] = &arguments[..] else {
        return Err("usage: extractor_timer inception|dinov2 WEIGHTS".into());
    };
    let (weights, device) = (Path::new(weights), Device::flex());
    let extractor: Box<dyn FeatureExtractor> = if kind == "inception" {
        let inception = Inception::load(weights, &device)?;
        Box::new(InceptionExtractor::pool3(inception, InceptionProtocol::PytorchFid))
    } else {
        Box::new(Dinov2Extractor::new(Dinov2::load(weights, &device)?))
    };
    let len: usize = extractor.image_shape().iter().product();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [command, input, count, out @ ..] = words.as_slice() else {
            return Err("a command has a file and a count".into());
        };
        let bytes = std::fs::read(input)?;
        let (values, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let images: Vec<&[f32]> = values.chunks_exact(len).take(count.parse()?).collect();
        let start = Instant::now();
        let features = extractor.features(&images)?;
        let seconds = start.elapsed().as_secs_f64();
        if let ("features", [out]) = (*command, out) {
            let values = features.concat();
            std::fs::write(out, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        println!("{seconds}");
    }
    Ok(())
}
