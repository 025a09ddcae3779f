"""Scenes of structure: their physics, their statistics, and that nothing of the truth is missing."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree

from atomzoo.datasets.files import read, write
from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.microscope import Probe, Scan, measure, render
from atomzoo.datasets.multislice import Beam
from atomzoo.datasets.relax import BENDING, misfits, relax
from atomzoo.datasets.scenes import find_scene, simulate
from atomzoo.datasets.twins import Walls, rhombohedral, tetragonal

NAMES = ["graphene", "tmd", "perovskite"]
# Nothing moves and nothing varies.
STILL = {"disorder": 0.0, "spread": 0.0, "rotation": 0.0}
STRAIGHT = {"shear": 0.0, "drift": 0.0, "jitter": 0.0}
HARD = {
    "shear": 0.04,
    "scale": 1.02,
    "stretch": 0.97,
    "drift": 0.05,
    "jitter": 0.004,
    "tail": 0.2,
    "contamination": 0.7,
    "readout": 2.0,
    "rotation": 25.0,
}


def crystal(name: str, seed: int = 0, **given: Any) -> xr.Dataset:
    """A scene without disorder or distortion, as atoms."""
    return simulate(name, seed=seed, **{**STILL, **STRAIGHT, "gives": "atoms", **given})


def within_binomial(found: int, total: int, share: float) -> bool:
    """Within five standard deviations, and one for the odd count."""
    return abs(found - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1


def scan_of(data: xr.Dataset) -> Scan:
    y = data.true_row_y.values
    return Scan(
        y, y, data.true_scan_matrix.values, data.true_row_drift.values, data.true_row_jitter.values
    )


def probe_of(data: xr.Dataset) -> Probe:
    core, tail = (math.hypot(w, data.true_source) for w in (data.true_probe, data.true_tail_width))
    return Probe(core, float(data.true_tail), tail)


def site(data: xr.Dataset, name: str) -> np.ndarray:
    return data.true_site.values == data.attrs["site_names"].index(name)


def species(data: xr.Dataset, name: str) -> np.ndarray:
    return data.true_species.values == data.attrs["species_names"].index(name)


def bonds(position: np.ndarray, longest: float) -> list[list[int]]:
    tree = cKDTree(position)
    return [
        [j for j in near if j != i]
        for i, near in enumerate(tree.query_ball_point(position, longest))
    ]


def rings(position: np.ndarray, longest: float) -> list[list[int]]:
    """The faces of the graph of bonds: at every atom, leave by the bond next to the one you came by."""
    angle = [
        sorted(near, key=lambda j, i=i: math.atan2(*(position[j] - position[i])[::-1]))
        for i, near in enumerate(bonds(position, longest))
    ]
    left = {(i, j) for i, near in enumerate(angle) for j in near}
    found = []
    while left:
        start = at = min(left)
        ring = []
        while at in left:
            left.remove(at)
            ring.append(at[0])
            near = angle[at[1]]
            at = (at[1], near[near.index(at[0]) - 1])
        if at == start:
            found.append(ring)
    return found


# What all scenes promise.


@pytest.mark.parametrize("name", NAMES)
def test_the_image_is_made_of_nothing_but_its_truth(name: str) -> None:
    data = simulate(name, seed=2, **HARD)
    scan = scan_of(data)
    inside = data.true_specimen_position.values
    outside = scan.specimen_position(data.true_outside_position.values)
    electrons = np.concatenate([data.true_intensity.values, data.true_outside_intensity.values])
    again = render(np.concatenate([inside, outside]), electrons, probe_of(data), scan)
    mean = data.true_mean.values
    np.testing.assert_allclose(
        again + data.true_haze.values, mean, rtol=1e-8, atol=1e-9 * mean.max()
    )


@pytest.mark.parametrize("name", NAMES)
def test_true_positions_are_the_specimen_seen_through_the_scan(name: str) -> None:
    data = simulate(name, seed=2, **HARD)
    seen = scan_of(data).image_position(data.true_specimen_position.values)
    np.testing.assert_allclose(seen, data.true_position.values, atol=1e-9)
    matrix = 1.02 * np.array([[1, 0.04], [0, 0.97]])
    np.testing.assert_allclose(data.true_scan_matrix, matrix)
    still = (data.true_specimen_position - data.true_scan_centre).values @ matrix.T
    moved = data.true_position.values - data.true_scan_centre.values - still
    for axis in range(2):
        row = np.interp(data.true_position[:, 1], data.true_row_y, data.true_row_drift[:, axis])
        np.testing.assert_allclose(moved[:, axis], row, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_vary_as_counts_with_the_noise_of_the_detector(name: str) -> None:
    data = simulate(name, seed=3, readout=1.5, contamination=0.5)
    mean = data.true_mean.values
    error = data.intensity.values - mean
    variance = mean + 1.5**2
    # A count has the fourth moment λ + 3 λ²: the square of the error over its variance spreads by 2 + λ / variance².
    spread = math.sqrt(float((2 + mean / variance**2).mean()) / mean.size)
    assert abs(float((error**2 / variance).mean()) - 1) < 5 * spread
    assert abs(float((error / np.sqrt(variance)).mean())) < 5 / math.sqrt(mean.size)
    bright = mean > np.quantile(mean, 0.9)
    spread = math.sqrt(float((2 + mean / variance**2)[bright].mean()) / bright.sum())
    assert abs(float((error**2 / variance)[bright].mean()) - 1) < 5 * spread


@pytest.mark.parametrize("name", NAMES)
def test_image_and_atoms_of_a_seed_are_of_the_same_crystal(name: str) -> None:
    image, atoms = (simulate(name, seed=5, gives=gives) for gives in ("image", "atoms"))
    shared = {v for v in image.data_vars if str(v).startswith("true_")} - {"true_mean", "true_haze"}
    told = {v for v in atoms.data_vars if str(v).startswith("true_")} - {"true_intensity_error"}
    assert shared == told
    for variable in shared:
        np.testing.assert_array_equal(image[variable], atoms[variable])


@pytest.mark.parametrize("name", NAMES)
def test_atoms_are_as_far_off_as_their_covariance_says_and_that_is_the_bound(name: str) -> None:
    atoms = simulate(name, seed=6, gives="atoms", jitter=0.0)
    image = simulate(name, seed=6, jitter=0.0)
    error = (atoms.position - atoms.true_position).values
    distance = np.einsum("ni,nij,nj->n", error, np.linalg.inv(atoms.covariance.values), error)
    # χ² with two degrees of freedom: mean 2, variance 4.
    assert abs(distance.mean() - 2) < 5 * math.sqrt(4 / len(distance))
    bound = measure(
        image.true_specimen_position.values,
        image.true_intensity.values,
        probe_of(image),
        scan_of(image),
        image.true_mean.values,
    ).covariance
    np.testing.assert_allclose(atoms.covariance, bound[:, :2, :2], rtol=1e-9)
    np.testing.assert_allclose(atoms.true_intensity_error, np.sqrt(bound[:, 2, 2]), rtol=1e-9)
    off = ((atoms.intensity - atoms.true_intensity) / atoms.true_intensity_error).values
    assert abs((off**2).mean() - 1) < 5 * math.sqrt(2 / len(off))


@pytest.mark.parametrize("name", NAMES)
def test_jitter_is_in_the_covariance_and_a_precision_replaces_it(name: str) -> None:
    calm, shaken = (crystal(name, jitter=jitter) for jitter in (0.0, 0.01))
    assert (shaken.covariance[:, 0, 0] > calm.covariance[:, 0, 0] + 1e-6).mean() > 0.95
    np.testing.assert_allclose(shaken.covariance[:, 1, 1], calm.covariance[:, 1, 1], rtol=0.5)
    given = crystal(name, precision=0.004)
    np.testing.assert_allclose(
        given.covariance, np.broadcast_to(np.eye(2) * 0.004**2, given.covariance.shape)
    )
    error = (given.position - given.true_position).values
    assert abs((error**2).mean() / 0.004**2 - 1) < 5 * math.sqrt(2 / error.size)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_scene_is_in_its_truth(name: str) -> None:
    data = simulate(name)
    for parameter, value in find_scene(name).parameters.items():
        if parameter in vars(Beam()) and parameter != "render":
            # Of a beam that was not sent.
            assert f"true_{parameter}" not in data
        elif not isinstance(value, str):
            assert data[f"true_{parameter}"].shape == ()
            assert float(data[f"true_{parameter}"]) == value
        elif parameter != "gives":
            assert data.attrs[parameter] == value


@pytest.mark.parametrize("name", NAMES)
def test_disorder_and_spread_have_the_size_that_was_asked_for(name: str) -> None:
    still = crystal(name, seed=7)
    # The same places and species; columns at the rim may leave the frame.
    moved = crystal(name, seed=7, disorder=0.004, spread=0.1)
    step, which = cKDTree(still.true_position.values).query(moved.true_position.values)
    near = step < 0.03
    assert near.mean() > 0.9
    shift = (moved.true_position.values - still.true_position.values[which])[near]
    assert abs((shift**2).mean() / 0.004**2 - 1) < 5 * math.sqrt(2 / shift.size)
    ratio = np.log(moved.true_intensity.values / still.true_intensity.values[which])[near]
    assert abs((ratio**2).mean() / 0.1**2 - 1) < 5 * math.sqrt(2 / ratio.size)


@pytest.mark.parametrize("name", NAMES)
def test_background_and_dirt_are_smooth_and_as_high_as_asked_for(name: str) -> None:
    data = simulate(name, seed=8, background=0.2, contamination=0.6)
    peak = float(data.true_dose) * float(data.true_pixel) ** 2 * probe_of(data).peak
    haze = data.true_haze.values / peak
    assert haze.min() >= 0.2 * 0.75
    assert haze.max() <= 0.2 * 1.25 + 0.6 + 1e-12
    # Nothing in it is narrower than a blotch, whose steepest slope is its height × e^(-1/2) / width.
    slope = np.abs(np.diff(haze, axis=0)).max() / float(data.true_pixel)
    assert slope < 10 * 0.6 * math.exp(-0.5) / 0.4
    clean = simulate(name, seed=8, background=0.2)
    assert np.ptp(clean.true_haze.values) / peak <= 0.2 * 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gives", ["image", "atoms"])
def test_a_scene_comes_back_from_a_file_as_it_was(name: str, gives: str, tmp_path: Any) -> None:
    data = simulate(name, seed=9, gives=gives, field=3.0)
    write(data, tmp_path / "scene.nc")
    assert read(tmp_path / "scene.nc").identical(data)


# Graphene.


def test_perfect_graphene_has_one_bond_length_and_hexagons_only() -> None:
    data = crystal("graphene")
    place = data.true_specimen_position.values
    near = bonds(place, 0.17)
    lengths = [math.dist(place[i], place[j]) for i, js in enumerate(near) for j in js]
    np.testing.assert_allclose(lengths, 0.246 / math.sqrt(3), rtol=1e-9)
    assert (data.true_coordination == 3).all()
    sizes = Counter(len(ring) for ring in rings(place, 0.17))
    # One more face is the outside; those that the frame cuts open are part of it.
    assert {size for size in sizes if size < 20} == {6}
    # Two atoms a cell, and an error for the rim of the frame.
    expected = 5.0**2 / (math.sqrt(3) / 2 * 0.246**2) * 2
    assert abs(len(place) - expected) < 4 * 5.0 / 0.246


@cache
def bicrystal(tilt: float) -> xr.Dataset:
    return crystal("graphene", tilt=tilt + 0.3, field=6.0, pixel=0.02)


TILTS = {7.34: (5, 4), 9.43: (4, 3), 13.17: (3, 2), 21.79: (2, 1), 27.80: (3, 1)}


@pytest.mark.parametrize("tilt", list(TILTS))
def test_a_boundary_has_a_pentagon_and_a_heptagon_in_every_period(tilt: float) -> None:
    n, m = TILTS[tilt]
    period = 0.246 * math.sqrt(n * n + n * m + m * m)
    data = bicrystal(tilt)
    place = data.true_specimen_position.values - data.true_scan_centre.values
    found = rings(place, 0.175)
    whole = math.floor(5.0 / period) * period
    middles = {
        size: np.array([place[ring].mean(0) for ring in found if len(ring) == size] or [[9, 9]])
        for size in (5, 7)
    }
    assert {len(ring) for ring in found if len(ring) < 12} == {5, 6, 7}
    for size in (5, 7):
        along = middles[size][:, 1]
        assert ((-whole / 2 <= along) & (along < whole / 2)).sum() == round(whole / period)
        assert np.abs(middles[size][:, 0]).max() < 0.4
        # Strictly periodic, but for what the rim of the crystal does to the relaxation.
        np.testing.assert_allclose(np.diff(np.sort(along)), period, rtol=0.02)
    for size, words in ((5, ("pentagon",)), (7, ("heptagon",))):
        members = {i for ring in found if len(ring) == size for i in ring}
        classed = np.flatnonzero(
            np.any([site(data, w) for w in (*words, "pentagon and heptagon")], axis=0)
        )
        # Rings that the frame cuts are not counted here, but their atoms know.
        assert members <= set(classed.tolist())
        assert np.abs(place[sorted(set(classed.tolist()) - members), 1]).min(initial=9) > 2.4


@pytest.mark.parametrize("tilt", list(TILTS))
def test_two_grains_are_at_the_angle_told_and_their_bonds_are_relaxed(tilt: float) -> None:
    data = bicrystal(tilt)
    assert float(data.true_tilt) == pytest.approx(tilt, abs=0.005)
    place = data.true_specimen_position.values - data.true_scan_centre.values
    pairs = [(i, j) for i, near in enumerate(bonds(place, 0.175)) for j in near]
    vectors = np.array([place[j] - place[i] for i, j in pairs])
    lengths, x = np.linalg.norm(vectors, axis=1), np.array([place[i][0] for i, _ in pairs])
    assert lengths.min() > 0.13
    assert lengths.max() < 0.155
    np.testing.assert_allclose(lengths[np.abs(x) > 2], 0.246 / math.sqrt(3), rtol=0.01)
    # Where the grains begin to move as one there is no strain left to speak of.
    np.testing.assert_allclose(lengths[np.abs(x) > 2.7], 0.246 / math.sqrt(3), rtol=1e-3)
    turns = np.exp(6j * np.arctan2(vectors[:, 1], vectors[:, 0]))
    apart = np.degrees(np.angle(turns[x < -1.5].mean() / turns[x > 1.5].mean())) / 6
    assert abs(apart) == pytest.approx(tilt, abs=0.3)
    assert (data.true_coordination == 3).all()


def test_keatings_energy_has_the_slope_that_it_says_and_none_after_relaxation() -> None:
    rng = np.random.default_rng(10)
    near = np.full((5, 4), -1)
    for atom, others in enumerate([(1, 2, 3), (0, 4), (0,), (0,), (1,)]):
        near[atom, : len(others)] = others
    place, length = 0.1 * rng.standard_normal((5, 2)), np.full((5, 4), 0.142)

    def energy(shift: np.ndarray) -> float:
        # Word for word that of the docstring.
        at, found = place + shift, 0.0
        for atom, others in enumerate(near):
            d = [at[other] - at[atom] for other in others if other >= 0]
            found += sum(3 / 32 * (v @ v - 0.142**2) ** 2 / 0.142**2 for v in d)
            pairs = [(v, w) for i, v in enumerate(d) for w in d[:i]]
            found += BENDING * sum(3 / 8 * (v @ w / 0.142 + 0.071) ** 2 for v, w in pairs)
        return float(found)

    misfit, jacobian = misfits(place, near, length)
    assert misfit @ misfit / 2 == pytest.approx(energy(np.zeros(2)), rel=1e-12)
    gradient = (jacobian.T @ misfit).reshape(5, 2)
    for index in np.ndindex(5, 2):
        step = np.zeros((5, 2))
        step[index] = 1e-6
        assert (energy(step) - energy(-step)) / 2e-6 == pytest.approx(gradient[index], abs=1e-8)
    start = np.array([[0, 0], [0.15, 0], [-0.07, 0.12], [-0.07, -0.13], [0.22, 0.12]])
    misfit, _ = misfits(relax(start, near, length), near, length)
    assert misfit @ misfit < 1e-12


def test_vacancies_are_as_many_as_asked_for_and_leave_three_neighbours() -> None:
    data = crystal("graphene", seed=3, vacancies=0.01, field=12.0, pixel=0.03, probe=0.05)
    missing = data.true_missing_position.values
    assert within_binomial(len(missing), len(missing) + data.sizes["atom"], 0.01)
    inner = ((missing > 0.2) & (missing < 11.7)).all(1)
    tree = cKDTree(data.true_position.values)
    around = tree.query_ball_point(missing[inner], 0.17)
    assert {len(near) for near in around} == {3}
    neighbours = np.concatenate(around).astype(int)
    assert site(data, "next to a vacancy")[neighbours].all()
    assert (data.true_coordination.values[neighbours] == 2).all()
    assert (data.true_coordination.values[site(data, "bulk")] == 3).all()


def test_silicon_has_three_or_four_bonds_longer_than_those_of_carbon_and_shines_as_z_to_a_power() -> (
    None
):
    share = 0.006
    data = crystal(
        "graphene", seed=4, silicon_3=share, silicon_4=share, z_power=1.5, field=8.0, pixel=0.03
    )
    place, total = data.true_specimen_position.values, data.sizes["atom"]
    near = bonds(place, 0.2)
    inner = ((data.true_position > 0.3) & (data.true_position < 7.6)).all("axis").values
    for count in (3, 4):
        chosen = site(data, f"silicon with {count} bonds")
        assert within_binomial(int(chosen.sum()), total, share)
        assert (data.true_coordination.values[chosen] == count).all()
        for i in np.flatnonzero(chosen & inner):
            lengths = [math.dist(place[i], place[j]) for j in near[i]]
            assert len(lengths) == count
            assert 0.15 < min(lengths) <= max(lengths) < 0.195
        np.testing.assert_array_equal(species(data, "Si")[chosen], True)
    ratio = data.true_intensity.values[species(data, "Si")] / float(data.true_dose)
    np.testing.assert_allclose(ratio, (14 / 6) ** 1.5)
    np.testing.assert_allclose(
        data.true_intensity.values[species(data, "C")], float(data.true_dose)
    )


@pytest.mark.parametrize(
    ("edge", "steps"), [("zigzag", (0.246, 0.246)), ("armchair", (0.142, 0.284))]
)
def test_an_edge_is_straight_and_of_its_kind(edge: str, steps: tuple[float, float]) -> None:
    data = crystal("graphene", edge=edge)
    chosen = site(data, f"{edge} edge")
    place = data.true_specimen_position.values[chosen]
    assert (data.true_coordination.values[chosen] == 2).all()
    assert (data.true_coordination.values[~chosen] == 3).all()
    assert np.ptp(place[:, 0]) < 1e-9
    assert place[:, 0].max() == pytest.approx(data.true_specimen_position.values[:, 0].max())
    found = np.diff(np.sort(place[:, 1]))
    for start in (0, 1):
        np.testing.assert_allclose(found[start::2], found[start], rtol=1e-9)
    np.testing.assert_allclose(sorted(found[:2]), steps, atol=2e-4)


# MoS2 and its alloys.


def test_2h_has_three_chalcogens_around_a_metal_and_intensities_of_its_atoms() -> None:
    data = crystal("tmd", tungsten=0.0, chalcogen_vacancies=0.0, z_power=1.6)
    metal = site(data, "metal")
    place, other = data.true_position.values[metal], data.true_position.values[~metal]
    inner = ((place > 0.4) & (place < 8.5)).all(1)
    distance, _ = cKDTree(other).query(place[inner], 4)
    np.testing.assert_allclose(distance[:, :3], 0.316 / math.sqrt(3), rtol=1e-9)
    assert (distance[:, 3] > 0.36).all()
    distance, _ = cKDTree(place).query(place[inner], 7)
    np.testing.assert_allclose(distance[:, 1:], 0.316, rtol=1e-9)
    assert float(data.true_field) == 9.0
    np.testing.assert_allclose(data.true_intensity.values[metal], 1500.0)
    np.testing.assert_allclose(data.true_intensity.values[~metal], 1500 * 2 * (16 / 42) ** 1.6)
    assert not data.true_displacement.values.any()


def test_substitutions_and_vacancies_are_as_frequent_as_asked_for() -> None:
    shares = {"tungsten": 0.1, "rhenium": 0.2, "vanadium": 0.15}
    selenium, gone, lost = 0.4, 0.05, 0.03
    data = crystal(
        "tmd",
        5,
        **shares,
        selenium=selenium,
        chalcogen_vacancies=gone,
        metal_vacancies=lost,
        field=12.0,
    )
    count = {name: int(species(data, name).sum()) for name in data.attrs["species_names"]}
    missing = data.true_missing_species.values
    metals = sum(count[name] for name in ("Mo", "W", "Re", "V"))
    lost_metals = int((missing < 4).sum())
    assert within_binomial(lost_metals, metals + lost_metals, lost)
    for name, share in zip(("W", "Re", "V"), shares.values(), strict=True):
        assert within_binomial(count[name], metals, share)
    columns = sum(count[name] for name in ("S2", "SSe", "Se2", "S", "Se")) + int(
        (missing >= 4).sum()
    )
    light, heavy = (1 - selenium) * (1 - gone), selenium * (1 - gone)
    expected = {
        "S2": light**2,
        "SSe": 2 * light * heavy,
        "Se2": heavy**2,
        "S": 2 * light * gone,
        "Se": 2 * heavy * gone,
    }
    for name, share in expected.items():
        assert within_binomial(count[name], columns, share)
    assert within_binomial(int((missing >= 4).sum()), columns, gone**2)
    for name in expected:
        values = data.true_intensity.values[species(data, name)] / float(data.true_dose)
        light_ones, heavy_ones = {
            "S2": (2, 0),
            "SSe": (1, 1),
            "Se2": (0, 2),
            "S": (1, 0),
            "Se": (0, 1),
        }[name]
        np.testing.assert_allclose(values, (light_ones * 16**1.7 + heavy_ones * 34**1.7) / 42**1.7)
        one = int(name in ("S", "Se"))
        assert (data.true_vacancies.values[species(data, name)] == one).all()
    for name, number in {"W": 74, "Re": 75, "V": 23}.items():
        values = data.true_intensity.values[species(data, name)] / float(data.true_dose)
        np.testing.assert_allclose(values, (number / 42) ** 1.7)


def test_places_next_to_a_vacancy_are_those_a_bond_away() -> None:
    data = crystal("tmd", 6, chalcogen_vacancies=0.03, metal_vacancies=0.02)
    near = site(data, "metal next to a vacancy") | site(data, "chalcogen next to a vacancy")
    place = data.true_position.values
    lacking = np.concatenate(
        [place[data.true_vacancies.values > 0], data.true_missing_position.values]
    )
    inner = ((place > 0.3) & (place < 8.6)).all(1)
    distance, _ = cKDTree(lacking).query(place, 2)
    # Of two, since a column with a vacancy is at no distance of itself.
    bond = np.where(distance[:, 0] > 0.01, distance[:, 0], distance[:, 1])
    np.testing.assert_array_equal(near[inner], bond[inner] < 0.2)


def test_1t_prime_has_zigzag_chains_of_metal_and_chalcogens_one_by_one() -> None:
    dimer = 0.02
    data = crystal("tmd", rhenium=0.8, dimer=dimer, chalcogen_vacancies=0.0)
    assert (data.true_phase == 1).all()
    place = data.true_position.values
    metal = site(data, "metal")
    inner = ((place > 0.5) & (place < 8.4)).all(1)[metal]
    distance, _ = cKDTree(place[metal]).query(place[metal], 7)
    height = math.sqrt(3) / 2 * 0.316
    short, long = (math.hypot(0.158, height + sign * 2 * dimer) for sign in (-1, 1))
    expected = [short, short, 0.316, 0.316, long, long]
    np.testing.assert_allclose(
        distance[inner, 1:], np.broadcast_to(expected, (inner.sum(), 6)), atol=1e-9
    )
    assert set(np.array(data.attrs["species_names"])[data.true_species[~metal]]) == {"S"}
    assert abs((~metal).sum() / metal.sum() - 2) < 0.1
    lattice = data.true_lattice_position.values + data.true_displacement.values
    np.testing.assert_allclose(lattice, data.true_specimen_position.values, atol=1e-12)


def test_a_domain_is_1t_prime_inside_its_disc_and_2h_outside() -> None:
    data = crystal("tmd", phase="domain", domain_size=4.0, chalcogen_vacancies=0.0)
    corner = data.true_lattice_position.values[site(data, "metal")] - data.true_scan_centre.values
    inside = np.linalg.norm(corner, axis=1) < 2.0
    np.testing.assert_array_equal(data.true_phase.values[site(data, "metal")], inside)
    moved = np.linalg.norm(data.true_displacement.values, axis=1) > 0
    np.testing.assert_array_equal(moved, data.true_phase.values == 1)
    assert 0.05 < inside.mean() < 0.3


# Perovskites.


def cells_of(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each B whose cell is all in the frame: its number, the four A around it, in order, and the cell vectors."""
    place = data.true_specimen_position.values
    a_sites = np.flatnonzero(site(data, "A"))
    at = {tuple(data.true_cell.values[i]): i for i in a_sites}
    chosen, corners = [], []
    for b in np.flatnonzero(site(data, "B")):
        i, j = data.true_cell.values[b]
        four = [at.get(key) for key in ((i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1))]
        if None not in four:
            chosen.append(b)
            corners.append(four)
    around = place[np.array(corners)]
    edges = np.stack(
        [
            around[:, 1] - around[:, 0] + around[:, 3] - around[:, 2],
            around[:, 2] - around[:, 0] + around[:, 3] - around[:, 1],
        ],
        1,
    )
    return np.array(chosen), around, edges / 2


@pytest.mark.parametrize(
    ("given", "domains"),
    [
        ({"material": "PbTiO3"}, [(0.415, 0.390, 90.0), (0.390, 0.415, 90.0)]),
        ({"material": "BaTiO3"}, [(0.4036, 0.3992, 90.0), (0.3992, 0.4036, 90.0)]),
        ({"material": "BiFeO3"}, [(0.396, 0.396, 89.4), (0.396, 0.396, 90.6)]),
        ({"material": "SrTiO3"}, [(0.3905, 0.3905, 90.0)]),
        ({"material": "PbTiO3", "walls": "none"}, [(0.415, 0.390, 90.0)]),
        (
            {"material": "PbTiO3", "state": "cubic"},
            [((0.390**2 * 0.415) ** (1 / 3),) * 2 + (90.0,)],
        ),
    ],
)
def test_cells_have_the_lengths_and_the_angle_of_their_domain(
    given: dict[str, str], domains: Any
) -> None:
    data = crystal("perovskite", **given, wall_width=0.3)
    chosen, _, edges = cells_of(data)
    lengths = np.linalg.norm(edges, axis=2)
    gamma = np.degrees(np.arccos(edges.prod(1).sum(1) / lengths.prod(1)))
    true = np.stack([data[f"true_{name}"].values[chosen] for name in ("a", "b", "gamma")], 1)
    measured = np.column_stack([lengths, gamma])
    domain = data.true_domain.values[chosen]
    for index, expected in enumerate(domains):
        # Away from walls a cell is that of its domain.
        inside = (domain == index) & (np.abs(true - expected) < [1e-4, 1e-4, 0.02]).all(1)
        assert inside.sum() > 0.2 * len(chosen)
        np.testing.assert_allclose(
            measured[inside], np.broadcast_to(expected, (inside.sum(), 3)), rtol=5e-4
        )
    assert set(domain) == set(range(len(domains)))
    # In the walls cells are not parallelograms, and the truth is that of their middle.
    np.testing.assert_allclose(measured[:, :2], true[:, :2], atol=2e-3)
    np.testing.assert_allclose(measured[:, 2], true[:, 2], atol=0.5)


@pytest.mark.parametrize("material", ["PbTiO3", "BiFeO3"])
@pytest.mark.parametrize("walls", ["none", "180", "ferroelastic"])
def test_b_is_off_the_middle_of_its_cell_by_its_displacement(material: str, walls: str) -> None:
    data = crystal("perovskite", material=material, walls=walls, off_centre=0.03)
    chosen, around, _ = cells_of(data)
    off = data.true_specimen_position.values[chosen] - around.mean(1)
    true = data.true_displacement.values[chosen]
    np.testing.assert_allclose(off, true, atol=1e-9)
    projected = 0.03 * (math.sqrt(2 / 3) if material == "BiFeO3" else 1.0)
    length = np.linalg.norm(true, axis=1)
    # At 89.4° the two edges along which B moves are not quite at right angles.
    assert length.max() == pytest.approx(projected, rel=0.01)
    assert (np.abs(length / projected - 1) < 0.05).mean() > (0.95 if walls == "none" else 0.4)
    assert not data.true_displacement.values[site(data, "A")].any()


@pytest.mark.parametrize("material", ["PbTiO3", "BiFeO3"])
def test_a_180_degree_wall_is_a_tanh_along_the_polarization(material: str) -> None:
    data = crystal(
        "perovskite",
        material=material,
        walls="180",
        wall_width=0.6,
        domain_size=20.0,
        off_centre=0.03,
    )
    b = site(data, "B")
    shift = data.true_displacement.values[b]
    axis = shift[np.argmax(np.linalg.norm(shift, axis=1))]
    axis = axis / np.linalg.norm(axis)
    across = (data.true_lattice_position - data.true_scan_centre).values[b] @ [-axis[1], axis[0]]
    along = shift @ axis
    expected = np.tanh(across / 0.6) * np.abs(along).max() / np.tanh(np.abs(across).max() / 0.6)
    sign = np.sign(along @ expected)
    np.testing.assert_allclose(along, sign * expected, atol=1e-4)
    np.testing.assert_allclose(shift @ [-axis[1], axis[0]], 0, atol=1e-4)
    # A column in the very middle of the wall belongs to either side.
    off, first = np.abs(along) > 1e-9, data.true_domain.values[b] == 0
    assert len(set(np.sign(along[off]) * np.where(first, 1, -1)[off])) == 1


def test_hot_barium_titanate_is_displaced_everywhere_and_on_average_nowhere() -> None:
    data = crystal("perovskite", 7, material="BaTiO3", state="eight-site", off_centre=0.02)
    shift = data.true_displacement.values[site(data, "B")]
    np.testing.assert_allclose(np.abs(shift), 0.02 / math.sqrt(3))
    assert (np.abs(shift.mean(0)) < 5 * 0.02 / math.sqrt(3 * len(shift))).all()
    for x in (-1, 1):
        for y in (-1, 1):
            ways = (np.sign(shift) == [x, y]).all(1).sum()
            assert within_binomial(int(ways), len(shift), 0.25)
    edge = (0.3992**2 * 0.4036) ** (1 / 3)
    np.testing.assert_allclose(data.true_a, edge)
    np.testing.assert_allclose(data.true_b, edge)


def test_columns_shine_as_their_atoms_and_oxygen_only_when_asked() -> None:
    data = crystal("perovskite", material="SrTiO3", oxygen=0.5, z_power=1.6)
    dose = float(data.true_dose)
    expected = {"Sr": 1.0, "Ti": (22**1.6 + 8**1.6) / 38**1.6, "O": 0.5 * 8**1.6 / 38**1.6}
    for name, value in expected.items():
        np.testing.assert_allclose(data.true_intensity.values[species(data, name)], value * dose)
    assert abs(species(data, "O").sum() / species(data, "Sr").sum() - 2) < 0.1
    assert not species(crystal("perovskite"), "O").any()


def test_twins_fit_without_a_gap_and_walls_have_the_integral_that_they_should() -> None:
    walls = Walls.stripes(3.0, 0.4, 6.0)
    n = np.linspace(-8, 8, 20001)
    area = walls.area(n)
    np.testing.assert_allclose(np.gradient(area, n)[1:-1], walls.profile(n)[1:-1], atol=1e-5)
    assert walls.area(np.zeros(1))[0] == 0
    assert walls.profile(np.array([-1.5, 1.5])).round(2).tolist() == [1.0, -1.0]
    for made in (tetragonal(0.39, 0.415), rhombohedral(0.396, 89.4)):
        one, other = (made.vectors(np.array(f)) for f in (1.0, -1.0))
        assert abs(np.linalg.det(one)) == pytest.approx(abs(np.linalg.det(other)))
        # The plane of the wall is common: a step along it is the same on both sides.
        step = np.linalg.solve(one.T, made.along)
        np.testing.assert_allclose(step @ other, made.along, atol=1e-12)


# Refusals.

WRONG = [
    ("graphene", {"gives": "movie"}, r"gives must be one of image, atoms, found 'movie'"),
    ("graphene", {"gives": 3}, r"gives must be one of image, atoms, found '3'"),
    ("graphene", {"edge": "klein"}, r"edge must be one of none, armchair, zigzag, found 'klein'"),
    ("graphene", {"vacancies": -0.1}, r"vacancies must be between 0 and 1, found -0\.1"),
    ("graphene", {"vacancies": 0.4}, r"vacancies=0\.4 is more than the sheet has room for"),
    ("graphene", {"tilt": 45}, r"tilt must be 0, or 5 to 30 degrees, found 45"),
    ("graphene", {"tilt": 10, "edge": "zigzag"}, r"tilt and edge exclude each other"),
    ("graphene", {"pixel": 0}, r"pixel must be positive, found 0"),
    ("graphene", {"pixel": 0.2}, r"pixel=0\.2 nm is too coarse for a probe"),
    ("graphene", {"pixel": 1e-4}, r"more than 1e\+08 pixels"),
    ("graphene", {"field": 0.05}, r"field must be at least 8 pixels"),
    ("graphene", {"field": math.inf}, r"field must be finite, found inf"),
    ("graphene", {"field": 1e4, "pixel": 4.0, "probe": 4.0}, r"too many atoms"),
    ("graphene", {"dose": math.nan}, r"dose must be positive, found nan"),
    ("graphene", {"dose": 1e20}, r"dose must be at most 1e\+12"),
    ("graphene", {"tail": 1.0}, r"tail must be below 1"),
    ("graphene", {"tail": 0.1, "tail_width": 0.0}, r"have a tail_width"),
    ("graphene", {"readout": -1}, r"readout must not be negative, found -1"),
    ("graphene", {"shear": 2.0}, r"shear=2 distorts by more than 50%"),
    ("graphene", {"scale": 3.0}, r"scale=3 distorts by more than 50%"),
    ("graphene", {"jitter": 2.0}, r"jitter must be at most a 20th of the field, found 2"),
    ("graphene", {"drift": 0.2}, r"drift must be at most a 50th of the field, found 0\.2"),
    ("graphene", {"rotation": math.nan}, r"rotation must be finite, found nan"),
    ("tmd", {"phase": "3R"}, r"phase must be one of auto, 2H, 1T', domain, found '3R'"),
    (
        "tmd",
        {"tungsten": 0.7, "rhenium": 0.5},
        r"tungsten \+ rhenium \+ vanadium must be at most 1",
    ),
    ("tmd", {"selenium": math.nan}, r"selenium must be between 0 and 1, found nan"),
    ("tmd", {"dimer": 0.2}, r"dimer must be from 0 to 0\.053 nm, found 0\.2"),
    ("tmd", {"metal_vacancies": 1, "chalcogen_vacancies": 1}, r"there is no column in the frame"),
    ("perovskite", {"material": "NaCl"}, r"material must be one of SrTiO3, .*found 'NaCl'"),
    ("perovskite", {"material": "SrTiO3", "state": "polar"}, r"SrTiO3 is not polar"),
    (
        "perovskite",
        {"state": "cubic", "walls": "180"},
        r"state=cubic has no walls; take walls=none",
    ),
    ("perovskite", {"wall_width": 2.0}, r"at most a quarter of domain_size"),
    ("perovskite", {"off_centre": 0.2}, r"off_centre must be from 0 to a quarter of a cell"),
    ("perovskite", {"oxygen": 2}, r"oxygen must be between 0 and 1, found 2"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_a_wrong_parameter_is_refused_in_one_line(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        simulate(name, **given)
    assert "\n" not in str(caught.value)


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    xr.testing.assert_equal(simulate("perovskite", walls=180), simulate("perovskite", walls="180"))
