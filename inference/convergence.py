"""Effective sample size and nested R-hat, fast enough to ask after every block of draws.

The same quantities as in ArviZ, for arrays (draw, chain, dim), all dimensions at once.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Rank-normalization, folding, and localization (2021);
Margossian et al., Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many short chains
(2024).
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["bulk_ess", "mean_ess", "nested_r_hat"]


def bulk_ess(draws: np.ndarray) -> np.ndarray:
    """Bulk effective sample size of every dimension: rank-normalised, of split chains."""
    if len(draws) < 4:
        return np.full(draws.shape[2], np.nan)
    return _ess(_normal_scores(_split(draws)))


def mean_ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of every dimension's mean, which heavy tails make smaller than that of its bulk."""
    if len(draws) < 4:
        return np.full(draws.shape[2], np.nan)
    return _ess(_split(draws))


def _split(draws: np.ndarray) -> np.ndarray:
    half = len(draws) // 2
    return np.concatenate([draws[:half], draws[-half:]], axis=1)


def _normal_scores(draws: np.ndarray) -> np.ndarray:
    flat = draws.reshape(-1, draws.shape[2])
    order = flat.argsort(0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(flat))[:, None], 0)
    # Not SciPy's: to import it takes a fifth of a second.
    scores = torch.special.ndtri(torch.from_numpy((ranks + 0.625) / (len(flat) + 0.25)))
    return np.asarray(scores.numpy().reshape(draws.shape))


def _ess(draws: np.ndarray) -> np.ndarray:
    """Geyer's initial monotone sequence over chains, for every dimension."""
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


def nested_r_hat(draws: np.ndarray, groups: int = 8) -> np.ndarray:
    """Nested R-hat of every dimension, of its place and of its spread; chains are dealt out to groups in turn."""
    folded = np.abs(draws - np.median(draws, axis=(0, 1)))
    return np.maximum(*(_nested(_normal_scores(values), groups) for values in (draws, folded)))


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
