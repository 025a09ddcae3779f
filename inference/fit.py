"""Fit a model to data with a runner: the one way from data to a run."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr

from ..datasets.kinds import DataError, kind_of, validate
from ..models.model import Model, find
from ..models.priors import ModelError
from .density import Density
from .evidence import with_evidence
from .runs import Draws, Progress, RunError, to_tree
from .threads import one_thread

__all__ = ["RUNNERS", "check_fit", "fit", "learnt_from", "make_density", "runner_of"]

# Where each runner lives; imported when it is asked for.
RUNNERS = {
    "laplace": ".laplace",
    "ensemble": ".ensemble",
    "nuts": ".nuts",
    "smc": ".smc",
    "exact": ".exact",
    "svi": ".svi",
    "closed": ".closed",
}
FALLBACK = "ensemble"


def runner_of(model: Model, runner: str | None) -> tuple[str, Callable[..., Draws]]:
    """A runner by name; by default the one that the model prefers, else `ensemble`."""
    name = runner or model.runner or FALLBACK
    if name not in RUNNERS:
        if runner is not None:
            raise RunError(f"there is no runner {name!r}; there are {', '.join(RUNNERS)}")
        name = FALLBACK
    return name, import_module(RUNNERS[name], __package__).run


def make_density(
    model: Model | str,
    data: xr.Dataset,
    prior: Any = None,
    *,
    mask: np.ndarray | None = None,
    fuse: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Density:
    """The density of a model given valid data and a prior, or an error that says why not."""
    found = find(model)
    check_fit(found, data, prior)
    seen = found.prepared(data, prior)
    resolved = found.resolve(seen, prior)
    return Density(found, seen, resolved, mask=mask, device=device, fuse=fuse, seed=seed)


def learnt_from(model: Model, seen: xr.Dataset, runner: str | None, seed: int) -> xr.Dataset:
    """Of prepared data, the units that the global parameters are learnt from."""
    return model.some(seen, seed)


def check_fit(model: Model, data: xr.Dataset, prior: Any = None) -> None:
    """Raise where a model cannot be fitted to data, and say why; nothing long is done."""
    validate(data)
    reason = model.refuses(data)
    if reason:
        raise DataError(f"{model.name} cannot be fitted: {reason}")
    if kind_of(data).name == model.sees:
        model.resolve(data, prior)
    else:
        model.prior(prior)


def fit(
    model: Model | str,
    data: xr.Dataset | Sequence[xr.Dataset],
    *,
    prior: Any = None,
    runner: str | None = None,
    seed: int = 0,
    mask: np.ndarray | None = None,
    predictive: int = 200,
    lean: bool = False,
    fuse: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> xr.DataTree:
    """Fit a model and return the run.

    Args:
        model: a model or its name.
        data: a valid dataset of its kind; any `true_*` in it is never seen by the model. Or a list of datasets of one
            shape: each has its own posterior, and all are sampled at once, by `ensemble` and lean.
        prior: a prior set's name, a set, or a dict of overrides (see `Model.prior`).
        runner: by default the model's preferred one.
        seed: the run depends on it, the data and the options, nothing else.
        mask: which exchangeable units count, over the model's unit dimensions; the rest is left out.
        predictive: draws of the predictive groups, 0 for none.
        lean: only the posterior, without the likelihoods, prior densities, predictions and evidence that comparisons
            and reports are made of.
        fuse: compile the density with Torch's own compiler first. It takes some ten seconds and needs a C++ compiler;
            long runs on much data are several times as fast.
        device: where the model is worked out, such as `cuda`: quicker where the data are many. What runners do with
            the draws in between is small, and stays on the processor.
        progress: called with (done, total, text).
        checkpoint: file that an interrupted run goes on from, where the runner can; remove it when the run is safe.
        **options: of the runner.

    Returns:
        A `DataTree` in ArviZ's schema; see `inference/runs.py`.
    """
    found = find(model)
    chosen = found.prior(prior)
    if not isinstance(data, xr.Dataset):
        given = {"a mask": mask, "a checkpoint": checkpoint}
        refused = [text for text, value in given.items() if value is not None]
        refused += [f"runner {runner}"] if runner not in (None, "ensemble") else []
        refused += ["fuse"] if fuse else []
        return _fit_each(
            found, data, chosen, refused, seed=seed, device=device, progress=progress, **options
        )
    name, run = runner_of(found, runner)
    allowed = set(list(inspect.signature(run).parameters)[1:]) - {"seed", "progress", "checkpoint"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise RunError(
            f"runner {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(allowed))}"
        )
    check_fit(found, data, chosen)
    started = time.perf_counter()
    with one_thread():
        seen = found.prepared(data, chosen)
        resolved = found.resolve(seen, chosen)
        learnt = seen if mask is not None else learnt_from(found, seen, name, seed)
        density = Density(found, learnt, resolved, mask=mask, device=device, fuse=fuse, seed=seed)
        draws = run(density, seed=seed, progress=progress, checkpoint=checkpoint, **options)
        known = draws.log_evidence is not None or "evidence_problem" in draws.attrs
        if not known and density.networks is None and not lean:
            draws = with_evidence(density, draws, seed)
        return to_tree(
            density,
            draws,
            runner=name,
            options=options,
            prior_name=chosen.name,
            seed=seed,
            seconds=time.perf_counter() - started,
            predictive=predictive,
            lean=lean,
            every=seen,
            source=data,
        )


def _fit_each(
    model: Model, datasets: Sequence[xr.Dataset], prior: Any, refused: list[str], **how: Any
) -> xr.DataTree:
    """Fit many datasets in the same strokes."""
    from .stack import fit_stack

    unknown = set(how) - {"seed", "device", "progress", "ess", "chains"}
    if refused or unknown:
        what = ", ".join([*refused, *sorted(unknown)])
        raise RunError(f"several datasets at once are fitted without {what}; fit each alone")
    if not datasets:
        raise DataError("there is no dataset to fit")
    seen, priors = [], []
    for i, data in enumerate(datasets):
        try:
            check_fit(model, data, prior)
            seen.append(model.prepared(data, prior))
            priors.append(model.resolve(seen[-1], prior))
        except (DataError, ModelError) as error:
            raise type(error)(f"dataset {i}: {error}") from None
    with one_thread():
        return fit_stack(model, seen, priors, prior_name=prior.name, **how)
