"""Simulation-based calibration: does a model, fitted to what it made itself, find back what it put in?

Parameters are drawn from the prior, data from the parameters, and the model is fitted to the data. Over many such
rounds the rank of the true value among the posterior draws is uniform, if the fit is right. So is the rank of the
true parameters' likelihood, which also notices a posterior that ignores the data.

References: Talts et al., Validating Bayesian inference algorithms with simulation-based calibration (2018,
arXiv:1804.06788); Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity (2022, arXiv:2103.10522);
Modrák et al., Simulation-based calibration checking with SBC (2023, arXiv:2211.02383).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
import xarray as xr

from ..datasets.kinds import DataError
from ..models.files import load_file
from ..models.model import Model, find
from ..models.priors import ModelError
from .density import Density
from .fit import fit, make_density, one_thread, runner_of
from .runs import LIBRARIES, Progress, RunError, digest, library_version, write_text

__all__ = ["Certificate", "Coverage", "Quantity", "calibrate"]

# With 199 draws a rank has 200 values, of which 50, 80, 90 and 95 % are whole numbers.
DRAWS = 199
LEVELS = (0.5, 0.8, 0.9, 0.95)
# Chance that a right model fails its certificate, over all of its parameters and tests together.
FALSE_ALARM = 0.01
# Below, the tests could not fail anything.
FEWEST = 20
# Elements of one parameter that are ranked, evenly chosen; neighbours in a long vector tell the same story.
MOST_ELEMENTS = 16
LIKELIHOOD = "log likelihood"

Check = Callable[[xr.DataTree], Sequence[Any]]
# Torch keeps one random state a process: where an executor has threads, they take turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class Coverage:
    """How often central intervals held the truth.

    Attributes:
        level: how often they should.
        found: share that did.
        low: least share that chance allows.
        high: largest share that chance allows.
    """

    level: float
    found: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether chance explains the share found."""
        return self.low <= self.found <= self.high


@dataclass(frozen=True)
class Quantity:
    """The ranks of one parameter, or of the log likelihood, and whether they are uniform.

    Attributes:
        name: the parameter, with an index where it is an element of a vector.
        ranks: of the truth among the draws, 0 to their number, one a fit.
        ecdf_p: p-value of the ranks' empirical distribution, simultaneous over all ranks.
        chi2_p: p-value of the ranks' histogram.
        coverage: of central intervals.
        passed: whether all of these agree with uniform ranks.
    """

    name: str
    ranks: tuple[int, ...]
    ecdf_p: float
    chi2_p: float
    coverage: tuple[Coverage, ...]
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """What a calibration found.

    Attributes:
        model: name of the model.
        prior_set: name of its prior set.
        prior: the prior that truths were drawn from and fits were made with, written out.
        design: kind, sizes and digest of the dataset whose shape the simulations had.
        runner: name of the runner.
        options: of the runner.
        n: number of simulations asked for.
        seed: everything depends on it alone.
        draws: posterior draws among which the truth was ranked.
        level: significance that a single test is held against, after Bonferroni's correction.
        quantities: what was ranked.
        not_ranked: what was not, and why.
        failures: simulations that gave no fit, with the reason.
        failed_gates: how many fits failed each diagnostic, None where diagnostics were not asked for.
        fits_with_failed_gates: how many fits failed any, None likewise.
        date: when.
        seconds: how long it took.
        versions: of the libraries.
    """

    model: str
    prior_set: str
    prior: dict[str, str]
    design: dict[str, Any]
    runner: str
    options: dict[str, Any]
    n: int
    seed: int
    draws: int
    level: float
    quantities: tuple[Quantity, ...]
    not_ranked: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    failed_gates: dict[str, int] | None = None
    fits_with_failed_gates: int | None = None
    date: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every quantity passed and every simulation gave a fit."""
        return not self.failures and all(quantity.passed for quantity in self.quantities)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the verdict first."""
        return {"passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Certificate:
        """A certificate from what `as_json` gave, or `RunError`."""
        try:
            fields = {name: value for name, value in content.items() if name != "passed"}
            quantities = [_quantity_from(entry) for entry in fields.pop("quantities")]
            failures = tuple(map(str, fields.pop("failures")))
            return cls(**fields, quantities=tuple(quantities), failures=failures)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise RunError("not a certificate that `calibrate` wrote") from None

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write as JSON, whole or not at all."""
        return write_text(json.dumps(self.as_json(), ensure_ascii=False), path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read what `write` wrote."""
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8")))
        except FileNotFoundError:
            raise RunError(f"{path}: there is no such file") from None
        except (OSError, ValueError, RunError) as error:
            reason = error if isinstance(error, RunError) else "cannot be read as JSON"
            raise RunError(f"{path}: {reason}") from None


def _quantity_from(entry: Mapping[str, Any]) -> Quantity:
    coverage = tuple(
        Coverage(*(float(part[name]) for name in ("level", "found", "low", "high")))
        for part in entry["coverage"]
    )
    ranks = tuple(int(rank) for rank in entry["ranks"])
    p_values = float(entry["ecdf_p"]), float(entry["chi2_p"])
    return Quantity(str(entry["name"]), ranks, *p_values, coverage, bool(entry["passed"]))


@dataclass(frozen=True)
class _Job:
    """One simulation and its fit, as it travels to a worker."""

    index: int
    model: str
    module: str
    file: str | None
    design: xr.Dataset
    prior: dict[str, str]
    runner: str
    options: dict[str, Any]
    seed: int
    check: Check | None


class _Outcome(NamedTuple):
    """What came of it: the ranks, or why there are none."""

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
    data: xr.Dataset | None = None,
    check: Check | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Certificate:
    """Calibrate a model and its runner on data that the model made itself.

    Args:
        model: a model or its name.
        n: number of simulations, at least 20.
        prior: as in `Model.prior`; what in it scales with the data is read off the design once and then held.
        runner: by default the model's preferred one.
        seed: the certificate depends on it, the design and the options, nothing else.
        executor: where the fits run, any `concurrent.futures.Executor`; by default processes on this machine.
        workers: how many such processes, by default one a processor; 1 runs everything in this process.
        data: a dataset whose shape the simulations have; by default the model's own design.
        check: a function of a run that returns gates, such as `atomzoo.reports.diagnose.diagnose`; how many fits
            fail it is written down beside the ranks.
        progress: called with (done, total, text).
        **options: of the runner.
    """
    found = find(model)
    if n < FEWEST:
        raise RunError(f"calibration needs at least {FEWEST} simulations, found {n}")
    design = _design(found, data)
    chosen = found.prior(prior)
    frozen = found.resolve(design, chosen).describe()
    name, _ = runner_of(found, runner)
    not_ranked = _not_ranked(make_density(found, design, frozen))
    started = time.perf_counter()
    jobs = [
        _Job(i, found.name, found.module, _file_of(found), design, frozen, name, options, s, check)
        for i, s in enumerate(_seeds(seed, n))
    ]
    outcomes = list(_outcomes(jobs, executor, workers, progress))
    quantities, level = _judge([o.ranks for o in outcomes if not o.failure], outcomes, seed)
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
        failed_gates=dict(gates) if check else None,
        fits_with_failed_gates=sum(bool(o.failed_gates) for o in outcomes) if check else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        versions={library: library_version(library) for library in LIBRARIES},
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


def _file_of(model: Model) -> str | None:
    """The file that a model was defined in, where its module is not one that can be imported by name."""
    module = sys.modules.get(model.module)
    file = getattr(module, "__file__", None)
    return str(Path(file).resolve()) if file else None


def _outcomes(
    jobs: list[_Job], executor: Executor | None, workers: int | None, progress: Progress | None
) -> Iterator[_Outcome]:
    """The outcome of every job, in order."""
    report = progress or (lambda done, total, text: None)
    report(0, len(jobs), "simulating and fitting")
    if executor is not None:
        yield from _collect(executor, jobs, report)
        return
    if workers is not None and workers < 1:
        raise RunError(f"workers must be at least 1, found {workers}")
    count = min(workers or processors(), len(jobs))
    if count == 1:
        for done, job in enumerate(jobs, 1):
            yield _replicate(job)
            report(done, len(jobs), "simulating and fitting")
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start_worker)
    try:
        yield from _collect(pool, jobs, report)
    except BaseException:
        _stop(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    torch.set_num_threads(1)


def _collect(executor: Executor, jobs: list[_Job], report: Progress) -> list[_Outcome]:
    with _interrupts_held():
        futures: dict[Future[_Outcome], int] = {
            executor.submit(_replicate, job): job.index for job in jobs
        }
    found: dict[int, _Outcome] = {}
    try:
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            report(len(found), len(jobs), "simulating and fitting")
    except BrokenProcessPool:
        raise RunError(
            f"a worker process died after {len(found)} of {len(jobs)} fits: killed, out of memory, or unable to "
            "start; use fewer workers, and in a script of your own call calibrate under "
            "`if __name__ == '__main__':`"
        ) from None
    finally:
        for future in futures:
            future.cancel()
    return [found[job.index] for job in jobs]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see an interrupt from the keyboard: their parent does, and stops them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers in the middle of their fits; Python has no public way to before 3.14."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()


def _replicate(job: _Job) -> _Outcome:
    """Simulate, fit, rank. A simulation that cannot be fitted is a finding and not the end."""
    with _TURN, one_thread():
        model = _find(job)
        try:
            truth = model.simulate(job.design, prior=job.prior, seed=job.seed)
            run = fit(
                model,
                truth,
                prior=job.prior,
                runner=job.runner,
                seed=job.seed + 1,
                predictive=0,
                **job.options,
            )
            ranks = _ranks(make_density(model, truth, job.prior), truth, run)
            gates = job.check(run) if job.check else ()
        except Exception as error:  # noqa: BLE001  whatever stopped this fit is written down
            first = (str(error).splitlines() or [""])[0][:300]
            known = isinstance(error, DataError | ModelError | RunError)
            return _Outcome({}, failure=first if known else f"{type(error).__name__}: {first}")
    return _Outcome(ranks, tuple(gate.name for gate in gates if gate.fault))


def _find(job: _Job) -> Model:
    """The model in a process that may not have imported it yet."""
    with contextlib.suppress(ModelError):
        return find(job.model)
    with contextlib.suppress(ImportError, ModelError):
        import_module(job.module)
        return find(job.model)
    if job.file is None:
        raise RunError(
            f"a worker process cannot import {job.model}: put it in a file of its own, or use workers=1"
        )
    return load_file(job.file, job.model)


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


def _judge(
    ranks: list[dict[str, int]], outcomes: list[_Outcome], seed: int
) -> tuple[tuple[Quantity, ...], float]:
    """Every quantity with its tests, and the level that a single test is held against."""
    if not ranks:
        raise RunError(f"no simulation could be fitted; the first: {outcomes[0].failure}")
    if len(ranks) < FEWEST:
        failure = next(o.failure for o in outcomes if o.failure)
        raise RunError(
            f"only {len(ranks)} of {len(outcomes)} simulations could be fitted; the first that failed: {failure}"
        )
    tests = 2 + len(LEVELS)
    level = FALSE_ALARM / (tests * len(ranks[0]))
    uniform = _Uniform(len(ranks), level, seed)
    found = [uniform.judge(name, np.array([r[name] for r in ranks])) for name in ranks[0]]
    return tuple(found), level


class _Uniform:
    """Tests of n ranks against the uniform distribution over 0 to `DRAWS`."""

    def __init__(self, n: int, level: float, seed: int) -> None:
        self.n, self.level = n, level
        # A share of the ranks below each point, under uniformity, and both tails of every count.
        below = np.arange(1, DRAWS + 1) / (DRAWS + 1)
        counts = np.arange(n + 1)[:, None]
        lower = scipy.stats.binom.cdf(counts, n, below)
        upper = scipy.stats.binom.sf(counts - 1, n, below)
        self.tails = np.minimum(1.0, 2 * np.minimum(lower, upper))
        self.null = self._simulated(np.random.default_rng(seed))

    def _simulated(self, rng: np.random.Generator) -> np.ndarray:
        """The smallest pointwise tail in simulations of uniform ranks, enough to resolve the level."""
        rounds = int(min(400_000, max(10_000, 10 / self.level)))
        share = np.full(DRAWS + 1, 1 / (DRAWS + 1))
        parts = [
            self._smallest(rng.multinomial(self.n, share, size=min(5000, rounds - done)))
            for done in range(0, rounds, 5000)
        ]
        return np.sort(np.concatenate(parts))

    def _smallest(self, histograms: np.ndarray) -> np.ndarray:
        counts = np.cumsum(histograms, axis=-1)[..., :-1]
        return np.asarray(self.tails[counts, np.arange(DRAWS)].min(-1))

    def judge(self, name: str, ranks: np.ndarray) -> Quantity:
        """One quantity's ranks with every test."""
        histogram = np.bincount(ranks, minlength=DRAWS + 1)
        smaller = np.searchsorted(self.null, self._smallest(histogram) * (1 + 1e-12), "right")
        ecdf_p = float((1 + smaller) / (1 + len(self.null)))
        chi2_p = self._chi2(histogram)
        coverage = tuple(self._coverage(ranks, level) for level in LEVELS)
        passed = (
            ecdf_p >= self.level and chi2_p >= self.level and all(part.passed for part in coverage)
        )
        return Quantity(name, tuple(map(int, ranks)), ecdf_p, chi2_p, coverage, passed)

    def _chi2(self, histogram: np.ndarray) -> float:
        """Over as many equal bins as leave ten ranks in each, at most 20."""
        most = min(20, max(2, self.n // 10))
        bins = max(b for b in range(2, most + 1) if (DRAWS + 1) % b == 0)
        return float(scipy.stats.chisquare(histogram.reshape(bins, -1).sum(1)).pvalue)

    def _coverage(self, ranks: np.ndarray, level: float) -> Coverage:
        outside = round((DRAWS + 1) * (1 - level) / 2)
        held = (ranks >= outside) & (ranks <= DRAWS - outside)
        chance = scipy.stats.binom(self.n, level)
        low, high = chance.ppf(self.level / 2), chance.isf(self.level / 2)
        return Coverage(level, float(held.mean()), float(low / self.n), float(high / self.n))
