"""Atoms: the map by what was measured, and by what a model says each atom is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..figures import MARKERS, MODELS, WIDTH, Picture, colour_bar, draw
from ..wording import axis_label, literal
from .base import Seen, picture, species_name
from .histograms import histograms
from .maps import Place, class_maps, dot_size, map_axes, place_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY_ATOMS = 400


@picture("atoms")
def atoms(seen: Seen) -> list[Picture]:
    """Maps by species, intensity and classes, then histograms of what the model predicts."""
    place, depth = place_of(seen.data), _depth(seen.data)
    found = []
    if "species" in seen.data:
        codes = seen.data["species"].values
        labels = {code: species_name(seen.data, code) for code in np.unique(codes)}
        found.append(_codes(place, codes, "species", labels, depth))
    if "intensity" in seen.data:
        found.append(
            _values(
                place, seen.data["intensity"].values, "intensity", seen.units("intensity"), depth
            )
        )
    if seen.best.model is None or seen.best.model.family != "structure":
        # The models of that hall show their classes themselves.
        found += class_maps(seen.best, seen.data)
    if not found:
        found.append(
            _codes(place, np.zeros(len(place.position)), "position", {0: "anywhere"}, depth)
        )
    return found + histograms(seen)


def _depth(data: xr.Dataset) -> str:
    return " (seen along the third axis)" if data.sizes["axis"] > 2 else ""


def _scatter(
    axes: Axes, place: Place, codes: np.ndarray, title: str, labels: Mapping[float, str]
) -> None:
    kinds = np.unique(codes)
    for i, code in enumerate(kinds):
        axes.scatter(
            place.position[codes == code, 0],
            place.position[codes == code, 1],
            s=dot_size(place),
            color=MODELS[i % len(MODELS)],
            marker=MARKERS[i % len(MARKERS)],
            lw=0,
            label=literal(labels.get(code, f"{code:g}")),
            rasterized=len(place.position) > MANY_ATOMS,
        )
    if 1 < len(kinds) <= 12:
        axes.legend(title=literal(title, 16), loc="upper left", bbox_to_anchor=(1, 1))


def _codes(
    place: Place, codes: np.ndarray, name: str, labels: Mapping[float, str], depth: str
) -> Picture:
    kinds, counts = np.unique(codes, return_counts=True)
    said = ", ".join(f"{n} {labels[kind]}" for kind, n in zip(kinds[:8], counts[:8], strict=True))
    return draw(
        lambda figure: _scatter(map_axes(figure, place), place, codes, name, labels),
        f"Map of {len(codes)} atoms by {name}{depth}: {said}.",
        f"{len(codes)} atoms by {name}{depth}.",
        size=(WIDTH, 3.4),
    )


def _values(place: Place, values: np.ndarray, name: str, units: str, depth: str) -> Picture:
    def build(figure: Figure) -> None:
        axes = map_axes(figure, place)
        dots = axes.scatter(
            place.position[:, 0],
            place.position[:, 1],
            c=values,
            s=dot_size(place),
            lw=0,
            cmap="cividis",
            rasterized=len(place.position) > MANY_ATOMS,
        )
        colour_bar(figure, axes, dots, axis_label(name, units))

    return draw(
        build,
        f"Map of {len(values)} atoms coloured by {name}{depth}.",
        f"{len(values)} atoms by {name}{depth}.",
        size=(WIDTH, 3.4),
    )
