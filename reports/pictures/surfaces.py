"""Images and fields: what was observed, what the best model predicts, and what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..figures import WIDTH, Picture, colour_bar, draw
from ..wording import axis_label, significant
from .base import Seen, picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More pixels than dots on the page cost bytes and show nothing.
MOST_PIXELS = 320
Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """How surfaces of one dataset are laid out.

    Attributes:
        across: name and unit of the horizontal axis.
        up: of the vertical axis.
        extent: edges in units of the coordinates, None to count pixels.
        downwards: whether the vertical axis points down, as in every image.
    """

    across: tuple[str, str]
    up: tuple[str, str]
    extent: Extent | None
    downwards: bool = False


@picture("image")
def image(seen: Seen) -> list[Picture]:
    """An image, its prediction and the residual."""
    values = seen.data["intensity"].values.astype(float)
    predicted = seen.best.predicted("intensity")
    return _three(seen, values, predicted, "intensity", seen.units("intensity"), _frame(seen))


@picture("field")
def field(seen: Seen) -> list[Picture]:
    """A field's first, middle and last moment; of a field along a line, space against time."""
    data, predicted = seen.data["value"], seen.best.predicted("value")
    units = seen.units("value")
    if "y" not in data.dims:
        frame = Frame(("x", seen.units("x")), ("time", "step"), None)
        return _three(seen, data.values.astype(float), predicted, "value", units, frame)
    found = []
    for t in sorted({0, data.sizes["time"] // 2, data.sizes["time"] - 1}):
        name = "value" if data.sizes["time"] == 1 else f"value at step {t}"
        then = None if predicted is None else predicted[:, t]
        found += _three(seen, data.values[t].astype(float), then, name, units, _frame(seen))
    return found


def _frame(seen: Seen) -> Frame:
    return Frame(("x", seen.units("x")), ("y", seen.units("y")), _extent(seen.data), downwards=True)


def _extent(data: xr.Dataset) -> Extent | None:
    if not {"x", "y"} <= set(data.coords):
        return None
    edges = []
    for name in ("x", "y"):
        at = data[name].values.astype(float)
        half = 0.5 * (at[1] - at[0]) if len(at) > 1 else 0.5
        edges += [float(at[0] - half), float(at[-1] + half)]
    return edges[0], edges[1], edges[2], edges[3]


def _three(
    seen: Seen,
    values: np.ndarray,
    predicted: np.ndarray | None,
    name: str,
    units: str,
    frame: Frame,
) -> list[Picture]:
    """Observed, predicted mean, and their difference in predicted standard deviations."""
    largest = float(np.abs(values).max()) or 1.0
    signed = bool(values.min() < 0 < values.max())
    limits = (-largest, largest) if signed else (float(values.min()), float(values.max()))
    scale = ("RdBu_r" if signed else "cividis", *limits)
    found = [_surface(values, scale, f"Observed {name}", axis_label(name, units), frame)]
    if predicted is not None:
        model = seen.best.name
        mean, spread = predicted.mean(0), predicted.std(0)
        # Noise of a block's mean falls with its side: times the side, it is one standard deviation again.
        left = (values - mean) / np.where(spread > 0, spread, 1.0) * _step(values)
        found += [
            _surface(
                mean,
                scale,
                f"{name.capitalize()} as {model} predicts it",
                axis_label(name, units),
                frame,
            ),
            _surface(
                left,
                ("RdBu_r", -3.0, 3.0),
                f"What {model} leaves",
                "residual / predicted sd",
                frame,
            ),
        ]
    return found


def _step(values: np.ndarray) -> int:
    """Side of the blocks of pixels that are shown as one."""
    return max(1, math.ceil(max(values.shape) / MOST_PIXELS))


def blocks(values: np.ndarray, step: int) -> np.ndarray:
    """Means of square blocks; those at the far edges may be smaller."""
    if step == 1:
        return values
    sums = values.astype(float)
    for axis in (0, 1):
        size = sums.shape[axis]
        starts = np.arange(0, size, step)
        widths = np.diff(np.append(starts, size))
        sums = np.add.reduceat(sums, starts, axis=axis) / np.expand_dims(widths, 1 - axis)
    return sums


def _surface(
    values: np.ndarray, scale: tuple[str, float, float], title: str, label: str, frame: Frame
) -> Picture:
    colours, low, high = scale
    step = _step(values)

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        shown = axes.imshow(
            blocks(values, step),
            cmap=colours,
            vmin=low,
            vmax=high,
            extent=frame.extent,
            aspect="equal" if frame.extent else "auto",
        )
        if frame.downwards:
            axes.invert_yaxis()
        colour_bar(figure, axes, shown, label)
        axes.set_xlabel(axis_label(*frame.across))
        axes.set_ylabel(axis_label(*frame.up))

    low_high = f"{significant(float(values.min()), 3)} to {significant(float(values.max()), 3)}"
    alt = f"{title}: a map of {values.shape[0]} × {values.shape[1]} points from {low_high}."
    return draw(build, alt, f"{title}.", size=(WIDTH, 3.4))
