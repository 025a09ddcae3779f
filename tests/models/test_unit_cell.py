"""The unit cell: closed answers against a sampler, symmetry by evidence, and every cell with its error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atomzoo.datasets.derived.cells import cells, edges_of
from atomzoo.datasets.kinds import DataError, dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.models.model import View
from atomzoo.models.priors import ModelError
from atomzoo.models.structure.strain_fields import Fit, local_strain, waves
from atomzoo.models.structure.unit_cell import classes, design, shape, unit_cell

STILL = {"shear": 0.0, "drift": 0.0, "jitter": 0.0, "precision": 0.004}


def lattice(a, b, degrees=90.0, size=12, noise=0.004, seed=0, known=True):
    """Columns on a lattice of parallelograms, as atoms."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    gamma = np.radians(degrees)
    position = cell @ np.array([[a, 0.0], [b * np.cos(gamma), b * np.sin(gamma)]])
    position = position + noise * rng.standard_normal(position.shape)
    errors = {"covariance": np.tile(noise**2 * np.eye(2), (len(position), 1, 1))} if known else {}
    units = {"position": "nm"} | dict.fromkeys(errors, "nm^2")
    return dataset("atoms", position=position, axis=np.array(["x", "y"]), units=units, **errors)


def evidence(data, prior="calibrated", first=None):
    """Log evidences of the symmetries, of the first few where that is enough; a long field is quick."""
    chosen = {"set": prior, "length": 2.0}
    seen = unit_cell.prepared(data, chosen)
    found = Fit(View(seen), unit_cell.resolve(seen, chosen))
    return np.array([found.grid(k).log_evidence for k in range(len(found.options.names[:first]))])


def best(data, prior="calibrated"):
    return int(evidence(data, prior).argmax())


def test_edges_and_their_covariance_are_those_of_the_corners():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((4, 2, 2)) * 0.01
    covariance = factor @ factor.transpose(0, 2, 1)
    ideal = np.array([[0, 0], [0.4, 0.0], [0.01, 0.39], [0.41, 0.39]])
    many = ideal + np.einsum("cab,ncb->nca", factor, rng.standard_normal((40000, 4, 2)))
    edge, _ = edges_of(many, np.zeros((40000, 4, 2, 2)))
    _, told = edges_of(ideal[None], covariance[None])
    found = np.cov(edge.reshape(-1, 4).T)
    # An element of a covariance from n draws has a relative error of √(2/n), here 0.7 %; five of these.
    np.testing.assert_allclose(found, told[0], atol=0.035 * told.max())
    np.testing.assert_allclose(edge.mean(0), [[0.4, 0.0], [0.01, 0.39]], atol=1e-3)


def test_cells_are_complete_and_what_is_left_out_is_told():
    data = simulate("perovskite", seed=2, gives="atoms", material="SrTiO3", field=6.0)
    found = cells(data, {})
    assert found.attrs["left_out"] == data.sizes["atom"] - found.sizes["cell"]
    assert "no complete cell" in found.attrs["left_out_why"]
    assert len(np.unique(found.aux_atom)) == found.sizes["cell"]
    length = np.linalg.norm(found.edge.values, axis=2)
    assert abs(length.mean() - 0.3905) < 0.002
    with pytest.raises(DataError, match="sublattices"):
        cells(data, {"sublattice": 5})


def test_strains_are_the_derivatives_of_the_displacement():
    seen = cells(lattice(0.39, 0.39, size=8), {})
    field = waves(View(seen), 1.0)
    torch.manual_seed(0)
    along = torch.randn(1, 2 * len(field.vector), dtype=torch.float64)
    none = torch.zeros_like(along)
    at = torch.tensor([[0.3, -0.7]], dtype=torch.float64, requires_grad=True)
    trig = torch.cat(field.sines(at), 1)
    by_first, by_second = field.displacement(along[0])
    for angle, coefficients in ((0.0, by_first), (np.pi / 2, by_second)):
        rows = [torch.autograd.grad(trig @ c, at, retain_graph=True)[0][0] for c in coefficients]
        (xx, xy), (yx, yy) = rows
        turned = torch.tensor([angle], dtype=torch.float64)
        told = local_strain(field, at.detach(), along, none, turned)[0, 0]
        expected = torch.stack([xx - yy, xy + yx, xx + yy, (yx - xy) / 2])
        torch.testing.assert_close(told, expected)


def test_the_shape_of_a_strained_cell():
    strain = torch.tensor([0.02, 0.0, 0.01, 0.0], dtype=torch.float64)
    a, b, gamma = shape(strain, "square", 0.4)
    assert float(a) == pytest.approx(0.4 * 1.015)
    assert float(b) == pytest.approx(0.4 * 0.995)
    assert float(gamma) == pytest.approx(np.pi / 2)
    many = torch.tensor([[0.0, 0, 0, 0], [0.01, 0, 0, 0], [-0.01, 0, 0, 0], [0, 0.01, 0, 0]])
    assert classes(many.double(), "square", 0.002).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "given", [{"ripple": 5e-4, "spread": 2e-3}, {"noise": 3e-3, "ripple": 5e-4}]
)
def test_the_closed_posterior_is_that_of_the_story(given):
    """Against Laplace's method corrected by importance sampling, which knows nothing of the closed form."""
    prior = {"set": "calibrated", "length": 3.0, **given}
    data = design()
    closed = fit("unit_cell", data, prior=prior, seed=1, predictive=0)
    other = fit("unit_cell", data, prior=prior, seed=1, predictive=0, runner="laplace")
    apart = closed.attrs["log_evidence"] - other.attrs["log_evidence"]
    assert abs(apart) < 5 * other.attrs["log_evidence_se"] + 0.03
    for name in ("a", "turn"):
        one, two = (run["posterior"][name].values.ravel() for run in (closed, other))
        # Means of some 400 independent draws: five standard errors are a quarter of the spread.
        assert abs(one.mean() - two.mean()) < 0.35 * two.std(), name
        assert 0.7 < one.std() / two.std() < 1.4, name


def test_when_all_is_gaussian_the_evidence_is_exact():
    prior = {
        "set": "vague",
        "length": 3.0,
        "noise": 3e-3,
        "ripple": 5e-4,
        "spread": 2e-3,
        "size": 0.03,
    }
    seen = unit_cell.prepared(design(), prior)
    resolved = unit_cell.resolve(seen, prior)
    found = Fit(View(seen), resolved)
    from atomzoo.inference.density import Density

    density = Density(unit_cell, seen, resolved)
    _, slope = density.gradient(
        torch.zeros(1, density.dim, dtype=torch.float64), {"symmetry": torch.tensor([1])}
    )
    start = torch.zeros(1, density.dim, dtype=torch.float64)
    held = {"symmetry": torch.tensor([1])}
    curvature = -density.hessian(start[0], held, step=1e-2)
    mode = start + torch.linalg.solve(curvature, slope[0])
    value, _ = density.gradient(mode, held)
    exact = value[0] + 0.5 * density.dim * np.log(2 * np.pi) - 0.5 * torch.logdet(curvature)
    exact = exact - found.options.weight[1].log()
    assert found.grid(1).log_evidence == pytest.approx(float(exact), abs=1e-4)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ((0.39, 0.39, 90.0), 0),
        ((0.39, 0.394, 90.0), 1),
        ((0.39, 0.39, 89.4), 2),
        ((0.39, 0.394, 89.0), 3),
        ((0.316, 0.316, 120.0), 0),
        ((0.316, 0.316, 119.0), 2),
    ],
)
def test_each_symmetry_is_found_where_it_is_true(cell, number):
    assert best(lattice(*cell)) == number


def test_cubic_is_not_called_tetragonal_and_a_difference_of_four_errors_is():
    """Three sets of each; a rate of 5 % would be seen in one of seven such tests, and it is below 1 %."""
    side, precision = 12, 0.005
    sigma = np.sqrt(2) * precision / (side - 1)
    for seed in range(3):
        cubic = evidence(lattice(0.39, 0.39, size=side, noise=precision, seed=seed), first=2)
        assert cubic[1] - cubic[0] < np.log(3)
        strained = lattice(0.39, 0.39 + 4 * sigma, size=side, noise=precision, seed=seed)
        found = evidence(strained, first=2)
        assert found[1] - found[0] > np.log(10)


def test_an_image_that_was_not_calibrated_cannot_decide_a_uniform_strain_but_domains():
    uniform = simulate(
        "perovskite", seed=1, gives="atoms", material="BaTiO3", walls="none", field=6.0, **STILL
    )
    calibrated, vague = evidence(uniform, first=2), evidence(uniform, "vague", first=2)
    assert calibrated[1] - calibrated[0] > 10
    assert abs(vague[1] - vague[0]) < np.log(30)
    twinned = simulate("perovskite", seed=1, gives="atoms", material="PbTiO3", field=8.0, **STILL)
    found = evidence(twinned, "vague", first=2)
    assert found[1] - found[0] > 10


def test_drift_is_not_taken_for_strain():
    for seed in range(2):
        found = evidence(
            simulate("perovskite", seed=seed, gives="atoms", material="SrTiO3"), "vague"
        )
        assert found.argmax() == 0


def test_every_cell_and_domain_is_told_with_its_error():
    data = simulate("perovskite", seed=4, gives="atoms", material="PbTiO3", rotation=0.0, **STILL)
    run = fit("unit_cell", data, prior="calibrated", seed=0, predictive=0, draws=200)
    told, seen = run["derived"].to_dataset(), cells(data, {})
    assert run.attrs["decided"] == "tetragonal (rectangular)"
    np.testing.assert_allclose(told.probability.sum("practically"), 1.0)
    atom = seen.aux_atom.values
    true = data.true_b.values[atom] / data.true_a.values[atom]
    # In a domain, not in a wall, the sense of c/a is known.
    inside = np.abs(true - 1) > 0.05
    assert (np.sign(told.ratio_mean.values - 1) == np.sign(true - 1))[inside].mean() > 0.99
    assert told.probability.sel(practically="cubic").values[inside].max() < 0.01
    assert told.domain.max() >= 1
    assert told.sizes["region"] == int(told.domain.max()) + 1
    assert (told.domain_ratio_error < told.ratio_error.mean()).all()


def test_a_prior_that_cannot_be_summed_out_is_refused():
    with pytest.raises(ModelError, match="Normal"):
        fit("unit_cell", design(), prior={"set": "vague", "a": "LogNormal(log(0.4), 0.1)"})
