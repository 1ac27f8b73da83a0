//! The conditional UNet's `config.json` in and out, and what is refused.

use super::fixtures::sd_tiny;
use super::{batch, model, small_config, values};
use deme_diffusion::{ModelConfigError, PerBlock, UNet2DConditionConfig};

fn error(json: &str) -> ModelConfigError {
    UNet2DConditionConfig::from_json(json).unwrap_err()
}

#[test]
fn absent_fields_have_the_defaults_of_diffusers_and_stable_diffusion_1_is_two_fields_away() {
    let config = UNet2DConditionConfig::from_json("{}").unwrap();
    assert_eq!(config, UNet2DConditionConfig::default());
    assert_eq!(config.image_shape(), None);
    // As the folder of Stable Diffusion 1.4 has it, of diffusers 0.2.
    let sd14 = UNet2DConditionConfig::from_json(
        r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "act_fn": "silu",
            "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": false, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
            "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
            "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
            "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D"]}"#,
    );
    let sd14 = sd14.unwrap();
    assert_eq!(sd14, UNet2DConditionConfig::stable_diffusion_1());
    assert_eq!(sd14.image_shape(), Some([4, 64, 64]));
}

#[test]
fn what_is_written_is_read_back_the_same_and_holds_diffusers_fields_alone() {
    let text = std::fs::read_to_string(sd_tiny().join("unet/config.json")).unwrap();
    let tiny = UNet2DConditionConfig::from_json(&text).unwrap();
    let mut uneven = small_config();
    uneven.attention_head_dim = PerBlock::Each(vec![1, 4]);
    uneven.layers_per_block = PerBlock::Each(vec![2, 1]);
    for config in [tiny, uneven] {
        let written = config.to_json();
        assert_eq!(UNet2DConditionConfig::from_json(&written).unwrap(), config);
        let keys = |text: &str| -> Vec<String> {
            let json: serde_json::Value = serde_json::from_str(text).unwrap();
            let mut keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&written), keys(&text));
    }
}

#[test]
fn no_json_another_class_and_unknown_fields_are_refused() {
    assert!(matches!(error("[]"), ModelConfigError::Json { .. }));
    let class = error(r#"{"_class_name": "UNet2DModel"}"#);
    assert!(matches!(&class, ModelConfigError::Class { found, expected } if found == "UNet2DModel"
            && *expected == "UNet2DConditionModel"));
    for (field, value) in [
        ("blocks_out_channels", "[4]"),
        ("layers_per_block", "-1"),
        ("norm_num_groups", "null"),
        ("transformer_layers_per_block", "[[1, 2]]"),
        ("down_block_types", r#"["AttnDownBlock2D"]"#),
        ("mid_block_type", r#""UNetMidBlock2DSimpleCrossAttn""#),
    ] {
        let error = error(&format!(r#"{{"in_channels": 1, "{field}": {value}}}"#));
        assert!(
            matches!(&error, ModelConfigError::Field { field: f, .. } if f == field),
            "{error}"
        );
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name_and_value_and_passes_when_it_is_off() {
    for (field, value, off) in [
        ("addition_embed_type", r#""text_time""#, "null"),
        ("addition_embed_type_num_heads", "32", "64"),
        ("addition_time_embed_dim", "256", "null"),
        ("attention_type", r#""gated""#, r#""default""#),
        ("class_embed_type", r#""timestep""#, "null"),
        ("class_embeddings_concat", "true", "false"),
        ("conv_in_kernel", "5", "3"),
        ("conv_out_kernel", "1", "3"),
        ("cross_attention_norm", r#""layer_norm""#, "null"),
        ("dual_cross_attention", "true", "false"),
        ("encoder_hid_dim", "512", "null"),
        ("encoder_hid_dim_type", r#""text_proj""#, "null"),
        ("mid_block_only_cross_attention", "true", "false"),
        ("num_attention_heads", "8", "null"),
        ("num_class_embeds", "10", "null"),
        ("only_cross_attention", "true", "false"),
        ("only_cross_attention", "[false,true,false,false]", "[false,false,false,false]"),
        ("projection_class_embeddings_input_dim", "2816", "null"),
        ("resnet_out_scale_factor", "2.0", "1.0"),
        ("resnet_skip_time_act", "true", "false"),
        ("reverse_transformer_layers_per_block", "[1]", "null"),
        ("time_cond_proj_dim", "256", "null"),
        ("time_embedding_act_fn", r#""gelu""#, "null"),
        ("time_embedding_type", r#""fourier""#, r#""positional""#),
        ("timestep_post_act", r#""silu""#, "null"),
        ("downsample_padding", "2", "0"),
        ("act_fn", r#""gelu""#, r#""swish""#),
    ] {
        let error = error(&format!(r#"{{"{field}": {value}}}"#));
        assert!(
            matches!(&error, ModelConfigError::Unsupported { field: f, .. } if *f == field),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(field) && text.contains(value.trim_matches('"')), "{text}");
        UNet2DConditionConfig::from_json(&format!(r#"{{"{field}": {off}}}"#)).unwrap();
    }
}

#[test]
fn values_that_make_no_network_are_named() {
    for (field, json) in [
        ("block_out_channels", r#"{"block_out_channels": []}"#),
        ("block_out_channels", r#"{"block_out_channels": [0, 32, 32, 32]}"#),
        ("down_block_types", r#"{"down_block_types": ["DownBlock2D"]}"#),
        ("up_block_types", r#"{"up_block_types": ["UpBlock2D"]}"#),
        ("attention_head_dim", r#"{"attention_head_dim": [8, 8]}"#),
        ("cross_attention_dim", r#"{"cross_attention_dim": [768]}"#),
        ("layers_per_block", r#"{"layers_per_block": [2, 2]}"#),
        ("layers_per_block", r#"{"layers_per_block": [2, 2, 0, 2]}"#),
        ("transformer_layers_per_block", r#"{"transformer_layers_per_block": 0}"#),
        ("in_channels", r#"{"in_channels": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 33}"#),
        ("attention_head_dim", r#"{"attention_head_dim": 7}"#),
        ("sample_size", r#"{"sample_size": [32, 0]}"#),
        ("dropout", r#"{"dropout": 1.0}"#),
        ("norm_eps", r#"{"norm_eps": 0}"#),
        ("mid_block_scale_factor", r#"{"mid_block_scale_factor": 0}"#),
        ("freq_shift", r#"{"freq_shift": 160}"#),
    ] {
        let error = error(json);
        assert!(
            matches!(&error, ModelConfigError::Invalid { field: f, .. } if *f == field),
            "{json}: {error}"
        );
    }
    let heads = error(r#"{"attention_head_dim": 7}"#).to_string();
    assert!(heads.contains("number, not their width"), "{heads}");
}

#[test]
fn latents_that_do_not_pass_are_refused_and_others_pass() {
    let config = small_config();
    for bad in [[3, 8, 8], [1, 7, 8], [1, 8, 0]] {
        let error = config.check_image_shape(bad).unwrap_err();
        assert!(matches!(error, ModelConfigError::ImageShape { found, .. } if found == bad));
    }
    let (x, t, states) = batch(&config, 12, 0);
    let output = model(&config, 0).forward(x.narrow(2, 0, 6), &t, states);
    assert_eq!(output.dims(), [2, 2, 6, 12]);
}

#[test]
fn every_field_changes_what_it_should() {
    let base = small_config();
    let (x, t, states) = batch(&base, 8, 1);
    let output = |config: &UNet2DConditionConfig| {
        values(model(config, 5).forward(x.clone(), &t, states.clone()))
    };
    let before = output(&base);
    type Change = fn(&mut UNet2DConditionConfig);
    let changes: [(&str, Change); 9] = [
        ("center_input_sample", |c| c.center_input_sample = true),
        ("freq_shift", |c| c.freq_shift = 1.0),
        ("flip_sin_to_cos", |c| c.flip_sin_to_cos = false),
        ("mid_block_scale_factor", |c| c.mid_block_scale_factor = 2.0),
        ("downsample_padding", |c| c.downsample_padding = 0),
        ("attention_head_dim", |c| c.attention_head_dim = PerBlock::All(4)),
        ("norm_num_groups", |c| c.norm_num_groups = 4),
        ("norm_eps", |c| c.norm_eps = 0.1),
        ("transformer_layers_per_block", |c| c.transformer_layers_per_block = PerBlock::All(2)),
    ];
    for (name, change) in changes {
        let mut config = base.clone();
        change(&mut config);
        assert_ne!(output(&config), before, "{name}");
    }
    let mut config = base.clone();
    (config.act_fn, config.dropout, config.upcast_attention) = ("Swish".into(), 0.5, true);
    assert_eq!(output(&config), before, "these three change nothing");
}
