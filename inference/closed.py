"""The posterior that a model brings itself, as a runner like any other.

Where a posterior is closed, or every unit of the data has latents of its own, no sampler is needed: the model knows
how to draw. Its story stays what it claims, and what it draws can be held against any sampler on the same story.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from .density import Density
from .runs import POINTWISE_LIMIT, Draws, Progress, RunError

__all__ = ["run"]

CHAINS, FEW = 4, 8


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    draws: int = 1000,
) -> Draws:
    """Ask the model for independent draws of its posterior.

    Args:
        density: what to draw from.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used, there are no steps to go on from.
        draws: draws in all; fewer are given where the data are so many that more could not be kept.
    """
    model = density.model
    if model.posterior is None:
        raise RunError(f"{model.name} brings no posterior of its own; use another runner")
    if draws < 1:
        raise RunError("draws must be at least 1")
    report = progress or (lambda done, total, text: None)
    report(0, 1, "the model's own posterior")
    more: dict[str, Any] = {}
    if density.mask is not None:
        if "mask" not in inspect.signature(model.posterior).parameters:
            raise RunError(f"the posterior that {model.name} brings cannot leave units out")
        more["mask"] = density.mask
    # No more than their pointwise likelihoods are kept of, in whole chains; where none are, a few.
    most = max(FEW, POINTWISE_LIMIT // max(1, density.plate_total) // CHAINS * CHAINS)
    wanted = min(draws, most)
    try:
        told = model.posterior(density.view, density.prior, draws=wanted, seed=seed, **more)
    except FloatingPointError as error:
        raise RunError(f"{model.name} found no posterior: {error}") from error
    z = density.unconstrain_all(told.draws)
    chains = CHAINS if len(z) % CHAINS == 0 else 1
    attrs = {"independent": 1, **told.attrs}
    if told.log_evidence is None:
        attrs["evidence_problem"] = "the posterior that the model brings has no evidence"
    report(1, 1, "done")
    return Draws(
        z.reshape(chains, -1, density.dim),
        {},
        told.log_evidence,
        told.log_evidence_se,
        attrs,
        told.derived,
    )
