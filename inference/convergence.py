"""Effective sample size and nested R-hat, fast enough to ask after every block of draws.

The same quantities as in ArviZ, for arrays (draw, chain, dim), all dimensions at once.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Rank-normalization, folding, and localization (2021);
Margossian et al., Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short chains
(2024).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

__all__ = ["Convergence", "bulk_ess"]


class Convergence:
    """What draws are worth, each figure worked out when it is asked for: sorting them is most of the work.

    Of an odd number of draws the middle one counts for nothing, as where chains are split.

    Args:
        draws: (draw, chain, dim).
        groups: that chains are dealt out to in turn, for nested R-hat.
    """

    def __init__(self, draws: np.ndarray, groups: int = 8) -> None:
        self.groups = groups
        half = len(draws) // 2
        even = draws if len(draws) == 2 * half else np.concatenate([draws[:half], draws[-half:]])
        self.draws = even[:0] if half < 2 else even

    @cached_property
    def _order(self) -> np.ndarray:
        """What sorts the draws of every dimension, (dim, draw and chain)."""
        return self._flat.argsort(1)

    @cached_property
    def _flat(self) -> np.ndarray:
        return np.ascontiguousarray(self.draws.reshape(-1, self.draws.shape[2]).T)

    @cached_property
    def _scores(self) -> np.ndarray:
        """Normal scores of all ranks."""
        n = self._flat.shape[1]
        # Not SciPy's: to import it takes a fifth of a second.
        ranks = torch.arange(n, dtype=torch.float64)
        return np.asarray(torch.special.ndtri((ranks + 0.625) / (n + 0.25)).numpy())

    @cached_property
    def _ranked(self) -> np.ndarray:
        """Normal scores of the draws, (draw, chain, dim)."""
        found = np.empty_like(self._flat)
        for scores, order in zip(found, self._order, strict=True):
            scores[order] = self._scores
        return found.T.reshape(self.draws.shape)

    @cached_property
    def _folded(self) -> np.ndarray:
        """Normal scores of the distances from the median: two sorted halves, merged."""
        found = np.empty_like(self._flat)
        half = self._flat.shape[1] // 2
        for scores, flat, order in zip(found, self._flat, self._order, strict=True):
            values = flat[order]
            middle = 0.5 * (values[half - 1] + values[half])
            below, above = middle - values[half - 1 :: -1], values[half:] - middle
            places = np.arange(half)
            scores[order[half - 1 :: -1]] = self._scores[places + np.searchsorted(above, below)]
            after = places + np.searchsorted(below, above, side="right")
            scores[order[half:]] = self._scores[after]
        return found.T.reshape(self.draws.shape)

    @cached_property
    def bulk(self) -> np.ndarray:
        """Bulk effective sample size of every dimension: rank-normalised, of split chains."""
        return _ess(self._ranked) if len(self.draws) else self._unknown

    @cached_property
    def mean(self) -> np.ndarray:
        """Effective sample size of every dimension's mean, which heavy tails make smaller than that of its bulk."""
        return _ess(self.draws) if len(self.draws) else self._unknown

    @cached_property
    def r_hat(self) -> np.ndarray:
        """Nested R-hat of every dimension, of its place and of its spread."""
        if not len(self.draws):
            return self._unknown
        return np.maximum(*(_nested(x, self.groups) for x in (self._ranked, self._folded)))

    @property
    def _unknown(self) -> np.ndarray:
        return np.full(self.draws.shape[2], np.nan)


def bulk_ess(draws: np.ndarray) -> np.ndarray:
    """Bulk effective sample size of every dimension of draws (draw, chain, dim)."""
    return Convergence(draws).bulk


def _ess(draws: np.ndarray) -> np.ndarray:
    """Geyer's initial monotone sequence over halves of chains, for every dimension."""
    draws = np.concatenate(np.split(draws, 2), axis=1)
    n, chains, _ = draws.shape
    means = draws.mean(0)
    centred = draws - means
    length = 1 << (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, length, axis=0)) ** 2
    covariance = np.fft.irfft(power.mean(1), length, axis=0)[:n] / n
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n
    if chains > 1:
        total = total + means.var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance) / total
        rho[0] = 1.0
        even = n - n % 2
        pairs = rho[:even:2] + rho[1:even:2]
        # The last pair is left out, as it is where every pair is positive.
        positive = np.cumprod(pairs > 0, axis=0).astype(bool)
        pairs = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=0)
        tau = np.maximum(-1 + 2 * pairs.sum(0), 1 / np.log10(n * chains))
        return np.asarray(n * chains / tau)


def _nested(draws: np.ndarray, groups: int) -> np.ndarray:
    n, chains, dim = draws.shape
    each = chains // groups
    # (draw, chain of its group, group, dim)
    dealt = draws[:, : each * groups].reshape(n, each, groups, dim)
    means = dealt.mean(0)
    between = means.mean(0).var(0, ddof=1)
    inside = dealt.var(0, ddof=1).mean((0, 1))
    if each > 1:
        inside = inside + means.var(0, ddof=1).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(1 + between / inside))
