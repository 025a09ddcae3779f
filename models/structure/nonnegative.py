"""Parts and shares: vectors that are mixtures of a few parts, none negative, the shares adding up to one.

Shares are on a grid of the simplex, `STEPS` steps along each edge, so that every unit's share can be summed out. For a
number of parts, expectation and maximisation find the mode of parts and noise; its curvature is that of Louis (Journal
of the Royal Statistical Society B 44 (1982) 226); draws of the normal distribution there are weighed by the exact
density, which makes the evidence and tells its error.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import lgamma
from typing import Any, NamedTuple

import numpy as np
import torch

from .phase_map import find_phases

__all__ = ["Parts", "grid", "learn_parts", "shares"]

STEPS = 6
MOST_ROUNDS, CLOSE = 150, 1e-8
PROPOSALS = 200
# Numbers worked on at a time.
CHUNK = 2**22
LOG_2PI = float(np.log(2 * np.pi))


def grid(parts: int, steps: int = STEPS) -> np.ndarray:
    """Shares of parts that add up to one, (point, part)."""
    every = [p for p in product(range(steps + 1), repeat=parts) if sum(p) == steps]
    return np.array(every[::-1], float) / steps


def prior_of_shares(points: np.ndarray, count: int, purity: float) -> np.ndarray:
    """Logarithm of the probability of each point for a number of parts; impossible where others have a share.

    Proportional to Π (share + half a step)^(purity - 1), the Dirichlet distribution on a grid.
    """
    own = points[:, :count]
    allowed = own.sum(1) > 1 - 1e-9
    log = (purity - 1) * np.log(own + 0.5 / STEPS).sum(1)
    log = np.where(allowed, log, -np.inf)
    return np.asarray(log - np.logaddexp.reduce(log))


class Parts(NamedTuple):
    """Weighed draws for one number of parts."""

    parts: np.ndarray  # (draw, part, feature)
    noise: np.ndarray
    weight: np.ndarray
    log_evidence: float
    error: float
    effective: float


def _batches(values: np.ndarray, points: int) -> Iterator[np.ndarray]:
    size = max(1, CHUNK // (points * 8))
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _square(values: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Squared distance of each unit from each point's mixture."""
    cross = values @ middles.T
    return np.maximum((values**2).sum(1)[:, None] - 2 * cross + (middles**2).sum(1), 0.0)


def shares(
    values: np.ndarray, points: np.ndarray, log_prior: np.ndarray, parts: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each point for each unit, and the logarithm of each unit's density."""
    log = log_prior - 0.5 * _square(values, points @ parts) / noise**2
    total = np.logaddexp.reduce(log, axis=1)
    constant = values.shape[1] * (np.log(noise) + 0.5 * LOG_2PI)
    return np.exp(log - total[:, None]), total - constant


def _log_prior(part: Any, noise: Any, parts: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Of many parts and noises, the latter by their logarithm; none where a part is negative."""
    flat = parts.reshape(len(parts), -1)
    inside = (flat >= 0).all(1)
    own = part.log_prob(torch.as_tensor(np.maximum(flat, 0.0))).sum(1).numpy()
    of_noise = noise.log_prob(torch.as_tensor(scale)).numpy() + np.log(scale)
    return np.where(inside, own + of_noise, -np.inf)


def learn_parts(
    values: np.ndarray,
    root: np.ndarray,
    count: int,
    purity: float,
    part: Any,
    noise: Any,
    seed: int,
) -> Parts:
    """The posterior of parts and noise for a number of parts.

    Args:
        values: units, (unit, feature).
        root: of the noise's covariance where the noise is one, (feature, feature).
        count: number of parts.
        purity: of the Dirichlet distribution of shares.
        part: prior of every entry of a part, half-normal.
        noise: prior of the noise.
        seed: the draws depend on nothing else.
    """
    points = grid(count)
    log_prior = prior_of_shares(points, count, purity)
    # All is worked out where the noise is alike in all directions.
    white, log_root = values @ np.linalg.inv(root), float(np.linalg.slogdet(root)[1])
    start = find_phases(values, count, seed) @ np.linalg.inv(root)
    mode, scale = _mode(white, points, log_prior, start)
    mode = mode[_by_size(white, points, log_prior, mode, scale)]
    curvature = _curvature(white, points, log_prior, mode, scale, root / float(part.scale))
    center = np.append(mode.ravel(), np.log(scale))
    rng = np.random.default_rng((seed, 4, count))
    at, log_proposal = _drawn(center, curvature, rng)
    whitened = at[:, :-1].reshape(len(at), count, -1)
    noises, parts = np.exp(at[:, -1]), whitened @ root
    log_target = _log_prior(part, noise, parts, noises) + (count - len(values)) * log_root
    # Any order of the parts is the same.
    log_target += lgamma(count + 1)
    for i in np.flatnonzero(np.isfinite(log_target)):
        for some in _batches(white, len(points)):
            log_target[i] += shares(some, points, log_prior, whitened[i], noises[i])[1].sum()
    log_weight = log_target - log_proposal
    top = log_weight.max()
    weight = np.exp(log_weight - top)
    total = weight.sum()
    effective = float(total**2 / (weight**2).sum())
    error = float(np.sqrt(max(1 / effective - 1 / len(weight), 0.0)))
    evidence = float(top + np.log(total / len(weight)))
    return Parts(parts, noises, weight / total, evidence, error, effective)


def _mode(
    values: np.ndarray, points: np.ndarray, log_prior: np.ndarray, parts: np.ndarray
) -> tuple[np.ndarray, float]:
    """Parts and noise of the largest likelihood that is reached from given parts."""
    count = points.shape[1]
    scale, last = float((values - values.mean(0)).std()) + 1e-12, -np.inf
    for _ in range(MOST_ROUNDS):
        inner, cross = np.zeros((count, count)), np.zeros((count, values.shape[1]))
        square = total = 0.0
        middles = points @ parts
        for some in _batches(values, len(points)):
            probability, density = shares(some, points, log_prior, parts, scale)
            mean = probability @ points
            inner += points.T @ (probability.sum(0)[:, None] * points)
            cross += mean.T @ some
            square += float((probability * _square(some, middles)).sum())
            total += float(density.sum())
        # A part that no unit has stays where it is.
        parts = np.linalg.solve(inner + 1e-6 * np.eye(count), cross + 1e-6 * parts)
        scale = float(np.sqrt(square / values.size + 1e-24))
        if abs(total - last) < CLOSE * abs(total):
            break
        last = total
    return parts, scale


def _by_size(
    values: np.ndarray, points: np.ndarray, log_prior: np.ndarray, parts: np.ndarray, scale: float
) -> np.ndarray:
    """Order of the parts, those that have most of all units first."""
    total = np.zeros(len(parts))
    for some in _batches(values, len(points)):
        total += shares(some, points, log_prior, parts, scale)[0].sum(0) @ points
    found: np.ndarray = np.argsort(-total, kind="stable")
    return found


def _curvature(
    values: np.ndarray,
    points: np.ndarray,
    log_prior: np.ndarray,
    parts: np.ndarray,
    scale: float,
    prior_root: np.ndarray,
) -> np.ndarray:
    """Observed information of parts and log-noise: that of known shares, less what not knowing them costs."""
    count, features = parts.shape
    size = count * features + 1
    known, lost = np.zeros((size, size)), np.zeros((size, size))
    middles = points @ parts
    for some in _batches(values, len(points) * features):
        probability, _ = shares(some, points, log_prior, parts, scale)
        off = some[:, None] - middles
        square = (off**2).sum(2)
        score = np.empty((*probability.shape, size))
        score[..., :-1] = (points[None, :, :, None] * off[:, :, None]).reshape(
            *probability.shape, -1
        ) / scale**2
        score[..., -1] = square / scale**2 - features
        mean = np.einsum("ng,ngs->ns", probability, score)
        flat = (score * np.sqrt(probability)[..., None]).reshape(-1, size)
        lost += flat.T @ flat - mean.T @ mean
        inner = points.T @ (probability.sum(0)[:, None] * points) / scale**2
        known[:-1, :-1] += np.kron(inner, np.eye(features))
        known[:-1, -1] += 2 * mean[:, :-1].sum(0)
        known[-1, -1] += 2 * float((probability * square).sum()) / scale**2
    known[-1, :-1] = known[:-1, -1]
    of_prior = np.zeros_like(known)
    of_prior[:-1, :-1] = np.kron(np.eye(count), prior_root @ prior_root.T)
    of_prior[-1, -1] = 1.0
    information = (known - lost + (known - lost).T) / 2
    own, vectors = np.linalg.eigh(information)
    # Never flatter than the prior.
    return np.asarray((vectors * np.maximum(own, 0.0)) @ vectors.T + of_prior)


def _drawn(
    center: np.ndarray, curvature: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of a normal distribution about the mode, and the logarithm of their density."""
    factor = np.linalg.cholesky(curvature)
    normal = rng.standard_normal((PROPOSALS, len(center)))
    at = center + np.linalg.solve(factor.T, normal.T).T
    log_density = -0.5 * (normal**2).sum(1) - 0.5 * len(center) * LOG_2PI
    return at, log_density + np.log(np.diag(factor)).sum()
