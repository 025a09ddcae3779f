"""Phases of an image's lattice: what geometric phase analysis reads.

An image I(r) = Σ_g A_g exp(2πi g·r) whose lattice is displaced by u(r) shows A_g exp(2πi g·(r - u)): the wave g has got
the phase P_g = -2π g·u. It is read in windows of the image that are as independent of each other as can be, and its
error follows from the noise of the pixels and the wave's strength there.

A dislocation winds the phase by a whole number of turns, and no displacement has such a phase everywhere. Where turns
are found their phase is told apart (`wound`), so that what is left is smooth.

Example:
    >>> x = np.arange(256) * 0.03
    >>> waves = np.cos(2 * np.pi * x / 0.3) + np.cos(2 * np.pi * x[:, None] / 0.3)
    >>> seen = phases_of(image_of(waves, x, x), {"resolution": 0.9})
    >>> dict(seen.sizes)
    {'point': 36, 'reflection': 2, 'axis': 2}
    >>> bool(np.abs(seen.phase).max() < 1e-3)
    True
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset
from .reflections import (
    demodulated,
    find_reflections,
    indexed,
    noise_near,
    reciprocal,
    windows,
)

__all__ = ["image_of", "phases_of", "strain_of", "unwrapped", "wrapped"]

# Windows this far from the rim, in spacings, see nothing of the world beyond it.
MARGIN = 1.5
# A spacing of windows in lattice planes: the window's waves then end before the next reflection.
PLANES = 3.0
LEAST_POINTS, MOST_POINTS = 4, 48
# A wave weaker than so many standard errors has no phase to speak of.
WEAKEST = 5.0
# Windows nearer to a dislocation's core than this, in spacings, see the whole turn at once.
CORE = 1.5
# Rounds in which the mean lattice is found; each leaves far less than the one before.
ROUNDS = 4
SETTINGS = ("g1_x", "g1_y", "g2_x", "g2_y", "resolution", "a", "b", "gamma")


def _check_phases(data: xr.Dataset) -> None:
    if data.sizes["reflection"] != 2:
        raise DataError("phases: a displacement in the plane needs two reflections")
    if not (data["variance"].values > 0).all():
        raise DataError("phases: every variance must be positive")
    if abs(np.linalg.det(data["g"].values)) < 1e-9:
        raise DataError("phases: the two reflections are collinear")


add_kind(
    Kind(
        "phases",
        "phases of two reflections in windows of an image",
        {
            "phase": (("point", "reflection"),),
            "variance": (("point", "reflection"),),
            "position": (("point", "axis"),),
            "place": (("point", "axis"),),
            "g": (("reflection", "axis"),),
        },
        {
            "modulus": ("point", "reflection"),
            "wound": ("point", "reflection"),
            "wound_slope": ("point", "reflection", "axis"),
            "core_position": ("core", "axis"),
            "core_turns": ("core", "reflection"),
        },
        unit=("point",),
        block=("position",),
        check=_check_phases,
        derived=True,
    )
)


class _Cores(NamedTuple):
    """Where the phase winds: places, and whole turns of each reflection."""

    position: np.ndarray
    turns: np.ndarray


def image_of(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> xr.Dataset:
    """An image of plain arrays, in nm."""
    return dataset("image", intensity=values, y=y, x=x, units={"y": "nm", "x": "nm"})


def phases_of(image: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The phases of two reflections of an image.

    Args:
        image: at atomic resolution.
        settings: `g1_x` … `g2_y`, the reflections in 1/nm, all 0 where they are to be found; `resolution`, the
            distance of windows in nm, 0 for three lattice planes; `a`, `b` (nm) and `gamma` (degrees) of the reference
            lattice, a = 0 for the mean lattice of the image. What is missing is 0.
    """
    chosen = {name: float(settings.get(name, 0.0)) for name in SETTINGS}
    values = image["intensity"].values.astype(float)
    y, x = (image[axis].values.astype(float) for axis in ("y", "x"))
    g, noise = _reflections(values, y, x, chosen)
    spacing = _spacing(g, y, x, chosen["resolution"])
    centres = _centres(y, spacing, "y"), _centres(x, spacing, "x")
    weights = windows(centres[0], y, spacing), windows(centres[1], x, spacing)
    flat = values - values.mean()
    for _ in range(ROUNDS):
        waves = demodulated(flat, y, x, g, weights)
        g = g + _mean_slopes(waves, spacing) / (2 * np.pi)
    waves = demodulated(flat, y, x, g, weights)
    # Of the two parts of a wave each has half the variance.
    error = 0.5 * noise * (weights[0] ** 2).sum(1)[:, None] * (weights[1] ** 2).sum(1)
    return _told(waves, g, error, centres, spacing, chosen, str(image["x"].attrs.get("units")))


def _reflections(
    values: np.ndarray, y: np.ndarray, x: np.ndarray, chosen: Mapping[str, float]
) -> tuple[np.ndarray, float]:
    given = np.array([[chosen["g1_x"], chosen["g1_y"]], [chosen["g2_x"], chosen["g2_y"]]])
    if not given.any():
        return find_reflections(values, y, x)
    sine = np.linalg.det(given) / max(float(np.prod(np.linalg.norm(given, axis=1))), 1e-300)
    if abs(sine) < 0.1:
        raise DataError("g1 and g2 must both be given, in two directions (1/nm), or all be 0")
    return given, noise_near(values, y, x, given[0])


def _spacing(g: np.ndarray, y: np.ndarray, x: np.ndarray, resolution: float) -> float:
    """Distance of windows: as given, else a few lattice planes, and more where the frame is large."""
    largest = max(np.ptp(x), np.ptp(y))
    least = largest / (MOST_POINTS - 1 + 2 * MARGIN)
    nearest = min(np.linalg.norm(k) for k in (g[0], g[1], g[0] + g[1], g[0] - g[1]))
    if resolution == 0:
        return float(max(PLANES / nearest, least))
    if resolution < least:
        raise DataError(
            f"resolution={resolution:g} nm asks for too many windows; take at least {least:.3g} nm, or a part of "
            "the image"
        )
    if resolution * nearest < 1:
        raise DataError(
            f"resolution={resolution:g} nm is below the distance of lattice planes, {1 / nearest:.3g} nm; "
            f"take about {PLANES / nearest:.3g} nm"
        )
    return resolution


def _centres(along: np.ndarray, spacing: float, axis: str) -> np.ndarray:
    room = float(np.ptp(along)) - 2 * MARGIN * spacing
    count = int(np.floor(room / spacing + 1e-9)) + 1
    if count < LEAST_POINTS:
        raise DataError(
            f"image: {np.ptp(along):.3g} nm along {axis} hold {max(count, 0)} windows {spacing:.3g} nm apart, at least "
            f"{LEAST_POINTS} are needed; take a larger frame or a finer resolution"
        )
    middle = 0.5 * (along[0] + along[-1])
    centres: np.ndarray = middle + spacing * (np.arange(count) - 0.5 * (count - 1))
    return centres


def _mean_slopes(waves: np.ndarray, spacing: float) -> np.ndarray:
    """Mean gradient of each wave's phase, (reflection, axis); strong windows count more."""
    along_x = (waves[:, :, 1:] * waves[:, :, :-1].conj()).sum((1, 2))
    along_y = (waves[:, 1:] * waves[:, :-1].conj()).sum((1, 2))
    slopes: np.ndarray = np.angle(np.stack([along_x, along_y], 1)) / spacing
    return slopes


def wrapped(phase: np.ndarray) -> np.ndarray:
    """Phases between -π and π."""
    return (phase + np.pi) % (2 * np.pi) - np.pi


def strain_of(local: np.ndarray) -> dict[str, np.ndarray]:
    """Strain and rotation of a lattice whose vectors are `local` times those of the reference.

    The matrix is V R, a rotation R by an angle ω and then a stretch V along the axes of the image; the strain is V - 1.

    Args:
        local: (…, 2, 2).

    Returns:
        `exx`, `eyy`, `exy`, and `rotation` in degrees, from x towards y.
    """
    angle = np.arctan2(local[..., 1, 0] - local[..., 0, 1], local[..., 0, 0] + local[..., 1, 1])
    c, s = np.cos(angle), np.sin(angle)
    back = np.stack([np.stack([c, s], -1), np.stack([-s, c], -1)], -2)
    stretch = local @ back
    return {
        "exx": stretch[..., 0, 0] - 1,
        "eyy": stretch[..., 1, 1] - 1,
        "exy": 0.5 * (stretch[..., 0, 1] + stretch[..., 1, 0]),
        "rotation": np.degrees(angle),
    }


def _told(
    waves: np.ndarray,
    g: np.ndarray,
    error: np.ndarray,
    centres: tuple[np.ndarray, np.ndarray],
    spacing: float,
    chosen: Mapping[str, float],
    unit: str,
) -> xr.Dataset:
    """The dataset, its phases against the reference lattice, with what is left out counted."""
    rows, cols = np.mgrid[: len(centres[0]), : len(centres[1])]
    place = np.stack([cols.ravel(), rows.ravel()], 1)
    position = np.stack([centres[1][place[:, 0]], centres[0][place[:, 1]]], 1)
    wave, variance = waves.reshape(2, -1).T, error.reshape(-1, 1)
    modulus = np.abs(wave)
    strong = modulus > WEAKEST * np.sqrt(variance)
    cores = _cores(waves, strong.T.reshape(waves.shape), centres)
    wound, slope = _winding(position, cores)
    kept = strong.all(1)
    near = _near(position, cores, CORE * spacing) & kept
    kept &= ~near
    if kept.sum() < LEAST_POINTS**2 // 2:
        raise DataError(
            f"image: of {len(kept)} windows {int(kept.sum())} show the two waves above the noise; take a larger "
            "resolution, or other reflections"
        )
    phase = _centred(np.angle(wave) - wound, place, kept, modulus)
    reference, facts = _reference(g, chosen)
    middle = position.mean(0)
    phase = phase + wound + 2 * np.pi * (position - middle) @ (g - reference).T
    weak = int(len(kept) - kept.sum() - near.sum())
    winding = {"core_position": cores.position, "core_turns": cores.turns} if len(cores[0]) else {}
    return dataset(
        "phases",
        phase=wrapped(phase)[kept],
        variance=(variance / modulus**2)[kept],
        position=position[kept],
        place=place[kept],
        g=reference,
        modulus=modulus[kept],
        wound=wound[kept],
        wound_slope=slope[kept],
        **winding,
        axis=np.array(["x", "y"]),
        units={
            "phase": "rad",
            "variance": "rad^2",
            "position": unit,
            "g": f"1/{unit}",
            "wound": "rad",
            "wound_slope": f"rad/{unit}",
            **({"core_position": unit} if winding else {}),
        },
        attrs={
            "resolution": spacing,
            "rows": len(centres[0]),
            "columns": len(centres[1]),
            "left_out": int(len(kept) - kept.sum()),
            "left_out_why": _why(weak, int(near.sum()), len(cores.position)),
            **facts,
        },
    )


def _why(weak: int, near: int, cores: int) -> str:
    parts = []
    if weak:
        parts.append(f"{weak} windows where a wave is lost in the noise")
    if near:
        parts.append(f"{near} windows at {cores} points where a phase winds, such as dislocations")
    return " and ".join(parts) if parts else "nothing is left out"


def _reference(
    g: np.ndarray, chosen: Mapping[str, float]
) -> tuple[np.ndarray, dict[str, int | str]]:
    """Reflections of the reference lattice."""
    if chosen["a"] == 0:
        return g, {"reference": "the mean lattice of the image"}
    b = chosen["b"] or chosen["a"]
    gamma = chosen["gamma"] or 90.0
    if chosen["a"] < 0 or b < 0 or not 0 < gamma < 180:
        raise DataError("the reference lattice needs a > 0, b > 0 and gamma between 0 and 180")
    reference, indices = indexed(g, reciprocal(chosen["a"], b, gamma))
    (h, k), (m, n) = indices.tolist()
    text = f"a = {chosen['a']:g}, b = {b:g}, gamma = {gamma:g}: reflections ({h} {k}) and ({m} {n})"
    return reference, {"reference": text}


def _cores(waves: np.ndarray, strong: np.ndarray, centres: tuple[np.ndarray, np.ndarray]) -> _Cores:
    """Squares of four windows around which a phase does not come back to itself."""
    places, turns = [], []
    for index, (wave, visible) in enumerate(zip(waves, strong, strict=True)):
        right = np.angle(wave[:, 1:] * wave[:, :-1].conj())
        down = np.angle(wave[1:] * wave[:-1].conj())
        around = np.rint((right[:-1] + down[:, 1:] - right[1:] - down[:, :-1]) / (2 * np.pi))
        corners = visible[:-1, :-1] & visible[1:, :-1] & visible[:-1, 1:] & visible[1:, 1:]
        for row, col in np.argwhere((around != 0) & corners):
            s, t = _zero(wave[row : row + 2, col : col + 2])
            x = centres[1][col] + s * (centres[1][1] - centres[1][0])
            y = centres[0][row] + t * (centres[0][1] - centres[0][0])
            places.append((x, y))
            turns.append(np.eye(len(waves))[index] * around[row, col])
    shape = (-1, 2)
    return _Cores(np.reshape(places, shape), np.reshape(turns, shape))


def _zero(square: np.ndarray) -> tuple[float, float]:
    """Where the wave between four corners vanishes, in units of their distance."""
    place = np.array([0.5, 0.5])
    (a, b), (c, d) = square
    for _ in range(8):
        s, t = place
        value = (1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * c + s * d)
        by_s, by_t = (1 - t) * (b - a) + t * (d - c), (1 - s) * (c - a) + s * (d - b)
        slope = np.array([[by_s.real, by_t.real], [by_s.imag, by_t.imag]])
        if abs(np.linalg.det(slope)) < 1e-12 * float(np.abs(square).max()) ** 2:
            break
        place = np.clip(place - np.linalg.solve(slope, [value.real, value.imag]), 0.0, 1.0)
    return float(place[0]), float(place[1])


def _winding(position: np.ndarray, cores: _Cores) -> tuple[np.ndarray, np.ndarray]:
    """Phase wound around the cores at each position (point, reflection), and its gradient."""
    away = position[:, None] - cores.position[None]
    angle = np.arctan2(away[..., 1], away[..., 0])
    square = np.maximum((away**2).sum(-1), 1e-12)
    slope = np.stack([-away[..., 1], away[..., 0]], -1) / square[..., None]
    return angle @ cores.turns, np.einsum("pca,cr->pra", slope, cores.turns)


def _near(position: np.ndarray, cores: _Cores, reach: float) -> np.ndarray:
    away = np.linalg.norm(position[:, None] - cores.position[None], axis=2)
    near: np.ndarray = (away < reach).any(1)
    return near


def _centred(
    phase: np.ndarray, place: np.ndarray, kept: np.ndarray, modulus: np.ndarray
) -> np.ndarray:
    """Phases whose mean over the kept windows is zero: the lattice's origin is of no interest."""
    whole = unwrapped(phase[kept], place[kept], modulus[kept])
    centred: np.ndarray = phase - whole.mean(0)
    return centred


def unwrapped(phase: np.ndarray, place: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Phases (point, reflection) without jumps of a turn between neighbouring windows.

    The field whose steps are nearest to the wrapped ones (weighted least squares) says how many turns there are.

    Args:
        phase: in windows of a grid.
        place: column and row of each window.
        weight: how much each is to be trusted.
    """
    from scipy.sparse import csr_array, identity
    from scipy.sparse.linalg import splu

    first, second = _neighbours(place)
    count, pairs = len(phase), len(first)
    step = csr_array(
        (np.repeat([-1.0, 1.0], pairs), (np.tile(np.arange(pairs), 2), np.r_[first, second])),
        shape=(pairs, count),
    )
    found = np.empty_like(phase)
    for i in range(phase.shape[1]):
        trust = weight[first, i] * weight[second, i]
        trust = trust / trust.max() if pairs else trust
        normal = (step.T * trust) @ step + 1e-9 * identity(count)
        jumps = wrapped(phase[second, i] - phase[first, i])
        smooth = splu(normal.tocsc()).solve(step.T @ (trust * jumps))
        # The field is known but for a constant; the strongest window is taken as it is.
        anchor = int(weight[:, i].argmax())
        smooth += phase[anchor, i] - smooth[anchor]
        found[:, i] = phase[:, i] + 2 * np.pi * np.rint((smooth - phase[:, i]) / (2 * np.pi))
    return found


def _neighbours(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of windows next to each other along x or y."""
    columns, rows = place.max(0) + 1
    index = np.full((rows, columns), -1)
    index[place[:, 1], place[:, 0]] = np.arange(len(place))
    pairs = [
        np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()]),
        np.stack([index[:-1].ravel(), index[1:].ravel()]),
    ]
    both = np.concatenate(pairs, 1)
    first, second = both[:, (both >= 0).all(0)]
    return first, second
