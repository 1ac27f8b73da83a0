"""Computes fixtures/metrics/expected.json: what other programs make of the features in fixtures/fid.

    python tools/make_metric_references.py fixtures

Needs numpy, scipy, torch, torchmetrics, clean-fid and safetensors. Features are rounded to float32, as
extractors give them, and everything is computed from these in float64.
"""

import json
import pathlib
import sys
from unittest import mock

import numpy as np
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from cleanfid import fid as cleanfid
from safetensors.numpy import load_file
from torchmetrics.image.kid import poly_mmd


def kernel_distance(generated, reference, subsets):
    """torchmetrics' distance on each subset (torch-fidelity's formula); clean-fid's mean must agree."""
    pick = lambda x, rows: torch.from_numpy(x[rows])
    values = [float(poly_mmd(pick(reference, s["reference"]), pick(generated, s["generated"]))) for s in subsets]
    # clean-fid draws from its second argument first.
    drawn = iter([rows for s in subsets for rows in (s["generated"], s["reference"])])
    size = len(subsets[0]["generated"])
    with mock.patch("numpy.random.choice", lambda *_, **__: next(drawn)):
        mean = cleanfid.kernel_distance(reference, generated, len(subsets), size)
    assert abs(mean - np.mean(values)) < 1e-12, (mean, np.mean(values))
    return {"of_subsets": values, "mean": float(np.mean(values)), "std": float(np.std(values))}


def neighbours(generated, real, k, density_k):
    """Kynkäänniemi et al. 2019, eq. 1 and 2, and Naeem et al. 2020, eq. 3 and 4, with all distances at once."""

    def radii(x, k):
        return np.sort(scipy.spatial.distance.cdist(x, x), axis=1)[:, k]

    distance = scipy.spatial.distance.cdist(real, generated)
    wide = radii(real, density_k)[:, None]
    return {
        "precision": float((distance <= radii(real, k)[:, None]).any(axis=0).mean()),
        "recall": float((distance <= radii(generated, k)[None, :]).any(axis=1).mean()),
        "density": float((distance < wide).sum(axis=0).mean() / density_k),
        "coverage": float((distance.min(axis=1)[:, None] < wide).mean()),
    }


def inception_score(logits, splits):
    """torch-fidelity's and torchmetrics' formula without their shuffling."""
    log_p = torch.from_numpy(logits).log_softmax(dim=1)
    scores = []
    for split in range(splits):
        part = log_p[split * len(logits) // splits : (split + 1) * len(logits) // splits]
        p = part.exp()
        scores.append(float((p * (part - p.mean(dim=0, keepdim=True).log())).sum(dim=1).mean().exp()))
    return {"of_splits": scores, "mean": float(np.mean(scores)), "std": float(np.std(scores))}


def frechet(x, y):
    """By the eigenvalues of the symmetric product."""
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False)).real
    eigenvalues = np.linalg.eigvalsh(root @ np.cov(y, rowvar=False) @ root)
    difference = x.mean(axis=0) - y.mean(axis=0)
    traces = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False))
    return float(difference @ difference + traces - 2 * np.sqrt(np.clip(eigenvalues, 0, None)).sum())


def fd_infinity(generated, reference, sizes):
    """The distance of the first N features at each N, and the line through them over 1/N."""
    values = [frechet(generated[:n], reference) for n in sizes]
    line = scipy.stats.linregress(1 / np.array(sizes), values)
    reach = scipy.stats.t.ppf(0.975, len(sizes) - 2) * line.intercept_stderr
    return {
        "sizes": sizes,
        "distances": values,
        "value": line.intercept,
        "slope": line.slope,
        "std_error": line.intercept_stderr,
        "interval": [line.intercept - reach, line.intercept + reach],
    }


def cmmd(x, y):
    """Jayasumana et al. 2024, with the authors' sigma = 10 and unit of a thousandth."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    mean = lambda a, b: np.exp(-scipy.spatial.distance.cdist(a, b, "sqeuclidean") / 200).mean()
    return float(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


def main(folder):
    features = load_file(folder / "fid/features.safetensors")
    features = {name: x.astype(np.float32).astype(np.float64) for name, x in features.items()}
    a, b, few = features["a"], features["b"], features["few"]
    rng = np.random.default_rng(0)
    draw = lambda x, size: rng.choice(len(x), size, replace=False).tolist()
    # Small subsets, and ones that together have more pairs than there are.
    kid = []
    for count, size in [(3, 40), (5, 200)]:
        subsets = [{"generated": draw(b, size), "reference": draw(a, size)} for _ in range(count)]
        kid.append({"subsets": subsets} | kernel_distance(b, a, subsets))
    expected = {
        "generated": "b",
        "reference": "a",
        "kid": kid,
        "neighbours": [
            {"generated": g, "real": r, "k": k, "density_k": d} | neighbours(features[g], features[r], k, d)
            for g, r, k, d in [("b", "a", 3, 5), ("a", "b", 3, 5), ("b", "a", 1, 10), ("few", "a", 3, 5)]
        ],
        "inception_score": [{"logits": "b", "splits": s} | inception_score(b, s) for s in (10, 3, 1)],
        "fd_infinity": fd_infinity(b, a, [60, 90, 120, 150, 180, 220, 260]),
        "cmmd": cmmd(b, a),
        "cmmd_few": cmmd(few, a),
    }
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics/expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
