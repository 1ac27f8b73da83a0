#!/usr/bin/env python3
"""Stable Diffusion 1.4's networks, deme against diffusers: the same folder, outputs, time in turns, memory.

    cargo build --release -p deme-diffusion --example text_to_image_timer
    python tools/compare_text_to_image.py [--folder DIR] [--threads N] [--rounds N]

Our program writes a folder of Stable Diffusion 1.4's exact shapes with random weights (4.3 GB; into a temporary
folder, or DIR, where it is kept and used again); diffusers loads it. Both run the UNet on two 64x64 latents with
77x768 text states, decode one image of 512x512 and encode a prompt; the outputs must agree within 1e-3. Then the
UNet is timed in turns: `ratio` is the median over the rounds of our time over PyTorch's. `torch.inference_mode` and
the same number of threads for both.

Needs Python with torch, diffusers and transformers; nothing in the Rust project needs this script.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

TIMER = pathlib.Path(
    os.environ.get(
        "TEXT_TO_IMAGE_TIMER",
        pathlib.Path(__file__).parent.parent / "target/release/examples/text_to_image_timer",
    )
)
TOLERANCE = 1e-3
PROMPT = "a red circle above a small blue square, it's 1 of 12"


class Ours:
    def __init__(self, threads):
        environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(TIMER)], stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{TIMER} stopped at `{line}`")
        return answer.strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(arguments, folder, work):
    import diffusers
    import torch

    torch.set_num_threads(arguments.threads)
    ours = Ours(arguments.threads)
    if not (folder / "model_index.json").exists():
        ours.ask(f"make {folder}")
        ours.close()
        ours = Ours(arguments.threads)
    ours.ask(f"open {folder}")

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 64, 64, generator=generator)
    states = torch.randn(2, 77, 768, generator=generator)
    image = torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1
    for name, tensor in dict(latents=latents, one=latents[:1], states=states, image=image).items():
        tensor.numpy().tofile(work / name)
    unet_line = f"unet {work / 'latents'} {work / 'states'} {work / 'eps'}"
    ours.ask(unet_line)
    ours.ask(f"decode {work / 'one'} {work / 'decoded'}")
    print(f"peak memory of loading, a UNet call and a decoding: {int(ours.ask('memory')) / 1e9:.2f} GB")
    ours.ask(f"encode {work / 'image'} {work / 'moments'}")
    ours.ask(f"text {work / 'hidden'} {PROMPT}")

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    t = torch.tensor([0, 500])
    failed = False

    def check(what, name, expected):
        nonlocal failed
        found = torch.from_file(str(work / name), size=expected.numel()).view_as(expected)
        off, largest = (found - expected).abs().max().item(), expected.abs().max().item()
        print(f"{what}: largest difference {off:.1e}, values up to {largest:.2f}")
        failed |= not off < TOLERANCE

    def unet():
        return pipeline.unet(latents, t, states, return_dict=False)[0]

    with torch.inference_mode():
        check("UNet", "eps", unet())
        check("decoded image", "decoded", pipeline.vae.decode(latents[:1]).sample)
        moments = pipeline.vae.encode(image).latent_dist
        check("mean and log-variance", "moments", torch.cat([moments.mean, moments.logvar]))
        ids = pipeline.tokenizer([PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        check("text's hidden states", "hidden", pipeline.text_encoder(ids.input_ids).last_hidden_state)

        ours_seconds, theirs_seconds = [], []
        for _ in range(arguments.rounds):
            ours_seconds.append(float(ours.ask(unet_line)))
            start = time.perf_counter()
            unet()
            theirs_seconds.append(time.perf_counter() - start)
    ours.close()
    if arguments.rounds:
        ratio = statistics.median(a / b for a, b in zip(ours_seconds, theirs_seconds))
        medians = [statistics.median(rounds) for rounds in (ours_seconds, theirs_seconds)]
        print(
            f"UNet call, batch 2, 64x64 latents, {arguments.threads} threads, {arguments.rounds} rounds in turns: "
            f"ours {medians[0]:.2f} s, torch {torch.__version__} {medians[1]:.2f} s, ratio {ratio:.2f}"
        )
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="where the 4.3 GB folder is kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        if compare(arguments, arguments.folder or work / "model", work):
            sys.exit(f"the outputs do not agree within {TOLERANCE}")


if __name__ == "__main__":
    main()
