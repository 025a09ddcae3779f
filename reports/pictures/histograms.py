"""For any kind: every observed variable's values on what the best model predicts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..figures import INK, LINE, WIDTH, Look, Picture, draw
from ..wording import axis_label, clean, significant
from .base import Seen, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A histogram needs no more than this.
MOST_VALUES = 200_000
MOST_CODES = 40


@picture("any")
def histograms(seen: Seen) -> list[Picture]:
    """A histogram of every observed variable."""
    run = seen.best.run
    names = (
        [str(name) for name in run["observed_data"].data_vars]
        if "observed_data" in run.children
        else []
    )
    return [
        _histogram(seen, n) for n in names if n in seen.data and seen.data[n].dtype.kind in "iuf"
    ]


def _histogram(seen: Seen, name: str) -> Picture:
    values = seen.data[name].values.astype(float).ravel()
    predicted = seen.best.predicted(name)
    made = (
        None if predicted is None else predicted.ravel()[:: max(1, predicted.size // MOST_VALUES)]
    )
    coded = seen.data[name].dtype.kind in "iu" and len(np.unique(values)) <= MOST_CODES
    show = _bars if coded else outline
    label = clean(name, 40)

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        show(axes, values, made, seen.best.look)
        axes.axhline(0, color=LINE, lw=0.8)
        axes.set_xlabel(axis_label(label, seen.units(name)))

    means = f"the observed mean is {significant(float(values.mean()), 3)}"
    beside = ""
    if made is not None:
        means += f", the predicted {significant(float(made.mean()), 3)}"
        beside = f" (outline) on what {seen.best.name} predicts (filled)"
    return draw(
        build,
        f"Histogram of the observed {label}{beside}; {means}.",
        f"{label.capitalize()}: observed{beside}.",
        size=(WIDTH, 2.2),
    )


def outline(axes: Axes, values: np.ndarray, made: np.ndarray | None, look: Look) -> None:
    """Densities of real numbers: observed as an outline, predicted filled."""
    both = values if made is None else np.concatenate([values, made])
    low, high = (float(v) for v in np.quantile(both, (0.002, 0.998)))
    pieces = int(np.clip(math.sqrt(len(values)), 8, 40))
    edges = np.linspace(low, high, pieces + 1) if high > low else np.array([low - 0.5, low + 0.5])
    bins: list[float] = edges.tolist()
    if made is not None:
        axes.hist(made, bins=bins, density=True, color=look.colour, alpha=0.35)
    axes.hist(values, bins=bins, density=True, histtype="step", color=INK, lw=1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _bars(axes: Axes, values: np.ndarray, made: np.ndarray | None, look: Look) -> None:
    """Shares of codes."""
    codes = np.unique(values)
    if made is not None:
        axes.bar(codes, [float((made == c).mean()) for c in codes], color=look.colour, alpha=0.4)
    axes.bar(codes, [float((values == c).mean()) for c in codes], fill=False, edgecolor=INK, lw=1.2)
    axes.set_ylabel("share")
    axes.set_xticks(codes if len(codes) < 12 else codes[:: len(codes) // 6])
