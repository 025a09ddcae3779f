"""The posterior of what thousands of units share: a few parameters, and the shares of the classes that they fall into.

One evaluation of all units' evidence for every class is the work. Given the parameters it gives the density of any
shares for next to nothing, so the shares are drawn by many short chains; given the shares the parameters are nearly
normal. A few climbs on some of the units find the top, Newton's steps on all of them its shape; draws of the
parameters from there are weighed by the integral over the shares, which the chains give against that in the middle.

References: Tierney and Kadane, Accurate approximations for posterior moments and marginal densities, JASA 81 (1986);
Tran, Scharth, Pitt and Kohn, Importance sampling squared for Bayesian inference in latent variable models (2013,
arXiv:1309.3339); Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25 (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Dirichlet, Transform, biject_to, constraints

from ..model import Told
from ..priors import ModelError

__all__ = ["Evidence", "Sticks", "Straightened", "Values", "learn"]

Values = dict[str, Tensor]
# Log evidence (class, unit) at the values of all parameters, and whether only some of the units count.
Evidence = Callable[[Values, bool], Tensor]
# Unconstrained values as others of the same volume, in which a ridge that is curved is straight; and the way back.
Straightened = tuple[Callable[[Values], Values], Callable[[Values], Values]]
# Steps of the differences that give the curvature, in units of the prior's spread.
STEP = 1e-4
# Newton's steps at most, and the rise in nats below which there is no other.
NEWTON, RISE = 8, 1e-3
# A curvature less than that of the prior, in its units, is taken for this much.
LEAST = 0.1
# Degrees of freedom of the proposals: heavier than normal by little, since in many dimensions tails cost draws.
NU = 20.0
# Weighed draws before the proposal is moved to where they say, and after.
FIRST, SECOND = 100, 400
# Chains of the shares, how often their steps are fitted to their spread, and steps in between.
CHAINS, STAGES, STEPS = 128, 4, 60
# Share of proposals that a random walk should accept.
ACCEPT = 0.3
# A log density that is none.
LOWEST = -1e100
# Draws that the integral over the shares is taken from.
INTEGRAL = 2000


class Sticks(Transform):
    """From real numbers to shares that sum to one, such that normal numbers give shares even in the simplex.

    Each share is broken off what is left. Where data say little of the shares, their posterior is nearly normal in
    these coordinates, and it is not in logarithms.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        left = torch.exp(torch.cumsum(self._log_left(x), -1))
        before = torch.cat([torch.ones_like(left[..., :1]), left], -1)
        return torch.cat([before[..., :-1] - left, left[..., -1:]], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        behind = y.flip(-1).cumsum(-1).flip(-1)
        log_left = torch.log(behind[..., 1:]) - torch.log(behind[..., :-1])
        return -torch.special.ndtri(torch.exp(log_left * self._pieces(y.shape[-1] - 1)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of normal densities going over into a constant one."""
        constant = math.lgamma(x.shape[-1] + 1) + 0.5 * x.shape[-1] * math.log(2 * math.pi)
        return -0.5 * x.square().sum(-1) - constant

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """One share more than numbers."""
        return torch.Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """One number less than shares."""
        return torch.Size([*shape[:-1], shape[-1] - 1])

    @staticmethod
    def _pieces(count: int) -> Tensor:
        return torch.arange(count, 0, -1, dtype=torch.float64)

    def _log_left(self, x: Tensor) -> Tensor:
        """Log of the share that is left of what was left before."""
        return torch.special.log_ndtr(-x) / self._pieces(x.shape[-1])


class _Latent(NamedTuple):
    name: str
    prior: Any
    onto: Transform
    shape: torch.Size
    size: int


class _Space:
    """Parameters as one unconstrained vector, the shares last."""

    def __init__(self, priors: Mapping[str, Any], straightened: Straightened | None) -> None:
        self.latents = [_latent(name, prior) for name, prior in priors.items()]
        self.shares = self.latents[-1]
        self.dim = sum(latent.size for latent in self.latents) - self.shares.size
        self.bent, self.straight = straightened or (dict, dict)

    def values(self, z: Tensor) -> tuple[Values, Tensor]:
        """Values by name, and the log prior density of the vector."""
        parts = z.split([latent.size for latent in self.latents], -1)
        free = self.bent(
            {x.name: part.reshape(x.shape) for x, part in zip(self.latents, parts, strict=True)}
        )
        found, log = {}, torch.zeros((), dtype=z.dtype)
        for x in self.latents:
            value = x.onto(free[x.name])
            found[x.name] = value
            jacobian = x.onto.log_abs_det_jacobian(free[x.name], value)
            log = log + x.prior.log_prob(value).sum() + jacobian.sum()
        return found, log

    def free(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector of values by name."""
        free = self.straight({x.name: x.onto.inv(values[x.name]) for x in self.latents})
        return torch.cat([free[x.name].reshape(-1) for x in self.latents])

    def drawn(self, seed: int) -> Tensor:
        """Vectors drawn from the prior."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = [
                self.free({x.name: x.prior.sample() for x in self.latents}) for _ in range(200)
            ]
        return torch.stack(drawn)

    def of_shares(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and their log prior densities at vectors of their own, (n, size)."""
        shares = self.shares.onto(z)
        log = self.shares.prior.log_prob(shares) + self.shares.onto.log_abs_det_jacobian(z, shares)
        return shares, log


def _latent(name: str, prior: Any) -> _Latent:
    try:
        onto = Sticks() if isinstance(prior, Dirichlet) else biject_to(prior.support)
    except NotImplementedError as error:
        raise ModelError(
            f"{name} has a prior whose support real numbers cannot be mapped to; take another runner, such as laplace"
        ) from error
    with torch.random.fork_rng(devices=[]):
        shape = onto.inv(prior.sample()).shape
    return _Latent(name, prior, onto, shape, shape.numel())


class _Mixed:
    """Log likelihood of shares of classes, given the evidence of every unit for every class."""

    def __init__(self, evidence: Tensor) -> None:
        top = evidence.amax(0)
        self.scaled, self.top = torch.exp(evidence - top), top.sum()

    def __call__(self, shares: Tensor) -> Tensor:
        """Of one set of shares, or of each of many."""
        return torch.log((shares @ self.scaled).clamp(min=1e-300)).sum(-1) + self.top


class _Posterior:
    """The log density of all units, or of some."""

    def __init__(self, space: _Space, evidence: Evidence) -> None:
        self.space, self.evidence = space, evidence

    def value(self, z: Tensor, few: bool = False) -> Tensor:
        """Log density at a vector."""
        values, log = self.space.values(z)
        return log + _Mixed(self.evidence(values, few))(values[self.space.shares.name])

    def gradient(self, z: Tensor, few: bool = False) -> tuple[float, Tensor]:
        """Log density and its gradient."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            value = self.value(point, few)
            (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope

    def curvature(self, z: Tensor, scale: Tensor) -> Tensor:
        """Minus the second derivatives, in units of the scale, made positive."""
        rows = []
        for i in range(len(z)):
            step = torch.zeros_like(z)
            step[i] = STEP * scale[i]
            ahead, behind = (self.gradient(z + way * step)[1] for way in (1, -1))
            rows.append((behind - ahead) * scale / (2 * STEP))
        matrix = torch.stack(rows)
        values, vectors = torch.linalg.eigh(torch.nan_to_num(0.5 * (matrix + matrix.T)))
        return vectors @ torch.diag(values.clamp(min=LEAST)) @ vectors.T


def learn(
    priors: Mapping[str, Any],
    evidence: Evidence,
    starts: Sequence[Values],
    *,
    draws: int,
    seed: int,
    straightened: Straightened | None = None,
) -> Told:
    """Draws from the posterior of parameters and shares, and its evidence.

    Args:
        priors: distributions by name, that of the shares last.
        evidence: of every unit for every class at values by name, of some units where the second argument is true.
        starts: values to climb from, as far as the prior has such.
        draws: how many.
        seed: everything depends on it alone.
        straightened: coordinates in which the posterior is more nearly normal, and the way back.
    """
    space = _Space(priors, straightened)
    density, rows = _Posterior(space, evidence), space.drawn(seed)
    scale = 1.5 * (rows - rows.median(0).values).abs().median(0).values + 1e-12
    tops = [_climbed(density, _within(rows, space.free(start)), scale) for start in starts]
    z, height = max(tops, key=lambda top: top[1])
    if not height > LOWEST:
        raise FloatingPointError(
            "the likelihood is no finite number anywhere that the prior allows; give errors and noise that are more "
            "than nothing, or a wider prior of them"
        )
    z, matrix = _settled(density, z, scale)
    shape = scale[:, None] * torch.linalg.inv(matrix) * scale
    generator = torch.Generator().manual_seed(seed)
    normal = _Normal.of(z, shape, space.dim)
    with torch.no_grad():
        first = _weighed(density, normal, FIRST, generator)
        second = _weighed(density, _moved(first, normal), SECOND, generator)
    return _told(space, second, draws, generator)


def _within(rows: Tensor, z: Tensor) -> Tensor:
    """The nearest vector among all that lie between draws of the prior.

    From far outside, where a prior has next to nothing, a climb may lose its way.
    """
    z = torch.where(torch.isfinite(z), z, rows.median(0).values)
    return torch.maximum(torch.minimum(z, rows.max(0).values), rows.min(0).values)


def _climbed(density: _Posterior, z: Tensor, scale: Tensor) -> tuple[Tensor, float]:
    """The top that a climb on some of the units comes to, and its height."""
    from scipy.optimize import minimize

    def down(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = density.gradient(z + scale * torch.as_tensor(x), few=True)
        if not (math.isfinite(value) and torch.isfinite(slope).all()):
            return -LOWEST, np.zeros_like(x)
        return -value, -(slope * scale).numpy()

    found = minimize(
        down, np.zeros(len(z)), jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-7}
    )
    return z + scale * torch.as_tensor(found.x), -float(found.fun)


def _settled(density: _Posterior, z: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The top near a point, and the curvature there."""
    value, slope = density.gradient(z)
    matrix = density.curvature(z, scale)
    for _ in range(NEWTON):
        step = scale * torch.linalg.solve(matrix, slope * scale)
        size = 1.0
        new, new_slope = density.gradient(z + step)
        while not new > value and size > 1e-3:
            size *= 0.3
            new, new_slope = density.gradient(z + size * step)
        if not new > value:
            break
        rise, z, value, slope = new - value, z + size * step, new, new_slope
        if rise < RISE:
            break
        if rise > 1.0:
            matrix = density.curvature(z, scale)
    return z, density.curvature(z, scale)


class _Normal(NamedTuple):
    """A middle and a spread of the parameters, and how the shares go with them."""

    middle: Tensor
    factor: Tensor
    shares: Tensor
    slope: Tensor
    left: Tensor

    @classmethod
    def of(cls, z: Tensor, covariance: Tensor, dim: int) -> _Normal:
        """Of a vector and its covariance; the first `dim` numbers are parameters, the rest tell the shares."""
        own, cross = covariance[:dim, :dim], covariance[dim:, :dim]
        slope = torch.linalg.solve(own, cross.T).T
        left = covariance[dim:, dim:] - slope @ cross.T
        return cls(z[:dim], _factor(own), z[dim:], slope, _factor(left))


def _factor(matrix: Tensor) -> Tensor:
    size = torch.diagonal(matrix)
    return torch.linalg.cholesky(0.5 * (matrix + matrix.T) + torch.diag(1e-9 * size))


class _Weighed(NamedTuple):
    """Draws of the parameters and of shares with them, log weights, and log of the integral in the middle."""

    z: Tensor
    shares: Tensor
    log_weights: Tensor
    integral: tuple[float, float]


def _weighed(
    density: _Posterior, normal: _Normal, count: int, generator: torch.Generator
) -> _Weighed:
    """Draws of a Student-t distribution, weighed by the integral over the shares against that in the middle."""
    space, dim = density.space, len(normal.middle)

    def parts(z: Tensor) -> tuple[Tensor, _Mixed]:
        values, log = space.values(z)
        _, own = space.of_shares(z[dim:])
        return log - own, _Mixed(density.evidence(values, False))

    middle = torch.cat([normal.middle, normal.shares])
    _, mixed = parts(middle)
    chains, integral = _shares(space, mixed, normal, generator)
    reference = _log_shares(space, mixed, chains)
    white, proposal = _student(normal.factor, count, generator)
    found, weights, chosen = [], [], []
    for i in range(count):
        z = normal.middle + normal.factor @ white[i]
        moved = chains + normal.slope @ (z - normal.middle)
        log, here = parts(torch.cat([z, normal.shares]))
        ratio = torch.nan_to_num(_log_shares(space, here, moved) - reference, nan=-torch.inf)
        one = torch.multinomial(torch.softmax(ratio, 0), 1, generator=generator)[0]
        found.append(z)
        chosen.append(moved[one])
        weights.append(log + torch.logsumexp(ratio, 0) - math.log(len(ratio)) - proposal[i])
    log_weights = torch.nan_to_num(torch.stack(weights), nan=-torch.inf)
    return _Weighed(torch.stack(found), torch.stack(chosen), log_weights, integral)


def _log_shares(space: _Space, mixed: _Mixed, z: Tensor) -> Tensor:
    shares, log = space.of_shares(z)
    return log + mixed(shares)


def _student(factor: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws before they are multiplied by the factor, and the log densities after."""
    dim = len(factor)
    white = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    half = torch.full((count,), 0.5 * NU, dtype=torch.float64)
    white *= torch.sqrt(0.5 * NU / torch._standard_gamma(half, generator=generator))[:, None]
    constant = math.lgamma((NU + dim) / 2) - math.lgamma(NU / 2) - dim / 2 * math.log(NU * math.pi)
    log = constant - torch.log(torch.diagonal(factor)).sum()
    return white, log - (NU + dim) / 2 * torch.log1p(white.square().sum(1) / NU)


def _shares(
    space: _Space, mixed: _Mixed, normal: _Normal, generator: torch.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """Draws of the shares' own vectors at fixed parameters, and the log of the integral over them with its error."""
    middle, factor = normal.shares, normal.left
    if not len(middle):
        return middle.new_zeros(1, 0), (float(mixed(middle.new_ones(1))), 0.0)
    white, _ = _student(factor, CHAINS, generator)
    z = middle + white @ factor.T
    height = _log_shares(space, mixed, z)
    size = 2.4 / math.sqrt(len(middle))
    for _ in range(STAGES):
        for _ in range(STEPS):
            move = torch.randn(z.shape, dtype=z.dtype, generator=generator) @ factor.T
            new = z + size * move
            there = _log_shares(space, mixed, new)
            chance = torch.rand(len(z), dtype=z.dtype, generator=generator)
            taken = torch.log(chance) < there - height
            z, height = torch.where(taken[:, None], new, z), torch.where(taken, there, height)
            size *= math.exp(0.2 * (float(taken.to(z.dtype).mean()) - ACCEPT))
        middle, factor = z.mean(0), _factor(torch.cov(z.T).reshape(len(middle), -1))
    white, proposal = _student(factor, INTEGRAL, generator)
    points = middle + white @ factor.T
    log = torch.cat([_log_shares(space, mixed, part) for part in points.split(CHAINS)]) - proposal
    return z, _log_mean(log)


def _log_mean(log_weights: Tensor) -> tuple[float, float]:
    """Log of the mean weight and its standard error."""
    top = log_weights.max()
    scaled = torch.exp(log_weights - top)
    mean = scaled.mean()
    return float(top + mean.log()), float(scaled.std() / mean / math.sqrt(len(scaled)))


def _moved(found: _Weighed, normal: _Normal) -> _Normal:
    """The middle and spread that weighed draws tell, as far as they are enough for that."""
    weights = torch.softmax(found.log_weights, 0)
    dim = len(normal.middle)
    effective = float(1 / weights.square().sum())
    # As much of what was as the draws that tell the new are few.
    share = effective / (effective + 5 * dim)
    middle = normal.middle + share * (weights @ found.z - normal.middle)
    white = torch.linalg.solve_triangular(normal.factor, (found.z - middle).T, upper=False)
    seen = share * (white * weights) @ white.T + (1 - share) * torch.eye(dim, dtype=torch.float64)
    shares = normal.shares + normal.slope @ (middle - normal.middle)
    return normal._replace(middle=middle, factor=normal.factor @ _factor(seen), shares=shares)


def _told(space: _Space, found: _Weighed, draws: int, generator: torch.Generator) -> Told:
    smooth, k = _smoothed(found.log_weights)
    weights = torch.softmax(smooth, 0)
    start = torch.rand(1, dtype=torch.float64, generator=generator)
    grid = (torch.arange(draws, dtype=torch.float64) + start) / draws
    places = torch.searchsorted(weights.cumsum(0), grid).clamp(max=len(weights) - 1)
    places = places[torch.randperm(draws, generator=generator)]
    rows = [space.values(torch.cat([found.z[i], found.shares[i]]))[0] for i in places]
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    log, error = _log_mean(found.log_weights)
    effective = float(1 / weights.square().sum())
    return Told(
        values,
        log + found.integral[0],
        math.hypot(error, found.integral[1]),
        None,
        {"pareto_k": k, "importance_ess": effective},
    )


def _smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    """Log weights with a smooth tail, and Pareto's k of it, minus infinity where all weights are alike."""
    from arviz_stats.base import array_stats

    if not torch.isfinite(log_weights).any():
        raise FloatingPointError(
            "no draw near the top of the posterior has a finite density; give a wider prior, above all of the noise, "
            "or another runner, such as laplace"
        )
    # As where every parameter is known.
    if float(log_weights.max() - log_weights.min()) < 1e-9:
        return log_weights, -math.inf
    # ArviZ takes log likelihoods, whose importance ratios are their inverses.
    smooth, k = array_stats.psislw(-log_weights.numpy())
    return torch.as_tensor(np.asarray(smooth)), float(k)
