"""Which of the seventeen plane groups a patch has."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Categorical, Normal, Uniform

from ...datasets.derived.periodic import periodic
from ...datasets.plane_groups import GROUPS, SETTINGS, Setting, cases, shape_distance
from ...datasets.wallpaper import wallpaper
from ..model import Told, View, model, observe, sample
from ..priors import Prior, prior_set
from .plane_group_evidence import (
    Envelope,
    Measured,
    Operations,
    Priors,
    Weighed,
    least_squares,
    solve,
    strengths,
    transfer,
    weigh,
)

NAMES = tuple(setting.name for setting in SETTINGS)
# Every group as probable as another, and every setting of a group.
EVEN = "Categorical([{}])".format(
    ", ".join(
        f"{1 / (len(GROUPS) * sum(s.group == t.group for t in SETTINGS)):.9f}" for s in SETTINGS
    )
)
# Groups that the two axes of a rectangle or a rhombus mean different things to.
ONE_WAY = ("pm", "pg", "cm", "pmg")
# Points of the pictures of a cell along each of its vectors.
PICTURE = 48
# A probability of nothing, whose logarithm is finite.
NEVER = 1e-300
# Each draw is a cell in 115 cases for the engine to look at.
MOST_DRAWS = 100
SHARED = {
    "setting": EVEN,
    "scale": "LogNormal(log(2 * coefficient.rms), 1)",
    "decay": "Normal(1, 2)",
    "noise": "LogNormal(0, 0.03)",
    "breaking": "Uniform(0, 1)",
    "nearly": 0.5,
}
SETS = {
    "vague": prior_set(
        note="A scan that is true to a percent, whose resolution is the same in all directions to some percent.",
        blur="Normal(0, 0.1)",
        blur_diagonal="Normal(0, 0.1)",
        tolerance=0.01,
        misfit=0.0,
        most=120.0,
    ).extend(**SHARED),
    "scan": prior_set(
        note="An ordinary scan: some percent of shear, sharper one way than another, reflections off by a tenth.",
        blur="Normal(0, 0.5)",
        blur_diagonal="Normal(0, 0.5)",
        tolerance=0.05,
        misfit=0.1,
        most=120.0,
    ).extend(**SHARED),
}


def of_shape(setting: Setting, lattice: np.ndarray, error: float) -> float:
    """Log density of the shape of a lattice, the strain of the scan and of the fit taken into account.

    The measure is that of the hyperbolic plane of shapes. An oblique lattice is anywhere among the reduced shapes,
    whose area is π/6; the log of the sides' ratio of a rectangle or a rhombus is exponential, which falls off as the
    area does; a square and a hexagon are one point.
    """
    away, along = shape_distance(lattice, setting)
    if setting.lattice == "oblique":
        return float(np.log(6 / np.pi))
    across = -0.5 * (away / error) ** 2 - 0.5 * np.log(2 * np.pi * error**2)
    if setting.lattice in ("square", "hexagonal"):
        return float(across - 0.5 * np.log(2 * np.pi * error**2))
    ways = 2 if setting.group in ONE_WAY else 1
    return float(across - abs(along) - np.log(ways) - np.log(np.cosh(away)))


def given_lattice(reflections: View, prior: Prior) -> torch.Tensor:
    """Log probability of each case once the lattice is known and the motif is not.

    A motif that nearly has a higher group has that group's lattice too, to within the same strain.
    """
    if "_shape" not in reflections.read:
        reflections.read["_shape"] = torch.as_tensor(_shapes(reflections, prior.tolerance))
    ops = operations(reflections)
    chosen = prior.setting.logits[..., ops.own] + torch.as_tensor(_of_higher(prior.nearly))
    return torch.log_softmax(chosen + reflections.read["_shape"][ops.like], -1)


def _of_higher(nearly: float) -> np.ndarray:
    """Log probability of each case given its setting: every higher group alike, and every setting of it."""
    above: dict[int, Counter[str]] = {}
    for case in cases():
        above.setdefault(case.setting, Counter())[SETTINGS[case.like].group] += 1
    found = []
    for setting, like, _ in cases():
        higher = len(above[setting]) - 1
        if setting == like:
            share = 1.0 if not higher else 1 - nearly
        else:
            share = nearly / higher / above[setting][SETTINGS[like].group]
        found.append(np.log(max(share, NEVER)))
    return np.array(found)


def _shapes(reflections: View, tolerance: float) -> np.ndarray:
    """Log density of the lattice's shape in every setting, times the number of settings of the group."""
    error = float(reflections.shape_error) if reflections.has("shape_error") else 0.0
    error = float(np.hypot(2 * tolerance, error))
    lattice = reflections.lattice.cpu().numpy()
    times = [sum(t.group == s.group for t in SETTINGS) for s in SETTINGS]
    shape = [of_shape(s, lattice, error) for s in SETTINGS]
    return np.array(shape) + np.log(times)


def squares(reflections: View) -> torch.Tensor:
    """kx² + ky², kx² − ky² and 2 kx ky of every reflection, in units of the largest square."""
    kx, ky = reflections.wave_vector.unbind(-1)
    found = torch.stack([kx**2 + ky**2, kx**2 - ky**2, 2 * kx * ky], -1)
    return found / found[:, 0].max()


def operations(reflections: View) -> Operations:
    """What every setting does to these reflections, worked out once."""
    if "_operations" not in reflections.read:
        index = reflections.data["index"].values
        reflections.read["_operations"] = Operations(index)  # type: ignore[assignment]
    return reflections.read["_operations"]  # type: ignore[return-value]


def weighed_settings(
    reflections: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """Evidence of every case, the motif integrated out in closed form, and what follows from it."""
    ops, seen = operations(reflections), _measured(reflections, mask)
    entries = [prior[name] for name in Envelope._fields]
    weights = given_lattice(reflections, prior).numpy()
    draws = min(draws, MOST_DRAWS)
    found = weigh(ops, seen, Priors(entries), weights, draws=draws, seed=seed)
    joint = found.log_evidence + weights
    total = float(np.logaddexp.reduce(joint))
    probability = np.exp(joint - total)
    error = float(np.sqrt(np.nansum((probability * found.error) ** 2)))
    cell, change, motif = _cells(ops, seen, found, seed)
    latents = {
        name: value
        for name, value in found.envelope._asdict().items()
        if not isinstance(prior[name], float)
    }
    told = _table(reflections, prior, seen, found, probability)
    told = told.merge(_pictures(reflections, seen, motif))
    named = told["group_probability"].values
    attrs = {"group": GROUPS[int(named.argmax())], "group_probability": float(named.max())}
    draws_of = {**latents, "origin": found.origin, "cell": cell, "change": change}
    return Told(draws_of, total, error, told, attrs)


def _measured(reflections: View, mask: torch.Tensor | None) -> Measured:
    noise = reflections.noise
    counts = torch.ones_like(noise) if mask is None else mask.to(noise.dtype)
    index = reflections.data["index"].values
    return Measured(index, reflections.coefficient, noise, squares(reflections), counts)


def _cells(
    ops: Operations, seen: Measured, found: Weighed, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws of the free cells that the story has, and of the motif that the groups make of them.

    What the projectors keep of them is seen and normal; the rest is as the prior has it.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(found.case), len(seen.noise))
    cell, change, error = (
        torch.complex(*torch.randn(2, *shape, generator=generator, dtype=torch.float64))
        for _ in range(3)
    )
    story = ops, found.case, found.origin, seen.wave, found.envelope

    # Matheron's rule: a draw of the prior, moved by what its own noisy data miss of those seen.
    sigma = found.envelope.noise[:, None] * seen.noise
    imagined = transfer(seen.wave, found.envelope) * _motif(*story, cell, change)
    missed = seen.complex - imagined - sigma * error
    solved = solve(ops, found.case, found.origin, seen, found.envelope, missed)
    whole, part = _copies(*story, solved, solved)
    cell, change = cell + whole, change + part
    motif = _motif(*story, cell, change)
    return torch.view_as_real(cell), torch.view_as_real(change), motif


def _copies(
    ops: Operations,
    case: torch.Tensor,
    origin: torch.Tensor,
    wave: torch.Tensor,
    envelope: Envelope,
    cell: torch.Tensor,
    change: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the higher group makes of a cell, and the group itself of another, each of its strength."""
    own, like = ops.own[case], ops.like[case]
    whole, part = strengths(ops, case, wave, envelope)
    # Copies of what is not listed are missing from the mean.
    whole, part = whole / _fill(ops, like).sqrt(), part / _fill(ops, own).sqrt()
    shifted = origin + ops.shift[case]
    return whole * ops.project(like, origin, cell), part * ops.project(own, shifted, change)


def _fill(ops: Operations, setting: torch.Tensor) -> torch.Tensor:
    return ops.listed[setting].sum(-2)


def _motif(
    ops: Operations,
    case: torch.Tensor,
    origin: torch.Tensor,
    wave: torch.Tensor,
    envelope: Envelope,
    cell: torch.Tensor,
    change: torch.Tensor,
) -> torch.Tensor:
    """The motif: a cell of the higher group, changed by one of the group itself."""
    whole, part = _copies(ops, case, origin, wave, envelope, cell, change)
    return whole + part


def _table(
    reflections: View, prior: Prior, seen: Measured, found: Weighed, probability: np.ndarray
) -> xr.Dataset:
    """Every case, setting and group: probability, evidence, and the geometric criterion beside it."""
    mean = Envelope(*(value.mean() for value in found.envelope))
    cost = least_squares(operations(reflections), seen, mean)
    lattice = reflections.lattice.numpy()
    of_setting = np.bincount([case.setting for case in cases()], probability, len(SETTINGS))
    of_group = [
        sum(p for p, s in zip(of_setting, SETTINGS, strict=True) if s.group == g) for g in GROUPS
    ]
    criterion = cost.misfit + 2 * cost.free
    constraints = 2 * float(seen.counts.sum()) - cost.free
    return xr.Dataset(
        {
            "case_probability": ("case", probability),
            "log_evidence": ("case", found.log_evidence),
            "log_evidence_se": ("case", found.error),
            "probability": ("setting", of_setting),
            "strain": ("setting", np.array([shape_distance(lattice, s)[0] / 2 for s in SETTINGS])),
            "misfit": ("setting", cost.misfit),
            "free": ("setting", cost.free),
            "broken": (
                "setting",
                (cost.misfit - constraints) / np.sqrt(2 * np.maximum(constraints, 1)),
            ),
            "geometric_aic": ("setting", criterion),
            "group_probability": ("group", np.array(of_group)),
            "group_geometric_aic": (
                "group",
                np.array(
                    [
                        min(c for c, s in zip(criterion, SETTINGS, strict=True) if s.group == g)
                        for g in GROUPS
                    ]
                ),
            ),
        },
        {
            "case": [case.name for case in cases()],
            "setting": list(NAMES),
            "group": list(GROUPS),
        },
    )


def _pictures(reflections: View, seen: Measured, motif: torch.Tensor) -> xr.Dataset:
    """The cell as it was seen, and as the posterior has it with its standard deviation, from corner to corner."""
    fraction = np.arange(PICTURE) / PICTURE
    v, u = np.meshgrid(fraction, fraction, indexing="ij")
    place = np.stack([u, v], -1) @ seen.index.T
    turn = torch.as_tensor(np.exp(2j * np.pi * place))
    drawn = 2 * torch.einsum("vuh,nh->nvu", turn, motif[:64]).real
    observed = 2 * torch.einsum("vuh,h->vu", turn, seen.complex).real
    dims = ("v", "u")
    return xr.Dataset(
        {
            "cell_observed": (dims, observed.numpy()),
            "cell_symmetrised": (dims, drawn.mean(0).numpy()),
            "cell_residual": (dims, (observed - drawn.mean(0)).numpy()),
            "cell_error": (dims, drawn.std(0).numpy()),
        },
        {"v": fraction, "u": fraction},
    )


@model(
    kind="image",
    priors=SETS,
    prepare=("periodic", periodic),
    posterior=weighed_settings,
    units={"scale": "coefficient"},
    symbols={"scale": "τ", "noise": "ν", "decay": "B", "breaking": "β"},
    noise="noise",
    design=lambda: wallpaper(group="p2", cells=5.0, pixels=32, snr=5.0, seed=3),
)
def plane_group(reflections: View, prior: Prior) -> None:
    """Plane group of a patch: any cell, its copies by the group's operations laid over each other.

    An image that repeats is its lattice and the Fourier coefficients of one cell. Of a cell c of independent
    coefficients a group with its origin at t makes P c, the mean of the copies; what is seen is √|G| τ P c with noise,
    τ falling off with the wave. The posterior is over 27 settings of the 17 groups, the ways in which each can lie on
    the lattice, and the evidence of each is in closed form but for the origin, the breaking and the envelope. The more
    a group demands, the sharper it predicts: of two that fit, the higher one wins. With probability `nearly` the motif
    of a group is one of a higher group that is broken by β, of which all values are as likely: a weak breaking is then
    seen when all that it changes together shows it. `case_probability` says which group is nearly which.
    The lattice weighs the cases before the motif is looked at: a strain within `tolerance` may be the scan's.

    **Assumes** one crystal, four cells or more across, noise that is even between neighbouring waves, and an image
    that differs from a periodic one by no more than noise, `misfit` (relative, of each coefficient) and a resolution
    that is not the same in all directions (`blur`).
    **Fails** where a patch holds a wall or a defect; where a scan distorts strong reflections by more than `misfit`:
    then nothing is symmetric, and the set `scan` or a wider one is the honest answer; where a motif is nearly of a
    higher group and the noise hides the difference, which the probabilities then say.
    **Identifiable**: the group and its setting, up to the axes' names; the origin up to the places that the group
    repeats and, in p1, pm, pg and cm, up to shifts that change nothing. `misfit`, the blur and symmetry trade against
    each other: an unknown scan cannot be told from a broken mirror.

    References: Kanatani, Comments on "Symmetry as a continuous feature", IEEE Transactions on Pattern Analysis and
    Machine Intelligence 19 (1997); Moeck, Towards generalized noise-level dependent crystallographic symmetry
    classifications of more or less periodic crystal patterns, Symmetry 10 (2018); Wilson, The probability distribution
    of X-ray intensities, Acta Crystallographica 2 (1949).
    """
    ops, wave = operations(reflections), squares(reflections)
    names = Envelope._fields
    envelope = Envelope(*(sample(name, prior[name]) for name in names))
    setting = sample("setting", Categorical(logits=given_lattice(reflections, prior))).long()
    corner = torch.zeros(2, dtype=torch.float64)
    origin = sample("origin", Uniform(corner, corner + 1).to_event(1))
    with reflections.plate("reflection"):
        cell = sample("cell", Normal(corner, 1.0).to_event(1))
        change = sample("change", Normal(corner, 1.0).to_event(1))
    free = (torch.complex(c[..., 0], c[..., 1]) for c in (cell, change))
    motif = transfer(wave, envelope) * _motif(ops, setting, origin, wave, envelope, *free)
    # The axis that lists the cases stands where the plate's does not.
    motif = motif.reshape(*setting.shape[:-1], -1)
    seen = torch.stack([motif.real, motif.imag], -1)
    noise = envelope.noise * reflections.noise
    observe("coefficient", Normal(seen, noise[..., None]).to_event(1))
