//! The report: gathers what the stages left into [`Report`].

use std::path::Path;

use deme_decouple::LossLog;
use deme_eval::{Direction, Measurement, metric_row};
use deme_merge::SearchConfig;
use deme_merge::weight_search::{Decision, DecisionKind, ReferenceKind};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::diagnostics::Problem;
use crate::recipe::SearchObjective;
use crate::report::{
    DataSummary, DecisionRow, EvaluationCounts, LandscapePlane, LossCurve, LossPoint, MetricValue,
    RangeLossRow, RangeLosses, Report, Row, RowKind, SearchSummary, StageTiming, write_report,
};
use crate::run_dir::{StageSlot, read_json, seed_for};

use super::evaluate::{DataFacts, RowMetrics};
use super::merging::{self, MergingWeights};
use super::{Context, Plan, RowPlan};

/// Pictures in the grid that the sampling stage writes of a row.
const PICTURES_IN_GRID: usize = 36;

/// What stands in a row's `metrics.json` beside its measurements, where its pictures have prompts.
#[derive(Deserialize)]
struct ScoreWithOtherPrompts {
    shuffled_clip_score: Option<f64>,
}

/// Writes `report.html`, `report.md` and `metrics.json` into the run's folder.
pub fn write(
    context: &Context<'_>,
    plan: &Plan,
    cached: &[String],
    root: &Path,
) -> Result<(), Problem> {
    let recipe = context.recipe;
    let facts: DataFacts = read_json(&plan.data.folder().join("data.json"))?;
    let weights = merging::merging_weights(context, plan)?;
    let mut rows = Vec::new();
    let mut counts = None;
    let mut protocol = Vec::new();
    for row in &plan.rows {
        let metrics: RowMetrics = read_json(&row.metrics.folder().join("metrics.json"))?;
        counts.get_or_insert(EvaluationCounts {
            generated: recipe.sampling.images,
            reference: facts.parts[2],
            feature_dim: metrics.feature_dim,
        });
        if protocol.is_empty() {
            protocol = shared_protocol(&metrics.measurements);
        }
        rows.push(report_row(row, plan.ranges.len(), &weights, &metrics)?);
    }
    let has_score = rows.iter().flat_map(|row| &row.metrics).any(is_clip_score);
    let report = Report {
        title: recipe.name.clone(),
        command: command(),
        recipe_toml: recipe.to_toml(),
        hardware: hardware(),
        versions: vec![
            ("deme".into(), env!("CARGO_PKG_VERSION").into()),
            ("burn".into(), "0.22.1".into()),
        ],
        data: DataSummary {
            description: description(context, &facts),
            pictures_train: facts.parts[0],
            pictures_search: facts.parts[1],
            pictures_report: facts.parts[2],
            resolution: recipe.preparation.resolution as usize,
        },
        counts,
        real_distance: Some(read_json(&plan.real_distance.folder().join("real_distance.json"))?),
        ranges: plan.ranges.iter().map(|range| (range.low, range.high)).collect(),
        rows,
        spread_meaning: spread_meaning(has_score),
        protocol,
        loss_curves: loss_curves(plan)?,
        search: search_summary(context, plan)?,
        landscapes: landscapes(context, plan)?,
        task_vectors: Some(read_json(&plan.task_vectors.folder().join("task_vectors.json"))?),
        reference_grid_png: Some(plan.data.folder().join("grid.png")),
        range_losses: Some(range_losses(context, plan)?),
        stages: plan
            .stages()
            .into_iter()
            .map(|stage| StageTiming {
                name: stage.name.clone(),
                seconds: stage.elapsed_secs().unwrap_or(0.0),
                cached: cached.contains(&stage.name),
            })
            .collect(),
        notes: notes(context, has_score),
    };
    write_report(&report, root)?;
    Ok(())
}

fn report_row(
    row: &RowPlan,
    experts: usize,
    weights: &MergingWeights,
    metrics: &RowMetrics,
) -> Result<Row, Problem> {
    let scored: ScoreWithOtherPrompts = read_json(&row.metrics.folder().join("metrics.json"))?;
    let samples = row.samples.folder();
    Ok(Row {
        id: row.id.clone(),
        label: row.label.clone(),
        kind: row.kind,
        weights: match row.kind {
            RowKind::Uniform => Some(vec![1.0 / experts as f64; experts]),
            RowKind::Searched | RowKind::Fixed => weights.of_experts().map(<[f64]>::to_vec),
            _ => None,
        },
        iterations: row.iterations,
        metrics: metrics
            .measurements
            .iter()
            .map(|measurement| MetricValue {
                name: measurement.protocol.metric.clone(),
                value: measurement.value,
                spread: measurement.std_error,
                lower_is_better: metric_row(&measurement.protocol.metric)
                    .is_none_or(|row| row.direction == Direction::Lower),
            })
            .collect(),
        shuffled_clip_score: scored.shuffled_clip_score,
        grid_png: Some(samples.join("grid.png")),
        prompts: prompts_in_grid(&samples.join("prompts.json"))?,
        protocol: metrics.measurements.first().map_or(Value::Null, protocol_with_model),
    })
}

/// The prompts of the pictures in a grid; none where the samples have none.
fn prompts_in_grid(path: &Path) -> Result<Vec<String>, Problem> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut prompts: Vec<String> = read_json(path)?;
    prompts.truncate(PICTURES_IN_GRID);
    Ok(prompts)
}

fn is_clip_score(metric: &MetricValue) -> bool {
    metric_row(&metric.name).is_some_and(|row| row.name == "clip_score")
}

fn spread_meaning(has_score: bool) -> String {
    let draws = super::evaluate::BOOTSTRAP_DRAWS;
    let resampled = format!(
        "one standard deviation over {draws} resamplings of the generated images with replacement"
    );
    match has_score {
        false => resampled,
        true => {
            format!("{resampled}, and of a CLIP score the standard error of its mean over them")
        }
    }
}

/// The protocol as JSON, the model's identity in one field `model`.
fn protocol_with_model(measurement: &Measurement) -> Value {
    let protocol = serde_json::to_value(&measurement.protocol).expect("a protocol is plain data");
    let Value::Object(mut fields) = protocol else { unreachable!("a struct is an object") };
    let hash = fields.remove("model_hash");
    let name = fields.remove("model");
    fields.insert("model".into(), json!({ "name": name, "hash": hash }));
    Value::Object(fields)
}

/// What all rows share, as table lines: all of the first metric, and of the others what is different.
fn shared_protocol(measurements: &[Measurement]) -> Vec<(String, String)> {
    let fields_of = |measurement: &Measurement| {
        let Value::Object(mut fields) = protocol_with_model(measurement) else {
            unreachable!("a protocol is an object")
        };
        fields.remove("model");
        fields.retain(|_, value| !value.is_null());
        fields
    };
    let text_of = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let Some(first) = measurements.first().map(fields_of) else { return Vec::new() };
    let mut lines: Vec<(String, String)> =
        first.iter().map(|(key, value)| (key.replace('_', " "), text_of(value))).collect();
    for measurement in &measurements[1..] {
        let fields = fields_of(measurement);
        let different = fields
            .iter()
            .filter(|(key, value)| key.as_str() != "metric" && first.get(*key) != Some(*value));
        lines.extend(different.map(|(key, value)| {
            let name = format!("{} of {}", key.replace('_', " "), measurement.protocol.metric);
            (name, text_of(value))
        }));
    }
    lines
}

fn loss_curves(plan: &Plan) -> Result<Vec<LossCurve>, Problem> {
    let mut curves = Vec::new();
    let mut add = |label: String, stage: &StageSlot| -> Result<(), Problem> {
        let path = stage.folder().join("losses.json");
        if path.is_file() {
            let log: LossLog = read_json(&path)?;
            let points = log.points.iter().map(|point| LossPoint {
                iteration: point.iteration,
                diffusion: point.diffusion_loss,
                consistency: point.consistency_loss,
            });
            curves.push(LossCurve { label, points: points.collect() });
        }
        Ok(())
    };
    add("pretraining".into(), &plan.pretrained)?;
    for (index, (expert, range)) in plan.experts.iter().zip(&plan.ranges).enumerate() {
        add(format!("expert {} ({}..{})", index + 1, range.low, range.high), expert)?;
    }
    if let Some(joint) = &plan.joint {
        add("joint".into(), joint)?;
    }
    Ok(curves)
}

fn search_summary(context: &Context<'_>, plan: &Plan) -> Result<Option<SearchSummary>, Problem> {
    let Some(search) = &plan.search else { return Ok(None) };
    let merging::FoundWeights { search: found, weights, decisions, .. } =
        read_json(&search.folder().join("search.json"))?;
    let merge = &context.recipe.merge;
    let seed = seed_for(context.recipe.seed, "search");
    let pictures = context.split().search.len();
    let (objective, scored_on) = match merge.objective {
        SearchObjective::Loss { images }
        | SearchObjective::LossThenFrechet { loss_images: images, .. } => (
            "held-out diffusion loss".to_owned(),
            format!("{images} noisy images from {pictures} search pictures, noise seed {seed}"),
        ),
        SearchObjective::Frechet { images, .. } => (
            "Fréchet distance".to_owned(),
            format!("{images} images from seeds {seed} on, against {pictures} search pictures"),
        ),
    };
    Ok(Some(SearchSummary {
        objective,
        lower_is_better: true,
        strategy: match merge.search {
            SearchConfig::Grid(_) => "grid".to_owned(),
            SearchConfig::CoordinateGrid(_) => "coordinate grid".to_owned(),
            SearchConfig::Random(_) => "random".to_owned(),
            SearchConfig::CmaEs(_) => "CMA-ES".to_owned(),
            SearchConfig::QuadraticModel(_) => "quadratic model".to_owned(),
            SearchConfig::Gradient(_) => "gradient".to_owned(),
            SearchConfig::Points(_) => "listed points".to_owned(),
        },
        evaluations: found.evaluations.len(),
        budget: usize::try_from(merge.search.size(plan.experts.len() * plan.num_groups))
            .unwrap_or(usize::MAX),
        groups: weights.groups,
        best_weights: found.best_weights.clone(),
        best_value: found.best_value,
        decisions: decisions.iter().map(decision_row).collect(),
        log: found.evaluations.iter().map(|e| (e.weights.clone(), e.value)).collect(),
        seconds: found
            .evaluations
            .iter()
            .map(|e| e.seconds)
            .collect::<Option<_>>()
            .unwrap_or_default(),
        references: found.references,
        scored_on,
    }))
}

fn decision_row(decision: &Decision) -> DecisionRow {
    let name = match decision.kind {
        DecisionKind::Candidate(rank) => format!("candidate {}", rank + 1),
        DecisionKind::Reference(ReferenceKind::Uniform) => "uniform 1/N".to_owned(),
        DecisionKind::Reference(ReferenceKind::Expert(expert)) => format!("expert {}", expert + 1),
        DecisionKind::Reference(ReferenceKind::Pretrained) => "pretrained".to_owned(),
    };
    DecisionRow {
        name,
        weights: decision.weights.clone(),
        proposed: decision.proposed_value,
        decided: decision.value,
    }
}

fn landscapes(context: &Context<'_>, plan: &Plan) -> Result<Vec<LandscapePlane>, Problem> {
    let (Some((slot, config)), Some(section)) = (&plan.landscape, &context.recipe.merge.landscape)
    else {
        return Ok(Vec::new());
    };
    Ok(vec![LandscapePlane {
        objective: "held-out diffusion loss".to_owned(),
        lower_is_better: true,
        scored_on: format!(
            "{} noisy images from {} search pictures, noise seed {}",
            section.images,
            context.split().search.len(),
            seed_for(context.recipe.seed, "search")
        ),
        others: config.others.clone(),
        landscape: read_json(&slot.folder().join("landscape.json"))?,
    }])
}

fn range_losses(context: &Context<'_>, plan: &Plan) -> Result<RangeLosses, Problem> {
    let rows: Vec<(String, Vec<f64>)> =
        read_json(&plan.range_losses.folder().join("range_losses.json"))?;
    Ok(RangeLosses {
        description: format!(
            "{} noisy images from the {} report pictures; the same pictures, noise and timesteps for \
             every model",
            context.recipe.evaluation.loss_images,
            context.split().report.len()
        ),
        rows: rows.into_iter().map(|(label, losses)| RangeLossRow { label, losses }).collect(),
    })
}

fn description(context: &Context<'_>, facts: &DataFacts) -> String {
    let kind = match &context.recipe.data {
        deme_data::DataConfig::Imagefolder { path, .. } => format!("folder {}", path.display()),
        deme_data::DataConfig::Cifar10 { .. } => "CIFAR-10".to_owned(),
        deme_data::DataConfig::Parquet { path, .. } => format!("Parquet {}", path.display()),
        deme_data::DataConfig::Webdataset { path, .. } => format!("webdataset {}", path.display()),
        deme_data::DataConfig::Shapes { seed, .. } => format!("shapes drawn from seed {seed}"),
    };
    let examples = facts.examples.iter().map(|caption| format!("“{caption}”"));
    let examples: Vec<String> = examples.collect();
    match examples.as_slice() {
        [] => format!("{} pictures: {kind}", facts.pictures),
        examples => format!("{} pictures: {kind}; such as {}", facts.pictures, examples.join(", ")),
    }
}

fn notes(context: &Context<'_>, has_score: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if context.recipe.evaluation.extractor.is_none() {
        notes.push(
            "The distance uses a small CLIP that this run trained on its own captions. It ranks the \
             models of this run; it is not FID and means nothing beside numbers of other runs with \
             another CLIP."
                .to_owned(),
        );
    }
    let recipe = context.recipe;
    notes.push(match (recipe.is_text_to_image(), has_score) {
        (false, _) => "The models are unconditional, so no caption belongs to a generated picture and no CLIP \
                       score is given."
            .to_owned(),
        (true, false) => "No CLIP was named for a CLIP score (evaluation.clip_score).".to_owned(),
        (true, true) => "Pictures are drawn for the captions of the report's pictures, which no training has seen."
            .to_owned(),
    });
    if recipe.is_text_to_image() && recipe.pretrained.from == "scratch" {
        notes.push(match recipe.evaluation.clip_score {
            None => "The CLIP that gives the score is also the one whose text tower encodes the captions for the \
                     models: the score ranks the models of this run, and another CLIP would be a more independent \
                     judge."
                .to_owned(),
            Some(_) => "Captions are encoded for the models by the text tower of the small CLIP that this run trained."
                .to_owned(),
        });
    }
    notes
}

/// The command as typed.
fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
    std::iter::once(name.unwrap_or_else(|| "deme".into()))
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Processor model and core count, where the system tells.
fn hardware() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split(':').nth(1))
        .map(str::trim);
    match model {
        Some(model) => format!("{model}, {cores} cores"),
        None => format!("{} processor, {cores} cores", std::env::consts::ARCH),
    }
}
