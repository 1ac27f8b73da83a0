//! The report of a run: what was found, shown with tables, pictures and curves.
//!
//! [`Report`] is plain data. [`write_report`] turns it into `report.html` (one file, nothing
//! loaded from elsewhere), `report.md` with its pictures in `figures/`, and `metrics.json`
//! for machines. What the report says is decided in `compose` and `verdict`, once for both
//! formats. Nothing is computed about models here, and no run folder is known.

mod ablation_figures;
pub mod ablation_page;
mod compose;
mod document;
mod escape;
mod figures;
mod grid_tiles;
mod html;
mod landscape_map;
mod markdown;
mod metrics_json;
mod number_format;
mod picture_file;
mod prompt_fit;
mod protocol;
mod svg;
mod task_vector_figures;
pub mod verdict;

#[cfg(test)]
mod test_report;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use deme_merge::weight_search::Reference;
use deme_merge::{Landscape, TaskVectorStatistics, write_atomically};
use serde::{Deserialize, Serialize};

/// Everything a report says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The headline, usually the recipe's name.
    pub title: String,
    /// The command that made the run.
    pub command: String,
    /// The recipe with every default written out.
    pub recipe_toml: String,
    /// Processor, cores, memory, device.
    pub hardware: String,
    /// (program or library, version).
    pub versions: Vec<(String, String)>,
    /// The pictures behind the run.
    pub data: DataSummary,
    /// What the numbers were counted from, where a distribution is compared.
    pub counts: Option<EvaluationCounts>,
    /// What real pictures score, where a distribution is compared.
    pub real_distance: Option<RealDistance>,
    /// Half-open timestep ranges `(low, high)`, one per expert, in the experts' order.
    pub ranges: Vec<(usize, usize)>,
    /// One row per measured model, in the order in which tables show them.
    pub rows: Vec<Row>,
    /// What a `spread` is, as it follows the words "± is": "one standard deviation over 5
    /// groups of seeds". Empty when no row has a spread.
    pub spread_meaning: String,
    /// What all rows share: extractor and its hash, counts, sampler, steps, seeds, EMA.
    pub protocol: Vec<(String, String)>,
    /// Pretraining, joint finetuning and each expert.
    pub loss_curves: Vec<LossCurve>,
    /// The search for merging weights, where there was one.
    pub search: Option<SearchSummary>,
    /// The objective over planes of two task vectors, where it was measured.
    pub landscapes: Vec<LandscapePlane>,
    /// The task vectors layer by layer and their angles, where they were measured.
    pub task_vectors: Option<TaskVectorStatistics>,
    /// Real pictures, laid out as the rows' grids are.
    pub reference_grid_png: Option<PathBuf>,
    /// Held-out diffusion loss of each model in each of `ranges`.
    pub range_losses: Option<RangeLosses>,
    /// The stages in the order in which they ran.
    pub stages: Vec<StageTiming>,
    /// Anything a reader must know that the numbers do not say.
    pub notes: Vec<String>,
}

/// The pictures behind a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataSummary {
    /// Where they come from and what they show.
    pub description: String,
    /// Pictures the models were trained on.
    pub pictures_train: usize,
    /// Pictures the weight search compared with.
    pub pictures_search: usize,
    /// Pictures the report's numbers compare with.
    pub pictures_report: usize,
    /// Side length in pixels.
    pub resolution: usize,
}

/// What a distance between feature distributions was estimated from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvaluationCounts {
    /// Generated pictures behind each number.
    pub generated: usize,
    /// Real pictures they were compared with.
    pub reference: usize,
    /// Dimensions of the features.
    pub feature_dim: usize,
}

/// The distance of pictures that the models were trained on to those of the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RealDistance {
    /// `fd_tiny_clip`, ...
    pub metric: String,
    /// How many training pictures were compared with the report's.
    pub pictures: usize,
    /// In the metric's unit. Finite.
    pub distance: f64,
}

/// What a row's model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// The pretrained model.
    Before,
    /// Finetuned on all timesteps for as many iterations as all experts together.
    Joint,
    /// One expert, used for all timesteps.
    Expert,
    /// The expert of the range that holds t, at every t.
    Ensemble,
    /// Merged with `w_i = 1/N`.
    Uniform,
    /// Merged with the recipe's weights.
    Fixed,
    /// Merged with the weights that the search found.
    Searched,
    /// Anything else.
    Other,
}

/// One measured model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Unique in the report; names its picture files.
    pub id: String,
    /// How tables call it.
    pub label: String,
    /// What the model is.
    pub kind: RowKind,
    /// The merging weights, one per expert, for merged models.
    pub weights: Option<Vec<f64>>,
    /// Finetuning iterations that went into the model; for merged models and the ensemble,
    /// those of all experts together.
    pub iterations: u64,
    /// The numbers. The first is the one that the verdict is about.
    pub metrics: Vec<MetricValue>,
    /// The CLIP score of the same pictures with the prompts of others, in the unit of the row's CLIP score.
    pub shuffled_clip_score: Option<f64>,
    /// Samples from the same seeds in every row: pictures of [`DataSummary::resolution`], row by row, one
    /// pixel apart.
    pub grid_png: Option<PathBuf>,
    /// The prompt of each picture in the grid, row by row; empty where nothing was asked for.
    pub prompts: Vec<String>,
    /// How the numbers were made, as a JSON object. Its field `model` says which model was
    /// measured; rows that differ in any other field never share a table.
    pub protocol: serde_json::Value,
}

impl Row {
    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Option<&MetricValue> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

/// One number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricValue {
    /// `fd_tiny_clip`, `clip_score_tiny_clip`, ...
    pub name: String,
    /// The number, in the metric's own unit. Finite.
    pub value: f64,
    /// One standard deviation of `value`, in its unit; [`Report::spread_meaning`] says of what.
    pub spread: Option<f64>,
    /// Which direction is good.
    pub lower_is_better: bool,
}

/// The training loss of one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LossCurve {
    /// "pretraining", "joint", "expert 1 (0..250)".
    pub label: String,
    /// In the order of their iterations.
    pub points: Vec<LossPoint>,
}

/// The losses of one training iteration.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LossPoint {
    /// Counted from zero.
    pub iteration: u64,
    /// `|| eps - eps_theta ||^2`, mean over elements.
    pub diffusion: f64,
    /// `|| eps_pretrained - eps_theta ||^2`, mean over elements.
    pub consistency: Option<f64>,
}

/// What a search for merging weights did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SearchSummary {
    /// The number it optimised.
    pub objective: String,
    /// Which direction is good.
    pub lower_is_better: bool,
    /// "grid", "coordinate grid", "CMA-ES", ...
    pub strategy: String,
    /// How many points were measured.
    pub evaluations: usize,
    /// How many it might measure at most; for a grid, how many points it has.
    pub budget: usize,
    /// The groups of tensors with weights of their own; one where there are none.
    pub groups: Vec<String>,
    /// The weights with the best value, one per expert, group by group.
    pub best_weights: Vec<f64>,
    /// Their value.
    pub best_value: f64,
    /// What a second, dearer number decided between; empty where this one decided.
    pub decisions: Vec<DecisionRow>,
    /// Every measured point with its value, in the order of measurement.
    pub log: Vec<(Vec<f64>, f64)>,
    /// How long each point of `log` took, in seconds; empty where that is not known.
    pub seconds: Vec<f64>,
    /// The same number at the points to compare with; empty where none was measured.
    pub references: Vec<Reference>,
    /// What the search was scored on: pictures and seeds.
    pub scored_on: String,
}

/// Weights that both numbers of a search in two stages saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DecisionRow {
    /// "candidate 1", "uniform 1/N", "expert 2".
    pub name: String,
    /// One per expert, group by group.
    pub weights: Vec<f64>,
    /// The number that was searched.
    pub proposed: f64,
    /// The number that decides; lower is better.
    pub decided: f64,
}

/// The objective over the plane of two task vectors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LandscapePlane {
    /// The number over the plane.
    pub objective: String,
    /// Which direction is good.
    pub lower_is_better: bool,
    /// What it was scored on: pictures and seeds.
    pub scored_on: String,
    /// The weights of all experts, as the plane was asked for: those of its own two mean nothing. None
    /// for a plane through the pretrained model, in which all others are 0.
    pub others: Option<Vec<f64>>,
    /// The values.
    pub landscape: Landscape,
}

impl LandscapePlane {
    /// The weight that an expert has all over the plane; none for the plane's own two.
    pub fn fixed_weight(&self, expert: usize) -> Option<f64> {
        let is_axis = self.landscape.experts.contains(&expert);
        (!is_axis).then(|| self.others.as_ref().map_or(0.0, |others| others[expert]))
    }
}

/// Held-out diffusion loss per model and timestep range.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RangeLosses {
    /// On which pictures and with which draws the losses were taken.
    pub description: String,
    /// One per model.
    pub rows: Vec<RangeLossRow>,
}

/// One model's held-out losses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RangeLossRow {
    /// How tables call the model.
    pub label: String,
    /// One loss per entry of [`Report::ranges`].
    pub losses: Vec<f64>,
}

/// How long a stage took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageTiming {
    /// The stage.
    pub name: String,
    /// Wall time when it really ran, in seconds.
    pub seconds: f64,
    /// True when this run found it finished.
    pub cached: bool,
}

/// The files of a written report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFiles {
    /// `report.html`
    pub html: PathBuf,
    /// `report.md`
    pub markdown: PathBuf,
    /// `metrics.json`
    pub metrics: PathBuf,
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// NaN or infinity where a number belongs.
    #[error(
        "{place} is {value}: a report shows finite numbers only; measure it again or leave the row out"
    )]
    NonFinite {
        /// Which number.
        place: String,
        /// What it is.
        value: f64,
    },
    /// A list that must have one entry per timestep range (and group of tensors) has another length.
    #[error("{place} has {found} values, expected {expected}")]
    WrongLength {
        /// Which list.
        place: String,
        /// The number it should have.
        expected: usize,
        /// The list's length.
        found: usize,
    },
    /// A list has another length than the one it belongs to.
    #[error("{place} has {found} values, expected {expected}")]
    WrongCount {
        /// Which list.
        place: String,
        /// The length it must have.
        expected: usize,
        /// The list's length.
        found: usize,
    },
    /// A landscape over experts that do not exist, or over one twice.
    #[error("the landscape over experts {} and {} is no plane of two of {num_experts} experts", experts[0] + 1, experts[1] + 1)]
    NoPlane {
        /// The two, counted from zero.
        experts: [usize; 2],
        /// How many there are.
        num_experts: usize,
    },
    /// Two rows with one id.
    #[error("two rows of the report are called \"{id}\": give each its own id")]
    DuplicateRow {
        /// The shared id.
        id: String,
    },
    /// A sample grid cannot be read.
    #[error("cannot read the picture {}: {source}; run the sampling stage again", path.display())]
    UnreadablePicture {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A sample grid is no PNG.
    #[error("{} is not a PNG file; delete it and run the sampling stage again", path.display())]
    NotAPng {
        /// The file.
        path: PathBuf,
    },
    /// A sample grid does not hold one picture per prompt, in the data's resolution.
    #[error(
        "{} has {width} x {height} pixels, which is no grid of {pictures} pictures of {side} x {side}, one \
         pixel apart: it does not belong to its prompts; run the sampling stage again",
        path.display()
    )]
    NotAGrid {
        /// The file.
        path: PathBuf,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The side of a picture in pixels.
        side: usize,
        /// How many pictures it should hold.
        pictures: usize,
    },
    /// A file of the report cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Writes `report.html`, `report.md`, `figures/` and `metrics.json` into `folder`.
///
/// Each file is replaced as a whole. `metrics.json` holds no timings, so the same results
/// give the same bytes.
///
/// # Errors
/// [`ReportError`]; everything is checked and read before the first file is written.
pub fn write_report(report: &Report, folder: &Path) -> Result<ReportFiles, ReportError> {
    check(report)?;
    let document = compose::compose(report)?;
    let html = html::render(&document);
    let markdown = markdown::render(&document);
    let metrics = metrics_json::render(report);

    let files = ReportFiles {
        html: folder.join("report.html"),
        markdown: folder.join("report.md"),
        metrics: folder.join("metrics.json"),
    };
    let figures = folder.join(markdown::FIGURES_FOLDER);
    fs::create_dir_all(&figures)
        .map_err(|source| ReportError::Unwritable { path: figures.clone(), source })?;
    for (name, bytes) in document.files() {
        write(&figures.join(name), &bytes)?;
    }
    write(&files.metrics, metrics.as_bytes())?;
    write(&files.markdown, markdown.as_bytes())?;
    write(&files.html, html.as_bytes())?;
    Ok(files)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    write_atomically(path, |file| file.write_all(bytes))
        .map_err(|source| ReportError::Unwritable { path: path.to_path_buf(), source })
}

/// Refuses numbers that JSON, axes and comparisons cannot hold, and lists of wrong lengths.
fn check(report: &Report) -> Result<(), ReportError> {
    let experts = report.ranges.len();
    let mut ids: Vec<&str> = Vec::new();
    for row in &report.rows {
        if ids.contains(&row.id.as_str()) {
            return Err(ReportError::DuplicateRow { id: row.id.clone() });
        }
        ids.push(&row.id);
        for metric in &row.metrics {
            let place = || format!("{} of \"{}\"", metric.name, row.label);
            finite(metric.value, place)?;
            finite(metric.spread.unwrap_or_default(), || format!("the spread of {}", place()))?;
        }
        let shuffled = || format!("the CLIP score of \"{}\" with shuffled prompts", row.label);
        finite(row.shuffled_clip_score.unwrap_or_default(), shuffled)?;
        if let Some(weights) = &row.weights {
            let place = || format!("the weights of \"{}\"", row.label);
            length(weights.len(), experts, place)?;
            all_finite(weights, place)?;
        }
    }
    if let Some(search) = &report.search {
        let experts = experts * search.groups.len();
        for decision in &search.decisions {
            let place = || format!("the decision about {}", decision.name);
            length(decision.weights.len(), experts, place)?;
            all_finite(&decision.weights, place)?;
            all_finite(&[decision.proposed, decision.decided], place)?;
        }
        finite(search.best_value, || "the search's best value".to_string())?;
        let best = || "the search's best weights".to_string();
        length(search.best_weights.len(), experts, best)?;
        all_finite(&search.best_weights, best)?;
        for (place, (weights, value)) in search.log.iter().enumerate() {
            let weights_of = || format!("the weights of search evaluation {}", place + 1);
            length(weights.len(), experts, weights_of)?;
            all_finite(weights, weights_of)?;
            finite(*value, || format!("search evaluation {}", place + 1))?;
        }
        let seconds = || "the durations of the search".to_string();
        all_finite(&search.seconds, seconds)?;
        if !search.seconds.is_empty() {
            count(search.seconds.len(), search.log.len(), seconds)?;
        }
        for reference in &search.references {
            check_reference(reference, experts)?;
        }
    }
    for plane in &report.landscapes {
        check_plane(plane, experts)?;
    }
    if let Some(statistics) = &report.task_vectors {
        check_task_vectors(statistics, experts)?;
    }
    for curve in &report.loss_curves {
        for point in &curve.points {
            let place =
                || format!("the loss of \"{}\" at iteration {}", curve.label, point.iteration);
            finite(point.diffusion, place)?;
            finite(point.consistency.unwrap_or_default(), place)?;
        }
    }
    for row in report.range_losses.iter().flat_map(|table| &table.rows) {
        let place = || format!("the held-out losses of \"{}\"", row.label);
        length(row.losses.len(), experts, place)?;
        all_finite(&row.losses, place)?;
    }
    if let Some(real) = &report.real_distance {
        finite(real.distance, || "the distance of the real pictures".to_string())?;
    }
    for stage in &report.stages {
        finite(stage.seconds, || format!("the time of stage \"{}\"", stage.name))?;
    }
    Ok(())
}

fn check_reference(reference: &Reference, experts: usize) -> Result<(), ReportError> {
    let place = || format!("the reference point {:?}", reference.kind);
    length(reference.weights.len(), experts, place)?;
    all_finite(&reference.weights, place)?;
    finite(reference.value, place)
}

fn check_plane(plane: &LandscapePlane, num_experts: usize) -> Result<(), ReportError> {
    let Landscape { experts, first, second, values, references } = &plane.landscape;
    let [i, j] = *experts;
    if i == j || i.max(j) >= num_experts {
        return Err(ReportError::NoPlane { experts: *experts, num_experts });
    }
    let place = || format!("the landscape over experts {} and {}", i + 1, j + 1);
    all_finite(first, place)?;
    all_finite(second, place)?;
    count(values.len(), first.len(), place)?;
    for row in values {
        count(row.len(), second.len(), place)?;
        all_finite(row, place)?;
    }
    if let Some(others) = &plane.others {
        length(others.len(), num_experts, place)?;
        all_finite(others, place)?;
    }
    references.iter().try_for_each(|reference| check_reference(reference, num_experts))
}

fn check_task_vectors(
    statistics: &TaskVectorStatistics,
    experts: usize,
) -> Result<(), ReportError> {
    for tensor in &statistics.tensors {
        let place = || format!("the task vectors' tensor \"{}\"", tensor.name);
        length(tensor.experts.len(), experts, place)?;
        for d in &tensor.experts {
            let box_plot = [d.quantile_5, d.lower_quartile, d.median, d.upper_quartile];
            let extremes = [d.minimum, d.quantile_95, d.maximum, d.root_mean_square];
            all_finite(&[box_plot, extremes].concat(), place)?;
        }
    }
    let groups = statistics.groups.iter().map(|(name, similarity)| (name.as_str(), similarity));
    for (name, similarity) in groups.chain([("whole", &statistics.whole)]) {
        let norms = || format!("the lengths of the task vectors ({name})");
        length(similarity.norms.len(), experts, norms)?;
        all_finite(&similarity.norms, norms)?;
        let cosines = || format!("the cosines of the task vectors ({name})");
        length(similarity.cosines.len(), experts, cosines)?;
        for row in &similarity.cosines {
            length(row.len(), experts, cosines)?;
            row.iter().flatten().try_for_each(|cosine| finite(*cosine, cosines))?;
        }
    }
    Ok(())
}

fn finite(value: f64, place: impl FnOnce() -> String) -> Result<(), ReportError> {
    if value.is_finite() { Ok(()) } else { Err(ReportError::NonFinite { place: place(), value }) }
}

fn all_finite(values: &[f64], place: impl Fn() -> String) -> Result<(), ReportError> {
    values.iter().try_for_each(|value| finite(*value, &place))
}

fn count(found: usize, expected: usize, place: impl FnOnce() -> String) -> Result<(), ReportError> {
    if found == expected {
        Ok(())
    } else {
        Err(ReportError::WrongCount { place: place(), expected, found })
    }
}

fn length(
    found: usize,
    expected: usize,
    place: impl FnOnce() -> String,
) -> Result<(), ReportError> {
    if found == expected {
        Ok(())
    } else {
        Err(ReportError::WrongLength { place: place(), expected, found })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::test_report::{grid, report_of, with_pictures, with_prompts};
    use super::*;

    fn refusal(change: impl FnOnce(&mut Report)) -> ReportError {
        let mut report = report_of(4);
        change(&mut report);
        let folder = tempfile::tempdir().unwrap();
        let error = write_report(&report, folder.path()).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
        error
    }

    fn statistics(report: &mut Report) -> &mut TaskVectorStatistics {
        report.task_vectors.as_mut().unwrap()
    }

    #[test]
    fn writes_three_files_and_every_figure_the_markdown_names() {
        let folder = tempfile::tempdir().unwrap();
        let report = with_prompts(with_pictures(report_of(4), folder.path()));
        let out = folder.path().join("report");
        fs::create_dir(&out).unwrap();
        let files = write_report(&report, &out).unwrap();
        let markdown = fs::read_to_string(&files.markdown).unwrap();
        let named: Vec<&str> =
            markdown.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(named.len() > 10, "{named:?}");
        for name in named {
            assert!(out.join(name).is_file(), "{name}");
        }
        let html = fs::read_to_string(&files.html).unwrap();
        assert!(html.contains("data:image/png;base64,"));
        for outside in ["src=\"http", "href=\"http", "<script", "@import", "url(http"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_same_results_give_the_same_metrics_whatever_the_timings() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = report_of(2);
        let first = write_report(&report, folder.path()).unwrap();
        let before = fs::read(&first.metrics).unwrap();
        report.stages[0].seconds += 5.0;
        write_report(&report, folder.path()).unwrap();
        assert_eq!(fs::read(&first.metrics).unwrap(), before);
    }

    #[test]
    fn what_real_pictures_score_stands_below_the_models() {
        let folder = tempfile::tempdir().unwrap();
        let written = write_report(&report_of(2), folder.path()).unwrap();
        let text = fs::read_to_string(&written.markdown).unwrap();
        assert!(
            text.contains("of the training pictures themselves have fd_tiny_clip 0.75"),
            "{text}"
        );
    }

    #[test]
    fn one_range_two_ranges_and_an_empty_report_can_be_written() {
        for experts in [1, 2, 3, 8] {
            let folder = tempfile::tempdir().unwrap();
            write_report(&report_of(experts), folder.path()).unwrap();
        }
        let mut empty = report_of(1);
        empty.rows.clear();
        empty.ranges.clear();
        empty.search = None;
        empty.landscapes.clear();
        empty.task_vectors = None;
        empty.real_distance = None;
        empty.loss_curves.clear();
        empty.range_losses = None;
        empty.stages.clear();
        let folder = tempfile::tempdir().unwrap();
        write_report(&empty, folder.path()).unwrap();
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        let error = refusal(|r| r.rows[0].metrics[0].value = f64::NAN);
        assert!(matches!(error, ReportError::NonFinite { .. }));
        assert!(error.to_string().contains("fd_tiny_clip of \"before\""), "{error}");
        let error = refusal(|r| r.rows[1].shuffled_clip_score = Some(f64::NAN));
        assert!(error.to_string().contains("\"joint\" with shuffled prompts"), "{error}");
        let error = refusal(|r| r.loss_curves[0].points[3].diffusion = f64::INFINITY);
        assert!(error.to_string().contains("iteration"), "{error}");
        let error = refusal(|r| r.real_distance.as_mut().unwrap().distance = f64::NAN);
        assert!(error.to_string().contains("real pictures"), "{error}");
        let error = refusal(|r| r.search.as_mut().unwrap().log[2].1 = f64::NAN);
        assert!(error.to_string().contains("evaluation 3"), "{error}");
        let error = refusal(|r| r.search.as_mut().unwrap().seconds[1] = f64::INFINITY);
        assert!(error.to_string().contains("durations"), "{error}");
        let error = refusal(|r| r.search.as_mut().unwrap().references[0].value = f64::NAN);
        assert!(error.to_string().contains("Uniform"), "{error}");
        let error = refusal(|r| r.landscapes[0].landscape.values[2][1] = f64::NAN);
        assert!(error.to_string().contains("over experts 1 and 2"), "{error}");
        let error = refusal(|r| statistics(r).tensors[3].experts[1].median = f64::NAN);
        assert!(error.to_string().contains("conv"), "{error}");
        let error = refusal(|r| statistics(r).whole.cosines[0][1] = Some(f64::NAN));
        assert!(error.to_string().contains("cosines"), "{error}");
    }

    #[test]
    fn lists_of_wrong_lengths_are_refused() {
        let error = refusal(|r| r.range_losses.as_mut().unwrap().rows[0].losses.truncate(1));
        assert!(matches!(error, ReportError::WrongLength { expected: 4, found: 1, .. }), "{error}");
        let error = refusal(|r| r.landscapes[0].others = Some(vec![0.0]));
        assert!(matches!(error, ReportError::WrongLength { expected: 4, found: 1, .. }), "{error}");
        let error = refusal(|r| statistics(r).whole.norms.truncate(3));
        assert!(matches!(error, ReportError::WrongLength { expected: 4, found: 3, .. }), "{error}");
        let error = refusal(|r| r.search.as_mut().unwrap().seconds.truncate(3));
        assert!(matches!(error, ReportError::WrongCount { found: 3, .. }), "{error}");
        let error = refusal(|r| r.landscapes[0].landscape.values[0].truncate(2));
        assert!(matches!(error, ReportError::WrongCount { found: 2, .. }), "{error}");
    }

    #[test]
    fn a_landscape_needs_two_experts() {
        for experts in [[0, 4], [1, 1]] {
            let error = refusal(|r| r.landscapes[0].landscape.experts = experts);
            assert!(matches!(error, ReportError::NoPlane { num_experts: 4, .. }), "{error}");
        }
    }

    #[test]
    fn rows_need_their_own_ids() {
        let error = refusal(|r| r.rows[1].id = r.rows[0].id.clone());
        assert!(matches!(error, ReportError::DuplicateRow { .. }));
    }

    #[test]
    fn a_missing_grid_stops_the_report_before_it_is_written() {
        let error = refusal(|r| r.rows[0].grid_png = Some(PathBuf::from("/nowhere/grid.png")));
        assert!(matches!(error, ReportError::UnreadablePicture { .. }));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        fs::write(&path, &grid(1)[..10]).unwrap();
        let error = refusal(|r| r.rows[0].grid_png = Some(path));
        assert!(matches!(error, ReportError::NotAPng { .. }));
    }

    #[test]
    fn a_grid_that_does_not_belong_to_its_prompts_stops_the_report() {
        let folder = tempfile::tempdir().unwrap();
        let report = with_prompts(with_pictures(report_of(2), folder.path()));
        let mut short = report.clone();
        short.rows.iter_mut().for_each(|row| row.prompts.truncate(12));
        let out = folder.path().join("report");
        fs::create_dir(&out).unwrap();
        let error = write_report(&short, &out).unwrap_err();
        assert!(matches!(error, ReportError::NotAGrid { pictures: 12, side: 16, .. }), "{error}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "nothing is written");
        write_report(&report, &out).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let error = write_report(&report_of(2), &file).unwrap_err();
        assert!(matches!(error, ReportError::Unwritable { .. }));
        assert!(error.to_string().contains("file"), "{error}");
    }
}
