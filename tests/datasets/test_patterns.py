"""Patterns: every neighbour within a radius, with its errors, and what is left out is counted."""

import numpy as np
import pytest

from atomzoo.datasets.derived.patterns import filled, patterns
from atomzoo.datasets.files import read, write
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.datasets.scenes import simulate


def some_atoms(count=200, seed=0, side=4.0, **more):
    rng = np.random.default_rng(seed)
    return dataset(
        "atoms", position=rng.uniform(0, side, (count, 2)), units={"position": "nm"}, **more
    )


def test_neighbours_are_all_atoms_within_the_radius_the_nearest_first():
    atoms = some_atoms()
    around = patterns(atoms, {"radius": 0.6})
    position = atoms.position.values
    for row, atom in enumerate(around.atom.values):
        away = position - position[atom]
        distance = np.linalg.norm(away, axis=1)
        near = np.argsort(distance)[1 : (distance < 0.6).sum()]
        found = around.neighbour.values[row]
        np.testing.assert_allclose(found[: len(near)], away[near], atol=1e-12)
        assert not found[len(near) :].any()
        assert filled(around)[row].sum() == len(near)


def test_a_radius_that_is_not_given_is_in_units_of_the_spacing():
    sheet = simulate("graphene", gives="atoms", field=3, disorder=0.0, seed=1)
    around = patterns(sheet, {})
    assert float(around.radius) == pytest.approx(1.22 * float(around.spacing))
    assert (filled(around).sum(1) == 3).all()
    assert float(around.density) == pytest.approx(3 / (np.pi * float(around.radius) ** 2))


@pytest.mark.parametrize("frame", [None, [0.0, 0.0, 4.0, 4.0], [-9.0, -9.0, 9.0, 9.0]])
def test_atoms_near_the_rim_are_left_out_and_counted(frame):
    atoms = some_atoms()
    if frame:
        atoms = atoms.assign_attrs(frame=frame)
    around = patterns(atoms, {"radius": 0.5})
    assert around.attrs["left_out"] == 200 - around.sizes["atom"]
    assert str(around.attrs["left_out"]) in around.attrs["left_out_why"]
    inner = around.position.values
    if frame == [0.0, 0.0, 4.0, 4.0]:
        assert inner.min() >= 0.5
        assert inner.max() <= 3.5
        assert (
            around.sizes["atom"]
            == ((atoms.position >= 0.5) & (atoms.position <= 3.5)).all("axis").sum()
        )
    if frame == [-9.0, -9.0, 9.0, 9.0]:
        assert around.attrs["left_out"] == 0


def test_errors_and_brightness_are_carried_and_units_are_told():
    sheet = simulate("graphene", gives="atoms", field=3, silicon_3=0.02, seed=3)
    around = patterns(sheet, {"radius": 0.2, "brightness": 1})
    variance = np.trace(sheet.covariance.values, axis1=1, axis2=2) / 2
    np.testing.assert_allclose(around.centre_variance, variance[around.atom])
    assert list(around.feature.values) == ["x", "y", "brightness"]
    row = int(np.flatnonzero(filled(around).sum(1) == 3)[0])
    atom = int(around.atom[row])
    nearest = np.linalg.norm(sheet.position.values - sheet.position.values[atom], axis=1).argsort()[
        1:4
    ]
    ratio = np.log(sheet.intensity.values[nearest] / sheet.intensity.values[atom])
    np.testing.assert_allclose(around.neighbour.values[row, :3, 2], ratio)
    np.testing.assert_allclose(around.neighbour_variance.values[row, :3], variance[nearest])
    assert around.true_site.dims == ("atom",)


def test_patterns_come_back_from_a_file(tmp_path):
    around = patterns(some_atoms(), {"radius": 0.5})
    write(around, tmp_path / "patterns.nc")
    assert read(tmp_path / "patterns.nc").identical(around)


@pytest.mark.parametrize(
    ("settings", "attrs", "why"),
    [
        ({"radius": -1.0}, {}, "radius must be a length"),
        ({"radius": float("nan")}, {}, "radius must be a length"),
        ({"reach": 0.5}, {}, "reach must be above"),
        ({"radius": 5.0}, {}, "no atom is 5 nm inside"),
        ({"radius": 0.9}, {"frame": [0, 0, 4]}, "two corners"),
        ({"radius": 0.9}, {"frame": [4, 0, 0, 4]}, "two corners"),
        ({"radius": 1.99}, {"frame": [-9, -9, 9, 9]}, "take a smaller radius"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, attrs, why):
    with pytest.raises(DataError, match=why):
        patterns(some_atoms().assign_attrs(attrs), settings)


def test_brightness_needs_positive_intensities():
    rng = np.random.default_rng(1)
    atoms = some_atoms(intensity=rng.uniform(-0.1, 1, 200))
    with pytest.raises(DataError, match="no logarithm"):
        patterns(atoms, {"radius": 0.5, "brightness": 1})
    assert patterns(atoms, {"radius": 0.5}).sizes["feature"] == 2


def test_atoms_in_space_and_lone_atoms_are_refused():
    rng = np.random.default_rng(1)
    deep = dataset("atoms", position=rng.uniform(0, 3, (50, 3)), units={"position": "nm"})
    with pytest.raises(DataError, match="plane"):
        patterns(deep, {})
    with pytest.raises(DataError, match="too few"):
        patterns(some_atoms(count=2), {})


def broken(change):
    around = patterns(some_atoms(), {"radius": 0.5}).copy(deep=True)
    change(around)
    return around


def _gap(data):
    data.neighbour[0, 0] = 0.0


def _far(data):
    data.neighbour[0, 0] = 5.0


def _negative(data):
    data.centre_variance[0] = -1.0


def _unit(data):
    data.neighbour.attrs["units"] = "m"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_gap, "behind an empty one"),
        (_far, "farther away"),
        (_negative, "must not be negative"),
        (_unit, "must be in nm"),
    ],
)
def test_patterns_that_break_the_contract_are_refused(change, why):
    with pytest.raises(DataError, match=why):
        validate(broken(change))
