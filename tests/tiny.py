"""One tiny model of each shape that the zoo will hold, registered from outside the package as a user would."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.distributions import (
    Categorical,
    Dirichlet,
    HalfNormal,
    LogNormal,
    MultivariateNormal,
    Normal,
    TorchDistribution,
    constraints,
)
from torch import nn

from atomzoo.datasets.kinds import dataset
from atomzoo.models.model import View, model, observe, sample
from atomzoo.models.priors import Prior


def some_patches(patches: int = 48, seed: int = 0) -> xr.Dataset:
    """8×8 patches with a bar whose place is the one factor of variation."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(2, 5, patches)
    u = np.arange(8)
    bars = np.exp(-0.5 * (u[None, None] - place[:, None, None]) ** 2) + np.zeros((1, 8, 1))
    return dataset("patches", intensity=bars + 0.1 * rng.standard_normal(bars.shape))


def table_of_codes(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """The autoencoder's latent means as a table."""
    code = run["posterior"]["code"].mean(("chain", "draw")).values
    return dataset("table", value=code, variable=np.array(["z0", "z1"]))


@model(
    kind="patches",
    priors={"standard": {"noise": 0.1}},
    runner="svi",
    gives=("table", table_of_codes),
    design=some_patches,
)
class tiny_autoencoder(nn.Module):
    """A variational autoencoder of 8×8 patches with two latents.

    **Assumes** patches independent given their codes, one known noise.
    """

    def __init__(self, patches: View, prior: Prior) -> None:
        super().__init__()
        pixels = patches.sizes["v"] * patches.sizes["u"]
        self.shape = (patches.sizes["v"], patches.sizes["u"])
        self.encoder = nn.Sequential(nn.Linear(pixels, 32), nn.Tanh(), nn.Linear(32, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, pixels))

    def model(self, patches: View, prior: Prior) -> None:
        with patches.plate("patch"):
            code = sample("code", Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            mean = self.decoder(code).reshape(*code.shape[:-1], *self.shape)
            observe("intensity", Normal(mean, sample("noise", prior.noise)).to_event(2))

    def guide(self, patches: View, prior: Prior) -> None:
        with patches.plate("patch"):
            mean, log_scale = self.encoder(patches.intensity.flatten(1)).chunk(2, -1)
            sample("code", Normal(mean, log_scale.exp()).to_event(1))


class Ising4x4(TorchDistribution):
    """The periodic 4×4 Ising model, its normaliser summed over all 65,536 states.

    States with the same bonds and field weigh the same, so the sum runs over levels with their multiplicity.
    """

    arg_constraints: ClassVar[dict] = {"J": constraints.real, "h": constraints.real}
    support = constraints.independent(constraints.integer_interval(0, 1), 2)

    def __init__(self, J: torch.Tensor, h: torch.Tensor, validate_args: bool | None = None) -> None:
        self.J, self.h = torch.broadcast_tensors(torch.as_tensor(J), torch.as_tensor(h))
        super().__init__(self.J.shape, torch.Size([4, 4]), validate_args=validate_args)

    @staticmethod
    def statistics(spins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = 2.0 * spins.to(torch.float64) - 1
        bonds = (s * s.roll(1, -1) + s * s.roll(1, -2)).sum((-1, -2))
        return bonds, s.sum((-1, -2))

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Ising4x4:
        return Ising4x4(self.J.expand(batch_shape), self.h.expand(batch_shape), validate_args=False)

    def _log_weights(self) -> torch.Tensor:
        bonds, field = LEVELS.T
        return self.J[..., None] * bonds + self.h[..., None] * field + COUNTS.log()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        bonds, field = self.statistics(value)
        return self.J * bonds + self.h * field - torch.logsumexp(self._log_weights(), -1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        weights = torch.softmax(self._log_weights().detach(), -1)
        level = Categorical(weights).sample(sample_shape)
        place = (torch.rand(level.shape, dtype=torch.float64) * COUNTS[level]).long()
        return STATES[ORDER[STARTS[level] + place]].to(torch.int64)


STATES = torch.tensor(list(product([0, 1], repeat=16))).reshape(-1, 4, 4)
LEVELS, LEVEL, COUNTS = torch.unique(
    torch.stack(Ising4x4.statistics(STATES), -1), dim=0, return_inverse=True, return_counts=True
)
ORDER = torch.argsort(LEVEL, stable=True)
STARTS = COUNTS.cumsum(0) - COUNTS


def some_spins(configs: int = 12) -> xr.Dataset:
    """Configurations of a 4×4 lattice."""
    spins = np.random.default_rng(0).integers(0, 2, (configs, 4, 4))
    return dataset("lattice", species=spins, attrs={"lattice": "square", "periodic": 1})


@model(
    kind="lattice",
    priors={"vague": {"J": Normal(0.0, 0.5), "h": Normal(0.0, 0.5)}},
    runner="laplace",
    sizes={"row": (4, 4), "col": (4, 4)},
    design=some_spins,
)
def tiny_ising(lattice: View, prior: Prior) -> None:
    """The 4×4 Ising model, p(s) = exp(J Σ s s' + h Σ s) / Z(J, h).

    **Assumes** configurations independent and in equilibrium.
    """
    observe("species", Ising4x4(sample("J", prior.J), sample("h", prior.h)))


def _graphs() -> torch.Tensor:
    """The 25 directed acyclic graphs of three variables as matrices."""
    found = []
    pairs = [(0, 1), (0, 2), (1, 2)]
    for arrows in product([0, 1, 2], repeat=3):
        graph = torch.zeros(3, 3, dtype=torch.float64)
        for (a, b), arrow in zip(pairs, arrows, strict=True):
            if arrow == 1:
                graph[a, b] = 1
            elif arrow == 2:
                graph[b, a] = 1
        if torch.trace(torch.matrix_power(graph, 3)) == 0:
            found.append(graph)
    return torch.stack(found)


GRAPHS = _graphs()


def some_table(rows: int = 60, seed: int = 0) -> xr.Dataset:
    """A chain a → b → c."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(rows)
    b = 1.2 * a + rng.standard_normal(rows)
    c = -0.9 * b + rng.standard_normal(rows)
    value = np.stack([a, b, c], 1)
    return dataset("table", value=value, variable=np.array(["a", "b", "c"]))


@model(
    kind="table",
    priors={
        "vague": {
            "graph": "Categorical([" + ", ".join(["1"] * 25) + "])",
            "weight": Normal(0.0, 1.0).expand([3, 3]).to_event(2),
            "noise": LogNormal(0.0, 0.5).expand([3]).to_event(1),
        }
    },
    runner="laplace",
    sizes={"variable": (3, 3)},
    design=some_table,
)
def tiny_graph(table: View, prior: Prior) -> None:
    """Which of the 25 graphs of three variables, x = Wᵀ x + e with W on the graph's arrows.

    **Assumes** linear effects and Gaussian noise; then only the equivalence class is identified.
    """
    graph = GRAPHS[sample("graph", prior.graph).long()]
    effect = graph * sample("weight", prior.weight)
    mix = torch.linalg.inv(torch.eye(3, dtype=torch.float64) - effect)
    scaled = sample("noise", prior.noise)[..., :, None] * mix
    covariance = scaled.mT @ scaled
    center = torch.zeros(3, dtype=torch.float64)
    observe("value", MultivariateNormal(center, covariance_matrix=covariance))


def some_field(seed: int = 0) -> xr.Dataset:
    """A smooth field on 16×16 points with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    smooth = np.sin(x / 4) * np.cos(y / 5)
    value = smooth + 0.2 * rng.standard_normal((16, 16))
    return dataset("field", value=value[None], x=np.arange(16.0), y=np.arange(16.0))


@model(
    kind="field",
    priors={"known": {"length": 3.0, "amplitude": 1.0, "noise": 0.2}},
    runner="laplace",
    unit=("time", "y", "x"),
    design=some_field,
)
def tiny_field(field: View, prior: Prior) -> None:
    """A Gaussian process seen through noise: f = L z with L Lᵀ the kernel on a 16×16 grid.

    **Assumes** pixels independent given the field, which neighbours share.
    """
    y, x = torch.meshgrid(field.y.reshape(-1), field.x.reshape(-1), indexing="ij")
    points = torch.stack([y.reshape(-1), x.reshape(-1)], -1)
    square = ((points[:, None] - points) ** 2).sum(-1)
    kernel = torch.exp(-0.5 * square / sample("length", prior.length) ** 2)
    factor = torch.linalg.cholesky(kernel + 1e-6 * torch.eye(len(points), dtype=torch.float64))
    z = sample("z", Normal(torch.zeros(len(points), dtype=torch.float64), 1.0).to_event(1))
    f = pyro.deterministic("f", sample("amplitude", prior.amplitude) * (factor @ z))
    observe("value", Normal(f.reshape(16, 16), sample("noise", prior.noise)))


def some_atoms(atoms: int = 40, seed: int = 0) -> xr.Dataset:
    """Atoms of two intensities."""
    rng = np.random.default_rng(seed)
    bright = rng.random(atoms) < 0.3
    return dataset(
        "atoms",
        position=rng.uniform(0, 5, (atoms, 2)),
        intensity=np.where(bright, 2.0, 1.0) + 0.15 * rng.standard_normal(atoms),
        units={"position": "nm"},
    )


@model(
    kind="atoms",
    priors={
        "vague": {
            "share": Dirichlet(torch.tensor([1.0, 1.0])),
            "dim": Normal(1.0, 0.5),
            "step": LogNormal(0.0, 0.5),
            "spread": HalfNormal(0.5),
        }
    },
    runner="laplace",
    design=some_atoms,
)
def tiny_classes(atoms: View, prior: Prior) -> None:
    """Two species by brightness, every atom's class summed out.

    **Assumes** atoms independent given the two brightnesses.
    """
    share = sample("share", prior.share)
    dim = sample("dim", prior.dim)
    levels = torch.stack([dim, dim + sample("step", prior.step)])
    spread = sample("spread", prior.spread)
    with atoms.plate("atom"):
        kind = sample("kind", Categorical(share))
        observe("intensity", Normal(levels[kind.long()], spread))


@model(
    kind="atoms",
    priors={"vague": {"level": Normal(1.0, 1.0), "spread": HalfNormal(1.0)}},
    runner="laplace",
    design=some_atoms,
)
def tiny_one_class(atoms: View, prior: Prior) -> None:
    """One species, one brightness: what `tiny_classes` is to be compared with."""
    observe("intensity", Normal(sample("level", prior.level), sample("spread", prior.spread)))


SHAPES = {
    "tiny_autoencoder": tiny_autoencoder,
    "tiny_ising": tiny_ising,
    "tiny_graph": tiny_graph,
    "tiny_field": tiny_field,
    "tiny_classes": tiny_classes,
}
