"""Simulation-based calibration: does a model, fitted to what it made itself, find back what it put in?

Parameters are drawn from the prior, data from the parameters, and the model is fitted to the data. Over many such
rounds the rank of the true value among the posterior draws is uniform, if the fit is right. So is the rank of the
true parameters' likelihood, which also notices a posterior that ignores the data, or the parameters' dependence on
one another. A classifier between truths and draws (C2ST) is left out: it would notice the same, and with hundreds of
simulations later than these ranks do.

References: Talts et al., Validating Bayesian inference algorithms with simulation-based calibration (2018,
arXiv:1804.06788); Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity (2022, arXiv:2103.10522);
Modrák et al., Simulation-based calibration checking with SBC (2023, arXiv:2211.02383).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from ..datasets.kinds import DataError
from ..models.files import load_file
from ..models.model import Model, find
from ..models.priors import ModelError
from .certificates import Certificate, story_of, version_of
from .density import Density
from .fit import fit, make_density, runner_of
from .runs import LIBRARIES, Progress, RunError, digest, library_version
from .threads import one_thread
from .uniformity import DRAWS, TESTS, Quantity, Uniform
from .workers import Lost, Results, in_turn, on_executor, on_processes, processors

__all__ = ["Certificate", "calibrate"]

# Chance that a right model fails its certificate, over all of its parameters and tests together.
FALSE_ALARM = 0.01
# Below, the tests could not fail anything.
FEWEST = 20
# Elements of one parameter that are ranked, evenly chosen; neighbours in a long vector tell the same story.
MOST_ELEMENTS = 16
LIKELIHOOD = "log likelihood"
# A fit that takes longer hangs, unless the caller knows better.
TIMEOUT_S = 600.0

Check = Callable[[xr.DataTree], Sequence[Any]]
# Torch keeps one random state a process: where an executor has threads, they take turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class _Source:
    """Where a worker finds the model: the catalogue, a module, or a file, whose text travels along."""

    model: str
    story: str
    module: str
    file: str | None
    text: str


@dataclass(frozen=True)
class _Study:
    """What all simulations share, as it travels to a worker."""

    source: _Source
    design: xr.Dataset
    prior: dict[str, str]
    runner: str
    options: dict[str, Any]
    check: Check | None


class _Outcome(NamedTuple):
    """What came of a simulation: the ranks, or why there are none."""

    ranks: dict[str, int]
    failed_gates: tuple[str, ...] = ()
    failure: str = ""


def calibrate(
    model: Model | str,
    n: int = 200,
    *,
    prior: Any = None,
    runner: str | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    workers: int | None = None,
    timeout: float = TIMEOUT_S,
    data: xr.Dataset | None = None,
    check: Check | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Certificate:
    """Calibrate a model and its runner on data that the model made itself.

    Args:
        model: a model or its name.
        n: number of simulations, at least 20.
        prior: as in `Model.prior`; what in it scales with the data is read off the design once and then held.
        runner: by default the model's preferred one.
        seed: the certificate depends on it, the design and the options, nothing else.
        executor: where the fits run, any `concurrent.futures.Executor`, such as `Client(...).get_executor()` of
            Dask; by default processes on this machine.
        workers: how many such processes, by default one a processor; 1 runs everything in this process.
        timeout: seconds after which a fit in a process of its own is ended and tried once more.
        data: a dataset whose shape the simulations have; by default the model's own design.
        check: a function of a run that returns gates, such as `atomzoo.reports.diagnose.diagnose`; how many fits
            fail it is written down beside the ranks.
        progress: called with (done, total, text).
        checkpoint: file that an interrupted calibration goes on from; remove it when the certificate is safe.
        **options: of the runner.
    """
    found = find(model)
    if n < FEWEST:
        raise RunError(f"calibration needs at least {FEWEST} simulations, found {n}")
    if workers is not None and workers < 1:
        raise RunError(f"workers must be at least 1, found {workers}")
    if not timeout > 0:
        raise RunError(f"timeout must be more than 0 s, found {timeout}")
    design = _design(found, data)
    chosen = found.prior(prior)
    frozen = found.resolve(design, chosen).describe()
    name, _ = runner_of(found, runner)
    not_ranked = _not_ranked(make_density(found, design, frozen))
    started = time.perf_counter()
    study = _Study(_source(found), design, frozen, name, options, check)
    kept = _Kept(checkpoint, study, seed)
    where = partial(_spread, executor=executor, workers=workers, timeout=timeout)
    outcomes, retried = _outcomes(study, _seeds(seed, n), where, kept, progress)
    quantities, level, band = _judge(outcomes, seed)
    gates = Counter(gate for o in outcomes for gate in set(o.failed_gates))
    return Certificate(
        model=found.name,
        prior_set=chosen.name,
        prior=frozen,
        design=_described(design),
        runner=name,
        options=dict(options),
        n=n,
        seed=seed,
        draws=DRAWS,
        level=level,
        quantities=quantities,
        not_ranked=not_ranked,
        failures=tuple(f"simulation {i}: {o.failure}" for i, o in enumerate(outcomes) if o.failure),
        retried=tuple(retried),
        failed_gates=dict(gates) if check else None,
        fits_with_failed_gates=sum(bool(o.failed_gates) for o in outcomes) if check else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        versions=_versions(),
        version=version_of(found, chosen),
        band=band,
    )


def _design(model: Model, data: xr.Dataset | None) -> xr.Dataset:
    if model.amortised:
        raise RunError(
            f"{model.name} learns its networks from data: it has no prior over data to calibrate on"
        )
    if data is None and model.design is None:
        raise ModelError(f"{model.name} has no design of its own: give data to imitate")
    found = data if data is not None else model.design()  # type: ignore[misc]
    if reason := model.refuses(found):
        raise DataError(f"{model.name} cannot be fitted: {reason}")
    return found


def _described(design: xr.Dataset) -> dict[str, Any]:
    sizes = {str(dim): int(size) for dim, size in design.sizes.items()}
    return {"kind": str(design.attrs["kind"]), "sizes": sizes, "sha256": digest(design)}


def _seeds(seed: int, n: int) -> list[int]:
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(n)]


def _not_ranked(density: Density) -> dict[str, str]:
    """Latents without a rank; raises where that leaves none."""
    found = {site.name: "discrete: it was summed out" for site in density.discrete}
    local = "local: every element of the data has its own"
    found |= {site.name: local for site in density.sites if site.local}
    for site in density.sites:
        size = int(np.prod(site.shape))
        if not site.local and size > MOST_ELEMENTS:
            found[site.name] = f"{MOST_ELEMENTS} of its {size} elements were ranked"
    if all(site.local for site in density.sites):
        raise RunError(
            f"{density.model.name} has no continuous parameter of its own to rank: "
            "every latent is discrete, known, or local to an element of the data"
        )
    return found


def _source(model: Model) -> _Source:
    module = sys.modules.get(model.module)
    file = getattr(module, "__file__", None)
    path = Path(file).resolve() if file else None
    text = path.read_text("utf-8") if path is not None and path.is_file() else ""
    return _Source(model.name, story_of(model), model.module, str(path) if text else None, text)


class _Kept:
    """Outcomes so far, as lines of JSON; the first line says of what."""

    def __init__(self, path: str | os.PathLike[str] | None, study: _Study, seed: int) -> None:
        self.path = None if path is None else Path(path)
        self.outcomes: dict[int, _Outcome] = {}
        self.of = {
            "model": study.source.model,
            "story": study.source.story,
            "prior": study.prior,
            "design": digest(study.design),
            "runner": study.runner,
            "options": {name: str(value) for name, value in study.options.items()},
            "checked": study.check is not None,
            "seed": seed,
            "versions": _versions(),
        }
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            # A line that an interruption cut off is done again.
            first, *lines = path.read_text("utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            of, rows = json.loads(first), [json.loads(line) for line in whole]
            for row in rows:
                outcome = _Outcome(row["ranks"], tuple(row["gates"]), row["failure"])
                self.outcomes[int(row["simulation"])] = outcome
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{path}: no calibration can go on from this; remove it") from None
        if of != self.of:
            raise RunError(
                f"{path} is left from another calibration: of another model, prior, runner, option, seed or "
                "version of a library; remove it"
            )
        if len(whole) < len(lines):
            path.write_text("".join([first, *whole]), "utf-8")

    def add(self, i: int, outcome: _Outcome) -> None:
        """One more outcome, written down at once."""
        self.outcomes[i] = outcome
        if self.path is None:
            return
        row = {
            "simulation": i,
            "ranks": outcome.ranks,
            "gates": outcome.failed_gates,
            "failure": outcome.failure,
        }
        rows = [row] if self.path.exists() else [self.of, row]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(each, ensure_ascii=False)}\n" for each in rows)


def _versions() -> dict[str, str]:
    return {library: library_version(library) for library in LIBRARIES}


def _spread(
    function: Callable[[int], _Outcome],
    seeds: list[int],
    tell: Callable[[int, str], None],
    *,
    executor: Executor | None,
    workers: int | None,
    timeout: float,
) -> Results:
    if executor is not None:
        return on_executor(executor, function, seeds)
    count = min(workers or processors(), len(seeds))
    if count <= 1:
        return in_turn(function, seeds)
    return on_processes(function, seeds, count=count, timeout=timeout, tell=tell)


def _outcomes(
    study: _Study,
    seeds: list[int],
    where: Callable[..., Results],
    kept: _Kept,
    progress: Progress | None,
) -> tuple[list[_Outcome], list[str]]:
    """The outcome of every simulation, in order, and which had to be done again."""
    report = progress or (lambda done, total, text: None)
    retried: list[str] = []
    left = [i for i in range(len(seeds)) if i not in kept.outcomes]
    done = len(seeds) - len(left)

    def tell(place: int, reason: str) -> None:
        retried.append(f"simulation {left[place]}: {reason}")
        report(done, len(seeds), f"simulation {left[place]} is tried again: {reason}")

    report(done, len(seeds), "simulating and fitting")
    with contextlib.closing(
        where(partial(_replicate, study), [seeds[i] for i in left], tell)
    ) as results:
        for place, result in results:
            lost = isinstance(result, Lost)
            kept.add(left[place], _Outcome({}, failure=result.reason) if lost else result)
            done += 1
            report(done, len(seeds), "simulating and fitting")
    return [kept.outcomes[i] for i in range(len(seeds))], retried


def _replicate(study: _Study, seed: int) -> _Outcome:
    """Simulate, fit, rank. A simulation that cannot be fitted is a finding and not the end."""
    with _TURN, one_thread(alone=True):
        try:
            model = _find(study.source)
            truth = model.simulate(study.design, prior=study.prior, seed=seed)
            run = fit(
                model,
                truth,
                prior=study.prior,
                runner=study.runner,
                seed=seed + 1,
                predictive=0,
                **study.options,
            )
            ranks = _ranks(make_density(model, truth, study.prior), truth, run)
            gates = study.check(run) if study.check else ()
        except Exception as error:  # noqa: BLE001  whatever stopped this fit is written down
            first = (str(error).splitlines() or [""])[0][:300]
            known = isinstance(error, DataError | ModelError | RunError)
            return _Outcome({}, failure=first if known else f"{type(error).__name__}: {first}")
    return _Outcome(ranks, tuple(gate.name for gate in gates if gate.fault))


@lru_cache
def _find(source: _Source) -> Model:
    """The model in a process that may not have imported it yet, and that may be on another machine."""
    with contextlib.suppress(ModelError):
        return _same(find(source.model), source)
    with contextlib.suppress(ImportError, ModelError):
        import_module(source.module)
        return _same(find(source.model), source)
    if source.file is None:
        raise RunError(
            f"a worker process cannot import {source.model}: put it in a file of its own, or use workers=1"
        )
    path = Path(source.file)
    if path.is_file() and path.read_text("utf-8") == source.text:
        return _same(load_file(source.file, source.model), source)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(source.text, "utf-8")
        return _same(load_file(str(copy), source.model), source)


def _same(model: Model, source: _Source) -> Model:
    if story_of(model) != source.story:
        raise RunError(
            f"a worker has another version of {model.name}: install the same one everywhere, and start the "
            "workers again"
        )
    return model


def _ranks(density: Density, truth: xr.Dataset, run: xr.DataTree) -> dict[str, int]:
    found = {}
    for site in density.sites:
        if not site.local:
            draws = _thinned(run["posterior"].to_dataset()[site.name])
            true = truth[f"true_{site.name}"].values.reshape(-1)
            for index in _elements(true.size):
                label = site.name + _label(index, truth[f"true_{site.name}"].shape)
                found[label] = int((draws[:, index] < true[index]).sum())
    if not density.alternatives:
        found[LIKELIHOOD] = _likelihood_rank(density, truth, run)
    return found


def _thinned(draws: xr.DataArray) -> np.ndarray:
    """As many draws as a rank is taken among, evenly from all chains, elements flattened."""
    stacked = draws.stack(sample=("chain", "draw")).transpose("sample", ...).values
    if len(stacked) < DRAWS:
        raise RunError(f"a rank needs {DRAWS} posterior draws, the runner gave {len(stacked)}")
    flat = stacked.reshape(len(stacked), -1)
    return np.asarray(flat[np.linspace(0, len(flat) - 1, DRAWS).round().astype(int)])


def _elements(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, MOST_ELEMENTS)).round().astype(int))


def _label(index: int, shape: tuple[int, ...]) -> str:
    if not shape:
        return ""
    return "[" + ", ".join(str(i) for i in np.unravel_index(index, shape)) + "]"


def _likelihood_rank(density: Density, truth: xr.Dataset, run: xr.DataTree) -> int:
    values = {
        site.name: torch.as_tensor(truth[f"true_{site.name}"].values) for site in density.sites
    }
    true = float(density.pointwise(density.unconstrain(values)[None]).sum())
    if not math.isfinite(true):
        raise RunError("the simulated data have no finite likelihood at their own parameters")
    group = run["log_likelihood"].to_dataset()
    (name,) = group.data_vars
    return int((_thinned(group[name]).sum(1) < true).sum())


def _judge(outcomes: list[_Outcome], seed: int) -> tuple[tuple[Quantity, ...], float, float]:
    """Every quantity with its tests, the level that a single test is held against, and that of a single count."""
    ranks = [o.ranks for o in outcomes if not o.failure]
    failure = next((o.failure for o in outcomes if o.failure), "")
    if not ranks:
        raise RunError(f"no simulation could be fitted; the first: {failure}")
    if len(ranks) < FEWEST:
        raise RunError(
            f"only {len(ranks)} of {len(outcomes)} simulations could be fitted; the first that failed: {failure}"
        )
    level = FALSE_ALARM / (TESTS * len(ranks[0]))
    uniform = Uniform(len(ranks), level, seed)
    found = [uniform.judge(name, np.array([r[name] for r in ranks])) for name in ranks[0]]
    return tuple(found), level, uniform.pointwise
