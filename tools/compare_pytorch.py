#!/usr/bin/env python3
"""Times a UNet's forward pass and training step, ours and PyTorch's in turns, and prints the ratio.

    cargo build --release -p deme-decouple --example step_timer
    python tools/compare_pytorch.py [--threads N] [--rounds N]

A training step is forward, backward, clipping of the gradient's norm, AdamW and the moving average. Both
programs get the same random weights, batch and number of threads; each round times one step of either, and
the printed times are medians over the rounds.

Needs Python with torch and diffusers (`pip install torch diffusers`); nothing in the Rust project needs this
script.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

TIMER = pathlib.Path(__file__).parent.parent / "target/release/examples/step_timer"

NETWORKS = {
    "ddpm-cifar10-32, batch 4": (
        4,
        dict(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
    ),
    "emoji recipe, batch 16": (
        16,
        dict(
            sample_size=32,
            block_out_channels=(32, 64, 96),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_num_groups=8,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
    ),
    "shapes recipe, batch 32": (
        32,
        dict(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_num_groups=8,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
    ),
}


class Ours:
    def __init__(self, folder, batch, side, threads):
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        command = [str(TIMER), str(folder), str(batch), str(side)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def time(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class PyTorch:
    def __init__(self, unet, batch, side):
        import torch

        self.unet = unet
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-5, betas=(0.95, 0.999), weight_decay=1e-6)
        self.ema = [parameter.detach().clone() for parameter in unet.parameters()]
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, side, side)
        self.x_t = torch.randn(shape, generator=generator)
        self.eps = torch.randn(shape, generator=generator)
        self.t = torch.arange(batch) * 1000 // batch

    def time(self, what):
        import torch

        start = time.perf_counter()
        if what == "forward":
            with torch.no_grad():
                self.unet(self.x_t, self.t)
        else:
            loss = torch.nn.functional.mse_loss(self.unet(self.x_t, self.t).sample, self.eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.unet.parameters()], 0.01)
        return time.perf_counter() - start


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--rounds", type=int, default=15)
    arguments = arguments.parse_args()
    import diffusers
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.threads} threads, medians of {arguments.rounds} rounds in turns")
    print(f"{'network':<28}{'what':<10}{'ours':>10}{'PyTorch':>10}{'ratio':>8}")
    for name, (batch, config) in NETWORKS.items():
        unet = diffusers.UNet2DModel(**config)
        side = config["sample_size"]
        with tempfile.TemporaryDirectory() as folder:
            unet.save_pretrained(folder)
            ours, theirs = Ours(folder, batch, side, arguments.threads), PyTorch(unet, batch, side)
            for what in ("forward", "train"):
                for program in (ours, theirs):  # warm-up
                    program.time(what), program.time(what)
                rounds = [(ours.time(what), theirs.time(what)) for _ in range(arguments.rounds)]
                a, b = (statistics.median(column) for column in zip(*rounds))
                print(f"{name:<28}{what:<10}{a * 1e3:>8.1f}ms{b * 1e3:>8.1f}ms{a / b:>8.2f}", flush=True)
            ours.close()


if __name__ == "__main__":
    main()
