"""Species by brightness: the number of levels by evidence, each column's level, and the lattice that follows."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from atomzoo.datasets.derived.brightness import brightness
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.models.structure.brightness_levels import _Mode, smooth
from atomzoo.models.structure.species import (
    _largest_block,
    atoms_with_species,
    lattice_of_species,
    species,
)


def columns(levels, shares, spread, size=14, slope=0.0, seed=0):
    """Columns on a square lattice, of levels at random, on a background that rises along x."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    kind = rng.choice(len(levels), len(cell), p=shares)
    bright = np.array(levels)[kind] + spread * rng.standard_normal(len(cell))
    return dataset(
        "atoms",
        position=0.39 * cell + 0.003 * rng.standard_normal(cell.shape),
        intensity=bright + slope * (cell[:, 0] / size - 0.5),
        axis=np.array(["x", "y"]),
        units={"position": "nm"},
        true_kind=kind,
    )


def chances(run):
    return {int(k): p for k, p in json.loads(run.attrs["levels_probability"]).items()}


def quick(data, prior=None, **more):
    return fit("species", data, prior=prior, predictive=0, draws=200, **more)


def test_waves_of_the_background_have_zero_mean_and_unit_square():
    grid = (np.stack(np.meshgrid(np.arange(200), np.arange(200)), -1).reshape(-1, 2) + 0.5) / 200
    found = smooth(torch.as_tensor(grid))
    torch.testing.assert_close(found.T @ found / len(found), torch.eye(8, dtype=found.dtype))
    torch.testing.assert_close(found.mean(0), torch.zeros(8, dtype=found.dtype))


@pytest.mark.parametrize(("levels", "shares"), [([1.0], [1.0]), ([1.0, 1.6], [0.6, 0.4])])
def test_the_number_of_levels_is_that_of_the_truth(levels, shares):
    run = quick(columns(levels, shares, 0.08))
    assert max(chances(run), key=chances(run).get) == len(levels)


@pytest.mark.slow
def test_levels_are_told_apart_on_a_background_as_steep_as_they_are_far_apart():
    data = columns([1.0, 1.5], [0.5, 0.5], 0.06, slope=0.6)
    run = quick(
        data, {"set": "vague", "background": "Normal(0, intensity.std / 2).expand([8]).to_event(1)"}
    )
    kind = run["classes"]["kind"].values.argmax(1)
    # The levels are four spreads from the middle between them: three columns in 100,000 are on the wrong side.
    assert (kind == data.true_kind.values).mean() > 0.98
    background = run["derived"]["background_mean"].values
    true = 0.6 * (data.position.values[:, 0] / 0.39 / 14 - 0.5)
    assert np.corrcoef(background, true)[0, 1] > 0.98


def test_the_evidence_is_that_of_a_sampler_on_the_same_story():
    """Two levels on sixty columns, against sequential Monte Carlo; five standard errors of both."""
    data = species.simulate(seed=3)
    prior = {"set": "vague", "steps": 1.0, "background": "Normal(0, 0.03).expand([8]).to_event(1)"}
    closed = quick(data, prior)
    other = fit("species", data, prior=prior, runner="smc", predictive=0, lean=True)
    error = np.hypot(closed.attrs["log_evidence_se"], other.attrs["log_evidence_se"])
    assert abs(closed.attrs["log_evidence"] - other.attrs["log_evidence"]) < 5 * error + 0.05
    for name in ("lowest", "share"):
        one, two = (
            r["posterior"][name].values.reshape((*r["posterior"][name].shape[:2], -1))
            for r in (closed, other)
        )
        apart = one.mean((0, 1)) - two.mean((0, 1))
        # Of 200 draws of which a fifth are worth counting, five errors are 0.8 of the spread.
        assert (np.abs(apart) < 0.8 * two.std((0, 1))).all(), name


@pytest.mark.slow
def test_columns_of_mos2_are_named_by_their_material():
    data = simulate("tmd", seed=1, gives="atoms", tungsten=0.05, field=5.0)
    run = quick(data, "MoS2")
    kind = run["classes"]["kind"].values.argmax(1)
    names = np.array(data.attrs["species_names"])[data.true_species.values]
    ladder = {"S": 0, "S2": 1, "Mo": 3, "W": 5}
    assert np.mean([ladder[n] == k for n, k in zip(names, kind, strict=True)]) > 0.97


def test_one_sublattice_alone_is_weighed_where_that_is_asked_for():
    data = simulate("tmd", seed=1, gives="atoms", field=5.0)
    metals = brightness(data, {"sublattice": 0})
    assert metals.sizes["atom"] + metals.attrs["left_out"] == data.sizes["atom"]
    assert (data.true_site.values[metals.atom.values] % 2 == 0).all()
    with pytest.raises(DataError, match="sublattices"):
        brightness(data, {"sublattice": 7})
    with pytest.raises(DataError, match="no 'intensity'"):
        brightness(data.drop_vars("intensity"), {})


@pytest.mark.slow
def test_species_stand_on_a_lattice_that_other_models_read():
    data = columns([1.0, 1.6], [0.6, 0.4], 0.05)
    vacant = data.isel(atom=np.delete(np.arange(data.sizes["atom"]), 14 * 7 + 7))
    run = quick(vacant)
    given = lattice_of_species(run, vacant)
    assert validate(given) is given
    assert given.attrs["lattice"] == "square"
    assert given.attrs["vacant"] == 1
    assert given.species.shape == (1, 14, 14)
    expected = data.true_kind.values.reshape(14, 14).copy()
    expected[7, 7] = 6
    np.testing.assert_array_equal(given.species.values[0], expected)
    atoms = atoms_with_species(run, vacant)
    assert validate(atoms).sizes["atom"] == vacant.sizes["atom"]
    triangular = simulate("tmd", seed=1, gives="atoms", field=4.0, tungsten=0.2)
    given = lattice_of_species(quick(triangular, {"set": "MoS2", "sublattice": 0.0}), triangular)
    assert given.attrs["lattice"] == "triangular"
    first, second = np.array(given.attrs["vectors_nm"]).reshape(2, 2)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert cosine == pytest.approx(0.5, abs=0.03)


def test_the_largest_block_is_found():
    there = np.zeros((6, 7), bool)
    there[1:4, 2:7] = True
    there[0:6, 0:2] = True
    rows, cols = _largest_block(there)
    assert (rows.start, rows.stop, cols.start, cols.stop) == (1, 4, 0, 7)


def test_a_climb_that_ended_on_a_steep_slope_has_a_factor_all_the_same():
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator)).Q
    level = torch.tensor([-4e11, -1.0, 3e-2, 40.0, 8e12], dtype=torch.float64)

    class Slope:
        def curvature(self, points):
            return (axes * level @ axes.T)[None]

        def in_parts(self, points):
            return torch.zeros(len(points), dtype=torch.float64)

    found = _Mode.at(Slope(), torch.zeros(1, 5, dtype=torch.float64))
    assert bool(found.factor.isfinite().all())
    assert bool((found.factor.diagonal() > 0).all())
    assert math.isfinite(found.mass)
