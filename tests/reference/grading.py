"""Grades a run against a reference: right, wrong, a failure that the run itself reports, or refused.

Means, variances and the quantiles 5 and 95 of every parameter are compared. The limit on a comparison, in standard
errors, is the normal quantile that gives all comparisons of all runners together one false alarm in a thousand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from posteriors import POSTERIORS
from scipy.stats import norm

from atomzoo.inference.fit import RUNNERS, fit
from atomzoo.inference.runs import RunError
from atomzoo.reports.diagnose import Gate, diagnose

__all__ = ["Check", "Grade", "checks", "grade", "limit", "reference", "referenced"]

FALSE_ALARMS = 0.001
COMPARISONS = ("mean", "variance", "q05", "q95")
# What a variance may be off by beyond its Monte Carlo error.
VARIANCE_SHARE = 0.05
# Gates on the model, not on the draws: a run does not excuse itself with these.
ABOUT_THE_MODEL = ("Pareto k of LOO", "posterior predictive p")
# Options of a runner when it is graded, where its defaults would leave errors of several per cent.
OPTIONS: dict[str, dict[str, Any]] = {
    "laplace": {"draws": 2000},
    "nuts": {"draws": 1000},
}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        parameter: which, and its element.
        what: mean, variance or a quantile.
        off: difference from the reference: of a mean in standard deviations, of a variance relative to it, of a
            quantile in probability.
        allowed: what this may be at most.
    """

    parameter: str
    what: str
    off: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; what is not a number is not."""
        return abs(self.off) <= self.allowed

    def __str__(self) -> str:
        return f"{self.what} of {self.parameter} off by {self.off:+.3g}, allowed {self.allowed:.2g}"


@dataclass(frozen=True)
class Grade:
    """How a runner did on a posterior.

    Attributes:
        verdict: `right`, `wrong`, `reported failure` or `refused`.
        reason: the gates that failed, the worst comparison, or the refusal.
        checks: every comparison.
        seconds: that the fit took.
    """

    verdict: str
    reason: str
    checks: list[Check]
    seconds: float


@cache
def reference(name: str) -> dict[str, Any]:
    """A reference by its file's name."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))
    return found


def referenced() -> list[str]:
    """The posteriors whose reference has been made."""
    there = {path.stem for path in Path(__file__).parent.glob("*.json")}
    return [name for name in POSTERIORS if name in there]


@cache
def limit() -> float:
    """Standard errors that a comparison may be off by: Bonferroni over all there are."""
    parameters = sum(len(reference(name)["parameters"]) for name in referenced())
    comparisons = parameters * len(COMPARISONS) * len(RUNNERS)
    return float(norm.isf(FALSE_ALARMS / (2 * comparisons)))


def grade(runner: str, name: str, *, seed: int = 1) -> Grade:
    """Fit a posterior with a runner and grade the run."""
    posterior = POSTERIORS[name]
    started = time.perf_counter()
    try:
        run = fit(
            posterior.model,
            posterior.data(),
            runner=runner,
            seed=seed,
            predictive=0,
            **OPTIONS.get(runner, {}),
        )
    except RunError as error:
        return Grade("refused", str(error), [], time.perf_counter() - started)
    seconds = time.perf_counter() - started
    found = checks(reference(name), elements(run), run.attrs.get("importance_ess"))
    faults = reported(run)
    wrong = [check for check in found if not check.passed]
    if faults:
        told = ", ".join(f"{gate.name} {gate.value:.3g}" for gate in faults)
        return Grade("reported failure", told, found, seconds)
    worst = max(wrong or found, key=lambda check: abs(check.off) / check.allowed)
    return Grade("wrong" if wrong else "right", str(worst), found, seconds)


def reported(run: xr.DataTree) -> list[Gate]:
    """The faults that a run finds in its own draws."""
    gates = diagnose(run.drop_nodes("log_likelihood"))
    return [gate for gate in gates if gate.fault and gate.name not in ABOUT_THE_MODEL]


def elements(run: xr.DataTree) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of every element of every parameter, named as in the references."""
    found = {}
    for name, array in run["posterior"].to_dataset().data_vars.items():
        values = array.transpose("chain", "draw", ...).values
        for place in np.ndindex(values.shape[2:]):
            label = f"[{','.join(map(str, place))}]" if place else ""
            found[f"{name}{label}"] = values[(..., *place)]
    return found


def checks(
    known: Mapping[str, Any], draws: Mapping[str, np.ndarray], importance_ess: float | None = None
) -> list[Check]:
    """Every comparison of draws with a reference.

    Args:
        known: the reference.
        draws: (chain, draw) by parameter.
        importance_ess: effective size of the sample that the draws were chosen from, where they were: it limits what
            they know, and their autocorrelation does not show it.
    """
    ceiling = importance_ess or np.inf
    return [
        check
        for parameter, truth in known["parameters"].items()
        for check in _compare(parameter, truth, known["quantiles"], draws[parameter], ceiling)
    ]


def _compare(
    parameter: str, truth: Mapping[str, Any], levels: list[float], draws: np.ndarray, ceiling: float
) -> Iterator[Check]:
    mean, sd = truth["mean"], truth["sd"]
    errors = truth.get("mcse", {"mean": 0.0, "sd": 0.0})
    own = float(array_stats.mcse(draws, method="mean"))
    error = np.hypot(np.hypot(own, errors["mean"]), sd / np.sqrt(ceiling))
    yield Check(parameter, "mean", (draws.mean() - mean) / sd, limit() * error / sd)

    squares = ((draws - mean) / sd) ** 2
    own_square = (truth["kurtosis"] - 1) * (1 / _effective(squares) + 1 / ceiling)
    error = np.sqrt(own_square + (2 * errors["sd"] / sd) ** 2)
    yield Check(parameter, "variance", squares.mean() - 1, VARIANCE_SHARE + limit() * error)

    seen = truth.get("ess", {"tail": np.inf})["tail"]
    for what, level in (("q05", 0.05), ("q95", 0.95)):
        below = (draws <= truth["quantiles"][levels.index(level)]).astype(float)
        precision = 1 / _effective(below) + 1 / ceiling + 1 / seen
        error = np.sqrt(level * (1 - level) * precision)
        yield Check(parameter, what, below.mean() - level, limit() * error)


def _effective(values: np.ndarray) -> float:
    """Effective draws for the mean of these values; as many as there are where they are all the same."""
    if np.ptp(values) == 0:
        return float(values.size)
    return float(array_stats.ess(values, method="mean"))
