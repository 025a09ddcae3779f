"""Gibbs sweeps of a Dirichlet-process mixture of rings, from a variational posterior on.

Every sweep draws the assignments given the clusters, a few of the odd ones again with the clusters' parameters
integrated out, exchanges labels, tries to split a small cluster or to join two, and then draws sticks, precisions,
centres, concentration and scatter. Splits are allocated one vector after the other (Dahl, Journal of Modern Applied
Statistical Methods 4 (2005) 4), orders included, with parameters and sticks integrated out.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    partition,
    rings,
    scatter_given,
    sticks_of,
)
from .rings import quadratics

__all__ = ["Sweeps", "swept", "weights_of"]

LATENTS = ("alpha", "stick", "scatter", "root", "cross", "middle")
# Vectors in each sweep whose cluster is drawn with its parameters integrated out.
MOVED = 3
# Sweeps of a chain between two looks at how well chains agree; effective draws and agreement that a report asks for.
ROUND, EFFECTIVE, AGREE = 100, 400, 1.01
# Splits and joins tried in each sweep, of clusters that have no more vectors than that together.
TRIED, SMALL = 1, 60
# Concentrations that are looked at, steps even in the logarithm.
ALPHA, ALPHAS = (1e-4, 1e3), 200
# Vectors among whose nearest the second anchor of a split is.
NEAREST = 40


class Sweeps(NamedTuple):
    """Draws of the story's latents, and of every sweep what no names of clusters change.

    Attributes:
        latents: draws, one chain after the other; every draw's clusters are named as those of the start that they
            share most vectors with.
        occupied: how many clusters had vectors, (chain, sweep).
        figures: by name, (chain, sweep).
    """

    latents: dict[str, np.ndarray]
    occupied: np.ndarray
    figures: dict[str, np.ndarray]


class _Sweep(NamedTuple):
    """One sweep: the latents, the cluster of every vector, and the log likelihood with clusters summed out."""

    state: dict[str, np.ndarray]
    cluster: np.ndarray
    likelihood: float


def swept(
    values: np.ndarray,
    ring: np.ndarray,
    chosen: Settings,
    start: Mixture,
    *,
    draws: int,
    chains: int,
    warm: int,
    rounds: int,
    seed: int,
) -> Sweeps:
    """Gibbs draws of everything, from a variational posterior on.

    Args:
        values: vectors.
        ring: orders.
        chosen: what the prior says.
        start: where to begin.
        draws: how many of each chain.
        chains: how many.
        warm: sweeps of each before the first.
        rounds: of as many sweeps as the first, at most; chains that agree and have moved enough stop before.
        seed: of the draws.
    """
    data = rings(values, ring)
    near = _near(data)
    reference = start.shares.sum(2).argmax(1)
    running = [
        _chain(data, chosen, start, near, np.random.default_rng((seed, chain)))
        for chain in range(chains)
    ]
    for chain in running:
        for _ in range(warm):
            next(chain)
    kept: list[list[dict[str, np.ndarray]]] = [[] for _ in running]
    figures: list[list[dict[str, float]]] = [[] for _ in running]
    for _ in range(rounds):
        for chain, states, told in zip(running, kept, figures, strict=True):
            for _ in range(max(ROUND, draws)):
                sweep = next(chain)
                weights = weights_of(sweep.state["stick"])
                names = _names(sweep.cluster, reference, chosen.clusters)
                states.append(_in_order(sweep.state, weights, names))
                told.append(_figures(sweep, chosen))
        every = {
            name: np.array([[one[name] for one in told] for told in figures])
            for name in figures[0][0]
        }
        if _enough(every, min(EFFECTIVE, chains * draws)):
            break
    some = np.linspace(0, len(kept[0]) - 1, draws).round().astype(int)
    latents = {
        name: np.stack([states[i][name] for states in kept for i in some]) for name in LATENTS
    }
    return Sweeps(latents, every["clusters"].astype(int), every)


def _figures(sweep: _Sweep, chosen: Settings) -> dict[str, float]:
    """What no names of clusters change, of one sweep."""
    share = np.sort(np.bincount(sweep.cluster, minlength=chosen.clusters) / len(sweep.cluster))
    own = share[share > 0]
    found = {
        "clusters": float(len(own)),
        "largest_share": float(share[-1]),
        "second_share": float(share[-2]),
        "entropy": float(-(own * np.log(own)).sum()),
        "log_likelihood": sweep.likelihood,
    }
    if isinstance(chosen.alpha, tuple):
        found["alpha"] = float(sweep.state["alpha"])
    if isinstance(chosen.scatter, tuple):
        found |= {f"scatter_{i}": float(s) for i, s in enumerate(sweep.state["scatter"])}
    return found


def _enough(figures: dict[str, np.ndarray], wanted: float) -> bool:
    """Whether chains agree on all figures, each with so many effective draws."""
    from arviz_stats.base import array_stats

    # So far apart are chains that agree, by their errors alone.
    agree = max(AGREE, float(np.sqrt(1 + len(figures["clusters"]) / wanted)))
    for value in figures.values():
        if np.ptp(value) == 0:
            continue
        with np.errstate(all="ignore"):
            effective = [
                array_stats.ess(value, chain_axis=0, draw_axis=1, method="bulk"),
                array_stats.ess(value, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95)),
            ]
            apart = array_stats.rhat(value, chain_axis=0, draw_axis=1) if len(value) > 1 else 1.0
        if min(effective) < wanted or not apart <= agree:
            return False
    return True


def _chain(
    data: Rings,
    chosen: Settings,
    start: Mixture,
    near: list[np.ndarray],
    rng: np.random.Generator,
) -> Iterator[_Sweep]:
    """Sweep after sweep."""
    count, turns = data.values.shape[:2]
    flat = start.shares.reshape(count, -1)
    alpha, scatter = start.alpha, start.scatter
    cluster, order = np.divmod(_drawn(flat, rng), turns)
    odd = None
    while True:
        state = _given_labels(data, cluster, order, alpha, scatter, chosen, rng)
        alpha, scatter = float(state["alpha"]), state["scatter"]
        weights = weights_of(state["stick"])
        logs = _joint(data, state, weights)
        highest = logs.max(1)
        flat = np.exp(logs - highest[:, None])
        likelihood = float((highest + np.log(flat.sum(1))).sum()) - count * float(np.log(turns))
        yield _Sweep(state, cluster.copy(), likelihood)
        if odd is None:
            odd = 1 / (1.0 + np.argsort(np.argsort(highest)))
            odd /= odd.sum()
        cluster, order = np.divmod(_drawn(flat, rng), turns)
        where = rng.choice(count, min(MOVED, count), replace=False, p=odd)
        _reassign(data, cluster, order, where, weights, scatter, chosen, rng)
        _renamed(cluster, alpha, chosen.clusters, rng)
        for one in rng.choice(count, TRIED, p=odd):
            pair = int(one), int(rng.choice(near[one]))
            split_or_join(data, cluster, order, pair, alpha, scatter, chosen, rng)


def _near(data: Rings) -> list[np.ndarray]:
    """The nearest other vectors of every one, each in any order."""
    from scipy.spatial import cKDTree

    count, orders, size = data.values.shape
    reach = min(NEAREST, count) * orders
    tree = cKDTree(data.values.reshape(-1, size))
    _, found = tree.query(data.values[:, 0], reach)
    return [
        others if len(others := np.setdiff1d(row, [one])) else np.array([(one + 1) % count])
        for one, row in enumerate(found // orders)
    ]


def _names(cluster: np.ndarray, reference: np.ndarray, count: int) -> np.ndarray:
    """For each cluster of the reference the one that shares most vectors with it, each once."""
    from scipy.optimize import linear_sum_assignment

    shared = np.zeros((count, count))
    np.add.at(shared, (reference, cluster), 1)
    found: np.ndarray = linear_sum_assignment(-shared)[1]
    return found


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


def _renamed(cluster: np.ndarray, alpha: float, count: int, rng: np.random.Generator) -> None:
    """Exchange labels of pairs of clusters, since sticks prefer large clusters first (Metropolis steps).

    Sticks are integrated out; `cluster` is changed in place.
    """
    number = np.bincount(cluster, minlength=count)
    label = np.arange(count)
    now = partition(number, alpha)
    for k, other in rng.integers(count, size=(count, 2)):
        if number[k] == number[other]:
            continue
        number[[k, other]] = number[[other, k]]
        then = partition(number, alpha)
        if np.log(rng.random()) < then - now:
            now = then
            label[[k, other]] = label[[other, k]]
        else:
            number[[k, other]] = number[[other, k]]
    # label[k] is the old label of what is now k.
    cluster[:] = np.argsort(label)[cluster]


def split_or_join(
    data: Rings,
    cluster: np.ndarray,
    order: np.ndarray,
    pair: tuple[int, int],
    alpha: float,
    scatter: np.ndarray,
    chosen: Settings,
    rng: np.random.Generator,
) -> bool:
    """Two vectors of one cluster may each get one of their own, two clusters become one (a Metropolis step).

    The first vector keeps its label and order. Sticks and parameters are integrated out.

    Args:
        data: vectors in every order.
        cluster: of every vector, changed in place.
        order: of every vector, changed in place.
        pair: the two vectors.
        alpha: concentration.
        scatter: of each group.
        chosen: what the prior says.
        rng: of the draws.

    Returns:
        Whether the step was taken.
    """
    first, second = pair
    k, e = int(cluster[first]), int(cluster[second])
    whole = np.flatnonzero((cluster == k) | (cluster == e))
    number = np.bincount(cluster, minlength=chosen.clusters)
    splits = k == e
    if len(whole) > SMALL or (splits and number.all()):
        return False
    others = rng.permutation(whole[(whole != first) & (whole != second)])
    all_others = rng.permutation(whole[whole != first])
    grown = _Grown(data, scatter, chosen)
    turns = data.values.shape[1]
    # The second vector's own order says nothing where it begins a cluster: any is as likely.
    second_order = int(rng.integers(turns)) if splits else int(order[second])
    anchors = [(first, int(order[first])), (second, second_order)]
    apart, together = cluster.copy(), cluster.copy()
    apart_order, together_order = order.copy(), order.copy()
    together[whole] = k
    forced = None if splits else ((cluster[others] == e).astype(int), order[others])
    side, turn, log_apart = grown.allocated(others, anchors, rng, forced)
    given = (np.zeros(len(all_others), int), order[all_others]) if splits else None
    _, one_turn, log_together = grown.allocated(all_others, anchors[:1], rng, given)
    empty = np.append(np.flatnonzero(number == 0), [] if splits else [e]).astype(int)
    count_second = 1 + int(side.sum())
    logs = np.empty(len(empty))
    for place, label in enumerate(empty):
        trial = number.copy()
        trial[k], trial[e] = 0, 0
        trial[k], trial[label] = len(whole) - count_second, count_second
        logs[place] = partition(trial, alpha)
    share = np.exp(logs - logs.max())
    share /= share.sum()
    place = int(rng.choice(len(empty), p=share)) if splits else len(empty) - 1
    label = int(empty[place])
    apart[others], apart[second], apart[first] = np.where(side == 1, label, k), label, k
    apart_order[others], apart_order[second] = turn, second_order
    if not splits:
        together_order[all_others] = one_turn
    log_apart += np.log(share[place]) - np.log(turns)
    gain = _target(data, apart, apart_order, (k, label), scatter, chosen) + logs[place]
    gain -= _target(data, together, together_order, (k,), scatter, chosen)
    gain -= partition(np.bincount(together, minlength=chosen.clusters), alpha)
    gain += log_together - log_apart
    if np.log(rng.random()) >= (gain if splits else -gain):
        return False
    cluster[:], order[:] = (apart, apart_order) if splits else (together, together_order)
    return True


def _target(
    data: Rings,
    cluster: np.ndarray,
    order: np.ndarray,
    labels: tuple[int, ...],
    scatter: np.ndarray,
    chosen: Settings,
) -> float:
    """Log marginal likelihood of some clusters' vectors."""
    total = 0.0
    for label in labels:
        who = np.flatnonzero(cluster == label)
        turned = data.values[who, order[who]]
        sums = Sums(np.asarray(float(len(who))), turned.sum(0), turned.T @ turned)
        total += float(likelihoods(sums, scatter, chosen))
    return total


class _Grown:
    """One or two clusters to which vectors are added one after the other."""

    def __init__(self, data: Rings, scatter: np.ndarray, chosen: Settings) -> None:
        self.values = data.values
        self.chosen, self.prior = chosen, scatter[chosen.groups]

    def allocated(
        self,
        members: np.ndarray,
        anchors: list[tuple[int, int]],
        rng: np.random.Generator,
        forced: tuple[np.ndarray, np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Cluster (0 or 1) and order of each member, drawn or as forced, and the log probability of that."""
        from scipy.special import gammaln

        chosen, size = self.chosen, len(self.prior)
        centre = np.zeros((len(anchors), size))
        inverse = np.repeat(np.diag(1 / self.prior)[None], len(anchors), 0)
        log_det = np.full(len(anchors), np.log(self.prior).sum())
        number = np.zeros(len(anchors))
        steps = chosen.nu + np.arange(len(members) + 2)
        constant = gammaln((steps + 1) / 2) - gammaln((steps + 1 - size) / 2)

        def add(k: int, value: np.ndarray) -> None:
            kappa = chosen.kappa + number[k]
            off = value - centre[k]
            seen, part = inverse[k] @ off, kappa / (kappa + 1)
            grow = 1 + part * (seen @ off)
            inverse[k] -= np.outer(seen, seen) * (part / grow)
            log_det[k] += np.log(grow)
            centre[k] += off / (kappa + 1)
            number[k] += 1

        for k, (who, turn) in enumerate(anchors):
            add(k, self.values[who, turn])
        sides, turns = np.zeros(len(members), int), np.zeros(len(members), int)
        total, width = 0.0, self.values.shape[1]
        for place, who in enumerate(members):
            kappa = chosen.kappa + number
            part = kappa / (kappa + 1)
            off = self.values[who] - centre[:, None]
            square = ((off @ inverse) * off).sum(2) * part[:, None]
            base = constant[number.astype(int)] + 0.5 * (size * np.log(part) - log_det)
            logs = (base + np.log(number))[:, None]
            logs = (logs - 0.5 * (chosen.nu + number + 1)[:, None] * np.log1p(square)).ravel()
            logs -= logs.max()
            share = np.exp(logs)
            whole = share.sum()
            if forced is None:
                at = int(np.searchsorted(share.cumsum(), rng.random() * whole))
                at = min(at, len(share) - 1)
            else:
                at = int(forced[0][place]) * width + int(forced[1][place])
            total += logs[at] - np.log(whole)
            sides[place], turns[place] = divmod(at, width)
            add(int(sides[place]), self.values[who, turns[place]])
        return sides, turns, float(total)


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
    if isinstance(chosen.alpha, tuple):
        alpha = _concentration(sums.number, chosen.alpha, rng)
    stick = rng.beta(*sticks_of(sums.number, alpha))
    stick = np.clip(stick, 1e-12, 1 - 1e-12)
    normals = normals_of(sums, scatter, chosen)
    factor = _wishart_factor(normals, rng)
    normal = rng.standard_normal((count, size)) / np.sqrt(normals.kappa)[:, None]
    centre = normals.centre + np.linalg.solve(np.swapaxes(factor, 1, 2), normal[..., None])[..., 0]
    lower = factor * np.sqrt(scatter[chosen.groups])[:, None]
    middle = np.sqrt(chosen.kappa) * (np.swapaxes(factor, 1, 2) @ centre[..., None])[..., 0]
    if isinstance(chosen.scatter, tuple):
        # Clusters without vectors say nothing of it: given it, they are of their prior.
        used = sums.number > 0
        shape, rate = scatter_given((factor[used] ** 2).sum(2), chosen)
        scatter = rng.gamma(shape) / rate
        factor[~used] = lower[~used] / np.sqrt(scatter[chosen.groups])[:, None]
        away = np.linalg.solve(np.swapaxes(factor[~used], 1, 2), middle[~used][..., None])[..., 0]
        centre[~used] = away / np.sqrt(chosen.kappa)
        lower = factor * np.sqrt(scatter[chosen.groups])[:, None]
    i, j = np.tril_indices(size, -1)
    return {
        "alpha": np.asarray(alpha),
        "stick": stick,
        "scatter": np.asarray(scatter),
        "root": np.diagonal(lower, axis1=1, axis2=2) ** 2,
        "cross": lower[:, i, j],
        "middle": middle,
        "factor": factor,
        "centre": centre,
    }


def _concentration(
    number: np.ndarray, prior: tuple[float, float], rng: np.random.Generator
) -> float:
    """The concentration given how many vectors each cluster has, sticks integrated out, on a fine grid."""
    from scipy.special import betaln

    grid = np.geomspace(ALPHA[0], ALPHA[1], ALPHAS)
    first, second = sticks_of(number, grid[:, None])
    # Even steps of the logarithm: one more power.
    logs = prior[0] * np.log(grid) - prior[1] * grid
    logs += (betaln(first, second) - betaln(1.0, grid[:, None])).sum(1)
    at = _drawn(np.exp(logs - logs.max())[None], rng)[0]
    step = np.log(ALPHA[1] / ALPHA[0]) / (ALPHAS - 1)
    return float(grid[at] * np.exp(step * (rng.random() - 0.5)))


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
