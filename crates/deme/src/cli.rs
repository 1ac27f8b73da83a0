//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ablation::PlanForm;

/// Decouple-then-Merge for diffusion models: finetune per timestep range, merge, measure.
#[derive(Debug, Parser)]
#[command(name = "deme", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How 3x3 convolutions are computed on the CPU
    #[arg(long, value_enum, default_value = "fast", global = true)]
    pub convolutions: ConvolutionName,
}

/// Which algorithm for convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConvolutionName {
    /// Winograd's where it saves work: relative error of a layer below 5e-6
    Fast,
    /// The definition: relative error of a layer below 1e-6; slower. Finished stages of a run are not redone
    Exact,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole job of a recipe: pretrained model, experts, weights, merged model, report
    Run(RunArguments),
    /// Draw pictures from a model
    Sample(SampleArguments),
    /// Merge experts into their pretrained model
    Merge(MergeArguments),
    /// One forward pass of a model on given tensors
    Predict(PredictArguments),
    /// Show what a model folder or a file of tensors holds
    Inspect(InspectArguments),
    /// The Fréchet distance between two sets of pictures, on a CLIP's features
    Fd(FdArguments),
    /// Carry out a plan of ablations: variants of a recipe, compared over seeds
    Ablate(AblateArguments),
    /// Plan ablations of what has no evidence yet
    Plan(PlanArguments),
}

/// Where tensors live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// The processor
    Cpu,
    /// A GPU through Vulkan
    #[cfg(feature = "vulkan")]
    Vulkan,
    /// A GPU through wgpu's choice of graphics interface
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// An NVIDIA GPU
    #[cfg(feature = "cuda")]
    Cuda,
}

/// Arguments of `deme run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The recipe, a TOML file [default: the embedded shapes recipe]
    pub recipe: Option<PathBuf>,
    /// The run's folder [default: a folder in runs/ called as the recipe]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Override a key of the recipe, as in decouple.ranges=2 (no value takes it out); may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Stop behind this stage, as in search; --dry-run lists the stages
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// Print the resolved recipe, the stages and the expected cost, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Say nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Which sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplerName {
    /// Song et al. 2021
    Ddim,
    /// Ho et al. 2020
    Ddpm,
}

/// Arguments of `deme sample`.
#[derive(Debug, Args)]
pub struct SampleArguments {
    /// A diffusers folder, or hub:owner/name
    #[arg(long)]
    pub model: String,
    /// How many pictures
    #[arg(long, default_value_t = 16)]
    pub num: usize,
    /// Picture i comes from seed SEED + i
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The sampler
    #[arg(long, value_enum, default_value = "ddim")]
    pub sampler: SamplerName,
    /// Its steps
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// DDIM's eta: 0 deterministic, 1 as noisy as DDPM
    #[arg(long, default_value_t = 0.0)]
    pub eta: f64,
    /// Pictures at once; has no influence on any picture
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Also write all pictures in one, to this PNG file
    #[arg(long, value_name = "FILE")]
    pub grid: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Say nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `deme merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    /// The pretrained model: a file of tensors or a diffusers folder, of a pipeline or a UNet
    #[arg(long, value_name = "PATH", required_unless_present = "list_methods")]
    pub base: Option<PathBuf>,
    /// An expert finetuned from it; once per expert
    #[arg(long = "expert", value_name = "PATH", required_unless_present = "list_methods")]
    pub experts: Vec<PathBuf>,
    /// Where the merged model goes: a file or folder like the base
    #[arg(long, value_name = "PATH", required_unless_present = "list_methods")]
    pub out: Option<PathBuf>,
    /// How to merge; --list-methods tells the names [default: linear with weights, otherwise uniform]
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// One weight per expert [default: 1/N each]
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_name = "W,W,..")]
    pub weights: Option<Vec<f64>>,
    /// linear: weights per part of the UNet, a TOML or JSON table with keys such as down, mid, up_blocks.2, rest
    #[arg(long, value_name = "FILE")]
    pub group_weights: Option<PathBuf>,
    /// ties: the part of the entries that stays [default: 0.2]
    #[arg(long)]
    pub density: Option<f64>,
    /// ties: the factor of the merged task vector [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    pub scale: Option<f64>,
    /// dare: the part of the entries that is dropped [default: 0.9]
    #[arg(long)]
    pub drop: Option<f64>,
    /// dare: what is drawn from [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// slerp: from 0, the first expert, to 1, the second [default: 0.5]
    #[arg(long)]
    pub t: Option<f64>,
    /// fisher: the diagonal Fisher information of an expert, a file of tensors; once per expert, in their order
    #[arg(long, value_name = "FILE")]
    pub fisher: Vec<PathBuf>,
    /// regmean: the Gram matrices of an expert's linear layers, a file of tensors; once per expert, in their order
    #[arg(long, value_name = "FILE")]
    pub gram: Vec<PathBuf>,
    /// regmean: the factor of entries off the diagonal [default: 0.9]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Folders: the largest weight file, as in 10GB, 500MB or 2GiB; larger weights are split [default: 10GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,
    /// Print the methods with their formulas, parameters and papers, and stop
    #[arg(long)]
    pub list_methods: bool,
}

/// A number of bytes: `10GB` and `500MB` count in thousands, `2GiB` in 1024s, as in diffusers.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        unit => return Err(format!("`{unit}` is no unit; known are KB, MB, GB, KiB, MiB, GiB")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    match count.checked_mul(unit) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("it must be more than 0 and fit 64 bits".into()),
    }
}

/// Arguments of `deme predict`.
#[derive(Debug, Args)]
pub struct PredictArguments {
    /// A diffusers folder, or hub:owner/name
    #[arg(long)]
    pub model: String,
    /// A safetensors file with `sample` (B x C x H x W) and `timesteps` (B)
    #[arg(long)]
    pub input: PathBuf,
    /// The safetensors file for `output` (B x C x H x W)
    #[arg(long)]
    pub out: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
}

/// Arguments of `deme inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// A file of tensors or a model folder
    pub path: PathBuf,
}

/// Arguments of `deme fd`.
#[derive(Debug, Args)]
pub struct FdArguments {
    /// A folder of pictures
    pub a: PathBuf,
    /// Another folder of pictures
    pub b: PathBuf,
    /// The folder of the CLIP whose image features are compared
    #[arg(long, value_name = "DIR")]
    pub extractor: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `deme ablate`.
#[derive(Debug, Args)]
pub struct AblateArguments {
    /// A plan (.toml, .jsonl, .json#ID, .md), or the name of a shipped one
    #[arg(required_unless_present_any = ["list_parts", "list_plans"])]
    pub plan: Option<String>,
    /// The recipe that is varied [default: the embedded shapes recipe]
    #[arg(long, value_name = "RECIPE")]
    pub recipe: Option<PathBuf>,
    /// Override a key of the recipe for all variants (no value takes it out); may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// How many seeds, from the recipe's on: two or more give intervals
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Metrics in place of the plan's, as in fd_tiny_clip
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME,..")]
    pub metrics: Vec<String>,
    /// What words of the plan mean: a part, a replacement, or a metric (none leaves it out); may be repeated
    #[arg(long = "bind", value_name = "WORDS=MEANING")]
    pub bindings: Vec<String>,
    /// The folder of the results, and of the stages where --run names no other [default: ablations/ and the
    /// plan's name in the run's folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The run folder whose stages are used and added to [default: --out, or a folder in runs/ called as the
    /// recipe]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Print the variants, what they share and what they cost, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Print the parts that can be ablated and how replacements are read, and stop
    #[arg(long)]
    pub list_parts: bool,
    /// Print the shipped plans, and stop
    #[arg(long)]
    pub list_plans: bool,
    /// Say nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `deme plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The recipe, a TOML file [default: the embedded shapes recipe]
    pub recipe: Option<PathBuf>,
    /// Override a key of the recipe (no value takes it out); may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// A folder with earlier results, ablation.json and metrics.json, at any depth [default: the run's folder in
    /// runs/, where there is one]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// The file of the plan [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// How the plan is written
    #[arg(long, value_enum, default_value = "toml")]
    pub format: PlanForm,
    /// At most so many ablations
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub most: usize,
    /// Ask a language model: the address of an OpenAI-compatible endpoint, as in http://localhost:8000/v1
    #[arg(long, value_name = "URL", requires = "model")]
    pub llm: Option<String>,
    /// The model's name at --llm
    #[arg(long, value_name = "NAME", requires = "llm")]
    pub model: Option<String>,
    /// The environment variable that holds the key for --llm; none is sent when it is not set
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    pub llm_key_env: String,
    /// Say nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("10GB", 10_000_000_000), ("2GiB", 1 << 31), ("500mb", 500_000_000), ("7", 7)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "1.5GB", "3 apples", "0MB", "99999999999GB", "-1"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
