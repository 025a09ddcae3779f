"""A scanning transmission electron microscope: the image that it gives of columns of atoms.

At row y the point s of the specimen is seen at

    p(s, y) = c + M (s − c) + drift(y) + (jitter(y), 0),

with c the middle of the frame, M the scan's scale and shear, and drift and jitter a shift for every row. A column at s
that sends N electrons to the detector then gives the pixel at q, on average,

    N · pixel² / |det M| · K(M⁻¹ (q − p(s, q_y)))

electrons. K is the probe, of unit integral; it is taken at the pixel's centre, not averaged over the pixel. So N is the
sum over all pixels of a column, whatever the scale, to 3 % for a probe half a pixel wide and to 1e-8 for one a pixel
wide; a drift that changes from row to row stretches the column, and the sum, by its slope.

Lengths are in nm, y grows downwards, positions are (x, y).

Example:
    >>> rows = np.arange(40) * 0.02
    >>> scan = Scan(rows, rows)
    >>> image = render(np.array([[0.4, 0.4]]), np.array([1000.0]), Probe(0.04), scan)
    >>> image.shape, round(float(image.sum()), 6)
    ((40, 40), 1000.0)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = ["Measurement", "Probe", "Scan", "measure", "render"]

# The probe at 7.5 standard deviations is below 1e-12 of its peak: what is cut off there is not seen.
REACH = 7.5
# Elements worked on at a time: a few arrays of 512 kB stay in the cache.
CHUNK = 2**16
# Positions under drift are found to a millionth of a hundredth of a picometre, in a few rounds.
CLOSE_NM = 1e-11
MOST_ROUNDS = 60


@dataclass(frozen=True)
class Probe:
    """How a column looks: a Gaussian core on a wider Gaussian tail, of unit integral.

    Attributes:
        core: standard deviation in nm, that of the source included.
        tail: fraction of the electrons in the tail.
        tail_width: standard deviation of the tail in nm.
    """

    core: float
    tail: float = 0.0
    tail_width: float = 0.0

    @property
    def parts(self) -> tuple[tuple[float, float], ...]:
        """Weight and standard deviation of each Gaussian."""
        if self.tail == 0:
            return ((1.0, self.core),)
        return ((1 - self.tail, self.core), (self.tail, self.tail_width))

    @property
    def peak(self) -> float:
        """The probe in its middle, in 1/nm²."""
        return sum(weight / (2 * np.pi * width**2) for weight, width in self.parts)

    @property
    def reach(self) -> float:
        """Distance beyond which nothing is seen."""
        return REACH * max(width for _, width in self.parts)


@dataclass(frozen=True)
class Scan:
    """Where each pixel of the image lies on the specimen.

    Attributes:
        x: middle of each column of pixels, evenly spaced.
        y: middle of each row of pixels, as far apart as those of x.
        matrix: M, scale and shear.
        drift: shift of each row, (row, 2); between rows it is interpolated.
        jitter: shift of each row along x that the next row knows nothing of.
    """

    x: np.ndarray
    y: np.ndarray
    matrix: np.ndarray = field(default_factory=lambda: np.eye(2))
    drift: np.ndarray | None = None
    jitter: np.ndarray | None = None

    @property
    def pixel(self) -> float:
        """Distance between pixels."""
        return float(self.x[1] - self.x[0])

    @property
    def centre(self) -> np.ndarray:
        """The point that scale and shear leave where it is."""
        return np.array([(self.x[0] + self.x[-1]) / 2, (self.y[0] + self.y[-1]) / 2])

    @property
    def shifts(self) -> tuple[np.ndarray, np.ndarray]:
        """Drift (row, 2) and jitter (row), zero where there is none."""
        rows = len(self.y)
        drift = np.zeros((rows, 2)) if self.drift is None else self.drift
        return drift, np.zeros(rows) if self.jitter is None else self.jitter

    def image_position(self, specimen: np.ndarray) -> np.ndarray:
        """Where points of the specimen are seen, jitter left out."""
        still = self.still(specimen)
        drift, _ = self.shifts
        y = still[:, 1]
        # Each round multiplies the error by the slope of the drift, which is far below one.
        for _ in range(MOST_ROUNDS):
            last, y = y, still[:, 1] + np.interp(y, self.y, drift[:, 1])
            if np.abs(y - last).max(initial=0.0) < CLOSE_NM:
                break
        return np.stack([still[:, 0] + np.interp(y, self.y, drift[:, 0]), y], 1)

    def specimen_position(self, image: np.ndarray) -> np.ndarray:
        """The points of the specimen that are seen at points of the image, jitter left out."""
        drift, _ = self.shifts
        moved = [np.interp(image[:, 1], self.y, drift[:, axis]) for axis in (0, 1)]
        back = image - np.stack(moved, 1) - self.centre
        return back @ np.linalg.inv(self.matrix).T + self.centre

    def still(self, specimen: np.ndarray) -> np.ndarray:
        """Where points would be seen if nothing drifted."""
        return (specimen - self.centre) @ self.matrix.T + self.centre

    def half(self, probe: Probe) -> int:
        """Pixels from a column's own to the last that it reaches."""
        drift, jitter = self.shifts
        slope = np.abs(np.diff(drift, axis=0)).max(initial=0.0) / self.pixel
        reach = probe.reach * float(np.linalg.norm(self.matrix, 2))
        return int(np.ceil((reach * (1 + slope) + np.abs(jitter).max()) / self.pixel)) + 1


class _Patches(NamedTuple):
    """Some columns, and for each the pixels that it reaches; rows and cols count from the padded image's corner."""

    which: np.ndarray
    rows: np.ndarray  # (column, row)
    cols: np.ndarray  # (column, col)
    dx: np.ndarray  # (column, row, col): from the column to the pixel, as seen in the image
    dy: np.ndarray  # (column, row, 1)


def _patches(specimen: np.ndarray, scan: Scan, half: int) -> Iterator[_Patches]:
    """The pixels around each column, some columns at a time, from top to bottom."""
    pixel, still = scan.pixel, scan.still(specimen)
    seen = scan.image_position(specimen)
    start = np.array([scan.x[0], scan.y[0]])
    near = np.rint((seen - start) / pixel).astype(np.int64)
    shape = np.array([len(scan.x), len(scan.y)])
    found = np.flatnonzero(((near >= -half) & (near < shape + half)).all(1))
    found = found[np.argsort(near[found, 1], kind="stable")]
    drift, jitter = scan.shifts
    # One more margin beyond the pad of the image, for columns outside it.
    ends = (half, half)
    shift_x = np.pad(drift[:, 0] + jitter, ends, mode="edge")
    shift_y = np.pad(drift[:, 1], ends, mode="edge")
    window = np.arange(-half, half + 1)
    size = max(1, CHUNK // len(window) ** 2)
    for first in range(0, len(found), size):
        which = found[first : first + size]
        cols = near[which, 0, None] + window
        rows = near[which, 1, None] + window
        at = np.clip(rows + half, 0, len(shift_x) - 1)
        x = start[0] + cols * pixel - still[which, 0, None]
        y = start[1] + rows * pixel - still[which, 1, None] - shift_y[at]
        dx = x[:, None, :] - shift_x[at][:, :, None]
        yield _Patches(which, rows + 2 * half, cols + 2 * half, dx, y[:, :, None])


def _metric(matrix: np.ndarray) -> tuple[float, float, float]:
    """Coefficients of r² = g_xx dx² + 2 g_xy dx dy + g_yy dy², the square of a distance on the specimen."""
    inverse = np.linalg.inv(matrix)
    g = inverse.T @ inverse
    return float(g[0, 0]), float(g[0, 1]), float(g[1, 1])


def _square(patch: _Patches, metric: tuple[float, float, float]) -> np.ndarray:
    """Square of the distance from column to pixel on the specimen."""
    xx, xy, yy = metric
    along = patch.dx + (xy / xx) * patch.dy
    along *= along
    along *= xx
    along += (yy - xy**2 / xx) * patch.dy**2
    return along


def render(specimen: np.ndarray, electrons: np.ndarray, probe: Probe, scan: Scan) -> np.ndarray:
    """Mean number of electrons that columns give each pixel, (y, x).

    Args:
        specimen: positions of the columns on the specimen, (column, 2), also of those just outside the frame.
        electrons: what each column sends to the detector in all.
        probe: how a column looks.
        scan: where the pixels are.
    """
    half, metric = scan.half(probe), _metric(scan.matrix)
    image = np.zeros((len(scan.y), len(scan.x)))
    rows, columns = image.shape
    width = columns + 4 * half
    area = scan.pixel**2 / abs(float(np.linalg.det(scan.matrix)))
    for patch in _patches(specimen, scan, half):
        square = _square(patch, metric)
        values = np.zeros_like(square)
        for weight, sigma in probe.parts:
            values += np.exp(square * (-0.5 / sigma**2)) * (weight / (2 * np.pi * sigma**2))
        values *= (electrons[patch.which] * area)[:, None, None]
        # A chunk is a band of the image with its margins, and only the band is counted through.
        top = int(patch.rows.min())
        place = (patch.rows - top)[:, :, None] * width + patch.cols[:, None, :]
        height = int(patch.rows.max()) + 1 - top
        band = np.bincount(place.ravel(), values.ravel(), height * width).reshape(height, width)
        top -= 2 * half
        inside = slice(max(top, 0), min(top + height, rows))
        image[inside] += band[inside.start - top : inside.stop - top, 2 * half : -2 * half]
    return image


class Measurement(NamedTuple):
    """The least error with which columns can be measured.

    Attributes:
        covariance: of x, y (nm) and the number of electrons, (column, 3, 3), from the noise of the pixels.
        row_weight: sum of the squared weights that rows have in x: times the variance of the jitter it is what jitter
            adds to the variance of x.
        row_shift: what the jitter of the scan adds to x.
    """

    covariance: np.ndarray
    row_weight: np.ndarray
    row_shift: np.ndarray


def measure(
    specimen: np.ndarray,
    electrons: np.ndarray,
    probe: Probe,
    scan: Scan,
    variance: np.ndarray,
) -> Measurement:
    """The Cramér-Rao bound of each column, its neighbours, the background and the probe being known.

    The Fisher information is the sum over pixels of J Jᵀ / variance, J being the gradient of the pixel's mean. For
    counts that is exact, for counts with read-out noise it holds once a pixel has a few electrons.

    Args:
        specimen: positions of the columns on the specimen.
        electrons: what each column sends to the detector.
        probe: how a column looks.
        scan: where the pixels are.
        variance: of each pixel, (y, x): its mean, and the square of the read-out noise.
    """
    half = scan.half(probe)
    xx, xy, yy = metric = _metric(scan.matrix)
    area = scan.pixel**2 / abs(float(np.linalg.det(scan.matrix)))
    # Outside the frame nothing is measured.
    weight = np.pad(
        np.divide(1.0, variance, where=variance > 0, out=np.zeros_like(variance)), 2 * half
    )
    _, jitter = scan.shifts
    moved = np.pad(jitter, 2 * half)
    count = len(specimen)
    information, spread, shift = np.zeros((count, 3, 3)), np.ones(count), np.zeros(count)
    for patch in _patches(specimen, scan, half):
        square = _square(patch, metric)
        bells = [
            np.exp(square * (-0.5 / sigma**2)) * (part * area / (2 * np.pi * sigma**2))
            for part, sigma in probe.parts
        ]
        fall = sum(bell / sigma**2 for bell, (_, sigma) in zip(bells, probe.parts, strict=True))
        fall = fall * electrons[patch.which][:, None, None]
        gradient = [
            fall * (xx * patch.dx + xy * patch.dy),
            fall * (xy * patch.dx + yy * patch.dy),
            sum(bells),
        ]
        weights = weight[patch.rows[:, :, None], patch.cols[:, None, :]]
        for i, first in enumerate(gradient):
            weighed = first * weights
            for j, second in enumerate(gradient):
                information[patch.which, i, j] = (weighed * second).sum((1, 2))
        of_rows = (gradient[0] ** 2 * weights).sum(2)
        of_rows /= of_rows.sum(1, keepdims=True)
        spread[patch.which] = (of_rows**2).sum(1)
        shift[patch.which] = (of_rows * moved[patch.rows]).sum(1)
    return Measurement(np.linalg.inv(information), spread, shift)
