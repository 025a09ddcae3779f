"""Shells: the right neighbours in the right slots, whatever the scan does, and nothing dropped in silence."""

import numpy as np
import pytest

from atomzoo.datasets.derived.shells import coordination, nearest, shells, sublattices
from atomzoo.datasets.files import read, write
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.datasets.scenes import simulate


def lattice(a, b, basis, cells=8, seed=0, jitter=0.0, **more):
    """Atoms of a lattice, and which of the basis each is."""
    cell = np.stack(np.meshgrid(range(cells), range(cells), indexing="ij"), -1).reshape(-1, 2)
    position = (cell @ np.array([a, b]))[:, None] + np.array(basis)
    kinds = np.tile(np.arange(len(basis)), len(cell))
    noise = jitter * np.random.default_rng(seed).standard_normal((len(kinds), 2))
    made = dataset(
        "atoms", position=position.reshape(-1, 2) + noise, units={"position": "nm"}, **more
    )
    return made, kinds


SQUARE = lattice([0.4, 0], [0, 0.4], [[0, 0]])[0]
ROCK = lattice([0.4, 0], [0, 0.4], [[0, 0], [0.2, 0.2]])
HEXAGONAL = lattice([0.3, 0], [0.15, 0.3 * np.sqrt(0.75)], [[0, 0]])[0]
HONEYCOMB = lattice([0.246, 0], [0.123, 0.246 * np.sqrt(0.75)], [[0, 0], [0.123, 0.123 / 3**0.5]])[
    0
]


@pytest.mark.parametrize(
    ("atoms", "number"), [(SQUARE, 4), (HEXAGONAL, 6), (HONEYCOMB, 3)], ids=["4", "6", "3"]
)
@pytest.mark.parametrize("shear", [0.0, 0.06])
def test_the_coordination_number_is_found_with_and_without_shear(atoms, number, shear):
    matrix = np.array([[1.02, shear], [0.0, 0.97]])
    assert coordination(atoms.position.values @ matrix.T) == number


def test_slots_stand_in_the_nominal_order_of_the_arrangement():
    found = shells(HONEYCOMB, {"second": 6})
    v = found.neighbour.values @ [1, 1j]
    assert found.shell.values.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found.angle.values[3], np.pi / 6)
    # Slot 0 fixes the orientation, and every other slot is where the arrangement says it is.
    turned = v / v[:, :1] * np.abs(v[:, :1])
    nominal = found.radius.values * np.exp(1j * found.angle.values)
    np.testing.assert_allclose(turned, np.broadcast_to(nominal, turned.shape), atol=1e-9)


def test_two_like_shells_of_a_square_lattice_are_turned_by_half_a_step():
    found = shells(SQUARE, {"first": 4, "second": 4})
    np.testing.assert_allclose(found.angle.values[4], np.pi / 4)
    np.testing.assert_allclose(found.radius.values[4], 0.4 * np.sqrt(2))


@pytest.mark.parametrize("shear", [0.0, 0.06])
def test_the_second_shell_is_the_right_one_under_noise_that_mixes_it_with_the_third(shear):
    """Distances in the second and the third shell differ by 38 pm, and noise of 10 pm in all three coordinates."""
    basis = [[0, 0], [0.123, 0.123 / 3**0.5]]
    cell = ([0.246, 0], [0.123, 0.246 * np.sqrt(0.75)])
    still, _ = lattice(*cell, basis, cells=24)
    noisy, _ = lattice(*cell, basis, cells=24, jitter=0.01)
    matrix = np.array([[1.0, shear], [0.0, 0.98]])
    noisy["position"].values[:] = noisy.position.values @ matrix.T
    found = shells(noisy, {"first": 3, "second": 6})
    right = nearest(still.position.values, 3, 6)[found.atom.values]
    same = (np.sort(right[:, 3:], 1) == np.sort(found.neighbour_atom.values[:, 3:], 1)).all(1)
    # A place is told to 17 pm and the next atom is 142 pm away: one in 30,000 is at more than half of that.
    assert same.mean() > 0.99


def test_no_atom_is_in_two_slots_even_where_one_is_missing():
    atoms = HONEYCOMB.isel(atom=np.arange(HONEYCOMB.sizes["atom"]) != 60)
    found = shells(atoms, {"first": 3, "second": 6})
    for row in found.neighbour_atom.values:
        assert len(set(row)) == 9
    assert not (found.neighbour_atom.values == found.atom.values[:, None]).any()


def test_unlike_neighbours_are_of_the_other_species_and_like_ones_of_the_same():
    atoms, kinds = ROCK
    atoms = atoms.assign(species=("atom", kinds))
    found = shells(atoms, {"first": 4, "second": 4, "like": 0})
    around = kinds[found.neighbour_atom.values]
    own = kinds[found.atom.values][:, None]
    assert (around[:, :4] != own).all()
    assert (around[:, 4:] == own).all()
    assert set(found.side.values.tolist()) == {-1, 1}


def test_sublattices_are_told_by_brightness_or_refused():
    atoms, kinds = ROCK
    rng = np.random.default_rng(1)
    bright = np.exp(kinds * 1.0 + 0.1 * rng.standard_normal(len(kinds)))
    assert (sublattices(atoms.assign(intensity=("atom", bright))) == kinds).all()
    one = atoms.assign(intensity=("atom", np.exp(0.3 * rng.standard_normal(len(kinds)))))
    with pytest.raises(DataError, match="do not fall into two groups"):
        shells(one, {"like": 0})
    with pytest.raises(DataError, match="have neither"):
        shells(atoms, {"like": 0})


def test_atoms_at_the_rim_are_left_out_counted_and_none_within_is():
    found = shells(SQUARE, {"first": 4})
    # The frame is 2.8 nm wide, and a disc a little wider than the shell of 0.4 nm must lie in it.
    inner = np.flatnonzero((np.abs(SQUARE.position.values - 1.4) < 1.4 - 0.46).all(1))
    assert found.atom.values.tolist() == inner.tolist()
    assert found.attrs["left_out"] == SQUARE.sizes["atom"] - len(inner)
    assert "rim" in found.attrs["left_out_why"]


def test_only_the_brighter_sublattice_where_it_is_asked_for():
    atoms = simulate("tmd", gives="atoms", field=4, tungsten=0.0, seed=2)
    found = shells(atoms, {"first": 3, "second": 6, "like": 0, "centres": 1})
    site = atoms.true_site.values[found.atom.values]
    assert {atoms.attrs["site_names"][i] for i in site} <= {"metal", "metal next to a vacancy"}
    assert "dimmer" in found.attrs["left_out_why"]


def test_errors_of_positions_are_carried_to_centre_and_neighbours():
    atoms = simulate("graphene", gives="atoms", field=3, seed=3)
    found = shells(atoms, {"first": 3})
    own = np.trace(atoms.covariance.values, axis1=1, axis2=2) / 2
    np.testing.assert_allclose(found.centre_variance, own[found.atom.values])
    np.testing.assert_allclose(found.neighbour_variance, own[found.neighbour_atom.values])
    assert (shells(HONEYCOMB, {}).neighbour_variance == 0).all()


def test_what_rides_along_is_carried_and_all_survives_a_file(tmp_path):
    atoms = simulate("graphene", gives="atoms", field=3, seed=3)
    found = shells(atoms, {"second": 6})
    np.testing.assert_array_equal(found.true_site, atoms.true_site.values[found.atom.values])
    assert validate(found) is found
    assert read(write(found, tmp_path / "shells.nc")).identical(found)


def test_the_nearest_are_those_that_a_full_search_finds():
    rng = np.random.default_rng(5)
    position = rng.uniform(0, 4, (200, 2))
    apart = np.linalg.norm(position[:, None] - position[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_array_equal(nearest(position, 5, 3), np.argsort(apart, 1)[:, :8])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"first": 1}, "first must be"),
        ({"first": 2.5}, "number of neighbours"),
        ({"first": 4, "second": 6}, "multiple"),
        ({"first": 8, "second": 16, "bond": -1}, "none is left|bond"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(DataError, match=match):
        shells(SQUARE, settings)


def test_atoms_on_a_line_too_few_or_in_space_are_refused():
    line = dataset("atoms", position=np.arange(40.0).reshape(20, 2), units={"position": "nm"})
    with pytest.raises(DataError, match="on a line"):
        shells(line, {"first": 2})
    few = dataset("atoms", position=np.eye(2), units={"position": "nm"})
    with pytest.raises(DataError, match="too few"):
        shells(few, {})
    space = dataset("atoms", position=np.eye(3), units={"position": "nm"})
    with pytest.raises(DataError, match="plane"):
        shells(space, {})


@pytest.mark.parametrize("shear", [0.0, 0.03, 0.08])
def test_radii_are_those_before_the_scan_sheared_them(shear):
    position = SQUARE.position.values @ np.array([[1.0, shear], [0.0, 1.0]]).T
    found = shells(SQUARE.assign(position=SQUARE.position.copy(data=position)), {"second": 4})
    np.testing.assert_allclose(found.radius.values, np.repeat([0.4, 0.4 * np.sqrt(2)], 4))
