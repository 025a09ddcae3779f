"""Things that happen in time: states of sites, and tracks of particles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..figures import MODELS, WIDTH, Picture, colour_bar, draw
from ..wording import axis_label
from .base import Seen, evenly, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TRACKS = 40


@picture("states")
def states(seen: Seen) -> list[Picture]:
    """Sites over time, observed and made."""
    name = "observed_state" if "observed_state" in seen.data else "state"
    values, predicted = seen.data[name].values, seen.best.predicted(name)
    top = max(1, int(values.max()))
    found = [_raster("Observed states", values, top)]
    if predicted is not None:
        found.append(_raster(f"States that {seen.best.name} makes", predicted[0], top))
    return found


def _raster(title: str, values: np.ndarray, top: int) -> Picture:
    def build(figure: Figure) -> None:
        axes = figure.subplots()
        shown = axes.imshow(values.T, cmap="cividis", vmin=0, vmax=top, aspect="auto")
        colour_bar(figure, axes, shown, "state", ticks=range(top + 1) if top < 10 else None)
        axes.set_xlabel("time step")
        axes.set_ylabel("site")

    alt = f"{title}: {values.shape[1]} sites over {values.shape[0]} steps, {top + 1} states."
    return draw(build, alt, f"{title}.", size=(WIDTH, 2.6))


@picture("tracks")
def tracks(seen: Seen) -> list[Picture]:
    """Particles' ways, observed and made."""
    values, predicted = seen.data["position"].values.astype(float), seen.best.predicted("position")
    found = [_ways("Observed tracks", values, seen.units("position"))]
    if predicted is not None:
        found.append(
            _ways(f"Tracks that {seen.best.name} makes", predicted[0], seen.units("position"))
        )
    return found


def _ways(title: str, position: np.ndarray, units: str) -> Picture:
    flat = position.shape[2] == 1

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for n, i in enumerate(evenly(position.shape[1], MOST_TRACKS)):
            way = (np.arange(len(position)), position[:, i, 0]) if flat else position[:, i, :2].T
            axes.plot(*way, color=MODELS[n % len(MODELS)], lw=0.8, rasterized=len(position) > 500)
        axes.set_xlabel("time step" if flat else axis_label("x", units))
        axes.set_ylabel(axis_label("position" if flat else "y", units))

    alt = f"{title}: {position.shape[1]} particles over {position.shape[0]} steps."
    return draw(build, alt, f"{title}.", size=(WIDTH, 3.2))
