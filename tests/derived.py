"""Models that prepare their data, bring their posterior, name classes and learn from some: each with a known answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Categorical, HalfNormal, Normal

from atomzoo.datasets.kinds import KINDS, Kind, add_kind, dataset
from atomzoo.models.model import Told, View, model, observe, sample
from atomzoo.models.priors import Prior

if "gaps" not in KINDS:
    add_kind(
        Kind(
            "gaps",
            "differences of a table's rows",
            {"gap": (("gap_of",),)},
            unit=("gap_of",),
            derived=True,
        )
    )
WIDTH = 3.0


def walk(n: int = 30, seed: int = 0, jump: float = 0.0) -> xr.Dataset:
    """A random walk with steps N(1, 1), every tenth of which is longer by `jump`."""
    rng = np.random.default_rng(seed)
    steps = 1 + rng.standard_normal(n) + jump * (np.arange(n) % 10 == 0)
    return dataset("table", value=np.cumsum(steps)[:, None], variable=np.array(["place"]))


def gaps(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """Differences over so many rows."""
    values, every = data["value"].values[:, 0], int(settings.get("every", 1))
    return dataset("gaps", gap=values[every:] - values[:-every])


def closed(view: View, prior: Prior, *, draws: int, seed: int, mask=None) -> Told:
    """Conjugate: N(0, WIDTH²) prior, unit noise."""
    seen = view.gap if mask is None else view.gap[mask]
    n, mean = len(seen), float(seen.mean())
    precision = n + WIDTH**-2
    centre = n * mean / precision
    generator = torch.Generator().manual_seed(seed)
    drawn = centre + precision**-0.5 * torch.randn(draws, generator=generator, dtype=torch.float64)
    square = float((seen**2).sum())
    log_evidence = (
        -0.5 * n * math.log(2 * math.pi)
        - 0.5 * math.log(WIDTH**2 * precision)
        - 0.5 * (square - precision * centre**2)
    )
    derived = xr.Dataset({"away": ("gap_of", (view.gap - centre).numpy())})
    return Told({"mean": drawn}, log_evidence, 0.0, derived, {"note_of_model": "closed"})


@model(
    kind="table",
    priors={"vague": {"mean": Normal(0.0, WIDTH), "every": 1}},
    prepare=("gaps", gaps),
    posterior=closed,
    design=walk,
)
def derived_steps(steps: View, prior: Prior) -> None:
    """Steps of one length."""
    observe("gap", Normal(sample("mean", prior.mean), 1.0))


@model(
    kind="table",
    priors={"vague": {"mean": Normal(0.0, WIDTH), "every": 1, "spread": HalfNormal(1.0)}},
    contains={"derived_steps": {"spread": 1.0}},
    prepare=("gaps", gaps),
    design=walk,
)
def derived_wide(steps: View, prior: Prior) -> None:
    """Steps of one length, of unknown spread."""
    observe("gap", Normal(sample("mean", prior.mean), sample("spread", prior.spread)))


def distances(view: View, prior: Prior, values: Mapping[str, torch.Tensor]) -> xr.Dataset:
    """How far each step is from the short ones."""
    return xr.Dataset({"beyond": ("gap_of", (view.gap - values["short"].mean()).numpy())})


@model(
    kind="table",
    priors={"vague": {"short": Normal(0.0, WIDTH), "every": 1}},
    prepare=("gaps", gaps),
    labels={"size": ("short", "long")},
    derive=distances,
    enough=200,
    runner="laplace",
    design=walk,
)
def derived_classes(steps: View, prior: Prior) -> None:
    """Nine steps in ten of one length, the tenth longer by six."""
    short = sample("short", prior.short)
    lengths = torch.stack([short, short + 6.0])
    with steps.plate("gap_of"):
        size = sample("size", Categorical(torch.tensor([0.9, 0.1], dtype=torch.float64)))
        observe("gap", Normal(lengths[size], 1.0))
