"""Runners against known answers, against each other, and after interrupts."""

import json
import math

import numpy as np
import pytest
import toys

from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import RUNNERS, fit
from atomzoo.inference.heldout import leave_one_out
from atomzoo.inference.runs import RunError, draws_of, read_run, write_run

SEEN = toys.some_numbers()["value"].values.ravel()
PRECISION = len(SEEN) + 1 / 4
MEAN = SEEN.sum() / PRECISION
EVIDENCE = (
    -0.5 * len(SEEN) * math.log(2 * math.pi)
    - 0.5 * math.log(4 * PRECISION)
    - 0.5 * ((SEEN**2).sum() - SEEN.sum() ** 2 / PRECISION)
)


def test_laplace_gives_the_closed_form():
    run = fit(toys.toy_normal, toys.some_numbers(), runner="laplace", draws=1000, predictive=0)
    draws = draws_of(run, "mean").values.ravel()
    sd = PRECISION**-0.5
    assert run.attrs["log_evidence"] == pytest.approx(
        EVIDENCE, abs=5 * run.attrs["log_evidence_se"]
    )
    assert draws.mean() == pytest.approx(MEAN, abs=5 * sd / np.sqrt(4000))
    assert draws.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * 4000))
    assert run.attrs["pareto_k"] < 0.7


def test_nuts_gives_the_closed_form_with_all_its_statistics():
    run = fit(
        toys.toy_normal, toys.some_numbers(), runner="nuts", draws=400, warmup=200, predictive=0
    )
    import arviz_stats as azs

    draws = draws_of(run, "mean")
    error = float(azs.mcse(run["posterior"].to_dataset())["mean"])
    assert float(draws.mean()) == pytest.approx(MEAN, abs=5 * error)
    stats = run["sample_stats"]
    assert set(stats.data_vars) >= {
        "lp", "energy", "acceptance_rate", "diverging", "step_size", "tree_depth", "n_steps",
    }  # fmt: skip
    acceptance = draws_of(run, "acceptance_rate", "sample_stats")
    assert float(acceptance.min()) >= 0
    assert float(acceptance.max()) <= 1 + 1e-9
    assert 0.6 < float(acceptance.mean()) < 1
    steps, depth = (draws_of(run, n, "sample_stats").values for n in ("n_steps", "tree_depth"))
    assert (steps >= 1).all()
    assert (steps <= 2**depth - 1).all()
    lp = draws_of(run, "lp", "sample_stats").values
    energy = draws_of(run, "energy", "sample_stats").values
    assert np.corrcoef(lp.ravel(), energy.ravel())[0, 1] < 0


@pytest.mark.slow
def test_laplace_and_nuts_agree_on_a_wall():
    wall = simulate("wall_first_order", seed=4, rows=4, noise=0.05)
    import arviz_stats as azs

    quick = fit("wall_first_order", wall, runner="laplace", draws=1000, predictive=0)
    slow = fit(
        "wall_first_order", wall, runner="nuts", chains=2, draws=400, warmup=300, predictive=0
    )
    error = azs.mcse(slow["posterior"].to_dataset())
    for name in ("P_s", "x0", "L_c", "eta", "noise", "tilt", "bow"):
        a, b = draws_of(quick, name), draws_of(slow, name)
        both = math.hypot(float(error[name]), float(b.std()) / math.sqrt(2000))
        assert abs(float(a.mean() - b.mean())) < 5 * both, name


def test_laplace_finds_both_basins_and_their_weights():
    run = fit(toys.toy_two_basins, toys.some_numbers(), runner="laplace", draws=1000, predictive=0)
    draws = draws_of(run, "place").values
    assert run.attrs["basins"] == 2
    # A binomial share of 4,000 draws from two halves.
    assert (draws > 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4000) + 0.01)
    assert sum(json.loads(run.attrs["basin_weights"])) == pytest.approx(1, abs=1e-3)


def test_laplace_says_that_it_failed_on_a_funnel():
    from atomzoo.reports.diagnose import diagnose

    run = fit(toys.toy_funnel, toys.some_numbers(), runner="laplace", predictive=0)
    gates = {g.name: g for g in diagnose(run)}
    assert not gates["Pareto k of the draws"].passed


def test_a_model_without_latents_has_exact_evidence():
    run = fit(toys.toy_zero, toys.some_numbers(), runner="laplace", draws=10, predictive=8)
    exact = -0.5 * (SEEN**2).sum() - 0.5 * len(SEEN) * math.log(2 * math.pi)
    assert run.attrs["log_evidence"] == pytest.approx(exact)
    with pytest.raises(RunError, match="no continuous latent"):
        fit(toys.toy_zero, toys.some_numbers(), runner="nuts")


@pytest.mark.parametrize("stop_at", [10, 130, 260])
def test_nuts_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path, stop_at):
    options = {"runner": "nuts", "chains": 2, "draws": 60, "warmup": 80, "predictive": 0, "seed": 3}
    whole = fit(toys.toy_normal, toys.some_numbers(), **options)
    path = tmp_path / "run.nc.partial"
    calls = iter(range(10**6))

    def interrupt(done: int, total: int, text: str) -> None:
        if done >= stop_at and next(calls) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(toys.toy_normal, toys.some_numbers(), checkpoint=path, progress=interrupt, **options)
    resumed = fit(toys.toy_normal, toys.some_numbers(), checkpoint=path, **options)
    assert resumed["posterior"].to_dataset().identical(whole["posterior"].to_dataset())
    assert path.exists(), "it is the caller's to remove, once the run is written"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "kept"
    with path.open("wb") as file:
        np.savez(file, key=np.array("another"))
    with pytest.raises(RunError, match="checkpoint"):
        fit(toys.toy_normal, toys.some_numbers(), runner="nuts", checkpoint=path)
    path.write_bytes(b"nonsense")
    with pytest.raises(RunError, match="checkpoint"):
        fit(toys.toy_normal, toys.some_numbers(), runner="nuts", checkpoint=path)


def test_unknown_runners_and_options_are_refused_with_what_there_is():
    with pytest.raises(RunError, match=", ".join(RUNNERS)):
        fit(toys.toy_normal, toys.some_numbers(), runner="magic")
    with pytest.raises(RunError, match="draws"):
        fit(toys.toy_normal, toys.some_numbers(), runner="laplace", steps=3)
    with pytest.raises(RunError, match="guide"):
        fit(toys.toy_normal, toys.some_numbers(), runner="svi", guide="magic")
    assert set(RUNNERS) == {"laplace", "ensemble", "nuts", "smc", "exact", "svi", "closed"}


def test_without_a_preference_the_ensemble_is_used():
    run = fit(toys.toy_normal, toys.some_numbers(), ess=20, predictive=0)
    assert run.attrs["runner"] == "ensemble"


@pytest.mark.parametrize("content", [b"", b"CDF\x01", b"not a file at all" * 50])
def test_a_file_that_is_no_run_is_refused(tmp_path, content):
    path = tmp_path / "run.nc"
    path.write_bytes(content)
    with pytest.raises(RunError, match="run"):
        read_run(path)
    with pytest.raises(RunError, match="no such file"):
        read_run(tmp_path / "missing.nc")


def test_a_failed_write_leaves_the_old_run_and_nothing_else(tmp_path, monkeypatch):
    run = fit(toys.toy_zero, toys.some_numbers(), runner="laplace", draws=10, predictive=0)
    path = write_run(run, tmp_path / "run.nc")
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("xarray.DataTree.to_netcdf", fail)
    with pytest.raises(OSError, match="disk full"):
        write_run(run, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_of_very_many_observations_no_likelihoods_and_no_predictions_are_kept(monkeypatch):
    monkeypatch.setattr("atomzoo.inference.runs.POINTWISE_LIMIT", 19 * 20)
    monkeypatch.setattr("atomzoo.inference.runs.PREDICTIVE_LIMIT", 19)
    data = toys.some_numbers()
    run = fit(toys.toy_normal, data, runner="laplace", seed=1)
    assert {"posterior", "log_prior", "observed_data"} <= set(run.children)
    assert not {"log_likelihood", "posterior_predictive"} & set(run.children)
    with pytest.raises(RunError, match="kept no pointwise likelihoods"):
        leave_one_out(run)
