"""Gibbs sweeps of a Dirichlet-process mixture of rings, from a variational posterior on.

Every sweep draws the assignments given the clusters, a few of the odd ones again with the clusters' parameters
integrated out, exchanges labels, and then draws sticks, precisions, centres, concentration and scatter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .dirichlet_process import (
    Mixture,
    Normals,
    Rings,
    Settings,
    Sums,
    likelihoods,
    normals_of,
    rings,
    scatter_given,
    sticks_of,
)
from .rings import quadratics

__all__ = ["Sweeps", "swept", "weights_of"]

LATENTS = ("alpha", "stick", "scatter", "root", "cross", "middle")
# Vectors in each sweep whose cluster is drawn with its parameters integrated out.
MOVED = 3


class Sweeps(NamedTuple):
    """Draws of the story's latents, and how many clusters had vectors in each."""

    latents: dict[str, np.ndarray]
    occupied: np.ndarray


def swept(
    values: np.ndarray,
    ring: np.ndarray,
    chosen: Settings,
    start: Mixture,
    *,
    draws: int,
    warm: int,
    thin: int,
    seed: int,
) -> Sweeps:
    """Gibbs draws of everything, from a variational posterior on.

    Args:
        values: vectors.
        ring: orders.
        chosen: what the prior says.
        start: where to begin.
        draws: how many.
        warm: sweeps before the first.
        thin: sweeps for each draw.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    data = rings(values, ring)
    flat = start.shares.reshape(len(values), -1)
    alpha, scatter = start.alpha, start.scatter
    # Which cluster of the start each label stands for.
    names = np.arange(chosen.clusters)
    odd = np.full(len(values), 1 / len(values))
    kept: list[dict[str, np.ndarray]] = []
    occupied = []
    weights: np.ndarray | None = None
    for sweep in range(warm + draws * thin):
        cluster, order = np.divmod(_drawn(flat, rng), len(ring))
        if weights is not None:
            where = rng.choice(len(values), min(MOVED, len(values)), replace=False, p=odd)
            _reassign(data, cluster, order, where, weights, scatter, chosen, rng)
            names = _renamed(cluster, names, weights, rng)
        state = _given_labels(data, cluster, order, alpha, scatter, chosen, rng)
        alpha, scatter = float(state["alpha"]), state["scatter"]
        weights = weights_of(state["stick"])
        logs = _joint(data, state, weights)
        highest = logs.max(1)
        flat = np.exp(logs - highest[:, None])
        if sweep == 0:
            odd = 1 / (1.0 + np.argsort(np.argsort(highest)))
            odd /= odd.sum()
        if sweep >= warm and (sweep - warm) % thin == 0:
            kept.append(_in_order(state, weights, np.argsort(names)))
            occupied.append(len(np.unique(cluster)))
    latents = {name: np.stack([state[name] for state in kept]) for name in LATENTS}
    return Sweeps(latents, np.array(occupied))


def _reassign(
    data: Rings,
    cluster: np.ndarray,
    order: np.ndarray,
    where: np.ndarray,
    weights: np.ndarray,
    scatter: np.ndarray,
    chosen: Settings,
    rng: np.random.Generator,
) -> None:
    """Draw the clusters of a few vectors anew with centres and precisions integrated out; so new clusters begin."""
    sums = _counted(data, cluster, order, chosen.clusters)
    log_weights = np.log(np.maximum(weights, 1e-300))[:, None]
    for one in where:
        own = data.values[one, order[one]]
        k = cluster[one]
        sums.number[k] -= 1
        sums.first[k] -= own
        sums.second[k] -= np.outer(own, own)
        seen = data.values[one]
        with_it = Sums(
            np.repeat(sums.number[:, None] + 1, len(seen), 1),
            sums.first[:, None] + seen,
            sums.second[:, None] + seen[:, :, None] * seen[:, None, :],
        )
        before = likelihoods(sums, scatter, chosen)[:, None]
        logs = (log_weights + likelihoods(with_it, scatter, chosen) - before).ravel()
        shares = np.exp(logs - logs.max())
        k, order[one] = divmod(int(rng.choice(len(shares), p=shares / shares.sum())), len(seen))
        own = data.values[one, order[one]]
        cluster[one] = k
        sums.number[k] += 1
        sums.first[k] += own
        sums.second[k] += np.outer(own, own)


def _counted(data: Rings, cluster: np.ndarray, order: np.ndarray, count: int) -> Sums:
    """Moments of the clusters."""
    turned = data.values[np.arange(len(cluster)), order]
    member = np.zeros((len(cluster), count))
    member[np.arange(len(cluster)), cluster] = 1
    second = np.stack([turned[cluster == k].T @ turned[cluster == k] for k in range(count)])
    return Sums(member.sum(0), member.T @ turned, second)


def _renamed(
    cluster: np.ndarray, names: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Exchange labels of pairs of clusters, since sticks prefer large clusters first (Metropolis steps).

    `cluster` is changed in place.
    """
    count = len(weights)
    number = np.bincount(cluster, minlength=count)
    label = np.arange(count)
    logs = np.log(np.maximum(weights, 1e-300))
    for _ in range(count):
        k, other = rng.choice(count, 2, replace=False)
        gain = (logs[other] - logs[k]) * (number[k] - number[other])
        if np.log(rng.random()) < gain:
            number[[k, other]] = number[[other, k]]
            label[[k, other]] = label[[other, k]]
    # label[k] is the old label of what is now k.
    cluster[:] = np.argsort(label)[cluster]
    return names[label]


def _in_order(
    state: dict[str, np.ndarray], weights: np.ndarray, order: np.ndarray
) -> dict[str, np.ndarray]:
    """The same clusters under the labels that they had at the start."""
    shares = weights[order]
    left = np.maximum(1 - np.append(0.0, shares[:-2].cumsum()), 1e-300)
    stick = np.clip(shares[:-1] / left, 1e-12, 1 - 1e-12)
    turned = {name: state[name][order] for name in ("root", "cross", "middle")}
    return {**state, **turned, "stick": stick}


def _drawn(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column of each row, drawn by its weight."""
    ends = shares.cumsum(1)
    at = rng.random(len(shares)) * ends[:, -1]
    found: np.ndarray = np.minimum((ends < at[:, None]).sum(1), shares.shape[1] - 1)
    return found


def _given_labels(
    data: Rings,
    cluster: np.ndarray,
    order: np.ndarray,
    alpha: float,
    scatter: np.ndarray,
    chosen: Settings,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Sticks, precisions, centres, concentration and scatter, given where every vector belongs."""
    count, size = chosen.clusters, data.values.shape[2]
    sums = _counted(data, cluster, order, count)
    normals = normals_of(sums, scatter, chosen)
    stick = rng.beta(*sticks_of(sums.number, alpha))
    stick = np.clip(stick, 1e-12, 1 - 1e-12)
    factor = _wishart_factor(normals, rng)
    normal = rng.standard_normal((count, size)) / np.sqrt(normals.kappa)[:, None]
    centre = normals.centre + np.linalg.solve(np.swapaxes(factor, 1, 2), normal[..., None])[..., 0]
    if isinstance(chosen.scatter, tuple):
        shape, rate = scatter_given((factor**2).sum(2), chosen)
        scatter = rng.gamma(shape) / rate
    if isinstance(chosen.alpha, tuple):
        left = np.log1p(-stick).sum()
        alpha = rng.gamma(chosen.alpha[0] + count - 1) / (chosen.alpha[1] - left)
    lower = factor * np.sqrt(scatter[chosen.groups])[:, None]
    i, j = np.tril_indices(size, -1)
    seen = (np.swapaxes(factor, 1, 2) @ centre[..., None])[..., 0]
    return {
        "alpha": np.asarray(alpha),
        "stick": stick,
        "scatter": np.asarray(scatter),
        "root": np.diagonal(lower, axis1=1, axis2=2) ** 2,
        "cross": lower[:, i, j],
        "middle": np.sqrt(chosen.kappa) * seen,
        "factor": factor,
        "centre": centre,
    }


def _wishart_factor(normals: Normals, rng: np.random.Generator) -> np.ndarray:
    """Lower factors of precisions from Wishart(ν, matrix⁻¹)."""
    count, size = normals.centre.shape
    inverse = np.linalg.inv(normals.matrix)
    factor = np.linalg.cholesky(0.5 * (inverse + np.swapaxes(inverse, 1, 2)))
    lower = np.tril(rng.standard_normal((count, size, size)), -1)
    square = 2 * rng.gamma(0.5 * (normals.nu[:, None] - np.arange(size)))
    lower[:, np.arange(size), np.arange(size)] = np.sqrt(square)
    found: np.ndarray = factor @ lower
    return found


def weights_of(stick: np.ndarray) -> np.ndarray:
    """Shares of the clusters from the sticks, (…, cluster)."""
    rest = np.cumprod(1 - stick, -1)
    one = np.ones((*stick.shape[:-1], 1))
    found: np.ndarray = np.concatenate([stick, one], -1) * np.concatenate([one, rest], -1)
    return found


def _joint(data: Rings, state: dict[str, np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Log probability of every cluster and order with every vector, (vector, cluster and order)."""
    rows = quadratics(
        torch.as_tensor(state["centre"]),
        torch.as_tensor(state["factor"]),
        torch.as_tensor(data.ring),
    ).numpy()
    flat = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
    log_weights = np.log(np.maximum(weights, 1e-300))
    found: np.ndarray = data.products @ flat + np.repeat(log_weights, rows.shape[2])
    return found
