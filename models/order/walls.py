"""Domain walls: the profile of an order parameter across the boundary between two domains.

All four share the place and the width of the wall, u = (x - x0) / L_c, and differ in what the free energy makes of
them. On a map of several rows the wall may lean (`tilt`) and bow; x0 is then its mean place.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import HalfNormal, Normal

from ...datasets import walls as scenes
from ..model import View, model, observe, sample
from ..priors import Prior, PriorSet, prior_set

UNITS = {"P_s": "value", "x0": "x", "tilt": "x", "bow": "x", "L_c": "x", "noise": "value"}
SYMBOLS = {
    "P_s": "P_s",
    "x0": "x₀",
    "L_c": "L_c",
    "eta": "η",
    "R0": "R₀",
    "P_B": "P_B",
    "noise": "σ",
}

# `sense` is the side that is positive, +1 to the right: read off the data, since nothing is learnt from it.
VAGUE = prior_set(
    note="Scales with the data: the window's length and the largest value.",
    P_s="HalfNormal(2 * value.peak)",
    x0="Normal(x.mid, x.span / 4)",
    tilt="Normal(0, x.span / 8)",
    bow="Normal(0, x.span / 8)",
    L_c="LogNormal(log(x.span / 10), 1)",
    noise="HalfNormal(value.peak / 2)",
    sense="value.rise",
)


def perovskite(saturation: float, source: str) -> PriorSet:
    """A material's prior: saturation within a factor of 1.6, a wall half a cell to a few cells wide."""
    return prior_set(
        {"x": "unit cell", "value": "C/m^2"},
        f"Saturation about {saturation:g} C/m² ({source}), wide on purpose; lengths in unit cells.",
        P_s=f"LogNormal(log({saturation:g}), 0.5)",
        x0="Normal(x.mid, x.span / 4)",
        tilt=Normal(0.0, 2.0),
        bow=Normal(0.0, 2.0),
        L_c="LogNormal(log(1.5), 0.7)",
        noise=HalfNormal(0.2),
        sense="value.rise",
    )


MATERIALS = {
    "PbTiO3": perovskite(0.8, "order of magnitude"),
    "BaTiO3": perovskite(0.3, "order of magnitude"),
    "BiFeO3": perovskite(1.0, "single crystals, Lebeugle et al. 2007, arXiv:0706.1681"),
}


def prior_sets(
    vague: dict[str, Any] | None = None, material: dict[str, Any] | None = None
) -> dict[str, PriorSet]:
    """What all walls share, and the shape parameters of one of them."""
    sets = {"vague": VAGUE.extend(**(vague or {}))}
    return sets | {name: s.extend(**(material or {})) for name, s in MATERIALS.items()}


def distance(wall: View, prior: Prior) -> torch.Tensor:
    """Signed distance from the wall, (row, x, 1), positive in the positive domain."""
    place = sample("x0", prior.x0)
    if wall.sizes["row"] > 1:
        row = torch.linspace(-1.0, 1.0, wall.sizes["row"], dtype=torch.float64)[:, None, None]
        place = place + sample("tilt", prior.tilt) * row
        place = place + sample("bow", prior.bow) * (row**2 - (row**2).mean())
    return prior.sense * (wall.x - place)


def components(wall: View, along: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """The polarization along and, where it was measured, across the domains' axis."""
    if wall.sizes["component"] == 1:
        return along
    return torch.cat([along, torch.zeros_like(along) if other is None else other], -1)


@model(
    kind="profile",
    priors=prior_sets(),
    sizes={"component": (1, 2)},
    units=UNITS,
    symbols=SYMBOLS,
    noise="noise",
    design=scenes.wall_second_order,
)
def wall_second_order(wall: View, prior: Prior) -> None:
    """Second-order wall, P = P_s tanh u with u = (x - x0) / L_c.

    The wall of a uniaxial ferroelectric with a second-order (2-4) Landau energy.

    **Assumes** one straight or gently bowed wall in the window, saturated on both sides, the same Gaussian noise
    everywhere, and cells independent given the wall.
    **Fails** when the window ends inside the wall (P_s and L_c trade against each other), when there are two walls,
    or when the map was smoothed: neighbouring cells then share noise, and error bars come out too small.
    **Identifiable**: all parameters, once the window spans about 3 L_c on each side; `tilt` and `bow` exist only on
    maps of several rows.

    References: Nelson et al., Exploring physics of ferroelectric domain walls via Bayesian analysis of atomically
    resolved STEM data, Nature Communications 11 (2020).
    """
    L_c = sample("L_c", prior.L_c)
    u = distance(wall, prior) / L_c
    p = sample("P_s", prior.P_s) * torch.tanh(u)
    observe("value", Normal(components(wall, p), sample("noise", prior.noise)))


@model(
    kind="profile",
    priors=prior_sets({"eta": HalfNormal(5.0)}, {"eta": HalfNormal(5.0)}),
    sizes={"component": (1, 2)},
    units=UNITS,
    symbols=SYMBOLS,
    contains={"wall_second_order": {"eta": 0.0}},
    noise="noise",
    design=scenes.wall_first_order,
)
def wall_first_order(wall: View, prior: Prior) -> None:
    """First-order wall, P = P_s tanh u / √(η sech² u + 1) with u = (x - x0) / L_c and η > 0.

    The wall of a uniaxial ferroelectric with a first-order (2-4-6) Landau energy: flatter in its middle than tanh.
    It solves g P″ = a P + b P³ + c P⁵ with P_s² = (-b + √(b² - 4ac)) / 2c, L_c = √g / (P_s √(c P_s² + b/2)) and
    η = (6c P_s² + 3b) / (4c P_s² + 3b) - 1.

    **Trap**: the profile has a square root that is missing in some printed sources. Without it, with u/2 for u and
    η = sinh²(R0/2L_c), the formula *is* the Néel wall, and two different physics would be one model.
    **Assumes** what `wall_second_order` assumes.
    **Fails** in the same places; besides, η and L_c trade against each other when the noise hides the middle.
    **Identifiable**: P_s, x0 and noise well; η only below a noise that the report names. η → 0 is the second-order
    wall, and where that suffices the report gives an upper bound on η.

    References: Nelson et al., Nature Communications 11 (2020); the differential equation is tested in this package.
    """
    L_c = sample("L_c", prior.L_c)
    u = distance(wall, prior) / L_c
    eta = sample("eta", prior.eta)
    tanh = torch.tanh(u)
    p = sample("P_s", prior.P_s) * tanh / torch.sqrt(eta * (1 - tanh**2) + 1)
    observe("value", Normal(components(wall, p), sample("noise", prior.noise)))


@model(
    kind="profile",
    priors=prior_sets({"P_B": "Normal(0, value.peak)"}, {"P_B": Normal(0.0, 0.5)}),
    sizes={"component": (2, 2)},
    units=UNITS | {"P_B": "value"},
    symbols=SYMBOLS,
    contains={"wall_second_order": {"P_B": 0.0}},
    noise="noise",
    design=scenes.wall_bloch,
)
def wall_bloch(wall: View, prior: Prior) -> None:
    """Bloch wall, P∥ = P_s tanh u and P⊥ = P_B sech u with u = (x - x0) / L_c.

    The polarization does not vanish in the wall, it turns: a component that is zero in both domains appears inside.

    **Assumes** what `wall_second_order` assumes, and that both components were measured with the same noise.
    **Fails** when the second component is not the one the polarization turns through.
    **Identifiable**: P_B with its sign (the wall's chirality) from the second component alone; needs two components.
    P_B → 0 is the second-order wall.

    References: Nelson et al., Nature Communications 11 (2020).
    """
    L_c = sample("L_c", prior.L_c)
    u = distance(wall, prior) / L_c
    along = sample("P_s", prior.P_s) * torch.tanh(u)
    decay = torch.exp(-torch.abs(u))
    turned = sample("P_B", prior.P_B) * 2 * decay / (1 + decay**2)
    observe("value", Normal(components(wall, along, turned), sample("noise", prior.noise)))


@model(
    kind="profile",
    priors=prior_sets({"R0": "HalfNormal(x.span / 4)"}, {"R0": HalfNormal(5.0)}),
    sizes={"component": (1, 2)},
    units=UNITS | {"R0": "x"},
    symbols=SYMBOLS,
    contains={"wall_second_order": {"R0": 0.0}},
    noise="noise",
    design=scenes.wall_neel,
)
def wall_neel(wall: View, prior: Prior) -> None:
    """Néel wall of a multiaxial ferroelectric, P = P_s sinh u / (cosh(R0/L_c) + cosh u) with u = (x - x0) / L_c.

    The wall splits into two halves at ±R0: the formula equals P_s [tanh((u + r)/2) + tanh((u - r)/2)] / 2 with
    r = R0/L_c, and is computed so, since cosh overflows.

    **Assumes** what `wall_second_order` assumes.
    **Fails** in the same places; besides, for R0 below about L_c it is a second-order wall of width 2 L_c to the eye,
    and over a wide range of R0/L_c a first-order wall imitates it: the report then says "cannot discriminate".
    **Identifiable**: P_s, x0 and noise well; R0 and L_c apart only when R0 exceeds about 2 L_c. R0 → 0 is the
    second-order wall with twice the width.

    References: Nelson et al., Nature Communications 11 (2020).
    """
    L_c = sample("L_c", prior.L_c)
    u = distance(wall, prior) / L_c
    r = sample("R0", prior.R0) / L_c
    p = sample("P_s", prior.P_s) * 0.5 * (torch.tanh((u + r) / 2) + torch.tanh((u - r) / 2))
    observe("value", Normal(components(wall, p), sample("noise", prior.noise)))
