"""Graphene: perfect, with vacancies, silicon, a grain boundary or an edge.

A sheet of carbon is drawn as the dual of a triangulation: an atom in every triangle, a ring around every point, with as
many sides as the point has neighbours. Points of the triangular lattice give hexagons; where two lattices of different
orientation meet, the triangulation finds the pentagons and heptagons by itself.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> sheet = simulate("graphene", gives="atoms", tilt=20, seed=1)
    >>> sheet.attrs["kind"], round(float(sheet.true_tilt), 2), set(sheet.true_coordination.values.tolist())
    ('atoms', 21.79, {3})
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crystals import Crystal, Solid, cells_within, choose, fractions, hexagonal, turn
from .imaging import imaged
from .kinds import DataError
from .multislice import Beam
from .relax import relax
from .scenes import scene

__all__ = ["graphene"]

SPACING = 0.246
BOND = SPACING / np.sqrt(3)
# In the plane of the picture: three-fold silicon stands out of the sheet, four-fold silicon lies in it.
BOND_TO_SILICON = (0.165, 0.187)
CARBON, SILICON = 6, 14
SITES = (
    "bulk",
    "pentagon",
    "heptagon",
    "pentagon and heptagon",
    "next to a vacancy",
    "armchair edge",
    "zigzag edge",
    "silicon with 3 bonds",
    "silicon with 4 bonds",
)
# Lattice vectors (n, m) along the boundary whose mirror twins join by one pair of a pentagon and a heptagon a period.
BOUNDARIES = ((5, 4), (4, 3), (3, 2), (2, 1), (3, 1))
# Points of both grains nearer to the mirror than this, in lattice constants, are one.
MERGED = 0.25
# A slip of one grain that decides between like triangulations, and is relaxed away.
TIE = 1e-4
# Point defects nearer than this would share neighbours.
APART = 0.6
# Strain decays within a period of the boundary, the longest of which is 1.9 nm; farther from it grains are rigid.
RELAXED = 2.5
# Triangles of the hull are wrong; so far from it they are right.
HULL = 1.0


@dataclass
class _Sheet:
    """Atoms and who is bonded to whom: four places each, -1 where there is no neighbour."""

    position: np.ndarray
    bonds: np.ndarray
    site: np.ndarray

    @property
    def coordination(self) -> np.ndarray:
        return (self.bonds >= 0).sum(1)

    def keep(self, kept: np.ndarray) -> _Sheet:
        """The sheet without some atoms, and without the bonds that they had."""
        renamed = np.where(kept, np.cumsum(kept) - 1, -1)
        bonds = self.bonds[kept]
        return _Sheet(
            self.position[kept], np.where(bonds >= 0, renamed[bonds], -1), self.site[kept]
        )


def misorientation(n: int, m: int) -> float:
    """Angle in degrees between a lattice with (n, m) along y and its mirror image."""
    along = _angle(n, m)
    return min(2 * along % 60, -2 * along % 60)


def _angle(n: int, m: int) -> float:
    """Angle in degrees of the lattice vector (n, m) from the first."""
    return float(np.degrees(np.arctan2(np.sqrt(3) * m, 2 * n + m)))


def _lattice(radius: float, degrees: float) -> np.ndarray:
    """Middles of the hexagons; at 0 degrees a zigzag row runs along x."""
    lattice = hexagonal(SPACING)
    return turn(cells_within(radius, *lattice) @ lattice, degrees)


def _bicrystal(radius: float, n: int, m: int) -> np.ndarray:
    """Middles of the rings of two grains, mirrored at x = 0."""
    grain = _lattice(radius, 90 - _angle(n, m))
    near = MERGED * SPACING
    left = grain[grain[:, 0] < -near]
    shared = grain[np.abs(grain[:, 0]) <= near] * [0, 1]
    shared = shared[np.unique(shared[:, 1].round(6), return_index=True)[1]]
    # Two pairs of mirror twins lie on a circle, and rounding would choose the diagonal anew in every period.
    right = left * [-1, 1] + [0, TIE * SPACING]
    return np.concatenate([left, right, shared])


def _sheet(rings: np.ndarray, radius: float) -> _Sheet:
    """Atoms in the triangles of the rings' middles, classed by the rings that they are in."""
    from scipy.spatial import Delaunay

    triangles = Delaunay(rings)
    corners, neighbours = triangles.simplices, triangles.neighbors
    sides = np.bincount(corners.ravel(), minlength=len(rings))[corners]
    site = (sides == 5).any(1) + 2 * (sides == 7).any(1)
    bonds = np.pad(neighbours, ((0, 0), (0, 1)), constant_values=-1)
    sheet = _Sheet(rings[corners].mean(1), bonds.astype(np.int64), site.astype(np.int64))
    return sheet.keep(np.linalg.norm(sheet.position, axis=1) < radius)


def _cut(sheet: _Sheet, edge: str) -> _Sheet:
    """The half at negative x, without atoms that would hang on one bond."""
    sheet = sheet.keep(sheet.position[:, 0] < 0)
    while (lonely := (sheet.coordination < 2) & (sheet.position[:, 0] > -APART)).any():
        sheet = sheet.keep(~lonely)
    cut = (sheet.coordination == 2) & (sheet.position[:, 0] > -APART)
    sheet.site[cut] = SITES.index(f"{edge} edge")
    return sheet


def _drawn(
    rng: np.random.Generator, sheet: _Sheet, radius: float, shares: dict[str, float]
) -> dict[str, np.ndarray]:
    """Atoms for each kind of point defect, all apart from each other and from other defects."""
    from scipy.spatial import cKDTree

    tree = cKDTree(sheet.position)
    # The rim is not bulk: its neighbours are cut off.
    free = (sheet.site == 0) & (np.linalg.norm(sheet.position, axis=1) < radius - HULL / 2)
    total = int(free.sum())
    blocked = ~free
    for i in tree.query_ball_point(sheet.position[sheet.site > 0], APART / 2):
        blocked[i] = True
    drawn = {}
    for name, share in shares.items():
        wanted = int(rng.binomial(total, share))
        found: list[int] = []
        for atom in rng.permutation(np.flatnonzero(~blocked)):
            if len(found) == wanted:
                break
            if not blocked[atom]:
                found.append(int(atom))
                blocked[tree.query_ball_point(sheet.position[atom], APART)] = True
        if len(found) < wanted:
            raise DataError(f"{name}={share:g} is more than the sheet has room for; take less")
        drawn[name] = np.array(found, dtype=np.int64)
    return drawn


def _four_bonded(sheet: _Sheet, atoms: np.ndarray) -> np.ndarray:
    """Put each of these atoms in the middle of its first bond, in the place of both; which atoms are gone."""
    gone = np.zeros(len(sheet.position), bool)
    for atom in atoms:
        other = sheet.bonds[atom, 0]
        around = [i for i in (*sheet.bonds[atom], *sheet.bonds[other]) if i >= 0]
        around = [i for i in around if i not in (atom, other)]
        for neighbour in around:
            places = sheet.bonds[neighbour]
            places[places == other] = atom
        sheet.position[atom] = (sheet.position[atom] + sheet.position[other]) / 2
        sheet.bonds[atom], sheet.bonds[other] = around, -1
        gone[other] = True
    return gone


@scene
@imaged(beam=Beam(energy=60.0, convergence=31.0), field=5.0, pixel=0.01, dose=1000.0, rotation=8.0)
def graphene(
    rng: np.random.Generator,
    radius: float,
    vacancies: float = 0.0,
    silicon_3: float = 0.0,
    silicon_4: float = 0.0,
    tilt: float = 0.0,
    edge: str = "none",
    z_power: float = 1.7,
) -> Crystal:
    """Graphene, with vacancies, silicon of three and four bonds, a grain boundary or an edge.

    `vacancies`, `silicon_3` and `silicon_4` are fractions of the atoms. `tilt` is the angle in degrees between two
    grains that meet in the middle of the frame, 0 for none: the nearest boundary of pairs of pentagon and heptagon is
    taken, and `true_tilt` is its angle. `edge` is `none`, `armchair` or `zigzag`. Intensities are relative to carbon.
    `render=multislice` sends a beam through the sheet, which is flat, instead of drawing peaks: see `multislice`.
    """
    choose("edge", edge, ("none", "armchair", "zigzag"))
    fractions(vacancies=vacancies, silicon_3=silicon_3, silicon_4=silicon_4)
    if tilt and edge != "none":
        raise DataError("tilt and edge exclude each other: a frame has a boundary or an edge")
    if tilt and not 5 <= tilt <= 30:
        raise DataError(f"tilt must be 0, or 5 to 30 degrees, found {tilt:g}")
    whole = radius + HULL
    if tilt:
        n, m = min(BOUNDARIES, key=lambda nm: abs(misorientation(*nm) - tilt))
        tilt, rings = misorientation(n, m), _bicrystal(whole + HULL, n, m)
    else:
        rings = _lattice(whole + HULL, 90.0 if edge == "zigzag" else 0.0)
    sheet = _sheet(rings, whole)
    if edge != "none":
        sheet = _cut(sheet, edge)
    return _grown(rng, sheet, whole, (vacancies, silicon_3, silicon_4), tilt, z_power)


def _grown(
    rng: np.random.Generator,
    sheet: _Sheet,
    radius: float,
    shares: tuple[float, float, float],
    tilt: float,
    z_power: float,
) -> Crystal:
    """Point defects put in, bonds relaxed."""
    lattice = sheet.position.copy()
    names = ("vacancies", "silicon_3", "silicon_4")
    drawn = _drawn(rng, sheet, radius, dict(zip(names, shares, strict=True)))
    vacant, three, four = (drawn[name] for name in names)
    missing = sheet.position[vacant]
    around = sheet.bonds[vacant].ravel()
    sheet.site[around[around >= 0]] = SITES.index("next to a vacancy")
    sheet.site[three], sheet.site[four] = (SITES.index(f"silicon with {n} bonds") for n in (3, 4))
    gone = _four_bonded(sheet, four)
    lattice[four] = sheet.position[four]
    gone[vacant] = True
    sheet, lattice = sheet.keep(~gone), lattice[~gone]
    silicon = sheet.site >= SITES.index("silicon with 3 bonds")
    if tilt or silicon.any():
        sheet.position = _relaxed(sheet)
    return Crystal(
        position=sheet.position,
        lattice=lattice,
        species=silicon.astype(np.int64),
        species_names=("C", "Si"),
        site=sheet.site,
        site_names=SITES,
        intensity=np.where(silicon, (SILICON / CARBON) ** z_power, 1.0),
        missing=missing,
        missing_species=np.zeros(len(missing), np.int64),
        columns={"coordination": sheet.coordination},
        facts={"tilt": tilt},
        # Flat: how far silicon stands out of the sheet changes no image.
        solid=Solid((((CARBON, 0.0),), ((SILICON, 0.0),)), silicon.astype(np.int64)),
    )


def _relaxed(sheet: _Sheet) -> np.ndarray:
    """Positions at rest; silicon is larger than carbon."""
    length = np.full(sheet.bonds.shape, BOND)
    for bonds, longer in zip((3, 4), BOND_TO_SILICON, strict=True):
        silicon = sheet.site == SITES.index(f"silicon with {bonds} bonds")
        length[silicon] = longer
        length[(sheet.bonds >= 0) & silicon[sheet.bonds]] = longer
    return relax(sheet.position, sheet.bonds, length, _bodies(sheet))


def _bodies(sheet: _Sheet) -> np.ndarray:
    """Atoms far from silicon and boundary move with their grain: 0, or 1 beyond a boundary."""
    from scipy.spatial import cKDTree

    odd = (sheet.site > 0) & (sheet.site != SITES.index("next to a vacancy"))
    far, _ = cKDTree(sheet.position[odd]).query(sheet.position)
    two = np.isin(sheet.site, [SITES.index("pentagon"), SITES.index("heptagon")]).any()
    return np.where(far > RELAXED, two & (sheet.position[:, 0] > 0), -1)
