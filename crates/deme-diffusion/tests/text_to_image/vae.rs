//! diffusers' `AutoencoderKL` on the same weights, its config, tiles.

use super::fixtures::{read, sd_more, sd_tiny};
use super::{assert_close, device, distance, tensor, values};
use burn::tensor::Tensor;
use deme_diffusion::{AutoencoderKl, AutoencoderKlConfig, LatentDistribution, ModelConfigError};
use deme_merge::StateDict;
use deme_nn::{Init, load_state_dict, parameter_shapes};
use std::path::Path;

fn vae(folder: &Path) -> AutoencoderKl {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = AutoencoderKlConfig::from_json(&text).unwrap();
    let model = AutoencoderKl::new(&config, &mut Init::new(0, &device())).unwrap();
    load_state_dict(
        model,
        &StateDict::load(&folder.join("diffusion_pytorch_model.safetensors")).unwrap(),
    )
    .unwrap()
}

fn small_config() -> AutoencoderKlConfig {
    AutoencoderKlConfig::from_json(
        r#"{"block_out_channels": [4, 8], "norm_num_groups": 2, "sample_size": 8,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#,
    )
    .unwrap()
}

fn small(config: &AutoencoderKlConfig) -> AutoencoderKl {
    AutoencoderKl::new(config, &mut Init::new(1, &device())).unwrap()
}

fn noise(shape: [usize; 4]) -> Tensor<4> {
    Init::new(2, &device()).normal(shape, 1.0)
}

#[test]
fn the_tiny_stable_diffusions_autoencoder_agrees() {
    let io = read(&sd_tiny(), "io.safetensors");
    let of = |name: &str| io.get(name).unwrap();
    let vae = vae(&sd_tiny().join("vae"));
    let LatentDistribution { mean, log_variance } = vae.encode(tensor(of("image")));
    assert_close(mean, of("vae_mean"), 1e-4, "mean");
    assert_close(log_variance, of("vae_logvar"), 1e-4, "log-variance");
    // The reference decodes the first of the latents as they are.
    let latents = tensor::<4>(of("latents")).narrow(0, 0, 1);
    assert_close(vae.decode(latents), of("vae_decoded"), 1e-4, "decoded");
}

#[test]
fn whole_and_in_tiles_as_diffusers_computes_them() {
    let Some(folder) = sd_more("vae") else { return };
    let io = read(&folder, "io.safetensors");
    let of = |name: &str| io.get(name).unwrap();
    let vae = vae(&folder);
    let (image, latents) = (tensor::<4>(of("image")), tensor::<4>(of("latents")));
    let LatentDistribution { mean, log_variance } = vae.encode(image.clone());
    assert_close(mean, of("mean"), 1e-4, "mean");
    assert_close(log_variance, of("log_variance"), 1e-4, "log-variance");
    assert_close(vae.decode(latents.clone()), of("decoded"), 1e-4, "decoded");
    let LatentDistribution { mean, log_variance } = vae.tiled_encode(image);
    assert_close(mean, of("tiled_mean"), 1e-4, "mean of tiles");
    assert_close(log_variance, of("tiled_log_variance"), 1e-4, "log-variance of tiles");
    assert_close(vae.tiled_decode(latents), of("tiled_decoded"), 1e-4, "decoded tiles");
}

#[test]
fn an_image_in_a_batch_gives_the_bytes_it_gives_alone() {
    let vae = small(&small_config());
    let latents = noise([3, 4, 6, 5]);
    let together = values(vae.decode(latents.clone()));
    let alone = |i| values(vae.decode(latents.clone().narrow(0, i, 1)));
    assert_eq!(together, (0..3).flat_map(alone).collect::<Vec<f32>>());
    let images = noise([2, 3, 12, 10]);
    let together = values(vae.encode(images.clone()).mean);
    let alone = |i| values(vae.encode(images.clone().narrow(0, i, 1)).mean);
    assert_eq!(together, (0..2).flat_map(alone).collect::<Vec<f32>>());
}

#[test]
fn what_fits_into_one_tile_is_exact() {
    let vae = small(&small_config());
    let (image, latents) = (noise([1, 3, 8, 6]), noise([1, 4, 4, 3]));
    assert_eq!(values(vae.tiled_encode(image.clone()).mean), values(vae.encode(image).mean));
    assert_eq!(values(vae.tiled_decode(latents.clone())), values(vae.decode(latents)));
}

#[test]
fn samples_and_scaling_are_what_they_say() {
    let mean = Tensor::<4>::from_floats([[[[1.0, -2.0]]]], &device());
    let log_variance = Tensor::from_floats([[[[0.0, 4f32.ln()]]]], &device());
    let distribution = LatentDistribution { mean, log_variance };
    let sampled = distribution.sample(Tensor::from_floats([[[[0.5, -1.0]]]], &device()));
    assert!(distance(&values(sampled), &[1.5, -4.0]) < 1e-6);

    let vae = small(&AutoencoderKlConfig { scaling_factor: 0.25, ..small_config() });
    let latents = noise([1, 4, 2, 2]);
    let scaled = vae.scaled(latents.clone());
    assert!(distance(&values(scaled.clone()), &values(latents.clone() * 0.25)) < 1e-7);
    assert!(distance(&values(vae.unscaled(scaled)), &values(latents)) < 1e-6);
}

#[test]
fn log_variances_are_clamped() {
    let config = AutoencoderKlConfig { use_quant_conv: false, ..small_config() };
    let shake = |name: &str, tensor: Tensor<1>| match name {
        "encoder.conv_out.weight" => tensor * 1e5,
        _ => tensor,
    };
    let vae = deme_nn::map_parameters(small(&config), &mut |name, tensor| shake(name, tensor));
    let log_variance = values(vae.encode(noise([1, 3, 8, 8])).log_variance);
    assert!(log_variance.contains(&-30.0) && log_variance.contains(&20.0), "{log_variance:?}");
    assert!(log_variance.iter().all(|v| (-30.0..=20.0).contains(v)));
}

#[test]
#[should_panic(expected = "must be multiples of 2")]
fn an_image_that_does_not_halve_is_our_bug() {
    small(&small_config()).encode(noise([1, 3, 8, 7]));
}

#[test]
fn optional_parts_are_there_when_the_config_says_so() {
    let names = |config: &AutoencoderKlConfig| {
        let names = parameter_shapes(&small(config)).into_iter().map(|p| p.name);
        names.collect::<Vec<String>>()
    };
    let all = names(&small_config());
    let mut config = small_config();
    (config.use_quant_conv, config.use_post_quant_conv) = (false, false);
    config.mid_block_add_attention = false;
    let fewer = names(&config);
    let gone: Vec<&String> = all.iter().filter(|name| !fewer.contains(name)).collect();
    assert!(gone.iter().all(|name| name.contains("quant_conv") || name.contains("attentions")));
    assert_eq!(gone.len(), 2 * 10 + 4);
    let output = small(&config).decode(noise([1, 4, 2, 2]));
    assert_eq!(output.dims(), [1, 3, 4, 4]);
}

#[test]
fn stable_diffusions_config_is_read_and_configs_are_written_back() {
    let sd14 = AutoencoderKlConfig::from_json(
        r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.2.2", "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D",
            "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"], "in_channels": 3,
            "latent_channels": 4, "layers_per_block": 2, "out_channels": 3, "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
            "UpDecoderBlock2D"]}"#,
    );
    let sd14 = sd14.unwrap();
    assert_eq!(sd14, AutoencoderKlConfig::stable_diffusion_1());
    assert_eq!(sd14.latent_shape([3, 512, 640]).unwrap(), [4, 64, 80]);
    let text = std::fs::read_to_string(sd_tiny().join("vae/config.json")).unwrap();
    let tiny = AutoencoderKlConfig::from_json(&text).unwrap();
    let written = tiny.to_json();
    assert_eq!(AutoencoderKlConfig::from_json(&written).unwrap(), tiny);
    let keys = |text: &str| {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut keys: Vec<String> = json.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&written), keys(&text));
}

#[test]
fn what_makes_no_autoencoder_is_refused_by_name() {
    let error = |json: &str| AutoencoderKlConfig::from_json(json).unwrap_err();
    assert!(matches!(error("3"), ModelConfigError::Json { .. }));
    let class = error(r#"{"_class_name": "VQModel"}"#);
    assert!(matches!(class, ModelConfigError::Class { found, .. } if found == "VQModel"));
    for (field, value) in [("decoder", "1"), ("down_block_types", r#"["AttnDownEncoderBlock2D"]"#)]
    {
        let error = error(&format!(r#"{{"{field}": {value}}}"#));
        assert!(
            matches!(&error, ModelConfigError::Field { field: f, .. } if f == field),
            "{error}"
        );
    }
    for (field, value) in [
        ("shift_factor", "0.1"),
        ("latents_mean", "[0.0]"),
        ("latents_std", "[1.0]"),
        ("act_fn", r#""relu""#),
    ] {
        let error = error(&format!(r#"{{"{field}": {value}}}"#));
        let named = matches!(&error, ModelConfigError::Unsupported { field: f, .. } if *f == field);
        assert!(named && error.to_string().contains("VAE"), "{error}");
    }
    for (field, json) in [
        ("block_out_channels", r#"{"block_out_channels": []}"#),
        ("down_block_types", r#"{"block_out_channels": [32, 32]}"#),
        ("up_block_types", r#"{"up_block_types": []}"#),
        ("latent_channels", r#"{"latent_channels": 0}"#),
        ("sample_size", r#"{"sample_size": 0}"#),
        ("norm_num_groups", r#"{"norm_num_groups": 5}"#),
        ("scaling_factor", r#"{"scaling_factor": 0}"#),
    ] {
        let error = error(json);
        assert!(
            matches!(&error, ModelConfigError::Invalid { field: f, .. } if *f == field),
            "{json}: {error}"
        );
    }
    let config = small_config();
    for bad in [[1, 8, 8], [3, 7, 8], [3, 0, 8]] {
        let error = config.latent_shape(bad).unwrap_err();
        assert!(matches!(error, ModelConfigError::ImageShape { found, .. } if found == bad));
    }
}
