"""HDF5: our own NetCDF, NSID and USID from scanning probes, and plain arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..kinds import DataError, validate
from .arrange import arrange, choose
from .limits import array_bytes, check_bytes, check_dataset, survey
from .signal import Axis, Hints, Signal, clean

if TYPE_CHECKING:
    import h5py

__all__ = ["inspect_hdf5", "read_hdf5", "read_netcdf"]

USID_LINKS = (
    "Position_Indices",
    "Position_Values",
    "Spectroscopic_Indices",
    "Spectroscopic_Values",
)


def read_netcdf(path: Path, hints: Hints) -> xr.Dataset:
    """A dataset as `write` left it, attributes and all."""
    inspect_hdf5(path)
    # Times stay numbers with a unit: that is what the contract has.
    data = xr.load_dataset(
        path, engine="h5netcdf", decode_times=False, decode_timedelta=False, phony_dims="access"
    )
    said = data.attrs.get("kind")
    if hints.kind is not None and said is not None and said != hints.kind:
        raise DataError(f"the file says that it is kind={clean(said)!r}, not {hints.kind!r}")
    if hints.kind is not None:
        data.attrs["kind"] = hints.kind
    data.attrs.update(hints.attrs)
    for name, unit in hints.units.items():
        if name not in data.variables:
            raise DataError(f"units are given for {name!r}, which is not in the file")
        data[name].attrs["units"] = unit
    return validate(data)


def inspect_hdf5(path: Path) -> None:
    """Refuse a file that points outside itself or declares more than the limit."""
    with _opened(path) as file:
        items = survey(file).values()
        total = sum(array_bytes(item.shape or (), item.dtype) for item in items)
        check_bytes("the file's arrays", total)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    import h5py

    with h5py.File(path, "r") as file:
        yield file


def read_hdf5(path: Path, hints: Hints) -> xr.Dataset:
    """Our own file, or one of the arrays of NSID, USID and plain HDF5."""
    with _opened(path) as file:
        if "kind" in file.attrs:
            own = True
        else:
            own = False
            signal, notes = choose(_signals(survey(file)), hints)
            data = arrange(signal, hints)
    if own:
        return read_netcdf(path, hints)
    return data.assign_attrs(notes)


def _signals(items: dict[str, h5py.Dataset]) -> list[Signal]:
    numeric = [item for item in items.values() if item.shape and item.dtype.kind in "biufc"]
    usid = [item for item in numeric if all(link in item.attrs for link in USID_LINKS)]
    if usid:
        return [_usid(item) for item in usid]
    nsid = [item for item in numeric if "main_data_name" in item.attrs]
    arrays = [item for item in numeric if not item.is_scale]
    return [_scaled(item) for item in nsid or arrays]


def _text(item: h5py.Dataset, name: str) -> str | None:
    value = item.attrs.get(name)
    return clean(value) if isinstance(value, (str, bytes)) and clean(value) else None


def _scaled(item: h5py.Dataset) -> Signal:
    """An array with dimension scales for axes, as NSID has them, or with none."""
    return Signal(
        load=lambda: item[()],
        shape=item.shape,
        dtype=item.dtype,
        axes=tuple(_scale_axis(item, i) for i in range(item.ndim)),
        name=_text(item, "quantity") or "",
        units=_text(item, "units"),
        picture=_text(item, "data_type") == "IMAGE",
        path=clean(item.name),
    )


def _scale_axis(item: h5py.Dataset, at: int) -> Axis:
    """The dimension scale attached to an axis."""
    dimension = item.dims[at]
    if not len(dimension):
        return Axis(clean(dimension.label))
    scale = dimension[0]
    if scale.shape != (item.shape[at],) or scale.dtype.kind not in "iuf":
        return Axis(clean(dimension.label))
    # It is referred to, and need not have been met on the way through the file.
    check_dataset(scale)
    name = clean(dimension.label) or _text(scale, "name") or clean(scale.name.rsplit("/", 1)[-1])
    return Axis(name, _text(scale, "units"), scale[()])


def _usid(item: h5py.Dataset) -> Signal:
    """Positions × spectroscopic points, folded back to one dimension each."""
    if item.ndim != 2:
        raise DataError(f"USID dataset {item.name!r} must have 2 dimensions, found {item.shape}")
    places, place_order = _usid_side(item, "Position", item.shape[0])
    points, point_order = _usid_side(item, "Spectroscopic", item.shape[1])
    axes = tuple(places + points)
    shape = tuple(len(_values(axis)) for axis in axes)

    def load() -> np.ndarray:
        values = item[()]
        return np.asarray(values[place_order][:, point_order]).reshape(shape)

    return Signal(
        load=load,
        shape=shape,
        dtype=item.dtype,
        axes=axes,
        name=_text(item, "quantity") or "",
        units=_text(item, "units"),
        picture=[len(places), item.shape[1]] == [2, 1],
        path=clean(item.name),
    )


def _values(axis: Axis) -> np.ndarray:
    return axis.values if axis.values is not None else np.zeros(0)


def _usid_side(item: h5py.Dataset, side: str, size: int) -> tuple[list[Axis], np.ndarray]:
    """The axes that one side of the matrix unfolds into, and the order that unfolds it."""
    indices, values = _ancillary(item, f"{side}_Indices"), _ancillary(item, f"{side}_Values")
    index, value = np.atleast_2d(indices[()]), np.atleast_2d(values[()])
    if side == "Spectroscopic":
        index, value = index.T, value.T
    count = index.shape[1] if index.ndim == 2 else 0
    if index.shape != value.shape or index.shape[0] != size:
        raise DataError(
            f"USID {side}_Indices and {side}_Values must have {size} entries, found "
            f"{indices.shape} and {values.shape}"
        )
    sizes = [len(np.unique(index[:, i])) for i in range(count)]
    if int(np.prod(sizes)) != size:
        raise DataError(
            f"USID: the {size} entries of {side}_Indices do not fill a grid of "
            f"{' × '.join(map(str, sizes))}; export the full grid"
        )
    names, units = _listed(values, "labels", count), _listed(values, "units", count)
    # USID lists the fastest axis first or last; the one that changes least often goes first here.
    changes = [int(np.count_nonzero(np.diff(index[:, i]))) for i in range(count)]
    slow_first = sorted(range(count), key=lambda i: changes[i])
    order = np.lexsort([index[:, i] for i in reversed(slow_first)])
    axes = []
    for i in slow_first:
        _, first = np.unique(index[:, i], return_index=True)
        axes.append(Axis(names[i], units[i] or None, value[first, i].astype(float)))
    return axes, order


def _ancillary(item: h5py.Dataset, name: str) -> h5py.Dataset:
    import h5py

    found = item.file[item.attrs[name]]
    if not isinstance(found, h5py.Dataset) or not found.shape or found.dtype.kind not in "iuf":
        raise DataError(f"USID: {name} of {item.name!r} must be an array of numbers")
    check_dataset(found)
    check_bytes(f"USID {name}", array_bytes(found.shape, found.dtype))
    return found


def _listed(item: h5py.Dataset, name: str, count: int) -> list[str]:
    listed: Any = np.atleast_1d(item.attrs.get(name, []))
    texts = [clean(text) for text in listed.tolist()[:count]]
    return texts + [""] * (count - len(texts))
