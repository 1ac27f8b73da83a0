//! All parts together: diffusers' image of six guided DDIM steps.

use super::fixtures::{read, sd_tiny};
use super::{assert_close, device, integers, tensor};
use burn::tensor::Tensor;
use deme_clip::ClipTextModel;
use deme_diffusion::text_to_image::SingleFileConfigs;
use deme_diffusion::{
    AutoencoderKl, AutoencoderKlConfig, Condition, Denoiser, GuidanceConfig, Guided, SamplerConfig,
    SamplerKind, UNet2DConditionConfig, UNet2DConditionModel,
};
use deme_merge::StateDict;
use deme_nn::{Init, load_state_dict};

/// Row 0 of the ids is the prompt, row 1 the empty one; the schedule is Stable Diffusion's.
#[test]
fn six_ddim_steps_at_guidance_7_5_give_diffusers_image() {
    let io = read(&sd_tiny(), "io.safetensors");
    let of = |name: &str| io.get(name).unwrap();
    let text =
        |part: &str| std::fs::read_to_string(sd_tiny().join(part).join("config.json")).unwrap();
    let weights = |part: &str| StateDict::load(&sd_tiny().join(part)).unwrap();
    let config = UNet2DConditionConfig::from_json(&text("unet")).unwrap();
    let unet = UNet2DConditionModel::new(&config, &mut Init::zeros(&device())).unwrap();
    let unet = load_state_dict(unet, &weights("unet")).unwrap();
    let config = AutoencoderKlConfig::from_json(&text("vae")).unwrap();
    let vae = AutoencoderKl::new(&config, &mut Init::zeros(&device())).unwrap();
    let vae = load_state_dict(vae, &weights("vae")).unwrap();
    let text_encoder = ClipTextModel::load(&sd_tiny().join("text_encoder"), &device()).unwrap();

    let ids: Vec<u32> = integers(of("input_ids")).into_iter().map(|id| id as u32).collect();
    let length = of("input_ids").shape()[1];
    let ids: Vec<Vec<u32>> = ids.chunks(length).map(<[u32]>::to_vec).collect();
    let states = text_encoder.hidden_states(&ids, 0).unwrap();
    let guidance = GuidanceConfig { scale: 7.5, rescale: 0.0 };
    let (prompt, negative) = (states.part(&(0..1)), states.part(&(1..2)));
    let guided = Guided::new(&unet, guidance, prompt, Some(negative)).unwrap();

    let sampler = SamplerConfig { kind: SamplerKind::Ddim, steps: 6, ..SamplerConfig::default() };
    let mut method = sampler.method(&SingleFileConfigs::default().scheduler).unwrap();
    let mut x: Tensor<4> = tensor::<4>(of("latents")).narrow(0, 0, 1);
    for (index, t) in method.timesteps().to_vec().into_iter().enumerate() {
        let eps = guided.predict(x.clone(), &[t as usize]);
        x = method.step(index, x, eps, &mut || panic!("without eta there is no noise"));
    }
    let image = vae.decode(vae.unscaled(x));
    let image_unit = (image * 0.5 + 0.5).clamp(0.0, 1.0);
    assert_close(image_unit, of("cfg75_ddim6_image"), 1e-3, "image");
}
