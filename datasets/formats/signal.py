"""What a file holds, before it is data of a kind: an array, its axes, and what the user said of it.

Example:
    >>> Axis("x", "Å", np.array([0.0, 5.0])).in_nm()
    (array([0. , 0.5]), 'nm')
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kinds import LENGTHS, DataError

__all__ = ["Axis", "Hints", "Signal", "clean", "length_factor", "one_line"]

# Long enough for any honest title, short enough for a table's cell.
LONGEST_NAME = 120
LONGEST_MESSAGE = 1000

_NM = {
    "m": 1e9,
    "cm": 1e7,
    "mm": 1e6,
    "µm": 1e3,
    "nm": 1.0,
    "å": 0.1,
    "pm": 1e-3,
    "fm": 1e-6,
}
_SPELLINGS = {
    "meter": "m",
    "meters": "m",
    "metre": "m",
    "metres": "m",
    "um": "µm",
    "micron": "µm",
    "microns": "µm",
    "micrometer": "µm",
    "nanometer": "nm",
    "nanometers": "nm",
    "nanometre": "nm",
    "angstrom": "å",
    "angstroms": "å",
    "ångström": "å",
    "ang": "å",
    "picometer": "pm",
    "unit cells": "unit cell",
    "u.c.": "unit cell",
    "uc": "unit cell",
}
_TIMES = {"s", "ms", "us", "µs", "ns", "ps", "fs", "min", "h", "sec", "second", "seconds", "frame"}
# Cathodoluminescence spectra have their wavelength in nm: a length, but not a place.
_SPECTRAL = ("wavelength", "energy", "bias", "voltage", "frequency")


def clean(text: object, longest: int = LONGEST_NAME) -> str:
    r"""Text from a file as one bounded line without control characters.

    Example:
        >>> clean("HAADF\x1b[31m\n image")
        'HAADF[31m image'
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    spaced = " ".join(str(text)[: 10 * longest].split())
    # Category C holds control, format (right-to-left overrides) and surrogate characters.
    kept = "".join(c for c in spaced if not unicodedata.category(c).startswith("C"))
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def one_line(error: object) -> str:
    """An error's message as one bounded line."""
    return clean(error, LONGEST_MESSAGE)


def _plain_unit(unit: object) -> str:
    # The micro sign and Greek mu, the Ångström sign and the letter: each has two code points.
    text = unicodedata.normalize("NFC", clean(unit)).replace("μ", "µ").strip()
    lowered = text.lower()
    return _SPELLINGS.get(lowered, lowered if lowered in _NM or lowered in LENGTHS else text)


def length_factor(unit: object) -> tuple[float, str] | None:
    """Factor to, and name of, the unit that lengths are kept in, or None when it is no length.

    Example:
        >>> length_factor("pm"), length_factor("u.c."), length_factor("eV")
        ((0.001, 'nm'), (1.0, 'unit cell'), None)
    """
    if unit is None:
        return None
    plain = _plain_unit(unit)
    # Upper case tells mega from milli, and M is no metre.
    if plain in _NM and str(unit).strip() not in ("M", "MM", "PM", "FM", "NM"):
        return _NM[plain], "nm"
    return (1.0, "unit cell") if plain == "unit cell" else None


def _is_reciprocal(unit: str) -> bool:
    compact = unit.replace(" ", "").replace("^", "").replace("⁻¹", "-1").replace("**", "")
    inner = compact[2:] if compact.startswith("1/") else compact.removesuffix("-1")
    return inner != compact and length_factor(inner) is not None


@dataclass(frozen=True)
class Axis:
    """One axis of an array as the file describes it.

    Attributes:
        name: the file's name for it, may be empty.
        units: the file's unit, None when it gives none.
        values: where the points are, None when it does not say.
    """

    name: str = ""
    units: str | None = None
    values: np.ndarray | None = None

    @property
    def role(self) -> str:
        """`space`, `reciprocal`, `time`, `other` or `unknown`."""
        if self.units is None or self.values is None:
            return "unknown"
        if any(word in self.name.lower() for word in _SPECTRAL):
            return "other"
        if length_factor(self.units):
            return "space"
        if _is_reciprocal(self.units):
            return "reciprocal"
        return "time" if self.units.lower() in _TIMES else "other"

    def in_nm(self) -> tuple[np.ndarray, str]:
        """The points in nm, or in unit cells."""
        found = length_factor(self.units)
        if found is None or self.values is None:
            raise DataError(f"axis {self.name!r} is in {self.units!r}, which is not a length")
        factor, unit = found
        return (self.values if factor == 1 else self.values * factor), unit

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} [{self.units or 'no unit'}]"


@dataclass(frozen=True)
class Signal:
    """An array in a file, not read yet.

    Attributes:
        load: reads the array.
        shape: its shape.
        dtype: its type.
        axes: one for each dimension.
        name: what the file calls the quantity.
        units: the unit of its values.
        picture: the file's format says that two dimensions are an image.
        path: where in the file it is.
    """

    load: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[Axis, ...]
    name: str = ""
    units: str | None = None
    picture: bool = False
    path: str = ""

    @classmethod
    def bare(cls, values: np.ndarray) -> Signal:
        """An array of which nothing else is known."""
        return cls(lambda: values, values.shape, values.dtype, (Axis(),) * values.ndim)

    @property
    def label(self) -> str:
        """What people pick the channel by."""
        return self.name or self.path.rsplit("/", 1)[-1] or "data"


@dataclass(frozen=True)
class Hints:
    """What the user, or the sidecar file, says of a file.

    Attributes:
        kind: the kind of data it is.
        channel: which of several arrays, by name or number.
        plane: which point along the axis that is not in space, or (axis, point).
        pixel_size: nm or unit cells a pixel, (y, x).
        pixel_size_units: `nm` or `unit cell`.
        field_of_view: nm across the whole image, (y, x).
        units: unit of a variable or coordinate, by name.
        attrs: attributes to add, such as `lattice` and `periodic`.
    """

    kind: str | None = None
    channel: str | int | None = None
    plane: int | tuple[int, int] | None = None
    pixel_size: tuple[float, float] | None = None
    pixel_size_units: str = "nm"
    field_of_view: tuple[float, float] | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_scale(self) -> bool:
        """Whether the size of a pixel is known."""
        return self.pixel_size is not None or self.field_of_view is not None
