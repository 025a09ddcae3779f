"""Data from files, and to files: `read` knows what microscopes write, `write` leaves NetCDF.

Nothing is ever unpickled, no pixel size is ever invented, and a file that promises more than
2 GiB is refused before it is unpacked (`max_bytes=` or the variable `ATOMZOO_MAX_BYTES` raise that).

Example:
    >>> import tempfile
    >>> from .kinds import dataset
    >>> wall = dataset("profile", value=[-1.0, 0.0, 1.0], x=[0.0, 1.0, 2.0],
    ...                units={"x": "nm", "value": "C/m^2"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = read(write(wall, folder + "/wall.nc"))
    >>> again.identical(wall)
    True
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .formats.arrays import read_npy, read_npz
from .formats.hdf import read_hdf5, read_netcdf
from .formats.limits import LIMIT_VARIABLE, allow
from .formats.sidecar import pixel_size_in_nm, read_sidecar
from .formats.signal import Hints, clean, one_line
from .formats.text import read_csv
from .formats.vendor import VENDOR, read_vendor
from .kinds import DataError, validate

__all__ = ["LIMIT_VARIABLE", "SUFFIXES", "read", "write"]

Reader = Callable[[Path, Hints], xr.Dataset]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: what people call it.
        read: its reader.
        signature: what its first bytes must show, a name in `_SIGNATURES`, or none.
        sidecar: whether a `.json` beside it is read.
    """

    name: str
    read: Reader
    signature: str = ""
    sidecar: bool = False


# First bytes, and what they show; the first that fits.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"CDF\x01", "NetCDF 3"),
    (b"CDF\x02", "NetCDF 3"),
    (b"CDF\x05", "NetCDF 3"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"\0\0\0\x03", "a Gatan DM3"),
    (b"\0\0\0\x04", "a Gatan DM4"),
    (b"II\x97\x01", "a TIA series"),
    (b"\x89PNG", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"GIF8", "a GIF"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x80\x02", "a Python pickle, which is never opened"),
    (b"\x80\x03", "a Python pickle, which is never opened"),
    (b"\x80\x04", "a Python pickle, which is never opened"),
    (b"\x80\x05", "a Python pickle, which is never opened"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)
_VENDOR_SIGNATURES = {
    ".tif": "a TIFF",
    ".tiff": "a TIFF",
    ".dm3": "a Gatan DM3",
    ".dm4": "a Gatan DM4",
    ".ser": "a TIA series",
    ".emd": "HDF5",
    ".hspy": "HDF5",
    ".nxs": "HDF5",
}
# HDF5 may begin after a block of the user's own, at these places.
_HDF5_STARTS = (512, 1024, 2048)

_FORMATS: dict[str, Format] = {
    ".nc": Format("NetCDF", read_netcdf, "HDF5"),
    ".h5": Format("HDF5", read_hdf5, "HDF5"),
    ".hdf5": Format("HDF5", read_hdf5, "HDF5"),
    ".npy": Format("NumPy", read_npy, "a NumPy array", sidecar=True),
    ".npz": Format("NumPy archive", read_npz, "a zip archive", sidecar=True),
    ".csv": Format("CSV", read_csv, "text"),
    **{
        suffix: Format(
            f"RosettaSciIO {module}",
            read_vendor,
            _VENDOR_SIGNATURES.get(suffix, ""),
            sidecar=module == "tiff",
        )
        for suffix, module in VENDOR.items()
    },
}
SUFFIXES = tuple(_FORMATS)
WRITTEN = (".nc", ".h5", ".hdf5")


def read(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    channel: str | int | None = None,
    plane: int | tuple[int, int] | None = None,
    pixel_size: float | tuple[float, float] | None = None,
    pixel_size_units: str = "nm",
    units: Mapping[str, str] | None = None,
    attrs: Mapping[str, Any] | None = None,
    max_bytes: int | None = None,
) -> xr.Dataset:
    """Read a file into a valid dataset.

    Our own NetCDF comes back as it was written. From any other file lengths come in nm, and the
    attributes `source`, `reader` and `sha256` say where the data are from.

    Args:
        path: the file; its suffix, one of `SUFFIXES`, says how to read it.
        kind: the kind of data, where the file leaves it open.
        channel: which of several arrays in the file, by name or number.
        plane: the image at one point of a stack or of spectra; `(axis, point)` where the axes have
            no names.
        pixel_size: of a pixel, or (y, x); goes before what the file says.
        pixel_size_units: a length, or `unit cell`.
        units: unit of a variable or coordinate, by name; goes before what the file says.
        attrs: attributes to add, such as `{"lattice": "square", "periodic": 1}`.
        max_bytes: most memory that the file may fill.

    Raises:
        DataError: one line that says what is wrong with which file, and what to do.
    """
    file = Path(path).expanduser()
    with _one_line(file.name, "read"), allow(max_bytes):
        form = _format(file)
        _check_signature(file, form)
        hints = _hints(
            read_sidecar(file) if form.sidecar else Hints(),
            Hints(kind, channel, plane, units=units or {}, attrs=attrs or {}),
            pixel_size,
            pixel_size_units,
        )
        # What overflows here is infinite, and refused as that.
        with np.errstate(all="ignore"):
            data = form.read(file, hints)
        # What `write` left keeps the provenance that it was written with.
        if "source" not in data.encoding:
            data = data.assign_attrs(
                source=clean(file.name), reader=form.name, sha256=_sha256(file)
            )
        return validate(data)


def _hints(
    sidecar: Hints, given: Hints, pixel_size: float | tuple[float, float] | None, unit: str
) -> Hints:
    """What the caller says, over what the sidecar says."""
    hints = replace(
        sidecar,
        kind=given.kind or sidecar.kind,
        channel=sidecar.channel if given.channel is None else given.channel,
        plane=given.plane,
        units={**sidecar.units, **given.units},
        attrs={**sidecar.attrs, **given.attrs},
    )
    if pixel_size is None:
        return hints
    size, unit = pixel_size_in_nm(pixel_size, unit)
    return replace(hints, pixel_size=size, pixel_size_units=unit)


def _format(file: Path) -> Format:
    suffix = file.suffix.lower()
    if file.is_dir():
        raise DataError("it is a folder; expected a file")
    if not file.exists():
        raise DataError(f"there is no such file in {clean(file.parent, 400)}")
    if not file.is_file():
        raise DataError("it is not a regular file")
    if suffix not in _FORMATS:
        named = f"the suffix {suffix!r} is not known" if suffix else "the name has no suffix"
        raise DataError(f"{named}; expected one of {' '.join(SUFFIXES)}")
    if file.stat().st_size == 0:
        raise DataError("the file is empty")
    return _FORMATS[suffix]


def _check_signature(file: Path, form: Format) -> None:
    """The first bytes must agree with the name."""
    with file.open("rb") as opened:
        first = opened.read(16)
        found = next((name for start, name in _SIGNATURES if first.startswith(start)), None)
        for start in _HDF5_STARTS if found is None else ():
            opened.seek(start)
            if opened.read(8) == b"\x89HDF\r\n\x1a\n":
                found = "HDF5"
    suffix = file.suffix
    if form.signature == "text" or not form.signature:
        if found is not None and not (form.signature == "" and found.startswith("a Gatan")):
            raise DataError(f"the name says {suffix} but it is {found}")
    elif found == "NetCDF 3" and suffix == ".nc":
        raise DataError("it is NetCDF 3; save it as NetCDF 4 (nccopy -k nc4 old.nc new.nc)")
    elif found is None:
        raise DataError(
            f"the name says {suffix} but it does not begin as {form.signature} does "
            f"(first bytes {first[:8]!r})"
        )
    elif found != form.signature:
        raise DataError(f"the name says {suffix} but it is {found}")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _one_line(name: str, what: str) -> Iterator[None]:
    """Every failure as one line with the file's name; whose parser failed is of no use to anyone."""
    where = clean(name)
    try:
        yield
    except DataError as error:
        raise DataError(one_line(f"{where}: {error}")) from None
    except PermissionError:
        raise DataError(f"{where}: no permission to {what} it") from None
    except MemoryError:
        raise DataError(f"{where}: it does not fit in memory") from None
    except Exception as error:  # noqa: BLE001  hostile bytes raise anything in other people's parsers
        reason = clean(error, 300) or type(error).__name__
        damaged = "; it may be truncated or damaged" if what == "read" else ""
        raise DataError(f"{where}: cannot {what} it: {reason}{damaged}") from None


def write(data: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a valid dataset as NetCDF, all of it or nothing.

    The file is made beside its target and moved over it when it is whole on the disk, so that
    another process, or a crash, sees the old file or the new one.

    Args:
        data: what `validate` accepts.
        path: the target, with suffix `.nc`, `.h5` or `.hdf5`.

    Returns:
        The path of the file.

    Raises:
        DataError: one line that says what could not be written, and why.
    """
    target = Path(path).expanduser()
    with _one_line(target.name, "write"):
        if target.suffix.lower() not in WRITTEN:
            raise DataError(f"data are written as NetCDF: name it {target.stem or 'data'}.nc")
        # Through a link, so that it is the file that is replaced and not the link.
        real = Path(os.path.realpath(target))
        if real.is_dir():
            raise DataError("it is a folder; expected the name of a file")
        if not real.parent.is_dir():
            raise DataError(f"there is no folder {clean(real.parent, 400)}")
        _replace(_storable(validate(data)), real)
    return target


def _replace(data: xr.Dataset, target: Path) -> None:
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        encoding: dict[Any, dict[str, Any]] = {
            name: {"_FillValue": None}
            for name, one in data.variables.items()
            if one.dtype.kind == "f"
        }
        data.to_netcdf(part, engine="h5netcdf", encoding=encoding)
        _sync(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    # The rename itself is on the disk only when the folder is; some systems cannot open folders.
    with suppress(OSError):
        _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storable(data: xr.Dataset) -> xr.Dataset:
    """The same data as NetCDF can keep it, or a `DataError` that names what it cannot."""
    plain = data.compute().drop_encoding()
    for name, variable in plain.variables.items():
        _check_name("variable", name)
        if variable.dtype.kind not in "biufUO":
            raise DataError(
                f"variable {name!r}: a file keeps numbers and text, not {variable.dtype}"
            )
        if variable.dtype.kind == "O" and not all(isinstance(v, str) for v in variable.values.flat):
            raise DataError(f"variable {name!r}: a file keeps numbers and text, not Python objects")
        variable.attrs = _storable_attrs(f"variable {name!r}: ", variable.attrs)
    for dim in plain.dims:
        _check_name("dimension", dim)
    plain.attrs = _storable_attrs("", plain.attrs)
    return plain


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or clean(name, 1000) != name or "/" in name:
        raise DataError(f"{what} {name!r}: a name must be one line of text without '/'")


def _storable_attrs(where: str, attrs: Mapping[Any, Any]) -> dict[str, Any]:
    stored = {}
    for name, value in attrs.items():
        _check_name(f"{where}attribute", name)
        items = value if isinstance(value, (list, tuple)) else [value]
        kinds = {np.asarray(item).dtype.kind for item in items}
        if not (kinds <= set("biuf") or kinds == {"U"}):
            raise DataError(
                f"{where}attribute {name!r}: a file keeps text, numbers and lists of either, "
                f"found {type(value).__name__}"
            )
        # NetCDF has no truth values.
        stored[name] = np.asarray(value).astype(np.int8) if kinds == {"b"} else value
    return stored
