"""Many datasets at once: every one of them gets the posterior that it would get alone."""

import json

import numpy as np
import pytest
import torch
import toys
from scipy.stats import chi2, norm

import atomzoo
from atomzoo.datasets.kinds import DataError
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.runs import RunError, read_run, write_run

# Over all comparisons of a test together, once in a thousand times by chance.
ALARM = 0.001


def from_the_prior(n, rows=15):
    """Datasets of a mean and a noise that are drawn from the prior of the wide toy, and their truths."""
    density = make_density(toys.toy_wide, toys.numbers(np.zeros(rows)))
    latents, predicted = density.prior_draws(n, seed=7)
    truth = {name: np.array([float(draw[name]) for draw in latents]) for name in ("mean", "noise")}
    return [toys.numbers(draw["value"].numpy().reshape(-1)) for draw in predicted], truth


def test_every_posterior_is_its_closed_form():
    rng = np.random.default_rng(1)
    seen = [rng.normal(place, 1.0, 12) for place in rng.normal(0, 2, 130)]
    run = fit(toys.toy_normal, [toys.numbers(values) for values in seen], ess=800)
    precision = 12 + 1 / 4
    sd = precision**-0.5
    draws = run["posterior"]["mean"].transpose("dataset", ...).values.reshape(130, -1)
    ess = run["fits"]["bulk_ess"].values
    assert (ess >= 800).all()
    z = (draws.mean(1) - np.sum(seen, 1) / precision) / (sd / np.sqrt(ess))
    assert np.abs(z).max() < norm.isf(ALARM / 2 / 130)
    # All together they tell of errors that no single one shows.
    assert chi2.ppf(ALARM / 2, 130) < np.square(z).sum() < chi2.isf(ALARM / 2, 130)
    assert abs(draws.std(1).mean() / sd - 1) < norm.isf(ALARM / 2) / np.sqrt(2 * ess.sum())


def test_truths_from_the_prior_have_even_ranks():
    """Simulation-based calibration of all datasets in one call."""
    datasets, truth = from_the_prior(400)
    run = fit(toys.toy_wide, datasets, ess=400)
    assert bool(run["fits"]["settled"].all())
    for name, true in truth.items():
        draws = run["posterior"][name].transpose("dataset", ...).values.reshape(400, -1)
        # As many draws as are effective, evenly taken, and one of twenty bins for each rank.
        some = draws[:, np.linspace(0, draws.shape[1] - 1, 199).astype(int)]
        rank = (some < true[:, None]).sum(1) // 10
        counts = np.bincount(rank, minlength=20)
        assert np.square(counts - 20).sum() / 20 < chi2.isf(ALARM / 2, 19)


def test_a_wall_in_a_stack_is_the_wall_alone():
    walls = [
        atomzoo.simulate("wall_second_order", seed=seed, cells=21, noise=0.05) for seed in range(5)
    ]
    run = fit("wall_second_order", walls, ess=2000, seed=3)
    assert run.attrs["density_path"] == "traced"
    scores = []
    for i, wall in enumerate(walls):
        alone = fit("wall_second_order", wall, runner="ensemble", ess=4000, lean=True)
        for name in ("P_s", "x0", "L_c", "noise"):
            one, other = alone["posterior"][name].values, run["posterior"][name].values[..., i]
            scores.append((one.mean() - other.mean()) / (one.std() * np.sqrt(1 / 4000 + 1 / 2000)))
    assert np.abs(scores).max() < norm.isf(ALARM / 2 / len(scores))


def test_a_posterior_of_two_basins_is_fitted_on_its_own():
    datasets = [toys.numbers(values) for values in ([0.0, 0.0], [0.1, -0.1], [0.3, 0.0])]
    run = fit(toys.toy_far_basins, datasets, ess=2000)
    assert run.attrs["fitted_alone"] == 3
    assert (run["fits"]["basins"] == 2).all()
    share = (run["posterior"]["a"] < 0).mean(("chain", "draw")).values
    assert np.abs(share - 0.7).max() < norm.isf(ALARM / 2 / 3) * np.sqrt(0.7 * 0.3 / 1800)


def test_the_run_is_of_the_schema_and_can_be_kept(tmp_path):
    datasets, _ = from_the_prior(3)
    run = fit(toys.toy_wide, datasets, ess=100, seed=5)
    assert dict(run["posterior"].sizes)["dataset"] == 3
    assert run["observed_data"]["value"].shape == (3, 15, 1)
    assert json.loads(run.attrs["runner_options"]) == {"ess": 100, "chains": 16}
    write_run(run, tmp_path / "stack.nc")
    again = read_run(tmp_path / "stack.nc")
    np.testing.assert_array_equal(again["posterior"]["mean"], run["posterior"]["mean"])
    once_more = fit(toys.toy_wide, datasets, ess=100, seed=5)
    np.testing.assert_array_equal(once_more["posterior"]["mean"], run["posterior"]["mean"])
    other = fit(toys.toy_wide, datasets, ess=100, seed=6)
    assert not torch.equal(*(torch.as_tensor(r["posterior"]["mean"].values) for r in (run, other)))


def test_what_cannot_be_stacked_says_why():
    datasets, _ = from_the_prior(3)
    odd = [*datasets, toys.numbers([1.0, 2.0])]
    for given, how, error, words in [
        ([], {}, DataError, "no dataset"),
        (odd, {}, RunError, "dataset 3 does not have the variables and sizes of dataset 0"),
        (datasets, {"runner": "nuts"}, RunError, "without runner nuts; fit each alone"),
        (datasets, {"warmup": 3}, RunError, "without warmup"),
        (datasets, {"mask": np.ones(15, bool)}, RunError, "without a mask"),
        (datasets, {"ess": 0}, RunError, "ess must be"),
        ([datasets[0], atomzoo.simulate("wall_neel", seed=1)], {}, DataError, "dataset 1: "),
    ]:
        with pytest.raises(error, match=words):
            fit(toys.toy_wide, given, **how)
