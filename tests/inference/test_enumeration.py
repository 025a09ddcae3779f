"""Discrete latents are summed out: against sums written out, in the density and in what LOO makes of it."""

import warnings

import arviz_stats as azs
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import toys
import xarray as xr
from pyro.ops import special
from scipy.special import logsumexp
from scipy.stats import norm

from atomzoo.inference.fit import fit, make_density
from atomzoo.models.model import model, observe, sample

ROWS, COLUMNS = 12, 3
TWO = {"share": "Beta(2, 2)", "low": "Normal(-1, 1)", "high": "Normal(2, 1)", "noise": "HalfNormal(1)"}  # fmt: skip
KINDS = {
    "weights": "Dirichlet([1, 2, 3])",
    "levels": "Normal([-2, 0, 2], 1).to_event(1)",
    "noise": "HalfNormal(1)",
}


def columns(n):
    rng = np.random.default_rng(3)
    shape = (ROWS, n)
    return toys.numbers(np.where(rng.random(shape) < 0.4, 2.0, -1.0) + 0.5 * rng.normal(size=shape))


def registered(priors, n=1):
    return model(kind="table", priors={"vague": priors}, unit=("row",), design=lambda: columns(n))


def drawn(prior):
    """A draw of every parameter, in the order of the prior."""
    return [sample(name, prior[name]) for name in prior]


@registered(TWO)
def by_bernoulli(table, prior):
    """Two levels, a coin for every row."""
    share, low, high, noise = drawn(prior)
    with table.plate("row", at=-2):
        up = pyro.sample("up", dist.Bernoulli(share))
    observe("value", dist.Normal(torch.where(up > 0, high, low), noise))


@registered(TWO)
def by_one_hot(table, prior):
    """Two levels, a one-hot vector for every row."""
    share, low, high, noise = drawn(prior)
    with table.plate("row", at=-2):
        up = pyro.sample("up", dist.OneHotCategorical(torch.stack([1 - share, share], -1)))
    observe("value", dist.Normal((up * torch.stack([low, high], -1)).sum(-1), noise))


@registered(TWO)
def by_safe_log(table, prior):
    """Two levels, by logits from Pyro's own logarithm, which has no rule for vmap."""
    share, low, high, noise = drawn(prior)
    logits = special.safe_log(torch.stack([1 - share, share], -1))
    with table.plate("row", at=-2):
        up = pyro.sample("up", dist.Categorical(logits=logits))
    observe("value", dist.Normal(torch.stack([low, high], -1)[up.long()], noise))


@registered(TWO)
def by_mixture(table, prior):
    """Two levels, summed out in the story."""
    share, low, high, noise = drawn(prior)
    levels = dist.Normal(torch.stack([low, high], -1), noise[..., None])
    weights = dist.Categorical(torch.stack([1 - share, share], -1))
    observe("value", dist.MixtureSameFamily(weights, levels))


def two_levels(value, share, low, high, noise):
    """Log likelihood of every row."""
    parts = norm.logpdf(value, [low, high], noise) + np.log([1 - share, share])
    return logsumexp(parts, axis=1)


@registered(KINDS)
def by_dirichlet(table, prior):
    """Three levels of unknown weights."""
    weights, levels, noise = drawn(prior)
    with table.plate("row", at=-2):
        kind = pyro.sample("kind", dist.Categorical(weights))
    observe("value", dist.Normal(levels[kind.long()], noise))


def three_levels(value, weights, levels, noise):
    return logsumexp(norm.logpdf(value, levels, noise) + np.log(weights), axis=1)


@registered(TWO, COLUMNS)
def in_two_plates(table, prior):
    """A coin for every row, and in it a coin for every entry that turns the row's level over."""
    share, low, high, noise = drawn(prior)
    with table.plate("row", at=-2):
        up = pyro.sample("up", dist.Bernoulli(share))
        with table.plate("variable", at=-1):
            turned = pyro.sample("turned", dist.Bernoulli(0.1 + 0.2 * up))
    observe("value", dist.Normal(torch.where(up == turned, low, high), noise))


def of_two_plates(value, share, low, high, noise):
    rows = []
    for row in value:
        sides = []
        for up, weight in ((0, 1 - share), (1, share)):
            levels, turning = [high, low] if up else [low, high], 0.1 + 0.2 * up
            chances = [1 - turning, turning]
            each = logsumexp(norm.logpdf(row[:, None], levels, noise) + np.log(chances), axis=1)
            sides.append(np.log(weight) + each.sum())
        rows.append(logsumexp(sides))
    return np.array(rows)


@registered(TWO, 8)
def by_hidden_states(table, prior):
    """Every row is a walk between two levels, summed over its states by Pyro's hidden Markov model."""
    share, low, high, noise = drawn(prior)
    start = torch.stack([1 - share, share], -1).log()
    stay = torch.eye(2, dtype=torch.float64) * share + (1 - torch.eye(2).double()) * (1 - share)
    levels = dist.Normal(torch.stack([low, high], -1), noise[..., None])
    observe("value", dist.DiscreteHMM(start, stay.log(), levels, duration=8))


def of_hidden_states(value, share, low, high, noise):
    stay = np.array([[share, 1 - share], [1 - share, share]])
    rows = []
    for row in value:
        state, log = np.array([1 - share, share]), 0.0
        for entry in row:
            state = (state @ stay) * norm.pdf(entry, [low, high], noise)
            log, state = log + np.log(state.sum()), state / state.sum()
        rows.append(log)
    return np.array(rows)


STORIES = {
    by_bernoulli: two_levels,
    by_one_hot: two_levels,
    by_safe_log: two_levels,
    by_mixture: two_levels,
    by_dirichlet: three_levels,
    in_two_plates: of_two_plates,
    by_hidden_states: of_hidden_states,
}


@pytest.mark.parametrize(
    ("story", "marginal"), STORIES.items(), ids=lambda s: getattr(s, "name", "")
)
def test_every_unit_has_the_likelihood_of_the_sum_written_out(story, marginal):
    data = story.design()
    density = make_density(story, data)
    z = density.initial(6, seed=1)
    values = density.constrain(z)
    found = density.pointwise(z).numpy()
    expected = [
        marginal(data["value"].values, *(values[name][i].numpy() for name in density.prior))
        for i in range(len(z))
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    # What the parameters alone weigh: their priors and the volume of the map.
    rest = sum(density.log_prior(z).values()) + torch.stack(
        [sum(density.factors(point)[1].jacobian) for point in z]
    )
    value, gradient = density.gradient(z)
    assert density.path == "traced"
    np.testing.assert_allclose(value, np.sum(expected, 1) + rest.numpy(), rtol=0, atol=1e-8)
    step = 1e-5 * torch.eye(density.dim, dtype=torch.float64)
    slopes = [(density.log_prob(p + step) - density.log_prob(p - step)) / 2e-5 for p in z]
    torch.testing.assert_close(gradient, torch.stack(slopes), rtol=1e-6, atol=1e-5)


def test_pyro_is_as_before_once_a_density_has_been_evaluated():
    theirs = special._SafeLog
    assert issubclass(theirs, torch.autograd.Function)
    density = make_density(by_safe_log, columns(1))
    density.gradient(density.initial(2, seed=0))
    assert special._SafeLog is theirs


def test_the_logarithm_that_stands_in_for_pyros_has_its_values_and_gradients():
    from atomzoo.inference.safelog import safe_log_under_vmap

    found = []
    for stands_in in (False, True):
        x = torch.tensor([0.0, 1e-300, 1e-20, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
        if stands_in:
            with safe_log_under_vmap():
                y = special.safe_log(x)
        else:
            y = special.safe_log(x)
        (gradient,) = torch.autograd.grad(y.exp().sum() + y[1:].sum(), x)
        found.append((y.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def mixture_run():
    return fit(by_bernoulli, columns(1), runner="ensemble", ess=4000, seed=1, predictive=0)


def elpd_of(run, pointwise):
    """PSIS-LOO of a run with these pointwise log likelihoods, (chain, draw, row)."""
    old = run["log_likelihood"]["value"]
    new = {"value": (old.dims, pointwise.reshape(old.shape))}
    groups = {"posterior": run["posterior"], "log_likelihood": xr.Dataset(new, old.coords)}
    other = xr.DataTree.from_dict(groups)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # what it says of a large Pareto k is asked for below
        return azs.loo(other, pointwise=True)


def test_the_elpd_of_a_mixture_is_that_of_its_closed_form(mixture_run):
    run = mixture_run
    posterior = run["posterior"].to_dataset().stack(sample=("chain", "draw"))
    value = run["observed_data"]["value"].values
    exact = [two_levels(value, *point) for point in zip(*(posterior[n].values for n in TWO), strict=True)]  # fmt: skip
    found = elpd_of(run, run["log_likelihood"]["value"].values)
    assert float(found.elpd) == pytest.approx(float(elpd_of(run, np.array(exact)).elpd), abs=1e-8)


def test_the_elpd_given_classes_that_were_drawn_is_far_too_low(mixture_run):
    """As a converter gives it that runs the model at every draw: the classes are not in the draws, so it draws them."""
    run = mixture_run
    density = make_density(by_bernoulli, columns(1))
    posterior = run["posterior"].to_dataset().stack(sample=("chain", "draw"))
    conditional = []
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for point in zip(*(posterior[name].values for name in TWO), strict=True):
            given = {k: torch.as_tensor(v) for k, v in zip(TWO, point, strict=True)}
            with density.handlers():
                trace = pyro.poutine.trace(pyro.poutine.condition(density.story, given)).get_trace()
            node = trace.nodes["value"]
            conditional.append(node["fn"].log_prob(node["value"]).numpy())
    own = run["log_likelihood"]["value"].values
    summed, sampled = (elpd_of(run, pointwise) for pointwise in (own, np.array(conditional)))
    assert float(sampled.elpd) < float(summed.elpd) - 10 * float(summed.se)
    assert float(sampled.pareto_k.max()) > 0.7
