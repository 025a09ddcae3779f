"""Lattices: configurations that were observed beside some that the best model makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..figures import WIDTH, Picture, draw
from .base import Seen, evenly, picture, species_name
from .histograms import histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 4
MOST_SPECIES = 6


@picture("lattice")
def lattice(seen: Seen) -> list[Picture]:
    """Configurations, observed and made."""
    values = seen.data["species"].values
    triangular = str(seen.data.attrs.get("lattice")) == "triangular"
    top = max(1, int(values.max()))
    scale = Scale([_name(seen, code) for code in range(min(top + 1, MOST_SPECIES))], top)
    chosen = evenly(len(values), SHOWN)
    title = f"{len(chosen)} of {len(values)} observed configurations"
    found = [_row(values[chosen], title, triangular, scale)]
    predicted = seen.best.predicted("species")
    if predicted is not None:
        made = predicted[evenly(len(predicted), SHOWN), 0]
        found.append(_row(made, f"Configurations that {seen.best.name} makes", triangular, scale))
    return found + histograms(seen)


@dataclass(frozen=True)
class Scale:
    """Names of the first species, and the highest code."""

    names: list[str]
    top: int


def _row(configurations: np.ndarray, title: str, triangular: bool, scale: Scale) -> Picture:
    show = _triangular if triangular else _square

    def build(figure: Figure) -> None:
        panels = figure.subplots(1, max(2, len(configurations)), squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, configuration in zip(panels, configurations, strict=False):
            show(axes, configuration, scale.top)

    shares = [float((configurations == code).mean()) for code in range(len(scale.names))]
    said = ", ".join(f"{100 * s:.0f} % {n}" for s, n in zip(shares, scale.names, strict=True))
    return draw(
        build,
        f"{title}, {configurations.shape[1]} × {configurations.shape[2]} sites: {said}.",
        f"{title}: {said}, darkest first.",
        size=(WIDTH, 0.15 + WIDTH / max(2, len(configurations))),
    )


def _name(seen: Seen, code: int) -> str:
    name = species_name(seen.data, code)
    return f"species {name}" if name == str(code) else name


def _square(axes: Axes, configuration: np.ndarray, top: int) -> None:
    axes.imshow(configuration, cmap="cividis", vmin=0, vmax=top)


def _triangular(axes: Axes, configuration: np.ndarray, top: int) -> None:
    """Rows shifted by half a site, so that every site has its six neighbours."""
    rows, columns = configuration.shape
    y, x = np.mgrid[:rows, :columns]
    size = (0.75 * 72 * WIDTH / SHOWN / (columns + rows / 2)) ** 2
    axes.scatter(
        x + y / 2,
        y * math.sqrt(0.75),
        c=configuration,
        cmap="cividis",
        vmin=0,
        vmax=top,
        s=size,
        marker="h",
        lw=0,
        rasterized=True,
    )
    axes.set_aspect("equal")
