#!/usr/bin/env python3
"""Checks that Python diffusers loads a model folder of ours and predicts the same.

    python tools/check_diffusers.py MODEL --write-input in.safetensors
    deme predict --model MODEL --input in.safetensors --out out.safetensors
    python tools/check_diffusers.py MODEL in.safetensors out.safetensors

MODEL is a pipeline folder (loaded as DDPMPipeline and as DDIMPipeline) or the folder of a UNet alone.
in.safetensors holds `sample` [B, C, H, W] in f32 and `timesteps` [B] in i64, out.safetensors holds `output`.
Exit code: 0 they agree, 1 they differ or diffusers finds missing or unexpected weights, 2 bad input.

Needs Python with torch, diffusers and safetensors (`pip install torch diffusers safetensors`); nothing in the
Rust project needs this script.
"""

import argparse
import json
import pathlib
import sys

TOLERANCE = 1e-4


def bad_input(message):
    print(f"check_diffusers: {message}", file=sys.stderr)
    sys.exit(2)


def load_unets(folder):
    """The folder's UNet by every way of diffusers that loads it, with a name for each."""
    import diffusers

    if not (folder / "model_index.json").is_file():
        return {"UNet2DModel": load_unet(folder)}
    # from_pretrained of a pipeline says nothing of weights it did not find: ask the UNet itself.
    unets = {"UNet2DModel": load_unet(folder / "unet")}
    for pipeline in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
        loaded = pipeline.from_pretrained(folder)
        print(f"{pipeline.__name__}: loads, with {type(loaded.scheduler).__name__}")
        unets[pipeline.__name__] = loaded.unet
    return unets


def load_unet(folder):
    import diffusers

    unet, info = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(what):
            print(f"differs: {what}: {sorted(map(str, info[what]))}")
            sys.exit(1)
    written = json.loads((folder / "config.json").read_text())
    foreign = sorted(key for key in written if key not in unet.config and not key.startswith("_"))
    if foreign:
        print(f"differs: config.json holds {foreign}, which diffusers does not know")
        sys.exit(1)
    return unet


def write_input(folder, path):
    import torch
    from safetensors.torch import save_file

    config = next(iter(load_unets(folder).values())).config
    size = config.sample_size or 2 ** (len(config.block_out_channels) + 1)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(3, config.in_channels, height, width, generator=generator)
    save_file({"sample": sample, "timesteps": torch.tensor([0, 500, 999])}, path)
    print(f"wrote {path}")


def compare(folder, input_path, output_path):
    import torch
    from safetensors.torch import load_file

    for path in (input_path, output_path):
        if not path.is_file():
            bad_input(f"there is no file {path}")
    inputs, ours = load_file(input_path), load_file(output_path)
    for path, tensors, name in (
        (input_path, inputs, "sample"),
        (input_path, inputs, "timesteps"),
        (output_path, ours, "output"),
    ):
        if name not in tensors:
            bad_input(f"{path} holds no tensor `{name}`, only {sorted(tensors)}")
    agree = True
    for name, unet in load_unets(folder).items():
        with torch.no_grad():
            theirs = unet.eval()(inputs["sample"], inputs["timesteps"]).sample
        if theirs.shape != ours["output"].shape:
            print(f"{name}: shape {list(theirs.shape)}, ours is {list(ours['output'].shape)}")
            agree = False
            continue
        difference = (theirs - ours["output"]).abs().max().item()
        agree &= difference <= TOLERANCE  # false for NaN
        print(f"{name}: largest difference {difference:.2e}, allowed {TOLERANCE:.0e}")
    print("they agree" if agree else "they differ")
    sys.exit(0 if agree else 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("input", type=pathlib.Path, nargs="?")
    parser.add_argument("output", type=pathlib.Path, nargs="?")
    parser.add_argument("--write-input", type=pathlib.Path, metavar="PATH")
    arguments = parser.parse_args()
    if not arguments.model.is_dir():
        bad_input(f"there is no folder {arguments.model}")
    if arguments.write_input:
        write_input(arguments.model, arguments.write_input)
    elif arguments.input and arguments.output:
        compare(arguments.model, arguments.input, arguments.output)
    else:
        bad_input("give the input and the output of `deme predict`, or --write-input")


if __name__ == "__main__":
    main()
