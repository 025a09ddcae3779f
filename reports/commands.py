"""How to do a run or a comparison again: the commands, and what they ran with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import xarray as xr

from ..models.model import Model, View
from ..models.priors import ModelError
from .parameters import written_prior
from .wording import clean

__all__ = ["Commands", "commands_of", "giving"]

PLACEHOLDER = "DATA.nc"


@dataclass(frozen=True)
class Commands:
    """What the reproduction block holds.

    Attributes:
        shell: command lines.
        python: the same from Python.
        facts: name and value of whatever else the answer depends on.
        versions: libraries and their versions.
    """

    shell: str
    python: str
    facts: list[tuple[str, str]]
    versions: list[tuple[str, str]]


def commands_of(
    data: xr.Dataset, fits: Sequence[tuple[xr.DataTree, Model | None]], *, compared: bool
) -> Commands:
    """How to do it again, from what the runs say of themselves.

    Args:
        data: what was observed.
        fits: runs with their models, None for a model that is not in the catalogue.
        compared: whether they were compared, or one was fitted.
    """
    runs = [run for run, _ in fits]
    file, made = _file(data), _simulated(data)
    given = _given(data, fits)
    before = [made.words(file)] if made else _before(data)
    first = [shlex.join(["atomzoo", *words]) for words in before]
    shell = [*first, _shell(runs, file, given, compared)]
    python = [
        "import atomzoo",
        "",
        f"data = {made.python()}" if made else f"data = atomzoo.read({file!r})",
        *_python(runs, given, compared),
    ]
    return Commands("\n".join(shell), "\n".join(python), _facts(runs), _versions(runs))


def giving(source: xr.Dataset, run: xr.DataTree, model: Model) -> str:
    """The commands with which a run's model gives its data, as JSON: what is typed after `atomzoo` in each.

    Args:
        source: what the run was fitted to.
        run: the run.
        model: its model.
    """
    file, made = _file(source), _simulated(source)
    words = ["fit", model.name, file, "-o", f"{model.name}.nc", "--give", f"{model.gives}.nc"]
    words += _given(source, [(run, model)]).words()
    first = [made.words(file)] if made else _before(source)
    return json.dumps([*first, words], ensure_ascii=False)


def _before(data: xr.Dataset) -> list[list[str]]:
    """The commands that made data, from what they say of themselves, which may be anything."""
    if not _given_first(data):
        return []
    try:
        found = json.loads(str(data.attrs["made_by"]))
    except ValueError:
        return []
    rows = found if isinstance(found, list) else []
    return [[clean(word, 200) for word in row] for row in rows if isinstance(row, list)]


def _given_first(data: xr.Dataset) -> bool:
    """Whether a model made the data, and no file of a user's holds them."""
    return "made_by" in data.attrs and not data.attrs.get("source")


@dataclass(frozen=True)
class _Given:
    """What the runs were told: the prior set and what replaces some of it, seed, runner and options."""

    prior: str
    replaced: dict[str, str]
    seed: str
    runner: str
    options: dict[str, Any]

    def words(self) -> list[str]:
        """As arguments of a command."""
        found = ["--prior", self.prior] if self.prior else []
        for name, text in self.replaced.items():
            found += ["-P", f"{name}={text}"]
        found += ["--runner", self.runner] if self.runner else []
        found += ["--seed", self.seed]
        for name, value in self.options.items():
            found += ["-O", f"{name}={clean(value)}"]
        return found

    def keywords(self) -> str:
        """As arguments of a function."""
        prior: Any = {**({"set": self.prior} if self.prior else {}), **self.replaced}
        prior = prior if self.replaced else self.prior
        runner = f", runner={self.runner!r}" if self.runner else ""
        options = "".join(f", {k}={v!r}" for k, v in self.options.items() if k.isidentifier())
        return f"prior={prior!r}, seed={self.seed}{runner}{options}"


def _given(data: xr.Dataset, fits: Sequence[tuple[xr.DataTree, Model | None]]) -> _Given:
    attrs = fits[0][0].attrs
    name = clean(attrs.get("prior_set", ""), 60).rstrip("*")
    replaced: dict[str, str] = {}
    for run, model in fits:
        replaced |= _replaced(data, run, model)
    options = {clean(k, 60): v for k, v in json.loads(attrs.get("runner_options", "{}")).items()}
    runners = {clean(run.attrs.get("runner", ""), 60) for run, _ in fits}
    runner = runners.pop() if len(runners) == 1 else ""
    return _Given(
        "" if name == "own" else name, replaced, _whole(attrs.get("seed", 0)), runner, options
    )


def _replaced(data: xr.Dataset, run: xr.DataTree, model: Model | None) -> dict[str, str]:
    """Entries of the prior that are not those of the named set."""
    name, written = str(run.attrs.get("prior_set", "")), written_prior(run)
    if model is None or not (name.endswith("*") or name == "own"):
        return {}
    try:
        base = model.prior(None if name == "own" else name.rstrip("*"))
        stated = base.resolve(View(data).scales()).describe()
    except ModelError:
        return written
    return {key: text for key, text in written.items() if stated.get(key) != text}


def _file(data: xr.Dataset) -> str:
    """Name of the data's file, without the folder it was in."""
    source = data.attrs.get("source")
    if _given_first(data):
        return f"{data.attrs['kind']}.nc"
    if source:
        return clean(PurePath(str(source).replace("\\", "/")).name, 120)
    made = data.attrs.get("scene") or data.attrs.get("model")
    return f"{clean(made, 60)}.nc" if made else PLACEHOLDER


@dataclass(frozen=True)
class _Simulation:
    """The call that makes simulated data."""

    name: str
    seed: str
    parameters: dict[str, Any]

    def words(self, file: str) -> list[str]:
        words = ["simulate", self.name, "-o", file, "--seed", self.seed]
        for key, value in self.parameters.items():
            words += ["-p", f"{key}={value}"]
        return words

    def python(self) -> str:
        given = "".join(f", {k}={v!r}" for k, v in self.parameters.items() if k.isidentifier())
        return f"atomzoo.simulate({self.name!r}, seed={self.seed}{given})"


def _simulated(data: xr.Dataset) -> _Simulation | None:
    """How the data were simulated, None where they were measured."""
    attrs = data.attrs
    name = attrs.get("scene") or attrs.get("model")
    if not name or attrs.get("source") or "seed" not in attrs:
        return None
    try:
        given = json.loads(str(attrs.get("parameters", "{}")))
    except ValueError:
        given = {}
    parameters = {clean(k, 60): v for k, v in given.items()} if isinstance(given, dict) else {}
    return _Simulation(clean(name, 60), _whole(attrs["seed"]), parameters)


def _whole(value: Any) -> str:
    return str(value) if str(value).lstrip("-").isdecimal() else repr(clean(value, 40))


def _shell(runs: Sequence[xr.DataTree], file: str, given: _Given, compared: bool) -> str:
    names = [clean(run.attrs["model"], 60) for run in runs]
    if compared:
        return shlex.join(["atomzoo", "compare", file, *names, "-o", "report.html", *given.words()])
    run = f"{names[0]}.nc"
    fit = shlex.join(["atomzoo", "fit", names[0], file, "-o", run, *given.words()])
    return f"{fit}\n{shlex.join(['atomzoo', 'report', run, '-o', 'report.html'])}"


def _python(runs: Sequence[xr.DataTree], given: _Given, compared: bool) -> list[str]:
    names = [clean(run.attrs["model"], 60) for run in runs]
    call = f"compare(data, {names!r}" if compared else f"fit({names[0]!r}, data"
    return [f"found = atomzoo.{call}, {given.keywords()})", "atomzoo.report(found, 'report.html')"]


def _facts(runs: Sequence[xr.DataTree]) -> list[tuple[str, str]]:
    """What the answer depends on, once where all runs share it."""
    keys = {
        "runner": "runner",
        "runner_options": "options of the runner",
        "seed": "seed",
        "data_sha256": "SHA-256 of the data",
        "created_at": "date",
    }
    found = []
    for key, label in keys.items():
        values = sorted({clean(run.attrs.get(key, ""), 400) for run in runs})
        shown = (
            f"{values[0]} to {values[-1]}"
            if key == "created_at" and len(values) > 1
            else ", ".join(values)
        )
        found.append((label, "defaults" if shown == "{}" else shown or "not recorded"))
    seconds = [
        f"{clean(r.attrs['model'], 60)} {float(r.attrs['seconds']):.1f} s"
        for r in runs
        if "seconds" in r.attrs
    ]
    return [*found, ("time of the runner", ", ".join(seconds) or "not recorded")]


def _versions(runs: Sequence[xr.DataTree]) -> list[tuple[str, str]]:
    found = json.loads(runs[0].attrs.get("versions", "{}"))
    return [(clean(k, 40), clean(v, 40)) for k, v in found.items()]
