//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Override a key of the recipe, as in decouple.ranges=2; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
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
    /// The pretrained model: a file of tensors or a diffusers folder
    #[arg(long)]
    pub base: PathBuf,
    /// An expert finetuned from it; once per expert
    #[arg(long = "expert", value_name = "PATH", required = true)]
    pub experts: Vec<PathBuf>,
    /// One weight per expert [default: 1/N each]
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_name = "W,W,..")]
    pub weights: Option<Vec<f64>>,
    /// Where the merged model goes: a file or folder like the base
    #[arg(long)]
    pub out: PathBuf,
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
