"""Cells: the unit cells of one sublattice, each with its corner, its two edges and their errors.

`position` is the corner that a cell starts from. Every column is the first corner of one cell at most, so these are as
independent as the columns were measured. Edges are not: those of neighbours share their columns, so that a sum over a
row of cells knows only its two ends, and a likelihood that took them for independent would count every column eight
times, with either sign. They are there to be looked at, each with its own error; `unit_cell` weighs the corners.

`covariance` is that of the corner, in few groups of like size, each with the mean of its columns; zero where the data
have none. An ideal square or hexagonal lattice (`attrs["reference"]`) of the same mean area and orientation goes with
the cells: corner `index` of it is at `spacing` · index · (1, 0), (cos γ, sin γ), turned by `turn` about `middle`.

Settings, all numbers:

- `sublattice`: 0 for the brightest, 1 for the next, and so on.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> found = cells(simulate("perovskite", gives="atoms", field=6, seed=1), {})
    >>> found.attrs["reference"], found.edge.dims
    ('square', ('cell', 'side', 'axis'))
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset, validate
from ..lattices import Lattice, lattice_of

__all__ = ["cells", "edges_of"]

# Angles further from 90 degrees are those of a strained hexagonal cell.
HEXAGONAL = 105.0
# Groups that the covariances of the columns are averaged in.
GROUPS = 12
LEAST_CELLS = 9
# Of an edge in the corners (0, 0), (1, 0), (0, 1), (1, 1): the mean of the two that are parallel.
EDGES = 0.5 * np.array([[-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]])


def _check_cells(data: xr.Dataset) -> None:
    for name in ("position", "edge"):
        if data[name].attrs.get("units") != "nm":
            raise DataError(
                f"cells: variable {name!r} must be in nm, found {data[name].attrs.get('units')!r}"
            )
    for name in ("reference", "spacing", "turn", "middle", "extent"):
        if name not in data.attrs:
            raise DataError(f"cells: attrs[{name!r}] is missing; make cells from atoms")


add_kind(
    Kind(
        "cells",
        "unit cells of a lattice of columns",
        {
            "position": (("cell", "axis"),),
            "covariance": (("cell", "axis", "axis2"),),
            "index": (("cell", "axis"),),
            "edge": (("cell", "side", "axis"),),
            "edge_covariance": (("cell", "component", "component2"),),
        },
        least={"cell": LEAST_CELLS},
        unit=("cell",),
        block=("position",),
        check=_check_cells,
        derived=True,
    )
)


def cells(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The complete cells of one sublattice.

    Args:
        data: atoms in the plane.
        settings: as told above.

    Returns:
        Data of kind `cells`. `aux_atom` is the index in `data` of the first corner; columns that start no complete
        cell are counted in `attrs["left_out"]`.
    """
    chosen = int(settings.get("sublattice", 0))
    found = lattice_of(data)
    if not 0 <= chosen < len(found.origins):
        raise DataError(
            f"cells: there are {len(found.origins)} sublattices, and number {chosen} is asked for; count from 0"
        )
    atoms = np.flatnonzero(found.sublattice == chosen)
    corner = _corners(found.index[atoms])
    complete = (corner >= 0).all(1)
    if complete.sum() < LEAST_CELLS:
        raise DataError(
            f"cells: {complete.sum()} cells are complete, {LEAST_CELLS} are needed; take a larger field"
        )
    corner = atoms[corner[complete]]
    position = data["position"].values[:, :2].astype(float)
    covariance = _covariance(data)
    edge, edge_covariance = edges_of(position[corner], covariance[corner])
    first = corner[:, 0]
    index = found.index[first] - np.rint(found.index[first].mean(0)).astype(np.int64)
    none = int((found.sublattice < 0).sum())
    others = len(position) - len(atoms) - none
    made = dataset(
        "cells",
        position=position[first],
        covariance=_grouped(covariance[first]),
        index=index,
        edge=edge,
        edge_covariance=edge_covariance,
        axis=np.array(["x", "y"]),
        units={"position": "nm", "edge": "nm", "covariance": "nm^2", "edge_covariance": "nm^2"},
        attrs={
            "left_out": len(position) - len(first),
            "left_out_why": (
                f"{len(atoms) - len(first)} columns of the sublattice start no complete cell, at the rim or beside a "
                f"vacancy; {others} are of other sublattices and {none} of none."
            ),
            "known_errors": int("covariance" in data),
            **_reference(found, index, position[first]),
        },
        aux_atom=first,
    )
    return validate(made)


def edges_of(corner: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two edges of cells, (cell, side, axis), and the covariance of their four components.

    Args:
        corner: positions of the four corners (0, 0), (1, 0), (0, 1), (1, 1), (cell, corner, axis).
        covariance: of each, (cell, corner, axis, axis).
    """
    edge = np.einsum("ec,nca->nea", EDGES, corner)
    joint = np.einsum("ec,fc,ncab->neafb", EDGES, EDGES, covariance)
    return edge, joint.reshape(len(corner), 4, 4)


def _corners(index: np.ndarray) -> np.ndarray:
    """For each column the four corners of the cell that it starts, -1 for those that are not there."""
    low = index.min(0)
    shape = index.max(0) - low + 2
    where = np.full(tuple(shape), -1)
    where[tuple((index - low).T)] = np.arange(len(index))
    steps = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    goal = (index - low)[:, None] + steps
    found: np.ndarray = where[goal[..., 0], goal[..., 1]]
    return found


def _covariance(data: xr.Dataset) -> np.ndarray:
    if "covariance" not in data:
        return np.zeros((data.sizes["atom"], 2, 2))
    return data["covariance"].values[:, :2, :2].astype(float)


def _grouped(covariance: np.ndarray) -> np.ndarray:
    """Covariances replaced by the mean of those of about their size."""
    size = np.trace(covariance, axis1=1, axis2=2)
    bounds = np.quantile(size, np.linspace(0, 1, GROUPS + 1)[1:-1])
    group = np.searchsorted(np.unique(bounds), size, side="left")
    number = np.maximum(np.bincount(group), 1)
    mean = np.stack(
        [np.bincount(group, covariance[:, i, j]) / number for i in (0, 1) for j in (0, 1)], 1
    )
    return mean.reshape(-1, 2, 2)[group]


def _reference(found: Lattice, index: np.ndarray, position: np.ndarray) -> dict[str, object]:
    """The ideal lattice that the cells are strained from."""
    hexagonal = found.angle >= HEXAGONAL
    gamma = np.radians(120.0 if hexagonal else 90.0)
    ideal = index @ np.array([[1.0, 0.0], [np.cos(gamma), np.sin(gamma)]])
    here, there = ideal @ [1, 1j], position @ [1, 1j]
    centre, middle = here.mean(), there.mean()
    # The similarity that brings one onto the other best.
    times = np.vdot(here - centre, there - middle) / np.vdot(here - centre, here - centre)
    start = middle - times * centre
    return {
        "reference": "hexagonal" if hexagonal else "square",
        "spacing": float(abs(times)),
        "turn": float(np.angle(times)),
        "middle": [float(start.real), float(start.imag)],
        "extent": [float(v) for v in np.ptp(ideal, axis=0) * abs(times)],
    }
