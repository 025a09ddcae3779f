"""The `.json` file beside an array: what a bare array cannot say of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ..kinds import DataError
from .signal import Hints, length_factor, one_line

__all__ = ["pixel_size_in_nm", "read_sidecar"]

# A sidecar is typed by people or written by an instrument; larger ones are something else.
LARGEST_SIDECAR = 1 << 20
# Attributes of the data that a sidecar may set beside its `attrs`.
ATTRIBUTES = ("lattice", "periodic")


def read_sidecar(path: Path) -> Hints:
    """Hints from `X.json` beside `X.npy`, no hints where there is no such file.

    It may hold `kind`, `units`, `channel`, `pixel_size` (a number or [y, x]) with
    `pixel_size_units`, `attrs`, or anywhere within `field_of_view_x`, `field_of_view_y` and
    `field_of_view_units`.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return Hints()
    try:
        return _hints(_parse(sidecar))
    except DataError as error:
        raise DataError(f"its sidecar {sidecar.name}: {error}") from None


def _parse(sidecar: Path) -> dict[str, Any]:
    if sidecar.stat().st_size > LARGEST_SIDECAR:
        raise DataError(f"expected at most {LARGEST_SIDECAR} bytes")
    try:
        content = json.loads(sidecar.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"is not JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"expected an object with names, found {type(content).__name__}")
    return content


def _hints(content: Mapping[str, Any]) -> Hints:
    units = _text_map(content, "units")
    attrs = dict(_mapping(content, "attrs"))
    attrs.update({name: content[name] for name in ATTRIBUTES if name in content})
    kind = content.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise DataError(f"'kind' must be text, found {kind!r}")
    channel = content.get("channel")
    size, unit = None, "nm"
    if "pixel_size" in content:
        size, unit = pixel_size_in_nm(content["pixel_size"], _pixel_unit(content, units))
    return Hints(
        kind=kind,
        channel=channel if isinstance(channel, (str, int)) else None,
        pixel_size=size,
        pixel_size_units=unit,
        field_of_view=_field_of_view(content),
        units=units,
        attrs=attrs,
    )


def _pixel_unit(content: Mapping[str, Any], units: Mapping[str, str]) -> str:
    unit = content.get("pixel_size_units", units.get("x", units.get("y", "nm")))
    return unit if isinstance(unit, str) else repr(unit)


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise DataError(f"{name!r} must be an object with names, found {type(value).__name__}")
    return value


def _text_map(content: Mapping[str, Any], name: str) -> dict[str, str]:
    value = _mapping(content, name)
    wrong = [key for key, unit in value.items() if not isinstance(unit, str)]
    if wrong:
        raise DataError(f"{name!r} must give text for {wrong[0]!r}, found {value[wrong[0]]!r}")
    return dict(value)


def pixel_size_in_nm(size: Any, unit: str) -> tuple[tuple[float, float], str]:
    """A pixel size, a number or (y, x), in nm or unit cells.

    Example:
        >>> pixel_size_in_nm(0.25, "Å")
        ((0.025, 0.025), 'nm')
    """
    pair = size if isinstance(size, (list, tuple)) else (size, size)
    numbers = [s for s in pair if isinstance(s, (int, float)) and not isinstance(s, bool)]
    if len(pair) != 2 or len(numbers) != 2 or not all(isfinite(s) and s > 0 for s in numbers):
        raise DataError(f"pixel_size must be a number above 0, or two for (y, x), found {size!r}")
    found = length_factor(unit)
    if found is None:
        raise DataError(f"the unit of pixel_size must be a length such as nm, found {unit!r}")
    return (numbers[0] * found[0], numbers[1] * found[0]), found[1]


def _field_of_view(content: Mapping[str, Any], depth: int = 4) -> tuple[float, float] | None:
    """Width and height of the image, from wherever in the file they are written."""
    if "field_of_view_x" in content:
        across = content["field_of_view_x"]
        size = (content.get("field_of_view_y", across), across)
        unit = content.get("field_of_view_units")
        if not isinstance(unit, str):
            raise DataError("'field_of_view_x' needs 'field_of_view_units', such as 'nm'")
        try:
            found, unit = pixel_size_in_nm(size, unit)
        except DataError as error:
            raise DataError(str(error).replace("pixel_size", "field_of_view")) from None
        if unit != "nm":
            raise DataError(f"'field_of_view_units' must be a length such as nm, found {unit!r}")
        return found
    if depth:
        for value in content.values():
            if isinstance(value, dict) and (found_in := _field_of_view(value, depth - 1)):
                return found_in
    return None
