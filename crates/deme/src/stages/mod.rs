//! The pipeline: which stages a recipe has, in which order, and what each reads and writes.
//!
//! data -> CLIP, pretrained (of captions: and encodings) -> N experts, joint -> search, landscape -> merged models -> samples ->
//! metrics -> report. A stage reads and writes artefacts in its folder and knows no other stage's code.

mod drawing;
mod encodings;
mod evaluate;
mod finetuning;
mod merging;
mod network;
mod plan;
mod rows;
mod summary;

use std::cell::OnceCell;
use std::path::Path;
use std::rc::Rc;

use burn::tensor::Device;
use deme_data::{DataSet, Picture, PreparedImages, Split};
use serde_json::json;

use crate::diagnostics::Problem;
use crate::progress::Voice;
use crate::recipe::Recipe;
use crate::run_dir::StageSlot;

pub use plan::{Plan, RowPlan};
pub use rows::{metric_names, run_row};

/// What all stages share.
pub struct Context<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Where to compute.
    pub device: Device,
    /// How much to say.
    pub voice: Voice,
    pictures: Rc<Pictures>,
}

/// The opened data, which recipes that differ in other things share.
struct Pictures {
    data: DataSet,
    split: Split,
    content_hash: OnceCell<String>,
    prepared: OnceCell<PreparedImages>,
}

impl<'a> Context<'a> {
    /// Opens the data; no picture is decoded before a stage needs it.
    pub fn open(recipe: &'a Recipe, device: Device, voice: Voice) -> Result<Self, Problem> {
        let data = DataSet::open(&recipe.data)?;
        if recipe.is_text_to_image() && !data.has_captions() {
            return Err(Problem::Impossible {
                message: "the pictures have no captions, and text to image is learnt from captions"
                    .into(),
                help:
                    "add captions (for a folder, a metadata.jsonl with file_name and text), or set \
                       pretrained.task = \"unconditional\""
                        .into(),
            });
        }
        if recipe.evaluation.extractor.is_none() && !data.has_captions() {
            return Err(Problem::Impossible {
                message: "the pictures have no captions, so no CLIP can be trained to judge with"
                    .into(),
                help: "add captions (metadata.jsonl), or name an extractor, as in --set \
                       evaluation.extractor='{ kind = \"inception\" }'"
                    .into(),
            });
        }
        let split = deme_data::split(data.len(), &recipe.split)?;
        let (content_hash, prepared) = (OnceCell::new(), OnceCell::new());
        let pictures = Rc::new(Pictures { data, split, content_hash, prepared });
        Ok(Self { recipe, device, voice, pictures })
    }

    /// The same for another recipe with the same data, preparation and split.
    pub fn with_recipe<'b>(&self, recipe: &'b Recipe) -> Context<'b> {
        let part = |recipe: &Recipe| json!([recipe.data, recipe.preparation, recipe.split]);
        assert_eq!(part(self.recipe), part(recipe), "the pictures are shared");
        let (device, pictures) = (self.device.clone(), Rc::clone(&self.pictures));
        Context { recipe, device, voice: self.voice, pictures }
    }

    /// The opened data.
    pub fn data(&self) -> &DataSet {
        &self.pictures.data
    }

    /// Reads single prepared pictures: out of memory where all of them are there already.
    pub fn reader(&self) -> impl Fn(usize) -> Result<Picture, Problem> + Sync + '_ {
        let Pictures { data, prepared, .. } = &*self.pictures;
        let (prepared, preparation) = (prepared.get(), &self.recipe.preparation);
        move |index| match prepared {
            Some(prepared) => Ok(prepared.picture(index)),
            None => {
                let one = data.prepared(index..index + 1, preparation)?;
                Ok(one.into_iter().next().expect("a range of one picture"))
            }
        }
    }

    /// A hash of all pictures and captions.
    pub fn content_hash(&self) -> Result<String, Problem> {
        if let Some(hash) = self.pictures.content_hash.get() {
            return Ok(hash.clone());
        }
        let hash = self.pictures.data.content_hash()?;
        Ok(self.pictures.content_hash.get_or_init(|| hash).clone())
    }

    /// Which pictures train, guide the search, and judge.
    pub fn split(&self) -> &Split {
        &self.pictures.split
    }

    /// All pictures, prepared; decoded once.
    pub fn prepared(&self) -> Result<&PreparedImages, Problem> {
        let Pictures { data, prepared, .. } = &*self.pictures;
        if let Some(prepared) = prepared.get() {
            return Ok(prepared);
        }
        let found = data.load(&self.recipe.preparation)?;
        Ok(prepared.get_or_init(|| found))
    }
}

/// What a whole run did.
pub struct Outcome {
    /// Stages that did something.
    pub worked: Vec<String>,
    /// Stages that were finished before.
    pub cached: Vec<String>,
}

/// The work of a stage, in the folder that becomes the stage's own.
type Work<'a> = Box<dyn Fn(&Path) -> Result<(), Problem> + 'a>;

/// Runs every stage that is not finished, up to the one called `until`, or all and the report.
pub fn run(
    context: &Context<'_>,
    plan: &Plan,
    root: &Path,
    until: Option<&str>,
) -> Result<Outcome, Problem> {
    let mut outcome = Outcome { worked: Vec::new(), cached: Vec::new() };
    for (slot, work) in stages(context, plan) {
        let worked = slot.run(work)?;
        let list = if worked { &mut outcome.worked } else { &mut outcome.cached };
        list.push(slot.name.clone());
        if until == Some(slot.name.as_str()) {
            return Ok(outcome);
        }
    }
    if !outcome.worked.is_empty() || !root.join("report.html").is_file() {
        merging::export(plan, root)?;
        summary::write(context, plan, &outcome.cached, root)?;
    }
    Ok(outcome)
}

/// Every stage with its work, in the order of [`Plan::stages`].
fn stages<'a>(context: &'a Context<'a>, plan: &'a Plan) -> Vec<(&'a StageSlot, Work<'a>)> {
    let mut stages: Vec<(&StageSlot, Work<'a>)> = Vec::new();
    stages.push((&plan.data, Box::new(|folder| evaluate::describe_data(context, folder))));
    if let Some(clip) = &plan.clip {
        stages.push((clip, Box::new(|folder| evaluate::train_clip(context, folder))));
    }
    let pretrained: Work<'a> = Box::new(|folder| finetuning::pretrained(context, plan, folder));
    let encodings = plan.encodings.as_ref().map(|slot| -> (&StageSlot, Work<'a>) {
        (slot, Box::new(|folder| encodings::encode(context, plan, folder)))
    });
    if plan.pretrains() {
        stages.extend(encodings);
        stages.push((&plan.pretrained, pretrained));
    } else {
        stages.push((&plan.pretrained, pretrained));
        stages.extend(encodings);
    }
    for (index, expert) in plan.experts.iter().enumerate() {
        let work = move |folder: &Path| finetuning::expert(context, plan, index, folder);
        stages.push((expert, Box::new(work)));
    }
    if let Some(joint) = &plan.joint {
        stages.push((joint, Box::new(|folder| finetuning::joint(context, plan, folder))));
    }
    if let Some(search) = &plan.search {
        stages.push((search, Box::new(|folder| merging::search(context, plan, folder))));
    }
    if let Some((landscape, _)) = &plan.landscape {
        stages.push((landscape, Box::new(|folder| merging::landscape(context, plan, folder))));
    }
    stages.push((&plan.task_vectors, Box::new(|folder| merging::task_vectors(plan, folder))));
    stages.push((&plan.uniform, Box::new(|folder| merging::uniform(plan, folder))));
    stages.push((&plan.merged, Box::new(|folder| merging::merged(context, plan, folder))));
    for row in &plan.rows {
        let work = move |folder: &Path| evaluate::samples(context, plan, row, folder);
        stages.push((&row.samples, Box::new(work)));
    }
    for row in &plan.rows {
        let work = move |folder: &Path| evaluate::metrics(context, plan, row, folder);
        stages.push((&row.metrics, Box::new(work)));
    }
    let work = |folder: &Path| evaluate::real_distance(context, plan, folder);
    stages.push((&plan.real_distance, Box::new(work)));
    let work = |folder: &Path| evaluate::range_losses(context, plan, folder);
    stages.push((&plan.range_losses, Box::new(work)));
    stages
}
