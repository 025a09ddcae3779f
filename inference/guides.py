"""Guides: families of distributions over a flat vector, with parameters to be fitted to a posterior.

Every guide lives in coordinates u that a first look at the posterior has made round, z = center + factor u, and begins
as a standard normal there. The families do not change by that, but one rate of learning suits all their parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["GUIDES", "Flow", "Full", "Guide", "LowRank", "MeanField"]

LOG_2_PI = math.log(2 * math.pi)
# Of a flow, and the log of what a single one stretches a coordinate by at most.
LAYERS, MOST_STRETCH = 3, 3.0


class Guide(nn.Module):
    """A distribution over the flat vector; called with points, it gives their log density.

    Attributes:
        rate: of learning that suits its parameters.
        center: origin of the round coordinates (dim,).
        factor: their axes, lower triangular (dim, dim).
        noise: standard normal numbers that a draw is made of.

    Args:
        center: of a normal approximation to begin with (dim,).
        factor: Cholesky factor of its covariance (dim, dim).
        rank: of a low-rank guide, 0 for its own choice; others have none.
    """

    center: Tensor
    factor: Tensor

    rate = 0.03

    def __init__(self, center: Tensor, factor: Tensor, rank: int = 0) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("factor", factor)
        self.noise = len(center)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws (n, dim) made of standard normal noise, and their log density, for the gradient of the bound.

        Both are differentiable in the parameters through the draws alone: the rest of the gradient is zero on average,
        and left out it does not add noise.
        """
        z = self.center + self._push(noise) @ self.factor.T
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        return z, functional_call(self, fixed, (z,))

    def forward(self, z: Tensor) -> Tensor:
        """Log density at z (n, dim)."""
        u = torch.linalg.solve_triangular(self.factor, (z - self.center).T, upper=False).T
        return self._round_log_prob(u) - torch.diagonal(self.factor).log().sum()

    def _push(self, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def _round_log_prob(self, u: Tensor) -> Tensor:
        raise NotImplementedError


def _normal(white: Tensor) -> Tensor:
    return -0.5 * (white.square() + LOG_2_PI).sum(-1)


class MeanField(Guide):
    """Independent normal distributions along the axes of z."""

    def __init__(self, center: Tensor, factor: Tensor, rank: int = 0) -> None:
        precision = torch.cholesky_inverse(factor)
        super().__init__(center, torch.diag(torch.diagonal(precision).rsqrt()))
        self.mean = nn.Parameter(torch.zeros_like(center))
        self.log_scale = nn.Parameter(torch.zeros_like(center))

    def _push(self, noise: Tensor) -> Tensor:
        return self.mean + self.log_scale.exp() * noise

    def _round_log_prob(self, u: Tensor) -> Tensor:
        return _normal((u - self.mean) / self.log_scale.exp()) - self.log_scale.sum()


class LowRank(Guide):
    """A normal distribution whose covariance is diagonal but for a few directions.

    It begins as the principal components of the first look.
    """

    def __init__(self, center: Tensor, factor: Tensor, rank: int = 0) -> None:
        covariance = factor @ factor.T
        scale = torch.diagonal(covariance).sqrt()
        super().__init__(center, torch.diag(scale))
        dim = len(center)
        rank = min(rank or math.ceil(math.sqrt(dim)), dim)
        self.noise = dim + rank
        values, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])
        left = values[: dim - rank].mean() if rank < dim else values[0]
        stands_out = (values[dim - rank :] - left).clamp(min=1e-4).sqrt()
        wide = vectors[:, dim - rank :] * stands_out
        narrow = (1 - wide.square().sum(1)).clamp(min=1e-2)
        self.mean = nn.Parameter(torch.zeros_like(center))
        self.log_scale = nn.Parameter(0.5 * narrow.log())
        self.wide = nn.Parameter(wide)

    def _push(self, noise: Tensor) -> Tensor:
        own, common = noise.split(list(self.wide.shape), 1)
        return self.mean + self.log_scale.exp() * own + common @ self.wide.T

    def _round_log_prob(self, u: Tensor) -> Tensor:
        """By Woodbury's identity, so that no matrix is larger than the rank."""
        scale = self.log_scale.exp()
        white, tall = (u - self.mean) / scale, self.wide / scale[:, None]
        small = torch.eye(tall.shape[1], dtype=u.dtype) + tall.T @ tall
        root = torch.linalg.cholesky(small)
        inner = torch.linalg.solve_triangular(root, tall.T @ white.T, upper=False)
        volume = self.log_scale.sum() + torch.diagonal(root).log().sum()
        return _normal(white) + 0.5 * inner.square().sum(0) - volume


class Full(Guide):
    """A normal distribution of any covariance."""

    def __init__(self, center: Tensor, factor: Tensor, rank: int = 0) -> None:
        super().__init__(center, factor)
        self.mean = nn.Parameter(torch.zeros_like(center))
        self.log_scale = nn.Parameter(torch.zeros_like(center))
        self.below = nn.Parameter(torch.zeros_like(factor))

    def _root(self) -> Tensor:
        return torch.tril(self.below, -1) + torch.diag(self.log_scale.exp())

    def _push(self, noise: Tensor) -> Tensor:
        return self.mean + noise @ self._root().T

    def _round_log_prob(self, u: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self._root(), (u - self.mean).T, upper=False).T
        return _normal(white) - self.log_scale.sum()


class Autoregressive(nn.Module):
    """Every coordinate shifted and stretched by amounts that a network reads off those before it.

    The network's weights are masked so that it reads no others. It ends in zeros, so that it begins as the identity.
    """

    reads: Tensor
    read: Tensor

    def __init__(self, order: Tensor, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        dim = len(order)
        # A hidden unit of degree d reads the coordinates up to d and is read by those after it.
        degree = torch.arange(hidden) % max(1, dim - 1)
        reads = (order <= degree[:, None]).to(torch.float64)
        read = (degree < order[:, None]).to(torch.float64).repeat(2, 1)
        self.register_buffer("reads", reads)
        self.register_buffer("read", read)
        normal = torch.randn(hidden, dim + 1, dtype=torch.float64, generator=generator)
        self.into = nn.Parameter(normal[:, 1:] / reads.sum(1, keepdim=True).sqrt())
        self.bias = nn.Parameter(normal[:, 0].clone())
        self.out = nn.Parameter(torch.zeros_like(read))
        self.shift = nn.Parameter(torch.zeros(2 * dim, dtype=torch.float64))

    def amounts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts and logs of stretches (n, dim)."""
        hidden = nn.functional.silu(u @ (self.into * self.reads).T + self.bias)
        shift, stretch = (hidden @ (self.out * self.read).T + self.shift).chunk(2, -1)
        return shift, MOST_STRETCH * torch.tanh(stretch / MOST_STRETCH)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and stretch; the log of what volumes are stretched by."""
        shift, stretch = self.amounts(u)
        return u * stretch.exp() + shift, stretch.sum(-1)

    def back(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Undo it, one coordinate further with every pass."""
        found = torch.zeros_like(u)
        for _ in range(u.shape[1]):
            shift, stretch = self.amounts(found)
            found = (u - shift) * (-stretch).exp()
        return found, self.amounts(found)[1].sum(-1)


class Flow(Guide):
    """A normal distribution bent by autoregressive layers that take the coordinates in either order by turns.

    In one dimension it is a normal distribution. On a banana and a funnel coupling layers came less close, and on these
    and a domain wall neural splines no closer in three times the time.

    References: Kingma et al., Improving variational inference with inverse autoregressive flow, arXiv 1606.04934
    (2016).
    """

    rate = 0.005

    def __init__(self, center: Tensor, factor: Tensor, rank: int = 0) -> None:
        super().__init__(center, factor)
        order = torch.arange(len(center))
        generator = torch.Generator().manual_seed(0)
        hidden = max(64, 2 * len(center))
        self.layers: Any = nn.ModuleList(
            Autoregressive(order.flip(0) if i % 2 else order, hidden, generator)
            for i in range(LAYERS)
        )

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log density on the way: to go back would take a pass for each dimension."""
        u, log_q = noise, _normal(noise) - torch.diagonal(self.factor).log().sum()
        for layer in self.layers:
            u, stretched = layer(u)
            log_q = log_q - stretched
        return self.center + u @ self.factor.T, log_q

    def _round_log_prob(self, u: Tensor) -> Tensor:
        volume = torch.zeros_like(u[:, 0])
        for layer in reversed(self.layers):
            u, stretched = layer.back(u)
            volume = volume + stretched
        return _normal(u) - volume


GUIDES: dict[str, type[Guide]] = {
    "normal": MeanField,
    "lowrank": LowRank,
    "full": Full,
    "flow": Flow,
}
