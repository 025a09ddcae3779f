"""Profiles across a wall: the map with the fitted wall, what there is to tell models apart, and each model's fit.

Rows are laid on each other along the best model's wall, and every statistic, of the data and of each model, goes
through the same bins: a leaning wall then smears neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..figures import GREY, INK, MUTED, PAPER, WIDTH, Look, Picture, band, colour_bar, draw
from ..wording import axis_label, clean, literal, significant
from .base import Fitted, Seen, expectation, picture, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points of a mean curve from one of the data's to the next.
FINER = 4
MOST_MODELS = 6
MOST_COMPONENTS = 3
# More points than this are drawn small and grey, as one picture instead of as many shapes.
MANY_POINTS = 80


@dataclass(frozen=True)
class Curve:
    """Values (point, component) along the distance from the wall (point,)."""

    u: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Wall:
    """A profile's data, and how its rows lie on each other.

    Attributes:
        data: the dataset.
        values: (row, x, component).
        x: coordinate (x,).
        place: the best model's wall in every draw (draw, row), None where it has none.
        shift: what is taken off x in every row (row,).
        names: of the components.
        units: of the values.
    """

    data: xr.Dataset
    values: np.ndarray
    x: np.ndarray
    place: np.ndarray | None
    shift: np.ndarray
    names: list[str]
    units: str

    @classmethod
    def of(cls, seen: Seen) -> Wall:
        """The wall that a report is about."""
        data = seen.data.assign(value=seen.data["value"].transpose("row", "x", "component"))
        values = data["value"].values.astype(float)[..., :MOST_COMPONENTS]
        place = wall_place(seen.best.run, len(values))
        aligned = place is not None and len(values) > 1
        shift = place.mean(0) if place is not None and aligned else np.zeros(len(values))
        x = data["x"].values.astype(float)
        return cls(data, values, x, place, shift, _names(data), seen.units("value"))

    @property
    def aligned(self) -> bool:
        """Whether rows are shifted."""
        return bool(np.any(self.shift))

    @property
    def u(self) -> np.ndarray:
        """Distance from the wall of every point (row, x)."""
        return self.x - self.shift[:, None]

    @property
    def label(self) -> str:
        """Label of the axis across the wall."""
        name = "distance from the fitted wall" if self.aligned else "x"
        return axis_label(name, self.data["x"].attrs.get("units", ""))

    @property
    def how(self) -> str:
        """How rows come together, in words."""
        if len(self.values) == 1:
            return "one row"
        return (
            "rows laid on each other along the fitted wall" if self.aligned else "mean of the rows"
        )

    def binned(self, values: np.ndarray, finer: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Bin centres (bin,) and means (..., bin, component) of values (..., row, x, component)."""
        x = refined(self.x, finer)
        if not self.aligned:
            return x, values.mean(-3)
        width = float(np.median(np.diff(self.x))) / finer
        codes = np.round((x - self.shift[:, None]) / width).astype(int)
        bins, which = np.unique(codes, return_inverse=True)
        which = which.ravel()
        counts = np.bincount(which)
        onto = np.zeros((len(bins), which.size))
        onto[which, np.arange(which.size)] = 1 / counts[which]
        # Bins at the ends that few rows reach would show more noise than wall.
        kept = counts >= max(1, len(self.shift) // 3)
        flat = values.reshape(*values.shape[:-3], which.size, values.shape[-1])
        return bins[kept] * width, onto[kept] @ flat

    def spread(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bin centres, and percentiles (level, bin, component) of the single values predicted in each bin."""
        centres, _ = self.binned(self.values)
        codes = np.abs(self.u.ravel()[:, None] - centres).argmin(1)
        flat = draws.reshape(len(draws), -1, draws.shape[-1])
        by_bin = [
            np.percentile(flat[:, codes == b], (5, 25, 75, 95), axis=(0, 1))
            for b in range(len(centres))
        ]
        return centres, np.stack(by_bin, 1)


def _names(data: xr.Dataset) -> list[str]:
    count = data.sizes["component"]
    if "component" in data.coords:
        names = [clean(n, 24) for n in data["component"].values]
    else:
        names = [f"component {i}" for i in range(count)] if count > 1 else ["value"]
    return names[:MOST_COMPONENTS]


def refined(x: np.ndarray, finer: int) -> np.ndarray:
    """A coordinate with more points between its own."""
    places = np.linspace(0, len(x) - 1, (len(x) - 1) * finer + 1)
    return np.interp(places, np.arange(len(x)), x)


def wall_place(run: xr.DataTree, rows: int) -> np.ndarray | None:
    """Where a run puts the wall in every row (draw, row), None for a model without `x0`.

    The zoo's walls share x0, tilt and bow; a test holds this against where their predictions cross zero.
    """
    posterior = run["posterior"].to_dataset()
    scalar = {
        name: posterior[name].values.reshape(-1, 1)
        for name in posterior
        if posterior[name].ndim == 2
    }
    if "x0" not in scalar:
        return None
    t = np.linspace(-1.0, 1.0, rows) if rows > 1 else np.zeros(1)
    bend = t**2 - np.mean(t**2)
    return np.asarray(scalar["x0"] + scalar.get("tilt", 0.0) * t + scalar.get("bow", 0.0) * bend)


def mean_curve(fit: Fitted, wall: Wall, finer: int = 1) -> Curve | None:
    """A model's posterior mean, of its predictions where the model itself gives none on this grid."""
    data = wall.data if finer == 1 else _finer(wall, finer)
    mean = expectation(fit, data, "value")
    if mean is None:
        predicted, finer = fit.predicted("value"), 1
        if predicted is None:
            return None
        mean = predicted.mean(0)
    return Curve(*wall.binned(mean[..., :MOST_COMPONENTS], finer))


def _finer(wall: Wall, finer: int) -> xr.Dataset:
    """The data's shape with more points along x."""
    value, x = wall.data["value"], wall.data["x"]
    across = refined(wall.x, finer)
    blank = np.repeat(value.values[:, :1], len(across), axis=1)
    data = wall.data.drop_dims("x")
    coords = {"x": ("x", across, x.attrs)}
    return data.assign_coords(coords).assign(value=(value.dims, blank, value.attrs))


@picture("profile")
def profile(seen: Seen) -> list[Picture]:
    """Maps where there are rows enough, the differences between models, and each model's fit."""
    wall = Wall.of(seen)
    maps = _maps(seen, wall) if len(wall.values) > 3 else []
    curves = [(fit, mean_curve(fit, wall, FINER)) for fit in seen.fits[:MOST_MODELS]]
    differences = _differences(curves, wall)
    fits = [_fit(fit, curve, wall) for fit, curve in curves]
    first = [*maps[:1], *([differences] if differences else [])]
    return [*first, *maps[1:], *fits]


def _maps(seen: Seen, wall: Wall) -> list[Picture]:
    maps = [_map(wall, seen.best, component) for component in range(len(wall.names))]
    predicted = seen.best.predicted("value")
    if predicted is None:
        return maps
    left = wall.values[..., 0] - predicted.mean(0)[..., 0]
    residuals = _residuals(wall, left / predicted[..., 0].std(0).mean(), seen.best)
    return [maps[0], residuals, *maps[1:]]


def _map(wall: Wall, best: Fitted, component: int) -> Picture:
    name, values = wall.names[component], wall.values[..., component]
    place = wall.place if component == 0 else None

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        limit = float(np.quantile(np.abs(wall.values), 0.995)) or 1.0
        colour_bar(figure, axes, _mesh(axes, wall, values, limit), axis_label(name, wall.units))
        if place is not None:
            _line(axes, place)

    alt = f"Map of {with_unit(name, wall.units)} over {values.shape[0]} rows and {values.shape[1]} positions."
    caption = f"Map of {name}."
    if place is not None:
        first, last = (significant(float(np.median(place[:, row])), 3) for row in (0, -1))
        alt += f" The fitted wall runs from x = {first} in the first row to {last} in the last."
        caption = (
            f"Map of {name} with the wall as {best.name} places it (line, with its 90 % band)."
        )
    return draw(build, alt, caption, size=(WIDTH, _height(values)))


def _height(values: np.ndarray) -> float:
    return float(np.clip(0.7 + 3.2 * values.shape[0] / values.shape[1], 2.0, 3.8))


def _mesh(axes: Axes, wall: Wall, values: np.ndarray, limit: float) -> Any:
    mesh = axes.pcolormesh(
        wall.x,
        np.arange(len(values)),
        values,
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        rasterized=True,
        shading="nearest",
    )
    axes.set_xlabel(axis_label("x", wall.data["x"].attrs.get("units", "")))
    axes.set_ylabel("row")
    return mesh


def _line(axes: Axes, place: np.ndarray) -> None:
    """The wall on a map, whose colours are the same in light and dark: so are the line's."""
    low, mid, high = np.percentile(place, (5, 50, 95), axis=0)
    rows = np.arange(place.shape[1])
    axes.plot(mid, rows, color="#ffffff", lw=3.2)
    axes.fill_betweenx(rows, low, high, color="#000000", alpha=0.35, lw=0)
    axes.plot(mid, rows, color="#000000", lw=1.1)


def _residuals(wall: Wall, values: np.ndarray, best: Fitted) -> Picture:
    beyond = f"{100 * float((np.abs(values) > 2).mean()):.1f} %"

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        mesh = _mesh(axes, wall, values, 3.0)
        colour_bar(figure, axes, mesh, "residual / predicted sd", extend="both")

    return draw(
        build,
        f"Map of {wall.names[0]} minus the prediction of {best.name}, in predicted standard deviations; {beyond} of "
        "the points lie beyond two.",
        f"What {best.name} leaves of {wall.names[0]}. A good model leaves no pattern; {beyond} lie beyond ± 2, where "
        "Gaussian noise has 4.6 %.",
        size=(WIDTH, _height(values)),
    )


def _differences(fits: list[tuple[Fitted, Curve | None]], wall: Wall) -> Picture | None:
    """Data and rivals as differences from the best model: all there is to tell them apart by."""
    best, smooth = fits[0]
    coarse, predicted = mean_curve(best, wall), best.predicted("value")
    if coarse is None or smooth is None or predicted is None:
        return None
    _, data = wall.binned(wall.values)
    _, replicas = wall.binned(predicted[..., :MOST_COMPONENTS])
    curves = [
        (fit, curve.values - smooth.values)
        for fit, curve in fits[1:]
        if curve is not None and curve.values.shape == smooth.values.shape
    ]

    def build(figure: Figure) -> None:
        panels = figure.subplots(len(wall.names), 1, sharex=True, squeeze=False).ravel()
        for c, axes in enumerate(panels):
            band(axes, coarse.u, replicas[..., c] - coarse.values[:, c], best.look.colour)
            axes.axhline(0, color=best.look.colour, lw=1.4, label=literal(best.name))
            for fit, curve in curves:
                axes.plot(
                    smooth.u,
                    curve[:, c],
                    color=fit.look.colour,
                    ls=fit.look.dash,
                    lw=1.7,
                    label=literal(fit.name),
                )
            axes.plot(
                coarse.u, data[:, c] - coarse.values[:, c], "o", ms=3.2, color=INK, label="data"
            )
            axes.set_title(literal(wall.names[c]) if len(panels) > 1 else "", pad=3)
            axes.set_ylabel(axis_label("difference", wall.units))
            axes.locator_params(axis="y", nbins=5)
        panels[-1].set_xlabel(wall.label)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper left", ncols=2, handlelength=2.6, columnspacing=1.2
        )

    noise = float(replicas.std(0).mean())
    said = "; ".join(
        f"{fit.name} {significant(float(np.abs(curve).max()) / noise)}" for fit, curve in curves
    )
    return draw(
        build,
        f"Data and rival models minus the mean of {best.name}, {wall.how}. Largest difference in standard "
        f"deviations of a point: {said or 'there is no rival'}.",
        f"Data (dots) and rivals (lines) minus the mean of {best.name}, {wall.how}; bands: where its own "
        "predictions fall, 50 % and 90 %. A rival that stays within them looks like it.",
        size=(WIDTH, 1.15 + 1.5 * len(wall.names) + 0.18 * ((len(curves) + 3) // 2)),
    )


def _fit(fit: Fitted, curve: Curve | None, wall: Wall) -> Picture:
    """Data, posterior mean and predictive bands of one model."""
    predicted = fit.predicted("value")
    tones = [fit.look.colour, MUTED, INK]

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for c in range(len(wall.names)):
            _points(axes, wall, c)
        if predicted is not None:
            x, levels = wall.spread(predicted[..., :MOST_COMPONENTS])
            for c in range(len(wall.names)):
                for low, high, alpha in ((0, 3, 0.22), (1, 2, 0.32)):
                    axes.fill_between(
                        x, levels[low, :, c], levels[high, :, c], color=tones[c], alpha=alpha, lw=0
                    )
        if curve is not None:
            _curves(axes, wall, curve, fit.look)
        axes.set_xlabel(wall.label)
        axes.set_ylabel(axis_label(wall.names[0] if len(wall.names) == 1 else "value", wall.units))

    covered = ""
    if predicted is not None:
        low, high = np.percentile(predicted[..., :MOST_COMPONENTS], (5, 95), axis=0)
        inside = float(((low <= wall.values) & (wall.values <= high)).mean())
        covered = f" {100 * inside:.0f} % of the points lie within its 90 % band."
    return draw(
        build,
        f"Data (points) against {fit.name}: posterior mean (line), posterior predictive bands of 50 and 90 %, "
        f"{wall.how}.{covered}",
        f"{fit.name}: data, posterior mean, 50 % and 90 % posterior predictive bands.{covered}",
        size=(WIDTH, 2.8),
    )


def _points(axes: Axes, wall: Wall, component: int) -> None:
    u, values = wall.u.ravel(), wall.values[..., component].ravel()
    if values.size > MANY_POINTS:
        axes.plot(u, values, "o", ms=2.0, color=GREY, alpha=0.5, mew=0, rasterized=True, zorder=1.5)
    else:
        face = (INK, PAPER, GREY)[component]
        axes.plot(u, values, "os^"[component], ms=3.4, mfc=face, mec=INK, mew=0.8, zorder=3)


def _curves(axes: Axes, wall: Wall, curve: Curve, look: Look) -> None:
    tones, dashes = [look.colour, MUTED, INK], ("-", (0, (4, 2)), (0, (1, 1)))
    for c, name in enumerate(wall.names):
        axes.plot(curve.u, curve.values[:, c], color=tones[c], lw=1.5, ls=dashes[c])
        if len(wall.names) > 1:
            axes.annotate(
                literal(name),
                (curve.u[-1], curve.values[-1, c]),
                (-2, -18 if c == 0 else 10),
                textcoords="offset points",
                ha="right",
                color=tones[c],
            )
