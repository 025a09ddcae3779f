"""Stochastic variational inference for amortised models: a class with networks, a `model` and a `guide`.

The networks are trained on the evidence lower bound until its smoothed value stops falling; draws come from the
trained guide. What the guide misses, the importance-weighted bound of held-out data shows.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ..models.model import sampled
from .density import Density
from .runs import Draws, Progress, RunError

__all__ = ["held_out", "run"]


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int = 100,
    steps: int = 3000,
    rate: float = 5e-3,
    patience: int = 300,
) -> Draws:
    """Train a model's networks and guide, then draw its latents from the guide.

    Args:
        density: of an amortised model.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used.
        chains: groups that the draws are given in; they share the trained networks.
        draws: draws a group.
        steps: at most so many steps of Adam.
        rate: its learning rate.
        patience: steps without a better smoothed loss before training stops.
    """
    if density.networks is None:
        raise RunError(
            f"svi needs a model with a guide, {density.model.name} has none; use laplace or nuts"
        )
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        losses = _train(density, steps, rate, patience, progress)
        z = torch.stack([_draw(density) for _ in range(chains * draws)])
    attrs = {
        "elbo": -float(np.mean(losses[-50:])),
        "training_steps": len(losses),
        "training_stopped_early": int(len(losses) < steps),
    }
    return Draws(z.reshape(chains, draws, -1), {}, attrs=attrs)


def _train(
    density: Density, steps: int, rate: float, patience: int, progress: Progress | None
) -> list[float]:
    networks = density.networks
    assert networks is not None
    optimizer = torch.optim.Adam(networks.parameters(), lr=rate)
    elbo = Trace_ELBO()
    losses: list[float] = []
    best, best_step, smooth = np.inf, 0, None
    for step in range(steps):
        optimizer.zero_grad()
        loss = elbo.differentiable_loss(_model(density), _guide(density))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 10.0 * density.plate_total)
        optimizer.step()
        value = float(loss.detach())
        if not np.isfinite(value):
            raise RunError(f"the loss is {value} at step {step}; try a smaller rate")
        losses.append(value)
        smooth = value if smooth is None else 0.97 * smooth + 0.03 * value
        # A thousandth of a nat an observation is not progress.
        if smooth < best - 1e-3 * density.plate_total:
            best, best_step = smooth, step
        if step - best_step > patience:
            break
        if progress and step % 20 == 0:
            progress(step, steps, f"training, loss {smooth:.4g}")
    for parameter in networks.parameters():
        parameter.requires_grad_(False)
    return losses


def _model(density: Density) -> Any:
    def model() -> None:
        with density.handlers():
            density.story()

    return model


def _guide(density: Density) -> Any:
    networks: Any = density.networks
    return lambda: networks.guide(density.view, density.prior)


def _draw(density: Density) -> Tensor:
    with torch.no_grad(), pyro.poutine.trace() as tracer:
        _guide(density)()
    values = {name: node["value"] for name, node in sampled(tracer.trace)}
    return density.unconstrain(values)


def held_out(
    density: Density, units: np.ndarray, *, seed: int = 0, particles: int = 256
) -> np.ndarray:
    """Importance-weighted log likelihood of units that the networks were not trained on.

    Args:
        density: of a trained model, over all the data.
        units: which units to score, a mask over the unit dimensions.
        seed: of the draws from the guide.
        particles: draws a unit.

    Returns:
        One number a unit, in the order of `units`.
    """
    totals = []
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), torch.no_grad():
        torch.manual_seed(seed)
        for _ in range(particles):
            with pyro.poutine.trace() as guided:
                _guide(density)()
            with pyro.poutine.trace() as modelled, density.handlers(masked=False):
                pyro.poutine.replay(density.story, trace=guided.trace)()
            totals.append(
                _per_unit(density, modelled.trace, 1.0) + _per_unit(density, guided.trace, -1.0)
            )
    weights = torch.stack(totals)
    score = torch.logsumexp(weights, 0) - np.log(particles)
    found: np.ndarray = score.numpy()[units]
    return found


def _per_unit(density: Density, trace: Any, sign: float) -> Tensor:
    total = torch.zeros(density.unit_shape, dtype=torch.float64)
    for _, node in sampled(trace):
        term = node["fn"].log_prob(node["value"])
        plates = frozenset(f.dim for f in node["cond_indep_stack"] if f.dim is not None)
        if not set(density.unit_axes.values()) <= plates:
            continue
        total = total + sign * density.as_units(term)
    return total
