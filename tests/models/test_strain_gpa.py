"""Geometric phase analysis: the closed posterior is that of the story, calibrated, and right about strain."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, kstest

from atomzoo.datasets.derived.phases import phases_of
from atomzoo.inference.fit import fit, make_density
from atomzoo.models.model import View, find
from atomzoo.models.structure.strain_gpa import derive, posterior
from atomzoo.tests.datasets import plain_lattices

GPA = find("strain_gpa")
KNOWN = {"set": "vague", "strain": 0.01, "length": 1.5, "noise": 1.0}
SQUARE = {"set": "vague", "a": plain_lattices.SPACING, "b": plain_lattices.SPACING, "gamma": 90.0}
MAPS = ("exx", "eyy", "exy", "rotation")


def test_the_closed_posterior_is_that_of_the_story():
    """Strain, length and noise known: the density's gradient vanishes at the mean, its curvature is the covariance."""
    data = GPA.simulate(prior=KNOWN, seed=4)
    density = make_density(GPA, data, KNOWN)
    count = 20_000
    told = posterior(View(data), GPA.resolve(data, KNOWN), draws=count, seed=0)
    z = density.unconstrain_all(told.draws)
    centre = z.mean(0)
    information = -density.hessian(centre)
    # Under the right covariance these are unit normals, their mean and covariance known to 1/√n.
    white = (z - centre) @ torch.linalg.cholesky(information)
    spread = white.T @ white / count
    apart = spread - torch.eye(density.dim)
    assert float(apart.abs().max()) < 6 * (2 / count) ** 0.5
    _, gradient = density.gradient(centre[None])
    newton = torch.linalg.solve(information, gradient[0])
    off = float(newton @ information @ newton) * count
    assert off < chi2.isf(1e-5, density.dim)
    value = float(density.log_prob(centre)) + 0.5 * density.dim * np.log(2 * np.pi)
    value -= 0.5 * float(torch.linalg.slogdet(information)[1])
    # The centre is a mean of draws, below the summit by half the χ² above.
    assert told.log_evidence == pytest.approx(value, abs=0.02)


@pytest.mark.slow
def test_a_sampler_on_the_same_story_says_the_same():
    data = GPA.simulate(seed=8)
    closed = fit(GPA, data, runner="closed", draws=4000, predictive=0)
    sampled = fit(GPA, data, runner="ensemble", ess=400, predictive=0)
    for name in ("strain", "length", "noise"):
        one, other = (np.log(run["posterior"][name].values).ravel() for run in (closed, sampled))
        spread = one.std()
        # Medians of some 100 and 400 independent draws, four standard errors of 1.25 σ/√n.
        assert (
            abs(np.median(one) - np.median(other)) < 4 * 1.25 * spread * (1 / 100 + 1 / 400) ** 0.5
        )
        assert other.std() == pytest.approx(spread, rel=0.35)
    values = {
        str(name): torch.as_tensor(value.values.reshape(-1, *value.shape[2:]))
        for name, value in sampled["posterior"].data_vars.items()
    }
    maps = derive(View(data), GPA.resolve(data), values)
    for name in MAPS:
        spread = closed["derived"][f"{name}_sd"].values
        apart = (maps[name].values - closed["derived"][name].values) / spread
        assert np.abs(np.median(apart)) < 0.3
    assert closed.attrs["log_evidence"] == pytest.approx(
        sampled.attrs["log_evidence"],
        abs=4 * (closed.attrs["log_evidence_se"] + sampled.attrs["log_evidence_se"]),
    )


def test_posteriors_of_simulated_data_are_calibrated():
    """Ranks of the truth are uniform and 90 % intervals of the maps cover, each but once in ten thousand times."""
    count = 40
    ranks, inside = {"strain": [], "length": [], "noise": []}, []
    for seed in range(count):
        data = GPA.simulate(seed=1000 + seed)
        view, prior = View(data), GPA.resolve(data)
        told = posterior(view, prior, draws=300, seed=seed)
        for name, found in ranks.items():
            found.append(float((told.draws[name] < float(data[f"true_{name}"])).double().mean()))
        names = ("strain", "length", "z", "origin", "uniform")
        truth = derive(
            view, prior, {n: torch.as_tensor(data[f"true_{n}"].values)[None] for n in names}
        )
        # One window, one map an image: windows of an image are not independent.
        name, point = MAPS[seed % 4], seed % data.sizes["point"]
        off = float(truth[name][point] - told.derived[name][point])
        inside.append(abs(off) < 1.645 * float(told.derived[f"{name}_sd"][point]))
    for name, found in ranks.items():
        assert kstest(found, "uniform").pvalue > 1e-4, name
    low, high = binom.ppf([5e-5, 1 - 5e-5], count, 0.9)
    assert low <= sum(inside) <= high


def waves(at):
    """A displacement of up to 2 % strain that changes over about 2 nm."""
    x, y = at[..., 0], at[..., 1]
    return np.stack([0.02 * np.sin(1.1 * x) * np.cos(0.6 * y), 0.015 * np.cos(0.5 * x + y)], -1)


def gradient(at):
    """Of `waves`, (…, i, j)."""
    x, y = at[..., 0], at[..., 1]
    along = [0.022 * np.cos(1.1 * x) * np.cos(0.6 * y), -0.012 * np.sin(1.1 * x) * np.sin(0.6 * y)]
    across = [-0.0075 * np.sin(0.5 * x + y), -0.015 * np.sin(0.5 * x + y)]
    return np.stack([np.stack(along, -1), np.stack(across, -1)], -2)


def test_strain_is_right_to_a_fifth_of_a_percent_at_a_signal_to_noise_ratio_of_ten():
    image = plain_lattices.waves(displacement=waves, pixels=420, pixel=0.025, noise=0.1, seed=5)
    run = fit(GPA, image, prior=SQUARE, predictive=0)
    maps = run["derived"]
    at = maps["position"].values
    # The truth itself, not as the windows see it: they take a twentieth off waves as long as these.
    true = gradient(at)
    local = np.linalg.inv(np.eye(2) - true)
    for name, i, j in (("exx", 0, 0), ("eyy", 1, 1)):
        expected = 0.5 * (local + np.swapaxes(local, 1, 2))[:, i, j] - 1
        assert np.sqrt(np.mean((maps[name].values - expected) ** 2)) < 0.002, name
    expected = 0.5 * (local[:, 0, 1] + local[:, 1, 0])
    assert np.sqrt(np.mean((maps["exy"].values - expected) ** 2)) < 0.002
    assert float(maps["exx_sd"].mean()) < 0.002


def test_the_mean_distortion_is_told_apart_from_the_maps():
    stretch = np.array([[1.02, 0.005], [0.005, 0.99]])
    image = plain_lattices.waves(stretch, pixels=300, noise=0.3, seed=2)
    absolute = fit(GPA, image, prior=SQUARE, predictive=0)["derived"]
    for name, true in (("exx", 0.02), ("eyy", -0.01), ("exy", 0.005)):
        off = float(absolute[f"mean_{name}"]) - true
        assert abs(off) < 4 * float(absolute[f"mean_{name}_sd"]) + 1e-5
    relative = fit(GPA, image, predictive=0)["derived"]
    for name in ("exx", "eyy", "exy"):
        assert abs(float(relative[f"mean_{name}"])) < 4 * float(relative[f"mean_{name}_sd"])
    length = np.linalg.norm(relative["reference_cell"].values, axis=1) / plain_lattices.SPACING
    assert sorted(length) == pytest.approx(
        sorted(np.linalg.norm(stretch @ _primitive(relative), axis=0)), abs=2e-3
    )


def _primitive(maps):
    """The nearest cell of the lattice at rest, vectors as columns, in lattice constants."""
    return np.rint(maps["reference_cell"].values / plain_lattices.SPACING).T


def test_points_left_out_do_not_count():
    data = GPA.simulate(prior=KNOWN, seed=6)
    mask = np.ones(data.sizes["point"], bool)
    mask[:4] = False
    other = data.copy(deep=True)
    other["phase"][:4] = 0.3
    first, second = (
        posterior(
            View(d), GPA.resolve(d, KNOWN), draws=50, seed=1, mask=torch.as_tensor(mask)
        ).derived
        for d in (data, other)
    )
    np.testing.assert_allclose(first["exx"], second["exx"], atol=1e-12)


def test_a_dislocation_pair_is_reported_with_its_burgers_vectors(strained_pair):
    _, run = strained_pair
    maps = run["derived"]
    assert maps.sizes["dislocation"] == 2
    length = np.linalg.norm(maps["burgers"].values, axis=1)
    np.testing.assert_allclose(length, 0.39, atol=0.01)
    np.testing.assert_allclose(maps["burgers"].values.sum(0), 0, atol=0.005)
    assert json.loads(run.attrs["data_attrs"])["left_out"] > 0
    assert np.abs(np.diff(maps["core"].values[:, 0]))[0] == pytest.approx(
        6 * np.cos(np.deg2rad(7)), abs=1.0
    )


@pytest.fixture(scope="module")
def strained_pair():
    import atomzoo

    image = atomzoo.simulate("strained", shape="dislocations", size=6.0, field=12.0, seed=1)
    return image, fit(GPA, phases_of(image, {}), predictive=0, draws=100)
