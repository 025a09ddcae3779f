"""The ensemble runner: right draws, right weights of basins, honest failure, and going on after an interrupt."""

import json
import math

import arviz_stats as azs
import numpy as np
import pyro
import pytest
import torch
import toys
import xarray as xr
from pyro.distributions import Normal
from scipy.stats import norm

from atomzoo.inference import ensemble
from atomzoo.inference.convergence import Convergence, bulk_ess
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.hmc import Metric
from atomzoo.inference.runs import RunError
from atomzoo.models.model import model, observe, sample
from atomzoo.reports.diagnose import diagnose

# Over all comparisons of a test together, once in a thousand times by chance.
ALARM = 0.001


def autoregressive(shape, share, seed):
    """Chains whose neighbours are alike, skewed, the first of them shifted."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape)
    draws = noise / math.sqrt(1 - share**2)
    for t in range(1, shape[0]):
        draws[t] = share * draws[t - 1] + noise[t]
    draws[:, 0] += 0.5
    return np.exp(draws)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100, 64, 3), (500, 16, 3), (101, 8, 3)])
def test_the_effective_sample_size_is_arvizs(share, shape):
    draws = autoregressive(shape, share, 1)
    ours = bulk_ess(draws)
    theirs = azs.ess(xr.DataArray(draws.transpose(1, 0, 2), dims=("chain", "draw", "k"))).values
    # Where the sequence is cut off differs by a lag at most.
    np.testing.assert_allclose(ours, theirs, rtol=0.1)
    array = xr.DataArray(draws.transpose(1, 0, 2), dims=("chain", "draw", "k"))
    theirs = azs.ess(array, method="mean").values
    np.testing.assert_allclose(Convergence(draws).mean, theirs, rtol=0.1)


def test_nested_r_hat_is_arvizs():
    for share in (0.0, 0.9):
        draws = autoregressive((60, 64, 3), share, 2)
        array = xr.DataArray(draws.transpose(1, 0, 2), dims=("chain", "draw", "k"))
        theirs = azs.rhat_nested(array, superchain_ids=np.arange(64) % 8)
        np.testing.assert_allclose(
            Convergence(draws).r_hat - 1, theirs.values - 1, rtol=0.1, atol=1e-3
        )


@pytest.mark.parametrize("dim", [4, 80])
def test_a_metric_makes_its_draws_round(dim):
    """Exactly in few dimensions; in many, scales and the directions that stand out."""
    rng = torch.Generator().manual_seed(0)
    loading = torch.randn(dim, 3, dtype=torch.float64, generator=rng)
    scale = torch.logspace(-2, 2, dim, dtype=torch.float64)
    covariance = (
        (3 * loading @ loading.T + torch.eye(dim, dtype=torch.float64)) * scale * scale[:, None]
    )
    metric = Metric.from_covariance(covariance)
    u = torch.randn(7, dim, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(metric.back(metric.forward(u)), u)
    # pull is the transpose of forward.
    v = torch.randn(7, dim, dtype=torch.float64, generator=rng)
    torch.testing.assert_close((metric.forward(u) * v).sum(1), (u * metric.pull(v)).sum(1))
    eye = torch.eye(dim, dtype=torch.float64)
    spread = torch.linalg.eigvalsh(metric.back(eye).T @ covariance @ metric.back(eye))
    assert spread.max() / spread.min() < (1 + 1e-6 if dim <= 50 else 10)


def test_moments_and_evidence_are_the_closed_forms():
    data = toys.some_numbers()
    seen = data["value"].values.ravel()
    run = fit(toys.toy_normal, data, runner="ensemble", ess=4000, predictive=0)
    precision = len(seen) + 1 / 4
    mean, sd = seen.sum() / precision, precision**-0.5
    draws = run["posterior"]["mean"].values
    least = bulk_ess(draws.T[..., None])[0]
    assert least >= 4000
    assert abs(draws.mean() - mean) < norm.isf(ALARM / 4) * sd / math.sqrt(least)
    assert abs(draws.std() / sd - 1) < norm.isf(ALARM / 4) / math.sqrt(2 * least)
    exact = norm.logpdf(seen, mean).sum() + norm.logpdf(mean, 0, 2) - norm.logpdf(mean, mean, sd)
    error = run.attrs["log_evidence_se"]
    assert abs(run.attrs["log_evidence"] - exact) < norm.isf(ALARM / 2) * error + 1e-6
    assert all(not gate.fault for gate in diagnose(run))


def test_far_basins_get_their_weights_and_are_told():
    data = toys.numbers([0.0, 0.0])
    for seed in range(5):
        run = fit(toys.toy_far_basins, data, runner="ensemble", ess=4000, seed=seed, predictive=0)
        assert run.attrs["basins"] == 2
        draws = run["posterior"]["a"].values
        # What is asked for is 4,000 effective draws of the worst dimension.
        error = math.sqrt(0.7 * 0.3 / 4000)
        assert abs((draws < 0).mean() - 0.7) < norm.isf(ALARM / 2 / 5) * error
        told = json.loads(run.attrs["basin_weights"])
        assert abs(max(told) - (draws < 0).mean()) < 1e-3


def test_a_funnel_is_reported_as_failed():
    run = fit(toys.toy_funnel, toys.numbers([0.0, 0.0]), runner="ensemble", most=100, predictive=0)
    assert any(gate.fault for gate in diagnose(run))


def test_same_seed_same_draws_and_other_seed_other_draws():
    density = make_density(toys.toy_wide, toys.some_numbers())
    first, again, other = (ensemble.run(density, seed=seed, ess=500) for seed in (3, 3, 4))
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z[:, 0], other.z[:, 0])


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "KEEP_EVERY", 0.0)
    density = make_density(toys.toy_wide, toys.some_numbers())
    whole = ensemble.run(density, seed=1, ess=8000)

    told = []

    def stop(done, total, text):
        told.append(text)
        if len([t for t in told if "draws a chain" in t]) == 2:
            raise KeyboardInterrupt

    path = tmp_path / "kept.npz"
    with pytest.raises(KeyboardInterrupt):
        ensemble.run(density, seed=1, ess=8000, checkpoint=path, progress=stop)
    resumed = ensemble.run(density, seed=1, ess=8000, checkpoint=path)
    assert torch.equal(whole.z, resumed.z)
    for name, values in whole.stats.items():
        np.testing.assert_array_equal(values, resumed.stats[name])
    with pytest.raises(RunError, match="another run"):
        ensemble.run(density, seed=2, ess=8000, checkpoint=path)


def test_eighty_dimensions_that_hang_together():
    """A Gaussian with one strong common factor, its variances known."""

    @model(kind="table", priors={"vague": {"common": Normal(0.0, 3.0)}})
    def user_factor(table, prior):
        """Eighty numbers around a common one."""
        common = sample("common", prior.common)
        each = pyro.sample(
            "each", Normal(common * torch.ones(80, dtype=torch.float64), 0.5).to_event(1)
        )
        observe("value", Normal(each[:, None], 1.0))

    data = toys.numbers(np.linspace(-1, 3, 80))
    run = fit(user_factor, data, runner="ensemble", ess=2000, predictive=0)
    # Given the data: each is seen with variance 1.25 around the common number.
    precision = 80 / 1.25 + 1 / 9
    mean, sd = data["value"].values.sum() / 1.25 / precision, precision**-0.5
    draws = run["posterior"]["common"].values
    assert abs(draws.mean() - mean) < norm.isf(ALARM / 4) * sd / math.sqrt(2000)
    assert abs(draws.std() / sd - 1) < norm.isf(ALARM / 4) / math.sqrt(2 * 2000)
    assert not any(gate.fault for gate in diagnose(run) if gate.name != "Pareto k of LOO")
