"""The posterior of shared parameters and shares: its coordinates, and what it gives against quadrature."""

import math

import numpy as np
import pytest
import torch
from pyro.distributions import Dirichlet, HalfNormal, Normal
from scipy.stats import kstest

from atomzoo.models.structure.shared_parameters import Sticks, learn


@pytest.mark.parametrize("size", [1, 2, 6])
def test_sticks_go_there_and_back_and_tell_their_volume(size):
    torch.manual_seed(1)
    x = torch.randn(5, size, dtype=torch.float64)
    sticks = Sticks()
    y = sticks(x)
    torch.testing.assert_close(y.sum(-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(sticks.inv(y), x)
    for point, shares in zip(x, y, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: sticks(z)[:-1], point)
        told = sticks.log_abs_det_jacobian(point, shares)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], told)


def test_sticks_make_of_normal_numbers_shares_that_are_even_in_the_simplex():
    torch.manual_seed(2)
    shares = Sticks()(torch.randn(4000, 3, dtype=torch.float64)).numpy()
    for share in shares.T:
        # A share of four is distributed as Beta(1, 3); four tests at a chance of 1e-4.
        assert kstest(share, "beta", args=(1, 3)).pvalue > 1e-4


def logs(x, mean, width):
    return -0.5 * ((x - mean) / width) ** 2 - torch.log(width)


@pytest.mark.parametrize("apart", [3.0, 0.5])
def test_mean_and_evidence_are_those_of_quadrature_even_where_classes_can_hardly_be_told(apart):
    rng = np.random.default_rng(3)
    x = np.where(rng.random(200) < 0.3, rng.normal(0.4, 1, 200), rng.normal(0.4 + apart, 1, 200))
    x = torch.as_tensor(x)
    priors = {"mean": Normal(0.0, 1.0), "weights": Dirichlet(torch.ones(2, dtype=torch.float64))}
    one = torch.ones((), dtype=torch.float64)

    def evidence(values, few):
        units = x[::4] if few else x
        return torch.stack([logs(units, values["mean"] + d, one) for d in (0.0, apart)])

    start = {
        "mean": torch.zeros((), dtype=torch.float64),
        "weights": torch.tensor([0.5, 0.5]).double(),
    }
    told = learn(priors, evidence, [start], draws=400, seed=1)
    mean = torch.linspace(-3, 3, 601, dtype=torch.float64)
    share = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    every = torch.stack([logs(x, mean[:, None] + d, one) for d in (0.0, apart)])
    joint = torch.stack(
        [
            torch.logaddexp(every[0] + torch.log(s), every[1] + torch.log(1 - s)).sum(-1)
            for s in share
        ],
        1,
    )
    joint = joint + priors["mean"].log_prob(mean)[:, None]
    total = float(torch.logsumexp(joint.flatten(), 0)) + math.log(0.01 / 400)
    weights = torch.softmax(joint.flatten(), 0).reshape(joint.shape)
    exact = {"mean": weights.sum(1) @ mean, "weights": weights.sum(0) @ share}
    spread = {
        "mean": (weights.sum(1) @ (mean - exact["mean"]) ** 2) ** 0.5,
        "weights": (weights.sum(0) @ (share - exact["weights"]) ** 2) ** 0.5,
    }
    drawn = {"mean": told.draws["mean"], "weights": told.draws["weights"][:, 0]}
    for name, value in drawn.items():
        error = float(spread[name]) / math.sqrt(told.attrs["importance_ess"])
        assert abs(float(value.mean() - exact[name])) < 4.5 * error
        # The spread of n draws is known to 1 / √2n of itself.
        near = 4.5 / math.sqrt(2 * told.attrs["importance_ess"])
        assert abs(float(value.std()) / float(spread[name]) - 1) < near + 0.05
    assert abs(told.log_evidence - total) < 4.5 * told.log_evidence_se + 0.01
    assert told.attrs["pareto_k"] < 0.7


def test_positive_parameters_and_the_same_seed_give_the_same_draws():
    x = torch.as_tensor(np.random.default_rng(4).normal(0, 2, 100))
    priors = {"width": HalfNormal(3.0), "weights": Dirichlet(torch.ones(2, dtype=torch.float64))}

    def evidence(values, few):
        zero = torch.zeros((), dtype=torch.float64)
        widths = (values["width"].double(), 10 * values["width"].double())
        return torch.stack([logs(x, zero, width) for width in widths])

    start = {
        "width": torch.ones((), dtype=torch.float64),
        "weights": torch.tensor([0.5, 0.5]).double(),
    }
    one, other = (learn(priors, evidence, [start], draws=100, seed=5) for _ in range(2))
    assert (one.draws["width"] > 0).all()
    torch.testing.assert_close(one.draws["width"], other.draws["width"], rtol=0, atol=0)
    assert abs(float(one.draws["width"].mean()) - 2) < 1


def test_a_climb_from_where_the_prior_has_nothing_comes_back():
    """The data are five hundred of the prior's widths away, and the exact answer is a normal distribution."""
    x = torch.as_tensor(np.random.default_rng(6).normal(0.05, 0.002, 100))
    width, noise = 1e-4, torch.tensor(0.002, dtype=torch.float64)
    priors = {"mean": Normal(0.0, width), "weights": Dirichlet(torch.ones(2, dtype=torch.float64))}

    def evidence(values, few):
        # Two classes that are alike leave the mean alone to be learnt.
        return logs(x, values["mean"], noise).expand(2, -1)

    start = {"mean": torch.tensor(0.05).double(), "weights": torch.tensor([0.5, 0.5]).double()}
    told = learn(priors, evidence, [start], draws=400, seed=1)
    variance = 1 / (1 / width**2 + 100 / 0.002**2)
    mean = variance * float(x.sum()) / 0.002**2
    error = math.sqrt(variance / told.attrs["importance_ess"])
    assert abs(float(told.draws["mean"].mean()) - mean) < 4.5 * error
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(100).double(), 0.002**2 * torch.eye(100).double() + width**2
    ).log_prob(x) + 50 * math.log(2 * math.pi)
    assert abs(told.log_evidence - float(exact)) < 4.5 * told.log_evidence_se + 0.01


def test_known_parameters_leave_the_shares_and_no_density_at_all_is_told():
    x = torch.as_tensor(np.random.default_rng(7).normal(0, 1, 50))
    priors = {"weights": Dirichlet(torch.ones(2, dtype=torch.float64))}
    one = torch.ones((), dtype=torch.float64)

    def evidence(values, few):
        return torch.stack([logs(x, 0.0, one), logs(x, 3.0, one)])

    start = {"weights": torch.tensor([0.5, 0.5]).double()}
    told = learn(priors, evidence, [start], draws=100, seed=1)
    assert told.attrs["pareto_k"] == -math.inf
    assert float(told.draws["weights"][:, 0].mean()) > 0.9
    nothing = torch.full((2, 50), -torch.inf, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="noise"):
        learn(priors, lambda values, few: nothing, [start], draws=100, seed=1)
