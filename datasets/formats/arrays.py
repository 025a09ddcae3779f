"""NumPy's `.npy` and `.npz`, never unpickled and never inflated past the limit."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr
from numpy.lib import format as npy_format

from ..kinds import DataError, Kind, measured_kinds
from .arrange import arrange, assemble
from .limits import array_bytes, check_bytes
from .signal import Hints, Signal, clean, one_line

__all__ = ["read_npy", "read_npz"]

# Coordinates tell apart the kinds that share a variable name.
TELLING = {
    "value": {"variable": "table", "block": "table", "time": "field", "component": "profile"}
}

# Dimensions of one point that people leave out.
SHORTER = {
    "profile": (("x",), ("row", "x")),
    "lattice": (("row", "col"),),
}


def read_npy(path: Path, hints: Hints) -> xr.Dataset:
    """One array; what it is comes from the hints or the sidecar."""
    with path.open("rb") as file:
        shape, dtype = _header(file, "the array")
        held = path.stat().st_size - file.tell()
        if held != array_bytes(shape, dtype):
            raise DataError(
                f"its header promises {array_bytes(shape, dtype)} bytes for shape {shape} of "
                f"{dtype}, found {held}; the file is truncated or damaged"
            )
        file.seek(0)
        values = np.load(file, allow_pickle=False)
    return arrange(Signal.bare(values), hints)


def _header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, read before its values."""
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0
        if version != (1, 0):
            read = npy_format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{what} has no valid NumPy header: {one_line(error)}") from None
    if dtype.hasobject:
        raise DataError(
            f"{what} holds Python objects (a pickle), which are never opened; "
            "save numbers with numpy.save(..., allow_pickle=False)"
        )
    check_bytes(what, array_bytes(shape, dtype))
    return shape, dtype


def read_npz(path: Path, hints: Hints) -> xr.Dataset:
    """Arrays by the names of the kind's variables and coordinates.

    Also `kind`, `units_<name>`, and single numbers or texts, which become attributes.
    """
    arrays = _members(path)
    attrs, units = dict(hints.attrs), {}
    kind = hints.kind
    for name in list(arrays):
        if name == "kind":
            kind = kind or str(arrays.pop(name))
        elif name.startswith("units_"):
            units[name.removeprefix("units_")] = clean(arrays.pop(name))
        elif arrays[name].ndim == 0 and not name.startswith(("true_", "aux_")):
            attrs.setdefault(name, _attribute(arrays.pop(name)))
    hints = Hints(**{**vars(hints), "attrs": attrs, "kind": kind})
    if len(arrays) == 1 and next(iter(arrays)) not in _known_names():
        return arrange(Signal.bare(next(iter(arrays.values()))), hints)
    spec = _kind(kind, arrays)
    return assemble(spec, {n: _native(a) for n, a in arrays.items()}, units, hints)


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _attribute(value: np.ndarray) -> Any:
    return clean(value) if value.dtype.kind in "US" else value.item()


def _known_names() -> set[str]:
    return {
        name for kind in measured_kinds().values() for name in (*kind.variables, *kind.optional)
    }


def _members(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            if not members:
                raise DataError("there is no .npy array in the archive")
            check_bytes("the archive", sum(item.file_size for item in members))
            return {
                clean(item.filename.removesuffix(".npy")): _member(archive, item)
                for item in members
            }
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"the archive cannot be read: {one_line(error)}") from None


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> np.ndarray:
    what = f"array {clean(item.filename.removesuffix('.npy'))!r}"
    with archive.open(item) as file:
        shape, dtype = _header(file, what)
        if array_bytes(shape, dtype) + file.tell() != item.file_size:
            raise DataError(
                f"{what} promises shape {shape} of {dtype}, but the archive lists "
                f"{item.file_size} bytes; the file is damaged"
            )
    with archive.open(item) as file:
        return npy_format.read_array(file, allow_pickle=False)


def _kind(kind: str | None, arrays: dict[str, np.ndarray]) -> Kind:
    if kind is not None:
        if kind not in measured_kinds():
            raise DataError(f"unknown kind {kind!r}: expected one of {', '.join(measured_kinds())}")
        return measured_kinds()[kind]
    fitting = [spec for spec in measured_kinds().values() if _fits(spec, arrays)]
    if len(fitting) > 1:
        fitting = [spec for spec in fitting if _fits(spec, arrays, sizes=True)] or fitting
    told = {TELLING.get(spec.main, {}).get(name) for spec in fitting for name in arrays} - {None}
    if len(told) == 1:
        fitting = [spec for spec in fitting if spec.name in told]
    names = ", ".join(map(repr, sorted(arrays)[:20]))
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        mains = ", ".join(f"{spec.main!r} ({spec.name})" for spec in measured_kinds().values())
        raise DataError(f"its arrays {names} make no kind; expected one named {mains}")
    could = " or ".join(f"kind={spec.name!r}" for spec in fitting)
    raise DataError(f"its arrays {names} could be several kinds; say {could}")


def _fits(kind: Kind, arrays: dict[str, np.ndarray], *, sizes: bool = False) -> bool:
    known = {*kind.variables, *kind.optional, *kind.coords, *kind.lengths, "axis"}
    if any(n not in known and not n.startswith(("true_", "aux_")) for n in arrays):
        return False
    beside = arrays if sizes else {}
    shorter = SHORTER.get(kind.name, ())
    return all(
        name in arrays
        and any(_agrees(arrays[name].shape, dims, beside) for dims in (*allowed, *shorter))
        for name, allowed in kind.variables.items()
    )


def _agrees(shape: tuple[int, ...], dims: tuple[str, ...], beside: dict[str, np.ndarray]) -> bool:
    """Whether an array may have these dimensions, given the coordinates beside it."""
    return len(shape) == len(dims) and all(
        dim not in beside or beside[dim].shape == (size,)
        for dim, size in zip(dims, shape, strict=True)
    )
