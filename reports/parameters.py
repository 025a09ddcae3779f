"""What a run says of each parameter: draws, prior, truth where it is known, and a line for the table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..models.model import Model
from ..models.priors import ModelError, parse
from .wording import clean

__all__ = ["Group", "Parameter", "groups_of", "most_entangled", "parameters_of", "written_prior"]

# A vector longer than this is summed up in one line.
LISTED = 12
# Codes of a discrete latent: more values than this and a histogram says nothing.
MOST_CODES = 64
PRIOR_DRAWS = 4000


def written_prior(run: xr.DataTree) -> dict[str, str]:
    """The prior that a run was made with, by parameter."""
    found = json.loads(run.attrs.get("prior", "{}"))
    return {str(name): str(text) for name, text in found.items()}


@dataclass(frozen=True)
class Parameter:
    """One number of the posterior.

    Attributes:
        name: variable of the posterior.
        index: which element of it, () for a scalar.
        label: how it is printed.
        units: its unit.
        draws: (chain, draw).
        truth: true value, where the data know it.
        prior: the prior's text, where it has one of its own.
        prior_draws: draws from the prior, where the run holds them.
        ess: effective draws (bulk).
        r_hat: convergence figure.
    """

    name: str
    index: tuple[int, ...]
    label: str
    units: str
    draws: np.ndarray
    truth: float | None = None
    prior: str | None = None
    prior_draws: np.ndarray | None = None
    ess: float = float("nan")
    r_hat: float = float("nan")

    @cached_property
    def discrete(self) -> bool:
        """Whether the draws are codes."""
        values = np.unique(self.draws)
        return len(values) <= MOST_CODES and bool((values == np.round(values)).all())

    @cached_property
    def mean(self) -> float:
        """Posterior mean."""
        return float(self.draws.mean())

    @cached_property
    def sd(self) -> float:
        """Posterior standard deviation."""
        return float(self.draws.std(ddof=1)) if self.draws.size > 1 else 0.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Central 90 % interval."""
        low, high = np.quantile(self.draws, (0.05, 0.95))
        return float(low), float(high)

    @property
    def covered(self) -> bool | None:
        """Whether the interval holds the truth, None where that is not known."""
        return None if self.truth is None else self.interval[0] <= self.truth <= self.interval[1]

    def mode(self) -> tuple[float, float]:
        """Most frequent code and its probability."""
        codes, counts = np.unique(self.draws, return_counts=True)
        best = int(counts.argmax())
        return float(codes[best]), float(counts[best] / counts.sum())

    def window(self) -> tuple[float, float]:
        """A range that shows the posterior, and of the prior as much as leaves it legible."""
        low, high = (float(v) for v in np.quantile(self.draws, (0.002, 0.998)))
        pad = 0.35 * (high - low) or 0.5 * abs(high) or 0.5
        low, high = low - pad, high + pad
        if self.prior_draws is not None and self.prior_draws.size > 20:
            wide = np.quantile(self.prior_draws, (0.05, 0.95))
            reach = 0.8 * (high - low)
            low = min(low, max(float(wide[0]), low - reach))
            high = max(high, min(float(wide[1]), high + reach))
        if self.truth is not None:
            low, high = min(low, self.truth), max(high, self.truth)
        support = self._support()
        return max(low, support[0]), min(high, support[1])

    def _support(self) -> tuple[float, float]:
        found = self._distribution
        bounds = getattr(found, "support", None)
        low = getattr(bounds, "lower_bound", -np.inf)
        high = getattr(bounds, "upper_bound", np.inf)
        return (
            (float(low), float(high))
            if np.ndim(low) == 0 and np.ndim(high) == 0
            else (-np.inf, np.inf)
        )

    @cached_property
    def _distribution(self) -> Any:
        """The prior of a scalar as a distribution, None where it cannot be read."""
        if self.prior is None or self.index:
            return None
        try:
            found = parse(self.prior, {})
        except ModelError:
            return None
        plain = hasattr(found, "log_prob") and not (found.batch_shape or found.event_shape)
        return found if plain else None

    def posterior_density(self) -> tuple[np.ndarray, np.ndarray]:
        """Grid and density of the posterior."""
        return _density(self.draws.ravel())

    def prior_density(self, grid: np.ndarray) -> np.ndarray | None:
        """The prior's density on a grid: exact for a scalar, else from its draws; None where unknown."""
        import torch

        found = self._distribution
        if found is not None:
            with torch.no_grad():
                inside = found.support.check(torch.as_tensor(grid))
                value = found.log_prob(torch.as_tensor(np.where(inside, grid, self.mean))).exp()
            return np.where(inside, value.numpy(), 0.0)
        if self.prior_draws is None or self.prior_draws.size < 20 or np.ptp(self.prior_draws) == 0:
            return None
        x, density = _density(self.prior_draws)
        return np.interp(grid, x, density, left=0.0, right=0.0)


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from arviz_stats.base import array_stats

    if np.ptp(values) == 0:
        step = 0.01 * abs(float(values[0])) or 0.01
        return values[0] + step * np.array([-1.0, 0.0, 1.0]), np.array([0.0, 1 / step, 0.0])
    grid, density, _ = array_stats.kde(values)
    return np.asarray(grid), np.asarray(density)


@dataclass(frozen=True)
class Group:
    """A variable of the posterior: its elements, or when they are many what they have in common."""

    name: str
    label: str
    units: str
    size: int
    elements: list[Parameter] = field(default_factory=list)
    means: tuple[float, float] = (float("nan"), float("nan"))
    sds: tuple[float, float] = (float("nan"), float("nan"))
    ess: float = float("nan")
    r_hat: float = float("nan")
    coverage: float | None = None


def groups_of(run: xr.DataTree, model: Model | None) -> list[Group]:
    """Every variable of the posterior, the model's own parameters first."""
    import arviz_stats as azs

    posterior = run["posterior"].to_dataset()
    numeric = [n for n in posterior.data_vars if posterior[n].dtype.kind in "fiub"]
    posterior = posterior[numeric].astype(float)
    with np.errstate(all="ignore"):
        ess = azs.ess(posterior) if numeric else xr.Dataset()
        r_hat = azs.rhat(posterior) if numeric and posterior.sizes["chain"] > 1 else None
    priors = written_prior(run)
    symbols: Mapping[str, str] = model.symbols if model else {}
    order = sorted(
        map(str, numeric), key=lambda n: list(priors).index(n) if n in priors else len(priors)
    )
    return [
        _group(run, posterior[n], ess[n], None if r_hat is None else r_hat[n], priors, symbols)
        for n in order
    ]


def _group(
    run: xr.DataTree,
    array: xr.DataArray,
    ess: xr.DataArray,
    r_hat: xr.DataArray | None,
    priors: Mapping[str, str],
    symbols: Mapping[str, str],
) -> Group:
    name = str(array.name)
    values = array.transpose("chain", "draw", ...).values
    shape = values.shape[2:]
    size = int(np.prod(shape))
    symbol = clean(symbols.get(name, name), 60)
    units = str(run["posterior"][name].attrs.get("units", ""))
    truth = _known(run, "constant_data", f"true_{name}", shape)
    prior = _known(run, "prior", name, None)
    figures = (ess.values, r_hat.values if r_hat is not None else np.full(shape, np.nan))
    if size > LISTED:
        return _summed_up(name, symbol, units, values, truth, figures)
    elements = [
        Parameter(
            name,
            index,
            f"{symbol}[{', '.join(map(str, index))}]" if shape else symbol,
            units,
            values[(slice(None), slice(None), *index)],
            None if truth is None else float(truth[index]),
            priors.get(name),
            None
            if prior is None or prior.shape[2:] != shape
            else prior[(slice(None), slice(None), *index)].ravel(),
            float(figures[0][index]),
            float(figures[1][index]),
        )
        for index in np.ndindex(shape)
    ]
    return Group(name, symbol, units, size, elements)


def _known(
    run: xr.DataTree, group: str, name: str, shape: tuple[int, ...] | None
) -> np.ndarray | None:
    """Values of a variable in another group of the run, None where it is not there or of another shape."""
    if group not in run.children or name not in run[group].data_vars:
        return None
    array = run[group][name]
    if array.dtype.kind not in "fiub":
        return None
    if "chain" in array.dims:
        array = array.transpose("chain", "draw", ...)
    values = np.asarray(array.values, dtype=float)
    return values if shape is None or values.shape == shape else None


def _summed_up(
    name: str,
    symbol: str,
    units: str,
    values: np.ndarray,
    truth: np.ndarray | None,
    figures: tuple[np.ndarray, np.ndarray],
) -> Group:
    means, sds = values.mean((0, 1)), values.std((0, 1))
    coverage = None
    if truth is not None:
        low, high = np.quantile(values, (0.05, 0.95), axis=(0, 1))
        coverage = float(((low <= truth) & (truth <= high)).mean())
    ess, r_hat = (f[np.isfinite(f)] for f in figures)
    return Group(
        name,
        symbol,
        units,
        int(means.size),
        means=(float(means.min()), float(means.max())),
        sds=(float(sds.min()), float(sds.max())),
        ess=float(ess.min()) if ess.size else float("nan"),
        r_hat=float(r_hat.max()) if r_hat.size else float("nan"),
        coverage=coverage,
    )


def parameters_of(groups: list[Group], most: int, *, moving: bool = True) -> list[Parameter]:
    """Up to `most` single parameters to draw: scalars first, then elements of vectors.

    Args:
        groups: of a run.
        most: how many.
        moving: leave out what has no spread or is a code.
    """
    every = [p for group in groups for p in group.elements]
    kept = [p for p in every if not moving or (p.sd > 0 and not p.discrete)]
    return sorted(kept, key=lambda p: bool(p.index))[:most]


def most_entangled(parameters: list[Parameter], most: int) -> list[Parameter]:
    """Those that depend on each other most, in their old order."""
    if len(parameters) <= most:
        return parameters
    size = np.abs(np.corrcoef([p.draws.ravel() for p in parameters])) - np.eye(len(parameters))
    kept = sorted(np.argsort(-size.max(1), kind="stable")[:most])
    return [parameters[i] for i in kept]
