"""The seventeen plane groups, and the ways in which each can lie on a lattice.

An operation sends the point x to R x + v, both in units of the lattice's vectors. Groups are generated from the
operations that the International Tables print for the conventional cell; everything else follows.

A lattice is described by its *reduced* basis: a the shortest vector, b the next, the angle between them from 60 to 90
degrees. On it a group can lie in several *settings*: the mirror of pm may stand across a or across b, and that of cm
across either diagonal of any of the three rhombi that a nearly hexagonal lattice has. There are 27 settings in all.

References: Hahn (ed.), International Tables for Crystallography A, Springer (2005).

Example:
    >>> len(GROUPS), len(SETTINGS)
    (17, 27)
    >>> len(SETTINGS[-1].rotation), SETTINGS[-1].group
    (12, 'p6m')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

__all__ = [
    "GROUPS",
    "SETTINGS",
    "Case",
    "Setting",
    "apart",
    "cases",
    "generate",
    "reduced_basis",
    "shape_distance",
    "subgroups",
]

# Translations in these tables are halves; thirds and quarters come in between when operations are multiplied.
DENOMINATOR = 24
Generator = tuple[tuple[int, int, int, int], tuple[float, float]]
Cell = tuple[tuple[int, int], tuple[int, int]]
# R by rows and v, in parts of the denominator.
Operation = tuple[tuple[int, ...], tuple[int, ...]]

_TURN_2: Generator = ((-1, 0, 0, -1), (0, 0))
_TURN_3: Generator = ((0, -1, 1, -1), (0, 0))
_TURN_4: Generator = ((0, -1, 1, 0), (0, 0))
_TURN_6: Generator = ((1, -1, 1, 0), (0, 0))
_CENTRE: Generator = ((1, 0, 0, 1), (0.5, 0.5))
_ACROSS = (-1, 0, 0, 1)

# Generators in the conventional cell: (rotation by rows, translation); the angle is 120 degrees from p3 on.
_GENERATORS: dict[str, tuple[Generator, ...]] = {
    "p1": (),
    "p2": (_TURN_2,),
    "pm": ((_ACROSS, (0, 0)),),
    "pg": ((_ACROSS, (0, 0.5)),),
    "cm": ((_ACROSS, (0, 0)), _CENTRE),
    "pmm": (_TURN_2, (_ACROSS, (0, 0))),
    "pmg": (_TURN_2, (_ACROSS, (0.5, 0))),
    "pgg": (_TURN_2, (_ACROSS, (0.5, 0.5))),
    "cmm": (_TURN_2, (_ACROSS, (0, 0)), _CENTRE),
    "p4": (_TURN_4,),
    "p4m": (_TURN_4, (_ACROSS, (0, 0))),
    "p4g": (_TURN_4, (_ACROSS, (0.5, 0.5))),
    "p3": (_TURN_3,),
    "p3m1": (_TURN_3, ((0, -1, -1, 0), (0, 0))),
    "p31m": (_TURN_3, ((0, 1, 1, 0), (0, 0))),
    "p6": (_TURN_6,),
    "p6m": (_TURN_6, ((0, -1, -1, 0), (0, 0))),
}
GROUPS = tuple(_GENERATORS)

# Rows are the conventional vectors in terms of the reduced ones.
_AS_IS: Cell = ((1, 0), (0, 1))
_SWAPPED: Cell = ((0, 1), (1, 0))
_RHOMBI: tuple[Cell, ...] = (((1, 1), (1, -1)), ((2, -1), (0, 1)), ((-1, 2), (1, 0)))
_WIDE: Cell = ((1, 0), (-1, 1))
_ROWS: dict[str, Cell] = {"across a": _AS_IS, "across b": _SWAPPED}
_RHOMBIC: dict[str, Cell] = {
    "across a+b": _RHOMBI[0],
    "across a-b": (_RHOMBI[0][1], _RHOMBI[0][0]),
    "across 2a-b": _RHOMBI[1],
    "across b'": (_RHOMBI[1][1], _RHOMBI[1][0]),
    "across 2b-a": _RHOMBI[2],
    "across a'": (_RHOMBI[2][1], _RHOMBI[2][0]),
}
_RHOMBIC_ONCE: dict[str, Cell] = {"a, b": _RHOMBI[0], "a, a-b": _RHOMBI[1], "b, a-b": _RHOMBI[2]}
_ALONE: dict[str, Cell] = {"": _AS_IS}
_HEXAGON: dict[str, Cell] = {"": _WIDE}
# The lattice that a group asks for, and how its cell lies on the reduced one.
_LATTICES: dict[str, tuple[str, dict[str, Cell]]] = {
    "p1": ("oblique", _ALONE),
    "p2": ("oblique", _ALONE),
    "pm": ("rectangular", _ROWS),
    "pg": ("rectangular", _ROWS),
    "cm": ("rhombic", _RHOMBIC),
    "pmm": ("rectangular", _ALONE),
    "pmg": ("rectangular", _ROWS),
    "pgg": ("rectangular", _ALONE),
    "cmm": ("rhombic", _RHOMBIC_ONCE),
    **dict.fromkeys(("p4", "p4m", "p4g"), ("square", _ALONE)),
    **dict.fromkeys(("p3", "p3m1", "p31m", "p6", "p6m"), ("hexagonal", _HEXAGON)),
}


@dataclass(frozen=True, eq=False)
class Setting:
    """A plane group as it lies on a reduced lattice.

    Attributes:
        group: its short symbol.
        where: which way it lies, empty where there is one way only.
        lattice: oblique, rectangular, rhombic, square or hexagonal.
        cell: rows are the conventional vectors in terms of the reduced ones.
        rotation: R of each operation but for translations of the lattice, (operation, 2, 2), whole numbers.
        translation: v of each operation, (operation, 2), from 0 to 1, the origin where the tables put it.
    """

    group: str
    where: str
    lattice: str
    cell: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    @property
    def name(self) -> str:
        """The symbol, and which way it lies."""
        return f"{self.group} {self.where}".strip()

    @property
    def order(self) -> int:
        """Number of operations."""
        return len(self.rotation)


def generate(generators: Sequence[Generator]) -> tuple[np.ndarray, np.ndarray]:
    """All operations of a group, lattice translations left out: rotations and translations, the identity first."""
    start: list[Operation] = [((1, 0, 0, 1), (0, 0))]
    steps: list[Operation] = [(r, tuple(round(DENOMINATOR * t) for t in v)) for r, v in generators]
    found, fresh = dict.fromkeys(start), list(start)
    while fresh:
        made = [_product(step, old) for old in fresh for step in steps]
        fresh = [new for new in dict.fromkeys(made) if new not in found]
        found |= dict.fromkeys(fresh)
    rotation = np.array([np.reshape(r, (2, 2)) for r, _ in found])
    return rotation, np.array([v for _, v in found]) / DENOMINATOR


def _product(one: Operation, other: Operation) -> Operation:
    """First the other, then the one."""
    (a, b, c, d), v = one
    (e, f, g, h), w = other
    turned = (a * w[0] + b * w[1] + v[0], c * w[0] + d * w[1] + v[1])
    matrix = (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)
    return matrix, tuple(t % DENOMINATOR for t in turned)


def _setting(group: str, where: str, lattice: str, cell: np.ndarray) -> Setting:
    """A group's operations in units of the reduced vectors, one for each rotation."""
    rotation, translation = generate(_GENERATORS[group])
    to, back = cell.T, np.linalg.inv(cell.T)
    rotation = np.rint(to @ rotation @ back).astype(np.int64)
    translation = translation @ to.T
    # In the primitive cell the centring is a translation of the lattice.
    _, first = np.unique(rotation.reshape(-1, 4), axis=0, return_index=True)
    first = np.sort(first)
    moved = np.rint(translation[first] * DENOMINATOR) % DENOMINATOR / DENOMINATOR
    return Setting(group, where, lattice, cell, rotation[first], moved)


SETTINGS = tuple(
    _setting(group, where, lattice, np.array(cell))
    for group, (lattice, ways) in _LATTICES.items()
    for where, cell in ways.items()
)


def reduced_basis(basis: np.ndarray) -> np.ndarray:
    """The reduced basis of a lattice, rows are vectors: the shortest two, 60 to 90 degrees apart."""
    a, b = np.array(basis, dtype=float)
    while True:
        if b @ b < a @ a:
            a, b = b, a
        step = np.rint(a @ b / (a @ a))
        if step == 0:
            return np.stack([a, b if a @ b >= 0 else -b])
        b = b - step * a


def _metric(basis: np.ndarray) -> np.ndarray:
    gram = basis @ basis.T
    return np.asarray(gram / np.sqrt(np.linalg.det(gram)))


# The shape of a lattice is a point of the hyperbolic plane; a small strain ε of either kind is a step of 2 ε.
_IDEAL = {
    "square": np.eye(2),
    "hexagonal": np.array([[1.0, 0.0], [-0.5, np.sqrt(0.75)]]),
}


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Distance between the shapes of two bases: where they are nearly alike, twice the strain between them."""
    cosine = 0.5 * np.trace(_metric(one) @ np.linalg.inv(_metric(other)))
    return float(np.arccosh(max(1.0, cosine)))


def shape_distance(basis: np.ndarray, setting: Setting) -> tuple[float, float]:
    """How far a lattice is from the shape that a setting asks for, and where along the shapes that it allows.

    Both are hyperbolic lengths: a stretch of one axis by ε/2 and of the other by -ε/2, or a shear by as much, is a
    step of ε. The second is the log of the ratio of the rectangle's sides, 0 where the shape is fixed.

    Args:
        basis: reduced basis, rows are vectors.
        setting: the group as it lies on that basis.
    """
    cell = setting.cell @ basis
    if setting.lattice == "oblique":
        return 0.0, 0.0
    if setting.lattice in _IDEAL:
        return apart(cell, _IDEAL[setting.lattice]), 0.0
    metric = _metric(cell)
    # Fermi coordinates about the line of rectangles: g = ((e^-u cosh v, sinh v), (sinh v, e^u cosh v)).
    return float(abs(np.arcsinh(metric[0, 1]))), float(0.5 * np.log(metric[1, 1] / metric[0, 0]))


def subgroups(setting: Setting) -> tuple[int, ...]:
    """Settings whose operations are all among those of this one, wherever their origin may be, itself included."""
    whole = {tuple(r.ravel()) for r in setting.rotation}
    return tuple(
        i
        for i, other in enumerate(SETTINGS)
        if {tuple(r.ravel()) for r in other.rotation} <= whole
        and _place(other, setting) is not None
    )


def _place(part: Setting, whole: Setting) -> np.ndarray | None:
    """Where the part's origin must be for its operations to be the whole's, none if nowhere; in twenty-fourths."""
    grid = np.stack(np.meshgrid(*[np.arange(DENOMINATOR)] * 2, indexing="ij"), -1).reshape(-1, 2)
    fits = np.ones(len(grid), bool)
    for rotation, translation in zip(part.rotation, part.translation, strict=True):
        same = (whole.rotation == rotation).all((1, 2))
        target = np.rint(whole.translation[same][0] * DENOMINATOR)
        moved = np.rint(translation * DENOMINATOR) + grid @ (np.eye(2) - rotation).T
        fits &= ((moved - target) % DENOMINATOR == 0).all(1)
    return grid[fits][0] / DENOMINATOR if fits.any() else None


class Case(NamedTuple):
    """A setting, and the higher one that a motif may nearly have.

    Attributes:
        setting: number of the setting.
        like: number of the higher setting, or of the setting itself.
        shift: where the setting's origin is, seen from that of the higher one.
    """

    setting: int
    like: int
    shift: tuple[float, float]

    @property
    def name(self) -> str:
        """The setting, and what it nearly is."""
        own, higher = SETTINGS[self.setting].name, SETTINGS[self.like].name
        return own if self.setting == self.like else f"{own}, nearly {higher}"


@cache
def cases() -> tuple[Case, ...]:
    """The settings in their order, each as it is; then each as a breaking of every higher one."""
    found = [Case(i, i, (0.0, 0.0)) for i in range(len(SETTINGS))]
    for j, whole in enumerate(SETTINGS):
        for i in subgroups(whole):
            place = _place(SETTINGS[i], whole)
            if i != j and place is not None:
                found.append(Case(i, j, (float(place[0]), float(place[1]))))
    return tuple(found)
