#!/usr/bin/env python3
"""Compares deme's feature extractors with PyTorch's: features, and time in turns on the same machine.

    cargo build --release -p deme-eval --example extractor_timer
    python tools/compare_extractors.py --inception pt_inception-2015-12-05-6726825d.pth
    python tools/compare_extractors.py --dinov2 dinov2-large-folder [--threads N] [--rounds N] [--batch N]

Both programs get the same weights, the same random pictures of the network's own size, and the same number of
threads. `ratio` is the median over the rounds of our time over PyTorch's, each the better of two batches.

Needs Python with torch, and pytorch-fid or transformers (`pip install torch pytorch-fid transformers`); nothing in
the Rust project needs this script.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

TIMER = pathlib.Path(
    os.environ.get("EXTRACTOR_TIMER", pathlib.Path(__file__).parent.parent / "target/release/examples/extractor_timer")
)
IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--inception", metavar="FILE", help="pytorch-fid's weights")
    which.add_argument("--dinov2", metavar="FOLDER", help="a Dinov2Model as save_pretrained writes it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args()


def inception(path):
    """pytorch-fid's network on [0, 1], without its resizing."""
    import torch
    from pytorch_fid import inception

    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    inception.load_state_dict_from_url = lambda *_, **__: state
    network = inception.InceptionV3(resize_input=False).eval()
    return 299, lambda x: network(x)[0].flatten(1)


def dinov2(path):
    """transformers' network on [0, 1]."""
    import torch
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(path).eval()
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return 224, lambda x: network((x - mean) / deviation).pooler_output


def main():
    options = arguments()
    import numpy
    import torch

    torch.set_num_threads(options.threads)
    kind, path = ("inception", options.inception) if options.inception else ("dinov2", options.dinov2)
    side, network = (inception if options.inception else dinov2)(path)
    pictures = torch.rand(options.batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    ours = subprocess.Popen([TIMER, kind, path], stdin=-1, stdout=-1, text=True, env=environment)

    def ask(line):
        print(line, file=ours.stdin, flush=True)
        return float(ours.stdout.readline())

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        images, features = f"{folder}/images", f"{folder}/features"
        pictures.numpy().tofile(images)
        ask(f"features {images} {options.batch} {features}")
        found = numpy.fromfile(features, numpy.float32).reshape(options.batch, -1)
        expected = network(pictures).numpy()
        difference = abs(found - expected).max()
        rms = ((found - expected) ** 2).mean() ** 0.5 / (expected**2).mean() ** 0.5
        print(f"features: off by at most {difference:.1e} of up to {abs(expected).max():.2f}, relative rms {rms:.1e}")
        ratios = []
        for number in range(options.rounds):
            theirs = min(seconds(lambda: network(pictures)) for _ in range(2))
            own = min(ask(f"seconds {images} {options.batch}") for _ in range(2))
            ratios.append(own / theirs)
            per_image = 1e3 / options.batch
            print(f"round {number}: ours {own * per_image:.1f} ms, PyTorch {theirs * per_image:.1f} ms per picture")
    print(f"ratio at batch {options.batch}, {options.threads} threads: {statistics.median(ratios):.3f}")
    ours.stdin.close()
    ours.wait()


if __name__ == "__main__":
    main()
