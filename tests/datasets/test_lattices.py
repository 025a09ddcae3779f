"""The lattice finder: the cell, its error, and the count of cells, on crystals that are far from perfect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter

from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.lattices import find_lattice, lattice_of
from atomzoo.datasets.scenes import simulate

SQUARE = 0.39 * np.eye(2)
HEXAGONAL = 0.316 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])
HONEYCOMB = ((0, 0), (1 / 3, 1 / 3))
KAGOME = ((0, 0), (0.5, 0), (0, 0.5))


def crystal(vectors, motif=((0, 0),), size=30, vacancies=0.0, noise=0.0, spurious=0.0, seed=0):
    """Positions, cells and sublattices of a crystal; spurious atoms have sublattice -1."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    position = np.concatenate([(cell + place) @ vectors for place in motif])
    index, sublattice = np.tile(cell, (len(motif), 1)), np.repeat(np.arange(len(motif)), len(cell))
    kept = rng.random(len(position)) >= vacancies
    position, index, sublattice = position[kept], index[kept], sublattice[kept]
    more = int(spurious * len(position))
    position = position + noise * rng.standard_normal(position.shape)
    others = rng.uniform(position.min(0), position.max(0), (more, 2))
    order = rng.permutation(len(position) + more)
    return (
        np.concatenate([position, others])[order],
        np.concatenate([index, np.zeros((more, 2), int)])[order],
        np.concatenate([sublattice, np.full(more, -1)])[order],
    )


def counted(found, index, sublattice):
    """Share of the atoms whose cell and sublattice are right, up to the choice of vectors and origins."""
    right = 0
    for number in range(found.sublattice.max() + 1):
        here = found.sublattice == number
        true = here & (sublattice >= 0)
        design = np.column_stack([index[true], np.ones(true.sum())])
        turn = np.rint(np.linalg.lstsq(design, found.index[true], rcond=None)[0][:2]).astype(int)
        assert abs(round(np.linalg.det(turn))) == 1
        rest = np.column_stack([found.index[true] - index[true] @ turn, sublattice[true]])
        right += np.unique(rest, axis=0, return_counts=True)[1].max()
    return right / (sublattice >= 0).sum()


@pytest.mark.parametrize(
    ("vectors", "motif", "how", "least"),
    [
        (HEXAGONAL, HONEYCOMB, {"vacancies": 0.1, "noise": 0.005}, 1.0),
        (HEXAGONAL, HONEYCOMB, {"vacancies": 0.3, "noise": 0.01, "spurious": 0.05}, 0.98),
        (HEXAGONAL, HONEYCOMB, {"vacancies": 0.5, "noise": 0.01}, 0.95),
        (HEXAGONAL, KAGOME, {"vacancies": 0.05, "noise": 0.005}, 1.0),
        (SQUARE, ((0, 0),), {"noise": 0.02}, 1.0),
    ],
)
def test_every_atom_gets_its_cell_in_spite_of_vacancies_noise_and_spurious_atoms(
    vectors, motif, how, least
):
    for seed in range(4):
        position, index, sublattice = crystal(vectors, motif, seed=seed, **how)
        found = find_lattice(position)
        assert len(found.origins) == len(motif)
        assert counted(found, index, sublattice) >= least
        assert found.torn == 0
        assert found.area == pytest.approx(np.linalg.det(vectors), rel=2e-3)


def test_shear_does_not_matter_and_a_turn_is_followed():
    """A lattice bent by 27 degrees from side to side, which no one pair of vectors fits."""
    position, index, sublattice = crystal(HEXAGONAL, HONEYCOMB, size=60, noise=0.003)
    sheared = position @ np.array([[1.0, 0.05], [0.1, 0.96]])
    assert counted(find_lattice(sheared), index, sublattice) == 1.0
    radius = 60.0
    turn = (position[:, 0] - position[:, 0].mean()) / radius
    bent = (radius + position[:, 1:]) * np.stack([np.sin(turn), np.cos(turn)], 1)
    found = find_lattice(bent)
    assert counted(found, index, sublattice) > 0.999
    change = np.linalg.inv(found.vectors) @ found.frames
    leaning = np.arctan2(change[:, 0, 1] - change[:, 1, 0], np.trace(change, axis1=1, axis2=2))
    assert np.polyfit(turn, leaning, 1)[0] == pytest.approx(-1.0, abs=0.02)


def test_errors_of_the_cell_are_those_of_repeated_measurements():
    """100 measurements: their spread is known to 7 % (one standard deviation), and blocks of cells are few."""
    found = [find_lattice(crystal(SQUARE, size=24, noise=0.006, seed=s)[0]) for s in range(100)]
    spread = np.std([each.vectors for each in found], axis=0)
    told = np.mean([each.error for each in found], axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.3)


@pytest.mark.parametrize(
    ("scene", "how", "sublattices"),
    [
        ("graphene", {}, 2),
        ("graphene", {"drift": 0.05, "shear": 0.04, "stretch": 0.95}, 2),
        ("tmd", {}, 2),
        ("tmd", {"rhenium": 0.8}, 6),
        ("perovskite", {}, 2),
        ("perovskite", {"material": "SrTiO3", "oxygen": 0.5}, 4),
        ("perovskite", {"material": "BiFeO3", "walls": "180"}, 2),
    ],
)
def test_scenes_are_counted_without_an_error(scene, how, sublattices):
    """Twins of 6 % strain, walls, 1T' with its doubled cell: brightness tells the sublattices apart."""
    data = simulate(scene, seed=3, gives="atoms", **how)
    found = lattice_of(data)
    assert len(found.origins) == sublattices
    assert (found.sublattice >= 0).all()
    if "true_cell" in data:
        for number in range(sublattices):
            here = found.sublattice == number
            design = np.column_stack([data.true_cell.values[here], np.ones(here.sum())])
            turn, *_ = np.linalg.lstsq(design, found.index[here], rcond=None)
            np.testing.assert_allclose(design @ turn, found.index[here], atol=1e-6)


def test_sublattices_are_numbered_from_the_brightest_and_stand_where_they_should():
    data = simulate("tmd", seed=1, gives="atoms", shear=0.0, drift=0.0)
    found = lattice_of(data)
    metal = data.true_site.values % 2 == 0
    np.testing.assert_array_equal(found.sublattice == 0, metal)
    offset = np.linalg.norm(found.motif[1] @ found.vectors)
    assert min(offset, 0.316) == pytest.approx(0.316 / np.sqrt(3), rel=0.01)


def test_without_brightness_unlike_columns_in_like_places_are_one_sublattice():
    position, _, sublattice = crystal(SQUARE, ((0, 0), (0.5, 0.5)), noise=0.003)
    assert find_lattice(position).area == pytest.approx(0.39**2 / 2, rel=1e-3)
    assert find_lattice(position, sublattice * 1.0).area == pytest.approx(0.39**2, rel=1e-3)


def test_a_centred_cell_has_the_same_atoms_in_more_sublattices():
    position, _, _ = crystal(HEXAGONAL, noise=0.003)
    hexagonal = find_lattice(position)
    centred = hexagonal.recast(np.array([[1, 0], [1, 2]]))
    assert centred.angle == pytest.approx(90.0, abs=0.1)
    assert centred.area == pytest.approx(2 * hexagonal.area)
    np.testing.assert_allclose(
        centred.position(centred.index, centred.sublattice),
        hexagonal.position(hexagonal.index, hexagonal.sublattice),
    )
    with pytest.raises(DataError, match="positive determinant"):
        hexagonal.recast(np.array([[0, 1], [1, 0]]))


def test_what_has_no_lattice_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no lattice"):
        find_lattice(rng.uniform(0, 10, (1000, 2)))
    with pytest.raises(DataError, match="at least"):
        find_lattice(rng.uniform(0, 1, (5, 2)))


def test_a_hundred_thousand_atoms_are_counted():
    position, index, sublattice = crystal(HEXAGONAL, HONEYCOMB, 224, vacancies=0.02, noise=0.004)
    assert len(position) > 98_000
    assert counted(find_lattice(position), index, sublattice) == 1.0


MOS2 = Path(__file__).parents[3] / "shared" / "data" / "mos2_haadf_000-2.npy"


@pytest.mark.skipif(not MOS2.exists(), reason="the measured image is not here")
def test_the_measured_mos2_image_reads_three_spacings_and_the_right_area():
    """The scan is sheared: rows of the three directions read 0.291, 0.323 and 0.335 nm, the area gives 0.317."""
    image = np.load(MOS2)
    smooth = gaussian_filter(image, 3) - gaussian_filter(image, 15)
    peaks = np.argwhere((smooth == maximum_filter(smooth, 7)) & (smooth > 0.02 * smooth.max()))
    found = find_lattice(peaks[:, ::-1] * (9.0 / 512))
    a, b = found.vectors
    rows = 2 / np.sqrt(3) * found.area / np.linalg.norm([a, b, a + b], axis=1)
    np.testing.assert_allclose(np.sort(rows), [0.291, 0.323, 0.335], atol=0.002)
    assert np.sqrt(2 / np.sqrt(3) * found.area) == pytest.approx(0.317, abs=0.001)
