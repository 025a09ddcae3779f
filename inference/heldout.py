"""How well a model predicts what it has not seen: one unit left out, or a whole spatial block.

Neighbouring pixels, cells and atoms are alike, so leaving out one at a time flatters flexible models. Blocks are left
out by importance sampling from the full posterior, and by fitting again where its Pareto k says that this will not do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import xarray as xr

from ..models.model import Model, View
from .density import Density
from .fit import fit, make_density
from .runs import RunError

__all__ = ["HeldOut", "blocks_of", "leave_block_out", "leave_one_out"]

# Above this shape the importance weights' mean cannot be trusted (Vehtari et al. 2024).
RELIABLE_K = 0.7
# Of more units than that, so many are left out one by one, drawn at random, and stand for the others.
MOST_LEFT_OUT = 2000


@dataclass(frozen=True)
class HeldOut:
    """Expected log predictive density, and its parts.

    Attributes:
        parts: log predictive density of every unit or block.
        k: Pareto shape of each, NaN where the model was fitted again.
        refits: how many were fitted again.
        spatial: whether parts are blocks.
        errors: Monte Carlo standard error of every part, as if draws were independent; NaN where it is not known.
            The spread of the parts holds it already, since every block has random numbers of its own.
    """

    parts: np.ndarray
    k: np.ndarray
    refits: int = 0
    spatial: bool = False
    errors: np.ndarray | float = np.nan

    @property
    def elpd(self) -> float:
        """Sum of the parts."""
        return float(self.parts.sum())

    @property
    def se(self) -> float:
        """Standard error of the sum, from the spread of the parts."""
        return _standard_error(self.parts)

    def minus(self, other: HeldOut) -> tuple[float, float]:
        """Difference of two models on the same data and its standard error, part by part."""
        difference = self.parts - other.parts
        return float(difference.sum()), _standard_error(difference)


def _standard_error(parts: np.ndarray) -> float:
    return float(np.sqrt(len(parts)) * parts.std(ddof=1)) if len(parts) > 1 else float("nan")


def _pointwise(run: xr.DataTree) -> np.ndarray:
    """Log likelihood as (draws, units)."""
    if "log_likelihood" not in run.children:
        raise RunError(
            f"the run of {run.attrs.get('model')} kept no pointwise likelihoods, its observations are too many; it "
            "cannot be compared, a smaller part of the data can"
        )
    group = run["log_likelihood"].to_dataset()
    (name,) = group.data_vars
    values = group[name].stack(sample=("chain", "draw")).transpose("sample", ...).values
    return np.asarray(values).reshape(len(values), -1)


def _left_out(columns: np.ndarray) -> tuple[float, float, float]:
    """Log predictive density of units left out together, each scored by itself, its error, and Pareto k.

    Scoring the units of a block one by one, and not jointly, keeps the Monte Carlo error small.
    """
    together = columns.sum(1)
    if np.ptp(together) == 0:
        return float(columns[0].sum()), 0.0, -np.inf
    weights, k = _psis(together)
    return *_predicted(columns, weights), k


def _predicted(columns: np.ndarray, log_weights: np.ndarray) -> tuple[float, float]:
    """Sum over the units of the log of each one's mean density, and its Monte Carlo error by the delta method."""
    means = np.logaddexp.reduce(log_weights[:, None] + columns, axis=0)
    away = (np.exp(columns - means) - 1).sum(1)
    return float(means.sum()), float(np.sqrt(np.sum((np.exp(log_weights) * away) ** 2)))


def _psis(log_likelihood: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights of leaving these out, and the shape of their tail.

    Where resampled or rejected draws repeat in the tail, ArviZ finds no shape, and NaN for weights. Then the shape is
    that of the distinct values, and the weights are left as they are.
    """
    from arviz_stats.base import array_stats

    for values in (log_likelihood, np.unique(log_likelihood)):
        with np.errstate(all="ignore"), contextlib.suppress(ValueError):
            weights, k = array_stats.psislw(values)
            if np.isfinite(k) and np.isfinite(weights).all():
                break
    else:
        k = np.inf
    if len(values) < len(log_likelihood) or not np.isfinite(k):
        weights = -log_likelihood - np.logaddexp.reduce(-log_likelihood)
    return np.asarray(weights), float(k)


def leave_one_out(run: xr.DataTree) -> HeldOut:
    """PSIS-LOO over the exchangeable units of a run.

    Of very many units some stand for all (Magnusson et al. 2019): each counts for so many, and the standard error is
    that of the sample.
    """
    columns = _pointwise(run).T
    stands_for = max(1.0, len(columns) / MOST_LEFT_OUT)
    if stands_for > 1:
        chosen = np.random.default_rng(0).choice(len(columns), MOST_LEFT_OUT, replace=False)
        columns = columns[np.sort(chosen)]
    found = np.array([_left_out(column[:, None]) for column in columns])
    parts, errors, k = found.T
    return HeldOut(stands_for * parts, k, errors=stands_for * errors)


def blocks_of(model: Model, data: xr.Dataset, most: int = 8) -> np.ndarray | None:
    """A block number for every unit, None where the data have no spatial order.

    Args:
        model: says along what neighbours are alike.
        data: the data.
        most: about how many blocks.
    """
    view = View(data)
    unit = [d for d in model.unit if d in view.sizes]
    shape = tuple(view.sizes[d] for d in unit)
    along = [d for d in model.block if d in unit]
    if along:
        tiles = max(2, round(most ** (1 / len(along))))
        codes = np.zeros(shape, dtype=int)
        for dim in along:
            axis, size = unit.index(dim), view.sizes[dim]
            pieces = min(tiles, size)
            here = np.minimum(np.arange(size) * pieces // size, pieces - 1)
            codes = codes * pieces + here.reshape(
                [-1 if i == axis else 1 for i in range(len(shape))]
            )
        return codes
    for name in model.block:
        if view.has(name) and view.data[name].ndim == 2 and len(shape) == 1:
            return _tiles(view.data[name].values, most)
        if view.has(name) and view.data[name].shape == shape:
            return np.unique(view.data[name].values, return_inverse=True)[1].reshape(shape)
    return None


def _tiles(positions: np.ndarray, most: int) -> np.ndarray:
    """Tiles of equal size over positions."""
    side = max(2, round(most ** (1 / positions.shape[1])))
    low, high = positions.min(0), positions.max(0)
    place = np.floor((positions - low) / np.where(high > low, high - low, 1) * side)
    place = np.clip(place, 0, side - 1).astype(int)
    codes = np.zeros(len(positions), dtype=int)
    for axis in range(positions.shape[1]):
        codes = codes * side + place[:, axis]
    return np.unique(codes, return_inverse=True)[1]


def leave_block_out(
    model: Model,
    data: xr.Dataset,
    run: xr.DataTree,
    *,
    prior: Any = None,
    seed: int = 0,
    most: int = 8,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> HeldOut | None:
    """Predict each spatial block from the others; None where there are no blocks.

    Args:
        model: the model of the run.
        data: its data.
        run: a fit to all of them.
        prior: prior of the fits that leave a block out.
        seed: their seed.
        most: about how many blocks.
        progress: called with (done, total, text).
        **options: of the runner.
    """
    codes = blocks_of(model, data, 4 if model.amortised else most)
    if codes is None and model.amortised:
        units = data.sizes[model.unit[0]]
        codes = np.arange(units) * min(4, units) // units
    if codes is None or codes.max() < 1 or not _can_leave_out(model, run):
        return None
    names = range(int(codes.max()) + 1)
    if model.amortised:
        found = np.tile([0.0, np.nan, np.inf], (len(names), 1))
    else:
        pointwise, flat = _pointwise(run), codes.reshape(-1)
        found = np.array([_left_out(pointwise[:, flat == b]) for b in names])
    sums, errors, k = found.T
    again = [b for b in names if not k[b] <= RELIABLE_K]
    for i, block in enumerate(again):
        if progress:
            progress(i, len(again), f"fitting without block {block + 1}")
        own = int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
        sums[block], errors[block] = _refit(model, data, codes != block, run, prior, own, options)
        k[block] = np.nan
    return HeldOut(sums, k, len(again), True, errors)


def _can_leave_out(model: Model, run: xr.DataTree) -> bool:
    """Whether a run of the model can be done again without some units."""
    if run.attrs["runner"] != "closed":
        return True
    return model.posterior is not None and "mask" in signature(model.posterior).parameters


def _refit(
    model: Model,
    data: xr.Dataset,
    seen: np.ndarray,
    run: xr.DataTree,
    prior: Any,
    seed: int,
    options: dict[str, Any],
) -> tuple[float, float]:
    """Log predictive density of the units not seen, from a fit to those seen, and its Monte Carlo error."""
    if model.amortised:
        return _refit_networks(model, data, seen, prior, seed, options), np.nan
    part = fit(
        model,
        data,
        prior=prior,
        runner=run.attrs["runner"],
        seed=seed,
        mask=seen,
        predictive=0,
        **options,
    )
    hidden = _pointwise(part)[:, ~seen.reshape(-1)]
    return _predicted(hidden, np.full(len(hidden), -np.log(len(hidden))))


def _refit_networks(
    model: Model,
    data: xr.Dataset,
    seen: np.ndarray,
    prior: Any,
    seed: int,
    options: dict[str, Any],
) -> float:
    from . import amortised, svi

    if len(model.unit) != 1:
        raise RunError(f"{model.name}: leaving blocks out needs one unit dimension")
    dim = model.unit[0]
    density = make_density(model, data.isel({dim: seen}), prior, seed=seed)
    svi.run(density, seed=seed, **options)
    whole: Density = make_density(model, data, prior, seed=seed)
    whole.networks = density.networks
    return float(amortised.held_out(whole, ~seen, seed=seed).sum())
