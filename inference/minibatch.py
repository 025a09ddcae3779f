"""The density of some units at a time, their likelihood weighed up to that of all of them.

Over random batches of one size its mean is the density of all units, value and gradient alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..models.model import View, sampled
from ..models.priors import ModelError
from .density import Density, Values, home, sum_product
from .runs import RunError

__all__ = ["Minibatch"]

# Of the pointwise likelihood of a batch, by itself and among all units.
SAME = 1e-9


class Minibatch(Density):
    """Some units of another density, along its longest unit dimension.

    Attributes:
        along: that dimension.
        units: how many there are along it.
        size: how many of them a batch has.
        weight: what the likelihood of a batch counts.
    """

    def __init__(self, whole: Density, size: int) -> None:
        sizes = {dim: whole.view.sizes[dim] for dim in whole.unit_axes}
        if not sizes:
            raise RunError(f"{whole.model.name} has no exchangeable units to take a batch of")
        self.along = max(sizes, key=lambda dim: sizes[dim])
        self.units, self.size = sizes[self.along], size
        if not 1 <= size < self.units:
            raise RunError(f"batch must be from 1 to {self.units - 1}, found {size}")
        self.weight = self.units / size
        self.whole, self._full = whole, View(whole.data, whole.device)
        _check_plates(whole, self.along)
        mask = None if whole.mask is None else self._part(whole.mask, whole.unit, self._first)
        try:
            super().__init__(
                whole.model,
                whole.data.isel({self.along: slice(size)}),
                whole.prior,
                mask=None if mask is None else home(mask).numpy(),
                device=whole.device,
            )
        except (ModelError, RuntimeError, ValueError, IndexError) as error:
            raise _needs_all(whole, self.along) from error
        self.networks = whole.networks
        if self.networks is None:
            self._check_same()

    @property
    def _first(self) -> Tensor:
        return torch.arange(self.size)

    def take(self, places: Tensor) -> None:
        """Let the batch be the units at these places."""
        for name, array in self._full.data.variables.items():
            if self.along in array.dims and array.dtype.kind in "iufb":
                tensor = getattr(self._full, str(name))
                # A coordinate is shaped to broadcast, but its own dimension stays the first.
                axis = array.dims.index(self.along)
                self.view.read[str(name)] = tensor.index_select(axis, places.to(tensor.device))
        if self.whole.mask is not None:
            self.mask = self._part(self.whole.mask, self.whole.unit, places)
        # A trace holds the data that it was bound to.
        self._traces = {}

    def draw(self) -> None:
        """Let the batch be units at random, by torch's own random numbers."""
        self.take(torch.randperm(self.units)[: self.size])

    def _part(self, mask: Tensor, unit: tuple[str, ...], places: Tensor) -> Tensor:
        return mask.index_select(unit.index(self.along), places.to(mask.device))

    def _total(self, z: Tensor | Values, held: Mapping[str, Tensor] | None) -> Tensor:
        """Log density of the batch, its data weighed for all."""
        factors, latents = self.factors(z, held)
        weighed = [replace(f, value=self.weight * f.value) if f.is_data else f for f in factors]
        total = sum_product(weighed, latents.plates_of_axis, self.plate_sizes)
        return total.reshape(()) + sum(latents.jacobian, torch.zeros((), dtype=torch.float64))

    def _shape_key(self) -> tuple[Any, ...]:
        return "minibatch", self.weight, *super()._shape_key()

    def _check_same(self) -> None:
        """Refuse a story in which what a unit shows depends on the others."""
        if [(s.name, s.shape) for s in self.sites] != [(s.name, s.shape) for s in self.whole.sites]:
            raise _needs_all(self.whole, self.along)
        z = self.whole.initial(4, 0)
        axis = 1 + list(self.whole.unit_axes).index(self.along)
        everywhere = self.whole.pointwise(z)
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            places = torch.randperm(self.units, generator=generator)[: self.size]
            self.take(places)
            alone, among = self.pointwise(z), everywhere.index_select(axis, places)
            if not torch.allclose(alone, among, rtol=SAME, atol=SAME, equal_nan=True):
                raise _needs_all(self.whole, self.along)


def _needs_all(whole: Density, along: str) -> RunError:
    return RunError(
        f"{whole.model.name} cannot be told of a part of {along!r} alone: leave out batch"
    )


def _check_plates(whole: Density, along: str) -> None:
    """Refuse what weighing up would bias."""
    name = whole.model.name
    if whole.networks is None:
        local = [site.name for site in [*whole.sites, *whole.discrete] if site.local]
        if local:
            raise RunError(
                f"{name}: units have latents of their own ({', '.join(local)}): leave out batch"
            )
        if whole.alternatives:
            raise RunError(
                f"{name}: {whole.alternatives[0].name} is summed out over all data at once: leave out batch"
            )
    with (
        whole.drawing(None),
        pyro.poutine.trace() as tracer,
        whole.handlers(),
    ):
        whole.story()
    for observed, node in sampled(tracer.trace):
        if node["infer"].get("is_data"):
            dims = whole.view.dims(observed)
            if along not in dims[: len(dims) - node["fn"].event_dim]:
                raise RunError(
                    f"{name}: {observed!r} is not seen unit by unit along {along!r}: leave out batch"
                )
