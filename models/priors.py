"""Priors as data: named sets of distributions that can be read, overridden, written out and compared.

An entry is a Pyro distribution, a number (a known value), or text such as `"Normal(x.mid, x.span / 4)"`,
where `x.mid`, `x.span`, `x.step`, `value.rms` and `value.peak` are read off the data when the prior is used.
The text is parsed, never evaluated, so that it may come from a file or a command line.

Example:
    >>> wide = PriorSet("mine", {"x0": "Normal(x.mid, x.span / 4)", "noise": 0.02})
    >>> wide.override(noise="HalfNormal(0.1)").entries["noise"]
    'HalfNormal(0.1)'
    >>> parse("LogNormal(log(2), 0.5)", {})
    LogNormal()
    >>> describe(parse("LogNormal(0, 0.5)", {}))
    'LogNormal(0, 0.5)'
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch

__all__ = ["ModelError", "Prior", "PriorSet", "describe", "parse", "prior_set"]

Entry: TypeAlias = dist.Distribution | float | int | str


class ModelError(ValueError):
    """A model, its prior or its use is wrong; the message says what to do."""


@dataclass(frozen=True)
class PriorSet:
    """A named set of priors.

    Attributes:
        name: `vague`, or a material.
        entries: a distribution, a number or an expression for every parameter.
        units: unit that each data variable or coordinate must have for this set to make sense.
        note: where the numbers come from.
    """

    name: str
    entries: Mapping[str, Entry]
    units: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def override(self, **entries: Entry) -> PriorSet:
        """The same set with some entries replaced."""
        unknown = sorted(set(entries) - set(self.entries))
        if unknown:
            raise ModelError(
                f"prior set {self.name!r} has no parameter {', '.join(unknown)}; "
                f"it has {', '.join(self.entries)}"
            )
        name = self.name if self.name.endswith("*") else f"{self.name}*"
        return replace(self, name=name, entries={**self.entries, **entries})

    def extend(self, **entries: Entry) -> PriorSet:
        """The same set with further parameters."""
        return replace(self, entries={**self.entries, **entries})

    @property
    def numbers(self) -> dict[str, float]:
        """The entries that are known values."""
        found = {name: _known(entry) for name, entry in self.entries.items()}
        return {name: value for name, value in found.items() if value is not None}

    def describe(self) -> dict[str, str]:
        """Every entry as text that `parse` reads back."""
        return {name: describe(entry) for name, entry in self.entries.items()}

    def resolve(self, data: Mapping[str, Any]) -> Prior:
        """Distributions and numbers, with every expression read off the data's statistics."""
        resolved = {}
        for name, entry in self.entries.items():
            value = parse(entry, data) if isinstance(entry, str) else _in_float64(entry)
            resolved[name] = float(value) if isinstance(value, int | float) else value
        return Prior(resolved, self.name)


def _known(entry: Entry) -> float | None:
    """The value of an entry that is a number, also one that was typed."""
    if isinstance(entry, int | float):
        return float(entry)
    try:
        return float(entry) if isinstance(entry, str) else None
    except ValueError:
        return None


def _in_float64(entry: Entry) -> Entry:
    """The entry rebuilt in double precision; a distribution that text cannot hold stays as it is."""
    if not isinstance(entry, dist.Distribution):
        return entry
    try:
        rebuilt: Entry = parse(describe(entry), {})
    except ModelError:
        return entry
    return rebuilt


def prior_set(units: Mapping[str, str] | None = None, note: str = "", **entries: Entry) -> PriorSet:
    """A prior set whose numbers hold in given units, with a note on their source."""
    return PriorSet("", entries, units or {}, note)


class Prior(Mapping[str, Any]):
    """The resolved prior that a model sees: `prior.x0` is a distribution, or a number where the value is known."""

    def __init__(self, entries: Mapping[str, Any], name: str = "prior") -> None:
        self._entries = dict(entries)
        self.name = name

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_entries"][name]
        except KeyError:
            raise ModelError(
                f"the model asks for the prior of {name!r}, which the set does not have"
            ) from None

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def describe(self) -> dict[str, str]:
        """Every entry as text."""
        return {name: describe(entry) for name, entry in self._entries.items()}


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"log": math.log, "exp": math.exp, "sqrt": math.sqrt}
_RESHAPES = ("expand", "to_event")
# Arguments that are numbers of things, which distributions want as plain integers.
_WHOLE = ("dim", "total_count")


def parse(text: str, data: Mapping[str, Any]) -> Any:
    """Read a prior expression: distribution calls, arithmetic, `log exp sqrt`, statistics of the data.

    Args:
        text: such as `"LogNormal(log(x.step), 1)"`.
        data: statistics by variable, each an object with attributes such as `mid` and `span`.

    Raises:
        ModelError: when the text is anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _evaluate(tree, data)
    except ModelError as error:
        raise ModelError(f"cannot read the prior {text!r}: {error}") from None
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot read the prior {text!r}: {reason}") from None


def _evaluate(node: ast.expr, data: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, data)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, data), _evaluate(right, data))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return _stacked([_evaluate(item, data) for item in items])
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in data:
            return _statistic(data[name], name, attribute)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            values = [_evaluate(arg, data) for arg in args]
            named = {k.arg: _evaluate(k.value, data) for k in keywords if k.arg}
            return _call(name, values, named)
        case ast.Call(func=ast.Attribute(value=inner, attr=method), args=args) if (
            method in _RESHAPES
        ):
            return _reshape(_evaluate(inner, data), method, [_evaluate(a, data) for a in args])
    known = ", ".join(data) or "no data here"
    raise ModelError(f"{ast.unparse(node)!r} is not a distribution, number or statistic of {known}")


def _statistic(source: Any, name: str, attribute: str) -> float:
    if attribute.startswith("_") or not hasattr(source, attribute):
        raise ModelError(f"{name} has no statistic {attribute!r}; use mid, span, step, rms or peak")
    return float(getattr(source, attribute))


def _call(name: str, values: list[Any], named: dict[str, Any]) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](*values)
    kind: Any = getattr(dist, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, dist.Distribution)):
        raise ModelError(f"there is no distribution {name!r}")
    accepted = list(inspect.signature(kind.__init__).parameters)[1:]
    if len(values) > len(accepted):
        raise ModelError(f"{name} takes at most {len(accepted)} arguments, found {len(values)}")
    arguments = dict(zip(accepted, values, strict=False)) | named
    ready = {key: int(v) if key in _WHOLE else _tensor(v) for key, v in arguments.items()}
    build: Any = kind
    build(**ready, validate_args=True)
    # Built again unchecked: the arguments are right, and values are not to be checked at every evaluation.
    with pyro.validation_enabled(False):
        return build(**ready)


def _reshape(inner: Any, method: str, args: list[Any]) -> Any:
    if not isinstance(inner, dist.Distribution) or len(args) != 1:
        raise ModelError(f"{method} belongs to a distribution and takes one argument")
    if method == "to_event":
        return inner.to_event(int(args[0]))
    return inner.expand(torch.Size(int(n) for n in torch.atleast_1d(torch.as_tensor(args[0]))))


def _stacked(rows: list[Any]) -> torch.Tensor:
    """A list of numbers, or of lists of the same length."""
    return torch.stack([_tensor(row) for row in rows]) if rows else _tensor(rows)


def _tensor(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def describe(entry: Entry) -> str:
    """A prior entry as text, in the form that `parse` reads."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, int | float):
        return _number(entry)
    if not isinstance(entry, dist.Distribution):
        raise ModelError(f"a prior must be a distribution, a number or text, found {entry!r}")
    if isinstance(entry, dist.Independent):
        return f"{describe(entry.base_dist)}.to_event({entry.reinterpreted_batch_ndims})"
    arguments = [
        name for name in inspect.signature(type(entry).__init__).parameters if name in _given(entry)
    ]
    values = [getattr(entry, name) for name in arguments]
    constant = [_constant(v) if entry.batch_shape else None for v in values]
    if entry.batch_shape and all(c is not None for c in constant):
        size = ", ".join(map(str, entry.batch_shape))
        inner = ", ".join(c for c in constant if c is not None)
        return f"{type(entry).__name__}({inner}).expand([{size}])"
    positional = (
        arguments == list(inspect.signature(type(entry).__init__).parameters)[1:][: len(arguments)]
    )
    shown = [_show(v) for v in values]
    if not positional:
        shown = [f"{name}={value}" for name, value in zip(arguments, shown, strict=True)]
    return f"{type(entry).__name__}({', '.join(shown)})"


def _given(entry: dist.Distribution) -> set[str]:
    """Arguments that a distribution can be built from; of those that say the same, one."""
    names = set(entry.arg_constraints) | {name for name in _WHOLE if name in entry.__dict__}
    if {"probs", "logits"} <= names:
        names -= {"logits"} if "probs" in entry.__dict__ else {"probs"}
    if "covariance_matrix" in names:
        names -= {"precision_matrix", "scale_tril"}
    return names


def _constant(value: Any) -> str | None:
    flat = torch.as_tensor(value).flatten()
    return _show(flat[0]) if bool((flat == flat[0]).all()) else None


def _show(value: Any) -> str:
    tensor = torch.as_tensor(value)
    if tensor.ndim == 0:
        digits = 7 if tensor.dtype == torch.float32 else 12
        return f"{float(tensor):.{digits}g}"
    return "[" + ", ".join(_show(v) for v in tensor) + "]"


def _number(value: float) -> str:
    return f"{value:.12g}"
