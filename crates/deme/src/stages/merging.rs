//! The stages that work in parameter space: the search for weights, the merged models.

use std::path::Path;

use burn::tensor::Device;
use deme_decouple::LossProbeConfig;
use deme_diffusion::{TextToImagePipeline, save_pipeline};
use deme_eval::{FeatureStats, frechet_distance};
use deme_merge::weight_search::{
    Decision, Objective, SearchEvent, SearchStage, TwoStageConfig, ValueAndGradient,
    search_in_two_stages,
};
use deme_merge::{
    MergeMethod, MergePlan, ParameterGroups, SearchResult, SearchTask, StateDict, merge,
    search_weights, task_vector_statistics,
};
use serde::{Deserialize, Serialize};

use crate::diagnostics::Problem;
use crate::progress::{Progress, Voice, say};
use crate::recipe::SearchObjective;
use crate::run_dir::{read_json, seed_for, write_json};

use super::drawing::{Drawing, Prompts, Source};
use super::evaluate::{features, features_of, judge};
use super::network::{Network, Probe};
use super::{Context, Plan};

/// theta and the experts. With the `block` placement the experts carry projection matrices; theta then
/// gets identities, which change nothing, so that all have the same tensors.
struct Models {
    pretrained: Network,
    experts: Vec<StateDict>,
}

impl Models {
    fn load(plan: &Plan, device: &Device) -> Result<Self, Problem> {
        let load = |folder: &Path| Network::load(plan.task, &folder.join("model"), device);
        let mut pretrained = load(plan.pretrained.folder())?;
        let mut experts = Vec::new();
        for expert in &plan.experts {
            let expert = load(expert.folder())?;
            let placement = expert.projection_placement();
            if pretrained.projection_placement() != placement {
                pretrained = pretrained.with_projection(placement)?;
            }
            experts.push(expert.state_dict());
        }
        Ok(Self { pretrained, experts })
    }

    fn theta_pre(&self) -> StateDict {
        self.pretrained.state_dict()
    }

    fn merge_into(self, plan: &Plan, method: &MergeMethod, folder: &Path) -> Result<(), Problem> {
        let merged = merge(&self.theta_pre(), &self.experts, method)?;
        let network = self.pretrained.with_state_dict(&merged);
        let network = network.expect("a merged model has theta's names and shapes");
        network.save(&folder.join("model"), &plan.scheduler)
    }
}

/// The experts merged with 1/N each.
pub fn uniform(plan: &Plan, folder: &Path) -> Result<(), Problem> {
    Models::load(plan, &Device::flex())?.merge_into(plan, &MergeMethod::Uniform, folder)
}

/// The experts merged with the found or given weights.
pub fn merged(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let weights = merging_weights(context, plan)?;
    write_json(&folder.join("weights.json"), &weights)?;
    Models::load(plan, &Device::flex())?.merge_into(plan, &weights.method(), folder)
}

/// The weights of the merged model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergingWeights {
    /// The groups of tensors with weights of their own, sorted; one where there are none.
    pub groups: Vec<String>,
    /// One weight per expert, for each group.
    pub weights: Vec<Vec<f64>>,
}

impl MergingWeights {
    fn of_all_tensors(weights: Vec<f64>) -> Self {
        Self { groups: vec!["all".into()], weights: vec![weights] }
    }

    /// One weight per expert, where all tensors have the same.
    pub fn of_experts(&self) -> Option<&[f64]> {
        match self.weights.as_slice() {
            [weights] => Some(weights),
            _ => None,
        }
    }

    fn method(&self) -> MergeMethod {
        match self.of_experts() {
            Some(weights) => MergeMethod::Linear { weights: weights.to_vec() },
            None => {
                let groups = self.groups.iter().cloned().zip(self.weights.iter().cloned());
                MergeMethod::LinearByGroup { groups: groups.collect(), weights: None }
            }
        }
    }
}

/// The weights the recipe gives or the search found.
pub fn merging_weights(context: &Context<'_>, plan: &Plan) -> Result<MergingWeights, Problem> {
    match (&context.recipe.merge.weights, &plan.search) {
        (Some(weights), _) => Ok(MergingWeights::of_all_tensors(weights.clone())),
        (None, Some(search)) => {
            let found: FoundWeights = read_json(&search.folder().join("search.json"))?;
            Ok(found.weights)
        }
        (None, None) => unreachable!("a recipe without weights has a search"),
    }
}

/// What the search leaves in `search.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FoundWeights {
    /// The best.
    pub weights: MergingWeights,
    /// The objective there; that of the decision, where there were two.
    pub value: f64,
    /// The search; by the loss, where the distance decided.
    pub search: SearchResult,
    /// What the distance saw, where the loss proposed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decision>,
}

/// Merged models in memory: theta and the task vectors, ready for any weights.
struct Candidates {
    pretrained: Network,
    merging: MergePlan,
}

impl Candidates {
    fn load(context: &Context<'_>, plan: &Plan) -> Result<Self, Problem> {
        let models = Models::load(plan, &context.device)?;
        let groups = context.recipe.merge.groups;
        let merging = MergePlan::with_groups(&models.theta_pre(), &models.experts, groups)?;
        Ok(Self { pretrained: models.pretrained, merging })
    }

    fn at(&self, weights: &[f64]) -> Result<Network, Problem> {
        let values = self.merging.at(weights)?.into_iter();
        let values = values.map(|(name, _, values)| (name, values)).collect();
        Ok(self.pretrained.clone().with_values(values))
    }

    fn task<'a>(&self, objective: &'a str, log_path: &'a Path) -> SearchTask<'a> {
        let num_experts = self.merging.num_experts();
        let num_groups = self.merging.groups().len();
        SearchTask { num_experts, num_groups, objective, log_path, reference_points: true }
    }

    fn named(&self, weights: &[f64]) -> MergingWeights {
        let of_groups = weights.chunks(self.merging.num_experts());
        MergingWeights {
            groups: self.merging.groups().to_vec(),
            weights: of_groups.map(<[f64]>::to_vec).collect(),
        }
    }
}

/// The diffusion loss on the search's pictures.
struct LossObjective<'a> {
    candidates: &'a Candidates,
    probe: Probe,
}

impl<'a> LossObjective<'a> {
    fn new(
        context: &Context<'_>,
        plan: &Plan,
        candidates: &'a Candidates,
        images: usize,
    ) -> Result<Self, Problem> {
        let seed = seed_for(context.recipe.seed, "search");
        let config = LossProbeConfig { samples: images, seed, ..LossProbeConfig::default() };
        let probe = Probe::new(context, plan, &context.split().search, &config)?;
        Ok(Self { candidates, probe })
    }
}

impl Objective for LossObjective<'_> {
    type Error = Problem;

    fn value(&mut self, weights: &[f64]) -> Result<f64, Problem> {
        Ok(self.probe.loss(&self.candidates.at(weights)?))
    }

    fn value_and_gradient(&mut self, weights: &[f64]) -> Option<ValueAndGradient<Problem>> {
        // d loss / d w_i = <grad loss(theta_m), tau_i>
        let evaluate = || {
            let (loss, gradients) = self.probe.loss_and_gradient(&self.candidates.at(weights)?);
            Ok((loss, self.candidates.merging.weight_gradient(&gradients.to_state_dict())?))
        };
        Some(evaluate())
    }
}

/// The Fréchet distance of `images` generated images to the search's pictures.
fn frechet<'a>(
    context: &'a Context<'_>,
    plan: &'a Plan,
    candidates: &'a Candidates,
    images: usize,
) -> Result<impl Objective<Error = Problem> + 'a, Problem> {
    let extractor = judge(context, plan)?;
    let reference = features(context, &*extractor, &context.split().search)?;
    let reference = FeatureStats::of(&reference)?;
    let sampler = context.recipe.search_sampler();
    let prompts = Prompts::of(context, plan, &context.split().search)?;
    Ok(move |weights: &[f64]| -> Result<f64, Problem> {
        let model = candidates.at(weights)?;
        let drawing = Drawing {
            source: Source::of(plan, vec![model]),
            prompts: prompts.as_ref(),
            scheduler: &plan.scheduler,
            sampler: &sampler,
            first_seed: seed_for(context.recipe.seed, "search"),
            images,
        };
        let drawn = drawing.draw(context)?;
        let features = features_of(&*extractor, &drawn)?;
        Ok(frechet_distance(&FeatureStats::of(&features)?, &reference)?.distance)
    })
}

/// The search for merging weights: `search.jsonl` (and `decision.jsonl`), one line per evaluation, and
/// `search.json`.
pub fn search(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let merge = &context.recipe.merge;
    let candidates = Candidates::load(context, plan)?;
    let made_with = plan.search.as_ref().map(|search| search.key.to_string()).unwrap_or_default();
    let [log, decision_log] = ["search.jsonl", "decision.jsonl"].map(|name| folder.join(name));
    let task = candidates.task(&made_with, &log);
    let mut speaker = Speaker::new(context.voice);
    let found = match merge.objective {
        SearchObjective::Loss { images } => {
            let objective = LossObjective::new(context, plan, &candidates, images)?;
            let found = search_weights(&merge.search, &task, objective, |event| {
                speaker.tell("search", event);
            })?;
            of_one_stage(&candidates, found)
        }
        SearchObjective::Frechet { images, .. } => {
            let objective = frechet(context, plan, &candidates, images)?;
            let found = search_weights(&merge.search, &task, objective, |event| {
                speaker.tell("search", event);
            })?;
            of_one_stage(&candidates, found)
        }
        SearchObjective::LossThenFrechet { loss_images, images, candidates: shown, .. } => {
            let config = TwoStageConfig {
                candidates: shown,
                ..TwoStageConfig::proposing(merge.search.clone())
            };
            let mut decide = candidates.task(&made_with, &decision_log);
            decide.reference_points = false;
            let cheap = LossObjective::new(context, plan, &candidates, loss_images)?;
            let dear = frechet(context, plan, &candidates, images)?;
            let found =
                search_in_two_stages(&config, &task, &decide, cheap, dear, |stage, event| {
                    let name = match stage {
                        SearchStage::Propose => "search by loss",
                        SearchStage::Decide => "decision by distance",
                    };
                    speaker.tell(name, event);
                })?;
            FoundWeights {
                weights: candidates.named(&found.best_weights),
                value: found.best_value,
                search: found.proposed,
                decisions: found.decisions,
            }
        }
    };
    speaker.finish();
    write_json(&folder.join("search.json"), &found)
}

fn of_one_stage(candidates: &Candidates, found: SearchResult) -> FoundWeights {
    let weights = candidates.named(&found.best_weights);
    FoundWeights { weights, value: found.best_value, search: found, decisions: Vec::new() }
}

/// The search's progress on the terminal.
struct Speaker {
    voice: Voice,
    progress: Option<(Progress, String)>,
}

impl Speaker {
    fn new(voice: Voice) -> Self {
        Self { voice, progress: None }
    }

    fn tell(&mut self, name: &str, event: SearchEvent<'_>) {
        match event {
            SearchEvent::Starts { evaluations, logged } => {
                self.finish();
                if self.voice == Voice::Normal {
                    say(&format!("{name}: at most {evaluations} evaluations, {logged} in the log"));
                }
                let progress = Progress::start(self.voice, name, evaluations);
                self.progress = Some((progress, String::new()));
            }
            SearchEvent::Evaluated(at) => {
                if let Some((progress, outcome)) = &mut self.progress {
                    *outcome = format!("{:.4} at {}", at.best.value, rounded(&at.best.weights));
                    progress.at(at.done, &format!("best {outcome}"));
                }
            }
            SearchEvent::Reference(_) => {}
        }
    }

    fn finish(&mut self) {
        if let Some((progress, outcome)) = self.progress.take() {
            progress.finish(&outcome);
        }
    }
}

/// `[0.5, 1, -0.25]`, three decimals at most.
fn rounded(weights: &[f64]) -> String {
    let number = |weight: &f64| (weight * 1e3).round() / 1e3;
    format!("{:?}", weights.iter().map(number).collect::<Vec<f64>>())
}

/// The loss over the plane of two task vectors: `landscape.jsonl` and `landscape.json`.
pub fn landscape(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let (Some((slot, config)), Some(section)) = (&plan.landscape, &context.recipe.merge.landscape)
    else {
        unreachable!("a landscape's stage has its section")
    };
    let candidates = Candidates::load(context, plan)?;
    let objective = LossObjective::new(context, plan, &candidates, section.images)?;
    let (key, log) = (slot.key.to_string(), folder.join("landscape.jsonl"));
    let task = SearchTask { reference_points: false, ..candidates.task(&key, &log) };
    let mut speaker = Speaker::new(context.voice);
    let found = deme_merge::landscape(config, &task, objective, |event| {
        speaker.tell("landscape", event);
    })?;
    speaker.finish();
    write_json(&folder.join("landscape.json"), &found)
}

/// How large the task vectors are and how far they agree: `task_vectors.json`.
pub fn task_vectors(plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let models = Models::load(plan, &Device::flex())?;
    let groups = ParameterGroups::Parts;
    let found = task_vector_statistics(&models.theta_pre(), &models.experts, groups)?;
    write_json(&folder.join("task_vectors.json"), &found)
}

/// Puts the merged model where the user looks for it: `merged/` in the run's folder.
pub fn export(plan: &Plan, root: &Path) -> Result<(), Problem> {
    let device = Device::flex();
    let target = root.join("merged");
    match Network::load(plan.task, &plan.merged.folder().join("model"), &device)? {
        Network::Unconditional(unet) => save_pipeline(&target, &unet, &plan.scheduler)?,
        Network::TextToImage(unet) => {
            let whole = plan.pretrained.folder().join("model");
            let whole = TextToImagePipeline::load(&whole.to_string_lossy(), &device)?;
            TextToImagePipeline { unet, ..whole }.save(&target)?;
        }
    }
    Ok(())
}
