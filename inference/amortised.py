"""Models that are a class with networks, a `model` and a `guide`: their bound, their draws, and held-out units.

What the guide misses, the importance-weighted bound of held-out data shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..models.model import sampled
from .density import Density, home
from .minibatch import Minibatch

__all__ = ["bound", "draw", "held_out"]


class _Weighed(Messenger):
    """Weighs whatever is inside the plate of a minibatch's units up to all units."""

    def __init__(self, batch: Minibatch) -> None:
        super().__init__()
        self.axis, self.weight = batch.unit_axes[batch.along], batch.weight

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.dim == self.axis for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.weight


def bound(density: Density, size: int = 0) -> Callable[[], Tensor]:
    """A function that estimates the evidence lower bound with one draw of the guide, differentiable in the networks.

    Args:
        density: of an amortised model.
        size: units in a batch, drawn anew each time; 0 for all.
    """
    batch = Minibatch(density, size) if size else None
    part, elbo = batch or density, Trace_ELBO()

    def weighed(story: Callable[[], Any]) -> Callable[[], Any]:
        return _Weighed(batch)(story) if batch else story

    def estimate() -> Tensor:
        if batch:
            batch.draw()
        found: Tensor = -elbo.differentiable_loss(weighed(_model(part)), weighed(_guide(part)))
        return found

    return estimate


def _model(density: Density) -> Callable[[], None]:
    def model() -> None:
        with density.handlers():
            density.story()

    return model


def _guide(density: Density) -> Callable[[], Any]:
    networks: Any = density.networks

    def guide() -> Any:
        with density.there():
            return networks.guide(density.view, density.prior)

    return guide


def draw(density: Density) -> Tensor:
    """A draw of the guide as a flat vector."""
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
    with density.drawing(seed):
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
    found: np.ndarray = home(score).numpy()[units]
    return found


def _per_unit(density: Density, trace: Any, sign: float) -> Tensor:
    total = torch.zeros(density.unit_shape, dtype=torch.float64, device=density.device)
    for _, node in sampled(trace):
        term = node["fn"].log_prob(node["value"])
        plates = frozenset(f.dim for f in node["cond_indep_stack"] if f.dim is not None)
        if not set(density.unit_axes.values()) <= plates:
            continue
        total = total + sign * density.as_units(term)
    return total
