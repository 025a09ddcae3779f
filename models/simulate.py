"""Simulated data by name: of a scene, or of a model with parameters drawn from its prior.

Example:
    >>> wall = simulate("ferroelectric_wall", seed=1, noise=0.02)
    >>> wall.attrs["kind"], float(wall.true_noise)
    ('profile', 0.02)
    >>> drawn = simulate("wall_bloch", seed=1, prior="PbTiO3", P_s=0.8)
    >>> drawn.attrs["model"], float(drawn.true_P_s)
    ('wall_bloch', 0.8)
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import xarray as xr

from ..datasets.kinds import DataError
from ..datasets.scenes import find_scene, scenes
from .files import find_anywhere
from .model import Model, models

__all__ = ["simulate"]


def simulate(
    name: str | Model, *, seed: int = 0, prior: Any = None, **parameters: Any
) -> xr.Dataset:
    """Simulate data, with the truth beside them as `true_*`.

    Args:
        name: a scene, or a model. Where a model has a scene's name, a prior says that the model is meant.
        seed: the data depend on it and the parameters, nothing else.
        prior: of a model, as in `Model.prior`; what is not given is drawn from it.
        **parameters: values to hold.
    """
    if isinstance(name, str) and prior is None and name in {s.name for s in scenes()}:
        return find_scene(name)(seed=seed, **parameters)
    model = name if isinstance(name, Model) else _model(name)
    return model.simulate(prior=prior, seed=seed, **parameters)


def _model(name: str) -> Model:
    known = [s.name for s in scenes()] + [m.name for m in models()]
    if name in known or ":" in name or name.endswith(".py"):
        return find_anywhere(name)
    near = dict.fromkeys(get_close_matches(name, known, n=3))
    hint = f"did you mean {' or '.join(near)}?" if near else "see `atomzoo scenes`"
    raise DataError(f"there is no scene or model {name!r}; {hint}")
