#!/usr/bin/env python3
"""Computes one FID with pytorch-fid and with deme, in turns, and compares numbers, time and memory.

    cargo build --release
    python tools/compare_pytorch_fid.py PICTURES [--num N] [--rounds N] [--markdown FILE]

PICTURES is a folder of PNG files. The first N of them are copied, and copied again with noise; both programs
measure the distance of the two copies. The weights of Inception-v3 come from a formula (the real ones are a
download), written where torch looks for pytorch-fid's file, so both programs run as their users run them. Checked
are the FID from folders, from each other's .npz statistics, and in both orders. Times are of whole commands; for
the distance alone, pytorch-fid's function inside a running Python is timed against the whole command `deme fid
a.npz b.npz`. Peak memory is that of the main process (pytorch-fid's loader processes are left out).

Needs Python with torch, torchvision and pytorch-fid (`pip install torch torchvision pytorch-fid`); nothing in the
Rust project needs this script.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
import torchvision

ROOT = pathlib.Path(__file__).parent.parent
DEME = pathlib.Path(os.environ.get("DEME", ROOT / "target/release/deme"))
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
TOLERANCE = 1e-4


def splitmix64(x):
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def formula_weights():
    """pytorch-fid's network with weights uniform within sqrt(6 / fan_in), as a state dict."""
    model = torchvision.models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    model.Mixed_5b = FIDInceptionA(192, pool_features=32)
    model.Mixed_5c = FIDInceptionA(256, pool_features=64)
    model.Mixed_5d = FIDInceptionA(288, pool_features=64)
    model.Mixed_6b = FIDInceptionC(768, channels_7x7=128)
    model.Mixed_6c = FIDInceptionC(768, channels_7x7=160)
    model.Mixed_6d = FIDInceptionC(768, channels_7x7=160)
    model.Mixed_6e = FIDInceptionC(768, channels_7x7=192)
    model.Mixed_7b = FIDInceptionE_1(1280)
    model.Mixed_7c = FIDInceptionE_2(2048)
    state = model.state_dict()
    for index, (name, tensor) in enumerate(state.items()):
        if name.endswith("weight") and tensor.dim() > 1:
            fan_in = tensor[0].numel()
            j = np.arange(tensor.numel(), dtype=np.uint64)
            with np.errstate(over="ignore"):
                u = (splitmix64((np.uint64(index + 1) << np.uint64(32)) + j) >> np.uint64(11)) / 2.0**53
            values = ((u - 0.5) * 2.0 * np.sqrt(6.0 / fan_in)).astype(np.float32)
            state[name] = torch.from_numpy(values).view(tensor.shape)
        elif name.endswith("weight") or name.endswith("running_var"):
            state[name] = torch.ones_like(tensor)
        else:
            state[name] = torch.zeros_like(tensor)
    return state


def exact_distance(mu_a, sigma_a, mu_b, sigma_b):
    """The distance with the root's trace from symmetric eigenvalues, to tell whose rounding a difference is."""
    values, vectors = np.linalg.eigh(sigma_a)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    inner = np.linalg.eigvalsh(root.T @ sigma_b @ root)
    trace = np.sqrt(np.clip(inner, 0, None)).sum()
    return float(((mu_a - mu_b) ** 2).sum() + np.trace(sigma_a) + np.trace(sigma_b) - 2 * trace)


def make_pictures(source, num, folder):
    files = sorted(source.glob("*.png"))[:num]
    if len(files) < num:
        sys.exit(f"{source} holds {len(files)} PNG files, not {num}; give another folder or --num")
    rng = np.random.default_rng(0)
    for name in ("plain", "noisy"):
        (folder / name).mkdir()
    for i, file in enumerate(files):
        picture = np.asarray(Image.open(file).convert("RGB"))
        noise = rng.normal(0, 12, picture.shape)
        noisy = np.clip(picture + noise, 0, 255).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / "plain" / f"{i:05}.png")
        Image.fromarray(noisy).save(folder / "noisy" / f"{i:05}.png")


def timed(command, environment):
    """Standard output, seconds and peak resident MiB of a command."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        if os.waitstatus_to_exitcode(status) != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, command))} failed:\n{errors.read()}")
        return output.read(), seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=pathlib.Path)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--markdown", type=pathlib.Path)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="compare-fid-"))
    make_pictures(arguments.pictures, arguments.num, folder)
    checkpoints = folder / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(formula_weights(), checkpoints / WEIGHTS)
    environment = dict(os.environ, TORCH_HOME=str(folder / "torch"))
    plain, noisy = folder / "plain", folder / "noisy"

    def theirs(*paths):
        output, *rest = timed([sys.executable, "-m", "pytorch_fid", *map(str, paths), "--device", "cpu"], environment)
        return float(output.split()[-1]), *rest

    def ours(*paths):
        output, *rest = timed([DEME, "fid", *map(str, paths), "--json"], environment)
        return json.loads(output)["measurements"][0]["value"], *rest

    def save_stats(source, target, who):
        if who == "pytorch-fid":
            command = [sys.executable, "-m", "pytorch_fid", "--save-stats", source, target, "--device", "cpu"]
        else:
            command = [DEME, "fid", source, "--save-stats", target]
        timed(list(map(str, command)), environment)

    rows, checks = [], []

    def check(what, ours, theirs):
        difference = abs(ours - theirs) / max(abs(theirs), 1e-12)
        checks.append((what, ours, theirs, difference))
        print(f"{what:44}  deme {ours:.8f}  pytorch-fid {theirs:.8f}  relative difference {difference:.1e}", flush=True)

    runs = {"deme": [], "pytorch-fid": []}
    for _ in range(arguments.rounds):
        runs["pytorch-fid"].append(theirs(plain, noisy))
        runs["deme"].append(ours(plain, noisy))
    check("folders", runs["deme"][0][0], runs["pytorch-fid"][0][0])

    stats = {}
    for who in runs:
        for source in (plain, noisy):
            stats[who, source] = folder / f"{who}-{source.name}.npz"
            save_stats(source, stats[who, source], who)
    reference = theirs(stats["pytorch-fid", plain], stats["pytorch-fid", noisy])[0]
    check("pytorch-fid's statistics read by deme", ours(stats["pytorch-fid", plain], stats["pytorch-fid", noisy])[0], reference)
    backwards = theirs(stats["pytorch-fid", noisy], stats["pytorch-fid", plain])[0]
    check("the other way round", ours(stats["deme", noisy], stats["deme", plain])[0], backwards)
    check("deme's statistics read by pytorch-fid", reference, theirs(stats["deme", plain], stats["deme", noisy])[0])
    check("one of each", ours(stats["deme", plain], stats["pytorch-fid", noisy])[0], reference)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    loaded = [np.load(stats["pytorch-fid", source]) for source in (plain, noisy)]
    moments = [loaded[0]["mu"], loaded[0]["sigma"], loaded[1]["mu"], loaded[1]["sigma"]]
    exact = exact_distance(*moments)
    line = f"By symmetric eigenvalues of pytorch-fid's own statistics the distance is {exact:.8f}: pytorch-fid is off by "
    line += f"{abs(reference - exact) / exact:.1e}, deme's distance of the same statistics by "
    line += f"{abs(checks[1][1] - exact) / exact:.1e}, deme's from the pictures by {abs(checks[0][1] - exact) / exact:.1e}."
    distance = {"deme": [], "pytorch-fid": []}
    for _ in range(arguments.rounds):
        distance["pytorch-fid"].append(seconds(lambda: calculate_frechet_distance(*moments)))
        distance["deme"].append(ours(stats["pytorch-fid", plain], stats["pytorch-fid", noisy])[1])

    def row(what, ours, theirs, unit):
        rows.append((what, statistics.median(ours), statistics.median(theirs), unit))

    row("whole command, seconds", [r[1] for r in runs["deme"]], [r[1] for r in runs["pytorch-fid"]], "s")
    row("peak memory, MiB", [r[2] for r in runs["deme"]], [r[2] for r in runs["pytorch-fid"]], "MiB")
    row("distance alone at 2048 dimensions, seconds", distance["deme"], distance["pytorch-fid"], "s")
    lines = [f"{arguments.num} pictures a side, {arguments.rounds} rounds in turns, medians.", ""]
    lines += ["| | deme | pytorch-fid | ratio |", "|---|---|---|---|"]
    lines += [f"| {what} | {a:.2f} | {b:.2f} | {a / b:.3f} |" for what, a, b, _ in rows]
    lines += ["", "| FID | deme | pytorch-fid | relative difference |", "|---|---|---|---|"]
    lines += [f"| {what} | {a:.8f} | {b:.8f} | {d:.1e} |" for what, a, b, d in checks]
    lines += ["", line]
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder)
    worst = max(d for *_, d in checks)
    if worst > TOLERANCE:
        sys.exit(f"a relative difference of {worst:.1e} is above {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
