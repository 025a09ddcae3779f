"""Which wall was it? Rates of right answers on simulated domain walls, beside least squares with AIC and BIC.

    python benchmarks/walls.py             # all of it, goes on where it stopped
    python benchmarks/walls.py --quick     # a few profiles a setting, to see that it works
    python benchmarks/walls.py --table     # only print the table of what is there

Every profile is simulated with a known truth, fitted with every wall that takes such data, and judged by the verdict
that `atomzoo compare` gives. Two things differ from the command: the priors' sensitivity is not worked out, and cells
are left out one by one instead of in blocks (`--whole` runs the command's own comparison on a few profiles besides).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is imported: on small tensors a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr

import atomzoo
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.heldout import HeldOut, leave_one_out
from atomzoo.models.model import find
from atomzoo.reports import compare as comparing
from atomzoo.reports.diagnose import Gate, sampling

ONE = ("wall_second_order", "wall_first_order", "wall_neel")
TWO = (*ONE, "wall_bloch")
SHORT = {
    "wall_second_order": "2nd",
    "wall_first_order": "1st",
    "wall_neel": "Néel",
    "wall_bloch": "Bloch",
}
# Not of a run that could not tell.
EVIDENCE = ("log_evidence", "log_evidence_se")
# The grid that posteriors are kept on: bounds and intervals are read off it.
QUANTILES = np.linspace(0, 1, 201)
# Expected difference in log likelihood at which two walls are told apart most of the time.
SEPARATES = 5.0
BEGIN, END = "<!-- walls: begin -->", "<!-- walls: end -->"


@dataclass(frozen=True)
class Setting:
    """Profiles of one wall at one noise."""

    claim: str
    name: str
    scene: str
    noise: float
    profiles: int
    given: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ONE

    @property
    def key(self) -> str:
        """Name of its file of results: it changes when the setting does."""
        whole = json.dumps([self.scene, self.noise, self.given, self.models], sort_keys=True)
        slug = re.sub(r"\W+", "-", self.name).strip("-")
        return f"{slug}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def profile(self, i: int, noise: float | None = None) -> xr.Dataset:
        """The i-th profile; its wall lies anywhere between two cells."""
        place = np.random.default_rng([i, 7]).uniform(-0.5, 0.5) if noise is None else 0.0
        given = {"x0": place, **self.given}
        return simulate(self.scene, seed=i, noise=noise or self.noise, **given)


def settings() -> list[Setting]:
    """What is claimed, and at which noise."""
    first = {"L_c": 1.2, "cells": 21}
    neel = {"L_c": 1.0, "R0": 4.0, "cells": 21}
    bloch = {"L_c": 2.0, "P_B": 0.3, "cells": 21}
    simple = {"L_c": 2.0, "cells": 21}
    corner = {"L_c": 2.0, "R0": 3.0, "cells": 25, "rows": 12}
    # The best Neel curves for the first-order walls with eta = 1 and eta = 10, rounded.
    twin = {"L_c": 0.62, "R0": 0.73, "cells": 21}
    other_twin = {"L_c": 0.71, "R0": 1.64, "cells": 21}
    made = []
    # The noise at which the expected log likelihood of second order falls 5 short, for 21 cells and L_c about 1.2.
    for eta, threshold, rows in (
        (1.0, 0.012, 1),
        (3.0, 0.03, 1),
        (10.0, 0.054, 1),
        (1.0, 0.11, 100),
    ):
        name = f"1st, η = {eta:g}" + (f", {rows} rows" if rows > 1 else "")
        given = {**first, "eta": eta, "rows": rows}
        for claim, noise, profiles in (("below", threshold / 2, 200), ("at", threshold, 100)):
            n = profiles // 4 if rows > 1 else profiles
            made.append(Setting(claim, name, "wall_first_order", noise, n, given))
    sharp = {**first, "eta": 10.0}
    return [
        *made,
        Setting("below", "1st, η = 10", "wall_first_order", 0.003, 100, sharp),
        Setting("below", "Néel, R0 = 4 L_c", "wall_neel", 0.008, 200, neel),
        Setting("at", "Néel, R0 = 4 L_c", "wall_neel", 0.016, 100, neel),
        Setting("below", "Bloch, P_B = 0.3", "wall_bloch", 0.095, 200, bloch, TWO),
        Setting("at", "Bloch, P_B = 0.3", "wall_bloch", 0.19, 100, bloch, TWO),
        Setting("simple", "2nd, 1 component", "wall_second_order", 0.03, 200, simple),
        Setting(
            "simple", "2nd, 2 components", "wall_bloch", 0.03, 100, {**simple, "P_B": 0.0}, TWO
        ),
        Setting("nearly", "1st, η = 0.1", "wall_first_order", 0.03, 100, {**simple, "eta": 0.1}),
        Setting("corner", "Néel, R0 = 1.5 L_c, 12 rows", "wall_neel", 0.028, 200, corner),
        Setting("twin", "Néel like 1st with η = 1", "wall_neel", 0.006, 100, twin),
        Setting("twin", "Néel like 1st with η = 10", "wall_neel", 0.027, 100, other_twin),
    ]


# One prior for drawing truths and for fitting them: what calibration means.
CALIBRATION: dict[str, Any] = {
    "P_s": "LogNormal(0, 0.3)",
    "x0": "Normal(0, 1.5)",
    "tilt": 0.0,
    "bow": 0.0,
    "L_c": "LogNormal(log(1.5), 0.4)",
    "noise": "LogNormal(log(0.03), 0.7)",
    "sense": 1.0,
    "eta": "HalfNormal(5)",
    "R0": "HalfNormal(4)",
    "P_B": "Normal(0, 0.5)",
}
COVERED = 1000
NOMINAL = 0.9
ALLOWED = (0.86, 0.94)


def calibration_prior(name: str) -> dict[str, Any]:
    """The part of the calibration prior that a wall has."""
    return {key: CALIBRATION[key] for key in find(name).prior().entries}


def figures(name: str, data: xr.Dataset, seed: int, prior: Any = None) -> dict[str, Any]:
    """What a verdict needs of a fit, in plain numbers."""
    started = time.process_time()
    run = atomzoo.fit(name, data, prior=prior, seed=seed, predictive=0)
    gates = sampling(run)
    loo = leave_one_out(run)
    posterior = run["posterior"].to_dataset()
    return {
        **{key: run.attrs[key] for key in EVIDENCE if key in run.attrs},
        "gates": [asdict(gate) for gate in gates],
        "loo": [round(float(part), 5) for part in loo.parts],
        "quantiles": {
            str(key): [float(f"{q:.6g}") for q in np.quantile(posterior[key].values, QUANTILES)]
            for key in posterior.data_vars
        },
        "seconds": time.process_time() - started,
    }


def judge(setting: Setting, i: int, peer: bool = True) -> dict[str, Any]:
    """One profile of a setting, fitted by us and by the peer."""
    data = setting.profile(i)
    found: dict[str, Any] = {"i": i, "ours": {m: figures(m, data, i) for m in setting.models}}
    if peer:
        from walls_lmfit import least_squares

        found["peer"] = least_squares(data, setting.models)
    return found


def cover(name: str, i: int) -> dict[str, Any]:
    """One truth from the prior, and where the posterior has it."""
    prior = calibration_prior(name)
    scene = {"wall_bloch": "wall_bloch"}.get(name, "wall_second_order")
    data = find(name).simulate(simulate(scene, cells=25), prior=prior, seed=i)
    fitted = figures(name, data, i, prior)
    truth = {key: float(data[f"true_{key}"]) for key in fitted["quantiles"]}
    del fitted["loo"]
    return {"i": i, "truth": truth, "ours": {name: fitted}}


def whole(setting: Setting, i: int) -> dict[str, Any]:
    """The verdict of the command's own comparison, blocks and all, on one profile."""
    result = comparing.compare(setting.profile(i), setting.models, seed=i)
    return {"i": i, "winner": result.winner, "tied": list(result.verdict.tied)}


def row_of(name: str, found: dict[str, Any]) -> comparing.Row:
    """A row of the comparison from the figures that were kept."""
    posterior = {key: (("chain", "draw"), [value]) for key, value in found["quantiles"].items()}
    run = xr.DataTree.from_dict({"posterior": xr.Dataset(posterior)})
    run.attrs = {key: found[key] for key in EVIDENCE if key in found}
    gates = [Gate(**gate) for gate in found["gates"]]
    parts = np.array(found["loo"])
    return comparing.Row(find(name), run, gates, HeldOut(parts, np.zeros(len(parts))), None)


def verdict_of(result: dict[str, Any]) -> comparing.Verdict:
    """The shipped verdict on one profile, worked out once."""
    if "verdict" not in result:
        rows = [row_of(m, f) for m, f in result["ours"].items()]
        result["verdict"] = comparing._verdict(comparing._ranked(rows))
    found: comparing.Verdict = result["verdict"]
    return found


class Cache:
    """Results as lines of JSON, one file a stage: a run that was stopped goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> dict[int, dict[str, Any]]:
        """What is there, by the number of the profile."""
        path = self.folder / f"{key}.jsonl"
        if not path.exists():
            return {}
        found = {}
        for line in path.read_text().splitlines():
            try:
                result = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            found[result["i"]] = result
        return found

    def fill(
        self,
        key: str,
        n: int,
        work: Callable[..., dict[str, Any]],
        what: Any,
        pool: ProcessPoolExecutor,
    ) -> list[dict[str, Any]]:
        """The first n results, those that are missing worked out and kept."""
        there = self.read(key)
        missing = [i for i in range(n) if i not in there]
        started = time.monotonic()
        with (self.folder / f"{key}.jsonl").open("a") as file:
            for result in pool.map(work, [what] * len(missing), missing):
                there[result["i"]] = result
                file.write(json.dumps(result) + "\n")
                file.flush()
        if missing:
            print(
                f"{key}: {len(missing)} in {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        return [there[i] for i in range(n) if i in there]


def truth_of(setting: Setting) -> str:
    """The simplest wall that the setting's profiles are."""
    return "wall_second_order" if setting.given.get("P_B") == 0.0 else setting.scene


@dataclass(frozen=True)
class Rates:
    """What became of a setting's profiles."""

    n: int
    right_side: dict[str, float]
    median: dict[str, float]
    right: float
    named: float
    abstains: float
    bounded: float
    wrong: float
    simple_excluded: float
    seconds: float


def rates(setting: Setting, results: list[dict[str, Any]]) -> Rates:
    """Shares of the profiles by how they were answered."""
    truth = truth_of(setting)
    verdicts = [verdict_of(r) for r in results]
    factors = {
        rival: np.array([evidence(r, truth) - evidence(r, rival) for r in results])
        for rival in setting.models
        if rival != truth
    }
    distinct = {
        m for m, gain in expected(setting).items() if fitted_gain(setting, gain) >= SEPARATES
    }
    named = np.array([v.winner == truth for v in verdicts])
    abstains = np.array([truth in v.tied for v in verdicts])
    excluded = np.array([distinct <= set(v.excluded) for v in verdicts])
    bounded = np.array([bound_covers(setting, v) for v in verdicts])
    simple = np.array(["wall_second_order" in v.excluded for v in verdicts])
    return Rates(
        n=len(results),
        right_side={rival: float((f > 0).mean()) for rival, f in factors.items()},
        median={rival: float(np.nanmedian(f)) for rival, f in factors.items()},
        right=float(((named | abstains) & excluded).mean()),
        named=float(named.mean()),
        abstains=float(abstains.mean()),
        bounded=float(bounded.mean()),
        wrong=float((~named & ~abstains & ~bounded).mean()),
        simple_excluded=float(simple.mean()),
        seconds=float(np.mean([sum(f["seconds"] for f in r["ours"].values()) for r in results])),
    )


def evidence(result: dict[str, Any], model: str) -> float:
    """Log evidence of a model for a profile, not a number where the run could not tell."""
    return float(result["ours"][model].get("log_evidence", math.nan))


def bound_covers(setting: Setting, verdict: comparing.Verdict) -> bool:
    """Whether the verdict names a special case of the truth, with a bound on what it leaves out that holds."""
    truth = truth_of(setting)
    special = find(truth).contains.get(verdict.winner or "", {})
    return any(
        bound.model == truth and abs(setting.given[bound.parameter]) <= bound.value
        for bound in verdict.bounds
        if bound.parameter in special
    )


def peer_rates(setting: Setting, results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How often AIC and BIC choose the truth, another wall, and another wall by a clear margin."""
    from walls_lmfit import CONFIDENT

    truth = truth_of(setting)
    found = {}
    for criterion, clear in CONFIDENT.items():
        tables = [r["peer"][criterion] for r in results]
        best = [min(t, key=t.__getitem__) for t in tables]
        margins = [sorted(t.values())[1] - min(t.values()) for t in tables]
        pairs = list(zip(best, margins, strict=True))
        found[criterion] = {
            "named": float(np.mean([b == truth for b in best])),
            "clearly": float(np.mean([b == truth and m >= clear for b, m in pairs])),
            "wrong": float(np.mean([b != truth for b in best])),
            "clearly wrong": float(np.mean([b != truth and m >= clear for b, m in pairs])),
        }
    return found


_EXPECTED: dict[str, dict[str, float]] = {}


def expected(setting: Setting) -> dict[str, float]:
    """Log likelihood that every rival's best curve loses on the setting's noiseless profile."""
    from walls_lmfit import expected_gain

    if setting.key not in _EXPECTED:
        clean = setting.profile(0, noise=1e-300)
        others = [m for m in setting.models if m != truth_of(setting)]
        _EXPECTED[setting.key] = {m: expected_gain(clean, m, setting.noise) for m in others}
    return _EXPECTED[setting.key]


def fitted_gain(setting: Setting, gain: float) -> float:
    """The same with the noise fitted too, which takes up part of a misfit: n/2 ln(1 + 2 gain / n) of n values."""
    values = setting.profile(0).value.size
    return 0.5 * values * math.log1p(2 * gain / values)


def percent(share: float) -> str:
    """A share of the profiles."""
    return f"{100 * share:.1f}".removesuffix(".0")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict_table(chosen: list[tuple[Setting, list[dict[str, Any]]]]) -> str:
    """The true wall against its rivals."""
    head = ["truth", "σ/P_s", "n", "rival: Δ ln L, median log Bayes factor, right side %"]
    head += [
        "right answer %",
        "names the truth %",
        "abstains %",
        "names its special case, bound holds %",
    ]
    rows = []
    for setting, results in chosen:
        found = rates(setting, results)
        rivals = "; ".join(
            f"{SHORT[m]}: {fitted_gain(setting, gain):.2g}, {found.median[m]:.1f}, {percent(found.right_side[m])}"
            for m, gain in expected(setting).items()
        )
        shares = (found.right, found.named, found.abstains, found.bounded, found.wrong)
        rows.append(
            [setting.name, f"{setting.noise:g}", str(found.n), rivals, *map(percent, shares)]
        )
    return table([*head, "wrong %"], rows)


def bounds_table(chosen: list[tuple[Setting, list[dict[str, Any]]]]) -> str:
    """What the verdict says of the larger models where second order wins."""
    head = [
        "truth",
        "n",
        "2nd wins %",
        "bound: median, tenth to ninetieth percentile, covers the truth %",
    ]
    rows = []
    for setting, results in chosen:
        verdicts = [verdict_of(r) for r in results]
        won = [v for v in verdicts if v.winner == "wall_second_order"]
        texts = []
        for parameter in dict.fromkeys(b.parameter for v in won for b in v.bounds):
            values = np.array([b.value for v in won for b in v.bounds if b.parameter == parameter])
            true = abs(float(setting.given.get(parameter, 0.0)))
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
            covers = percent(float((values >= true).mean()))
            texts.append(f"{parameter} < {middle:.2g} ({low:.2g} to {high:.2g}), {covers}")
        rows.append(
            [setting.name, str(len(results)), percent(len(won) / len(results)), "; ".join(texts)]
        )
    return table(head, rows)


def peer_table(chosen: list[tuple[Setting, list[dict[str, Any]]]]) -> str:
    """The same profiles by least squares."""
    head = ["truth", "σ/P_s", "atomzoo: right answer %", "wrong %", "s"]
    head += [
        f"{c.upper()} {what}"
        for c in ("aic", "bic")
        for what in (
            "lowest is the truth %",
            "and clearly %",
            "lowest is another %",
            "and clearly %",
        )
    ]
    rows = []
    for setting, results in chosen:
        ours, theirs = rates(setting, results), peer_rates(setting, results)
        seconds = float(np.mean([r["peer"]["seconds"] for r in results]))
        shares = [percent(v) for found in theirs.values() for v in found.values()]
        rows.append(
            [
                setting.name,
                f"{setting.noise:g}",
                percent(ours.right),
                percent(ours.wrong),
                f"{ours.seconds:.2f}",
                *shares,
                f"{seconds:.2f}",
            ]
        )
    return table([*head, "lmfit s"], rows)


def coverage(results: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Share of truths inside the central interval, by parameter."""
    low, high = np.searchsorted(QUANTILES, [(1 - NOMINAL) / 2 - 1e-9, (1 + NOMINAL) / 2 - 1e-9])
    found: dict[str, list[bool]] = {}
    for result in results:
        for key, quantiles in result["ours"][name]["quantiles"].items():
            found.setdefault(key, []).append(
                quantiles[low] <= result["truth"][key] <= quantiles[high]
            )
    return {key: float(np.mean(inside)) for key, inside in found.items()}


def coverage_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Coverage of every parameter of every wall."""
    rows = []
    for name, found in results.items():
        inside = coverage(found, name)
        failed = np.mean([any(not g["passed"] for g in r["ours"][name]["gates"]) for r in found])
        parts = "; ".join(
            f"{key} {percent(share)}" + ("" if ALLOWED[0] <= share <= ALLOWED[1] else " (outside)")
            for key, share in inside.items()
        )
        rows.append([SHORT[name], str(len(found)), parts, percent(float(failed))])
    return table(
        ["wall", "n", "90 % intervals that cover the truth %", "a gate of the sampling failed %"],
        rows,
    )


def whole_text(results: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """How often the whole comparison and the short one agree."""
    same = 0
    for full, short in results:
        verdict = verdict_of(short)
        same += full["winner"] == verdict.winner and set(full["tied"]) == set(verdict.tied)
    return (
        f"The command's own comparison, which leaves blocks out and fits again where it must, gave the same verdict "
        f"on {same} of {len(results)} of these profiles."
    )


def machine() -> str:
    """Where and with what this ran."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (named := re.search(r"model name\s*: (.+)", info.read_text())):
        model = named[1]
    names = ("torch", "pyro-ppl", "arviz-stats", "lmfit", "atomzoo")
    versions = ", ".join(
        [f"Python {platform.python_version()}", *(f"{n} {_version(n)}" for n in names)]
    )
    return f"{datetime.now(UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores, one thread a fit; {versions}."


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return getattr(atomzoo, "__version__", "from the checkout") if name == "atomzoo" else "none"


WORDS = """\
{machine}

Each setting has *n* simulated profiles, the wall of each at its own place between two cells, P_s = 1, prior set `vague`.

- **Δ ln L** is what the best curve of a rival loses on the noiseless profile, with the noise level fitted as well. Below
  about 5 the data do not tell the two apart, and the right verdict is to abstain.
- A log Bayes factor is on the **right side** when it favours the truth at all.
- The **right answer** leaves the truth standing, alone or tied, and excludes every rival with Δ ln L above 5.
- **Abstains**: the truth is tied with others. **Names its special case, bound holds**: second order wins by parsimony, and
  the bound that the verdict puts on the larger model's parameter covers its true value. **Wrong**: everything else.

The binomial standard error of a rate of 95 % is 1.5 % for 200 profiles, 2.2 % for 100, 3.1 % for 50, 4.4 % for 25.

**At half the threshold noise**, the noise at which second order (for Néel: first order) falls 5 short in ln L

{below}

**At the threshold noise**, where chance decides

{at}

The wrong answers at η = 10 are second order with a bound on η between 5 and 10: η = 10 is two standard deviations out
in the prior HalfNormal(5), and where the data decide nothing a bound is the prior's.

**Where second order holds it wins by parsimony.** A bound on a parameter whose truth is 0 covers it by construction;
the last line has a first-order wall too close to second order to be seen.

{bounds}

**The pair that cannot be told apart**: {corner_gain}

{corner}

Second order is excluded in {corner_excluded} % of them, and the verdict is exactly "cannot discriminate first order from
Néel, second order excluded" in {corner_right} %. {whole}

**Twins**: Néel walls that are first-order walls to the eye. Here only the priors can tell the two apart, and should not.

{twins}

**Coverage.** Truths drawn from the prior that they are fitted with ({prior}), 25 cells, one row. With {covered} profiles
the binomial standard error of 90 % is {coverage_se} %; with 200 it would be 2.1 %, too much to hold 86 to 94 % against.

{coverage}

Of {fits} fits in all these tables {silent} gave no evidence.

**Least squares on the same profiles**: lmfit, several starts, the lowest AIC or BIC. "Clearly" is by 10 for AIC, by 6 for
BIC. Seconds are of one processor, per profile, all walls together.

{peer}
"""


def report(
    results: dict[str, tuple[Setting, list[dict[str, Any]]]], covers: Any, wholes: Any
) -> str:
    """The section of the README."""

    def of(*claims: str) -> list[tuple[Setting, list[dict[str, Any]]]]:
        return [pair for pair in results.values() if pair[0].claim in claims and pair[1]]

    ((corner, found),) = of("corner")
    verdicts = [verdict_of(r) for r in found]
    right = [
        v.winner is None
        and set(v.tied) == {"wall_first_order", "wall_neel"}
        and v.excluded == ("wall_second_order",)
        for v in verdicts
    ]
    gain = {m: fitted_gain(corner, g) for m, g in expected(corner).items()}
    least = min((len(r) for r in covers.values()), default=1)
    every = [pair[1] for pair in results.values()] + list(covers.values())
    fits = [fit for found in every for r in found for fit in r["ours"].values()]
    return WORDS.format(
        fits=f"{len(fits):,}",
        silent=sum("log_evidence" not in fit for fit in fits),
        machine=machine(),
        below=verdict_table(of("below")),
        at=verdict_table(of("at")),
        bounds=bounds_table(of("simple", "nearly")),
        corner_gain=", ".join(f"{SHORT[m]} loses {g:.2g}" for m, g in gain.items()) + " in ln L.",
        corner=verdict_table([(corner, found)]),
        corner_excluded=percent(rates(corner, found).simple_excluded),
        corner_right=percent(float(np.mean(right))),
        whole=whole_text(wholes) if wholes else "",
        twins=verdict_table(of("twin")),
        prior=", ".join(f"{k} ~ {v}" for k, v in CALIBRATION.items() if isinstance(v, str)),
        covered=least,
        coverage_se=f"{100 * math.sqrt(NOMINAL * (1 - NOMINAL) / least):.1f}",
        coverage=coverage_table(covers),
        peer=peer_table(of("below", "at", "simple", "corner", "twin")),
    )


def write(section: str, path: Path) -> None:
    """Put the section between its markers."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


def fill_all(
    options: argparse.Namespace, cache: Cache
) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """Every stage, the cheap and telling ones first."""
    quick = 8 if options.quick else 10**9
    context = multiprocessing.get_context("spawn")
    workers = 0 if options.table else options.workers
    with ProcessPoolExecutor(max(workers, 1), context, torch.set_num_threads, (1,)) as pool:
        for setting in sorted(settings(), key=lambda s: s.given.get("rows", 1)):
            n = min(setting.profiles, quick) if workers else 0
            results = cache.fill(setting.key, n, judge, setting, pool) or list(
                cache.read(setting.key).values()
            )
            yield "setting", setting, results
            if setting.claim == "corner":
                n = min(20, quick) if workers else 0
                key = f"whole-{setting.key}"
                full = cache.fill(key, n, whole, setting, pool) or list(cache.read(key).values())
                short = {r["i"]: r for r in results}
                yield "whole", setting, [(f, short[f["i"]]) for f in full if f["i"] in short]  # type: ignore[misc]
        for name in TWO:
            key = f"coverage-{name}"
            n = min(COVERED, quick) if workers else 0
            yield (
                "coverage",
                name,
                cache.fill(key, n, cover, name, pool) or list(cache.read(key).values()),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="8 profiles a setting, nothing written"
    )
    parser.add_argument(
        "--table", action="store_true", help="no fits: only the table of what is there"
    )
    parser.add_argument("--workers", type=int, default=2)
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "atomzoo-benchmarks" / "walls")
    options = parser.parse_args()
    results: dict[str, tuple[Setting, list[dict[str, Any]]]] = {}
    covers: dict[str, list[dict[str, Any]]] = {}
    wholes: list[Any] = []
    for what, which, found in fill_all(options, Cache(options.cache)):
        if what == "setting":
            results[which.key] = (which, found)
        elif what == "coverage":
            covers[which] = found
        else:
            wholes = found
    section = report(results, covers, wholes)
    print(section)
    if not options.quick:
        write(section, Path(__file__).with_name("README.md"))


if __name__ == "__main__":
    main()
