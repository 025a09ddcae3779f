"""How many levels of brightness are found, and how many columns of an alloy are named rightly.

    python benchmarks/species.py --sets 8

The first table draws columns of one to three levels, `--apart` spreads from each other, and counts how often the most
probable number of levels is the true one. The second simulates MoS₂ with tungsten and vacancies of sulphur at several
doses and names its columns by the set `MoS2`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
import torch

from atomzoo.datasets.kinds import dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit

LADDER = {"S": 0, "S2": 1, "Mo": 3, "W": 5}


def levels(count: int, apart: float, side: int, seed: int) -> tuple[bool, float]:
    """Whether the number is found, and the probability of the truth."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    bright = 1 + 0.08 * (
        apart * rng.integers(count, size=len(cell)) + rng.standard_normal(len(cell))
    )
    data = dataset(
        "atoms",
        position=0.39 * cell,
        intensity=bright,
        axis=np.array(["x", "y"]),
        units={"position": "nm"},
    )
    run = fit("species", data, predictive=0, lean=True, draws=100, seed=seed)
    chance = json.loads(run.attrs["levels_probability"])
    return max(chance, key=lambda k: chance[k]) == str(count), chance.get(str(count), 0.0)


def named(dose: float, seed: int) -> tuple[float, float]:
    """Share of the columns named rightly, and the mean probability of the names given."""
    data = simulate("tmd", seed=seed, gives="atoms", field=5.0, tungsten=0.05, dose=dose)
    run = fit("species", data, prior="MoS2", predictive=0, draws=100, seed=seed)
    chance = run["classes"]["kind"].values
    true = np.array([LADDER[data.attrs["species_names"][s]] for s in data.true_species.values])
    return float((chance.argmax(1) == true).mean()), float(chance.max(1).mean())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--apart", type=float, default=6.0)
    given = parser.parse_args()
    print("| levels | sets | number found | mean probability of the truth | s a set |")
    print("|---|---|---|---|---|")
    for count in (1, 2, 3):
        started = time.perf_counter()
        found = [levels(count, given.apart, given.side, seed) for seed in range(given.sets)]
        right, chance = np.mean(found, axis=0)
        seconds = (time.perf_counter() - started) / given.sets
        print(
            f"| {count} | {given.sets} | {right:.0%} | {chance:.2f} | {seconds:.1f} |", flush=True
        )
    print("\n| electrons a Mo column | sets | named rightly | mean probability of the name |")
    print("|---|---|---|---|")
    for dose in (100.0, 300.0, 1500.0):
        right, chance = np.mean([named(dose, seed) for seed in range(given.sets)], axis=0)
        print(f"| {dose:g} | {given.sets} | {right:.1%} | {chance:.3f} |", flush=True)
    versions = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, Torch {torch.__version__}"
    )
    print(f"\n{versions}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
