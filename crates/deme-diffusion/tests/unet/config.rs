//! `config.json` in and out, and what is refused.

use super::reference::cases;
use super::{batch, model, small_config, values};
use deme_diffusion::unet::{SampleSize, TimeScaleShift};
use deme_diffusion::{UNet2DConfig, UNetConfigError};
use deme_nn::parameter_shapes;

fn error(json: &str) -> UNetConfigError {
    UNet2DConfig::from_json(json).unwrap_err()
}

#[test]
fn absent_fields_have_the_defaults_of_diffusers() {
    let config = UNet2DConfig::from_json("{}").unwrap();
    assert_eq!(config, UNet2DConfig::default());
    assert_eq!((config.attention_head_dim, config.downsample_padding), (Some(8), 1));
    assert_eq!(config.image_shape(), None);
}

#[test]
fn null_is_not_absent() {
    let config = UNet2DConfig::from_json(r#"{"attention_head_dim": null}"#).unwrap();
    assert_eq!(config.attention_head_dim, None);
}

#[test]
fn configs_of_old_versions_and_their_notes_are_read() {
    let config = UNet2DConfig::from_json(
        r#"{"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "_name_or_path": "somewhere",
            "act_fn": "swish", "attention_head_dim": null, "block_out_channels": [8, 16], "dropout": 0.1,
            "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"], "sample_size": [8, 16],
            "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"], "norm_num_groups": 8}"#,
    )
    .unwrap();
    assert_eq!(config.sample_size, Some(SampleSize::Rectangle([8, 16])));
    assert_eq!(config.image_shape(), Some([3, 8, 16]));
    assert_eq!(config.dropout, 0.1);
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for config in cases().into_iter().map(|case| case.config).chain([small_config()]) {
        let text = config.to_json();
        assert!(!text.contains("channel_projection"), "plain configs hold diffusers' fields alone");
        assert_eq!(UNet2DConfig::from_json(&text).unwrap(), config);
    }
}

#[test]
fn text_that_is_no_object_is_refused() {
    for text in ["", "[]", "{\"a\": "] {
        assert!(matches!(error(text), UNetConfigError::Json { .. }), "{text}");
    }
}

#[test]
fn another_class_is_refused() {
    let error = error(r#"{"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}"#);
    assert!(
        matches!(&error, UNetConfigError::Class { found, .. } if found == "UNet2DConditionModel")
    );
}

#[test]
fn a_field_that_is_unknown_or_of_the_wrong_kind_is_named() {
    for (field, value) in [
        ("blocks_out_channels", "[4]"),
        ("layers_per_block", "-1"),
        ("down_block_types", r#"["SkipDownBlock2D"]"#),
        ("mid_block_type", r#""UNetMidBlock2DCrossAttn""#),
        ("resnet_time_scale_shift", r#""spatial""#),
    ] {
        let error = error(&format!(r#"{{"in_channels": 1, "{field}": {value}}}"#));
        assert!(matches!(&error, UNetConfigError::Field { field: f, .. } if f == field), "{error}");
    }
    let unknown = error(r#"{"down_block_types": ["SkipDownBlock2D"]}"#).to_string();
    assert!(unknown.contains("`AttnDownBlock2D`"), "{unknown}");
}

#[test]
fn a_value_that_is_not_implemented_is_named_with_what_is() {
    for (field, value, supported) in [
        ("time_embedding_type", r#""fourier""#, "`positional`"),
        ("downsample_type", r#""resnet""#, "`conv`"),
        ("upsample_type", r#""resnet""#, "`conv`"),
        ("downsample_padding", "2", "`0`, `1`"),
        ("act_fn", r#""gelu""#, "`silu`"),
        ("class_embed_type", r#""timestep""#, "null"),
        ("num_class_embeds", "10", "null"),
    ] {
        let error = error(&format!(r#"{{"{field}": {value}}}"#));
        assert!(
            matches!(&error, UNetConfigError::Unsupported { field: f, .. } if *f == field),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(value.trim_matches('"')) && text.contains(supported), "{text}");
    }
}

#[test]
fn values_that_make_no_network_are_named() {
    for (field, json) in [
        ("block_out_channels", r#"{"block_out_channels": [], "down_block_types": []}"#),
        ("block_out_channels", r#"{"block_out_channels": [0, 32, 32, 32]}"#),
        ("down_block_types", r#"{"down_block_types": ["DownBlock2D"]}"#),
        ("up_block_types", r#"{"up_block_types": ["UpBlock2D"]}"#),
        ("layers_per_block", r#"{"layers_per_block": 0}"#),
        ("in_channels", r#"{"in_channels": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 33}"#),
        ("attn_norm_num_groups", r#"{"attn_norm_num_groups": 5}"#),
        ("attention_head_dim", r#"{"attention_head_dim": 449}"#),
        ("attention_head_dim", r#"{"attention_head_dim": 0}"#),
        ("sample_size", r#"{"sample_size": [32, 0]}"#),
        ("dropout", r#"{"dropout": 1.0}"#),
        ("norm_eps", r#"{"norm_eps": 0}"#),
        ("mid_block_scale_factor", r#"{"mid_block_scale_factor": 0}"#),
        ("freq_shift", r#"{"freq_shift": 112}"#),
    ] {
        let error = error(json);
        assert!(
            matches!(&error, UNetConfigError::Invalid { field: f, .. } if *f == field),
            "{json}: {error}"
        );
    }
}

#[test]
fn images_that_do_not_pass_are_refused_and_others_pass() {
    let mut config = small_config();
    config.block_out_channels = vec![4, 8, 8];
    config.down_block_types.push(config.down_block_types[0]);
    config.up_block_types.push(config.up_block_types[1]);
    for padding in [0, 1] {
        config.downsample_padding = padding;
        for bad in [[3, 8, 8], [1, 6, 8], [1, 8, 7], [1, 0, 8]] {
            let error = config.check_image_shape(bad).unwrap_err();
            assert!(matches!(error, UNetConfigError::ImageShape { found, .. } if found == bad));
        }
        config.check_image_shape([1, 4, 12]).unwrap();
        let (x, t) = batch(&config, 12, 0);
        let output = model(&config, 0).forward(x.narrow(2, 0, 4), &t);
        assert_eq!(output.dims(), [2, 2, 4, 12]);
    }
}

#[test]
#[should_panic(expected = "one timestep per image")]
fn a_timestep_per_image_is_required() {
    let config = small_config();
    let (x, _) = batch(&config, 4, 0);
    model(&config, 0).forward(x, &[1]);
}

#[test]
fn every_field_changes_what_it_should() {
    let base = small_config();
    let (x, t) = batch(&base, 8, 1);
    let output = |config: &UNet2DConfig| values(model(config, 5).forward(x.clone(), &t));
    let before = output(&base);
    type Change = fn(&mut UNet2DConfig);
    let changes: [(&str, Change); 9] = [
        ("center_input_sample", |c| c.center_input_sample = true),
        ("freq_shift", |c| c.freq_shift = 1.0),
        ("flip_sin_to_cos", |c| c.flip_sin_to_cos = false),
        ("mid_block_scale_factor", |c| c.mid_block_scale_factor = 2.0),
        ("downsample_padding", |c| c.downsample_padding = 0),
        ("attention_head_dim", |c| c.attention_head_dim = None),
        ("norm_num_groups", |c| c.norm_num_groups = 4),
        ("norm_eps", |c| c.norm_eps = 0.1),
        ("attn_norm_num_groups", |c| c.attn_norm_num_groups = Some(8)),
    ];
    for (name, change) in changes {
        let mut config = base.clone();
        change(&mut config);
        assert_ne!(output(&config), before, "{name}");
    }
    let mut config = base.clone();
    (config.act_fn, config.dropout, config.num_train_timesteps) = ("Swish".into(), 0.5, Some(10));
    assert_eq!(output(&config), before, "these three change nothing");
}

#[test]
fn scale_and_shift_has_twice_the_time_channels_and_no_mid_attention_norm() {
    let mut config = small_config();
    let shapes = |config: &UNet2DConfig| {
        let parameters = parameter_shapes(&model(config, 0));
        let of = |name: &str| parameters.iter().find(|p| p.name == name).map(|p| p.shape.clone());
        let time = of("mid_block.resnets.0.time_emb_proj.weight").unwrap();
        (time, of("mid_block.attentions.0.group_norm.weight"))
    };
    assert_eq!(shapes(&config), (vec![8, 16], Some(vec![8])));
    config.resnet_time_scale_shift = TimeScaleShift::ScaleShift;
    assert_eq!(shapes(&config), (vec![16, 16], None));
    config.attn_norm_num_groups = Some(4);
    config.time_embedding_dim = Some(10);
    assert_eq!(shapes(&config), (vec![16, 10], Some(vec![8])));
    let (x, t) = batch(&config, 4, 1);
    assert!(values(model(&config, 0).forward(x, &t)).iter().all(|y| y.is_finite()));
}
