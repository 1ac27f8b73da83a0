#!/usr/bin/env python3
"""Makes fixtures/sd_more: tiny networks of Stable Diffusion in settings that fixtures/sd_tiny has not.

    python tools/make_text_to_image_fixture.py fixtures/sd_more [SEED]

Every folder is what `save_pretrained` writes, all parameters random, with `io.safetensors` beside it:
- `unet_linear` (linear projections, two transformer blocks, heads per block; also `grads.safetensors`, the gradient of
  the eps-MSE by parameter, with `__noise` and `__loss`) and `unet_uneven` (layers per block, scale and shift, ...):
  `sample`, `hidden_states`, `timesteps`, `output`;
- `vae` (no quant_conv, three blocks): `image`, `mean`, `log_variance`, `latents`, `decoded`, and `tiled_...`, the same
  after `enable_tiling`;
- `text_encoder_quick_gelu`, `text_encoder_gelu`: `input_ids`, and `skip_K`, the hidden states before the last K layers,
  after the final layer norm.

Needs torch, diffusers, transformers and safetensors; nothing in the Rust project needs this script.
"""

import pathlib
import shutil
import sys

import diffusers
import torch
import transformers
from safetensors.torch import save_file


def main():
    out = pathlib.Path(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + 1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def shaken(model):
        """No norm at its initial 1 and 0."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * normal(*parameter.shape))
        return model.eval()

    def save(tensors, path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    def unet(name, with_gradients, **config):
        size = dict(sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4)
        model = shaken(diffusers.UNet2DConditionModel(**size, **config))
        model.save_pretrained(out / name)
        x, states = normal(2, 4, 8, 8), normal(2, 5, config["cross_attention_dim"])
        noise, t = normal(2, 4, 8, 8), torch.tensor([11, 901])
        y = model(x, t, states).sample
        loss = torch.nn.functional.mse_loss(y, noise)
        loss.backward()
        io = dict(sample=x, hidden_states=states, timesteps=t, output=y.detach())
        save(io, out / name / "io.safetensors")
        if with_gradients:
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            extra = {"__noise": noise, "__loss": loss.detach().reshape(1)}
            save({**gradients, **extra}, out / name / "grads.safetensors")

    unet(
        "unet_linear",
        True,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=[2, 4],
        cross_attention_dim=12,
        use_linear_projection=True,
        transformer_layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    unet(
        "unet_uneven",
        False,
        block_out_channels=(8, 12, 16),
        layers_per_block=[2, 1, 1],
        attention_head_dim=[1, 2, 4],
        cross_attention_dim=6,
        freq_shift=1,
        flip_sin_to_cos=False,
        resnet_time_scale_shift="scale_shift",
        downsample_padding=0,
        mid_block_scale_factor=1.5,
        center_input_sample=True,
        time_embedding_dim=20,
        norm_eps=1e-3,
        upcast_attention=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )

    vae = shaken(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 12, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=3,
            sample_size=32,
            use_quant_conv=False,
            scaling_factor=0.3,
        )
    )
    vae.save_pretrained(out / "vae")
    image, latents = normal(1, 3, 56, 40).clamp(-1, 1), normal(1, 3, 14, 10)
    io = dict(image=image, latents=latents)
    with torch.no_grad():
        for prefix in ["", "tiled_"]:
            if prefix:
                vae.enable_tiling()
            distribution = vae.encode(image).latent_dist
            io[f"{prefix}mean"], io[f"{prefix}log_variance"] = distribution.mean, distribution.logvar
            io[f"{prefix}decoded"] = vae.decode(latents).sample
    save(io, out / "vae" / "io.safetensors")

    for activation in ["quick_gelu", "gelu"]:
        config = transformers.CLIPTextConfig(
            vocab_size=40,
            hidden_size=12,
            intermediate_size=30,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=9,
            hidden_act=activation,
            bos_token_id=38,
            eos_token_id=39,
            pad_token_id=39,
        )
        model = shaken(transformers.CLIPTextModel(config))
        folder = out / f"text_encoder_{activation}"
        model.save_pretrained(folder)
        ids = torch.randint(0, 40, (2, 9), generator=generator)
        with torch.no_grad():
            hidden_states = model(ids, output_hidden_states=True).hidden_states
            norm = getattr(model, "text_model", model).final_layer_norm
            states = {f"skip_{k}": norm(hidden_states[-1 - k]) for k in range(4)}
        save({"input_ids": ids, **states}, folder / "io.safetensors")


if __name__ == "__main__":
    main()
