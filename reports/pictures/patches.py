"""Patches and pairs: some of them beside what the best model makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..figures import INK, WIDTH, Picture, band, draw
from ..wording import axis_label
from .base import Seen, evenly, picture
from .histograms import histograms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PATCHES = 16
MOST_SPECTRA = 4


@picture("patches")
def patches(seen: Seen) -> list[Picture]:
    """Patches above their predictions, then histograms."""
    return [*_grids(seen), *histograms(seen)]


@picture("pairs")
def pairs(seen: Seen) -> list[Picture]:
    """Patches, and spectra within the bands that the model predicts."""
    spectrum = seen.data["spectrum"]
    energy = (
        spectrum["energy"].values
        if "energy" in spectrum.coords
        else np.arange(spectrum.sizes["energy"])
    )
    chosen = evenly(spectrum.sizes["patch"], MOST_SPECTRA)
    predicted = seen.best.predicted("spectrum")
    rows = -(-len(chosen) // 2)

    def build(figure: Figure) -> None:
        panels = figure.subplots(rows, 2, squeeze=False, sharex=True).ravel()
        for axes in panels[len(chosen) :]:
            axes.set_visible(False)
        for axes, i in zip(panels, chosen, strict=False):
            if predicted is not None:
                band(axes, energy, predicted[:, i], seen.best.look.colour)
            axes.plot(energy, spectrum.values[i], color=INK, lw=1)
            axes.set_title(f"patch {i}", pad=3)
            axes.locator_params(nbins=4)
        figure.supxlabel(axis_label("energy", seen.units("energy")), fontsize=9)
        figure.supylabel(axis_label("spectrum", seen.units("spectrum")), fontsize=9)

    spectra = draw(
        build,
        f"Spectra of {len(chosen)} patches against the predictive bands of {seen.best.name}.",
        f"Spectra (lines) within the 50 % and 90 % predictive bands of {seen.best.name}.",
        size=(WIDTH, 0.6 + 1.3 * rows),
    )
    return [*_grids(seen), spectra]


def _grids(seen: Seen) -> list[Picture]:
    values = seen.data["intensity"].values.astype(float)
    chosen = evenly(len(values), MOST_PATCHES)
    scale = (float(values[chosen].min()), float(values[chosen].max()))
    found = [_grid(values[chosen], f"{len(chosen)} of {len(values)} patches", scale)]
    predicted = seen.best.predicted("intensity")
    if predicted is not None:
        mean = predicted.mean(0)[chosen]
        found.append(
            _grid(mean, f"The same patches as {seen.best.name} predicts them (mean)", scale)
        )
    return found


def _grid(patches: np.ndarray, title: str, scale: tuple[float, float]) -> Picture:
    columns = min(8, len(patches))
    rows = -(-len(patches) // columns)

    def build(figure: Figure) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, patch in zip(panels, patches, strict=False):
            axes.imshow(patch, cmap="cividis", vmin=scale[0], vmax=scale[1])

    alt = f"{title}: a grid of {len(patches)} small images."
    return draw(
        build,
        alt,
        f"{title}, on one scale of brightness.",
        size=(WIDTH, 0.1 + WIDTH / columns * rows),
    )
