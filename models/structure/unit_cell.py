"""The unit cell: a, b and γ everywhere in the image, and the symmetry that they have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Categorical, MultivariateNormal, Normal
from torch import Tensor

from ...datasets.derived.cells import cells as cells_of
from ...datasets.kinds import dataset
from ..model import Told, View, model, observe, sample
from ..priors import Prior, PriorSet, prior_set
from .strain_fields import (
    DRIFTS,
    FIRST,
    Fit,
    Grid,
    corners,
    drifts,
    hypotheses,
    local_strain,
    waves,
)

__all__ = ["unit_cell"]

SQUARE_CLASSES = (
    "cubic",
    "tetragonal, long along a",
    "tetragonal, long along b",
    "rhombic",
    "oblique",
)
HEXAGONAL_CLASSES = ("hexagonal", "strained")
# Draws that what is told of every cell is made of, and numbers worked on at once.
CELL_DRAWS, AT_ONCE = 200, 4_000_000
# Domains are at least so many cells; smaller spots are told cell by cell alone.
LEAST_DOMAIN = 9


def _set(a: tuple[float, float], note: str, **other: Any) -> PriorSet:
    entries: dict[str, Any] = {
        "a": Normal(*a),
        "turn": Normal(0.0, 0.05),
        "origin": "Normal(0, 0.05).expand([2]).to_event(1)",
        "size": "LogNormal(log(0.005), 2)",
        "noise": "LogNormal(log(0.004), 1)",
        "ripple": "LogNormal(log(0.0003), 1)",
        "spread": "LogNormal(log(0.005), 1.5)",
        "stretch": 0.0,
        "shear": 0.0,
        "drift": 0.0,
        "rope": 0.002,
        "length": 1.0,
        "sublattice": 0.0,
    }
    return prior_set({"position": "nm"}, note, **(entries | other))


# What an instrument adds that was not calibrated on the day.
SCAN = {"stretch": Normal(0.0, 0.02), "shear": Normal(0.0, 0.02), "drift": 0.005}
HANDBOOK = "order of magnitude of the lattice constant at room temperature; the scan known to 1 %"
TRUSTED = {"stretch": Normal(0.0, 0.01), "shear": Normal(0.0, 0.01), "drift": 0.005}
PRIORS = {
    "vague": _set((0.4, 0.12), "Any cell; the scan may stretch and shear by some percent.", **SCAN),
    "calibrated": _set((0.4, 0.12), "Any cell, by an instrument whose scan is known exactly."),
    "SrTiO3": _set((0.3905, 0.004), HANDBOOK, **TRUSTED),
    "BaTiO3": _set((0.401, 0.004), HANDBOOK, **TRUSTED),
    "PbTiO3": _set((0.402, 0.006), HANDBOOK, **TRUSTED),
    "BiFeO3": _set((0.396, 0.004), HANDBOOK, **TRUSTED),
    "MoS2": _set((0.316, 0.003), HANDBOOK, **TRUSTED),
    "graphene": _set((0.246, 0.002), HANDBOOK, **TRUSTED),
}


def class_names(reference: str) -> tuple[str, ...]:
    """What a cell can practically be."""
    return SQUARE_CLASSES if reference == "square" else HEXAGONAL_CLASSES


def _posterior(
    cells: View, prior: Prior, *, draws: int, seed: int, mask: Tensor | None = None
) -> Told:
    fit = Fit(cells, prior, mask)
    options = fit.options
    grids = [fit.grid(which) for which in range(len(options.names))]
    joint = (
        torch.tensor([g.log_evidence for g in grids], dtype=torch.float64) + options.weight.log()
    )
    log_evidence = float(torch.logsumexp(joint, 0))
    values = draw(fit, grids, torch.softmax(joint, 0), min(draws, 400), seed)
    some = {name: value[:CELL_DRAWS] for name, value in values.items()}
    told = {
        k: v for k, v in values.items() if not isinstance(prior.get(k), float) and k != "symmetry"
    }
    evidence = [g.log_evidence for g in grids]
    attrs = {
        "symmetries": list(options.names),
        "symmetry_log_evidence": [round(e, 4) for e in evidence],
        "symmetry_probability": [round(float(p), 6) for p in torch.softmax(joint, 0)],
        "log_bayes_factor": [round(e - evidence[0], 4) for e in evidence],
        "decided": verdict(options.names, torch.softmax(joint, 0)),
        "field_length_nm": fit.waves.length,
        "field_waves": len(fit.waves.vector),
    }
    return Told(told, log_evidence, GRID_ERROR, _cells_told(cells, prior, some), attrs)


# A grid of 0.8 standard deviations sums a Gaussian to one in 10⁷; what its ends cut off at 7 nats is this much in
# three dimensions.
GRID_ERROR = 0.01
# Odds that are called a decision.
ODDS = 10.0


def verdict(names: tuple[str, ...], probability: Tensor) -> str:
    """The symmetry that the image decides for, or that it cannot decide; settings of one symmetry are one."""
    together: dict[str, float] = {}
    for name, p in zip(names, probability.tolist(), strict=True):
        plain = name.partition(",")[0]
        together[plain] = together.get(plain, 0.0) + p
    best = max(together, key=lambda name: together[name])
    if together[best] > ODDS / (1 + ODDS):
        return best
    return "the image cannot decide: " + ", ".join(
        f"{name} {p:.0%}" for name, p in together.items() if p > 0.01
    )


def draw(
    fit: Fit, grids: list[Grid], probability: Tensor, count: int, seed: int
) -> dict[str, Tensor]:
    """Draws of all latents of the story."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = np.sort(rng.choice(len(grids), count, p=(probability / probability.sum()).numpy()))
    rows: list[dict[str, Tensor]] = []
    for which in chosen:
        grid = grids[which]
        mass = np.exp(grid.log_mass - grid.log_mass.max())
        node = rng.choice(len(mass), p=mass / mass.sum())
        # Within a step of the grid the density is taken as even.
        logs = grid.points[node] + grid.step * rng.uniform(-0.5, 0.5, len(grid.names))
        rows.append(
            _one(fit, grid.which, dict(zip(grid.names, np.exp(logs), strict=True)), generator)
        )
    order = torch.randperm(count, generator=generator)
    return {name: torch.stack([row[name] for row in rows])[order] for name in rows[0]}


def _one(
    fit: Fit, which: int, numbers: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """One draw of the Gaussian unknowns, given a symmetry and the three numbers."""
    numbers = {**fit.known(), **numbers}
    prior, options = fit.prior, fit.options
    _, log_weight = fit.log_likelihood(
        which, numbers["noise"], numbers["ripple"], numbers["spread"]
    )
    sizes, _ = fit.sizes
    size = sizes[int(torch.multinomial(log_weight.exp(), 1, generator=generator))]
    if len(sizes) > 1:
        step = sizes[1].log() - sizes[0].log()
        size = size * torch.exp(
            step * (torch.rand((), generator=generator, dtype=torch.float64) - 0.5)
        )
    scales = fit.scales(which, numbers["ripple"], numbers["spread"])
    allowed = torch.stack([options.along[which], options.across[which]])
    scales = torch.cat([scales[: fit.plain], size * allowed, scales[fit.plain :]])
    normals = fit.normals(numbers["noise"], which)
    precision = scales[:, None] * normals.gram * scales + torch.eye(
        len(scales), dtype=torch.float64
    )
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((scales * normals.right)[:, None], factor)[:, 0]
    fresh = torch.randn(len(scales), dtype=torch.float64, generator=generator)
    z = mean + torch.linalg.solve_triangular(factor.T, fresh[:, None], upper=True)[:, 0]
    plain = fit.mean + scales[: fit.plain] * z[: fit.plain]
    along, across = z[fit.plain + 2 :].chunk(2)
    found = {
        "symmetry": torch.tensor(which),
        "origin": plain[:2],
        "a": fit.spacing * (1 + plain[2]),
        "turn": plain[3],
        "stretch": plain[4],
        "shear": plain[5],
        "strain": size * z[fit.plain : fit.plain + 2],
        "size": size,
        "along": along,
        "across": across,
    }
    if fit.plain > FIRST:
        found["rows"] = z[FIRST : fit.plain].reshape(-1, 2)
    for name in ("noise", "ripple", "spread"):
        value = torch.tensor(numbers[name], dtype=torch.float64)
        unused = name == "spread" and not bool(allowed.any())
        if unused and not isinstance(prior[name], float):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
                value = prior[name].sample().to(torch.float64)
        found[name] = value
    return found


def _derive(cells: View, prior: Prior, values: Mapping[str, Tensor]) -> xr.Dataset:
    return _cells_told(cells, prior, values).drop_dims("region", errors="ignore")


def _strains(cells: View, prior: Prior, values: Mapping[str, Tensor], ideal: Tensor) -> Tensor:
    """Strain of the crystal at points: e₁, e₂, dilation and turn, (draw, point, 4); what the scan adds is left out."""
    options = hypotheses(cells.attrs["reference"])
    which = values["symmetry"].long().reshape(-1)
    count = len(which)

    def of(name: str) -> Tensor:
        entry = prior[name]
        return (
            values[name]
            if name in values
            else torch.full((count,), float(entry), dtype=torch.float64)
        )

    along, across = options.along[which], options.across[which]
    wide = torch.hypot(of("ripple"), of("spread"))
    first = torch.where(along > 0, wide, of("ripple"))[:, None] * values["along"]
    second = torch.where(across > 0, wide, of("ripple"))[:, None] * values["across"]
    direction = options.direction[which]
    field = waves(cells, float(prior.length))
    strain = local_strain(field, ideal, first, second, direction)
    mean = torch.stack([along, across], 1) * values["strain"]
    cos, sin = torch.cos(direction), torch.sin(direction)
    strain[..., 0] += (cos * mean[:, 0] - sin * mean[:, 1])[:, None]
    strain[..., 1] += (sin * mean[:, 0] + cos * mean[:, 1])[:, None]
    strain[..., 2] += 2 * (of("a") / float(cells.attrs["spacing"]) - 1)[:, None]
    strain[..., 3] += of("turn")[:, None]
    return strain


def shape(strain: Tensor, reference: str, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths a and b in nm and the angle γ in radians of cells with a strain (…, 4)."""
    e1, e2, dilation, turn = strain.unbind(-1)
    size = 1 + 0.5 * dilation
    columns = [
        torch.stack([size + 0.5 * e1, 0.5 * e2 + turn], -1),
        torch.stack([0.5 * e2 - turn, size - 0.5 * e1], -1),
    ]
    gamma = math.radians(120.0 if reference == "hexagonal" else 90.0)
    a = spacing * columns[0]
    b = spacing * (math.cos(gamma) * columns[0] + math.sin(gamma) * columns[1])
    length_a, length_b = a.norm(dim=-1), b.norm(dim=-1)
    cosine = (a * b).sum(-1) / (length_a * length_b)
    return length_a, length_b, torch.acos(cosine.clamp(-1, 1))


def classes(strain: Tensor, reference: str, rope: float) -> Tensor:
    """What cells practically are, as codes of `class_names`: differences below `rope` do not count."""
    if reference == "hexagonal":
        return (strain[..., :2].norm(dim=-1) > rope).long()
    a, b, gamma = shape(strain, reference, 1.0)
    longer, leans = b / a - 1, (gamma - 0.5 * math.pi).abs() > rope
    unequal = longer.abs() > rope
    straight = torch.where(longer < 0, 1, 2)
    return torch.where(leans, torch.where(unequal, 4, 3), torch.where(unequal, straight, 0))


def _cells_told(cells: View, prior: Prior, values: Mapping[str, Tensor]) -> xr.Dataset:
    """Every cell's shape with its error and what it practically is; then the same of every domain."""
    reference, spacing = str(cells.attrs["reference"]), float(cells.attrs["spacing"])
    rope, names = float(prior.rope), class_names(str(cells.attrs["reference"]))
    ideal, _, _ = corners(cells)
    gamma = math.radians(120.0 if reference == "hexagonal" else 90.0)
    middle = ideal + 0.5 * spacing * torch.tensor([1 + math.cos(gamma), math.sin(gamma)])
    draws = len(values["along"])
    size = max(1, AT_ONCE // draws)
    parts = []
    chance = []
    for start in range(0, len(middle), size):
        strain = _strains(cells, prior, values, middle[start : start + size])
        a, b, angle = shape(strain, reference, spacing)
        stacked = torch.stack([a, b, torch.rad2deg(angle), b / a], -1)
        parts.append(torch.stack([stacked.mean(0), stacked.std(0)], 0))
        code = classes(strain, reference, rope)
        chance.append(torch.stack([(code == k).double().mean(0) for k in range(len(names))], -1))
    told, probability = torch.cat(parts, 1).numpy(), torch.cat(chance).numpy()
    domain, of_domain = _domains(cells, probability.argmax(1))
    found: dict[str, Any] = {
        "probability": (("cell", "practically"), probability),
        "domain": ("cell", domain),
    }
    for k, (name, unit) in enumerate(SHAPE):
        attrs = {"units": unit}
        found[f"{name}_mean"] = ("cell", told[0, :, k], attrs)
        found[f"{name}_error"] = ("cell", told[1, :, k], attrs)
    found |= _of_domains(cells, prior, values, middle, domain, of_domain)
    made = xr.Dataset(found, {"practically": list(names)})
    made.attrs = {"rope": rope, "reference": reference, "field_length_nm": float(prior.length)}
    return made


SHAPE = (("a", "nm"), ("b", "nm"), ("gamma", "degree"), ("ratio", "1"))


def _domains(cells: View, code: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected cells of one class, numbered from the largest; -1 where they are few."""
    from scipy.ndimage import label

    index = cells.index.numpy()
    low = index.min(0)
    grid = np.full(tuple(np.ptp(index, axis=0) + 1), -1)
    place = tuple((index - low).T)
    grid[place] = code
    number = np.full(len(code), -1)
    count = 0
    for each in np.unique(code):
        parts, _ = label(grid == each)
        here = code == each
        number[here] = parts[place][here] + count - 1
        count = int(number.max()) + 1
    size = np.bincount(number, minlength=count)
    order = np.argsort(-size, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    kept = int((size >= LEAST_DOMAIN).sum())
    ranked = rank[number]
    return np.where(ranked < kept, ranked, -1), kept


def _of_domains(
    cells: View,
    prior: Prior,
    values: Mapping[str, Tensor],
    middle: Tensor,
    domain: np.ndarray,
    count: int,
) -> dict[str, Any]:
    """The shape of the mean cell of every domain, with its error, and what it practically is."""
    if count == 0:
        return {}
    reference, spacing = str(cells.attrs["reference"]), float(cells.attrs["spacing"])
    draws, size = len(values["along"]), np.bincount(domain[domain >= 0], minlength=count)
    total = torch.zeros(draws, count, 4, dtype=torch.float64)
    step = max(1, AT_ONCE // draws)
    number = torch.as_tensor(domain)
    for start in range(0, len(middle), step):
        inside = torch.nonzero(number[start : start + step] >= 0)[:, 0] + start
        strain = _strains(cells, prior, values, middle[inside])
        total.index_add_(1, number[inside], strain)
    mean = total / torch.as_tensor(size, dtype=torch.float64)[:, None]
    a, b, angle = shape(mean, reference, spacing)
    stacked = torch.stack([a, b, torch.rad2deg(angle), b / a], -1)
    names = class_names(reference)
    code = classes(mean, reference, float(prior.rope))
    chance = torch.stack([(code == k).double().mean(0) for k in range(len(names))], -1)
    found: dict[str, Any] = {
        "domain_cells": ("region", size),
        "domain_probability": (("region", "practically"), chance.numpy()),
    }
    for k, (name, unit) in enumerate(SHAPE):
        found[f"domain_{name}_mean"] = ("region", stacked[..., k].mean(0).numpy(), {"units": unit})
        found[f"domain_{name}_error"] = ("region", stacked[..., k].std(0).numpy(), {"units": unit})
    return found


def design(seed: int = 0) -> xr.Dataset:
    """A small tetragonal crystal as atoms."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.meshgrid(np.arange(7), np.arange(7)), -1).reshape(-1, 2)
    position = cell * np.array([0.392, 0.404]) + 0.003 * rng.standard_normal(cell.shape)
    return dataset("atoms", position=position, axis=np.array(["x", "y"]), units={"position": "nm"})


@model(
    kind="atoms",
    prepare=("cells", cells_of),
    priors=PRIORS,
    units={"a": "position", "noise": "position", "origin": "position"},
    symbols={"a": "a", "noise": "σ", "ripple": "ripple", "spread": "spread", "size": "strain"},
    noise="noise",
    posterior=_posterior,
    derive=_derive,
    design=design,
)
def unit_cell(cells: View, prior: Prior) -> None:
    """Unit cell: a, b and γ of every cell with errors, and which symmetry the image decides for.

    An ideal square or hexagonal lattice is strained: every corner is at X + (δ + ω J + E + S) X + u(X) + noise, with
    the mean strain E of the symmetry in question, a smooth field u that couples cells and lets domains differ, and
    what the scan adds by stretch, shear and drift. The symmetries are *cubic (square)*: no strain, but for a ripple
    that bending may leave; *tetragonal (rectangular)*: a ≠ b and γ = 90°, everywhere or in domains of either sense;
    *rhombic*: a = b and γ ≠ 90°; *oblique*: both; and *hexagonal*, *centred rectangular* and *oblique* for hexagonal
    lattices. Their evidence is exact up to a sum over three numbers, and corners enter with their own errors, so that
    no column counts twice.

    Every cell and every domain is then told as practically cubic, tetragonal with its longer axis along a or b, and so
    on, where b/a differs from 1 and γ from 90° (in radians) by more than `rope`. A difference may be certain and too
    small to matter: evidence answers the first question, `rope` the second.

    **Assumes** columns displaced independently of one another, besides a smooth field with the correlation length
    `length` (nm); a domain wall is seen as wide as that. A sense of strain is as likely as the opposite, and its size
    unknown over a factor of fifty either way.
    **Fails** where the scan jumps, or drifts in more than six slow waves: that is taken for strain of the crystal.
    Strain is small: the product of a domain's turn and its strain, 0.002 in twins of 6 %, is told as a lean of γ.
    Orthorhombic and tetragonal look alike in one projection, and cells of any symmetry may project to a square: what
    is told is the symmetry of the projected cell. A lattice constant out of the plane is never seen.
    **Identifiable**: a uniform strain from the scan's own only as far as this is known (`stretch`, `shear`, and
    `drift`, the slope of the drift; all 0 in the set `calibrated`): otherwise the image cannot decide, unless domains
    differ. Sets of materials tell the mean size, not the symmetry.

    References: Kass and Raftery, Bayes factors, Journal of the American Statistical Association 90 (1995); Kruschke,
    Rejecting or accepting parameter values in Bayesian estimation, Advances in Methods and Practices in Psychological
    Science 1 (2018), for the region of practical equivalence.
    """
    options = hypotheses(cells.attrs["reference"])
    ideal, axes, middle = corners(cells)
    field = waves(cells, float(prior.length))
    which = sample("symmetry", Categorical(options.weight)).long()
    ripple, spread = sample("ripple", prior.ripple), sample("spread", prior.spread)
    wide = torch.sqrt(ripple**2 + spread**2)
    size = sample("size", prior.size)
    mean = sample(
        "strain", Normal(torch.zeros(2, dtype=torch.float64), size[..., None]).to_event(1)
    )
    cos, sin = torch.cos(options.direction[which]), torch.sin(options.direction[which])
    along, across = options.along[which], options.across[which]
    first, second = along * mean[..., 0], across * mean[..., 1]
    e1, e2 = cos * first - sin * second, sin * first + cos * second
    origin, turn = sample("origin", prior.origin), sample("turn", prior.turn)
    growth = sample("a", prior.a) / float(cells.attrs["spacing"]) - 1
    scan = sample("stretch", prior.stretch) * STRETCH + sample("shear", prior.shear) * SHEAR
    added = axes @ scan @ axes.T
    x, y = ideal.T
    right = origin[0] + (growth + added[0, 0] + e1 / 2) * x + (added[0, 1] + e2 / 2 - turn) * y
    down = origin[1] + (added[1, 0] + e2 / 2 + turn) * x + (growth + added[1, 1] - e1 / 2) * y
    trig = torch.cat(field.sines(ideal), 1)
    count = torch.zeros(2 * len(field.vector), dtype=torch.float64)
    waves_of = Normal(count, 1.0).to_event(1)
    for name, allowed, c, s in (("along", along, cos, sin), ("across", across, -sin, cos)):
        scale = torch.where(allowed > 0, wide, ripple)
        by_first, by_second = field.displacement(sample(name, waves_of))
        right = right + scale * (c * (trig @ by_first[0]) + s * (trig @ by_second[0]))
        down = down + scale * (c * (trig @ by_first[1]) + s * (trig @ by_second[1]))
    if float(prior.drift) > 0:
        count = torch.zeros(2 * DRIFTS, 2, dtype=torch.float64)
        rows = float(prior.drift) * sample("rows", Normal(count, 1.0).to_event(2))
        moved = drifts(cells, axes).functions(ideal) @ rows @ axes.T
        right, down = right + moved[:, 0], down + moved[:, 1]
    place = middle + (ideal + torch.stack([right, down], -1)) @ axes
    noise = sample("noise", prior.noise)
    covariance = cells.covariance + noise**2 * torch.eye(2, dtype=torch.float64)
    observe("position", MultivariateNormal(place, covariance_matrix=covariance))


STRETCH = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
SHEAR = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
