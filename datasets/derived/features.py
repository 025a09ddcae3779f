"""Features of every atom's neighbourhood, the same wherever it lies and however it is turned.

An atom's K nearest neighbours, taken around it, give K distances and the K angles between successive ones, which add up
to a whole turn. Which neighbour comes first and which way round is arbitrary: the numbers are told up to the 2K
`orders` of a ring, as matrices, and models sum over them. The logarithm of the atom's own intensity may come last.

Example:
    >>> import atomzoo
    >>> sheet = atomzoo.simulate("graphene", gives="atoms", seed=1)
    >>> seen = features_of(sheet, {})
    >>> seen.attrs["neighbours"], seen.feature.values.shape[1]
    (3, 6)
    >>> orders(3, True).shape
    (6, 6, 6)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset

__all__ = ["features_of", "orders", "ring_basis"]

FEWEST, MOST = 2, 8
# An atom nearer to the rim of the frame than this part of its farthest neighbour's distance may lack neighbours.
RIM = 0.8
# Of steps in distance that are as large as this part of the largest, the first counts.
LARGE = 0.9
# Robust standard deviation of a normal distribution from the median of absolute deviations.
MAD = 1.4826


def _check_features(data: xr.Dataset) -> None:
    neighbours = data.attrs.get("neighbours")
    width = data.sizes["component"]
    if not isinstance(neighbours, int | np.integer) or width - 2 * int(neighbours) not in (-1, 0):
        raise DataError(
            "features: attrs['neighbours'] must be K where there are 2K - 1 features, or 2K with the intensity, "
            f"found {neighbours!r} and {width} features"
        )


add_kind(
    Kind(
        "features",
        "features of the neighbourhoods of atoms",
        {
            "feature": (("atom", "component"),),
            "position": (("atom", "axis"),),
            "index": (("atom",),),
        },
        {
            "distance": ("atom", "slot"),
            "angle": ("atom", "slot"),
            "distance_error": ("atom", "slot"),
            "angle_error": ("atom", "slot"),
        },
        codes=("index",),
        unit=("atom",),
        block=("position",),
        check=_check_features,
        derived=True,
    )
)


class _Ring(NamedTuple):
    """Neighbours around some atoms: which, how far, at what angles to the next, and the errors of both."""

    neighbours: np.ndarray
    distance: np.ndarray
    angle: np.ndarray
    errors: tuple[np.ndarray, np.ndarray] | None


def ring_basis(neighbours: int) -> np.ndarray:
    """Orthonormal columns (K, K - 1) that add up to zero: of K angles so many are free."""
    wanted = np.eye(neighbours)[:, : neighbours - 1]
    whole = np.concatenate([np.ones((neighbours, 1)), wanted], 1)
    basis: np.ndarray = np.linalg.qr(whole)[0][:, 1:]
    return basis


def orders(neighbours: int, intensity: bool) -> np.ndarray:
    """What the feature vector becomes when another neighbour is the first, or they are taken the other way round.

    Args:
        neighbours: K.
        intensity: whether there is one more feature, which stays.

    Returns:
        Orthogonal matrices, (2K, feature, feature).
    """
    basis = ring_basis(neighbours)
    turn = np.roll(np.eye(neighbours), 1, axis=1)
    back = np.eye(neighbours)[::-1]
    # Angle j lies between neighbours j and j + 1.
    back_angles = turn @ back
    found = []
    for times in range(neighbours):
        rolled = np.linalg.matrix_power(turn, times)
        for distances, angles in ((rolled, rolled), (rolled @ back, rolled @ back_angles)):
            size = 2 * neighbours - 1 + intensity
            matrix = np.eye(size)
            matrix[:neighbours, :neighbours] = distances
            matrix[neighbours : 2 * neighbours - 1, neighbours : 2 * neighbours - 1] = (
                basis.T @ angles @ basis
            )
            found.append(matrix)
    return np.stack(found)


def features_of(atoms: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The features of every atom that has all its neighbours in the frame.

    Args:
        atoms: positions in the plane.
        settings: `neighbours`, 0 for as many as there are before the largest step in distance; `intensity`, 1 to take
            the atoms' intensities where there are any, 0 to leave them; `rim`, 1 to leave out atoms whose neighbours
            may lie beyond the box that holds all atoms, 0 to keep them, such as those of an edge.
    """
    position = atoms["position"].values.astype(float)
    if position.shape[1] != 2:
        raise DataError("atoms: neighbourhoods are of columns seen in the plane; give x and y only")
    wanted = settings.get("neighbours", 0)
    if wanted != 0 and (wanted != int(wanted) or not FEWEST <= wanted <= MOST):
        raise DataError(f"neighbours must be 0 or {FEWEST} to {MOST}, found {wanted:g}")
    if len(position) < MOST + 2:
        raise DataError(f"atoms: {len(position)} are too few to have neighbourhoods")
    away, who = _nearest(position)
    neighbours = int(wanted) or _natural(away)
    kept = np.ones(len(position), bool)
    if settings.get("rim", 1):
        low, high = position.min(0), position.max(0)
        inside = np.minimum(position - low, high - position).min(1)
        kept = inside > RIM * away[:, neighbours - 1]
    if kept.sum() < MOST:
        raise DataError(
            f"atoms: only {int(kept.sum())} of {len(kept)} have all their neighbours in the frame; take a larger "
            "frame, or rim=0"
        )
    covariance = atoms["covariance"].values if "covariance" in atoms else None
    ring = _ring(position, who[kept, :neighbours], np.flatnonzero(kept), covariance)
    with_intensity = bool(settings.get("intensity", 1)) and "intensity" in atoms
    own = _logarithm(atoms["intensity"].values)[kept] if with_intensity else None
    return _told(ring, own, position[kept], np.flatnonzero(kept), len(kept))


def _nearest(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    away, who = cKDTree(position).query(position, MOST + 2)
    return away[:, 1:], who[:, 1:]


def _natural(away: np.ndarray) -> int:
    """Neighbours before the largest relative step in distance."""
    typical = np.median(away, 0)
    steps = typical[FEWEST : MOST + 1] / typical[FEWEST - 1 : MOST]
    return FEWEST + int((steps - 1 > LARGE * (steps.max() - 1)).argmax())


def _logarithm(intensity: np.ndarray) -> np.ndarray:
    """Logarithms, those of intensities that noise made tiny or negative cut at a hundredth of the median."""
    typical = float(np.median(intensity))
    if typical <= 0:
        raise DataError(
            "atoms: half of the intensities are not positive; mend them, or set intensity=0"
        )
    return np.log(np.maximum(intensity / typical, 0.01))


def _ring(
    position: np.ndarray, who: np.ndarray, atoms: np.ndarray, covariance: np.ndarray | None
) -> _Ring:
    """Neighbours in the order of their directions."""
    vectors = position[who] - position[atoms, None]
    direction = np.arctan2(vectors[..., 1], vectors[..., 0])
    order = np.argsort(direction, axis=1)
    who = np.take_along_axis(who, order, 1)
    vectors = np.take_along_axis(vectors, order[..., None], 1)
    direction = np.take_along_axis(direction, order, 1)
    distance = np.linalg.norm(vectors, axis=2)
    angle = np.diff(direction, axis=1, append=direction[:, :1] + 2 * np.pi)
    errors = None
    if covariance is not None:
        errors = _errors(vectors / distance[..., None], distance, covariance, who, atoms)
    return _Ring(who, distance, angle, errors)


def _errors(
    along: np.ndarray,
    distance: np.ndarray,
    covariance: np.ndarray,
    who: np.ndarray,
    atoms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors of distances and angles from the covariances of the atom's and its neighbours' positions."""
    own, others = covariance[atoms], covariance[who]
    across = np.stack([-along[..., 1], along[..., 0]], -1) / distance[..., None]
    of_distance = np.einsum("nki,nkij,nkj->nk", along, others + own[:, None], along)
    turned = np.einsum("nki,nkij,nkj->nk", across, others, across)
    both = np.roll(across, -1, axis=1) - across
    of_angle = turned + np.roll(turned, -1, axis=1) + np.einsum("nki,nij,nkj->nk", both, own, both)
    return np.sqrt(of_distance), np.sqrt(of_angle)


def _told(
    ring: _Ring, own: np.ndarray | None, position: np.ndarray, index: np.ndarray, total: int
) -> xr.Dataset:
    neighbours = ring.distance.shape[1]
    middle = float(np.median(ring.distance))
    free = ring.angle @ ring_basis(neighbours)
    if ring.errors is None:
        scales = [_unit(ring.distance), _unit(ring.angle)]
    else:
        scales = [float(np.median(error)) for error in ring.errors]
    parts = [(ring.distance - middle) / scales[0], free / scales[1]]
    if own is not None:
        scales.append(_unit(own))
        parts.append((own - np.median(own))[:, None] / scales[2])
    errors = {}
    if ring.errors is not None:
        errors = {
            "distance_error": ring.errors[0] * 1000,
            "angle_error": np.degrees(ring.errors[1]),
        }
    left = total - len(position)
    return dataset(
        "features",
        feature=np.concatenate(parts, 1),
        position=position,
        index=index,
        distance=ring.distance * 1000,
        angle=np.degrees(ring.angle),
        **errors,
        axis=np.array(["x", "y"]),
        units={
            "position": "nm",
            "distance": "pm",
            "angle": "degrees",
            **({"distance_error": "pm", "angle_error": "degrees"} if errors else {}),
        },
        attrs={
            "neighbours": neighbours,
            "middle_distance": middle * 1000,
            "scale_distance": scales[0] * 1000,
            "scale_angle": float(np.degrees(scales[1])),
            "scale_intensity": scales[2] if own is not None else 0.0,
            "left_out": left,
            "left_out_why": f"{left} atoms at the rim, whose neighbours may lie outside"
            if left
            else "nothing is left out",
        },
    )


def _unit(values: np.ndarray) -> float:
    """A robust scale of values about their median, not below a millionth of their range."""
    off = np.abs(values - np.median(values))
    return float(max(MAD * np.median(off), 1e-6 * np.ptp(values), 1e-12))
