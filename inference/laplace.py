"""Laplace approximation made honest: every basin found, and importance sampling to correct its shape.

Many starts climb to their modes together. A mixture of Student-t distributions with the modes' curvatures proposes
draws, is refitted to the weighted draws a few times, and the last weights correct it. Their Pareto k says how far to
trust the answer: in a few dimensions it is as good as exact, in many it fails and says so.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .density import Density
from .runs import Draws, Progress, RunError

__all__ = ["Mixture", "find_modes", "run"]

# Heavy tails keep the weights bounded where the posterior has shoulders, in few dimensions; in many only a Gaussian
# posterior can be sampled so, and only by a proposal that is nearly Gaussian itself. The best of these is taken.
DEGREES_OF_FREEDOM = (5.0, 30.0, 1e4)
# Below this many heavy tails cost little (a fifth of the draws on a Gaussian in five dimensions), and a proposal can
# be grown component by component.
FEW_DIMENSIONS = 8
# Share of effective draws at which a proposal is good enough, and rounds without a gain after which it is left.
ENOUGH = 0.8
PATIENCE = 3
MOST_DIMENSIONS_GROWN = 20
# A basin e^-12 below the best holds less than a draw in a hundred thousand.
NEGLIGIBLE = 12.0
SAME_MODE = 0.5
MOST_ALTERNATIVES = 64
SPREAD_DRAWS = 32

Held = dict[str, Tensor]
# Where it is, its log density, and the Cholesky factor of its covariance.
Mode = tuple[Tensor, float, Tensor]


@dataclass(frozen=True)
class Mixture:
    """A mixture of multivariate Student-t distributions.

    Attributes:
        weights: of the components (k,).
        means: (k, dim).
        factors: Cholesky factors of their scale matrices (k, dim, dim).
        nu: degrees of freedom.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    nu: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points (n, dim)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=generator)
        gamma = torch.distributions.Chi2(torch.tensor(self.nu, dtype=torch.float64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            stretch = torch.sqrt(self.nu / gamma.sample((n,)))
        return self.means[which] + stretch[:, None] * (
            self.factors[which] @ normal[..., None]
        ).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z (n, dim)."""
        return torch.logsumexp(self.component_log_prob(z) + self.weights.log(), -1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log density of every component at z, (n, k)."""
        dim, nu = self.means.shape[1], self.nu
        offset = (z[:, None] - self.means).permute(1, 2, 0)
        white = torch.linalg.solve_triangular(self.factors, offset, upper=False)
        square = (white**2).sum(1).T
        volume = torch.log(torch.diagonal(self.factors, dim1=-2, dim2=-1)).sum(-1)
        constant = (
            math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        )
        return constant - volume - (nu + dim) / 2 * torch.log1p(square / nu)


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int = 500,
    starts: int = 32,
    proposals: int = 8000,
    refits: int = 10,
) -> Draws:
    """Draw independently from the posterior by importance resampling around its modes.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used, the run takes seconds.
        chains: groups that the draws are given in.
        draws: draws a group.
        starts: points to climb from, drawn from the prior.
        proposals: importance draws of the last round.
        refits: most rounds of growing the proposal where it falls short of the posterior.
    """
    if min(chains, draws, starts, proposals) < 1:
        raise RunError("chains, draws, starts and proposals must be at least 1")
    report = progress or (lambda done, total, text: None)
    if density.dim == 0:
        return _no_latents(density, chains, draws)
    generator = torch.Generator().manual_seed(seed)
    report(0, 3, "climbing to the modes")
    modes, heights, factors = find_modes(density, starts, seed)
    report(1, 3, "fitting the proposal")
    mixture = _best_proposal(density, modes, heights, factors, proposals // 4, refits, generator)
    report(2, 3, "drawing")
    z, log_weights = _weigh(density, mixture, proposals, generator)
    evidence, error = _evidence(log_weights)
    smooth, k = _smooth(log_weights)
    weights = torch.softmax(smooth, 0)
    chosen = _resample(weights, chains * draws, generator)
    report(3, 3, "done")
    stats = {"lp": density.log_prob(z[chosen]).detach().numpy().reshape(chains, draws)}
    shares = _basin_weights(modes, factors, z, weights)
    attrs = {
        "pareto_k": k,
        "importance_ess": float(1 / (weights**2).sum()),
        "density_path": density.path,
        "basins": len(modes),
        "basin_weights": json.dumps(shares),
    }
    return Draws(z[chosen].reshape(chains, draws, -1), stats, evidence, error, attrs)


def _no_latents(density: Density, chains: int, draws: int) -> Draws:
    """A model whose latents are all discrete: the sum is the answer."""
    z = torch.zeros(chains, draws, 0, dtype=torch.float64)
    value = float(density.log_prob(torch.zeros(0, dtype=torch.float64)))
    stats = {"lp": np.full((chains, draws), value)}
    return Draws(z, stats, value, 0.0, {"pareto_k": -math.inf, "basins": 1})


def find_modes(density: Density, starts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct modes (k, dim), their log densities (k,) and Cholesky factors of their covariances.

    Adam from many starts at once, then damped Newton steps from the best of each basin. Where the model has a few
    alternatives for the whole dataset, such as graphs, every one of them has its own mode.
    """
    choices = _alternatives(density)
    found = (
        _modes_of_alternatives(density, choices, seed) if choices else _modes(density, starts, seed)
    )
    best = max(value for _, value, _ in found)
    found = [f for f in found if f[1] > best - NEGLIGIBLE]
    return (
        torch.stack([f[0] for f in found]),
        torch.tensor([f[1] for f in found], dtype=torch.float64),
        torch.stack([f[2] for f in found]),
    )


def _alternatives(density: Density) -> list[Held]:
    """Every combination of the alternatives, none where there are none or too many to climb each."""
    sites = density.alternatives
    if not sites or math.prod(site.size or 1 for site in sites) > MOST_ALTERNATIVES:
        return []
    ranges = [range(site.size or 1) for site in sites]
    return [
        {s.name: torch.full((1, *s.shape), value) for s, value in zip(sites, values, strict=True)}
        for values in itertools.product(*ranges)
    ]


def _modes_of_alternatives(density: Density, choices: list[Held], seed: int) -> list[Mode]:
    each = 3
    first = density.initial(SPREAD_DRAWS, seed)
    scale = _spread(first)
    start = first[:each].repeat(len(choices), 1)
    held = {
        name: torch.cat([choice[name] for choice in choices]).repeat_interleave(each, 0)
        for name in choices[0]
    }
    z = _climb(density, start, scale, held)
    height = torch.nan_to_num(density.gradient(z, held)[0], nan=-torch.inf).reshape(-1, each)
    best = height.argmax(1) + each * torch.arange(len(choices))
    found = [_newton(density, z[i], scale, choice) for i, choice in zip(best, choices, strict=True)]
    return [mode for mode in found if math.isfinite(mode[1])]


def _modes(density: Density, starts: int, seed: int) -> list[Mode]:
    first = density.initial(max(starts, SPREAD_DRAWS), seed)
    scale = _spread(first)
    z = _climb(density, first[:starts], scale)
    height, _ = density.gradient(z)
    height = torch.nan_to_num(height, nan=-torch.inf)
    order = torch.argsort(height, descending=True)
    if not torch.isfinite(height[order[0]]):
        raise RunError(
            "the density is not finite anywhere near draws from the prior; check the prior"
        )
    found: list[Mode] = []
    for i in order.tolist():
        if len(found) == 8 or (found and float(height[i]) < found[0][1] - 3 * NEGLIGIBLE):
            break
        if any(_near(z[i], mode, factor) for mode, _, factor in found):
            continue
        mode, value, factor = _newton(density, z[i], scale)
        if math.isfinite(value) and not any(_near(mode, m, f) for m, _, f in found):
            found.append((mode, value, factor))
    if not found:
        raise RunError("no mode with a finite density was found; check the prior")
    return found


def _spread(points: Tensor) -> Tensor:
    """Spread of the prior along every axis, so that climbing does not depend on the units."""
    middle = points.median(0).values
    spread: Tensor = (points - middle).abs().median(0).values
    return torch.where(spread > 0, 1.5 * spread, torch.ones_like(spread))


def _climb(
    density: Density,
    z: Tensor,
    scale: Tensor,
    held: Held | None = None,
    steps: int = 250,
    rate: float = 0.15,
) -> Tensor:
    """Adam with a decaying rate, until nothing climbs; points whose gradient is not finite stay where they are."""
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    checked = torch.full((len(z),), -torch.inf, dtype=torch.float64)
    for step in range(1, steps + 1):
        height, gradient = density.gradient(z, held)
        if step % 40 == 0:
            # Newton steps finish what is within a tenth of a nat of its mode.
            height = torch.nan_to_num(height, nan=-torch.inf)
            if not (height > checked + 0.1).any():
                break
            checked = torch.maximum(height, checked)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        gradient = gradient * scale
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        unbiased = (first / (1 - 0.9**step)) / (torch.sqrt(second / (1 - 0.99**step)) + 1e-12)
        z = z + scale * rate * (0.5 + 0.5 * math.cos(math.pi * step / steps)) * unbiased
    return z


def _curvature(
    density: Density, z: Tensor, scale: Tensor, held: Held | None
) -> tuple[Tensor, Tensor]:
    """Eigenvalues of minus the Hessian in units of the scale, made positive, and its eigenvectors."""
    hessian = density.hessian(z, held, 1e-4 * scale) * scale[:, None] * scale
    hessian = torch.nan_to_num(0.5 * (hessian + hessian.T), nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(-hessian)
    # In units of the prior's spread no direction is wider than a few of these.
    return values.abs().clamp(min=1e-2), vectors


def _newton(
    density: Density, z: Tensor, scale: Tensor, held: Held | None = None, steps: int = 12
) -> Mode:
    (value, *_), (gradient, *_) = density.gradient(z[None], held)
    fixed = {k: v.expand(4, *v.shape[1:]) for k, v in (held or {}).items()}
    damping = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=z.dtype)[:, None]
    for _ in range(steps):
        values, vectors = _curvature(density, z, scale, held)
        step = scale * (vectors @ ((vectors.T @ (gradient * scale)) / values))
        trials = z + damping * step
        heights, gradients = density.gradient(trials, fixed)
        best = int(torch.nan_to_num(heights, nan=-torch.inf).argmax())
        gained = float(heights[best] - value)
        if not gained > 0:
            break
        z, value, gradient = trials[best], heights[best], gradients[best]
        if gained < 1e-9:
            break
    values, vectors = _curvature(density, z, scale, held)
    covariance = (vectors / values) @ vectors.T
    factor = torch.linalg.cholesky(0.5 * (covariance + covariance.T))
    return z, float(value), scale[:, None] * factor


def _near(z: Tensor, mode: Tensor, factor: Tensor) -> bool:
    white = torch.linalg.solve_triangular(factor, (z - mode)[:, None], upper=False)
    return float((white**2).mean()) < SAME_MODE**2


def _start_mixture(modes: Tensor, heights: Tensor, factors: Tensor, nu: float) -> Mixture:
    volume = torch.log(torch.diagonal(factors, dim1=-2, dim2=-1)).sum(-1)
    weights = torch.softmax(heights + volume, 0).clamp(min=0.1 / len(modes))
    return Mixture(weights / weights.sum(), modes, factors, nu)


class _Pool:
    """Draws from every proposal tried so far, weighed against all of them together.

    A proposal judged by its own draws hides what it misses; the others' draws show it.
    """

    def __init__(self, density: Density, n: int, generator: torch.Generator) -> None:
        self.density, self.n, self.generator = density, n, generator
        self.proposals: list[Mixture] = []
        self.z = torch.zeros(0, density.dim, dtype=torch.float64)
        self.value = self.log_sum = torch.zeros(0, dtype=torch.float64)

    def add(self, mixture: Mixture) -> None:
        """Draw from a further proposal."""
        z = mixture.sample(self.n, self.generator)
        self.proposals.append(mixture)
        here = torch.stack([m.log_prob(z) for m in self.proposals])
        there = torch.logaddexp(self.log_sum, mixture.log_prob(self.z))
        self.log_sum = torch.cat([there, torch.logsumexp(here, 0)])
        self.z = torch.cat([self.z, z])
        self.value = torch.cat([self.value, _log_density(self.density, z)])

    @property
    def log_weights(self) -> Tensor:
        """Of every draw, against the mean of all proposals."""
        return self.value - self.log_sum + math.log(len(self.proposals))

    def efficiency(self, mixture: Mixture) -> float:
        """Share of effective draws that a proposal would give: Z / E[p / q] over the posterior."""
        weights = self.log_weights
        if not torch.isfinite(weights).any():
            return 0.0
        ratio = self.value - mixture.log_prob(self.z)
        total = torch.logsumexp(weights, 0)
        return math.exp(2 * total - math.log(len(weights)) - torch.logsumexp(weights + ratio, 0))


def _best_proposal(
    density: Density,
    modes: Tensor,
    heights: Tensor,
    factors: Tensor,
    n: int,
    refits: int,
    generator: torch.Generator,
) -> Mixture:
    """The mixture with the most effective draws: of several tails, then grown where it falls short."""
    few = modes.shape[1] < FEW_DIMENSIONS
    pool = _Pool(density, n, generator)
    for nu in DEGREES_OF_FREEDOM[: 1 if few else None]:
        pool.add(_start_mixture(modes, heights, factors, nu))
    mixture = max(pool.proposals, key=pool.efficiency)
    reached, stale = pool.efficiency(mixture), 0
    for _ in range(refits):
        if reached > ENOUGH or stale == (PATIENCE if few else 1):
            break
        if few:
            mixture = _grown(mixture, pool.z, pool.log_weights)
        mixture = _refit(mixture, pool.z, pool.log_weights)
        pool.add(mixture)
        now = pool.efficiency(mixture)
        # A low one is no reason to stop: what no draw has found yet does not count against it.
        stale = 0 if now > 1.05 * reached or (few and now < 0.5) else stale + 1
        reached = now
    return max(pool.proposals, key=pool.efficiency)


def _grown(mixture: Mixture, z: Tensor, log_weights: Tensor) -> Mixture:
    """The mixture with one more component where the weights are largest (Raftery and Bao 2010).

    A parameter near the edge of its range gives a posterior with a long shelf, which no single component covers.
    """
    if not torch.isfinite(log_weights).any():
        return mixture
    metric, info = torch.linalg.cholesky_ex(torch.cov(z.T).reshape(z.shape[1], -1))
    if int(info):
        return mixture
    center = z[log_weights.argmax()]
    away = torch.linalg.solve_triangular(metric, (z - center).T, upper=False)
    near = (away**2).sum(0).argsort()[: max(len(z) // 10, 5 * z.shape[1])]
    weights = 0.5 * (torch.softmax(log_weights[near], 0) + 1 / len(near))
    offset = z[near] - center
    covariance = (weights[:, None] * offset).T @ offset
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        return mixture
    shares = torch.cat([mixture.weights, mixture.weights.mean()[None]])
    return Mixture(
        shares / shares.sum(),
        torch.cat([mixture.means, center[None]]),
        torch.cat([mixture.factors, factor[None]]),
        mixture.nu,
    )


def _effective(log_weights: Tensor) -> float:
    if not torch.isfinite(log_weights).any():
        return 0.0
    return float(1 / (torch.softmax(log_weights, 0) ** 2).sum())


def _weigh(
    density: Density, mixture: Mixture, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    z = mixture.sample(n, generator)
    return z, _log_density(density, z) - mixture.log_prob(z)


def _log_density(density: Density, z: Tensor) -> Tensor:
    """Log density at every point, nothing where it does not exist."""
    with torch.no_grad():
        value = torch.cat([density.log_prob(part) for part in z.split(4096)])
    return torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf)


def _refit(mixture: Mixture, z: Tensor, log_weights: Tensor) -> Mixture:
    """Move every component to the weighted mean and covariance of the draws that it explains."""
    if not torch.isfinite(log_weights).any():
        return mixture
    # Tempered where a few draws carry all the weight, so that the next proposal is not a spike on them.
    weights = torch.softmax(log_weights, 0)
    power = 1.0
    while _effective(power * log_weights) < 10 * z.shape[1] and power > 0.05:
        power *= 0.7
        weights = torch.softmax(power * log_weights, 0)
    share = torch.softmax(mixture.component_log_prob(z) + mixture.weights.log(), -1)
    share = share * weights[:, None]
    total = share.sum(0)
    means, factors = mixture.means.clone(), mixture.factors.clone()
    for k in range(len(means)):
        part = share[:, k] / total[k].clamp(min=1e-300)
        if float(1 / (part**2).sum()) < 5 * z.shape[1]:
            continue
        mean = part @ z
        offset = z - mean
        covariance = (part[:, None] * offset).T @ offset
        factor, info = torch.linalg.cholesky_ex(
            covariance + torch.diag(1e-10 * torch.diagonal(covariance))
        )
        if int(info) == 0:
            means[k], factors[k] = mean, factor
    weights = total.clamp(min=0.1 / len(total))
    return Mixture(weights / weights.sum(), means, factors, mixture.nu)


def _evidence(log_weights: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its standard error, by the delta method."""
    n = len(log_weights)
    top = log_weights.max()
    scaled = torch.exp(log_weights - top)
    mean = scaled.mean()
    return float(top + mean.log()), float(scaled.std() / mean / math.sqrt(n))


def _smooth(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed log weights and the shape of their tail."""
    from arviz_stats.base import array_stats

    # ArviZ takes log likelihoods, whose importance ratios are their inverses.
    smooth, k = array_stats.psislw(-log_weights.numpy())
    return torch.as_tensor(np.asarray(smooth)), float(k)


def _resample(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling, then shuffled so that groups are alike."""
    start = torch.rand(1, dtype=torch.float64, generator=generator)
    grid = (torch.arange(n, dtype=torch.float64) + start) / n
    chosen = torch.searchsorted(torch.cumsum(weights, 0), grid).clamp(max=len(weights) - 1)
    return chosen[torch.randperm(n, generator=generator)]


def _basin_weights(modes: Tensor, factors: Tensor, z: Tensor, weights: Tensor) -> list[float]:
    """Posterior weight of each basin: every draw belongs to the mode that is nearest in its own metric."""
    even = torch.full((len(modes),), 1 / len(modes), dtype=torch.float64)
    nearest = Mixture(even, modes, factors, 5.0).component_log_prob(z).argmax(-1)
    return [round(float(weights[nearest == k].sum()), 4) for k in range(len(modes))]
