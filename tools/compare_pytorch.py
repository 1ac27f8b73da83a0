#!/usr/bin/env python3
"""Times deme and PyTorch in turns on the same machine and prints the ratio: kernels, networks, memory.

    cargo build --release -p deme-decouple --example peer_timer
    python tools/compare_pytorch.py [--threads N] [--rounds N] [--only TEXT] [--compile] [--markdown FILE]

Both programs get the same sizes, weights, batch and number of threads. Each round times one piece of work of
either, and of every variant of PyTorch: eager, channels_last, and with --compile torch.compile. `ratio` is the
median over the rounds of our time over that of PyTorch's best variant. GFLOP/s count the multiply-adds of the
direct convolution twice, so a fast algorithm can exceed the machine's peak; `of peak` divides by the best
matrix product of either program.

Needs Python with torch and diffusers (`pip install torch diffusers`); nothing in the Rust project needs this
script.
"""

import argparse
import functools
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

TIMER = pathlib.Path(os.environ.get("PEER_TIMER", pathlib.Path(__file__).parent.parent / "target/release/examples/peer_timer"))

DDPM = dict(attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)


def unet_config(side, channels, layers, attention, **other):
    """`attention` names the levels that have it, counted from the full resolution."""
    down = tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(channels)))
    up = tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(channels))))
    return dict(
        DDPM,
        sample_size=side,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=down,
        up_block_types=up,
        **other,
    )


CIFAR10 = unet_config(32, (128, 256, 256, 256), 2, [1])
SMALL = unet_config(32, (32, 64, 64), 1, [1], norm_num_groups=8)
CHURCH = unet_config(256, (128, 128, 256, 256, 512, 512), 2, [4])
SHAPES = unet_config(16, (32, 64), 1, [1], norm_num_groups=8)

# name, config, batch, what is timed, share of the rounds
NETWORKS = [
    ("A: ddpm-cifar10-32", CIFAR10, 4, ["forward", "train", "deme"], 1.0),
    ("A: ddpm-cifar10-32", CIFAR10, 16, ["forward"], 0.5),
    ("A: ddpm-cifar10-32", CIFAR10, 16, ["sample 50"], 0.1),
    ("B: widths 32, 64, 64", SMALL, 16, ["forward", "train", "deme"], 1.0),
    ("C: ddpm-ema-church-256", CHURCH, 1, ["forward", "train"], 0.25),
    ("shapes recipe", SHAPES, 32, ["forward", "train", "deme"], 1.0),
]

KERNELS = [
    # batch, channels in, side, channels out, kernel, stride
    ("conv2d", (8, 128, 32, 128, 3, 1)),
    ("conv2d", (8, 256, 16, 256, 3, 1)),
    ("conv2d", (8, 512, 16, 256, 3, 1)),
    ("conv2d", (8, 256, 8, 256, 3, 1)),
    ("conv2d", (8, 256, 4, 256, 3, 1)),
    ("conv2d", (1, 128, 256, 128, 3, 1)),
    ("conv2d", (16, 64, 16, 64, 3, 1)),
    ("conv2d", (8, 3, 32, 128, 3, 1)),
    ("conv2d", (8, 128, 32, 3, 3, 1)),
    ("conv2d", (8, 128, 32, 128, 3, 2)),
    ("conv2d", (8, 256, 16, 256, 3, 2)),
    ("conv2d", (8, 256, 16, 256, 1, 1)),
    ("conv2d", (8, 384, 32, 128, 1, 1)),
    # batch, channels, side, groups
    ("group_norm_silu", (8, 128, 32, 32)),
    ("group_norm_silu", (8, 256, 16, 32)),
    ("group_norm_silu", (16, 64, 16, 8)),
    # batch, heads, length, width
    ("attention", (8, 1, 256, 256)),
    ("attention", (8, 8, 256, 32)),
    # rows, in, out
    ("linear", (8, 512, 256)),
    ("linear", (2048, 256, 256)),
    # entries
    ("adamw", (35_700_000,)),
    ("adamw+ema", (35_700_000,)),
    ("norm", (35_700_000,)),
]


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

    def seconds(self, line):
        return float(self.ask(line))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def inputs_of(batch, side):
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, side, side)
    x_0, eps = (torch.randn(shape, generator=generator) for _ in range(2))
    return x_0, eps, torch.arange(batch) * 1000 // batch


class Network:
    """One variant of PyTorch on one network."""

    def __init__(self, unet, batch, side, channels_last=False, compile=False):
        import copy

        import torch

        self.unet = copy.deepcopy(unet)
        self.x_0, self.eps, self.t = inputs_of(batch, side)
        if channels_last:
            self.unet = self.unet.to(memory_format=torch.channels_last)
            self.x_0, self.eps = (x.contiguous(memory_format=torch.channels_last) for x in (self.x_0, self.eps))
        self.run = torch.compile(self.unet) if compile else self.unet
        self.teacher = None
        self.ema = None
        betas = torch.linspace(1e-4, 0.02, 1000)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.optimizer = None

    def predict(self, x, t):
        return self.run(x, t, return_dict=False)[0]

    def seconds(self, what):
        import torch

        if what == "deme" and self.teacher is None:
            import copy

            self.teacher = copy.deepcopy(self.unet).requires_grad_(False)
            compiled = self.run is not self.unet
            self.teacher_run = torch.compile(self.teacher) if compiled else self.teacher
            self.ema = [p.detach().clone() for p in self.unet.parameters()]
        if what in ("train", "deme") and self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                self.unet.parameters(), lr=5e-5, betas=(0.95, 0.999), weight_decay=1e-6, fused=True
            )
        start = time.perf_counter()
        if what == "forward":
            with torch.no_grad():
                self.predict(self.x_0, self.t)
        elif what.startswith("sample"):
            self.sample(int(what.split()[1]))
        else:
            self.step(what == "deme")
        return time.perf_counter() - start

    def step(self, deme):
        import torch

        abar = self.alphas_cumprod[self.t].view(-1, 1, 1, 1)
        x_t = abar.sqrt() * self.x_0 + (1 - abar).sqrt() * self.eps
        prediction = self.predict(x_t, self.t)
        loss = torch.nn.functional.mse_loss(prediction, self.eps)
        if deme:
            with torch.no_grad():
                wanted = self.teacher_run(x_t, self.t, return_dict=False)[0]
            loss = loss + torch.nn.functional.mse_loss(prediction, wanted)
        loss.backward()
        if deme:
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if deme:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.unet.parameters()], 0.01)

    def sample(self, steps):
        import diffusers
        import torch

        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(steps)
        x = self.x_0
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(self.predict(x, t), t, x).prev_sample


class Kernel:
    """One variant of PyTorch on one kernel."""

    def __init__(self, name, sizes, channels_last=False, compile=False):
        import torch

        self.name, self.sizes = name, sizes
        torch.manual_seed(7)
        F = torch.nn.functional
        if name == "conv2d":
            b, c_in, side, c_out, k, stride = sizes
            self.inputs = [torch.randn(b, c_in, side, side), torch.randn(c_out, c_in, k, k) * 0.02, torch.randn(c_out)]
            if stride == 1:
                self.f = lambda x, w, b: F.conv2d(x, w, b, padding=k // 2)
            else:
                self.f = lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, stride=stride)
        elif name == "group_norm_silu":
            b, c, side, groups = sizes
            self.inputs = [torch.randn(b, c, side, side), torch.randn(c), torch.randn(c)]
            self.f = lambda x, w, b: F.silu(F.group_norm(x, groups, w, b))
        elif name == "attention":
            self.inputs = [torch.randn(sizes) for _ in range(3)]
            self.f = F.scaled_dot_product_attention
        elif name == "linear":
            rows, d_in, d_out = sizes
            self.inputs = [torch.randn(rows, d_in), torch.randn(d_out, d_in) * 0.02, torch.randn(d_out)]
            self.f = F.linear
        else:
            self.inputs = []
            theta = torch.nn.Parameter(torch.randn(sizes) * 0.01)
            theta.grad = torch.randn(sizes) * 0.01
            ema = torch.randn(sizes)
            optimizer = torch.optim.AdamW([theta], lr=5e-5, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)

            def step_and_average():
                optimizer.step()
                torch._foreach_lerp_([ema], [theta.detach()], 0.001)

            self.f = {
                "adamw": optimizer.step,
                "adamw+ema": step_and_average,
                "norm": lambda: torch.nn.utils.get_total_norm([theta.grad]),
            }[name]
        if channels_last:
            self.inputs = [
                x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in self.inputs
            ]
        self.tracked = [x.clone().requires_grad_() for x in self.inputs]
        if compile:
            self.f = torch.compile(self.f)
        self.ones = None

    def seconds(self, direction, repeats):
        import torch

        start = time.perf_counter()
        for _ in range(repeats):
            if direction == "backward":
                y = self.f(*self.tracked)
                if self.ones is None:
                    self.ones = torch.ones_like(y)
                y.backward(self.ones)
                for x in self.tracked:
                    x.grad = None
            else:
                with torch.no_grad():
                    self.f(*self.inputs)
        return (time.perf_counter() - start) / repeats

    def multiply_adds(self):
        if self.name == "conv2d":
            b, c_in, side, c_out, k, stride = self.sizes
            return b * c_in * c_out * k * k * (side // stride) ** 2
        if self.name == "attention":
            b, heads, length, d = self.sizes
            return 2 * b * heads * length * length * d
        if self.name == "linear":
            rows, d_in, d_out = self.sizes
            return rows * d_in * d_out
        return 0


def network_multiply_adds(unet, batch, side):
    """Of one forward pass: convolutions by their definition, linear maps and attention."""
    import torch

    total = 0

    def hook(module, inputs, output):
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += output.numel() * module.in_features
        else:
            b, c, h, w = output.shape
            total += 2 * b * c * (h * w) ** 2

    kinds = ("Conv2d", "Linear", "Attention")
    handles = [m.register_forward_hook(hook) for m in unet.modules() if type(m).__name__ in kinds]
    x_0, _, t = inputs_of(1, side)
    with torch.no_grad():
        unet(x_0, t[:1])
    for handle in handles:
        handle.remove()
    return total * batch


def in_turns(rounds, ours, peers):
    """The seconds of `ours()` and of every peer, round by round."""

    def second_of_two(work):
        # The other program's threads wait actively for a moment before they sleep, and after a rest the
        # system takes tens of milliseconds to give a program's threads a core each.
        time.sleep(0.02)
        first = work()
        return work() if first < 1 else first

    ours_rounds, peer_rounds = [], {name: [] for name in peers}
    for _ in range(rounds):
        ours_rounds.append(second_of_two(ours))
        for name, peer in peers.items():
            peer_rounds[name].append(second_of_two(peer))
    return ours_rounds, peer_rounds


class Table:
    def __init__(self, peak):
        self.peak = peak
        self.lines = []
        self.add(["", "what", "ours", "PyTorch", "variant", "ratio", "GFLOP/s", "PyTorch's", "of peak"])
        self.lines.append("|---|---|---:|---:|---|---:|---:|---:|---:|")

    def add(self, cells):
        widths = [34, 10, 11, 11, 14, 6, 8, 9, 8]
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(cells, widths)), flush=True)
        self.lines.append("| " + " | ".join(cells) + " |")

    def row(self, name, what, ours, peers, multiply_adds):
        """`ours` and every list of `peers` hold the seconds of the rounds."""
        variant = min(peers, key=lambda variant: statistics.median(peers[variant]))
        best = peers[variant]
        ratio = statistics.median(a / b for a, b in zip(ours, best))
        a, b = statistics.median(ours), statistics.median(best)
        cells = [name, what, f"{a * 1e3:.2f} ms", f"{b * 1e3:.2f} ms", variant, f"{ratio:.2f}"]
        if multiply_adds:
            rates = [2e-9 * multiply_adds / seconds for seconds in (a, b)]
            cells += [f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{rates[0] / self.peak:.2f}"]
        else:
            cells += ["", "", ""]
        self.add(cells)
        others = (f"{name} {statistics.median(rounds) * 1e3:.2f} ms" for name, rounds in peers.items())
        print("    PyTorch:", ", ".join(others), flush=True)


def variants(make, compile, layouts):
    made = {"eager": make()}
    if layouts:
        made["channels_last"] = make(channels_last=True)
    if compile:
        made["compile"] = make(compile=True)
    return made


def warmed(peers, call):
    """Runs every variant twice, dropping a variant that fails."""
    for name in list(peers):
        try:
            call(peers[name]), call(peers[name])
        except Exception as error:
            print(f"{name} does not run here: {str(error).splitlines()[0]}", file=sys.stderr)
            del peers[name]


def peak_gflops(ours):
    """The best rate of a large matrix product, of either program."""
    import torch

    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start, ours.seconds(f"kernel linear {n} {n} {n} forward 1"))
    return 2e-9 * n**3 / best


def kernels(arguments, table, wanted):
    ours = Ours(arguments.threads)
    for name, sizes in KERNELS:
        text = f"{name} {'x'.join(map(str, sizes))}"
        directions = ["step"] if name in ("adamw", "adamw+ema", "norm") else ["forward", "backward"]
        if not wanted(text):
            continue
        peers = variants(
            lambda **how: Kernel(name, sizes, **how), arguments.compile, name in ("conv2d", "group_norm_silu")
        )
        for direction in directions:
            line = f"kernel {name} {' '.join(map(str, sizes))} {direction}"
            once = ours.seconds(f"{line} 2")
            repeats = max(1, min(200, int(0.03 / once)))
            warmed(peers, lambda peer: peer.seconds(direction, 1))
            calls = {name: functools.partial(peer.seconds, direction, repeats) for name, peer in peers.items()}
            our_call = functools.partial(ours.seconds, f"{line} {repeats}")
            ours_rounds, rounds = in_turns(arguments.rounds, our_call, calls)
            work = next(iter(peers.values())).multiply_adds() * (3 if direction == "backward" else 1)
            table.row(text, direction, ours_rounds, rounds, work)
    ours.close()


def networks(arguments, table, wanted):
    import diffusers
    import torch

    for name, config, batch, whats, share in NETWORKS:
        side = config["sample_size"]
        label = f"{name}, batch {batch}"
        whats = [what for what in whats if wanted(f"{label} {what}")]
        if not whats:
            continue
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(**config)
        multiply_adds = network_multiply_adds(unet, batch, side)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
            ours = Ours(arguments.threads)
            ours.ask(f"model {folder} {batch} {side}")
            x_0, _, t = inputs_of(batch, side)
            x_0.numpy().tofile(folder / "x")
            ours.ask(f"predict {folder / 'x'} {folder / 'y'}")
            with torch.no_grad():
                expected = unet(x_0, t).sample
            found = torch.from_file(str(folder / "y"), size=expected.numel()).view_as(expected)
            difference = (found - expected).abs().max().item()
            print(f"{label}: largest difference of the outputs {difference:.1e}, outputs up to {expected.abs().max().item():.1f}")
            peers = variants(lambda **how: Network(unet, batch, side, **how), arguments.compile, True)
            for what in whats:
                ours.seconds(what)
                warmed(peers, lambda peer: peer.seconds(what if not what.startswith("sample") else "sample 1"))
                calls = {name: functools.partial(peer.seconds, what) for name, peer in peers.items()}
                rounds = max(1, round(arguments.rounds * share))
                ours_rounds, rounds = in_turns(rounds, functools.partial(ours.seconds, what), calls)
                passes = {"forward": 1, "train": 3, "deme": 4}.get(what) or int(what.split()[1])
                table.row(label, what, ours_rounds, rounds, multiply_adds * passes)
            ours.close()


def memory(arguments, wanted):
    """Peak resident memory of a few training steps, each in a fresh process."""
    import diffusers
    import torch

    lines = ["| network | step | ours | PyTorch | ratio | PyTorch beyond its libraries |", "|---|---|---:|---:|---:|---:|"]
    for name, config, batch, whats, _ in NETWORKS:
        side = config["sample_size"]
        for what in [what for what in whats if what in ("train", "deme") and wanted(f"{name} memory {what}")]:
            torch.manual_seed(0)
            unet = diffusers.UNet2DModel(**config)
            with tempfile.TemporaryDirectory() as folder:
                diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)
                ours = Ours(arguments.threads)
                ours.ask(f"model {folder} {batch} {side}")
                a = int(ours.ask(f"memory {what}"))
                ours.close()
                command = [sys.executable, __file__, "--memory-of", folder, str(batch), what]
                command += ["--threads", str(arguments.threads)]
                b, base = map(int, subprocess.check_output(command, text=True).split())
            mb = [f"{x / 1e6:.0f} MB" for x in (a, b, b - base)]
            lines.append(f"| {name}, batch {batch} | {what} | {mb[0]} | {mb[1]} | {a / b:.2f} | {mb[2]} |")
            print(lines[-1], flush=True)
    return lines


def print_memory_of(folder, batch, what):
    """The other half of `memory`: PyTorch's peak, and what it had before it read the network."""
    import diffusers

    def peak():
        # Not getrusage, which counts what stood in the process before this program replaced it.
        status = pathlib.Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    base = peak()
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    network = Network.__new__(Network)
    network.__init__(unet, int(batch), unet.config.sample_size)
    del unet
    for _ in range(4):
        network.seconds(what)
    print(peak(), base)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="only rows whose name holds one of these words, comma separated")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--markdown", help="write the tables to this file as well")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        return print_memory_of(*arguments.memory_of)
    words = arguments.only.split(",")
    wanted = lambda text: any(word in text for word in words)
    ours = Ours(arguments.threads)
    peak = peak_gflops(ours)
    ours.close()
    head = (
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds in turns, "
        f"{platform.machine()}, matrix product's peak {peak:.0f} GFLOP/s"
    )
    print(head)
    table = Table(peak)
    kernels(arguments, table, wanted)
    networks(arguments, table, wanted)
    memory_lines = memory(arguments, wanted)
    if arguments.markdown:
        text = "\n".join([head, "", *table.lines, "", *memory_lines, ""])
        pathlib.Path(arguments.markdown).write_text(text)


if __name__ == "__main__":
    main()
