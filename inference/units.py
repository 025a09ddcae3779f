"""What a run says of every unit: the probabilities of its classes, and what the model derives from the draws.

The global parameters may have been learnt from some of the units; this is told for all of them, some at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..models.model import View
from ..models.priors import ModelError
from .density import Density, Site

__all__ = ["told_of_units"]

# Draws that class probabilities are averaged over, where all units are told at once and where they are told in parts.
DRAWS, FEW_DRAWS = 1000, 32
# Units whose classes are worked out together: what it takes then stays in a processor's cache.
TOGETHER = 4096
# Coordinates and variables of a unit that say where it is.
PLACES = ("position", "center", "index")


def told_of_units(
    density: Density,
    z: Tensor,
    held: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    every: xr.Dataset | None,
    derived: xr.Dataset | None,
) -> dict[str, xr.Dataset]:
    """The groups `classes` and `derived` of a run, those that there are.

    Args:
        density: that the draws are of.
        z: the draws.
        held: the dataset's discrete latents of every draw.
        values: the constrained draws.
        every: all units, where the density is of some of them.
        derived: what the runner knows besides; where it does, the model derives nothing.
    """
    whole = density.data if every is None else every
    found: dict[str, xr.Dataset] = {}
    if density.classes:
        found["classes"] = _classes(density, z, held, whole)
    parts = [] if derived is None else [derived]
    if density.model.derive is not None:
        rows = _evenly(len(z), FEW_DRAWS)
        some = {name: value[rows] for name, value in values.items()}
        view = density.view if whole is density.data else _view(density, whole)
        with torch.no_grad():
            parts.append(density.model.derive(view, density.prior, some))
    if parts:
        found["derived"] = xr.merge(parts, compat="override", join="override")
        found |= _named(density, found)
    return found


def _named(density: Density, found: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Classes with the names that the model gives them once it knows them: coordinates of what it derives."""
    names = {
        f"{site.name}_class": found["derived"][site.name].values
        for site in density.classes
        if site.name not in density.model.labels and site.name in found["derived"].coords
    }
    return {"classes": found["classes"].assign_coords(names)} if names else {}


def _view(density: Density, data: xr.Dataset) -> View:
    return View(data, density.device)


def _evenly(length: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def _classes(
    density: Density, z: Tensor, held: Mapping[str, Tensor], whole: xr.Dataset
) -> xr.Dataset:
    """Posterior probabilities of every unit's classes, averaged over the draws."""
    if whole is density.data:
        found = _probabilities(density, z, held, DRAWS)
    else:
        (unit,) = density.model.unit
        size = whole.sizes[unit]
        parts = []
        for start in range(0, size, TOGETHER):
            piece = whole.isel({unit: slice(start, start + TOGETHER)})
            here = Density(density.model, piece, density.prior, device=density.device)
            parts.append(_probabilities(here, z, held, FEW_DRAWS))
        found = xr.concat(parts, unit)
    for site in density.classes:
        names = _labels(density, site)
        if names is not None:
            found = found.assign_coords({f"{site.name}_class": names})
    places = {n: whole[n] for n in PLACES if n in whole and n not in found}
    return found.assign(places)


def _probabilities(
    density: Density, z: Tensor, held: Mapping[str, Tensor], most: int
) -> xr.Dataset:
    rows = _evenly(len(z), most)
    some = {k: v[rows] for k, v in held.items()}
    told = density.class_probabilities(z[rows], some)
    found = {}
    for site in density.classes:
        dims = [plate for _, plate in sorted(site.plates)]
        found[site.name] = ((*dims, f"{site.name}_class"), told[site.name].mean(0).numpy())
    made = xr.Dataset(found)
    return made.assign_coords({d: density.data[d] for d in made.dims if d in density.data.coords})


def _labels(density: Density, site: Site) -> list[str] | None:
    """Names of the classes of a latent, None where the model has none."""
    given = density.model.labels.get(site.name)
    if given is None:
        return None
    names = [str(name) for name in (given(density.view) if callable(given) else given)]
    if len(names) != site.size:
        raise ModelError(
            f"{density.model.name} names {len(names)} classes of {site.name!r}, which has {site.size}"
        )
    return names
