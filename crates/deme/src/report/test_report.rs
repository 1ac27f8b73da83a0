//! A made-up report for the tests: the numbers mean nothing, the shapes are those of a run.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Cursor;
use std::path::Path;

use deme_merge::LandscapeConfig;
use deme_merge::task_vector_statistics::{Distribution, Similarity, TensorStatistics};
use deme_merge::weight_search::ReferenceKind;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::json;

use super::*;

/// A report with `experts` timestep ranges, without pictures.
pub(super) fn report_of(experts: usize) -> Report {
    let ranges: Vec<(usize, usize)> =
        (0..experts).map(|i| (i * 1000 / experts, (i + 1) * 1000 / experts)).collect();
    let total = 400 * experts as u64;
    let uniform = vec![1.0 / experts as f64; experts];
    let search = search_of(experts);
    let searched = search.best_weights.clone();
    let expert_label = |i: usize| format!("expert {} ({}..{})", i + 1, ranges[i].0, ranges[i].1);

    let mut rows = vec![
        row("before", "before", RowKind::Before, 0, 14.23, None),
        row("joint", "joint", RowKind::Joint, total, 12.61, None),
    ];
    for i in 0..experts {
        let id = format!("expert-{}", i + 1);
        let value = 13.4 + 2.3 * i as f64;
        rows.push(row(&id, &expert_label(i), RowKind::Expert, 400, value, None));
    }
    rows.push(row("ensemble", "ensemble", RowKind::Ensemble, total, 11.75, None));
    rows.push(row("uniform", "uniform 1/N", RowKind::Uniform, total, 12.55, Some(uniform)));
    rows.push(row("searched", "searched", RowKind::Searched, total, 11.38, Some(searched)));

    let mut loss_curves =
        vec![curve("pretraining", 4000, 0.03, None), curve("joint", total, 0.028, None)];
    for i in 0..experts {
        let floor = 0.06 / (1.0 + i as f64 * 2.0);
        loss_curves.push(curve(&expert_label(i), 400, floor, Some(floor * 0.2)));
    }
    let range_losses = RangeLosses {
        description: "256 held-out pictures, the same noise for every model".into(),
        rows: rows
            .iter()
            .filter(|row| row.kind != RowKind::Ensemble)
            .enumerate()
            .map(|(place, row)| RangeLossRow {
                label: row.label.clone(),
                losses: (0..experts)
                    .map(|range| {
                        0.09 / (1.0 + range as f64)
                            * (1.0 - 0.013 * ((place * 3 + range) % 7) as f64)
                    })
                    .collect(),
            })
            .collect(),
    };
    Report {
        title: "shapes".into(),
        command: "deme run recipes/shapes.toml --out runs/shapes".into(),
        recipe_toml: "seed = 1\n\n[data]\nkind = \"shapes\"\nresolution = 16\n".into(),
        hardware: "AMD EPYC, 2 cores, 8 GiB, cpu".into(),
        versions: pairs(&[("deme", "0.1.0"), ("burn", "0.22.1")]),
        data: DataSummary {
            description: "coloured shapes on backgrounds, made from seed 1".into(),
            pictures_train: 8192,
            pictures_search: 1024,
            pictures_report: 2048,
            resolution: 16,
        },
        counts: Some(EvaluationCounts { generated: 1024, reference: 2048, feature_dim: 64 }),
        real_distance: Some(RealDistance {
            metric: "fd_tiny_clip".into(),
            pictures: 1024,
            distance: 0.75,
        }),
        ranges,
        rows,
        spread_meaning: "one standard deviation over 4 groups of 256 seeds".into(),
        protocol: pairs(&[
            ("extractor", "tiny CLIP, sha256 9f2c41d0a7"),
            ("sampler", "DDIM, 20 steps, eta 0, leading"),
            ("seeds", "0..1024"),
            ("weights", "EMA"),
        ]),
        loss_curves,
        search: Some(search),
        landscapes: if experts > 1 { vec![plane_of(experts)] } else { Vec::new() },
        task_vectors: Some(task_vectors_of(experts)),
        reference_grid_png: None,
        range_losses: Some(range_losses),
        stages: ["data", "pretrained", "experts", "joint", "search", "metrics"]
            .iter()
            .enumerate()
            .map(|(place, name)| StageTiming {
                name: (*name).into(),
                seconds: 2.5 * 4f64.powi(place as i32 % 4),
                cached: place < 2,
            })
            .collect(),
        notes: vec!["The pretrained model was trained by this run.".into()],
    }
}

/// `report` with a grid for every row, written into `folder`.
pub(super) fn with_pictures(mut report: Report, folder: &Path) -> Report {
    for (place, row) in report.rows.iter_mut().enumerate() {
        let path = folder.join(format!("{}.png", row.id));
        fs::write(&path, grid(place as u32 + 2)).unwrap();
        row.grid_png = Some(path);
    }
    let path = folder.join("reference.png");
    fs::write(&path, grid(1)).unwrap();
    report.reference_grid_png = Some(path);
    report
}

/// `report` as that of models that draw what a prompt asks for: 16 prompts, of which 8 are different, and the
/// score with those of others 4 below each row's own.
pub(super) fn with_prompts(mut report: Report) -> Report {
    const COLOURS: [&str; 4] = ["red", "green", "blue", "yellow"];
    let prompt = |place: usize| {
        let shape = if (place / 4).is_multiple_of(2) { "circle" } else { "square" };
        format!("a {} {shape} on white", COLOURS[place % 4])
    };
    for row in &mut report.rows {
        row.prompts = (0..16).map(prompt).collect();
        row.shuffled_clip_score = Some(row.metrics[1].value - 4.0);
    }
    report
}

/// A PNG of 4 x 4 coloured tiles of 16 pixels, one pixel apart.
pub(super) fn grid(seed: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(4 * 17 + 1, 4 * 17 + 1, |x, y| {
        if x % 17 == 0 || y % 17 == 0 {
            return Rgb([128, 128, 128]);
        }
        let (tile, dx, dy) = (x / 17 + 4 * (y / 17), x as i32 % 17 - 8, y as i32 % 17 - 8);
        let shade = |salt: u32| {
            ((tile + salt).wrapping_mul(2_654_435_761).rotate_left(salt + seed) >> 24) as u8
        };
        let radius = 3 + (tile + seed) as i32 % 4;
        if dx * dx + dy * dy < radius * radius {
            Rgb([shade(1), shade(2), shade(3)])
        } else {
            Rgb([shade(5) / 3 + 150, shade(6) / 3 + 150, shade(7) / 3 + 150])
        }
    });
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn row(
    id: &str,
    label: &str,
    kind: RowKind,
    iterations: u64,
    fd: f64,
    weights: Option<Vec<f64>>,
) -> Row {
    let metric = |name: &str, value, spread, lower_is_better| MetricValue {
        name: name.into(),
        value,
        spread: Some(spread),
        lower_is_better,
    };
    Row {
        id: id.into(),
        label: label.into(),
        kind,
        weights,
        iterations,
        metrics: vec![
            metric("fd_tiny_clip", fd, 0.31, true),
            metric("clip_score_tiny_clip", 31.0 - fd * 0.4, 0.22, false),
        ],
        shuffled_clip_score: None,
        grid_png: None,
        prompts: Vec::new(),
        protocol: json!({
            "model": id,
            "extractor": "9f2c41d0a7",
            "generated": 1024,
            "sampler": {"kind": "ddim", "steps": 20},
        }),
    }
}

fn curve(label: &str, iterations: u64, floor: f64, consistency: Option<f64>) -> LossCurve {
    let points = (0..iterations)
        .map(|iteration| {
            let progress = iteration as f64 / iterations as f64;
            let wobble = 1.0 + 0.35 * ((iteration * 7919 % 997) as f64 / 997.0 - 0.5);
            LossPoint {
                iteration,
                diffusion: floor * (1.0 + 4.0 * (-8.0 * progress).exp()) * wobble,
                consistency: consistency.map(|c| c * (1.0 - (-5.0 * progress).exp()) * wobble),
            }
        })
        .collect();
    LossCurve { label: label.into(), points }
}

/// A full grid around a bowl.
fn search_of(experts: usize) -> SearchSummary {
    let values: &[f64] = match experts {
        1 => &[0.0, 0.25, 0.5, 0.75, 1.0],
        2 => &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
        3 | 4 => &[0.0, 0.25, 0.5, 0.75],
        _ => &[0.0, 0.5],
    };
    let mut points: Vec<Vec<f64>> = vec![Vec::new()];
    for _ in 0..experts {
        points = points
            .iter()
            .flat_map(|point| values.iter().map(move |v| [point.as_slice(), &[*v]].concat()))
            .collect();
    }
    let log: Vec<(Vec<f64>, f64)> = points
        .into_iter()
        .map(|point| {
            let value = bowl(&point);
            (point, value)
        })
        .collect();
    let best = log.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().clone();
    SearchSummary {
        objective: "fd_tiny_clip".into(),
        lower_is_better: true,
        strategy: "grid".into(),
        evaluations: log.len(),
        budget: log.len(),
        groups: vec!["all".into()],
        best_weights: best.0,
        best_value: best.1,
        decisions: Vec::new(),
        seconds: (0..log.len()).map(|place| 1.5 + 0.5 * (place % 3) as f64).collect(),
        references: references_of(experts),
        log,
        scored_on: "1024 search pictures, seeds 100000..100512".into(),
    }
}

fn bowl(weights: &[f64]) -> f64 {
    let squares = weights.iter().enumerate().map(|(i, w)| (w - 0.2 - 0.13 * i as f64).powi(2));
    11.2 + 20.0 * squares.sum::<f64>()
}

/// Uniform, each expert alone, pretrained.
fn references_of(experts: usize) -> Vec<Reference> {
    let alone =
        |only| (0..experts).map(|e| if e == only { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
    let mut points = vec![(ReferenceKind::Uniform, vec![1.0 / experts as f64; experts])];
    points.extend((0..experts).map(|expert| (ReferenceKind::Expert(expert), alone(expert))));
    points.push((ReferenceKind::Pretrained, vec![0.0; experts]));
    let reference = |(kind, weights): (ReferenceKind, Vec<f64>)| {
        // The second expert is the best one alone.
        let lead = if kind == ReferenceKind::Expert(1) { 0.7 } else { 1.0 };
        Reference { kind, value: bowl(&weights) * lead, weights }
    };
    points.into_iter().map(reference).collect()
}

/// The bowl over the first two experts' weights.
fn plane_of(experts: usize) -> LandscapePlane {
    let LandscapeConfig { experts: pair, first, second, .. } =
        LandscapeConfig::even([0, 1], [-0.5, 1.5], 9);
    let value = |a: f64, b: f64| bowl(&[&[a, b][..], &vec![0.0; experts - 2]].concat());
    LandscapePlane {
        objective: "held-out diffusion loss".into(),
        lower_is_better: true,
        scored_on: "1024 search pictures".into(),
        others: None,
        landscape: Landscape {
            experts: pair,
            values: first.iter().map(|a| second.iter().map(|b| value(*a, *b)).collect()).collect(),
            first,
            second,
            references: Vec::new(),
        },
    }
}

/// A small UNet's layers; later experts moved less.
fn task_vectors_of(experts: usize) -> TaskVectorStatistics {
    let mut names = vec!["conv_in.weight".to_string(), "conv_norm_out.weight".to_string()];
    names.extend(["conv_out.weight".to_string(), "time_embedding.linear_1.weight".to_string()]);
    for (block, count) in [("down_blocks", 12), ("mid_block", 5), ("up_blocks", 18)] {
        for place in 0..count {
            names.push(format!("{block}.{}.resnets.{}.conv1.weight", place / 4, place % 4));
            names.push(format!("{block}.{}.resnets.{}.conv1.bias", place / 4, place % 4));
        }
    }
    names.sort();
    let distribution = |size: f64, shift: f64| Distribution {
        minimum: -4.0 * size,
        quantile_5: -1.65 * size + shift,
        lower_quartile: -0.67 * size + shift,
        median: shift,
        upper_quartile: 0.67 * size + shift,
        quantile_95: 1.65 * size + shift,
        maximum: 4.2 * size,
        root_mean_square: size,
    };
    let tensor = |(place, name): (usize, String)| TensorStatistics {
        group: deme_merge::ParameterGroups::Parts.of(&name).to_string(),
        elements: 1152,
        experts: (0..experts)
            .map(|expert| {
                let size = 0.004 * (1.0 + (place * 7 % 10) as f64 / 6.0) / (1.0 + expert as f64);
                distribution(size, 0.0002 * (place % 5) as f64)
            })
            .collect(),
        name,
    };
    let similarity = |scale: f64| Similarity {
        norms: (0..experts).map(|expert| scale / (1.0 + expert as f64)).collect(),
        cosines: (0..experts)
            .map(|i| {
                let cosine = |j: usize| match i.abs_diff(j) {
                    0 => 1.0,
                    apart => 0.62 - 0.34 * apart as f64,
                };
                (0..experts).map(|j| Some(cosine(j).max(-1.0))).collect()
            })
            .collect(),
    };
    let groups = [("down", 1.3), ("mid", 0.6), ("rest", 0.2), ("up", 1.9)];
    TaskVectorStatistics {
        tensors: names.into_iter().enumerate().map(tensor).collect(),
        whole: similarity(2.4),
        groups: groups.map(|(name, scale)| (name.to_string(), similarity(scale))).into(),
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}
