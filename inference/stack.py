"""Many datasets of one shape, each with its own posterior, sampled in the same strokes.

One trace of the model's gradient serves all of them: datasets are one more axis of the batch. Every dataset has its
own modes, metric, step size and jumps; all of a group take their trajectories together. What is not settled so, because
a posterior has several basins or a shape that one bell does not cover, is fitted again on its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from scipy.stats import chi2
from torch import Tensor
from torch.func import vmap

from ..models.model import Model, View
from . import ensemble
from .convergence import Convergence
from .density import Density, Traced, Values, agree
from .hmc import Metric, State, move
from .lifting import lift
from .modes import WIDER, climb, factor_of
from .runs import LIBRARIES, Progress, RunError, digest, library_version
from .strokes import Jumps, Record, strokes

__all__ = ["fit_stack"]

# Numbers that a stroke makes of the data of a group: enough to be worth its overhead, few enough for a cache.
AT_ONCE = 32_768
MOST_TOGETHER = 256
# Points of a dataset where only the value is asked for.
WIDTH = 64
R_HAT = 1.01
GROUPS = 4
TARGET = 0.8
WINDOWS = (16, 16)
# Climbs for every dataset, and how many of them begin high up.
CLIMBS, HIGH = 32, 8
# Draws from one trajectory to the next, and draws for every effective one asked for.
EVERY, SPARE = 4, 3.0
# Draws for every one that is kept, at first and then for what was not settled; what is left is fitted alone.
THINNED = (1, 4)
NU = 5.0
# Two climbs end in one basin where they are closer than so many times the dimension, squared; a further one counts
# where it is not lower by more than this.
APART, NEGLIGIBLE = 9.0, 12.0
STEP = 1e-4
# What the names of the posterior's draws begin with among the statistics.
DRAWN = "posterior "
STATS = ("lp", "energy", "acceptance_rate", "diverging")
FIGURES = ("bulk_ess", "nested_r_hat", "basins", "settled")


@dataclass
class _Stack:
    """The densities of one model for a group of datasets, as functions of points (dataset, chain, dim).

    Attributes:
        density: of one of the datasets; its story tells the others' too.
        inputs: what the story reads, of every dataset, with a leading axis over them.
        chains: points of a dataset where the gradient is asked for.
    """

    density: Density
    inputs: list[Tensor]
    chains: int
    path: str = "traced"
    _traces: dict[str, Traced] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of a flat vector."""
        return self.density.dim

    @property
    def size(self) -> int:
        """Number of datasets."""
        return len(self.inputs[0])

    def gradient(self, z: Tensor, held: object = None) -> tuple[Tensor, Tensor]:
        """Log density and its gradient at points (dataset, n, dim), or (dataset × n, dim)."""
        slopes, value = self._at("gradient", z.reshape(self.size, -1, self.dim), self.chains)
        return value.reshape(z.shape[:-1]), slopes.reshape(z.shape)

    def values(self, z: Tensor) -> Tensor:
        """Log density at points (dataset, n, dim); not a number is as little as can be."""
        (value,) = self._at("value", z, WIDTH)
        return torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf)

    def constrained(self, z: Tensor) -> Values:
        """Latents and derived quantities by name, (dataset, n, ...)."""
        found = self._at("constrained", z, WIDTH)
        return dict(zip(self.density.names, found, strict=True))

    def _at(self, what: str, z: Tensor, width: int) -> list[Tensor]:
        traced, parts = self._traced(what, width), []
        for part in z.split(width, 1):
            lacking = width - part.shape[1]
            full = torch.cat([part, part[:, -1:].expand(-1, lacking, -1)], 1) if lacking else part
            found = traced(full.contiguous(), *self.inputs)
            parts.append([values[:, : part.shape[1]].detach() for values in found])
        return [torch.cat(pieces, 1) for pieces in zip(*parts, strict=True)]

    def _traced(self, what: str, width: int) -> Traced:
        if what not in self._traces:
            told = {"gradient": self._slopes, "value": self._value, "constrained": self._told}
            self._traces[what] = self._trace_or_not(told[what], width)
        return self._traces[what]

    def _trace_or_not(self, eager: Traced, width: int) -> Traced:
        from .tracing import trace

        example = torch.zeros(self.size, width, self.dim, dtype=torch.float64)
        try:
            graph = trace(eager, (example, *self.inputs))
            if agree(graph, eager, example, self.inputs):
                return graph
            self.path = "eager: the trace does not agree, the model branches on values"
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            self.path = f"eager: {str(error).splitlines()[0][:200]}"
        return eager

    def _over(self, one: Callable[..., Any], points: Any, inputs: tuple[Tensor, ...]) -> Any:
        """A function of one point, at all points of all datasets."""

        def of_one(these: Any, *own: Tensor) -> Any:
            with self.density.reading(own):
                return vmap(one)(these)

        with pyro.validation_enabled(False):
            return vmap(of_one)(points, *inputs)

    def _slopes(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            free = {n: part.detach().requires_grad_() for n, part in self.density.split(z).items()}
            value = self._over(self.density.total, free, inputs)
            leaves = list(free.values())
            slopes = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        return torch.cat([s.reshape(*z.shape[:2], -1) for s in slopes], -1), value.detach()

    def _value(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (self._over(self.density.total, z, inputs),)

    def _told(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = self._over(self.density.told, z, inputs)
            return found

    def from_prior(self, n: int, seed: int) -> Tensor:
        """Draws from every dataset's prior (dataset, n, dim); where that cannot be, all from that of the first."""

        def of_one(points: Tensor, *own: Tensor) -> Tensor:
            with self.density.reading(own):
                return vmap(lambda _: self.density.drawn({}), randomness="different")(points)

        try:
            with self.density.drawing(seed):
                over = vmap(of_one, randomness="different")
                found: Tensor = over(torch.zeros(self.size, n), *self.inputs)
        except RuntimeError:
            found = self.density.initial(n, seed).expand(self.size, -1, -1)
        return found


@dataclass
class _Bells:
    """A Student-t distribution for every dataset, that jumps are proposed from.

    Attributes:
        means: (dataset, dim).
        factors: Cholesky factors of the scale matrices (dataset, dim, dim).
    """

    means: Tensor
    factors: Tensor

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws (dataset, n, dim)."""
        size, dim = self.means.shape
        normal = torch.randn(size, n, dim, dtype=torch.float64, generator=generator)
        halves = torch.full((size, n, 1), 0.5 * NU, dtype=torch.float64)
        gamma = torch._standard_gamma(halves, generator=generator)
        return self.means[:, None] + torch.sqrt(0.5 * NU / gamma) * (normal @ self.factors.mT)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at (dataset, n, dim), up to a constant of each dataset."""
        offset = (z - self.means[:, None]).mT
        white = torch.linalg.solve_triangular(self.factors, offset, upper=False)
        return -(NU + z.shape[-1]) / 2 * torch.log1p(white.square().sum(-2) / NU)


@dataclass
class _Kernel:
    """What moves the chains of every dataset."""

    metric: Metric
    step: Tensor
    bells: _Bells


def fit_stack(
    model: Model,
    datasets: Sequence[xr.Dataset],
    priors: Sequence[Any],
    *,
    prior_name: str,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "cpu",
    ess: int = 1000,
    chains: int = 16,
) -> xr.DataTree:
    """Sample every dataset's posterior; `fit` calls this when it is given several.

    Args:
        model: of all of them.
        datasets: valid ones of the same kind and shape.
        priors: resolved for each.
        prior_name: name of the prior set.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        device: where the model is worked out.
        ess: bulk effective draws of the worst parameter of every dataset.
        chains: of every dataset.
    """
    if ess < 1 or chains < 2 * GROUPS:
        raise RunError(f"ess must be at least 1, and chains at least {2 * GROUPS}")
    report = progress or (lambda done, total, text: None)
    started = time.perf_counter()
    first = Density(model, datasets[0], priors[0], device=device)
    if not first.dim or first.alternatives or first.networks is not None:
        raise RunError(f"{model.name} cannot be fitted to many datasets at once; fit each alone")
    inputs = _inputs(first, datasets, priors)
    elements = first.dim + sum(first.view.data[name].size for name in first.observed)
    together = min(MOST_TOGETHER, len(datasets), max(1, AT_ONCE // (chains * elements)))
    length = max(2 * EVERY, EVERY * math.ceil(SPARE * ess / chains / EVERY))
    stack = _Stack(first, [], chains)
    found: Record = {}
    left = torch.arange(len(datasets))
    for round_, thin in enumerate(THINNED):
        # What has too few effective draws is sampled again, longer, together with others like it.
        for start in range(0, len(left), together):
            report(len(datasets) - len(left) + start, len(datasets), "datasets")
            some = left[start : start + together]
            # The last group is filled up with copies of its last dataset, so that one trace serves all.
            rows = torch.cat([some, some[-1:].expand(together - len(some))])
            stack.inputs = [values[rows] for values in inputs]
            group = _group(stack, length, thin, ess, seed + round_ * len(datasets) + start)
            for name, values in group.items():
                if name not in found:
                    found[name] = values.new_empty(len(datasets), *values.shape[1:])
                found[name][some] = values[: len(some)]
        left = torch.nonzero(~found["settled"] & (found["basins"] == 1))[:, 0]
        if not len(left):
            break
    alone = torch.nonzero(~found["settled"] | (found["basins"] > 1))[:, 0].tolist()
    for done, i in enumerate(alone):
        report(done, len(alone), "datasets that need a fit of their own")
        density = Density(model, datasets[i], priors[i], device=device)
        _alone(found, i, density, ess, chains, seed)
    seconds = time.perf_counter() - started
    attrs = {"ess": ess, "chains": chains}
    about = _about(model, first, datasets, prior_name, seed, seconds, attrs)
    about |= {"density_path": stack.path, "fitted_alone": len(alone)}
    return _tree(model, datasets, first, found, about)


def _inputs(first: Density, datasets: Sequence[xr.Dataset], priors: Sequence[Any]) -> list[Tensor]:
    """What the story reads of every dataset, one above another."""
    shape = {name: (a.dims, a.shape) for name, a in first.view.data.variables.items()}
    lifted = [lift(prior) for prior in priors]
    rows = []
    for i, data in enumerate(datasets):
        view = View(data)
        here = {name: (a.dims, a.shape) for name, a in view.data.variables.items()}
        if here != shape:
            raise RunError(f"dataset {i} does not have the variables and sizes of dataset 0")
        if lifted[i].structure != lifted[0].structure:
            raise RunError(f"the prior of dataset {i} is not built like that of dataset 0")
        numbers = [t.double() if t.is_floating_point() else t for t in lifted[i].tensors]
        rows.append([*(getattr(view, name) for name in sorted(first.view.read)), *numbers])
    return [torch.stack(column).to(first.device) for column in zip(*rows, strict=True)]


def _group(stack: _Stack, length: int, thin: int, ess: int, seed: int) -> Record:
    """Draws (dataset, chain, draw, ...), statistics and figures of datasets that move together."""
    generator = torch.Generator().manual_seed(seed)
    state, kernel, basins = _start(stack, seed, generator)
    for window in WINDOWS:
        state = _warm_up(stack, state, kernel, window, generator)
    pieces = []
    for _ in range(thin):
        state, piece = _draws(stack, state, kernel, length, generator)
        pieces.append(piece)
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    # One of so many draws, and (dataset, chain, draw, ...).
    found = {name: values[thin - 1 :: thin].movedim(0, 2) for name, values in joined.items()}
    reached, agreed = _quality(found["z"])
    found |= {"bulk_ess": reached, "nested_r_hat": agreed, "basins": basins}
    found["settled"] = (reached >= ess) & (agreed <= _allowed(reached))
    values = stack.constrained(found["z"].flatten(1, 2))
    shape = found["z"].shape[:3]
    return found | {f"{DRAWN}{n}": v.reshape(*shape, *v.shape[2:]) for n, v in values.items()}


def _allowed(reached: Tensor) -> Tensor:
    """Nested R-hat that chains of few effective draws pass if they agree, 999 times in 1,000."""
    chance = chi2.isf(0.001, GROUPS - 1) / (GROUPS - 1)
    return torch.sqrt(1 + (GROUPS / reached * chance)).clamp(min=R_HAT)


def _quality(z: Tensor) -> tuple[Tensor, Tensor]:
    """Effective sample size and nested R-hat of the worst dimension; draws are (dataset, chain, draw, dim)."""
    size, chains, n, dim = z.shape
    wide = z.permute(2, 1, 0, 3).reshape(n, chains, size * dim).numpy()
    told = Convergence(wide, GROUPS)
    reached, agreed = told.bulk.reshape(size, dim).min(1), told.r_hat.reshape(size, dim).max(1)
    return torch.from_numpy(reached), torch.from_numpy(agreed)


def _start(stack: _Stack, seed: int, generator: torch.Generator) -> tuple[State, _Kernel, Tensor]:
    """Climb from draws of the prior; chains start around the highest mode of each dataset."""
    drawn = stack.from_prior(WIDTH, seed)
    middle = drawn.median(1, keepdim=True).values
    scale = 1.5 * (drawn - middle).abs().median(1, keepdim=True).values
    scale = torch.where(scale > 0, scale, 1.0)
    # The highest of all draws; and others from further out, where a basin may lie that the prior hardly reaches.
    order = stack.values(drawn).argsort(1, descending=True)[:, :HIGH]
    first = torch.cat(
        [_taken(drawn, order), middle + WIDER * (drawn - middle)[:, : CLIMBS - HIGH]], 1
    )
    wide = scale.expand_as(first)
    z, ended = climb(stack, first.flatten(0, 1), wide.flatten(0, 1), each_counts=True)
    z = z.reshape(first.shape)
    height = torch.nan_to_num(stack.gradient(z)[0], nan=-torch.inf)
    best = height.argmax(1)
    mode = z[torch.arange(stack.size), best]
    factor = _factor(stack, mode, scale)
    white = torch.linalg.solve_triangular(factor, (z - mode[:, None]).mT, upper=False)
    far = ended.reshape(height.shape) & (white.square().sum(-2) > APART * stack.dim)
    others = far & (height > height.max(1, keepdim=True).values - NEGLIGIBLE)
    bells = _Bells(mode, factor)
    # Of some proposed places, chains start from those that the posterior likes.
    places = bells.sample(WIDTH, generator)
    weights = stack.values(places) - bells.log_prob(places)
    power = torch.softmax(weights, 1)
    power = torch.where(torch.isfinite(power), power, 1 / WIDTH)
    chosen = torch.multinomial(power, stack.chains, replacement=True, generator=generator)
    start = _taken(places, chosen)
    step = torch.full((stack.size, 1, 1), 1.2 / stack.dim**0.25, dtype=torch.float64)
    kernel = _Kernel(_round(factor @ factor.mT), step, bells)
    return State(start, *stack.gradient(start)), kernel, 1 + others.any(1).to(torch.int64)


def _taken(points: Tensor, order: Tensor) -> Tensor:
    return points.gather(1, order[..., None].expand(-1, -1, points.shape[-1]))


def _factor(stack: _Stack, mode: Tensor, scale: Tensor) -> Tensor:
    """Cholesky factors of the covariances at the modes (dataset, dim, dim), by differences of the gradient."""
    width = STEP * scale[:, 0]
    steps = torch.diag_embed(width)
    points = torch.cat([mode[:, None] + steps, mode[:, None] - steps], 1)
    _, slopes = stack.gradient(points)
    hessian = (slopes[:, : stack.dim] - slopes[:, stack.dim :]) / (2 * width[:, :, None])
    unit = scale[:, 0]
    hessian = 0.5 * (hessian + hessian.mT) * unit[:, :, None] * unit[:, None, :]
    hessian = torch.nan_to_num(hessian, nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(-hessian)
    return unit[:, :, None] * factor_of(values.abs().clamp(min=1e-2), vectors)


def _round(covariance: Tensor) -> Metric:
    """The metric of every dataset in which its covariance (dataset, dim, dim) is the identity."""
    scale = torch.sqrt(torch.diagonal(covariance, dim1=-2, dim2=-1).clamp(min=1e-300))
    values, vectors = torch.linalg.eigh(covariance / scale[:, :, None] / scale[:, None, :])
    return Metric(scale[:, None], vectors, torch.sqrt(values.clamp(min=1e-10))[:, None])


def _warm_up(
    stack: _Stack, state: State, kernel: _Kernel, window: int, generator: torch.Generator
) -> State:
    """Adapt every dataset's step size along a window, and from its draws the metric and the jumps."""
    state, found = _draws(stack, state, kernel, window, generator, adapt=True)
    draws = found["z"].movedim(0, 1).flatten(1, 2)
    offset = draws - draws.mean(1, keepdim=True)
    covariance = offset.mT @ offset / (draws.shape[1] - 1)
    ridge = torch.diag_embed(1e-10 * torch.diagonal(covariance, dim1=-2, dim2=-1) + 1e-300)
    kernel.metric = _round(covariance)
    kernel.bells = _Bells(draws.mean(1), torch.linalg.cholesky(covariance + ridge))
    return state


def _draws(
    stack: _Stack,
    state: State,
    kernel: _Kernel,
    n: int,
    generator: torch.Generator,
    adapt: bool = False,
) -> tuple[State, Record]:
    """So many draws of every chain (draw, dataset, chain, ...); adapting, with a trajectory before each."""
    size, chains, _ = state.z.shape
    done = 0

    def trajectory(now: State, stale: bool) -> tuple[State, Record]:
        nonlocal done
        now = State(now.z, *stack.gradient(now.z)) if stale else now
        length = 0.5 * math.pi * (0.5 + float(torch.rand(1, generator=generator)))
        steps = max(1, min(64, round(length / float(kernel.step.median()))))
        moved = move(stack, now, kernel.metric, kernel.step, steps, generator)
        done += 1
        if adapt:
            gap = moved.probability.mean(1)[:, None, None] - TARGET
            kernel.step = kernel.step * torch.exp(2 / math.sqrt(done) * gap)
        return moved.state, {"acceptance_rate": moved.probability, "diverging": moved.diverging}

    bells = kernel.bells
    flat = bells.sample(n * chains, generator)
    values, log_q = stack.values(flat), bells.log_prob(flat)
    flat, values, log_q = (
        t.reshape(size, n, chains, *t.shape[2:]).movedim(1, 0) for t in (flat, values, log_q)
    )
    jumps = Jumps.to(flat, values, log_q, bells.log_prob)
    every = 1 if adapt else EVERY
    state, found = strokes(state, n, every, trajectory, jumps, generator)
    return State(state.z, *stack.gradient(state.z)), found


def _alone(found: Record, i: int, density: Density, ess: int, chains: int, seed: int) -> None:
    """Fit one dataset on its own, and put what comes of it in its place."""
    length = found["z"].shape[2]
    try:
        draws = ensemble.run(density, seed=seed + i, ess=ess, chains=chains, least=length)
    except RunError:
        return
    keep = np.linspace(0, draws.z.shape[1] - 1, length).round().astype(int)
    z = draws.z[:, keep]
    reached, agreed = _quality(z[None])
    found["z"][i] = z
    for name in STATS:
        found[name][i] = torch.as_tensor(draws.stats[name])[:, keep]
    for name, values in density.constrain(z.flatten(0, 1)).items():
        found[DRAWN + name][i] = values.reshape(chains, length, *values.shape[1:])
    found["bulk_ess"][i], found["nested_r_hat"][i] = reached[0], agreed[0]
    found["basins"][i] = int(str(draws.attrs["basins"]))
    found["settled"][i] = bool(reached[0] >= 0.9 * ess) and bool(agreed[0] <= _allowed(reached)[0])


def _tree(
    model: Model,
    datasets: Sequence[xr.Dataset],
    first: Density,
    found: Record,
    about: dict[str, Any],
) -> xr.DataTree:
    """The run of all datasets in ArviZ's schema, with one more dimension."""
    numbers = np.arange(len(datasets))
    chains, length = found["z"].shape[1:3]
    coords = {"chain": np.arange(chains), "draw": np.arange(length), "dataset": numbers}

    def drawn(values: Tensor, name: str = "") -> tuple[tuple[str, ...], np.ndarray]:
        rest = [f"{name}_dim_{k}" for k in range(values.dim() - 3)]
        return ("chain", "draw", "dataset", *rest), values.movedim(0, 2).numpy()

    names = [name.removeprefix(DRAWN) for name in found if name.startswith(DRAWN)]
    posterior = {name: drawn(found[DRAWN + name], name) for name in names}
    observed = {
        name: (("dataset", *datasets[0][name].dims), np.stack([d[name].values for d in datasets]))
        for name in first.observed
    }
    groups = {
        "posterior": xr.Dataset(posterior, coords),
        "sample_stats": xr.Dataset({name: drawn(found[name]) for name in STATS}, coords),
        "fits": xr.Dataset(
            {name: ("dataset", found[name].numpy()) for name in FIGURES}, {"dataset": numbers}
        ),
        "observed_data": xr.Dataset(observed, {"dataset": numbers}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = about
    return tree


def _about(
    model: Model,
    first: Density,
    datasets: Sequence[xr.Dataset],
    prior_name: str,
    seed: int,
    seconds: float,
    options: dict[str, Any],
) -> dict[str, Any]:
    whole = hashlib.sha256("".join(map(digest, datasets)).encode()).hexdigest()
    return {
        "inference_library": "atomzoo",
        "inference_library_version": library_version("atomzoo"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model.name,
        "kind": model.sees,
        "prior_set": prior_name,
        "prior": json.dumps(dict.fromkeys(first.prior, "scaled to each dataset")),
        "runner": "ensemble",
        "runner_options": json.dumps(options),
        "device": first.device,
        "seed": seed,
        "seconds": seconds,
        "datasets": len(datasets),
        "data_sha256": whole,
        "versions": json.dumps({name: library_version(name) for name in LIBRARIES}),
    }
