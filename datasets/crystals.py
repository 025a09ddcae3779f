"""Crystals as columns of atoms: what the scenes of structure are built of.

Example:
    >>> cells = cells_within(1.0, np.array([0.4, 0.0]), np.array([0.0, 0.4]))
    >>> len(cells), turn(np.array([[1.0, 0.0]]), 90.0).round(6).tolist()
    (21, [[0.0, 1.0]])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .kinds import DataError
from .scenes import MOST_ELEMENTS

__all__ = ["Crystal", "Solid", "cells_within", "choose", "fractions", "hexagonal", "turn"]


@dataclass(frozen=True)
class Solid:
    """The crystal in depth: which atoms stand in each of its columns.

    Attributes:
        stacks: for each kind of column its atoms, an atomic number and a height in nm each; the first is the kind that
            `dose` is about.
        kind: which of these each column is.
        layers: how often every stack is repeated.
        period: the distance from one to the next in nm.
        unlisted: places of columns that are there and not among the crystal's, as they hardly show, (place, 2).
        unlisted_kind: which stack they all are.
    """

    stacks: Sequence[Sequence[tuple[int, float]]]
    kind: np.ndarray
    layers: int = 1
    period: float = 0.0
    unlisted: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    unlisted_kind: int = 0


@dataclass(frozen=True)
class Crystal:
    """Columns of atoms about the origin, before they are turned, disordered and looked at.

    Attributes:
        position: where the columns are at rest, (column, 2).
        lattice: their places on the undistorted lattice.
        species: code of each column, of `species_names`.
        site: class of each column, of `site_names`.
        intensity: relative to the column that `dose` is about.
        missing: places where a column is vacant, and the species that is not there.
        columns: further truth of each column.
        vectors: further truth of each column that turns with the crystal.
        units: of these two, where they are not codes.
        facts: further truth of the whole.
        solid: the atoms in the columns, where the scene knows them.
    """

    position: np.ndarray
    lattice: np.ndarray
    species: np.ndarray
    species_names: Sequence[str]
    site: np.ndarray
    site_names: Sequence[str]
    intensity: np.ndarray
    missing: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    missing_species: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    solid: Solid | None = None

    def take(self, which: np.ndarray) -> Crystal:
        """Some of the columns."""
        arrays = ("position", "lattice", "species", "site", "intensity")
        return replace(
            self,
            **{name: getattr(self, name)[which] for name in arrays},
            columns={name: values[which] for name, values in self.columns.items()},
            vectors={name: values[which] for name, values in self.vectors.items()},
            solid=self.solid and replace(self.solid, kind=self.solid.kind[which]),
        )

    def turned(self, degrees: float, centre: np.ndarray) -> Crystal:
        """The crystal turned, its origin put where the frame has its middle."""
        return replace(
            self,
            position=turn(self.position, degrees) + centre,
            lattice=turn(self.lattice, degrees) + centre,
            missing=turn(self.missing, degrees) + centre,
            vectors={name: turn(values, degrees) for name, values in self.vectors.items()},
            solid=self.solid
            and replace(self.solid, unlisted=turn(self.solid.unlisted, degrees) + centre),
        )


def turn(vectors: np.ndarray, degrees: float) -> np.ndarray:
    """Vectors turned from x towards y."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    return vectors @ np.array([[c, s], [-s, c]])


def hexagonal(spacing: float) -> np.ndarray:
    """Two vectors of a hexagonal lattice, the first along x and the second at 60 degrees to it."""
    return spacing * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def choose(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not among those allowed."""
    if value not in allowed:
        raise DataError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")


def fractions(**values: float) -> None:
    """Refuse what is no fraction, and fractions that are more than all."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise DataError(f"{name} must be between 0 and 1, found {value:g}")
    if sum(values.values()) > 1:
        raise DataError(f"{' + '.join(values)} must be at most 1, found {sum(values.values()):g}")


def cells_within(radius: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cells (i, j) of a lattice whose corner i·first + j·second is within a radius of the origin."""
    basis = np.stack([first, second])
    area = abs(float(np.linalg.det(basis)))
    if 10 * radius**2 / area > MOST_ELEMENTS / 10:
        raise DataError(
            f"a crystal of radius {radius:g} nm has too many atoms; take a smaller field"
        )
    # A lattice point is at most this many cells from the origin.
    most = np.ceil(radius * np.linalg.norm(np.linalg.inv(basis), axis=0)).astype(int)
    i, j = np.mgrid[-most[0] : most[0] + 1, -most[1] : most[1] + 1]
    cells = np.stack([i.ravel(), j.ravel()], 1)
    return cells[np.linalg.norm(cells @ basis, axis=1) <= radius]
