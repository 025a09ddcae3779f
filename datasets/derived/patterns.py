"""Patterns: all that stands around each atom within a radius, as points of a plane.

The number of neighbours is part of what is seen. `neighbour` has a row of slots for every atom, filled from the nearest
neighbour outwards; an empty slot is zero in all its features, where no neighbour can be. The features are `x` and `y`,
the way to the neighbour in nm, and `brightness`, where it is asked for and the atoms have intensities: the log of the
neighbour's intensity relative to the atom's own.

Settings, all numbers:

- `radius`: in nm; 0 takes `reach` times the distance of nearest neighbours, which is the median over the atoms;
- `reach`: used where `radius` is 0; 1.22 lies between the first and the second shell of every simple lattice;
- `brightness`: 1 where the neighbours' brightness counts.

Atoms whose disc leaves what was looked at are left out. That is the rectangle `attrs["frame"]` of the atoms, x and y of
its lower and of its upper corner in nm, or, where the atoms do not say, their convex hull. Then the edge of a crystal
is taken for the edge of the picture, so give the frame where edges matter.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> sheet = simulate("graphene", gives="atoms", field=3, seed=1)
    >>> around = patterns(sheet, {"radius": 0.2})
    >>> int(around.neighbour.any("feature").sum("slot").median())
    3
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset
from ..planar import planar, variances, with_what_rides
from .shells import inside

__all__ = ["filled", "patterns"]

REACH = 1.22
# Slots beyond the fullest pattern, so that data simulated alike have room for clutter.
SPARE = 2
# A radius with more neighbours than that is a slip of units.
MOST_NEIGHBOURS = 64


def filled(data: xr.Dataset) -> np.ndarray:
    """Which slots hold a neighbour, (atom, slot)."""
    return np.asarray((data["neighbour"].values[..., :2] != 0).any(-1))


def _check_patterns(data: xr.Dataset) -> None:
    for name in ("neighbour", "position", "radius", "spacing"):
        if data[name].attrs.get("units") != "nm":
            raise DataError(
                f"patterns: variable {name!r} must be in nm, found {data[name].attrs.get('units')!r}"
            )
    for name in ("centre_variance", "neighbour_variance"):
        if data[name].values.min() < 0:
            raise DataError(f"patterns: variable {name!r} must not be negative")
    for name in ("radius", "spacing", "density"):
        if not data[name].values > 0:
            raise DataError(f"patterns: variable {name!r} must be positive")
    if data["neighbour"].sizes["feature"] not in (2, 3):
        raise DataError(
            "patterns: variable 'neighbour' needs the features x, y and perhaps brightness"
        )
    there = filled(data)
    if (there[:, 1:] & ~there[:, :-1]).any():
        raise DataError("patterns: a slot is filled behind an empty one; fill them from the first")
    distance = np.linalg.norm(data["neighbour"].values[..., :2], axis=-1)
    if distance.max() > float(data["radius"]) * (1 + 1e-9):
        raise DataError("patterns: a neighbour is farther away than the radius")


add_kind(
    Kind(
        "patterns",
        "all neighbours of every atom within a radius",
        {
            "neighbour": (("atom", "slot", "feature"),),
            "position": (("atom", "axis"),),
            "centre_variance": (("atom",),),
            "neighbour_variance": (("atom", "slot"),),
            "radius": ((),),
            "spacing": ((),),
            "density": ((),),
        },
        unit=("atom",),
        block=("position",),
        check=_check_patterns,
        derived=True,
    )
)


def patterns(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The pattern of every atom whose disc lies in what was looked at.

    Args:
        data: atoms in the plane.
        settings: as told above; what is missing is 0, but `reach`, which is 1.22.

    Returns:
        Data of kind `patterns`. `atom` is the index in `data`, `attrs["left_out"]` the number of atoms that are not
        there, and `attrs["left_out_why"]` says why. `density` is that of neighbours, per nm².
    """
    from scipy.spatial import cKDTree

    position = planar(data, "patterns")
    if len(position) < 3:
        raise DataError(f"patterns: {len(position)} atoms are too few to have neighbours")
    tree = cKDTree(position)
    spacing = float(np.median(tree.query(position, 2)[0][:, 1]))
    radius = _radius(settings, spacing)
    kept = np.flatnonzero(_within(data, position, radius))
    if not len(kept):
        raise DataError(
            f"patterns: no atom is {radius:.3g} nm inside of what was looked at; take a larger field or a "
            "smaller radius"
        )
    places = position[kept]
    count = np.asarray(tree.query_ball_point(places, radius, return_length=True)) - 1
    if count.max() > MOST_NEIGHBOURS:
        raise DataError(
            f"patterns: an atom has {count.max()} neighbours within {radius:.3g} nm, the most is "
            f"{MOST_NEIGHBOURS}; take a smaller radius"
        )
    slots = int(count.max()) + SPARE
    # Where there are fewer, the index is that of no atom.
    _, found = tree.query(places, slots + 1, distance_upper_bound=radius)
    return _dataset(data, kept, np.asarray(found)[:, 1:], radius, spacing, settings)


def _radius(settings: Mapping[str, float], spacing: float) -> float:
    radius, reach = float(settings.get("radius", 0)), float(settings.get("reach", REACH))
    if not (radius >= 0 and np.isfinite(radius)):
        raise DataError(f"patterns: radius must be a length in nm or 0, found {radius:g}")
    if not (reach > 1 and np.isfinite(reach)):
        raise DataError(f"patterns: reach must be above 1 spacing, found {reach:g}")
    return radius or reach * spacing


def _within(data: xr.Dataset, position: np.ndarray, radius: float) -> np.ndarray:
    """Atoms whose disc lies in what was looked at."""
    if "frame" not in data.attrs:
        return inside(position, radius)
    frame = np.asarray(data.attrs["frame"], dtype=float).ravel()
    if frame.shape != (4,) or not (np.isfinite(frame).all() and (frame[:2] < frame[2:]).all()):
        raise DataError(
            f"patterns: attrs['frame'] must be x and y of two corners in nm, lower first, found {frame.tolist()}"
        )
    margin = np.minimum(position - frame[:2], frame[2:] - position).min(1)
    return np.asarray(margin >= radius)


def _dataset(
    data: xr.Dataset,
    kept: np.ndarray,
    found: np.ndarray,
    radius: float,
    spacing: float,
    settings: Mapping[str, float],
) -> xr.Dataset:
    position = data["position"].values.astype(float)
    there = found < len(position)
    which = np.where(there, found, 0)
    features = [position[which] - position[kept][:, None]]
    names = ["x", "y"]
    if settings.get("brightness", 0) and "intensity" in data:
        features.append(_log_ratio(data["intensity"].values, kept, which)[..., None])
        names.append("brightness")
    variance = variances(data)
    left_out = len(position) - len(kept)
    made = dataset(
        "patterns",
        neighbour=np.where(there[..., None], np.concatenate(features, 2), 0.0),
        position=position[kept],
        centre_variance=variance[kept],
        neighbour_variance=variance[which] * there,
        radius=radius,
        spacing=spacing,
        density=max(float(there.sum(1).mean()), 1.0) / (np.pi * radius**2),
        atom=kept,
        feature=np.array(names),
        axis=np.array(["x", "y"]),
        units={
            "neighbour": "nm",
            "position": "nm",
            "centre_variance": "nm^2",
            "neighbour_variance": "nm^2",
            "radius": "nm",
            "spacing": "nm",
            "density": "nm^-2",
        },
        attrs={
            "left_out": left_out,
            "left_out_why": f"{left_out} atoms are nearer than {radius:.3g} nm to the rim, which may hide "
            "neighbours.",
        },
    )
    return with_what_rides(made, data, kept)


def _log_ratio(intensity: np.ndarray, kept: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Log of the neighbours' intensity relative to the atom's own."""
    if not (intensity > 0).all():
        raise DataError(
            f"patterns: {int((intensity <= 0).sum())} atoms have an intensity of nothing or less, of which there is "
            "no logarithm; mend them, or take brightness=0"
        )
    level = np.log(intensity.astype(float))
    return np.asarray(level[which] - level[kept][:, None])
