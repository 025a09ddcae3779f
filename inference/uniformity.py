"""Are ranks uniform? The tests behind a calibration's certificate.

References: Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity (2022, arXiv:2103.10522).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.stats

__all__ = ["DRAWS", "LEVELS", "TESTS", "Coverage", "Quantity", "Uniform", "band"]

# With 199 draws a rank has 200 values, of which 50, 80, 90 and 95 % are whole numbers.
DRAWS = 199
LEVELS = (0.5, 0.8, 0.9, 0.95)
# What every quantity is put to: the distribution of its ranks, their histogram, and each interval's coverage.
TESTS = 2 + len(LEVELS)
# A p-value at the level itself must not fail by the last digit of a sum.
ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Coverage:
    """How often central intervals held the truth.

    Attributes:
        level: how often they should.
        found: share that did.
        low: least share that chance allows.
        high: largest share that chance allows.
    """

    level: float
    found: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether chance explains the share found."""
        return self.low <= self.found <= self.high


@dataclass(frozen=True)
class Quantity:
    """The ranks of one parameter, or of the log likelihood, and whether they are uniform.

    Attributes:
        name: the parameter, with an index where it is an element of a vector.
        ranks: of the truth among the draws, 0 to their number, one a fit.
        ecdf_p: p-value of the ranks' empirical distribution, simultaneous over all ranks.
        chi2_p: p-value of the ranks' histogram.
        coverage: of central intervals.
        passed: whether all of these agree with uniform ranks.
    """

    name: str
    ranks: tuple[int, ...]
    ecdf_p: float
    chi2_p: float
    coverage: tuple[Coverage, ...]
    passed: bool


def band(n: int, draws: int, pointwise: float) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest share of n uniform ranks below 1 to `draws`, whose counts have no smaller tail than this."""
    tails = _tails(n, draws) * ROUNDING >= pointwise
    return tails.argmax(0) / n, (n - tails[::-1].argmax(0)) / n


def _tails(n: int, draws: int) -> np.ndarray:
    """Both tails of every count (n + 1) of ranks below 1 to `draws`, under uniformity."""
    below = np.arange(1, draws + 1) / (draws + 1)
    counts = np.arange(n + 1)[:, None]
    lower = scipy.stats.binom.cdf(counts, n, below)
    upper = scipy.stats.binom.sf(counts - 1, n, below)
    return np.minimum(1.0, 2 * np.minimum(lower, upper))


class Uniform:
    """Tests of n ranks against the uniform distribution over 0 to `DRAWS`.

    Attributes:
        n: number of ranks.
        level: significance that a single test is held against.
        pointwise: significance of a single count at which the band of all counts has the level.
    """

    def __init__(self, n: int, level: float, seed: int) -> None:
        self.n, self.level = n, level
        self.tails = _tails(n, DRAWS)
        self.null = self._simulated(np.random.default_rng(seed))
        self.pointwise = float(self.null[max(0, math.ceil(level * (1 + len(self.null))) - 2)])

    def _simulated(self, rng: np.random.Generator) -> np.ndarray:
        """The smallest pointwise tail in simulations of uniform ranks, enough to resolve the level."""
        rounds = int(min(400_000, max(10_000, 10 / self.level)))
        share = np.full(DRAWS + 1, 1 / (DRAWS + 1))
        parts = [
            self._smallest(rng.multinomial(self.n, share, size=min(5000, rounds - done)))
            for done in range(0, rounds, 5000)
        ]
        return np.sort(np.concatenate(parts))

    def _smallest(self, histograms: np.ndarray) -> np.ndarray:
        counts = np.cumsum(histograms, axis=-1)[..., :-1]
        return np.asarray(self.tails[counts, np.arange(DRAWS)].min(-1))

    def judge(self, name: str, ranks: np.ndarray) -> Quantity:
        """One quantity's ranks with every test."""
        histogram = np.bincount(ranks, minlength=DRAWS + 1)
        smaller = np.searchsorted(self.null, self._smallest(histogram) * ROUNDING, "right")
        ecdf_p = float((1 + smaller) / (1 + len(self.null)))
        chi2_p = self._chi2(histogram)
        coverage = tuple(self._coverage(ranks, level) for level in LEVELS)
        passed = (
            ecdf_p >= self.level and chi2_p >= self.level and all(part.passed for part in coverage)
        )
        return Quantity(name, tuple(map(int, ranks)), ecdf_p, chi2_p, coverage, passed)

    def _chi2(self, histogram: np.ndarray) -> float:
        """Over as many equal bins as leave ten ranks in each, at most 20."""
        most = min(20, max(2, self.n // 10))
        bins = max(b for b in range(2, most + 1) if (DRAWS + 1) % b == 0)
        return float(scipy.stats.chisquare(histogram.reshape(bins, -1).sum(1)).pvalue)

    def _coverage(self, ranks: np.ndarray, level: float) -> Coverage:
        outside = round((DRAWS + 1) * (1 - level) / 2)
        held = (ranks >= outside) & (ranks <= DRAWS - outside)
        chance = scipy.stats.binom(self.n, level)
        low, high = chance.ppf(self.level / 2), chance.isf(self.level / 2)
        return Coverage(level, float(held.mean()), float(low / self.n), float(high / self.n))
