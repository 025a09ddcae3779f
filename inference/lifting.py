"""The numbers inside a prior as a list of tensors, so that one trace serves every prior of the same structure."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Transform

from ..models.priors import Prior

__all__ = ["Lifted", "lift"]


@dataclass(frozen=True)
class Lifted:
    """A prior taken apart.

    Attributes:
        prior: the whole.
        tensors: the numbers in its distributions, in a fixed order.
        structure: everything else, hashable: types, shapes and known values.
    """

    prior: Prior
    tensors: list[Tensor]
    structure: tuple[Any, ...]

    def rebuilt(self, tensors: list[Tensor] | None = None) -> Prior:
        """The same prior, by default with the same numbers; none of its distributions checks values any more."""
        left = iter(self.tensors if tensors is None else tensors)
        return Prior({name: _put(e, left) for name, e in self.prior.items()}, self.prior.name)

    def in_double(self, device: str = "cpu") -> Prior:
        """The same prior on a device, in double precision, which a distribution that text cannot hold may not have."""
        moved = [t.to(device) for t in self.tensors]
        return self.rebuilt([t.double() if t.is_floating_point() else t for t in moved])


def lift(prior: Prior) -> Lifted:
    """Take a prior apart."""
    tensors: list[Tensor] = []
    structure = tuple((name, _take(entry, tensors)) for name, entry in prior.items())
    return Lifted(prior, tensors, structure)


def _take(part: Any, tensors: list[Tensor]) -> Any:
    """The structure of a part; its tensors go to the end of the list."""
    if isinstance(part, Tensor):
        tensors.append(part)
        return part.dtype, tuple(part.shape)
    if isinstance(part, Distribution | Transform):
        inner = [(key, _take(value, tensors)) for key, value in _attributes(part)]
        return type(part), tuple(inner)
    if isinstance(part, list | tuple):
        return type(part), tuple(_take(item, tensors) for item in part)
    return part if isinstance(part, int | float | str | None) else type(part)


def _put(part: Any, left: Any) -> Any:
    """A copy of a part with the next tensors in place of its own."""
    if isinstance(part, Tensor):
        return next(left)
    if isinstance(part, Distribution | Transform):
        made = copy.copy(part)
        for key, value in _attributes(part):
            made.__dict__[key] = _put(value, left)
        if isinstance(made, Distribution):
            # What was expanded or reshaped carries its own order to check every value.
            made._validate_args = False
        return made
    if isinstance(part, list | tuple):
        return type(part)(_put(item, left) for item in part)
    return part


def _attributes(part: Any) -> list[tuple[str, Any]]:
    """What may hold numbers, without a transform's weak reference to its inverse and its memory of the last value."""
    skipped = ("_inv", "_cached_x_y", "_batch_shape", "_event_shape")
    return [(key, value) for key, value in sorted(part.__dict__.items()) if key not in skipped]
