"""Site symmetry: the closed form against brute force, which groups can be told apart, calibration, and the scan."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from atomzoo.datasets.kinds import dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit, make_density
from atomzoo.inference.runs import RunError
from atomzoo.models.model import View, find
from atomzoo.models.priors import ModelError
from atomzoo.models.structure.point_groups import (
    ODD,
    Arrangement,
    Group,
    Site,
    circle,
    distinct_groups,
    operations,
)
from atomzoo.models.structure.site_symmetry import (
    SiteVectors,
    evidence_of,
    groups_of,
    site_symmetry,
)
from atomzoo.reports.answers import answers_of

SHAPES = {
    "2": Arrangement(2),
    "3": Arrangement(3),
    "4": Arrangement(4),
    "5": Arrangement(5),
    "6": Arrangement(6),
    "3+6": Arrangement(3, 6, 0.5),
    "4+4": Arrangement(4, 4, 0.5),
    "4+4 aligned": Arrangement(4, 4, 0.0),
    "6+6": Arrangement(6, 6, 0.5),
}
BREATH, SPREAD, POLAR, ODD_SPREAD = 0.002, 0.012, 0.02, 0.06


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def shell_of(shape):
    return np.repeat([0, 1], [shape.first, shape.second])


def radii(shape):
    return np.array([0.14, 0.25])[: len(shape.orbits)]


def motif(shape):
    angle = np.stack([np.cos(shape.angle), np.sin(shape.angle)], 1)
    return angle * radii(shape)[shell_of(shape)][:, None]


def site(shape, noise, spread=SPREAD):
    widths = map(number, (BREATH, spread, POLAR, ODD_SPREAD, noise))
    return Site(shape, number(radii(shape)), *widths)


def mean_operation(shape, group, axis=0):
    matrices = list(operations(shape, group, axis))
    return sum(matrices) / len(matrices)


def template_covariance(shape, group, axis):
    """Written down from the card, with explicit matrices."""
    if group.name == ODD:
        return ODD_SPREAD**2 * np.eye(2 * shape.slots)
    highest = max(distinct_groups(shape), key=lambda g: (g.order, bool(g.axes)))
    everyone = mean_operation(shape, highest)
    if not group.axes:
        x, y = motif(shape).T
        turn = np.stack([-y, x], 1).ravel()
        everyone = everyone + np.outer(turn, turn) / (turn @ turn)
    own = mean_operation(shape, group, axis) - everyone
    first = np.repeat(shell_of(shape) == 0, 2)
    moves = np.tile(np.eye(2), (shape.slots, 1)) * first[:, None] / math.sqrt(shape.first)
    polar = moves @ moves.T @ own
    return BREATH**2 * everyone + SPREAD**2 * (own - polar) + POLAR**2 * polar


def brute_force(shape, noise, seen, back, centre, shells, shift, group, steps=4096):
    """Log evidence and mean direction, by summing over a fine grid of orientations and over all mirror lines."""
    shell = shell_of(shape)
    error = np.diag(np.repeat(noise**2 + shells[shell], 2))
    error += (noise**2 + centre) * np.kron(np.ones((shape.slots,) * 2), np.eye(2))
    d = (seen - (shell == 0)[:, None] * shift) @ back.T
    theta = 2 * np.pi * np.arange(steps) / steps
    turned = (d @ [1, 1j]) * np.exp(-1j * theta)[:, None]
    rest = np.stack([turned.real, turned.imag], -1) - motif(shape)
    logs = []
    for axis in group.axes or (0,):
        factor = np.linalg.cholesky(template_covariance(shape, group, axis) + error)
        z = np.linalg.solve(factor, rest.reshape(steps, -1).T)
        logs.append(-0.5 * (z**2).sum(0) - np.log(np.diag(factor)).sum())
    logs = np.array(logs) + shape.slots * np.log(np.linalg.det(back) / (2 * np.pi))
    weights = np.exp(logs - logs.max())
    direction = (weights * np.exp(1j * theta)).sum() / weights.sum()
    return logs.max() + np.log(weights.mean()), direction


def some_case(shape, seed):
    rng = np.random.default_rng(seed)
    noise = rng.choice([0.001, 0.004, 0.012])
    turned = (motif(shape) @ [1, 1j]) * np.exp(2j * np.pi * rng.random())
    seen = np.stack([turned.real, turned.imag], 1) + 0.01 * rng.standard_normal((shape.slots, 2))
    back = np.linalg.inv([[1.02, 0.05], [0.0, 0.97]])
    errors = rng.uniform(0, 0.005**2, 1 + len(radii(shape)))
    return noise, seen, back, errors[0], errors[1:], 0.004 * rng.standard_normal(2)


@pytest.mark.parametrize("name", SHAPES)
def test_the_evidence_is_that_of_explicit_matrices_on_a_fine_grid_of_orientations(name):
    shape = SHAPES[name]
    groups = [*distinct_groups(shape), Group(ODD, 1)]
    for seed in range(4):
        noise, seen, back, centre, shells, shift = some_case(shape, seed)
        told = site(shape, noise).evidence(
            *(number(x)[None] for x in (seen, back, centre, shells, shift))
        )
        case = noise, seen, back, centre, shells, shift
        expected = [brute_force(shape, *case, group)[0] for group in groups]
        # What the quadrature promises.
        np.testing.assert_allclose(told[:, 0], expected, atol=1e-3)


def test_the_gradient_of_the_nudge_is_the_mean_direction():
    shape = SHAPES["3+6"]
    for seed in range(3):
        noise, seen, back, centre, shells, shift = some_case(shape, seed)
        nudge = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
        given = (number(x)[None] for x in (seen, back, centre, shells, shift))
        told = site(shape, noise).evidence(*given, nudge)
        for i, group in enumerate([*distinct_groups(shape), Group(ODD, 1)]):
            (slope,) = torch.autograd.grad(told[i, 0], nudge, retain_graph=True)
            case = noise, seen, back, centre, shells, shift
            _, direction = brute_force(shape, *case, group)
            np.testing.assert_allclose(slope[:, 0], [direction.real, direction.imag], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2", {"C1", "C2/D2", "D1a", "D1b"}),
        ("3", {"C1", "D1", "C3/D3"}),
        ("4", {"C1", "C2", "D1a", "D1b", "D2a", "D2b", "C4/D4"}),
        ("5", {"C1", "D1", "C5/D5"}),
        ("6", {"C1", "C2", "C3", "D1a", "D1b", "D2", "D3a", "D3b", "C6/D6"}),
        ("3+6", {"C1", "C3", "D1", "D3"}),
        ("4+4", {"C1", "C2", "C4", "D1a", "D1b", "D2a", "D2b", "D4"}),
        ("6+6", {"C1", "C2", "C3", "C6", "D1a", "D1b", "D2", "D3a", "D3b", "D6"}),
    ],
)
def test_groups_that_a_shell_cannot_tell_apart_are_one_hypothesis(name, expected):
    assert {g.name for g in distinct_groups(SHAPES[name])} == expected


@pytest.mark.parametrize("name", SHAPES)
def test_every_group_projects_onto_shells_with_the_motif_among_them(name):
    shape = SHAPES[name]
    for group in distinct_groups(shape):
        for axis in group.axes or (0,):
            p = mean_operation(shape, group, axis)
            np.testing.assert_allclose(p @ p, p, atol=1e-12)
            np.testing.assert_allclose(p, p.T, atol=1e-12)
            np.testing.assert_allclose(p @ motif(shape).ravel(), motif(shape).ravel(), atol=1e-12)
            # Burnside: a rotation and a mirror line each move every slot but what they leave half of.
            free = 2 * shape.slots / group.order / (2 if group.axes else 1)
            assert round(np.trace(p), 9) == free


def test_a_group_that_does_not_map_the_slots_is_refused():
    with pytest.raises(ValueError, match="does not map"):
        list(operations(Arrangement(3, 6, 0.5), Group("C2", 2)))


@pytest.mark.parametrize("name", ["4", "3+6"])
def test_the_evidence_does_not_know_how_the_site_is_turned_or_its_slots_are_numbered(name):
    shape = SHAPES[name]
    noise, seen, _, centre, shells, _ = some_case(shape, 3)
    shape_site, rest = site(shape, noise), (number(centre)[None], number(shells)[None])
    cos, sin = math.cos(1.1), math.sin(1.1)
    turn = np.array([[cos, -sin], [sin, cos]])
    step = shape.second // shape.first
    outer = np.roll(seen[shape.first :], step, 0)
    renumbered = np.concatenate([np.roll(seen[: shape.first], 1, 0), outer])
    one = torch.eye(2, dtype=torch.float64)[None]
    told = [
        shape_site.evidence(number(x)[None], one, *rest) for x in (seen, seen @ turn.T, renumbered)
    ]
    torch.testing.assert_close(told[1], told[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(told[2], told[0], rtol=0, atol=1e-4)


def test_the_mean_over_orientations_is_right_where_the_peak_is_sharp():
    rng = np.random.default_rng(0)
    b = rng.uniform(30, 3000, 400) * np.exp(2j * np.pi * rng.random(400))
    # Neighbours near their slots: the second term agrees with the first within a fifth of a radian.
    c = rng.uniform(0, 2, 400) * b**2 / np.abs(b) * np.exp(1j * rng.uniform(-0.2, 0.2, 400))
    theta = 2 * np.pi * np.arange(8192) / 8192
    f = (b[:, None] * np.exp(-1j * theta) + c[:, None] * np.exp(-2j * theta)).real
    top = f.max(1)
    exact = top + np.log(np.exp(f - top[:, None]).mean(1))
    told = circle(*[(number(v.real), number(v.imag)) for v in (b, c)])
    np.testing.assert_allclose(told, exact, atol=1e-3)


def blank(shape, atoms, error=0.0):
    """Shells of nothing yet, to be simulated into."""
    side = math.ceil(math.sqrt(atoms))
    grid = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2)[:atoms] * 0.2
    return dataset(
        "shells",
        neighbour=np.zeros((atoms, shape.slots, 2)),
        position=grid + 0.0,
        centre_variance=np.full(atoms, error**2),
        neighbour_variance=np.full((atoms, shape.slots), error**2),
        shell=shell_of(shape),
        angle=shape.angle,
        radius=radii(shape)[shell_of(shape)],
        units={"neighbour": "nm", "position": "nm", "radius": "nm"},
        attrs={"top": 0.0, "bottom": float(grid.max())},
    )


@pytest.mark.parametrize("name", ["3", "3+6", "4+4"])
@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_probabilities_given_the_parameters_come_true_as_often_as_they_say(name, noise):
    """The simulator and the closed form are one model: in every bin, hits are binomial about what was told."""
    shape, atoms = SHAPES[name], 4000
    count = len(distinct_groups(shape)) + 1
    torch.manual_seed(1)
    truth = torch.randint(count, (atoms,))
    straight = torch.eye(2, dtype=torch.float64).expand(atoms, 2, 2) @ number(
        [[1.0, 0.04], [0.0, 0.98]]
    )
    shift = number([0.002, -0.001]).expand(atoms, 2)
    errors = torch.full((atoms,), 1e-6, dtype=torch.float64)
    shells = torch.full((atoms, len(radii(shape))), 4e-6, dtype=torch.float64)
    made = SiteVectors(site(shape, noise), straight, shift, errors, shells, truth)
    seen = made.sample()
    every = site(shape, noise).evidence(seen, torch.linalg.inv(straight), errors, shells, shift)
    told = torch.softmax(every, 0).T.numpy()
    torch.testing.assert_close(made.log_prob(seen), every[truth, torch.arange(atoms)])
    hit = np.arange(count) == truth.numpy()[:, None]
    place = np.minimum((told * 10).astype(int), 9)
    square = 0.0
    for i in range(10):
        here = place == i
        # Classes of one atom exclude each other, which only lowers the variance.
        variance = (told[here] * (1 - told[here])).sum()
        if variance > 5:
            square = max(square, (hit[here].sum() - told[here].sum()) ** 2 / variance)
    # Ten bins in six cases: a normal deviate beyond 4.5 comes by chance once in 2,000 runs.
    assert square < 4.5**2


@pytest.mark.slow
def test_the_scan_is_found_and_is_not_the_crystals_symmetry_breaking():
    atoms = simulate("graphene", gives="atoms", field=2.6, shear=0.06, precision=0.004, seed=4)
    run = fit("site_symmetry", atoms, prior="graphene", lean=True, predictive=0)
    drift, y = atoms.true_row_drift.values, atoms.true_row_y.values
    shear = 0.06 + (drift[-1, 0] - drift[0, 0]) / (y[-1] - y[0])
    derived, classes = run["derived"].to_dataset(), run["classes"].to_dataset()
    seen, error = (
        float(derived[v].sel(origin="observed", component="shear"))
        for v in ("distortion", "distortion_sd")
    )
    # Four errors, and what neighbours that share atoms take from them.
    assert abs(seen - shear) < 4 * math.sqrt(3) * error + 0.002
    likeliest = classes.group_class.values[classes["group"].values.argmax(1)]
    assert (likeliest == "D3").mean() > 0.9
    # Of 0.06, the crystal's own share in the prior is small; what nothing can assign is told.
    scan = float(derived["distortion"].sel(origin="scan", component="shear"))
    assert abs(scan - seen) < 3 * float(derived["unassigned"].sel(component="shear"))
    # A lattice has one orientation, up to the slots' numbering and half a turn from one sublattice to the other.
    turned = np.exp(6j * derived["orientation"].values)
    assert np.abs(turned.mean()) > 0.9
    assert set(derived.attrs) >= {"left_out", "left_out_why", "prior_driven_share", "groups"}


def test_weights_may_have_one_concentration_or_one_a_group_and_nothing_else():
    data = blank(SHAPES["3"], 30)
    names = groups_of(View(data))
    assert names == ["C1", "C3/D3", "D1", ODD]
    site_symmetry.simulate(data, seed=1, prior={"weights": "Dirichlet([5, 1, 1, 1])"})
    with pytest.raises(ModelError, match="concentrations"):
        site_symmetry.simulate(data, seed=1, prior={"weights": "Dirichlet([5, 1])"})
    with pytest.raises(ModelError, match="weights"):
        site_symmetry.simulate(data, seed=1, weights=[0.5, 0.2])


def test_what_is_known_is_taken_as_known():
    still = {"set": "graphene", "strain": 0.0, "drift": 0.0, "size": 0.0, "noise": 0.004}
    data = site_symmetry.simulate(blank(SHAPES["3+6"], 40), prior=still, seed=3)
    prior = site_symmetry.resolve(data, still)
    names = ("scale", "stretch", "shear", "weights")
    values = {
        n: number(data[f"true_{n}"].values)[None].expand(3, *data[f"true_{n}"].shape) for n in names
    }
    values["inflation"] = torch.ones(3, dtype=torch.float64)
    told = site_symmetry.derive(View(data), prior, values)
    # Nothing but the scan is left to explain a shear.
    assert float(told["unassigned"].sel(component="shear")) < 1e-9
    parts = told["distortion"].sel(component="shear")
    np.testing.assert_allclose(parts.sel(origin="scan"), parts.sel(origin="observed"))


def test_low_noise_leaves_nothing_to_the_prior_and_high_noise_does():
    """The flag compares with the wide template and even weights of the vague set."""
    shares = []
    for noise in (0.001, 0.03):
        data = site_symmetry.simulate(
            blank(SHAPES["3+6"], 300), prior="graphene", seed=2, noise=noise
        )
        values = {
            str(name)[5:]: torch.as_tensor(data[name].values, dtype=torch.float64)[None]
            for name in data.data_vars
            if str(name).startswith("true_")
        }
        prior = site_symmetry.resolve(data, "graphene")
        told = find("site_symmetry").derive(View(data), prior, values)
        assert isinstance(told, xr.Dataset)
        shares.append(told.attrs["prior_driven_share"])
    assert shares[0] < 0.1 < shares[1]


@pytest.mark.slow
def test_a_scan_that_drifts_down_the_frame_breaks_no_symmetry_and_one_matrix_for_all_rows_would():
    # The slope of this drift changes by 12 % from the top to the bottom, thirty times what sites are off by.
    atoms = simulate("graphene", gives="atoms", field=3, drift=0.03, precision=0.004, seed=5)
    share = []
    for drift in (find("site_symmetry").prior("graphene").entries["drift"], 0.0):
        prior = {"set": "graphene", "drift": drift}
        run = fit("site_symmetry", atoms, prior=prior, lean=True, predictive=0)
        classes = run["classes"].to_dataset()
        likeliest = classes.group_class.values[classes["group"].values.argmax(1)]
        share.append((likeliest == "D3").mean())
    assert share[0] > 0.9
    assert share[1] < share[0] - 0.2


@pytest.mark.slow
def test_vague_and_informative_priors_agree_at_low_noise_and_at_high_noise_the_run_says_what_hangs_on_the_prior():
    def seen(noise):
        return site_symmetry.simulate(
            blank(SHAPES["3+6"], 400, error=0.001), prior="graphene", seed=7, noise=noise
        )

    def told(noise, prior):
        run = fit("site_symmetry", seen(noise), prior=prior, lean=True, predictive=0)
        return run["classes"].to_dataset()["group"].values.argmax(1), run["derived"].to_dataset()

    low, flags = told(0.001, "graphene")
    vague, _ = told(0.001, "vague")
    # Sites of low groups that stray by little look like higher ones to a wide template, at any noise.
    assert (low == vague).mean() > 0.85
    assert flags.attrs["prior_driven_share"] < 0.15
    _, high = told(0.02, "graphene")
    # Shares of 400 sites are known to 0.025.
    assert high.attrs["prior_driven_share"] > flags.attrs["prior_driven_share"] + 4 * 0.025 * 2**0.5


def test_what_is_learnt_is_the_likelihood_of_the_story():
    data = site_symmetry.simulate(blank(SHAPES["3+6"], 40, error=0.002), prior="graphene", seed=4)
    density = make_density("site_symmetry", data, "graphene")
    z = density.initial(3, seed=1)
    values = density.constrain(z)
    for row, each in enumerate(density.pointwise(z)):
        given = {name: value[row] for name, value in values.items()}
        every = evidence_of(density.view, density.prior, given)
        told = torch.logsumexp(every + torch.log(given["weights"])[:, None], 0)
        torch.testing.assert_close(told, each)


PERFECT = {
    "scale": "Normal(1, 1e-4)",
    "stretch": "Normal(1, 1e-4)",
    "shear": "Normal(0, 1e-4)",
    "drift": "Normal(0, 1e-4).expand([2, 2]).to_event(2)",
    "strain": "Normal(0, 1e-4).expand([2]).to_event(1)",
}


@pytest.fixture(scope="module")
def sheared():
    """Data and the log evidence of a scan that is free, on a sheet with 5 % of shear."""
    still = {"gives": "atoms", "drift": 0.0, "disorder": 0.001}
    sheet = simulate("graphene", seed=2, field=1.6, shear=0.05, precision=0.0015, **still)
    run = fit("site_symmetry", sheet, prior="vague", lean=True, predictive=0)
    return sheet, run.attrs["log_evidence"]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"noise": "HalfNormal(1e-4)"},
        {"noise": "HalfNormal(1e-4)", "inflation": 1.0},
        {"noise": 0.002},
        {"inflation": "LogNormal(0, 0.01)"},
        {"noise": "Uniform(0, 1e-3)", "shear": 0.0, "strain": 0.0},
    ],
)
def test_a_scan_held_to_be_perfect_keeps_to_its_prior_and_has_less_evidence(sheared, told):
    sheet, free = sheared
    run = fit("site_symmetry", sheet, prior=PERFECT | told, lean=True, predictive=0)
    # Bonds of a fifth that are too long or too short by 5 % cost tens of nats, whatever explains them.
    assert -1000 < run.attrs["log_evidence"] - free < -10
    posterior = run["posterior"].to_dataset()
    if "shear" not in told:
        # The prior is hundreds of widths away from the data, and gives by a few.
        assert float(abs(posterior["shear"]).max()) < 10e-4
    if "HalfNormal" in str(told.get("noise")):
        assert 1e-7 < float(posterior["noise"].mean()) < 1e-3
    shares = run["classes"].to_dataset()["group"].sum("group_class")
    np.testing.assert_allclose(shares, 1.0, atol=1e-6)


def test_where_no_error_is_possible_the_run_says_what_to_do(sheared):
    sheet, _ = sheared
    with pytest.raises(RunError, match="give errors and noise"):
        fit("site_symmetry", sheet, prior={"noise": 0.0, "inflation": 0.0}, predictive=0)


def test_every_parameter_but_the_shares_may_be_a_known_number(sheared):
    sheet, free = sheared
    known = {"noise": 0.001, "inflation": 1.0, "size": 0.0, "scale": 1.0, "stretch": 1.0}
    known |= {"shear": 0.05, "strain": 0.0, "drift": 0.0}
    run = fit("site_symmetry", sheet, prior=known, lean=True, predictive=0)
    # The truth costs no Occam factors.
    assert run.attrs["log_evidence"] > free
    with pytest.raises(ModelError, match="Dirichlet"):
        fit("site_symmetry", sheet, prior={"weights": 0.25}, predictive=0)


def shares_of(atoms, prior):
    run = fit("site_symmetry", atoms, prior=prior, lean=True, predictive=0)
    group = run["classes"].to_dataset()["group"].mean("atom")
    return dict(zip(group.group_class.values.tolist(), group.values, strict=True)), run


def perovskite(material, **more):
    return simulate(
        "perovskite", material=material, walls="none", gives="atoms", seed=5, field=5.0, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize(("material", "mirror"), [("PbTiO3", "D1b"), ("BiFeO3", "D1a")])
def test_a_polar_perovskite_is_polar_through_a_sheared_scan_too_and_a_cubic_one_is_not(
    material, mirror
):
    for shear in (0.0, 0.06):
        told, run = shares_of(perovskite(material, shear=shear, precision=0.005), material)
        assert told[mirror] > 0.5
        assert told["D4"] < 0.1
        assert not run["derived"].attrs["undecided"]
    cubic = perovskite(material, state="cubic", shear=0.06, precision=0.005)
    assert shares_of(cubic, material)[0]["D4"] > 0.5


@pytest.mark.slow
def test_an_offset_that_may_be_a_polar_displacement_is_told_as_undecided():
    offset = {"offset": "Normal(0, 0.01).expand([2]).to_event(1)"}
    told, run = shares_of(perovskite("PbTiO3", precision=0.005), {"set": "PbTiO3"} | offset)
    assert told["D4"] > 0.5
    assert "cannot decide" in run["derived"].attrs["undecided"]
    assert any("cannot decide" in sentence for sentence in answers_of(run))
    cubic = perovskite("PbTiO3", state="cubic", precision=0.005)
    _, run = shares_of(cubic, {"set": "PbTiO3"} | offset)
    assert not run["derived"].attrs["undecided"]
