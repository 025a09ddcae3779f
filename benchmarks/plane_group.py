"""Plane groups of simulated patches: how often the right one comes first, and what the others are.

python benchmarks/plane_group.py -n 100 --workers 2
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.plane_groups import GROUPS, SETTINGS, subgroups
from atomzoo.datasets.scenes import simulate

# Cells whose shape belongs to a higher system than the group asks for.
SPECIAL: dict[str, dict[str, float]] = {
    "oblique": {"ratio": 1.0, "angle": 90.0},
    "rectangular": {"ratio": 1.0},
    "rhombic": {"ratio": 3**0.5},
}


def patch(task: tuple[str, int, dict[str, float], str, bool]) -> dict[str, Any]:
    """One patch: what was found, and how far its motif is from the nearest higher group."""
    import torch

    from atomzoo.models.model import View, find

    group, seed, scene, prior, special = task
    torch.set_num_threads(1)
    lattice = next(s.lattice for s in SETTINGS if s.group == group)
    shape = SPECIAL.get(lattice, {}) if special else {}
    data = simulate("wallpaper", group=group, seed=seed, **scene, **shape)
    model = find("plane_group")
    started = time.process_time()
    try:
        seen = model.prepared(data, prior)
    except DataError as error:
        return {"group": group, "seed": seed, "first": "none", "problem": str(error)}
    told = model.posterior(View(seen), model.resolve(seen, prior), draws=10, seed=seed).derived
    probability = told["group_probability"].values
    criterion = told["group_geometric_aic"].values
    return {
        "group": group,
        "seed": seed,
        "first": GROUPS[int(probability.argmax())],
        "probability": float(probability[GROUPS.index(group)]),
        "highest": float(probability.max()),
        "geometric": GROUPS[int(criterion.argmin())],
        "broken": broken(told, group),
        "reflections": int(seen.sizes["reflection"]),
        "seconds": time.process_time() - started,
    }


def broken(told: Any, group: str) -> float:
    """How many σ a constraint of the nearest higher group is broken by, in root mean square; noise alone gives 1."""
    misfit, free = told["misfit"].values, told["free"].values
    own = min((i for i, s in enumerate(SETTINGS) if s.group == group), key=lambda i: misfit[i])
    higher = [i for i, s in enumerate(SETTINGS) if own in subgroups(s) and i != own]
    each = [(misfit[i] - misfit[own]) / max(free[own] - free[i], 1) for i in higher]
    return float(np.sqrt(max(0.0, min(each)))) if each else float("nan")


def table(found: list[dict[str, Any]]) -> str:
    """A row for each group."""
    lines = [
        "| group | n | right by evidence | by geometric AIC | mean probability of the truth | taken for | "
        "breaking of the nearest higher group, σ: least, 5 %, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        rows = [r for r in found if r["group"] == group]
        if not rows:
            continue
        right = sum(r["first"] == group for r in rows)
        geometric = sum(r.get("geometric") == group for r in rows)
        wrong = Counter(r["first"] for r in rows if r["first"] != group)
        mean = np.mean([r.get("probability", 0.0) for r in rows])
        far = np.array([r["broken"] for r in rows if np.isfinite(r.get("broken", np.nan))])
        steps = (
            "" if not len(far) else ", ".join(f"{q:.1f}" for q in np.quantile(far, [0, 0.05, 0.5]))
        )
        names = ", ".join(f"{name} {count}" for name, count in wrong.most_common())
        lines.append(
            f"| {group} | {len(rows)} | {right / len(rows):.1%} | {geometric / len(rows):.1%} | {mean:.3f} | {names} | {steps} |"
        )
    right = sum(r["first"] == r["group"] for r in found)
    geometric = sum(r.get("geometric") == r["group"] for r in found)
    mean = np.mean([r.get("probability", 0.0) for r in found])
    lines.append(
        f"| all | {len(found)} | {right / len(found):.1%} | {geometric / len(found):.1%} | {mean:.3f} | | |"
    )
    return "\n".join(lines)


def calibration(found: list[dict[str, Any]]) -> str:
    """How often the group named is wrong, beside how often its probability says that it is."""
    lines = ["| probability told | patches | wrong | wrong by what was told |", "|---|---|---|---|"]
    told = [r for r in found if "highest" in r]
    for low, high in ((0.0, 0.9), (0.9, 0.95), (0.95, 0.99), (0.99, 1.0), (0.95, 1.0)):
        here = [r for r in told if low < min(r["highest"], 1.0) <= high]
        wrong = sum(r["first"] != r["group"] for r in here)
        expected = sum(1 - r["highest"] for r in here)
        lines.append(f"| {low:g} to {high:g} | {len(here)} | {wrong} | {expected:.1f} |")
    wrong_ones = [
        f"{r['group']} {r['seed']}: {r['first']}, truth {r.get('probability', 0.0):.2g}, broken by {r.get('broken', np.nan):.1f} σ"
        for r in found
        if r["first"] != r["group"]
    ]
    return "\n".join([*lines, "", *wrong_ones])


def main() -> None:
    """Simulate, fit, print."""
    import torch

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("-n", type=int, default=100, help="patches of each group")
    options.add_argument(
        "--first", type=int, default=1000, help="first seed, the same for every group"
    )
    options.add_argument("--groups", nargs="*", default=list(GROUPS))
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--prior", default="vague")
    options.add_argument("--special", action="store_true", help="lattices of a higher system")
    options.add_argument("--snr", type=float, default=5.0)
    options.add_argument("--cells", type=float, default=6.0)
    options.add_argument("--pixels", type=int, default=96)
    options.add_argument("--shear", type=float, default=0.0)
    options.add_argument("--rows", type=Path, help="where to write a line of JSON for each patch")
    options.add_argument(
        "--told", type=Path, nargs="+", help="print the tables of such lines, and fit nothing"
    )
    given = options.parse_args()
    if given.told:
        lines = [line for path in given.told for line in path.read_text().splitlines()]
        found = [json.loads(line) for line in lines]
        print(f"{table(found)}\n\n{calibration(found)}")
        return
    scene = {name: getattr(given, name) for name in ("snr", "cells", "pixels", "shear")}
    # Seed by seed, so that what is there when the time is up has all groups.
    tasks = [
        (group, given.first + seed, scene, given.prior, given.special)
        for seed in range(given.n)
        for group in given.groups
    ]
    found = []
    with ProcessPoolExecutor(given.workers) as pool:
        for row in pool.map(patch, tasks, chunksize=2):
            found.append(row)
            if given.rows:
                with given.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"`{' '.join(sys.argv)}`\n\n{table(found)}\n\n{calibration(found)}\n")
    seconds = [r["seconds"] for r in found if "seconds" in r]
    print(
        f"CPU time of a patch: median {np.median(seconds):.2f} s. 2 cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, Torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
