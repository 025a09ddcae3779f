"""Strain from the phases of a lattice, with its error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import LogNormal, Normal, VonMises

from ...datasets.derived.phases import phases_of
from ..model import Told, View, model, observe, sample
from ..priors import Prior, PriorSet, prior_set
from .geometric_phase import deformation, field_posterior, modes_of, wound_gradient

SETTINGS = {"g1_x": 0.0, "g1_y": 0.0, "g2_x": 0.0, "g2_y": 0.0, "resolution": 0.0}
# Draws whose maps are worked out together.
TOGETHER = 100
MAPS = ("exx", "eyy", "exy", "rotation")


def lattice(a: float, b: float, gamma: float, note: str) -> PriorSet:
    """A prior whose strain is relative to a lattice, a = 0 for the mean lattice of the image."""
    return prior_set(
        note=note,
        strain=LogNormal(np.log(0.005), 1.0),
        length="LogNormal(log(position.span / 5), 0.7)",
        noise=LogNormal(0.0, 0.5),
        uniform=Normal(0.0, 0.03).expand(torch.Size([2, 2])).to_event(2),
        origin="Normal(0, 0.05 / g.peak).expand([2]).to_event(1)",
        a=a,
        b=b,
        gamma=gamma,
    ).extend(**SETTINGS)


def of_material(a: float, b: float, gamma: float) -> PriorSet:
    """A prior whose strain is relative to a material at rest."""
    return lattice(a, b, gamma, "Lattice constants at room temperature, order of magnitude.")


PRIORS = {
    "vague": lattice(
        0.0, 0.0, 0.0, "Strain relative to the image's mean lattice; reflections are found."
    ),
    "graphene": of_material(0.246, 0.246, 120.0),
    "MoS2": of_material(0.316, 0.316, 120.0),
    "SrTiO3": of_material(0.3905, 0.3905, 90.0),
    "BaTiO3": of_material(0.3992, 0.4036, 90.0),
    "PbTiO3": of_material(0.390, 0.415, 90.0),
    "BiFeO3": of_material(0.396, 0.396, 90.0),
}


def some_phases() -> xr.Dataset:
    """Phases of a square lattice in a small frame."""
    from ...datasets.derived.phases import image_of

    x = np.arange(200) * 0.03
    waves = np.cos(2 * np.pi * x / 0.3) + np.cos(2 * np.pi * x[:, None] / 0.3)
    noise = np.random.default_rng(0).standard_normal(waves.shape)
    return phases_of(image_of(waves + 0.5 * noise, x, x), {})


def strain_maps(phases: View, coefficients: np.ndarray) -> xr.Dataset:
    """Maps of strain, rotation and displacement with their standard deviations.

    Args:
        phases: the data.
        coefficients: draws of the displacement's coefficients, (draw, axis, coefficient).
    """
    modes, wound = modes_of(phases), wound_gradient(phases)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*MAPS, "displacement")}
    for start in range(0, len(coefficients), TOGETHER):
        some = coefficients[start : start + TOGETHER]
        slope = np.stack([some @ modes.slopes[..., j].T for j in (0, 1)], -1)
        for name, value in deformation(np.moveaxis(slope, 1, 2) + wound).items():
            parts[name].append(value)
        parts["displacement"].append(np.moveaxis(some @ modes.design.T, 1, 2))
    whole = deformation(coefficients[:, :, 1:3])
    found: dict[str, Any] = {}
    for name, pieces in parts.items():
        draws = np.concatenate(pieces)
        dims = ("point", "axis")[: draws.ndim - 1]
        unit = {"rotation": "degrees", "displacement": "nm"}.get(name, "1")
        found[name] = (dims, draws.mean(0), {"units": unit})
        found[f"{name}_sd"] = (dims, draws.std(0), {"units": unit})
    for name, draws in whole.items():
        unit = "degrees" if name == "rotation" else "1"
        found[f"mean_{name}"] = ((), draws.mean(), {"units": unit})
        found[f"mean_{name}_sd"] = ((), draws.std(), {"units": unit})
    found["position"] = (("point", "axis"), phases.data["position"].values, {"units": "nm"})
    return xr.Dataset(found | _cores(phases) | _cell(phases))


def _cores(phases: View) -> dict[str, Any]:
    """Dislocations: their places and Burgers vectors; a phase that winds by q turns says g·b = -q."""
    if not phases.has("core_turns"):
        return {}
    turns, place = phases.data["core_turns"].values, phases.data["core_position"].values
    reach = 2 * float(phases.attrs["resolution"])
    left = np.ones(len(turns), bool)
    middles, vectors = [], []
    while left.any():
        first = int(left.argmax())
        near = left & (np.linalg.norm(place - place[first], axis=1) < reach)
        left &= ~near
        middles.append(place[near].mean(0))
        vectors.append(np.linalg.solve(phases.data["g"].values, -turns[near].sum(0)))
    return {
        "core": (("dislocation", "axis"), np.array(middles), {"units": "nm"}),
        "burgers": (("dislocation", "axis"), np.array(vectors), {"units": "nm"}),
    }


def _cell(phases: View) -> dict[str, Any]:
    """The two lattice vectors that the reflections are reciprocal to, of the reference."""
    cell = np.linalg.inv(phases.data["g"].values)
    return {"reference_cell": (("vector", "axis"), cell.T, {"units": "nm"})}


def derive(phases: View, prior: Prior, values: Mapping[str, torch.Tensor]) -> xr.Dataset:
    """Maps from draws of the story's latents."""
    count = len(values["z"])

    def of(name: str, *shape: int) -> torch.Tensor:
        if name in values:
            return values[name]
        return torch.full((count, *shape), prior[name], dtype=torch.float64)

    strain, length = (of(name)[:, None] for name in ("strain", "length"))
    scale = modes_of(phases).basis.scale(strain, length)
    parts = [of("origin", 2)[..., None], of("uniform", 2, 2), scale[:, None] * values["z"]]
    return strain_maps(phases, torch.cat(parts, -1).numpy())


def posterior(
    phases: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """The field in closed form given strain, length and noise, which are weighed at points around the best."""
    counted = None if mask is None else mask.numpy()
    field = field_posterior(phases, prior, draws=draws, seed=seed, mask=counted)
    return Told(
        {name: torch.as_tensor(value) for name, value in field.latents.items()},
        field.log_evidence,
        field.log_evidence_se,
        strain_maps(phases, field.coefficients),
        field.attrs,
    )


@model(
    kind="image",
    prepare=("phases", phases_of),
    priors=PRIORS,
    units={"length": "position", "origin": "position"},
    symbols={"strain": "ε", "length": "ℓ", "noise": "σ", "uniform": "∇u₀", "origin": "u₀"},
    noise="noise",
    design=some_phases,
    posterior=posterior,
    derive=derive,
)
def strain_gpa(phases: View, prior: Prior) -> None:
    """Geometric phase analysis: P_g(r) = -2π g·u(r) for two reflections g, u a smooth random field.

    A lattice displaced by u(r), I(r) = Σ A_g exp(2πi g·(r - u)), turns the phase of each of its waves by -2π g·u.
    Phases are read in windows of the image, a Gaussian of a third of their distance (`resolution`; 0: three lattice
    planes), made orthogonal, so that noise is independent between windows. Given a wave's strength its angle is von
    Mises about the truth, with the error that the image's noise between reflections gives; so nothing needs unwrapping.
    The displacement is u = origin + uniform·(r - r_c) + w(r), with w a Matérn-5/2 field whose derivatives have standard
    deviation `strain` and which changes over `length`. `noise` is a factor on the errors. Local lattice vectors are
    (1 - ∇u)⁻¹ times those of the reference: a rotation ω, then a stretch 1 + ε, exact at any size. All maps are of the
    displacement as the windows see it, at their resolution.

    Strain is relative to the mean lattice of the image, or with `a`, `b`, `gamma` to the lattice given, turned to fit;
    the mean distortion is then told apart from the maps (`mean_exx` …).

    **Assumes** one lattice with one motif, two non-collinear reflections (found; `g1_x` … `g2_y` to choose), strain
    that bends phases by less than half a turn from window to window, and the same noise over the frame.
    **Fails** where the motif changes: atoms that move within the cell, another thickness or tilt, turn phases too. A
    second grain or vacuum has no wave: those windows are left out and counted. At a dislocation the phase winds: the
    turn is found, told as a Burgers vector, and the windows at its core are left out. Shear, drift and jitter of the
    scan look like strain; drift varies along y only. Strain that jumps is rounded, and errors are too small beside it.
    **Identifiable**: the strain of the image, not of the crystal: a scan's constant distortion is in `mean_exx` …, and
    without a reference lattice it is in the mean lattice itself. `strain` and `length` trade against each other.

    References: Hÿtch, Snoeck and Kilaas, Quantitative measurement of displacement and strain fields from HREM
    micrographs, Ultramicroscopy 74 (1998); Solin and Särkkä, Hilbert space methods for reduced-rank Gaussian process
    regression, Statistics and Computing 30 (2020).
    """
    modes = modes_of(phases)
    design = torch.as_tensor(modes.design, dtype=torch.float64)
    scale = modes.basis.scale(sample("strain", prior.strain), sample("length", prior.length))
    size = design.shape[1] - 3
    z = sample("z", Normal(torch.zeros(2, size, dtype=torch.float64), 1.0).to_event(2))
    origin = sample("origin", prior.origin).expand(2)
    uniform = sample("uniform", prior.uniform).expand(2, 2)
    u = origin + design[:, 1:3] @ uniform.mT + design[:, 3:] @ (scale * z).mT
    turned = -2 * torch.pi * u @ phases.g.mT
    wound = phases.wound if phases.has("wound") else 0.0
    sharpness = 1 / (phases.variance * sample("noise", prior.noise) ** 2)
    observe("phase", VonMises(turned + wound, sharpness))
