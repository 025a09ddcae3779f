"""Features of neighbourhoods: the same however an atom's surroundings are turned, with the errors they claim."""

import numpy as np
import pytest

import atomzoo
from atomzoo.datasets.derived.features import features_of, orders
from atomzoo.datasets.kinds import DataError, dataset, validate


def atoms(position, **more):
    return dataset("atoms", position=position, units={"position": "nm"}, **more)


def square(side=7, spacing=0.3, disorder=0.02, seed=0):
    places = spacing * np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)
    return places + disorder * np.random.default_rng(seed).standard_normal(places.shape)


def test_turned_and_mirrored_neighbourhoods_are_the_same_up_to_an_order():
    position = square()
    first = features_of(atoms(position), {"neighbours": 4, "rim": 0})
    ring = orders(4, False)
    for degrees, mirror in ((37.0, 1), (100.0, -1), (0.0, -1)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        moved = position * [1, mirror] @ np.array([[c, s], [-s, c]])
        other = features_of(atoms(moved), {"neighbours": 4, "rim": 0})
        value = other.feature.values
        orbit = np.einsum("sij,nj->nsi", ring, first.feature.values)
        apart = np.abs(orbit - value[:, None]).max(2).min(1)
        np.testing.assert_allclose(apart, 0, atol=1e-6)


def test_orders_are_a_group_of_orthogonal_matrices():
    for neighbours, intensity in ((2, True), (3, False), (5, True)):
        ring = orders(neighbours, intensity)
        assert ring.shape == (2 * neighbours,) + (2 * neighbours - 1 + intensity,) * 2
        products = np.einsum("aij,bjk->abik", ring, ring).reshape(-1, *ring.shape[1:])
        apart = np.abs(products[:, None] - ring[None]).max((2, 3)).min(1)
        np.testing.assert_allclose(apart, 0, atol=1e-12)


def test_distances_and_angles_vary_as_their_errors_say():
    """A thousand measurements of one neighbourhood: variances within five standard errors of their own."""
    rng = np.random.default_rng(1)
    # Turned, so that no neighbour lies where directions jump from π to -π.
    place = square(5, disorder=0.01, seed=2) @ np.array([[0.8, 0.6], [-0.6, 0.8]])
    root = 0.004 * rng.standard_normal((len(place), 2, 2))
    covariance = root @ np.swapaxes(root, 1, 2) + 1e-5 * np.eye(2)
    factor = np.linalg.cholesky(covariance)
    settings = {"neighbours": 4, "rim": 0}
    claimed = features_of(atoms(place, covariance=covariance), settings)
    seen = []
    for _ in range(1000):
        noise = np.einsum("nij,nj->ni", factor, rng.standard_normal(place.shape))
        one = features_of(atoms(place + noise, covariance=covariance), settings)
        seen.append([one.distance.values[12], one.angle.values[12]])
    found = np.std(seen, axis=0)
    errors = [claimed.distance_error.values[12], claimed.angle_error.values[12]]
    np.testing.assert_allclose(found, errors, rtol=5 / np.sqrt(2 * 1000) + 0.02)


def test_as_many_neighbours_are_taken_as_the_lattice_has():
    for name, count in (("graphene", 3), ("tmd", 3)):
        seen = features_of(atomzoo.simulate(name, gives="atoms", seed=2), {})
        assert seen.attrs["neighbours"] == count
    assert features_of(atoms(square(9, disorder=0.01)), {}).attrs["neighbours"] == 4


def test_the_rim_is_left_out_and_counted_unless_it_is_wanted():
    sheet = atoms(square(8, disorder=0.005))
    inner = validate(features_of(sheet, {"neighbours": 4}))
    assert inner.attrs["left_out"] == 64 - inner.sizes["atom"] == 64 - 36
    assert "rim" in inner.attrs["left_out_why"]
    np.testing.assert_array_equal(inner.position, sheet.position.values[inner.index.values])
    assert features_of(sheet, {"neighbours": 4, "rim": 0}).sizes["atom"] == 64


def test_what_has_no_neighbourhoods_is_refused():
    with pytest.raises(DataError, match="too few"):
        features_of(atoms(square(3)), {})
    with pytest.raises(DataError, match="neighbours must be"):
        features_of(atoms(square()), {"neighbours": 1})
    with pytest.raises(DataError, match="x and y only"):
        features_of(atoms(np.random.default_rng(0).random((30, 3))), {})
    dark = atoms(square(), intensity=np.full(49, -1.0))
    with pytest.raises(DataError, match="not positive"):
        features_of(dark, {})
