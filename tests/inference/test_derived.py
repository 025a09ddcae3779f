"""Models that prepare their data, bring a posterior of their own, and learn from some of many units."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import derived
import toys

from atomzoo.datasets.kinds import DataError, find_kind, validate
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.runs import RunError, read_run, write_run
from atomzoo.models.model import model
from atomzoo.models.priors import ModelError
from atomzoo.reports.compare import compare
from atomzoo.reports.diagnose import diagnose
from atomzoo.reports.page import report


def test_a_kind_that_no_one_made_is_named_without_the_derived_ones():
    with pytest.raises(DataError, match="unknown kind 'nonsense'") as caught:
        find_kind("nonsense")
    assert "gaps" not in str(caught.value)


def test_a_fit_to_data_is_a_fit_to_what_is_made_of_them():
    walk = derived.walk()
    made = derived.derived_steps.prepared(walk)
    assert made.attrs["kind"] == "gaps"
    raw, ready = (fit(derived.derived_steps, data, seed=1) for data in (walk, made))
    assert ready["posterior"].to_dataset().identical(raw["posterior"].to_dataset())
    assert raw.attrs["data_sha256"] == ready.attrs["data_sha256"]
    assert raw.attrs["source_kind"] == "table"
    assert "source_data" in raw.children
    assert "source_data" not in ready.children


def test_settings_of_the_preparation_come_from_the_prior():
    typed = derived.derived_steps.prepared(derived.walk(30), {"set": "vague", "every": "3"})
    assert typed.sizes["gap_of"] == 27
    with pytest.raises(DataError, match="needs data of kind table, these are profile"):
        fit(
            derived.derived_steps,
            derived.dataset("profile", value=np.arange(5.0), x=np.arange(5.0), units={"x": "nm"}),
        )


def test_simulated_data_are_of_the_kind_that_the_story_tells():
    data = derived.derived_wide.simulate(seed=2)
    assert validate(data).attrs["kind"] == "gaps"
    assert {"true_mean", "true_spread"} <= set(data.data_vars)
    assert fit(derived.derived_wide, data, predictive=0, runner="laplace").attrs["kind"] == "gaps"


def test_a_posterior_of_its_own_is_what_a_sampler_finds():
    """Means within five standard errors of both, and the same evidence."""
    walk = derived.walk(seed=3)
    own = fit(derived.derived_steps, walk, predictive=0)
    sampled = fit(derived.derived_steps, walk, predictive=0, runner="laplace")
    assert own.attrs["runner"] == "closed"
    mean, spread = (float(getattr(own["posterior"]["mean"], f)()) for f in ("mean", "std"))
    assert float(sampled["posterior"]["mean"].mean()) == pytest.approx(mean, abs=5 * spread / 30)
    assert own.attrs["log_evidence"] == pytest.approx(sampled.attrs["log_evidence"], abs=0.01)
    density = make_density(derived.derived_steps, walk)
    drawn = torch.as_tensor(own["posterior"]["mean"].values)[0, :5, None]
    expected = density.log_prob(drawn).numpy()
    assert own["sample_stats"]["lp"].values[0, :5] == pytest.approx(expected)
    assert own["derived"]["away"].sizes == {"gap_of": 29}
    assert own.attrs["note_of_model"] == "closed"
    assert not [g for g in diagnose(own) if g.name in ("R-hat", "bulk ESS")]


def test_closed_is_refused_to_models_that_bring_no_posterior():
    with pytest.raises(RunError, match="brings no posterior"):
        fit(toys.toy_normal, toys.some_numbers(), runner="closed")


def test_the_kind_prepared_must_be_known():
    with pytest.raises(ModelError, match="unknown kind"):
        model(kind="table", priors={"vague": {}}, prepare=("nothing", derived.gaps))


def test_what_some_units_teach_is_told_of_all():
    """Learnt from 200 of 3,000; classes are those of the mixture's formula for every one of them."""
    walk = derived.walk(3001, seed=5, jump=6.0)
    run = fit(derived.derived_classes, walk, predictive=0)
    assert run["observed_data"].sizes["gap_of"] == 200
    share = run["classes"]["size"]
    assert share.shape == (3000, 2)
    assert share["size_class"].values.tolist() == ["short", "long"]
    gap = derived.derived_classes.prepared(walk)["gap"].values
    assert run["derived"]["beyond"].sizes == {"gap_of": 3000}
    short = run["posterior"]["short"].values.ravel()
    odds = np.log(9) - 0.5 * (gap[:, None] - short) ** 2 + 0.5 * (gap[:, None] - short - 6) ** 2
    expected = (1 / (1 + np.exp(odds))).mean(1)
    # The mean over 32 draws against that over all: five standard errors of the probability's spread over draws.
    error = 5 * (1 / (1 + np.exp(odds))).std(1) / np.sqrt(32)
    assert (np.abs(share.values[:, 1] - expected) <= error + 1e-9).all()


def test_a_wrong_number_of_labels_is_said():
    story = derived.derived_classes.story
    wrong = model(
        kind="table",
        priors=derived.derived_classes.priors,
        prepare=("gaps", derived.gaps),
        labels={"size": ("one",)},
        runner="laplace",
    )(story)
    try:
        with pytest.raises(ModelError, match="names 1 classes of 'size', which has 2"):
            fit(wrong, derived.walk(), predictive=0)
    finally:
        from atomzoo.models import model as catalogue

        catalogue._CATALOGUE["derived_classes"] = derived.derived_classes


@pytest.fixture(scope="module")
def both():
    """Two rivals for the steps, and a model of the places themselves."""
    return compare(
        derived.walk(60, seed=1),
        [derived.derived_steps, derived.derived_wide, toys.toy_wide],
        runner=None,
    )


def test_models_are_rivals_where_they_explain_the_same(both):
    assert [{r.model.name for r in part.rows} for part in both.parts] == [
        {"derived_steps", "derived_wide"},
        {"toy_wide"},
    ]
    assert both.winner == both.parts[0].winner == "derived_steps"
    assert "toy_wide explains other quantities" in both.verdict.text
    table = both.as_json()
    assert [m["explains"] for m in table["models"]] == [["gap"], ["gap"], ["value"]]
    assert both.standing == {"derived_steps", "toy_wide"}


def test_several_questions_have_a_chapter_each_in_the_report(both, tmp_path):
    text = report(both, tmp_path / "report.html").read_text()
    assert text.count('class="chapter"') == 2
    assert "derived_steps wins" in text


def test_a_run_of_prepared_data_is_reported_from_its_file(tmp_path):
    run = fit(derived.derived_classes, derived.walk(400, jump=6.0), predictive=20)
    back = read_run(write_run(run, tmp_path / "run.nc"))
    assert back.identical(run)
    assert "derived_classes" in report(back, tmp_path / "report.html").read_text()


def test_a_posterior_that_can_leave_units_out_does(both):
    """With a mask the posterior is that of the rest."""
    walk = derived.walk(60, seed=1)
    seen = np.arange(59) < 30
    part = fit(derived.derived_steps, walk, mask=seen, predictive=0)
    short = fit(
        derived.derived_steps, derived.derived_steps.prepared(walk).isel(gap_of=seen), predictive=0
    )
    assert part["posterior"].to_dataset().identical(short["posterior"].to_dataset())
