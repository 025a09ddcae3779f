"""Draws of a proposal made draws of the posterior: weights, the shape of their tail, and the evidence.

References: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25 (2024).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .resampling import systematic

__all__ = ["chosen", "mean_weight", "smoothed"]

# Log weights that differ by less have no tail but rounding.
ALIKE = 1e-4


def mean_weight(log_weights: Tensor) -> tuple[float, float]:
    """Log of the mean weight, which is the evidence, and its standard error by the delta method."""
    n = len(log_weights)
    top = log_weights.max()
    scaled = torch.exp(log_weights - top)
    mean = scaled.mean()
    return float(top + mean.log()), float(scaled.std() / mean / math.sqrt(n))


def smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed log weights and the shape k of their tail, minus infinity where all weights are alike."""
    from arviz_stats.base import array_stats

    if log_weights.max() - log_weights.min() < ALIKE:
        return torch.zeros_like(log_weights), -math.inf
    # ArviZ takes log likelihoods, whose importance ratios are their inverses.
    smooth, k = array_stats.psislw(-log_weights.numpy())
    return torch.as_tensor(np.asarray(smooth)), float(k)


def chosen(log_weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Places of n draws by systematic resampling, shuffled so that groups are alike."""
    places = systematic(log_weights[None], n, generator)[0]
    return places[torch.randperm(n, generator=generator)]
