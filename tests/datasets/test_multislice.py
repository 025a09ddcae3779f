"""Images by multislice: lazy without abTEM, and with it peaks where the truth says, brighter the heavier, in counts."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets.crystals import Solid
from atomzoo.datasets.files import read, write
from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.multislice import Beam, balanced, in_depth
from atomzoo.datasets.scenes import simulate
from atomzoo.datasets.tmd import HEIGHT, STACKS

REASON = 'needs the extra: pip install "atomzoo[multislice]"'
# A frame of a few columns and a beam of few waves, as each costs a millisecond; with what a scan does to columns.
BEAM = {"energy": 80.0, "convergence": 25.0, "outer_angle": 150.0}
SMALL = {"field": 0.7, "pixel": 0.02, "shear": 0.03, "drift": 0.01, "jitter": 0.0}


@cache
def image(name: str, **given: Any) -> xr.Dataset:
    """A simulated image, made once."""
    pytest.importorskip("abtem", reason=REASON)
    return simulate(name, seed=3, render="multislice", **BEAM, **SMALL, **given)


def graphene() -> xr.Dataset:
    return image("graphene")


def alloy() -> xr.Dataset:
    return image("tmd", tungsten=0.4, chalcogen_vacancies=0.0)


def top(data: xr.Dataset, place: np.ndarray) -> np.ndarray:
    """The brightest point of the expected image near a place: of a parabola along x and one along y."""
    mean, x, y = data.true_mean.values, data.x.values, data.y.values
    near = np.hypot(x - place[0], y[:, None] - place[1]) < 0.06
    row, col = np.unravel_index(np.argmax(np.where(near, mean, -1.0)), mean.shape)
    lines = (x, mean[row], col), (y, mean[:, col], row)
    found = []
    for at, values, i in lines:
        before, here, after = values[i - 1 : i + 2]
        step = (before - after) / 2 / (before - 2 * here + after)
        found.append(at[i] + float(data.true_pixel) * step)
    return np.array(found)


def inner(data: xr.Dataset) -> np.ndarray:
    """Columns whose surroundings are in the frame."""
    place = data.true_position.values
    return ((place > 0.08) & (place < float(data.x[-1]) - 0.08)).all(1)


# Without abTEM.


def test_the_import_waits_until_it_is_asked_for() -> None:
    code = (
        "import sys; from atomzoo.datasets.scenes import scenes, simulate; scenes(); "
        "simulate('graphene', field=1.0); sys.exit(bool({'abtem', 'ase'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_abtem_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(DataError, match=r"pip install \"atomzoo\[multislice\]\"") as caught:
        simulate("graphene", render="multislice", field=1.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("phonons", [4, 8, 20])
def test_displacements_of_an_atom_balance_and_have_the_covariance_asked_for(phonons: int) -> None:
    shakes = balanced(np.random.default_rng(1), 50, phonons, 0.006)
    assert shakes.shape == (phonons, 50, 2)
    np.testing.assert_allclose(shakes.mean(0), 0, atol=1e-12)
    covariance = np.einsum("pna,pnb->nab", shakes, shakes) / phonons
    expected = np.broadcast_to(0.006**2 * np.eye(2), (50, 2, 2))
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_many_displacements_are_distributed_normally() -> None:
    shakes = balanced(np.random.default_rng(2), 1, 4000, 1.0)[:, 0]
    square = np.sort((shakes**2).sum(1) / 2)
    # One in four of them is a quantile: between neighbours the distribution rises by a thousandth.
    assert np.abs((1 - np.exp(-square)) - (np.arange(4000) + 0.5) / 4000).max() < 1e-3


WRONG = [
    (
        "graphene",
        {"render": "raytrace"},
        r"render must be one of peaks, multislice, found 'raytrace'",
    ),
    ("graphene", {"gives": "atoms"}, r"multislice gives an image only; take gives=image"),
    ("graphene", {"probe": 0.05, "spread": 0.0}, r"probe, spread .* means nothing"),
    ("tmd", {"z_power": 1.7}, r"z_power .* means nothing"),
    ("graphene", {"inner_angle": 20.0}, r"convergence < inner_angle < outer_angle"),
    ("graphene", {"energy": 0.06}, r"energy must be from 20 to 1000 kV, found 0\.06"),
    ("graphene", {"vibration": 6.0}, r"vibration must be from 0 to 0\.03 nm, found 6"),
    ("graphene", {"phonons": 6}, r"phonons must be a multiple of four, found 6"),
    ("perovskite", {"thickness": 0.0}, r"thickness must be from 0 to 100 nm, found 0"),
    ("solid_solution", {}, r"solid_solution has no parameter render"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_a_wrong_parameter_is_refused_in_one_line(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        simulate(name, **{"render": "multislice", **given})
    assert "\n" not in str(caught.value)


def test_an_electron_of_60_kilovolts_has_a_wavelength_of_4_87_picometres() -> None:
    # E. J. Kirkland's table of wavelengths.
    for energy, picometres in ((60.0, 4.866), (100.0, 3.701), (200.0, 2.508)):
        assert Beam(energy=energy).wavelength == pytest.approx(picometres * 1e-3, abs=1e-6)


def test_a_monolayer_has_its_metals_between_its_chalcogens() -> None:
    pytest.importorskip("ase", reason=REASON)
    places, box = np.array([[0.1, 0.1], [0.3, 0.1]]), np.array([0.5, 0.5])
    molybdenum, sulphur = 0, 4
    atoms = in_depth(Solid(STACKS, np.zeros(2, int)), places, np.array([molybdenum, sulphur]), box)
    assert sorted(atoms.symbols) == ["Mo", "S", "S"]
    height = {s: atoms.positions[atoms.symbols == s, 2] for s in ("Mo", "S")}
    np.testing.assert_allclose(height["S"].mean(), height["Mo"])
    assert np.ptp(height["S"]) == pytest.approx(20 * HEIGHT)


# With abTEM.


@pytest.mark.slow
@pytest.mark.parametrize("made", [graphene, alloy])
def test_peaks_lie_at_the_true_positions_within_a_pixel(made: Any) -> None:
    data = made()
    chosen = np.flatnonzero(inner(data))
    assert len(chosen) >= 6
    true = data.true_position.values[chosen]
    away = np.array([top(data, place) for place in true]) - true
    assert np.hypot(*away.T).max() < float(data.true_pixel)


@pytest.mark.slow
def test_heavier_columns_are_brighter_and_alone_they_have_the_dose() -> None:
    data = alloy()
    names, kinds = data.attrs["species_names"], data.true_species.values
    place, mean = data.true_position.values, data.true_mean.values
    brightest = {}
    for name in ("W", "Mo", "S2"):
        chosen = inner(data) & (kinds == names.index(name))
        col, row = np.rint(place[chosen] / float(data.true_pixel)).astype(int).T
        brightest[name] = mean[row, col]
        assert len(brightest[name])
    assert brightest["W"].min() > brightest["Mo"].max() > brightest["Mo"].min()
    assert brightest["Mo"].min() > brightest["S2"].max()
    alone = {n: data.true_intensity.values[kinds == names.index(n)] for n in brightest}
    np.testing.assert_allclose(alone["Mo"], float(data.true_dose))
    assert alone["W"].min() > alone["Mo"].max() > alone["S2"].max()


@pytest.mark.slow
def test_pixels_are_counts_about_the_true_mean() -> None:
    data = graphene()
    mean = data.true_mean.values
    counts = data.intensity.values
    np.testing.assert_array_equal(counts, np.rint(counts))
    chi = (counts - mean) ** 2 / mean
    # A count has the fourth moment λ + 3 λ²: its squared error over its mean spreads by 2 + 1 / λ.
    assert abs(chi.mean() - 1) < 5 * math.sqrt((2 + 1 / mean).mean() / mean.size)
    assert abs((counts - mean).sum()) < 5 * math.sqrt(mean.sum())


@pytest.mark.slow
def test_places_and_species_are_those_of_the_drawn_image_and_the_beam_is_told(
    tmp_path: Any,
) -> None:
    data = graphene()
    drawn = simulate("graphene", seed=3, **SMALL)
    for name in ("position", "specimen_position", "species", "scan_matrix", "row_drift", "dose"):
        xr.testing.assert_equal(data[f"true_{name}"], drawn[f"true_{name}"])
    assert {k: data.attrs[k] for k in vars(Beam())} == vars(Beam("multislice", **BEAM))
    assert not {"true_probe", "true_tail", "true_spread", "true_z_power"} & set(data.data_vars)
    assert float(data.true_beam_electrons) > float(data.true_mean.max())
    write(data, tmp_path / "image.nc")
    assert read(tmp_path / "image.nc").identical(data)
