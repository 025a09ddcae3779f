"""Hamiltonian Monte Carlo of many chains at once, in coordinates where the posterior is about round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Metric", "Moved", "State", "StepSize", "TrajectoryLength", "move", "state_at"]

# An energy error beyond this is a trajectory that left the posterior.
DIVERGED = 1000.0
# Up to here every direction has a scale of its own; beyond, only the directions that stand out.
FULL = 50
STANDING_OUT = 20
# Of a trajectory, in round coordinates: twice around.
LONGEST = 4 * math.pi


class Sloped(Protocol):
    """What chains move on: log density (n,) and its gradient (n, dim) at points."""

    def gradient(self, z: Tensor, /) -> tuple[Tensor, Tensor]:
        """At points (n, dim)."""
        ...


class State(NamedTuple):
    """Where the chains are, with log density and gradient there: (chain, dim), (chain,), (chain, dim)."""

    z: Tensor
    value: Tensor
    gradient: Tensor

    def where(self, taken: Tensor, other: State) -> State:
        """The other state for the chains that take it."""
        rows = taken[..., None]
        return State(
            torch.where(rows, other.z, self.z),
            torch.where(taken, other.value, self.value),
            torch.where(rows, other.gradient, self.gradient),
        )


def state_at(density: Sloped, z: Tensor) -> State:
    """Evaluate the density where the chains are."""
    return State(z, *density.gradient(z))


@dataclass(frozen=True)
class Metric:
    """A linear map from round coordinates u to the posterior's: z = S (I + V (s - 1) Vᵀ) u, plus a constant.

    With every direction in V this is a dense metric, with a few a diagonal one of low-rank correction.

    Attributes:
        scale: S, of every coordinate (dim,).
        vectors: V, orthonormal columns (dim, k).
        stretch: s, of each direction in V (k,).
    """

    scale: Tensor
    vectors: Tensor
    stretch: Tensor

    @classmethod
    def from_covariance(cls, covariance: Tensor, draws: float = math.inf) -> Metric:
        """The metric in which a covariance is the identity.

        Args:
            covariance: (dim, dim).
            draws: number of draws it was estimated from; few of them are shrunk to their scales alone.
        """
        dim = len(covariance)
        scale = torch.sqrt(torch.diagonal(covariance).clamp(min=1e-300))
        correlation = covariance / scale[:, None] / scale
        values, vectors = torch.linalg.eigh(correlation)
        trust = 1.0 if math.isinf(draws) else draws / (draws + 5.0)
        values = (trust * values + (1 - trust)).clamp(min=1e-10)
        if dim > FULL:
            # The directions that do not stand out share the scale that is usual among them.
            usual = values.log().median().exp()
            chosen = (values / usual).log().abs().argsort(descending=True)[:STANDING_OUT]
            values, vectors = values[chosen] / usual, vectors[:, chosen]
            scale = scale * torch.sqrt(usual)
        return cls(scale, vectors, torch.sqrt(values))

    @classmethod
    def from_draws(cls, z: Tensor) -> Metric:
        """The metric of draws (n, dim), that of their scales alone where they are few."""
        n, dim = z.shape
        offset = z - z.mean(0)
        if n < 2 * dim:
            variance = offset.square().mean(0).clamp(min=1e-20)
            return cls(torch.sqrt(variance), z.new_zeros(dim, 0), z.new_zeros(0))
        return cls.from_covariance(offset.T @ offset / (n - 1) + 1e-20 * torch.eye(dim), n / dim)

    def forward(self, u: Tensor) -> Tensor:
        """From round coordinates, (n, dim)."""
        return self.scale * (u + ((u @ self.vectors) * (self.stretch - 1)) @ self.vectors.mT)

    def pull(self, gradient: Tensor) -> Tensor:
        """A gradient in z as one in u."""
        scaled = gradient * self.scale
        return scaled + ((scaled @ self.vectors) * (self.stretch - 1)) @ self.vectors.mT

    def back(self, offset: Tensor) -> Tensor:
        """Offsets in z as round coordinates."""
        scaled = offset / self.scale
        return scaled + ((scaled @ self.vectors) * (1 / self.stretch - 1)) @ self.vectors.mT


class Moved(NamedTuple):
    """What a trajectory did for every chain.

    Attributes:
        state: where the chains are now.
        proposed: where the trajectories ended.
        momentum: there, in round coordinates.
        probability: of acceptance.
        energy: at the start.
        diverging: whether the trajectory left the posterior.
    """

    state: State
    proposed: Tensor
    momentum: Tensor
    probability: Tensor
    energy: Tensor
    diverging: Tensor


def move(
    density: Sloped,
    state: State,
    metric: Metric,
    step: float | Tensor,
    steps: int,
    generator: torch.Generator,
) -> Moved:
    """One leapfrog trajectory of every chain, accepted or not; the step may be each dataset's own."""
    momentum = torch.randn(state.z.shape, dtype=state.z.dtype, generator=generator)
    energy = 0.5 * momentum.square().sum(-1) - state.value
    z, value, gradient = state
    momentum = momentum + 0.5 * step * metric.pull(gradient)
    for i in range(steps):
        z = z + step * metric.forward(momentum)
        value, gradient = density.gradient(z)
        last = i + 1 == steps
        momentum = momentum + (0.5 if last else 1.0) * step * metric.pull(gradient)
    error = 0.5 * momentum.square().sum(-1) - value - energy
    error = torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
    probability = torch.exp(-error.clamp(min=0))
    uniform = torch.rand(value.shape, dtype=z.dtype, generator=generator)
    new = state.where(uniform < probability, State(z, value, gradient))
    return Moved(new, z, momentum, probability, energy, error > DIVERGED)


class StepSize:
    """Step size that the chains' mean acceptance is steered with."""

    def __init__(self, first: float, target: float) -> None:
        self.log_step, self.target, self.t = math.log(first), target, 0

    def update(self, probability: Tensor) -> None:
        """Learn from one transition of all chains."""
        self.t += 1
        rate = 2.0 / math.sqrt(self.t)
        self.log_step += rate * (float(probability.mean()) - self.target)

    @property
    def value(self) -> float:
        """The step size."""
        return math.exp(self.log_step)


class TrajectoryLength:
    """Trajectory length by the ChEES criterion: ends far from starts, in square distance from the mean.

    References: Hoffman, Radul and Sountsov, An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
    Monte Carlo, AISTATS (2021).
    """

    def __init__(self, first: float = 0.5 * math.pi, rate: float = 0.05) -> None:
        self.log_length, self.rate, self.second, self.t = math.log(first), rate, 0.0, 0

    def update(self, before: Tensor, moved: Moved, metric: Metric, jitter: float) -> None:
        """Learn from one transition of all chains."""
        fine = torch.isfinite(moved.proposed).all(1) & torch.isfinite(moved.momentum).all(1)
        if fine.sum() < 2:
            return
        weight = torch.where(fine, moved.probability, 0.0)
        start = metric.back(before[fine] - before[fine].mean(0))
        proposed = moved.proposed[fine]
        center = (weight[fine] @ proposed) / weight[fine].sum().clamp(min=1e-12)
        end = metric.back(proposed - center)
        gain = end.square().sum(1) - start.square().sum(1)
        slope = gain * (end * moved.momentum[fine]).sum(1)
        total = weight[fine].sum()
        gradient = float((weight[fine] * slope).sum() / total) if total > 0 else 0.0
        gradient *= jitter * self.value
        if not math.isfinite(gradient):
            return
        self.t += 1
        self.second = 0.95 * self.second + 0.05 * gradient**2
        size = math.sqrt(self.second / (1 - 0.95**self.t)) + 1e-12
        self.log_length += self.rate * gradient / size
        self.log_length = min(self.log_length, math.log(LONGEST))

    @property
    def value(self) -> float:
        """The mean length of a trajectory, in round coordinates."""
        return math.exp(self.log_length)
