"""Models, data, runs, comparisons and certificates as text on a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._terminal import plain, prose, say, table

if TYPE_CHECKING:
    import xarray as xr

    from .datasets.scenes import Scene
    from .inference.certificates import Certificate
    from .models.model import Model
    from .reports.compare import Comparison
    from .reports.diagnose import Gate

__all__ = [
    "catalogue_json",
    "known_truth",
    "show_catalogue",
    "show_certificate",
    "show_certificates",
    "show_comparison",
    "show_data",
    "show_model",
    "show_run",
    "show_scenes",
]

# Rows of a posterior table, and those of one of its arrays; a file holds them all.
MOST_ROWS = 40
MOST_ELEMENTS = 12


def show_catalogue(found: list[Model]) -> None:
    """Models by family, with their kind of data and their title."""
    rows = [(m.name, m.family, m.kind, m.card.title) for m in found]
    table(("model", "family", "data", "what it says"), rows)


def catalogue_json(found: list[Model]) -> str:
    """The catalogue for programs."""
    return json.dumps([_model_json(m) for m in found], ensure_ascii=False, indent=1)


def _model_json(model: Model) -> dict[str, Any]:
    return {
        "model": model.name,
        "family": model.family,
        "kind": model.kind,
        "title": model.card.title,
        "runner": model.runner,
        "priors": {name: chosen.describe() for name, chosen in model.priors.items()},
        "unit": list(model.unit),
        "block": list(model.block),
        "contains": {name: dict(case) for name, case in model.contains.items()},
        "gives": model.gives,
    }


def show_scenes(found: list[Scene]) -> None:
    """Scenes with their parameters and defaults."""
    for scene in found:
        say(scene.name, style="bold")
        say(f"  {scene.summary}")
        defaults = "  ".join(f"{name}={value}" for name, value in scene.parameters.items())
        say(f"  {defaults}\n")


def show_model(model: Model, runner: str) -> None:
    """A model's card, and what it is declared to be."""
    say(f"{model.name}: {model.card.title}", style="bold")
    if model.card.body:
        say()
        prose(model.card.body)
    say()
    facts = {
        "family": model.family,
        "data": f"{model.kind}{_sizes_wanted(model)}",
        "runner": runner,
        "one observation": " × ".join(model.unit),
        "left out as blocks of": ", ".join(model.block),
        "special cases": _special_cases(model),
        "gives": model.gives or "",
    }
    table(("", ""), [(name, value) for name, value in facts.items() if value])
    for number, (name, chosen) in enumerate(model.priors.items()):
        say()
        table((f"prior {name}", "" if number else "(the default)"), chosen.describe().items())
        if chosen.units:
            stated = ", ".join(f"{variable} in {unit}" for variable, unit in chosen.units.items())
            say(f"for {stated}")
        if chosen.note:
            say(chosen.note)


def _sizes_wanted(model: Model) -> str:
    wanted = [
        f"{low} {dim}" if low == high else f"{low} to {high} {dim}"
        for dim, (low, high) in model.sizes.items()
    ]
    return f" with {', '.join(wanted)}" if wanted else ""


def _special_cases(model: Model) -> str:
    return "; ".join(
        f"{name} at {', '.join(f'{parameter} = {value:g}' for parameter, value in case.items())}"
        for name, case in model.contains.items()
    )


def show_data(data: xr.Dataset, every: Iterable[Model]) -> None:
    """What a dataset is, its variables, and which models can be fitted to it."""
    from .datasets.kinds import kind_of

    kind = kind_of(data)
    say(f"{kind.name}: {kind.summary}; valid", style="bold")
    say(" × ".join(f"{size} {plain(dim)}" for dim, size in data.sizes.items()))
    for name in ("source", "scene", "model", "reader", "note", "lattice", "periodic"):
        if name in data.attrs:
            say(f"{name}: {plain(data.attrs[name])}")
    say()
    names = [str(n) for n in (*data.data_vars, *data.coords)]
    table(
        ("variable", "dimensions", "unit", ">from", ">to"),
        [_range(name, data[name]) for name in names if not name.startswith("true_")],
    )
    if truth := known_truth(data):
        say(f"truth: {truth}")
    say()
    _show_models_for(data, every)


def known_truth(data: xr.Dataset) -> str:
    """The parameters that simulated data were made with."""
    truth = {str(name)[5:]: data[name] for name in data.data_vars if str(name).startswith("true_")}
    return ", ".join(
        f"{plain(name)} = {float(v):.4g}" if v.ndim == 0 else f"{plain(name)} ({v.size} values)"
        for name, v in truth.items()
    )


def _range(name: str, array: xr.DataArray) -> tuple[str, ...]:
    dims = " × ".join(f"{array.sizes[dim]} {dim}" for dim in array.dims) or "one value"
    unit = array.attrs.get("units", "")
    if array.dtype.kind not in "iufb":
        shown = [str(v) for v in array.values.reshape(-1)]
        ends = (shown[0], shown[-1]) if shown else ("", "")
    else:
        ends = (f"{float(array.min()):.4g}", f"{float(array.max()):.4g}")
    return (name, dims, str(unit), *(plain(end, 40) for end in ends))


def _show_models_for(data: xr.Dataset, every: Iterable[Model]) -> None:
    rows, others = [], 0
    for model in every:
        if not model.takes(data.attrs["kind"]):
            others += 1
            continue
        refused = model.refuses(data)
        gives = f"; gives {model.gives}" if model.gives else ""
        why = refused or f"{_priors_for(model, data)}{gives}"
        rows.append((model.name, "no" if refused else "yes", why))
    if rows:
        table(("model", "fits", "why not, or which prior sets apply"), rows)
    else:
        say("no model takes such data")
    if others:
        say(f"{others} models take data of other kinds; see atomzoo list")


def _priors_for(model: Model, data: xr.Dataset) -> str:
    """Prior sets whose units are those of the data; all of a model that makes others of them first."""
    from .datasets.kinds import DataError
    from .models.priors import ModelError

    found = []
    for name in model.priors:
        try:
            if model.preparer is None:
                model.resolve(data, name)
        except (DataError, ModelError):
            continue
        found.append(name)
    return ", ".join(found) or "none in these units; give your own with -P"


def show_run(run: xr.DataTree, gates: list[Gate]) -> None:
    """What a run says, its posterior, its evidence and its gates."""
    from .reports.answers import answers_of

    attrs = {name: plain(value) for name, value in run.attrs.items()}
    say(f"{attrs['model']}: {attrs.get('model_title', '')}", style="bold")
    say(
        f"prior {attrs.get('prior_set', '?')}, runner {attrs['runner']}, "
        f"seed {attrs.get('seed', '?')}, {_rounded(attrs.get('seconds', '?'), 1)} s\n"
    )
    _show_answers(answers_of(run))
    rows, left = _posterior_rows(run)
    table(("parameter", ">mean", ">sd", ">5 %", ">median", ">95 %", "unit", ">truth"), rows)
    if left:
        say(f"and in the file: {', '.join(left)}")
    if "log_evidence" in attrs:
        error = _rounded(attrs.get("log_evidence_se", "?"), 2)
        say(f"\nlog evidence {_rounded(attrs['log_evidence'], 2)} ± {error}")
    say()
    _show_gates(gates)


def _show_answers(answers: list[str]) -> None:
    for sentence in answers:
        say(plain(sentence))
    if answers:
        say()


def _rounded(figure: str, digits: int) -> str:
    """A number from a file, which may hold anything."""
    try:
        return f"{float(figure):.{digits}f}"
    except ValueError:
        return figure


def _posterior_rows(run: xr.DataTree) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row a number, and the arrays that are too large for that."""
    import numpy as np

    posterior = run["posterior"].to_dataset()
    rows: list[tuple[str, ...]] = []
    left: list[str] = []
    for name, array in posterior.data_vars.items():
        size = array.size // (array.sizes["chain"] * array.sizes["draw"])
        if size > min(MOST_ELEMENTS, MOST_ROWS - len(rows)):
            left.append(f"{plain(name)} ({size:,} values)")
            continue
        values = array.stack(sample=("chain", "draw")).transpose("sample", ...).values
        shape = values.shape[1:]
        flat = values.reshape(len(values), -1).astype(float)
        truth = _truth(run, str(name), shape)
        for i in range(size):
            index = ", ".join(map(str, np.unravel_index(i, shape)))
            column = flat[:, i]
            figures = (column.mean(), column.std(), *np.quantile(column, (0.05, 0.5, 0.95)))
            shown = (f"{figure:.4g}" for figure in figures)
            label = f"{name}[{index}]" if shape else str(name)
            unit = str(array.attrs.get("units", ""))
            rows.append((label, *shown, "" if unit == "1" else unit, truth[i] if truth else ""))
    return rows, left


def _truth(run: xr.DataTree, name: str, shape: tuple[int, ...]) -> list[str]:
    """The true values, where the data came with them."""
    if "constant_data" not in run.children or f"true_{name}" not in run["constant_data"]:
        return []
    truth = run["constant_data"].to_dataset()[f"true_{name}"].values
    return [f"{float(v):.4g}" for v in truth.reshape(-1)] if truth.shape == shape else []


def _show_gates(gates: list[Gate]) -> None:
    failed = [gate for gate in gates if not gate.passed]
    rows = [
        (
            gate.name,
            _short(gate.value),
            f"{gate.threshold:g}",
            gate.result.replace("failed", "FAILED"),
        )
        for gate in gates
    ]
    table(("gate", ">found", ">threshold", ""), rows)
    for gate in failed:
        say(f"{gate.name}: {plain(gate.text)}", style="yellow")


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show_comparison(comparison: Comparison) -> None:
    """The tables, best first, what the models say, and the verdict."""
    from .reports.answers import answers_of

    for step in comparison.steps:
        say(plain(step))
    parts = comparison.parts or (comparison,)
    contested = [part for part in parts if len(part.rows) > 1]
    for part in contested:
        _show_rows(part.as_json()["models"])
    _show_rows([row for part in parts if len(part.rows) == 1 for row in part.as_json()["models"]])
    told = {row.model.name: answers_of(row.run) for row in comparison.rows}
    for name, sentences in told.items():
        if sentences and name in comparison.standing:
            say()
            say(name, style="bold")
            for sentence in sentences:
                say(f"  {plain(sentence)}")
    for name, why in comparison.skipped.items():
        say(f"not fitted: {plain(name)}: {plain(why)}")
    say()
    say(comparison.verdict.text, style="bold")
    # A model that nothing rivals has its failed gates in the table, and in its chapter of the report.
    for caution in dict.fromkeys(
        c for part in (contested if comparison.parts else parts) for c in part.verdict.cautions
    ):
        say(f"Caution: {plain(caution)}", style="yellow")


def _show_rows(models: list[dict[str, Any]]) -> None:
    rows = [
        (
            row["model"],
            _figure(row["elpd"]),
            f"{_figure(row['elpd_diff'])} ± {_figure(row['diff_se'])}" if row["elpd_diff"] else "–",
            _figure(row["log_evidence"]),
            _figure(row["weight"], 2),
            ", ".join(gate["name"] for gate in row["gates"] if not gate["passed"]) or "none",
        )
        for row in models
    ]
    if rows:
        columns = ("model", ">elpd", ">behind the best", ">log evidence", ">weight", "failed gates")
        table(columns, rows)


def _figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def show_certificates(model: Model, kept: list[Certificate]) -> None:
    """The certificates that come with the package, a line a runner."""
    if not kept:
        say(f"no calibration comes with the package: see atomzoo calibrate {model.name}")
        return
    columns = ("calibrated with", ">simulations", "prior", "on", "atomzoo", "torch", "", "worst")
    table(columns, [_certificate_row(model, certificate) for certificate in kept])


def _certificate_row(model: Model, certificate: Certificate) -> tuple[str, ...]:
    verdict = "passed" if certificate.passed else "FAILED"
    if certificate.outdated(model):
        verdict += ", OUTDATED: the model has changed since"
    worst = certificate.worst
    return (
        certificate.runner,
        str(certificate.n),
        certificate.prior_set,
        certificate.date[:10],
        certificate.versions.get("atomzoo", "?"),
        certificate.versions.get("torch", "?"),
        verdict,
        f"{worst.name}, p = {min(worst.ecdf_p, worst.chi2_p):.2g}" if worst else "",
    )


def show_certificate(certificate: Certificate) -> None:
    """What a calibration found, by parameter."""
    verdict = "passed" if certificate.passed else "FAILED"
    say(f"calibration of {certificate.model}: {verdict}", style="bold")
    when = f", {plain(certificate.date[:10])}" if certificate.date else ""
    say(
        f"{certificate.n} simulations from prior {plain(certificate.prior_set)}, runner "
        f"{plain(certificate.runner)}, seed {certificate.seed}{when}\n"
    )
    levels = (
        [part.level for part in certificate.quantities[0].coverage]
        if certificate.quantities
        else []
    )
    rows = [
        (
            quantity.name,
            f"{quantity.ecdf_p:.3g}",
            f"{quantity.chi2_p:.3g}",
            *(f"{100 * part.found:.0f} %" for part in quantity.coverage),
            "passed" if quantity.passed else "FAILED",
        )
        for quantity in certificate.quantities
    ]
    held = [f">in {100 * level:.0f} %" for level in levels]
    table(("rank of", ">p (ECDF)", ">p (χ²)", *held, ""), rows)
    say(f"\na single test fails below p = {certificate.level:.2g}, corrected for their number")
    for name, why in certificate.not_ranked.items():
        say(f"not ranked: {plain(name)}: {plain(why)}")
    if certificate.retried:
        more = f", and {len(certificate.retried) - 3} more" if len(certificate.retried) > 3 else ""
        say(f"done again: {plain('; '.join(certificate.retried[:3]))}{more}")
    for failure in certificate.failures[:3]:
        say(f"no fit: {plain(failure)}", style="yellow")
    if len(certificate.failures) > 3:
        say(f"and {len(certificate.failures) - 3} more without a fit", style="yellow")
    _show_failed_gates(certificate.failed_gates, certificate.n)


def _show_failed_gates(failed: Mapping[str, int] | None, n: int) -> None:
    if failed:
        listed = ", ".join(f"{plain(name)} in {count}" for name, count in sorted(failed.items()))
        say(f"gates that failed in the {n} fits: {listed}")
    elif failed is not None:
        say(f"no gate failed in the {n} fits")
