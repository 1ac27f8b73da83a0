//! What the tests of the whole program share: a tiny recipe and ways to run it.
#![allow(dead_code)]

use burn::tensor::Device;
use deme_clip::{
    CaptionCleaning, CaptionTokenizer, Clip, ClipConfig, ClipModel, ClipPreprocessor,
    ClipTextConfig, ClipTextModel,
};
use deme_diffusion::{
    AutoencoderKl, AutoencoderKlConfig, PromptTokenizer, SchedulerConfig, TextToImagePipeline,
    UNet2DConditionConfig, UNet2DConditionModel,
};
use deme_nn::Init;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The whole pipeline in seconds.
pub const TINY_RECIPE: &str = r#"
name = "tiny"

[data]
kind = "shapes"
count = 64

[preparation]
resolution = 8

[split]
search = 8
report = 12

[pretrained]
from = "scratch"

[pretrained.unet]
sample_size = 8
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
attention_head_dim = 8

[pretrained.scheduler]
num_train_timesteps = 100

[pretrained.training]
iterations = 24
batch_size = 4
gradient_accumulation = 1
learning_rate = 1e-3
consistency_weight = 0.0
projection = "none"
checkpoint_every = 3
log_every = 4

[decouple]
ranges = 2

[decouple.finetune]
iterations = 12
batch_size = 4
gradient_accumulation = 2
learning_rate = 1e-3
projection = "folded"
checkpoint_every = 3
log_every = 4

[merge]
objective = { kind = "frechet", images = 4, steps = 2 }
search = { strategy = "grid", values = [0.0, 0.5, 1.0] }

[sampling]
sampler = { kind = "ddim", steps = 4 }
images = 12
batch_size = 5

[evaluation]
loss_images = 16

[evaluation.tiny_clip]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
projection_dim = 8
steps = 12
warmup_steps = 2
batch_size = 8
checkpoint_every = 4
"#;

/// What makes the tiny recipe text to image, from scratch.
pub const TINY_TEXT_TO_IMAGE: &str = r#"
[pretrained.conditional_unet]
sample_size = 8
in_channels = 3
out_channels = 3
down_block_types = ["DownBlock2D", "CrossAttnDownBlock2D"]
mid_block_type = "UNetMidBlock2DCrossAttn"
up_block_types = ["CrossAttnUpBlock2D", "UpBlock2D"]
block_out_channels = [8, 16]
layers_per_block = 1
norm_num_groups = 4
attention_head_dim = 2
cross_attention_dim = 16
"#;

/// Writes the tiny recipe as text to image, from scratch.
pub fn tiny_text_to_image_recipe(folder: &Path) -> PathBuf {
    let path = folder.join("tiny-text.toml");
    let from = TINY_RECIPE.find("[pretrained.unet]").unwrap();
    let to = TINY_RECIPE.find("[pretrained.scheduler]").unwrap();
    let text = [
        &TINY_RECIPE[..from],
        "task = \"text-to-image\"\n",
        TINY_TEXT_TO_IMAGE,
        &TINY_RECIPE[to..],
    ];
    std::fs::write(&path, text.concat()).unwrap();
    path
}

/// Writes the folder of a text-to-image model with random weights that works on latents of half the side.
pub fn tiny_text_to_image_model(folder: &Path) {
    let device = Device::flex();
    let mut init = Init::new(5, &device);
    let unet: UNet2DConditionConfig = serde_json::from_str(
        r#"{
            "sample_size": 4, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
            "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2,
            "cross_attention_dim": 6,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]
        }"#,
    )
    .unwrap();
    let vae = AutoencoderKlConfig::from_json(
        r#"{"block_out_channels": [4, 8], "norm_num_groups": 2, "sample_size": 8,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#,
    )
    .unwrap();
    let text_encoder = ClipTextConfig {
        hidden_size: 6,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 8,
        ..ClipTextConfig::default()
    };
    let pipeline = TextToImagePipeline {
        unet: UNet2DConditionModel::new(&unet, &mut init).unwrap(),
        vae: Some(AutoencoderKl::new(&vae, &mut init).unwrap()),
        text_encoder: ClipTextModel::new(&text_encoder, &mut init).unwrap(),
        tokenizer: PromptTokenizer::published(8).unwrap(),
        scheduler: SchedulerConfig::default(),
    };
    pipeline.save(folder).unwrap();
}

/// A CLIP of next to nothing, with random weights.
pub fn small_clip(seed: u64) -> Clip {
    let mut config = ClipConfig { projection_dim: 6, ..ClipConfig::default() };
    config.text_config.hidden_size = 8;
    config.text_config.intermediate_size = 16;
    config.text_config.num_attention_heads = 2;
    config.text_config.num_hidden_layers = 1;
    config.vision_config.hidden_size = 8;
    config.vision_config.intermediate_size = 16;
    config.vision_config.num_attention_heads = 2;
    config.vision_config.num_hidden_layers = 1;
    config.vision_config.image_size = 16;
    config.vision_config.patch_size = 8;
    let model = ClipModel::new(&config, &mut Init::new(seed, &Device::flex())).unwrap();
    let tokenizer = CaptionTokenizer::published(CaptionCleaning::HuggingFace, 77).unwrap();
    Clip { model, preprocessor: ClipPreprocessor::openai(16), tokenizer: Some(tokenizer) }
}

/// The folder of the reference numbers.
pub fn fixtures() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default, PathBuf::from)
}

/// The program under test.
pub fn deme() -> Command {
    Command::new(env!("CARGO_BIN_EXE_deme"))
}

/// Writes the tiny recipe into a folder.
pub fn tiny_recipe(folder: &Path) -> PathBuf {
    let path = folder.join("tiny.toml");
    std::fs::write(&path, TINY_RECIPE).unwrap();
    path
}

/// `deme run` of the tiny recipe with overrides.
pub fn run_tiny(recipe: &Path, out: &Path, overrides: &[&str]) -> Command {
    let mut command = deme();
    command.arg("run").arg(recipe).arg("--out").arg(out);
    for entry in overrides {
        command.arg("--set").arg(entry);
    }
    command
}

/// Runs to the end and expects success.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs to the end, expects this exit code, and returns standard error with line breaks as spaces.
pub fn fail_with(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    // miette wraps lines and draws a margin; a message is looked for without both.
    stderr.replace(['│', '\n'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every file below a folder, relative and sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The bytes of all models, pictures and numbers of a finished run, by relative path. The report's own
/// files say which command made them and are left out, and how long a search's evaluations took.
pub fn results(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let is_result = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        (name.ends_with(".safetensors") || name.ends_with(".png") || name.ends_with(".json"))
            && name != "provenance.json"
            && path.components().count() > 1
    };
    let bytes_of = |path: PathBuf| {
        let bytes = std::fs::read(run.join(&path)).unwrap();
        let timed = path.file_name().is_some_and(|name| name == "search.json");
        (path, if timed { without_seconds(&bytes) } else { bytes })
    };
    files(run).into_iter().filter(is_result).map(bytes_of).collect()
}

/// A `search.json` without how long its evaluations took.
pub fn without_seconds(search: &[u8]) -> Vec<u8> {
    let mut found: serde_json::Value = serde_json::from_slice(search).unwrap();
    for evaluation in found["search"]["evaluations"].as_array_mut().unwrap() {
        let taken = evaluation.as_object_mut().unwrap().remove("seconds");
        assert!(taken.is_some(), "{evaluation}");
    }
    serde_json::to_vec(&found).unwrap()
}
