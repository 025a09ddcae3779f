"""A strained lattice as a linear Gaussian model, with its posterior in closed form but for three numbers.

Corners X of an ideal lattice are seen at X + origin + (δ + ω J + E + S) X + u(X). δ is the change of size and ω the
turn; E = ½ ((e₁, e₂), (e₂, −e₁)) is the strain of the mean cell that breaks the ideal lattice's symmetry; S is what
scan and shear of the microscope add. u is a smooth displacement with the strains e(X) = Σₖ aₖ cos k·X + bₖ sin k·X of a
Gaussian process: of each wave, u follows from the two components of e, since a displacement has two as well.
A scan that drifts moves whole rows of the image: v(y), smooth along the image's y alone, adds to it.

All this is linear in Gaussian unknowns, given the noise and the sizes of the strains; these three are summed over on a
grid that grows from the mode until nothing is left. The number of corners enters through a few sums alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import Independent, Normal
from torch import Tensor

from ..model import View
from ..priors import ModelError, Prior

__all__ = ["Fit", "Hypotheses", "Waves", "corners", "drifts", "hypotheses", "local_strain", "waves"]

# Waves whose share of the field's variance is below this (relative to the longest) are left out.
CUT = 2.6
# More waves than this, and the field is made smoother instead.
MOST_WAVES = 60
# The field goes on beyond the data by this factor, so that it need not be periodic in them.
BEYOND = 1.25
# Normal equations that are kept: a grid comes back to the same noise many times.
MOST_KEPT = 40
# Steps of the grid in standard deviations, and nats below the top where it ends.
STEP, DEEP = 1.0, 6.0
SIZES = 33
# What is summed over on the grid.
NUMBERS = ("noise", "ripple", "spread")
# Waves of the drift down the frame. The longest is twice the frame, and the slope's variance falls with the square.
DRIFTS = 6


class Hypotheses(NamedTuple):
    """Which strains a symmetry allows: along a direction in the plane of (e₁, e₂), and across it."""

    names: tuple[str, ...]
    direction: Tensor
    along: Tensor
    across: Tensor
    weight: Tensor


def hypotheses(reference: str) -> Hypotheses:
    """The symmetries of a strained square or hexagonal lattice; settings of one symmetry share its weight."""
    third = 2 * math.pi / 3
    rows: list[tuple[str, float, float, float, float]]
    if reference == "square":
        rows = [
            ("cubic (square)", 0.0, 0.0, 0.0, 1.0),
            ("tetragonal (rectangular)", 0.0, 1.0, 0.0, 1.0),
            ("rhombic", math.pi / 2, 1.0, 0.0, 1.0),
            ("oblique", 0.0, 1.0, 1.0, 1.0),
        ]
    else:
        rows = [
            ("hexagonal", 0.0, 0.0, 0.0, 1.0),
            ("centred rectangular, axis along a", 0.0, 1.0, 0.0, 1 / 3),
            ("centred rectangular, axis along a + b", third, 1.0, 0.0, 1 / 3),
            ("centred rectangular, axis along b", 2 * third, 1.0, 0.0, 1 / 3),
            ("oblique", 0.0, 1.0, 1.0, 1.0),
        ]
    names, *columns = zip(*rows, strict=True)
    direction, along, across, weight = (torch.tensor(c, dtype=torch.float64) for c in columns)
    return Hypotheses(tuple(names), direction, along, across, weight / weight.sum())


def corners(cells: View) -> tuple[Tensor, Tensor, Tensor]:
    """Corners of the ideal lattice, (cell, 2), in axes with x along a; how these lie in the image; and the origin."""
    hexagonal = cells.attrs["reference"] == "hexagonal"
    gamma = math.radians(120.0 if hexagonal else 90.0)
    basis = torch.tensor([[1.0, 0.0], [math.cos(gamma), math.sin(gamma)]], dtype=torch.float64)
    ideal = float(cells.attrs["spacing"]) * cells.index.to(torch.float64) @ basis
    turn = float(cells.attrs["turn"])
    axes = torch.tensor(
        [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )
    return ideal, axes, torch.tensor([float(v) for v in cells.attrs["middle"]], dtype=torch.float64)


class Waves(NamedTuple):
    """The waves of the field: vectors (wave, 2), and the standard deviation that each has of the whole."""

    vector: Tensor
    weight: Tensor
    length: float

    def sines(self, ideal: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every wave at points, (point, wave)."""
        phase = ideal @ self.vector.T
        return torch.cos(phase), torch.sin(phase)

    def displacement(self, coefficient: Tensor) -> tuple[Tensor, Tensor]:
        """What a field of e₁, and one of e₂, displace: coefficients of (cos, sin) for x and y.

        Args:
            coefficient: of cosines, then of sines, (2 · wave,).

        Returns:
            Two tensors (axis, 2 · wave).
        """
        even, odd = (self.weight * part for part in coefficient.chunk(2))
        first, second = (self.vector / self.vector.square().sum(1, keepdim=True)).T

        def integral(rate: Tensor) -> Tensor:
            return torch.cat([-odd * rate, even * rate])

        return (
            torch.stack([integral(first), integral(-second)]),
            torch.stack([integral(second), integral(first)]),
        )


def waves(cells: View, length: float) -> Waves:
    """Waves of a field with the correlation length `length` (nm), longer where that asks for too many."""
    box = BEYOND * np.maximum(
        [float(v) for v in cells.attrs["extent"]], float(cells.attrs["spacing"])
    )
    box = np.maximum(box, 0.2 * box.max())
    while True:
        most = np.ceil(CUT * box / (2 * math.pi * length)).astype(int)
        i, j = np.meshgrid(np.arange(0, most[0] + 1), np.arange(-most[1], most[1] + 1))
        upper = (i > 0) | (j > 0)
        vector = 2 * math.pi * np.stack([i[upper], j[upper]], 1) / box
        vector = vector[np.linalg.norm(vector, axis=1) * length < CUT]
        if len(vector) <= MOST_WAVES:
            break
        length *= 1.05
    if not len(vector):
        vector = 2 * math.pi * np.array([[1.0, 0.0], [0.0, 1.0]]) / box
    power = np.exp(-0.5 * (vector**2).sum(1) * length**2)
    weight = np.sqrt(power / power.sum())
    return Waves(torch.as_tensor(vector), torch.as_tensor(weight), float(length))


class Drift(NamedTuple):
    """Waves of the drift: vectors (wave, 2) in the axes of the ideal lattice, and the size of each displacement."""

    vector: Tensor
    weight: Tensor

    def functions(self, ideal: Tensor) -> Tensor:
        """Displacements of whole rows, for a slope of unit variance, (point, 2 · wave)."""
        phase = ideal @ self.vector.T
        return torch.cat([torch.cos(phase), torch.sin(phase)], 1) * self.weight.repeat(2)


def drifts(cells: View, axes: Tensor) -> Drift:
    """Waves down the image."""
    down = axes[:, 1]
    long = 2 * sum(float(v) for v in cells.attrs["extent"])
    number = torch.arange(1, DRIFTS + 1, dtype=torch.float64)
    share = 1 / number / (1 / number.square()).sum().sqrt()
    rate = 2 * math.pi * number / long
    return Drift(rate[:, None] * down, share / rate)


def local_strain(
    field: Waves, ideal: Tensor, along: Tensor, across: Tensor, direction: Tensor
) -> Tensor:
    """Strain fields at points: e₁, e₂, dilation and turn, (draw, point, 4).

    Args:
        field: its waves.
        ideal: the points.
        along: coefficients of the field along the direction, sizes included, (draw, 2 · wave).
        across: of that across it.
        direction: in the plane of the strains, (draw,).
    """
    cos, sin = field.sines(ideal)
    turn_c, turn_s = torch.cos(direction)[:, None], torch.sin(direction)[:, None]
    first = (turn_c * along - turn_s * across) * field.weight.repeat(2)
    second = (turn_s * along + turn_c * across) * field.weight.repeat(2)
    trig = torch.cat([cos, sin], 1)
    unit = (field.vector / field.vector.norm(dim=1, keepdim=True)).T
    double_c, double_s = unit[0] ** 2 - unit[1] ** 2, 2 * unit[0] * unit[1]
    dilation = first * double_c.repeat(2) + second * double_s.repeat(2)
    # ½ (∂₁u₂ − ∂₂u₁)
    turned = 0.5 * (second * double_c.repeat(2) - first * double_s.repeat(2))
    return torch.stack([part @ trig.T for part in (first, second, dilation, turned)], -1)


@dataclass(frozen=True)
class Sums:
    """What the corners amount to, for every group of like covariance."""

    covariance: Tensor  # (group, 2, 2), in the axes of the ideal lattice
    gram: Tensor  # (group, function, function)
    product: Tensor  # (group, function, 2)
    square: Tensor  # (group, 2, 2)
    number: Tensor  # (group,)

    @classmethod
    def of(cls, seen: Tensor, covariance: Tensor, functions: Tensor) -> Sums:
        """Sums over corners: displacements seen (cell, 2), their covariance, and the functions (cell, function)."""
        _, group = np.unique(covariance.flatten(1).numpy().round(15), axis=0, return_inverse=True)
        groups = [
            torch.as_tensor(np.flatnonzero(group.ravel() == g)) for g in range(group.max() + 1)
        ]
        return cls(
            torch.stack([covariance[g[0]] for g in groups]),
            torch.stack([functions[g].T @ functions[g] for g in groups]),
            torch.stack([functions[g].T @ seen[g] for g in groups]),
            torch.stack([seen[g].T @ seen[g] for g in groups]),
            torch.tensor([float(len(g)) for g in groups], dtype=torch.float64),
        )


class Normals(NamedTuple):
    """Normal equations at one noise: of all unknowns of unit size, and the constant of the likelihood."""

    gram: Tensor
    right: Tensor
    constant: float


class _Node(NamedTuple):
    """A point of the grid."""

    which: int
    place: tuple[int, ...]
    log_density: float


# Unknowns before those of the drift: origin (2), size, turn, stretch, shear. Then come drift, the strain of the mean
# cell (2), and the fields along and across.
FIRST = 6


class Fit:
    """The posterior of a strained lattice.

    Args:
        cells: the data.
        prior: of the story.
        mask: cells that count.
    """

    def __init__(self, cells: View, prior: Prior, mask: Tensor | None = None) -> None:
        self.prior = prior
        free = [n for n in (*NUMBERS, "size") if not isinstance(prior[n], float)]
        self.logs = {name: _log_scale(prior[name]) for name in free}
        self.options = hypotheses(cells.attrs["reference"])
        self.waves = waves(cells, float(prior.length))
        self.spacing = float(cells.attrs["spacing"])
        ideal, axes, middle = corners(cells)
        seen = (cells.position - middle) @ axes.T - ideal
        covariance = axes @ cells.covariance @ axes.T
        if mask is not None:
            ideal, seen, covariance = ideal[mask], seen[mask], covariance[mask]
        self.cells = len(ideal)
        functions = [torch.ones(len(ideal), 1), ideal, *self.waves.sines(ideal)]
        self.mean, self.sd = self._plain_prior(cells)
        if float(prior.drift) > 0:
            functions.append(drifts(cells, axes).functions(ideal))
            self.mean = torch.cat([self.mean, torch.zeros(4 * DRIFTS)])
            drift = torch.full((4 * DRIFTS,), float(prior.drift), dtype=torch.float64)
            self.sd = torch.cat([self.sd, drift])
        self.plain = len(self.sd)
        together = torch.cat(functions, 1)
        design = self._design(axes, together.shape[1])
        shifted = design[:, :, : self.plain] @ self.mean
        sums = Sums.of(seen - together @ shifted.T, covariance, together)
        self.sums = sums
        # x with x, x with y both ways, y with y, of every group.
        pairs = ((0, 0), (0, 1), (1, 1))
        self._grams = torch.stack(
            [_symmetric(design[i].T @ sums.gram @ design[j]) * (1 + (i != j)) for i, j in pairs], 1
        )
        self._rights = torch.stack(
            [torch.stack([sums.product[:, :, j] @ design[i] for j in (0, 1)], 1) for i in (0, 1)], 1
        )
        self._normals: dict[tuple[float, int], Normals] = {}

    def _plain_prior(self, cells: View) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the unknowns that are no field."""
        origin, a = _normal(self.prior, "origin"), _normal(self.prior, "a")
        turn, stretch, shear = (_normal(self.prior, n) for n in ("turn", "stretch", "shear"))
        mean = [origin[0], origin[0], a[0] / self.spacing - 1, turn[0], stretch[0], shear[0]]
        sd = [origin[1], origin[1], a[1] / self.spacing, turn[1], stretch[1], shear[1]]
        return torch.tensor(mean, dtype=torch.float64), torch.tensor(sd, dtype=torch.float64)

    def _design(self, axes: Tensor, functions: int) -> Tensor:
        """What each unknown of unit size displaces, in the functions, (axis, function, unknown).

        Functions are 1, X, Y, the field's cosines and sines, and those of the drift.
        """
        count = 2 * len(self.waves.vector)
        design = torch.zeros(2, functions, self.plain + 2 + 2 * count, dtype=torch.float64)
        design[0, 0, 0] = design[1, 0, 1] = 1.0
        unit = torch.eye(2, dtype=torch.float64)
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        of_scan = torch.tensor([[[0, 0], [0, 1]], [[0, 1], [0, 0]]], dtype=torch.float64)
        scans = axes @ of_scan @ axes.T
        for place, matrix in enumerate([unit, turn, *scans]):
            design[:, 1:3, 2 + place] = matrix
        for k in range(functions - 3 - count):
            design[:, 3 + count + k, FIRST + 2 * k : FIRST + 2 * k + 2] = axes
        first = 0.5 * torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        second = 0.5 * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        design[:, 1:3, self.plain] = first
        design[:, 1:3, self.plain + 1] = second
        for k, one in enumerate(torch.eye(count, dtype=torch.float64)):
            by_first, by_second = self.waves.displacement(one)
            design[:, 3 : 3 + count, self.plain + 2 + k] = by_first
            design[:, 3 : 3 + count, self.plain + 2 + count + k] = by_second
        return design

    def normals(self, noise: float, which: int) -> Normals:
        """Normal equations at a noise (nm), with strains along and across the direction of a hypothesis."""
        angle = float(self.options.direction[which])
        if (noise, which) not in self._normals:
            sums = self.sums
            total = sums.covariance + noise**2 * torch.eye(2, dtype=torch.float64)
            weight = torch.linalg.inv(total)
            three = torch.stack([weight[:, 0, 0], weight[:, 0, 1], weight[:, 1, 1]], 1)
            gram = torch.einsum("gk,gkpq->pq", three, self._grams)
            right = torch.einsum("gab,gabp->p", weight, self._rights)
            square = float(torch.einsum("gab,gab->", weight, sums.square))
            logs = float((sums.number * torch.logdet(total)).sum())
            logs += 2 * self.cells * math.log(2 * math.pi)
            found = Normals(gram, right, -0.5 * (square + logs))
            if len(self._normals) > MOST_KEPT:
                self._normals.clear()
            self._normals[noise, which] = self._turned(found, angle) if angle else found
        return self._normals[noise, which]

    @cached_property
    def sizes(self) -> tuple[Tensor, Tensor]:
        """Sizes of the mean strain that are summed over, and their weights by the prior."""
        entry = self.prior.size
        if isinstance(entry, float):
            return torch.tensor([entry], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        middle, wide = self.logs["size"]
        grid = torch.linspace(middle - 4 * wide, middle + 4 * wide, SIZES, dtype=torch.float64)
        density = entry.log_prob(grid.exp()) + grid
        return grid.exp(), torch.softmax(density, 0)

    def _turned(self, normals: Normals, angle: float) -> Normals:
        """With strains along and across a direction in the plane of (e₁, e₂)."""
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
        count = 2 * len(self.waves.vector)
        change = torch.eye(len(normals.right), dtype=torch.float64)
        mean = slice(self.plain, self.plain + 2)
        change[mean, mean] = rotation
        rest = slice(self.plain + 2, None)
        change[rest, rest] = torch.kron(rotation, torch.eye(count, dtype=torch.float64))
        return Normals(change @ normals.gram @ change.T, change @ normals.right, normals.constant)

    def scales(self, which: int, ripple: float, spread: float) -> Tensor:
        """Standard deviations of all unknowns but the mean strain."""
        count = 2 * len(self.waves.vector)
        wide = math.hypot(ripple, spread)
        sizes = [wide if allowed else ripple for allowed in self._allowed(which)]
        fields = torch.cat([torch.full((count,), s, dtype=torch.float64) for s in sizes])
        return torch.cat([self.sd, fields])

    def _allowed(self, which: int) -> tuple[bool, bool]:
        return bool(self.options.along[which]), bool(self.options.across[which])

    def mean_strain(self, which: int, noise: float, ripple: float, spread: float) -> MeanStrain:
        """The likelihood of the mean cell's strain, all else summed out."""
        normals = self.normals(noise, which)
        scales = self.scales(which, ripple, spread)
        keep = torch.ones(len(normals.right), dtype=torch.bool)
        keep[self.plain : self.plain + 2] = False
        rest = scales[:, None] * normals.gram[keep][:, keep] * scales
        factor = torch.linalg.cholesky(rest + torch.eye(len(rest), dtype=torch.float64))
        right = scales * normals.right[keep]
        cross = scales[:, None] * normals.gram[keep][:, ~keep]
        both = torch.cat([right[:, None], cross], 1)
        half = torch.linalg.solve_triangular(factor, both, upper=False)
        inner = half.T @ half
        return MeanStrain(
            float(normals.constant + 0.5 * inner[0, 0] - factor.diagonal().log().sum()),
            normals.right[~keep] - inner[1:, 0],
            normals.gram[~keep][:, ~keep] - inner[1:, 1:],
        )

    def log_likelihood(
        self, which: int, noise: float, ripple: float, spread: float
    ) -> tuple[float, Tensor]:
        """Given the three numbers; and the log weights of the sizes of the mean strain."""
        found = self.mean_strain(which, noise, ripple, spread)
        sizes, weight = self.sizes
        axes = [k for k, allowed in enumerate(self._allowed(which)) if allowed]
        if not axes:
            return found.constant, weight.log()
        precision, right = found.precision[axes][:, axes], found.right[axes]
        scaled = torch.eye(len(axes)) + sizes[:, None, None] ** 2 * precision
        solved = torch.linalg.solve(scaled, (sizes[:, None] ** 2 * right)[..., None])[..., 0]
        each = 0.5 * solved @ right - 0.5 * torch.logdet(scaled) + weight.log()
        total = torch.logsumexp(each, 0)
        return found.constant + float(total), each - total

    def numbers(self, which: int) -> list[str]:
        """The numbers that are summed over on the grid."""
        names = ["noise", "ripple"] + (["spread"] if any(self._allowed(which)) else [])
        return [name for name in names if not isinstance(self.prior[name], float)]

    def known(self) -> dict[str, float]:
        """The same numbers where they are known, and any value where a hypothesis has none."""
        return {n: math.exp(self.logs[n][0]) if n in self.logs else self.prior[n] for n in NUMBERS}

    def log_density(self, which: int, logs: dict[str, float]) -> float:
        """Log likelihood and prior of the three numbers, in their logarithms."""
        values = {**self.known(), **{name: math.exp(log) for name, log in logs.items()}}
        likelihood, _ = self.log_likelihood(
            which, values["noise"], values["ripple"], values["spread"]
        )
        for name, log in logs.items():
            value = torch.tensor(math.exp(log), dtype=torch.float64)
            likelihood += float(self.prior[name].log_prob(value)) + log
        return likelihood

    def grid(self, which: int) -> Grid:
        """The grid of one hypothesis, grown from its mode."""
        names = self.numbers(which)
        if not names:
            return Grid(
                which, [], np.zeros((1, 0)), np.array([self.log_density(which, {})]), np.zeros(0)
            )
        mode, step = self._mode(which, names)
        done: dict[tuple[int, ...], float] = {}
        top = -math.inf
        front = {(0,) * len(names)}
        while front:
            for place in sorted(front):
                point = mode + step * np.array(place)
                done[place] = self.log_density(which, dict(zip(names, point.tolist(), strict=True)))
                top = max(top, done[place])
            near = {
                tuple(int(v) for v in np.array(place) + way * np.eye(len(names), dtype=int)[axis])
                for place, value in done.items()
                if value > top - DEEP
                for axis in range(len(names))
                for way in (-1, 1)
            }
            front = near - set(done)
        points = mode + step * np.array(list(done))
        return Grid(which, names, points, np.array(list(done.values())) + np.log(step).sum(), step)

    def _mode(self, which: int, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The mode in the logarithms, and the steps of the grid around it."""
        from scipy.optimize import minimize

        scales = [self.logs[name] for name in names]
        middle, wide = np.array([s[0] for s in scales]), np.array([s[1] for s in scales])

        def down(point: np.ndarray) -> float:
            return -self.log_density(which, dict(zip(names, point.tolist(), strict=True)))

        order = [NUMBERS.index(name) for name in names]
        starts = [middle + wide * np.array(shift)[order] for shift in sorted(set(STARTS))]
        if "spread" not in names:
            starts = starts[::3]
        start = min(starts, key=down)
        simplex = np.vstack([start, start + np.diag(0.5 * wide)])
        options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 0.05, "maxiter": 120}
        mode = minimize(down, start, method="Nelder-Mead", options=options).x
        top, step = -down(mode), np.empty(len(names))
        for axis in range(len(names)):
            away = 0.02 * wide[axis]
            # Half a nat is one standard deviation, whatever the shape.
            while away < 2 * wide[axis]:
                moved = [mode + s * away * np.eye(len(names))[axis] for s in (-1, 1)]
                fall = 0.5 * sum(top + down(point) for point in moved)
                if fall > 0.15:
                    break
                away *= 1.5
            step[axis] = STEP * min(away / math.sqrt(2 * max(fall, 1e-3)), wide[axis])
        return mode, step


# Where a mode is looked for first, in prior standard deviations of noise, ripple and spread.
STARTS = [(n, r, s) for n in (-1.5, -0.5, 0.5) for r in (-1.0, 0.5, 2.5) for s in (-2.0, 0.0, 1.0)]


class MeanStrain(NamedTuple):
    """exp(constant + right · e − ½ e · precision · e), with e the mean strain along and across a direction."""

    constant: float
    right: Tensor
    precision: Tensor


@dataclass(frozen=True)
class Grid:
    """Points of the logarithms of the numbers, and the log of the mass of each."""

    which: int
    names: list[str]
    points: np.ndarray
    log_mass: np.ndarray
    step: np.ndarray

    @property
    def log_evidence(self) -> float:
        """Log of the mass of all."""
        top = float(self.log_mass.max())
        return top + math.log(float(np.exp(self.log_mass - top).sum()))


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _normal(prior: Prior, name: str) -> tuple[float, float]:
    """Mean and standard deviation of a Normal prior, or a known value."""
    entry: Any = prior[name]
    if isinstance(entry, float):
        return entry, 0.0
    entry = entry.base_dist if isinstance(entry, Independent) else entry
    if not isinstance(entry, Normal):
        raise ModelError(
            f"unit_cell sums {name!r} out where its prior is Normal, or a number; take runner=ensemble for another"
        )
    return float(entry.loc.flatten()[0]), float(entry.scale.flatten()[0])


def _log_scale(entry: Any) -> tuple[float, float]:
    """Middle and width of the logarithm of a positive quantity's prior."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logs = entry.sample((4001,)).log()
    return float(logs.median()), float(logs.std())
