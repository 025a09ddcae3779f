"""From real vectors to the support of any distribution, and back, one to one.

Pyro's registry has most of the maps. It has none for matrices, spheres and mixtures, and it takes an angle for any
real number: then the posterior repeats every turn and has no integral.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed, VonMises, constraints
from pyro.distributions.transforms import CholeskyTransform
from torch import Tensor
from torch.distributions import ComposeTransform, IndependentTransform, Transform, biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix

__all__ = ["bijection"]

MATRICES = (constraints.lower_cholesky, constraints.softplus_lower_cholesky)


def bijection(fn: Any) -> Transform:
    """The map from unconstrained values to the support of a distribution.

    Raises:
        NotImplementedError: when there is none, or the distribution does not tell its support.
    """
    center = _center(fn)
    return _onto(fn.support) if center is None else Circle(center)


def _center(fn: Any) -> Tensor | None:
    """The direction that angles are counted from, where a distribution is of angles."""
    if isinstance(fn, VonMises):
        return fn.loc
    if isinstance(fn, SineBivariateVonMises):
        return torch.stack([fn.phi_loc, fn.psi_loc], -1)
    if isinstance(fn, SineSkewed):
        return _center(fn.base_dist)
    inner = getattr(fn, "base_dist", None)
    # What only reshapes or masks a distribution has its support; what transforms it has another.
    if inner is None or hasattr(fn, "transforms"):
        return None
    found = _center(inner)
    return None if found is None else found.expand(fn.batch_shape + fn.event_shape)


def _onto(support: Any) -> Transform:
    if isinstance(support, MixtureSameFamilyConstraint):
        return _onto(support.base_constraint)
    if isinstance(support, constraints.independent):
        inner = _onto(support.base_constraint)
        return IndependentTransform(inner, support.reinterpreted_batch_ndims)
    if support in MATRICES:
        return LowerCholesky()
    if support is constraints.positive_definite:
        return ComposeTransform([LowerCholesky(), CholeskyTransform().inv])
    if support is constraints.sphere:
        return Sphere()
    return biject_to(support)


class Circle(Transform):
    """Angles between -π and π. The cut, where the real line ends, is opposite to `center`."""

    domain = constraints.real
    codomain = constraints.interval(-math.pi, math.pi)
    bijective = True

    def __init__(self, center: Tensor) -> None:
        super().__init__()
        self.center = center

    def _call(self, x: Tensor) -> Tensor:
        return _wrapped(self.center + 2 * math.pi * (torch.sigmoid(x) - 0.5))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.logit(_wrapped(y - self.center) / (2 * math.pi) + 0.5)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of every angle."""
        logsigmoid = torch.nn.functional.logsigmoid
        return math.log(2 * math.pi) + logsigmoid(x) + logsigmoid(-x)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class LowerCholesky(Transform):
    """Lower triangles with a positive diagonal, from the vector of their entries, the diagonal's as logarithms."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        entries = vec_to_tril_matrix(x)
        return entries.tril(-1) + torch.diag_embed(entries.diagonal(dim1=-2, dim2=-1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        logs = torch.diag_embed(y.diagonal(dim1=-2, dim2=-1).log())
        return tril_matrix_to_vec(y.tril(-1) + logs)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The diagonal's entries."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Sphere(Transform):
    """The unit sphere, projected from one of its poles; densities on it are by area.

    The projection keeps angles, so that what is round on the sphere is round in the plane. Far out the plane is drawn
    together, so that its tails are as light as an exponential's.
    """

    domain = constraints.real_vector
    codomain = constraints.sphere
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        stretch = _sinh_ratio(square)
        lifted = 2 / (1 + square * stretch.square())
        return torch.cat([lifted * stretch * x, lifted - 1], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        plane = y[..., :-1] / (1 + y[..., -1:])
        radius = torch.linalg.vector_norm(plane, dim=-1, keepdim=True).clamp(min=1e-300)
        return plane * torch.asinh(radius) / radius

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of area on the sphere."""
        square, dim = x.square().sum(-1), x.shape[-1]
        stretch = _sinh_ratio(square)
        rising = torch.log1p(square * stretch.square())
        return (dim - 1) * torch.log(stretch) + dim * math.log(2) + (0.5 - dim) * rising


def _sinh_ratio(square: Tensor) -> Tensor:
    """Of the square of r, sinh(r) / r: by its series where the ratio loses its digits."""
    small = square < 1e-4
    r = torch.sqrt(torch.where(small, torch.ones_like(square), square))
    return torch.where(small, 1 + square / 6 + square**2 / 120, torch.sinh(r) / r)
