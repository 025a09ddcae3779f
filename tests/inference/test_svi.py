"""Variational inference: closed forms, guides that say that they fail, minibatches without bias, and interrupts."""

import itertools
import math

import gaussians as g
import numpy as np
import pyro
import pytest
import tiny
import torch
import toys
from pyro.distributions import Delta, Normal
from scipy import optimize, stats
from torch import nn

from atomzoo.inference import amortised, svi, training
from atomzoo.inference.checkpoint import Checkpoint
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.guides import GUIDES
from atomzoo.inference.minibatch import Minibatch
from atomzoo.inference.runs import RunError
from atomzoo.inference.training import Training
from atomzoo.models.model import model, observe, sample
from atomzoo.reports.diagnose import diagnose

# Over all comparisons of a test together, once in a thousand times by chance.
ALARM = 0.001
# A bound that is still this far below the best of its family is one mean off by a tenth of a standard deviation.
SHORT = 0.005


def density_of(found):
    return make_density(found, found.design())


def climb(density, guide, seed=0, patience=100, steps=5000):
    """Train a guide; the bound that it reaches and its standard error."""
    torch.manual_seed(seed)
    trained = Training(guide)
    trained.climb(
        svi._bound(density, guide, 0),
        steps=steps,
        rate=guide.rate,
        patience=patience,
        least=svi.GUIDE_GAIN,
        longest=10.0 * math.sqrt(density.dim),
        store=Checkpoint(None, "svi", density, {}),
        kept={},
        report=lambda *_: None,
    )
    with torch.no_grad():
        z, log_q = guide.sample(svi._noise(guide, 8000))
        gain = density.log_prob(z) - log_q
    return float(gain.mean()), float(gain.std() / math.sqrt(8000)), z.numpy()


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


@model(
    kind="table",
    priors={"vague": {"common": Normal(0.0, 3.0)}},
    sizes={"variable": (1, 1)},
    design=lambda: toys.numbers(np.linspace(-1, 3, 6)),
)
def svi_factor(table, prior):
    """Numbers around a common one that is hardly known: independent but for one direction."""
    common = sample("common", prior.common)
    wide = torch.ones(6, dtype=torch.float64)
    each = pyro.sample("each", Normal(5 * common * wide, 1.0).to_event(1))
    observe("value", Normal(each[:, None] - 5 * common, 1.0))


def factor_answer():
    """Log evidence, mean and covariance of `svi_factor`, of (common, each)."""
    seen = np.linspace(-1, 3, 6)
    joint = np.array([3.0, *[1.0] * 6]) * np.eye(7)
    mix = np.eye(7)
    mix[1:, 0] = 5
    # each - 5 common ~ N(0, 1) is seen with noise 1: mean y / 2, variance 1/2; common stays its prior.
    joint[1:, 1:] *= math.sqrt(0.5)
    mean = mix @ np.array([0.0, *(seen / 2)])
    root = mix @ joint
    evidence = stats.norm(0, math.sqrt(2)).logpdf(seen).sum()
    return float(evidence), mean, root @ root.T


def best_mean_field(evidence, covariance):
    """The bound of the best independent normals: each has the precision of its axis."""
    precision = np.diag(np.linalg.inv(covariance))
    return evidence - 0.5 * (np.linalg.slogdet(covariance)[1] + np.log(precision).sum())


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_climbs_to_the_best_of_its_family_from_a_bad_start(name):
    """Two correlated numbers: all but independent normals can be the posterior."""
    density = g.gaussian_density(2)
    evidence, mean, covariance = g.gaussian_answer(2)
    spread = np.diag(covariance) ** 0.5
    center = torch.as_tensor(mean + 2 * spread * [1, -1])
    guide = GUIDES[name](center, torch.diag(torch.as_tensor(2 * spread)), 1)
    bound, error, z = climb(density, guide)
    best = best_mean_field(evidence, covariance) if name == "normal" else evidence
    limit = stats.norm.isf(ALARM / 6)
    assert best - SHORT - limit * error < bound < best + limit * error
    apart = (z.mean(0) - mean) / spread
    # A bound that falls short by d has means off by √(2 d) standard deviations at most.
    assert np.abs(apart).max() < math.sqrt(2 * SHORT) + limit / math.sqrt(8000)


def test_the_bound_of_a_skewed_posterior_is_the_best_that_quadrature_finds():
    density = density_of(g.lognormal_scale)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def loss(at):
        z = at[0] + math.exp(at[1]) * nodes
        value = density.log_prob(torch.as_tensor(z)[:, None]).numpy()
        return -(weights @ value + at[1] + 0.5 * math.log(2 * math.pi * math.e))

    best = -optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", tol=1e-8).fun
    start = torch.tensor([1.0]).double(), torch.tensor([[0.2]]).double()
    for name in ("normal", "lowrank", "full", "flow"):
        bound, error, _ = climb(density, GUIDES[name](*start))
        limit = stats.norm.isf(ALARM / 8)
        assert best - SHORT - limit * error < bound < best + limit * error, name


@pytest.mark.parametrize("name", GUIDES)
def test_the_log_density_of_a_guide_is_that_of_its_draws(name):
    """Of trained guides with directions in which they are bent, against the draws' own Jacobian."""
    generator = torch.Generator().manual_seed(1)
    root = torch.tril(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    root.diagonal().abs_().add_(0.5)
    guide = GUIDES[name](torch.randn(3, generator=generator, dtype=torch.float64), root, 2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    noise = torch.randn(50, guide.noise, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        z, log_q = guide.sample(noise)
    torch.testing.assert_close(guide(z).detach(), log_q)
    if name == "lowrank":
        covariance = guide.wide @ guide.wide.T + torch.diag(guide.log_scale.exp() ** 2)
        law = torch.distributions.MultivariateNormal(
            guide.center + guide.factor @ guide.mean,
            guide.factor @ covariance @ guide.factor.T,
        )
        torch.testing.assert_close(log_q, law.log_prob(z).detach())
        return
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda e: guide.sample(e[None])[0][0], noise[row]
        )
        exact = stats.norm.logpdf(noise[row]).sum() - float(torch.linalg.slogdet(jacobian)[1])
        assert float(log_q[row]) == pytest.approx(exact)


@pytest.mark.parametrize("name", GUIDES)
def test_a_gaussian_posterior_is_the_closed_form_with_its_evidence(name):
    if name == "normal":
        density, answer = density_of(toys.toy_normal), toy_answer()
    elif name == "lowrank":
        density, answer = density_of(svi_factor), factor_answer()
    else:
        density, answer = g.gaussian_density(5), g.gaussian_answer(5)
    evidence, mean, covariance = answer
    found = svi.run(density, seed=2, guide=name, rank=1)
    assert found.attrs["pareto_k"] < svi.RELIABLE_K
    assert found.attrs["missed_share"] < 1e-6
    assert found.attrs["importance_ess"] > 0.98 * 8000
    assert found.log_evidence == pytest.approx(evidence, abs=4 * found.log_evidence_se + 1e-9)
    assert evidence - SHORT < found.attrs["elbo"] < evidence + 4 * found.attrs["elbo_se"] + 1e-9
    z = found.z.flatten(0, 1).numpy()
    spread = np.diag(covariance) ** 0.5
    limit = stats.norm.isf(ALARM / (4 * len(mean)))
    # Draws are chosen among proposals: both add to the error.
    error = math.sqrt(1 / len(z) + 1 / found.attrs["importance_ess"])
    assert (np.abs(z.mean(0) - mean) / spread < limit * error).all()
    assert (np.abs(z.std(0) / spread - 1) < limit * error / math.sqrt(2)).all()


def toy_answer():
    seen = toys.some_numbers()["value"].values.ravel()
    precision = len(seen) + 1 / 4
    mean, sd = seen.sum() / precision, precision**-0.5
    evidence = stats.norm.logpdf(seen, mean).sum() + stats.norm.logpdf(mean, 0, 2)
    evidence -= stats.norm.logpdf(mean, mean, sd)
    return float(evidence), np.array([mean]), np.array([[sd**2]])


def test_low_rank_beats_independent_normals_where_one_direction_is_common():
    density = density_of(svi_factor)
    evidence, _, covariance = factor_answer()
    narrow = svi.run(density, guide="normal", patience=100)
    wide = svi.run(density, guide="lowrank", rank=1, patience=100)
    best = best_mean_field(evidence, covariance)
    error = math.hypot(narrow.attrs["elbo_se"], wide.attrs["elbo_se"])
    assert wide.attrs["elbo"] - narrow.attrs["elbo"] == pytest.approx(
        evidence - best, abs=4 * error + SHORT
    )
    assert evidence - best > 2
    assert narrow.attrs["pareto_k"] > svi.RELIABLE_K


def test_a_flow_comes_closer_to_a_bent_posterior_than_any_normal():
    density = density_of(g.bent)
    evidence, means, spread = g.bent_answer()
    full = svi.run(density, guide="full", patience=100)
    flow = svi.run(density, guide="flow", patience=100, draws=1000)
    error = math.hypot(full.attrs["elbo_se"], flow.attrs["elbo_se"])
    assert flow.attrs["elbo"] - full.attrs["elbo"] > 10 * error
    assert flow.attrs["elbo"] < evidence + 4 * flow.attrs["elbo_se"]
    apart = (flow.z.flatten(0, 1).numpy().mean(0) - means) / spread
    error = math.sqrt(1 / 4000 + 1 / flow.attrs["importance_ess"])
    # Up to the hundredth of the posterior that a guide may miss before it is told.
    assert np.abs(apart).max() < 4 * error + svi.MISSED * stats.norm.isf(svi.MISSED)


@pytest.mark.parametrize("found", [toys.toy_funnel, g.lopsided], ids=lambda found: found.name)
def test_a_guide_that_cannot_be_the_posterior_fails_the_gate_and_gives_no_evidence(found):
    for seed in range(3):
        run = fit(
            found,
            found.design(),
            runner="svi",
            guide="normal",
            seed=seed,
            patience=100,
            predictive=0,
        )
        gates = {gate.name: gate for gate in diagnose(run)}
        assert run.attrs["pareto_k"] > svi.RELIABLE_K
        assert not gates["Pareto k of the draws"].passed
        assert "log_evidence" not in run.attrs
        assert "guide" in run.attrs["evidence_problem"]


def test_a_basin_that_is_left_out_is_told_with_its_share():
    density = density_of(g.lopsided)
    _, share = g.lopsided_answer()
    found = svi.run(density, guide="full", patience=100)
    kept = float((found.z > 0).double().mean())
    assert kept in (0.0, 1.0)
    lost = 1 - share if kept else share
    # Of 2,000 draws around the modes about half are there; their weights are uneven by less than a factor of two.
    error = math.sqrt(lost * (1 - lost) * 2 / 1000)
    assert abs(found.attrs["missed_share"] - lost) < 4 * error


class Still(nn.Module):
    """One number that can be moved, to no effect."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def train(module, objective, **options):
    trained = Training(module)
    density = density_of(toys.toy_normal)
    trained.climb(
        objective,
        **{"steps": 10**5, "rate": 0.1, "patience": 20, "least": 1e-4, "longest": 10.0} | options,
        store=Checkpoint(None, "svi", density, {}),
        kept={},
        report=lambda *_: None,
    )
    return trained


def test_training_on_noise_alone_stops_early():
    for seed in range(20):
        torch.manual_seed(seed)
        module = Still()
        trained = train(module, lambda m=module: (0 * m.at + torch.randn(1).double()).sum())
        assert trained.stopped == "early"
        # The first window is a gain, any later one at most every other time; three without a gain are the end.
        windows = 1 + stats.nbinom(3, 0.5).isf(ALARM / 20) + 3
        assert trained.step <= 20 * windows


def test_training_goes_on_while_there_is_a_gain():
    module = Still()
    trained = train(module, lambda: -(module.at - 30).square().sum(), rate=0.05)
    assert trained.stopped == "early"
    assert float(module.at.detach()) == pytest.approx(30, abs=0.01)
    other = Still()
    short = train(other, lambda: -(other.at - 30).square().sum(), steps=25)
    assert (short.step, short.stopped) == (25, "steps")


@pytest.mark.parametrize(
    ("found", "options"),
    [
        *((toys.toy_wide, {"guide": name}) for name in GUIDES),
        (toys.toy_wide, {"guide": "full", "batch": 5}),
        (tiny.tiny_autoencoder, {"draws": 3}),
        (tiny.tiny_autoencoder, {"draws": 3, "batch": 16}),
    ],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch, found, options):
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    options = {"seed": 3, "patience": 20, "steps": 150, **options}
    whole = svi.run(density_of(found), **options)

    def stop(done, total, text):
        if done == 40:
            raise KeyboardInterrupt

    path = tmp_path / "kept.npz"
    with pytest.raises(KeyboardInterrupt):
        svi.run(density_of(found), checkpoint=path, progress=stop, **options)
    resumed = svi.run(density_of(found), checkpoint=path, **options)
    assert torch.equal(whole.z, resumed.z)
    assert whole.attrs == resumed.attrs
    assert whole.log_evidence == resumed.log_evidence
    # Training that is over is not done again.
    calls = []
    again = svi.run(
        density_of(found), checkpoint=path, progress=lambda *told: calls.append(told), **options
    )
    assert torch.equal(whole.z, again.z)
    assert len(calls) == 1
    with pytest.raises(RunError, match="another run"):
        svi.run(density_of(found), checkpoint=path, **options | {"seed": 4})


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_over_all_minibatches_is_the_density(masked):
    data = toys.numbers([0.3, -1.2, 2.0, 0.7, 1.5, -0.1])
    mask = np.array([True, True, False, True, True, True]) if masked else None
    whole = make_density(toys.toy_wide, data, mask=mask)
    part = Minibatch(whole, 2)
    z = whole.initial(64, 1)
    found = []
    for places in itertools.combinations(range(6), 2):
        part.take(torch.tensor(places))
        found.append(part.gradient(z))
    value, gradient = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
    exact, slope = whole.gradient(z)
    torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-8)
    assert part.path == "traced"


def test_minibatches_are_drawn_evenly():
    torch.manual_seed(0)
    data = toys.numbers([0.0, 1.0, 2.0, 3.0, 4.0])
    part = Minibatch(make_density(toys.toy_wide, data), 2)
    counts = np.zeros(5)
    for _ in range(500):
        part.draw()
        counts[part.view.read["value"].ravel().long().numpy()] += 1
    # Two different ones of five each time: less spread than multinomial, by the factor (5 - 2) / (5 - 1).
    square = ((counts - 200) ** 2 / 200).sum() / 0.75
    assert square < stats.chi2(4).isf(ALARM)


def test_a_guide_that_is_fitted_by_minibatches_gives_the_same_posterior():
    data = toys.numbers(1 + np.random.default_rng(1).standard_normal(400))
    density = make_density(toys.toy_normal, data)
    found = svi.run(density, guide="full", batch=100, patience=100)
    seen = data["value"].values
    mean, sd = seen.sum() / 400.25, 400.25**-0.5
    assert found.attrs["pareto_k"] < svi.RELIABLE_K
    error = math.sqrt(1 / 2000 + 1 / found.attrs["importance_ess"])
    assert abs(float(found.z.mean()) - mean) / sd < stats.norm.isf(ALARM / 2) * error


def whole_table_mean(table, prior):
    """Numbers around their own average: no part of them tells it."""
    shift = sample("shift", prior.shift)
    observe("value", Normal(table.value.mean() + shift, 1.0))


whole_table = model(
    kind="table",
    priors={"vague": {"shift": Normal(0.0, 1.0)}},
    design=toys.some_numbers,
)(whole_table_mean)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (tiny.tiny_classes, "latents of their own"),
        (tiny.tiny_graph, "over all data at once"),
        (tiny.tiny_field, "cannot be told of a part"),
        (whole_table, "cannot be told of a part"),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_minibatches_that_would_be_biased_are_refused_with_the_reason(found, reason):
    with pytest.raises(RunError, match=reason):
        Minibatch(density_of(found), 5)


@model(
    kind="patches",
    priors={"standard": {"noise": 0.5}},
    runner="svi",
    design=lambda: tiny.some_patches(6),
)
class svi_linear(nn.Module):
    """A code a patch and a level for all, given by a guide without noise: the bound is a plain number."""

    def __init__(self, patches, prior):
        super().__init__()
        self.encode = nn.Linear(64, 1)
        self.level = nn.Parameter(torch.tensor(0.3))

    def model(self, patches, prior):
        level = sample("level", Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with patches.plate("patch"):
            code = sample("code", Normal(torch.zeros((), dtype=torch.float64), 1.0))
            mean = (level + code)[..., None, None] * torch.ones(8, 8).double()
            observe("intensity", Normal(mean, prior.noise).to_event(2))

    def guide(self, patches, prior):
        sample("level", Delta(self.level))
        with patches.plate("patch"):
            sample("code", Delta(self.encode(patches.intensity.flatten(1))[:, 0]))


def test_the_mean_over_all_minibatches_is_the_bound_of_the_networks(monkeypatch):
    density = density_of(svi_linear)
    weights = list(density.networks.parameters())

    def both(estimate):
        value = estimate()
        slopes = torch.autograd.grad(value, weights)
        return torch.cat([value.detach()[None], *(slope.ravel() for slope in slopes)])

    with pyro.validation_enabled(False):
        exact = both(amortised.bound(density))
        estimate = amortised.bound(density, 2)
        found = []
        for places in itertools.combinations(range(6), 2):
            chosen = torch.tensor([*places, *(i for i in range(6) if i not in places)])
            monkeypatch.setattr(torch, "randperm", lambda n, chosen=chosen: chosen)
            found.append(both(estimate))
    torch.testing.assert_close(torch.stack(found).mean(0), exact, rtol=1e-10, atol=1e-10)


def test_networks_learn_from_minibatches_what_they_learn_from_all():
    """Both come close to the exact evidence's bound; one is told a third of the patches at a time."""
    found = {}
    for batch in (0, 16):
        density = density_of(tiny.tiny_autoencoder)
        found[batch] = svi.run(density, draws=2, steps=600, patience=100, batch=batch).attrs
    before = density_of(tiny.tiny_autoencoder)
    with torch.no_grad(), pyro.validation_enabled(False):
        start = float(amortised.bound(before)())
    gained = found[0]["elbo"] - start
    assert found[16]["elbo"] - start > 0.95 * gained > 0
    assert found[0]["elbo_se"] > 0


def test_the_same_seed_gives_the_same_draws_and_leaves_the_global_state_alone():
    density = density_of(toys.toy_wide)
    first, again = g.seeded(svi.run, density, steps=60, patience=20, guide="flow")
    assert first.attrs == again.attrs


def test_the_run_tells_how_it_went():
    told = []
    found = svi.run(
        density_of(toys.toy_wide), patience=50, progress=lambda *each: told.append(each)
    )
    assert found.attrs["guide"] == "flow"
    assert found.attrs["stopped"] == "early"
    assert found.attrs["steps"] < 5000
    assert found.attrs["elbo_se"] > 0
    assert found.attrs["density_path"] == "traced"
    done = [each[0] for each in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][1]
    assert "ELBO" in told[1][2]


def test_alternatives_alone_are_enumerated():
    assert svi.run(density_of(g.levels), draws=10).log_evidence is not None


@pytest.mark.parametrize(
    "bad",
    [
        {"guide": "magic"},
        {"steps": 0},
        {"draws": 0},
        {"chains": 0},
        {"proposals": 0},
        {"patience": 1},
        {"rank": -1},
        {"rate": 0.0},
        {"batch": 20},
        {"batch": -1},
        {"starts": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(bad):
    with pytest.raises(RunError, match=next(iter(bad))) as caught:
        svi.run(density_of(toys.toy_normal), **bad)
    assert "\n" not in str(caught.value)


def test_networks_bring_their_own_guide():
    with pytest.raises(RunError, match="its own"):
        svi.run(density_of(tiny.tiny_autoencoder), guide="full")
