"""What every model promises. A model added to the catalogue is covered without a line here."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from atomzoo.datasets.kinds import DataError, validate
from atomzoo.inference.fit import fit, make_density, runner_of
from atomzoo.inference.runs import read_run, write_run
from atomzoo.models.model import View

from .conftest import SHORT

GROUPS = {
    "posterior",
    "sample_stats",
    "log_likelihood",
    "log_prior",
    "prior",
    "prior_predictive",
    "posterior_predictive",
    "observed_data",
    "constant_data",
}
ATTRIBUTES = {
    "model",
    "prior_set",
    "prior",
    "runner",
    "runner_options",
    "seed",
    "seconds",
    "data_sha256",
    "versions",
}


def test_the_card_says_what_it_assumes_when_it_fails_and_what_it_rests_on(catalogued):
    card = catalogued.card
    assert card.title.endswith(".")
    assert len(card.title) < 140
    for word in ("**Assumes**", "**Fails**", "**Identifiable**", "References:"):
        assert word in card.body, f"{catalogued.name}: the card has no {word}"
    assert "vague" in catalogued.priors
    assert set(catalogued.symbols) | set(catalogued.units)


def test_special_cases_are_models_of_the_catalogue(catalogued):
    from atomzoo.models.model import find

    for name, limits in catalogued.contains.items():
        assert find(name).kind == catalogued.kind
        assert set(limits) <= set(next(iter(catalogued.priors.values())).entries)


def test_every_prior_set_samples_and_simulates_valid_data_with_their_truth(every):
    for name in every.priors:
        data = every.simulate(prior=name, seed=5)
        assert validate(data) is data
        assert any(str(v).startswith("true_") for v in data.data_vars)
        again = every.simulate(prior=name, seed=5)
        assert data.identical(again)
        assert not data.identical(every.simulate(prior=name, seed=6))


def test_the_model_never_sees_the_truth(every):
    view = View(every.simulate(seed=1))
    assert not [v for v in view.data.variables if str(v).startswith("true_")]


def test_density_and_gradient_are_finite_at_a_hundred_prior_draws(every):
    density = make_density(every, every.simulate(seed=2))
    points = density.initial(100, seed=0)
    value, gradient = density.gradient(points)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(value, density.log_prob(points), rtol=1e-9, atol=1e-9)


def pyro_log_density(density, points, held=None):
    """The same density by Pyro's own machinery: its transforms, its enumeration."""

    def story():
        with density.handlers():
            pyro.poutine.condition(density.story, data=held or {})()

    enumerated = pyro.infer.config_enumerate(story) if density.discrete else story
    with pyro.validation_enabled(False):
        _, potential, _, _ = initialize_model(enumerated, max_plate_nesting=density.deepest)
        return torch.stack([-potential(density.split(z)) for z in points])


def test_the_density_is_the_one_that_pyro_computes(every):
    density = make_density(every, every.simulate(seed=2))
    if density.dim == 0:
        pytest.skip("no continuous latent")
    points = density.initial(5, seed=1)
    torch.testing.assert_close(
        density.log_prob(points), pyro_log_density(density, points), rtol=1e-9, atol=1e-8
    )


def test_pointwise_log_likelihoods_add_up_to_the_likelihood(every):
    """Against the log joint: less the log priors and Jacobians, it is the sum over units."""
    density = make_density(every, every.simulate(seed=2))
    points = density.initial(5, seed=1)
    jacobian = torch.stack([sum(density.factors(z)[1].jacobian, torch.tensor(0.0)) for z in points])
    totals = []
    for held in _every_alternative(density, len(points)):
        prior = sum(density.log_prior(points, held).values(), torch.zeros(len(points)))
        likelihood = density.pointwise(points, held).reshape(len(points), -1).sum(1)
        totals.append(likelihood + prior)
    joint = torch.logsumexp(torch.stack(totals), 0) + jacobian
    torch.testing.assert_close(joint, density.log_prob(points), rtol=1e-9, atol=1e-6)


def _every_alternative(density, n):
    if not density.alternatives:
        return [{}]
    (site,) = density.alternatives
    return [{site.name: torch.full((n,), i)} for i in range(site.size)]


def test_a_short_fit_gives_a_complete_run(every, short_run):
    data, run = short_run(every)
    assert set(run.children) >= GROUPS
    assert set(run.attrs) >= ATTRIBUTES
    density = make_density(every, data)
    for group in ("posterior", "prior"):
        assert set(run[group].data_vars) >= {s.name for s in density.sites}
        assert all(np.isfinite(v.values).all() for v in run[group].data_vars.values())
    likelihood = next(iter(run["log_likelihood"].data_vars.values()))
    assert likelihood.shape[2:] == density.unit_shape
    assert {str(v) for v in data.data_vars if str(v).startswith("true_")} <= set(
        run["constant_data"].data_vars
    )
    sizes = run["posterior_predictive"].sizes
    assert sizes["chain"] == run["posterior"].sizes["chain"]


def test_a_run_comes_back_from_its_file_bit_for_bit(every, short_run, tmp_path):
    _, run = short_run(every)
    back = read_run(write_run(run, tmp_path / "run.nc"))
    assert back.identical(run)


def test_plain_arviz_reads_the_run(every, short_run, tmp_path):
    import arviz_stats
    import xarray

    _, run = short_run(every)
    path = write_run(run, tmp_path / "run.nc")
    # What all draws agree on has no R-hat, which ArviZ finds by dividing zero by zero.
    with xarray.open_datatree(path, engine="h5netcdf") as tree, np.errstate(invalid="ignore"):
        assert len(arviz_stats.summary(tree))


def test_the_same_seed_gives_the_same_draws(every, short_run):
    data, run = short_run(every)
    again = fit(every, data, predictive=20, **SHORT[runner_of(every, None)[0]])
    assert again["posterior"].to_dataset().identical(run["posterior"].to_dataset())
    other = fit(every, data, seed=1, predictive=0, **SHORT[runner_of(every, None)[0]])
    assert not other["posterior"].to_dataset().identical(run["posterior"].to_dataset())


def test_bad_data_and_unknown_priors_are_refused(every):
    data = every.simulate(seed=2)
    main = next(str(v) for v in data.data_vars if data[v].dtype.kind == "f")
    broken = data.copy(deep=True)
    broken[main][(0,) * broken[main].ndim] = np.nan
    with pytest.raises(DataError, match="finite"):
        fit(every, broken)
    with pytest.raises(ValueError, match="prior set"):
        fit(every, data, prior="nonsense")
    with pytest.raises(ValueError, match="no parameter"):
        every.simulate(nonsense=1.0)
