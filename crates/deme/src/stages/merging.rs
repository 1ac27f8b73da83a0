//! The stages that work in parameter space: the search for weights, the merged models.

use std::path::Path;

use burn::tensor::Device;
use deme_diffusion::{UNet2DModel, load_pipeline, save_pipeline};
use deme_eval::{FeatureStats, frechet_distance};
use deme_merge::weight_search::SearchEvent;
use deme_merge::{
    MergeMethod, MergePlan, SearchResult, SearchTask, StateDict, merge, search_weights,
};
use deme_nn::{load_state_dict, to_state_dict};

use crate::diagnostics::Problem;
use crate::progress::Progress;
use crate::recipe::Objective;
use crate::run_dir::{read_json, seed_for, write_json};

use super::evaluate::{Drawing, features, judge, loss_probe};
use super::{Context, Plan};

/// theta and the experts. With the `block` placement the experts carry projection matrices; theta then
/// gets identities, which change nothing, so that all have the same tensors.
struct Models {
    pretrained: UNet2DModel,
    experts: Vec<StateDict>,
}

impl Models {
    fn load(plan: &Plan, device: &Device) -> Result<Self, Problem> {
        let load = |folder: &Path| load_pipeline(&folder.join("model").to_string_lossy(), device);
        let mut pretrained = load(plan.pretrained.folder())?.unet;
        let mut experts = Vec::new();
        for expert in &plan.experts {
            let expert = load(expert.folder())?;
            let placement = expert.unet.config().channel_projection;
            if pretrained.config().channel_projection != placement {
                pretrained = pretrained.with_projection(placement)?;
            }
            experts.push(to_state_dict(&expert.unet));
        }
        Ok(Self { pretrained, experts })
    }

    fn theta_pre(&self) -> StateDict {
        to_state_dict(&self.pretrained)
    }

    fn merge_into(self, plan: &Plan, method: &MergeMethod, folder: &Path) -> Result<(), Problem> {
        let merged = merge(&self.theta_pre(), &self.experts, method)?;
        let unet = with_state(&self.pretrained, &merged);
        Ok(save_pipeline(&folder.join("model"), &unet, &plan.scheduler)?)
    }
}

/// The model with other values.
fn with_state(model: &UNet2DModel, state: &StateDict) -> UNet2DModel {
    load_state_dict(model.clone(), state).expect("a merged model has theta's names and shapes")
}

/// The experts merged with 1/N each.
pub fn uniform(plan: &Plan, folder: &Path) -> Result<(), Problem> {
    Models::load(plan, &Device::flex())?.merge_into(plan, &MergeMethod::Uniform, folder)
}

/// The experts merged with the found or given weights.
pub fn merged(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let weights = merging_weights(context, plan)?;
    write_json(&folder.join("weights.json"), &weights)?;
    let models = Models::load(plan, &Device::flex())?;
    models.merge_into(plan, &MergeMethod::Linear { weights }, folder)
}

/// The weights the recipe gives or the search found.
pub fn merging_weights(context: &Context<'_>, plan: &Plan) -> Result<Vec<f64>, Problem> {
    match (&context.recipe.merge.weights, &plan.search) {
        (Some(weights), _) => Ok(weights.clone()),
        (None, Some(search)) => {
            let found: SearchResult = read_json(&search.folder().join("search.json"))?;
            Ok(found.best_weights)
        }
        (None, None) => unreachable!("a recipe without weights has a search"),
    }
}

/// The search for merging weights: `search.jsonl`, one line per evaluation, and `search.json`.
pub fn search(context: &Context<'_>, plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let config = &context.recipe.merge.search;
    let models = Models::load(plan, &context.device)?;
    let merging = MergePlan::new(&models.theta_pre(), &models.experts)?;
    let experts = plan.experts.len();
    let mut objective = objective(context, plan)?;
    let mut progress =
        Progress::start(context.voice, "search", u64::try_from(config.size(experts)).unwrap_or(0));
    let evaluate = |weights: &[f64]| -> Result<f64, Problem> {
        objective(&with_state(&models.pretrained, &merging.state_dict_at(weights)?))
    };
    let observe = |event: SearchEvent<'_>| {
        if let SearchEvent::Evaluated(at) = event {
            progress.at(at.done, &format!("best {:.4} at {:?}", at.best.value, at.best.weights));
        }
    };
    let log = folder.join("search.jsonl");
    let made_with = plan.search.as_ref().map(|search| search.key.to_string()).unwrap_or_default();
    let task = SearchTask::new(experts, &made_with, &log);
    let found = search_weights(config, &task, evaluate, observe)?;
    progress.finish(&format!("{:.4} at {:?}", found.best_value, found.best_weights));
    write_json(&folder.join("search.json"), &found)
}

/// What the search makes small, as a function of the merged model.
type MergedObjective<'a> = Box<dyn FnMut(&UNet2DModel) -> Result<f64, Problem> + 'a>;

fn objective<'a>(context: &'a Context<'_>, plan: &'a Plan) -> Result<MergedObjective<'a>, Problem> {
    let seed = seed_for(context.recipe.seed, "search");
    match &context.recipe.merge.objective {
        Objective::Loss { images } => {
            let probe = loss_probe(context, plan, &context.split().search, *images, seed)?;
            Ok(Box::new(move |model| Ok(probe.loss(model))))
        }
        Objective::Frechet { images, .. } => {
            let extractor = judge(context, plan)?;
            let pictures = context.prepared()?;
            let reference = features(&extractor, pictures, &context.split().search)?;
            let reference = FeatureStats::of(&reference)?;
            let sampler = context.recipe.search_sampler();
            let images = *images;
            Ok(Box::new(move |model| {
                let drawing = Drawing {
                    denoiser: model,
                    scheduler: &plan.scheduler,
                    sampler: &sampler,
                    first_seed: seed,
                    images,
                };
                let drawn = drawing.draw(context)?;
                let all: Vec<usize> = (0..drawn.len()).collect();
                let features = features(&extractor, &drawn, &all)?;
                Ok(frechet_distance(&FeatureStats::of(&features)?, &reference)?.distance)
            }))
        }
    }
}

/// Puts the merged model where the user looks for it: `merged/` in the run's folder.
pub fn export(plan: &Plan, root: &Path) -> Result<(), Problem> {
    let device = Device::flex();
    let merged = load_pipeline(&plan.merged.folder().join("model").to_string_lossy(), &device)?;
    let target = root.join("merged");
    Ok(save_pipeline(&target, &merged.unet, &plan.scheduler)?)
}
