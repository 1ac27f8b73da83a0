//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use deme_diffusion::SamplerKind;

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
    /// FID and its kin: the Fréchet distance between two sets of pictures, KID, precision and recall, ...
    #[command(visible_alias = "fd")]
    Fid(FidArguments),
    /// How well pictures fit their captions, by a CLIP
    ClipScore(ClipScoreArguments),
    /// Two measurements side by side, if they were made alike
    Compare(CompareArguments),
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
    /// Liu et al. 2022
    Pndm,
    /// Lu et al. 2022, of second order (DPM++ 2M) unless the model's scheduler says otherwise
    #[value(name = "dpm-solver++", aliases = ["dpm-solver", "dpm++", "dpm++-2m"])]
    DpmSolver,
    /// Karras et al. 2022
    Euler,
    /// Euler's method with noise added in each step
    EulerAncestral,
}

impl SamplerName {
    /// The sampler of that name.
    pub fn kind(self) -> SamplerKind {
        match self {
            Self::Ddim => SamplerKind::Ddim,
            Self::Ddpm => SamplerKind::Ddpm,
            Self::Pndm => SamplerKind::Pndm,
            Self::DpmSolver => SamplerKind::DpmSolver,
            Self::Euler => SamplerKind::Euler,
            Self::EulerAncestral => SamplerKind::EulerAncestral,
        }
    }
}

/// Arguments of `deme sample`.
#[derive(Debug, Args)]
pub struct SampleArguments {
    /// A diffusers folder, or hub:owner/name; of a text-to-image model also the single file of Stable Diffusion 1
    /// (.safetensors, .ckpt)
    #[arg(long)]
    pub model: String,
    /// How many pictures [default: one per prompt, without prompts 16]
    #[arg(long, value_name = "N")]
    pub num: Option<usize>,
    /// Picture i comes from seed SEED + i
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The sampler [default: that of a text-to-image model's own scheduler, otherwise ddim]
    #[arg(long, value_enum)]
    pub sampler: Option<SamplerName>,
    /// Its steps
    #[arg(long, default_value_t = 50)]
    pub steps: usize,
    /// DDIM's eta: 0 deterministic, 1 as noisy as DDPM
    #[arg(long, default_value_t = 0.0)]
    pub eta: f64,
    /// Pictures at once; has no influence on any picture. Large pictures want less memory with less [default: 16
    /// of up to 256x256 pixels, fewer of larger ones]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Height of the pictures in pixels [default: that of training]
    #[arg(long, value_name = "H")]
    pub height: Option<usize>,
    /// Width of the pictures in pixels [default: that of training]
    #[arg(long, value_name = "W")]
    pub width: Option<usize>,
    /// Folder for the pictures; those of prompts get a metadata.jsonl that says which is of which, as deme
    /// clip-score reads it
    #[arg(long, value_name = "DIR", required_unless_present_any = ["save_stats", "save_features"])]
    pub out: Option<PathBuf>,
    /// Also write all pictures in one, to this PNG file
    #[arg(long, value_name = "FILE")]
    pub grid: Option<PathBuf>,
    /// Draw only the K-th of M parts of the pictures, as in 2/4; each part can be drawn by a process of its own
    #[arg(long, value_name = "K/M", value_parser = parse_part)]
    pub part: Option<Part>,
    /// Write the statistics of the pictures' features (mu, sigma) to this .npz; no picture need be written
    #[arg(long, value_name = "FILE", conflicts_with = "part")]
    pub save_stats: Option<PathBuf>,
    /// Write the pictures' features to this .safetensors; parts in one folder make a whole for deme fid
    #[arg(long, value_name = "FILE")]
    pub save_features: Option<PathBuf>,
    #[command(flatten)]
    pub extractor: ExtractorArguments,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Say nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
    // Last, as all arguments behind it would stand under its heading.
    #[command(flatten)]
    pub text: TextArguments,
}

/// What a text-to-image model is asked for.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Text to image")]
pub struct TextArguments {
    /// What is to be seen. The empty text is what the model was trained on as no condition
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    pub prompt: Option<String>,
    /// A file of prompts: one per line, or .jsonl with the prompt in the field text. Picture i is of prompt i,
    /// counted round and round
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// What is not to be seen, in all pictures [default: the empty text]
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// How far away from the negative prompt: 1 is the prompt alone, 0 the negative prompt alone, each at half the
    /// cost of other values [default: 7.5]
    #[arg(long, allow_negative_numbers = true, value_name = "SCALE")]
    pub guidance: Option<f64>,
    /// How far guided outputs are brought back to the deviation of those without guidance, from 0 to 1; against
    /// pictures that are too bright [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "PHI")]
    pub guidance_rescale: Option<f64>,
    /// Layers at the end of the text encoder that are left out, counted as in diffusers: 1 takes the last but one
    /// [default: 0]
    #[arg(long, value_name = "K")]
    pub clip_skip: Option<usize>,
}

/// One of several parts of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which, counted from 1.
    pub number: usize,
    /// Of how many.
    pub of: usize,
}

impl Part {
    /// The positions of this part among `count`.
    pub fn range(self, count: usize) -> std::ops::Range<usize> {
        (self.number - 1) * count / self.of..self.number * count / self.of
    }
}

/// `K/M` with K from 1 to M.
fn parse_part(text: &str) -> Result<Part, String> {
    let numbers = text.split_once('/').and_then(|(k, m)| Some((k.parse().ok()?, m.parse().ok()?)));
    match numbers {
        Some((number, of)) if (1..=of).contains(&number) => Ok(Part { number, of }),
        _ => Err("write K/M, as in 2/4, with K from 1 to M".into()),
    }
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

/// Whose features are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExtractorName {
    /// Inception-v3 as pytorch-fid builds it: the distance is the FID
    Inception,
    /// DINOv2's class token
    Dinov2,
    /// A CLIP's image tower
    Clip,
}

/// How pictures come to Inception's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResizingName {
    /// Bilinear without antialiasing, inside the network
    PytorchFid,
    /// PIL's antialiased bicubic, before it
    CleanFid,
}

/// Which network looks at pictures.
#[derive(Debug, Clone, Args)]
pub struct ExtractorArguments {
    /// Whose features are compared
    #[arg(long, value_enum, default_value = "inception")]
    pub extractor: ExtractorName,
    /// Its weights: a file, a folder, or hub:owner/name [default for inception: pytorch-fid's file where torch
    /// keeps it]
    #[arg(long, value_name = "PATH")]
    pub weights: Option<String>,
    /// inception: entries of a feature, as pytorch-fid's --dims
    #[arg(long, value_name = "64|192|768|2048")]
    pub dims: Option<usize>,
    /// inception: how pictures come to 299 x 299 [default: pytorch-fid]
    #[arg(long, value_enum)]
    pub resizing: Option<ResizingName>,
    /// clip: the name of open_clip's architecture, where a single file does not tell it
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
}

/// Arguments of `deme fid`.
#[derive(Debug, Args)]
pub struct FidArguments {
    /// The pictures in question: a folder of them, statistics (.npz), or cached features (.safetensors, or a
    /// folder of such parts)
    #[arg(required_unless_present = "list_metrics")]
    pub a: Option<PathBuf>,
    /// The reference, likewise
    #[arg(required_unless_present_any = ["save_stats", "save_features", "list_metrics"])]
    pub b: Option<PathBuf>,
    #[command(flatten)]
    pub extractor: ExtractorArguments,
    /// What to compute, separated by commas: fd (the FID on Inception's features), kid, prdc, ..; --list-metrics
    /// tells the names
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME,..", default_value = "fd")]
    pub metrics: Vec<String>,
    /// The first so many pictures of each folder, in the order of their names
    #[arg(long, value_name = "N")]
    pub num_images: Option<usize>,
    /// Pictures at once; has no influence on any number
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// Write the statistics of A (mu, sigma) to this .npz
    #[arg(long, value_name = "FILE")]
    pub save_stats: Option<PathBuf>,
    /// Write the features of A to this .safetensors
    #[arg(long, value_name = "FILE")]
    pub save_features: Option<PathBuf>,
    /// Leave out pictures that cannot be read, name them, and go on
    #[arg(long)]
    pub skip_broken: bool,
    /// What subsets are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print the metrics with their papers, and stop
    #[arg(long)]
    pub list_metrics: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Print JSON, as deme compare reads it
    #[arg(long)]
    pub json: bool,
    /// Say nothing but the result and errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `deme clip-score`.
#[derive(Debug, Args)]
pub struct ClipScoreArguments {
    /// The folder of the pictures
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Their captions: .jsonl, .json, .csv, .tsv or .txt
    #[arg(long, value_name = "FILE")]
    pub captions: PathBuf,
    /// The CLIP: a Hugging Face folder, open_clip weights, or hub:owner/name
    #[arg(long, value_name = "PATH")]
    pub model: String,
    /// The name of open_clip's architecture, where a single file does not tell it
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
    /// Also list the score of every pair
    #[arg(long)]
    pub per_pair: bool,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceName,
    /// Print JSON, as deme compare reads it
    #[arg(long)]
    pub json: bool,
    /// Say nothing but the result and errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// Arguments of `deme compare`.
#[derive(Debug, Args)]
pub struct CompareArguments {
    /// Measurements: what --json printed, or a run's metrics.json
    pub a: PathBuf,
    /// Others
    pub b: PathBuf,
    /// Print numbers side by side that were made differently
    #[arg(long)]
    pub force: bool,
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
    fn samplers_are_called_as_in_recipes() {
        for name in SamplerName::value_variants() {
            let value = name.to_possible_value().expect("no sampler is hidden");
            assert_eq!(value.get_name(), name.kind().name());
        }
        assert_eq!(SamplerName::value_variants().len(), SamplerKind::ALL.len());
    }

    #[test]
    fn parts_cover_the_whole_once() {
        for (count, of) in [(10, 3), (2, 4), (7, 7), (1000, 6)] {
            let parts = (1..=of).map(|number| Part { number, of }.range(count));
            assert_eq!(parts.flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
        assert_eq!(parse_part("2/4"), Ok(Part { number: 2, of: 4 }));
        for wrong in ["", "2", "0/4", "5/4", "a/b", "1/0", "-1/4"] {
            assert!(parse_part(wrong).is_err(), "{wrong}");
        }
    }

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
