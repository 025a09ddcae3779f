"""Plane groups: the tables, the closed form against explicit matrices, quadrature and other runners, and patches."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

from atomzoo.datasets.kinds import DataError, dataset
from atomzoo.datasets.plane_groups import (
    GROUPS,
    SETTINGS,
    apart,
    cases,
    reduced_basis,
    shape_distance,
    subgroups,
)
from atomzoo.datasets.scenes import simulate
from atomzoo.models.model import Data, View, find
from atomzoo.models.structure.plane_group_evidence import (
    Envelope,
    Measured,
    Operations,
    Priors,
    log_density,
    weigh,
)

ORDERS = dict(zip(GROUPS, (1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 3, 6, 6, 6, 12), strict=True))
CASES = cases()
PLAIN = np.where(np.arange(len(CASES)) < len(SETTINGS), 0.0, -1e9)


def reals(*values):
    return [torch.as_tensor(np.asarray(v, dtype=float)) for v in values]


def some_index(reach, all_of=True):
    span = range(-reach, reach + 1)
    found = [(h, k) for h in span for k in span if (h, k) > (0, 0)]
    return np.array(found if all_of else [h for h in found if h[0] ** 2 + h[1] ** 2 <= reach**2])


def some_squares(index):
    h, k = index.T
    return np.stack([h**2 + k**2, h**2 - k**2, 2 * h * k], 1) / (h**2 + k**2).max()


def measured(index, value, noise):
    parts = np.stack([value.real, value.imag], 1) if np.iscomplexobj(value) else value
    value, sigma, wave, counts = reals(
        parts, np.full(len(index), noise), some_squares(index), np.ones(len(index))
    )
    return Measured(index, value, sigma, wave, counts)


def envelope(scale=1.0, decay=0.0, noise=1.0, blur=0.0, blur_diagonal=0.0, breaking=0.5):
    return Envelope(*reals(scale, decay, noise, blur, blur_diagonal, breaking))


def signal(case, origin, breaking, index):
    """(|H| − β² |G|) Q + β² |G| P of a case on real and imaginary parts."""
    own, like = SETTINGS[case.setting], SETTINGS[case.like]
    part = own.order * (breaking**2 if case.setting != case.like else 0.0)
    whole = (like.order - part) * projector(like, origin, index)
    return whole + part * projector(own, origin + np.array(case.shift), index)


def projector(setting, origin, index):
    """P on the real and imaginary parts of these coefficients, by the operations on all waves that they reach."""
    waves = {tuple(s * h) for h in index for s in (1, -1)}
    while True:
        more = waves | {tuple(np.array(h) @ r) for h in waves for r in setting.rotation}
        if more == waves:
            break
        waves = more
    place = {h: i for i, h in enumerate(sorted(waves))}
    p = np.zeros((len(place), len(place)), complex)
    for rotation, translation in zip(setting.rotation, setting.translation, strict=True):
        moved = translation + (np.eye(2) - rotation) @ origin
        for h, i in place.items():
            turn = np.exp(-2j * np.pi * np.dot(h, moved))
            p[i, place[tuple(np.array(h) @ rotation)]] += turn / setting.order
    half = [h for h in place if h > (0, 0)]
    parts = np.zeros((len(place), 2 * len(half)), complex)
    for i, h in enumerate(half):
        other = place[tuple(-x for x in h)]
        parts[place[h], 2 * i : 2 * i + 2] = 1, 1j
        parts[other, 2 * i : 2 * i + 2] = 1, -1j
    real = (np.linalg.pinv(parts) @ p @ parts).real
    np.testing.assert_allclose(real @ real, real, atol=1e-12)
    np.testing.assert_allclose(real, real.T, atol=1e-12)
    kept = np.array([[2 * half.index(tuple(h)), 2 * half.index(tuple(h)) + 1] for h in index])
    return real[np.ix_(kept.ravel(), kept.ravel())]


def test_every_setting_is_a_group_of_the_right_order():
    assert len(SETTINGS) == 27
    for setting in SETTINGS:
        assert setting.order == ORDERS[setting.group]
        known = {
            tuple(r.ravel()): v for r, v in zip(setting.rotation, setting.translation, strict=True)
        }
        for r, v in zip(setting.rotation, setting.translation, strict=True):
            for s, w in zip(setting.rotation, setting.translation, strict=True):
                off = known[tuple((r @ s).ravel())] - (r @ w + v)
                np.testing.assert_allclose(off, np.rint(off), atol=1e-12)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("p4g", {"p1", "p2", "pg", "cm", "pgg", "cmm", "p4", "p4g"}),
        ("p4m", {"p1", "p2", "pm", "cm", "pmm", "cmm", "p4", "p4m"}),
        ("pmg", {"p1", "p2", "pm", "pg", "pmg"}),
        ("p31m", {"p1", "cm", "p3", "p31m"}),
        ("p6m", {"p1", "p2", "cm", "cmm", "p3", "p3m1", "p31m", "p6", "p6m"}),
    ],
)
def test_subgroups_are_those_of_the_international_tables(group, expected):
    found = {SETTINGS[i].group for s in SETTINGS if s.group == group for i in subgroups(s)}
    assert found == expected


def test_a_lattice_has_no_strain_in_its_own_settings_and_twice_the_strain_is_the_distance():
    hexagonal = reduced_basis(np.array([[1.0, 0.0], [-0.5, np.sqrt(0.75)]]))
    for setting in SETTINGS:
        away, along = shape_distance(hexagonal, setting)
        if setting.lattice in ("hexagonal", "rhombic"):
            assert away < 1e-7
            assert abs(along) == pytest.approx(
                0.5 * np.log(3) if setting.lattice == "rhombic" else 0
            )
    strain = 1e-3
    for matrix in (np.diag([1 + strain, 1 - strain]), np.array([[1, strain], [strain, 1]])):
        assert apart(hexagonal, hexagonal @ matrix) == pytest.approx(2 * strain, rel=1e-4)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_density_is_that_of_the_explicit_projector_whatever_the_noise(number):
    """Also where the orbits are cut by the choice of reflections, and reflections are left out."""
    rng = np.random.default_rng(number)
    index, origin = some_index(2), rng.random(2)
    count = len(index)
    value, noise, counts = (
        rng.standard_normal((count, 2)),
        rng.uniform(0.5, 1.5, count),
        np.ones(count),
    )
    counts[3] = 0
    seen = Measured(index, *reals(value, noise, some_squares(index), counts))
    ops = Operations(index)
    found = log_density(
        ops, torch.tensor(number), *reals(origin), seen, envelope(2.3, 0.0, 1.2, 0.3, -0.2)
    )
    passed = np.exp(-(0.3 * some_squares(index)[:, 1] - 0.2 * some_squares(index)[:, 2]))
    outer = np.repeat(passed, 2)
    seen_of = 2.3**2 * signal(CASES[number], origin, 0.5, index) * np.outer(outer, outer)
    covariance = seen_of + np.diag(np.repeat(1.2 * noise, 2) ** 2)
    kept = np.repeat(counts, 2) > 0
    expected = multivariate_normal(cov=covariance[np.ix_(kept, kept)]).logpdf(value.ravel()[kept])
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "noise"),
    [("p1", 0.3), ("p2", 0.7), ("cm across 2a-b", 0.7), ("pgg", 0.3), ("p3", 0.3), ("p6m", 0.7)],
)
def test_the_evidence_is_the_integral_over_origin_and_scale(name, noise):
    """Against a sum over a dense grid, where the noise leaves the origin vague and where it does not."""
    number = [s.name for s in SETTINGS].index(name)
    rng = np.random.default_rng(5)
    index = some_index(2, all_of=False)
    ops, setting = Operations(index), torch.tensor(number)
    free = torch.as_tensor(rng.standard_normal((len(index), 2)))
    motif = ops.project(setting, *reals(rng.random(2)), torch.complex(*free.T)).numpy()
    motif = motif * SETTINGS[number].order ** 0.5
    seen = measured(index, motif + noise * (rng.standard_normal((len(index), 2)) @ [1, 1j]), noise)
    scale = dist.LogNormal(*reals(0.0, 0.5))
    found = weigh(ops, seen, Priors([scale, 0.0, 1.0, 0.0, 0.0, 0.5]), PLAIN, draws=400, seed=0)
    grid = torch.arange(64, dtype=torch.float64) / 64
    origins = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    levels = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
    told = torch.stack(
        [log_density(ops, setting, origins, seen, envelope(float(z.exp()))) for z in levels]
    )
    prior = torch.log_softmax(-0.5 * (levels / 0.5) ** 2, 0)
    expected = float(torch.logsumexp(told + prior[:, None], (0, 1)) - np.log(len(origins)))
    error = found.error[number] if np.isfinite(found.error[number]) else 0.0
    # The grid leaves out the 0.3 % of the prior beyond three standard deviations.
    assert found.log_evidence[number] == pytest.approx(expected, abs=5 * error + 0.02)


@pytest.mark.parametrize(("breaking", "first"), [(0.0, "p4m"), (0.06, "p4")])
def test_a_breaking_that_no_constraint_shows_alone_is_shown_by_all_together(breaking, first):
    """p4 nearly p4m, constraints broken by twice the noise: some seventy gain 1.2 ± 3 nats each, less five."""
    number = [c.name for c in CASES].index("p4, nearly p4m")
    index, rng = some_index(14, all_of=False), np.random.default_rng(8)
    spread = signal(CASES[number], np.array([0.3, 0.1]), breaking, index)
    noise = 0.06
    value = rng.multivariate_normal(np.zeros(len(spread)), spread + noise**2 * np.eye(len(spread)))
    seen = measured(index, value.reshape(-1, 2), noise)
    priors = Priors(
        [dist.LogNormal(*reals(0.0, 0.5)), 0.0, 1.0, 0.0, 0.0, dist.Uniform(*reals(0.0, 1.0))]
    )
    names = ("p4", "p4m", "p4, nearly p4m")
    weights = np.array([0.0 if c.name in names else -1e9 for c in CASES])
    found = weigh(Operations(index), seen, priors, weights, draws=10, seed=0, proposals=256)
    told = {c.name: e for c, e in zip(CASES, found.log_evidence, strict=True) if c.name in names}
    broken = np.logaddexp(told["p4"], told["p4, nearly p4m"])
    assert (broken > told["p4m"]) == (first == "p4")
    assert abs(broken - told["p4m"]) > 2


@pytest.mark.slow
def test_a_patch_of_each_group_is_told_from_its_subgroups_and_its_neighbours():
    """One patch a group: if 95 % are right, 14 of 17 or more are with probability 0.999."""
    model, right = find("plane_group"), 0
    for group in GROUPS:
        data = simulate("wallpaper", group=group, cells=5.0, pixels=64, seed=11)
        seen = model.prepared(data)
        told = model.posterior(View(seen), model.resolve(seen), draws=10, seed=0)
        probability = told.derived["group_probability"]
        assert float(probability.sum()) == pytest.approx(1)
        right += GROUPS[int(probability.values.argmax())] == group
    assert right >= 14


def test_a_sheared_scan_keeps_its_group_where_the_prior_allows_for_it():
    data = simulate(
        "wallpaper", group="p6m", cells=6.0, pixels=96, seed=2, shear=0.04, stretch=1.03
    )
    model = find("plane_group")
    seen = model.prepared(data, "scan")
    told = model.posterior(View(seen), model.resolve(seen, "scan"), draws=10, seed=0)
    assert told.attrs["group"] == "p6m"


def test_the_motif_drawn_has_the_group_and_the_spread_that_the_draws_claim():
    """True coefficients, as the scene has them, fall within the draws' spread as often as they should."""
    data = simulate("wallpaper", group="p4m", cells=5.0, pixels=64, seed=4, snr=2.0)
    model = find("plane_group")
    seen = model.prepared(data)
    told = model.posterior(View(seen), model.resolve(seen), draws=200, seed=0).derived
    y, x = np.meshgrid(data["y"], data["x"], indexing="ij")
    place = np.stack([x.ravel(), y.ravel()], 1) - seen["origin"].values
    turn = np.exp(2j * np.pi * place @ seen["wave_vector"].values.T)
    waves = np.concatenate([2 * turn.real, -2 * turn.imag], 1)
    fitted = np.linalg.lstsq(waves, data["true_mean"].values.ravel(), rcond=None)[0]
    v, u = np.meshgrid(told["v"], told["u"], indexing="ij")
    turn = np.exp(2j * np.pi * np.stack([u, v], -1) @ seen["index"].values.T)
    count = len(fitted) // 2
    truth = 2 * (turn * (fitted[:count] + 1j * fitted[count:])).real.sum(-1)
    off = (truth - told["cell_symmetrised"].values) / told["cell_error"].values
    # 48 × 48 points of a cell that some thirty independent amplitudes make.
    assert 0.5 < np.sqrt(np.mean(off**2)) < 1.6


def few_reflections():
    lattice = np.array([[0.30, 0.0], [0.155, 0.262]])
    index = np.array([[0, 1], [1, 0], [1, 1], [1, -1]])
    return dataset(
        "periodic",
        coefficient=np.ones((4, 2)),
        noise=np.full(4, 0.5),
        index=index,
        wave_vector=index @ np.linalg.inv(lattice).T,
        lattice=lattice,
        shape_error=0.01,
        units={"lattice": "nm", "wave_vector": "1/nm"},
    )


KNOWN = {"set": "vague", "scale": "LogNormal(0, 0.5)", "decay": 0.5, "noise": 1.0, "blur": 0.0}
KNOWN |= {"blur_diagonal": 0.0, "tolerance": 0.05, "breaking": 0.4}


@pytest.mark.parametrize("number", [7, 26, 27, 60, 114])
def test_the_story_told_many_times_has_the_covariance_of_the_closed_form(number):
    model = find("plane_group")
    prior = KNOWN | {"scale": 1.0}
    data = few_reflections()
    view, held = View(data), {"setting": torch.tensor(number), "origin": reals([0.2, 0.7])[0]}
    story = pyro.poutine.condition(model.tell(view, model.resolve(data, prior)), data=held)
    drawn = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(400):
            with pyro.poutine.trace() as tracer, Data(view, generate=True):
                story()
            drawn.append(tracer.trace.nodes["coefficient"]["value"].numpy().ravel())
    tau = np.exp(-0.5 * _orbit_waves(data, number))
    seen_of = signal(CASES[number], np.array([0.2, 0.7]), 0.4, data["index"].values)
    covariance = seen_of * np.outer(np.repeat(tau, 2), np.repeat(tau, 2)) + 0.25 * np.eye(8)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), np.array(drawn).T)
    # Entries of the sample covariance of n standard normals have a standard deviation of at most √(2/n).
    assert np.abs(np.cov(whitened) - np.eye(8)).max() < 5 * np.sqrt(2 / 400)


def _orbit_waves(data, number):
    ops = Operations(data["index"].values)
    square = (data["wave_vector"].values ** 2).sum(1)
    square, ones = reals(square / square.max(), np.ones(len(square)))
    setting = torch.tensor(CASES[number].like)
    return (ops.over_orbit(setting, square) / ops.over_orbit(setting, ones)).numpy()


def test_what_is_not_periodic_is_refused():
    rng = np.random.default_rng(0)
    noise = dataset(
        "image",
        intensity=rng.standard_normal((64, 64)),
        y=np.arange(64) * 0.02,
        x=np.arange(64) * 0.02,
        units={"y": "nm", "x": "nm"},
    )
    with pytest.raises(DataError, match="no lattice"):
        find("plane_group").prepared(noise)
    with pytest.raises(DataError, match="no plane group 'p5'"):
        simulate("wallpaper", group="p5")
