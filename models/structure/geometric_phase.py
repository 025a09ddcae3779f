"""Displacement fields as sums of cosines, and their posterior given phases.

A Gaussian field with Matérn-5/2 covariance (its gradient is smooth, its second derivatives exist) is written on the
cosines of a box somewhat larger than the data (Solin & Särkkä 2020). Their variances are the spectral density at their
waves, times what the windows of the image let through. Everything but three positive numbers is then linear:

    phase = 2π · design · (origin, uniform, z) + noise,

so those three are integrated over numerically and the rest in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import Normal

from ...datasets.derived.phases import strain_of, unwrapped, wrapped
from ..model import View
from ..priors import ModelError

__all__ = [
    "Cosines",
    "Modes",
    "cosines",
    "deformation",
    "field_posterior",
    "modes_of",
    "wound_gradient",
]

# The box goes on beyond the data by this part of their extent, or so many spacings where that is less.
BEYOND, MOST_BEYOND = 0.25, 4.0
# Waves up to those that the grid of windows can tell apart.
SHORTEST = np.pi
# Standard deviation of a window, in spacings.
WINDOW = 1 / 3
# A mode whose data weigh less than this against its prior is left to its prior.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Cosines:
    """Products of cosines on a box, as functions of the position.

    Attributes:
        low: corner of the box.
        waves: 2π over wavelength along x and y, (mode, axis).
        size: lengths of the box.
        middle: of the data, about which the lattice is strained.
        window: standard deviation of the windows that the field is seen through.
    """

    low: np.ndarray
    waves: np.ndarray
    size: np.ndarray
    middle: np.ndarray
    window: float

    def values(self, position: np.ndarray) -> np.ndarray:
        """Every mode at every position, (point, mode); of unit integral square."""
        at = (position - self.low)[:, None] * self.waves
        found: np.ndarray = self._height * np.cos(at).prod(2)
        return found

    def gradients(self, position: np.ndarray) -> np.ndarray:
        """Their gradients, (point, mode, axis)."""
        at = (position - self.low)[:, None] * self.waves
        cosine, sine = np.cos(at), -self.waves * np.sin(at)
        both = np.stack([sine[..., 0] * cosine[..., 1], cosine[..., 0] * sine[..., 1]], -1)
        found: np.ndarray = self._height[:, None] * both
        return found

    @cached_property
    def _height(self) -> np.ndarray:
        return np.sqrt((1 + (self.waves > 0)).prod(1) / self.size.prod())

    def scale(self, strain: Any, length: Any) -> Any:
        """Standard deviation of each mode: of a field with this root mean square gradient, seen through the windows.

        Args:
            strain: standard deviation of each derivative of the displacement, before the windows.
            length: over what distance the displacement changes (Matérn-5/2).
        """
        square = torch.as_tensor((self.waves**2).sum(1), dtype=torch.float64)
        # A Matérn-5/2 field of unit variance has derivatives of variance 5 / 3 length².
        height = strain * length * (3 / 5) ** 0.5
        spectrum = 10 * torch.pi * length**2 / 5 * (1 + square * length**2 / 5) ** -3.5
        return height * spectrum**0.5 * torch.exp(-0.5 * self.window**2 * square)


class Modes(NamedTuple):
    """The displacement's coefficients, of which x and y have one each: origin, two slopes, and those of cosines.

    Attributes:
        basis: the cosines.
        design: what each contributes at each point, (point, coefficient).
        slopes: and to the gradient there, (point, coefficient, axis).
    """

    basis: Cosines
    design: np.ndarray
    slopes: np.ndarray


def cosines(position: np.ndarray, spacing: float) -> Cosines:
    """The modes for data at these positions, in windows so far apart."""
    low, high = position.min(0), position.max(0)
    extent = np.maximum(high - low, spacing)
    beyond = np.minimum(BEYOND * extent, MOST_BEYOND * spacing)
    size = extent + 2 * beyond
    most = np.floor(SHORTEST / spacing * size / np.pi).astype(int)
    j, k = np.mgrid[: most[0] + 1, : most[1] + 1]
    waves = np.pi * np.stack([j.ravel(), k.ravel()], 1) / size
    # The mode without a wave is the origin's.
    kept = (np.linalg.norm(waves, axis=1) <= SHORTEST / spacing) & (waves.sum(1) > 0)
    return Cosines(low - beyond, waves[kept], size, (low + high) / 2, WINDOW * spacing)


def modes_of(phases: View) -> Modes:
    """The modes at the points of a view of phases."""
    position = phases.data["position"].values
    return _modes(position.tobytes(), float(phases.attrs["resolution"]))


# A story is told hundreds of times of the same data.
@lru_cache(maxsize=4)
def _modes(position: bytes, spacing: float) -> Modes:
    at = np.frombuffer(position).reshape(-1, 2)
    basis = cosines(at, spacing)
    plain = np.concatenate([np.ones((len(at), 1)), at - basis.middle], 1)
    design = np.concatenate([plain, basis.values(at)], 1)
    flat = np.broadcast_to(np.eye(3)[:, 1:], (len(at), 3, 2))
    slopes = np.concatenate([flat, basis.gradients(at)], 1)
    return Modes(basis, design, slopes)


def deformation(slope: np.ndarray) -> dict[str, np.ndarray]:
    """Strain and rotation of the lattice whose displacement has these gradients.

    The displacement u(r) is a function of where things are seen, so the local lattice vectors are (1 - ∇u)⁻¹ times
    those of the reference. That matrix is V R, a rotation R by an angle ω and then a stretch V along the axes of
    the image; the strain is V - 1. For small gradients it is (∇u + ∇uᵀ) / 2, and ω = (∂u_y/∂x - ∂u_x/∂y) / 2.

    Args:
        slope: ∂u_i/∂x_j, (…, i, j).

    Returns:
        `exx`, `eyy`, `exy`, and `rotation` in degrees, from x towards y.
    """
    return strain_of(np.linalg.inv(np.eye(2) - slope))


def wound_gradient(phases: View) -> np.ndarray:
    """∇u of the phases wound around dislocations, (point, i, j): P = -2π g·u."""
    if not phases.has("wound_slope"):
        return np.zeros((phases.sizes["point"], 2, 2))
    slope = phases.data["wound_slope"].values
    found: np.ndarray = np.linalg.solve(-2 * np.pi * phases.data["g"].values, slope)
    return found


class _Linear(NamedTuple):
    """Phases as a linear function of coefficients, of which each has a value for x and one for y.

    Attributes:
        design: (point, coefficient): origin, two slopes, modes.
        g: reflections, (reflection, axis).
        phase: unwrapped, what winds taken off, (point, reflection).
        precision: of each phase, 0 where a window does not count.
    """

    design: np.ndarray
    g: np.ndarray
    phase: np.ndarray
    precision: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        """Information of the data on the coefficients, all of x before all of y."""
        size = self.design.shape[1]
        found = np.empty((2 * size, 2 * size))
        for a, b in ((0, 0), (0, 1), (1, 1)):
            weight = (2 * np.pi) ** 2 * (self.precision * self.g[:, a] * self.g[:, b]).sum(1)
            block = (self.design * weight[:, None]).T @ self.design
            found[a * size : (a + 1) * size, b * size : (b + 1) * size] = block
        found[size:, :size] = found[:size, size:].T
        return found

    @property
    def pull(self) -> np.ndarray:
        """What the data say of the coefficients."""
        weighed = -2 * np.pi * (self.precision * self.phase) @ self.g
        found: np.ndarray = (self.design.T @ weighed).T.reshape(-1)
        return found

    def predicted(self, coefficients: np.ndarray) -> np.ndarray:
        """Phases of coefficients, (…, point, reflection)."""
        of_axes = coefficients.reshape(*coefficients.shape[:-1], 2, -1)
        field = np.einsum("pm,...am->...pa", self.design, of_axes)
        found: np.ndarray = -2 * np.pi * field @ self.g.T
        return found


@dataclass(frozen=True)
class _Solved:
    """The posterior of the coefficients at given strain, length and noise.

    Attributes:
        value: log evidence.
        slope: its derivative by the log standard deviation of each coefficient and by the log noise.
        mean: of the coefficients in units of their prior standard deviations.
        factor: lower Cholesky factor of their precision.
        kept: which coefficients the data speak of at all.
    """

    value: float
    slope: np.ndarray
    mean: np.ndarray
    factor: np.ndarray
    kept: np.ndarray

    def draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the coefficients in units of their prior standard deviations."""
        from scipy.linalg import lapack

        normal = rng.standard_normal((count, len(self.mean)))
        solved, _ = lapack.dtrtrs(self.factor, normal[:, self.kept].T, lower=1, trans=1)
        normal[:, self.kept] = solved.T
        found: np.ndarray = self.mean + normal
        return found


class _Sums(NamedTuple):
    """What evidence needs of the data."""

    gram: np.ndarray
    pull: np.ndarray
    square: float
    logs: float
    total: int


def _sums(linear: _Linear) -> _Sums:
    counted = linear.precision > 0
    logs = float(np.log(linear.precision[counted] / (2 * np.pi)).sum())
    square = float((linear.precision * linear.phase**2).sum())
    return _Sums(linear.gram, linear.pull, square, logs, int(counted.sum()))


def _solve(sums: _Sums, scale: np.ndarray, noise: float, *, slopes: bool = False) -> _Solved:
    """The posterior and the evidence of linear Gaussian data.

    Args:
        sums: of the data.
        scale: prior standard deviation of each coefficient.
        noise: factor on the errors of the data.
        slopes: whether derivatives of the evidence are wanted, which takes twice as long again.
    """
    from scipy.linalg import lapack

    informed = scale**2 * np.diagonal(sums.gram) / noise**2
    kept = informed >= min(NEGLIGIBLE, float(informed.max()))
    some = scale[kept] / noise
    matrix = sums.gram[np.ix_(kept, kept)] * some[:, None] * some
    matrix[np.diag_indices_from(matrix)] += 1.0
    factor, _ = lapack.dpotrf(matrix, lower=1, clean=1)
    pull = some / noise * sums.pull[kept]
    mean, _ = lapack.dpotrs(factor, pull, lower=1)
    value = 0.5 * (sums.logs - sums.square / noise**2 + float(pull @ mean))
    value -= sums.total * np.log(noise) + float(np.log(np.diagonal(factor)).sum())
    whole = np.zeros(len(scale))
    whole[kept] = mean
    slope = np.zeros(len(scale) + 1)
    if slopes:
        inverse, _ = lapack.dpotri(factor, lower=1)
        spread = np.diagonal(inverse)
        slope[:-1][kept] = mean**2 + spread - 1
        explained = float(pull @ mean) + float(mean @ mean)
        slope[-1] = sums.square / noise**2 - explained + float((1 - spread).sum()) - sums.total
    return _Solved(float(value), slope, whole, factor, kept)


POSITIVE = ("strain", "length", "noise")
# Points at which the three positive numbers are weighed: as many as take a second or two, within these.
FEWEST_POINTS, MOST_POINTS, WORK = 32, 128, 1e10
# Logarithms are looked for so far from the middle of their priors.
REACH = 6.0
# Freedom of the Student-t distribution that proposes them, so that its tails are wider than theirs.
FREEDOM = 5.0


class Field(NamedTuple):
    """Draws of the displacement field.

    Attributes:
        latents: by name, as in the story.
        coefficients: (draw, axis, coefficient), those of `Modes`.
        log_evidence: log marginal likelihood.
        log_evidence_se: its standard error.
        attrs: how well the draws are founded.
    """

    latents: dict[str, np.ndarray]
    coefficients: np.ndarray
    log_evidence: float
    log_evidence_se: float
    attrs: dict[str, Any]


class _Task:
    """The posterior of strain, length and noise in logarithms, the displacement integrated out."""

    def __init__(self, phases: View, prior: Mapping[str, Any], mask: np.ndarray | None) -> None:
        self.modes = modes_of(phases)
        self.prior = prior
        self.free = [name for name in POSITIVE if not isinstance(prior[name], float)]
        self.mean, self.fixed = _plain(prior, self.modes.design.shape[1])
        precision = 1 / phases.data["variance"].values
        if mask is not None:
            precision = precision * np.asarray(mask, float)[:, None]
        g = phases.data["g"].values
        wound = phases.data["wound"].values if phases.has("wound") else 0.0
        whole = unwrapped(
            phases.data["phase"].values - wound, phases.data["place"].values, precision**0.5
        )
        empty = _Linear(self.modes.design, g, whole, precision)
        self.linear = empty._replace(phase=whole - empty.predicted(self.mean))
        self.sums = _sums(self.linear)

    def known(self, logs: np.ndarray) -> dict[str, float]:
        """The three positive numbers."""
        found = {name: float(np.exp(value)) for name, value in zip(self.free, logs, strict=True)}
        return {name: found.get(name, self.prior[name]) for name in POSITIVE}

    def scale(self, known: Mapping[str, float]) -> np.ndarray:
        """Prior standard deviation of each coefficient, those of x before those of y."""
        waves = self.modes.basis.scale(known["strain"], known["length"]).numpy()
        return np.concatenate([np.concatenate([plain, waves]) for plain in self.fixed])

    def solved(self, logs: np.ndarray, *, slopes: bool = False) -> _Solved:
        """The coefficients' posterior where the three numbers are these."""
        known = self.known(logs)
        return _solve(self.sums, self.scale(known), known["noise"], slopes=slopes)

    def value(self, logs: np.ndarray, solved: _Solved) -> float:
        """Log posterior density of the logarithms, unnormalised."""
        return solved.value + sum(
            self._log_prior(name, at) for name, at in zip(self.free, logs, strict=True)
        )

    def _log_prior(self, name: str, at: float) -> float:
        inside = torch.tensor(np.exp(at), dtype=torch.float64)
        return float(self.prior[name].log_prob(inside)) + float(at)

    def gradient(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """The log density and its derivatives."""
        solved = self.solved(logs, slopes=True)
        found = []
        for i, name in enumerate(self.free):
            nudge = 1e-4 * (np.arange(len(logs)) == i)
            up, down = logs + nudge, logs - nudge
            slope = (self._log_prior(name, up[i]) - self._log_prior(name, down[i])) / 2e-4
            if name == "noise":
                slope += solved.slope[-1]
            else:
                scales = [self.scale(self.known(side)) for side in (up, down)]
                with np.errstate(divide="ignore", invalid="ignore"):
                    change = np.nan_to_num(np.log(scales[0] / scales[1])) / 2e-4
                slope += float(change @ solved.slope[:-1])
            found.append(slope)
        return self.value(logs, solved), np.array(found)

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The most probable logarithms, and their covariance there."""
        from scipy.optimize import minimize

        if not self.free:
            return np.zeros(0), np.zeros((0, 0))
        start = np.log([float(_middle(self.prior[name])) for name in self.free])

        def down(logs: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.gradient(logs)
            return -value, -slope

        bounds = [(at - REACH, at + REACH) for at in start]
        found = minimize(down, start, jac=True, method="L-BFGS-B", bounds=bounds)
        step = 0.02 * np.eye(len(start))
        slopes = [self.gradient(found.x + s)[1] - self.gradient(found.x - s)[1] for s in step]
        curvature = -np.array(slopes) / 0.04
        values, vectors = np.linalg.eigh(0.5 * (curvature + curvature.T))
        # Flat directions are as wide as priors are.
        return found.x, (vectors / np.maximum(values, 0.25)) @ vectors.T


def _middle(entry: Any) -> float:
    """A typical value of a distribution of a positive number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(entry.sample((1001,)).median())


def _plain(prior: Mapping[str, Any], count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prior means of all coefficients, and standard deviations of origin and uniform part, for x and for y."""
    mean, spread = np.zeros((2, count)), np.zeros((2, 3))
    for name, columns in (("origin", slice(0, 1)), ("uniform", slice(1, 3))):
        entry = prior[name]
        if isinstance(entry, float):
            mean[:, columns] = entry
            continue
        shape = mean[:, columns].shape
        base = getattr(entry, "base_dist", entry)
        if not isinstance(base, Normal):
            raise ModelError(f"the prior of {name} must be Normal here; use another runner")
        mean[:, columns] = base.mean.reshape(-1, shape[1]) if base.mean.ndim else base.mean
        spread[:, columns] = base.stddev.reshape(-1, shape[1]) if base.stddev.ndim else base.stddev
    return mean.reshape(-1), list(spread)


def field_posterior(
    phases: View, prior: Mapping[str, Any], *, draws: int, seed: int, mask: np.ndarray | None = None
) -> Field:
    """Independent draws of the displacement field and of the numbers that govern it.

    Strain, length and noise are weighed at points drawn around the most probable ones; for each draw the displacement
    is then drawn in closed form.

    Args:
        phases: the data.
        prior: of the story.
        draws: how many.
        seed: the draws depend on nothing else.
        mask: which points count.
    """
    rng = np.random.default_rng(seed)
    task = _Task(phases, prior, mask)
    centre, covariance = task.best()
    turns = _settle(task, centre)
    points, proposed = _proposals(rng, centre, covariance, task)
    weights = np.empty(len(points))
    for i, logs in enumerate(points):
        weights[i] = task.value(logs, task.solved(logs)) - proposed[i]
    height = weights.max()
    relative = np.exp(weights - height)
    chosen = rng.choice(len(points), draws, p=relative / relative.sum())
    size = task.modes.design.shape[1]
    found = np.empty((draws, 2 * size))
    white = np.empty((draws, 2 * size))
    for i in np.unique(chosen):
        rows = chosen == i
        white[rows] = task.solved(points[i]).draws(int(rows.sum()), rng)
        found[rows] = task.mean + task.scale(task.known(points[i])) * white[rows]
    evidence = float(height + np.log(relative.mean())) + _circular(task, centre)
    error = float(relative.std() / relative.mean() / np.sqrt(len(points)))
    attrs = {
        "modes": 2 * (size - 3),
        "points_weighed": len(points),
        "weighed_ess": float(relative.sum() ** 2 / (relative**2).sum()),
        "turns_mended": turns,
    }
    coefficients = found.reshape(draws, 2, size)
    latents = _latents(task, coefficients, white.reshape(draws, 2, size), np.exp(points[chosen]))
    return Field(latents, coefficients, evidence, error, attrs)


def _settle(task: _Task, logs: np.ndarray) -> int:
    """Phases put within half a turn of what the field predicts; how many had to be moved."""
    moved = 0
    for _ in range(5):
        scale = task.scale(task.known(logs))
        predicted = task.linear.predicted(scale * task.solved(logs).mean)
        apart = task.linear.phase - predicted
        off = np.rint((apart - wrapped(apart)) / (2 * np.pi))
        if not off.any():
            break
        moved += int(np.abs(off).sum())
        task.linear = task.linear._replace(phase=task.linear.phase - 2 * np.pi * off)
        task.sums = _sums(task.linear)
    return moved


def _proposals(
    rng: np.random.Generator, centre: np.ndarray, covariance: np.ndarray, task: _Task
) -> tuple[np.ndarray, np.ndarray]:
    """Points around the most probable one from a Student-t distribution, and their log densities."""
    if not len(centre):
        return np.zeros((1, 0)), np.zeros(1)
    from scipy.stats import multivariate_t

    work = float(np.sum(task.solved(centre).kept)) ** 3
    count = int(np.clip(WORK / work, FEWEST_POINTS, MOST_POINTS))
    cloud = multivariate_t(centre, covariance, df=FREEDOM)
    points = np.asarray(cloud.rvs(count, random_state=rng)).reshape(count, len(centre))
    return points, np.atleast_1d(cloud.logpdf(points))


def _circular(task: _Task, logs: np.ndarray) -> float:
    """What the log likelihood of angles has more than that of numbers: almost nothing where errors are small."""
    from scipy.special import i0e

    known = task.known(logs)
    mean = task.scale(known) * task.solved(logs).mean
    counted = task.linear.precision > 0
    sharp = (task.linear.precision / known["noise"] ** 2)[counted]
    off = (task.linear.phase - task.linear.predicted(mean))[counted]
    angles = sharp * (np.cos(off) - 1) - np.log(2 * np.pi * i0e(sharp))
    numbers = 0.5 * np.log(sharp / (2 * np.pi)) - 0.5 * sharp * off**2
    return float((angles - numbers).sum())


def _latents(
    task: _Task, coefficients: np.ndarray, white: np.ndarray, positive: np.ndarray
) -> dict[str, np.ndarray]:
    """The draws under the names of the story, without what the prior knows."""
    found = {
        "origin": coefficients[:, :, 0],
        "uniform": coefficients[:, :, 1:3],
        "z": white[:, :, 3:],
        **{name: positive[:, i] for i, name in enumerate(task.free)},
    }
    return {n: v for n, v in found.items() if not isinstance(task.prior.get(n), float)}
