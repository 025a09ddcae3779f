"""Quadrature against closed forms and against SciPy's."""

import math

import gaussians as g
import numpy as np
import pyro
import pytest
import torch
import toys
from scipy import integrate, stats

from atomzoo.inference.exact import run
from atomzoo.inference.fit import make_density
from atomzoo.inference.runs import RunError
from atomzoo.models.model import model, observe, sample


def density_of(found):
    return make_density(found, found.design())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_correlated_gaussian_has_its_closed_form(dim):
    evidence, mean, covariance = g.gaussian_answer(dim)
    found = run(g.gaussian_density(dim), seed=1)
    assert found.log_evidence == pytest.approx(evidence, abs=1e-6)
    assert found.log_evidence_se < 1e-6
    z = found.z.flatten(0, 1).numpy()
    sd = np.sqrt(np.diag(covariance))
    # Drawn from a lattice in even shares, means are closer than independent draws would be.
    assert (np.abs(z.mean(0) - mean) < 3 * sd / np.sqrt(len(z))).all()
    assert np.cov(z.T).reshape(dim, dim) == pytest.approx(covariance, abs=0.15 * sd.max() ** 2)


@pytest.mark.parametrize(
    ("found", "prior", "seen"),
    [
        (g.lognormal_scale, stats.lognorm(1.0), [0.3, -0.2, 0.5]),
        (g.halfnormal_scale, stats.halfnorm(), [0.3, -0.2]),
    ],
)
def test_a_scale_agrees_with_adaptive_quadrature(found, prior, seen):
    def joint(scale):
        return prior.pdf(scale) * np.prod(stats.norm(0, scale).pdf(seen))

    parts = [integrate.quad(joint, a, b, epsabs=1e-13)[0] for a, b in ((1e-9, 1), (1, np.inf))]
    assert run(density_of(found)).log_evidence == pytest.approx(np.log(sum(parts)), abs=1e-6)


def test_two_parameters_agree_with_adaptive_quadrature():
    seen = toys.some_numbers()["value"].values.ravel()
    n, center, square = len(seen), seen.mean(), seen.var()

    def log_joint(noise, mean):
        prior = -(mean**2) / 8 - noise**2 / 2 - math.log(2 * math.pi)
        misfit = n * (square + (center - mean) ** 2) / (2 * noise**2)
        return prior - n * (math.log(noise) + math.log(2 * math.pi) / 2) - misfit

    top = log_joint(0.9, 0.8)
    whole, _ = integrate.dblquad(
        lambda noise, mean: math.exp(log_joint(noise, mean) - top), -3, 5, 0.2, 4, epsabs=1e-8
    )
    assert run(density_of(toys.toy_wide)).log_evidence == pytest.approx(
        math.log(whole) + top, abs=1e-6
    )


def test_two_modes_have_their_shares():
    evidence, share = g.lopsided_answer()
    found = run(density_of(g.lopsided), seed=2)
    assert found.attrs["basins"] == 2
    assert found.log_evidence == pytest.approx(evidence, abs=1e-6)
    assert float((found.z > 0).double().mean()) == pytest.approx(share, abs=2e-3)


def test_a_bent_posterior_is_covered():
    evidence, means, sds = g.bent_answer()
    found = run(density_of(g.bent), seed=3)
    assert found.log_evidence == pytest.approx(evidence, abs=1e-6)
    z = found.z.flatten(0, 1).numpy()
    assert (np.abs(z.mean(0) - means) < 3 * sds / np.sqrt(len(z))).all()
    assert found.attrs["quadrature_error"] < 1e-6


def test_draws_follow_the_posterior():
    _, mean, covariance = g.gaussian_answer(1)
    z = run(g.gaussian_density(1), seed=4, draws=2000).z.flatten().numpy()
    assert stats.kstest(z, stats.norm(mean[0], covariance[0, 0] ** 0.5).cdf).pvalue > 1e-3


def test_the_error_that_is_told_covers_a_kink():
    grid = np.linspace(-10, 10, 2_000_001)
    joint = stats.laplace(0.3, 0.5).pdf(grid)
    joint *= stats.norm(0.4, 0.5).pdf(grid) * stats.norm(0.1, 0.5).pdf(grid)
    truth = np.log(integrate.simpson(joint, x=grid))
    for points in (5000, 20_000, 100_000):
        found = run(density_of(g.kinked), points=points)
        assert 1e-12 < found.log_evidence_se < 1e-2
        assert abs(found.log_evidence - truth) < found.log_evidence_se + 1e-8


def test_alternatives_alone_are_enumerated():
    seen = np.array([0.4, 1.3])
    each = stats.norm(np.arange(3), 1).pdf(seen[:, None]).prod(0)
    found = run(density_of(g.levels), draws=10)
    assert found.log_evidence == pytest.approx(np.log(each @ [0.2, 0.3, 0.5]))
    assert found.log_evidence_se == 0


def test_too_many_dimensions_are_refused_by_name():
    with pytest.raises(RunError, match=r"gaussian has 4: mean \(4\); use smc or ensemble"):
        run(g.gaussian_density(4))


@model(kind="table", priors={"any": {"place": "Normal(0, 1)"}}, design=toys.some_numbers)
def unbounded(table, prior):
    """What the prior says of a place is taken back: far out all places are alike, and there is no integral."""
    place = sample("place", prior.place)
    pyro.factor("taken_back", place**2 / 2)
    observe("value", toys.Normal(torch.tanh(place), 9.0))


def test_a_posterior_without_an_integral_is_refused():
    with pytest.raises(RunError, match="does not fall off"):
        run(density_of(unbounded), points=10_000)


def test_the_same_seed_gives_the_same_draws():
    density = density_of(toys.toy_wide)
    first, again, other = (run(density, seed=seed).z for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("bad", [{"chains": 0}, {"draws": 0}, {"points": 0}, {"tolerance": 0.0}])
def test_options_that_make_no_sense_are_refused(bad):
    with pytest.raises(RunError, match="must be positive"):
        run(density_of(toys.toy_normal), **bad)
