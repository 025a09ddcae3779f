"""The data contract: ten kinds of observation, each an `xarray.Dataset` of known shape and units.

Example:
    >>> import numpy as np
    >>> wall = dataset("profile", value=np.tanh(np.linspace(-3, 3, 7)), x=np.arange(7.0),
    ...                units={"x": "unit cell", "value": "C/m^2"})
    >>> dict(wall.sizes)
    {'row': 1, 'x': 7, 'component': 1}
    >>> validate(wall) is wall
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import xarray as xr

__all__ = [
    "KINDS",
    "DataError",
    "Kind",
    "add_kind",
    "dataset",
    "find_kind",
    "kind_of",
    "measured_kinds",
    "validate",
]

# Squares of larger numbers overflow float64, and no microscope writes them.
LARGEST_VALUE = 1e150
# Codes are used as tensor indices; anything beyond 32 bits is a wrong cast, not a species.
LARGEST_CODE = 2**31 - 1
# Positions nearer than a femtometre are the same atom listed twice.
SAME_ATOM_NM = 1e-6

LENGTHS = ("nm", "unit cell")


class DataError(ValueError):
    """Data that break the contract: which variable, what was expected, what was found, what to do."""


@dataclass(frozen=True)
class Kind:
    """The shape of one kind of data.

    Attributes:
        name: what `attrs["kind"]` says.
        variables: required variables and their dimensions, several where variants are allowed.
        optional: variables that may be there.
        lengths: coordinates that must be there, increasing, in nm or unit cells.
        coords: coordinates that may be there.
        codes: integer variables.
        least: least size of a dimension.
        unit: dimensions over which observations are exchangeable, unless a model says else.
        block: dimensions, or a variable, along which neighbours are alike.
        check: what else must hold.
        summary: one line for people.
        becomes: kind that such data are made into before models are compared, where no model is named.
        derived: whether models make such data of another kind; no instrument gives them.
    """

    name: str
    summary: str
    variables: Mapping[str, tuple[tuple[str, ...], ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lengths: tuple[str, ...] = ()
    coords: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    least: Mapping[str, int] = field(default_factory=dict)
    unit: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    check: Callable[[xr.Dataset], None] | None = None
    becomes: str = ""
    derived: bool = False

    @property
    def main(self) -> str:
        """The variable that the kind is about, the first required one."""
        return next(iter(self.variables))

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names that a coordinate may have: the dimensions of the kind."""
        shapes = [dims for allowed in self.variables.values() for dims in allowed]
        return tuple(
            dict.fromkeys(dim for dims in (*shapes, *self.optional.values()) for dim in dims)
        )

    def dims(self, variable: str) -> tuple[tuple[str, ...], ...]:
        """The dimensions allowed for a variable, empty when it does not belong here."""
        if variable in self.variables:
            return self.variables[variable]
        if variable in self.optional:
            return (self.optional[variable],)
        return ()


def dataset(
    kind: str,
    *,
    units: Mapping[str, str] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **arrays: Any,
) -> xr.Dataset:
    """Build a valid dataset of a kind from plain arrays.

    Variables of the kind, `true_<parameter>` and `aux_<name>` become variables; everything else a coordinate.
    A single row, component or configuration may be left out: the dimension is added.

    Args:
        kind: one of `KINDS`.
        units: unit of each variable or coordinate.
        attrs: further attributes, such as `lattice="square"`.
        **arrays: variables and coordinates by name.
    """
    spec = find_kind(kind)
    units = dict(units or {})
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for name, array in arrays.items():
        unit = {"units": units.pop(name)} if name in units else {}
        if isinstance(array, xr.DataArray):
            (coords if name in array.dims else variables)[name] = array.assign_attrs(unit)
        elif allowed := spec.dims(name):
            values, dims = _fill_singletons(np.asarray(array), allowed)
            variables[name] = (dims, values, unit)
        elif name.startswith(("true_", "aux_")):
            values = np.asarray(array)
            dims = tuple(f"{name}_dim_{i}" for i in range(values.ndim))
            variables[name] = (dims, values, unit)
        elif name in spec.coordinates:
            coords[name] = (name, np.asarray(array), unit)
        else:
            raise DataError(
                f"{kind}: {name!r} is not of this kind; it has variables "
                f"{', '.join([*spec.variables, *spec.optional])} and coordinates "
                f"{', '.join(spec.coordinates)}; call it 'aux_{name}' to carry it along unused"
            )
    if units:
        raise DataError(f"units given for {sorted(units)}, which are not among the arrays")
    try:
        built = xr.Dataset(variables, coords, {"kind": kind, **(attrs or {})})
    except ValueError as error:
        raise DataError(f"{kind}: the arrays do not fit together: {error}") from None
    return validate(built)


def _fill_singletons(
    values: np.ndarray, allowed: tuple[tuple[str, ...], ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    for dims in allowed:
        if values.ndim == len(dims):
            return values, dims
    dims = allowed[0]
    if dims[-1] == "component" and values.ndim in (1, 2):
        return values.reshape((-1, values.shape[-1], 1)), dims
    if dims[0] in ("config", "time", "patch") and values.ndim == len(dims) - 1:
        return values[None], dims
    raise DataError(f"expected dimensions {dims}, found an array of shape {values.shape}")


def kind_of(data: xr.Dataset) -> Kind:
    """The kind that a dataset says it is, or `DataError`."""
    if not isinstance(data, xr.Dataset):
        raise DataError(f"expected an xarray.Dataset, found {type(data).__name__}")
    if "kind" not in data.attrs:
        raise DataError(
            f'the dataset does not say its kind: set attrs["kind"] to one of {", ".join(measured_kinds())}'
        )
    return find_kind(data.attrs["kind"])


def find_kind(kind: object) -> Kind:
    """A kind by name, or `DataError`."""
    if not isinstance(kind, str) or (kind not in KINDS and kind not in _with_derived()):
        raise DataError(f"unknown kind {kind!r}: expected one of {', '.join(measured_kinds())}")
    return KINDS[kind]


def measured_kinds() -> dict[str, Kind]:
    """The kinds that instruments give, whatever others models have made of them by now."""
    return {name: kind for name, kind in KINDS.items() if not kind.derived}


def _with_derived() -> dict[str, Kind]:
    """Every kind, those included that models make of others, which are loaded only when one is met."""
    for found in iter_modules(import_module(".derived", __package__).__path__):
        import_module(f".derived.{found.name}", __package__)
    return KINDS


def validate(data: xr.Dataset) -> xr.Dataset:
    """Return the dataset unchanged when it keeps the contract, else raise `DataError`."""
    kind = kind_of(data)
    for name in kind.variables:
        if name not in data.data_vars:
            found = ", ".join(map(repr, data.data_vars)) or "none"
            raise DataError(f"{kind.name}: variable {name!r} is missing; variables found: {found}")
    for variable, array in data.data_vars.items():
        _check_variable(kind, str(variable), array)
    for coordinate, array in data.coords.items():
        _check_coordinate(kind, str(coordinate), array)
    for name in kind.lengths:
        _check_length(kind, name, data)
    units = {data[name].attrs["units"] for name in kind.lengths}
    if len(units) > 1:
        raise DataError(
            f"{kind.name}: coordinates {' and '.join(kind.lengths)} have different units "
            f"{sorted(units)}; convert them to one"
        )
    if kind.check:
        kind.check(data)
    return data


def _check_variable(kind: Kind, name: str, array: xr.DataArray) -> None:
    where = f"{kind.name}: variable {name!r}"
    free = name.startswith(("true_", "aux_"))
    allowed = kind.dims(name)
    if not allowed and not free:
        known = [*kind.variables, *kind.optional]
        raise DataError(
            f"{where} does not belong to this kind (it has {', '.join(known)}); drop it, "
            f"or call it 'aux_{name}' to carry it along unused"
        )
    if allowed and array.dims not in allowed:
        expected = " or ".join(str(dims) for dims in allowed)
        raise DataError(f"{where}: expected dimensions {expected}, found {array.dims}")
    if not free and array.size == 0:
        raise DataError(f"{where} is empty: its shape is {array.shape}")
    if name.startswith("aux_"):
        return
    if array.dtype.kind not in "iufb":
        raise DataError(f"{where}: expected numbers, found {array.dtype}")
    for dim in array.dims:
        least = kind.least.get(str(dim), 1)
        if not free and array.sizes[dim] < least:
            raise DataError(
                f"{where}: needs at least {least} along {dim!r}, found {array.sizes[dim]}"
            )
    values = array.values
    _check_finite(where, values)
    if name in kind.codes:
        _check_codes(where, values)
    unit = array.attrs.get("units", "1")
    if not isinstance(unit, str):
        raise DataError(f"{where}: units must be text, found {unit!r}")


def _check_finite(where: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise DataError(
                f"{where}: {int(bad.sum())} of {values.size} values are not finite, the first "
                f"({values[first]}) at index {first}; mend or cut them out, none is dropped for you"
            )
    if values.size and values.dtype.kind in "iuf":
        largest = max(abs(float(values.max())), abs(float(values.min())))
        if largest > LARGEST_VALUE:
            raise DataError(
                f"{where}: the largest value is {largest:.3g}, expected below {LARGEST_VALUE:g}"
            )


def _check_codes(where: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integer codes, found {values.dtype}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST_CODE:
        raise DataError(f"{where}: codes must be 0 to {LARGEST_CODE}, found {low} to {high}")


def _check_coordinate(kind: Kind, name: str, coord: xr.DataArray) -> None:
    where = f"{kind.name}: coordinate {name!r}"
    if coord.ndim > 1:
        raise DataError(f"{where}: expected one dimension, found {coord.dims}")
    if coord.dtype.kind in "Mm":
        raise DataError(f"{where}: expected numbers with a unit, found {coord.dtype}")
    if coord.dtype.kind in "iuf":
        _check_finite(where, coord.values)
    if np.unique(coord.values.astype(str)).size < coord.size:
        raise DataError(f"{where} repeats values; every coordinate must be unique")


def _check_length(kind: Kind, name: str, data: xr.Dataset) -> None:
    where = f"{kind.name}: coordinate {name!r}"
    if name not in data.coords:
        raise DataError(f"{where} is missing: give it in {' or '.join(LENGTHS)}")
    coord = data[name]
    if coord.dtype.kind not in "iuf":
        raise DataError(f"{where}: expected numbers, found {coord.dtype}")
    unit = coord.attrs.get("units")
    # An attribute read from a file may be an array, which has no truth value.
    if not isinstance(unit, str) or unit not in LENGTHS:
        raise DataError(
            f"{where}: expected units {' or '.join(LENGTHS)}, found "
            f"{'none' if unit is None else repr(unit)}; set the coordinate's attrs['units']"
        )
    if not (np.diff(coord.values.astype(float)) > 0).all():
        raise DataError(f"{where} must increase strictly; sort it together with the data")


def _check_image(data: xr.Dataset) -> None:
    values = data["intensity"].values
    if values.min() == values.max():
        raise DataError(f"image: every pixel is {values.flat[0]}; there is nothing to see")


def _check_atoms(data: xr.Dataset) -> None:
    position = data["position"]
    if position.sizes["axis"] not in (2, 3):
        raise DataError(
            f"atoms: variable 'position' needs 2 or 3 axes, found {position.sizes['axis']}"
        )
    unit = position.attrs.get("units")
    if not isinstance(unit, str) or unit != "nm":
        raise DataError(f"atoms: variable 'position' must be in nm, found {unit!r}")
    if position.sizes["atom"] > 1:
        from scipy.spatial import cKDTree

        twins = cKDTree(position.values).query_pairs(SAME_ATOM_NM, output_type="ndarray")
        if len(twins):
            first, second = (int(i) for i in twins[0])
            raise DataError(
                f"atoms: {len(twins)} pairs of atoms share a position, the first {first} and {second}"
            )
    if "covariance" in data:
        covariance = data["covariance"].values
        if covariance.shape[1] != covariance.shape[2] or covariance.shape[1] != position.shape[1]:
            raise DataError(
                f"atoms: variable 'covariance' must be (atom, axis, axis), found {covariance.shape}"
            )
        # Relative to the largest entry: (1 pm)² in nm² is below NumPy's absolute tolerance.
        transposed = np.swapaxes(covariance, 1, 2)
        symmetric = np.allclose(covariance, transposed, 1e-6, 1e-6 * np.abs(covariance).max())
        if not symmetric or np.linalg.eigvalsh(covariance).min() <= 0:
            raise DataError("atoms: variable 'covariance' must be symmetric and positive definite")


def _check_lattice(data: xr.Dataset) -> None:
    periodic: Any = data.attrs.get("periodic")
    if str(data.attrs.get("lattice")) not in ("square", "triangular"):
        raise DataError(
            "lattice: attrs['lattice'] must be 'square' or 'triangular', "
            f"found {data.attrs.get('lattice')!r}"
        )
    if np.size(periodic) != 1 or periodic not in (0, 1):
        raise DataError(
            "lattice: attrs['periodic'] must be 0 or 1, "
            f"found {'nothing' if periodic is None else repr(periodic)}"
        )


def _check_tracks(data: xr.Dataset) -> None:
    if data.sizes["axis"] not in (1, 2, 3):
        raise DataError(f"tracks: 'axis' must be 1 to 3 long, found {data.sizes['axis']}")


# Defined last, since a kind names the check of its own.
KINDS: dict[str, Kind] = {}


def add_kind(kind: Kind) -> Kind:
    """Put a kind into the contract; its data are then built, validated, read and written like any other."""
    shapes = {dim for allowed in kind.variables.values() for dims in allowed for dim in dims}
    if kind.name in KINDS:
        raise ValueError(f"there is a kind {kind.name!r} already")
    if not kind.unit or not set(kind.unit) <= shapes:
        raise ValueError(f"the unit of {kind.name!r} must be dimensions of its variables")
    KINDS[kind.name] = kind
    return kind


for _kind in (
    Kind(
        "image",
        "an atomically resolved image",
        {"intensity": (("y", "x"),)},
        lengths=("y", "x"),
        least={"y": 4, "x": 4},
        unit=("y", "x"),
        block=("y", "x"),
        check=_check_image,
        becomes="atoms",
    ),
    Kind(
        "atoms",
        "positions of atoms or columns",
        {"position": (("atom", "axis"),)},
        {
            "species": ("atom",),
            "intensity": ("atom",),
            "covariance": ("atom", "axis", "axis2"),
        },
        codes=("species",),
        unit=("atom",),
        block=("position",),
        check=_check_atoms,
    ),
    Kind(
        "patches",
        "windows cut from images",
        {"intensity": (("patch", "v", "u"),)},
        {"center": ("patch", "axis"), "label": ("patch",), "frame": ("patch",)},
        codes=("label", "frame"),
        least={"v": 2, "u": 2},
        unit=("patch",),
        block=("center",),
    ),
    Kind(
        "profile",
        "an order parameter along a line across a wall, one or many rows",
        {"value": (("row", "x", "component"),)},
        lengths=("x",),
        coords=("row", "component"),
        least={"x": 3},
        unit=("row", "x"),
        block=("x",),
    ),
    Kind(
        "lattice",
        "species on the sites of a lattice, one or many configurations",
        {"species": (("config", "row", "col"),)},
        {"composition": ("config",), "temperature": ("config",)},
        codes=("species",),
        least={"row": 2, "col": 2},
        unit=("config",),
        block=("config",),
        check=_check_lattice,
    ),
    Kind(
        "field",
        "an order-parameter field over time",
        {"value": (("time", "y", "x"), ("time", "x"))},
        coords=("time", "y", "x"),
        least={"x": 3},
        unit=("time", "y", "x"),
        block=("y", "x"),
    ),
    Kind(
        "table",
        "a table of named variables",
        {"value": (("row", "variable"),)},
        {"block": ("row",)},
        coords=("variable",),
        codes=("block",),
        least={"row": 2},
        unit=("row",),
        block=("block",),
    ),
    Kind(
        "pairs",
        "windows of an image with a spectrum each",
        {"intensity": (("patch", "v", "u"),), "spectrum": (("patch", "energy"),)},
        {"center": ("patch", "axis")},
        coords=("energy",),
        least={"v": 2, "u": 2, "energy": 2},
        unit=("patch",),
        block=("center",),
    ),
    Kind(
        "states",
        "discrete states of sites over time",
        {"state": (("time", "site"),)},
        {"observed_state": ("time", "site")},
        coords=("time", "site"),
        codes=("state", "observed_state"),
        least={"time": 2},
        unit=("time", "site"),
        block=("time",),
    ),
    Kind(
        "tracks",
        "positions of particles over time",
        {"position": (("time", "particle", "axis"),)},
        coords=("time",),
        least={"time": 2},
        unit=("time", "particle"),
        block=("time",),
        check=_check_tracks,
    ),
):
    add_kind(_kind)
