"""Twinned lattices: domains sheared one way and the other, that fit exactly along their walls.

With n the coordinate across the walls and t that along them, the point (i, j) of the lattice lies at

    n = N · (i, j),        t = T · (i, j) + slope ∫₀ⁿ f dn,

where f is 1 in one domain and -1 in the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Twin", "Walls", "rhombohedral", "tetragonal"]


@dataclass(frozen=True)
class Walls:
    """Parallel walls, across which f changes as tanh from 1 to -1 and back; f is 1 where there are none.

    Attributes:
        places: where they are, evenly spaced; the first turns f from 1 to -1.
        width: half-width of a wall.
    """

    places: np.ndarray
    width: float

    @classmethod
    def none(cls) -> Walls:
        """A single domain."""
        return cls(np.zeros(0), 1.0)

    @classmethod
    def stripes(cls, domain: float, width: float, radius: float) -> Walls:
        """Stripes of a width, with a wall in the middle and f = 1 on its negative side."""
        # An even number on that side; twice the radius, since cells are drawn beyond it.
        pairs = int(np.ceil(radius / domain)) + 1
        return cls(domain * np.arange(-2 * pairs, 2 * pairs + 1), width)

    @property
    def signs(self) -> np.ndarray:
        """Whether a wall turns f down or up."""
        return (-1.0) ** np.arange(len(self.places))

    @property
    def mean(self) -> np.ndarray:
        """The mean of f over many domains."""
        return np.array(0.0 if len(self.places) else 1.0)

    def shift(self, slope: float) -> float:
        """How far walls move a lattice from the mean one, at most."""
        return abs(slope) * float(np.diff(self.places).max(initial=0.0))

    def profile(self, n: np.ndarray) -> np.ndarray:
        """The profile f."""
        turns = self.signs * (1 + np.tanh((n[..., None] - self.places) / self.width))
        return 1 - turns.sum(-1)

    def area(self, n: np.ndarray) -> np.ndarray:
        """Integral of f from 0 to n."""
        return self._primitive(n) - self._primitive(np.zeros(1))

    def _primitive(self, n: np.ndarray) -> np.ndarray:
        away = n[..., None] - self.places
        u = np.abs(away) / self.width
        # The logarithm of the hyperbolic cosine, which itself overflows, up to a constant.
        bend = self.width * (u + np.log1p(np.exp(-2 * u)))
        return n - (self.signs * (away + bend)).sum(-1)


@dataclass(frozen=True)
class Twin:
    """A lattice and its twin.

    Attributes:
        normal: unit vector across the wall.
        along: unit vector along it.
        across: N, the steps of the two cell vectors across the wall.
        steps: T, their steps along it where f = 0.
        slope: shear of a domain.
    """

    normal: np.ndarray
    along: np.ndarray
    across: np.ndarray
    steps: np.ndarray
    slope: float

    @property
    def edge(self) -> float:
        """The longer edge of the cell."""
        return float(np.linalg.norm(self.vectors(np.ones(())), axis=-1).max())

    def vectors(self, f: np.ndarray) -> np.ndarray:
        """The two cell vectors where the profile is f, (..., vector, axis)."""
        steps = self.steps + self.slope * f[..., None] * self.across
        return self.across[:, None] * self.normal + steps[..., None] * self.along

    def position(self, cells: np.ndarray, walls: Walls) -> np.ndarray:
        """Where cells, or parts of cells, lie."""
        n = cells @ self.across
        t = cells @ self.steps + self.slope * walls.area(n)
        return n[:, None] * self.normal + t[:, None] * self.along


def tetragonal(a: float, c: float) -> Twin:
    """The first vector c along x and the second a along y where f = 1; lengths exchanged where f = -1."""
    # The wall holds the diagonal, which both cells share.
    diagonal = float(np.hypot(a, c))
    return Twin(
        normal=np.array([a, c]) / diagonal,
        along=np.array([c, -a]) / diagonal,
        across=np.full(2, a * c / diagonal),
        steps=np.array([0.5, -0.5]) * diagonal,
        slope=(c**2 - a**2) / (2 * a * c),
    )


def rhombohedral(a: float, angle: float) -> Twin:
    """Equal edges at an angle (degrees) where f = 1, and at 180° less it where f = -1; the second along y."""
    gamma = np.deg2rad(angle)
    return Twin(
        normal=np.array([1.0, 0.0]),
        along=np.array([0.0, 1.0]),
        across=np.array([a * np.sin(gamma), 0.0]),
        steps=np.array([0.0, a]),
        slope=float(1 / np.tan(gamma)),
    )
