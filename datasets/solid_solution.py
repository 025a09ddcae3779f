"""A solid solution: a perovskite with two species on its A sites, which push B about."""

from __future__ import annotations

import numpy as np

from .crystals import Crystal, cells_within, fractions
from .imaging import imaged
from .kinds import DataError
from .scenes import scene

__all__ = ["solid_solution"]

SPECIES = ("A", "A'", "B")
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
# Intensities relative to A.
INTENSITY = np.array([1.0, 0.6, 0.35])


@scene
@imaged(field=10.0, pixel=0.02, dose=5000.0, rotation=3.0)
def solid_solution(
    rng: np.random.Generator,
    radius: float,
    a: float = 0.39,
    fraction: float = 0.3,
    push: float = 0.008,
    polar: float = 0.01,
    correlation: float = 1.2,
) -> Crystal:
    """A square perovskite in which each A' among the four neighbours of B pushes B away.

    A share `fraction` of the A columns is A', at random. B is displaced along x by `polar` (nm, root mean square) times
    an order parameter that varies over `correlation` (nm), and by `push` (nm) away from the dipole of its A', that is
    the sum of the directions to them, divided by four. With `push=0` and `polar=0` nothing is displaced.

    Of each column: `true_displacement`, `true_order` (the order parameter, zero for A) and `true_push` (nm, what
    chemistry does).
    """
    _check(a, fraction, push, polar, correlation)
    cells = cells_within(radius + a, np.array([a, 0.0]), np.array([0.0, a]))
    corner = cells * a
    alloyed = rng.random(len(cells)) < fraction
    middle = corner + a / 2
    order = _smooth(rng, middle, correlation)
    pushed = -push * _dipole(cells, alloyed)
    shift = pushed + polar * order[:, None] * np.array([1.0, 0.0])
    count, none = len(cells), np.zeros((len(cells), 2))
    species = np.concatenate([alloyed.astype(np.int64), np.full(count, 2)])
    return Crystal(
        position=np.concatenate([corner, middle + shift]),
        lattice=np.concatenate([corner, middle]),
        species=species,
        species_names=SPECIES,
        site=(species == 2).astype(np.int64),
        site_names=("A", "B"),
        intensity=INTENSITY[species],
        columns={"order": np.concatenate([np.zeros(count), order])},
        vectors={
            "displacement": np.concatenate([none, shift]),
            "push": np.concatenate([none, pushed]),
        },
        units={"order": "1", "displacement": "nm", "push": "nm"},
    )


def _dipole(cells: np.ndarray, alloyed: np.ndarray) -> np.ndarray:
    """Mean direction from each B to those of its four A that are A'; a corner that is not there counts as A."""
    code = {tuple(c): bool(x) for c, x in zip(cells.tolist(), alloyed, strict=True)}
    found = np.zeros((len(cells), 2))
    for corner in CORNERS:
        way = (corner - 0.5) * np.sqrt(2)
        there = [code.get(tuple(c), False) for c in (cells + corner).tolist()]
        found += np.array(there)[:, None] * way / 4
    return found


def _smooth(rng: np.random.Generator, place: np.ndarray, correlation: float) -> np.ndarray:
    """A field of variance one with a Gaussian correlation, as a sum of plane waves."""
    waves = 200
    way = rng.standard_normal((waves, 2)) / correlation
    phase = rng.uniform(0, 2 * np.pi, waves)
    found = np.zeros(len(place))
    for k, p in zip(way, phase, strict=True):
        found += np.cos(place @ k + p)
    return np.asarray(found * np.sqrt(2 / waves))


def _check(a: float, fraction: float, push: float, polar: float, correlation: float) -> None:
    fractions(fraction=fraction)
    for name, value in (("a", a), ("correlation", correlation)):
        if not 0 < value < np.inf:
            raise DataError(f"{name} must be positive, found {value:g} nm")
    for name, value in (("push", push), ("polar", polar)):
        if not 0 <= value <= a / 8:
            raise DataError(f"{name} must be from 0 to an eighth of a cell, found {value:g} nm")
