"""Times `deme merge` against torch on the same tensors, in turns, and prints medians and peak memory.

    python tools/bench_merge.py target/release/deme                 # 35.7M parameters, ddpm-cifar10-32's UNet
    python tools/bench_merge.py target/release/deme --large         # and 3.4 GB per model, SD-1.x's UNet in f32

Needs torch, diffusers and safetensors. The reference is a Python process that does `torch.load` of four experts
and the base, task vectors, weighted sum, `torch.save`; its clock starts before the first file is opened and stops
when the output is closed, imports excluded. For `deme` the clock runs for the whole process. Peak memory is VmHWM
of each process. With --large also the time of copying the same bytes: all models read by `cat`, the output's bytes
copied by `cp` and synced, as `deme` syncs what it writes.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WEIGHTS = [0.1, 0.1, 0.2, 0.5]

REFERENCE = """
import json, sys, time
import torch
base_path, *expert_paths, out = sys.argv[1:]
weights = %r
started = time.perf_counter()
base = torch.load(base_path)
experts = [torch.load(path) for path in expert_paths]
taus = [{name: expert[name] - base[name] for name in base} for expert in experts]
merged = {}
for name in base:
    merged[name] = base[name].clone()
    for weight, tau in zip(weights, taus):
        merged[name] += weight * tau[name]
with open(out, "wb") as file:
    torch.save(merged, file)
secs = time.perf_counter() - started
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"secs": secs, "peak_mib": int(peak.split()[1]) / 1024}))
""" % (WEIGHTS,)

# The kernel counts what a process was before it became another program to its peak, so a large process must not
# start the one that is measured. This one is small.
LAUNCHER = """
import json, os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
started = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(process, 0)
secs = time.perf_counter() - started
assert status == 0, status
print(json.dumps({"secs": secs, "peak_mib": usage.ru_maxrss / 1024}))
"""

CIFAR10 = dict(
    sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_head_dim=None,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
)


def shapes(large):
    """The names and shapes of the UNet's parameters; no memory is taken for them."""
    import torch
    from diffusers import UNet2DConditionModel, UNet2DModel

    with torch.device("meta"):
        if large:
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        else:
            unet = UNet2DModel(**CIFAR10)
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


def write_models(folder, shapes, with_torch):
    """Random weights: a base, and experts a little away from it."""
    import torch
    from safetensors.torch import save_file

    for number in range(1 + len(WEIGHTS)):
        noise, theta = torch.Generator().manual_seed(number), torch.Generator().manual_seed(0)
        model = {}
        for name, shape in shapes.items():
            model[name] = torch.randn(shape, generator=theta) * 0.02
            if number:
                model[name] += torch.randn(shape, generator=noise) * 1e-3
        save_file(model, folder / f"{number}.safetensors")
        if with_torch:
            torch.save(model, folder / f"{number}.pt")


def run_deme(deme, folder):
    out = folder / "merged.safetensors"
    out.unlink(missing_ok=True)
    command = [deme, "merge", "--base", folder / "0.safetensors", "--out", out]
    for number in range(1, 1 + len(WEIGHTS)):
        command += ["--expert", folder / f"{number}.safetensors"]
    command += ["--weights", ",".join(map(str, WEIGHTS))]
    answer = subprocess.run([sys.executable, "-c", LAUNCHER, *command], stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout)


def run_reference(folder):
    out = folder / "merged.pt"
    out.unlink(missing_ok=True)
    paths = [folder / f"{number}.pt" for number in range(1 + len(WEIGHTS))]
    answer = subprocess.run([sys.executable, "-c", REFERENCE, *paths, out], stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout)


def run_copy(folder):
    models = [folder / f"{number}.safetensors" for number in range(1 + len(WEIGHTS))]
    out = folder / "copy.safetensors"
    out.unlink(missing_ok=True)
    started = time.perf_counter()
    subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "cat", *models], check=True)
    subprocess.run(["cp", "--reflink=never", models[0], out], check=True)
    subprocess.run(["sync", out], check=True)
    return {"secs": time.perf_counter() - started, "peak_mib": 0.0}


def largest_difference(folder):
    """Between deme's result and eq. 8 computed here, tensor by tensor."""
    from safetensors import safe_open

    files = [safe_open(folder / f"{number}.safetensors", "pt") for number in range(1 + len(WEIGHTS))]
    merged = safe_open(folder / "merged.safetensors", "pt")
    largest = 0.0
    for name in merged.keys():
        base, *experts = (file.get_tensor(name) for file in files)
        expected = base + sum(w * (expert - base) for w, expert in zip(WEIGHTS, experts))
        largest = max(largest, (merged.get_tensor(name) - expected).abs().max().item())
    return largest


def in_turns(title, runs, repeats):
    results = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            results[name].append(run())
    print(title)
    medians = {}
    for name, measured in results.items():
        secs = [one["secs"] for one in measured]
        medians[name] = statistics.median(secs)
        peak = max(one["peak_mib"] for one in measured)
        spread = f"{min(secs):.3f} to {max(secs):.3f}"
        print(f"  {name:<10} median {medians[name]:8.3f} s  ({spread})  peak {peak:8.1f} MiB")
    first, other = list(results)
    print(f"  {other} / {first}: {medians[other] / medians[first]:.2f}, {first} / {other}: {medians[first] / medians[other]:.2f}")
    peaks = [max(one["peak_mib"] for one in results[name]) for name in (first, other)]
    if peaks[1]:
        print(f"  {first}'s peak is {peaks[0] / peaks[1]:.4f} of {other}'s")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("deme", type=Path)
    arguments.add_argument("--large", action="store_true", help="also 3.4 GB per model: 21 GB of disk")
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--folder", type=Path, help="where to put the models [default: the temporary folder]")
    arguments = arguments.parse_args()
    deme = arguments.deme.resolve()

    for large in [False, True] if arguments.large else [False]:
        folder = Path(tempfile.mkdtemp(prefix="bench_merge", dir=arguments.folder))
        try:
            names = shapes(large)
            write_models(folder, names, with_torch=not large)
            parameters = sum(math.prod(shape) for shape in names.values())
            title = f"{parameters / 1e6:.1f}M parameters, four experts, f32"
            if large:
                runs = {"deme": lambda: run_deme(deme, folder), "copy": lambda: run_copy(folder)}
                in_turns(title, runs, max(3, arguments.repeats // 3))
            else:
                runs = {"deme": lambda: run_deme(deme, folder), "reference": lambda: run_reference(folder)}
                in_turns(title, runs, arguments.repeats)
            print(f"  largest difference from eq. 8 in torch: {largest_difference(folder):.1e}")
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
