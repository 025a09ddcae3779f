"""What a user types, checked before any long work begins: files to write, `name=value` pairs, hints for readers."""

from __future__ import annotations

import ast
import inspect
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._terminal import InputError, plain

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "check_kept",
    "chosen_prior",
    "data_or_run",
    "folder",
    "hints",
    "maybe_target",
    "option_values",
    "pairs",
    "read_data",
    "target",
    "values",
]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PIXEL_SIZE = re.compile(rf"\s*({_NUMBER})(?:\s*,\s*({_NUMBER}))?\s*(\D*)")
_PLANE = re.compile(r"\s*(\d+)(?:\s*,\s*(\d+))?\s*")


def target(path: Path, suffixes: tuple[str, ...], *, inputs: Sequence[Path] = ()) -> Path:
    """A path that can be written: right suffix, a folder that takes files, and not one of the inputs.

    Args:
        path: what the user gave.
        suffixes: those allowed.
        inputs: files that are read, which must not be overwritten.
    """
    found = path.expanduser()
    try:
        if found.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
        if found.suffix.lower() not in suffixes:
            raise InputError(f"{path}: name it {found.stem or 'result'}{suffixes[0]}")
        check_kept(found, inputs)
        _check_writable(found.parent)
        # A name may be too long for the disk although its folder takes files.
        os.stat(found.parent / f".{found.name}.12345678.part")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return found


def maybe_target(
    path: Path | None, suffixes: tuple[str, ...], *, inputs: Sequence[Path] = ()
) -> Path | None:
    """As `target`, where there may be nothing to write."""
    return None if path is None else target(path, suffixes, inputs=inputs)


def check_kept(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write over a file that is read."""
    for given in inputs:
        if path.exists() and given.exists() and path.samefile(given):
            raise InputError(f"{path} is an input; it would be overwritten, give another name")


def folder(path: Path) -> Path:
    """A folder for results, there or ready to be made."""
    found = path.expanduser()
    try:
        if found.exists() and not found.is_dir():
            raise InputError(f"{path} is a file; expected a folder")
        _check_writable(found if found.is_dir() else found.parent)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return found


def _check_writable(place: Path) -> None:
    """Only trying tells: permissions do not apply to everyone, and not every disk takes files."""
    if not place.is_dir():
        raise InputError(f"there is no folder {place}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {place}: {error.strerror}") from None


def pairs(texts: Sequence[str] | None, flag: str) -> dict[str, str]:
    """`name=value` arguments as a dict of text."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InputError(f"{flag} {text}: expected name=value")
        if name.strip() in found:
            raise InputError(f"{flag} {name.strip()} is given twice")
        found[name.strip()] = value.strip()
    return found


def values(texts: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """`name=value` arguments with numbers and lists as such."""
    return {name: _literal(text) for name, text in pairs(texts, flag).items()}


def _literal(text: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, int | float | str | list | tuple) else text


def chosen_prior(name: str | None, overrides: Mapping[str, str]) -> Any:
    """A prior set's name with overrides, in the form that `Model.prior` takes."""
    if not overrides:
        return name
    return {**overrides, **({"set": name} if name else {})}


def option_values(
    runner: str, run: Callable[..., Any], texts: Sequence[str] | None
) -> dict[str, Any]:
    """A runner's options, each as the type of its default.

    Args:
        runner: its name.
        run: its function.
        texts: `option=value` arguments.
    """
    parameters = inspect.signature(run).parameters
    known = {name: parameters[name].default for name in list(parameters)[1:]}
    for fixed in ("seed", "progress", "checkpoint"):
        known.pop(fixed, None)
    known["device"] = "cpu"
    given = pairs(texts, "-O")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f"runner {runner} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    return {name: _like(name, text, known[name]) for name, text in given.items()}


def _like(name: str, text: str, default: Any) -> Any:
    """A value of the type of its default."""
    value = _literal(text)
    if isinstance(default, bool):
        if str(value).lower() in ("true", "false", "1", "0"):
            return str(value).lower() in ("true", "1")
    elif isinstance(default, int):
        if isinstance(value, int | float) and float(value).is_integer():
            return int(value)
    elif isinstance(default, float):
        if isinstance(value, int | float):
            return float(value)
    else:
        return value
    kind = {bool: "true or false", int: "a whole number"}.get(type(default), "a number")
    raise InputError(f"-O {name}={text}: expected {kind}, such as {default}")


def hints(
    kind: str | None,
    pixel_size: str | None,
    channel: str | None,
    plane: str | None,
    units: Sequence[str] | None,
    attrs: Sequence[str] | None,
) -> dict[str, Any]:
    """What the user says of a file, as `read` takes it."""
    found: dict[str, Any] = {"kind": kind, "channel": channel}
    if plane is not None:
        found["plane"] = _plane(plane)
    if pixel_size is not None:
        found["pixel_size"], found["pixel_size_units"] = _pixel_size(pixel_size)
    if units:
        found["units"] = pairs(units, "--units")
    if attrs:
        found["attrs"] = values(attrs, "--attr")
    return found


def _pixel_size(text: str) -> tuple[float | tuple[float, float], str]:
    """A number or two, and a unit.

    Example:
        >>> _pixel_size("0.02"), _pixel_size("20,21 pm")
        ((0.02, 'nm'), ((20.0, 21.0), 'pm'))
    """
    match = _PIXEL_SIZE.fullmatch(text)
    if match is None:
        raise InputError(
            f"--pixel-size {text}: expected nm a pixel, such as 0.02, 0.02,0.03 or '20 pm'"
        )
    first, second, unit = match.groups()
    size = float(first) if second is None else (float(first), float(second))
    return size, unit.strip() or "nm"


def _plane(text: str) -> int | tuple[int, int]:
    match = _PLANE.fullmatch(text)
    if match is None:
        raise InputError(f"--plane {text}: expected a number, or axis,number")
    first, second = match.groups()
    return int(first) if second is None else (int(first), int(second))


# The readers speak Python; whoever sits at a terminal must be told what to type there.
_AS_OPTIONS = (
    (re.compile(r"(?<!is )\bkind='(\w+)'"), r"--kind \1"),
    (re.compile(r"\bpixel_size=<([^>]*)>"), r"--pixel-size <\1>"),
    (re.compile(r"\bplane=\(axis, (\w+)\)"), r"--plane axis,\1"),
    (re.compile(r"\bplane=(<\w+>)"), r"--plane \1"),
    (re.compile(r"\bunits=\{'?(\w+)'?: '(\w+)'\}"), r"--units \1=\2"),
    (re.compile(r"\battrs=\{'(\w+)': '(\w+)', '(\w+)': (\w+)\}"), r"--attr \1=\2 --attr \3=\4"),
)


def read_data(path: Path, given: Mapping[str, Any]) -> xr.Dataset:
    """A valid dataset from a file; what is wrong with it is said in terms of the command line."""
    from .datasets.files import read
    from .datasets.kinds import DataError

    try:
        return read(path, **given)
    except DataError as error:
        message = plain(error)
        for pattern, option in _AS_OPTIONS:
            message = pattern.sub(option, message)
        raise InputError(message) from error


def data_or_run(
    path: Path, given: Mapping[str, Any]
) -> tuple[xr.Dataset | None, xr.DataTree | None]:
    """A valid dataset from a file, or else the run that it is.

    Args:
        path: the file.
        given: hints for reading data.
    """
    try:
        return read_data(path, given), None
    except InputError:
        found = _run_or_none(path)
        if found is None:
            raise
    if any(value is not None for value in given.values()):
        raise InputError(
            f"{path} is a run, which is read as it is: leave out the hints for reading"
        )
    return None, found


def _run_or_none(path: Path) -> xr.DataTree | None:
    """A file that is no data may be a run."""
    from .inference.runs import RunError, read_run

    if path.suffix.lower() == ".nc":
        with suppress(RunError):
            return read_run(path.expanduser())
    return None
