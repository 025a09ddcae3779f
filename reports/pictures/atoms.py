"""Atoms: the map by what was measured, and by what a model says each atom is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..figures import INK, MARKERS, MODELS, WIDTH, Picture, colour_bar, draw
from ..wording import axis_label, clean, literal
from .base import Seen, picture, species_name
from .histograms import histograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY_ATOMS = 400
# Below this a ring says that the class of an atom is in doubt.
SURE = 0.9


@picture("atoms")
def atoms(seen: Seen) -> list[Picture]:
    """Maps by species, intensity and classes, then histograms of what the model predicts."""
    position = seen.data["position"].values.astype(float)
    found = []
    if "species" in seen.data:
        codes = seen.data["species"].values
        labels = {code: species_name(seen.data, code) for code in np.unique(codes)}
        found.append(_codes(position, codes, "species", labels))
    if "intensity" in seen.data:
        found.append(
            _values(position, seen.data["intensity"].values, "intensity", seen.units("intensity"))
        )
    for name, probabilities in seen.best.classes().items():
        if probabilities.ndim == 2 and len(probabilities) == len(position):
            found.append(_classes(position, probabilities.values, clean(name, 24), seen.best.name))
    if not found:
        found.append(_codes(position, np.zeros(len(position)), "position", {0: "anywhere"}))
    return found + histograms(seen)


def _axes(figure: Figure) -> Axes:
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.set_xlabel("x (nm)")
    axes.set_ylabel("y (nm)")
    return axes


def _dot(count: int) -> float:
    return float(np.clip(6000 / max(count, 1), 4, 40))


def _depth(position: np.ndarray) -> str:
    return " (seen along the third axis)" if position.shape[1] > 2 else ""


def _scatter(
    axes: Axes, position: np.ndarray, codes: np.ndarray, title: str, labels: Mapping[float, str]
) -> None:
    kinds = np.unique(codes)
    for i, code in enumerate(kinds):
        axes.scatter(
            position[codes == code, 0],
            position[codes == code, 1],
            s=_dot(len(position)),
            color=MODELS[i % len(MODELS)],
            marker=MARKERS[i % len(MARKERS)],
            lw=0,
            label=literal(labels.get(code, f"{code:g}")),
            rasterized=len(position) > MANY_ATOMS,
        )
    if 1 < len(kinds) <= 12:
        axes.legend(title=literal(title, 16), loc="upper left", bbox_to_anchor=(1, 1))


def _codes(
    position: np.ndarray, codes: np.ndarray, name: str, labels: Mapping[float, str]
) -> Picture:
    kinds, counts = np.unique(codes, return_counts=True)
    said = ", ".join(f"{n} {labels[kind]}" for kind, n in zip(kinds[:8], counts[:8], strict=True))
    return draw(
        lambda figure: _scatter(_axes(figure), position, codes, name, labels),
        f"Map of {len(position)} atoms by {name}{_depth(position)}: {said}.",
        f"{len(position)} atoms by {name}{_depth(position)}.",
        size=(WIDTH, 3.4),
    )


def _values(position: np.ndarray, values: np.ndarray, name: str, units: str) -> Picture:
    def build(figure: Figure) -> None:
        axes = _axes(figure)
        dots = axes.scatter(
            position[:, 0],
            position[:, 1],
            c=values,
            s=_dot(len(position)),
            lw=0,
            cmap="cividis",
            rasterized=len(position) > MANY_ATOMS,
        )
        colour_bar(figure, axes, dots, axis_label(name, units))

    return draw(
        build,
        f"Map of {len(position)} atoms coloured by {name}{_depth(position)}.",
        f"{len(position)} atoms by {name}{_depth(position)}.",
        size=(WIDTH, 3.4),
    )


def _classes(position: np.ndarray, probabilities: np.ndarray, name: str, model: str) -> Picture:
    best, doubtful = probabilities.argmax(1), probabilities.max(1) < SURE

    def build(figure: Figure) -> None:
        axes = _axes(figure)
        _scatter(axes, position, best, name, {})
        axes.scatter(
            position[doubtful, 0],
            position[doubtful, 1],
            s=3 * _dot(len(position)),
            facecolors="none",
            edgecolors=INK,
            lw=0.8,
        )

    said = ", ".join(
        f"{int((best == k).sum())} of class {k}" for k in range(probabilities.shape[1])
    )
    doubt = f"{int(doubtful.sum())} of {len(best)}"
    return draw(
        build,
        f"Map of atoms by their most probable {name} in {model}: {said}; {doubt} with a probability below {SURE}.",
        f"The most probable {name} of each atom in {model}; a ring marks a probability below {SURE} ({doubt}).",
        size=(WIDTH, 3.4),
    )
