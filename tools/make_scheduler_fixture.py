#!/usr/bin/env python3
"""Makes fixtures/schedulers_more: trajectories of diffusers' schedulers under many settings.

    python tools/make_scheduler_fixture.py fixtures/schedulers_more [SEED]

cases.json lists for each trajectory its name, the sampler, the number of steps, DDIM's eta, and the text of the
scheduler_config.json the scheduler was made from, of the sampler's own class or (by `from_config`) of another.
trajectories.safetensors holds `x0`, and of each case `NAME.timesteps`, `NAME.init_noise_sigma`, `NAME.trajectory`
(the image after each step) and, where the scheduler draws noise, `NAME.noise` in the order it was drawn.
The model is `0.3 x + 0.001 t - 0.2`; it is shown what `scale_model_input` gives.

Needs torch, diffusers and safetensors; nothing in the Rust project needs this script.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
)
from safetensors.torch import save_file

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
}
SHAPE = (2, 3, 2, 4)

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
V = dict(prediction_type="v_prediction")
X0 = dict(prediction_type="sample")
ZERO_SNR = dict(rescale_betas_zero_snr=True, **V)
SD14 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def saved(scheduler):
    """What its file holds."""
    return json.loads(scheduler.to_json_string())


def cases():
    """(name, sampler, steps, what the file holds, eta)."""

    def of(sampler):
        def case(name, steps, eta=0.0, **settings):
            return name, sampler, steps, saved(CLASSES[sampler](**settings)), eta

        return case

    pndm, dpm, euler = of("pndm"), of("dpm-solver++"), of("euler")
    ancestral, ddim, ddpm = of("euler-ancestral"), of("ddim"), of("ddpm")
    yield pndm("pndm_prk_10", 10)
    yield pndm("pndm_prk_4", 4, **SD)
    yield pndm("pndm_prk_v_linspace_7", 7, timestep_spacing="linspace", **V, **SD)
    yield pndm("pndm_prk_trailing_9", 9, timestep_spacing="trailing", set_alpha_to_one=True, **SD)
    for steps in (1, 2, 3, 7):
        yield pndm(f"pndm_plms_{steps}", steps, skip_prk_steps=True, **SD)
    yield pndm("pndm_plms_v_7", 7, skip_prk_steps=True, steps_offset=1, **V, **SD)
    yield pndm("pndm_plms_linspace_6", 6, skip_prk_steps=True, timestep_spacing="linspace", **SD)
    yield pndm(
        "pndm_plms_trailing_7",
        7,
        skip_prk_steps=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        **SD,
    )
    for order in (1, 2, 3):
        yield dpm(f"dpm_order{order}_9", 9, solver_order=order, **SD)
    yield dpm("dpm_1", 1, **SD)
    yield dpm("dpm_2", 2, **SD)
    yield dpm("dpm_3_order3", 3, solver_order=3, **SD)
    yield dpm("dpm_16", 16, solver_order=3, **SD)
    yield dpm("dpm_heun_7", 7, solver_type="heun", **SD)
    yield dpm("dpm_linear_leading_7", 7, timestep_spacing="leading", steps_offset=1)
    yield dpm("dpm_trailing_7", 7, timestep_spacing="trailing", **SD)
    yield dpm("dpm_karras_9", 9, use_karras_sigmas=True, **SD)
    yield dpm(
        "dpm_karras_sigma_min_8", 8, use_karras_sigmas=True, final_sigmas_type="sigma_min", **SD
    )
    yield dpm("dpm_karras_cosine_8", 8, use_karras_sigmas=True, **COSINE)
    for spacing in ("linspace", "leading", "trailing"):
        yield dpm(
            f"dpm_cosine_clipped_{spacing}_9",
            9,
            lambda_min_clipped=-5.1,
            timestep_spacing=spacing,
            **COSINE,
        )
    yield dpm("dpm_v_7", 7, **V, **SD)
    yield dpm("dpm_x0_7", 7, **X0, **SD)
    yield dpm("dpm_zero_snr_trailing_7", 7, timestep_spacing="trailing", **ZERO_SNR, **SD)
    yield dpm(
        "dpm_threshold_7",
        7,
        thresholding=True,
        dynamic_thresholding_ratio=0.8,
        sample_max_value=1.5,
    )
    yield dpm(
        "dpm_euler_at_final_16", 16, euler_at_final=True, final_sigmas_type="sigma_min", **SD
    )
    yield dpm(
        "dpm_sigma_min_7",
        7,
        lower_order_final=False,
        solver_order=3,
        final_sigmas_type="sigma_min",
        **SD,
    )
    yield dpm(
        "dpm_sigma_min_heun_6", 6, final_sigmas_type="sigma_min", solver_type="heun", **SD
    )
    sde = dict(algorithm_type="sde-dpmsolver++")
    for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun")):
        name = f"dpm_sde_order{order}_{kind}_7"
        yield dpm(name, 7, solver_order=order, solver_type=kind, **sde, **SD)
    yield dpm("dpm_sde_karras_v_6", 6, use_karras_sigmas=True, **sde, **V, **SD)
    yield dpm("dpm_sde_sigma_min_6", 6, final_sigmas_type="sigma_min", **sde, **SD)
    yield euler("euler_1", 1, **SD)
    yield euler("euler_linspace_8", 8, **SD)
    yield euler(
        "euler_leading_offset1_7", 7, timestep_spacing="leading", steps_offset=1, **SD
    )
    yield euler("euler_trailing_7", 7, timestep_spacing="trailing", **SD)
    yield euler("euler_linear_6", 6)
    yield euler("euler_karras_8", 8, use_karras_sigmas=True, **SD)
    yield euler(
        "euler_karras_trailing_5",
        5,
        use_karras_sigmas=True,
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
        **SD,
    )
    yield euler("euler_v_7", 7, **V, **SD)
    yield euler("euler_x0_7", 7, **X0, **SD)
    yield euler("euler_zero_snr_trailing_6", 6, timestep_spacing="trailing", **ZERO_SNR, **SD)
    yield ancestral("euler_a_7", 7, **SD)
    yield ancestral(
        "euler_a_leading_offset1_6", 6, timestep_spacing="leading", steps_offset=1, **SD
    )
    yield ancestral("euler_a_v_trailing_5", 5, timestep_spacing="trailing", **V, **SD)
    yield ancestral("euler_a_zero_snr_5", 5, timestep_spacing="trailing", **ZERO_SNR, **SD)
    yield ddim("ddim_v_linspace_7", 7, timestep_spacing="linspace", clip_sample=False, **V, **SD)
    yield ddim("ddim_x0_6", 6, clip_sample_range=0.8, **X0)
    yield ddim(
        "ddim_zero_snr_trailing_7",
        7,
        timestep_spacing="trailing",
        clip_sample=False,
        **ZERO_SNR,
        **SD,
    )
    yield ddim(
        "ddim_threshold_6",
        6,
        thresholding=True,
        dynamic_thresholding_ratio=0.7,
        sample_max_value=2.0,
    )
    yield ddim("ddim_eta_7", 7, clip_sample=False, eta=0.6, **SD)
    yield ddim("ddim_trailing_48", 48, timestep_spacing="trailing", clip_sample=False, **SD)
    yield ddpm("ddpm_6", 6)
    yield ddpm(
        "ddpm_v_large_trailing_5",
        5,
        timestep_spacing="trailing",
        variance_type="fixed_large",
        **V,
    )
    yield ddpm(
        "ddpm_threshold_5",
        5,
        thresholding=True,
        sample_max_value=3.0,
        dynamic_thresholding_ratio=0.9,
    )
    yield ddpm("ddpm_zero_snr_5", 5, timestep_spacing="trailing", clip_sample=False, **ZERO_SNR)
    # One class's file, another class's sampler.
    euler_file = saved(
        CLASSES["euler"](use_karras_sigmas=True, final_sigmas_type="sigma_min", **SD)
    )
    dpm_file = saved(CLASSES["dpm-solver++"](**V, **SD))
    for sampler in CLASSES:
        yield f"from_sd14_{sampler}_7", sampler, 7, SD14, 0.0
    for sampler in CLASSES:
        yield f"from_ddpm_{sampler}_6", sampler, 6, saved(CLASSES["ddpm"]()), 0.0
    for sampler in CLASSES:
        yield f"from_euler_{sampler}_6", sampler, 6, euler_file, 0.0
    for sampler in ("pndm", "euler", "ddpm"):
        yield f"from_dpm_{sampler}_6", sampler, 6, dpm_file, 0.0


def main(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(SHAPE, generator=generator)
    drawn = []

    def draw(*_, **__):
        drawn.append(torch.randn(SHAPE, generator=generator))
        return drawn[-1]

    for module in (
        scheduling_ddim,
        scheduling_ddpm,
        scheduling_dpmsolver_multistep,
        scheduling_euler_ancestral_discrete,
    ):
        module.randn_tensor = draw

    tensors, listed = {"x0": x0}, []
    for name, sampler, steps, config, eta in cases():
        scheduler = CLASSES[sampler].from_config(config)
        scheduler.set_timesteps(steps)
        # As the img2img pipelines do: otherwise a first timestep that occurs twice is passed over.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        drawn.clear()
        sigma = float(scheduler.init_noise_sigma)
        x, rows = x0 * sigma, []
        for t in scheduler.timesteps:
            output = 0.3 * scheduler.scale_model_input(x, t) + (0.001 * float(t) - 0.2)
            settings = {"eta": eta} if sampler == "ddim" else {}
            x = scheduler.step(output, t, x, **settings).prev_sample
            rows.append(x.clone())
        assert torch.isfinite(x).all(), name
        tensors[f"{name}.trajectory"] = torch.stack(rows)
        tensors[f"{name}.timesteps"] = scheduler.timesteps.to(torch.float64)
        tensors[f"{name}.init_noise_sigma"] = torch.tensor([sigma], dtype=torch.float64)
        if drawn:
            tensors[f"{name}.noise"] = torch.stack(drawn)
        listed.append(
            {
                "name": name,
                "sampler": sampler,
                "steps": steps,
                "eta": eta,
                "scheduler_config": json.dumps(config),
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "trajectories.safetensors")
    (folder / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")
    print(f"{len(listed)} trajectories, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 20)
