"""Windows and displacements: spacings, noise, positions, covariances, refusals."""

import math

import numpy as np
import pytest

from atomzoo.datasets.derived.displacements import displacements, two_sublattices
from atomzoo.datasets.derived.windows import magnitudes, own_spacing, windows
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.datasets.scenes import simulate


def image_of(values, pixel=0.04):
    rows, cols = values.shape
    return dataset(
        "image",
        intensity=values,
        y=np.arange(rows) * pixel,
        x=np.arange(cols) * pixel,
        units={"y": "nm", "x": "nm"},
    )


@pytest.mark.parametrize("spacing", [0.2, 0.31, 0.47])
def test_the_own_spacing_of_waves_is_theirs(spacing):
    x = np.arange(300) * 0.04
    waves = np.cos(2 * np.pi * (0.6 * x + 0.8 * x[:, None]) / spacing)
    # A wave's place in the spectrum is known to a fraction of 1 / length.
    assert abs(own_spacing(waves, 0.04) - spacing) < 0.5 * spacing**2 / 12


@pytest.mark.parametrize("make", [windows, magnitudes])
def test_windows_of_white_noise_are_alike_and_independent(make):
    rng = np.random.default_rng(1)
    image = image_of(rng.poisson(30, (400, 400)).astype(float))
    seen = validate(make(image, {"size": 1.12}))
    name = next(iter(seen.data_vars))
    value = seen[name].values
    if make is magnitudes:
        value = value @ np.linalg.inv(seen["noise_root"].values)
    side = math.isqrt(len(value))
    centred = (value - value.mean(0)).reshape(side, side, -1)
    size = (centred**2).mean()
    assert abs(size - 1) < 0.1
    count = centred.size
    for one, other in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        # Half a window apart the powers have a correlation of 1/36, and magnitudes no more.
        assert abs((one * other).mean() / size) < 1 / 36 + 4.5 / math.sqrt(count)


def test_the_map_lies_more_densely_over_the_same_image():
    image = simulate("two_phases", seed=1, field=6.0, size=2.0)
    seen = windows(image, {})
    assert seen.sizes["place"] > 4 * seen.sizes["window"]
    half = seen.attrs["size"] / 2
    for name in ("position", "fine_position"):
        place = seen[name].values
        assert place.min() >= half - 0.04
        assert place.max() <= 6.0 - half + 0.04
    assert seen.attrs["left_out"] > 0
    assert "half a window" in seen.attrs["left_out_why"]


def test_images_without_windows_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="too few"):
        windows(image_of(rng.random((40, 40))), {"size": 1.4})
    image = image_of(rng.random((40, 40)))
    oblong = image.assign_coords(x=("x", np.arange(40) * 0.05, {"units": "nm"}))
    with pytest.raises(DataError, match="square"):
        windows(oblong, {})
    with pytest.raises(DataError, match="step"):
        windows(image_of(rng.random((80, 80))), {"step": 0.0})


def test_two_phases_are_where_their_map_says():
    image = simulate("two_phases", seed=1, second="ordered", shape="discs")
    place = np.rint(image["true_position"].values / 0.04).astype(int)
    inside = ((place >= 0) & (place < 400)).all(1)
    said = image["true_phase"].values[place[inside, 1], place[inside, 0]]
    # Columns at the boundary are displaced by disorder and rounded to a pixel.
    assert (said == image["true_site"].values[inside]).mean() > 0.97
    with pytest.raises(DataError, match="second"):
        simulate("two_phases", second="round")


@pytest.mark.parametrize("scan", [0, 1])
def test_atoms_that_move_alone_have_the_same_variance_in_every_coordinate(scan):
    atoms = simulate(
        "perovskite", gives="atoms", seed=2, material="SrTiO3", field=30.0, pixel=0.05,
        disorder=0.01, drift=0.0, jitter=0.0, precision=0.002,
    )  # fmt: skip
    seen = displacements(atoms, {"scan": scan})
    assert seen.sizes["feature"] == 8 - 2 * scan
    value = seen["displacement"].values
    covariance = np.cov(value.T) / (0.01**2 + 0.002**2)
    # Every second shell shares no atom with the next: errors as of a quarter of the atoms, 36 figures.
    error = 4.5 * math.sqrt(2 / (len(value) / 4))
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=error)
    # Positions are known alike in all directions, and so are coordinates.
    one = np.eye(len(covariance)) * 0.002**2
    np.testing.assert_allclose(seen["error"].values[0], one, atol=1e-12)


def test_coordinates_along_patterns_are_the_shell():
    atoms = simulate("perovskite", gives="atoms", seed=1, field=6.0)
    seen = displacements(atoms, {"scan": 0})
    shell = (
        np.einsum("nf,fsx->nsx", seen["displacement"], seen["pattern"]) + seen["mean_shell"].values
    )
    position = atoms["position"].values
    true = position[seen["neighbour_atom"].values] - position[seen["atom"].values][:, None]
    np.testing.assert_allclose(shell, true, atol=1e-12)


def test_sublattices_are_told_by_bonds_whatever_the_species():
    atoms = simulate("solid_solution", gives="atoms", seed=1, field=8.0)
    kinds = two_sublattices(atoms["position"].values)
    assert kinds is not None
    same = (kinds == (atoms["true_species"].values == 2)).mean()
    assert max(same, 1 - same) == 1
    assert two_sublattices(np.random.default_rng(0).random((200, 2))) is None
    # B, the dimmer, is in the middle.
    centres = displacements(atoms, {})["atom"].values
    assert (atoms["true_species"].values[centres] == 2).all()


def test_what_has_no_shells_is_refused():
    few = dataset(
        "atoms", position=np.random.default_rng(0).random((3, 2)), units={"position": "nm"}
    )
    with pytest.raises(DataError, match="larger field"):
        displacements(few, {})
    crystal = simulate("two_phases", gives="atoms", shape="none", field=6.0)
    with pytest.raises(DataError, match="centres=3"):
        displacements(crystal, {"centres": 1})
    with pytest.raises(DataError, match="whole number"):
        displacements(crystal, {"neighbours": 2.5})
