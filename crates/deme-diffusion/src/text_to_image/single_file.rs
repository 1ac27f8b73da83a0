//! The single file of the original code (CompVis, RunwayML): `sd-v1-4.ckpt`, `v1-5-pruned-emaonly.safetensors`, and
//! the many files made since in the same layout.
//!
//! Its names are those of the original modules: `model.diffusion_model.input_blocks.1.1...` is the UNet,
//! `first_stage_model.encoder.down.0...` the autoencoder, `cond_stage_model.transformer...` the text encoder. They
//! are mapped to diffusers' names by walking the configs, so that one table serves every size. Of a file that
//! holds two UNets the trained one is taken, not its moving average (`model_ema...`), as diffusers does.
//!
//! Not here: Stable Diffusion 2 and XL, whose text encoders are others.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use deme_clip::{ClipTextConfig, ClipTextModel};
use deme_merge::{StateDict, StateDictError, StoredTensor};
use deme_nn::Init;

use super::{PromptTokenizer, TextToImagePipeline};
use crate::autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig};
use crate::checkpoint::CheckpointError;
use crate::noise_schedule::BetaSchedule;
use crate::scheduler_config::{SchedulerClass, SchedulerConfig};
use crate::unet_2d_condition::{
    ConditionDownBlockType, ConditionUpBlockType, UNet2DConditionConfig, UNet2DConditionModel,
};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const TEXT_ENCODER: &str = "cond_stage_model.transformer.";

/// What a single file does not say.
#[derive(Debug, Clone)]
pub struct SingleFileConfigs {
    /// The UNet's shape.
    pub unet: UNet2DConditionConfig,
    /// The autoencoder's.
    pub vae: AutoencoderKlConfig,
    /// The text encoder's.
    pub text_encoder: ClipTextConfig,
    /// The schedule it was trained with.
    pub scheduler: SchedulerConfig,
}

impl Default for SingleFileConfigs {
    /// Stable Diffusion 1.1 to 1.5.
    fn default() -> Self {
        Self {
            unet: UNet2DConditionConfig::stable_diffusion_1(),
            vae: AutoencoderKlConfig::stable_diffusion_1(),
            text_encoder: ClipTextConfig {
                hidden_size: 768,
                intermediate_size: 3072,
                num_attention_heads: 12,
                ..ClipTextConfig::default()
            },
            scheduler: SchedulerConfig {
                class: SchedulerClass::Ddim,
                beta_schedule: BetaSchedule::ScaledLinear,
                beta_start: 0.00085,
                beta_end: 0.012,
                clip_sample: false,
                set_alpha_to_one: Some(false),
                steps_offset: 1,
                ..SchedulerConfig::default()
            },
        }
    }
}

/// The parts of a single file under diffusers' names.
#[derive(Debug, Clone)]
pub struct SingleFileParts {
    /// The UNet's weights.
    pub unet: StateDict,
    /// The autoencoder's weights.
    pub vae: StateDict,
    /// The text encoder's weights.
    pub text_encoder: StateDict,
    /// Names of tensors that belong to none of them: the moving average, the schedule's tables.
    pub left_out: Vec<String>,
}

/// Loads a pipeline from a single file; the tokenizer is the one CLIP was published with.
///
/// # Errors
/// [`CheckpointError::SingleFile`] for a file of another model, [`CheckpointError::Weights`] for one that cannot be
/// read, [`CheckpointError::Fit`] with all that is missing, unused or of another shape, under diffusers' names.
pub fn load(
    path: &Path,
    configs: &SingleFileConfigs,
    device: &Device,
) -> Result<TextToImagePipeline, CheckpointError> {
    let refused = |source| CheckpointError::Weights { folder: path.to_owned(), source };
    let state = StateDict::load(path).map_err(refused)?;
    if let Some(reason) = other_model(&state) {
        return Err(CheckpointError::SingleFile { path: path.to_owned(), reason });
    }
    let parts = diffusers_parts(&state, &configs.unet, &configs.vae).map_err(refused)?;
    let config_error = |source| CheckpointError::UNetConfig { path: path.to_owned(), source };
    let unet = UNet2DConditionModel::new(&configs.unet, &mut Init::zeros(device));
    let vae = AutoencoderKl::new(&configs.vae, &mut Init::zeros(device));
    let vae = vae.map_err(|source| CheckpointError::VaeConfig { path: path.to_owned(), source })?;
    let text_encoder =
        ClipTextModel::from_state_dict(&configs.text_encoder, parts.text_encoder, device);
    let text_encoder = text_encoder.map_err(|source| CheckpointError::TextEncoder {
        folder: Some(path.to_owned()),
        source: Box::new(source),
    })?;
    Ok(TextToImagePipeline {
        unet: filled(path, unet.map_err(config_error)?, &parts.unet)?,
        vae: Some(filled(path, vae, &parts.vae)?),
        tokenizer: PromptTokenizer::published(configs.text_encoder.max_position_embeddings)?,
        text_encoder,
        scheduler: configs.scheduler.clone(),
    })
}

fn filled<M: burn::module::Module>(
    path: &Path,
    model: M,
    state: &StateDict,
) -> Result<M, CheckpointError> {
    state
        .check_finite()
        .map_err(|source| CheckpointError::Weights { folder: path.to_owned(), source })?;
    deme_nn::load_state_dict(model, state).map_err(|source| CheckpointError::Fit {
        folder: path.to_owned(),
        source: Box::new(source),
    })
}

/// Says what a file is, when it is not Stable Diffusion 1.
fn other_model(state: &StateDict) -> Option<String> {
    let has = |prefix: &str| state.names().any(|name| name.starts_with(prefix));
    let known = [
        ("conditioner.", "Stable Diffusion XL, which has two text encoders"),
        ("cond_stage_model.model.", "Stable Diffusion 2, whose text encoder is open_clip's"),
        ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
    ];
    if let Some((_, what)) = known.into_iter().find(|(prefix, _)| has(prefix)) {
        return Some(format!("it holds {what}"));
    }
    let parts = [("UNet", UNET), ("autoencoder", VAE), ("text encoder", TEXT_ENCODER)];
    let (part, prefix) = parts.into_iter().find(|(_, prefix)| !has(prefix))?;
    Some(format!("it holds no {part}: no tensor's name begins with `{prefix}`"))
}

/// The parts of a single file under diffusers' names. A tensor of a part that has no place in the config keeps
/// its name, so that it is listed when the network is filled.
///
/// # Errors
/// [`StateDictError`] for an attention weight of the autoencoder that is no matrix.
pub fn diffusers_parts(
    state: &StateDict,
    unet: &UNet2DConditionConfig,
    vae: &AutoencoderKlConfig,
) -> Result<SingleFileParts, StateDictError> {
    let (unet_table, vae_table) = (unet_table(unet), vae_table(vae));
    let mut parts = SingleFileParts {
        unet: StateDict::new(),
        vae: StateDict::new(),
        text_encoder: StateDict::new(),
        left_out: Vec::new(),
    };
    for (name, tensor) in state.iter() {
        let tensor = tensor.clone();
        if let Some(name) = name.strip_prefix(UNET) {
            parts.unet.insert(renamed(name, &unet_table), tensor);
        } else if let Some(name) = name.strip_prefix(VAE) {
            let name = renamed(name, &vae_table);
            let tensor = if name.contains(".attentions.") { as_matrix(tensor)? } else { tensor };
            parts.vae.insert(name, tensor);
        } else if let Some(name) = name.strip_prefix(TEXT_ENCODER) {
            parts.text_encoder.insert(name.to_owned(), tensor);
        } else {
            parts.left_out.push(name.to_owned());
        }
    }
    Ok(parts)
}

/// The autoencoder's attention maps are stored as 1x1 convolutions.
fn as_matrix(tensor: StoredTensor) -> Result<StoredTensor, StateDictError> {
    match *tensor.shape() {
        [d_out, d_in, 1, 1] => tensor.reshaped(vec![d_out, d_in]),
        _ => Ok(tensor),
    }
}

/// Where a module goes, and how the modules inside it are called there.
#[derive(Debug)]
struct Place {
    to: String,
    inside: &'static [(&'static str, &'static str)],
}

type Table = BTreeMap<String, Place>;

const SAME: &[(&str, &str)] = &[];
const UNET_RESNET: &[(&str, &str)] = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
const DOWNSAMPLER: &[(&str, &str)] = &[("op", "conv")];
const VAE_RESNET: &[(&str, &str)] = &[("nin_shortcut", "conv_shortcut")];
const VAE_ATTENTION: &[(&str, &str)] = &[
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];

/// diffusers' name: that of the longest leading part in the table, and of the module inside.
fn renamed(name: &str, table: &Table) -> String {
    let ends = name.match_indices('.').map(|(end, _)| end);
    for end in ends.rev() {
        let Some(Place { to, inside }) = table.get(&name[..end]) else { continue };
        let rest = &name[end + 1..];
        let (module, parameter) = rest.rsplit_once('.').unwrap_or(("", rest));
        let module = inside.iter().find(|(from, _)| *from == module).map_or(module, |(_, to)| to);
        let separator = if module.is_empty() { "" } else { "." };
        return format!("{to}.{module}{separator}{parameter}");
    }
    name.to_owned()
}

/// The original UNet counts all its blocks through, in the order in which they run: `input_blocks.0` is the first
/// convolution, then come every residual block with its transformer, and every downsampler, one by one.
fn unet_table(config: &UNet2DConditionConfig) -> Table {
    let mut table = Table::new();
    let mut put = |from: String, to: String, inside| table.insert(from, Place { to, inside });
    for (from, to) in [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
        ("middle_block.1", "mid_block.attentions.0"),
    ] {
        put(from.into(), to.into(), SAME);
    }
    for (from, to) in [(0, 0), (2, 1)] {
        put(format!("middle_block.{from}"), format!("mid_block.resnets.{to}"), UNET_RESNET);
    }
    let blocks = config.block_out_channels.len();
    let mut number = 1;
    for i in 0..blocks {
        let attention = config.down_block_types[i] == ConditionDownBlockType::CrossAttnDownBlock2D;
        for j in 0..config.layers_per_block.at(i) {
            let (from, to) = (format!("input_blocks.{number}"), format!("down_blocks.{i}"));
            put(format!("{from}.0"), format!("{to}.resnets.{j}"), UNET_RESNET);
            if attention {
                put(format!("{from}.1"), format!("{to}.attentions.{j}"), SAME);
            }
            number += 1;
        }
        if i + 1 < blocks {
            let to = format!("down_blocks.{i}.downsamplers.0");
            put(format!("input_blocks.{number}.0"), to, DOWNSAMPLER);
            number += 1;
        }
    }
    let mut number = 0;
    for i in 0..blocks {
        let attention = config.up_block_types[i] == ConditionUpBlockType::CrossAttnUpBlock2D;
        let layers = config.layers_per_block.at(blocks - 1 - i) + 1;
        for j in 0..layers {
            let (from, to) = (format!("output_blocks.{number}"), format!("up_blocks.{i}"));
            put(format!("{from}.0"), format!("{to}.resnets.{j}"), UNET_RESNET);
            if attention {
                put(format!("{from}.1"), format!("{to}.attentions.{j}"), SAME);
            }
            // The upsampler stands in the same block as the last residual block, behind all else.
            if j + 1 == layers && i + 1 < blocks {
                let behind = if attention { 2 } else { 1 };
                put(format!("{from}.{behind}"), format!("{to}.upsamplers.0"), SAME);
            }
            number += 1;
        }
    }
    table
}

/// The original autoencoder counts the decoder's blocks from the full resolution, diffusers from the lowest.
fn vae_table(config: &AutoencoderKlConfig) -> Table {
    let mut table = Table::new();
    let mut put = |from: String, to: String, inside| table.insert(from, Place { to, inside });
    for coder in ["encoder", "decoder"] {
        put(format!("{coder}.norm_out"), format!("{coder}.conv_norm_out"), SAME);
        for (from, to) in [(1, 0), (2, 1)] {
            let from = format!("{coder}.mid.block_{from}");
            put(from, format!("{coder}.mid_block.resnets.{to}"), VAE_RESNET);
        }
        let from = format!("{coder}.mid.attn_1");
        put(from, format!("{coder}.mid_block.attentions.0"), VAE_ATTENTION);
    }
    let blocks = config.block_out_channels.len();
    for i in 0..blocks {
        let (from, to) = (format!("encoder.down.{i}"), format!("encoder.down_blocks.{i}"));
        for j in 0..config.layers_per_block {
            put(format!("{from}.block.{j}"), format!("{to}.resnets.{j}"), VAE_RESNET);
        }
        put(format!("{from}.downsample"), format!("{to}.downsamplers.0"), SAME);
        let from = format!("decoder.up.{}", blocks - 1 - i);
        let to = format!("decoder.up_blocks.{i}");
        for j in 0..=config.layers_per_block {
            put(format!("{from}.block.{j}"), format!("{to}.resnets.{j}"), VAE_RESNET);
        }
        put(format!("{from}.upsample"), format!("{to}.upsamplers.0"), SAME);
    }
    table
}
