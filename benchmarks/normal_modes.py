"""Normal modes: the first mode against the true polarization, ranks where nothing is displaced, chemistry, and time.

python benchmarks/normal_modes.py             # the tables of benchmarks/normal_modes.md
python benchmarks/normal_modes.py --seeds 2   # quicker
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr

import atomzoo
from atomzoo.datasets.derived.displacements import displacements
from atomzoo.datasets.scenes import simulate
from atomzoo.models.model import find

POLAR: list[dict[str, Any]] = [
    {"material": "PbTiO3"},
    {"material": "PbTiO3", "walls": "180"},
    {"material": "BaTiO3"},
    {"material": "BiFeO3"},
    {"material": "BiFeO3", "off_centre": 0.03},
    {"material": "BaTiO3", "state": "eight-site"},
]
ALONE: list[tuple[str, dict[str, Any]]] = [
    ("perovskite", {"material": "SrTiO3"}),
    ("graphene", {}),
    ("tmd", {}),
]


def told(scene: str, seed: int, **given: Any) -> tuple[xr.Dataset, xr.Dataset, float]:
    """What is derived, the data that it was derived from, and the seconds."""
    atoms = simulate(scene, gives="atoms", seed=seed, **given)
    start = time.perf_counter()
    run = atomzoo.fit("normal_modes", atoms, seed=1, predictive=0, lean=True, draws=100)
    spent = time.perf_counter() - start
    return run["derived"].to_dataset(), find("normal_modes").prepared(atoms), spent


def agreement(found: xr.Dataset, seen: xr.Dataset) -> float:
    """Correlation of the first mode's amplitude with the true displacement along its pattern."""
    if not found.sizes["mode"]:
        return 0.0
    way = found["pattern"].values[0].mean(0)
    truth = seen["true_displacement"].values @ way
    return float(abs(np.corrcoef(found["amplitude"].values[:, 0], truth)[0, 1]))


def words(given: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in given.items()) or "as it is"


def missed_columns(seeds: int) -> None:
    """Shells that are used of a noisy, sheared scan of which some dim columns were missed."""
    print(
        "\n| MoS2, shear=0.06, stretch=1.04, disorder (nm) | dim columns missed | share of shells used: dim | bright |"
    )
    print("|---|---|---|---|")
    for disorder in (0.005, 0.01, 0.02):
        for share in (0.0, 0.05, 0.1):
            used: dict[int, list[float]] = {1: [], 2: []}
            for seed in range(4000, 4000 + seeds):
                atoms = simulate(
                    "tmd", gives="atoms", seed=seed, shear=0.06, stretch=1.04, disorder=disorder
                )
                level = np.log(atoms["intensity"].values)
                dim = level < level.mean()
                lost = dim & (np.random.default_rng(seed).random(len(dim)) < share)
                position = atoms["position"].values
                low, high = position.min(0), position.max(0)
                deep = np.minimum(position - low, high - position).min(1) > 0.25
                for centres, own in ((1, ~dim), (2, dim)):
                    seen = displacements(atoms.isel(atom=~lost), {"centres": centres})
                    kept = np.flatnonzero(~lost)[seen["atom"].values]
                    used[centres].append(np.isin(np.flatnonzero(own & deep & ~lost), kept).mean())
            print(
                f"| {disorder} | {share:.0%} | {np.mean(used[2]):.2f} | {np.mean(used[1]):.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print(
        "| perovskite | correlation with the true polarization, median | worst | most probable rank |"
    )
    print("|---|---|---|---|")
    for given in POLAR:
        found = [told("perovskite", seed, **given)[:2] for seed in range(1000, 1000 + seeds)]
        r = [agreement(*f) for f in found]
        ranks = sorted({int(f["rank_probability"].values.argmax()) for f, _ in found})
        print(f"| {words(given)} | {np.median(r):.3f} | {min(r):.3f} | {ranks} |", flush=True)
    print("\n| nothing displaced | rank 0 most probable |\n|---|---|")
    for scene, given in ALONE:
        right = sum(
            int(told(scene, seed, **given)[0]["rank_probability"].values.argmax() == 0)
            for seed in range(2000, 2000 + 2 * seeds)
        )
        print(f"| {scene}, {words(given)} | {right} of {2 * seeds} |", flush=True)
    print(
        "\n| push of chemistry (nm) | dipole along the mode: found (p > 0.95) | false alarms among other slopes |"
    )
    print("|---|---|---|")
    for push in (0.0, 0.004, 0.008, 0.016):
        hits = alarms = others = 0
        for seed in range(3000, 3000 + 2 * seeds):
            found, _, _ = told("solid_solution", seed, push=push)
            if not found.sizes["mode"]:
                continue
            probability = found["slope_probability"].values[0]
            names = found["property"].values.tolist()
            own = names.index("dipole_intensity_x")
            hits += int(probability[own] > 0.95)
            alarms += int((np.delete(probability, own) > 0.95).sum())
            others += len(names) - 1
        print(f"| {push} | {hits} of {2 * seeds} | {alarms} of {others} |", flush=True)
    missed_columns(seeds)
    print("\n| atoms | shells | seconds |\n|---|---|---|")
    for field in (10.0, 30.0, 90.0):
        found, seen, spent = told("perovskite", 1, field=field, pixel=0.05)
        print(
            f"| {seen.attrs['left_out'] + seen.sizes['atom']} | {seen.sizes['atom']} | {spent:.1f} |",
            flush=True,
        )
    names = ("numpy", "torch", "scipy")
    print(f"\nPython {platform.python_version()}, {', '.join(f'{n} {version(n)}' for n in names)}")


if __name__ == "__main__":
    main()
