//! The single file of the original code, made here from diffusers' names by a table of its own.

use super::device;
use super::pipeline::{hashes, tiny_configs, tiny_pipeline, vae};
use deme_diffusion::text_to_image::single_file::{diffusers_parts, load};
use deme_diffusion::{CheckpointError, TextToImagePipeline};
use deme_merge::{StateDict, StoredTensor};
use deme_nn::to_state_dict;
use std::path::{Path, PathBuf};

/// The tiny UNet's modules: diffusers' name, the original's. Written down by hand for two blocks of one layer.
const UNET: &str = "
    time_embedding.linear_1                     time_embed.0
    time_embedding.linear_2                     time_embed.2
    conv_in                                     input_blocks.0.0
    down_blocks.0.resnets.0                     input_blocks.1.0
    down_blocks.0.downsamplers.0.conv           input_blocks.2.0.op
    down_blocks.1.resnets.0                     input_blocks.3.0
    down_blocks.1.attentions.0                  input_blocks.3.1
    mid_block.resnets.0                         middle_block.0
    mid_block.attentions.0                      middle_block.1
    mid_block.resnets.1                         middle_block.2
    up_blocks.0.resnets.0                       output_blocks.0.0
    up_blocks.0.attentions.0                    output_blocks.0.1
    up_blocks.0.resnets.1                       output_blocks.1.0
    up_blocks.0.attentions.1                    output_blocks.1.1
    up_blocks.0.upsamplers.0.conv               output_blocks.1.2.conv
    up_blocks.1.resnets.0                       output_blocks.2.0
    up_blocks.1.resnets.1                       output_blocks.3.0
    conv_norm_out                               out.0
    conv_out                                    out.2
";

const UNET_RESNET: &str = "
    norm1           in_layers.0
    conv1           in_layers.2
    time_emb_proj   emb_layers.1
    norm2           out_layers.0
    conv2           out_layers.3
    conv_shortcut   skip_connection
";

const VAE: &str = "
    encoder.down_blocks.0.resnets.0              encoder.down.0.block.0
    encoder.down_blocks.0.downsamplers.0.conv    encoder.down.0.downsample.conv
    encoder.down_blocks.1.resnets.0              encoder.down.1.block.0
    encoder.mid_block.resnets.0                  encoder.mid.block_1
    encoder.mid_block.attentions.0               encoder.mid.attn_1
    encoder.mid_block.resnets.1                  encoder.mid.block_2
    encoder.conv_norm_out                        encoder.norm_out
    decoder.mid_block.resnets.0                  decoder.mid.block_1
    decoder.mid_block.attentions.0               decoder.mid.attn_1
    decoder.mid_block.resnets.1                  decoder.mid.block_2
    decoder.up_blocks.0.resnets.0                decoder.up.1.block.0
    decoder.up_blocks.0.resnets.1                decoder.up.1.block.1
    decoder.up_blocks.0.upsamplers.0.conv        decoder.up.1.upsample.conv
    decoder.up_blocks.1.resnets.0                decoder.up.0.block.0
    decoder.up_blocks.1.resnets.1                decoder.up.0.block.1
    decoder.conv_norm_out                        decoder.norm_out
";

const VAE_INSIDE: &str = "
    conv_shortcut   nin_shortcut
    group_norm      norm
    to_q            q
    to_k            k
    to_v            v
    to_out.0        proj_out
";

/// The name with the first row's text that it begins with (or ends with, before `.weight` or `.bias`) replaced.
fn replaced(name: &str, table: &str, matches: fn(&str, &str) -> bool) -> String {
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let mut words = row.split_whitespace();
        let (from, to) = (words.next().unwrap(), words.next().unwrap());
        if matches(name, from) {
            return name.replacen(from, to, 1);
        }
    }
    name.to_owned()
}

fn begins(name: &str, module: &str) -> bool {
    name.starts_with(&format!("{module}."))
}

fn has_module(name: &str, module: &str) -> bool {
    name.contains(&format!(".{module}."))
}

fn original(pipeline: &TextToImagePipeline) -> StateDict {
    let mut state = StateDict::new();
    for (name, tensor) in to_state_dict(&pipeline.unet).iter() {
        let mut name = name.to_owned();
        if name.contains(".resnets.") {
            name = replaced(&name, UNET_RESNET, has_module);
        }
        let name = replaced(&name, UNET, begins);
        state.insert(format!("model.diffusion_model.{name}"), tensor.clone());
    }
    for (name, tensor) in to_state_dict(vae(pipeline)).iter() {
        let mut tensor = tensor.clone();
        if name.contains(".attentions.") && tensor.shape().len() == 2 {
            let shape = [tensor.shape(), &[1, 1]].concat();
            tensor = tensor.reshaped(shape).unwrap();
        }
        let name = replaced(&replaced(name, VAE_INSIDE, has_module), VAE, begins);
        state.insert(format!("first_stage_model.{name}"), tensor);
    }
    for (name, tensor) in to_state_dict(&pipeline.text_encoder).iter() {
        state.insert(format!("cond_stage_model.transformer.{name}"), tensor.clone());
    }
    let counter = StoredTensor::new(deme_merge::Dtype::I64, vec![1, 8], vec![0; 64]).unwrap();
    let position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids";
    state.insert(position_ids.into(), counter);
    let table = StoredTensor::from_f32(vec![2], vec![0.1, 0.2]);
    state.insert("betas".into(), table.clone());
    state.insert("model_ema.decay".into(), table);
    state
}

fn written(state: &StateDict) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sd.safetensors");
    state.save(&path).unwrap();
    (folder, path)
}

fn load_tiny(path: &Path) -> Result<TextToImagePipeline, CheckpointError> {
    load(path, &tiny_configs(), &device())
}

#[test]
fn a_model_in_the_original_layout_is_the_model_in_diffusers() {
    let pipeline = tiny_pipeline(3);
    let state = original(&pipeline);
    // A few names as the published files have them.
    for name in [
        "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.1.2.conv.bias",
        "model.diffusion_model.input_blocks.2.0.op.weight",
        "model.diffusion_model.middle_block.0.emb_layers.1.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.bias",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    ] {
        assert!(state.get(name).is_some(), "{name}");
    }
    let (_folder, path) = written(&state);
    let loaded = load_tiny(&path).unwrap();
    assert_eq!(hashes(&loaded), hashes(&pipeline));
    assert_eq!(loaded.tokenizer.pad(), 49407);
    assert_eq!(loaded.scheduler, tiny_configs().scheduler);
    let configs = tiny_configs();
    let parts = diffusers_parts(&state, &configs.unet, &configs.vae).unwrap();
    assert_eq!(parts.left_out, ["betas", "model_ema.decay"]);
}

#[test]
fn what_is_missing_or_too_much_is_listed_under_diffusers_names() {
    let mut state = original(&tiny_pipeline(3));
    state.remove("model.diffusion_model.out.2.bias");
    let extra = StoredTensor::from_f32(vec![1], vec![0.0]);
    state.insert("model.diffusion_model.input_blocks.9.0.op.bias".into(), extra);
    let (_folder, path) = written(&state);
    let error = load_tiny(&path).unwrap_err();
    assert!(matches!(&error, CheckpointError::Fit { folder, .. } if *folder == path), "{error}");
    let text = error.to_string();
    assert!(text.contains("conv_out.bias") && text.contains("input_blocks.9.0.op.bias"), "{text}");
}

#[test]
fn files_of_other_models_are_refused_by_name() {
    let without = |prefix: &str| -> StateDict {
        let state = original(&tiny_pipeline(3));
        let kept = state.iter().filter(|(name, _)| !name.starts_with(prefix));
        kept.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
    };
    let with = |name: &str| {
        let mut state = without("cond_stage_model.");
        state.insert(name.to_owned(), StoredTensor::from_f32(vec![1], vec![0.0]));
        state
    };
    for (state, named) in [
        (with("conditioner.embedders.0.transformer.text_model.x"), "Stable Diffusion XL"),
        (with("cond_stage_model.model.positional_embedding"), "Stable Diffusion 2"),
        (
            with("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
            "Stable Diffusion 3",
        ),
        (without("model."), "no UNet"),
        (without("first_stage_model."), "no autoencoder"),
        (without("cond_stage_model."), "no text encoder"),
    ] {
        let (_folder, path) = written(&state);
        let error = load_tiny(&path).unwrap_err();
        assert!(matches!(&error, CheckpointError::SingleFile { path: p, .. } if *p == path));
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_pipeline_given_as_a_file_is_read_as_one() {
    // Its shapes are not those of Stable Diffusion 1, which a file that is given alone must have.
    let (_folder, path) = written(&original(&tiny_pipeline(3)));
    let error = TextToImagePipeline::load(path.to_str().unwrap(), &device()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::TextEncoder { folder: Some(f), .. } if *f == path),
        "{error}"
    );
}
