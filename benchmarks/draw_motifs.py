"""Draw the built-in templates of local motifs from ideal and relaxed structures, and write them as text.

    python benchmarks/draw_motifs.py models/structure/motifs

A template is an atom and what stands around it, out to REACH bonds. Nothing here is measured or noisy: lattices are
ideal, and what is bent (a dislocation, silicon in graphene) is at rest under the energy of `datasets/relax.py`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atomzoo.datasets.crystals import cells_within, hexagonal
from atomzoo.datasets.relax import relax

BOND = 0.142
# In the plane of the picture: three-fold silicon stands out of the sheet, four-fold silicon lies in it.
BOND_TO_SILICON = (0.165, 0.187)
# Bonds that a template reaches beyond its centre; three shells of a honeycomb end at 2, the fourth is at 2.65.
REACH = 2.95
# Power of the atomic number that brightness goes with.
POWER = 1.7
SILICON = (14 / 6) ** POWER
# Isolated dislocations differ from those in a boundary, and edges relax: how far sites of one name differ, in nm.
BENT, EDGE = 0.008, 0.004
PATCH = 2.5

# Rows of the files: motif, variant, x, y, brightness, tolerance.
Row = tuple[str, int, float, float, float, float]


@dataclass
class Atoms:
    """Atoms, their brightness, and where a motif is to be cut out."""

    position: np.ndarray
    brightness: np.ndarray

    def around(self, centre: np.ndarray, reach: float) -> np.ndarray:
        """Vectors from a centre to what is within reach, and brightness relative to that of the centre."""
        away = self.position - centre
        distance = np.linalg.norm(away, axis=1)
        own = self.brightness[distance.argmin()]
        near = (distance < reach) & (distance > 1e-6)
        order = np.argsort(distance[near], kind="stable")
        return np.column_stack([away[near], self.brightness[near] / own])[order]


def rows(
    name: str, variant: int, atoms: Atoms, centre: np.ndarray, reach: float, tolerance: float = 0.0
) -> Iterator[Row]:
    """A template as lines of the file."""
    for x, y, brightness in atoms.around(centre, reach):
        yield name, variant, round(x, 5), round(y, 5), round(brightness, 4), tolerance


def plain(position: np.ndarray) -> Atoms:
    """Atoms of one brightness."""
    return Atoms(position, np.ones(len(position)))


def nearest(position: np.ndarray, place: np.ndarray) -> int:
    """The atom nearest to a place."""
    return int(np.linalg.norm(position - place, axis=1).argmin())


# Graphene


def sheet(rings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms in the triangles of the rings' middles, their bonds (-1 for none), and the sides of their rings."""
    from scipy.spatial import Delaunay

    triangles = Delaunay(rings)
    sides = np.bincount(triangles.simplices.ravel(), minlength=len(rings))[triangles.simplices]
    position = rings[triangles.simplices].mean(1)
    bonds = np.pad(triangles.neighbors, ((0, 0), (0, 1)), constant_values=-1)
    kept = np.linalg.norm(position, axis=1) < PATCH
    renamed = np.where(kept, np.cumsum(kept) - 1, -1)
    bonds = np.where(bonds[kept] >= 0, renamed[bonds[kept]], -1)
    return position[kept], bonds, sides[kept]


def lattice() -> np.ndarray:
    """Middles of the hexagons of a patch."""
    basis = hexagonal(np.sqrt(3) * BOND)
    return cells_within(PATCH + 1.0, *basis) @ basis


def dislocation() -> tuple[np.ndarray, np.ndarray]:
    """One pair of pentagon and heptagon at rest, and the sides of every atom's rings."""
    spacing = np.sqrt(3) * BOND
    # The core between two rows; the displacement of an edge dislocation, Poisson's ratio 0.2.
    x, y = (lattice() - [0.25 * spacing, 0.25 * np.sqrt(3) * spacing]).T
    square, stiff = x**2 + y**2, 2 * (1 - 0.2)
    u = np.arctan2(y, x) + x * y / stiff / square
    v = -(0.3 / stiff * np.log(square) + (x**2 - y**2) / (2 * stiff * square))
    rings = np.column_stack([x, y]) + spacing / (2 * np.pi) * np.column_stack([u, v])
    position, bonds, sides = sheet(rings)
    inner = np.linalg.norm(position, axis=1) < PATCH - 0.5
    pairs = np.unique(sides[inner], axis=0)
    if not {5, 7} <= set(pairs.ravel().tolist()) or set(pairs.ravel().tolist()) - {5, 6, 7}:
        raise SystemExit(f"no single pair of pentagon and heptagon: rings {pairs.tolist()}")
    return relax(position, bonds, np.full(bonds.shape, BOND)), sides


def silicon(bonds_of_it: int) -> tuple[Atoms, int, np.ndarray]:
    """A patch with one silicon of three or four bonds at rest, the silicon, and its neighbours."""
    position, bonds, _ = sheet(lattice())
    centre = nearest(position, np.zeros(2))
    gone = np.zeros(len(position), bool)
    if bonds_of_it == 4:
        other = bonds[centre, 0]
        around = [i for i in (*bonds[centre], *bonds[other]) if i not in (-1, centre, other)]
        for neighbour in around:
            bonds[neighbour][bonds[neighbour] == other] = centre
        position[centre] = (position[centre] + position[other]) / 2
        bonds[centre], bonds[other], gone[other] = around, -1, True
    length = np.full(bonds.shape, BOND)
    length[centre] = length[bonds == centre] = BOND_TO_SILICON[bonds_of_it - 3]
    position = relax(position, bonds, length)
    brightness = np.where(np.arange(len(position)) == centre, SILICON, 1.0)
    around = position[bonds[centre][bonds[centre] >= 0]]
    found = Atoms(position[~gone], brightness[~gone])
    return found, nearest(found.position, position[centre]), around


def graphene() -> Iterator[Row]:
    """Bulk, defects of rings, a vacancy's shells, edges, silicon and what is near it."""
    reach = REACH * BOND
    position, _, _ = sheet(lattice())
    centre = nearest(position, np.zeros(2))
    yield from rows("sp2 bulk", 1, plain(position), position[centre], reach)
    bent, sides = dislocation()
    yield from of_rings(bent, sides, reach)
    without = plain(np.delete(position, centre, 0))
    distance = np.linalg.norm(position - position[centre], axis=1)
    for name, shell in (
        ("next to a vacancy", 1.0),
        ("second from a vacancy", 3**0.5),
        ("third from a vacancy", 2.0),
    ):
        chosen = np.abs(distance - shell * BOND).argmin()
        yield from rows(name, 1, without, position[chosen], reach)
    yield from of_edges(position, reach)
    for count in (3, 4):
        atoms, site, _ = silicon(count)
        yield from rows(f"silicon with {count} bonds", 1, atoms, atoms.position[site], reach, EDGE)
    for count in (3, 4):
        atoms, _, around = silicon(count)
        yield from rows("next to silicon", count - 2, atoms, around[0], reach, EDGE)
    yield from near_silicon(reach)


def near_silicon(reach: float) -> Iterator[Row]:
    """The atoms within the first three shells of silicon that are not bonded to it: each has lost or moved neighbours."""
    variant = 0
    for count in (3, 4):
        atoms, site, around = silicon(count)
        away = np.linalg.norm(atoms.position - atoms.position[site], axis=1)
        bonded = [site, *(nearest(atoms.position, place) for place in around)]
        seen: list[float] = []
        for atom in np.argsort(away, kind="stable"):
            new = not any(abs(away[atom] - other) < 1e-3 for other in seen)
            if atom not in bonded and away[atom] < 2.5 * BOND and new:
                seen.append(float(away[atom]))
                variant += 1
                yield from rows("near silicon", variant, atoms, atoms.position[atom], reach, EDGE)


def of_rings(position: np.ndarray, sides: np.ndarray, reach: float) -> Iterator[Row]:
    """Each atom of the pair that is not the mirror image of one before."""
    core = np.linalg.norm(position, axis=1) < PATCH - 1.0
    five, seven = (sides == 5).any(1) & core, (sides == 7).any(1) & core
    for name, chosen in (
        ("pentagon", five & ~seven),
        ("heptagon", seven & ~five),
        ("pentagon and heptagon", five & seven),
    ):
        seen: list[np.ndarray] = []
        for atom in np.flatnonzero(chosen):
            # The sorted distances are the same for mirror images, and for nothing else here.
            marks = np.sort(np.linalg.norm(position - position[atom], axis=1))[1:10]
            if not any(np.allclose(marks, other, atol=1e-3) for other in seen):
                seen.append(marks)
                yield from rows(name, len(seen), plain(position), position[atom], reach, BENT)


def of_edges(position: np.ndarray, reach: float) -> Iterator[Row]:
    """The atoms of an edge, and those behind it that miss a neighbour of the first three shells."""
    behind = 0
    for name, along in (("zigzag edge", 0.0), ("armchair edge", np.pi / 2)):
        across = position @ [-np.sin(along), np.cos(along)]
        kept = position[across < 1e-6]
        while True:
            count = (np.linalg.norm(kept[:, None] - kept, axis=2) < 1.2 * BOND).sum(1) - 1
            depth = across.max() if not len(kept) else kept @ [-np.sin(along), np.cos(along)]
            lonely = (count < 2) & (depth > -2 * BOND)
            if not lonely.any():
                break
            kept = kept[~lonely]
        depth = kept @ [-np.sin(along), np.cos(along)]
        middle = np.abs(kept @ [np.cos(along), np.sin(along)]) < 2 * BOND
        edge = np.flatnonzero(middle & (count == 2) & (depth > -2 * BOND))
        yield from rows(name, 1, plain(kept), kept[edge[0]], reach, EDGE)
        full = np.array([len(plain(kept).around(p, 2.3 * BOND)) for p in kept])
        seen: set[int] = set()
        for atom in np.flatnonzero(middle & (count == 3) & (full < 12) & (depth > -4 * BOND)):
            if int(full[atom]) not in seen:
                seen.add(int(full[atom]))
                behind += 1
                yield from rows("behind an edge", behind, plain(kept), kept[atom], reach, EDGE)


# MoS2


def tmd(rise: float, vacant: str = "", spacing: float = 0.316) -> tuple[Atoms, np.ndarray]:
    """A patch of MoS2 in 2H, or in 1T' where rows rise: the atoms, and the three places of the middle cell.

    `vacant` takes a sulfur (`half`), a column of sulfur (`chalcogen`) or a metal (`metal`) out of the middle cell.
    """
    basis = hexagonal(spacing)
    cells = cells_within(PATCH, *basis)
    one = (16 / 42) ** POWER
    shift = rise * np.where(cells[:, 1] % 2 == 0, 1.0, -1.0)
    up = np.column_stack([0 * shift, shift])
    metal = cells @ basis + up
    hollows = [basis.sum(0) / 3, basis.sum(0) * 2 / 3]
    # In 1T' each hollow has one chalcogen, which follows the metals around it; in 2H the first has both.
    parts = [
        cells @ basis + place + up * f for place, f in zip(hollows, (1 / 3, -1 / 3), strict=True)
    ]
    brightness = [np.full(len(cells), 2 * one if rise == 0 else one), np.full(len(cells), one)]
    middle = int(np.abs(cells).sum(1).argmin())
    places = np.stack([metal[middle], parts[0][middle], parts[1][middle]])
    metals, alone = np.ones(len(cells)), np.arange(len(cells)) == middle
    if vacant == "half":
        brightness[0][alone] /= 2
    if vacant == "chalcogen":
        parts[0], brightness[0] = parts[0][~alone], brightness[0][~alone]
    if vacant == "metal":
        metal, metals = metal[~alone], metals[~alone]
    shown = [metal, parts[0]] + ([parts[1]] if rise else [])
    bright = [metals, brightness[0]] + ([brightness[1]] if rise else [])
    return Atoms(np.concatenate(shown), np.concatenate(bright)), places


def of_metals(atoms: Atoms) -> Atoms:
    """The brightest columns alone."""
    bright = atoms.brightness > 0.9 * atoms.brightness.max()
    return Atoms(atoms.position[bright], atoms.brightness[bright])


def molybdenum_disulfide() -> Iterator[Row]:
    """2H and 1T', and what stands next to a vacancy."""
    bond = 0.316 / np.sqrt(3)
    reach = REACH * bond
    whole, (metal, chalcogen, _) = tmd(0.0)
    yield from rows("2H metal", 1, whole, metal, reach)
    # Where the picture shows no chalcogen.
    yield from rows("2H metal", 2, of_metals(whole), metal, reach)
    yield from rows("2H chalcogen", 1, whole, chalcogen, reach)
    # The other chalcogen of the cell is this one turned by half a turn.
    bent, places = tmd(0.023)
    yield from rows("1T' metal", 1, bent, places[0], reach, EDGE)
    yield from rows("1T' metal", 2, of_metals(bent), places[0], reach, EDGE)
    yield from rows("1T' chalcogen", 1, bent, places[1], reach, EDGE)
    half, _ = tmd(0.0, "half")
    none, _ = tmd(0.0, "chalcogen")
    hole, _ = tmd(0.0, "metal")
    yield from rows("metal next to half a chalcogen", 1, half, metal, reach)
    yield from rows("metal next to a missing chalcogen", 1, none, metal, reach)
    yield from rows("chalcogen next to a missing metal", 1, hole, chalcogen, reach)
    yield from rows("half a chalcogen", 1, half, chalcogen, reach)
    further = hexagonal(0.316)[0]
    yield from rows("second from a missing chalcogen", 1, none, chalcogen + further, reach)
    for variant, atoms in enumerate((hole, of_metals(hole)), 1):
        yield from rows("second from a missing metal", variant, atoms, metal + further, reach)


# Perovskites, in units of the cell


def perovskite() -> Iterator[Row]:
    """A and B of a square cell, of a longer one, and with B off the centre; brightness of strontium and titanium."""
    ratio = (22**POWER + 8**POWER) / 38**POWER
    grid = (
        np.stack(np.meshgrid(np.arange(-4, 5), np.arange(-4, 5)), -1).reshape(-1, 2).astype(float)
    )

    def crystal(stretch: float, shift: tuple[float, float]) -> Atoms:
        cell = np.array([1 / np.sqrt(stretch), np.sqrt(stretch)])
        b = (grid + 0.5) * cell + shift
        return Atoms(
            np.concatenate([grid * cell, b]),
            np.concatenate([np.ones(len(grid)), np.full(len(grid), ratio)]),
        )

    # Off the centre along an edge, or along a diagonal of the picture, by 20 pm of 0.4 nm.
    cases = (
        ("square", 1.0, (0.0, 0.0)),
        ("rectangular", 1.05, (0.0, 0.0)),
        ("polar", 1.05, (0.0, 0.05)),
        ("diagonally polar", 1.0, (0.035, 0.035)),
    )
    for name, stretch, shift in cases:
        atoms = crystal(stretch, shift)
        b = nearest(atoms.position, np.array([0.5, 0.5]))
        yield from rows(f"{name} A", 1, atoms, np.zeros(2), 1.6, 0.005)
        yield from rows(f"{name} B", 1, atoms, atoms.position[b], 1.6, 0.005)


# Shapes, in units of the distance of neighbours


def shapes() -> Iterator[Row]:
    """What a crystal can look like to the nearest neighbours, and what is left of it at an edge."""

    def star(degrees: list[float], radius: float = 1.0) -> np.ndarray:
        angle = np.deg2rad(degrees)
        return radius * np.column_stack([np.cos(angle), np.sin(angle)])

    def full(inner: list[float], outer: list[float], radius: float) -> np.ndarray:
        return np.concatenate([star(inner), star(outer, radius)])

    tri = [60.0 * k for k in range(6)]
    diagonal = [45.0 + 90 * k for k in range(4)]
    for name, points in (
        ("three-fold", full([0, 120, 240], [30 + k for k in tri], 3**0.5)),
        ("square", full([0, 90, 180, 270], diagonal, 2**0.5)),
        ("hexagonal", full(tri, [30 + k for k in tri], 3**0.5)),
        ("linear", star([0, 180])),
        ("bent", star([0, 120])),
        ("right angle", star([0, 90])),
        ("square edge", full([0, 90, 180], [45, 135], 2**0.5)),
        ("hexagonal edge", full([0, 60, 120, 180], [30, 90, 150], 3**0.5)),
        ("five of six", full([0, 60, 120, 180, 240], [30 + k for k in tri], 3**0.5)),
        ("five-fold", star([72.0 * k for k in range(5)])),
    ):
        for x, y in points:
            yield name, 1, round(float(x), 5), round(float(y), 5), 1.0, 0.02


FILES = {
    "shapes": (shapes, "lengths in units of the distance of neighbours"),
    "graphene": (graphene, "lengths in nm, carbon-carbon bond 0.142"),
    "MoS2": (molybdenum_disulfide, "lengths in nm, lattice constant 0.316"),
    "perovskite": (perovskite, "lengths in units of the cell"),
}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, (draw, note) in FILES.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            file.write(f"# {note}; brightness relative to the centre\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["motif", "variant", "x", "y", "brightness", "tolerance"])
            writer.writerows(draw())


if __name__ == "__main__":
    main()
