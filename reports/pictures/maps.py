"""Maps of what a model of structure says of every unit: its class and how sure that is, fields, and vectors.

They are drawn from the groups `classes` and `derived` of a run, for any model of the hall. A variable over units that
have a `position` (or `UNIT_position`) is a map, one over `y` and `x` a picture, one with an `axis` besides a field of
arrows, one of probabilities besides a map of classes, and anything else besides a map for each. Its attributes
`units`, `long_name`, `diverging` and `period` say how; `picture = "none"` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..figures import GREY, INK, MARKERS, MODELS, WIDTH, Picture, colour_bar, draw
from ..wording import axis_label, clean, literal
from .base import Fitted, result
from .surfaces import Extent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "Place",
    "arrows",
    "behind",
    "class_maps",
    "colours",
    "dot_size",
    "field_map",
    "image_frame",
    "map_axes",
    "place_of",
]

SIZE = (WIDTH, 3.6)
# More arrows than that cannot be told apart: they are averaged over tiles.
MOST_ARROWS = 900
# More maps of one model than that nobody reads.
MOST_MAPS = 9
MANY = 400
# What the maps of classes show already, and what is as it was given.
TOLD_BY_CLASSES = ("entropy", "information", "information_gain")
GIVEN = ("property_value",)
# More classes without names than that are a grid of the model's, and tell a reader nothing.
MOST_NAMELESS = 20
# A class as faint as this is still seen.
FAINTEST = 0.12
# The share of values within the colour scale: a wild one must not make all others grey.
WITHIN = 0.98
# Panels of one picture, and how far from zero the smaller end of a signed scale must be for zero to be its middle.
MOST_PANELS = 6
SIGNED = 0.2
# Pixels along a side of the image behind a map, as many as a page shows.
BEHIND = 512
# Errors are drawn after what they are of.
ERRORS = ("_sd", "_error")
NAMES = {"exx": "strain εxx", "eyy": "strain εyy", "exy": "strain εxy"}


@dataclass(frozen=True)
class Place:
    """Where the units of a map are, and what lies behind them.

    Attributes:
        position: x and y of every unit in nm.
        image: an image behind them, None where there is none.
        extent: its edges in nm.
    """

    position: np.ndarray
    image: np.ndarray | None = None
    extent: Extent | None = None


@result("structure")
def structure(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """What a model of structure says of every unit."""
    return [*class_maps(fit, data), *_derived_maps(fit, data)][:MOST_MAPS]


def _group(fit: Fitted, name: str) -> xr.Dataset:
    return fit.run[name].to_dataset() if name in fit.run.children else xr.Dataset()


def _place(group: xr.Dataset, fit: Fitted, data: xr.Dataset, dim: str) -> Place | None:
    """Where the units of a dimension are."""
    size = group.sizes[dim]
    own = [_group(fit, name) for name in ("derived", "classes", "observed_data", "constant_data")]
    for source in (group, *own, data):
        for name in (f"{dim}_position", "position"):
            if name in source and source[name].dims[0] == dim and source.sizes[dim] == size:
                return Place(source[name].values[:, :2].astype(float), *behind(data))
    return None


def place_of(data: xr.Dataset) -> Place:
    """Where atoms are."""
    return Place(data["position"].values[:, :2].astype(float), *behind(data))


def behind(data: xr.Dataset) -> tuple[np.ndarray | None, Extent | None]:
    """The image that the atoms were found in, if they carry it."""
    if "aux_image" not in data or "aux_image_extent" not in data:
        return None, None
    image, extent = data["aux_image"].values, data["aux_image_extent"].values
    usable = image.ndim == 2 and extent.shape == (4,) and image.dtype.kind in "fiu"
    if not (usable and np.isfinite(image).all() and np.isfinite(extent).all()):
        return None, None
    left, right, top, bottom = (float(edge) for edge in extent)
    # Rows count downwards, and so does the map's y.
    return _reduced(image.astype(float)), (left, right, bottom, top)


def image_frame(data: xr.Dataset) -> tuple[np.ndarray, Extent] | None:
    """An image's own values, and its edges in nm; None where it is no image."""
    values = data["intensity"].values
    if values.ndim != 2 or not {"y", "x"} <= set(data.coords):
        return None
    y, x = (data[name].values.astype(float) for name in ("y", "x"))
    half = [0.5 * (axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in (x, y)]
    extent = (x[0] - half[0], x[-1] + half[0], y[-1] + half[1], y[0] - half[1])
    return _reduced(values.astype(float)), extent


def _reduced(image: np.ndarray) -> np.ndarray:
    """An image with no more pixels than the page shows."""
    step = -(-max(image.shape) // BEHIND)
    rows, cols = (n // step for n in image.shape)
    return np.asarray(
        image[: rows * step, : cols * step].reshape(rows, step, cols, step).mean((1, 3))
    )


def map_axes(figure: Figure, place: Place, axes: Axes | None = None) -> Axes:
    """Axes in nm over the image, if there is one, with y downwards as in it."""
    axes = figure.subplots() if axes is None else axes
    axes.set_aspect("equal")
    axes.set_xlabel("x (nm)")
    axes.set_ylabel("y (nm)")
    if place.image is not None and place.extent is not None:
        low, high = np.quantile(place.image, (0.005, 0.995))
        axes.imshow(
            place.image,
            extent=place.extent,
            origin="upper",
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-12),
            alpha=0.5,
        )
    low, high = place.position.min(0), place.position.max(0)
    rim = 0.03 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - rim[0], high[0] + rim[0])
    axes.set_ylim(high[1] + rim[1], low[1] - rim[1])
    return axes


def colours(place: Place, *, diverging: bool = False, period: float = 0.0) -> str:
    """A colour scale that an image behind it does not take the greys of."""
    if period:
        return "twilight"
    if diverging:
        return "RdBu_r"
    return "cividis" if place.image is None else "viridis"


def dot_size(place: Place) -> float:
    """Area of a dot in square points, so that dots of a dense map just touch."""
    return float(np.clip(12_000 / max(len(place.position), 1), 0.4, 40))


def class_maps(fit: Fitted, data: xr.Dataset) -> Iterator[Picture]:
    """Of every local discrete latent: the most probable class, what is left to know, and what moved it."""
    group = _group(fit, "classes")
    for name, share in group.data_vars.items():
        if share.ndim != 2 or not str(share.dims[1]).endswith("_class"):
            continue
        place, dim = _place(group, fit, data, str(share.dims[0])), str(share.dims[1])
        if place is None or (dim not in share.coords and share.shape[1] > MOST_NAMELESS):
            continue
        names = [str(v) for v in share[dim].values] if dim in share.coords else None
        names = names or [f"class {k}" for k in range(share.shape[1])]
        values = np.clip(share.values.astype(float), 0.0, 1.0)
        yield _most_probable(place, values, names, clean(name, 24), fit.name)
        yield _entropy(place, values, clean(name, 24), fit.name)
        yield _moved(place, values, _prior_share(fit, values), clean(name, 24), fit.name)


def _prior_share(fit: Fitted, values: np.ndarray) -> np.ndarray:
    """Share of each class before an atom is looked at: its weight, or else how frequent it was found to be."""
    posterior = _group(fit, "posterior")
    if "weights" in posterior and posterior["weights"].shape[2:] == values.shape[1:]:
        return np.asarray(posterior["weights"].mean(("chain", "draw")).values, dtype=float)
    return np.asarray(values.mean(0))


def _most_probable(
    place: Place, values: np.ndarray, names: list[str], name: str, model: str
) -> Picture:
    """Colour says which class, opacity how sure that is."""
    from matplotlib.colors import to_rgba

    best, sure = values.argmax(1), values.max(1)
    # Of one class alone all are as sure as can be.
    floor = 1 / values.shape[1] if values.shape[1] > 1 else 0.0
    alpha = FAINTEST + (1 - FAINTEST) * np.clip((sure - floor) / (1 - floor), 0, 1)
    shown = [int(k) for k in np.argsort(-np.bincount(best, minlength=len(names)))]
    shown = [k for k in shown if (best == k).any()]

    def build(figure: Figure) -> None:
        axes = map_axes(figure, place)
        for order, k in enumerate(shown):
            here = best == k
            colours = np.array([to_rgba(MODELS[order % len(MODELS)])]).repeat(here.sum(), 0)
            colours[:, 3] = alpha[here]
            axes.scatter(
                place.position[here, 0],
                place.position[here, 1],
                s=dot_size(place),
                c=colours,
                marker=MARKERS[(order + order // len(MODELS)) % len(MARKERS)],
                lw=0,
                rasterized=len(best) > MANY,
            )
        marks = [
            axes.scatter(
                [],
                [],
                s=24,
                color=MODELS[order % len(MODELS)],
                marker=MARKERS[(order + order // len(MODELS)) % len(MARKERS)],
                lw=0,
                label=literal(f"{names[k]}: {int((best == k).sum()):,}", 40),
            )
            for order, k in enumerate(shown[:12])
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=2, fontsize=8)

    said = ", ".join(f"{int((best == k).sum())} {clean(names[k], 32)}" for k in shown[:8])
    doubt = int((sure < 0.9).sum())
    return draw(
        build,
        f"Map of {len(best)} units by their most probable {name} in {model}: {said}; {doubt} below 0.9.",
        f"The most probable {name} of each. The fainter, the less sure: {doubt:,} of {len(best):,} are below 0.9.",
        size=(WIDTH, 3.9),
    )


def _entropy(place: Place, values: np.ndarray, name: str, model: str) -> Picture:
    bits = -np.sum(values * np.log2(np.maximum(values, 1e-300)), 1)
    return field_map(
        place,
        bits,
        "entropy (bits)",
        f"Map of the entropy of {name} in {model}, mean {bits.mean():.2g} bits.",
        f"What is left to know: the entropy of each posterior over {name}. "
        f"All {values.shape[1]} alike would be {np.log2(values.shape[1]):.2g} bits.",
        limits=(0.0, max(float(bits.max()), 0.1)),
    )


def _moved(place: Place, values: np.ndarray, prior: np.ndarray, name: str, model: str) -> Picture:
    """Information gained over the class weights; where it is little, the prior speaks."""
    ratio = np.log2(np.maximum(values, 1e-300)) - np.log2(np.maximum(prior, 1e-300))
    bits = np.maximum(np.sum(values * ratio, 1), 0.0)
    changed = int((values.argmax(1) != prior.argmax()).sum())
    return field_map(
        place,
        bits,
        "information gained (bits)",
        f"Map of the information that each atom's own data add to the weights of {name} in {model}.",
        f"Prior against posterior: what its own surroundings say of each atom beyond the weights of all. "
        f"{changed:,} of {len(bits):,} are not of the class with the largest weight.",
        limits=(0.0, max(float(np.quantile(bits, WITHIN)), 0.1)),
    )


def _derived_maps(fit: Fitted, data: xr.Dataset) -> Iterator[Picture]:
    group = _group(fit, "derived")
    told = (*GIVEN, *(TOLD_BY_CLASSES if _group(fit, "classes").data_vars else ()))
    finer = {str(a.dims[1]) for a in group.values() if a.ndim == 2 and a.dims[0] == "place"}
    names = sorted(map(str, group.data_vars), key=lambda name: name.endswith(ERRORS))
    for name in names:
        array = group[name]
        if array.attrs.get("picture") == "none" or not _worth_afield_map(array) or name in told:
            continue
        plain = name.removeprefix("place_").replace("_", " ")
        label = clean(array.attrs.get("long_name") or NAMES.get(name, plain), 60)
        units = clean(array.attrs.get("units", ""), 24)
        if name in NAMES and units == "1":
            array, units = 100 * array.assign_attrs(units="%"), "%"
        if tuple(array.dims) == ("y", "x"):
            yield _grid(array, label, units, fit.name)
            continue
        place = _place(group, fit, data, str(array.dims[0])) if array.ndim in (1, 2) else None
        if place is None or name.endswith("position"):
            continue
        if array.ndim == 1 and np.ptp(_finite(array.values)) > 0:
            yield _values(place, array, label, units, fit.name)
        elif array.ndim == 2 and array.dims[1] == "axis":
            if array.shape[1] == 2 and not name.endswith(ERRORS):
                yield arrows(place, array.values.astype(float), label, units, fit.name)
        elif array.ndim == 2 and not (array.dims[0] == "window" and str(array.dims[1]) in finer):
            yield from _each(place, array, label, units, fit.name)


def _each(
    place: Place, array: xr.DataArray, label: str, units: str, model: str
) -> Iterator[Picture]:
    """Probabilities as a map of classes, other figures as a map for each."""
    values, dim = np.asarray(array.values, dtype=float), str(array.dims[1])
    named = array[dim].values if dim in array.coords else np.arange(array.shape[1])
    names = [f"{dim} {n + 1}" if isinstance(n, np.integer) else clean(n, 24) for n in named]
    whole = values.min(initial=0.0) >= 0 and np.allclose(values.sum(1), 1, atol=1e-3)
    if whole and "probability" in str(array.name):
        yield _most_probable(place, values, names, clean(dim, 24), model)
        yield _entropy(place, values, clean(dim, 24), model)
    elif array.shape[1] == 1:
        yield _values(place, array[:, 0], label, units, model)
    elif not str(array.name).endswith(ERRORS) and array.shape[1]:
        yield _panels(place, values[:, :MOST_PANELS], names, label, units, model)


def _panels(
    place: Place, values: np.ndarray, names: list[str], label: str, units: str, model: str
) -> Picture:
    """A map for each of several figures, on one scale."""
    count = values.shape[1]
    across = min(count, 3)
    down = -(-count // across)
    low, high = _limits(values, False)
    diverging = _signed(low, high)
    if diverging:
        low, high = _limits(values, True)

    def build(figure: Figure) -> None:
        every = figure.subplots(down, across, squeeze=False)
        for axes in every.flat[count:]:
            axes.remove()
        for k, axes in enumerate(every.flat[:count]):
            map_axes(figure, place, axes)
            shown = _scalars(
                axes, place, values[:, k], (low, high), colours(place, diverging=diverging)
            )
            axes.set_title(literal(names[k], 24), fontsize=8.5)
            axes.label_outer()
        colour_bar(figure, every.ravel().tolist()[:count], shown, axis_label(label, units))

    return draw(
        build,
        f"Maps of {label} in {model}: {', '.join(names[:count])}.",
        f"{label[:1].upper()}{label[1:]}, one map each.",
        size=(1.75 * across + 1.2 if across > 1 else WIDTH, 1.9 * down + 0.6),
        wide=across > 2,
    )


def _lattice(position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Places on a regular grid: its x, its y, and the index of each place in it; None where they are on none."""
    (x, i), (y, j) = (np.unique(np.round(column, 6), return_inverse=True) for column in position.T)
    steps = [np.diff(axis) for axis in (x, y)]
    if len(x) * len(y) != len(position) or min(map(len, steps)) == 0:
        return None
    even = all(np.ptp(step) < 1e-3 * step.mean() for step in steps)
    return (x, y, j * len(x) + i) if even else None


def _scalars(
    axes: Axes, place: Place, values: np.ndarray, limits: tuple[float, float], cmap: str
) -> Any:
    """Values as tiles where the places are on a grid, as dots where not; what is not known is grey."""
    grid = _lattice(place.position)
    if grid is not None:
        x, y, index = grid
        tiles = np.full(len(x) * len(y), np.nan)
        tiles[index] = values
        half = [0.5 * (axis[1] - axis[0]) for axis in (x, y)]
        extent = (x[0] - half[0], x[-1] + half[0], y[-1] + half[1], y[0] - half[1])
        axes.set_xlim(extent[:2])
        axes.set_ylim(extent[2:])
        return axes.imshow(
            tiles.reshape(len(y), len(x)),
            origin="upper",
            extent=extent,
            vmin=limits[0],
            vmax=limits[1],
            cmap=cmap,
        )
    known = np.isfinite(values)
    x, y = place.position.T
    many = len(values) > MANY
    size = dot_size(place)
    axes.scatter(x[~known], y[~known], s=size, color=GREY, alpha=0.3, lw=0, rasterized=many)
    return axes.scatter(
        x[known],
        y[known],
        c=values[known],
        s=size,
        lw=0,
        vmin=limits[0],
        vmax=limits[1],
        cmap=cmap,
        rasterized=many,
    )


def _worth_afield_map(array: xr.DataArray) -> bool:
    """Figures and flags; other whole numbers are counts and codes, which a table tells better."""
    if array.dtype.kind in "iu":
        return bool(array.size) and set(np.unique(array.values)) <= {0, 1}
    return array.dtype.kind in "fb"


def _finite(values: np.ndarray) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    return found if found.size else np.zeros(1)


def _limits(values: np.ndarray, diverging: bool) -> tuple[float, float]:
    rest = (1 - WITHIN) / 2
    low, high = (float(q) for q in np.quantile(_finite(values), (rest, 1 - rest)))
    if diverging:
        reach = max(abs(low), abs(high)) or 1.0
        return -reach, reach
    return (low, high) if high > low else (low, low + 1.0)


def _signed(low: float, high: float) -> bool:
    """Whether values are of both signs, so that zero is what they are read against."""
    return low < 0 < high and min(-low, high) > SIGNED * max(-low, high)


def _values(place: Place, array: xr.DataArray, label: str, units: str, model: str) -> Picture:
    values = np.asarray(array.values, dtype=float)
    period = float(array.attrs.get("period", 0.0))
    flag = array.dtype.kind in "biu"
    limits = (0.0, period) if period else _limits(values, False)
    diverging = not period and bool(array.attrs.get("diverging", _signed(*limits)))
    if flag:
        limits = (0.0, 1.0)
    elif diverging:
        limits = _limits(values, True)
    low, middle, high = np.quantile(_finite(values), (0.05, 0.5, 0.95))
    written = units if units not in ("", "1") else ""
    said = f"median {middle:.3g}, nine in ten from {low:.3g} to {high:.3g} {written}".rstrip()
    if flag:
        said = f"{int(values.sum()):,} of {len(values):,}"
    elif period:
        said = f"over a period of {period:.3g} {written}".rstrip()
    return field_map(
        place,
        np.mod(values, period) if period else values,
        axis_label(label, units),
        f"Map of {label} in {model}, {said}.",
        f"{label[:1].upper()}{label[1:]}: {said}.",
        limits=limits,
        cmap=colours(place, diverging=diverging, period=period),
    )


def field_map(
    place: Place,
    values: np.ndarray,
    label: str,
    alt: str,
    caption: str,
    *,
    limits: tuple[float, float] | None = None,
    cmap: str | None = None,
) -> Picture:
    """A map of one figure of every unit; by default on a scale that a few wild ones do not stretch."""
    scale = limits or _limits(values, False)

    def build(figure: Figure) -> None:
        axes = map_axes(figure, place)
        shown = _scalars(axes, place, values, scale, cmap or colours(place))
        colour_bar(figure, axes, shown, label)

    return draw(build, alt, caption, size=SIZE)


def _grid(array: xr.DataArray, label: str, units: str, model: str) -> Picture:
    values = np.asarray(array.values, dtype=float)
    diverging = bool(array.attrs.get("diverging", False))
    low, high = _limits(values, diverging)
    y, x = (
        np.asarray(array[d].values, dtype=float)
        if d in array.coords
        else np.arange(array.sizes[d], dtype=float)
        for d in ("y", "x")
    )
    half = [0.5 * (c[-1] - c[0]) / max(len(c) - 1, 1) for c in (x, y)]
    extent = (x[0] - half[0], x[-1] + half[0], y[-1] + half[1], y[0] - half[1])

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xlabel("x (nm)")
        axes.set_ylabel("y (nm)")
        shown = axes.imshow(
            values,
            origin="upper",
            extent=extent,
            vmin=low,
            vmax=high,
            cmap="RdBu_r" if diverging else "cividis",
        )
        colour_bar(figure, axes, shown, axis_label(label, units))

    middle = float(np.median(_finite(values)))
    return draw(
        build,
        f"Map of {label} in {model}, median {middle:.3g}.",
        f"{label[:1].upper()}{label[1:]}.",
        size=SIZE,
    )


def arrows(place: Place, vectors: np.ndarray, label: str, units: str, model: str) -> Picture:
    """Vectors as arrows, coloured by direction; where there are too many, means over tiles."""
    position, shown = _tiled(place.position, vectors)
    length = np.hypot(*shown.T)
    usual = float(np.quantile(length, 0.9)) or 1.0
    spacing = np.sqrt(np.prod(np.ptp(position, axis=0).clip(1e-9)) / max(len(position), 1))
    angle = np.degrees(np.arctan2(shown[:, 1], shown[:, 0])) % 360

    def build(figure: Figure) -> None:
        axes = map_axes(figure, place)
        arrows = axes.quiver(
            *position.T,
            *shown.T,
            angle,
            angles="xy",
            scale_units="xy",
            scale=usual / (1.2 * spacing),
            pivot="mid",
            cmap=_directions(),
            clim=(0, 360),
            width=0.004,
            edgecolor=INK,
            linewidth=0.2,
        )
        colour_bar(figure, axes, arrows, "direction (degrees)", ticks=[0, 90, 180, 270, 360])

    averaged = len(position) < len(place.position)
    many = (
        f" Each arrow is the mean of {len(place.position) / len(position):.0f} units."
        if averaged
        else ""
    )
    return draw(
        build,
        f"Arrows of {label} in {model}, nine in ten shorter than {usual:.3g} {units}.",
        f"{label[:1].upper()}{label[1:]}; nine in ten are shorter than {usual:.3g} {units}.{many}",
        size=SIZE,
    )


def _directions() -> Colormap:
    """A circle of hues, dark enough for every direction to be seen on paper."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    hues = colormaps["hsv"](np.linspace(0, 1, 256))
    return ListedColormap(np.concatenate([0.8 * hues[:, :3], hues[:, 3:]], 1))


def _tiled(position: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and vectors, averaged over tiles where they are too many to be drawn."""
    known = np.isfinite(vectors).all(1)
    position, vectors = position[known], vectors[known]
    if len(position) <= MOST_ARROWS:
        return position, vectors
    low, size = position.min(0), np.ptp(position, axis=0)
    side = np.sqrt(np.prod(size) / MOST_ARROWS)
    tile = np.floor((position - low) / side).astype(np.int64)
    _, code = np.unique(tile[:, 0] * (tile[:, 1].max() + 1) + tile[:, 1], return_inverse=True)
    count = np.bincount(code)
    means = [
        np.stack([np.bincount(code, column) / count for column in array.T], 1)
        for array in (position, vectors)
    ]
    return means[0], means[1]
