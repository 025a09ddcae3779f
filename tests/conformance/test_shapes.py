"""The contract carries models of every shape: each tiny model against an answer known otherwise."""

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import multivariate_normal, norm

from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.heldout import blocks_of, leave_block_out
from atomzoo.reports.compare import compare


@pytest.mark.slow
def test_the_fields_evidence_and_mean_are_the_closed_forms():
    """Known kernel and noise: the posterior is Gaussian and everything about it is known."""
    data = tiny.some_field(seed=1)
    run = fit(tiny.tiny_field, data, draws=1000, predictive=0)
    y, x = np.mgrid[:16, :16]
    points = np.stack([y.ravel(), x.ravel()], 1)
    kernel = np.exp(-0.5 * ((points[:, None] - points) ** 2).sum(-1) / 9) + 1e-6 * np.eye(256)
    seen = data["value"].values.ravel()
    covariance = kernel + 0.04 * np.eye(256)
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(256, dtype=torch.float64), torch.as_tensor(covariance)
    ).log_prob(torch.as_tensor(seen))
    assert run.attrs["log_evidence"] == pytest.approx(float(exact), abs=0.01)
    mean = kernel @ np.linalg.solve(covariance, seen)
    spread = np.sqrt(np.diag(kernel - kernel @ np.linalg.solve(covariance, kernel)))
    found = run["posterior"]["f"].mean(("chain", "draw")).values
    # Largest of 256 standard errors of a mean of 4,000 draws.
    assert np.abs((found - mean) / spread).max() < 4.5 / np.sqrt(4000)


def test_the_ising_posterior_agrees_with_a_grid():
    data = tiny.tiny_ising.simulate(seed=4, J=0.3, h=0.1)
    run = fit(tiny.tiny_ising, data, draws=1000, predictive=0)
    density = make_density(tiny.tiny_ising, data)
    axis = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    value = density.log_prob(grid).reshape(301, 301)
    total = float(torch.logsumexp(value.flatten(), 0)) + 2 * np.log(3 / 300)
    assert run.attrs["log_evidence"] == pytest.approx(total, abs=0.02)
    weights = torch.softmax(value.flatten(), 0).reshape(301, 301)
    exact = float((weights.sum(1) * axis).sum())
    spread = float(((weights.sum(1) * axis**2).sum() - exact**2).sqrt())
    assert float(run["posterior"]["J"].mean()) == pytest.approx(
        exact, abs=5 * spread / np.sqrt(4000)
    )


def test_the_ising_simulator_draws_from_its_distribution():
    """Mean bond energy of simulated states against the sum over all states, within five standard errors."""
    J, h = torch.tensor(0.2, dtype=torch.float64), torch.tensor(-0.1, dtype=torch.float64)
    spins = tiny.Ising4x4(J, h)
    weights = torch.softmax(spins._log_weights(), -1)
    bonds = tiny.LEVELS[:, 0]
    mean = float((weights * bonds).sum())
    spread = float(((weights * bonds**2).sum() - mean**2).sqrt())
    torch.manual_seed(0)
    drawn, _ = tiny.Ising4x4.statistics(spins.sample((4000,)))
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * spread / np.sqrt(4000))


@pytest.mark.slow
def test_the_graph_posterior_agrees_with_quadrature():
    """Given a graph each variable is a regression on its parents: closed in the weights, a quadrature in the noise."""
    data = tiny.some_table()
    run = fit(tiny.tiny_graph, data, draws=1000, predictive=0)
    share = np.bincount(run["posterior"]["graph"].values.ravel().astype(int), minlength=25) / 4000
    x = data["value"].values
    log_exact = np.array(
        [
            sum(_node_evidence(x, np.flatnonzero(g[:, i]), i) for i in range(3))
            for g in tiny.GRAPHS.numpy()
        ]
    )
    exact = np.exp(log_exact - np.logaddexp.reduce(log_exact))
    # Draws are resampled from an importance sample: both contribute to the error of a share.
    error = np.sqrt(exact * (1 - exact) * (1 / 4000 + 1 / run.attrs["importance_ess"]))
    assert np.all(np.abs(share - exact) < 5 * error + 1 / 4000)
    total = np.logaddexp.reduce(log_exact) - np.log(25)
    assert run.attrs["log_evidence"] == pytest.approx(total, abs=5 * run.attrs["log_evidence_se"])


def _node_evidence(x: np.ndarray, parents: np.ndarray, i: int) -> float:
    """Log evidence of a regression with N(0, 1) weights and LogNormal(0, 1/2) noise."""
    log_noise = np.linspace(-2.5, 2.5, 401)
    values = []
    for s in log_noise:
        covariance = np.exp(2 * s) * np.eye(len(x)) + x[:, parents] @ x[:, parents].T
        values.append(multivariate_normal.logpdf(x[:, i], cov=covariance) + norm.logpdf(s, 0, 0.5))
    return float(np.logaddexp.reduce(values) + np.log(log_noise[1] - log_noise[0]))


def test_class_probabilities_and_pointwise_agree_with_the_mixture_formula():
    data = tiny.some_atoms()
    density = make_density(tiny.tiny_classes, data)
    points = density.initial(20, seed=0)
    values = density.constrain(points)
    seen = torch.as_tensor(data["intensity"].values)
    levels = torch.stack([values["dim"], values["dim"] + values["step"]], -1)
    part = values["share"].log()[:, None] + torch.distributions.Normal(
        levels[:, None], values["spread"][:, None, None]
    ).log_prob(seen[None, :, None])
    torch.testing.assert_close(
        density.pointwise(points), torch.logsumexp(part, -1), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(
        density.class_probabilities(points)["kind"], torch.softmax(part, -1), rtol=0, atol=1e-10
    )


def test_the_classifier_finds_the_bright_atoms():
    data = tiny.some_atoms()
    run = fit(tiny.tiny_classes, data, predictive=0)
    found = run["classes"]["kind"].values[:, 1] > 0.5
    assert (found == (data["intensity"].values > 1.5)).all()


@pytest.mark.slow
def test_the_autoencoders_code_carries_the_one_factor():
    """More of the bar's place follows from the code than from any of 500 shuffled codes."""
    place = np.random.default_rng(0).uniform(2, 5, 48)
    run = fit(tiny.tiny_autoencoder, tiny.some_patches(seed=0), predictive=0)
    code = run["posterior"]["code"].mean(("chain", "draw")).values
    rng = np.random.default_rng(1)
    shuffled = max(_explained(place, code[rng.permutation(48)]) for _ in range(500))
    assert _explained(place, code) > max(shuffled, 0.5)
    table = tiny.tiny_autoencoder.giver(run, tiny.some_patches())
    assert table.attrs["kind"] == "table"


def _explained(place: np.ndarray, code: np.ndarray) -> float:
    """Share of the variance that a quadratic of the code explains."""
    design = np.column_stack([np.ones(48), code, code**2, code[:, :1] * code[:, 1:]])
    left = place - design @ np.linalg.lstsq(design, place, rcond=None)[0]
    return float(1 - left.var() / place.var())


@pytest.mark.slow
def test_every_shape_compares_and_reports(every, tmp_path):
    from atomzoo.reports.page import report

    data = every.simulate(seed=3)
    comparison = compare(data, [every], seed=0)
    assert comparison.winner == every.name
    text = report(comparison, tmp_path / "report.html").read_text()
    assert every.name in text


def test_rivals_of_different_shapes_are_compared():
    comparison = compare(tiny.some_atoms(), ["tiny_classes", "tiny_one_class"])
    assert comparison.winner == "tiny_classes"
    assert comparison.rows[0].elpd_diff == 0.0
    assert comparison.rows[1].elpd_diff > 0


@pytest.mark.slow
def test_a_model_that_gives_another_kind_is_put_in_front():
    """Patches, and a model of tables: the autoencoder comes first, and the comparison says so."""
    import toys

    comparison = compare(tiny.some_patches(), ["toy_normal", toys.toy_wide], runner="laplace")
    assert comparison.data.attrs["kind"] == "table"
    assert comparison.data.sizes["row"] == 48
    assert "tiny_autoencoder" in comparison.steps[0]
    with pytest.raises(ValueError, match="needs data of kind"):
        compare(tiny.some_field(), ["toy_normal"])


@pytest.mark.parametrize("name", list(tiny.SHAPES))
def test_blocks_cover_the_units_once(name):
    model = tiny.SHAPES[name]
    data = model.design()
    codes = blocks_of(model, data)
    if codes is None:
        assert name in ("tiny_autoencoder", "tiny_graph")
        return
    density = make_density(model, data)
    assert codes.shape == density.unit_shape
    assert set(np.unique(codes)) == set(range(codes.max() + 1))


@pytest.mark.slow
def test_a_block_left_out_of_a_field_is_predicted_by_its_neighbours():
    """Against the Gaussian process's exact conditional for the same block."""
    data = tiny.some_field(seed=2)
    run = fit(tiny.tiny_field, data, draws=500, predictive=0)
    held = leave_block_out(tiny.tiny_field, data, run, most=4, draws=500)
    y, x = np.mgrid[:16, :16]
    points = np.stack([y.ravel(), x.ravel()], 1)
    kernel = np.exp(-0.5 * ((points[:, None] - points) ** 2).sum(-1) / 9) + 1e-6 * np.eye(256)
    seen = data["value"].values.ravel()
    codes = blocks_of(tiny.tiny_field, data, 4).ravel()
    exact = []
    for block in range(codes.max() + 1):
        out, kept = codes == block, codes != block
        gain = kernel[np.ix_(out, kept)] @ np.linalg.inv(
            kernel[np.ix_(kept, kept)] + 0.04 * np.eye(kept.sum())
        )
        mean = gain @ seen[kept]
        variance = np.diag(kernel[np.ix_(out, out)] - gain @ kernel[np.ix_(kept, out)]) + 0.04
        exact.append(
            -0.5 * (np.log(2 * np.pi * variance) + (seen[out] - mean) ** 2 / variance).sum()
        )
    assert held is not None
    # About 0.55 each: 64 points seen through the same 2,000 draws. One false alarm in a thousand, over four blocks.
    assert np.all(held.errors < 1.0)
    assert np.all(np.abs(held.parts - exact) < norm.isf(0.001 / 2 / 4) * held.errors)


def test_states_of_the_lattice_are_all_there():
    assert len(tiny.STATES) == 2**16 == int(tiny.COUNTS.sum())
