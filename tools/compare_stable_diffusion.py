#!/usr/bin/env python3
"""Stable Diffusion 1.4 at its real size, deme against diffusers: one folder, outputs, time in turns, memory.

    cargo build --release -p deme-diffusion --example text_to_image_timer
    python tools/compare_stable_diffusion.py [--folder DIR] [--threads N] [--rounds N] [--steps N] [--markdown FILE]

Our program writes a folder of Stable Diffusion 1.4's exact shapes with random weights (4.3 GB; into a temporary
folder, or DIR, where it is kept and used again); `StableDiffusionPipeline.from_pretrained` loads it. Both encode a
prompt, run the UNet on two 64x64 latents with 77x768 text states, decode and encode an image of 512x512, and make a
whole picture of a prompt at guidance 7.5 from the same noise. Largest differences, relative to the largest value of
diffusers' output, must be below 1e-3. A picture amplifies them over its steps and is held to 1e-2.

A picture is made by a process that does nothing else, and its peak of resident memory (VmHWM) is the memory of text to
image. Then the UNet is timed in turns: `ratio` is the median over the rounds of our time over the better of torch's
two memory formats in the same round. `torch.inference_mode` and the same number of threads for both; how much of the
processors other programs took meanwhile is printed. The processor time of a call, all threads together, says more on
a busy machine.

Needs Linux, and Python with torch, diffusers and transformers; nothing in the Rust project needs this script.
"""

import argparse
import copy
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
PICTURE_TOLERANCE = 1e-2
PROMPT = "a red circle above a small blue square, it's 1 of 12"


class Ours:
    """Our program, which answers a line with a line."""

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


def load_theirs(folder):
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_of_theirs(folder, work, steps, threads):
    """The child process that makes diffusers' picture; prints the seconds and the peak of its memory in bytes."""
    import torch

    torch.set_num_threads(threads)
    pipeline = load_theirs(folder)
    noise = torch.from_file(str(work / "one"), size=4 * 64 * 64).view(1, 4, 64, 64)
    start = time.perf_counter()
    picture = pipeline(PROMPT, num_inference_steps=steps, guidance_scale=7.5, latents=noise, output_type="pt").images
    seconds = time.perf_counter() - start
    (picture * 2 - 1).contiguous().numpy().tofile(work / "their-picture")
    print(seconds, peak_memory())


def peak_memory():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


def processor_seconds(pids):
    """Processor time of the whole machine, and of some processes."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, *_ = map(int, open("/proc/stat").readline().split()[1:])
    of = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        of += int(fields[11]) + int(fields[12])
    return (user + nice + system + irq + softirq) / tick, of / tick


class Report:
    def __init__(self):
        self.lines, self.failed = [], []

    def say(self, line):
        print(line, flush=True)
        self.lines.append(line)

    def check(self, what, found, expected, tolerance=TOLERANCE):
        """Two tensors; the difference is relative to the largest expected value."""
        largest = expected.abs().max().item()
        off = (found - expected).abs().max().item() / largest
        self.say(f"| {what} | {off:.1e} | {largest:.2f} | {expected.std().item():.2f} |")
        if not off < tolerance:
            self.failed.append(f"{what} differs by {off:.1e}, more than {tolerance:.0e}")


def compare_pictures(report, arguments, folder, work):
    import torch

    ours = Ours(arguments.threads)
    ours.ask(f"open {folder}")
    loaded = int(ours.ask("memory"))
    seconds = float(ours.ask(f"image {work / 'one'} {arguments.steps} {work / 'our-picture'} {PROMPT}"))
    peak = int(ours.ask("memory"))
    ours.close()
    child = [sys.executable, __file__, "--folder", folder, "--theirs-in", work]
    child += ["--steps", arguments.steps, "--threads", arguments.threads]
    output = subprocess.run(list(map(str, child)), check=True, stdout=subprocess.PIPE, text=True).stdout
    their_seconds, their_peak = map(float, output.split())
    read = lambda name: torch.from_file(str(work / name), size=3 * 512 * 512)
    calls = arguments.steps + 1
    report.check(f"picture, {calls} UNet calls", read("our-picture"), read("their-picture"), PICTURE_TOLERANCE)
    return [
        "",
        f"A picture of 512x512, PNDM with {arguments.steps} steps ({calls} UNet calls of batch 2), a process each:",
        "",
        "| | deme | diffusers |",
        "|---|---|---|",
        f"| peak memory after loading | {loaded / 1e9:.2f} GB | |",
        f"| peak memory | {peak / 1e9:.2f} GB | {their_peak / 1e9:.2f} GB |",
        f"| time without loading | {seconds:.1f} s | {their_seconds:.1f} s |",
    ]


def time_unet(report, arguments, ours, unet_line, unets):
    """The UNet call in turns; `unets` are torch's variants by name."""
    seconds = {name: [] for name in ["deme", *unets]}
    processor = {name: [] for name in seconds}
    pids = [os.getpid(), ours.process.pid]
    before, start = processor_seconds(pids), time.perf_counter()
    for _ in range(arguments.rounds):
        begin = processor_seconds(pids)[1]
        seconds["deme"].append(float(ours.ask(unet_line)))
        processor["deme"].append(processor_seconds(pids)[1] - begin)
        for name, unet in unets.items():
            begin = time.perf_counter(), processor_seconds(pids)[1]
            unet()
            seconds[name].append(time.perf_counter() - begin[0])
            processor[name].append(processor_seconds(pids)[1] - begin[1])
    elapsed, after = time.perf_counter() - start, processor_seconds(pids)
    others = (after[0] - before[0]) - (after[1] - before[1])
    best = [min(rounds) for rounds in zip(*(seconds[name] for name in unets))]
    ratio = statistics.median(a / b for a, b in zip(seconds["deme"], best))
    report.say("")
    report.say(f"One UNet call, batch 2, 64x64 latents, {arguments.threads} threads, {arguments.rounds} rounds in turns:")
    report.say("")
    report.say("| | median | fastest | slowest | processor time, median |")
    report.say("|---|---|---|---|---|")
    for name, of in seconds.items():
        times = [statistics.median(of), min(of), max(of), statistics.median(processor[name])]
        report.say(f"| {name} | " + " | ".join(f"{time:.2f} s" for time in times) + " |")
    report.say("")
    report.say(
        f"Ratio {ratio:.2f} (median over the rounds of deme over the better of torch's two). Other programs took "
        f"{others / elapsed:.2f} of {os.cpu_count()} processors meanwhile."
    )


def compare(report, arguments, folder, work):
    import diffusers
    import torch

    torch.set_num_threads(arguments.threads)
    if not (folder / "model_index.json").exists():
        ours = Ours(arguments.threads)
        ours.ask(f"make {folder}")
        ours.close()

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 64, 64, generator=generator)
    states = torch.randn(2, 77, 768, generator=generator)
    image = torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1
    for name, tensor in dict(latents=latents, one=latents[:1], states=states, image=image).items():
        tensor.numpy().tofile(work / name)
    report.say(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {arguments.threads} threads")
    report.say("")
    report.say("| | largest relative difference | largest value | deviation |")
    report.say("|---|---|---|---|")
    picture_lines = compare_pictures(report, arguments, folder, work) if arguments.steps else []

    ours = Ours(arguments.threads)
    ours.ask(f"open {folder}")
    unet_line = f"unet {work / 'latents'} {work / 'states'} {work / 'eps'}"
    pipeline = load_theirs(folder)
    t = torch.tensor([0, 500])
    read = lambda name, like: torch.from_file(str(work / name), size=like.numel()).view_as(like)

    def eager():
        return pipeline.unet(latents, t, states, return_dict=False)[0]

    with torch.inference_mode():
        ours.ask(f"text {work / 'hidden'} {PROMPT}")
        ids = pipeline.tokenizer([PROMPT], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        hidden = pipeline.text_encoder(ids.input_ids).last_hidden_state
        report.check("text's hidden states", read("hidden", hidden), hidden)
        ours.ask(unet_line)
        eps = eager()
        report.check("UNet", read("eps", eps), eps)
        ours.ask(f"decode {work / 'one'} {work / 'decoded'}")
        decoded = pipeline.vae.decode(latents[:1]).sample
        report.check("decoded image", read("decoded", decoded), decoded)
        ours.ask(f"encode {work / 'image'} {work / 'moments'}")
        moments = pipeline.vae.encode(image).latent_dist
        moments = torch.cat([moments.mean, moments.logvar])
        report.check("mean and log-variance", read("moments", moments), moments)
        for line in picture_lines:
            report.say(line)
        if arguments.rounds:
            pipeline.vae = pipeline.text_encoder = None
            # The same weights in the other format; the first one keeps its own.
            last = copy.deepcopy(pipeline.unet).to(memory_format=torch.channels_last)
            latents_last = latents.to(memory_format=torch.channels_last)
            channels_last = lambda: last(latents_last, t, states, return_dict=False)[0]
            channels_last()
            time_unet(report, arguments, ours, unet_line, {"torch": eager, "torch, channels last": channels_last})
    ours.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="where the 4.3 GB folder is kept")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5, help="of timing the UNet; 0 for none")
    parser.add_argument("--steps", type=int, default=2, help="of the picture; 0 for no picture")
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--theirs-in", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.theirs_in:
        return picture_of_theirs(arguments.folder, arguments.theirs_in, arguments.steps, arguments.threads)
    report = Report()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        compare(report, arguments, arguments.folder or work / "model", work)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(report.lines) + "\n")
    if report.failed:
        sys.exit("\n".join(report.failed))


if __name__ == "__main__":
    main()
