"""Stochastic variational inference, made honest by importance sampling.

A guide, a distribution with parameters, is fitted to the posterior by climbing the evidence lower bound (ELBO) until
its noise hides the gain. The bound's gradient is made of the density's own traced gradient, 64 draws at a time. Then
draws of the guide are importance-resampled with Pareto-smoothed weights, whose k says how far to trust the answer.
What no draw of the guide sees, draws around the modes show: a guide that leaves out a basin has an infinite k.

A model that is a class with networks brings its own guide; see `amortised`.

References: Kucukelbir et al., Automatic differentiation variational inference, JMLR 18 (2017); Roeder, Wu and Duvenaud,
Sticking the landing, arXiv 1703.09194 (2017); Yao, Vehtari, Simpson and Gelman, Yes, but did it work?, arXiv 1802.02538
(2018).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from . import amortised
from .checkpoint import Checkpoint
from .density import BATCH, Density
from .guides import GUIDES, Guide
from .importance import chosen, mean_weight, smoothed
from .laplace import no_latents
from .minibatch import Minibatch
from .mixture import Mixture, effective_draws, start_mixture
from .modes import find_modes, spread
from .runs import Draws, Progress, RunError
from .training import Training

__all__ = ["run"]

# On walls, regressions and hierarchies a flow is right where normal distributions have to report a failure.
DEFAULT = "flow"
# Learning rate of networks.
NETWORK_RATE = 5e-3
# Gains smaller than this are none: of networks in nats a unit; of a guide, a hundredth of an error of one mean.
NETWORK_GAIN, GUIDE_GAIN = 1e-3, 1e-4
# Draws to compare starts with, and to compute the bound of trained networks with.
LOOK, BOUNDS = 4 * BATCH, 50
# Pareto k up to which an importance sample and its evidence are reliable (Vehtari et al. 2024).
RELIABLE_K = 0.7
# A guide misses what it has ten times too little of. Its own draws hardly tell: with 3 % of eight schools missed k was
# 0.4 and the evidence 5 standard errors off. Beyond this share of the posterior the guide has failed.
THIN, MISSED = 10.0, 0.01
# Draws around the modes that look for it, and the tails that they are drawn with.
CHECKS, CHECK_TAILS = 2000, 5.0


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int | None = None,
    guide: str | None = None,
    rank: int = 0,
    batch: int = 0,
    steps: int = 5000,
    rate: float | None = None,
    patience: int = 200,
    starts: int = 32,
    proposals: int = 8000,
) -> Draws:
    """Fit a guide to the posterior and draw from it, by importance resampling where it is not the model's own.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: file to keep the training in, and to go on from when it is there. It stays when all is done:
            whoever gave it removes it once the run is safe.
        chains: groups that the draws are given in; they share the guide.
        draws: draws a group; by default 500, of a model with networks 100.
        guide: `normal` for independent normals, `lowrank`, `full` for a normal of any covariance, or `flow`, the
            default. A model with networks has its own.
        rank: directions that `lowrank` has besides the diagonal, 0 for the square root of the dimension.
        batch: exchangeable units whose likelihood is computed at a time, 0 for all.
        steps: at most so many steps of training.
        rate: of learning, at the start; by default 0.03, of networks and flows 0.005.
        patience: steps in a window; windows that gain no more than their noise lower the rate, then end the training.
        starts: points to climb from, drawn from the prior, to begin the guide at the best mode.
        proposals: importance draws from the guide.
    """
    least = {"chains": chains, "steps": steps, "starts": starts, "proposals": proposals}
    least |= {"draws": 1 if draws is None else draws, "patience": patience - 1}
    for name, value in least.items():
        if value < 1:
            raise RunError(f"{name} must be at least {2 if name == 'patience' else 1}")
    if rank < 0 or batch < 0:
        raise RunError("rank and batch must be at least 0, which stands for a default")
    if rate is not None and not 0 < rate < math.inf:
        raise RunError(f"rate must be a positive number, found {rate}")
    if guide is not None and (guide not in GUIDES or density.networks is not None):
        own = f"; {density.model.name} brings its own: leave it out"
        known = f"; there are {', '.join(GUIDES)}"
        raise RunError(f"there is no guide {guide!r}{own if density.networks else known}")
    report = progress or (lambda done, total, text: None)
    plan = _Plan(seed, guide or DEFAULT, rank, batch, steps, rate, patience, starts)
    store = Checkpoint(checkpoint, "svi", density, asdict(plan))
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        if density.networks is not None:
            return _with_networks(density, plan, chains, draws or 100, store, report)
        return _with_guide(density, plan, chains, draws or 500, proposals, store, report)


@dataclass(frozen=True)
class _Plan:
    """All that training depends on."""

    seed: int
    guide: str
    rank: int
    batch: int
    steps: int
    rate: float | None
    patience: int
    starts: int


def _with_networks(
    density: Density, plan: _Plan, chains: int, draws: int, store: Checkpoint, report: Progress
) -> Draws:
    """Train a model's networks and guide, then draw its latents from the guide."""
    networks = density.networks
    assert networks is not None
    training = Training(networks)
    if arrays := store.load():
        training.restore(arrays)
    training.climb(
        amortised.bound(density, plan.batch),
        steps=plan.steps,
        rate=plan.rate or NETWORK_RATE,
        patience=plan.patience,
        least=NETWORK_GAIN * density.plate_total,
        longest=10.0 * density.plate_total,
        store=store,
        kept={},
        report=report,
    )
    for parameter in networks.parameters():
        parameter.requires_grad_(False)
    report(plan.steps, plan.steps, "drawing")
    estimate = amortised.bound(density)
    with torch.no_grad():
        bounds = torch.stack([estimate() for _ in range(BOUNDS)])
        z = torch.stack([amortised.draw(density) for _ in range(chains * draws)])
    return Draws(z.reshape(chains, draws, -1), {}, attrs=_told(training, bounds))


def _told(training: Training, bounds: Tensor) -> dict[str, Any]:
    """How training went, with estimates of the bound that it reached."""
    return {
        "elbo": float(bounds.mean()),
        "elbo_se": float(bounds.std() / math.sqrt(len(bounds))),
        "steps": training.step,
        "stopped": training.stopped,
    }


def _with_guide(
    density: Density,
    plan: _Plan,
    chains: int,
    draws: int,
    proposals: int,
    store: Checkpoint,
    report: Progress,
) -> Draws:
    """Fit a guide to the flat vector and resample its draws."""
    if density.dim == 0:
        return no_latents(density, chains, draws)
    guide, training, mixture = _begin(density, plan, store, report)
    training.climb(
        _bound(density, guide, plan.batch),
        steps=plan.steps,
        rate=plan.rate or guide.rate,
        patience=plan.patience,
        least=GUIDE_GAIN,
        longest=10.0 * math.sqrt(density.dim),
        store=store,
        kept=_taken_apart(mixture),
        report=report,
    )
    report(plan.steps, plan.steps, "drawing")
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, (1,))))
    with torch.no_grad():
        z, log_q = guide.sample(_noise(guide, proposals, generator))
        value = density.values(z)
        log_weights = value - log_q
        if not torch.isfinite(log_weights).any():
            raise RunError("the posterior is zero at every draw of the guide; check the prior")
        smooth, k = smoothed(log_weights)
        missed = _missed(density, guide, mixture, z, value, log_q, generator)
    k = math.inf if missed > MISSED else k
    places = chosen(smooth, chains * draws, generator)
    attrs = {
        "guide": plan.guide,
        **_told(training, log_weights),
        "pareto_k": k,
        "importance_ess": effective_draws(smooth),
        "missed_share": missed,
        "density_path": density.path,
    }
    evidence, error = mean_weight(log_weights) if k <= RELIABLE_K else (None, None)
    if evidence is None:
        attrs["evidence_problem"] = _problem(k, missed)
    stats = {"lp": value[places].numpy().reshape(chains, draws)}
    return Draws(z[places].reshape(chains, draws, -1), stats, evidence, error, attrs)


def _problem(k: float, missed: float) -> str:
    if missed > MISSED:
        return f"the guide misses {missed:.0%} of the posterior; use smc, or another guide"
    return f"Pareto k of the guide's draws is {k:.2g}; use another guide, or another runner"


def _begin(
    density: Density, plan: _Plan, store: Checkpoint, report: Progress
) -> tuple[Guide, Training, Mixture]:
    """A guide, its training and the mixture around the modes: at the start, or where a checkpoint left them."""
    family = GUIDES[plan.guide]
    if arrays := store.load():
        dim = density.dim
        nowhere = torch.zeros(dim, dtype=torch.float64)
        guide = family(nowhere, torch.eye(dim, dtype=torch.float64), plan.rank)
        training = Training(guide)
        training.restore(arrays)
        return guide, training, _put_together(arrays)
    report(0, plan.steps, "climbing to the modes")
    modes, heights, factors = find_modes(density, plan.starts, plan.seed)
    wide = density.initial(LOOK, plan.seed)
    starts = [*zip(modes, factors, strict=True), (wide.median(0).values, torch.diag(spread(wide)))]
    guides = [family(center, factor, plan.rank) for center, factor in starts]
    bounds = torch.stack([_look(density, guide) for guide in guides])
    guide = guides[int(torch.nan_to_num(bounds, nan=-torch.inf).argmax())]
    return guide, Training(guide), start_mixture(modes, heights, factors, CHECK_TAILS)


def _taken_apart(mixture: Mixture) -> dict[str, np.ndarray]:
    return {name: getattr(mixture, name).numpy() for name in ("weights", "means", "factors")}


def _put_together(arrays: Mapping[str, np.ndarray]) -> Mixture:
    weights, means, factors = (
        torch.as_tensor(arrays[name]) for name in ("weights", "means", "factors")
    )
    return Mixture(weights, means, factors, CHECK_TAILS)


def _noise(guide: Guide, n: int, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(n, guide.noise, dtype=torch.float64, generator=generator)


def _look(density: Density, guide: Guide) -> Tensor:
    """The bound of a guide at the start."""
    with torch.no_grad():
        z, log_q = guide.sample(_noise(guide, LOOK))
        return (density.values(z) - log_q).mean()


class _LogDensity(torch.autograd.Function):
    """The log density at a batch of points, with the gradient that the density computes along with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Density) -> Tensor:
        value, gradient = density.gradient(z)
        ctx.save_for_backward(torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0))
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None


def _bound(density: Density, guide: Guide, size: int) -> Callable[[], Tensor]:
    """A function that estimates the evidence lower bound from one batch of draws."""
    batch = Minibatch(density, size) if size else None

    def estimate() -> Tensor:
        if batch:
            batch.draw()
        z, log_q = guide.sample(_noise(guide, BATCH))
        gain = _LogDensity.apply(z.contiguous(), batch or density) - log_q
        found: Tensor = gain[torch.isfinite(gain)].mean()
        return found

    return estimate


def _missed(
    density: Density,
    guide: Guide,
    mixture: Mixture,
    z: Tensor,
    value: Tensor,
    log_q: Tensor,
    generator: torch.Generator,
) -> float:
    """Share of the posterior where the guide is far too thin, from its draws and others around the modes together."""
    others = mixture.sample(CHECKS, generator)
    own = torch.cat([log_q, guide(others)])
    around = mixture.log_prob(torch.cat([z, others]))
    value = torch.cat([value, density.values(others)])
    both = torch.logaddexp(own + math.log(len(z)), around + math.log(CHECKS))
    log_weights = value - both
    evidence = torch.logsumexp(log_weights, 0)
    thin = value - evidence - own > math.log(THIN)
    return float(torch.softmax(log_weights, 0)[thin].sum())
