"""Lattices in Fourier space: the reflections of an image, its noise there, and what they say in windows of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kinds import DataError

__all__ = ["Reflections", "demodulated", "find_reflections", "indexed", "reciprocal", "windows"]

# A reflection stands out of the spectrum about it: noise alone reaches so high once in e^30 points.
STANDS_OUT = 30.0
# Reflections nearer in direction than this leave one axis of the displacement badly known.
LEAST_ANGLE = 25.0
# Waves longer than a quarter of the frame are its background.
LONGEST_WAVES = 4.0
# The noise is read where waves are as long as those of the lattice, in this range around them.
AROUND = (0.75, 1.3)
# Largest index tried for a reflection of the reference lattice.
MOST_INDEX = 3
# A lattice farther than this from the reference is another lattice.
FARTHEST = 0.15


class Reflections(NamedTuple):
    """Two waves of a lattice.

    Attributes:
        g: their vectors in 1/nm, (reflection, axis).
        noise: variance of a pixel's noise, as the spectrum has it near these waves.
    """

    g: np.ndarray
    noise: float


def find_reflections(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> Reflections:
    """The strongest reflection, the strongest that is not collinear with it, and the noise between them."""
    power, kx, ky = _spectrum(values, y, x)
    length = np.hypot(kx, ky)
    least = LONGEST_WAVES / min(np.ptp(x), np.ptp(y))
    level = _background(power, length)
    peaks = _peaks(power) & (power > STANDS_OUT * level) & (length > least)
    found = np.argwhere(peaks)
    if not len(found):
        raise DataError(
            "image: its spectrum shows no lattice; give the two reflections, or take an image at atomic resolution"
        )
    found = found[np.argsort(-power[peaks], kind="stable")]
    vectors = np.stack([kx[0, found[:, 1]], ky[found[:, 0], 0]], 1)
    first = vectors[0]
    sine = np.abs(vectors[:, 0] * first[1] - vectors[:, 1] * first[0])
    sine /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(first)
    apart = np.flatnonzero(sine > np.sin(np.deg2rad(LEAST_ANGLE)))
    if not len(apart):
        raise DataError(
            "image: all its reflections lie on one line; a displacement needs two directions"
        )
    return Reflections(np.stack([first, vectors[apart[0]]]), noise_near(values, y, x, first))


def noise_near(values: np.ndarray, y: np.ndarray, x: np.ndarray, g: np.ndarray) -> float:
    """Variance of a pixel's noise from the waves about as long as g that are no reflections."""
    power, kx, ky = _spectrum(values, y, x)
    ratio = np.hypot(kx, ky) / np.linalg.norm(g)
    ring = power[(ratio > AROUND[0]) & (ratio < AROUND[1])]
    if ring.size < 20:
        raise DataError("image: too small to tell its noise from its lattice; take a larger frame")
    # The power of noise is exponential; its median is little moved by reflections.
    return float(np.median(ring) / np.log(2))


def _spectrum(
    values: np.ndarray, y: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power under a Hann window, of unit mean for white noise of unit variance, and its waves in 1/nm."""
    from scipy.fft import rfft2

    taper = np.hanning(len(y))[:, None] * np.hanning(len(x))
    seen = (values - values.mean()) * taper
    power = np.abs(rfft2(seen)) ** 2 / (taper**2).sum()
    kx = np.fft.rfftfreq(len(x), _step(x))[None]
    ky = np.fft.fftfreq(len(y), _step(y))[:, None]
    return power, kx, ky


def _step(along: np.ndarray) -> float:
    return float(np.ptp(along) / (len(along) - 1))


def _background(power: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Median power of the waves of like length."""
    width = 2 * max(float(length[0, 1]), float(length[1, 0]))
    ring = (length / width).astype(np.int64)
    order = np.argsort(ring, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(ring.ravel()))
    parts = np.split(power.ravel()[order], ends[:-1])
    medians = np.array([np.median(part) if part.size else np.inf for part in parts])
    level: np.ndarray = medians[ring] / np.log(2)
    return level


def _peaks(power: np.ndarray) -> np.ndarray:
    from scipy.ndimage import maximum_filter

    highest: np.ndarray = power == maximum_filter(power, 5, mode="wrap")
    return highest


def windows(centre: np.ndarray, pixels: np.ndarray, spacing: float) -> np.ndarray:
    """Weights (centre, pixel) along one axis, of sum one, whose shifts by the spacing are orthogonal.

    A Gaussian of a third of the spacing, made orthogonal to its shifts (Löwdin): the noise of white pixels is
    independent between windows, and hardly anything that is smooth over a spacing is lost.
    """
    width = spacing / 3
    shifts = np.arange(-32, 32)
    overlap = np.fft.fft(np.fft.ifftshift(np.exp(-((shifts * spacing / (2 * width)) ** 2))))
    parts = np.fft.fftshift(np.fft.ifft(overlap.real**-0.5)).real
    # Beyond a few shifts they are below rounding.
    near = np.abs(shifts) <= 6
    away = pixels[None] - centre[:, None]
    weight: np.ndarray = np.zeros(away.shape)
    for shift, part in zip(shifts[near], parts[near], strict=True):
        weight += part * np.exp(-0.5 * ((away - shift * spacing) / width) ** 2)
    total: np.ndarray = weight / weight.sum(1, keepdims=True)
    return total


def demodulated(
    values: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    g: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """H_g = Σ w(r) I(r) exp(-2πi g·r) in every window, (reflection, row, col).

    Args:
        values: the image.
        y: its rows.
        x: its columns.
        g: reflections, (reflection, axis).
        weights: of the windows along y and along x.
    """
    found = []
    for gx, gy in g:
        rows = weights[0] * np.exp(-2j * np.pi * gy * y)
        cols = weights[1] * np.exp(-2j * np.pi * gx * x)
        found.append((rows.real @ values + 1j * (rows.imag @ values)) @ cols.T)
    return np.stack(found)


def reciprocal(a: float, b: float, gamma: float) -> np.ndarray:
    """Reciprocal vectors (2, axis) of a lattice with a along x, b at an angle gamma (degrees) to it."""
    angle = np.deg2rad(gamma)
    cell = np.array([[a, 0.0], [b * np.cos(angle), b * np.sin(angle)]])
    inverse: np.ndarray = np.linalg.inv(cell).T
    return inverse


def indexed(g: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reflections of a reference lattice that two of an image are, turned so as to fit best, and their indices.

    Args:
        g: reflections of the image.
        lattice: reciprocal vectors of the reference, in any direction.
    """
    span = range(-MOST_INDEX, MOST_INDEX + 1)
    indices = np.array([(h, k) for h in span for k in span if (h, k) != (0, 0)])
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for hand in (1, -1):
        vectors = indices @ lattice * [1, hand]
        length = np.linalg.norm(vectors, axis=1)
        near = [
            np.flatnonzero(np.abs(np.log(length / np.linalg.norm(one))) < FARTHEST) for one in g
        ]
        for i in near[0]:
            for j in near[1]:
                pair = vectors[[i, j]]
                turn = _turn(pair, g)
                off = float(np.linalg.norm(pair @ turn.T - g) / np.linalg.norm(g))
                # Of alternatives that fit as well, the lowest indices.
                score = off + 1e-6 * float(np.abs(indices[[i, j]]).sum())
                if off < FARTHEST and (best is None or score < best[0]):
                    best = score, pair @ turn.T, indices[[i, j]]
    if best is None:
        sizes = " and ".join(f"{1 / np.linalg.norm(one):.4f}" for one in g)
        raise DataError(
            f"image: its lattice planes, {sizes} nm apart, are not those of the reference lattice within "
            f"{FARTHEST:.0%}; give other lattice constants, or a = 0 for the image's own mean lattice"
        )
    return best[1], best[2]


def _turn(pair: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """The rotation that brings vectors nearest to others."""
    cross = float((pair[:, 0] * onto[:, 1] - pair[:, 1] * onto[:, 0]).sum())
    dot = float((pair * onto).sum())
    c, s = np.array([dot, cross]) / np.hypot(dot, cross)
    return np.array([[c, -s], [s, c]])
