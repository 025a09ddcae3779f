"""Bridge sampling against closed forms, and its errors against many runs."""

import gaussians as g
import numpy as np
import pytest
import tiny
import torch
import toys
from scipy import stats

from atomzoo.inference import evidence as module
from atomzoo.inference import exact, laplace, smc
from atomzoo.inference.evidence import Evidence, bridge, free_draws, with_evidence
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.runs import Draws, RunError, read_run, write_run


def density_of(found):
    return make_density(found, found.design())


def gaussian_draws(dim, chains, draws, seed, memory=0.0):
    """Draws of the Gaussian's posterior in closed form, each chain an autoregression."""
    _, mean, covariance = g.gaussian_answer(dim)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((draws, chains, dim))
    for i in range(1, draws):
        noise[i] = memory * noise[i - 1] + np.sqrt(1 - memory**2) * noise[i]
    z = mean + noise @ np.linalg.cholesky(covariance).T
    return torch.as_tensor(z.transpose(1, 0, 2).copy())


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_draws_of_a_gaussian_give_its_closed_form(dim):
    truth = g.gaussian_answer(dim)[0]
    found = bridge(g.gaussian_density(dim), gaussian_draws(dim, 4, 1000, dim), seed=1)
    assert found.problem == ""
    # False alarm 6e-5.
    assert found.log_evidence == pytest.approx(truth, abs=4 * found.se)
    assert found.se < 0.05


@pytest.mark.parametrize("memory", [0.0, 0.8], ids=["independent", "autocorrelated"])
def test_the_evidence_is_off_by_what_it_says(memory):
    density, truth = g.gaussian_density(3), g.gaussian_answer(3)[0]
    found = [
        bridge(density, gaussian_draws(3, 4, 500, seed, memory), seed=seed) for seed in range(40)
    ]
    z = np.array([(each.log_evidence - truth) / each.se for each in found])
    square, low, high = g.consistent(z)
    assert low < square < high


@pytest.mark.parametrize("found", [g.bent, g.lopsided, toys.toy_wide], ids=lambda found: found.name)
def test_runners_and_the_bridge_agree(found):
    density = density_of(found)
    truth = exact.run(density).log_evidence
    z = []
    for seed in range(1, 7):
        run = smc.run(density, seed=seed)
        bridged = bridge(density, run, seed=seed)
        assert bridged.problem == ""
        assert bridged.log_evidence == pytest.approx(truth, abs=4.5 * bridged.se)
        both = np.hypot(bridged.se, run.log_evidence_se)
        z.append((bridged.log_evidence - run.log_evidence) / both)
    # The error of 16 islands is Student-t of variance 15 / 13; six together are nearly normal. False alarm 1e-3.
    assert abs(np.mean(z)) < stats.norm.isf(0.0005) * np.sqrt(15 / 13 / 6)


@pytest.mark.parametrize(
    "found", [toys.toy_supports, toys.toy_pair, g.levels], ids=lambda found: found.name
)
def test_a_saved_run_gives_its_draws_back(tmp_path, found):
    data = found.design()
    run = fit(found, data, runner="laplace", draws=20, predictive=0, seed=3)
    saved = read_run(write_run(run, tmp_path / "run.nc"))
    density = make_density(found, data)
    z = free_draws(density, saved)
    assert z.shape == (4, 20, density.dim)
    again = density.log_prob(z.flatten(0, 1)).reshape(4, 20).numpy()
    assert again == pytest.approx(saved["sample_stats"]["lp"].values, rel=1e-9)


def test_a_saved_run_with_classes_of_its_elements_gives_the_evidence(tmp_path):
    data = tiny.some_atoms()
    run = fit(tiny.tiny_classes, data, runner="laplace", draws=500, predictive=0, seed=3)
    saved = read_run(write_run(run, tmp_path / "run.nc"))
    found = bridge(make_density(tiny.tiny_classes, data), saved, seed=4)
    both = np.hypot(found.se, run.attrs["log_evidence_se"])
    assert found.log_evidence == pytest.approx(run.attrs["log_evidence"], abs=4 * both)


def test_a_run_without_evidence_gets_it_or_the_reason():
    density, truth = g.gaussian_density(3), g.gaussian_answer(3)[0]
    bare = Draws(gaussian_draws(3, 4, 500, 1), {})
    found = with_evidence(density, bare, seed=2)
    assert found.log_evidence == pytest.approx(truth, abs=4 * found.log_evidence_se)
    short = with_evidence(density, Draws(bare.z[:, :9], {}), seed=2)
    assert short.log_evidence is None
    assert "too few" in short.attrs["evidence_problem"]


def test_halves_that_disagree_are_told():
    density = density_of(g.lopsided)
    z = laplace.run(density, seed=1).z
    left = z[z < 0][:200].reshape(1, -1, 1)
    right = z[z > 0][: left.shape[1]].reshape(1, -1, 1)
    found = bridge(density, torch.cat([left, right], 1), seed=2)
    assert "halves" in found.problem or "error" in found.problem


def test_halves_that_are_hardly_apart_tell_the_error():
    said = [Evidence(1.0, 0.001), Evidence(1.04, 0.001)]
    assert module._together(said) == Evidence(1.02, pytest.approx(0.02))
    close = module._together([Evidence(1.0, 0.02), Evidence(1.04, 0.02)])
    assert close == Evidence(1.02, pytest.approx(0.02 / 2**0.5))
    assert "halves" in module._together([Evidence(1.0, 0.001), Evidence(1.3, 0.001)]).problem


def test_alternatives_alone_need_no_bridge():
    density = density_of(g.levels)
    run = exact.run(density, draws=10)
    assert bridge(density, run).log_evidence == pytest.approx(run.log_evidence)


def test_draws_of_something_else_are_refused():
    density = g.gaussian_density(3)
    with pytest.raises(RunError, match="must be"):
        bridge(density, torch.zeros(4, 100, 2))
    with pytest.raises(RunError, match="too few"):
        bridge(density, gaussian_draws(3, 2, 20, 1))
    with pytest.raises(RunError, match="not of this density"):
        bridge(density, torch.full((4, 100, 3), torch.nan, dtype=torch.float64))
    with pytest.raises(RunError, match="fewer dimensions"):
        bridge(density, torch.ones(4, 100, 3, dtype=torch.float64))
    other = fit(toys.toy_pair, toys.toy_pair.design(), runner="laplace", draws=10, predictive=0)
    with pytest.raises(RunError, match="not of this gaussian"):
        bridge(density, other)


def test_the_same_seed_gives_the_same_evidence():
    density, z = g.gaussian_density(3), gaussian_draws(3, 4, 200, 1)
    before = torch.get_rng_state()
    assert bridge(density, z, seed=1) == bridge(density, z, seed=1)
    assert bridge(density, z, seed=1) != bridge(density, z, seed=2)
    assert torch.equal(before, torch.get_rng_state())
