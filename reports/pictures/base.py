"""What a picture is made from, and how a new one joins.

A file in this folder registers a function with `@picture(kind)` for the data of a kind, or with `@result(name)` for
what one model, or one family of models, has to show of its own: a graph, a manifold, a free energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import xarray as xr

from ...datasets.kinds import DataError, kind_of
from ...models.model import Model
from ...models.priors import ModelError
from ..figures import Look, Picture
from ..parameters import written_prior
from ..wording import clean, unit

__all__ = [
    "Fitted",
    "Seen",
    "evenly",
    "expectation",
    "picture",
    "pictures_of",
    "result",
    "results_of",
    "species_name",
    "with_unit",
]

# Draws whose expectations are averaged for a mean curve; its Monte Carlo error is then an eighth of the posterior's.
CURVE_DRAWS = 60


@dataclass(frozen=True)
class Fitted:
    """A run as a picture needs it."""

    name: str
    look: Look
    run: xr.DataTree
    model: Model | None = None

    def predicted(self, variable: str) -> np.ndarray | None:
        """Posterior predictive draws of a variable (draw, ...), None where the run has none."""
        if "posterior_predictive" not in self.run.children:
            return None
        group = self.run["posterior_predictive"].to_dataset()
        if variable not in group or not group[variable].size:
            return None
        array = group[variable].stack(sample=("chain", "draw")).transpose("sample", ...)
        return np.asarray(array.values, dtype=float)

    def classes(self) -> dict[str, xr.DataArray]:
        """Posterior class probabilities of every element, by latent."""
        if "classes" not in self.run.children:
            return {}
        group = self.run["classes"].to_dataset()
        return {str(name): array for name, array in group.data_vars.items()}


@dataclass(frozen=True)
class Seen:
    """Data and the runs that explain them, best first."""

    data: xr.Dataset
    fits: list[Fitted]

    @property
    def best(self) -> Fitted:
        """The run shown where there is room for one."""
        return self.fits[0]

    def units(self, name: str) -> str:
        """Unit of a variable or coordinate."""
        there = name in self.data.variables
        return str(self.data[name].attrs.get("units", "")) if there else ""


Picturing = Callable[[Seen], list[Picture]]
Showing = Callable[[Fitted, xr.Dataset], list[Picture]]
_PICTURES: dict[str, Picturing] = {}
_RESULTS: dict[str, Showing] = {}


def picture(kind: str) -> Callable[[Picturing], Picturing]:
    """Register how a kind of data is shown."""

    def register(function: Picturing) -> Picturing:
        _PICTURES[kind] = function
        return function

    return register


def result(name: str) -> Callable[[Showing], Showing]:
    """Register what a model, or every model of a family, shows of its own."""

    def register(function: Showing) -> Showing:
        _RESULTS[name] = function
        return function

    return register


def _load() -> None:
    for found in iter_modules(import_module(__package__).__path__):
        import_module(f".{found.name}", __package__)


def pictures_of(data: xr.Dataset, fits: Sequence[Fitted]) -> list[Picture]:
    """The pictures of data and fits; histograms for a kind that has none of its own."""
    _load()
    seen = Seen(data, list(fits))
    otherwise = _PICTURES["any"]
    return _PICTURES.get(kind_of(data).name, otherwise)(seen) or otherwise(seen)


def results_of(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """What a model shows of its own, then what its family does."""
    _load()
    keys = (fit.name, fit.model.family if fit.model else "")
    return [shown for key in keys if key in _RESULTS for shown in _RESULTS[key](fit, data)]


def species_name(data: xr.Dataset, code: float) -> str:
    """What a species is called, its code where the data do not say."""
    names = data.attrs.get("species_names")
    if isinstance(names, list | tuple | np.ndarray) and 0 <= code < len(names):
        return clean(names[int(code)], 16)
    return f"{code:g}"


def evenly(length: int, most: int) -> np.ndarray:
    """Indices of at most so many of a sequence, evenly."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def with_unit(name: str, units: str) -> str:
    """A name with its unit, for a caption."""
    written = unit(units)
    return f"{clean(name, 40)} ({written})" if written else clean(name, 40)


def expectation(fit: Fitted, data: xr.Dataset, variable: str) -> np.ndarray | None:
    """Posterior mean of a variable's expectation at the data's coordinates, free of noise; None where it has none."""
    if fit.model is None or fit.model.amortised:
        return None
    try:
        mean = _expectation(fit, fit.model, data, variable)
    except (DataError, ModelError, RuntimeError, ValueError, KeyError, NotImplementedError):
        # A model need not have a mean, nor bear other coordinates: the mean of its predictions then serves.
        return None
    return mean if mean.shape == data[variable].shape else None


def _expectation(fit: Fitted, model: Model, data: xr.Dataset, variable: str) -> np.ndarray:
    import torch

    from ...inference.fit import make_density
    from ...inference.threads import one_thread

    # The prior as the fit saw it: its statistics of other coordinates would be others.
    prior: dict[str, Any] = dict(written_prior(fit.run))
    posterior = fit.run["posterior"].to_dataset().stack(sample=("chain", "draw"))
    posterior = posterior.transpose("sample", ...)
    chosen = evenly(posterior.sizes["sample"], CURVE_DRAWS)
    with one_thread():
        density = make_density(model, data, prior)
        draws = {s.name: torch.as_tensor(posterior[s.name].values[chosen]) for s in density.sites}
        means = [
            density.expectation(density.unconstrain({k: v[i] for k, v in draws.items()}))[variable]
            for i in range(len(chosen))
        ]
    return np.asarray(torch.stack(means).mean(0))
