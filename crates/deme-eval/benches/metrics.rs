//! The metrics on features as wide as Inception's: `cargo bench -p deme-eval`.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use deme_eval::{
    FeatureSet, KidConfig, NeighbourConfig, bootstrap_spread, frechet_distance, kernel_distance,
    neighbour_metrics,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

const DIM: usize = 2048;

/// Features with a falling spectrum, about as pooled features of a network have it.
fn features(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut scaled = |j: usize| rng.random_range(-1.0..1.0f32) / (1.0 + j as f32).sqrt();
    let mut values: Vec<f32> = (0..count * DIM).map(|k| scaled(k % DIM)).collect();
    // Neighbouring entries depend on each other.
    for row in values.chunks_mut(DIM) {
        (1..DIM).for_each(|j| row[j] += 0.5 * row[j - 1]);
    }
    values
}

fn metrics(c: &mut Criterion) {
    let mut group = c.benchmark_group("2048 dimensions");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.measurement_time(Duration::from_secs(10));
    let (full, other, few) = (features(4000, 1), features(4000, 2), features(1000, 3));
    let full = FeatureSet::of_flat(&full, DIM).unwrap();
    let other = FeatureSet::of_flat(&other, DIM).unwrap();
    let few = FeatureSet::of_flat(&few, DIM).unwrap();
    group.bench_function("statistics of 1000 features", |b| b.iter(|| few.stats().unwrap()));
    let [full_stats, other_stats, few_stats] = [&full, &other, &few].map(|x| x.stats().unwrap());
    group.bench_function("Fréchet distance, full rank", |b| {
        b.iter(|| frechet_distance(&full_stats, &other_stats).unwrap());
    });
    group.bench_function("Fréchet distance, 1000 features", |b| {
        b.iter(|| frechet_distance(&few_stats, &few_stats).unwrap());
    });
    let rows: Vec<Vec<f32>> = (0..500).map(|i| few.row(i).to_vec()).collect();
    group.bench_function("10 bootstrap draws of 500 features", |b| {
        b.iter(|| bootstrap_spread(&rows, &full_stats, 10, 0).unwrap());
    });
    group.bench_function("KID, 4000 features a side", |b| {
        b.iter(|| kernel_distance(&full, &other, &KidConfig::default()).unwrap());
    });
    group.bench_function("precision to coverage, 4000 features a side", |b| {
        b.iter(|| neighbour_metrics(&full, &other, &NeighbourConfig::default()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, metrics);
criterion_main!(benches);
