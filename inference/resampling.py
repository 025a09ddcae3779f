"""Systematic resampling: as even as draws with given chances can be."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shuffled", "systematic"]


def systematic(log_weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n places in every row by the weights, in ascending order: (row, place) to (row, n)."""
    share = torch.softmax(log_weights, 1).cumsum(1)
    start = torch.rand(len(share), 1, dtype=torch.float64, generator=generator)
    grid = (torch.arange(n, dtype=torch.float64) + start) / n
    # The shares sum to one but for rounding; a grid up to their sum never draws a place of no weight.
    return torch.searchsorted(share, grid * share[:, -1:]).clamp(max=share.shape[1] - 1)


def shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The entries of every row in random order."""
    order = torch.rand(rows.shape, dtype=torch.float64, generator=generator).argsort(1)
    return rows.gather(1, order)
