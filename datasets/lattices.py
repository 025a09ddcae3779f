"""The lattice that atoms stand on: two vectors, sublattices, and the cell that each atom belongs to.

First the cell is found, as the two shortest shifts that bring atoms onto atoms of like brightness. Then atoms a shift
apart are linked, with shifts that follow the lattice as it bends, and the links are followed from atom to atom and
counted. So neither shear nor drift nor domains of different strain lead the count astray, only tears that close no
ring; those are counted too.

Vacancies break links and are stepped around; atoms between the places, or in a grain that is turned, belong to no
sublattice, which is told as -1.

Example:
    >>> index = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2)
    >>> found = find_lattice(index @ np.array([[0.39, 0.0], [0.02, 0.40]]))
    >>> found.lengths.round(4).tolist(), round(found.angle, 2), int((found.sublattice == 0).sum())
    ([0.39, 0.4005], 87.14, 81)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xarray as xr

from .kinds import DataError

__all__ = ["Lattice", "brightness", "find_lattice", "lattice_of"]

# Lengths are in units of the distance to the nearest neighbour. A cell of a few columns is at most so long:
REACH = 4.5
# Half the least distance at which two shifts are told apart, and how far an atom may be from where a shift leads.
BLUR, NEAR = 0.1, 0.25
# A shift of the lattice brings all atoms but the vacant onto others, any other shift at most those of some sublattices.
SHARE = 0.75
# Variance of the difference in brightness between atoms a shift apart, over that of any two: what a shift between
# sublattices must have more than one of the lattice.
UNLIKE = 0.25
# The cell is looked for in patches of so many atoms, small enough that a bent lattice is straight in them.
PATCH = 800
LEAST_ATOMS = 9
# Neighbours whose links make the local frame: the columns of about one cell and of those around it.
AROUND = 13
# A sublattice holds at least this share of the atoms: spurious ones scattered over the cell do not make one.
LEAST_SHARE = 0.02
MOST_ROUNDS, MOST_SUBLATTICES = 200, 64
# Cells along a side of the blocks whose residuals may hang together.
BLOCK = 6
# A pair of vectors sharper than this is told with the obtuse angle, as hexagonal cells are.
SHARP = 75.0


@dataclass(frozen=True)
class Lattice:
    """A lattice and its atoms.

    Attributes:
        vectors: a and b of the mean cell in nm, as rows; a is the one nearer to x, and b is counterclockwise from it.
        error: standard errors of their components; residuals in a block of 6 by 6 cells may hang together.
        origins: where the column of each sublattice stands in the cell (0, 0) of the mean lattice, (sublattice, 2).
        index: the cell of each atom, (atom, 2).
        sublattice: of each atom, the brightest first, or the fullest where brightness is not known; -1 for none.
        frames: a and b around each atom, (atom, 2, 2).
        torn: neighbours whose cells are not neighbours, as at a dislocation.
        links: neighbours that were counted.
    """

    vectors: np.ndarray
    error: np.ndarray
    origins: np.ndarray
    index: np.ndarray
    sublattice: np.ndarray
    frames: np.ndarray
    torn: int
    links: int

    @property
    def lengths(self) -> np.ndarray:
        """Lengths of a and b in nm."""
        return np.linalg.norm(self.vectors, axis=1)

    @property
    def angle(self) -> float:
        """The angle between a and b in degrees."""
        a, b = self.vectors
        return float(np.degrees(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b)))

    @property
    def area(self) -> float:
        """Area of the cell in nm²."""
        return float(np.linalg.det(self.vectors))

    @property
    def motif(self) -> np.ndarray:
        """Places of the sublattices in the cell, as fractions of a and b from the first of them."""
        inside: np.ndarray = (self.origins - self.origins[0]) @ np.linalg.inv(self.vectors)
        return inside - np.floor(inside + 1e-6)

    def position(self, index: np.ndarray, sublattice: np.ndarray | int = 0) -> np.ndarray:
        """Where the mean lattice has its columns."""
        return np.asarray(self.origins[sublattice] + index @ self.vectors)

    def recast(self, matrix: np.ndarray) -> Lattice:
        """The same lattice with other vectors, integer combinations of these; a larger cell has more sublattices.

        Example:
            >>> index = np.stack(np.meshgrid(np.arange(9), np.arange(9)), -1).reshape(-1, 2)
            >>> square = find_lattice(index * 0.4)
            >>> centred = square.recast(np.array([[1, 1], [-1, 1]]))
            >>> len(square.origins), len(centred.origins), round(centred.area / square.area, 6)
            (1, 2, 2.0)
        """
        matrix = np.asarray(matrix)
        size = round(float(np.linalg.det(matrix)))
        if matrix.shape != (2, 2) or (matrix != np.rint(matrix)).any() or size < 1:
            raise DataError(
                f"a cell is recast by a 2 × 2 matrix of integers of positive determinant, found {matrix.tolist()}"
            )
        back = np.linalg.inv(matrix)
        inside = self.index @ back
        cell = np.floor(inside + 1e-6).astype(np.int64)
        corner = self.index - cell @ matrix
        corners, which = np.unique(corner, axis=0, return_inverse=True)
        there = self.sublattice >= 0
        code = np.where(there, self.sublattice * len(corners) + which.reshape(-1), -1)
        kept = np.unique(code[there])
        origins = self.origins[kept // len(corners)] + corners[kept % len(corners)] @ self.vectors
        return replace(
            self,
            vectors=matrix @ self.vectors,
            error=np.sqrt(matrix**2 @ self.error**2),
            origins=origins,
            index=cell,
            sublattice=np.where(there, np.searchsorted(kept, code), -1),
            frames=np.einsum("ij,njk->nik", matrix, self.frames),
        )


def brightness(data: xr.Dataset) -> np.ndarray | None:
    """By what atoms are told apart: their species, else their intensity, else nothing."""
    for name in ("species", "intensity"):
        if name in data:
            values = data[name].values.astype(float)
            return values if values.std() > 0 else None
    return None


def lattice_of(data: xr.Dataset) -> Lattice:
    """The lattice of a dataset of atoms, by their positions in the plane and their brightness."""
    return find_lattice(data["position"].values[:, :2], brightness(data))


def find_lattice(position: np.ndarray, colour: np.ndarray | None = None) -> Lattice:
    """Find the lattice that atoms stand on.

    Args:
        position: of the atoms, (atom, 2).
        colour: a number by which columns of different sublattices can be told apart, such as the intensity. Without
            it sublattices that differ in nothing but their species are one: A and B of a perovskite make a cell of
            half the area.

    Raises:
        DataError: where the atoms have no lattice, or are too few to tell.
    """
    position = np.asarray(position, float)
    if len(position) < LEAST_ATOMS:
        raise DataError(
            f"a lattice needs at least {LEAST_ATOMS} atoms, found {len(position)}; take a larger field"
        )
    near = _nearest_distance(position)
    cell = _cell(position, colour, near)
    links = _grow(position, _standard(cell), near)
    index, component = _count(links.after)
    index, sublattice = _join(position, index, component, links.frames, near)
    sublattice = _one_each(position, index, sublattice, links.frames)
    found = _fitted(position, index, _sorted(sublattice, colour), links)
    return _in_standard(found)


def _nearest_distance(position: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(position).query(position, k=2)[0][:, 1]))


class _Shifts(NamedTuple):
    """Shifts that bring many atoms onto others."""

    vector: np.ndarray  # (shift, 2)
    share: np.ndarray  # of the atoms that come onto others
    unlike: np.ndarray  # how much these differ in brightness


def _cell(position: np.ndarray, colour: np.ndarray | None, near: float) -> np.ndarray:
    """The two shortest shifts of the lattice, from the patch where they are clearest."""
    best, most = None, 0.0
    for patch in _patches(position):
        shifts = _shifts(position[patch], None if colour is None else colour[patch], near)
        pair = _shortest(shifts)
        if pair is not None and pair[1] > most:
            best, most = pair
    if best is None:
        raise DataError(
            "the atoms have no lattice: no two shifts bring most of them onto others; look at their map"
        )
    return best


def _patches(position: np.ndarray) -> list[np.ndarray]:
    """Atoms around the middle, and around four places between it and the corners."""
    from scipy.spatial import cKDTree

    if len(position) <= 2 * PATCH:
        return [np.arange(len(position))]
    low, high = np.quantile(position, [0.25, 0.75], axis=0)
    middle = np.median(position, axis=0)
    corners = [[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])]
    _, found = cKDTree(position).query(np.array([middle, *corners]), k=PATCH)
    return list(found)


def _shifts(position: np.ndarray, colour: np.ndarray | None, near: float) -> _Shifts:
    """Peaks of the histogram of differences between atoms, in a half plane."""
    from scipy.ndimage import gaussian_filter, maximum_filter
    from scipy.spatial import cKDTree

    tree, reach = cKDTree(position), REACH * near
    pairs = tree.query_pairs(reach, output_type="ndarray")
    difference = position[pairs[:, 1]] - position[pairs[:, 0]]
    difference = np.concatenate([difference, -difference])
    step = BLUR * near
    half = int(np.ceil(reach / step)) + 1
    edges = (np.arange(-half, half + 2) - 0.5) * step
    counts, *_ = np.histogram2d(difference[:, 0], difference[:, 1], bins=(edges, edges))
    smooth = gaussian_filter(counts, 1.0)
    # Peaks within half of NEAR's circle are one.
    top = (smooth == maximum_filter(smooth, 5)) & (smooth > 0.2 * smooth.max())
    peaks = (np.argwhere(top) - half) * step
    peaks = peaks[
        (peaks[:, 0] > step / 2) | ((np.abs(peaks[:, 0]) <= step / 2) & (peaks[:, 1] > 0))
    ]
    peaks = _centred(peaks, difference, NEAR * near)
    return _scored(peaks, position, colour, near)


def _centred(peaks: np.ndarray, difference: np.ndarray, radius: float) -> np.ndarray:
    """Each peak moved to the mean of the differences around it."""
    from scipy.spatial import cKDTree

    tree = cKDTree(difference)
    for _ in range(3):
        around = tree.query_ball_point(peaks, radius)
        peaks = np.array(
            [difference[some].mean(0) if some else p for p, some in zip(peaks, around, strict=True)]
        )
    return peaks.reshape(-1, 2)


def _scored(
    shifts: np.ndarray, position: np.ndarray, colour: np.ndarray | None, near: float
) -> _Shifts:
    from scipy.spatial import cKDTree

    tree = cKDTree(position)
    low, high = position.min(0), position.max(0)
    share, unlike = np.zeros(len(shifts)), np.ones(len(shifts))
    for k, shift in enumerate(shifts):
        goal = position + shift
        inside = ((goal >= low) & (goal <= high)).all(1)
        distance, other = tree.query(goal[inside])
        hit = distance < NEAR * near
        share[k] = hit.sum() / max(inside.sum(), 1)
        if colour is not None and hit.any() and colour.std() > 0:
            change = colour[inside][hit] - colour[other[hit]]
            unlike[k] = np.mean(change**2) / (2 * colour.var())
    return _Shifts(shifts, share, unlike)


def _shortest(shifts: _Shifts) -> tuple[np.ndarray, float] | None:
    """The two shortest shifts of the lattice that are not parallel, and how many atoms they move onto others."""
    if not len(shifts.vector):
        return None
    alike = (
        shifts.unlike <= shifts.unlike[shifts.share >= SHARE * shifts.share.max()].min() + UNLIKE
    )
    good = alike & (shifts.share >= SHARE * shifts.share[alike].max())
    vector, share = shifts.vector[good], shifts.share[good]
    order = np.argsort(np.linalg.norm(vector, axis=1))
    vector, share = vector[order], share[order]
    length = np.linalg.norm(vector, axis=1)
    sine = np.abs(vector[:, 0] * vector[0, 1] - vector[:, 1] * vector[0, 0]) / (length * length[0])
    aside = np.flatnonzero(sine > 0.3)
    if not len(aside):
        return None
    return vector[[0, aside[0]]], float(share[0] + share[aside[0]])


def _standard(vectors: np.ndarray) -> np.ndarray:
    return _transform(vectors) @ vectors


def _transform(vectors: np.ndarray) -> np.ndarray:
    """The integer matrix to the standard vectors: shortest, a nearest to x, b counterclockwise, never sharp."""
    matrix = np.eye(2, dtype=np.int64)
    for _ in range(100):
        a, b = matrix @ vectors
        if b @ b < a @ a:
            matrix = matrix[::-1]
            continue
        times = round(float(a @ b / (a @ a)))
        if times == 0:
            break
        matrix = matrix - np.array([[0, 0], times * matrix[0]])
    if np.abs((matrix @ vectors)[1, 0]) / np.linalg.norm((matrix @ vectors)[1]) > np.abs(
        (matrix @ vectors)[0, 0]
    ) / np.linalg.norm((matrix @ vectors)[0]):
        matrix = matrix[::-1]
    a, _ = matrix @ vectors
    # An a along y has no x of its own: it points where y grows.
    if a[0] < -1e-9 * np.linalg.norm(a) or (abs(a[0]) <= 1e-9 * np.linalg.norm(a) and a[1] < 0):
        matrix = matrix * np.array([[-1], [1]])
    if np.linalg.det(matrix @ vectors) < 0:
        matrix = matrix * np.array([[1], [-1]])
    a, b = matrix @ vectors
    if a @ b > np.cos(np.radians(SHARP)) * np.linalg.norm(a) * np.linalg.norm(b):
        matrix = np.array([[1, 0], [-1, 1]]) @ matrix
    return matrix


class _Links(NamedTuple):
    """Atoms one vector further."""

    after: np.ndarray  # (atom, 2): the atom a or b from this one, -1 where there is none
    frames: np.ndarray  # (atom, 2, 2)


def _grow(position: np.ndarray, cell: np.ndarray, near: float) -> _Links:
    """Link atoms a vector apart, and go on with the vectors that the links around have, until no link is new."""
    from scipy.spatial import cKDTree

    tree = cKDTree(position)
    frames = np.broadcast_to(cell, (len(position), 2, 2)).copy()
    _, around = tree.query(position, k=min(AROUND, len(position)))
    after = np.full((len(position), 2), -1)
    count = -1
    for _ in range(MOST_ROUNDS):
        for which in (0, 1):
            after[:, which] = _linked(tree, frames[:, which], NEAR * near)
        linked = int((after >= 0).sum())
        if linked <= count:
            break
        count = linked
        frames = _local(position, after, around, frames)
    return _Links(after, frames)


def _linked(tree: object, shift: np.ndarray, radius: float) -> np.ndarray:
    """The atom at each shift's end, each atom the end of one shift at most."""
    position: np.ndarray = tree.data  # type: ignore[attr-defined]
    distance, other = tree.query(position + shift, distance_upper_bound=radius)  # type: ignore[attr-defined]
    found = np.flatnonzero(np.isfinite(distance))
    # Of several that end at one atom the nearest is written last.
    order = found[np.argsort(-distance[found], kind="stable")]
    comes_from = np.full(len(position), -1)
    comes_from[other[order]] = order
    after = np.full(len(position), -1)
    ends = np.flatnonzero(comes_from >= 0)
    after[comes_from[ends]] = ends
    return after


def _local(
    position: np.ndarray, after: np.ndarray, around: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """Vectors around each atom: the mean of the links of its neighbours, where there are any."""
    found = frames.copy()
    for which in (0, 1):
        start = np.flatnonzero(after[:, which] >= 0)
        end = after[start, which]
        vector = position[end] - position[start]
        total, number = np.zeros((len(position), 2)), np.zeros(len(position))
        for place in (start, end):
            number += np.bincount(place, minlength=len(position))
            for axis in (0, 1):
                total[:, axis] += np.bincount(place, vector[:, axis], len(position))
        number = number[around].sum(1)
        mean = total[around].sum(1) / np.maximum(number, 1)[:, None]
        found[:, which] = np.where(number[:, None] > 0, mean, found[:, which])
    return found


def _count(after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells counted along the links from one atom of each connected part, and the part of each atom."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    size = len(after)
    start, which = np.nonzero(after >= 0)
    graph = coo_array((np.ones(len(start)), (start, after[start, which])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    # One root above all parts makes one tree of them.
    rows = np.concatenate([start, np.full(len(first), size)])
    columns = np.concatenate([after[start, which], first])
    joined = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size + 1, size + 1)).tocsr()
    _, parent = breadth_first_order(joined, size, directed=False)
    index = np.zeros((size + 1, 2), np.int64)
    atoms = np.arange(size)
    above = parent[:size]
    for axis in (0, 1):
        extended = np.append(after[:, axis], -1)
        index[:size, axis] += (extended[above] == atoms) & (above < size)
        index[:size, axis] -= (after[:, axis] == above) & (index[:size, axis] == 0)
    # Sums along the way to the root, by doubling the steps.
    parent = np.append(above, size)
    while (parent != size).any():
        index = index + index[parent]
        parent = parent[parent]
    return index[:size], component


def _join(
    position: np.ndarray, index: np.ndarray, component: np.ndarray, frames: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cells counted from one origin, and the sublattice of each atom: where its part stands in the largest part.

    Parts that turn out to belong to the largest one's sublattice join it, and those beyond them are placed next.
    """
    largest = np.bincount(component).argmax()
    count = -1
    for _ in range(MOST_ROUNDS):
        index, sublattice = _placed(position, index, component, frames, near)
        component = np.where(sublattice == 0, largest, component)
        if int((sublattice >= 0).sum()) <= count:
            break
        count = int((sublattice >= 0).sum())
    return index, sublattice


def _placed(
    position: np.ndarray, index: np.ndarray, component: np.ndarray, frames: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.bincount(component)
    main = np.flatnonzero(component == sizes.argmax())
    place = _place(position, index, frames, main)
    # Beyond two cells a frame leads nowhere.
    known = np.abs(place.inside).max(1) < 2
    votes = np.bincount(component[known], minlength=len(sizes))
    apart = (place.cell - index)[known]
    offset = (
        np.stack([np.bincount(component[known], apart[:, axis], len(sizes)) for axis in (0, 1)], 1)
        / np.maximum(votes, 1)[:, None]
    )
    motif = _Motif.of(offset, np.where(votes > 0, sizes, 0), frames[main].mean(0), near)
    moved = np.rint(offset - motif.places[motif.which]).astype(np.int64)
    return index + moved[component], np.where(motif.which < 0, -1, motif.which)[component]


class _Place(NamedTuple):
    """Where atoms are in the cells of a sublattice."""

    inside: np.ndarray  # from the nearest atom of the sublattice, in cells
    cell: np.ndarray  # from its origin


def _place(position: np.ndarray, index: np.ndarray, frames: np.ndarray, main: np.ndarray) -> _Place:
    from scipy.spatial import cKDTree

    _, near = cKDTree(position[main]).query(position, k=min(3, len(main)))
    beside = main[near.reshape(len(position), -1)]
    away = position[:, None] - position[beside]
    inside = np.einsum("nki,nkij->nkj", away, np.linalg.inv(frames[beside]))
    return _Place(inside[:, 0], (inside + index[beside]).mean(1))


class _Motif(NamedTuple):
    """The sublattices: their places in the cell, and that of each part, -1 where it is at none of them."""

    places: np.ndarray
    which: np.ndarray

    @classmethod
    def of(cls, offset: np.ndarray, sizes: np.ndarray, vectors: np.ndarray, near: float) -> _Motif:
        """Parts in order of size: each joins the sublattice that it stands on, or founds one."""
        places: list[np.ndarray] = []
        held: list[int] = []
        which = np.full(len(offset), -1)
        left = np.flatnonzero(sizes > 0)
        left = left[np.argsort(-sizes[left], kind="stable")]
        while len(left) and len(places) < MOST_SUBLATTICES:
            first = offset[left[0]]
            apart = offset[left] - first
            distance = np.linalg.norm((apart - np.rint(apart)) @ vectors, axis=1)
            joined = distance < NEAR * near
            which[left[joined]] = len(places)
            places.append(first)
            held.append(int(sizes[left[joined]].sum()))
            left = left[~joined]
        enough = np.array(held) >= max(2, LEAST_SHARE * sizes.sum())
        number = np.where(enough, np.cumsum(enough) - 1, -1)
        which = np.where(which >= 0, number[which], -1)
        return cls(np.array(places)[enough], which)


def _one_each(
    position: np.ndarray, index: np.ndarray, sublattice: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """Of several atoms in one place only that nearest to where the atoms around have it is kept."""
    there = np.flatnonzero(sublattice >= 0)
    key = np.column_stack([sublattice[there], index[there]])
    _, place, number = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    if number.max() == 1:
        return sublattice
    # The mean of the atoms one vector before and after, from those that have a place of their own.
    crowded = number[place] > 1
    alone = there[~crowded]
    misfit = np.full(len(position), np.inf)
    for atom in there[crowded]:
        same = alone[sublattice[alone] == sublattice[atom]]
        if len(same):
            step = index[atom] - index[same]
            nearest = same[np.argmin(np.abs(step).sum(1))]
            goal = position[nearest] + (index[atom] - index[nearest]) @ frames[nearest]
            misfit[atom] = np.linalg.norm(position[atom] - goal)
    order = np.lexsort((misfit[there], place))
    first = np.ones(len(order), bool)
    first[1:] = place[order][1:] != place[order][:-1]
    kept = sublattice.copy()
    kept[there[order[~first]]] = -1
    return kept


def _sorted(sublattice: np.ndarray, colour: np.ndarray | None) -> np.ndarray:
    """Sublattices numbered from the brightest, or from the fullest."""
    there = sublattice >= 0
    number = np.bincount(sublattice[there])
    weight = number.astype(float)
    if colour is not None:
        weight = np.bincount(sublattice[there], colour[there]) / np.maximum(number, 1)
    rank = np.argsort(np.argsort(-weight, kind="stable"), kind="stable")
    return np.where(there, rank[np.maximum(sublattice, 0)], -1)


def _fitted(
    position: np.ndarray, index: np.ndarray, sublattice: np.ndarray, links: _Links
) -> Lattice:
    """The mean lattice by least squares, its error from sums over blocks of neighbours."""
    there = np.flatnonzero(sublattice >= 0)
    sites = int(sublattice.max()) + 1
    middle = np.rint(index[there].mean(0)).astype(np.int64)
    index = index - middle
    design = np.zeros((len(there), 2 + sites))
    design[:, :2] = index[there]
    design[np.arange(len(there)), 2 + sublattice[there]] = 1.0
    if len(there) < 2 * design.shape[1]:
        raise DataError("the atoms have no lattice: too few stand on one; look at their map")
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ (design.T @ position[there])
    score = design[:, :, None] * (position[there] - design @ found)[:, None, :]
    _, block = np.unique(index[there] // BLOCK, axis=0, return_inverse=True)
    sums = np.zeros((block.max() + 1, *score.shape[1:]))
    np.add.at(sums, block.reshape(-1), score)
    spread = np.einsum("ij,bjd->bid", inverse, sums)
    error = np.sqrt((spread**2).sum(0) * len(sums) / max(len(sums) - 1, 1))
    start, which = np.nonzero(links.after >= 0)
    step = index[links.after[start, which]] - index[start]
    torn = int((step != np.eye(2, dtype=np.int64)[which]).any(1).sum())
    return Lattice(
        found[:2], error[:2], found[2:], index, sublattice, links.frames, torn, len(start)
    )


def _in_standard(found: Lattice) -> Lattice:
    """With the vectors that the mean cell has by convention; least squares may have put them in another order."""
    matrix = _transform(found.vectors)
    return found if (matrix == np.eye(2)).all() else found.recast(matrix)
