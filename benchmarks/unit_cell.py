"""How often the Bayes factor of tetragonal against cubic is right, on simulated lattices whose truth is known.

    python benchmarks/unit_cell.py --sets 40

A square lattice of `--side` columns a side is measured with `--precision` nm a column, and stretched so that
(c − a) / σ_mean is 0, 2, 4 or 8; σ_mean is the standard error of the mean of c − a over cells, were these independent:
√2 · precision / √cells. Each row of the table is one such ratio under one prior set, with the share of the sets in
which the Bayes factor is beyond 3 and beyond 10, in which neither it nor its inverse is beyond 10 (undecided), the
median of its logarithm, and the coverage of c/a at 90 %.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import torch
import xarray as xr

from atomzoo.datasets.kinds import dataset
from atomzoo.models.model import View
from atomzoo.models.structure.strain_fields import Fit
from atomzoo.models.structure.unit_cell import draw, unit_cell

A = 0.39


def crystal(side: int, precision: float, ratio: float, stretch: float, seed: int) -> xr.Dataset:
    """A rectangular lattice with c − a of so many standard errors, its y stretched by the scan."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(2) * precision / (side - 1)
    cell = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    position = cell * [A - ratio * sigma / 2, A + ratio * sigma / 2] * [1.0, 1 + stretch]
    position = position + precision * rng.standard_normal(position.shape)
    covariance = np.tile(precision**2 * np.eye(2), (len(position), 1, 1))
    return dataset(
        "atoms",
        position=position,
        covariance=covariance,
        axis=np.array(["x", "y"]),
        units={"position": "nm", "covariance": "nm^2"},
    )


def one(data: xr.Dataset, prior: str, seed: int) -> tuple[float, np.ndarray]:
    """The log Bayes factor, and the 90 % interval of the strain c/a − 1 where the lattice is tetragonal."""
    seen = unit_cell.prepared(data, prior)
    fit = Fit(View(seen), unit_cell.resolve(seen, prior))
    cubic, tetragonal = fit.grid(0), fit.grid(1)
    values = draw(fit, [tetragonal], torch.ones(1), 200, seed)
    # e₁ is the strain of a against that of c.
    strain = -values["strain"][:, 0].numpy()
    return tetragonal.log_evidence - cubic.log_evidence, np.quantile(strain, [0.05, 0.95])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--precision", type=float, default=0.005)
    parser.add_argument("--prior", choices=("calibrated", "vague"), default="calibrated")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0, 8.0])
    given = parser.parse_args()
    print(
        "| prior | (c − a)/σ_mean | sets | BF > 3 | BF > 10 | undecided | median log BF | c/a in 90 % | CPU s a set |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for ratio in given.ratios:
        row(given.prior, ratio, given)
    versions = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, Torch {torch.__version__}"
    )
    print(f"\n{versions}")


def row(prior: str, ratio: float, given: argparse.Namespace) -> None:
    """One row of the table."""
    started = time.process_time()
    factors, covered = [], []
    sigma = np.sqrt(2) * given.precision / (given.side - 1)
    for seed in range(given.sets):
        stretch = (
            0.0
            if prior == "calibrated"
            else 0.02 * np.random.default_rng(seed + 1000).standard_normal()
        )
        data = crystal(given.side, given.precision, ratio, stretch, seed)
        factor, (low, high) = one(data, prior, seed)
        factors.append(factor)
        true = ratio * sigma / A
        covered.append(low <= true <= high)
    log = np.array(factors)
    seconds = (time.process_time() - started) / given.sets
    print(
        f"| {prior} | {ratio:g} | {given.sets} | {np.mean(log > np.log(3)):.1%} | {np.mean(log > np.log(10)):.1%} "
        f"| {np.mean(np.abs(log) <= np.log(10)):.1%} | {np.median(log):.1f} | {np.mean(covered):.0%} | {seconds:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
