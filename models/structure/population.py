"""What is expected of the peaks of an image, learnt from the image: how many, how bright, how far apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .peaks import Peaks

__all__ = ["Population", "distances"]

# Share of the broad part of the distribution of intensities, and the range that it spans about the brightest.
BROAD, RANGE = 0.05, (0.02, 10.0)
# Log density beyond that range.
NEVER = -1e4
# Least relative width of the kernels that the distribution is made of.
KERNEL = 0.05
# Relative width of the classes of brightness in which peaks and pits of the residual are compared.
CLASS = 0.2
# Of distances: relative width of the kernels, the range in widths of a peak, and places that they are compared with.
SPREAD, NEAREST, FARTHEST, PLACES = 0.05, 0.3, 30.0, 40_000
# Peaks that the image itself must outweigh before what it shows of distances counts.
UNLEARNT = 20.0


def distances(peaks: Peaks, places: np.ndarray | None = None) -> Tensor:
    """From each peak to the nearest other, or from places to the nearest peak; infinite where there is none."""
    from scipy.spatial import cKDTree

    points = torch.stack([peaks.x, peaks.y], 1).numpy()
    own = places is None
    asked = points if places is None else places
    if len(points) < 1 + own or not len(asked):
        return torch.full((len(asked),), math.inf, dtype=torch.float64)
    return torch.from_numpy(cKDTree(points).query(asked, [1 + own])[0][:, 0])


@dataclass(frozen=True)
class Population:
    """How many peaks there are per pixel, how bright they are, and how near each other.

    Attributes:
        density: peaks per pixel.
        grid: logarithms of intensities.
        log_p: log density of the logarithm of an intensity there.
        reach: logarithms of distances, evenly spaced.
        log_g: by how much rarer peaks are at such a distance from the nearest other than if they did not care.
    """

    density: float
    grid: np.ndarray
    log_p: np.ndarray
    reach: np.ndarray
    log_g: np.ndarray

    @classmethod
    def learn(
        cls, peaks: Peaks, covariance: Tensor, shape: tuple[int, ...], rounds: int = 8
    ) -> Population:
        """From peaks that each count with their probability, which follows from what is learnt.

        Args:
            peaks: all there are.
            covariance: of x, y and intensity of each.
            shape: of the image.
            rounds: of learning.
        """
        area = float(math.prod(shape))
        a = peaks.intensity.clamp(min=1e-300).numpy()
        z = (peaks.intensity / covariance[:, 2, 2].sqrt()).numpy()
        chance = (z > 4).astype(float) if (z > 4).sum() > 10 else np.ones(len(a))
        if not len(a):
            return cls(1 / area, *np.zeros((4, 2)))
        apart = distances(peaks)
        space = _Space.around(peaks, shape)
        found = cls(*cls._from(a, z, chance, area), *space.shunned(apart.numpy(), chance))
        for _ in range(rounds):
            odds = found.log_odds(peaks.intensity, covariance, apart).numpy()
            chance = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
            found = cls(*cls._from(a, z, chance, area), *space.shunned(apart.numpy(), chance))
        return found

    @staticmethod
    def _from(
        a: np.ndarray, z: np.ndarray, chance: np.ndarray, area: float
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Density of the peaks, and the distribution of their intensities."""
        from scipy.ndimage import gaussian_filter1d

        log_a = np.log(a)
        order = np.argsort(log_a)
        rank = np.cumsum(chance[order])
        top = log_a[order][min(len(a) - 1, int(np.searchsorted(rank, 0.9 * rank[-1])))]
        low, high = top + math.log(RANGE[0]), top + math.log(RANGE[1])
        grid = np.linspace(low, high, 512)
        h = grid[1] - grid[0]
        # Each peak as broad as it is known, in a few classes of breadth.
        breadth = np.maximum(KERNEL, 1 / np.maximum(z, 1.0))
        classes = np.digitize(breadth, (0.07, 0.12, 0.2, 0.35))
        place = np.clip(np.rint((log_a - low) / h).astype(int), 0, len(grid) - 1)
        total = np.zeros(len(grid))
        for c in np.unique(classes):
            these = classes == c
            counts = np.bincount(place[these], chance[these], len(grid))
            sigma = float(np.median(breadth[these])) / h
            total += gaussian_filter1d(counts, sigma, mode="constant")
        weight = max(float(chance.sum()), 1e-9)
        p = (1 - BROAD) * total / (weight * h) + BROAD / (high - low)
        return max(weight, 1.0) / area, grid, np.log(p)

    def with_more(self, peaks: np.ndarray, pits: np.ndarray, area: float) -> Population:
        """With those not yet found: noise has as many pits as peaks, and what there are more of peaks are columns.

        Args:
            peaks: intensities of the maxima of the residual.
            pits: depths of its minima, as intensities.
            area: pixels of the image.
        """
        from scipy.ndimage import gaussian_filter1d

        h = self.grid[1] - self.grid[0]
        if h <= 0:
            return self
        counts = []
        for found in (peaks, pits):
            inside = found[found > 0]
            place = np.rint((np.log(inside) - self.grid[0]) / h).astype(int)
            place = place[(place >= 0) & (place < len(self.grid))]
            sums = np.bincount(place, minlength=len(self.grid)).astype(float)
            counts.append(gaussian_filter1d(sums, CLASS / h, mode="constant"))
        # One standard error of the difference is not taken for columns.
        more = np.maximum(counts[0] - counts[1] - np.sqrt(counts[0] + counts[1]), 0) / (h * area)
        total = self.density * np.exp(self.log_p) + more
        density = float(self.density + more.sum() * h)
        return replace(self, density=density, log_p=np.log(total / density))

    def log_odds(self, intensity: Tensor, covariance: Tensor, apart: Tensor) -> Tensor:
        """Log odds for a peak against none.

        Args:
            intensity: of each peak.
            covariance: of x, y and intensity.
            apart: distance to the nearest other peak.
        """
        a = intensity.clamp(min=1e-300)
        sd = _at_place(covariance)
        place = covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1] ** 2
        # Where a place is unknown it is still within the reach of the peak's own window.
        log_a = a.log()
        p = torch.from_numpy(np.interp(log_a.numpy(), self.grid, self.log_p, NEVER, NEVER))
        volume = math.log(2 * math.pi) + 0.5 * place.clamp(min=1e-300).log()
        # An intensity below its own error has the range of the error to lie in, not that of its logarithm.
        known = 0.5 * math.log(2 * math.pi) + (sd / torch.maximum(a, sd)).log()
        g = np.interp(apart.log().numpy(), self.reach, self.log_g)
        density = math.log(self.density) + torch.from_numpy(g)
        return 0.5 * (a / sd) ** 2 + density + volume + p + known


@dataclass(frozen=True)
class _Space:
    """How far the places of an image are from the nearest peak.

    Attributes:
        reach: logarithms of distances, evenly spaced.
        share: of places at each.
    """

    reach: np.ndarray
    share: np.ndarray

    @classmethod
    def around(cls, peaks: Peaks, shape: tuple[int, ...]) -> _Space:
        """Of an image of this shape."""
        reach = np.linspace(math.log(NEAREST * peaks.width), math.log(FARTHEST * peaks.width), 256)
        every = max(1, math.isqrt(math.prod(shape) // PLACES))
        lines = [np.arange(every // 2, n, every, dtype=float) for n in shape]
        places = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)[:, ::-1]
        ones = np.ones(len(places))
        return cls(reach, _histogram(reach, distances(peaks, places).numpy(), ones) / len(places))

    def shunned(self, apart: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By how much rarer peaks are at a distance from the nearest other than there is space at it, as logarithms.

        By the formula of Georgii, Nguyen and Zessin this ratio is the intensity of a process of points that heed their
        nearest neighbour alone. Where it says that a place is bound to have a peak, as in an empty site of a lattice,
        it is not believed: a vacancy is seen, not filled in.
        """
        weight = float(chance.sum())
        counts = _histogram(self.reach, apart, chance)
        doubt = max(BROAD, UNLEARNT / (UNLEARNT + weight))
        expected = weight * self.share
        ratio = np.divide(counts, expected, out=np.ones_like(counts), where=expected > 0)
        return self.reach, np.log(doubt + (1 - doubt) * np.minimum(ratio, 1.0))


def _histogram(reach: np.ndarray, apart: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Distances counted on a grid of their logarithms, smoothed."""
    from scipy.ndimage import gaussian_filter1d

    step = reach[1] - reach[0]
    finite = np.maximum(np.where(np.isfinite(apart), apart, np.exp(reach[-1])), np.exp(reach[0]))
    place = np.clip(np.rint((np.log(finite) - reach[0]) / step).astype(int), 0, len(reach) - 1)
    counts = np.bincount(place, weight, len(reach)).astype(float)
    return np.asarray(gaussian_filter1d(counts, SPREAD / step, mode="nearest"))


def _at_place(covariance: Tensor) -> Tensor:
    """Standard deviation of each intensity, its peak's place given.

    The mean is linear in an intensity at a given place, and a peak that is gone has none: this is what tells by how
    much the image is less likely without it. Of a peak outside the frame the place is hardly known, and how bright it
    is depends on where it is; that it is there may be certain all the same.
    """
    place = covariance[:, :2, :2]
    scale = place.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
    unit = place * scale[:, :, None] * scale[:, None, :]
    unit = unit + 1e-9 * torch.eye(2, dtype=torch.float64)
    lean = (covariance[:, :2, 2] * scale)[:, :, None]
    known = (lean * torch.linalg.solve(unit, lean)).sum((1, 2))
    whole = covariance[:, 2, 2].clamp(min=1e-300)
    return torch.maximum(whole - known, 1e-6 * whole).sqrt()
