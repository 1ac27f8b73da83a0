//! `deme merge`: experts and their pretrained model into one model. No network is built.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use deme_diffusion::PipelineFolder;
use deme_merge::{METHODS, MergeInputs, MergeMethod, MethodRow, StateDict};

use crate::cli::MergeArguments;
use crate::diagnostics::{Problem, nearest};

/// Diffusers' default for the largest weight file, in bytes.
const MAX_SHARD_SIZE: u64 = 10_000_000_000;

/// Merges files of tensors, or diffusers folders.
pub fn run(arguments: &MergeArguments) -> Result<(), Problem> {
    let MergeArguments { base: Some(base), experts, out: Some(out), list_methods: false, .. } =
        arguments
    else {
        return super::print(&methods_table());
    };
    let method = method(arguments)?;
    if out.exists() {
        return Err(Problem::Usage {
            message: format!("{} is there already", out.display()),
            help: "choose another --out, or remove it first".into(),
        });
    }
    if arguments.max_shard_size.is_some() && !base.is_dir() {
        return Err(Problem::Usage {
            message: "only folders are split into shards, and the base is a file".into(),
            help: "leave --max-shard-size out, or give a diffusers folder as --base".into(),
        });
    }
    let statistics = [&arguments.fisher[..], &arguments.gram[..]].concat();
    let statistics = load_all(&statistics, |path| Ok(StateDict::load(path)?))?;
    if base.is_dir() {
        let pipeline = PipelineFolder::open(base)?;
        let theta_pre = pipeline.unread_weights()?;
        let experts = load_all(experts, |path| Ok(PipelineFolder::open(path)?.unread_weights()?))?;
        let inputs =
            MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &statistics };
        let part = pipeline.unet_folder();
        let max_shard_bytes = arguments.max_shard_size.unwrap_or(MAX_SHARD_SIZE);
        inputs.merge_to_model_folder(&method, base, part, out, max_shard_bytes)?;
    } else {
        let theta_pre = StateDict::load(base)?;
        let experts = load_all(experts, |path| Ok(StateDict::load(path)?))?;
        let inputs =
            MergeInputs { theta_pre: &theta_pre, experts: &experts, statistics: &statistics };
        inputs.merge_to_file(&method, out)?;
    }
    super::print(&format!("{}\n", out.display()))
}

fn load_all(
    paths: &[PathBuf],
    load: impl Fn(&Path) -> Result<StateDict, Problem>,
) -> Result<Vec<StateDict>, Problem> {
    paths.iter().map(|path| load(path)).collect()
}

/// The method that the arguments name, with its parameters. A parameter of another method is refused.
fn method(arguments: &MergeArguments) -> Result<MergeMethod, Problem> {
    let MergeArguments { experts, weights, group_weights, .. } = arguments;
    let name = match &arguments.method {
        Some(name) => name,
        None if weights.is_some() || group_weights.is_some() => "linear",
        None => "uniform",
    };
    let row = METHODS.iter().find(|row| row.name == name).ok_or_else(|| {
        let near = nearest(name, METHODS.iter().map(|row| row.name));
        Problem::Usage {
            message: format!("there is no method `{name}`"),
            help: match near {
                Some(near) => {
                    format!("did you mean `{near}`? `deme merge --list-methods` shows all")
                }
                None => "`deme merge --list-methods` shows all".into(),
            },
        }
    })?;
    refuse_others(arguments, row)?;
    if let Some(weights) = weights
        && weights.len() != experts.len()
    {
        return Err(Problem::Usage {
            message: format!("{} weights for {} experts", weights.len(), experts.len()),
            help: "give --weights one number per --expert, in the same order".into(),
        });
    }
    for (flag, files) in [("fisher", &arguments.fisher), ("gram", &arguments.gram)] {
        if row.parameters.contains(&flag) && files.len() != experts.len() {
            return Err(Problem::Usage {
                message: format!("{} --{flag} files for {} experts", files.len(), experts.len()),
                help: format!("give --{flag} once per --expert, in the same order"),
            });
        }
    }
    let shares = || vec![1.0 / experts.len() as f64; experts.len()];
    Ok(match (row.name, group_weights) {
        ("linear", Some(file)) => {
            MergeMethod::LinearByGroup { groups: read_groups(file)?, weights: weights.clone() }
        }
        ("linear", None) => MergeMethod::Linear { weights: weights.clone().unwrap_or_else(shares) },
        ("uniform", _) => MergeMethod::Uniform,
        ("ties", _) => MergeMethod::Ties {
            density: arguments.density.unwrap_or(MergeMethod::DEFAULT_DENSITY),
            scale: arguments.scale.unwrap_or(MergeMethod::DEFAULT_SCALE),
        },
        ("dare", _) => MergeMethod::Dare {
            weights: weights.clone().unwrap_or_else(shares),
            drop: arguments.drop.unwrap_or(MergeMethod::DEFAULT_DROP),
            seed: arguments.seed.unwrap_or(0),
        },
        ("slerp", _) => MergeMethod::Slerp { t: arguments.t.unwrap_or(MergeMethod::DEFAULT_T) },
        ("fisher", _) => MergeMethod::Fisher,
        ("regmean", _) => {
            MergeMethod::RegMean { alpha: arguments.alpha.unwrap_or(MergeMethod::DEFAULT_ALPHA) }
        }
        (other, _) => unreachable!("{other} is a row of the table and must be made here"),
    })
}

/// Refuses the flags of parameters that the method does not have.
fn refuse_others(arguments: &MergeArguments, row: &MethodRow) -> Result<(), Problem> {
    let given = [
        ("weights", arguments.weights.is_some()),
        ("group-weights", arguments.group_weights.is_some()),
        ("density", arguments.density.is_some()),
        ("scale", arguments.scale.is_some()),
        ("drop", arguments.drop.is_some()),
        ("seed", arguments.seed.is_some()),
        ("t", arguments.t.is_some()),
        ("fisher", !arguments.fisher.is_empty()),
        ("gram", !arguments.gram.is_empty()),
        ("alpha", arguments.alpha.is_some()),
    ];
    let foreign = given.into_iter().find(|(flag, given)| *given && !row.parameters.contains(flag));
    let Some((flag, _)) = foreign else { return Ok(()) };
    let owners: Vec<&str> =
        METHODS.iter().filter(|row| row.parameters.contains(&flag)).map(|row| row.name).collect();
    Err(Problem::Usage {
        message: format!("the method `{}` has no parameter --{flag}", row.name),
        help: format!("leave it out, or choose --method {}", owners.join(" or ")),
    })
}

/// A table of groups and their weights, TOML or by its name JSON.
fn read_groups(file: &Path) -> Result<BTreeMap<String, Vec<f64>>, Problem> {
    let text = std::fs::read_to_string(file).map_err(|source| Problem::read(file, source))?;
    let parsed = match file.extension().is_some_and(|extension| extension == "json") {
        true => serde_json::from_str(&text).map_err(|error| error.to_string()),
        false => toml::from_str(&text).map_err(|error| error.to_string()),
    };
    parsed.map_err(|reason| Problem::Usage {
        message: format!("{} is no table of group weights: {}", file.display(), reason.trim()),
        help: "write lines such as: \"up_blocks.2\" = [0.1, 0.1, 0.2, 0.5]".into(),
    })
}

fn methods_table() -> String {
    let mut text = String::new();
    for MethodRow { name, formula, paper, parameters } in METHODS {
        let flags: Vec<String> = parameters.iter().map(|name| format!("--{name}")).collect();
        let flags = if flags.is_empty() { "none".into() } else { flags.join(" ") };
        let _ = writeln!(text, "{name}\n  {formula}\n  parameters: {flags}\n  {paper}\n");
    }
    text
}
