"""The Fourier coefficients of a periodic image."""

import numpy as np
import pytest

from atomzoo.datasets.derived.periodic import periodic
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.datasets.plane_groups import apart, reduced_basis
from atomzoo.datasets.scenes import simulate

SETTINGS = {"misfit": 0.0, "most": 120.0}


def cosines(lattice, amplitudes, noise=0.0, pixels=64):
    """An image of given waves on a lattice, about its middle."""
    points = (np.arange(pixels) - (pixels - 1) / 2) * 0.03
    y, x = np.meshgrid(points, points, indexing="ij")
    waves = np.linalg.inv(lattice).T
    image = noise * np.random.default_rng(0).standard_normal(x.shape)
    for h, value in amplitudes.items():
        kx, ky = np.array(h) @ waves
        image = image + 2 * (value * np.exp(2j * np.pi * (kx * x + ky * y))).real
    return dataset("image", intensity=image, y=points, x=points, units={"y": "nm", "x": "nm"})


LATTICE = reduced_basis(np.array([[0.31, 0.02], [0.09, 0.36]]))
WAVES = {(1, 0): 1.0, (0, 1): 0.8j, (1, 1): 0.5 - 0.3j, (1, -1): 0.4, (2, 1): 0.2, (1, 2): -0.2j}


def test_lattice_and_coefficients_come_back_though_the_window_holds_no_whole_cells():
    found = periodic(cosines(LATTICE, WAVES, noise=0.3), SETTINGS)
    assert validate(found) is found
    assert apart(found["lattice"].values, LATTICE) < 5 * 2**0.5 * float(found["shape_error"])
    turn = np.rint(LATTICE @ np.linalg.inv(found["lattice"].values)).astype(int)
    place = {tuple(h): i for i, h in enumerate(found["index"].values.tolist())}
    for h, value in WAVES.items():
        here = np.array(h) @ np.linalg.inv(turn).T.round().astype(int)
        sign = 1 if tuple(here) in place else -1
        i = place[tuple(sign * here)]
        seen = found["coefficient"].values[i] @ [1, sign * 1j]
        assert abs(seen - value) < 5 * 2**0.5 * float(found["noise"][i])


def test_the_noise_of_coefficients_is_that_of_the_pixels():
    found = periodic(cosines(LATTICE, WAVES, noise=0.3), SETTINGS)
    # Two parts share the variance of a mean over the pixels; some hundred points of the spectrum tell of it.
    assert np.median(found["noise"]) == pytest.approx(0.3 / np.sqrt(2 * 64**2), rel=0.15)
    rough = periodic(cosines(LATTICE, WAVES, noise=0.3), SETTINGS | {"misfit": 0.1})
    size = np.hypot(*rough["coefficient"].values.T)
    assert (rough["noise"].values >= 0.1 * size / 2**0.5).all()


def test_a_weak_superlattice_enlarges_the_cell_and_scan_noise_does_not():
    doubled = np.array([[2, 0], [0, 1]]) @ LATTICE
    waves = {(2 * h, k): value for (h, k), value in WAVES.items()} | {(1, 0): 0.06, (1, 1): 0.06j}
    found = periodic(cosines(doubled, waves, noise=0.1), SETTINGS)
    area = abs(np.linalg.det(found["lattice"].values))
    assert area == pytest.approx(abs(np.linalg.det(doubled)), rel=0.01)
    image = simulate("perovskite", seed=1, material="SrTiO3", field=4.0, jitter=0.004)
    cubic = periodic(image, SETTINGS)["lattice"].values
    assert abs(np.linalg.det(cubic)) == pytest.approx(0.3905**2, rel=0.03)


def test_a_superlattice_shows_though_none_of_its_waves_does_alone():
    """Ten waves of five times the power of noise, which noise alone has once in e^5 times each."""
    doubled = np.array([[2, 0], [0, 1]]) @ LATTICE
    waves = {(2 * h, k): value for (h, k), value in WAVES.items()}
    faint = 5**0.5 * 0.1 / 64
    odd = [(h, k) for h in (1, 3) for k in (-1, 0, 1)] + [(1, 2), (1, -2), (3, 2), (3, -2)]
    weak = waves | {hk: faint * 1j**i for i, hk in enumerate(odd)}
    areas = [
        abs(np.linalg.det(periodic(cosines(doubled, some, noise=0.1), SETTINGS)["lattice"]))
        for some in (waves, weak)
    ]
    cell = abs(np.linalg.det(LATTICE))
    assert areas == pytest.approx([cell, 2 * cell], rel=0.01)


def test_uneven_pixels_are_refused():
    image = cosines(LATTICE, WAVES)
    uneven = image.assign_coords(
        x=("x", image["x"].values ** 3 + image["x"].values, {"units": "nm"})
    )
    with pytest.raises(DataError, match="evenly"):
        periodic(uneven, SETTINGS)
