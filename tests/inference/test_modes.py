"""Modes: what is climbed to, and the shape found there."""

import pytest
import torch

from atomzoo.inference.modes import factor_of


@pytest.mark.parametrize(
    "powers", [(0, 0, 0, 0), (-1, 0, 1, 3), (-2, 6, 12, 18), (-2, 100, 200, 300)]
)
def test_the_factor_of_a_bowl_is_triangular_however_narrow_it_is(powers):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(5, 4, 4, dtype=torch.float64, generator=generator)).Q
    values = (10.0 ** torch.tensor(powers, dtype=torch.float64)).expand(5, 4)
    factor = factor_of(values, vectors)
    assert torch.equal(factor, factor.tril())
    assert (torch.diagonal(factor, dim1=-2, dim2=-1) > 0).all()
    covariance = (vectors / values[:, None, :]) @ vectors.mT
    assert torch.allclose(
        factor @ factor.mT, covariance, rtol=1e-12, atol=1e-13 / float(values.min())
    )
