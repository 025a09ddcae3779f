"""Posteriors with closed forms or plain quadrature, for the runners that give the evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import (
    Categorical,
    HalfNormal,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
)
from scipy import stats
from toys import numbers

from atomzoo.inference.density import Density
from atomzoo.inference.fit import make_density
from atomzoo.models.model import View, model, observe, sample
from atomzoo.models.priors import Prior

ROWS = 10


def noise_of(dim: int) -> np.ndarray:
    """Neighbours are correlated by 0.8, and scales fall from 1 to 0.1."""
    lag = np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    scale = np.geomspace(1, 0.1, dim)
    return 0.8**lag * np.outer(scale, scale)


@model(
    kind="table",
    priors={"vague": {"spread": 3.0}},
    sizes={"variable": (1, 50)},
    unit=("row",),
    design=lambda: numbers(rows_of(2)),
)
def gaussian(table: View, prior: Prior) -> None:
    """A correlated Gaussian of any dimension: mean ~ N(0, 3²), rows ~ N(mean, C)."""
    dim = table.sizes["variable"]
    wide = Normal(torch.zeros(dim, dtype=torch.float64), sample("spread", prior.spread))
    mean = pyro.sample("mean", wide.to_event(1))
    observe("value", MultivariateNormal(mean, torch.as_tensor(noise_of(dim))))


def rows_of(dim: int) -> np.ndarray:
    """Rows of the Gaussian above, around one."""
    normal = np.random.default_rng(dim).standard_normal((ROWS, dim))
    return 1 + normal @ np.linalg.cholesky(noise_of(dim)).T


def gaussian_density(dim: int) -> Density:
    """Its density with rows of that many columns."""
    return make_density(gaussian, numbers(rows_of(dim)))


def gaussian_answer(dim: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence, mean and covariance of the posterior."""
    noise, rows = noise_of(dim), rows_of(dim)
    precision = ROWS * np.linalg.inv(noise) + np.eye(dim) / 9
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.linalg.solve(noise, rows.sum(0))
    joint = np.kron(np.ones((ROWS, ROWS)), 9 * np.eye(dim)) + np.kron(np.eye(ROWS), noise)
    evidence = stats.multivariate_normal(np.zeros(ROWS * dim), joint).logpdf(rows.ravel())
    return float(evidence), mean, covariance


SHIFT = 0.5


@model(
    kind="table",
    priors={"vague": {"place": Normal(SHIFT, 1.0), "noise": 0.4}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.9, 1.1, 0.7, 0.6]),
)
def lopsided(table: View, prior: Prior) -> None:
    """Only the magnitude shows, and the prior prefers one sign: two narrow modes, about 0.7 to 0.3."""
    place = sample("place", prior.place)
    observe("value", Normal(torch.sqrt(place**2 + 1e-3), sample("noise", prior.noise)))


def lopsided_answer() -> tuple[float, float]:
    """Log evidence and the share of the positive mode, by the trapezoid rule."""
    place = np.linspace(-8, 8, 400_001)
    seen = np.array([0.9, 1.1, 0.7, 0.6])
    log = stats.norm(SHIFT, 1).logpdf(place)
    log += stats.norm(np.sqrt(place**2 + 1e-3), 0.4).logpdf(seen[:, None]).sum(0)
    weight = np.exp(log - log.max())
    step = place[1] - place[0]
    return float(np.log(weight.sum() * step) + log.max()), float(
        weight[place > 0].sum() / weight.sum()
    )


@model(
    kind="table",
    priors={"vague": {"a": Normal(0.0, 1.0), "b": Normal(0.0, 3.0)}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.0, 0.1, -0.1]),
)
def bent(table: View, prior: Prior) -> None:
    """A banana: what is seen is b - a² to within 0.3."""
    a = sample("a", prior.a)
    observe("value", Normal(sample("b", prior.b) - a**2, 0.3))


def bent_answer() -> tuple[float, np.ndarray, np.ndarray]:
    """Log evidence, means and standard deviations of a and b, b integrated in closed form over a fine grid of a."""
    a = np.linspace(-8, 8, 100_001)
    seen = np.array([0.0, 0.1, -0.1])
    precision = 1 / 9 + 3 / 0.09
    center = (seen.sum() / 0.09 + 3 * a**2 / 0.09) / precision
    cov = 9 * np.ones((3, 3)) + 0.09 * np.eye(3)
    off = seen - np.zeros(3)
    log = stats.norm(0, 1).logpdf(a) + stats.multivariate_normal(np.zeros(3), cov).logpdf(
        off + (a**2)[:, None]
    )
    weight = np.exp(log - log.max())
    step, total = a[1] - a[0], weight.sum()
    weight = weight / total
    means = np.array([weight @ a, weight @ center])
    squares = np.array([weight @ a**2, weight @ (center**2 + 1 / precision)])
    return float(np.log(total * step) + log.max()), means, np.sqrt(squares - means**2)


@model(
    kind="table",
    priors={"vague": {"scale": LogNormal(0.0, 1.0)}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.3, -0.2, 0.5]),
)
def lognormal_scale(table: View, prior: Prior) -> None:
    """Three numbers of unknown scale."""
    observe("value", Normal(0.0, sample("scale", prior.scale)))


@model(
    kind="table",
    priors={"vague": {"scale": HalfNormal(1.0)}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.3, -0.2]),
)
def halfnormal_scale(table: View, prior: Prior) -> None:
    """Two numbers of unknown scale."""
    observe("value", Normal(0.0, sample("scale", prior.scale)))


@model(
    kind="table",
    priors={"vague": {"place": Laplace(0.3, 0.5), "noise": 0.5}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.4, 0.1]),
)
def kinked(table: View, prior: Prior) -> None:
    """A prior with a kink where the posterior is."""
    observe("value", Normal(sample("place", prior.place), sample("noise", prior.noise)))


@model(
    kind="table",
    priors={"vague": {"which": Categorical(torch.tensor([0.2, 0.3, 0.5])), "noise": 1.0}},
    sizes={"variable": (1, 1)},
    design=lambda: numbers([0.4, 1.3]),
)
def levels(table: View, prior: Prior) -> None:
    """Numbers at one of three levels: nothing continuous to infer."""
    observe("value", Normal(1.0 * sample("which", prior.which), sample("noise", prior.noise)))


def consistent(z: np.ndarray, islands: int | None = None) -> tuple[float, float, float]:
    """Sum of squared z-scores, and the band that it leaves once in a thousand when the errors are right.

    An error estimated from a few islands makes Student-t scores; they are turned into normal ones first.
    """
    if islands is not None:
        z = stats.norm.ppf(stats.t(islands - 1).cdf(z))
    low, high = stats.chi2(len(z)).ppf([0.0005, 0.9995])
    return float(np.square(z).sum()), float(low), float(high)


def seeded(run: Any, density: Density, **options: Any) -> tuple[Any, Any]:
    """Two runs of one seed, which must be the same, unlike one of another; the global state must stay as it was."""
    before = torch.get_rng_state()
    first, again, other = (run(density, seed=seed, **options) for seed in (5, 5, 6))
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, other.z)
    assert torch.equal(before, torch.get_rng_state())
    return first, again
