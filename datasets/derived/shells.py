"""Shells: the vectors from every atom to its nearest neighbours, in the order of a nominal arrangement.

Slots are sorted by shell, then by angle, so that slot 0 of a shell is followed anticlockwise by slot 1; the second
shell starts where the nominal arrangement has its first slot. `angle` and `radius` tell that arrangement: regular
polygons, the second turned against the first by nothing or by half a step, whichever the data show. Where sublattices
are told apart, `side` is 1 for atoms of one and -1 for those of the other.

The first shell is that of the nearest, and tells the orientation; in the second each slot has the atom that is nearest
to its place, since by distance alone a second shell and a third are mixed up long before that by noise and shear.
Neighbours are chosen as if the scan had no shear: where the mean first shell is round.

Settings, all numbers:

- `first`: neighbours in the first shell; 0 finds it, by the widest gap in the distances;
- `second`: neighbours in the second shell, a multiple of the first; 0 for none;
- `like`: 1 where all atoms count; 0 where the first shell is of the other sublattice and the second of the atom's own.
  Sublattices are species where there are two, else the brighter and the dimmer atoms;
- `centres`: 0 for shells around every atom, 1 around the brighter sublattice only, told by intensity;
- `bond`: nominal distance of the first shell in nm; 0 for that of the data.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> around = shells(simulate("graphene", gives="atoms", field=3, seed=1), {"second": 6})
    >>> around.shell.values.tolist(), around.radius.values.round(2).tolist()[2:4]
    ([0, 0, 0, 1, 1, 1, 1, 1, 1], [0.14, 0.25])
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset, validate
from ..planar import planar, variances, with_what_rides

__all__ = ["coordination", "inside", "nearest", "shells", "sublattices"]

# Coordination numbers that are tried: two for a chain, eight for the densest shells seen in projection.
FEWEST, MOST = 2, 8
# Share of the widest gap that is as wide. Shear of 6 % changes the gaps of a square lattice by a sixth.
AS_WIDE = 0.75
# A disc wider than the shell by this factor must lie in the data, or the rim may have cut the shell.
ROOM = 1.15
# Squares of the mean first shell's axes whose ratio is larger are those of a chain, or of no crystal.
ROUND = 2.0
# Atoms whose slots are filled together.
TOGETHER = 8192
# Share of the variance of log intensity between two groups. One Gaussian cut at its mean gives 2/π = 0.64 and a
# flat distribution 0.75, so that more than this is two groups.
TWO_GROUPS = 0.8


def _check_shells(data: xr.Dataset) -> None:
    for name in ("neighbour", "position", "radius"):
        if data[name].attrs.get("units") != "nm":
            raise DataError(
                f"shells: variable {name!r} must be in nm, found {data[name].attrs.get('units')!r}"
            )
    for name in ("centre_variance", "neighbour_variance"):
        if data[name].values.min() < 0:
            raise DataError(f"shells: variable {name!r} must not be negative")
    shell = data["shell"].values
    if shell[0] != 0 or not set(np.diff(shell)) <= {0, 1} or shell[-1] > 1:
        raise DataError(f"shells: variable 'shell' must be 0 0 … 1 1 …, found {shell.tolist()}")
    if not data["radius"].values.min() > 0:
        raise DataError("shells: variable 'radius' must be positive")


add_kind(
    Kind(
        "shells",
        "vectors from every atom to its nearest neighbours",
        {
            "neighbour": (("atom", "slot", "axis"),),
            "position": (("atom", "axis"),),
            "centre_variance": (("atom",),),
            "neighbour_variance": (("atom", "slot"),),
            "shell": (("slot",),),
            "angle": (("slot",),),
            "radius": (("slot",),),
        },
        {
            "neighbour_atom": ("atom", "slot"),
            "side": ("atom",),
            "species": ("atom",),
            "intensity": ("atom",),
        },
        codes=("shell", "neighbour_atom", "species"),
        least={"slot": FEWEST},
        unit=("atom",),
        block=("position",),
        check=_check_shells,
        derived=True,
    )
)


def shells(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The neighbours of every atom whose shells the rim of the data does not cut.

    Args:
        data: atoms in the plane.
        settings: as told above; what is missing is 0, but `like`, which is 1.

    Returns:
        Data of kind `shells`. `atom` is the index in `data`, `attrs["left_out"]` the number of atoms that are not
        there, and `attrs["left_out_why"]` says why.
    """
    position = planar(data, "shells")
    like = bool(settings.get("like", 1))
    kinds = None if like else sublattices(data)
    first = _count(settings, "first") or coordination(position, kinds)
    second = _count(settings, "second")
    _check_counts(first, second, len(position))
    even = _rounded(position, nearest(position, first, 0, kinds))
    found = nearest(even, first, second, kinds)
    # Of a sheared square half of the second shell is near and half far, and no median is right.
    reach = np.linalg.norm(even[found] - even[:, None], axis=2)
    radii = [float(np.median(reach[:, :first]))]
    radii += [float(np.median(reach[:, first:]))] if second else []
    kept = inside(position, ROOM * radii[-1])
    why = f"{(~kept).sum()} atoms are so near the rim that it may cut their shells"
    if settings.get("centres", 0):
        bright = _brighter(data)
        why += f"; {(kept & ~bright).sum()} others belong to the dimmer sublattice"
        kept &= bright
    atoms = np.flatnonzero(kept)
    if not len(atoms):
        raise DataError(
            f"shells: {why}, and none is left of {len(position)}; take a larger field or fewer neighbours"
        )
    slots, offset = _in_slots(even, found[atoms], atoms, first)
    if second:
        slots = _at_places(even, slots, atoms, first, offset, kinds)
    made = _dataset(data, atoms, slots, first, offset, _nominal(radii, settings), why)
    return made if kinds is None else validate(made.assign(side=("atom", 2 * kinds[atoms] - 1)))


def _count(settings: Mapping[str, float], name: str) -> int:
    """A number of neighbours."""
    value = float(settings.get(name, 0))
    if value != int(value) or value < 0:
        raise DataError(f"shells: {name} must be a number of neighbours, found {value:g}")
    return int(value)


def _check_counts(first: int, second: int, atoms: int) -> None:
    if not FEWEST <= first <= MOST:
        raise DataError(f"shells: first must be {FEWEST} to {MOST} neighbours, found {first}")
    if second % first or second > 2 * MOST:
        raise DataError(
            f"shells: second must be a multiple of first={first} up to {2 * MOST}, found {second}; "
            "take second=0 for one shell"
        )
    if atoms <= first + second:
        raise DataError(
            f"shells: {first + second} neighbours are asked for, and there are {atoms} atoms"
        )


def coordination(position: np.ndarray, kinds: np.ndarray | None = None) -> int:
    """Neighbours in the first shell: after how many of them the distances have their first wide gap, for most atoms.

    On a square lattice the gap after eight is as wide as that after four, so that the first of the widest counts.

    Args:
        position: of the atoms, (atom, 2).
        kinds: sublattice of each; neighbours are then of the other.
    """
    most = min(MOST, len(position) - 2)
    if kinds is not None:
        most = min(most, np.bincount(kinds).min() - 1)
    if most < FEWEST:
        raise DataError(f"shells: {len(position)} atoms are too few to find a coordination number")
    found = nearest(position, most + 1, 0, kinds)
    reach = np.sort(np.linalg.norm(position[found] - position[:, None], axis=2), axis=1)
    deep = inside(position, float(np.median(reach[:, -1])))
    # A small crystal may be all rim.
    gaps = np.log(reach[:, 1:] / reach[:, :-1])[deep if deep.any() else slice(None)]
    wide = np.median(gaps[:, FEWEST - 1 :], axis=0)
    return FEWEST + int((wide >= AS_WIDE * wide.max()).argmax())


def nearest(
    position: np.ndarray, first: int, second: int = 0, kinds: np.ndarray | None = None
) -> np.ndarray:
    """Indices of the nearest neighbours of every atom, (atom, first + second), nearer ones first in each shell.

    Args:
        position: of the atoms, (atom, 2).
        first: neighbours in the first shell.
        second: neighbours in the second shell.
        kinds: sublattice of each; the first shell is then of the other, the second of the atom's own.
    """
    from scipy.spatial import cKDTree

    if kinds is None:
        _, found = cKDTree(position).query(position, first + second + 1)
        return np.asarray(found)[:, 1:]
    result = np.empty((len(position), first + second), np.int64)
    for kind in np.unique(kinds):
        here, others = np.flatnonzero(kinds == kind), np.flatnonzero(kinds != kind)
        if len(others) < first or len(here) <= second:
            raise DataError(
                f"shells: sublattice {kind} has {len(here)} atoms and the rest {len(others)}, too few for "
                f"{first} unlike and {second} like neighbours; take like=1"
            )
        _, unlike = cKDTree(position[others]).query(position[here], first)
        result[here, :first] = others[np.asarray(unlike).reshape(len(here), first)]
        if second:
            _, alike = cKDTree(position[here]).query(position[here], second + 1)
            result[here, first:] = here[np.asarray(alike)[:, 1:]]
    return result


def inside(position: np.ndarray, room: float) -> np.ndarray:
    """Atoms around which a disc of this radius lies within the convex hull of all of them."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        sides = ConvexHull(position).equations
    except (QhullError, ValueError) as error:
        raise DataError("shells: the atoms lie on a line; there is no plane to look at") from error
    depth = np.full(len(position), np.inf)
    for side in sides:
        depth = np.minimum(depth, -(position @ side[:2]) - side[2])
    return np.asarray(depth >= room)


def sublattices(data: xr.Dataset) -> np.ndarray:
    """0 or 1, the sublattice of every atom: by species where there are two, else by brightness."""
    if "species" in data:
        names, kinds = np.unique(data["species"].values, return_inverse=True)
        # More are substitutes, and which of them share a sublattice is told by their brightness if at all.
        if len(names) == 2:
            return kinds.astype(np.int64)
    return _brighter(data).astype(np.int64)


def _brighter(data: xr.Dataset) -> np.ndarray:
    """Whether an atom is of the brighter of two groups, cut where the variance between them is largest (Otsu)."""
    if "intensity" not in data:
        raise DataError(
            "shells: sublattices are told by two species or by intensity, and these atoms have neither; "
            "take like=1 and centres=0"
        )
    bright = data["intensity"].values.astype(float)
    # An intensity of nothing or less, as the noise may have it, is as dim as the dimmest.
    level = np.log(np.maximum(bright, np.quantile(np.abs(bright), 0.01) + 1e-300))
    ordered = np.sort(level)
    below = np.arange(1, len(ordered))
    low = ordered.cumsum()[:-1]
    apart = ordered.mean() * below - low
    between = apart**2 / (below * (len(ordered) - below))
    best = int(between.argmax())
    if not between[best] >= TWO_GROUPS * level.var():
        raise DataError(
            "shells: the intensities do not fall into two groups, brighter and dimmer; "
            "take like=1 and centres=0"
        )
    return np.asarray(level > 0.5 * (ordered[best] + ordered[best + 1]))


def _in_slots(
    position: np.ndarray, found: np.ndarray, atoms: np.ndarray, first: int
) -> tuple[np.ndarray, float]:
    """Neighbours in the order of the slots, and by how much of a step the second shell is turned."""
    way = _complex(position[found] - position[atoms][:, None])
    order = np.argsort(np.angle(way[:, :first]), axis=1)
    slots = np.take_along_axis(found[:, :first], order, 1)
    second = found.shape[1] - first
    if not second:
        return slots, 0.0
    steps = np.exp(-2j * np.pi * np.arange(first) / first)
    unit = np.take_along_axis(way[:, :first], order, 1)
    start = np.exp(-1j * np.angle((unit / np.abs(unit)) @ steps))
    order = np.argsort(np.angle(way[:, first:]), axis=1)
    outer = np.take_along_axis(way[:, first:], order, 1)
    turned = outer / np.abs(outer) * start[:, None]
    # How well each cyclic order fits, for the shell turned by nothing and by half a step.
    wheel = np.exp(-2j * np.pi * np.arange(second) / second)
    sums = np.stack([np.roll(turned, -shift, axis=1) @ wheel for shift in range(second)], 1)
    fits = np.stack([(sums * np.exp(-2j * np.pi * half / second)).real for half in (0.0, 0.5)])
    half = int(fits.max(2).sum(1).argmax())
    shift = fits[half].argmax(1)[:, None] + np.arange(second)
    outer_order = np.take_along_axis(order, shift % second, 1)
    outer_slots = np.take_along_axis(found[:, first:], outer_order, 1)
    return np.concatenate([slots, outer_slots], 1), 0.5 * half


def _rounded(position: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Positions without the shear and stretch that most first shells have in common."""
    way = position[found] - position[:, None]
    square = np.median(np.einsum("nsi,nsj->nij", way, way), axis=0)
    values, vectors = np.linalg.eigh(square)
    if found.shape[1] < 3 or not 0 < values[1] < ROUND * values[0]:
        return position
    back = vectors / np.sqrt(values / np.sqrt(values.prod())) @ vectors.T
    return np.asarray(position @ back.T)


def _at_places(
    position: np.ndarray,
    slots: np.ndarray,
    atoms: np.ndarray,
    first: int,
    offset: float,
    kinds: np.ndarray | None,
) -> np.ndarray:
    """Slots with the second shell chosen anew: in each the atom nearest to its place, none in two."""
    from scipy.spatial import cKDTree

    second = slots.shape[1] - first
    way = _complex(position[slots] - position[atoms][:, None])
    unit = way[:, :first] / np.abs(way[:, :first])
    turn = unit @ np.exp(-2j * np.pi * np.arange(first) / first)
    turn /= np.abs(turn) + 1e-300
    polygon = np.exp(2j * np.pi * (np.arange(second) + offset) / second)
    place = turn[:, None] * polygon * np.median(np.abs(way[:, first:]))
    result = slots.copy()
    for kind in [None] if kinds is None else np.unique(kinds[atoms]):
        here = np.arange(len(atoms)) if kinds is None else np.flatnonzero(kinds[atoms] == kind)
        pool = np.arange(len(position)) if kinds is None else np.flatnonzero(kinds == kind)
        tree = cKDTree(position[pool])
        most = min(first + 2 * second + 1, len(pool))
        for start in range(0, len(here), TOGETHER):
            rows = here[start : start + TOGETHER]
            near = pool[tree.query(position[atoms[rows]], most)[1]]
            taken = (near[:, :, None] == slots[rows, None, :first]).any(2)
            taken |= near == atoms[rows, None]
            apart = np.abs(
                _complex(position[near] - position[atoms[rows]][:, None])[:, None]
                - place[rows, :, None]
            )
            apart[np.broadcast_to(taken[:, None], apart.shape)] = np.inf
            result[rows, first:] = np.take_along_axis(near, _matched(apart), 1)
    return result


def _matched(apart: np.ndarray) -> np.ndarray:
    """For every place the candidate that it gets, by distances (atom, place, candidate), the closest pairs first."""
    count, places, candidates = apart.shape
    found = np.zeros((count, places), np.int64)
    rows = np.arange(count)
    for _ in range(places):
        place, candidate = np.divmod(apart.reshape(count, -1).argmin(1), candidates)
        found[rows, place] = candidate
        apart[rows, place] = np.inf
        apart[rows, :, candidate] = np.inf
    return found


def _complex(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors[..., 0] + 1j * vectors[..., 1])


def _nominal(radii: list[float], settings: Mapping[str, float]) -> list[float]:
    """Radii of the shells, those of the data stretched to the nominal bond."""
    bond = float(settings.get("bond", 0))
    if bond < 0:
        raise DataError(f"shells: bond must be a distance in nm, found {bond:g}")
    return [r * bond / radii[0] for r in radii] if bond else radii


def _dataset(
    data: xr.Dataset,
    atoms: np.ndarray,
    slots: np.ndarray,
    first: int,
    offset: float,
    radii: list[float],
    why: str,
) -> xr.Dataset:
    position = data["position"].values.astype(float)
    second = slots.shape[1] - first
    variance = variances(data)
    turns = [np.arange(first) / first, (np.arange(second) + offset) / max(second, 1)]
    carried = {name: data[name].values[atoms] for name in ("species", "intensity") if name in data}
    made = dataset(
        "shells",
        neighbour=position[slots] - position[atoms][:, None],
        position=position[atoms],
        centre_variance=variance[atoms],
        neighbour_variance=variance[slots],
        shell=np.repeat([0, 1], [first, second]),
        angle=2 * np.pi * np.concatenate(turns),
        radius=np.repeat([*radii, 0.0][:2], [first, second]),
        neighbour_atom=slots,
        **carried,
        atom=atoms,
        axis=np.array(["x", "y"]),
        units={
            "neighbour": "nm",
            "position": "nm",
            "centre_variance": "nm^2",
            "neighbour_variance": "nm^2",
            "angle": "rad",
            "radius": "nm",
        },
        attrs={
            "left_out": len(position) - len(atoms),
            "left_out_why": f"{why}.",
            "top": float(position[:, 1].min()),
            "bottom": float(position[:, 1].max()),
        },
    )
    return with_what_rides(made, data, atoms)
