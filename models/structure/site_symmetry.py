"""Site symmetry: the point group of every atom's surroundings, with the scan's distortion told apart from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from pyro.distributions import (
    Categorical,
    Dirichlet,
    HalfNormal,
    LogNormal,
    Normal,
    TorchDistribution,
)
from torch import Tensor
from torch.distributions import constraints

from ...datasets.derived.shells import shells
from ...datasets.scenes import simulate
from ..model import Told, View, model, observe, sample
from ..priors import ModelError, Prior, PriorSet, prior_set
from .point_groups import ODD, Arrangement, Group, Site, distinct_groups, operations
from .shared_parameters import Straightened, Values, learn

__all__ = ["SiteVectors", "groups_of", "site_symmetry"]

SYMBOLS = {
    "noise": "σ",
    "inflation": "κ",
    "scale": "s",
    "stretch": "q",
    "shear": "γ",
    "strain": "ε",
    "size": "ln a/a₀",
    "drift": "∂u/∂y",
    "offset": "δ",
    "weights": "w",
}
# Atoms whose evidence is worked out together: what it takes then fits into a processor's cache.
TOGETHER = 4096
# Draws that what follows for every atom is averaged over; their spread is small against the classes' own.
FEW = 8
# Sites that the parameters are learnt from, and those that the first climbs are on: with a few thousand the shares of
# the classes, on which unclear sites hang, are known to a hundredth.
ENOUGH, FEW_SITES = 3000, 400
# Draws that are kept: what they are resampled from is worth no more.
MOST = 400
# Quantiles of the prior of the noise to climb from: sites that differ and sites that are blurred are two tops.
NOISES = (0.1, 0.9)
# How far sites may stray from the motif, in bonds: in what every group allows, in what a lower group allows besides
# (`polar` times as far where the first shell moves as a whole), and where the neighbours are not the shell, as next to
# a vacancy, when they may be anywhere up to the next slot.
WIDTHS = ("breath", "spread", "polar", "odd")
# Errors from zero at which an offset is there.
SEEN = 3.0
PARAMETERS = (
    "noise",
    "inflation",
    "size",
    "scale",
    "stretch",
    "shear",
    "strain",
    "drift",
    "offset",
)
COMPONENTS = ("dilation", "stretch", "shear")

# A scan's matrix is scale · ((1, shear), (0, stretch)) with more in its second column as the frame drifts.
SCAN = {
    "scale": Normal(1.0, 0.05),
    "stretch": Normal(1.0, 0.05),
    "shear": Normal(0.0, 0.05),
    "drift": Normal(0.0, 0.01).expand([2, 2]).to_event(2),
}
VAGUE = prior_set(
    note=(
        "Coordination and bond length are read off the data; sites may stray from a regular shell by an eighth of a "
        "bond in each coordinate, and nothing is known of the crystal's own uniform strain but that it is of percents."
    ),
    first=0,
    second=0,
    like=1,
    centres=0,
    bond=0,
    breath=0.03,
    spread=0.12,
    polar=1.0,
    odd=0.4,
    noise="HalfNormal(0.05 * radius.low)",
    inflation="LogNormal(0, 0.3)",
    size=Normal(0.0, 0.05),
    strain=Normal(0.0, 0.01).expand([2]).to_event(1),
    offset=0,
    weights="Dirichlet([1])",
    **SCAN,
)


def material(
    bond: float, first: int, second: int, spread: float, strain: float, note: str, **more: Any
) -> PriorSet:
    """A material's prior: its shells, its bond (nm), how far sites stray (bonds) and how it may be strained."""
    known = {
        "first": first,
        "second": second,
        "bond": bond,
        "breath": 0.01,
        "spread": spread,
        "noise": HalfNormal(0.01),
        "size": Normal(0.0, 0.003),
        "strain": Normal(0.0, strain).expand([2]).to_event(1),
    }
    return PriorSet("", {**VAGUE.entries, **known, **more}, {"neighbour": "nm"}, note)


LENGTHS = "Lattice constants at room temperature: order of magnitude, good to a few per mille."
# In the cell of a polar perovskite ions stray little, but for A and B against each other: 0.08 bonds are 22 pm.
PEROVSKITE = (
    "Unlike neighbours, then like ones; a site strays by off-centring more than by all else, of which the c/a of other "
    "domains is most. " + LENGTHS
)
PRIORS = {
    "vague": VAGUE,
    "graphene": material(
        0.142, 3, 6, 0.05, 0.005, "Three bonds and six next neighbours. " + LENGTHS
    ),
    "MoS2": material(
        0.1825,
        3,
        6,
        0.05,
        0.005,
        "Metal sites, told by their brightness: three columns of sulfur and six of metal in projection. "
        + LENGTHS,
        centres=1,
        like=0,
        offset=Normal(0.0, 0.01).expand([2]).to_event(1),
    ),
    "SrTiO3": material(0.2761, 4, 4, 0.03, 0.005, PEROVSKITE, like=0),
    "BaTiO3": material(0.2833, 4, 4, 0.03, 0.01, PEROVSKITE, like=0, polar=1.7),
    "PbTiO3": material(0.2812, 4, 4, 0.03, 0.03, PEROVSKITE, like=0, polar=2.7),
    "BiFeO3": material(0.2800, 4, 4, 0.03, 0.01, PEROVSKITE, like=0, polar=2.0),
}


def arrangement_of(data: xr.Dataset) -> Arrangement:
    """The nominal slots of data of kind `shells`."""
    return Arrangement.of(data["shell"].values, data["angle"].values)


def groups_of(view: View) -> list[str]:
    """Names of the hypotheses: the groups that the shells can tell apart, and none of them."""
    return [*(group.name for group in distinct_groups(arrangement_of(view.data))), ODD]


class SiteVectors(TorchDistribution):
    """Neighbour vectors of sites, each of a point group: the motif, what the group leaves free, noise, distortion.

    Args:
        site: what all have in common.
        distortion: matrices from the specimen to what is seen, (atom, 2, 2).
        shift: of the first shell against the centre as it is seen, (atom, 2).
        centre: variance of every atom's own position beyond `site.noise`, (atom,).
        neighbours: the same for its neighbours, by shell, (atom, shell).
        group: index of every site's hypothesis; one that is enumerated has shape (group, 1).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        site: Site,
        distortion: Tensor,
        shift: Tensor,
        centre: Tensor,
        neighbours: Tensor,
        group: Tensor,
    ) -> None:
        self.site, self.distortion, self.shift = site, distortion, shift
        self.centre, self.neighbours, self.group = centre, neighbours, group
        batch = torch.Size(np.broadcast_shapes(group.shape, (len(centre),)))
        super().__init__(batch, torch.Size([site.arrangement.slots, 2]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> SiteVectors:
        """The same for a batch of hypotheses."""
        if tuple(batch_shape) == tuple(self.batch_shape):
            return self
        parts = self.site, self.distortion, self.shift, self.centre, self.neighbours
        return SiteVectors(*parts, self.group.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Evidence of every site's hypothesis, orientation and numbering of the slots summed out."""
        back = _inverse(self.distortion)
        every = self.site.evidence(value, back, self.centre, self.neighbours, self.shift)
        index = self.group.long()
        flat = index.reshape(-1, index.shape[-1] if index.dim() else 1)
        chosen = torch.gather(every, 0, flat.expand(len(flat), every.shape[-1]))
        return chosen.reshape(index.shape[:-1] + every.shape[-1:])

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Sites drawn: orientation, numbering, template, noise, distortion."""
        shape = self.site.arrangement
        group = self.group.long().expand(sample_shape + self.batch_shape)
        free = _templates(self.site, group.reshape(-1))
        theta = 2 * torch.pi * torch.rand(len(free), dtype=torch.float64)
        cos, sin = torch.cos(theta), torch.sin(theta)
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        seen = (_motif(self.site) + free) @ turn.mT
        seen = seen.reshape(*group.shape, shape.slots, 2)
        shell = _shell(shape)
        of_slot = torch.sqrt(self.site.noise**2 + self.neighbours)[..., shell, None]
        of_centre = torch.sqrt(self.site.noise**2 + self.centre)[..., None, None]
        seen = seen + of_slot * torch.randn(seen.shape, dtype=torch.float64)
        seen = seen - of_centre * torch.randn(*group.shape, 1, 2, dtype=torch.float64)
        seen = seen @ self.distortion.mT
        seen[..., : shape.first, :] += self.shift[..., None, :]
        return seen


def _shell(shape: Arrangement) -> Tensor:
    return torch.tensor([0] * shape.first + [1] * shape.second)


def _motif(site: Site) -> Tensor:
    """The nominal vectors, (slot, 2)."""
    angle = torch.as_tensor(site.arrangement.angle)
    radius = site.radius[_shell(site.arrangement)]
    return torch.stack([torch.cos(angle), torch.sin(angle)], -1) * radius[:, None]


def _templates(site: Site, group: Tensor) -> Tensor:
    """How the templates of sites of these groups differ from the motif, (site, slot, 2), unturned."""
    shape = site.arrangement
    free = torch.randn(len(group), 2 * shape.slots, dtype=torch.float64)
    groups = distinct_groups(shape)
    most = max(groups, key=lambda g: (g.order, bool(g.axes)))
    common = torch.as_tensor(_projector(shape, most, 0))
    motif = _motif(site)
    turn = torch.stack([-motif[:, 1], motif[:, 0]], -1).flatten()
    turn = torch.outer(turn, turn) / turn.square().sum()
    whole = _whole(shape)
    for index, found in enumerate(groups):
        lines = found.axes or (0,)
        line = torch.randint(len(lines), group.shape)
        for i, axis in enumerate(lines):
            here = (group == index) & (line == i)
            shared = common if found.axes else common + turn
            own = torch.as_tensor(_projector(shape, found, axis)) - shared
            # Both commute: a group takes a shell that moves as a whole to another such.
            polar = own @ whole
            width = site.breath * shared + site.spread * (own - polar) + site.polar * polar
            free[here] = free[here] @ width
    free[group == len(groups)] *= site.odd
    return free.reshape(-1, shape.slots, 2)


def _whole(shape: Arrangement) -> Tensor:
    """Onto displacements of the first shell as a whole, (2 slot, 2 slot)."""
    first = (_shell(shape) == 0).to(torch.float64)
    return torch.kron(torch.outer(first, first) / shape.first, torch.eye(2, dtype=torch.float64))


def _projector(shape: Arrangement, group: Group, axis: int) -> np.ndarray:
    matrices = list(operations(shape, group, axis))
    return np.asarray(sum(matrices) / len(matrices))


def _inverse(m: Tensor) -> Tensor:
    """Of 2×2 matrices."""
    (a, b), (c, d) = (row.unbind(-1) for row in m.unbind(-2))
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / (a * d - b * c)[..., None, None]


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    """A matrix of numbers that may have leading axes."""
    return torch.stack([torch.stack(torch.broadcast_tensors(*row), -1) for row in rows], -2)


def scan_matrix(values: Mapping[str, Tensor]) -> Tensor:
    """The scan's matrix in the middle of the frame."""
    one, zero = torch.ones_like(values["shear"]), torch.zeros_like(values["shear"])
    matrix = _matrix([[one, values["shear"]], [zero, values["stretch"] * one]])
    return values["scale"][..., None, None] * matrix


def crystal_matrix(strain: Tensor) -> Tensor:
    """Of the crystal's uniform strain without change of area, to first order."""
    first, second = (
        strain.expand(*strain.shape[:-1], 2).unbind(-1) if strain.dim() else (strain,) * 2
    )
    return _matrix([[1 + first, second], [second, 1 - first]])


def distortion_at(atoms: View, values: Mapping[str, Tensor]) -> Tensor:
    """What the scan and a uniform strain make of a neighbour vector at every atom, (atom, 2, 2).

    Drift adds to the second column of the matrix, as Legendre polynomials down the frame: of first order to slant
    it more and more, of second to bend it.
    """
    top, bottom = float(atoms.attrs["top"]), float(atoms.attrs["bottom"])
    t = 2 * (atoms.position[:, 1] - top) / max(bottom - top, 1e-12) - 1
    shapes = torch.stack([t, 1.5 * t**2 - 0.5], -1)
    along = shapes @ values["drift"].expand(2, 2).mT
    slope = torch.stack([torch.zeros_like(along), along], -1)
    return (scan_matrix(values) + slope) @ crystal_matrix(values["strain"])


def shift_at(atoms: View, offset: Tensor) -> Tensor:
    """What the first shell of every atom seems to be moved by, (atom, 2): the other way on the other sublattice."""
    side = atoms.side if atoms.has("side") else torch.zeros(atoms.sizes["atom"])
    return side[:, None].to(torch.float64) * offset.expand(2)


def site_of(atoms: View, values: Mapping[str, Tensor], widths: Iterable[Tensor]) -> Site:
    """What all sites have in common; the widths `breath`, `spread` and `odd` are in bonds, `polar` in spreads."""
    arrangement = arrangement_of(atoms.data)
    firsts = [0, arrangement.first][: len(arrangement.orbits)]
    nominal = atoms.radius[firsts]
    radius = nominal * torch.exp(values["size"])
    # In bonds as long as they are: else sites that are odd would tell a strained crystal from a scan that is off.
    breath, spread, ratio, odd = widths
    breath, spread, odd = (width * radius[0] for width in (breath, spread, odd))
    return Site(arrangement, radius, breath, spread, ratio * spread, odd, values["noise"])


def variances(atoms: View, inflation: Tensor) -> tuple[Tensor, Tensor]:
    """Measurement errors of the centres (atom,), and of the neighbours by shell (atom, shell), as variances.

    What was told of them may be too little: a misfit of the columns' shape is no part of it.
    """
    split = atoms.neighbour_variance.split(_sizes(arrangement_of(atoms.data)), -1)
    shells = torch.stack([part.mean(-1) for part in split], -1)
    return inflation**2 * atoms.centre_variance, inflation**2 * shells


def _sizes(shape: Arrangement) -> list[int]:
    return [shape.first, shape.second] if shape.second else [shape.first]


def told(atoms: View, values: Mapping[str, Tensor]) -> Iterator[dict[str, np.ndarray]]:
    """What one set of the parameters' values says of every atom, some atoms at a time."""
    with torch.enable_grad():
        for start in range(0, atoms.sizes["atom"], TOGETHER):
            here = slice(start, start + TOGETHER)
            yield _told_of(atoms, values, here)


def _told_of(atoms: View, values: Mapping[str, Tensor], here: slice) -> dict[str, np.ndarray]:
    back = _inverse(distortion_at(atoms, values))[here]
    centre, neighbours = (part[here] for part in variances(atoms, values["inflation"]))
    seen = atoms.neighbour[here]
    nudge = torch.zeros(2, len(seen), dtype=torch.float64, requires_grad=True)
    site = site_of(atoms, values, [values[name] for name in WIDTHS])
    shift = shift_at(atoms, values["offset"])[here]
    joint = site.evidence(seen, back, centre, neighbours, shift, nudge)
    joint = joint + torch.log(values["weights"])[:, None]
    total = torch.logsumexp(joint, 0)
    (direction,) = torch.autograd.grad(total.sum(), nudge)
    probability = torch.exp(joint - total).detach()
    with torch.no_grad():
        wide = [torch.tensor(float(VAGUE.entries[name]), dtype=torch.float64) for name in WIDTHS]
        open_site = site_of(atoms, values, wide)
        open_minded = open_site.evidence(seen, back, centre, neighbours, shift)
    return {
        "probability": probability.T.numpy(),
        "open": torch.softmax(open_minded, 0).T.numpy(),
        "direction": torch.complex(direction[0], direction[1]).numpy(),
    }


def evidence_of(atoms: View, prior: Prior, values: Mapping[str, Tensor]) -> Tensor:
    """Log evidence of every hypothesis for every site, (hypothesis, atom)."""
    missing = [n for n in (*PARAMETERS, *WIDTHS) if n not in values]
    known = {n: torch.as_tensor(prior[n], dtype=torch.float64) for n in missing}
    values = {**known, **values}
    site = site_of(atoms, values, [values[name] for name in WIDTHS])
    errors = variances(atoms, values["inflation"])
    back = _inverse(distortion_at(atoms, values))
    return site.evidence(atoms.neighbour, back, *errors, shift_at(atoms, values["offset"]))


def learnt(atoms: View, prior: Prior, *, draws: int, seed: int, mask: Tensor | None = None) -> Told:
    """The posterior of what all sites have in common."""
    rows = np.arange(atoms.sizes["atom"]) if mask is None else np.flatnonzero(mask.numpy())
    every = View(atoms.data.isel(atom=rows))
    few = View(every.data.isel(atom=slice(None, None, max(1, len(rows) // FEW_SITES))))
    priors = {n: prior[n] for n in (*PARAMETERS, *WIDTHS) if not isinstance(prior[n], float)}
    priors["weights"] = _dirichlet(prior.weights, len(groups_of(atoms)))

    def evidence(values: Values, some: bool) -> Tensor:
        return evidence_of(few if some else every, prior, values)

    starts = _starts(every, priors, seed)
    straightened = _straightened(every, priors)
    return learn(
        priors, evidence, starts, draws=min(draws, MOST), seed=seed, straightened=straightened
    )


def _straightened(atoms: View, priors: Mapping[str, Any]) -> Straightened | None:
    """Log of the size of all errors, and of noise over told errors, for those of noise and inflation.

    The size is known well and the ratio hardly: where told errors are alike, only the prior knows it.
    """
    variance = 0.5 * (atoms.centre_variance.mean() + atoms.neighbour_variance.mean())
    ours = all(isinstance(priors.get(n), HalfNormal | LogNormal) for n in ("noise", "inflation"))
    if not ours or not variance > 0:
        return None
    told = 0.5 * torch.log(variance)

    def bent(free: Values) -> Values:
        size, ratio = free["noise"], 2 * free["inflation"]
        noise, inflation = (size - 0.5 * torch.nn.functional.softplus(w * ratio) for w in (-1, 1))
        return free | {"noise": noise, "inflation": inflation - told}

    def straight(free: Values) -> Values:
        noise, inflation = free["noise"], free["inflation"] + told
        size = 0.5 * torch.logaddexp(2 * noise, 2 * inflation)
        return free | {"noise": size, "inflation": noise - inflation}

    return bent, straight


def _starts(atoms: View, priors: Mapping[str, Any], seed: int) -> list[Values]:
    """Where to climb from: the scan that makes the mean first shell round, little noise and much."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = {name: prior.sample((201,)) for name, prior in priors.items()}
    middle = {name: value.median(0).values for name, value in drawn.items()}
    middle["weights"] = priors["weights"].mean
    middle |= {n: v for n, v in _round(atoms).items() if n in priors}
    if "noise" not in priors:
        return [middle]
    return [middle | {"noise": torch.quantile(drawn["noise"], q, 0)} for q in NOISES]


def _round(atoms: View) -> Values:
    """The scan's matrix by the mean square of the first shell, which is round on the specimen."""
    first = atoms.neighbour[:, : arrangement_of(atoms.data).first]
    square = torch.einsum("nsi,nsj->nij", first, first).median(0).values / first.shape[1]
    a, b, d = square[0, 0], square[0, 1], square[1, 1]
    stretched = torch.sqrt(d)
    scale = torch.sqrt(a - b * b / d)
    nominal = atoms.radius[0] / math.sqrt(2)
    return {"scale": scale / nominal, "stretch": stretched / scale, "shear": b / stretched / scale}


def _complete(prior: Prior, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws of every parameter, those that are known repeated."""
    draws = len(values["weights"])
    missing = [name for name in (*PARAMETERS, *WIDTHS) if name not in values]
    shapes = {"strain": (2,), "drift": (2, 2), "offset": (2,)}
    known = {n: sample(n, prior[n]).expand(draws, *shapes.get(n, ())) for n in missing}
    return {**known, **values}


def derived(atoms: View, prior: Prior, values: Mapping[str, Tensor]) -> xr.Dataset:
    """Orientation and group of every site, whether the prior decides it, and the parts of the distortion."""
    values = _complete(prior, values)
    rows = np.unique(np.linspace(0, len(values["weights"]) - 1, FEW).astype(int))
    draws = [{name: value[row] for name, value in values.items()} for row in rows]
    parts = [_joined(told(atoms, draw)) for draw in draws]
    mean = {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
    weights = values["weights"].mean(0).numpy()
    made = xr.merge([_of_sites(atoms, mean, weights), _of_distortion(atoms, prior, values)])
    return made.assign_attrs(undecided=_undecided(atoms, prior, values["offset"]))


def _undecided(atoms: View, prior: Prior, offset: Tensor) -> str:
    """What an offset may hide, in a sentence; nothing where it is known, or none is seen."""
    if isinstance(prior["offset"], int | float) or not atoms.has("side"):
        return ""
    # Sites share atoms, and so errors of all of them are larger than those of so many sites by the root of this number.
    error = offset.std(0, correction=0) * math.sqrt(arrangement_of(atoms.data).first)
    mean = offset.mean(0)
    if not (mean.abs() > SEEN * error).any():
        return ""
    x, y = (1000 * mean).tolist()
    return (
        f"These data cannot decide whether sites are polar: one sublattice is seen ({x:.1f}, {y:.1f}) pm beside the "
        "other, which may be the offset of a probe that is not round or a displacement of all; the groups are those "
        "without it, and with offset=0 those with it"
    )


def _joined(pieces: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    found = list(pieces)
    return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}


def _of_sites(atoms: View, mean: Mapping[str, np.ndarray], weights: np.ndarray) -> xr.Dataset:
    probability, open_minded = mean["probability"], mean["open"]
    period = 2 * np.pi / arrangement_of(atoms.data).first
    log = np.log(np.maximum(probability, 1e-300))
    length = np.clip(np.abs(mean["direction"]), 1e-300, 1 - 1e-15)
    best, other = probability.argmax(1), open_minded.argmax(1)
    of_atom = {
        "orientation": (np.angle(mean["direction"]) % period, "rad"),
        "orientation_sd": (np.sqrt(-2 * np.log(length)), "rad"),
        "entropy": (-(probability * log).sum(1), "nat"),
        "information": ((probability * (log - np.log(weights))).sum(1), "nat"),
        "likeliest": (best.astype(np.int64), "1"),
        "likeliest_open": (other.astype(np.int64), "1"),
        "prior_driven": ((best != other).astype(np.int64), "1"),
    }
    made = xr.Dataset({k: ("atom", v, {"units": unit}) for k, (v, unit) in of_atom.items()})
    made["orientation"].attrs["period"] = period
    made["prior_driven"].attrs["long_name"] = "sites whose class the prior decides"
    made["position"] = atoms.data["position"]
    made.attrs = {
        "groups": groups_of(atoms),
        "left_out": atoms.attrs.get("left_out", 0),
        "left_out_why": atoms.attrs.get("left_out_why", ""),
        "prior_driven_share": float((best != other).mean()),
    }
    return made


def _of_distortion(atoms: View, prior: Prior, values: Mapping[str, Tensor]) -> xr.Dataset:
    """Dilation, stretch and shear as observed, of the scan and of the crystal, and how little the data assign.

    The data know the sum of the scan's and the crystal's parts; what each has of it is a matter of their priors.
    `unassigned` is the standard deviation of either part when the sum is known, from the widths of the priors.
    """
    scan = scan_matrix(values)
    crystal = crystal_matrix(values["strain"]) * torch.exp(values["size"])[..., None, None]
    parts = torch.stack([_components(m) for m in (scan @ crystal, scan, crystal)])
    wide = _widths(prior)
    unassigned = wide[0] * wide[1] / np.sqrt((wide**2).sum(0))
    found = xr.Dataset(
        {
            "distortion": (("origin", "component"), parts.mean(1).numpy()),
            "distortion_sd": (("origin", "component"), parts.std(1, correction=0).numpy()),
            "unassigned": (("component",), unassigned),
        },
        {"origin": ["observed", "scan", "crystal"], "component": list(COMPONENTS)},
    )
    return found


def _components(m: Tensor) -> Tensor:
    """Logarithm of the mean stretch, of the ratio of stretches along y and x, and the shear, rotation left out."""
    (a, b), (c, d) = (row.unbind(-1) for row in m.unbind(-2))
    square, area = a * a + c * c, a * d - b * c
    return torch.stack(
        [0.5 * torch.log(area), torch.log(area / square), (a * b + c * d) / square], -1
    )


def _widths(prior: Prior) -> np.ndarray:
    """Standard deviations of the scan's and the crystal's components in the prior, (origin, component)."""
    scale, stretch, shear, size = (_width(prior[n]) for n in ("scale", "stretch", "shear", "size"))
    strain = _width(prior["strain"])
    scan = [np.hypot(scale, stretch / 2), stretch, shear]
    return np.maximum([scan, [size, 2 * strain, 2 * strain]], 1e-12)


def _width(entry: Any) -> float:
    """A prior's standard deviation, zero where the value is known."""
    if isinstance(entry, int | float):
        return 0.0
    try:
        return float(torch.as_tensor(entry.variance).max().sqrt())
    except NotImplementedError:
        return 0.0


def some_atoms(seed: int = 0) -> xr.Dataset:
    """A small field of MoS2, sheared by the scan; by its brightness it has sublattices, as some priors ask."""
    return simulate("tmd", gives="atoms", field=2.4, tungsten=0.0, shear=0.03, seed=seed)


@model(
    kind="atoms",
    priors=PRIORS,
    posterior=learnt,
    prepare=("shells", shells),
    labels={"group": groups_of},
    derive=derived,
    enough=ENOUGH,
    units={"noise": "neighbour", "offset": "neighbour"},
    symbols=SYMBOLS,
    noise="noise",
    design=some_atoms,
)
def site_symmetry(atoms: View, prior: Prior) -> None:
    """Point group of every site, d = D(R_θ(m + t) + e) + δ with a template t ~ N(0, T_G) that its group allows.

    Neighbour vectors d stand in the slots of a nominal arrangement, one shell or two, whose motif m is a regular
    polygon in each. A point group G that maps the slots onto themselves turns the vectors and renumbers the slots; P_G,
    the mean of what it does, projects onto what it leaves as it is. In what the highest group allows, a site's template
    t differs from the motif by `breath`, in what its own group allows besides by `spread`: T_G = τ₀² P_max + τ² (P_G -
    P_max). Where the first shell moves as a whole against the centre, as in a polar cell, it is `polar` times as much:
    a site that may do anything pays for all of it, and looks symmetric where it does this alone. The evidence N(d; m,
    T_G + noise) is in closed form; the orientation θ is integrated out, and a mirror line may be at any of the slots
    that are alike. Errors e are those of the positions, each larger by `inflation`, with `noise` besides; that of the
    centre is common to all slots. D is the distortion of the scan and of a uniform strain, one matrix for all atoms but
    for the `drift`, slopes that change down the frame up to the second order; δ is an `offset` of one sublattice, as a
    probe that is not round makes. What all sites share is learnt from 3,000 of them.

    Classes are C1, C2, … and D1, D2, …; `a` has a mirror line through a neighbour of the first shell, `b` between two.
    Groups that the shells cannot tell apart are one class, such as C3/D3 on three like neighbours, where the twist that
    C3 allows is the orientation. A second shell tells C3 from D3. A site is `odd` where its neighbours are not this
    arrangement, as next to a vacancy: where one is missing, a farther atom stands in its slot. One shell sees its own
    missing neighbours, two also those of its neighbours; a foreign atom whose bonds are as long as one another leaves
    the symmetry as it was, however bright it is, and so do defects beyond the shells.

    **Assumes** sites independent given the parameters, though neighbours share atoms: their errors agree, and the
    error bars of `noise` and of the distortion come out too small by up to the root of the coordination number.
    Errors are round, and alike in a shell.
    **Fails** where noise is more than a tenth of the bond, so that neighbours are taken for one another, or where atoms
    that were not found are many. Shear and strain of the whole crystal look the same, as do an `offset` and a polar
    displacement of all sites, and only their priors tell them apart: `unassigned` says how much of a distortion could
    be either's, and `undecided` that an offset that is there may be a polar displacement; perovskites are held to have
    no offset. What varies down the frame counts as the scan's, and a strain that varies across as noise. Sites that
    vary in all coordinates by as much as `spread` look like C1, unless positions have errors that say so; a `spread`
    many times what sites do makes them look like the highest group, with more noise.
    **Identifiable**: classes once `spread` is a few times the noise, else they follow `weights`; where a class would be
    another one under the wide template of the set `vague` and even weights, `prior_driven` says so. Where the noise is
    three times `spread`, C1 and more noise look alike, and probabilities are off by up to 0.08. `size` and `scale`
    only together; `inflation` only where positions have errors of their own, and they differ.

    References: Kanatani, Geometric Computation for Machine Vision, Oxford (1993), on symmetry with noise, where a
    higher symmetry is the special case; MacKay, Information Theory, Inference, and Learning Algorithms, Cambridge
    (2003), chapter 28, on evidence as Occam's razor.
    """
    values = {name: sample(name, prior[name]) for name in PARAMETERS}
    site = site_of(atoms, values, [sample(name, prior[name]) for name in WIDTHS])
    weights = sample("weights", _dirichlet(prior.weights, len(groups_of(atoms))))
    with atoms.plate("atom"):
        group = sample("group", Categorical(weights))
        moved = distortion_at(atoms, values), shift_at(atoms, values["offset"])
        errors = variances(atoms, values["inflation"])
        observe("neighbour", SiteVectors(site, *moved, *errors, group))


def _dirichlet(given: Any, classes: int) -> Any:
    """The prior of the weights; one concentration holds for all classes."""
    if not isinstance(given, torch.distributions.Dirichlet):
        raise ModelError(
            f"weights must have a Dirichlet prior, found {given}; for shares that are known give large concentrations, "
            "such as Dirichlet([1e6, 2e6, 1e6])"
        )
    concentration = given.concentration
    if concentration.shape[-1] == 1:
        return Dirichlet(concentration.expand(classes))
    if concentration.shape[-1] != classes:
        raise ModelError(
            f"weights has {concentration.shape[-1]} concentrations, and there are {classes} groups; give one for all"
        )
    return given
