//! A recipe: everything a run needs to know, in one TOML file.
//!
//! This file only composes; each part's type lives beside what it configures.

use std::path::Path;

use deme_clip::TinyClipConfig;
use deme_data::{DataConfig, Preparation, SplitConfig};
use deme_decouple::FinetuneConfig;
use deme_diffusion::{
    GuidanceConfig, SamplerConfig, SchedulerConfig, TimestepRange, UNet2DConditionConfig,
    UNet2DConfig,
};
use deme_eval::ExtractorConfig;
use deme_merge::{LandscapeConfig, ParameterGroups, SearchConfig};
use miette::NamedSource;
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table};

use crate::diagnostics::{Problem, nearest};

/// The recipe `deme run` uses when none is named.
pub const DEFAULT_RECIPE: &str = include_str!("../../../recipes/shapes.toml");

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run's default folder, `runs/<name>`.
    pub name: String,
    /// The seed all others are drawn from, except the samples'.
    #[serde(default)]
    pub seed: u64,
    /// The pictures and captions.
    pub data: DataConfig,
    /// How pictures become training images.
    pub preparation: Preparation,
    /// Which pictures train, guide the search, and judge.
    #[serde(default)]
    pub split: SplitConfig,
    /// The model that is to become better.
    pub pretrained: PretrainedSection,
    /// The N experts.
    pub decouple: DecoupleSection,
    /// The honest baseline.
    #[serde(default)]
    pub joint: JointSection,
    /// How the experts become one.
    pub merge: MergeSection,
    /// How pictures are drawn from every model.
    pub sampling: SamplingSection,
    /// How pictures are judged.
    #[serde(default)]
    pub evaluation: EvaluationSection,
}

/// Where the pretrained model comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainedSection {
    /// `scratch`, a diffusers folder, or `hub:owner/name`; for text to image also a single file of Stable
    /// Diffusion 1.
    pub from: String,
    /// What the model does.
    #[serde(default)]
    pub task: Task,
    /// With `from = "scratch"`: the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unet: Option<UNet2DConfig>,
    /// With `from = "scratch"` and `task = "text-to-image"`: the network. It works on pixels, and its texts are
    /// encoded by the text tower of the run's own CLIP, whose width is `cross_attention_dim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditional_unet: Option<UNet2DConditionConfig>,
    /// Layers at the end of the text encoder that are left out (`clip_skip` less 1, where that counts from 1).
    #[serde(default)]
    pub skipped_layers: usize,
    /// The noise schedule and prediction type; with a folder, only where it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerConfig>,
    /// With `from = "scratch"`: the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<FinetuneConfig>,
}

/// What a model makes pictures of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Noise alone.
    #[default]
    Unconditional,
    /// Noise and the pictures' captions.
    TextToImage,
}

/// The experts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoupleSection {
    /// Number of timestep ranges, N.
    pub ranges: usize,
    /// The finetuning of each expert; `iterations` counts per range.
    pub finetune: FinetuneConfig,
}

/// Joint finetuning with the same total number of iterations, without any of DeMe's techniques.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JointSection {
    /// Whether to run it.
    pub enabled: bool,
}

impl Default for JointSection {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The merging weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSection {
    /// One weight per expert; given, nothing is searched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// Which tensors have weights of their own.
    #[serde(default)]
    pub groups: ParameterGroups,
    /// What a search makes small.
    #[serde(default)]
    pub objective: SearchObjective,
    /// The candidates of the search.
    pub search: SearchConfig,
    /// A plane of the report's loss landscape; none without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landscape: Option<LandscapeSection>,
}

/// The plane of two task vectors whose loss the report shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandscapeSection {
    /// The two experts, counted from 1; the first and the last when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<[usize; 2]>,
    /// The lowest and the highest coefficient of either task vector.
    #[serde(default = "default_landscape_bounds")]
    pub bounds: [f64; 2],
    /// Coefficients in either direction.
    #[serde(default = "default_landscape_points")]
    pub points: usize,
    /// Noisy images of the loss, from the search's pictures.
    #[serde(default = "default_loss_images")]
    pub images: usize,
}

fn default_landscape_bounds() -> [f64; 2] {
    [-0.5, 1.5]
}

fn default_landscape_points() -> usize {
    9
}

impl LandscapeSection {
    /// Its points for so many experts, which it counts from zero; none for a single expert, unless one is
    /// asked for.
    pub fn config(&self, num_experts: usize) -> Option<LandscapeConfig> {
        let experts = match self.experts {
            None if num_experts < 2 => return None,
            None => [1, num_experts],
            Some(experts) => experts,
        };
        let experts = experts.map(|expert| expert.saturating_sub(1));
        Some(LandscapeConfig::even(experts, self.bounds, self.points))
    }
}

/// What the search for merging weights makes small. Either is computed with the search's own
/// pictures and seeds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SearchObjective {
    /// The diffusion loss on the search's pictures with fixed noise, stratified over all timesteps.
    /// Cheap.
    Loss {
        /// Noisy images, each at its own timestep.
        #[serde(default = "default_loss_images")]
        images: usize,
    },
    /// The Fréchet distance of generated images to the search's pictures. What is judged in the
    /// end, and dear.
    Frechet {
        /// Generated images per candidate.
        images: usize,
        /// Steps of the sampler; the evaluation's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<usize>,
    },
    /// The loss is searched, and the distance decides between its best few points, uniform weights and each
    /// expert alone.
    LossThenFrechet {
        /// Noisy images of the loss.
        #[serde(default = "default_loss_images")]
        loss_images: usize,
        /// Generated images for each point the distance sees.
        images: usize,
        /// Steps of the sampler; the evaluation's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<usize>,
        /// How many of the loss's best points the distance sees.
        #[serde(default = "default_candidates")]
        candidates: usize,
    },
}

fn default_candidates() -> usize {
    5
}

impl SearchObjective {
    /// Generated images for each evaluation by the distance, and steps of their sampler.
    pub fn drawing(&self) -> Option<(usize, Option<usize>)> {
        match *self {
            Self::Loss { .. } => None,
            Self::Frechet { images, steps } | Self::LossThenFrechet { images, steps, .. } => {
                Some((images, steps))
            }
        }
    }
}

fn default_loss_images() -> usize {
    512
}

impl Default for SearchObjective {
    fn default() -> Self {
        Self::Loss { images: default_loss_images() }
    }
}

/// Sampling for the evaluation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingSection {
    /// The sampler and its steps.
    pub sampler: SamplerConfig,
    /// How strongly the prompt guides, for text to image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<GuidanceConfig>,
    /// Images per row of the report. For text to image, image i is drawn for the caption of picture i of the
    /// report's (or the search's) pictures, which repeat where there are fewer.
    pub images: usize,
    /// Image i comes from seed `first_seed + i`.
    #[serde(default)]
    pub first_seed: u64,
    /// Images at once; has no influence on any image.
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
}

fn default_batch_size() -> usize {
    32
}

/// The judge.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSection {
    /// Whose features are compared. When absent, a small CLIP is trained on the captions and judges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extractor: Option<ExtractorConfig>,
    /// The CLIP of the CLIP score, for text to image. When absent, the run's own small CLIP, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_score: Option<ClipScoreConfig>,
    /// The CLIP that is trained when no extractor is given, or a text encoder is needed.
    pub tiny_clip: TinyClipConfig,
    /// Noisy images for the table of held-out losses per range.
    pub loss_images: usize,
}

/// The CLIP that scores pictures with their prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipScoreConfig {
    /// Hugging Face's folder, weights of open_clip, or `hub:owner/name`.
    pub weights: String,
    /// open_clip's name of the architecture, where the weights do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        Self {
            extractor: None,
            clip_score: None,
            tiny_clip: TinyClipConfig::default(),
            loss_images: 1024,
        }
    }
}

impl Recipe {
    /// Reads a recipe file, or the embedded default when `path` is `None`, with `key=value`
    /// overrides applied, and checks what can be checked without the data.
    ///
    /// # Errors
    /// [`Problem::Read`], [`Problem::Recipe`], [`Problem::Usage`], [`Problem::Impossible`].
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self, Problem> {
        let (name, text) = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Problem::read(path, e))?;
                (path.display().to_string(), text)
            }
            None => ("the default recipe".to_owned(), DEFAULT_RECIPE.to_owned()),
        };
        let text = if overrides.is_empty() { text } else { apply(&name, &text, overrides)? };
        let recipe: Self = toml::from_str(&text).map_err(|e| recipe_problem(&name, &text, &e))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The resolved recipe, every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain data")
    }

    /// The timestep ranges, for a model trained with `num_train_timesteps`.
    pub fn ranges(&self, num_train_timesteps: usize) -> Result<Vec<TimestepRange>, Problem> {
        let n = self.decouple.ranges;
        TimestepRange::split(num_train_timesteps, n).map_err(|error| Problem::Impossible {
            message: format!("decouple.ranges = {n}: {error}"),
            help: format!("choose between 1 and {num_train_timesteps} ranges"),
        })
    }

    /// Whether pictures are made of captions.
    pub fn is_text_to_image(&self) -> bool {
        self.pretrained.task == Task::TextToImage
    }

    /// Whether the run trains a CLIP: to judge, or to encode texts.
    pub fn trains_clip(&self) -> bool {
        self.evaluation.extractor.is_none()
            || (self.is_text_to_image() && self.pretrained.from == "scratch")
    }

    /// The guidance of text to image.
    pub fn guidance(&self) -> GuidanceConfig {
        self.sampling.guidance.unwrap_or_default()
    }

    /// The sampler of the search: the evaluation's, with the search's number of steps.
    pub fn search_sampler(&self) -> SamplerConfig {
        let mut sampler = self.sampling.sampler.clone();
        if let Some((_, Some(steps))) = self.merge.objective.drawing() {
            sampler.steps = steps;
        }
        sampler
    }

    /// The joint baseline's finetuning: one range, N times the iterations, no technique of DeMe.
    pub fn joint_finetune(&self) -> FinetuneConfig {
        let mut joint = self.decouple.finetune.clone();
        joint.iterations *= self.decouple.ranges as u64;
        joint.consistency_weight = 0.0;
        joint.projection = deme_diffusion::ProjectionPlacement::None;
        joint
    }

    /// Checks the search's settings for a network with so many groups of tensors.
    ///
    /// # Errors
    /// [`Problem::Impossible`].
    pub fn check_search(&self, num_groups: usize) -> Result<(), Problem> {
        let num_weights = self.decouple.ranges * num_groups;
        self.merge.search.check::<Problem>(num_weights).map_err(|error| Problem::Impossible {
            message: format!("in [merge.search], {error}"),
            help: "change merge.search, or give the weights as merge.weights".into(),
        })
    }

    /// The network to train, or none beside a given one.
    fn check_pretrained(&self) -> Result<(), Problem> {
        let impossible = |message: String, help: String| Problem::Impossible { message, help };
        let PretrainedSection { from, unet, conditional_unet, training, .. } = &self.pretrained;
        let (wanted, other) = match self.is_text_to_image() {
            true => ("conditional_unet", "unet"),
            false => ("unet", "conditional_unet"),
        };
        let present = [("unet", unet.is_some()), ("conditional_unet", conditional_unet.is_some())];
        let has = |key: &str| present.contains(&(key, true));
        if has(other) {
            return Err(impossible(
                format!("pretrained.{other} is not the network of this pretrained.task"),
                format!("describe the network in pretrained.{wanted}, or change pretrained.task"),
            ));
        }
        match training {
            Some(training) if from == "scratch" && has(wanted) => {
                training.validate().map_err(|source| Problem::ImpossibleValue {
                    section: "pretrained.training",
                    source,
                })?;
            }
            None if from != "scratch" && !has(wanted) => {}
            _ if from == "scratch" => {
                return Err(impossible(
                    format!(
                        "pretrained.from = \"scratch\" without pretrained.{wanted} and pretrained.training"
                    ),
                    "say which network to train and how, or name a diffusers folder in pretrained.from"
                        .into(),
                ));
            }
            _ => {
                return Err(impossible(
                    format!("pretrained.from = {from:?} beside a network to train"),
                    format!(
                        "remove pretrained.{wanted} and pretrained.training, or set pretrained.from = \"scratch\""
                    ),
                ));
            }
        }
        if let Some(unet) = unet {
            unet.check()?;
        }
        if let Some(unet) = conditional_unet {
            unet.check()?;
            self.check_skipped_layers(self.evaluation.tiny_clip.num_hidden_layers)?;
            let width = self.evaluation.tiny_clip.hidden_size;
            let blocks = 0..unet.block_out_channels.len();
            let mut widths = blocks.map(|block| unet.cross_attention_dim.at(block));
            if let Some(other) = widths.find(|&dim| dim != width) {
                return Err(impossible(
                    format!(
                        "the network looks at texts of width {other} (cross_attention_dim), the run's CLIP \
                         gives {width} (evaluation.tiny_clip.hidden_size)"
                    ),
                    "make them the same".into(),
                ));
            }
        }
        Ok(())
    }

    /// Some layer of the text encoder must be left.
    ///
    /// # Errors
    /// [`Problem::Impossible`].
    pub fn check_skipped_layers(&self, layers: usize) -> Result<(), Problem> {
        let skipped = self.pretrained.skipped_layers;
        if skipped < layers {
            return Ok(());
        }
        Err(Problem::Impossible {
            message: format!(
                "pretrained.skipped_layers = {skipped}: the text encoder has {layers} layers"
            ),
            help: "leave one layer at least; 0 is what Stable Diffusion was trained with".into(),
        })
    }

    /// Keys that mean something for text to image only.
    fn check_text_to_image(&self) -> Result<(), Problem> {
        if self.is_text_to_image() {
            return Ok(self.guidance().check()?);
        }
        let dropout = |config: &FinetuneConfig| config.caption_dropout > 0.0;
        let keys = [
            ("sampling.guidance", self.sampling.guidance.is_some()),
            ("evaluation.clip_score", self.evaluation.clip_score.is_some()),
            ("pretrained.skipped_layers", self.pretrained.skipped_layers > 0),
            ("decouple.finetune.caption_dropout", dropout(&self.decouple.finetune)),
            (
                "pretrained.training.caption_dropout",
                self.pretrained.training.as_ref().is_some_and(dropout),
            ),
        ];
        match keys.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((key, _)) => Err(Problem::Impossible {
                message: format!("{key} means nothing to a model that sees no captions"),
                help: format!("remove {key}, or set pretrained.task = \"text-to-image\""),
            }),
        }
    }

    fn validate(&self) -> Result<(), Problem> {
        let impossible = |message: String, help: &str| {
            Err(Problem::Impossible { message, help: help.to_owned() })
        };
        self.preparation.validate()?;
        let in_section = |section| move |source| Problem::ImpossibleValue { section, source };
        self.decouple.finetune.validate().map_err(in_section("decouple.finetune"))?;
        let scratch = self.pretrained.from == "scratch";
        self.check_pretrained()?;
        self.check_text_to_image()?;
        if self.decouple.ranges == 0 {
            return impossible(
                "decouple.ranges = 0".into(),
                "1 is plain finetuning, 4 the paper's choice",
            );
        }
        if scratch {
            let scheduler = self.pretrained.scheduler.clone().unwrap_or_default();
            self.ranges(scheduler.num_train_timesteps)?;
        }
        if let Some(weights) = &self.merge.weights
            && (weights.len() != self.decouple.ranges || weights.iter().any(|w| !w.is_finite()))
        {
            return impossible(
                format!("merge.weights = {weights:?} for {} experts", self.decouple.ranges),
                "give one finite number per expert, or remove the key to search for them",
            );
        }
        if self.merge.weights.is_none() {
            if self.merge.search.needs_gradient()
                && matches!(self.merge.objective, SearchObjective::Frechet { .. })
            {
                return impossible(
                    "merge.search.strategy = \"gradient\": the Fréchet distance has no gradient here"
                        .into(),
                    "search by the loss (merge.objective.kind = \"loss\" or \"loss-then-frechet\"), or use \
                     quadratic_model or cma_es",
                );
            }
            // Groups of tensors are known with the network: `check_search`.
            if self.merge.groups == ParameterGroups::One {
                self.check_search(1)?;
            }
        } else if self.merge.groups != ParameterGroups::One {
            return impossible(
                "merge.groups beside merge.weights, which are the same for all tensors".into(),
                "remove merge.groups, or merge.weights to search for weights",
            );
        }
        if let Some(landscape) = &self.merge.landscape {
            let n = self.decouple.ranges;
            if let Some(experts) = landscape.experts
                && experts.iter().any(|expert| !(1..=n).contains(expert))
            {
                return impossible(
                    format!("merge.landscape.experts = {experts:?}, of {n} experts"),
                    "name two experts, counted from 1, or remove the key for the first and the last",
                );
            }
            if let Some(config) = landscape.config(n) {
                config.check::<Problem>(n).map_err(|error| Problem::Impossible {
                    message: format!("in [merge.landscape], {error}"),
                    help: "change merge.landscape, or remove it".into(),
                })?;
            }
        }
        for (key, value) in [
            ("sampling.images", self.sampling.images),
            ("sampling.batch_size", self.sampling.batch_size),
            ("evaluation.loss_images", self.evaluation.loss_images),
            ("merge.landscape.images", self.merge.landscape.as_ref().map_or(1, |l| l.images)),
            (
                "merge.objective.loss_images",
                match self.merge.objective {
                    SearchObjective::LossThenFrechet { loss_images, .. } => loss_images,
                    _ => 1,
                },
            ),
            (
                "merge.objective.images",
                match self.merge.objective {
                    SearchObjective::Loss { images }
                    | SearchObjective::Frechet { images, .. }
                    | SearchObjective::LossThenFrechet { images, .. } => images,
                },
            ),
            (
                "merge.objective.candidates",
                match self.merge.objective {
                    SearchObjective::LossThenFrechet { candidates, .. } => candidates,
                    _ => 1,
                },
            ),
        ] {
            if value == 0 {
                return impossible(format!("{key} = 0"), "it must be at least 1");
            }
        }
        if self.sampling.images < 2 {
            return impossible(
                "sampling.images = 1".into(),
                "a covariance needs at least 2 images",
            );
        }
        Ok(())
    }
}

/// Applies `a.b.c=value` overrides to a recipe's text. A value that is no TOML is a string; no value at all
/// takes the key out.
fn apply(name: &str, text: &str, overrides: &[String]) -> Result<String, Problem> {
    let mut document: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| Problem::Recipe {
            message: e.message().to_owned(),
            source_code: NamedSource::new(name, text.to_owned()).with_language("toml"),
            span: e.span().map(|s| (s.start, s.len()).into()),
            help: None,
        })?;
    for entry in overrides {
        let usage = |message: String| Problem::Usage {
            message,
            help:
                "write --set key=value, as in --set decouple.ranges=4 or --set data.path=pictures"
                    .into(),
        };
        let (key, value) =
            entry.split_once('=').ok_or_else(|| usage(format!("`--set {entry}` has no `=`")))?;
        let value = value.trim();
        let path: Vec<&str> = key.trim().split('.').collect();
        let (last, tables) = path.split_last().expect("split gives at least one part");
        let mut table: &mut dyn toml_edit::TableLike = document.as_table_mut();
        for part in tables {
            let item = table.entry(part).or_insert_with(|| Item::Table(Table::new()));
            table = item.as_table_like_mut().ok_or_else(|| {
                usage(format!("`--set {entry}`: `{part}` is a value, not a table"))
            })?;
        }
        if last.is_empty() {
            return Err(usage(format!("`--set {entry}` names no key")));
        }
        if value.is_empty() {
            table.remove(last);
        } else {
            let value = value.parse().unwrap_or_else(|_| toml_edit::Value::from(value));
            table.insert(last, Item::Value(value));
        }
    }
    Ok(document.to_string())
}

/// Points at the place, and offers the nearest key where one is unknown.
fn recipe_problem(name: &str, text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().to_owned();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let help = match quoted.split_first() {
        Some((found, known)) if message.starts_with("unknown") => {
            nearest(found, known.iter().copied()).map(|name| format!("did you mean `{name}`?"))
        }
        _ => None,
    };
    Problem::Recipe {
        message,
        source_code: NamedSource::new(name, text.to_owned()).with_language("toml"),
        span: error.span().map(|s| (s.start, s.len()).into()),
        help,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shapes(overrides: &[&str]) -> Result<Recipe, Problem> {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::load(None, &overrides)
    }

    #[test]
    fn the_default_recipe_is_valid_and_survives_its_own_resolution() {
        let recipe = shapes(&[]).unwrap();
        let again: Recipe = toml::from_str(&recipe.to_toml()).unwrap();
        assert_eq!(again.to_toml(), recipe.to_toml());
    }

    #[test]
    fn overrides_reach_nested_keys_and_may_be_bare_strings() {
        let recipe =
            shapes(&["decouple.ranges=2", "decouple.finetune.learning_rate=1e-3", "name=mine"]);
        let recipe = recipe.unwrap();
        assert_eq!((recipe.decouple.ranges, recipe.name.as_str()), (2, "mine"));
        assert_eq!(recipe.decouple.finetune.learning_rate, 1e-3);
    }

    #[test]
    fn an_override_without_a_value_takes_the_key_out() {
        let recipe =
            shapes(&["merge.weights=[0.1, 0.2, 0.3, 0.4]", "merge.weights=", "merge.landscape="]);
        let recipe = recipe.unwrap();
        assert!(recipe.merge.weights.is_none() && recipe.merge.landscape.is_none());
        assert!(shapes(&["merge.groups="]).is_ok(), "what is not there can be taken out");
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_nearest_offered() {
        let Err(Problem::Recipe { help, span, .. }) = shapes(&["decouple.rnages=2"]) else {
            panic!("accepted")
        };
        assert_eq!(help.as_deref(), Some("did you mean `ranges`?"));
        assert!(span.is_some());
    }

    #[test]
    fn overrides_without_a_key_or_value_are_refused() {
        for wrong in ["decouple.ranges", "=3", "name.x=3"] {
            assert!(matches!(shapes(&[wrong]), Err(Problem::Usage { .. })), "{wrong}");
        }
    }

    #[test]
    fn impossible_recipes_are_refused_before_any_work() {
        for wrong in [
            "decouple.ranges=0",
            "sampling.images=0",
            "merge.weights=[0.5]",
            "merge.landscape={ experts = [0, 1] }",
            "merge.landscape={ experts = [1, 5] }",
            "merge.landscape={ experts = [2, 2] }",
            "merge.landscape={ experts = [1, 2], points = 0 }",
            "merge.landscape={ experts = [1, 2], images = 0 }",
            "merge.search={ strategy = \"gradient\", max_evaluations = 10 }",
            "merge.search={ strategy = \"cma_es\", max_evaluations = 0 }",
            "merge.objective={ kind = \"loss-then-frechet\", images = 8, candidates = 0 }",
            "merge.objective={ kind = \"loss-then-frechet\", images = 8, loss_images = 0 }",
            "pretrained.from=/some/folder",
        ] {
            assert!(matches!(shapes(&[wrong]), Err(Problem::Impossible { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_landscape_needs_two_experts() {
        let plane = |ranges: &str| {
            let recipe = shapes(&[ranges]).unwrap();
            recipe.merge.landscape.unwrap().config(recipe.decouple.ranges).map(|c| c.experts)
        };
        assert_eq!(plane("decouple.ranges=8"), Some([0, 7]));
        assert_eq!(plane("decouple.ranges=1"), None);
    }

    #[test]
    fn weights_per_group_are_for_a_search() {
        assert!(shapes(&["merge.groups=blocks"]).is_ok());
        let fixed = shapes(&["merge.groups=parts", "merge.weights=[0.1, 0.2, 0.3, 0.4]"]);
        assert!(matches!(fixed, Err(Problem::Impossible { .. })));
    }

    #[test]
    fn the_loss_has_a_gradient() {
        let gradient = "merge.search={ strategy = \"gradient\", max_evaluations = 10 }";
        for objective in ["loss\" }", "loss-then-frechet\", images = 8 }"] {
            let objective = format!("merge.objective={{ kind = \"{objective}");
            shapes(&[gradient, &objective]).unwrap();
        }
    }

    #[test]
    fn the_joint_baseline_has_the_same_total_of_iterations_and_no_technique() {
        let recipe = shapes(&[]).unwrap();
        let joint = recipe.joint_finetune();
        let total = recipe.decouple.finetune.iterations * recipe.decouple.ranges as u64;
        assert_eq!((joint.iterations, joint.consistency_weight), (total, 0.0));
    }
}
