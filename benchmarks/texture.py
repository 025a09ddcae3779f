"""Texture: overlap of the map of two phases with the truth, ranks on images without texture, and time.

python benchmarks/texture.py              # the tables of benchmarks/texture.md
python benchmarks/texture.py --seeds 2    # quicker
python benchmarks/texture.py --ranks      # besides: how often the most probable rank is right, set by set
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr
from scipy.interpolate import RegularGridInterpolator

import atomzoo
from atomzoo.datasets.scenes import simulate
from atomzoo.models.structure.bayesian_pca import LowRank, Scatter, learn

SCENES: list[dict[str, Any]] = [
    {"second": "square", "shape": "disc"},
    {"second": "square", "shape": "wave"},
    {"second": "square", "shape": "discs"},
    {"second": "turned", "shape": "wave"},
    {"second": "turned", "shape": "disc"},
    {"second": "ordered", "shape": "disc"},
    {"second": "ordered", "shape": "wave"},
    {"second": "turned", "shape": "wave", "dose": 100.0},
    {"second": "turned", "shape": "disc", "size": 2.5},
    {"second": "turned", "shape": "disc", "size": 1.2},
]
ALONE: list[dict[str, Any]] = [{}, {"dose": 50.0}, {"field": 12.0}]


def overlap(image: xr.Dataset, run: xr.DataTree) -> tuple[float, float]:
    """Intersection over union of matrix and inclusion, half a window from the rim and further in."""
    told = run["derived"].to_dataset()
    place = told["place_position"].values.round(9)
    x, y = np.unique(place[:, 0]), np.unique(place[:, 1])
    last = told["phase_probability"].values[:, -1].reshape(len(y), len(x))
    grid = np.stack(np.meshgrid(image.y.values, image.x.values, indexing="ij"), -1)
    seen = RegularGridInterpolator((y, x), last, bounds_error=False, fill_value=np.nan)(grid)
    true, inside = image["true_phase"].values == 1, np.isfinite(seen)
    best = (0.0, 0.0)
    for said in (seen > 0.5, seen <= 0.5):
        pairs = [(a & inside, b & inside) for a, b in ((~said, ~true), (said, true))]
        found = [float((a & b).sum() / max(1, (a | b).sum())) for a, b in pairs]
        best = max(best, (found[0], found[1]), key=sum)
    return best


def maps(seeds: int) -> None:
    print(
        "| scene | inclusion, median | worst | matrix, median | mean of both ≥ 0.95 | most probable rank | s |"
    )
    print("|---|---|---|---|---|---|---|")
    for given in SCENES:
        found, ranks, spent = [], [], []
        for seed in range(1000, 1000 + seeds):
            image = simulate("two_phases", seed=seed, **given)
            start = time.perf_counter()
            run = atomzoo.fit("texture", image, seed=1, predictive=0, lean=True, draws=100)
            spent.append(time.perf_counter() - start)
            found.append(overlap(image, run))
            ranks.append(int(run["derived"]["rank_probability"].values.argmax()))
        matrix, inclusion = np.array(found).T
        both = (matrix + inclusion) / 2
        text = ", ".join(f"{k}={v}" for k, v in given.items())
        print(
            f"| {text} | {np.median(inclusion):.3f} | {inclusion.min():.3f} | {np.median(matrix):.3f} | "
            f"{(both >= 0.95).sum()} of {seeds} | {sorted(set(ranks))} | {np.median(spent):.1f} |",
            flush=True,
        )


def without(seeds: int) -> None:
    print("\n| one crystal, nothing but noise | rank 0 most probable |\n|---|---|")
    for given in ALONE:
        right = 0
        for seed in range(2000, 2000 + seeds):
            image = simulate("two_phases", seed=seed, shape="none", **given)
            run = atomzoo.fit("texture", image, seed=1, predictive=0, lean=True, draws=40)
            right += int(run["derived"]["rank_probability"].values.argmax() == 0)
        text = ", ".join(f"{k}={v}" for k, v in given.items()) or "as it is"
        print(f"| {text} | {right} of {seeds} |", flush=True)


def ranks(sets: int) -> None:
    print(
        "\n| units | features | amplitude / noise | "
        + " | ".join(f"rank {k}" for k in range(4))
        + " |"
    )
    print("|---|---|---|" + "---|" * 4)
    half = torch.distributions.HalfNormal(torch.tensor(2.0, dtype=torch.float64))
    wide = torch.distributions.Normal(*torch.tensor([0.0, 3.0], dtype=torch.float64))
    rng = np.random.default_rng(0)
    for units, features, size in (
        (400, 12, 0.3), (400, 12, 0.5), (400, 12, 1.0), (400, 12, 3.0), (100, 30, 0.7), (100, 30, 1.5),
    ):  # fmt: skip
        scale = torch.tensor([math.log(2 * size), 1.0], dtype=torch.float64)
        prior = LowRank(np.ones(6), torch.distributions.LogNormal(*scale), half, wide)
        right = []
        for rank in range(4):
            hits = 0
            for i in range(sets):
                frame = np.linalg.qr(rng.standard_normal((features, features)))[0][:, :rank]
                strength = size * np.linspace(1, 2, rank) if rank else np.zeros(0)
                values = (rng.standard_normal((units, rank)) * strength) @ frame.T
                values += rng.standard_normal((units, features))
                told = learn(Scatter.of(values), prior, draws=1, seed=i)
                hits += int(told.rank_probability.argmax() == rank)
            right.append(f"{hits} of {sets}")
        print(
            f"| {units} | {features} | {size} to {2 * size} | " + " | ".join(right) + " |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--ranks", action="store_true")
    chosen = parser.parse_args()
    maps(chosen.seeds)
    without(4 * chosen.seeds)
    if chosen.ranks:
        ranks(chosen.sets)
    names = ("numpy", "torch", "scipy")
    libraries = ", ".join(f"{n} {version(n)}" for n in names)
    print(f"\nPython {platform.python_version()}, {libraries}")


if __name__ == "__main__":
    main()
