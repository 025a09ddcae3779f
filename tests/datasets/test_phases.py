"""Phases of a lattice: exact on plain waves, with the errors that they claim, and turns that are found."""

import numpy as np
import pytest
from scipy.stats import chi2

import atomzoo
from atomzoo.datasets.derived.phases import image_of, phases_of, strain_of, unwrapped, wrapped
from atomzoo.datasets.derived.reflections import demodulated, find_reflections, windows
from atomzoo.datasets.kinds import DataError, validate
from atomzoo.tests.datasets import plain_lattices

SQUARE = {"a": plain_lattices.SPACING, "b": plain_lattices.SPACING, "gamma": 90.0}


def plane(phases):
    """The displacement's gradient from a plane through each phase."""
    position = phases.position.values
    whole = unwrapped(phases.phase.values, phases.place.values, phases.modulus.values)
    design = np.concatenate([position - position.mean(0), np.ones((len(position), 1))], 1)
    slope = np.linalg.lstsq(design, whole, rcond=None)[0][:2].T
    return np.linalg.solve(-2 * np.pi * phases.g.values, slope)


def test_windows_have_sum_one_and_orthogonal_shifts():
    along = np.arange(600) * 0.02
    weight = windows(2.0 + 0.9 * np.arange(9), along, 0.9)
    np.testing.assert_allclose(weight.sum(1), 1)
    overlap = weight @ weight.T
    size = np.sqrt(np.diagonal(overlap))
    np.testing.assert_allclose(overlap / size / size[:, None], np.eye(9), atol=1e-5)


@pytest.mark.parametrize(
    ("exx", "eyy", "exy", "degrees"),
    [(0.02, -0.01, 0.0, 0.0), (0.0, 0.0, 0.015, 0.0), (0.01, 0.02, -0.01, 8.0), (0, 0, 0, 30.0)],
)
def test_uniform_strain_is_read_exactly_whatever_the_rotation(exx, eyy, exy, degrees):
    """A rotation of the whole lattice is that of the reference; the strain stays, in the image's axes."""
    stretch = np.array([[1 + exx, exy], [exy, 1 + eyy]])
    image = plain_lattices.waves(stretch @ plain_lattices.turned(degrees))
    found = strain_of(np.linalg.inv(np.eye(2) - plane(phases_of(image, SQUARE))))
    for name, true in (("exx", exx), ("eyy", eyy), ("exy", exy)):
        assert found[name] == pytest.approx(true, abs=2e-5)


def test_a_small_rotation_against_given_reflections_is_read_exactly():
    """Where the reference is not turned to fit: the phase's formula itself, P = -2π g·u with u = (1 - D⁻¹) r."""
    local = plain_lattices.turned(1.5) @ np.array([[1.01, 0.0], [0.0, 0.99]])
    seen = phases_of(plain_lattices.waves(local), {})
    plain = seen.assign(g=seen.g.copy(data=_rows(seen.g.values)))
    moved = -2 * np.pi * seen.position.values @ (plain.g.values - seen.g.values).T
    again = plain.assign(phase=seen.phase + wrapped(moved))
    found = strain_of(np.linalg.inv(np.eye(2) - plane(again)))
    expected = strain_of(local)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-3 if name == "rotation" else 2e-5)


def _rows(g):
    """The nearest reflections of the undistorted square lattice."""
    return np.rint(g * plain_lattices.SPACING) / plain_lattices.SPACING


def test_strain_of_is_the_polar_decomposition():
    stretch = np.array([[1.05, 0.02], [0.02, 0.97]])
    found = strain_of(stretch @ plain_lattices.turned(25.0))
    assert found["rotation"] == pytest.approx(25)
    np.testing.assert_allclose([found["exx"], found["eyy"], found["exy"]], [0.05, -0.03, 0.02])


def test_white_noise_is_white_in_the_windows():
    """Sums of squares are χ² and products of neighbours vanish, both but once in ten thousand times."""
    rng = np.random.default_rng(0)
    along, centres = np.arange(400) * 0.02, 1.5 + 0.7 * np.arange(8)
    weight = windows(centres, along, 0.7)
    g = np.array([[3.1, 0.4], [-0.8, 2.9]])
    noise = 2.5 * rng.standard_normal((20, 400, 400))
    found = np.stack([demodulated(one, along, along, g, (weight, weight)) for one in noise])
    size = (weight**2).sum(1)
    score = found / np.sqrt(0.5 * 2.5**2 * size[:, None] * size)
    score = np.stack([score.real, score.imag])
    low, high = chi2.ppf([5e-5, 1 - 5e-5], score.size)
    assert low < (score**2).sum() < high
    pairs = score[..., 1:] * score[..., :-1]
    assert abs(pairs.mean()) < 3.9 / np.sqrt(pairs.size)
    between = score[:, :, 0] * score[:, :, 1]
    assert abs(between.mean()) < 3.9 / np.sqrt(between.size)


def test_phases_have_the_errors_that_they_claim():
    """Sums of squares are χ², but for the noise's own error: the median of a ring of waves, 5 % in one image."""
    squares = []
    for seed in range(20):
        seen = phases_of(plain_lattices.waves(noise=1.0, seed=seed), {"resolution": 0.9})
        # The plane that the mean lattice and the origin take off has three numbers for each reflection.
        free = seen.phase.size - 6
        squares.append(float((seen.phase**2 / seen.variance).sum()) / free)
    spread = np.sqrt(2 / free + 0.05**2) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - 1) < 3.9 * spread


def test_reflections_of_the_scenes_are_those_of_their_lattices():
    spacing = {"graphene": 0.246, "tmd": 0.316}
    for name, a in spacing.items():
        image = atomzoo.simulate(name, seed=4)
        found = find_reflections(image.intensity.values, image.y.values, image.x.values)
        length = np.linalg.norm(found.g, axis=1)
        shells = np.sqrt([1, 3, 4, 7]) * 2 / (np.sqrt(3) * a)
        assert (np.abs(length[:, None] / shells - 1).min(1) < 0.03).all()


def test_dislocations_are_found_with_their_burgers_vectors():
    for seed in range(3):
        image = atomzoo.simulate("strained", shape="dislocations", size=6.0, seed=seed)
        seen = phases_of(image, {})
        assert seen.attrs["left_out"] > 0
        assert "dislocations" in seen.attrs["left_out_why"]
        vectors = np.linalg.solve(seen.g.values, -seen.core_turns.values.T).T
        left = seen.core_position.values[:, 0] < image.x.values.mean()
        expected = 0.39 * plain_lattices.turned(7.0)[:, 0]
        np.testing.assert_allclose(vectors[left].sum(0), -expected, atol=0.01)
        np.testing.assert_allclose(vectors[~left].sum(0), expected, atol=0.01)
        # What is left winds nowhere.
        smooth = unwrapped(
            seen.phase.values - seen.wound.values, seen.place.values, seen.modulus.values
        )
        rows, columns = seen.place.values.T[::-1]
        whole = np.full((seen.attrs["rows"], seen.attrs["columns"], 2), np.nan)
        whole[rows, columns] = smooth
        for axis in (0, 1):
            steps = np.diff(whole, axis=axis)
            assert np.abs(steps[np.isfinite(steps)]).max() < np.pi


def test_unwrapping_undoes_wrapping():
    rows, columns = np.mgrid[:12, :15]
    place = np.stack([columns.ravel(), rows.ravel()], 1)
    field = np.stack([1.4 * columns + 0.3 * rows, -0.8 * rows + 0.1 * columns**1.5], -1)
    whole = field.reshape(-1, 2)
    kept = np.random.default_rng(0).random(len(place)) > 0.15
    found = unwrapped(wrapped(whole[kept]), place[kept], np.ones((kept.sum(), 2)))
    turns = (found - whole[kept]) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.broadcast_to(turns[0], turns.shape), atol=1e-9)


def test_vacuum_is_left_out_and_counted():
    image = plain_lattices.waves(pixels=400, noise=0.2, seed=1)
    dark = image.copy(deep=True)
    dark.intensity[:, :150] = 0.2 * np.random.default_rng(2).standard_normal((400, 150))
    seen = validate(phases_of(dark, {}))
    assert seen.position.values[:, 0].min() > 150 * 0.025 - 1.5 * seen.attrs["resolution"]
    assert seen.attrs["left_out"] > 0
    assert "lost in the noise" in seen.attrs["left_out_why"]


def test_what_cannot_be_read_is_refused_with_what_to_do():
    rng = np.random.default_rng(0)
    along = np.arange(128) * 0.02
    with pytest.raises(DataError, match="no lattice"):
        phases_of(image_of(rng.standard_normal((128, 128)), along, along), {})
    stripes = np.cos(2 * np.pi * along / 0.25) + 0.1 * rng.standard_normal((128, 128))
    with pytest.raises(DataError, match=r"one line|no lattice"):
        phases_of(image_of(stripes, along, along), {})
    with pytest.raises(DataError, match="larger frame"):
        phases_of(plain_lattices.waves(pixels=100), {})
    image = plain_lattices.waves()
    with pytest.raises(DataError, match="lattice planes"):
        phases_of(image, {"resolution": 0.2})
    with pytest.raises(DataError, match="reference lattice"):
        phases_of(image, {"a": 0.5, "b": 0.5, "gamma": 90.0})
    with pytest.raises(DataError, match="two directions"):
        phases_of(image, {"g1_x": 3.3, "g2_x": 6.6})


def test_the_strained_scene_moves_its_columns_as_its_maps_say():
    """Differences of neighbours on the lattice, carried by the local lattice that the maps give."""
    for shape, size in (("waves", 3.0), ("inclusion", 5.0)):
        sheet = atomzoo.simulate("strained", gives="atoms", shape=shape, size=size, seed=3)
        lattice, here = sheet.true_lattice_position.values, sheet.true_specimen_position.values
        centre = sheet.true_scan_centre.values
        inner = np.flatnonzero(np.linalg.norm(here - centre, axis=1) < 5)[:200]
        step = 0.39 * plain_lattices.turned(7.0)[:, 0]
        away = np.linalg.norm(lattice[inner, None] + step - lattice[None], axis=2)
        other = away.argmin(1)
        assert away[np.arange(len(inner)), other].max() < 1e-9
        middle = 0.5 * (here[inner] + here[other])
        stretch, turn = _local(sheet, middle)
        expected = np.einsum("nij,njk,k->ni", stretch, turn, step)
        found = here[other] - here[inner]
        # Disorder of 3 pm in each of two columns.
        assert np.std(found - expected) == pytest.approx(0.003 * np.sqrt(2), rel=0.25)


def _local(sheet, at):
    along = sheet.true_map_x.values
    index = np.rint((at - along[0]) / (along[1] - along[0])).astype(int)
    maps = {
        n: sheet[f"true_{n}"].values[index[:, 1], index[:, 0]]
        for n in ("exx", "eyy", "exy", "local_rotation")
    }
    stretch = np.array([[1 + maps["exx"], maps["exy"]], [maps["exy"], 1 + maps["eyy"]]])
    turn = np.array([plain_lattices.turned(degrees) for degrees in maps["local_rotation"]])
    return stretch.transpose(2, 0, 1), turn
