"""Motifs: what class of site every atom is, by laying templates over its neighbours."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Beta, Categorical, Dirichlet, LogNormal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ...datasets.derived.patterns import REACH, filled, patterns
from ...datasets.scenes import simulate
from ..model import Model, Told, View, model, observe, sample
from ..priors import ModelError, Prior, PriorSet, prior_set
from .matching import (
    MIDDLE,
    ODD,
    SEEN_IN,
    STRANGE,
    Layout,
    Parameters,
    Table,
    as_tensors,
    first_contrast,
    first_guess,
    first_noise,
    log_classes,
    log_strange,
    overlay,
    parameters,
)
from .shared_parameters import Values, learn
from .templates import LIBRARIES, Library, library, read_templates

__all__ = ["motif", "motifs_from"]

SYMBOLS = {
    "noise": "σ",
    "scale": "s",
    "stretch": "e",
    "shear": "γ",
    "weights": "w",
    "detection": "p",
    "clutter": "λ",
    "contrast": "κ",
    "spread": "s_b",
}
# Pseudo-counts: the first class of a library is the bulk, of which most atoms are.
BULK, RARE = 20.0, 1.0
# Atoms that the parameters are learnt from, and those that climbs to the top are made on.
ENOUGH, FEW_ATOMS = 2000, 300
# Draws at most: there are as many different ones.
MOST = 400
# Patterns told together where quantities of every atom are derived, and the draws that these are averaged over.
TOGETHER, FEW_DRAWS = 4096, 8


def _prior(
    found: Library,
    number: int,
    *,
    unit: float,
    radius: float,
    noise: Any,
    brightness: int = 1,
    contrast: float = 1.0,
    note: str = "",
) -> PriorSet:
    """What all sets share: the scan is right to a few percent, neighbours are seldom missed, clutter is rare."""
    rare = [RARE] * (len(found.classes) - 1)
    return prior_set(
        {"position": "nm"},
        note,
        library=number,
        unit=unit,
        radius=radius,
        reach=REACH,
        brightness=brightness,
        noise=noise,
        scale=LogNormal(0.0, 0.05),
        stretch=LogNormal(0.0, 0.05),
        shear="Normal(0, 0.05)",
        weights=Dirichlet(torch.tensor([BULK, *rare], dtype=torch.float64)),
        detection=Beta(500.0, 2.0),
        clutter=LogNormal(math.log(1e-3), 1.0),
        contrast=LogNormal(math.log(contrast), 0.3),
        spread=LogNormal(math.log(0.1), 0.7),
    )


def _crystal(name: str, unit: float, radius: float, note: str, contrast: float = 1.0) -> PriorSet:
    return _prior(
        library(LIBRARIES.index(name)),
        LIBRARIES.index(name),
        unit=unit,
        radius=radius * unit,
        noise=LogNormal(math.log(0.008), 0.8),
        contrast=contrast,
        note=note,
    )


# Lattice constants are orders of magnitude to a few percent, which `scale` has room for.
# The templates' brightness is that of Sr and TiO; this power of it is that of the others, if it goes with Z^1.7.
PEROVSKITES = {
    "SrTiO3": (0.3905, 1.0),
    "BaTiO3": (0.40, 1.86),
    "PbTiO3": (0.40, 2.71),
    "BiFeO3": (0.396, 2.42),
}
PRIORS = {
    "vague": _prior(
        library(LIBRARIES.index("shapes")),
        LIBRARIES.index("shapes"),
        unit=0,
        radius=0,
        noise="LogNormal(log(spacing.mean / 25), 0.8)",
        brightness=0,
        note="Shapes of the nearest neighbours, in units of their own distance; brightness does not count.",
    ),
    "graphene": _crystal(
        "graphene", 1.0, 0.33, "Three shells of carbon, in nm; silicon is told by brightness too."
    ),
    "MoS2": _crystal(
        "MoS2", 1.0, 0.424, "Three shells of the honeycomb of metal and chalcogen, in nm."
    ),
} | {
    name: _crystal(
        "perovskite", a, 1.2, f"A and B columns seen along [100], cell {a:g} nm.", contrast
    )
    for name, (a, contrast) in PEROVSKITES.items()
}


def _sheet() -> xr.Dataset:
    """A little graphene."""
    return simulate("graphene", gives="atoms", field=1.7, seed=1)


def _around(data: xr.Dataset, settings: Mapping[str, float], found: Library) -> xr.Dataset:
    """Patterns, and the names of the classes that they are held against."""
    return patterns(data, settings).assign_attrs(motifs=list(found.classes))


def _prepare(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    return _around(data, settings, _built_in(settings.get("library", 1)))


def _built_in(number: float) -> Library:
    if number not in range(1, len(LIBRARIES)):
        names = ", ".join(f"{i} {name}" for i, name in enumerate(LIBRARIES) if i)
        raise ModelError(f"library must be one of {names}, found {number:g}")
    return library(int(number))


def _names(view: View) -> Sequence[str]:
    return [str(name) for name in np.atleast_1d(view.attrs["motifs"])]


@lru_cache(64)
def _layout(found: Library, radius: float) -> Layout:
    return Layout.of(found, radius)


def _laid_out(view: View, prior: Mapping[str, Any], found: Library) -> Layout:
    """The templates as they are held against these patterns."""
    names = np.atleast_1d(view.attrs.get("motifs", []))
    if tuple(map(str, names)) != found.classes:
        raise ModelError(
            f"these patterns were made for other templates than those of {found.name}; "
            "fit the atoms themselves with this prior set"
        )
    # Rounded, so that what is at the rim does not hang on the last digit.
    return _layout(found, round(float(view.data["radius"]) / _unit_of(view, prior), 9))


def _unit_of(view: View, prior: Mapping[str, Any]) -> float:
    """Length of the templates' unit, nm; zero is the distance of nearest neighbours."""
    return float(prior["unit"]) or float(view.data["spacing"])


def _table(view: View, layout: Layout) -> Table:
    """The terms that matter for these patterns, found once and read like data from then on."""
    names = [f"overlay_{part}" for part in Table._fields]
    if names[0] not in view.read:
        found = _found(view.data, layout)
        view.read.update({n: part.to(view.device) for n, part in zip(names, found, strict=True)})
    return Table(*(view.read[name] for name in names))


def _found(data: xr.Dataset, layout: Layout) -> Table:
    laid = overlay(data, layout)
    marks = data["neighbour"].values[..., 2:]
    there = filled(data)
    strange = log_strange(marks[..., 0], there) if marks.size else np.zeros(len(there))
    variance = data["neighbour_variance"].values.sum(1) + data["centre_variance"].values
    return Table.of(layout, laid, strange, variance / (laid.count + 1))


def _told(
    view: View, layout: Layout, unit: Tensor | float, values: Mapping[str, Tensor]
) -> Parameters:
    """The parameters made ready, from their values by name."""
    scale = values["scale"] * unit
    shear, stretch = values["shear"], values["stretch"]
    one = torch.ones_like(scale)
    rows = [torch.stack([one, shear * one]), torch.stack([0 * one, stretch * one])]
    variance = view.centre_variance.mean()
    given = {
        "noise": values["noise"],
        "matrix": scale * torch.stack(rows),
        "detection": values["detection"],
        "clutter": values["clutter"] * view.density,
        "contrast": values.get("contrast", one),
        "spread": values.get("spread", one),
    }
    return parameters(layout, given, variance, view.radius)


class Pattern(TorchDistribution):
    """Neighbours of atoms of given classes: points of templates, turned at random, with misses and clutter.

    Args:
        view: the patterns, which say how many slots there are and how well atoms were measured.
        layout: the templates.
        told: the parameters.
        motif: class of every atom.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, view: View, layout: Layout, told: Parameters, matrix: Tensor, motif: Tensor
    ) -> None:
        self.view, self.layout, self.told, self.matrix = view, layout, told, matrix
        atoms, slots, features = (view.sizes[dim] for dim in ("atom", "slot", "feature"))
        shape = torch.Size(np.broadcast_shapes(tuple(motif.shape), (atoms,)))
        self.motif = motif.expand(shape)
        super().__init__(shape, torch.Size([slots, features]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Pattern:
        """The same for a batch of another shape."""
        motif = self.motif.expand(torch.Size(batch_shape))
        return Pattern(self.view, self.layout, self.told, self.matrix, motif)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the neighbours, in the order of their distance."""
        view = self.view
        if value is view.neighbour:
            table = _table(view, self.layout)
        else:
            data = view.data.copy()
            data["neighbour"] = view.data["neighbour"].copy(data=value.detach().cpu().numpy())
            table = _found(data, self.layout)
        disc = math.pi * view.radius**2
        every = log_classes(self.layout, table, self.told, view.density, disc)
        chosen = self.motif.long().reshape(-1, every.shape[1])
        return torch.gather(every, 0, chosen).reshape(self.motif.shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw neighbours."""
        motif = self.motif.expand(torch.Size(sample_shape) + self.batch_shape)
        return _drawn(self.view, self.layout, self.told, self.matrix, motif.long())


def _drawn(view: View, layout: Layout, told: Parameters, matrix: Tensor, motif: Tensor) -> Tensor:
    """Neighbours of atoms of these classes, the nearest first."""
    shape, like = motif.shape, told.noise
    slots = view.sizes["slot"]

    def uniform(*more: int) -> Tensor:
        return torch.rand(*shape, *more, dtype=like.dtype, device=like.device)

    def normal(*more: int) -> Tensor:
        return torch.randn(*shape, *more, dtype=like.dtype, device=like.device)

    # A template of the class; what no template explains takes the first, none of whose points is seen.
    templates = as_tensors(layout, like.device)
    own = templates.motif == motif[..., None]
    share = torch.where(own, torch.exp(templates.share), 0.0)
    other = motif == layout.classes
    level = uniform(1) * share.sum(-1, keepdim=True)
    template = (share.cumsum(-1) <= level).sum(-1).clamp(max=share.shape[-1] - 1)
    points = templates.points[template]
    angle = 2 * math.pi * uniform(1)
    c, s = torch.cos(angle), torch.sin(angle)
    turned = torch.stack(
        [c * points[..., 0] - s * points[..., 1], s * points[..., 0] + c * points[..., 1]], -1
    )
    variance = (told.noise + _table_variance(view)) / told.det + told.tolerance[template]
    width = torch.sqrt(variance)[..., None, None]
    moved = turned + width * (normal(points.shape[-2], 2) - normal(1, 2))
    seen = moved @ matrix.mT
    count = points.shape[-2]
    there = (uniform(count) < torch.exp(told.gain[0, 0] + _log_miss(told))) & ~other[..., None]
    strewn = torch.where(other, view.density * math.pi * view.radius**2, told.strewn)
    # Arrival times of a Poisson process of unit rate.
    arrived = torch.cumsum(-torch.log1p(-uniform(slots)), -1) < strewn[..., None]
    far, way = view.radius * torch.sqrt(uniform(slots)), 2 * math.pi * uniform(slots)
    clutter = torch.stack([far * torch.cos(way), far * torch.sin(way)], -1)
    found = torch.cat([seen, clutter], -2)
    length = torch.linalg.vector_norm(found, dim=-1)
    kept = torch.cat([there, arrived], -1) & (length < view.radius)
    if view.sizes["feature"] == 3:
        marks = _marks(layout, told, template, normal, uniform)
        strange = STRANGE * normal(slots)
        found = torch.cat([found, torch.cat([marks, strange], -1)[..., None]], -1)
    order = torch.argsort(torch.where(kept, length, torch.inf), dim=-1)[..., :slots]
    chosen = torch.gather(found, -2, order[..., None].expand(*order.shape, found.shape[-1]))
    some = torch.gather(kept, -1, order)
    return torch.where(
        some[..., None], chosen, torch.zeros((), dtype=found.dtype, device=found.device)
    )


def _table_variance(view: View) -> Tensor:
    """Measurement variance of a coordinate, the mean over each pattern."""
    there = (view.neighbour[..., :2] != 0).any(-1)
    return (view.centre_variance + view.neighbour_variance.sum(-1)) / (1 + there.sum(-1))


def _log_miss(told: Parameters) -> Tensor:
    """Log of the chance to miss a neighbour well inside the disc: gain = log p − log(1 − p)."""
    return -torch.nn.functional.softplus(told.gain[0, 0])


def _marks(layout: Layout, told: Parameters, template: Tensor, normal: Any, uniform: Any) -> Tensor:
    """Log brightness of the points of templates."""
    beta = as_tensors(layout, told.noise.device).brightness[template]
    count = beta.shape[-1]
    usual = told.contrast * beta + told.spread * normal(count) + MIDDLE * normal(1)
    return torch.where(uniform(count) < ODD, STRANGE * normal(count), usual)


def _tell(patterns: View, prior: Prior, found: Library) -> None:
    """The story, for one library of templates."""
    layout = _laid_out(patterns, prior, found)
    unit = _unit_tensor(patterns, prior)
    values = {name: sample(name, prior[name]) for name in _parameters(patterns)}
    weights = sample("weights", prior.weights)
    if weights.shape[-1] != len(found.classes):
        raise ModelError(
            f"weights has {weights.shape[-1]} entries, and there are {len(found.classes)} classes: "
            f"{', '.join(found.classes)}"
        )
    told = _told(patterns, layout, unit, values)
    with patterns.plate("atom"):
        kind = sample("motif", Categorical(weights))
        observe("neighbour", Pattern(patterns, layout, told, torch.linalg.inv(told.inverse), kind))


def _parameters(view: View) -> list[str]:
    """Names of what all atoms share besides the frequencies of the classes."""
    marks = ["contrast", "spread"] if view.sizes["feature"] == 3 else []
    return ["noise", "scale", "stretch", "shear", "detection", "clutter", *marks]


def _learnt(
    view: View, prior: Prior, found: Library, draws: int, seed: int, mask: Tensor | None
) -> Told:
    """The posterior of what all atoms share."""
    if mask is not None:
        view = View(view.data.isel(atom=np.flatnonzero(mask.numpy())))
    layout, unit = _laid_out(view, prior, found), _unit_tensor(view, prior)
    every, disc = _table(view, layout), math.pi * view.radius**2
    few = Table(*(part[:: max(1, len(part) // FEW_ATOMS)] for part in every))
    names = _parameters(view)
    priors = {n: prior[n] for n in (*names, "weights") if not isinstance(prior[n], float)}
    known = {n: sample(n, prior[n]) for n in names if n not in priors}

    def evidence(values: Values, some: bool) -> Tensor:
        told = _told(view, layout, unit, known | values)
        return log_classes(layout, few if some else every, told, view.density, disc)

    starts = _starts(view, layout, unit, priors, seed)
    return learn(priors, evidence, starts, draws=min(draws, MOST), seed=seed)


def _starts(
    view: View, layout: Layout, unit: Tensor | float, priors: Mapping[str, Any], seed: int
) -> list[Values]:
    """Where to climb from: what the templates were laid over with, and twice the noise, and much clutter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = {name: prior.sample((201,)) for name, prior in priors.items()}
    (a, b), (_, d) = first_guess(view.data, layout)
    seen = {"scale": a / float(unit), "shear": b / a, "stretch": d / a}
    seen |= {"noise": first_noise(view.data, layout), "contrast": first_contrast(view.data, layout)}
    middle = {name: value.median(0).values for name, value in drawn.items()}
    middle["weights"] = priors["weights"].mean
    middle |= {n: torch.tensor(v, dtype=torch.float64) for n, v in seen.items() if n in priors}
    more = {n: torch.quantile(v, 0.95) for n, v in drawn.items() if n == "clutter"}
    noisy = {n: 2 * middle[n] for n in ("noise",) if n in priors}
    return [middle, middle | noisy, middle | more]


def _unit_tensor(view: View, prior: Mapping[str, Any]) -> Tensor | float:
    return float(prior["unit"]) or view.spacing


def _derived(view: View, prior: Prior, values: Mapping[str, Tensor], found: Library) -> xr.Dataset:
    """What follows for every atom: its orientation, how its neighbours match, how sure its class is."""
    unit = view.sizes["atom"]
    parts = []
    for start in range(0, unit, TOGETHER):
        whole = unit <= TOGETHER
        piece = (
            view
            if whole
            else View(view.data.isel(atom=slice(start, start + TOGETHER)), view.device)
        )
        parts.append(_derived_some(piece, prior, values, found))
    return xr.concat(parts, "atom")


def _derived_some(
    view: View, prior: Prior, values: Mapping[str, Tensor], found: Library
) -> xr.Dataset:
    layout, unit = _laid_out(view, prior, found), _unit_tensor(view, prior)
    table = _table(view, layout)
    disc = math.pi * view.radius**2
    rows = np.unique(np.linspace(0, len(values["weights"]) - 1, FEW_DRAWS).astype(int))
    values = {name: value[rows] for name, value in values.items()}
    values |= {
        n: sample(n, prior[n]).expand(len(rows)) for n in _parameters(view) if n not in values
    }
    draws = len(rows)
    mean = torch.zeros(len(found.classes), view.sizes["atom"], dtype=torch.float64)
    share = torch.zeros(table.template.shape, dtype=torch.float64)
    for draw in range(draws):
        told = _told(view, layout, unit, {k: v[draw] for k, v in values.items()})
        weights = torch.log(values["weights"][draw])
        every = log_classes(layout, table, told, view.density, disc)
        mean += torch.softmax(every + weights[:, None], 0) / draws
        terms = table.terms(told)
        share += torch.softmax(terms + table.motif @ weights[:-1], 1) / draws
    weights = values["weights"].mean(0)
    return _as_dataset(view, layout, table, mean, share, weights)


def _as_dataset(
    view: View, layout: Layout, table: Table, mean: Tensor, share: Tensor, weights: Tensor
) -> xr.Dataset:
    best = mean.argmax(0)
    # Of the terms of the likeliest class the heaviest tells how the template lies.
    own = table.motif.argmax(-1) == best[:, None]
    term = torch.where(own, share, -1.0).argmax(1)
    rows = torch.arange(len(term))
    template, figures = table.template[rows, term], table.figures[rows, term].numpy()
    matched = np.where(own.any(1).numpy(), figures[:, SEEN_IN].sum(1), 0).astype(np.int64)
    inside = layout.zones[:2].sum((0, 2))[template.numpy()]
    count = table.known[:, 0].numpy().astype(np.int64)
    turn = 2 * math.pi / layout.symmetry[template.numpy()]
    angle = np.degrees(np.mod(table.angle[rows, term].numpy(), turn))
    safe = mean.clamp(min=1e-300)
    entropy = -(mean * torch.log(safe)).sum(0)
    gained = (mean * (torch.log(safe) - torch.log(weights)[:, None])).sum(0)
    per_atom = {
        "orientation": (np.where(matched > 0, angle, 0.0), "degree"),
        "matched": (matched, "1"),
        "missing": (np.where(matched > 0, np.maximum(inside - matched, 0), 0), "1"),
        "spurious": (count - matched, "1"),
        "entropy": (entropy.numpy(), "nat"),
        "information_gain": (gained.numpy(), "nat"),
    }
    made = {name: ("atom", array, {"units": unit}) for name, (array, unit) in per_atom.items()}
    told = xr.Dataset(made, {"atom": view.data["atom"]} if "atom" in view.data.coords else {})
    # That of the bulk, which most atoms are.
    told["orientation"].attrs["period"] = 360.0 / float(layout.symmetry[0])
    return told


def _posterior(
    view: View, prior: Prior, *, draws: int, seed: int, mask: Tensor | None = None
) -> Told:
    return _learnt(view, prior, _built_in(prior.library), draws, seed, mask)


def _derive(view: View, prior: Prior, values: Mapping[str, Tensor]) -> xr.Dataset:
    return _derived(view, prior, values, _built_in(prior.library))


@model(
    kind="atoms",
    prepare=("patterns", _prepare),
    priors=PRIORS,
    units={"noise": "position"},
    symbols=SYMBOLS,
    noise="noise",
    labels={"motif": _names},
    derive=_derive,
    posterior=_posterior,
    enough=ENOUGH,
    design=_sheet,
)
def motif(patterns: View, prior: Prior) -> None:
    """Motifs, d = M (R(θ) t + e) with t a point of the template of an atom's class, some points missed, some strewn in.

    Every atom has a class, with frequencies `weights`; its neighbours within a radius are the points of the class's
    template, turned by any angle and distorted by the scan, M = scale · ((1, shear), (0, stretch)). Each is seen with
    the probability `detection`, and `clutter` is the density of neighbours that are none, relative to all. Atoms are
    off their places by `noise` in each coordinate, besides errors of measurement; the atom in the middle too, which
    moves its whole pattern. The last class, "other", is a pattern without order. Angle, offsets and assignment are
    summed out, and what is left are a few global parameters and the classes' probabilities.

    Prior sets choose the templates by the number `library`: 1 shapes of nearest neighbours, 2 graphene, 3 MoS2,
    4 perovskites; `radius` (nm; 0 for `reach` spacings) says how much of them is looked at. Where atoms have
    intensities and `brightness` is 1, a neighbour's log brightness relative to the atom's own tells too; `contrast` is
    the power of the templates' brightness, `spread` the scatter.

    Templates of your own are a file of text, `sites.csv`, with a header `motif,x,y` and a line for each neighbour: its
    atom's class and the way to it, the bulk first. Two lines in `sites.py` make a model of it,

        from atomzoo.models.structure.motif import motifs_from
        sites = motifs_from("sites.csv", radius=0.33)

    which is fitted by `atomzoo fit sites.py:sites atoms.nc`, or compared with others.

    **Assumes** atoms independent given the parameters, though neighbours share their neighbours: frequencies come out
    a little too sure. Noise is the same in all directions on the specimen and at most a tenth of the distance of
    neighbours; at a seventh assignments run into each other, and the likeliest class is right in 85 % where it is told
    to be 91 % sure.
    **Fails** where the site is none of the templates and not far from one: it is then called that, so look at
    `information_gain`, `missing` and `spurious`. A vacancy's neighbour and an atom whose neighbour was not seen look
    alike, as do those of columns too faint to be found; `detection` decides. Where dislocations stand side by side, in
    boundaries of more than 20°, some heptagons are missed. Edges need the picture's frame, see
    `datasets/derived/patterns.py`.
    **Identifiable**: the distortion up to a rotation, if most atoms are of a class whose template is right; scale is
    that of the templates. A rare class's frequency is known to about the root of its number among those learnt from.

    References: Vlcek, Maksov, Pan, Vasudevan and Kalinin, Knowledge extraction from atomically resolved images, ACS
    Nano 11 (2017); Ziatdinov et al., Deep learning of atomically resolved scanning transmission electron microscopy
    images: chemical identification and tracking local transformations, ACS Nano 11 (2017), whose classes of sites
    those of graphene follow; Myronenko and Song, Point set registration: coherent point drift, IEEE Trans. PAMI 32
    (2010), for the mixture of template, noise and outliers; Mardia and Jupp, Directional Statistics (2000).
    """
    _tell(patterns, prior, _built_in(prior.library))


def _beside(file: str | os.PathLike[str], script: str | None) -> Path:
    """The file from where one works; where there is none, from beside the script that asks for it."""
    here = Path(file).expanduser()
    there = Path(script or "").parent / here
    return there if script and there.exists() and not here.exists() else here


def motifs_from(
    file: str | os.PathLike[str],
    *,
    name: str | None = None,
    radius: float = 0.0,
    unit: float = 1.0,
    noise: Any = None,
    brightness: bool = True,
) -> Model:
    """A model like `motif` with templates of your own.

    In a script of your own, `my_sites.py`, that imports this function, the line

        my_sites = motifs_from("my_sites.csv", radius=0.33)

    makes a model for `atomzoo fit my_sites.py:my_sites atoms.nc`. The first class of the file is the bulk.

    Args:
        file: templates, as told in `templates`; from the folder one works in, or from that of the script.
        name: of the model; by default that of the file.
        radius: in nm, around each atom; 0 takes 1.22 times the distance of nearest neighbours.
        unit: of the file's lengths in nm; 0 for the distance of nearest neighbours.
        noise: prior of the noise in nm, by default about a twenty-fifth of the distance of nearest neighbours.
        brightness: whether the neighbours' brightness counts, where the atoms have intensities.
    """
    frame = inspect.currentframe()
    script = frame.f_back.f_globals.get("__file__") if frame and frame.f_back else None
    found = read_templates(_beside(file, script))
    named = name or re.sub(r"[^a-z0-9]+", "_", found.name.lower()).strip("_")
    scaled = noise if noise is not None else "LogNormal(log(spacing.mean / 25), 0.8)"
    own = _prior(
        found,
        0,
        unit=unit,
        radius=radius,
        noise=scaled,
        brightness=int(brightness),
        note=f"Templates of {found.name}: {', '.join(found.motifs)}.",
    )

    def story(patterns: View, prior: Prior) -> None:
        _tell(patterns, prior, found)

    def posterior(
        view: View, prior: Prior, *, draws: int, seed: int, mask: Tensor | None = None
    ) -> Told:
        return _learnt(view, prior, found, draws, seed, mask)

    story.__name__ = story.__qualname__ = named
    story.__doc__ = (motif.story.__doc__ or "").replace("Motifs,", f"Motifs of {found.name},", 1)
    made: Model = model(
        kind="atoms",
        prepare=("patterns", lambda data, settings: _around(data, settings, found)),
        priors={"vague": own},
        units={"noise": "position"},
        symbols=SYMBOLS,
        noise="noise",
        labels={"motif": found.classes},
        derive=lambda view, prior, values: _derived(view, prior, values, found),
        posterior=posterior,
        enough=ENOUGH,
        design=_sheet,
        family="structure",
    )(story)
    return made
