"""Normal distributions of rings: vectors whose first place and sense are arbitrary.

Sums over all orders of all vectors are matrix products: a quadratic form of x is linear in the products of its entries.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["AnyOrder", "monomials", "precision_factor", "quadratics"]


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
            # Values last, where sums over orders are quick.
            terms = weights.squeeze(-3).mT @ products.mT
            return torch.logsumexp(terms, -2) - np.log(len(self.ring))
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
