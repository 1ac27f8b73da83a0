#!/usr/bin/env python3
"""Compares deme's CLIP score with transformers and open_clip, pair by pair, and times them in turns.

    cargo build --release -p deme
    python tools/compare_clip_score.py [--images DIR --captions FILE] [--model DIR] [--count N] [--rounds N]

Without --model, models with random weights are made: a ViT-B/32 `CLIPModel` of transformers with CLIP's own
vocabulary, the same architecture of open_clip as a file, and an open_clip folder with odd sizes (heads of 88,
an MLP of 4.3637 widths, squashed bilinear pictures). Their towers are random, but share a direction, so that
few cosines are negative and clamped. With --model, a Hugging Face folder is compared as it is.

Without --images, pictures of odd sizes are made, with captions that have accents, quotes, emoji, and more
tokens than fit. Pictures should be PNG: JPEG decoders differ by a level here and there, and so do scores.

The reference is `CLIPModel` behind PIL's bicubic (`CLIPImageProcessorPil`), not the torchvision processor that
is transformers' default since version 5: that one resizes tensors, which are up to a level away from PIL.
Scores must agree within --tolerance. Times are those of decoding, preparing and embedding all pairs, without
loading the model where deme says how long that took (`load_secs`, `score_secs`).

Needs Python with torch, transformers, open_clip_torch and safetensors.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
CAPTIONS = [
    "a photo of a cat",
    "A PHOTO of a cat!!!",
    "two red squares above a blue circle",
    "It’s a “quoted” caption — with dashes…",
    "café naïve déjà vu, Straße, ΟΔΟΣ",
    "tom &amp; jerry in caf&eacute; no. 5",
    "emoji 👩‍🚀🎈 and flags 🇩🇪",
    "日本語のキャプション",
    "ｗｉｄｅ ｌｅｔｔｅｒｓ and a ﬁne ligature",
    "a very long caption " + "with more and more words in it " * 20,
]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=pathlib.Path, help="folder of pictures; with --captions")
    parser.add_argument("--captions", type=pathlib.Path, help="metadata.jsonl with file_name and text")
    parser.add_argument("--model", type=pathlib.Path, help="a Hugging Face CLIP folder")
    parser.add_argument("--count", type=int, default=64, help="pictures to make")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=64, help="of the reference")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument(
        "--command",
        default=f"{ROOT}/target/release/deme clip-score --images {{images}} --captions {{captions}} "
        "--model {model} {architecture} --json --per-pair",
        help="prints the JSON; {architecture} is `--architecture NAME` or nothing",
    )
    return parser.parse_args()


def make_pictures(folder, count):
    """Smooth random pictures of sizes whose margins are of every kind, and their captions."""
    random = np.random.default_rng(0)
    lines = []
    for i in range(count):
        width, height = 225 + 3 * (i % 40), 224 + 7 * (i % 23)
        coarse = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC), dtype=np.int16)
        noisy = smooth + random.integers(-12, 13, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.png")
        caption = CAPTIONS[i % len(CAPTIONS)]
        lines.append({"file_name": f"{i:05}.png", "text": caption if i < 2 * len(CAPTIONS) else f"{caption} {i}"})
    captions = folder / "metadata.jsonl"
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return captions


def read_pairs(images, captions):
    lines = captions.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines if line.strip()]
    return sorted((images / pair["file_name"], pair["text"]) for pair in pairs)


def share_a_direction(image_bias, image_projection, text_bias, text_projection):
    """Moves both towers' last norms so that all embeddings have one component in common."""
    with torch.no_grad():
        common = torch.nn.functional.normalize(torch.randn(image_projection.shape[0]), dim=0)
        for bias, projection in [(image_bias, image_projection), (text_bias, text_projection)]:
            length = projection.norm() / math.sqrt(projection.shape[1]) * 6
            bias += torch.linalg.pinv(projection) @ common * length


def published_vocabulary(folder):
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    vocabulary = dict(tokenizer.encoder)
    vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
    vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    text = "#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in merges)
    (folder / "merges.txt").write_text(text, encoding="utf-8")


def make_hugging_face(folder):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).eval()
    share_a_direction(
        model.vision_model.post_layernorm.bias,
        model.visual_projection.weight,
        model.text_model.final_layer_norm.bias,
        model.text_projection.weight,
    )
    model.save_pretrained(folder)
    published_vocabulary(folder)
    return folder


class HuggingFace:
    def __init__(self, folder):
        from transformers import CLIPModel, CLIPTokenizer

        try:
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
        except ImportError:
            from transformers import CLIPImageProcessor as Processor
        self.model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        size = self.model.config.vision_config.image_size
        has_settings = any((pathlib.Path(folder) / f"{name}_config.json").exists() for name in ["preprocessor", "processor"])
        self.processor = (
            Processor.from_pretrained(folder)
            if has_settings
            else Processor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        )

    def embeds(self, images, captions):
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        ids = self.tokenizer(captions, padding=True, truncation=True, max_length=77, return_tensors="pt")
        image = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        text = self.model.text_projection(self.model.text_model(**ids).pooler_output)
        return image, text


class OpenClip:
    def __init__(self, model, preprocess, tokenizer):
        self.model, self.preprocess, self.tokenizer = model.eval(), preprocess, tokenizer

    def embeds(self, images, captions):
        pixels = torch.stack([self.preprocess(image) for image in images])
        return self.model.encode_image(pixels), self.model.encode_text(self.tokenizer(captions))


def lively(model):
    """open_clip leaves biases at zero and towers nearly linear: move everything a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    share_a_direction(
        model.visual.ln_post.bias, model.visual.proj.T, model.ln_final.bias, model.text_projection.T
    )


def make_open_clip(folder):
    import open_clip

    torch.manual_seed(1)
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    lively(model)
    path = folder / "vit_b_32.pt"
    torch.save({"epoch": 1, "name": "ViT-B-32", "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path, OpenClip(model, preprocess, open_clip.get_tokenizer("ViT-B-32"))


def make_odd_open_clip(folder):
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import save_file

    torch.manual_seed(2)
    config = {
        "embed_dim": 96,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 98, "layers": 3, "width": 176, "head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
    }
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
    model = open_clip.CLIP(**config)
    lively(model)
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    transform = image_transform_v2(PreprocessCfg(size=98, **preprocess), is_train=False)
    return folder, OpenClip(model, transform, open_clip.get_tokenizer("ViT-B-32"))


def reference_scores(reference, pairs, batch):
    scores = []
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(pairs), batch):
            part = pairs[at : at + batch]
            images = [Image.open(path).convert("RGB") for path, _ in part]
            image, text = reference.embeds(images, [caption for _, caption in part])
            cosine = torch.nn.functional.cosine_similarity(image.double(), text.double())
            scores += (100 * cosine.clamp(min=0)).tolist()
    return scores, time.perf_counter() - start


def our_scores(arguments, images, captions, model, architecture):
    fill = {
        "images": shlex.quote(str(images)),
        "captions": shlex.quote(str(captions)),
        "model": shlex.quote(str(model)),
        "architecture": f"--architecture {architecture}" if architecture else "",
        "architecture_name": architecture or "",
    }
    command = shlex.split(arguments.command.format(**fill))
    environment = dict(os.environ, RAYON_NUM_THREADS=str(arguments.threads))
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - start
    result = json.loads(done.stdout)
    return result, result.get("score_secs", seconds)


def compare(arguments, name, images, captions, model, architecture, reference):
    pairs = read_pairs(images, captions)
    ratios, ours, theirs = [], [], []
    for _ in range(arguments.rounds):
        expected, their_seconds = reference_scores(reference, pairs, arguments.batch)
        result, our_seconds = our_scores(arguments, images, captions, model, architecture)
        ours.append(our_seconds)
        theirs.append(their_seconds)
        ratios.append(our_seconds / their_seconds)
    found = [pair["score"] for pair in result["pairs"]]
    assert len(found) == len(expected), f"{len(found)} pairs, expected {len(expected)}"
    worst = max(range(len(found)), key=lambda i: abs(found[i] - expected[i]))
    difference = abs(found[worst] - expected[worst])
    print(f"{name}: {len(found)} pairs, mean {result['value']:.6f}, reference {statistics.fmean(expected):.6f}")
    print(f"  scores from {min(expected):.3f} to {max(expected):.3f}, deviation {statistics.pstdev(expected):.3f}")
    print(f"  largest difference {difference:.2e} ({result['pairs'][worst]['file']}), truncated {result['truncated']}")
    print(f"  seconds {statistics.median(ours):.3f}, reference {statistics.median(theirs):.3f}, ratio {statistics.median(ratios):.3f}")
    return difference <= arguments.tolerance


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        images, captions = arguments.images, arguments.captions
        if images is None:
            images = scratch / "pictures"
            images.mkdir()
            captions = make_pictures(images, arguments.count)
        captions = captions or images / "metadata.jsonl"

        def folder(name):
            (scratch / name).mkdir()
            return scratch / name

        def hugging_face():
            model = arguments.model or make_hugging_face(folder("hugging_face"))
            return model, None, HuggingFace(model)

        def open_clip():
            model, reference = make_open_clip(folder("open_clip"))
            return model, "ViT-B-32", reference

        def odd_open_clip():
            model, reference = make_odd_open_clip(folder("odd_open_clip"))
            return model, None, reference

        makers = {"transformers ViT-B/32": hugging_face}
        if arguments.model is None:
            makers |= {"open_clip ViT-B-32": open_clip, "open_clip with odd sizes": odd_open_clip}
        good = True
        for name, make in makers.items():
            if arguments.only in name:
                model, architecture, reference = make()
                good &= compare(arguments, name, images, captions, model, architecture, reference)
    if not good:
        sys.exit(f"scores differ by more than {arguments.tolerance}")


if __name__ == "__main__":
    main()
