"""Texture as shares of parts: the posterior against its story, and maps against scenes."""

import numpy as np
import pytest

import atomzoo
from atomzoo.datasets.kinds import validate
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.runs import draws_of
from atomzoo.models.model import find
from atomzoo.models.structure.nonnegative import grid, prior_of_shares
from atomzoo.models.structure.texture_parts import names_of_shares
from atomzoo.reports.answers import answers_of

from .story_check import compared, weighed
from .test_texture import QUICK

TWO = {"set": "vague", "count": "Categorical([1, 1])"}


def invariants(parts, noise, count):
    """Noise, number, and mean and spread of the parts in use, which no order of them changes."""
    found = []
    for rows, s, k in zip(parts, noise, count.astype(int) + 1, strict=True):
        used = rows[:k]
        found.append([s, k, used.mean(), np.ptp(used[:, 0])])
    return np.array(found)


def test_the_story_itself_gives_the_same_posterior_and_evidence():
    rng = np.random.default_rng(3)
    seen = find("texture_parts").design().isel(window=slice(8), feature=slice(2))
    seen = seen.isel(feature2=slice(2)).assign(noise_root=seen["noise_root"][:2, :2] / 0.3)
    share = rng.choice([0.0, 1.0], (8, 1), p=[0.4, 0.6])
    value = share * np.array([2.5, 0.7]) + (1 - share) * np.array([0.7, 2.5])
    data = seen.assign(magnitude=(("window", "feature"), value + 0.6 * rng.standard_normal((8, 2))))
    given = {**TWO, "part": "HalfNormal(2)", "noise": "LogNormal(-0.5, 0.4)"}
    own = atomzoo.fit("texture_parts", data, prior=given, seed=1, draws=200, predictive=0)
    weight, count, evidence, error, drawn = weighed("texture_parts", data, given, "count", 50_000)
    assert 1 / (weight**2).sum() > 150, "too few prior draws count for their errors to be known"
    rows = invariants(drawn["parts"], drawn["noise"], count)
    names = ("parts", "noise", "count")
    told = invariants(*(np.concatenate(list(draws_of(own, n).values)) for n in names))
    # Four figures at 4.5 standard errors of a difference; weighed draws of ours repeat, some 50 are independent.
    assert (compared(rows, weight, told[::4]) < 4.5).all()
    both = np.hypot(error, own.attrs["log_evidence_se"])
    assert abs(own.attrs["log_evidence"] - evidence) < 4.5 * both + 0.02


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shares_add_up_and_their_prior_knows_the_number(parts):
    points = grid(3)
    np.testing.assert_allclose(points.sum(1), 1)
    log_prior = prior_of_shares(points, parts, 0.5)
    assert abs(np.exp(log_prior).sum() - 1) < 1e-12
    assert (np.isfinite(log_prior) == (points[:, parts:].sum(1) == 0)).all()


def test_sets_of_shares_have_names_of_their_own():
    names = names_of_shares(3)
    assert len(set(names)) == len(names) == len(grid(3)) == 28
    assert names[0] == "part 1"
    assert "½ of 1, ½ of 3" in names


def test_one_crystal_has_one_part_and_two_phases_more():
    alone = simulate("two_phases", seed=5, shape="none", field=10.0)
    told = atomzoo.fit("texture_parts", alone, prior=TWO, seed=1, **QUICK)["derived"]
    assert told["count_probability"].values.argmax() == 0
    image = simulate("two_phases", seed=5, second="turned", shape="wave", field=10.0, size=4.0)
    run = atomzoo.fit("texture_parts", image, prior=TWO, seed=1, **QUICK)
    told = run["derived"]
    assert told["count_probability"].values[1] > 0.999
    share = told["abundance"].values
    np.testing.assert_allclose(share.sum(1), 1)
    # Where a window is of one phase alone, its share says so.
    place = np.rint(told["position"].values / 0.04).astype(int)
    true = image["true_phase"].values
    half = 14
    windows = [true[y - half : y + half, x - half : x + half].mean() for x, y in place]
    pure = np.array([w in (0.0, 1.0) for w in windows])
    second = np.abs(share[:, 0] - np.array(windows)) > 0.5
    agree = max(second[pure].mean(), 1 - second[pure].mean())
    assert agree > 0.97
    # The shares of a window have names, and parts are those of the maps.
    mix = run["classes"]["mix"]
    best = mix["mix_class"].values[mix.values.argmax(1)]
    clear = share.max(1) > 0.95
    expected = np.array(["part 1", "part 2"])[share.argmax(1)]
    assert clear.any()
    assert (best == expected)[clear].all()
    said = " ".join(answers_of(run))
    assert "2 parts of texture: probability 1.00" in said
    assert " part 1" in said
    table = find("texture_parts").giver(run, image)
    assert validate(table).attrs["kind"] == "table"
