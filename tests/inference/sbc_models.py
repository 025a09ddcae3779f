"""A model whose fits are right, and the same with a likelihood that is not what it simulates from."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.distributions import Categorical, HalfNormal, Normal

from atomzoo.datasets.kinds import dataset
from atomzoo.models.model import View, model, observe, sample
from atomzoo.models.priors import Prior


def some_rows() -> xr.Dataset:
    """Eight rows of one variable."""
    value = np.random.default_rng(0).normal(size=(8, 1))
    return dataset("table", value=value, variable=np.array(["v"]))


class Misjudged(Normal):
    """Normal draws that it takes for twice as widely spread."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return Normal(self.loc, 2 * self.scale, validate_args=False).log_prob(value)


PRIORS = {"vague": {"mean": "Normal(0, 2 * value.std)", "noise": HalfNormal(1.0)}}


@model(kind="table", priors=PRIORS, runner="laplace", design=some_rows)
def sbc_right(table: View, prior: Prior) -> None:
    """Normal numbers."""
    observe("value", Normal(sample("mean", prior.mean), sample("noise", prior.noise)))


@model(kind="table", priors=PRIORS, runner="laplace", design=some_rows)
def sbc_wrong(table: View, prior: Prior) -> None:
    """Normal numbers, fitted with another noise than simulated."""
    observe("value", Misjudged(sample("mean", prior.mean), sample("noise", prior.noise)))


@model(kind="table", priors={"vague": {"shift": Normal(0.0, 1.0)}}, design=some_rows)
def sbc_mixed(table: View, prior: Prior) -> None:
    """A shift, a discrete sign, and an offset for every row."""
    sign = 2 * sample("sign", Categorical(torch.tensor([0.5, 0.5]))) - 1
    with table.plate("row", at=-2):
        offset = sample("offset", Normal(0.0, 1.0))
    observe("value", Normal(sample("shift", prior.shift) * sign + offset, 0.5))


def trouble() -> None:
    """Hang or die in the simulations named in SBC_TROUBLE: {"seed": ["hang" or "die", a file or ""]}.

    Where a file is named, only until it is there.
    """
    kind, file = json.loads(os.environ.get("SBC_TROUBLE", "{}")).get(
        str(torch.initial_seed()), ("", "")
    )
    if not kind or (file and Path(file).exists()):
        return
    if file:
        Path(file).touch()
    if kind == "hang":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)


@model(
    kind="table", priors={"vague": {"mean": Normal(0.0, 1.0)}}, runner="laplace", design=some_rows
)
def sbc_troubled(table: View, prior: Prior) -> None:
    """A mean, in a process that hangs or dies."""
    trouble()
    observe("value", Normal(sample("mean", prior.mean), 1.0))


@model(
    kind="table", priors={"vague": {"mean": Normal(0.0, 1.0)}}, runner="laplace", design=some_rows
)
def sbc_known(table: View, prior: Prior) -> None:
    """A mean, with a noise and a derived quantity that nobody asks about."""
    mean = sample("mean", prior.mean)
    pyro.deterministic("twice", 2 * mean)
    observe("value", Normal(mean, 1.0))
