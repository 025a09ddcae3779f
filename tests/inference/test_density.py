"""The flat density: supports, traces, masks and errors."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import toys
from pyro.infer.mcmc.util import initialize_model

from atomzoo.inference.density import sum_product
from atomzoo.inference.fit import make_density
from atomzoo.models.model import model, observe, sample
from atomzoo.models.priors import ModelError


@pytest.fixture(scope="module")
def supports():
    return make_density(toys.toy_supports, toys.some_numbers())


def test_every_support_round_trips_through_the_flat_vector(supports):
    draws, _ = supports.prior_draws(20, seed=0)
    for draw in draws:
        z = supports.unconstrain(draw)
        back = supports.constrain(z[None])
        for name in ("positive", "share", "unit", "corr", "low", "between", "scale"):
            torch.testing.assert_close(back[name][0], draw[name].to(torch.float64))
        assert torch.allclose(torch.cos(back["angle"][0]), torch.cos(draw["angle"]))
        torch.testing.assert_close(back["twice"][0], 2 * back["between"][0])


def test_a_bound_set_by_another_latent_is_followed(supports):
    """Pyro fixes its transforms at the first run; ours move with the bound, and stay inside."""
    z = supports.initial(200, seed=1) + torch.randn(200, supports.dim, dtype=torch.float64)
    values = supports.constrain(z)
    above = values["between"] - values["low"]
    assert (above > 0).all()
    assert (above < values["positive"]).all()
    assert torch.isfinite(supports.log_prob(z)).all()


def test_the_jacobian_of_a_moving_bound_is_right(supports):
    """Numerically: the map z → values changes volume by exp of the noted log Jacobian."""
    sites = [
        s.name for s in supports.sites if s.name in ("positive", "unit", "low", "between", "scale")
    ]
    z = supports.initial(1, seed=2)[0]
    starts = {}
    i = 0
    for s in supports.sites:
        starts[s.name] = i
        i += s.numel
    rows = [starts[name] for name in sites]

    def values(part):
        full = z.clone()
        full[rows] = part
        found = supports.constrain(full[None])
        return torch.stack([found[name][0] for name in sites])

    step = 1e-6
    columns = []
    for k in range(len(rows)):
        move = torch.zeros(len(rows), dtype=torch.float64)
        move[k] = step
        columns.append((values(z[rows] + move) - values(z[rows] - move)) / (2 * step))
    numeric = torch.linalg.slogdet(torch.stack(columns, 1))[1]
    noted = supports.factors(z)[1].jacobian
    others = [j for s, j in zip(supports.sites, noted, strict=True) if s.name in sites]
    assert float(sum(others)) == pytest.approx(float(numeric), abs=1e-5)


def test_a_masked_unit_counts_nothing():
    data = toys.some_numbers()
    mask = np.ones(20, dtype=bool)
    mask[3] = False
    masked = make_density(toys.toy_normal, data, mask=mask)
    shorter = make_density(toys.toy_normal, data.isel(row=mask))
    z = torch.linspace(-1, 2, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(masked.log_prob(z), shorter.log_prob(z))
    assert masked.pointwise(z).shape == (5, 20)
    assert (masked.pointwise(z)[:, 3] != 0).all()


def test_the_trace_is_used_and_says_so():
    density = make_density(toys.toy_normal, toys.some_numbers())
    density.gradient(torch.zeros(3, 1, dtype=torch.float64))
    assert density.path == "traced"


@pytest.mark.parametrize("masked", [False, True])
def test_data_of_the_same_shape_share_a_trace_and_keep_their_own_numbers(masked):
    """Other values, another prior and another mask go into the trace of the first; shapes do not."""
    from atomzoo.inference.density import _TRACES

    _TRACES.clear()
    rng = np.random.default_rng(1)
    for scale in (1.0, 30.0):
        for mask in (rng.random(20) < 0.5, rng.random(20) < 0.5) if masked else (None,):
            data = toys.numbers(scale * rng.standard_normal(20))
            given = {"mean": f"Normal({scale}, 2)", "noise": "HalfNormal(value.std)"}
            density = make_density("toy_wide", data, given, mask=mask)
            z = torch.randn(40, density.dim, dtype=torch.float64)
            value, gradient = density.gradient(z)
            with pyro.validation_enabled(False):
                expected, exact = density._eager([])(z)[::-1]
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(gradient, exact)
            assert density.path == "traced"
            assert len(_TRACES) == 1
    density = make_density("toy_wide", toys.numbers(rng.standard_normal(21)))
    density.gradient(density.initial(1, 0))
    assert len(_TRACES) == 2


def test_a_story_that_reads_numbers_behind_the_views_back_is_traced_for_itself():
    """They become constants of the trace, which the check against the story finds out."""

    @model(kind="table", priors={"vague": {"mean": "Normal(0, 2)"}})
    def user_behind(table, prior):
        """Takes the largest value as noise, as a plain number."""
        noise = float(np.abs(table.data["value"].values).max())
        observe("value", dist.Normal(sample("mean", prior.mean), noise))

    for scale in (1.0, 5.0):
        density = make_density(user_behind, toys.numbers([-scale, scale / 2]))
        value, _ = density.gradient(torch.zeros(1, 1, dtype=torch.float64))
        torch.testing.assert_close(value[0], density.log_prob(torch.zeros(1, dtype=torch.float64)))
        assert density.path == "traced"


def test_a_story_that_cannot_be_traced_falls_back_to_eager_and_says_why():
    @model(kind="table", priors={"vague": {"a": pyro.distributions.Normal(0.0, 1.0)}})
    def toy_checked(table, prior):
        """Its distribution checks every value, which no trace can follow."""
        a = sample("a", prior.a)
        observe("value", pyro.distributions.Normal(a, 1.0, validate_args=True))

    density = make_density(toy_checked, toys.some_numbers())
    points = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    value, gradient = density.gradient(points)
    assert density.path.startswith("eager: ")
    torch.testing.assert_close(value, density.log_prob(points))
    seen = torch.as_tensor(toys.some_numbers()["value"].values)
    torch.testing.assert_close(gradient[:, 0], (seen - points[:, 0]).sum(0) - points[:, 0])


def test_a_story_that_branches_on_a_latent_is_refused_with_a_way_out():
    @model(kind="table", priors={"vague": {"a": pyro.distributions.Normal(0.0, 1.0)}})
    def toy_branch(table, prior):
        """It asks for a value, which differs from point to point."""
        a = sample("a", prior.a)
        observe("value", pyro.distributions.Normal(a, 2.0 if a > 0 else 1.0))

    with pytest.raises(ModelError, match=r"torch\.where"):
        make_density(toy_branch, toys.some_numbers())


def test_nested_plates_are_summed_out_innermost_first():
    """Two plates, a class in the outer and one in the inner: against the sum written out."""
    outer, inner = 3, 4
    rng = np.random.default_rng(0)
    a = torch.as_tensor(rng.standard_normal((2, 1, outer)))  # axis -3 enumerates, plate -1
    b = torch.as_tensor(rng.standard_normal((5, 1, inner, outer)))  # axis -4, plates -2 and -1
    ab = torch.as_tensor(rng.standard_normal((5, 2, inner, outer)))
    from atomzoo.inference.density import Factor

    factors = [
        Factor("a", a, frozenset([-1]), False),
        Factor("b", b, frozenset([-2, -1]), False),
        Factor("ab", ab, frozenset([-2, -1]), True),
    ]
    plates = {-3: frozenset([-1]), -4: frozenset([-2, -1])}
    sizes = {-1: outer, -2: inner}
    found = sum_product(factors, plates, sizes)
    inside = torch.logsumexp(b + ab, 0).sum(-2)  # (2, outer)
    exact = torch.logsumexp(a[:, 0] + inside, 0).sum()
    torch.testing.assert_close(found.reshape(()), exact)
    kept = sum_product(factors, plates, sizes, frozenset([-1]))
    torch.testing.assert_close(kept.reshape(-1), torch.logsumexp(a[:, 0] + inside, 0))


def test_models_that_cannot_work_say_why():
    def build(story, **priors):
        return model(kind="table", priors={"vague": priors})(story)

    def toy_blind(table, prior):
        """Observes nothing."""
        sample("a", prior.a)

    def toy_wrong_name(table, prior):
        """Observes what is not there."""
        observe("weight", pyro.distributions.Normal(sample("a", prior.a), 1.0))

    def toy_poisson(table, prior):
        """Infinitely many classes."""
        n = pyro.sample("n", pyro.distributions.Poisson(3.0))
        observe("value", pyro.distributions.Normal(n, 1.0))

    def toy_wrong_shape(table, prior):
        """Seven means for twenty rows."""
        observe("value", pyro.distributions.Normal(torch.zeros(7, 1), 1.0))

    normal = pyro.distributions.Normal(0.0, 1.0)
    for story, words in [
        (toy_blind, "observes nothing"),
        (toy_wrong_name, "do not have"),
        (toy_poisson, "cannot be summed out"),
        (toy_wrong_shape, r"shape \(7, 1\), expected"),
    ]:
        with pytest.raises(ModelError, match=words):
            make_density(build(story, a=normal), toys.some_numbers())


def test_the_density_of_every_toy_is_pyros():
    for toy in (toys.toy_normal, toys.toy_two_basins, toys.toy_pair, toys.toy_funnel):
        density = make_density(toy, toy.design())

        def story(density=density):
            with density.handlers():
                density.story()

        points = density.initial(4, seed=3)
        with pyro.validation_enabled(False):
            _, potential, _, _ = initialize_model(story)
            exact = torch.stack([-potential(density.split(z)) for z in points])
        torch.testing.assert_close(density.log_prob(points), exact)
