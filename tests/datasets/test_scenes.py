"""Scenes: reproducible, valid, honest about their truth, plain about wrong parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets import scenes as module
from atomzoo.datasets.kinds import DataError, validate
from atomzoo.datasets.scenes import Scene, find_scene, scene, scenes, simulate
from atomzoo.models.model import View

ALL = [found.name for found in scenes()]
WALLS = ["ferroelectric_wall", "wall_bloch", "wall_first_order", "wall_neel", "wall_second_order"]


def test_scenes_are_found_by_name_and_in_order() -> None:
    assert sorted(ALL) == ALL
    assert set(WALLS) <= set(ALL)
    assert find_scene("wall_neel").name == "wall_neel"


@pytest.mark.parametrize("name", ALL)
def test_a_scene_is_valid_says_where_it_came_from_and_knows_its_truth(name: str) -> None:
    data = simulate(name, seed=4)
    assert validate(data) is data
    assert data.attrs["scene"] == name
    assert data.attrs["seed"] == 4
    assert any(str(v).startswith("true_") for v in data.variables)
    assert find_scene(name).summary.endswith(".")


@pytest.mark.parametrize("name", ALL)
def test_a_scene_depends_on_its_seed_and_on_nothing_else(name: str) -> None:
    first = simulate(name, seed=11)
    np.random.default_rng().standard_normal(3)
    again, other = simulate(name, seed=11), simulate(name, seed=12)
    xr.testing.assert_identical(first, again)
    assert not first.drop_attrs().identical(other.drop_attrs())


@pytest.mark.parametrize("name", ALL)
def test_a_model_never_sees_the_truth(name: str) -> None:
    view = View(simulate(name))
    assert not [v for v in view.data.variables if str(v).startswith("true_")]


@pytest.mark.parametrize("name", ["wall_second_order", "wall_first_order", "wall_neel"])
def test_noise_has_the_spread_that_was_asked_for(name: str) -> None:
    noise = 0.03
    clean = simulate(name, rows=40, cells=25, noise=1e-300).value
    residual = simulate(name, rows=40, cells=25, noise=noise, seed=2).value - clean
    # The mean square of n normal numbers has a relative standard deviation of √(2/n); five of them.
    n = residual.size
    assert abs(float((residual**2).mean()) / noise**2 - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(residual.mean())) < 5 * noise / math.sqrt(n)


@pytest.mark.parametrize("name", WALLS)
@pytest.mark.parametrize("L_c", [1e-8, 1e8])
def test_walls_far_narrower_or_wider_than_a_cell_do_not_overflow(name: str, L_c: float) -> None:
    assert np.isfinite(simulate(name, L_c=L_c).value).all()


def test_the_row_noise_moves_whole_rows_and_nothing_else() -> None:
    still = simulate("ferroelectric_wall", noise=1e-300, row_noise=0.0, tilt=0.0, bow=0.0)
    shaken = simulate("ferroelectric_wall", noise=1e-300, row_noise=0.2, tilt=0.0, bow=0.0)
    assert np.ptp(still.value.values, axis=0).max() < 1e-290
    assert np.ptp(shaken.value.values, axis=0).max() > 0.05
    assert shaken.true_row_noise == 0.2


@pytest.mark.parametrize("name", ["wall_second_order", "wall_bloch", "ferroelectric_wall"])
def test_parameters_may_come_as_text_or_as_other_numbers(name: str) -> None:
    xr.testing.assert_identical(simulate(name, rows="5", x0="1"), simulate(name, rows=5.0, x0=1))


WRONG = [
    ("wall_neel", {"eta": 1.0}, r"wall_neel has no parameter eta; it has rows, cells, P_s"),
    ("wall_neel", {"rows": 2.5}, r"rows must be a whole number, found 2\.5"),
    ("wall_neel", {"rows": "nan"}, r"rows must be a whole number, found 'nan'"),
    ("wall_neel", {"rows": math.inf}, r"rows must be a whole number"),
    ("wall_neel", {"L_c": "wide"}, r"L_c='wide' should be like its default"),
    ("wall_neel", {"L_c": None}, r"L_c=None should be like its default"),
    ("wall_neel", {"L_c": 0.0}, r"L_c must be positive, found 0"),
    ("wall_neel", {"L_c": math.nan}, r"L_c must be positive, found nan"),
    ("wall_neel", {"R0": -1.0}, r"R0 must not be negative, found -1"),
    ("wall_neel", {"R0": math.nan}, r"R0 must not be negative, found nan"),
    ("wall_neel", {"noise": -0.1}, r"noise must be positive"),
    ("wall_neel", {"cells": 2}, r"cells must be at least 3, found 2"),
    ("wall_neel", {"rows": 0}, r"rows must be at least 1, found 0"),
    ("wall_neel", {"x0": math.nan}, r"not finite"),
    ("wall_first_order", {"eta": -0.5}, r"eta must be positive, found -0\.5"),
    ("ferroelectric_wall", {"rows": 1}, r"needs rows >= 2"),
    ("ferroelectric_wall", {"eta": -1.0}, r"not negative"),
    ("ferroelectric_wall", {"noise": math.inf}, r"not finite"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_a_wrong_parameter_is_refused_in_one_line(
    name: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        simulate(name, **given)
    assert "\n" not in str(caught.value)


def test_an_unknown_scene_is_refused_with_the_list() -> None:
    with pytest.raises(DataError, match=r"there is no scene 'wall'; there are .*wall_neel"):
        simulate("wall")


def test_a_user_puts_a_scene_on_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCENES", dict(module._SCENES))

    @scene
    def flat_line(rng: np.random.Generator, height: float = 1.0) -> xr.Dataset:
        """A line that does not change."""
        return find_scene("wall_second_order").make(rng, P_s=height)

    assert isinstance(flat_line, Scene)
    assert float(simulate("flat_line", height=2).true_P_s) == 2.0
