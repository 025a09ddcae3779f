"""Laplace approximation made honest: every basin found, and importance sampling to correct its shape.

Many starts climb to their modes together. A mixture of Student-t distributions with the modes' curvatures proposes
draws, is refitted to the weighted draws a few times, and the last weights correct it. Their Pareto k says how far to
trust the answer: in a few dimensions it is as good as exact, in many it fails and says so.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import torch
from torch import Tensor

from .density import Density
from .importance import chosen, mean_weight, smoothed
from .mixture import Mixture, Pool, best_proposal, weigh
from .modes import find_modes
from .runs import Draws, Progress, RunError

__all__ = ["no_latents", "run"]


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int = 500,
    starts: int = 32,
    proposals: int = 8000,
    refits: int = 10,
) -> Draws:
    """Draw independently from the posterior by importance resampling around its modes.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used, the run takes seconds.
        chains: groups that the draws are given in.
        draws: draws a group.
        starts: points to climb from, drawn from the prior.
        proposals: importance draws of the last round.
        refits: most rounds of growing the proposal where it falls short of the posterior.
    """
    if min(chains, draws, starts, proposals) < 1:
        raise RunError("chains, draws, starts and proposals must be at least 1")
    report = progress or (lambda done, total, text: None)
    if density.dim == 0:
        return no_latents(density, chains, draws)
    generator = torch.Generator().manual_seed(seed)
    report(0, 3, "climbing to the modes")
    modes, heights, factors = find_modes(density, starts, seed)
    report(1, 3, "fitting the proposal")
    pool = Pool(density, proposals // 4, generator)
    mixture = best_proposal(pool, modes, heights, factors, refits)
    report(2, 3, "drawing")
    z, log_weights = weigh(density, mixture, proposals, generator)
    evidence, error = mean_weight(log_weights)
    smooth, k = smoothed(log_weights)
    weights = torch.softmax(smooth, 0)
    places = chosen(smooth, chains * draws, generator)
    report(3, 3, "done")
    stats = {"lp": density.log_prob(z[places]).detach().numpy().reshape(chains, draws)}
    shares = _basin_weights(modes, factors, z, weights)
    attrs = {
        "pareto_k": k,
        "importance_ess": float(1 / (weights**2).sum()),
        "density_path": density.path,
        "basins": len(modes),
        "basin_weights": json.dumps(shares),
    }
    return Draws(z[places].reshape(chains, draws, -1), stats, evidence, error, attrs)


def no_latents(density: Density, chains: int, draws: int) -> Draws:
    """A model whose latents are all discrete: the sum is the answer."""
    z = torch.zeros(chains, draws, 0, dtype=torch.float64)
    value = float(density.log_prob(torch.zeros(0, dtype=torch.float64)))
    stats = {"lp": np.full((chains, draws), value)}
    return Draws(z, stats, value, 0.0, {"pareto_k": -math.inf, "basins": 1})


def _basin_weights(modes: Tensor, factors: Tensor, z: Tensor, weights: Tensor) -> list[float]:
    """Posterior weight of each basin: every draw belongs to the mode that is nearest in its own metric."""
    even = torch.full((len(modes),), 1 / len(modes), dtype=torch.float64)
    nearest = Mixture(even, modes, factors, 5.0).component_log_prob(z).argmax(-1)
    return [round(float(weights[nearest == k].sum()), 4) for k in range(len(modes))]
