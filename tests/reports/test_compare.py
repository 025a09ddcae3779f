"""The verdict: who wins, who ties, what is bounded, and what would decide."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))

import toys

from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.heldout import HeldOut
from atomzoo.models.model import find
from atomzoo.models.priors import parse
from atomzoo.reports.compare import (
    STRONG,
    Row,
    _beats,
    _log_normaliser,
    _stacking,
    _verdict,
    compare,
    compare_runs,
)
from atomzoo.reports.diagnose import Gate


def row(name: str, evidence: float | None, parts=(0.0, 0.0), bad: bool = False, **draws) -> Row:
    """A row with the figures that a verdict looks at."""
    posterior = xr.Dataset({k: (("chain", "draw"), np.atleast_2d(v)) for k, v in draws.items()})
    run = xr.DataTree.from_dict({"posterior": posterior, "log_prior": xr.Dataset()})
    run.attrs = {"prior_set": "vague", "prior": "{}"}
    if evidence is not None:
        run.attrs |= {"log_evidence": evidence, "log_evidence_se": 0.01}
    held = HeldOut(np.array(parts), np.zeros(len(parts)))
    gates = [Gate("Pareto k of the draws", 0.9 if bad else 0.1, 0.7, not bad, "")]
    return Row(find(name), run, gates, held, None, xr.Dataset(), xr.Dataset())


GROWN = {
    "wall_first_order": {"eta": np.linspace(0, 1, 101)},
    "wall_neel": {"R0": np.linspace(0, 2, 101)},
}


def test_the_simplest_model_that_nothing_beats_wins_with_a_bound():
    rows = [
        row("wall_first_order", 0.5, **GROWN["wall_first_order"]),
        row("wall_second_order", 0.0),
        row("wall_neel", -1.0, **GROWN["wall_neel"]),
    ]
    verdict = _verdict(rows)
    assert verdict.winner == "wall_second_order"
    assert {b.parameter: round(b.value, 2) for b in verdict.bounds} == {"eta": 0.95, "R0": 1.9}


def test_rivals_that_neither_contains_are_a_tie_when_the_special_case_is_excluded():
    rows = [row("wall_first_order", 10.0), row("wall_neel", 9.0), row("wall_second_order", 0.0)]
    verdict = _verdict(rows)
    assert verdict.winner is None
    assert set(verdict.tied) == {"wall_first_order", "wall_neel"}
    assert verdict.excluded == ("wall_second_order",)


def test_strong_evidence_decides_between_rivals():
    just = STRONG + 0.05
    assert (
        _verdict([row("wall_first_order", just), row("wall_neel", 0.0)]).winner
        == "wall_first_order"
    )
    assert _verdict([row("wall_first_order", STRONG - 0.05), row("wall_neel", 0.0)]).winner is None


def test_predictions_that_say_the_opposite_take_the_win_away():
    strong = row("wall_first_order", 10.0, parts=[-10.0, -11.0, -10.0, -9.0])
    rival = row("wall_neel", 0.0, parts=[0.0, 0.0, 0.0, 0.0])
    assert not _beats(strong, rival)
    assert (
        _verdict([strong, rival]).winner == "wall_neel" or _verdict([strong, rival]).winner is None
    )


def test_an_evidence_whose_importance_sample_failed_is_not_used():
    failed = row("wall_first_order", 100.0, bad=True)
    assert failed.evidence is None
    assert not _beats(failed, row("wall_neel", 0.0))


def test_without_evidence_predictions_decide_by_two_standard_errors():
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal(20)
    assert _beats(row("wall_first_order", None, 1.0 + noise), row("wall_neel", None, 0 * noise))
    wide = 3.0 * rng.standard_normal(20)
    assert not _beats(row("wall_first_order", None, 0.2 + wide), row("wall_neel", None, 0 * wide))


def test_stacking_finds_the_mixing_weights_of_a_mixture():
    """Log scores of the two components of a 0.7 : 0.3 mixture, at draws from it."""
    rng = np.random.default_rng(1)
    n = 4000
    x = np.where(rng.random(n) < 0.7, rng.normal(-2, 1, n), rng.normal(2, 1, n))
    parts = np.stack([-0.5 * (x + 2) ** 2, -0.5 * (x - 2) ** 2], 1)
    assert _stacking(parts)[0] == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / n))


def test_power_scaling_of_a_gaussian_prior_is_the_closed_form():
    """A N(0, 2) prior of power p is N(0, 2/√p): evidence of the conjugate mean, in closed form."""
    data = toys.some_numbers()
    comparison = compare(data, ["toy_normal"], runner="laplace", draws=2000)
    (shift,) = [s for s in comparison.shifts if s.parameter == "mean"]
    seen = data["value"].values.ravel()

    def evidence(sd: float) -> float:
        precision = len(seen) + sd**-2
        return -0.5 * math.log(sd**2 * precision) + 0.5 * seen.sum() ** 2 / precision

    assert shift.wider["toy_normal"] == pytest.approx(evidence(2 * 2**0.5) - evidence(2), abs=0.05)
    assert shift.tighter["toy_normal"] == pytest.approx(
        evidence(2 / 2**0.5) - evidence(2), abs=0.05
    )


def test_a_larger_model_that_is_needed_wins():
    rng = np.random.default_rng(3)
    comparison = compare(
        toys.numbers(1 + rng.standard_normal(30)), ["toy_zero", "toy_normal"], runner="laplace"
    )
    assert comparison.winner == "toy_normal"
    assert comparison.rows[0].weight > 0.9


@pytest.mark.slow
def test_a_tie_says_what_would_decide_it():
    wall = simulate("wall_neel", seed=7, cells=25, rows=12, L_c=2.0, R0=3.0, noise=0.028)
    comparison = compare(wall, ["wall_first_order", "wall_neel", "wall_second_order"], blocks=False)
    assert comparison.winner is None
    assert "cannot discriminate" in comparison.verdict.text
    (need,) = comparison.verdict.needs
    # The two best-fitting curves differ by about a third of a nat here; five are wanted.
    assert 3 < need.more_data < 100
    assert need.noise < 0.028
    assert need.text.endswith("C/m^2")


@pytest.mark.slow
def test_no_amount_of_data_is_promised_where_the_curves_are_the_same():
    wall = simulate("wall_neel", seed=2, cells=25, rows=12, L_c=2.0, R0=1.0, noise=0.02)
    from atomzoo.reports.compare import _need

    comparison = compare(wall, ["wall_first_order", "wall_neel"], blocks=False)
    need = _need(*comparison.rows, None, 0)
    assert need.more_data > 1000
    assert "no realistic amount" in need.text


def test_the_table_is_plain_json_best_first():
    wall = simulate("wall_second_order", seed=1)
    comparison = compare(wall, ["wall_second_order", "wall_neel"], blocks=False)
    table = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert set(table) == {"data", "winner", "verdict", "models"}
    assert [m["model"] for m in table["models"]] == [r.model.name for r in comparison.rows]
    assert set(table["models"][0]) == {
        "model", "explains", "prior", "elpd", "elpd_se", "elpd_diff", "diff_se",
        "log_evidence", "log_evidence_se", "weight", "gates",
    }  # fmt: skip
    assert set(table["models"][0]["gates"][0]) == {"name", "value", "threshold", "passed"}
    assert table["models"][0]["elpd_diff"] == 0.0


def test_models_that_do_not_fit_the_data_are_skipped_with_a_reason_or_refused_by_name():
    wall = simulate("wall_second_order", seed=1)
    comparison = compare(wall, blocks=False)
    assert "component" in comparison.skipped["wall_bloch"]
    with pytest.raises(DataError, match="wall_bloch"):
        compare(wall, ["wall_bloch"])
    with pytest.raises(DataError, match="no model"):
        compare(
            xr.Dataset(
                {"state": (("time", "site"), np.zeros((3, 2), dtype=int))}, attrs={"kind": "states"}
            )
        )


def test_runs_made_before_are_compared_and_runs_of_other_data_refused():
    from atomzoo.inference.fit import fit

    wall, other = simulate("wall_second_order", seed=1), simulate("wall_second_order", seed=2)
    runs = [fit(name, wall) for name in ("wall_second_order", "wall_first_order")]
    comparison = compare_runs(wall, runs)
    assert comparison.winner == "wall_second_order"
    with pytest.raises(RuntimeError, match="other data"):
        compare_runs(other, runs)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_prior_raised_to_a_power_is_normalised_exactly(power):
    """∫ N(x; m, s)^a dx = (2 pi s^2)^((1-a)/2) / sqrt(a), and half of the same on half the line."""
    normal = 0.5 * (1 - power) * np.log(2 * np.pi * 9) - 0.5 * np.log(power)
    half = power * np.log(2) + normal - np.log(2)
    # x = e^z: p(x)^a dx = N(z)^a e^((1-a) z) dz
    log_normal = 0.5 * (1 - power) * np.log(2 * np.pi * 0.25) - 0.5 * np.log(power)
    log_normal += (1 - power) * 1.0 + 0.5 * (1 - power) ** 2 * 0.25 / power
    uniform = (1 - power) * np.log(4)
    exact = {
        "Normal(2, 3)": normal,
        "HalfNormal(3)": half,
        "LogNormal(1, 0.5)": log_normal,
        "Uniform(-1, 3)": uniform,
        "Normal([2, -50], [3, 3]).to_event(1)": 2 * normal,
    }
    for text, value in exact.items():
        assert _log_normaliser(parse(text, {}), power, 0) == pytest.approx(value, abs=1e-6), text
