"""A Dirichlet-process mixture of rings: the variational posterior with the highest bound.

All conditional distributions are conjugate. Several sets of seeds are climbed from, with moves that join clusters, that
undo a broken symmetry, and that begin a cluster with what fits worst.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from .rings import monomials, quadratics

__all__ = [
    "Mixture",
    "Normals",
    "Rings",
    "Settings",
    "Sums",
    "fitted",
    "likelihoods",
    "normals_of",
    "partition",
    "rings",
    "scatter_given",
    "sticks_of",
]

# Rounds of the variational updates at most, and the gain per vector below which they end.
ROUNDS, SMALLEST_GAIN = 200, 1e-5
# A cluster with fewer vectors than that has none.
SEEN = 0.5
# Rounds after each move; all are made up for in the end.
FEW = 4
# Rounds between two looks at the bound.
EVERY = 4
# Moves that are looked at closely.
MOVES = 12
# Sets of seeds that are tried.
STARTS = 8
# Vectors that are tried as the first of a new cluster.
BIRTHS = 6


class Settings(NamedTuple):
    """What the prior says.

    Attributes:
        clusters: most clusters there can be.
        kappa: how many atoms the prior of a centre is worth.
        nu: degrees of freedom of a precision.
        alpha: shape and rate of the concentration's Gamma prior, or the concentration itself.
        scatter: shape and rate of the scatter's Gamma prior, or the scatter itself.
        groups: which scatter each component has.
    """

    clusters: int
    kappa: float
    nu: float
    alpha: tuple[float, float] | float
    scatter: tuple[float, float] | float
    groups: np.ndarray


class Rings(NamedTuple):
    """Vectors in every order.

    Attributes:
        values: (vector, order, size).
        products: monomials of the vectors as they are, (vector, monomial).
        ring: the orders.
    """

    values: np.ndarray
    products: np.ndarray
    ring: np.ndarray


def rings(values: np.ndarray, ring: np.ndarray) -> Rings:
    """Vectors, and all orders of them."""
    turned = np.einsum("sij,nj->nsi", ring, values, optimize=True)
    return Rings(turned, monomials(torch.as_tensor(values)).numpy(), ring)


class Sums(NamedTuple):
    """Number, sum, and sum of squares of the vectors of each cluster, in the cluster's order."""

    number: np.ndarray
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """The variational posterior.

    Attributes:
        shares: probability of each cluster and order for each vector, (vector, cluster, order).
        alpha: concentration.
        scatter: of each group.
        bound: lower bound on the log evidence, concentration and scatter given.
    """

    shares: np.ndarray
    alpha: float
    scatter: np.ndarray
    bound: float


def _sums(data: Rings, shares: np.ndarray) -> Sums:
    """Weighted moments, each order of each vector turned into its cluster's."""
    size = data.values.shape[2]
    i, j = np.triu_indices(size)
    flat = shares.reshape(len(shares), -1)
    moments = (flat.T @ data.products).reshape(*shares.shape[1:], -1)
    second = np.zeros((*moments.shape[:2], size, size))
    second[..., i, j] = second[..., j, i] = moments[..., : len(i)]
    first = moments[..., len(i) : -1]
    turned = np.einsum("sij,ksj->ki", data.ring, first, optimize=True)
    both = np.einsum("sij,ksjl,sml->kim", data.ring, second, data.ring, optimize=True)
    return Sums(moments[..., -1].sum(1), turned, both)


class Normals(NamedTuple):
    """Normal-Wishart posteriors of the clusters: (κ, centre, ν, scatter matrix)."""

    kappa: np.ndarray
    centre: np.ndarray
    nu: np.ndarray
    matrix: np.ndarray


def normals_of(sums: Sums, scatter: np.ndarray, chosen: Settings) -> Normals:
    """Posteriors of the clusters' centres and precisions, given their vectors."""
    kappa = chosen.kappa + sums.number
    centre = sums.first / kappa[..., None]
    outer = centre[..., :, None] * centre[..., None, :]
    matrix = np.diag(scatter[chosen.groups]) + sums.second - kappa[..., None, None] * outer
    return Normals(kappa, centre, chosen.nu + sums.number, matrix)


def _normaliser(kappa: np.ndarray, nu: np.ndarray, log_det: np.ndarray, size: int) -> np.ndarray:
    """Log of the integral of the Normal-Wishart density without its constants, which cancel."""
    from scipy.special import gammaln

    found: np.ndarray = (
        gammaln(0.5 * (nu[..., None] - np.arange(size))).sum(-1)
        + 0.5 * nu * size * np.log(2)
        - 0.5 * nu * log_det
        - 0.5 * size * np.log(kappa)
    )
    return found


def likelihoods(sums: Sums, scatter: np.ndarray, chosen: Settings) -> np.ndarray:
    """Log marginal likelihood of each cluster's vectors."""
    size = sums.first.shape[-1]
    normals = normals_of(sums, scatter, chosen)
    after = _normaliser(normals.kappa, normals.nu, np.linalg.slogdet(normals.matrix)[1], size)
    before = _normaliser(
        np.asarray(chosen.kappa),
        np.asarray(chosen.nu),
        np.log(scatter[chosen.groups]).sum(),
        size,
    )
    found: np.ndarray = after - before - 0.5 * size * sums.number * np.log(2 * np.pi)
    return found


def sticks_of(number: np.ndarray, alpha: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beta parameters of the sticks but the last."""
    beyond = number[::-1].cumsum()[::-1] - number
    return 1 + number[:-1], alpha + beyond[:-1]


def partition(number: np.ndarray, alpha: float) -> float:
    """Log probability of the assignments, the sticks integrated out."""
    from scipy.special import betaln

    first, second = sticks_of(number, alpha)
    return float((betaln(first, second) - betaln(1.0, alpha)).sum())


def _entropy(shares: np.ndarray) -> float:
    from scipy.special import xlogy

    return -float(xlogy(shares, shares).sum())


def _bound(
    data: Rings,
    shares: np.ndarray,
    sums: Sums,
    alpha: float,
    scatter: np.ndarray,
    chosen: Settings,
) -> float:
    order = np.argsort(-sums.number)
    value = float(likelihoods(sums, scatter, chosen).sum())
    value += partition(sums.number[order], alpha) + _entropy(shares)
    return value - len(data.values) * float(np.log(len(data.ring)))


def _expected(data: Rings, normals: Normals, weight: np.ndarray) -> np.ndarray:
    """Expected log density of every vector in every cluster and order, with the log weights added."""
    from scipy.special import digamma

    size = normals.centre.shape[-1]
    inverse = np.linalg.inv(normals.matrix)
    factor = np.linalg.cholesky(0.5 * (inverse + np.swapaxes(inverse, 1, 2)))
    factor *= np.sqrt(normals.nu)[:, None, None]
    rows = quadratics(
        torch.as_tensor(normals.centre), torch.as_tensor(factor), torch.as_tensor(data.ring)
    ).numpy()
    steps = digamma(0.5 * (normals.nu[:, None] - np.arange(size))).sum(1)
    shift = (
        0.5 * (steps + size * np.log(2) - size * np.log(normals.nu)) - 0.5 * size / normals.kappa
    )
    flat = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
    logs = (data.products @ flat).reshape(len(data.products), len(rows), -1)
    found: np.ndarray = logs + (shift + weight)[:, None]
    return found


def _log_weights(number: np.ndarray, alpha: float) -> np.ndarray:
    from scipy.special import digamma

    first, second = sticks_of(number, alpha)
    total = digamma(first + second)
    stay, go = digamma(first) - total, digamma(second) - total
    return np.append(stay, 0.0) + np.append(0.0, go.cumsum())


def _climb(data: Rings, start: Mixture, chosen: Settings, rounds: int = ROUNDS) -> Mixture:
    """Variational updates until the bound stands still; clusters are put in order of size, empty ones left out."""
    shares, alpha, scatter = start.shares, start.alpha, start.scatter
    last = -np.inf
    for step in range(rounds + 1):
        sums = _sums(data, shares)
        order = np.argsort(-sums.number, kind="stable")
        # One empty cluster speaks for all.
        order = order[: int((sums.number > SEEN).sum()) + 1]
        shares = shares[:, order]
        sums = Sums(*(part[order] for part in sums))
        normals = normals_of(sums, scatter, chosen)
        alpha, scatter = _hyper(sums, normals, alpha, scatter, chosen)
        if step % EVERY == 0 or step == rounds:
            bound = _bound(data, shares, sums, alpha, scatter, chosen)
            if step == rounds or bound - last < SMALLEST_GAIN * len(data.values):
                break
            last = bound
        normals = normals_of(sums, scatter, chosen)
        logs = _expected(data, normals, _log_weights(sums.number, alpha))
        logs -= logs.max((1, 2), keepdims=True)
        shares = np.exp(logs)
        shares /= shares.sum((1, 2), keepdims=True)
    return Mixture(shares, alpha, scatter, bound)


def _hyper(
    sums: Sums, normals: Normals, alpha: float, scatter: np.ndarray, chosen: Settings
) -> tuple[float, np.ndarray]:
    """Concentration and scatter at their conditional means."""
    from scipy.special import digamma

    if isinstance(chosen.alpha, tuple):
        first, second = sticks_of(sums.number, alpha)
        left = (digamma(second) - digamma(first + second)).sum()
        alpha = (chosen.alpha[0] + len(first)) / (chosen.alpha[1] - left)
    if isinstance(chosen.scatter, tuple):
        inverse = np.linalg.inv(normals.matrix)
        precision = normals.nu[:, None] * np.diagonal(inverse, axis1=1, axis2=2)
        shape, rate = scatter_given(precision, chosen)
        scatter = shape / rate
    return float(alpha), scatter


def scatter_given(precision: np.ndarray, chosen: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Gamma posterior of each group's scatter given the diagonals of the precisions, (cluster, size)."""
    assert isinstance(chosen.scatter, tuple)
    count = int(chosen.groups.max()) + 1
    width = np.bincount(chosen.groups, minlength=count)
    sums = np.bincount(chosen.groups, precision.sum(0), count)
    shape = chosen.scatter[0] + 0.5 * chosen.nu * len(precision) * width
    return shape, chosen.scatter[1] + 0.5 * sums


def _seeded(data: Rings, chosen: Settings, rng: np.random.Generator) -> Mixture:
    """Every vector in the order and cluster of the nearest of some seeds (k-means++), then the seeds their means."""
    values = data.values
    count = len(values)
    scatter = np.ones(int(chosen.groups.max()) + 1)
    if not isinstance(chosen.scatter, tuple):
        scatter = scatter * chosen.scatter
    seeds = values[rng.integers(count), 0][None]
    for _ in range(min(chosen.clusters, count) - 1):
        apart = _apart(values, seeds).min((1, 2))
        # Beyond some distance all are equally far: a few odd vectors are not to have all seeds.
        apart = np.minimum(apart, 20 * np.median(apart) + 1e-12)
        seeds = np.concatenate([seeds, values[rng.choice(count, p=apart / apart.sum()), :1]])
    for _ in range(5):
        best = _apart(values, seeds).reshape(count, -1).argmin(1)
        cluster, order = np.divmod(best, values.shape[1])
        turned = values[np.arange(count), order]
        number = np.bincount(cluster, minlength=len(seeds))
        for k in np.flatnonzero(number):
            seeds[k] = turned[cluster == k].mean(0)
    shares = np.zeros((count, chosen.clusters, values.shape[1]))
    shares[np.arange(count), cluster, order] = 1
    alpha = 1.0 if isinstance(chosen.alpha, tuple) else chosen.alpha
    return Mixture(shares, alpha, scatter, -np.inf)


def _apart(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Squared distances from every order of every vector to seeds, (vector, seed, order)."""
    size = (values[:, 0] ** 2).sum(1)[:, None, None]
    dots = np.einsum("nsi,ki->nks", values, seeds, optimize=True)
    return np.maximum(size - 2 * dots + (seeds**2).sum(1)[:, None], 0.0)


def _born(data: Rings, found: Mixture, chosen: Settings) -> Mixture:
    """Clusters begun with the vectors that fit worst, as long as that raises the bound."""
    for _ in range(chosen.clusters):
        sums = _sums(data, found.shares)
        if (sums.number > SEEN).sum() >= chosen.clusters:
            break
        normals = normals_of(sums, found.scatter, chosen)
        logs = _expected(data, normals, np.zeros(len(sums.number)))
        worst = np.argsort(logs.max((1, 2)), kind="stable")[:BIRTHS]
        trials = [_climb(data, _alone(found, int(one)), chosen, FEW) for one in worst]
        best = _climb(data, max(trials, key=lambda mixture: mixture.bound), chosen)
        if best.bound <= found.bound + SMALLEST_GAIN * len(data.values):
            break
        found = best
    return found


def _alone(found: Mixture, one: int) -> Mixture:
    """The same with one vector in a cluster of its own."""
    shares = np.pad(found.shares, ((0, 0), (0, 1), (0, 0)))
    shares[one] = 0.0
    shares[one, -1, 0] = 1.0
    return replace(found, shares=shares)


def _joined(data: Rings, found: Mixture, chosen: Settings) -> Mixture:
    """Clusters joined, and symmetries restored, as long as that raises the bound."""
    after = found
    # Each move joins two clusters or makes one symmetric; more are needed only where updates undo them.
    for _ in range(2 * chosen.clusters):
        better = _best_move(data, after, chosen)
        if better is None:
            break
        after = _climb(data, better, chosen, FEW)
    after = _climb(data, after, chosen)
    return max(found, after, key=lambda mixture: mixture.bound)


def _best_move(data: Rings, found: Mixture, chosen: Settings) -> Mixture | None:
    """The one move that raises the bound most before any update, None where none does."""
    shares = found.shares
    sums = _sums(data, shares)
    used = np.flatnonzero(sums.number > SEEN)
    alone = likelihoods(sums, found.scatter, chosen)
    base = partition(sums.number, found.alpha)

    def gain(columns: list[int], after: np.ndarray) -> float:
        """What the bound gains where the first of some clusters takes these shares, and the others none."""
        new = _sums(data, after[:, None])
        number = sums.number.copy()
        number[columns] = 0.0
        number[columns[0]] = new.number[0]
        value = float(likelihoods(new, found.scatter, chosen)[0] - alone[columns].sum())
        value += partition(np.sort(number)[::-1], found.alpha) - base
        return value + _entropy(after) - _entropy(shares[:, columns])

    compose = _composed(data.ring)
    moves = [([int(k)], shares[:, k].mean(1, keepdims=True) + 0 * shares[:, k]) for k in used]
    for k, other, order in _promising(sums, found.scatter, chosen, data.ring, used):
        both = shares[:, k] + shares[:, other][:, compose[order]]
        moves.append(([k], 0.5 * both) if k == other else ([k, other], both))
    gains = [gain(*move) for move in moves]
    best = int(np.argmax(gains))
    if gains[best] <= SMALLEST_GAIN * len(shares):
        return None
    columns, after = moves[best]
    trial = shares.copy()
    trial[:, columns] = 0.0
    trial[:, columns[0]] = after
    return replace(found, shares=trial, bound=found.bound + gains[best])


def _composed(ring: np.ndarray) -> np.ndarray:
    """For each order t, which order s of a vector becomes t·s: a table with ring[t] ring[c[t, s]] = ring[s]."""
    products = np.einsum("tji,sjk->tsik", ring, ring)
    apart = np.abs(products[:, :, None] - ring[None, None]).sum((3, 4))
    table: np.ndarray = apart.argmin(2)
    return table


def _promising(
    sums: Sums, scatter: np.ndarray, chosen: Settings, ring: np.ndarray, used: np.ndarray
) -> list[tuple[int, int, int]]:
    """Pairs of clusters, and the order in which the second is added, that lose least likelihood; the best few.

    A cluster paired with itself in another order is made symmetric.
    """
    alone = likelihoods(sums, scatter, chosen)
    itself = int(np.abs(ring - np.eye(ring.shape[1])).sum((1, 2)).argmin())
    found = []
    for place, k in enumerate(used):
        for other in used[place:]:
            part = 0.5 if other == k else 1.0
            second = ring @ sums.second[other] @ np.swapaxes(ring, 1, 2)
            both = Sums(
                np.full(len(ring), part * (sums.number[k] + sums.number[other])),
                part * (sums.first[k] + ring @ sums.first[other]),
                part * (sums.second[k] + second),
            )
            change = likelihoods(both, scatter, chosen) - alone[k]
            if other == k:
                change[itself] = -np.inf
            else:
                change -= alone[other]
            # What a symmetry loses for each vector it may win back as entropy, at most log 2.
            worth = change + np.log(2) * part * (sums.number[k] + sums.number[other])
            order = int(change.argmax())
            found.append((float(worth[order]), int(k), int(other), order))
    found.sort(reverse=True)
    return [(k, other, order) for _, k, other, order in found[:MOVES]]


def fitted(values: np.ndarray, ring: np.ndarray, chosen: Settings, seed: int) -> Mixture:
    """The variational posterior with the highest bound of several starts.

    Args:
        values: vectors, (vector, size).
        ring: orders, (order, size, size).
        chosen: what the prior says.
        seed: of the seeds.
    """
    rng = np.random.default_rng(seed)
    data = rings(values, ring)
    found = [
        _joined(data, _climb(data, _seeded(data, chosen, rng), chosen), chosen)
        for _ in range(STARTS)
    ]
    best = max(found, key=lambda mixture: mixture.bound)
    best = _joined(data, _born(data, best, chosen), chosen)
    empty = chosen.clusters - best.shares.shape[1]
    return replace(best, shares=np.pad(best.shares, ((0, 0), (0, max(empty, 0)), (0, 0))))
