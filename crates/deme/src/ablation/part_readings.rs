//! How the text of a replacement is read, part by part: words and numbers to settings of the recipe.

use deme_decouple::{Granularity, LossWeighting, LrScheduleKind};
use deme_diffusion::{GuidanceConfig, ProjectionPlacement, SamplerKind};
use deme_merge::{ParameterGroups, SearchConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::numbers_in_text::{count_in, number_in, numbers_in};
use super::part_matching::plain_words;
use super::setting::{Current, Reading, RunRow, Setting, Unread, total_iterations, written};
use crate::recipe::{Recipe, SearchObjective};

/// The grid of the weights where the recipe has none.
const GRID_VALUES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// The key of the weight of classifier-free guidance.
const GUIDANCE: &str = "sampling.guidance.scale";
/// The key of the share of captions that finetuning leaves out.
const CAPTION_DROPOUT: &str = "decouple.finetune.caption_dropout";
/// A search of another kind gets at least so many evaluations, and at most so many.
const EVALUATIONS: std::ops::RangeInclusive<u64> = 30..=1000;

fn because(reason: impl Into<String>) -> Unread {
    Unread::Because(reason.into())
}

/// Yes, no, or neither.
fn switch_in(text: &str) -> Option<bool> {
    let words = plain_words(text);
    let any = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    if any(&["no", "none", "off", "without", "false", "disabled", "disable", "removed", "absent"]) {
        return Some(false);
    }
    any(&["on", "yes", "with", "true", "enabled", "enable", "present"]).then_some(true)
}

/// The name a value has in a recipe.
pub fn snake_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        other => unreachable!("an enum without fields is a name, not {other:?}"),
    }
}

/// A number under a key; `half` and `double` are of the recipe's.
fn scaled(text: &str, current: f64) -> Option<f64> {
    match plain_words(text).as_slice() {
        [word] if word == "half" => Some(current / 2.0),
        [word] if word == "double" => Some(current * 2.0),
        _ => number_in(text),
    }
}

fn scaled_count(text: &str, current: u64) -> Option<u64> {
    match plain_words(text).as_slice() {
        [word] if word == "half" => Some((current / 2).max(1)),
        [word] if word == "double" => Some(current * 2),
        _ => count_in(text),
    }
}

/// A number of the recipe by its key; none where the recipe says nothing there.
fn number_at(recipe: &Recipe, key: &str) -> Option<f64> {
    let whole = serde_json::to_value(recipe).expect("a recipe is plain data");
    key.split('.').try_fold(&whole, |value, name| value.get(name))?.as_f64()
}

/// A recipe's on or off.
pub fn current_switch(is_on: bool) -> Current {
    Current::text(if is_on { "on" } else { "off" })
}

// Ranges.

/// N, at the recipe's total of iterations.
pub fn ranges(recipe: &Recipe, text: &str) -> Reading {
    let n = count_in(text).ok_or(Unread::NoSense)?;
    let (total, own) = (total_iterations(recipe), recipe.decouple.ranges as u64);
    if n == 0 {
        return Err(because("there is at least one range"));
    }
    let label = format!("N = {n}");
    if n == own {
        return Ok(Setting { number: Some(n as f64), ..Setting::new(label, []) });
    }
    let per_range = ((total as f64 / n as f64).round() as u64).max(1);
    let mut overrides =
        vec![format!("decouple.ranges={n}"), format!("decouple.finetune.iterations={per_range}")];
    if recipe.merge.landscape.is_some() {
        // Its plane may lie over experts that are not there; only reports show it.
        overrides.push("merge.landscape=".to_owned());
    }
    let mut setting = Setting::new(label, []);
    if n == 1 {
        // One expert needs no merging: it is the model.
        overrides.push("merge.weights=[1.0]".to_owned());
        overrides.push("merge.groups=one".to_owned());
        setting.row = Some(RunRow::Expert(0));
    } else if recipe.merge.weights.is_some() {
        return Err(because(format!(
            "the recipe gives merging weights for its {own} experts; to compare numbers of ranges, let them be \
             searched (--set merge.weights= takes the key out)"
        )));
    }
    setting.overrides = overrides;
    setting.number = Some(n as f64);
    let note =
        format!("{per_range} iterations per range, {} in all (the recipe: {total})", per_range * n);
    Ok(setting.with_note(note))
}

/// No ranges: the joint baseline.
pub fn no_ranges(recipe: &Recipe) -> Setting {
    let mut setting = Setting::row("N = 1: joint finetuning without DeMe", RunRow::Joint);
    if !recipe.joint.enabled {
        setting.overrides.push("joint.enabled=true".to_owned());
    }
    let total = total_iterations(recipe);
    setting.number = Some(1.0);
    setting.with_note(format!(
        "one model on all timesteps for {total} iterations, no technique of DeMe"
    ))
}

/// The pretrained model.
pub fn before() -> Setting {
    Setting::row("before finetuning", RunRow::Before)
}

/// Before, or joint.
pub fn finetuning(recipe: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let has = |word: &str| words.iter().any(|w| w == word);
    if has("joint") || has("jointly") {
        Ok(no_ranges(recipe))
    } else if has("before") || has("pretrained") || switch_in(text) == Some(false) {
        Ok(before())
    } else {
        Err(Unread::NoSense)
    }
}

/// Texts are no combination of techniques.
pub fn techniques(_: &Recipe, _: &str) -> Reading {
    Err(because("it is no table of parts"))
}

// Merging.

/// Each expert at its own timesteps.
pub fn ensemble() -> Setting {
    Setting::row("ensemble by range", RunRow::Ensemble)
}

/// 1/N each.
pub fn uniform() -> Setting {
    Setting::row("uniform 1/N", RunRow::Uniform)
}

/// Another row in place of the merged model.
pub fn merging(recipe: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let has = |word: &str| words.iter().any(|w| w == word);
    if has("ensemble") {
        Ok(ensemble())
    } else if has("uniform") || has("average") || has("averaging") {
        Ok(uniform())
    } else if has("expert") {
        let number = count_in(text).ok_or_else(|| because("say which expert, as in expert 2"))?;
        let experts = recipe.decouple.ranges as u64;
        if !(1..=experts).contains(&number) {
            return Err(because(format!("the experts are 1 to {experts}")));
        }
        Ok(Setting::row(format!("expert {number} alone"), RunRow::Expert(number as usize - 1)))
    } else if has("merging") || has("searched") {
        Ok(Setting::new("merged", []))
    } else {
        Err(Unread::NoSense)
    }
}

/// The name of a search.
fn strategy(search: &SearchConfig) -> String {
    match serde_json::to_value(search) {
        Ok(fields) => fields["strategy"].as_str().unwrap_or_default().to_owned(),
        Err(error) => unreachable!("a search is plain data: {error}"),
    }
}

/// The weights, or how they are searched.
pub fn current_weights(recipe: &Recipe) -> Current {
    match &recipe.merge.weights {
        Some(weights) => Current::text(format!("given weights {}", comma_separated(weights))),
        None => Current::text(format!("{} search", strategy(&recipe.merge.search))),
    }
}

fn comma_separated(values: &[f64]) -> String {
    values.iter().copied().map(written).collect::<Vec<_>>().join(", ")
}

/// How the weights are found.
pub fn weights(recipe: &Recipe, text: &str) -> Reading {
    let lower = text.to_lowercase();
    let words = plain_words(text);
    let has = |word: &str| words.iter().any(|w| w == word);
    let says = |part: &str| lower.contains(part);
    if says("non-uniform") || says("non uniform") {
        return Err(Unread::NoSense);
    }
    if has("uniform") || has("equal") || has("average") || has("averaging") || says("1/n") {
        return Ok(uniform());
    }
    if says("bayes") {
        return Err(because(
            "there is no Bayesian search here; quadratic_model and cma_es are its like",
        ));
    }
    for (is_meant, name) in [
        (says("cma"), "cma_es"),
        (has("quadratic") || says("quadratic"), "quadratic_model"),
        (has("gradient"), "gradient"),
        (says("coordinate"), "coordinate_grid"),
        (has("random") && (has("search") || words.len() == 1), "random"),
    ] {
        if is_meant {
            return Ok(searched(recipe, name));
        }
    }
    if has("random") {
        return Err(because("say “random search” for the best of random weights"));
    }
    let of_recipe = match &recipe.merge.search {
        search @ (SearchConfig::Grid(_) | SearchConfig::CoordinateGrid(_)) => {
            Some(strategy(search))
        }
        _ => None,
    };
    if words == ["grid"] || says("full grid") || has("exhaustive") || has("combination") {
        return Ok(searched(recipe, "grid"));
    }
    if has("grid") {
        // The recipe's own grid, of whichever kind, is what the paper's search is in this recipe.
        return Ok(match of_recipe {
            Some(name) => searched(recipe, &name),
            None => searched(recipe, "grid"),
        });
    }
    let given = numbers_in(text);
    if !given.is_empty() {
        let experts = recipe.decouple.ranges;
        if given.len() != experts {
            return Err(because(format!("{} weights for {experts} experts", given.len())));
        }
        let mut overrides = vec![format!("merge.weights={given:?}")];
        if recipe.merge.groups != ParameterGroups::One {
            overrides.push("merge.groups=one".to_owned());
        }
        return Ok(Setting::new(format!("weights {}", comma_separated(&given)), overrides));
    }
    if (has("search") || has("searched") || has("optimized")) && recipe.merge.weights.is_none() {
        return Ok(searched(recipe, &strategy(&recipe.merge.search)));
    }
    Err(Unread::NoSense)
}

/// The recipe's own search where it is of that kind, otherwise one over the same values, with about as many
/// evaluations.
fn searched(recipe: &Recipe, name: &str) -> Setting {
    let search = &recipe.merge.search;
    let mut overrides = Vec::new();
    if recipe.merge.weights.is_some() {
        overrides.push("merge.weights=".to_owned());
    }
    let label = format!("{name} search");
    if strategy(search) == name {
        return Setting::new(label, overrides).with_note("with the recipe's settings");
    }
    let values = grid_values(search);
    let bounds = match search {
        SearchConfig::Random(random) => random.bounds,
        SearchConfig::CmaEs(config) if config.bounds.is_some() => config.bounds.unwrap_or_default(),
        SearchConfig::QuadraticModel(config) if config.bounds.is_some() => {
            config.bounds.unwrap_or_default()
        }
        _ => {
            let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
            let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            [lowest, highest]
        }
    };
    let size = u64::try_from(search.size(recipe.decouple.ranges)).unwrap_or(u64::MAX);
    let budget = size.clamp(*EVALUATIONS.start(), *EVALUATIONS.end());
    let (settings, note) = match name {
        "grid" => (
            format!("values = {values:?}"),
            format!("all combinations of {}", comma_separated(&values)),
        ),
        "coordinate_grid" => (
            format!("values = {values:?}, rounds = 2"),
            format!("two rounds over {}", comma_separated(&values)),
        ),
        _ => (
            format!("bounds = {bounds:?}, max_evaluations = {budget}"),
            format!("at most {budget} evaluations, weights from {} to {}", bounds[0], bounds[1]),
        ),
    };
    overrides.push(format!("merge.search={{ strategy = \"{name}\", {settings} }}"));
    Setting::new(label, overrides).with_note(note)
}

fn grid_values(search: &SearchConfig) -> Vec<f64> {
    match search {
        SearchConfig::Grid(grid) if !grid.values.is_empty() => grid.values.clone(),
        SearchConfig::CoordinateGrid(grid) => grid.values.clone(),
        _ => GRID_VALUES.to_vec(),
    }
}

/// The objective's name.
pub fn current_objective(recipe: &Recipe) -> Current {
    Current::text(match recipe.merge.objective {
        SearchObjective::Loss { .. } => "loss",
        SearchObjective::Frechet { .. } => "frechet",
        SearchObjective::LossThenFrechet { .. } => "loss-then-frechet",
    })
}

/// What is searched by. The numbers of images are the recipe's where it has them.
pub fn objective(recipe: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let has = |word: &str| words.iter().any(|w| w == word);
    let by_loss = has("loss");
    let by_distance = has("frechet") || has("fréchet") || has("fid") || has("distance");
    let (images, steps) =
        recipe.merge.objective.drawing().unwrap_or((recipe.sampling.images.min(256), None));
    let loss_images = match recipe.merge.objective {
        SearchObjective::Loss { images } => images,
        SearchObjective::LossThenFrechet { loss_images, .. } => loss_images,
        SearchObjective::Frechet { .. } => 512,
    };
    let steps = steps.map(|steps| format!(", steps = {steps}")).unwrap_or_default();
    let (name, settings) = match (by_loss, by_distance) {
        (true, false) => ("loss", format!("images = {loss_images}")),
        (false, true) => ("frechet", format!("images = {images}{steps}")),
        (true, true) => {
            ("loss-then-frechet", format!("loss_images = {loss_images}, images = {images}{steps}"))
        }
        (false, false) => return Err(Unread::NoSense),
    };
    if current_objective(recipe).text == name {
        return Ok(Setting::new(name, []));
    }
    let mut setting =
        Setting::new(name, [format!("merge.objective={{ kind = \"{name}\", {settings} }}")]);
    if recipe.merge.weights.is_some() {
        setting.overrides.push("merge.weights=".to_owned());
    }
    Ok(setting)
}

/// Groups of tensors of that name.
pub fn groups_of(name: &str) -> Setting {
    Setting::new(name, [format!("merge.groups={name}")])
}

/// Which tensors have weights of their own.
pub fn groups(_: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let any = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    if any(&["part"]) {
        Ok(groups_of("parts"))
    } else if any(&["block", "blockwise"]) {
        Ok(groups_of("blocks"))
    } else if any(&["one", "all", "global", "none", "single"]) {
        Ok(groups_of("one"))
    } else if any(&["layer", "tensor"]) {
        Err(because("weights per layer are not searched here, only per part or per block"))
    } else {
        Err(Unread::NoSense)
    }
}

// Finetuning.

const FINETUNE: &str = "decouple.finetune";

fn finetune_number(label: String, key: &str, number: f64) -> Setting {
    Setting::number(label, &format!("{FINETUNE}.{key}"), number)
}

/// A placement by its name.
pub fn projection_of(name: &str) -> Setting {
    Setting::new(name, [format!("{FINETUNE}.projection={name}")])
}

/// Where the projection stands.
pub fn projection(recipe: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let any = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let own = recipe.decouple.finetune.projection;
    if any(&["folded", "fold", "folding"]) {
        Ok(projection_of("folded"))
    } else if any(&["block", "reference", "paper", "unfolded", "kept"]) {
        Ok(projection_of("block"))
    } else {
        match (switch_in(text), own) {
            (Some(false), _) => Ok(projection_of("none")),
            (Some(true), ProjectionPlacement::None) => Ok(projection_of("folded")),
            (Some(true), own) => Ok(projection_of(&snake_name(&own))),
            (None, _) => Err(Unread::NoSense),
        }
    }
}

/// A weight of the consistency loss.
pub fn consistency_of(weight: f64) -> Setting {
    finetune_number(format!("consistency weight {}", written(weight)), "consistency_weight", weight)
}

/// The consistency loss.
pub fn consistency(recipe: &Recipe, text: &str) -> Reading {
    let own = recipe.decouple.finetune.consistency_weight;
    number_or_switch(text, if own > 0.0 { own } else { 1.0 }).map(consistency_of)
}

/// A text's number; 0 for off, `on` for on.
fn number_or_switch(text: &str, on: f64) -> Result<f64, Unread> {
    match (number_in(text), switch_in(text)) {
        (Some(number), _) => Ok(number),
        (None, Some(false)) => Ok(0.0),
        (None, Some(true)) => Ok(on),
        (None, None) => Err(Unread::NoSense),
    }
}

/// A probability p.
pub fn probability_of(p: f64) -> Setting {
    finetune_number(format!("p = {}", written(p)), "timestep_sampling.probability", p)
}

/// Probabilistic sampling.
pub fn probability(recipe: &Recipe, text: &str) -> Reading {
    let own = recipe.decouple.finetune.timestep_sampling.probability;
    number_or_switch(text, if own > 0.0 { own } else { 0.3 }).map(probability_of)
}

/// What one decision holds for.
pub fn draws(_: &Recipe, text: &str) -> Reading {
    let words = plain_words(text);
    let has = |word: &str| words.iter().any(|w| w == word);
    let granularity = match (has("batch"), has("sample")) {
        (true, false) => Granularity::Batch,
        (false, true) => Granularity::Sample,
        _ => return Err(Unread::NoSense),
    };
    let name = snake_name(&granularity);
    let key = format!("{FINETUNE}.timestep_sampling.granularity={name}");
    Ok(Setting::new(format!("per {name}"), [key]))
}

fn switch_of(what: &str, key: &str, is_on: bool) -> Setting {
    let label = format!("{what} {}", if is_on { "on" } else { "off" });
    Setting::new(label, [format!("{FINETUNE}.{key}={is_on}")])
}

/// Antithetic timesteps or not.
pub fn antithetic_of(is_on: bool) -> Setting {
    switch_of("antithetic", "timestep_sampling.antithetic", is_on)
}

/// Antithetic timesteps.
pub fn antithetic(_: &Recipe, text: &str) -> Reading {
    match plain_words(text).iter().any(|word| word == "independent") {
        true => Ok(antithetic_of(false)),
        false => switch_in(text).map(antithetic_of).ok_or(Unread::NoSense),
    }
}

/// A moving average or not.
pub fn ema_of(is_on: bool) -> Setting {
    switch_of("EMA", "ema.enabled", is_on)
}

/// The moving average.
pub fn ema(_: &Recipe, text: &str) -> Reading {
    match (number_in(text), switch_in(text)) {
        (Some(decay), _) => Ok(Setting {
            label: format!("EMA decay {}", written(decay)),
            overrides: vec![
                format!("{FINETUNE}.ema.enabled=true"),
                format!("{FINETUNE}.ema.max_decay={}", written(decay)),
            ],
            number: Some(decay),
            ..Setting::default()
        }),
        (None, Some(is_on)) => Ok(ema_of(is_on)),
        (None, None) => Err(Unread::NoSense),
    }
}

/// A loss weighting with its own constants.
pub fn weighting_of(kind: &str) -> Setting {
    Setting::new(kind, [format!("{FINETUNE}.loss_weighting={{ kind = \"{kind}\" }}")])
}

/// The loss weighting.
pub fn weighting(_: &Recipe, text: &str) -> Reading {
    let plain = text.to_lowercase().replace([' ', '-', '_'], "");
    let number = numbers_in(text).last().copied();
    if plain.contains("minsnr") {
        // The number of "Min-SNR-5" hangs on a name.
        let tail: String =
            plain.chars().rev().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let tail: String = tail.chars().rev().collect();
        let gamma: f64 = tail.parse().ok().or(number.map(f64::abs)).unwrap_or(5.0);
        let weighting = LossWeighting::MinSnrGamma { gamma };
        weighting.validate().map_err(|error| because(error.to_string()))?;
        let settings = format!("{{ kind = \"min_snr_gamma\", gamma = {gamma:?} }}");
        return Ok(Setting::new(
            format!("Min-SNR-{}", written(gamma)),
            [format!("{FINETUNE}.loss_weighting={settings}")],
        ));
    }
    if plain.contains("snr+1") || plain.contains("snrplusone") {
        Ok(weighting_of("snr_plus_one"))
    } else if plain.contains("truncated") || plain.contains("max(snr") {
        Ok(weighting_of("truncated_snr"))
    } else if plain.contains("p2") {
        Ok(weighting_of("p2"))
    } else if plain.contains("uniform")
        || plain.contains("constant")
        || switch_in(text) == Some(false)
    {
        Ok(weighting_of("uniform"))
    } else {
        Err(Unread::NoSense)
    }
}

/// Iterations per range.
pub fn iterations(recipe: &Recipe, text: &str) -> Reading {
    let count = scaled_count(text, recipe.decouple.finetune.iterations).ok_or(Unread::NoSense)?;
    Ok(finetune_number(format!("{count} iterations"), "iterations", count as f64))
}

/// The learning rate.
pub fn learning_rate(recipe: &Recipe, text: &str) -> Reading {
    let rate = scaled(text, recipe.decouple.finetune.learning_rate).ok_or(Unread::NoSense)?;
    Ok(finetune_number(format!("rate {}", written(rate)), "learning_rate", rate))
}

/// The course of the learning rate.
pub fn lr_schedule(_: &Recipe, text: &str) -> Reading {
    let name = named::<LrScheduleKind>(text)?;
    Ok(Setting::new(&name, [format!("{FINETUNE}.lr_schedule.kind={name}")]))
}

/// The name of a value that an enum without fields knows: one of the text's words, or all of them joined.
fn named<T: DeserializeOwned + Serialize>(text: &str) -> Result<String, Unread> {
    let mut names = plain_words(text);
    names.extend([names.join("_"), names.concat()]);
    let known = names.into_iter().find_map(|name| serde_json::from_value::<T>(name.into()).ok());
    known.map(|value| snake_name(&value)).ok_or(Unread::NoSense)
}

/// Pictures per step.
pub fn batch_size(recipe: &Recipe, text: &str) -> Reading {
    let own = recipe.decouple.finetune.batch_size as u64;
    let size = scaled_count(text, own).ok_or(Unread::NoSense)?;
    Ok(finetune_number(format!("batch {size}"), "batch_size", size as f64))
}

/// The longest gradient.
pub fn clipping_of(norm: f64) -> Setting {
    finetune_number(format!("clipping norm {}", written(norm)), "max_grad_norm", norm)
}

/// Gradient clipping.
pub fn clipping(_: &Recipe, text: &str) -> Reading {
    number_or_switch(text, 1.0).map(clipping_of)
}

/// A weight decay.
pub fn decay_of(decay: f64) -> Setting {
    finetune_number(format!("weight decay {}", written(decay)), "optimizer.weight_decay", decay)
}

/// Weight decay.
pub fn weight_decay(_: &Recipe, text: &str) -> Reading {
    number_or_switch(text, 1e-6).map(decay_of)
}

/// Mirrored pictures or not.
pub fn flip_of(is_on: bool) -> Setting {
    switch_of("flip", "horizontal_flip", is_on)
}

/// Mirrored pictures.
pub fn flip(_: &Recipe, text: &str) -> Reading {
    switch_in(text).map(flip_of).ok_or(Unread::NoSense)
}

// The pretrained model.

/// Another pretrained model.
pub fn pretrained(recipe: &Recipe, text: &str) -> Reading {
    let from = text.trim();
    if !from.starts_with("hub:") && !std::path::Path::new(from).is_dir() {
        return Err(Unread::NoSense);
    }
    let mut overrides = vec![format!("pretrained.from={from:?}")];
    let section = &recipe.pretrained;
    overrides.extend(section.unet.is_some().then(|| "pretrained.unet=".to_owned()));
    let conditional = section.conditional_unet.is_some();
    overrides.extend(conditional.then(|| "pretrained.conditional_unet=".to_owned()));
    overrides.extend(section.training.is_some().then(|| "pretrained.training=".to_owned()));
    Ok(Setting::new(from, overrides))
}

/// Pretraining from scratch.
pub fn pretraining(recipe: &Recipe, text: &str) -> Reading {
    let own = recipe.pretrained.training.as_ref().map_or(0, |training| training.iterations);
    let count = scaled_count(text, own).ok_or(Unread::NoSense)?;
    if recipe.pretrained.training.is_none() {
        return Err(because("the recipe's pretrained model is given, not trained"));
    }
    let label = format!("{count} iterations of pretraining");
    Ok(Setting::number(label, "pretrained.training.iterations", count as f64))
}

// Sampling.

/// The sampler.
pub fn sampler(_: &Recipe, text: &str) -> Reading {
    let name = named::<SamplerKind>(text)?;
    Ok(Setting::new(&name, [format!("sampling.sampler.kind={name}")]))
}

/// The sampler's steps.
pub fn steps(recipe: &Recipe, text: &str) -> Reading {
    let own = recipe.sampling.sampler.steps as u64;
    let steps = scaled_count(text, own).ok_or(Unread::NoSense)?;
    Ok(Setting::number(format!("{steps} steps"), "sampling.sampler.steps", steps as f64))
}

/// The sampler's noise.
pub fn eta_of(eta: f64) -> Setting {
    Setting::number(format!("eta = {}", written(eta)), "sampling.sampler.eta", eta)
}

/// DDIM's eta.
pub fn eta(_: &Recipe, text: &str) -> Reading {
    number_in(text).map(eta_of).ok_or(Unread::NoSense)
}

/// The weight of classifier-free guidance where the recipe gives none.
fn default_guidance() -> f64 {
    GuidanceConfig::default().scale
}

/// The recipe's weight of classifier-free guidance.
pub fn guidance_scale(recipe: &Recipe) -> f64 {
    number_at(recipe, GUIDANCE).unwrap_or_else(default_guidance)
}

/// A weight of classifier-free guidance; at 1 the prompt alone predicts.
pub fn guidance_of(scale: f64) -> Setting {
    Setting::number(format!("guidance {}", written(scale)), GUIDANCE, scale)
}

/// Classifier-free guidance.
pub fn guidance(recipe: &Recipe, text: &str) -> Reading {
    let own = guidance_scale(recipe);
    match (scaled(text, own), switch_in(text)) {
        (Some(scale), _) => Ok(guidance_of(scale)),
        (None, Some(false)) => Ok(guidance_of(1.0)),
        (None, Some(true)) => Ok(guidance_of(if own == 1.0 { default_guidance() } else { own })),
        (None, None) => Err(Unread::NoSense),
    }
}

/// The share of captions that finetuning leaves out.
pub fn caption_dropout_share(recipe: &Recipe) -> f64 {
    number_at(recipe, CAPTION_DROPOUT).unwrap_or(0.0)
}

/// A share of captions that finetuning leaves out.
pub fn caption_dropout_of(share: f64) -> Setting {
    Setting::number(format!("caption dropout {}", written(share)), CAPTION_DROPOUT, share)
}

/// Captions left out in finetuning.
pub fn caption_dropout(recipe: &Recipe, text: &str) -> Reading {
    let own = caption_dropout_share(recipe);
    number_or_switch(text, if own > 0.0 { own } else { 0.1 }).map(caption_dropout_of)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::parts::part;
    use super::*;

    fn shapes(overrides: &[&str]) -> Recipe {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::load(None, &overrides).unwrap()
    }

    fn read(id: &str, text: &str) -> Setting {
        let reading = (part(id).unwrap().read)(&shapes(&[]), text);
        reading.unwrap_or_else(|unread| panic!("{id} {text}: {unread:?}"))
    }

    #[test]
    fn the_replacements_of_outside_planners_are_understood() {
        let uniform = read("weights", "Uniform weights (w_i = 1/N)");
        assert_eq!((uniform.row, uniform.overrides.len()), (Some(RunRow::Uniform), 0));
        let grid = read("weights", "Grid search optimized weights (as in paper)");
        assert_eq!((grid.label.as_str(), grid.overrides.len()), ("coordinate_grid search", 0));
        for text in ["4", "N = 4", "N=4 ranges", "4.0"] {
            assert_eq!(read("ranges", text).number, Some(4.0), "{text}");
        }
        for (id, text, expected) in [
            ("probability", "30%", "decouple.finetune.timestep_sampling.probability=0.3"),
            (
                "probability",
                "always the own range (p = 0)",
                "decouple.finetune.timestep_sampling.probability=0",
            ),
            ("consistency_loss", "no consistency loss", "decouple.finetune.consistency_weight=0"),
            ("consistency_loss", "with consistency loss", "decouple.finetune.consistency_weight=1"),
            ("consistency_loss", "lambda = 0.5", "decouple.finetune.consistency_weight=0.5"),
            ("projection", "without projection", "decouple.finetune.projection=none"),
            ("projection", "the paper's placement", "decouple.finetune.projection=block"),
            ("projection", "on", "decouple.finetune.projection=folded"),
            (
                "draws",
                "one draw per sample",
                "decouple.finetune.timestep_sampling.granularity=sample",
            ),
            (
                "antithetic",
                "independent timesteps",
                "decouple.finetune.timestep_sampling.antithetic=false",
            ),
            (
                "loss_weighting",
                "SNR+1",
                "decouple.finetune.loss_weighting={ kind = \"snr_plus_one\" }",
            ),
            (
                "loss_weighting",
                "Truncated SNR",
                "decouple.finetune.loss_weighting={ kind = \"truncated_snr\" }",
            ),
            (
                "loss_weighting",
                "Min-SNR-3",
                "decouple.finetune.loss_weighting={ kind = \"min_snr_gamma\", gamma = 3.0 }",
            ),
            (
                "loss_weighting",
                "Min-SNR-gamma",
                "decouple.finetune.loss_weighting={ kind = \"min_snr_gamma\", gamma = 5.0 }",
            ),
            (
                "loss_weighting",
                "P2 weighting",
                "decouple.finetune.loss_weighting={ kind = \"p2\" }",
            ),
            ("iterations", "20K", "decouple.finetune.iterations=20000"),
            ("learning_rate", "1e-5", "decouple.finetune.learning_rate=1e-5"),
            ("learning_rate", "half", "decouple.finetune.learning_rate=0.0001"),
            ("lr_schedule", "Cosine decay", "decouple.finetune.lr_schedule.kind=cosine"),
            ("sampler", "DDPM", "sampling.sampler.kind=ddpm"),
            ("steps", "100 steps", "sampling.sampler.steps=100"),
            ("groups", "per block", "merge.groups=blocks"),
            ("ema", "0.999", "decouple.finetune.ema.enabled=true"),
            ("objective", "loss", "merge.objective={ kind = \"loss\", images = 512 }"),
        ] {
            assert_eq!(read(id, text).overrides[0], expected, "{id}: {text}");
        }
    }

    #[test]
    fn ranges_share_the_total_of_iterations() {
        // The shapes recipe: 4 x 350.
        let overrides = |n: &str| read("ranges", n).overrides;
        assert!(overrides("4").is_empty());
        assert_eq!(overrides("8")[..2], ["decouple.ranges=8", "decouple.finetune.iterations=175"]);
        let one = read("ranges", "N = 1");
        assert_eq!(
            (one.overrides[1].as_str(), one.row),
            ("decouple.finetune.iterations=1400", Some(RunRow::Expert(0)))
        );
        let given = shapes(&["merge.weights=[0.1, 0.1, 0.2, 0.5]"]);
        assert!(matches!(ranges(&given, "8"), Err(Unread::Because(_))));
        assert!(matches!(ranges(&given, "0"), Err(Unread::Because(_))));
        assert!(matches!(ranges(&given, "2 or 4"), Err(Unread::NoSense)));
    }

    #[test]
    fn searches_of_another_kind_keep_values_and_budget() {
        let search = |text: &str| read("weights", text).overrides.concat();
        let cma_es = search("CMA-ES");
        assert!(cma_es.contains("cma_es") && cma_es.contains("bounds = [0.0, 3.0]"), "{cma_es}");
        assert!(cma_es.contains("max_evaluations = 41"), "{cma_es}");
        assert!(search("grid").contains("strategy = \"grid\", values = [0.0, 0.5, 1.0, 2.0, 3.0]"));
        assert_eq!(search("0.1, 0.1, 0.2, 0.5"), "merge.weights=[0.1, 0.1, 0.2, 0.5]");
        let given = shapes(&["merge.weights=[0.1, 0.1, 0.2, 0.5]"]);
        let again = weights(&given, "grid search").unwrap();
        assert_eq!(again.overrides, ["merge.weights="]);
    }

    #[test]
    fn what_is_understood_but_cannot_be_says_why() {
        for (id, text, word) in [
            ("weights", "0.1, 0.2", "2 weights for 4 experts"),
            ("weights", "Bayesian optimization", "quadratic_model"),
            ("weights", "random weights", "random search"),
            ("merging", "expert 5", "1 to 4"),
            ("merging", "the best expert", "which expert"),
            ("groups", "per layer", "per block"),
            ("loss_weighting", "min-SNR with gamma 0", "gamma"),
            ("techniques", "all", "table of parts"),
        ] {
            match (part(id).unwrap().read)(&shapes(&[]), text) {
                Err(Unread::Because(reason)) => assert!(reason.contains(word), "{id}: {reason}"),
                other => panic!("{id} {text}: {other:?}"),
            }
        }
    }

    #[test]
    fn guidance_and_dropout_are_numbers_that_can_be_off() {
        let recipe = shapes(&[]);
        let label = |id: &str, text: &str| {
            let setting = (part(id).unwrap().read)(&recipe, text).unwrap();
            (setting.overrides[0].clone(), setting.number.unwrap())
        };
        let scale = |number: f64| (format!("sampling.guidance.scale={}", written(number)), number);
        for (text, expected) in [
            ("3", 3.0),
            ("scale 1.5", 1.5),
            ("off", 1.0),
            ("without guidance", 1.0),
            ("on", 7.5),
            ("double", 15.0),
        ] {
            assert_eq!(label("guidance", text), scale(expected), "{text}");
        }
        for (text, expected) in [("0.2", 0.2), ("20%", 0.2), ("off", 0.0), ("on", 0.1)] {
            let (set, number) = label("caption_dropout", text);
            assert_eq!(set, format!("decouple.finetune.caption_dropout={}", written(expected)));
            assert_eq!(number, expected, "{text}");
        }
        // Where the recipe says nothing, the network's defaults hold.
        assert_eq!((guidance_scale(&recipe), caption_dropout_share(&recipe)), (7.5, 0.0));
        assert_eq!(number_at(&recipe, "sampling.sampler.steps"), {
            Some(recipe.sampling.sampler.steps as f64)
        });
        assert_eq!(number_at(&recipe, "sampling.nothing.scale"), None);
    }
}
