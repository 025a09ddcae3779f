"""A mixture of Student-t distributions that proposes draws from a posterior, grown until it covers it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .density import Density

__all__ = [
    "Mixture",
    "Pool",
    "best_proposal",
    "effective_draws",
    "start_mixture",
    "taught",
    "weigh",
]

# Heavy tails keep the weights bounded where the posterior has shoulders, in few dimensions; in many only a Gaussian
# posterior can be sampled so, and only by a proposal that is nearly Gaussian itself. The best of these is taken.
DEGREES_OF_FREEDOM = (5.0, 30.0, 1e4)
# Below this many heavy tails cost little (a fifth of the draws on a Gaussian in five dimensions), and a proposal can
# be grown component by component.
FEW_DIMENSIONS = 8
# Share of effective draws at which a proposal is good enough, and rounds without a gain after which it is left.
ENOUGH = 0.8
PATIENCE = 3
# Log of how much thinner than the posterior, against the mean, a proposal may be at any draw.
THIN = 2.0


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
        halves = torch.full((n,), 0.5 * self.nu, dtype=torch.float64)
        gamma = torch._standard_gamma(halves, generator=generator)
        scaled = torch.sqrt(0.5 * self.nu / gamma)[:, None] * normal
        # All at once by each component, which is less work than to gather a factor for each.
        every = (scaled @ self._factors).reshape(n, *self.means.shape) + self.means
        return every[torch.arange(n), which]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z (n, dim)."""
        return torch.logsumexp(self.component_log_prob(z) + self.weights.log(), -1)

    def component_log_prob(self, z: Tensor) -> Tensor:
        """Log density of every component at z, (n, k)."""
        middle, offset, inverse, constant = self._whitening
        white = (z - middle) @ inverse - offset
        square = white.square().reshape(len(z), *self.means.shape).sum(-1)
        return constant - (self.nu + self.means.shape[1]) / 2 * torch.log1p(square / self.nu)

    @cached_property
    def _factors(self) -> Tensor:
        """The factors side by side, (dim, k dim)."""
        return self.factors.flatten(0, 1).T.contiguous()

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A point in the middle; from there every component's mean and inverse factor; and what does not change."""
        dim, nu = self.means.shape[1], self.nu
        inverse = torch.linalg.solve_triangular(
            self.factors, torch.eye(dim, dtype=self.means.dtype), upper=False
        )
        middle = self.means[self.weights.argmax()]
        offset = (inverse @ (self.means - middle)[..., None]).flatten()
        volume = torch.log(torch.diagonal(self.factors, dim1=-2, dim2=-1)).sum(-1)
        constant = (
            math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2) - dim / 2 * math.log(nu * math.pi)
        )
        return middle, offset, inverse.flatten(0, 1).T.contiguous(), constant - volume


def start_mixture(modes: Tensor, heights: Tensor, factors: Tensor, nu: float) -> Mixture:
    """The mixture of the modes' Laplace approximations, no mode below a tenth of its even share."""
    volume = torch.log(torch.diagonal(factors, dim1=-2, dim2=-1)).sum(-1)
    weights = torch.softmax(heights + volume, 0).clamp(min=0.1 / len(modes))
    return Mixture(weights / weights.sum(), modes, factors, nu)


class Pool:
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
        self.value = torch.cat([self.value, self.density.values(z)])

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


def best_proposal(
    pool: Pool, modes: Tensor, heights: Tensor, factors: Tensor, refits: int
) -> Mixture:
    """The mixture with the most effective draws: of several tails, then grown where it falls short."""
    few = modes.shape[1] < FEW_DIMENSIONS
    for nu in DEGREES_OF_FREEDOM[: 1 if few else None]:
        pool.add(start_mixture(modes, heights, factors, nu))
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


def taught(mixture: Mixture, z: Tensor, value: Tensor, most: int = 3) -> Mixture:
    """A mixture refitted to draws from the posterior itself, and grown where it has too little of them.

    Args:
        mixture: what proposed them, or where to begin.
        z: draws (n, dim).
        value: log density at each, up to a constant.
        most: components to add at most.
    """
    for _ in range(most):
        ratio = value - mixture.log_prob(z)
        center = z[ratio.argmax()]
        if float(ratio.max() - torch.logsumexp(ratio, 0) + math.log(len(z))) < THIN:
            break
        metric, info = torch.linalg.cholesky_ex(torch.cov(z.T).reshape(z.shape[1], -1))
        if int(info):
            break
        away = torch.linalg.solve_triangular(metric, (z - center).T, upper=False)
        near = z[(away**2).sum(0).argsort()[: max(len(z) // 20, 5 * z.shape[1])]]
        factor, info = torch.linalg.cholesky_ex(torch.cov(near.T).reshape(z.shape[1], -1))
        if int(info):
            break
        share = len(near) / len(z)
        mixture = Mixture(
            torch.cat([(1 - share) * mixture.weights, torch.tensor([share], dtype=z.dtype)]),
            torch.cat([mixture.means, near.mean(0)[None]]),
            torch.cat([mixture.factors, factor[None]]),
            mixture.nu,
        )
        mixture = _refit(mixture, z, torch.zeros(len(z), dtype=z.dtype))
    return mixture


def effective_draws(log_weights: Tensor) -> float:
    """How many equally weighted draws these weighted ones are worth."""
    if not torch.isfinite(log_weights).any():
        return 0.0
    return float(1 / (torch.softmax(log_weights, 0) ** 2).sum())


def weigh(
    density: Density, mixture: Mixture, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws of a proposal and their log importance weights."""
    z = mixture.sample(n, generator)
    return z, density.values(z) - mixture.log_prob(z)


def _refit(mixture: Mixture, z: Tensor, log_weights: Tensor) -> Mixture:
    """Move every component to the weighted mean and covariance of the draws that it explains."""
    if not torch.isfinite(log_weights).any():
        return mixture
    # Tempered where a few draws carry all the weight, so that the next proposal is not a spike on them.
    weights = torch.softmax(log_weights, 0)
    power = 1.0
    while effective_draws(power * log_weights) < 10 * z.shape[1] and power > 0.05:
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
