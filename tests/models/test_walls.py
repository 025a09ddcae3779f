"""The walls: their free energies, their limits, their numbers far from everyday, their units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyro
import pytest
import torch
import xarray as xr

from atomzoo.datasets.kinds import DataError
from atomzoo.datasets.scenes import simulate
from atomzoo.inference import laplace
from atomzoo.inference.fit import make_density
from atomzoo.models.model import Data, View, find
from atomzoo.models.priors import Prior

WALLS = ("wall_second_order", "wall_first_order", "wall_bloch", "wall_neel")
SHAPE = {"wall_first_order": "eta", "wall_bloch": "P_B", "wall_neel": "R0"}
FLAT = {"x0": 0.0, "tilt": 0.0, "bow": 0.0, "noise": 1.0, "sense": 1.0}


def curve(name: str, x: torch.Tensor, components: int = 1, **values: float) -> torch.Tensor:
    """The model's own expectation on one row, as a function of x that can be differentiated: (x, component)."""
    scene = "wall_bloch" if components == 2 else "wall_second_order"
    view = View(simulate(scene, cells=len(x)))
    view.read["x"] = x[:, None]
    with (
        pyro.validation_enabled(False),
        pyro.poutine.trace() as tracer,
        Data(view, generate=True),
    ):
        find(name).story(view, Prior(FLAT | values))
    mean: torch.Tensor = tracer.trace.nodes["value"]["fn"].mean
    return mean[0]


def flat_vector(density: object, values: Mapping[str, float]) -> torch.Tensor:
    """The density's vector at parameters given by name."""
    here = {name: torch.tensor(float(v), dtype=torch.float64) for name, v in values.items()}
    vector: torch.Tensor = density.unconstrain(here)  # type: ignore[attr-defined]
    return vector


def evidence(name: str, data: xr.Dataset) -> tuple[float, float]:
    density = make_density(name, data)
    draws = laplace.run(density, seed=0, chains=1, draws=1, starts=16, proposals=2000)
    assert draws.log_evidence is not None
    assert draws.log_evidence_se is not None
    return draws.log_evidence, draws.log_evidence_se


# Landau coefficients of g P″ = a P + b P³ + c P⁵ and the range of η that each regime gives, with c > 0.
REGIMES = {
    "second order, nearly 2-4": ((-1.0, 1.0, 0.01, 1.0), (0.0, 0.05)),
    "second order, tricritical": ((-1.0, 1.0, 50.0, 2.0), (0.4, 0.5)),
    "first order, cold": ((-4.0, -1.0, 1.0, 0.5), (0.5, 2.0)),
    "first order, at the Curie-Weiss point": ((0.0, -1.0, 1.0, 1.0), (1.99, 2.01)),
    "first order, near coexistence": ((0.186, -1.0, 1.0, 3.0), (50.0, 1000.0)),
    "first order, other units": ((-2e7, -3e8, 4e8, 1e-10), (0.5, 2.0)),
}


@pytest.mark.parametrize(("coefficients", "between"), REGIMES.values(), ids=REGIMES)
def test_first_order_wall_solves_its_differential_equation(
    coefficients: tuple[float, float, float, float], between: tuple[float, float]
) -> None:
    a, b, c, g = coefficients
    p2 = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * c)
    width = math.sqrt(g) / math.sqrt(p2 * (c * p2 + b / 2))
    eta = (6 * c * p2 + 3 * b) / (4 * c * p2 + 3 * b) - 1
    assert between[0] < eta < between[1]

    x = (torch.linspace(-6, 6, 41, dtype=torch.float64) * width).requires_grad_()
    p = curve("wall_first_order", x, P_s=math.sqrt(p2), L_c=width, eta=eta)[:, 0]
    (slope,) = torch.autograd.grad(p.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    terms = torch.stack([g * second, -a * p, -b * p**3, -c * p**5]).detach()
    residual = terms.sum(0).abs().max() / terms.abs().max()
    assert float(residual) < 1e-6


def test_wall_is_unphysical_where_eta_leaves_its_range() -> None:
    """With c < 0, or past coexistence, η is negative: η > 0 asks for a stable 2-4-6 energy."""
    for a, b, c in ((-1.0, 3.0, -0.5), (0.19, -1.0, 1.0)):
        p2 = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * c)
        assert p2 > 0
        assert (6 * c * p2 + 3 * b) / (4 * c * p2 + 3 * b) - 1 < 0


def test_without_its_root_the_first_order_wall_would_be_the_neel_wall() -> None:
    R0, L_c = 3.0, 1.3
    x = torch.linspace(-12, 12, 97, dtype=torch.float64)
    eta = math.sinh(R0 / (2 * L_c)) ** 2
    v = x / (2 * L_c)
    misprinted = torch.tanh(v) / (eta / torch.cosh(v) ** 2 + 1)
    neel = curve("wall_neel", x, P_s=1.0, L_c=L_c, R0=R0)[:, 0]
    right = curve("wall_first_order", x, P_s=1.0, L_c=2 * L_c, eta=eta)[:, 0]
    torch.testing.assert_close(misprinted, neel, rtol=0, atol=1e-12)
    assert float((right - neel).abs().max()) > 0.05


def test_neel_wall_is_the_quotient_on_its_card() -> None:
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    quotient = torch.sinh(x / 1.4) / (math.cosh(2.5 / 1.4) + torch.cosh(x / 1.4))
    torch.testing.assert_close(
        curve("wall_neel", x, P_s=1.0, L_c=1.4, R0=2.5)[:, 0], quotient, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(
    ("name", "components", "limit", "width"),
    [
        ("wall_first_order", 1, {"eta": 0.0}, 1.0),
        ("wall_first_order", 2, {"eta": 0.0}, 1.0),
        ("wall_neel", 1, {"R0": 0.0}, 2.0),
        ("wall_neel", 2, {"R0": 0.0}, 2.0),
        ("wall_bloch", 2, {"P_B": 0.0}, 1.0),
    ],
)
def test_larger_walls_become_second_order(
    name: str, components: int, limit: dict[str, float], width: float
) -> None:
    x = torch.linspace(-8, 8, 65, dtype=torch.float64)
    larger = curve(name, x, components, P_s=0.8, L_c=1.7, **limit)
    simple = curve("wall_second_order", x, components, P_s=0.8, L_c=1.7 * width)
    torch.testing.assert_close(larger, simple, rtol=0, atol=1e-14)
    assert find(name).contains == {"wall_second_order": limit}


@pytest.mark.parametrize("name", WALLS)
@pytest.mark.parametrize("L_c", [1e-6, 0.01, 1.0, 1e4])
def test_nothing_overflows_and_gradients_are_finite(name: str, L_c: float) -> None:
    data = simulate("wall_bloch", rows=2, cells=21)
    density = make_density(name, data)
    shapes = {"eta": (1e-8, 1.0, 1e6), "P_B": (-2.0, 0.0, 2.0), "R0": (1e-9 * L_c, L_c, 1e3 * L_c)}
    point = {"P_s": 1.0, "x0": 0.0, "tilt": 0.0, "bow": 0.0, "L_c": L_c, "noise": 0.1}
    for value in shapes.get(SHAPE.get(name, ""), (0.0,)):
        shape = {SHAPE[name]: value} if name in SHAPE else {}
        # x0 in a cell's centre is where sech has its peak and |u| its corner.
        height, gradient = density.gradient(flat_vector(density, point | shape)[None])
        assert torch.isfinite(height).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", WALLS)
def test_scenes_draw_what_the_models_expect(name: str) -> None:
    data = simulate(name, rows=3, x0=0.37, P_s=0.8, L_c=1.4, noise=1e-300)
    truth = {"tilt": 0.0, "bow": 0.0} | {
        str(v).removeprefix("true_"): float(data[v]) for v in data.data_vars if v != "value"
    }
    density = make_density(name, data)
    mean = density.expectation(flat_vector(density, truth))["value"].numpy()
    np.testing.assert_allclose(
        data.value.values, np.broadcast_to(mean, data.value.shape), atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wall_second_order", {"eta": 0.0, "P_B": 0.0}),
        ("wall_first_order", {"eta": 2.5, "P_B": 0.0}),
        ("wall_bloch", {"eta": 0.0, "P_B": -0.4}),
    ],
)
def test_the_map_of_a_leaning_wall_is_what_the_models_expect(
    name: str, shape: dict[str, float]
) -> None:
    data = simulate("ferroelectric_wall", noise=1e-300, row_noise=0.0, **shape)
    truth = {str(v).removeprefix("true_"): float(data[v]) for v in data.data_vars if v != "value"}
    density = make_density(name, data)
    known = {site.name: truth[site.name] for site in density.sites}
    mean = density.expectation(flat_vector(density, known))["value"].numpy()
    np.testing.assert_allclose(data.value.values, mean, atol=1e-12)


@pytest.mark.parametrize("name", WALLS)
def test_a_falling_wall_is_the_rising_one_upside_down(name: str) -> None:
    rising = simulate(name, noise=0.05, seed=3)
    falling = rising.assign(value=-rising.value.assign_attrs())
    falling["value"].attrs = rising["value"].attrs
    up, down = make_density(name, rising), make_density(name, falling)
    assert up.prior.sense == 1.0
    assert down.prior.sense == -1.0
    z = up.initial(1, seed=5)[0]
    mirrored = up.constrain(z[None])
    if "P_B" in mirrored:
        mirrored["P_B"] = -mirrored["P_B"]
    w = flat_vector(down, {k: float(v[0]) for k, v in mirrored.items()})
    assert float(up.log_prob(z)) == pytest.approx(float(down.log_prob(w)), abs=1e-9)


@pytest.mark.parametrize("P_B", [-1.0, 1.0])
@pytest.mark.parametrize("x0", [-6.0, 0.0, 6.0])
def test_the_sense_of_a_wall_is_not_read_off_the_component_that_turns(
    P_B: float, x0: float
) -> None:
    data = simulate("wall_bloch", P_B=P_B, x0=x0, L_c=3.0)
    assert make_density("wall_bloch", data).prior.sense == 1.0


def in_other_units(data: xr.Dataset, x: float, value: float) -> xr.Dataset:
    made = data.assign(value=data.value * value).assign_coords(x=data.x * x)
    made["x"].attrs = {"units": "nm"}
    made["value"].attrs = {"units": "pm"}
    return made


@pytest.mark.parametrize("material", ["PbTiO3", "BaTiO3", "BiFeO3"])
@pytest.mark.parametrize("name", WALLS)
def test_a_materials_priors_refuse_displacements_in_picometres(name: str, material: str) -> None:
    data = simulate("wall_bloch")
    data["value"].attrs["units"] = "pm"
    with pytest.raises(DataError, match=r"P_s in C/m\^2, but 'value' is in pm; .*override P_s"):
        make_density(name, data, material)
    # Half converted is not converted.
    with pytest.raises(DataError, match=r"noise in C/m\^2"):
        make_density(name, data, {"set": material, "P_s": "HalfNormal(40)"})


def test_a_materials_priors_take_other_units_where_every_number_is_replaced() -> None:
    data = simulate("wall_bloch")
    data["value"].attrs["units"] = "pm"
    own = {"P_s": "HalfNormal(40)", "noise": "HalfNormal(5)", "P_B": "Normal(0, 20)"}
    density = make_density("wall_bloch", data, {"set": "PbTiO3", **own})
    assert density.prior.describe()["P_s"] == "HalfNormal(40)"


def test_a_materials_priors_refuse_lengths_in_nanometres() -> None:
    data = simulate("wall_second_order")
    data["x"].attrs["units"] = "nm"
    with pytest.raises(DataError, match=r"in unit cell, but 'x' is in nm"):
        make_density("wall_second_order", data, "PbTiO3")
    # The prior of x0 is read off the data, and holds in any units.
    own = {"L_c": "HalfNormal(1)", "tilt": "Normal(0, 1)", "bow": "Normal(0, 1)"}
    make_density("wall_second_order", data, {"set": "PbTiO3", **own})


UNITS = {
    "cells to nm, C/m² to pm": (0.4, 40.0),
    "nm to Å, pm to nm": (10.0, 1e-3),
    "a window of 8 µm, as piezoresponse has it": (400.0, 1.0),
}


@pytest.fixture(scope="module")
def ambiguous() -> tuple[xr.Dataset, dict[str, tuple[float, float]]]:
    """A profile that three walls may have made, and their log evidence."""
    data = simulate("wall_first_order", seed=1, noise=0.05, x0=0.7)
    return data, {name: evidence(name, data) for name in WALLS if name != "wall_bloch"}


@pytest.mark.parametrize(("x", "value"), UNITS.values(), ids=UNITS)
def test_units_do_not_move_the_bayes_factors(
    x: float, value: float, ambiguous: tuple[xr.Dataset, dict[str, tuple[float, float]]]
) -> None:
    data, here = ambiguous
    other = in_other_units(data, x, value)
    there = {name: evidence(name, other) for name in here}
    for name, (height, error) in here.items():
        before = height - here["wall_second_order"][0]
        after = there[name][0] - there["wall_second_order"][0]
        # Four standard errors of the four importance samples.
        assert abs(before - after) < 4 * math.hypot(
            error, there[name][1], *(e["wall_second_order"][1] for e in (here, there))
        )


@pytest.mark.parametrize("name", ["wall_first_order", "wall_neel"])
def test_evidence_is_trusted_where_the_shape_parameter_is_at_the_edge_of_its_range(
    name: str,
) -> None:
    """Second order suffices: the posterior of log η, or log R0, has a shelf that goes on for ever."""
    for seed in range(4):
        data = simulate("wall_second_order", noise=0.03, seed=seed)
        draws = laplace.run(make_density(name, data), seed=seed)
        assert draws.attrs["pareto_k"] < 0.7
        # Of 8,000 weighted draws: four standard errors of the log evidence are then below a tenth.
        assert draws.attrs["importance_ess"] > 2000
