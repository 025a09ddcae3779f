"""Each gate passes where it should and fails where it should, on runs that are made for it."""

import json

import numpy as np
import pytest
import xarray as xr

from atomzoo.reports.diagnose import Gate, diagnose, posterior_p_value, power_scaling

CHAINS, DRAWS = 4, 500


def normal(chains: int = CHAINS, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((chains, draws))


def made(values: np.ndarray | dict, attrs: dict | None = None, **groups) -> xr.DataTree:
    """A run with these posterior draws (chain, draw, …) and other groups."""

    def group(arrays: dict) -> xr.Dataset:
        return xr.Dataset(
            {
                name: (("chain", "draw", *(f"{name}_{i}" for i in range(a.ndim - 2))), a)
                for name, a in arrays.items()
            },
            {"draw": np.arange(next(iter(arrays.values())).shape[1])},
        )

    values = values if isinstance(values, dict) else {"mean": values}
    plain = {name: g for name, g in groups.items() if isinstance(g, xr.Dataset)}
    drawn = {name: group(g) for name, g in groups.items() if name not in plain}
    tree = xr.DataTree.from_dict(
        {"posterior": group(values), "sample_stats": xr.Dataset(), **drawn, **plain}
    )
    tree.attrs = {"model": "made", "prior": "{}", **(attrs or {})}
    return tree


def gates(run: xr.DataTree) -> dict[str, Gate]:
    return {gate.name: gate for gate in diagnose(run)}


def test_independent_chains_pass_every_gate_of_mixing():
    found = gates(made(normal()))
    assert set(found) == {"R-hat", "bulk ESS", "tail ESS", "MCSE / sd"}
    assert all(gate.passed for gate in found.values())


def test_a_chain_elsewhere_fails_r_hat():
    values = normal()
    values[0] += 1
    gate = gates(made(values))["R-hat"]
    assert not gate.passed
    assert gate.value > 1.1
    assert "mean" in gate.text


def test_chains_that_stand_still_at_different_places_fail_r_hat():
    values = np.repeat(np.arange(4.0)[:, None], DRAWS, axis=1)
    found = gates(made({"stuck": values, "moving": normal()}))
    assert not found["R-hat"].passed
    assert "stuck" in found["R-hat"].text


def test_one_element_of_a_vector_is_enough_to_fail():
    values = np.random.default_rng(1).standard_normal((CHAINS, DRAWS, 5))
    assert gates(made(values))["R-hat"].passed
    values[2, :, 3] += 1
    assert not gates(made(values))["R-hat"].passed


def test_many_chains_are_judged_by_nested_r_hat():
    found = gates(made(normal(32, 50)))
    assert "R-hat" not in found
    assert found["nested R-hat"].passed
    values = normal(32, 50)
    values[np.arange(32) % 8 == 3] += 2
    assert not gates(made(values))["nested R-hat"].passed


def test_a_single_chain_has_no_r_hat_but_is_held_to_its_effective_draws():
    found = gates(made(normal(1)))
    assert "R-hat" not in found
    assert found["bulk ESS"].passed


def test_draws_that_hang_together_fail_by_effective_size_and_error_of_the_mean():
    steps = normal(draws=2000)
    values = np.empty_like(steps)
    values[:, 0] = steps[:, 0]
    for t in range(1, 2000):
        values[:, t] = 0.995 * values[:, t - 1] + 0.1 * steps[:, t]
    found = gates(made(values))
    assert not found["bulk ESS"].passed
    assert not found["tail ESS"].passed
    assert not found["MCSE / sd"].passed
    assert found["MCSE / sd"].limit == "≤ 0.05"
    assert found["bulk ESS"].limit == "≥ 400"


def test_a_code_that_never_moves_does_not_hide_the_others():
    found = gates(made({"graph": np.zeros((CHAINS, DRAWS)), "mean": normal()}))
    assert found["R-hat"].passed
    assert "mean" in found["R-hat"].text


@pytest.mark.parametrize(("count", "passed"), [(0, True), (1, False)])
def test_one_divergence_is_one_too_many(count, passed):
    diverging = np.zeros((CHAINS, DRAWS), dtype=bool)
    diverging.flat[:count] = True
    stats = xr.Dataset({"diverging": (("chain", "draw"), diverging)})
    assert gates(made(normal(), sample_stats=stats))["divergences"].passed is passed


def test_energy_that_creeps_fails_e_bfmi():
    free = xr.Dataset({"energy": (("chain", "draw"), normal(seed=5))})
    creeping = xr.Dataset({"energy": (("chain", "draw"), np.cumsum(normal(seed=5), 1))})
    assert gates(made(normal(), sample_stats=free))["E-BFMI"].passed
    assert not gates(made(normal(), sample_stats=creeping))["E-BFMI"].passed


@pytest.mark.parametrize(("k", "passed"), [(0.3, True), (0.7, True), (0.71, False)])
def test_an_importance_sample_is_held_to_its_pareto_k(k, passed):
    assert gates(made(normal(), {"pareto_k": k}))["Pareto k of the draws"].passed is passed


@pytest.mark.parametrize(("scale", "passed"), [(0.2, True), (1.2, False)])
def test_heavy_tailed_likelihoods_fail_leave_one_out(scale, passed):
    # exp(-log likelihood) is then Pareto with the scale as its shape.
    rng = np.random.default_rng(2)
    pointwise = -scale * rng.standard_exponential((CHAINS, 1000, 5))
    found = gates(made(normal(draws=1000), log_likelihood={"value": pointwise}))
    assert found["Pareto k of LOO"].passed is passed


def predictions(shift: float, draws: int = 200) -> dict:
    rng = np.random.default_rng(3)
    predicted = rng.standard_normal((CHAINS, draws // CHAINS, 40))
    observed = xr.Dataset({"value": ("value_0", shift + rng.standard_normal(40))})
    return {"posterior_predictive": {"value": predicted}, "observed_data": observed}


def test_data_that_the_model_would_not_make_fail_the_predictive_check():
    assert gates(made(normal(), **predictions(0.0)))["posterior predictive p"].passed
    assert not gates(made(normal(), **predictions(3.0)))["posterior predictive p"].passed


def test_data_nearer_to_the_mean_than_new_ones_are_no_failure():
    near = predictions(0.0)
    near["observed_data"] = 0.01 * near["observed_data"]
    assert gates(made(normal(), **near))["posterior predictive p"].passed


def test_too_few_predictions_give_no_p_value():
    assert posterior_p_value(made(normal(), **predictions(3.0, draws=40))) is None


def conjugate(prior_sd: float) -> xr.DataTree:
    """The exact posterior of a mean given ten numbers at 3 with unit noise, prior N(0, prior_sd²)."""
    precision = 10 + prior_sd**-2
    draws = 30 / precision + normal(draws=1000, seed=4) / np.sqrt(precision)
    data = 3 + np.linspace(-1, 1, 10)
    return made(
        draws,
        {"prior": json.dumps({"mean": f"Normal(0, {prior_sd})", "noise": "1"})},
        log_prior={"mean": -0.5 * (draws / prior_sd) ** 2},
        log_likelihood={"value": -0.5 * (data - draws[..., None]) ** 2},
    )


def test_a_prior_that_pulls_is_seen_and_a_wide_one_is_not():
    wide, narrow = gates(conjugate(10.0)), gates(conjugate(0.3))
    assert wide["prior sensitivity"].passed
    assert not narrow["prior sensitivity"].passed
    # A finding, and no fault.
    assert narrow["prior sensitivity"].result == "note"
    assert not narrow["prior sensitivity"].fault
    prior, likelihood = power_scaling(conjugate(0.3))["mean"]
    assert prior > 0.05
    assert likelihood > 0.05


def test_power_scaling_follows_a_thinned_likelihood_and_leaves_latents_alone():
    run = conjugate(0.3)
    thin = run["log_likelihood"].to_dataset().isel(draw=slice(None, None, 5))
    whole = power_scaling(run)["mean"][0]
    thinned = xr.DataTree.from_dict(
        {name: g.to_dataset() for name, g in run.children.items()} | {"log_likelihood": thin}
    )
    thinned.attrs = run.attrs
    assert power_scaling(thinned)["mean"][0] == pytest.approx(whole, rel=0.5)
    # A latent that no prior set names is part of the model, not of the prior.
    thinned.attrs = {**run.attrs, "prior": json.dumps({"other": "Normal(0, 1)"})}
    assert power_scaling(thinned) == {}


def test_a_prior_that_is_flat_moves_nothing():
    run = conjugate(0.3)
    flat = xr.zeros_like(run["log_prior"].to_dataset())
    groups = {name: g.to_dataset() for name, g in run.children.items()} | {"log_prior": flat}
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = run.attrs
    assert power_scaling(tree)["mean"][0] == 0


def test_a_gate_goes_to_json_as_plain_values():
    gate = Gate("R-hat", float("inf"), 1.01, False, "")
    assert gate.as_json() == {"name": "R-hat", "value": None, "threshold": 1.01, "passed": False}


def test_draws_without_chains_are_judged_by_the_climb_and_by_their_weights():
    told = {"independent": 1, "last_step_sd": 0.5, "pareto_k": 0.3}
    found = gates(made(normal(draws=200), told))
    assert not found["last step"].passed
    assert found["Pareto k of the draws"].passed
    assert "R-hat" not in found
