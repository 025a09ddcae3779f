"""What single models of structure show of their own, besides the maps that all of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..figures import INK, MODELS, WIDTH, Picture, colour_bar, draw
from ..wording import axis_label, clean
from .base import Fitted, result
from .maps import Place, arrows, behind, field_map, image_frame, map_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Modes that are drawn, the largest first.
MOST_MODES = 3
# Rings about columns that can still be told apart.
MOST_RINGS = 3000


def _derived(fit: Fitted) -> xr.Dataset:
    return fit.run["derived"].to_dataset() if "derived" in fit.run.children else xr.Dataset()


@result("columns")
def columns(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """The columns on the image that they were found in, and how well each is placed."""
    told = _derived(fit)
    if not {"position_mean", "covariance", "inside"} <= set(told) or "intensity" not in data:
        return []
    framed = image_frame(data)
    if framed is None:
        return []
    inside = told["inside"].values.astype(bool)
    position = told["position_mean"].values[inside]
    rejected = told["rejected"].values if "rejected" in told else np.empty((0, 2))
    place = Place(position, *framed)
    variance = np.einsum("aii->ai", told["covariance"].values)[inside]
    error = 1000 * np.sqrt(variance.mean(1))
    return [
        _rings(place, rejected),
        field_map(
            place,
            error,
            "error of position (pm)",
            f"Map of the error of each column's position, median {np.median(error):.2g} pm.",
            f"How well each column is placed: standard deviation along an axis, median {np.median(error):.2g} pm.",
        ),
    ]


def _rings(place: Place, rejected: np.ndarray) -> Picture:
    count = len(place.position)

    def build(figure: Figure) -> None:
        axes = map_axes(figure, place)
        size = float(np.clip(6_000 / count, 2, 30))
        many = count > MOST_RINGS
        x, y = place.position.T
        axes.scatter(
            x,
            y,
            s=0.3 * size if many else size,
            facecolors=MODELS[0] if many else "none",
            edgecolors="none" if many else MODELS[0],
            lw=0.8,
            rasterized=count > 400,
            label=f"columns: {count:,}",
        )
        if len(rejected):
            axes.scatter(
                rejected[:, 0],
                rejected[:, 1],
                s=size,
                marker="x",
                color=MODELS[1],
                lw=0.8,
                label=f"taken for noise: {len(rejected):,}",
            )
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)

    more = f", {len(rejected):,} candidates taken for noise" if len(rejected) else ""
    return draw(
        build,
        f"The image with its {count} columns{more}.",
        f"{count:,} columns on the image{more}.",
        size=(WIDTH, 3.9),
    )


@result("normal_modes")
def normal_modes(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """The modes themselves, and where each atom sits against its neighbours: the polarization, but for a charge."""
    told = _derived(fit)
    if (
        not {"amplitude", "pattern", "mean_shell", "position"} <= set(told)
        or not told.sizes["mode"]
    ):
        return []
    patterns, shell = told["pattern"].values, told["mean_shell"].values
    found = [_modes(patterns[:MOST_MODES], shell)]
    moved = np.einsum("am,msx->asx", told["amplitude"].values, patterns)
    place = Place(told["position"].values[:, :2], *behind(data))
    # Neighbours that move one way all together are an atom that moves the other way.
    found.append(
        arrows(
            place,
            -1000 * moved.mean(1),
            "displacement of each atom against its neighbours",
            "pm",
            fit.name,
        )
    )
    return found


def _modes(patterns: np.ndarray, shell: np.ndarray) -> Picture:
    count = len(patterns)
    reach = float(np.linalg.norm(shell, axis=1).max())

    def build(figure: Figure) -> None:
        for k, axes in enumerate(np.atleast_1d(figure.subplots(1, count))):
            longest = float(np.linalg.norm(patterns[k], axis=1).max()) or 1.0
            axes.plot(0, 0, "o", color=INK, ms=5)
            axes.plot(*shell.T, "o", mfc="none", mec=INK, ms=5)
            axes.quiver(
                *shell.T,
                *(0.35 * reach * patterns[k] / longest).T,
                angles="xy",
                scale_units="xy",
                scale=1,
                color=MODELS[k % len(MODELS)],
                width=0.02,
            )
            axes.set_xlim(-1.5 * reach, 1.5 * reach)
            axes.set_ylim(1.5 * reach, -1.5 * reach)
            axes.set_aspect("equal")
            axes.set_title(f"mode {k + 1}", fontsize=8.5)
            axes.set_axis_off()

    return draw(
        build,
        f"Patterns of the first {count} modes as arrows on an atom's neighbours.",
        "What the neighbours of an atom (filled) do in each mode; the sign is free.",
        size=(WIDTH, 1.9 if count > 1 else 2.6),
    )


@result("plane_group")
def plane_group(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """The mean cell, the same with the operations of the group, and what is left; and the groups' probabilities."""
    told = _derived(fit)
    names = {
        "cell_observed": "observed",
        "cell_symmetrised": "symmetrised",
        "cell_residual": "residual",
    }
    if not set(names) <= set(told):
        return []
    cells = {label: told[name].values for name, label in names.items()}
    found = [_cells(cells)]
    if "group_probability" in told and "group" in told.coords:
        found.append(
            _groups([clean(g, 8) for g in told["group"].values], told["group_probability"].values)
        )
    return found


def _cells(cells: dict[str, np.ndarray]) -> Picture:
    seen = cells["observed"]
    low, high = float(seen.min()), float(seen.max())
    reach = float(np.abs(cells["residual"]).max()) or 1.0

    def build(figure: Figure) -> None:
        for axes, (label, values) in zip(figure.subplots(1, 3), cells.items(), strict=True):
            rest = label == "residual"
            shown = axes.imshow(
                values,
                extent=(0, 1, 1, 0),
                origin="upper",
                cmap="RdBu_r" if rest else "cividis",
                vmin=-reach if rest else low,
                vmax=reach if rest else high,
            )
            axes.set_title(label, fontsize=8.5)
            axes.set_xlabel("u")
            axes.set_ylabel("v")
            axes.label_outer()
            colour_bar(figure, axes, shown, "", orientation="horizontal")

    return draw(
        build,
        "The mean cell observed, symmetrised by the likeliest plane group, and what is left.",
        "The mean cell, the same under the operations of the likeliest plane group, and what is left of it, "
        "in fractions of the cell.",
        size=(6.2, 2.9),
        wide=True,
    )


def _groups(names: list[str], probability: np.ndarray) -> Picture:
    best = int(np.argmax(probability))

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(range(len(names)), probability, color=MODELS[0])
        axes.set_xticks(range(len(names)), names, rotation=60, fontsize=8)
        axes.set_ylim(0, 1)
        axes.set_ylabel(axis_label("probability"))

    return draw(
        build,
        f"Probability of each plane group: {names[best]} with {probability[best]:.2f}.",
        f"Plane groups: {names[best]} with probability {probability[best]:.2f}.",
        size=(WIDTH, 2.6),
    )
