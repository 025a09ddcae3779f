"""Certificates: what a calibration found, as a file, and those that come with the package."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..models.model import Model
from ..models.priors import PriorSet
from .runs import RunError, write_text
from .uniformity import Coverage, Quantity

__all__ = ["Certificate", "certificates_of", "story_of", "version_of"]

# What is told of single simulations, in sentences.
TOLD = ("failures", "retried")


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
        band: significance of a single count of ranks at which the band of all counts has the level.
        quantities: what was ranked.
        not_ranked: what was not, and why.
        failures: simulations that gave no fit, with the reason.
        retried: simulations whose worker died or hung, and that were done again.
        failed_gates: how many fits failed each diagnostic, None where diagnostics were not asked for.
        fits_with_failed_gates: how many fits failed any, None likewise.
        date: when.
        seconds: how long it took.
        versions: of the libraries.
        version: of the model, see `version_of`.
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
    retried: tuple[str, ...] = ()
    failed_gates: dict[str, int] | None = None
    fits_with_failed_gates: int | None = None
    date: str = ""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    version: str = ""
    band: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every quantity passed and every simulation gave a fit."""
        return not self.failures and all(quantity.passed for quantity in self.quantities)

    @property
    def worst(self) -> Quantity | None:
        """The quantity that is least like uniform, those that failed first."""
        least = {q.name: (q.passed, min(q.ecdf_p, q.chi2_p)) for q in self.quantities}
        return min(self.quantities, key=lambda q: least[q.name], default=None)

    def outdated(self, model: Model) -> bool:
        """Whether the model or the prior set has changed since; a prior of the user's own is not looked up."""
        if self.prior_set == "own" or self.prior_set.endswith("*"):
            return False
        chosen = model.priors.get(self.prior_set)
        return chosen is None or self.version != version_of(model, chosen)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the verdict first."""
        return {"passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Certificate:
        """A certificate from what `as_json` gave, or `RunError`."""
        try:
            fields = {name: value for name, value in content.items() if name != "passed"}
            quantities = [_quantity_from(entry) for entry in fields.pop("quantities")]
            fields |= {name: tuple(map(str, fields.get(name, ()))) for name in TOLD}
            return cls(**fields, quantities=tuple(quantities))
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


def version_of(model: Model, prior: PriorSet) -> str:
    """SHA-256 of a model's story and of one of its prior sets, as it is stated; empty where `story_of` is."""
    story = story_of(model)
    return story and _sha256([story, prior.describe()])


def story_of(model: Model) -> str:
    """SHA-256 of a model's story, with what it calls from its own hall; empty where the source is not to be had.

    Docstrings and decorators do not count.
    """
    try:
        return _sha256(_sources(model.story))
    except (OSError, TypeError, SyntaxError):
        return ""


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sources(story: Any) -> dict[str, str]:
    """Source of a story and of the functions and classes of its hall that it names, and those name."""
    found: dict[str, str] = {}
    waiting = [story]
    while waiting:
        part = waiting.pop()
        # A module that is a file or a script goes by another name in another process.
        beside = "" if part.__module__ == story.__module__ else part.__module__
        name = f"{beside.rpartition('.')[2]}.{part.__qualname__}"
        if name not in found:
            found[name], names = _source(part)
            there = part.__globals__ if inspect.isfunction(part) else _module_of(part)
            named = [there[n] for n in names & set(there) if callable(there[n])]
            waiting += [p for p in map(inspect.unwrap, named) if _of_hall(p, story)]
    return dict(sorted(found.items()))


def _source(part: Any) -> tuple[str, set[str]]:
    """A function or class without decorators, docstring and empty lines, and the names in it."""
    lines = textwrap.dedent(inspect.getsource(part)).splitlines()
    tree: Any = ast.parse("\n".join(lines)).body[0]
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    first = body[0].lineno if body else tree.end_lineno + 1
    kept = [*lines[tree.lineno - 1 : tree.body[0].lineno - 1], *lines[first - 1 : tree.end_lineno]]
    nodes = [node for each in [*body, *getattr(tree, "bases", [])] for node in ast.walk(each)]
    text = "\n".join(line.rstrip() for line in kept if line.strip())
    return text, {node.id for node in nodes if isinstance(node, ast.Name)}


def _module_of(part: Any) -> dict[str, Any]:
    module = sys.modules.get(part.__module__)
    return vars(module) if module else {}


def _of_hall(part: Any, story: Any) -> bool:
    """Whether a function or class stands in the story's module or beside it."""
    if not (inspect.isfunction(part) or inspect.isclass(part)):
        return False
    hall = story.__module__.rpartition(".")[0]
    same = part.__module__ == story.__module__
    return same or (bool(hall) and part.__module__.rpartition(".")[0] == hall)


def certificates_of(model: str) -> list[Certificate]:
    """The certificates of a model that come with the package, by runner."""
    folder = _folder()
    if not folder.is_dir():
        return []
    kept = sorted(file.name for file in folder.iterdir() if file.name.startswith(f"{model}."))
    return [_packaged(folder / name) for name in kept if name.endswith(".json")]


def _folder() -> Traversable:
    return files(__package__.rpartition(".")[0]) / "models" / "certificates"


def _packaged(file: Traversable) -> Certificate:
    try:
        return Certificate.from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, RunError):
        raise RunError(f"the certificate {file.name} of this installation is damaged") from None
