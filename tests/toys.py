"""Posteriors with known answers, as models of profiles or tables."""

from __future__ import annotations

import math

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.distributions import (
    Beta,
    Dirichlet,
    HalfNormal,
    LKJCholesky,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
    VonMises,
)

from atomzoo.datasets.kinds import dataset
from atomzoo.models.model import View, model, observe, sample
from atomzoo.models.priors import Prior


def numbers(values: np.ndarray | list[float]) -> xr.Dataset:
    """A table of one or more columns."""
    array = np.asarray(values, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    names = np.array([f"v{i}" for i in range(array.shape[1])])
    return dataset("table", value=array, variable=names)


def some_numbers() -> xr.Dataset:
    """Twenty draws from N(1, 1)."""
    return numbers(1 + np.random.default_rng(0).standard_normal(20))


@model(
    kind="table",
    priors={"vague": {"mean": Normal(0.0, 2.0), "noise": 1.0}},
    noise="noise",
    design=some_numbers,
)
def toy_normal(table: View, prior: Prior) -> None:
    """Normal numbers of known noise: everything is a closed form."""
    observe("value", Normal(sample("mean", prior.mean), sample("noise", prior.noise)))


@model(
    kind="table",
    priors={"vague": {"mean": Normal(0.0, 2.0), "noise": HalfNormal(1.0)}},
    contains={"toy_normal": {"noise": 1.0}},
    noise="noise",
    design=some_numbers,
)
def toy_wide(table: View, prior: Prior) -> None:
    """Normal numbers of unknown noise."""
    observe("value", Normal(sample("mean", prior.mean), sample("noise", prior.noise)))


@model(kind="table", priors={"vague": {"noise": 1.0}}, noise="noise", design=some_numbers)
def toy_zero(table: View, prior: Prior) -> None:
    """Normal numbers of mean zero: nothing to infer."""
    observe("value", Normal(torch.zeros(1, dtype=torch.float64), sample("noise", prior.noise)))


@model(
    kind="table",
    priors={"vague": {"place": Normal(0.0, 1.0), "noise": 0.15}},
    design=some_numbers,
)
def toy_two_basins(table: View, prior: Prior) -> None:
    """Only the magnitude shows, so that ±place explain the data alike."""
    observe("value", Normal(sample("place", prior.place).abs(), prior.noise))


@model(
    kind="table",
    priors={"vague": {"spread": Normal(0.0, 3.0), "x": Normal(0.0, 1.0).expand([9]).to_event(1)}},
    design=some_numbers,
)
def toy_funnel(table: View, prior: Prior) -> None:
    """Neal's funnel in ten dimensions with nothing seen of it: no importance sample gets to its bottom."""
    spread = sample("spread", prior.spread)
    x = sample("x", Normal(torch.zeros(9, dtype=torch.float64), torch.exp(spread / 2)).to_event(1))
    observe("value", Normal(0 * x.sum(), 1.0))


@model(
    kind="table",
    priors={
        "vague": {
            "positive": LogNormal(0.0, 1.0),
            "share": Dirichlet(torch.ones(3)),
            "unit": Beta(2.0, 2.0),
            "angle": VonMises(0.0, 1.0),
            "corr": LKJCholesky(3, 1.0),
            "low": Uniform(-1.0, 0.0),
            "scale": HalfNormal(1.0),
        }
    },
    design=some_numbers,
)
def toy_supports(table: View, prior: Prior) -> None:
    """A latent of each support, one of them with a bound that another latent sets."""
    positive = sample("positive", prior.positive)
    share = sample("share", prior.share)
    unit = sample("unit", prior.unit)
    angle = sample("angle", prior.angle)
    corr = sample("corr", prior.corr)
    low = sample("low", prior.low)
    between = pyro.sample("between", Uniform(low, low + positive))
    pyro.deterministic("twice", 2 * between)
    center = share[..., 0] + unit + torch.cos(angle) + corr[..., 1, 0] + between
    observe("value", Normal(center, sample("scale", prior.scale)))


@model(
    kind="table",
    priors={"vague": {"slope": Normal(0.0, 1.0).expand([2]).to_event(1), "noise": 0.5}},
    sizes={"variable": (2, 2)},
    design=lambda: numbers(np.random.default_rng(0).standard_normal((30, 2))),
)
def toy_pair(table: View, prior: Prior) -> None:
    """Rows of two numbers that are one observation each."""
    covariance = 0.25 * torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    observe("value", MultivariateNormal(sample("slope", prior.slope), covariance))


@model(kind="table", priors={"vague": {"a": Normal(0.0, 1.0)}})
def toy_far_basins(table: View, prior: Prior) -> None:
    """Two far basins of weights 0.7 and 0.3: a mixture prior that the data say nothing about."""
    a = sample("a", prior.a)
    parts = torch.stack(
        [
            math.log(0.7) + Normal(-6.0, 0.5).log_prob(a),
            math.log(0.3) + Normal(6.0, 1.0).log_prob(a),
        ]
    )
    pyro.factor("basins", torch.logsumexp(parts, 0) - Normal(0.0, 1.0).log_prob(a))
    observe("value", Normal(torch.zeros((), dtype=torch.float64), 1.0))
