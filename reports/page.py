"""One self-contained HTML page of a comparison or of runs: no network, no script, whatever the names in it are.

Example:
    >>> from tempfile import TemporaryDirectory
    >>> from atomzoo.datasets.scenes import simulate
    >>> from atomzoo.inference.fit import fit
    >>> run = fit("wall_second_order", simulate("wall_second_order", seed=1))
    >>> with TemporaryDirectory() as folder:
    ...     page = report(run, f"{folder}/wall.html", title="A wall")
    ...     "<h1>A wall</h1>" in page.read_text(encoding="utf-8")
    True
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..datasets.kinds import DataError, find_kind
from ..inference.certificates import Certificate, certificates_of
from ..inference.heldout import RELIABLE_K, HeldOut, leave_one_out
from ..inference.runs import RunError, atomic, digest
from ..models.model import Model
from .answers import answers_of
from .calibration import calibration_figure
from .commands import Commands, commands_of
from .compare import STRONG, Bound, Comparison, Row, Shift, compare_runs
from .diagnose import Gate, diagnose, power_scaling
from .figures import Look, Picture, look
from .given import data_of, model_of, name_of, source_of
from .parameters import Group, groups_of, most_entangled, parameters_of, written_prior
from .pictures.base import Fitted, pictures_of, results_of
from .posteriors import pair_figure, pareto_figure, prior_posterior_figure, rank_figure
from .rankings import difference_figure, evidence_figure, shift_figure
from .wording import (
    card_html,
    clean,
    code_html,
    count,
    gate_value,
    inline_html,
    interval,
    plain,
    plus_minus,
    shorter_numbers,
    signed,
    significant,
    symbol_html,
    unit,
    units_within,
)

__all__ = ["report"]

# A raster image as a figure has it, and the attributes of its element.
IMAGE = re.compile(r'<image\b[^>]*\bhref="(?P<address>data:image/[^"]+)"[^>]*>(?:</image>)?')
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')

MOST_PANELS = 9
MOST_PAIRS = 5
MOST_SHIFTS = 14
# Power scaling above this says that prior or data move the posterior (Kallioinen et al. 2024).
SENSITIVE = 0.05


def report(
    what: Comparison | xr.DataTree | Sequence[xr.DataTree],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> Path:
    """Write the report of a comparison or of runs, whole or not at all.

    Args:
        what: what `compare` returned, one run, or several. Runs of the same data are compared; others are shown one
            after another.
        path: the HTML file.
        title: of the page; by default made from the verdict.

    Returns:
        The path.
    """
    chapters = _chapters(what)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=clean(title) if title else _title(chapters, what),
            chapters=chapters,
            summary=_summary(what),
            version=_version(),
        )
    )
    target = Path(path)
    with atomic(target) as temporary:
        temporary.write_text(_each_image_once(page), encoding="utf-8")
    return target


def _each_image_once(page: str) -> str:
    """The page with every raster image that stands in several figures stored in one place."""
    found = Counter(image["address"] for image in IMAGE.finditer(page))
    shared = {address: f"image-{i}" for i, (address, n) in enumerate(found.items()) if n > 1}

    def referred(image: re.Match[str]) -> str:
        if image["address"] not in shared:
            return image[0]
        rest = dict(ATTRIBUTE.findall(image[0]))
        size = [rest.get(name, "0") for name in ("x", "y", "width", "height")]
        x, y, width, height = (f"{float(value):g}" for value in size)
        moved = f"{rest.get('transform', '')} translate({x} {y}) scale({width} {height})".strip()
        kept = "".join(f' {k}="{v}"' for k, v in rest.items() if k in ("style", "opacity"))
        return f'<use href="#{shared[image["address"]]}" transform="{moved}"{kept}/>'

    stored = "".join(
        f'<image id="{name}" width="1" height="1" preserveAspectRatio="none" href="{address}"/>'
        for address, name in shared.items()
    )
    if not stored:
        return page
    hidden = (
        f'<svg class="stored" width="0" height="0" aria-hidden="true"><defs>{stored}</defs></svg>'
    )
    return IMAGE.sub(referred, page).replace("<main>", f"{hidden}\n<main>", 1)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "count": count,
        "significant": significant,
        "symbol": symbol_html,
        "unit": unit,
        "clean": clean,
        "code": code_html,
        "plain": plain,
        "signed": signed,
        "gate_value": gate_value,
        "shorter": shorter_numbers,
    }
    environment.globals |= {"plus_minus": plus_minus, "interval": interval}
    return environment


def _harmless(value: Any) -> Any:
    """Text from files without control or direction characters; markup of our own as it is."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _version() -> str:
    try:
        return version("atomzoo")
    except PackageNotFoundError:
        return ""


def _title(chapters: list[Chapter], what: Any) -> str:
    first = chapters[0]
    if isinstance(what, Comparison):
        return f"Models of {chapters[-1].source} compared"
    if len(chapters) > 1:
        return f"{len(chapters)} runs"
    if first.comparison is None:
        return f"{first.entries[0].name} fitted to {first.source}"
    return f"Models of {first.source} compared"


def _chapters(what: Comparison | xr.DataTree | Sequence[xr.DataTree]) -> list[Chapter]:
    if isinstance(what, Comparison):
        made = [_alone(run) for run in what.makers]
        return [*made, *_once([_compared(part) for part in what.parts or (what,)])]
    runs = [what] if isinstance(what, xr.DataTree) else list(what)
    if not runs:
        raise RunError("there is no run to report")
    for run in runs:
        if not isinstance(run, xr.DataTree) or "posterior" not in run.children:
            raise RunError(
                "a report is of a comparison or of runs, each a DataTree with a posterior"
            )
    together = _comparison_of(runs)
    return [_compared(together)] if together else _once([_alone(run) for run in runs])


def _once(chapters: list[Chapter]) -> list[Chapter]:
    """Data that several chapters share are shown in the first of them."""
    seen: list[str] = []
    for i, chapter in enumerate(chapters):
        known = digest(chapter.data)
        chapters[i] = replace(chapter, shows_data=known not in seen)
        seen.append(known)
    return chapters


def _summary(what: Any) -> Conclusion | None:
    """What a comparison of several questions says in all."""
    return _overview(what) if isinstance(what, Comparison) and what.parts else None


def _comparison_of(runs: list[xr.DataTree]) -> Comparison | None:
    """Runs of several models on the same data compared, None where they are not that."""
    names = {run.attrs.get("model") for run in runs}
    shas = {run.attrs.get("data_sha256") for run in runs}
    pointwise = all("log_likelihood" in run.children for run in runs)
    if len(runs) < 2 or len(names) < len(runs) or len(shas) > 1 or None in shas or not pointwise:
        return None
    data = data_of(runs[0])
    if digest(data) not in shas or any(model_of(run) is None for run in runs):
        return None
    return compare_runs(data, runs, source_of(runs[0]))


def _compared(comparison: Comparison) -> Chapter:
    entries = [
        Entry(place, row.source, row.run, row.model, row.gates, row)
        for place, row in enumerate(comparison.rows)
    ]
    return Chapter(comparison.data, entries, comparison)


def _alone(run: xr.DataTree) -> Chapter:
    data = source_of(run)
    return Chapter(data, [Entry(0, data, run, model_of(run), diagnose(run))])


@dataclass(frozen=True)
class PriorLine:
    """One parameter's prior: as the fit saw it, and as its set states it where that is another thing."""

    name: str
    symbol: str
    text: str
    units: str
    stated: str


@dataclass(frozen=True)
class Calibration:
    """A certificate, whether the model has changed since, and its ranks as a figure."""

    certificate: Certificate
    outdated: bool
    picture: Picture | None


@dataclass(frozen=True)
class Entry:
    """A model in the report: its run and everything that is shown of it."""

    place: int
    data: xr.Dataset
    run: xr.DataTree
    model: Model | None
    gates: list[Gate]
    row: Row | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return clean(self.run.attrs.get("model", "model"), 60)

    @property
    def title(self) -> Markup:
        """First line of the card."""
        return inline_html(
            self.model.card.title if self.model else self.run.attrs.get("model_title", "")
        )

    @property
    def look(self) -> Look:
        """How it is drawn."""
        return look(self.place)

    @property
    def fitted(self) -> Fitted:
        """The run as pictures need it."""
        return Fitted(self.name, self.look, self.run, self.model)

    @property
    def prior_set(self) -> str:
        """Name of its prior set."""
        return clean(self.run.attrs.get("prior_set", ""), 60)

    @property
    def failed(self) -> list[Gate]:
        """Gates that it did not pass, findings aside."""
        return [gate for gate in self.gates if gate.fault]

    @property
    def noted(self) -> list[Gate]:
        """Findings beyond their thresholds."""
        return [gate for gate in self.gates if not gate.passed and not gate.fault]

    @property
    def card(self) -> Markup:
        """The card's body."""
        return card_html(self.model.card.body) if self.model else Markup("")

    @cached_property
    def held_out(self) -> HeldOut | None:
        """How well it predicts what was left out, None where the run has no pointwise log likelihood."""
        if self.row:
            return self.row.held_out
        plain = "log_likelihood" in self.run.children and "networks" not in self.run.children
        return leave_one_out(self.run) if plain else None

    @property
    def loo(self) -> HeldOut | None:
        """Leave-one-out alone."""
        return self.row.loo if self.row else self.held_out

    @property
    def evidence(self) -> str:
        """Log evidence with its error, and a dash where there is none to trust."""
        if self.row and self.row.evidence is None:
            return "–"
        value = self.run.attrs.get("log_evidence")
        return plus_minus(None if value is None else float(value), self._evidence_se)

    @property
    def _evidence_se(self) -> float:
        return float(self.run.attrs.get("log_evidence_se", np.nan))

    @cached_property
    def symbols(self) -> Mapping[str, str]:
        """How parameters are printed."""
        return self.model.symbols if self.model else {}

    @property
    def priors(self) -> list[PriorLine]:
        """The prior set, written out."""
        stated = self._stated()
        return [
            PriorLine(
                name,
                self.symbols.get(name, name),
                f"{text} (known)" if _is_number(text) else text,
                self._unit(name),
                stated.get(name, "") if stated.get(name, "") != text else "",
            )
            for name, text in written_prior(self.run).items()
        ]

    def _stated(self) -> dict[str, str]:
        sets = self.model.priors if self.model else {}
        found = sets.get(str(self.run.attrs.get("prior_set")))
        return {k: v for k, v in found.entries.items() if isinstance(v, str)} if found else {}

    def _unit(self, name: str) -> str:
        posterior = self.run["posterior"].to_dataset()
        return unit(posterior[name].attrs.get("units", "")) if name in posterior else ""

    @property
    def prior_note(self) -> str:
        """Where the prior set's numbers come from."""
        sets = self.model.priors if self.model else {}
        found = sets.get(self.prior_set)
        return found.note if found else ""

    @cached_property
    def groups(self) -> list[Group]:
        """Parameters by variable."""
        return groups_of(self.run, self.model)

    @property
    def knows_truth(self) -> bool:
        """Whether the truth of any parameter is known."""
        return any(
            g.coverage is not None or any(p.truth is not None for p in g.elements)
            for g in self.groups
        )

    @cached_property
    def sensitivity(self) -> list[tuple[str, float, float, str]]:
        """Symbol, prior and likelihood sensitivity, and what they say."""
        return [
            (self.symbols.get(name, name), prior, likelihood, _said(prior, likelihood))
            for name, (prior, likelihood) in power_scaling(self.run).items()
        ]

    @property
    def _spot(self) -> str:
        """What tells this run from the others on the page."""
        known = (str(self.run.attrs.get(key)) for key in ("data_sha256", "seed", "runner"))
        return "-".join([*known, str(self.place)])

    @cached_property
    def calibrations(self) -> list[Calibration]:
        """The certificates of the model that come with the package."""
        if self.model is None:
            return []
        return [
            Calibration(
                found,
                found.outdated(self.model),
                calibration_figure(found, self.look, self.symbols, self._spot),
            )
            for found in certificates_of(self.model.name)
        ]

    @cached_property
    def pictures(self) -> list[Picture]:
        """Figures of the posterior and of its checks."""
        panels = parameters_of(self.groups, MOST_PANELS, moving=False)
        moving = parameters_of(self.groups, MOST_PANELS)
        found: list[Picture | None] = []
        if panels:
            found.append(prior_posterior_figure(panels, self.look))
        if len(moving) > 1:
            found.append(pair_figure(most_entangled(moving, MOST_PAIRS), self.look))
        if moving:
            found.append(rank_figure(moving, self.look))
        found.append(self._pareto())
        own = results_of(self.fitted, self.data)
        return [*own, *(picture for picture in found if picture is not None)]

    def _pareto(self) -> Picture | None:
        # Leave-one-out takes long on large data: it is done again only where it has something to show.
        if not any(gate.name == "Pareto k of LOO" for gate in self.failed) or self.loo is None:
            return None
        units = json.loads(self.run.attrs.get("unit", "[]"))
        return pareto_figure(
            self.loo.k, RELIABLE_K, " × ".join(clean(u, 20) for u in units) or "observation"
        )


def _said(prior: float, likelihood: float) -> str:
    if not (np.isfinite(prior) and np.isfinite(likelihood)):
        return "not known"
    if prior < SENSITIVE:
        return "the data speak" if likelihood >= SENSITIVE else "neither moves it"
    return "prior and data pull apart" if likelihood >= SENSITIVE else "the prior speaks"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Chapter:
    """Data with what was fitted to them."""

    data: xr.Dataset
    entries: list[Entry]
    comparison: Comparison | None = None
    shows_data: bool = True
    looks: dict[str, Look] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", {entry.name: entry.look for entry in self.entries})

    @property
    def source(self) -> str:
        """Where the data come from, in a word or two."""
        return name_of(self.data)

    @property
    def kind(self) -> str:
        """Kind of the data."""
        return str(self.data.attrs["kind"])

    @property
    def facts(self) -> list[str]:
        """The data in one line, in pieces."""
        attrs = self.data.attrs
        variables = [n for n in find_kind(self.kind).variables if n in self.data]
        sizes = " × ".join(
            _counted(self.data.sizes[d], clean(d, 24)) for d in self.data[variables[0]].dims
        )
        units = [
            f"{name} in {_plural(unit(self.data[name].attrs['units']))}"
            for name in [*variables, *self.data.coords]
            if unit(self.data[name].attrs.get("units", ""))
        ]
        simulated = "scene" in attrs or "model" in attrs
        made = f"simulated, seed {attrs['seed']}" if simulated and "seed" in attrs else "simulated"
        return [
            self.kind,
            sizes,
            *units,
            self.source,
            *([made] if simulated else []),
            f"SHA-256 {self.sha[:12]}…",
        ]

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done to get from the file to the data."""
        return self.comparison.steps if self.comparison else ()

    @cached_property
    def sha(self) -> str:
        """Digest of the data."""
        return str(self.entries[0].run.attrs.get("data_sha256") or digest(self.data))

    @cached_property
    def pictures(self) -> list[Picture]:
        """Data against predictions."""
        if not self.shows_data:
            return []
        try:
            return pictures_of(self.data, [entry.fitted for entry in self.entries])
        except DataError as error:
            raise RunError(f"the run's own data cannot be shown: {error}") from None

    @cached_property
    def verdict(self) -> Conclusion:
        """What to say first."""
        return _verdict(self.comparison) if self.comparison else _checks(self.entries[0])

    @property
    def left_out(self) -> str:
        """How predictions were scored."""
        scored = next((e.held_out for e in self.entries if e.held_out is not None), None)
        if scored is None:
            return ""
        return f"leave-block-out, {len(scored.parts)} blocks" if scored.spatial else "leave-one-out"

    @cached_property
    def ranking(self) -> list[Picture]:
        """Differences in prediction and in evidence."""
        if self.comparison is None or len(self.entries) < 2:
            return []
        rows = self.comparison.rows
        found = [
            difference_figure(rows, self.looks, self.left_out),
            evidence_figure(rows, self.looks, STRONG),
        ]
        return [picture for picture in found if picture is not None]

    @property
    def refits(self) -> int:
        """How many blocks were fitted again."""
        return sum(e.row.held_out.refits for e in self.entries if e.row)

    @cached_property
    def rivals(self) -> tuple[Row, Row] | None:
        """The best two models by evidence."""
        if self.comparison is None:
            return None
        known = [row for row in self.comparison.rows if row.evidence is not None]
        known.sort(key=lambda row: -(row.evidence or 0.0))
        return (known[0], known[1]) if len(known) > 1 else None

    @cached_property
    def symbols(self) -> Mapping[str, str]:
        """How the parameters of all models are printed."""
        return {k: v for entry in self.entries for k, v in entry.symbols.items()}

    @cached_property
    def shifts(self) -> list[Shift]:
        """Priors by how far they move the comparison: first those that change the verdict."""
        if self.comparison is None:
            return []
        return sorted(
            self.comparison.shifts, key=lambda s: (not s.changes_verdict, -self._reach(s))
        )

    def _reach(self, shift: Shift) -> float:
        """The most that a prior changes between the best two models."""
        a, b = (row.model.name for row in self.rivals) if self.rivals else ("", "")
        return max(abs(by.get(a, 0.0) - by.get(b, 0.0)) for by in (shift.wider, shift.tighter))

    @cached_property
    def shift_picture(self) -> Picture | None:
        """Where the Bayes factor of the best two goes with each prior."""
        if self.rivals is None:
            return None
        a, b = self.rivals
        names = {a.model.name, b.model.name}
        both = [s for s in self.shifts if names & set(s.wider) or s.changes_verdict]
        if not both or a.evidence is None or b.evidence is None:
            return None
        now = a.evidence - b.evidence
        return shift_figure(
            both[:MOST_SHIFTS], a.model.name, b.model.name, now, STRONG, self.symbols
        )

    @property
    def shown_sensitivity(self) -> list[Entry]:
        """Models whose power scaling stands with the verdict: the winner, or those that are tied."""
        if self.comparison is None:
            return self.entries[:1]
        named = self.comparison.verdict.tied or (self.comparison.winner,)
        return [e for e in self.entries if e.name in named]

    def is_open(self, entry: Entry) -> bool:
        """Whether a model's details are open at first: the winner's, or the first one's."""
        return (
            entry.name == self.comparison.winner
            if self.comparison and self.comparison.winner
            else entry.place == 0
        )

    @cached_property
    def commands(self) -> Commands:
        """How to do it again."""
        return commands_of(
            self.data,
            [(e.run, e.model) for e in self.entries],
            compared=self.comparison is not None,
        )


PLURALS = {
    "axis": "axes",
    "patch": "patches",
    "col": "columns",
    "energy": "energies",
    "time": "times",
}


def _counted(size: int, name: str) -> str:
    """Such as "24 rows"; an axis with a letter for a name is counted in points."""
    if len(name) == 1:
        return f"{size} along {name}"
    return f"{size} {name}" if size == 1 else f"{size} {PLURALS.get(name, name + 's')}"


def _plural(units: str) -> str:
    return "unit cells" if units == "unit cell" else units


@dataclass(frozen=True)
class Conclusion:
    """The first thing on the page.

    Attributes:
        tone: `won`, `open` or `failed`, which the style sheet knows.
        label: what kind of conclusion it is, in two words.
        headline: the conclusion.
        text: the rest of the sentence.
        answers: by model, what it says of the data.
        bounds: what is left out, bounded.
        needs: what would decide.
        cautions: what to be careful about.
        notes: what else there is to know.
    """

    tone: str
    label: str
    headline: str
    text: str = ""
    answers: list[tuple[str, list[str]]] = field(default_factory=list)
    bounds: list[tuple[str, str]] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _verdict(comparison: Comparison) -> Conclusion:
    verdict = comparison.verdict
    headline = f"These data cannot discriminate {_listed(verdict.tied)}"
    label = "No winner"
    if verdict.winner:
        headline = f"{verdict.winner} wins"
        label = "Verdict, with cautions" if verdict.cautions else "Verdict"
    if verdict.winner and len(comparison.rows) == 1:
        headline, label = f"What {verdict.winner} says", "The only model of its question"
    alone = len(comparison.rows) == 1
    rest = "" if alone else verdict.text.removeprefix(headline).lstrip(" .:;,")
    for need in verdict.needs:
        rest = rest.replace(f"{need.text[0].upper()}{need.text[1:]}.", "")
    # Bounds are listed below the sentence.
    bounds = ", ".join(bound.text for bound in verdict.bounds)
    rest = rest.replace(f" ({bounds})", "").replace(f" is bounded: {bounds}", " is bounded")
    cautions = verdict.cautions
    for shift in comparison.shifts:
        symbol = _symbol(shift.parameter, comparison)
        written = f"{shift.parameter} ~ {shift.prior}"
        cautions = tuple(
            c.replace(written, f"{symbol} ~ {shorter_numbers(shift.prior)}") for c in cautions
        )
    return Conclusion(
        "won" if verdict.winner else "open",
        label,
        headline,
        _sentence(rest.strip()),
        _answers(comparison),
        [(_bound(bound, comparison), bound.model) for bound in verdict.bounds],
        [_sentence(need.text) for need in verdict.needs],
        [_caution(text, comparison) for text in cautions],
        [f"Not fitted: {name}, because {reason}." for name, reason in comparison.skipped.items()],
    )


def _overview(comparison: Comparison) -> Conclusion:
    """What a comparison of several questions says in all; cautions in full stand in the chapters."""
    failed = {
        row.model.name: [gate.name for gate in row.gates if gate.fault] for row in comparison.rows
    }
    cautions = [f"{name}: failed {', '.join(gates)}." for name, gates in failed.items() if gates]
    swayed = [
        row.model.name
        for row in comparison.rows
        if any(not gate.passed and not gate.fault for gate in row.gates)
    ]
    if swayed:
        cautions.append(f"There is more to note on {', '.join(swayed)}: see their chapters.")
    return Conclusion(
        "won" if comparison.winner else "open",
        f"{len(comparison.parts)} questions",
        f"{comparison.winner} wins, and other questions have answers of their own"
        if comparison.winner
        else f"What {len(comparison.rows)} models say of {name_of(comparison.data)}",
        comparison.verdict.text if comparison.winner or comparison.verdict.tied else "",
        _answers(comparison),
        cautions=cautions,
        notes=[
            *([f"Made from the file: {'; '.join(comparison.steps)}."] if comparison.steps else []),
            *(
                f"Not fitted: {name}, because {reason}."
                for name, reason in comparison.skipped.items()
            ),
        ],
    )


def _answers(comparison: Comparison) -> list[tuple[str, list[str]]]:
    standing = comparison.standing
    told = [(row.model.name, answers_of(row.run)) for row in comparison.rows]
    return [(name, said) for name, said in told if said and name in standing]


def _caution(text: str, comparison: Comparison) -> str:
    """A sentence; one that begins with the name of a model has no capital."""
    names = [row.model.name for row in comparison.rows]
    return text if text.partition(":")[0] in names else _sentence(text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" from {names[-1]}" if len(names) > 1 else "".join(names)


def _sentence(text: str) -> str:
    if not text:
        return ""
    return units_within(
        text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
    )


def _symbol(parameter: str, comparison: Comparison) -> str:
    found = (row.model.symbols.get(parameter) for row in comparison.rows)
    return next((symbol for symbol in found if symbol), parameter)


def _bound(bound: Bound, comparison: Comparison) -> str:
    """A bound as it is printed."""
    units = unit(bound.units)
    symbol = _symbol(bound.parameter, comparison)
    return f"{symbol} < {significant(bound.value)}{' ' + units if units else ''} at 95 %"


def _checks(entry: Entry) -> Conclusion:
    """What to say of a single run: whether its checks passed."""
    failed, noted, every = entry.failed, entry.noted, len(entry.gates)
    said = answers_of(entry.run)
    answers = [(entry.name, said)] if said else []
    cautions = [
        f"{g.name} is {gate_value(g.value, g.threshold)}, should be {g.limit}: {g.text}."
        for g in (*failed, *noted)
    ]
    if failed:
        names = ", ".join(gate.name for gate in failed)
        rest = (
            "Scores of left-out data rest on it, the posterior does not."
            if names == "Pareto k of LOO"
            else "Do not rely on what follows before that is mended."
        )
        why = f"Failed: {names}. {rest}"
        headline = f"{entry.name}: {len(failed)} of {every} checks failed"
        return Conclusion("failed", "One run", headline, why, answers, cautions=cautions)
    if noted:
        headline = f"{entry.name}: no check failed, {len(noted)} of {every} to note"
        return Conclusion("open", "One run", headline, answers=answers, cautions=cautions)
    passed = {0: "", 1: ": the one check passed"}.get(every, f": all {every} checks passed")
    return Conclusion("won", "One run", entry.name + passed, answers=answers)
