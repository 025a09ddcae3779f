"""Perovskites ABO3 seen along [100]: domains, the walls between them, and B displaced against A."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crystals import Crystal, Solid, cells_within, choose
from .imaging import imaged
from .kinds import DataError
from .multislice import Beam
from .scenes import scene
from .twins import Twin, Walls, rhombohedral, tetragonal

__all__ = ["perovskite"]

SITES = ("A", "B", "O")
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
# Each column is in the middle of some corners of its cell: B of all four, oxygen of two, and some on top of B.
WEIGHTS = np.array([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0]])
KINDS = np.array([0, 1, 2, 2])
OXYGEN = 8
# A slip of units, not a specimen that a beam comes through.
THICKEST = 100.0


@dataclass(frozen=True)
class Material:
    """A perovskite: its cell at room temperature (nm, degrees), symbols and atomic numbers of A and B."""

    a: float
    c: float
    angle: float
    names: tuple[str, str]
    numbers: tuple[int, int]

    @property
    def polar(self) -> bool:
        """Whether the cell is no cube."""
        return self.a != self.c or self.angle != 90

    def twin(self, cubic: bool) -> Twin:
        """The cell with its twin, or the cube of the same volume."""
        if cubic:
            edge = (self.a**2 * self.c) ** (1 / 3)
            return tetragonal(edge, edge)
        if self.angle != 90:
            return rhombohedral(self.a, self.angle)
        return tetragonal(self.a, self.c)


MATERIALS = {
    "SrTiO3": Material(0.3905, 0.3905, 90.0, ("Sr", "Ti"), (38, 22)),
    "BaTiO3": Material(0.3992, 0.4036, 90.0, ("Ba", "Ti"), (56, 22)),
    "PbTiO3": Material(0.390, 0.415, 90.0, ("Pb", "Ti"), (82, 22)),
    "BiFeO3": Material(0.396, 0.396, 89.4, ("Bi", "Fe"), (83, 26)),
}


@scene
@imaged(
    beam=Beam(energy=200.0, convergence=22.0, inner_angle=70.0, outer_angle=150.0),
    field=10.0,
    pixel=0.02,
    dose=5000.0,
    rotation=3.0,
)
def perovskite(
    rng: np.random.Generator,
    radius: float,
    material: str = "PbTiO3",
    state: str = "auto",
    walls: str = "auto",
    domain_size: float = 4.0,
    wall_width: float = 0.5,
    off_centre: float = 0.02,
    oxygen: float = 0.0,
    thickness: float = 1.6,
    z_power: float = 1.7,
) -> Crystal:
    """A perovskite seen along [100]: columns of A and of B, domains, and B displaced against A.

    `material` is SrTiO3, BaTiO3, PbTiO3 or BiFeO3. `state` is `polar`, `cubic` (nothing displaced), `eight-site` (a
    cube in which each column of B is displaced along one of the eight <111> at random, as in hot BaTiO3), or `auto`:
    polar where the material is. `walls` is `none`, `180`, `ferroelastic` (90° in tetragonal, 71° in rhombohedral
    cells) or `auto`: ferroelastic where polar. Domains are stripes of width `domain_size` (nm), and both strain and
    displacement change as tanh with the half-width `wall_width`. B moves by `off_centre` (nm) in space, along c in
    tetragonal cells and along <111> in others, of which the image shows the projection. `oxygen` is how much columns
    of oxygen alone show of what `z_power` gives them, 0 for none.

    `render=multislice` sends a beam through `thickness` (nm) of it, in whole cells, instead of drawing peaks: see
    `multislice`. All oxygen is there then; its columns are among those of the truth where `oxygen` is above 0. In every
    layer B is displaced alike, and not along the beam.

    Of each column: `true_displacement` (of B from the middle of its four A), `true_domain` (0 or 1), `true_cell`, and
    `true_a`, `true_b` (nm), `true_gamma` (degrees) of the lattice at its place. The undistorted lattice is that of the
    domains. Intensities are relative to A.
    """
    found, state, walls = _checked(material, state, walls)
    _check_sizes(found, domain_size, wall_width, off_centre, oxygen, thickness)
    stripes = Walls.none() if walls == "none" else Walls.stripes(domain_size, wall_width, radius)
    strain = stripes if walls == "ferroelastic" else Walls.none()
    twin = found.twin(cubic=state != "polar")
    reach = radius + strain.shift(twin.slope) + twin.edge
    cells = cells_within(reach, *twin.vectors(strain.mean))
    sublattices = 4 if oxygen > 0 else 2
    kinds = np.tile(KINDS[:sublattices], len(cells))
    weights = WEIGHTS[:sublattices]
    corners = twin.position((cells[:, None] + CORNERS).reshape(-1, 2), strain)
    lattice = (weights @ corners.reshape(-1, 4, 2)).reshape(-1, 2)
    unlisted = (WEIGHTS[sublattices:] @ corners.reshape(-1, 4, 2)).reshape(-1, 2)
    places = (cells[:, None] + weights @ CORNERS).reshape(-1, 2)
    f = strain.profile(places @ twin.across)
    edges = twin.vectors(f)
    way = _way(rng, state, edges, f, found.angle != 90)
    if walls == "180":
        # A wall along the polarization holds no charge.
        f = stripes.profile(lattice @ (way[0, ::-1] * [-1, 1] / np.linalg.norm(way[0])))
        way = way * f[:, None]
    shift = off_centre * way * (kinds == 1)[:, None]
    lengths = np.linalg.norm(edges, axis=2)
    cosine = edges.prod(1).sum(1) / lengths.prod(1)
    heavy, middle, light = (float(number) ** z_power for number in (*found.numbers, OXYGEN))
    return Crystal(
        position=lattice + shift,
        lattice=lattice,
        species=kinds,
        species_names=(*found.names, "O"),
        site=kinds,
        site_names=SITES,
        intensity=(np.array([heavy, middle + light, oxygen * light]) / heavy)[kinds],
        columns={
            "domain": (f < 0).astype(np.int64),
            "cell": np.repeat(cells, sublattices, axis=0),
            "a": lengths[:, 0],
            "b": lengths[:, 1],
            "gamma": np.degrees(np.arccos(cosine)),
        },
        vectors={"displacement": shift},
        units={"a": "nm", "b": "nm", "gamma": "degree", "displacement": "nm"},
        solid=_solid(found, twin.edge if state != "polar" else found.a, thickness, kinds, unlisted),
    )


def _solid(
    material: Material, period: float, thickness: float, kinds: np.ndarray, oxygen: np.ndarray
) -> Solid:
    """A, then B with the oxygen below it, then oxygen alone, over and over; the beam runs along a."""
    a, b = material.numbers
    half = period / 2
    return Solid(
        stacks=(((a, 0.0),), ((b, half), (OXYGEN, 0.0)), ((OXYGEN, half),)),
        kind=kinds,
        layers=max(1, round(thickness / period)),
        period=period,
        unlisted=oxygen,
        unlisted_kind=2,
    )


def _checked(material: str, state: str, walls: str) -> tuple[Material, str, str]:
    """The material, and what `auto` means for it."""
    choose("material", material, tuple(MATERIALS))
    choose("state", state, ("auto", "polar", "cubic", "eight-site"))
    choose("walls", walls, ("auto", "none", "180", "ferroelastic"))
    found = MATERIALS[material]
    if state == "auto":
        state = "polar" if found.polar else "cubic"
    if walls == "auto":
        walls = "ferroelastic" if state == "polar" else "none"
    if state == "polar" and not found.polar:
        raise DataError(f"{material} is not polar; take state=cubic or another material")
    if state != "polar" and walls != "none":
        raise DataError(f"a crystal with state={state} has no walls; take walls=none")
    return found, state, walls


def _check_sizes(
    material: Material,
    domain_size: float,
    wall_width: float,
    off_centre: float,
    oxygen: float,
    thickness: float,
) -> None:
    if not 0 < 4 * wall_width <= domain_size < np.inf:
        raise DataError(
            "wall_width must be positive and at most a quarter of domain_size, "
            f"found {wall_width:g} and {domain_size:g} nm"
        )
    if not 0 <= off_centre < material.a / 4:
        raise DataError(
            f"off_centre must be from 0 to a quarter of a cell, found {off_centre:g} nm"
        )
    if not 0 <= oxygen <= 1:
        raise DataError(f"oxygen must be between 0 and 1, found {oxygen:g}")
    if not 0 < thickness <= THICKEST:
        raise DataError(f"thickness must be from 0 to {THICKEST:g} nm, found {thickness:g}")


def _way(
    rng: np.random.Generator, state: str, edges: np.ndarray, f: np.ndarray, rhombohedral: bool
) -> np.ndarray:
    """Where B goes in each cell, as the projection of a unit vector; it is one inside a domain, less in a wall."""
    if state == "cubic":
        return np.zeros((len(f), 2))
    if state == "eight-site":
        return rng.choice([-1.0, 1.0], (len(f), 2)) / np.sqrt(3)
    first, second = np.moveaxis(edges / np.linalg.norm(edges, axis=2, keepdims=True), 1, 0)
    f = f[:, None]
    if rhombohedral:
        # Along the longer diagonal.
        return (first + f * second) / np.sqrt(3)
    return ((1 + f) * first + (1 - f) * second) / 2
