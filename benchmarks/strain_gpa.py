"""Strain from phases beside the truth: error, coverage and time against noise and shape.

    python benchmarks/strain_gpa.py -n 8 > benchmarks/strain_gpa.md

Each row is the scene `strained` at rest under a scan without error, its image with white noise: the ratio of signal and
noise (SNR) is the standard deviation of the noiseless image over that of a pixel's noise. The truth is the displacement's
gradient as the windows see it, at their resolution, and, beside it, the gradient itself.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import xarray as xr

import atomzoo
from atomzoo.datasets.derived.phases import phases_of, strain_of
from atomzoo.datasets.derived.reflections import windows
from atomzoo.models.model import View, find
from atomzoo.models.structure.strain_gpa import posterior

LATTICE = {"set": "vague", "a": 0.39, "b": 0.39, "gamma": 90.0}
NAMES = ("exx", "eyy", "exy")
ROWS = [
    ("waves, 1 %, 3 nm", {"strain": 0.01, "size": 3.0}, 3.0),
    ("waves, 1 %, 3 nm", {"strain": 0.01, "size": 3.0}, 10.0),
    ("waves, 1 %, 3 nm", {"strain": 0.01, "size": 3.0}, 30.0),
    ("waves, 1 %, 1 nm", {"strain": 0.01, "size": 1.0}, 10.0),
    ("waves, 2 %, 2 nm", {"strain": 0.02, "size": 2.0}, 10.0),
    ("inclusion, 2 %, 5 nm", {"shape": "inclusion", "strain": 0.02, "size": 5.0}, 10.0),
    ("two dislocations", {"shape": "dislocations", "size": 6.0}, 10.0),
    ("waves, columns 3 pm off", {"strain": 0.01, "size": 3.0, "disorder": 0.003}, 10.0),
]


def gradient(image: xr.Dataset) -> np.ndarray:
    """∇u of the scene's maps, (y, x, i, j)."""
    exx, eyy, exy = (image[f"true_{name}"].values for name in NAMES)
    stretch = np.stack([np.stack([1 + exx, exy], -1), np.stack([exy, 1 + eyy], -1)], -2)
    angle = np.deg2rad(image["true_local_rotation"].values)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    return np.eye(2) - np.linalg.inv(stretch @ turn)


def truth(image: xr.Dataset, phases: xr.Dataset) -> tuple[dict[str, np.ndarray], ...]:
    """Strain at the windows, as they see it and as it is."""
    whole, position = gradient(image), phases["position"].values
    along = image["true_map_x"].values
    weights = [windows(position[:, axis], along, phases.attrs["resolution"]) for axis in (0, 1)]
    seen = np.einsum("py,yxij,px->pij", weights[1], whole, weights[0], optimize=True)
    near = np.rint((position - along[0]) / (along[1] - along[0])).astype(int)
    plain = whole[near[:, 1], near[:, 0]]
    return tuple(strain_of(np.linalg.inv(np.eye(2) - one)) for one in (seen, plain))


def measure(scene: dict[str, object], ratio: float, seed: int) -> dict[str, float]:
    """One image: errors, coverage and seconds."""
    still = {"disorder": 0.0, "spread": 0.0, "background": 0.0}
    image = atomzoo.simulate("strained", seed=seed, field=12.0, **{**still, **scene})
    clean = image["true_mean"].values
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    image["intensity"].values = clean + clean.std() / ratio * noise
    model = find("strain_gpa")
    started = time.perf_counter()
    phases = phases_of(image, model.prior(LATTICE).numbers)
    found = posterior(View(phases), model.resolve(phases, LATTICE), draws=400, seed=seed).derived
    seconds = time.perf_counter() - started
    seen, plain = truth(image, phases)
    assert found is not None
    square, raw, inside = [], [], []
    for name in NAMES:
        off = found[name].values - seen[name]
        square.append(np.mean(off**2))
        raw.append(np.mean((found[name].values - plain[name]) ** 2))
        inside.append(np.mean(np.abs(off) < 1.645 * found[f"{name}_sd"].values))
    return {
        "rmse": float(np.mean(square)),
        "raw": float(np.mean(raw)),
        "sd": float(np.mean([np.mean(found[f"{n}_sd"].values ** 2) for n in NAMES])),
        "inside": float(np.mean(inside)),
        "seconds": seconds,
        "windows": phases.sizes["point"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=8, help="images a row")
    count = parser.parse_args().n
    print("| specimen | SNR | windows | RMSE, % | RMSE, not smoothed, % | told error, % |", end="")
    print(" 90 % intervals cover | seconds |\n|---|---|---|---|---|---|---|---|")
    for title, scene, ratio in ROWS:
        rows = [measure(scene, ratio, seed) for seed in range(count)]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        spread = np.std([row["inside"] for row in rows], ddof=1) / np.sqrt(count)
        rmse, raw, told = (100 * mean[name] ** 0.5 for name in ("rmse", "raw", "sd"))
        print(
            f"| {title} | {ratio:g} | {mean['windows']:.0f} | {rmse:.3f} | {raw:.3f} | {told:.3f} | "
            f"{100 * mean['inside']:.1f} ± {100 * spread:.1f} % | {mean['seconds']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
