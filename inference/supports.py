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

    The map keeps angles, so that a posterior that is round on the sphere is round in the plane.
    """

    domain = constraints.real_vector
    codomain = constraints.sphere
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return torch.cat([2 * x, 1 - square], -1) / (1 + square)

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1] / (1 + y[..., -1:])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of area on the sphere."""
        return x.shape[-1] * (math.log(2) - torch.log1p(x.square().sum(-1)))
