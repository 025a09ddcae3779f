"""Every support that Pyro's continuous distributions have: density, gradient and flat vector of one latent each."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import toys
from pyro.distributions import constraints
from pyro.distributions import transforms as maps
from scipy import integrate, stats

from atomzoo.inference.exact import run as exact
from atomzoo.inference.fit import make_density
from atomzoo.inference.supports import bijection
from atomzoo.models.model import model, observe, sample
from atomzoo.models.priors import ModelError, describe, parse


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def transformed(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


COVARIANCE = real([1.0, 0.5], [0.5, 2.0])
FACTOR = torch.linalg.cholesky(COVARIANCE)
TWO, THREE = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
VECTOR = dist.Normal(THREE, 1.0).to_event(1)
HALVES = dist.Categorical(real(0.3, 0.7))

PRIORS = {
    # the real line
    "normal": dist.Normal(0.0, 1.0),
    "cauchy": dist.Cauchy(0.0, 1.0),
    "laplace": dist.Laplace(0.0, 1.0),
    "student": dist.StudentT(4.0, 0.0, 1.0),
    "gumbel": dist.Gumbel(0.0, 1.0),
    "logistic": dist.Logistic(0.0, 1.0),
    "skew_logistic": dist.SkewLogistic(0.0, 1.0, 2.0),
    "soft_laplace": dist.SoftLaplace(0.0, 1.0),
    "asymmetric": dist.AsymmetricLaplace(0.0, 1.0, 2.0),
    "soft_asymmetric": dist.SoftAsymmetricLaplace(0.0, 1.0, 2.0),
    "relaxed": dist.RelaxedBernoulli(real(0.5)[0], probs=real(0.3)[0]),
    "mixture": dist.MixtureSameFamily(HALVES, dist.Normal(real(0.0, 3.0), real(1.0, 1.0))),
    # the positive half-line
    "gamma": dist.Gamma(2.0, 3.0),
    "inverse_gamma": dist.InverseGamma(3.0, 2.0),
    "log_normal": dist.LogNormal(0.0, 1.0),
    "weibull": dist.Weibull(1.0, 2.0),
    "chi2": dist.Chi2(3.0),
    "fisher": dist.FisherSnedecor(3.0, 7.0),
    "exponential": dist.Exponential(1.0),
    "half_normal": dist.HalfNormal(1.0),
    "half_cauchy": dist.HalfCauchy(1.0),
    "folded": dist.FoldedDistribution(dist.Normal(1.0, 1.0)),
    "softplus": transformed(dist.Normal(0.0, 1.0), maps.SoftplusTransform()),
    "positive_mixture": dist.MixtureSameFamily(
        HALVES, dist.LogNormal(real(0.0, 2.0), real(1.0, 1.0))
    ),
    # half-lines and intervals
    "greater_than": dist.Pareto(1.0, 3.0),
    "moved": transformed(
        dist.Normal(0.0, 1.0), maps.ExpTransform(), maps.AffineTransform(2.0, 3.0)
    ),
    "less_than": transformed(dist.Exponential(1.0), maps.AffineTransform(3.0, -1.0)),
    "unit_interval": dist.Beta(2.0, 3.0),
    "kumaraswamy": dist.Kumaraswamy(2.0, 3.0),
    "continuous_bernoulli": dist.ContinuousBernoulli(0.3),
    "interval": dist.Uniform(-1.0, 2.0),
    "affine_beta": dist.AffineBeta(2.0, 3.0, -1.0, 4.0),
    "polya_gamma": dist.TruncatedPolyaGamma(real(1.0)[0]),
    "truncated_normal": transformed(
        dist.Uniform(real(0.2)[0], real(0.9)[0]),
        maps.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)).inv,
    ),
    # angles and directions
    "angle": dist.VonMises(3.0, 2.0),
    "angles": dist.VonMises(0.5, 2.0).expand([3]).to_event(1),
    "masked_angle": dist.VonMises(real(3.0)[0], real(2.0)[0]).mask(True),
    "torus": dist.SineBivariateVonMises(0.5, 1.0, 2.0, 2.0, 0.5),
    "skew_torus": dist.SineSkewed(dist.VonMises(TWO, real(1.0, 1.0)).to_event(1), real(0.2, 0.2)),
    "direction2": dist.ProjectedNormal(real(1.0, 2.0)),
    "direction3": dist.ProjectedNormal(real(1.0, 2.0, 0.5)),
    "directions": dist.ProjectedNormal(real([1.0, 2.0, 0.3], [0.0, 0.0, 0.0])).to_event(1),
    # vectors
    "vector": VECTOR,
    "loose": dist.Gamma(2.0, 2.0).expand([3]),
    "multivariate": dist.MultivariateNormal(real(0.0, 1.0), COVARIANCE),
    "low_rank": dist.LowRankMultivariateNormal(
        THREE, torch.ones(3, 1, dtype=torch.float64), real(1.0, 1.0, 2.0)
    ),
    "multivariate_student": dist.MultivariateStudentT(real(5.0)[0], real(0.0, 1.0), FACTOR),
    "vector_mixture": dist.MixtureSameFamily(
        HALVES, dist.Normal(real([0.0, 3.0], [1.0, 1.0]), real(1.0)).to_event(1)
    ),
    "diagonal_mixture": dist.MixtureOfDiagNormals(
        real([0.0, 1.0], [2.0, 3.0]), real([1.0, 1.0], [1.0, 2.0]), TWO
    ),
    "path": dist.GaussianHMM(
        *[dist.MultivariateNormal(TWO, torch.eye(2, dtype=torch.float64)), torch.eye(2).double()]
        * 2,
        dist.MultivariateNormal(TWO, torch.eye(2, dtype=torch.float64)),
        duration=3,
    ),
    "simplex": dist.Dirichlet(real(1.0, 2.0, 3.0)),
    "simplexes": dist.Dirichlet(real(1.0, 2.0, 3.0)).expand([2]).to_event(1),
    "stick_breaking": transformed(
        dist.Normal(TWO, 1.0).to_event(1), maps.StickBreakingTransform()
    ),
    "logistic_normal": dist.LogisticNormal(real(0.0, 0.5), real(1.0, 1.0)),
    "relaxed_classes": dist.RelaxedOneHotCategorical(real(0.5)[0], probs=real(0.2, 0.3, 0.5)),
    "ordered": transformed(VECTOR, maps.OrderedTransform()),
    "positive_ordered": transformed(VECTOR, maps.OrderedTransform(), maps.ExpTransform()),
    "simplex_ordered": transformed(dist.Dirichlet(torch.ones(4)), maps.SimplexToOrderedTransform()),
    # matrices
    "correlation_factor": dist.LKJCholesky(3, 2.0),
    "correlation": dist.LKJ(3, 2.0),
    "covariance": dist.Wishart(real(5.0)[0], COVARIANCE),
    "covariances": dist.Wishart(real(5.0, 6.0), COVARIANCE).to_event(1),
    "covariance_factor": transformed(dist.Wishart(real(5.0)[0], COVARIANCE), maps.CholeskyTransform()),
    # in single precision, as most people write them
    "single_multivariate": dist.MultivariateNormal(torch.zeros(2), COVARIANCE.float()),
    "single_low_rank": dist.LowRankMultivariateNormal(
        torch.zeros(3), torch.ones(3, 1), torch.ones(3)
    ),
    "single_ordered": transformed(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), maps.OrderedTransform()
    ),
}  # fmt: skip


# Torch says so of every draw.
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample detected")


@model(kind="table", priors={"any": {"x": "Normal(0, 1)"}}, design=toys.some_numbers)
def one_latent(table, prior):
    """What is seen is the sum of a latent's entries."""
    observe("value", dist.Normal(sample("x", prior.x).sum(), 1.0))


@model(kind="table", priors={"any": {"x": "Normal(0, 1)"}}, design=toys.some_numbers)
def latent_of_a_row(table, prior):
    """Every row has a latent of its own and shows the sum of its entries."""
    with table.plate("row", at=-2):
        x = sample("x", prior.x)
    observe("value", dist.Normal(x.reshape(*x.shape[:2], -1).sum(-1), 1.0))


IN_PLATES = ("log_normal", "angle", "direction3", "multivariate", "low_rank", "simplex", "ordered",
             "correlation_factor", "covariance")  # fmt: skip
CASES = [(one_latent, name) for name in PRIORS] + [(latent_of_a_row, name) for name in IN_PLATES]


def slopes(function, points, step=1e-4):
    """Derivatives along every axis at one point, to fourth order; the function takes a batch of points."""
    moves = step * torch.eye(len(points), dtype=torch.float64)
    far = [function(points + k * moves) for k in (1, -1, 2, -2)]
    return (8 * (far[0] - far[1]) - (far[2] - far[3])) / (12 * step)


def chart(support, x):
    """The entries of values, (n, ...), that the densities on a support are by."""
    if isinstance(support, constraints.independent):
        return chart(support.base_constraint, x)
    if support is constraints.simplex:
        return x[..., :-1].flatten(1)
    if support in (constraints.corr_cholesky, constraints.corr_matrix):
        rows, columns = torch.tril_indices(x.shape[-1], x.shape[-1], -1)
        return x[..., rows, columns].flatten(1)
    if support in (constraints.lower_cholesky, constraints.positive_definite):
        rows, columns = torch.tril_indices(x.shape[-1], x.shape[-1])
        return x[..., rows, columns].flatten(1)
    return x.reshape(len(x), -1)


def slow_log_prob(density, fn, z):
    """Pyro's log joint at the constrained values, and the volume that a small cube around z becomes."""
    value = {name: x[0] for name, x in density.constrain(z[None]).items()}
    with density.handlers(), pyro.validation_enabled(False):
        story = pyro.poutine.condition(density.story, data=value)
        joint = pyro.poutine.trace(story).get_trace().log_prob_sum()

    def values(points):
        return chart(fn.support, density.constrain(points)["x"])

    jacobian = slopes(values, z)
    # On a sphere it is an area in a space of one dimension more.
    return joint + 0.5 * torch.linalg.slogdet(jacobian @ jacobian.mT)[1]


@pytest.mark.parametrize(("story", "name"), CASES, ids=[f"{s.name}-{n}" for s, n in CASES])
def test_the_density_on_a_support_is_pyros_and_its_gradient_its_slope(story, name):
    density = make_density(story, toys.some_numbers().isel(row=slice(3)), {"x": PRIORS[name]})
    z = density.initial(2, seed=1) + 0.1
    value, gradient = density.gradient(z)
    assert density.path == "traced"
    for point, found, slope in zip(z, value, gradient, strict=True):
        scale = 1 + abs(float(found))
        assert float(slow_log_prob(density, PRIORS[name], point)) == pytest.approx(
            float(found), abs=1e-8 * scale
        )
        # Rounding gives the slopes an error of about 1e-12 of the value.
        torch.testing.assert_close(
            slope, slopes(density.log_prob, point), rtol=1e-8, atol=1e-9 * scale
        )
        back = density.unconstrain({k: x[0] for k, x in density.constrain(point[None]).items()})
        torch.testing.assert_close(back, point, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["multivariate", "single_multivariate", "covariance", "low_rank"])
def test_a_prior_with_a_covariance_is_written_out_as_it_is_read(name):
    prior = PRIORS[name]
    again = parse(describe(prior), {})
    drawn = prior.sample().double()
    torch.testing.assert_close(again.log_prob(drawn), prior.log_prob(drawn), check_dtype=False)
    assert again.log_prob(drawn).dtype == torch.float64


@model(kind="table", priors={"any": {"angle": "VonMises(3, 2)"}}, design=toys.some_numbers)
def turning(table, prior):
    """Numbers at the cosine of an angle, which the cut at π would halve."""
    observe("value", dist.Normal(torch.cos(sample("angle", prior.angle)), 3.0))


@model(kind="table", priors={"any": {"way": dist.ProjectedNormal(real(-0.5, 0.2))}})
def pointing(table, prior):
    """Numbers at one component of a direction in the plane."""
    observe("value", dist.Normal(sample("way", prior.way)[..., 0], 3.0))


def projected_normal(angle):
    """The density of the direction of a normal vector around (-0.5, 0.2), from the textbook."""
    along = -0.5 * np.cos(angle) + 0.2 * np.sin(angle)
    tail = along * stats.norm.cdf(along) / stats.norm.pdf(along)
    return stats.norm.pdf(0.5) * stats.norm.pdf(0.2) * (1 + tail)


@pytest.mark.parametrize(
    ("story", "prior"),
    [(turning, stats.vonmises(2.0, 3.0).pdf), (pointing, projected_normal)],
)
def test_what_is_known_of_a_direction_has_an_integral(story, prior):
    """Once around the circle, whatever the flat vector; SciPy's quadrature gives the same."""
    data = toys.some_numbers()
    seen = data["value"].values.ravel()

    def joint(angle):
        return prior(angle) * np.exp(stats.norm(np.cos(angle), 3.0).logpdf(seen).sum() + 40)

    whole, _ = integrate.quad(joint, -math.pi, math.pi, epsabs=0, epsrel=1e-10)
    found = exact(make_density(story, data), draws=10)
    assert found.log_evidence == pytest.approx(math.log(whole) - 40, abs=1e-6)


def test_angles_are_counted_from_the_middle_of_their_prior_and_stay_on_one_turn():
    turn = bijection(dist.VonMises(3.0, 2.0))
    angle = turn(torch.linspace(-30, 30, 61, dtype=torch.float64))
    assert float(turn.inv(torch.tensor(3.0))) == pytest.approx(0, abs=1e-6)
    assert (angle.abs() <= math.pi).all()
    across = turn(torch.tensor([-0.5, 0.5], dtype=torch.float64))
    assert across[0] > 0 > across[1]  # the prior's mass lies on both sides of π, and is one piece


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (dist.ImproperUniform(constraints.positive, (), ()), "does not support sampling"),
        (dist.VonMises3D(real(1.0, 2.0, 0.5)), "cannot be drawn from"),
        (dist.GaussianScaleMixture(real(1.0, 1.0), TWO, real(1.0, 2.0)), "has no support"),
        (dist.CoalescentTimes(THREE), "has no support"),
        (dist.MixtureSameFamily(HALVES, dist.Uniform(real(0, 2), real(1, 3))), "has no support"),
        (dist.StableWithLogProb(1.5, 0.5, 1.0, 0.0), "branches on the value of a latent"),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, dist.Distribution) else "",
)
def test_a_prior_that_no_flat_vector_can_stand_for_is_refused(prior, words):
    with pytest.raises(ModelError, match=words):
        make_density(one_latent, toys.some_numbers(), {"x": prior})
