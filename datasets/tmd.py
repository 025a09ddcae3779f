"""A monolayer of MoS2 and its alloys, seen along c."""

from __future__ import annotations

import numpy as np

from .crystals import Crystal, Solid, cells_within, choose, fractions, hexagonal
from .imaging import imaged
from .kinds import DataError
from .multislice import Beam
from .scenes import scene

__all__ = ["tmd"]

SPACING = 0.316
# From a metal to a chalcogen, in the plane.
BOND = SPACING / np.sqrt(3)
FIRST, SECOND = LATTICE = hexagonal(SPACING)
# Places of a cell's columns: the metal, and the middles of a triangle of metals pointing up and of one pointing down.
PLACES = np.array([0 * FIRST, (FIRST + SECOND) / 3, (FIRST + SECOND) * 2 / 3])
# In 1T' they move with the metals around them: two of one row and one of the next, which moves the other way.
FOLLOWS = np.array([1, 1 / 3, -1 / 3])
METALS = {"Mo": 42, "W": 74, "Re": 75, "V": 23}
SULFUR, SELENIUM = 16, 34
# Columns of chalcogen: how many S and how many Se.
CHALCOGENS = {"S2": (2, 0), "SSe": (1, 1), "Se2": (0, 2), "S": (1, 0), "Se": (0, 1)}
SPECIES = (*METALS, *CHALCOGENS)
NOTHING = -1
SITES = ("metal", "chalcogen", "metal next to a vacancy", "chalcogen next to a vacancy")
# From the plane of the metals to those of the chalcogens, in nm.
HEIGHT = 0.156
# A lone chalcogen stands above the metals, in the second hollow below them: two more kinds of columns.
UPPER, LOWER = HEIGHT, -HEIGHT
STACKS = (
    *(((number, 0.0),) for number in METALS.values()),
    ((SULFUR, UPPER), (SULFUR, LOWER)),
    ((SULFUR, UPPER), (SELENIUM, LOWER)),
    ((SELENIUM, UPPER), (SELENIUM, LOWER)),
    ((SULFUR, UPPER),),
    ((SELENIUM, UPPER),),
    ((SULFUR, LOWER),),
    ((SELENIUM, LOWER),),
)
# Of rhenium, above which `phase=auto` gives 1T'.
MAJORITY = 0.5


@scene
@imaged(
    beam=Beam(energy=80.0, convergence=30.0), field=9.0, pixel=0.015, dose=1500.0, rotation=12.0
)
def tmd(
    rng: np.random.Generator,
    radius: float,
    tungsten: float = 0.02,
    rhenium: float = 0.0,
    vanadium: float = 0.0,
    selenium: float = 0.0,
    chalcogen_vacancies: float = 0.015,
    metal_vacancies: float = 0.0,
    phase: str = "auto",
    domain_size: float = 4.0,
    dimer: float = 0.023,
    z_power: float = 1.7,
) -> Crystal:
    """A monolayer of MoS2 with substitutions, vacancies, and the dimerised phase 1T'.

    `tungsten`, `rhenium`, `vanadium` are fractions of the metal's places and `selenium` that of the chalcogens; each of
    the two atoms of a column is drawn by itself, and so are vacancies. `phase` is `2H`, `1T'`, `domain` (a disc of 1T'
    in the middle, `domain_size` nm across) or `auto`: 1T' where rhenium is the majority. In 1T' alternate rows of metal
    move by `dimer` (nm) towards each other, and the two chalcogens of a cell stand apart.

    `true_phase` is 1 in 1T', `true_displacement` the way from the undistorted place, `true_vacancies` the number of
    atoms missing in a column, `true_cell` the cell that it belongs to. Intensities are relative to one Mo.
    `render=multislice` sends a beam through the three planes instead of drawing peaks, see `multislice`; in a column
    with one chalcogen it is the upper one that is there, in 1T' the upper and the lower stand in hollows of their own.
    """
    choose("phase", phase, ("auto", "2H", "1T'", "domain"))
    fractions(tungsten=tungsten, rhenium=rhenium, vanadium=vanadium)
    fractions(selenium=selenium)
    fractions(chalcogen_vacancies=chalcogen_vacancies)
    fractions(metal_vacancies=metal_vacancies)
    if not 0 <= dimer < SPACING / 6:
        raise DataError(f"dimer must be from 0 to {SPACING / 6:.3f} nm, found {dimer:g}")
    if not domain_size >= 0:
        raise DataError(f"domain_size must not be negative, found {domain_size:g}")
    cells = cells_within(radius + SPACING, FIRST, SECOND)
    place = cells @ LATTICE
    if phase == "auto":
        phase = "1T'" if rhenium > MAJORITY else "2H"
    reach = {"2H": 0.0, "1T'": np.inf, "domain": domain_size / 2}[phase]
    apart = np.linalg.norm(place, axis=1) < reach
    # Alternate rows of metal move towards each other, so that zigzag chains form along x.
    rise = dimer * apart * np.where(cells[:, 1] % 2 == 0, 1, -1)
    meant, found, missing = _species(
        rng, apart, (tungsten, rhenium, vanadium), selenium, metal_vacancies, chalcogen_vacancies
    )
    return _crystal(cells, apart, rise, meant, found, missing, z_power)


def _species(
    rng: np.random.Generator,
    apart: np.ndarray,
    substitutes: tuple[float, float, float],
    selenium: float,
    metal_vacancies: float,
    chalcogen_vacancies: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Species meant and found at the three places of each cell, and the number of atoms missing there."""
    count = len(apart)
    metal = rng.choice(len(METALS), count, p=(max(0.0, 1 - sum(substitutes)), *substitutes))
    metal_there = rng.random(count) >= metal_vacancies
    heavy = rng.random((count, 2)) < selenium
    there = rng.random((count, 2)) >= chalcogen_vacancies
    # In 2H both chalcogens stand in the first hollow, in 1T' one in each.
    in_first = np.stack([np.ones(count, bool), ~apart], 1)
    meant = [metal, _column(in_first, heavy), _column(~in_first, heavy)]
    found = [
        np.where(metal_there, metal, NOTHING),
        _column(in_first & there, heavy),
        _column(~in_first & there, heavy),
    ]
    missing = [~metal_there, (in_first & ~there).sum(1), (~in_first & ~there).sum(1)]
    return np.stack(meant, 1), np.stack(found, 1), np.stack(missing, 1).astype(np.int64)


def _column(atoms: np.ndarray, heavy: np.ndarray) -> np.ndarray:
    """Species of columns of up to two chalcogens."""
    code = np.full((3, 3), NOTHING)
    for name, (light_ones, heavy_ones) in CHALCOGENS.items():
        code[light_ones, heavy_ones] = SPECIES.index(name)
    return code[(atoms & ~heavy).sum(1), (atoms & heavy).sum(1)]


def _crystal(
    cells: np.ndarray,
    apart: np.ndarray,
    rise: np.ndarray,
    meant: np.ndarray,
    found: np.ndarray,
    missing: np.ndarray,
    z_power: float,
) -> Crystal:
    """The columns that are there, and the places where none is."""
    lattice = (cells @ LATTICE)[:, None] + PLACES
    shift = np.zeros_like(lattice)
    shift[..., 1] = rise[:, None] * FOLLOWS
    there, empty = found != NOTHING, (found == NOTHING) & (meant != NOTHING)
    chalcogen = np.broadcast_to([0, 1, 1], found.shape)[there]
    near = _next_to(lattice[there], lattice[missing > 0])
    metals = [float(number) ** z_power for number in METALS.values()]
    others = [n * SULFUR**z_power + m * SELENIUM**z_power for n, m in CHALCOGENS.values()]
    brightness = np.array(metals + others) / metals[0]
    cell = np.broadcast_to(cells[:, None], lattice.shape)
    below = np.isin(found, [SPECIES.index("S"), SPECIES.index("Se")]) & (np.arange(3) == 2)
    return Crystal(
        position=(lattice + shift)[there],
        lattice=lattice[there],
        species=found[there],
        species_names=SPECIES,
        site=chalcogen + 2 * near,
        site_names=SITES,
        intensity=brightness[found[there]],
        missing=(lattice + shift)[empty],
        missing_species=meant[empty],
        columns={
            "phase": np.broadcast_to(apart[:, None], found.shape)[there].astype(np.int64),
            "vacancies": missing[there],
            "cell": cell[there],
        },
        vectors={"displacement": shift[there]},
        units={"displacement": "nm"},
        solid=Solid(STACKS, np.where(below, found + 2, found)[there]),
    )


def _next_to(columns: np.ndarray, vacancies: np.ndarray) -> np.ndarray:
    """Whether a bond from a column leads to a place where an atom is missing; its own place is no bond away."""
    from scipy.spatial import cKDTree

    near = np.zeros(len(columns), bool)
    if len(vacancies):
        found = cKDTree(columns).query_ball_point(vacancies, 1.1 * BOND)
        for place, around in zip(vacancies, found, strict=True):
            away = np.linalg.norm(columns[around] - place, axis=1)
            near[np.array(around, dtype=np.int64)[away > BOND / 2]] = True
    return near
