"""Brightness: the intensity of every column, with its place in the field and in the lattice.

Settings, all numbers:

- `sublattice`: -1 for all columns; 0 for those of the brightest sublattice, 1 for the next, and so on. Columns of
  different sublattices that are as bright as each other, such as V and S₂, are told apart so.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> metals = brightness(simulate("tmd", gives="atoms", field=4, seed=1), {"sublattice": 0})
    >>> metals.sizes["atom"], metals.attrs["left_out"]
    (185, 184)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset
from ..lattices import find_lattice
from ..planar import with_what_rides

__all__ = ["brightness"]


def _check_brightness(data: xr.Dataset) -> None:
    if data["position"].attrs.get("units") != "nm":
        raise DataError(
            f"brightness: variable 'position' must be in nm, found {data['position'].attrs.get('units')!r}"
        )
    place = data["place"].values
    if place.min() < 0 or place.max() > 1:
        raise DataError("brightness: variable 'place' is a fraction of the field, from 0 to 1")


add_kind(
    Kind(
        "brightness",
        "intensities of columns",
        {
            "intensity": (("atom",),),
            "position": (("atom", "axis"),),
            "place": (("atom", "axis"),),
        },
        least={"atom": 8},
        unit=("atom",),
        block=("position",),
        check=_check_brightness,
        derived=True,
    )
)


def brightness(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The intensities of columns, of all or of one sublattice.

    Args:
        data: atoms with their intensity.
        settings: as told above.

    Returns:
        Data of kind `brightness`. `atom` is the index in `data`; `place` the position as a fraction of the field.
    """
    if "intensity" not in data:
        raise DataError(
            "brightness: these atoms have no 'intensity'; fit `columns` to the image, or add the variable"
        )
    position = data["position"].values[:, :2].astype(float)
    chosen = int(settings.get("sublattice", -1))
    intensity = data["intensity"].values.astype(float)
    kept, why = np.arange(len(position)), ""
    if chosen >= 0:
        found = find_lattice(position, intensity)
        if chosen >= len(found.origins):
            raise DataError(
                f"brightness: there are {len(found.origins)} sublattices, and number {chosen} is asked for; "
                "count from 0, or take sublattice=-1 for all columns"
            )
        kept = np.flatnonzero(found.sublattice == chosen)
        none = int((found.sublattice < 0).sum())
        why = f"{len(position) - len(kept) - none} columns are of other sublattices and {none} of none."
    low, high = position.min(0), position.max(0)
    units = {"position": "nm"}
    if "units" in data["intensity"].attrs:
        units["intensity"] = data["intensity"].attrs["units"]
    made = dataset(
        "brightness",
        intensity=intensity[kept],
        position=position[kept],
        place=(position[kept] - low) / np.maximum(high - low, 1e-12),
        atom=kept,
        axis=np.array(["x", "y"]),
        units=units,
        attrs={"left_out": len(position) - len(kept), "left_out_why": why, "sublattice": chosen},
    )
    return with_what_rides(made, data, kept)
