"""Simulated scenes: data as an instrument would give them, with the truth beside them as `true_*`.

A scene is a function of a random generator and its parameters; `@scene` puts it on the list.

Example:
    >>> wall = simulate("wall_second_order", seed=1, noise=0.02)
    >>> float(wall.true_noise)
    0.02
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pkgutil import iter_modules
from typing import Any

import numpy as np
import xarray as xr

from .kinds import DataError, validate

# A gibibyte of numbers; beyond it no file of ours is read either.
MOST_ELEMENTS = 10**8

__all__ = ["Scene", "find_scene", "scene", "scenes", "simulate"]


@dataclass(frozen=True)
class Scene:
    """A simulator with its parameters and their defaults.

    Attributes:
        name: what it is called everywhere.
        make: function of a `numpy.random.Generator` and the parameters.
    """

    name: str
    make: Callable[..., xr.Dataset]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return inspect.cleandoc(self.make.__doc__ or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters and their defaults."""
        signature = inspect.signature(self.make).parameters
        return {name: p.default for name, p in list(signature.items())[1:]}

    def __call__(self, *, seed: int = 0, **parameters: Any) -> xr.Dataset:
        """Simulate; the result depends on the seed and the parameters, nothing else."""
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            raise DataError(
                f"scene {self.name} has no parameter {', '.join(unknown)}; "
                f"it has {', '.join(self.parameters)}"
            )
        given = {name: self._as_default(name, value) for name, value in parameters.items()}
        self._check_size(given)
        made = self.make(np.random.default_rng(seed), **given)
        made = made.assign_attrs(scene=self.name, seed=seed)
        # What is needed to simulate it again; the defaults speak for themselves.
        return validate(made.assign_attrs(parameters=json.dumps(given)) if given else made)

    def _check_size(self, given: dict[str, Any]) -> None:
        """Sizes whose product no memory holds are refused before the memory is gone."""
        whole = [v for v in {**self.parameters, **given}.values() if type(v) is int and v > 0]
        if prod(whole) > MOST_ELEMENTS:
            raise DataError(
                f"scene {self.name}: {' × '.join(map(str, whole))} is above the limit of "
                f"{MOST_ELEMENTS:g} elements; simulate something smaller"
            )

    def _as_default(self, name: str, value: Any) -> Any:
        """A parameter as the type of its default, so that `rows=3.0` and `rows="3"` mean `rows=3`."""
        default = self.parameters[name]
        if default is None or isinstance(value, type(default)):
            return value
        if isinstance(default, str):
            # A name that looks like a number was read as one: `walls=180`.
            return str(value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"scene {self.name}: {name}={value!r} should be like its default {default!r}"
            ) from None
        if isinstance(default, int) and not number.is_integer():
            raise DataError(f"scene {self.name}: {name} must be a whole number, found {value!r}")
        return type(default)(number)


_SCENES: dict[str, Scene] = {}


def scene(make: Callable[..., xr.Dataset]) -> Scene:
    """Register a simulator under its function's name."""
    made = Scene(make.__name__, make)
    _SCENES[made.name] = made
    return made


def scenes() -> list[Scene]:
    """Every scene, by name."""
    for found in iter_modules(import_module(__package__).__path__):
        import_module(f".{found.name}", __package__)
    return [_SCENES[name] for name in sorted(_SCENES)]


def find_scene(name: str) -> Scene:
    """A scene by name."""
    known = {s.name: s for s in scenes()}
    if name not in known:
        raise DataError(f"there is no scene {name!r}; there are {', '.join(known)}")
    return known[name]


def simulate(name: str, *, seed: int = 0, **parameters: Any) -> xr.Dataset:
    """Simulate a scene by name."""
    return find_scene(name)(seed=seed, **parameters)
