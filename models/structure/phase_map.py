"""From components to phases: which phase a place is of, with its probability.

Phases are places in the space of components about which many windows lie. A window across a boundary lies between two
of them, as far from each as its area says. So a place is of the phase that its components are nearest to, which puts
the boundary where a window is half one, half the other; and the error of the components makes the probability.
"""

from __future__ import annotations

import numpy as np

__all__ = ["blocks", "find_phases", "nearest_phase"]

RESTARTS, ROUNDS = 8, 50
# Members of a phase that are nearest to its middle; the others may lie across a boundary.
PURE = 0.6
# Draws where more than two phases have no closed probability, and units worked on at a time.
DRAWS, TOGETHER = 200, 4096


def find_phases(scores: np.ndarray, phases: int, seed: int) -> np.ndarray:
    """Middles of phases (phase, component), that of most windows first.

    Args:
        scores: components of windows, (window, component).
        phases: how many.
        seed: all depends on it alone.
    """
    rng = np.random.default_rng((seed, 2))
    found = [_clustered(scores, _spread_out(scores, phases, rng)) for _ in range(RESTARTS)]
    middles, member, _ = min(found, key=lambda f: f[2])
    pure = np.stack([_pure(scores[member == k], middles[k]) for k in range(phases)])
    return np.asarray(pure[np.argsort(-np.bincount(member, minlength=phases), kind="stable")])


def _spread_out(scores: np.ndarray, phases: int, rng: np.random.Generator) -> np.ndarray:
    """Windows far from each other (Arthur and Vassilvitskii, SODA 2007, 1027)."""
    chosen = [scores[rng.integers(len(scores))]]
    for _ in range(phases - 1):
        square = np.min([((scores - c) ** 2).sum(1) for c in chosen], axis=0)
        total = square.sum()
        share = square / total if total > 0 else None
        chosen.append(scores[rng.choice(len(scores), p=share)])
    return np.stack(chosen)


def _clustered(scores: np.ndarray, middles: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Middles, the phase of each window, and the sum of squares about them (Lloyd's rounds)."""
    for _ in range(ROUNDS):
        square = ((scores[:, None] - middles) ** 2).sum(2)
        member = square.argmin(1)
        last = middles
        middles = np.stack(
            [scores[member == k].mean(0) if (member == k).any() else m for k, m in enumerate(last)]
        )
        if np.array_equal(middles, last):
            break
    return middles, member, float(square.min(1).sum())


def _pure(members: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Median of the members nearest to the middle."""
    if not len(members):
        return middle
    # About the median, since the mean is drawn towards the boundary.
    middle = np.median(members, 0)
    distance = ((members - middle) ** 2).sum(1)
    return np.asarray(np.median(members[distance <= np.quantile(distance, PURE)], 0))


def nearest_phase(
    mean: np.ndarray, covariance: np.ndarray, middles: np.ndarray, seed: int
) -> np.ndarray:
    """Probability that each place is nearest to each phase, (place, phase).

    Args:
        mean: components, (place, component).
        covariance: their posterior covariance, (place, component, component).
        middles: of the phases.
        seed: of draws where there are more than two phases.
    """
    from scipy.special import ndtr

    if len(middles) == 1:
        return np.ones((len(mean), 1))
    if len(middles) == 2:
        across = middles[1] - middles[0]
        ahead = (mean - middles.mean(0)) @ across
        variance = np.einsum("i,nij,j->n", across, covariance, across)
        with np.errstate(divide="ignore", invalid="ignore"):
            second = np.where(variance > 0, ndtr(ahead / np.sqrt(variance)), ahead > 0)
        return np.stack([1 - second, second], 1)
    rng = np.random.default_rng((seed, 3))
    random = rng.standard_normal((DRAWS, 1, mean.shape[1]))
    found = np.empty((len(mean), len(middles)))
    for start in range(0, len(mean), TOGETHER):
        part = slice(start, start + TOGETHER)
        own, vectors = np.linalg.eigh(covariance[part])
        root = vectors * np.sqrt(np.maximum(own, 0.0))[:, None]
        drawn = mean[part] + np.einsum("nij,dxj->dni", root, random)
        near = ((drawn[:, :, None] - middles) ** 2).sum(3).argmin(2)
        found[part] = (near[:, :, None] == np.arange(len(middles))).mean(0)
    return found


def blocks(position: np.ndarray, length: float) -> np.ndarray:
    """Number of the square region that each place lies in."""
    cell = np.floor((position - position.min(0)) / length).astype(np.int64)
    return np.asarray(np.unique(cell, axis=0, return_inverse=True)[1].reshape(-1))
