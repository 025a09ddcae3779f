"""Species: which columns are alike, by their brightness."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Categorical, Normal

from ...datasets.derived.brightness import brightness
from ...datasets.kinds import DataError, dataset
from ...datasets.lattices import Lattice, find_lattice
from ..model import Told, View, model, observe, sample
from ..priors import Prior, PriorSet, prior_set
from .brightness_levels import LEVELS, posterior_of_levels, smooth

__all__ = ["atoms_with_species", "lattice_of_species", "species"]

NAMES = ("faintest", *(f"level {k}" for k in range(2, LEVELS)), "brightest")
# What a column of the ladder is made of, with the atomic numbers of its atoms.
MOS2 = {"S": (16,), "S2": (16, 16), "SSe": (16, 34), "Mo": (42,), "Se2": (34, 34), "W": (74,)}
# Intensity goes with this power of the atomic number in a dark field image at a wide angle, of which 1.6 to 1.9 are
# measured; besides, a level may be off by a few percent of itself.
Z_POWER, Z_ERROR, LEVEL_ERROR = 1.7, 0.1, 0.02

VAGUE = prior_set(
    note=(
        "Scales with the data: the mean and the standard deviation of all intensities. One to six levels, each further "
        "one a third as likely before the data are seen."
    ),
    steps="Categorical([243, 81, 27, 9, 3, 1])",
    scale=1.0,
    lowest="Normal(intensity.mean, 2 * intensity.std)",
    rise="LogNormal(log(intensity.std), 1).expand([5]).to_event(1)",
    spread="LogNormal(log(intensity.std / 4), 1).expand([6]).to_event(1)",
    share="Dirichlet([1, 1, 1, 1, 1, 1])",
    background="Normal(0, intensity.std / 8).expand([8]).to_event(1)",
    sublattice=-1.0,
)


def ladder(columns: dict[str, tuple[int, ...]], reference: str, note: str) -> PriorSet:
    """Levels known by the atomic numbers, up to the scale that the dose and the camera give."""

    def at(power: float) -> np.ndarray:
        brightness = {name: sum(z**power for z in atoms) for name, atoms in columns.items()}
        return np.array(sorted(value / brightness[reference] for value in brightness.values()))

    level, more, less = at(Z_POWER), at(Z_POWER + Z_ERROR), at(Z_POWER - Z_ERROR)
    rise = np.diff(level)
    by_power = np.log(np.diff(more) / np.diff(less)) / 2
    wide = np.hypot(by_power, LEVEL_ERROR * np.hypot(level[1:], level[:-1]) / rise)
    lowest = level[0] * np.hypot(np.log(more[0] / less[0]) / 2, LEVEL_ERROR)
    shown = [f"[{', '.join(f'{v:.4g}' for v in row)}]" for row in (np.log(rise), wide)]
    return prior_set(
        note=note,
        steps=float(len(columns) - 1),
        scale="LogNormal(log(intensity.mean), 1)",
        lowest=Normal(float(level[0]), float(lowest)),
        rise=f"LogNormal({shown[0]}, {shown[1]}).to_event(1)",
        # Counting spreads by a tenth at a hundred electrons, by a fiftieth at two thousand.
        spread="LogNormal(log(0.04), 0.7).expand([6]).to_event(1)",
        share="Dirichlet([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])",
        background="Normal(0, 0.03).expand([8]).to_event(1)",
        sublattice=-1.0,
    )


MATERIALS = {
    "MoS2": ladder(
        MOS2,
        "Mo",
        "From the faintest: S, S₂, S+Se, Mo, Se₂, W or Re, by the 1.7th power of the atomic number. V is as bright as "
        "S₂ and is told from it by the sublattice alone: take sublattice=0.",
    )
}


def _names(columns: View) -> tuple[str, ...]:
    return NAMES


def _posterior(
    columns: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    intensity, place = columns.intensity, columns.place
    if mask is not None:
        intensity, place = intensity[mask], place[mask]
    # What follows a draw is worked out for every column.
    few = min(draws, max(80, 10_000_000 // len(columns.intensity) // LEVELS))
    values, log_evidence, se, attrs = posterior_of_levels(
        intensity, place, prior, draws=few, seed=seed
    )
    return Told(values, log_evidence, se, None, attrs)


def _derive(columns: View, prior: Prior, values: Any) -> xr.Dataset:
    """What the background is at every column."""
    if "background" not in values:
        return xr.Dataset()
    scale = values["scale"] if "scale" in values else torch.tensor(float(prior.scale))
    height = scale[..., None] * values["background"]
    waves = smooth(columns.place)
    mean = (height.mean(0) @ waves.T).numpy()
    error = torch.sqrt((waves @ height.T).var(1)).numpy()
    units = dict(columns.data["intensity"].attrs)
    return xr.Dataset(
        {"background_mean": ("atom", mean, units), "background_error": ("atom", error, units)}
    )


def atoms_with_species(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """The atoms of a fit with the most probable level of each as its species, and how probable that is."""
    chance = run["classes"].to_dataset()["kind"]
    atom = chance["atom"].values if "atom" in chance.coords else np.arange(chance.sizes["atom"])
    kept = data.isel(atom=atom).drop_vars("species", errors="ignore")
    kept = kept.assign(
        species=("atom", chance.argmax("kind_class").values.astype(np.int64)),
        aux_certainty=("atom", chance.max("kind_class").values),
    )
    return kept.assign_attrs(species_names=list(NAMES))


def lattice_of_species(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """Species on the lattice of the brightest sublattice, or of the one that the fit was asked for.

    The largest block of rows and columns that lies in the data is kept; a place in it where no atom stands has the
    code after the last level, for a vacancy. On a triangular lattice the neighbours of (row, col) are (row, col ± 1),
    (row ± 1, col), (row + 1, col - 1) and (row - 1, col + 1).
    """
    atoms = atoms_with_species(run, data)
    position = atoms["position"].values[:, :2]
    colour = atoms["intensity"].values
    found = find_lattice(position, colour)
    hexagonal = abs(found.angle - 90) > 15
    if hexagonal:
        # Two vectors at 60 degrees.
        found = found.recast(np.array([[1, 1], [0, 1]]))
        found = found.recast(np.array([[1, 0], [0, 1]]))
    here = found.sublattice == 0
    codes, places, left = _grid(found, here, position, atoms["species"].values)
    return dataset(
        "lattice",
        species=codes[None],
        attrs={
            "lattice": "triangular" if hexagonal else "square",
            "periodic": 0,
            "species_names": [*NAMES, "vacancy"],
            "vacant": int((codes == LEVELS).sum()),
            "left_out": int(here.sum() - (codes < LEVELS).sum()),
            "left_out_why": f"{left} columns of the sublattice are beside the largest block.",
            "vectors_nm": [round(float(v), 6) for v in found.vectors.ravel()],
        },
        aux_position=places,
    )


def _grid(
    found: Lattice, here: np.ndarray, position: np.ndarray, species: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes on the largest block of cells inside the data, their positions, and how many columns are beside it."""
    index = found.index[here]
    low, high = index.min(0), index.max(0)
    shape = high - low + 1
    codes = np.full(shape[::-1], LEVELS)
    codes[index[:, 1] - low[1], index[:, 0] - low[0]] = species[here]
    row, col = np.mgrid[low[1] : high[1] + 1, low[0] : high[0] + 1]
    places = found.position(np.stack([col, row], -1).reshape(-1, 2)).reshape(*codes.shape, 2)
    inside = (places >= position.min(0)).all(2) & (places <= position.max(0)).all(2)
    rows, cols = _largest_block(inside | (codes < LEVELS))
    block = codes[rows, cols]
    if min(block.shape) < 2:
        raise DataError("species: the sublattice has no block of 2 by 2 cells; take a larger field")
    return block, places[rows, cols], int(here.sum() - (block < LEVELS).sum())


def _largest_block(there: np.ndarray) -> tuple[slice, slice]:
    """The rectangle of the largest area that is true throughout."""
    height = np.zeros(there.shape[1], np.int64)
    best, found = 0, (slice(0, 0), slice(0, 0))
    for row, line in enumerate(there):
        height = np.where(line, height + 1, 0)
        open_at: list[tuple[int, int]] = []
        for col, tall in enumerate([*height.tolist(), 0]):
            start = col
            while open_at and open_at[-1][1] >= tall:
                start, top = open_at.pop()
                if top * (col - start) > best:
                    best = top * (col - start)
                    found = (slice(row - top + 1, row + 1), slice(start, col))
            open_at.append((start, tall))
    return found


def design(seed: int = 0) -> xr.Dataset:
    """Sixty columns on a square lattice, a third of them brighter."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(10), np.arange(6)), -1).reshape(-1, 2)
    bright = rng.random(len(cell)) < 1 / 3
    return dataset(
        "atoms",
        position=0.39 * cell + 0.003 * rng.standard_normal(cell.shape),
        intensity=np.where(bright, 2.0, 1.0) + 0.1 * rng.standard_normal(len(cell)),
        axis=np.array(["x", "y"]),
        units={"position": "nm"},
    )


@model(
    kind="atoms",
    prepare=("brightness", brightness),
    priors={"vague": VAGUE} | MATERIALS,
    units={"lowest": "intensity", "rise": "intensity"},
    symbols={"lowest": "I₁", "rise": "ΔI", "spread": "σ", "share": "w", "steps": "levels − 1"},
    labels={"kind": _names},
    posterior=_posterior,
    derive=_derive,
    gives=("lattice", lattice_of_species),
    design=design,
)
def species(columns: View, prior: Prior) -> None:
    """Species by brightness: intensity ~ Σ wₖ Normal(Iₖ + background, σₖ), with one to six levels Iₖ.

    Columns of one species send about as many electrons to the detector, and how many levels there are is weighed by
    evidence. Every column has a probability of each level; levels are numbered from the faintest.

    **Assumes** intensities of columns that are independent given the levels, Gaussian about each with a spread of its
    own, on a background that adds to all alike and varies over the field no faster than a whole wave.
    **Fails** when neighbours shine into one another (columns next to a bright one look brighter), when a few columns
    are cut by the rim, or tails are heavy: each then asks for a level of its own. The error of a single intensity is
    not an input: the spread of a level is that of its columns and of their measurement together.
    **Identifiable**: the number of levels, within a factor of about ten in probability: a level that shares the columns
    of another costs little evidence, and the prior asks each further one to pay a factor of three. Levels further apart
    than about three spreads one by one; nearer ones only together. The background's mean belongs to the levels. Two
    species that are as bright as each other are one level, unless they stand on different sublattices: `sublattice`
    then chooses one. A material's set has its ladder of columns; levels that no column is at keep the prior's place.
    Rungs that lie near each other pass for one another where the spread is as wide: S+Se and Mo, a tenth apart, share
    their columns at a hundred electrons a column.

    References: Krivanek et al., Atom-by-atom structural and chemical analysis by annular dark-field electron
    microscopy, Nature 464 (2010); Van Aert et al., Quantitative atomic resolution mapping using high-angle annular
    dark field scanning transmission electron microscopy, Ultramicroscopy 109 (2009).
    """
    scale = sample("scale", prior.scale)
    lowest, rise = sample("lowest", prior.lowest), sample("rise", prior.rise)
    climbed = torch.cat([torch.zeros(1, dtype=torch.float64), rise.cumsum(-1)])
    level = scale * (lowest + climbed)
    spread = scale * sample("spread", prior.spread)
    background = scale * (smooth(columns.place) @ sample("background", prior.background))
    steps = sample("steps", prior.steps)
    there = torch.arange(LEVELS) <= steps[..., None]
    share = sample("share", prior.share)
    with columns.plate("atom"):
        kind = sample("kind", Categorical(torch.where(there, share, torch.zeros_like(share))))
        observe("intensity", Normal(level[kind.long()] + background, spread[kind.long()]))
