"""Quadrature in up to three dimensions, and enumeration where all latents are discrete.

The posterior is shared out among its modes by weights that sum to one, and each mode's share is summed over a lattice
in coordinates where it is round, grown outwards from the mode until what lies beyond is negligible. On all of space
the sum over a lattice of a smooth density converges faster than any power of the spacing (the trapezoid rule), so the
spacing is halved until the sum stands still; the last change is the error.

References: Trefethen and Weideman, The exponentially convergent trapezoidal rule, SIAM Review 56 (2014).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from .density import Density
from .laplace import no_latents
from .mixture import Mixture, start_mixture
from .modes import find_modes
from .resampling import shuffled, systematic
from .runs import Draws, Progress, RunError

__all__ = ["run"]

MOST_DIMENSIONS = 3
# Points e^-30 below the mode add nothing that double precision would show.
NEGLIGIBLE = 30.0
# The lattice of a round Gaussian at this spacing has an error of 1e-8, and half of it 1e-34.
FIRST_SPACING = 1.0
# How fast one mode's share gives way to the next one's: by the ratio of broad bells around them.
DEGREES_OF_FREEDOM = 5.0
# Points to find the posterior's shape with, and how often to look again.
SKETCH, MOST_REFITS = 20_000, 20
# Draws are chosen among so many times more places in the cells.
OVERDRAWN = 8
# Of an index along one axis, when all three are packed into one number.
BITS = 20


@dataclass(frozen=True)
class _Lattice:
    """Where a mode's share of the posterior is not negligible.

    Attributes:
        center: a point of the lattice (dim,).
        axes: its basis vectors as columns (dim, dim).
        index: the points in units of them (n, dim).
        value: log of the posterior's share there (n,).
        cut: whether points that count are missing.
    """

    center: Tensor
    axes: Tensor
    index: Tensor
    value: Tensor
    cut: bool

    @property
    def points(self) -> Tensor:
        """The lattice's points (n, dim)."""
        return self.center + self.index.to(torch.float64) @ self.axes.T

    @property
    def log_cell(self) -> Tensor:
        """Log volume of a cell."""
        return torch.linalg.slogdet(self.axes)[1]

    @property
    def log_integral(self) -> Tensor:
        """Log of the sum over all cells."""
        return torch.logsumexp(self.value, 0) + self.log_cell


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int = 500,
    starts: int = 64,
    tolerance: float = 1e-7,
    points: int = 2_000_000,
) -> Draws:
    """Integrate the posterior over a lattice, and draw independently from it.

    Args:
        density: what to integrate, of at most three continuous dimensions.
        seed: of the draws and of the climbs to the modes; the integral hardly depends on it.
        progress: called with (done, total, text).
        checkpoint: not used, the run takes seconds.
        chains: groups that the draws are given in.
        draws: draws a group.
        starts: points to climb from, drawn from the prior.
        tolerance: relative error of the evidence at which to stop.
        points: most evaluations of the density, after which the error reached is told.
    """
    if min(chains, draws, starts, points) < 1 or not tolerance > 0:
        raise RunError("chains, draws, starts, points and tolerance must be positive")
    if density.dim > MOST_DIMENSIONS:
        names = ", ".join(f"{site.name} ({site.numel})" for site in density.sites)
        raise RunError(
            f"exact integrates over {MOST_DIMENSIONS} dimensions at most, {density.model.name} has {density.dim}: "
            f"{names}; use smc or ensemble"
        )
    if density.dim == 0:
        return no_latents(density, chains, draws)
    report = progress or (lambda done, total, text: None)
    report(0, 100, "climbing to the modes")
    modes, heights, factors = find_modes(density, starts, seed)
    quadrature = _Quadrature(
        density, start_mixture(modes, heights, factors, DEGREES_OF_FREEDOM), points
    )
    found = []
    for mode in range(len(modes)):
        report(round(100 * mode / len(modes)), 100, f"summing around mode {mode + 1}")
        found.append(quadrature.integrate(mode, tolerance))
    lattices, errors = [lattice for lattice, _ in found], torch.stack([error for _, error in found])
    logs = torch.stack([lattice.log_integral for lattice in lattices])
    shares = torch.softmax(logs, 0)
    z, lp = quadrature.draw(lattices, chains * draws, torch.Generator().manual_seed(seed))
    report(100, 100, "done")
    attrs = {
        "density_path": density.path,
        "basins": len(modes),
        "basin_weights": json.dumps([round(float(share), 6) for share in shares]),
        "quadrature_error": float(shares @ errors),
        "quadrature_points": points - quadrature.left,
    }
    return Draws(
        z.reshape(chains, draws, -1),
        {"lp": lp.reshape(chains, draws).numpy()},
        float(torch.logsumexp(logs, 0)),
        float(shares @ errors),
        attrs,
    )


class _Quadrature:
    """Sums over lattices, with a count of the points that may still be evaluated."""

    def __init__(self, density: Density, mixture: Mixture, points: int) -> None:
        self.density, self.mixture, self.left = density, mixture, points

    def values(self, z: Tensor, mode: int) -> tuple[Tensor, Tensor]:
        """Log density, and log of the share of it that belongs to a mode."""
        belongs = self.mixture.component_log_prob(z) + self.mixture.weights.log()
        value = self.density.values(z)
        return value, value + torch.log_softmax(belongs, 1)[:, mode]

    def integrate(self, mode: int, tolerance: float) -> tuple[_Lattice, Tensor]:
        """The finest lattice of a mode that was needed, and its relative error."""
        center, axes = self.mixture.means[mode], self._round(mode)
        lattice = self.grow(mode, center, axes, self.left)
        error = torch.tensor(math.inf, dtype=torch.float64)
        while error > tolerance and not lattice.cut:
            # Half the spacing takes as many points again in every dimension.
            expected = len(lattice.index) * 2 ** len(center)
            if expected > self.left:
                break
            finer = self.grow(mode, center, lattice.axes / 2, self.left, lattice)
            if finer.cut:
                break
            error = torch.expm1(lattice.log_integral - finer.log_integral).abs()
            lattice = finer
        if lattice.cut or not torch.isfinite(error):
            raise RunError(
                "exact needs more points than it may take: the posterior does not fall off, or far from round; "
                "raise `points`, or use smc"
            )
        return lattice, error

    def _round(self, mode: int) -> Tensor:
        """Axes in which a mode's share has about unit covariance, so that the first lattice just resolves it."""
        center, axes = self.mixture.means[mode], self.mixture.factors[mode]
        dim = len(center)
        for _ in range(MOST_REFITS):
            lattice = self.grow(mode, center, axes, SKETCH)
            weights = torch.softmax(lattice.value, 0)
            u = lattice.index.to(torch.float64)
            offset = u - weights @ u
            # A lattice that is too coarse sees one point: then the share is at most as wide as a cell.
            covariance = (weights[:, None] * offset).T @ offset + torch.eye(dim) / 12
            values, _ = torch.linalg.eigh(covariance)
            axes = axes @ torch.linalg.cholesky(covariance)
            if not lattice.cut and values.min() > 0.5 and values.max() < 2:
                break
        return FIRST_SPACING * axes

    def grow(
        self, mode: int, center: Tensor, axes: Tensor, most: int, coarse: _Lattice | None = None
    ) -> _Lattice:
        """The lattice's points from the center outwards, until the next ones are negligible.

        Args:
            mode: whose share of the posterior is summed.
            center: a point of the lattice.
            axes: its basis vectors as columns.
            most: points to evaluate at most.
            coarse: the lattice of twice the spacing, to start from instead of the center.
        """
        dim = len(center)
        along = torch.cat([torch.eye(dim), -torch.eye(dim)]).to(torch.int64)
        place = 2 ** (BITS * torch.arange(dim))
        edge = torch.zeros(1, dim, dtype=torch.int64) if coarse is None else _halved(coarse)
        index, value = edge[:0], torch.zeros(0, dtype=torch.float64)
        most, wave = min(most, self.left), 0
        while len(edge) and len(index) + len(edge) <= most:
            here = self.values(center + edge.to(torch.float64) @ axes.T, mode)[1]
            self.left -= len(edge)
            index, value = torch.cat([index, edge]), torch.cat([value, here])
            inner = edge[here > value.max() - NEGLIGIBLE]
            # Longer strides as the lattice grows: long tails take few waves.
            wave += 1
            strides = torch.arange(1, 2 + wave // 8)[:, None, None] * along
            edge = torch.unique(
                (inner[:, None] + strides.reshape(1, -1, dim)).reshape(-1, dim), dim=0
            )
            edge = edge[~torch.isin(edge @ place, index @ place)]
        order = (index @ place).argsort()
        return _Lattice(center, axes, index[order], value[order], cut=len(edge) > 0)

    def draw(
        self, lattices: list[_Lattice], n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log densities: places in the cells, weighed by the density there against the cell's."""
        logs = torch.cat([lattice.value + lattice.log_cell for lattice in lattices])
        sizes = torch.tensor([len(lattice.index) for lattice in lattices])
        cells = systematic(logs[None], OVERDRAWN * n, generator)[0]
        owner = torch.bucketize(cells, sizes.cumsum(0), right=True)
        z, value, ratio = [], [], []
        for mode, lattice in enumerate(lattices):
            mine = cells[owner == mode] - int(sizes[:mode].sum())
            offset = (
                torch.rand(len(mine), len(lattice.center), dtype=torch.float64, generator=generator)
                - 0.5
            )
            z.append(lattice.points[mine] + offset @ lattice.axes.T)
            density, share = self.values(z[-1], mode)
            value.append(density)
            ratio.append(share - lattice.value[mine])
        chosen = shuffled(systematic(torch.cat(ratio)[None], n, generator), generator)[0]
        return torch.cat(z)[chosen], torch.cat(value)[chosen]


def _halved(coarse: _Lattice) -> Tensor:
    """Places on the lattice of half the spacing that touch a place that counts (n, dim)."""
    counts = coarse.index[coarse.value > coarse.value.max() - NEGLIGIBLE]
    near = torch.cartesian_prod(*[torch.arange(-1, 2)] * counts.shape[1]).reshape(
        -1, counts.shape[1]
    )
    return torch.unique((2 * counts[:, None] + near).reshape(-1, counts.shape[1]), dim=0)
