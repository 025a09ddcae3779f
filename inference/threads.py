"""Threads: one for the operations on small tensors, and others that take a share of many batches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from typing import Any

import torch

__all__ = ["one_thread", "shared"]

# Threads that may help the one that asks.
_HELPERS: ContextVar[int] = ContextVar("helpers", default=0)


@contextlib.contextmanager
def one_thread(*, alone: bool = False) -> Iterator[None]:
    """Small tensors are slower on several threads than on one: those that Torch may use take whole batches instead.

    Args:
        alone: whether the other processors are busy with other processes.
    """
    threads = torch.get_num_threads()
    helpers = max(_HELPERS.get(), threads - 1)
    token = _HELPERS.set(0 if alone else helpers)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _HELPERS.reset(token)


def shared(function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """What a function gives of every part, which threads share where it lets go of Python's lock."""
    hands = min(_HELPERS.get() + 1, len(parts))
    if hands < 2:
        return [function(part) for part in parts]

    def some(share: Sequence[Any]) -> list[Any]:
        return [function(part) for part in share]

    ends = [len(parts) * i // hands for i in range(hands + 1)]
    first, *others = (parts[a:b] for a, b in pairwise(ends))
    coming = [_pool().submit(some, share) for share in others]
    return some(first) + [found for future in coming for found in future.result()]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "atomzoo")


# Threads do not come along with a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
