"""Displacements: how the neighbours of every atom lie about it, against the mean shell of all atoms.

The neighbours are in slots: one shell serves as template, every other is turned by whole slots until it fits, and the
template is the mean of all that are like it, a few times over; the first is the shell, of some tried, that most are
like. The mean shell holds whatever all cells share, strain and the shear of
the scan included; what is left of each shell is its displacement, x and y for slot after slot. Where shells come in two
orientations, each the other's inversion, as on the two sites of graphene, one of them is inverted.

Where atoms move alone, by the same σ each way, the centre's own motion is in every slot: the covariance of a shell is
σ² L Lᵀ, L being known. So a shell is given by its coordinates L⁻¹ · shell, along patterns (`pattern`) in each of which
such a crystal has the same variance σ². Two patterns are left out: a scan's rows are shifted as wholes, by jitter along
x and by drift both ways, which moves the neighbours above against those below, and a crystal need not do that to be
seen doing it.

The error of a shell is that of the neighbours and of the centre, the latter's being in all slots alike. Atoms with like
errors are of one `error_kind`, and their mean covariance is `error`.

Settings, all numbers:

- `neighbours`: how many slots; 0 finds it, by the widest gap in the distances;
- `centres`: around which atoms: 0 for those of the dimmer sublattice where there are two that differ, else all;
  1 for the brighter, 2 for the dimmer sublattice, 3 for all atoms;
- `scan`: 1 to leave out what shifts of rows do, 0 to keep it, as in images that were taken at once.

Sublattices are told by geometry: where bonds lead from one set of atoms to another and back, whatever their species.
Where missed and spurious columns of an image spoil that, brightness tells them, if it has two groups and nearly all
bonds lead from one to the other. Where the centres are of one sublattice, neighbours are of the other.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> seen = displacements(simulate("perovskite", gives="atoms", seed=1), {})
    >>> seen.sizes["feature"], seen.mean_shell.shape
    (6, (4, 2))
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset, validate
from ..planar import planar, with_what_rides
from .shells import coordination, inside, nearest, sublattices

__all__ = ["displacements", "two_sublattices"]

FEWEST, MOST = 2, 12
ROUNDS = 6
# A disc this much wider than the shell must lie in the data.
ROOM = 1.15
# Shells further from the mean one than that, in bonds and root mean square, are of a defect.
FITS = 0.3
# Bonds are at most this much longer than the median distance to the nearest atom.
BOND = 1.25
# Bonds that may lead back into the same sublattice, as at a defect; and where brightness tells it, as at columns that
# an image does not show. Brightness that has nothing to do with it would have half of them.
STRAY, STRAY_OF_BRIGHTNESS = 0.02, 0.1
# Shells that are tried as the first template, and that each is held against.
TEMPLATES, HELD_AGAINST = 24, 2000
# Two sublattices differ when their mean intensities do by so many standard errors and a tenth.
DIFFER, BY = 10.0, 0.1
MOST_KINDS = 32
# Errors whose logarithms spread less than that are alike.
ALIKE = 0.05


add_kind(
    Kind(
        "displacements",
        "displacements of the neighbours of every atom from the mean shell",
        {
            "displacement": (("atom", "feature"),),
            "position": (("atom", "axis"),),
            "pattern": (("feature", "slot", "axis"),),
            "mean_shell": (("slot", "axis"),),
            "error_kind": (("atom",),),
            "error": (("kind", "feature", "feature2"),),
        },
        {
            "neighbour_atom": ("atom", "slot"),
            "species": ("atom",),
            "intensity": ("atom",),
            "neighbour_species": ("atom", "slot"),
            "neighbour_intensity": ("atom", "slot"),
        },
        codes=("error_kind", "neighbour_atom", "species", "neighbour_species"),
        least={"atom": 2, "slot": FEWEST},
        unit=("atom",),
        block=("position",),
        derived=True,
    )
)


def displacements(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """Displacements of the neighbours of every atom from the mean shell.

    Args:
        data: atoms in the plane.
        settings: as told above.

    Returns:
        Data of kind `displacements`. `atom` is the index in `data`; `attrs["left_out"]` counts what is not there.
    """
    position = planar(data, "displacements")
    if len(position) < FEWEST + 2:
        raise DataError(f"displacements: {len(position)} atoms have no shells; take a larger field")
    kinds, centre = _centres(data, position, settings)
    count = _number(settings, "neighbours", MOST) or coordination(position, kinds)
    if count < FEWEST:
        raise DataError(f"displacements: neighbours must be at least {FEWEST}, found {count}")
    if len(position) <= 2 * count:
        raise DataError(f"displacements: {len(position)} atoms are too few for {count} neighbours")
    found = nearest(position, count, kinds=kinds)
    bond = float(np.median(np.linalg.norm(position[found] - position[:, None], axis=2)))
    whole = inside(position, ROOM * bond)
    atoms = np.flatnonzero(whole & centre)
    if len(atoms) < 2:
        raise DataError("displacements: the rim cuts the shell of every atom; take a larger field")
    slots, sign, mean, fits = _slots(position, found[atoms], atoms, bond)
    why = (
        f"{int((~whole & centre).sum())} atoms are so near the rim that it may cut their shells, and "
        f"{int((~fits).sum())} have a shell unlike the mean one, as at a defect"
    )
    if not centre.all():
        why += f"; {int((~centre).sum())} are of the other sublattice, and serve as neighbours"
    ways = _coordinates(mean, settings)
    return _dataset(data, atoms[fits], slots[fits], sign[fits], mean, *ways, f"{why}.")


def _number(settings: Mapping[str, float], name: str, most: int) -> int:
    value = float(settings.get(name, 0))
    if not (value.is_integer() and 0 <= value <= most):
        raise DataError(
            f"displacements: {name} must be a whole number up to {most}, found {value:g}"
        )
    return int(value)


def _centres(
    data: xr.Dataset, position: np.ndarray, settings: Mapping[str, float]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Sublattice of each atom, None where neighbours are of any, and which atoms are centres."""
    asked, every = _number(settings, "centres", 3), np.ones(len(position), bool)
    if asked == 3:
        return None, every
    kinds = two_sublattices(position)
    if kinds is None:
        kinds = _by_brightness(data, position)
    if kinds is None:
        if asked:
            raise DataError(
                "displacements: bonds do not lead back and forth between two sublattices; take centres=3"
            )
        return None, every
    apart = _difference(data, kinds)
    if apart is None:
        if asked:
            raise DataError(
                "displacements: the two sublattices have the same intensity; take centres=3"
            )
        return None, every
    brighter = int(apart > 0)
    return kinds, kinds == (brighter if asked == 1 else 1 - brighter)


def _difference(data: xr.Dataset, kinds: np.ndarray) -> float | None:
    """By how much sublattice 1 is brighter, or has the higher species; None where the two are alike."""
    name = "intensity" if "intensity" in data else "species"
    if name not in data:
        return None
    value = data[name].values.astype(float)
    one, other = value[kinds == 1], value[kinds == 0]
    apart = float(one.mean() - other.mean())
    error = float(np.sqrt(one.var() / len(one) + other.var() / len(other)))
    if abs(apart) <= max(DIFFER * error, BY * abs(float(value.mean()))):
        return None
    return apart


def two_sublattices(position: np.ndarray) -> np.ndarray | None:
    """Sublattice, 0 or 1, of each atom, None where bonds do not lead back and forth between two of them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    pairs = _bonds(position)
    if not len(pairs):
        return None
    shape = (len(position), len(position))
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape).tocsr()
    _, piece = connected_components(graph, directed=False)
    # Pieces that hang together by no bond cannot be told which sublattice they are of.
    largest = int(np.bincount(piece).argmax())
    if (piece == largest).mean() < 0.9:
        return None
    start = int(np.flatnonzero(piece == largest)[0])
    order, before = breadth_first_order(graph, start, directed=False)
    kinds = np.full(len(position), -1)
    kinds[start] = 0
    for atom in order[1:]:
        kinds[atom] = 1 - kinds[before[atom]]
    inner = pairs[piece[pairs[:, 0]] == largest]
    if (kinds[inner[:, 0]] == kinds[inner[:, 1]]).mean() > STRAY:
        return None
    return _alone(position, kinds)


def _bonds(position: np.ndarray) -> np.ndarray:
    """Pairs of atoms about as near as nearest ones are."""
    from scipy.spatial import cKDTree

    tree = cKDTree(position)
    reach, _ = tree.query(position, 2)
    pairs: np.ndarray = tree.query_pairs(
        BOND * float(np.median(reach[:, 1])), output_type="ndarray"
    )
    return pairs


def _by_brightness(data: xr.Dataset, position: np.ndarray) -> np.ndarray | None:
    """The brighter and the dimmer atoms, None where there are no such groups or bonds do not lead between them."""
    if "intensity" not in data:
        return None
    try:
        kinds = sublattices(data[["position", "intensity"]])
    except DataError:
        return None
    pairs = _bonds(position)
    if not len(pairs) or (kinds[pairs[:, 0]] == kinds[pairs[:, 1]]).mean() > STRAY_OF_BRIGHTNESS:
        return None
    return kinds


def _alone(position: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Atoms without a bond are of the other sublattice than the nearest atom with one."""
    from scipy.spatial import cKDTree

    known = np.flatnonzero(kinds >= 0)
    lost = np.flatnonzero(kinds < 0)
    if len(lost):
        _, near = cKDTree(position[known]).query(position[lost])
        kinds[lost] = 1 - kinds[known[np.asarray(near)]]
    return kinds


def _slots(
    position: np.ndarray, found: np.ndarray, atoms: np.ndarray, bond: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours in slots, the sign of each shell, the mean shell, and which shells fit it."""
    vectors = position[found] - position[atoms][:, None]
    slots = found.shape[1]
    order = np.argsort(np.arctan2(vectors[..., 1], vectors[..., 0]), axis=1)
    vectors = np.take_along_axis(vectors, order[:, :, None], 1)
    signs = (1.0, -1.0) if slots % 2 else (1.0,)
    turns = (np.arange(slots) + np.arange(slots)[:, None]) % slots
    every = np.stack([s * vectors[:, turn] for s in signs for turn in turns], 1)

    def like(mean: np.ndarray, some: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The way in which each shell is most like the template, and whether it is."""
        off = ((every[some] - mean) ** 2).sum((2, 3))
        return off.argmin(1), off.min(1) / slots < (FITS * bond) ** 2

    # Any one shell may be that of a defect. Where several serve alike, the one nearest to the middle does.
    inwards = ((position[atoms] - position.mean(0)) ** 2).sum(1).argsort(kind="stable")
    some = slice(None, None, -(-len(atoms) // HELD_AGAINST))
    alike = [like(vectors[one], some)[1].sum() for one in inwards[:TEMPLATES]]
    mean = vectors[inwards[int(np.argmax(alike))]]
    for _ in range(ROUNDS):
        best, fits = like(mean)
        if not fits.any():
            raise DataError("displacements: no two shells are alike; this is no crystal")
        placed = np.take_along_axis(every, best[:, None, None, None], 1)[:, 0]
        mean = placed[fits].mean(0)
    sign, turn = np.array(signs)[best // slots], turns[best % slots]
    return np.take_along_axis(found, np.take_along_axis(order, turn, 1), 1), sign, mean, fits


def _coordinates(mean: np.ndarray, settings: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """From coordinates to a shell, (slot and axis, feature), and back."""
    slots = len(mean)
    together = np.ones((slots, slots)) / slots
    # The root of 1 + the matrix of ones, which is the covariance of neighbours less their centre.
    root = np.eye(slots) + (np.sqrt(slots + 1) - 1) * together
    root, inverse = np.kron(root, np.eye(2)), np.kron(np.linalg.inv(root), np.eye(2))
    if not _number({"scan": settings.get("scan", 1)}, "scan", 1):
        return root, inverse
    # Rows above and below move apart along x, and along y.
    rows = inverse @ np.kron(mean[:, 1:], np.eye(2))
    # An orthonormal basis of which the first two are those.
    basis = np.linalg.qr(np.column_stack([rows, np.eye(2 * slots)]))[0][:, 2:]
    return root @ basis, basis.T @ inverse


def _dataset(
    data: xr.Dataset,
    atoms: np.ndarray,
    slots: np.ndarray,
    sign: np.ndarray,
    mean: np.ndarray,
    root: np.ndarray,
    inverse: np.ndarray,
    why: str,
) -> xr.Dataset:
    position = data["position"].values.astype(float)
    vectors = sign[:, None, None] * (position[slots] - position[atoms][:, None])
    covariance = np.zeros((len(position), 2, 2))
    if "covariance" in data:
        covariance = data["covariance"].values.astype(float)
    kind, error = _errors(covariance, atoms, slots)
    carried = {}
    for name in ("species", "intensity"):
        if name in data:
            carried[name] = data[name].values[atoms]
            carried[f"neighbour_{name}"] = data[name].values[slots]
    made = dataset(
        "displacements",
        displacement=(vectors - mean).reshape(len(atoms), -1) @ inverse.T,
        position=position[atoms],
        pattern=root.T.reshape(-1, *mean.shape),
        mean_shell=mean,
        error_kind=kind,
        error=inverse @ error @ inverse.T,
        neighbour_atom=slots,
        **carried,
        atom=atoms,
        axis=np.array(["x", "y"]),
        units={
            "displacement": "nm",
            "position": "nm",
            "mean_shell": "nm",
            "error": "nm^2",
        },
        attrs={
            "left_out": len(position) - len(atoms),
            "left_out_why": why,
            **{n: data.attrs[n] for n in ("species_names",) if n in data.attrs},
        },
    )
    found = with_what_rides(made, data, atoms)
    return validate(found.assign(aux_sign=(("atom",), sign)))


def _errors(
    covariance: np.ndarray, atoms: np.ndarray, slots: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Kind of error of each atom, and the mean covariance of each kind, (kind, feature, feature)."""
    own, others = covariance[atoms], covariance[slots]
    shape = np.concatenate([own[:, None], others], 1)
    size = np.diagonal(shape, axis1=2, axis2=3).reshape(len(atoms), -1)
    kind = _alike(np.log(np.maximum(size, 1e-300)))
    kinds, count = int(kind.max()) + 1, slots.shape[1]
    total = np.zeros((kinds, count + 1, 2, 2))
    np.add.at(total, kind, shape)
    total /= np.bincount(kind)[:, None, None, None]
    found = np.zeros((kinds, count, 2, count, 2))
    for slot in range(count):
        found[:, slot, :, slot] += total[:, slot + 1]
    found += total[:, 0][:, None, :, None, :]
    return kind, found.reshape(kinds, 2 * count, 2 * count)


def _alike(size: np.ndarray) -> np.ndarray:
    """Groups of atoms with like errors: that which spreads most is halved, until none spreads or there are enough."""
    group = np.zeros(len(size), np.int64)
    for new in range(1, min(MOST_KINDS, len(size))):
        spread = [size[group == g].std(0) for g in range(new)]
        widest = int(np.argmax([s.max() for s in spread]))
        if spread[widest].max() < ALIKE:
            break
        inside_group = np.flatnonzero(group == widest)
        along = size[inside_group, int(spread[widest].argmax())]
        group[inside_group[along > along.mean()]] = new
    return group
