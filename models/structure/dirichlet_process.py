"""A Dirichlet-process mixture of normal distributions of rings: vectors whose first place and sense are arbitrary.

The posterior is found in two steps, all conditional distributions being conjugate. A variational one from several sets
of seeds, with moves that join clusters and that undo a broken symmetry, finds the partition with the highest bound.
Gibbs sweeps of the whole story then start there: assignments, sticks, concentration, centres, precisions and scatter.

Sums over all orders of all vectors are matrix products: a quadratic form of x is linear in the products of its entries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["AnyOrder", "Mixture", "Settings", "fitted", "monomials", "precision_factor", "swept"]

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
STARTS = 4


class AnyOrder(TorchDistribution):
    """A normal vector whose entries are then put into one of the orders of a ring, each as likely.

    Args:
        centre: mean, (…, size).
        factor: F with precision F Fᵀ, lower triangular, (…, size, size).
        ring: the orders as orthogonal matrices, (order, size, size).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self, centre: Tensor, factor: Tensor, ring: Tensor, batch_shape: torch.Size | None = None
    ) -> None:
        self.centre, self.factor, self.ring = centre, factor, ring
        super().__init__(batch_shape or centre.shape[:-1], centre.shape[-1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> AnyOrder:
        """The same, for a wider batch; what is the same for all is kept once."""
        return AnyOrder(self.centre, self.factor, self.ring, torch.Size(batch_shape))

    @property
    def mean(self) -> Tensor:
        """Mean over the orders."""
        return (self.centre @ self.ring.mean(0)).expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, summed over the orders."""
        weights = quadratics(self.centre, self.factor, self.ring)
        products = monomials(value)
        if weights.dim() > 2 and weights.shape[-3] == 1:
            terms = products @ weights.squeeze(-3)
        else:
            terms = (products.unsqueeze(-2) @ weights).squeeze(-2)
        return torch.logsumexp(terms, -1) - np.log(len(self.ring))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw vectors and turn them at random."""
        shape = self._extended_shape(sample_shape)
        normal = torch.randn(shape, dtype=self.centre.dtype)
        away = torch.linalg.solve_triangular(
            self.factor.mT, normal.unsqueeze(-1), upper=True
        ).squeeze(-1)
        order = torch.randint(len(self.ring), shape[:-1])
        return ((self.centre + away).unsqueeze(-2) @ self.ring[order]).squeeze(-2)


def monomials(x: Tensor) -> Tensor:
    """Products x_i x_j with i ≤ j, then x_i, then 1."""
    size = x.shape[-1]
    i, j = torch.triu_indices(size, size)
    return torch.cat([x[..., i] * x[..., j], x, torch.ones_like(x[..., :1])], -1)


def quadratics(centre: Tensor, factor: Tensor, ring: Tensor) -> Tensor:
    """Log densities of x in every order as weights of its monomials, (…, monomial, order)."""
    size = centre.shape[-1]
    i, j = torch.triu_indices(size, size)
    turned = ring.mT @ factor.unsqueeze(-3)
    precision = turned @ turned.mT
    double = torch.where(i == j, 0.5, 1.0).to(centre.dtype)
    seen = (centre.unsqueeze(-2) @ factor).squeeze(-2)
    straight = (turned @ seen.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)
    constant = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1) - 0.5 * (seen**2).sum(-1)
    constant = constant - 0.5 * size * np.log(2 * np.pi)
    constant = constant[..., None, None].expand(*straight.shape[:-1], 1)
    return torch.cat([-precision[..., i, j] * double, straight, constant], -1).mT


def precision_factor(root: Tensor, cross: Tensor, scale: Tensor) -> Tensor:
    """F with F Fᵀ ~ Wishart(ν, diag(scale²)⁻¹), by Bartlett's decomposition.

    Args:
        root: squares of the diagonal, χ² of ν, ν - 1, … (…, size).
        cross: standard normal entries below it, row by row.
        scale: square roots of the scatter, (…, size).
    """
    size = root.shape[-1]
    i, j = torch.tril_indices(size, size, -1)
    lower = torch.zeros(size * size, cross.shape[-1], dtype=root.dtype)
    lower[i * size + j, torch.arange(len(i))] = 1.0
    below = (cross @ lower.mT).reshape(*cross.shape[:-1], size, size)
    return (below + torch.diag_embed(root.sqrt())) / scale.unsqueeze(-1)


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


class _Sums(NamedTuple):
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


def _sums(data: Rings, shares: np.ndarray) -> _Sums:
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
    return _Sums(moments[..., -1].sum(1), turned, both)


class _Normals(NamedTuple):
    """Normal-Wishart posteriors of the clusters: (κ, centre, ν, scatter matrix)."""

    kappa: np.ndarray
    centre: np.ndarray
    nu: np.ndarray
    matrix: np.ndarray


def _updated(sums: _Sums, scatter: np.ndarray, chosen: Settings) -> _Normals:
    kappa = chosen.kappa + sums.number
    centre = sums.first / kappa[..., None]
    outer = centre[..., :, None] * centre[..., None, :]
    matrix = np.diag(scatter[chosen.groups]) + sums.second - kappa[..., None, None] * outer
    return _Normals(kappa, centre, chosen.nu + sums.number, matrix)


def _normaliser(kappa: np.ndarray, nu: np.ndarray, log_det: np.ndarray, size: int) -> np.ndarray:
    """Log of the integral of the Normal-Wishart density without its constant."""
    from scipy.special import multigammaln

    found: np.ndarray = (
        multigammaln(nu / 2, size)
        + 0.5 * nu * size * np.log(2)
        - 0.5 * nu * log_det
        - 0.5 * size * np.log(kappa)
    )
    return found


def _likelihoods(sums: _Sums, scatter: np.ndarray, chosen: Settings) -> np.ndarray:
    """Log marginal likelihood of each cluster's vectors."""
    size = sums.first.shape[-1]
    normals = _updated(sums, scatter, chosen)
    after = _normaliser(normals.kappa, normals.nu, np.linalg.slogdet(normals.matrix)[1], size)
    before = _normaliser(
        np.asarray(chosen.kappa),
        np.asarray(chosen.nu),
        np.log(scatter[chosen.groups]).sum(),
        size,
    )
    found: np.ndarray = after - before - 0.5 * size * sums.number * np.log(2 * np.pi)
    return found


def _sticks(number: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Beta parameters of the sticks but the last."""
    beyond = number[::-1].cumsum()[::-1] - number
    return 1 + number[:-1], alpha + beyond[:-1]


def _partition(number: np.ndarray, alpha: float) -> float:
    """Log probability of the assignments, the sticks integrated out."""
    from scipy.special import betaln

    first, second = _sticks(number, alpha)
    return float((betaln(first, second) - betaln(1.0, alpha)).sum())


def _entropy(shares: np.ndarray) -> float:
    from scipy.special import xlogy

    return -float(xlogy(shares, shares).sum())


def _bound(
    data: Rings,
    shares: np.ndarray,
    sums: _Sums,
    alpha: float,
    scatter: np.ndarray,
    chosen: Settings,
) -> float:
    order = np.argsort(-sums.number)
    value = float(_likelihoods(sums, scatter, chosen).sum())
    value += _partition(sums.number[order], alpha) + _entropy(shares)
    return value - len(data.values) * float(np.log(len(data.ring)))


def _expected(data: Rings, normals: _Normals, weight: np.ndarray) -> np.ndarray:
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

    first, second = _sticks(number, alpha)
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
        sums = _Sums(*(part[order] for part in sums))
        normals = _updated(sums, scatter, chosen)
        alpha, scatter = _hyper(sums, normals, alpha, scatter, chosen)
        if step % EVERY == 0 or step == rounds:
            bound = _bound(data, shares, sums, alpha, scatter, chosen)
            if step == rounds or bound - last < SMALLEST_GAIN * len(data.values):
                break
            last = bound
        normals = _updated(sums, scatter, chosen)
        logs = _expected(data, normals, _log_weights(sums.number, alpha))
        logs -= logs.max((1, 2), keepdims=True)
        shares = np.exp(logs)
        shares /= shares.sum((1, 2), keepdims=True)
    return Mixture(shares, alpha, scatter, bound)


def _hyper(
    sums: _Sums, normals: _Normals, alpha: float, scatter: np.ndarray, chosen: Settings
) -> tuple[float, np.ndarray]:
    """Concentration and scatter at their conditional means."""
    from scipy.special import digamma

    if isinstance(chosen.alpha, tuple):
        first, second = _sticks(sums.number, alpha)
        left = (digamma(second) - digamma(first + second)).sum()
        alpha = (chosen.alpha[0] + len(first)) / (chosen.alpha[1] - left)
    if isinstance(chosen.scatter, tuple):
        inverse = np.linalg.inv(normals.matrix)
        precision = normals.nu[:, None] * np.diagonal(inverse, axis1=1, axis2=2)
        shape, rate = _scatter_given(precision, chosen)
        scatter = shape / rate
    return float(alpha), scatter


def _scatter_given(precision: np.ndarray, chosen: Settings) -> tuple[np.ndarray, np.ndarray]:
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


def _joined(data: Rings, found: Mixture, chosen: Settings) -> Mixture:
    """Clusters joined, and symmetries restored, as long as that raises the bound."""
    while True:
        after = found
        better = _best_move(data, found, chosen)
        while better is not None:
            after = _climb(data, better, chosen, FEW)
            better = _best_move(data, after, chosen)
        if after is found:
            return found
        after = _climb(data, after, chosen)
        if after.bound <= found.bound:
            return found
        found = after


def _best_move(data: Rings, found: Mixture, chosen: Settings) -> Mixture | None:
    """The one move that raises the bound most before any update, None where none does."""
    shares = found.shares
    sums = _sums(data, shares)
    used = np.flatnonzero(sums.number > SEEN)
    alone = _likelihoods(sums, found.scatter, chosen)
    base = _partition(sums.number, found.alpha)

    def gain(columns: list[int], after: np.ndarray) -> float:
        """What the bound gains where the first of some clusters takes these shares, and the others none."""
        new = _sums(data, after[:, None])
        number = sums.number.copy()
        number[columns] = 0.0
        number[columns[0]] = new.number[0]
        value = float(_likelihoods(new, found.scatter, chosen)[0] - alone[columns].sum())
        value += _partition(np.sort(number)[::-1], found.alpha) - base
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
    sums: _Sums, scatter: np.ndarray, chosen: Settings, ring: np.ndarray, used: np.ndarray
) -> list[tuple[int, int, int]]:
    """Pairs of clusters, and the order in which the second is added, that lose least likelihood; the best few.

    A cluster paired with itself in another order is made symmetric.
    """
    alone = _likelihoods(sums, scatter, chosen)
    itself = int(np.abs(ring - np.eye(ring.shape[1])).sum((1, 2)).argmin())
    found = []
    for place, k in enumerate(used):
        for other in used[place:]:
            part = 0.5 if other == k else 1.0
            second = ring @ sums.second[other] @ np.swapaxes(ring, 1, 2)
            both = _Sums(
                np.full(len(ring), part * (sums.number[k] + sums.number[other])),
                part * (sums.first[k] + ring @ sums.first[other]),
                part * (sums.second[k] + second),
            )
            change = _likelihoods(both, scatter, chosen) - alone[k]
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
    empty = chosen.clusters - best.shares.shape[1]
    return replace(best, shares=np.pad(best.shares, ((0, 0), (0, max(empty, 0)), (0, 0))))


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
    kept: list[dict[str, np.ndarray]] = []
    occupied = []
    for sweep in range(warm + draws * thin):
        labels = _drawn(flat, rng)
        cluster, order = np.divmod(labels, len(ring))
        state = _given_labels(data, cluster, order, alpha, scatter, chosen, rng)
        alpha, scatter = float(state["alpha"]), state["scatter"]
        flat = _joint(data, state)
        if sweep >= warm and (sweep - warm) % thin == 0:
            kept.append(state)
            occupied.append(len(np.unique(cluster)))
    names = ("alpha", "stick", "scatter", "root", "cross", "middle")
    latents = {name: np.stack([state[name] for state in kept]) for name in names}
    return Sweeps(latents, np.array(occupied))


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
    turned = data.values[np.arange(len(cluster)), order]
    member = np.zeros((len(cluster), count))
    member[np.arange(len(cluster)), cluster] = 1
    second = np.stack([(turned[cluster == k].T @ turned[cluster == k]) for k in range(count)])
    normals = _updated(_Sums(member.sum(0), member.T @ turned, second), scatter, chosen)
    stick = rng.beta(*_sticks(member.sum(0), alpha))
    stick = np.clip(stick, 1e-12, 1 - 1e-12)
    factor = _wishart_factor(normals, rng)
    normal = rng.standard_normal((count, size)) / np.sqrt(normals.kappa)[:, None]
    centre = normals.centre + np.linalg.solve(np.swapaxes(factor, 1, 2), normal[..., None])[..., 0]
    if isinstance(chosen.scatter, tuple):
        shape, rate = _scatter_given((factor**2).sum(2), chosen)
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


def _wishart_factor(normals: _Normals, rng: np.random.Generator) -> np.ndarray:
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


def _joint(data: Rings, state: dict[str, np.ndarray]) -> np.ndarray:
    """Probability of every cluster and order for every vector, up to a factor of each vector."""
    rows = quadratics(
        torch.as_tensor(state["centre"]),
        torch.as_tensor(state["factor"]),
        torch.as_tensor(data.ring),
    ).numpy()
    count = len(rows)
    weight = np.log(np.maximum(weights_of(state["stick"]), 1e-300))
    flat = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
    logs = data.products @ flat + np.repeat(weight, rows.shape[2])
    logs -= logs.max(1, keepdims=True)
    found: np.ndarray = np.exp(logs).reshape(len(data.values), count * rows.shape[2])
    return found
