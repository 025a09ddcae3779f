"""How many levels of brightness are found, and how many columns of an alloy are named rightly.

    python benchmarks/species.py --sets 20

The first table draws columns of one to three levels, `--apart` spreads from each other, and counts how often the most
probable number of levels is the true one. The second simulates MoS₂ with tungsten and vacancies of sulphur at several
doses and names its columns by the set `MoS2`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from atomzoo.datasets.kinds import dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit

LADDER = {"S": 0, "S2": 1, "Mo": 3, "W": 5}


def levels(count: int, apart: float, side: int, seed: int) -> tuple[float, float, float]:
    """Whether the number is found, the probability of what was found, and that of the truth."""
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
    best = max(chance, key=lambda k: chance[k])
    return float(best == str(count)), chance[best], chance.get(str(count), 0.0)


def named(dose: float, seed: int) -> tuple[float, float]:
    """Share of the columns named rightly, and the mean probability of the names given."""
    data = simulate("tmd", seed=seed, gives="atoms", field=5.0, tungsten=0.05, dose=dose)
    run = fit("species", data, prior="MoS2", predictive=0, draws=100, seed=seed)
    chance = run["classes"]["kind"].values
    true = np.array([LADDER[data.attrs["species_names"][s]] for s in data.true_species.values])
    return float((chance.argmax(1) == true).mean()), float(chance.max(1).mean())


def main() -> None:
    """Fit seed by seed, so that what is there when the time is up has all rows, and print both tables after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--apart", type=float, default=6.0)
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--doses", type=float, nargs="*", default=[100.0, 300.0, 1500.0])
    given = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(given.first, given.first + given.sets):
        for count in given.levels:
            _timed(found, f"{count} levels", levels, count, given.apart, given.side, seed)
        for dose in given.doses:
            _timed(found, f"{dose:g} electrons", named, dose, seed)
        print(_tables(found), flush=True)
    versions = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, Torch {torch.__version__}"
    )
    print(f"\n{versions}")


def _timed(
    found: dict[str, list[tuple[float, ...]]],
    row: str,
    measure: Callable[..., tuple[float, ...]],
    *given: float,
) -> None:
    started = time.process_time()
    told = measure(*given)
    found.setdefault(row, []).append((*told, time.process_time() - started))


def _tables(found: dict[str, list[tuple[float, ...]]]) -> str:
    """Rows of levels and of doses; a share is right when it is as large as the mean probability that was told."""
    lines = [
        "",
        "| levels | sets | number found | mean probability told of it | mean probability of the truth | CPU s a set |",
        "|---|---|---|---|---|---|",
    ]
    for row, told in found.items():
        if row.endswith("levels"):
            right, best, truth, seconds = np.mean(told, axis=0)
            lines.append(
                f"| {row.split()[0]} | {len(told)} | {right:.0%} | {best:.2f} | {truth:.2f} | {seconds:.1f} |"
            )
    lines += [
        "",
        "| electrons a Mo column | sets | named rightly: mean, least | mean probability of the name | CPU s a set |",
        "|---|---|---|---|---|",
    ]
    for row, told in found.items():
        if row.endswith("electrons"):
            right, chance, seconds = np.mean(told, axis=0)
            least = min(each[0] for each in told)
            lines.append(
                f"| {row.split()[0]} | {len(told)} | {right:.1%}, {least:.1%} | {chance:.3f} | {seconds:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
