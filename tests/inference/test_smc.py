"""Sequential Monte Carlo against closed forms, and its errors against many runs."""

import json

import arviz_stats as azs
import gaussians as g
import numpy as np
import pytest
import torch
import toys
import xarray as xr
from scipy import stats

from atomzoo.datasets.scenes import simulate
from atomzoo.inference import exact, laplace, smc
from atomzoo.inference.fit import make_density
from atomzoo.inference.runs import RunError
from atomzoo.inference.tempered import PriorDensity


def density_of(found):
    return make_density(found, found.design())


def errors(z):
    """Standard errors of the means (dim,)."""
    return azs.mcse(xr.Dataset({"z": (("chain", "draw", "axis"), z.numpy())}))["z"].values


# Of a normal score, once in 16,000 by chance; an error from 16 islands is Student-t and has wider tails.
APART = stats.t(15).ppf(1 - 0.5 / 16_000)


@pytest.mark.parametrize("dim", [1, 20])
def test_a_correlated_gaussian_has_its_closed_form(dim):
    evidence, mean, covariance = g.gaussian_answer(dim)
    found = smc.run(g.gaussian_density(dim), seed=1)
    assert found.log_evidence == pytest.approx(evidence, abs=APART * found.log_evidence_se)
    assert found.log_evidence_se < 0.1
    assert found.z.shape == (16, 512, dim)
    z = found.z.flatten(0, 1).numpy()
    # 20 means: once in a thousand by chance, and a tenth more since the errors are estimates.
    assert (np.abs(z.mean(0) - mean) < 4.4 * errors(found.z)).all()
    effective = (np.diag(covariance) ** 0.5 / errors(found.z)) ** 2
    assert z.std(0) == pytest.approx(
        np.diag(covariance) ** 0.5, rel=5 / np.sqrt(2 * effective.min())
    )


def test_a_bent_posterior_has_its_moments():
    evidence, means, _ = g.bent_answer()
    found = smc.run(density_of(g.bent), seed=2)
    assert found.log_evidence == pytest.approx(evidence, abs=APART * found.log_evidence_se)
    z = found.z.flatten(0, 1).numpy()
    assert (np.abs(z.mean(0) - means) < 4.4 * errors(found.z)).all()


@pytest.mark.parametrize("starts", [64, 1], ids=["both climbed to", "one left to the prior"])
def test_two_modes_get_their_weights(starts):
    evidence, share = g.lopsided_answer()
    density = density_of(g.lopsided)
    runs = [smc.run(density, seed=seed, starts=starts) for seed in range(20)]
    shares = np.array([float((run.z > 0).double().mean()) for run in runs])
    # Runs are independent, so that their spread is the error of their mean; false alarm 1e-4.
    error = shares.std(ddof=1) / len(shares) ** 0.5
    assert abs(shares.mean() - share) < stats.t(len(shares) - 1).ppf(1 - 5e-5) * error
    assert error < 0.02
    z = np.array([(run.log_evidence - evidence) / run.log_evidence_se for run in runs])
    square, _, high = g.consistent(z, 16)
    assert square < high


@pytest.mark.slow
@pytest.mark.parametrize("found", [toys.toy_wide, g.bent], ids=lambda found: found.name)
def test_the_evidence_is_off_by_what_it_says(found):
    density = density_of(found)
    truth = exact.run(density).log_evidence
    runs = [smc.run(density, seed=seed, particles=16, moves=4, draws=8) for seed in range(40)]
    z = np.array([(run.log_evidence - truth) / run.log_evidence_se for run in runs])
    square, low, high = g.consistent(z, 16)
    assert low < square < high
    # The mean of all of them is free of bias, false alarm 1e-3.
    assert abs(z.mean()) < 3.3 * z.std(ddof=1) / len(z) ** 0.5


def test_a_wall_agrees_with_importance_sampling():
    wall = simulate("wall_neel", seed=1, noise=0.03, cells=21)
    density = make_density("wall_neel", wall)
    found, other = smc.run(density, seed=1), laplace.run(density, seed=2)
    assert other.attrs["pareto_k"] < 0.5
    both = np.hypot(found.log_evidence_se, other.log_evidence_se)
    assert abs(found.log_evidence - other.log_evidence) < APART * both


def test_the_reference_ends_in_the_normalised_prior():
    density = density_of(toys.toy_supports)
    z = density.initial(5, 1)
    alone = PriorDensity(density).log_prob(z)
    likelihood = density.pointwise(z).flatten(1).sum(1)
    assert (alone + likelihood).numpy() == pytest.approx(density.log_prob(z).numpy(), rel=1e-10)
    wall = make_density("wall_neel", simulate("wall_neel", seed=1))
    at_once = wall.initial(4000, 1)
    one_by_one = torch.stack([wall.unconstrain(draw) for draw in wall.prior_draws(200, 2)[0]])
    for a, b in zip(at_once.T.numpy(), one_by_one.T.numpy(), strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-4


def test_the_run_tells_how_it_went():
    found = smc.run(density_of(g.lopsided), seed=3, particles=16, moves=4, draws=10)
    ladder = json.loads(found.attrs["temperatures"])
    assert (ladder[0], ladder[-1]) == (0, 1)
    assert all(np.diff(ladder) > 0)
    for name in ("acceptance", "moves", "step_size"):
        assert len(json.loads(found.attrs[name])) == len(ladder) - 1
    assert len(json.loads(found.attrs["log_evidence_islands"])) == 16


def test_the_same_seed_gives_the_same_draws_and_leaves_the_global_state_alone():
    first, again = g.seeded(smc.run, density_of(toys.toy_wide), particles=8, moves=2, draws=8)
    assert first.log_evidence == again.log_evidence


def test_alternatives_alone_are_enumerated():
    density = density_of(g.levels)
    found = smc.run(density, draws=10)
    assert found.log_evidence == pytest.approx(exact.run(density).log_evidence)


@pytest.mark.parametrize(
    "bad", [{"chains": 1}, {"draws": 0}, {"particles": 1}, {"moves": 1}, {"effective": 1.0}]
)
def test_options_that_make_no_sense_are_refused(bad):
    with pytest.raises(RunError, match=next(iter(bad))):
        smc.run(density_of(toys.toy_normal), **bad)
