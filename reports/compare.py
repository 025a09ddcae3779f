"""Compare models on a dataset and give a verdict, or say that the data cannot discriminate.

A model beats another when its evidence is larger by `STRONG`, error bars included, and its predictions of left-out data
do not say the opposite; without evidence, when it predicts left-out data better by two standard errors. Of models that
nothing beats, one that the others contain wins, with a bound on what it leaves out. Rivals that neither contains are
told apart by the data or not at all.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from ..datasets.kinds import DataError, kind_of, validate
from ..inference.density import Density
from ..inference.fit import fit, learnt_from, make_density
from ..inference.heldout import HeldOut, leave_block_out, leave_one_out
from ..inference.modes import find_modes
from ..inference.runs import Progress, RunError, digest, draws_of, with_source
from ..inference.supports import bijection
from ..inference.threads import one_thread
from ..models.model import Model, find
from ..models.priors import ModelError, describe, parse
from .diagnose import Gate, diagnose
from .given import Made, given_by
from .plan import Plan, made_of, plan

__all__ = ["Bound", "Comparison", "Need", "Row", "Shift", "Verdict", "compare"]

# A Bayes factor of 20, "strong" evidence (Kass and Raftery 1995).
STRONG = 3.0
# Differences below four nats, or two standard errors, are noise (Sivula, Magnusson and Vehtari 2020).
CLEAR_ELPD = 4.0
CLEAR_SE = 2.0
# Expected difference in log likelihood at which two models are told apart most of the time.
SEPARATES = 5.0
# At this many times less noise the prior no longer moves the best fit.
SHARPER = 30.0
# Beyond a thousandfold of the data nothing practical is meant.
HOPELESS = 1000.0


@dataclass(frozen=True)
class Row:
    """What the comparison knows of one model.

    Attributes:
        data: what its parameters were learnt from.
        source: what those data were made of, where the model prepares them.
    """

    model: Model
    run: xr.DataTree
    gates: list[Gate]
    loo: HeldOut
    blocks: HeldOut | None
    data: xr.Dataset
    source: xr.Dataset
    weight: float = math.nan
    elpd_diff: float = 0.0
    diff_se: float = 0.0

    @property
    def observed(self) -> tuple[str, ...]:
        """What it explains: models are rivals where that is the same, and learnt from the same data."""
        return str(self.run.attrs["data_sha256"]), *sorted(map(str, self.run["observed_data"]))

    @property
    def held_out(self) -> HeldOut:
        """Leave-block-out where there are blocks, else leave-one-out."""
        return self.blocks or self.loo

    @property
    def evidence(self) -> float | None:
        """Log evidence, None where the runner gave none or its importance sample failed."""
        if "log_evidence" not in self.run.attrs:
            return None
        failed = any(g.name == "Pareto k of the draws" and not g.passed for g in self.gates)
        return None if failed else float(self.run.attrs["log_evidence"])

    @property
    def evidence_se(self) -> float:
        """Standard error of the log evidence."""
        return float(self.run.attrs.get("log_evidence_se", math.nan))


@dataclass(frozen=True)
class Bound:
    """An upper bound on what a larger model adds to the winner."""

    model: str
    parameter: str
    value: float
    units: str

    @property
    def text(self) -> str:
        """Such as "eta < 0.2 at 95 %"."""
        unit = "" if self.units in ("", "1") else f" {self.units}"
        return f"{self.parameter} < {self.value:.2g}{unit} at 95 %"


@dataclass(frozen=True)
class Need:
    """What would tell two models apart.

    Attributes:
        expected: difference in log likelihood expected from data like these.
        more_data: how many times more data would do.
        noise: noise level that would do, None where the models have none.
        noise_now: noise level found.
    """

    first: str
    second: str
    expected: float
    more_data: float
    noise: float | None = None
    noise_now: float | None = None
    units: str = ""

    @property
    def text(self) -> str:
        """One sentence."""
        if self.more_data > HOPELESS:
            return (
                f"no realistic amount of such data tells {self.first} from {self.second}: "
                "over this window the two are the same curve"
            )
        if self.more_data <= 1:
            return f"data like these usually tell {self.first} from {self.second}; these fell short by chance"
        text = f"{self.more_data:.2g} times as much data would tell {self.first} from {self.second}"
        if self.noise is not None and self.noise_now is not None:
            unit = "" if self.units in ("", "1") else f" {self.units}"
            text += f", or noise of {self.noise:.2g}{unit} instead of {self.noise_now:.2g}{unit}"
        return text


@dataclass(frozen=True)
class Shift:
    """How the evidence moves when one prior is made wider or tighter.

    A prior that several models share is moved in all of them together.

    Attributes:
        parameter: whose prior.
        prior: the prior itself.
        wider: change in each model's log evidence with the prior's density to the power 1/2.
        tighter: change with the power 2.
        changes_verdict: whether either would change who wins.
    """

    parameter: str
    prior: str
    wider: dict[str, float]
    tighter: dict[str, float]
    changes_verdict: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the comparison concludes."""

    winner: str | None
    text: str
    tied: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()
    needs: tuple[Need, ...] = ()
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Models compared on a dataset, best first.

    Attributes:
        data: what the models were fitted to.
        rows: the models.
        verdict: what follows.
        shifts: how the evidence answers to each prior.
        skipped: models for such data that were not fitted, and why.
        steps: what was done to get from the file to the data.
        parts: where models explain different quantities, a comparison for each; the contested ones first.
        makers: fits that made data of other kinds first.
    """

    data: xr.Dataset
    rows: list[Row]
    verdict: Verdict
    shifts: list[Shift] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    parts: tuple[Comparison, ...] = ()
    makers: tuple[xr.DataTree, ...] = ()

    @property
    def standing(self) -> set[str]:
        """The models that conclusions rest on: winners, and those that the data cannot tell apart."""
        if self.parts:
            return set[str]().union(*(part.standing for part in self.parts))
        return {self.winner} if self.winner else set(self.verdict.tied)

    @property
    def winner(self) -> str | None:
        """Name of the winning model, None when the data cannot discriminate."""
        return self.verdict.winner

    def as_json(self) -> dict[str, Any]:
        """The table, best first, as plain values."""
        return {
            "data": {
                "kind": kind_of(self.data).name,
                "sha256": digest(self.data),
                "sizes": {str(k): int(v) for k, v in self.data.sizes.items()},
                "source": str(self.data.attrs.get("source", self.data.attrs.get("scene", ""))),
                "steps": list(self.steps),
            },
            "winner": self.verdict.winner,
            "verdict": self.verdict.text,
            "models": [_row_json(row) for row in self.rows],
        }


def _row_json(row: Row) -> dict[str, Any]:
    def plain(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else float(value)

    return {
        "model": row.model.name,
        "explains": list(row.observed[1:]),
        "prior": row.run.attrs["prior_set"],
        "elpd": plain(row.held_out.elpd),
        "elpd_se": plain(row.held_out.se),
        "elpd_diff": plain(row.elpd_diff),
        "diff_se": plain(row.diff_se),
        "log_evidence": plain(row.evidence),
        "log_evidence_se": plain(row.evidence_se) if row.evidence is not None else None,
        "weight": plain(row.weight),
        "gates": [gate.as_json() for gate in row.gates],
    }


def compare(
    data: xr.Dataset | xr.DataTree,
    names: Sequence[str | Model] | None = None,
    *,
    prior: Any = None,
    runner: str | None = None,
    seed: int = 0,
    blocks: bool = True,
    progress: Progress | None = None,
    on_run: Callable[[xr.DataTree], None] | None = None,
    **options: Any,
) -> Comparison:
    """Fit every model that could have made the data and say which one did.

    Args:
        data: a valid dataset, or a run whose model gives data, which are then compared on.
        names: models; by default every one of the catalogue that takes such data.
        prior: prior set for all of them, or a dict of overrides, of which each model takes those of its parameters.
        runner: by default each model's preferred one.
        seed: the comparison depends on it, the data and the options, nothing else.
        blocks: leave spatial blocks out, where the data have them.
        progress: called with (done, total, text).
        on_run: called with each run when it is done, those that make data of others first.
        **options: of the runner.
    """
    first = None
    if isinstance(data, xr.DataTree):
        first = given_by(data)
        data = first.data
    validate(data)
    planned = plan(data, names)
    _check_prior(planned, prior)
    made = made_of(
        data,
        planned,
        seed=seed,
        prior_of=lambda maker: _prior_of(maker, _left_by(planned.models, prior)),
        device=str(options.get("device", "cpu")),
        progress=lambda maker: _within(progress, 0, 1, maker.name),
    )
    makers = [*([first] if first else []), *made.values()]
    if on_run:
        for one in made.values():
            on_run(one.run)
    steps = [one.step for one in makers]
    sources, skipped = _sources(data, planned, made)
    if not sources:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise DataError(f"no model fits these data ({reasons or 'none takes this kind'})")
    chosen = [find(name) for name in sources]
    steps += _without_set([*(planned.makers[kind] for kind in made), *chosen], prior)
    rows = []
    for i, model in enumerate(chosen):
        report = _within(progress, i, 2 * len(chosen), model.name)
        own = _prior_of(model, prior)
        with one_thread():
            seen = model.prepared(sources[model.name], own)
        run = fit(model, seen, prior=own, runner=runner, seed=seed, progress=report, **options)
        if seen is not sources[model.name]:
            run = with_source(run, sources[model.name])
        if on_run:
            on_run(run)
        learnt = learnt_from(model, seen, runner, seed)
        left = leave_one_out(run)
        rows.append(Row(model, run, diagnose(run), left, None, learnt, sources[model.name]))
    if blocks:
        rows = _by_blocks(rows, prior, seed, progress, options)
    found = _conclude(data, rows, skipped, prior, seed)
    return replace(found, steps=tuple(steps), makers=tuple(one.run for one in makers))


def _by_blocks(
    rows: list[Row], prior: Any, seed: int, progress: Progress | None, options: dict[str, Any]
) -> list[Row]:
    """The rows with blocks left out, where a model has rivals: alone it has nothing to be held against."""
    contested = {key for key, n in Counter(row.observed for row in rows).items() if n > 1}
    found = []
    for i, row in enumerate(rows):
        if row.observed in contested:
            left = leave_block_out(
                row.model,
                row.data,
                row.run,
                prior=_prior_of(row.model, prior),
                seed=seed,
                progress=_within(progress, len(rows) + i, 2 * len(rows), row.model.name),
                **options,
            )
            row = replace(row, blocks=left)
        found.append(row)
    return found


def _sources(
    data: xr.Dataset, planned: Plan, made: Mapping[str, Made]
) -> tuple[dict[str, xr.Dataset], dict[str, str]]:
    """What each model is fitted to, by its name, and why some are left out."""
    here, skipped = kind_of(data).name, dict(planned.skipped)
    sources = {}
    for model in planned.models:
        own = data if model.takes(here) else made[model.kind].data
        reason = model.refuses(own)
        if reason and planned.named:
            raise DataError(f"{model.name} cannot be fitted: {reason}")
        if reason:
            skipped[model.name] = reason
        else:
            sources[model.name] = own
    return sources, skipped


def _within(progress: Progress | None, i: int, n: int, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, text: progress(
        1000 * i + 1000 * done // max(total, 1), 1000 * n, f"{name}: {text}"
    )


def _prior_of(model: Model, prior: Any) -> Any:
    """The part of a prior that is about this model's parameters; its first set where it has none of that name."""
    if not isinstance(prior, Mapping):
        return prior if not isinstance(prior, str) or prior in model.priors else None
    parameters = next(iter(model.priors.values())).entries
    own = {name: entry for name, entry in prior.items() if name in parameters}
    chosen = _prior_of(model, prior.get("set"))
    return {**own, "set": chosen} if own else chosen


def _check_prior(planned: Plan, prior: Any) -> None:
    """Raise where no model has what is asked for, before anything long begins."""
    _check_overrides([*planned.models, *planned.makers.values()], prior)
    name = prior.get("set") if isinstance(prior, Mapping) else prior
    if (
        isinstance(name, str)
        and planned.models
        and not any(name in m.priors for m in planned.models)
    ):
        planned.models[0].prior(name)


def _without_set(chosen: list[Model], prior: Any) -> list[str]:
    """Sentences on models that lack the prior set that is asked for."""
    name = prior.get("set") if isinstance(prior, Mapping) else prior
    return [
        f"{m.name} has no prior set {name!r} and was fitted with {next(iter(m.priors))!r}"
        for m in chosen
        if isinstance(name, str) and name not in m.priors
    ]


def _left_by(chosen: list[Model], prior: Any) -> Any:
    """Of a prior, what is for models that make data first: the set, and entries of no parameter of the rivals."""
    if not isinstance(prior, Mapping):
        return prior
    taken = {name for m in chosen for name in next(iter(m.priors.values())).entries}
    return {name: entry for name, entry in prior.items() if name not in taken}


def _check_overrides(chosen: list[Model], prior: Any) -> None:
    if isinstance(prior, Mapping):
        known = {name for m in chosen for name in next(iter(m.priors.values())).entries}
        unknown = sorted(set(prior) - known - {"set"})
        if unknown:
            raise ModelError(
                f"no model here has a parameter {', '.join(unknown)}; there are {', '.join(sorted(known))}"
            )


def _conclude(
    data: xr.Dataset, rows: list[Row], skipped: dict[str, str], prior: Any, seed: int
) -> Comparison:
    """The comparison; where models explain different things, one for each."""
    questions: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        questions.setdefault(row.observed, []).append(row)
    # The contested ones first.
    parts = [
        _compared(some, prior, seed)
        for some in sorted(questions.values(), key=lambda some: -len(some))
    ]
    if len(parts) == 1:
        return replace(parts[0], skipped=skipped)
    every = [row for part in parts for row in part.rows]
    if all(row.source is every[0].source for row in every):
        data = every[0].source
    return Comparison(data, every, _joined(parts), [], skipped, parts=tuple(parts))


def _compared(rows: list[Row], prior: Any, seed: int) -> Comparison:
    rows = _ranked(rows)
    verdict = _verdict(rows)
    shifts = _shifts(rows, verdict, seed)
    with one_thread():
        verdict = _explained(rows, verdict, shifts, prior, seed)
    return Comparison(rows[0].source, rows, verdict, shifts)


def _joined(parts: list[Comparison]) -> Verdict:
    """What comparisons conclude that do not rival each other; a winner where only one was contested."""
    contested = [part.verdict for part in parts if len(part.rows) > 1]
    alone = [part.rows[0].model.name for part in parts if len(part.rows) == 1]
    said = [verdict.text for verdict in contested]
    if alone:
        one = len(alone) == 1
        said.append(
            f"{_listed(alone)} explain{'s' if one else ''} other quantities, "
            f"where nothing rivals {'it' if one else 'them'}."
        )
    only = contested[0] if len(contested) == 1 else Verdict(None, "")
    every = [part.verdict for part in parts]
    return replace(
        only,
        text=" ".join(said),
        cautions=tuple(dict.fromkeys(c for verdict in every for c in verdict.cautions)),
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _ranked(rows: list[Row]) -> list[Row]:
    """Best first: by evidence where all have it, else by prediction; with weights and differences."""
    if all(row.evidence is not None for row in rows):
        rows = sorted(rows, key=lambda row: -(row.evidence or 0.0))
    else:
        rows = sorted(rows, key=lambda row: -row.held_out.elpd)
    weights = _stacking(np.stack([row.held_out.parts for row in rows], 1))
    best = rows[0].held_out
    found = []
    for row, weight in zip(rows, weights, strict=True):
        difference, error = best.minus(row.held_out)
        found.append(replace(row, weight=float(weight), elpd_diff=difference, diff_se=error))
    return found


def _stacking(parts: np.ndarray, rounds: int = 5000) -> np.ndarray:
    """Weights of the mixture of predictions that scores best (Yao et al. 2018), by expectation maximisation."""
    likelihood = np.exp(parts - parts.max(1, keepdims=True))
    weights = np.full(parts.shape[1], 1 / parts.shape[1])
    for _ in range(rounds):
        share = likelihood * weights
        renewed = (share / share.sum(1, keepdims=True)).mean(0)
        if np.abs(renewed - weights).max() < 1e-9:
            break
        weights = renewed
    return weights


def _beats(a: Row, b: Row) -> bool:
    """Whether the data say that a is better than b."""
    difference, error = a.held_out.minus(b.held_out)
    margin = max(CLEAR_ELPD, CLEAR_SE * error) if math.isfinite(error) else CLEAR_ELPD
    if a.evidence is not None and b.evidence is not None:
        doubt = CLEAR_SE * math.hypot(a.evidence_se, b.evidence_se)
        return a.evidence - b.evidence - doubt > STRONG and difference > -margin
    return difference > margin


def _contains(larger: Model, smaller: Model, every: dict[str, Model]) -> bool:
    """Whether a model is a special case of another, directly or through others."""
    return any(
        name == smaller.name or (name in every and _contains(every[name], smaller, every))
        for name in larger.contains
    )


def _verdict(rows: list[Row]) -> Verdict:
    every = {row.model.name: row.model for row in rows}
    standing = [r for r in rows if not any(_beats(o, r) for o in rows if o is not r)]
    standing = standing or rows[:1]
    simplest = [
        r
        for r in standing
        if not any(_contains(r.model, o.model, every) for o in standing if o is not r)
    ]
    excluded = tuple(r.model.name for r in rows if r not in standing)
    if len(simplest) == 1:
        winner = simplest[0]
        return Verdict(
            winner.model.name, "", excluded=excluded, bounds=tuple(_bounds(winner, rows, every))
        )
    return Verdict(None, "", tied=tuple(r.model.name for r in simplest), excluded=excluded)


def _bounds(winner: Row, rows: list[Row], every: dict[str, Model]) -> list[Bound]:
    """What the larger models would add to the winner at most."""
    found = []
    for row in rows:
        for parameter, value in row.model.contains.get(winner.model.name, {}).items():
            draws = draws_of(row.run, parameter)
            bound = float(np.quantile(np.abs(draws.values - value), 0.95))
            found.append(Bound(row.model.name, parameter, bound, draws.attrs.get("units", "")))
    return found


def _shifts(rows: list[Row], verdict: Verdict, seed: int) -> list[Shift]:
    """How the evidence answers to each prior, by power scaling (Kallioinen et al. 2024)."""
    shared: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.evidence is not None:
            for parameter, text in json.loads(row.run.attrs["prior"]).items():
                if parameter in row.run["log_prior"]:
                    shared.setdefault((parameter, text), []).append(row)
    found = []
    for (parameter, text), owners in shared.items():
        prior = parse(text, {})
        wider, tighter = (
            {
                row.model.name: _log_mean_power(_log_prior(row, parameter), power - 1) - before
                for row in owners
            }
            for power in (0.5, 2.0)
            for before in [_log_normaliser(prior, power, seed)]
        )
        changes = any(
            _verdict(_moved(rows, by)).winner != verdict.winner for by in (wider, tighter)
        )
        found.append(Shift(parameter, text, wider, tighter, changes))
    return found


def _log_prior(row: Row, parameter: str) -> np.ndarray:
    return np.asarray(draws_of(row.run, parameter, "log_prior").values.reshape(-1))


def _log_mean_power(log_values: np.ndarray, power: float) -> float:
    """Log of the mean of values to a power."""
    return float(np.logaddexp.reduce(power * log_values) - np.log(len(log_values)))


def _log_normaliser(prior: Any, power: float, seed: int) -> float:
    """Log integral of a prior density raised to a power, summed over the elements of an independent vector.

    By quadrature on the unconstrained axis: the mean over draws has no variance for wider priors. Only densities over
    vectors whose elements hang together are averaged over draws.
    """
    import torch
    from torch.distributions import Independent

    while isinstance(prior, Independent):
        prior = prior.base_dist
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        draws = prior.sample((4000,))
        if prior.event_shape or not draws.dtype.is_floating_point:
            log_values = prior.log_prob(draws).reshape(len(draws), -1).sum(1)
            return _log_mean_power(log_values.numpy(), power - 1)
        transform = bijection(prior)
        z = transform.inv(draws)
        middle = z.median(0).values
        spread = (z - middle).abs().median(0).values
        steps = torch.linspace(-60.0, 60.0, 24001, dtype=torch.float64)
        z = middle + spread * steps.reshape(-1, *[1] * middle.dim())
        x = transform(z)
        log_values = power * prior.log_prob(x) + transform.log_abs_det_jacobian(z, x)
        # At the far ends x may reach the edge of its support, where nothing is left.
        log_values = torch.nan_to_num(log_values, nan=-torch.inf, posinf=-torch.inf)
        total = torch.logsumexp(log_values, 0) + torch.log(spread * (steps[1] - steps[0]))
    return float(total.sum())


def _moved(rows: list[Row], by: dict[str, float]) -> list[Row]:
    return [
        _with_evidence(row, by[row.model.name]) if row.model.name in by else row for row in rows
    ]


def _with_evidence(row: Row, amount: float) -> Row:
    run = row.run.copy()
    run.attrs = {**row.run.attrs, "log_evidence": row.run.attrs["log_evidence"] + amount}
    return replace(row, run=run)


def _explained(
    rows: list[Row],
    verdict: Verdict,
    shifts: list[Shift],
    prior: Any,
    seed: int,
) -> Verdict:
    """The verdict with its sentence, what would decide a tie, and cautions."""
    by_name = {row.model.name: row for row in rows}
    if verdict.winner:
        text = _winning_text(by_name, verdict)
        standing = [by_name[verdict.winner]]
        needs: tuple[Need, ...] = ()
    else:
        needs = tuple(
            need
            for i, a in enumerate(verdict.tied)
            for b in verdict.tied[i + 1 :]
            if (need := _need(by_name[a], by_name[b], prior, seed)) is not None
        )
        listed = ", ".join(verdict.tied[:-1]) + f" from {verdict.tied[-1]}"
        text = f"These data cannot discriminate {listed}."
        if verdict.excluded:
            text += f" Excluded: {', '.join(verdict.excluded)}."
        text += "".join(f" {need.text[0].upper()}{need.text[1:]}." for need in needs)
        standing = [by_name[name] for name in verdict.tied]
    cautions = [*_gate_cautions(standing), *_prior_cautions(shifts)]
    return replace(verdict, text=text, needs=needs, cautions=tuple(cautions))


def _winning_text(by_name: dict[str, Row], verdict: Verdict) -> str:
    assert verdict.winner is not None
    winner = by_name[verdict.winner]
    others = [row for name, row in by_name.items() if name != verdict.winner]
    if not others:
        return f"{verdict.winner} is the only model fitted."
    text = f"{verdict.winner} wins"
    beaten = [row for row in others if row.model.name in verdict.excluded]
    if beaten:
        rival = beaten[0]
        text += f": it beats {rival.model.name} by {_margin(winner, rival)}"
        if len(beaten) > 1:
            text += f", and {', '.join(r.model.name for r in beaten[1:])} by more"
    if verdict.bounds:
        kept = ", ".join(bound.text for bound in verdict.bounds)
        text += (
            f"; models that contain it gain nothing ({kept})"
            if not beaten
            else f"; what it leaves out is bounded: {kept}"
        )
    return text + "."


def _margin(a: Row, b: Row) -> str:
    if a.evidence is not None and b.evidence is not None:
        return f"a log Bayes factor of {a.evidence - b.evidence:.1f}"
    difference, error = a.held_out.minus(b.held_out)
    return f"{difference:.1f} ± {error:.1f} in log predictive density"


def _gate_cautions(rows: list[Row]) -> list[str]:
    failed = [(row.model.name, gate) for row in rows for gate in row.gates if not gate.passed]
    return [
        f"{name}: {gate.name} is {gate.value:.3g}, should be {gate.limit} ({gate.text})"
        for name, gate in failed
    ]


def _prior_cautions(shifts: list[Shift]) -> list[str]:
    return [
        f"the verdict changes when the prior {s.parameter} ~ {s.prior} is made half or twice as sharp"
        for s in shifts
        if s.changes_verdict
    ]


def _need(a: Row, b: Row, prior: Any, seed: int) -> Need | None:
    """What would tell two models apart, from noiseless data of either fitted by the other."""
    noise_now = _noise(a)
    local = a.model.posterior or b.model.posterior
    if noise_now is None or a.model.noise is None or a.model.noise != b.model.noise or local:
        return _need_by_spread(a, b)
    expected = min(
        _expected_gain(a, b, noise_now, prior, seed),
        _expected_gain(b, a, noise_now, prior, seed),
    )
    expected = max(expected, 1e-12)
    units = draws_of(a.run, a.model.noise).attrs.get("units", "")
    return Need(
        a.model.name,
        b.model.name,
        expected,
        SEPARATES / expected,
        noise_now * math.sqrt(expected / SEPARATES),
        noise_now,
        units,
    )


def _noise(row: Row) -> float | None:
    if row.model.noise is None or row.model.noise not in row.run["posterior"]:
        return None
    return float(np.median(draws_of(row.run, row.model.noise).values))


def _expected_gain(truth: Row, rival: Row, noise: float, prior: Any, seed: int) -> float:
    """Log likelihood that a rival loses on the expectation of a model, at a known noise.

    The rival is fitted at a much smaller noise, where its prior has no say, and the loss scaled back: it goes as the
    inverse square of the noise.
    """
    data = truth.data
    clean = data.copy()
    before = _at_noise(truth.model, data, prior, noise)
    modes, heights, _ = find_modes(before, 16, seed)
    for name, mean in before.expectation(modes[heights.argmax()]).items():
        clean[name] = (data[name].dims, mean.numpy(), data[name].attrs)
    sharp = noise / SHARPER
    lost = _top(truth, clean, prior, sharp, seed) - _top(rival, clean, prior, sharp, seed)
    return max(lost / SHARPER**2, 0.0)


def _at_noise(model: Model, data: xr.Dataset, prior: Any, noise: float) -> Density:
    known = {"set": prior} if isinstance(prior, str) else dict(prior or {})
    assert model.noise is not None
    return make_density(model, data, _prior_of(model, known | {model.noise: noise}))


def _top(row: Row, data: xr.Dataset, prior: Any, noise: float, seed: int) -> float:
    """Largest log likelihood at a known noise, over the modes found."""
    density = _at_noise(row.model, data, prior, noise)
    modes, _, _ = find_modes(density, 32, seed)
    return float(density.pointwise(modes).flatten(1).sum(1).max())


def _need_by_spread(a: Row, b: Row) -> Need | None:
    """More data by the square root law, where the models have no common noise level."""
    difference, error = a.held_out.minus(b.held_out)
    if not (math.isfinite(error) and difference):
        return None
    times = (CLEAR_SE * error / abs(difference)) ** 2
    return Need(
        a.model.name, b.model.name, abs(difference), max(times, CLEAR_ELPD / abs(difference))
    )


def explain_prior(run: xr.DataTree) -> dict[str, str]:
    """The prior that a run was made with, by parameter."""
    return {name: describe(text) for name, text in json.loads(run.attrs["prior"]).items()}


def compare_runs(
    data: xr.Dataset, runs: Sequence[xr.DataTree], source: xr.Dataset | None = None
) -> Comparison:
    """Compare runs that are already there; blocks are not left out, since nothing is fitted again.

    Args:
        data: what all of them were learnt from.
        runs: the runs.
        source: what the data were made of.
    """
    rows = []
    for run in runs:
        if run.attrs["data_sha256"] != digest(data):
            raise RunError(f"the run of {run.attrs['model']} was made from other data")
        loo = leave_one_out(run)
        model = find(run.attrs["model"])
        rows.append(
            Row(model, run, diagnose(run), loo, None, data, data if source is None else source)
        )
    return _conclude(data, rows, {}, None, 0)
