"""From an array, or named arrays, to a dataset of a kind.

A kind is guessed only when nothing else fits; a pixel size is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, dataset, measured_kinds
from .limits import array_bytes, check_bytes
from .signal import Axis, Hints, Signal, clean, length_factor

__all__ = ["arrange", "assemble", "choose"]

AXIS_NAMES = ("x", "y", "z")
# Rows of pixels are grouped in so many tiles a side, so that leave-block-out has blocks to leave.
TILES = 4
# Which variables and coordinates are places, in nm wherever the file had another unit.
LENGTHS_OF = {
    "image": ("y", "x"),
    "atoms": ("position",),
    "patches": ("center",),
    "pairs": ("center",),
    "profile": ("x",),
    "field": ("y", "x"),
    "tracks": ("position",),
}


@dataclass(frozen=True)
class Block:
    """A signal that has been read."""

    values: np.ndarray
    axes: tuple[Axis, ...]
    signal: Signal

    def moved(self, order: tuple[int, ...]) -> Block:
        """The same with its dimensions in another order."""
        return replace(
            self,
            values=np.transpose(self.values, order),
            axes=tuple(self.axes[i] for i in order),
        )


def choose(signals: list[Signal], hints: Hints) -> tuple[Signal, dict[str, Any]]:
    """One of the signals in a file, and attributes that say what was chosen and what else is there.

    The user's channel, else the first image, else the first.
    """
    if not signals:
        raise DataError("there is no array of numbers in it")
    labels = _labels(signals)
    if hints.channel is not None:
        at = _find_channel(signals, labels, hints.channel)
    else:
        pictures = [i for i, one in enumerate(signals) if _is_picture(one)]
        at = pictures[0] if pictures else 0
    notes: dict[str, Any] = {}
    if len(signals) > 1:
        others = [label for i, label in enumerate(labels) if i != at]
        how = "asked for" if hints.channel is not None else "taken first"
        notes["channels"] = labels[:100]
        notes["note"] = clean(
            f"channel {labels[at]!r} {how}; also in the file: {', '.join(map(repr, others))}", 500
        )
    return signals[at], notes


def _labels(signals: list[Signal]) -> list[str]:
    labels = [clean(one.label) for one in signals]
    # Labels that repeat cannot be picked by: the path in the file tells them apart.
    return [
        label if labels.count(label) == 1 else clean(one.path or f"{label} {i}")
        for i, (label, one) in enumerate(zip(labels, signals, strict=True))
    ]


def _find_channel(signals: list[Signal], labels: list[str], channel: str | int) -> int:
    text = str(channel)
    for i, (label, one) in enumerate(zip(labels, signals, strict=True)):
        if text in (label, one.path, one.path.strip("/")):
            return i
    if text.isdecimal() and int(text) < len(signals):
        return int(text)
    listed = ", ".join(f"{i} {label!r}" for i, label in enumerate(labels[:20]))
    raise DataError(f"there is no channel {text!r}; channels found: {listed}")


def _is_picture(signal: Signal) -> bool:
    if len(signal.shape) != 2 or min(signal.shape) < 2:
        return False
    return signal.picture or [axis.role for axis in signal.axes] == ["space", "space"]


def arrange(signal: Signal, hints: Hints) -> xr.Dataset:
    """Read a signal and make it data of a kind."""
    check_bytes(f"array {signal.label!r}", array_bytes(signal.shape, signal.dtype))
    signal = _squeezed(_plane(signal, hints))
    kind = hints.kind or _guess(signal, hints)
    if kind not in measured_kinds():
        raise DataError(f"unknown kind {kind!r}: expected one of {', '.join(measured_kinds())}")
    values = _native(np.asarray(signal.load()))
    block = _named_order(Block(values, signal.axes, signal))
    if kind not in _BUILDERS:
        raise DataError(
            f"{kind} needs several arrays ({', '.join(measured_kinds()[kind].variables)}); "
            "put them in one .npz under those names"
        )
    arrays, units = _BUILDERS[kind](block, hints)
    return assemble(measured_kinds()[kind], arrays, units, hints)


def _native(values: np.ndarray) -> np.ndarray:
    """The same numbers in this machine's byte order, which tensors need."""
    if values.dtype.names:
        names = ", ".join(map(clean, values.dtype.names))
        raise DataError(f"it has several numbers a pixel ({names}); save one channel, in grey")
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)


def _squeezed(signal: Signal) -> Signal:
    """Without the axes of one point that formats with described axes carry along."""
    kept = tuple(i for i, size in enumerate(signal.shape) if size > 1)
    if not signal.picture or len(kept) < 2 or len(kept) == len(signal.shape):
        return signal
    shape = tuple(signal.shape[i] for i in kept)
    return replace(
        signal,
        load=lambda: np.asarray(signal.load()).reshape(shape),
        shape=shape,
        axes=tuple(signal.axes[i] for i in kept),
    )


def _named_order(block: Block) -> Block:
    """Time first, then y before x, wherever the file names its axes."""
    names = [axis.name.strip().lower() for axis in block.axes]
    order = list(range(len(names)))
    if "x" in names and "y" in names and names.index("x") < names.index("y"):
        x, y = names.index("x"), names.index("y")
        order[x], order[y] = y, x
    order.sort(key=lambda i: block.axes[i].role != "time")
    return block.moved(tuple(order))


def _plane(signal: Signal, hints: Hints) -> Signal:
    if hints.plane is None:
        return signal
    axis, at = _plane_axis(signal, hints.plane)
    if not -signal.shape[axis] <= at < signal.shape[axis]:
        raise DataError(f"there is no plane {at}: axis {axis} has {signal.shape[axis]} points")
    rest = tuple(i for i in range(len(signal.shape)) if i != axis)
    return replace(
        signal,
        load=lambda: np.take(np.asarray(signal.load()), at, axis),
        shape=tuple(signal.shape[i] for i in rest),
        axes=tuple(signal.axes[i] for i in rest),
    )


def _plane_axis(signal: Signal, plane: int | tuple[int, int]) -> tuple[int, int]:
    if len(signal.shape) != 3:
        raise DataError(f"plane= needs an array of 3 dimensions, found shape {signal.shape}")
    if isinstance(plane, tuple):
        axis, at = plane
        if axis not in (0, 1, 2):
            raise DataError(f"plane=({axis}, {at}): the axis must be 0, 1 or 2")
        return axis, at
    other = [i for i, axis in enumerate(signal.axes) if axis.role not in ("space", "unknown")]
    if len(other) != 1 or any(axis.role == "unknown" for axis in signal.axes):
        raise DataError(
            f"plane={plane} does not say along which of the axes of shape {signal.shape}; "
            f"write plane=(axis, {plane})"
        )
    return other[0], plane


_BY_ROLES = {
    ("space", "space"): "image",
    ("space",): "profile",
    ("space", "space", "time"): "field",
    ("space", "time"): "field",
}


def _guess(signal: Signal, hints: Hints) -> str:
    roles = tuple(sorted(axis.role for axis in signal.axes))
    if roles in _BY_ROLES:
        return _BY_ROLES[roles]
    if len(signal.shape) == 1 and hints.has_scale:
        return "profile"
    if len(signal.shape) == 2 and (hints.has_scale or signal.picture):
        return "image"
    if "unknown" not in roles:
        raise DataError(_unguessed(signal, roles))
    fitting = _fitting(signal.shape, signal.dtype)
    described = f"an array of shape {signal.shape} and type {signal.dtype}"
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise DataError(f"{described} fits none of the kinds {', '.join(measured_kinds())}")
    ways = [f"kind={name!r}{_WAYS.get(name, '')}" for name in fitting]
    if len(signal.shape) == 3:
        ways.append("plane=(axis, number) for one image of the stack")
    raise DataError(f"{described} could be several kinds; say which: {', or '.join(ways)}")


def _unguessed(signal: Signal, roles: tuple[str, ...]) -> str:
    """Why no kind was chosen for an array whose axes are described, and what the user can say."""
    axes = " and ".join(str(axis) for axis in signal.axes)
    described = f"an array of shape {signal.shape} over {axes} is of no kind by itself"
    if "reciprocal" in roles:
        return f"{described}: it is in reciprocal space, which no kind describes"
    ways = []
    if len(roles) <= 3:
        rows = "axis, value" if len(roles) == 1 else "a row a place, a variable a spectral point"
        ways.append(f"kind='table' ({rows})")
    if len(roles) == 3:
        ways.append("plane=<number> for the image at one spectral point")
    return (
        f"{described}; say {', or '.join(ways)}" if ways else f"{described}; cut it to fewer axes"
    )


_WAYS = {
    "image": " with pixel_size=<nm a pixel>",
    "atoms": " with units={'position': 'nm'}",
    "profile": " with pixel_size=<nm a point>",
    "lattice": " with attrs={'lattice': 'square', 'periodic': 1}",
    "table": " with the last axis as variables",
}


def _fitting(shape: tuple[int, ...], dtype: np.dtype) -> list[str]:
    codes = dtype.kind in "iu"
    last = shape[-1] if shape else 0
    flat, cube = len(shape) == 2, len(shape) == 3
    fits = {
        "image": flat and min(shape) >= 4,
        "atoms": flat and last in (2, 3) and not codes,
        "patches": cube and min(shape[1:]) >= 2,
        "profile": (len(shape) == 1 or flat) and last >= 3,
        "lattice": (flat or cube) and codes and min(shape[-2:]) >= 2,
        "field": (flat or cube) and last >= 3 and not codes,
        "table": (flat or cube) and shape[0] >= 2,
        "states": flat and codes and shape[0] >= 2,
        "tracks": cube and last <= 3,
    }
    return [kind for kind, fit in fits.items() if fit]


Parts = tuple[dict[str, Any], dict[str, str]]


def _image(block: Block, hints: Hints) -> Parts:
    _want_dims("image", block, (2,))
    arrays, units = _main(block, "intensity")
    return _with_lengths(arrays, units, block, hints, ("y", "x"))


def _profile(block: Block, hints: Hints) -> Parts:
    _want_dims("profile", block, (1, 2, 3))
    arrays, units = _main(block, "value")
    names = {1: ("x",), 2: ("", "x"), 3: ("", "x", "")}[block.values.ndim]
    return _with_lengths(arrays, units, block, hints, names)


def _field(block: Block, hints: Hints) -> Parts:
    _want_dims("field", block, (2, 3))
    arrays, units = _main(block, "value")
    time = block.axes[0]
    if time.role == "time" and time.values is not None and time.units:
        arrays["time"], units["time"] = time.values, time.units
    names = ("", "y", "x")[-block.values.ndim :] if block.values.ndim == 3 else ("", "x")
    known = hints.has_scale or all(axis.role == "space" for axis in block.axes[1:])
    return _with_lengths(arrays, units, block, hints, names) if known else (arrays, units)


def _atoms(block: Block, hints: Hints) -> Parts:
    _want_dims("atoms", block, (2,))
    return _main(block, "position")


def _plain(kind: str) -> Callable[[Block, Hints], Parts]:
    """For kinds whose array needs nothing but its name."""

    def build(block: Block, hints: Hints) -> Parts:
        (dims,) = measured_kinds()[kind].variables[measured_kinds()[kind].main]
        allowed = (len(dims), len(dims) - 1) if kind in ("lattice", "patches") else (len(dims),)
        _want_dims(kind, block, allowed)
        return _main(block, measured_kinds()[kind].main)

    return build


def _table(block: Block, hints: Hints) -> Parts:
    """Rows of variables; a spectrum's points, or pixels with a spectrum each, become rows."""
    _want_dims("table", block, (1, 2, 3))
    if block.values.ndim == 1:
        return _spectrum_table(block)
    spectral = _spectral_axis(block)
    grid = tuple(i for i in range(block.values.ndim) if i != spectral)
    block = block.moved((*grid, spectral))
    size = block.values.shape[-1]
    last = block.axes[-1]
    arrays: dict[str, Any] = {
        "value": block.values.reshape(-1, size),
        "variable": np.array([f"{clean(last.name) or 'v'} {i}" for i in range(size)]),
    }
    units = {"value": clean(block.signal.units)} if block.signal.units else {}
    if last.values is not None and last.units:
        name = f"aux_{_identifier(last.name)}"
        arrays[name] = xr.DataArray(last.values, dims="variable")
        units[name] = clean(last.units)
    if len(grid) == 2 or block.axes[0].role == "space":
        arrays["block"] = _tiles(block.values.shape[:-1])
        _add_places(arrays, units, block)
    return arrays, units


def _spectrum_table(block: Block) -> Parts:
    (axis,) = block.axes
    if axis.values is None:
        raise DataError("a table needs rows and variables, found an array of one dimension")
    names = [clean(axis.name) or "x", clean(block.signal.name) or "value"]
    arrays = {
        "value": np.column_stack([axis.values, block.values]),
        "variable": np.array(names if names[0] != names[1] else [names[0], "value"]),
        "variable_units": [clean(axis.units or "1"), clean(block.signal.units or "1")],
    }
    return arrays, {}


def _spectral_axis(block: Block) -> int:
    spectral = [i for i, axis in enumerate(block.axes) if axis.role not in ("space", "unknown")]
    return spectral[-1] if spectral else block.values.ndim - 1


def _tiles(grid: tuple[int, ...]) -> np.ndarray:
    """Number of the tile that each point of a grid is in."""
    count = min(TILES, *grid)
    index = np.zeros(grid, dtype=np.int64)
    for axis, size in enumerate(grid):
        along = np.arange(size) * count // size
        index = index * count + along.reshape([-1 if i == axis else 1 for i in range(len(grid))])
    return index.ravel()


def _add_places(arrays: dict[str, Any], units: dict[str, str], block: Block) -> None:
    grid = block.axes[:-1]
    if any(axis.role != "space" for axis in grid):
        return
    places = np.meshgrid(*(axis.in_nm()[0] for axis in grid), indexing="ij")
    for axis, place in zip(grid, places, strict=True):
        name = f"aux_{_identifier(axis.name)}"
        arrays[name] = xr.DataArray(place.ravel(), dims="row")
        units[name] = axis.in_nm()[1]


def _identifier(name: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in clean(name).lower())
    return kept.strip("_") or "axis"


_BUILDERS: dict[str, Callable[[Block, Hints], Parts]] = {
    "image": _image,
    "atoms": _atoms,
    "patches": _plain("patches"),
    "profile": _profile,
    "lattice": _plain("lattice"),
    "field": _field,
    "table": _table,
    "states": _plain("states"),
    "tracks": _plain("tracks"),
}


def _want_dims(kind: str, block: Block, allowed: tuple[int, ...]) -> None:
    if block.values.ndim not in allowed:
        expected = " or ".join(map(str, allowed))
        raise DataError(
            f"{kind}: expected an array of {expected} dimensions, found shape {block.values.shape}"
        )


def _main(block: Block, name: str) -> Parts:
    units = {name: clean(block.signal.units)} if block.signal.units else {}
    return {name: block.values}, units


def _with_lengths(
    arrays: dict[str, Any],
    units: dict[str, str],
    block: Block,
    hints: Hints,
    names: tuple[str, ...],
) -> Parts:
    for at, name in enumerate(names):
        if name:
            arrays[name], units[name] = _length(block, hints, at, name)
    return arrays, units


def _length(block: Block, hints: Hints, at: int, name: str) -> tuple[np.ndarray, str]:
    axis = block.axes[at]
    size = block.values.shape[at]
    scaled = _scaled(hints, name, size)
    if scaled is not None:
        return scaled
    if name in hints.units and axis.values is not None:
        return axis.values, hints.units[name]
    if axis.role == "space":
        return axis.in_nm()
    if axis.role == "reciprocal":
        raise DataError(
            f"axis {axis} is in reciprocal space: this is a diffraction pattern, "
            "which no kind of data here describes"
        )
    if axis.role != "unknown":
        raise DataError(
            f"axis {axis} is not a length; if the file has it wrong, give pixel_size=<nm a pixel>"
            f" or units={{{name!r}: 'nm'}}"
        )
    raise DataError(
        f"the size of a pixel along {name!r} is not known; give pixel_size=<nm a pixel>, or put "
        '{"pixel_size": <nm a pixel>} in a .json file of the same name'
    )


def _scaled(hints: Hints, name: str, size: int) -> tuple[np.ndarray, str] | None:
    """Coordinates from the pixel size or field of view that the user gave."""
    at = 0 if name == "y" else 1
    if hints.pixel_size is not None:
        return np.arange(size) * hints.pixel_size[at], hints.pixel_size_units
    if hints.field_of_view is not None:
        return np.arange(size) * (hints.field_of_view[at] / size), "nm"
    return None


def assemble(
    kind: Kind, arrays: Mapping[str, Any], units: Mapping[str, str], hints: Hints
) -> xr.Dataset:
    """A valid dataset from named arrays: the user's units over the file's, lengths in nm."""
    arrays = dict(arrays)
    # A pixel size brings its own unit along.
    scaled = ("y", "x") if hints.has_scale else ()
    units = {**units, **{k: v for k, v in hints.units.items() if k not in scaled}}
    attrs = dict(hints.attrs)
    for listed in ("variable_units", "species_names"):
        if texts := arrays.pop(listed, None):
            # NetCDF gives a list of one back as a text.
            attrs[listed] = list(texts) if len(texts) > 1 else texts[0]
    unknown = sorted(set(units) - set(arrays))
    if unknown:
        raise DataError(
            f"units are given for {', '.join(map(repr, unknown))}, not among "
            f"{', '.join(map(repr, arrays))}"
        )
    _convert_covariance(arrays, units)
    _convert_lengths(kind, arrays, units)
    _add_scale(kind, arrays, units, hints)
    position = arrays.get("position")
    if "axis" not in arrays and position is not None and 1 <= np.shape(position)[-1] <= 3:
        arrays["axis"] = np.array(AXIS_NAMES[: np.shape(position)[-1]])
    return dataset(kind.name, units=units, attrs=attrs, **arrays)


def _convert_lengths(kind: Kind, arrays: dict[str, Any], units: dict[str, str]) -> None:
    for name in LENGTHS_OF.get(kind.name, ()):
        found = length_factor(units.get(name))
        if name not in arrays or found is None:
            continue
        factor, unit = found
        if factor != 1:
            arrays[name] = np.asarray(arrays[name]) * factor
        units[name] = unit


def _convert_covariance(arrays: dict[str, Any], units: dict[str, str]) -> None:
    """Covariances in nm², taken to be in the square of the position's unit unless they say."""
    given = units.get("covariance", units.get("position", ""))
    found = length_factor(given.removesuffix("^2").removesuffix("²"))
    if "covariance" in arrays and found is not None:
        factor, unit = found
        arrays["covariance"] = np.asarray(arrays["covariance"]) * factor**2
        units["covariance"] = f"{unit}^2"


def _add_scale(kind: Kind, arrays: dict[str, Any], units: dict[str, str], hints: Hints) -> None:
    """Coordinates from the pixel size, which goes before what the file says."""
    main = np.asarray(arrays.get(kind.main, 0))
    for name in kind.lengths:
        if main.ndim == 0:
            continue
        dims = kind.variables[kind.main][0]
        at = dims.index(name) - (len(dims) if main.ndim == len(dims) else main.ndim)
        if kind.name == "profile" and main.ndim < len(dims):
            at = -1
        scaled = _scaled(hints, name, main.shape[at])
        if scaled is not None:
            arrays[name], units[name] = scaled
