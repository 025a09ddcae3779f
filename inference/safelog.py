"""Pyro's logarithm with a bounded gradient, in plain operations.

`pyro.ops.special.safe_log` is an autograd function without a rule for `vmap`. Hidden Markov models and the enumeration
in Pyro's own distributions call it, and so may a story. Here it stands in for as long as a density is evaluated; it
gives the same values and gradients, so that nobody sees a difference who calls Pyro's in the meantime.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

import torch
from pyro.ops import special
from torch import Tensor

__all__ = ["safe_log_under_vmap"]

_THEIRS = special._SafeLog
_LOCK = threading.Lock()
_inside = [0]


class _SafeLog:
    """What `safe_log` calls."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """The logarithm, with the gradient 1 / max(x, eps)."""
        fixed = x.detach()
        return fixed.log() + (x - fixed) / fixed.clamp(min=torch.finfo(x.dtype).eps)


@contextlib.contextmanager
def safe_log_under_vmap() -> Iterator[None]:
    """Let `safe_log` work under `vmap` in this block; Pyro is as before when the last thread has left it."""
    with _LOCK:
        _inside[0] += 1
        special._SafeLog = _SafeLog
    try:
        with warnings.catch_warnings():
            # Pyro clamps in place on the way there, which vmap does row by row, and says so.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            yield
    finally:
        with _LOCK:
            _inside[0] -= 1
            if not _inside[0]:
                special._SafeLog = _THEIRS
