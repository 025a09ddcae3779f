"""Microscopes' own formats, through RosettaSciIO.

Only readers that keep to one file and neither evaluate nor unpickle what they find are used.
"""

from __future__ import annotations

import importlib
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..kinds import DataError
from .arrange import arrange, choose
from .hdf import inspect_hdf5
from .limits import array_bytes, check_bytes, check_inflation
from .signal import Axis, Hints, Signal, clean

__all__ = ["VENDOR", "read_vendor"]

# Suffix to RosettaSciIO's module. Its readers of .nc (evaluates text), .mrcz, .zspy and .prz
# (can unpickle) are left out on purpose.
VENDOR = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".hspy": "hspy",
    ".ser": "tia",
    ".mrc": "mrc",
    ".nxs": "nexus",
    ".sur": "digitalsurf",
    ".wdf": "renishaw",
    ".unf": "semper",
}
HDF5_BASED = (".emd", ".hspy", ".nxs")
TIFFS = (".tif", ".tiff")
# Rectangles and colours have four; the reader's time grows with the square.
MOST_FIELDS = 1000
TALKATIVE = ("rsciio", "tifffile")
MISSING = 'reading this format needs RosettaSciIO: pip install "atomzoo[microscopy]"'
# Deflate, and the number it had before: what TIFF compresses with zlib.
TIFF_DEFLATE = (8, 32946)


def read_vendor(path: Path, hints: Hints) -> xr.Dataset:
    """One image, or one channel of several, with its pixel size."""
    suffix = path.suffix.lower()
    reader = _module(VENDOR[suffix])
    if suffix in HDF5_BASED:
        inspect_hdf5(path)
    elif suffix in TIFFS:
        _inspect_tiff(path)
    else:
        check_bytes("the file", path.stat().st_size)
    if VENDOR[suffix] == "digitalmicrograph":
        with _quiet():
            _inspect_gatan(path)
    # What was looked through above is read at once, so that no handle stays open; of the others
    # only the array that is chosen is read.
    lazy = suffix not in (*HDF5_BASED, *TIFFS)
    with _quiet():
        found = reader.file_reader(str(path), lazy=lazy, **_options(path))
        signals = [_signal(one, i) for i, one in enumerate(found) if "data" in one]
        signal, notes = choose(signals, hints)
        data = arrange(signal, hints)
    if suffix == ".ser":
        notes.setdefault("note", "a .ser file does not say whether it is an image; taken as one")
    return data.assign_attrs(notes)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"rsciio.{name}")
    except ImportError as error:
        if (error.name or "").split(".")[0] == "rsciio":
            raise DataError(MISSING) from None
        raise DataError(f"{MISSING} (missing: {clean(error.name)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the readers' remarks on metadata that nobody asked for."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            except Exception as error:
                # Readers that fail leave their files open; what is no longer held is closed here.
                traceback.clear_frames(error.__traceback__)
                raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _options(path: Path) -> dict[str, Any]:
    """Velox files hold streams of single X-ray counts that unfold to far more than the file."""
    if path.suffix.lower() != ".emd":
        return {}
    import h5py

    with h5py.File(path, "r") as file:
        return {"select_type": "images"} if "Data/Image" in file else {}


def _inspect_gatan(path: Path) -> None:
    """Walk the tags of a Gatan file once with every count held against the size of the file.

    A tag may promise any number of elements of no size at all, and the reader makes a list of them.
    """
    from rsciio.digitalmicrograph._api import DigitalMicrographReader

    size = path.stat().st_size

    def bounded(count: int) -> int:
        if not 0 <= count <= size:
            raise DataError(f"a tag promises {count} elements in a file of {size} bytes")
        return count

    class Bounded(DigitalMicrographReader):  # type: ignore[misc, unused-ignore]
        def read_array(self, size: int, *args: Any, **kwargs: Any) -> Any:
            return super().read_array(bounded(size), *args, **kwargs)

        def read_string(self, length: int, *args: Any, **kwargs: Any) -> Any:
            return super().read_string(bounded(length), *args, **kwargs)

        def parse_struct_definition(self) -> tuple[int, ...]:
            place = self.f.tell()
            self.read_l_or_q(self.f, "big")
            if self.read_l_or_q(self.f, "big") > MOST_FIELDS:
                raise DataError(f"a tag has more than {MOST_FIELDS} fields; the file is damaged")
            self.f.seek(place)
            return super().parse_struct_definition()

    with path.open("rb") as file:
        Bounded(file).parse_file()


def _inspect_tiff(path: Path) -> None:
    """Refuse what is too large, cut short, or holds more than it declares."""
    import tifffile

    with _quiet(), tifffile.TiffFile(path) as file:
        if not len(file.pages):
            raise DataError("there is no page in it; the file is damaged")
        total = 0
        for page in file.pages:
            frame = page.aspage() if isinstance(page, tifffile.TiffFrame) else page
            if frame.dtype is None:
                raise DataError("a page has no type of number")
            total += array_bytes(frame.shape, frame.dtype)
            check_bytes("the pages", total)
            _check_segments(file, frame)


def _check_segments(file: Any, page: Any) -> None:
    whole = array_bytes(page.shape, page.dtype)
    if page.compression == 1 and sum(page.databytecounts) < whole:
        raise DataError(f"an image of shape {page.shape} has too few bytes; it is truncated")
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset + size > file.filehandle.size:
            raise DataError("the file ends within the image; it is truncated")
        if page.compression in TIFF_DEFLATE:
            file.filehandle.seek(offset)
            check_inflation("a strip of the image", file.filehandle.read(size), whole)


def _signal(found: Mapping[str, Any], number: int) -> Signal:
    values = found["data"]
    axes = tuple(_axis(values.shape[i], axis) for i, axis in _ordered(found, values.ndim))
    general = found.get("metadata", {}).get("General", {})
    signal_type = found.get("metadata", {}).get("Signal", {}).get("signal_type", "")
    return Signal(
        load=lambda: _computed(values),
        shape=tuple(int(size) for size in values.shape),
        dtype=np.dtype(values.dtype),
        axes=axes,
        name=clean(general.get("title", "")),
        units=_quantity(found),
        # A spectrum, or a row of them, is no picture, whatever its number of dimensions.
        picture=not signal_type and _is_flat(found, values.shape),
        path=str(number),
    )


def _is_flat(found: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    shown = [a for a in found.get("axes", []) if not a.get("navigate", False)]
    return len(shown) >= 2 or len([s for s in shape if s > 1]) == 2


def _ordered(found: Mapping[str, Any], ndim: int) -> list[tuple[int, Mapping[str, Any]]]:
    listed = list(found.get("axes", []))
    if len(listed) != ndim:
        return [(i, {}) for i in range(ndim)]
    placed = {int(axis.get("index_in_array", i)): axis for i, axis in enumerate(listed)}
    return [(i, placed.get(i, {})) for i in range(ndim)]


def _axis(size: int, axis: Mapping[str, Any]) -> Axis:
    name = clean(axis.get("name") or "")
    units = axis.get("units")
    text = clean(units) if isinstance(units, (str, bytes)) else ""
    if "axis" in axis and np.shape(axis["axis"]) == (size,):
        return Axis(name, text or None, np.asarray(axis["axis"], dtype=float))
    scale, offset = axis.get("scale"), axis.get("offset", 0.0)
    # Files without calibration say scale 1 and no unit, some pixel as one.
    if scale is None or not text or text.lower() in ("px", "pixel", "pixels", "undefined", "none"):
        return Axis(name)
    return Axis(name, text, float(offset) + float(scale) * np.arange(size))


def _quantity(found: Mapping[str, Any]) -> str | None:
    quantity = clean(found.get("metadata", {}).get("Signal", {}).get("quantity", ""))
    if not quantity:
        return _gatan_unit(found)
    # RosettaSciIO writes "name (unit)".
    inner = quantity.rsplit("(", 1)[-1].removesuffix(")") if quantity.endswith(")") else quantity
    return inner or None


def _gatan_unit(found: Mapping[str, Any]) -> str | None:
    """Unit of the stored numbers; with a scale or origin it would be that of other numbers."""
    node: Any = found.get("original_metadata", {})
    for name in ("ImageList", "TagGroup0", "ImageData", "Calibrations", "Brightness"):
        node = node.get(name) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping) or (node.get("Scale"), node.get("Origin")) != (1, 0):
        return None
    unit = node.get("Units")
    return (clean(unit) or None) if isinstance(unit, str) else None


def _computed(values: Any) -> np.ndarray:
    """The values of a lazy array, in this thread: files do not like to be read from several."""
    compute = getattr(values, "compute", None)
    return np.asarray(compute(scheduler="single-threaded") if compute else values)
