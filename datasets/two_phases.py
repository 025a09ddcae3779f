"""Two phases in one image: a lattice with regions of another, between which there is a boundary."""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np
import xarray as xr

from .crystals import Crystal, cells_within, choose, hexagonal, turn
from .imaging import imaged
from .kinds import DataError
from .microscope import Scan
from .scenes import scene

__all__ = ["two_phases"]

PHASES = ("matrix", "inclusion")
SHAPES = ("disc", "wave", "discs", "none")
SECONDS = ("square", "turned", "ordered")
# Columns of the two phases that are nearer than that, in spacings, are one column too many.
NEAREST = 0.7
# In the ordered phase every third column is that much brighter.
BRIGHTER = 1.6


def _grow(
    rng: np.random.Generator,
    radius: float,
    second: str = "square",
    shape: str = "disc",
    size: float = 5.0,
    spacing: float = 0.32,
    turned: float = 20.0,
) -> Crystal:
    """Columns of both phases; which of them is where follows from the place on the lattice alone."""
    _check(second, shape, size, spacing)
    first = hexagonal(spacing)
    lattice = _within(radius, first)
    grown, bright = _second(second, radius, spacing, turned)
    matrix = lattice[~inclusion(lattice, shape, size)]
    within = inclusion(grown, shape, size)
    grown, bright = grown[within], bright[within]
    kept = _far_enough(grown, matrix, NEAREST * spacing)
    position = np.concatenate([matrix, grown[kept]])
    phase = np.repeat([0, 1], [len(matrix), int(kept.sum())])
    intensity = np.concatenate([np.ones(len(matrix)), bright[kept]])
    species = (intensity > 1).astype(np.int64)
    return Crystal(
        position=position,
        lattice=position,
        species=species,
        species_names=("light", "heavy"),
        site=phase,
        site_names=PHASES,
        intensity=intensity,
    )


_imaged = imaged(field=16.0, pixel=0.04, dose=1000.0, probe=0.06, rotation=8.0)(_grow)


@scene
@wraps(_imaged, assigned=())
def two_phases(rng: np.random.Generator, **given: Any) -> xr.Dataset:
    """A hexagonal lattice with regions of a second phase, and the map of which is where.

    `second` is `square` (a square lattice of as many columns), `turned` (the same lattice turned by `turned` degrees)
    or `ordered` (the same lattice, every third column brighter). `shape` is `disc` (of radius `size` nm in the middle),
    `discs` (one of that radius and two smaller ones), `wave` (the lower half, its boundary a sine of period 2 `size`)
    or `none`. `spacing` is that of the hexagonal lattice in nm.

    With `gives=image`, `true_phase` of each pixel is 0 in the matrix and 1 in the inclusion. `true_site` says it of
    each column.
    """
    data = _imaged(rng, **given)
    if data.attrs["kind"] != "image":
        return data
    scan = Scan(
        data["x"].values,
        data["y"].values,
        data["true_scan_matrix"].values,
        data["true_row_drift"].values,
    )
    x, y = np.meshgrid(scan.x, scan.y)
    seen = np.stack([x.ravel(), y.ravel()], 1)
    home = turn(scan.specimen_position(seen) - scan.centre, -float(data["true_rotation"]))
    inside = inclusion(home, data.attrs["shape"], float(data["true_size"]))
    return data.assign(true_phase=(("y", "x"), inside.reshape(x.shape).astype(np.int64)))


def inclusion(place: np.ndarray, shape: str, size: float) -> np.ndarray:
    """Whether places about the origin, before the crystal is turned, are in the second phase."""
    x, y = place.T
    if shape == "none":
        return np.zeros(len(place), bool)
    if shape == "wave":
        return np.asarray(y > 0.4 * size * np.sin(np.pi * x / size))
    discs = [(0.0, 0.0, 1.0)]
    if shape == "discs":
        discs = [(-0.4, -0.5, 1.0), (0.95, 0.7, 0.6), (-0.9, 1.1, 0.45)]
    found = [np.hypot(x - u * size, y - v * size) < r * size for u, v, r in discs]
    return np.asarray(np.any(found, axis=0))


def _within(radius: float, basis: np.ndarray) -> np.ndarray:
    return cells_within(radius, *basis) @ basis


def _second(
    second: str, radius: float, spacing: float, turned: float
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the second phase everywhere, and their intensities."""
    if second == "square":
        # As many columns to the area as in the hexagonal lattice.
        basis = spacing * np.sqrt(np.sqrt(3) / 2) * np.eye(2)
        place = _within(radius, basis)
        return place, np.ones(len(place))
    basis = hexagonal(spacing)
    cells = cells_within(radius, *basis)
    if second == "turned":
        return turn(cells @ basis, turned), np.ones(len(cells))
    third = (cells[:, 0] - cells[:, 1]) % 3 == 0
    return cells @ basis, np.where(third, BRIGHTER, 1.0)


def _far_enough(grown: np.ndarray, matrix: np.ndarray, least: float) -> np.ndarray:
    """Which columns of the second phase are not upon one of the first."""
    from scipy.spatial import cKDTree

    if not len(grown) or not len(matrix):
        return np.ones(len(grown), bool)
    distance, _ = cKDTree(matrix).query(grown)
    return np.asarray(distance > least)


def _check(second: str, shape: str, size: float, spacing: float) -> None:
    choose("second", second, SECONDS)
    choose("shape", shape, SHAPES)
    if not 0 < spacing < np.inf:
        raise DataError(f"spacing must be positive, found {spacing:g} nm")
    if not 2 * spacing <= size < np.inf:
        raise DataError(f"size must be at least two spacings, found {size:g} nm")
