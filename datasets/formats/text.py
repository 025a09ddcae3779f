"""Comma-separated text: a profile, a list of atoms, or a table, by the names of its columns.

Units stand in brackets in the header, `x [nm], value [pm]`, or in a comment, `# units: x=nm`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..kinds import DataError, measured_kinds
from .arrange import assemble
from .limits import check_bytes
from .signal import Hints, clean, length_factor, one_line

__all__ = ["read_csv"]

_HEADER = re.compile(r"^(?P<name>.*?)\s*[\[(](?P<unit>[^\])]*)[\])]$")
_INTEGER = re.compile(r"[+-]?[0-9]+")
# Numbers as text are about so many times smaller than the list of Python objects they become.
GROWTH = 16
PLACES = ("x", "y", "z")
ATOM_COLUMNS = {*PLACES, "species", "intensity"}

Columns = dict[str, list[str]]


def read_csv(path: Path, hints: Hints) -> xr.Dataset:
    """Columns of numbers under a header."""
    check_bytes("the text", path.stat().st_size * GROWTH)
    comments, lines = _lines(path)
    said = _comments(comments)
    columns, units = _columns(lines)
    hints = replace(hints, kind=hints.kind or said.kind, units={**said.units, **hints.units})
    units = {**units, **{k: v for k, v in hints.units.items() if k in columns}}
    kind = hints.kind or _guess(columns, units)
    if kind not in _BUILDERS:
        raise DataError(
            f"a .csv holds a {', '.join(_BUILDERS)}, not kind={kind!r}; use .npz or .nc for that"
        )
    arrays = _BUILDERS[kind](columns)
    own = {name: unit for name, unit in units.items() if name in arrays}
    own.update(_renamed_units(kind, units, arrays))
    rest = {k: v for k, v in hints.units.items() if k in arrays or k not in columns}
    return assemble(measured_kinds()[kind], arrays, own, replace(hints, units=rest))


def _lines(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Comments, and the other lines with their numbers."""
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the text is UTF-16; save it as UTF-8")
    if b"\0" in raw:
        raise DataError(f"it is not text: a zero byte at {raw.index(0)}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}; "
            "save it as UTF-8"
        ) from None
    numbered = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    comments = [line.lstrip()[1:] for _, line in numbered if line.lstrip().startswith("#")]
    return comments, [(i, line) for i, line in numbered if not line.lstrip().startswith("#")]


def _comments(comments: list[str]) -> Hints:
    kind, units = None, {}
    for comment in comments:
        key, _, value = comment.partition(":")
        if key.strip().lower() == "kind":
            kind = value.strip()
        elif key.strip().lower() == "units":
            for part in value.split(","):
                name, equals, unit = part.partition("=")
                if not equals:
                    raise DataError(
                        f"comment '# units:' must read name=unit, found {clean(part)!r}"
                    )
                units[name.strip()] = clean(unit)
    return Hints(kind=kind, units=units)


def _columns(lines: list[tuple[int, str]]) -> tuple[Columns, dict[str, str]]:
    if len(lines) < 2:
        raise DataError("expected a header and at least one row of numbers")
    delimiter = _delimiter(lines[0][1])
    rows = []
    for number, line in lines:
        try:
            rows.append((number, next(csv.reader([line], delimiter=delimiter, strict=True))))
        except csv.Error as error:
            raise DataError(f"line {number}: {one_line(error)}") from None
    header, units = _header(rows[0][1])
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(
                f"line {number}: expected {len(header)} cells as in the header, found {len(row)}"
            )
    cells = zip(*(row for _, row in rows[1:]), strict=True)
    return {
        name: [c.strip() for c in column] for name, column in zip(header, cells, strict=True)
    }, units


def _delimiter(header: str) -> str:
    found = [d for d in (",", ";", "\t") if d in header]
    return found[0] if found else ","


def _header(cells: list[str]) -> tuple[list[str], dict[str, str]]:
    names, units = [], {}
    for cell in cells:
        match = _HEADER.match(cell.strip())
        name = clean(match["name"] if match else cell)
        if match and match["unit"].strip():
            units[name] = clean(match["unit"])
        names.append(name)
    if all(_is_number(name) for name in names):
        raise DataError("the first line must name the columns, found numbers")
    wrong = [i for i, name in enumerate(names) if not name or names.index(name) != i]
    if wrong:
        raise DataError(f"column {wrong[0] + 1} has no name of its own: {names[wrong[0]]!r}")
    return names, units


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _guess(columns: Columns, units: dict[str, str]) -> str:
    names = set(columns)
    places = {"x", "y"} <= names and names <= ATOM_COLUMNS
    if places and all(length_factor(units.get(name)) for name in names & set(PLACES)):
        return "atoms"
    if places and names != {"x", "y"}:
        raise DataError(
            "columns x and y need a unit to be positions of atoms: name them 'x [nm]', 'y [nm]', "
            "or say kind='table'"
        )
    values = {name for name in names if name == "value" or name.startswith("value_")}
    if "x" in names and values and names == {"x", *values} | (names & {"row"}):
        return "profile"
    return "table"


def _numbers(name: str, cells: list[str]) -> np.ndarray:
    """Whole numbers stay whole, as codes must."""
    if all(_INTEGER.fullmatch(cell) for cell in cells):
        whole = [int(cell) for cell in cells]
        low, high = min(whole), max(whole)
        if low < -(2**63) or high >= 2**63:
            raise DataError(f"column {name!r}: {low if low < 0 else high} does not fit in 64 bits")
        return np.array(whole, dtype=np.int64)
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        try:
            values[i] = float(cell)
        except ValueError:
            found = repr(clean(cell, 40)) if cell else "an empty cell"
            raise DataError(
                f"column {name!r}, row {i + 1} below the header: expected a number, found {found}"
            ) from None
    return values


def _profile(columns: Columns) -> dict[str, Any]:
    names = [name for name in columns if name == "value" or name.startswith("value_")]
    extra = sorted(set(columns) - {"x", "row", *names})
    if "x" not in columns or not names or extra:
        raise DataError(
            "profile: expected columns x, value (or value_<component>) and perhaps row, found "
            + ", ".join(map(repr, columns))
        )
    x = _numbers("x", columns["x"])
    value = np.column_stack([_numbers(name, columns[name]) for name in names])
    arrays: dict[str, Any] = {}
    if "row" in columns:
        rows = _numbers("row", columns["row"])
        arrays["row"], x, value = _pivot(rows, x, value)
    else:
        value = value[None]
    if names != ["value"]:
        arrays["component"] = np.array([name.removeprefix("value_") for name in names])
    return {**arrays, "value": value, "x": x}


def _pivot(
    rows: np.ndarray, x: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Long form to (row, x, component); every row must have the same points in the same order."""
    labels, first = np.unique(rows, return_index=True)
    labels = labels[np.argsort(first)]
    points = x[rows == labels[0]]
    for label in labels:
        here = x[rows == label]
        if here.shape != points.shape or (here != points).any():
            raise DataError(
                f"profile: row {label} has other points x than row {labels[0]}; every row must "
                "have the same, in the same order"
            )
    return labels, points, np.stack([value[rows == label] for label in labels])


def _atoms(columns: Columns) -> dict[str, Any]:
    axes = [name for name in PLACES if name in columns]
    extra = sorted(set(columns) - ATOM_COLUMNS)
    if axes[:2] != ["x", "y"] or extra:
        raise DataError(
            "atoms: expected columns x, y and perhaps z, species, intensity, found "
            + ", ".join(map(repr, columns))
        )
    position = np.column_stack([_numbers(name, columns[name]) for name in axes])
    arrays: dict[str, Any] = {"position": position.astype(float), "axis": np.array(axes)}
    if "intensity" in columns:
        arrays["intensity"] = _numbers("intensity", columns["intensity"])
    if "species" in columns:
        arrays.update(_species(columns["species"]))
    return arrays


def _species(cells: list[str]) -> dict[str, Any]:
    """Codes as they are; names such as Mo and S become codes in alphabetical order."""
    if any(_is_number(cell) or not cell for cell in cells):
        return {"species": _numbers("species", cells)}
    names, codes = np.unique([clean(cell) for cell in cells], return_inverse=True)
    return {"species": codes.astype(np.int64), "species_names": [str(name) for name in names]}


def _table(columns: Columns) -> dict[str, Any]:
    columns = dict(columns)
    arrays: dict[str, Any] = {}
    if "block" in columns:
        arrays["block"] = _numbers("block", columns.pop("block"))
    if not columns:
        raise DataError("table: there is no column but 'block'")
    text = [name for name, cells in columns.items() if not _is_number(cells[0])]
    if text:
        raise DataError(
            f"table: expected numbers, found text in {', '.join(map(repr, text))} (first "
            f"{clean(columns[text[0]][0], 40)!r}); write numbers with a point, code names as numbers"
        )
    arrays["value"] = np.column_stack([_numbers(name, cells) for name, cells in columns.items()])
    arrays["variable"] = np.array(list(columns))
    return arrays


_BUILDERS: dict[str, Callable[[Columns], dict[str, Any]]] = {
    "profile": _profile,
    "atoms": _atoms,
    "table": _table,
}


def _renamed_units(kind: str, units: dict[str, str], arrays: dict[str, Any]) -> dict[str, Any]:
    """Units of columns that went into one variable, which must be the same."""
    sources = {
        "atoms": ("position", list(PLACES)),
        "profile": ("value", [name for name in units if name.startswith("value")]),
        "table": ("value", []),
    }
    target, names = sources[kind]
    found = {units[name] for name in names if name in units}
    if len(found) > 1:
        raise DataError(
            f"{kind}: columns {', '.join(name for name in names if name in units)} have different "
            f"units {sorted(found)}; convert them to one"
        )
    if kind == "table" and any(name in units for name in arrays["variable"]):
        arrays["variable_units"] = [units.get(str(name), "1") for name in arrays["variable"]]
    return {target: found.pop()} if found else {}
